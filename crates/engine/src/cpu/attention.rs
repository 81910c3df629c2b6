//! Attention of a step: who attends with what.
//!
//! A claim is a kv head and a few consecutive tokens of a sequence, which read its keys and values together. What comes
//! before is claimed in the same way: whoever stores a key, which dirties a cache line in every other dimension, is
//! likely to be the one who reads it. Where one token has too few kv heads for that, as with one kv head and two workers, its
//! query heads are shared out.

use super::{Pass, Span};
use crate::kv::{KvCache, PAGE};
use crate::model::op::{Op, View};
use crate::threads::Worker;
use nexaquant_kernels::{Attention, KvPages};
use std::ops::{Range, RangeInclusive};

/// Query heads that attend together where there are several tokens: as many as share the work on a key or value, but with many positions
/// fewer, so that their scores stay in the second cache.
const HEADS: RangeInclusive<usize> = 8..=32;
/// Scores that so many heads may have.
const SCORES: usize = 64 << 10;

/// Query heads that attend together, unless more share a kv head, where a sequence may have `positions` positions.
pub(super) fn heads_together(positions: usize) -> usize {
    (SCORES / positions.max(1)).clamp(*HEADS.start(), *HEADS.end())
}

/// How many ops on heads lead up to an attention, if `ops` begin with any.
pub(super) fn before_attention(ops: &[Op]) -> usize {
    let on_heads = |op: &&Op| matches!(op, Op::RmsNormHeads { .. } | Op::Rope { .. } | Op::KvAppend { .. });
    let n = ops.iter().take_while(on_heads).count();
    if matches!(ops.get(n), Some(Op::Attention { .. })) { n } else { 0 }
}

/// One kv head's pages in a sequence's cache.
#[derive(Clone, Copy)]
struct HeadPages<'a> {
    kv: &'a KvCache,
    layer: usize,
    head: usize,
}

impl KvPages for HeadPages<'_> {
    const POSITIONS: usize = PAGE;
    fn keys(&self, page: usize) -> &[u8] {
        let keys = self.kv.layout().k(self.layer, self.head, 0..PAGE);
        // SAFETY: made for a phase in which nobody else writes this head's keys.
        unsafe { self.kv.pages()[page].data.read(keys) }
    }
    fn values(&self, page: usize) -> &[u8] {
        let values = self.kv.layout().v(self.layer, self.head, 0..PAGE);
        // SAFETY: as above.
        unsafe { self.kv.pages()[page].data.read(values) }
    }
}

