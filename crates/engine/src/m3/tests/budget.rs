//! Budgets that change while sessions run, and caches that grow into them.

use super::*;
use crate::kv::{KvLayout, PAGE};

#[test]
fn a_budget_changes_between_steps_and_nothing_else_does() {
    let model = model("alpha");
    let script = Script::new(&model);
    for threads in [1, 2] {
        let memory = memory(2 << 20);
        let placed = memory.add("it", &model).unwrap();
        let mut pool = crew(threads);
        let mut session = Session::placed(&placed, &pool, SESSION).unwrap();
        script.check(&mut session, &mut pool);
        let least = memory.smallest_budget();
        assert!(least < 2 << 20);
        for budget in [3 << 20, least, 1600 << 10, 16 << 20, least + 1, 2 << 20] {
            memory.set_budget(budget).unwrap();
            assert_eq!(memory.budget(), budget);
            assert_sound(&memory);
            session.truncate(0);
            script.check(&mut session, &mut pool);
            assert_sound(&memory);
        }
        // Refused, with numbers, and nothing has changed.
        let numbers = || {
            let books = memory.books();
            (books.budget, books.used(), books.high_water, memory.smallest_budget())
        };
        let before = numbers();
        for budget in [least - 1, least / 2, 1, 0] {
            let (need, refused, smallest) = refusal(&memory.set_budget(budget).unwrap_err());
            assert_eq!((refused, smallest), (budget, least));
            assert!(need <= least);
            assert_eq!(numbers(), before);
        }
        for budget in [u64::MAX, (2 << 20) * 8 + (1 << 20)] {
            let error = memory.set_budget(budget).unwrap_err();
            assert!(matches!(error, MemoryError::TooMuch { .. }), "{error}");
            assert!(error.to_string().contains("16.8 MB"), "{error}");
            assert_eq!(numbers(), before);
        }
        session.truncate(0);
        script.check(&mut session, &mut pool);
        drop((session, placed));
        assert_empties(memory);
    }
}

#[test]
fn an_empty_memory_may_have_no_budget_and_get_one_again() {
    let memory = memory(1 << 20);
    memory.set_budget(0).unwrap();
    let model = model("golden/llama_tied");
    refusal(&memory.add("it", &model).unwrap_err());
    assert_eq!(memory.books().used().0, 0);
    memory.set_budget(1 << 20).unwrap();
    let placed = memory.add("it", &model).unwrap();
    let mut pool = crew(1);
    let mut session = Session::placed(&placed, &pool, SESSION).unwrap();
    Script::new(&model).check(&mut session, &mut pool);
    drop((session, placed));
    assert_empties(memory);
    for budget in [0, 1, (16 << 10) - 1] {
        let error = Memory::new(MemoryOptions::new(budget)).err().unwrap();
        assert!(matches!(error, MemoryError::NoBudget { .. }), "{error}");
    }
    assert!(matches!(Memory::new(MemoryOptions::new(u64::MAX)), Err(MemoryError::NoAddresses { .. })));
}

/// Somebody else turns the budget up and down, from all of the model to as little as it can stream in: no step fails.
#[test]
fn a_budget_changes_at_any_time_and_no_step_fails() {
    for (name, rounds) in [("golden/llama_tq1_0", 300), ("alpha", 12)] {
        let model = model(name);
        let script = Script::new(&model);
        let full = 2 * model.weight_bytes_per_token() + (1 << 20);
        let memory = memory(full);
        // Parts are made for the budget at hand: small ones for a model that has to stream later.
        let hog = memory.pay(Class::Staging, (full - least(&model) - (64 << 10)) as usize).unwrap();
        let placed = memory.add("it", &model).unwrap();
        drop(hog);
        let mut pool = crew(2);
        let mut session = Session::placed(&placed, &pool, SESSION).unwrap();
        script.check(&mut session, &mut pool);
        // The cache and the larger of the buffers are part of it.
        let small = memory.smallest_budget() + (32 << 10);
        assert!(small < full / 2, "{small} {full}");
        let (stop, passes) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut changes = 0;
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let _stop = Stop(&stop);
                let mut changes = 0;
                while !stop.load(SeqCst) {
                    for budget in [full, small + (full - small) / 2, small] {
                        // Refused as long as leases are in the way.
                        while memory.set_budget(budget).is_err() && !stop.load(SeqCst) {}
                        changes += 1;
                        for refused in [0, 1000, u64::MAX] {
                            memory.set_budget(refused).unwrap_err();
                        }
                        let books = memory.books();
                        assert!(books.used() <= books.budget);
                        // All of the model is in memory then, and is leased in one go.
                        let seen = passes.load(SeqCst);
                        while budget == full && passes.load(SeqCst) < seen + 2 && !stop.load(SeqCst) {
                            std::thread::yield_now();
                        }
                    }
                }
                changes
            });
            {
                let _stop = Stop(&stop);
                for _ in 0..rounds {
                    session.truncate(0);
                    script.check(&mut session, &mut pool);
                    passes.fetch_add(1, SeqCst);
                }
            }
            changes = other.join().unwrap();
        });
        assert!(changes > 2, "{changes} changes");
        assert_sound(&memory);
        drop((session, placed));
        assert_empties(memory);
    }
}

