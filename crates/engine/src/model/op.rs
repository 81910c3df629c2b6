//! Compute as data: what a forward pass does, in about ten coarse operations.
//!
//! An op names activations by [`View`] and weights by id. It knows no device, no format and no token count;
//! a backend fills those in per step. A list of ops can be printed, compared and run on two backends.

use nexaquant_kernels::{Activation, Pairing};
use std::fmt;

/// A buffer of activations: one row of f32 a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// The residual stream, `n_embd` wide.
    X,
    /// A normalized copy of something, as wide as the widest input of a matrix.
    Norm,
    /// Queries, keys and values side by side.
    Qkv,
    /// Attention's result, `heads * head_dim` wide.
    Attn,
    /// Gate and up side by side.
    GateUp,
    /// The gated hidden vector, `n_ff` wide.
    Hidden,
    /// A product on its way into the residual stream, `n_embd` wide.
    Proj,
    /// One value a vocabulary entry, for the tokens whose logits are wanted.
    Logits,
}

impl Slot {
    /// All slots.
    pub const ALL: [Slot; 8] =
        [Slot::X, Slot::Norm, Slot::Qkv, Slot::Attn, Slot::GateUp, Slot::Hidden, Slot::Proj, Slot::Logits];
}

/// Values `at..at + width` of every row of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The buffer.
    pub slot: Slot,
    /// First value.
    pub at: usize,
    /// Values.
    pub width: usize,
}

impl View {
    /// The first `width` values.
    pub fn new(slot: Slot, width: usize) -> Self {
        Self { slot, at: 0, width }
    }
    /// `width` values, `at` further on in the same rows.
    #[must_use]
    pub fn part(self, at: usize, width: usize) -> Self {
        assert!(at + width <= self.width, "part of a view");
        Self { slot: self.slot, at: self.at + at, width }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}[{}+{}]", self.slot, self.at, self.width)
    }
}

/// Index of a matrix in [`super::Architecture::matrices`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixId(pub usize);

/// Index of a vector in [`super::Architecture::vectors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorId(pub usize);

/// One product of a [`Op::MatMul`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Has rows of `input.width` weights.
    pub matrix: MatrixId,
    /// The row that the first value of `out` comes from: 0 unless the unit was cut (`m3/cut.rs`).
    pub first: usize,
    /// Where the result goes.
    pub out: View,
    /// Multiplied into the result; one value.
    pub scale: Option<VectorId>,
    /// Added to the result after the scale; `out.width` values.
    pub bias: Option<VectorId>,
    /// Where the result is added then, of the same width.
    pub add_to: Option<View>,
}

/// One step of a forward pass.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// X = scale * row `token` of the table.
    Embed {
        /// The embedding table.
        table: MatrixId,
        /// 1, or sqrt(n_embd) in Gemma.
        scale: f32,
    },
    /// out = rms_norm(x) * weight.
    RmsNorm {
        /// Input.
        x: View,
        /// As wide as `x`.
        weight: VectorId,
        /// Output; another slot than `x`.
        out: View,
    },
    /// x = rms_norm(x) * weight for every head of `x`.
    RmsNormHeads {
        /// Heads side by side.
        x: View,
        /// As wide as a head.
        weight: VectorId,
    },
    /// Products of several matrices with one input, quantized once.
    MatMul {
        /// The shared input.
        input: View,
        /// The matrices and their results.
        products: Vec<Product>,
    },
    /// Rotates the heads of `x` by the position.
    Rope {
        /// Heads side by side.
        x: View,
        /// Index in what [`super::Architecture::rope_tables`] returns.
        table: usize,
    },
    /// Writes keys and values of this step's tokens to the cache.
    KvAppend {
        /// The layer.
        layer: usize,
        /// Heads side by side.
        k: View,
        /// Heads side by side.
        v: View,
    },
    /// out = softmax(scale * q k) v over the cache, causal.
    Attention {
        /// The layer.
        layer: usize,
        /// Heads side by side.
        q: View,
        /// Heads side by side.
        out: View,
        /// Only the last so many positions are seen.
        window: Option<usize>,
        /// Usually 1 / sqrt(head_dim).
        scale: f32,
    },
    /// out = activation(gate) * up.
    Glu {
        /// Goes through the activation.
        gate: View,
        /// Multiplied in.
        up: View,
        /// Output; another slot.
        out: View,
        /// Which.
        activation: Activation,
    },
    /// x += y.
    Add {
        /// Changed.
        x: View,
        /// Added; another slot.
        y: View,
    },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Embed { table, scale } => write!(f, "X = {scale} * m{}[token]", table.0),
            Op::RmsNorm { x, weight, out } => write!(f, "{out} = rms_norm({x}) * v{}", weight.0),
            Op::RmsNormHeads { x, weight } => write!(f, "{x} = rms_norm(each head) * v{}", weight.0),
            Op::MatMul { input, products } => {
                for (i, p) in products.iter().enumerate() {
                    write!(f, "{}{} = ", if i > 0 { "; " } else { "" }, p.add_to.unwrap_or(p.out))?;
                    if let Some(to) = p.add_to {
                        write!(f, "{to} + ")?;
                    }
                    write!(f, "m{}", p.matrix.0)?;
                    if p.first > 0 {
                        write!(f, "@{}", p.first)?;
                    }
                    write!(f, " {input}")?;
                    if let Some(s) = p.scale {
                        write!(f, " * v{}", s.0)?;
                    }
                    if let Some(b) = p.bias {
                        write!(f, " + v{}", b.0)?;
                    }
                }
                Ok(())
            }
            Op::Rope { x, table } => write!(f, "{x} = rope{table}(each head)"),
            Op::KvAppend { layer, k, v } => write!(f, "cache{layer} <- {k}, {v}"),
            Op::Attention { layer, q, out, window, scale } => {
                write!(f, "{out} = attention({q}, cache{layer}, scale {scale}")?;
                if let Some(w) = window {
                    write!(f, ", window {w}")?;
                }
                write!(f, ")")
            }
            Op::Glu { gate, up, out, activation } => write!(f, "{out} = {activation:?}({gate}) * {up}"),
            Op::Add { x, y } => write!(f, "{x} += {y}"),
        }
    }
}

/// Operations that share one residency: a layer, the embedding, the head.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// `embedding`, `layer 3`, `head`.
    pub name: String,
    /// In order.
    pub ops: Vec<Op>,
}

/// How positions turn into angles: one entry a layer kind.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Radians per position of each rotated pair.
    pub frequencies: Vec<f64>,
    /// What cos and sin are multiplied by (YaRN's and Phi-3's attention factor).
    pub magnitude: f64,
    /// Which values form a pair.
    pub pairing: Pairing,
}
