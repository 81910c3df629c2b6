//! The store of a memory on a device: one buffer, allocated once, and parts that come into it through a queue of their own.
//!
//! A load returns at once. Whoever computes with a part has the device wait for the copy's end; whoever's place a copy takes is
//! waited for in the same way, so the host never stands between copying and computing, and both go on side by side.
//!
//! Invariants:
//! 1. A place belongs to one part or one region, or is free.
//! 2. A copy into a place begins after the last launch and the last copy that touched it, and after the last launch that read
//!    the part's addresses, which are written with it.
//! 3. A region is given out when nothing that touched its place before is under way.

use super::places::Places;
use crate::opencl::{DeviceError, DeviceModel, Gpu};
use nexaquant_opencl::{Buffer, Done, Queue};
use nexaquant_residency::{Bytes, Charge, Finished, ModelId, Reason, Started, Store, UnitId};
use std::collections::{HashMap, VecDeque};
use std::ops::{AddAssign, Range};
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The buffer and the queues of a memory on a device.
#[derive(Debug)]
pub(crate) struct DeviceArena {
    pub gpu: Gpu,
    pub buffer: Buffer,
    /// Where work-groups meet.
    pub sync: Buffer,
    /// Whoever holds it makes a step; there is one at a time.
    compute: Mutex<Queue>,
    copy: Queue,
}

impl DeviceArena {
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Arc<Self>, DeviceError> {
        let (compute, copy) = (gpu.device.queue()?, gpu.device.timed_queue()?);
        let (buffer, sync) = (gpu.device.buffer(bytes)?, gpu.device.buffer(64)?);
        compute.zero(&sync, 0..64)?;
        Ok(Arc::new(Self { gpu: gpu.clone(), buffer, sync, compute: Mutex::new(compute), copy }))
    }

    /// The queue that computes, for a step.
    pub fn compute(&self) -> MutexGuard<'_, Queue> {
        self.compute.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue of copies, for reading what a step has left while the next one computes.
    pub fn copies(&self) -> &Queue {
        &self.copy
    }

    /// Writes to a region that no launch reads yet. Not by the queue that computes: whoever holds that may want the memory, which
    /// whoever calls this may hold.
    pub fn write(&self, line: u32, bytes: &[u8]) -> Result<(), DeviceError> {
        self.copy.write(&self.buffer, line as usize * 16, bytes)
    }

    /// Waits until nothing is under way, after something has failed. `compute`: the caller's.
    pub fn settle(&self, compute: &Queue) {
        // A device that was lost says so again at the next step.
        let _ = (compute.finish(), self.copy.finish(), compute.zero(&self.sync, 0..64), compute.finish());
    }
}

/// Bytes of the arena that are no part of a model: paid for, and free for others when this is dropped.
#[derive(Debug)]
pub(crate) struct Region {
    /// Where it begins, in lines of 16 bytes.
    pub line: u32,
    // Before the charge: who hears of the bytes must find the place free.
    _place: Taken,
    charge: Charge,
}

impl Region {
    pub fn bytes(&self) -> Bytes {
        self.charge.bytes()
    }
}

/// A place that is given back when it is dropped.
#[derive(Debug)]
struct Taken {
    at: u64,
    free: Arc<Mutex<Vec<u64>>>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.at);
    }
}

/// A part on its way or there.
#[derive(Debug)]
pub(crate) struct Landing {
    done: Done,
    /// Asking the driver takes as long as a decision of the pool.
    over: AtomicBool,
}

pub(crate) type Landed = Arc<Landing>;

impl Landing {
    /// The end of its copy, to wait for, if that was still under way when somebody asked last.
    pub fn pending(&self) -> Option<&Done> {
        if self.over.load(Acquire) {
            return None;
        }
        let over = matches!(self.done.is_over(), Ok(true));
        self.over.store(over, Release);
        (!over).then_some(&self.done)
    }
}

/// What must be over before a place is written.
#[derive(Clone, Debug)]
enum Last {
    Copy(Landed),
    Launch(Arc<Done>),
}

impl Last {
    fn done(&self) -> &Done {
        match self {
            Last::Copy(landed) => &landed.done,
            Last::Launch(done) => done,
        }
    }
}

#[derive(Debug)]
struct Held {
    place: Range<u64>,
    landed: Landed,
    /// The last launch that used it.
    used: Option<Arc<Done>>,
}

/// A place that was left, and what must be over before it is written.
#[derive(Debug)]
struct Fence {
    place: Range<u64>,
    unit: UnitId,
    last: Last,
}

/// Copies whose end nobody has looked at: of the bytes, and of the addresses behind them.
struct Flight {
    bytes: u64,
    /// Its time is wanted.
    timed: bool,
    copied: Done,
    landed: Landed,
}

/// What was copied, measured by the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uploads {
    /// Parts that came in.
    pub parts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// From the start of a copy to its part being usable, one part after another.
    pub copying: Duration,
    /// The same from being queued on: a copy waits for those before it, and for its place.
    pub page_in: Duration,
}

