//! How the device stores each format, and which code multiplies it: one table, which the packing, the program's text and
//! the phases read.
//!
//! A format's block is cut into fields, and each field of all blocks of all rows lies in a plane of its own: then every
//! load is aligned and neighbouring lanes read neighbouring bytes. The bits are those of the file. Ternary rows whose blocks
//! all have one scale keep that scale once, as f32, and are summed as integers over the whole row, as on the CPU.

use nexaquant_kernels::{Format, Grain};

/// How a matrix is stored and multiplied on the device.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// Its number in the program's `switch`; with [`FLOAT`] added for activations that are not quantized.
    pub code: u32,
    /// Its name in the program.
    pub name: &'static str,
    /// The file's format.
    pub format: &'static str,
    /// Weights in a block.
    pub block: usize,
    /// First byte and bytes of each field.
    pub fields: &'static [(usize, usize)],
    /// A plane of one f32 a row follows: the scale of all its blocks.
    pub row_scale: bool,
    /// `F_ITEM`, `F_LOAD` and `F_STEP` of the program; `None` where the one weight at a time of `weights.cl` is all.
    pub code_of: Option<Code>,
}

/// The program's text for a product.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Code {
    pub item: &'static str,
    pub load: &'static str,
    /// Called with item, row, record and what was summed so far.
    pub step: &'static str,
    /// Items of a row of `cols`.
    pub items: &'static str,
}

/// Added to a code whose activations are floats.
pub(super) const FLOAT: u32 = 32;

macro_rules! stored {
    ($code:literal $name:literal $format:literal $block:literal $fields:expr, $scale:literal,
     $item:literal $load:literal $step:literal $items:literal) => {
        Stored {
            code: $code,
            name: $name,
            format: $format,
            block: $block,
            fields: &$fields,
            row_scale: $scale,
            code_of: Some(Code { item: $item, load: $load, step: $step, items: $items }),
        }
    };
}

const Q6: [(usize, usize); 4] = [(0, 128), (128, 64), (192, 16), (208, 2)];
const TQ1: [(usize, usize); 3] = [(0, 48), (48, 4), (52, 2)];

/// Every stored form. Where two are of one format, the first is the better one and has conditions ([`Stored::choose`]).
pub(super) static STORED: &[Stored] = &[
    stored!(1 "tq2u" "TQ2_0" 256 [(0, 64)], true, "item_tq2" "load_tq2" "acc + CAT(dot_tq2_plain_, AS)(it, rec, i, turn)" "(cols) / 64"),
    stored!(2 "tq2n" "TQ2_0" 256 [(0, 64), (64, 2)], false, "item_tq2" "load_tq2" "CAT(acc_tq2n_, AS)(it, row, rec, padded, turn, i, acc)" "(cols) / 64"),
    stored!(3 "tq1u" "TQ1_0" 256 [(0, 48), (48, 4)], true, "item_tq1" "load_tq1" "acc + CAT(dot_tq1_, AS)(it, rec, i)" "(cols) / 256 * 3"),
    stored!(4 "tq1n" "TQ1_0" 256 TQ1, false, "item_tq1" "load_tq1" "CAT(acc_tq1n_, AS)(it, row, rec, padded, i, acc)" "(cols) / 256 * 3"),
    stored!(5 "i2s" "I2_S" 128 [(0, 32)], true, "item_tq2" "load_tq2" "acc + CAT(dot_tq2_flip_, AS)(it, rec, i, turn)" "(cols) / 64"),
    stored!(6 "q4_0" "Q4_0" 32 [(2, 16), (0, 2)], false, "item_b32" "load_q4_0" "CAT(acc_q4_0_, AS)(it, rec, padded, i, acc)" "(cols) / 32"),
    stored!(7 "q4_1" "Q4_1" 32 [(4, 16), (0, 4)], false, "item_b32" "load_q4_1" "CAT(acc_min_, AS)(it, rec, padded, i, acc)" "(cols) / 32"),
    stored!(8 "q5_0" "Q5_0" 32 [(6, 16), (2, 4), (0, 2)], false, "item_b32" "load_q5_0" "CAT(acc_q5_0_, AS)(it, rec, padded, i, acc)" "(cols) / 32"),
    stored!(9 "q5_1" "Q5_1" 32 [(8, 16), (4, 4), (0, 4)], false, "item_b32" "load_q5_1" "CAT(acc_min_, AS)(it, rec, padded, i, acc)" "(cols) / 32"),
    stored!(10 "q8_0" "Q8_0" 32 [(2, 32), (0, 2)], false, "item_b32" "load_q8_0" "CAT(acc_q8_0_, AS)(it, rec, padded, i, acc)" "(cols) / 32"),
    stored!(11 "q1_0" "Q1_0" 128 [(2, 16), (0, 2)], false, "item_b32" "load_q1_0" "CAT(acc_q1_0_, AS)(it, rec, padded, i, acc)" "(cols) / 32"),
    stored!(12 "q2_0" "Q2_0" 64 [(2, 16), (0, 2)], false, "item_q2" "load_q2_0" "CAT(acc_q2_0_, AS)(it, rec, padded, i, acc)" "(cols) / 64"),
    stored!(13 "q2_0_g128" "Q2_0_G128" 128 [(2, 32), (0, 2)], false, "item_q2" "load_q2_0_g128" "CAT(acc_q2_0_, AS)(it, rec, padded, i, acc)" "(cols) / 64"),
    stored!(14 "q4_k" "Q4_K" 256 [(16, 128), (0, 16)], false, "item_k" "load_q4_k" "CAT(acc_k_, AS)(it, rec, padded, i, acc)" "(cols) / 64"),
    stored!(15 "q5_k" "Q5_K" 256 [(48, 128), (16, 32), (0, 16)], false, "item_k" "load_q5_k" "CAT(acc_k_, AS)(it, rec, padded, i, acc)" "(cols) / 64"),
    stored!(16 "q6_k" "Q6_K" 256 Q6, false, "item_q6" "load_q6_k" "CAT(acc_q6_k_, AS)(it, rec, padded, i, acc)" "(cols) / 64"),
    stored!(17 "f32v" "F32" 1 [(0, 4)], false, "item_8" "load_f32v" "acc_8(it, rec, i, acc)" "(cols) / 8"),
    stored!(18 "f16v" "F16" 1 [(0, 2)], false, "item_8" "load_f16v" "acc_8(it, rec, i, acc)" "(cols) / 8"),
    stored!(19 "bf16v" "BF16" 1 [(0, 2)], false, "item_8" "load_bf16v" "acc_8(it, rec, i, acc)" "(cols) / 8"),
    Stored {
        code: 20,
        name: "f32",
        format: "F32",
        block: 1,
        fields: &[(0, 4)],
        row_scale: false,
        code_of: None,
    },
    Stored {
        code: 21,
        name: "f16",
        format: "F16",
        block: 1,
        fields: &[(0, 2)],
        row_scale: false,
        code_of: None,
    },
    Stored {
        code: 22,
        name: "bf16",
        format: "BF16",
        block: 1,
        fields: &[(0, 2)],
        row_scale: false,
        code_of: None,
    },
];

