//! Every format against recorded tensors: bytes, and the f32 values that an implementation in Python gives them.
//!
//! The values must agree to the bit, -0 included. Every format's value is a chain of f32 operations in one
//! order, and the recording follows the same order, so no tolerance is needed.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use nexaquant_kernels::{FORMATS, Format, Weights};
use std::path::Path;

/// One line of `index.json` with its two files.
struct Case {
    file: String,
    format: String,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl Case {
    fn weights(&self) -> Weights<'_> {
        let format = Format::by_name(&self.format).unwrap_or_else(|| panic!("no format {}", self.format));
        Weights::new(format, &self.bytes, self.rows, self.cols)
            .unwrap_or_else(|e| panic!("{}: {e}", self.file))
    }
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    let lines = index.as_array().unwrap();
    let case = |line: &serde_json::Value| {
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        let number = |key: &str| line[key].as_u64().unwrap() as usize;
        let read = |end: &str| std::fs::read(folder.join(text("file") + end)).unwrap();
        let values: Vec<f32> =
            read(".f32").as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        let case = Case {
            file: text("file"),
            format: text("format"),
            rows: number("rows"),
            cols: number("cols"),
            bytes: read(".bin"),
            values,
        };
        assert_eq!(case.bytes.len(), number("bytes"), "{}.bin", case.file);
        assert_eq!(case.values.len(), case.rows * case.cols, "{}.f32", case.file);
        case
    };
    lines.iter().map(case).collect()
}

#[test]
fn recorded_formats_and_formats_with_kernels_are_the_same() {
    let mut recorded: Vec<String> = cases().into_iter().map(|case| case.format).collect();
    recorded.sort();
    recorded.dedup();
    let mut present: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
    present.sort_unstable();
    assert_eq!(recorded, present);
}

#[test]
fn dequantized_values_are_the_recorded_ones() {
    for case in cases() {
        let weights = case.weights();
        let mut row = vec![0f32; case.cols];
        for (r, expected) in case.values.chunks(case.cols).enumerate() {
            weights.dequantize_row(r, &mut row);
            for (c, (got, expected)) in row.iter().zip(expected).enumerate() {
                assert_eq!(
                    got.to_bits(),
                    expected.to_bits(),
                    "{} row {r} column {c}: {got:e} for {expected:e}",
                    case.file
                );
            }
        }
    }
}

#[test]
fn values_that_a_format_has_survive_its_quantizer() {
    // Where several scales and a grid share a block, the search for them is not expected to find the recorded ones.
    let exact = |name: &str| ["F32", "F16", "BF16", "Q1_0", "Q2_0", "Q2_0_G128"].contains(&name);
    let mut checked = 0;
    for case in cases() {
        let format = case.weights().format();
        if !(format.ternary || exact(format.name)) {
            continue;
        }
        let mut bytes = vec![0xaa; case.bytes.len()];
        format.quantize(&case.values, case.cols, &mut bytes);
        let again = Weights::new(format, &bytes, case.rows, case.cols).unwrap();
        let mut row = vec![0f32; case.cols];
        for (r, expected) in case.values.chunks(case.cols).enumerate() {
            again.dequantize_row(r, &mut row);
            assert_eq!(row, expected, "{} row {r}", case.file);
        }
        if format.tail_bytes > 0 {
            assert!(bytes[bytes.len() - format.tail_bytes + 4..].iter().all(|&b| b == 0), "padding");
        }
        checked += 1;
    }
    assert_eq!(checked, 10, "three ternary formats and I2_S of 640 columns, six others");
}
