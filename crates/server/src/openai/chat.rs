//! `POST /v1/chat/completions`.

use super::parts::{Head, Usage, chat_log_probs, error_frame, frame, last_frame};
use crate::answer::{Piece, Pieces, all, together};
use crate::app::App;
use crate::ask::Ask;
use crate::body::{Raw, parse};
use crate::constrain::{self, ResponseFormat};
use crate::error::ApiError;
use crate::finish_reason;
use crate::messages::{self, Incoming};
use crate::prompt;
use crate::sampling::Sampling;
use crate::tools::{self, Choice, Parsed, Tool};
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use nexaquant_engine::chat::RenderOptions;
use nexaquant_engine::{Model, Scored};
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;

/// Most alternatives to a token.
const MOST_TOP: u32 = 20;

/// The fields that are no sampling.
#[derive(Debug, Deserialize)]
struct Body {
    model: String,
    messages: Vec<Incoming>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    response_format: Option<ResponseFormat>,
    grammar: Option<String>,
    regex: Option<String>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<Choice>,
    chat_template_kwargs: Option<TemplateArgs>,
}

#[derive(Debug, Default, Deserialize)]
struct TemplateArgs {
    enable_thinking: Option<bool>,
}

/// Answers a conversation.
pub async fn create(State(app): State<App>, Raw(bytes): Raw) -> Result<Response, ApiError> {
    let (body, sampling): (Body, Sampling) = (parse(&bytes)?, parse(&bytes)?);
    let known = app.model(&body.model)?;
    let model = known.model.clone();
    let n = sampling.choices(&app)?;
    let log_probs = log_probs(&body)?;
    let offered = body.tools.unwrap_or_default();
    let choice = body.tool_choice.unwrap_or_default();
    let offered = tools::offered(&offered, &choice)?;
    let mut messages = messages::all(body.messages)?;
    tools::introduce(&mut messages, &offered, &choice);
    let thinking = body.chat_template_kwargs.unwrap_or_default().enable_thinking;
    let options = RenderOptions { enable_thinking: thinking, ..RenderOptions::default() };
    let prompt = prompt::chat(&model, messages, options).await?;
    prompt::check(&app, &model, &prompt.ids, "messages")?;
    let mut generate = sampling.options(&app, &model, prompt.stops)?;
    generate.log_probs = log_probs;
    let wanted = constrain::wanted(body.response_format, body.grammar, body.regex)?;
    let wanted = match tools::forced(&offered, &choice) {
        Some(schema) => Some(constrain::Wanted::Schema(schema)),
        None => wanted,
    };
    if let Some(wanted) = wanted {
        generate.constraint = Some(constrain::constraint(&known, wanted).await?);
    }
    let head = Head::new("chatcmpl", &body.model);
    let ask = Ask { name: body.model, model: model.clone(), prompts: vec![prompt.ids], n, generate };
    let answers = ask.submit(&app)?;
    let tools = !offered.is_empty();
    if sampling.streams() {
        let frames = Frames::new(head, model, n as usize, sampling.includes_usage(), tools);
        let keep_alive = KeepAlive::new().interval(app.options.keep_alive);
        return Ok(Sse::new(frames.of(together(answers))).keep_alive(keep_alive).into_response());
    }
    let (mut usage, mut choices) = (Usage::default(), Vec::new());
    for (index, (outcome, scored)) in all(answers).await?.into_iter().enumerate() {
        usage.add(&outcome, index > 0);
        let text = outcome.generation.text;
        let parsed = if tools { Parsed::of(&text) } else { Parsed::text(text) };
        let finish =
            if parsed.calls.is_empty() { finish_reason(outcome.generation.finish) } else { "tool_calls" };
        let mut message = json!({ "role": "assistant", "content": parsed.content, "refusal": null });
        if !parsed.calls.is_empty() {
            message["tool_calls"] = json!(parsed.calls);
        }
        let log_probs = log_probs.map(|_| chat_log_probs(model.tokenizer(), &scored));
        choices.push(
            json!({ "index": index, "message": message, "logprobs": log_probs, "finish_reason": finish }),
        );
    }
    let mut object = head.object("chat.completion", &json!(choices));
    usage.put(&mut object);
    Ok(axum::Json(object).into_response())
}

