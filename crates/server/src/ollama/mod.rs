//! Ollama's API as far as its chat clients need it: `/api/version`, `/api/tags`, `/api/ps`,
//! `/api/show`, `/api/chat`, `/api/generate`.

mod models;
mod reply;

pub use models::{ps, show, tags, version};

use crate::app::App;
use crate::ask::Ask;
use crate::body::{Raw, parse};
use crate::constrain::{self, Wanted};
use crate::error::ApiError;
use crate::messages::Called;
use crate::prompt;
use crate::sampling::Sampling;
use crate::tools::{Offer, Tool};
use axum::Json;
use axum::body::Body as HttpBody;
use axum::extract::{FromRequest, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use nexaquant_engine::chat::{Message, RenderOptions, Role};
use nexaquant_engine::tokenizer::Special;
use reply::{Form, lines, now};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What both routes have.
#[derive(Debug, Deserialize)]
struct Body {
    model: String,
    messages: Option<Vec<Incoming>>,
    prompt: Option<String>,
    system: Option<String>,
    raw: Option<bool>,
    stream: Option<bool>,
    format: Option<Value>,
    options: Option<Map<String, Value>>,
    tools: Option<Vec<Tool>>,
}

#[derive(Debug, Deserialize)]
struct Incoming {
    role: String,
    content: Option<String>,
    tool_calls: Option<Vec<Called>>,
    #[serde(alias = "name")]
    tool_name: Option<String>,
}

impl Incoming {
    fn message(self, index: usize) -> Result<Message, ApiError> {
        let role = match self.role.as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            other => {
                let field = format!("messages[{index}].role");
                let message = format!("{field} is {other:?}; there are system, user, assistant and tool");
                return Err(ApiError::field(&field, message));
            }
        };
        let calls = self.tool_calls.filter(|_| role == Role::Assistant).unwrap_or_default();
        let (calls, name) = (calls.into_iter().map(Called::into).collect(), self.tool_name);
        let name = name.filter(|_| role == Role::Tool);
        Ok(Message { calls, name, ..Message::new(role, self.content.unwrap_or_default()) })
    }
}

/// A conversation.
pub async fn chat(State(app): State<App>, request: Request) -> Response {
    respond(&app, request, true).await
}

/// A prompt.
pub async fn generate(State(app): State<App>, request: Request) -> Response {
    respond(&app, request, false).await
}

async fn respond(app: &App, request: Request, chat: bool) -> Response {
    let answered = async {
        let Raw(bytes) = Raw::from_request(request, app).await?;
        answer(app, &bytes, chat).await
    };
    answered.await.unwrap_or_else(|error: ApiError| error.respond(as_error(&error).to_string()))
}

/// An error in this API's shape.
pub(crate) fn as_error(error: &ApiError) -> Value {
    json!({ "error": error.message })
}

/// Clients of Ollama ask for `name:latest`.
fn plain(name: &str) -> &str {
    name.strip_suffix(":latest").unwrap_or(name)
}

/// Ollama's names of options that differ.
fn sampling(options: Option<Map<String, Value>>) -> Result<Sampling, ApiError> {
    let mut options = options.unwrap_or_default();
    if let Some(most) = options.remove("num_predict") {
        // Every negative number means: no bound.
        let most = most.as_i64().map_or(most, |n| json!(n.max(-1)));
        options.insert("max_tokens".into(), most);
    }
    options.remove("stream");
    options.remove("n");
    let text = Value::Object(options).to_string();
    parse(text.as_bytes()).map_err(|mut error| {
        error.param = error.param.map(|param| format!("options.{param}"));
        error
    })
}

async fn answer(app: &App, bytes: &[u8], chat: bool) -> Result<Response, ApiError> {
    let body: Body = parse(bytes)?;
    let name = plain(&body.model).to_owned();
    let known = app.model(&name)?;
    let model = known.model.clone();
    let sampling = sampling(body.options)?;
    let wanted = match body.format {
        None | Some(Value::Null) => None,
        Some(Value::String(word)) if word.is_empty() => None,
        Some(Value::String(word)) if word == "json" => Some(Wanted::Schema(json!({ "type": "object" }))),
        Some(schema @ Value::Object(_)) => Some(Wanted::Schema(schema)),
        Some(_) => return Err(ApiError::field("format", "format is json or a schema")),
    };
    let mut messages = Vec::new();
    messages.extend(body.system.map(|system| Message::new(Role::System, system)));
    for (i, message) in body.messages.into_iter().flatten().enumerate() {
        messages.push(message.message(i)?);
    }
    let offer = if chat { Offer::new(body.tools, None)? } else { Offer::default() };
    let text = body.prompt.unwrap_or_default();
    let raw = !chat && body.raw.unwrap_or(false);
    if !chat && !raw && !text.is_empty() {
        messages.push(Message::new(Role::User, text.clone()));
    }
    if messages.is_empty() && !raw {
        // An empty request asks for the model to be loaded, which happens when it is used.
        let done = json!({ "model": body.model, "created_at": now(), "response": "", "done": true, "done_reason": "load" });
        return Ok(Json(done).into_response());
    }
    let (ids, stops) = if raw {
        (prompt::text(&model, text, Special::Parse, "prompt").await?, Vec::new())
    } else {
        let prompt = prompt::chat(&model, messages, RenderOptions::default(), offer.clone()).await?;
        (prompt.ids, prompt.stops)
    };
    prompt::check(app, &model, &ids, if chat { "messages" } else { "prompt" })?;
    let mut generate = sampling.options(app, &model, stops)?;
    generate.continues_prompt = raw;
    if let Some(wanted) = wanted {
        generate.constraint = Some(constrain::constraint(&known, wanted).await?);
    }
    let ask = Ask { name, model, prompts: vec![ids], n: 1, generate };
    let mut answers = ask.submit(app)?;
    let Some(answer) = answers.pop() else { return Err(ApiError::field("n", "no answer")) };
    let form = Form { model: body.model, chat };
    if body.stream.unwrap_or(true) {
        let lines = HttpBody::from_stream(lines(form, answer, &offer));
        return Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response());
    }
    let (outcome, _) = answer.whole().await?;
    let parsed = offer.parse(outcome.generation.text.clone());
    Ok(Json(form.last(&parsed, &outcome)).into_response())
}
