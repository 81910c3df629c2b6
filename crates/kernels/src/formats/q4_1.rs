//! Q4_1: 5 bits a weight. Source of the layout: ggml's `block_q4_1`.
//!
//! ```text
//! 20 bytes, 32 weights:   d f16 at 0, m f16 at 2
//!                         qs[16] at 4
//! element h*16 + i  =  (qs[i] >> 4*h & 15) * d + m                           h < 2, i < 16
//! ```

use super::blocks32::{Block32, In32, four_runs, inverse, range};
use crate::format::Format;
use crate::simd::Bytes;
use half::f16;

pub(super) static FORMAT: Format = Format::scaled::<In32<Q4_1>>();

struct Q4_1;

impl Block32 for Q4_1 {
    const NAME: &'static str = "Q4_1";
    const BYTES: usize = 20;
    const OFFSET: u8 = 0;
    const TOP: u8 = 15;
    const MIN: bool = true;

    #[inline(always)]
    fn codes(block: &[u8]) -> [i8; 32] {
        std::array::from_fn(|e| (block[4 + e % 16] >> (e / 16 * 4) & 15).cast_signed())
    }
    #[inline(always)]
    unsafe fn codes2<S: Bytes>(a: *const u8, b: *const u8) -> S::V {
        // SAFETY: the caller's promises.
        unsafe { S::load_nibbles2(a.add(4), b.add(4)) }
    }
    #[inline(always)]
    unsafe fn turn<S: Bytes>(rows: &[*const u8; 16], runs: usize, to: *mut u8, apart: usize) -> usize {
        // SAFETY: the caller's promises, passed on.
        unsafe { four_runs::<Self, S, 4, 24, 44, 64>(rows, runs, to, apart) }
    }
    fn quantize(src: &[f32], block: &mut [u8]) {
        let (min, max) = range(src);
        let d = (max - min) / 15.0;
        let inverse = inverse(d);
        let code = |x: f32| (((x - min) * inverse + 0.5) as u8).min(15);
        block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(min).to_le_bytes());
        for i in 0..16 {
            block[4 + i] = code(src[i]) | code(src[i + 16]) << 4;
        }
    }
}
