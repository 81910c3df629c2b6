//! The product of [`super::scaled`] for many columns: a section of some rows is unpacked once, and every column passes over it.
//!
//! Codes lie as `[4 weights][row][weight]`, as in [`super::tile`]: a vector holds four weights of 16 rows, the four activations that meet
//! them are the same in every lane, and each lane sums up a row. At the end of a run the sums become floats and are added to one of 16
//! accumulators, which are in memory.

use super::scaled::{At, SECTION, Scaled, offset};
use super::tile::starts;
use super::{Column, row_bytes};
use crate::acts::{Acts, Line};
use crate::format::Call;
use crate::simd::Bytes;
use std::mem::MaybeUninit;

/// Columns from which on a tile pays.
pub(super) const COLUMNS: usize = 4;

/// Vectors of 16 rows, side by side.
type Wide<const R: usize> = [Line; R];

/// An integer for each row and column.
type Sums<S, const R: usize, const C: usize> = [[<S as Bytes>::V; R]; C];

/// What is not written is not read.
type Some<const R: usize, const N: usize> = [MaybeUninit<Wide<R>>; N];

/// A section of `16 * R` rows.
struct Tile<const R: usize> {
    /// Codes: for each four weights.
    codes: Some<R, { SECTION / 4 }>,
    /// `d` of each run, and `m`.
    d: Some<R, { SECTION / 32 }>,
    m: Some<R, { SECTION / 32 }>,
    /// Of each super-block: what the sums of sub-blocks are multiplied by, in the form that [`Bytes::scaled`] wants.
    scales: Some<R, { SECTION / 16 }>,
    /// Of each super-block: what meets pairs of sums of 16.
    of_sums: Some<R, { SECTION / 32 }>,
}

/// Stores the codes of vectors of nibbles of 16 rows, four bytes a row: the low ones of `N` vectors, then their high ones, and so on.
///
/// # Safety
/// `S` is enabled; 32 vectors have room.
#[inline(always)]
pub(super) unsafe fn store_nibbles<S: Bytes, const N: usize>(turned: &[S::V; 16], to: *mut u8, apart: usize) {
    // SAFETY: by the caller.
    unsafe {
        let low = S::splat_u8(15);
        for i in 0..16 {
            let to = to.add((i / N * 2 * N + i % N) * apart);
            S::store_v(to, S::and(turned[i], low));
            S::store_v(to.add(N * apart), S::and(S::shr16::<4>(turned[i]), low));
        }
    }
}

/// The entry point for so many columns that a tile pays.
///
/// # Safety
/// As for every kernel; `S` is enabled.
#[inline(always)]
pub(super) unsafe fn scaled_tiles<T: Scaled, S: Bytes>(call: &mut Call<'_, '_>) {
    // SAFETY: the caller's promises, passed on.
    unsafe {
        if S::REGISTERS == 32 {
            tiles::<T, S, 2>(call);
        } else {
            tiles::<T, S, 1>(call);
        }
    }
}

/// # Safety
/// As for [`scaled_tiles`].
#[allow(clippy::large_stack_arrays)] // 228 KiB at most, gone with the call
#[inline(always)]
unsafe fn tiles<T: Scaled, S: Bytes, const R: usize>(call: &mut Call<'_, '_>) {
    let n = row_bytes::<T>(call.cols);
    let per = SECTION / T::BLOCK;
    let columns = call.acts.n();
    let mut tile = Tile::<R> {
        codes: [const { MaybeUninit::uninit() }; _],
        d: [const { MaybeUninit::uninit() }; _],
        m: [const { MaybeUninit::uninit() }; _],
        scales: [const { MaybeUninit::uninit() }; _],
        of_sums: [const { MaybeUninit::uninit() }; _],
    };
    for first in (0..call.out.rows()).step_by(16 * R) {
        let count = (call.out.rows() - first).min(16 * R);
        let rows = starts(&call.weights[first * n..][..count * n], n);
        for from in (0..n / T::BYTES).step_by(per) {
            let part = Part { first, count, from, runs: (n / T::BYTES - from).min(per) };
            // SAFETY: `S` is enabled by the caller; `starts` has 32 rows, each with these runs; the rest by the caller.
            unsafe {
                for r in 0..R {
                    unpack::<T, S, R>(&mut tile, &rows[r], r, &part);
                }
                let mut c = 0;
                while c < columns {
                    // The last column again for those that lack.
                    c += match (S::REGISTERS, columns - c) {
                        (32, 9..) => pass::<T, S, R, 12>(call, &tile, &part, c),
                        (32, _) | (_, 3..) => pass::<T, S, R, 4>(call, &tile, &part, c),
                        _ => pass::<T, S, R, 2>(call, &tile, &part, c),
                    };
                }
            }
        }
    }
}

