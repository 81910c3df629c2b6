//! What the memory does, kept for whoever looks: when each part was used last, the latest loads and evictions, and the
//! switches between models.
//!
//! Heard from inside the memory, some ten thousand times a second while models stream, so it only takes short notes.

use nexaquant_engine::m3::{Change, Memory, State};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Loads and evictions that are kept.
const MOST_MOVES: usize = 512;
/// Switches that are kept.
const MOST_SWITCHES: usize = 128;

/// What was heard.
#[derive(Clone)]
pub struct Watch {
    notes: Arc<Mutex<Notes>>,
    made: Instant,
}

#[derive(Default)]
struct Notes {
    /// By model, by part: when it was last in use.
    used: HashMap<Arc<str>, Vec<Duration>>,
    moves: VecDeque<Move>,
    next: u64,
    switches: VecDeque<Switch>,
}

/// A part that came or went.
#[derive(Clone, Debug, Serialize)]
pub struct Move {
    /// Counts all of them.
    pub number: u64,
    /// Since the server started.
    pub at_ms: f64,
    /// Whose.
    pub model: Arc<str>,
    /// Which.
    pub part: String,
    /// Came in, or went.
    pub what: &'static str,
    /// How much.
    pub bytes: u64,
    /// How long that took.
    pub took_us: f64,
}

/// A model's turn.
#[derive(Clone, Debug, Serialize)]
pub struct Switch {
    /// Counts all of them.
    pub number: u64,
    /// When it began, since the server started.
    pub at_ms: f64,
    /// Who had the turn before.
    pub from: Option<Arc<str>>,
    /// Whose it is.
    pub to: Arc<str>,
    /// Brought in for it so far, and evicted meanwhile.
    pub bytes_in: u64,
    /// Evicted meanwhile.
    pub bytes_out: u64,
    /// What its loads took.
    pub load_ms: f64,
}

impl Watch {
    /// Watches a memory, if there is one.
    pub fn new(memory: Option<&Memory>) -> Self {
        let watch = Self { notes: Arc::default(), made: Instant::now() };
        if let Some(memory) = memory {
            let (notes, made) = (Arc::clone(&watch.notes), watch.made);
            memory.watch(move |change| {
                notes.lock().unwrap_or_else(PoisonError::into_inner).hear(change, made.elapsed());
            });
        }
        watch
    }

    /// Milliseconds since the watch began.
    pub fn now_ms(&self) -> f64 {
        self.made.elapsed().as_secs_f64() * 1e3
    }

    /// When the parts of a model were last in use; zero: never.
    pub fn used(&self, model: &str) -> Vec<Duration> {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.used.get(model).cloned().unwrap_or_default()
    }

    /// Moves from a number on, and the number after the last.
    pub fn moves_since(&self, number: u64) -> (Vec<Move>, u64) {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        (notes.moves.iter().filter(|one| one.number >= number).cloned().collect(), notes.next)
    }

    /// The latest switches, the last one still growing.
    pub fn switches(&self) -> Vec<Switch> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).switches.iter().cloned().collect()
    }
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

impl Notes {
    fn hear(&mut self, change: &Change, now: Duration) {
        match (change.from, change.to) {
            (_, State::InUse) => {
                let used = match self.used.get_mut(&*change.model) {
                    Some(used) => used,
                    None => self.used.entry(Arc::clone(&change.model)).or_default(),
                };
                let index = change.index as usize;
                if used.len() <= index {
                    used.resize(index + 1, Duration::ZERO);
                }
                used[index] = now;
                self.turn(&change.model, now);
            }
            (State::Loading, State::Resident | State::Pinned) => {
                if let Some(switch) = self.switches.back_mut().filter(|switch| switch.to == change.model) {
                    switch.bytes_in += change.bytes.0;
                    switch.load_ms += ms(change.took);
                }
                self.note(change, now, "in", change.bytes.0);
            }
            (State::Evicting, _) => {
                let bytes = change.bytes.0.saturating_sub(change.kept.0);
                if let Some(switch) = self.switches.back_mut() {
                    switch.bytes_out += bytes;
                }
                self.note(change, now, "out", bytes);
            }
            _ => {}
        }
    }

    fn turn(&mut self, model: &Arc<str>, now: Duration) {
        let last = self.switches.back();
        if last.is_some_and(|switch| switch.to == *model) {
            return;
        }
        let from = last.map(|switch| Arc::clone(&switch.to));
        let number = last.map_or(0, |switch| switch.number + 1);
        if self.switches.len() == MOST_SWITCHES {
            self.switches.pop_front();
        }
        let to = Arc::clone(model);
        let (bytes_in, bytes_out, load_ms) = (0, 0, 0.0);
        self.switches.push_back(Switch { number, at_ms: ms(now), from, to, bytes_in, bytes_out, load_ms });
    }

    fn note(&mut self, change: &Change, now: Duration, what: &'static str, bytes: u64) {
        if self.moves.len() == MOST_MOVES {
            self.moves.pop_front();
        }
        let took_us = change.took.as_secs_f64() * 1e6;
        let (model, part) = (Arc::clone(&change.model), change.part.clone());
        self.moves.push_back(Move { number: self.next, at_ms: ms(now), model, part, what, bytes, took_us });
        self.next += 1;
    }
}
