//! Weights that are -1, 0 or +1 times a scale: the frame of both ternary modes.
//!
//! **int8 activations.** Codes c = w + 1 are in {0, 1, 2}, so the product is sum(c * q) - sum(q), an exact integer.
//! Neighbouring blocks whose scales have the same bits form a *run*; a run is summed as integers and then
//! enters the result as `acc = fma(sum as f32, scale, acc)`. A row has one run in files of models trained
//! ternary, and may have one a block. At the end the column's scale and the tensor's are multiplied in.
//!
//! **Float activations: additions and subtractions only.** f32 values are added to or subtracted from f64
//! lanes (lane e % 8 takes element e), so nothing is lost to cancellation; one multiplication per run applies
//! its scale.

use super::{Blocks, Column, Int8Row};
use crate::acts::Grain;
use crate::simd::scalar::Scalar;
use crate::simd::{Bytes, Lanes};

/// What a ternary format provides.
pub(crate) trait Ternary: Blocks {
    /// The bits of a block's scale; a format with one scale a tensor returns a constant.
    fn scale_bits(block: &[u8]) -> u16;
    /// The scale that the bits mean.
    fn scale_value(bits: u16) -> f32;
    /// The codes (0, 1, 2 for -1, 0, +1) of a block in element order, in plain Rust.
    fn codes(block: &[u8], out: &mut [u8]);
    /// `acc[c]` + sum over the block of code * q, left in any lanes, for `N` columns at element `at`.
    ///
    /// # Safety
    /// `S` is enabled; `block` is one block; every column covers `at..at + BLOCK`.
    unsafe fn accumulate<S: Bytes, const N: usize>(
        block: &[u8],
        x: &[Column<'_>; N],
        at: usize,
        acc: &mut [S::V; N],
    );
    /// Bit e % 8 of byte e / 8 of the masks is set where element e is +1, and where it is -1.
    ///
    /// # Safety
    /// `S` is enabled; `block` is one block.
    unsafe fn masks<S: Bytes>(block: &[u8]) -> ([u8; 32], [u8; 32]);
}

/// Longest row whose integer sum cannot overflow: codes up to 3 times 127.
const MAX_COLS: usize = i32::MAX as usize / (3 * 127);

impl<T: Ternary> Int8Row for T {
    const GRAIN: Grain = Grain::Column;

    fn scalar(row: &[u8], scale: f32, x: Column<'_>) -> f32 {
        assert!(row.len() / T::BYTES * T::BLOCK <= MAX_COLS, "row too long for 32-bit sums");
        let mut codes = [0u8; 256];
        let codes = &mut codes[..T::BLOCK];
        let (mut acc, mut sum, mut run) = (0f32, 0i32, None);
        for (block, q) in row.chunks_exact(T::BYTES).zip(x.q.chunks_exact(T::BLOCK)) {
            let bits = T::scale_bits(block);
            if run.is_some_and(|run| run != bits) {
                acc = (sum as f32).mul_add(T::scale_value(run.unwrap_or(0)), acc);
                sum = 0;
            }
            run = Some(bits);
            T::codes(block, codes);
            sum += codes.iter().zip(q).map(|(&c, &q)| (i32::from(c) - 1) * i32::from(q)).sum::<i32>();
        }
        acc = (sum as f32).mul_add(T::scale_value(run.unwrap_or(0)), acc);
        acc * (x.scales[0] * scale)
    }

