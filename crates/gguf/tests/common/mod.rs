//! Shared by the tests: a builder for files that may be wrong in any field.
#![allow(dead_code, reason = "every test program uses a part")]

/// Bytes of a GGUF file, field by field, without any check. Also independent of the crate's writer.
#[derive(Clone, Default)]
pub struct Raw(pub Vec<u8>);

impl Raw {
    /// Magic, version 3, counts.
    pub fn new(tensors: u64, keys: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(3).u64(tensors).u64(keys)
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn u32(self, n: u32) -> Self {
        self.bytes(&n.to_le_bytes())
    }

    pub fn u64(self, n: u64) -> Self {
        self.bytes(&n.to_le_bytes())
    }

    pub fn string(self, text: &str) -> Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    /// A key and the number of its type; the value follows.
    pub fn key(self, key: &str, id: u32) -> Self {
        self.string(key).u32(id)
    }

    pub fn tensor(self, name: &str, id: u32, dims: &[u64], offset: u64) -> Self {
        let raw = self.string(name).u32(dims.len() as u32);
        dims.iter().fold(raw, |raw, &dim| raw.u64(dim)).u32(id).u64(offset)
    }

    /// Pads the header to the alignment and adds `n` bytes of tensor data.
    pub fn data(mut self, alignment: usize, n: usize) -> Vec<u8> {
        let start = self.0.len().next_multiple_of(alignment);
        self.0.resize(start, 0);
        self.0.extend((0..n).map(|i| i as u8));
        self.0
    }
}

/// A file with these tensors: name, type number, shape, offset in the data section; then `n` bytes of data.
pub fn tensors(list: &[(&str, u32, &[u64], u64)], n: usize) -> Vec<u8> {
    let raw = Raw::new(list.len() as u64, 0);
    list.iter().fold(raw, |raw, &(name, id, dims, offset)| raw.tensor(name, id, dims, offset)).data(32, n)
}
