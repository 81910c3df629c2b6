//! What models under a budget will do, without loading them: who stays in memory, what streams, how fast it will be.
//!
//! A plan is a rehearsal. The models get places in a real memory with the budget asked for, sessions pay for real caches
//! and buffers, and turns are taken as the scheduler would; only the bytes are not read. So what is resident, what is
//! moved and what is refused is not estimated: it is what the same code does. The steps are computed for real, on
//! weights that are zeros, which takes the time it will take. What reading takes is measured on a sample of each file.
//!
//! On a device nothing is read while models take turns: parts are copied there from the host's memory, beside the computing. So a
//! rehearsal copies, too, zeros from as much pinned memory as the weights will take, and the time of a pass is all of it.

use super::Pin;
use super::error::MemoryError;
use super::memory::{Memory, MemoryOptions};
use super::placed::Placed;
use super::source::{SECTOR, Source, source};
use crate::loader::Model;
use crate::opencl::{DeviceError, Gpu, PageIn, Rates};
use crate::sampler::Wanted;
use crate::session::{EvalError, Session, SessionError, SessionOptions};
use crate::threads::{Pool, Worker};
use memmap2::MmapOptions;
use std::io::{IoSliceMut, Result as IoResult};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

/// A model of a plan.
#[derive(Clone, Debug)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// The model.
    pub model: Model,
    /// What of it is to stay.
    pub pin: Pin,
    /// Tokens of its prompt.
    pub prompt: usize,
    /// Of a memory on a device: the last layers that have a place there, as in [`Memory::add_last`]. The CPU computes the others for
    /// real, out of the file.
    pub layers: usize,
}

/// What is planned.
#[derive(Clone, Copy, Debug)]
pub struct Rehearsal {
    /// The memory.
    pub memory: MemoryOptions,
    /// How sessions are opened.
    pub session: SessionOptions,
    /// Positions that the cache holds before the prompt: a long conversation leaves less room to weights.
    pub filled: usize,
    /// Tokens of an answer, which are one turn.
    pub answer: usize,
}

/// Where weights come in from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The page cache, copied by the cores that compute.
    Cache,
    /// A disk, which works beside them.
    Disk,
    /// The host's pinned memory, to a device, which copies beside its computing.
    Host,
}

/// How fast a model's bytes come in.
#[derive(Clone, Copy, Debug)]
pub struct ReadRate {
    /// Bytes a second: with all workers copying, with a queue of reads where a disk has to be waited for, or of copies to a device.
    pub bytes_per_s: f64,
    /// Where they were.
    pub from: From,
    /// Bytes of the sample; of one copy to a device.
    pub sample: u64,
}

/// Forward passes of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passes {
    /// Bytes that come in, all passes together.
    pub bytes: u64,
    /// Time of computing, all passes together.
    pub compute: Duration,
    /// How many.
    pub passes: u32,
}

/// One part at the end of a model's turn.
#[derive(Clone, Debug)]
pub struct PlannedPart {
    /// `layer 3`.
    pub name: String,
    /// Its size in blocks.
    pub bytes: u64,
    /// Of that, in memory.
    pub kept: u64,
}

/// What one model will do.
#[derive(Clone, Debug)]
pub struct ModelPlan {
    /// Its name.
    pub name: String,
    /// Bytes of weights that a token reads.
    pub weight_bytes: u64,
    /// Bytes of its parts in blocks.
    pub block_bytes: u64,
    /// Bytes that its session pays at the end of an answer: cache and buffers.
    pub session_bytes: u64,
    /// Who is in memory when its turn ends.
    pub parts: Vec<PlannedPart>,
    /// The prompt, coming from the other models' turns (or from nothing, if it is alone).
    pub prompt: Passes,
    /// The tokens after the first one.
    pub tokens: Passes,
    /// How fast its file can be read.
    pub rate: ReadRate,
}

impl ModelPlan {
    /// Time of passes: bytes in the page cache are copied by the cores that compute, so that adds up; a disk works beside
    /// them. What a device was given while it computed is in the time already.
    fn time(&self, passes: &Passes) -> Duration {
        match self.rate.from {
            From::Cache => passes.compute + self.coming(passes),
            From::Disk => passes.compute.max(self.coming(passes)),
            From::Host => passes.compute,
        }
    }

    /// How long the bytes of passes take to come in.
    fn coming(&self, passes: &Passes) -> Duration {
        Duration::from_secs_f64(passes.bytes as f64 / self.rate.bytes_per_s)
    }

    /// From the request to the first token.
    pub fn switch_time(&self) -> Duration {
        self.time(&self.prompt)
    }

    /// Of that, what bringing weights in takes.
    pub fn page_in_time(&self) -> Duration {
        self.coming(&self.prompt)
    }

