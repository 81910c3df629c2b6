//! `/tokenize` and `/detokenize`, in llama.cpp's shape.

use crate::app::App;
use crate::body::Json;
use crate::error::ApiError;
use crate::prompt;
use axum::extract::State;
use nexaquant_engine::tokenizer::Special;
use serde::Deserialize;
use serde_json::{Value, json};

/// A text.
#[derive(Deserialize)]
pub struct Text {
    model: Option<String>,
    content: String,
    add_special: Option<bool>,
    parse_special: Option<bool>,
    with_pieces: Option<bool>,
}

/// Tokens.
#[derive(Deserialize)]
pub struct Tokens {
    model: Option<String>,
    tokens: Vec<u32>,
}

/// The model asked for, or the only one.
fn model(app: &App, name: Option<String>) -> Result<nexaquant_engine::Model, ApiError> {
    if let Some(name) = name {
        return Ok(app.model(&name)?.model);
    }
    let mut known = app.models().into_values();
    match (known.next(), known.next()) {
        (Some(known), None) => Ok(known.model),
        _ => Err(ApiError::field("model", "there are several models; name one")),
    }
}

/// Token ids of a text.
pub async fn tokenize(State(app): State<App>, Json(body): Json<Text>) -> Result<axum::Json<Value>, ApiError> {
    let model = model(&app, body.model)?;
    let special = if body.parse_special.unwrap_or(true) { Special::Parse } else { Special::AsText };
    let mut ids = prompt::text(&model, body.content, special, "content").await?;
    let tokenizer = model.tokenizer();
    if !body.add_special.unwrap_or(false) && tokenizer.add_bos() && ids.first().copied() == tokenizer.bos() {
        ids.remove(0);
    }
    let tokens = if body.with_pieces.unwrap_or(false) {
        let piece = |&id: &u32| json!({ "id": id, "piece": tokenizer.token_text(id) });
        json!(ids.iter().map(piece).collect::<Vec<_>>())
    } else {
        json!(ids)
    };
    Ok(axum::Json(json!({ "tokens": tokens, "count": ids.len() })))
}

/// The text of token ids.
pub async fn detokenize(
    State(app): State<App>,
    Json(body): Json<Tokens>,
) -> Result<axum::Json<Value>, ApiError> {
    let model = model(&app, body.model)?;
    Ok(axum::Json(json!({ "content": model.tokenizer().decode(&body.tokens) })))
}
