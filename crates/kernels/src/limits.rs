//! What the best possible kernel could do: loops that only read, or only multiply, and do it as fast as the processor goes.
//!
//! A figure of a benchmark says little by itself; beside the same figure of a loop that does nothing else it says how
//! much is left to win. These loops are written with the vectors and the dot product that the kernels use, so they are
//! limits of the same instruction set.

use crate::isa::Isa;
use crate::ops::Ops;
use std::hint::black_box;

#[cfg(target_arch = "x86_64")]
use crate::simd::{Bytes, CARRY, avx2::Avx2, avx512::Avx512, prefetch};

/// A way to read memory. Which one is fastest depends on the processor and on the cache the bytes are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// One stream, as the processor's own prefetchers like it.
    Plain,
    /// One stream, asking for lines some way ahead.
    Ahead,
    /// Four streams side by side.
    Streams,
    /// Four streams, asking for lines ahead in each.
    StreamsAhead,
}

impl Scan {
    /// All of them.
    pub const ALL: [Scan; 4] = [Scan::Plain, Scan::Ahead, Scan::Streams, Scan::StreamsAhead];
}

/// Bytes that a prefetch is ahead of the reading.
const AHEAD: usize = 4096;

impl Ops {
    /// Reads every byte once and returns a sum that depends on how they are read: it only keeps the reading
    /// from being left out. Up to 1023 bytes at the end are not read.
    pub fn scan(&self, how: Scan, bytes: &[u8]) -> u64 {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2(how: Scan, bytes: &[u8]) -> u64 {
                // SAFETY: the features are enabled here.
                unsafe { scan::<Avx2>(how, bytes) }
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            fn avx512(how: Scan, bytes: &[u8]) -> u64 {
                // SAFETY: the features are enabled here.
                unsafe { scan::<Avx512>(how, bytes) }
            }
            match self.isa() {
                // SAFETY: `Ops::new` checked that the instruction set is present.
                Isa::Avx2 => return unsafe { avx2(how, bytes) },
                // SAFETY: as above.
                Isa::Avx512 | Isa::Amx => return unsafe { avx512(how, bytes) },
                Isa::Scalar => {}
            }
        }
        scan_scalar(how, bytes)
    }

    /// Multiplies and adds bytes in registers for `rounds` rounds and returns how many products that were.
    pub fn multiply_adds(&self, rounds: usize) -> u64 {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2(rounds: usize) -> u64 {
                // SAFETY: the features are enabled here.
                unsafe { multiply_adds::<Avx2, 4>(rounds) }
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            fn avx512(rounds: usize) -> u64 {
                // SAFETY: the features are enabled here.
                unsafe { multiply_adds::<Avx512, 12>(rounds) }
            }
            match self.isa() {
                // SAFETY: `Ops::new` checked that the instruction set is present.
                Isa::Avx2 => return unsafe { avx2(rounds) },
                // SAFETY: as above.
                Isa::Avx512 => return unsafe { avx512(rounds) },
                // SAFETY: as above.
                Isa::Amx => return unsafe { crate::simd::amx::multiply_adds(rounds) },
                Isa::Scalar => {}
            }
        }
        multiply_adds_scalar(rounds)
    }
}

/// # Safety
/// `S` is enabled.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn scan<S: Bytes>(how: Scan, bytes: &[u8]) -> u64 {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        match how {
            Scan::Plain => streams::<S, 1, false>(bytes),
            Scan::Ahead => streams::<S, 1, true>(bytes),
            Scan::Streams => streams::<S, 4, false>(bytes),
            Scan::StreamsAhead => streams::<S, 4, true>(bytes),
        }
    }
}

