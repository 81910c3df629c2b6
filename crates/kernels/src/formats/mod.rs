//! The registry, and the frame that every format fills in.
//!
//! A format is one file: a drawing of its block, a unit struct implementing [`Blocks`] (layout, dequantize,
//! quantize) and [`Int8Row`] (a scalar dot product and one written over [`Bytes`]), and its `FORMAT` static.
//! The loops over rows and columns, and the entry points per instruction set, are here, once.

use crate::acts::{Acts, Grain, I8Cols};
use crate::format::{Call, Format, Kernel};
use crate::isa::Isa;
use crate::simd::scalar::Scalar;
use crate::simd::{Bytes, prefetch_all};
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};

#[cfg(target_arch = "x86_64")]
mod amx;
mod bf16;
mod blocks32;
mod blocks64;
mod dense;
mod f16;
mod f32;
mod float;
mod i2_s;
mod k_head;
mod q1_0;
mod q2_0;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod residues;
mod scaled;
mod scaled_tile;
mod superblocks;
mod ternary;
mod tile;
mod tq1_0;
mod tq2_0;

/// Every format with kernels, in the order of their GGUF numbers.
pub static FORMATS: &[&Format] = &[
    &f32::FORMAT,
    &f16::FORMAT,
    &q4_0::FORMAT,
    &q4_1::FORMAT,
    &q5_0::FORMAT,
    &q5_1::FORMAT,
    &q8_0::FORMAT,
    &q4_k::FORMAT,
    &q5_k::FORMAT,
    &q6_k::FORMAT,
    &bf16::FORMAT,
    &tq1_0::FORMAT,
    &tq2_0::FORMAT,
    &i2_s::FORMAT,
    &q1_0::FORMAT,
    &q2_0::FORMAT,
    &q2_0::FORMAT_G128,
];

/// Columns from which on AMX pays. With two the tiles win only where rows are long.
pub(crate) const TILES_FROM: usize = 3;

/// How far ahead of the weights in use memory is asked for theirs, in bytes.
const AHEAD: usize = 2048;

/// An array of what an expression is for 0, 1, 2 and 3. Neither a closure nor a loop that the compiler might keep as one: values stay in registers.
macro_rules! four_of {
    (|$r:ident| $each:expr) => {{
        let a = {
            let $r = 0usize;
            $each
        };
        let b = {
            let $r = 1usize;
            $each
        };
        let c = {
            let $r = 2usize;
            $each
        };
        let d = {
            let $r = 3usize;
            $each
        };
        [a, b, c, d]
    }};
}
use four_of;

/// Which rows of a call with one column are taken together: four, each from another quarter of the rows. So memory is read in four streams,
/// each of which a processor's prefetchers follow on their own up to the end of its page. Rows of a line or so are taken as they come:
/// their results are stored as one vector. Where a quarter is not whole, its last row is taken again.
#[derive(Clone, Copy)]
pub(crate) struct Quarters {
    rows: usize,
    /// Rows from one of a group to the next.
    apart: usize,
    /// Groups of four different rows.
    whole: usize,
}

