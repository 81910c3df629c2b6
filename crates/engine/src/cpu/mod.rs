//! The CPU executor: runs a unit's ops over a batch of tokens on all workers of a pool.
//!
//! All workers walk through the op list together, with so many tokens at a time that what they compute stays in the second
//! cache. Ops on single tokens are claimed by token, one token after another, up to its quantization for the next product;
//! products and attention are claimed in pieces, with a barrier before and after. Every element of a result is computed by
//! one worker, by operations that depend on nothing but its own inputs, so neither the number of threads nor the cut of a
//! prompt into batches changes a bit. Nor does it matter whose tokens share a batch: only rotation, the cache and attention
//! ask which sequence and position a token belongs to.
//!
//! With one token a phase is microseconds long, so phases are joined (`single.rs`): every worker normalizes and quantizes
//! the input of a product for itself, whoever attends with a head also rotates and stores it, and whoever has some of the
//! gate and the values beside it multiplies them. A layer then has five barriers, or six where workers share a kv head.

#![allow(unsafe_code)]

mod attention;
mod scratch;
mod shared;
mod single;

pub(crate) use scratch::{Scratch, Sizes};
pub use shared::OutOfMemory;
pub(crate) use shared::SharedBuf;
#[cfg(all(test, target_os = "linux"))]
pub(crate) use shared::tests as memory;

use crate::kv::{KvCache, PAGE};
use crate::model::Architecture;
use crate::model::op::{Op, Product, Slot, View};
use crate::threads::Worker;
use crate::weights::{Place, WeightTable};
use attention::before_attention;
use nexaquant_kernels::{Activation, Acts, F32Cols, Grain, I8Cols, KEYS, Layout, Ops};
use scratch::{grains, record_lines};
use std::ops::{Deref, Range};

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
/// Tokens that go through a unit together: what it computes of more would not stay in the second cache from op to op, and its weights
/// come from the third one again, where there is one.
pub(crate) const TOGETHER: usize = 128;
/// Values of the gate that one claim takes.
const GLU_CHUNK: usize = 512;
/// Tokens that one claim takes of what is done token by token.
const TOKENS: usize = 4;

/// Some tokens' way through ops of one unit.
struct Pass<'a> {
    step: &'a Step<'a>,
    place: Place<'a>,
    /// The first of them has row 0 in slots whose values nobody needs after the unit.
    which: Range<usize>,
    /// The token that has the first row of logits.
    logits: usize,
}

impl<'a> Deref for Pass<'a> {
    type Target = Step<'a>;
    fn deref(&self) -> &Step<'a> {
        self.step
    }
}

impl Step<'_> {
    /// Runs `ops` for the batch's tokens `which`, with their matrices at `place`. Logits are written to rows from 0.
    pub(crate) fn run(&self, worker: &Worker<'_>, ops: &[Op], which: &Range<usize>, place: Place<'_>) {
        // Of a part of a unit, what it computes is needed by the next part.
        let together = if place.is_whole_unit() { TOGETHER } else { usize::MAX };
        for first in which.clone().step_by(together.min(which.len()).max(1)) {
            if first > which.start {
                worker.barrier();
            }
            let some = first..first.saturating_add(together).min(which.end);
            let pass = Pass { step: self, place, which: some, logits: which.start };
            if which.len() == 1 {
                pass.run_single(worker, ops);
            } else {
                pass.run(worker, ops);
            }
        }
    }
}

