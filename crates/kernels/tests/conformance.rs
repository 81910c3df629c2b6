//! Every format x instruction set against its oracles, as one table of checks over [`FORMATS`].
//!
//! - int8: scalar, AVX2, AVX-512 and AMX return the same bits, alone and in any group of columns; the value is that of
//!   an f64 sum over dequantized weights and dequantized activations within a derived bound.
//! - float: the same; ternary formats within 1e-6 relative of a sequential f64 sum.
//! - guard zones around the result stay untouched.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Rng, columns, lengths, run, tensor};
use nexaquant_kernels::{BoundKernel, FORMATS, Isa, Mode, Weights};

#[test]
fn every_isa_returns_the_bits_of_scalar() {
    let mut rng = Rng(0x1234_5678_9abc_def1);
    for &format in FORMATS {
        for cols in lengths(format) {
            let rows = 5;
            let bytes = tensor(format, rows, cols, &mut rng);
            let w = Weights::new(format, &bytes, rows, cols).unwrap();
            let n = 13;
            let x = columns(cols, n, &mut rng);
            for mode in [Mode::Int8, Mode::Float] {
                let oracle = run(BoundKernel::new(format, mode, Isa::Scalar).unwrap(), &w, &x, n);
                for isa in Isa::available() {
                    let kernel = BoundKernel::new(format, mode, isa).unwrap();
                    let all = run(kernel, &w, &x, n);
                    for (i, (a, b)) in all.iter().zip(&oracle).enumerate() {
                        assert_eq!(a.to_bits(), b.to_bits(), "{kernel:?} cols {cols} element {i}: {a} {b}");
                    }
                    for c in 0..n {
                        let one = run(kernel, &w, &x[c * cols..][..cols], 1);
                        assert_eq!(one, all[c * rows..][..rows], "{kernel:?} column {c} alone");
                    }
                }
            }
        }
    }
}