impl Uploads {
    /// What was copied after `before`, an earlier copy of this.
    #[must_use]
    pub fn since(&self, before: &Uploads) -> Uploads {
        Uploads {
            parts: self.parts - before.parts,
            bytes: self.bytes - before.bytes,
            copying: self.copying.saturating_sub(before.copying),
            page_in: self.page_in.saturating_sub(before.page_in),
        }
    }
}

impl AddAssign for Uploads {
    fn add_assign(&mut self, other: Uploads) {
        self.parts += other.parts;
        self.bytes += other.bytes;
        self.copying += other.copying;
        self.page_in += other.page_in;
    }
}

/// Copies that are remembered at most until somebody asks how long they took.
const MOST_FLIGHTS: usize = 4096;

pub(crate) struct DeviceStore {
    arena: Arc<DeviceArena>,
    places: Places,
    /// Places whose regions were dropped.
    free: Arc<Mutex<Vec<u64>>>,
    models: HashMap<ModelId, Arc<DeviceModel>>,
    held: HashMap<UnitId, Held>,
    fences: Vec<Fence>,
    flights: VecDeque<Flight>,
    uploads: Uploads,
    /// From the start of a copy to its part being usable, in the order of loads, where somebody wants to know.
    times: Option<VecDeque<Duration>>,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl DeviceStore {
    pub fn new(arena: Arc<DeviceArena>) -> Self {
        let places = Places::new(arena.buffer.bytes() as u64);
        Self {
            arena,
            places,
            free: Arc::default(),
            models: HashMap::new(),
            held: HashMap::new(),
            fences: Vec::new(),
            flights: VecDeque::new(),
            uploads: Uploads::default(),
            times: None,
        }
    }

    pub fn insert(&mut self, id: ModelId, model: Arc<DeviceModel>) {
        self.models.insert(id, model);
    }

    /// Forgets a model, after its last eviction. What its host memory is copied from ends first.
    pub fn remove(&mut self, id: ModelId) {
        let _ = self.arena.copy.finish();
        self.models.remove(&id);
    }

    /// Says that `launch` uses parts that are leased.
    pub fn used(&mut self, units: impl Iterator<Item = UnitId>, launch: &Arc<Done>) {
        for unit in units {
            if let Some(held) = self.held.get_mut(&unit) {
                held.used = Some(Arc::clone(launch));
            }
        }
    }

    /// Takes note of regions that were dropped and of work that is over.
    fn reclaim(&mut self) {
        for at in self.free.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.places.free(at);
        }
        self.fences.retain(|fence| matches!(fence.last.done().is_over(), Ok(false)));
    }

    /// The last place where `bytes` could lie if the parts that `may_go` went, and those parts.
    pub fn last(&mut self, bytes: u64, may_go: impl Fn(UnitId) -> bool) -> Option<(Range<u64>, Vec<UnitId>)> {
        self.reclaim();
        self.places.last(bytes, may_go)
    }

    /// Takes a place that [`DeviceStore::last`] has found and that is free by now. Waits for what is under way there.
    pub fn take(&mut self, place: &Range<u64>, charge: Charge) -> Result<Region, DeviceError> {
        for fence in self.fences.iter().filter(|fence| overlap(&fence.place, place)) {
            fence.last.done().wait()?;
        }
        self.places.take(place);
        let taken = Taken { at: place.start, free: Arc::clone(&self.free) };
        Ok(Region { line: (place.start / 16) as u32, _place: taken, charge })
    }

    /// The parts that are in the arena.
    pub fn parts(&self) -> Vec<UnitId> {
        self.places.parts().collect()
    }

    /// Bytes of the largest hole.
    pub fn largest_hole(&mut self) -> u64 {
        self.reclaim();
        self.places.largest()
    }

    /// What was copied so far.
    pub fn uploads(&mut self) -> Uploads {
        while let Some(flight) = self.flights.front() {
            if matches!(flight.landed.done.is_over(), Ok(false)) {
                break;
            }
            let Some(flight) = self.flights.pop_front() else { break };
            self.count(&flight);
        }
        self.uploads
    }

    fn count(&mut self, flight: &Flight) {
        let times = flight.copied.times().zip(flight.landed.done.times());
        if let (Some(all), true) = (&mut self.times, flight.timed) {
            all.push_back(
                times.map_or(Duration::ZERO, |(copied, landed)| landed.ended.saturating_sub(copied.started)),
            );
        }
        let all = &mut self.uploads;
        (all.parts, all.bytes) = (all.parts + 1, all.bytes + flight.bytes);
        let Some((copied, landed)) = times else { return };
        all.copying += landed.ended.saturating_sub(copied.started);
        all.page_in += landed.ended.saturating_sub(copied.queued);
    }

    /// From here on somebody takes note of how long each load takes.
    pub fn take_times(&mut self) {
        self.times.get_or_insert_default();
    }

    /// How long the next load took, of those that are over; zero where the device does not say.
    pub fn next_time(&mut self) -> Option<Duration> {
        self.times.as_mut()?.pop_front()
    }

