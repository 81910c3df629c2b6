//! Anthropic's `POST /v1/messages`, with streaming and tools.

mod reply;
mod request;

use crate::app::App;
use crate::ask::Ask;
use crate::body::{Raw, parse};
use crate::constrain::{self, Wanted};
use crate::error::{ApiError, ErrorKind};
use crate::prompt;
use crate::sampling::Sampling;
use axum::extract::{FromRequest, Request, State};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use nexaquant_engine::GenerateOptions;
use nexaquant_engine::chat::RenderOptions;
use reply::Head;
use request::Body;
use serde_json::{Value, json};

/// Answers a conversation.
pub async fn create(State(app): State<App>, request: Request) -> Response {
    let answered = async {
        let Raw(bytes) = Raw::from_request(request, &app).await?;
        answer(&app, &bytes).await
    };
    answered.await.unwrap_or_else(|error: ApiError| error.respond(as_error(&error).to_string()))
}

/// Tokens of a conversation that is not answered.
pub async fn count(State(app): State<App>, request: Request) -> Response {
    let counted = async {
        let Raw(bytes) = Raw::from_request(request, &app).await?;
        let mut body: Body = parse(&bytes)?;
        let model = app.model(&body.model)?.model;
        let (messages, offer) = body.conversation()?;
        let prompt = prompt::chat(&model, messages, RenderOptions::default(), offer).await?;
        Ok(axum::Json(json!({ "input_tokens": prompt.ids.len() })).into_response())
    };
    counted.await.unwrap_or_else(|error: ApiError| error.respond(as_error(&error).to_string()))
}

/// An error in this API's shape.
pub(crate) fn as_error(error: &ApiError) -> Value {
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
    let (mut body, sampling): (Body, Sampling) = (parse(bytes)?, parse(bytes)?);
    let Some(max_tokens) = body.max_tokens else {
        return Err(ApiError::field("max_tokens", "max_tokens is missing"));
    };
    let known = app.model(&body.model)?;
    let model = known.model.clone();
    let (messages, offer) = body.conversation()?;
    let prompt = prompt::chat(&model, messages, RenderOptions::default(), offer.clone()).await?;
    prompt::check(app, &model, &prompt.ids, "messages")?;
    let mut stops = prompt.stops;
    stops.extend(body.stop_sequences.unwrap_or_default());
    let generate = sampling.options(app, &model, stops)?;
    let mut generate = GenerateOptions {
        max_tokens: Some(generate.max_tokens.unwrap_or(usize::MAX).min(max_tokens as usize)),
        ..generate
    };
    if let Some(schema) = offer.forced() {
        generate.constraint = Some(constrain::constraint(&known, Wanted::Schema(schema)).await?);
    }
    let head = Head { id: crate::openai::message_id(), model: body.model.clone(), input: prompt.ids.len() };
    let ask = Ask { name: body.model, model, prompts: vec![prompt.ids], n: 1, generate };
    let mut answers = ask.submit(app)?;
    let Some(answer) = answers.pop() else {
        return Err(ApiError::new(ErrorKind::Internal, "a request without an answer"));
    };
    if sampling.streams() {
        let keep_alive = KeepAlive::new().interval(app.options.keep_alive);
        return Ok(Sse::new(reply::events(&head, answer, &offer)).keep_alive(keep_alive).into_response());
    }
    let (outcome, _) = answer.whole().await?;
    Ok(axum::Json(head.whole(&outcome, &offer)).into_response())
}
