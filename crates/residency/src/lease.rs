//! The right to touch a unit's bytes, for as long as it lives.
//!
//! A lease does not borrow the pool, so the next unit can be prefetched while this one computes. It may be dropped on
//! another thread, for example after a device's fence; the pool learns of it at its next call.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use crate::units::{Bytes, UnitId};

/// Where leases leave word that they are gone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Returns(Arc<Mutex<Vec<UnitId>>>);

impl Returns {
    pub fn drain(&self) -> Vec<UnitId> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, unit: UnitId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(unit);
    }
}

/// A unit in use. It is not evicted while any lease of it lives. Dereferences to the store's handle.
#[must_use = "a unit may be evicted as soon as its lease is dropped"]
pub struct Lease<H> {
    // `None` only while dropping.
    handle: Option<H>,
    unit: UnitId,
    bytes: Bytes,
    returns: Returns,
}

impl<H> Lease<H> {
    pub(crate) fn new(handle: H, unit: UnitId, bytes: Bytes, returns: Returns) -> Lease<H> {
        Lease { handle: Some(handle), unit, bytes, returns }
    }

    /// The unit.
    pub fn unit(&self) -> UnitId {
        self.unit
    }

    /// Its size.
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }
}

impl<H> Deref for Lease<H> {
    type Target = H;
    fn deref(&self) -> &H {
        self.handle.as_ref().expect("a living lease has its handle")
    }
}

impl<H> Drop for Lease<H> {
    fn drop(&mut self) {
        // The handle goes first: once the pool hears of the return, it may evict, and a store may count on holding
        // the last clone then.
        self.handle = None;
        self.returns.push(self.unit);
    }
}

impl<H> fmt::Debug for Lease<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({}, {})", self.unit, self.bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_handle_is_gone_before_the_word_arrives() {
        struct Witness(Returns);
        impl Drop for Witness {
            fn drop(&mut self) {
                assert!(self.0.drain().is_empty());
            }
        }
        let returns = Returns::default();
        let unit = UnitId { model: crate::ModelId(0), index: 3 };
        let lease = Lease::new(Witness(returns.clone()), unit, Bytes(1), returns.clone());
        assert_eq!((lease.unit(), lease.bytes()), (unit, Bytes(1)));
        std::thread::spawn(move || drop(lease)).join().unwrap();
        assert_eq!(returns.drain(), [unit]);
    }
}
