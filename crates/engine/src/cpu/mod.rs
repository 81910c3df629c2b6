//! The CPU executor: runs a unit's ops over a batch of tokens on all workers of a pool.
//!
//! All workers walk through the op list together. Ops on single tokens are shared out by token and need no barrier
//! among themselves; products and attention are claimed in pieces, with a barrier before and after. Every element
//! of a result is computed by one worker, by operations that depend on nothing but its own inputs, so neither the
//! number of threads nor the cut of a prompt into batches changes a bit.

#![allow(unsafe_code)]

mod scratch;
mod shared;

pub(crate) use scratch::{Scratch, Sizes};
pub use shared::OutOfMemory;
pub(crate) use shared::SharedBuf;

use crate::kv::{KvCache, PAGE};
use crate::model::Architecture;
use crate::model::op::{Op, Product, Slot, View};
use crate::threads::Worker;
use crate::weights::{Place, WeightTable};
use nexaquant_kernels::{Acts, F32Cols, I8Cols, KvRows, Layout, Ops};
use scratch::{grains, record_lines};
use std::ops::Range;

/// What a step computes with.
pub(crate) struct Step<'a> {
    pub arch: &'a Architecture,
    pub weights: &'a WeightTable,
    pub ops: Ops,
    pub scratch: &'a Scratch,
    pub kv: &'a KvCache,
    /// The batch; token `i` is at position `pos0 + i`.
    pub tokens: &'a [u32],
    pub pos0: usize,
    /// The embedding rows of the batch's tokens, where the table itself is not at hand.
    pub gathered: Option<&'a [u8]>,
}

/// Values of a product's output that one claim takes when there are many tokens: the rows stay in the inner cache while
/// all tokens pass.
const PREFILL_ROWS: usize = 32;
/// Values of the gate that one claim takes.
const GLU_CHUNK: usize = 512;

