//! `POST /v1/completions`: a text goes on.

use super::parts::{Head, Usage, text_log_probs};
use super::stream::{Choices, Frames};
use crate::answer::{all, together};
use crate::app::App;
use crate::ask::Ask;
use crate::body::{Raw, parse};
use crate::constrain::{self, ResponseFormat};
use crate::error::ApiError;
use crate::finish_reason;
use crate::prompt::{self, TextOrTokens};
use crate::sampling::{MOST_CHOICES, Sampling};
use axum::extract::State;
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use nexaquant_engine::scheduler::Outcome;
use nexaquant_engine::tokenizer::Special;
use nexaquant_engine::{Model, Scored};
use serde::Deserialize;
use serde_json::{Value, json};

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
        let (prompts, n) = (echoes.len(), n as usize);
        let echoes = echoes.into_iter().flat_map(|echo| vec![echo; n]).collect();
        let frames = Frames::new(head, "text_completion", Chunks::new(model, echoes), prompts, n);
        let frames = frames.with_usage(sampling.includes_usage());
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

/// The choices of a stream.
struct Chunks {
    model: Model,
    /// What is said before the answer, by choice.
    echoes: Vec<String>,
    /// Scores whose text has not come yet, by choice.
    scored: Vec<Vec<Scored>>,
    /// Characters that were said, by choice.
    offsets: Vec<usize>,
}

impl Chunks {
    fn new(model: Model, echoes: Vec<String>) -> Self {
        let offsets = echoes.iter().map(|echo| echo.chars().count()).collect();
        Self { model, scored: vec![Vec::new(); echoes.len()], offsets, echoes }
    }

    fn chunk(&mut self, index: usize, text: &str, finish: Option<&str>) -> Value {
        let scored = std::mem::take(&mut self.scored[index]);
        let offset = &mut self.offsets[index];
        let scores = (!scored.is_empty()).then(|| text_log_probs(self.model.tokenizer(), &scored, offset));
        let text = format!("{}{text}", std::mem::take(&mut self.echoes[index]));
        json!({ "index": index, "text": text, "logprobs": scores, "finish_reason": finish })
    }
}

impl Choices for Chunks {
    fn first(&self) -> Vec<Value> {
        Vec::new()
    }

    fn scored(&mut self, index: usize, scored: Scored) {
        self.scored[index].push(scored);
    }

    fn text(&mut self, index: usize, text: &str) -> Vec<Value> {
        vec![self.chunk(index, text, None)]
    }

    fn end(&mut self, index: usize, outcome: &Outcome) -> Vec<Value> {
        vec![self.chunk(index, "", Some(finish_reason(outcome.generation.finish)))]
    }
}
