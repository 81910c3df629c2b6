//! The default policy: between models the announced order, inside a model the farthest next use.
//!
//! # The order
//! A forward pass uses the units of a model in order, and the next pass uses them again: a cyclic scan. On a cycle the
//! unit that was used *last* is the one that is needed again *latest*, so it is the one to evict (most recently used,
//! the mirror image of LRU). The rest stays, and what does not fit streams through the place that is given up again
//! and again. [`Table::farthest_first`] extends that order over models:
//! 1. models without queued requests: least recently used model first, its last layers first, so that the head of
//!    every model stays and a switch can start computing at once;
//! 2. models with queued requests: the one whose turn comes last first, its last layers first;
//! 3. the running model: behind the position first, then what lies ahead, farthest first.
//!
//! With a true forecast and equal sizes this is Belady's rule, so nothing can move fewer bytes.
//!
//! # Unequal sizes
//! Paged units are given up in granules, from the end, so only as much goes as is needed and the order above stays
//! the optimum, byte by byte.
//!
//! Units that go as a whole are harder (choosing among them is a knapsack). Giving up a unit of size `s` that is needed
//! in `t` steps costs `s` bytes later. If `u` bytes of room will be filled thanks to that by the wanted unit and by
//! those that are needed before it comes back, it buys `u * t` byte-steps. So the victim is the one with the largest
//! `t * u / s`, where `u` counts for at most `s`: the most useful room for a byte that has to come back. With equal
//! sizes that is the farthest. With a head four times a layer and two layers short of room, it keeps the head.

use super::{Plan, Policy, Want};
use crate::table::{Stretch, Table};
use crate::units::{Bytes, Size, UnitId};

/// How many candidates are weighed for one victim, and how many needs to come are looked at: enough for a head that is
/// many layers big, and a bound on the time of a decision. Four times as many changed nothing in the measurements.
const LOOK: usize = 32;

/// Least recently used model first, last layers first, farthest next use inside the running model.
#[derive(Clone, Copy, Debug, Default)]
pub struct TwoLevel;

impl Policy for TwoLevel {
    fn name(&self) -> &'static str {
        "two-level"
    }

    fn plan(&self, view: &Table, want: &Want) -> Plan {
        let mut plan = Plan::default();
        if want.give_up == Bytes::ZERO {
            return plan;
        }
        let stretches = view.farthest_first();
        let needs = Needs::new(view, &stretches, want);
        let wanted = want.give_up + view.free();
        let spared = Spared::new(&stretches, want);
        let mut victims = stretches
            .iter()
            .flat_map(|stretch| candidates(view, stretch))
            .filter(|victim| want.unit != Some(victim.unit) && !spared.covers(victim));
        // Candidates that were passed over in favour of a nearer one; still the farthest, so they are asked first.
        let mut waiting: Vec<Candidate> = Vec::new();
        while plan.frees < want.give_up {
            let short = want.give_up.saturating_sub(plan.frees);
            let mut best: Option<(usize, f64)> = None;
            for i in 0..LOOK {
                if i == waiting.len() {
                    let Some(next) = victims.next() else { break };
                    waiting.push(next);
                }
                let candidate = &waiting[i];
                if let Some((b, score)) = best {
                    let cannot_win = candidate.next_use as f64 <= score;
                    let other_rank = !waiting[b].known && waiting[b].unit.model != candidate.unit.model;
                    if cannot_win || other_rank {
                        break;
                    }
                }
                let score = candidate.next_use as f64 * needs.useful(candidate, short, wanted);
                if best.is_none_or(|(_, s)| score > s) {
                    best = Some((i, score));
                }
            }
            let Some((i, _)) = best else { break };
            let victim = waiting.remove(i);
            plan.take(view, victim.unit, short);
        }
        plan
    }
}

struct Candidate {
    unit: UnitId,
    /// In memory now.
    kept: Bytes,
    size: Size,
    next_use: i64,
    known: bool,
}

fn candidates<'a>(view: &'a Table, stretch: &'a Stretch) -> impl Iterator<Item = Candidate> + 'a {
    view.model(stretch.model).into_iter().flat_map(move |model| {
        model.evictable(stretch.units.clone()).rev().map(move |index| Candidate {
            unit: UnitId { model: stretch.model, index },
            kept: model.kept(index),
            size: model.size(index),
            next_use: stretch.base + i64::from(index),
            known: stretch.known,
        })
    })
}

/// The units that will have to be loaded after the wanted one, in the expected order of their uses.
struct Needs {
    /// Expected use, and bytes of all needs up to and including this one, without the wanted unit.
    sums: Vec<(i64, Bytes)>,
}

impl Needs {
    fn new(view: &Table, stretches: &[Stretch], want: &Want) -> Needs {
        let mut sum = Bytes::ZERO;
        let cold = stretches.iter().rev().filter(|stretch| stretch.known).flat_map(|stretch| {
            let model = view.model(stretch.model);
            let cold = model.into_iter().flat_map(|model| {
                model
                    .cold(stretch.units.clone())
                    .map(|index| (index, model.bytes(index).saturating_sub(model.kept(index))))
            });
            cold.map(|(index, bytes)| (stretch.model, index, stretch.base + i64::from(index), bytes))
        });
        let sums = cold
            .filter(|(model, index, ..)| want.unit != Some(UnitId { model: *model, index: *index }))
            .take(LOOK)
            .map(|(_, _, next_use, bytes)| {
                sum += bytes;
                (next_use, sum)
            })
            .collect();
        Needs { sums }
    }

