//! Writing GGUF files of any size in a stream.
//!
//! Declare first, then write: [`Writer`] collects metadata and tensor shapes, [`Writer::start`] writes the header, and
//! the returned [`TensorWriter`] takes the data of each tensor in the declared order. Nothing is held in memory but
//! the header. What this writes, [`crate::Gguf::parse`] reads back, with one exception: a file whose only tensors of
//! type `Q2_0_G128` (or `TL2`) are too small to be told from `Q2_0` (`MXFP4`) by their size.

use crate::{ALIGNMENT_KEY, Array, Error, GString, MAX_ALIGNMENT, Metadata, TensorType, Value, alignment_of};
use std::collections::HashSet;
use std::io::{self, Write};

/// The header of a file to be written.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The pairs to write, in order. [`ALIGNMENT_KEY`] in it decides the alignment.
    pub metadata: Metadata,
    version: u32,
    tensors: Vec<Declared>,
    names: HashSet<String>,
}

#[derive(Clone, Debug)]
struct Declared {
    name: String,
    ty: TensorType,
    dims: Vec<u64>,
    bytes: u64,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// A version 3 file without metadata and tensors.
    pub fn new() -> Self {
        Self { metadata: Metadata::new(), version: 3, tensors: Vec::new(), names: HashSet::new() }
    }

    /// Sets the version: 2 or 3, otherwise [`Error::UnsupportedVersion`].
    pub fn set_version(&mut self, version: u32) -> Result<(), Error> {
        if !(2..=3).contains(&version) {
            return Err(Error::UnsupportedVersion { version });
        }
        self.version = version;
        Ok(())
    }

    /// Sets the alignment by setting [`ALIGNMENT_KEY`]; it must be a power of two, [`MAX_ALIGNMENT`] at most.
    pub fn set_alignment(&mut self, alignment: u32) -> Result<(), Error> {
        if !alignment.is_power_of_two() || u64::from(alignment) > MAX_ALIGNMENT {
            return Err(Error::BadAlignment { alignment: alignment.into() });
        }
        self.set(ALIGNMENT_KEY, alignment);
        Ok(())
    }

    /// Sets a metadata key; see [`Metadata::insert`].
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<Value>) -> &mut Self {
        self.metadata.insert(key, value);
        self
    }

    /// Declares the next tensor, row length first, and returns its size in bytes.
    pub fn tensor(&mut self, name: impl Into<String>, ty: TensorType, dims: &[u64]) -> Result<u64, Error> {
        let name = name.into();
        let bytes = ty.checked_bytes(&name, dims)?;
        if !self.names.insert(name.clone()) {
            return Err(Error::DuplicateTensor { name });
        }
        self.tensors.push(Declared { name, ty, dims: dims.to_vec(), bytes });
        Ok(bytes)
    }

    /// Writes the header and the padding after it to `out`, which is at position 0 of the file.
    /// Writes are small: use a [`io::BufWriter`] for a file.
    pub fn start<W: Write>(self, out: W) -> Result<TensorWriter<W>, Error> {
        let alignment = alignment_of(&self.metadata)?;
        let mut writer = TensorWriter { out, at: 0, alignment, tensors: self.tensors, next: 0 };
        writer.put(b"GGUF")?;
        writer.put(&self.version.to_le_bytes())?;
        writer.put(&(writer.tensors.len() as u64).to_le_bytes())?;
        writer.put(&(self.metadata.len() as u64).to_le_bytes())?;
        for (key, value) in self.metadata.iter() {
            writer.put_string(key.as_bytes())?;
            writer.put(&value.type_id().to_le_bytes())?;
            writer.put_value(value)?;
        }
        let mut offset = 0u64;
        for i in 0..writer.tensors.len() {
            let Declared { name, ty, dims, bytes } = writer.tensors[i].clone();
            writer.put_string(name.as_bytes())?;
            writer.put(&(dims.len() as u32).to_le_bytes())?;
            for dim in &dims {
                writer.put(&dim.to_le_bytes())?;
            }
            writer.put(&ty.id().to_le_bytes())?;
            writer.put(&offset.to_le_bytes())?;
            let end = offset.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(alignment));
            offset = end.ok_or(Error::TensorTooLarge { name, dims })?;
        }
        writer.pad()?;
        Ok(writer)
    }
}

