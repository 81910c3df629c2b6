//! The store of a memory with a budget: parts of models in blocks of one allocation.
//!
//! Invariants:
//! 1. A block belongs to one part, or is free, or was never used (or given back to the system).
//! 2. Blocks of a part that is loading are touched by the filler alone; of a loaded one nobody writes.
//! 3. Blocks that hold memory are never more than [`Arena::trim`] allowed last, plus what loads have reserved since.

#![allow(unsafe_code)]

use super::blocks::{Blocks, Image};
use super::cut::Part;
use super::fill::Filler;
use super::source::Source;
use nexaquant_residency::{Bytes, Finished, ModelId, Reason, Started, Store, UnitId};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// What the arena knows of a model.
struct Known {
    parts: Arc<[Part]>,
    source: Arc<dyn Source>,
}

/// What the arena holds of a part.
#[derive(Debug)]
struct Held {
    blocks: Vec<u32>,
    /// Of those, the ones that were there before the load under way.
    before: usize,
}

/// Blocks, who holds them, and the way bytes get there.
pub(crate) struct Arena {
    memory: Arc<Blocks>,
    filler: Filler<UnitId>,
    models: HashMap<ModelId, Known>,
    held: HashMap<UnitId, Held>,
    /// Free blocks that hold memory; the one that was freed last is used first, being the one most likely in a cache.
    warm: Vec<u32>,
    /// Blocks that were given back to the system.
    cold: Vec<u32>,
    /// The first block that was never used.
    fresh: u32,
}

impl Arena {
    pub fn new(memory: Arc<Blocks>, filler: Filler<UnitId>) -> Self {
        Self {
            memory,
            filler,
            models: HashMap::new(),
            held: HashMap::new(),
            warm: Vec::new(),
            cold: Vec::new(),
            fresh: 0,
        }
    }

    /// Bytes of a block.
    pub fn block(&self) -> usize {
        self.memory.block()
    }

    /// Makes a model's parts known, before its first load.
    pub fn insert(&mut self, model: ModelId, parts: Arc<[Part]>, source: Arc<dyn Source>) {
        self.models.insert(model, Known { parts, source });
    }

    /// Forgets a model, after its last eviction.
    pub fn remove(&mut self, model: ModelId) {
        self.models.remove(&model);
    }

    /// Gives free blocks back to the system until at most `blocks` hold memory, as far as free ones do.
    pub fn trim(&mut self, blocks: u64) {
        while u64::from(self.fresh) - self.cold.len() as u64 > blocks {
            let Some(block) = self.warm.pop() else { return };
            // SAFETY: a free block, which nobody touches (invariant 2).
            unsafe { self.memory.release(block) };
            self.cold.push(block);
        }
    }

    fn take(&mut self, n: usize) -> Option<Vec<u32>> {
        let never_used = self.memory.count() - self.fresh as usize;
        if self.warm.len() + self.cold.len() + never_used < n {
            return None;
        }
        let mut blocks = Vec::with_capacity(n);
        while blocks.len() < n {
            let block = self.warm.pop().or_else(|| self.cold.pop()).unwrap_or_else(|| {
                self.fresh += 1;
                self.fresh - 1
            });
            blocks.push(block);
        }
        Some(blocks)
    }

    /// Checks the invariants, with room for `blocks` blocks.
    #[cfg(test)]
    pub fn audit(&self, blocks: u64) {
        let held = self.held.values().flat_map(|held| &held.blocks);
        let mut all: Vec<u32> = held.chain(&self.warm).chain(&self.cold).copied().collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..self.fresh), "arena invariant 1");
        let memory = u64::from(self.fresh) - self.cold.len() as u64;
        assert!(memory <= blocks, "arena invariant 3: {memory} blocks hold memory, {blocks} may");
    }

    /// What the pool should know of a load that has ended.
    fn finished(&mut self, unit: UnitId, (result, took): (std::io::Result<()>, Duration)) -> Finished<Image> {
        let Some(held) = self.held.get_mut(&unit) else {
            return Finished { unit, result: Err("no load of it was started".into()), took };
        };
        let result = match result {
            Ok(()) => {
                let blocks = held.blocks.as_slice().into();
                // SAFETY: the load has ended, so nobody writes these blocks until the part is evicted.
                Ok(unsafe { Image::new(Arc::clone(&self.memory), blocks) })
            }
            Err(error) => {
                self.warm.extend(held.blocks.drain(held.before..));
                if held.blocks.is_empty() {
                    self.held.remove(&unit);
                }
                Err(Box::new(error).into())
            }
        };
        Finished { unit, result, took }
    }
}

impl Store for Arena {
    type Handle = Image;

    fn load(&mut self, unit: UnitId, missing: Range<u64>) -> Result<Started<Image>, Reason> {
        let known = self.models.get(&unit.model).ok_or("the model is not known to the store")?;
        let part = known.parts.get(unit.index as usize).ok_or("the model has no such part")?;
        let before = (missing.start / self.memory.block() as u64) as u32;
        let (parts, source) = (Arc::clone(&known.parts), Arc::clone(&known.source));
        let n = part.blocks - before;
        let Some(blocks) = self.take(n as usize) else { return Ok(Started::NoPlace) };
        let held = self.held.entry(unit).or_insert_with(|| Held { blocks: Vec::new(), before: 0 });
        held.before = held.blocks.len();
        held.blocks.extend(blocks);
        let pieces = &parts[unit.index as usize].pieces;
        let from = pieces.partition_point(|piece| piece.block < before);
        self.filler.start(unit, &source, &pieces[from..], &held.blocks);
        Ok(Started::Pending)
    }

    fn poll(&mut self) -> Option<Finished<Image>> {
        let ticket = self.filler.poll()?;
        Some(self.finished(ticket.tag, ticket.outcome()))
    }

    fn wait(&mut self) -> Option<Finished<Image>> {
        let ticket = self.filler.wait()?;
        Some(self.finished(ticket.tag, ticket.outcome()))
    }

    fn evict(&mut self, unit: UnitId, keep: Bytes) {
        let Some(held) = self.held.get_mut(&unit) else { return };
        let keep = (keep.0 / self.memory.block() as u64) as usize;
        // From the end, so that the next load takes the same blocks in the same order.
        self.warm.extend(held.blocks.drain(keep.min(held.blocks.len())..).rev());
        if held.blocks.is_empty() {
            self.held.remove(&unit);
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // Readers hold the memory; what they are at ends first.
        self.filler.close();
    }
}
