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
use crate::simd::{Bytes, CARRY};
use std::mem::MaybeUninit;

/// Columns from which on a tile pays.
pub(super) const COLUMNS: usize = 4;
/// Rows of a tile.
pub(super) const ROWS: usize = 32;
/// Tiles that some columns pass over while they are in the innermost cache.
const TILES: usize = 2;
/// Steps of a stretch: its codes are 80 KiB, which stay in the second-level cache, and rows of 2560 weights are one stretch.
const STEPS: usize = 10;

/// Codes of a stretch: for each four weights two vectors of 16 rows. They are not cleared before they are written: a model
/// with narrow rows has few of them in a call, and clearing took a quarter of its time.
type Codes = [MaybeUninit<[Line; 2]>; STEPS * 64];

/// The call's rows times all its columns, or false where a row has more than one run; results are of no meaning then.
///
/// # Safety
/// As for every kernel; `S` is enabled.
#[allow(clippy::large_stack_arrays)] // 160 KiB, gone with the call
#[inline(always)]
pub(super) unsafe fn multiply<T: Ternary, S: Bytes>(call: &mut Call<'_, '_>) -> bool {
    let n = row_bytes::<T>(call.cols);
    let mut codes: [Codes; TILES] = [const { [const { MaybeUninit::uninit() }; STEPS * 64] }; TILES];
    let steps = n.div_ceil(T::STEP);
    let rows = call.out.rows();
    for first in (0..rows).step_by(TILES * ROWS) {
        let count = |t: usize| (rows - first).saturating_sub(t * ROWS).min(ROWS);
        let tile = |t: usize| &call.weights[(first + t * ROWS).min(rows) * n..][..count(t) * n];
        let tiles = (rows - first).div_ceil(ROWS).min(TILES);
        let mut d = [[0f32; ROWS]; TILES];
        for from in (0..steps).step_by(STEPS) {
            let these = STEPS.min(steps - from);
            for (t, d) in d[..tiles].iter_mut().enumerate() {
                for (d, row) in d.iter_mut().zip(tile(t).chunks_exact(n)) {
                    // Block by block: vectors of scales would have to be gathered, a sixth of the time.
                    let scale = T::scale_bits(&row[..T::BYTES]);
                    let blocks =
                        row[from * T::STEP..((from + these) * T::STEP).min(n)].chunks_exact(T::BYTES);
                    if blocks.fold(0, |differ, block| differ | (T::scale_bits(block) ^ scale)) != 0 {
                        return false;
                    }
                    // SAFETY: `S` is enabled by the caller.
                    *d = unsafe { S::f16_to_f32(scale) };
                }
            }
            let mut parts: [Part<'_>; TILES] = std::array::from_fn(|t| Part {
                codes: &[],
                from,
                first: first + t * ROWS,
                count: count(t),
                d: d[t],
            });
            for (t, (part, codes)) in parts[..tiles].iter_mut().zip(&mut codes).enumerate() {
                // SAFETY: `S` is enabled by the caller; a tile is whole rows.
                part.codes = unsafe { unpack::<T, S>(tile(t), n, from, these, codes) };
            }
            // SAFETY: `S` is enabled by the caller.
            unsafe { columns::<S>(call, &parts[..tiles], from + these == steps) };
        }
    }
    true
}

/// Where the rows of a tile begin, `n` bytes each; the last one again for those that the tile lacks.
#[inline(always)]
pub(super) fn starts(tile: &[u8], n: usize) -> [[*const u8; 16]; 2] {
    let last = tile.len() / n - 1;
    let mut starts = [[tile.as_ptr(); 16]; 2];
    for (i, start) in starts.as_flattened_mut().iter_mut().enumerate() {
        *start = tile[i.min(last) * n..].as_ptr();
    }
    starts
}

