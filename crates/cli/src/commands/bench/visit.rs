//! One visit to one row: the model's figure and the machine's limit, one right after the other, with the same threads.

use super::subject::Subject;
use crate::args::Kv;
use crate::engine;
use crate::failure::Failure;
use crate::options;
use nexaquant_engine::kernels::{Isa, Ops};
use nexaquant_engine::limits::{Region, multiply_add_rate, read_rate};
use nexaquant_engine::model::op::Op;
use nexaquant_engine::opencl::Gpu;
use nexaquant_engine::sampler::SamplingParams;
use nexaquant_engine::{GenerateOptions, Model, Pool, Session, SessionOptions, generate};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// What a row measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A prompt of so many tokens.
    Prompt(usize),
    /// An answer of so many.
    Answer(usize),
}

impl Kind {
    /// As llama-bench calls them.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Prompt(_) => "pp",
            Kind::Answer(_) => "tg",
        }
    }
    pub fn tokens(self) -> usize {
        match self {
            Kind::Prompt(n) | Kind::Answer(n) => n,
        }
    }
}

/// A row's settings.
#[derive(Clone, Copy)]
pub struct Cell<'a> {
    pub subject: &'a Subject,
    /// `None` on a device.
    pub threads: Option<usize>,
    pub kv: Kv,
    pub kind: Kind,
}

impl Cell<'_> {
    /// Positions that its tokens take.
    pub fn needed(&self) -> Result<usize, Failure> {
        Ok(match self.kind {
            Kind::Prompt(n) => n,
            Kind::Answer(n) => n + 1 + beginning(&self.subject.model)?.len(),
        })
    }
}

/// What one visit found.
#[derive(Clone, Copy)]
pub struct Found {
    pub tokens_per_s: f64,
    /// Bytes read a second for an answer, products a second for a prompt: what the machine does at best.
    /// Nothing for a prompt on a device, where there is no loop yet that only multiplies, and for one whose products are
    /// not of bytes.
    pub limit: Option<f64>,
}

/// What all visits share.
pub struct Bench {
    pub engine: options::Engine,
    pub gpu: Option<Gpu>,
    ops: Ops,
    /// As many bytes as the largest model reads a token; `None` where there is not room for that beside the models, and on a
    /// device, which reads memory of its own.
    region: Option<Region>,
}

/// What an answer follows. Its tokens are few in any vocabulary.
const BEGINNING: &str = "Once upon a time";
/// How long a limit is measured, for each way of reaching it.
const LIMIT_TIME: Duration = Duration::from_millis(15);

impl Bench {
    pub fn new(engine: options::Engine, gpu: Option<Gpu>, subjects: &[Subject]) -> Result<Self, Failure> {
        let isa = Isa::detect().map_err(Failure::input)?;
        let ops = Ops::new(isa).ok_or_else(|| Failure::Internal(format!("there is no {isa} here")))?;
        let bytes = subjects.iter().map(|s| s.model.weight_bytes_per_token()).max().unwrap_or(0);
        let available = crate::system::System::here().memory().map_or(u64::MAX, |(_, available)| available);
        let room = gpu.is_none() && bytes <= available / 2;
        let region = if room { Region::new(bytes as usize).ok() } else { None };
        Ok(Self { engine, gpu, ops, region })
    }

    /// Measures a row once.
    pub fn visit(&self, cell: &Cell<'_>) -> Result<Found, Failure> {
        let model = &cell.subject.model;
        let options = options::Engine { kv: options::kv_type(cell.kv), ..self.engine.clone() };
        // One pool at a time: idle workers of another would take turns with these. Beside a device one has nothing to do.
        let (pin, threads) = (self.engine.pool.pin, cell.threads.unwrap_or(1));
        let mut pool = Pool::new(nexaquant_engine::PoolOptions { threads: Some(threads), pin })
            .map_err(|error| engine::threads(&error))?;
        // A device gives the cache all of its room at once.
        let context = if self.gpu.is_some() { cell.needed()? } else { 0 };
        let session = SessionOptions { context, all_threads: true, ..options.session(0) };
        let budget = self.engine.budget;
        let mut session = engine::session_on(self.gpu.as_ref(), model, &pool, budget, session)?;
        let bytes = model.weight_bytes_per_token() as usize;
        let batch = session.batch();
        let tokens_per_s = match cell.kind {
            Kind::Prompt(n) => prompt(&mut session, &mut pool, n)?,
            Kind::Answer(n) => answer(&mut session, &mut pool, n)?,
        };
        drop(session);
        let limit = match (cell.kind, &self.gpu) {
            (Kind::Prompt(_), Some(_)) => None,
            (Kind::Prompt(n), None) => {
                let mut rate =
                    |isa| multiply_add_rate(&mut pool, Ops::new(isa).unwrap_or(self.ops), LIMIT_TIME);
                int8_products(model, n, batch).map(|products| products_limit(&products, &mut rate))
            }
            // The same number of bytes, so that a model in a cache is compared with that cache.
            (Kind::Answer(_), Some(gpu)) => Some(gpu.read_rate(bytes).map_err(Failure::input)?),
            (Kind::Answer(_), None) => {
                // Where memory is short, the file's own.
                let all = self.region.as_ref().map_or(model.file().bytes(), Region::bytes);
                Some(read_rate(&mut pool, self.ops, &all[..all.len().min(bytes)], LIMIT_TIME))
            }
        };
        Ok(Found { tokens_per_s, limit })
    }
}

