//! From bytes to a checked directory: header, metadata, tensor entries.
//!
//! Every read goes through [`Cursor`], which knows where it is and what it is reading, so that the error can say so.
//! Where tensors may lie is `layout.rs`.

use crate::error::quoted;
use crate::tensors::MAX_DIMS;
use crate::value::TYPE_NAMES;
use crate::{Array, Error, GString, Metadata, StringArray, TensorInfo, Value, alignment_of, layout};
use std::collections::HashMap;
use std::fmt;

/// A parsed file: everything but the weights, and where those are.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// 2 or 3; the layout is the same.
    pub version: u32,
    /// Tensors start at multiples of this, relative to `data_offset`. A power of two.
    pub alignment: u64,
    /// The key-value pairs.
    pub metadata: Metadata,
    /// The tensors, in the order of the file's directory.
    pub tensors: Vec<TensorInfo>,
    /// Where the data section starts, in bytes from the start of the file. Past its end if a file without tensors
    /// ends before the padding.
    pub data_offset: u64,
    index: HashMap<String, usize>,
}

/// What the smallest metadata pair takes: key length, type, a one-byte value.
const MIN_PAIR_BYTES: u64 = 8 + 4 + 1;
/// What the smallest tensor entry takes: name length, one dimension with its count, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

impl Gguf {
    /// Reads the directory of a file. `file` is the whole file; weights are not touched.
    ///
    /// Memory taken is proportional to the header that is really there, whatever its counts say.
    /// All tensors of the result lie inside `file`, do not overlap, and follow each other without gaps other than
    /// padding to the alignment. Bytes after the last tensor are ignored.
    pub fn parse(file: &[u8]) -> Result<Gguf, Error> {
        let mut cursor = Cursor { file, at: 0, place: Place::Header };
        let version = cursor.version()?;
        let n_tensors = cursor.u64()?;
        let n_pairs = cursor.u64()?;
        cursor.check_count("tensors", n_tensors, MIN_TENSOR_BYTES)?;
        cursor.check_count("metadata keys", n_pairs, MIN_PAIR_BYTES)?;

        let metadata = cursor.metadata(n_pairs)?;
        let alignment = alignment_of(&metadata)?;

        let mut entries = Vec::new();
        let mut index = HashMap::new();
        for i in 0..n_tensors {
            let entry = cursor.tensor(i)?;
            if index.insert(entry.name.clone(), entries.len()).is_some() {
                return Err(Error::DuplicateTensor { name: entry.name });
            }
            entries.push(entry);
        }
        let data_offset = (cursor.at as u64).next_multiple_of(alignment);
        let tensors = layout::place(entries, alignment, data_offset, file.len() as u64)?;
        Ok(Gguf { version, alignment, metadata, tensors, data_offset, index })
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).and_then(|&at| self.tensors.get(at))
    }
}

/// What is being read.
#[derive(Clone, Copy)]
enum Place<'a> {
    Header,
    Key(u64),
    Value(&'a str),
    TensorName(u64),
    Tensor(&'a str),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Key(i) => write!(f, "metadata key number {i}"),
            Self::Value(key) => write!(f, "the value of {}", quoted(key)),
            Self::TensorName(i) => write!(f, "the name of tensor number {i}"),
            Self::Tensor(name) => write!(f, "the entry of tensor {}", quoted(name)),
        }
    }
}

