//! Blocks of 32 weights with one scale each, and perhaps a minimum: the frame of Q4_0, Q4_1, Q5_0, Q5_1 and
//! Q8_0. A weight is `code * d`, or `code * d + m`; codes are small signed integers. The int8 product is that of [`super::scaled`], where
//! `min` is the sum of the block's q.
//!
//! Nothing overflows: |code| <= 128 and |q| <= 127, so a product of two pairs fits 16 bits and the sum of a block 20.

use super::scaled::{Scaled, is_signed, offset};
use super::scaled_tile::store_nibbles;
use super::{AHEAD, Blocks, Column, f16_at, float::ViaDequantize};
use crate::acts::{Grain, Line};
use crate::simd::{Bytes, prefetch};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// What a format of 32-weight blocks provides. Each block begins with `d`, an f16.
pub(crate) trait Block32: Sized + 'static {
    /// GGUF's name.
    const NAME: &'static str;
    /// Bytes of a block.
    const BYTES: usize;
    /// What vectors of codes are larger by than the codes, so that they are not negative: 0, 8, 16 or 128.
    const OFFSET: u8;
    /// The largest code of a vector: 15, 31 or 255.
    const TOP: u8;
    /// Whether an f16 minimum `m` follows `d`. The offset is then 0.
    const MIN: bool;
    /// The codes of a block, in element order.
    fn codes(block: &[u8]) -> [i8; 32];
    /// The codes of two blocks, in element order, plus the offset.
    ///
    /// # Safety
    /// `S` is enabled; both pointers are to whole blocks.
    unsafe fn codes2<S: Bytes>(a: *const u8, b: *const u8) -> S::V;
    /// [`Scaled::turn`].
    ///
    /// # Safety
    /// As there, with room for four runs.
    #[inline(always)]
    unsafe fn turn<S: Bytes>(rows: &[*const u8; 16], runs: usize, to: *mut u8, apart: usize) -> usize {
        // SAFETY: the caller's promises, passed on.
        unsafe { two_runs::<Self, S>(rows, runs, to, apart) }
    }
    /// 32 weights to a block.
    fn quantize(src: &[f32], block: &mut [u8]);
}

/// The format of blocks `T`.
pub(crate) struct In32<T>(PhantomData<T>);

impl<T: Block32> Blocks for In32<T> {
    const NAME: &'static str = T::NAME;
    const BLOCK: usize = 32;
    const BYTES: usize = T::BYTES;

    #[inline]
    fn dequantize(blocks: &[u8], _: f32, out: &mut [f32]) {
        for (block, out) in blocks.chunks_exact(T::BYTES).zip(out.chunks_exact_mut(32)) {
            let (d, m) = (f16_at(block, 0), if T::MIN { f16_at(block, 2) } else { 0.0 });
            for (y, code) in out.iter_mut().zip(T::codes(block)) {
                *y = if T::MIN { f32::from(code) * d + m } else { f32::from(code) * d };
            }
        }
    }
    fn quantize(src: &[f32], dst: &mut [u8]) {
        for (src, block) in src.chunks_exact(32).zip(dst.chunks_exact_mut(T::BYTES)) {
            T::quantize(src, block);
        }
    }
}

impl<T: Block32> ViaDequantize for In32<T> {
    #[inline(always)]
    unsafe fn decode<S: Bytes>(blocks: &[u8], _: f32, out: &mut [f32]) {
        let mut codes = [0u8; 64];
        for (pair, out) in blocks.chunks(2 * T::BYTES).zip(out.chunks_mut(64)) {
            let (a, b) = (pair.as_ptr(), pair[pair.len() - T::BYTES..].as_ptr());
            // SAFETY: `S` is enabled by the caller; `a` and `b` begin whole blocks, the same one where a row ends
            // with an odd block; every load and store is of a slice of 16.
            unsafe {
                let signed = S::sub_u8(T::codes2::<S>(a, b), S::splat_u8(T::OFFSET));
                S::store_v(codes.as_mut_ptr(), signed);
                for (i, out) in out.chunks_exact_mut(16).enumerate() {
                    let block = &pair[i / 2 * T::BYTES..];
                    let f16 = |at: usize| S::f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]));
                    let y = S::mul(S::load_i8(codes[i * 16..].as_ptr().cast()), S::splat(f16(0)));
                    S::store(out.as_mut_ptr(), if T::MIN { S::add(y, S::splat(f16(2))) } else { y });
                }
            }
        }
    }
}

