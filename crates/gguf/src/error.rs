//! What can be wrong with a GGUF file, with the facts in fields and a one-line text.
//!
//! Names and keys come from the file, so the texts escape and shorten them.

use std::fmt::{self, Display};

/// Everything that parsing, looking up or writing can report. Offsets are absolute positions in the file, in bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file has no bytes.
    #[error("this is not a GGUF file: it is empty")]
    Empty,
    /// The first four bytes are not `GGUF`.
    #[error("this is not a GGUF file: starts with \"{}\" instead of \"GGUF\"", .start.escape_ascii())]
    BadMagic {
        /// Up to 16 bytes from the start of the file.
        start: Vec<u8>,
    },
    /// The file was written for a big-endian machine.
    #[error("this GGUF file is big-endian; only little-endian files can be read, convert it again on a PC")]
    BigEndian,
    /// Version 1, or one newer than this reader.
    #[error("this is a GGUF version {version} file; versions 2 and 3 can be read, convert the model again")]
    UnsupportedVersion {
        /// The version found.
        version: u32,
    },
    /// The file ends inside the header.
    #[error(
        "the file ends inside {place}: {wanted} bytes wanted at {offset}, the file has {file_bytes}; \
         is the download complete?"
    )]
    Truncated {
        /// What was being read.
        place: String,
        /// Where.
        offset: u64,
        /// How many bytes it needs.
        wanted: u64,
        /// Size of the file.
        file_bytes: u64,
    },
    /// A tensor or key count that the file is too small for.
    #[error(
        "the header counts {count} {what}, but the {left} bytes that follow have room for {room} at most"
    )]
    CountTooLarge {
        /// `"tensors"` or `"metadata keys"`.
        what: &'static str,
        /// The count found.
        count: u64,
        /// How many of the smallest ones would fit.
        room: u64,
        /// Bytes from the count to the end of the file.
        left: u64,
    },
    /// A string that would end after the file.
    #[error(
        "{place} is a string of {length} bytes at {offset}, but the file has only {left} bytes left there"
    )]
    StringTooLong {
        /// What was being read.
        place: String,
        /// The length found.
        length: u64,
        /// Where the string starts.
        offset: u64,
        /// Bytes from there to the end of the file.
        left: u64,
    },
    /// An array that would end after the file.
    #[error(
        "{place} is an array of {count} {elements} at {offset}, but the file has only {left} bytes left there"
    )]
    ArrayTooLong {
        /// What was being read.
        place: String,
        /// Name of the element type.
        elements: &'static str,
        /// The element count found.
        count: u64,
        /// Where the elements start.
        offset: u64,
        /// Bytes from there to the end of the file.
        left: u64,
    },
    /// A key or a tensor name that is not UTF-8.
    #[error("{place} is not UTF-8: \"{}\"", .start.escape_ascii())]
    NotUtf8 {
        /// What was being read.
        place: String,
        /// Up to 32 bytes of it.
        start: Vec<u8>,
    },
    /// A metadata type number that does not exist.
    #[error("{place} has type {id}; metadata types are 0 to 12")]
    UnknownValueType {
        /// What was being read.
        place: String,
        /// The number found.
        id: u32,
    },
    /// An array whose elements are arrays.
    #[error("{place} is an array of arrays, which is not supported")]
    NestedArray {
        /// What was being read.
        place: String,
    },
    /// The same key twice.
    #[error("metadata key {} appears twice", quoted(.key))]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// An alignment that is not a power of two, or above [`crate::MAX_ALIGNMENT`].
    #[error("general.alignment is {alignment}; it must be a power of two, {} at most", crate::MAX_ALIGNMENT)]
    BadAlignment {
        /// The alignment found.
        alignment: u64,
    },

    /// The same tensor name twice.
    #[error("tensor {} appears twice", quoted(.name))]
    DuplicateTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor with no dimensions, or with more than four.
    #[error("tensor {} has {found} dimensions; 1 to 4 are possible", quoted(.name))]
    BadDimensionCount {
        /// The tensor.
        name: String,
        /// How many it has.
        found: u64,
    },
    /// A tensor with a dimension of length 0.
    #[error("tensor {} has shape {dims:?}; no dimension may be 0", quoted(.name))]
    ZeroDimension {
        /// The tensor.
        name: String,
        /// Its shape, row length first.
        dims: Vec<u64>,
    },
    /// A shape whose element or byte count does not fit 63 bits.
    #[error("tensor {} has shape {dims:?}, more elements than any file can hold", quoted(.name))]
    TensorTooLarge {
        /// The tensor.
        name: String,
        /// Its shape, row length first.
        dims: Vec<u64>,
    },
    /// A tensor type number that is not in the table.
    #[error(
        "tensor {} has type {id}, which is not known here; \
         the file may come from a newer program, convert it to a common type such as Q8_0",
        quoted(.name)
    )]
    UnknownTensorType {
        /// The tensor.
        name: String,
        /// The type number found.
        id: u32,
    },
    /// A row (for whole-tensor types: a tensor) that is not a whole number of blocks.
    #[error("tensor {} of type {ty} has shape {dims:?}; its {what} must be a multiple of {block}", quoted(.name))]
    PartialBlock {
        /// The tensor.
        name: String,
        /// Name of its type.
        ty: &'static str,
        /// Its shape, row length first.
        dims: Vec<u64>,
        /// `"row length"` or `"element count"`.
        what: &'static str,
        /// Weights in one block.
        block: u64,
    },
    /// A tensor that does not start on the alignment.
    #[error("tensor {} starts at {offset} of the data section, not a multiple of the alignment {alignment}", quoted(.name))]
    Misaligned {
        /// The tensor.
        name: String,
        /// Offset relative to the data section, as the file states it.
        offset: u64,
        /// The alignment of the file.
        alignment: u64,
    },
    /// A tensor that ends after the file.
    #[error(
        "tensor {} has {bytes} bytes at {offset}, but the file has {file_bytes}; is the download complete?",
        quoted(.name)
    )]
    TensorOutOfBounds {
        /// The tensor.
        name: String,
        /// Where its data starts.
        offset: u64,
        /// Its size.
        bytes: u64,
        /// Size of the file.
        file_bytes: u64,
    },
    /// A tensor that reaches into the next one.
    #[error(
        "tensor {} of type {ty} has {bytes} bytes at {offset} and overlaps tensor {}, which starts at {next_offset}; \
         the file is damaged or uses another layout for this type",
        quoted(.name), quoted(.next)
    )]
    TensorsOverlap {
        /// The tensor.
        name: String,
        /// Name of its type.
        ty: &'static str,
        /// Where its data starts.
        offset: u64,
        /// Its size by type and shape.
        bytes: u64,
        /// The tensor it reaches into.
        next: String,
        /// Where that one starts.
        next_offset: u64,
    },
    /// A tensor that does not start where the one before it (or the header) ends.
    #[error(
        "tensor {} should start at {wanted}, right after {}, but starts at {offset}; \
         the file is damaged or uses another layout for a type",
        quoted(.name), quoted(.after)
    )]
    TensorGap {
        /// The tensor.
        name: String,
        /// Where its data starts.
        offset: u64,
        /// Where it should start.
        wanted: u64,
        /// The tensor before it, or `"the header"`.
        after: String,
    },

    /// A key that the caller needs and the file does not have.
    #[error("the file has no metadata key {}", quoted(.key))]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A value of another type, or out of the range of the wanted one.
    #[error("metadata key {} is {found}; wanted {wanted}", quoted(.key))]
    WrongType {
        /// The key.
        key: String,
        /// What it is, in words.
        found: String,
        /// What was asked for, in words.
        wanted: &'static str,
    },

    /// Tensor data was given to the writer in another order than declared.
    #[error("data for tensor {} was given, but {} is next in the declared order", quoted(.given), quoted(.next))]
    OutOfOrder {
        /// The name given.
        given: String,
        /// The name declared at this position, or `"nothing"` after the last.
        next: String,
    },
    /// Tensor data of another size than declared was given to the writer.
    #[error("tensor {} was declared with {declared} bytes, but {given} were written", quoted(.name))]
    WrongSize {
        /// The tensor.
        name: String,
        /// Its size by type and shape.
        declared: u64,
        /// Bytes given (at least; writing stops at the first byte too many).
        given: u64,
    },
    /// The writer was finished before all tensors were written.
    #[error("{missing} declared tensors were not written; the first is {}", quoted(.name))]
    Unfinished {
        /// How many.
        missing: usize,
        /// The first of them.
        name: String,
    },
    /// Writing to the output failed.
    #[error("writing failed: {0}")]
    Io(#[from] std::io::Error),
}

/// A name from a file, in quotes, on one line, at most 100 characters of it.
pub(crate) fn quoted(name: &str) -> impl Display + '_ {
    struct Quoted<'a>(&'a str);
    impl Display for Quoted<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            const SHOWN: usize = 100;
            let end = self.0.char_indices().nth(SHOWN).map_or(self.0.len(), |(at, _)| at);
            let dots = if end < self.0.len() { "…" } else { "" };
            write!(f, "\"{}{dots}\"", self.0[..end].escape_debug())
        }
    }
    Quoted(name)
}
