//! The key-value cache's types: what one head's keys and values look like in bytes.
//!
//! Reading them back is [`super::attention`]; where they lie is the engine's business.
//!
//! ```text
//! F32    head_dim f32, little endian
//! F16    head_dim halves, little endian, rounded to nearest even
//! Q8_0   per 32 values: d, a half; q, 32 i8 in -127..=127; a value is about q * d (the block of GGUF's Q8_0)
//! ```
//!
//! Values are stored in such rows. [`KEYS`] keys lie side by side in a block, element for element: each f32, half, d
//! and i8 above is that of the first key, then that of the second, …. So 16 scores are computed in 16 lanes, which need
//! not be added together in the end.
//!
//! A row or block may begin at any address.

use super::lanes::{get, steps};
use super::{Body, Ops};
use crate::simd::Lanes;
use half::f16;

/// How a row of the key-value cache is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 4 bytes a value, exact.
    F32,
    /// 2 bytes a value.
    F16,
    /// 34 bytes for 32 values.
    Q8_0,
}

impl KvType {
    /// All variants, largest first.
    pub const ALL: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];

    /// `f32`, `f16` or `q8_0`.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
        }
    }

    /// The variant of that [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.name() == name)
    }

    /// Bytes of a row of `head_dim` values. `None` if there is no such row: `head_dim` is 0, not a multiple
    /// of 32 for Q8_0, or absurdly large.
    pub fn row_bytes(self, head_dim: usize) -> Option<usize> {
        match self {
            _ if head_dim == 0 => None,
            KvType::F32 => head_dim.checked_mul(4),
            KvType::F16 => head_dim.checked_mul(2),
            KvType::Q8_0 if head_dim.is_multiple_of(Q8) => (head_dim / Q8).checked_mul(Q8_BYTES),
            KvType::Q8_0 => None,
        }
    }
}

/// Values in a Q8_0 block.
pub(super) const Q8: usize = 32;
/// Bytes of a Q8_0 block.
pub(super) const Q8_BYTES: usize = 34;
/// Keys that lie side by side.
pub const KEYS: usize = 16;

impl Ops {
    /// Stores one head's value vector as a row of `ty.row_bytes(x.len())` bytes.
    ///
    /// Values that F16 cannot hold become infinite. A block of Q8_0 with a value that is not finite, or with
    /// one beyond what its scale can hold (8.3 million), gets the scale NaN, so that it shows.
    ///
    /// # Panics
    /// When `ty` has no row of this length or `row` is not that long.
    pub fn kv_store_value(&self, ty: KvType, x: &[f32], row: &mut [u8]) {
        assert_eq!(Some(row.len()), ty.row_bytes(x.len()), "{} row of {} values", ty.name(), x.len());
        self.run(Store::<1> { ty, x, to: row.as_mut_ptr(), at: 0 });
    }

    /// Stores one head's key vector, in the same way, as the key `at < KEYS` of a block of keys.
    ///
    /// # Panics
    /// When `ty` has no row of this length, or there is no such key.
    ///
    /// # Safety
    /// `block` is valid for `KEYS * ty.row_bytes(x.len())` bytes, and nobody else touches those of this key meanwhile. Others
    /// may store the other keys.
    pub unsafe fn kv_store_key(&self, ty: KvType, x: &[f32], block: *mut u8, at: usize) {
        assert!(ty.row_bytes(x.len()).is_some(), "{} keys of {} values", ty.name(), x.len());
        assert!(at < KEYS, "key {at} of {KEYS}");
        self.run(Store::<KEYS> { ty, x, to: block, at });
    }
}

/// Element i of a vector goes to element `i * APART + at` of what is at `to`, for which there is room.
struct Store<'a, const APART: usize> {
    ty: KvType,
    x: &'a [f32],
    to: *mut u8,
    at: usize,
}

