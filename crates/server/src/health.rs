//! `/health`, `/livez`, `/readyz`: for whoever restarts or routes.

use crate::app::{App, Phase};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

/// The process answers.
pub async fn live() -> &'static str {
    "ok"
}

/// Requests are taken.
pub async fn ready(State(app): State<App>) -> (StatusCode, Json<Value>) {
    let serving = app.phase() == Phase::Serving;
    let status = if serving { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if serving { "ok" } else { "draining" };
    (status, Json(json!({ "status": word, "running": app.queue.running(), "waiting": waiting(&app) })))
}

/// Requests that wait.
pub fn waiting(app: &App) -> usize {
    app.queue.inside().saturating_sub(app.queue.running())
}
