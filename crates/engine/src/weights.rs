//! Weights by id: where a matrix's bytes are and which kernel multiplies them, and the small vectors as f32.
//!
//! This is the *mapped* store: kernels read the file's own bytes and nothing is copied. The unit of residency (a
//! layer's tensors together) is [`crate::model::op::Unit`]; a store under a hard budget will hand out the same
//! [`Weights`] from its own memory.

use crate::file::ModelFile;
use crate::model::op::{MatrixId, VectorId};
use crate::model::{Architecture, Matrix, Vector};
use nexaquant_gguf::{Gguf, TensorInfo, TensorType};
use nexaquant_kernels::{BoundKernel, Format, Isa, Mode, Weights};

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
            Weights::new(format, info.data(file.bytes())?, m.rows, m.cols)
                .map_err(|source| WeightError::Shape { tensor: info.name.clone(), source })?;
            Ok(Bound { info, format, kernel, rows: m.rows, cols: m.cols })
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
            Weights::new(format, info.data(file.bytes())?, 1, v.len)
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
    /// A matrix over the file's own bytes.
    pub fn matrix<'f>(&self, id: MatrixId, file: &'f ModelFile) -> Weights<'f> {
        let m = &self.matrices[id.0];
        let weights =
            m.info.data(file.bytes()).ok().map(|bytes| Weights::new(m.format, bytes, m.rows, m.cols));
        match weights {
            Some(Ok(weights)) => weights,
            _ => unreachable!("checked in `bind`; a file's mapping keeps its length"),
        }
    }
}
