//! Weights that are -1, 0 or +1 times a scale: the frame of both ternary modes.
//!
//! **int8 activations.** Codes c = w + 1 are in {0, 1, 2}, so the product is sum(c * q) - sum(q), an exact integer.
//! Neighbouring blocks whose scales have the same bits form a *run*; a run is summed as integers and then
//! enters the result as `acc = fma(sum as f32, scale, acc)`. A row has one run in files of models trained
//! ternary, and may have one a block. At the end the column's scale and the tensor's are multiplied in.
//!
//! Three bodies share that result. Up to three columns, each by itself: a row is one pass over its bytes that hopes for a
//! single run, and goes again by runs where it was wrong. More columns: a tile of rows is unpacked for all of them
//! ([`super::tile`]). Where a row of the tile has several runs: by runs, a row's codes unpacked once for some columns.
//!
//! **Float activations: additions and subtractions only.** f32 values are added to or subtracted from 32 f64
//! lanes (lane e % 32 takes element e), so nothing is lost to cancellation; one multiplication per run applies
//! its scale. Four vectors of lanes let four chains of additions overlap.
//!
//! The code 3, which two bits can spell and no encoder writes, counts as +2 in dequantizing and in the int8
//! product and as 0 in the float product: the same on every instruction set.

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::residues::Joint;
use super::tile::{Plain, Tiling};
use super::{
    AHEAD, Blocks, Column, FloatRow, Int8Row, Quarters, four_of, int8_rows, many_columns_kernels, residues,
    row_bytes, ternary_kernels, tile,
};
use crate::acts::{Acts, Grain, Line};
use crate::format::{Call, Format, Kernel};
use crate::isa::Isa;
use crate::simd::scalar::Scalar;
use crate::simd::{Bytes, Lanes, prefetch};
use std::mem::MaybeUninit;

/// Something else to do while rows are unpacked, a little at a time, for a processor that can do both at once.
pub(crate) trait Beside {
    /// Does the next bit of it.
    ///
    /// # Safety
    /// As the implementation says.
    unsafe fn next(&mut self);
}

/// Nothing else.
impl Beside for () {
    #[inline(always)]
    unsafe fn next(&mut self) {}
}

/// What a ternary format provides; `BLOCK` is 128 or 256.
///
/// Vector code takes a row in *steps* of 256 weights, the grain in which int8 columns are laid out; the last step of a
/// row may be half a one.
pub(crate) trait Ternary: Blocks {
    /// Bytes of a step.
    const STEP: usize = Self::BYTES * 256 / Self::BLOCK;
    /// The bits of a block's scale, a half; 1 where the tensor has the only scale.
    fn scale_bits(block: &[u8]) -> u16;
    /// The codes (0, 1, 2 for -1, 0, +1) of a block in element order, in plain Rust.
    fn codes(block: &[u8], out: &mut [u8]);
    /// The codes of a step in the order of an int8 column ([`Grain::place`]): vector l has elements `32 l ..` and then
    /// `128 + 32 l ..`, the latter of no meaning in half a step.
    ///
    /// # Safety
    /// `S` is enabled; `step` is a step or half a one.
    unsafe fn planes<S: Bytes>(step: &[u8]) -> [S::V; 4];
    /// The codes of a step of 16 rows as [`super::tile`] has them: 64 vectors, 128 bytes apart, of which number `16 l + j`
    /// has values `4 j .. 4 j + 4` of vector l of [`planes`](Self::planes), row by row. Meanwhile `beside` is asked twice.
    ///
    /// # Safety
    /// `S` is enabled; a step, or half a one if `half`, begins `at` bytes behind each pointer; `to` has room for all the vectors;
    /// `beside` may be asked twice.
    unsafe fn sixteen<S: Bytes, B: Beside>(
        rows: &[*const u8; 16],
        at: usize,
        half: bool,
        to: *mut u8,
        beside: &mut B,
    );
    /// Of four times 16 rows, whose steps begin as for [`sixteen`](Self::sixteen), the lines of [`super::residues`]: 64 times three. False
    /// where a code is 3.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn joint<S: Bytes>(rows: &[[*const u8; 16]], at: usize, half: bool, to: *mut u8) -> bool {
        // SAFETY: by the caller.
        unsafe { residues::join_codes::<Self, S>(rows, at, half, to) }
    }
    /// Of four rows of one length: i32 lanes whose total is the sum of code * q over the row, for a column at `q`, or one that was
    /// arranged; and the bits in which scales of its blocks differ from the first one's.
    ///
    /// # Safety
    /// `S` is enabled; rows are whole blocks; the column covers them.
    unsafe fn four<S: Bytes, const ARRANGED: bool>(rows: [&[u8]; 4], q: *const i8) -> ([S::V; 4], [u16; 4]);
    /// Vectors that a step of a column takes where [`four`](Self::four) would rather have it in another order; else none.
    const ARRANGED: usize = 0;
    /// Writes a step in that order.
    ///
    /// # Safety
    /// `S` is enabled; 256 values are readable at `q`, and `to` has room.
    unsafe fn arrange<S: Bytes>(_q: *const i8, _to: *mut u8) {
        unreachable!("a format that takes columns as they are")
    }
}

