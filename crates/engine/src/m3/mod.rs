//! M3, multi-model memory: any number of models under one byte budget.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `memory.rs` | [`Memory`]: models come and go, everything is paid for, somebody else may look |
//! | `placed.rs` | [`Placed`], a model in a memory; [`Tenancy`], a session in it; one forward pass under leases |
//! | `cut.rs` | the graph as parts, and where each row of a part lies in its blocks |
//! | `blocks.rs`, `arena.rs` | the memory itself, and who holds which block of it |
//! | `plan.rs` | what will happen, rehearsed without reading a weight |
//! | `source.rs`, `fill.rs` | bytes of a file; workers and reader threads that bring them in |
//!
//! Who is in memory is decided in the crate `nexaquant-residency`, which knows parts by number and size and nothing else.

mod arena;
mod blocks;
mod cut;
mod fill;
mod memory;
mod placed;
pub mod plan;
mod source;
#[cfg(test)]
mod tests;

pub(crate) use blocks::Image;
pub(crate) use cut::Part;
pub use cut::RowTooBig;
pub use fill::FillStats;
pub(crate) use fill::JOB;
pub use memory::{Change, Memory, MemoryError, MemoryOptions, ModelStatus, PolicyName, UnitStatus};
pub use nexaquant_residency::{Books, Bytes, Class, Pin, Policy, State, Stats as ResidencyStats, policy};
pub use placed::{Placed, Tenancy};
pub use source::Io;
