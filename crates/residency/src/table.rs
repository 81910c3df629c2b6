//! Who is where: every registered model, every unit's place in its life, and the orders that a policy plans from.
//!
//! This is the *view* in `plan(view, want)`. It holds no handles and no charges (`pool.rs` does), makes no decision,
//! and can be built and driven without a store. Each change costs O(log units).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::forecast::{Forecast, Turn};
use crate::units::{Bytes, ModelId, Pin, Size, State, UnitId};

/// Where a unit is, without what pins and leases add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// None or a part of it is in memory.
    Cold,
    Loading,
    Resident,
    Evicting,
}

#[derive(Clone, Debug)]
struct Unit {
    size: Size,
    /// Bytes in memory, from its front. All of them exactly if it is resident.
    kept: Bytes,
    phase: Phase,
    leases: u32,
    /// Clock of the last acquire, or of the load if it was not acquired since.
    used: u64,
}

impl Unit {
    fn evictable(&self, pinned: bool) -> bool {
        let still = matches!(self.phase, Phase::Cold | Phase::Resident);
        still && self.kept > Bytes::ZERO && self.leases == 0 && !pinned
    }
}

/// One registered model.
///
/// Invariants, checked by `Table::audit` in tests:
/// 1. `evictable` is exactly the units that are in memory, in part or as a whole, and not leased, pinned or loading.
/// 2. `cold` is exactly the units that are not in memory, in part or as a whole, and not loading.
/// 3. Only a resident unit is leased, and exactly a resident unit is in memory as a whole.
#[derive(Clone, Debug)]
pub struct Model {
    name: String,
    units: Vec<Unit>,
    pin: Pin,
    last_used: u64,
    evictable: BTreeSet<u32>,
    cold: BTreeSet<u32>,
}

impl Model {
    /// Its name, unique among registered models.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many units it has.
    pub fn len(&self) -> u32 {
        self.units.len() as u32
    }

    /// Never: a model has at least one unit.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// What stays once loaded.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// Size of a unit. Panics if there is no such unit.
    pub fn bytes(&self, index: u32) -> Bytes {
        self.units[index as usize].size.bytes
    }

    /// Size and granule of a unit. Panics if there is no such unit.
    pub fn size(&self, index: u32) -> Size {
        self.units[index as usize].size
    }

    /// Bytes of a unit that are in memory. Panics if there is no such unit.
    pub fn kept(&self, index: u32) -> Bytes {
        self.units[index as usize].kept
    }

    /// State of a unit. Panics if there is no such unit.
    pub fn state(&self, index: u32) -> State {
        let unit = &self.units[index as usize];
        match unit.phase {
            Phase::Cold if unit.kept > Bytes::ZERO => State::Partial,
            Phase::Cold => State::Cold,
            Phase::Loading => State::Loading,
            Phase::Evicting => State::Evicting,
            Phase::Resident if unit.leases > 0 => State::InUse,
            Phase::Resident if self.pin.covers(index) => State::Pinned,
            Phase::Resident => State::Resident,
        }
    }

    /// Units that may be evicted, at least in part, within `range`, ascending.
    pub fn evictable(&self, range: Range<u32>) -> impl DoubleEndedIterator<Item = u32> + '_ {
        self.evictable.range(range).copied()
    }

    /// Units that are not in memory or only in part, within `range`, ascending.
    pub fn cold(&self, range: Range<u32>) -> impl DoubleEndedIterator<Item = u32> + '_ {
        self.cold.range(range).copied()
    }

    /// Bytes of the units that the pin covers.
    pub(crate) fn pinned_bytes(&self) -> Bytes {
        self.enumerate().filter(|(i, _)| self.pin.covers(*i)).map(|(_, unit)| unit.size.bytes).sum()
    }

    /// The largest unit that the pin does not cover.
    pub(crate) fn largest_unpinned(&self) -> Bytes {
        let free = self.enumerate().filter(|(i, _)| !self.pin.covers(*i));
        free.map(|(_, unit)| unit.size.bytes).max().unwrap_or_default()
    }

    pub(crate) fn leases(&self) -> u64 {
        self.units.iter().map(|unit| u64::from(unit.leases)).sum()
    }

    fn enumerate(&self) -> impl Iterator<Item = (u32, &Unit)> {
        (0..).zip(&self.units)
    }
}

