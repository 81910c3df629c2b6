//! Blocks of a multiple of 64 weights that are small integers times one scale: the frame of Q1_0 and Q2_0.
//!
//! **Order of the int8 product.** Element e belongs to lane (e % 64) / 4.
//!
//! ```text
//! for each 64 elements, s the activation scale of each half of them:
//!     for l in 0..16:  lane   = exact integer sum of code * q over its elements 4l .. 4l+4
//!                      acc[l] = fma(lane, d * s[l / 8], acc[l])
//! result = fold(acc)
//! ```

use super::{Blocks, Column, Int8Row, f16_at, float::ViaDequantize, fold};
use crate::acts::Grain;
use crate::simd::Bytes;
use std::marker::PhantomData;

/// What a format of such blocks provides. Each block begins with `d`, an f16.
pub(crate) trait Block64: 'static {
    /// GGUF's name.
    const NAME: &'static str;
    /// Weights in a block, a multiple of 64 that divides 256.
    const BLOCK: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// The code of element `e`: the weight is that times `d`.
    fn code(block: &[u8], e: usize) -> i8;
    /// The codes of elements `64 * group ..`, in element order.
    ///
    /// # Safety
    /// `S` is enabled; `block` is one block and `group < BLOCK / 64`.
    unsafe fn codes64<S: Bytes>(block: &[u8], group: usize) -> S::V;
    /// `BLOCK` weights to a block.
    fn quantize(src: &[f32], block: &mut [u8]);
}

/// The format of blocks `T`.
pub(crate) struct In64<T>(PhantomData<T>);

impl<T: Block64> Blocks for In64<T> {
    const NAME: &'static str = T::NAME;
    const BLOCK: usize = T::BLOCK;
    const BYTES: usize = T::BYTES;

    #[inline]
    fn dequantize(blocks: &[u8], _: f32, out: &mut [f32]) {
        for (block, out) in blocks.chunks_exact(T::BYTES).zip(out.chunks_exact_mut(T::BLOCK)) {
            let d = f16_at(block, 0);
            for (e, y) in out.iter_mut().enumerate() {
                *y = f32::from(T::code(block, e)) * d;
            }
        }
    }
    fn quantize(src: &[f32], dst: &mut [u8]) {
        for (src, block) in src.chunks_exact(T::BLOCK).zip(dst.chunks_exact_mut(T::BYTES)) {
            T::quantize(src, block);
        }
    }
}

impl<T: Block64> ViaDequantize for In64<T> {
    #[inline(always)]
    unsafe fn decode<S: Bytes>(blocks: &[u8], _: f32, out: &mut [f32]) {
        let mut codes = [0i8; 64];
        for (block, out) in blocks.chunks_exact(T::BYTES).zip(out.chunks_exact_mut(T::BLOCK)) {
            // SAFETY: `S` is enabled by the caller; a block begins with a half; every other load and store is of
            // a slice of its length.
            unsafe {
                let d = S::splat_f16(block.as_ptr().cast());
                for (group, out) in out.chunks_exact_mut(64).enumerate() {
                    S::store_v(codes.as_mut_ptr().cast(), T::codes64::<S>(block, group));
                    for (out, codes) in out.chunks_exact_mut(16).zip(codes.chunks_exact(16)) {
                        S::store(out.as_mut_ptr(), S::mul(S::load_i8(codes.as_ptr()), d));
                    }
                }
            }
        }
    }
}

impl<T: Block64> Int8Row for In64<T> {
    const GRAIN: Grain = Grain::B32;

    fn scalar(row: &[u8], _: f32, x: Column<'_>) -> f32 {
        let mut acc = [0f32; 16];
        for (b, block) in row.chunks_exact(T::BYTES).enumerate() {
            let d = f16_at(block, 0);
            for e in (0..T::BLOCK).step_by(4) {
                let at = b * T::BLOCK + e;
                let lane: i32 =
                    (0..4).map(|i| i32::from(T::code(block, e + i)) * i32::from(x.q[at + i])).sum();
                let acc = &mut acc[e % 64 / 4];
                *acc = (lane as f32).mul_add(d * x.scales[at / 32], *acc);
            }
        }
        fold(acc)
    }

    #[inline(always)]
    unsafe fn simd<S: Bytes, const N: usize>(row: &[u8], _: f32, x: &[Column<'_>; N]) -> [f32; N] {
        let elements = row.len() / T::BYTES * T::BLOCK;
        for x in x {
            assert!(x.q.len() >= elements && x.scales.len() >= elements / 32, "activation length");
        }
        // SAFETY: `S` is enabled by the caller; loads from the columns are below `elements`, just checked; a
        // block begins with a half.
        unsafe {
            let mut acc = [S::zero(); N];
            for (b, block) in row.chunks_exact(T::BYTES).enumerate() {
                let d = S::splat_f16(block.as_ptr().cast());
                for group in 0..T::BLOCK / 64 {
                    let codes = T::codes64::<S>(block, group);
                    let at = b * T::BLOCK + group * 64;
                    for c in 0..N {
                        let s = x[c].scales.as_ptr().add(at / 32);
                        let lanes = S::dot_i8(S::zero_v(), codes, S::load_v(x[c].q.as_ptr().add(at).cast()));
                        acc[c] = S::fma(S::to_f32(lanes), S::mul(d, S::splat2(*s, *s.add(1))), acc[c]);
                    }
                }
            }
            let mut out = [0f32; N];
            for (out, acc) in out.iter_mut().zip(acc) {
                *out = S::reduce_add(acc);
            }
            out
        }
    }
}