#[test]
fn a_cache_grows_until_the_budget_is_full_and_goes_on_after_truncate() {
    let model = model("alpha");
    let page = KvLayout::new(&model.architecture().hparams, KvType::F16).unwrap().page_bytes() as u64;
    let options = SessionOptions { context: 512, batch: 16, ..SESSION };
    let mut pool = crew(2);
    let mut mapped = Session::new(&model, &pool, options).unwrap();
    let memory = memory(1500 << 10);
    let placed = memory.add("it", &model).unwrap();
    let mut session = Session::placed(&placed, &pool, options).unwrap();
    let mut evictions = 0;
    let error = loop {
        let at = session.tokens().len() as u32;
        let tokens: Vec<u32> = (at..at + 8).map(|i| 3 + i * 7 % 4000).collect();
        match step(&mut session, &mut pool, &tokens) {
            Ok(logits) => assert!(logits == step(&mut mapped, &mut pool, &tokens).unwrap()),
            Err(error) => {
                assert_eq!(session.tokens().len() as u32, at, "as it was");
                break error;
            }
        }
        assert_sound(&memory);
        evictions = memory.stats().evictions;
    };
    assert!(evictions > 0);
    let full = session.tokens().len();
    assert!(full >= 2 * PAGE && full.is_multiple_of(PAGE), "{full} positions");
    let books = memory.books();
    assert_eq!(books.of(Class::Kv).0, page * (full / PAGE) as u64, "no page that nobody needs");
    let (need, budget, smallest) = refusal(&budget_error(error));
    assert_eq!((need, budget), (page, 1500 << 10));
    assert!(smallest > budget && smallest == memory.smallest_budget() + page, "{smallest}");
    assert!(books.high_water <= books.budget);

    // It goes on where there is room, and from the same place with a larger budget.
    session.truncate(full - PAGE - 4);
    mapped.truncate(full - PAGE - 4);
    for token in [9, 10, 11] {
        let wanted = step(&mut mapped, &mut pool, &[token]).unwrap();
        assert!(step(&mut session, &mut pool, &[token]).unwrap() == wanted);
    }
    session.truncate(0);
    mapped.truncate(0);
    let long: Vec<u32> = (0..full as u32).map(|i| 5 + i * 3 % 1000).collect();
    assert!(step(&mut session, &mut pool, &long).unwrap() == step(&mut mapped, &mut pool, &long).unwrap());
    let more = &long[..8];
    step(&mut session, &mut pool, more).unwrap_err();
    memory.set_budget(smallest).unwrap();
    assert!(step(&mut session, &mut pool, more).unwrap() == step(&mut mapped, &mut pool, more).unwrap());
    assert_sound(&memory);
    drop((session, placed));
    assert_empties(memory);
}

/// A step of several chunks that fails in a later one leaves nothing of the earlier ones.
#[test]
fn a_long_step_that_finds_no_room_leaves_the_session_as_it_was() {
    let model = model("alpha");
    let options = SessionOptions { context: 512, batch: 16, outputs: 16, ..SESSION };
    let mut pool = crew(1);
    let memory = memory(1500 << 10);
    let placed = memory.add("it", &model).unwrap();
    let mut session = Session::placed(&placed, &pool, options).unwrap();
    let mut mapped = Session::new(&model, &pool, options).unwrap();
    for tokens in [&[1, 2, 3][..], &[4]] {
        step(&mut session, &mut pool, tokens).unwrap();
        step(&mut mapped, &mut pool, tokens).unwrap();
    }
    let pages = memory.books().of(Class::Kv);
    let long: Vec<u32> = (0..500).map(|i| 5 + i * 3 % 1000).collect();
    refusal(&budget_error(session.eval(&mut pool, &long).map(drop).unwrap_err()));
    assert_eq!((session.tokens(), memory.books().of(Class::Kv)), (&[1, 2, 3, 4][..], pages));
    refusal(&budget_error(session.eval_each(&mut pool, &long, |_, _| ()).unwrap_err()));
    assert_eq!((session.tokens(), memory.books().of(Class::Kv)), (&[1, 2, 3, 4][..], pages));
    assert!(step(&mut session, &mut pool, &[8]).unwrap() == step(&mut mapped, &mut pool, &[8]).unwrap());
    drop((session, placed));
    assert_empties(memory);
}

/// The batch is made smaller for a small budget, and steps with all logits with it.
#[test]
fn logits_of_every_token_fit_the_batch_that_the_budget_allows() {
    let model = model("alpha");
    let options = SessionOptions { context: 128, batch: 64, outputs: 64, ..SESSION };
    let mut pool = crew(2);
    let memory = memory(1500 << 10);
    let placed = memory.add("it", &model).unwrap();
    let mut session = Session::placed(&placed, &pool, options).unwrap();
    assert!(session.batch() < 32, "{} tokens", session.batch());
    let mut mapped = Session::new(&model, &pool, options).unwrap();
    let tokens: Vec<u32> = (0..50).map(|i| 5 + i * 3 % 1000).collect();
    let mut all = |session: &mut Session| {
        let mut all: Vec<u32> = Vec::new();
        let see = |_, logits: &mut [f32]| all.extend(logits.iter().map(|x| x.to_bits()));
        session.eval_each(&mut pool, &tokens, see).unwrap();
        all
    };
    assert!(all(&mut session) == all(&mut mapped));
    assert_sound(&memory);
}