impl<T: Block32> Scaled for In32<T> {
    const GRAIN: Grain = Grain::B32;
    const TOP: u8 = T::TOP;
    const OFFSET: u8 = T::OFFSET;
    const SUBS: usize = 1;
    const D_AT: usize = 0;
    const M_AT: Option<usize> = if T::MIN { Some(2) } else { None };
    const M_SIGN: f32 = 1.0;

    fn integers(block: &[u8], x: Column<'_>, b: usize) -> (i32, i32) {
        let q = &x.q[b * 32..][..32];
        let sum = T::codes(block).iter().zip(q).map(|(&code, &q)| i32::from(code) * i32::from(q)).sum();
        (sum, x.sums[b])
    }

    #[inline(always)]
    unsafe fn section<S: Bytes>(rows: [*const u8; 4], from: usize, runs: usize, x: Column<'_>) -> [f32; 4] {
        let rows = rows.map(|row| row.wrapping_add(from * T::BYTES));
        // SAFETY: the caller's promises, passed on.
        unsafe {
            if runs == 8 {
                return eight::<T, S>(rows, from, x);
            }
            let mut acc = [S::zero(); 4];
            for b in (0..runs / 16 * 16).step_by(16) {
                for (acc, row) in acc.iter_mut().zip(rows) {
                    *acc = sixteen::<T, S>(*acc, row.wrapping_add(b * T::BYTES), from + b, x);
                }
            }
            let rest = runs / 16 * 16..runs;
            if !rest.is_empty() {
                let mut lanes = [[0f32; 16]; 4];
                for r in 0..4 {
                    S::store(lanes[r].as_mut_ptr(), acc[r]);
                }
                for b in rest.clone().step_by(4) {
                    let blocks = rows.map(|row| row.wrapping_add(b * T::BYTES));
                    // A number that the compiler knows: no looking whether a block is there.
                    match rest.end - b {
                        4.. => four::<T, S>(&mut lanes, blocks, 4, from, b, x),
                        n => four::<T, S>(&mut lanes, blocks, n, from, b, x),
                    }
                }
                for r in 0..4 {
                    acc[r] = S::load(lanes[r].as_ptr());
                }
            }
            S::reduce_add4(acc)
        }
    }

    #[inline(always)]
    unsafe fn turn<S: Bytes>(rows: &[*const u8; 16], runs: usize, to: *mut u8, apart: usize) -> usize {
        // SAFETY: the caller's promises, passed on.
        unsafe { T::turn::<S>(rows, runs, to, apart) }
    }
}

/// Adds 16 runs of a row to their lanes. The first is number `b`.
///
/// # Safety
/// `S` is enabled; the blocks are readable, and the column covers them.
#[inline(always)]
unsafe fn sixteen<T: Block32, S: Bytes>(acc: S::F, blocks: *const u8, b: usize, x: Column<'_>) -> S::F {
    // SAFETY: by the caller.
    unsafe {
        let mut quads = [S::quad::<true>(S::zero_v(), S::zero_v()); 4];
        for (i, quad) in quads.iter_mut().enumerate() {
            let at = blocks.wrapping_add(4 * i * T::BYTES);
            let block = [0, 1, 2, 3].map(|j: usize| at.wrapping_add(j * T::BYTES));
            *quad = quad_of::<T, S>(block, x.q.as_ptr().add((b + 4 * i) * 32));
        }
        let of_q = S::load_v(x.sums.as_ptr().add(b).cast());
        let s = S::load(x.scales.as_ptr().add(b));
        let d = S::load_f16_every(blocks, T::BYTES, 16);
        let acc = S::fma(S::to_f32(signed::<T, S>(quads, of_q)), S::mul(d, s), acc);
        if T::MIN {
            let m = S::load_f16_every(blocks.add(2), T::BYTES, 16);
            return S::fma(S::to_f32(of_q), S::mul(m, s), acc);
        }
        acc
    }
}

