//! Weights that are -1, 0 or +1 times a scale: the frame of both ternary modes.
//!
//! **int8 activations.** Codes c = w + 1 are in {0, 1, 2}, so the product is sum(c * q) - sum(q), an exact integer.
//! Neighbouring blocks whose scales have the same bits form a *run*; a run is summed as integers and then
//! enters the result as `acc = fma(sum as f32, scale, acc)`. A row has one run in files of models trained
//! ternary, and may have one a block. At the end the column's scale and the tensor's are multiplied in.
//!
//! **Float activations: additions and subtractions only.** f32 values are added to or subtracted from 32 f64
//! lanes (lane e % 32 takes element e), so nothing is lost to cancellation; one multiplication per run applies
//! its scale. Four vectors of lanes let four chains of additions overlap.
//!
//! The code 3, which two bits can spell and no encoder writes, counts as +2 in dequantizing and in the int8
//! product and as 0 in the float product: the same on every instruction set.

use super::{Blocks, Column, Int8Row};
use crate::acts::Grain;
use crate::simd::scalar::Scalar;
use crate::simd::{Bytes, Lanes};

/// What a ternary format provides; `BLOCK` is a multiple of 64, up to 256.
pub(crate) trait Ternary: Blocks {
    /// The bits of a block's scale; a format with one scale a tensor returns a constant.
    fn scale_bits(block: &[u8]) -> u16;
    /// The scale that the bits mean: a half, unless the format says otherwise.
    ///
    /// # Safety
    /// `L` is enabled.
    #[inline(always)]
    unsafe fn scale_value<L: Lanes>(bits: u16) -> f32 {
        // SAFETY: the caller's promise, passed on.
        unsafe { L::f16_to_f32(bits) }
    }
    /// The codes (0, 1, 2 for -1, 0, +1) of a block in element order, in plain Rust.
    fn codes(block: &[u8], out: &mut [u8]);
    /// The codes of elements `64 * group ..` of a block, in element order. `group` is a constant once the
    /// frame's loop is unrolled, so a `match` on it costs nothing.
    ///
    /// # Safety
    /// `S` is enabled; `block` is one block and `group < BLOCK / 64`.
    unsafe fn codes64<S: Bytes>(block: &[u8], group: usize) -> S::V;
}

/// Blocks at the start of `row` whose scale has the bits of the first one's.
#[inline(always)]
fn run_of<T: Ternary>(row: &[u8]) -> (u16, usize) {
    let bits = T::scale_bits(&row[..T::BYTES]);
    (bits, row.chunks_exact(T::BYTES).take_while(|block| T::scale_bits(block) == bits).count())
}

impl<T: Ternary> Int8Row for T {
    const GRAIN: Grain = Grain::Column;

    fn scalar(row: &[u8], scale: f32, x: Column<'_>) -> f32 {
        let mut codes = [0u8; 256];
        let codes = &mut codes[..T::BLOCK];
        // SAFETY: the portable implementation is callable anywhere.
        let value = |bits| unsafe { T::scale_value::<Scalar>(bits) };
        let (mut acc, mut sum, mut run) = (0f32, 0i32, None);
        for (block, q) in row.chunks_exact(T::BYTES).zip(x.q.chunks_exact(T::BLOCK)) {
            let bits = T::scale_bits(block);
            if let Some(old) = run.filter(|&run| run != bits) {
                acc = (sum as f32).mul_add(value(old), acc);
                sum = 0;
            }
            run = Some(bits);
            T::codes(block, codes);
            sum += codes.iter().zip(q).map(|(&c, &q)| (i32::from(c) - 1) * i32::from(q)).sum::<i32>();
        }
        acc = (sum as f32).mul_add(value(run.unwrap_or(0)), acc);
        acc * (x.scales[0] * scale)
    }

