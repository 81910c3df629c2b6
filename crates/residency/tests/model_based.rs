//! Random traces of every call against a naive model, with stores that are slow, fail, or have no place; every
//! invariant is checked after every step.
//!
//! The model (`Naive`) knows sizes, leases, pins and charges, and says of each request whether it must be granted. It
//! does not know the policy: whatever that evicts has to respect the same rules, which the store checks.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use nexaquant_residency::*;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

// ---- the naive model ----

#[derive(Default)]
struct Naive {
    budget: u64,
    models: BTreeMap<ModelId, (Vec<u64>, Pin)>,
    leases: HashMap<UnitId, u32>,
    charged: u64,
}

impl Naive {
    fn pinned(&self, unit: UnitId) -> bool {
        self.models[&unit.model].1.covers(unit.index)
    }

    /// What must fit at any time, with these models.
    fn floor(models: &BTreeMap<ModelId, (Vec<u64>, Pin)>, charged: u64) -> u64 {
        let (mut pinned, mut largest) = (0, 0);
        for (sizes, pin) in models.values() {
            for (i, size) in (0..).zip(sizes) {
                if pin.covers(i) { pinned += size } else { largest = largest.max(*size) }
            }
        }
        charged + pinned + largest
    }

    /// What cannot be evicted, `but` apart: charges, and units in memory that are leased or pinned.
    fn stuck(&self, held: &HashMap<UnitId, u64>, but: Option<UnitId>) -> u64 {
        let stuck = held.iter().filter(|(unit, _)| {
            let leased = self.leases.get(unit).is_some_and(|n| *n > 0);
            Some(**unit) != but && (leased || self.pinned(**unit))
        });
        self.charged + stuck.map(|(_, bytes)| bytes).sum::<u64>()
    }

    fn may_acquire(&self, held: &HashMap<UnitId, u64>, unit: UnitId) -> bool {
        let size = self.models[&unit.model].0[unit.index as usize];
        held.get(&unit) == Some(&size) || self.stuck(held, Some(unit)) + size <= self.budget
    }

    fn may_charge(&self, held: &HashMap<UnitId, u64>, bytes: u64) -> bool {
        Naive::floor(&self.models, self.charged) + bytes <= self.budget
            && self.stuck(held, None) + bytes <= self.budget
    }

    fn may_budget(&self, held: &HashMap<UnitId, u64>, budget: u64) -> bool {
        Naive::floor(&self.models, self.charged) <= budget && self.stuck(held, None) <= budget
    }

    fn may_register(&self, sizes: &[u64]) -> bool {
        let mut models = self.models.clone();
        models.insert(ModelId(u32::MAX), (sizes.to_vec(), Pin::None));
        Naive::floor(&models, self.charged) <= self.budget
    }

    fn may_pin(&self, model: ModelId, pin: Pin) -> bool {
        let mut models = self.models.clone();
        models.get_mut(&model).unwrap().1 = pin;
        Naive::floor(&models, self.charged) <= self.budget
    }
}

// ---- the store ----

/// Bytes of each unit in memory, loading included; the handle carries the unit.
#[derive(Default)]
struct Memory {
    held: HashMap<UnitId, u64>,
    leased: HashSet<UnitId>,
    pinned: HashSet<UnitId>,
    /// Units on their way, and what they had before.
    pending: Vec<(UnitId, u64)>,
    calls: u64,
    /// The call that fails, or every n-th one.
    fail_at: Option<u64>,
    fail_every: u64,
    slow: bool,
    no_place: u64,
    rng: u64,
}

impl Memory {
    fn fails(&mut self) -> bool {
        self.calls += 1;
        self.fail_at == Some(self.calls)
            || (self.fail_every > 0 && self.calls.is_multiple_of(self.fail_every))
    }

    fn random(&mut self, n: u64) -> u64 {
        let mut rng = Rng(self.rng);
        let value = rng.below(n);
        self.rng = rng.0;
        value
    }