/// Codes of some steps of a tile's rows, 64 pairs a step in `codes`. Nobody reads the sums of rows that the tile lacks.
#[inline(always)]
unsafe fn unpack<'c, T: Ternary, S: Bytes>(
    tile: &[u8],
    n: usize,
    from: usize,
    steps: usize,
    codes: &'c mut [MaybeUninit<[Line; 2]>],
) -> &'c [[Line; 2]] {
    let starts = starts(tile, n);
    let codes = &mut codes[..steps * 64];
    for (step, codes) in codes.chunks_exact_mut(64).enumerate() {
        let at = (from + step) * T::STEP;
        for (r, rows) in starts.iter().enumerate() {
            // SAFETY: `S` is enabled by the caller; these are a step of each row; 64 pairs of lines, one line of each.
            unsafe {
                let to = codes.as_mut_ptr().cast::<u8>().add(64 * r);
                T::sixteen::<S, ()>(rows, at, n - at < T::STEP, to, &mut ());
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

/// All columns of the call times some parts: as many at once, and vectors of 16 rows, as registers hold sums of. If `last`,
/// the sums are complete and become results.
///
/// # Safety
/// As for every kernel; `S` is enabled; the parts are rows of the call.
#[inline(always)]
unsafe fn columns<S: Bytes>(call: &mut Call<'_, '_>, parts: &[Part<'_>], last: bool) {
    let n = call.acts.n();
    let mut c = 0;
    // SAFETY: the caller's promises, passed on.
    unsafe {
        while c < n {
            c += if S::REGISTERS == 32 {
                // Fewer than 4 would wait for their own sums: the last column is computed as often as columns lack.
                match n - c {
                    12.. => block::<S, 12, 2>(call, c, parts, last),
                    8.. => block::<S, 8, 2>(call, c, parts, last),
                    _ => block::<S, 4, 2>(call, c, parts, last),
                }
            } else {
                match n - c {
                    4.. => block::<S, 4, 1>(call, c, parts, last),
                    2.. => block::<S, 2, 1>(call, c, parts, last),
                    _ => block::<S, 1, 1>(call, c, parts, last),
                }
            };
        }
    }
}

/// Columns `first ..` of the call times some parts, `R` vectors of 16 rows at a time; the last column again where there are
/// fewer than `C`. Returns `C`.
///
/// # Safety
/// As for [`columns`].
#[inline(always)]
unsafe fn block<S: Bytes, const C: usize, const R: usize>(
    call: &mut Call<'_, '_>,
    first: usize,
    parts: &[Part<'_>],
    last: bool,
) -> usize {
    let Acts::I8(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    let mut q = [std::ptr::null::<i8>(); C];
    let mut out = [std::ptr::null_mut::<f32>(); C];
    let (mut scale, mut minus) = ([0f32; C], [0; C]);
    for c in 0..C {
        let column = (first + c).min(acts.n() - 1);
        q[c] = acts.q(column).as_ptr();
        out[c] = call.out.column(column).as_mut_ptr();
        (scale[c], minus[c]) = (acts.scales(column)[0] * call.scale, acts.sums(column)[0]);
    }
    assert!(
        parts.iter().all(|part| part.from * 256 + part.codes.len() * 4 <= acts.q(first).len()),
        "activation length"
    );
    for part in parts {
        for top in (0..2).step_by(R) {
            // Rows 16 r of the tile: where they are in the result, and how many there are.
            let mut rows = [(0, 0); R];
            for (r, rows) in rows.iter_mut().enumerate() {
                let down = 16 * (top + r);
                *rows = (part.first + down, part.count.saturating_sub(down).min(16));
            }
            // SAFETY: `S` is enabled by the caller; q is read inside the columns, just checked; what is loaded and stored of
            // the result are rows of the call, by the caller.
            unsafe {
                let mut sums = [[S::zero_v(); R]; C];
                if part.from > 0 {
                    for c in 0..C {
                        for (r, (at, n)) in rows.into_iter().enumerate() {
                            sums[c][r] = S::bits_of_f(S::load_n(out[c].wrapping_add(at), n));
                        }
                    }
                }
                sum_up::<S, C, R>(&mut sums, part.codes, top, q.map(|q| q.wrapping_add(part.from * 256)));
                for c in 0..C {
                    for (r, (at, n)) in rows.into_iter().enumerate() {
                        let y = if last {
                            let sum = S::to_f32(S::sub_i32(sums[c][r], S::splat_i32(minus[c])));
                            let d = S::load(part.d[16 * (top + r)..].as_ptr());
                            S::mul(S::fma(sum, d, S::zero()), S::splat(scale[c]))
                        } else {
                            S::bits_to_f(sums[c][r])
                        };
                        S::store_n(out[c].wrapping_add(at), n, y);
                    }
                }
            }
        }
    }
    C
}

/// Adds codes * q for the vectors of rows from `top` on. The sums stay in registers: they are copied here and back.
#[inline(always)]
unsafe fn sum_up<S: Bytes, const C: usize, const R: usize>(
    sums: &mut [[S::V; R]; C],
    codes: &[[Line; 2]],
    top: usize,
    mut q: [*const i8; C],
) {
    // SAFETY: the caller's promises, passed on; a step is a multiple of `CARRY` lines.
    unsafe {
        let mut local = [[S::sums_from(S::zero_v()); R]; C];
        for c in 0..C {
            for r in 0..R {
                local[c][r] = S::sums_from(sums[c][r]);
            }
        }
        // Of more at once in 16 registers the compiler would keep sums in memory.
        let group = if S::REGISTERS == 32 { 4 } else { 2 };
        for codes in codes.chunks_exact(CARRY) {
            for codes in codes.chunks_exact(group) {
                for (k, lines) in codes.iter().enumerate() {
                    let mut rows = [S::zero_v(); R];
                    for r in 0..R {
                        rows[r] = S::load_v(lines[top + r].0.as_ptr());
                    }
                    for c in 0..C {
                        let q = S::splat4(q[c].add(4 * k));
                        for r in 0..R {
                            S::sums_add(&mut local[c][r], rows[r], q);
                        }
                    }
                }
                q = q.map(|q| q.wrapping_add(4 * group));
            }
            for c in 0..C {
                for r in 0..R {
                    S::sums_carry(&mut local[c][r]);
                }
            }
        }
        for c in 0..C {
            for r in 0..R {
                sums[c][r] = S::sums_lanes(local[c][r]);
            }
        }
    }
}
