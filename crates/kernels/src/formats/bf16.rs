//! BF16: the upper half of an f32, little-endian, 2 bytes a weight.

use super::dense::{Dense, Element};
use crate::format::Format;
use crate::simd::Lanes;
use half::bf16;

pub(super) static FORMAT: Format = Format::floating::<Dense<Bf16>>();

struct Bf16;

impl Element for Bf16 {
    const NAME: &'static str = "BF16";
    const BYTES: usize = 2;

    fn get(bytes: &[u8]) -> f32 {
        bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }
    fn put(value: f32, bytes: &mut [u8]) {
        bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes());
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: the caller's promises, passed on.
        unsafe { L::load_bf16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_n<L: Lanes>(p: *const u8, n: usize) -> L::F {
        // SAFETY: the caller's promises, passed on.
        unsafe { L::load_bf16_n(p.cast(), n) }
    }
}