/// A file whose header is written and whose tensor data is being written.
#[derive(Debug)]
pub struct TensorWriter<W> {
    out: W,
    at: u64,
    alignment: u64,
    tensors: Vec<Declared>,
    next: usize,
}

impl<W: Write> TensorWriter<W> {
    /// Name and size in bytes of the tensor whose data comes next; `None` after the last.
    pub fn next(&self) -> Option<(&str, u64)> {
        self.tensors.get(self.next).map(|tensor| (tensor.name.as_str(), tensor.bytes))
    }

    /// Writes the data of the next tensor, which must be `name`.
    pub fn write(&mut self, name: &str, data: &[u8]) -> Result<(), Error> {
        let declared = self.expect(name)?;
        if data.len() as u64 != declared {
            return Err(Error::WrongSize { name: name.to_owned(), declared, given: data.len() as u64 });
        }
        self.put(data)?;
        self.next += 1;
        self.pad()
    }

    /// Writes the data of the next tensor, which must be `name`, in pieces: `fill` gets a sink that takes exactly the
    /// declared number of bytes. After an error the file is of no use.
    pub fn write_with(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Error> {
        let declared = self.expect(name)?;
        let mut sink = Sink { out: &mut self.out, left: declared, refused: 0 };
        let filled = fill(&mut sink);
        let given = declared - sink.left + sink.refused;
        // A sink that refused bytes has made `fill` fail; the size is the cause to report.
        if given > declared {
            return Err(Error::WrongSize { name: name.to_owned(), declared, given });
        }
        filled?;
        if given != declared {
            return Err(Error::WrongSize { name: name.to_owned(), declared, given });
        }
        self.at += declared;
        self.next += 1;
        self.pad()
    }

    /// Flushes and gives the output back. [`Error::Unfinished`] if tensors are missing.
    pub fn finish(mut self) -> Result<W, Error> {
        if let Some((name, _)) = self.next() {
            return Err(Error::Unfinished { missing: self.tensors.len() - self.next, name: name.to_owned() });
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn expect(&self, given: &str) -> Result<u64, Error> {
        match self.next() {
            Some((name, bytes)) if name == given => Ok(bytes),
            next => Err(Error::OutOfOrder {
                given: given.to_owned(),
                next: next.map_or("nothing", |(name, _)| name).to_owned(),
            }),
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn put_string(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.put(&(bytes.len() as u64).to_le_bytes())?;
        self.put(bytes)
    }

    /// Zeros up to the alignment, also after the last tensor, as other writers do.
    fn pad(&mut self) -> Result<(), Error> {
        let mut left = self.at.next_multiple_of(self.alignment) - self.at;
        while left > 0 {
            let n = left.min(64);
            self.put(&[0; 64][..n as usize])?;
            left -= n;
        }
        Ok(())
    }

    fn put_value(&mut self, value: &Value) -> Result<(), Error> {
        match value {
            Value::U8(n) => self.put(&n.to_le_bytes()),
            Value::I8(n) => self.put(&n.to_le_bytes()),
            Value::U16(n) => self.put(&n.to_le_bytes()),
            Value::I16(n) => self.put(&n.to_le_bytes()),
            Value::U32(n) => self.put(&n.to_le_bytes()),
            Value::I32(n) => self.put(&n.to_le_bytes()),
            Value::F32(x) => self.put(&x.to_le_bytes()),
            Value::Bool(b) => self.put(&[u8::from(*b)]),
            Value::String(GString(bytes)) => self.put_string(bytes),
            Value::Array(array) => self.put_array(array),
            Value::U64(n) => self.put(&n.to_le_bytes()),
            Value::I64(n) => self.put(&n.to_le_bytes()),
            Value::F64(x) => self.put(&x.to_le_bytes()),
        }
    }

    fn put_array(&mut self, array: &Array) -> Result<(), Error> {
        self.put(&array.type_id().to_le_bytes())?;
        self.put(&(array.len() as u64).to_le_bytes())?;
        if let Array::String(strings) = array {
            return strings.iter().try_for_each(|string| self.put_string(string));
        }
        array.iter().try_for_each(|value| self.put_value(&value))
    }
}

/// Passes on at most `left` bytes and counts what it had to refuse.
struct Sink<'a, W> {
    out: &'a mut W,
    left: u64,
    refused: u64,
}

impl<W: Write> Write for Sink<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            self.refused = bytes.len() as u64;
            return Err(io::Error::other("more data than the tensor was declared with"));
        }
        let written = self.out.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
