//! Weights that are small integers times scales: the int8 product of all formats that are not ternary, except those of [`super::blocks64`].
//!
//! A *run* is a block of 32 weights, or a super-block of 256: what shares one scale of the activations. Inside a run everything is an
//! exact integer.
//!
//! **Order of the product.**
//!
//! ```text
//! for each run b of a section, s the activation scale of its values:
//!     sum = exact integer: scale * code * q over its weights     (codes are signed; blocks of 32 have no inner scale)
//!     acc[b % 16] = fma(sum, d * s, acc[b % 16])
//!     with minima, min an exact integer that the format defines:
//!     acc[b % 16] = fma(min, m * s, acc[b % 16])
//! at the end of each section, which is 4096 weights: result = result + fold(acc)
//! ```
//!
//! So one column takes sixteen runs in a vector, be they of one row or of four, many columns take a run of sixteen rows in one
//! ([`super::scaled_tile`]), and both get the same bits.

use super::{Blocks, Column, Quarters, f16_at, fold, four_of, row_bytes, scaled_tile, scaled_tiles_kernels};
use crate::acts::{Acts, Grain};
use crate::format::{Call, Format};
use crate::formats::FloatRow;
use crate::simd::Bytes;

/// Weights after which lanes are added up.
pub(super) const SECTION: usize = 4096;

/// What the int8 product needs of a format. A block is a run.
pub(crate) trait Scaled: Blocks {
    /// How activations are grouped: a group is a run.
    const GRAIN: Grain;
    /// The largest code of a vector: 15, 31, 63 or 255.
    const TOP: u8;
    /// What codes of vectors are larger by than signed ones, the same for all weights of a run in blocks of 32.
    const OFFSET: u8;
    /// Sub-blocks of a run that have a scale of their own: 1, 8 or 16.
    const SUBS: usize;
    /// Where a block has `d`, an f16.
    const D_AT: usize;
    /// Where it has `m`, an f16, if there are minima.
    const M_AT: Option<usize>;
    /// What `m` in the file is multiplied by: 1 or -1.
    const M_SIGN: f32;