impl Quarters {
    #[inline(always)]
    pub fn new(rows: usize, row_bytes: usize) -> Self {
        if row_bytes < 128 {
            return Self { rows, apart: 1, whole: rows / 4 };
        }
        let apart = rows.div_ceil(4);
        // Streams that are at the same place of their pages at once are slower: by a quarter on Zen 3, and in huge pages by
        // 7 % on Sapphire Rapids, where nearly the same is as bad. Then quarters are a row longer, or two.
        let near = if apart * row_bytes >= FAR { 512 } else { 1 };
        let from_page = |apart: usize| {
            let place = apart * row_bytes % 4096;
            place.min(4096 - place)
        };
        let apart = match [0, 1, 2].map(|more| from_page(apart + more)) {
            [now, ..] if rows < ALIKE || now >= near => apart,
            [_, one, two] => apart + 1 + usize::from(one < near && one < two),
        };
        Self { rows, apart, whole: if apart == 1 { rows / 4 } else { rows.saturating_sub(3 * apart) } }
    }
    /// How many groups there are.
    #[inline(always)]
    pub fn groups(self) -> usize {
        if self.apart == 1 { self.rows.div_ceil(4) } else { self.apart }
    }
    /// The rows of group `i`.
    #[inline(always)]
    pub fn rows(self, i: usize) -> [usize; 4] {
        let first = if self.apart == 1 { 4 * i } else { i };
        if i < self.whole {
            return four_of!(|r| first + r * self.apart);
        }
        four_of!(|r| (first + r * self.apart).min(self.rows - 1))
    }
    /// Stores the results of group `i`.
    #[inline(always)]
    pub fn store(self, i: usize, y: [f32; 4], out: &mut [f32]) {
        if self.apart == 1 {
            match out[4 * i..].first_chunk_mut() {
                Some(four) => *four = y,
                None => out[4 * i..].copy_from_slice(&y[..self.rows - 4 * i]),
            }
        } else {
            let at = self.rows(i);
            assert!(out.len() == self.rows);
            // SAFETY: `rows` are below their count.
            four_of!(|r| unsafe { *out.get_unchecked_mut(at[r]) = y[r] });
        }
    }
    /// Asks for the beginning of each quarter, for which nobody has asked yet, if the rows have so many bytes that they may come from memory.
    #[inline(always)]
    pub fn begin(self, weights: &[u8], row_bytes: usize) {
        if self.apart * row_bytes >= 4 * AHEAD {
            for at in self.rows(0) {
                let quarter = &weights[at * row_bytes..];
                prefetch_all(&quarter[..quarter.len().min(AHEAD)]);
            }
        }
    }
}

/// Rows from which on up to eight more, computed twice, do not count.
const ALIKE: usize = 256;
/// Bytes of a quarter from which on memory, and not a cache nearby, is what it comes from.
const FAR: usize = 64 << 10;

/// The layout of a format and its two conversions.
pub(crate) trait Blocks: 'static {
    /// GGUF's name.
    const NAME: &'static str;
    /// Weights in a block.
    const BLOCK: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// Whole blocks to f32; `scale` is the tensor's own multiplier (1 where the format has none).
    fn dequantize(blocks: &[u8], scale: f32, out: &mut [f32]);
    /// A whole tensor to its bytes, tail included.
    fn quantize(src: &[f32], dst: &mut [u8]);
}

/// One int8 column, as the scalar kernels see it.
#[derive(Clone, Copy)]
#[allow(dead_code)] // each format uses the fields its correction needs
pub(crate) struct Column<'a> {
    /// Values, padded with zeros to a multiple of 256.
    pub q: &'a [i8],
    /// Sums over 16.
    pub sums16: &'a [i16],
    /// Scale of each group.
    pub scales: &'a [f32],
    /// Sum of each group.
    pub sums: &'a [i32],
}

impl<'a> Column<'a> {
    fn of(acts: &I8Cols<'a>, c: usize) -> Self {
        Self { q: acts.q(c), sums16: acts.sums16(c), scales: acts.scales(c), sums: acts.sums(c) }
    }
}

