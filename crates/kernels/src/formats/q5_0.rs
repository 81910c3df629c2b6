//! Q5_0: 5.5 bits a weight. Source of the layout: ggml's `block_q5_0`.
//!
//! ```text
//! 22 bytes, 32 weights:   d  f16  at 0
//!                         qh u32  at 2    the fifth bit: bit e is of element e
//!                         qs[16]  at 6
//! element e = h*16 + m  =  ((qs[m] >> 4*h & 15) + 16 * (qh >> e & 1) - 16) * d        h < 2, m < 16
//! ```

use super::blocks32::{Block32, In32, codes5, extreme, inverse, store5, vector5};
use crate::format::Format;
use crate::simd::Bytes;
use half::f16;

pub(super) static FORMAT: Format = Format::scaled::<In32<Q5_0>>();

struct Q5_0;

impl Block32 for Q5_0 {
    const NAME: &'static str = "Q5_0";
    const BYTES: usize = 22;
    const OFFSET: u8 = 16;
    const TOP: u8 = 31;
    const MIN: bool = false;

    #[inline(always)]
    fn codes(block: &[u8]) -> [i8; 32] {
        codes5(&block[2..]).map(|code| code - 16)
    }
    #[inline(always)]
    unsafe fn codes2<S: Bytes>(a: *const u8, b: *const u8) -> S::V {
        // SAFETY: 20 bytes of codes from 2 on in each block.
        unsafe { vector5::<S>(a.add(2), b.add(2)) }
    }
    fn quantize(src: &[f32], block: &mut [u8]) {
        let d = extreme(src) / -16.0;
        let inverse = inverse(d);
        block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        store5(src, |x| ((x * inverse + 16.5) as u8).min(31), &mut block[2..]);
    }
}