    fn set_held(&mut self, unit: UnitId, bytes: u64) -> u64 {
        let old = if bytes == 0 { self.held.remove(&unit) } else { self.held.insert(unit, bytes) };
        old.unwrap_or(0)
    }

    fn end(&mut self) -> Finished<UnitId> {
        let i = self.random(self.pending.len() as u64) as usize;
        let (unit, before) = self.pending.swap_remove(i);
        let failed = self.fails();
        if failed {
            self.set_held(unit, before);
        }
        let result = if failed { Err("the disk failed".into()) } else { Ok(unit) };
        Finished { unit, result, took: Duration::from_micros(1) }
    }
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Memory>>);

impl Store for Shared {
    type Handle = UnitId;

    fn load(&mut self, unit: UnitId, missing: Range<u64>) -> Result<Started<UnitId>, Reason> {
        let mut memory = self.0.borrow_mut();
        let before = memory.held.get(&unit).copied().unwrap_or(0);
        assert_eq!(before, missing.start);
        assert!(missing.start < missing.end);
        let no_place = memory.no_place;
        if no_place > 0 && memory.random(no_place) == 0 {
            return Ok(Started::NoPlace);
        }
        if memory.fails() {
            return Err("the disk failed".into());
        }
        memory.held.insert(unit, missing.end);
        if memory.slow {
            memory.pending.push((unit, before));
            return Ok(Started::Pending);
        }
        Ok(Started::Ready(unit))
    }

    fn poll(&mut self) -> Option<Finished<UnitId>> {
        let mut memory = self.0.borrow_mut();
        let ready = !memory.pending.is_empty() && memory.random(3) == 0;
        ready.then(|| memory.end())
    }

    fn wait(&mut self) -> Option<Finished<UnitId>> {
        let mut memory = self.0.borrow_mut();
        assert!(!memory.pending.is_empty(), "waiting for nothing");
        Some(memory.end())
    }

    fn evict(&mut self, unit: UnitId, keep: Bytes) {
        let mut memory = self.0.borrow_mut();
        assert!(!memory.leased.contains(&unit), "pool invariant 2: {unit} is leased");
        assert!(!memory.pinned.contains(&unit), "pool invariant 2: {unit} is pinned");
        assert!(memory.pending.iter().all(|(u, _)| *u != unit), "{unit} is loading");
        let kept = memory.set_held(unit, keep.0);
        assert!(keep.0 < kept, "{unit}: {kept} in memory, {keep} to be left");
    }
}

// ---- the driver ----

struct World {
    pool: Pool<Shared>,
    memory: Shared,
    naive: Naive,
    leases: Vec<Lease<UnitId>>,
    charges: Vec<Charge>,
    rng: Rng,
    failures: bool,
    granted: [u64; 6],
    refused: [u64; 6],
}

impl World {
    fn new(seed: u64, policy: Box<dyn Policy>) -> World {
        let memory = Shared::default();
        memory.0.borrow_mut().rng = seed;
        let pool = Pool::new(memory.clone(), Bytes(400), policy);
        World {
            pool,
            memory,
            naive: Naive { budget: 400, ..Naive::default() },
            leases: Vec::new(),
            charges: Vec::new(),
            rng: Rng(seed),
            failures: false,
            granted: [0; 6],
            refused: [0; 6],
        }
    }

    fn held(&self) -> HashMap<UnitId, u64> {
        self.memory.0.borrow().held.clone()
    }

    fn any_unit(&mut self) -> Option<UnitId> {
        let n = self.naive.models.len() as u64;
        let nth = self.rng.below(n.max(1)) as usize;
        let (id, (sizes, _)) = self.naive.models.iter().nth(nth)?;
        Some(UnitId { model: *id, index: self.rng.below(sizes.len() as u64) as u32 })
    }

