//! How the pool carries things out: making room, starting and ending loads, evicting, and keeping the books of it.

use std::time::{Duration, Instant};

use super::{Pool, Slot};
use crate::error::{Error, Subject};
use crate::ledger::{Books, Charge, Class};
use crate::policy::{Cut, Plan, Want};
use crate::stats::{Event, Stats};
use crate::store::{Finished, Started, Store};
use crate::table::{Phase, Table};
use crate::units::{Bytes, ModelId, UnitId};

impl<S: Store> Pool<S> {
    pub(super) fn known(&self, unit: UnitId) -> Result<Bytes, Error> {
        let model = self.table.model(unit.model).ok_or(Error::UnknownModel(unit.model))?;
        self.table.bytes(unit).ok_or(Error::UnknownUnit { unit, units: model.len() })
    }

    pub(super) fn name(&self, model: ModelId) -> String {
        self.table.model(model).map_or_else(String::new, |model| model.name().to_owned())
    }

    pub(super) fn bring_in(&mut self, unit: UnitId, bytes: Bytes) -> Result<(), Error> {
        let mut tried = false;
        self.awaited = Some(unit);
        self.failure = None;
        loop {
            match self.table.phase(unit) {
                Phase::Loading => self.wait_for_any(),
                Phase::Cold if !tried => {
                    tried = true;
                    self.failure = None;
                    if !self.start(unit, bytes, false)? {
                        return Err(self.in_the_way(Subject::Unit(unit, self.name(unit.model)), bytes));
                    }
                }
                Phase::Cold => {
                    let reason = self.failure.take().unwrap_or_else(|| "the store gave no reason".into());
                    return Err(Error::LoadFailed { unit, model: self.name(unit.model), bytes, reason });
                }
                Phase::Resident | Phase::Evicting => return Ok(()),
            }
        }
    }

    /// Makes room for what is missing of a unit and starts its load. False if there is no room.
    pub(super) fn start(&mut self, unit: UnitId, bytes: Bytes, ahead: bool) -> Result<bool, Error> {
        let have = self.table.kept(unit).unwrap_or_default();
        let missing = bytes.saturating_sub(have);
        loop {
            if !self.make_room(Some(unit), missing, ahead) {
                return Ok(false);
            }
            let Ok(charge) = self.ledger.reserve(Class::Weights, missing) else { return Ok(false) };
            let began = Instant::now();
            match self.store.load(unit, have.0..bytes.0) {
                Ok(Started::NoPlace) => {
                    drop(charge);
                    let plan = self.plan(Want { unit: Some(unit), give_up: Bytes(1), ahead });
                    if plan.frees > Bytes::ZERO {
                        self.count(unit.model, |stats| stats.evictions_for_place += plan.evict.len() as u64);
                        self.carry_out(plan);
                    } else if ahead {
                        return Ok(false);
                    } else if self.loading > 0 {
                        self.wait_for_any();
                    } else {
                        let free = self.ledger.books().free();
                        return Err(Error::NoPlace { unit, model: self.name(unit.model), need: bytes, free });
                    }
                }
                Ok(started) => {
                    self.held += missing;
                    self.loading += 1;
                    let held = self.slots.remove(&unit).and_then(|slot| slot.charge);
                    self.slots.insert(unit, Slot { charge: held, coming: Some(charge), handle: None, ahead });
                    self.step(unit, Duration::ZERO, |table| table.set_phase(unit, Phase::Loading));
                    if let Started::Ready(handle) = started {
                        self.finish(Finished { unit, result: Ok(handle), took: began.elapsed() });
                    }
                    return Ok(true);
                }
                Err(reason) => {
                    drop(charge);
                    self.count(unit.model, |stats| stats.failed_loads += 1);
                    return Err(Error::LoadFailed { unit, model: self.name(unit.model), bytes, reason });
                }
            }
        }
    }

