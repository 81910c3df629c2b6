//! F32: IEEE single precision, little-endian, 4 bytes a weight.

use super::dense::{Dense, Element};
use crate::format::Format;
use crate::simd::Lanes;

pub(super) static FORMAT: Format = Format::floating::<Dense<F32>>();

struct F32;

impl Element for F32 {
    const NAME: &'static str = "F32";
    const BYTES: usize = 4;

    fn get(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
    fn put(value: f32, bytes: &mut [u8]) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L::F {
        // SAFETY: the caller's promises, passed on.
        unsafe { L::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_n<L: Lanes>(p: *const u8, n: usize) -> L::F {
        // SAFETY: the caller's promises, passed on.
        unsafe { L::load_n(p.cast(), n) }
    }
}
