//! The CPU executor: runs a unit's ops over a batch of tokens on all workers of a pool.
//!
//! All workers walk through the op list together. Ops on single tokens are shared out by token and need no barrier
//! among themselves; products and attention are claimed in pieces, with a barrier before and after. Every element
//! of a result is computed by one worker, by operations that depend on nothing but its own inputs, so neither the
//! number of threads nor the cut of a prompt into batches changes a bit. Nor does it matter whose tokens share a batch:
//! only rotation, the cache and attention ask which sequence and position a token belongs to.
//!
//! With one token a phase is microseconds long, so phases are joined (`single.rs`): every worker normalizes and quantizes
//! the input of a product for itself, whoever attends with a head also rotates and stores it, and whoever has some of the
//! gate and the values beside it multiplies them. A layer then has five barriers.

#![allow(unsafe_code)]

mod attention;
mod scratch;
mod shared;
mod single;

pub(crate) use scratch::{Scratch, Sizes};
pub use shared::OutOfMemory;
pub(crate) use shared::SharedBuf;

use crate::kv::{KvCache, PAGE};
use crate::model::Architecture;
use crate::model::op::{Op, Product, Slot, View};
use crate::threads::Worker;
use crate::weights::{Place, WeightTable};
use attention::before_attention;
use nexaquant_kernels::{Activation, Acts, F32Cols, Grain, I8Cols, KEYS, Layout, Ops};
use scratch::{grains, record_lines};
use std::ops::Range;

/// Tokens of a batch that follow each other in one sequence, from `first` to where the next span begins. A batch may have
/// several sequences, and of each several spans.
#[derive(Clone, Copy)]
pub(crate) struct Span<'a> {
    /// Its first token's place in the batch; 0 in the first span.
    pub first: usize,
    /// That token's position in the sequence.
    pub pos: usize,
    /// The sequence's cache, which has room for all of them.
    pub kv: &'a KvCache,
}

/// What a step computes with.
pub(crate) struct Step<'a> {
    pub arch: &'a Architecture,
    pub weights: &'a WeightTable,
    pub ops: Ops,
    pub scratch: &'a Scratch,
    /// The batch.
    pub tokens: &'a [u32],
    /// Whose they are, in the order of the tokens.
    pub spans: &'a [Span<'a>],
    /// Whether no two tokens are of one sequence.
    pub apart: bool,
    /// The embedding rows of the batch's tokens, where the table itself is not at hand.
    pub gathered: Option<&'a [u8]>,
}

/// Values of a product's output that one claim takes when there are many tokens: the rows stay in the inner cache while
/// all tokens pass.
const PREFILL_ROWS: usize = 64;
/// The most that one takes of ternary rows: some of the tokens at a time pass all of a claim's tiles, so more rows share what comes from farther
/// away, and the tile that is asked for ahead is mostly of the same claim.
const TILE_ROWS: usize = 256;
/// Values of the gate that one claim takes.
const GLU_CHUNK: usize = 512;

