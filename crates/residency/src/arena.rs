//! Offsets in one contiguous memory, for stores that carve slots out of a single allocation. Numbers only: it owns no
//! memory, and it is not the ledger (that counts bytes wherever they are).
//!
//! Best fit, lowest offset among equals: units of one size then reuse each other's holes exactly, which is what a
//! streamed model does all the time.

use std::collections::{BTreeMap, BTreeSet};

use crate::units::Bytes;

/// The free and taken ranges of one contiguous memory.
///
/// Invariants:
/// 1. Slots do not overlap, lie inside the memory, and start at multiples of the alignment.
/// 2. Neighbouring holes are one hole; slots and holes together are the whole memory.
#[derive(Clone, Debug)]
pub struct Arena {
    align: u64,
    /// Offset to length.
    holes: BTreeMap<u64, u64>,
    /// Length and offset of the same holes.
    by_len: BTreeSet<(u64, u64)>,
    slots: BTreeMap<u64, u64>,
}

impl Arena {
    /// `capacity` bytes, all free. Slots take multiples of `align` bytes (0 counts as 1); a capacity that is none is
    /// used up to the last multiple.
    pub fn new(capacity: Bytes, align: Bytes) -> Arena {
        let align = align.0.max(1);
        let mut arena =
            Arena { align, holes: BTreeMap::new(), by_len: BTreeSet::new(), slots: BTreeMap::new() };
        arena.add_hole(0, capacity.0 - capacity.0 % align);
        arena
    }

    /// Takes a slot of at least `bytes` (and at least one byte) and returns its offset; `None` if no hole is large
    /// enough.
    pub fn place(&mut self, bytes: Bytes) -> Option<u64> {
        let len = bytes.0.max(1).checked_next_multiple_of(self.align)?;
        let (hole, at) = self.by_len.range((len, 0)..).next().copied()?;
        self.remove_hole(at, hole);
        self.add_hole(at + len, hole - len);
        self.slots.insert(at, len);
        Some(at)
    }

    /// Gives the slot at `offset` back. False if there is none.
    pub fn free(&mut self, offset: u64) -> bool {
        let Some(len) = self.slots.remove(&offset) else { return false };
        let (mut at, mut end) = (offset, offset + len);
        if let Some((before, n)) = self.holes.range(..offset).next_back().map(|(a, n)| (*a, *n))
            && before + n == at
        {
            self.remove_hole(before, n);
            at = before;
        }
        if let Some(n) = self.holes.get(&end).copied() {
            self.remove_hole(end, n);
            end += n;
        }
        self.add_hole(at, end - at);
        true
    }

    /// The largest slot that could be placed now.
    pub fn largest_hole(&self) -> Bytes {
        Bytes(self.by_len.last().map_or(0, |(len, _)| *len))
    }

    /// Bytes in slots, alignment included.
    pub fn used(&self) -> Bytes {
        self.slots.values().map(|len| Bytes(*len)).sum()
    }

    fn add_hole(&mut self, at: u64, len: u64) {
        if len > 0 {
            self.holes.insert(at, len);
            self.by_len.insert((len, at));
        }
    }

    fn remove_hole(&mut self, at: u64, len: u64) {
        self.holes.remove(&at);
        self.by_len.remove(&(len, at));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn audit(arena: &Arena, capacity: u64) {
        let mut at = 0;
        let mut after_hole = false;
        let mut ranges: Vec<_> = arena.slots.iter().map(|(a, n)| (*a, *n, false)).collect();
        ranges.extend(arena.holes.iter().map(|(a, n)| (*a, *n, true)));
        ranges.sort_unstable();
        for (start, len, hole) in ranges {
            assert_eq!(start, at, "arena invariant 1");
            assert_eq!(start % arena.align, 0, "arena invariant 1");
            assert!(len > 0 && !(hole && after_hole), "arena invariant 2");
            (at, after_hole) = (start + len, hole);
        }
        assert_eq!(at, capacity, "arena invariant 2");
        assert_eq!(arena.holes.len(), arena.by_len.len(), "arena invariant 2");
    }

    #[test]
    fn invariants_1_2_hold_in_random_traffic() {
        let mut rng = 1u64;
        let mut random = |n: u64| {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (rng >> 33) % n
        };
        let mut arena = Arena::new(Bytes(1003), Bytes(8));
        let mut offsets = Vec::new();
        for _ in 0..5_000 {
            if random(2) == 0 {
                let bytes = Bytes(random(120));
                let fits = arena.largest_hole() >= Bytes(bytes.0.max(1)).round_up(Bytes(8));
                let offset = arena.place(bytes);
                assert_eq!(offset.is_some(), fits);
                offsets.extend(offset);
            } else if !offsets.is_empty() {
                let offset = offsets.swap_remove(random(offsets.len() as u64) as usize);
                assert!(arena.free(offset) && !arena.free(offset));
            }
            audit(&arena, 1000);
        }
        for offset in offsets {
            assert!(arena.free(offset));
        }
        assert_eq!((arena.largest_hole(), arena.used()), (Bytes(1000), Bytes(0)));
    }

    #[test]
    fn equal_units_reuse_holes_exactly() {
        let mut arena = Arena::new(Bytes(100), Bytes(1));
        let offsets: Vec<_> = [40, 20, 40].iter().map(|n| arena.place(Bytes(*n)).unwrap()).collect();
        assert_eq!(offsets, [0, 40, 60]);
        assert_eq!(arena.place(Bytes(1)), None);
        arena.free(0);
        arena.free(40);
        assert_eq!(arena.place(Bytes(60)), Some(0));
        assert_eq!(arena.place(Bytes(u64::MAX)), None);
        assert!(!arena.free(7));
    }

    #[test]
    fn an_empty_memory_places_nothing() {
        assert_eq!(Arena::new(Bytes(0), Bytes(0)).place(Bytes(0)), None);
        assert_eq!(Arena::new(Bytes(5), Bytes(8)).place(Bytes(1)), None);
    }
}