    /// How much of what the candidate has to give is filled before it is needed again: 0 to 1. `short` bytes are
    /// missing of the `wanted`.
    fn useful(&self, candidate: &Candidate, short: Bytes, wanted: Bytes) -> f64 {
        let Some(surplus) = candidate.kept.checked_sub(short) else { return 1.0 };
        if candidate.size.is_paged() {
            return 1.0;
        }
        let mut filled = wanted;
        for (next_use, sum) in &self.sums {
            if *sum > surplus || *next_use >= candidate.next_use {
                return (filled.0 as f64 / candidate.kept.0 as f64).min(1.0);
            }
            filled = wanted + *sum;
        }
        if self.sums.len() == LOOK { 1.0 } else { (filled.0 as f64 / candidate.kept.0 as f64).min(1.0) }
    }
}

/// What must not go for a unit that is only fetched ahead: what is needed before it.
enum Spared {
    Nothing,
    /// Everything that is expected to be used at this time or sooner.
    Until(i64),
    /// The model is not announced, so its unit may come at any time, but not before the units in front of it.
    FrontOf(UnitId),
}

impl Spared {
    fn new(stretches: &[Stretch], want: &Want) -> Spared {
        let Some(unit) = want.unit.filter(|_| want.ahead) else { return Spared::Nothing };
        let stretch = stretches.iter().find(|s| s.model == unit.model && s.units.contains(&unit.index));
        match stretch.filter(|stretch| stretch.known) {
            Some(stretch) => Spared::Until(stretch.base + i64::from(unit.index)),
            None => Spared::FrontOf(unit),
        }
    }

    fn covers(&self, candidate: &Candidate) -> bool {
        match self {
            Spared::Nothing => false,
            Spared::Until(time) => candidate.next_use <= *time,
            Spared::FrontOf(unit) => candidate.unit.model == unit.model && candidate.unit.index < unit.index,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::forecast::Turn;
    use crate::table::Phase;
    use crate::units::ModelId;

    const A: ModelId = ModelId(0);
    const B: ModelId = ModelId(1);

    fn at(model: ModelId, index: u32) -> UnitId {
        UnitId { model, index }
    }

    /// Models A and B with all units in memory except `cold`.
    fn view(sizes: &[Size], cold: &[UnitId]) -> Table {
        let mut view = Table::default();
        for model in [A, B] {
            view.insert(model, format!("{model:?}"), sizes);
            for unit in (0..sizes.len() as u32).map(|i| at(model, i)).filter(|unit| !cold.contains(unit)) {
                view.set_phase(unit, Phase::Resident);
            }
        }
        view
    }

    fn plan(view: &Table, unit: UnitId, give_up: u64, ahead: bool) -> Vec<(UnitId, u64)> {
        let plan = TwoLevel.plan(view, &Want { unit: Some(unit), give_up: Bytes(give_up), ahead });
        plan.evict.iter().map(|cut| (cut.unit, cut.keep.0)).collect()
    }

    #[test]
    fn the_idle_model_goes_first_from_its_end_then_what_is_behind() {
        let mut view = view(&[Size::whole(Bytes(10)); 3], &[at(A, 2)]);
        view.arrive(at(B, 0));
        view.arrive(at(A, 1));
        assert_eq!(plan(&view, at(A, 2), 20, false), [(at(B, 2), 0), (at(B, 1), 0)]);
        let all = plan(&view, at(A, 2), 999, false);
        assert_eq!(all[2..], [(at(B, 0), 0), (at(A, 1), 0), (at(A, 0), 0)]);
    }

    #[test]
    fn paged_units_give_up_no_more_than_needed() {
        let mut view = view(&[Size::paged(Bytes(10), Bytes(4)); 3], &[at(A, 2)]);
        view.arrive(at(A, 1));
        assert_eq!(plan(&view, at(A, 2), 1, false), [(at(B, 2), 8)]);
        assert_eq!(plan(&view, at(A, 2), 13, false), [(at(B, 2), 0), (at(B, 1), 4)]);
    }

    #[test]
    fn a_head_does_not_go_for_a_layer() {
        let mut sizes = [Size::whole(Bytes(10)); 5];
        sizes[4] = Size::whole(Bytes(37));
        let mut view = view(&sizes, &[at(A, 0)]);
        view.expect(&[Turn { model: A, passes: 9 }]);
        view.remove(B);
        view.arrive(at(A, 4));
        // The head was used last, but 27 of its bytes would lie idle.
        assert_eq!(plan(&view, at(A, 0), 10, false), [(at(A, 3), 0)]);
        // For four layers it is right.
        for index in 1..4 {
            view.evicted(at(A, index), Bytes::ZERO);
        }
        assert_eq!(plan(&view, at(A, 0), 10, false), [(at(A, 4), 0)]);
    }

    #[test]
    fn nothing_that_is_needed_sooner_goes_for_a_prefetch() {
        let mut view = view(&[Size::whole(Bytes(10)); 4], &[at(A, 2), at(A, 3)]);
        view.expect(&[Turn { model: A, passes: 1 }, Turn { model: B, passes: 1 }]);
        view.arrive(at(A, 1));
        for index in 0..2 {
            view.evicted(at(A, index), Bytes::ZERO);
        }
        assert_eq!(plan(&view, at(A, 3), 10, true), [(at(B, 3), 0)]);
        assert_eq!(plan(&view, at(A, 3), 999, true).len(), 4, "all of B comes after A's last unit");
        assert_eq!(plan(&view, at(B, 1), 999, true), [(at(B, 3), 0), (at(B, 2), 0)]);
        view.remove(A);
        view.expect(&[]);
        view.evicted(at(B, 1), Bytes::ZERO);
        assert_eq!(plan(&view, at(B, 1), 999, true), [(at(B, 3), 0), (at(B, 2), 0)], "nobody announced B");
    }
}