impl Step<'_> {
    /// Runs `ops` for the batch's tokens `which`, with their matrices at `place`. Logits are written to rows from 0.
    pub(crate) fn run(&self, worker: &Worker<'_>, ops: &[Op], which: &Range<usize>, place: Place<'_>) {
        let mut before = true;
        for (i, op) in ops.iter().enumerate() {
            let alone = matches!(op, Op::MatMul { .. } | Op::Attention { .. } | Op::Glu { .. });
            if i > 0 && (alone || before) {
                worker.barrier();
            }
            before = alone;
            match op {
                Op::MatMul { input, products } => self.matmul(worker, which, *input, products, place),
                Op::Attention { layer, q, out, window, scale } => {
                    self.attention(worker, which, *layer, *q, *out, *window, *scale);
                }
                Op::Glu { gate, up, out, activation } => {
                    let pieces = gate.width.div_ceil(GLU_CHUNK);
                    worker.claim(which.len() * pieces, 1, |items| {
                        for item in items {
                            let (t, from) = (which.start + item / pieces, item % pieces * GLU_CHUNK);
                            let width = GLU_CHUNK.min(gate.width - from);
                            // SAFETY: claimed by this worker alone; `gate` and `up` are only read in this phase.
                            unsafe {
                                let out = self.write(out.part(from, width), t);
                                let gate = self.read(gate.part(from, width), t);
                                self.ops.glu(*activation, gate, self.read(up.part(from, width), t), out);
                            }
                        }
                    });
                }
                op => {
                    for i in worker.share(which.len()) {
                        self.token_op(op, which.start + i, place);
                    }
                }
            }
        }
    }

    /// Values of one token.
    ///
    /// # Safety
    /// As [`SharedBuf::read`].
    unsafe fn read(&self, view: View, token: usize) -> &[f32] {
        let buffer = self.scratch.slot(view.slot);
        let at = token * buffer.width + view.at;
        // SAFETY: passed on.
        unsafe { buffer.data.read(at..at + view.width) }
    }

    /// Values of one token, to change.
    ///
    /// # Safety
    /// As [`SharedBuf::write`].
    #[allow(clippy::mut_from_ref)]
    unsafe fn write(&self, view: View, token: usize) -> &mut [f32] {
        let buffer = self.scratch.slot(view.slot);
        let at = token * buffer.width + view.at;
        // SAFETY: passed on.
        unsafe { buffer.data.write(at..at + view.width) }
    }

    /// An op that touches nothing but token `t`, which belongs to the calling worker in every such op.
    fn token_op(&self, op: &Op, t: usize, place: Place<'_>) {
        let eps = self.arch.hparams.eps;
        // SAFETY: this worker owns token `t` until the next barrier; the builder gives inputs and outputs different
        // slots (or the same view where an op works in place, taken once).
        unsafe {
            match op {
                Op::Embed { table, scale } => {
                    let x = self.write(View::new(Slot::X, self.arch.hparams.embd), t);
                    match (self.gathered, place) {
                        (Some(rows), _) => {
                            let n = self.weights.row_bytes(*table);
                            self.weights.of_rows(*table, &rows[t * n..][..n]).dequantize_row(0, x);
                        }
                        (None, Place::File(file)) => {
                            self.weights.mapped(*table, file).dequantize_row(self.tokens[t] as usize, x);
                        }
                        (None, Place::Image(..)) => unreachable!("the table is no part of a unit"),
                    }
                    if *scale != 1.0 {
                        self.ops.scale(x, *scale);
                    }
                }
                Op::RmsNorm { x, weight, out } => {
                    let weight = self.weights.vector(*weight);
                    self.ops.rms_norm(self.read(*x, t), weight, eps, self.write(*out, t));
                }
                Op::RmsNormHeads { x, weight } => {
                    self.ops.rms_norm_heads(self.write(*x, t), self.weights.vector(*weight), eps);
                }
                Op::Rope { x, table } => {
                    let pairs = self.arch.hparams.rope_dims / 2;
                    let at = t * 2 * pairs;
                    let angles = &self.scratch.angles[*table];
                    let (cos, sin) = (angles.read(at..at + pairs), angles.read(at + pairs..at + 2 * pairs));
                    let head_dim = self.arch.hparams.head_dim;
                    self.ops.rope(self.write(*x, t), head_dim, cos, sin, self.arch.spec.pairing);
                }
                Op::KvAppend { layer, k, v } => {
                    let layout = self.kv.layout();
                    let pos = self.pos0 + t;
                    let (page, row) = (&self.kv.pages()[pos / PAGE], pos % PAGE);
                    let (k, v) = (self.read(*k, t), self.read(*v, t));
                    let heads = k.chunks_exact(layout.head_dim).zip(v.chunks_exact(layout.head_dim));
                    for (head, (k, v)) in heads.enumerate() {
                        let rows = row..row + 1;
                        let to = page.write(layout.k(*layer, head, rows.clone()));
                        self.ops.kv_store(layout.ty, k, to);
                        self.ops.kv_store(layout.ty, v, page.write(layout.v(*layer, head, rows)));
                    }
                }
                Op::Add { x, y } => self.ops.add(self.write(*x, t), self.read(*y, t)),
                Op::MatMul { .. } | Op::Attention { .. } | Op::Glu { .. } => unreachable!("not a token op"),
            }
        }
    }

    fn matmul(
        &self,
        worker: &Worker<'_>,
        which: &Range<usize>,
        input: View,
        products: &[Product],
        place: Place<'_>,
    ) {
        let n = which.len();
        let kernels = products.iter().map(|p| self.weights.kernel(p.matrix));
        let grains = grains(kernels);
        // Where each grain's region of records begins, in lines.
        let mut regions = [0; 4];
        for (i, grain) in grains.iter().enumerate() {
            let lines = grain.map_or(0, |grain| record_lines(Layout { cols: input.width, grain }));
            regions[i + 1] = regions[i] + lines * self.scratch.rows;
        }
        // One token: every worker quantizes into a record of its own and nobody waits.
        let first = if n == 1 { worker.id() } else { 0 };
        let quantize = |token: usize, record: usize| {
            for (grain, region) in grains.iter().zip(regions) {
                let Some(grain) = *grain else { continue };
                let layout = Layout { cols: input.width, grain };
                let lines = record_lines(layout);
                let at = region + record * lines;
                // SAFETY: the record is this worker's own (one token) or claimed by it; the input is only read.
                unsafe {
                    let record = self.scratch.acts.write(at..at + lines);
                    self.ops.quantize(self.read(input, token), layout, record);
                }
            }
        };
        if grains[0].is_some() {
            if n == 1 {
                quantize(which.start, first);
            } else {
                worker.claim(n, 1, |r| r.for_each(|i| quantize(which.start + i, i)));
                worker.barrier();
            }
        }

        let total: usize = products.iter().map(|p| p.out.width).sum();
        let chunk = if worker.threads() == 1 && n == 1 {
            total
        } else if n == 1 {
            (total / (worker.threads() * 4)).next_multiple_of(16).clamp(16, 512)
        } else {
            PREFILL_ROWS
        };
        worker.claim(total, chunk, |claimed| {
            let mut start = 0;
            for p in products {
                let end = start + p.out.width;
                let (from, to) = (claimed.start.max(start), claimed.end.min(end));
                if from < to {
                    let rows = from - start..to - start;
                    let kernel = self.weights.kernel(p.matrix);
                    // SAFETY: read only in this phase: the records were written before the barrier above (or by this
                    // worker), the input before the one before this op.
                    let acts = unsafe {
                        if let Some(grain) = kernel.grain() {
                            let region = grains.iter().position(|g| *g == Some(grain)).unwrap_or(0);
                            let layout = Layout { cols: input.width, grain };
                            let lines = record_lines(layout);
                            let at = regions[region] + first * lines;
                            let records = self.scratch.acts.read(at..at + n * lines);
                            Acts::I8(I8Cols::new(records, layout, n))
                        } else {
                            let buffer = self.scratch.slot(input.slot);
                            let at = which.start * buffer.width + input.at;
                            let x = buffer.data.read(at..at + (n - 1) * buffer.width + input.width);
                            Acts::F32(F32Cols::new(x, buffer.width, input.width, n))
                        }
                    };
                    self.product(p, rows, &acts, which, place);
                }
                start = end;
            }
        });
    }

    /// The values `rows` of one product for all tokens of the step.
    fn product(
        &self,
        p: &Product,
        rows: Range<usize>,
        acts: &Acts<'_>,
        which: &Range<usize>,
        place: Place<'_>,
    ) {
        let buffer = self.scratch.slot(p.out.slot);
        let first = if p.out.slot == Slot::Logits { 0 } else { which.start };
        let at = p.out.at + rows.start;
        // SAFETY: these rows of the result are claimed by this worker.
        let out = |at, n| unsafe { buffer.data.window(buffer.width, first, at, n, acts.n()) };
        let of_matrix = p.first + rows.start..p.first + rows.end;
        let kernel = self.weights.kernel(p.matrix);
        self.weights.stretches(p.matrix, place, of_matrix.clone(), |from, weights| {
            kernel.run(weights, acts, out(at + from, weights.rows()));
        });
        if p.scale.is_none() && p.bias.is_none() && p.add_to.is_none() {
            return;
        }
        let mut out = out(at, rows.len());
        for c in 0..acts.n() {
            let y = out.column(c);
            if let Some(scale) = p.scale {
                self.ops.scale(y, self.weights.vector(scale)[0]);
            }
            if let Some(bias) = p.bias {
                self.ops.add(y, &self.weights.vector(bias)[of_matrix.clone()]);
            }
            if let Some(to) = p.add_to {
                // SAFETY: the same rows of the residual stream, which only this product touches in this phase.
                let x = unsafe { self.write(to.part(rows.start, rows.len()), which.start + c) };
                self.ops.add(x, y);
            }
        }
    }

    #[allow(clippy::too_many_arguments)] // the fields of the op
    fn attention(
        &self,
        worker: &Worker<'_>,
        which: &Range<usize>,
        layer: usize,
        q: View,
        out: View,
        window: Option<usize>,
        scale: f32,
    ) {
        let layout = self.kv.layout();
        let d = layout.head_dim;
        let kv_heads = self.arch.hparams.layers[layer].kv_heads;
        let group = self.arch.hparams.heads / kv_heads;
        let each = self.scratch.scores_each;
        worker.claim(which.len() * kv_heads, 1, |items| {
            for item in items {
                let (t, head) = (which.start + item / kv_heads, item % kv_heads);
                let pos = self.pos0 + t;
                let from = window.map_or(0, |w| (pos + 1).saturating_sub(w));
                let seen = pos + 1 - from;
                // The pages that hold positions from..=pos, with the rows in each and where their scores go.
                let pages = || {
                    (from / PAGE..=pos / PAGE).map(|page| {
                        let start = (page * PAGE).max(from);
                        let end = ((page + 1) * PAGE).min(pos + 1);
                        (page, start - page * PAGE..end - page * PAGE, start - from..end - from)
                    })
                };
                // SAFETY: scores are this worker's own; the head's result is claimed by it; queries and the cache
                // are only read in this phase.
                unsafe {
                    let scores = self.scratch.scores.write(worker.id() * each..(worker.id() + 1) * each);
                    let scores = &mut scores[..group * seen];
                    let queries = self.read(q.part(head * group * d, group * d), t);
                    let out = self.write(out.part(head * group * d, group * d), t);
                    for (page, rows, to) in pages() {
                        let k = self.kv.pages()[page].read(layout.k(layer, head, rows));
                        let k = KvRows::new(layout.ty, d, k);
                        self.ops.kv_scores_group(queries, k, scale, &mut scores[to.start..], seen);
                    }
                    for scores in scores.chunks_exact_mut(seen) {
                        self.ops.softmax(scores);
                    }
                    out.fill(0.0);
                    for (page, rows, at) in pages() {
                        let v = self.kv.pages()[page].read(layout.v(layer, head, rows));
                        let v = KvRows::new(layout.ty, d, v);
                        self.ops.kv_weighted_sum_group(&scores[at.start..], seen, v, out);
                    }
                }
            }
        });
    }
}
