//! A request that is served: its session, its answer, and whoever listens.

use super::{Event, Listener, Moved, Place, RequestError, Service};
use crate::generate::{Answer, Progress};
use crate::session::Session;
use crate::threads::Pool;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Weak;
use std::time::Instant;

/// How a request ended.
pub(super) type Over = Result<(), RequestError>;

/// A request that is served.
pub(super) struct Job {
    pub id: u64,
    /// What [`decide`](crate::decide) calls its model.
    pub model: u32,
    pub session: Session,
    pub answer: Answer,
    pub listener: Listener,
    pub alive: Weak<()>,
    pub arrived: Instant,
    /// Start of its first pass.
    pub begun: Option<Instant>,
    /// End of its last pass.
    pub served: Instant,
    pub service: Service,
    /// The turn it had its last pass in.
    pub turn: u64,
    /// Its keys and values did not fit beside those of others; it waits until one of them is over.
    pub stalled: bool,
    pub place: Place,
}

impl Job {
    /// Notes that it is about to make a pass in `turn`.
    pub fn begin(&mut self, turn: u64, now: Instant) {
        if self.begun.is_none() {
            self.begun = Some(now);
            self.service.waited = now - self.arrived;
            (self.listener)(Event::Begun);
        }
        self.service.turns += u32::from(self.turn != turn);
        self.turn = turn;
    }

    /// Notes what a pass took that has just ended.
    pub fn passed(&mut self, start: Instant, before: &Moved, after: &Moved) {
        self.served = Instant::now();
        self.service.busy += self.served - start;
        self.service.passes += 1;
        self.service.all.add(before, after);
    }

    /// Tells what came of a pass; how the job ended if it did.
    pub fn settle(&mut self, pool: &mut Pool, came: Result<Progress, RequestError>) -> Option<Over> {
        let progress = match came {
            Ok(progress) => progress,
            Err(error) => return Some(Err(error)),
        };
        if self.answer.sampled() > 0 {
            self.first_token();
        }
        let mut over = self.tell(progress);
        // What needs no further pass ends now and not at its model's next turn.
        while over.is_none() && self.answer.passes_left(self.session.batch()) == 0 {
            let stepped = caught(|| {
                #[cfg(test)]
                super::tests::trip(super::tests::ENDING);
                Ok(self.answer.step(&mut self.session, pool)?)
            });
            over = match stepped {
                Ok(progress) => self.tell(progress),
                Err(error) => Some(Err(error)),
            };
        }
        over
    }

    /// Notes what it took to the first token, if this is it.
    fn first_token(&mut self) {
        if let (Some(begun), true) = (self.begun, self.service.first_token.is_zero()) {
            self.service.first_token = self.served - begun;
            self.service.switch = self.service.all;
        }
    }

    /// Passes on what a step brought; how the job ended if it did.
    fn tell(&mut self, progress: Progress) -> Option<Over> {
        if let Some(scored) = self.answer.take_scored() {
            (self.listener)(Event::Scored(Box::new(scored)));
        }
        let (event, over) = match progress {
            Progress::Prompt { done, total } => (Event::Prompt { done, total }, None),
            Progress::Token(text) => (Event::Text(text), None),
            Progress::Done(_, text) => (Event::Text(text), Some(Ok(()))),
        };
        if !matches!(&event, Event::Text(text) if text.is_empty()) {
            (self.listener)(event);
        }
        over
    }
}

/// What is done for one request: a panic in it is the end of that request and of nothing else.
pub(super) fn caught<R>(what: impl FnOnce() -> Result<R, RequestError>) -> Result<R, RequestError> {
    let done = catch_unwind(AssertUnwindSafe(what));
    done.unwrap_or_else(|panic| Err(RequestError::Fault(message(&*panic))))
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown panic").to_owned()
}
