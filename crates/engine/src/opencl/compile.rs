//! From op lists to phases.
//!
//! With one token a product's phase normalizes and quantizes its input itself, in every work-group alike: that takes less
//! time than meeting once more. Attention rotates its queries and writes the token's key and value. With several tokens
//! these are phases of their own. Norms go into the product behind them, gate and up into one unit, sums into the product.

use super::formats::{FLOAT, Stored, grain_code};
use super::gpu::Gpu;
use super::layout::each_best;
use super::model::DeviceModel;
use super::phase::{Do, NONE, PRODUCT, Phase, Place, WORDS, product, word};
use crate::kv::{KvLayout, PAGE};
use crate::model::Architecture;
use crate::model::op::{MatrixId, Op, Product, Slot, VectorId, View};
use crate::weights::WeightTable;
use nexaquant_kernels::{Activation, Grain, KvType, Layout, Pairing};

/// Flags of a phase: local memory has room for its input; the input is in the order of planes ([`Stored::has_planes`]).
const STAGED: u32 = 8;
pub(super) const PLANES: u32 = 16;
/// The phase is for `cl/words.cl`, whose local memory holds the input in whole groups of 512 values; with several tokens for
/// `cl/tiles.cl`, where rows are whole blocks of 256.
pub(super) const AS_WORDS: u32 = 32;
/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 32;
/// Positions that attention walks over at a time; `SPAN` of `cl/attention.cl`.
pub(super) const SPAN: usize = 512;

/// Rows of keys or values in local memory, at most.
const MOST_ROWS: usize = 128;

/// A matrix on the device.
#[derive(Clone, Debug)]
pub(super) struct OnDevice {
    pub stored: &'static Stored,
    pub rows: usize,
    pub cols: usize,
    /// The tensor's own multiplier.
    pub scale: f32,
    /// How its activations are quantized; `None`: they are floats.
    pub grain: Option<Grain>,
}

impl OnDevice {
    /// Its number in the program.
    pub fn code(&self) -> u32 {
        let dense = (17..=22).contains(&self.stored.code);
        self.stored.code + if self.grain.is_none() && !dense { FLOAT } else { 0 }
    }
}

/// Where everything lies.
pub(super) struct Plan<'a> {
    pub gpu: &'a Gpu,
    pub arch: &'a Architecture,
    pub weights: &'a WeightTable,
    pub device: &'a DeviceModel,
    pub kv: &'a KvLayout,
    /// Line and width of each slot.
    pub slots: [(u32, usize); 8],
    /// Lines of vectors.
    pub vectors: &'a [u32],
    /// Lines of the angles of each rope table: of all positions, or of the step's alone.
    pub ropes: &'a [u32],
    pub step_angles: bool,
    pub records: u32,
    pub tokens: u32,
    pub partial: u32,
    pub maxima: u32,
    pub best: u32,
    pub max_splits: u32,
    /// Bytes of local memory that a work-group may take.
    pub local: usize,
}

/// What steps a table is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Steps {
    /// Of one token.
    One,
    /// The same where attention is cut into pieces, which are joined then.
    Pieces,
    /// Of several tokens.
    Many,
}

/// A table of phases and where its parts end.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub phases: Vec<Phase>,
    /// Phases up to the end of each part.
    pub ends: Vec<usize>,
    /// Phases before the head, up to the logits, and all.
    pub body: usize,
    pub head: usize,
    /// Bytes of local memory that some phase needs.
    pub local: usize,
    /// Words of the phases that the compiler knows.
    pub known: Vec<[u32; WORDS]>,
}

/// Bytes of a quantized input on the device: values, sums of 16, scales and sums of their groups, in the order of the
/// column. The CPU's records have more, and another order, for its own kernels.
pub(super) fn record_bytes(cols: usize, grain: Grain) -> usize {
    let layout = Layout { cols, grain };
    (layout.padded() + layout.padded() / 8 + 8 * layout.groups()).next_multiple_of(64)
}

/// Query heads that one walk over the cache serves.
///
/// One where work-groups enough for all of them run at once: they read the same rows, but do so in a third of the time.
pub(super) fn tile(gpu: &Gpu, arch: &Architecture, layer: usize, single: bool) -> usize {
    let h = &arch.hparams;
    if single && gpu.groups >= h.heads {
        return 1;
    }
    (h.heads / h.layers[layer].kv_heads).min((1024 / h.head_dim).clamp(1, 8))
}

