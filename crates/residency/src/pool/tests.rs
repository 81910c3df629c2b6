//! The pool with a scripted store: each invariant, each refusal with its text, each way a load can end.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::*;
use crate::policy::{Lru, Plan, TwoLevel};
use crate::store::{Finished, Started};
use crate::units::State;

/// Loads at once, or when told to, or not at all.
#[derive(Default)]
struct Mock {
    slow: bool,
    fail: bool,
    gone: bool,
    no_place: u32,
    pending: Vec<UnitId>,
    /// Bytes in memory by unit.
    kept: HashMap<UnitId, u64>,
    loads: Vec<(UnitId, Range<u64>)>,
}

impl Store for Mock {
    type Handle = Arc<UnitId>;

    fn load(&mut self, unit: UnitId, missing: Range<u64>) -> Result<Started<Arc<UnitId>>, Reason> {
        assert_eq!(self.kept.get(&unit).copied().unwrap_or(0), missing.start);
        if self.no_place > 0 {
            self.no_place -= 1;
            return Ok(Started::NoPlace);
        }
        if self.fail && !self.slow {
            return Err("disk on fire".into());
        }
        self.loads.push((unit, missing.clone()));
        if self.slow {
            self.pending.push(unit);
            return Ok(Started::Pending);
        }
        self.kept.insert(unit, missing.end);
        Ok(Started::Ready(Arc::new(unit)))
    }

    fn wait(&mut self) -> Option<Finished<Arc<UnitId>>> {
        assert!(!self.pending.is_empty(), "nothing to wait for");
        if self.gone {
            self.pending.clear();
            return None;
        }
        let unit = self.pending.remove(0);
        let result = if self.fail { Err("disk on fire".into()) } else { Ok(Arc::new(unit)) };
        if result.is_ok() {
            self.kept.insert(unit, 10);
        }
        Some(Finished { unit, result, took: Duration::from_millis(7) })
    }

    fn evict(&mut self, unit: UnitId, keep: Bytes) {
        let kept = self.kept.insert(unit, keep.0).unwrap();
        assert!(kept > keep.0, "{unit} had {kept}, keeps {keep}");
    }
}

type TestPool = Pool<Mock>;

/// A pool with models `a`, `b`, … of `units` units of 10 bytes, given up in steps of `granule`.
fn pool(budget: u64, models: u32, units: usize, granule: u64) -> TestPool {
    let mut pool = Pool::new(Mock::default(), Bytes(budget), Box::new(TwoLevel));
    for i in 0..models {
        let name = char::from(b'a' + i as u8).to_string();
        pool.register(&name, &vec![Size::paged(Bytes(10), Bytes(granule)); units]).unwrap();
    }
    pool
}

fn at(model: u32, index: u32) -> UnitId {
    UnitId { model: ModelId(model), index }
}

/// `a012 b0.`: what is in memory; a dot for a part.
fn memory(pool: &TestPool) -> String {
    let mut text = String::new();
    for (_, model) in pool.table().models() {
        text += if text.is_empty() { "" } else { " " };
        text += model.name();
        for i in (0..model.len()).filter(|i| model.kept(*i) > Bytes::ZERO) {
            text += &i.to_string();
            text += if model.kept(i) < model.bytes(i) { "." } else { "" };
        }
    }
    text
}

#[test]
fn a_model_may_get_a_name_that_is_free() {
    let mut pool = pool(35, 2, 1, 4);
    assert!(matches!(pool.rename(ModelId(0), "b"), Err(Error::NameTaken { .. })));
    assert!(matches!(pool.rename(ModelId(9), "c"), Err(Error::UnknownModel(_))));
    pool.rename(ModelId(0), "a").unwrap();
    pool.rename(ModelId(0), "c").unwrap();
    assert_eq!((pool.find("a"), pool.find("c")), (None, Some(ModelId(0))));
    pool.register("a", &[Size::whole(Bytes(1))]).unwrap();
    pool.audit();
}

#[test]
fn one_unit_goes_if_nobody_uses_it() {
    let mut pool = pool(35, 1, 3, 4);
    pool.pin(ModelId(0), Pin::Head(1)).unwrap();
    drop(pool.acquire(at(0, 0)).unwrap());
    drop(pool.acquire(at(0, 1)).unwrap());
    let lease = pool.acquire(at(0, 2)).unwrap();
    assert!(!pool.evict_one(at(0, 0)) && !pool.evict_one(at(0, 2)) && !pool.evict_one(at(0, 9)));
    assert!(pool.evict_one(at(0, 1)) && !pool.evict_one(at(0, 1)));
    drop(lease);
    assert!(pool.evict_one(at(0, 2)));
    assert_eq!((memory(&pool).as_str(), pool.books().used()), ("a0", Bytes(10)));
    pool.audit();
}