impl Pass<'_> {
    fn run(&self, worker: &Worker<'_>, mut ops: &[Op]) {
        let mut begun = false;
        let mut phase = || {
            if std::mem::replace(&mut begun, true) {
                worker.barrier();
            }
        };
        while !ops.is_empty() {
            let (first, rest) = ops.split_at(ops_of_tokens(ops));
            let heads = before_attention(rest);
            ops = match rest {
                [Op::MatMul { input, products }, rest @ ..] => {
                    let inputs = self.inputs(*input, products);
                    if !first.is_empty() || inputs.grains[0].is_some() {
                        phase();
                        self.token_by_token(worker, first, Some(&inputs));
                    }
                    phase();
                    let gated = rest.first().and_then(|next| Gated::new(products, next));
                    self.matmul(worker, &inputs, products, gated.as_ref());
                    &rest[usize::from(gated.is_some())..]
                }
                _ if !first.is_empty() => {
                    phase();
                    self.token_by_token(worker, first, None);
                    rest
                }
                [Op::Glu { gate, up, out, activation }, rest @ ..] => {
                    phase();
                    let pieces = gate.width.div_ceil(GLU_CHUNK);
                    worker.claim(self.which.len() * pieces, 1, |items| {
                        for item in items {
                            let (t, from) = (self.which.start + item / pieces, item % pieces * GLU_CHUNK);
                            let values = from..(from + GLU_CHUNK).min(gate.width);
                            self.glu(*activation, (*gate, *up, *out), values, t);
                        }
                    });
                    rest
                }
                _ => {
                    let (first, attention) = (&rest[..heads], &rest[heads]);
                    phase();
                    if self.apart {
                        self.attention(worker, attention, first);
                    } else {
                        if heads > 0 {
                            self.before_attention(worker, attention, first);
                            phase();
                        }
                        self.attention(worker, attention, &[]);
                    }
                    &rest[heads + 1..]
                }
            };
        }
    }

    /// Does `ops` to one token after another, which then are quantized as the input of products.
    fn token_by_token(&self, worker: &Worker<'_>, ops: &[Op], inputs: Option<&Inputs>) {
        // What is normalized only to be quantized stays in the inner cache.
        let quantized = inputs.is_some_and(|inputs| inputs.all_quantized);
        let own = quantized && self.place.is_whole_unit() && ops.iter().any(normalizes);
        worker.claim(self.which.len(), TOKENS, |items| {
            for i in items {
                let t = self.which.start + i;
                let norm = if own { self.scratch.own_row(worker.id()) } else { self.row(Slot::Norm, t) };
                for op in ops {
                    self.token_op(op, t, norm);
                }
                if let Some(inputs) = inputs {
                    let slot = inputs.input.slot;
                    self.quantize(inputs, i, if slot == Slot::Norm { norm } else { self.row(slot, t) });
                }
            }
        });
    }

    /// The row of a slot that has a token's values.
    fn row(&self, slot: Slot, t: usize) -> usize {
        match slot {
            Slot::X => t,
            Slot::Logits => t - self.logits,
            _ => t - self.which.start,
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
        let row = |view: View| self.row(view.slot, t);
        // SAFETY: claimed by this worker alone; it has written `gate` and `up` itself, or they are only read in this phase.
        unsafe {
            let (gate, up) = (self.read(part(gate), row(gate)), self.read(part(up), row(up)));
            self.ops.glu(activation, gate, up, self.write(part(out), row(out)));
        }
    }

    /// The span that token `t` belongs to.
    fn span(&self, t: usize) -> &Span<'_> {
        &self.spans[self.spans.partition_point(|span| span.first <= t) - 1]
    }

    /// The cache of the sequence that token `t` belongs to, and its position there.
    fn sequence(&self, t: usize) -> (&KvCache, usize) {
        let span = self.span(t);
        (span.kv, span.pos + t - span.first)
    }

    /// Values of one row of a slot.
    ///
    /// # Safety
    /// As [`SharedBuf::read`].
    unsafe fn read(&self, view: View, row: usize) -> &[f32] {
        let buffer = self.scratch.slot(view.slot);
        let at = row * buffer.width + view.at;
        // SAFETY: passed on.
        unsafe { buffer.data.read(at..at + view.width) }
    }

    /// Values of one row of a slot, to change.
    ///
    /// # Safety
    /// As [`SharedBuf::write`].
    #[allow(clippy::mut_from_ref)]
    unsafe fn write(&self, view: View, row: usize) -> &mut [f32] {
        let buffer = self.scratch.slot(view.slot);
        let at = row * buffer.width + view.at;
        // SAFETY: passed on.
        unsafe { buffer.data.write(at..at + view.width) }
    }

    /// An op that touches nothing but token `t`, which belongs to the calling worker in every such op; its row of
    /// normalized values is `norm`.
    fn token_op(&self, op: &Op, t: usize, norm: usize) {
        let row = |view: &View| if view.slot == Slot::Norm { norm } else { self.row(view.slot, t) };
        let eps = self.arch.hparams.eps;
        // SAFETY: this worker owns token `t` until the next barrier; the builder gives inputs and outputs different
        // slots (or the same view where an op works in place, taken once).
        unsafe {
            match op {
                Op::Embed { table, scale } => {
                    let x = self.write(View::new(Slot::X, self.arch.hparams.embd), t);
                    match (self.gathered, self.place) {
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
                    self.ops.rms_norm(self.read(*x, row(x)), weight, eps, self.write(*out, row(out)));
                }
                Op::RmsNormHeads { x, weight } => {
                    self.ops.rms_norm_heads(self.write(*x, row(x)), self.weights.vector(*weight), eps);
                }
                Op::Rope { x, table } => {
                    let pairs = self.arch.hparams.rope_dims / 2;
                    let at = t * 2 * pairs;
                    let angles = &self.scratch.angles[*table];
                    let (cos, sin) = (angles.read(at..at + pairs), angles.read(at + pairs..at + 2 * pairs));
                    let head_dim = self.arch.hparams.head_dim;
                    self.ops.rope(self.write(*x, row(x)), head_dim, cos, sin, self.arch.spec.pairing);
                }
                Op::KvAppend { layer, k, v } => {
                    let d = self.sequence(t).0.layout().head_dim;
                    for head in 0..k.width / d {
                        self.kv_append(*layer, head, k.part(head * d, d), v.part(head * d, d), t);
                    }
                }
                Op::Add { x, y } => self.ops.add(self.write(*x, row(x)), self.read(*y, row(y))),
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
            self.ops.kv_store_key(layout.ty, self.read(k, self.row(k.slot, t)), to, row % KEYS);
            let to = page.write(layout.v(layer, head, row..row + 1));
            self.ops.kv_store_value(layout.ty, self.read(v, self.row(v.slot, t)), to);
        }
    }

    /// Products of inputs that are quantized, and what comes after them: they are added to the residual stream, or are the sides of
    /// a gate.
    fn matmul(&self, worker: &Worker<'_>, inputs: &Inputs, products: &[Product], gated: Option<&Gated<'_>>) {
        let total = gated.map_or_else(|| products.iter().map(|p| p.out.width).sum(), |g| g.views.0.width);
        let tiles = products.iter().any(|p| self.weights.kernel(p.matrix).format().ternary);
        // Some claims for each worker, so that they end together.
        let most = if tiles { TILE_ROWS / (1 + usize::from(gated.is_some())) } else { PREFILL_ROWS };
        let rows = (total / (4 * worker.threads())).next_multiple_of(PREFILL_ROWS).clamp(PREFILL_ROWS, most);
        let results = &self.scratch.results;
        worker.claim(total, rows, |claimed| {
            for from in self.which.clone().step_by(TOGETHER) {
                let tokens = from..(from + TOGETHER).min(self.which.end);
                let input = (self.row(inputs.input.slot, from), tokens.len());
                let product = |p: &Product, rows: Range<usize>, own: Option<usize>| {
                    // SAFETY: read only in this phase: records and input were written before the last barriers.
                    let acts = unsafe { self.acts(inputs, p, from - self.which.start, input) };
                    self.product(p, rows, &acts, from, own.map(|at| (worker.id(), at)));
                };
                let Some(Gated { gate, up, views: (.., out), activation }) = gated else {
                    for_rows(products, claimed.clone(), |p, rows| {
                        product(p, rows, p.add_to.map(|_| 0));
                    });
                    continue;
                };
                for ((p, first), at) in [(gate, 0), (up, TILE_ROWS / 2)] {
                    product(p, first + claimed.start..first + claimed.end, Some(at));
                }
                for (i, t) in tokens.enumerate() {
                    let at = (self.scratch.own_results(worker.id()) + i) * TILE_ROWS;
                    let out = out.part(claimed.start, claimed.len());
                    // SAFETY: these results are the worker's own, and it has claimed the values.
                    unsafe {
                        let gate = results.read(at..at + claimed.len());
                        let up = results.read(at + TILE_ROWS / 2..at + TILE_ROWS / 2 + claimed.len());
                        self.ops.glu(*activation, gate, up, self.write(out, self.row(out.slot, t)));
                    }
                }
            }
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
        let all_quantized = products.iter().all(|p| self.weights.kernel(p.matrix).grain().is_some());
        Inputs { input, grains, regions, all_quantized }
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

    /// What the kernel of a product multiplies by: records from `first` on, or the rows of the input from `row` on, of `n` tokens.
    ///
    /// # Safety
    /// No other worker writes them before the next barrier.
    unsafe fn acts(&self, inputs: &Inputs, p: &Product, first: usize, (row, n): (usize, usize)) -> Acts<'_> {
        let input = inputs.input;
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
                let at = row * buffer.width + input.at;
                let x = buffer.data.read(at..at + (n - 1) * buffer.width + input.width);
                Acts::F32(F32Cols::new(x, buffer.width, input.width, n))
            }
        }
    }

    /// The values `rows` of one product for `acts.n()` tokens, the first of which is `t`: in its slot, or from value `at` on in results that
    /// a worker keeps for itself.
    fn product(
        &self,
        p: &Product,
        rows: Range<usize>,
        acts: &Acts<'_>,
        t: usize,
        own: Option<(usize, usize)>,
    ) {
        let slot = self.scratch.slot(p.out.slot);
        let (buffer, width, first, at) = match own {
            Some((worker, at)) => (&self.scratch.results, TILE_ROWS, self.scratch.own_results(worker), at),
            None => (&slot.data, slot.width, self.row(p.out.slot, t), p.out.at + rows.start),
        };
        // SAFETY: these rows of the result are claimed by this worker, or its own.
        let out = |at, n| unsafe { buffer.window(width, first, at, n, acts.n()) };
        let of_matrix = p.first + rows.start..p.first + rows.end;
        let kernel = self.weights.kernel(p.matrix);
        self.weights.stretches(p.matrix, self.place, of_matrix.clone(), |from, weights| {
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
                let x = unsafe { self.write(to.part(rows.start, rows.len()), self.row(to.slot, t + c)) };
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
    /// Whether no kernel wants the input itself.
    all_quantized: bool,
}

/// How many ops `ops` begin with that touch nothing but one token, before products or what leads up to attention.
fn ops_of_tokens(ops: &[Op]) -> usize {
    (0..ops.len()).find(|&i| is_shared(&ops[i]) || before_attention(&ops[i..]) > 0).unwrap_or(ops.len())
}

/// Whether workers share out what the op does to one token.
fn is_shared(op: &Op) -> bool {
    matches!(op, Op::MatMul { .. } | Op::Attention { .. } | Op::Glu { .. })
}

/// Whether the op fills slot `Norm`, a row of which a worker may have for itself.
fn normalizes(op: &Op) -> bool {
    matches!(op, Op::RmsNorm { out, .. } if out.slot == Slot::Norm)
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

/// Products whose results go through a gate right away, value by value.
struct Gated<'a> {
    /// The product that computes the gate, and its first row that does.
    gate: (&'a Product, usize),
    up: (&'a Product, usize),
    /// Gate, up and out.
    views: (View, View, View),
    activation: Activation,
}

impl<'a> Gated<'a> {
    /// Where `next` is a gate and the products compute both its sides and nothing else.
    fn new(products: &'a [Product], next: &Op) -> Option<Self> {
        let &Op::Glu { gate, up, out, activation } = next else { return None };
        let source = |of: View| {
            let p = products.iter().find(|p| {
                let (from, to) = (p.out.at, p.out.at + p.out.width);
                p.out.slot == of.slot && from <= of.at && of.at + of.width <= to
            })?;
            Some((p, of.at - p.out.at))
        };
        let all: usize = products.iter().map(|p| p.out.width).sum();
        if all != gate.width + up.width {
            return None;
        }
        Some(Self { gate: source(gate)?, up: source(up)?, views: (gate, up, out), activation })
    }
}
