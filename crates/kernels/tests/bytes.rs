//! Kernels on any bytes a file may hold: the same bits on every instruction set, exact integers at the extremes,
//! and no byte read behind the last one.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Rng, any_bytes, columns, lengths, run};
use nexaquant_kernels::{BoundKernel, FORMATS, Isa, Mode, Weights};

/// Equal bits, or both not a number: which NaN an operation returns is the processor's choice.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[test]
fn any_bytes_give_the_bits_of_scalar() {
    let mut rng = Rng(0x0bad_c0de_1234_5671);
    for &format in FORMATS {
        // With one column rows are taken from four places: three groups of them and two more.
        for (cols, (rows, n)) in
            lengths(format).into_iter().flat_map(|cols| [(cols, (7, 5)), (cols, (14, 1))])
        {
            let bytes = any_bytes(format, rows, cols, &mut rng);
            let w = Weights::new(format, &bytes, rows, cols).unwrap();
            let x = columns(cols, n, &mut rng);
            for mode in [Mode::Int8, Mode::Float] {
                let oracle = run(BoundKernel::new(format, mode, Isa::Scalar).unwrap(), &w, &x, n);
                assert!(oracle.iter().any(|y| y.is_finite() && *y != 0.0), "{} says nothing", format.name);
                for isa in Isa::available() {
                    let kernel = BoundKernel::new(format, mode, isa).unwrap();
                    for (i, (a, b)) in run(kernel, &w, &x, n).iter().zip(&oracle).enumerate() {
                        assert!(same(*a, *b), "{kernel:?} cols {cols} element {i}: {a} {b}");
                    }
                }
            }
        }
    }
}

/// Whole numbers in -127..=127, one of every 32 neighbours at the limit, so that quantizing changes nothing.
fn whole_columns(cols: usize, n: usize, rng: &mut Rng) -> Vec<f32> {
    (0..n * cols)
        .map(|i| {
            let sign = if rng.next() >> 63 == 0 { 1.0 } else { -1.0 };
            if i % cols % 32 == 5 || i / cols == 1 { 127.0 * sign } else { (rng.unit() * 127.0).round() }
        })
        .collect()
}

