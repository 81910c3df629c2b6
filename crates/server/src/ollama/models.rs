//! Which models there are, and which are in memory.

use super::reply::date;
use super::{as_error, plain};
use crate::app::{App, Known};
use crate::body::{Raw, parse};
use crate::error::ApiError;
use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

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

#[derive(Deserialize)]
struct Shown {
    #[serde(alias = "name")]
    model: String,
}

/// What is known of a model.
pub async fn show(State(app): State<App>, request: Request) -> Response {
    let shown = async {
        let Raw(bytes) = Raw::from_request(request, &app).await?;
        let Shown { model } = parse(&bytes)?;
        let known = app.model(plain(&model))?;
        let mut details = details(&model, &known);
        let hparams = &known.model.architecture().hparams;
        let family = details["details"]["family"].as_str().unwrap_or_default().to_owned();
        let template = known.model.chat().ok().and_then(|template| template.source()).unwrap_or_default();
        Ok(Json(json!({
            "details": details["details"].take(),
            "modified_at": details["modified_at"].take(),
            "template": template,
            "capabilities": ["completion", "tools"],
            "model_info": {
                "general.architecture": family,
                format!("{family}.context_length"): hparams.context_length,
            },
        })))
    };
    let shown: Result<Json<Value>, ApiError> = shown.await;
    shown.map_or_else(|error| error.respond(as_error(&error).to_string()), IntoResponse::into_response)
}