#[test]
fn invariant_1_bytes_in_memory_are_the_ledger() {
    let mut pool = pool(35, 1, 4, 4);
    for i in 0..4 {
        drop(pool.acquire(at(0, i)).unwrap());
        pool.audit();
    }
    // Unit 3 needs 5 more bytes; unit 2 was used last, and gives up two granules.
    assert_eq!(memory(&pool), "a012.3");
    assert_eq!(pool.books().used(), Bytes(34));
    assert_eq!(pool.books().resident(Class::Weights), Bytes(34));
    drop(pool.acquire(at(0, 2)).unwrap());
    pool.audit();
    assert_eq!(pool.store.loads.last(), Some(&(at(0, 2), 4..10)));
    pool.unregister(ModelId(0)).unwrap();
    assert_eq!(pool.books().used(), Bytes::ZERO);
    assert!(pool.store.kept.values().all(|kept| *kept == 0));
}

#[test]
fn invariant_2_leases_and_pins_are_not_evicted() {
    let mut pool = pool(40, 1, 6, 0);
    pool.pin(ModelId(0), Pin::Head(1)).unwrap();
    drop(pool.acquire(at(0, 0)).unwrap());
    let lease = pool.acquire(at(0, 1)).unwrap();
    assert_eq!((**lease, lease.bytes()), (at(0, 1), Bytes(10)));
    let again = pool.acquire(at(0, 1)).unwrap();
    for i in 2..6 {
        drop(pool.acquire(at(0, i)).unwrap());
    }
    assert_eq!(memory(&pool), "a0125");
    assert_eq!(pool.table().state(at(0, 0)), Some(State::Pinned));
    drop(lease);
    pool.settle();
    assert_eq!(pool.table().state(at(0, 1)), Some(State::InUse));
    drop(again);
    pool.settle();
    assert_eq!(pool.table().state(at(0, 1)), Some(State::Resident));
    pool.audit();
}

#[test]
#[should_panic(expected = "pool invariant 2")]
fn invariant_2_stops_a_wrong_policy() {
    struct Wrong;
    impl Policy for Wrong {
        fn name(&self) -> &'static str {
            "wrong"
        }
        fn plan(&self, _: &Table, want: &Want) -> Plan {
            Plan { evict: vec![Cut { unit: at(0, 0), keep: Bytes::ZERO }], frees: want.give_up }
        }
    }
    let mut pool = Pool::new(Mock::default(), Bytes(10), Box::new(Wrong));
    pool.register("a", &[Size::whole(Bytes(10)); 2]).unwrap();
    let _lease = pool.acquire(at(0, 0)).unwrap();
    let _ = pool.acquire(at(0, 1));
}

#[test]
#[should_panic(expected = "pool invariant 2")]
fn invariant_2_stops_a_policy_that_frees_nothing() {
    struct Idle;
    impl Policy for Idle {
        fn name(&self) -> &'static str {
            "idle"
        }
        fn plan(&self, _: &Table, want: &Want) -> Plan {
            Plan { evict: Vec::new(), frees: want.give_up }
        }
    }
    let mut pool = Pool::new(Mock::default(), Bytes(10), Box::new(Idle));
    pool.register("a", &[Size::whole(Bytes(10)); 2]).unwrap();
    drop(pool.acquire(at(0, 0)).unwrap());
    let _ = pool.acquire(at(0, 1));
}

