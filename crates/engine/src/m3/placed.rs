//! A model in a memory, a session in that, and one forward pass under leases.

use super::cut::Part;
use super::memory::{Memory, MemoryError};
use super::source::Source;
use super::{Bytes, Pin};
use crate::cpu::Step;
use crate::loader::Model;
use crate::threads::Worker;
use crate::weights::Place;
use nexaquant_residency::{Charge, Class, ModelId};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, PoisonError};

/// What a memory knows of a model.
pub(super) struct Resident {
    pub id: ModelId,
    pub model: Model,
    pub parts: Arc<[Part]>,
    /// The first part of the head.
    head: usize,
    source: Arc<dyn Source>,
    pub sessions: AtomicUsize,
    /// For the small vectors, as long as the memory knows the model.
    vectors: Mutex<Option<Charge>>,
}

impl Resident {
    pub fn new(
        id: ModelId,
        model: Model,
        parts: Arc<[Part]>,
        source: Arc<dyn Source>,
        vectors: Charge,
    ) -> Arc<Self> {
        let head = parts.iter().position(|part| part.name.starts_with("head")).unwrap_or(parts.len());
        let (sessions, vectors) = (AtomicUsize::new(0), Mutex::new(Some(vectors)));
        Arc::new(Self { id, model, parts, head, source, sessions, vectors })
    }

    /// Gives the charge of the vectors back; how much that was.
    pub fn give_up_vectors(&self) -> Bytes {
        let charge = self.vectors.lock().unwrap_or_else(PoisonError::into_inner).take();
        charge.map_or(Bytes::ZERO, |charge| charge.bytes())
    }
}

/// A model that has a place in a memory. Clones are the same place.
#[derive(Clone)]
pub struct Placed {
    memory: Memory,
    pub(super) resident: Arc<Resident>,
}

impl std::fmt::Debug for Placed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Placed({:?})", self.resident.model)
    }
}

impl Placed {
    pub(super) fn new(memory: Memory, resident: Arc<Resident>) -> Self {
        Self { memory, resident }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.resident.model
    }

    /// The memory.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Whether both are the same place.
    pub fn is(&self, other: &Placed) -> bool {
        Arc::ptr_eq(&self.resident, &other.resident)
    }

    /// Name, bytes of weights and bytes of blocks of each part, in the order of a pass.
    pub fn parts(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        let block = self.memory.block() as u64;
        self.resident
            .parts
            .iter()
            .map(move |p| (p.name.as_str(), p.weight_bytes, u64::from(p.blocks) * block))
    }

    /// Brings in what is pinned, in order.
    pub fn load(&self, pin: Pin) -> Result<(), MemoryError> {
        for index in (0..self.resident.parts.len() as u32).filter(|index| pin.covers(*index)) {
            drop(self.memory.acquire(&self.resident, index)?);
        }
        Ok(())
    }

    /// Keeps the model in the memory as long as the result lives.
    pub(crate) fn enter(&self) -> Tenancy {
        self.resident.sessions.fetch_add(1, AcqRel);
        Tenancy(self.clone())
    }
}

/// A session's right to its model's place.
#[derive(Debug)]
pub struct Tenancy(Placed);

impl Drop for Tenancy {
    fn drop(&mut self) {
        self.0.resident.sessions.fetch_sub(1, AcqRel);
    }
}

impl Tenancy {
    /// Pays for something of the session's own.
    pub(crate) fn pay(&self, class: Class, bytes: usize) -> Result<Charge, MemoryError> {
        self.0.memory.pay(class, bytes).map_err(|error| error.of(self.0.resident.model.name()))
    }

    /// What the memory may hold.
    pub(crate) fn budget(&self) -> u64 {
        self.0.memory.budget()
    }

    /// Reads the embedding rows of `tokens`, one behind another: the table itself is never in memory.
    pub(crate) fn gather(&self, tokens: &[u32], rows: &mut Vec<u8>) -> Result<(), MemoryError> {
        let resident = &*self.0.resident;
        let (weights, table) = (resident.model.weights(), resident.model.architecture().embedding);
        let (row, first) = (weights.row_bytes(table), weights.offset(table));
        rows.resize(row * tokens.len(), 0);
        for (to, &token) in rows.chunks_exact_mut(row.max(1)).zip(tokens) {
            let offset = first + u64::from(token) * row as u64;
            resident.source.read(offset, to).map_err(|error| MemoryError::Read {
                model: resident.model.name(),
                part: format!("the embedding of token {token}"),
                bytes: Bytes(row as u64),
                reason: error.to_string(),
            })?;
        }
        Ok(())
    }

    /// One forward pass. The head runs for the tokens `outputs` of the step and not at all if there are none. `run` does
    /// its argument on all workers.
    pub(crate) fn pass(
        &self,
        step: &Step<'_>,
        outputs: &Range<usize>,
        mut run: impl FnMut(&(dyn Fn(&Worker<'_>) + Sync)),
    ) -> Result<(), MemoryError> {
        let Placed { memory, resident } = &self.0;
        let parts = &resident.parts;
        let n = if outputs.is_empty() { resident.head } else { parts.len() };
        let all = 0..step.tokens.len();
        let which = |i: usize| if i < resident.head { &all } else { outputs };

        // All there: one run, as if the file were mapped.
        if let Some(leases) = memory.acquire_all(resident, n)? {
            run(&|worker| {
                for (i, (part, lease)) in parts.iter().zip(&leases).enumerate() {
                    if i > 0 {
                        worker.barrier();
                    }
                    step.run(worker, &part.ops, which(i), Place::Image(part, lease));
                }
            });
            drop(leases);
            if memory.0.options.prefetch && !outputs.is_empty() {
                memory.prefetch_upcoming();
            }
            return Ok(());
        }

        let mut lease = memory.acquire(resident, 0)?;
        for (i, part) in parts[..n].iter().enumerate() {
            if memory.0.options.prefetch {
                match i + 1 {
                    next if next < n => memory.prefetch(resident, next as u32),
                    // More of the prompt comes.
                    _ if outputs.is_empty() => memory.prefetch(resident, 0),
                    _ => memory.prefetch_upcoming(),
                }
            }
            run(&|worker| {
                memory.0.filler.share(worker.id());
                step.run(worker, &part.ops, which(i), Place::Image(part, &lease));
            });
            drop(lease);
            if i + 1 == n {
                break;
            }
            lease = memory.acquire(resident, i as u32 + 1)?;
        }
        Ok(())
    }
}
