//! The 16 bytes with which a Q4_K and a Q5_K super-block begin, and the search that fills them.
//!
//! ```text
//! d f16 at 0, dmin f16 at 2, s[12] at 4: eight scales and eight minima of 6 bits, for sub-blocks of 32
//! j < 4:   scale = s[j] & 63                                min = s[j + 4] & 63
//! j >= 4:  scale = s[j + 4] & 15 | s[j - 4] >> 6 << 4        min = s[j + 4] >> 4 | s[j] >> 6 << 4
//! ```

use super::superblocks::Head;
use crate::simd::Bytes;
use half::f16;

/// Scales and minima of the eight sub-blocks, as the bytes of two words.
#[inline(always)]
fn words(s: &[u8; 12]) -> (u64, u64) {
    let word = |at: usize| u32::from_le_bytes([s[at], s[at + 1], s[at + 2], s[at + 3]]);
    let (a, b, c) = (word(0), word(4), word(8));
    let upper = |x: u32| (x >> 6 & 0x0303_0303) << 4;
    let eight = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    (
        eight(a & 0x3f3f_3f3f, (c & 0x0f0f_0f0f) | upper(a)),
        eight(b & 0x3f3f_3f3f, (c >> 4 & 0x0f0f_0f0f) | upper(b)),
    )
}

/// Reads the head.
#[inline(always)]
pub(super) fn read(block: &[u8]) -> Head {
    let (scales, mins) = words(block[4..].first_chunk().unwrap_or(&[0; 12]));
    // Entry i is of 16 weights, so of sub-block i / 2.
    let each16 = |word: u64| std::array::from_fn(|i| (word >> (i / 2 * 8) & 0xff) as i16);
    Head { scales: each16(scales), mins: each16(mins) }
}

/// In 16-bit lanes: the scales of sub-blocks 2v and 2v + 1, 16 of each, for v < 4; each minimum twice.
static SPREAD: [[u8; 64]; 5] = {
    let mut t = [[0x80; 64]; 5];
    let mut i = 0;
    while i < 64 {
        let mut v = 0;
        while v < 4 {
            t[v][i] = (2 * v + i / 32) as u8;
            v += 1;
        }
        if i < 32 {
            t[4][i] = (i / 4) as u8;
        }
        i += 2;
    }
    t
};

/// [`super::superblocks::SuperBlock::scales`].
///
/// # Safety
/// `S` is enabled; the head is readable at `block`.
#[inline(always)]
pub(super) unsafe fn scales<S: Bytes>(block: *const u8) -> ([S::V; 4], S::V) {
    // SAFETY: by the caller.
    unsafe {
        let (scales, mins) = words(&block.add(4).cast::<[u8; 12]>().read_unaligned());
        let (scales, mins) = (S::splat_u64(scales), S::splat_u64(mins));
        let spread = |i: usize| S::load_v(SPREAD[i].as_ptr());
        let mut each = [scales; 4];
        each[0] = S::shuffle16(scales, spread(0));
        each[1] = S::shuffle16(scales, spread(1));
        each[2] = S::shuffle16(scales, spread(2));
        each[3] = S::shuffle16(scales, spread(3));
        (each, S::shuffle16(mins, spread(4)))
    }
}

/// [`super::superblocks::SuperBlock::each16`].
///
/// # Safety
/// `S` is enabled; the head is readable at `block`.
#[inline(always)]
pub(super) unsafe fn each16<S: Bytes>(block: *const u8) -> (S::V, S::V) {
    // SAFETY: by the caller.
    unsafe {
        let (scales, mins) = words(&block.add(4).cast::<[u8; 12]>().read_unaligned());
        let twice = S::load_v(SPREAD[4].as_ptr());
        (S::shuffle16(S::splat_u64(scales), twice), S::shuffle16(S::splat_u64(mins), twice))
    }
}

/// Chooses scales and minima for 256 weights, writes the head, and returns codes from 0 to `top`.
pub(super) fn fit(src: &[f32], top: u8, block: &mut [u8]) -> [u8; 256] {
    let fits: [(f32, f32); 8] = std::array::from_fn(|j| fit32(&src[j * 32..][..32], top));
    let step = |max: f32| f16::from_f32(max / 63.0);
    let (d, dmin) =
        (step(fits.iter().fold(0.0, |m, f| m.max(f.0))), step(fits.iter().fold(0.0, |m, f| m.max(f.1))));
    block[..2].copy_from_slice(&d.to_le_bytes());
    block[2..4].copy_from_slice(&dmin.to_le_bytes());
    block[4..16].fill(0);
    let (d, dmin) = (d.to_f32(), dmin.to_f32());
    let in_steps = |x: f32, d: f32| if d > 0.0 { (x / d).round().min(63.0) as u8 } else { 0 };
    let mut codes = [0; 256];
    for (j, (scale, min)) in fits.into_iter().enumerate() {
        let (scale, min) = (in_steps(scale, d), in_steps(min, dmin));
        let s = &mut block[4..16];
        if j < 4 {
            s[j] |= scale;
            s[j + 4] |= min;
        } else {
            s[j + 4] = scale & 15 | min << 4;
            s[j - 4] |= scale >> 4 << 6;
            s[j] |= min >> 4 << 6;
        }
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (code, x) in codes[j * 32..].iter_mut().zip(&src[j * 32..][..32]) {
            *code =
                if scale > 0.0 { ((x + min) / scale).round().clamp(0.0, f32::from(top)) as u8 } else { 0 };
        }
    }
    codes
}

/// (scale, min), neither negative, for which `scale * code - min` comes near `x`: for a range of step widths
/// round to codes, solve for the least squares, and keep the best.
fn fit32(x: &[f32], top: u8) -> (f32, f32) {
    let (low, high) = x.iter().fold((0f32, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
    if high <= low {
        return (0.0, -low);
    }
    let top = f32::from(top);
    let n = x.len() as f32;
    let mut best = (f32::INFINITY, 0.0, -low);
    for k in -10..=20 {
        let inverse = (top + k as f32 * 0.1) / (high - low);
        let code = |x: f32| ((x - low) * inverse).round().clamp(0.0, top);
        let (mut q, mut qq, mut sx, mut qx) = (0.0, 0.0, 0.0, 0.0);
        for &x in x {
            let c = code(x);
            (q, qq, sx, qx) = (q + c, qq + c * c, sx + x, qx + c * x);
        }
        let det = n * qq - q * q;
        let (mut scale, mut min) = ((n * qx - q * sx) / det, (q * qx - qq * sx) / det);
        if det <= 0.0 || min < 0.0 {
            (scale, min) = (qx / qq, 0.0);
        }
        let error: f32 = x.iter().map(|&x| (scale * code(x) - min - x).powi(2)).sum();
        if error < best.0 && scale > 0.0 {
            best = (error, scale, min);
        }
    }
    (best.1, best.2)
}