/// A run of units of one model with consecutive next uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The model.
    pub model: ModelId,
    /// Its units.
    pub units: Range<u32>,
    /// The next use of unit `i` is expected `base + i` accesses from now. May be negative as long as `base + i` is not.
    pub base: i64,
    /// Whether that is known: it is not for a model without queued requests.
    pub known: bool,
}

/// The registered models and their units: what a policy plans from.
#[derive(Clone, Debug, Default)]
pub struct Table {
    models: BTreeMap<ModelId, Model>,
    /// Evictable units by the clock of their last use.
    ages: BTreeSet<(u64, UnitId)>,
    forecast: Forecast,
    clock: u64,
    free: Bytes,
}

impl Table {
    /// Bytes that are neither reserved nor resident.
    pub fn free(&self) -> Bytes {
        self.free
    }

    /// A model, if it is registered.
    pub fn model(&self, id: ModelId) -> Option<&Model> {
        self.models.get(&id)
    }

    /// All models, in the order of registration.
    pub fn models(&self) -> impl Iterator<Item = (ModelId, &Model)> {
        self.models.iter().map(|(id, model)| (*id, model))
    }

    /// Evictable units, least recently used first.
    pub fn oldest_first(&self) -> impl Iterator<Item = UnitId> + '_ {
        self.ages.iter().map(|(_, unit)| *unit)
    }

    /// Size of a unit, if it is registered.
    pub fn bytes(&self, unit: UnitId) -> Option<Bytes> {
        Some(self.get(unit)?.size.bytes)
    }

    /// Bytes of a unit that are in memory, if it is registered.
    pub fn kept(&self, unit: UnitId) -> Option<Bytes> {
        Some(self.get(unit)?.kept)
    }

    /// What would be left of a unit if at least `give_up` bytes of it had to go, if it is registered.
    pub fn cut(&self, unit: UnitId, give_up: Bytes) -> Option<Bytes> {
        let unit = self.get(unit)?;
        Some(unit.size.cut(unit.kept, give_up))
    }

    /// State of a unit, if it is registered.
    pub fn state(&self, unit: UnitId) -> Option<State> {
        let model = self.models.get(&unit.model)?;
        (unit.index < model.len()).then(|| model.state(unit.index))
    }

    /// All units, ordered by their expected next use, farthest first:
    /// models without queued requests, least recently used first; then everything with a known next use. Within a
    /// stretch the last unit is the farthest. Stretches do not overlap in time, so walking them backwards, each from
    /// its first unit, is the expected order of the uses to come.
    pub fn farthest_first(&self) -> Vec<Stretch> {
        let starts = self.forecast.starts(|id| self.models.get(&id).map_or(0, Model::len));
        let mut known = Vec::with_capacity(starts.len() + 2);
        let mut running_id = None;
        let mut leaving = None;
        if let Some((running, model)) =
            self.forecast.running().and_then(|r| Some((r, self.models.get(&r.model)?)))
        {
            let (n, p) = (model.len(), running.position);
            let next_pass = i64::from(n) - i64::from(p);
            let again = starts.iter().find(|(id, _)| *id == running.model);
            let ahead = p.saturating_add(1).min(n);
            known.push(Stretch { model: running.model, units: ahead..n, base: -i64::from(p), known: true });
            let mut behind = Stretch { model: running.model, units: 0..ahead, base: next_pass, known: true };
            match again {
                _ if running.passes_left > 1 => known.push(behind),
                Some((_, start)) => {
                    behind.base = clamp(*start);
                    known.push(behind);
                }
                None => leaving = Some(Stretch { base: UNKNOWN, known: false, ..behind }),
            }
            running_id = Some(running.model);
        }
        for (id, start) in starts {
            if Some(id) != running_id {
                let units = 0..self.models[&id].len();
                known.push(Stretch { model: id, units, base: clamp(start), known: true });
            }
        }
        let mut queued: Vec<_> = known.iter().map(|stretch| stretch.model).collect();
        queued.sort_unstable();
        queued.dedup();
        let mut idle: Vec<_> = Vec::new();
        if queued.len() < self.models.len() {
            idle.extend(self.models().filter(|(id, _)| queued.binary_search(id).is_err()));
            idle.sort_by_key(|(id, model)| (model.last_used, *id));
        }
        let idle = idle.into_iter().map(|(id, model)| {
            let units = 0..model.len();
            Stretch { model: id, units, base: UNKNOWN, known: false }
        });
        known.sort_by_key(|stretch| std::cmp::Reverse(stretch.base + i64::from(stretch.units.start)));
        idle.chain(leaving).chain(known).collect()
    }

    /// What the forecast expects to be acquired next.
    pub(crate) fn upcoming(&self) -> Option<UnitId> {
        self.forecast.upcoming(|id| self.models.get(&id).map_or(0, Model::len))
    }

    pub(crate) fn set_free(&mut self, free: Bytes) {
        self.free = free;
    }

    pub(crate) fn expect(&mut self, turns: &[Turn]) {
        self.forecast.expect(turns);
    }

    pub(crate) fn insert(&mut self, id: ModelId, name: String, sizes: &[Size]) {
        let unit =
            |size: &Size| Unit { size: *size, kept: Bytes::ZERO, phase: Phase::Cold, leases: 0, used: 0 };
        let model = Model {
            name,
            units: sizes.iter().map(unit).collect(),
            pin: Pin::None,
            last_used: 0,
            evictable: BTreeSet::new(),
            cold: (0..sizes.len() as u32).collect(),
        };
        self.models.insert(id, model);
    }

    pub(crate) fn rename(&mut self, id: ModelId, name: &str) {
        if let Some(model) = self.models.get_mut(&id) {
            name.clone_into(&mut model.name);
        }
    }

    /// Every unit of the model must be cold by now.
    pub(crate) fn remove(&mut self, id: ModelId) {
        self.models.remove(&id);
        self.forecast.forget(id);
    }

    pub(crate) fn phase(&self, unit: UnitId) -> Phase {
        self.unit(unit).phase
    }

    /// For `Resident` all bytes are in memory from now on.
    pub(crate) fn set_phase(&mut self, unit: UnitId, phase: Phase) {
        self.change(unit, |u, clock| {
            u.phase = phase;
            match phase {
                Phase::Resident => u.kept = u.size.bytes,
                Phase::Loading => u.used = clock,
                Phase::Cold | Phase::Evicting => {}
            }
        });
    }

    /// An eviction has ended: `kept` bytes are left.
    pub(crate) fn evicted(&mut self, unit: UnitId, kept: Bytes) {
        self.change(unit, |u, _| {
            u.phase = Phase::Cold;
            u.kept = kept;
        });
    }

    pub(crate) fn is_evictable(&self, unit: UnitId) -> bool {
        self.models.get(&unit.model).is_some_and(|model| model.evictable.contains(&unit.index))
    }

    /// Units with bytes in memory that no plan may take now.
    pub(crate) fn unevictable(&self) -> Bytes {
        let held = |(_, model): (ModelId, &Model)| {
            let stuck = model.enumerate().filter(|(index, _)| !model.evictable.contains(index));
            stuck.map(|(_, unit)| unit.kept).sum::<Bytes>()
        };
        self.models().map(held).sum()
    }

    /// Bytes of leased units that are not pinned.
    pub(crate) fn in_use(&self) -> Bytes {
        let leased = |(_, model): (ModelId, &Model)| {
            let leased =
                model.enumerate().filter(|(index, unit)| unit.leases > 0 && !model.pin.covers(*index));
            leased.map(|(_, unit)| unit.kept).sum::<Bytes>()
        };
        self.models().map(leased).sum()
    }

    /// `unit` is needed now: moves the forecast and the ages.
    pub(crate) fn arrive(&mut self, unit: UnitId) {
        self.clock += 1;
        let clock = self.clock;
        self.change(unit, |u, clock| u.used = clock);
        if let Some(model) = self.models.get_mut(&unit.model) {
            model.last_used = clock;
            let n = model.len();
            self.forecast.arrive(unit, n);
        }
    }

    pub(crate) fn lease(&mut self, unit: UnitId) {
        self.change(unit, |u, _| u.leases += 1);
    }

    pub(crate) fn release(&mut self, unit: UnitId) {
        self.change(unit, |u, _| {
            u.leases = u.leases.checked_sub(1).expect("table invariant 3: a lease is returned once");
        });
    }

    pub(crate) fn set_pin(&mut self, id: ModelId, pin: Pin) {
        let Some(model) = self.models.get_mut(&id) else { return };
        model.pin = pin;
        for index in 0..model.len() {
            self.change(UnitId { model: id, index }, |_, _| ());
        }
    }

    fn unit(&self, unit: UnitId) -> &Unit {
        &self.models[&unit.model].units[unit.index as usize]
    }

    fn get(&self, unit: UnitId) -> Option<&Unit> {
        self.models.get(&unit.model)?.units.get(unit.index as usize)
    }

    /// Changes a unit and puts it back into the orders it belongs to.
    fn change(&mut self, id: UnitId, change: impl FnOnce(&mut Unit, u64)) {
        let Some(model) = self.models.get_mut(&id.model) else { return };
        let pinned = model.pin.covers(id.index);
        let unit = &mut model.units[id.index as usize];
        let was = (unit.phase, unit.used);
        change(unit, self.clock);
        let evictable = unit.evictable(pinned);
        if was != (unit.phase, unit.used) || !evictable {
            self.ages.remove(&(was.1, id));
        }
        if evictable {
            self.ages.insert((unit.used, id));
            model.evictable.insert(id.index);
        } else {
            model.evictable.remove(&id.index);
        }
        if unit.phase == Phase::Cold {
            model.cold.insert(id.index);
        } else {
            model.cold.remove(&id.index);
        }
    }

    /// Compares the orders with the units; for tests.
    #[doc(hidden)]
    pub fn audit(&self) {
        let mut evictable = 0;
        for (id, model) in self.models() {
            for (index, unit) in model.enumerate() {
                let resident = unit.phase == Phase::Resident;
                let quiet = resident || unit.phase == Phase::Cold;
                let free = quiet && unit.kept.0 > 0 && unit.leases == 0 && !model.pin.covers(index);
                assert_eq!(model.evictable.contains(&index), free, "table invariant 1 at {id:?} {index}");
                let aged = self.ages.contains(&(unit.used, UnitId { model: id, index }));
                assert_eq!(aged, free, "table invariant 1 (ages) at {id:?} {index}");
                let cold = unit.phase == Phase::Cold;
                assert_eq!(model.cold.contains(&index), cold, "table invariant 2 at {id:?} {index}");
                assert!(unit.leases == 0 || resident, "table invariant 3 at {id:?} {index}");
                let all = unit.kept == unit.size.bytes;
                assert!(all || !resident, "table invariant 3 at {id:?} {index}");
                let ending = unit.phase == Phase::Evicting || unit.kept.0 == 0;
                assert!(!all || resident || ending, "table invariant 3 at {id:?} {index}");
                evictable += u32::from(free) as usize;
            }
        }
        assert_eq!(self.ages.len(), evictable, "table invariant 1: ages without a unit");
    }
}

