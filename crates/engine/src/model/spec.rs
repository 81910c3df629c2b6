//! The architectures, one row each, written as differences from `LLAMA`.
//!
//! A row says what the graph looks like; [`super::build`] has one branch per field, in the order of the
//! computation. Sizes come from the file ([`super::hparams`]).

use nexaquant_kernels::{Activation, Pairing};

/// Whether a tensor must, may or must not be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Its presence is an error (nobody claims it).
    Never,
    /// Used when there.
    Optional,
    /// Its absence is an error.
    Required,
}

/// How layers look back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Windows {
    /// Every layer sees everything.
    Global,
    /// All layers but every `period`-th see `attention.sliding_window` positions and have a rope base of their own,
    /// when the file has that key.
    LocalGlobal {
        /// Unless `attention.sliding_window_pattern` says otherwise.
        period: usize,
        /// Rope base of the local layers unless `rope.freq_base_swa` says otherwise.
        local_base: f32,
    },
}

/// What makes an architecture different.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each names one difference of a graph")]
pub struct ArchSpec {
    /// Values of `general.architecture`.
    pub names: &'static [&'static str],
    /// One `attn_qkv` in place of `attn_q`, `attn_k`, `attn_v`.
    pub fused_qkv: bool,
    /// `attn_q.bias`, `attn_k.bias`, `attn_v.bias`.
    pub qkv_bias: Presence,
    /// `attn_output.bias`, `ffn_gate.bias`, `ffn_up.bias`, `ffn_down.bias`.
    pub other_bias: Presence,
    /// `attn_q_norm`, `attn_k_norm`: every head is normalized before rope.
    pub head_norms: bool,
    /// Which values rope turns together.
    pub pairing: Pairing,
    /// Local and global layers.
    pub windows: Windows,
    /// `attn_sub_norm` before the attention output, `ffn_sub_norm` before the ffn's last matrix.
    pub sub_norms: bool,
    /// `post_attention_norm`, `post_ffw_norm` before each residual addition.
    pub post_norms: bool,
    /// Gate and up in one `ffn_up`, gate first.
    pub fused_gate_up: bool,
    /// Of the gate.
    pub activation: Activation,
    /// `hidden_activation` in the file may say otherwise.
    pub activation_key: bool,
    /// `<projection>.scale`, one value multiplied into the product.
    pub projection_scale: Presence,
    /// Embeddings are multiplied by sqrt(n_embd).
    pub scaled_embedding: bool,
}

/// The usual transformer; every other row names its differences.
const LLAMA: ArchSpec = ArchSpec {
    names: &["llama"],
    fused_qkv: false,
    qkv_bias: Presence::Optional,
    other_bias: Presence::Optional,
    head_norms: false,
    pairing: Pairing::Interleaved,
    windows: Windows::Global,
    sub_norms: false,
    post_norms: false,
    fused_gate_up: false,
    activation: Activation::Silu,
    activation_key: false,
    projection_scale: Presence::Never,
    scaled_embedding: false,
};

const BITNET: ArchSpec = ArchSpec {
    names: &["bitnet"],
    qkv_bias: Presence::Never,
    other_bias: Presence::Never,
    pairing: Pairing::Halves,
    sub_norms: true,
    activation_key: true,
    projection_scale: Presence::Optional,
    ..LLAMA
};

/// Every architecture that runs.
pub static ARCHITECTURES: &[ArchSpec] = &[
    LLAMA,
    // Phi-3 files may carry a sliding window; attention is full all the same, as in llama.cpp.
    ArchSpec {
        names: &["phi3"],
        fused_qkv: true,
        fused_gate_up: true,
        qkv_bias: Presence::Never,
        other_bias: Presence::Never,
        pairing: Pairing::Halves,
        ..LLAMA
    },
    BITNET,
    // Squared ReLU is not in the files of BitNet-b1.58-2B-4T; the name alone says it.
    ArchSpec { names: &["bitnet-b1.58", "bitnet-25"], activation: Activation::Relu2, ..BITNET },
    ArchSpec {
        names: &["qwen2"],
        qkv_bias: Presence::Required,
        other_bias: Presence::Never,
        pairing: Pairing::Halves,
        ..LLAMA
    },
    ArchSpec {
        names: &["qwen3"],
        qkv_bias: Presence::Never,
        other_bias: Presence::Never,
        pairing: Pairing::Halves,
        head_norms: true,
        ..LLAMA
    },
    ArchSpec {
        names: &["gemma3"],
        qkv_bias: Presence::Never,
        other_bias: Presence::Never,
        pairing: Pairing::Halves,
        head_norms: true,
        post_norms: true,
        activation: Activation::GeluTanh,
        windows: Windows::LocalGlobal { period: 6, local_base: 10_000.0 },
        scaled_embedding: true,
        ..LLAMA
    },
];

impl ArchSpec {
    /// The row of a `general.architecture` value.
    pub fn by_name(name: &str) -> Option<&'static ArchSpec> {
        ARCHITECTURES.iter().find(|spec| spec.names.contains(&name))
    }
    /// All names, for error texts and `nexaquant info`.
    pub fn all_names() -> impl Iterator<Item = &'static str> {
        ARCHITECTURES.iter().flat_map(|spec| spec.names.iter().copied())
    }
}