    /// `ok` is what happened, `must` what the naive model says. With a failing store a granted request may fail,
    /// but a refused one is never granted.
    fn judge(&mut self, call: usize, ok: bool, must: bool) {
        assert!(ok == must || (self.failures && must), "call {call}: {ok}, expected {must}");
        *(if ok { &mut self.granted } else { &mut self.refused }).get_mut(call).unwrap() += 1;
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..60 => self.acquire(),
            60..75 => {
                let Some(unit) = self.any_unit() else { return };
                let result = self.pool.prefetch(unit);
                assert!(result.is_ok() || self.failures, "{result:?}");
            }
            75..83 => self.charge(),
            83..88 => {
                let budget = 50 + self.rng.below(600);
                let must = self.naive.may_budget(&self.held(), budget);
                let ok = self.pool.set_budget(Bytes(budget)).is_ok();
                self.judge(2, ok, must);
                if ok {
                    self.naive.budget = budget;
                }
            }
            88..91 => self.register(),
            91..93 => self.unregister(),
            93..96 => self.pin(),
            96..98 => {
                let mut turns = Vec::new();
                for _ in 0..self.rng.below(4) {
                    let model = ModelId(self.rng.below(40) as u32);
                    turns.push(Turn { model, passes: self.rng.below(4) as u32 });
                }
                self.pool.expect(&turns);
            }
            _ => self.pool.settle(),
        }
    }

    fn acquire(&mut self) {
        let Some(unit) = self.any_unit() else { return };
        while self.leases.len() as u64 > self.rng.below(4) {
            let i = self.rng.below(self.leases.len() as u64) as usize;
            let lease = self.leases.swap_remove(i);
            *self.naive.leases.get_mut(&lease.unit()).unwrap() -= 1;
            if self.naive.leases[&lease.unit()] == 0 {
                self.memory.0.borrow_mut().leased.remove(&lease.unit());
            }
        }
        let must = self.naive.may_acquire(&self.held(), unit);
        let result = self.pool.acquire(unit);
        self.judge(0, result.is_ok(), must);
        if let Ok(lease) = result {
            assert_eq!(*lease, unit);
            *self.naive.leases.entry(unit).or_default() += 1;
            self.memory.0.borrow_mut().leased.insert(unit);
            self.leases.push(lease);
        }
    }

    fn charge(&mut self) {
        if self.rng.below(2) == 0 && !self.charges.is_empty() {
            let i = self.rng.below(self.charges.len() as u64) as usize;
            self.naive.charged -= self.charges.swap_remove(i).bytes().0;
            return;
        }
        let bytes = self.rng.below(100);
        let must = self.naive.may_charge(&self.held(), bytes);
        let class = Class::ALL[self.rng.below(4) as usize];
        let result = self.pool.charge(class, Bytes(bytes));
        self.judge(1, result.is_ok(), must);
        if let Ok(mut charge) = result {
            charge.commit();
            self.naive.charged += bytes;
            self.charges.push(charge);
        }
    }

    fn register(&mut self) {
        if self.naive.models.len() > 5 {
            return;
        }
        let largest = if self.rng.below(4) == 0 { 400 } else { 60 };
        let sizes: Vec<_> = (0..=self.rng.below(9)).map(|_| 1 + self.rng.below(largest)).collect();
        let granule = self.rng.below(12);
        let units: Vec<_> = sizes.iter().map(|n| Size::paged(Bytes(*n), Bytes(granule))).collect();
        let must = self.naive.may_register(&sizes);
        let name = format!("model {}", self.rng.0);
        let result = self.pool.register(&name, &units);
        self.judge(3, result.is_ok(), must);
        if let Ok(id) = result {
            self.naive.models.insert(id, (sizes, Pin::None));
        }
    }

    fn unregister(&mut self) {
        let Some(UnitId { model, .. }) = self.any_unit() else { return };
        let must = self.naive.leases.iter().all(|(unit, n)| unit.model != model || *n == 0);
        if must {
            self.memory.0.borrow_mut().pinned.retain(|unit| unit.model != model);
        }
        let ok = self.pool.unregister(model).is_ok();
        self.judge(4, ok, must);
        if ok {
            self.naive.models.remove(&model);
            let memory = self.memory.0.borrow();
            assert!(memory.held.keys().all(|unit| unit.model != model), "pool invariant 1");
        }
    }

    fn pin(&mut self) {
        let Some(UnitId { model, index }) = self.any_unit() else { return };
        let pin = [Pin::None, Pin::Head(index), Pin::All][self.rng.below(3) as usize];
        let must = self.naive.may_pin(model, pin);
        let ok = self.pool.pin(model, pin).is_ok();
        self.judge(5, ok, must);
        if ok {
            let (sizes, old) = self.naive.models.get_mut(&model).unwrap();
            *old = pin;
            let covered = (0..sizes.len() as u32).filter(|i| pin.covers(*i));
            let mut memory = self.memory.0.borrow_mut();
            memory.pinned.retain(|unit| unit.model != model);
            memory.pinned.extend(covered.map(|index| UnitId { model, index }));
        }
    }

    fn check(&self) {
        self.pool.audit();
        let books = self.pool.books();
        let held: u64 = self.memory.0.borrow().held.values().sum();
        assert!(books.used() <= books.budget, "ledger invariant 1");
        assert_eq!(books.budget, Bytes(self.naive.budget));
        assert_eq!(
            books.used(),
            Bytes(held + self.naive.charged),
            "pool invariant 1: the store holds what is charged"
        );
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step();
            self.check();
        }
    }

    /// Everything goes; the ledger must be back at zero.
    fn finish(mut self) -> ([u64; 6], [u64; 6]) {
        self.leases.clear();
        self.charges.clear();
        self.memory.0.borrow_mut().pinned.clear();
        self.memory.0.borrow_mut().leased.clear();
        for id in self.naive.models.keys() {
            self.pool.unregister(*id).unwrap();
        }
        assert_eq!(self.pool.books().used(), Bytes::ZERO, "ledger invariant 2: something leaked");
        assert!(self.memory.0.borrow().held.is_empty());
        (self.granted, self.refused)
    }
}

