//! What the tests of the operations share: inputs, guard zones, and running on every instruction set.

use crate::{Isa, Ops};
use std::ops::{Deref, DerefMut};

/// Around every vector width, plus sizes of real heads and rows.
pub(super) const LENGTHS: [usize; 14] = [0, 1, 2, 15, 16, 17, 31, 32, 33, 64, 80, 96, 128, 1000];

/// splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Values spread over -scale..scale.
pub(super) fn random(n: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut state = seed;
    (0..n).map(|_| ((next(&mut state) >> 40) as f32 / 8_388_608.0 - 1.0) * scale).collect()
}

/// Any bits of f32: denormal, huge, infinite and NaN ones too; an eighth are special values.
pub(super) fn extreme(n: usize, seed: u64) -> Vec<f32> {
    let special =
        [0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::MIN_POSITIVE];
    let mut state = seed;
    (0..n)
        .map(|_| {
            let bits = next(&mut state);
            if bits >> 61 == 0 { special[(bits >> 40) as usize % 8] } else { f32::from_bits(bits as u32) }
        })
        .collect()
}

/// Whether both have the same bits; which NaN it is does not count, as the hardware's choice depends on the
/// order of operands, which the compiler is free to change.
pub(super) fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
}

/// The operations on every instruction set of this machine, slowest first.
pub(super) fn all_ops() -> impl Iterator<Item = Ops> {
    Isa::available().filter_map(Ops::new)
}

/// The result on every available instruction set, which must be the same bits.
pub(super) fn each_isa(f: impl Fn(Ops) -> Vec<f32>) -> Vec<f32> {
    let results: Vec<_> = all_ops().map(|ops| (ops.isa(), f(ops))).collect();
    for (isa, got) in &results {
        assert!(same_bits(got, &results[0].1), "{isa}: {got:?}\nscalar: {:?}", results[0].1);
    }
    results[0].1.clone()
}

/// Panics unless `got` is within `bound` of `want`.
pub(super) fn within(got: f32, want: f64, bound: f64) {
    assert!((f64::from(got) - want).abs() <= bound, "{got} is not within {bound:e} of {want}");
}

/// A buffer between two guard zones, which are checked when it is taken out.
pub(super) struct Guarded<T = f32> {
    all: Vec<T>,
    guard: T,
}

const ZONE: usize = 24;

impl Guarded {
    /// `n` values that the operation has to overwrite.
    pub(super) fn new(n: usize) -> Self {
        Self::of(&vec![1e9; n])
    }
    /// A copy of `x`, of which nothing outside may be used: the zones are NaN.
    pub(super) fn of(x: &[f32]) -> Self {
        Self::between(x, f32::from_bits(0x7fc0_aaaa))
    }
}

impl<T: Copy + Bits> Guarded<T> {
    /// A copy of `x` between zones of `guard`.
    pub(super) fn between(x: &[T], guard: T) -> Self {
        let mut all = vec![guard; ZONE];
        all.extend_from_slice(x);
        all.extend_from_slice(&[guard; ZONE]);
        Self { all, guard }
    }
    /// The values, if the zones are whole.
    pub(super) fn into_vec(self) -> Vec<T> {
        let end = self.all.len() - ZONE;
        let zones = self.all[..ZONE].iter().chain(&self.all[end..]);
        for (i, x) in zones.enumerate() {
            assert!(x.bits() == self.guard.bits(), "guard zone overwritten at {i}");
        }
        self.all[ZONE..end].to_vec()
    }
}

/// Comparable, NaN too.
pub(super) trait Bits {
    fn bits(self) -> u32;
}
impl Bits for f32 {
    fn bits(self) -> u32 {
        self.to_bits()
    }
}
impl Bits for u8 {
    fn bits(self) -> u32 {
        self.into()
    }
}

impl<T> Deref for Guarded<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.all[ZONE..self.all.len() - ZONE]
    }
}
impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let end = self.all.len() - ZONE;
        &mut self.all[ZONE..end]
    }
}
