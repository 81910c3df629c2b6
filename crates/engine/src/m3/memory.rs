//! A memory with a budget: the models in it, and everything that is paid for.
//!
//! A handle: clones share it, from any thread. Its lock is held for one decision or one load at a time, never for a
//! forward pass, so models come and go, and the budget changes, while others generate.

use super::arena::Arena;
use super::blocks::Blocks;
use super::cut::{Grid, Part, cut, sizes};
use super::device::{AnyStore, DeviceArena, Handle, Uploads};
use super::error::MemoryError;
use super::fill::{FillStats, Filler};
use super::placed::{Fixed, Placed, Resident, Tenancy};
use super::places::ALIGN;
use super::source::{Io, SECTOR, Source, source};
use super::watch::{Label, Late};
use super::{Bytes, Pin};
use crate::cpu::Sizes;
use crate::kv::KvLayout;
use crate::loader::Model;
use nexaquant_kernels::KvType;
use nexaquant_residency::policy::belady::Access;
use nexaquant_residency::{
    Books, Charge, Class, Error, Lease, Lru, ModelId, Policy, Pool, Size, State, Stats, Turn, TwoLevel,
    UnitId,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::*;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who is evicted first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyName {
    /// Least recently used model first, its last layers first; within the running model what is needed latest.
    #[default]
    TwoLevel,
    /// Least recently used part first: the baseline that everybody knows.
    Lru,
}

impl PolicyName {
    /// As reports have it.
    pub fn name(self) -> &'static str {
        self.policy().name()
    }

    /// Makes it.
    pub fn policy(self) -> Box<dyn Policy> {
        match self {
            PolicyName::TwoLevel => Box::new(TwoLevel),
            PolicyName::Lru => Box::new(Lru),
        }
    }
}

/// How a memory is made.
#[derive(Clone, Copy, Debug)]
pub struct MemoryOptions {
    /// Bytes for everything: weights, key-value caches, activations.
    pub budget: u64,
    /// Who is evicted first.
    pub policy: PolicyName,
    /// Bring the next part in while this one computes.
    pub prefetch: bool,
    /// How files are read.
    pub io: Io,
}

impl MemoryOptions {
    /// A budget, and the defaults for everything else.
    pub fn new(budget: u64) -> Self {
        Self { budget, policy: PolicyName::default(), prefetch: true, io: Io::default() }
    }
}

/// One part on the map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitStatus {
    /// `layer 3`.
    pub name: String,
    /// Its size in blocks.
    pub bytes: Bytes,
    /// Of that, in memory now.
    pub kept: Bytes,
    /// What it is doing.
    pub state: State,
}

/// One model on the map.
#[derive(Clone, Debug)]
pub struct ModelStatus {
    /// Its names.
    pub names: Vec<String>,
    /// In the order of a pass.
    pub units: Vec<UnitStatus>,
    /// What stays once loaded.
    pub pin: Pin,
    /// Sessions open.
    pub sessions: usize,
    /// What happened to it.
    pub stats: Stats,
}

/// A memory with a budget.
#[derive(Clone)]
pub struct Memory(pub(super) Arc<Shared>);

pub(super) struct Shared {
    core: Mutex<Core>,
    pub site: Site,
    pub options: MemoryOptions,
}

/// Where a memory is.
pub(super) enum Site {
    Host {
        filler: Filler<UnitId>,
        blocks: Arc<Blocks>,
        grid: Grid,
    },
    Device {
        arena: Arc<DeviceArena>,
        /// For one model that stays as a whole.
        whole: bool,
    },
}

pub(super) struct Core {
    pub pool: Pool<AnyStore>,
    /// Not as [`Placed`], which would keep the memory that keeps it.
    names: BTreeMap<String, Arc<Resident>>,
    /// What a part is called, for those who watch.
    pub labels: Arc<Mutex<HashMap<ModelId, Label>>>,
    /// Changes on a device that nobody was told of yet.
    pub late: Late,
    /// Small vectors of all models, which stay.
    fixed: Bytes,
    trace: Option<Vec<Access>>,
}