/// Compiles the whole graph.
pub(super) fn compile(plan: &Plan<'_>, steps: Steps) -> Table {
    let single = steps != Steps::Many;
    let pieces = steps == Steps::Pieces;
    let table = Table::default();
    let mut c = Compiler { plan, single, pieces, table, part: 0, norm: None, head: false, busy: 0 };
    for (i, part) in plan.device.parts.iter().enumerate() {
        if !c.head && part.name.starts_with("head") {
            c.table.body = c.table.phases.len();
            c.head = true;
        }
        c.part = i;
        c.ops(&part.ops);
        c.table.ends.push(c.table.phases.len());
    }
    c.table.head = c.table.phases.len();
    c.choice();
    c.table
}

pub(super) struct Compiler<'a> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) single: bool,
    pieces: bool,
    pub(super) table: Table,
    /// The part at hand.
    part: usize,
    /// What was normalized last, with what weights, and to where: the products of that take it along, and where they were
    /// cut between parts, each part's do.
    norm: Option<(View, VectorId, View)>,
    /// In the head, which runs for some tokens only.
    pub(super) head: bool,
    /// Work-groups that the phase before gives more to do than others.
    pub(super) busy: usize,
}

/// What attention needs to know of the ops before it.
#[derive(Default)]
struct Heads {
    q_norm: Option<VectorId>,
    k_norm: Option<VectorId>,
    rope: usize,
    kv: Option<(View, View)>,
}

