//! What a policy would have moved: a real pool, over a store that holds nothing, is led through a recorded trace.
//!
//! So a report can put the baseline beside the run that was measured and the optimum below it, all three for the same
//! accesses and the same room ([`super::belady::optimum`] takes the same trace).

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::Duration;

use super::Policy;
use super::belady::{Access, Rule};
use crate::error::{Error, Reason};
use crate::forecast::Turn;
use crate::pool::Pool;
use crate::stats::Stats;
use crate::store::{Started, Store};
use crate::units::{Bytes, ModelId, Size, UnitId};

/// The counters of a pool that runs `policy` through `trace`, starting with nothing in memory. Nothing is really
/// loaded, so no time passes: `load_time` and `stall` are zero.
///
/// Models and units are those that the trace names, units in the order of their index. They are given up in steps of
/// `granule`; zero is as a whole. The budget of each access holds from before the unit is acquired; under
/// [`Rule::Prefetch`] the unit of the next access is prefetched while this one is leased.
///
/// `turns` is what was said to [`Pool::expect`], each list with the index of the access before which it was said.
/// Policies that do not plan with the queue need none.
///
/// A policy that plans with the queue does not prefetch what it expects to be needed later than what would have to go.
/// So if the trace is not what the queue says, it may leave out prefetches that [`Rule::Prefetch`] counts on, and
/// [`Rule::Plain`] alone bounds it.
///
/// Refused if a unit changes its size or has none, and if a budget is smaller than the largest unit that the trace
/// names: a pool never goes below that, whether the unit is in use or not. Errors call models by the trace's numbers
/// as names, and units by their place among those that the trace uses.
pub fn replay(
    trace: &[Access],
    policy: Box<dyn Policy>,
    rule: Rule,
    granule: Bytes,
    turns: &[(usize, Vec<Turn>)],
) -> Result<Stats, Error> {
    let Some(first) = trace.first() else { return Ok(Stats::default()) };
    let mut budget = first.budget;
    let mut pool = Pool::new(Nothing, budget, policy);
    let ids = register(&mut pool, trace, granule)?;
    let units: Vec<_> = trace.iter().filter_map(|access| ids.units.get(&access.unit).copied()).collect();
    let mut turns: Vec<_> = turns.iter().map(|(at, turns)| (*at, turns)).collect();
    turns.sort_by_key(|(at, _)| *at);
    let mut turns = turns.into_iter().peekable();
    for (t, (access, unit)) in trace.iter().zip(&units).enumerate() {
        while let Some((_, turns)) = turns.next_if(|(at, _)| *at <= t) {
            pool.expect(&turns.iter().map(|turn| ids.turn(*turn)).collect::<Vec<_>>());
        }
        if access.budget != budget {
            budget = access.budget;
            pool.set_budget(budget)?;
        }
        let lease = pool.acquire(*unit)?;
        if let (Rule::Prefetch, Some(next)) = (rule, units.get(t + 1)) {
            // Without room it is a miss later.
            pool.prefetch(*next)?;
        }
        drop(lease);
    }
    Ok(Stats { load_time: Duration::ZERO, stall: Duration::ZERO, ..pool.stats() })
}

/// Holds nothing, and is done at once.
struct Nothing;

impl Store for Nothing {
    type Handle = ();

    fn load(&mut self, _: UnitId, _: Range<u64>) -> Result<Started<()>, Reason> {
        Ok(Started::Ready(()))
    }

    fn evict(&mut self, _: UnitId, _: Bytes) {}
}

/// What the pool calls the trace's models and units. A recorded model id may be any number, and a trace may leave units
/// out.
#[derive(Default)]
struct Ids {
    models: HashMap<ModelId, ModelId>,
    units: HashMap<UnitId, UnitId>,
}

impl Ids {
    /// A model that is queued and never runs keeps its place in the queue, under an id that no pool gets to.
    fn turn(&self, turn: Turn) -> Turn {
        Turn { model: self.models.get(&turn.model).copied().unwrap_or(ModelId(u32::MAX)), ..turn }
    }
}

