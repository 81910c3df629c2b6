//! I2_S: ternary, 2 bits a weight and one scale for the tensor. Source of the layout: bitnet.cpp's
//! `quantize_i2_s` and its converters. One layout is in published files; two others that exist in source,
//! for old ARM builds and for matrices in groups of four rows, are not this one.
//!
//! ```text
//! 32 bytes, 128 weights:   qs[32]    four codes a byte, in planes of 32, the first plane in the high bits
//! after the last row:      scale f32, then 28 bytes of padding that may hold anything
//! element l*32 + m  =  (((qs[m] >> (6 - 2*l)) & 3) - 1) * scale      l < 4, m < 32
//! ```
//!
//! Blocks follow each other across the whole tensor; a row is whole blocks because its length is a multiple
//! of 128. Blocks have no scale of their own, so every row is one run.

use super::Blocks;
use super::residues::join_two_bits;
use super::ternary::{
    Beside, Ternary, ternarize, ternary_float, two_bit_four, two_bit_planes, two_bit_sixteen,
};
use crate::format::Format;
use crate::simd::Bytes;
use half::f16;

pub(super) static FORMAT: Format = Format { tail_bytes: TAIL, ..Format::ternary::<I2S>() };

/// Bytes after the last row.
const TAIL: usize = 32;

struct I2S;

impl Blocks for I2S {
    const NAME: &'static str = "I2_S";
    const BLOCK: usize = 128;
    const BYTES: usize = 32;

    fn dequantize(blocks: &[u8], scale: f32, out: &mut [f32]) {
        for (block, out) in blocks.chunks_exact(32).zip(out.chunks_exact_mut(128)) {
            for (e, y) in out.iter_mut().enumerate() {
                *y = f32::from(code(block, e) as i8 - 1) * scale;
            }
        }
    }

    fn quantize(src: &[f32], dst: &mut [u8]) {
        dst.fill(0);
        let (blocks, tail) = dst.split_at_mut(dst.len() - TAIL);
        let scale = ternarize(src, |e, c| blocks[e / 128 * 32 + e % 32] |= c << (6 - e % 128 / 32 * 2));
        tail[..4].copy_from_slice(&scale.to_le_bytes());
    }
}

/// The 2-bit code of element `e`.
fn code(block: &[u8], e: usize) -> u8 {
    block[e % 32] >> (6 - e / 32 * 2) & 3
}

impl Ternary for I2S {
    #[inline(always)]
    fn scale_bits(_: &[u8]) -> u16 {
        f16::ONE.to_bits()
    }
    fn codes(block: &[u8], out: &mut [u8]) {
        for (e, c) in out.iter_mut().enumerate() {
            *c = code(block, e);
        }
    }

    #[inline(always)]
    unsafe fn planes<S: Bytes>(step: &[u8]) -> [S::V; 4] {
        // SAFETY: a step is two blocks of 32 bytes, or the last one of a row.
        unsafe { two_bit_planes::<Self, S, true>(step) }
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
        unsafe { two_bit_sixteen::<Self, S, B, true>(rows, at, half, to, beside) }
    }
    #[inline(always)]
    unsafe fn joint<S: Bytes>(rows: &[[*const u8; 16]], at: usize, half: bool, to: *mut u8) -> bool {
        // SAFETY: as above.
        unsafe { join_two_bits::<Self, S, true>(rows, at, half, to) }
    }
    #[inline(always)]
    unsafe fn four<S: Bytes, const ARRANGED: bool>(rows: [&[u8]; 4], q: *const i8) -> ([S::V; 4], [u16; 4]) {
        // SAFETY: as above; the rest by the caller.
        unsafe { two_bit_four::<Self, S, true>(rows, q) }
    }
}

ternary_float!(I2S);