#[test]
fn invariant_3_what_would_stop_a_pass_is_refused_when_asked_for() {
    let mut pool = pool(40, 2, 3, 0);
    let error = pool.register("c", &[Size::whole(Bytes(41))]).unwrap_err();
    assert!(
        matches!(&error, Error::OverBudget { need: Bytes(41), smallest_budget: Bytes(41), .. }),
        "{error}"
    );
    let kv = pool.charge(Class::Kv, Bytes(15)).unwrap();
    let error = pool.charge(Class::Scratch, Bytes(16)).unwrap_err();
    let expected = "scratch needs 16 B, but the budget is 40 B, of which 15 B are charged to caches and buffers, \
                    0 B pinned and 0 B in use; a budget of at least 41 B (41 bytes) would do";
    assert_eq!(error.to_string(), expected);
    let error = pool.pin(ModelId(1), Pin::All).unwrap_err();
    let expected = "pinning 30 B of b does not fit: the budget is 40 B, 15 B are charged to caches and buffers, \
                    0 B pinned already, and 10 B must stay free for the largest unpinned unit; pin less, or raise \
                    the budget to 55 B (55 bytes)";
    assert_eq!(error.to_string(), expected);
    assert_eq!(pool.table().model(ModelId(1)).unwrap().pin(), Pin::None);
    pool.pin(ModelId(1), Pin::Head(1)).unwrap();
    assert_eq!(pool.smallest_budget(), Bytes(35));
    assert!(pool.set_budget(Bytes(34)).is_err());
    pool.set_budget(Bytes(35)).unwrap();
    // At the smallest budget both models still run.
    for unit in (0..2).flat_map(|m| (0..3).map(move |i| at(m, i))) {
        drop(pool.acquire(unit).unwrap());
        pool.audit();
    }
    drop(kv);
    assert_eq!(pool.smallest_budget(), Bytes(20));
}

#[test]
fn invariant_4_a_failed_load_leaves_what_was_there() {
    for slow in [false, true] {
        let mut pool = pool(35, 1, 4, 4);
        for i in 0..4 {
            drop(pool.acquire(at(0, i)).unwrap());
        }
        assert_eq!(memory(&pool), "a012.3");
        (pool.store.slow, pool.store.fail) = (slow, true);
        let error = pool.acquire(at(0, 2)).unwrap_err();
        let said = std::error::Error::source(&error).map(ToString::to_string);
        assert_eq!(said.as_deref(), Some("disk on fire"));
        assert_eq!(error.to_string(), "unit 2 of a (10 B) could not be loaded: disk on fire");
        assert_eq!(pool.table().state(at(0, 2)), Some(State::Partial));
        pool.audit();
        (pool.store.slow, pool.store.fail) = (false, false);
        drop(pool.acquire(at(0, 2)).unwrap());
        pool.audit();
        let stats = pool.stats();
        assert_eq!((stats.failed_loads, stats.refused, stats.loads), (1, 1, 5));
    }
}

#[test]
fn a_prefetch_overlaps_and_counts() {
    let mut pool = pool(20, 1, 3, 0);
    pool.store.slow = true;
    let lease = pool.acquire(at(0, 0)).unwrap();
    assert_eq!(pool.prefetch(at(0, 1)).unwrap(), Prefetch::Loading);
    assert_eq!(pool.prefetch(at(0, 1)).unwrap(), Prefetch::Loading);
    assert_eq!(pool.prefetch(at(0, 2)).unwrap(), Prefetch::NoRoom);
    assert_eq!(pool.table().state(at(0, 1)), Some(State::Loading));
    assert_eq!(pool.books().reserved(Class::Weights), Bytes(10));
    drop(lease);
    let lease = pool.acquire(at(0, 1)).unwrap();
    pool.store.slow = false;
    assert_eq!(pool.prefetch(at(0, 2)).unwrap(), Prefetch::Resident);
    // What was fetched ahead is needed sooner than what comes after it.
    assert_eq!(pool.prefetch(at(0, 0)).unwrap(), Prefetch::NoRoom);
    drop(lease);
    assert_eq!(memory(&pool), "a12");
    drop(pool.acquire(at(0, 2)).unwrap());
    drop(pool.acquire(at(0, 2)).unwrap());
    let stats = pool.model_stats(ModelId(0)).unwrap();
    assert_eq!((stats.misses, stats.late, stats.prefetched, stats.hits), (1, 1, 1, 1));
    assert_eq!((stats.loads, stats.bytes_loaded, stats.evictions), (3, Bytes(30), 1));
    assert_eq!(stats.load_time, Duration::from_millis(14).max(stats.load_time));
    assert_eq!(stats, pool.stats());
}

