//! The two products of attention, reading key-value rows where they lie: q against rows of K, and the weighted
//! sum of rows of V.
//!
//! Not the softmax between them, nor which rows a query may see.
//!
//! Several query heads may share one kv head (grouped-query attention). The `group` forms load and decode each
//! row once for up to [`TILE`] of them; a (head, row) pair gets the bits of the single form.
//!
//! ```text
//! scores:   for each row, tile of heads:   acc[head] = fma(q[head], row, acc[head]) in 16 lanes; fold; * scale
//! sum:      for each 16 KiB of rows, tile of heads, 64 or 16 dims:   load acc
//!               for each row in order:     acc = fma(p[head][row], row, acc)      in registers
//!           store acc
//! ```
//!
//! The sum walks over rows that fit the first-level cache, once for every few dimensions. Every element of acc
//! still takes its rows one by one in order, so how they are cut, here or into calls, changes nothing.

use super::kv::{KvType, Q8, Q8_BYTES};
use super::{Body, Ops};
use crate::simd::Lanes;

/// Query heads that share a load of a row of K.
const TILE: usize = 4;
/// Bytes of rows of V walked over repeatedly.
const WALK: usize = 16 * 1024;

/// Consecutive rows of one kv head.
#[derive(Clone, Copy, Debug)]
pub struct KvRows<'a> {
    ty: KvType,
    head_dim: usize,
    row_bytes: usize,
    bytes: &'a [u8],
}

impl<'a> KvRows<'a> {
    /// `bytes` as rows of `head_dim` values, as [`Ops::kv_store`] writes them, one behind another.
    ///
    /// # Panics
    /// When `ty` has no row of this length or `bytes` is not a whole number of rows.
    pub fn new(ty: KvType, head_dim: usize, bytes: &'a [u8]) -> Self {
        let row_bytes = ty.row_bytes(head_dim);
        let row_bytes = row_bytes.unwrap_or_else(|| panic!("no {} row of {head_dim} values", ty.name()));
        assert!(bytes.len().is_multiple_of(row_bytes), "{} bytes in rows of {row_bytes}", bytes.len());
        Self { ty, head_dim, row_bytes, bytes }
    }
    /// Rows in the view.
    pub fn n(&self) -> usize {
        self.bytes.len() / self.row_bytes
    }
}

impl Ops {
    /// `scores[i] = dot(q, k_i) * scale` for the `scores.len()` rows in `k`.
    ///
    /// # Panics
    /// When `ty` has no row of `q.len()` values or `k` is not that many rows.
    pub fn kv_scores(&self, ty: KvType, q: &[f32], k: &[u8], scale: f32, scores: &mut [f32]) {
        let k = KvRows::new(ty, q.len(), k);
        assert_eq!(k.n(), scores.len(), "rows of k");
        self.run(Scores { q, k, scale, stride: scores.len(), out: scores });
    }

    /// The same for several query heads: `q` is `n_heads * head_dim`, and head h's score of row i goes to
    /// `scores[h * stride + i]`. What is between the heads' scores is left alone.
    ///
    /// # Panics
    /// When `q` is not a whole number of heads, `stride` is less than the rows, or `scores` is too short.
    pub fn kv_scores_group(&self, q: &[f32], k: KvRows, scale: f32, scores: &mut [f32], stride: usize) {
        assert_group(q.len(), k, scores.len(), stride);
        self.run(Scores { q, k, scale, out: scores, stride });
    }

    /// `acc[d] += sum over i of p[i] * v_i[d]`, for the `p.len()` rows in `v`, one row after another.
    ///
    /// # Panics
    /// When `ty` has no row of `acc.len()` values or `v` is not that many rows.
    pub fn kv_weighted_sum(&self, ty: KvType, p: &[f32], v: &[u8], acc: &mut [f32]) {
        let v = KvRows::new(ty, acc.len(), v);
        assert_eq!(v.n(), p.len(), "rows of v");
        self.run(WeightedSum { p, stride: p.len(), v, acc });
    }

    /// The same for several query heads: `acc` is `n_heads * head_dim`, and head h's weight of row i is
    /// `p[h * stride + i]`.
    ///
    /// # Panics
    /// When `acc` is not a whole number of heads, `stride` is less than the rows, or `p` is too short.
    pub fn kv_weighted_sum_group(&self, p: &[f32], stride: usize, v: KvRows, acc: &mut [f32]) {
        assert_group(acc.len(), v, p.len(), stride);
        self.run(WeightedSum { p, stride, v, acc });
    }
}

