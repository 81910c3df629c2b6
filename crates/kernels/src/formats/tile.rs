//! Ternary products for many columns: a tile of rows is unpacked once, and every column passes over it.
//!
//! A tile is [`ROWS`] rows. A stretch of them, [`STEPS`] steps of 256 weights, is unpacked to codes whose order is
//! `[4 weights][row][weight]`: a vector holds four weights of 16 rows, the four activations that meet them are the same
//! in every lane, and each lane sums up a row, so that no lanes have to be added together. Codes of a stretch are in the innermost
//! cache for as long as they are needed; sums of earlier stretches wait beside them, as integers. With
//! each stretch a part is asked for of what comes from farther away: the lines that results go to, and the next tile's weights.
//!
//! The result has the bits that [`super::ternary`] defines, for rows of one run.

use super::row_bytes;
use super::ternary::{Ternary, is_one_run};
use crate::acts::{Acts, I8Cols, Line};
use crate::format::Call;
use crate::simd::{Bytes, CARRY, prefetch_far, prefetch_write};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Columns from which on a tile pays.
pub(super) const COLUMNS: usize = 4;
/// Rows of a tile.
pub(super) const ROWS: usize = 32;
/// Steps of a stretch: its codes are 24 KiB.
const STEPS: usize = 3;
/// Columns that pass over a stretch before the next one is unpacked: their sums are 16 KiB.
const MOST: usize = 128;
/// Columns that the last group of them may have too many.
const SPARE: usize = 3;

/// Codes of a stretch: for each four weights two vectors of 16 rows. They are not cleared before they are written: a model
/// with narrow rows has few of them in a call, and clearing took a quarter of its time.
type Codes = [MaybeUninit<[Line; 2]>; STEPS * 64];
/// The sums of each column, in two vectors of 16 rows.
type Sums = [MaybeUninit<[Line; 2]>; MOST + SPARE];

/// The call's rows times all its columns, or false where a row has more than one run; results are of no meaning then.
///
/// # Safety
/// As for every kernel; `S` is enabled.
#[allow(clippy::large_stack_arrays)] // 42 KiB, gone with the call
#[inline(always)]
pub(super) unsafe fn multiply<T: Ternary, S: Bytes>(call: &mut Call<'_, '_>) -> bool {
    let Acts::I8(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    let n = row_bytes::<T>(call.cols);
    let steps = n.div_ceil(T::STEP);
    assert!(steps * 256 <= acts.layout().padded(), "activation length");
    let mut codes: Codes = [const { MaybeUninit::uninit() }; STEPS * 64];
    let mut sums: Sums = [const { MaybeUninit::uninit() }; MOST + SPARE];
    for first in (0..acts.n()).step_by(MOST) {
        let some = Together::new(acts.slice(first, MOST.min(acts.n() - first)), first);
        for (i, bytes) in call.weights[..call.out.rows() * n].chunks(ROWS * n).enumerate() {
            // SAFETY: `S` is enabled by the caller; a tile is whole rows.
            let Some(d) = (unsafe { scales::<T, S>(bytes, n) }) else { return false };
            let tile = Tile { first: i * ROWS, rows: bytes.len() / n, d, bytes };
            for from in (0..steps).step_by(STEPS) {
                let these = STEPS.min(steps - from);
                // SAFETY: as above; the columns have all of the steps, checked above.
                unsafe {
                    let codes = unpack::<T, S>(bytes, n, from, these, &mut codes);
                    pass::<S>(call, &some, codes, from..from + these, steps, &mut sums, &tile);
                }
            }
        }
    }
    true
}

/// Columns that pass over a stretch together.
struct Together<'a> {
    columns: I8Cols<'a>,
    /// Which column of the call the first of them is.
    first: usize,
    /// Where each begins, and the last one once more for those that a group lacks.
    q: [*const i8; MOST + SPARE],
}

