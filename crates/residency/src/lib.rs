//! Who is in memory: several models, their units, and one strict budget.
//!
//! The crate knows models, units, bytes and order. It does **not** know what a tensor, a device or a file is, and it
//! computes nothing: bytes come and go through a [`Store`] that the caller writes.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `units.rs` | the nouns: [`Bytes`], [`UnitId`], [`Size`], [`State`], [`Pin`] |
//! | `ledger.rs` | exact accounting: reserved + resident ≤ budget, always |
//! | `table.rs`, `forecast.rs` | who is where, and who is expected when: what a policy plans from |
//! | `policy/` | `plan(view, want)`: [`TwoLevel`], the baseline [`Lru`], the offline optimum for reports |
//! | `store.rs`, `arena.rs` | the trait that a memory implements; offsets for stores that need them |
//! | `pool.rs`, `lease.rs` | [`Pool`]: acquire, prefetch, pin, charge; [`Lease`]: the right to touch bytes |
//! | `split.rs` | no unit is too big |
//! | `stats.rs`, `error.rs` | what happened; what was refused and why |
//!
//! Start with [`Pool`]. `docs/residency.md` has the reasons and the measurements.
#![forbid(unsafe_code)]

mod arena;
mod error;
mod forecast;
mod lease;
mod ledger;
pub mod policy;
mod pool;
mod split;
mod stats;
mod store;
mod table;
mod units;

pub use arena::Arena;
pub use error::{Error, Reason, Subject};
pub use forecast::Turn;
pub use lease::Lease;
pub use ledger::{Books, Charge, Class, Ledger, Short};
pub use policy::{Cut, Lru, Plan, Policy, TwoLevel, Want};
pub use pool::{Pool, Prefetch};
pub use split::{MAX_PARTS, Piece, Tensor, part_bytes, split};
pub use stats::{Event, Stats};
pub use store::{Finished, Started, Store};
pub use table::{Model, Stretch, Table};
pub use units::{Bytes, ModelId, Pin, Size, State, UnitId};
