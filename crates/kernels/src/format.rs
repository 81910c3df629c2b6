//! What a quantization format is, and the only way to call its kernels.
//!
//! Start at [`FORMATS`](crate::FORMATS): the loader, the tests, the benches and `nexaquant info` iterate it.
//! A kernel is reachable through [`BoundKernel`] alone, which exists only for an instruction set that is
//! present, so calling it is safe, and every variant can be called side by side on one machine.

use crate::acts::{Acts, Grain};
use crate::isa::Isa;
use crate::out::Out;
use std::fmt;
use std::ops::Range;

/// What a kernel is called with: consecutive rows of one matrix times at least one column.
pub(crate) struct Call<'a, 'o> {
    /// The rows' bytes, exactly.
    pub weights: &'a [u8],
    /// Weights in a row.
    pub cols: usize,
    /// The tensor-wide multiplier (1 where the format has none).
    pub scale: f32,
    /// The columns.
    pub acts: Acts<'a>,
    /// One f32 per row and column.
    pub out: Out<'o>,
}

/// Longest row: codes up to 3, times 127, still sum to an i32.
pub const MAX_ROW: usize = 1 << 22;

/// A kernel entry point.
///
/// # Safety
/// The instruction set it is compiled for must be present, and the call's lengths must agree.
pub(crate) type Kernel = unsafe fn(&mut Call<'_, '_>);

/// One quantization format. All of them are listed in [`FORMATS`](crate::FORMATS).
pub struct Format {
    /// The name GGUF gives it, such as `Q4_K`.
    pub name: &'static str,
    /// Weights in a block.
    pub block: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Bytes after the last row of a tensor (I2_S keeps its one scale there).
    pub tail_bytes: usize,
    /// Weights are -1, 0 or +1 times a scale.
    pub ternary: bool,
    /// How activations are grouped for the int8 kernels; `None` where only float kernels exist.
    pub grain: Option<Grain>,
    /// Whole blocks to f32: `blocks`, the tensor scale, `out` of `block` values a block.
    pub(crate) dequantize: fn(&[u8], f32, &mut [f32]),
    /// A whole `[rows, cols]` tensor to its bytes, tail included: reference quality, not speed.
    pub(crate) quantize: fn(&[f32], &mut [u8]),
    /// Kernels that take int8 activations, by `Isa`.
    pub(crate) int8: Option<[Kernel; Isa::ALL.len()]>,
    /// Kernels that take f32 activations, by `Isa`.
    pub(crate) float: [Kernel; Isa::ALL.len()],
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Format {
    /// The format of that GGUF name.
    pub fn by_name(name: &str) -> Option<&'static Format> {
        crate::FORMATS.iter().copied().find(|f| f.name == name)
    }
    /// Bytes of a row of `cols` weights; `None` unless `cols` is a whole number of blocks.
    pub fn row_bytes(&self, cols: usize) -> Option<usize> {
        cols.is_multiple_of(self.block).then(|| cols / self.block * self.block_bytes)
    }
    /// Bytes of a `[rows, cols]` tensor, tail included.
    pub fn tensor_bytes(&self, rows: usize, cols: usize) -> Option<usize> {
        self.row_bytes(cols)?.checked_mul(rows)?.checked_add(self.tail_bytes)
    }
    /// Bits a weight, without the tail.
    pub fn bits_per_weight(&self) -> f64 {
        self.block_bytes as f64 * 8.0 / self.block as f64
    }
    /// `[rows, cols]` f32 to the bytes of a tensor.
    ///
    /// # Panics
    /// When `src` is not whole rows of `cols`, or `dst` is not [`Format::tensor_bytes`] long.
    pub fn quantize(&self, src: &[f32], cols: usize, dst: &mut [u8]) {
        assert!(cols > 0 && src.len().is_multiple_of(cols), "{} values in rows of {cols}", src.len());
        assert_eq!(self.tensor_bytes(src.len() / cols, cols), Some(dst.len()), "{} tensor bytes", self.name);
        (self.quantize)(src, dst);
    }
}