impl Pass<'_> {
    /// `op`, an attention. What is in `first` is done to each head by whoever attends with it.
    pub(super) fn attention(&self, worker: &Worker<'_>, op: &Op, first: &[Op]) {
        self.claim_heads(worker, op, |head, mut tokens| {
            self.head_ops(first, op, head, tokens.clone());
            while !tokens.is_empty() {
                let next = self.spans.partition_point(|span| span.first <= tokens.start);
                let end = self.spans.get(next).map_or(tokens.end, |span| span.first.min(tokens.end));
                let queries = head * self.group(op)..(head + 1) * self.group(op);
                self.attend(worker, op, queries, tokens.start..end, &self.spans[next - 1]);
                tokens.start = end;
            }
        });
    }

    /// The same for the one token of a step. A worker gets a share of the query heads instead of some kv heads where that leaves less
    /// to the busiest one.
    pub(super) fn attention_of_one(&self, worker: &Worker<'_>, op: &Op, first: &[Op]) {
        let (heads, group) = (self.arch.hparams.heads, self.group(op));
        if self.kv_heads(op).div_ceil(worker.threads()) * group <= heads.div_ceil(worker.threads()) {
            return self.attention(worker, op, first);
        }
        if !first.is_empty() {
            self.before_attention(worker, op, first);
            worker.barrier();
        }
        let (t, share) = (self.which.start, worker.share(heads));
        let mut from = share.start;
        while from < share.end {
            let end = (from + 1).next_multiple_of(group).min(share.end);
            self.attend(worker, op, from..end, t..t + 1, self.span(t));
            from = end;
        }
    }

    /// Only what is in `first`.
    pub(super) fn before_attention(&self, worker: &Worker<'_>, op: &Op, first: &[Op]) {
        self.claim_heads(worker, op, |head, tokens| self.head_ops(first, op, head, tokens));
    }

    /// Shares out the kv heads of an attention, a few tokens at a time.
    fn claim_heads(&self, worker: &Worker<'_>, op: &Op, mut work: impl FnMut(usize, Range<usize>)) {
        let (kv_heads, which) = (self.kv_heads(op), &self.which);
        // Tokens of different sequences have nothing together.
        let tile =
            if self.apart { 1 } else { (heads_together(self.scratch.positions) / self.group(op)).max(1) };
        let tiles = which.len().div_ceil(tile);
        // A head's keys and values stay in the cache until all tokens have passed.
        worker.claim(kv_heads * tiles, 1, |items| {
            for item in items {
                let from = which.start + item % tiles * tile;
                work(item / tiles, from..(from + tile).min(which.end));
            }
        });
    }

    /// Query heads that share a kv head.
    fn group(&self, op: &Op) -> usize {
        self.arch.hparams.heads / self.kv_heads(op)
    }

    fn kv_heads(&self, op: &Op) -> usize {
        let &Op::Attention { layer, .. } = op else { unreachable!("called for attention") };
        self.arch.hparams.layers[layer].kv_heads
    }

    /// The parts of `ops`, which lead up to an attention, that belong to one of its kv heads, for tokens that the caller has
    /// claimed the head of.
    fn head_ops(&self, ops: &[Op], attention: &Op, head: usize, tokens: Range<usize>) {
        let of = self.kv_heads(attention);
        let part = |view: View| view.part(head * (view.width / of), view.width / of);
        for t in tokens {
            for op in ops {
                match *op {
                    Op::RmsNormHeads { x, weight } => {
                        self.token_op(&Op::RmsNormHeads { x: part(x), weight }, t, t);
                    }
                    Op::Rope { x, table } => self.token_op(&Op::Rope { x: part(x), table }, t, t),
                    Op::KvAppend { layer, k, v } => {
                        // SAFETY: the caller has claimed the head.
                        unsafe { self.kv_append(layer, head, part(k), part(v), t) }
                    }
                    _ => unreachable!("no op on heads"),
                }
            }
        }
    }

    /// Attention of `tokens` of one span with some query heads of one kv head.
    fn attend(
        &self,
        worker: &Worker<'_>,
        op: &Op,
        queries: Range<usize>,
        tokens: Range<usize>,
        span: &Span<'_>,
    ) {
        let &Op::Attention { layer, q, out, window, scale } = op else {
            unreachable!("called for attention")
        };
        let (kv, head_dim) = (span.kv, span.kv.layout().head_dim);
        let with = Attention {
            pages: HeadPages { kv, layer, head: queries.start / self.group(op) },
            ty: kv.layout().ty,
            head_dim,
            group: queries.len(),
            pos: span.pos + tokens.start - span.first,
            window,
            scale,
        };
        let (first, heads) = (queries.start * head_dim, queries.len() * head_dim);
        let (q, out) = (q.part(first, heads), out.part(first, heads));
        let each = self.scratch.attention_each;
        let row = |view: View, t| self.row(view.slot, t);
        // SAFETY: the buffer's part is this worker's own; the heads' results are claimed by it; queries and the cache are only
        // read in this phase, but for what this worker itself has done to the head before.
        unsafe {
            let own = self.scratch.attention.write(worker.id() * each..(worker.id() + 1) * each);
            let (floats, own) = own.split_at_mut(self.scratch.floats);
            if tokens.len() == 1 {
                let heads = self.write(out, row(out, tokens.start));
                heads.copy_from_slice(self.read(q, row(q, tokens.start)));
                // So few heads read what is stored as fast as they would write floats.
                return self.ops.attention(&with, heads, own, &mut []);
            }
            let (all, scores) = own.split_at_mut(tokens.len() * heads);
            for (t, queries) in tokens.clone().zip(all.chunks_exact_mut(heads)) {
                queries.copy_from_slice(self.read(q, row(q, t)));
            }
            self.ops.attention(&with, all, scores, floats);
            for (t, results) in tokens.zip(all.chunks_exact(heads)) {
                self.write(out, row(out, t)).copy_from_slice(results);
            }
        }
    }
}
