//! Q6_K: 6.5625 bits a weight. Source of the layout: ggml's `block_q6_K`.
//!
//! ```text
//! 210 bytes, 256 weights:   ql[128]  at 0     low four bits, 64 bytes for 128 weights
//!                           qh[64]   at 128   high two bits, 32 bytes for 128 weights
//!                           sc i8[16] at 192  a scale for every 16 weights
//!                           d f16    at 208
//! code of element g*128 + h*64 + k*32 + m  =  (ql[g*64 + k*32 + m] >> 4*h & 15) + 16 * (qh[g*32 + m] >> (4*h + 2*k) & 3)
//! element e  =  d * sc[e / 16] * (code - 32)                            g < 2, h < 2, k < 2, m < 32
//! ```

use super::superblocks::{Head, In256, SuperBlock};
use crate::format::Format;
use crate::simd::Bytes;
use half::f16;

pub(super) static FORMAT: Format = Format::scaled::<In256<Q6K>>();

struct Q6K;

impl SuperBlock for Q6K {
    const NAME: &'static str = "Q6_K";
    const BYTES: usize = 210;
    const OFFSET: u8 = 32;
    const TOP: u8 = 63;
    const SUBS: usize = 16;
    const D_AT: usize = 208;
    const DMIN_AT: Option<usize> = None;

    #[inline(always)]
    fn head(block: &[u8]) -> Head {
        let scales = std::array::from_fn(|j| i16::from(block[192 + j].cast_signed()));
        Head { scales, mins: [0; 16] }
    }
    #[inline(always)]
    fn codes(block: &[u8]) -> [u8; 256] {
        std::array::from_fn(|e| {
            let low = block[e / 128 * 64 + e % 64] >> (e / 64 % 2 * 4) & 15;
            low | (block[128 + e / 128 * 32 + e % 32] >> (e / 32 % 4 * 2) & 3) << 4
        })
    }
    #[inline(always)]
    unsafe fn vectors<S: Bytes>(block: *const u8) -> [S::V; 4] {
        // SAFETY: twice 64 bytes of low bits from 0 on, twice 32 bytes of high ones from 128 on.
        unsafe {
            let (low, high) = (S::splat_u8(15), S::splat_u8(0x30));
            let mut codes = [low; 4];
            for g in 0..2 {
                let l = S::load_v(block.add(g * 64));
                let h = S::load_twice_shr::<2>(block.add(128 + g * 32));
                codes[g * 2] = S::or(S::and(l, low), S::and(S::shl16::<4>(h), high));
                codes[g * 2 + 1] = S::or(S::and(S::shr16::<4>(l), low), S::and(h, high));
            }
            codes
        }
    }
    #[inline(always)]
    unsafe fn scales<S: Bytes>(block: *const u8) -> ([S::V; 4], S::V) {
        // SAFETY: 16 scales from 192 on.
        unsafe {
            let all = S::widen_i8(block.add(192).cast());
            let mut lanes = [0i16; 32];
            S::store_v(lanes.as_mut_ptr().cast(), all);
            let mut each = [all; 4];
            for v in 0..4 {
                each[v] = S::repeat_i16(lanes.as_ptr().add(v * 4));
            }
            (each, all)
        }
    }
    #[inline(always)]
    unsafe fn turn<S: Bytes>(rows: &[*const u8; 16], to: *mut u8, apart: usize) {
        // SAFETY: 128 bytes of low bits and 64 of high ones in each row, by the caller; 32 vectors for every 64 of the former.
        unsafe {
            let high = S::turn16::<128, 144, 160, 176>(*rows);
            let low = S::turn16::<0, 16, 32, 48>(*rows);
            store::<S, 0, 0>(&low, &high, to, apart);
            store::<S, 0, 1>(&low, &high, to, apart);
            let low = S::turn16::<64, 80, 96, 112>(*rows);
            store::<S, 1, 0>(&low, &high, to, apart);
            store::<S, 1, 1>(&low, &high, to, apart);
        }
    }
    #[inline(always)]
    unsafe fn each16<S: Bytes>(block: *const u8) -> (S::V, S::V) {
        // SAFETY: 16 scales from 192 on.
        unsafe {
            let all = S::widen_i8(block.add(192).cast());
            (all, all)
        }
    }
    fn quantize(src: &[f32], block: &mut [u8]) {
        let fits: [f32; 16] = std::array::from_fn(|j| fit16(&src[j * 16..][..16]));
        // The largest scale becomes -128, the end of the range that has one step more.
        let max = fits.iter().fold(0f32, |m, &s| if s.abs() > m.abs() { s } else { m });
        let d = f16::from_f32(max / -128.0);
        block.fill(0);
        block[208..].copy_from_slice(&d.to_le_bytes());
        let d = d.to_f32();
        for j in 0..16 {
            let sc = if d == 0.0 { 0.0 } else { (fits[j] / d).round().clamp(-128.0, 127.0) };
            block[192 + j] = (sc as i8).cast_unsigned();
            for e in j * 16..j * 16 + 16 {
                let code = if sc == 0.0 { 0.0 } else { (src[e] / (d * sc)).round().clamp(-32.0, 31.0) };
                let code = (code as i8 + 32).cast_unsigned();
                block[e / 128 * 64 + e % 64] |= (code & 15) << (e / 64 % 2 * 4);
                block[128 + e / 128 * 32 + e % 32] |= code >> 4 << (e / 32 % 4 * 2);
            }
        }
    }
}

/// Stores the codes of elements `128 g + 32 k ..` and `128 g + 64 + 32 k ..`: vector `8 k + i` of `low` and `8 g + i` of `high` have their
/// bytes 4 i.
///
/// # Safety
/// `S` is enabled; 64 vectors have room.
#[inline(always)]
unsafe fn store<S: Bytes, const G: usize, const K: usize>(
    low: &[S::V; 16],
    high: &[S::V; 16],
    to: *mut u8,
    apart: usize,
) {
    // SAFETY: by the caller.
    unsafe {
        let (nibble, bits) = (S::splat_u8(15), S::splat_u8(0x30));
        for i in 0..8 {
            let (l, h) = (low[8 * K + i], high[8 * G + i]);
            let (a, b) = if K == 0 { (S::shl16::<4>(h), h) } else { (S::shl16::<2>(h), S::shr16::<2>(h)) };
            let to = to.add((32 * G + 8 * K + i) * apart);
            S::store_v(to, S::or(S::and(l, nibble), S::and(a, bits)));
            S::store_v(to.add(16 * apart), S::or(S::and(S::shr16::<4>(l), nibble), S::and(b, bits)));
        }
    }
}

/// The scale, of either sign, for which `scale * code` with codes from -32 to 31 comes near `x`: for a range
/// of step widths round to codes, solve for the least squares, and keep the best.
fn fit16(x: &[f32]) -> f32 {
    let extreme = x.iter().fold(0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
    let (mut best, mut scale) = (0.0, 0.0);
    for k in -10..=10 {
        let inverse = -(32.0 + k as f32 * 0.1) / extreme;
        let (mut qq, mut qx) = (0.0, 0.0);
        for &x in x {
            let code = (x * inverse).round().clamp(-32.0, 31.0);
            (qq, qx) = (qq + code * code, qx + code * x);
        }
        // What a least-squares fit takes off the squared error; NaN, and so refused, where all is zero.
        if qx * qx / qq > best {
            (best, scale) = (qx * qx / qq, qx / qq);
        }
    }
    scale
}
