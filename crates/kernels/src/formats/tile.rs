//! Ternary products for many columns: a tile of rows is unpacked once, and every column passes over it.
//!
//! A stretch of a tile, some steps of 256 weights, is unpacked to codes whose order is `[4 weights][line][row][weight]`: a vector
//! holds four weights of 16 rows, the four activations that meet them are the same in every lane, and each lane sums up a row, so that
//! no lanes have to be added together. What a byte of a line holds is a [`Tiling`]: a code ([`Plain`]), or two of them
//! ([`super::residues`]). Codes of a stretch are in the innermost cache for as long as they are needed; sums of earlier stretches wait
//! beside them, as integers. With each stretch a part is asked for of what comes from farther away: the lines that results go to, and
//! the next tile's weights.
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
/// Rows of a tile of AMX and of [`Plain`].
pub(super) const ROWS: usize = 32;
/// Rows that a tile has at most.
const MOST_ROWS: usize = 64;
/// Lines of a stretch's codes: 24 KiB.
const CODES: usize = 6 * 64;
/// Columns that pass over a stretch before the next one is unpacked.
const MOST: usize = 128;
/// Columns that the last group of them may have too many.
const SPARE: usize = 3;

/// What lines of codes hold, and how sums of them become sums of rows.
pub(super) trait Tiling {
    /// Rows of a tile.
    const ROWS: usize;
    /// Lines of codes for four weights of each row, and lines of sums for a column.
    const LINES: usize;
    /// Steps of a stretch.
    const STEPS: usize = CODES / 64 / Self::LINES;
    /// Steps for which sums are exact, a multiple of a stretch's.
    const EXACT: usize;
    /// The lines of a step: for each four weights one behind another. False where codes have no place in them.
    ///
    /// # Safety
    /// As [`Ternary::sixteen`], for each 16 rows of a tile; `to` has room for 64 times [`LINES`](Self::LINES).
    unsafe fn unpack<T: Ternary, S: Bytes>(
        rows: &[[*const u8; 16]],
        at: usize,
        half: bool,
        to: *mut u8,
    ) -> bool;
    /// Columns of a group where `left` are left: some have up to [`SPARE`] too many.
    fn at_once<S: Bytes>(left: usize) -> usize;
    /// Adds codes times the columns, from `at` on, to the sums of a group of that size, or to zero if they are `fresh`.
    ///
    /// # Safety
    /// `S` is enabled; each column has values for all codes, and [`LINES`](Self::LINES) of sums.
    unsafe fn add<S: Bytes>(
        columns: &[*const i8],
        at: usize,
        codes: &[Line],
        fresh: bool,
        sums: &mut [MaybeUninit<Line>],
    );
    /// A column's sums of weights times values for each 16 rows, of which there may be fewer than four; `minus` is the sum of its values.
    ///
    /// # Safety
    /// `S` is enabled.
    unsafe fn sums<S: Bytes>(lines: &[Line], minus: i32) -> [S::V; 4];
}

/// What a tile needs while it is worked on. Nothing of it is cleared: a model with narrow rows has few codes in a call, and clearing
/// took a quarter of its time.
struct Room {
    /// Codes of a stretch.
    codes: [MaybeUninit<Line>; CODES],
    /// What each column's lines have summed up.
    sums: [MaybeUninit<Line>; 3 * (MOST + SPARE)],
    /// The sums of each column that are exact already, where rows have more steps than that.
    totals: [MaybeUninit<[Line; 4]>; MOST],
}

