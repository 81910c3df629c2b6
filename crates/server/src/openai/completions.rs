//! `POST /v1/completions`: a text goes on.

use super::parts::{Head, Usage, error_frame, frame, last_frame, text_log_probs};
use crate::answer::{Piece, Pieces, all, together};
use crate::app::App;
use crate::ask::Ask;
use crate::body::{Raw, parse};
use crate::constrain::{self, ResponseFormat};
use crate::error::ApiError;
use crate::finish_reason;
use crate::prompt::{self, TextOrTokens};
use crate::sampling::{MOST_CHOICES, Sampling};
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use nexaquant_engine::tokenizer::Special;
use nexaquant_engine::{Model, Scored};
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;

#[derive(Debug, Deserialize)]
struct Body {
    model: String,
    prompt: TextOrTokens,
    echo: Option<bool>,
    suffix: Option<String>,
    best_of: Option<u32>,
    logprobs: Option<u32>,
    response_format: Option<ResponseFormat>,
    grammar: Option<String>,
    regex: Option<String>,
}

/// Goes on with a text.
pub async fn create(State(app): State<App>, Raw(bytes): Raw) -> Result<Response, ApiError> {
    let (body, sampling): (Body, Sampling) = (parse(&bytes)?, parse(&bytes)?);
    let known = app.model(&body.model)?;
    let model = known.model.clone();
    let n = sampling.choices(&app)?;
    if body.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::field("suffix", "a suffix is not possible: these models write forward only"));
    }
    if body.best_of.is_some_and(|best| best != n) {
        return Err(ApiError::field("best_of", "best_of must be n: every answer is returned"));
    }
    if let Some(top) = body.logprobs.filter(|&top| top > 20) {
        return Err(ApiError::field("logprobs", format!("logprobs is {top}; at most 20 are possible")));
    }
    let prompts = prompts(&model, body.prompt).await?;
    if prompts.is_empty() || prompts.len() > MOST_CHOICES as usize {
        let message = format!("there are {} prompts; 1 to {MOST_CHOICES} are possible", prompts.len());
        return Err(ApiError::field("prompt", message));
    }
    for prompt in &prompts {
        prompt::check(&app, &model, prompt, "prompt")?;
    }
    let mut generate = sampling.options(&app, &model, Vec::new())?;
    generate.continues_prompt = true;
    generate.log_probs = body.logprobs.map(|top| top as usize);
    if let Some(wanted) = constrain::wanted(body.response_format, body.grammar, body.regex)? {
        generate.constraint = Some(constrain::constraint(&known, wanted).await?);
    }
    let echo = |prompt: &Vec<u32>| model.tokenizer().decode(prompt);
    let echoes: Vec<String> = match body.echo {
        Some(true) => prompts.iter().map(echo).collect(),
        _ => vec![String::new(); prompts.len()],
    };
    let head = Head::new("cmpl", &body.model);
    let ask = Ask { name: body.model, model: model.clone(), prompts, n, generate };
    let answers = ask.submit(&app)?;
    if sampling.streams() {
        let echoes = echoes.into_iter().flat_map(|echo| vec![echo; n as usize]).collect();
        let frames = Frames::new(head, model, echoes, n as usize, sampling.includes_usage());
        let keep_alive = KeepAlive::new().interval(app.options.keep_alive);
        return Ok(Sse::new(frames.of(together(answers))).keep_alive(keep_alive).into_response());
    }
    let (mut usage, mut choices) = (Usage::default(), Vec::new());
    for (index, (outcome, scored)) in all(answers).await?.into_iter().enumerate() {
        usage.add(&outcome, index % n as usize > 0);
        let echo = &echoes[index / n as usize];
        let mut offset = echo.chars().count();
        let scores = body.logprobs.map(|_| text_log_probs(model.tokenizer(), &scored, &mut offset));
        choices.push(json!({
            "index": index,
            "text": format!("{echo}{}", outcome.generation.text),
            "logprobs": scores,
            "finish_reason": finish_reason(outcome.generation.finish),
        }));
    }
    let mut object = head.object("text_completion", &json!(choices));
    usage.put(&mut object);
    Ok(axum::Json(object).into_response())
}

