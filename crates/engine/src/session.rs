//! A session: one sequence of tokens, its cache, and the step that extends it.

use crate::cpu::{Scratch, Step};
use crate::file::FileError;
use crate::kv::{KvCache, KvLayout, KvTypeError};
use crate::loader::Model;
use crate::model::op::RopeTable;
use crate::threads::Pool;
use nexaquant_kernels::{KvType, Ops};
use std::ops::Range;

/// How a session is opened.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// Positions; 0: as many as the model was made for.
    pub context: usize,
    /// Element type of the cache.
    pub kv: KvType,
    /// Most prompt tokens in one step. More is faster for long prompts and takes memory; the result is the same.
    pub batch: usize,
    /// Most tokens of a step whose logits are wanted ([`Session::eval_each`]); the others use one.
    pub outputs: usize,
}

/// Positions unless told otherwise: enough for a conversation, small in memory.
pub const DEFAULT_CONTEXT: usize = 4096;
/// Prompt tokens in a step unless told otherwise.
pub const DEFAULT_BATCH: usize = 128;

impl Default for SessionOptions {
    fn default() -> Self {
        Self { context: DEFAULT_CONTEXT, kv: KvType::F16, batch: DEFAULT_BATCH, outputs: 1 }
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
}

impl Session {
    /// Opens an empty session whose steps will run on `pool`.
    ///
    /// # Errors
    /// When the model's head size does not suit the cache type.
    pub fn new(model: &Model, pool: &Pool, options: SessionOptions) -> Result<Self, KvTypeError> {
        let arch = model.architecture();
        let made_for = arch.hparams.context_length;
        let context = if options.context == 0 { made_for } else { options.context.min(made_for) };
        let layout = KvLayout::new(&arch.hparams, options.kv)?;
        let weights = model.weights();
        let ropes = arch.rope_tables(context, |id| weights.vector(id));
        let batch = options.batch.clamp(1, context);
        let kernel = |id| weights.kernel(id);
        let scratch = Scratch::new(arch, kernel, &ropes, batch, options.outputs, pool.threads());
        let ops = model.ops();
        Ok(Self {
            model: model.clone(),
            ops,
            ropes,
            scratch,
            kv: KvCache::new(layout),
            tokens: Vec::with_capacity(context.min(1 << 20)),
            context,
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

    /// Appends tokens and calls `see(i, logits)` with the logits after each of them.
    ///
    /// # Panics
    /// When `tokens` is empty.
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
        let pos0 = self.tokens.len();
        self.kv.grow(pos0 + tokens.len());
        self.scratch.grow_scores(self.kv.capacity());
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
        pool.run(|worker| {
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
        });
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
