//! Ternary products for many columns: a tile of rows is unpacked once, and every column passes over it.
//!
//! A tile is [`ROWS`] rows. A stretch of them, [`STEPS`] steps of 256 weights, is unpacked to codes whose order is
//! `[4 weights][row][weight]`: a vector holds four weights of 16 rows, the four activations that meet them are the same
//! in every lane, and each lane sums up a row, so that no lanes have to be added together. Sums of earlier stretches wait
//! in the result, as integers.
//!
//! The result has the bits that [`super::ternary`] defines, for rows of one run.

use super::ternary::{Ternary, is_one_run};
use super::{Column, row_bytes};
use crate::acts::{Acts, Line};
use crate::format::Call;
use crate::simd::Bytes;

/// Columns from which on a tile pays.
pub(super) const COLUMNS: usize = 12;
/// Rows of a tile.
const ROWS: usize = 32;
/// Steps of a stretch: its codes, 32 KiB, stay in the inner caches.
const STEPS: usize = 4;

/// Codes of a stretch: for each four weights two vectors of 16 rows.
type Codes = [[Line; 2]; STEPS * 64];

/// The call's rows times all its columns, or false (and nothing done) where a row has more than one run.
///
/// # Safety
/// As for every kernel; `S` is enabled.
#[allow(clippy::large_stack_arrays)] // 32 KiB, gone with the call
#[inline(always)]
pub(super) unsafe fn multiply<T: Ternary, S: Bytes>(call: &mut Call<'_, '_>) -> bool {
    let n = row_bytes::<T>(call.cols);
    if !call.weights.chunks_exact(n).all(is_one_run::<T>) {
        return false;
    }
    let mut codes: Codes = [[Line([0; 64]); 2]; STEPS * 64];
    let rows = call.out.rows();
    for first in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - first);
        let tile = &call.weights[first * n..(first + count) * n];
        let mut d = [0f32; ROWS];
        for (d, row) in d.iter_mut().zip(tile.chunks_exact(n)) {
            // SAFETY: `S` is enabled by the caller.
            *d = unsafe { S::f16_to_f32(T::scale_bits(&row[..T::BYTES])) };
        }
        let steps = n.div_ceil(T::STEP);
        for from in (0..steps).step_by(STEPS) {
            let these = STEPS.min(steps - from);
            // SAFETY: `S` is enabled by the caller; a tile is whole rows.
            unsafe { unpack::<T, S>(tile, n, from, these, &mut codes) };
            let part = Part { codes: &codes[..these * 64], from, first, count };
            let scale = (from + these == steps).then_some(&d);
            // SAFETY: `S` is enabled by the caller.
            unsafe { columns::<S>(call, &part, scale) };
        }
    }
    true
}

/// Codes of some steps of a tile's rows. Rows that a tile lacks repeat its last one; nobody reads their sums.
#[inline(always)]
unsafe fn unpack<T: Ternary, S: Bytes>(tile: &[u8], n: usize, from: usize, steps: usize, codes: &mut Codes) {
    let count = tile.len() / n;
    let mut planes = [[Line([0; 64]); 16]; 4];
    for step in 0..steps {
        let bytes = (from + step) * T::STEP..((from + step + 1) * T::STEP).min(n);
        for half in 0..2 {
            for i in 0..16 {
                let row = &tile[(16 * half + i).min(count - 1) * n..][..n];
                // SAFETY: `S` is enabled by the caller; these are a step of a row; a line has 64 bytes.
                unsafe {
                    for (l, v) in T::planes::<S>(&row[bytes.clone()]).into_iter().enumerate() {
                        S::store_v(planes[l][i].0.as_mut_ptr(), v);
                    }
                }
            }
            for (l, plane) in planes.iter().enumerate() {
                let to = &mut codes[step * 64 + l * 16..][..16];
                // SAFETY: 16 lines to read; 16 pairs of lines, of which each row of the transpose is one line.
                unsafe { S::transpose4(plane.as_ptr().cast(), to.as_mut_ptr().cast::<u8>().add(64 * half)) };
            }
        }
    }
}