impl<'a> Together<'a> {
    fn new(columns: I8Cols<'a>, first: usize) -> Self {
        let mut q = [std::ptr::null(); MOST + SPARE];
        for (c, q) in q[..columns.n() + SPARE].iter_mut().enumerate() {
            *q = columns.q(c.min(columns.n() - 1)).as_ptr();
        }
        Self { columns, first, q }
    }
}

/// The scale of each row of a tile, or nothing where a row has several.
#[inline(always)]
unsafe fn scales<T: Ternary, S: Bytes>(tile: &[u8], n: usize) -> Option<[f32; ROWS]> {
    let mut d = [0f32; ROWS];
    for (d, row) in d.iter_mut().zip(tile.chunks_exact(n)) {
        if !is_one_run::<T>(row) {
            return None;
        }
        // SAFETY: `S` is enabled by the caller.
        *d = unsafe { S::f16_to_f32(T::scale_bits(&row[..T::BYTES])) };
    }
    Some(d)
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

/// A tile of rows, and where its results go.
struct Tile<'a> {
    /// Rows of the call.
    first: usize,
    rows: usize,
    /// The scale of each.
    d: [f32; ROWS],
    bytes: &'a [u8],
}

/// Adds what a stretch, the steps `these` of all, has to the sums of columns: as many at once, and vectors of 16 rows, as registers
/// hold sums of. With the last stretch of a tile sums become results.
///
/// # Safety
/// `S` is enabled; each column has values for all codes, and sums of earlier stretches.
#[inline(always)]
unsafe fn pass<S: Bytes>(
    call: &mut Call<'_, '_>,
    some: &Together<'_>,
    codes: &[[Line; 2]],
    these: Range<usize>,
    steps: usize,
    sums: &mut Sums,
    tile: &Tile<'_>,
) {
    let columns = &some.columns;
    let (n, at, mut c) = (columns.n(), these.start * 256, 0);
    // Where rows have one stretch alone, results are few and near.
    let lines = if steps > STEPS { share(2 * at_once::<S>(usize::MAX), &these, steps) } else { 0..0 };
    // Later columns find the next tile where the first ones left it.
    let ahead = if some.first == 0 { share(tile.bytes.len(), &these, steps) } else { 0..0 };
    let each = ahead.len().div_ceil(n);
    // SAFETY: by the caller; groups of four have three columns too many at most.
    unsafe {
        while c < n {
            let (q, sums) = (&some.q[c..], &mut sums[c..]);
            let size = at_once::<S>(n - c);
            let done = size.min(n - c);
            ask_for_results(call, some.first + c, tile.first, lines.start..lines.end.min(2 * done));
            match size {
                12 => group::<S, 12, 2>(codes, q, at, sums),
                8 => group::<S, 8, 2>(codes, q, at, sums),
                4 if S::REGISTERS == 32 => group::<S, 4, 2>(codes, q, at, sums),
                4 => group::<S, 4, 1>(codes, q, at, sums),
                2 => group::<S, 2, 1>(codes, q, at, sums),
                _ => group::<S, 1, 1>(codes, q, at, sums),
            }
            if these.end == steps {
                for (i, sums) in sums[..done].iter().enumerate() {
                    let (minus, scale) = (columns.sums(c + i)[0], columns.scales(c + i)[0] * call.scale);
                    let out = &mut call.out.column(some.first + c + i)[tile.first..][..tile.rows];
                    results::<S>(tile, sums.assume_init_ref(), minus, scale, out);
                }
            }
            let from = ahead.start + each * c;
            ask_for_next(tile.bytes, from..ahead.end.min(from + each * done));
            c += done;
        }
    }
}

/// The part of so many things that the steps `these` of all have.
#[inline(always)]
pub(super) fn share(things: usize, these: &Range<usize>, steps: usize) -> Range<usize> {
    things * these.start / steps..things * these.end / steps
}

/// Asks for some of the lines that a tile's results go to, whose first row is `top`: columns from `first` on have two of them each.
#[inline(always)]
pub(super) fn ask_for_results(call: &mut Call<'_, '_>, first: usize, top: usize, lines: Range<usize>) {
    for line in lines {
        let out = call.out.column(first + line / 2).as_ptr();
        prefetch_write(out.wrapping_add(top + line % 2 * 16).cast());
    }
}