/// [`Ternary::planes`] where a step is 64 bytes of two bits a code in planes of 32 bytes, 128 weights each.
///
/// # Safety
/// `S` is enabled; `step` has the 64 bytes, or their first 32.
#[inline(always)]
pub(super) unsafe fn two_bit_planes<T: Ternary, S: Bytes, const HIGH_FIRST: bool>(step: &[u8]) -> [S::V; 4] {
    // SAFETY: by the caller.
    unsafe { two_bit_codes::<S, HIGH_FIRST>(two_bit_step::<T, S>(step)) }
}

/// [`Ternary::sixteen`] for the same layout: bytes change places, a quarter of what their codes would be.
///
/// # Safety
/// As [`Ternary::sixteen`].
#[inline(always)]
pub(super) unsafe fn two_bit_sixteen<T: Ternary, S: Bytes, B: Beside, const HIGH_FIRST: bool>(
    rows: &[*const u8; 16],
    at: usize,
    half: bool,
    to: *mut u8,
    beside: &mut B,
) {
    // SAFETY: by the caller.
    unsafe {
        let turned = two_bit_turned::<T, S>(rows, at, half);
        beside.next();
        eight::<S, HIGH_FIRST>(&turned, 0, to);
        beside.next();
        eight::<S, HIGH_FIRST>(&turned, 8, to);
    }
}

/// The bytes of a step of 16 rows: number j has the bytes whose codes are numbers `16 l + j` of [`Ternary::sixteen`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn two_bit_turned<T: Ternary, S: Bytes>(
    rows: &[*const u8; 16],
    at: usize,
    half: bool,
) -> [S::V; 16] {
    let rows = rows.map(|row| row.wrapping_add(at));
    // SAFETY: by the caller. Half a step twice: the columns are zero there.
    unsafe {
        if T::BLOCK < 256 && half {
            S::turn16::<0, 16, 0, 16>(rows)
        } else {
            S::turn16::<0, 16, 32, 48>(rows)
        }
    }
}

/// The codes of eight vectors of [`two_bit_sixteen`], from number `first` on.
///
/// # Safety
/// As [`Ternary::sixteen`].
#[inline(always)]
unsafe fn eight<S: Bytes, const HIGH_FIRST: bool>(turned: &[S::V; 16], first: usize, to: *mut u8) {
    // SAFETY: by the caller.
    unsafe {
        for j in first..first + 8 {
            for (l, codes) in two_bit_codes::<S, HIGH_FIRST>(turned[j]).into_iter().enumerate() {
                S::store_v(to.add((16 * l + j) * 128), codes);
            }
        }
    }
}

/// The four codes of each byte.
///
/// # Safety
/// `S` is enabled.
#[inline(always)]
unsafe fn two_bit_codes<S: Bytes, const HIGH_FIRST: bool>(w: S::V) -> [S::V; 4] {
    // SAFETY: by the caller.
    unsafe {
        let three = S::splat_u8(3);
        let (a, b) = (S::and(w, three), S::and(S::shr16::<2>(w), three));
        let (c, d) = (S::and(S::shr16::<4>(w), three), S::and(S::shr16::<6>(w), three));
        if HIGH_FIRST { [d, c, b, a] } else { [a, b, c, d] }
    }
}

/// # Safety
/// As [`two_bit_planes`].
#[inline(always)]
unsafe fn two_bit_step<T: Ternary, S: Bytes>(step: &[u8]) -> S::V {
    let half = T::BLOCK < 256 && step.len() < 64;
    // SAFETY: by the caller.
    unsafe { if half { S::load_half(step.as_ptr()) } else { S::load_v(step.as_ptr()) } }
}

