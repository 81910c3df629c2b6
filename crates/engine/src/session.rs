//! A session: one sequence of tokens, its cache, and the step that extends it.

use crate::cpu::{OutOfMemory, Scratch, Step};
use crate::file::FileError;
use crate::kv::{KvCache, KvLayout, KvTypeError};
use crate::loader::Model;
use crate::model::op::RopeTable;
use crate::threads::{Crew, Pool, Tuner, Worker};
use nexaquant_kernels::{KvType, Ops};
use std::ops::Range;
use std::time::Instant;

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
    /// Most tokens of a step whose logits are wanted ([`Session::eval_each`]); the others use one.
    pub outputs: usize,
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
}

/// One sequence.
#[derive(Debug)]
pub struct Session {
    model: Model,
    ops: Ops,
    ropes: Vec<RopeTable>,
    scratch: Scratch,
    kv: KvCache,
    tokens: Vec<u32>,
    context: usize,
    all_threads: bool,
    /// For steps of one token and for longer ones.
    tuners: [Tuner; 2],
}

impl Session {
    /// Opens an empty session whose steps will run on `pool`.
    ///
    /// # Errors
    /// When the model's head size does not suit the cache type, or there is no memory for the activations.
    pub fn new(model: &Model, pool: &Pool, options: SessionOptions) -> Result<Self, SessionError> {
        let arch = model.architecture();
        let made_for = arch.hparams.context_length;
        let context = if options.context == 0 { made_for } else { options.context.min(made_for) };
        let layout = KvLayout::new(&arch.hparams, options.kv)?;
        let weights = model.weights();
        let ropes = arch.rope_tables(context, |id| weights.vector(id));
        let batch = options.batch.clamp(1, context);
        let kernel = |id| weights.kernel(id);
        let scratch = Scratch::new(arch, kernel, &ropes, batch, options.outputs, pool.threads())?;
        let ops = model.ops();
        Ok(Self {
            model: model.clone(),
            ops,
            ropes,
            scratch,
            kv: KvCache::new(layout),
            tokens: Vec::with_capacity(context.min(1 << 20)),
            context,
            all_threads: options.all_threads,
            tuners: [Tuner::new(), Tuner::new()],
        })
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
    /// Most tokens of one forward pass.
    pub fn batch(&self) -> usize {
        self.scratch.batch
    }
    /// Bytes of cache and activations held now.
    pub fn bytes(&self) -> usize {
        self.kv.bytes() + self.scratch.bytes()
    }

    /// Forgets every token after the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.kv.shrink(self.tokens.len());
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
        Ok((kept, self.eval(pool, &prompt[kept..])?))
    }

    /// Appends tokens and returns the logits after the last one.
    ///
    /// # Panics
    /// When `tokens` is empty.
    pub fn eval(&mut self, pool: &mut Pool, tokens: &[u32]) -> Result<&mut [f32], EvalError> {
        assert!(!tokens.is_empty(), "a step without tokens");
        self.check(tokens, self.tokens.len())?;
        let batch = self.scratch.batch;
        for (i, chunk) in tokens.chunks(batch).enumerate() {
            let last = (i + 1) * batch >= tokens.len();
            self.step(pool, chunk, if last { chunk.len() - 1..chunk.len() } else { 0..0 })?;
        }
        Ok(self.logits(0))
    }

    /// Appends tokens whose logits nobody wants: the head is not computed.
    pub fn extend(&mut self, pool: &mut Pool, tokens: &[u32]) -> Result<(), EvalError> {
        self.check(tokens, self.tokens.len())?;
        tokens.chunks(self.scratch.batch).try_for_each(|chunk| self.step(pool, chunk, 0..0))
    }

    /// Appends tokens and calls `see(i, logits)` with the logits after each of them.
    pub fn eval_each(
        &mut self,
        pool: &mut Pool,
        tokens: &[u32],
        mut see: impl FnMut(usize, &mut [f32]),
    ) -> Result<(), EvalError> {
        self.check(tokens, self.tokens.len())?;
        let size = self.scratch.batch.min(self.scratch.outputs);
        for (i, chunk) in tokens.chunks(size).enumerate() {
            self.step(pool, chunk, 0..chunk.len())?;
            for j in 0..chunk.len() {
                see(i * size + j, self.logits(j));
            }
        }
        Ok(())
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
    fn logits(&mut self, row: usize) -> &mut [f32] {
        let buffer = &mut self.scratch.slots[crate::model::op::Slot::Logits as usize];
        let width = buffer.width;
        &mut buffer.data.as_mut()[row * width..(row + 1) * width]
    }

    /// One forward pass over at most a batch; the head runs for `outputs` (indices in `tokens`).
    fn step(&mut self, pool: &mut Pool, tokens: &[u32], outputs: Range<usize>) -> Result<(), EvalError> {
        // A pool with more workers than the scratch was made for would make them share what each must own.
        self.scratch
            .fit_threads(pool.threads(), self.model.architecture(), |id| self.model.weights().kernel(id))?;
        let pos0 = self.tokens.len();
        self.kv.grow(pos0 + tokens.len())?;
        self.scratch.grow_scores(self.kv.capacity())?;
        self.scratch.set_angles(&self.ropes, pos0, tokens.len());
        let model = &self.model;
        let step = Step {
            arch: model.architecture(),
            weights: model.weights(),
            file: model.file(),
            ops: self.ops,
            scratch: &self.scratch,
            kv: &self.kv,
            tokens,
            pos0,
        };
        let units = &step.arch.units;
        let softcap = step.arch.hparams.logit_softcap;
        let all = 0..tokens.len();
        let work = |worker: &Worker<'_>| {
            for (i, unit) in units.iter().enumerate() {
                let which = if i + 1 == units.len() { &outputs } else { &all };
                if which.is_empty() {
                    continue;
                }
                if i > 0 {
                    worker.barrier();
                }
                step.run(worker, &unit.ops, which);
            }
        };
        let tuner = &mut self.tuners[usize::from(tokens.len() > 1)];
        let start = Instant::now();
        match tuner.crew() {
            Crew::Alone if !self.all_threads => pool.run_alone(work),
            _ => pool.run(work),
        }
        tuner.record(start.elapsed() / tokens.len() as u32);
        // A truncated file shows up as zeros; what they gave must not be used.
        model.file().check()?;
        if let Some(cap) = softcap {
            for row in 0..outputs.len() {
                for x in self.logits(row) {
                    *x = cap * (*x / cap).tanh();
                }
            }
        }
        self.tokens.extend_from_slice(tokens);
        Ok(())
    }
}
