//! From logits to a token.
//!
//! [`Sampler::sample`] applies, in this order: logit bias, penalties, top-k, typical-p, top-p, min-p, temperature, and
//! then draws. That is the default order of llama.cpp, where every filter sees the probabilities before the
//! temperature. With temperature 0 the largest logit wins and no filter matters.
//!
//! The same seed and logits give the same tokens on every machine: the generator is [`Rng`], candidates are always
//! weighed in the order of their ids, and ties go to the lower id.
//!
//! Also here: [`log_probs`] for reports, and [`StopMatcher`] for stop strings. Not here: grammars, and what to do with
//! the token.

mod candidates;
mod constraint;
mod logprobs;
mod params;
mod penalties;
mod rng;
mod stop;

pub use constraint::Constraint;
pub use logprobs::{LogProbs, log_probs};
pub use params::SamplingParams;
pub use rng::Rng;
pub use stop::{StopMatcher, StopStep};

use candidates::{Candidates, Logits, has_shares, least};
use penalties::Window;

/// What a sampler must know of the model's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of them.
    All,
    /// Which is the largest.
    Largest,
    /// So many of the largest, for [`Sampler::sample_best`].
    Best(usize),
}

/// How many of the largest logits to ask for where only min-p bounds what is left. As a rule that is far fewer.
const BEST_FOR_MIN_P: usize = 128;

/// Why no token can be chosen.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A parameter outside its range.
    #[error("{name} is {value}; it must be {wanted}")]
    Parameter {
        /// Which.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The range.
        wanted: &'static str,
    },
    /// A bias for a token the model does not have.
    #[error("logit_bias names token {id}, but the vocabulary has {vocab_size} tokens")]
    BiasToken {
        /// The token.
        id: u32,
        /// Number of tokens.
        vocab_size: usize,
    },
    /// What the answer must follow cannot be followed.
    #[error("the answer cannot follow what was asked for: {0}")]
    Constraint(String),
    /// Logits of another model.
    #[error("{found} logits for a vocabulary of {wanted}")]
    LogitCount {
        /// Their number.
        found: usize,
        /// The number expected.
        wanted: usize,
    },
    /// A logit that is NaN or positive infinity: the model computed nonsense.
    #[error("the logit of token {id} is {value}")]
    BadLogit {
        /// The token.
        id: u32,
        /// Its logit.
        value: f32,
    },
    /// All logits are negative infinity.
    #[error("every token is forbidden: all logits are negative infinity")]
    NothingLeft,
    /// A stop string that is empty or too long, or too many of them.
    #[error("stop strings: {found}; there may be {most_strings} of 1 to {most_bytes} bytes")]
    StopStrings {
        /// What is wrong.
        found: String,
        /// Limit of their number.
        most_strings: usize,
        /// Limit of their length.
        most_bytes: usize,
    },
}

/// Chooses tokens for one sequence. After [`new`](Self::new) nothing is allocated.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    rng: Rng,
    vocab_size: usize,
    window: Window,
    /// Bias by token, sorted by id, each id once.
    bias: Vec<(u32, f32)>,
    /// Logits that bias or penalties change, sorted by id. Work space.
    changed: Vec<(u32, f32)>,
    candidates: Candidates,
}

impl Sampler {
    /// A sampler for logits of `vocab_size` tokens and sequences of up to `context` tokens.
    ///
    /// # Errors
    /// A parameter outside its range, or a bias for a token outside the vocabulary.
    pub fn new(params: SamplingParams, vocab_size: usize, context: usize) -> Result<Self, SamplingError> {
        params.validate()?;
        let mut bias = params.logit_bias.clone();
        if let Some(&(id, _)) = bias.iter().find(|(id, _)| *id as usize >= vocab_size) {
            return Err(SamplingError::BiasToken { id, vocab_size });
        }
        // The last bias given for a token counts.
        bias.reverse();
        bias.sort_by_key(|(id, _)| *id);
        bias.dedup_by_key(|(id, _)| *id);
        let seed = params.seed.unwrap_or_else(rng::fresh_seed);
        let window = Window::new(params.penalty_window(context), vocab_size);
        Ok(Self {
            rng: Rng::new(seed),
            seed,
            vocab_size,
            changed: Vec::with_capacity(bias.len() + window.most_ids()),
            bias,
            window,
            candidates: Candidates::new(if params.temperature == 0.0 { 0 } else { vocab_size }),
            params,
        })
    }

    /// The seed in use: the one asked for, or the one drawn instead.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The parameters in use.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Notes that `token` is now part of the sequence, for the penalties. Prompt tokens count as well.
    pub fn accept(&mut self, token: u32) {
        self.window.push(token);
    }

