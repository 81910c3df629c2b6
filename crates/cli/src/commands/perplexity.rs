//! `perplexity`: how well a model predicts a text, measured the way llama.cpp's tool of that name does, so that the
//! numbers can be compared.

use crate::args::PerplexityArgs;
use crate::engine;
use crate::failure::Failure;
use crate::input;
use crate::models;
use crate::options;
use crate::output::{self, note};
use nexaquant_engine::sampler::log_probs;
use nexaquant_engine::{Model, Pool, Session, SessionOptions};
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Tokens in a chunk unless --ctx says otherwise.
const CHUNK: usize = 512;

pub fn perplexity(args: &PerplexityArgs) -> Result<(), Failure> {
    let options = options::engine(&args.engine);
    let source = models::find(&args.model)?;
    let text = input::file(&args.file)?;
    let (model, mut pool) = engine::open(&source, &options)?;
    let tokens = engine::encode(&model, &text, false)?;
    if tokens.len() < 2 {
        return Err(Failure::input("the text is too short: there must be two tokens at least"));
    }
    let made_for = model.architecture().hparams.context_length;
    let context = match options.context.unwrap_or(CHUNK) {
        0 => made_for,
        n => n.clamp(2, made_for.max(2)),
    };
    let short = tokens.len() < context;
    if short {
        let text =
            format!("{} tokens are less than one chunk of {context}; all of them are scored", tokens.len());
        note("warning: ", &text);
    }
    let chunk = context.min(tokens.len());
    let chunks = (tokens.len() / chunk).min(args.chunks.map_or(usize::MAX, |n| n as usize));

    let session = SessionOptions { context, ..options.scoring_session(0) };
    let mut session = engine::session(&model, &mut pool, &options, session)?;
    let mut sum = Sum::default();
    let start = Instant::now();
    for (i, tokens) in tokens.chunks_exact(chunk).take(chunks).enumerate() {
        // A chunk that is the whole text has no other context to lose.
        let first = if short { 0 } else { chunk / 2 };
        score_chunk(&model, &mut session, &mut pool, tokens, first, &mut sum)?;
        progress(&format!("chunk {} of {chunks}: perplexity {:.4}", i + 1, sum.perplexity()));
    }
    progress("");
    if sum.n == 0 {
        return Err(Failure::Input(format!(
            "chunks of {chunk} tokens leave none to score; use --ctx 4 or more"
        )));
    }
    let seconds = start.elapsed().as_secs_f64();
    let computed = chunks * chunk;
    let speed = computed as f64 / seconds;
    if args.json {
        return output::print_json(&json!({
            "perplexity": sum.perplexity(),
            "error": sum.error(),
            "mean_logprob": -sum.mean(),
            "scored_tokens": sum.n,
            "chunks": chunks,
            "chunk_tokens": chunk,
            "tokens": tokens.len(),
            "tokens_per_s": speed,
        }));
    }
    note("", &format!("{computed} tokens in {seconds:.2} s, {speed:.1} tokens/s"));
    let error = sum.error().map_or(String::new(), |error| format!(" +/- {error:.4}"));
    let what = format!("{} tokens scored in {chunks} chunk{}", sum.n, if chunks == 1 { "" } else { "s" });
    output::print(&format!("perplexity {:.4}{error} ({what} of {chunk})\n", sum.perplexity()))
}

/// Scores the tokens of one chunk after position `first`.
fn score_chunk(
    model: &Model,
    session: &mut Session,
    pool: &mut Pool,
    tokens: &[u32],
    first: usize,
    sum: &mut Sum,
) -> Result<(), Failure> {
    let tokenizer = model.tokenizer();
    let mut chunk = tokens.to_vec();
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.add_bos()) {
        // In place of the first token, which is not scored: chunks keep their length.
        chunk[0] = bos;
    }
    session.truncate(0);
    let mut wrong = None;
    let mut see = |i: usize, logits: &mut [f32]| {
        if i < first || i + 1 >= chunk.len() {
            return;
        }
        match log_probs(logits, chunk[i + 1], 0) {
            Ok(found) => sum.add(-found.token),
            Err(error) => wrong = wrong.take().or(Some(error)),
        }
    };
    // Nobody looks at the first half: its logits need not be computed.
    if first > 0 {
        session.eval(pool, &chunk[..first]).map_err(Failure::input)?;
    }
    session.eval_each(pool, &chunk[first..], |i, logits| see(first + i, logits)).map_err(Failure::input)?;
    match wrong {
        Some(error) => Err(Failure::Input(format!("{}: {error}", model.file().path().display()))),
        None => Ok(()),
    }
}

/// Negative log-likelihoods, and what follows from them.
#[derive(Default)]
struct Sum {
    n: usize,
    total: f64,
    squares: f64,
}

impl Sum {
    fn add(&mut self, nll: f64) {
        self.n += 1;
        self.total += nll;
        self.squares += nll * nll;
    }
    fn mean(&self) -> f64 {
        self.total / self.n as f64
    }
    fn perplexity(&self) -> f64 {
        self.mean().exp()
    }
    /// Standard error of the perplexity, as if the tokens were independent; `None` for fewer than two.
    fn error(&self) -> Option<f64> {
        let n = self.n as f64;
        let variance = (self.squares / n - self.mean().powi(2)).max(0.0);
        (self.n > 1).then(|| (variance / (n - 1.0)).sqrt() * self.perplexity())
    }
}

/// Replaces the progress line, where there is a terminal to show it.
fn progress(text: &str) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        let _ = write!(err, "\r\x1b[K{text}").and_then(|()| err.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_the_standard_error_of_the_mean_times_the_perplexity() {
        let mut sum = Sum::default();
        assert_eq!(sum.error(), None);
        for nll in [1.0, 2.0, 3.0] {
            sum.add(nll);
        }
        assert!((sum.perplexity() - 2f64.exp()).abs() < 1e-12);
        // Sample variance 1 over 3 samples.
        assert!((sum.error().unwrap() - (1.0f64 / 3.0).sqrt() * 2f64.exp()).abs() < 1e-12);
    }
}
