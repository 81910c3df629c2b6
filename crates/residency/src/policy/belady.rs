//! The offline optimum that reports compare with: how few bytes could a replacement policy that sees the future move?
//!
//! # What is computed
//! With equal unit sizes: exactly the optimum (Belady: give up what is needed latest).
//!
//! With unequal sizes the optimum is NP-hard, so the number is a **lower bound**: nothing, not even with the whole
//! trace known, moves fewer bytes under the same rule. It relaxes one thing: a unit may be given up in part, and
//! only the missing bytes are loaded again. Then keeping a byte from one use of its unit to the next is an interval of
//! weight one over time, at every moment the kept bytes must fit beside the unit in use, and giving up bytes of the
//! unit that is needed latest is optimal (the exchange argument of Belady holds byte by byte, also if the room
//! changes over time).
//!
//! For paged units ([`Parts::Paged`]) that relaxation is what the pool does, so the bound is the optimum up to the
//! granule. For units that go as a whole ([`Parts::Whole`]) the room is first cut down to what whole units can fill:
//! with layers of 1 and a head of 3.7, a budget of 17.9 holds at most 17.7. That is still a bound for them, and a
//! tighter one. It is skipped if sizes are too diverse to enumerate.
//!
//! Tests compare the bound with an exhaustive search on small traces.

use std::collections::{BTreeMap, BinaryHeap, HashMap};

use crate::units::{Bytes, UnitId};

/// One use of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The unit.
    pub unit: UnitId,
    /// Its size; the same at each use of the unit.
    pub bytes: Bytes,
}

/// What must be in memory together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The unit in use.
    Plain,
    /// The unit in use and the next one, so that its upload overlaps this one's work.
    Prefetch,
}

/// Whether units may be in memory in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// They may, to the byte.
    Paged,
    /// They are in memory as a whole or not at all.
    Whole,
}

/// Bytes that any policy must load to serve `trace` within `budget`, starting with nothing in memory; see the module
/// text for what it is exactly. `None` if the units that must be in memory together do not fit.
pub fn optimum(trace: &[Access], budget: Bytes, rule: Rule, parts: Parts) -> Option<Bytes> {
    let mut ids = HashMap::new();
    let mut sizes = Vec::new();
    let mut units = Vec::with_capacity(trace.len());
    for access in trace {
        let id = *ids.entry(access.unit).or_insert_with(|| {
            sizes.push(access.bytes.0);
            sizes.len() - 1
        });
        units.push(id);
    }
    let mut next_of = vec![usize::MAX; trace.len()];
    let mut seen = vec![usize::MAX; sizes.len()];
    for t in (0..trace.len()).rev() {
        next_of[t] = seen[units[t]];
        seen[units[t]] = t;
    }

    let mut rooms = Rooms::new(&sizes, budget.0, parts);
    let mut kept = vec![0u64; sizes.len()];
    let mut next_use = vec![usize::MAX; sizes.len()];
    let mut farthest = BinaryHeap::new();
    let (mut held, mut loaded) = (0u64, 0u64);
    for t in 0..trace.len() {
        let now = units[t];
        let then = units.get(t + 1).copied().filter(|&u| rule == Rule::Prefetch && u != now);
        let room = rooms.beside(sizes[now], then.map(|u| sizes[u]))?;
        for (unit, at) in [(Some(now), t), (then, t + 1)] {
            let Some(unit) = unit else { continue };
            let missing = sizes[unit] - kept[unit];
            kept[unit] = sizes[unit];
            held = held.checked_add(missing)?;
            loaded = loaded.checked_add(missing)?;
            next_use[unit] = at;
        }
        while held > room {
            let &(at, unit): &(usize, usize) = farthest.peek()?;
            if next_use[unit] != at || kept[unit] == 0 {
                farthest.pop();
                continue;
            }
            if unit == now || Some(unit) == then {
                return None;
            }
            let given_up = kept[unit].min(held - room);
            kept[unit] -= given_up;
            held -= given_up;
        }
        next_use[now] = next_of[t];
        farthest.push((next_of[t], now));
    }
    Some(Bytes(loaded))
}

/// How many bytes whole units can fill, given which sizes must be among them.
struct Rooms {
    budget: u64,
    parts: Parts,
    /// Size to number of units.
    counts: BTreeMap<u64, u64>,
    known: HashMap<(u64, Option<u64>), Option<u64>>,
}

/// Combinations of counts that are worth enumerating for one room.
const COMBINATIONS: u64 = 1 << 16;

impl Rooms {
    fn new(sizes: &[u64], budget: u64, parts: Parts) -> Rooms {
        let mut counts = BTreeMap::new();
        for size in sizes {
            *counts.entry(*size).or_insert(0) += 1;
        }
        Rooms { budget, parts, counts, known: HashMap::new() }
    }

    fn beside(&mut self, now: u64, then: Option<u64>) -> Option<u64> {
        if let Some(room) = self.known.get(&(now, then)) {
            return *room;
        }
        let forced = now.checked_add(then.unwrap_or(0));
        let room = forced.and_then(|forced| Some((forced, self.budget.checked_sub(forced)?))).map(
            |(forced, left)| {
                let mut counts = self.counts.clone();
                for size in [Some(now), then].into_iter().flatten() {
                    counts.entry(size).and_modify(|n| *n -= 1);
                }
                let mut counts: Vec<_> = counts.into_iter().filter(|(size, n)| *size > 0 && *n > 0).collect();
                // The most frequent size is solved by division, so it goes last.
                counts.sort_by_key(|(_, n)| *n);
                let mut combinations = 1u64;
                for (_, n) in counts.iter().rev().skip(1) {
                    combinations = combinations.saturating_mul(n + 1);
                }
                if combinations > COMBINATIONS || self.parts == Parts::Paged {
                    self.budget
                } else {
                    forced + fill(&counts, left)
                }
            },
        );
        self.known.insert((now, then), room);
        room
    }
}

