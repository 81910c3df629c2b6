//! The activations of one session: every buffer a step needs, allocated before the first one.

use super::attention::heads_together;
use super::shared::{OutOfMemory, SharedBuf};
use super::{TILE_ROWS, TOGETHER};
use crate::kv::PAGE;
use crate::model::Architecture;
use crate::model::hparams::HParams;
use crate::model::op::{MatrixId, Op, RopeTable, Slot};
use nexaquant_kernels::{BoundKernel, Grain, Layout, Line};
use std::ops::Range;

/// One slot's buffer.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub width: usize,
    pub data: SharedBuf<f32>,
}

/// Everything a step writes except the cache.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// By `Slot as usize`.
    pub slots: Vec<Buffer>,
    /// int8 records of a product's input: one region a grain, each `rows` records long.
    pub acts: SharedBuf<Line>,
    /// Results of products that go on to somewhere else at once: rows of `TILE_ROWS` values, for up to `TOGETHER` tokens a worker.
    pub results: SharedBuf<f32>,
    /// What attention needs, `attention_each` values a worker: `floats` values for a page, the queries of several tokens, scores.
    pub attention: SharedBuf<f32>,
    pub attention_each: usize,
    pub floats: usize,
    /// Positions that there is room for scores of.
    pub positions: usize,
    /// By rope table: cos then sin of each token's angles.
    pub angles: Vec<SharedBuf<f32>>,
    /// Tokens a step may have, and of those with logits.
    pub batch: usize,
    pub outputs: usize,
    /// Records per region of `acts`.
    pub rows: usize,
    /// Tokens that slots have rows for, but for those that outlive a unit.
    at_once: usize,
    threads: usize,
    together: Together,
}

/// The distinct grains that products want their input in.
pub(crate) fn grains(kernels: impl Iterator<Item = BoundKernel>) -> [Option<Grain>; 3] {
    let mut found = [None; 3];
    for grain in kernels.filter_map(|k| k.grain()) {
        for slot in &mut found {
            match slot {
                Some(g) if *g == grain => break,
                Some(_) => {}
                None => {
                    *slot = Some(grain);
                    break;
                }
            }
        }
    }
    found
}

/// Cache lines that one token's input of any product takes, in all the grains it is wanted in.
fn act_lines(arch: &Architecture, kernel: impl Fn(MatrixId) -> BoundKernel) -> usize {
    let lines = |op: &Op| match op {
        Op::MatMul { input, products } => grains(products.iter().map(|p| kernel(p.matrix)))
            .into_iter()
            .flatten()
            .map(|grain| record_lines(Layout { cols: input.width, grain }))
            .sum(),
        _ => 0,
    };
    arch.units.iter().flat_map(|u| &u.ops).map(lines).max().unwrap_or(0)
}

/// Values of [`Scratch::results`].
fn results(batch: usize, threads: usize) -> usize {
    if batch > 1 { threads * batch.min(TOGETHER) * TILE_ROWS } else { 0 }
}

/// Cache lines of one record.
pub(crate) fn record_lines(layout: Layout) -> usize {
    layout.record_bytes() / 64
}

/// Activations of a batch may take this much; a model with very wide rows gets a smaller batch.
const MAX_BATCH_BYTES: usize = 256 << 20;

/// Sizes of a scratch's buffers: what it will cost, before it is allocated.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    /// Values of each slot, and how many rows of them.
    slots: [(usize, usize); Slot::ALL.len()],
    /// Lines of one token's int8 records.
    lines: usize,
    /// Values of each rope table's angles.
    angles: Vec<usize>,
    batch: usize,
    outputs: usize,
    at_once: usize,
    threads: usize,
    together: Together,
    /// Positions that scores have room for at once; they can grow.
    positions: usize,
}