#[test]
fn the_upcoming_unit_crosses_turns() {
    let mut pool = pool(60, 2, 3, 0);
    let turn = |model, passes| Turn { model: ModelId(model), passes };
    assert_eq!(pool.upcoming(), None);
    // Nobody said how many passes.
    for i in 0..3 {
        drop(pool.acquire(at(1, i)).unwrap());
        assert_eq!(pool.upcoming(), Some(at(1, (i + 1) % 3)));
    }
    pool.expect(&[turn(7, 1), turn(0, 2), turn(1, 1)]);
    let mut order = Vec::new();
    while order.len() < 12 {
        let next = pool.upcoming().unwrap();
        drop(pool.acquire(next).unwrap());
        order.push((next.model.0, next.index));
    }
    // Model 7 is not registered.
    let pass = |model| (0..3).map(move |index| (model, index));
    assert_eq!(order, [0, 0, 1, 0].into_iter().flat_map(pass).collect::<Vec<_>>());
    assert!(pool.acquire(at(9, 0)).is_err());
    assert_eq!(pool.upcoming(), Some(at(0, 0)), "the second pass of the turn");
    pool.unregister(ModelId(0)).unwrap();
    assert_eq!(pool.upcoming(), Some(at(1, 0)));
    pool.unregister(ModelId(1)).unwrap();
    assert_eq!(pool.upcoming(), None);
}

#[test]
fn a_failed_prefetch_is_tried_again_by_acquire() {
    let mut pool = pool(20, 1, 2, 0);
    (pool.store.slow, pool.store.fail) = (true, true);
    assert_eq!(pool.prefetch(at(0, 0)).unwrap(), Prefetch::Loading);
    assert!(matches!(pool.acquire(at(0, 0)).unwrap_err(), Error::LoadFailed { .. }));
    assert_eq!(pool.stats().failed_loads, 2);
    assert_eq!(pool.prefetch(at(0, 0)).unwrap(), Prefetch::Loading);
    pool.store.fail = false;
    drop(pool.acquire(at(0, 0)).unwrap());
    pool.audit();
}

#[test]
fn a_store_that_stops_is_an_error_not_a_hang() {
    let mut pool = pool(30, 1, 3, 0);
    (pool.store.slow, pool.store.gone) = (true, true);
    pool.prefetch(at(0, 0)).unwrap();
    pool.prefetch(at(0, 1)).unwrap();
    let error = pool.acquire(at(0, 0)).unwrap_err();
    assert_eq!(error.to_string(), "unit 0 of a (10 B) could not be loaded: the store has stopped loading");
    pool.audit();
    assert_eq!(pool.books().used(), Bytes::ZERO);
}

#[test]
fn a_store_that_stops_gives_its_reason_whatever_else_was_loading() {
    // They are lost in the order of a hash map.
    let mut pool = pool(90, 1, 9, 0);
    pool.store.slow = true;
    for i in 1..9 {
        pool.prefetch(at(0, i)).unwrap();
    }
    pool.store.gone = true;
    let error = pool.acquire(at(0, 0)).unwrap_err();
    assert_eq!(error.to_string(), "unit 0 of a (10 B) could not be loaded: the store has stopped loading");
    assert_eq!((pool.stats().failed_loads, pool.books().used()), (9, Bytes::ZERO));
    pool.audit();
}

#[test]
fn acquire_waits_for_loads_that_hold_the_room() {
    let mut pool = pool(20, 1, 4, 0);
    pool.store.slow = true;
    pool.prefetch(at(0, 0)).unwrap();
    pool.prefetch(at(0, 1)).unwrap();
    drop(pool.acquire(at(0, 3)).unwrap());
    pool.settle();
    pool.audit();
    assert_eq!(pool.table().state(at(0, 3)), Some(State::Resident));
}

#[test]
fn loads_may_end_in_any_order() {
    let mut pool = pool(60, 2, 3, 0);
    pool.store.slow = true;
    // What was started last ends first.
    let prefetch = |pool: &mut TestPool, units: &[UnitId]| {
        for unit in units {
            assert_eq!(pool.prefetch(*unit).unwrap(), Prefetch::Loading);
        }
        pool.store.pending.reverse();
    };
    prefetch(&mut pool, &[at(0, 0), at(0, 1), at(0, 2), at(1, 0)]);
    // All that could go is under way; b0 ends first and goes.
    let kv = pool.charge(Class::Kv, Bytes(30)).unwrap();
    assert_eq!((memory(&pool), pool.loading), ("a b".to_owned(), 3));
    pool.audit();
    pool.set_budget(Bytes(50)).unwrap();
    assert_eq!((memory(&pool), pool.books().used()), ("a01 b".to_owned(), Bytes(50)));
    drop(kv);
    prefetch(&mut pool, &[at(1, 0), at(1, 1), at(0, 2)]);
    drop(pool.acquire(at(1, 1)).unwrap());
    assert_eq!(pool.table().state(at(1, 0)), Some(State::Loading));
    pool.unregister(ModelId(1)).unwrap();
    assert_eq!((memory(&pool), pool.loading, pool.books().used()), ("a012".to_owned(), 0, Bytes(30)));
    pool.audit();
}

