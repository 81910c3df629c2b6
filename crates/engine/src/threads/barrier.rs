//! A barrier that spins, then yields, then sleeps.
//!
//! Phases of a forward pass are microseconds apart, so waiting mostly means spinning; when another program
//! holds a core, yielding lets the late worker run there; an idle pool sleeps and costs nothing.
//! On one spot of the last arriver's path work may be done while nobody else runs: see `release`.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::*};
use std::sync::{Condvar, Mutex, PoisonError};

/// Spins before yielding: some tens of microseconds.
const SPINS: u32 = 2_000;
/// Yields before sleeping: some hundreds of microseconds when nothing else wants the core.
const YIELDS: u32 = 300;

/// A reusable meeting point of `n` threads.
#[derive(Debug)]
pub(super) struct Barrier {
    n: usize,
    arrived: AtomicUsize,
    generation: AtomicU32,
    /// Set when some thread will never arrive.
    broken: AtomicBool,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

/// The barrier was broken while waiting.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl Barrier {
    pub(super) fn new(n: usize) -> Self {
        Self {
            n,
            arrived: AtomicUsize::new(0),
            generation: AtomicU32::new(0),
            broken: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Waits until all have arrived. The last to arrive calls `release` before anyone goes on.
    /// Everything a thread wrote before arriving is seen by all after it.
    #[inline]
    pub(super) fn wait(&self, release: impl FnOnce()) -> Result<(), Broken> {
        // Read before arriving: the generation cannot move on without this thread.
        let generation = self.generation.load(Relaxed);
        if self.arrived.fetch_add(1, AcqRel) + 1 == self.n {
            self.arrived.store(0, Relaxed);
            release();
            // SeqCst on both sides: either this store is seen by a thread about to sleep, or its registration
            // as a sleeper is seen here.
            self.generation.store(generation.wrapping_add(1), SeqCst);
            if self.sleepers.load(SeqCst) > 0 {
                self.wake_all();
            }
            return if self.broken.load(Acquire) { Err(Broken) } else { Ok(()) };
        }
        self.wait_slowly(generation)
    }

    fn wait_slowly(&self, generation: u32) -> Result<(), Broken> {
        let mut turns = 0;
        loop {
            if self.generation.load(Acquire) != generation {
                return Ok(());
            }
            if self.broken.load(Acquire) {
                return Err(Broken);
            }
            if turns < SPINS {
                std::hint::spin_loop();
            } else if turns < SPINS + YIELDS {
                std::thread::yield_now();
            } else {
                self.sleep(generation);
                continue;
            }
            turns += 1;
        }
    }

    #[cold]
    fn sleep(&self, generation: u32) {
        self.sleepers.fetch_add(1, SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.generation.load(SeqCst) == generation && !self.broken.load(SeqCst) {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.sleepers.fetch_sub(1, SeqCst);
    }

    #[cold]
    fn wake_all(&self) {
        // Taking the lock orders this after the sleeper's check, so the notification cannot fall between
        // its check and its wait.
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.wake.notify_all();
    }

    /// Lets every waiting thread, and every later one, fail: called by a thread that cannot go on.
    pub(super) fn break_it(&self) {
        self.broken.store(true, SeqCst);
        self.wake_all();
    }

    /// Makes a broken barrier whole again.
    ///
    /// Only while no thread is waiting at it.
    pub(super) fn mend(&self) {
        self.arrived.store(0, Relaxed);
        self.broken.store(false, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    #[test]
    fn nobody_passes_before_the_last_and_release_runs_alone() {
        for n in [1, 2, 3, 8] {
            let barrier = Barrier::new(n);
            let (count, released) = (AtomicU64::new(0), AtomicU64::new(0));
            std::thread::scope(|s| {
                for _ in 0..n {
                    s.spawn(|| {
                        for round in 1..=2000 {
                            count.fetch_add(1, Relaxed);
                            barrier.wait(|| assert_eq!(released.fetch_add(1, Relaxed), round - 1)).unwrap();
                            assert!(count.load(Relaxed) >= round * n as u64);
                            assert_eq!(released.load(Relaxed), round);
                            barrier.wait(|| ()).unwrap();
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn a_sleeping_thread_is_woken_by_arrival_and_by_breaking() {
        let barrier = Barrier::new(2);
        std::thread::scope(|s| {
            let sleeper = s.spawn(|| (barrier.wait(|| ()), barrier.wait(|| ())));
            while barrier.sleepers.load(SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            barrier.wait(|| ()).unwrap();
            while barrier.sleepers.load(SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            barrier.break_it();
            assert_eq!(sleeper.join().unwrap(), (Ok(()), Err(Broken)));
        });
        barrier.mend();
        std::thread::scope(|s| {
            let other = s.spawn(|| barrier.wait(|| ()));
            assert_eq!((barrier.wait(|| ()), other.join().unwrap()), (Ok(()), Ok(())));
        });
    }
}