/// Which rows of the call and which runs of them a tile has.
struct Part {
    first: usize,
    count: usize,
    from: usize,
    runs: usize,
}

/// Fills vector `r` of everything.
///
/// # Safety
/// `S` is enabled; the runs are readable in every row.
#[inline(always)]
unsafe fn unpack<T: Scaled, S: Bytes, const R: usize>(
    tile: &mut Tile<R>,
    rows: &[*const u8; 16],
    r: usize,
    part: &Part,
) {
    let at = |lines: *mut MaybeUninit<Wide<R>>, i: usize| lines.cast::<u8>().wrapping_add((i * R + r) * 64);
    // Rows that are not there are the last one again.
    let rows = rows.map(|row| row.wrapping_add(part.from * T::BYTES));
    let mut b = 0;
    while b < part.runs {
        // SAFETY: by the caller; a section has room for what its runs have.
        unsafe {
            let blocks = rows.map(|row| row.wrapping_add(b * T::BYTES));
            let codes = at(tile.codes.as_mut_ptr(), b * T::BLOCK / 4);
            let done = T::turn::<S>(&blocks, part.runs - b, codes, 64 * R);
            for b in b..b + done {
                let blocks = rows.map(|row| row.wrapping_add(b * T::BYTES));
                let d = S::load_f16_each(&blocks.map(|block| block.wrapping_add(T::D_AT)));
                S::store(at(tile.d.as_mut_ptr(), b).cast(), d);
                if let Some(m) = T::M_AT {
                    let m = S::load_f16_each(&blocks.map(|block| block.wrapping_add(m)));
                    let m = S::mul(m, S::splat(T::M_SIGN));
                    S::store(at(tile.m.as_mut_ptr(), b).cast(), m);
                }
                if T::SUBS > 1 {
                    let heads = T::heads::<S>(&blocks);
                    for p in 0..8 {
                        S::store_v(at(tile.of_sums.as_mut_ptr(), 8 * b + p), heads[8 + p]);
                        if T::SUBS == 16 {
                            let (low, high) = (S::scale_low(heads[p]), S::scale_high(heads[p]));
                            S::store_v(at(tile.scales.as_mut_ptr(), 16 * b + 2 * p), low);
                            S::store_v(at(tile.scales.as_mut_ptr(), 16 * b + 2 * p + 1), high);
                        } else {
                            S::store_v(at(tile.scales.as_mut_ptr(), 8 * b + p), S::scale_low(heads[p]));
                        }
                    }
                }
            }
            b += done;
        }
    }
}

