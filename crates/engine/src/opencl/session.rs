//! One sequence on a device: its cache and the buffers of its steps in a memory there, and its steps.

use super::compile::{SPAN, Steps, Table};
use super::gpu::{Gpu, Numbers, Runner};
use super::layout::{Layout, MOST_BEST, Sizes};
use super::model::DeviceModel;
use super::phase::{Do, NONE, Phase, WORDS};
use super::placement::Share;
use super::tables::{beside, kinds, plan, put_angles};
use crate::kv::{KvLayout, PAGE};
use crate::loader::Model;
use crate::m3::{DeviceArena, Handle, Memory, MemoryError, Placed, Region, Stopped, Tenancy, whole};
use crate::model::op::{Op, RopeTable, Slot};
use crate::sampler::Wanted;
use crate::session::EvalError;
use nexaquant_opencl::{Done, Error, Queue};
use nexaquant_residency::{Class, Lease};
use std::ops::Range;
use std::sync::{Arc, PoisonError};

/// The buffers of steps, and the tables of what these do: for one token, and for several if there is room.
struct Scratch {
    region: Region,
    layout: Layout,
    sizes: Sizes,
    tables: Vec<Ready>,
}

/// A step that was begun before anybody asked for it: after the likeliest token, at that token's position.
struct Ahead {
    pos: usize,
    token: u32,
    done: Arc<Done>,
}

/// A table on the device.
struct Ready {
    kind: Steps,
    table: Table,
    line: u32,
}

/// One sequence on a device.
pub(crate) struct DeviceSession {
    arena: Arc<DeviceArena>,
    device: Arc<DeviceModel>,
    kv: KvLayout,
    ropes: Vec<RopeTable>,
    sizes: Sizes,
    /// Angles of all positions, where the memory is this session's alone.
    angles: Option<(Region, Vec<u32>)>,
    /// Of the model's parts, for the same case.
    held: Vec<Lease<Handle>>,
    pages: Vec<Region>,
    scratch: Option<Scratch>,
    ahead: Option<Ahead>,
    logits: Vec<f32>,
    /// Bytes on their way.
    raw: Vec<u8>,
    /// What a step begins with: rows of the embedding in the file's format, or of the residual stream.
    rows: Vec<u8>,
    /// After everything that was paid for.
    tenancy: Tenancy,
}

impl std::fmt::Debug for DeviceSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceSession({}, {} bytes)", self.path(), self.bytes())
    }
}

/// Why a session cannot be opened on a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The device refuses.
    #[error(transparent)]
    Device(#[from] Error),
    /// Its memory has no room.
    #[error(transparent)]
    Memory(Box<MemoryError>),
    /// More than the device gives, or than addresses reach.
    #[error(
        "the model, its cache and its buffers need {need} bytes; {device} gives {piece} in one piece; lower --ctx, keep more layers on the CPU (--gpu-layers auto sees how many fit), or let it stream with --budget"
    )]
    TooBig {
        /// Bytes needed.
        need: u64,
        /// The device.
        device: String,
        /// Bytes it gives.
        piece: u64,
    },
}

impl From<MemoryError> for OpenError {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::Device(Error::OutOfMemory { device, bytes: need, piece, .. }) => {
                OpenError::TooBig { need, device, piece }
            }
            MemoryError::Device(error) => OpenError::Device(error),
            error => OpenError::Memory(Box::new(error)),
        }
    }
}

