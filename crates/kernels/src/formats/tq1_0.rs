//! TQ1_0: ternary, 1.6875 bits a weight: five base-3 digits a byte. Source of the layout: ggml's `block_tq1_0`.
//!
//! ```text
//! 54 bytes, 256 weights:   qs[48]  at 0     five digits a byte, in planes of 32 and then of 16
//!                          qh[4]   at 48    four digits a byte, in planes of 4
//!                          d  f16  at 52
//! digit(b, n) = (b * 3^n % 256) * 3 / 256                the n-th digit after the point of b / 256
//! element n*32 + m        =  (digit(qs[m], n) - 1) * d         n < 5, m < 32
//! element 160 + n*16 + m  =  (digit(qs[32 + m], n) - 1) * d    n < 5, m < 16
//! element 240 + n*4 + j   =  (digit(qh[j], n) - 1) * d         n < 4, j < 4
//! ```
//!
//! A byte is the number 0.t0 t1 t2 t3 t4 in base 3, times 256 and rounded up, so that multiplying by 3 moves
//! a digit over the point. In vectors: one arrangement of a block's bytes per 64 elements, one power of three
//! per 16-bit lane, and [`Bytes::digit3`]. A single column needs no digits at all ([`Tq1_0::products`]).

use super::ternary::{Beside, Ternary, ternarize, ternary_float};
use super::{AHEAD, Blocks, f16_at, four_of};
use crate::acts::Grain;
use crate::format::Format;
use crate::simd::{Bytes, prefetch};
use half::f16;

pub(super) static FORMAT: Format = Format::ternary::<Tq1_0>();

struct Tq1_0;

/// Where element `e` is: its byte and its digit.
const fn place(e: usize) -> (usize, usize) {
    match e {
        0..160 => (e % 32, e / 32),
        160..240 => (32 + e % 16, (e - 160) / 16),
        _ => (48 + e % 4, (e - 240) / 4),
    }
}

/// The element that is digit `n` of `byte`: [`place`] turned around.
const fn element(byte: usize, n: usize) -> usize {
    match byte {
        0..32 => n * 32 + byte,
        32..48 => 160 + n * 16 + byte - 32,
        _ => 240 + n * 4 + byte - 48,
    }
}

const POW3: [u8; 5] = [1, 3, 9, 27, 81];

/// The code of element `e`.
fn code(block: &[u8], e: usize) -> u8 {
    let (byte, n) = place(e);
    (u16::from(block[byte].wrapping_mul(POW3[n])) * 3 / 256) as u8
}

impl Blocks for Tq1_0 {
    const NAME: &'static str = "TQ1_0";
    const BLOCK: usize = 256;
    const BYTES: usize = 54;

    fn dequantize(blocks: &[u8], _: f32, out: &mut [f32]) {
        for (block, out) in blocks.chunks_exact(54).zip(out.chunks_exact_mut(256)) {
            let d = f16_at(block, 52);
            for (e, y) in out.iter_mut().enumerate() {
                *y = f32::from(code(block, e) as i8 - 1) * d;
            }
        }
    }

    fn quantize(src: &[f32], dst: &mut [u8]) {
        for (src, block) in src.chunks_exact(256).zip(dst.chunks_exact_mut(54)) {
            let mut numbers = [0u32; 52];
            let d = ternarize(src, |e, c| {
                let (byte, n) = place(e);
                numbers[byte] += u32::from(c) * 81 / u32::from(POW3[n]);
            });
            for (byte, number) in block.iter_mut().zip(numbers) {
                *byte = (number * 256).div_ceil(243) as u8;
            }
            block[52..].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        }
    }
}

/// The element of a step at place `at` of an int8 column.
const fn at_place(at: usize) -> usize {
    at / 64 * 32 + at % 64 / 32 * 128 + at % 32
}

/// 3^n * 256 for every pair of neighbours in the four vectors of a step.
static POWERS: [[u16; 32]; 4] = {
    let mut t = [[0; 32]; 4];
    let mut at = 0;
    while at < 256 {
        t[at / 64][at % 64 / 2] = (POW3[place(at_place(at)).1] as u16) << 8;
        at += 2;
    }
    t
};

/// For the last vector: within each 16 bytes loaded, all of them in order; in the last 16, which are bytes 38..54 of the
/// block, the four of `qh` again and again.
static LAST: [u8; 64] = {
    let mut t = [0; 64];
    let mut i = 0;
    while i < 64 {
        t[i] = if i < 48 { i % 16 } else { 10 + i % 4 } as u8;
        i += 1;
    }
    t
};

