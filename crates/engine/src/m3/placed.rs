//! A model in a memory, a session in that, and one forward pass under leases.

use super::cut::Part;
use super::device::{AnyStore, DeviceArena, Handle, Region};
use super::error::MemoryError;
use super::memory::{Memory, Site};
use super::source::Source;
use super::{Bytes, Pin};
use crate::cpu::Step;
use crate::loader::Model;
use crate::opencl::{DeviceError, DeviceModel};
use crate::threads::Worker;
use crate::weights::Place;
use nexaquant_opencl::Done;
use nexaquant_residency::{Charge, Class, Lease, ModelId};
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
    fixed: Mutex<Option<Fixed>>,
    /// Its form on a device, where the memory is there.
    device: Option<Arc<DeviceModel>>,
}

/// What the small vectors cost.
pub(super) enum Fixed {
    Charge(Charge),
    Region(Region),
}

impl Fixed {
    fn bytes(&self) -> Bytes {
        match self {
            Fixed::Charge(charge) => charge.bytes(),
            Fixed::Region(region) => region.bytes(),
        }
    }
}

impl Resident {
    pub fn new(
        id: ModelId,
        model: Model,
        parts: Arc<[Part]>,
        source: Arc<dyn Source>,
        fixed: Fixed,
        device: Option<Arc<DeviceModel>>,
    ) -> Arc<Self> {
        let head = parts.iter().position(|part| part.name.starts_with("head")).unwrap_or(parts.len());
        let (sessions, fixed) = (AtomicUsize::new(0), Mutex::new(Some(fixed)));
        Arc::new(Self { id, model, parts, head, source, sessions, fixed, device })
    }

    /// What the small vectors cost.
    pub fn fixed_bytes(&self) -> Bytes {
        self.fixed.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(Bytes::ZERO, Fixed::bytes)
    }

    /// Gives that back; how much it was.
    pub fn give_up_vectors(&self) -> Bytes {
        let fixed = self.fixed.lock().unwrap_or_else(PoisonError::into_inner).take();
        fixed.map_or(Bytes::ZERO, |fixed| fixed.bytes())
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

    /// The first unit that the device computes, where the memory is one's.
    pub(crate) fn first(&self) -> usize {
        self.resident.device.as_ref().map_or(0, |device| device.first)
    }

    /// Whether both are the same place.
    pub fn is(&self, other: &Placed) -> bool {
        Arc::ptr_eq(&self.resident, &other.resident)
    }

    /// Name, bytes of weights and bytes taken of each part, in the order of a pass.
    pub fn parts(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.resident.parts.iter().map(|p| (p.name.as_str(), p.weight_bytes, p.bytes))
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

    /// Whether a layer of the model was too large for a part.
    pub(crate) fn cuts_layers(&self) -> bool {
        let resident = &self.0.resident;
        resident.parts[..resident.head].iter().any(|part| !part.whole)
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
                    step.run(worker, &part.ops, which(i), Place::Image(part, image(lease)));
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
                if let Site::Host { filler, .. } = &memory.0.site {
                    filler.share(worker.id());
                }
                step.run(worker, &part.ops, which(i), Place::Image(part, image(&lease)));
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

/// Where the host finds a part.
fn image(handle: &Handle) -> &super::Image {
    match handle {
        Handle::Host(image) => image,
        Handle::Device(_) => unreachable!("a device computes with what lies there"),
    }
}

/// Why a pass on a device ends.
pub(crate) enum Stopped {
    Memory(MemoryError),
    Device(DeviceError),
}

impl From<MemoryError> for Stopped {
    fn from(error: MemoryError) -> Self {
        Stopped::Memory(error)
    }
}

impl From<DeviceError> for Stopped {
    fn from(error: DeviceError) -> Self {
        Stopped::Device(error)
    }
}

/// A model's place on a device.
impl Tenancy {
    /// The device and the model's form there; `None` where the host computes.
    pub(crate) fn device(&self) -> Option<(Arc<DeviceArena>, Arc<DeviceModel>)> {
        let Placed { memory, resident } = &self.0;
        Some((Arc::clone(memory.device()?), Arc::clone(resident.device.as_ref()?)))
    }

    /// Pays for bytes of the device and gives them a place; `what` is for messages.
    pub(crate) fn region(&self, class: Class, bytes: usize, what: &str) -> Result<Region, MemoryError> {
        let Placed { memory, resident } = &self.0;
        let region = memory.lock().region(class, bytes, what);
        region.map_err(|error| error.of(resident.model.name()))
    }

    /// Whether the memory is this model's alone, and all of it is there to stay.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.0.memory.0.site, Site::Device { whole: true, .. })
    }

    /// Leases of all parts, for a model that stays.
    pub(crate) fn all(&self) -> Result<Vec<Lease<Handle>>, MemoryError> {
        let Placed { memory, resident } = &self.0;
        (0..resident.parts.len() as u32).map(|index| memory.acquire(resident, index)).collect()
    }

    /// One forward pass on a device, to the head's end or, without `head`, to its beginning. `launch` queues what the parts of a
    /// range do, to begin after the copies that it is given, and returns the end of that. The end of the last one comes back.
    ///
    /// Parts that follow each other and are there are launched together. Then the next part's copy is queued while the last
    /// one of those is still leased, so that it cannot be the one that goes: the copy goes on beside the computing.
    pub(crate) fn launch(
        &self,
        head: bool,
        mut launch: impl FnMut(Range<usize>, &[&Done]) -> Result<Option<Done>, DeviceError>,
    ) -> Result<Option<Arc<Done>>, Stopped> {
        let Placed { memory, resident } = &self.0;
        let n = if head { resident.parts.len() } else { resident.head };
        let prefetch = memory.0.options.prefetch;
        let (mut at, mut last) = (0, None);
        while at < n {
            let mut leases = memory.acquire_stretch(resident, at as u32..n as u32)?;
            let end = at + leases.len();
            let landed: Vec<&Done> = leases.iter().filter_map(|lease| lease.pending()).collect();
            if let Some(done) = launch(at..end, &landed)? {
                let done = Arc::new(done);
                if let AnyStore::Device(store) = memory.lock().pool.store_mut() {
                    store.used(leases.iter().map(Lease::unit), &done);
                }
                last = Some(done);
            }
            leases.drain(..leases.len() - 1);
            if prefetch {
                match end {
                    next if next < n => memory.prefetch(resident, next as u32),
                    // More of the prompt comes.
                    _ if !head => memory.prefetch(resident, 0),
                    _ => memory.prefetch_upcoming(),
                }
            }
            at = end;
        }
        Ok(last)
    }

    /// Tells those who watch what has landed.
    pub(crate) fn tell(&self) {
        self.0.memory.lock().tell();
    }

    /// Forgets what a step that failed may have left half copied.
    pub(crate) fn forget(&self) {
        let Placed { memory, resident } = &self.0;
        let _ = memory.lock().pool.unload(resident.id);
    }
}
