//! A step of one token: phases of a few microseconds, with as few barriers between them as the data allows.
//!
//! Slot `Norm` has a row for every worker here, and each worker fills its own. So a product's input is normalized and
//! quantized without anybody waiting.

use super::attention::before_attention;
use super::{GLU_CHUNK, Step, for_rows};
use crate::model::op::{Op, Product, Slot, View};
use crate::threads::Worker;
use crate::weights::Place;
use nexaquant_kernels::Activation;
use std::ops::Range;

/// Rows of a product are claimed in multiples of this: kernels take rows by four, results fill cache lines.
const ROWS: usize = 16;
/// Bytes of weights that are worth a claim: about ten microseconds' work.
const PIECE_BYTES: usize = 192 << 10;
/// Most pieces of a worker's share.
const PIECES: usize = 16;

impl Step<'_> {
    /// Runs `ops` for token `t` alone.
    pub(super) fn run_single(&self, worker: &Worker<'_>, mut ops: &[Op], t: usize, place: Place<'_>) {
        let which = t..t + 1;
        // Whether something was written that others may read.
        let mut written = false;
        while let [op, rest @ ..] = ops {
            let private = matches!(op, Op::RmsNorm { out, .. } if out.slot == Slot::Norm);
            let alone = matches!(op, Op::MatMul { .. } | Op::Attention { .. } | Op::Glu { .. });
            let heads = before_attention(ops);
            // The ops of a token all belong to one worker, so nobody waits between them.
            if written && (private || alone || heads > 0) {
                worker.barrier();
                written = false;
            }
            let mut done = 1;
            match op {
                _ if private => self.token_op(op, t, self.scratch.own_row(worker.id()), place),
                _ if heads > 0 => {
                    self.attention(worker, &which, &ops[heads], &ops[..heads], place);
                    done = heads + 1;
                }
                Op::Attention { .. } => self.attention(worker, &which, op, &[], place),
                Op::MatMul { input, products } => {
                    let gated = rest.first().and_then(|next| Gated::new(products, next));
                    self.single_product(worker, t, *input, products, gated.as_ref(), place);
                    done += usize::from(gated.is_some());
                }
                Op::Glu { gate, up, out, activation } => {
                    worker.claim(gate.width, GLU_CHUNK, |values| {
                        self.glu(*activation, (*gate, *up, *out), values, t);
                    });
                }
                op => {
                    if !worker.share(1).is_empty() {
                        self.token_op(op, t, self.scratch.own_row(worker.id()), place);
                    }
                }
            }
            ops = &ops[done..];
            written |= !private;
        }
    }

    fn single_product(
        &self,
        worker: &Worker<'_>,
        t: usize,
        input: View,
        products: &[Product],
        gated: Option<&Gated<'_>>,
        place: Place<'_>,
    ) {
        let which = t..t + 1;
        let inputs = self.inputs(input, products);
        let own = self.scratch.own_row(worker.id());
        let row = if input.slot == Slot::Norm { own } else { t };
        self.quantize(&inputs, own, row);
        let product = |p: &Product, rows: Range<usize>| {
            // SAFETY: the record is this worker's own; the input is, too, or was written before the last barrier.
            let acts = unsafe { self.acts(&inputs, p, own, &(row..row + 1)) };
            self.product(p, rows, &acts, &which, place);
        };
        let total = gated.map_or_else(|| products.iter().map(|p| p.out.width).sum(), |g| g.views.0.width);
        let row_bytes = products.iter().map(|p| self.weights.row_bytes(p.matrix)).max().unwrap_or(1);
        worker.claim(total, piece(total, row_bytes, worker.threads()), |claimed| match gated {
            None => for_rows(products, claimed, product),
            Some(Gated { gate, up, views, activation }) => {
                for (p, at) in [gate, up] {
                    product(p, at + claimed.start..at + claimed.end);
                }
                self.glu(*activation, *views, claimed, t);
            }
        });
    }
}

/// Rows that a worker claims at once. Small pieces let workers end a phase together, but none is so small that claiming it
/// costs more than it.
fn piece(total: usize, row_bytes: usize, threads: usize) -> usize {
    let share = total.div_ceil(threads);
    let pieces = if threads == 1 { 1 } else { (share * row_bytes / PIECE_BYTES).clamp(1, PIECES) };
    share.div_ceil(pieces).next_multiple_of(ROWS)
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