/// Products of a weight and an int8 activation in a prompt of `n` tokens, `batch` of them at most in a pass, by what multiplies them.
/// The head is computed for the last token. `None` where more than a tenth are of floats: then those are what takes the time.
pub fn int8_products(model: &Model, n: usize, batch: usize) -> Option<Vec<(Isa, u64)>> {
    let arch = model.architecture();
    let mut found: Vec<(Isa, u64)> = Vec::new();
    let (mut int8, mut all) = (0, 0);
    for (i, unit) in arch.units.iter().enumerate() {
        let tokens = if i + 1 == arch.units.len() { 1 } else { n };
        let products = unit.ops.iter().filter_map(|op| match op {
            Op::MatMul { products, .. } => Some(products),
            _ => None,
        });
        for p in products.flatten() {
            let (kernel, matrix) = (model.weights().kernel(p.matrix), &arch.matrices[p.matrix.0]);
            let more = (matrix.rows * matrix.cols * tokens) as u64;
            all += more;
            if kernel.grain().is_some() {
                int8 += more;
                let with = kernel.multiplies_with(tokens.min(batch));
                match found.iter_mut().find(|(isa, _)| *isa == with) {
                    Some((_, products)) => *products += more,
                    None => found.push((with, more)),
                }
            }
        }
    }
    (int8 * 10 >= all * 9).then_some(found)
}

/// Products a second where each instruction set does its own as fast as it can, one after the other.
fn products_limit(products: &[(Isa, u64)], rate: &mut dyn FnMut(Isa) -> f64) -> f64 {
    let all: u64 = products.iter().map(|(_, n)| n).sum();
    let seconds: f64 = products.iter().map(|&(isa, n)| n as f64 / rate(isa)).sum();
    all as f64 / seconds
}

/// Tokens a second of a prompt of `n`, after a short one that warms up.
fn prompt(session: &mut Session, pool: &mut Pool, n: usize) -> Result<f64, Failure> {
    let vocab = session.model().architecture().vocab;
    // Different ones, so that rows of the embedding table are read as in a text.
    let tokens: Vec<u32> = (0..n).map(|i| (i * 7919 % vocab) as u32).collect();
    session.eval(pool, &tokens[..n.min(session.batch())]).map_err(Failure::input)?;
    session.truncate(0);
    let start = Instant::now();
    session.eval(pool, &tokens).map_err(Failure::input)?;
    Ok(n as f64 / start.elapsed().as_secs_f64())
}

/// Forward passes a second of a greedy answer of `n` passes, as `nexaquant run` makes it.
fn answer(session: &mut Session, pool: &mut Pool, n: usize) -> Result<f64, Failure> {
    let prompt = beginning(session.model())?;
    let mut go = |passes: usize| {
        let options = GenerateOptions {
            sampling: SamplingParams {
                temperature: 0.0,
                repeat_penalty: 1.0,
                seed: Some(0),
                ..Default::default()
            },
            // The first token comes of the prompt's pass.
            max_tokens: Some(passes + 1),
            ignore_end: true,
            continues_prompt: true,
            ..Default::default()
        };
        let text = |_: &str| ControlFlow::Continue(());
        generate(session, pool, &prompt, &options, text).map_err(Failure::input)
    };
    go(2)?;
    Ok(go(n)?.stats.tokens_per_s())
}

/// Tokens that an answer follows.
pub fn beginning(model: &Model) -> Result<Vec<u32>, Failure> {
    engine::encode(model, BEGINNING, false)
}
