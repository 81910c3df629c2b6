//! Rotary frequencies: plain, linear, YaRN, and per-pair factors (Llama 3's `rope_freqs`, Phi-3's two lists).
//!
//! Sources: Su et al. 2021 (RoPE), Peng et al. 2023 (YaRN); how a file's keys select among them follows llama.cpp.

use super::ModelError;
use super::hparams::{HParams, Keys};
use super::op::RopeTable;
use nexaquant_kernels::Pairing;

/// Turns within the original context above which YaRN leaves a pair alone, and below which it stretches it fully.
const YARN_BETA_FAST: f64 = 32.0;
const YARN_BETA_SLOW: f64 = 1.0;

/// How the file stretches its context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scaling {
    kind: Kind,
    factor: f64,
    /// Positions before stretching.
    pub original_context: usize,
    attn_factor: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Linear,
    Yarn,
}

impl Scaling {
    pub fn read(keys: &Keys<'_>, context_length: usize) -> Result<Self, ModelError> {
        let bad = |name: &str, found: String, wanted: &str| ModelError::BadValue {
            key: keys.key(name),
            found,
            wanted: wanted.to_owned(),
        };
        let factor = keys.f64("rope.scaling.factor")?.filter(|&f| f != 0.0).unwrap_or(1.0);
        if factor <= 0.0 {
            return Err(bad("rope.scaling.factor", factor.to_string(), "a number above 0"));
        }
        let (kind, factor) = match keys.str("rope.scaling.type")? {
            Some("none") => (Kind::Linear, 1.0),
            // Llama 3's and Phi-3's own factors come as tensors; files name their kind in several ways.
            None | Some("linear" | "longrope" | "su" | "llama3") => (Kind::Linear, factor),
            Some("yarn") => (Kind::Yarn, factor),
            Some(other) => {
                return Err(bad("rope.scaling.type", other.to_owned(), "none, linear, yarn or longrope"));
            }
        };
        let original = keys.opt_size("rope.scaling.original_context_length")?.unwrap_or(context_length);
        let attn_factor = keys.f64("rope.scaling.attn_factor")?.unwrap_or(1.0);
        Ok(Self { kind, factor, original_context: original, attn_factor })
    }

    /// The table of layers with rope base `base`; `factors` divide the frequencies, one a pair.
    pub fn table(&self, h: &HParams, pairing: Pairing, factors: Option<&[f32]>) -> RopeTable {
        let (dims, base) = (h.rope_dims as f64, h.rope_base);
        let plain = frequencies(h.rope_dims, base)
            .enumerate()
            .map(|(i, f)| factors.map_or(f, |factors| f / f64::from(factors[i])));
        match self.kind {
            Kind::Linear => RopeTable {
                frequencies: plain.map(|f| f / self.factor).collect(),
                magnitude: self.attn_factor,
                pairing,
            },
            Kind::Yarn => {
                // The pair that makes `turns` turns within the original context.
                let pair_of = |turns: f64| {
                    dims * (self.original_context as f64 / (turns * std::f64::consts::TAU)).ln()
                        / (2.0 * base.ln())
                };
                let low = pair_of(YARN_BETA_FAST).floor().max(0.0);
                let high = pair_of(YARN_BETA_SLOW).ceil().min(dims - 1.0);
                let stretched = |i: usize| ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                let stretch = if self.factor > 1.0 { 1.0 + 0.1 * self.factor.ln() } else { 1.0 };
                RopeTable {
                    frequencies: plain
                        .enumerate()
                        .map(|(i, f)| f / self.factor * stretched(i) + f * (1.0 - stretched(i)))
                        .collect(),
                    magnitude: self.attn_factor * stretch,
                    pairing,
                }
            }
        }
    }
}

/// The table of local layers: their own base, no scaling.
pub(super) fn local_table(h: &HParams, base: f64, pairing: Pairing) -> RopeTable {
    RopeTable { frequencies: frequencies(h.rope_dims, base).collect(), magnitude: 1.0, pairing }
}

fn frequencies(dims: usize, base: f64) -> impl Iterator<Item = f64> {
    (0..dims / 2).map(move |i| base.powf(-2.0 * i as f64 / dims as f64))
}