async fn prompts(model: &Model, prompt: TextOrTokens) -> Result<Vec<Vec<u32>>, ApiError> {
    let texts = match prompt.texts() {
        Ok(texts) => texts,
        Err(tokens) => return Ok(tokens),
    };
    let mut prompts = Vec::new();
    for text in texts.into_iter().take(MOST_CHOICES as usize + 1) {
        prompts.push(prompt::text(model, text, Special::Parse, "prompt").await?);
    }
    Ok(prompts)
}

/// The frames of a stream.
struct Frames {
    head: Head,
    model: Model,
    /// What is said before the answer, by choice.
    echoes: Vec<String>,
    /// Choices to each prompt.
    n: usize,
    scored: Vec<Vec<Scored>>,
    offsets: Vec<usize>,
    usage: Usage,
    /// Prompts that are in the usage.
    counted: Vec<bool>,
    includes_usage: bool,
    done: usize,
    failed: bool,
}

impl Frames {
    fn new(head: Head, model: Model, echoes: Vec<String>, n: usize, includes_usage: bool) -> Self {
        let choices = echoes.len();
        Self {
            head,
            model,
            n,
            scored: vec![Vec::new(); choices],
            offsets: echoes.iter().map(|echo| echo.chars().count()).collect(),
            usage: Usage::default(),
            counted: vec![false; choices / n],
            includes_usage,
            done: 0,
            failed: false,
            echoes,
        }
    }

    fn of(self, pieces: Pieces) -> impl stream::Stream<Item = Result<Event, Infallible>> {
        stream::unfold(Some((self, pieces)), |state| async move {
            let (mut frames, mut pieces) = state?;
            let (index, piece) = pieces.next().await?;
            let events = frames.piece(index, piece);
            let over = frames.failed || frames.done == frames.scored.len();
            Some((events, (!over).then_some((frames, pieces))))
        })
        .flat_map(stream::iter)
        .map(Ok)
    }

    fn chunk(&mut self, index: usize, text: &str, finish: Option<&str>) -> Event {
        let scored = std::mem::take(&mut self.scored[index]);
        let offset = &mut self.offsets[index];
        let scores = (!scored.is_empty()).then(|| text_log_probs(self.model.tokenizer(), &scored, offset));
        let text = format!("{}{text}", std::mem::take(&mut self.echoes[index]));
        let choice = json!([{ "index": index, "text": text, "logprobs": scores, "finish_reason": finish }]);
        let mut object = self.head.object("text_completion", &choice);
        if self.includes_usage {
            object["usage"] = Value::Null;
        }
        frame(&object)
    }

    fn piece(&mut self, index: usize, piece: Result<Piece, ApiError>) -> Vec<Event> {
        match piece {
            Ok(Piece::Scored(scored)) => {
                self.scored[index].push(*scored);
                Vec::new()
            }
            Ok(Piece::Text(text)) => vec![self.chunk(index, &text, None)],
            Ok(Piece::Done(outcome)) => {
                let mut events = vec![self.chunk(index, "", Some(finish_reason(outcome.generation.finish)))];
                let counted = std::mem::replace(&mut self.counted[index / self.n], true);
                self.usage.add(&outcome, counted);
                self.done += 1;
                if self.done == self.scored.len() {
                    if self.includes_usage {
                        let mut object = self.head.object("text_completion", &json!([]));
                        self.usage.put(&mut object);
                        events.push(frame(&object));
                    }
                    events.push(last_frame());
                }
                events
            }
            Err(error) => {
                self.failed = true;
                vec![error_frame(&error)]
            }
        }
    }
}
