//! Models that come and go, names, pins.

use super::*;
use crate::m3::{Pin, Placed, State};
use std::sync::atomic::AtomicBool;

fn session(placed: &Placed, pool: &Pool) -> Session {
    Session::placed(placed, pool, SESSION).unwrap()
}

fn states(memory: &Memory, name: &str) -> Vec<State> {
    let status = memory.status();
    let model = status.iter().find(|m| m.names.iter().any(|n| n == name)).unwrap();
    model.units.iter().map(|unit| unit.state).collect()
}

#[test]
fn a_memory_with_models_in_it_goes_when_nobody_holds_it() {
    let memory = memory(4 << 20);
    let gone = Arc::downgrade(&memory.0);
    let mut pool = crew(1);
    let a = memory.add("a", &model("golden/llama_tied")).unwrap();
    memory.add("b", &model("golden/qwen2")).unwrap();
    let mut session = session(&a, &pool);
    step(&mut session, &mut pool, &[1, 2]).unwrap();
    drop((memory, a));
    // The session keeps it.
    step(&mut session, &mut pool, &[3]).unwrap();
    assert!(gone.upgrade().is_some());
    drop(session);
    assert!(gone.upgrade().is_none(), "the models keep the memory that keeps them");
}

#[test]
fn a_place_that_was_removed_is_an_error_and_no_panic() {
    let model = model("golden/llama_tied");
    let memory = memory(1 << 20);
    let mut pool = crew(1);
    let placed = memory.add("it", &model).unwrap();
    let mut open = session(&placed, &pool);
    step(&mut open, &mut pool, &[1, 2, 3]).unwrap();
    drop(open);
    memory.remove("it").unwrap();
    let unknown = |error: &MemoryError| matches!(error, MemoryError::Residency(Error::UnknownModel(_)));
    assert!(unknown(&placed.load(Pin::All).unwrap_err()));
    let mut late = session(&placed, &pool);
    for _ in 0..2 {
        let error = budget_error(step(&mut late, &mut pool, &[1, 2, 3]).unwrap_err());
        assert!(unknown(&error), "{error}");
        assert!(late.tokens().is_empty());
        assert_sound(&memory);
    }
    memory.expect(&[(placed.clone(), 3)]);
    // A model of the same name is another place.
    let again = memory.add("it", &model).unwrap();
    assert!(!again.is(&placed));
    Script::new(&model).check(&mut session(&again, &pool), &mut pool);
    assert!(unknown(&budget_error(step(&mut late, &mut pool, &[1]).unwrap_err())));
    drop((late, placed, again));
    assert_empties(memory);
}

fn is_leased(error: &MemoryError) -> bool {
    matches!(error, MemoryError::Residency(Error::ModelInUse { .. }))
}

fn is_unknown(error: &MemoryError) -> bool {
    matches!(error, MemoryError::UnknownName { .. })
}

/// Two threads that step at once may be in each other's way when the budget is small. Then a step is an error that says
/// so, and works later.
#[test]
fn sessions_on_two_threads_give_the_same_logits() {
    let models = [model("alpha"), model("golden/llama_k_quants")];
    for budget in [1500 << 10, 16 << 20] {
        let memory = memory(budget);
        std::thread::scope(|scope| {
            for (k, model) in models.iter().enumerate() {
                let placed = memory.add(["a", "b"][k], model).unwrap();
                scope.spawn(move || {
                    let (script, mut pool) = (Script::new(model), crew(1));
                    let mut session = session(&placed, &pool);
                    for _ in 0..[10, 200][k] {
                        session.truncate(0);
                        for (tokens, wanted) in &script.0 {
                            let logits = loop {
                                match step(&mut session, &mut pool, tokens).map_err(budget_error) {
                                    Ok(logits) => break logits,
                                    Err(MemoryError::Residency(Error::OverBudget { in_use, .. })) => {
                                        assert!(in_use.0 > 0 && budget < 8 << 20);
                                    }
                                    Err(error) => panic!("{error}"),
                                }
                                std::thread::yield_now();
                            };
                            assert!(logits == *wanted);
                        }
                    }
                });
            }
        });
        assert_sound(&memory);
        assert_empties(memory);
    }
}

#[test]
fn pinned_parts_stay_while_another_model_streams() {
    let (pinned, other) = (model("golden/llama_k_quants"), model("alpha"));
    for pin in [Pin::Head(1), Pin::Head(2), Pin::All] {
        let memory = memory(2 << 20);
        let mut pool = crew(2);
        let a = memory.add("a", &pinned).unwrap();
        let b = memory.add("b", &other).unwrap();
        memory.pin("a", pin).unwrap();
        assert!(states(&memory, "a").iter().all(|s| *s == State::Cold), "a pin loads nothing");
        a.load(pin).unwrap();
        let n = states(&memory, "a").iter().filter(|s| **s == State::Pinned).count();
        let covered = (0..a.parts().count() as u32).filter(|i| pin.covers(*i)).count();
        assert_eq!(n, covered);
        Script::new(&other).check(&mut session(&b, &pool), &mut pool);
        let n = states(&memory, "a").iter().filter(|s| **s == State::Pinned).count();
        assert_eq!(n, covered, "{pin:?}: one has gone");
        assert!(memory.stats().evictions > 0, "nothing streams");
        Script::new(&pinned).check(&mut session(&a, &pool), &mut pool);

        // A budget that the pin does not leave room in is refused.
        let least = memory.smallest_budget();
        assert_eq!(refusal(&memory.set_budget(least - 1).unwrap_err()).2, least);
        // Room for a session's cache and buffers beside.
        memory.set_budget(least + (300 << 10)).unwrap();
        Script::new(&pinned).check(&mut session(&a, &pool), &mut pool);
        memory.pin("a", Pin::None).unwrap();
        assert!(memory.smallest_budget() < least);
        assert!(states(&memory, "a").iter().all(|s| *s != State::Pinned));
        assert_sound(&memory);
        drop((a, b));
        assert_empties(memory);
    }
}

#[test]
fn a_pin_that_does_not_fit_is_refused_and_changes_nothing() {
    let model = model("alpha");
    let memory = memory(1500 << 10);
    let mut pool = crew(1);
    let placed = memory.add("it", &model).unwrap();
    memory.pin("it", Pin::Head(1)).unwrap();
    let least = memory.smallest_budget();
    for pin in [Pin::All, Pin::Head(1000)] {
        let (need, budget, smallest) = refusal(&memory.pin("it", pin).unwrap_err());
        let all: u64 = placed.parts().map(|(.., blocks)| blocks).sum();
        assert!(need == all && budget == 1500 << 10 && smallest > budget, "{need} {budget} {smallest}");
        assert_eq!((memory.status()[0].pin, memory.smallest_budget()), (Pin::Head(1), least));
    }
    Script::new(&model).check(&mut session(&placed, &pool), &mut pool);
    let smallest = refusal(&memory.pin("it", Pin::All).unwrap_err()).2;
    memory.set_budget(smallest - 1).unwrap();
    memory.pin("it", Pin::All).unwrap_err();
    memory.set_budget(smallest).unwrap();
    memory.pin("it", Pin::All).unwrap();
    placed.load(Pin::All).unwrap();
    assert_sound(&memory);
    // Removing takes the pin along.
    drop(placed);
    assert_empties(memory);
}
