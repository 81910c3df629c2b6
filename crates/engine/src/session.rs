//! A session: one sequence of tokens, its cache, and the step that extends it.
//!
//! Its weights are either in the mapped file, or in a memory with a budget ([`crate::m3`]). There everything that the
//! session holds is paid for before it is allocated: pages of the cache as they come, and the buffers of a step, which
//! are as large as the step at hand needs, so that a long prompt leaves the room to the weights when it is over.

use crate::cpu::{OutOfMemory, Scratch, Sizes, Span, Step};
use crate::file::FileError;
use crate::kv::{KvCache, KvLayout, KvTypeError, PAGE};
use crate::loader::Model;
use crate::m3::{MemoryError, Placed, Tenancy};
use crate::model::op::{Op, RopeTable, Slot};
use crate::opencl::{DeviceError, DeviceSession, OpenError};
use crate::sampler::Wanted;
use crate::threads::{Crew, Pool, Tuner, Worker};
use crate::weights::Place;
use nexaquant_kernels::{KvType, Ops};
use nexaquant_residency::{Charge, Class};
use std::ops::Range;
use std::time::Instant;

mod divided;
mod prefix;
mod shared;
#[cfg(test)]
mod tests;

pub(crate) use prefix::Prefix;
pub(crate) use shared::{Buffers, Member, Room};

/// How a session is opened.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Positions; 0: as many as the model was made for.
    pub context: usize,
    /// Element type of the cache.
    pub kv: KvType,
    /// Most prompt tokens in one step. More is faster for long prompts and takes memory; the result is the same.
    pub batch: usize,
    /// Use every worker in every step. Otherwise steps are timed, and the calling thread computes alone where that is
    /// faster: a small model, or cores that other programs use. The result is the same.
    pub all_threads: bool,
    /// Most tokens of a step whose logits are wanted ([`Session::eval_each`], and answers that guess ahead); the others use one.
    pub outputs: usize,
}

/// What a device has found of a step's logits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Best {
    /// The likeliest token.
    Token(u32),
    /// The likeliest few and their logits, in no order.
    Few(Vec<(u32, f32)>),
}

/// Positions unless told otherwise: enough for a conversation, small in memory.
pub const DEFAULT_CONTEXT: usize = 4096;
/// Prompt tokens in a step unless told otherwise.
pub const DEFAULT_BATCH: usize = 128;

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            context: DEFAULT_CONTEXT,
            kv: KvType::F16,
            batch: DEFAULT_BATCH,
            all_threads: false,
            outputs: 1,
        }
    }
}

/// Why a step cannot be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// More tokens than positions.
    #[error(
        "{needed} tokens do not fit a context of {context}; shorten the prompt or raise --ctx (this model was made for {model})"
    )]
    ContextFull {
        /// Positions needed.
        needed: usize,
        /// Positions there are.
        context: usize,
        /// Positions the model was made for.
        model: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token {token} is not in the vocabulary of {vocab}")]
    BadToken {
        /// The id.
        token: u32,
        /// Entries in the vocabulary.
        vocab: usize,
    },
    /// The file changed under us.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system gives no more memory; the session is as it was.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The budget has no room, or the weights cannot be read; the session is as it was.
    #[error(transparent)]
    Budget(Box<MemoryError>),
    /// The device fails.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl From<MemoryError> for EvalError {
    fn from(error: MemoryError) -> Self {
        EvalError::Budget(Box::new(error))
    }
}