impl DeviceSession {
    /// A session with a memory of its own, in which the device's share of the model stays.
    pub fn whole(
        gpu: &Gpu,
        model: &Model,
        share: &Share,
        ropes: Vec<RopeTable>,
        sizes: Sizes,
    ) -> Result<Self, OpenError> {
        let (device, kv) = (whole(gpu, model, share.first)?, &share.kv);
        let session = beside(gpu, &device, kv, &ropes, sizes);
        let placed = Memory::whole(gpu, device, session)?;
        let mut this = Self::new(placed.enter(), kv, ropes, sizes);
        let mut bytes = Vec::new();
        let mut lines = Vec::new();
        for table in &this.ropes {
            lines.push((bytes.len() / 16) as u32);
            put_angles(&mut bytes, table, 0..sizes.context);
            bytes.resize(bytes.len().next_multiple_of(256), 0);
        }
        let region = this.tenancy.region(Class::Scratch, bytes.len(), "angles")?;
        this.arena.compute().write(&this.arena.buffer, region.line as usize * 16, &bytes)?;
        for line in &mut lines {
            *line += region.line;
        }
        this.angles = Some((region, lines));
        // Not in the middle of the first answer.
        for single in [true, false] {
            this.device.kernel(this.kv.ty, single)?;
        }
        this.held = this.tenancy.all()?;
        this.ready(sizes.batch, sizes.outputs, sizes.context).map_err(|error| match error {
            Stopped::Memory(error) => OpenError::from(error),
            Stopped::Device(error) => OpenError::Device(error),
        })?;
        Ok(this)
    }

    /// Bytes that such a session and its share take of the device.
    pub fn need(
        gpu: &Gpu,
        model: &Model,
        share: &Share,
        ropes: &[RopeTable],
        sizes: Sizes,
    ) -> Result<u64, OpenError> {
        let device = whole(gpu, model, share.first)?;
        Ok(device.bytes() + beside(gpu, &device, &share.kv, ropes, sizes))
    }

    /// A session of a model in a memory with a budget.
    pub fn placed(placed: &Placed, kv: &KvLayout, ropes: Vec<RopeTable>, mut sizes: Sizes) -> Option<Self> {
        let tenancy = placed.enter();
        let (arena, _) = tenancy.device()?;
        // A prompt's buffers take room from the weights; a small part of the budget is enough for them.
        let share = placed.memory().budget() / 8;
        let bytes = |sizes| Layout::new(&arena.gpu, placed.model(), &ropes, sizes, true).bytes as u64;
        while sizes.batch > 1 && bytes(sizes) > share {
            sizes.batch /= 2;
            sizes.outputs = sizes.outputs.min(sizes.batch);
        }
        let this = Self::new(tenancy, kv, ropes, sizes);
        // Not in the middle of the first answer. A device that cannot compile them says so in the step that needs them.
        for single in [true, false] {
            drop(this.device.kernel(kv.ty, single));
        }
        Some(this)
    }

    fn new(tenancy: Tenancy, kv: &KvLayout, ropes: Vec<RopeTable>, sizes: Sizes) -> Self {
        let Some((arena, device)) = tenancy.device() else { unreachable!("opened on a device") };
        let vocab = device.model.architecture().vocab;
        Self {
            arena,
            device,
            kv: kv.clone(),
            ropes,
            sizes,
            angles: None,
            held: Vec::new(),
            pages: Vec::new(),
            scratch: None,
            ahead: None,
            logits: vec![0.0; sizes.outputs * vocab],
            raw: Vec::new(),
            rows: Vec::new(),
            tenancy,
        }
    }

