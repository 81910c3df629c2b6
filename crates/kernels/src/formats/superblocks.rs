//! Super-blocks of 256 weights whose sub-blocks of 16 or 32 have small integer scales: the frame of Q4_K, Q5_K
//! and Q6_K. With the sub-block's `scale` and `min`, a weight is
//!
//! ```text
//! (d * scale) * code - dmin * min          Q4_K, Q5_K: codes from 0 to 15 or 31, sub-blocks of 32
//! (d * scale) * (code - OFFSET)            Q6_K: codes from 0 to 63, OFFSET 32, sub-blocks of 16
//! ```
//!
//! The int8 product is that of [`super::scaled`], where `m` is -dmin and `min` the sum over sub-blocks of min * (sum of their q). Sums of
//! 16 values of q that are ready-made in the activations carry minima and offsets.
//!
//! Nothing overflows, whatever the bytes are: two products are at most 2 * 63 * 127 = 16,002 (16 bits); a lane
//! has 16 elements, so at most 16 * 63 * 127 * 128 = 16,386,048; sums of 16 are at most 2,032, times 32 * 128
//! and two of them 16,646,144; all of a super-block
//! together at most 16 times as much (32 bits).

use super::scaled::{At, Scaled};
use super::{AHEAD, Blocks, Column, f16_at, float::ViaDequantize};
use crate::acts::{Grain, Line};
use crate::simd::{Bytes, prefetch};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// The scales of a super-block.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    /// Scale of every 16 weights, -128..=127.
    pub scales: [i16; 16],
    /// Minimum of every 16 weights, 0..=63.
    pub mins: [i16; 16],
}

/// What a format of super-blocks provides.
pub(crate) trait SuperBlock: 'static {
    /// GGUF's name.
    const NAME: &'static str;
    /// Bytes of a super-block.
    const BYTES: usize;
    /// The code that means zero, 32; 0 where there are minima instead.
    const OFFSET: u8;
    /// The largest code.
    const TOP: u8;
    /// Sub-blocks: 8 of 32 weights or 16 of 16.
    const SUBS: usize;
    /// Byte offset of `d`, an f16.
    const D_AT: usize;
    /// Byte offset of `dmin`, an f16, where there are minima.
    const DMIN_AT: Option<usize>;
    /// The scales.
    fn head(block: &[u8]) -> Head;
    /// The codes, at most 63, in element order.
    fn codes(block: &[u8]) -> [u8; 256];
    /// The same as four vectors.
    ///
    /// # Safety
    /// `S` is enabled; a whole super-block is readable at `block`.
    unsafe fn vectors<S: Bytes>(block: *const u8) -> [S::V; 4];
    /// The scales as 16-bit lanes beside those four vectors (a scale for each pair of weights), and in the first 16 lanes of
    /// a fifth what meets the sums of 16: the minima, or where there is an offset the scales again.
    ///
    /// # Safety
    /// As for `vectors`.
    unsafe fn scales<S: Bytes>(block: *const u8) -> ([S::V; 4], S::V);
    /// [`Scaled::turn`] of a super-block.
    ///
    /// # Safety
    /// As there.
    unsafe fn turn<S: Bytes>(rows: &[*const u8; 16], to: *mut u8, apart: usize);
    /// In the first 16 lanes of 16 bits: the scale of every 16 weights, and what meets the sums of 16.
    ///
    /// # Safety
    /// As for `vectors`.
    unsafe fn each16<S: Bytes>(block: *const u8) -> (S::V, S::V);
    /// 256 weights to a super-block.
    fn quantize(src: &[f32], block: &mut [u8]);
}

/// The format of super-blocks `T`.
pub(crate) struct In256<T>(PhantomData<T>);

impl<T: SuperBlock> Blocks for In256<T> {
    const NAME: &'static str = T::NAME;
    const BLOCK: usize = 256;
    const BYTES: usize = T::BYTES;

    #[inline]
    fn dequantize(blocks: &[u8], _: f32, out: &mut [f32]) {
        for (block, out) in blocks.chunks_exact(T::BYTES).zip(out.chunks_exact_mut(256)) {
            let head = T::head(block);
            let (d, dmin) = (f16_at(block, T::D_AT), T::DMIN_AT.map_or(0.0, |at| f16_at(block, at)));
            let codes = T::codes(block);
            for (j, (out, codes)) in out.chunks_exact_mut(16).zip(codes.chunks_exact(16)).enumerate() {
                let (scale, min) = (d * f32::from(head.scales[j]), dmin * f32::from(head.mins[j]));
                for (y, &code) in out.iter_mut().zip(codes) {
                    *y = scale * f32::from(i16::from(code) - i16::from(T::OFFSET));
                    if T::OFFSET == 0 {
                        *y -= min;
                    }
                }
            }
        }
    }
    fn quantize(src: &[f32], dst: &mut [u8]) {
        for (src, block) in src.chunks_exact(256).zip(dst.chunks_exact_mut(T::BYTES)) {
            T::quantize(src, block);
        }
    }
}

