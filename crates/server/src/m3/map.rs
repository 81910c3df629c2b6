//! The residency map as JSON, once (`GET /v1/m3/residency`) and as it changes (`GET /v1/m3/events`).

use crate::app::{App, Phase};
use crate::error::ApiError;
use crate::health::waiting;
use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use nexaquant_engine::m3::{Class, Memory, ModelStatus, Pin, State as UnitState, UnitStatus};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior};

/// Between two frames of a stream of events.
const TICK: Duration = Duration::from_millis(100);

fn word(state: UnitState) -> &'static str {
    match state {
        UnitState::Cold => "cold",
        UnitState::Partial => "partial",
        UnitState::Loading => "loading",
        UnitState::Resident => "resident",
        UnitState::Pinned => "pinned",
        UnitState::InUse => "in_use",
        UnitState::Evicting => "evicting",
    }
}

/// One letter a unit, for frames that come ten times a second.
fn letter(unit: &UnitStatus) -> char {
    match unit.state {
        UnitState::Cold => 'c',
        UnitState::Partial => 'h',
        UnitState::Loading => 'l',
        UnitState::Resident => 'r',
        UnitState::Pinned => 'p',
        UnitState::InUse => 'u',
        UnitState::Evicting => 'e',
    }
}

/// What a pin is called.
pub fn pin_word(pin: Pin) -> String {
    match pin {
        Pin::None => "none".into(),
        Pin::All => "all".into(),
        Pin::Head(n) => format!("head:{n}"),
    }
}

fn kept(model: &ModelStatus) -> u64 {
    model.units.iter().map(|unit| unit.kept.0).sum()
}

fn counters(app: &App, memory: &Memory) -> Value {
    let (books, stats) = (memory.books(), memory.stats());
    json!({
        "at_ms": app.watch.now_ms(),
        "budget": books.budget.0,
        "used": books.used().0,
        "high_water": books.high_water.0,
        "weights": books.of(Class::Weights).0,
        "kv": books.of(Class::Kv).0,
        "scratch": books.of(Class::Scratch).0,
        "staging": books.of(Class::Staging).0,
        "hits": stats.hits,
        "prefetched": stats.prefetched,
        "late": stats.late,
        "misses": stats.misses,
        "bytes_in": stats.bytes_loaded.0,
        "bytes_out": stats.bytes_evicted.0,
        "evictions": stats.evictions,
        "stall_ms": stats.stall.as_secs_f64() * 1e3,
        "running": app.queue.running(),
        "waiting": waiting(app),
    })
}

