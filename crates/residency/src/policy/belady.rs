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
//! The room is a property of each access, because it changes over a run: a cache that grows takes it from the weights
//! and gives it back.
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
    /// What all units together may take during this use.
    pub budget: Bytes,
}

/// What must be in memory together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The unit in use.
    Plain,
    /// The unit in use and the next one, so that its upload overlaps this one's work. Where the budget has no room for
    /// both, the next one may come later, as after a prefetch that found no room.
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

/// Bytes that any policy must load to serve `trace` within the budget of each access, starting with nothing in memory;
/// see the module text for what it is exactly. `None` if a unit alone is larger than the budget at its use.
pub fn optimum(trace: &[Access], rule: Rule, parts: Parts) -> Option<Bytes> {
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

    let mut rooms = Rooms::new(&sizes, parts);
    let mut kept = vec![0u64; sizes.len()];
    let mut next_use = vec![usize::MAX; sizes.len()];
    let mut farthest = BinaryHeap::new();
    let mut loaded = Bytes::ZERO;
    // For a moment it is more than the room, and may be more than a `u64` holds.
    let mut held = 0u128;
    for (t, access) in trace.iter().enumerate() {
        let now = units[t];
        let left = access.budget.0.checked_sub(sizes[now])?;
        let then = units.get(t + 1).copied();
        let then = then.filter(|&u| rule == Rule::Prefetch && u != now && sizes[u] <= left);
        let room = u128::from(rooms.beside(access.budget.0, sizes[now], then.map(|u| sizes[u])));
        for (unit, at) in [(Some(now), t), (then, t + 1)] {
            let Some(unit) = unit else { continue };
            let missing = sizes[unit] - kept[unit];
            kept[unit] = sizes[unit];
            held += u128::from(missing);
            loaded += Bytes(missing);
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
            let surplus = u64::try_from(held - room).unwrap_or(u64::MAX);
            let given_up = kept[unit].min(surplus);
            kept[unit] -= given_up;
            held -= u128::from(given_up);
        }
        next_use[now] = next_of[t];
        farthest.push((next_of[t], now));
    }
    Some(loaded)
}

/// How many bytes whole units can fill, given which sizes must be among them.
struct Rooms {
    parts: Parts,
    /// Size to number of units.
    counts: BTreeMap<u64, u64>,
    /// By budget, size of the unit in use and size of the next one.
    known: HashMap<(u64, u64, Option<u64>), u64>,
}

/// Combinations of counts that are worth enumerating for one room.
const COMBINATIONS: u64 = 1 << 16;

impl Rooms {
    fn new(sizes: &[u64], parts: Parts) -> Rooms {
        let mut counts = BTreeMap::new();
        for size in sizes {
            *counts.entry(*size).or_insert(0) += 1;
        }
        Rooms { parts, counts, known: HashMap::new() }
    }

