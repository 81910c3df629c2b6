//! Every format on every instruction set: against sums of f64, one product after the other, and bit for bit against plain
//! Rust. Integer sums that a float can hold must be exact.

use super::data::{Fill, Product, Rng, columns, matrix, product};
use super::{Check, Report};
use crate::failure::Failure;
use nexaquant_engine::kernels::{BoundKernel, FORMATS, Format, Isa, Mode, Weights};

/// Enough for tiles of many columns, and for columns left over.
const COLUMNS: usize = 13;

pub fn products(report: &mut Report) -> Result<(), Failure> {
    products_where(report, |_, _| true)
}

/// The same for some formats and kinds of activations.
pub fn products_where(report: &mut Report, wanted: impl Fn(&Format, Mode) -> bool) -> Result<(), Failure> {
    for &format in FORMATS {
        for mode in [Mode::Int8, Mode::Float] {
            if mode == Mode::Int8 && format.grain.is_none() || !wanted(format, mode) {
                continue;
            }
            for isa in Isa::available() {
                let name = if mode == Mode::Int8 { "int8" } else { "float" };
                let of = format!("{} {name} {isa}", format.name);
                let free = mode == Mode::Float && format.ternary;
                let mut sums = Check::new(if free { "multiplication-free" } else { "f64 sum" }, of.clone());
                let mut bits = Check::new("bits of scalar", of.clone());
                let mut exact = Check::new("exact integers", of);
                let (Some(kernel), Some(plain)) =
                    (BoundKernel::new(format, mode, isa), BoundKernel::new(format, mode, Isa::Scalar))
                else {
                    continue;
                };
                for case in cases(format) {
                    let mut rng = Rng(0x1234_5678);
                    let bytes = matrix(format, case.fill, case.rows, case.cols, &mut rng);
                    let weights = Weights::new(format, &bytes, case.rows, case.cols)
                        .map_err(|e| Failure::Internal(e.to_string()))?;
                    let x = columns(case.cols, COLUMNS, &mut rng);
                    let found = product(kernel, &weights, &x, COLUMNS);
                    let wanted = product(plain, &weights, &x, COLUMNS);
                    for (i, (a, b)) in found.out.iter().zip(&wanted.out).enumerate() {
                        bits.see_bits(*b, *a, || case.place(i));
                    }
                    against_f64(kernel, &weights, &found, &case, [&mut sums, &mut exact]);
                }
                for check in [sums, bits, exact].into_iter().filter(|check| check.values > 0) {
                    report.add(check)?;
                }
            }
        }
    }
    Ok(())
}

/// A matrix to multiply.
struct Case {
    fill: Fill,
    rows: usize,
    cols: usize,
}

impl Case {
    fn place(&self, element: usize) -> String {
        let Case { fill, rows, cols } = self;
        format!("{fill:?} {rows} x {cols}, row {}, column {}", element % rows, element / rows)
    }
}

fn cases(format: &Format) -> Vec<Case> {
    let block = format.block;
    let long = 16384usize.next_multiple_of(block);
    let mut cases = Vec::new();
    for fill in [Fill::Random, Fill::Largest, Fill::Zero, Fill::AnyBytes] {
        for (rows, cols) in
            [(1, block), (37, 3 * block), (7, 1024usize.next_multiple_of(block) + block), (3, long)]
        {
            cases.push(Case { fill, rows, cols });
        }
        if block == 1 {
            cases.extend([5, 15, 17, 33].map(|cols| Case { fill, rows: 3, cols }));
        }
    }
    cases
}

/// The bounds are those of the float steps that a kernel takes, each off by half of the last place.
fn against_f64(
    kernel: BoundKernel,
    weights: &Weights<'_>,
    found: &Product,
    case: &Case,
    [sums, exact]: [&mut Check; 2],
) {
    let format = weights.format();
    let float_ternary = format.ternary && kernel.grain().is_none();
    // Two bits can spell a fourth code, which no encoder writes and for which the float kernels count nothing.
    if float_ternary && case.fill == Fill::AnyBytes {
        return;
    }
    let half = f64::from(f32::EPSILON) / 2.0;
    let mut row = vec![0f32; case.cols];
    for r in 0..case.rows {
        weights.dequantize_row(r, &mut row);
        // A weight may be the difference of terms that are larger: by less than six times the largest of its block.
        let largest: Vec<f64> = row
            .chunks(format.block)
            .map(|block| block.iter().fold(0f64, |m, w| m.max(f64::from(w.abs()))))
            .collect();
        for c in 0..COLUMNS {
            let x = &found.values[c * case.cols..][..case.cols];
            let terms = || row.iter().zip(x).map(|(w, x)| f64::from(*w) * x);
            let expected: f64 = terms().sum();
            let size: f64 = terms().map(f64::abs).sum();
            let most = x.iter().fold(0f64, |m, x| m.max(x.abs()));
            let bound = if float_ternary {
                // What f64 itself loses in a sum that cancels comes on top.
                expected.abs() * 1e-6 + size * 1e-14
            } else if kernel.grain().is_some() {
                let widest = largest.iter().sum::<f64>() * format.block as f64 * most * 6.0;
                widest * (case.cols / 32 + 8) as f64 * half
            } else {
                size * (case.cols / 16 + 6) as f64 * half
            };
            let at = c * case.rows + r;
            let computed = f64::from(found.out[at]);
            sums.see(expected, computed, bound, || case.place(at));
            // Weights of 1 and activations of whole numbers: the sum is a whole number below 2^24, which f32 holds.
            if format.ternary && case.fill == Fill::Largest && c % 5 != 0 {
                exact.see(expected, computed, 0.0, || case.place(at));
            }
        }
    }
}
