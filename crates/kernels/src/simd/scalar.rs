//! [`Lanes`] in plain Rust: the oracle of the vector versions, and the fallback.

use super::Lanes;
use half::{bf16, f16};

/// The portable implementation; its methods are callable anywhere.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn map(a: [f32; 16], f: impl Fn(f32) -> f32) -> [f32; 16] {
    a.map(f)
}
#[inline(always)]
fn zip(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Lanes for Scalar {
    type F = [f32; 16];
    type D = [f64; 8];

    unsafe fn zero() -> Self::F {
        [0.0; 16]
    }
    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }
    unsafe fn splat2(a: f32, b: f32) -> Self::F {
        std::array::from_fn(|i| if i < 8 { a } else { b })
    }
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: 16 values are readable, by the caller.
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }
    unsafe fn load_n(p: *const f32, n: usize) -> Self::F {
        // SAFETY: by the caller.
        unsafe { Self::load_n_or(p, n, 0.0) }
    }
    unsafe fn load_n_or(p: *const f32, n: usize, or: f32) -> Self::F {
        // SAFETY: `n` values are readable, by the caller; possibly unaligned, as for `load`.
        std::array::from_fn(|i| if i < n { unsafe { p.add(i).read_unaligned() } } else { or })
    }
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: 16 values are writable, by the caller.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(v) }
    }
    unsafe fn store_n(p: *mut f32, n: usize, v: Self::F) {
        for (i, x) in v.into_iter().take(n).enumerate() {
            // SAFETY: `n` values are writable, by the caller; possibly unaligned, as for `store`.
            unsafe { p.add(i).write_unaligned(x) }
        }
    }
    unsafe fn load_f16(p: *const u16) -> Self::F {
        // SAFETY: 16 halves are readable, by the caller.
        unsafe { Self::load_f16_n(p, 16) }
    }
    unsafe fn load_f16_n(p: *const u16, n: usize) -> Self::F {
        std::array::from_fn(|i| {
            // SAFETY: `n` halves are readable, by the caller; possibly unaligned inside a file.
            if i < n { f16::from_bits(unsafe { p.add(i).read_unaligned() }).to_f32_const() } else { 0.0 }
        })
    }
    unsafe fn splat_f16(p: *const u16) -> Self::F {
        // SAFETY: the half is readable, by the caller; possibly unaligned.
        [f16::from_bits(unsafe { p.read_unaligned() }).to_f32_const(); 16]
    }
    unsafe fn f16_to_f32(bits: u16) -> f32 {
        f16::from_bits(bits).to_f32_const()
    }
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: 16 values are readable, by the caller.
        unsafe { Self::load_bf16_n(p, 16) }
    }
    unsafe fn load_bf16_n(p: *const u16, n: usize) -> Self::F {
        std::array::from_fn(|i| {
            // SAFETY: `n` values are readable, by the caller; possibly unaligned inside a file.
            if i < n { bf16::from_bits(unsafe { p.add(i).read_unaligned() }).to_f32() } else { 0.0 }
        })
    }
    unsafe fn load_i8(p: *const i8) -> Self::F {
        // SAFETY: 16 bytes are readable, by the caller.
        std::array::from_fn(|i| f32::from(unsafe { *p.add(i) }))
    }
    unsafe fn store_f16(p: *mut u16, v: Self::F) {
        for (i, x) in v.into_iter().enumerate() {
            // SAFETY: 16 halves are writable, by the caller.
            unsafe { p.add(i).write_unaligned(f16::from_f32_const(x).to_bits()) }
        }
    }
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x + y)
    }
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x - y)
    }
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x * y)
    }
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x / y)
    }
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    unsafe fn abs(a: Self::F) -> Self::F {
        map(a, f32::abs)
    }
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    unsafe fn round(a: Self::F) -> Self::F {
        map(a, f32::round_ties_even)
    }
    unsafe fn exp2i(n: Self::F) -> Self::F {
        map(n, |n| f32::from_bits((((n as i32) + 127) as u32) << 23))
    }
    unsafe fn store_i8(p: *mut i8, v: Self::F) {
        for (i, x) in v.into_iter().enumerate() {
            // SAFETY: 16 bytes are writable, by the caller.
            unsafe { *p.add(i) = x as i8 }
        }
    }
    unsafe fn reduce_add(v: Self::F) -> f32 {
        let a: [f32; 8] = std::array::from_fn(|i| v[i] + v[i + 8]);
        let b: [f32; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
        (b[0] + b[2]) + (b[1] + b[3])
    }
    unsafe fn reduce_add4(v: [Self::F; 4]) -> [f32; 4] {
        // SAFETY: callable anywhere.
        v.map(|v| unsafe { Self::reduce_add(v) })
    }
    unsafe fn reduce_max(v: Self::F) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    unsafe fn zero_d() -> Self::D {
        [0.0; 8]
    }
    unsafe fn add_sub(acc: Self::D, x: *const f32, plus: u8, minus: u8) -> Self::D {
        std::array::from_fn(|i| {
            // SAFETY: 8 values are readable, by the caller.
            let x = f64::from(unsafe { *x.add(i) });
            match (plus >> i & 1, minus >> i & 1) {
                (1, _) => acc[i] + x,
                (_, 1) => acc[i] - x,
                _ => acc[i],
            }
        })
    }
    unsafe fn reduce_add_d(v: Self::D) -> f64 {
        let a: [f64; 4] = std::array::from_fn(|i| v[i] + v[i + 4]);
        (a[0] + a[2]) + (a[1] + a[3])
    }
}