/// Masks of the first and third 16 bytes, and of the others.
static FIRST: [u8; 64] = quarters([0xff; 16], [0; 16]);
static SECOND: [u8; 64] = quarters([0; 16], [0xff; 16]);
/// The four of `qh` again and again in the others, from 16 bytes that begin at byte 38 of a block.
static QH: [u8; 64] =
    quarters([0x80; 16], *b"\x0a\x0b\x0c\x0d\x0a\x0b\x0c\x0d\x0a\x0b\x0c\x0d\x0a\x0b\x0c\x0d");
/// There, those whose digits 1 and 3 are meant, and the upper five bits of those whose digits 2 and 3 are.
static ODD: [u8; 64] = quarters([0; 16], *b"\0\0\0\0\xff\xff\xff\xff\0\0\0\0\xff\xff\xff\xff");
static UPPER: [u8; 64] = quarters([0; 16], *b"\0\0\0\0\0\0\0\0\xf8\xf8\xf8\xf8\xf8\xf8\xf8\xf8");

const fn quarters(first: [u8; 16], second: [u8; 16]) -> [u8; 64] {
    let mut t = [0; 64];
    let mut i = 0;
    while i < 64 {
        t[i] = if i % 32 < 16 { first[i % 16] } else { second[i % 16] };
        i += 1;
    }
    t
}

/// Three times the bytes that `mask` has, without what overflows.
#[inline(always)]
unsafe fn triple<S: Bytes>(v: S::V, mask: S::V) -> S::V {
    // SAFETY: by the caller.
    unsafe { S::add_u8(v, S::and(S::add_u8(v, v), mask)) }
}

/// Nine times the bytes of which `mask` has the upper five bits, without what overflows.
#[inline(always)]
unsafe fn nine<S: Bytes>(v: S::V, mask: S::V) -> S::V {
    // SAFETY: by the caller.
    unsafe { S::add_u8(v, S::and(S::shl16::<3>(v), mask)) }
}

impl Tq1_0 {
    /// [`Ternary::four`] by products of whole bytes, where they can be multiplied as unsigned ones.
    ///
    /// With x(0) a byte of the block and x(n + 1) = 3 x(n) % 256, three times x(n) is 256 times digit n plus x(n + 1). So the sum of
    /// digit n times q is a 256th of 3 times that of x(n) q minus that of x(n + 1) q: two products and two additions for 64 digits,
    /// none of which is ever singled out.
    ///
    /// # Safety
    /// As [`Ternary::four`].
    #[inline(always)]
    unsafe fn products<S: Bytes, const ARRANGED: bool>(
        rows: [&[u8]; 4],
        q: *const i8,
    ) -> ([S::V; 4], [u16; 4]) {
        // SAFETY: loads of weights end at byte 52 of a block, those of the column at value 256 of a step; the rest by the caller.
        unsafe {
            let (mut lanes, mut differ) = ([S::zero_v(); 4], [0; 4]);
            for from in (0..rows[0].len()).step_by(EXACT * Self::BYTES) {
                let (mut now, mut next) = ([S::sums_from(S::zero_v()); 4], [S::sums_from(S::zero_v()); 4]);
                for at in (from..rows[0].len().min(from + EXACT * Self::BYTES)).step_by(Self::BYTES) {
                    let step = at / Self::BYTES;
                    let q = if ARRANGED {
                        arranged::<S>(q.add(step * Self::ARRANGED * 64))
                    } else {
                        by_digit::<S>(q.add(step * 256))
                    };
                    four_of!(|r| {
                        let block = &rows[r][at..][..Self::BYTES];
                        prefetch(block.as_ptr().wrapping_add(AHEAD));
                        differ[r] |= Self::scale_bits(block) ^ Self::scale_bits(rows[r]);
                        let mut x = S::bits_of_f(S::load_n(block.as_ptr().cast(), 13));
                        for q in q {
                            S::sums_add_wide(&mut now[r], x, q);
                            x = S::triple_u8(x);
                            S::sums_add_wide(&mut next[r], x, q);
                        }
                    });
                }
                four_of!(|r| {
                    let (now, next) = (S::sums_lanes(now[r]), S::sums_lanes(next[r]));
                    let whole = S::sub_i32(S::add_i32(now, S::add_i32(now, now)), next);
                    lanes[r] = S::add_i32(lanes[r], S::sar32::<8>(whole));
                });
            }
            (lanes, differ)
        }
    }

