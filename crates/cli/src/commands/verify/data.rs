//! Numbers to compute with, and one way to run a kernel on them.

use nexaquant_engine::kernels::{
    Acts, BoundKernel, F32Cols, Format, I8Cols, Layout, Line, Ops, Out, Weights,
};

/// The same numbers in every run: SplitMix64 (Steele, Lea, Flood 2014).
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
    pub fn sign(&mut self) -> f32 {
        if self.next() >> 63 == 0 { 1.0 } else { -1.0 }
    }
}

/// What a matrix holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    Random,
    /// The largest weights there are, all of one sign, and by turns.
    Largest,
    Zero,
    /// Blocks of any bytes whose values are finite.
    AnyBytes,
}

/// The bytes of a matrix.
pub fn matrix(format: &'static Format, fill: Fill, rows: usize, cols: usize, rng: &mut Rng) -> Vec<u8> {
    if fill == Fill::AnyBytes {
        return any_bytes(format, rows, cols, rng);
    }
    let values: Vec<f32> = (0..rows * cols)
        .map(|i| match fill {
            Fill::Random if format.ternary => ((rng.next() % 3) as f32 - 1.0) * 0.05,
            Fill::Random => rng.unit() * 0.05,
            Fill::Largest => match i / cols % 3 {
                0 => 1.0,
                1 => -1.0,
                _ => rng.sign(),
            },
            _ => 0.0,
        })
        .collect();
    let mut bytes = vec![0; format.tensor_bytes(rows, cols).unwrap_or(0)];
    format.quantize(&values, cols, &mut bytes);
    bytes
}

fn any_bytes(format: &'static Format, rows: usize, cols: usize, rng: &mut Rng) -> Vec<u8> {
    let wanted = format.row_bytes(cols).unwrap_or(0) * rows;
    let mut tail = vec![0; format.tail_bytes];
    if let Some(scale) = tail.first_chunk_mut() {
        *scale = 0.37f32.to_le_bytes();
    }
    let (mut bytes, mut values) = (Vec::with_capacity(wanted), vec![0f32; format.block]);
    while bytes.len() < wanted {
        let block: Vec<u8> = (0..format.block_bytes).map(|_| (rng.next() >> 32) as u8).collect();
        let one = [&block[..], &tail].concat();
        if let Ok(weights) = Weights::new(format, &one, 1, format.block) {
            weights.dequantize_row(0, &mut values);
        }
        if values.iter().all(|v| v.is_finite() && v.abs() < 1e9) {
            bytes.extend(block);
        }
    }
    bytes.extend(tail);
    bytes
}

/// Columns: random ones, all 127, all -127, both by chance, zeros, again and again.
pub fn columns(cols: usize, n: usize, rng: &mut Rng) -> Vec<f32> {
    (0..n * cols)
        .map(|i| match i / cols % 5 {
            0 => rng.unit() * 4.0,
            1 => 127.0,
            2 => -127.0,
            3 => 127.0 * rng.sign(),
            _ => 0.0,
        })
        .collect()
}

/// What a kernel made, and what it was given: `values` are the activations as the kernel sees them.
pub struct Product {
    pub out: Vec<f32>,
    pub values: Vec<f64>,
}

/// Multiplies; the result of column c is at `c * rows`.
pub fn product(kernel: BoundKernel, weights: &Weights<'_>, x: &[f32], n: usize) -> Product {
    let (rows, cols) = (weights.rows(), weights.cols());
    let mut out = vec![f32::NAN; n * rows];
    let Some(grain) = kernel.grain() else {
        let acts = Acts::F32(F32Cols::new(x, cols, cols, n));
        kernel.run(weights, &acts, Out::new(&mut out, rows, 0, rows, n));
        return Product { out, values: x.iter().map(|&x| f64::from(x)).collect() };
    };
    let layout = Layout { cols, grain };
    let each = layout.record_bytes() / 64;
    let mut lines = vec![Line([0; 64]); each * n];
    if let Some(ops) = Ops::new(kernel.isa()) {
        for (x, record) in x.chunks(cols).zip(lines.chunks_mut(each)) {
            ops.quantize(x, layout, record);
        }
    }
    let int8 = I8Cols::new(&lines, layout, n);
    kernel.run(weights, &Acts::I8(int8), Out::new(&mut out, rows, 0, rows, n));
    let group = layout.padded() / layout.groups();
    let value =
        |c: usize, e: usize| f64::from(int8.q(c)[grain.place(e)]) * f64::from(int8.scales(c)[e / group]);
    let values = (0..n).flat_map(|c| (0..cols).map(move |e| (c, e))).map(|(c, e)| value(c, e)).collect();
    Product { out, values }
}
