//! Parts that come and go, for those who watch.

use super::device::AnyStore;
use super::memory::{Core, Memory};
use super::{Bytes, Part};
use nexaquant_residency::State;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A part came, went, or shrank. For traces and maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Time since the memory was made.
    pub at: Duration,
    /// The name the model was registered under.
    pub model: Arc<str>,
    /// Place of the part in a pass.
    pub index: u32,
    /// `layer 3`.
    pub part: String,
    /// Its size.
    pub bytes: Bytes,
    /// Bytes of it that are in memory now.
    pub kept: Bytes,
    /// Before.
    pub from: State,
    /// Now.
    pub to: State,
    /// How long the load, the wait or the eviction took.
    pub took: Duration,
    /// Bytes that the ledger has given out, everything included.
    pub used: Bytes,
}

/// What a model and its parts are called.
pub(super) struct Label {
    pub model: Arc<str>,
    pub parts: Arc<[Part]>,
}

type Watcher = Box<dyn FnMut(&Change) + Send>;

/// Changes on a device. That a part is there is known there as soon as its copy is queued; how long that takes, when it is over.
/// So changes wait until it is, and are told in order then.
#[derive(Default)]
pub(super) struct Late {
    waiting: Arc<Mutex<VecDeque<Change>>>,
    watchers: Vec<Watcher>,
}

impl Change {
    /// A part is in memory that was on its way.
    fn came_in(&self) -> bool {
        self.from == State::Loading && !matches!(self.to, State::Cold | State::Partial)
    }
}

impl Memory {
    /// Calls `see` at each change of a part, from inside the memory: it must be quick and must not call the memory.
    pub fn watch(&self, see: impl FnMut(&Change) + Send + 'static) {
        let mut core = self.lock();
        let labels = Arc::clone(&core.labels);
        let mut see: Watcher = Box::new(see);
        if let AnyStore::Device(store) = core.pool.store_mut() {
            store.take_times();
            core.late.watchers.push(see);
            if core.late.watchers.len() > 1 {
                return;
            }
            let waiting = Arc::clone(&core.late.waiting);
            see = Box::new(move |change: &Change| {
                waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(change.clone());
            });
        }
        core.pool.subscribe(move |event| {
            let labels = labels.lock().unwrap_or_else(PoisonError::into_inner);
            let label = labels.get(&event.unit.model);
            let part = label.and_then(|label| label.parts.get(event.unit.index as usize));
            let (Some(label), Some(part)) = (label, part) else { return };
            see(&Change {
                at: event.at,
                model: Arc::clone(&label.model),
                index: event.unit.index,
                part: part.name.clone(),
                bytes: event.bytes,
                kept: event.kept,
                from: event.from,
                to: event.to,
                took: event.took,
                used: event.used,
            });
        });
    }
}

impl Core {
    /// Tells watchers what has happened on a device up to the first part that is still on its way.
    pub fn tell(&mut self) {
        let AnyStore::Device(store) = self.pool.store_mut() else { return };
        store.uploads();
        let mut waiting = self.late.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(change) = waiting.front_mut() {
            if change.came_in() {
                match store.next_time() {
                    Some(took) => change.took = took,
                    None => return,
                }
            }
            let Some(change) = waiting.pop_front() else { return };
            for see in &mut self.late.watchers {
                see(&change);
            }
        }
    }
}