    /// One row of [`Ternary::four`] elsewhere.
    /// Two steps at a time, the second one in the upper halves: digits that move over the point one after the other need
    /// additions and comparisons only.
    ///
    /// # Safety
    /// As [`Ternary::four`].
    #[inline(always)]
    unsafe fn row<S: Bytes>(row: &[u8], q: *const i8) -> (S::V, u16) {
        static ZEROS: [i8; 256] = [0; 256];
        // SAFETY: every load ends at byte 54 of a step or before, and inside 256 values of the column; the rest by the caller.
        unsafe {
            let (mut sums, mut differ) = (S::sums_from(S::zero_v()), 0);
            for (i, steps) in row.chunks(8 * Self::STEP).enumerate() {
                for (j, steps) in steps.chunks(2 * Self::STEP).enumerate() {
                    let (a, p) = (steps.as_ptr(), q.add(i * 2048 + j * 512));
                    prefetch(a.wrapping_add(AHEAD));
                    prefetch(a.wrapping_add(AHEAD + 64));
                    // A step that has no second one: itself, times nothing.
                    let (b, r) =
                        if steps.len() > Self::STEP { (a.add(54), p.add(256)) } else { (a, ZEROS.as_ptr()) };
                    differ |= Self::scale_bits(steps) ^ Self::scale_bits(row);
                    differ |= Self::scale_bits(&steps[steps.len() - Self::STEP..]) ^ Self::scale_bits(row);
                    let top = S::splat_u8(0x80);
                    // Elements 32 k .. of both steps.
                    macro_rules! add {
                        ($k:expr, $v:expr) => {
                            let at = Grain::Column.place(32 * $k);
                            let q = S::load_halves(p.add(at).cast(), r.add(at).cast());
                            S::sums_add(&mut sums, S::trit($v), q);
                        };
                    }
                    let mut v = S::xor(S::load_halves(a, b), top);
                    for k in 0..5 {
                        add!(k, v);
                        v = S::triple_u8(v);
                    }
                    let middle = S::load_quarters(a.add(32), a.add(32), b.add(32), b.add(32));
                    let mut v = triple::<S>(S::xor(middle, top), S::load_v(SECOND.as_ptr()));
                    add!(5, v);
                    v = nine::<S>(v, S::splat_u8(0xf8));
                    add!(6, v);
                    v = nine::<S>(v, S::splat_u8(0xf8));
                    let last = S::load_quarters(a.add(38), a.add(38), b.add(38), b.add(38));
                    let last = S::shuffle16(S::xor(last, top), S::load_v(QH.as_ptr()));
                    v = S::or(S::and(v, S::load_v(FIRST.as_ptr())), last);
                    v = triple::<S>(v, S::load_v(ODD.as_ptr()));
                    v = nine::<S>(v, S::load_v(UPPER.as_ptr()));
                    add!(7, v);
                }
                S::sums_carry(&mut sums);
            }
            (S::sums_lanes(sums), differ)
        }
    }
}

impl Ternary for Tq1_0 {
    #[inline(always)]
    fn scale_bits(block: &[u8]) -> u16 {
        u16::from_le_bytes([block[52], block[53]])
    }
    fn codes(block: &[u8], out: &mut [u8]) {
        for (e, c) in out.iter_mut().enumerate() {
            *c = code(block, e);
        }
    }

    #[inline(always)]
    unsafe fn planes<S: Bytes>(step: &[u8]) -> [S::V; 4] {
        // SAFETY: every load ends at byte 54 or before; `S` is enabled by the caller.
        unsafe {
            let p = step.as_ptr();
            let middle = S::load_quarters(p, p.add(16), p.add(32), p.add(32));
            let last = S::load_quarters(p, p.add(16), p.add(32), p.add(38));
            let last = S::shuffle16(last, S::load_v(LAST.as_ptr()));
            let mut codes = [S::load_halves(p, p), middle, middle, last];
            for l in 0..4 {
                codes[l] = S::digit3(codes[l], S::load_v(POWERS[l].as_ptr().cast()));
            }
            codes
        }
    }
    #[inline(always)]
    unsafe fn four<S: Bytes, const ARRANGED: bool>(rows: [&[u8]; 4], q: *const i8) -> ([S::V; 4], [u16; 4]) {
        if !S::SIGNED {
            // SAFETY: passed on.
            return unsafe { Self::products::<S, ARRANGED>(rows, q) };
        }
        // SAFETY: passed on.
        let [a, b, c, d] = four_of!(|r| unsafe { Self::row::<S>(rows[r], q) });
        ([a.0, b.0, c.0, d.0], [a.1, b.1, c.1, d.1])
    }
    const ARRANGED: usize = 5;
    #[inline(always)]
    unsafe fn arrange<S: Bytes>(q: *const i8, to: *mut u8) {
        // SAFETY: by the caller.
        unsafe {
            for (n, v) in by_digit::<S>(q).into_iter().enumerate() {
                S::store_v(to.add(n * 64), v);
            }
        }
    }
    /// Bytes change places, four at a time, a quarter of what their digits would be. Then digit after digit moves over the
    /// point, in the lower and in the upper bytes of 16-bit lanes.
    #[inline(always)]
    unsafe fn sixteen<S: Bytes, B: Beside>(
        rows: &[*const u8; 16],
        at: usize,
        _: bool,
        to: *mut u8,
        beside: &mut B,
    ) {
        // SAFETY: every load ends at byte 52 or before; the rest by the caller.
        unsafe {
            // The last sixteen bytes end with `qh`, which comes behind the 48 of `qs`.
            let mut turned = S::turn16::<0, 16, 32, 36>(rows.map(|row| row.wrapping_add(at)));
            turned[12] = turned[15];
            beside.next();
            digits::<S>(&turned[..6], 0, to);
            beside.next();
            digits::<S>(&turned[6..13], 6, to);
        }
    }
}