// The pointers are cast to types of larger alignment and written at any address.
#[allow(clippy::cast_ptr_alignment)]
impl<const APART: usize> Body for Store<'_, APART> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { ty, x, to, at } = self;
        match ty {
            KvType::F32 => {
                for (i, x) in x.iter().enumerate() {
                    // SAFETY: there is room for every element, by the caller.
                    unsafe { to.add(4 * (i * APART + at)).cast::<[u8; 4]>().write(x.to_le_bytes()) };
                }
            }
            KvType::F16 => {
                for step in steps(x.len()) {
                    let mut halves = [0u16; 16];
                    // SAFETY: `L` is enabled by the caller; the step is inside `x`; there is room for every element.
                    unsafe {
                        if APART == 1 && step.1 == 16 {
                            L::store_f16(to.add(2 * step.0).cast(), get::<L>(x, step));
                            continue;
                        }
                        L::store_f16(halves.as_mut_ptr(), get::<L>(x, step));
                        for (i, half) in halves[..step.1].iter().enumerate() {
                            let to = to.add(2 * ((step.0 + i) * APART + at));
                            to.cast::<[u8; 2]>().write(half.to_le_bytes());
                        }
                    }
                }
            }
            KvType::Q8_0 => {
                for (b, x) in x.chunks_exact(Q8).enumerate() {
                    let mut bytes = [0; Q8];
                    // SAFETY: `L` is enabled by the caller; the slices have 32 values each; there is room for every element.
                    unsafe {
                        let scale = quantize::<L>(x, &mut bytes);
                        let to = to.add(b * Q8_BYTES * APART);
                        to.add(2 * at).cast::<[u8; 2]>().write(scale.to_bits().to_le_bytes());
                        for (i, byte) in bytes.iter().enumerate() {
                            to.add(2 * APART + i * APART + at).write(*byte);
                        }
                    }
                }
            }
        }
    }
}