    /// Evicts until `need` bytes are free. If that takes a load under way to end first, waits for it, unless `ahead`.
    pub(super) fn make_room(&mut self, unit: Option<UnitId>, need: Bytes, ahead: bool) -> bool {
        loop {
            let give_up = need.saturating_sub(self.ledger.books().free());
            if give_up == Bytes::ZERO {
                return true;
            }
            let plan = self.plan(Want { unit, give_up, ahead });
            if plan.frees >= give_up {
                self.carry_out(plan);
            } else if ahead || self.loading == 0 {
                return false;
            } else {
                self.wait_for_any();
            }
        }
    }

    pub(super) fn plan(&mut self, want: Want) -> Plan {
        self.table.set_free(self.ledger.books().free());
        self.policy.plan(&self.table, &want)
    }

    pub(super) fn carry_out(&mut self, plan: Plan) {
        let before = self.held;
        for cut in plan.evict {
            self.evict(cut);
        }
        let freed = before.saturating_sub(self.held);
        assert_eq!(freed, plan.frees, "pool invariant 2: the policy's plan does not free what it says");
    }

    pub(super) fn evict(&mut self, Cut { unit, keep }: Cut) {
        let free = self.table.is_evictable(unit);
        assert!(free, "pool invariant 2: {unit} is {:?}, not free to be evicted", self.table.state(unit));
        let give_up = self.table.kept(unit).unwrap_or_default().saturating_sub(keep);
        let cut = self.table.cut(unit, give_up);
        assert_eq!(cut, Some(keep), "pool invariant 2: {unit} cannot be cut there");
        let began = Instant::now();
        self.step(unit, Duration::ZERO, |table| table.set_phase(unit, Phase::Evicting));
        let slot = self.slots.get_mut(&unit).expect("pool invariant 1: a unit in memory has a slot");
        slot.handle = None;
        self.store.evict(unit, keep);
        let charge = slot.charge.as_mut().expect("pool invariant 1: a unit in memory has a charge");
        let freed = charge.bytes().saturating_sub(keep);
        charge.shrink_to(keep);
        if keep == Bytes::ZERO {
            self.slots.remove(&unit);
        }
        self.held = self.held.saturating_sub(freed);
        self.count(unit.model, |stats| {
            stats.evictions += 1;
            stats.bytes_evicted += freed;
        });
        self.step(unit, began.elapsed(), |table| table.evicted(unit, keep));
    }

    pub(super) fn wait_for_any(&mut self) {
        if let Some(finished) = self.store.wait() {
            self.finish(finished);
        } else {
            let lost: Vec<_> =
                self.slots.iter().filter(|(_, s)| s.coming.is_some()).map(|(u, _)| *u).collect();
            for unit in lost {
                let result = Err("the store has stopped loading".into());
                self.finish(Finished { unit, result, took: Duration::ZERO });
            }
        }
        for unit in self.returns.drain() {
            self.step(unit, Duration::ZERO, |table| table.release(unit));
        }
    }

    pub(super) fn finish(&mut self, finished: Finished<S::Handle>) {
        let Finished { unit, result, took } = finished;
        let slot = self.slots.get_mut(&unit);
        let coming = slot.and_then(|slot| Some((slot.coming.take()?, slot)));
        let Some((mut coming, slot)) = coming else {
            panic!("pool invariant 1: the store has finished {unit}, which is not loading")
        };
        let bytes = coming.bytes();
        self.loading -= 1;
        let phase = match result {
            Ok(handle) => {
                coming.commit();
                match &mut slot.charge {
                    Some(charge) => charge.absorb(coming).expect("pool invariant 1: charges of one ledger"),
                    none => *none = Some(coming),
                }
                slot.handle = Some(handle);
                self.count(unit.model, |stats| {
                    stats.loads += 1;
                    stats.bytes_loaded += bytes;
                    stats.load_time += took;
                });
                Phase::Resident
            }
            Err(reason) => {
                drop(coming);
                if slot.charge.is_none() {
                    self.slots.remove(&unit);
                }
                self.held = self.held.saturating_sub(bytes);
                if self.awaited == Some(unit) {
                    self.failure = Some(reason);
                }
                self.count(unit.model, |stats| stats.failed_loads += 1);
                Phase::Cold
            }
        };
        self.step(unit, took, |table| table.set_phase(unit, phase));
    }

