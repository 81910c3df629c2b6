//! Float activations times block-quantized weights, for formats that need nothing special: decode up to
//! 256 weights, then 16 fused multiply-adds at a time. Lane `e % 16` takes element `e`, in order.

use super::{Blocks, FloatRow, fold};
use crate::simd::Bytes;

/// Formats whose float kernel is "dequantize, then multiply". Their block divides 256 and is a multiple of 16.
pub(crate) trait ViaDequantize: Blocks {
    /// [`Blocks::dequantize`] to the same bits, in vectors where a format provides them; 256 weights at most.
    ///
    /// # Safety
    /// `S` is enabled; `blocks` is whole blocks and `out` as long as their weights.
    #[inline(always)]
    unsafe fn decode<S: Bytes>(blocks: &[u8], scale: f32, out: &mut [f32]) {
        Self::dequantize(blocks, scale, out);
    }
}

const CHUNK: usize = 256;

impl<T: ViaDequantize> FloatRow for T {
    #[inline(always)]
    unsafe fn float<S: Bytes, const N: usize>(row: &[u8], scale: f32, x: &[&[f32]; N]) -> [f32; N] {
        let mut w = [0f32; CHUNK];
        // SAFETY: `S` is enabled by the caller; every load below is inside a slice of at least 16 values.
        unsafe {
            let mut acc = [S::zero(); N];
            for (k, blocks) in row.chunks(CHUNK / T::BLOCK * T::BYTES).enumerate() {
                let w = &mut w[..blocks.len() / T::BYTES * T::BLOCK];
                T::decode::<S>(blocks, scale, w);
                for c in 0..N {
                    let x = &x[c][k * CHUNK..][..w.len()];
                    for (w, x) in w.chunks_exact(16).zip(x.chunks_exact(16)) {
                        acc[c] = S::fma(S::load(w.as_ptr()), S::load(x.as_ptr()), acc[c]);
                    }
                }
            }
            std::array::from_fn(|c| S::reduce_add(acc[c]))
        }
    }

    fn float_scalar(row: &[u8], scale: f32, x: &[f32]) -> f32 {
        let mut w = [0f32; CHUNK];
        let mut acc = [0f32; 16];
        for (blocks, x) in row.chunks(CHUNK / T::BLOCK * T::BYTES).zip(x.chunks(CHUNK)) {
            let w = &mut w[..x.len()];
            T::dequantize(blocks, scale, w);
            for (i, (w, x)) in w.iter().zip(x).enumerate() {
                acc[i % 16] = w.mul_add(*x, acc[i % 16]);
            }
        }
        fold(acc)
    }
}