/// `values` are whole heads, whose rows' numbers, `stride` apart, fit `len`.
fn assert_group(values: usize, rows: KvRows, len: usize, stride: usize) {
    assert!(values.is_multiple_of(rows.head_dim), "a whole number of heads");
    if let Some(last) = (values / rows.head_dim).checked_sub(1) {
        let need = last.checked_mul(stride).and_then(|at| at.checked_add(rows.n()));
        let enough = stride >= rows.n() && need.is_some_and(|need| need <= len);
        assert!(enough, "{} heads of {} rows, stride {stride}, in {len}", last + 1, rows.n());
    }
}

/// A row type as the products read it, 16 values at a time.
trait Row {
    /// Values `at..at + 16`; `at` is a multiple of 16.
    ///
    /// # Safety
    /// `L` is enabled and the row has these values.
    unsafe fn load<L: Lanes>(row: *const u8, at: usize) -> L::F;
    /// Values `at..at + n` with n < 16, zeros after.
    ///
    /// # Safety
    /// As for `load`.
    unsafe fn load_n<L: Lanes>(row: *const u8, at: usize, n: usize) -> L::F;
}

// The pointers are cast to types of larger alignment; `Lanes` loads from any address.
struct F32;
#[allow(clippy::cast_ptr_alignment)]
impl Row for F32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(row: *const u8, at: usize) -> L::F {
        // SAFETY: by the caller.
        unsafe { L::load(row.add(at * 4).cast()) }
    }
    #[inline(always)]
    unsafe fn load_n<L: Lanes>(row: *const u8, at: usize, n: usize) -> L::F {
        // SAFETY: by the caller.
        unsafe { L::load_n(row.add(at * 4).cast(), n) }
    }
}

struct F16;
#[allow(clippy::cast_ptr_alignment)]
impl Row for F16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(row: *const u8, at: usize) -> L::F {
        // SAFETY: by the caller.
        unsafe { L::load_f16(row.add(at * 2).cast()) }
    }
    #[inline(always)]
    unsafe fn load_n<L: Lanes>(row: *const u8, at: usize, n: usize) -> L::F {
        // SAFETY: by the caller.
        unsafe { L::load_f16_n(row.add(at * 2).cast(), n) }
    }
}

struct Q8_0;
#[allow(clippy::cast_ptr_alignment)]
impl Row for Q8_0 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(row: *const u8, at: usize) -> L::F {
        // SAFETY: by the caller; `at` is in the first or second half of a block of 32.
        unsafe {
            let block = row.add(at / Q8 * Q8_BYTES);
            L::mul(L::load_i8(block.add(2 + at % Q8).cast()), L::splat_f16(block.cast()))
        }
    }
    #[inline(always)]
    unsafe fn load_n<L: Lanes>(_: *const u8, _: usize, _: usize) -> L::F {
        unreachable!("rows of Q8_0 are multiples of 32")
    }
}

struct Scores<'a> {
    q: &'a [f32],
    k: KvRows<'a>,
    scale: f32,
    out: &'a mut [f32],
    stride: usize,
}

impl Body for Scores<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: `L` is enabled by the caller.
        unsafe {
            match self.k.ty {
                KvType::F32 => self.of::<L, F32>(),
                KvType::F16 => self.of::<L, F16>(),
                KvType::Q8_0 => self.of::<L, Q8_0>(),
            }
        }
    }
}

impl Scores<'_> {
    #[inline(always)]
    unsafe fn of<L: Lanes, R: Row>(self) {
        let Self { q, k, scale, out, stride } = self;
        let (dim, bytes) = (k.head_dim, k.row_bytes);
        let fours = k.n() / 4 * 4;
        for (i, rows) in k.bytes.chunks_exact(4 * bytes).enumerate() {
            for (t, q) in q.chunks(2 * dim).enumerate() {
                let at = 2 * t * stride + 4 * i;
                // SAFETY: `L` is enabled by the caller; the rows and each head have `dim` values.
                unsafe {
                    match q.len() / dim {
                        1 => scores_of_four::<L, R, 1>(q, dim, rows, scale, out, at, stride),
                        _ => scores_of_four::<L, R, 2>(q, dim, rows, scale, out, at, stride),
                    }
                }
            }
        }
        for (i, row) in k.bytes.chunks_exact(bytes).enumerate().skip(fours) {
            for (t, q) in q.chunks(TILE * dim).enumerate() {
                let at = t * TILE * stride + i;
                // SAFETY: `L` is enabled by the caller; the row and each head have `dim` values.
                unsafe {
                    match q.len() / dim {
                        1 => scores_of::<L, R, 1>(q, dim, row, scale, out, at, stride),
                        2 => scores_of::<L, R, 2>(q, dim, row, scale, out, at, stride),
                        3 => scores_of::<L, R, 3>(q, dim, row, scale, out, at, stride),
                        _ => scores_of::<L, R, TILE>(q, dim, row, scale, out, at, stride),
                    }
                }
            }
        }
    }
}

