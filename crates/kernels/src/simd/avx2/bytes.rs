//! [`Bytes`]: integers, and what mixes them with floats.

// Every body below is one or a few intrinsics. The trait's contract (the instruction set is enabled, the
// pointers are valid for the lanes named) is exactly what they need, so each `unsafe` block rests on it.
#![allow(clippy::undocumented_unsafe_blocks, clippy::wildcard_imports)]

use super::{Avx2, both};
use crate::isa::Isa;
use crate::simd::{Bytes, Lanes};
use std::arch::x86_64::*;

/// The 16-bit values at `p`, `p + stride` …, `n <= 16` of them, zeros after; touches only those.
#[inline(always)]
pub(crate) unsafe fn halves_every(p: *const u8, stride: usize, n: usize) -> __m256i {
    unsafe {
        if n < 8 {
            let mut some = [0u16; 16];
            for (i, x) in some.iter_mut().enumerate().take(n) {
                *x = p.add(i * stride).cast::<u16>().read_unaligned();
            }
            return _mm256_loadu_si256(some.as_ptr().cast());
        }
        let low = eight_every(p, stride);
        if n == 8 {
            return _mm256_zextsi128_si256(low);
        }
        if n == 16 {
            return _mm256_setr_m128i(low, eight_every(p.add(8 * stride), stride));
        }
        // Those that overlap are shifted out: the last eight, moved to their places.
        let high = eight_every(p.add((n - 8) * stride), stride);
        let mut both = [0u16; 24];
        _mm_storeu_si128(both.as_mut_ptr().add(n - 8).cast(), high);
        _mm_storeu_si128(both.as_mut_ptr().cast(), low);
        _mm256_loadu_si256(both.as_ptr().cast())
    }
}

/// Eight 16-bit values, `stride` bytes apart.
#[inline(always)]
unsafe fn eight_every(p: *const u8, stride: usize) -> __m128i {
    let mut at = [p; 8];
    for (i, at) in at.iter_mut().enumerate() {
        *at = p.wrapping_add(i * stride);
    }
    unsafe { eight_at(&at) }
}

/// Eight 16-bit values at pointers of their own.
#[inline(always)]
pub(crate) unsafe fn eight_at(p: &[*const u8]) -> __m128i {
    macro_rules! insert {
        ($v:expr, $($i:literal)*) => {{
            let mut v = $v;
            $(v = _mm_insert_epi16::<$i>(v, i32::from(p[$i].cast::<u16>().read_unaligned()));)*
            v
        }};
    }
    unsafe { insert!(_mm_setzero_si128(), 0 1 2 3 4 5 6 7) }
}

/// Four 16-bit values at each of two pointers.
#[inline(always)]
pub(crate) unsafe fn fours_at(a: *const u16, b: *const u16) -> __m128i {
    unsafe { _mm_unpacklo_epi64(_mm_loadl_epi64(a.cast()), _mm_loadl_epi64(b.cast())) }
}

/// For each 32-bit position of a 128-bit half: fma((sum of both halves - minus) as f32, d, 0) * scale.
#[inline(always)]
pub(crate) unsafe fn scaled4(halves: __m256i, minus: i32, d: [u16; 4], scale: f32) -> [f32; 4] {
    unsafe {
        let sum = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
        let sum = _mm_cvtepi32_ps(_mm_sub_epi32(sum, _mm_set1_epi32(minus)));
        let d = _mm_cvtph_ps(_mm_loadl_epi64(d.as_ptr().cast()));
        let y = _mm_mul_ps(_mm_fmadd_ps(sum, d, _mm_setzero_ps()), _mm_set1_ps(scale));
        let mut out = [0f32; 4];
        _mm_storeu_ps(out.as_mut_ptr(), y);
        out
    }
}

/// Sums of codes times int8, as pairs of 16-bit products that still fit, and what was carried out of them.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    narrow: (__m256i, __m256i),
    wide: (__m256i, __m256i),
}

/// Running sums of a row: pairs of 16-bit products that still fit, and what was carried out of them.
#[derive(Clone, Copy)]
pub(crate) struct Planes {
    narrow: __m256i,
    wide: __m256i,
}