    /// Bytes held on the device, without weights that others may use, too.
    pub fn bytes(&self) -> usize {
        let scratch = self.scratch.as_ref().map(|scratch| &scratch.region);
        let angles = self.angles.as_ref().map(|(region, _)| region);
        self.pages.iter().chain(scratch).chain(angles).map(|region| region.bytes().0 as usize).sum()
    }
    /// Which path steps take, for people.
    pub fn path(&self) -> String {
        self.arena.gpu.path()
    }
    /// What it was opened with, smaller where the budget is small.
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }
    /// Logits of the `row`-th wanted token of the last step.
    pub fn logits(&mut self, row: usize) -> &mut [f32] {
        let vocab = self.device.model.architecture().vocab;
        &mut self.logits[row * vocab..(row + 1) * vocab]
    }
    /// The residual stream of the `row`-th token of the last step; nothing where its buffers are gone.
    pub fn residual(&self, row: usize) -> Vec<f32> {
        let Some(Scratch { layout, sizes, .. }) = &self.scratch else { return Vec::new() };
        let (line, width) = layout.slots[Slot::X as usize];
        let mut bytes = vec![0; if row < sizes.batch { width * 4 } else { 0 }];
        let at = line as usize * 16 + row * width * 4;
        if self.arena.compute().read(&self.arena.buffer, at, &mut bytes).is_err() {
            return Vec::new();
        }
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
    /// What the next step begins with where the host has computed the first layers: their result, a row a token.
    pub fn set_residual(&mut self, rows: &[f32]) {
        self.rows.clear();
        self.rows.extend(rows.iter().flat_map(|x| x.to_le_bytes()));
    }
    /// Gives up the buffers until the next step.
    pub fn rest(&mut self) {
        if !self.tenancy.is_whole() {
            self.scratch = None;
        }
    }
    /// Gives back the cache's pages that `positions` positions do not need.
    pub fn shrink(&mut self, positions: usize) {
        if !self.tenancy.is_whole() {
            self.pages.truncate(positions.div_ceil(PAGE));
        }
    }

    /// Makes room for a step of `tokens` tokens, and for `positions` in the cache.
    fn ready(&mut self, tokens: usize, outputs: usize, positions: usize) -> Result<(), Stopped> {
        let whole = self.tenancy.is_whole();
        // As large as this kind of step needs.
        let fits =
            |s: &Sizes| s.batch >= tokens && s.outputs >= outputs && (whole || tokens > 1 || s.batch == 1);
        // The buffers lie next to the weights, pages behind them: so what the buffers give up the weights can have.
        let more = self.pages.len() * PAGE < positions;
        let mut sizes = self.scratch.as_ref().map(|scratch| scratch.sizes).filter(fits);
        if sizes.is_none() || (more && !whole) {
            self.scratch = None;
            let one = Sizes { batch: 1, outputs: 1, ..self.sizes };
            sizes = Some(if tokens == 1 && !whole { one } else { self.sizes });
        }
        while self.pages.len() * PAGE < positions {
            self.pages.push(self.tenancy.region(Class::Kv, self.kv.page_bytes(), "a page of the cache")?);
        }
        let placed = self.scratch.is_none();
        if let (true, Some(sizes)) = (placed, sizes) {
            self.scratch = Some(self.place(sizes)?);
        }
        if let (true, Some(scratch)) = (more || placed, &self.scratch) {
            let words: Vec<u8> = self.pages.iter().flat_map(|page| page.line.to_le_bytes()).collect();
            let at = scratch.layout.pages as usize * 16;
            self.arena.compute().write(&self.arena.buffer, at, &words)?;
        }
        Ok(())
    }

    /// Gives the buffers a place, and writes the tables.
    fn place(&self, sizes: Sizes) -> Result<Scratch, Stopped> {
        let (gpu, device) = (&self.arena.gpu, &*self.device);
        let layout = Layout::new(gpu, &device.model, &self.ropes, sizes, self.angles.is_none());
        let kinds = kinds(sizes, layout.max_splits);
        let compiled = |layout: &Layout| -> Vec<Table> {
            let angles = self.angles.as_ref().map_or(&layout.angles, |(_, lines)| lines);
            kinds.iter().map(|kind| plan(gpu, device, &self.kv, layout, angles, *kind)).collect()
        };
        let bytes = |table: &Table| (table.phases.len() * WORDS * 4).next_multiple_of(256);
        let tables: usize = compiled(&layout).iter().map(bytes).sum();
        let what = "the activation buffers";
        let region = self.tenancy.region(Class::Scratch, layout.bytes + tables, what)?;
        let layout = layout.moved(region.line);
        let mut line = region.line + (layout.bytes / 16) as u32;
        let mut all = Vec::new();
        let mut tables = Vec::new();
        for (&kind, table) in kinds.iter().zip(compiled(&layout)) {
            all.extend(Phase::bytes(&table.phases));
            all.resize(all.len().next_multiple_of(256), 0);
            let next = line + (bytes(&table) / 16) as u32;
            tables.push(Ready { kind, table, line });
            line = next;
        }
        let at = region.line as usize * 16 + layout.bytes;
        self.arena.compute().write(&self.arena.buffer, at, &all)?;
        Ok(Scratch { region, layout, sizes, tables })
    }

    /// One step; the logits of the tokens `outputs` are there afterwards.
    pub fn step(&mut self, tokens: &[u32], pos: usize, outputs: &Range<usize>) -> Result<(), EvalError> {
        let vocab = self.device.model.architecture().vocab;
        let mut raw = std::mem::take(&mut self.raw);
        raw.clear();
        raw.resize(outputs.len() * vocab * 4, 0);
        let done = self.run(tokens, pos, outputs, Wanted::All, &mut raw);
        self.take_logits(raw);
        done
    }

    fn take_logits(&mut self, raw: Vec<u8>) {
        for (x, bytes) in self.logits.iter_mut().zip(raw.chunks_exact(4)) {
            *x = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        self.raw = raw;
    }

    /// One step; the likeliest token after its last one, and nothing else comes back. Where all stays on the device the next
    /// step begins at once, with that token: whoever wants another asks for another, and nothing is lost.
    pub fn step_greedy(&mut self, tokens: &[u32], pos: usize) -> Result<u32, EvalError> {
        let mut word = [0; 4];
        let last = tokens.len() - 1;
        if self.embeds() {
            let begun = self.ahead.take().filter(|ahead| tokens == [ahead.token] && pos == ahead.pos);
            let next = self.guarded(|this, queue| {
                let done = match begun {
                    Some(ahead) => Some(ahead.done),
                    None => this.begin(queue, tokens, pos, &(last..last + 1), Wanted::Largest)?.0,
                };
                let next = if pos + last + 1 < this.sizes.context {
                    this.begin(queue, &[NONE], pos + last + 1, &(0..1), Wanted::Largest)?.0
                } else {
                    None
                };
                done.map_or(Ok(()), |done| done.wait())?;
                let line = this.scratch.as_ref().map_or(0, |scratch| scratch.layout.tokens);
                fetch(&this.arena, this.arena.copies(), token_at(line, pos + last), &mut word)?;
                Ok(next)
            })?;
            let (pos, token) = (pos + last + 1, u32::from_le_bytes(word));
            self.ahead = next.map(|done| Ahead { pos, token, done });
        } else {
            self.run(tokens, pos, &(last..last + 1), Wanted::Largest, &mut word)?;
        }
        match u32::from_le_bytes(word) {
            NONE => {
                let name = "the logits are no numbers; the model file is damaged".to_owned();
                Err(Error::Call { call: "choosing the likeliest token", name }.into())
            }
            token => Ok(token),
        }
    }

    /// Whether steps find the token's embedding on the device, so that one can begin with what the one before chooses.
    fn embeds(&self) -> bool {
        let first = self.scratch.as_ref().and_then(|scratch| scratch.tables[0].table.phases.first());
        self.tenancy.is_whole() && first.is_some_and(|phase| phase.kind() == Do::Embed as u32)
    }

    /// One step; `k` of the likeliest tokens after its last one with their logits, in no order, and nothing else comes back. Of
    /// equals those with lower ids; logits that are no numbers come before all others. All tokens, where there are no more than `k`.
    pub fn step_best(&mut self, tokens: &[u32], pos: usize, k: usize) -> Result<Vec<(u32, f32)>, EvalError> {
        let k = k.min(MOST_BEST).min(self.device.model.architecture().vocab);
        let mut pairs = vec![0; 8 * k];
        self.run(tokens, pos, &(tokens.len() - 1..tokens.len()), Wanted::Best(k), &mut pairs)?;
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(pairs.chunks_exact(8).map(|b| (word(&b[4..]), f32::from_bits(word(b)))).collect())
    }

    /// Brings the logits of the last step's one output, of which only the best came back, to where [`Self::logits`] finds them. Must
    /// come before the session rests.
    pub fn bring_logits(&mut self) -> Result<(), EvalError> {
        let Some(Scratch { layout, .. }) = &self.scratch else {
            unreachable!("the step's buffers are still there")
        };
        let (line, width) = layout.slots[Slot::Logits as usize];
        let mut raw = std::mem::take(&mut self.raw);
        raw.clear();
        raw.resize(width * 4, 0);
        let done = self.arena.compute().read(&self.arena.buffer, line as usize * 16, &mut raw);
        self.take_logits(raw);
        Ok(done?)
    }

    fn run(
        &mut self,
        tokens: &[u32],
        pos: usize,
        outputs: &Range<usize>,
        what: Wanted,
        to: &mut [u8],
    ) -> Result<(), EvalError> {
        self.ahead = None;
        let ready = self.ready(tokens.len(), outputs.len(), pos + tokens.len());
        self.guarded(|this, queue| {
            ready?;
            let (last, from) = this.begin(queue, tokens, pos, outputs, what)?;
            let to = if outputs.is_empty() { &mut [] } else { to };
            fetch(&this.arena, queue, from, to)?;
            // A copy that failed shows up here: what waited for it was not run.
            last.map_or(Ok(true), |last| last.is_over())?;
            Ok(())
        })
    }

    /// Does something with the queue that computes. If that fails, waits for what is under way and forgets what cannot be relied on.
    fn guarded<R>(
        &mut self,
        step: impl FnOnce(&mut Self, &Queue) -> Result<R, Stopped>,
    ) -> Result<R, EvalError> {
        let arena = Arc::clone(&self.arena);
        let queue = arena.compute();
        let done = step(self, &queue);
        if done.is_err() {
            arena.settle(&queue);
        }
        drop(queue);
        self.tenancy.tell();
        done.map_err(|stopped| {
            if !self.tenancy.is_whole() {
                self.tenancy.forget();
            }
            match stopped {
                Stopped::Memory(error) => EvalError::from(error),
                Stopped::Device(error) => EvalError::Device(error),
            }
        })
    }

    /// Begins a step: its last command, and the line where its results will be. A token of `NONE` is the one that the step before chooses.
    fn begin(
        &mut self,
        queue: &Queue,
        tokens: &[u32],
        pos: usize,
        outputs: &Range<usize>,
        what: Wanted,
    ) -> Result<(Option<Arc<Done>>, usize), Stopped> {
        self.write_inputs(queue, tokens, pos)?;
        let (arena, device) = (&self.arena, &self.device);
        let Some(scratch) = &self.scratch else { unreachable!("made by `ready`") };
        let single = tokens.len() == 1;
        let splits = if single { (pos + 1).div_ceil(SPAN).clamp(1, scratch.layout.max_splits) } else { 1 };
        let kind = if !single {
            Steps::Many
        } else if splits > 1 {
            Steps::Pieces
        } else {
            Steps::One
        };
        let Some(Ready { table, line, .. }) = scratch.tables.iter().find(|ready| ready.kind == kind) else {
            unreachable!("made by `ready`")
        };
        let numbers = Numbers {
            pos: pos as u32,
            tokens: tokens.len() as u32,
            token: if single { tokens[0] } else { NONE },
            outputs: (outputs.start as u32, outputs.len() as u32),
            splits: splits as u32,
            best: if let Wanted::Best(k) = what { k as u32 } else { 0 },
        };
        let kernel = device.kernel(self.kv.ty, single)?;
        let kernel = kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let runner = Runner {
            gpu: &arena.gpu,
            queue,
            kernel: &kernel,
            arena: &arena.buffer,
            sync: &arena.sync,
            local: table.local.max(16).next_multiple_of(16),
            table: *line,
            lines: device.fixed.get().map_or(0, |fixed| fixed.lines),
            pages: scratch.layout.pages,
        };
        let head = !outputs.is_empty();
        let end = match what {
            _ if !head => table.body,
            Wanted::All => table.head,
            Wanted::Largest | Wanted::Best(_) => table.phases.len(),
        };
        let last = if self.held.is_empty() {
            let start = |part: usize| if part == 0 { 0 } else { table.ends[part - 1] };
            let launch = |parts: Range<usize>, after: &[&Done]| {
                let last = head && parts.end == table.ends.len();
                let end = if last { end } else { table.ends[parts.end - 1] };
                let done = runner.run(start(parts.start)..end, numbers, after)?;
                // Copies wait for it.
                queue.flush()?;
                Ok(done)
            };
            self.tenancy.launch(head, launch)?
        } else {
            let done = runner.run(0..end, numbers, &[])?.map(Arc::new);
            queue.flush()?;
            done
        };
        let layout = &scratch.layout;
        let from = match what {
            Wanted::All => layout.slots[Slot::Logits as usize].0 as usize * 16,
            Wanted::Largest => token_at(layout.tokens, pos + tokens.len() - 1),
            Wanted::Best(_) => layout.best as usize * 16,
        };
        Ok((last, from))
    }

    /// Tokens, or the embedding's rows and the angles of their positions. Where the host has computed the first layers, what it has
    /// made of the tokens in place of them.
    fn write_inputs(&mut self, queue: &Queue, tokens: &[u32], pos: usize) -> Result<(), Stopped> {
        let Some(Scratch { layout, .. }) = &self.scratch else { unreachable!("made by `ready`") };
        let arch = self.device.model.architecture();
        let (buffer, above) = (&self.arena.buffer, self.device.first > 0);
        if self.tenancy.is_whole() {
            if above {
                queue.write(buffer, layout.slots[Slot::X as usize].0 as usize * 16, &self.rows)?;
            } else if tokens.len() > 1 {
                let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
                queue.write(buffer, layout.tokens as usize * 16, &bytes)?;
            }
            return Ok(());
        }
        if !above {
            self.tenancy.gather(tokens, &mut self.rows)?;
        }
        let (x, width) = layout.slots[Slot::X as usize];
        let first = layout.angles.first().copied().unwrap_or(x);
        let at = |line: u32| (line - first) as usize * 16;
        self.raw.clear();
        for (table, line) in self.ropes.iter().zip(&layout.angles) {
            self.raw.resize(at(*line), 0);
            put_angles(&mut self.raw, table, pos..pos + tokens.len());
        }
        self.raw.resize(at(x), 0);
        if above {
            self.raw.extend_from_slice(&self.rows);
            return Ok(queue.write(buffer, first as usize * 16, &self.raw)?);
        }
        let (weights, table) = (self.device.model.weights(), arch.embedding);
        let scale = arch.units.iter().flat_map(|unit| &unit.ops).find_map(|op| match op {
            Op::Embed { scale, .. } => Some(*scale),
            _ => None,
        });
        let mut row = vec![0.0; width];
        for bytes in self.rows.chunks_exact(weights.row_bytes(table).max(1)) {
            weights.of_rows(table, bytes).dequantize_row(0, &mut row);
            if let Some(scale) = scale.filter(|scale| *scale != 1.0) {
                for x in &mut row {
                    *x *= scale;
                }
            }
            self.raw.extend(row.iter().flat_map(|x| x.to_le_bytes()));
        }
        Ok(queue.write(buffer, first as usize * 16, &self.raw)?)
    }
}

/// Where the likeliest token after the one at `pos` is put: in turns in two places, so that one can be read while the next step runs.
fn token_at(line: u32, pos: usize) -> usize {
    line as usize * 16 + pos % 2 * 4
}

/// Waits for what the queue has under way and takes what lies at byte `at`. An error if work-groups waited in vain for each other, which
/// only a device that does not run all of them at once can bring about.
fn fetch(arena: &DeviceArena, queue: &Queue, at: usize, to: &mut [u8]) -> Result<(), Error> {
    if !arena.gpu.persistent || arena.gpu.groups == 1 {
        return queue.read(&arena.buffer, at, to);
    }
    let mut lost = [0; 4];
    if to.is_empty() {
        queue.read(&arena.sync, 8, &mut lost)?;
    } else {
        queue.read_both((&arena.sync, 8, &mut lost), (&arena.buffer, at, to))?;
    }
    if lost == [0; 4] {
        return Ok(());
    }
    let name = "work-groups did not meet; use --gpu-launches".to_owned();
    Err(Error::Call { call: "a step in one launch", name })
}