/// A matrix in a file's own layout: `[rows, cols]`, row-major blocks.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    format: &'static Format,
    bytes: &'a [u8],
    rows: usize,
    cols: usize,
    row_bytes: usize,
    scale: f32,
}

/// Bytes that do not fit the shape they are said to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightsError {
    /// `cols` is not a whole number of blocks.
    RaggedRow {
        /// The format's name.
        format: &'static str,
        /// Weights in a row.
        cols: usize,
        /// Weights in a block.
        block: usize,
    },
    /// `cols` is more than [`MAX_ROW`].
    LongRow {
        /// Weights in a row.
        cols: usize,
    },
    /// The byte count is not that of the shape.
    WrongBytes {
        /// The format's name.
        format: &'static str,
        /// Bytes given.
        found: usize,
        /// Bytes of the shape.
        wanted: usize,
    },
}

impl fmt::Display for WeightsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightsError::RaggedRow { format, cols, block } => {
                write!(f, "rows of {cols} weights are not whole {format} blocks of {block}")
            }
            WeightsError::LongRow { cols } => {
                write!(f, "rows of {cols} weights; the kernels take at most {MAX_ROW}")
            }
            WeightsError::WrongBytes { format, found, wanted } => {
                write!(f, "{found} bytes where a {format} tensor of this shape has {wanted}")
            }
        }
    }
}

impl std::error::Error for WeightsError {}

/// Bytes of a row that kernels can take.
fn row_bytes(format: &'static Format, cols: usize) -> Result<usize, WeightsError> {
    if cols > MAX_ROW {
        return Err(WeightsError::LongRow { cols });
    }
    let ragged = WeightsError::RaggedRow { format: format.name, cols, block: format.block };
    format.row_bytes(cols).ok_or(ragged)
}

impl<'a> Weights<'a> {
    /// A whole tensor, tail included.
    pub fn new(
        format: &'static Format,
        bytes: &'a [u8],
        rows: usize,
        cols: usize,
    ) -> Result<Self, WeightsError> {
        let row_bytes = row_bytes(format, cols)?;
        let wanted = format.tensor_bytes(rows, cols).unwrap_or(usize::MAX);
        if bytes.len() != wanted {
            return Err(WeightsError::WrongBytes { format: format.name, found: bytes.len(), wanted });
        }
        let (bytes, tail) = bytes.split_at(rows * row_bytes);
        let scale = match tail.first_chunk::<4>() {
            Some(&b) => f32::from_le_bytes(b),
            None => 1.0,
        };
        Ok(Self { format, bytes, rows, cols, row_bytes, scale })
    }
    /// Some rows of a tensor whose scale (the tail's; 1 without one) is known already: the rows' bytes alone.
    pub fn of_rows(
        format: &'static Format,
        bytes: &'a [u8],
        rows: usize,
        cols: usize,
        scale: f32,
    ) -> Result<Self, WeightsError> {
        let row_bytes = row_bytes(format, cols)?;
        let wanted = row_bytes.saturating_mul(rows);
        if bytes.len() != wanted {
            return Err(WeightsError::WrongBytes { format: format.name, found: bytes.len(), wanted });
        }
        Ok(Self { format, bytes, rows, cols, row_bytes, scale })
    }
    /// The tensor-wide multiplier.
    pub fn scale(&self) -> f32 {
        self.scale
    }
    /// The format.
    pub fn format(&self) -> &'static Format {
        self.format
    }
    /// Rows, the outputs of the product.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Weights in a row, the inputs of the product.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// A range of rows as weights of their own; the tensor's scale goes with them.
    #[must_use]
    pub fn rows_range(&self, rows: Range<usize>) -> Self {
        let bytes = &self.bytes[rows.start * self.row_bytes..rows.end * self.row_bytes];
        Self { bytes, rows: rows.len(), ..*self }
    }
    /// One row as f32.
    ///
    /// # Panics
    /// When `row >= rows` or `out` is not `cols` long.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {}", self.rows);
        (self.format.dequantize)(&self.bytes[row * self.row_bytes..][..self.row_bytes], self.scale, out);
    }
}

