//! The vector idioms that kernels share, written once per instruction set.
//!
//! Two traits. [`Lanes`] is 16 f32 lanes (and 8 f64 lanes), implemented for plain Rust too, so that an
//! operation written over it gives the same bits on every instruction set. [`Bytes`] adds 64-byte integer
//! vectors and is implemented for AVX2 (as two halves) and AVX-512. Beside them, `amx` has the few instructions of tile registers.
//!
//! How a generic kernel is compiled: everything here is `#[inline(always)]`, and the entry point that
//! names the instruction set carries `#[target_feature]`, so the whole kernel is compiled with it.
//!
//! **One result on every machine.** Float sums are always kept in 16 lanes, or whole vectors of them, and folded by the tree of
//! [`Lanes::reduce_add`] (l + l+8, then l + l+4, l+2, l+1). `fma` is a fused multiply-add everywhere.
//! A kernel that sticks to these and gives each lane the same values in the same order returns the same
//! bits from scalar, AVX2 and AVX-512. Tiles sum up integers.

#![allow(clippy::missing_safety_doc)]

pub(crate) mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

use crate::isa::Isa;

/// Asks for the cache line at `p`, which need not be readable.
#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every such processor has the instruction, and it does nothing where there is no memory.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Asks for the cache line at `p`, which need not be readable, as far as the second-level cache.
#[inline(always)]
pub(crate) fn prefetch_far(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Asks for the cache line at `p`, which need not be there, to write to it.
#[inline(always)]
pub(crate) fn prefetch_write(p: *const u8) {
    // The intrinsic for it becomes one for reading where the compiler does not know of `prefetchw`, which says nothing of the
    // processor: one of 64 bits that lacks it takes it for a no-op.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above; it changes neither memory nor flags.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) p, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Asks for all of `bytes`.
#[inline(always)]
pub(crate) fn prefetch_all(bytes: &[u8]) {
    for line in (0..bytes.len()).step_by(64) {
        prefetch(bytes.as_ptr().wrapping_add(line));
    }
}

/// 16 f32 lanes and 8 f64 lanes.
///
/// # Safety
/// Every method may be called only where the implementing instruction set is enabled; pointer arguments
/// must be valid for the lanes named. This holds for all methods and is not repeated at each.
#[allow(dead_code)] // the idioms are shared; a target without vectors uses few of them
pub(crate) trait Lanes: Copy + 'static {
    /// 16 f32.
    type F: Copy;
    /// 8 f64.
    type D: Copy;

    unsafe fn zero() -> Self::F;
    unsafe fn splat(x: f32) -> Self::F;
    /// Lanes 0..8 are `a`, 8..16 are `b`.
    unsafe fn splat2(a: f32, b: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    /// The first `n <= 16` lanes from memory, zeros after; touches only those.
    unsafe fn load_n(p: *const f32, n: usize) -> Self::F;
    /// The same, with `or` in the lanes after.
    unsafe fn load_n_or(p: *const f32, n: usize, or: f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    /// Stores the first `n <= 16` lanes only.
    unsafe fn store_n(p: *mut f32, n: usize, v: Self::F);
    /// 16 half-precision values as f32 (exact).
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// The first `n <= 16` half-precision values, zeros after.
    unsafe fn load_f16_n(p: *const u16, n: usize) -> Self::F;
    /// One half-precision value in every lane (exact).
    unsafe fn splat_f16(p: *const u16) -> Self::F;
    /// The half-precision value of these bits as f32 (exact).
    unsafe fn f16_to_f32(bits: u16) -> f32;
    /// 16 bfloat16 values as f32 (exact).
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// The first `n <= 16` bfloat16 values, zeros after.
    unsafe fn load_bf16_n(p: *const u16, n: usize) -> Self::F;
    /// 16 i8 values as f32 (exact).
    unsafe fn load_i8(p: *const i8) -> Self::F;
    /// Stores 16 values as halves, round to nearest even.
    unsafe fn store_f16(p: *mut u16, v: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// The larger; the second operand where either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; the second operand where either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(a: Self::F) -> Self::F;
    /// a * b + c, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Nearest integer, halves to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// 2^n for integral n in -126..=127, and 0 for n = -127.
    unsafe fn exp2i(n: Self::F) -> Self::F;
    /// 16 integral values in -128..=127 to bytes.
    unsafe fn store_i8(p: *mut i8, v: Self::F);
    /// l + l+8, l + l+4, l + l+2, l + l+1.
    unsafe fn reduce_add(v: Self::F) -> f32;
    /// [`Lanes::reduce_add`] of each.
    unsafe fn reduce_add4(v: [Self::F; 4]) -> [f32; 4];
    unsafe fn reduce_max(v: Self::F) -> f32;

    unsafe fn zero_d() -> Self::D;
    /// acc + x where the bit of `plus` is set, - x where that of `minus` is, for 8 f32 at `x`: no multiplication.
    unsafe fn add_sub(acc: Self::D, x: *const f32, plus: u8, minus: u8) -> Self::D;
    /// l + l+4, l + l+2, l + l+1.
    unsafe fn reduce_add_d(v: Self::D) -> f64;
}

/// So many [`Bytes::sums_add`] fit 16-bit lanes: each adds two products of a code up to 3 and an activation, 762 at most.
pub(crate) const CARRY: usize = 32;

/// 64-byte integer vectors, seen as u8, i8, i16 or i32 lanes as the method says.
#[allow(dead_code)]
pub(crate) trait Bytes: Lanes {
    /// 64 bytes.
    type V: Copy;
    /// The instruction set.
    const ISA: Isa;
    /// Vector registers there are.
    const REGISTERS: usize;
    /// Whether codes of 8 bits are multiplied as signed: [`Bytes::dot_u8`] is exact only up to 128.
    const SIGNED: bool;

    unsafe fn load_v(p: *const u8) -> Self::V;
    unsafe fn store_v(p: *mut u8, v: Self::V);
    /// Bytes 0..32 from `lo`, 32..64 from `hi`.
    unsafe fn load_halves(lo: *const u8, hi: *const u8) -> Self::V;
    /// 16 bytes from each pointer.
    unsafe fn load_quarters(a: *const u8, b: *const u8, c: *const u8, d: *const u8) -> Self::V;
    /// 32 bytes, then zeros.
    unsafe fn load_half(p: *const u8) -> Self::V;
    /// 32 bytes from `a`, 16 from `b`, 4 from `c`, then zeros.
    unsafe fn load_52(a: *const u8, b: *const u8, c: *const u8) -> Self::V;
    /// The halves at `p`, `p + stride` … as f32, `n <= 16` of them, zeros after; touches only those.
    unsafe fn load_f16_every(p: *const u8, stride: usize, n: usize) -> Self::F;
    /// Halves at 16 pointers, as f32.
    unsafe fn load_f16_each(p: &[*const u8; 16]) -> Self::F;
    /// Four halves at each of four pointers, as f32.
    unsafe fn load_f16_rows(p: [*const u16; 4]) -> Self::F;
    /// Four f32 at each of four pointers.
    unsafe fn load_rows(p: [*const f32; 4]) -> Self::F;
    /// Stores what `load_rows` loads.
    unsafe fn store_rows(p: [*mut f32; 4], v: Self::F);
    /// Four f32, four times.
    unsafe fn repeat(p: *const f32) -> Self::F;
    /// Lane 4 r + j of vector g is number 4 g + j of row r: of each row the tree of [`Lanes::reduce_add`].
    unsafe fn fold_rows(v: [Self::F; 4]) -> [f32; 4];
    /// Of lanes 0..8 and of lanes 8..16 of both: l + l+4, l + l+2, l + l+1.
    unsafe fn reduce_halves(v: [Self::F; 2]) -> [f32; 4];
    /// 16 bytes, each to its four 2-bit fields: byte 4i + j is `p[i] >> 2j & 3`.
    unsafe fn spread2(p: *const u8) -> Self::V;
    /// The same 32 bytes in both halves, the second shifted right by `N` as 16-bit lanes; mask the bytes afterwards.
    unsafe fn load_twice_shr<const N: u32>(p: *const u8) -> Self::V;
    /// Low nibbles of 16 bytes at `a`, their high nibbles, then the same of `b`.
    unsafe fn load_nibbles2(a: *const u8, b: *const u8) -> Self::V;
    /// Four 16-bit values, each in eight neighbouring 16-bit lanes.
    unsafe fn repeat_i16(p: *const i16) -> Self::V;
    unsafe fn zero_v() -> Self::V;
    unsafe fn splat_u8(x: u8) -> Self::V;
    unsafe fn and(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn or(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn xor(a: Self::V, b: Self::V) -> Self::V;
    /// Every 16-bit lane shifted right, zeros in; mask the bytes afterwards.
    unsafe fn shr16<const N: u32>(a: Self::V) -> Self::V;
    /// Every 16-bit lane shifted left, zeros in; mask the bytes afterwards.
    unsafe fn shl16<const N: u32>(a: Self::V) -> Self::V;
    /// Every 32-bit lane shifted left.
    unsafe fn shl32<const N: u32>(a: Self::V) -> Self::V;
    /// Every 32-bit lane shifted right, its sign in.
    unsafe fn sar32<const N: u32>(a: Self::V) -> Self::V;
    unsafe fn sub_u8(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn add_u8(a: Self::V, b: Self::V) -> Self::V;
    /// Three times every byte, without what overflows.
    unsafe fn triple_u8(a: Self::V) -> Self::V;
    unsafe fn add_i32(a: Self::V, b: Self::V) -> Self::V;
    /// Within each 16 bytes: byte i is byte `index[i] < 16` of them, and 0 where the index is 0x80.
    unsafe fn shuffle16(a: Self::V, index: Self::V) -> Self::V;
    /// A base-3 digit of every byte b: `(b * power % 256) * 3 / 256`. The 16-bit lanes of `power` are the
    /// power times 256, one for both bytes of a lane.
    unsafe fn digit3(a: Self::V, power: Self::V) -> Self::V;
    /// The base-3 digit before the point of three times b / 256, of every byte b, given as b - 128: 0, 1 or 2.
    unsafe fn trit(a: Self::V) -> Self::V;
    /// Bit i is set where byte i of both is equal.
    unsafe fn eq_mask(a: Self::V, b: Self::V) -> u64;
    /// Byte i is 0xff where bit i is set, else 0.
    unsafe fn expand_mask(bits: u64) -> Self::V;
    /// i32 lane l + sum of u[4l..4l+4] * s[4l..4l+4], u unsigned, s signed in -127..=127.
    /// Exact for u <= 128 (two products must fit i16).
    unsafe fn dot_u8(acc: Self::V, u: Self::V, s: Self::V) -> Self::V;
    /// The same for signed w in -128..=127.
    unsafe fn dot_i8(acc: Self::V, w: Self::V, s: Self::V) -> Self::V;
    /// i32 lane l + (u[4l]s[4l] + u[4l+1]s[4l+1]) * k[2l] + (u[4l+2]s[4l+2] + u[4l+3]s[4l+3]) * k[2l+1],
    /// k signed 16-bit lanes. Exact for u <= 128.
    unsafe fn dot_u8_scaled(acc: Self::V, u: Self::V, s: Self::V, k: Self::V) -> Self::V;
    /// i32 lane l < 8 is a[2l] * b[2l] + a[2l + 1] * b[2l + 1] of the first 16 values each; the others are zero.
    unsafe fn dot_i16(a: Self::V, b: *const i16) -> Self::V;
    /// i32 lane l + a[2l] * b[2l] + a[2l + 1] * b[2l + 1], 16-bit values.
    unsafe fn dot_pairs(acc: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// The four bytes at `p` in every 32-bit lane.
    unsafe fn splat4(p: *const i8) -> Self::V;
    unsafe fn splat_u64(x: u64) -> Self::V;
    /// 16 i8 as i16, then zeros.
    unsafe fn widen_i8(p: *const i8) -> Self::V;
    unsafe fn splat_i32(x: i32) -> Self::V;
    unsafe fn sub_i32(a: Self::V, b: Self::V) -> Self::V;
    /// Lanes of 32 bits, without what overflows.
    unsafe fn mul_i32(a: Self::V, b: Self::V) -> Self::V;
    /// f32 lanes to i32, round to nearest even.
    unsafe fn to_i32(a: Self::F) -> Self::V;
    /// The bits of f32 lanes.
    unsafe fn bits_of_f(a: Self::F) -> Self::V;
    /// 16 rows of four times 16 bytes, which begin `A`, `B`, `C` and `D` bytes behind their pointers, seen as a 16 x 16 matrix
    /// of 32-bit values: its transpose.
    unsafe fn turn16<const A: usize, const B: usize, const C: usize, const D: usize>(
        rows: [*const u8; 16],
    ) -> [Self::V; 16];

    /// Running i32 sums, one in each lane, of codes up to 3 times int8.
    type Sums: Copy;
    /// Sums that begin with `v`.
    unsafe fn sums_from(v: Self::V) -> Self::Sums;
    /// To lane l adds the sum of u[4l..4l+4] * s[4l..4l+4].
    unsafe fn sums_add(sums: &mut Self::Sums, u: Self::V, s: Self::V);
    /// The same for codes of 8 bits, signed if [`Bytes::SIGNED`]; may be followed by any number.
    unsafe fn sums_add_wide(sums: &mut Self::Sums, w: Self::V, s: Self::V);
    /// acc + k * what was added to `sums` and not carried, for scales k in the form of [`Bytes::scale_low`].
    unsafe fn scaled(acc: Self::V, sums: Self::Sums, k: Self::V) -> Self::V;
    /// The lower, signed half of every 32-bit lane as a scale, and the upper one.
    unsafe fn scale_low(pairs: Self::V) -> Self::V;
    unsafe fn scale_high(pairs: Self::V) -> Self::V;
    /// Must come after at most [`CARRY`] `sums_add`, or as many as fit where codes are larger than 3.
    unsafe fn sums_carry(sums: &mut Self::Sums);
    /// The sums; after `sums_carry`.
    unsafe fn sums_lanes(sums: Self::Sums) -> Self::V;

    /// Running sums of 2-bit codes times int8, of four rows.
    type Planes: Copy;
    unsafe fn planes_zero() -> Self::Planes;
    /// Adds code * q for 256 codes of each row: `w` has them in four planes of 64, plane l in bits 2l and 2l + 1 of each byte (or, if
    /// `HIGH_FIRST`, in bits 6 - 2l and 7 - 2l), and meets `q[64 l ..]`.
    unsafe fn planes_add<const HIGH_FIRST: bool>(sums: &mut Self::Planes, w: [Self::V; 4], q: *const i8);
    /// Of each row i32 lanes whose total is the sum for 256 codes alone, as `planes_add` adds them.
    unsafe fn planes_one<const HIGH_FIRST: bool>(w: [Self::V; 4], q: *const i8) -> [Self::V; 4];
    /// Must come between two groups of up to four `planes_add`.
    unsafe fn planes_carry(sums: &mut Self::Planes);
    /// Of each row i32 lanes whose total is the sum of all that was added; after `planes_carry`. Exact for up to 2^22 codes.
    unsafe fn planes_sum<const HIGH_FIRST: bool>(sums: Self::Planes) -> [Self::V; 4];
    /// For four vectors v with scales d (halves): fma((sum of v's i32 lanes - minus) as f32, d, 0) * scale. If `NARROW`, the sums of
    /// two neighbouring lanes fit 16 bits.
    unsafe fn scaled_sums4<const NARROW: bool>(
        lanes: [Self::V; 4],
        minus: i32,
        d: [u16; 4],
        scale: f32,
    ) -> [f32; 4];

    /// Sums of lanes by steps. A vector has two runs: lanes 0..8 are one, 8..16 the next.
    type Quad: Copy;
    type Octet: Copy;
    /// Four runs. If `NARROW`, lanes and the sums of two lanes fit 16 bits.
    unsafe fn quad<const NARROW: bool>(a: Self::V, b: Self::V) -> Self::Quad;
    /// Eight runs.
    unsafe fn octet(a: Self::Quad, b: Self::Quad) -> Self::Octet;
    /// Sixteen: lane i is the sum of run i.
    unsafe fn sixteen(a: Self::Octet, b: Self::Octet) -> Self::V;
    /// Lanes 0..8 have the same total as the 16 of `a`, lanes 8..16 that of `b`.
    unsafe fn beside(a: Self::V, b: Self::V) -> Self::V;
    /// The first 32 bytes of both.
    unsafe fn halves(a: Self::V, b: Self::V) -> Self::V;

    /// i32 lanes to f32, round to nearest even.
    unsafe fn to_f32(a: Self::V) -> Self::F;
    /// Sum of the 16 i32 lanes (wrapping).
    unsafe fn sum_i32(a: Self::V) -> i32;
}