fn register(pool: &mut Pool<Nothing>, trace: &[Access], granule: Bytes) -> Result<Ids, Error> {
    let mut models: BTreeMap<ModelId, BTreeMap<u32, Bytes>> = BTreeMap::new();
    for (at, Access { unit, bytes, .. }) in trace.iter().enumerate() {
        let first = *models.entry(unit.model).or_default().entry(unit.index).or_insert(*bytes);
        if first != *bytes {
            return Err(Error::SizeChanged { unit: *unit, at, bytes: *bytes, first });
        }
    }
    let mut ids = Ids::default();
    for (recorded, units) in models {
        let sizes: Vec<_> = units.values().map(|bytes| Size::paged(*bytes, granule)).collect();
        let model = pool.register(&format!("model {}", recorded.0), &sizes)?;
        ids.models.insert(recorded, model);
        for (index, recorded_index) in (0..).zip(units.into_keys()) {
            let unit = UnitId { model: recorded, index: recorded_index };
            ids.units.insert(unit, UnitId { model, index });
        }
    }
    Ok(ids)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::policy::belady::{Parts, optimum};
    use crate::policy::{Lru, TwoLevel};

    /// Units of 10 bytes: (model, index, budget).
    fn trace(uses: impl IntoIterator<Item = (u32, u32, u64)>) -> Vec<Access> {
        let access = |(model, index, budget)| Access {
            unit: UnitId { model: ModelId(model), index },
            bytes: Bytes(10),
            budget: Bytes(budget),
        };
        uses.into_iter().map(access).collect()
    }

    /// `rounds` passes over four units.
    fn scan(rounds: usize, budget: impl Fn(usize) -> u64) -> Vec<Access> {
        trace((0..rounds * 4).map(|t| (0, (t % 4) as u32, budget(t))))
    }

    fn lru(trace: &[Access], rule: Rule) -> Stats {
        replay(trace, Box::new(Lru), rule, Bytes::ZERO, &[]).unwrap()
    }

    #[test]
    fn the_baseline_finds_nothing_on_a_scan_that_is_one_unit_too_long() {
        let stats = lru(&scan(10, |_| 30), Rule::Plain);
        assert_eq!((stats.acquires(), stats.misses, stats.hits), (40, 40, 0));
        assert_eq!(
            (stats.bytes_loaded, stats.stall, stats.load_time),
            (Bytes(400), Duration::ZERO, stats.stall)
        );
        let stats = lru(&scan(10, |_| 30), Rule::Prefetch);
        assert_eq!((stats.acquires(), stats.misses, stats.prefetched), (40, 1, 39));
        let stats = lru(&scan(10, |_| 40), Rule::Plain);
        assert_eq!((stats.misses, stats.hits), (4, 36));
        // A prefetch without room beside the unit in use is a miss later.
        assert_eq!(lru(&scan(10, |_| 19), Rule::Prefetch).misses, 40);
    }

    #[test]
    fn the_budget_falls_and_rises() {
        // All fit, then two for a pass, then all again.
        let trace = scan(6, |t| if (8..12).contains(&t) { 20 } else { 40 });
        let stats = lru(&trace, Rule::Plain);
        // First pass, the pass with little room, and its first two after it.
        assert_eq!((stats.misses, stats.evictions), (4 + 4 + 2, 2 + 4));
        let stats = replay(&trace, Box::new(TwoLevel), Rule::Plain, Bytes::ZERO, &[]).unwrap();
        let best = optimum(&trace, Rule::Plain, Parts::Whole).unwrap();
        println!("two-level {}, optimum {best}", stats.bytes_loaded);
        assert!(best <= stats.bytes_loaded && stats.bytes_loaded <= Bytes(100), "{stats:?}");
        // Page by page: nothing more than has to goes.
        let trace = scan(2, |t| if t < 4 { 40 } else { 37 });
        let stats = replay(&trace, Box::new(TwoLevel), Rule::Plain, Bytes(1), &[]).unwrap();
        assert_eq!(Some(stats.bytes_loaded), optimum(&trace, Rule::Plain, Parts::Paged));
        assert_eq!(stats.bytes_loaded, Bytes(43));
    }

    #[test]
    fn the_queue_is_told_where_it_was_told() {
        // Models 7 and 4000000000 in turn, two passes each, of two units that the trace numbers 5 and 9.
        let models = [7, 4_000_000_000];
        let order = (0..80).map(|t| (models[t / 4 % 2], [5, 9][t % 2], 30));
        let trace = trace(order);
        let turn = |model| Turn { model: ModelId(model), passes: 2 };
        let run = |turns: &[(usize, Vec<Turn>)]| {
            replay(&trace, Box::new(TwoLevel), Rule::Plain, Bytes::ZERO, turns).unwrap()
        };
        let told = run(&[(0, models.map(turn).to_vec())]);
        assert_eq!(Some(told.bytes_loaded), optimum(&trace, Rule::Plain, Parts::Whole));
        // Wrong until access 40, then right, whatever the order of the lists; a model that never runs changes nothing,
        // and neither does what is said after the end.
        let late = [(999, vec![turn(7)]), (40, models.map(turn).to_vec()), (0, vec![turn(1), turn(7)])];
        let late = run(&late);
        assert!(late.bytes_loaded >= told.bytes_loaded, "{late:?}");
        assert_eq!(late.acquires(), 80);
    }

    #[test]
    fn no_policy_moves_less_than_the_optimum() {
        let mut rng = 11u64;
        let mut random = |n: u64| {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (rng >> 33) % n
        };
        for case in 0..400 {
            let n = 2 + random(6);
            let sizes: Vec<_> = (0..n).map(|_| 1 + random(9)).collect();
            let (largest, total) = (*sizes.iter().max().unwrap(), sizes.iter().sum::<u64>());
            let mut budget = total;
            let trace: Vec<_> = (0..60)
                .map(|_| {
                    if random(4) == 0 {
                        budget = largest + random(total);
                    }
                    let i = random(n);
                    let unit = UnitId { model: ModelId((i % 2) as u32), index: (i / 2) as u32 };
                    Access { unit, bytes: Bytes(sizes[i as usize]), budget: Bytes(budget) }
                })
                .collect();
            for (granule, parts) in [(0, Parts::Whole), (1, Parts::Paged), (3, Parts::Paged)] {
                for rule in [Rule::Plain, Rule::Prefetch] {
                    let best = optimum(&trace, rule, parts).unwrap();
                    let stats = replay(&trace, Box::new(Lru), rule, Bytes(granule), &[]).unwrap();
                    assert!(stats.bytes_loaded >= best, "case {case}: {rule:?} {parts:?} {trace:?}");
                }
                // TwoLevel does not prefetch what it does not expect, so only the rule without prefetch bounds it here.
                let best = optimum(&trace, Rule::Plain, parts).unwrap();
                for rule in [Rule::Plain, Rule::Prefetch] {
                    let stats = replay(&trace, Box::new(TwoLevel), rule, Bytes(granule), &[]).unwrap();
                    assert!(stats.bytes_loaded >= best, "case {case}: {rule:?} {parts:?} {trace:?}");
                }
            }
        }
    }

    #[test]
    fn strange_traces_are_errors() {
        let run = |trace: &[Access]| replay(trace, Box::new(Lru), Rule::Prefetch, Bytes(4), &[]);
        assert_eq!(run(&[]).unwrap(), Stats::default());
        let mut strange = trace([(3, u32::MAX, 30), (3, 0, 30), (3, u32::MAX, 30)]);
        assert_eq!(run(&strange).unwrap().bytes_loaded, Bytes(20));
        strange[2].bytes = Bytes(11);
        let expected = "access 2 of the trace gives unit 4294967295 of model 3 11 B (11 bytes), its first use gave it \
                        10 B (10 bytes)";
        assert_eq!(run(&strange).unwrap_err().to_string(), expected);
        strange[2].bytes = Bytes(10);
        strange[2].budget = Bytes(9);
        let error = run(&strange).unwrap_err();
        assert!(
            matches!(&error, Error::OverBudget { budget: Bytes(9), smallest_budget: Bytes(10), .. }),
            "{error}"
        );
        strange[0].budget = Bytes(0);
        let error = run(&strange).unwrap_err();
        let text = "the largest unit of model 3 needs 10 B, but the budget is 0 B, ";
        assert!(error.to_string().starts_with(text), "{error}");
        for access in &mut strange {
            access.bytes = Bytes::ZERO;
        }
        assert!(matches!(run(&strange), Err(Error::EmptyUnit { index: 0, .. })));
        let huge: Vec<_> = [0, 1, 2, 0]
            .map(|model| Access {
                unit: UnitId { model: ModelId(model), index: 0 },
                bytes: Bytes(u64::MAX),
                budget: Bytes(u64::MAX),
            })
            .to_vec();
        assert_eq!(run(&huge).unwrap().bytes_loaded, Bytes(u64::MAX));
    }
}
