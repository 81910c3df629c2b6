//! Four rows in three products: a tiling for processors that multiply bytes up to 255.
//!
//! A ternary code needs 0, 1 and 2 of the 256 values that a byte of weights has. So a byte holds two: with a, b and c the codes of rows of
//! the first three quarters of a tile and d that of a row of the last one, the lines are
//!
//! ```text
//! 125 a + d        123 b + d        121 c + d        at most 252
//! ```
//!
//! and 64 rows are 48 lanes. What such bytes and a column's values q add up to is, with each row's sum S of weights times values, and
//! after so many times the sum of q is taken off (codes are one more than weights):
//!
//! ```text
//! A = 125 S(a) + S(d)        B = 123 S(b) + S(d)        C = 121 S(c) + S(d)
//! ```
//!
//! So the rest of each by its modulus is that of S(d), and since no two moduli have a factor in common, the three rests say what S(d) is
//! by the product of all, 1860375 (the Chinese remainder theorem). Of [`EXACT`](Tiling::EXACT) steps S(d) is at most
//! 127 * 7168 = 910336 in magnitude, less than half of that: it is known. Then the other sums are exact divisions. Three sums
//! become four in some forty instructions, and rows have hundreds to thousands of products.

use super::ternary::{Ternary, two_bit_turned};
use super::tile::{Tiling, group};
use crate::acts::Line;
use crate::simd::Bytes;
use std::mem::MaybeUninit;

/// Columns from which on four rows in three products pay.
pub(super) const COLUMNS: usize = 13;

/// What the codes of the first three quarters are multiplied with.
const MODULI: [i32; 3] = [125, 123, 121];
/// S(d) is known by this modulus.
const ALL: i64 = MODULI[0] as i64 * MODULI[1] as i64 * MODULI[2] as i64;

/// The inverse of `x` by a modulus: what times it leaves the rest 1.
const fn inverse(x: i64, modulus: i64) -> i64 {
    let mut y = 1;
    while x * y % modulus != 1 {
        y += 1;
    }
    y
}

/// What a rest by each modulus adds to S(d) / [`ALL`], whose whole part is of no interest, in units of 2^-32.
const SHARES: [i32; 3] = {
    let mut shares = [0; 3];
    let mut i = 0;
    while i < 3 {
        let m = MODULI[i] as i64;
        let share = inverse(ALL / m % m, m);
        shares[i] = (((share << 32) + m / 2) / m) as i32;
        i += 1;
    }
    shares
};

/// The inverse of each modulus by 2^32: times it is an exact division.
const INVERSES: [i32; 3] = {
    let mut inverses = [1i32; 3];
    let mut i = 0;
    while i < 15 {
        // Newton: each round has twice as many bits right, the first one one.
        let (m, y) = (MODULI[i % 3], inverses[i % 3]);
        inverses[i % 3] = y.wrapping_mul(2i32.wrapping_sub(m.wrapping_mul(y)));
        i += 1;
    }
    inverses
};

/// Two codes a byte, of which one is in all three lines.
pub(super) struct Joint;

/// The bytes of each line: entry `a | d << 2` is `modulus * a + d`.
static TABLES: [Line; 3] = {
    let mut tables = [Line([0; 64]); 3];
    let mut i = 0;
    while i < 3 * 64 {
        let (own, fourth) = (i % 4, i % 16 / 4);
        if own < 3 && fourth < 3 {
            tables[i / 64].0[i % 64] = MODULI[i / 64] as u8 * own as u8 + fourth as u8;
        }
        i += 1;
    }
    tables
};

/// Bytes of a line of the table whose entries the low halves of bytes name.
///
/// # Safety
/// `S` is enabled.
#[inline(always)]
unsafe fn joined<S: Bytes>(line: usize, codes: S::V) -> S::V {
    // SAFETY: by the caller; a line is 64 bytes.
    unsafe { S::shuffle16(S::load_v(TABLES[line].0.as_ptr()), S::and(codes, S::splat_u8(0x0f))) }
}

/// [`Tiling::unpack`] for any format, from its codes.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn join_codes<T: Ternary + ?Sized, S: Bytes>(
    rows: &[[*const u8; 16]],
    at: usize,
    half: bool,
    to: *mut u8,
) -> bool {
    // Of the last quarter and another, side by side.
    let mut codes = MaybeUninit::<[[Line; 2]; 64]>::uninit();
    let codes = codes.as_mut_ptr().cast::<u8>();
    // SAFETY: by the caller; both have 64 lines, 128 bytes apart, which are written before they are read.
    unsafe {
        let mut over = S::zero_v();
        T::sixteen::<S, ()>(&rows[3], at, half, codes, &mut ());
        for line in 0..3 {
            T::sixteen::<S, ()>(&rows[line], at, half, codes.add(64), &mut ());
            for i in 0..64 {
                let (d, a) = (S::load_v(codes.add(128 * i)), S::load_v(codes.add(128 * i + 64)));
                over = S::or(over, S::or(threes::<S>(a), threes::<S>(d)));
                S::store_v(to.add(192 * i + 64 * line), joined::<S>(line, S::or(a, S::shl16::<2>(d))));
            }
        }
        are_none::<S>(over, 1)
    }
}

