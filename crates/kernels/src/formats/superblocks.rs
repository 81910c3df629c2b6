//! Super-blocks of 256 weights whose sub-blocks of 16 or 32 have small integer scales: the frame of Q4_K, Q5_K
//! and Q6_K. With the sub-block's `scale` and `min`, a weight is
//!
//! ```text
//! (d * scale) * code - dmin * min          Q4_K, Q5_K: codes from 0 to 15 or 31, sub-blocks of 32
//! (d * scale) * (code - OFFSET)            Q6_K: codes from 0 to 63, OFFSET 32, sub-blocks of 16
//! ```
//!
//! **Order of the int8 product.** Element e belongs to lane (e % 64) / 4. Inside a super-block everything is an
//! exact integer; sums of 16 values of q that are ready-made in the activations carry minima and offsets.
//!
//! ```text
//! for each super-block, s the activation scale of its 256 values:
//!     lane l = sum of scale * code * q over its elements
//!     min  l = for l < 8: sum over sub-blocks 2l and 2l+1 (of 16) of min * (sum of their q), else 0
//!     with an offset: acc[l] = fma(lane[l] - OFFSET * (the same sum with scale for min), d * s, acc[l])
//!     with minima:    acc[l] = fma(lane[l], d * s, acc[l]), then acc[l] = fma(min[l], -(dmin * s), acc[l])
//! result = fold(acc)
//! ```
//!
//! Nothing overflows, whatever the bytes are: two products are at most 2 * 63 * 127 = 16,002 (16 bits); a lane
//! has 16 elements, so at most 16 * 63 * 127 * 128 = 16,386,048; sums of 16 are at most 2,032, times 32 * 128
//! and two of them 16,646,144 (32 bits).

use super::{AHEAD, Blocks, Column, Int8Row, f16_at, float::ViaDequantize, fold};
use crate::acts::Grain;
use crate::simd::Bytes;
use std::marker::PhantomData;

/// The scales of a super-block.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    /// Scale of every 16 weights, -128..=127.
    pub scales: [i16; 16],
    /// Minimum of every 16 weights, 0..=63.
    pub mins: [i16; 16],
}

/// What a format of super-blocks provides.
pub(crate) trait SuperBlock: 'static {
    /// GGUF's name.
    const NAME: &'static str;
    /// Bytes of a super-block.
    const BYTES: usize;
    /// The code that means zero, 32; 0 where there are minima instead.
    const OFFSET: i16;
    /// Byte offset of `d`, an f16.
    const D_AT: usize;
    /// Byte offset of `dmin`, an f16; that of `d` where the format has an offset.
    const DMIN_AT: usize;
    /// The scales.
    fn head(block: &[u8]) -> Head;
    /// The codes, at most 63, in element order.
    fn codes(block: &[u8]) -> [u8; 256];
    /// The same as four vectors.
    ///
    /// # Safety
    /// `S` is enabled; a whole super-block is readable at `block`.
    unsafe fn vectors<S: Bytes>(block: *const u8) -> [S::V; 4];
    /// The scales as 16-bit lanes beside those four vectors (a scale for each pair of weights), and in the first 16 lanes of
    /// a fifth what meets the sums of 16: the minima, or where there is an offset the scales again.
    ///
    /// # Safety
    /// As for `vectors`.
    unsafe fn scales<S: Bytes>(block: *const u8) -> ([S::V; 4], S::V);
    /// 256 weights to a super-block.
    fn quantize(src: &[f32], block: &mut [u8]);
}

/// The format of super-blocks `T`.
pub(crate) struct In256<T>(PhantomData<T>);

impl<T: SuperBlock> Blocks for In256<T> {
    const NAME: &'static str = T::NAME;
    const BLOCK: usize = 256;
    const BYTES: usize = T::BYTES;

