//! Who may compute and who has to wait, in the order in which they came; beyond that nobody is let in.

use crate::error::{ApiError, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The queue.
pub struct Queue {
    turns: Arc<Semaphore>,
    inside: Arc<AtomicUsize>,
    parallel: usize,
    most: usize,
    /// How long requests took lately, in microseconds.
    usual: Arc<AtomicU64>,
}

/// A place in the queue, or among those that compute.
pub struct Place {
    turns: Arc<Semaphore>,
    inside: Arc<AtomicUsize>,
    usual: Arc<AtomicU64>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inside.fetch_sub(1, AcqRel);
    }
}

impl Place {
    /// Waits for a turn.
    pub async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.turns).acquire_owned().await.ok()
    }

    /// Takes note of what a request took.
    pub fn took(&self, time: Duration) {
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        // An eighth of what is new; two at once may lose one, which does no harm.
        let usual = self.usual.load(Relaxed);
        self.usual.store(usual - usual / 8 + time / 8, Relaxed);
    }
}

impl Queue {
    /// For `parallel` that compute and `waiting` that wait.
    pub fn new(parallel: usize, waiting: usize) -> Self {
        let parallel = parallel.clamp(1, Semaphore::MAX_PERMITS);
        let (turns, most) = (Arc::new(Semaphore::new(parallel)), parallel.saturating_add(waiting));
        Self { turns, inside: Arc::default(), parallel, most, usual: Arc::new(AtomicU64::new(1_000_000)) }
    }

    /// Places for the `n` answers of a request, all or none.
    ///
    /// # Errors
    /// When they are too many, with the time after which it may be otherwise.
    pub fn enter(&self, n: usize) -> Result<Vec<Place>, ApiError> {
        let more = |inside: usize| inside.checked_add(n).filter(|&sum| sum <= self.most);
        self.inside.fetch_update(AcqRel, Acquire, more).map_err(|inside| {
            let rounds = inside.div_ceil(self.parallel) as u64;
            let seconds = (self.usual.load(Relaxed).saturating_mul(rounds) / 1_000_000).clamp(1, 60);
            let message = format!("{inside} requests are waiting or running; try again in {seconds} s");
            ApiError { retry_after: Some(seconds), ..ApiError::new(ErrorKind::QueueFull, message) }
        })?;
        let place = || Place {
            turns: Arc::clone(&self.turns),
            inside: Arc::clone(&self.inside),
            usual: Arc::clone(&self.usual),
        };
        Ok((0..n).map(|_| place()).collect())
    }

    /// Most answers of one request that can ever be let in.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Requests inside, waiting ones included.
    pub fn inside(&self) -> usize {
        self.inside.load(Acquire)
    }

    /// Requests that compute.
    pub fn running(&self) -> usize {
        self.parallel - self.turns.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_all_or_none_and_come_back() {
        let queue = Queue::new(2, 1);
        let two = queue.enter(2).unwrap();
        let error = queue.enter(2).err().unwrap();
        assert_eq!((error.kind, queue.inside()), (ErrorKind::QueueFull, 2));
        assert!(error.retry_after.is_some_and(|s| (1..=60).contains(&s)));
        let one = queue.enter(1).unwrap();
        assert!(queue.enter(1).is_err());
        drop((two, one));
        assert_eq!(queue.inside(), 0);
        assert!(queue.enter(4).is_err(), "more than there ever is room for");
    }
}