    /// Queues the copy of a part to `place`, and its addresses.
    fn copy(&mut self, unit: UnitId, model: &DeviceModel, place: &Range<u64>) -> Result<Landed, Reason> {
        let (index, arena) = (unit.index as usize, Arc::clone(&self.arena));
        let image = model.image(index)?;
        let fixed = model.fixed.get().ok_or("the model has no place on the device")?;
        let before = |fence: &&Fence| fence.unit == unit || overlap(&fence.place, place);
        let after: Vec<&Done> = self.fences.iter().filter(before).map(|fence| fence.last.done()).collect();
        let bytes = image.bytes().len();
        let queued = || -> Result<(Done, Done), DeviceError> {
            let copied = arena.copy.upload(&arena.buffer, place.start as usize, &image, 0..bytes, &after)?;
            let (word, words) = model.words(index, (place.start / 16) as u32);
            let mut landed = None;
            for (i, words) in words.chunks(64).enumerate() {
                let at = fixed.lines as usize * 16 + word * 4 + i * 64;
                landed = Some(arena.copy.fill(&arena.buffer, at, words, 1, &[])?);
            }
            let landed = match landed {
                Some(landed) => landed,
                None => arena.copy.fill(&arena.buffer, place.start as usize, &[0; 4], 1, &[])?,
            };
            arena.copy.flush()?;
            // Otherwise the host memory stays as long as the model.
            if !model.keep {
                landed.wait()?;
            }
            Ok((copied, landed))
        };
        match queued() {
            Ok((copied, landed)) => {
                let landed = Arc::new(Landing { done: landed, over: AtomicBool::new(false) });
                if self.flights.len() == MOST_FLIGHTS
                    && let Some(oldest) = self.flights.pop_front()
                {
                    self.count(&oldest);
                }
                let timed = self.times.is_some();
                self.flights.push_back(Flight {
                    bytes: bytes as u64,
                    timed,
                    copied,
                    landed: Arc::clone(&landed),
                });
                Ok(landed)
            }
            Err(error) => {
                // What was queued must not come into a place that is another's by then.
                let _ = arena.copy.finish();
                Err(Box::new(error))
            }
        }
    }
}

impl DeviceStore {
    pub fn load(&mut self, unit: UnitId) -> Result<Started<Landed>, Reason> {
        self.reclaim();
        let model = Arc::clone(self.models.get(&unit.model).ok_or("the model is not known to the store")?);
        let part = model.parts.get(unit.index as usize).ok_or("the model has no such part")?;
        let Some(at) = self.places.part(unit, part.bytes) else { return Ok(Started::NoPlace) };
        let place = at..at + part.bytes;
        match self.copy(unit, &model, &place) {
            Ok(landed) => {
                let held = Held { place, landed: Arc::clone(&landed), used: None };
                self.held.insert(unit, held);
                Ok(Started::Ready(landed))
            }
            Err(reason) => {
                self.places.free(at);
                Err(reason)
            }
        }
    }

    pub fn evict(&mut self, unit: UnitId) {
        let Some(Held { place, landed, used }) = self.held.remove(&unit) else { return };
        self.places.free(place.start);
        // A launch that used it has waited for its copy.
        let last = used.map_or(Last::Copy(landed), Last::Launch);
        self.fences.push(Fence { place, unit, last });
    }
}

impl Drop for DeviceStore {
    fn drop(&mut self) {
        // What models keep in host memory is copied from until here.
        let _ = self.arena.copy.finish();
    }
}

/// The store of a memory: of the host or of a device.
pub(crate) enum AnyStore {
    Host(super::arena::Arena),
    Device(DeviceStore),
}

/// What a lease of a part gives.
#[derive(Clone)]
pub(crate) enum Handle {
    Host(super::Image),
    Device(Landed),
}

impl Handle {
    /// The end of a copy to a device that may still be under way.
    pub fn pending(&self) -> Option<&Done> {
        match self {
            Handle::Host(_) => None,
            Handle::Device(landed) => landed.pending(),
        }
    }
}

impl Store for AnyStore {
    type Handle = Handle;

    fn load(&mut self, unit: UnitId, missing: Range<u64>) -> Result<Started<Handle>, Reason> {
        match self {
            AnyStore::Host(arena) => arena.load(unit, missing).map(|s| s.map(Handle::Host)),
            AnyStore::Device(store) => store.load(unit).map(|s| s.map(Handle::Device)),
        }
    }

    fn poll(&mut self) -> Option<Finished<Handle>> {
        match self {
            AnyStore::Host(arena) => arena.poll().map(|f| f.map(Handle::Host)),
            AnyStore::Device(_) => None,
        }
    }

    fn wait(&mut self) -> Option<Finished<Handle>> {
        match self {
            AnyStore::Host(arena) => arena.wait().map(|f| f.map(Handle::Host)),
            AnyStore::Device(_) => None,
        }
    }

    fn evict(&mut self, unit: UnitId, keep: Bytes) {
        match self {
            AnyStore::Host(arena) => arena.evict(unit, keep),
            AnyStore::Device(store) => store.evict(unit),
        }
    }
}
