//! A memory on a device: how it is made, how models get their places there, and regions for everything else.

use super::cut::{Grid, Part, cut, sizes};
use super::device::{AnyStore, DeviceArena, DeviceStore, Region};
use super::error::MemoryError;
use super::memory::{Core, MOST_PARTS, Memory, MemoryOptions, Site};
use super::placed::{Fixed, Placed, Resident};
use super::places::ALIGN;
use super::source::Source;
use crate::loader::Model;
use crate::model::op::{MatrixId, Op};
use crate::opencl::{DeviceError, DeviceModel, Gpu, first_unit, least_session};
use nexaquant_kernels::KvType;
use nexaquant_residency::{Bytes, Class, Size, State, UnitId};
use std::sync::Arc;

/// Parts are counted in steps of about this many bytes, or of a row where that is more.
const STEP: usize = 4 << 10;

impl Memory {
    /// A memory on a device: all of the budget is allocated at once, there, and nothing later.
    ///
    /// # Errors
    /// When the device has no room for it.
    pub fn on_device(gpu: &Gpu, options: MemoryOptions) -> Result<Self, MemoryError> {
        Self::in_arena(gpu, options, false)
    }

    fn in_arena(gpu: &Gpu, options: MemoryOptions, whole: bool) -> Result<Self, MemoryError> {
        let found = gpu.found();
        let most = gpu.most();
        if options.budget < ALIGN {
            return Err(MemoryError::NoBudget { budget: options.budget, least: ALIGN });
        }
        if options.budget > most {
            let (device, total) = (found.name.clone(), found.memory);
            let error = DeviceError::OutOfMemory { device, bytes: options.budget, total, piece: most };
            return Err(error.into());
        }
        let arena = DeviceArena::new(gpu, options.budget as usize)?;
        let store = AnyStore::Device(DeviceStore::new(Arc::clone(&arena)));
        Ok(Self::made(store, Site::Device { arena, whole }, options))
    }

    /// The device, where the memory is one's.
    pub(crate) fn device(&self) -> Option<&Arc<DeviceArena>> {
        match &self.0.site {
            Site::Host { .. } => None,
            Site::Device { arena, .. } => Some(arena),
        }
    }

    /// Whether parts are in memory as a whole or not at all.
    pub fn has_whole_parts(&self) -> bool {
        self.device().is_some()
    }

    /// A memory for one model that stays, and for `session` bytes beside it.
    ///
    /// # Errors
    /// As [`Memory::on_device`].
    pub(crate) fn whole(gpu: &Gpu, device: DeviceModel, session: u64) -> Result<Placed, MemoryError> {
        let memory = Self::in_arena(gpu, MemoryOptions::new(device.bytes() + session), true)?;
        let Site::Device { arena, .. } = &memory.0.site else { unreachable!("made on a device") };
        let (name, source) = (device.model.name(), memory.open_source(&device.model)?);
        memory.place(&mut memory.lock(), arena, &name, device, source)
    }

    /// As [`Memory::add`], with a place on the device for the last `layers` layers of the model alone, the head counted as one and
    /// taken in any case. The CPU computes what comes before them, over the mapped file. A model that has a place already keeps
    /// the layers it has there, and a memory of the host has all of them.
    pub fn add_last(&self, name: &str, model: &Model, layers: usize) -> Result<Placed, MemoryError> {
        self.add_last_from(name, model, layers, self.open_source(model)?)
    }

    /// The same with the bytes from somewhere else.
    pub(super) fn add_last_from(
        &self,
        name: &str,
        model: &Model,
        layers: usize,
        source: Arc<dyn Source>,
    ) -> Result<Placed, MemoryError> {
        match self.device() {
            Some(arena) => self.add_to_device(arena, name, (model, layers), source),
            None => self.add_from(name, model, source),
        }
    }

