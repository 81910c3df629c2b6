//! What can be done about who is in memory: load, unload, pin, another budget, models that come and go.

use super::map::tell;
use crate::app::App;
use crate::body::{Json, Raw, parse};
use crate::error::{ApiError, ErrorKind};
use axum::extract::{FromRequest, Path, Request, State};
use nexaquant_engine::Model;
use nexaquant_engine::m3::{MemoryError, Pin};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;

type Told = Result<axum::Json<Value>, ApiError>;

/// Does something that may wait for the engine or a disk.
async fn aside<T: Send + 'static>(
    app: &App,
    work: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let app = app.clone();
    let fault = |_| ApiError::new(ErrorKind::Internal, "a fault in this program; please report it");
    tokio::task::spawn_blocking(move || work(&app)).await.map_err(fault)?
}

/// Brings in as much of a model as there is room for.
async fn bring_in(app: &App, name: String) -> Result<(), ApiError> {
    app.model(&name)?;
    aside(app, move |app| {
        let memory = app.memory()?;
        let placed = memory.get(&name)?;
        let fit = || {
            let books = memory.books();
            let others = books.used().0.saturating_sub(books.of(nexaquant_engine::m3::Class::Weights).0);
            let mut room = books.budget.0.saturating_sub(others);
            let fits = placed.parts().take_while(|(_, _, bytes)| {
                let fits = *bytes <= room;
                room = room.saturating_sub(*bytes);
                fits
            });
            fits.count()
        };
        let mut n = fit();
        if n < placed.parts().count() {
            app.engine.forget_kept();
            n = fit();
        }
        Ok(placed.load(Pin::Head(n as u32))?)
    })
    .await
}

async fn let_go(app: &App, name: String) -> Result<(), ApiError> {
    app.model(&name)?;
    aside(app, move |app| {
        app.memory()?.pin(&name, Pin::None)?;
        Ok(app.engine.unload(&name)?)
    })
    .await
}

/// Brings a model in.
pub async fn load(State(app): State<App>, Path(name): Path<String>) -> Told {
    bring_in(&app, name).await?;
    tell(&app).await
}

/// Evicts a model, and unpins it. It comes back when it is asked.
pub async fn unload(State(app): State<App>, Path(name): Path<String>) -> Told {
    let_go(&app, name).await?;
    tell(&app).await
}

#[derive(Deserialize)]
struct PinBody {
    /// The first parts of a pass; all without it.
    head: Option<u32>,
}

/// Keeps a model in memory, and brings it in.
pub async fn pin(State(app): State<App>, Path(name): Path<String>, request: Request) -> Told {
    let Raw(bytes) = Raw::from_request(request, &app).await?;
    let body = if bytes.is_empty() { PinBody { head: None } } else { parse(&bytes)? };
    app.model(&name)?;
    let pin = match body.head {
        None => Pin::All,
        Some(0) => return Err(ApiError::field("head", "head is 0; use unpin")),
        Some(n) => Pin::Head(n),
    };
    aside(&app, move |app| {
        let memory = app.memory()?;
        let placed = memory.get(&name)?;
        let keep = || memory.pin(&name, pin).and_then(|()| placed.load(pin));
        // What is kept of conversations that are over must not be in the way.
        if keep().is_err() {
            app.engine.forget_kept();
            keep()?;
        }
        Ok(())
    })
    .await?;
    tell(&app).await
}

/// Lets a model go when others need the room.
pub async fn unpin(State(app): State<App>, Path(name): Path<String>) -> Told {
    app.model(&name)?;
    app.memory()?.pin(&name, Pin::None)?;
    tell(&app).await
}

/// A number of bytes.
#[derive(Deserialize)]
pub struct BudgetBody {
    budget: u64,
}

/// Changes the budget between two passes.
pub async fn budget(State(app): State<App>, Json(body): Json<BudgetBody>) -> Told {
    if body.budget == 0 {
        return Err(ApiError::field("budget", "budget is 0; it is a number of bytes, from 1 on"));
    }
    aside(&app, move |app| Ok(app.engine.set_budget(body.budget)?)).await?;
    tell(&app).await
}

/// A model that is to be known.
#[derive(Deserialize)]
pub struct RegisterBody {
    name: String,
    /// Below the folder that was allowed.
    path: PathBuf,
}

/// Makes a model of the allowed folder known.
pub async fn register(State(app): State<App>, Json(body): Json<RegisterBody>) -> Told {
    let Some(folder) = app.options.models_dir.clone() else {
        let message =
            "no models can be registered: start with --models-dir FOLDER to allow those of a folder";
        return Err(ApiError::new(ErrorKind::Forbidden, message));
    };
    let legible = !body.name.is_empty() && body.name.len() <= 128 && !body.name.contains(['/', '\\']);
    if !legible || body.name.chars().any(char::is_control) {
        return Err(ApiError::field("name", "a name has 1 to 128 characters and no slash"));
    }
    aside(&app, move |app| {
        let outside = || ApiError::field("path", "there is no such file in the folder of models");
        let folder = folder.canonicalize().map_err(|_| outside())?;
        let path = folder.join(&body.path).canonicalize().map_err(|_| outside())?;
        if !path.starts_with(&folder) || !path.is_file() {
            return Err(outside());
        }
        let model =
            Model::load(&path, app.options.load).map_err(|e| ApiError::field("path", e.cause.to_string()))?;
        Ok(app.add(&body.name, &model)?)
    })
    .await?;
    match tell(&app).await {
        Ok(told) => Ok(told),
        // Without a budget there is no map to show.
        Err(_) => Ok(axum::Json(json!({ "success": true }))),
    }
}

/// Forgets a model. Refused while requests use it.
pub async fn remove(State(app): State<App>, Path(name): Path<String>) -> Told {
    app.model(&name)?;
    aside(&app, move |app| Ok(app.remove(&name)?)).await?;
    Ok(axum::Json(json!({ "success": true })))
}

/// As llama.cpp's router has it.
#[derive(Deserialize)]
pub struct RouterBody {
    model: String,
}

/// Brings a model in.
pub async fn router_load(State(app): State<App>, Json(body): Json<RouterBody>) -> Told {
    or_mapped(bring_in(&app, body.model).await)
}

/// Evicts a model.
pub async fn router_unload(State(app): State<App>, Json(body): Json<RouterBody>) -> Told {
    or_mapped(let_go(&app, body.model).await)
}

/// Without a budget every model is always as much there as it can be.
fn or_mapped(done: Result<(), ApiError>) -> Told {
    match done {
        Err(error) if error.message != MemoryError::Unbounded.to_string() => Err(error),
        _ => Ok(axum::Json(json!({ "success": true }))),
    }
}
