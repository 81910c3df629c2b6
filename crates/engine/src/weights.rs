//! Weights by id: where a matrix's bytes are and which kernel multiplies them, and the small vectors as f32.
//!
//! A step gets its matrices through a [`Place`]: the mapped file, whose own bytes the kernels read, or the blocks of a
//! unit that was brought into a memory with a budget ([`crate::m3`]). What stays in memory in any case is small: the
//! vectors, and the one scale that I2_S keeps behind its last row.

use crate::file::ModelFile;
use crate::m3::{Image, Part};
use crate::model::op::{MatrixId, VectorId};
use crate::model::{Architecture, Matrix, Vector};
use nexaquant_gguf::{Gguf, TensorInfo, TensorType};
use nexaquant_kernels::{BoundKernel, Format, Isa, Mode, Weights};
use std::ops::Range;

/// Why a tensor cannot be computed with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// Its format has no kernel.
    #[error("tensor {tensor} is {format}, which has no kernel; {advice}")]
    NoKernel {
        /// The tensor.
        tensor: String,
        /// Its format.
        format: &'static str,
        /// What to use instead.
        advice: &'static str,
    },
    /// A small tensor of a type that is not float.
    #[error("tensor {tensor} is {format}; a norm, bias or scale must be F32, F16 or BF16")]
    NotFloat {
        /// The tensor.
        tensor: String,
        /// Its format.
        format: &'static str,
    },
    /// Its rows are not whole blocks, or its bytes another number than its shape says.
    #[error("tensor {tensor}: {source}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        source: nexaquant_kernels::WeightsError,
    },
    /// Its bytes are not in the file (the reader has checked that; a guard).
    #[error(transparent)]
    Gguf(#[from] nexaquant_gguf::Error),
}

/// What to use in place of a format without a kernel.
fn advice(ty: TensorType) -> &'static str {
    match ty.name() {
        "TL1" | "TL2" => {
            "its layout depends on how the converter was built and cannot be read back; convert the model to I2_S"
        }
        "IQ1_BN" | "IQ2_BN" | "IQ2_BN_R4" => "convert the model to I2_S, TQ2_0 or TQ1_0",
        "PQ2_0" => "use the Q2_0 file of the model",
        "PTQ1_0" => "use a TQ1_0 or Q2_0 file of the model",
        "Q2_K" | "Q3_K" => "use a Q4_K_M, Q4_0 or Q5_K_M file of the model",
        _ => "use a Q4_K_M, Q6_K, Q8_0 or F16 file of the model",
    }
}

/// The kernel format of a tensor type.
pub fn format_of(ty: TensorType) -> Option<&'static Format> {
    Format::by_name(ty.name())
}

struct Bound {
    info: TensorInfo,
    format: &'static Format,
    kernel: BoundKernel,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    scale: f32,
}

/// Where the bytes of a unit's matrices are while it runs.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// In the mapped file.
    File(&'a ModelFile),
    /// In the blocks of a leased unit.
    Image(&'a Part, &'a Image),
}

impl Place<'_> {
    /// Whether it has all matrices of the unit.
    pub(crate) fn is_whole_unit(&self) -> bool {
        match self {
            Place::File(_) => true,
            Place::Image(part, _) => part.whole,
        }
    }
}

/// Every weight of a model, bound to its kernels.
pub struct WeightTable {
    matrices: Vec<Bound>,
    vectors: Vec<Vec<f32>>,
}

impl WeightTable {
    /// Binds every matrix to the kernel of its format and reads the small vectors.
    ///
    /// # Errors
    /// Names the tensor, its format and what to use instead.
    pub fn bind(
        arch: &Architecture,
        gguf: &Gguf,
        file: &ModelFile,
        mode: Mode,
        isa: Isa,
    ) -> Result<Self, WeightError> {
        let matrix = |m: &Matrix| -> Result<Bound, WeightError> {
            let info = gguf.tensors[m.tensor].clone();
            let kernel = format_of(info.ty).and_then(|f| Some((f, BoundKernel::new(f, mode, isa)?)));
            let Some((format, kernel)) = kernel else {
                let (tensor, format, advice) = (info.name, info.ty.name(), advice(info.ty));
                return Err(WeightError::NoKernel { tensor, format, advice });
            };
            // Checked once here, so that it cannot fail in a step.
            let scale = Weights::new(format, info.data(file.bytes())?, m.rows, m.cols)
                .map_err(|source| WeightError::Shape { tensor: info.name.clone(), source })?
                .scale();
            let row_bytes = format.row_bytes(m.cols).unwrap_or_default();
            Ok(Bound { info, format, kernel, rows: m.rows, cols: m.cols, row_bytes, scale })
        };
        let vector = |v: &Vector| -> Result<Vec<f32>, WeightError> {
            let info = &gguf.tensors[v.tensor];
            let tensor = || info.name.clone();
            let format = match info.ty.name() {
                "F32" | "F16" | "BF16" => format_of(info.ty),
                _ => None,
            };
            let format =
                format.ok_or_else(|| WeightError::NotFloat { tensor: tensor(), format: info.ty.name() })?;
            let mut values = vec![0.0; v.len];
            Weights::new(format, &file.piece(info)?, 1, v.len)
                .map_err(|source| WeightError::Shape { tensor: tensor(), source })?
                .dequantize_row(0, &mut values);
            Ok(values)
        };
        Ok(Self {
            matrices: arch.matrices.iter().map(matrix).collect::<Result<_, _>>()?,
            vectors: arch.vectors.iter().map(vector).collect::<Result<_, _>>()?,
        })
    }