/// Blocks: small budgets have small ones, so that little is left free at the ends of parts; large ones have few.
const SMALLEST_BLOCK: usize = 16 << 10;
const LARGEST_BLOCK: usize = 1 << 20;
/// Blocks of a budget, about.
const BLOCKS: u64 = 512;
/// From this size of block on, the sectors around a piece are a small part of it, and files can be read past the page cache.
const BLOCK_WITH_SECTORS: usize = 256 << 10;
/// Parts of a model, about, at most.
pub(super) const MOST_PARTS: u64 = 4096;
/// A budget may grow by this factor while it is in use.
const GROWTH: u64 = 8;

fn grid(budget: u64) -> Grid {
    let block = (budget / BLOCKS).clamp(SMALLEST_BLOCK as u64, LARGEST_BLOCK as u64) as usize;
    let block = if block.is_power_of_two() { block } else { block.next_power_of_two() / 2 };
    Grid { block, align: if block >= BLOCK_WITH_SECTORS { SECTOR } else { 1 } }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({:?})", self.0.options)
    }
}

impl Memory {
    /// An empty memory. Takes addresses, and no memory yet.
    pub fn new(options: MemoryOptions) -> Result<Self, MemoryError> {
        let least = SMALLEST_BLOCK as u64;
        if options.budget < least {
            return Err(MemoryError::NoBudget { budget: options.budget, least });
        }
        let block = grid(options.budget).block;
        let count = |budget: u64| usize::try_from(budget / block as u64).unwrap_or(usize::MAX);
        let blocks = Blocks::new(block, count(options.budget.saturating_mul(GROWTH)))
            .or_else(|_| Blocks::new(block, count(options.budget)))
            .map_err(|source| MemoryError::NoAddresses { budget: Bytes(options.budget), source })?;
        Ok(Self::over(blocks, options))
    }

    /// A memory that loads nothing: for the question what fits.
    pub(super) fn of_numbers(options: MemoryOptions) -> Result<Self, MemoryError> {
        let blocks = Blocks::new(grid(options.budget).block, 1)
            .map_err(|source| MemoryError::NoAddresses { budget: Bytes(options.budget), source })?;
        Ok(Self::over(blocks, options))
    }

    fn over(blocks: Blocks, options: MemoryOptions) -> Self {
        let blocks = Arc::new(blocks);
        let filler = Filler::new(Arc::clone(&blocks));
        let arena = Arena::new(Arc::clone(&blocks), filler.clone());
        let site = Site::Host { filler, blocks, grid: grid(options.budget) };
        Self::made(AnyStore::Host(arena), site, options)
    }

