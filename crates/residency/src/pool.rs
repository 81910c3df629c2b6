//! One memory and everybody in it: hands out leases, carries plans out through a [`Store`], keeps the ledger.
//!
//! The pool decides nothing (the policy does) and touches no byte (the store does); `pool/carry.rs` has the machinery. It belongs to one thread; leases
//! and charges may be dropped on any.
//!
//! A forward pass, with the next unit coming in while this one computes:
//! ```text
//! let mut lease = pool.acquire(first)?;
//! for next in rest {
//!     pool.prefetch(next)?;          // starts the load, evicting what is needed latest
//!     compute(&lease);
//!     drop(lease);                   // after the fence
//!     lease = pool.acquire(next)?;   // waits only for what is left of the load
//! }
//! ```

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::{Error, Reason, Subject};
use crate::forecast::Turn;
use crate::lease::{Lease, Returns};
use crate::ledger::{Books, Charge, Class, Ledger};
use crate::policy::{Cut, Policy, Want};
use crate::stats::{Event, Stats};
use crate::store::Store;
use crate::table::{Model, Phase, Table};
use crate::units::{Bytes, ModelId, Pin, Size, UnitId};

/// What became of a [`Pool::prefetch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// It is in memory.
    Resident,
    /// It is on its way.
    Loading,
    /// Nothing may go for it now: all is leased, pinned, loading or needed sooner. `acquire` will bring it in.
    NoRoom,
}

/// What the pool holds for a unit that is in memory, in part or as a whole, or loading.
struct Slot<H> {
    /// For the bytes in memory, if there are any.
    charge: Option<Charge>,
    /// For the bytes under way.
    coming: Option<Charge>,
    /// If it is in memory as a whole.
    handle: Option<H>,
    /// Brought in by a prefetch and not acquired since.
    ahead: bool,
}

type Callback = Box<dyn FnMut(&Event) + Send>;

/// The units of several models in one memory.
///
/// Invariants; breaking one panics with its number:
/// 1. Each unit holds in the ledger exactly the bytes of it that are in memory or under way.
/// 2. A leased unit is not evicted, nor is a pinned one while its model is registered and pinned.
/// 3. charges + pins + the largest unit that is not pinned ≤ budget. So an acquire without other leases always finds
///    room: what would break this is refused when it is asked for, not in the middle of a pass.
/// 4. After a failed load the unit is as it was before, and the bytes that should have come are free.
pub struct Pool<S: Store> {
    store: S,
    policy: Box<dyn Policy>,
    ledger: Ledger,
    table: Table,
    slots: HashMap<UnitId, Slot<S::Handle>>,
    returns: Returns,
    next_id: u32,
    /// Bytes of `slots`.
    held: Bytes,
    loading: usize,
    /// Bytes that pins cover, and the largest unit that none covers.
    pinned: Bytes,
    largest_unpinned: Bytes,
    /// The unit that `acquire` brings in, and why its last load failed. Other loads may fail beside it.
    awaited: Option<UnitId>,
    failure: Option<Reason>,
    stats: HashMap<ModelId, Stats>,
    total: Stats,
    subscribers: Vec<Callback>,
    made: Instant,
}

impl<S: Store> Pool<S> {
    /// An empty pool over `store`, which may hold `budget` bytes, charges included.
    pub fn new(store: S, budget: Bytes, policy: Box<dyn Policy>) -> Pool<S> {
        Pool {
            store,
            policy,
            ledger: Ledger::new(budget),
            table: Table::default(),
            slots: HashMap::new(),
            returns: Returns::default(),
            next_id: 0,
            held: Bytes::ZERO,
            loading: 0,
            pinned: Bytes::ZERO,
            largest_unpinned: Bytes::ZERO,
            awaited: None,
            failure: None,
            stats: HashMap::new(),
            total: Stats::default(),
            subscribers: Vec::new(),
            made: Instant::now(),
        }
    }

