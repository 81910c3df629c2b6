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
//! | `policy/` | `plan(view, want)`: [`TwoLevel`], the baseline [`Lru`]; for reports the offline optimum, and a replay |
//! | `store.rs`, `arena.rs` | the trait that a memory implements; offsets for stores that need them |
//! | `pool.rs`, `lease.rs` | [`Pool`]: acquire, prefetch, pin, charge; [`Lease`]: the right to touch bytes |
//! | `split.rs` | no unit is too big |
//! | `stats.rs`, `error.rs` | what happened; what was refused and why |
//!
//! Start with [`Pool`]. `docs/residency.md` has the reasons and the measurements.
//!
//! ```
//! use std::{ops::Range, sync::Arc};
//! use nexaquant_residency::*;
//!
//! /// Keeps nothing itself: the handle owns the bytes.
//! struct Zeros;
//!
//! impl Store for Zeros {
//!     type Handle = Arc<[u8]>;
//!     fn load(&mut self, _: UnitId, missing: Range<u64>) -> Result<Started<Arc<[u8]>>, Reason> {
//!         Ok(Started::Ready(vec![0; missing.end as usize].into()))
//!     }
//!     fn evict(&mut self, _: UnitId, _: Bytes) {}
//! }
//!
//! let mut pool = Pool::new(Zeros, Bytes::mib(3), Box::new(TwoLevel));
//! let model = pool.register("alpha", &[Size::whole(Bytes::mib(1)); 4])?;
//! pool.expect(&[Turn { model, passes: 8 }]);
//! for index in (0..4).cycle().take(32) {
//!     let layer = pool.acquire(UnitId { model, index })?;
//!     pool.prefetch(UnitId { model, index: (index + 1) % 4 })?;
//!     assert_eq!(layer.len(), 1 << 20);
//! }
//! assert!(pool.books().high_water <= Bytes::mib(3));
//! println!("{:.0} % hits, {} moved", 100.0 * pool.stats().hit_rate(), pool.stats().bytes_loaded);
//! # Ok::<(), Error>(())
//! ```
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