/// The base of a stretch whose next use nobody announced.
const UNKNOWN: i64 = i64::MAX / 2;

fn clamp(n: u64) -> i64 {
    // Room for `base + i` to stay below the "unknown" stretches.
    n.min(1 << 60) as i64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const A: ModelId = ModelId(0);
    const B: ModelId = ModelId(1);
    const C: ModelId = ModelId(2);

    fn table() -> Table {
        let mut table = Table::default();
        for (id, name) in [(A, "a"), (B, "b"), (C, "c")] {
            table.insert(id, name.into(), &[Size::paged(Bytes(10), Bytes(4)); 4]);
        }
        table
    }

    fn at(model: ModelId, index: u32) -> UnitId {
        UnitId { model, index }
    }

    fn order(table: &Table) -> String {
        let name = |id| table.model(id).unwrap().name().to_owned();
        let units = |s: Stretch| s.units.rev().map(move |i| format!("{}{i}", name(s.model)));
        table.farthest_first().into_iter().flat_map(units).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn invariants_1_2_3_orders_follow_every_change() {
        let mut table = table();
        let unit = at(A, 1);
        for phase in [Phase::Loading, Phase::Resident] {
            table.set_phase(unit, phase);
            table.audit();
        }
        assert_eq!(table.oldest_first().collect::<Vec<_>>(), [unit]);
        table.arrive(unit);
        table.lease(unit);
        table.lease(unit);
        table.audit();
        assert_eq!(table.state(unit), Some(State::InUse));
        table.release(unit);
        assert_eq!(table.oldest_first().count(), 0);
        table.release(unit);
        table.audit();
        assert_eq!(table.oldest_first().count(), 1);
        table.set_pin(A, Pin::Head(2));
        table.audit();
        assert_eq!(table.state(unit), Some(State::Pinned));
        assert_eq!(table.model(A).unwrap().evictable(0..4).count(), 0);
        table.set_pin(A, Pin::None);
        table.set_phase(unit, Phase::Evicting);
        table.audit();
        table.evicted(unit, Bytes(4));
        table.audit();
        assert_eq!(table.state(unit), Some(State::Partial));
        assert_eq!(table.cut(unit, Bytes(1)), Some(Bytes::ZERO));
        assert_eq!(table.model(A).unwrap().evictable(0..4).count(), 1);
        table.evicted(unit, Bytes::ZERO);
        table.audit();
        assert_eq!(table.model(A).unwrap().cold(0..4).count(), 4);
    }

    #[test]
    fn idle_models_go_first_least_recently_used_first_last_layer_first() {
        let mut table = table();
        for unit in [at(C, 0), at(B, 0), at(A, 0), at(A, 1)] {
            table.arrive(unit);
        }
        assert_eq!(order(&table), "c3 c2 c1 c0 b3 b2 b1 b0 a1 a0 a3 a2");
    }

    #[test]
    fn queued_models_are_ranked_by_their_turn() {
        let mut table = table();
        let turn = |model, passes| Turn { model, passes };
        table.expect(&[turn(A, 2), turn(B, 1), turn(C, 1)]);
        table.arrive(at(A, 0));
        table.arrive(at(A, 1));
        // First of two passes: the units behind come round before the other models' turns.
        assert_eq!(order(&table), "c3 c2 c1 c0 b3 b2 b1 b0 a1 a0 a3 a2");
        table.arrive(at(A, 0));
        table.arrive(at(A, 1));
        // Last pass: the units behind wait for the model's next turn.
        assert_eq!(order(&table), "a1 a0 c3 c2 c1 c0 b3 b2 b1 b0 a3 a2");
        table.arrive(at(B, 0));
        assert_eq!(order(&table), "b0 a3 a2 a1 a0 c3 c2 c1 c0 b3 b2 b1");
        table.remove(A);
        assert_eq!(order(&table), "b0 c3 c2 c1 c0 b3 b2 b1");
    }

    #[test]
    fn a_model_that_left_the_queue_is_idle_behind_its_position() {
        let mut table = table();
        table.arrive(at(A, 1));
        table.expect(&[Turn { model: B, passes: 1 }]);
        assert_eq!(order(&table), "c3 c2 c1 c0 a1 a0 b3 b2 b1 b0 a3 a2");
    }

    #[test]
    fn unknown_units_are_none() {
        let table = table();
        assert_eq!(table.bytes(at(A, 4)), None);
        assert_eq!(table.state(at(ModelId(9), 0)), None);
    }
}