    /// The last layers of a model. Not under the lock: compiling and packing take a while, and others compute meanwhile.
    pub(super) fn add_to_device(
        &self,
        arena: &DeviceArena,
        name: &str,
        (model, layers): (&Model, usize),
        source: Arc<dyn Source>,
    ) -> Result<Placed, MemoryError> {
        let room = {
            let mut core = self.lock();
            if let Some(placed) = self.known(&mut core, name, model)? {
                return Ok(placed);
            }
            core.room()
        };
        let (arch, weights, first) =
            (model.architecture(), model.weights(), first_unit(model, layers.max(1)));
        let row = (0..arch.matrices.len()).map(|i| weights.row_bytes(MatrixId(i))).max().unwrap_or(0);
        let grid = Grid { block: row.max(STEP), align: 1 };
        let (layer, all) = sizes(arch, weights, grid)?;
        let fixed = weights.vector_bytes() + ALIGN * arch.vectors.len() as u64;
        let room = room.saturating_sub(Bytes(fixed)).saturating_sub(least_session(&arena.gpu, model, first));
        let two = room.0 / 2 / grid.block as u64;
        let most = two.clamp(1, u64::from(layer)).max(all / MOST_PARTS);
        let parts = cut(arch, weights, grid, most as u32, first)?;
        let mut device = DeviceModel::new(&arena.gpu, model, first, parts, true);
        device.zeros = source.is_nothing();
        // A device that cannot compile the program says so now.
        device.kernel(KvType::F16, true)?;
        device.pack().map_err(|(part, reason)| MemoryError::Read {
            model: model.name(),
            part: device.parts[part].name.clone(),
            bytes: Bytes(device.parts[part].bytes),
            reason: reason.to_string(),
        })?;
        let mut core = self.lock();
        match self.known(&mut core, name, model)? {
            Some(placed) => Ok(placed),
            None => self.place(&mut core, arena, name, device, source),
        }
    }

    fn place(
        &self,
        core: &mut Core,
        arena: &DeviceArena,
        name: &str,
        device: DeviceModel,
        source: Arc<dyn Source>,
    ) -> Result<Placed, MemoryError> {
        let model = device.model.clone();
        let fixed = core.region(Class::Weights, device.fixed_bytes(), &format!("the norms of {name}"))?;
        let bytes = device.place(fixed.line);
        arena.write(fixed.line, &bytes)?;
        let sizes: Vec<Size> = device.parts.iter().map(|part| Size::whole(Bytes(part.bytes))).collect();
        let id = core.pool.register(name, &sizes).map_err(MemoryError::Residency)?;
        let device = Arc::new(device);
        if let AnyStore::Device(store) = core.pool.store_mut() {
            store.insert(id, Arc::clone(&device));
        }
        let parts = Arc::clone(&device.parts);
        let resident = Resident::new(id, model, parts, source, Fixed::Region(fixed), Some(device));
        Ok(self.settled(core, name, resident))
    }
}

/// A model that is to stay from unit `first` on; its embedding table, too, if that is 0.
///
/// # Errors
/// When a row is too long to be counted.
pub(crate) fn whole(gpu: &Gpu, model: &Model, first: usize) -> Result<DeviceModel, MemoryError> {
    let (arch, weights) = (model.architecture(), model.weights());
    // A part for each unit but the embedding.
    let mut parts = cut(arch, weights, Grid { block: usize::MAX / 2, align: 1 }, 1, first)?;
    let table = arch.embedding;
    let multiplies = |op: &Op| match op {
        Op::MatMul { products, .. } => products.iter().any(|product| product.matrix == table),
        _ => false,
    };
    if first == 0 && !parts.iter().any(|part| part.ops.iter().any(multiplies)) {
        let rows = arch.matrices[table.0].rows;
        parts.push(Part::table("embedding", table, rows, weights.bytes(table)));
    }
    Ok(DeviceModel::new(gpu, model, first, parts, false))
}

impl Core {
    /// Pays for bytes of a device and gives them a place. Parts that lie there go; `what` is for messages.
    pub(super) fn region(&mut self, class: Class, bytes: usize, what: &str) -> Result<Region, MemoryError> {
        let bytes = Bytes((bytes as u64).next_multiple_of(ALIGN).max(ALIGN));
        self.pool.settle();
        // What is refused is refused before anything goes.
        if self.pool.smallest_budget() + bytes <= self.pool.books().budget {
            self.clear(bytes);
        }
        let mut charge = self.charge(class, bytes)?;
        charge.commit();
        self.clear(bytes);
        let books = self.pool.books();
        let AnyStore::Device(store) = self.pool.store_mut() else { unreachable!("regions are a device's") };
        if let Some((place, _)) = store.last(bytes.0, |_| false) {
            return Ok(store.take(&place, charge)?);
        }
        drop(charge);
        let (free, largest) = (books.free() + bytes, Bytes(store.largest_hole()));
        let (what, budget) = (what.to_owned(), books.budget);
        Err(MemoryError::Scattered { what, need: bytes, free, largest, budget })
    }

    /// Makes the last place where `bytes` may lie free.
    fn clear(&mut self, bytes: Bytes) {
        let AnyStore::Device(store) = self.pool.store_mut() else { return };
        let parts = store.parts();
        let table = self.pool.table();
        let may_go: Vec<UnitId> =
            parts.into_iter().filter(|unit| table.state(*unit) == Some(State::Resident)).collect();
        let AnyStore::Device(store) = self.pool.store_mut() else { return };
        for unit in store.last(bytes.0, |unit| may_go.contains(&unit)).map_or(Vec::new(), |(_, units)| units)
        {
            self.pool.evict_one(unit);
        }
    }
}
