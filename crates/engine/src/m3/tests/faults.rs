//! Sources that fail, are slow, or panic.

use super::*;
use std::sync::mpsc::{RecvTimeoutError, channel};

/// Threads, prefetch, and whether everything has to come from a disk.
fn ways() -> impl Iterator<Item = (usize, bool, bool)> {
    let both = [false, true];
    let ways = both.into_iter().flat_map(move |far| both.map(|prefetch| (prefetch, far)));
    ways.flat_map(|(prefetch, far)| [1, 2].map(|threads| (threads, prefetch, far)))
}

fn options(budget: u64, prefetch: bool) -> MemoryOptions {
    MemoryOptions { prefetch, ..MemoryOptions::new(budget) }
}

/// One call after another goes wrong; in between everything works.
fn every_call_may_fail(name: &str, budget: u64, stride: usize) {
    let model = model(name);
    let script = Script::new(&model);
    for (threads, prefetch, far) in ways() {
        let mut pool = crew(threads);
        let (mut failing, mut tried) = (0, 0);
        for n in (0..).step_by(stride) {
            let context = format!("{name}, {threads} threads, prefetch {prefetch}, far {far}, call {n}");
            let source = Arc::new(Unruly::new(&model, move |call, way| match way {
                _ if call == n => Answer::Error,
                Way::Cached if far => Answer::NotCached,
                _ => Answer::Right,
            }));
            let memory = Memory::new(options(budget, prefetch)).unwrap();
            let placed = memory.add_from("it", &model, source.clone()).unwrap();
            let parts = part_names(&placed);
            let mut session = Session::placed(&placed, &pool, SESSION).unwrap();
            let mut failed = 0;
            for (tokens, wanted) in &script.0 {
                let before = session.tokens().to_vec();
                let mut result = step(&mut session, &mut pool, tokens);
                assert_sound(&memory);
                if let Err(error) = &result {
                    failed += 1;
                    assert_read_error(error, &parts);
                    assert!(error.to_string().contains("on fire"), "{context}: {error}");
                    assert_eq!(session.tokens(), before, "{context}");
                    result = step(&mut session, &mut pool, tokens);
                }
                assert!(result.unwrap() == *wanted, "{context}: other logits after {tokens:?}");
            }
            drop((session, placed));
            let done = source.calls() <= n;
            assert_empties(memory);
            assert!(failed <= usize::from(!done), "{context}: {failed} steps have failed");
            // A prefetch that fails is tried again; without any, the step has to say it.
            assert!(done || prefetch || failed == 1, "{context}: the failure was lost");
            failing += failed;
            tried += 1;
            if done {
                break;
            }
        }
        assert!(failing > 0 && tried > 5, "{name}: {failing} of {tried}");
    }
}

#[test]
fn whichever_read_fails_the_step_is_an_error_and_the_next_try_works() {
    let tiny = model("golden/llama_tq1_0");
    every_call_may_fail("golden/llama_tq1_0", least(&tiny) + (32 << 10), 1);
    every_call_may_fail("alpha", 1200 << 10, 23);
}

#[test]
fn a_source_that_stays_broken_fails_every_step_until_it_is_whole_again() {
    let model = model("golden/llama_k_quants");
    let script = Script::new(&model);
    for (threads, prefetch, far) in ways() {
        let mut pool = crew(threads);
        let broken = Arc::new(AtomicBool::new(false));
        let state = Arc::clone(&broken);
        let source = Unruly::new(&model, move |_, way| match way {
            // The rows of the embedding stay readable, so that the parts are what fails.
            Way::Cached if far => Answer::NotCached,
            Way::Far | Way::Cached if state.load(SeqCst) => Answer::Error,
            _ => Answer::Right,
        });
        let memory = Memory::new(options(least(&model) + (32 << 10), prefetch)).unwrap();
        let placed = memory.add_from("it", &model, Arc::new(source)).unwrap();
        let parts = part_names(&placed);
        let mut session = Session::placed(&placed, &pool, SESSION).unwrap();
        for (tokens, wanted) in &script.0 {
            broken.store(true, SeqCst);
            for _ in 0..3 {
                let before = session.tokens().to_vec();
                assert_read_error(&step(&mut session, &mut pool, tokens).unwrap_err(), &parts);
                assert_eq!(session.tokens(), before);
                assert_sound(&memory);
            }
            broken.store(false, SeqCst);
            assert!(step(&mut session, &mut pool, tokens).unwrap() == *wanted);
        }
        assert!(memory.stats().failed_loads > 0);
        drop((session, placed));
        assert_empties(memory);
    }
}

