//! GGUF files: what is in them and where, and a writer.
//!
//! [`Gguf::parse`] turns the bytes of a whole file (usually a memory map) into its [`Metadata`] and a directory of
//! [`TensorInfo`]s. Every tensor of a parsed file lies inside the file, at the place and with the size its type and
//! shape imply; a file where that does not hold is refused with an [`Error`] that says why.
//! [`write::Writer`] produces files of any size in a stream.
//!
//! This crate does not open or map files, does not decode weights, and does not know which keys or tensors an
//! architecture needs. Tensor types nobody here can compute are still known by name and size.
//!
//! Files are treated as hostile: no input makes the parser panic, and nothing is allocated because a count in the
//! file says so. Strings and arrays take the bytes they have in the file; a tensor or key takes a few hundred bytes
//! when its entry has been read.
//!
//! Start reading at `reader.rs`; the table of tensor types is `tensors.rs`.
#![forbid(unsafe_code)]

mod error;
mod layout;
mod metadata;
mod reader;
mod tensors;
mod value;
pub mod write;

pub use error::Error;
pub use metadata::Metadata;
pub use reader::Gguf;
pub use tensors::{TensorInfo, TensorType};
pub use value::{Array, GString, StringArray, Value};

/// The key that holds the alignment of the tensor data.
pub const ALIGNMENT_KEY: &str = "general.alignment";
/// The alignment of files that do not have [`ALIGNMENT_KEY`].
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// The largest alignment accepted. Real files use 32 or a page; padding to a gigabyte would be an attack.
pub const MAX_ALIGNMENT: u64 = 1 << 24;

/// The alignment a file's metadata asks for.
fn alignment_of(metadata: &Metadata) -> Result<u64, Error> {
    let alignment = metadata.u64(ALIGNMENT_KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT {
        Ok(alignment)
    } else {
        Err(Error::BadAlignment { alignment })
    }
}