/// What `section` returns for 8 runs of four rows, the first of which is number `b`: two rows in a vector.
///
/// # Safety
/// `S` is enabled; the blocks are readable, and the column covers them.
#[inline(always)]
unsafe fn eight<T: Block32, S: Bytes>(rows: [*const u8; 4], b: usize, x: Column<'_>) -> [f32; 4] {
    let (q, s) = (x.q[b * 32..][..256].as_ptr(), x.scales[b..][..8].as_ptr());
    let of_q = x.sums[b..][..8].as_ptr().cast();
    // SAFETY: by the caller; lengths were just checked.
    unsafe {
        let s = S::load_rows([s, s.add(4), s, s.add(4)]);
        let of_q = S::load_halves(of_q, of_q);
        let mut acc = [S::zero(); 2];
        for (two, acc) in acc.iter_mut().enumerate() {
            let row = |r: usize, j: usize| rows[2 * two + r].wrapping_add(j * T::BYTES);
            let mut quads = [S::quad::<true>(S::zero_v(), S::zero_v()); 4];
            for (i, quad) in quads.iter_mut().enumerate() {
                let (r, j) = (i / 2, i % 2 * 4);
                *quad =
                    quad_of::<T, S>([row(r, j), row(r, j + 1), row(r, j + 2), row(r, j + 3)], q.add(j * 32));
            }
            let sums = signed::<T, S>(quads, of_q);
            let mut at = [std::ptr::null(); 16];
            for (i, at) in at.iter_mut().enumerate() {
                *at = row(i / 8, i % 8);
            }
            *acc = S::fma(S::to_f32(sums), S::mul(S::load_f16_each(&at), s), *acc);
            if T::MIN {
                let m = S::load_f16_each(&at.map(|at| at.wrapping_add(2)));
                *acc = S::fma(S::to_f32(of_q), S::mul(m, s), *acc);
            }
        }
        S::reduce_halves(acc)
    }
}

/// Adds `n <= 4` runs of four rows to their lanes, for what a row has beyond multiples of 16: number `from + b` and those behind it,
/// whose lanes begin at `b % 16`. For runs that are not there the last one stands in, with scales of zero.
///
/// # Safety
/// `S` is enabled; the blocks are readable, and the column covers them.
#[inline(always)]
unsafe fn four<T: Block32, S: Bytes>(
    lanes: &mut [[f32; 16]; 4],
    blocks: [*const u8; 4],
    n: usize,
    from: usize,
    b: usize,
    x: Column<'_>,
) {
    let (mut d, mut m) = ([[0u16; 4]; 4], [[0u16; 4]; 4]);
    let (mut s, mut of_q) = ([0f32; 4], [0i32; 4]);
    s[..n].copy_from_slice(&x.scales[from + b..][..n]);
    of_q[..n].copy_from_slice(&x.sums[from + b..][..n]);
    // SAFETY: by the caller. Columns are padded to 256 values: those of four runs are there where the first one's are.
    unsafe {
        let mut quads = [S::quad::<true>(S::zero_v(), S::zero_v()); 4];
        for r in 0..4 {
            let block = [0, 1, 2, 3].map(|j: usize| blocks[r].wrapping_add(j.min(n - 1) * T::BYTES));
            quads[r] = quad_of::<T, S>(block, x.q.as_ptr().add((from + b) * 32));
            // Four are read in vectors, below.
            for j in 0..if n < 4 { n } else { 0 } {
                d[r][j] = block[j].cast::<u16>().read_unaligned();
                if T::MIN {
                    m[r][j] = block[j].add(2).cast::<u16>().read_unaligned();
                }
            }
        }
        let of_q = S::bits_of_f(S::repeat(of_q.as_ptr().cast()));
        let s = S::repeat(s.as_ptr());
        let at = [0, 1, 2, 3].map(|r: usize| lanes[r].as_mut_ptr().add(b % 16));
        let acc = S::load_rows(at.map(<*mut f32>::cast_const));
        let d = if n == 4 { each::<T, S>(blocks, 0) } else { S::load_f16_rows(starts(&d)) };
        let mut acc = S::fma(S::to_f32(signed::<T, S>(quads, of_q)), S::mul(d, s), acc);
        if T::MIN {
            let m = if n == 4 { each::<T, S>(blocks, 2) } else { S::load_f16_rows(starts(&m)) };
            acc = S::fma(S::to_f32(of_q), S::mul(m, s), acc);
        }
        S::store_rows(at, acc);
    }
}

