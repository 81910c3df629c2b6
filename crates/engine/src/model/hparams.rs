//! Sizes and constants of a model, read from the metadata and checked.

use super::ModelError;
use super::spec::{ArchSpec, Windows};
use nexaquant_gguf::Metadata;
use nexaquant_kernels::Activation;

/// What one layer needs to know of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerParams {
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of the hidden vector.
    pub ff: usize,
    /// Positions seen, where the layer is local.
    pub window: Option<usize>,
}

/// Sizes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct HParams {
    /// Width of the residual stream.
    pub embd: usize,
    /// Query heads.
    pub heads: usize,
    /// Values in a head.
    pub head_dim: usize,
    /// One entry a layer.
    pub layers: Vec<LayerParams>,
    /// Positions the model was made for.
    pub context_length: usize,
    /// In every norm.
    pub eps: f32,
    /// Values of a head that turn.
    pub rope_dims: usize,
    /// Of the global layers.
    pub rope_base: f64,
    /// Of the local layers, where there are any.
    pub local_rope_base: Option<f64>,
    /// Attention scores are multiplied by this.
    pub attention_scale: f32,
    /// Of the gate.
    pub activation: Activation,
    /// Logits become cap * tanh(logits / cap), where the file says so.
    pub logit_softcap: Option<f32>,
}

/// No model has more layers; a file that says so is not believed.
pub(crate) const MAX_LAYERS: u64 = 4096;
/// No model has more heads, or larger ones; scores and cache pages are sized by them.
pub(crate) const MAX_HEADS: usize = 1 << 12;
pub(crate) const MAX_HEAD_DIM: usize = 1 << 14;
/// No width, head count or context is larger.
const MAX_SIZE: u64 = 1 << 30;

/// Reads `{arch}.name` keys.
pub(super) struct Keys<'a> {
    pub md: &'a Metadata,
    pub arch: &'a str,
}

impl Keys<'_> {
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }
    #[allow(clippy::needless_pass_by_value, reason = "texts and numbers alike, made into text here")]
    fn bad(&self, name: &str, found: impl ToString, wanted: impl ToString) -> ModelError {
        ModelError::BadValue { key: self.key(name), found: found.to_string(), wanted: wanted.to_string() }
    }
    /// A count in 1..=MAX_SIZE.
    fn size(&self, name: &str, found: u64) -> Result<usize, ModelError> {
        if (1..=MAX_SIZE).contains(&found) {
            Ok(found as usize)
        } else {
            Err(self.bad(name, found, format!("1 to {MAX_SIZE}")))
        }
    }
    fn need_size(&self, name: &str) -> Result<usize, ModelError> {
        self.size(name, self.md.need_u64(&self.key(name))?)
    }
    pub fn opt_size(&self, name: &str) -> Result<Option<usize>, ModelError> {
        self.md.u64(&self.key(name))?.map(|v| self.size(name, v)).transpose()
    }
    pub fn f64(&self, name: &str) -> Result<Option<f64>, ModelError> {
        match self.md.f64(&self.key(name))? {
            Some(v) if !v.is_finite() => Err(self.bad(name, v, "a finite number")),
            v => Ok(v),
        }
    }
    fn positive(&self, name: &str, v: f64) -> Result<f64, ModelError> {
        if v > 0.0 { Ok(v) } else { Err(self.bad(name, v, "a number above 0")) }
    }
    pub fn str(&self, name: &str) -> Result<Option<&str>, ModelError> {
        Ok(self.md.str(&self.key(name))?)
    }
    /// One value a layer, from a scalar or an array.
    fn per_layer(&self, name: &str, layers: usize) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(values) = self.md.u64s(&self.key(name))? else { return Ok(None) };
        let values = match values.len() {
            1 => vec![values[0]; layers],
            n if n == layers => values,
            n => return Err(self.bad(name, format!("{n} values"), format!("1 or {layers} (block_count)"))),
        };
        values.into_iter().map(|v| self.size(name, v)).collect::<Result<_, _>>().map(Some)
    }
    fn need_per_layer(&self, name: &str, layers: usize) -> Result<Vec<usize>, ModelError> {
        self.per_layer(name, layers)?
            .ok_or_else(|| nexaquant_gguf::Error::MissingKey { key: self.key(name) }.into())
    }
}