impl Compiler<'_> {
    fn place(&self, view: View) -> Place {
        let (line, width) = self.plan.slots[view.slot as usize];
        [line, view.at as u32, width as u32]
    }
    fn vector(&self, id: VectorId) -> u32 {
        self.plan.vectors[id.0]
    }
    fn push(&mut self, phase: Phase, local: usize) {
        self.busy = 0;
        self.table.local = self.table.local.max(local);
        self.table.phases.push(phase);
    }

    fn ops(&mut self, ops: &[Op]) {
        let mut heads = Heads::default();
        let mut i = 0;
        while i < ops.len() {
            let next = ops.get(i + 1);
            match &ops[i] {
                Op::Embed { table, scale } => self.embed(*table, *scale),
                Op::RmsNorm { x, weight, out } => match next {
                    Some(Op::Add { x: to, y }) if y == out => {
                        self.add_norm(*x, *weight, *to);
                        i += 1;
                    }
                    _ => self.norm = Some((*x, *weight, *out)),
                },
                Op::RmsNormHeads { x, weight } if x.at == 0 => heads.q_norm = Some(*weight),
                Op::RmsNormHeads { weight, .. } => heads.k_norm = Some(*weight),
                Op::Rope { table, .. } => heads.rope = *table,
                Op::KvAppend { k, v, .. } => heads.kv = Some((*k, *v)),
                Op::Attention { layer, q, out, window, scale } => {
                    self.attention(*layer, *q, *out, *window, *scale, &std::mem::take(&mut heads));
                }
                Op::MatMul { input, products } => {
                    let glu = match next {
                        Some(Op::Glu { gate, up, out, activation }) => Some((*gate, *up, *out, *activation)),
                        _ => None,
                    };
                    let norm = self.norm.filter(|(.., out)| out == input).map(|(x, weight, _)| (x, weight));
                    if self.matmul(*input, norm, products, glu) {
                        i += 1;
                    }
                }
                Op::Glu { gate, up, out, activation } => self.glu(*gate, *up, *out, *activation),
                Op::Add { .. } => unreachable!("the builder adds only what it has normalized before"),
            }
            i += 1;
        }
    }

    /// Nothing where the table does not stay on the device: the host writes the rows then.
    fn embed(&mut self, table: MatrixId, scale: f32) {
        let Some(part) = self.plan.device.table else { return };
        let m = &self.plan.device.matrices[table.0];
        let x = self.place(View::new(Slot::X, m.cols));
        let phase = self
            .products(Phase::new(Do::Embed), part, &[(table, 0, m.rows)])
            .set(word::COLS, m.cols as u32)
            .set(word::TOKENS, self.plan.tokens)
            .of(0, product::SCALE, scale.to_bits());
        let phase = phase.place(PRODUCT + product::OUT, x);
        self.push(phase, 0);
    }

    fn add_norm(&mut self, x: View, weight: VectorId, to: View) {
        let phase = Phase::new(Do::AddNorm)
            .set(word::COLS, x.width as u32)
            .place(word::IN, self.place(x))
            .set(word::NORM, self.vector(weight))
            .float(word::EPS, self.plan.arch.hparams.eps)
            .place(PRODUCT + product::OUT, self.place(to));
        self.push(phase, 0);
    }

    fn glu(&mut self, gate: View, up: View, out: View, activation: Activation) {
        debug_assert!(up.at == gate.at + gate.width);
        let phase = Phase::new(Do::Glu)
            .set(word::COLS, gate.width as u32)
            .place(word::IN, self.place(gate))
            .set(word::ACTIVATION, code_of(activation))
            .place(PRODUCT + product::OUT, self.place(out));
        self.push(phase, 0);
    }

    /// The words of matrices: form, place and size.
    fn products(&self, mut phase: Phase, part: usize, of: &[(MatrixId, usize, usize)]) -> Phase {
        for (k, (id, first, rows)) in of.iter().enumerate() {
            let m = &self.plan.device.matrices[id.0];
            let found =
                self.plan.device.pieces[part].iter().find(|p| p.matrix == *id && p.rows.start == *first);
            let Some(piece) = found.filter(|p| p.rows.len() == *rows) else {
                unreachable!("a product of a part has the rows of a piece of it")
            };
            phase = phase
                .of(k, product::FMT, m.code())
                .of(k, product::MAT, piece.word)
                .of(k, product::ROWS, *rows as u32)
                .of(k, product::SCALE, 1f32.to_bits())
                .of(k, product::TENSOR, m.scale.to_bits());
            let planes = m.stored.planes(*rows, m.cols);
            for (j, plane) in planes[1..planes.len() - 1].iter().enumerate() {
                phase = phase.of(k, product::PLANES + j, (plane / 16) as u32);
            }
        }
        phase
    }

    /// Whether the gate was taken along.
    fn matmul(
        &mut self,
        input: View,
        norm: Option<(View, VectorId)>,
        products: &[Product],
        glu: Option<(View, View, View, Activation)>,
    ) -> bool {
        let plan = self.plan;
        let of = |p: &Product| &plan.device.matrices[p.matrix.0];
        let pair = match (&glu, products) {
            (Some((gate, up, ..)), [a, b]) => {
                a.out == *gate && b.out == *up && of(a).code() == of(b).code() && of(a).grain == of(b).grain
            }
            _ => false,
        };
        let mut grains: Vec<Option<Grain>> = Vec::new();
        for p in products {
            if !grains.contains(&of(p).grain) {
                grains.push(of(p).grain);
            }
        }
        for grain in grains {
            let some: Vec<&Product> = products.iter().filter(|p| of(p).grain == grain).collect();
            for some in some.chunks(3) {
                let planes = some.iter().all(|p| of(p).stored.has_planes());
                let as_words = !self.head
                    && some.iter().all(|p| of(p).stored.is_words() && of(p).code() == of(some[0]).code());
                let glu = glu.filter(|_| pair);
                let known = match grain {
                    _ if !self.single => None,
                    Some(grain) if as_words => self.known_words(input, norm, grain, some, glu, planes),
                    Some(grain) if self.head => self.known_logits(input, norm, grain, some),
                    _ => None,
                };
                if let Some((phase, local)) = known {
                    self.push(phase, local);
                    continue;
                }
                let phase = self.input(input, norm, grain, planes, as_words);
                let phase = self.product(phase, some, glu);
                self.push(phase, 0);
            }
        }
        pair
    }

    /// A phase that takes `width` values from `from`.
    pub(super) fn read(&self, what: Do, from: View, width: usize, grain: Option<Grain>, flags: u32) -> Phase {
        Phase::new(what)
            .set(word::FLAGS, flags)
            .set(word::COLS, width as u32)
            .set(word::GRAIN, grain_code(grain))
            .place(word::IN, self.place(from))
    }
    /// The same, normalized first if asked for.
    pub(super) fn normed(&self, phase: Phase, norm: Option<(View, VectorId)>) -> Phase {
        match norm {
            Some((_, weight)) => {
                phase.set(word::NORM, self.vector(weight)).float(word::EPS, self.plan.arch.hparams.eps)
            }
            None => phase,
        }
    }

    /// The head of a product's phase: its input, quantized by a phase of its own where that must be.
    fn input(
        &mut self,
        input: View,
        norm: Option<(View, VectorId)>,
        grain: Option<Grain>,
        planes: bool,
        as_words: bool,
    ) -> Phase {
        let plan = self.plan;
        let from = norm.map_or(input, |(x, _)| x);
        let flags = u32::from(self.head) | if planes { PLANES } else { 0 };
        let read = |what, from| self.read(what, from, input.width, grain, flags);
        let normed = |phase| self.normed(phase, norm);
        let Some(grain) = grain else {
            let Some(_) = norm else { return read(Do::MatMul, input) };
            let phase = normed(read(Do::Quantize, from)).place(PRODUCT + product::OUT, self.place(input));
            let product = read(Do::MatMul, input);
            self.push(phase, 0);
            return product;
        };
        let record = record_bytes(input.width, grain);
        let maxima = Layout { cols: input.width, grain }.padded() / 16 * 4;
        let words = |phase: Phase| phase.set(word::REC, plan.records).set(word::REC_STRIDE, record as u32);
        // With room for the input itself, too, it is read but once.
        let staged = |phase: Phase, local: usize| {
            let all = local + 4 * input.width;
            if all <= plan.local { (phase.set(word::FLAGS, flags | STAGED), all) } else { (phase, local) }
        };
        let shape = &plan.gpu.shape;
        let tiles =
            !self.single && as_words && planes && shape.has_tiles() && input.width.is_multiple_of(256);
        if self.single && record + maxima <= plan.local {
            let product = words(normed(read(Do::MatVec, from)));
            let (product, local) = staged(product, record + maxima);
            self.table.local = self.table.local.max(local);
            return product;
        }
        let (quantize, local) = staged(words(normed(read(Do::Quantize, from))), maxima);
        let mut product = words(read(Do::MatMul, input));
        product.0[word::FLAGS] |= if tiles { AS_WORDS } else { 0 };
        self.push(quantize, local);
        product
    }

    /// The same phase with its products.
    pub(super) fn product(
        &self,
        phase: Phase,
        products: &[&Product],
        glu: Option<(View, View, View, Activation)>,
    ) -> Phase {
        let plan = self.plan;
        let rows = plan.gpu.shape.rows;
        let of: Vec<_> = products.iter().map(|p| (p.matrix, p.first, p.out.width)).collect();
        let mut phase = self.products(phase, self.part, &of).set(word::NPROD, products.len() as u32);
        // `cl/words.cl` deals out rows, or pairs of them.
        let each = match phase.0[word::FLAGS] & AS_WORDS {
            0 => [rows / 2, rows],
            _ if self.single => [1, 1],
            _ => [TILE_ROWS / 2, TILE_ROWS],
        };
        let units = match glu {
            Some((gate, ..)) => gate.width.div_ceil(each[0]),
            None => products.iter().map(|p| p.out.width.div_ceil(each[1])).sum(),
        };
        let each_group = (units / (plan.gpu.groups - self.busy)) as u32;
        phase = phase.set(word::UNITS, units as u32).set(word::EACH_GROUP, each_group);
        for (k, p) in products.iter().enumerate() {
            phase = phase.place(PRODUCT * (k + 1) + product::OUT, self.place(p.out));
            if let Some(scale) = p.scale {
                phase = phase.of(k, product::SCALE, plan.weights.vector(scale)[0].to_bits());
            }
            if let Some(bias) = p.bias {
                phase =
                    phase.of(k, product::BIAS, self.vector(bias)).of(k, product::BIAS + 1, p.first as u32);
            }
            if let Some(to) = p.add_to {
                phase = phase.place(PRODUCT * (k + 1) + product::ADD, self.place(to));
            }
        }
        if let Some((_, _, out, activation)) = glu {
            let flags = phase.0[word::FLAGS] | 2;
            phase = phase
                .set(word::FLAGS, flags)
                .set(word::ACTIVATION, code_of(activation))
                .place(PRODUCT + product::OUT, self.place(out));
        }
        if self.head {
            phase = phase.float(word::SOFTCAP, plan.arch.hparams.logit_softcap.unwrap_or(0.0));
        }
        phase
    }

    fn attention(
        &mut self,
        layer: usize,
        q: View,
        out: View,
        window: Option<usize>,
        scale: f32,
        heads: &Heads,
    ) {
        let plan = self.plan;
        let h = &plan.arch.hparams;
        let Some((k, v)) = heads.kv else { unreachable!("keys are appended before they are attended to") };
        let (kv_heads, tile, d) =
            (h.layers[layer].kv_heads, tile(plan.gpu, plan.arch, layer, self.single), h.head_dim);
        let keys = plan.kv.k(layer, 0, 0..PAGE);
        let values = plan.kv.v(layer, 0, 0..PAGE);
        let fresh = (2 * d + h.rope_dims) * 4;
        let local = ((2 * tile * d + tile * SPAN + (3 + 16) * tile) * 4 + fresh).next_multiple_of(16);
        // Keys and values pass through local memory, where there is room for some rows.
        let row = 2 * d + 16;
        let halves = plan.kv.ty == KvType::F16 && d.is_multiple_of(16);
        let rows = if halves { (plan.local.saturating_sub(local) / row).min(MOST_ROWS) } else { 0 };
        // Eight queries, their scores and what their softmax keeps, and rows as many as `attend_many` takes at a time.
        let shape = &plan.gpu.shape;
        let side_by_side = (8 * d + 8 * SPAN + 32) * 4 + if d == 256 { 32 } else { 64 } * row;
        let many = !self.single && shape.has_attend_many(d) && halves && side_by_side <= plan.local;
        let room = (local + rows * row).max(if many { side_by_side } else { 0 });
        let vector = |id: Option<VectorId>| id.map_or(NONE, |id| self.vector(id));
        let words = [
            h.heads as u32,
            kv_heads as u32,
            tile as u32,
            keys.start as u32,
            (values.start - keys.start) as u32,
            plan.kv.row_bytes as u32,
            rows as u32,
            vector(heads.k_norm),
            k.at as u32,
            v.at as u32,
        ];
        let [line, at, stride] = self.place(out);
        let more = [
            line,
            at,
            stride,
            window.unwrap_or(0) as u32,
            scale.to_bits(),
            plan.ropes[heads.rope],
            u32::from(plan.step_angles),
            (h.rope_dims / 2) as u32,
            u32::from(plan.arch.spec.pairing == Pairing::Halves),
            u32::from(self.single),
            plan.partial,
            plan.max_splits,
            (local / 16) as u32,
            u32::from(many),
        ];
        let phase = |what| {
            let mut phase = Phase::new(what)
                .set(word::COLS, d as u32)
                .place(word::IN, self.place(q))
                .set(word::NORM, vector(heads.q_norm))
                .float(word::EPS, h.eps);
            phase.0[word::ATTENTION..][..words.len()].copy_from_slice(&words);
            phase.0[word::ATTENTION + words.len()..][..more.len()].copy_from_slice(&more);
            phase
        };
        let (rope, attend, combine) = (phase(Do::RopeKv), phase(Do::Attend), phase(Do::Combine));
        if !self.single {
            self.push(rope, fresh);
        }
        // One head a work-group, and all of it in local memory at once.
        let by_heads = tile == 1 && rows >= 16 && d.is_multiple_of(32) && d <= 256;
        let attend = if by_heads { self.known(attend.clone()).unwrap_or(attend) } else { attend };
        self.push(attend, room);
        if self.pieces {
            self.push(combine, 0);
        }
        if by_heads && 2 * h.heads <= plan.gpu.groups {
            self.busy = h.heads;
        }
    }

    /// The likeliest token, or the likeliest few: the step says which.
    fn choice(&mut self) {
        let (plan, vocab) = (self.plan, self.plan.arch.vocab);
        let place = self.place(View::new(Slot::Logits, vocab));
        for phase in choice(plan.gpu, vocab, place, plan.maxima, plan.best, plan.tokens) {
            self.push(phase, CHOICE_LOCAL.max(8 * plan.gpu.shape.group));
        }
    }
}

/// Bytes of local memory that finding the likeliest few needs: counts of 256 values of a byte, their sums, and two numbers.
pub(super) const CHOICE_LOCAL: usize = 4 * (256 + 16 + 2);

/// What finds the likeliest tokens among `vocab` logits: every work-group in its share, then one among those.
pub(super) fn choice(
    gpu: &Gpu,
    vocab: usize,
    logits: Place,
    maxima: u32,
    best: u32,
    tokens: u32,
) -> [Phase; 2] {
    let words = |what| {
        Phase::new(what)
            .set(word::COLS, vocab as u32)
            .place(word::IN, logits)
            .set(word::REC, maxima)
            .set(word::REC_STRIDE, gpu.groups as u32)
            .set(word::TOKENS, tokens)
            .set(word::BEST, best)
            .set(word::EACH_BEST, each_best(gpu, vocab) as u32)
    };
    [words(Do::Argmax), words(Do::Choose)]
}

fn code_of(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::Relu2 => 1,
        Activation::GeluTanh => 2,
    }
}
