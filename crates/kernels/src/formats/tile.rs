//! Ternary products for many columns: a tile of rows is unpacked once, and every column passes over it.
//!
//! A tile is [`ROWS`] rows. A stretch of them, [`STEPS`] steps of 256 weights, is unpacked to codes whose order is
//! `[4 weights][row][weight]`: a vector holds four weights of 16 rows, the four activations that meet them are the same
//! in every lane, and each lane sums up a row, so that no lanes have to be added together. Sums of earlier stretches wait
//! in the result, as integers.
//!
//! The result has the bits that [`super::ternary`] defines, for rows of one run.

use super::row_bytes;
use super::ternary::Ternary;
use crate::acts::{Acts, Line};
use crate::format::Call;
use crate::simd::Bytes;
use std::mem::MaybeUninit;

/// Columns from which on a tile pays.
pub(super) const COLUMNS: usize = 4;
/// Rows of a tile.
const ROWS: usize = 32;
/// Tiles that some columns pass over while they are in the innermost cache.
const TILES: usize = 2;
/// Steps of a stretch: its codes are 32 KiB, which stay in the inner caches.
const STEPS: usize = 4;

/// Codes of a stretch: for each four weights two vectors of 16 rows. They are not cleared before they are written: a model
/// with narrow rows has few of them in a call, and clearing took a quarter of its time.
type Codes = [MaybeUninit<[Line; 2]>; STEPS * 64];

/// The call's rows times all its columns, or false (and nothing done) where a row has more than one run.
///
/// # Safety
/// As for every kernel; `S` is enabled.
#[allow(clippy::large_stack_arrays)] // 64 KiB, gone with the call
#[inline(always)]
pub(super) unsafe fn multiply<T: Ternary, S: Bytes>(call: &mut Call<'_, '_>) -> bool {
    let n = row_bytes::<T>(call.cols);
    // Block by block up to the first that differs: vectors of scales would have to be gathered, a sixth of the time.
    let same = |row: &[u8]| {
        let first = T::scale_bits(&row[..T::BYTES]);
        row.chunks_exact(T::BYTES).all(|block| T::scale_bits(block) == first)
    };
    if !call.weights.chunks_exact(n).all(same) {
        return false;
    }
    let mut codes: [Codes; TILES] = [const { [const { MaybeUninit::uninit() }; STEPS * 64] }; TILES];
    let steps = n.div_ceil(T::STEP);
    let rows = call.out.rows();
    for first in (0..rows).step_by(TILES * ROWS) {
        let tiles = (rows - first).div_ceil(ROWS).min(TILES);
        for from in (0..steps).step_by(STEPS) {
            let these = STEPS.min(steps - from);
            let parts: [Part<'_>; TILES] = {
                let mut codes = codes.iter_mut();
                std::array::from_fn(|t| {
                    let first = (first + t * ROWS).min(rows);
                    let count = ROWS.min(rows - first);
                    let tile = &call.weights[first * n..(first + count) * n];
                    let codes = codes.next().map_or(&mut [][..], |codes| &mut codes[..these * 64]);
                    let mut unpacked = &[][..];
                    let mut d = [0f32; ROWS];
                    // SAFETY: `S` is enabled by the caller; a tile is whole rows.
                    unsafe {
                        for (d, row) in d.iter_mut().zip(tile.chunks_exact(n)) {
                            *d = S::f16_to_f32(T::scale_bits(&row[..T::BYTES]));
                        }
                        if count > 0 {
                            unpacked = unpack::<T, S>(tile, n, from, these, codes);
                        }
                    }
                    Part { codes: unpacked, from, first, count, d }
                })
            };
            // SAFETY: `S` is enabled by the caller.
            unsafe { columns::<S>(call, &parts[..tiles], from + these == steps) };
        }
    }
    true
}

