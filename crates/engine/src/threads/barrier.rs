//! A barrier that spins, then sleeps.
//!
//! Phases of a forward pass are microseconds apart, so waiting mostly means spinning. Where another program has a core, the thread that
//! waits for the one there sleeps: what it does not use now the system gives it later. It never yields, which on Linux since 6.6 gives
//! away a whole slice each time, so that the late worker comes back, waits, and yields its own. An idle pool sleeps and costs nothing.
//!
//! Each thread counts its arrivals on a cache line of its own and looks at everybody else's: what a thread did reaches the
//! others in one transfer between cores, where a count that all share takes two, one after the other.
//!
//! A thread that arrives stores its count and looks for sleepers; one that is about to sleep says so and looks at the counts.
//! One of the two must see the other, so between both halves of either lies a fence. That of the arriving thread would wait until other
//! cores have given up all lines it has written, a tenth of a microsecond in every phase; so where the system can
//! (Linux's `membarrier`), the thread about to sleep makes all others pass a fence, wherever they are.

use super::Apart;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*, compiler_fence, fence};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Looks at a flag before pausing between looks: a pause alone can take as long as a short wait.
const EAGER: u32 = 200;

/// How long a thread sleeps that cannot be sure to be woken.
const UNSURE: Duration = Duration::from_millis(1);

/// A reusable meeting point of threads 0 to n - 1.
#[derive(Debug)]
pub(super) struct Barrier {
    /// Looks before sleeping. A pause between two takes 15 to 50 nanoseconds.
    spins: u32,
    /// Whether threads that sleep make the others pass fences; else each passes its own.
    fences_others: bool,
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
            // Without spins everybody sleeps all the time.
            fences_others: spins > 0 && others::can_fence(),
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
        own.store(round, Release);
        // Either that is seen by a thread about to sleep, or its registration as a sleeper is seen here.
        if self.fences_others {
            compiler_fence(SeqCst);
        } else {
            fence(SeqCst);
        }
        if self.sleepers.load(Relaxed) > 0 {
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
        fence(SeqCst);
        let fenced = !self.fences_others || others::fence();
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while other.load(SeqCst) < round && !self.broken.load(SeqCst) {
            guard = if fenced {
                self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.wake.wait_timeout(guard, UNSURE).unwrap_or_else(PoisonError::into_inner).0
            };
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

/// Fences in all running threads of this process.
#[cfg(target_os = "linux")]
mod others {
    use rustix::thread::{MembarrierCommand, membarrier};

    /// Whether [`fence`] can be had. Must be asked before it is called.
    pub(super) fn can_fence() -> bool {
        membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
    }
    /// Whether every other thread has passed a fence since the call began.
    pub(super) fn fence() -> bool {
        membarrier(MembarrierCommand::PrivateExpedited).is_ok()
    }
}
#[cfg(not(target_os = "linux"))]
mod others {
    pub(super) fn can_fence() -> bool {
        false
    }
    pub(super) fn fence() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

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

    /// Almost every wait sleeps, so arrivals and going to sleep meet in every order; what is stored before an arrival makes others
    /// see it late.
    #[test]
    fn nobody_sleeps_forever() {
        let lines: Vec<Apart<AtomicU64>> = (0..64).map(|_| Apart::default()).collect();
        for spins in [0, 1, 10, 100] {
            for n in [2, 4] {
                let barrier = Barrier::new(n, spins);
                std::thread::scope(|s| {
                    for id in 0..n {
                        let (barrier, lines) = (&barrier, &lines);
                        s.spawn(move || {
                            for round in 0..20_000 {
                                for line in &lines[..round % 64] {
                                    line.0.store(round as u64, Relaxed);
                                }
                                barrier.wait(id).unwrap();
                            }
                        });
                    }
                });
            }
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