/// Fills `q` with the 32 bytes of `x` and returns the scale.
///
/// The values are divided by the scale as it is stored, not as it was before rounding to a half: that keeps the
/// error of each within half a step of the stored scale.
#[inline(always)]
unsafe fn quantize<L: Lanes>(x: &[f32], q: &mut [u8]) -> f16 {
    // SAFETY: `L` is enabled by the caller; both slices have 32 values, by the caller.
    unsafe {
        let (a, b) = (L::load(x.as_ptr()), L::load(x[16..].as_ptr()));
        // 0 * x is NaN for infinities and NaN, and stays in the sum.
        let bad = L::reduce_add(L::fma(a, L::zero(), L::mul(b, L::zero())));
        let max = L::reduce_max(L::max(L::abs(a), L::max(L::abs(b), L::zero())));
        let scale = f16::from_f32_const(max / 127.0);
        let d = scale.to_f32_const();
        if bad.is_nan() || d == 0.0 || d.is_infinite() {
            q.fill(0);
            return if d == 0.0 && !bad.is_nan() { f16::ZERO } else { f16::NAN };
        }
        let (inverse, limit) = (L::splat(1.0 / d), L::splat(127.0));
        // A scale that was rounded down may ask for a little more than 127.
        for (i, v) in [a, b].into_iter().enumerate() {
            let v = L::max(L::sub(L::zero(), limit), L::min(limit, L::mul(v, inverse)));
            L::store_i8(q[i * 16..][..16].as_mut_ptr().cast(), L::round(v));
        }
        scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Guarded, LENGTHS, all_ops, extreme, random};

    /// The row on every instruction set, which must be the same bytes, and nothing written outside.
    fn store(ty: KvType, x: &[f32]) -> Vec<u8> {
        let rows = all_ops().map(|ops| {
            let mut row = Guarded::between(&vec![0xee; ty.row_bytes(x.len()).unwrap_or(0)], 0xa5);
            ops.kv_store_value(ty, x, &mut row);
            row.into_vec()
        });
        rows.reduce(|a, b| {
            assert_eq!(a, b);
            a
        })
        .unwrap_or_default()
    }

    #[test]
    fn float_rows_are_the_values_rounded_to_their_type() {
        for n in LENGTHS.into_iter().filter(|n| *n > 0) {
            for scale in [1e-7, 1.0, 1e5] {
                let x = random(n, 51, scale);
                let want: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
                assert_eq!(store(KvType::F32, &x), want);
                let want: Vec<u8> = x.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
                assert_eq!(store(KvType::F16, &x), want);
            }
        }
    }

    #[test]
    fn blocks_of_8_bits_are_within_half_a_step() {
        for n in [32, 64, 96, 128, 320] {
            for scale in [1e-7, 1.1e-5, 3e-5, 1e-3, 1.0, 100.0, 1e6] {
                let x = random(n, n as u64, scale);
                let row = store(KvType::Q8_0, &x);
                for (x, block) in x.chunks(32).zip(row.chunks(34)) {
                    let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
                    let max = x.iter().fold(0f32, |m, x| m.max(x.abs()));
                    assert_eq!(d, f16::from_f32(max / 127.0).to_f32());
                    for (x, q) in x.iter().zip(&block[2..]) {
                        let got = f32::from(q.cast_signed()) * d;
                        // Half a step; where the half is denormal, 127 steps may end before the maximum,
                        // by 127 times the rounding of the scale (2^-25); a little for the multiplication.
                        let bound = d * 0.500_02 + 127.0 * 2f32.powi(-25).max(d * 2f32.powi(-11));
                        let clamped = q.cast_signed().abs() == 127;
                        assert!((got - x).abs() <= if clamped { bound } else { d * 0.500_02 } || d == 0.0);
                    }
                }
            }
        }
        assert_eq!(store(KvType::Q8_0, &[0.0; 32]), [0; 34]);
    }

    #[test]
    fn values_out_of_range_show_in_their_block_only() {
        for bad in [f32::NAN, f32::INFINITY, -f32::INFINITY, 1e7, -f32::MAX] {
            let mut x = vec![1.0; 96];
            x[47] = bad;
            let row = store(KvType::Q8_0, &x);
            let nan: Vec<bool> = row.chunks(34).map(|b| f16::from_le_bytes([b[0], b[1]]).is_nan()).collect();
            assert_eq!(nan, [false, true, false], "{bad}");
        }
        for seed in 0..50 {
            store(KvType::Q8_0, &extreme(64, seed));
        }
        let halves = store(KvType::F16, &[1e6, -1e6, 65519.0, 1e-9, -0.0]);
        let inf = f16::INFINITY.to_bits();
        let want = [inf, inf | 0x8000, f16::MAX.to_bits(), 0, 0x8000];
        assert_eq!(halves, want.map(u16::to_le_bytes).concat());
    }

    #[test]
    fn keys_are_rows_side_by_side() {
        for ty in KvType::ALL {
            for dim in [1, 15, 32, 33, 64, 80, 96, 200] {
                let Some(bytes) = ty.row_bytes(dim) else { continue };
                let keys: Vec<_> = (0..KEYS).map(|i| random(dim, i as u64, 3.0)).collect();
                let rows: Vec<_> = keys.iter().map(|x| store(ty, x)).collect();
                // Bytes of each element of a row, in order.
                let elements: Vec<usize> = match ty {
                    KvType::F32 => vec![4; dim],
                    KvType::F16 => vec![2; dim],
                    KvType::Q8_0 => [vec![2], vec![1; 32]].concat().repeat(dim / 32),
                };
                let (mut want, mut from) = (Vec::new(), 0);
                for n in elements {
                    for row in &rows {
                        want.extend_from_slice(&row[from..from + n]);
                    }
                    from += n;
                }
                for ops in all_ops() {
                    let mut block = Guarded::between(&vec![0xee; KEYS * bytes], 0xa5);
                    for at in (0..KEYS).rev() {
                        // SAFETY: the block has room for 16 such keys.
                        unsafe { ops.kv_store_key(ty, &keys[at], block.as_mut_ptr(), at) };
                    }
                    assert_eq!(block.into_vec(), want, "{ty:?} {dim} {}", ops.isa());
                }
            }
        }
    }

    #[test]
    fn rows_have_sizes_and_types_have_names() {
        for ty in KvType::ALL {
            assert_eq!(KvType::from_name(ty.name()), Some(ty));
            assert_eq!(ty.row_bytes(0), None);
            assert_eq!(ty.row_bytes(usize::MAX), None);
        }
        assert_eq!(KvType::from_name("q4_0"), None);
        assert_eq!(KvType::ALL.map(|ty| ty.row_bytes(128)), [Some(512), Some(256), Some(136)]);
        assert_eq!(KvType::ALL.map(|ty| ty.row_bytes(80)), [Some(320), Some(160), None]);
    }
}
