//! Scores: queries against blocks of 16 keys that lie side by side.
//!
//! A vector has one dimension of all 16 keys, so a dot product stays in one lane, and what would be the 16 lanes of a
//! single dot product are 16 vectors: their fold is additions and no shuffles. They do not fit the registers for
//! several queries at once, so R of them are taken at a time, in an order that lets neighbours fold:
//!
//! ```text
//! for each of 16 / R parts:
//!     for d = 0, 16, 32, …:   for each of R lanes l:   k = dimension d + l of the keys
//!                                 for each query:      acc[l][query] = fma(q[query][d + l], k, acc[l][query])
//!     fold
//! fold; * scale
//! ```
//!
//! A value of a query takes a load for each fma. Two blocks at once have it loaded once for both, if there are registers.

use super::{Element, wide};
use crate::ops::kv::KEYS;
use crate::simd::Lanes;

/// The scores of each query of `q` (`dim` values each) with the keys of `blocks`, `block_bytes` each, to `out[..]`, `out[stride..]`, …
///
/// # Safety
/// `L` is enabled; `blocks` are whole ones, each of 16 keys of `dim` values.
#[inline(always)]
pub(super) unsafe fn score<L: Lanes, E: Element>(
    blocks: &[u8],
    block_bytes: usize,
    dim: usize,
    q: &[f32],
    scale: f32,
    out: &mut [f32],
    stride: usize,
) {
    let (n, heads) = (blocks.len() / block_bytes, q.len() / dim);
    let mut block = 0;
    while block < n {
        let keys = Keys { blocks: &blocks[block * block_bytes..], block_bytes, dim, scale, stride };
        let two = wide::<L>() && n - block >= 2;
        let mut head = 0;
        while head < heads {
            let (q, out) = (&q[head * dim..], &mut out[head * stride + block * KEYS..]);
            // SAFETY: `L` is enabled by the caller; `q` has at least as many queries, `keys` as many blocks.
            head += unsafe {
                match (wide::<L>(), two, heads - head) {
                    (_, false, 1) => keys.queries::<L, E, 1, 4, 1>(q, out),
                    (false, _, _) => keys.queries::<L, E, 2, 2, 1>(q, out),
                    (_, false, 2) => keys.queries::<L, E, 2, 4, 1>(q, out),
                    (_, false, 3) => keys.queries::<L, E, 3, 4, 1>(q, out),
                    (_, false, _) => keys.queries::<L, E, 4, 4, 1>(q, out),
                    (_, _, 1) => keys.queries::<L, E, 1, 4, 2>(q, out),
                    (_, _, 2) => keys.queries::<L, E, 2, 4, 2>(q, out),
                    (_, _, 3) => keys.queries::<L, E, 3, 2, 2>(q, out),
                    (_, _, _) => keys.queries::<L, E, 4, 2, 2>(q, out),
                }
            };
        }
        block += 1 + usize::from(two);
    }
}

struct Keys<'a> {
    blocks: &'a [u8],
    block_bytes: usize,
    dim: usize,
    scale: f32,
    stride: usize,
}

impl Keys<'_> {
    /// The first N queries and B blocks, R lanes at a time. Returns N.
    #[inline(always)]
    unsafe fn queries<L: Lanes, E: Element, const N: usize, const R: usize, const B: usize>(
        &self,
        q: &[f32],
        out: &mut [f32],
    ) -> usize {
        // The first lane of each part, and how far the others are. Halves of the lanes fold first, then quarters, ….
        let firsts: &[usize] = if R == 4 { &[0, 2, 1, 3] } else { &[0, 4, 2, 6, 1, 5, 3, 7] };
        const APART: [usize; 4] = [0, 8, 4, 12];
        let (dim, whole) = (self.dim, self.dim / 16 * 16);
        assert!(q.len() >= N * dim && out.len() >= (N - 1) * self.stride + B * KEYS, "queries and scores");
        assert!(self.blocks.len() >= B * self.block_bytes, "blocks");
        let (q, mut blocks) = (q.as_ptr(), [self.blocks.as_ptr(); B]);
        for b in 1..B {
            blocks[b] = blocks[b].wrapping_add(b * self.block_bytes);
        }
        // SAFETY: `L` is enabled by the caller; keys and queries have `dim` values; the scores are inside `out`.
        unsafe {
            // Parts that wait for a neighbour, for two of them, for four.
            let mut waiting = [[[L::zero(); B]; N]; 3];
            let mut sums = [[L::zero(); B]; N];
            for (part, &first) in firsts.iter().enumerate() {
                let mut acc = [[[L::zero(); B]; N]; R];
                for d in (first..whole + first).step_by(16) {
                    for r in 0..R {
                        add::<L, E, N, B>(&blocks, q, dim, d + APART[r], &mut acc[r]);
                    }
                }
                for r in 0..R {
                    let d = whole + first + APART[r];
                    if d < dim {
                        add::<L, E, N, B>(&blocks, q, dim, d, &mut acc[r]);
                    }
                }
                for n in 0..N {
                    for b in 0..B {
                        sums[n][b] = L::add(acc[0][n][b], acc[1][n][b]);
                        if R == 4 {
                            sums[n][b] = L::add(sums[n][b], L::add(acc[R - 2][n][b], acc[R - 1][n][b]));
                        }
                    }
                }
                // As a binary counter carries.
                let folds = part.trailing_ones() as usize;
                for before in &waiting[..folds] {
                    for n in 0..N {
                        for b in 0..B {
                            sums[n][b] = L::add(before[n][b], sums[n][b]);
                        }
                    }
                }
                if folds < waiting.len() {
                    waiting[folds] = sums;
                }
            }
            for n in 0..N {
                for b in 0..B {
                    let out = out.as_mut_ptr().add(n * self.stride + b * KEYS);
                    L::store(out, L::mul(sums[n][b], L::splat(self.scale)));
                }
            }
        }
        N
    }
}

/// Adds dimension `d` of N queries times that of B blocks of keys.
///
/// # Safety
/// `L` is enabled; queries, `dim` values each, and keys have the dimension.
#[inline(always)]
unsafe fn add<L: Lanes, E: Element, const N: usize, const B: usize>(
    blocks: &[*const u8; B],
    q: *const f32,
    dim: usize,
    d: usize,
    acc: &mut [[L::F; B]; N],
) {
    // SAFETY: by the caller.
    unsafe {
        let mut k = [L::zero(); B];
        for b in 0..B {
            k[b] = E::keys::<L>(blocks[b], d);
        }
        for n in 0..N {
            let q = L::splat(*q.add(n * dim + d));
            for b in 0..B {
                acc[n][b] = L::fma(q, k[b], acc[n][b]);
            }
        }
    }
}