#[test]
fn products_agree_with_a_sequential_f64_sum() {
    let mut rng = Rng(0xfeed_beef_1234_5679);
    for &format in FORMATS {
        for cols in lengths(format) {
            let (rows, n) = (4, 3);
            let bytes = tensor(format, rows, cols, &mut rng);
            let w = Weights::new(format, &bytes, rows, cols).unwrap();
            let x = columns(cols, n, &mut rng);
            let mut wide = vec![0f32; cols];
            for isa in Isa::available() {
                for mode in [Mode::Int8, Mode::Float] {
                    let kernel = BoundKernel::new(format, mode, isa).unwrap();
                    let y = run(kernel, &w, &x, n);
                    for c in 0..n {
                        let x = &x[c * cols..][..cols];
                        let max = x.iter().fold(0f32, |m, v| m.max(v.abs()));
                        for r in 0..rows {
                            w.dequantize_row(r, &mut wide);
                            let terms = || wide.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                            let expected: f64 = terms().sum();
                            let size: f64 = terms().map(f64::abs).sum();
                            let weight: f64 = wide.iter().map(|w| f64::from(w.abs())).sum();
                            let bound = match kernel.grain() {
                                // Half a step of rounding on every activation, and float steps on top.
                                Some(_) => f64::from(max) / 254.0 * weight * 1.0001 + size * 1e-6,
                                None if format.ternary => expected.abs() * 1e-6,
                                // 16 lanes of cols / 16 fused steps, each half an ulp of at most `size`.
                                None => size * (cols / 16 + 6) as f64 * f64::from(f32::EPSILON) / 2.0,
                            };
                            let got = f64::from(y[c * rows + r]);
                            assert!(
                                (got - expected).abs() <= bound.max(1e-30),
                                "{kernel:?} cols {cols}: {got} for {expected}, bound {bound}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Several columns, and rows of one scale each as trained models have: the path that unpacks a tile of rows for all of them;
/// rows with more scales among them, which must leave it.
#[test]
fn tiles_of_rows_return_the_bits_of_scalar() {
    let mut rng = Rng(0x0dd_ba11);
    for &format in FORMATS.iter().filter(|f| f.ternary) {
        let few = (2..12).flat_map(|n| [(33, 512, n, false), (7, 512, n, true)]);
        let many = [
            (32, 256, 12, false),
            (37, 1280, 29, false),
            (1, 2304, 16, false),
            (70, 512, 13, true),
            (16, 2560, 31, true),
            // More columns than a tile is unpacked for at once, and three stretches of a row.
            (35, 1792, 131, false),
        ];
        for (rows, cols, n, mixed) in few.chain(many) {
            let mut values = vec![0f32; rows * cols];
            for (r, row) in values.chunks_exact_mut(cols).enumerate() {
                for (e, w) in row.iter_mut().enumerate() {
                    let scale = if mixed && r == rows / 2 { (1 + e / 256) as f32 } else { (1 + r) as f32 };
                    *w = ((rng.next() % 3) as f32 - 1.0)
                        * if format.tail_bytes > 0 { 0.5 } else { scale / 64.0 };
                }
            }
            let mut bytes = vec![0; format.tensor_bytes(rows, cols).unwrap()];
            format.quantize(&values, cols, &mut bytes);
            let w = Weights::new(format, &bytes, rows, cols).unwrap();
            let x = columns(cols, n, &mut rng);
            let oracle = run(BoundKernel::new(format, Mode::Int8, Isa::Scalar).unwrap(), &w, &x, n);
            for isa in Isa::available() {
                let kernel = BoundKernel::new(format, Mode::Int8, isa).unwrap();
                let all = run(kernel, &w, &x, n);
                for (i, (a, b)) in all.iter().zip(&oracle).enumerate() {
                    assert_eq!(a.to_bits(), b.to_bits(), "{kernel:?} {rows}x{cols}x{n} element {i}: {a} {b}");
                }
            }
        }
    }
}

/// Tiles that are not full: any number of rows and columns up to some more than two tiles of each, whole steps and half ones. Each
/// element is the same whatever stands beside it.
#[test]
fn tiles_of_any_size_return_the_bits_of_scalar() {
    let mut rng = Rng(0x7e55_e11a);
    let isas: Vec<Isa> = Isa::available().filter(|&isa| isa != Isa::Scalar).collect();
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.is_available()) {
        println!("skipped {isa}: this processor, or the system, does not have it");
    }
    let (rows, n) = (70, 40);
    for &format in FORMATS.iter().filter(|f| f.grain.is_some()) {
        // The longest has more than one section of 4096 weights.
        for cols in [1, 3, 23, 4096 / format.block + 1].map(|blocks| blocks * format.block) {
            let bytes = if format.ternary {
                let values: Vec<f32> =
                    (0..rows * cols).map(|_| (rng.next() % 3) as f32 / 2.0 - 0.5).collect();
                let mut bytes = vec![0; format.tensor_bytes(rows, cols).unwrap()];
                format.quantize(&values, cols, &mut bytes);
                bytes
            } else {
                tensor(format, rows, cols, &mut rng)
            };
            let w = Weights::new(format, &bytes, rows, cols).unwrap();
            let x = columns(cols, n, &mut rng);
            let oracle = run(BoundKernel::new(format, Mode::Int8, Isa::Scalar).unwrap(), &w, &x, n);
            // All of both where rows are short, else what a step of 3 and 7 meets.
            let (by_rows, by_columns) = match cols {
                0..=256 => (1, 1),
                257..=4096 => (7, 3),
                _ => (23, 13),
            };
            for rows in (1..=70).step_by(by_rows) {
                for n in (1..=n).step_by(by_columns) {
                    for &isa in &isas {
                        let kernel = BoundKernel::new(format, Mode::Int8, isa).unwrap();
                        let part = run(kernel, &w.rows_range(0..rows), &x[..n * cols], n);
                        for (c, part) in part.chunks(rows).enumerate() {
                            let same =
                                part.iter().zip(&oracle[c * 70..]).all(|(a, b)| a.to_bits() == b.to_bits());
                            assert!(same, "{kernel:?} {rows}x{cols}, column {c} of {n}");
                        }
                    }
                }
            }
        }
    }
}