/// The same for two bits a code, where they lie as [`two_bit_sixteen`](super::ternary::two_bit_sixteen) says: bytes meet before they are
/// codes.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn join_two_bits<T: Ternary, S: Bytes, const HIGH_FIRST: bool>(
    rows: &[[*const u8; 16]],
    at: usize,
    half: bool,
    to: *mut u8,
) -> bool {
    let mut fourth = [const { MaybeUninit::<Line>::uninit() }; 16];
    // SAFETY: by the caller; the last quarter's bytes are written first.
    unsafe {
        let mut over = S::zero_v();
        for quarter in [3, 0, 1, 2] {
            let turned = two_bit_turned::<T, S>(&rows[quarter], at, half);
            for j in 0..16 {
                let (w, fourth) = (turned[j], fourth[j].as_mut_ptr().cast());
                over = S::or(over, threes::<S>(w));
                if quarter == 3 {
                    S::store_v(fourth, w);
                    continue;
                }
                // Of each pair of planes in a half of a byte the lower one and the upper one: a, and d two bits higher.
                let (a, d, fourth) = (S::splat_u8(0x33), S::splat_u8(0xcc), S::load_v(fourth));
                let even = S::or(S::and(w, a), S::and(S::shl16::<2>(fourth), d));
                let odd = S::or(S::and(S::shr16::<2>(w), a), S::and(fourth, d));
                let codes = [even, odd, S::shr16::<4>(even), S::shr16::<4>(odd)];
                for (plane, codes) in codes.into_iter().enumerate() {
                    let l = if HIGH_FIRST { 3 - plane } else { plane };
                    S::store_v(to.add(192 * (16 * l + j) + 64 * quarter), joined::<S>(quarter, codes));
                }
            }
        }
        are_none::<S>(over, 0x55)
    }
}

/// In the lower bit of each pair, whether both are set: the code 3, which no encoder writes. Other bits have no meaning.
#[inline(always)]
unsafe fn threes<S: Bytes>(codes: S::V) -> S::V {
    // SAFETY: `S` is enabled by the caller.
    unsafe { S::and(codes, S::shr16::<1>(codes)) }
}

/// Whether none of the bits `of` is set in any byte.
#[inline(always)]
unsafe fn are_none<S: Bytes>(bits: S::V, of: u8) -> bool {
    // SAFETY: `S` is enabled by the caller.
    unsafe { S::eq_mask(S::and(bits, S::splat_u8(of)), S::zero_v()) == u64::MAX }
}

impl Tiling for Joint {
    const ROWS: usize = 64;
    const LINES: usize = 3;
    const EXACT: usize = 28;

    #[inline(always)]
    unsafe fn unpack<T: Ternary, S: Bytes>(
        rows: &[[*const u8; 16]],
        at: usize,
        half: bool,
        to: *mut u8,
    ) -> bool {
        // SAFETY: by the caller.
        unsafe { T::joint::<S>(rows, at, half, to) }
    }
    #[inline(always)]
    fn at_once<S: Bytes>(left: usize) -> usize {
        if left > 4 { 8 } else { 4 }
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
                8 => group::<S, 8, 3, 3>(codes, columns, at, fresh, sums),
                _ => group::<S, 4, 3, 3>(codes, columns, at, fresh, sums),
            }
        }
    }
    /// Rests are taken with a quotient that is 0.2 off at most, so they are below 90; with three of those, shares that are half a unit
    /// off put S(d) off by 0.06, and the 24 bits of f32 by 0.11: it is still the nearest integer.
    #[inline(always)]
    unsafe fn sums<S: Bytes>(lines: &[Line], minus: i32) -> [S::V; 4] {
        // SAFETY: by the caller.
        unsafe {
            let (mut sums, mut fraction) = ([S::zero_v(); 4], S::zero_v());
            for i in 0..3 {
                let m = MODULI[i];
                let sum =
                    S::sub_i32(S::load_v(lines[i].0.as_ptr()), S::splat_i32((m + 1).wrapping_mul(minus)));
                let times = S::to_i32(S::mul(S::to_f32(sum), S::splat(1.0 / m as f32)));
                let rest = S::sub_i32(sum, S::mul_i32(times, S::splat_i32(m)));
                fraction = S::add_i32(fraction, S::mul_i32(rest, S::splat_i32(SHARES[i])));
                sums[i] = sum;
            }
            let fourth = S::to_i32(S::mul(S::to_f32(fraction), S::splat(ALL as f32 / 4_294_967_296.0)));
            for i in 0..3 {
                sums[i] = S::mul_i32(S::sub_i32(sums[i], fourth), S::splat_i32(INVERSES[i]));
            }
            sums[3] = fourth;
            sums
        }
    }
}
