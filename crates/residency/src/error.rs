//! Everything that can be refused, with the numbers that say why and what would help.
//!
//! An error is an answer about the caller's request, a file or a store. A broken invariant of this crate panics with
//! the invariant's number instead.

use std::fmt;

use crate::ledger::Class;
use crate::units::{Bytes, ModelId, UnitId};

/// Why a store could not do something.
pub type Reason = Box<dyn std::error::Error + Send + Sync>;

/// What room was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A unit of the named model.
    Unit(UnitId, String),
    /// The largest unit of a model that is to be registered under this name.
    Model(String),
    /// A charge of this class.
    Charge(Class),
    /// The same for the named model, where whoever is charged knows.
    ChargeOf(Class, String),
    /// What is held already, under a new budget.
    Budget,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Unit(unit, model) => write!(f, "unit {} of {model}", unit.index),
            Subject::Model(name) => write!(f, "the largest unit of {name}"),
            Subject::Charge(class) => f.write_str(class.name()),
            Subject::ChargeOf(class, model) => write!(f, "{} of {model}", class.meaning()),
            Subject::Budget => f.write_str("what cannot be evicted"),
        }
    }
}

/// What this crate refuses.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// It does not fit, whatever is evicted. If `in_use` is not zero, asking again after the leases were dropped may
    /// succeed: the pool never lets charges and pins grow so far that a single unit could not be loaded.
    OverBudget {
        /// For what.
        subject: Subject,
        /// Bytes asked for.
        need: Bytes,
        /// The budget; for [`Subject::Budget`], the one that was refused.
        budget: Bytes,
        /// Bytes held by charges that are not units: KV pages, scratch, staging.
        charged: Bytes,
        /// Bytes of pinned units.
        pinned: Bytes,
        /// Bytes of leased units that are not pinned.
        in_use: Bytes,
        /// The smallest budget with which this request would have been granted now.
        smallest_budget: Bytes,
    },
    /// A pin would leave no room to work in.
    PinTooBig {
        /// The model to be pinned.
        model: String,
        /// Bytes that the pin covers.
        need: Bytes,
        /// The budget.
        budget: Bytes,
        /// Bytes held by charges that are not units.
        charged: Bytes,
        /// Bytes of other models' pins.
        other_pins: Bytes,
        /// The largest unit that is not pinned, of any model: it has to stream through.
        largest_unpinned: Bytes,
        /// The smallest budget with which the pin could be honoured.
        smallest_budget: Bytes,
    },
    /// No such model, or not any more.
    UnknownModel(ModelId),
    /// The model has fewer units.
    UnknownUnit {
        /// What was asked for.
        unit: UnitId,
        /// How many units the model has.
        units: u32,
    },
    /// The model cannot be unregistered while it is leased.
    ModelInUse {
        /// Its name.
        model: String,
        /// Leases that are not dropped yet.
        leases: u64,
    },
    /// Another registered model has that name.
    NameTaken {
        /// The name.
        name: String,
    },
    /// A model must have at least one unit, and at most `u32::MAX`.
    UnitCount {
        /// The model.
        name: String,
        /// How many were given.
        units: usize,
    },
    /// A unit without bytes: there is nothing to load or lease, so leave it out or merge it with its neighbour.
    EmptyUnit {
        /// The model.
        name: String,
        /// Which of its units.
        index: usize,
    },
    /// The store could not bring a unit in. The unit is as it was before, and the bytes that did not come are free.
    LoadFailed {
        /// The unit.
        unit: UnitId,
        /// Its model.
        model: String,
        /// Its size.
        bytes: Bytes,
        /// What the store said.
        reason: Reason,
    },
    /// The ledger has room, but the store has no place for the unit even with everything evictable gone.
    NoPlace {
        /// The unit.
        unit: UnitId,
        /// Its model.
        model: String,
        /// Its size.
        need: Bytes,
        /// What the ledger has left.
        free: Bytes,
    },
    /// One row is larger than a part may be, so splitting by rows does not help.
    RowTooBig {
        /// Index of the tensor among those given.
        tensor: usize,
        /// Its smallest part: one group of rows and what each part repeats.
        need: Bytes,
        /// The largest part allowed.
        largest_part: Bytes,
    },
    /// Splitting would make too many parts to be worth it.
    TooManyParts {
        /// Parts needed, at least.
        parts: u64,
        /// The most that is allowed.
        limit: u64,
    },
    /// A trace gives a unit another size than at its first use.
    SizeChanged {
        /// The unit, as the trace calls it.
        unit: UnitId,
        /// Index of the access.
        at: usize,
        /// Its size there.
        bytes: Bytes,
        /// Its size at its first use.
        first: Bytes,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::OverBudget { subject, need, budget, charged, pinned, in_use, smallest_budget } => write!(
                f,
                "{subject} needs {need}, but the budget is {budget}, of which {charged} are charged to caches and \
                 buffers, {pinned} pinned and {in_use} in use; a budget of at least {smallest_budget} \
                 ({} bytes) would do",
                smallest_budget.0
            ),
            Error::PinTooBig {
                model,
                need,
                budget,
                charged,
                other_pins,
                largest_unpinned,
                smallest_budget,
            } => write!(
                f,
                "pinning {need} of {model} does not fit: the budget is {budget}, {charged} are charged to caches and \
                 buffers, {other_pins} pinned already, and {largest_unpinned} must stay free for the largest \
                 unpinned unit; pin less, or raise the budget to {smallest_budget} ({} bytes)",
                smallest_budget.0
            ),
            Error::UnknownModel(id) => write!(f, "model {} is not registered", id.0),
            Error::UnknownUnit { unit, units } => {
                write!(f, "model {} has {units} units, there is no unit {}", unit.model.0, unit.index)
            }
            Error::ModelInUse { model, leases } => {
                write!(f, "{model} is in use by {leases} leases; finish or cancel its requests first")
            }
            Error::NameTaken { name } => write!(f, "a model named {name} is registered already"),
            Error::UnitCount { name, units } => {
                write!(f, "{name} has {units} units; 1 to {} are possible", u32::MAX)
            }
            Error::EmptyUnit { name, index } => {
                write!(f, "unit {index} of {name} has no bytes; leave it out or merge it with its neighbour")
            }
            Error::LoadFailed { unit, model, bytes, reason } => {
                write!(f, "unit {} of {model} ({bytes}) could not be loaded: {reason}", unit.index)
            }
            Error::NoPlace { unit, model, need, free } => write!(
                f,
                "unit {} of {model} needs {need} in one piece; {free} are free, but in smaller pieces that leases \
                 and pins keep apart",
                unit.index
            ),
            Error::RowTooBig { tensor, need, largest_part } => write!(
                f,
                "tensor {tensor} cannot be split: one group of its rows takes {need}, a part may take {largest_part}"
            ),
            Error::TooManyParts { parts, limit } => {
                write!(f, "splitting would make {parts} parts, {limit} are possible; allow larger parts")
            }
            Error::SizeChanged { unit, at, bytes, first } => {
                write!(f, "access {at} of the trace gives {unit} {bytes} ({} bytes), ", bytes.0)?;
                write!(f, "its first use gave it {first} ({} bytes)", first.0)
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::LoadFailed { reason, .. } => Some(reason.as_ref()),
            _ => None,
        }
    }
}