    pub(super) fn made(store: AnyStore, site: Site, options: MemoryOptions) -> Self {
        let core = Core {
            pool: Pool::new(store, Bytes(options.budget), options.policy.policy()),
            names: BTreeMap::new(),
            labels: Arc::default(),
            late: Late::default(),
            fixed: Bytes::ZERO,
            trace: None,
        };
        Self(Arc::new(Shared { core: Mutex::new(core), site, options }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.0.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- models ----

    /// Gives `model` a place under `name`. Nothing is loaded yet. A model whose file is in the memory already gets one
    /// more name and no second copy.
    pub fn add(&self, name: &str, model: &Model) -> Result<Placed, MemoryError> {
        self.add_from(name, model, self.open_source(model)?)
    }

    /// Where the bytes of a model come from.
    pub(super) fn open_source(&self, model: &Model) -> Result<Arc<dyn Source>, MemoryError> {
        let (io, sectors) = match &self.0.site {
            Site::Host { grid, .. } => (self.0.options.io, grid.align > 1),
            // What a device gets is packed out of the mapping; this is for single rows.
            Site::Device { .. } => (Io::Cached, false),
        };
        let path = || model.file().path().display().to_string();
        let opened = source(model.file(), io, sectors);
        opened.map(Arc::from).map_err(|source| MemoryError::File { path: path(), source })
    }

    /// The same with the bytes from somewhere else.
    pub(crate) fn add_from(
        &self,
        name: &str,
        model: &Model,
        source: Arc<dyn Source>,
    ) -> Result<Placed, MemoryError> {
        let grid = match &self.0.site {
            Site::Host { grid, .. } => *grid,
            Site::Device { arena, .. } => {
                return self.add_to_device(arena, name, (model, usize::MAX), source);
            }
        };
        let mut core = self.lock();
        if let Some(placed) = self.known(&mut core, name, model)? {
            return Ok(placed);
        }
        let weights = model.weights();
        let mut fixed = core.charge(Class::Weights, Bytes(weights.vector_bytes()))?;
        fixed.commit();
        let parts: Arc<[Part]> = {
            let arch = model.architecture();
            let (layer, all) = sizes(arch, weights, grid)?;
            let room = core.room().saturating_sub(fixed.bytes()).saturating_sub(least_session(model));
            let two = room.0 / 2 / grid.block as u64;
            // Not more parts than are worth their bookkeeping.
            let most = two.clamp(1, u64::from(layer)).max(all / MOST_PARTS);
            cut(arch, weights, grid, most as u32, 0)?.into()
        };
        let block = Bytes(grid.block as u64);
        let sizes: Vec<Size> = parts.iter().map(|part| Size::paged(Bytes(part.bytes), block)).collect();
        let id = core.pool.register(name, &sizes).map_err(MemoryError::Residency)?;
        if let AnyStore::Host(arena) = core.pool.store_mut() {
            arena.insert(id, Arc::clone(&parts), Arc::clone(&source));
        }
        let resident = Resident::new(id, model.clone(), parts, source, Fixed::Charge(fixed), None);
        Ok(self.settled(&mut core, name, resident))
    }

    /// A model that has a place already gets one more name. An error if the name is taken.
    pub(super) fn known(
        &self,
        core: &mut Core,
        name: &str,
        model: &Model,
    ) -> Result<Option<Placed>, MemoryError> {
        if core.names.contains_key(name) {
            return Err(MemoryError::NameTaken { name: name.to_owned() });
        }
        let same = core.names.values().find(|resident| resident.model.same(model)).cloned();
        Ok(same.map(|resident| {
            core.names.insert(name.to_owned(), Arc::clone(&resident));
            Placed::new(self.clone(), resident)
        }))
    }

    /// Makes a model that has its id known under its name.
    pub(super) fn settled(&self, core: &mut Core, name: &str, resident: Arc<Resident>) -> Placed {
        core.fixed += resident.fixed_bytes();
        let label = Label { model: name.into(), parts: Arc::clone(&resident.parts) };
        core.labels.lock().unwrap_or_else(PoisonError::into_inner).insert(resident.id, label);
        // What parsing has touched is not needed any more.
        resident.model.file().forget_pages();
        core.names.insert(name.to_owned(), Arc::clone(&resident));
        // Blocks may have had to go for the vectors.
        core.trim();
        Placed::new(self.clone(), resident)
    }

    /// Forgets a name, and with its last name the model. Waits for loads of it that are under way.
    pub fn remove(&self, name: &str) -> Result<(), MemoryError> {
        let mut core = self.lock();
        let Some(resident) = core.names.get(name).cloned() else { return Err(core.unknown(name)) };
        let id = resident.id;
        let other = core.names.iter().find(|(n, r)| r.id == id && *n != name).map(|(n, _)| n.clone());
        if let Some(other) = other {
            // The name is free for another model then, and messages use one that the model still has.
            core.pool.rename(id, &other).map_err(MemoryError::Residency)?;
            if let Some(label) = core.labels.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&id) {
                label.model = other.into();
            }
        } else {
            let sessions = resident.sessions.load(Acquire);
            if sessions > 0 {
                return Err(MemoryError::InUse { name: name.to_owned(), sessions });
            }
            core.pool.unregister(id).map_err(MemoryError::Residency)?;
            match core.pool.store_mut() {
                AnyStore::Host(arena) => arena.remove(id),
                AnyStore::Device(store) => store.remove(id),
            }
            core.labels.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            let fixed = resident.give_up_vectors();
            core.fixed = core.fixed.saturating_sub(fixed);
        }
        core.names.remove(name);
        Ok(())
    }

    /// Evicts what is in memory of a model and neither pinned nor leased.
    pub fn unload(&self, name: &str) -> Result<(), MemoryError> {
        let mut core = self.lock();
        let resident = core.names.get(name).ok_or_else(|| core.unknown(name))?;
        let id = resident.id;
        core.pool.unload(id).map_err(MemoryError::Residency)?;
        core.trim();
        Ok(())
    }

    /// The model of that name.
    pub fn get(&self, name: &str) -> Result<Placed, MemoryError> {
        let core = self.lock();
        let resident = core.names.get(name).ok_or_else(|| core.unknown(name))?;
        Ok(Placed::new(self.clone(), Arc::clone(resident)))
    }

    /// The same, and the right to it: from here on the model is in use.
    pub(crate) fn enter(&self, name: &str) -> Result<(Placed, Tenancy), MemoryError> {
        let core = self.lock();
        let resident = core.names.get(name).ok_or_else(|| core.unknown(name))?;
        let placed = Placed::new(self.clone(), Arc::clone(resident));
        // Under the lock, so that nobody removes it in between.
        let tenancy = placed.enter();
        Ok((placed, tenancy))
    }

    /// All names, in order.
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// Which parts of a model stay once they are loaded, in place of what was pinned before.
    pub fn pin(&self, name: &str, pin: Pin) -> Result<(), MemoryError> {
        let placed = self.get(name)?;
        self.lock().pool.pin(placed.resident.id, pin).map_err(MemoryError::Residency)
    }

    /// Tells the policy whose turn comes, soonest first, and for how many forward passes; see
    /// [`nexaquant_residency::Pool::expect`].
    pub fn expect(&self, turns: &[(Placed, u32)]) {
        let turns: Vec<Turn> = turns
            .iter()
            .map(|(placed, passes)| Turn { model: placed.resident.id, passes: *passes })
            .collect();
        self.lock().pool.expect(&turns);
    }

    // ---- the budget ----

    /// The budget now.
    pub fn budget(&self) -> u64 {
        self.lock().pool.books().budget.0
    }

    /// Changes the budget, evicting as needed; all or nothing. Refused, with numbers, while what is in use is more.
    pub fn set_budget(&self, budget: u64) -> Result<(), MemoryError> {
        let (most, rest) = match &self.0.site {
            Site::Host { blocks, .. } => (blocks.count() * blocks.block(), blocks.block() - 1),
            Site::Device { arena, .. } => (arena.buffer.bytes(), 0),
        };
        // A budget that is no whole number of blocks leaves the rest to caches and activations.
        if budget > (most + rest) as u64 {
            return Err(MemoryError::TooMuch { budget: Bytes(budget), most: Bytes(most as u64) });
        }
        let mut core = self.lock();
        core.pool.set_budget(Bytes(budget)).map_err(MemoryError::Residency)?;
        core.trim();
        Ok(())
    }

    /// The smallest budget that the models, caches and pins there are now can work with.
    pub fn smallest_budget(&self) -> u64 {
        self.lock().pool.smallest_budget().0
    }

    /// Pays for something that is no part of a model. Allocate it then, and commit the charge.
    pub(super) fn pay(&self, class: Class, bytes: usize) -> Result<Charge, MemoryError> {
        let mut core = self.lock();
        let charge = core.charge(class, Bytes(bytes as u64))?;
        core.trim();
        Ok(charge)
    }

    /// Bytes that would have to be evicted to have all of a model in memory, and `more` bytes of other things.
    pub(crate) fn lacks(&self, placed: &Placed, more: u64) -> u64 {
        let mut core = self.lock();
        core.pool.settle();
        let missing = core.pool.table().model(placed.resident.id).map_or(Bytes::ZERO, |model| {
            let parts = (0..model.len()).filter(|&index| model.state(index) != State::Loading);
            parts.map(|index| model.bytes(index).saturating_sub(model.kept(index))).sum()
        });
        (missing.0 + more).saturating_sub(core.pool.books().free().0)
    }

    // ---- parts ----

    pub(super) fn acquire(&self, resident: &Resident, index: u32) -> Result<Lease<Handle>, MemoryError> {
        self.lock().acquire(resident, index)
    }

    /// Leases of the first `n` parts if all of them are in memory.
    pub(super) fn acquire_all(
        &self,
        resident: &Resident,
        n: usize,
    ) -> Result<Option<Vec<Lease<Handle>>>, MemoryError> {
        let mut core = self.lock();
        core.pool.settle();
        let there = |index: u32| {
            let state = core.pool.table().state(UnitId { model: resident.id, index });
            matches!(state, Some(State::Resident | State::Pinned | State::InUse))
        };
        if !(0..n as u32).all(there) {
            return Ok(None);
        }
        // Under the same lock: if one went meanwhile, the leases of the others could be in its way.
        (0..n as u32).map(|index| core.acquire(resident, index)).collect::<Result<_, _>>().map(Some)
    }

    /// Leases of the first part of a range, brought in if need be, and of those behind it that are there.
    pub(super) fn acquire_stretch(
        &self,
        resident: &Resident,
        range: std::ops::Range<u32>,
    ) -> Result<Vec<Lease<Handle>>, MemoryError> {
        let mut core = self.lock();
        let mut leases = vec![core.acquire(resident, range.start)?];
        for index in range.skip(1) {
            let state = core.pool.table().state(UnitId { model: resident.id, index });
            if !matches!(state, Some(State::Resident | State::Pinned | State::InUse)) {
                break;
            }
            leases.push(core.acquire(resident, index)?);
        }
        Ok(leases)
    }

    /// Starts bringing a part in. Errors are for [`Memory::acquire`] to find.
    pub(super) fn prefetch(&self, resident: &Resident, index: u32) {
        let _ = self.lock().pool.prefetch(UnitId { model: resident.id, index });
    }

    /// The same for what is expected after the part that was acquired last.
    pub(super) fn prefetch_upcoming(&self) {
        let mut core = self.lock();
        if let Some(unit) = core.pool.upcoming() {
            let _ = core.pool.prefetch(unit);
        }
    }

    // ---- looking at it ----

    /// The ledger's numbers.
    pub fn books(&self) -> Books {
        self.lock().pool.books()
    }

    /// What happened to all models together.
    pub fn stats(&self) -> Stats {
        let mut core = self.lock();
        core.tell();
        core.pool.stats()
    }

    /// What was read, and what it took.
    pub fn fill_stats(&self) -> FillStats {
        match &self.0.site {
            Site::Host { filler, .. } => filler.stats(),
            Site::Device { .. } => FillStats::default(),
        }
    }

    /// What was copied to the device, where the memory is one's.
    pub fn uploads(&self) -> Option<Uploads> {
        match self.lock().pool.store_mut() {
            AnyStore::Host(_) => None,
            AnyStore::Device(store) => Some(store.uploads()),
        }
    }

    /// Bytes of a block: parts take whole ones. On a device, what addresses are a multiple of; parts go as a whole there.
    pub fn block(&self) -> usize {
        match &self.0.site {
            Site::Host { grid, .. } => grid.block,
            Site::Device { .. } => ALIGN as usize,
        }
    }

    /// The map: every model and part.
    pub fn status(&self) -> Vec<ModelStatus> {
        let mut core = self.lock();
        core.pool.settle();
        let mut models: BTreeMap<ModelId, ModelStatus> = BTreeMap::new();
        for (name, resident) in &core.names {
            let Some(model) = core.pool.table().model(resident.id) else { continue };
            let unit = |(index, part): (u32, &Part)| UnitStatus {
                name: part.name.clone(),
                bytes: model.bytes(index),
                kept: model.kept(index),
                state: model.state(index),
            };
            let status = models.entry(resident.id).or_insert_with(|| ModelStatus {
                names: Vec::new(),
                units: (0..).zip(resident.parts.iter()).map(unit).collect(),
                pin: model.pin(),
                sessions: resident.sessions.load(Acquire),
                stats: core.pool.model_stats(resident.id).unwrap_or_default(),
            });
            status.names.push(name.clone());
        }
        models.into_values().collect()
    }

    /// Compares all books with each other, and with what the store holds.
    #[cfg(test)]
    pub(super) fn audit(&self) {
        let core = self.lock();
        core.pool.audit();
        if let (AnyStore::Host(arena), Site::Host { grid, .. }) = (core.pool.store(), &self.0.site) {
            arena.audit(core.room().0 / grid.block as u64);
        }
    }

    /// Keeps a record of every use of a part from here on, for [`Memory::trace`]. It grows by a few dozen bytes a use.
    pub fn record(&self) {
        self.lock().trace.get_or_insert_default();
    }

    /// The record so far: what the offline optimum and other policies can be computed from.
    pub fn trace(&self) -> Vec<Access> {
        self.lock().trace.clone().unwrap_or_default()
    }
}

/// Bytes of the smallest session of a model that can do a step.
fn least_session(model: &Model) -> Bytes {
    let arch = model.architecture();
    let ropes = arch.rope_tables(arch.hparams.context_length.min(1), |id| model.weights().vector(id));
    let threads = crate::threads::topology().default_threads();
    let sizes = Sizes::new(arch, |id| model.weights().kernel(id), &ropes, (1, 1), false, threads);
    let page = KvLayout::new(&arch.hparams, KvType::F16).map_or(0, |layout| layout.page_bytes());
    Bytes((sizes.bytes() + page) as u64)
}

impl Core {
    fn unknown(&self, name: &str) -> MemoryError {
        MemoryError::unknown(name, self.names.keys())
    }

    fn acquire(&mut self, resident: &Resident, index: u32) -> Result<Lease<Handle>, MemoryError> {
        let unit = UnitId { model: resident.id, index };
        self.note(unit);
        self.pool.acquire(unit).map_err(|error| match error {
            Error::LoadFailed { unit, model, bytes, reason } => {
                let part = resident.parts.get(unit.index as usize).map_or("a part", |part| &part.name);
                MemoryError::Read { model, part: part.to_owned(), bytes, reason: reason.to_string() }
            }
            error => MemoryError::Residency(error),
        })
    }

    pub(super) fn charge(&mut self, class: Class, bytes: Bytes) -> Result<Charge, MemoryError> {
        self.pool.charge(class, bytes).map_err(MemoryError::Residency)
    }

    /// What is given out to other things than parts of models.
    fn charged(&self, books: &Books) -> Bytes {
        let others = [Class::Kv, Class::Scratch, Class::Staging].map(|class| books.of(class));
        others.into_iter().sum::<Bytes>() + self.fixed
    }

    /// What is left to parts of models.
    pub(super) fn room(&self) -> Bytes {
        let books = self.pool.books();
        books.budget.saturating_sub(self.charged(&books))
    }

    /// Gives memory of free blocks back to the system where it was promised to something else.
    fn trim(&mut self) {
        let room = self.room().0;
        if let AnyStore::Host(arena) = self.pool.store_mut() {
            arena.trim(room / arena.block() as u64);
        }
    }

    fn note(&mut self, unit: UnitId) {
        if self.trace.is_none() {
            return;
        }
        let (budget, bytes) = (self.room(), self.pool.table().bytes(unit).unwrap_or_default());
        if let Some(trace) = &mut self.trace {
            trace.push(Access { unit, bytes, budget });
        }
    }
}
