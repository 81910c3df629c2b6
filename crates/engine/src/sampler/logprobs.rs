//! Log-probabilities for reports.

use super::SamplingError;

/// What a model thought of a token, and what it thought best.
#[derive(Clone, Debug, PartialEq)]
pub struct LogProbs {
    /// Natural logarithm of the probability of the token asked for.
    pub token: f64,
    /// The most probable tokens with theirs, most probable first, the lower id first among equals.
    pub top: Vec<(u32, f64)>,
}

/// Log-probabilities of token `id` and of the `top_n` most probable tokens under the model's own distribution: logits
/// as they are, temperature 1.
///
/// # Errors
/// NaN or positive infinity among the logits, all negative infinity, or `id` outside them.
pub fn log_probs(logits: &[f32], id: u32, top_n: usize) -> Result<LogProbs, SamplingError> {
    let Some(&logit) = logits.get(id as usize) else {
        return Err(SamplingError::LogitCount { found: logits.len(), wanted: id as usize + 1 });
    };
    let (_, max) = super::candidates::Logits::All { raw: logits, changed: &[] }.max()?;
    let max = f64::from(max);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    let log_sum = sum.ln();
    let log_prob = |x: f32| f64::from(x) - max - log_sum;

    let top_n = top_n.min(logits.len());
    let mut top: Vec<(u32, f32)> = Vec::with_capacity(top_n + 1);
    for (id, &x) in logits.iter().enumerate() {
        if top.len() < top_n || top.last().is_some_and(|last| x > last.1) {
            let at = top.partition_point(|other| other.1 >= x);
            top.insert(at, (id as u32, x));
            top.truncate(top_n);
        }
    }
    Ok(LogProbs { token: log_prob(logit), top: top.into_iter().map(|(id, x)| (id, log_prob(x))).collect() })
}
