//! Where the buffers of a session's steps lie in its region of a device's memory, and how much that is.

use super::compile::{record_bytes, tile};
use super::gpu::Gpu;
use super::phase::WORDS;
use super::placement::Share;
use crate::kv::{KvLayout, PAGE};
use crate::loader::Model;
use crate::model::op::{MatrixId, RopeTable, Slot};
use nexaquant_kernels::KvType;
use nexaquant_residency::Bytes;

/// What a session on a device is opened with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub context: usize,
    /// Tokens of a step, and of those whose logits are wanted, at most.
    pub batch: usize,
    pub outputs: usize,
}

/// Most tokens that a step finds the likeliest of, in place of all logits.
pub(crate) const MOST_BEST: usize = 256;

/// Tokens of one work-group's share of a vocabulary that may be among the likeliest, at most.
pub(super) fn each_best(gpu: &Gpu, vocab: usize) -> usize {
    MOST_BEST.min(vocab.div_ceil(gpu.groups))
}

/// Places in a region, in lines of 16 bytes from its beginning.
#[derive(Debug)]
pub(super) struct Layout {
    /// Bytes of everything but the tables of phases, which follow.
    pub bytes: usize,
    /// Of the angles of the step's positions, for each rope table; with [`Slot::X`] behind them.
    pub angles: Vec<u32>,
    /// With the width of each slot.
    pub slots: [(u32, usize); 8],
    pub records: u32,
    pub tokens: u32,
    pub maxima: u32,
    /// Logits and ids of the likeliest tokens: of all, and of each work-group's share.
    pub best: u32,
    pub partial: u32,
    pub pages: u32,
    /// Most pieces that one token's attention is cut into.
    pub max_splits: usize,
}

/// Hands out places, in order; whole lines of 256 bytes.
#[derive(Default)]
struct Places {
    at: usize,
}

impl Places {
    fn take(&mut self, bytes: usize) -> u32 {
        let line = self.at / 16;
        self.at += bytes.next_multiple_of(256);
        line as u32
    }
}

impl Layout {
    /// `angles`: the step's own have a place here.
    pub fn new(gpu: &Gpu, model: &Model, ropes: &[RopeTable], sizes: Sizes, angles: bool) -> Self {
        let (arch, weights) = (model.architecture(), model.weights());
        let mut places = Places::default();
        let ropes = if angles { ropes } else { &[] };
        let angles = ropes.iter().map(|t| places.take(sizes.batch * 2 * t.frequencies.len() * 4)).collect();
        let mut slots = [(0, 0); 8];
        for slot in Slot::ALL {
            let rows = if slot == Slot::Logits { sizes.outputs } else { sizes.batch };
            let width = arch.slot_width(slot);
            slots[slot as usize] = (places.take(rows * width * 4), width);
        }
        let record = arch
            .matrices
            .iter()
            .enumerate()
            .filter_map(|(i, m)| Some(record_bytes(m.cols, weights.kernel(MatrixId(i)).grain()?)));
        let records = places.take(sizes.batch * record.max().unwrap_or(0));
        let (tokens, maxima) = (places.take(sizes.batch * 4), places.take(gpu.groups * 8));
        let best = places.take(8 * (MOST_BEST.min(arch.vocab) + gpu.groups * each_best(gpu, arch.vocab)));
        let h = &arch.hparams;
        let heads = |i: usize| {
            let kv_heads = h.layers[i].kv_heads;
            kv_heads * (h.heads / kv_heads).div_ceil(tile(gpu, arch, i, true))
        };
        let heads = (0..h.layers.len()).map(heads).min().unwrap_or(1);
        let max_splits = (gpu.groups / heads.max(1)).clamp(1, 32);
        let partial = places.take(h.heads * max_splits * (h.head_dim + 2) * 4);
        let pages = places.take(sizes.context.div_ceil(PAGE) * 4);
        Self { bytes: places.at, angles, slots, records, tokens, maxima, best, partial, pages, max_splits }
    }

    /// The same, in lines of the arena: for a region that begins at `line`.
    pub fn moved(mut self, line: u32) -> Self {
        let Self { angles, slots, records, tokens, maxima, best, partial, pages, .. } = &mut self;
        let lines = [records, tokens, maxima, best, partial, pages];
        let slots = slots.iter_mut().map(|(at, _)| at);
        lines.into_iter().chain(slots).chain(angles).for_each(|at| *at += line);
        self
    }
}

/// Bytes of the smallest session that can do a step with a model's units from `first` on, about.
pub(crate) fn least_session(gpu: &Gpu, model: &Model, first: usize) -> Bytes {
    let arch = model.architecture();
    let ropes = arch.rope_tables(arch.hparams.context_length.min(1), |id| model.weights().vector(id));
    let page =
        KvLayout::new(&arch.hparams, KvType::F16).map_or(0, |kv| Share::from(first, &kv).kv.page_bytes());
    Bytes(session_of_one(gpu, model, &ropes, page, 1))
}

/// Bytes of a session that holds `context` positions, in pages of `page` bytes, and makes steps of one token, about.
pub(super) fn session_of_one(
    gpu: &Gpu,
    model: &Model,
    ropes: &[RopeTable],
    page: usize,
    context: usize,
) -> u64 {
    let phases: usize = model.architecture().units.iter().map(|unit| unit.ops.len()).sum();
    let sizes = Sizes { context, batch: 1, outputs: 1 };
    let pages = context.div_ceil(PAGE) * page.max(1).next_multiple_of(256);
    (Layout::new(gpu, model, ropes, sizes, true).bytes + phases * WORDS * 4 + pages) as u64
}