impl Sizes {
    /// Buffers for steps of up to `batch` tokens (fewer where a token is very wide), with the logits of up to `outputs`. Where layers are
    /// `cut`, all tokens go through a part of one before any goes through the next.
    pub(crate) fn new(
        arch: &Architecture,
        kernel: impl Fn(MatrixId) -> BoundKernel,
        ropes: &[RopeTable],
        (batch, outputs): (usize, usize),
        cut: bool,
        threads: usize,
    ) -> Self {
        let token_bytes: usize = Slot::ALL.iter().map(|&slot| 4 * arch.slot_width(slot)).sum();
        let batch = batch.min(MAX_BATCH_BYTES / token_bytes.max(1)).max(1);
        let outputs = outputs.clamp(1, batch);
        let at_once = if cut { batch } else { batch.min(TOGETHER) };
        let h = &arch.hparams;
        Self {
            slots: Slot::ALL.map(|slot| {
                let rows = match slot {
                    Slot::Logits => outputs,
                    Slot::X => batch,
                    // Of several tokens they are gated where they were computed (`Pass::matmul`).
                    Slot::GateUp if !cut => 1,
                    // A step of one token has a row for each worker.
                    Slot::Norm => at_once.max(outputs).max(threads),
                    _ => at_once,
                };
                (arch.slot_width(slot), rows)
            }),
            lines: act_lines(arch, kernel),
            angles: ropes.iter().map(|r| 2 * r.frequencies.len() * batch).collect(),
            batch,
            outputs,
            at_once,
            threads,
            together: Together::new(h, batch),
            positions: 0,
        }
    }

    /// The same with room for the scores of `positions` positions from the start.
    pub(crate) fn with_scores(self, positions: usize) -> Self {
        Self { positions, ..self }
    }

    /// Tokens a step may have.
    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// int8 records per region: with one token every worker quantizes for itself, so that no barrier is needed.
    fn rows(&self) -> usize {
        self.at_once.max(self.outputs).max(self.threads)
    }

    /// Values of results that workers keep for themselves.
    fn results(&self) -> usize {
        results(self.batch, self.threads)
    }

    /// Bytes of all buffers.
    pub(crate) fn bytes(&self) -> usize {
        let lines = |values: usize| (4 * values).next_multiple_of(64);
        self.slots.iter().map(|(width, rows)| lines(width * rows)).sum::<usize>()
            + self.angles.iter().copied().map(lines).sum::<usize>()
            + 64 * self.lines * self.rows()
            + lines(self.results())
            + if self.positions > 0 {
                lines(self.together.values(room(self.positions)) * self.threads)
            } else {
                0
            }
    }
}

/// Positions that there is room for where so many are needed: doubling keeps growth rare.
fn room(positions: usize) -> usize {
    positions.next_power_of_two().max(64)
}

/// Heads that attend together.
#[derive(Clone, Copy, Debug)]
struct Together {
    /// The most that share a kv head.
    group: usize,
    head_dim: usize,
    /// Tokens there may be.
    batch: usize,
}

impl Together {
    fn new(h: &HParams, batch: usize) -> Self {
        let group = h.layers.iter().map(|l| h.heads / l.kv_heads).max().unwrap_or(1);
        Self { group, head_dim: h.head_dim, batch }
    }

    /// Values of a page, where those of several tokens are worth it.
    fn floats(&self) -> usize {
        if self.batch > 1 { PAGE * self.head_dim } else { 0 }
    }

    /// Values that a worker needs with `positions` positions, a power of two.
    fn values(&self, positions: usize) -> usize {
        let heads = heads_together(positions).min(self.batch * self.group).max(self.group);
        let queries = if self.batch > 1 { heads * self.head_dim } else { 0 };
        // A multiple of 16 keeps workers off each other's cache lines.
        (positions * heads + queries + self.floats()).next_multiple_of(16)
    }
}

