//! What every handler shares: the engine, the models by name, the queue, the counters.

use crate::error::{ApiError, ErrorKind};
use crate::m3::Watch;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::queue::Queue;
use llguidance::toktrie::TokEnv;
use nexaquant_engine::m3::{Memory, MemoryError};
use nexaquant_engine::scheduler::Engine;
use nexaquant_engine::{Model, SessionOptions};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// A handle; clones share everything.
#[derive(Clone)]
pub struct App(Arc<Inner>);

/// What is behind it.
pub struct Inner {
    /// Who computes.
    pub engine: Engine,
    models: RwLock<BTreeMap<String, Known>>,
    /// Who waits.
    pub queue: Queue,
    /// What was counted.
    pub metrics: Metrics,
    /// What the memory does, for maps.
    pub watch: Watch,
    /// As started.
    pub options: Options,
    /// When that was.
    pub started: Instant,
    phase: watch::Sender<Phase>,
}

/// A server's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Requests are taken.
    Serving,
    /// No more are taken; those that were go on.
    Draining,
    /// Everything ends now.
    Stopped,
}

/// A model that may be asked for.
#[derive(Clone)]
pub struct Known {
    /// The model.
    pub model: Model,
    /// Since when.
    pub added: SystemTime,
    /// The bytes of its tokens as a tree, once an answer had to follow a grammar.
    pub tokens: Arc<OnceLock<TokEnv>>,
}

impl std::ops::Deref for App {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl App {
    /// Around an engine that is started. Its memory, if any, is watched from here on.
    pub fn new(engine: Engine, options: Options) -> Self {
        let watch = Watch::new(engine.memory());
        Self(Arc::new(Inner {
            models: RwLock::default(),
            queue: Queue::new(options.parallel, options.queue),
            metrics: Metrics::default(),
            watch,
            started: Instant::now(),
            phase: watch::Sender::new(Phase::Serving),
            engine,
            options,
        }))
    }
}

impl Inner {
    /// Makes a model known.
    pub fn add(&self, name: &str, model: &Model) -> Result<(), MemoryError> {
        self.add_last(name, model, usize::MAX)
    }

    /// The same where a device with a budget has the last `layers` layers only.
    pub fn add_last(&self, name: &str, model: &Model, layers: usize) -> Result<(), MemoryError> {
        self.engine.add_last(name, model, layers)?;
        let known = Known { model: model.clone(), added: SystemTime::now(), tokens: Arc::default() };
        self.models.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), known);
        Ok(())
    }

    /// Forgets one.
    pub fn remove(&self, name: &str) -> Result<(), MemoryError> {
        self.engine.remove(name)?;
        self.models.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        Ok(())
    }

    /// All models, by name.
    pub fn models(&self) -> BTreeMap<String, Known> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The model of that name.
    pub fn model(&self, name: &str) -> Result<Known, ApiError> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        models.get(name).cloned().ok_or_else(|| {
            let names: Vec<&str> = models.keys().map(String::as_str).collect();
            let message = format!("there is no model {name:?}; there are {}", names.join(", "));
            ApiError { param: Some("model".into()), ..ApiError::new(ErrorKind::UnknownModel, message) }
        })
    }

    /// The memory.
    pub fn memory(&self) -> Result<&Memory, ApiError> {
        self.engine.memory().ok_or_else(|| MemoryError::Unbounded.into())
    }

    /// How sessions of a model are opened; its context is what the model has at most.
    pub fn session(&self, model: &Model) -> SessionOptions {
        let made_for = model.architecture().hparams.context_length;
        let asked = self.options.session.context;
        let context = if asked == 0 { made_for } else { asked.min(made_for) };
        SessionOptions { context, ..self.options.session }
    }

    /// Where the server is in its life.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to a later phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }

    /// Waits until that phase.
    pub async fn reaches(&self, phase: Phase) {
        let mut seen = self.phase.subscribe();
        // The sender is here, so this cannot fail.
        let _ = seen.wait_for(|now| *now >= phase).await;
    }
}

/// Seconds since 1970, as OpenAI has times.
pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