/// [`Ternary::four`] for the same layout, step by step.
///
/// # Safety
/// As [`Ternary::four`].
#[inline(always)]
pub(super) unsafe fn two_bit_four<T: Ternary, S: Bytes, const HIGH_FIRST: bool>(
    rows: [&[u8]; 4],
    q: *const i8,
) -> ([S::V; 4], [u16; 4]) {
    let n = rows[0].len();
    // SAFETY: by the caller; columns are padded to 256 values.
    unsafe {
        if n == T::STEP {
            let w = four_of!(|r| {
                prefetch(rows[r].as_ptr().wrapping_add(AHEAD));
                two_bit_step::<T, S>(rows[r])
            });
            return (S::planes_one::<HIGH_FIRST>(w, q), [0; 4]);
        }
        let (mut sums, mut differ) = (S::planes_zero(), [0; 4]);
        for (i, at) in (0..n).step_by(T::STEP).enumerate() {
            // Half a step at the end, where a block is half a one.
            let len = if T::BLOCK < 256 { T::STEP.min(n - at) } else { T::STEP };
            let w = four_of!(|r| {
                let step = std::slice::from_raw_parts(rows[r].as_ptr().add(at), len);
                prefetch(step.as_ptr().wrapping_add(AHEAD));
                differ[r] |= T::scale_bits(step) ^ T::scale_bits(rows[r]);
                two_bit_step::<T, S>(step)
            });
            S::planes_add::<HIGH_FIRST>(&mut sums, w, q.add(i * 256));
            if i % 4 == 3 {
                S::planes_carry(&mut sums);
            }
        }
        S::planes_carry(&mut sums);
        (S::planes_sum::<HIGH_FIRST>(sums), differ)
    }
}

/// Whether all blocks of a row have the scale bits of the first.
#[inline(always)]
pub(super) fn is_one_run<T: Ternary>(row: &[u8]) -> bool {
    let first = T::scale_bits(&row[..T::BYTES]);
    row.chunks_exact(T::BYTES).fold(0, |differ, block| differ | (T::scale_bits(block) ^ first)) == 0
}

/// Blocks at the start of `row` whose scale has the bits of the first one's.
#[inline(always)]
fn run_of<T: Ternary>(row: &[u8]) -> (u16, usize) {
    let bits = T::scale_bits(&row[..T::BYTES]);
    (bits, row.chunks_exact(T::BYTES).take_while(|block| T::scale_bits(block) == bits).count())
}

impl<T: Ternary> Int8Row for T {
    const GRAIN: Grain = Grain::Column;

    fn scalar(row: &[u8], scale: f32, x: Column<'_>) -> f32 {
        let mut codes = [0u8; 256];
        let codes = &mut codes[..T::BLOCK];
        // SAFETY: the portable implementation is callable anywhere.
        let value = |bits| unsafe { Scalar::f16_to_f32(bits) };
        let (mut acc, mut sum, mut run) = (0f32, 0i32, None);
        for (b, block) in row.chunks_exact(T::BYTES).enumerate() {
            let bits = T::scale_bits(block);
            if let Some(old) = run.filter(|&run| run != bits) {
                acc = (sum as f32).mul_add(value(old), acc);
                sum = 0;
            }
            run = Some(bits);
            T::codes(block, codes);
            for (e, &code) in codes.iter().enumerate() {
                sum += (i32::from(code) - 1) * i32::from(x.q[Grain::Column.place(b * T::BLOCK + e)]);
            }
        }
        acc = (sum as f32).mul_add(value(run.unwrap_or(0)), acc);
        acc * (x.scales[0] * scale)
    }

