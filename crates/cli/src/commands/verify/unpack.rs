//! Packed weights: every byte value at every place of a block, read by every kernel, against arithmetic on the spot.
//!
//! A column with one activation of 127 and zeros beside it lets one weight through.

use super::data::product;
use super::{Check, Report};
use crate::failure::Failure;
use nexaquant_engine::kernels::{BoundKernel, Format, Isa, Mode, Weights};

/// A packed format: where its bytes of codes begin, how many they are, and the code of an element.
struct Packed {
    name: &'static str,
    at: usize,
    bytes: usize,
    code: fn(&[u8], usize) -> u8,
}

/// The layouts as their formats' definitions state them, written once more and as plainly as possible.
const PACKED: [Packed; 5] = [
    Packed { name: "TQ1_0", at: 0, bytes: 52, code: trit },
    Packed {
        name: "TQ2_0",
        at: 0,
        bytes: 64,
        code: |q, e| (q[e / 128 * 32 + e % 32] >> (2 * (e % 128 / 32))) & 3,
    },
    Packed { name: "I2_S", at: 0, bytes: 32, code: |q, e| (q[e % 32] >> (6 - 2 * (e / 32))) & 3 },
    Packed { name: "Q2_0", at: 2, bytes: 16, code: |q, e| (q[e / 4] >> (2 * (e % 4))) & 3 },
    Packed { name: "Q2_0_G128", at: 2, bytes: 32, code: |q, e| (q[e / 4] >> (2 * (e % 4))) & 3 },
];

/// A byte is b / 256 in base 3; its n-th digit is what 3^(n + 1) b / 256 has before the point, modulo 3.
fn trit(q: &[u8], e: usize) -> u8 {
    let (byte, n) = match e {
        0..160 => (e % 32, e / 32),
        160..240 => (32 + e % 16, (e - 160) / 16),
        _ => (48 + e % 4, (e - 240) / 4),
    };
    ((u32::from(q[byte]) * 3u32.pow(n as u32 + 1) / 256) % 3) as u8
}

pub fn unpack(report: &mut Report) -> Result<(), Failure> {
    for packed in &PACKED {
        let Some(format) = Format::by_name(packed.name) else {
            return Err(Failure::Internal(format!("there is no format {}", packed.name)));
        };
        // 256 rows of one block; byte i of row b is b + 37 i, so that each place has each value once.
        let one = 0x3c00u16.to_le_bytes();
        let mut bytes = Vec::new();
        for b in 0..256 {
            let codes = (0..packed.bytes).map(|i| ((b + 37 * i) % 256) as u8);
            let scale = if format.tail_bytes == 0 { &one[..] } else { &[] };
            if packed.at > 0 {
                bytes.extend(scale);
                bytes.extend(codes);
            } else {
                bytes.extend(codes);
                bytes.extend(scale);
            }
        }
        if format.tail_bytes > 0 {
            bytes.extend(1f32.to_le_bytes());
            bytes.resize(bytes.len() + format.tail_bytes - 4, 0);
        }
        let weights = Weights::new(format, &bytes, 256, format.block)
            .map_err(|error| Failure::Internal(format!("{}: {error}", format.name)))?;
        let wanted = |row: usize, e: usize| {
            let codes = &bytes[row * format.block_bytes + packed.at..][..packed.bytes];
            f64::from((packed.code)(codes, e)) - 1.0
        };
        let place = |row: usize, e: usize| format!("row {row}, element {e}");

        let mut check = Check::new("unpacked", format!("{} as f32", format.name));
        let mut values = vec![0f32; format.block];
        for row in 0..256 {
            weights.dequantize_row(row, &mut values);
            for (e, &value) in values.iter().enumerate() {
                check.see(wanted(row, e), f64::from(value), 0.0, || place(row, e));
            }
        }
        report.add(check)?;

        let n = format.block;
        let x: Vec<f32> = (0..n * n).map(|i| if i / n == i % n { 127.0 } else { 0.0 }).collect();
        for isa in Isa::available() {
            let Some(kernel) = BoundKernel::new(format, Mode::Int8, isa) else { continue };
            let mut check = Check::new("unpacked", format!("{} int8 {isa}", format.name));
            let found = product(kernel, &weights, &x, n);
            for (i, &value) in found.out.iter().enumerate() {
                let (row, e) = (i % 256, i / 256);
                check.see(127.0 * wanted(row, e), f64::from(value), 0.0, || place(row, e));
            }
            report.add(check)?;
        }
    }
    Ok(())
}