#[test]
fn what_comes_from_a_slow_disk_gives_the_same_logits() {
    for (name, budget) in [("alpha", 1200 << 10), ("golden/llama_k_quants", 0)] {
        let model = model(name);
        let script = Script::new(&model);
        let budget = if budget > 0 { budget } else { least(&model) + (48 << 10) };
        for (threads, prefetch, _) in ways().take(4) {
            for (kind, not_cached) in [
                ("all", (|_| true) as fn(u64) -> bool),
                ("every 2nd", |call| call % 2 == 0),
                ("some", |call| call.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 62 == 0),
            ] {
                let mut source = Unruly::new(&model, move |call, way| match way {
                    Way::Cached if not_cached(call) => Answer::NotCached,
                    _ => Answer::Right,
                });
                source.delay = Duration::from_micros(100);
                let memory = Memory::new(options(budget, prefetch)).unwrap();
                let placed = memory.add_from("it", &model, Arc::new(source)).unwrap();
                let mut pool = crew(threads);
                let mut session = Session::placed(&placed, &pool, SESSION).unwrap();
                script.check(&mut session, &mut pool);
                let read = memory.fill_stats();
                assert!(read.disk_bytes > 0, "{name}, {kind}");
                assert_eq!(read.cached_bytes == 0, kind == "all", "{name}, {kind}: {read:?}");
                assert_sound(&memory);
                drop((session, placed));
                assert_empties(memory);
            }
        }
    }
}

/// Reads past the page cache write whole sectors: what lies beside them in a block must not suffer.
#[test]
fn sectors_around_a_read_belong_to_nothing_else() {
    let model = model("alpha");
    let script = Script::new(&model);
    let (memory, hog) = large_blocks(&model, 0);
    let mut source = Unruly::new(&model, |_, way| match way {
        Way::Cached => Answer::NotCached,
        _ => Answer::Right,
    });
    source.sectors = true;
    let placed = memory.add_from("it", &model, Arc::new(source)).unwrap();
    let mut pool = crew(2);
    let mut session = Session::placed(&placed, &pool, SESSION).unwrap();
    script.check(&mut session, &mut pool);
    assert!(memory.stats().evictions > 0, "nothing streams");
    assert_sound(&memory);
    drop((session, placed, hog));
    assert_empties(memory);
}

/// A memory whose blocks are large enough for sectors, with the room of a small one: the rest is charged to nothing.
/// `extra` bytes more than a model like `model` needs to stream.
pub(super) fn large_blocks(model: &Model, extra: u64) -> (Memory, nexaquant_residency::Charge) {
    let memory = memory(128 << 20);
    assert_eq!(memory.block(), 256 << 10);
    let probe = memory.add("probe", model).unwrap();
    let largest = probe.parts().map(|(.., bytes)| bytes).max().unwrap();
    memory.remove("probe").unwrap();
    let room = 2 * largest + (1 << 20) + extra;
    let hog = memory.pay(Class::Staging, ((128 << 20) - room) as usize).unwrap();
    (memory, hog)
}

#[test]
fn a_source_that_panics_is_an_error_and_nobody_waits_for_it() {
    let model = model("golden/llama_tq1_0");
    let script = Script::new(&model);
    let budget = least(&model) + (32 << 10);
    let (done, outcome) = channel();
    let work = std::thread::spawn(move || {
        for (threads, prefetch, far) in ways() {
            let mut pool = crew(threads);
            for n in 0.. {
                let source = Arc::new(Unruly::new(&model, move |call, way| match way {
                    Way::Row => Answer::Right,
                    _ if call == n => Answer::Panic,
                    Way::Cached if far => Answer::NotCached,
                    _ => Answer::Right,
                }));
                let memory = Memory::new(options(budget, prefetch)).unwrap();
                let placed = memory.add_from("it", &model, source.clone()).unwrap();
                let parts = part_names(&placed);
                let mut session = Session::placed(&placed, &pool, SESSION).unwrap();
                for (tokens, wanted) in &script.0 {
                    let mut result = step(&mut session, &mut pool, tokens);
                    if let Err(error) = &result {
                        assert_read_error(error, &parts);
                        result = step(&mut session, &mut pool, tokens);
                    }
                    assert!(result.unwrap() == *wanted);
                    assert_sound(&memory);
                }
                drop((session, placed));
                assert_empties(memory);
                if source.calls() <= n {
                    break;
                }
            }
        }
        done.send(()).unwrap();
    });
    // Not a matter of time: without an end this would wait forever.
    let ended = outcome.recv_timeout(Duration::from_secs(120));
    assert!(ended != Err(RecvTimeoutError::Timeout), "somebody waits for a read that has panicked");
    work.join().unwrap();
}