    /// Tokens a second after the first.
    pub fn tokens_per_s(&self) -> f64 {
        let time = self.time(&self.tokens).as_secs_f64();
        if time > 0.0 { f64::from(self.tokens.passes) / time } else { 0.0 }
    }

    /// Bytes that come in for a token.
    pub fn streamed_per_token(&self) -> u64 {
        self.tokens.bytes / u64::from(self.tokens.passes.max(1))
    }

    /// Bytes of its parts that are in memory when its turn ends.
    pub fn resident_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.kept).sum()
    }

    /// What takes most of a token's time.
    pub fn limited_by(&self) -> &'static str {
        let (coming, compute) = (self.coming(&self.tokens), self.tokens.compute);
        match self.rate.from {
            From::Cache if coming > compute => "copying weights from the page cache",
            From::Disk if coming > compute => "reading weights from the disk",
            // The copies are in the time.
            From::Host if 2 * coming > compute => "copying weights to the device",
            _ => "computing",
        }
    }
}

/// What a budget will do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order given.
    pub models: Vec<ModelPlan>,
    /// The most that the ledger gave out.
    pub high_water: u64,
    /// The smallest budget that would have done; not known of a device.
    pub smallest_budget: Option<u64>,
    /// Bytes a second that the device reads from its memory at best, where one computes.
    pub device_read: Option<f64>,
}

