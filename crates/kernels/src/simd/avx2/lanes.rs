//! [`Lanes`]: floats.

// Every body below is one or a few intrinsics. The trait's contract (the instruction set is enabled, the
// pointers are valid for the lanes named) is exactly what they need, so each `unsafe` block rests on it.
#![allow(clippy::undocumented_unsafe_blocks, clippy::wildcard_imports)]

use super::{Avx2, both};
use crate::simd::Lanes;
use std::arch::x86_64::*;

/// l + l+4, l + l+2, l + l+1 of 8 lanes.
#[inline(always)]
pub(crate) unsafe fn reduce_add_8(v: __m256) -> f32 {
    unsafe {
        let a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let b = _mm_add_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)))
    }
}

/// The same of four vectors.
#[inline(always)]
pub(crate) unsafe fn reduce_add4_8([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    unsafe {
        // l + l+4 of two vectors in the two halves of one.
        let ac = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, c), _mm256_permute2f128_ps::<0x31>(a, c));
        let bd = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(b, d), _mm256_permute2f128_ps::<0x31>(b, d));
        // l + l+2: a0 a1 b0 b1 in the lower half, c and d above.
        let s = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ac, bd), _mm256_shuffle_ps::<0xee>(ac, bd));
        let s = _mm256_add_ps(s, _mm256_movehdup_ps(s));
        let (low, high) = (_mm256_castps256_ps128(s), _mm256_extractf128_ps::<1>(s));
        let mut out = [0f32; 4];
        _mm_storeu_ps(out.as_mut_ptr(), _mm_shuffle_ps::<0x88>(low, high));
        out
    }
}

/// l + l+2, l + l+1 of 4 f64 lanes.
#[inline(always)]
pub(crate) unsafe fn reduce_add_d4(v: __m256d) -> f64 {
    unsafe {
        let a = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd::<1>(v));
        _mm_cvtsd_f64(_mm_add_sd(a, _mm_unpackhi_pd(a, a)))
    }
}

/// All ones in the first `n` of 16 i32, zeros after, for `n <= 16`: start reading at `16 - n`.
static TAIL: [i32; 32] = {
    let mut t = [0; 32];
    let mut i = 0;
    while i < 16 {
        t[i] = -1;
        i += 1;
    }
    t
};

#[inline(always)]
unsafe fn tail_masks(n: usize) -> (__m256i, __m256i) {
    unsafe {
        let p = TAIL.as_ptr().add(16 - n);
        (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(8).cast()))
    }
}

/// The four 64-bit masks that the low four bits of an index spell.
static MASK4: [[i64; 4]; 16] = {
    let mut t = [[0; 4]; 16];
    let mut i = 0;
    while i < 64 {
        if (i / 4) >> (i % 4) & 1 == 1 {
            t[i / 4][i % 4] = -1;
        }
        i += 1;
    }
    t
};

/// Half of [`Lanes::add_sub`]. Not a closure: builds for tests did not inline it, and a test of float activations took more than twelve minutes.
#[inline(always)]
unsafe fn add_sub_4(acc: __m256d, x: *const f32, plus: u8, minus: u8) -> __m256d {
    unsafe {
        let x = _mm256_cvtps_pd(_mm_loadu_ps(x));
        let (plus, minus) = (&MASK4[usize::from(plus & 15)], &MASK4[usize::from(minus & 15)]);
        let acc = _mm256_add_pd(acc, _mm256_and_pd(x, _mm256_loadu_pd(plus.as_ptr().cast())));
        _mm256_sub_pd(acc, _mm256_and_pd(x, _mm256_loadu_pd(minus.as_ptr().cast())))
    }
}

