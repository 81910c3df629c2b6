//! What a memory does when something goes wrong, or changes, while sessions run: reads that fail, files that are cut or
//! replaced, budgets and models that come and go. Whatever happens, a step either gives the logits of the mapped file, to
//! the last bit, or an error, with the session as it was.

mod budget;
mod cuts;
mod faults;
mod files;
mod models;
mod random;

use super::error::MemoryError;
use super::memory::{Memory, MemoryOptions};
use super::source::{Io, Source, source};
use crate::session::{EvalError, Session, SessionOptions};
use crate::{LoadOptions, Model, Pool, PoolOptions};
use nexaquant_kernels::KvType;
use nexaquant_residency::{Class, Error};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::time::Duration;

/// A context that all test models have; two chunks to the longest step.
const SESSION: SessionOptions =
    SessionOptions { context: 64, kv: KvType::F16, batch: 4, all_threads: true, outputs: 1 };

/// `alpha`: the model of that name; `golden/llama_tied`: one of the tiny ones.
fn path(name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    match name.strip_prefix("golden/") {
        Some(tiny) => here.join(format!("tests/golden/{tiny}.gguf")),
        None => here.join(format!("../../models/{name}.gguf")),
    }
}

fn model(name: &str) -> Model {
    Model::load(&path(name), LoadOptions::default()).unwrap()
}

fn crew(threads: usize) -> Pool {
    Pool::new(PoolOptions { threads: Some(threads), pin: false }).unwrap()
}

fn memory(budget: u64) -> Memory {
    Memory::new(MemoryOptions::new(budget)).unwrap()
}

/// One step's logits, bit by bit.
fn step(session: &mut Session, pool: &mut Pool, tokens: &[u32]) -> Result<Vec<u32>, EvalError> {
    let vocab = session.model().architecture().vocab as u32;
    let tokens: Vec<u32> = tokens.iter().map(|t| t % vocab).collect();
    Ok(session.eval(pool, &tokens)?.iter().map(|x| x.to_bits()).collect())
}

/// Steps, and the logits that each of them gives from the mapped file.
struct Script(Vec<(&'static [u32], Vec<u32>)>);

impl Script {
    fn new(model: &Model) -> Self {
        let mut pool = crew(1);
        let mut session = Session::new(model, &pool, SESSION).unwrap();
        let steps: [&[u32]; 4] = [&[1, 20, 21, 22, 23], &[7], &[300], &[5, 6]];
        Self(steps.map(|tokens| (tokens, step(&mut session, &mut pool, tokens).unwrap())).into())
    }

    /// All of it, in a session that has no tokens.
    fn check(&self, session: &mut Session, pool: &mut Pool) {
        for (tokens, wanted) in &self.0 {
            assert!(step(session, pool, tokens).unwrap() == *wanted, "other logits after {tokens:?}");
        }
    }
}

/// Whether the script runs in a memory of its own with `budget` bytes.
fn runs(model: &Model, budget: u64) -> bool {
    let pool = &mut crew(2);
    let Ok(memory) = Memory::new(MemoryOptions::new(budget)) else { return false };
    let Ok(placed) = memory.add("it", model) else { return false };
    let mut session = Session::placed(&placed, pool, SESSION).unwrap();
    [&[1, 20, 21, 22, 23][..], &[7]].iter().all(|tokens| step(&mut session, pool, tokens).is_ok())
}

/// The smallest budget in which the script runs, to a block.
fn least(model: &Model) -> u64 {
    let (mut low, mut high) = (0, 16 << 20);
    while high - low > 16 << 10 {
        let middle = u64::midpoint(low, high);
        if runs(model, middle) { high = middle } else { low = middle }
    }
    high
}

/// How a source is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Row,
    Cached,
    Far,
}

/// What it does then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Right,
    NotCached,
    Error,
    Panic,
}

type Decide = Box<dyn Fn(u64, Way) -> Answer + Send + Sync>;

/// A model's source with a will of its own.
struct Unruly {
    real: Box<dyn Source>,
    calls: AtomicU64,
    /// Told the number of the call, from 0.
    decide: Decide,
    /// What far reads take.
    delay: Duration,
    /// Far reads write the sectors around what they are asked for.
    sectors: bool,
}