impl<T: SuperBlock> ViaDequantize for In256<T> {
    #[inline(always)]
    unsafe fn decode<S: Bytes>(blocks: &[u8], _: f32, out: &mut [f32]) {
        let mut codes = [0u8; 256];
        for (block, out) in blocks.chunks_exact(T::BYTES).zip(out.chunks_exact_mut(256)) {
            let head = T::head(block);
            // SAFETY: `S` is enabled by the caller; `block` is a whole super-block; every load and store is of a
            // slice of 16 or 64.
            unsafe {
                let (d, dmin) = (f16::<S>(block, T::D_AT), f16::<S>(block, T::DMIN_AT.unwrap_or(T::D_AT)));
                let vectors = T::vectors::<S>(block.as_ptr());
                for v in 0..4 {
                    let signed = S::sub_u8(vectors[v], S::splat_u8(T::OFFSET));
                    S::store_v(codes[v * 64..v * 64 + 64].as_mut_ptr(), signed);
                }
                for (j, out) in out.chunks_exact_mut(16).enumerate() {
                    let (scale, min) = (d * f32::from(head.scales[j]), dmin * f32::from(head.mins[j]));
                    let y = S::mul(S::splat(scale), S::load_i8(codes[j * 16..].as_ptr().cast()));
                    S::store(out.as_mut_ptr(), if T::OFFSET == 0 { S::sub(y, S::splat(min)) } else { y });
                }
            }
        }
    }
}

/// The f16 at byte `at`, as f32.
///
/// # Safety
/// `S` is enabled.
#[inline(always)]
unsafe fn f16<S: Bytes>(block: &[u8], at: usize) -> f32 {
    // SAFETY: by the caller.
    unsafe { S::f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]])) }
}

impl<T: SuperBlock> Scaled for In256<T> {
    const GRAIN: Grain = Grain::B256;
    const TOP: u8 = T::TOP;
    const OFFSET: u8 = T::OFFSET;
    const SUBS: usize = T::SUBS;
    const D_AT: usize = T::D_AT;
    const M_AT: Option<usize> = T::DMIN_AT;
    const M_SIGN: f32 = -1.0;

    fn integers(block: &[u8], x: Column<'_>, b: usize) -> (i32, i32) {
        let (head, codes) = (T::head(block), T::codes(block));
        let (q, sums16) = (&x.q[b * 256..], &x.sums16[b * 16..]);
        let (mut sum, mut min) = (0, 0);
        for e in 0..256 {
            let code = i32::from(codes[e]) - i32::from(T::OFFSET);
            sum += i32::from(head.scales[e / 16]) * code * i32::from(q[e]);
        }
        for j in 0..16 {
            min += i32::from(head.mins[j]) * i32::from(sums16[j]);
        }
        (sum, min)
    }