    /// Chooses the next token; it is not [accepted](Self::accept) yet.
    ///
    /// A logit of negative infinity forbids its token. `logits`: one for each token of the vocabulary.
    ///
    /// # Errors
    /// NaN, positive infinity, a wrong number of logits, or no token that is not forbidden.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SamplingError> {
        if logits.len() != self.vocab_size {
            return Err(SamplingError::LogitCount { found: logits.len(), wanted: self.vocab_size });
        }
        self.collect_changed(|id| logits.get(id as usize).copied());
        let changed = std::mem::take(&mut self.changed);
        let token = self.choose(Logits::All { raw: logits, changed: &changed });
        self.changed = changed;
        token
    }

    fn choose(&mut self, logits: Logits<'_>) -> Result<u32, SamplingError> {
        let (best, max) = logits.max()?;
        if self.params.temperature == 0.0 {
            return Ok(best);
        }
        self.candidates.filter(logits, max, &self.params);
        Ok(self.candidates.draw(self.params.temperature, &mut self.rng))
    }

    /// What the next token depends on. `most`: of how many of the largest logits the caller can tell.
    ///
    /// What only lowers logits lets the best `k` come from the best `k` and one more for each that may be lowered.
    pub(crate) fn wanted(&self, most: usize) -> Wanted {
        let p = &self.params;
        let penalties = p.repeat_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0;
        if p.temperature == 0.0 && !penalties && self.bias.is_empty() {
            return Wanted::Largest;
        }
        let lowers = p.repeat_penalty >= 1.0
            && p.presence_penalty >= 0.0
            && p.frequency_penalty >= 0.0
            && self.bias.iter().all(|(_, bias)| *bias <= 0.0);
        let lowered = self.bias.len() + self.window.counts().len();
        let k = if p.temperature == 0.0 { 1 } else { p.top_k };
        let enough = k.saturating_add(lowered);
        if lowers && k > 0 && enough <= most {
            Wanted::Best(enough)
        } else if lowers && p.min_p > 0.0 && !has_shares(p) {
            Wanted::Best(BEST_FOR_MIN_P.min(most))
        } else {
            Wanted::All
        }
    }

    /// Chooses the next token as [`Self::sample`] would, from as many of the largest logits as [`Self::wanted`] has asked for, or from
    /// all if there are fewer; in any order. Of equal logits those with lower ids must be there; NaN and infinity count as
    /// larger than all others. `None` where these are not enough, and nothing has happened then: all must be sampled from.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub(crate) fn sample_best(&mut self, best: &mut [(u32, f32)]) -> Result<Option<u32>, SamplingError> {
        best.sort_unstable_by_key(|(id, _)| *id);
        let lowest = best.iter().fold(f32::INFINITY, |least, (_, logit)| least.min(*logit));
        let raw = |id| best.binary_search_by_key(&id, |(id, _)| *id).ok().map(|at| best[at].1);
        self.collect_changed(raw);
        for &(id, logit) in &self.changed {
            if let Ok(at) = best.binary_search_by_key(&id, |(id, _)| *id) {
                best[at].1 = logit;
            }
        }
        let logits = Logits::Some(best);
        let k = if self.params.temperature == 0.0 { 1 } else { self.params.top_k };
        let lowered = self.bias.len() + self.window.counts().len();
        let enough = best.len() == self.vocab_size || (k > 0 && k.saturating_add(lowered) <= best.len());
        match logits.max() {
            // Others may be left.
            Err(SamplingError::NothingLeft) if !enough => Ok(None),
            Ok((_, max)) if !enough && lowest >= least(max, &self.params) => Ok(None),
            _ => self.choose(logits).map(Some),
        }
    }

    /// Works out the logits that differ from the model's.
    fn collect_changed(&mut self, raw: impl Fn(u32) -> Option<f32>) {
        self.changed.clear();
        let (mut bias, mut counts) = (self.bias.iter().peekable(), self.window.counts().iter().peekable());
        loop {
            let next = match (bias.peek(), counts.peek()) {
                (Some(b), Some(c)) => b.0.min(c.0),
                (Some(b), None) => b.0,
                (None, Some(c)) => c.0,
                (None, None) => break,
            };
            let add = bias.next_if(|b| b.0 == next).map_or(0.0, |b| b.1);
            let count = counts.next_if(|c| c.0 == next).map_or(0, |c| c.1);
            let Some(raw) = raw(next) else { continue };
            // Infinities of the model stay what they are, so that they are noticed or forbid.
            let logit = if raw.is_finite() { self.params.penalize(raw + add, count) } else { raw };
            self.changed.push((next, logit));
        }
    }
}

#[cfg(test)]
mod tests;