impl Unruly {
    fn new(model: &Model, decide: impl Fn(u64, Way) -> Answer + Send + Sync + 'static) -> Self {
        let real = source(model.file(), Io::Cached, false).unwrap();
        let decide = Box::new(decide);
        Self { real, calls: AtomicU64::new(0), decide, delay: Duration::ZERO, sectors: false }
    }

    fn calls(&self) -> u64 {
        self.calls.load(SeqCst)
    }

    fn ask(&self, way: Way) -> std::io::Result<bool> {
        match (self.decide)(self.calls.fetch_add(1, SeqCst), way) {
            Answer::Right => Ok(true),
            Answer::NotCached => Ok(false),
            Answer::Error => Err(std::io::Error::other("the disk is on fire")),
            // As a panic, but nobody writes a trace of each of hundreds.
            Answer::Panic => std::panic::resume_unwind(Box::new("a source that panics")),
        }
    }
}

impl Source for Unruly {
    fn read(&self, offset: u64, to: &mut [u8]) -> std::io::Result<()> {
        self.ask(Way::Row)?;
        self.real.read(offset, to)
    }

    fn read_cached(&self, offset: u64, to: &mut [std::io::IoSliceMut<'_>]) -> std::io::Result<bool> {
        // Allowed in any case but success.
        for slice in to.iter_mut() {
            slice.fill(0xaa);
        }
        if !self.ask(Way::Cached)? {
            return Ok(false);
        }
        super::source::read_each(&*self.real, offset, to).map(|()| true)
    }

    fn read_far(&self, offset: u64, block: &mut [u8], at: usize, len: usize) -> std::io::Result<()> {
        std::thread::sleep(self.delay);
        block.fill(0x55);
        self.ask(Way::Far)?;
        self.real.read(offset, &mut block[at..at + len])
    }

    fn takes_sectors(&self) -> bool {
        self.sectors
    }
}

/// That a step has failed because a part could not be read, and says which.
fn assert_read_error(error: &EvalError, parts: &[String]) {
    let EvalError::Budget(inner) = error else { panic!("{error}") };
    let MemoryError::Read { part, .. } = &**inner else { panic!("{error}") };
    let known = part.starts_with("the embedding of token ") || parts.contains(part);
    assert!(known && error.to_string().contains(part.as_str()), "{error}");
}

/// The numbers of a refusal: what was needed, the budget, and the smallest that would have done.
fn refusal(error: &MemoryError) -> (u64, u64, u64) {
    let MemoryError::Residency(inner) = error else { panic!("{error}") };
    match inner {
        Error::OverBudget { need, budget, smallest_budget, .. }
        | Error::PinTooBig { need, budget, smallest_budget, .. } => {
            let text = error.to_string();
            assert!(text.contains(&smallest_budget.0.to_string()), "{text}");
            assert!(text.contains(&budget.to_string()) && text.contains(&need.to_string()), "{text}");
            (need.0, budget.0, smallest_budget.0)
        }
        _ => panic!("{error}"),
    }
}

fn budget_error(error: EvalError) -> MemoryError {
    match error {
        EvalError::Budget(error) => *error,
        error => panic!("{error}"),
    }
}

fn part_names(placed: &super::Placed) -> Vec<String> {
    placed.parts().map(|(name, ..)| name.to_owned()).collect()
}

/// The promises that hold at every instant.
fn assert_sound(memory: &Memory) {
    let books = memory.books();
    assert!(books.used() <= books.budget, "{books:?}");
    memory.audit();
}

/// Ends the threads beside a test, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Everything is returned when the sessions are gone and the models removed; and the memory itself goes.
fn assert_empties(memory: Memory) {
    for name in memory.names() {
        memory.remove(&name).unwrap();
    }
    assert_sound(&memory);
    assert_eq!(memory.books().used().0, 0, "something leaks: {:?}", memory.books());
    let gone = Arc::downgrade(&memory.0);
    drop(memory);
    assert!(gone.upgrade().is_none(), "the memory itself leaks");
}
