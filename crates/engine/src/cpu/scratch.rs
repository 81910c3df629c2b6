//! The activations of one session: every buffer a step needs, allocated before the first one.

use super::shared::{OutOfMemory, SharedBuf};
use crate::model::Architecture;
use crate::model::op::{MatrixId, Op, RopeTable, Slot};
use nexaquant_kernels::{BoundKernel, Grain, Layout, Line};

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
    /// Attention scores, `scores_each` a worker.
    pub scores: SharedBuf<f32>,
    pub scores_each: usize,
    /// By rope table: cos then sin of each token's angles.
    pub angles: Vec<SharedBuf<f32>>,
    /// Tokens a step may have.
    pub batch: usize,
    /// Tokens whose logits a step may ask for.
    pub outputs: usize,
    /// Records per region of `acts`.
    pub rows: usize,
    threads: usize,
    group: usize,
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

/// Cache lines of one record.
pub(crate) fn record_lines(layout: Layout) -> usize {
    layout.record_bytes() / 64
}

/// Activations of a batch may take this much; a model with very wide rows gets a smaller batch.
const MAX_BATCH_BYTES: usize = 256 << 20;

impl Scratch {
    /// Buffers for steps of up to `batch` tokens (fewer where a token is very wide), with the logits of up to `outputs`.
    pub(crate) fn new(
        arch: &Architecture,
        kernel: impl Fn(MatrixId) -> BoundKernel,
        ropes: &[RopeTable],
        batch: usize,
        outputs: usize,
        threads: usize,
    ) -> Result<Self, OutOfMemory> {
        let token_bytes: usize = Slot::ALL.iter().map(|&slot| 4 * arch.slot_width(slot)).sum();
        let batch = batch.min(MAX_BATCH_BYTES / token_bytes.max(1)).max(1);
        let outputs = outputs.clamp(1, batch);
        let slots = Slot::ALL
            .into_iter()
            .map(|slot| {
                let width = arch.slot_width(slot);
                let rows = if slot == Slot::Logits { outputs } else { batch };
                Ok(Buffer { width, data: SharedBuf::new(width * rows)? })
            })
            .collect::<Result<_, _>>()?;
        // With one token every worker quantizes for itself, so that no barrier is needed.
        let rows = batch.max(threads);
        let lines = act_lines(arch, kernel);
        let h = &arch.hparams;
        let group = h.layers.iter().map(|l| h.heads / l.kv_heads).max().unwrap_or(1);
        Ok(Self {
            slots,
            acts: SharedBuf::new(lines * rows)?,
            scores: SharedBuf::new(0)?,
            scores_each: 0,
            angles: ropes
                .iter()
                .map(|r| SharedBuf::new(2 * r.frequencies.len() * batch))
                .collect::<Result<_, _>>()?,
            batch,
            outputs,
            rows,
            threads,
            group,
        })
    }

    /// Makes room for a pool of `threads` workers, if it has more than the last.
    pub(crate) fn fit_threads(
        &mut self,
        threads: usize,
        arch: &Architecture,
        kernel: impl Fn(MatrixId) -> BoundKernel,
    ) -> Result<(), OutOfMemory> {
        if threads > self.threads {
            let rows = self.batch.max(threads);
            self.acts = SharedBuf::new(act_lines(arch, kernel) * rows)?;
            self.rows = rows;
            self.scores = SharedBuf::new(self.scores_each * threads)?;
            self.threads = threads;
        }
        Ok(())
    }

    /// Makes room for the scores of `positions` positions.
    pub(crate) fn grow_scores(&mut self, positions: usize) -> Result<(), OutOfMemory> {
        if self.scores_each < positions * self.group {
            // Doubling keeps growth rare; a multiple of 16 keeps workers off each other's cache lines.
            let each = (positions.next_power_of_two().max(64) * self.group).next_multiple_of(16);
            self.scores = SharedBuf::new(each * self.threads)?;
            self.scores_each = each;
        }
        Ok(())
    }

    pub(crate) fn slot(&self, slot: Slot) -> &Buffer {
        &self.slots[slot as usize]
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        let slots: usize = self.slots.iter().map(|b| b.data.bytes()).sum();
        let angles: usize = self.angles.iter().map(SharedBuf::bytes).sum();
        slots + angles + self.acts.bytes() + self.scores.bytes()
    }

    /// cos and sin of every token's angles, for tokens at `pos0..`.
    pub(crate) fn set_angles(&mut self, ropes: &[RopeTable], pos0: usize, tokens: usize) {
        for (rope, angles) in ropes.iter().zip(&mut self.angles) {
            let pairs = rope.frequencies.len();
            for (t, row) in angles.as_mut().chunks_exact_mut((2 * pairs).max(1)).take(tokens).enumerate() {
                let (cos, sin) = row.split_at_mut(pairs);
                for ((c, s), f) in cos.iter_mut().zip(sin).zip(&rope.frequencies) {
                    let (sine, cosine) = ((pos0 + t) as f64 * f).sin_cos();
                    (*c, *s) = ((cosine * rope.magnitude) as f32, (sine * rope.magnitude) as f32);
                }
            }
        }
    }
}