/// A position in the file; `at` never passes the end.
struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
    place: Place<'a>,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.file.len() - self.at) as u64
    }

    /// The next `n` bytes, if there are so many.
    fn take(&mut self, n: u64) -> Option<&'a [u8]> {
        let bytes = self.file[self.at..].get(..usize::try_from(n).ok()?)?;
        self.at += bytes.len();
        Some(bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let bytes = self.file[self.at..].first_chunk::<N>().ok_or_else(|| Error::Truncated {
            place: self.place.to_string(),
            offset: self.at as u64,
            wanted: N as u64,
            file_bytes: self.file.len() as u64,
        })?;
        self.at += N;
        Ok(*bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.fixed()?))
    }

    fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.fixed()?))
    }

    fn string(&mut self) -> Result<&'a [u8], Error> {
        let length = self.u64()?;
        let (offset, left) = (self.at as u64, self.left());
        self.take(length).ok_or_else(|| Error::StringTooLong {
            place: self.place.to_string(),
            length,
            offset,
            left,
        })
    }

    fn name(&mut self) -> Result<&'a str, Error> {
        let bytes = self.string()?;
        str::from_utf8(bytes).map_err(|_| Error::NotUtf8 {
            place: self.place.to_string(),
            start: bytes[..bytes.len().min(32)].to_vec(),
        })
    }

    /// Magic and version.
    fn version(&mut self) -> Result<u32, Error> {
        if self.file.is_empty() {
            return Err(Error::Empty);
        }
        let start = &self.file[..self.file.len().min(4)];
        if start == b"FUGG" {
            return Err(Error::BigEndian);
        }
        if !b"GGUF".starts_with(start) {
            return Err(Error::BadMagic { start: self.file[..self.file.len().min(16)].to_vec() });
        }
        self.fixed::<4>()?;
        match self.u32()? {
            version @ 2..=3 => Ok(version),
            // A small number in the high bytes is a version in the other byte order.
            swapped if swapped != 0 && swapped.trailing_zeros() >= 16 => Err(Error::BigEndian),
            version => Err(Error::UnsupportedVersion { version }),
        }
    }

    /// Refuses counts the rest of the file cannot hold, before anything is done that takes time or memory.
    fn check_count(&self, what: &'static str, count: u64, min_bytes: u64) -> Result<(), Error> {
        let left = self.left();
        let room = left / min_bytes;
        if count > room { Err(Error::CountTooLarge { what, count, room, left }) } else { Ok(()) }
    }

    fn metadata(&mut self, n_pairs: u64) -> Result<Metadata, Error> {
        let mut metadata = Metadata::new();
        for i in 0..n_pairs {
            self.place = Place::Key(i);
            let key = self.name()?;
            self.place = Place::Value(key);
            let id = self.u32()?;
            let value = self.value(id)?;
            if metadata.insert(key, value).is_some() {
                return Err(Error::DuplicateKey { key: key.to_owned() });
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, id: u32) -> Result<Value, Error> {
        Ok(match id {
            0 => Value::U8(u8::from_le_bytes(self.fixed()?)),
            1 => Value::I8(i8::from_le_bytes(self.fixed()?)),
            2 => Value::U16(u16::from_le_bytes(self.fixed()?)),
            3 => Value::I16(i16::from_le_bytes(self.fixed()?)),
            4 => Value::U32(u32::from_le_bytes(self.fixed()?)),
            5 => Value::I32(i32::from_le_bytes(self.fixed()?)),
            6 => Value::F32(f32::from_le_bytes(self.fixed()?)),
            7 => Value::Bool(self.fixed::<1>()? != [0]),
            8 => Value::String(GString(self.string()?.to_vec())),
            9 => Value::Array(self.array()?),
            10 => Value::U64(u64::from_le_bytes(self.fixed()?)),
            11 => Value::I64(i64::from_le_bytes(self.fixed()?)),
            12 => Value::F64(f64::from_le_bytes(self.fixed()?)),
            _ => return Err(Error::UnknownValueType { place: self.place.to_string(), id }),
        })
    }

    fn array(&mut self) -> Result<Array, Error> {
        let id = self.u32()?;
        let count = self.u64()?;
        Ok(match id {
            0 => Array::U8(self.numbers(id, count, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(id, count, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(id, count, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(id, count, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(id, count, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(id, count, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(id, count, f32::from_le_bytes)?),
            7 => Array::Bool(self.numbers(id, count, |byte| byte != [0])?),
            8 => Array::String(self.strings(count)?),
            9 => return Err(Error::NestedArray { place: self.place.to_string() }),
            10 => Array::U64(self.numbers(id, count, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(id, count, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(id, count, f64::from_le_bytes)?),
            _ => return Err(Error::UnknownValueType { place: format!("an element of {}", self.place), id }),
        })
    }

    fn array_too_long(&self, id: u32, count: u64) -> Error {
        Error::ArrayTooLong {
            place: self.place.to_string(),
            elements: TYPE_NAMES[id as usize],
            count,
            offset: self.at as u64,
            left: self.left(),
        }
    }

    /// `count` numbers of `N` bytes. The bytes are taken before anything is allocated.
    fn numbers<const N: usize, T>(
        &mut self,
        id: u32,
        count: u64,
        read: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Error> {
        let bytes = count.checked_mul(N as u64).and_then(|bytes| self.take(bytes));
        let bytes = bytes.ok_or_else(|| self.array_too_long(id, count))?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect())
    }

    /// Strings are walked twice, first to count their bytes: the copy is then exactly as large as the original.
    fn strings(&mut self, count: u64) -> Result<StringArray, Error> {
        if count > self.left() / 8 {
            return Err(self.array_too_long(8, count));
        }
        let start = self.at;
        let mut total = 0;
        for _ in 0..count {
            total += self.string()?.len();
        }
        self.at = start;
        let mut strings = StringArray::with_capacity(count as usize, total);
        for _ in 0..count {
            strings.push(self.string()?);
        }
        Ok(strings)
    }

    fn tensor(&mut self, i: u64) -> Result<layout::Entry, Error> {
        self.place = Place::TensorName(i);
        let name = self.name()?;
        self.place = Place::Tensor(name);
        let n_dims = self.u32()?;
        // None at all is refused with the other impossible shapes.
        if n_dims as usize > MAX_DIMS {
            return Err(Error::BadDimensionCount { name: name.to_owned(), found: n_dims.into() });
        }
        let dims = (0..n_dims).map(|_| self.u64()).collect::<Result<_, _>>()?;
        let id = self.u32()?;
        let offset = self.u64()?;
        Ok(layout::Entry { name: name.to_owned(), id, dims, offset })
    }
}
