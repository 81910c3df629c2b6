//! TQ2_0: ternary, 2.0625 bits a weight. Source of the layout: ggml's `block_tq2_0`.
//!
//! ```text
//! 66 bytes, 256 weights:   qs[64]  at 0    four codes a byte, in planes of 32
//!                          d  f16  at 64
//! element g*128 + l*32 + m  =  (((qs[g*32 + m] >> 2*l) & 3) - 1) * d      g < 2, l < 4, m < 32
//! ```

use super::residues::join_two_bits;
use super::ternary::{
    Beside, Ternary, ternarize, ternary_float, two_bit_four, two_bit_planes, two_bit_sixteen,
};
use super::{Blocks, f16_at};
use crate::format::Format;
use crate::simd::Bytes;
use half::f16;

pub(super) static FORMAT: Format = Format::ternary::<Tq2_0>();

struct Tq2_0;

impl Blocks for Tq2_0 {
    const NAME: &'static str = "TQ2_0";
    const BLOCK: usize = 256;
    const BYTES: usize = 66;

    fn dequantize(blocks: &[u8], _: f32, out: &mut [f32]) {
        for (block, out) in blocks.chunks_exact(66).zip(out.chunks_exact_mut(256)) {
            let d = f16_at(block, 64);
            for (e, y) in out.iter_mut().enumerate() {
                *y = f32::from(code(block, e) as i8 - 1) * d;
            }
        }
    }

    fn quantize(src: &[f32], dst: &mut [u8]) {
        for (src, block) in src.chunks_exact(256).zip(dst.chunks_exact_mut(66)) {
            block.fill(0);
            let d = ternarize(src, |e, c| block[e / 128 * 32 + e % 32] |= c << (e % 128 / 32 * 2));
            block[64..].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        }
    }
}

/// The 2-bit code of element `e`.
fn code(block: &[u8], e: usize) -> u8 {
    block[e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3
}

impl Ternary for Tq2_0 {
    #[inline(always)]
    fn scale_bits(block: &[u8]) -> u16 {
        u16::from_le_bytes([block[64], block[65]])
    }
    fn codes(block: &[u8], out: &mut [u8]) {
        for (e, c) in out.iter_mut().enumerate() {
            *c = code(block, e);
        }
    }

    #[inline(always)]
    unsafe fn planes<S: Bytes>(step: &[u8]) -> [S::V; 4] {
        // SAFETY: a step is a block, which begins with its 64 bytes of codes.
        unsafe { two_bit_planes::<Self, S, false>(step) }
    }
    #[inline(always)]
    unsafe fn sixteen<S: Bytes, B: Beside>(
        rows: &[*const u8; 16],
        at: usize,
        half: bool,
        to: *mut u8,
        beside: &mut B,
    ) {
        // SAFETY: as above, of each row; the rest by the caller.
        unsafe { two_bit_sixteen::<Self, S, B, false>(rows, at, half, to, beside) }
    }
    #[inline(always)]
    unsafe fn joint<S: Bytes>(rows: &[[*const u8; 16]], at: usize, half: bool, to: *mut u8) -> bool {
        // SAFETY: as above.
        unsafe { join_two_bits::<Self, S, false>(rows, at, half, to) }
    }
    #[inline(always)]
    unsafe fn four<S: Bytes, const ARRANGED: bool>(rows: [&[u8]; 4], q: *const i8) -> ([S::V; 4], [u16; 4]) {
        // SAFETY: as above; the rest by the caller.
        unsafe { two_bit_four::<Self, S, false>(rows, q) }
    }
}

ternary_float!(Tq2_0);
