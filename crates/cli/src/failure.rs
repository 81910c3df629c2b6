//! How a command ends other than well, and what the shell sees of it.
//!
//! Exit codes: 2 for anything the user can put right (a flag, a file, a prompt, a template), 1 for faults of this
//! program or its machine, 130 after Ctrl-C, and 0 when the reader of our output has gone (`| head`).

use std::any::Any;
use std::fmt::Display;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

/// Why a command did not end well.
#[derive(Debug)]
pub enum Failure {
    /// What was given cannot be used.
    Input(String),
    /// This program or its machine failed.
    Internal(String),
    /// Nobody reads the output any more.
    ReaderGone,
    /// Ctrl-C.
    Interrupted,
}

impl Failure {
    /// Bad input, in the words of the error that found it.
    pub fn input(error: impl Display) -> Self {
        Failure::Input(error.to_string())
    }

    /// A write to standard output that failed.
    pub fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::ReaderGone,
            _ => Failure::Internal(format!("cannot write the output: {error}")),
        }
    }

    /// Tells the user, in one line, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        match self {
            Failure::Input(text) => {
                crate::output::note("error: ", text);
                ExitCode::from(2)
            }
            Failure::Internal(text) => {
                crate::output::note("error: ", text);
                ExitCode::from(1)
            }
            Failure::ReaderGone => ExitCode::SUCCESS,
            Failure::Interrupted => ExitCode::from(130),
        }
    }
}

/// Runs `command`; a panic in it or in a worker thread becomes an [`Failure::Internal`] with the place of the first
/// panic, and nothing else is printed.
pub fn guard(command: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    static FIRST: Mutex<Option<String>> = Mutex::new(None);
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| format!("{}{place}", message(info.payload())));
    }));
    catch_unwind(AssertUnwindSafe(command)).unwrap_or_else(|_| {
        let first = FIRST.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        Err(Failure::Internal(format!("a fault in this program: {first}; please report it")))
    })
}

fn message(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown panic")
}