impl HParams {
    /// Reads everything that `spec` needs.
    pub(super) fn read(keys: &Keys<'_>, spec: &ArchSpec) -> Result<Self, ModelError> {
        let n = keys.md.need_u64(&keys.key("block_count"))?;
        if !(1..=MAX_LAYERS).contains(&n) {
            return Err(keys.bad("block_count", n, format!("1 to {MAX_LAYERS}")));
        }
        let n = n as usize;
        let embd = keys.need_size("embedding_length")?;
        let head_counts = keys.need_per_layer("attention.head_count", n)?;
        let heads = head_counts[0];
        if head_counts.iter().any(|&h| h != heads) {
            return Err(keys.bad("attention.head_count", "different counts", "the same in every layer"));
        }
        if heads > MAX_HEADS {
            return Err(keys.bad("attention.head_count", heads, format!("1 to {MAX_HEADS}")));
        }
        let head_dim = match keys.opt_size("attention.key_length")? {
            Some(d) => d,
            None if embd.is_multiple_of(heads) => embd / heads,
            None => {
                let found = format!("{heads} heads in a width of {embd}");
                return Err(keys.bad("attention.head_count", found, "a divisor, or attention.key_length"));
            }
        };
        if head_dim > MAX_HEAD_DIM {
            return Err(keys.bad("attention.key_length", head_dim, format!("1 to {MAX_HEAD_DIM}")));
        }
        if let Some(v) = keys.opt_size("attention.value_length")?.filter(|&v| v != head_dim) {
            return Err(keys.bad("attention.value_length", v, format!("{head_dim} as attention.key_length")));
        }
        let kv_heads = keys.per_layer("attention.head_count_kv", n)?.unwrap_or_else(|| vec![heads; n]);
        if let Some(bad) = kv_heads.iter().find(|&&kv| !heads.is_multiple_of(kv)) {
            return Err(keys.bad("attention.head_count_kv", bad, format!("a divisor of {heads} heads")));
        }
        let ff = keys.need_per_layer("feed_forward_length", n)?;

        if !head_dim.is_multiple_of(2) {
            return Err(keys.bad(
                "attention.key_length (or embedding_length / attention.head_count)",
                head_dim,
                "an even number",
            ));
        }
        let rope_dims = keys.opt_size("rope.dimension_count")?.unwrap_or(head_dim);
        if rope_dims > head_dim || rope_dims % 2 != 0 {
            return Err(keys.bad(
                "rope.dimension_count",
                rope_dims,
                format!("an even number up to {head_dim}"),
            ));
        }
        let rope_base = keys.positive("rope.freq_base", keys.f64("rope.freq_base")?.unwrap_or(10_000.0))?;

        let window = match spec.windows {
            Windows::Global => None,
            Windows::LocalGlobal { .. } => {
                // A window of 0 means none.
                keys.md.u64(&keys.key("attention.sliding_window"))?.filter(|&w| w > 0)
            }
        };
        let (period, local_rope_base) = match (spec.windows, window) {
            (Windows::LocalGlobal { period, local_base }, Some(_)) => {
                let base = keys.f64("rope.freq_base_swa")?.unwrap_or(f64::from(local_base));
                let base = keys.positive("rope.freq_base_swa", base)?;
                (keys.opt_size("attention.sliding_window_pattern")?.unwrap_or(period), Some(base))
            }
            _ => (1, None),
        };
        let layers = (0..n)
            .map(|i| LayerParams {
                kv_heads: kv_heads[i],
                ff: ff[i],
                window: window.filter(|_| i % period != period - 1).map(|w| w.min(MAX_SIZE) as usize),
            })
            .collect();

        let activation = match keys.str("hidden_activation")?.filter(|_| spec.activation_key) {
            None => spec.activation,
            Some("silu") => Activation::Silu,
            Some("relu2") => Activation::Relu2,
            Some(other) => return Err(keys.bad("hidden_activation", other, "silu or relu2")),
        };
        // Gemma 3 27B, told by its 62 layers, scales queries by the width per head and not by the head's own.
        let per_head =
            if spec.scaled_embedding && n == 62 { embd as f64 / heads as f64 } else { head_dim as f64 };
        let eps = keys.md.need_f64(&keys.key("attention.layer_norm_rms_epsilon"))?;
        if !(eps > 0.0 && eps < 1.0) {
            return Err(keys.bad("attention.layer_norm_rms_epsilon", eps, "above 0 and below 1"));
        }
        Ok(Self {
            embd,
            heads,
            head_dim,
            layers,
            context_length: keys.need_size("context_length")?,
            eps: eps as f32,
            rope_dims,
            rope_base,
            local_rope_base,
            attention_scale: (1.0 / per_head.sqrt()) as f32,
            activation,
            logit_softcap: keys.f64("final_logit_softcapping")?.filter(|&c| c > 0.0).map(|c| c as f32),
        })
    }
}