/// With activations that int8 holds exactly, only float steps are left to differ from an f64 sum.
#[test]
fn whole_activations_leave_only_float_steps() {
    let mut rng = Rng(0x5eed_0000_1111_2223);
    for &format in FORMATS.iter().filter(|f| f.grain.is_some()) {
        for cols in [format.block, 3 * format.block, 16384] {
            let (rows, n) = (4, 3);
            let bytes = any_bytes(format, rows, cols, &mut rng);
            let w = Weights::new(format, &bytes, rows, cols).unwrap();
            let x = whole_columns(cols, n, &mut rng);
            let mut wide = vec![0f32; cols];
            for isa in Isa::available() {
                let kernel = BoundKernel::new(format, Mode::Int8, isa).unwrap();
                let y = run(kernel, &w, &x, n);
                for (c, x) in x.chunks(cols).enumerate() {
                    for r in 0..rows {
                        w.dequantize_row(r, &mut wide);
                        let expected: f64 =
                            wide.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                        // One float step per lane for every 32 values at most, each off by half an ulp of what
                        // the lane holds. A weight may be the difference of terms that are larger, by less
                        // than 6 times the largest weight of its block when the codes are random.
                        let largest = wide.chunks(format.block).map(|block| {
                            block.iter().fold(0f64, |m, w| m.max(f64::from(w.abs()))) * block.len() as f64
                        });
                        let size = largest.sum::<f64>() * 127.0 * 6.0;
                        let bound = size * (cols / 32 + 8) as f64 * f64::from(f32::EPSILON) / 2.0;
                        let got = f64::from(y[c * rows + r]);
                        assert!(
                            (got - expected).abs() <= bound,
                            "{kernel:?} cols {cols}: {got} for {expected}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn ternary_rows_of_one_scale_are_the_rounded_exact_integer() {
    let mut rng = Rng(0x7777_1234_4321_7777);
    let (cols, n) = (16384, 20);
    for &format in FORMATS.iter().filter(|f| f.ternary) {
        let row_bytes = format.row_bytes(cols).unwrap();
        // All -1, all +1 (or the unused code), and anything.
        let fills: [&mut dyn FnMut() -> u8; 4] =
            [&mut || 0, &mut || 0xff, &mut || 0xaa, &mut || (rng.next() >> 32) as u8];
        let rows = fills.len();
        let mut bytes = Vec::new();
        for fill in fills {
            bytes.extend((0..row_bytes).map(|_| fill()));
        }
        let d = if format.tail_bytes == 0 {
            // 0x2e66 is the half nearest to 0.1; both formats keep it in a block's last two bytes.
            for block in bytes.chunks_mut(format.block_bytes) {
                block[format.block_bytes - 2..].copy_from_slice(&0x2e66u16.to_le_bytes());
            }
            0.099_975_586f32
        } else {
            bytes.extend(0.1f32.to_le_bytes());
            bytes.resize(bytes.len() + format.tail_bytes - 4, 0xee);
            0.1
        };
        let w = Weights::new(format, &bytes, rows, cols).unwrap();
        let x: Vec<f32> = (0..n * cols)
            .map(|i| [127.0, -127.0, if rng.next() >> 63 == 0 { 127.0 } else { -127.0 }][i / cols % 3])
            .collect();
        let mut wide = vec![0f32; cols];
        for isa in Isa::available() {
            let kernel = BoundKernel::new(format, Mode::Int8, isa).unwrap();
            // All columns at once, which are a tile's, and before them the first three one by one.
            let mut y: Vec<f32> = x.chunks(cols).take(3).flat_map(|x| run(kernel, &w, x, 1)).collect();
            y.extend(run(kernel, &w, &x, n));
            for r in 0..rows {
                w.dequantize_row(r, &mut wide);
                for (c, x) in x[..3 * cols].chunks(cols).chain(x.chunks(cols)).enumerate() {
                    let sum: i64 = wide.iter().zip(x).map(|(w, x)| (w / d).round() as i64 * *x as i64).sum();
                    assert_eq!(y[c * rows + r], sum as f32 * d, "{kernel:?} row {r} column {c}: sum {sum}");
                    assert!(
                        r > 1 || c % 3 > 1 || sum.unsigned_abs() >= 127 * cols as u64,
                        "not extreme: {sum}"
                    );
                }
            }
        }
    }
}

/// Rows and columns of a whole tile and some more, whose sums are as large as they can be, in any quarter of the tile; and rows longer
/// than what one sum holds.
#[test]
fn tiles_of_ternary_rows_are_exact_at_the_extremes() {
    let mut rng = Rng(0x0c12_3400_0777_1234);
    let (rows, n) = (64 + 40, 21);
    for &format in FORMATS.iter().filter(|f| f.ternary) {
        // 28 steps of 256 weights fit one sum.
        for cols in [28 * 256, 28 * 256 + format.block, 57 * 256] {
            let mut sign = || if rng.next() >> 63 == 0 { 1.0 } else { -1.0 };
            let signs: Vec<f32> = (0..cols).map(|_| sign()).collect();
            // All +1 and all -1, the most that the third column gives, and anything.
            let row = |r: usize, e: usize| {
                [1.0, -1.0, signs[e], -signs[e], (e * 7 + r * 13) as f32 % 3.0 - 1.0][r % 5]
            };
            let values: Vec<f32> = (0..rows * cols).map(|i| row(i / cols, i % cols)).collect();
            let mut bytes = vec![0; format.tensor_bytes(rows, cols).unwrap()];
            format.quantize(&values, cols, &mut bytes);
            let w = Weights::new(format, &bytes, rows, cols).unwrap();
            let x: Vec<f32> = (0..n * cols)
                .map(|i| {
                    let (c, e) = (i / cols, i % cols);
                    [
                        127.0,
                        -127.0,
                        127.0 * signs[e],
                        if e == 0 { 127.0 } else { (e * 31 % 255) as f32 - 127.0 },
                    ][c % 4]
                })
                .collect();
            for isa in Isa::available() {
                let kernel = BoundKernel::new(format, Mode::Int8, isa).unwrap();
                let y = run(kernel, &w, &x, n);
                for (c, x) in x.chunks(cols).enumerate() {
                    for (r, values) in values.chunks(cols).enumerate() {
                        let sum: i64 = values.iter().zip(x).map(|(w, x)| *w as i64 * *x as i64).sum();
                        // Below 2^24, and the scale is 1.
                        assert_eq!(y[c * rows + r], sum as f32, "{kernel:?} {cols} row {r} column {c}");
                    }
                }
            }
        }
    }
}

/// A tile in which one row has a code that no encoder writes, or a scale of its own.
#[test]
fn tiles_with_an_odd_row_return_the_bits_of_scalar() {
    let mut rng = Rng(0x0c12_3400_0777_4321);
    let (rows, cols, n) = (64, 768, 16);
    for &format in FORMATS.iter().filter(|f| f.ternary) {
        let row_bytes = format.row_bytes(cols).unwrap();
        let x = columns(cols, n, &mut rng);
        for row in [0, 17, 40, 63] {
            let values: Vec<f32> = (0..rows * cols).map(|_| (rng.next() % 3) as f32 - 1.0).collect();
            let mut bytes = vec![0; format.tensor_bytes(rows, cols).unwrap()];
            format.quantize(&values, cols, &mut bytes);
            for odd in [row * row_bytes + 33, (row + 1) * row_bytes - 1] {
                bytes[odd] ^= 0x03;
                bytes[odd] |= 0x30;
                let w = Weights::new(format, &bytes, rows, cols).unwrap();
                let oracle = run(BoundKernel::new(format, Mode::Int8, Isa::Scalar).unwrap(), &w, &x, n);
                for isa in Isa::available() {
                    let kernel = BoundKernel::new(format, Mode::Int8, isa).unwrap();
                    for (i, (a, b)) in run(kernel, &w, &x, n).iter().zip(&oracle).enumerate() {
                        assert!(same(*a, *b), "{kernel:?} odd byte {odd}, element {i}: {a} {b}");
                    }
                }
            }
        }
    }
}

/// The rows, without the tail of a tensor, end where a page ends that nobody may read beyond.
#[cfg(target_os = "linux")]
#[test]
fn nothing_is_read_behind_the_last_byte() {
    use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
    const SPACE: usize = 1 << 16;
    let page = rustix::param::page_size();
    let mut rng = Rng(0x1357_9bdf_2468_ace1);
    // SAFETY: a fresh mapping; its last page is made unreadable before anything points into it.
    let base = unsafe {
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        let base = mmap_anonymous(std::ptr::null_mut(), SPACE + page, flags, MapFlags::PRIVATE).unwrap();
        mprotect(base.add(SPACE), page, MprotectFlags::empty()).unwrap();
        base.cast::<u8>()
    };
    for &format in FORMATS {
        let lengths = lengths(format).into_iter().filter(|&cols| cols < 1024);
        for (cols, (rows, n)) in lengths.flat_map(|cols| [(cols, (2, 5)), (cols, (8, 1))]) {
            let mut bytes = any_bytes(format, rows, cols, &mut rng);
            bytes.truncate(bytes.len() - format.tail_bytes);
            // SAFETY: `SPACE` readable and writable bytes begin at `base`, and the tensor is shorter.
            let held = unsafe {
                let at = base.add(SPACE - bytes.len());
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len());
                std::slice::from_raw_parts(at, bytes.len())
            };
            let w = Weights::of_rows(format, held, rows, cols, 1.0).unwrap();
            let x = columns(cols, n, &mut rng);
            for mode in [Mode::Int8, Mode::Float] {
                for isa in Isa::available() {
                    run(BoundKernel::new(format, mode, isa).unwrap(), &w, &x, n);
                }
            }
        }
    }
    // SAFETY: the mapping made above; no reference into it is left.
    unsafe { munmap(base.cast(), SPACE + page).unwrap() };
}