fn starts(rows: &[[u16; 4]; 4]) -> [*const u16; 4] {
    [0, 1, 2, 3].map(|r: usize| rows[r].as_ptr())
}

/// The halves `at` bytes behind the beginning of four blocks of four rows.
///
/// # Safety
/// `S` is enabled; the blocks are readable.
#[inline(always)]
unsafe fn each<T: Block32, S: Bytes>(blocks: [*const u8; 4], at: usize) -> S::F {
    let mut each = [std::ptr::null(); 16];
    for (i, each) in each.iter_mut().enumerate() {
        *each = blocks[i / 4].wrapping_add(i % 4 * T::BYTES + at);
    }
    // SAFETY: by the caller.
    unsafe { S::load_f16_each(&each) }
}

/// Sixteen runs' integers without the offset of their codes; `of_q` are the sums of q.
///
/// # Safety
/// `S` is enabled.
#[inline(always)]
unsafe fn signed<T: Block32, S: Bytes>([a, b, c, d]: [S::Quad; 4], of_q: S::V) -> S::V {
    // SAFETY: by the caller.
    unsafe {
        let sums = S::sixteen(S::octet(a, b), S::octet(c, d));
        match const { offset::<In32<T>, S>() } {
            0 => sums,
            8 => S::sub_i32(sums, S::shl32::<3>(of_q)),
            16 => S::sub_i32(sums, S::shl32::<4>(of_q)),
            _ => S::sub_i32(sums, S::shl32::<7>(of_q)),
        }
    }
}

/// Four runs of a row.
///
/// # Safety
/// `S` is enabled; the blocks are readable, and 128 values at `q`.
#[inline(always)]
unsafe fn quad_of<T: Block32, S: Bytes>([a, b, c, d]: [*const u8; 4], q: *const i8) -> S::Quad {
    // SAFETY: by the caller.
    unsafe {
        for line in (0..4 * T::BYTES).step_by(64) {
            prefetch(a.wrapping_add(AHEAD + line));
        }
        let (first, second) = (two::<T, S>(a, b, q), two::<T, S>(c, d, q.add(64)));
        // Lanes of codes up to 31 have at most 15,748, and two of them fit 16 bits.
        if T::TOP < 63 { S::quad::<true>(first, second) } else { S::quad::<false>(first, second) }
    }
}

/// Lanes of two runs.
///
/// # Safety
/// `S` is enabled; both pointers are to whole blocks; 64 values are readable.
#[inline(always)]
unsafe fn two<T: Block32, S: Bytes>(a: *const u8, b: *const u8, q: *const i8) -> S::V {
    // SAFETY: by the caller.
    unsafe {
        let (codes, q) = (multiplied::<T, S>(T::codes2::<S>(a, b)), S::load_v(q.cast()));
        if is_signed::<S>(T::TOP) {
            S::dot_i8(S::zero_v(), codes, q)
        } else {
            S::dot_u8(S::zero_v(), codes, q)
        }
    }
}

