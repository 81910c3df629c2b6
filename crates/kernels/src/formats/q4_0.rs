//! Q4_0: 4.5 bits a weight. Source of the layout: ggml's `block_q4_0`.
//!
//! ```text
//! 18 bytes, 32 weights:   d  f16  at 0
//!                         qs[16]  at 2
//! element h*16 + m  =  ((qs[m] >> 4*h & 15) - 8) * d                         h < 2, m < 16
//! ```

use super::blocks32::{Block32, In32, extreme, four_runs, inverse};
use crate::format::Format;
use crate::simd::Bytes;
use half::f16;

pub(super) static FORMAT: Format = Format::scaled::<In32<Q4_0>>();

struct Q4_0;

impl Block32 for Q4_0 {
    const NAME: &'static str = "Q4_0";
    const BYTES: usize = 18;
    const OFFSET: u8 = 8;
    const TOP: u8 = 15;
    const MIN: bool = false;

    #[inline(always)]
    fn codes(block: &[u8]) -> [i8; 32] {
        std::array::from_fn(|e| (block[2 + e % 16] >> (e / 16 * 4) & 15).cast_signed() - 8)
    }
    #[inline(always)]
    unsafe fn codes2<S: Bytes>(a: *const u8, b: *const u8) -> S::V {
        // SAFETY: the caller's promises.
        unsafe { S::load_nibbles2(a.add(2), b.add(2)) }
    }
    #[inline(always)]
    unsafe fn turn<S: Bytes>(rows: &[*const u8; 16], runs: usize, to: *mut u8, apart: usize) -> usize {
        // SAFETY: the caller's promises, passed on.
        unsafe { four_runs::<Self, S, 2, 20, 38, 56>(rows, runs, to, apart) }
    }
    fn quantize(src: &[f32], block: &mut [u8]) {
        let d = extreme(src) / -8.0;
        let inverse = inverse(d);
        let code = |x: f32| ((x * inverse + 8.5) as u8).min(15);
        block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        for m in 0..16 {
            block[2 + m] = code(src[m]) | code(src[m + 16]) << 4;
        }
    }
}
