//! Every format x instruction set against its oracles, as one table of checks over [`FORMATS`].
//!
//! - int8: scalar, AVX2 and AVX-512 return the same bits, alone and in any group of columns; the value is that of
//!   an f64 sum over dequantized weights and dequantized activations within a derived bound.
//! - float: the same; ternary formats within 1e-6 relative of a sequential f64 sum.
//! - guard zones around the result stay untouched.

use nexaquant_kernels::{
    Acts, BoundKernel, F32Cols, FORMATS, Format, I8Cols, Isa, Layout, Line, Mode, Ops, Out, Weights,
};

/// A small, fixed generator: the same data on every machine.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// In -1..1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// A tensor quantized from random values, rows of different scales.
fn tensor(format: &Format, rows: usize, cols: usize, rng: &mut Rng) -> Vec<u8> {
    let src: Vec<f32> = (0..rows * cols)
        .map(|i| {
            let scale = if format.tail_bytes > 0 { 0.05 } else { 0.02 * (1 + i / cols % 3) as f32 };
            if format.ternary { (rng.next() % 3) as f32 * scale - scale } else { rng.unit() * scale }
        })
        .collect();
    let mut bytes = vec![0; format.tensor_bytes(rows, cols).unwrap()];
    format.quantize(&src, cols, &mut bytes);
    bytes
}

/// `n` columns of `cols`, one of them extreme.
fn columns(cols: usize, n: usize, rng: &mut Rng) -> Vec<f32> {
    (0..n * cols)
        .map(|i| match i / cols % 3 {
            1 => {
                if rng.next().is_multiple_of(2) {
                    127.0
                } else {
                    -127.0
                }
            }
            _ => rng.unit() * 4.0,
        })
        .collect()
}

/// Runs one kernel; the result sits in a buffer with guard values on all sides.
fn run(kernel: BoundKernel, w: &Weights<'_>, x: &[f32], n: usize) -> Vec<f32> {
    const GUARD: f32 = 12345.0;
    let (rows, cols) = (w.rows(), w.cols());
    let stride = rows + 5;
    let mut buffer = vec![GUARD; n * stride + 8];
    let ops = Ops::new(kernel.isa()).unwrap();
    let mut lines = Vec::new();
    let acts = if let Some(grain) = kernel.grain() {
        let layout = Layout { cols, grain };
        let each = layout.record_bytes() / 64;
        lines.resize(each * n, Line([0x55; 64]));
        for (x, record) in x.chunks(cols.max(1)).zip(lines.chunks_mut(each.max(1))) {
            ops.quantize(x, layout, record);
        }
        Acts::I8(I8Cols::new(&lines, layout, n))
    } else {
        Acts::F32(F32Cols::new(x, cols, cols, n))
    };
    kernel.run(w, &acts, Out::new(&mut buffer, stride, 3, rows, n));
    for (i, &v) in buffer.iter().enumerate() {
        let inside = i / stride < n && (3..3 + rows).contains(&(i % stride));
        assert!(inside || v == GUARD, "{kernel:?} wrote outside its window at {i}");
    }
    (0..n).flat_map(|c| buffer[c * stride + 3..][..rows].to_vec()).collect()
}

/// Row lengths worth trying: one block, one more, a long row, one that is no multiple of 256 where possible.
fn lengths(format: &Format) -> Vec<usize> {
    let b = format.block;
    let mut v = vec![b, 2 * b, 3 * b, 2048_usize.next_multiple_of(b), 2048_usize.next_multiple_of(b) + b];
    if b == 1 {
        v.extend([5, 15, 17, 31, 33, 100]);
    }
    v
}

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