/// [`Scaled::turn`] for any format: codes of two runs, or one, row by row, which then change places.
///
/// # Safety
/// As for [`Scaled::turn`].
#[inline(always)]
pub(super) unsafe fn two_runs<T: Block32, S: Bytes>(
    rows: &[*const u8; 16],
    runs: usize,
    to: *mut u8,
    apart: usize,
) -> usize {
    let mut lines = [const { MaybeUninit::<Line>::uninit() }; 16];
    let second = if runs > 1 { T::BYTES } else { 0 };
    // SAFETY: `S` is enabled by the caller, two blocks (or one, twice) are readable at each pointer, and 16 vectors have room.
    unsafe {
        for (line, row) in lines.iter_mut().zip(rows) {
            let codes = multiplied::<T, S>(T::codes2::<S>(*row, row.wrapping_add(second)));
            S::store_v(line.as_mut_ptr().cast(), codes);
        }
        let lines = std::array::from_fn(|i| lines[i].as_ptr().cast());
        for (j, v) in S::turn16::<0, 16, 32, 48>(lines).into_iter().enumerate() {
            S::store_v(to.add(j * apart), v);
        }
    }
    runs.min(2)
}

/// [`Scaled::turn`] where codes are nibbles, elements m and 16 + m in one byte: 16 bytes of codes of four runs, `A`, `B`, `C` and `D` bytes
/// behind the beginning of the first, change places before they are unpacked.
///
/// # Safety
/// As for [`Scaled::turn`].
#[inline(always)]
pub(super) unsafe fn four_runs<
    T: Block32,
    S: Bytes,
    const A: usize,
    const B: usize,
    const C: usize,
    const D: usize,
>(
    rows: &[*const u8; 16],
    runs: usize,
    to: *mut u8,
    apart: usize,
) -> usize {
    // SAFETY: the caller's promises, passed on; four blocks are readable where there are four runs.
    unsafe {
        if runs < 4 {
            return two_runs::<T, S>(rows, runs, to, apart);
        }
        store_nibbles::<S, 4>(&S::turn16::<A, B, C, D>(*rows), to, apart);
    }
    4
}

/// Codes as `S` multiplies them.
///
/// # Safety
/// `S` is enabled.
#[inline(always)]
pub(super) unsafe fn multiplied<T: Block32, S: Bytes>(codes: S::V) -> S::V {
    // SAFETY: by the caller.
    unsafe { if is_signed::<S>(T::TOP) { S::xor(codes, S::splat_u8(0x80)) } else { codes } }
}

/// The value farthest from zero, the first of equals.
pub(super) fn extreme(src: &[f32]) -> f32 {
    src.iter().fold(0f32, |m, &x| if x.abs() > m.abs() { x } else { m })
}

/// Smallest and largest value.
pub(super) fn range(src: &[f32]) -> (f32, f32) {
    src.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &x| (l.min(x), h.max(x)))
}

/// 1 / d, and 0 for 0.
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Codes of five bits: `bits` is a u32 with the fifth bit of every element, then 16 bytes of nibbles.
#[inline(always)]
pub(super) fn codes5(bits: &[u8]) -> [i8; 32] {
    std::array::from_fn(|e| {
        let low = bits[4 + e % 16] >> (e / 16 * 4) & 15;
        (low | (bits[e / 8] >> (e % 8) & 1) << 4).cast_signed()
    })
}

/// The same for two blocks as one vector.
///
/// # Safety
/// `S` is enabled; 20 bytes are readable at both pointers.
#[inline(always)]
pub(super) unsafe fn vector5<S: Bytes>(a: *const u8, b: *const u8) -> S::V {
    // SAFETY: 4 bytes of fifth bits and 16 of nibbles, by the caller.
    unsafe {
        let fifth = |p: *const u8| u64::from(u32::from_le(p.cast::<u32>().read_unaligned()));
        let high = S::expand_mask(fifth(a) | fifth(b) << 32);
        S::or(S::load_nibbles2(a.add(4), b.add(4)), S::and(high, S::splat_u8(16)))
    }
}

/// Writes the bytes that [`codes5`] reads.
pub(super) fn store5(src: &[f32], code: impl Fn(f32) -> u8, bits: &mut [u8]) {
    bits.fill(0);
    for (e, &x) in src.iter().enumerate() {
        let code = code(x);
        bits[4 + e % 16] |= (code & 15) << (e / 16 * 4);
        bits[e / 8] |= code >> 4 << (e % 8);
    }
}