/// The scores of four rows for N heads, to `out[at..at + 4]`, `out[at + stride..]`, ... Four are folded at once.
#[inline(always)]
unsafe fn scores_of_four<L: Lanes, R: Row, const N: usize>(
    q: &[f32],
    dim: usize,
    rows: &[u8],
    scale: f32,
    out: &mut [f32],
    at: usize,
    stride: usize,
) {
    let (bytes, rows, q) = (rows.len() / 4, rows.as_ptr(), q.as_ptr());
    let whole = dim / 16 * 16;
    // SAFETY: `L` is enabled by the caller; the rows and each of the N heads have `dim` values.
    unsafe {
        let mut acc = [[L::zero(); 4]; N];
        for d in (0..whole).step_by(16) {
            for r in 0..4 {
                let k = R::load::<L>(rows.add(r * bytes), d);
                for h in 0..N {
                    acc[h][r] = L::fma(L::load(q.add(h * dim + d)), k, acc[h][r]);
                }
            }
        }
        if whole < dim {
            for r in 0..4 {
                let k = R::load_n::<L>(rows.add(r * bytes), whole, dim - whole);
                for h in 0..N {
                    acc[h][r] = L::fma(L::load_n(q.add(h * dim + whole), dim - whole), k, acc[h][r]);
                }
            }
        }
        for h in 0..N {
            let sums = L::reduce_add4(acc[h]);
            let out = &mut out[at + h * stride..][..4];
            for r in 0..4 {
                out[r] = sums[r] * scale;
            }
        }
    }
}

/// The scores of one row for N heads, to `out[at]`, `out[at + stride]`, ...
#[inline(always)]
unsafe fn scores_of<L: Lanes, R: Row, const N: usize>(
    q: &[f32],
    dim: usize,
    row: &[u8],
    scale: f32,
    out: &mut [f32],
    at: usize,
    stride: usize,
) {
    let (row, q) = (row.as_ptr(), q.as_ptr());
    let whole = dim / 16 * 16;
    // SAFETY: `L` is enabled by the caller; the row and each of the N heads have `dim` values.
    unsafe {
        let mut acc = [L::zero(); N];
        for d in (0..whole).step_by(16) {
            let k = R::load::<L>(row, d);
            for h in 0..N {
                acc[h] = L::fma(L::load(q.add(h * dim + d)), k, acc[h]);
            }
        }
        if whole < dim {
            let k = R::load_n::<L>(row, whole, dim - whole);
            for h in 0..N {
                acc[h] = L::fma(L::load_n(q.add(h * dim + whole), dim - whole), k, acc[h]);
            }
        }
        for h in 0..N {
            out[at + h * stride] = L::reduce_add(acc[h]) * scale;
        }
    }
}

struct WeightedSum<'a> {
    p: &'a [f32],
    stride: usize,
    v: KvRows<'a>,
    acc: &'a mut [f32],
}

impl Body for WeightedSum<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: `L` is enabled by the caller.
        unsafe {
            match self.v.ty {
                KvType::F32 => self.of::<L, F32>(),
                KvType::F16 => self.of::<L, F16>(),
                KvType::Q8_0 => self.of::<L, Q8_0>(),
            }
        }
    }
}

impl WeightedSum<'_> {
    #[inline(always)]
    unsafe fn of<L: Lanes, R: Row>(self) {
        let Self { p, stride, v, acc } = self;
        let (dim, row_bytes) = (v.head_dim, v.row_bytes);
        let walk = (WALK / row_bytes).max(1);
        for (w, rows) in v.bytes.chunks(walk * row_bytes).enumerate() {
            for (t, acc) in acc.chunks_mut(2 * dim).enumerate() {
                let p = &p[2 * t * stride + w * walk..];
                let n = rows.len() / row_bytes;
                // SAFETY: `L` is enabled by the caller; the rows and each head have `dim` values, and each
                // head has `n` weights, by the assert in `Ops`.
                unsafe {
                    let rows = Rows { first: rows.as_ptr(), row_bytes, n, dim };
                    if acc.len() == dim {
                        rows.sum::<L, R, 1>(p.as_ptr(), 0, acc.as_mut_ptr());
                    } else {
                        rows.sum::<L, R, 2>(p.as_ptr(), stride, acc.as_mut_ptr());
                    }
                }
            }
        }
    }
}

