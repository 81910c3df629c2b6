//! What happened: counters for the report, and a trace of state changes for whoever subscribes.
//!
//! Only measured numbers; nothing in here influences a decision.

use std::ops::AddAssign;
use std::time::Duration;

use crate::units::{Bytes, State, UnitId};

/// Counters of one model, or of all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Acquires that found the unit in memory since its last use.
    pub hits: u64,
    /// Acquires that found the unit in memory because it was prefetched since its last use.
    pub prefetched: u64,
    /// Acquires that had to wait for a prefetch under way.
    pub late: u64,
    /// Acquires that had to start the load themselves.
    pub misses: u64,
    /// Acquires that were refused or failed; they are in none of the four above.
    pub refused: u64,
    /// Loads, of whole units or of what was missing.
    pub loads: u64,
    /// Loads that failed.
    pub failed_loads: u64,
    /// Bytes brought in.
    pub bytes_loaded: Bytes,
    /// Evictions, of whole units or of their ends.
    pub evictions: u64,
    /// Bytes evicted.
    pub bytes_evicted: Bytes,
    /// Evictions that only a lack of contiguous room made necessary.
    pub evictions_for_place: u64,
    /// Time that loads took, overlapped or not.
    pub load_time: Duration,
    /// Time that acquires spent waiting.
    pub stall: Duration,
}

impl Stats {
    /// Acquires that were granted.
    pub fn acquires(&self) -> u64 {
        self.hits + self.prefetched + self.late + self.misses
    }

    /// The part of the acquires that needed no load since the last use of the unit; 0 if there were none.
    pub fn hit_rate(&self) -> f64 {
        if self.acquires() == 0 { 0.0 } else { self.hits as f64 / self.acquires() as f64 }
    }
}

impl Stats {
    /// What was counted after `before`, an earlier copy of the same counters.
    #[must_use]
    pub fn since(&self, before: &Stats) -> Stats {
        Stats {
            hits: self.hits - before.hits,
            prefetched: self.prefetched - before.prefetched,
            late: self.late - before.late,
            misses: self.misses - before.misses,
            refused: self.refused - before.refused,
            loads: self.loads - before.loads,
            failed_loads: self.failed_loads - before.failed_loads,
            bytes_loaded: self.bytes_loaded.saturating_sub(before.bytes_loaded),
            evictions: self.evictions - before.evictions,
            bytes_evicted: self.bytes_evicted.saturating_sub(before.bytes_evicted),
            evictions_for_place: self.evictions_for_place - before.evictions_for_place,
            load_time: self.load_time.saturating_sub(before.load_time),
            stall: self.stall.saturating_sub(before.stall),
        }
    }
}

impl AddAssign for Stats {
    fn add_assign(&mut self, other: Stats) {
        self.hits += other.hits;
        self.prefetched += other.prefetched;
        self.late += other.late;
        self.misses += other.misses;
        self.refused += other.refused;
        self.loads += other.loads;
        self.failed_loads += other.failed_loads;
        self.bytes_loaded += other.bytes_loaded;
        self.evictions += other.evictions;
        self.bytes_evicted += other.bytes_evicted;
        self.evictions_for_place += other.evictions_for_place;
        self.load_time += other.load_time;
        self.stall += other.stall;
    }
}

/// A unit changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Time since the pool was made.
    pub at: Duration,
    /// The unit.
    pub unit: UnitId,
    /// Its size.
    pub bytes: Bytes,
    /// Bytes of it that are in memory now.
    pub kept: Bytes,
    /// Its state before. From `Loading` to `Cold` or `Partial` is a load that failed.
    pub from: State,
    /// Its state now.
    pub to: State,
    /// How long the step took: after `Loading` the load, into `InUse` the wait for it, after `Evicting` the eviction;
    /// zero otherwise.
    pub took: Duration,
    /// Bytes that the ledger has given out at this moment, everything included.
    pub used: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_since_adds_up() {
        let n = |k: u64| Stats {
            hits: k,
            prefetched: 2 * k,
            late: 3 * k,
            misses: 4 * k,
            refused: 5 * k,
            loads: 6 * k,
            failed_loads: 7 * k,
            bytes_loaded: Bytes(8 * k),
            evictions: 9 * k,
            bytes_evicted: Bytes(10 * k),
            evictions_for_place: 11 * k,
            load_time: Duration::from_nanos(12 * k),
            stall: Duration::from_nanos(13 * k),
        };
        let mut sum = n(1);
        sum += n(5);
        assert_eq!((sum, n(6).since(&n(1))), (n(6), n(5)));
    }
}