/// Asks for bytes of the tile that lies behind this one, and that may belong to another call.
#[inline(always)]
pub(super) fn ask_for_next(tile: &[u8], bytes: Range<usize>) {
    for at in bytes.step_by(64) {
        prefetch_far(tile.as_ptr().wrapping_add(tile.len() + at));
    }
}

/// Columns of a group where `left` are left: some have up to three too many.
#[inline(always)]
fn at_once<S: Bytes>(left: usize) -> usize {
    match (S::REGISTERS, left) {
        (32, 12..) => 12,
        (32, 8..) => 8,
        // Fewer than 4 would wait for their own sums.
        (32, _) | (_, 4..) => 4,
        (_, 2..) => 2,
        _ => 1,
    }
}

/// Sums of a column and a tile become results: minus the sum of the column's values, since codes are one more than weights.
///
/// # Safety
/// `S` is enabled.
#[inline(always)]
unsafe fn results<S: Bytes>(tile: &Tile<'_>, sums: &[Line; 2], minus: i32, scale: f32, out: &mut [f32]) {
    for (r, out) in out.chunks_mut(16).enumerate() {
        // SAFETY: by the caller; loads are of 16 values each, and what is stored are all of `out`.
        unsafe {
            let sum = S::to_f32(S::sub_i32(S::load_v(sums[r].0.as_ptr()), S::splat_i32(minus)));
            let d = S::load(tile.d[16 * r..][..16].as_ptr());
            S::store_n(out.as_mut_ptr(), out.len(), S::mul(S::fma(sum, d, S::zero()), S::splat(scale)));
        }
    }
}

/// The first `C` columns of some, `R` vectors of 16 rows at a time.
///
/// # Safety
/// As for [`pass`].
#[inline(always)]
unsafe fn group<S: Bytes, const C: usize, const R: usize>(
    codes: &[[Line; 2]],
    q: &[*const i8],
    at: usize,
    sums: &mut [MaybeUninit<[Line; 2]>],
) {
    let mut columns = [std::ptr::null::<i8>(); C];
    for (to, q) in columns.iter_mut().zip(&q[..C]) {
        *to = q.wrapping_add(at);
    }
    let sums = sums[..C].as_mut_ptr().cast::<u8>();
    // Where sums are so far, and how far apart those of columns are.
    let zeros = [Line([0; 64]); 2];
    let (so_far, apart) = if at > 0 { (sums.cast_const(), 128) } else { (zeros.as_ptr().cast(), 0) };
    for top in (0..2).step_by(R) {
        // SAFETY: by the caller; every column has two lines of sums.
        unsafe {
            let so_far = (so_far.add(64 * top), apart);
            sum_up::<S, C, R>(so_far, sums.add(64 * top), codes, top, columns);
        }
    }
}

/// Adds codes * q for the vectors of rows from `top` on to sums, which are two lines for each column.
#[inline(always)]
unsafe fn sum_up<S: Bytes, const C: usize, const R: usize>(
    (so_far, apart): (*const u8, usize),
    sums: *mut u8,
    codes: &[[Line; 2]],
    top: usize,
    mut q: [*const i8; C],
) {
    // Of more at once in 16 registers the compiler would keep sums in memory.
    let group = if S::REGISTERS == 32 { 4 } else { 2 };
    // SAFETY: the caller's promises, passed on; a step is a multiple of `CARRY` lines.
    unsafe {
        let mut local = [[S::sums_from(S::zero_v()); R]; C];
        for c in 0..C {
            for r in 0..R {
                local[c][r] = S::sums_from(S::load_v(so_far.add(c * apart + 64 * r)));
            }
        }
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
                S::store_v(sums.add(c * 128 + 64 * r), S::sums_lanes(local[c][r]));
            }
        }
    }
}