/// A stretch of a tile.
struct Part<'a> {
    codes: &'a [[Line; 2]],
    /// The first step.
    from: usize,
    /// The first row, and how many.
    first: usize,
    count: usize,
}

/// All columns of the call times a part: as many at once as 32 registers hold sums of, with two vectors of rows.
#[inline(always)]
unsafe fn columns<S: Bytes>(call: &mut Call<'_, '_>, part: &Part<'_>, scale: Option<&[f32; ROWS]>) {
    let n = call.acts.n();
    let mut c = 0;
    // SAFETY: the caller's promises, passed on.
    unsafe {
        while c + 12 <= n {
            block::<S, 12>(call, part, scale, c);
            c += 12;
        }
        while c + 4 <= n {
            block::<S, 4>(call, part, scale, c);
            c += 4;
        }
        while c < n {
            block::<S, 1>(call, part, scale, c);
            c += 1;
        }
    }
}

/// Columns `first ..` of the call times a part. With `scale` the sums are complete and become results.
#[inline(always)]
unsafe fn block<S: Bytes, const C: usize>(
    call: &mut Call<'_, '_>,
    part: &Part<'_>,
    scale: Option<&[f32; ROWS]>,
    first: usize,
) {
    let Acts::I8(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    let x: [Column<'_>; C] = std::array::from_fn(|c| Column::of(&acts, first + c));
    for x in &x {
        assert!(x.q.len() >= part.from * 256 + part.codes.len() * 4, "activation length");
    }
    let q: [*const i8; C] = std::array::from_fn(|c| x[c].q[part.from * 256..].as_ptr());
    // Rows 16 r of the tile: where they are in the result, and how many there are.
    let rows = |r: usize| {
        let at = part.first + (16 * r).min(part.count);
        at..part.first + (16 * r + 16).min(part.count)
    };
    // SAFETY: `S` is enabled by the caller; q is read inside the columns, just checked; a slice of the result is as long as
    // what is loaded and stored.
    unsafe {
        let mut sums = [[S::zero_v(); 2]; C];
        if part.from > 0 {
            for c in 0..C {
                let out = call.out.column(first + c);
                for r in 0..2 {
                    let out = &out[rows(r)];
                    sums[c][r] = S::bits_of_f(S::load_n(out.as_ptr(), out.len()));
                }
            }
        }
        sum_up::<S, C>(&mut sums, part.codes, q);
        for c in 0..C {
            let column = S::splat(x[c].scales[0] * call.scale);
            let minus = S::splat_i32(x[c].sums[0]);
            let out = call.out.column(first + c);
            for r in 0..2 {
                let y = match scale {
                    None => S::bits_to_f(sums[c][r]),
                    Some(d) => {
                        let sum = S::to_f32(S::sub_i32(sums[c][r], minus));
                        S::mul(S::fma(sum, S::load(d[16 * r..].as_ptr()), S::zero()), column)
                    }
                };
                let out = &mut out[rows(r)];
                S::store_n(out.as_mut_ptr(), out.len(), y);
            }
        }
    }
}

/// Adds codes * q. The sums stay in registers: they are copied here and back.
#[inline(always)]
unsafe fn sum_up<S: Bytes, const C: usize>(
    sums: &mut [[S::V; 2]; C],
    codes: &[[Line; 2]],
    mut q: [*const i8; C],
) {
    // SAFETY: the caller's promises, passed on.
    unsafe {
        let mut local = *sums;
        for codes in codes.chunks_exact(4) {
            for (k, [low, high]) in codes.iter().enumerate() {
                let (low, high) = (S::load_v(low.0.as_ptr()), S::load_v(high.0.as_ptr()));
                for c in 0..C {
                    let q = S::splat4(q[c].add(4 * k));
                    local[c][0] = S::dot_u8(local[c][0], low, q);
                    local[c][1] = S::dot_u8(local[c][1], high, q);
                }
            }
            q = q.map(|q| q.wrapping_add(16));
        }
        *sums = local;
    }
}