/// A walk over `n` rows.
struct Rows {
    first: *const u8,
    row_bytes: usize,
    n: usize,
    dim: usize,
}

impl Rows {
    /// Adds the rows to N heads' `acc`, `dim` values each; their weights are `stride` apart.
    #[inline(always)]
    unsafe fn sum<L: Lanes, R: Row, const N: usize>(&self, p: *const f32, stride: usize, acc: *mut f32) {
        let mut d = 0;
        // SAFETY: `L` is enabled by the caller; every block of dimensions is inside the rows and heads.
        unsafe {
            while d + 64 <= self.dim {
                self.block::<L, R, N, 4>(p, stride, acc, d);
                d += 64;
            }
            while d + 16 <= self.dim {
                self.block::<L, R, N, 1>(p, stride, acc, d);
                d += 16;
            }
            let left = self.dim - d;
            if left > 0 {
                for h in 0..N {
                    let out = acc.add(h * self.dim + d);
                    let mut a = L::load_n(out, left);
                    for i in 0..self.n {
                        let v = R::load_n::<L>(self.first.add(i * self.row_bytes), d, left);
                        a = L::fma(L::splat(*p.add(h * stride + i)), v, a);
                    }
                    L::store_n(out, left, a);
                }
            }
        }
    }

    /// The 16 * B dimensions from `d`, of N heads, kept in registers over the rows.
    #[inline(always)]
    unsafe fn block<L: Lanes, R: Row, const N: usize, const B: usize>(
        &self,
        p: *const f32,
        stride: usize,
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
                    w[h] = L::splat(*p.add(h * stride + i));
                }
                for b in 0..B {
                    let v = R::load::<L>(row, d + b * 16);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Guarded, each_isa, extreme, random, same_bits, within};

    const DIMS: [usize; 15] = [1, 8, 15, 16, 17, 31, 32, 33, 48, 64, 80, 96, 128, 192, 200];

    fn dims(ty: KvType) -> impl Iterator<Item = usize> {
        DIMS.into_iter().filter(move |dim| ty.row_bytes(*dim).is_some())
    }

    /// `n` rows in bytes that begin at an odd address where the test wants it, and their values.
    fn rows(ty: KvType, dim: usize, n: usize, seed: u64, scale: f32) -> (Vec<u8>, Vec<f32>) {
        let bytes = ty.row_bytes(dim).expect("a row");
        let ops = Ops::new(crate::Isa::Scalar).expect("scalar");
        let mut all = vec![0; n * bytes];
        for (i, row) in all.chunks_exact_mut(bytes).enumerate() {
            ops.kv_store(ty, &random(dim, seed + i as u64, scale), row);
        }
        let half = |b: &[u8]| half::f16::from_le_bytes([b[0], b[1]]).to_f32();
        let values = match ty {
            KvType::F32 => all.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            KvType::F16 => all.chunks(2).map(half).collect(),
            KvType::Q8_0 => all
                .chunks(34)
                .flat_map(|b| b[2..].iter().map(|q| f32::from(q.cast_signed()) * half(b)))
                .collect(),
        };
        (all, values)
    }

    /// The bytes one further, so that no row is aligned.
    fn unaligned(bytes: &[u8]) -> Vec<u8> {
        [&[0xff], bytes, &[0xff; 64]].concat()
    }