impl Scratch {
    /// Allocates the buffers.
    pub(crate) fn new(sizes: &Sizes) -> Result<Self, OutOfMemory> {
        let buffer = |(width, rows)| Ok(Buffer { width, data: SharedBuf::new(width * rows)? });
        let mut scratch = Self {
            slots: sizes.slots.into_iter().map(buffer).collect::<Result<_, _>>()?,
            acts: SharedBuf::new(sizes.lines * sizes.rows())?,
            results: SharedBuf::new(sizes.results())?,
            attention: SharedBuf::new(0)?,
            attention_each: 0,
            floats: sizes.together.floats(),
            positions: 0,
            angles: sizes.angles.iter().map(|&n| SharedBuf::new(n)).collect::<Result<_, _>>()?,
            batch: sizes.batch,
            outputs: sizes.outputs,
            rows: sizes.rows(),
            at_once: sizes.at_once,
            threads: sizes.threads,
            together: sizes.together,
        };
        scratch.grow_scores(sizes.positions)?;
        Ok(scratch)
    }

    /// Workers it has room for.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Makes room for a pool of `threads` workers, if it has more than the last.
    pub(crate) fn fit_threads(
        &mut self,
        threads: usize,
        arch: &Architecture,
        kernel: impl Fn(MatrixId) -> BoundKernel,
    ) -> Result<(), OutOfMemory> {
        if threads > self.threads {
            let rows = self.at_once.max(self.outputs).max(threads);
            self.results = SharedBuf::new(results(self.batch, threads))?;
            self.acts = SharedBuf::new(act_lines(arch, kernel) * rows)?;
            self.rows = rows;
            let norm = &mut self.slots[Slot::Norm as usize];
            norm.data = SharedBuf::new(norm.width * rows)?;
            self.attention = SharedBuf::new(self.attention_each * threads)?;
            self.threads = threads;
        }
        Ok(())
    }

    /// Makes room for the scores of `positions` positions, and of more to come.
    pub(crate) fn grow_scores(&mut self, positions: usize) -> Result<(), OutOfMemory> {
        if self.positions < positions {
            let positions = room(positions);
            let each = self.together.values(positions);
            self.attention = SharedBuf::new(each * self.threads)?;
            (self.attention_each, self.positions) = (each, positions);
        }
        Ok(())
    }

    /// The row of slot `Norm`, and of the records in `acts`, that is a worker's own in a step of one token: as far from the others' as
    /// can be, since what a processor fetches beyond the lines it reads would be taken from a neighbour who writes them.
    pub(crate) fn own_row(&self, worker: usize) -> usize {
        worker * (self.rows / self.threads)
    }

    /// The first row of `results` that is a worker's own.
    pub(crate) fn own_results(&self, worker: usize) -> usize {
        worker * self.batch.min(TOGETHER)
    }

    pub(crate) fn slot(&self, slot: Slot) -> &Buffer {
        &self.slots[slot as usize]
    }

    /// A row of a slot, between two steps.
    pub(crate) fn row(&mut self, slot: Slot, row: usize) -> &mut [f32] {
        self.rows(slot, row..row + 1)
    }

    /// Rows of a slot, one behind another, between two steps.
    pub(crate) fn rows(&mut self, slot: Slot, rows: Range<usize>) -> &mut [f32] {
        let Buffer { width, data } = &mut self.slots[slot as usize];
        &mut data.as_mut()[rows.start * *width..rows.end * *width]
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let slots: usize = self.slots.iter().map(|b| b.data.bytes()).sum();
        let angles: usize = self.angles.iter().map(SharedBuf::bytes).sum();
        slots + angles + self.acts.bytes() + self.results.bytes() + self.attention.bytes()
    }

    /// cos and sin of the angles of tokens `which`, the first of which is at position `pos`.
    pub(crate) fn set_angles(&mut self, ropes: &[RopeTable], which: Range<usize>, pos: usize) {
        for (rope, angles) in ropes.iter().zip(&mut self.angles) {
            let pairs = rope.frequencies.len();
            let rows = angles.as_mut().chunks_exact_mut((2 * pairs).max(1)).skip(which.start);
            for (t, row) in rows.take(which.len()).enumerate() {
                let (cos, sin) = row.split_at_mut(pairs);
                for ((c, s), f) in cos.iter_mut().zip(sin).zip(&rope.frequencies) {
                    let (sine, cosine) = ((pos + t) as f64 * f).sin_cos();
                    (*c, *s) = ((cosine * rope.magnitude) as f32, (sine * rope.magnitude) as f32);
                }
            }
        }
    }
}