    /// Changes a unit in the table and tells the subscribers if its state is another one then.
    pub(super) fn step(&mut self, unit: UnitId, took: Duration, change: impl FnOnce(&mut Table)) {
        let from = self.table.state(unit);
        change(&mut self.table);
        if self.subscribers.is_empty() {
            return;
        }
        let (Some(from), Some(to), Some(bytes)) = (from, self.table.state(unit), self.table.bytes(unit))
        else {
            return;
        };
        if from != to {
            let kept = self.table.kept(unit).unwrap_or_default();
            let used = self.ledger.books().used();
            let event = Event { at: self.made.elapsed(), unit, bytes, kept, from, to, took, used };
            self.subscribers.iter_mut().for_each(|callback| callback(&event));
        }
    }

    pub(super) fn count(&mut self, model: ModelId, count: impl Fn(&mut Stats)) {
        count(&mut self.total);
        if let Some(stats) = self.stats.get_mut(&model) {
            count(stats);
        }
    }

    pub(super) fn charged(&self, books: &Books) -> Bytes {
        books.used().saturating_sub(self.held)
    }

    pub(super) fn recount(&mut self) {
        self.pinned = self.table.models().map(|(_, model)| model.pinned_bytes()).sum();
        self.largest_unpinned =
            self.table.models().map(|(_, model)| model.largest_unpinned()).max().unwrap_or_default();
    }

    /// What no plan can free now.
    pub(super) fn unevictable(&self) -> Bytes {
        self.charged(&self.ledger.books()) + self.table.unevictable()
    }

    /// The error when leases are in the way.
    pub(super) fn in_the_way(&self, subject: Subject, need: Bytes) -> Error {
        self.over_budget(subject, need, self.ledger.books().budget, self.unevictable() + need)
    }

    pub(super) fn over_budget(
        &self,
        subject: Subject,
        need: Bytes,
        budget: Bytes,
        smallest_budget: Bytes,
    ) -> Error {
        let in_use = self.table.in_use();
        let charged = self.charged(&self.ledger.books());
        Error::OverBudget { subject, need, budget, charged, pinned: self.pinned, in_use, smallest_budget }
    }

    /// Compares all books with each other; for tests.
    #[doc(hidden)]
    pub fn audit(&self) {
        self.table.audit();
        let books = self.ledger.books();
        let (mut loading, mut resident) = (Bytes::ZERO, Bytes::ZERO);
        for (unit, slot) in &self.slots {
            let kept = slot.charge.as_ref().map_or(Bytes::ZERO, Charge::bytes);
            let coming = slot.coming.as_ref().map_or(Bytes::ZERO, Charge::bytes);
            assert_eq!(Some(kept), self.table.kept(*unit), "pool invariant 1");
            let phase = self.table.phase(*unit);
            assert_eq!(slot.coming.is_some(), phase == Phase::Loading, "pool invariant 1");
            assert_eq!(slot.handle.is_some(), phase == Phase::Resident, "pool invariant 1");
            assert!(
                phase != Phase::Loading || self.table.bytes(*unit) == Some(kept + coming),
                "pool invariant 1"
            );
            loading += coming;
            resident += kept;
        }
        assert_eq!(self.held, loading + resident, "pool invariant 1");
        assert_eq!(books.reserved(Class::Weights), loading, "pool invariant 1");
        assert!(books.resident(Class::Weights) >= resident, "pool invariant 1");
        assert_eq!(
            self.slots.values().filter(|s| s.coming.is_some()).count(),
            self.loading,
            "pool invariant 1"
        );
        for (id, model) in self.table.models() {
            for index in 0..model.len() {
                let unit = UnitId { model: id, index };
                let held = self.slots.contains_key(&unit) || model.kept(index) == Bytes::ZERO;
                assert!(held, "pool invariants 1 and 4");
            }
        }
        assert!(self.smallest_budget() <= books.budget, "pool invariant 3");
    }
}
