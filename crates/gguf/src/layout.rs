//! Where tensors lie: from directory entries to checked places in the file.
//!
//! Sorted by offset, tensors must follow each other with nothing but padding between. That is more than safety needs:
//! it proves that every type number means what the table says, because a wrong size shifts the next tensor.
//!
//! It is also how a number with two meanings is read (39: MXFP4 or TL2; 42: groups of 64 or of 128). A file has one
//! writer, so a number has one meaning per file: the first in the table (upstream's) with which every tensor of that
//! number fills its room exactly. The last tensor of a file only has to fit, as bytes may follow it. Upstream's meaning
//! is always the larger one, so it is not chosen for a last tensor that ends with the file in the other meaning.
//! Tensors so small that padding hides the difference follow the others, or upstream if there are no others.
//! A file that mixes two meanings is refused like any other whose sizes do not add up.

use crate::{Error, TensorInfo, TensorType};
use std::collections::HashMap;
use std::collections::hash_map::Entry::{Occupied, Vacant};

/// A tensor as the directory states it.
pub(crate) struct Entry {
    pub name: String,
    pub id: u32,
    pub dims: Vec<u64>,
    /// Relative to the data section.
    pub offset: u64,
}

/// Decides the types and checks every place. The result is in the order of `entries`.
pub(crate) fn place(
    entries: Vec<Entry>,
    alignment: u64,
    data_offset: u64,
    file_bytes: u64,
) -> Result<Vec<TensorInfo>, Error> {
    let mut by_offset: Vec<usize> = (0..entries.len()).collect();
    by_offset.sort_by_key(|&i| entries[i].offset);
    let plan = Plan {
        entries: &entries,
        by_offset: &by_offset,
        alignment,
        data_bytes: file_bytes.saturating_sub(data_offset),
    };

    let mut meanings = HashMap::new();
    let mut sizes = Vec::with_capacity(entries.len());
    for entry in &entries {
        let ty = match meanings.entry(entry.id) {
            Occupied(meaning) => *meaning.get(),
            Vacant(unknown) => *unknown.insert(plan.meaning(entry)?),
        };
        sizes.push((ty, ty.checked_bytes(&entry.name, &entry.dims)?));
    }

    let mut wanted = 0u64;
    let mut before: Option<usize> = None;
    for &i in &by_offset {
        let entry = &entries[i];
        let bytes = sizes[i].1;
        let name = || entry.name.clone();
        let absolute = |offset: u64| data_offset.saturating_add(offset);
        if !entry.offset.is_multiple_of(alignment) {
            return Err(Error::Misaligned { name: name(), offset: entry.offset, alignment });
        }
        let end = entry.offset.checked_add(bytes).filter(|&end| end <= plan.data_bytes);
        if entry.offset < wanted {
            // `wanted` is above 0 only after a tensor.
            let prior = before.unwrap_or(i);
            return Err(Error::TensorsOverlap {
                name: entries[prior].name.clone(),
                ty: sizes[prior].0.name(),
                offset: absolute(entries[prior].offset),
                bytes: sizes[prior].1,
                next: name(),
                next_offset: absolute(entry.offset),
            });
        }
        let Some(end) = end else {
            return Err(Error::TensorOutOfBounds {
                name: name(),
                offset: absolute(entry.offset),
                bytes,
                file_bytes,
            });
        };
        if entry.offset > wanted {
            let after = before.map_or_else(|| "the header".to_owned(), |prior| entries[prior].name.clone());
            let (offset, wanted) = (absolute(entry.offset), absolute(wanted));
            return Err(Error::TensorGap { name: name(), offset, wanted, after });
        }
        // No overflow: `end` is inside the file and the alignment is limited.
        wanted = end.next_multiple_of(alignment);
        before = Some(i);
    }

    let infos = entries.into_iter().zip(sizes).map(|(entry, (ty, bytes))| TensorInfo {
        name: entry.name,
        ty,
        dims: entry.dims,
        offset: data_offset + entry.offset,
        bytes,
    });
    Ok(infos.collect())
}

struct Plan<'a> {
    entries: &'a [Entry],
    by_offset: &'a [usize],
    alignment: u64,
    data_bytes: u64,
}

impl Plan<'_> {
    /// The type that the number of `entry` stands for in this file.
    fn meaning(&self, entry: &Entry) -> Result<TensorType, Error> {
        let mut types = TensorType::with_id(entry.id);
        let unknown = || Error::UnknownTensorType { name: entry.name.clone(), id: entry.id };
        let first = types.next().ok_or_else(unknown)?;
        let Some(second) = types.next() else { return Ok(first) };
        // The second round is for truncated files: they should be reported as such, with the right sizes.
        let choices = [(first, true), (second, true), (first, false), (second, false)];
        let fits = choices.into_iter().find(|&(ty, check_last)| self.all_fit(ty, check_last));
        Ok(fits.map_or(first, |(ty, _)| ty))
    }

    /// Whether every tensor with the number of `ty` fills its room exactly, and the last of the file fits.
    fn all_fit(&self, ty: TensorType, check_last: bool) -> bool {
        self.by_offset.iter().enumerate().all(|(k, &i)| {
            let entry = &self.entries[i];
            if entry.id != ty.id() {
                return true;
            }
            let Some(bytes) = ty.bytes(&entry.dims) else { return false };
            let Some(end) = entry.offset.checked_add(bytes) else { return false };
            match self.by_offset.get(k + 1) {
                Some(&next) => {
                    end.checked_next_multiple_of(self.alignment) == Some(self.entries[next].offset)
                }
                None => !check_last || end <= self.data_bytes,
            }
        })
    }
}