/// Dot products with int8 activations.
///
/// The scalar and the vector version return the same bits: integer sums are exact, and float steps follow
/// the order that the format's file states.
pub(crate) trait Int8Row: Blocks {
    /// How activations are grouped.
    const GRAIN: Grain;
    /// One row times one column, in plain Rust: the oracle.
    fn scalar(row: &[u8], scale: f32, x: Column<'_>) -> f32;
    /// One row times `N` columns.
    ///
    /// # Safety
    /// `S`'s instruction set is enabled; `row` is whole blocks; the columns have [`Int8Row::GRAIN`] and
    /// cover the row.
    unsafe fn simd<S: Bytes, const N: usize>(row: &[u8], scale: f32, x: &[Column<'_>; N]) -> [f32; N];
}

/// Dot products with f32 activations.
pub(crate) trait FloatRow: Blocks {
    /// One row times `N` columns (each as long as the row).
    ///
    /// # Safety
    /// `S`'s instruction set is enabled and `row` is whole blocks.
    unsafe fn float<S: Bytes, const N: usize>(row: &[u8], scale: f32, x: &[&[f32]; N]) -> [f32; N];
    /// Four rows of one length times one column.
    ///
    /// # Safety
    /// As for `float`.
    #[inline(always)]
    unsafe fn float4<S: Bytes>(rows: [&[u8]; 4], scale: f32, x: &[f32]) -> [f32; 4] {
        let mut y = [0f32; 4];
        // The one call with one column: what is called from several places may not be inlined, and is compiled without the instruction set.
        for (y, row) in y.iter_mut().zip(rows) {
            // SAFETY: by the caller.
            [*y] = unsafe { Self::float::<S, 1>(row, scale, &[x]) };
        }
        y
    }
    /// The same for one column in plain Rust: the oracle.
    fn float_scalar(row: &[u8], scale: f32, x: &[f32]) -> f32;
}

/// Calls `body(first_column)` for groups of 8, 4 and 1 columns.
macro_rules! groups {
    ($n:expr, $c:ident, $N:ident => $body:expr) => {{
        let mut $c = 0;
        while $n - $c >= 8 {
            const $N: usize = 8;
            $body;
            $c += 8;
        }
        if $n - $c >= 4 {
            const $N: usize = 4;
            $body;
            $c += 4;
        }
        while $n - $c >= 1 {
            const $N: usize = 1;
            $body;
            $c += 1;
        }
    }};
}

fn row_bytes<T: Blocks>(cols: usize) -> usize {
    cols / T::BLOCK * T::BYTES
}

fn int8_scalar<T: Int8Row>(call: &mut Call<'_, '_>) {
    let Acts::I8(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    for (r, row) in call.weights.chunks_exact(row_bytes::<T>(call.cols)).enumerate() {
        for c in 0..acts.n() {
            call.out.set(c, r, T::scalar(row, call.scale, Column::of(&acts, c)));
        }
    }
}

#[inline(always)]
unsafe fn int8_rows<T: Int8Row, S: Bytes>(call: &mut Call<'_, '_>) {
    let Acts::I8(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    groups!(acts.n(), c, N => {
        let x: [Column<'_>; N] = std::array::from_fn(|i| Column::of(&acts, c + i));
        for (r, row) in call.weights.chunks_exact(row_bytes::<T>(call.cols)).enumerate() {
            // SAFETY: the instruction set by this function's caller, the rest by `BoundKernel::run`.
            let y = unsafe { T::simd::<S, N>(row, call.scale, &x) };
            for (i, y) in y.into_iter().enumerate() {
                call.out.set(c + i, r, y);
            }
        }
    });
}

fn float_scalar<T: FloatRow>(call: &mut Call<'_, '_>) {
    let Acts::F32(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    for (r, row) in call.weights.chunks_exact(row_bytes::<T>(call.cols)).enumerate() {
        for c in 0..acts.n() {
            call.out.set(c, r, T::float_scalar(row, call.scale, acts.column(c)));
        }
    }
}

#[inline(always)]
unsafe fn float_rows<T: FloatRow, S: Bytes>(call: &mut Call<'_, '_>) {
    let (n, mut c) = (call.acts.n(), 0);
    // SAFETY: passed on.
    unsafe {
        while n - c >= 8 {
            float_columns::<T, S, 8>(call, c);
            c += 8;
        }
        if n - c >= 4 {
            float_columns::<T, S, 4>(call, c);
            c += 4;
        }
        while c < n {
            float_column::<T, S>(call, c);
            c += 1;
        }
    }
}

/// `N` columns from `c` on.
#[inline(always)]
unsafe fn float_columns<T: FloatRow, S: Bytes, const N: usize>(call: &mut Call<'_, '_>, c: usize) {
    let Acts::F32(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    let x: [&[f32]; N] = std::array::from_fn(|i| acts.column(c + i));
    for (r, row) in call.weights.chunks_exact(row_bytes::<T>(call.cols)).enumerate() {
        // SAFETY: the instruction set by this function's caller, the rest by `BoundKernel::run`.
        let y = unsafe { T::float::<S, N>(row, call.scale, &x) };
        for (i, y) in y.into_iter().enumerate() {
            call.out.set(c + i, r, y);
        }
    }
}

/// Column `c`, four rows at a time.
#[inline(always)]
unsafe fn float_column<T: FloatRow, S: Bytes>(call: &mut Call<'_, '_>, c: usize) {
    let Acts::F32(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    let (n, x, out) = (row_bytes::<T>(call.cols), acts.column(c), call.out.column(c));
    let quarters = Quarters::new(out.len(), n);
    quarters.begin(call.weights, n);
    for i in 0..quarters.groups() {
        let at = quarters.rows(i);
        let rows = four_of!(|r| &call.weights[at[r] * n..][..n]);
        // SAFETY: the instruction set by this function's caller, the rest by `BoundKernel::run`.
        let y = unsafe { T::float4::<S>(rows, call.scale, x) };
        quarters.store(i, y, out);
    }
}

/// The entry points of a generic body, by `Isa`. Never inlined, so that room on the stack is taken by the body that uses it alone.
macro_rules! entry_points {
    ($name:ident, $bound:ident, $scalar:ident, $generic:ident) => {
        pub(crate) const fn $name<T: $bound>() -> [Kernel; Isa::ALL.len()] {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                #[inline(never)]
                unsafe fn avx2<T: $bound>(call: &mut Call<'_, '_>) {
                    // SAFETY: the features are enabled here; the rest is the caller's promise.
                    unsafe { $generic::<T, Avx2>(call) }
                }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
                #[inline(never)]
                unsafe fn avx512<T: $bound>(call: &mut Call<'_, '_>) {
                    // SAFETY: the features are enabled here; the rest is the caller's promise.
                    unsafe { $generic::<T, Avx512>(call) }
                }
                [$scalar::<T>, avx2::<T>, avx512::<T>, avx512::<T>]
            }
            // Elsewhere the vector variants are never available; the slots hold the portable kernel.
            #[cfg(not(target_arch = "x86_64"))]
            [$scalar::<T>; Isa::ALL.len()]
        }
    };
}

use scaled::{Scaled, scaled_rows, scaled_scalar};
use scaled_tile::scaled_tiles;
use ternary::{Ternary, many_columns, ternary_rows};
entry_points!(int8_kernels, Int8Row, int8_scalar, int8_rows);
entry_points!(ternary_kernels, Ternary, int8_scalar, ternary_rows);
entry_points!(many_columns_kernels, Ternary, int8_scalar, many_columns);
entry_points!(scaled_kernels, Scaled, scaled_scalar, scaled_rows);
entry_points!(scaled_tiles_kernels, Scaled, scaled_scalar, scaled_tiles);
entry_points!(float_kernels, FloatRow, float_scalar, float_rows);

impl Format {
    /// A format with int8 and float kernels.
    pub(crate) const fn quantized<T: Int8Row + FloatRow>() -> Format {
        Format { grain: Some(T::GRAIN), int8: Some(int8_kernels::<T>()), ..Format::floating::<T>() }
    }
    /// A format with float kernels alone.
    pub(crate) const fn floating<T: FloatRow>() -> Format {
        Format {
            name: T::NAME,
            block: T::BLOCK,
            block_bytes: T::BYTES,
            tail_bytes: 0,
            ternary: false,
            grain: None,
            dequantize: T::dequantize,
            quantize: T::quantize,
            int8: None,
            float: float_kernels::<T>(),
        }
    }
}

/// The f16 scale at byte `at`, as f32.
#[inline(always)]
pub(crate) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_bits(u16::from_le_bytes([bytes[at], bytes[at + 1]])).to_f32_const()
}

/// The fold of 16 lanes that every kernel ends with, for scalar code.
pub(crate) fn fold(lanes: [f32; 16]) -> f32 {
    use crate::simd::Lanes;
    // SAFETY: the portable implementation is callable anywhere.
    unsafe { Scalar::reduce_add(lanes) }
}

#[cfg(test)]
mod tests {
    use super::{FAR, Quarters};

    #[test]
    fn every_row_is_in_a_group_and_streams_differ_in_their_pages() {
        for row_bytes in [66, 132, 528, 660, 1680, 1782, 2100, 4096] {
            for rows in (0..300).chain([400, 499, 588, 624, 2048, 4096]) {
                let quarters = Quarters::new(rows, row_bytes);
                let mut seen = vec![false; rows];
                for i in 0..quarters.groups() {
                    let group = quarters.rows(i);
                    assert!(group.windows(2).all(|two| two[0] <= two[1]), "{rows} x {row_bytes}: {group:?}");
                    for row in group {
                        seen[row] = true;
                    }
                }
                assert!(seen.iter().all(|&seen| seen), "{rows} x {row_bytes}");
                assert!(quarters.groups() <= rows.div_ceil(4) + 2, "{rows} x {row_bytes}");
                let apart = quarters.apart * row_bytes;
                if rows >= 256 && apart >= FAR && (300..4096).contains(&row_bytes) {
                    let place = apart % 4096;
                    assert!(place.min(4096 - place) >= 512, "{rows} x {row_bytes}: {place}");
                }
            }
        }
    }
}
