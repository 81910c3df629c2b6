//! Copying past the caches: for bytes that are read once from where they are and needed much later where they go.
//!
//! An ordinary copy reads the lines it is going to overwrite, and writes them back when they fall out of the cache: three
//! ways over the memory bus. Streaming stores write whole lines and leave the old ones unread:
//!
//! ```text
//! bytes up to dst's next line          plain
//! for every 256 bytes of whole lines   prefetch the source 1 KiB ahead, 4 loads, 4 streaming stores
//! what is left                         plain
//! fence: streaming stores are ordered with nothing else, and the reader may be another thread
//! ```
//!
//! Not for less than about 100 KB, nor for what is used at once: that is faster out of a cache.

use crate::isa::Isa;

/// Bytes of a cache line, which streaming stores write whole.
const LINE: usize = 64;
/// Bytes of one turn of the loop.
const STEP: usize = 4 * LINE;
/// How far ahead of the loads the source is asked for: the hardware's own prefetching stops at the end of each page.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 1024;

/// Copies `src` to `dst`, which is not in this core's caches afterwards where the processor can do that.
///
/// # Panics
/// If the lengths differ.
pub fn copy_streaming(dst: &mut [u8], src: &[u8]) {
    copy_streaming_with(Isa::detect().unwrap_or(Isa::Scalar), dst, src);
}

/// The same with the instructions of `isa`; plain Rust has no streaming stores and copies as usual.
///
/// # Panics
/// If the lengths differ, or if this machine does not have `isa`.
pub fn copy_streaming_with(isa: Isa, dst: &mut [u8], src: &[u8]) {
    assert_eq!(dst.len(), src.len(), "a copy keeps the length");
    assert!(isa.is_available(), "{isa} is not available");
    let head = dst.as_ptr().align_offset(LINE).min(dst.len());
    let whole = if isa == Isa::Scalar { 0 } else { (dst.len() - head) / STEP * STEP };
    let (dst_head, dst) = dst.split_at_mut(head);
    let (dst, dst_tail) = dst.split_at_mut(whole);
    let (src_head, src) = src.split_at(head);
    let (src, src_tail) = src.split_at(whole);
    dst_head.copy_from_slice(src_head);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction set is there (asserted); both slices are `whole` bytes, a multiple of STEP, and dst begins
    // on a line if it is not empty.
    unsafe {
        match isa {
            Isa::Scalar => {}
            Isa::Avx2 => x86::avx2(dst, src),
            Isa::Avx512 => x86::avx512(dst, src),
        }
    }
    dst_tail.copy_from_slice(src_tail);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{AHEAD, LINE, STEP};
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm_sfence, _mm256_loadu_si256, _mm256_stream_si256, _mm512_loadu_si512,
        _mm512_stream_si512,
    };

    /// # Safety
    /// AVX-512F; both are equally long, a multiple of STEP; `dst` begins on a line unless empty.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(dst: &mut [u8], src: &[u8]) {
        for (dst, src) in dst.chunks_exact_mut(STEP).zip(src.chunks_exact(STEP)) {
            let (dst, src) = (dst.as_mut_ptr(), src.as_ptr());
            // SAFETY: STEP bytes each; a line of `dst` is aligned, by the caller. A prefetch never faults.
            unsafe {
                for at in (0..STEP).step_by(LINE) {
                    _mm_prefetch::<_MM_HINT_T0>(src.wrapping_add(AHEAD + at).cast());
                }
                let line = |at: usize| _mm512_loadu_si512(src.add(at).cast());
                let lines = [line(0), line(LINE), line(2 * LINE), line(3 * LINE)];
                for (i, line) in lines.into_iter().enumerate() {
                    _mm512_stream_si512(dst.add(i * LINE).cast(), line);
                }
            }
        }
        _mm_sfence();
    }

    /// # Safety
    /// As [`avx512`], with AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(dst: &mut [u8], src: &[u8]) {
        const HALF: usize = LINE / 2;
        for (dst, src) in dst.chunks_exact_mut(STEP).zip(src.chunks_exact(STEP)) {
            let (dst, src) = (dst.as_mut_ptr(), src.as_ptr());
            // SAFETY: as above.
            unsafe {
                for at in (0..STEP).step_by(LINE) {
                    _mm_prefetch::<_MM_HINT_T0>(src.wrapping_add(AHEAD + at).cast());
                }
                for at in (0..STEP).step_by(LINE) {
                    let (a, b) = (src.add(at), src.add(at + HALF));
                    let (a, b) = (_mm256_loadu_si256(a.cast()), _mm256_loadu_si256(b.cast()));
                    _mm256_stream_si256(dst.add(at).cast(), a);
                    _mm256_stream_si256(dst.add(at + HALF).cast(), b);
                }
            }
        }
        _mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_copies_the_bytes_and_nothing_beside_them() {
        const GUARD: usize = 256;
        let source: Vec<u8> = (0..8192usize).map(|i| (i * 31 + i / 251) as u8 & 0x7f).collect();
        for isa in Isa::available() {
            for len in [0, 1, 63, 64, 65, 255, 256, 257, 319, 320, 511, 512, 513, 1023, 3000, 4096 + 17] {
                for to in 0..=LINE {
                    for from in [0, 1, 13, 32, 63] {
                        let mut memory = vec![0xeeu8; GUARD + LINE + len + GUARD];
                        copy_streaming_with(isa, &mut memory[GUARD + to..][..len], &source[from..][..len]);
                        assert!(
                            memory[GUARD + to..][..len] == source[from..][..len],
                            "{isa} {len} {to} {from}"
                        );
                        let (before, after) = (&memory[..GUARD + to], &memory[GUARD + to + len..]);
                        assert!(before.iter().chain(after).all(|b| *b == 0xee), "{isa} {len} {to} {from}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "keeps the length")]
    fn lengths_that_differ_are_refused() {
        copy_streaming(&mut [0; 3], &[0; 4]);
    }
}
