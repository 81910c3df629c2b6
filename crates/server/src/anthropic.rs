//! Anthropic's `POST /v1/messages`, with streaming.

use crate::answer::{Answer, Piece};
use crate::app::App;
use crate::ask::Ask;
use crate::body::{Raw, parse};
use crate::error::{ApiError, ErrorKind};
use crate::messages::Content;
use crate::prompt;
use crate::sampling::{Sampling, Texts};
use axum::extract::FromRequest;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use nexaquant_engine::Finish;
use nexaquant_engine::chat::{Message, RenderOptions, Role};
use nexaquant_engine::scheduler::Outcome;
use serde::Deserialize;
use serde_json::{Value, json};
use std::convert::Infallible;

#[derive(Debug, Deserialize)]
struct Body {
    model: String,
    messages: Vec<Incoming>,
    system: Option<Content>,
    max_tokens: u32,
    stop_sequences: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Incoming {
    role: Who,
    content: Content,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Who {
    User,
    Assistant,
    System,
}

/// Answers a conversation.
pub async fn create(State(app): State<App>, request: axum::extract::Request) -> Response {
    let answered = async {
        let Raw(bytes) = Raw::from_request(request, &app).await?;
        answer(&app, &bytes).await
    };
    answered.await.unwrap_or_else(|error: ApiError| error.respond(as_error(&error).to_string()))
}

fn as_error(error: &ApiError) -> Value {
    let kind = match error.kind {
        ErrorKind::UnknownModel | ErrorKind::NotFound => "not_found_error",
        ErrorKind::TooLarge => "request_too_large",
        ErrorKind::Draining | ErrorKind::NoRoom => "overloaded_error",
        ErrorKind::Internal | ErrorKind::Timeout => "api_error",
        other => other.type_name(),
    };
    json!({ "type": "error", "error": { "type": kind, "message": error.message } })
}

async fn answer(app: &App, bytes: &[u8]) -> Result<Response, ApiError> {
    let (body, sampling): (Body, Sampling) = (parse(bytes)?, parse(bytes)?);
    let model = app.model(&body.model)?.model;
    if body.messages.is_empty() {
        return Err(ApiError::field("messages", "messages is empty; at least one message is needed"));
    }
    let mut messages = Vec::new();
    if let Some(system) = body.system {
        messages.push(Message::new(Role::System, system.text("system")?));
    }
    for (i, message) in body.messages.into_iter().enumerate() {
        let role = match message.role {
            Who::User => Role::User,
            Who::Assistant => Role::Assistant,
            Who::System => Role::System,
        };
        messages.push(Message::new(role, message.content.text(&format!("messages[{i}].content"))?));
    }
    let prompt = prompt::chat(&model, messages, RenderOptions::default()).await?;
    prompt::check(app, &model, &prompt.ids, "messages")?;
    let mut stops = prompt.stops;
    stops.extend(body.stop_sequences.map(Texts::Many).map(Texts::list).unwrap_or_default());
    let generate = sampling.options(app, &model, stops)?;
    let generate = nexaquant_engine::GenerateOptions {
        max_tokens: Some(generate.max_tokens.unwrap_or(usize::MAX).min(body.max_tokens as usize)),
        ..generate
    };
    let head = Head { id: crate::openai::message_id(), model: body.model.clone(), input: prompt.ids.len() };
    let ask = Ask { name: body.model, model, prompts: vec![prompt.ids], n: 1, generate };
    let mut answers = ask.submit(app)?;
    let Some(answer) = answers.pop() else {
        return Err(ApiError::new(ErrorKind::Internal, "a request without an answer"));
    };
    if sampling.streams() {
        let keep_alive = KeepAlive::new().interval(app.options.keep_alive);
        return Ok(Sse::new(frames(&head, answer)).keep_alive(keep_alive).into_response());
    }
    let (outcome, _) = answer.whole().await?;
    let mut message = head.message(&json!([{ "type": "text", "text": outcome.generation.text }]));
    message["stop_reason"] = json!(stop_reason(&outcome));
    message["usage"] = usage(&outcome);
    Ok(axum::Json(message).into_response())
}

struct Head {
    id: String,
    model: String,
    input: usize,
}

impl Head {
    fn message(&self, content: &Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": null, "stop_sequence": null,
            "usage": { "input_tokens": self.input, "output_tokens": 0 },
        })
    }
}

fn stop_reason(outcome: &Outcome) -> &'static str {
    match outcome.generation.finish {
        Finish::Stop => "stop_sequence",
        Finish::Length | Finish::ContextFull => "max_tokens",
        Finish::EndOfTurn | Finish::Cancelled => "end_turn",
    }
}

fn usage(outcome: &Outcome) -> Value {
    let stats = &outcome.generation.stats;
    json!({
        "input_tokens": stats.prompt_tokens,
        "cache_read_input_tokens": stats.cached_tokens,
        "output_tokens": stats.tokens,
    })
}

fn event(value: &Value) -> Event {
    Event::default().event(value["type"].as_str().unwrap_or_default()).data(value.to_string())
}

fn frames(head: &Head, answer: Answer) -> impl stream::Stream<Item = Result<Event, Infallible>> + use<> {
    let first = [
        json!({ "type": "message_start", "message": head.message(&json!([])) }),
        json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "text", "text": "" } }),
        json!({ "type": "ping" }),
    ];
    let rest = stream::unfold(Some(answer), |answer| async move {
        let mut answer = answer?;
        let (values, over) = match answer.next().await {
            Ok(None) => return None,
            Ok(Some(Piece::Scored(_))) => (vec![], false),
            Ok(Some(Piece::Text(text))) => {
                let delta = json!({ "type": "text_delta", "text": text });
                (vec![json!({ "type": "content_block_delta", "index": 0, "delta": delta })], false)
            }
            Ok(Some(Piece::Done(outcome))) => {
                let delta = json!({ "stop_reason": stop_reason(&outcome), "stop_sequence": null });
                let last = json!({ "type": "message_delta", "delta": delta, "usage": usage(&outcome) });
                let stop = json!({ "type": "content_block_stop", "index": 0 });
                (vec![stop, last, json!({ "type": "message_stop" })], true)
            }
            Err(error) => (vec![as_error(&error)], true),
        };
        Some((values, (!over).then_some(answer)))
    });
    stream::iter(first).chain(rest.flat_map(stream::iter)).map(|value| Ok(event(&value)))
}
