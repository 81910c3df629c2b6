//! Weighted sums of rows of values.
//!
//! ```text
//! for each few heads, 64 or 16 dims:   load acc
//!     for each row in order:           acc[head] = fma(p[head][row], row, acc[head])      in registers
//! store acc
//! ```
//!
//! Every element takes its rows one by one in order, so how rows are cut into calls changes nothing.

use super::{Element, wide};
use crate::simd::Lanes;

/// Adds the rows (`dim` values in `row_bytes` bytes each) to each head's `acc` (`dim` values each); head h's weight of row i is
/// `p[h * stride + i]`.
///
/// # Safety
/// `L` is enabled; `rows` are whole rows.
#[inline(always)]
pub(super) unsafe fn add<L: Lanes, E: Element>(
    rows: &[u8],
    row_bytes: usize,
    dim: usize,
    p: &[f32],
    stride: usize,
    acc: &mut [f32],
) {
    let (n, heads) = (rows.len() / row_bytes, acc.len() / dim);
    assert!(heads == 0 || p.len() >= (heads - 1) * stride + n, "weights");
    let rows = Rows { first: rows.as_ptr(), row_bytes, n, dim, stride };
    let mut head = 0;
    while head < heads {
        // SAFETY: `L` is enabled by the caller; these heads are inside `acc`, their weights inside `p`.
        head += unsafe {
            let (p, acc) = (p.as_ptr().add(head * stride), acc.as_mut_ptr().add(head * dim));
            match (wide::<L>(), heads - head) {
                (_, 1) => rows.add::<L, E, 1, 4>(p, acc),
                (false, _) => rows.add::<L, E, 2, 2>(p, acc),
                (_, 2) => rows.add::<L, E, 2, 4>(p, acc),
                (_, 3) => rows.add::<L, E, 3, 4>(p, acc),
                _ => rows.add::<L, E, 4, 4>(p, acc),
            }
        };
    }
}

struct Rows {
    first: *const u8,
    row_bytes: usize,
    n: usize,
    dim: usize,
    stride: usize,
}

impl Rows {
    /// Adds the rows to N heads, B vectors of dimensions at a time. Returns N.
    #[inline(always)]
    unsafe fn add<L: Lanes, E: Element, const N: usize, const B: usize>(
        &self,
        p: *const f32,
        acc: *mut f32,
    ) -> usize {
        let mut d = 0;
        // SAFETY: `L` is enabled by the caller; every block of dimensions is inside the rows and heads.
        unsafe {
            while d + 16 * B <= self.dim {
                self.block::<L, E, N, B>(p, acc, d);
                d += 16 * B;
            }
            while d + 16 <= self.dim {
                self.block::<L, E, N, 1>(p, acc, d);
                d += 16;
            }
            let left = self.dim - d;
            if left > 0 {
                for h in 0..N {
                    let out = acc.add(h * self.dim + d);
                    let mut a = L::load_n(out, left);
                    for i in 0..self.n {
                        let v = E::row_n::<L>(self.first.add(i * self.row_bytes), d, left);
                        a = L::fma(L::splat(*p.add(h * self.stride + i)), v, a);
                    }
                    L::store_n(out, left, a);
                }
            }
        }
        N
    }

    /// The 16 * B dimensions from `d`, of N heads, kept in registers over the rows.
    #[inline(always)]
    unsafe fn block<L: Lanes, E: Element, const N: usize, const B: usize>(
        &self,
        p: *const f32,
        acc: *mut f32,
        d: usize,
    ) {
        // SAFETY: `L` is enabled by the caller; rows and heads have the dimensions, heads have `n` weights.
        unsafe {
            let mut a = [[L::zero(); B]; N];
            for h in 0..N {
                for b in 0..B {
                    a[h][b] = L::load(acc.add(h * self.dim + d + b * 16));
                }
            }
            for i in 0..self.n {
                let row = self.first.add(i * self.row_bytes);
                let mut w = [L::zero(); N];
                for h in 0..N {
                    w[h] = L::splat(*p.add(h * self.stride + i));
                }
                for b in 0..B {
                    let v = E::row::<L>(row, d + b * 16);
                    for h in 0..N {
                        a[h][b] = L::fma(w[h], v, a[h][b]);
                    }
                }
            }
            for h in 0..N {
                for b in 0..B {
                    L::store(acc.add(h * self.dim + d + b * 16), a[h][b]);
                }
            }
        }
    }
}