/// Reads `N` parts of `bytes` side by side, four vectors of each in turn.
///
/// # Safety
/// `S` is enabled.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn streams<S: Bytes, const N: usize, const PREFETCH: bool>(bytes: &[u8]) -> u64 {
    const STEP: usize = 256;
    let part = bytes.len() / (N * STEP) * STEP;
    // SAFETY: `S` is enabled by the caller; vector v of stream s is at s * part + i + 64 v < N * part <= bytes.len().
    // A prefetch of an address that is not there does nothing.
    unsafe {
        let mut sums = [S::zero_v(); 4];
        for i in (0..part).step_by(STEP) {
            for s in 0..N {
                let p = bytes.as_ptr().add(s * part + i);
                for v in 0..4 {
                    if PREFETCH {
                        prefetch(p.wrapping_add(AHEAD + 64 * v));
                    }
                    sums[v] = S::add_i32(sums[v], S::load_v(p.add(64 * v)));
                }
            }
        }
        let [a, b, c, d] = sums;
        u64::from(S::sum_i32(S::add_i32(S::add_i32(a, b), S::add_i32(c, d))).cast_unsigned())
    }
}

/// Additions of eight words at a time; streams are read one behind the other.
fn scan_scalar(_: Scan, bytes: &[u8]) -> u64 {
    let (lines, _) = bytes.as_chunks::<64>();
    let mut sums = [0u64; 8];
    for line in lines {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// `N` chains of dot products of 64 bytes as ternary products for many columns have them, enough of them to hide how long one takes. One factor of each chain is its own
/// and the other comes from memory that the compiler cannot see through, so that no product can be left out or shared.
///
/// # Safety
/// `S` is enabled.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn multiply_adds<S: Bytes, const N: usize>(rounds: usize) -> u64 {
    let (left, right) = black_box(([[1u8; 64]; N], [1u8; 64]));
    // SAFETY: `S` is enabled by the caller; every load is of an array of 64 bytes.
    unsafe {
        let left: [S::V; N] = std::array::from_fn(|c| S::load_v(left[c].as_ptr()));
        let mut sums = [S::sums_from(S::zero_v()); N];
        for from in (0..rounds).step_by(CARRY) {
            for _ in from..rounds.min(from + CARRY) {
                let right = S::load_v(black_box(&right).as_ptr());
                for c in 0..N {
                    S::sums_add(&mut sums[c], left[c], right);
                }
            }
            for c in 0..N {
                S::sums_carry(&mut sums[c]);
            }
        }
        for sum in sums {
            black_box(S::sum_i32(S::sums_lanes(sum)));
        }
    }
    (rounds * N * 64) as u64
}

/// The same in plain Rust, which the compiler makes of it what it makes of the plain kernels.
fn multiply_adds_scalar(rounds: usize) -> u64 {
    let (left, right) = ([1u8; 64], [1i8; 64]);
    let mut sum = 0i32;
    for _ in 0..rounds {
        let (left, right) = (black_box(&left), black_box(&right));
        let products = left.iter().zip(right).map(|(&a, &b)| i32::from(a) * i32::from(b));
        sum = sum.wrapping_add(products.sum::<i32>());
    }
    black_box(sum);
    (rounds * 64) as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    #[test]
    fn every_scan_reads_every_byte() {
        let mut bytes = vec![0u8; 64 << 10];
        for isa in Isa::available() {
            let ops = Ops::new(isa).unwrap();
            for how in Scan::ALL {
                assert_eq!(ops.scan(how, &bytes), 0, "{isa} {how:?}");
                for at in (0..bytes.len()).step_by(4 * 61) {
                    bytes[at] = 1;
                    assert_ne!(ops.scan(how, &bytes), 0, "{isa} {how:?} byte {at}");
                    bytes[at] = 0;
                }
                assert_eq!(ops.scan(how, &bytes[..7]), 0);
            }
        }
    }

    #[test]
    fn products_are_counted() {
        for isa in Isa::available() {
            let ops = Ops::new(isa).unwrap();
            assert_eq!(ops.multiply_adds(0), 0);
            let one = ops.multiply_adds(1);
            assert!(one >= 64 && ops.multiply_adds(100) == 100 * one, "{isa}");
        }
    }
}