    /// The integers `sum` and `min` of run `b`, in plain Rust.
    fn integers(block: &[u8], x: Column<'_>, b: usize) -> (i32, i32);

    /// The folded lanes of a section of four rows: `runs` from number `from` on. Rows are read one after the other: four streams at once
    /// would be twice as slow from memory.
    ///
    /// # Safety
    /// `S` is enabled; the runs are readable in each row, and the column covers them.
    unsafe fn section<S: Bytes>(rows: [*const u8; 4], from: usize, runs: usize, x: Column<'_>) -> [f32; 4];

    /// Codes of some runs of 16 rows, each vector having four weights of every row, row by row; vectors are `apart` bytes apart in
    /// `to`. Returns how many runs that were, of at most `runs`.
    ///
    /// # Safety
    /// `S` is enabled; `runs >= 1` blocks are readable at every pointer; `to` has room for those, and for two runs of 32.
    unsafe fn turn<S: Bytes>(rows: &[*const u8; 16], runs: usize, to: *mut u8, apart: usize) -> usize;

    /// Of a run with sub-blocks, for 16 rows: two 16-bit numbers a row in each vector. The first eight vectors have the scales of every 16
    /// weights, the next eight what meets the sums of 16: the minima, or scales again where there is an offset.
    ///
    /// # Safety
    /// `S` is enabled; a block is readable at every pointer.
    unsafe fn heads<S: Bytes>(_rows: &[*const u8; 16]) -> [S::V; 16] {
        unreachable!("blocks of 32 have no sub-blocks")
    }
}

/// A column from some run on.
#[derive(Clone, Copy)]
pub(crate) struct At {
    /// int8 values.
    pub q: *const i8,
    /// Sums of 16 of them.
    pub sums16: *const i16,
    /// Sums of a run.
    pub sums: *const i32,
}

impl At {
    /// The column from run `b` on, for runs of `run` weights.
    #[inline(always)]
    pub(super) fn run(self, b: usize, run: usize) -> Self {
        Self {
            q: self.q.wrapping_add(b * run),
            sums16: self.sums16.wrapping_add(b * run / 16),
            sums: self.sums.wrapping_add(b),
        }
    }
    #[inline(always)]
    pub(super) fn start(x: Column<'_>) -> Self {
        Self { q: x.q.as_ptr(), sums16: x.sums16.as_ptr(), sums: x.sums.as_ptr() }
    }
}

/// Whether `S` multiplies codes up to `top` as signed ones.
pub(super) const fn is_signed<S: Bytes>(top: u8) -> bool {
    top == 255 && S::SIGNED
}

/// What codes are too large by where `S` multiplies them.
pub(super) const fn offset<T: Scaled, S: Bytes>() -> i32 {
    if is_signed::<S>(T::TOP) { 0 } else { T::OFFSET as i32 }
}

/// The portable kernel.
pub(super) fn scaled_scalar<T: Scaled>(call: &mut Call<'_, '_>) {
    let Acts::I8(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    for (r, row) in call.weights.chunks_exact(row_bytes::<T>(call.cols)).enumerate() {
        for c in 0..acts.n() {
            call.out.set(c, r, scalar_row::<T>(row, Column::of(&acts, c)));
        }
    }
}

fn scalar_row<T: Scaled>(row: &[u8], x: Column<'_>) -> f32 {
    let per = SECTION / T::BLOCK;
    let mut result = 0f32;
    for (section, blocks) in row.chunks(per * T::BYTES).enumerate() {
        let mut acc = [0f32; 16];
        for (i, block) in blocks.chunks_exact(T::BYTES).enumerate() {
            let b = section * per + i;
            let ((sum, min), s, acc) = (T::integers(block, x, b), x.scales[b], &mut acc[i % 16]);
            *acc = (sum as f32).mul_add(f16_at(block, T::D_AT) * s, *acc);
            if let Some(at) = T::M_AT {
                *acc = (min as f32).mul_add(f16_at(block, at) * T::M_SIGN * s, *acc);
            }
        }
        result += fold(acc);
    }
    result
}

/// The entry point of all vector code.
///
/// # Safety
/// As for every kernel; `S` is enabled.
#[inline(always)]
pub(super) unsafe fn scaled_rows<T: Scaled, S: Bytes>(call: &mut Call<'_, '_>) {
    // SAFETY: the caller's promises, passed on.
    unsafe {
        match call.acts.n() {
            n if n < scaled_tile::COLUMNS => {
                for c in 0..n {
                    one_column::<T, S>(call, c);
                }
            }
            // A call of its own: only tiles take room on the stack.
            _ => scaled_tiles_kernels::<T>()[S::ISA as usize](call),
        }
    }
}

/// Column `c` times all rows of the call, four rows at a time.
#[inline(always)]
unsafe fn one_column<T: Scaled, S: Bytes>(call: &mut Call<'_, '_>, c: usize) {
    let Acts::I8(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    let (n, x, out) = (row_bytes::<T>(call.cols), Column::of(&acts, c), call.out.column(c));
    let quarters = Quarters::new(out.len(), n);
    quarters.begin(call.weights, n);
    for i in 0..quarters.groups() {
        // SAFETY: passed on.
        let y = unsafe { four_rows::<T, S>(call.weights, n, quarters.rows(i), x) };
        quarters.store(i, y, out);
    }
}

/// The rows `at`, of `n` bytes each, times a column.
///
/// # Safety
/// As [`scaled_rows`].
#[inline(always)]
unsafe fn four_rows<T: Scaled, S: Bytes>(
    weights: &[u8],
    n: usize,
    at: [usize; 4],
    x: Column<'_>,
) -> [f32; 4] {
    let (runs, per) = (n / T::BYTES, SECTION / T::BLOCK);
    let rows = four_of!(|r| weights[at[r] * n..][..n].as_ptr());
    let mut y = [0f32; 4];
    for from in (0..runs).step_by(per) {
        // SAFETY: `S` is enabled by the caller; the runs are inside each row, and the column covers them.
        let sums = unsafe { T::section::<S>(rows, from, (runs - from).min(per), x) };
        for (y, sum) in y.iter_mut().zip(sums) {
            *y += sum;
        }
    }
    y
}

impl Format {
    /// A format whose int8 product is that of this module.
    pub(super) const fn scaled<T: Scaled + FloatRow>() -> Format {
        Format { grain: Some(T::GRAIN), int8: Some(super::scaled_kernels::<T>()), ..Format::floating::<T>() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::{Acts, BoundKernel, FORMATS, I8Cols, Isa, Layout, Line, Mode, Ops, Out, Weights};

    /// All scales, minima, codes and activations at their limits at once, for one column and for a tile: the sums that the formats' texts
    /// bound.
    #[test]
    fn limits_do_not_overflow() {
        for &format in FORMATS.iter().filter(|f| f.grain.is_some() && !f.ternary) {
            for fill in [0x00, 0x7f, 0x80, 0xff] {
                let (cols, one) = (512, half::f16::ONE.to_le_bytes());
                let mut bytes = vec![fill; format.tensor_bytes(1, cols).unwrap()];
                for block in bytes.chunks_exact_mut(format.block_bytes) {
                    if format.name == "Q6_K" {
                        block[208..].copy_from_slice(&one);
                    } else {
                        block[..2].copy_from_slice(&one);
                        block[2..4].copy_from_slice(&one);
                    }
                }
                let weights = Weights::new(format, &bytes, 1, cols).unwrap();
                let mut w = vec![0f32; cols];
                weights.dequantize_row(0, &mut w);
                for x in [127.0, -127.0] {
                    let expected: f64 = w.iter().map(|w| f64::from(*w) * f64::from(x)).sum();
                    let size = 63.0 * 128.0 * 127.0 * cols as f64;
                    for isa in Isa::available() {
                        let kernel = BoundKernel::new(format, Mode::Int8, isa).unwrap();
                        let layout = Layout { cols, grain: kernel.grain().unwrap() };
                        let record = layout.record_bytes() / 64;
                        let mut lines = vec![Line([0; 64]); 5 * record];
                        for lines in lines.chunks_mut(record) {
                            Ops::new(isa).unwrap().quantize(&vec![x; cols], layout, lines);
                        }
                        for n in [1, 5] {
                            let mut y = [0f32; 5];
                            let acts = Acts::I8(I8Cols::new(&lines, layout, n));
                            kernel.run(&weights, &acts, Out::new(&mut y, 1, 0, 1, n));
                            for y in &y[..n] {
                                let error = (f64::from(*y) - expected).abs();
                                assert!(error <= size * 1e-6, "{kernel:?} {fill:#x} {x}: {y} for {expected}");
                            }
                        }
                    }
                }
            }
        }
    }
}
