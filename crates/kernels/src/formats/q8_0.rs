//! Q8_0: 8.5 bits a weight. Source of the layout: ggml's `block_q8_0`.
//!
//! ```text
//! 34 bytes, 32 weights:   d  f16     at 0
//!                         qs i8[32]  at 2
//! element e  =  qs[e] * d
//! ```

use super::blocks32::{Block32, In32, multiplied, two_runs};
use crate::format::Format;
use crate::simd::Bytes;
use half::f16;

pub(super) static FORMAT: Format = Format::scaled::<In32<Q8_0>>();

struct Q8_0;

impl Block32 for Q8_0 {
    const NAME: &'static str = "Q8_0";
    const BYTES: usize = 34;
    const OFFSET: u8 = 128;
    const TOP: u8 = 255;
    const MIN: bool = false;

    #[inline(always)]
    fn codes(block: &[u8]) -> [i8; 32] {
        std::array::from_fn(|e| block[2 + e].cast_signed())
    }
    #[inline(always)]
    unsafe fn codes2<S: Bytes>(a: *const u8, b: *const u8) -> S::V {
        // SAFETY: the caller's promises.
        unsafe { S::xor(S::load_halves(a.add(2), b.add(2)), S::splat_u8(0x80)) }
    }
    #[inline(always)]
    unsafe fn turn<S: Bytes>(rows: &[*const u8; 16], runs: usize, to: *mut u8, apart: usize) -> usize {
        // SAFETY: the caller's promises, passed on; the 32 codes of each of two blocks.
        unsafe {
            if runs < 2 {
                return two_runs::<Self, S>(rows, runs, to, apart);
            }
            for (j, v) in S::turn16::<2, 18, 36, 52>(*rows).into_iter().enumerate() {
                S::store_v(to.add(j * apart), multiplied::<Self, S>(S::xor(v, S::splat_u8(0x80))));
            }
        }
        2
    }
    fn quantize(src: &[f32], block: &mut [u8]) {
        let max = src.iter().fold(0f32, |m, x| m.max(x.abs()));
        let d = max / 127.0;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        for (x, q) in src.iter().zip(&mut block[2..]) {
            *q = ((x * inverse).round() as i8).cast_unsigned();
        }
    }
}