/// Adds code * q for 32 bytes of codes of each row. Four products of a code up to 3, twice, are 3048 at most: ten additions fit. One load of
/// q for all rows: a processor loads two vectors in a cycle, in which it could compute with four.
#[inline(always)]
unsafe fn planes_half<const HIGH_FIRST: bool>(sums: &mut [__m256i; 4], mut w: [__m256i; 4], q: *const i8) {
    unsafe {
        for bits in 0..4 {
            let q = _mm256_loadu_si256(q.add(64 * if HIGH_FIRST { 3 - bits } else { bits }).cast());
            for r in 0..4 {
                let code = _mm256_and_si256(w[r], _mm256_set1_epi8(3));
                sums[r] = _mm256_add_epi16(sums[r], _mm256_maddubs_epi16(code, q));
                w[r] = _mm256_srli_epi16::<2>(w[r]);
            }
        }
    }
}

impl Bytes for Avx2 {
    type V = (__m256i, __m256i);
    const ISA: Isa = Isa::Avx2;
    const REGISTERS: usize = 16;
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn load_v(p: *const u8) -> Self::V {
        unsafe { Self::load_halves(p, p.add(32)) }
    }
    #[inline(always)]
    unsafe fn store_v(p: *mut u8, v: Self::V) {
        unsafe {
            _mm256_storeu_si256(p.cast(), v.0);
            _mm256_storeu_si256(p.add(32).cast(), v.1);
        }
    }
    #[inline(always)]
    unsafe fn load_halves(lo: *const u8, hi: *const u8) -> Self::V {
        unsafe { (_mm256_loadu_si256(lo.cast()), _mm256_loadu_si256(hi.cast())) }
    }
    #[inline(always)]
    unsafe fn load_quarters(a: *const u8, b: *const u8, c: *const u8, d: *const u8) -> Self::V {
        unsafe { (_mm256_loadu2_m128i(b.cast(), a.cast()), _mm256_loadu2_m128i(d.cast(), c.cast())) }
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u8) -> Self::V {
        unsafe { (_mm256_loadu_si256(p.cast()), _mm256_setzero_si256()) }
    }
    #[inline(always)]
    unsafe fn load_52(a: *const u8, b: *const u8, c: *const u8) -> Self::V {
        unsafe {
            let last = _mm_cvtsi32_si128(c.cast::<i32>().read_unaligned());
            (_mm256_loadu_si256(a.cast()), _mm256_setr_m128i(_mm_loadu_si128(b.cast()), last))
        }
    }
    #[inline(always)]
    unsafe fn load_f16_every(p: *const u8, stride: usize, n: usize) -> Self::F {
        unsafe {
            let h = halves_every(p, stride, n);
            (_mm256_cvtph_ps(_mm256_castsi256_si128(h)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(h)))
        }
    }
    #[inline(always)]
    unsafe fn load_f16_each(p: &[*const u8; 16]) -> Self::F {
        unsafe { (_mm256_cvtph_ps(eight_at(&p[..8])), _mm256_cvtph_ps(eight_at(&p[8..]))) }
    }
    #[inline(always)]
    unsafe fn load_f16_rows([a, b, c, d]: [*const u16; 4]) -> Self::F {
        unsafe { (_mm256_cvtph_ps(fours_at(a, b)), _mm256_cvtph_ps(fours_at(c, d))) }
    }
    #[inline(always)]
    unsafe fn load_rows([a, b, c, d]: [*const f32; 4]) -> Self::F {
        unsafe {
            let two = |a, b| _mm256_setr_m128(_mm_loadu_ps(a), _mm_loadu_ps(b));
            (two(a, b), two(c, d))
        }
    }
    #[inline(always)]
    unsafe fn store_rows([a, b, c, d]: [*mut f32; 4], v: Self::F) {
        unsafe {
            _mm_storeu_ps(a, _mm256_castps256_ps128(v.0));
            _mm_storeu_ps(b, _mm256_extractf128_ps::<1>(v.0));
            _mm_storeu_ps(c, _mm256_castps256_ps128(v.1));
            _mm_storeu_ps(d, _mm256_extractf128_ps::<1>(v.1));
        }
    }
    #[inline(always)]
    unsafe fn repeat(p: *const f32) -> Self::F {
        unsafe {
            let v = _mm256_broadcast_ps(&*p.cast());
            (v, v)
        }
    }
    #[inline(always)]
    unsafe fn fold_rows([a, b, c, d]: [Self::F; 4]) -> [f32; 4] {
        unsafe {
            let v = Self::add(Self::add(a, c), Self::add(b, d));
            // l + l+2 and l + l+1 in each 128 bits.
            let h = |v| {
                let v = _mm256_add_ps(v, _mm256_permute_ps::<0b11_10>(v));
                _mm256_add_ps(v, _mm256_movehdup_ps(v))
            };
            let (low, high) = (h(v.0), h(v.1));
            let mut rows = [0f32; 16];
            Self::store(rows.as_mut_ptr(), (low, high));
            [rows[0], rows[4], rows[8], rows[12]]
        }
    }
    #[inline(always)]
    unsafe fn reduce_halves([a, b]: [Self::F; 2]) -> [f32; 4] {
        unsafe { super::reduce_add4_8([a.0, a.1, b.0, b.1]) }
    }
    #[inline(always)]
    unsafe fn spread2(p: *const u8) -> Self::V {
        unsafe {
            // In a 32-bit lane with byte b: b | b << 6 | b << 12 | b << 18 has field j at bit 8j.
            let h = |p: *const u8| {
                let v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
                let v = _mm256_or_si256(v, _mm256_slli_epi32::<12>(v));
                let v = _mm256_or_si256(v, _mm256_slli_epi32::<6>(v));
                _mm256_and_si256(v, _mm256_set1_epi8(3))
            };
            (h(p), h(p.add(8)))
        }
    }
    #[inline(always)]
    unsafe fn load_twice_shr<const N: u32>(p: *const u8) -> Self::V {
        unsafe {
            let v = _mm256_loadu_si256(p.cast());
            (v, _mm256_srl_epi16(v, _mm_cvtsi32_si128(N as i32)))
        }
    }
    #[inline(always)]
    unsafe fn load_nibbles2(a: *const u8, b: *const u8) -> Self::V {
        unsafe {
            let shift = _mm256_setr_epi64x(0, 0, 4, 4);
            let h = |p: *const u8| {
                let v = _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast()));
                _mm256_and_si256(_mm256_srlv_epi64(v, shift), _mm256_set1_epi8(15))
            };
            (h(a), h(b))
        }
    }
    #[inline(always)]
    unsafe fn repeat_i16(p: *const i16) -> Self::V {
        unsafe {
            let four = _mm256_set1_epi64x(p.cast::<i64>().read_unaligned());
            let first = _mm256_setr_m128i(_mm_set1_epi16(0x0100), _mm_set1_epi16(0x0302));
            let second = _mm256_setr_m128i(_mm_set1_epi16(0x0504), _mm_set1_epi16(0x0706));
            (_mm256_shuffle_epi8(four, first), _mm256_shuffle_epi8(four, second))
        }
    }
    #[inline(always)]
    unsafe fn zero_v() -> Self::V {
        unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }
    #[inline(always)]
    unsafe fn splat_u8(x: u8) -> Self::V {
        unsafe { (_mm256_set1_epi8(x.cast_signed()), _mm256_set1_epi8(x.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn and(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_and_si256, a, b)
    }
    #[inline(always)]
    unsafe fn or(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_or_si256, a, b)
    }
    #[inline(always)]
    unsafe fn xor(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_xor_si256, a, b)
    }
    #[inline(always)]
    unsafe fn shl32<const N: u32>(a: Self::V) -> Self::V {
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            (_mm256_sll_epi32(a.0, n), _mm256_sll_epi32(a.1, n))
        }
    }
    #[inline(always)]
    unsafe fn sar32<const N: u32>(a: Self::V) -> Self::V {
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            (_mm256_sra_epi32(a.0, n), _mm256_sra_epi32(a.1, n))
        }
    }
    #[inline(always)]
    unsafe fn shr16<const N: u32>(a: Self::V) -> Self::V {
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            (_mm256_srl_epi16(a.0, n), _mm256_srl_epi16(a.1, n))
        }
    }
    #[inline(always)]
    unsafe fn shl16<const N: u32>(a: Self::V) -> Self::V {
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            (_mm256_sll_epi16(a.0, n), _mm256_sll_epi16(a.1, n))
        }
    }
    #[inline(always)]
    unsafe fn sub_u8(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_sub_epi8, a, b)
    }
    #[inline(always)]
    unsafe fn triple_u8(a: Self::V) -> Self::V {
        unsafe { Self::add_u8(a, Self::add_u8(a, a)) }
    }
    #[inline(always)]
    unsafe fn add_u8(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_add_epi8, a, b)
    }
    #[inline(always)]
    unsafe fn trit(a: Self::V) -> Self::V {
        unsafe {
            // 86 and 171, 128 less here, are the first bytes whose triple reaches 256 and 512.
            let h = |a| {
                let one = _mm256_cmpgt_epi8(a, _mm256_set1_epi8(-43));
                let two = _mm256_cmpgt_epi8(a, _mm256_set1_epi8(42));
                _mm256_abs_epi8(_mm256_add_epi8(one, two))
            };
            (h(a.0), h(a.1))
        }
    }
    #[inline(always)]
    unsafe fn add_i32(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_add_epi32, a, b)
    }
    #[inline(always)]
    unsafe fn shuffle16(a: Self::V, index: Self::V) -> Self::V {
        both!(_mm256_shuffle_epi8, a, index)
    }
    #[inline(always)]
    unsafe fn digit3(a: Self::V, power: Self::V) -> Self::V {
        unsafe {
            // A byte times power * 256 leaves byte * power % 256 in the upper byte of 16 bits and 0 in the
            // lower; three times that byte has the digit in bits 8 and 9.
            let three = _mm256_set1_epi16(0x0300);
            let h = |a, power| {
                let even = _mm256_maddubs_epi16(_mm256_mullo_epi16(a, power), three);
                let odd = _mm256_mullo_epi16(_mm256_srli_epi16::<8>(a), power);
                let odd = _mm256_and_si256(_mm256_maddubs_epi16(odd, three), three);
                _mm256_or_si256(_mm256_srli_epi16::<8>(even), odd)
            };
            (h(a.0, power.0), h(a.1, power.1))
        }
    }
    #[inline(always)]
    unsafe fn eq_mask(a: Self::V, b: Self::V) -> u64 {
        unsafe {
            let lo = _mm256_movemask_epi8(_mm256_cmpeq_epi8(a.0, b.0)).cast_unsigned();
            let hi = _mm256_movemask_epi8(_mm256_cmpeq_epi8(a.1, b.1)).cast_unsigned();
            u64::from(lo) | u64::from(hi) << 32
        }
    }
    #[inline(always)]
    unsafe fn expand_mask(bits: u64) -> Self::V {
        unsafe {
            // Byte j of a half looks at bit j % 8 of mask byte j / 8.
            let spread =
                _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201u64.cast_signed());
            let h = |bits: u32| {
                let v = _mm256_shuffle_epi8(_mm256_set1_epi32(bits.cast_signed()), spread);
                _mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit)
            };
            (h(bits as u32), h((bits >> 32) as u32))
        }
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: Self::V, u: Self::V, s: Self::V) -> Self::V {
        unsafe {
            let one = _mm256_set1_epi16(1);
            let h = |acc, u, s| _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), one));
            (h(acc.0, u.0, s.0), h(acc.1, u.1, s.1))
        }
    }
    #[inline(always)]
    unsafe fn dot_i8(acc: Self::V, w: Self::V, s: Self::V) -> Self::V {
        unsafe {
            let u = (_mm256_abs_epi8(w.0), _mm256_abs_epi8(w.1));
            Self::dot_u8(acc, u, (_mm256_sign_epi8(s.0, w.0), _mm256_sign_epi8(s.1, w.1)))
        }
    }
    #[inline(always)]
    unsafe fn dot_u8_scaled(acc: Self::V, u: Self::V, s: Self::V, k: Self::V) -> Self::V {
        unsafe {
            let h = |acc, u, s, k| _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), k));
            (h(acc.0, u.0, s.0, k.0), h(acc.1, u.1, s.1, k.1))
        }
    }
    #[inline(always)]
    unsafe fn dot_i16(a: Self::V, b: *const i16) -> Self::V {
        unsafe { (_mm256_madd_epi16(a.0, _mm256_loadu_si256(b.cast())), _mm256_setzero_si256()) }
    }
    #[inline(always)]
    unsafe fn splat_u64(x: u64) -> Self::V {
        unsafe { (_mm256_set1_epi64x(x.cast_signed()), _mm256_set1_epi64x(x.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn widen_i8(p: *const i8) -> Self::V {
        unsafe { (_mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())), _mm256_setzero_si256()) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self::V, a: Self::V, b: Self::V) -> Self::V {
        unsafe {
            let h = |acc, a, b| _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
            (h(acc.0, a.0, b.0), h(acc.1, a.1, b.1))
        }
    }
    #[inline(always)]
    unsafe fn splat4(p: *const i8) -> Self::V {
        unsafe { Self::splat_i32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::V {
        unsafe { (_mm256_set1_epi32(x), _mm256_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn sub_i32(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_sub_epi32, a, b)
    }
    #[inline(always)]
    unsafe fn mul_i32(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_mullo_epi32, a, b)
    }
    #[inline(always)]
    unsafe fn to_i32(a: Self::F) -> Self::V {
        both!(_mm256_cvtps_epi32, a)
    }
    #[inline(always)]
    unsafe fn bits_of_f(a: Self::F) -> Self::V {
        unsafe { (_mm256_castps_si256(a.0), _mm256_castps_si256(a.1)) }
    }
    #[inline(always)]
    unsafe fn turn16<const A: usize, const B: usize, const C: usize, const D: usize>(
        rows: [*const u8; 16],
    ) -> [Self::V; 16] {
        unsafe {
            let mut columns = [Self::zero_v(); 16];
            for (k, quad) in [A, B, C, D].into_iter().enumerate() {
                for down in 0..2 {
                    // Rows i and i + 4 side by side, so that halves need not change places.
                    let mut pairs = [_mm256_setzero_si256(); 4];
                    for (i, pair) in pairs.iter_mut().enumerate() {
                        let (low, high) = (rows[8 * down + i], rows[8 * down + i + 4]);
                        *pair = _mm256_loadu2_m128i(high.add(quad).cast(), low.add(quad).cast());
                    }
                    let [a, b, c, d] = pairs;
                    let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
                    let (ef, gh) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
                    let four = [
                        _mm256_unpacklo_epi64(ab, cd),
                        _mm256_unpackhi_epi64(ab, cd),
                        _mm256_unpacklo_epi64(ef, gh),
                        _mm256_unpackhi_epi64(ef, gh),
                    ];
                    for (j, v) in four.into_iter().enumerate() {
                        let column = &mut columns[4 * k + j];
                        *(if down == 0 { &mut column.0 } else { &mut column.1 }) = v;
                    }
                }
            }
            columns
        }
    }

    type Sums = Sums;
    #[inline(always)]
    unsafe fn sums_from(v: Self::V) -> Sums {
        unsafe { Sums { narrow: Self::zero_v(), wide: v } }
    }
    #[inline(always)]
    unsafe fn sums_add(sums: &mut Sums, u: Self::V, s: Self::V) {
        unsafe {
            let h = |narrow, u, s| _mm256_add_epi16(narrow, _mm256_maddubs_epi16(u, s));
            sums.narrow = (h(sums.narrow.0, u.0, s.0), h(sums.narrow.1, u.1, s.1));
        }
    }
    #[inline(always)]
    unsafe fn sums_add_wide(sums: &mut Sums, w: Self::V, s: Self::V) {
        unsafe { sums.wide = Self::dot_i8(sums.wide, w, s) }
    }
    #[inline(always)]
    unsafe fn scaled(acc: Self::V, sums: Sums, k: Self::V) -> Self::V {
        unsafe { Self::dot_pairs(acc, sums.narrow, k) }
    }
    #[inline(always)]
    unsafe fn scale_low(pairs: Self::V) -> Self::V {
        // The scale in both halves: it meets two sums of two products.
        unsafe {
            let h = |v| _mm256_blend_epi16::<0b1010_1010>(v, _mm256_slli_epi32::<16>(v));
            (h(pairs.0), h(pairs.1))
        }
    }
    #[inline(always)]
    unsafe fn scale_high(pairs: Self::V) -> Self::V {
        unsafe {
            let h = |v| _mm256_blend_epi16::<0b0101_0101>(v, _mm256_srli_epi32::<16>(v));
            (h(pairs.0), h(pairs.1))
        }
    }
    #[inline(always)]
    unsafe fn sums_carry(sums: &mut Sums) {
        unsafe {
            let one = _mm256_set1_epi16(1);
            let h = |wide, narrow| _mm256_add_epi32(wide, _mm256_madd_epi16(narrow, one));
            sums.wide = (h(sums.wide.0, sums.narrow.0), h(sums.wide.1, sums.narrow.1));
            sums.narrow = Self::zero_v();
        }
    }
    #[inline(always)]
    unsafe fn sums_lanes(sums: Sums) -> Self::V {
        sums.wide
    }

    type Planes = [Planes; 4];
    #[inline(always)]
    unsafe fn planes_zero() -> [Planes; 4] {
        unsafe { [Planes { narrow: _mm256_setzero_si256(), wide: _mm256_setzero_si256() }; 4] }
    }
    #[inline(always)]
    unsafe fn planes_add<const HIGH_FIRST: bool>(rows: &mut [Planes; 4], w: [Self::V; 4], q: *const i8) {
        unsafe {
            let [a, b, c, d] = w;
            let mut sums = [rows[0].narrow, rows[1].narrow, rows[2].narrow, rows[3].narrow];
            planes_half::<HIGH_FIRST>(&mut sums, [a.0, b.0, c.0, d.0], q);
            planes_half::<HIGH_FIRST>(&mut sums, [a.1, b.1, c.1, d.1], q.add(32));
            for r in 0..4 {
                rows[r].narrow = sums[r];
            }
        }
    }
    #[inline(always)]
    unsafe fn planes_one<const HIGH_FIRST: bool>(w: [Self::V; 4], q: *const i8) -> [Self::V; 4] {
        unsafe {
            let mut sums = Self::planes_zero();
            Self::planes_add::<HIGH_FIRST>(&mut sums, w, q);
            Self::planes_carry(&mut sums);
            Self::planes_sum::<HIGH_FIRST>(sums)
        }
    }
    #[inline(always)]
    unsafe fn planes_carry(rows: &mut [Planes; 4]) {
        unsafe {
            for row in rows {
                let sums = _mm256_madd_epi16(row.narrow, _mm256_set1_epi16(1));
                *row = Planes { narrow: _mm256_setzero_si256(), wide: _mm256_add_epi32(row.wide, sums) };
            }
        }
    }
    #[inline(always)]
    unsafe fn planes_sum<const HIGH_FIRST: bool>([a, b, c, d]: [Planes; 4]) -> [Self::V; 4] {
        let none = unsafe { _mm256_setzero_si256() };
        [(a.wide, none), (b.wide, none), (c.wide, none), (d.wide, none)]
    }
    #[inline(always)]
    unsafe fn scaled_sums4<const NARROW: bool>(
        lanes: [Self::V; 4],
        minus: i32,
        ds: [u16; 4],
        scale: f32,
    ) -> [f32; 4] {
        unsafe {
            let [a, b, c, d] = lanes.map(|v| _mm256_add_epi32(v.0, v.1));
            scaled4(_mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d)), minus, ds, scale)
        }
    }
    type Quad = __m256i;
    type Octet = __m256i;
    #[inline(always)]
    unsafe fn quad<const NARROW: bool>(a: Self::V, b: Self::V) -> __m256i {
        unsafe {
            if NARROW {
                let one = _mm256_set1_epi16(1);
                let pair = |a, b| _mm256_madd_epi16(_mm256_packs_epi32(a, b), one);
                pair(pair(a.0, a.1), pair(b.0, b.1))
            } else {
                _mm256_hadd_epi32(_mm256_hadd_epi32(a.0, a.1), _mm256_hadd_epi32(b.0, b.1))
            }
        }
    }
    #[inline(always)]
    unsafe fn octet(a: __m256i, b: __m256i) -> __m256i {
        unsafe {
            let (low, high) =
                (_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b));
            _mm256_add_epi32(low, high)
        }
    }
    #[inline(always)]
    unsafe fn sixteen(a: __m256i, b: __m256i) -> Self::V {
        (a, b)
    }
    #[inline(always)]
    unsafe fn beside(a: Self::V, b: Self::V) -> Self::V {
        unsafe { (_mm256_add_epi32(a.0, a.1), _mm256_add_epi32(b.0, b.1)) }
    }
    #[inline(always)]
    unsafe fn halves(a: Self::V, b: Self::V) -> Self::V {
        (a.0, b.0)
    }
    #[inline(always)]
    unsafe fn to_f32(a: Self::V) -> Self::F {
        both!(_mm256_cvtepi32_ps, a)
    }
    #[inline(always)]
    unsafe fn sum_i32(a: Self::V) -> i32 {
        unsafe {
            let v = _mm256_add_epi32(a.0, a.1);
            let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
            _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<0b00_00_00_01>(v)))
        }
    }
}
