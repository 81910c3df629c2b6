//! What can be asked of a sampler, and in which ranges.

use super::SamplingError;

/// How tokens are chosen. The defaults suit small models: they repeat themselves without a penalty.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by this before drawing: 1 is the model's own distribution, lower is more predictable, and 0
    /// takes the most probable token always. Default 0.8.
    pub temperature: f32,
    /// Only this many of the most probable tokens; 0 for all. Default 0.
    pub top_k: usize,
    /// Only the most probable tokens that together reach this probability; 1 for all. Default 1.
    pub top_p: f32,
    /// Only tokens at least this probable relative to the most probable one; 0 for all. Default 0.05.
    pub min_p: f32,
    /// Only the tokens of most typical surprise that together exceed this probability; 1 for all. Default 1.
    pub typical_p: f32,
    /// Divides positive logits of recent tokens and multiplies negative ones; 1 for none. Default 1.1.
    pub repeat_penalty: f32,
    /// Taken from the logits of recent tokens. Default 0.
    pub presence_penalty: f32,
    /// Taken from the logits of recent tokens once for each time they occur. Default 0.
    pub frequency_penalty: f32,
    /// How many tokens are recent: 0 none, −1 all of the context. Default 64.
    pub penalty_last_n: i32,
    /// Added to the logits of single tokens; negative infinity forbids one. The last entry of a token counts.
    pub logit_bias: Vec<(u32, f32)>,
    /// Where the random numbers start; None draws a seed, which [`Sampler::seed`](super::Sampler::seed) tells.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.05,
            typical_p: 1.0,
            repeat_penalty: 1.1,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_last_n: 64,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl SamplingParams {
    /// The most probable token every time, without penalties.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, min_p: 0.0, repeat_penalty: 1.0, ..Self::default() }
    }

    /// Whether every parameter is in its range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let finite = f32::is_finite;
        let share = |x: f32| (0.0..=1.0).contains(&x);
        let checks: [(&'static str, f32, bool, &'static str); 8] = [
            (
                "temperature",
                self.temperature,
                finite(self.temperature) && self.temperature >= 0.0,
                "0 or more",
            ),
            ("top_p", self.top_p, share(self.top_p), "from 0 to 1"),
            ("min_p", self.min_p, share(self.min_p), "from 0 to 1"),
            ("typical_p", self.typical_p, share(self.typical_p), "from 0 to 1"),
            (
                "repeat_penalty",
                self.repeat_penalty,
                finite(self.repeat_penalty) && self.repeat_penalty > 0.0,
                "more than 0; 1 is no penalty",
            ),
            ("presence_penalty", self.presence_penalty, finite(self.presence_penalty), "a finite number"),
            ("frequency_penalty", self.frequency_penalty, finite(self.frequency_penalty), "a finite number"),
            (
                "penalty_last_n",
                self.penalty_last_n as f32,
                self.penalty_last_n >= -1,
                "-1 for all of the context, 0 for none, or a number of tokens",
            ),
        ];
        let bias = self.logit_bias.iter().map(|&(_, bias)| {
            let fits = finite(bias) || bias == f32::NEG_INFINITY;
            ("logit_bias", bias, fits, "a finite number, or negative infinity to forbid a token")
        });
        match checks.into_iter().chain(bias).find(|(_, _, fits, _)| !fits) {
            Some((name, value, _, wanted)) => {
                Err(SamplingError::Parameter { name, value: f64::from(value), wanted })
            }
            None => Ok(()),
        }
    }

    /// Number of tokens the penalties look back, 0 if there are no penalties.
    pub(super) fn penalty_window(&self, context: usize) -> usize {
        let penalties =
            self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0;
        match self.penalty_last_n {
            _ if !penalties => 0,
            ..0 => context,
            n => context.min(n as usize),
        }
    }

    /// The logit of a token that occurs `count` times in the window. Finite logits stay finite, but for a bias of
    /// negative infinity.
    pub(super) fn penalize(&self, logit: f32, count: u32) -> f32 {
        if logit == f32::NEG_INFINITY {
            return logit;
        }
        let mut logit = logit;
        if count > 0 {
            logit = if logit > 0.0 { logit / self.repeat_penalty } else { logit * self.repeat_penalty };
            logit -= self.presence_penalty + self.frequency_penalty * count as f32;
        }
        logit.clamp(f32::MIN, f32::MAX)
    }
}