/// Why a session cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The cache type does not suit the model.
    #[error(transparent)]
    KvType(#[from] KvTypeError),
    /// The system gives no more memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The device has no room, or fails.
    #[error(transparent)]
    Device(#[from] OpenError),
}

/// One sequence.
#[derive(Debug)]
pub struct Session {
    model: Model,
    /// Where there is a budget.
    tenancy: Option<Tenancy>,
    /// Where another device computes.
    device: Option<Box<DeviceSession>>,
    /// Units that the CPU computes, from the first: all of them where there is no device, none where that has them all.
    host: usize,
    ops: Ops,
    ropes: Vec<RopeTable>,
    /// `None` before the first step and after [`Session::rest`].
    scratch: Option<Scratch>,
    /// What the scratch costs, where there is a budget.
    paid: Option<Charge>,
    /// Embedding rows of a step's tokens, where there is a budget.
    gathered: Vec<u8>,
    /// Tokens of a step, and of those whose logits are wanted, at most.
    batch: usize,
    outputs: usize,
    kv: KvCache,
    tokens: Vec<u32>,
    /// Positions whose logits nobody has taken yet, and the one that has the first row of them.
    ahead: Range<usize>,
    first_row: usize,
    context: usize,
    all_threads: bool,
    /// For steps of one token and for longer ones, by the power of two.
    tuners: [Tuner; shared::KINDS],
}

impl Session {
    /// Opens an empty session over the mapped file.
    ///
    /// # Errors
    /// When the model's head size does not suit the cache type, or there is no memory for the activations.
    pub fn new(model: &Model, pool: &Pool, options: SessionOptions) -> Result<Self, SessionError> {
        let mut session = Self::open(model, None, pool, options)?;
        let sizes = session.sizes(session.batch, pool.threads());
        session.scratch = Some(Scratch::new(&sizes)?);
        Ok(session)
    }

    /// Opens an empty session of a model in a memory with a budget. The memory keeps the model until the session ends.
    ///
    /// # Errors
    /// As [`Session::new`]. What it holds later may be more than the budget has room for: then steps fail.
    pub fn placed(placed: &Placed, pool: &Pool, options: SessionOptions) -> Result<Self, SessionError> {
        if placed.memory().has_whole_parts() {
            return Self::placed_on_device(placed, pool, options);
        }
        let mut session = Self::open(placed.model(), Some(placed.enter()), pool, options)?;
        // A prompt's buffers take room from the weights; a small part of the budget is enough for them.
        let share = placed.memory().budget() / 8;
        while session.batch > 1 && session.sizes(session.batch, pool.threads()).bytes() as u64 > share {
            session.batch /= 2;
        }
        session.outputs = session.outputs.min(session.batch);
        // All of an answer's steps have buffers for so many tokens; a smaller part must do.
        while session.outputs > 1 && session.sizes(session.outputs, pool.threads()).bytes() as u64 > share / 4
        {
            session.outputs /= 2;
        }
        Ok(session)
    }

    fn open(
        model: &Model,
        tenancy: Option<Tenancy>,
        pool: &Pool,
        options: SessionOptions,
    ) -> Result<Self, SessionError> {
        let arch = model.architecture();
        let made_for = arch.hparams.context_length;
        let context = if options.context == 0 { made_for } else { options.context.min(made_for) };
        let layout = KvLayout::new(&arch.hparams, options.kv)?;
        let ropes = arch.rope_tables(context, |id| model.weights().vector(id));
        let mut session = Self {
            model: model.clone(),
            tenancy,
            device: None,
            host: arch.units.len(),
            ops: model.ops(),
            ropes,
            scratch: None,
            paid: None,
            gathered: Vec::new(),
            batch: options.batch.clamp(1, context),
            outputs: options.outputs,
            kv: KvCache::new(layout),
            tokens: Vec::with_capacity(context.min(1 << 20)),
            ahead: 0..0,
            first_row: 0,
            context,
            all_threads: options.all_threads,
            tuners: std::array::from_fn(|_| Tuner::new()),
        };
        session.batch = session.sizes(session.batch, pool.threads()).batch();
        session.outputs = session.outputs.clamp(1, session.batch);
        Ok(session)
    }

    /// What the buffers of a step take.
    fn sizes(&self, batch: usize, threads: usize) -> Sizes {
        let (model, kernel) = (&self.model, |id| self.model.weights().kernel(id));
        // Logits are the device's where there is one.
        let outputs = if self.device.is_some() { 1 } else { self.outputs };
        let cut = self.tenancy.as_ref().is_some_and(Tenancy::cuts_layers);
        let sizes = Sizes::new(model.architecture(), kernel, &self.ropes, (batch, outputs), cut, threads);
        // Under a budget nothing grows unasked.
        let positions = if self.tenancy.is_some() { self.context.next_multiple_of(PAGE) } else { 0 };
        sizes.with_scores(positions)
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }
    /// Every token so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
    /// Positions there are.
    pub fn context(&self) -> usize {
        self.context
    }
    /// Positions still free.
    pub fn free(&self) -> usize {
        self.context - self.tokens.len()
    }
    /// Bytes of cache and activations held now.
    pub fn bytes(&self) -> usize {
        let device = self.device.as_ref().map_or(0, |device| device.bytes());
        device + self.kv.bytes() + self.scratch.as_ref().map_or(0, Scratch::bytes)
    }
    /// Of those, what a memory with a budget is charged for.
    pub(crate) fn charged(&self) -> usize {
        self.device.as_ref().map_or(self.bytes(), |device| device.bytes())
    }
    /// Most tokens of one forward pass.
    pub fn batch(&self) -> usize {
        self.batch
    }
    /// Lets go of everything but the tokens and their keys and values, until the next step: for a session that others
    /// come before. Logits of the last step are gone then.
    pub fn rest(&mut self) {
        (self.scratch, self.paid, self.gathered) = (None, None, Vec::new());
        self.ahead = 0..0;
        if let Some(device) = &mut self.device {
            device.rest();
        }
    }

    /// Forgets every token after the first `len`; a few more where those lie in a page that other sessions have, too.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        let left = self.kv.shrink(self.tokens.len());
        self.tokens.truncate(left);
        self.ahead.end = self.ahead.end.min(left);
        if let Some(device) = &mut self.device {
            device.shrink(self.tokens.len());
        }
    }

    /// Makes the session hold `len` tokens that were never computed: for plans, which want to know what a step costs there
    /// and not what comes of it.
    pub(crate) fn pretend(&mut self, len: usize) {
        self.tokens.resize(len.min(self.context), 0);
    }

    /// Makes the session hold exactly `prompt`, keeping what it shares with the tokens already there, and returns the
    /// logits after the last token. Computes at least the last token. Returns how many tokens were kept, too.
    ///
    /// # Panics
    /// When `prompt` is empty.
    pub fn set(&mut self, pool: &mut Pool, prompt: &[u32]) -> Result<(usize, &mut [f32]), EvalError> {
        let same = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let kept = same.min(prompt.len().saturating_sub(1));
        self.check(&prompt[kept..], kept)?;
        self.truncate(kept);
        let kept = self.tokens.len();
        Ok((kept, self.eval(pool, &prompt[kept..])?))
    }

    /// Appends tokens and returns the logits after the last one.
    ///
    /// # Panics
    /// When `tokens` is empty.
    pub fn eval(&mut self, pool: &mut Pool, tokens: &[u32]) -> Result<&mut [f32], EvalError> {
        assert!(!tokens.is_empty(), "a step without tokens");
        self.check(tokens, self.tokens.len())?;
        let (batch, before) = (self.batch, self.tokens.len());
        for (i, chunk) in tokens.chunks(batch).enumerate() {
            let last = (i + 1) * batch >= tokens.len();
            let outputs = if last { chunk.len() - 1..chunk.len() } else { 0..0 };
            self.step(pool, chunk, outputs).inspect_err(|_| self.truncate(before))?;
        }
        Ok(self.logits(0))
    }

    /// Appends one step's tokens and returns what is wanted of the logits after them, where a device can find it without all
    /// of them coming back; `None` elsewhere, and nothing has happened then.
    pub(crate) fn eval_best(
        &mut self,
        pool: &mut Pool,
        tokens: &[u32],
        wanted: Wanted,
    ) -> Result<Option<Best>, EvalError> {
        self.check(tokens, self.tokens.len())?;
        if self.device.is_none() || wanted == Wanted::All {
            return Ok(None);
        }
        self.on_host(pool, tokens, 0..0)?;
        let (Some(device), pos) = (&mut self.device, self.tokens.len()) else {
            unreachable!("looked for above")
        };
        let best = match wanted {
            Wanted::All => return Ok(None),
            Wanted::Largest => Best::Token(device.step_greedy(tokens, pos)?),
            Wanted::Best(k) => Best::Few(device.step_best(tokens, pos, k)?),
        };
        self.tokens.extend_from_slice(tokens);
        Ok(Some(best))
    }

    /// All logits of a step of which only the best came back.
    pub(crate) fn bring_logits(&mut self) -> Result<(), EvalError> {
        self.device.as_mut().map_or(Ok(()), |device| device.bring_logits())
    }

    /// On what the session computes, where that is not the CPU.
    pub fn device_path(&self) -> Option<String> {
        self.device.as_ref().map(|device| device.path())
    }

    /// Appends tokens whose logits nobody wants: the head is not computed.
    pub fn extend(&mut self, pool: &mut Pool, tokens: &[u32]) -> Result<(), EvalError> {
        self.check(tokens, self.tokens.len())?;
        let batch = self.batch;
        tokens.chunks(batch).try_for_each(|chunk| self.step(pool, chunk, 0..0))
    }

    /// Appends tokens and calls `see(i, logits)` with the logits after each of them.
    pub fn eval_each(
        &mut self,
        pool: &mut Pool,
        tokens: &[u32],
        mut see: impl FnMut(usize, &mut [f32]),
    ) -> Result<(), EvalError> {
        self.check(tokens, self.tokens.len())?;
        let (size, before) = (self.outputs, self.tokens.len());
        for (i, chunk) in tokens.chunks(size).enumerate() {
            self.step(pool, chunk, 0..chunk.len()).inspect_err(|_| self.truncate(before))?;
            for j in 0..chunk.len() {
                see(i * size + j, self.logits(j));
            }
        }
        Ok(())
    }

    /// Appends one step's tokens, [`outputs`](Self::outputs) at most, and keeps the logits after each of them until the next step.
    pub(crate) fn eval_ahead(&mut self, pool: &mut Pool, tokens: &[u32]) -> Result<(), EvalError> {
        self.check(tokens, self.tokens.len())?;
        let first = self.tokens.len();
        self.step(pool, tokens, 0..tokens.len())?;
        (self.ahead, self.first_row) = (first..self.tokens.len(), first);
        Ok(())
    }

    /// The logits after the token at a position, where [`eval_ahead`](Self::eval_ahead) has left them: once, since sampling changes
    /// them, and not those of earlier ones any more.
    pub(crate) fn take_logits(&mut self, position: usize) -> Option<&mut [f32]> {
        if !self.ahead.contains(&position) {
            return None;
        }
        self.ahead.start = position + 1;
        Some(self.logits(position - self.first_row))
    }

    /// Most tokens of a step whose logits can be wanted; one where a device computes them.
    pub(crate) fn outputs(&self) -> usize {
        if self.device.is_some() { 1 } else { self.outputs }
    }

    fn check(&self, tokens: &[u32], at: usize) -> Result<(), EvalError> {
        let needed = at + tokens.len();
        if needed > self.context {
            let model = self.model.architecture().hparams.context_length;
            return Err(EvalError::ContextFull { needed, context: self.context, model });
        }
        let vocab = self.model.architecture().vocab;
        match tokens.iter().find(|&&t| t as usize >= vocab) {
            Some(&token) => Err(EvalError::BadToken { token, vocab }),
            None => Ok(()),
        }
    }

    /// Logits of the `row`-th token of the last step's outputs.
    pub(crate) fn logits(&mut self, row: usize) -> &mut [f32] {
        if let Some(device) = &mut self.device {
            return device.logits(row);
        }
        self.scratch.as_mut().map_or(&mut [], |scratch| scratch.row(Slot::Logits, row))
    }

    /// What the model has made of the `row`-th token of the last step, normalized as for the head: `n_embd` values. Empty
    /// where the step's buffers are gone.
    pub(crate) fn hidden(&mut self, row: usize) -> Vec<f32> {
        let model = self.model.clone();
        if let Some(device) = &self.device {
            return hidden(&model, &device.residual(row));
        }
        let Some(scratch) = &mut self.scratch else { return Vec::new() };
        hidden(&model, scratch.row(Slot::X, row))
    }

    /// Makes room in the cache for `tokens` more tokens.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<(), EvalError> {
        let pay = |bytes| match &self.tenancy {
            Some(tenancy) => tenancy.pay(Class::Kv, bytes).map(Some).map_err(EvalError::from),
            None => Ok(None),
        };
        self.kv.grow(self.tokens.len() + tokens, pay)?;
        if tokens == 1 && self.tenancy.is_none() && self.kv.capacity() < self.context {
            self.kv.look_ahead(self.tokens.len());
        }
        Ok(())
    }

    /// Makes room for a step of `tokens` tokens: activations, and the cache up to the last of them.
    pub(crate) fn prepare(&mut self, threads: usize, tokens: usize) -> Result<(), EvalError> {
        let model = self.model.clone();
        if let Some(tenancy) = &self.tenancy {
            // As large as this kind of step needs: a prompt's, or that of an answer.
            let small = self.outputs;
            let fits = |s: &Scratch| {
                s.threads() >= threads && s.batch >= tokens && (tokens > small || s.batch <= small)
            };
            if !self.scratch.as_ref().is_some_and(fits) {
                (self.scratch, self.paid) = (None, None);
                let sizes = self.sizes(if tokens <= small { small } else { self.batch }, threads);
                let row = model.weights().row_bytes(model.architecture().embedding);
                let gathered = row * sizes.batch();
                let mut paid = tenancy.pay(Class::Scratch, sizes.bytes() + gathered)?;
                self.gathered = Vec::new();
                self.gathered.try_reserve_exact(gathered).map_err(|_| OutOfMemory { bytes: gathered })?;
                self.scratch = Some(Scratch::new(&sizes)?);
                paid.commit();
                self.paid = Some(paid);
            }
        } else {
            // A pool with more workers than the scratch was made for would make them share what each must own.
            if self.scratch.is_none() {
                self.scratch = Some(Scratch::new(&self.sizes(self.batch, threads))?);
            }
            let Some(scratch) = &mut self.scratch else { unreachable!("made above") };
            scratch.fit_threads(threads, model.architecture(), |id| model.weights().kernel(id))?;
        }
        self.reserve(tokens)?;
        if let Some(scratch) = &mut self.scratch {
            scratch.grow_scores(self.kv.capacity())?;
            scratch.set_angles(&self.ropes, 0..tokens, self.tokens.len());
        }
        Ok(())
    }

    /// One forward pass over at most a batch; the head runs for `outputs` (indices in `tokens`).
    fn step(&mut self, pool: &mut Pool, tokens: &[u32], outputs: Range<usize>) -> Result<(), EvalError> {
        self.ahead = 0..0;
        // The head is the device's where there is one.
        let here = if self.device.is_some() { 0..0 } else { outputs.clone() };
        self.on_host(pool, tokens, here)?;
        if let Some(device) = &mut self.device {
            device.step(tokens, self.tokens.len(), &outputs)?;
        }
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }

    /// What the CPU does of a step. What it has made of the tokens goes to the device then, if that does the rest.
    fn on_host(&mut self, pool: &mut Pool, tokens: &[u32], outputs: Range<usize>) -> Result<(), EvalError> {
        if self.host == 0 {
            return Ok(());
        }
        self.prepare(pool.threads(), tokens.len())?;
        let Some(scratch) = &mut self.scratch else { unreachable!("`prepare` has made it") };
        if let Some(tenancy) = &self.tenancy {
            tenancy.gather(tokens, &mut self.gathered)?;
        }
        let model = &self.model;
        let step = Step {
            arch: model.architecture(),
            weights: model.weights(),
            ops: self.ops,
            scratch,
            tokens,
            spans: &[Span { first: 0, pos: self.tokens.len(), kv: &self.kv }],
            apart: tokens.len() == 1,
            gathered: self.tenancy.as_ref().map(|_| self.gathered.as_slice()),
        };
        let tuner = &mut self.tuners[shared::kind(tokens.len())];
        let alone = tuner.crew() == Crew::Alone && !self.all_threads;
        let start = Instant::now();
        run(&step, self.host, model, self.tenancy.as_ref(), &outputs, (pool, alone))?;
        tuner.record(start.elapsed() / tokens.len() as u32);
        finish(model, scratch, outputs.len())?;
        if let Some(device) = &mut self.device {
            device.set_residual(scratch.rows(Slot::X, 0..tokens.len()));
        }
        Ok(())
    }
}

