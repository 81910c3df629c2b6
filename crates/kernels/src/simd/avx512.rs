//! The idioms in AVX-512 (F, BW, DQ, VL, VNNI).

// Every body below is one or a few intrinsics. The trait's contract (the instruction set is enabled, the
// pointers are valid for the lanes named) is exactly what they need, so each `unsafe` block rests on it.
#![allow(clippy::undocumented_unsafe_blocks, clippy::wildcard_imports)]

use super::{Bytes, Lanes};
use crate::isa::Isa;
use std::arch::x86_64::*;

/// AVX-512 vectors: one zmm register each.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

#[inline(always)]
fn first(n: usize) -> u16 {
    ((1u32 << n) - 1) as u16
}

/// The same vector, of which the compiler knows nothing.
#[inline]
#[target_feature(enable = "avx512f")]
fn opaque(mut v: __m512i) -> __m512i {
    unsafe {
        std::arch::asm!("/* {0} */", inout(zmm_reg) v, options(pure, nomem, nostack, preserves_flags));
    }
    v
}

impl Lanes for Avx512 {
    type F = __m512;
    type D = __m512d;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn splat2(a: f32, b: f32) -> __m512 {
        unsafe { _mm512_mask_broadcastss_ps(_mm512_set1_ps(a), 0xff00, _mm_set_ss(b)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps(first(n), p) }
    }
    #[inline(always)]
    unsafe fn load_n_or(p: *const f32, n: usize, or: f32) -> __m512 {
        unsafe { _mm512_mask_loadu_ps(_mm512_set1_ps(or), first(n), p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, n: usize, v: __m512) {
        unsafe { _mm512_mask_storeu_ps(p, first(n), v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16_n(p: *const u16, n: usize) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(p.read_unaligned().cast_signed())) }
    }
    #[inline(always)]
    unsafe fn f16_to_f32(bits: u16) -> f32 {
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        unsafe {
            let x = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_n(p: *const u16, n: usize) -> __m512 {
        unsafe {
            let x = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: __m512) {
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn exp2i(n: __m512) -> __m512 {
        unsafe {
            let e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(e))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: __m512) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    unsafe fn reduce_add(v: __m512) -> f32 {
        unsafe {
            let a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            super::avx2::reduce_add_8(a)
        }
    }
    #[inline(always)]
    unsafe fn reduce_add4([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        unsafe {
            let half = |v| _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            super::avx2::reduce_add4_8([half(a), half(b), half(c), half(d)])
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(v: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(v) }
    }
    #[inline(always)]
    unsafe fn zero_d() -> __m512d {
        unsafe { _mm512_setzero_pd() }
    }
    #[inline(always)]
    unsafe fn add_sub(acc: __m512d, x: *const f32, plus: u8, minus: u8) -> __m512d {
        unsafe {
            let x = _mm512_cvtps_pd(_mm256_loadu_ps(x));
            let acc = _mm512_mask_add_pd(acc, plus, acc, x);
            _mm512_mask_sub_pd(acc, minus, acc, x)
        }
    }
    #[inline(always)]
    unsafe fn reduce_add_d(v: __m512d) -> f64 {
        unsafe {
            let a = _mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd::<1>(v));
            super::avx2::reduce_add_d4(a)
        }
    }
}

/// A row of [`Bytes::planes_one`].
#[inline(always)]
unsafe fn one<const HIGH_FIRST: bool>(w: __m512i, q: *const i8) -> __m512i {
    unsafe {
        // The upper bits of each half of a byte first, four times too large: one chain is shorter than sums for themselves.
        let halves = [w, _mm512_srli_epi16::<4>(w)];
        let mut sum = _mm512_setzero_si512();
        for upper in [1, 0] {
            let mask = _mm512_set1_epi8(3 << (2 * upper));
            for (half, w) in halves.into_iter().enumerate() {
                let bits = 2 * half + upper;
                let plane = if HIGH_FIRST { 3 - bits } else { bits };
                let q = _mm512_loadu_si512(q.add(64 * plane).cast());
                sum = _mm512_dpbusd_epi32(sum, _mm512_and_si512(w, mask), q);
            }
            if upper > 0 {
                sum = _mm512_srai_epi32::<2>(sum);
            }
        }
        sum
    }
}

impl Bytes for Avx512 {
    type V = __m512i;
    const ISA: Isa = Isa::Avx512;
    const REGISTERS: usize = 32;
    const SIGNED: bool = false;

    #[inline(always)]
    unsafe fn load_v(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_v(p: *mut u8, v: __m512i) {
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn load_halves(lo: *const u8, hi: *const u8) -> __m512i {
        unsafe {
            let lo = _mm512_castsi256_si512(_mm256_loadu_si256(lo.cast()));
            _mm512_inserti64x4::<1>(lo, _mm256_loadu_si256(hi.cast()))
        }
    }
    #[inline(always)]
    unsafe fn load_quarters(a: *const u8, b: *const u8, c: *const u8, d: *const u8) -> __m512i {
        unsafe {
            let lo = _mm512_castsi256_si512(_mm256_loadu2_m128i(b.cast(), a.cast()));
            _mm512_inserti64x4::<1>(lo, _mm256_loadu2_m128i(d.cast(), c.cast()))
        }
    }
    #[inline(always)]
    unsafe fn load_half(p: *const u8) -> __m512i {
        unsafe { _mm512_zextsi256_si512(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_52(a: *const u8, b: *const u8, c: *const u8) -> __m512i {
        unsafe {
            let v = _mm512_zextsi256_si512(_mm256_loadu_si256(a.cast()));
            let v = _mm512_mask_broadcast_i32x4(v, 0x0f00, _mm_loadu_si128(b.cast()));
            _mm512_mask_set1_epi32(v, 0x1000, c.cast::<i32>().read_unaligned())
        }
    }
    #[inline(always)]
    unsafe fn load_f16_every(p: *const u8, stride: usize, n: usize) -> __m512 {
        unsafe { _mm512_cvtph_ps(super::avx2::halves_every(p, stride, n)) }
    }
    #[inline(always)]
    unsafe fn load_f16_each(p: &[*const u8; 16]) -> __m512 {
        unsafe {
            let (low, high) = (super::avx2::eight_at(&p[..8]), super::avx2::eight_at(&p[8..]));
            _mm512_cvtph_ps(_mm256_setr_m128i(low, high))
        }
    }
    #[inline(always)]
    unsafe fn load_f16_rows([a, b, c, d]: [*const u16; 4]) -> __m512 {
        unsafe {
            let (low, high) = (super::avx2::fours_at(a, b), super::avx2::fours_at(c, d));
            _mm512_cvtph_ps(_mm256_setr_m128i(low, high))
        }
    }
    #[inline(always)]
    unsafe fn load_rows([a, b, c, d]: [*const f32; 4]) -> __m512 {
        unsafe {
            let v = _mm512_castps128_ps512(_mm_loadu_ps(a));
            let v = _mm512_insertf32x4::<1>(v, _mm_loadu_ps(b));
            _mm512_insertf32x4::<3>(_mm512_insertf32x4::<2>(v, _mm_loadu_ps(c)), _mm_loadu_ps(d))
        }
    }
    #[inline(always)]
    unsafe fn store_rows([a, b, c, d]: [*mut f32; 4], v: __m512) {
        unsafe {
            _mm_storeu_ps(a, _mm512_castps512_ps128(v));
            _mm_storeu_ps(b, _mm512_extractf32x4_ps::<1>(v));
            _mm_storeu_ps(c, _mm512_extractf32x4_ps::<2>(v));
            _mm_storeu_ps(d, _mm512_extractf32x4_ps::<3>(v));
        }
    }
    #[inline(always)]
    unsafe fn repeat(p: *const f32) -> __m512 {
        unsafe { _mm512_broadcast_f32x4(_mm_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn fold_rows([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        unsafe {
            let v = Self::add(Self::add(a, c), Self::add(b, d));
            // l + l+2 and l + l+1 in each 128 bits.
            let v = _mm512_add_ps(v, _mm512_permute_ps::<0b11_10>(v));
            let v = _mm512_add_ps(v, _mm512_movehdup_ps(v));
            let mut rows = [0f32; 16];
            Self::store(rows.as_mut_ptr(), v);
            [rows[0], rows[4], rows[8], rows[12]]
        }
    }
    #[inline(always)]
    unsafe fn reduce_halves([a, b]: [__m512; 2]) -> [f32; 4] {
        unsafe {
            let (low, high) = (|v| _mm512_castps512_ps256(v), |v| _mm512_extractf32x8_ps::<1>(v));
            super::avx2::reduce_add4_8([low(a), high(a), low(b), high(b)])
        }
    }
    #[inline(always)]
    unsafe fn spread2(p: *const u8) -> __m512i {
        unsafe {
            // In a 32-bit lane with byte b: b | b << 6 | b << 12 | b << 18 has field j at bit 8j.
            let v = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            let v = _mm512_or_si512(v, _mm512_slli_epi32::<12>(v));
            let v = _mm512_or_si512(v, _mm512_slli_epi32::<6>(v));
            _mm512_and_si512(v, _mm512_set1_epi8(3))
        }
    }
    #[inline(always)]
    unsafe fn load_twice_shr<const N: u32>(p: *const u8) -> __m512i {
        unsafe {
            let v = _mm512_broadcast_i64x4(_mm256_loadu_si256(p.cast()));
            _mm512_mask_srli_epi16::<N>(v, 0xffff_0000, v)
        }
    }
    #[inline(always)]
    unsafe fn load_nibbles2(a: *const u8, b: *const u8) -> __m512i {
        unsafe {
            let v = _mm512_broadcast_i32x4(_mm_loadu_si128(a.cast()));
            let v = _mm512_mask_broadcast_i32x4(v, 0xff00, _mm_loadu_si128(b.cast()));
            let v = _mm512_mask_srli_epi16::<4>(v, 0xff00_ff00, v);
            _mm512_and_si512(v, _mm512_set1_epi8(15))
        }
    }
    #[inline(always)]
    unsafe fn repeat_i16(p: *const i16) -> __m512i {
        unsafe {
            let which = _mm512_set_epi64(
                0x0706_0706_0706_0706,
                0x0706_0706_0706_0706,
                0x0504_0504_0504_0504,
                0x0504_0504_0504_0504,
                0x0302_0302_0302_0302,
                0x0302_0302_0302_0302,
                0x0100_0100_0100_0100,
                0x0100_0100_0100_0100,
            );
            _mm512_shuffle_epi8(_mm512_set1_epi64(p.cast::<i64>().read_unaligned()), which)
        }
    }
    #[inline(always)]
    unsafe fn zero_v() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn splat_u8(x: u8) -> __m512i {
        unsafe { _mm512_set1_epi8(x.cast_signed()) }
    }
    #[inline(always)]
    unsafe fn and(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn xor(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn shl32<const N: u32>(a: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi32::<N>(a) }
    }
    #[inline(always)]
    unsafe fn shr16<const N: u32>(a: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi16::<N>(a) }
    }
    #[inline(always)]
    unsafe fn shl16<const N: u32>(a: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi16::<N>(a) }
    }
    #[inline(always)]
    unsafe fn sar32<const N: u32>(a: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi32::<N>(a) }
    }
    #[inline(always)]
    unsafe fn sub_u8(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi8(a, b) }
    }
    #[inline(always)]
    unsafe fn triple_u8(a: __m512i) -> __m512i {
        // Of several in a row the compiler would make multiplications by powers of three, which take longer.
        unsafe { opaque(_mm512_add_epi8(a, _mm512_add_epi8(a, a))) }
    }
    #[inline(always)]
    unsafe fn add_u8(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi8(a, b) }
    }
    #[inline(always)]
    unsafe fn trit(a: __m512i) -> __m512i {
        unsafe { Self::digit3(Self::xor(a, Self::splat_u8(0x80)), _mm512_set1_epi16(0x0100)) }
    }
    #[inline(always)]
    unsafe fn add_i32(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn shuffle16(a: __m512i, index: __m512i) -> __m512i {
        unsafe { _mm512_shuffle_epi8(a, index) }
    }
    #[inline(always)]
    unsafe fn digit3(a: __m512i, power: __m512i) -> __m512i {
        unsafe {
            // A byte times power * 256 leaves byte * power % 256 in the upper byte of 16 bits and 0 in the
            // lower; three times that byte has the digit in bits 8 and 9.
            let three = _mm512_set1_epi16(0x0300);
            let even = _mm512_maddubs_epi16(_mm512_mullo_epi16(a, power), three);
            let odd = _mm512_mullo_epi16(_mm512_srli_epi16::<8>(a), power);
            let odd = _mm512_and_si512(_mm512_maddubs_epi16(odd, three), three);
            _mm512_or_si512(_mm512_srli_epi16::<8>(even), odd)
        }
    }
    #[inline(always)]
    unsafe fn eq_mask(a: __m512i, b: __m512i) -> u64 {
        unsafe { _mm512_cmpeq_epi8_mask(a, b) }
    }
    #[inline(always)]
    unsafe fn expand_mask(bits: u64) -> __m512i {
        unsafe { _mm512_movm_epi8(bits) }
    }
    #[inline(always)]
    unsafe fn dot_u8(acc: __m512i, u: __m512i, s: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, u, s) }
    }
    #[inline(always)]
    unsafe fn dot_i8(acc: __m512i, w: __m512i, s: __m512i) -> __m512i {
        unsafe {
            let negative = _mm512_movepi8_mask(w);
            let s = _mm512_mask_sub_epi8(s, negative, _mm512_setzero_si512(), s);
            _mm512_dpbusd_epi32(acc, _mm512_abs_epi8(w), s)
        }
    }
    #[inline(always)]
    unsafe fn dot_u8_scaled(acc: __m512i, u: __m512i, s: __m512i, k: __m512i) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(acc, _mm512_maddubs_epi16(u, s), k) }
    }
    #[inline(always)]
    unsafe fn dot_i16(a: __m512i, b: *const i16) -> __m512i {
        unsafe {
            let lo = _mm256_madd_epi16(_mm512_castsi512_si256(a), _mm256_loadu_si256(b.cast()));
            _mm512_zextsi256_si512(lo)
        }
    }
    #[inline(always)]
    unsafe fn splat_u64(x: u64) -> __m512i {
        unsafe { _mm512_set1_epi64(x.cast_signed()) }
    }
    #[inline(always)]
    unsafe fn widen_i8(p: *const i8) -> __m512i {
        unsafe { _mm512_zextsi256_si512(_mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn splat4(p: *const i8) -> __m512i {
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn sub_i32(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_i32(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn to_i32(a: __m512) -> __m512i {
        unsafe { _mm512_cvtps_epi32(a) }
    }
    #[inline(always)]
    unsafe fn bits_of_f(a: __m512) -> __m512i {
        unsafe { _mm512_castps_si512(a) }
    }
    #[inline(always)]
    unsafe fn turn16<const A: usize, const B: usize, const C: usize, const D: usize>(
        pointers: [*const u8; 16],
    ) -> [__m512i; 16] {
        unsafe {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (row, p) in rows.iter_mut().zip(pointers) {
                *row = if B == A + 16 && C == A + 32 && D == A + 48 {
                    Self::load_v(p.add(A))
                } else {
                    Self::load_quarters(p.add(A), p.add(B), p.add(C), p.add(D))
                };
            }
            // In each 128-bit lane first: quad j of rows 4i..4i+4 holds value j of every lane, by row.
            let mut quads = [_mm512_setzero_si512(); 16];
            for i in 0..4 {
                let [a, b, c, d] = [rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]];
                let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
                quads[4 * i] = _mm512_unpacklo_epi64(ab, cd);
                quads[4 * i + 1] = _mm512_unpackhi_epi64(ab, cd);
                let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
                quads[4 * i + 2] = _mm512_unpacklo_epi64(ab, cd);
                quads[4 * i + 3] = _mm512_unpackhi_epi64(ab, cd);
            }
            // Then the lanes themselves.
            let mut columns = quads;
            for j in 0..4 {
                let (a, b, c, d) = (quads[j], quads[4 + j], quads[8 + j], quads[12 + j]);
                let (ab, cd) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
                let (ef, gh) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
                columns[j] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
                columns[4 + j] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
                columns[8 + j] = _mm512_shuffle_i32x4::<0x88>(ef, gh);
                columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ef, gh);
            }
            columns
        }
    }

    type Sums = __m512i;
    #[inline(always)]
    unsafe fn sums_from(v: __m512i) -> __m512i {
        v
    }
    #[inline(always)]
    unsafe fn sums_add(sums: &mut __m512i, u: __m512i, s: __m512i) {
        unsafe { *sums = _mm512_dpbusd_epi32(*sums, u, s) }
    }
    #[inline(always)]
    unsafe fn sums_add_wide(sums: &mut __m512i, w: __m512i, s: __m512i) {
        unsafe { Self::sums_add(sums, w, s) }
    }
    #[inline(always)]
    unsafe fn scaled(acc: __m512i, sums: __m512i, k: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(acc, _mm512_mullo_epi32(sums, k)) }
    }
    #[inline(always)]
    unsafe fn scale_low(pairs: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(pairs)) }
    }
    #[inline(always)]
    unsafe fn scale_high(pairs: __m512i) -> __m512i {
        unsafe { _mm512_srai_epi32::<16>(pairs) }
    }
    #[inline(always)]
    unsafe fn sums_carry(_: &mut __m512i) {}
    #[inline(always)]
    unsafe fn sums_lanes(sums: __m512i) -> __m512i {
        sums
    }

    // Codes are used where they sit in their bytes; the sums of plane l are 4^l times too large, and divided at the end.
    type Planes = [[__m512i; 4]; 4];
    #[inline(always)]
    unsafe fn planes_zero() -> Self::Planes {
        unsafe { [[_mm512_setzero_si512(); 4]; 4] }
    }
    #[inline(always)]
    unsafe fn planes_add<const HIGH_FIRST: bool>(rows: &mut Self::Planes, w: [__m512i; 4], q: *const i8) {
        unsafe {
            for (sums, w) in rows.iter_mut().zip(w) {
                for (bits, sum) in sums.iter_mut().enumerate() {
                    let plane = if HIGH_FIRST { 3 - bits } else { bits };
                    let code = _mm512_and_si512(w, _mm512_set1_epi8((3u8 << (2 * bits)).cast_signed()));
                    *sum = _mm512_dpbusd_epi32(*sum, code, _mm512_loadu_si512(q.add(64 * plane).cast()));
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn planes_one<const HIGH_FIRST: bool>(w: [__m512i; 4], q: *const i8) -> [__m512i; 4] {
        let [a, b, c, d] = w;
        unsafe {
            [
                one::<HIGH_FIRST>(a, q),
                one::<HIGH_FIRST>(b, q),
                one::<HIGH_FIRST>(c, q),
                one::<HIGH_FIRST>(d, q),
            ]
        }
    }
    #[inline(always)]
    unsafe fn planes_carry(_: &mut Self::Planes) {}
    #[inline(always)]
    unsafe fn planes_sum<const HIGH_FIRST: bool>(rows: Self::Planes) -> [__m512i; 4] {
        unsafe {
            let mut lanes = [_mm512_setzero_si512(); 4];
            for ([a, b, c, d], lanes) in rows.into_iter().zip(&mut lanes) {
                let low = _mm512_add_epi32(a, _mm512_srai_epi32::<2>(b));
                let high = _mm512_add_epi32(_mm512_srai_epi32::<4>(c), _mm512_srai_epi32::<6>(d));
                *lanes = _mm512_add_epi32(low, high);
            }
            lanes
        }
    }
    #[inline(always)]
    unsafe fn scaled_sums4<const NARROW: bool>(
        [a, b, c, d]: [__m512i; 4],
        minus: i32,
        ds: [u16; 4],
        scale: f32,
    ) -> [f32; 4] {
        unsafe {
            let all = if NARROW {
                let ones = _mm512_set1_epi16(1);
                let ab = _mm512_madd_epi16(_mm512_packs_epi32(a, b), ones);
                let cd = _mm512_madd_epi16(_mm512_packs_epi32(c, d), ones);
                _mm512_madd_epi16(_mm512_packs_epi32(ab, cd), ones)
            } else {
                let pair = |a, b| _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
                let (ab, cd) = (pair(a, b), pair(c, d));
                _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
            };
            let half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
            super::avx2::scaled4(half, minus, ds, scale)
        }
    }
    // Lane 4 i + j of a quad or octet belongs to run pair j, and to the earlier run of it where i < 2.
    type Quad = __m512i;
    type Octet = __m512i;
    #[inline(always)]
    unsafe fn quad<const NARROW: bool>(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)) }
    }
    #[inline(always)]
    unsafe fn octet(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)) }
    }
    #[inline(always)]
    unsafe fn sixteen(a: __m512i, b: __m512i) -> __m512i {
        unsafe {
            let (low, high) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
            let runs = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
            _mm512_permutexvar_epi32(runs, _mm512_add_epi32(low, high))
        }
    }
    #[inline(always)]
    unsafe fn beside(a: __m512i, b: __m512i) -> __m512i {
        unsafe {
            let (low, high) = (_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0xee>(a, b));
            _mm512_add_epi32(low, high)
        }
    }
    #[inline(always)]
    unsafe fn halves(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_shuffle_i64x2::<0x44>(a, b) }
    }
    #[inline(always)]
    unsafe fn to_f32(a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn sum_i32(a: __m512i) -> i32 {
        unsafe { _mm512_reduce_add_epi32(a) }
    }
}