    #[test]
    fn scores_are_those_of_f64_within_the_rounding_of_the_lanes() {
        for ty in KvType::ALL {
            for dim in dims(ty) {
                for n in [0, 1, 2, 7, 40] {
                    let (k, values) = rows(ty, dim, n, 60, 2.0);
                    let (q, scale, odd) = (random(dim, 61, 2.0), 0.125, unaligned(&k));
                    let got = each_isa(|ops| {
                        let mut scores = Guarded::new(n);
                        ops.kv_scores(ty, &q, &odd[1..=k.len()], scale, &mut scores);
                        scores.into_vec()
                    });
                    for (got, k) in got.iter().zip(values.chunks(dim)) {
                        let terms = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k));
                        let (sum, size) = terms.fold((0.0, 0.0), |(s, m), t: f64| (s + t, m + t.abs()));
                        // A value of Q8_0 and the scaling are rounded once each, then as for any dot.
                        let bound = size * (dim as f64 / 16.0 + 7.0) * 2f64.powi(-24) * f64::from(scale);
                        within(*got, sum * f64::from(scale), bound);
                    }
                }
            }
        }
    }

    #[test]
    fn sums_are_row_after_row_whatever_the_cuts() {
        for ty in KvType::ALL {
            for dim in dims(ty) {
                // 300 rows are more than one walk from 64 dimensions on.
                for n in [0, 1, 3, 40, 300] {
                    let (v, values) = rows(ty, dim, n, 70, 2.0);
                    let (p, start, odd) = (random(n, 71, 1.0), random(dim, 72, 1.0), unaligned(&v));
                    let v = &odd[1..=v.len()];
                    let mut want = start.clone();
                    for (p, v) in p.iter().zip(values.chunks(dim)) {
                        for (a, v) in want.iter_mut().zip(v) {
                            *a = p.mul_add(*v, *a);
                        }
                    }
                    for cut in [0, n / 3, n] {
                        let at = cut * ty.row_bytes(dim).expect("a row");
                        let got = each_isa(|ops| {
                            let mut acc = Guarded::of(&start);
                            ops.kv_weighted_sum(ty, &p[..cut], &v[..at], &mut acc);
                            ops.kv_weighted_sum(ty, &p[cut..], &v[at..], &mut acc);
                            acc.into_vec()
                        });
                        assert_eq!(got, want, "{ty:?} {dim} {n} {cut}");
                    }
                }
            }
        }
    }

    #[test]
    fn groups_have_the_bits_of_single_heads() {
        for ty in KvType::ALL {
            for dim in dims(ty) {
                for (heads, n) in [(0, 3), (1, 5), (2, 300), (3, 1), (4, 9), (5, 20), (9, 11)] {
                    let stride = n + 3;
                    let (bytes, _) = rows(ty, dim, n, 80, 2.0);
                    let q = random(heads * dim, 81, 2.0);
                    let view = KvRows::new(ty, dim, &bytes);
                    assert_eq!(view.n(), n);
                    // The last head's scores end where the buffer does.
                    let len = (heads * stride).saturating_sub(3);
                    let scores = each_isa(|ops| {
                        let mut scores = Guarded::new(len);
                        ops.kv_scores_group(&q, view, 0.3, &mut scores, stride);
                        for (q, group) in q.chunks(dim).zip(scores.chunks(stride)) {
                            let mut one = vec![0.0; n];
                            ops.kv_scores(ty, q, &bytes, 0.3, &mut one);
                            assert_eq!(group[..n], one);
                            assert!(group[n..].iter().all(|x| *x == 1e9), "between the heads");
                        }
                        scores.into_vec()
                    });
                    each_isa(|ops| {
                        let mut acc = Guarded::of(&q);
                        ops.kv_weighted_sum_group(&scores, stride, view, &mut acc);
                        for ((acc, q), p) in acc.chunks(dim).zip(q.chunks(dim)).zip(scores.chunks(stride)) {
                            let mut one = q.to_vec();
                            ops.kv_weighted_sum(ty, &p[..n], &bytes, &mut one);
                            assert_eq!(acc, one);
                        }
                        acc.into_vec()
                    });
                }
            }
        }
    }

    #[test]
    fn any_bytes_give_the_same_bits_on_every_isa() {
        for ty in KvType::ALL {
            for dim in [32, 96] {
                let n = 33;
                let bits = extreme(n * dim, 90);
                let bytes: Vec<u8> = bits.iter().flat_map(|x| x.to_le_bytes()).collect();
                let bytes = &bytes[..n * ty.row_bytes(dim).expect("a row")];
                for seed in 0..8 {
                    each_isa(|ops| {
                        let mut scores = vec![0.0; n];
                        let q = if seed < 4 { random(dim, seed, 2.0) } else { extreme(dim, seed) };
                        ops.kv_scores(ty, &q, bytes, 0.1, &mut scores);
                        scores
                    });
                    each_isa(|ops| {
                        let mut acc = extreme(dim, seed + 100);
                        ops.kv_weighted_sum(ty, &random(n, seed, 1.0), bytes, &mut acc);
                        acc
                    });
                }
            }
        }
        assert!(!same_bits(&[0.0], &[-0.0]), "the comparison sees the sign of zero");
    }
}
