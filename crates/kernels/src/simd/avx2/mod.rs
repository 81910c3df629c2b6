//! The idioms in AVX2 with FMA and F16C: every 64-byte vector is a pair of ymm registers.

mod bytes;
mod lanes;

pub(crate) use bytes::{eight_at, fours_at, halves_every, scaled4};
pub(crate) use lanes::{reduce_add_8, reduce_add_d4, reduce_add4_8};

/// AVX2 vectors: lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// A function of both registers.
macro_rules! both {
    ($f:path, $($a:expr),+) => {{ let x = unsafe { both!(@0 $f, $($a),+) }; let y = unsafe { both!(@1 $f, $($a),+) }; (x, y) }};
    (@0 $f:path, $($a:expr),+) => { $f($($a.0),+) };
    (@1 $f:path, $($a:expr),+) => { $f($($a.1),+) };
}
use both;
