//! What a memory has to offer to the pool: bring a unit in, let it go. The only door to bytes, files and devices, and
//! none of them is visible here.
//!
//! # Where placement lives
//! In the store. The ledger counts bytes, not addresses, because the memories answer "where?" differently:
//! - *mapped*: nowhere, kernels read the file's pages;
//! - *RAM*: reserve address space for every unit once (addresses cost nothing) and fill and drop its pages. The MMU
//!   makes any set of free pages look contiguous, so nothing fragments, and a unit can be given up page by page:
//!   register it as [`Size::paged`](crate::Size::paged) with the page as granule, and the ledger counts what is taken;
//! - *device*: if it is one arena, offsets in it, for which [`crate::Arena`] is a ready allocator, and units that go
//!   as a whole; if units are kept as equal blocks of rows ([`crate::split`]), a block a unit or a granule.
//!
//! In one arena with unequal slots, bytes may be free and yet not in one piece. Then [`Store::load`] answers
//! [`Started::NoPlace`], and the pool has the policy give up more and asks again, until it fits or nothing is left to
//! give up. So fragmentation costs extra loads (measured in `docs/residency.md`), never correctness.

use std::ops::Range;
use std::time::Duration;

use crate::error::Reason;
use crate::units::{Bytes, UnitId};

/// How a load began.
#[derive(Debug)]
pub enum Started<H> {
    /// It is finished already.
    Ready(H),
    /// It goes on in the background; [`Store::poll`] or [`Store::wait`] will tell.
    Pending,
    /// There is no place of that size in one piece. The store has changed nothing.
    NoPlace,
}

/// A load that has come to its end.
#[derive(Debug)]
pub struct Finished<H> {
    /// The unit.
    pub unit: UnitId,
    /// Its handle, or why there is none. After an error the store holds what it held before the load.
    pub result: Result<H, Reason>,
    /// How long the load took, queueing excluded.
    pub took: Duration,
}

impl<H> Started<H> {
    /// The same with another handle, for a store around a store.
    pub fn map<T>(self, f: impl FnOnce(H) -> T) -> Started<T> {
        match self {
            Started::Ready(handle) => Started::Ready(f(handle)),
            Started::Pending => Started::Pending,
            Started::NoPlace => Started::NoPlace,
        }
    }
}

impl<H> Finished<H> {
    /// The same with another handle, for a store around a store.
    pub fn map<T>(self, f: impl FnOnce(H) -> T) -> Finished<T> {
        Finished { unit: self.unit, result: self.result.map(f), took: self.took }
    }
}

/// One memory.
///
/// The pool calls from one thread; a store may have threads of its own (a reader that fills slots). For each unit the
/// calls are: `load`, its end (at once, or through `poll`/`wait`), any number of `evict`s that leave less and less,
/// `load` of what is missing, and so on. When `load` is called the bytes are reserved in the ledger already; the store
/// must never hold more than that.
pub trait Store {
    /// What a lease gives access to: an offset, a buffer, an `Arc` of bytes. Cloned for each lease; the pool and the
    /// leases have dropped all clones before `evict` is called.
    type Handle: Clone;

    /// Starts bringing in the bytes of `unit` that are missing: `missing.end` is its size, `missing.start` what is in
    /// memory already (zero unless the unit is paged). After an error the store holds what it held before.
    fn load(&mut self, unit: UnitId, missing: Range<u64>) -> Result<Started<Self::Handle>, Reason>;

    /// A load that has ended since, if any. Does not block.
    fn poll(&mut self) -> Option<Finished<Self::Handle>> {
        None
    }

    /// Blocks until a pending load has ended. Called only while there is one. `None` says that none will ever end,
    /// because the reader is gone; the pool then counts all pending loads as failed. A store must not block here
    /// forever.
    fn wait(&mut self) -> Option<Finished<Self::Handle>> {
        None
    }

    /// Lets go of the end of `unit`, all but its first `keep` bytes (all of it for zero). They are free when this
    /// returns. It cannot fail: weights are read-only, nothing has to be written back, and the last lease, dropped
    /// after the device's fence, is gone.
    fn evict(&mut self, unit: UnitId, keep: Bytes);
}
