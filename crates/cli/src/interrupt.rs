//! Ctrl-C: the first one stops the answer, a second one while it has not stopped yet ends the program.
//!
//! Outside an answer Ctrl-C does what the system does with it, until [`Interrupt::new`] has been called; then it ends
//! the program with code 130 unless [`Interrupt::hold`] says that somebody else deals with it.

use signal_hook::consts::SIGINT;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// The state that the signal handler changes.
pub struct Interrupt {
    stop: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes over Ctrl-C. Where the system refuses, Ctrl-C keeps ending the program.
    pub fn new() -> Self {
        let interrupt = Self { stop: Arc::default(), end: Arc::new(AtomicBool::new(true)) };
        // In this order: a Ctrl-C that arms `end` must not be the one that it ends.
        let _ = signal_hook::flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&interrupt.end))
            .and_then(|_| signal_hook::flag::register(SIGINT, Arc::clone(&interrupt.end)))
            .and_then(|_| signal_hook::flag::register(SIGINT, Arc::clone(&interrupt.stop)));
        interrupt
    }

    /// From here on the next Ctrl-C only sets [`Interrupt::is_set`].
    pub fn hold(&self) {
        self.stop.store(false, SeqCst);
        self.end.store(false, SeqCst);
    }

    /// From here on Ctrl-C ends the program.
    pub fn release(&self) {
        self.end.store(true, SeqCst);
    }

    /// Whether Ctrl-C came since [`Interrupt::hold`].
    pub fn is_set(&self) -> bool {
        self.stop.load(SeqCst)
    }
}