    /// A small vector.
    pub fn vector(&self, id: VectorId) -> &[f32] {
        &self.vectors[id.0]
    }
    /// The kernel of a matrix.
    pub fn kernel(&self, id: MatrixId) -> BoundKernel {
        self.matrices[id.0].kernel
    }
    /// The bytes of a matrix in its file.
    pub fn bytes(&self, id: MatrixId) -> u64 {
        self.matrices[id.0].info.bytes
    }
    /// Bytes of the small vectors, which are always in memory.
    pub fn vector_bytes(&self) -> u64 {
        self.vectors.iter().map(|v| 4 * v.len() as u64).sum()
    }
    /// Bytes of one row of a matrix.
    pub(crate) fn row_bytes(&self, id: MatrixId) -> usize {
        self.matrices[id.0].row_bytes
    }
    /// Where the first row of a matrix begins in its file.
    pub(crate) fn offset(&self, id: MatrixId) -> u64 {
        self.matrices[id.0].info.offset
    }
    /// What a device needs to hold a matrix: its format, rows, columns, own multiplier, and its rows' bytes in the file.
    pub(crate) fn raw<'f>(
        &self,
        id: MatrixId,
        file: &'f ModelFile,
    ) -> (&'static Format, usize, usize, f32, &'f [u8]) {
        let m = &self.matrices[id.0];
        let bytes = m.info.data(file.bytes()).unwrap_or_default();
        (m.format, m.rows, m.cols, m.scale, &bytes[..bytes.len().min(m.rows * m.row_bytes)])
    }
    /// Some rows of a matrix from their bytes.
    pub(crate) fn of_rows<'b>(&self, id: MatrixId, bytes: &'b [u8]) -> Weights<'b> {
        let m = &self.matrices[id.0];
        match Weights::of_rows(m.format, bytes, bytes.len() / m.row_bytes, m.cols, m.scale) {
            Ok(weights) => weights,
            Err(error) => unreachable!("whole rows of a shape that was checked in `bind`: {error}"),
        }
    }
    /// A matrix over the file's own bytes.
    pub(crate) fn mapped<'f>(&self, id: MatrixId, file: &'f ModelFile) -> Weights<'f> {
        let m = &self.matrices[id.0];
        let weights =
            m.info.data(file.bytes()).ok().map(|bytes| Weights::new(m.format, bytes, m.rows, m.cols));
        match weights {
            Some(Ok(weights)) => weights,
            _ => unreachable!("checked in `bind`; a file's mapping keeps its length"),
        }
    }
    /// Calls `see` for each stretch of `rows` that is contiguous in memory, with the place of its first row in `rows`.
    pub(crate) fn stretches(
        &self,
        id: MatrixId,
        place: Place<'_>,
        rows: Range<usize>,
        mut see: impl FnMut(usize, &Weights<'_>),
    ) {
        match place {
            Place::File(file) => see(0, &self.mapped(id, file).rows_range(rows)),
            Place::Image(part, image) => {
                let row_bytes = self.matrices[id.0].row_bytes;
                for segment in part.segments(id, &rows) {
                    let from = rows.start.max(segment.rows.start);
                    let to = rows.end.min(segment.rows.end);
                    let at = segment.at + (from - segment.rows.start) * row_bytes;
                    let bytes = image.bytes(segment.block, at..at + (to - from) * row_bytes);
                    see(from - rows.start, &self.of_rows(id, bytes));
                }
            }
        }
    }
}