/// Why there is no plan: what the run itself would say.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The memory refuses.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A session cannot be opened.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A step has no room.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The device cannot be measured.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The budget cannot hold what the longest answer takes.
    #[error(
        "a budget of {budget} bytes is too small for these models and tokens; the smallest budget that would do is \
         {smallest} bytes"
    )]
    TooSmall {
        /// The budget.
        budget: u64,
        /// The smallest that would have done.
        smallest: u64,
    },
    /// A sample of a file cannot be read.
    #[error("{path}: {source}")]
    Sample {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Bytes that are nowhere: what it reads is memory that has been touched, with zeros in it, since blocks begin as zeros
/// and nobody ever writes anything else.
struct Nothing;

impl Source for Nothing {
    fn read(&self, _: u64, to: &mut [u8]) -> IoResult<()> {
        // A page that was never written is one that all share, which the cache would hold as one.
        to.iter_mut().step_by(4096).for_each(|byte| *byte = 0);
        Ok(())
    }
    fn is_nothing(&self) -> bool {
        true
    }
}

/// Tokens of the answer that are timed; the others cost the same.
const TIMED: usize = 16;
/// The first tokens after a prompt are not timed: what the prompt's buffers displaced comes back.
const SETTLING: usize = 2;

/// Rehearses: every model in turn answers once, twice over, and the second time counts. On `gpu`, if there is one.
///
/// # Errors
/// What a run would be refused with.
pub fn plan(
    roles: &[Role],
    rehearsal: &Rehearsal,
    gpu: Option<&Gpu>,
    pool: &mut Pool,
) -> Result<Plan, PlanError> {
    let smallest = gpu.is_none().then(|| smallest(roles, rehearsal, pool));
    if let Some(smallest) = smallest {
        check(roles, rehearsal, smallest, pool)?;
    }
    // While its memory is free.
    let device = gpu.map(Gpu::measure).transpose()?;
    let memory = match gpu {
        Some(gpu) => Memory::on_device(gpu, rehearsal.memory)?,
        None => Memory::new(rehearsal.memory)?,
    };
    let mut rates = Vec::new();
    let mut placed = Vec::new();
    for role in roles {
        let place = memory.add_last_from(&role.name, &role.model, role.layers, Arc::new(Nothing))?;
        rates.push(match &device {
            Some(device) => copy_rate(device, &place),
            None => read_rate(&role.model, rehearsal.memory, pool)?,
        });
        placed.push(place);
    }
    for (role, place) in roles.iter().zip(&placed) {
        memory.pin(&role.name, role.pin)?;
        place.load(role.pin)?;
    }
    if gpu.is_some() {
        ends(roles, rehearsal, &placed, pool)?;
    }
    let answer = rehearsal.answer.min(SETTLING + TIMED);
    let mut plans: Vec<ModelPlan> = Vec::new();
    let rounds = if roles.len() > 1 { 2 } else { 1 };
    for round in 0..rounds {
        for (i, (role, place)) in roles.iter().zip(&placed).enumerate() {
            let mut session = Session::placed(place, pool, rehearsal.session)?;
            let passes = (role.prompt.div_ceil(session.batch()) + answer) as u32;
            let queue: Vec<(Placed, u32)> =
                (0..placed.len()).map(|k| (placed[(i + k) % placed.len()].clone(), passes)).collect();
            memory.expect(&queue);
            session.pretend(rehearsal.filled.min(session.context().saturating_sub(role.prompt + answer)));
            let tokens = vec![0; role.prompt.max(1)];
            let (head, last) = tokens.split_at((tokens.len() - 1) / session.batch() * session.batch());
            let prompt = measure(&memory, || -> Result<(), EvalError> {
                session.extend(pool, head)?;
                next(&mut session, pool, last)
            })?;
            let mut later: Vec<Passes> = Vec::new();
            let mut parts = Vec::new();
            for passes_left in (0..answer).rev() {
                // Before the last pass, which gives what it is done with to the next model.
                if passes_left == 0 {
                    parts = parts_of(&memory, role);
                }
                later.push(measure(&memory, || next(&mut session, pool, &[0]))?);
            }
            if round + 1 == rounds {
                plans.push(ModelPlan {
                    name: role.name.clone(),
                    weight_bytes: role.model.weight_bytes_per_token(),
                    block_bytes: place.parts().map(|(_, _, bytes)| bytes).sum(),
                    session_bytes: session.charged() as u64,
                    parts,
                    prompt,
                    tokens: typical(&later[if answer > SETTLING { SETTLING } else { 0 }..]),
                    rate: rates[i],
                });
            }
        }
    }
    let high_water = memory.books().high_water.0;
    drop((placed, memory));
    let device_read = device.map(|device| device.read);
    Ok(Plan { models: plans, high_water, smallest_budget: smallest, device_read })
}

/// Whether the budget can hold everything, in the words of whoever refuses it.
fn check(roles: &[Role], rehearsal: &Rehearsal, smallest: u64, pool: &Pool) -> Result<(), PlanError> {
    let budget = rehearsal.memory.budget;
    match fits(roles, rehearsal, budget, pool) {
        Ok(()) => Ok(()),
        // Says what to do about the pin.
        Err(
            error @ PlanError::Memory(MemoryError::Residency(nexaquant_residency::Error::PinTooBig {
                ..
            })),
        ) => Err(error),
        Err(_) if smallest < MOST => Err(PlanError::TooSmall { budget, smallest }),
        Err(error) => Err(error),
    }
}

/// A step that says what comes next. Of a device only that comes back, as in an answer.
fn next(session: &mut Session, pool: &mut Pool, tokens: &[u32]) -> Result<(), EvalError> {
    match session.eval_best(pool, tokens, Wanted::Best(1))? {
        Some(_) => Ok(()),
        None => session.eval(pool, tokens).map(|_| ()),
    }
}

/// Makes each model's last step on a device, alone: whether the longest cache has its place beside the buffers shows nowhere else.
fn ends(roles: &[Role], rehearsal: &Rehearsal, placed: &[Placed], pool: &mut Pool) -> Result<(), PlanError> {
    for (place, role) in placed.iter().zip(roles) {
        let mut session = Session::placed(place, pool, rehearsal.session)?;
        let end = rehearsal.filled + role.prompt + rehearsal.answer;
        session.pretend(end.saturating_sub(1).min(session.context() - 1));
        next(&mut session, pool, &[0])?;
    }
    Ok(())
}

/// How fast parts of about this model's size were copied to the device.
fn copy_rate(device: &Rates, place: &Placed) -> ReadRate {
    let part = place.parts().map(|(_, _, bytes)| bytes).max().unwrap_or(0);
    let nearest = device.page_in.iter().min_by_key(|copy| (copy.bytes as u64).abs_diff(part));
    let rate = |copy: &PageIn| copy.bytes as f64 / copy.time.as_secs_f64().max(1e-9);
    ReadRate {
        bytes_per_s: nearest.map_or(f64::INFINITY, rate),
        from: From::Host,
        sample: nearest.map_or(0, |copy| copy.bytes as u64),
    }
}

/// All bytes, and as much time as if every pass took the median: the first few try whether one thread would be faster,
/// and other programs may come between.
fn typical(passes: &[Passes]) -> Passes {
    let mut times: Vec<Duration> = passes.iter().map(|pass| pass.compute).collect();
    times.sort_unstable();
    let n = passes.len() as u32;
    Passes {
        bytes: passes.iter().map(|pass| pass.bytes).sum(),
        compute: times.get(times.len() / 2).copied().unwrap_or_default() * n,
        passes: n,
    }
}

/// More than any budget.
const MOST: u64 = 1 << 50;

/// The smallest budget, to 4 KiB, under which each of the models can answer while the others have their places.
fn smallest(roles: &[Role], rehearsal: &Rehearsal, pool: &Pool) -> u64 {
    let (mut low, mut high) = (0, MOST);
    while high - low > 4096 {
        let middle = low.midpoint(high);
        match fits(roles, rehearsal, middle, pool) {
            Ok(()) => high = middle,
            Err(_) => low = middle,
        }
    }
    high
}

/// Whether everything can be paid for; nothing is loaded for that, since a part that can be loaded will be
/// (`nexaquant_residency::Pool`, invariant 3).
fn fits(roles: &[Role], rehearsal: &Rehearsal, budget: u64, pool: &Pool) -> Result<(), PlanError> {
    let memory = Memory::of_numbers(MemoryOptions { budget, ..rehearsal.memory })?;
    let places: Result<Vec<Placed>, MemoryError> = roles
        .iter()
        .map(|role| {
            let place = memory.add_from(&role.name, &role.model, Arc::new(Nothing))?;
            memory.pin(&role.name, role.pin)?;
            Ok(place)
        })
        .collect();
    for (place, role) in places?.iter().zip(roles) {
        let mut session = Session::placed(place, pool, rehearsal.session)?;
        let end = rehearsal.filled + role.prompt + rehearsal.answer;
        session.pretend(end.saturating_sub(1).min(session.context() - 1));
        session.prepare(pool.threads(), 1)?;
        session.pretend(0);
        session.prepare(pool.threads(), session.batch().min(role.prompt.max(1)))?;
    }
    Ok(())
}

fn parts_of(memory: &Memory, role: &Role) -> Vec<PlannedPart> {
    let status = memory.status().into_iter().find(|model| model.names.contains(&role.name));
    let units = status.map_or_else(Vec::new, |model| model.units);
    units
        .into_iter()
        .map(|unit| PlannedPart { name: unit.name, bytes: unit.bytes.0, kept: unit.kept.0 })
        .collect()
}

/// What `work` moves and takes. Its loads take next to nothing, since nothing is read.
fn measure<E>(memory: &Memory, work: impl FnOnce() -> Result<(), E>) -> Result<Passes, E> {
    let (before, start) = (memory.stats().bytes_loaded.0, Instant::now());
    work()?;
    let compute = start.elapsed();
    Ok(Passes { bytes: memory.stats().bytes_loaded.0 - before, compute, passes: 1 })
}

/// Threads that read a disk fastest in pieces of 1 MiB.
const READERS_AT_BEST: usize = 4;
/// Bytes of a sample, at most, and how long it may take.
const SAMPLE: u64 = 128 << 20;
const SAMPLE_TIME: Duration = Duration::from_millis(300);

/// How fast the weights of `model` can be read, from where they are now.
fn read_rate(model: &Model, options: MemoryOptions, pool: &mut Pool) -> Result<ReadRate, PlanError> {
    let fail = |source| PlanError::Sample { path: model.file().path().display().to_string(), source };
    let source = source(model.file(), options.io, true).map_err(fail)?;
    let size = model.file().bytes().len() as u64;
    let piece = (size / 64).clamp(SECTOR as u64, 1 << 20).next_multiple_of(SECTOR as u64);
    let pieces = size.div_ceil(piece).min(SAMPLE / piece);
    let mut probe = vec![0; size.min(64) as usize];
    let mut cached = true;
    for eighth in 0..8 {
        let offset = (size - probe.len() as u64) / 8 * eighth;
        cached &= source.read_cached(offset, &mut [IoSliceMut::new(&mut probe)]).map_err(fail)?;
    }
    let (next, done, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let read = |start: Instant| {
        // Pages, so that they lie as blocks do.
        let buffer = MmapOptions::new().len(2 << 20).map_anon();
        let Ok(mut buffer) = buffer else { return failed.store(true, Relaxed) };
        buffer.fill(0);
        loop {
            let i = next.fetch_add(1, Relaxed);
            if i >= pieces || failed.load(Relaxed) || start.elapsed() > SAMPLE_TIME {
                return;
            }
            let (offset, len) = (i * piece, piece.min(size - i * piece) as usize);
            let result = if cached {
                source.read(offset, &mut buffer[..len])
            } else {
                source.read_far(offset, &mut buffer, 0, len)
            };
            match result {
                Ok(()) => drop(done.fetch_add(len as u64, Relaxed)),
                Err(_) => failed.store(true, Relaxed),
            }
        }
    };
    let start = Instant::now();
    if cached {
        pool.run(|_: &Worker<'_>| read(start));
    } else {
        std::thread::scope(|scope| {
            for _ in 0..READERS_AT_BEST {
                scope.spawn(|| read(start));
            }
        });
    }
    let (sample, time) = (done.load(Relaxed), start.elapsed().as_secs_f64());
    if sample == 0 {
        return Err(fail(std::io::ErrorKind::UnexpectedEof.into()));
    }
    let from = if cached { From::Cache } else { From::Disk };
    Ok(ReadRate { bytes_per_s: sample as f64 / time.max(1e-9), from, sample })
}
