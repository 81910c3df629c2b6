//! F16: IEEE half precision, little-endian, 2 bytes a weight.

use super::dense::{Dense, Element};
use super::f16_at;
use crate::format::Format;
use crate::simd::Lanes;

pub(super) static FORMAT: Format = Format::floating::<Dense<F16>>();

struct F16;

impl Element for F16 {
    const NAME: &'static str = "F16";
    const BYTES: usize = 2;

    fn get(bytes: &[u8]) -> f32 {
        f16_at(bytes, 0)
    }
    fn put(value: f32, bytes: &mut [u8]) {
        bytes.copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: the caller's promises, passed on.
        unsafe { L::load_f16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_n<L: Lanes>(p: *const u8, n: usize) -> L::F {
        // SAFETY: the caller's promises, passed on.
        unsafe { L::load_f16_n(p.cast(), n) }
    }
}