fn whole(app: &App, memory: &Memory) -> Value {
    let models: Vec<Value> = memory
        .status()
        .iter()
        .map(|model| {
            // Its notes are under the name it came with, or one of its others.
            let used =
                model.names.iter().map(|name| app.watch.used(name)).max_by_key(Vec::len).unwrap_or_default();
            let unit = |(i, unit): (usize, &UnitStatus)| {
                let used = used.get(i).filter(|used| !used.is_zero());
                json!({
                    "name": unit.name,
                    "bytes": unit.bytes.0,
                    "resident": unit.kept.0,
                    "state": word(unit.state),
                    "last_use_ms": used.map(|used| used.as_secs_f64() * 1e3),
                })
            };
            json!({
                "name": model.names.first(),
                "names": model.names,
                "pin": pin_word(model.pin),
                "sessions": model.sessions,
                "bytes": model.units.iter().map(|unit| unit.bytes.0).sum::<u64>(),
                "resident": kept(model),
                "bytes_in": model.stats.bytes_loaded.0,
                "evictions": model.stats.evictions,
                "hit_rate": model.stats.hit_rate(),
                "units": model.units.iter().enumerate().map(unit).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "ledger": counters(app, memory),
        "smallest_budget": memory.smallest_budget(),
        "block": memory.block(),
        "models": models,
        "switches": app.watch.switches(),
    })
}

/// Without a budget there is nothing to map: models are used where they lie.
fn without_budget(app: &App) -> Value {
    let models: Vec<Value> = app.models().keys().map(|name| json!({ "name": name, "units": [] })).collect();
    json!({ "ledger": null, "models": models, "switches": [] })
}

async fn aside(app: &App, look: impl FnOnce(&App, &Memory) -> Value + Send + 'static) -> Option<Value> {
    let app = app.clone();
    app.engine.memory()?;
    // The memory may be waiting for a disk.
    tokio::task::spawn_blocking(move || app.engine.memory().map(|memory| look(&app, memory)))
        .await
        .ok()
        .flatten()
}

/// Every unit, the ledger, and the latest switches.
pub async fn residency(State(app): State<App>) -> Json<Value> {
    Json(aside(&app, whole).await.unwrap_or_else(|| without_budget(&app)))
}

/// The same after something was changed.
pub async fn tell(app: &App) -> Result<Json<Value>, ApiError> {
    app.memory()?;
    Ok(Json(aside(app, whole).await.unwrap_or_else(|| without_budget(app))))
}

/// The map as it changes: first all of it, then ten times a second what is different.
pub async fn events(State(app): State<App>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let mut clock = tokio::time::interval(TICK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let keep_alive = KeepAlive::new().interval(app.options.keep_alive);
    let viewer = Viewer { app, clock, states: None, moves: 0, last: None };
    Sse::new(stream::unfold(viewer, Viewer::next)).keep_alive(keep_alive)
}

/// Somebody who looks, and what they have seen.
struct Viewer {
    app: App,
    clock: Interval,
    /// Names and states of all models; `None` before the first frame.
    states: Option<HashMap<String, (usize, String)>>,
    moves: u64,
    last: Option<Value>,
}

impl Viewer {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        loop {
            tokio::select! {
                _ = self.clock.tick() => {}
                () = self.app.reaches(Phase::Draining) => return None,
            }
            let look = |app: &App, memory: &Memory| {
                let models: Vec<Value> = memory
                    .status()
                    .iter()
                    .map(|model| {
                        json!({
                            "name": model.names.first(),
                            "states": model.units.iter().map(letter).collect::<String>(),
                            "resident": kept(model),
                            "pin": pin_word(model.pin),
                            "sessions": model.sessions,
                        })
                    })
                    .collect();
                json!({ "ledger": counters(app, memory), "models": models })
            };
            let Some(now) = aside(&self.app, look).await else {
                // Nothing will change: said once, then only comments.
                if self.states.replace(HashMap::new()).is_none() {
                    return Some((Ok(event("residency", &without_budget(&self.app))), self));
                }
                continue;
            };
            let states = states(&now);
            let same = |seen: &HashMap<String, (usize, String)>| {
                seen.len() == states.len()
                    && states.iter().all(|(name, (n, _))| seen.get(name).is_some_and(|(m, _)| m == n))
            };
            let Some(seen) = self.states.as_ref().filter(|seen| same(seen)) else {
                // The first frame, or other models than before.
                let all = aside(&self.app, whole).await?;
                (self.moves, self.states, self.last) =
                    (self.app.watch.moves_since(u64::MAX).1, Some(states), None);
                return Some((Ok(event("residency", &all)), self));
            };
            let (moves, next) = self.app.watch.moves_since(self.moves);
            let models: Vec<&Value> = now["models"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|model| {
                    let name = model["name"].as_str().unwrap_or_default();
                    seen.get(name) != states.get(name)
                })
                .collect();
            let mut still = now["ledger"].clone();
            still["at_ms"] = Value::Null;
            if models.is_empty() && moves.is_empty() && self.last.as_ref() == Some(&still) {
                continue;
            }
            let switches = self.app.watch.switches();
            let latest = &switches[switches.len().saturating_sub(8)..];
            let frame =
                json!({ "ledger": now["ledger"], "models": models, "moves": moves, "switches": latest });
            (self.moves, self.states, self.last) = (next, Some(states), Some(still));
            return Some((Ok(event("change", &frame)), self));
        }
    }
}

/// Number of units, and everything that is shown, by name.
fn states(now: &Value) -> HashMap<String, (usize, String)> {
    let models = now["models"].as_array().into_iter().flatten();
    models
        .map(|model| {
            let units = model["states"].as_str().unwrap_or_default().len();
            (model["name"].as_str().unwrap_or_default().to_owned(), (units, model.to_string()))
        })
        .collect()
}

fn event(name: &str, value: &Value) -> Event {
    Event::default().event(name).data(value.to_string())
}
