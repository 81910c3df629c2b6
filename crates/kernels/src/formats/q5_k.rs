//! Q5_K: 5.5 bits a weight. Source of the layout: ggml's `block_q5_K`.
//!
//! ```text
//! 176 bytes, 256 weights:   head    at 0    d, dmin, eight scales and minima (see k_head)
//!                           qh[32]  at 16   one bit a weight
//!                           qs[128] at 48   32 bytes for 64 weights
//! code of element v*64 + h*32 + m  =  (qs[v*32 + m] >> 4*h & 15) + 16 * (qh[m] >> (2*v + h) & 1)
//! element  =  d * scale * code - dmin * min                                  v < 4, h < 2, m < 32
//! ```

use super::k_head;
use super::superblocks::{Head, In256, SuperBlock};
use crate::format::Format;
use crate::simd::Bytes;

pub(super) static FORMAT: Format = Format::scaled::<In256<Q5K>>();

struct Q5K;

impl SuperBlock for Q5K {
    const NAME: &'static str = "Q5_K";
    const BYTES: usize = 176;
    const OFFSET: u8 = 0;
    const TOP: u8 = 31;
    const SUBS: usize = 8;
    const D_AT: usize = 0;
    const DMIN_AT: Option<usize> = Some(2);

    #[inline(always)]
    fn head(block: &[u8]) -> Head {
        k_head::read(block)
    }
    #[inline(always)]
    fn codes(block: &[u8]) -> [u8; 256] {
        std::array::from_fn(|e| {
            let low = block[48 + e / 64 * 32 + e % 32] >> (e / 32 % 2 * 4) & 15;
            low | (block[16 + e % 32] >> (e / 32) & 1) << 4
        })
    }
    #[inline(always)]
    unsafe fn vectors<S: Bytes>(block: *const u8) -> [S::V; 4] {
        // SAFETY: 32 bytes of high bits from 16 on, four times 32 bytes of low ones from 48 on.
        unsafe {
            let (low, high) = (S::splat_u8(15), S::splat_u8(16));
            // The bit of vector v is bit 2v of a byte, in both halves.
            let h = S::load_twice_shr::<1>(block.add(16));
            let h = [S::shl16::<4>(h), S::shl16::<2>(h), h, S::shr16::<2>(h)];
            let mut codes = [low; 4];
            for v in 0..4 {
                let q = S::load_twice_shr::<4>(block.add(48 + v * 32));
                codes[v] = S::or(S::and(q, low), S::and(h[v], high));
            }
            codes
        }
    }
    #[inline(always)]
    unsafe fn scales<S: Bytes>(block: *const u8) -> ([S::V; 4], S::V) {
        // SAFETY: the caller's promises.
        unsafe { k_head::scales::<S>(block) }
    }
    #[inline(always)]
    unsafe fn turn<S: Bytes>(rows: &[*const u8; 16], to: *mut u8, apart: usize) {
        // SAFETY: 32 bytes of high bits from 16 on and 128 of low ones from 48 on in each row, by the caller; 32 vectors for every 64
        // of the latter.
        unsafe {
            let high = S::turn16::<16, 32, 16, 32>(*rows);
            let low = S::turn16::<48, 64, 80, 96>(*rows);
            store::<S, 0>(&low, &high, to, apart);
            store::<S, 1>(&low, &high, to, apart);
            let low = S::turn16::<112, 128, 144, 160>(*rows);
            store::<S, 2>(&low, &high, to, apart);
            store::<S, 3>(&low, &high, to, apart);
        }
    }
    #[inline(always)]
    unsafe fn each16<S: Bytes>(block: *const u8) -> (S::V, S::V) {
        // SAFETY: the caller's promises.
        unsafe { k_head::each16::<S>(block) }
    }
    fn quantize(src: &[f32], block: &mut [u8]) {
        let codes = k_head::fit(src, 31, block);
        for (m, q) in block[16..48].iter_mut().enumerate() {
            *q = (0..8).fold(0, |bits, j| bits | codes[j * 32 + m] >> 4 << j);
        }
        for (i, q) in block[48..].iter_mut().enumerate() {
            let e = i / 32 * 64 + i % 32;
            *q = codes[e] & 15 | codes[e + 32] << 4;
        }
    }
}

/// Stores the codes of elements `64 * V ..`. Vector i of `low`, or 8 + i where V is odd, and vector i of `high` have their bytes 4 i.
///
/// # Safety
/// `S` is enabled; 64 vectors have room.
#[inline(always)]
unsafe fn store<S: Bytes, const V: usize>(low: &[S::V; 16], high: &[S::V; 16], to: *mut u8, apart: usize) {
    // SAFETY: by the caller.
    unsafe {
        let (nibble, fifth) = (S::splat_u8(15), S::splat_u8(16));
        for i in 0..8 {
            let (l, h) = (low[V % 2 * 8 + i], high[i]);
            let (a, b) = match V {
                0 => (S::shl16::<4>(h), S::shl16::<3>(h)),
                1 => (S::shl16::<2>(h), S::shl16::<1>(h)),
                2 => (h, S::shr16::<1>(h)),
                _ => (S::shr16::<2>(h), S::shr16::<3>(h)),
            };
            let to = to.add((16 * V + i) * apart);
            S::store_v(to, S::or(S::and(l, nibble), S::and(a, fifth)));
            S::store_v(to.add(8 * apart), S::or(S::and(S::shr16::<4>(l), nibble), S::and(b, fifth)));
        }
    }
}
