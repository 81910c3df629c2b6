//! Scores: queries against a block of 16 keys that lie side by side.
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

use super::{Element, wide};
use crate::ops::kv::KEYS;
use crate::simd::Lanes;

/// The scores of each query of `q` (`dim` values each) with the keys of `block`, to `out[..16]`, `out[stride..][..16]`, …
///
/// # Safety
/// `L` is enabled; `block` has 16 keys of `dim` values.
#[inline(always)]
pub(super) unsafe fn score<L: Lanes, E: Element>(
    block: &[u8],
    dim: usize,
    q: &[f32],
    scale: f32,
    out: &mut [f32],
    stride: usize,
) {
    let heads = q.len() / dim;
    let mut head = 0;
    while head < heads {
        let (q, out) = (&q[head * dim..], &mut out[head * stride..]);
        // SAFETY: `L` is enabled by the caller; `q` has at least as many queries.
        head += unsafe {
            match (wide::<L>(), heads - head) {
                (_, 1) => queries::<L, E, 1, 4>(block, dim, q, scale, out, stride),
                (false, _) => queries::<L, E, 2, 2>(block, dim, q, scale, out, stride),
                (_, 2) => queries::<L, E, 2, 4>(block, dim, q, scale, out, stride),
                (_, 3) => queries::<L, E, 3, 4>(block, dim, q, scale, out, stride),
                _ => queries::<L, E, 4, 4>(block, dim, q, scale, out, stride),
            }
        };
    }
}

/// The same for the first N queries, R lanes at a time. Returns N.
#[inline(always)]
unsafe fn queries<L: Lanes, E: Element, const N: usize, const R: usize>(
    block: &[u8],
    dim: usize,
    q: &[f32],
    scale: f32,
    out: &mut [f32],
    stride: usize,
) -> usize {
    // The first lane of each part, and how far the others are. Halves of the lanes fold first, then quarters, ….
    let firsts: &[usize] = if R == 4 { &[0, 2, 1, 3] } else { &[0, 4, 2, 6, 1, 5, 3, 7] };
    const APART: [usize; 4] = [0, 8, 4, 12];
    assert!(q.len() >= N * dim && out.len() >= (N - 1) * stride + KEYS, "queries and scores");
    let (block, q, whole) = (block.as_ptr(), q.as_ptr(), dim / 16 * 16);
    // SAFETY: `L` is enabled by the caller; keys and queries have `dim` values; the scores are inside `out`.
    unsafe {
        let mut parts = [[L::zero(); N]; 8];
        for (part, &first) in parts.iter_mut().zip(firsts) {
            let mut acc = [[L::zero(); N]; R];
            for d in (first..whole + first).step_by(16) {
                for r in 0..R {
                    let k = E::keys::<L>(block, d + APART[r]);
                    for n in 0..N {
                        acc[r][n] = L::fma(L::splat(*q.add(n * dim + d + APART[r])), k, acc[r][n]);
                    }
                }
            }
            for r in 0..R {
                let d = whole + first + APART[r];
                if d < dim {
                    let k = E::keys::<L>(block, d);
                    for n in 0..N {
                        acc[r][n] = L::fma(L::splat(*q.add(n * dim + d)), k, acc[r][n]);
                    }
                }
            }
            for n in 0..N {
                part[n] = L::add(acc[0][n], acc[1][n]);
                if R == 4 {
                    part[n] = L::add(part[n], L::add(acc[R - 2][n], acc[R - 1][n]));
                }
            }
        }
        for n in 0..N {
            let mut left = firsts.len();
            while left > 1 {
                left /= 2;
                for i in 0..left {
                    parts[i][n] = L::add(parts[2 * i][n], parts[2 * i + 1][n]);
                }
            }
            L::store(out.as_mut_ptr().add(n * stride), L::mul(parts[0][n], L::splat(scale)));
        }
    }
    N
}
