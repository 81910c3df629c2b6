//! One answer: the prompt's tokens in, text out, Ctrl-C heeded everywhere, and the line that says how fast it was.

use crate::engine;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::options;
use crate::output::bytes;
use nexaquant_engine::{
    Answer, EvalError, GenerateError, GenerateOptions, Generation, Model, Pool, Progress, Session, Stats,
};

/// A session and all it takes to let it answer.
pub struct Speaker {
    pub session: Session,
    pub pool: Pool,
    pub interrupt: Interrupt,
}

impl Speaker {
    /// Opens a session on `pool` for answers with so many guesses ahead.
    pub fn new(
        model: &Model,
        mut pool: Pool,
        options: &options::Engine,
        guesses: usize,
    ) -> Result<Self, Failure> {
        let session = engine::session(model, &mut pool, options, options.answering_session(guesses))?;
        Ok(Self { session, pool, interrupt: Interrupt::new() })
    }

    /// Answers `prompt`. `on_text` gets the text as it comes and says whether to go on. Ctrl-C ends the answer between
    /// any two steps.
    pub fn answer(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        mut on_text: impl FnMut(&str) -> bool,
    ) -> Result<Generation, Failure> {
        let mut answer = Answer::new(&self.session, prompt.to_vec(), options.clone()).map_err(refused)?;
        self.interrupt.hold();
        while !self.interrupt.is_set() {
            let (text, over) = match answer.step(&mut self.session, &mut self.pool).map_err(Failure::input)? {
                Progress::Prompt { .. } => continue,
                Progress::Token(text) => (text, false),
                Progress::Done(_, text) => (text, true),
            };
            let go_on = text.is_empty() || on_text(&text);
            if over || !go_on {
                break;
            }
        }
        Ok(answer.finish())
    }
}

/// Why an answer cannot even begin.
fn refused(error: GenerateError) -> Failure {
    match error {
        GenerateError::Eval(error @ EvalError::ContextFull { .. }) => {
            Failure::Input(format!("the prompt is too long: {error}"))
        }
        error => Failure::input(error),
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
        let what = if stats.passes < stats.steps {
            format!("pass, {} passes", stats.passes)
        } else {
            "token".to_owned()
        };
        parts.push(format!("{read} of weights a {what}, {rate:.2} GB/s"));
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
            passes: 20,
            weight_bytes_per_token: 4_000_000,
        };
        assert_eq!(
            measured(&stats),
            "prompt 10 tokens (+5 kept), 100.0 tokens/s | answer 21 tokens, 100.0 tokens/s, 10.00 ms/token | \
             4.00 MB of weights a token, 0.40 GB/s"
        );
        let guessed = Stats { passes: 10, ..stats };
        assert!(
            measured(&guessed).ends_with("10.00 ms/token | 4.00 MB of weights a pass, 10 passes, 0.20 GB/s")
        );
        let one = Stats { tokens: 1, steps: 0, ..stats };
        assert_eq!(measured(&one), "prompt 10 tokens (+5 kept), 100.0 tokens/s | answer 1 token");
    }
}