/// Some of the call's rows times all its columns, or false where a row has more than one run, or codes that the tiling has no place for;
/// results are of no meaning then.
///
/// # Safety
/// As for every kernel; `S` is enabled.
#[allow(clippy::large_stack_arrays)] // 83 KiB, gone with the call
#[inline(always)]
pub(super) unsafe fn multiply<W: Tiling, T: Ternary, S: Bytes>(
    call: &mut Call<'_, '_>,
    rows: Range<usize>,
) -> bool {
    let Acts::I8(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    let n = row_bytes::<T>(call.cols);
    let steps = n.div_ceil(T::STEP);
    assert!(steps * 256 <= acts.layout().padded(), "activation length");
    let mut room = Room {
        codes: [const { MaybeUninit::uninit() }; CODES],
        sums: [const { MaybeUninit::uninit() }; 3 * (MOST + SPARE)],
        totals: [const { MaybeUninit::uninit() }; MOST],
    };
    for first in (0..acts.n()).step_by(MOST) {
        let some = Together::new(acts.slice(first, MOST.min(acts.n() - first)), first);
        for (i, bytes) in call.weights[rows.start * n..rows.end * n].chunks(W::ROWS * n).enumerate() {
            // SAFETY: `S` is enabled by the caller; a tile is whole rows.
            let Some(d) = (unsafe { scales::<T, S>(bytes, n) }) else { return false };
            let tile = Tile { first: rows.start + i * W::ROWS, rows: bytes.len() / n, d, bytes };
            let mut starts = [[std::ptr::null(); 16]; MOST_ROWS / 16];
            let starts = &mut starts[..W::ROWS / 16];
            fill_starts(bytes, n, starts);
            for from in (0..steps).step_by(W::STEPS) {
                let these = from..steps.min(from + W::STEPS);
                // SAFETY: as above; the columns have all of the steps, checked above.
                unsafe {
                    if !unpack::<W, T, S>(starts, n, these.clone(), &mut room.codes) {
                        return false;
                    }
                    pass::<W, S>(call, &some, these, steps, &mut room, &tile);
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
    /// The sum of a column's values in some of all steps.
    #[inline(always)]
    fn sum(&self, column: usize, these: Range<usize>, steps: usize) -> i32 {
        if these == (0..steps) {
            return self.columns.sums(column)[0];
        }
        self.columns.sums16(column)[16 * these.start..16 * these.end].iter().map(|&s| i32::from(s)).sum()
    }
}

/// The scale of each row of a tile, or nothing where a row has several.
#[inline(always)]
unsafe fn scales<T: Ternary, S: Bytes>(tile: &[u8], n: usize) -> Option<[f32; MOST_ROWS]> {
    let mut d = [0f32; MOST_ROWS];
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
pub(super) fn starts(tile: &[u8], n: usize) -> [[*const u8; 16]; ROWS / 16] {
    let mut starts = [[tile.as_ptr(); 16]; ROWS / 16];
    fill_starts(tile, n, &mut starts);
    starts
}

#[inline(always)]
fn fill_starts(tile: &[u8], n: usize, starts: &mut [[*const u8; 16]]) {
    let last = tile.len() / n - 1;
    for (i, start) in starts.as_flattened_mut().iter_mut().enumerate() {
        *start = tile[i.min(last) * n..].as_ptr();
    }
}

/// Codes of some steps of a tile's rows, which have `n` bytes. Nobody reads the sums of rows that the tile lacks.
#[inline(always)]
unsafe fn unpack<W: Tiling, T: Ternary, S: Bytes>(
    starts: &[[*const u8; 16]],
    n: usize,
    these: Range<usize>,
    codes: &mut [MaybeUninit<Line>],
) -> bool {
    let mut fit = true;
    for (step, codes) in these.zip(codes.chunks_exact_mut(64 * W::LINES)) {
        let at = step * T::STEP;
        // SAFETY: `S` is enabled by the caller; these are a step of each row, and the lines of a step.
        fit &= unsafe { W::unpack::<T, S>(starts, at, n - at < T::STEP, codes.as_mut_ptr().cast()) };
    }
    fit
}

/// A tile of rows, and where its results go.
struct Tile<'a> {
    /// Rows of the call.
    first: usize,
    rows: usize,
    /// The scale of each.
    d: [f32; MOST_ROWS],
    bytes: &'a [u8],
}

/// Adds what a stretch, the steps `these` of all, has to the sums of columns: as many at once as registers hold sums of. With the last
/// stretch of a tile sums become results.
///
/// # Safety
/// `S` is enabled; each column has values for all codes, the codes are those of the stretch, and sums are those of earlier ones.
#[inline(always)]
unsafe fn pass<W: Tiling, S: Bytes>(
    call: &mut Call<'_, '_>,
    some: &Together<'_>,
    these: Range<usize>,
    steps: usize,
    room: &mut Room,
    tile: &Tile<'_>,
) {
    let (n, at, mut c) = (some.columns.n(), these.start * 256, 0);
    // Lines of a column's results. Where rows have one stretch alone, results are few and near.
    let each = W::ROWS / 16;
    let lines =
        if steps > W::STEPS { share(each * W::at_once::<S>(usize::MAX), &these, steps) } else { 0..0 };
    // Later columns find the next tile where the first ones left it.
    let ahead = if some.first == 0 { share(tile.bytes.len(), &these, steps) } else { 0..0 };
    let part = ahead.len().div_ceil(n);
    // The steps whose sums are exact, of which these are some.
    let whole = these.start / W::EXACT * W::EXACT
        ..steps.min((these.start / W::EXACT).saturating_add(1).saturating_mul(W::EXACT));
    // SAFETY: by the caller; groups have `SPARE` columns too many at most.
    unsafe {
        let codes =
            std::slice::from_raw_parts(room.codes.as_ptr().cast::<Line>(), 64 * W::LINES * these.len());
        while c < n {
            let size = W::at_once::<S>(n - c);
            let done = size.min(n - c);
            ask_for_results(call, some.first + c, tile.first, each, lines.start..lines.end.min(each * done));
            let sums = &mut room.sums[c * W::LINES..][..size * W::LINES];
            W::add::<S>(&some.q[c..c + size], at, codes, these.start == whole.start, sums);
            if these.end == whole.end {
                for (c, sums) in (c..c + done).zip(sums.chunks_exact(W::LINES)) {
                    let lines = std::slice::from_raw_parts(sums.as_ptr().cast::<Line>(), W::LINES);
                    let mut sums = W::sums::<S>(lines, some.sum(c, whole.clone(), steps));
                    if whole.len() < steps {
                        add_up::<S>(&mut sums, &mut room.totals[c], whole.start == 0);
                    }
                    if whole.end == steps {
                        results::<W, S>(call, some, c, tile, sums);
                    }
                }
            }
            let from = ahead.start + part * c;
            ask_for_next(tile.bytes, from..ahead.end.min(from + part * done));
            c += done;
        }
    }
}

/// Adds what there was before, unless these are the first, to sums, and keeps the total.
#[inline(always)]
unsafe fn add_up<S: Bytes>(sums: &mut [S::V; 4], totals: &mut MaybeUninit<[Line; 4]>, first: bool) {
    let totals = totals.as_mut_ptr().cast::<u8>();
    // SAFETY: `S` is enabled by the caller; four lines, which have been written unless these are the first.
    unsafe {
        for r in 0..4 {
            if !first {
                sums[r] = S::add_i32(sums[r], S::load_v(totals.add(64 * r)));
            }
            S::store_v(totals.add(64 * r), sums[r]);
        }
    }
}

/// The part of so many things that the steps `these` of all have.
#[inline(always)]
pub(super) fn share(things: usize, these: &Range<usize>, steps: usize) -> Range<usize> {
    things * these.start / steps..things * these.end / steps
}

/// Asks for some of the lines that a tile's results go to, whose first row is `top`: columns from `first` on have `each` of them.
#[inline(always)]
pub(super) fn ask_for_results(
    call: &mut Call<'_, '_>,
    first: usize,
    top: usize,
    each: usize,
    lines: Range<usize>,
) {
    for line in lines {
        let out = call.out.column(first + line / each).as_ptr();
        prefetch_write(out.wrapping_add(top + line % each * 16).cast());
    }
}

/// Asks for bytes of the tile that lies behind this one, and that may belong to another call.
#[inline(always)]
pub(super) fn ask_for_next(tile: &[u8], bytes: Range<usize>) {
    for at in bytes.step_by(64) {
        prefetch_far(tile.as_ptr().wrapping_add(tile.len() + at));
    }
}

/// Sums of a column and a tile become results.
///
/// # Safety
/// `S` is enabled.
#[inline(always)]
unsafe fn results<W: Tiling, S: Bytes>(
    call: &mut Call<'_, '_>,
    some: &Together<'_>,
    c: usize,
    tile: &Tile<'_>,
    sums: [S::V; 4],
) {
    let scale = some.columns.scales(c)[0] * call.scale;
    let out = &mut call.out.column(some.first + c)[tile.first..][..tile.rows];
    // Not by what `out` has: so many vectors are known, and stay in registers.
    for r in 0..W::ROWS / 16 {
        let rows = out.len().saturating_sub(16 * r).min(16);
        // SAFETY: by the caller; loads are of 16 values each, and what is stored are all of `out`.
        unsafe {
            let d = S::load(tile.d[16 * r..][..16].as_ptr());
            let y = S::mul(S::fma(S::to_f32(sums[r]), d, S::zero()), S::splat(scale));
            S::store_n(out.as_mut_ptr().wrapping_add(16 * r), rows, y);
        }
    }
}

/// A code in each byte.
pub(super) struct Plain;

impl Tiling for Plain {
    const ROWS: usize = ROWS;
    const LINES: usize = 2;
    const EXACT: usize = usize::MAX;

    #[inline(always)]
    unsafe fn unpack<T: Ternary, S: Bytes>(
        rows: &[[*const u8; 16]],
        at: usize,
        half: bool,
        to: *mut u8,
    ) -> bool {
        for (r, rows) in rows.iter().enumerate() {
            // SAFETY: by the caller.
            unsafe { T::sixteen::<S, ()>(rows, at, half, to.add(64 * r), &mut ()) };
        }
        true
    }
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
    #[inline(always)]
    unsafe fn add<S: Bytes>(
        columns: &[*const i8],
        at: usize,
        codes: &[Line],
        fresh: bool,
        sums: &mut [MaybeUninit<Line>],
    ) {
        // SAFETY: by the caller.
        unsafe {
            match columns.len() {
                12 => group::<S, 12, 2, 2>(codes, columns, at, fresh, sums),
                8 => group::<S, 8, 2, 2>(codes, columns, at, fresh, sums),
                4 if S::REGISTERS == 32 => group::<S, 4, 2, 2>(codes, columns, at, fresh, sums),
                4 => group::<S, 4, 1, 2>(codes, columns, at, fresh, sums),
                2 => group::<S, 2, 1, 2>(codes, columns, at, fresh, sums),
                _ => group::<S, 1, 1, 2>(codes, columns, at, fresh, sums),
            }
        }
    }
    /// Codes are one more than weights.
    #[inline(always)]
    unsafe fn sums<S: Bytes>(lines: &[Line], minus: i32) -> [S::V; 4] {
        // SAFETY: by the caller.
        unsafe {
            let minus = S::splat_i32(minus);
            let (a, b) = (S::load_v(lines[0].0.as_ptr()), S::load_v(lines[1].0.as_ptr()));
            [S::sub_i32(a, minus), S::sub_i32(b, minus), minus, minus]
        }
    }
}

/// [`Tiling::add`] for `C` columns and `L` lines, `R` of them at a time.
///
/// # Safety
/// As there; bytes above 3 only where the instruction set is not [`Bytes::SIGNED`].
#[inline(always)]
pub(super) unsafe fn group<S: Bytes, const C: usize, const R: usize, const L: usize>(
    codes: &[Line],
    q: &[*const i8],
    at: usize,
    fresh: bool,
    sums: &mut [MaybeUninit<Line>],
) {
    let mut columns = [std::ptr::null::<i8>(); C];
    for (to, q) in columns.iter_mut().zip(&q[..C]) {
        *to = q.wrapping_add(at);
    }
    let sums = sums[..L * C].as_mut_ptr().cast::<u8>();
    // Where sums are so far, and how far apart those of columns are.
    let zeros = [Line([0; 64]); L];
    let (so_far, apart) = if fresh { (zeros.as_ptr().cast(), 0) } else { (sums.cast_const(), 64 * L) };
    for top in (0..L).step_by(R) {
        // SAFETY: by the caller; every column has `L` lines of sums.
        unsafe {
            let so_far = (so_far.add(64 * top), apart);
            sum_up::<S, C, R, L>(so_far, sums.add(64 * top), codes.as_chunks().0, top, columns);
        }
    }
}

/// Adds codes * q for the lines from `top` on to sums, which are `L` lines for each column.
#[inline(always)]
unsafe fn sum_up<S: Bytes, const C: usize, const R: usize, const L: usize>(
    (so_far, apart): (*const u8, usize),
    sums: *mut u8,
    codes: &[[Line; L]],
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
                S::store_v(sums.add(64 * (L * c + r)), S::sums_lanes(local[c][r]));
            }
        }
    }
}