    // ---- models ----

    /// Makes a model known: its units' sizes in the order in which a pass uses them. Nothing is loaded. Refused if its
    /// largest unit could not be loaded beside the present charges and pins ([`crate::split`] makes smaller units).
    pub fn register(&mut self, name: &str, units: &[Size]) -> Result<ModelId, Error> {
        self.settle();
        if self.find(name).is_some() {
            return Err(Error::NameTaken { name: name.to_owned() });
        }
        if units.is_empty() || u32::try_from(units.len()).is_err() {
            return Err(Error::UnitCount { name: name.to_owned(), units: units.len() });
        }
        if let Some(index) = units.iter().position(|unit| unit.bytes == Bytes::ZERO) {
            return Err(Error::EmptyUnit { name: name.to_owned(), index });
        }
        let largest = units.iter().map(|unit| unit.bytes).max().unwrap_or_default();
        let books = self.ledger.books();
        let floor = self.charged(&books) + self.pinned + self.largest_unpinned.max(largest);
        if floor > books.budget {
            return Err(self.over_budget(Subject::Model(name.to_owned()), largest, books.budget, floor));
        }
        let id = ModelId(self.next_id);
        self.next_id = self.next_id.checked_add(1).expect("model ids last for 4 billion registrations");
        self.table.insert(id, name.to_owned(), units);
        self.stats.insert(id, Stats::default());
        self.recount();
        Ok(id)
    }

    /// Forgets a model and evicts all of it, pinned or not. Waits for its loads under way. Refused while it is leased.
    pub fn unregister(&mut self, model: ModelId) -> Result<(), Error> {
        self.settle();
        let known = self.table.model(model).ok_or(Error::UnknownModel(model))?;
        let leases = known.leases();
        if leases > 0 {
            return Err(Error::ModelInUse { model: known.name().to_owned(), leases });
        }
        let units: Vec<_> = (0..known.len()).map(|index| UnitId { model, index }).collect();
        while units.iter().any(|unit| self.table.phase(*unit) == Phase::Loading) {
            self.wait_for_any();
        }
        self.table.set_pin(model, Pin::None);
        for unit in units {
            if self.slots.contains_key(&unit) {
                self.evict(Cut { unit, keep: Bytes::ZERO });
            }
        }
        self.table.remove(model);
        self.stats.remove(&model);
        self.recount();
        Ok(())
    }

    /// Evicts all of a model that is neither leased nor pinned. Waits for its loads under way. The bytes that went.
    pub fn unload(&mut self, model: ModelId) -> Result<Bytes, Error> {
        self.settle();
        let units = self.table.model(model).ok_or(Error::UnknownModel(model))?.len();
        let unit = |index| UnitId { model, index };
        while (0..units).any(|index| self.table.phase(unit(index)) == Phase::Loading) {
            self.wait_for_any();
        }
        let before = self.held;
        let going: Vec<u32> =
            self.table.model(model).map_or_else(Vec::new, |m| m.evictable(0..units).collect());
        for index in going {
            self.evict(Cut { unit: unit(index), keep: Bytes::ZERO });
        }
        Ok(before.saturating_sub(self.held))
    }

    /// Evicts one unit, for a store that needs that very place for something else. False, and nothing happens, if it is leased,
    /// pinned, loading or not there.
    pub fn evict_one(&mut self, unit: UnitId) -> bool {
        self.settle();
        let there = self.table.is_evictable(unit);
        if there {
            self.evict(Cut { unit, keep: Bytes::ZERO });
        }
        there
    }

    /// Gives a model another name, which no other model has.
    pub fn rename(&mut self, model: ModelId, name: &str) -> Result<(), Error> {
        self.table.model(model).ok_or(Error::UnknownModel(model))?;
        if self.find(name).is_some_and(|other| other != model) {
            return Err(Error::NameTaken { name: name.to_owned() });
        }
        self.table.rename(model, name);
        Ok(())
    }