/// Blocks after which 256 times the sum of a lane, 20 digits times q a block, still fits 32 bits.
const EXACT: usize = 1 << 10;

/// The 256 values at `q` as [`Tq1_0::products`] needs them: for each digit, what it meets in each of the first 52 bytes of a block.
///
/// # Safety
/// `S` is enabled, and the column has these values.
#[inline(always)]
unsafe fn by_digit<S: Bytes>(q: *const i8) -> [S::V; 5] {
    static NONE: [u8; 4] = [0; 4];
    // SAFETY: by the caller: 32, 16 and 4 neighbours that begin at places of the step. Bytes of the last kind have four digits.
    unsafe {
        let mut all = [S::zero_v(); 5];
        for (n, v) in all.iter_mut().enumerate() {
            let at = |byte| q.add(Grain::Column.place(element(byte, n))).cast::<u8>();
            *v = S::load_52(at(0), at(32), if n < 4 { at(48) } else { NONE.as_ptr() });
        }
        all
    }
}

/// What [`Tq1_0::arrange`] has written.
///
/// # Safety
/// `S` is enabled.
#[inline(always)]
unsafe fn arranged<S: Bytes>(q: *const i8) -> [S::V; 5] {
    // SAFETY: by the caller.
    unsafe {
        let mut all = [S::zero_v(); 5];
        for (n, v) in all.iter_mut().enumerate() {
            *v = S::load_v(q.add(n * 64).cast());
        }
        all
    }
}

/// The digits of four bytes of 16 rows each, the first of which are bytes `4 * first ..` of their blocks, to the places of
/// their elements.
///
/// # Safety
/// As [`Ternary::sixteen`].
#[inline(always)]
unsafe fn digits<S: Bytes>(turned: &[S::V], first: usize, to: *mut u8) {
    // SAFETY: by the caller.
    unsafe {
        let (byte, digit) = (S::splat_i32(0x00ff_00ff), S::splat_i32(0x0300_0300));
        for (i, &bytes) in turned.iter().enumerate() {
            let at = 4 * (first + i);
            let (mut low, mut high) = (S::and(bytes, byte), S::shr16::<8>(bytes));
            for n in 0..if at < 48 { 5 } else { 4 } {
                // Three times a byte: no lane of 16 bits overflows.
                low = S::add_i32(low, S::add_i32(low, low));
                high = S::add_i32(high, S::add_i32(high, high));
                let codes = S::or(S::shr16::<8>(low), S::and(high, digit));
                S::store_v(to.add(Grain::Column.place(element(at, n)) / 4 * 128), codes);
                (low, high) = (S::and(low, byte), S::and(high, byte));
            }
        }
    }
}

ternary_float!(Tq1_0);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::EXACT;
    use crate::{Acts, BoundKernel, Format, I8Cols, Isa, Layout, Line, Mode, Ops, Out, Weights};

    /// Rows of so many blocks that 256 times a lane's sum does not fit 32 bits.
    #[test]
    fn sums_of_long_rows_are_exact() {
        let format = Format::by_name("TQ1_0").unwrap();
        let cols = 256 * (2 * EXACT + 3);
        let mut bytes = vec![0; format.tensor_bytes(1, cols).unwrap()];
        for w in [1.0, -1.0] {
            format.quantize(&vec![w; cols], cols, &mut bytes);
            let weights = Weights::new(format, &bytes, 1, cols).unwrap();
            for isa in Isa::available() {
                let kernel = BoundKernel::new(format, Mode::Int8, isa).unwrap();
                let layout = Layout { cols, grain: kernel.grain().unwrap() };
                let mut lines = vec![Line([0; 64]); layout.record_bytes() / 64];
                Ops::new(isa).unwrap().quantize(&vec![127.0; cols], layout, &mut lines);
                let (acts, mut y) = (Acts::I8(I8Cols::new(&lines, layout, 1)), [0.0]);
                kernel.run(&weights, &acts, Out::new(&mut y, 1, 0, 1, 1));
                // A multiple of 256 and below 2^27, so exact as f32.
                assert_eq!(f64::from(y[0]), f64::from(w) * 127.0 * cols as f64, "{isa}");
            }
        }
    }
}
