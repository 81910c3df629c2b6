//! Other work that keeps every processor busy while something is measured.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::*};
use std::thread::{self, JoinHandle};

const IDLE: u8 = 0;
const BUSY: u8 = 1;
const GONE: u8 = 2;

/// Threads that compute without end whenever they are told to.
///
/// A thread may run where the one that began it may. So they are made before a pool pins its first worker, which is the calling thread: else
/// all of them would be beside that worker.
pub struct Load {
    state: Arc<AtomicU8>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// `n` threads, which sleep.
    pub fn asleep(n: usize) -> Self {
        let state = Arc::new(AtomicU8::new(IDLE));
        let threads = (0..n).map(|_| {
            let state = state.clone();
            thread::spawn(move || {
                loop {
                    match state.load(Acquire) {
                        IDLE => thread::park(),
                        BUSY => spin_loop(),
                        _ => return,
                    }
                }
            })
        });
        Self { threads: threads.collect(), state }
    }

    /// Does `work` while they compute.
    pub fn beside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.tell(BUSY);
        let done = work();
        self.tell(IDLE);
        done
    }

    fn tell(&self, state: u8) {
        self.state.store(state, Release);
        for thread in &self.threads {
            thread.thread().unpark();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.tell(GONE);
        for thread in self.threads.drain(..) {
            // They do nothing that could panic.
            let _ = thread.join();
        }
    }
}
