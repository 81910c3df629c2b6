//! One sequence on a device: weights, cache and activations in one arena, allocated once, and its steps.

use super::compile::{OnDevice, Plan, SPAN, Table, compile, kv_code, record_bytes, tile};
use super::formats::{Stored, grain_code};
use super::gpu::{Gpu, Numbers, Runner};
use super::phase::{NONE, Phase};
use super::source::Traits;
use crate::kv::{KvLayout, PAGE};
use crate::loader::Model;
use crate::model::op::{MatrixId, RopeTable, Slot, VectorId};
use crate::weights::WeightError;
use nexaquant_opencl::{Buffer, Error, Kernel, Queue};
use std::ops::Range;

/// What a session on a device is opened with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub context: usize,
    pub batch: usize,
    pub outputs: usize,
}

/// Hands out places of the arena, in order; whole lines of 256 bytes.
#[derive(Default)]
struct Places {
    at: usize,
}

impl Places {
    /// The line where `bytes` may lie.
    fn take(&mut self, bytes: usize) -> u32 {
        let line = self.at / 16;
        self.at += bytes.next_multiple_of(256);
        line as u32
    }
}

/// One sequence on a device.
pub(crate) struct DeviceSession {
    gpu: Gpu,
    queue: Queue,
    /// For one token, and for several.
    kernels: [Kernel; 2],
    arena: Buffer,
    sync: Buffer,
    /// For one token, and for several.
    tables: [(Table, u32, Vec<u32>); 2],
    lines: u32,
    pages: u32,
    tokens_at: u32,
    logits_at: u32,
    vocab: usize,
    /// Most pieces that one token's attention is cut into.
    max_splits: usize,
    logits: Vec<f32>,
    raw: Vec<u8>,
}

impl std::fmt::Debug for DeviceSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceSession({}, {} bytes)", self.gpu.path(), self.arena.bytes())
    }
}

