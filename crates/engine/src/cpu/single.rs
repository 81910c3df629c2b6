//! A step of one token: phases of a few microseconds, with as few barriers between them as the data allows.
//!
//! Slot `Norm` has a row for every worker here, and each worker fills its own. So a product's input is normalized and
//! quantized without anybody waiting.

use super::attention::before_attention;
use super::{GLU_CHUNK, Gated, Pass, for_rows, is_shared, normalizes};
use crate::model::op::{Op, Product, Slot, View};
use crate::threads::Worker;
use std::ops::Range;

/// Rows of a product are claimed in multiples of this: kernels take rows by four, results fill cache lines.
const ROWS: usize = 16;
/// Bytes of weights that are worth a claim: about ten microseconds' work.
const PIECE_BYTES: usize = 192 << 10;
/// Most pieces of a worker's share.
const PIECES: usize = 16;

impl Pass<'_> {
    /// Runs `ops` for the one token.
    pub(super) fn run_single(&self, worker: &Worker<'_>, mut ops: &[Op]) {
        let t = self.which.start;
        // Whether something was written that others may read.
        let mut written = false;
        while let [op, rest @ ..] = ops {
            let private = normalizes(op);
            let heads = before_attention(ops);
            // The ops of a token all belong to one worker, so nobody waits between them.
            if written && (private || is_shared(op) || heads > 0) {
                worker.barrier();
                written = false;
            }
            let mut done = 1;
            match op {
                _ if private => self.token_op(op, t, self.scratch.own_row(worker.id())),
                _ if heads > 0 => {
                    self.attention_of_one(worker, &ops[heads], &ops[..heads]);
                    done = heads + 1;
                }
                Op::Attention { .. } => self.attention_of_one(worker, op, &[]),
                Op::MatMul { input, products } => {
                    let gated = rest.first().and_then(|next| Gated::new(products, next));
                    self.single_product(worker, *input, products, gated.as_ref());
                    done += usize::from(gated.is_some());
                }
                Op::Glu { gate, up, out, activation } => {
                    worker.claim(gate.width, GLU_CHUNK, |values| {
                        self.glu(*activation, (*gate, *up, *out), values, t);
                    });
                }
                op => {
                    if !worker.share(1).is_empty() {
                        self.token_op(op, t, self.scratch.own_row(worker.id()));
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
        input: View,
        products: &[Product],
        gated: Option<&Gated<'_>>,
    ) {
        let t = self.which.start;
        let inputs = self.inputs(input, products);
        let own = self.scratch.own_row(worker.id());
        let row = if input.slot == Slot::Norm { own } else { self.row(input.slot, t) };
        self.quantize(&inputs, own, row);
        let product = |p: &Product, rows: Range<usize>| {
            // SAFETY: the record is this worker's own; the input is, too, or was written before the last barrier.
            let acts = unsafe { self.acts(&inputs, p, own, (row, 1)) };
            self.product(p, rows, &acts, t, None);
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