    #[inline(always)]
    unsafe fn simd<S: Bytes, const N: usize>(row: &[u8], scale: f32, x: &[Column<'_>; N]) -> [f32; N] {
        let blocks = row.len() / T::BYTES;
        let mut acc = [0f32; N];
        let mut from = 0;
        while from < blocks {
            let (bits, len) = run_of::<T>(&row[from * T::BYTES..]);
            let run = &row[from * T::BYTES..][..len * T::BYTES];
            let at = from * T::BLOCK;
            // SAFETY: `S` is enabled and the columns cover the row, by the caller.
            let (d, sums) = unsafe { (S::f16_to_f32(bits), run_sums::<T, S, N>(run, x, at)) };
            for c in 0..N {
                let q = if len == blocks {
                    x[c].sums[0]
                } else {
                    // Blocks with scales of their own are whole steps.
                    x[c].sums16[at / 16..][..len * T::BLOCK / 16].iter().map(|&s| i32::from(s)).sum()
                };
                acc[c] = ((sums[c] - q) as f32).mul_add(d, acc[c]);
            }
            from += len;
        }
        for (acc, x) in acc.iter_mut().zip(x) {
            *acc *= x.scales[0] * scale;
        }
        acc
    }
}

/// Sum of code * q over the blocks of a run, which begins at element `at`, a multiple of 256.
#[inline(always)]
unsafe fn run_sums<T: Ternary, S: Bytes, const N: usize>(
    run: &[u8],
    x: &[Column<'_>; N],
    at: usize,
) -> [i32; N] {
    for x in x {
        assert!(x.q.len() >= at + run.len().div_ceil(T::STEP) * 256, "activation length");
    }
    // SAFETY: `S` is enabled by the caller; each load of q is inside the column, just checked.
    unsafe {
        let mut lanes = [S::zero_v(); N];
        for (i, step) in run.chunks(T::STEP).enumerate() {
            prefetch(step.as_ptr().wrapping_add(AHEAD));
            let codes = T::planes::<S>(step);
            for c in 0..N {
                for l in 0..4 {
                    let q = S::load_v(x[c].q.as_ptr().add(at + i * 256 + 64 * l).cast());
                    lanes[c] = S::dot_u8(lanes[c], codes[l], q);
                }
            }
        }
        let mut sums = [0; N];
        for c in 0..N {
            sums[c] = S::sum_i32(lanes[c]);
        }
        sums
    }
}

/// Column `c` times all rows of the call.
#[inline(always)]
unsafe fn one_column<T: Ternary, S: Bytes>(call: &mut Call<'_, '_>, c: usize) {
    let n = row_bytes::<T>(call.cols);
    let Acts::I8(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    let q = acts.q(c);
    // SAFETY: the caller's promises, passed on. A column is as long as its steps.
    unsafe {
        // A length that the compiler knows makes rows of a single step much shorter.
        if n == T::STEP {
            return by_four::<T, S, false>(call, c, T::STEP, q.as_ptr());
        }
        if T::ARRANGED > 0 && !S::SIGNED && q.len() / 256 * T::ARRANGED <= ROOM && call.out.rows() >= WORTH {
            let mut lines = [const { MaybeUninit::<Line>::uninit() }; ROOM];
            for (q, to) in q.chunks_exact(256).zip(lines.chunks_exact_mut(T::ARRANGED)) {
                T::arrange::<S>(q.as_ptr(), to.as_mut_ptr().cast());
            }
            return by_four::<T, S, true>(call, c, n, lines.as_ptr().cast());
        }
        by_four::<T, S, false>(call, c, n, q.as_ptr());
    }
}

/// Vectors of a column that are arranged, on the stack; and rows for which it pays.
const ROOM: usize = 160;
const WORTH: usize = 32;

/// Column `c`, which is at `q`, times all rows of the call, `n` bytes each, four at a time.
#[inline(always)]
unsafe fn by_four<T: Ternary, S: Bytes, const ARRANGED: bool>(
    call: &mut Call<'_, '_>,
    c: usize,
    n: usize,
    q: *const i8,
) {
    let Acts::I8(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    let x = Column::of(&acts, c);
    assert!(x.q.len() >= call.cols.next_multiple_of(256), "activation length");
    let (scale, out) = (x.scales[0] * call.scale, call.out.column(c));
    assert!(call.weights.len() >= out.len() * n, "weights");
    let quarters = Quarters::new(out.len(), n);
    // SAFETY: `S` is enabled by the caller; rows are inside the weights and the column covers them, just checked.
    unsafe {
        quarters.begin(call.weights, n);
        for i in 0..quarters.groups() {
            let at = quarters.rows(i);
            let rows = four_of!(|r| std::slice::from_raw_parts(call.weights.as_ptr().add(at[r] * n), n));
            let (lanes, differ) = T::four::<S, ARRANGED>(rows, q);
            let d = four_of!(|r| T::scale_bits(rows[r]));
            // A lane of a single step has at most 16 codes up to 3 (with AVX2 32), or 20 up to 2, times q: 12,192.
            let mut four = if n == T::STEP {
                S::scaled_sums4::<true>(lanes, x.sums[0], d, scale)
            } else {
                S::scaled_sums4::<false>(lanes, x.sums[0], d, scale)
            };
            if differ != [0; 4] {
                for r in 0..4 {
                    [four[r]] = T::simd::<S, 1>(rows[r], call.scale, &[x]);
                }
            }
            quarters.store(i, four, out);
        }
    }
}

/// The entry point of all vector code for int8 columns.
#[inline(always)]
pub(super) unsafe fn ternary_rows<T: Ternary, S: Bytes>(call: &mut Call<'_, '_>) {
    // SAFETY: the caller's promises, passed on.
    unsafe {
        match call.acts.n() {
            // Each column for itself is faster than rows that are unpacked once for two or three.
            n if n < tile::COLUMNS => {
                // Not a closure: one that is not inlined is compiled without the instruction set.
                for c in 0..n {
                    one_column::<T, S>(call, c);
                }
            }
            // A call of its own: a frame with room for tiles costs a single column of a small matrix a tenth of its time.
            _ => many_columns_kernels::<T>()[S::ISA as usize](call),
        }
    }
}

/// The entry point for so many columns that a tile pays.
#[inline(always)]
pub(super) unsafe fn many_columns<T: Ternary, S: Bytes>(call: &mut Call<'_, '_>) {
    let rows = call.out.rows();
    // Bytes of a tile that is not full are multiplied like others: up to half of one is better plain.
    let joint = if S::SIGNED || call.acts.n() < residues::COLUMNS {
        0
    } else {
        (rows + Plain::ROWS - 1) / Joint::ROWS * Joint::ROWS
    };
    let joint = joint.min(rows);
    // SAFETY: the caller's promises, passed on.
    unsafe {
        let ok = (joint == 0 || tile::multiply::<Joint, T, S>(call, 0..joint))
            && (joint == rows || tile::multiply::<Plain, T, S>(call, joint..rows));
        if !(ok || joint > 0 && tile::multiply::<Plain, T, S>(call, 0..rows)) {
            int8_rows::<T, S>(call);
        }
    }
}

/// The vector kernels, and that of AMX: its tiles for enough columns, else what AVX-512 does.
const fn with_tiles<T: Ternary>() -> [Kernel; Isa::ALL.len()] {
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    let mut kernels = ternary_kernels::<T>();
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        #[inline(never)]
        unsafe fn tiles<T: Ternary>(call: &mut Call<'_, '_>) -> bool {
            // SAFETY: the features are enabled here; the rest is the caller's promise.
            unsafe { amx::multiply::<T>(call) }
        }
        unsafe fn amx<T: Ternary>(call: &mut Call<'_, '_>) {
            // SAFETY: the caller's promises, passed on.
            unsafe {
                if call.acts.n() < super::TILES_FROM || !tiles::<T>(call) {
                    ternary_kernels::<T>()[Isa::Avx512 as usize](call);
                }
            }
        }
        kernels[Isa::Amx as usize] = amx::<T>;
    }
    kernels
}

impl Format {
    /// A ternary format.
    pub(super) const fn ternary<T: Ternary + FloatRow>() -> Format {
        Format { ternary: true, int8: Some(with_tiles::<T>()), ..Format::quantized::<T>() }
    }
}

/// The float dot product, one body for plain Rust and for vectors. `masks(step)` has, for each run of 32 elements of a
/// step, a bit for each that is +1, and for each that is -1.
#[inline(always)]
unsafe fn float_row<T: Ternary, L: Lanes, const N: usize>(
    row: &[u8],
    scale: f32,
    x: &[&[f32]; N],
    masks: impl Fn(&[u8]) -> [(u32, u32); 8],
) -> [f32; N] {
    let mut total = [0f64; N];
    // SAFETY: `L` is enabled by the caller; each load of 8 values is inside a slice of 8.
    unsafe {
        let mut lanes = [[L::zero_d(); 4]; N];
        let mut run = None;
        for (b, step) in row.chunks(T::STEP).enumerate() {
            // Blocks with scales of their own are whole steps.
            let bits = T::scale_bits(step);
            if let Some(old) = run.filter(|&run| run != bits) {
                for c in 0..N {
                    total[c] += f64::from(L::f16_to_f32(old)) * fold_lanes::<L>(lanes[c]);
                    lanes[c] = [L::zero_d(); 4];
                }
            }
            run = Some(bits);
            let masks = masks(step);
            let runs = step.len() / T::BYTES * T::BLOCK / 32;
            for (k, &(plus, minus)) in masks[..runs].iter().enumerate() {
                for c in 0..N {
                    let x = &x[c][b * 256 + k * 32..][..32];
                    for (e, x) in x.chunks_exact(8).enumerate() {
                        let (plus, minus) = (plus >> (8 * e), minus >> (8 * e));
                        lanes[c][e] = L::add_sub(lanes[c][e], x.as_ptr(), plus as u8, minus as u8);
                    }
                }
            }
        }
        let d = f64::from(L::f16_to_f32(run.unwrap_or(0)));
        let mut out = [0f32; N];
        for c in 0..N {
            out[c] = ((total[c] + d * fold_lanes::<L>(lanes[c])) * f64::from(scale)) as f32;
        }
        out
    }
}

/// The sum of 32 f64 lanes, in one order everywhere.
#[inline(always)]
unsafe fn fold_lanes<L: Lanes>([a, b, c, d]: [L::D; 4]) -> f64 {
    // SAFETY: `L` is enabled by the caller.
    unsafe { (L::reduce_add_d(a) + L::reduce_add_d(b)) + (L::reduce_add_d(c) + L::reduce_add_d(d)) }
}

/// Implements [`FloatRow`] for a ternary format (a blanket impl would collide with the dequantizing one).
macro_rules! ternary_float {
    ($t:ty) => {
        impl $crate::formats::FloatRow for $t {
            #[inline(always)]
            unsafe fn float<S: $crate::simd::Bytes, const N: usize>(
                row: &[u8],
                scale: f32,
                x: &[&[f32]; N],
            ) -> [f32; N] {
                // SAFETY: the caller's promises, passed on.
                unsafe { $crate::formats::ternary::float_simd::<$t, S, N>(row, scale, x) }
            }
            fn float_scalar(row: &[u8], scale: f32, x: &[f32]) -> f32 {
                $crate::formats::ternary::float_scalar::<$t>(row, scale, x)
            }
        }
    };
}
pub(crate) use ternary_float;

#[inline(always)]
pub(crate) unsafe fn float_simd<T: Ternary, S: Bytes, const N: usize>(
    row: &[u8],
    scale: f32,
    x: &[&[f32]; N],
) -> [f32; N] {
    // SAFETY: the caller's promises, passed on.
    unsafe {
        float_row::<T, S, N>(row, scale, x, |step| {
            let mut masks = [(0, 0); 8];
            for (l, codes) in T::planes::<S>(step).into_iter().enumerate() {
                let plus = S::eq_mask(codes, S::splat_u8(2));
                let minus = S::eq_mask(codes, S::zero_v());
                masks[l] = (plus as u32, minus as u32);
                masks[4 + l] = ((plus >> 32) as u32, (minus >> 32) as u32);
            }
            masks
        })
    }
}

pub(crate) fn float_scalar<T: Ternary>(row: &[u8], scale: f32, x: &[f32]) -> f32 {
    let masks = |step: &[u8]| {
        let mut codes = [0u8; 256];
        for (block, codes) in step.chunks_exact(T::BYTES).zip(codes.chunks_exact_mut(T::BLOCK)) {
            T::codes(block, codes);
        }
        let mask = |run: &[u8], code| (0..32).fold(0, |m, i| m | u32::from(run[i] == code) << i);
        std::array::from_fn(|k| (mask(&codes[k * 32..], 2), mask(&codes[k * 32..], 0)))
    };
    // SAFETY: the portable implementation is callable anywhere.
    let [y] = unsafe { float_row::<T, Scalar, 1>(row, scale, &[x], masks) };
    y
}

/// Scale and codes of weights that share one scale: the largest magnitude, and each weight rounded to the
/// nearest of -1, 0 and +1 of it. Exact for weights that already are -d, 0 or d, which is what ternary models
/// have; other weights deserve a better choice than a reference needs.
///
/// Calls `code(i, 0 | 1 | 2)` for every weight and returns the scale.
pub(crate) fn ternarize(src: &[f32], mut code: impl FnMut(usize, u8)) -> f32 {
    let max = src.iter().fold(0f32, |m, x| m.max(x.abs()));
    for (i, &x) in src.iter().enumerate() {
        let c = if 2.0 * x.abs() < max || max == 0.0 {
            1
        } else if x > 0.0 {
            2
        } else {
            0
        };
        code(i, c);
    }
    max
}
