//! The loop around a session: prompt in, streamed text out, until something ends it.

use crate::sampler::{Sampler, SamplingError, SamplingParams, StopMatcher};
use crate::session::{EvalError, Session};
use crate::threads::Pool;
use crate::tokenizer::StreamDecoder;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

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
    /// The receiver of the text said so.
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

/// Times and counts of one answer, all measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Prompt tokens computed now.
    pub prompt_tokens: usize,
    /// Prompt tokens that were in the cache already.
    pub cached_tokens: usize,
    /// From the call to the first logits.
    pub prompt_time: Duration,
    /// Tokens generated, the one that ended the answer included.
    pub tokens: usize,
    /// From the first logits to the last token: sampling, steps, decoding, delivery.
    pub generate_time: Duration,
    /// Steps taken in that time: each reads the weights once (the first token needs none).
    pub steps: usize,
    /// Bytes of weights one step reads.
    pub weight_bytes_per_token: u64,
}

impl Stats {
    /// Prompt tokens computed per second.
    pub fn prompt_tokens_per_s(&self) -> f64 {
        per_second(self.prompt_tokens, self.prompt_time)
    }
    /// Steps per second.
    pub fn tokens_per_s(&self) -> f64 {
        per_second(self.steps, self.generate_time)
    }
    /// Milliseconds per step.
    pub fn ms_per_token(&self) -> f64 {
        if self.steps == 0 { 0.0 } else { self.generate_time.as_secs_f64() * 1e3 / self.steps as f64 }
    }
    /// Bytes of weights read per second while generating, in 1e9.
    pub fn gb_per_s(&self) -> f64 {
        self.tokens_per_s() * self.weight_bytes_per_token as f64 / 1e9
    }
}

fn per_second(n: usize, time: Duration) -> f64 {
    if n == 0 || time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

/// A finished answer.
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
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    let model = session.model().clone();
    let tokenizer = model.tokenizer();
    let context = session.context();
    let mut sampler = Sampler::new(options.sampling.clone(), tokenizer.vocab_size(), context)?;
    for &token in prompt {
        sampler.accept(token);
    }
    let mut decoder =
        if options.continues_prompt { StreamDecoder::continuing() } else { StreamDecoder::at_start() };
    let mut stops = StopMatcher::new(options.stop.clone())?;
    let (mut tokens, mut text) = (Vec::new(), String::new());
    let mut stats = Stats { weight_bytes_per_token: model.weight_bytes_per_token(), ..Stats::default() };
    let limit = options.max_tokens.unwrap_or(usize::MAX);

    let start = Instant::now();
    let (cached, mut logits) = session.set(pool, prompt)?;
    stats.cached_tokens = cached;
    stats.prompt_tokens = prompt.len() - cached;
    stats.prompt_time = start.elapsed();

    let begin = Instant::now();
    let mut deliver = |piece: &str, text: &mut String| {
        text.push_str(piece);
        if piece.is_empty() { ControlFlow::Continue(()) } else { on_text(piece) }
    };
    let finish = loop {
        if tokens.len() >= limit {
            break Finish::Length;
        }
        let token = sampler.sample(logits)?;
        sampler.accept(token);
        tokens.push(token);
        if !options.ignore_end && tokenizer.end_of_turn().contains(&token) {
            break Finish::EndOfTurn;
        }
        let piece = decoder.push(tokenizer, token);
        let stopped = stops.push(&piece);
        if deliver(&stopped.text, &mut text).is_break() {
            break Finish::Cancelled;
        }
        if stopped.stop.is_some() {
            break Finish::Stop;
        }
        if tokens.len() >= limit {
            break Finish::Length;
        }
        if session.free() == 0 {
            break Finish::ContextFull;
        }
        logits = session.eval(pool, &[token])?;
        stats.steps += 1;
    };
    stats.generate_time = begin.elapsed();
    stats.tokens = tokens.len();
    if !matches!(finish, Finish::Stop | Finish::Cancelled) {
        // What the decoder and the stop matcher still hold back is part of the answer after all.
        let rest = stops.push(&decoder.finish());
        let _ = deliver(&rest.text, &mut text);
        if rest.stop.is_none() {
            let _ = deliver(&stops.finish(), &mut text);
        }
    }
    Ok(Generation { tokens, text, finish, stats, seed: sampler.seed() })
}