    /// The registered model of that name.
    pub fn find(&self, name: &str) -> Option<ModelId> {
        self.table.models().find(|(_, model)| model.name() == name).map(|(id, _)| id)
    }

    /// Pins units of a model, in place of its former pin. They stay once they are loaded; nothing is loaded here
    /// (prefetch them to have them at once). Refused if too little would be left for the units that are not pinned.
    pub fn pin(&mut self, model: ModelId, pin: Pin) -> Result<(), Error> {
        self.settle();
        let before = self.table.model(model).ok_or(Error::UnknownModel(model))?.pin();
        self.table.set_pin(model, pin);
        self.recount();
        let books = self.ledger.books();
        let smallest_budget = self.smallest_budget();
        if smallest_budget <= books.budget {
            return Ok(());
        }
        let (pinned, largest_unpinned) = (self.pinned, self.largest_unpinned);
        let need = self.table.model(model).map_or(Bytes::ZERO, Model::pinned_bytes);
        self.table.set_pin(model, before);
        self.recount();
        Err(Error::PinTooBig {
            model: self.name(model),
            need,
            budget: books.budget,
            charged: self.charged(&books),
            other_pins: pinned.saturating_sub(need),
            largest_unpinned,
            smallest_budget,
        })
    }

    /// Tells the policy what the scheduler is going to run, soonest first, starting with the passes that have not
    /// begun. The pool follows the list by itself; when it ends it is taken to repeat. Give a new list whenever the
    /// queue changes. Models that are not in it are taken to be idle. Without a list, the running model is taken to
    /// go on for good.
    pub fn expect(&mut self, turns: &[Turn]) {
        self.table.expect(turns);
    }

    // ---- units ----

    /// The unit, in memory, for as long as the lease lives. Brings it in if need be and waits for it. A failed
    /// prefetch is tried once more here before it counts.
    pub fn acquire(&mut self, unit: UnitId) -> Result<Lease<S::Handle>, Error> {
        self.settle();
        let bytes = self.known(unit)?;
        self.table.arrive(unit);
        let found = self.table.phase(unit);
        let mut stall = Duration::ZERO;
        if found != Phase::Resident {
            let began = Instant::now();
            let outcome = self.bring_in(unit, bytes);
            stall = began.elapsed();
            if let Err(error) = outcome {
                self.count(unit.model, |stats| stats.refused += 1);
                return Err(error);
            }
        }
        let slot = self.slots.get_mut(&unit).expect("pool invariant 1: a resident unit has a slot");
        let ahead = std::mem::take(&mut slot.ahead);
        let handle = slot.handle.clone().expect("pool invariant 1: a resident unit has a handle");
        self.count(unit.model, |stats| {
            stats.stall += stall;
            match found {
                Phase::Resident if ahead => stats.prefetched += 1,
                Phase::Resident => stats.hits += 1,
                Phase::Loading if ahead => stats.late += 1,
                _ => stats.misses += 1,
            }
        });
        self.step(unit, stall, |table| table.lease(unit));
        Ok(Lease::new(handle, unit, bytes, self.returns.clone()))
    }

    /// The unit that is expected to be acquired after the one that was acquired last: the one to prefetch. That is the
    /// next one of the running model's pass; after its last unit the first one again, if the turn has more passes or
    /// nobody said how many; else the first unit of the registered model whose turn comes next. `None` if there is no
    /// such turn, and if nothing was acquired and no turn announced.
    pub fn upcoming(&self) -> Option<UnitId> {
        self.table.upcoming()
    }

    /// Starts bringing the unit in, if it is cold and there is room for it without giving up what is needed sooner.
    /// Several may be under way. A load that fails later is counted and traced; `acquire` will try again.
    pub fn prefetch(&mut self, unit: UnitId) -> Result<Prefetch, Error> {
        self.settle();
        let bytes = self.known(unit)?;
        match self.table.phase(unit) {
            Phase::Cold if self.start(unit, bytes, true)? => {}
            Phase::Cold => return Ok(Prefetch::NoRoom),
            _ => {}
        }
        Ok(if self.table.phase(unit) == Phase::Loading { Prefetch::Loading } else { Prefetch::Resident })
    }

