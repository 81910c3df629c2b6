//! Blocks of 32 weights with one scale each, and perhaps a minimum: the frame of Q4_0, Q4_1, Q5_0, Q5_1 and
//! Q8_0. A weight is `code * d`, or `code * d + m`; codes are small signed integers.
//!
//! **Order of the int8 product.** Element e belongs to lane (e % 64) / 4, so two blocks fill the 16 lanes.
//!
//! ```text
//! for each block b, s the activation scale of its 32 values:
//!     for l in 0..8:  lane  = exact integer sum of code * q over its elements 4l .. 4l+4
//!                     acc[b % 2 * 8 + l] = fma(lane, d * s, acc[b % 2 * 8 + l])
//!     with a minimum: min[b % 16] = fma(m * s, sum of the block's q, min[b % 16])
//! result = fold(acc), or fold(acc + min)
//! ```
//!
//! Vector code takes scales 16 blocks at a time, so that half-precision values are converted and multiplied
//! in vectors. Where a row ends with an odd block, that block stands in for its missing partner with a scale
//! of zero, which leaves the lanes 8..16 as they are.
//!
//! Nothing overflows: |code| <= 128 and |q| <= 127, so a product of two pairs fits 16 bits and a lane 17.

use super::{AHEAD, Blocks, Column, Int8Row, f16_at, float::ViaDequantize, fold};
use crate::acts::Grain;
use crate::simd::Bytes;
use std::marker::PhantomData;

/// What a format of 32-weight blocks provides. Each block begins with `d`, an f16.
pub(crate) trait Block32: 'static {
    /// GGUF's name.
    const NAME: &'static str;
    /// Bytes of a block.
    const BYTES: usize;
    /// What vectors of codes are larger by than the codes, so that they are not negative: 0, 8, 16 or 128.
    const OFFSET: u8;
    /// Whether an f16 minimum `m` follows `d`. The offset is then 0.
    const MIN: bool;
    /// The codes of a block, in element order.
    fn codes(block: &[u8]) -> [i8; 32];
    /// The codes of two blocks, in element order, plus the offset.
    ///
    /// # Safety
    /// `S` is enabled; both pointers are to whole blocks.
    unsafe fn codes2<S: Bytes>(a: *const u8, b: *const u8) -> S::V;
    /// 32 weights to a block.
    fn quantize(src: &[f32], block: &mut [u8]);
}

/// The format of blocks `T`.
pub(crate) struct In32<T>(PhantomData<T>);

impl<T: Block32> Blocks for In32<T> {
    const NAME: &'static str = T::NAME;
    const BLOCK: usize = 32;
    const BYTES: usize = T::BYTES;

    #[inline]
    fn dequantize(blocks: &[u8], _: f32, out: &mut [f32]) {
        for (block, out) in blocks.chunks_exact(T::BYTES).zip(out.chunks_exact_mut(32)) {
            let (d, m) = (f16_at(block, 0), if T::MIN { f16_at(block, 2) } else { 0.0 });
            for (y, code) in out.iter_mut().zip(T::codes(block)) {
                *y = if T::MIN { f32::from(code) * d + m } else { f32::from(code) * d };
            }
        }
    }
    fn quantize(src: &[f32], dst: &mut [u8]) {
        for (src, block) in src.chunks_exact(32).zip(dst.chunks_exact_mut(T::BYTES)) {
            T::quantize(src, block);
        }
    }
}

impl<T: Block32> ViaDequantize for In32<T> {
    #[inline(always)]
    unsafe fn decode<S: Bytes>(blocks: &[u8], _: f32, out: &mut [f32]) {
        let mut codes = [0u8; 64];
        for (pair, out) in blocks.chunks(2 * T::BYTES).zip(out.chunks_mut(64)) {
            let (a, b) = (pair.as_ptr(), pair[pair.len() - T::BYTES..].as_ptr());
            // SAFETY: `S` is enabled by the caller; `a` and `b` begin whole blocks, the same one where a row ends
            // with an odd block; every load and store is of a slice of 16.
            unsafe {
                let signed = S::sub_u8(T::codes2::<S>(a, b), S::splat_u8(T::OFFSET));
                S::store_v(codes.as_mut_ptr(), signed);
                for (i, out) in out.chunks_exact_mut(16).enumerate() {
                    let block = &pair[i / 2 * T::BYTES..];
                    let f16 = |at: usize| S::f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]));
                    let y = S::mul(S::load_i8(codes[i * 16..].as_ptr().cast()), S::splat(f16(0)));
                    S::store(out.as_mut_ptr(), if T::MIN { S::add(y, S::splat(f16(2))) } else { y });
                }
            }
        }
    }
}

impl<T: Block32> Int8Row for In32<T> {
    const GRAIN: Grain = Grain::B32;

