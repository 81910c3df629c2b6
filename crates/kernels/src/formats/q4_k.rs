//! Q4_K: 4.5 bits a weight. Source of the layout: ggml's `block_q4_K`.
//!
//! ```text
//! 144 bytes, 256 weights:   head    at 0    d, dmin, eight scales and minima (see k_head)
//!                           qs[128] at 16   32 bytes for 64 weights
//! code of element v*64 + h*32 + m  =  qs[v*32 + m] >> 4*h & 15               v < 4, h < 2, m < 32
//! element  =  d * scale * code - dmin * min
//! ```

use super::k_head;
use super::scaled_tile::store_nibbles;
use super::superblocks::{Head, In256, SuperBlock};
use crate::format::Format;
use crate::simd::Bytes;

pub(super) static FORMAT: Format = Format::scaled::<In256<Q4K>>();

struct Q4K;

impl SuperBlock for Q4K {
    const NAME: &'static str = "Q4_K";
    const BYTES: usize = 144;
    const OFFSET: u8 = 0;
    const TOP: u8 = 15;
    const SUBS: usize = 8;
    const D_AT: usize = 0;
    const DMIN_AT: Option<usize> = Some(2);

    #[inline(always)]
    fn head(block: &[u8]) -> Head {
        k_head::read(block)
    }
    #[inline(always)]
    fn codes(block: &[u8]) -> [u8; 256] {
        std::array::from_fn(|e| block[16 + e / 64 * 32 + e % 32] >> (e / 32 % 2 * 4) & 15)
    }
    #[inline(always)]
    unsafe fn vectors<S: Bytes>(block: *const u8) -> [S::V; 4] {
        // SAFETY: four times 32 bytes of codes from 16 on.
        unsafe {
            let low = S::splat_u8(15);
            let mut codes = [low; 4];
            for v in 0..4 {
                codes[v] = S::and(S::load_twice_shr::<4>(block.add(16 + v * 32)), low);
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
        // SAFETY: 128 bytes of codes from 16 on in each row, by the caller; 32 vectors for every 64 of them.
        unsafe {
            store_nibbles::<S, 8>(&S::turn16::<16, 32, 48, 64>(*rows), to, apart);
            store_nibbles::<S, 8>(&S::turn16::<80, 96, 112, 128>(*rows), to.add(32 * apart), apart);
        }
    }
    #[inline(always)]
    unsafe fn each16<S: Bytes>(block: *const u8) -> (S::V, S::V) {
        // SAFETY: the caller's promises.
        unsafe { k_head::each16::<S>(block) }
    }
    fn quantize(src: &[f32], block: &mut [u8]) {
        let codes = k_head::fit(src, 15, block);
        for (i, q) in block[16..].iter_mut().enumerate() {
            let e = i / 32 * 64 + i % 32;
            *q = codes[e] | codes[e + 32] << 4;
        }
    }
}