/// Codes of some steps of a tile's rows, 64 pairs a step in `codes`. Rows that a tile lacks repeat its last one; nobody reads their sums.
#[inline(always)]
unsafe fn unpack<'c, T: Ternary, S: Bytes>(
    tile: &[u8],
    n: usize,
    from: usize,
    steps: usize,
    codes: &'c mut [MaybeUninit<[Line; 2]>],
) -> &'c [[Line; 2]] {
    let count = tile.len() / n;
    let codes = &mut codes[..steps * 64];
    let mut planes = [const { MaybeUninit::<[Line; 16]>::uninit() }; 4];
    for step in 0..steps {
        let bytes = (from + step) * T::STEP..((from + step + 1) * T::STEP).min(n);
        for half in 0..2 {
            for i in 0..16 {
                let row = &tile[(16 * half + i).min(count - 1) * n..][..n];
                // SAFETY: `S` is enabled by the caller; these are a step of a row; i < 16, and a line has 64 bytes.
                unsafe {
                    for (l, v) in T::planes::<S>(&row[bytes.clone()]).into_iter().enumerate() {
                        S::store_v(planes[l].as_mut_ptr().cast::<u8>().add(64 * i), v);
                    }
                }
            }
            for (l, plane) in planes.iter().enumerate() {
                let to = &mut codes[step * 64 + l * 16..][..16];
                // SAFETY: 16 lines to read, all written above; 16 pairs of lines, of which each row of the transpose is one
                // line.
                unsafe { S::transpose4(plane.as_ptr().cast(), to.as_mut_ptr().cast::<u8>().add(64 * half)) };
            }
        }
    }
    // SAFETY: each step has written both lines of its 64 pairs.
    unsafe { std::slice::from_raw_parts(codes.as_ptr().cast(), codes.len()) }
}

/// A stretch of a tile.
struct Part<'a> {
    codes: &'a [[Line; 2]],
    /// The first step.
    from: usize,
    /// The first row, and how many.
    first: usize,
    count: usize,
    /// The scale of each row.
    d: [f32; ROWS],
}

/// All columns of the call times some parts: as many at once as 32 registers hold sums of, with two vectors of rows. If
/// `last`, the sums are complete and become results.
#[inline(always)]
unsafe fn columns<S: Bytes>(call: &mut Call<'_, '_>, parts: &[Part<'_>], last: bool) {
    let n = call.acts.n();
    let mut c = 0;
    // SAFETY: the caller's promises, passed on.
    unsafe {
        while c + 12 <= n {
            for part in parts {
                block::<S, 12>(call, part, last, c);
            }
            c += 12;
        }
        while c + 8 <= n {
            for part in parts {
                block::<S, 8>(call, part, last, c);
            }
            c += 8;
        }
        // Fewer would wait for their own sums: the last column is computed as often as columns lack.
        while c < n {
            for part in parts {
                block::<S, 4>(call, part, last, c);
            }
            c += 4;
        }
    }
}

/// Columns `first ..` of the call times a part; the last one again where there are fewer than `C`.
#[inline(always)]
unsafe fn block<S: Bytes, const C: usize>(
    call: &mut Call<'_, '_>,
    part: &Part<'_>,
    last: bool,
    first: usize,
) {
    let Acts::I8(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    let column: [usize; C] = std::array::from_fn(|c| (first + c).min(acts.n() - 1));
    let mut q = [std::ptr::null(); C];
    for (c, q) in q.iter_mut().enumerate() {
        *q = acts.q(column[c])[part.from * 256..][..part.codes.len() * 4].as_ptr();
    }
    // Rows 16 r of the tile: where they are in the result, and how many there are.
    let rows = |r: usize| {
        let at = part.first + (16 * r).min(part.count);
        at..part.first + (16 * r + 16).min(part.count)
    };
    // SAFETY: `S` is enabled by the caller; q is read inside the columns, as just sliced; a slice of the result is as long as
    // what is loaded and stored.
    unsafe {
        let mut sums = [[S::zero_v(); 2]; C];
        if part.from > 0 {
            for c in 0..C {
                let out = call.out.column(column[c]);
                for r in 0..2 {
                    let out = &out[rows(r)];
                    sums[c][r] = S::bits_of_f(S::load_n(out.as_ptr(), out.len()));
                }
            }
        }
        sum_up::<S, C>(&mut sums, part.codes, q);
        for c in 0..C {
            let scale = S::splat(acts.scales(column[c])[0] * call.scale);
            let minus = S::splat_i32(acts.sums(column[c])[0]);
            let out = call.out.column(column[c]);
            for r in 0..2 {
                let y = if last {
                    let sum = S::to_f32(S::sub_i32(sums[c][r], minus));
                    S::mul(S::fma(sum, S::load(part.d[16 * r..].as_ptr()), S::zero()), scale)
                } else {
                    S::bits_to_f(sums[c][r])
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