/// Columns `first ..` of the call times a tile; the last column again where there are fewer than `C`. Returns `C`.
///
/// # Safety
/// As for every kernel; `S` is enabled; the tile has the part's runs; the columns cover them.
#[inline(always)]
unsafe fn pass<T: Scaled, S: Bytes, const R: usize, const C: usize>(
    call: &mut Call<'_, '_>,
    tile: &Tile<R>,
    part: &Part,
    first: usize,
) -> usize {
    let Acts::I8(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    let mut x = [At { q: std::ptr::null(), sums16: std::ptr::null(), sums: std::ptr::null() }; C];
    let mut scales = [std::ptr::null::<f32>(); C];
    for c in 0..C {
        let column = Column::of(&acts, (first + c).min(acts.n() - 1));
        x[c] = At::start(column).run(part.from, T::BLOCK);
        scales[c] = column.scales[part.from..].as_ptr();
    }
    // SAFETY: `S` is enabled by the caller; a tile has vectors for each of its runs; q, sums and scales are inside the columns; what is
    // loaded and stored of the result are rows of the call.
    unsafe {
        // Lanes of no run would add zeros.
        let lanes = part.runs.min(16).next_power_of_two();
        let mut acc = [const { MaybeUninit::<[[S::F; R]; C]>::uninit() }; 16];
        for acc in &mut acc[..lanes] {
            acc.write([[S::zero(); R]; C]);
        }
        for b in 0..part.runs {
            let codes = tile.codes.as_ptr().cast::<Wide<R>>().add(b * T::BLOCK / 4);
            let mut run = x;
            for run in &mut run {
                *run = run.run(b, T::BLOCK);
            }
            let (sums, mins) = if T::SUBS == 1 {
                (whole::<T, S, R, C>(codes, &run), [[S::zero_v(); R]; C])
            } else {
                let scales = tile.scales.as_ptr().cast::<Wide<R>>().add(b * T::SUBS);
                let of_sums = tile.of_sums.as_ptr().cast::<Wide<R>>().add(b * 8);
                by_subs::<T, S, R, C>(codes, scales, of_sums, &run)
            };
            let (mut d, mut m) = ([S::zero(); R], [S::zero(); R]);
            for r in 0..R {
                d[r] = S::load((*tile.d.as_ptr().add(b).cast::<Wide<R>>())[r].0.as_ptr().cast());
                if T::M_AT.is_some() {
                    m[r] = S::load((*tile.m.as_ptr().add(b).cast::<Wide<R>>())[r].0.as_ptr().cast());
                }
            }
            let acc = acc[b % 16].assume_init_mut();
            for c in 0..C {
                let s = S::splat(*scales[c].add(b));
                let of_q = S::splat(*run[c].sums as f32);
                for r in 0..R {
                    let mut sum = S::fma(S::to_f32(sums[c][r]), S::mul(d[r], s), acc[c][r]);
                    if T::M_AT.is_some() {
                        let min = if T::SUBS == 1 { of_q } else { S::to_f32(mins[c][r]) };
                        sum = S::fma(min, S::mul(m[r], s), sum);
                    }
                    acc[c][r] = sum;
                }
            }
        }
        fold::<S, R, C>(call, &mut acc, lanes, part, first);
    }
    C
}

/// Adds up the lanes and adds them to the result.
///
/// # Safety
/// As for [`pass`]; `lanes`, a power of two, are there.
#[inline(always)]
unsafe fn fold<S: Bytes, const R: usize, const C: usize>(
    call: &mut Call<'_, '_>,
    acc: &mut [MaybeUninit<[[S::F; R]; C]>; 16],
    lanes: usize,
    part: &Part,
    first: usize,
) {
    let columns = call.out.n();
    // SAFETY: by the caller.
    unsafe {
        let mut half = lanes / 2;
        while half > 0 {
            for l in 0..half {
                let above = acc[l + half].assume_init();
                let acc = acc[l].assume_init_mut();
                for c in 0..C {
                    for r in 0..R {
                        acc[c][r] = S::add(acc[c][r], above[c][r]);
                    }
                }
            }
            half /= 2;
        }
        let sums = acc[0].assume_init_ref();
        for c in 0..C.min(columns - first) {
            let out = call.out.column(first + c).as_mut_ptr();
            for r in 0..R {
                let (out, n) =
                    (out.wrapping_add(part.first + 16 * r), part.count.saturating_sub(16 * r).min(16));
                let before = if part.from == 0 { S::zero() } else { S::load_n(out, n) };
                S::store_n(out, n, S::add(before, sums[c][r]));
            }
        }
    }
}

/// The integers of a run of 32 weights, which have one scale.
///
/// # Safety
/// `S` is enabled; eight vectors of codes and 32 values of each column are readable.
#[inline(always)]
unsafe fn whole<T: Scaled, S: Bytes, const R: usize, const C: usize>(
    codes: *const Wide<R>,
    x: &[At; C],
) -> Sums<S, R, C> {
    // SAFETY: by the caller; as many additions fit as `fit` says.
    unsafe {
        let mut local = [[S::sums_from(S::zero_v()); R]; C];
        for c in 0..C {
            local[c] = [S::sums_from(S::splat_i32(-offset::<T, S>() * *x[c].sums)); R];
        }
        let fit = fit::<T>();
        for from in (0..8).step_by(fit) {
            add::<T, S, R, C>(&mut local, codes.add(from), fit, x, 4 * from);
            for c in 0..C {
                for r in 0..R {
                    S::sums_carry(&mut local[c][r]);
                }
            }
        }
        let mut sums = [[S::zero_v(); R]; C];
        for c in 0..C {
            for r in 0..R {
                sums[c][r] = S::sums_lanes(local[c][r]);
            }
        }
        sums
    }
}

/// The integers of a super-block.
///
/// # Safety
/// `S` is enabled; 64 vectors of codes, those of scales and eight of what meets sums are readable, and 256 values and their sums.
#[inline(always)]
unsafe fn by_subs<T: Scaled, S: Bytes, const R: usize, const C: usize>(
    codes: *const Wide<R>,
    scales: *const Wide<R>,
    of_sums: *const Wide<R>,
    x: &[At; C],
) -> (Sums<S, R, C>, Sums<S, R, C>) {
    // SAFETY: by the caller; as many additions fit as `fit` says.
    unsafe {
        let mut mins = [[S::zero_v(); R]; C];
        for p in 0..8 {
            for c in 0..C {
                let pair = S::splat4(x[c].sums16.add(2 * p).cast());
                for r in 0..R {
                    mins[c][r] = S::dot_pairs(mins[c][r], S::load_v((*of_sums.add(p))[r].0.as_ptr()), pair);
                }
            }
        }
        let mut sums = [[S::zero_v(); R]; C];
        if T::OFFSET > 0 {
            for c in 0..C {
                for r in 0..R {
                    sums[c][r] = S::sub_i32(sums[c][r], S::shl32::<5>(mins[c][r]));
                }
            }
        }
        let steps = 64 / T::SUBS;
        let fit = if S::SIGNED { fit::<T>().min(steps) } else { steps };
        for sub in 0..T::SUBS {
            for from in (0..steps).step_by(fit) {
                let mut local = [[S::sums_from(S::zero_v()); R]; C];
                let at = sub * steps + from;
                add::<T, S, R, C>(&mut local, codes.add(at), fit, x, 4 * at);
                for r in 0..R {
                    let k = S::load_v((*scales.add(sub))[r].0.as_ptr());
                    for c in 0..C {
                        sums[c][r] = S::scaled(sums[c][r], local[c][r], k);
                    }
                }
            }
        }
        (sums, mins)
    }
}

/// Additions that fit 16-bit lanes, of two products each: 2 * 127 * 15 * 8 = 30,480, 2 * 127 * 31 * 4 = 31,496, 2 * 127 * 63 * 2 = 32,004.
const fn fit<T: Scaled>() -> usize {
    match T::TOP {
        31 => 4,
        63 => 2,
        // Those of 8 bits are carried one by one.
        _ => 8,
    }
}

/// Adds code * q for `steps` times four weights, q from value `at` on.
///
/// # Safety
/// `S` is enabled; the vectors and the values are readable; as many additions fit.
#[inline(always)]
unsafe fn add<T: Scaled, S: Bytes, const R: usize, const C: usize>(
    sums: &mut [[S::Sums; R]; C],
    codes: *const Wide<R>,
    steps: usize,
    x: &[At; C],
    at: usize,
) {
    // SAFETY: by the caller.
    unsafe {
        for k in 0..steps {
            let mut rows = [S::zero_v(); R];
            for r in 0..R {
                rows[r] = S::load_v((*codes.add(k))[r].0.as_ptr());
            }
            for c in 0..C {
                let q = S::splat4(x[c].q.add(at + 4 * k));
                for r in 0..R {
                    if T::TOP == 255 {
                        S::sums_add_wide(&mut sums[c][r], rows[r], q);
                    } else {
                        S::sums_add(&mut sums[c][r], rows[r], q);
                    }
                }
            }
        }
    }
}