    // ---- room for other things ----

    /// Reserves room for something that is no unit, evicting units as needed. Allocate, then [`Charge::commit`].
    /// Refused if a unit could not be loaded any more beside it.
    pub fn charge(&mut self, class: Class, bytes: Bytes) -> Result<Charge, Error> {
        self.settle();
        let books = self.ledger.books();
        let subject = Subject::Charge(class);
        let floor = self.smallest_budget() + bytes;
        if floor > books.budget {
            return Err(self.over_budget(subject, bytes, books.budget, floor));
        }
        if !self.make_room(None, bytes, false) {
            return Err(self.in_the_way(subject, bytes));
        }
        self.ledger.reserve(class, bytes).map_err(|_| self.in_the_way(subject, bytes))
    }

    /// Changes the budget, evicting as needed; all or nothing. A smaller budget is refused, with numbers and nothing
    /// evicted, if charges, pins and the largest unit would not fit, or if leases stand in the way *now*: the engine
    /// holds none between two tokens and asks again there. That keeps the promise simple: the budget that
    /// [`Pool::books`] shows holds at every instant.
    pub fn set_budget(&mut self, budget: Bytes) -> Result<(), Error> {
        self.settle();
        let floor = self.smallest_budget();
        if floor > budget {
            return Err(self.over_budget(Subject::Budget, floor, budget, floor));
        }
        while self.loading > 0 && self.ledger.books().used() > budget {
            self.wait_for_any();
        }
        let surplus = self.ledger.books().used().saturating_sub(budget);
        let plan = self.plan(Want { unit: None, give_up: surplus, ahead: false });
        if plan.frees < surplus {
            let fixed = self.unevictable();
            return Err(self.over_budget(Subject::Budget, fixed, budget, fixed.max(floor)));
        }
        self.carry_out(plan);
        let books = self.ledger.books();
        self.ledger.set_budget(budget).map_err(|short| {
            // Only a charge of the same ledger could have come between; there is no other owner.
            self.over_budget(Subject::Budget, short.used, books.budget, short.used)
        })
    }

    /// The smallest budget that the present charges, pins and models can work with, one unit at a time.
    pub fn smallest_budget(&self) -> Bytes {
        self.charged(&self.ledger.books()) + self.pinned + self.largest_unpinned
    }

    // ---- looking at it ----

    /// Takes note of finished loads and dropped leases. Every other call does so first; for idle loops.
    pub fn settle(&mut self) {
        for unit in self.returns.drain() {
            self.step(unit, Duration::ZERO, |table| table.release(unit));
        }
        while self.loading > 0 {
            let Some(finished) = self.store.poll() else { break };
            self.finish(finished);
        }
    }

    /// The ledger's numbers.
    pub fn books(&self) -> Books {
        self.ledger.books()
    }

    /// Counters of all models since the pool was made, unregistered ones included.
    pub fn stats(&self) -> Stats {
        self.total
    }

    /// Counters of one model since it was registered.
    pub fn model_stats(&self, model: ModelId) -> Option<Stats> {
        self.stats.get(&model).copied()
    }

    /// Models, sizes, pins and states: the memory map.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The policy's name.
    pub fn policy(&self) -> &'static str {
        self.policy.name()
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The store, to change its settings. Loading or evicting behind the pool's back breaks the ledger's promise.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Calls `callback` at each change of a unit's state, from inside the pool's calls: it must be quick, and should
    /// drop events rather than wait if it passes them on to a slow reader.
    pub fn subscribe(&mut self, callback: impl FnMut(&Event) + Send + 'static) {
        self.subscribers.push(Box::new(callback));
    }
}

mod carry;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
