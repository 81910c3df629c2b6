//! Formats without blocks: every weight is a float of its own. Shared by F32, F16 and BF16.
//!
//! There are float kernels only. Lane e % 16 takes element e by one fused multiply-add, in order, and the
//! lanes are folded at the end. A last group of fewer than 16 is filled up with zeros, so a row may have any
//! length.

use super::{AHEAD, Blocks, FloatRow, fold, four_of};
use crate::simd::{Bytes, Lanes, prefetch};
use std::marker::PhantomData;

/// How one float is stored.
pub(crate) trait Element: 'static {
    /// GGUF's name.
    const NAME: &'static str;
    /// Bytes of an element.
    const BYTES: usize;
    /// The value of [`Element::BYTES`] bytes.
    fn get(bytes: &[u8]) -> f32;
    /// The nearest value, ties to even.
    fn put(value: f32, bytes: &mut [u8]);
    /// 16 elements.
    ///
    /// # Safety
    /// `L` is enabled; 16 elements are readable at `p`, which may be unaligned.
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F;
    /// The first `n <= 16` elements, zeros after; touches only those.
    ///
    /// # Safety
    /// `L` is enabled; `n` elements are readable at `p`, which may be unaligned.
    unsafe fn load_n<L: Lanes>(p: *const u8, n: usize) -> L::F;
}

/// The format of bare elements `T`.
pub(crate) struct Dense<T>(PhantomData<T>);

impl<T: Element> Blocks for Dense<T> {
    const NAME: &'static str = T::NAME;
    const BLOCK: usize = 1;
    const BYTES: usize = T::BYTES;

    fn dequantize(blocks: &[u8], _: f32, out: &mut [f32]) {
        for (bytes, y) in blocks.chunks_exact(T::BYTES).zip(out) {
            *y = T::get(bytes);
        }
    }
    fn quantize(src: &[f32], dst: &mut [u8]) {
        for (&x, bytes) in src.iter().zip(dst.chunks_exact_mut(T::BYTES)) {
            T::put(x, bytes);
        }
    }
}

impl<T: Element> FloatRow for Dense<T> {
    #[inline(always)]
    unsafe fn float<S: Bytes, const N: usize>(row: &[u8], _: f32, x: &[&[f32]; N]) -> [f32; N] {
        let whole = row.len() / T::BYTES / 16 * 16;
        let rest = row.len() / T::BYTES - whole;
        let x: [&[f32]; N] = std::array::from_fn(|c| &x[c][..whole + rest]);
        // SAFETY: `S` is enabled by the caller; the row and each column have `whole + rest` elements.
        unsafe {
            let mut acc = [S::zero(); N];
            for e in (0..whole).step_by(16) {
                let w = T::load::<S>(row.as_ptr().add(e * T::BYTES));
                for c in 0..N {
                    acc[c] = S::fma(w, S::load(x[c].as_ptr().add(e)), acc[c]);
                }
            }
            if rest > 0 {
                let w = T::load_n::<S>(row.as_ptr().add(whole * T::BYTES), rest);
                for c in 0..N {
                    acc[c] = S::fma(w, S::load_n(x[c].as_ptr().add(whole), rest), acc[c]);
                }
            }
            std::array::from_fn(|c| S::reduce_add(acc[c]))
        }
    }

    /// Side by side: a chain of additions each, and values of the column that are loaded once.
    #[inline(always)]
    unsafe fn float4<S: Bytes>(rows: [&[u8]; 4], _: f32, x: &[f32]) -> [f32; 4] {
        let n = rows[0].len() / T::BYTES;
        let (whole, x) = (n / 16 * 16, &x[..n]);
        // SAFETY: `S` is enabled by the caller; the rows and the column have `n` elements.
        unsafe {
            let mut acc = [S::zero(); 4];
            for e in (0..whole).step_by(16) {
                let x = S::load(x.as_ptr().add(e));
                four_of!(|r| {
                    let w = rows[r].as_ptr().add(e * T::BYTES);
                    prefetch(w.wrapping_add(AHEAD));
                    acc[r] = S::fma(T::load::<S>(w), x, acc[r]);
                });
            }
            if n > whole {
                let x = S::load_n(x.as_ptr().add(whole), n - whole);
                four_of!(|r| {
                    let w = T::load_n::<S>(rows[r].as_ptr().add(whole * T::BYTES), n - whole);
                    acc[r] = S::fma(w, x, acc[r]);
                });
            }
            four_of!(|r| S::reduce_add(acc[r]))
        }
    }

    fn float_scalar(row: &[u8], _: f32, x: &[f32]) -> f32 {
        let mut acc = [0f32; 16];
        for (row, x) in row.chunks(16 * T::BYTES).zip(x.chunks(16)) {
            for i in 0..16 {
                let (w, x) = if i < x.len() { (T::get(&row[i * T::BYTES..]), x[i]) } else { (0.0, 0.0) };
                acc[i] = w.mul_add(x, acc[i]);
            }
        }
        fold(acc)
    }
}
