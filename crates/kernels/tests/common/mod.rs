//! What the kernel tests share: fixed random data, and one way to run a kernel.

// Each test file is a crate of its own and uses some of this.
#![allow(dead_code)]

use nexaquant_kernels::{Acts, BoundKernel, F32Cols, Format, I8Cols, Layout, Line, Ops, Out, Weights};

/// A small, fixed generator: the same data on every machine.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// A tensor quantized from random values, rows of different scales.
pub fn tensor(format: &Format, rows: usize, cols: usize, rng: &mut Rng) -> Vec<u8> {
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
pub fn columns(cols: usize, n: usize, rng: &mut Rng) -> Vec<f32> {
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
pub fn run(kernel: BoundKernel, w: &Weights<'_>, x: &[f32], n: usize) -> Vec<f32> {
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

/// Row lengths worth trying: one block, one more, eight (which some kernels take two rows at a time), a long row, one that is no
/// multiple of 256 where possible, and of small blocks eight more than a section.
pub fn lengths(format: &Format) -> Vec<usize> {
    let b = format.block;
    let mut v =
        vec![b, 2 * b, 3 * b, 8 * b, 2048_usize.next_multiple_of(b), 2048_usize.next_multiple_of(b) + b];
    if b == 32 {
        v.push(4096 + 8 * b);
    }
    if b == 1 {
        v.extend([5, 15, 17, 31, 33, 100]);
    }
    v
}

/// A tensor of any bytes, codes that no encoder writes among them. Blocks are drawn until their values are
/// finite; every other one, on average, repeats the one before, so that scales come in runs of many lengths.
pub fn any_bytes(format: &Format, rows: usize, cols: usize, rng: &mut Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    let mut tail = vec![0x5a; format.tail_bytes];
    if let Some(scale) = tail.first_chunk_mut() {
        *scale = 0.37f32.to_le_bytes();
    }
    let format = Format::by_name(format.name).unwrap();
    let mut values = vec![0f32; format.block];
    while bytes.len() < format.row_bytes(cols).unwrap() * rows {
        let before = bytes.len().checked_sub(format.block_bytes);
        if let Some(at) = before.filter(|_| rng.next() >> 63 == 0) {
            bytes.extend_from_within(at..);
            continue;
        }
        let block: Vec<u8> = (0..format.block_bytes).map(|_| (rng.next() >> 32) as u8).collect();
        let one = [&block[..], &tail].concat();
        Weights::new(format, &one, 1, format.block).unwrap().dequantize_row(0, &mut values);
        if values.iter().all(|v| v.is_finite() && v.abs() < 1e9) {
            bytes.extend(block);
        }
    }
    bytes.extend(tail);
    bytes
}
