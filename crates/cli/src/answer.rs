//! One answer: the prompt's tokens in, text out, Ctrl-C heeded everywhere, and the line that says how fast it was.

use crate::engine;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::options;
use crate::output::bytes;
use nexaquant_engine::{
    EvalError, Finish, GenerateOptions, Generation, Model, Pool, Session, Stats, generate,
};
use std::ops::ControlFlow;
use std::time::Instant;

/// A session and all it takes to let it answer.
pub struct Speaker {
    pub session: Session,
    pub pool: Pool,
    pub interrupt: Interrupt,
    /// Prompt tokens computed between two looks at Ctrl-C.
    piece: usize,
}

impl Speaker {
    /// Opens a session on `pool`.
    pub fn new(model: &Model, pool: Pool, options: &options::Engine) -> Result<Self, Failure> {
        let session = engine::session(model, &pool, options, options.session(0))?;
        Ok(Self { session, pool, interrupt: Interrupt::new(), piece: options.batch })
    }

    /// Answers `prompt`. `on_text` gets the text as it comes and says whether to go on.
    ///
    /// The prompt is computed in pieces, so that Ctrl-C is heeded between them; that changes nothing in the result.
    pub fn answer(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut on_text: impl FnMut(&str) -> bool,
    ) -> Result<Generation, Failure> {
        let (session, pool, interrupt) = (&mut self.session, &mut self.pool, &self.interrupt);
        fits(session, prompt.len())?;
        interrupt.hold();
        let shared = session.tokens().iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let start = Instant::now();
        let mut at = shared;
        while prompt.len() - at > self.piece {
            if interrupt.is_set() {
                return Ok(cancelled(options));
            }
            at += self.piece;
            session.set(pool, &prompt[..at]).map_err(Failure::input)?;
        }
        let (early, early_time) = (at - shared, start.elapsed());
        let go_on = |piece: &str| {
            if on_text(piece) && !interrupt.is_set() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        let mut generation = generate(session, pool, prompt, options, go_on).map_err(Failure::input)?;
        let stats = &mut generation.stats;
        stats.cached_tokens -= early.min(stats.cached_tokens);
        stats.prompt_tokens += early;
        stats.prompt_time += early_time;
        Ok(generation)
    }
}

/// Fails if a prompt of `tokens` tokens does not fit the session, before anything is computed.
pub fn fits(session: &Session, tokens: usize) -> Result<(), Failure> {
    if tokens <= session.context() {
        return Ok(());
    }
    let model = session.model().architecture().hparams.context_length;
    let error = EvalError::ContextFull { needed: tokens, context: session.context(), model };
    Err(Failure::Input(format!("the prompt is too long: {error}")))
}

/// An answer that was stopped before it began.
fn cancelled(options: &GenerateOptions) -> Generation {
    Generation {
        tokens: Vec::new(),
        text: String::new(),
        finish: Finish::Cancelled,
        seed: options.sampling.seed.unwrap_or_default(),
        stats: Stats::default(),
    }
}

/// The measured line. Only what was measured is in it.
pub fn measured(stats: &Stats) -> String {
    let mut parts = Vec::new();
    if stats.prompt_tokens > 0 {
        let cached =
            if stats.cached_tokens > 0 { format!(" (+{} kept)", stats.cached_tokens) } else { String::new() };
        let speed = stats.prompt_tokens_per_s();
        parts.push(format!("prompt {}{cached}, {speed:.1} tokens/s", count(stats.prompt_tokens)));
    }
    if stats.steps > 0 {
        let (speed, ms) = (stats.tokens_per_s(), stats.ms_per_token());
        parts.push(format!("answer {}, {speed:.1} tokens/s, {ms:.2} ms/token", count(stats.tokens)));
        let (read, rate) = (bytes(stats.weight_bytes_per_token), stats.gb_per_s());
        parts.push(format!("{read} of weights a token, {rate:.2} GB/s"));
    } else {
        parts.push(format!("answer {}", count(stats.tokens)));
    }
    parts.join(" | ")
}

fn count(tokens: usize) -> String {
    format!("{tokens} token{}", if tokens == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_measured_line_says_what_was_measured_and_no_more() {
        let stats = Stats {
            prompt_tokens: 10,
            cached_tokens: 5,
            prompt_time: Duration::from_millis(100),
            tokens: 21,
            generate_time: Duration::from_millis(200),
            steps: 20,
            weight_bytes_per_token: 4_000_000,
        };
        assert_eq!(
            measured(&stats),
            "prompt 10 tokens (+5 kept), 100.0 tokens/s | answer 21 tokens, 100.0 tokens/s, 10.00 ms/token | \
             4.00 MB of weights a token, 0.40 GB/s"
        );
        let one = Stats { tokens: 1, steps: 0, ..stats };
        assert_eq!(measured(&one), "prompt 10 tokens (+5 kept), 100.0 tokens/s | answer 1 token");
    }
}
