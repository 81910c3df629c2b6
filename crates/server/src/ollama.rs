//! Ollama's API as far as its chat clients need it: `/api/version`, `/api/tags`, `/api/ps`, `/api/chat`, `/api/generate`.

use crate::answer::{Answer, Piece};
use crate::app::{App, Known};
use crate::ask::Ask;
use crate::body::{Raw, parse};
use crate::constrain::{self, Wanted};
use crate::error::ApiError;
use crate::prompt;
use crate::sampling::Sampling;
use axum::Json;
use axum::body::{Body as HttpBody, Bytes};
use axum::extract::{FromRequest, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, StreamExt};
use nexaquant_engine::chat::{Message, RenderOptions, Role};
use nexaquant_engine::scheduler::Outcome;
use nexaquant_engine::tokenizer::Special;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::convert::Infallible;
use std::time::{Duration, SystemTime};

/// The version of the API that is spoken.
pub async fn version() -> Json<Value> {
    Json(json!({ "version": "0.12.0" }))
}

fn details(name: &str, known: &Known) -> Value {
    let metadata = &known.model.gguf().metadata;
    let family = metadata.str("general.architecture").ok().flatten().unwrap_or_default().to_owned();
    json!({
        "name": name,
        "model": name,
        "modified_at": date(known.added),
        "size": known.model.file().bytes().len(),
        "details": { "format": "gguf", "family": family, "families": [family] },
    })
}

/// All models.
pub async fn tags(State(app): State<App>) -> Json<Value> {
    let models: Vec<Value> = app.models().iter().map(|(name, known)| details(name, known)).collect();
    Json(json!({ "models": models }))
}

/// Models with weights in memory.
pub async fn ps(State(app): State<App>) -> Json<Value> {
    let looked = app.clone();
    let status =
        tokio::task::spawn_blocking(move || looked.engine.memory().map(nexaquant_engine::m3::Memory::status));
    let status = status.await.ok().flatten().unwrap_or_default();
    let models = app.models();
    let there = status.iter().flat_map(|model| {
        let resident: u64 = model.units.iter().map(|unit| unit.kept.0).sum();
        model.names.iter().filter(move |_| resident > 0).map(move |name| (name, resident))
    });
    let there = there.filter_map(|(name, resident)| {
        let mut model = details(name, models.get(name)?);
        model["size_vram"] = json!(resident);
        Some(model)
    });
    Json(json!({ "models": there.collect::<Vec<_>>() }))
}

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
}

#[derive(Debug, Deserialize)]
struct Incoming {
    role: String,
    content: String,
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

fn as_error(error: &ApiError) -> Value {
    json!({ "error": error.message })
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
    // Clients of Ollama ask for `name:latest`.
    let name = body.model.strip_suffix(":latest").unwrap_or(&body.model).to_owned();
    let known = app.model(&name)?;
    let model = known.model.clone();
    let sampling = sampling(body.options)?;
    let mut messages = Vec::new();
    messages.extend(body.system.map(|system| Message::new(Role::System, system)));
    for (i, message) in body.messages.into_iter().flatten().enumerate() {
        let role = match message.role.as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            other => {
                let field = format!("messages[{i}].role");
                return Err(ApiError::field(&field, format!("{field} is {other:?}")));
            }
        };
        messages.push(Message::new(role, message.content));
    }
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
        let prompt = prompt::chat(&model, messages, RenderOptions::default()).await?;
        (prompt.ids, prompt.stops)
    };
    prompt::check(app, &model, &ids, if chat { "messages" } else { "prompt" })?;
    let mut generate = sampling.options(app, &model, stops)?;
    generate.continues_prompt = raw;
    let wanted = match body.format {
        None | Some(Value::Null) => None,
        Some(Value::String(word)) if word.is_empty() => None,
        Some(Value::String(word)) if word == "json" => Some(Wanted::Schema(json!({ "type": "object" }))),
        Some(schema @ Value::Object(_)) => Some(Wanted::Schema(schema)),
        Some(_) => return Err(ApiError::field("format", "format is json or a schema")),
    };
    if let Some(wanted) = wanted {
        generate.constraint = Some(constrain::constraint(&known, wanted).await?);
    }
    let ask = Ask { name, model, prompts: vec![ids], n: 1, generate };
    let mut answers = ask.submit(app)?;
    let Some(answer) = answers.pop() else { return Err(ApiError::field("n", "no answer")) };
    let form = Form { model: body.model, chat };
    if body.stream.unwrap_or(true) {
        let lines = HttpBody::from_stream(lines(form, answer));
        return Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response());
    }
    let (outcome, _) = answer.whole().await?;
    Ok(Json(form.last(&outcome.generation.text, &outcome)).into_response())
}

/// How a line looks.
struct Form {
    model: String,
    chat: bool,
}

fn now() -> String {
    date(SystemTime::now())
}

/// `2026-11-24T08:30:00Z`.
fn date(time: SystemTime) -> String {
    let seconds = crate::app::unix(time);
    let (mut days, clock) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", month + 1, days + 1)
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Form {
    fn line(&self, text: &str, done: bool) -> Value {
        let mut line = json!({ "model": self.model, "created_at": now(), "done": done });
        if self.chat {
            line["message"] = json!({ "role": "assistant", "content": text });
        } else {
            line["response"] = json!(text);
        }
        line
    }

    fn last(&self, text: &str, outcome: &Outcome) -> Value {
        let (stats, service) = (&outcome.generation.stats, &outcome.service);
        let mut line = self.line(text, true);
        line["done_reason"] = json!(crate::finish_reason(outcome.generation.finish));
        line["total_duration"] = json!(ns(service.waited + service.busy));
        line["load_duration"] = json!(ns(service.switch.page_in()));
        line["prompt_eval_count"] = json!(stats.prompt_tokens + stats.cached_tokens);
        line["prompt_eval_duration"] = json!(ns(stats.prompt_time));
        line["eval_count"] = json!(stats.tokens);
        line["eval_duration"] = json!(ns(stats.generate_time));
        line
    }
}

fn lines(form: Form, answer: Answer) -> impl stream::Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(Some((form, answer)), |state| async move {
        let (form, mut answer) = state?;
        loop {
            let (line, over) = match answer.next().await {
                Ok(None) => return None,
                Ok(Some(Piece::Scored(_))) => continue,
                Ok(Some(Piece::Text(text))) => (form.line(&text, false), false),
                Ok(Some(Piece::Done(outcome))) => (form.last("", &outcome), true),
                Err(error) => (as_error(&error), true),
            };
            return Some((Bytes::from(format!("{line}\n")), (!over).then_some((form, answer))));
        }
    })
    .map(Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
