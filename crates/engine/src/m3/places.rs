//! Who lies where in the one arena of a device.
//!
//! Parts of models come from the arena's beginning, everything else from its end: caches and buffers stay together there, so that
//! what is left for parts is one piece, as large as the ledger says. What lies in the way of a cache or a buffer and may go, goes.

use nexaquant_residency::UnitId;
use std::collections::BTreeMap;
use std::ops::Range;

/// Addresses are multiples of this.
pub(crate) const ALIGN: u64 = 256;

/// What lies at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Part(UnitId),
    Other,
}

/// The places of an arena.
#[derive(Debug)]
pub(crate) struct Places {
    end: u64,
    /// First byte to the byte behind, and whose it is.
    taken: BTreeMap<u64, (u64, Owner)>,
}

impl Places {
    pub fn new(bytes: u64) -> Self {
        Self { end: bytes - bytes % ALIGN, taken: BTreeMap::new() }
    }

    /// Stretches between the places for which `stays` says so, in order.
    fn holes(&self, stays: impl Fn(Owner) -> bool) -> impl Iterator<Item = Range<u64>> {
        let mut holes = Vec::new();
        let mut at = 0;
        for (from, (to, owner)) in &self.taken {
            if stays(*owner) {
                holes.push(at..*from);
                at = *to;
            }
        }
        holes.push(at..self.end);
        holes.into_iter().filter(|hole| !hole.is_empty())
    }

    /// A place for a part: at the beginning of the smallest hole that has room.
    pub fn part(&mut self, unit: UnitId, bytes: u64) -> Option<u64> {
        let bytes = bytes.next_multiple_of(ALIGN);
        let fits = self.holes(|_| true).filter(|hole| hole.end - hole.start >= bytes);
        let at = fits.min_by_key(|hole| hole.end - hole.start)?.start;
        self.taken.insert(at, (at + bytes, Owner::Part(unit)));
        Some(at)
    }

    /// The last place where something else could lie if the parts that `may_go` were gone, and which parts lie there.
    pub fn last(&self, bytes: u64, may_go: impl Fn(UnitId) -> bool) -> Option<(Range<u64>, Vec<UnitId>)> {
        let bytes = bytes.next_multiple_of(ALIGN);
        let stays = |owner| !matches!(owner, Owner::Part(unit) if may_go(unit));
        let hole = self.holes(stays).filter(|hole| hole.end - hole.start >= bytes).last()?;
        let place = hole.end - bytes..hole.end;
        let inside = |(from, (to, _)): &(&u64, &(u64, Owner))| **from < place.end && *to > place.start;
        let parts = self.taken.iter().filter(inside).filter_map(|(_, (_, owner))| match owner {
            Owner::Part(unit) => Some(*unit),
            Owner::Other => None,
        });
        let parts = parts.collect();
        Some((place, parts))
    }

    /// Takes a place that [`Places::last`] has found, once the parts there are gone.
    pub fn take(&mut self, place: &Range<u64>) {
        self.taken.insert(place.start, (place.end, Owner::Other));
    }

    /// Frees the place that begins at `at`.
    pub fn free(&mut self, at: u64) {
        self.taken.remove(&at);
    }

    /// The parts that are here.
    pub fn parts(&self) -> impl Iterator<Item = UnitId> + '_ {
        self.taken.values().filter_map(|(_, owner)| match owner {
            Owner::Part(unit) => Some(*unit),
            Owner::Other => None,
        })
    }

    /// Bytes of the largest hole.
    pub fn largest(&self) -> u64 {
        self.holes(|_| true).map(|hole| hole.end - hole.start).max().unwrap_or(0)
    }

    /// Bytes taken.
    #[cfg(test)]
    pub fn used(&self) -> u64 {
        self.taken.iter().map(|(from, (to, _))| to - from).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexaquant_residency::ModelId;

    fn unit(index: u32) -> UnitId {
        UnitId { model: ModelId(0), index }
    }

    #[test]
    fn parts_fill_the_smallest_hole_and_others_come_from_the_end() {
        let mut places = Places::new(10 * ALIGN + 7);
        assert_eq!(places.part(unit(0), 3 * ALIGN), Some(0));
        assert_eq!(places.part(unit(1), 2 * ALIGN - 1), Some(3 * ALIGN));
        assert_eq!(places.part(unit(2), 4 * ALIGN), Some(5 * ALIGN));
        places.free(3 * ALIGN);
        // The hole at the end is smaller.
        assert_eq!(places.part(unit(3), 1), Some(9 * ALIGN));
        assert_eq!((places.used(), places.largest()), (8 * ALIGN, 2 * ALIGN));
        assert_eq!(places.part(unit(4), 3 * ALIGN), None);

        // Whoever may not go is in the way; parts at the end go first.
        assert_eq!(places.last(2 * ALIGN, |_| false), Some((3 * ALIGN..5 * ALIGN, vec![])));
        assert_eq!(places.last(ALIGN, |u| u == unit(3)), Some((9 * ALIGN..10 * ALIGN, vec![unit(3)])));
        let all = places.last(2 * ALIGN, |_| true);
        assert_eq!(all, Some((8 * ALIGN..10 * ALIGN, vec![unit(2), unit(3)])));
        assert_eq!(places.last(11 * ALIGN, |_| true), None);
        let (place, parts) = all.unwrap();
        for part in parts {
            let at = if part == unit(2) { 5 * ALIGN } else { 9 * ALIGN };
            places.free(at);
        }
        places.take(&place);
        assert_eq!(places.last(ALIGN, |_| true), Some((7 * ALIGN..8 * ALIGN, vec![])));
        assert_eq!(places.part(unit(5), 5 * ALIGN), Some(3 * ALIGN));
        assert_eq!(places.parts().collect::<Vec<_>>(), [unit(0), unit(5)]);
    }
}
