//! Models that come and go, names, pins.

use super::*;
use crate::m3::{Pin, Placed, State};

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
fn names_are_taken_once_and_two_names_of_a_file_are_one_model() {
    let (tied, qwen) = (model("golden/llama_tied"), model("golden/qwen2"));
    let memory = memory(4 << 20);
    let mut pool = crew(1);
    let a = memory.add("a", &tied).unwrap();
    for model in [&tied, &qwen] {
        let error = memory.add("a", model).unwrap_err();
        assert!(matches!(&error, MemoryError::NameTaken { name } if name == "a"), "{error}");
    }
    let text = memory.get("c").unwrap_err().to_string();
    assert!(text.contains("\"c\"") && text.contains("there are a"), "{text}");
    for error in [memory.remove("c").unwrap_err(), memory.pin("c", Pin::All).unwrap_err()] {
        assert!(matches!(error, MemoryError::UnknownName { .. }), "{error}");
    }
    // The same file, opened once more.
    let b = memory.add("b", &self::model("golden/llama_tied")).unwrap();
    assert!(a.is(&b) && memory.get("b").unwrap().is(&a));
    assert_eq!(memory.status().len(), 1);
    let mut one = session(&a, &pool);
    Script::new(&tied).check(&mut one, &mut pool);
    let loaded = memory.stats().bytes_loaded;
    let mut two = session(&b, &pool);
    Script::new(&tied).check(&mut two, &mut pool);
    assert_eq!(memory.stats().bytes_loaded, loaded, "loaded once");

    // With sessions open one name may go, not both, whichever is first.
    memory.remove("a").unwrap();
    let error = memory.remove("b").unwrap_err();
    assert!(matches!(&error, MemoryError::InUse { name, sessions: 2 } if name == "b"), "{error}");
    assert_eq!(memory.names(), ["b"]);
    // The name is free again, for another model.
    let other = memory.add("a", &qwen).unwrap();
    assert!(!other.is(&b));
    Script::new(&qwen).check(&mut session(&other, &pool), &mut pool);
    two.truncate(0);
    Script::new(&tied).check(&mut two, &mut pool);
    let names: Vec<Vec<String>> = memory.status().into_iter().map(|m| m.names).collect();
    assert_eq!(names, [["b"], ["a"]]);
    drop((one, two, a, b, other));
    assert_empties(memory);
}

#[test]
fn messages_name_a_model_by_a_name_that_it_still_has() {
    let model = model("golden/llama_tied");
    let memory = memory(4 << 20);
    let (seen, changes) = std::sync::mpsc::channel();
    memory.watch(move |change| drop(seen.send(change.model.to_string())));
    let source = Unruly::new(&model, |_, way| match way {
        Way::Row => Answer::Right,
        _ => Answer::Error,
    });
    let placed = memory.add_from("first", &model, Arc::new(source)).unwrap();
    memory.add("second", &model).unwrap();
    memory.remove("first").unwrap();
    let error = placed.load(Pin::All).unwrap_err().to_string();
    assert!(error.contains("second") && !error.contains("first"), "{error}");
    assert!(changes.try_iter().all(|name| name == "second"));
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

/// Others add and remove models, in the same memory, while a session runs: none of its steps fails.
#[test]
fn models_come_and_go_while_a_session_runs() {
    let (main, small, twin) = (model("alpha"), model("golden/llama_tied"), model("golden/qwen2"));
    let script = Script::new(&main);
    let memory = memory(2 << 20);
    let placed = memory.add("main", &main).unwrap();
    let mut pool = crew(2);
    let mut running = session(&placed, &pool);
    script.check(&mut running, &mut pool);
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for k in 0..2 {
            let (memory, stop, rounds, main, small, twin) = (&memory, &stop, &rounds, &main, &small, &twin);
            let placed = &placed;
            scope.spawn(move || {
                let _stop = Stop(stop);
                let (own, alias) = (format!("own {k}"), format!("alias {k}"));
                while !stop.load(SeqCst) {
                    // Both threads want this name, for different models.
                    let shared = memory.add("shared", if k == 0 { small } else { twin });
                    assert!(matches!(shared, Ok(_) | Err(MemoryError::NameTaken { .. })));
                    let own_place = memory.add(&own, twin).unwrap();
                    assert!(memory.add(&alias, main).unwrap().is(placed));
                    // There may be no room beside what runs; that is an error and nothing else.
                    let loaded = own_place.load(Pin::Head(2));
                    assert!(!matches!(loaded, Err(MemoryError::Read { .. })));
                    match memory.remove("main") {
                        // The alias still holds it.
                        Ok(()) => assert!(memory.add("main", main).unwrap().is(placed)),
                        Err(error) => assert!(is_unknown(&error), "{error}"),
                    }
                    memory.remove(&alias).unwrap();
                    memory.remove(&own).unwrap_or_else(|e| assert!(is_leased(&e), "{e}"));
                    let gone = memory.remove("shared");
                    assert!(gone.is_ok() || gone.is_err_and(|e| is_leased(&e) || is_unknown(&e)));
                    let _ = (memory.status(), memory.names(), memory.remove(&own));
                    rounds.fetch_add(1, Relaxed);
                }
            });
        }
        let _stop = Stop(&stop);
        let mut passes = 0;
        while (passes < 15 || rounds.load(Relaxed) < 20) && !stop.load(SeqCst) {
            running.truncate(0);
            script.check(&mut running, &mut pool);
            passes += 1;
        }
    });
    assert_sound(&memory);
    drop((running, placed));
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

/// Vectors take room from blocks that held weights: those go back to the system at once.
#[test]
fn a_model_that_comes_takes_the_room_of_its_vectors_from_blocks() {
    let (first, second) = (model("golden/llama_k_quants"), model("alpha"));
    let memory = memory(1 << 20);
    let mut pool = crew(1);
    let a = memory.add("a", &first).unwrap();
    Script::new(&first).check(&mut session(&a, &pool), &mut pool);
    let free = memory.books().free();
    // All but a few bytes, so that the next one to come needs a block.
    let least = memory.smallest_budget() + 3 * memory.block() as u64;
    memory.set_budget(least.max(memory.books().used().0)).unwrap();
    assert!(free.0 > 0);
    assert_sound(&memory);
    let _ = memory.add("b", &second);
    assert_sound(&memory);
    drop(a);
    assert_empties(memory);
}