    #[inline(always)]
    unsafe fn simd<S: Bytes, const N: usize>(row: &[u8], scale: f32, x: &[Column<'_>; N]) -> [f32; N] {
        let blocks = row.len() / T::BYTES;
        assert!(blocks * T::BLOCK <= MAX_COLS, "row too long for 32-bit sums");
        let mut acc = [0f32; N];
        let mut from = 0;
        while from < blocks {
            let bits = T::scale_bits(&row[from * T::BYTES..][..T::BYTES]);
            // SAFETY: `S` is enabled by the caller; blocks and columns are in range by the slices.
            let (lanes, to) = unsafe {
                let mut lanes = [S::zero_v(); N];
                let mut b = from;
                while b < blocks {
                    let block = &row[b * T::BYTES..][..T::BYTES];
                    if T::scale_bits(block) != bits {
                        break;
                    }
                    T::accumulate::<S, N>(block, x, b * T::BLOCK, &mut lanes);
                    b += 1;
                }
                (lanes, b)
            };
            let d = T::scale_value(bits);
            for c in 0..N {
                let q = if from == 0 && to == blocks {
                    x[c].sums[0]
                } else {
                    x[c].sums16[from * T::BLOCK / 16..to * T::BLOCK / 16].iter().map(|&s| i32::from(s)).sum()
                };
                // SAFETY: `S` is enabled by the caller.
                let sum = unsafe { S::sum_i32(lanes[c]) } - q;
                acc[c] = (sum as f32).mul_add(d, acc[c]);
            }
            from = to;
        }
        std::array::from_fn(|c| acc[c] * (x[c].scales[0] * scale))
    }
}

/// The float dot product in terms of `masks`, one body for plain Rust and for vectors.
#[inline(always)]
unsafe fn float_row<T: Ternary, L: Lanes, const N: usize>(
    row: &[u8],
    scale: f32,
    x: &[&[f32]; N],
    masks: impl Fn(&[u8]) -> ([u8; 32], [u8; 32]),
) -> [f32; N] {
    let mut total = [0f64; N];
    // SAFETY: `L` is enabled by the caller; each load of 8 values is inside a slice of 8.
    unsafe {
        let mut lanes = [L::zero_d(); N];
        let mut run = None;
        for (b, block) in row.chunks_exact(T::BYTES).enumerate() {
            let bits = T::scale_bits(block);
            if let Some(old) = run.filter(|&run| run != bits) {
                for c in 0..N {
                    total[c] += f64::from(T::scale_value(old)) * L::reduce_add_d(lanes[c]);
                    lanes[c] = L::zero_d();
                }
            }
            run = Some(bits);
            let (plus, minus) = masks(block);
            for c in 0..N {
                let x = &x[c][b * T::BLOCK..][..T::BLOCK];
                for (e, x) in x.chunks_exact(8).enumerate() {
                    lanes[c] = L::add_sub(lanes[c], x.as_ptr(), plus[e], minus[e]);
                }
            }
        }
        let d = f64::from(T::scale_value(run.unwrap_or(0)));
        std::array::from_fn(|c| ((total[c] + d * L::reduce_add_d(lanes[c])) * f64::from(scale)) as f32)
    }
}

/// Implements [`FloatRow`] for a ternary format (a blanket impl would collide with the dequantizing one).
macro_rules! ternary_float {
    ($t:ty) => {
        impl $crate::formats::FloatRow for $t {
            #[inline(always)]
            unsafe fn float<S: $crate::simd::Bytes, const N: usize>(
                row: &[u8],
                scale: f32,
                x: &[&[f32]; N],
            ) -> [f32; N] {
                // SAFETY: the caller's promises, passed on.
                unsafe { $crate::formats::ternary::float_simd::<$t, S, N>(row, scale, x) }
            }
            fn float_scalar(row: &[u8], scale: f32, x: &[f32]) -> f32 {
                $crate::formats::ternary::float_scalar::<$t>(row, scale, x)
            }
        }
    };
}
pub(crate) use ternary_float;

#[inline(always)]
pub(crate) unsafe fn float_simd<T: Ternary, S: Bytes, const N: usize>(
    row: &[u8],
    scale: f32,
    x: &[&[f32]; N],
) -> [f32; N] {
    // SAFETY: the caller's promises, passed on.
    unsafe { float_row::<T, S, N>(row, scale, x, |block| T::masks::<S>(block)) }
}

pub(crate) fn float_scalar<T: Ternary>(row: &[u8], scale: f32, x: &[f32]) -> f32 {
    let masks = |block: &[u8]| {
        let mut codes = [1u8; 256];
        T::codes(block, &mut codes[..T::BLOCK]);
        let mask = |code| {
            std::array::from_fn(|i| (0..8).fold(0, |m, j| m | u8::from(codes[i * 8 + j] == code) << j))
        };
        (mask(2), mask(0))
    };
    // SAFETY: the portable implementation is callable anywhere.
    let [y] = unsafe { float_row::<T, Scalar, 1>(row, scale, &[x], masks) };
    y
}

/// The scale of a block of ternary weights: the mean of |w| over the nonzero ones is the least-squares
/// choice once signs are fixed, and |w| at least half of it is what rounds away from zero.
/// Returns (scale, code of each weight); exact for values that already are -d, 0 or d.
pub(crate) fn ternarize(src: &[f32], mut code: impl FnMut(usize, u8)) -> f32 {
    let max = src.iter().fold(0f32, |m, x| m.max(x.abs()));
    for (i, &x) in src.iter().enumerate() {
        let c = if 2.0 * x.abs() < max || max == 0.0 {
            1
        } else if x > 0.0 {
            2
        } else {
            0
        };
        code(i, c);
    }
    max
}