/// How activations reach a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// int8 where the format has such kernels, else f32: the fast way.
    Int8,
    /// f32 always; additions and subtractions only where the weights are ternary.
    Float,
}

/// A kernel of one format, for an instruction set that is present.
#[derive(Clone, Copy)]
pub struct BoundKernel {
    format: &'static Format,
    isa: Isa,
    grain: Option<Grain>,
    kernel: Kernel,
}

impl fmt::Debug for BoundKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.grain.is_some() { "int8" } else { "float" };
        write!(f, "{}/{mode}/{}", self.format.name, self.isa)
    }
}

impl BoundKernel {
    /// The kernel of `format` on `isa`; `None` when this machine lacks it.
    pub fn new(format: &'static Format, mode: Mode, isa: Isa) -> Option<Self> {
        if !isa.is_available() {
            return None;
        }
        let (kernels, grain) = match (mode, format.int8) {
            (Mode::Int8, Some(int8)) => (int8, format.grain),
            _ => (format.float, None),
        };
        Some(Self { format, isa, grain, kernel: kernels[isa as usize] })
    }
    /// The format of the rows.
    pub fn format(&self) -> &'static Format {
        self.format
    }
    /// The grouping of int8 activations it wants; `None` when it takes floats.
    pub fn grain(&self) -> Option<Grain> {
        self.grain
    }
    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }
    /// The instruction set that multiplies bytes when a call has so many columns: AMX is for ternary formats and not for few.
    /// (Rows whose blocks have scales of their own are left to AVX-512 too; only a call finds out.)
    pub fn multiplies_with(&self, columns: usize) -> Isa {
        let tiles = self.format.ternary && self.grain.is_some() && columns >= crate::formats::TILES_FROM;
        if tiles { self.isa } else { self.isa.min(Isa::Avx512) }
    }
    /// `out[c][r] = weights[r] · acts[c]`, every element by the same operations whatever the other rows
    /// and columns of the call are.
    ///
    /// # Panics
    /// When formats, shapes or the activations' kind do not agree.
    pub fn run(&self, weights: &Weights<'_>, acts: &Acts<'_>, out: Out<'_>) {
        assert_eq!(weights.format.name, self.format.name, "weights of another format");
        assert_eq!(acts.cols(), weights.cols, "activation length");
        assert!(out.rows() == weights.rows && out.n() == acts.n(), "result window");
        match (acts, self.grain) {
            (Acts::I8(a), Some(grain)) => assert_eq!(a.layout().grain, grain, "activation grain"),
            (Acts::F32(_), None) => {}
            _ => panic!("{self:?} got the other kind of activations"),
        }
        if acts.n() == 0 {
            return;
        }
        let mut call =
            Call { weights: weights.bytes, cols: weights.cols, scale: weights.scale, acts: *acts, out };
        // SAFETY: `new` checked that the instruction set is present; the asserts above and `Weights::new` make the
        // call's lengths agree.
        unsafe { (self.kernel)(&mut call) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_do_not_fit_their_shape_are_refused_with_the_numbers() {
        let format = Format::by_name("I2_S").unwrap();
        let error = |bytes: usize, rows, cols| {
            Weights::new(format, &vec![0; bytes], rows, cols).unwrap_err().to_string()
        };
        assert_eq!(error(64, 1, 130), "rows of 130 weights are not whole I2_S blocks of 128");
        assert_eq!(error(64, 2, 128), "64 bytes where a I2_S tensor of this shape has 96");
        assert_eq!(error(64, 1, 1 << 23), "rows of 8388608 weights; the kernels take at most 4194304");
        assert_eq!(
            error(64, usize::MAX, 256),
            format!("64 bytes where a I2_S tensor of this shape has {}", usize::MAX)
        );
        assert!(Weights::new(format, &[0; 96], 2, 128).is_ok());
        let error = Weights::of_rows(format, &[0; 96], 2, 128, 0.5).unwrap_err().to_string();
        assert_eq!(error, "96 bytes where a I2_S tensor of this shape has 64");
        let part = Weights::of_rows(format, &[0; 64], 2, 128, 0.5).unwrap();
        assert_eq!((part.rows(), part.scale()), (2, 0.5));
    }
}