#[test]
fn too_many_leases_are_refused_with_numbers() {
    let mut pool = pool(25, 1, 3, 0);
    let leases = [pool.acquire(at(0, 0)).unwrap(), pool.acquire(at(0, 1)).unwrap()];
    let error = pool.acquire(at(0, 2)).unwrap_err();
    let expected = "unit 2 of a needs 10 B, but the budget is 25 B, of which 0 B are charged to caches and \
                    buffers, 0 B pinned and 20 B in use; a budget of at least 30 B (30 bytes) would do";
    assert_eq!(error.to_string(), expected);
    let error = pool.charge(Class::Kv, Bytes(6)).unwrap_err();
    assert!(
        matches!(error, Error::OverBudget { in_use: Bytes(20), smallest_budget: Bytes(26), .. }),
        "{error}"
    );
    let error = pool.set_budget(Bytes(15)).unwrap_err();
    assert!(
        matches!(error, Error::OverBudget { in_use: Bytes(20), smallest_budget: Bytes(20), .. }),
        "{error}"
    );
    assert!(matches!(pool.unregister(ModelId(0)), Err(Error::ModelInUse { leases: 2, .. })));
    assert_eq!(memory(&pool), "a01");
    drop(leases);
    drop(pool.acquire(at(0, 2)).unwrap());
    pool.unregister(ModelId(0)).unwrap();
    assert!(matches!(pool.acquire(at(0, 2)), Err(Error::UnknownModel(_))));
}

#[test]
fn a_smaller_budget_evicts_what_is_free() {
    let mut pool = pool(60, 2, 3, 4);
    for unit in (0..2).flat_map(|m| (0..3).map(move |i| at(m, i))) {
        drop(pool.acquire(unit).unwrap());
    }
    assert_eq!(memory(&pool), "a012 b012");
    let lease = pool.acquire(at(1, 2)).unwrap();
    pool.set_budget(Bytes(45)).unwrap();
    assert_eq!(memory(&pool), "a01. b012");
    assert_eq!((pool.books().budget, pool.books().used()), (Bytes(45), Bytes(44)));
    drop(lease);
    pool.set_budget(Bytes(10)).unwrap();
    assert_eq!(memory(&pool), "a b0");
    pool.set_budget(Bytes(u64::MAX)).unwrap();
    pool.audit();
}

#[test]
fn a_charge_takes_room_from_idle_models_first() {
    let mut pool = pool(60, 2, 3, 0);
    for unit in (0..2).flat_map(|m| (0..3).map(move |i| at(m, i))) {
        drop(pool.acquire(unit).unwrap());
    }
    let mut kv = pool.charge(Class::Kv, Bytes(15)).unwrap();
    kv.commit();
    assert_eq!(memory(&pool), "a0 b012");
    drop(kv);
    assert_eq!(pool.books().free(), Bytes(20));
}

#[test]
fn no_place_evicts_more_until_it_fits() {
    let mut pool = pool(60, 1, 6, 0);
    for i in 0..5 {
        drop(pool.acquire(at(0, i)).unwrap());
    }
    pool.store.no_place = 2;
    drop(pool.acquire(at(0, 5)).unwrap());
    assert_eq!(memory(&pool), "a0125");
    assert_eq!(pool.stats().evictions_for_place, 2);
    pool.store.no_place = 99;
    let lease = pool.acquire(at(0, 5)).unwrap();
    let error = pool.acquire(at(0, 4)).unwrap_err();
    assert!(matches!(error, Error::NoPlace { need: Bytes(10), free: Bytes(50), .. }), "{error}");
    pool.audit();
    assert_eq!(pool.prefetch(at(0, 4)).unwrap(), Prefetch::NoRoom);
    drop(lease);
}

