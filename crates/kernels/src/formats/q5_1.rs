//! Q5_1: 6 bits a weight. Source of the layout: ggml's `block_q5_1`.
//!
//! ```text
//! 24 bytes, 32 weights:   d f16 at 0, m f16 at 2
//!                         qh u32  at 4    the fifth bit: bit e is of element e
//!                         qs[16]  at 8
//! element e = h*16 + i  =  ((qs[i] >> 4*h & 15) + 16 * (qh >> e & 1)) * d + m         h < 2, i < 16
//! ```

use super::blocks32::{Block32, In32, codes5, inverse, range, store5, vector5};
use crate::format::Format;
use crate::simd::Bytes;
use half::f16;

pub(super) static FORMAT: Format = Format::scaled::<In32<Q5_1>>();

struct Q5_1;

impl Block32 for Q5_1 {
    const NAME: &'static str = "Q5_1";
    const BYTES: usize = 24;
    const OFFSET: u8 = 0;
    const TOP: u8 = 31;
    const MIN: bool = true;

    #[inline(always)]
    fn codes(block: &[u8]) -> [i8; 32] {
        codes5(&block[4..])
    }
    #[inline(always)]
    unsafe fn codes2<S: Bytes>(a: *const u8, b: *const u8) -> S::V {
        // SAFETY: 20 bytes of codes from 4 on in each block.
        unsafe { vector5::<S>(a.add(4), b.add(4)) }
    }
    fn quantize(src: &[f32], block: &mut [u8]) {
        let (min, max) = range(src);
        let d = (max - min) / 31.0;
        let inverse = inverse(d);
        block[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(min).to_le_bytes());
        store5(src, |x| (((x - min) * inverse + 0.5) as u8).min(31), &mut block[4..]);
    }
}