impl Step<'_> {
    /// Runs `ops` for the batch's tokens `which`, with their matrices at `place`. Logits are written to rows from 0.
    pub(crate) fn run(&self, worker: &Worker<'_>, ops: &[Op], which: &Range<usize>, place: Place<'_>) {
        if which.len() == 1 {
            return self.run_single(worker, ops, which.start, place);
        }
        let (mut before, mut rest) = (true, ops);
        while let [op, ..] = rest {
            let heads = before_attention(rest);
            let alone = heads > 0 || matches!(op, Op::MatMul { .. } | Op::Attention { .. } | Op::Glu { .. });
            if rest.len() < ops.len() && (alone || before) {
                worker.barrier();
            }
            before = alone;
            let mut done = 1;
            match op {
                Op::MatMul { input, products } => self.matmul(worker, which, *input, products, place),
                _ if heads > 0 => {
                    let (first, attention) = (&rest[..heads], &rest[heads]);
                    done = heads + 1;
                    if self.apart {
                        self.attention(worker, which, attention, first, place);
                    } else {
                        self.before_attention(worker, which, attention, first, place);
                        worker.barrier();
                        self.attention(worker, which, attention, &[], place);
                    }
                }
                Op::Attention { .. } => self.attention(worker, which, op, &[], place),
                Op::Glu { gate, up, out, activation } => {
                    let pieces = gate.width.div_ceil(GLU_CHUNK);
                    worker.claim(which.len() * pieces, 1, |items| {
                        for item in items {
                            let (t, from) = (which.start + item / pieces, item % pieces * GLU_CHUNK);
                            let values = from..(from + GLU_CHUNK).min(gate.width);
                            self.glu(*activation, (*gate, *up, *out), values, t);
                        }
                    });
                }
                op => {
                    for i in worker.share(which.len()) {
                        self.token_op(op, which.start + i, which.start + i, place);
                    }
                }
            }
            rest = &rest[done..];
        }
    }

    /// Values of the hidden vector of one token, which the calling worker has claimed.
    fn glu(
        &self,
        activation: Activation,
        (gate, up, out): (View, View, View),
        values: Range<usize>,
        t: usize,
    ) {
        let part = |view: View| view.part(values.start, values.len());
        // SAFETY: claimed by this worker alone; it has written `gate` and `up` itself, or they are only read in this phase.
        unsafe {
            self.ops.glu(
                activation,
                self.read(part(gate), t),
                self.read(part(up), t),
                self.write(part(out), t),
            );
        }
    }

    /// The cache of the sequence that token `t` belongs to, and its position there.
    fn sequence(&self, t: usize) -> (&KvCache, usize) {
        let span = &self.spans[self.spans.partition_point(|span| span.first <= t) - 1];
        (span.kv, span.pos + t - span.first)
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

    /// An op that touches nothing but token `t`, which belongs to the calling worker in every such op; its row of
    /// normalized values is `norm`.
    fn token_op(&self, op: &Op, t: usize, norm: usize, place: Place<'_>) {
        let row = |view: &View| if view.slot == Slot::Norm { norm } else { t };
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
                    self.ops.rms_norm(self.read(*x, t), weight, eps, self.write(*out, row(out)));
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
                    let d = self.sequence(t).0.layout().head_dim;
                    for head in 0..k.width / d {
                        self.kv_append(*layer, head, k.part(head * d, d), v.part(head * d, d), t);
                    }
                }
                Op::Add { x, y } => self.ops.add(self.write(*x, t), self.read(*y, row(y))),
                Op::MatMul { .. } | Op::Attention { .. } | Op::Glu { .. } => unreachable!("not a token op"),
            }
        }
    }

    /// Stores one head's key and value of one token.
    ///
    /// # Safety
    /// The head of this token belongs to the calling worker.
    unsafe fn kv_append(&self, layer: usize, head: usize, k: View, v: View, t: usize) {
        let (kv, pos) = self.sequence(t);
        let layout = kv.layout();
        let (page, row) = (&kv.pages()[pos / PAGE].data, pos % PAGE);
        let block = row / KEYS * KEYS..row / KEYS * KEYS + KEYS;
        // SAFETY: by the caller; a page that is written belongs to one sequence alone (`kv.rs`). Other keys of the block may be
        // stored by others.
        unsafe {
            let to = page.at(layout.k(layer, head, block));
            self.ops.kv_store_key(layout.ty, self.read(k, t), to, row % KEYS);
            let to = page.write(layout.v(layer, head, row..row + 1));
            self.ops.kv_store_value(layout.ty, self.read(v, t), to);
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
        let inputs = self.inputs(input, products);
        if inputs.grains[0].is_some() {
            worker.claim(n, 1, |r| r.for_each(|i| self.quantize(&inputs, i, which.start + i)));
            worker.barrier();
        }
        let total: usize = products.iter().map(|p| p.out.width).sum();
        let tiles = products.iter().any(|p| self.weights.kernel(p.matrix).format().ternary);
        // Some claims for each worker, so that they end together.
        let most = if tiles { TILE_ROWS } else { PREFILL_ROWS };
        let rows = (total / (4 * worker.threads())).next_multiple_of(PREFILL_ROWS).clamp(PREFILL_ROWS, most);
        worker.claim(total, rows, |claimed| {
            for_rows(products, claimed, |p, rows| {
                // SAFETY: read only in this phase: records and input were written before the last barriers.
                let acts = unsafe { self.acts(&inputs, p, 0, which) };
                self.product(p, rows, &acts, which, place);
            });
        });
    }

    /// Where the quantized forms of a product's input go.
    fn inputs(&self, input: View, products: &[Product]) -> Inputs {
        let grains = grains(products.iter().map(|p| self.weights.kernel(p.matrix)));
        let mut regions = [0; 4];
        for (i, grain) in grains.iter().enumerate() {
            let lines = grain.map_or(0, |grain| record_lines(Layout { cols: input.width, grain }));
            regions[i + 1] = regions[i] + lines * self.scratch.rows;
        }
        Inputs { input, grains, regions }
    }

    /// Quantizes row `from` of a product's input into the records `to`, which belong to the calling worker.
    fn quantize(&self, inputs: &Inputs, to: usize, from: usize) {
        for (grain, region) in inputs.grains.iter().zip(inputs.regions) {
            let Some(grain) = *grain else { continue };
            let layout = Layout { cols: inputs.input.width, grain };
            let lines = record_lines(layout);
            let at = region + to * lines;
            // SAFETY: the record is this worker's own or claimed by it; the input is only read in this phase.
            unsafe {
                let record = self.scratch.acts.write(at..at + lines);
                self.ops.quantize(self.read(inputs.input, from), layout, record);
            }
        }
    }

    /// What the kernel of a product multiplies by: records from `first` on, or rows `which` of the input.
    ///
    /// # Safety
    /// No other worker writes them before the next barrier.
    unsafe fn acts(&self, inputs: &Inputs, p: &Product, first: usize, which: &Range<usize>) -> Acts<'_> {
        let (n, input) = (which.len(), inputs.input);
        // SAFETY: by the caller.
        unsafe {
            if let Some(grain) = self.weights.kernel(p.matrix).grain() {
                let region = inputs.grains.iter().position(|g| *g == Some(grain)).unwrap_or(0);
                let layout = Layout { cols: input.width, grain };
                let lines = record_lines(layout);
                let at = inputs.regions[region] + first * lines;
                Acts::I8(I8Cols::new(self.scratch.acts.read(at..at + n * lines), layout, n))
            } else {
                let buffer = self.scratch.slot(input.slot);
                let at = which.start * buffer.width + input.at;
                let x = buffer.data.read(at..at + (n - 1) * buffer.width + input.width);
                Acts::F32(F32Cols::new(x, buffer.width, input.width, n))
            }
        }
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
}

/// A product's input in every form that its kernels want.
struct Inputs {
    input: View,
    grains: [Option<Grain>; 3],
    /// Where each grain's region of records begins, in lines.
    regions: [usize; 4],
}

/// Calls `see` for each product that has some of the values `claimed` of all products' side by side.
fn for_rows(products: &[Product], claimed: Range<usize>, mut see: impl FnMut(&Product, Range<usize>)) {
    let mut start = 0;
    for p in products {
        let end = start + p.out.width;
        let (from, to) = (claimed.start.max(start), claimed.end.min(end));
        if from < to {
            see(p, from - start..to - start);
        }
        start = end;
    }
}