/// The largest sum of at most `n` times each size that is not above `room`.
fn fill(counts: &[(u64, u64)], room: u64) -> u64 {
    match counts {
        [] => 0,
        [(size, n)] => size * (room / size).min(*n),
        [(size, n), rest @ ..] => {
            let most = (room / size).min(*n);
            (0..=most).map(|k| k * size + fill(rest, room - k * size)).max().unwrap_or(0)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::units::ModelId;

    fn trace(sizes: &[u64], order: &[usize]) -> Vec<Access> {
        let unit = |&i: &usize| Access {
            unit: UnitId { model: ModelId(0), index: i as u32 },
            bytes: Bytes(sizes[i]),
        };
        order.iter().map(unit).collect()
    }

    /// The cheapest way through all sets of whole units: the oracle.
    fn exhaustive(sizes: &[u64], order: &[usize], budget: u64, rule: Rule) -> Option<u64> {
        let bytes =
            |set: usize| (0..sizes.len()).filter(|i| set >> i & 1 == 1).map(|i| sizes[i]).sum::<u64>();
        let mut cost = vec![None; 1 << sizes.len()];
        cost[0] = Some(0);
        for t in 0..order.len() {
            let mut must = 1usize << order[t];
            if rule == Rule::Prefetch && t + 1 < order.len() {
                must |= 1 << order[t + 1];
            }
            let mut after = vec![None; cost.len()];
            for set in (0..cost.len()).filter(|set| set & must == must && bytes(*set) <= budget) {
                let from = |old: usize| Some(cost[old]? + bytes(set & !old));
                after[set] = (0..cost.len()).filter_map(from).min();
            }
            cost = after;
        }
        cost.into_iter().flatten().min()
    }

    #[test]
    fn equals_the_optimum_for_equal_sizes_and_bounds_it_for_others() {
        let mut rng = 7u64;
        let mut random = |n: u64| {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (rng >> 33) % n
        };
        let (mut cases, mut exact, mut gap) = (0, 0, 0.0f64);
        for case in 0..300 {
            let n = 2 + random(4) as usize;
            let equal = case % 2 == 0;
            let sizes: Vec<_> = (0..n).map(|_| if equal { 3 } else { 1 + random(6) }).collect();
            let cyclic = case % 3 == 0;
            let order: Vec<_> =
                (0..12).map(|t| if cyclic { t % n } else { random(n as u64) as usize }).collect();
            let budget = 1 + random(sizes.iter().sum());
            for rule in [Rule::Plain, Rule::Prefetch] {
                let bound = optimum(&trace(&sizes, &order), Bytes(budget), rule, Parts::Whole).map(|b| b.0);
                let best = exhaustive(&sizes, &order, budget, rule);
                assert_eq!(bound.is_some(), best.is_some(), "{sizes:?} {order:?} {budget} {rule:?}");
                let (Some(bound), Some(best)) = (bound, best) else { continue };
                assert!(bound <= best, "{sizes:?} {order:?} {budget} {rule:?}: {bound} > {best}");
                assert!(!equal || bound == best, "{sizes:?} {order:?} {budget} {rule:?}: {bound} != {best}");
                let paged = optimum(&trace(&sizes, &order), Bytes(budget), rule, Parts::Paged).unwrap().0;
                assert!(paged <= bound, "{sizes:?} {order:?} {budget} {rule:?}: {paged} > {bound}");
                cases += 1;
                exact += u32::from(bound == best);
                gap = gap.max(best as f64 / bound as f64);
            }
        }
        println!(
            "the bound is the optimum in {exact} of {cases} cases, at worst the optimum is {gap:.2} times it"
        );
        assert!(cases > 300 && exact * 10 > cases * 7 && gap < 1.5);
    }

    #[test]
    fn known_values() {
        // Four equal units in turn, room for three: after the first round one load every (N-1)/(N-C) = 3 uses.
        let order: Vec<_> = (0..24).map(|t| t % 4).collect();
        assert_eq!(optimum(&trace(&[1; 4], &order), Bytes(3), Rule::Plain, Parts::Whole), Some(Bytes(4 + 6)));
        // With the next unit beside the one in use, every second.
        assert_eq!(
            optimum(&trace(&[1; 4], &order), Bytes(3), Rule::Prefetch, Parts::Whole),
            Some(Bytes(4 + 10))
        );
        assert_eq!(optimum(&trace(&[1; 4], &order), Bytes(4), Rule::Prefetch, Parts::Whole), Some(Bytes(4)));
        assert_eq!(optimum(&trace(&[1; 4], &order), Bytes(1), Rule::Prefetch, Parts::Whole), None);
        assert_eq!(optimum(&[], Bytes(0), Rule::Plain, Parts::Whole), Some(Bytes(0)));
        assert_eq!(
            optimum(&trace(&[u64::MAX, u64::MAX], &[0, 1]), Bytes(u64::MAX), Rule::Prefetch, Parts::Whole),
            None
        );
    }

    #[test]
    fn room_is_what_whole_units_can_fill() {
        assert_eq!(fill(&[(37, 1), (10, 32)], 179), 177);
        assert_eq!(fill(&[(37, 1), (10, 32)], 36), 30);
        assert_eq!(fill(&[], 36), 0);
    }
}
