//! From a prompt to streamed text, until something ends it.
//!
//! [`Answer`] does it in steps of one forward pass each, so that answers of several sessions can take turns and each can
//! be stopped between two passes; [`generate`] is the loop for a caller with one session.

mod answer;
mod lookup;
mod stats;

pub use answer::{Answer, Pooling, Progress, Scored};
pub use lookup::MOST_GUESSES;
pub use stats::Stats;

pub(crate) use answer::Output;

use crate::sampler::{Constraint, SamplingError, SamplingParams};
use crate::session::{EvalError, Session};
use crate::threads::Pool;
use std::ops::ControlFlow;

/// What bounds an answer and how tokens are chosen.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Most tokens; `None`: until the model ends or the context is full.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Go on after the model ends its turn.
    pub ignore_end: bool,
    /// The prompt is the beginning of the text itself (as opposed to a chat turn): the first word keeps its place after it.
    pub continues_prompt: bool,
    /// Note of each token how probable it was, and so many of the most probable ones beside it.
    pub log_probs: Option<usize>,
    /// Make one vector of the prompt, too. Most useful with no tokens to answer.
    pub pooling: Option<Pooling>,
    /// What the answer must follow.
    pub constraint: Option<Box<dyn Constraint>>,
    /// Guess so many tokens ahead, [`MOST_GUESSES`] at most, where the text repeats itself and the session has room for
    /// as many logits ([`SessionOptions::outputs`](crate::SessionOptions::outputs)); 0: none. The answer is the same.
    pub guesses: usize,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop text came.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// No position is left.
    ContextFull,
    /// Somebody stopped it: the receiver of the text, or whoever makes the steps.
    Cancelled,
}

impl Finish {
    /// One word, as JSON output has it.
    pub fn name(self) -> &'static str {
        match self {
            Finish::EndOfTurn => "end",
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::ContextFull => "context",
            Finish::Cancelled => "cancelled",
        }
    }
}

/// An answer that is over, or as much of it as there is.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Every token generated, the one that ended the turn included.
    pub tokens: Vec<u32>,
    /// The text, as it was streamed.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Times and counts.
    pub stats: Stats,
    /// The seed that was used: the one asked for, or the one drawn.
    pub seed: u64,
    /// The prompt as a vector, if that was asked for.
    pub embedding: Option<Vec<f32>>,
}

/// Why an answer could not be finished.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A step failed.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The sampling parameters are out of range, or the logits are no numbers.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// Nothing to start from.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
}

/// Answers `prompt` (token ids), streaming whole UTF-8 text to `on_text` until it says [`ControlFlow::Break`].
///
/// The session keeps the prompt and the answer; a prompt that begins with the same tokens next time costs only what is
/// new. The prompt is checked against the context before anything is computed or forgotten.
pub fn generate(
    session: &mut Session,
    pool: &mut Pool,
    prompt: &[u32],
    options: &GenerateOptions,
    mut on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generation, GenerateError> {
    let mut answer = Answer::new(session, prompt.to_vec(), options.clone())?;
    loop {
        let (text, over) = match answer.step(session, pool)? {
            Progress::Prompt { .. } => continue,
            Progress::Token(text) => (text, false),
            Progress::Done(_, text) => (text, true),
        };
        let stop = !text.is_empty() && on_text(&text).is_break();
        if over || stop {
            return Ok(answer.finish());
        }
    }
}

#[cfg(test)]
mod tests;
