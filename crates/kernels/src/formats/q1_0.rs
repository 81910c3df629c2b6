//! Q1_0: one sign a weight, 1.125 bits. Source of the layout: ggml's `block_q1_0`.
//!
//! ```text
//! 18 bytes, 128 weights:   d  f16  at 0
//!                          qs[16]  at 2    eight signs a byte, low bits first
//! element e  =  (qs[e / 8] >> e % 8) & 1 ? d : -d
//! ```

use super::blocks64::{Block64, In64};
use crate::format::Format;
use crate::simd::Bytes;
use half::f16;

pub(super) static FORMAT: Format = Format::quantized::<In64<Q1_0>>();

struct Q1_0;

impl Block64 for Q1_0 {
    const NAME: &'static str = "Q1_0";
    const BLOCK: usize = 128;
    const BYTES: usize = 18;

    #[inline(always)]
    fn code(block: &[u8], e: usize) -> i8 {
        if block[2 + e / 8] >> (e % 8) & 1 == 1 { 1 } else { -1 }
    }

    #[inline(always)]
    unsafe fn codes64<S: Bytes>(block: &[u8], group: usize) -> S::V {
        // SAFETY: 8 bytes of signs in the block for each group; `S` is enabled by the caller.
        unsafe {
            let plus = u64::from_le(block.as_ptr().add(2 + group * 8).cast::<u64>().read_unaligned());
            S::or(S::expand_mask(!plus), S::splat_u8(1))
        }
    }

    /// The mean of |x| is the least-squares magnitude once the signs are fixed.
    fn quantize(src: &[f32], block: &mut [u8]) {
        block.fill(0);
        let mean = src.iter().map(|x| x.abs()).sum::<f32>() / 128.0;
        block[..2].copy_from_slice(&f16::from_f32(mean).to_le_bytes());
        for (e, x) in src.iter().enumerate() {
            block[2 + e / 8] |= u8::from(x.is_sign_positive()) << (e % 8);
        }
    }
}