/// Runs the first `units` units of a step, all of them in a memory with a budget, on the workers of a pool or on the caller
/// `alone`; the head for `outputs` only.
fn run(
    step: &Step<'_>,
    units: usize,
    model: &Model,
    tenancy: Option<&Tenancy>,
    outputs: &Range<usize>,
    (pool, alone): (&mut Pool, bool),
) -> Result<(), MemoryError> {
    let mut run =
        |work: &(dyn Fn(&Worker<'_>) + Sync)| if alone { pool.run_alone(work) } else { pool.run(work) };
    if let Some(tenancy) = tenancy {
        return tenancy.pass(step, outputs, run);
    }
    run(&|worker| {
        let all = &step.arch.units;
        for (i, unit) in all[..units].iter().enumerate() {
            let which = if i + 1 == all.len() { outputs.clone() } else { 0..step.tokens.len() };
            if which.is_empty() {
                continue;
            }
            if i > 0 {
                worker.barrier();
            }
            step.run(worker, &unit.ops, &which, Place::File(model.file()));
        }
    });
    Ok(())
}

/// What comes after a step with `outputs` rows of logits.
fn finish(model: &Model, scratch: &mut Scratch, outputs: usize) -> Result<(), FileError> {
    // A truncated file shows up as zeros; what they gave must not be used.
    model.file().check()?;
    if let Some(cap) = model.architecture().hparams.logit_softcap {
        for row in 0..outputs {
            for x in scratch.row(Slot::Logits, row) {
                *x = cap * (*x / cap).tanh();
            }
        }
    }
    Ok(())
}

/// What the model has made of row `row` of a step, normalized as for the head.
fn hidden(model: &Model, x: &[f32]) -> Vec<f32> {
    let arch = model.architecture();
    let embd = arch.hparams.embd;
    let x = x.get(..embd).unwrap_or(&[]);
    let weight = arch.units.last().and_then(|head| match head.ops.first() {
        Some(Op::RmsNorm { weight, .. }) => Some(model.weights().vector(*weight)),
        _ => None,
    });
    let mean = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / embd as f64;
    let scale = 1.0 / (mean + f64::from(arch.hparams.eps)).sqrt();
    let weight = |i: usize| weight.and_then(|weight| weight.get(i)).map_or(1.0, |&w| f64::from(w));
    x.iter().enumerate().map(|(i, &x)| (f64::from(x) * scale * weight(i)) as f32).collect()
}