    #[inline(always)]
    unsafe fn simd<S: Bytes, const N: usize>(row: &[u8], scale: f32, x: &[Column<'_>; N]) -> [f32; N] {
        let blocks = row.len() / T::BYTES;
        let mut acc = [0f32; N];
        let mut from = 0;
        while from < blocks {
            let (bits, len) = run_of::<T>(&row[from * T::BYTES..]);
            let run = &row[from * T::BYTES..][..len * T::BYTES];
            // SAFETY: `S` is enabled and the columns cover the row, by the caller.
            let (d, sums) =
                unsafe { (T::scale_value::<S>(bits), run_sums::<T, S, N>(run, x, from * T::BLOCK)) };
            for c in 0..N {
                let q = if len == blocks {
                    x[c].sums[0]
                } else {
                    let at = from * T::BLOCK / 16;
                    x[c].sums16[at..at + len * T::BLOCK / 16].iter().map(|&s| i32::from(s)).sum()
                };
                acc[c] = ((sums[c] - q) as f32).mul_add(d, acc[c]);
            }
            from += len;
        }
        for (acc, x) in acc.iter_mut().zip(x) {
            *acc *= x.scales[0] * scale;
        }
        acc
    }
}

/// Sum of code * q over the blocks of a run, which begins at element `at`.
///
/// A lane takes a sum of four products, so a single column has four accumulators to hide their latency; more
/// columns hide it from each other.
#[inline(always)]
unsafe fn run_sums<T: Ternary, S: Bytes, const N: usize>(
    run: &[u8],
    x: &[Column<'_>; N],
    at: usize,
) -> [i32; N] {
    let chains = if N == 1 { 4 } else { 1 };
    let elements = run.len() / T::BYTES * T::BLOCK;
    for x in x {
        assert!(x.q.len() >= at + elements, "activation length");
    }
    // SAFETY: `S` is enabled by the caller; each load of q is below `at + elements`, just checked.
    unsafe {
        let mut lanes = [[S::zero_v(); 4]; N];
        for (b, block) in run.chunks_exact(T::BYTES).enumerate() {
            for group in 0..T::BLOCK / 64 {
                let codes = T::codes64::<S>(block, group);
                for c in 0..N {
                    let q = S::load_v(x[c].q.as_ptr().add(at + b * T::BLOCK + group * 64).cast());
                    let lanes = &mut lanes[c][group % chains];
                    *lanes = S::dot_u8(*lanes, codes, q);
                }
            }
        }
        let mut sums = [0; N];
        for (sum, [a, b, c, d]) in sums.iter_mut().zip(lanes) {
            *sum = S::sum_i32(S::add_i32(S::add_i32(a, b), S::add_i32(c, d)));
        }
        sums
    }
}

/// The float dot product, one body for plain Rust and for vectors. `masks(block, group)` has bit i set
/// where element `64 * group + i` of the block is +1, and where it is -1.
#[inline(always)]
unsafe fn float_row<T: Ternary, L: Lanes, const N: usize>(
    row: &[u8],
    scale: f32,
    x: &[&[f32]; N],
    masks: impl Fn(&[u8], usize) -> (u64, u64),
) -> [f32; N] {
    let mut total = [0f64; N];
    // SAFETY: `L` is enabled by the caller; each load of 8 values is inside a slice of 8.
    unsafe {
        let mut lanes = [[L::zero_d(); 4]; N];
        let mut run = None;
        for (b, block) in row.chunks_exact(T::BYTES).enumerate() {
            let bits = T::scale_bits(block);
            if let Some(old) = run.filter(|&run| run != bits) {
                for c in 0..N {
                    total[c] += f64::from(T::scale_value::<L>(old)) * fold_lanes::<L>(lanes[c]);
                    lanes[c] = [L::zero_d(); 4];
                }
            }
            run = Some(bits);
            for group in 0..T::BLOCK / 64 {
                let (plus, minus) = masks(block, group);
                for c in 0..N {
                    let x = &x[c][b * T::BLOCK + group * 64..][..64];
                    for (e, x) in x.chunks_exact(8).enumerate() {
                        let (plus, minus) = (plus >> (8 * e), minus >> (8 * e));
                        let lanes = &mut lanes[c][e % 4];
                        *lanes = L::add_sub(*lanes, x.as_ptr(), plus as u8, minus as u8);
                    }
                }
            }
        }
        let d = f64::from(T::scale_value::<L>(run.unwrap_or(0)));
        let mut out = [0f32; N];
        for c in 0..N {
            out[c] = ((total[c] + d * fold_lanes::<L>(lanes[c])) * f64::from(scale)) as f32;
        }
        out
    }
}

/// The sum of 32 f64 lanes, in one order everywhere.
#[inline(always)]
unsafe fn fold_lanes<L: Lanes>([a, b, c, d]: [L::D; 4]) -> f64 {
    // SAFETY: `L` is enabled by the caller.
    unsafe { (L::reduce_add_d(a) + L::reduce_add_d(b)) + (L::reduce_add_d(c) + L::reduce_add_d(d)) }
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
    unsafe {
        float_row::<T, S, N>(row, scale, x, |block, group| {
            let codes = T::codes64::<S>(block, group);
            (S::eq_mask(codes, S::splat_u8(2)), S::eq_mask(codes, S::zero_v()))
        })
    }
}

pub(crate) fn float_scalar<T: Ternary>(row: &[u8], scale: f32, x: &[f32]) -> f32 {
    let masks = |block: &[u8], group: usize| {
        let mut codes = [0u8; 256];
        T::codes(block, &mut codes[..T::BLOCK]);
        let mask = |code| (0..64).fold(0, |m, i| m | u64::from(codes[group * 64 + i] == code) << i);
        (mask(2), mask(0))
    };
    // SAFETY: the portable implementation is callable anywhere.
    let [y] = unsafe { float_row::<T, Scalar, 1>(row, scale, &[x], masks) };
    y
}

/// Scale and codes of weights that share one scale: the largest magnitude, and each weight rounded to the
/// nearest of -1, 0 and +1 of it. Exact for weights that already are -d, 0 or d, which is what ternary models
/// have; other weights deserve a better choice than a reference needs.
///
/// Calls `code(i, 0 | 1 | 2)` for every weight and returns the scale.
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