fn policies() -> [Box<dyn Policy>; 2] {
    [Box::new(TwoLevel), Box::new(Lru)]
}

/// Runs and requires that each kind of call was granted and refused often, or the trace tests nothing.
fn traces(seed: u64, steps: u64, set: impl Fn(&mut Memory)) {
    for policy in policies() {
        let mut world = World::new(seed, policy);
        set(&mut world.memory.0.borrow_mut());
        world.failures = {
            let memory = world.memory.0.borrow();
            memory.fail_every > 0 || memory.no_place > 0
        };
        world.run(steps);
        let (granted, refused) = world.finish();
        println!(
            "acquire, charge, budget, register, unregister, pin: granted {granted:?}, refused {refused:?}"
        );
        assert!(granted.iter().chain(&refused).all(|n| *n > 20), "{granted:?} {refused:?}");
    }
}

#[test]
fn random_traces() {
    traces(1, 30_000, |_| ());
}

#[test]
fn random_traces_with_a_slow_store() {
    traces(2, 30_000, |memory| memory.slow = true);
}

#[test]
fn random_traces_with_a_failing_store() {
    traces(3, 15_000, |memory| memory.fail_every = 7);
    traces(4, 15_000, |memory| (memory.slow, memory.fail_every) = (true, 5));
}

#[test]
fn random_traces_with_a_fragmented_store() {
    traces(5, 15_000, |memory| (memory.slow, memory.no_place) = (true, 3));
}

/// One failure at each call index of a short trace.
#[test]
fn a_failure_at_every_call_is_clean() {
    for slow in [false, true] {
        let run = |fail_at| {
            let mut world = World::new(9, Box::new(TwoLevel));
            (world.memory.0.borrow_mut().slow, world.memory.0.borrow_mut().fail_at) = (slow, fail_at);
            world.failures = true;
            world.run(500);
            let calls = world.memory.0.borrow().calls;
            world.finish();
            calls
        };
        let calls = run(None);
        assert!(calls > 100);
        for call in 1..=calls {
            run(Some(call));
        }
    }
}
