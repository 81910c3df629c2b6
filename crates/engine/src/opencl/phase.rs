//! A phase: what all work-groups do before they meet again. 64 words; `cl/base.cl` and `cl/attention.cl` say what they are.

/// Lines, values and numbers of one phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Phase(pub [u32; WORDS]);

/// Words of a phase.
pub(super) const WORDS: usize = 64;
/// No vector, no matrix, no place.
pub(super) const NONE: u32 = u32::MAX;
/// Words of a product, and where the first begins.
pub(super) const PRODUCT: usize = 16;

/// What a phase does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Do {
    Embed = 1,
    Quantize = 2,
    MatVec = 3,
    MatMul = 4,
    RopeKv = 5,
    Attend = 6,
    Combine = 7,
    AddNorm = 8,
    Glu = 9,
    Argmax = 10,
    Choose = 11,
}

/// Places of a phase's words.
pub(super) mod word {
    pub const KIND: usize = 0;
    pub const FLAGS: usize = 1;
    pub const COLS: usize = 2;
    pub const GRAIN: usize = 3;
    pub const IN: usize = 4;
    pub const NORM: usize = 7;
    pub const EPS: usize = 8;
    pub const TOKENS: usize = 8;
    pub const NPROD: usize = 9;
    pub const UNITS: usize = 10;
    pub const REC: usize = 11;
    pub const BUSY: usize = 11;
    pub const REC_STRIDE: usize = 12;
    pub const ACTIVATION: usize = 13;
    pub const SOFTCAP: usize = 14;
    pub const EACH_GROUP: usize = 15;
    pub const ATTENTION: usize = 9;
    pub const BEST: usize = 9;
    pub const EACH_BEST: usize = 10;
}

/// Places of a product's words.
pub(super) mod product {
    pub const FMT: usize = 0;
    pub const MAT: usize = 1;
    pub const ROWS: usize = 2;
    pub const PLANES: usize = 3;
    pub const OUT: usize = 6;
    pub const SCALE: usize = 9;
    pub const BIAS: usize = 10;
    pub const ADD: usize = 12;
    pub const TENSOR: usize = 15;
}

/// A row of floats: line, first value, values from token to token.
pub(super) type Place = [u32; 3];

impl Phase {
    pub fn new(what: Do) -> Self {
        let mut words = [0; WORDS];
        words[0] = what as u32;
        words[word::NORM] = NONE;
        // The words of other kinds mean other things there.
        let products = if matches!(what, Do::Embed | Do::MatVec | Do::MatMul) { 3 } else { 0 };
        for k in 0..products {
            for at in [product::MAT, product::BIAS, product::ADD] {
                words[PRODUCT * (k + 1) + at] = NONE;
            }
        }
        Self(words)
    }
    pub fn set(mut self, at: usize, value: u32) -> Self {
        self.0[at] = value;
        self
    }
    pub fn float(self, at: usize, value: f32) -> Self {
        self.set(at, value.to_bits())
    }
    pub fn place(mut self, at: usize, place: Place) -> Self {
        self.0[at..at + 3].copy_from_slice(&place);
        self
    }
    /// Writes a word of product `k`.
    pub fn of(self, k: usize, at: usize, value: u32) -> Self {
        self.set(PRODUCT * (k + 1) + at, value)
    }
    pub fn kind(&self) -> u32 {
        self.0[0]
    }
    pub fn bytes(phases: &[Phase]) -> Vec<u8> {
        phases.iter().flat_map(|p| p.0).flat_map(u32::to_le_bytes).collect()
    }
}