impl Stored {
    /// Whether its weights lie in four planes, for which inputs are put in the order of the planes.
    pub fn has_planes(&self) -> bool {
        matches!(self.code, 1 | 2 | 5)
    }

    /// Whether `cl/words.cl` multiplies it: two bits a weight, and one scale a row.
    pub fn is_words(&self) -> bool {
        matches!(self.code, 1 | 5)
    }

    /// The stored form of a matrix: rows of `cols` weights in `bytes`, without a tail.
    pub fn choose(format: &Format, bytes: &[u8], cols: usize) -> Option<&'static Stored> {
        STORED.iter().filter(|s| s.format == format.name).find(|s| match s.code {
            1 | 3 => one_scale_a_row(bytes, format.row_bytes(cols).unwrap_or(0), format.block_bytes),
            17..=19 => cols.is_multiple_of(8),
            _ => true,
        })
    }

    /// Bytes of a row in each plane.
    pub fn strides(&self, cols: usize) -> Vec<usize> {
        let blocks = cols / self.block;
        let mut strides: Vec<_> =
            self.fields.iter().map(|(_, len)| (blocks * len).next_multiple_of(16)).collect();
        if self.row_scale {
            strides.push(4);
        }
        strides
    }

    /// First byte of each plane, and one more entry: the whole, in whole lines.
    pub fn planes(&self, rows: usize, cols: usize) -> Vec<usize> {
        let mut at = vec![0];
        for stride in self.strides(cols) {
            at.push((at[at.len() - 1] + rows * stride).next_multiple_of(16));
        }
        at
    }

    /// The file's rows to planes. `out` is as long as [`Stored::planes`] says.
    pub fn pack(&self, format: &Format, bytes: &[u8], rows: usize, cols: usize, out: &mut [u8]) {
        let (planes, strides) = (self.planes(rows, cols), self.strides(cols));
        let row_bytes = format.row_bytes(cols).unwrap_or(0);
        for (k, &(at, len)) in self.fields.iter().enumerate() {
            for (row, to) in bytes.chunks_exact(row_bytes).zip(out[planes[k]..].chunks_mut(strides[k])) {
                if len == format.block_bytes {
                    to[..row_bytes].copy_from_slice(row);
                    continue;
                }
                for (block, to) in row.chunks_exact(format.block_bytes).zip(to.chunks_exact_mut(len)) {
                    to.copy_from_slice(&block[at..at + len]);
                }
            }
        }
        if self.row_scale {
            let k = self.fields.len();
            for (row, to) in bytes.chunks_exact(row_bytes).zip(out[planes[k]..].chunks_exact_mut(4)) {
                // I2_S has the tensor's scale alone; the others end each block with it.
                let scale = if self.code == 5 {
                    1.0
                } else {
                    half::f16::from_le_bytes([row[format.block_bytes - 2], row[format.block_bytes - 1]])
                        .to_f32()
                };
                to.copy_from_slice(&scale.to_le_bytes());
            }
        }
    }
}

/// Whether all blocks of every row end with the same two bytes.
fn one_scale_a_row(bytes: &[u8], row: usize, block: usize) -> bool {
    let scale = |block: &[u8]| [block[block.len() - 2], block[block.len() - 1]];
    bytes
        .chunks_exact(row.max(1))
        .all(|row| row.chunks_exact(block).all(|b| scale(b) == scale(&row[..block])))
}

/// The program's number of a grain.
pub(super) fn grain_code(grain: Option<Grain>) -> u32 {
    match grain {
        Some(Grain::B32) => 0,
        Some(Grain::B256) => 1,
        Some(Grain::Column) => 2,
        None => 3,
    }
}