fn log_probs(body: &Body) -> Result<Option<usize>, ApiError> {
    let top = body.top_logprobs.unwrap_or(0);
    if top > MOST_TOP {
        return Err(ApiError::field(
            "top_logprobs",
            format!("top_logprobs is {top}; at most {MOST_TOP} are possible"),
        ));
    }
    if top > 0 && body.logprobs != Some(true) {
        return Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs: true"));
    }
    Ok(body.logprobs.unwrap_or(false).then_some(top as usize))
}

/// The frames of a stream.
struct Frames {
    head: Head,
    model: Model,
    /// Scores whose text has not come yet, by choice.
    scored: Vec<Vec<Scored>>,
    /// Text that may be a call of a tool, by choice: it is not passed on before that is clear.
    held: Vec<String>,
    usage: Usage,
    includes_usage: bool,
    tools: bool,
    done: usize,
    failed: bool,
}

impl Frames {
    fn new(head: Head, model: Model, n: usize, includes_usage: bool, tools: bool) -> Self {
        let (scored, held, usage) = (vec![Vec::new(); n], vec![String::new(); n], Usage::default());
        Self { head, model, scored, held, usage, includes_usage, tools, done: 0, failed: false }
    }

    fn of(self, pieces: Pieces) -> impl stream::Stream<Item = Result<Event, Infallible>> {
        let n = self.scored.len();
        let first = stream::iter(
            (0..n)
                .map(|i| self.chunk(i, &json!({ "role": "assistant", "content": "" }), None))
                .collect::<Vec<_>>(),
        );
        let rest = stream::unfold(Some((self, pieces)), |state| async move {
            let (mut frames, mut pieces) = state?;
            let Some((index, piece)) = pieces.next().await else {
                // An error ended it: nothing more is said.
                return None;
            };
            let events = frames.piece(index, piece);
            let over = frames.failed || frames.done == frames.scored.len();
            Some((events, (!over).then_some((frames, pieces))))
        });
        first.chain(rest.flat_map(stream::iter)).map(Ok)
    }

    fn chunk(&self, index: usize, delta: &Value, finish: Option<&str>) -> Event {
        self.scored_chunk(index, delta, finish, None)
    }

    fn scored_chunk(
        &self,
        index: usize,
        delta: &Value,
        finish: Option<&str>,
        scores: Option<&Value>,
    ) -> Event {
        let choice = json!([{ "index": index, "delta": delta, "logprobs": scores, "finish_reason": finish }]);
        let mut object = self.head.object("chat.completion.chunk", &choice);
        if self.includes_usage {
            object["usage"] = Value::Null;
        }
        frame(&object)
    }

    fn take_scores(&mut self, index: usize) -> Option<Value> {
        let scored = std::mem::take(&mut self.scored[index]);
        (!scored.is_empty()).then(|| chat_log_probs(self.model.tokenizer(), &scored))
    }

    fn piece(&mut self, index: usize, piece: Result<Piece, ApiError>) -> Vec<Event> {
        match piece {
            Ok(Piece::Scored(scored)) => {
                self.scored[index].push(*scored);
                Vec::new()
            }
            Ok(Piece::Text(text)) => {
                if self.tools && (!self.held[index].is_empty() || tools::may_begin(&text)) {
                    self.held[index].push_str(&text);
                    return Vec::new();
                }
                let scores = self.take_scores(index);
                vec![self.scored_chunk(index, &json!({ "content": text }), None, scores.as_ref())]
            }
            Ok(Piece::Done(outcome)) => {
                let mut events = Vec::new();
                let mut finish = finish_reason(outcome.generation.finish);
                let held = std::mem::take(&mut self.held[index]);
                let parsed = if held.is_empty() { Parsed::default() } else { Parsed::of(&held) };
                if let Some(content) = parsed.content {
                    events.push(self.chunk(index, &json!({ "content": content }), None));
                }
                for (i, call) in parsed.calls.iter().enumerate() {
                    let mut call = json!(call);
                    call["index"] = json!(i);
                    events.push(self.chunk(index, &json!({ "tool_calls": [call] }), None));
                    finish = "tool_calls";
                }
                let scores = self.take_scores(index);
                events.push(self.scored_chunk(index, &json!({}), Some(finish), scores.as_ref()));
                self.usage.add(&outcome, self.done > 0);
                self.done += 1;
                if self.done == self.scored.len() {
                    if self.includes_usage {
                        let mut object = self.head.object("chat.completion.chunk", &json!([]));
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
