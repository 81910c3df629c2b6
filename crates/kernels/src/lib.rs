//! Quantization formats and the CPU maths of language models: slices in, slices out.
//!
//! This crate opens no file, starts no thread and allocates nothing. Start at [`FORMATS`] for the weight
//! formats, [`BoundKernel`] for a matrix product and [`Ops`] for everything between two products.
//!
//! `unsafe` is confined to the vector code (`simd`, `formats`, `ops`, `limits`) and the two views that carve one
//! buffer among workers (`acts`, `out`).

pub mod acts;
mod format;
mod formats;
mod isa;
mod limits;
mod ops;
mod out;
mod simd;

pub use acts::{Acts, F32Cols, Grain, I8Cols, Layout, Line};
pub use format::{BoundKernel, Format, MAX_ROW, Mode, Weights, WeightsError};
pub use formats::FORMATS;
pub use isa::{ISA_ENV, Isa, IsaError};
pub use limits::Scan;
pub use ops::{Activation, Attention, KEYS, KvPages, KvType, Ops, Pairing};
pub use out::Out;
