//! A barrier that spins, then sleeps.
//!
//! Phases of a forward pass are microseconds apart, so waiting mostly means spinning. Where another program has a core, the thread that
//! waits for the one there sleeps: what it does not use now the system gives it later. It never yields, which on Linux since 6.6 gives
//! away a whole slice each time, so that the late worker comes back, waits, and yields its own. An idle pool sleeps and costs nothing.
//!
//! Each thread counts its arrivals on a cache line of its own and looks at everybody else's: what a thread did reaches the
//! others in one transfer between cores, where a count that all share takes two, one after the other.

use super::Apart;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Condvar, Mutex, PoisonError};

/// Looks at a flag before pausing between looks: a pause alone can take as long as a short wait.
const EAGER: u32 = 200;

/// A reusable meeting point of threads 0 to n - 1.
#[derive(Debug)]
pub(super) struct Barrier {
    /// Looks before sleeping. A pause between two takes 15 to 50 nanoseconds.
    spins: u32,
    /// How often each thread has arrived.
    arrivals: Vec<Apart<AtomicU64>>,
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
    pub(super) fn new(n: usize, spins: u32) -> Self {
        Self {
            spins,
            arrivals: (0..n).map(|_| Apart::default()).collect(),
            broken: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Waits, as thread `id`, until all have arrived. Everything a thread wrote before arriving is seen by all after it.
    #[inline]
    pub(super) fn wait(&self, id: usize) -> Result<(), Broken> {
        let own = &self.arrivals[id].0;
        let round = own.load(Relaxed) + 1;
        // SeqCst on both sides: either this store is seen by a thread about to sleep, or its registration as a sleeper is
        // seen here.
        own.store(round, SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            self.wake_all();
        }
        for other in &self.arrivals {
            if other.0.load(Acquire) < round {
                self.wait_for(&other.0, round)?;
            }
        }
        Ok(())
    }

    fn wait_for(&self, other: &AtomicU64, round: u64) -> Result<(), Broken> {
        let mut turns = 0;
        while other.load(Acquire) < round {
            if self.broken.load(Acquire) {
                return Err(Broken);
            }
            if turns >= self.spins {
                self.sleep(other, round);
                continue;
            }
            if turns >= EAGER {
                std::hint::spin_loop();
            }
            turns += 1;
        }
        Ok(())
    }

    #[cold]
    fn sleep(&self, other: &AtomicU64, round: u64) {
        self.sleepers.fetch_add(1, SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while other.load(SeqCst) < round && !self.broken.load(SeqCst) {
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
        let last = self.arrivals.iter().map(|a| a.0.load(Acquire)).max().unwrap_or(0);
        for arrivals in &self.arrivals {
            arrivals.0.store(last, Relaxed);
        }
        self.broken.store(false, Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    #[test]
    fn nobody_passes_before_the_last() {
        for n in [1, 2, 3, 8] {
            let barrier = Barrier::new(n, 1000);
            let count = AtomicU64::new(0);
            std::thread::scope(|s| {
                for id in 0..n {
                    let (barrier, count) = (&barrier, &count);
                    s.spawn(move || {
                        for round in 1..=2000 {
                            count.fetch_add(1, Relaxed);
                            barrier.wait(id).unwrap();
                            assert_eq!(count.load(Relaxed), round * n as u64);
                            barrier.wait(id).unwrap();
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn a_sleeping_thread_is_woken_by_arrival_and_by_breaking() {
        let barrier = Barrier::new(2, 1000);
        std::thread::scope(|s| {
            let sleeper = s.spawn(|| (barrier.wait(1), barrier.wait(1)));
            while barrier.sleepers.load(SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            barrier.wait(0).unwrap();
            while barrier.sleepers.load(SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            barrier.break_it();
            assert_eq!(sleeper.join().unwrap(), (Ok(()), Err(Broken)));
        });
        barrier.mend();
        std::thread::scope(|s| {
            let other = s.spawn(|| barrier.wait(1));
            assert_eq!((barrier.wait(0), other.join().unwrap()), (Ok(()), Ok(())));
        });
    }
}
