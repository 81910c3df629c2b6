//! Q2_0 and Q2_0_G128: two bits a weight, 2.25 and 2.125 bits with the scale. Sources of the layouts: ggml's
//! `block_q2_0`, and files of the time before it, which have the same type number (the sizes in a file tell).
//!
//! ```text
//! 18 bytes,  64 weights:   d  f16  at 0      (34 bytes, 128 weights: the same with qs[32])
//!                          qs[16]  at 2      four codes a byte, low bits first
//! element e  =  (((qs[e / 4] >> 2 * (e % 4)) & 3) - 1) * d      so -d, 0, d or 2d
//! ```
//!
//! The order is sequential, where TQ2_0 and I2_S have planes.

use super::blocks64::{Block64, In64};
use crate::format::Format;
use crate::simd::Bytes;
use half::f16;

pub(super) static FORMAT: Format = Format::quantized::<In64<Q2_0<64>>>();
pub(super) static FORMAT_G128: Format = Format::quantized::<In64<Q2_0<128>>>();

/// Blocks of `GROUP` weights.
struct Q2_0<const GROUP: usize>;

impl<const GROUP: usize> Block64 for Q2_0<GROUP> {
    const NAME: &'static str = if GROUP == 64 { "Q2_0" } else { "Q2_0_G128" };
    const BLOCK: usize = GROUP;
    const BYTES: usize = 2 + GROUP / 4;

    #[inline(always)]
    fn code(block: &[u8], e: usize) -> i8 {
        (block[2 + e / 4] >> (e % 4 * 2) & 3) as i8 - 1
    }

    #[inline(always)]
    unsafe fn codes64<S: Bytes>(block: &[u8], group: usize) -> S::V {
        // SAFETY: 16 bytes of codes in the block for each group; `S` is enabled by the caller.
        unsafe { S::sub_u8(S::spread2(block.as_ptr().add(2 + group * 16)), S::splat_u8(1)) }
    }

    /// Four levels, of which the outermost is once or twice the step, with either sign: the best of these.
    fn quantize(src: &[f32], block: &mut [u8]) {
        let extreme = src.iter().fold(0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
        let level = |x: f32, d: f32| if d == 0.0 { 0.0 } else { (x / d).round().clamp(-1.0, 2.0) };
        let error = |d: f32| src.iter().map(|x| (level(*x, d) * d - x).powi(2)).sum::<f32>();
        let steps = [extreme.abs(), extreme / 2.0].map(f16::from_f32);
        let d = if error(steps[1].to_f32()) < error(steps[0].to_f32()) { steps[1] } else { steps[0] };
        block.fill(0);
        block[..2].copy_from_slice(&d.to_le_bytes());
        for (e, x) in src.iter().enumerate() {
            block[2 + e / 4] |= ((level(*x, d.to_f32()) + 1.0) as u8) << (e % 4 * 2);
        }
    }
}