    #[inline]
    fn dequantize(blocks: &[u8], _: f32, out: &mut [f32]) {
        for (block, out) in blocks.chunks_exact(T::BYTES).zip(out.chunks_exact_mut(256)) {
            let head = T::head(block);
            let (d, dmin) = (f16_at(block, T::D_AT), f16_at(block, T::DMIN_AT));
            let codes = T::codes(block);
            for (j, (out, codes)) in out.chunks_exact_mut(16).zip(codes.chunks_exact(16)).enumerate() {
                let (scale, min) = (d * f32::from(head.scales[j]), dmin * f32::from(head.mins[j]));
                for (y, &code) in out.iter_mut().zip(codes) {
                    *y = scale * f32::from(i16::from(code) - T::OFFSET);
                    if T::OFFSET == 0 {
                        *y -= min;
                    }
                }
            }
        }
    }
    fn quantize(src: &[f32], dst: &mut [u8]) {
        for (src, block) in src.chunks_exact(256).zip(dst.chunks_exact_mut(T::BYTES)) {
            T::quantize(src, block);
        }
    }
}

impl<T: SuperBlock> ViaDequantize for In256<T> {
    #[inline(always)]
    unsafe fn decode<S: Bytes>(blocks: &[u8], _: f32, out: &mut [f32]) {
        let mut codes = [0u8; 256];
        for (block, out) in blocks.chunks_exact(T::BYTES).zip(out.chunks_exact_mut(256)) {
            let head = T::head(block);
            // SAFETY: `S` is enabled by the caller; `block` is a whole super-block; every load and store is of a
            // slice of 16 or 64.
            unsafe {
                let (d, dmin) = (f16::<S>(block, T::D_AT), f16::<S>(block, T::DMIN_AT));
                let vectors = T::vectors::<S>(block.as_ptr());
                for v in 0..4 {
                    let signed = S::sub_u8(vectors[v], S::splat_u8(T::OFFSET as u8));
                    S::store_v(codes[v * 64..v * 64 + 64].as_mut_ptr(), signed);
                }
                for (j, out) in out.chunks_exact_mut(16).enumerate() {
                    let (scale, min) = (d * f32::from(head.scales[j]), dmin * f32::from(head.mins[j]));
                    let y = S::mul(S::splat(scale), S::load_i8(codes[j * 16..].as_ptr().cast()));
                    S::store(out.as_mut_ptr(), if T::OFFSET == 0 { S::sub(y, S::splat(min)) } else { y });
                }
            }
        }
    }
}

/// The f16 at byte `at`, as f32.
///
/// # Safety
/// `S` is enabled.
#[inline(always)]
unsafe fn f16<S: Bytes>(block: &[u8], at: usize) -> f32 {
    // SAFETY: by the caller.
    unsafe { S::f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]])) }
}

impl<T: SuperBlock> Int8Row for In256<T> {
    const GRAIN: Grain = Grain::B256;

    fn scalar(row: &[u8], _: f32, x: Column<'_>) -> f32 {
        let mut acc = [0f32; 16];
        for (b, block) in row.chunks_exact(T::BYTES).enumerate() {
            let (head, codes) = (T::head(block), T::codes(block));
            let (q, sums, s) = (&x.q[b * 256..], &x.sums16[b * 16..], x.scales[b]);
            let d = f16_at(block, T::D_AT) * s;
            let mut lanes = [0i32; 16];
            for e in 0..256 {
                let weight = i32::from(head.scales[e / 16]) * i32::from(codes[e]);
                lanes[e % 64 / 4] += weight * i32::from(q[e]);
            }
            let pairs = |of: [i16; 16]| {
                let product = move |j: usize| i32::from(of[j]) * i32::from(sums[j]);
                std::array::from_fn(|l| if l < 8 { product(2 * l) + product(2 * l + 1) } else { 0 })
            };
            if T::OFFSET > 0 {
                let offset: [i32; 16] = pairs(head.scales);
                for l in 0..16 {
                    let lane = lanes[l] - i32::from(T::OFFSET) * offset[l];
                    acc[l] = (lane as f32).mul_add(d, acc[l]);
                }
            } else {
                let min: [i32; 16] = pairs(head.mins);
                let dmin = -(f16_at(block, T::DMIN_AT) * s);
                for l in 0..16 {
                    acc[l] = (min[l] as f32).mul_add(dmin, (lanes[l] as f32).mul_add(d, acc[l]));
                }
            }
        }
        fold(acc)
    }

