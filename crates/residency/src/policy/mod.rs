//! Who has to go: pure decisions. `plan(view, want) -> Plan`, same view, same answer; no I/O, no clock, no logging.
//!
//! Start with `two_level.rs`, the default. `lru.rs` is the baseline that everybody knows, `belady.rs` the offline
//! optimum that reports compare with, `replay.rs` what a policy would have moved for the same trace. Carrying a plan out
//! is the pool's job.

pub mod belady;
mod lru;
mod replay;
mod two_level;

pub use lru::Lru;
pub use replay::replay;
pub use two_level::TwoLevel;

use crate::table::Table;
use crate::units::{Bytes, UnitId};

/// What room is needed, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The unit that will take the room, if it is for a unit. It is not a victim, even if a part of it is in memory.
    pub unit: Option<UnitId>,
    /// At least so many bytes must be given up.
    pub give_up: Bytes,
    /// The unit is only fetched ahead: nothing may go for it that is needed sooner than it is.
    pub ahead: bool,
}

/// A unit to be given up, as a whole or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Which one.
    pub unit: UnitId,
    /// Bytes that are left of it: what [`Table::cut`] says, or less if that is a multiple of the granule too.
    pub keep: Bytes,
}

/// What to evict, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Evictable units of the view, each at most once.
    pub evict: Vec<Cut>,
    /// Bytes that this frees. Less than `Want::give_up` if the policy found no more; the pool then carries nothing
    /// out.
    pub frees: Bytes,
}

impl Plan {
    /// Adds the unit, giving up `give_up` bytes of it, rounded up to its granule.
    fn take(&mut self, view: &Table, unit: UnitId, give_up: Bytes) {
        if let (Some(kept), Some(keep)) = (view.kept(unit), view.cut(unit, give_up)) {
            self.evict.push(Cut { unit, keep });
            self.frees += kept.saturating_sub(keep);
        }
    }
}

/// A replacement policy.
pub trait Policy: Send {
    /// Its name in reports and on the command line.
    fn name(&self) -> &'static str;

    /// Chooses among the evictable units of `view`. Must offer all of them before it falls short of a want that is
    /// not `ahead`: the pool relies on that for its promise that a unit which can be loaded is loaded.
    fn plan(&self, view: &Table, want: &Want) -> Plan;
}
