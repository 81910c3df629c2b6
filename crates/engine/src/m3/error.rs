//! Why something in a memory is not possible.

use super::cut::RowTooBig;
use crate::opencl::DeviceError;
use nexaquant_residency::{Bytes, Error, Subject};

/// Why something in a memory is not possible. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// Too little room, a pin that does not fit, a name that is taken.
    #[error(transparent)]
    Residency(Error),
    /// A part cannot be read.
    #[error("{part} of {model} ({bytes}) cannot be read: {reason}")]
    Read {
        /// The model.
        model: String,
        /// `layer 3`.
        part: String,
        /// Its size.
        bytes: Bytes,
        /// What the system said.
        reason: String,
    },
    /// Less than a memory can be made of.
    #[error("a budget of {budget} bytes is too small to hold anything; the least is {least}")]
    NoBudget {
        /// Asked for.
        budget: u64,
        /// Possible.
        least: u64,
    },
    /// The addresses for the budget cannot be had.
    #[error("there are no addresses for a budget of {budget}: {source}")]
    NoAddresses {
        /// Asked for.
        budget: Bytes,
        /// Why.
        source: std::io::Error,
    },
    /// More than the addresses that were taken at the start.
    #[error("the budget can grow to {most} while it is in use; start with a larger one for {budget}")]
    TooMuch {
        /// Asked for.
        budget: Bytes,
        /// Possible.
        most: Bytes,
    },
    /// No model of that name.
    #[error("no model is named {name:?} here; there are {known}")]
    UnknownName {
        /// Asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The name means another model.
    #[error("the name {name:?} is taken by another model; remove that first or choose another name")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Sessions of the model are open.
    #[error("{name} is in use by {sessions} sessions; finish or cancel them first")]
    InUse {
        /// The model.
        name: String,
        /// How many.
        sessions: usize,
    },
    /// There is no budget that could be changed.
    #[error("models are used where they lie in their files; start with a budget to be able to change it")]
    Unbounded,
    /// A row of a matrix fits no block.
    #[error(transparent)]
    Row(#[from] RowTooBig),
    /// The device refuses, or fails.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Free bytes of a device, but not in one piece.
    #[error(
        "{what} needs {need} in one piece on the device; {free} of the budget of {budget} are free, at most {largest} of it in one \
         piece; raise the budget or pin less"
    )]
    Scattered {
        /// What the bytes are for.
        what: String,
        /// Bytes.
        need: Bytes,
        /// Free in all.
        free: Bytes,
        /// The largest piece.
        largest: Bytes,
        /// The budget.
        budget: Bytes,
    },
    /// A file cannot be opened once more.
    #[error("{path} cannot be read: {source}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

impl MemoryError {
    /// Whether it would go away if others gave something back.
    pub(crate) fn is_for_lack_of_room(&self) -> bool {
        matches!(
            self,
            MemoryError::Residency(Error::OverBudget { .. } | Error::NoPlace { .. })
                | MemoryError::Scattered { .. }
        )
    }

    /// The same, with the name of the model whose session asked for room.
    pub(crate) fn of(mut self, model: String) -> Self {
        if let MemoryError::Residency(Error::OverBudget { subject, .. }) = &mut self
            && let Subject::Charge(class) = subject
        {
            *subject = Subject::ChargeOf(*class, model);
        }
        self
    }

    /// No model of that name among `known`.
    pub(crate) fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Self {
        let known: Vec<&str> = known.map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        MemoryError::UnknownName { name: name.to_owned(), known }
    }
}