impl Lanes for Avx2 {
    type F = (__m256, __m256);
    type D = (__m256d, __m256d);

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        unsafe { (_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn splat2(a: f32, b: f32) -> Self::F {
        unsafe { (_mm256_set1_ps(a), _mm256_set1_ps(b)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> Self::F {
        unsafe {
            let m = tail_masks(n);
            (_mm256_maskload_ps(p, m.0), _mm256_maskload_ps(p.wrapping_add(8), m.1))
        }
    }
    #[inline(always)]
    unsafe fn load_n_or(p: *const f32, n: usize, or: f32) -> Self::F {
        unsafe {
            let (v, m) = (Self::load_n(p, n), tail_masks(n));
            let or = _mm256_set1_ps(or);
            let pick = |v, m| _mm256_blendv_ps(or, v, _mm256_castsi256_ps(m));
            (pick(v.0, m.0), pick(v.1, m.1))
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, n: usize, v: Self::F) {
        unsafe {
            // Masked stores are slow: dozens of instructions each on AMD's processors before Zen 4.
            if n == 16 {
                return Self::store(p, v);
            }
            let m = tail_masks(n);
            _mm256_maskstore_ps(p, m.0, v.0);
            _mm256_maskstore_ps(p.wrapping_add(8), m.1, v.1);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe {
            let h = |p: *const u16| _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
            (h(p), h(p.add(8)))
        }
    }
    #[inline(always)]
    unsafe fn load_f16_n(p: *const u16, n: usize) -> Self::F {
        unsafe {
            let mut whole = [0u16; 16];
            std::ptr::copy_nonoverlapping(p.cast::<u8>(), whole.as_mut_ptr().cast(), n * 2);
            Self::load_f16(whole.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u16) -> Self::F {
        unsafe {
            let v = _mm256_cvtph_ps(_mm_set1_epi16(p.read_unaligned().cast_signed()));
            (v, v)
        }
    }
    #[inline(always)]
    unsafe fn f16_to_f32(bits: u16) -> f32 {
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        unsafe {
            let h = |p: *const u16| {
                let x = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x))
            };
            (h(p), h(p.add(8)))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_n(p: *const u16, n: usize) -> Self::F {
        unsafe {
            let mut whole = [0u16; 16];
            std::ptr::copy_nonoverlapping(p.cast::<u8>(), whole.as_mut_ptr().cast(), n * 2);
            Self::load_bf16(whole.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe {
            let h = |p: *const i8| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())));
            (h(p), h(p.add(8)))
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.0));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v.1));
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            (_mm256_andnot_ps(sign, a.0), _mm256_andnot_ps(sign, a.1))
        }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(_mm256_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        unsafe {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            (_mm256_round_ps::<NEAREST>(a.0), _mm256_round_ps::<NEAREST>(a.1))
        }
    }
    #[inline(always)]
    unsafe fn exp2i(n: Self::F) -> Self::F {
        unsafe {
            let h = |n| {
                let e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(e))
            };
            (h(n.0), h(n.1))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Self::F) {
        unsafe {
            let (a, b) = (_mm256_cvtps_epi32(v.0), _mm256_cvtps_epi32(v.1));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
            let (lo, hi) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), _mm_packs_epi16(lo, hi));
        }
    }
    #[inline(always)]
    unsafe fn reduce_add(v: Self::F) -> f32 {
        unsafe { reduce_add_8(_mm256_add_ps(v.0, v.1)) }
    }
    #[inline(always)]
    unsafe fn reduce_add4([a, b, c, d]: [Self::F; 4]) -> [f32; 4] {
        unsafe {
            let (a, b) = (_mm256_add_ps(a.0, a.1), _mm256_add_ps(b.0, b.1));
            reduce_add4_8([a, b, _mm256_add_ps(c.0, c.1), _mm256_add_ps(d.0, d.1)])
        }
    }
    #[inline(always)]
    unsafe fn reduce_max(v: Self::F) -> f32 {
        unsafe {
            let a = _mm256_max_ps(v.0, v.1);
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
        }
    }
    #[inline(always)]
    unsafe fn zero_d() -> Self::D {
        unsafe { (_mm256_setzero_pd(), _mm256_setzero_pd()) }
    }
    #[inline(always)]
    unsafe fn add_sub(acc: Self::D, x: *const f32, plus: u8, minus: u8) -> Self::D {
        unsafe { (add_sub_4(acc.0, x, plus, minus), add_sub_4(acc.1, x.add(4), plus >> 4, minus >> 4)) }
    }
    #[inline(always)]
    unsafe fn reduce_add_d(v: Self::D) -> f64 {
        unsafe { reduce_add_d4(_mm256_add_pd(v.0, v.1)) }
    }
}
