//! What an answer cost, as measured while it was made.

use std::time::Duration;

/// Times and counts of one answer, all measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Prompt tokens computed now.
    pub prompt_tokens: usize,
    /// Prompt tokens that were in the cache already.
    pub cached_tokens: usize,
    /// Time in steps up to the first logits.
    pub prompt_time: Duration,
    /// Tokens generated, the one that ended the answer included.
    pub tokens: usize,
    /// Time in steps from the first logits to the end: sampling, forward passes, decoding. What happens between two
    /// steps (delivery of the text, turns of others) is not in it.
    pub generate_time: Duration,
    /// Tokens generated in that time: all but the first, whose logits are the prompt's.
    pub steps: usize,
    /// Forward passes in that time: each reads the weights once. Fewer than tokens where guesses came true.
    pub passes: usize,
    /// Bytes of weights one forward pass reads.
    pub weight_bytes_per_token: u64,
}

impl Stats {
    /// Prompt tokens computed per second.
    pub fn prompt_tokens_per_s(&self) -> f64 {
        per_second(self.prompt_tokens, self.prompt_time)
    }
    /// Tokens per second while generating.
    pub fn tokens_per_s(&self) -> f64 {
        per_second(self.steps, self.generate_time)
    }
    /// Milliseconds per token while generating.
    pub fn ms_per_token(&self) -> f64 {
        if self.steps == 0 { 0.0 } else { self.generate_time.as_secs_f64() * 1e3 / self.steps as f64 }
    }
    /// Bytes of weights read per second while generating, in 1e9.
    pub fn gb_per_s(&self) -> f64 {
        per_second(self.passes, self.generate_time) * self.weight_bytes_per_token as f64 / 1e9
    }
}

fn per_second(n: usize, time: Duration) -> f64 {
    if n == 0 || time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}