#[test]
fn names_ids_and_counts_are_checked() {
    let mut pool = pool(60, 1, 1, 0);
    let one = [Size::whole(Bytes(1))];
    assert!(matches!(pool.register("a", &one), Err(Error::NameTaken { .. })));
    assert!(matches!(pool.register("b", &[]), Err(Error::UnitCount { units: 0, .. })));
    let empty = pool.register("b", &[Size::whole(Bytes(1)), Size::whole(Bytes(0))]);
    assert!(matches!(empty, Err(Error::EmptyUnit { index: 1, .. })));
    assert!(matches!(pool.acquire(at(0, 1)), Err(Error::UnknownUnit { units: 1, .. })));
    assert!(matches!(pool.prefetch(at(7, 0)), Err(Error::UnknownModel(ModelId(7)))));
    assert!(matches!(pool.pin(ModelId(7), Pin::All), Err(Error::UnknownModel(_))));
    assert!(matches!(pool.unregister(ModelId(7)), Err(Error::UnknownModel(_))));
    assert!(pool.register("huge", &[Size::whole(Bytes(u64::MAX)); 3]).is_err());
    pool.unregister(ModelId(0)).unwrap();
    assert_eq!(pool.register("a", &one).unwrap(), ModelId(1), "ids are not reused");
    assert_eq!((pool.find("a"), pool.find("b")), (Some(ModelId(1)), None));
}

#[test]
fn the_trace_tells_every_state() {
    let mut pool = pool(10, 1, 2, 4);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    pool.subscribe(move |event| {
        let Event { unit, kept, from, to, .. } = event;
        sink.lock().unwrap().push(format!("{} {from:?}>{to:?} {}", unit.index, kept.0));
    });
    drop(pool.acquire(at(0, 0)).unwrap());
    pool.pin(ModelId(0), Pin::None).unwrap();
    drop(pool.charge(Class::Kv, Bytes(0)).unwrap());
    drop(pool.acquire(at(0, 1)).unwrap());
    pool.store.fail = true;
    pool.store.slow = true;
    pool.acquire(at(0, 0)).unwrap_err();
    let expected = [
        "0 Cold>Loading 0",
        "0 Loading>Resident 10",
        "0 Resident>InUse 10",
        "0 InUse>Resident 10",
        "0 Resident>Evicting 10",
        "0 Evicting>Cold 0",
        "1 Cold>Loading 0",
        "1 Loading>Resident 10",
        "1 Resident>InUse 10",
        "1 InUse>Resident 10",
        "1 Resident>Evicting 10",
        "1 Evicting>Cold 0",
        "0 Cold>Loading 0",
        "0 Loading>Cold 0",
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[test]
fn the_baseline_never_hits_on_a_scan() {
    let mut pool = Pool::new(Mock::default(), Bytes(30), Box::new(Lru));
    pool.register("a", &[Size::whole(Bytes(10)); 4]).unwrap();
    for i in (0..4).cycle().take(40) {
        drop(pool.acquire(at(0, i)).unwrap());
    }
    assert_eq!((pool.policy(), pool.stats().hit_rate()), ("lru", 0.0));
}

#[test]
fn a_model_is_unloaded_but_for_what_is_leased_or_pinned() {
    let mut pool = pool(100, 2, 4, 5);
    let unit = |index| UnitId { model: ModelId(0), index };
    let leases: Vec<_> = (0..4).map(|index| pool.acquire(unit(index)).unwrap()).collect();
    pool.pin(ModelId(0), Pin::Head(1)).unwrap();
    let held = leases.into_iter().nth(2);
    assert_eq!(pool.unload(ModelId(0)).unwrap(), Bytes(20), "units 1 and 3");
    let state = |pool: &TestPool, index| pool.table().state(unit(index));
    assert_eq!(state(&pool, 0), Some(State::Pinned));
    assert_eq!(state(&pool, 1), Some(State::Cold));
    assert_eq!(state(&pool, 2), Some(State::InUse));
    drop(held);
    pool.pin(ModelId(0), Pin::None).unwrap();
    assert_eq!(pool.unload(ModelId(0)).unwrap(), Bytes(20));
    assert_eq!(pool.books().used(), Bytes::ZERO);
    pool.audit();
    drop(pool.acquire(unit(0)).unwrap());
    assert!(matches!(pool.unload(ModelId(9)), Err(Error::UnknownModel(_))));
}

#[test]
fn unloading_waits_for_what_is_on_its_way() {
    let mut pool = pool(100, 1, 3, 10);
    pool.store_mut().slow = true;
    pool.prefetch(UnitId { model: ModelId(0), index: 0 }).unwrap();
    assert_eq!(pool.unload(ModelId(0)).unwrap(), Bytes(10));
    assert_eq!(pool.books().used(), Bytes::ZERO);
}