    fn scalar(row: &[u8], _: f32, x: Column<'_>) -> f32 {
        let (mut acc, mut min) = ([0f32; 16], [0f32; 16]);
        for (b, block) in row.chunks_exact(T::BYTES).enumerate() {
            let ds = f16_at(block, 0) * x.scales[b];
            let codes = T::codes(block);
            for l in 0..8 {
                let lane: i32 =
                    (l * 4..l * 4 + 4).map(|e| i32::from(codes[e]) * i32::from(x.q[b * 32 + e])).sum();
                let acc = &mut acc[b % 2 * 8 + l];
                *acc = (lane as f32).mul_add(ds, *acc);
            }
            if T::MIN {
                let ms = f16_at(block, 2) * x.scales[b];
                min[b % 16] = ms.mul_add(x.sums[b] as f32, min[b % 16]);
            }
        }
        fold(std::array::from_fn(|l| if T::MIN { acc[l] + min[l] } else { acc[l] }))
    }

    #[inline(always)]
    unsafe fn simd<S: Bytes, const N: usize>(row: &[u8], _: f32, x: &[Column<'_>; N]) -> [f32; N] {
        let blocks = row.len() / T::BYTES;
        // SAFETY: `S` is enabled by the caller. Blocks below `blocks` are inside the row, and so are their
        // scales and sums in the columns; the q of a column are padded to 256, so the second half of a last
        // odd pair may be loaded too.
        unsafe {
            let (mut acc, mut min) = ([S::zero(); N], [S::zero(); N]);
            for from in (0..blocks).step_by(16) {
                let n = (blocks - from).min(16);
                let base = row.as_ptr().add(from * T::BYTES);
                let mut ds = [[0f32; 16]; N];
                let d = S::load_f16_every(base, T::BYTES, n);
                for c in 0..N {
                    let s = S::load_n(x[c].scales.as_ptr().add(from), n);
                    S::store(ds[c].as_mut_ptr(), S::mul(d, s));
                }
                if T::MIN {
                    let m = S::load_f16_every(base.add(2), T::BYTES, n);
                    for c in 0..N {
                        let s = S::load_n(x[c].scales.as_ptr().add(from), n);
                        let sums = S::load_i32_n(x[c].sums.as_ptr().add(from), n);
                        min[c] = S::fma(S::mul(m, s), sums, min[c]);
                    }
                }
                for b in (0..n).step_by(2) {
                    let block = base.add(b * T::BYTES);
                    S::prefetch(block.wrapping_add(AHEAD));
                    let partner = if b + 1 < n { block.add(T::BYTES) } else { block };
                    let codes = T::codes2::<S>(block, partner);
                    for c in 0..N {
                        let q = S::load_v(x[c].q.as_ptr().add((from + b) * 32).cast());
                        let eighths = x[c].eighths.as_ptr().add((from + b) * 8).cast();
                        let lanes = match T::OFFSET {
                            0 => S::dot_u8(S::zero_v(), codes, q),
                            8 => S::dot_u8(S::load_v(eighths), codes, q),
                            16 => S::dot_u8(S::shl32::<1>(S::load_v(eighths)), codes, q),
                            _ => S::dot_offset128(codes, q, eighths.cast()),
                        };
                        acc[c] = S::fma(S::to_f32(lanes), S::splat2(ds[c][b], ds[c][b + 1]), acc[c]);
                    }
                }
            }
            std::array::from_fn(|c| S::reduce_add(if T::MIN { S::add(acc[c], min[c]) } else { acc[c] }))
        }
    }
}

/// The value farthest from zero, the first of equals.
pub(super) fn extreme(src: &[f32]) -> f32 {
    src.iter().fold(0f32, |m, &x| if x.abs() > m.abs() { x } else { m })
}

/// Smallest and largest value.
pub(super) fn range(src: &[f32]) -> (f32, f32) {
    src.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &x| (l.min(x), h.max(x)))
}

/// 1 / d, and 0 for 0.
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Codes of five bits: `bits` is a u32 with the fifth bit of every element, then 16 bytes of nibbles.
#[inline(always)]
pub(super) fn codes5(bits: &[u8]) -> [i8; 32] {
    std::array::from_fn(|e| {
        let low = bits[4 + e % 16] >> (e / 16 * 4) & 15;
        (low | (bits[e / 8] >> (e % 8) & 1) << 4).cast_signed()
    })
}

/// The same for two blocks as one vector.
///
/// # Safety
/// `S` is enabled; 20 bytes are readable at both pointers.
#[inline(always)]
pub(super) unsafe fn vector5<S: Bytes>(a: *const u8, b: *const u8) -> S::V {
    // SAFETY: 4 bytes of fifth bits and 16 of nibbles, by the caller.
    unsafe {
        let fifth = |p: *const u8| u64::from(u32::from_le(p.cast::<u32>().read_unaligned()));
        let high = S::expand_mask(fifth(a) | fifth(b) << 32);
        S::or(S::load_nibbles2(a.add(4), b.add(4)), S::and(high, S::splat_u8(16)))
    }
}

/// Writes the bytes that [`codes5`] reads.
pub(super) fn store5(src: &[f32], code: impl Fn(f32) -> u8, bits: &mut [u8]) {
    bits.fill(0);
    for (e, &x) in src.iter().enumerate() {
        let code = code(x);
        bits[4 + e % 16] |= (code & 15) << (e / 16 * 4);
        bits[e / 8] |= code >> 4 << (e % 8);
    }
}