    /// `now` and `then` must fit.
    fn beside(&mut self, budget: u64, now: u64, then: Option<u64>) -> u64 {
        if self.parts == Parts::Paged {
            return budget;
        }
        if let Some(room) = self.known.get(&(budget, now, then)) {
            return *room;
        }
        let forced = now + then.unwrap_or(0);
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
        let room = if combinations > COMBINATIONS { budget } else { forced + fill(&counts, budget - forced) };
        self.known.insert((budget, now, then), room);
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

    /// `budgets` is repeated.
    fn trace(sizes: &[u64], order: &[usize], budgets: &[u64]) -> Vec<Access> {
        let access = |(&i, &budget): (&usize, &u64)| Access {
            unit: UnitId { model: ModelId(0), index: i as u32 },
            bytes: Bytes(sizes[i]),
            budget: Bytes(budget),
        };
        order.iter().zip(budgets.iter().cycle()).map(access).collect()
    }

    /// The cheapest way through all sets of pieces, of which each unit has some: the oracle.
    fn exhaustive(pieces: &[u64], of: &[usize], order: &[usize], budgets: &[u64], rule: Rule) -> Option<u64> {
        let sum = |set: usize| (0..pieces.len()).filter(|i| set >> i & 1 == 1).map(|i| pieces[i]).sum();
        let bytes: Vec<u64> = (0..1 << pieces.len()).map(sum).collect();
        let mut cost = vec![None; bytes.len()];
        cost[0] = Some(0);
        for t in 0..order.len() {
            let budget = budgets[t % budgets.len()];
            let mut must = of[order[t]];
            if rule == Rule::Prefetch && t + 1 < order.len() {
                let both = must | of[order[t + 1]];
                must = if bytes[both] <= budget { both } else { must };
            }
            let mut after = vec![None; cost.len()];
            for set in (0..cost.len()).filter(|set| set & must == must && bytes[*set] <= budget) {
                let from = |old: usize| Some(cost[old]? + bytes[set & !old]);
                after[set] = (0..cost.len()).filter_map(from).min();
            }
            cost = after;
        }
        cost.into_iter().flatten().min()
    }

    fn whole(sizes: &[u64], order: &[usize], budgets: &[u64], rule: Rule) -> Option<u64> {
        let of: Vec<_> = (0..sizes.len()).map(|i| 1 << i).collect();
        exhaustive(sizes, &of, order, budgets, rule)
    }

    /// Each byte may be in memory without the others of its unit.
    fn paged(sizes: &[u64], order: &[usize], budgets: &[u64], rule: Rule) -> Option<u64> {
        let mut bytes = 0;
        let mut of = Vec::new();
        for size in sizes {
            of.push(((1 << size) - 1) << bytes);
            bytes += size;
        }
        exhaustive(&vec![1; bytes as usize], &of, order, budgets, rule)
    }

    #[test]
    fn is_the_optimum_for_equal_sizes_and_for_paged_units_and_bounds_it_for_others() {
        let mut rng = 7u64;
        let mut random = |n: u64| {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (rng >> 33) % n
        };
        let (mut cases, mut changing, mut by_byte, mut exact, mut gap) = (0, 0, 0, 0, 0.0f64);
        for case in 0..900 {
            let n = 2 + random(4) as usize;
            let equal = case % 2 == 0;
            let sizes: Vec<_> = (0..n).map(|_| if equal { 3 } else { 1 + random(6) }).collect();
            let cyclic = case % 3 == 0;
            let order: Vec<_> =
                (0..12).map(|t| if cyclic { t % n } else { random(n as u64) as usize }).collect();
            // One budget, or one that changes every so often, mostly with room for each unit alone.
            let total: u64 = sizes.iter().sum();
            let largest = *sizes.iter().max().unwrap();
            let steps = [1, 4, 12][case % 5 % 3];
            let budgets: Vec<_> = (0..steps)
                .map(|_| if steps == 1 { 1 + random(total) } else { largest + random(total) })
                .flat_map(|budget| vec![budget; 12 / steps])
                .collect();
            for rule in [Rule::Plain, Rule::Prefetch] {
                let what = format!("{sizes:?} {order:?} {budgets:?} {rule:?}");
                let trace = trace(&sizes, &order, &budgets);
                let bound = optimum(&trace, rule, Parts::Whole).map(|b| b.0);
                let best = whole(&sizes, &order, &budgets, rule);
                assert_eq!(bound.is_some(), best.is_some(), "{what}");
                let (Some(bound), Some(best)) = (bound, best) else { continue };
                assert!(bound <= best, "{what}: {bound} > {best}");
                assert!(!equal || bound == best, "{what}: {bound} != {best}");
                let in_part = optimum(&trace, rule, Parts::Paged).unwrap().0;
                assert!(in_part <= bound, "{what}: {in_part} > {bound}");
                if total <= 8 {
                    assert_eq!(Some(in_part), paged(&sizes, &order, &budgets, rule), "{what}");
                    by_byte += u32::from(!equal && in_part < best);
                }
                cases += 1;
                changing += u32::from(steps > 1);
                exact += u32::from(bound == best);
                gap = gap.max(best as f64 / bound as f64);
            }
        }
        println!(
            "the bound is the optimum in {exact} of {cases} cases, {changing} of them with changing budgets; at worst \
             the optimum is {gap:.2} times it"
        );
        assert!(cases > 900 && changing > 600 && exact * 10 > cases * 7);
        assert!(by_byte > 10 && gap < 1.7, "{by_byte} {gap}");
    }

    #[test]
    fn known_values() {
        // Four equal units in turn, room for three: after the first round one load every (N-1)/(N-C) = 3 uses.
        let order: Vec<_> = (0..24).map(|t| t % 4).collect();
        let loaded = |budget, rule| optimum(&trace(&[1; 4], &order, &[budget]), rule, Parts::Whole);
        assert_eq!(loaded(3, Rule::Plain), Some(Bytes(4 + 6)));
        // With the next unit beside the one in use, every second.
        assert_eq!(loaded(3, Rule::Prefetch), Some(Bytes(4 + 10)));
        assert_eq!(loaded(4, Rule::Prefetch), Some(Bytes(4)));
        // No room for the next one: each is loaded when it is used.
        assert_eq!(loaded(1, Rule::Prefetch), Some(Bytes(24)));
        assert_eq!(loaded(0, Rule::Plain), None);
        assert_eq!(optimum(&[], Rule::Plain, Parts::Whole), Some(Bytes::ZERO));
    }

    #[test]
    fn a_smaller_budget_gives_up_what_is_needed_latest() {
        // Room for all four, then for one while unit 3 is in use, then for all again: 0, 1 and 2 come back, once.
        let order: Vec<_> = (0..12).map(|t| t % 4).collect();
        let mut budgets = vec![4; 12];
        budgets[7] = 1;
        let loaded = |budgets: &[u64], rule| optimum(&trace(&[1; 4], &order, budgets), rule, Parts::Whole);
        for rule in [Rule::Plain, Rule::Prefetch] {
            assert_eq!(loaded(&budgets, rule), Some(Bytes(4 + 3)));
        }
        // Room for two: unit 0, which is next, stays.
        budgets[7] = 2;
        assert_eq!(loaded(&budgets, Rule::Plain), Some(Bytes(4 + 2)));
        budgets[7] = 0;
        assert_eq!(loaded(&budgets, Rule::Plain), None);
    }

    #[test]
    fn absurd_sizes_are_counted_without_wrapping() {
        let huge = trace(&[u64::MAX; 3], &[0, 1, 2, 0], &[u64::MAX]);
        for parts in [Parts::Whole, Parts::Paged] {
            assert_eq!(optimum(&huge, Rule::Prefetch, parts), Some(Bytes(u64::MAX)));
        }
    }

    #[test]
    fn room_is_what_whole_units_can_fill() {
        assert_eq!(fill(&[(37, 1), (10, 32)], 179), 177);
        assert_eq!(fill(&[(37, 1), (10, 32)], 36), 30);
        assert_eq!(fill(&[], 36), 0);
    }
}
