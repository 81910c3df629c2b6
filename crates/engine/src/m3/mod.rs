//! M3, multi-model memory: any number of models under one byte budget.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `memory.rs` | [`Memory`]: models come and go, everything is paid for |
//! | `placed.rs` | [`Placed`], a model in a memory; [`Tenancy`], a session in it; one forward pass under leases |
//! | `cut.rs` | the graph as parts, and where each row of a part lies in its blocks |
//! | `blocks.rs`, `arena.rs` | the memory itself, and who holds which block of it |
//! | `device.rs`, `places.rs`, `on_device.rs` | the same in the memory of a device |
//! | `watch.rs` | somebody else may look |
//! | `error.rs` | what can be refused |
//! | `plan.rs` | what will happen, rehearsed without reading a weight |
//! | `source.rs`, `fill.rs` | bytes of a file; workers and reader threads that bring them in |
//!
//! Who is in memory is decided in the crate `nexaquant-residency`, which knows parts by number and size and nothing else.

mod arena;
mod blocks;
mod cut;
mod device;
mod error;
mod fill;
mod memory;
mod on_device;
mod placed;
mod places;
pub mod plan;
mod source;
#[cfg(test)]
mod tests;
mod watch;

pub(crate) use blocks::Image;
pub(crate) use cut::Part;
pub use cut::RowTooBig;
pub use device::Uploads;
pub(crate) use device::{DeviceArena, Handle, Region};
pub use error::MemoryError;
pub use fill::FillStats;
pub(crate) use fill::JOB;
pub use memory::{Memory, MemoryOptions, ModelStatus, PolicyName, UnitStatus};
pub use nexaquant_residency::{Books, Bytes, Class, Pin, Policy, State, Stats as ResidencyStats, policy};
pub(crate) use on_device::whole;
pub(crate) use placed::Stopped;
pub use placed::{Placed, Tenancy};
pub use source::Io;
pub use watch::Change;