    #[inline(always)]
    unsafe fn section<S: Bytes>(rows: [*const u8; 4], from: usize, runs: usize, x: Column<'_>) -> [f32; 4] {
        let at = At::start(x).run(from, 256);
        // SAFETY: the caller's promises, passed on; a section has sixteen runs at most.
        unsafe {
            // Integers first, two runs in a vector, and scales; those of no run that four have are zero.
            let mut sums = [const { [const { MaybeUninit::<S::V>::uninit() }; 8] }; 4];
            let mut mins = sums;
            let (mut d, mut dmin) = ([[0u16; 16]; 4], [[0u16; 16]; 4]);
            let half = |block: *const u8, at: usize| block.add(at).cast::<u16>().read_unaligned();
            let pairs = runs.div_ceil(2);
            // A pair of each row in turn, so that memory is read in four streams.
            for p in 0..pairs {
                for r in 0..4 {
                    let (mut pair, first) = ([(S::zero_v(), S::zero_v()); 2], 2 * p);
                    macro_rules! add {
                        ($b:expr) => {
                            let b = $b;
                            let block = rows[r].wrapping_add((from + b) * T::BYTES);
                            pair[b - first] = super_block::<T, S>(block, at.run(b, 256));
                            d[r][b] = half(block, T::D_AT);
                            dmin[r][b] = T::DMIN_AT.map_or(0, |at| half(block, at));
                        };
                    }
                    // Written out, vectors stay in registers, which is faster with AVX2. With AVX-512 this very loop is.
                    if S::REGISTERS < 32 {
                        add!(first);
                        if first + 1 < runs {
                            add!(first + 1);
                        }
                    } else {
                        for b in first..runs.min(first + 2) {
                            add!(b);
                        }
                    }
                    sums[r][p].write(S::beside(pair[0].0, pair[1].0));
                    mins[r][p].write(S::beside(pair[0].1, pair[1].1));
                }
            }
            // Pairs are folded by two.
            if pairs % 2 == 1 {
                for r in 0..4 {
                    sums[r][pairs].write(S::zero_v());
                    mins[r][pairs].write(S::zero_v());
                }
            }
            let mut acc = [S::zero(); 4];
            let mut scales = [0f32; 16];
            scales[..runs].copy_from_slice(&x.scales[from..][..runs]);
            for g in 0..runs.div_ceil(4) {
                let s = S::repeat(scales.as_ptr().add(4 * g));
                let rows = [0, 1, 2, 3].map(|r: usize| d[r].as_ptr().add(4 * g));
                let ds = S::mul(S::load_f16_rows(rows), s);
                acc[g] = S::fma(S::to_f32(four::<S>(&sums, 2 * g)), ds, acc[g]);
                if T::DMIN_AT.is_some() {
                    let rows = [0, 1, 2, 3].map(|r: usize| dmin[r].as_ptr().add(4 * g));
                    let m = S::mul(S::load_f16_rows(rows), S::splat(-1.0));
                    acc[g] = S::fma(S::to_f32(four::<S>(&mins, 2 * g)), S::mul(m, s), acc[g]);
                }
            }
            S::fold_rows(acc)
        }
    }

    #[inline(always)]
    unsafe fn turn<S: Bytes>(rows: &[*const u8; 16], _: usize, to: *mut u8, apart: usize) -> usize {
        // SAFETY: the caller's promises, passed on.
        unsafe { T::turn::<S>(rows, to, apart) }
        1
    }

    #[inline(always)]
    unsafe fn heads<S: Bytes>(rows: &[*const u8; 16]) -> [S::V; 16] {
        let mut lines = [const { MaybeUninit::<Line>::uninit() }; 16];
        // SAFETY: `S` is enabled by the caller, and a super-block is readable at each pointer.
        unsafe {
            for (line, row) in lines.iter_mut().zip(rows) {
                let (scales, of_sums) = T::each16::<S>(*row);
                S::store_v(line.as_mut_ptr().cast(), S::halves(scales, of_sums));
            }
            S::turn16::<0, 16, 32, 48>(std::array::from_fn(|i| lines[i].as_ptr().cast()))
        }
    }
}

/// Vectors `p` and `p + 1` of four rows, added up: lane 4 r + j is run j of row r.
///
/// # Safety
/// `S` is enabled; the vectors have been written.
#[inline(always)]
unsafe fn four<S: Bytes>(rows: &[[MaybeUninit<S::V>; 8]; 4], p: usize) -> S::V {
    // SAFETY: by the caller.
    unsafe {
        let [a, b, c, d] = rows;
        let (a, b) = (two::<S>(a, p), two::<S>(b, p));
        S::sixteen(S::octet(a, b), S::octet(two::<S>(c, p), two::<S>(d, p)))
    }
}

/// # Safety
/// As for [`four`].
#[inline(always)]
unsafe fn two<S: Bytes>(row: &[MaybeUninit<S::V>; 8], p: usize) -> S::Quad {
    // SAFETY: by the caller.
    unsafe { S::quad::<false>(row[p].assume_init(), row[p + 1].assume_init()) }
}

/// Lanes whose total is the sum of one super-block, and that of its minima.
///
/// # Safety
/// `S` is enabled; a super-block is readable, and what meets it of the column.
#[inline(always)]
unsafe fn super_block<T: SuperBlock, S: Bytes>(block: *const u8, x: At) -> (S::V, S::V) {
    // SAFETY: by the caller.
    unsafe {
        for line in (0..T::BYTES).step_by(64) {
            prefetch(block.wrapping_add(AHEAD + line));
        }
        let codes = T::vectors::<S>(block);
        let (scales, of_sums) = T::scales::<S>(block);
        let min = S::dot_i16(of_sums, x.sums16);
        let mut lanes = S::zero_v();
        if T::OFFSET > 0 {
            lanes = S::sub_i32(lanes, S::shl32::<5>(min));
        }
        for v in 0..4 {
            let q = S::load_v(x.q.add(v * 64).cast());
            lanes = S::dot_u8_scaled(lanes, codes[v], q, scales[v]);
        }
        (lanes, min)
    }
}
