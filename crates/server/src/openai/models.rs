//! `GET /v1/models` and `GET /v1/models/{id}`.

use crate::app::{App, Known, unix};
use crate::error::ApiError;
use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

fn object(app: &App, name: &str, known: &Known) -> Value {
    let arch = known.model.architecture();
    json!({
        "id": name,
        "object": "model",
        "created": unix(known.added),
        "owned_by": "nexaquant",
        "max_model_len": app.session(&known.model).context,
        "meta": {
            "name": known.model.name(),
            "vocab": arch.vocab,
            "context": arch.hparams.context_length,
            "bytes": known.model.file().bytes().len(),
        },
    })
}

/// All models.
pub async fn list(State(app): State<App>) -> Json<Value> {
    let data: Vec<Value> = app.models().iter().map(|(name, known)| object(&app, name, known)).collect();
    Json(json!({ "object": "list", "data": data }))
}

/// One.
pub async fn get(State(app): State<App>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let known = app.model(&name)?;
    Ok(Json(object(&app, &name, &known)))
}