/// Why a session cannot be opened on a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The device refuses.
    #[error(transparent)]
    Device(#[from] Error),
    /// A matrix has a format that the device has no code for.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// More than its addresses reach.
    #[error(
        "the model, its cache and its buffers need {need} bytes; {device} gives {piece} in one piece; lower --ctx or use a smaller model"
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

impl DeviceSession {
    /// Puts everything on the device.
    pub fn open(
        gpu: &Gpu,
        model: &Model,
        kv: &KvLayout,
        ropes: &[RopeTable],
        sizes: Sizes,
    ) -> Result<Self, OpenError> {
        let (arch, weights, file) = (model.architecture(), model.weights(), model.file());
        let matrices: Vec<OnDevice> = (0..arch.matrices.len())
            .map(|i| {
                let (format, rows, cols, scale, bytes) = weights.raw(MatrixId(i), file);
                let Some(stored) = Stored::choose(format, bytes, cols) else {
                    unreachable!("every format of the registry has a stored form")
                };
                let grain = weights.kernel(MatrixId(i)).grain();
                OnDevice { stored, rows, cols, scale, grain }
            })
            .collect();

        let mut places = Places::default();
        let mut slots = [(0, 0); 8];
        for slot in Slot::ALL {
            let rows = if slot == Slot::Logits { sizes.outputs } else { sizes.batch };
            let width = arch.slot_width(slot);
            slots[slot as usize] = (places.take(rows * width * 4), width);
        }
        let record = matrices.iter().filter_map(|m| Some(record_bytes(m.cols, m.grain?)));
        let records = places.take(sizes.batch * record.max().unwrap_or(0));
        let tokens = places.take(sizes.batch * 4);
        let maxima = places.take(gpu.groups * 8);
        let layers = 0..arch.hparams.layers.len();
        let heads = layers
            .map(|i| {
                let kv_heads = arch.hparams.layers[i].kv_heads;
                kv_heads * (arch.hparams.heads / kv_heads).div_ceil(tile(gpu, arch, i, true))
            })
            .min()
            .unwrap_or(1);
        let max_splits = (gpu.groups / heads).clamp(1, 32);
        let partial = places.take(arch.hparams.heads * max_splits * (arch.hparams.head_dim + 2) * 4);
        let tables = places.take(2 * 4 * super::phase::WORDS * table_length(arch));
        let lines = places.take(matrices.len() * 4);
        let page_count = sizes.context.div_ceil(PAGE);
        let pages = places.take(page_count * 4);
        let mut uploads: Vec<(u32, Vec<u8>)> = Vec::new();
        let bytes_of = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let mut put = |places: &mut Places, values: Vec<u8>| {
            let line = places.take(values.len());
            uploads.push((line, values));
            line
        };
        let vectors: Vec<u32> = (0..arch.vectors.len())
            .map(|i| put(&mut places, bytes_of(weights.vector(VectorId(i)))))
            .collect();
        let rope_lines: Vec<u32> =
            ropes.iter().map(|table| put(&mut places, bytes_of(&angles(table, sizes.context)))).collect();
        let first_page = places.take(page_count * kv.page_bytes());
        let page_lines: Vec<u32> =
            (0..page_count).map(|i| first_page + (i * kv.page_bytes() / 16) as u32).collect();
        let matrix_lines: Vec<u32> = matrices
            .iter()
            .map(|m| places.take(m.stored.planes(m.rows, m.cols).last().copied().unwrap_or(0)))
            .collect();

        let found = gpu.found();
        if places.at as u64 > found.piece.min(16 << 32) {
            let (need, device, piece) = (places.at as u64, found.name.clone(), found.piece);
            return Err(OpenError::TooBig { need, device, piece });
        }
        let fixed = gpu.shape.rows * gpu.shape.group * 4 + 2 * 4 * super::phase::WORDS + 64;
        let plan = Plan {
            gpu,
            arch,
            weights,
            matrices: &matrices,
            kv,
            slots,
            vectors: &vectors,
            ropes: &rope_lines,
            records,
            tokens,
            partial,
            maxima,
            max_splits: max_splits as u32,
            local: (found.local as usize).saturating_sub(fixed),
        };
        let compiled = [compile(&plan, true), compile(&plan, false)];
        let traits = Traits {
            codes: matrices.iter().map(OnDevice::code).collect(),
            grains: matrices.iter().filter_map(|m| m.grain).fold(0, |all, g| all | 1 << grain_code(Some(g))),
            kv: kv_code(kv.ty),
            head_dim: arch.hparams.head_dim,
        };
        let kernels = [gpu.kernel(&traits, true)?, gpu.kernel(&traits, false)?];
        let (queue, arena, sync) =
            (gpu.device.queue()?, gpu.device.buffer(places.at)?, gpu.device.buffer(64)?);
        queue.zero(&sync, 0..64)?;
        let mut at = tables;
        let tables = compiled.map(|table| {
            let (bytes, line) = (Phase::bytes(&table.phases), at);
            at += (bytes.len() / 16) as u32;
            uploads.push((line, bytes));
            let kinds = table.phases.iter().map(Phase::kind).collect();
            (table, line, kinds)
        });
        let words = |lines: &[u32]| lines.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        uploads.push((lines, words(&matrix_lines)));
        uploads.push((pages, words(&page_lines)));
        for (line, bytes) in uploads {
            queue.write(&arena, line as usize * 16, &bytes)?;
        }
        let mut packed = Vec::new();
        for (i, (m, line)) in matrices.iter().zip(&matrix_lines).enumerate() {
            let (format, rows, cols, _, bytes) = weights.raw(MatrixId(i), file);
            packed.clear();
            packed.resize(m.stored.planes(rows, cols).last().copied().unwrap_or(0), 0);
            m.stored.pack(format, bytes, rows, cols, &mut packed);
            queue.write(&arena, *line as usize * 16, &packed)?;
        }
        Ok(Self {
            gpu: gpu.clone(),
            queue,
            kernels,
            arena,
            sync,
            tables,
            lines,
            pages,
            tokens_at: tokens,
            logits_at: slots[Slot::Logits as usize].0,
            vocab: arch.vocab,
            max_splits,
            logits: vec![0.0; sizes.outputs * arch.vocab],
            raw: Vec::new(),
        })
    }

    /// Bytes held on the device.
    pub fn bytes(&self) -> usize {
        self.arena.bytes()
    }
    /// Which path steps take, for people.
    pub fn path(&self) -> String {
        self.gpu.path()
    }

    /// Logits of the `row`-th wanted token of the last step.
    pub fn logits(&mut self, row: usize) -> &mut [f32] {
        &mut self.logits[row * self.vocab..(row + 1) * self.vocab]
    }

    /// One step; the logits of the tokens `outputs` are there afterwards.
    pub fn step(&mut self, tokens: &[u32], pos: usize, outputs: &Range<usize>) -> Result<(), Error> {
        self.queue_step(tokens, pos, outputs, false)?;
        let n = outputs.len() * self.vocab;
        let mut raw = std::mem::take(&mut self.raw);
        raw.resize(n * 4, 0);
        let done = self.fetch(self.logits_at, &mut raw);
        self.raw = raw;
        done?;
        for (x, bytes) in self.logits.iter_mut().zip(self.raw.chunks_exact(4)) {
            *x = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(())
    }

    /// One step; the likeliest token after its last one, and nothing else comes back.
    pub fn step_greedy(&mut self, tokens: &[u32], pos: usize) -> Result<u32, Error> {
        self.queue_step(tokens, pos, &(tokens.len() - 1..tokens.len()), true)?;
        let mut word = [0; 4];
        self.fetch(self.tokens_at, &mut word)?;
        match u32::from_le_bytes(word) {
            NONE => {
                let name = "the logits are no numbers; the model file is damaged".to_owned();
                Err(Error::Call { call: "choosing the likeliest token", name })
            }
            token => Ok(token),
        }
    }

    /// Waits for the step's end and takes what lies at `line`. An error if work-groups waited in vain for each other, which
    /// only a device that does not run all of them at once can bring about.
    fn fetch(&self, line: u32, to: &mut [u8]) -> Result<(), Error> {
        let at = line as usize * 16;
        if !self.gpu.persistent || self.gpu.groups == 1 {
            return self.queue.read(&self.arena, at, to);
        }
        let mut lost = [0; 4];
        if to.is_empty() {
            self.queue.read(&self.sync, 8, &mut lost)?;
        } else {
            self.queue.read_both((&self.sync, 8, &mut lost), (&self.arena, at, to))?;
        }
        if lost == [0; 4] {
            return Ok(());
        }
        self.queue.zero(&self.sync, 0..64)?;
        let name = "work-groups did not meet; use --gpu-launches".to_owned();
        Err(Error::Call { call: "a step in one launch", name })
    }

    fn queue_step(
        &mut self,
        tokens: &[u32],
        pos: usize,
        outputs: &Range<usize>,
        best: bool,
    ) -> Result<(), Error> {
        let single = tokens.len() == 1;
        let (table, line, kinds) = &self.tables[usize::from(!single)];
        if !single {
            let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
            self.queue.write(&self.arena, self.tokens_at as usize * 16, &bytes)?;
        }
        let splits = if single { (pos + 1).div_ceil(SPAN).clamp(1, self.max_splits) } else { 1 };
        let numbers = Numbers {
            pos: pos as u32,
            tokens: tokens.len() as u32,
            token: if single { tokens[0] } else { NONE },
            outputs: (outputs.start as u32, outputs.len() as u32),
            splits: splits as u32,
        };
        let runner = Runner {
            gpu: &self.gpu,
            queue: &self.queue,
            kernel: &self.kernels[usize::from(!single)],
            arena: &self.arena,
            sync: &self.sync,
            local: table.local.max(16).next_multiple_of(16),
            table: *line,
            lines: self.lines,
            pages: self.pages,
        };
        let end = if outputs.is_empty() {
            table.body
        } else if best {
            table.phases.len()
        } else {
            table.head
        };
        runner.run(0..end, kinds, numbers)
    }
}

/// More phases than any table of the model has.
fn table_length(arch: &crate::model::Architecture) -> usize {
    16 + arch.units.iter().map(|u| 4 * u.ops.len()).sum::<usize>()
}

/// Cos and sin of every position, as the CPU has them.
fn angles(table: &RopeTable, context: usize) -> Vec<f32> {
    let mut all = Vec::with_capacity(context * 2 * table.frequencies.len());
    for pos in 0..context {
        let angle = |f: &f64| pos as f64 * f;
        all.extend(table.frequencies.iter().map(|f| (angle(f).cos() * table.magnitude) as f32));
        all.extend(table.frequencies.iter().map(|f| (angle(f).sin() * table.magnitude) as f32));
    }
    all
}
