//! What is counted: for each model, while requests run. The text at `/metrics` is made in `scrape.rs`.
//!
//! Counters are the server's own and not a process-wide registry, so that several servers in one process, as in tests,
//! do not count for each other; and what the engine knows better (bytes, evictions) is read there when it is asked for.

use nexaquant_engine::scheduler::Event;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Upper bounds in seconds: from a token of a tiny model to a minute in the queue.
pub const BOUNDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Times, counted by size.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        self.counts[BOUNDS.partition_point(|&bound| bound < seconds)].fetch_add(1, Relaxed);
        self.micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Counts up to each bound, then all; and the sum in seconds.
    pub fn read(&self) -> (Vec<u64>, f64) {
        let mut sum = 0;
        let up_to = |count: &AtomicU64| {
            sum += count.load(Relaxed);
            sum
        };
        (self.counts.iter().map(up_to).collect(), self.micros.load(Relaxed) as f64 / 1e6)
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The model or a stop text ended it.
    Stop,
    /// It is as long as it may be.
    Length,
    /// It failed.
    Failed,
    /// Nobody wanted it any more.
    Cancelled,
}

impl Ended {
    /// All of them, with the names of the report.
    pub const ALL: [(Ended, &'static str); 4] = [
        (Ended::Stop, "stop"),
        (Ended::Length, "length"),
        (Ended::Failed, "error"),
        (Ended::Cancelled, "abort"),
    ];
}

/// What is counted of one model.
#[derive(Debug, Default)]
pub struct OfModel {
    /// By [`Ended`].
    pub ended: [AtomicU64; Ended::ALL.len()],
    /// Prompt tokens computed and kept, answer tokens.
    pub prompt_tokens: AtomicU64,
    /// Of those, kept from before.
    pub cached_tokens: AtomicU64,
    /// Tokens of answers.
    pub answer_tokens: AtomicU64,
    /// From a request's arrival to its first text.
    pub first_token: Histogram,
    /// Between two pieces of text.
    pub inter_token: Histogram,
    /// From arrival to the end.
    pub request: Histogram,
    /// From arrival to the first pass.
    pub queued: Histogram,
    /// What bringing the model in cost before the first token.
    pub switch: Histogram,
}

/// All models that were asked for.
#[derive(Debug, Default)]
pub struct Metrics {
    models: Mutex<BTreeMap<String, Arc<OfModel>>>,
    /// Requests that found the queue full.
    pub rejected: AtomicU64,
}

impl Metrics {
    /// What is counted of each model.
    pub fn models(&self) -> BTreeMap<String, Arc<OfModel>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins to count a request.
    pub fn meter(&self, model: &str) -> Meter {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let of = Arc::clone(models.entry(model.to_owned()).or_default());
        Meter { of, arrived: Instant::now(), last: None, over: false }
    }
}

/// Counts one request. One that is dropped before its end was cancelled.
#[derive(Debug)]
pub struct Meter {
    of: Arc<OfModel>,
    arrived: Instant,
    last: Option<Instant>,
    over: bool,
}

impl Meter {
    /// Time since the request came.
    pub fn since_arrival(&self) -> Duration {
        self.arrived.elapsed()
    }

    /// Takes note of what the engine says; whether it was the end.
    pub fn hear(&mut self, event: &Event) -> bool {
        let now = Instant::now();
        match event {
            Event::Begun => self.of.queued.observe(now - self.arrived),
            Event::Prompt { .. } | Event::Scored(_) => {}
            Event::Text(_) => match self.last.replace(now) {
                None => self.of.first_token.observe(now - self.arrived),
                Some(last) => self.of.inter_token.observe(now - last),
            },
            Event::Done(outcome) => {
                let stats = &outcome.generation.stats;
                let add = |counter: &AtomicU64, n: usize| counter.fetch_add(n as u64, Relaxed);
                add(&self.of.prompt_tokens, stats.prompt_tokens + stats.cached_tokens);
                add(&self.of.cached_tokens, stats.cached_tokens);
                add(&self.of.answer_tokens, stats.tokens);
                self.of.switch.observe(outcome.service.switch.page_in());
                self.of.request.observe(now - self.arrived);
                let length = crate::finish_reason(outcome.generation.finish) == "length";
                self.end(if length { Ended::Length } else { Ended::Stop });
            }
            Event::Failed(_) => self.end(Ended::Failed),
        }
        self.over
    }

    /// Counts the end, once.
    pub fn end(&mut self, how: Ended) {
        if !std::mem::replace(&mut self.over, true) {
            self.of.ended[how as usize].fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end(Ended::Cancelled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_adds_up() {
        let histogram = Histogram::default();
        for ms in [0, 1, 3, 200, 100_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let (counts, sum) = histogram.read();
        assert_eq!((counts[0], counts[1], counts[3], counts[BOUNDS.len()]), (1, 2, 3, 5));
        assert!((sum - 100.204).abs() < 1e-6);
    }

    #[test]
    fn what_is_dropped_was_cancelled() {
        let metrics = Metrics::default();
        drop(metrics.meter("m"));
        let mut done = metrics.meter("m");
        done.end(Ended::Stop);
        drop(done);
        let of = &metrics.models()["m"];
        let count = |how: Ended| of.ended[how as usize].load(Relaxed);
        assert_eq!((count(Ended::Cancelled), count(Ended::Stop)), (1, 1));
    }
}
