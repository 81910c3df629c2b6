//! The budget is one of memory, not only of numbers: what the process takes from the system stays within it.
//!
//! One test in this file, so that nothing else in the process allocates.

use nexaquant_engine::kernels::KvType;
use nexaquant_engine::m3::{Class, Memory, MemoryOptions};
use nexaquant_engine::synth::{Shape, format, synthesize};
use nexaquant_engine::{LoadOptions, Model, Pool, PoolOptions, Session, SessionOptions};
use std::io::{BufWriter, Write};

/// Bytes of memory of this process that no file backs; `None` where the system does not tell.
fn anonymous() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb << 10)
}

/// What the budget does not cover: stacks, the allocator's leftovers, tables of the memory itself.
const SLACK: u64 = 2 << 20;

#[test]
fn memory_of_the_process_stays_within_the_budget() {
    if anonymous().is_none() {
        println!("SKIPPED physical-memory: the system does not tell what memory of a process no file backs");
        return;
    }
    let shape = Shape::parse("layers=20,embd=1024,heads=8,kv=8,ff=2816,vocab=1024,ctx=512,head=own").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let out = BufWriter::new(file.as_file());
    synthesize(&shape, format("TQ2_0").unwrap(), 7, out).unwrap().flush().unwrap();
    let model = Model::load(file.path(), LoadOptions::default()).unwrap();
    let budget = 28 << 20;
    assert!(model.weight_bytes_per_token() > 2 * budget, "{} bytes", model.weight_bytes_per_token());

    let mut pool = Pool::new(PoolOptions { threads: Some(2), pin: false }).unwrap();
    let options = SessionOptions { context: 256, kv: KvType::F16, batch: 32, all_threads: true, outputs: 1 };
    let before = anonymous().unwrap();
    let mut most = 0;
    let mut within = |memory: &Memory, when: &str| {
        let taken = anonymous().unwrap().saturating_sub(before);
        most = taken.max(most);
        let books = memory.books();
        assert!(books.used() <= books.budget);
        let text = format!("{when}: {taken} bytes taken, {:?}", memory.books());
        assert!(taken <= books.budget.0 + SLACK, "{text}");
    };
    let memory = Memory::new(MemoryOptions::new(budget)).unwrap();
    let placed = memory.add("it", &model).unwrap();
    let mut session = Session::placed(&placed, &pool, options).unwrap();
    for token in 0..3 {
        session.eval(&mut pool, &[token]).unwrap();
        within(&memory, "streaming");
    }
    // All of the budget was in use, and the cache takes room that weights had: their memory has to go back.
    assert!(memory.stats().evictions > 0);
    let mut chunk: Vec<u32> = Vec::new();
    loop {
        chunk = (0..32).map(|i| (i * 7 + chunk.len() as u32) % 1000).collect();
        let step = session.eval(&mut pool, &chunk).map(drop);
        within(&memory, "the cache grows");
        if step.is_err() || session.free() < 32 {
            break;
        }
    }
    let kv = memory.books().of(Class::Kv).0;
    assert!(kv > 5 * SLACK && session.tokens().len() > 64, "{kv} bytes of cache");
    // A smaller budget is smaller at once.
    session.truncate(0);
    within(&memory, "the cache is gone");
    session.eval(&mut pool, &[1]).unwrap();
    for budget in [20 << 20, memory.smallest_budget() + (4 << 20)] {
        memory.set_budget(budget).unwrap();
        within(&memory, "a smaller budget");
        session.eval(&mut pool, &[2]).unwrap();
        within(&memory, "streaming in a smaller budget");
    }
    memory.set_budget(budget).unwrap();
    session.eval(&mut pool, &[3]).unwrap();
    within(&memory, "the old budget again");
    // Caches of two sessions grow by turns, and one of them goes: its memory must not stay with the other's.
    let mut other = Session::placed(&placed, &pool, options).unwrap();
    session.truncate(0);
    'full: loop {
        for session in [&mut session, &mut other] {
            if session.eval(&mut pool, &chunk).is_err() {
                break 'full;
            }
        }
        within(&memory, "two caches grow");
    }
    assert!(memory.books().of(Class::Kv).0 > 5 * SLACK);
    drop(session);
    other.rest();
    for token in [4, 5] {
        other.truncate(32);
        other.eval(&mut pool, &[token]).unwrap();
        within(&memory, "one cache is gone");
    }
    // And everything goes with the last one who holds it.
    drop((other, placed, memory));
    let left = anonymous().unwrap().saturating_sub(before);
    println!("{most} bytes taken at most, {left} left");
    assert!(left <= SLACK, "{left} bytes are left");
}