    #[inline(always)]
    unsafe fn simd<S: Bytes, const N: usize>(row: &[u8], _: f32, x: &[Column<'_>; N]) -> [f32; N] {
        // SAFETY: `S` is enabled by the caller; super-block b is inside the row, and its 256 q, 16 sums and one
        // scale are inside each column.
        unsafe {
            let mut acc = [S::zero(); N];
            for (b, block) in row.chunks_exact(T::BYTES).enumerate() {
                S::prefetch(block.as_ptr().wrapping_add(AHEAD));
                S::prefetch(block.as_ptr().wrapping_add(AHEAD + 64));
                S::prefetch(block.as_ptr().wrapping_add(AHEAD + 128));
                let (d, dmin) = (f16::<S>(block, T::D_AT), f16::<S>(block, T::DMIN_AT));
                let codes = T::vectors::<S>(block.as_ptr());
                let (scales, of_sums) = T::scales::<S>(block.as_ptr());
                for c in 0..N {
                    let q = x[c].q.as_ptr().add(b * 256).cast::<u8>();
                    let s = *x[c].scales.as_ptr().add(b);
                    let min = S::dot_i16(of_sums, x[c].sums16.as_ptr().add(b * 16));
                    let mut lanes = S::zero_v();
                    if T::OFFSET > 0 {
                        lanes = S::sub_i32(lanes, S::shl32::<5>(min));
                    }
                    for v in 0..4 {
                        lanes = S::dot_u8_scaled(lanes, codes[v], S::load_v(q.add(v * 64)), scales[v]);
                    }
                    acc[c] = S::fma(S::to_f32(lanes), S::splat(d * s), acc[c]);
                    if T::OFFSET == 0 {
                        acc[c] = S::fma(S::to_f32(min), S::splat(-(dmin * s)), acc[c]);
                    }
                }
            }
            std::array::from_fn(|c| S::reduce_add(acc[c]))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{q4_k, q5_k, q6_k};
    use crate::{Acts, BoundKernel, I8Cols, Isa, Layout, Line, Mode, Ops, Out, Weights};

    /// All scales, minima, codes and activations at their limits at once: the sums that the module's text bounds.
    #[test]
    fn limits_do_not_overflow() {
        for format in [&q4_k::FORMAT, &q5_k::FORMAT, &q6_k::FORMAT] {
            for fill in [0x00, 0x7f, 0x80, 0xff] {
                let (cols, one) = (512, half::f16::ONE.to_le_bytes());
                let mut bytes = vec![fill; format.tensor_bytes(1, cols).unwrap()];
                for block in bytes.chunks_exact_mut(format.block_bytes) {
                    if format == &q6_k::FORMAT {
                        block[208..].copy_from_slice(&one);
                    } else {
                        block[..2].copy_from_slice(&one);
                        block[2..4].copy_from_slice(&one);
                    }
                }
                let weights = Weights::new(format, &bytes, 1, cols).unwrap();
                let mut w = vec![0f32; cols];
                weights.dequantize_row(0, &mut w);
                for x in [127.0, -127.0] {
                    let expected: f64 = w.iter().map(|w| f64::from(*w) * f64::from(x)).sum();
                    let size = 63.0 * 128.0 * 127.0 * cols as f64;
                    for isa in Isa::available() {
                        let kernel = BoundKernel::new(format, Mode::Int8, isa).unwrap();
                        let layout = Layout { cols, grain: kernel.grain().unwrap() };
                        let mut lines = vec![Line([0; 64]); layout.record_bytes() / 64];
                        Ops::new(isa).unwrap().quantize(&vec![x; cols], layout, &mut lines);
                        let mut y = [0f32];
                        let acts = Acts::I8(I8Cols::new(&lines, layout, 1));
                        kernel.run(&weights, &acts, Out::new(&mut y, 1, 0, 1, 1));
                        let error = (f64::from(y[0]) - expected).abs();
                        assert!(error <= size * 1e-6, "{kernel:?} {fill:#x} {x}: {} for {expected}", y[0]);
                    }
                }
            }
        }
    }
}
