//! Attention of a few consecutive tokens with one kv head, reading its keys and values where they lie.
//!
//! Which tokens and heads are taken together, and who does it, is the caller's business: a (token, head) pair, here
//! called a head, gets the same bits in any company. A head's result is defined by:
//!
//! ```text
//! score of a key:   16 lanes, lane l the chain of fma over the dimensions l, l + 16, …; folded; * scale
//! softmax of what the token sees
//! sum:              fma(p[row], row, acc), row after row
//! ```
//!
//! All heads read a key or value that they all see while it is in a register (`keys.rs`, `values.rs`); many heads have those of a page
//! made floats once for all of them. Scores are computed for
//! whole blocks of keys, also where a token does not see some of them; a sum takes what its token sees and nothing
//! else, so the tokens' first and last rows, where they differ, are taken by each token's heads alone.

mod keys;
mod values;

use super::kv::{KEYS, KvType, Q8, Q8_BYTES};
use super::softmax::softmax;
use super::{Body, Ops};
use crate::simd::{Lanes, prefetch_all};
use std::ops::Range;

/// Where the keys and values of one kv head lie: in pages of equally many positions.
pub trait KvPages {
    /// Positions in a page, a multiple of [`KEYS`].
    const POSITIONS: usize;
    /// The keys of a page, in blocks as [`Ops::kv_store_key`] writes them.
    fn keys(&self, page: usize) -> &[u8];
    /// The values of a page, in rows as [`Ops::kv_store_value`] writes them.
    fn values(&self, page: usize) -> &[u8];
}

/// What some heads attend with.
#[derive(Clone, Copy, Debug)]
pub struct Attention<P> {
    /// Has all that the last of the tokens sees.
    pub pages: P,
    /// How keys and values are stored.
    pub ty: KvType,
    /// Values in a key.
    pub head_dim: usize,
    /// Query heads of each token.
    pub group: usize,
    /// Position of the first of the tokens.
    pub pos: usize,
    /// Each token sees so many positions, itself the last of them; all if there is none.
    pub window: Option<usize>,
    /// Multiplied into each score.
    pub scale: f32,
}

impl<P> Attention<P> {
    /// Values that the scores of `tokens` tokens take.
    pub fn scores(&self, tokens: usize) -> usize {
        tokens * self.group * self.seen_by(tokens).len()
    }

    /// What the token after `i` others sees.
    fn seen(&self, i: usize) -> Range<usize> {
        let end = self.pos + i + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    /// The whole blocks of keys that some of `tokens` tokens see.
    fn seen_by(&self, tokens: usize) -> Range<usize> {
        self.seen(0).start / KEYS * KEYS..(self.pos + tokens).next_multiple_of(KEYS)
    }
}

impl Ops {
    /// `heads = softmax(scale * heads k) v` for some consecutive tokens: their queries, `tokens * group * head_dim`, become
    /// their results. What `scores` and `floats` have is overwritten. If the latter has room for a page, `P::POSITIONS * head_dim`, what is
    /// stored is converted to floats once for all heads, else for every few of them.
    ///
    /// # Panics
    /// When `heads` is not a whole number of tokens, or `scores` or a page is too short.
    pub fn attention<P: KvPages>(
        &self,
        with: &Attention<P>,
        heads: &mut [f32],
        scores: &mut [f32],
        floats: &mut [f32],
    ) {
        const { assert!(P::POSITIONS.is_multiple_of(KEYS), "whole blocks of keys in a page") };
        let row_bytes = with.ty.row_bytes(with.head_dim);
        let row_bytes =
            row_bytes.unwrap_or_else(|| panic!("no {} row of {} values", with.ty.name(), with.head_dim));
        let token = with.group * with.head_dim;
        assert!(token > 0 && heads.len().is_multiple_of(token), "a whole number of tokens");
        let tokens = heads.len() / token;
        let scores = &mut scores[..with.scores(tokens)];
        if tokens > 0 {
            let room = with.ty != KvType::F32 && floats.len() >= P::POSITIONS * with.head_dim;
            let floats = if room { floats } else { &mut [] };
            self.run(Attend { with, row_bytes, tokens, heads, scores, floats });
        }
    }
}

/// Bytes of values that are asked for while as many before them are added.
const VALUES_AHEAD: usize = 8 << 10;

/// Arguments of [`Ops::attention`], whose asserts the body relies on.
struct Attend<'a, P> {
    with: &'a Attention<P>,
    row_bytes: usize,
    tokens: usize,
    heads: &'a mut [f32],
    scores: &'a mut [f32],
    /// Room for a page, or nothing where it is read as it is stored.
    floats: &'a mut [f32],
}

impl<P: KvPages> Body for Attend<'_, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: `L` is enabled by the caller.
        unsafe {
            match self.with.ty {
                KvType::F32 => self.of::<L, F32>(),
                KvType::F16 => self.of::<L, F16>(),
                KvType::Q8_0 => self.of::<L, Q8_0>(),
            }
        }
    }
}

impl<P: KvPages> Attend<'_, P> {
    #[inline(always)]
    unsafe fn of<L: Lanes, E: Element>(mut self) {
        let (with, tokens) = (self.with, self.tokens);
        let blocks = with.seen_by(tokens);
        // SAFETY: `L` is enabled by the caller.
        unsafe {
            self.score::<L, E>(&blocks);
            let (first, page) = (blocks.start % P::POSITIONS, blocks.start / P::POSITIONS);
            let rows = blocks.len().min(P::POSITIONS - first) * self.row_bytes;
            prefetch_all(&with.pages.values(page)[first * self.row_bytes..][..rows.min(VALUES_AHEAD)]);
            for token in 0..tokens {
                let seen = with.seen(token);
                for head in token * with.group..(token + 1) * with.group {
                    let scores = &mut self.scores[head * blocks.len()..][..blocks.len()];
                    softmax::<L>(&mut scores[seen.start - blocks.start..seen.end - blocks.start]);
                }
            }
            // No query is needed any more.
            self.heads.fill(0.0);
            // What all tokens see, from the last one's first position to the first one's last.
            let (first, end) = (with.seen(tokens - 1).start, with.seen(0).end);
            let common = first..end.max(first);
            for token in 0..tokens {
                let seen = with.seen(token);
                self.sum::<L, E>(token..token + 1, seen.start..common.start.min(seen.end), &blocks);
            }
            self.sum::<L, E>(0..tokens, common.clone(), &blocks);
            for token in 0..tokens {
                let seen = with.seen(token);
                self.sum::<L, E>(token..token + 1, common.end.max(seen.start)..seen.end, &blocks);
            }
        }
    }

    /// The scores of all heads with the keys of `blocks`.
    #[inline(always)]
    unsafe fn score<L: Lanes, E: Element>(&mut self, blocks: &Range<usize>) {
        let (dim, bytes) = (self.with.head_dim, KEYS * self.row_bytes);
        let pages = blocks.start / P::POSITIONS..blocks.end.div_ceil(P::POSITIONS);
        for page in pages.clone() {
            let (keys, start) = (self.with.pages.keys(page), page * P::POSITIONS);
            let here = blocks.start.max(start)..blocks.end.min(start + P::POSITIONS);
            let byte = |position: usize| (position - start) / KEYS * bytes;
            if page == pages.start {
                prefetch_all(&keys[byte(here.start)..byte(here.end)]);
            }
            let next = if page + 1 < pages.end { self.with.pages.keys(page + 1) } else { &[] };
            for at in here.clone().step_by(KEYS) {
                // The same block of the next page.
                if at + P::POSITIONS < blocks.end {
                    prefetch_all(&next[byte(at)..byte(at + KEYS)]);
                }
            }
            let keys = &keys[byte(here.start)..byte(here.end)];
            let scores = &mut self.scores[here.start - blocks.start..];
            let (q, scale, stride) = (&*self.heads, self.with.scale, blocks.len());
            // SAFETY: `L` is enabled by the caller; the blocks have keys of `dim` values.
            unsafe {
                if self.floats.is_empty() {
                    keys::score::<L, E>(keys, bytes, dim, q, scale, scores, stride);
                } else {
                    for (block, to) in keys.chunks_exact(bytes).zip(self.floats.chunks_exact_mut(KEYS * dim))
                    {
                        for (d, to) in to.chunks_exact_mut(KEYS).enumerate() {
                            L::store(to.as_mut_ptr(), E::keys::<L>(block.as_ptr(), d));
                        }
                    }
                    let keys = bytes_of(&self.floats[..here.len() * dim]);
                    keys::score::<L, F32>(keys, 4 * KEYS * dim, dim, q, scale, scores, stride);
                }
            }
        }
    }

    /// Adds the values of the positions `rows`, times what their scores have become, to the results of some tokens.
    #[inline(always)]
    unsafe fn sum<L: Lanes, E: Element>(
        &mut self,
        tokens: Range<usize>,
        rows: Range<usize>,
        blocks: &Range<usize>,
    ) {
        if rows.is_empty() {
            return;
        }
        let (dim, group) = (self.with.head_dim, self.with.group);
        let out = &mut self.heads[tokens.start * group * dim..tokens.end * group * dim];
        let scores = &self.scores[tokens.start * group * blocks.len()..tokens.end * group * blocks.len()];
        for page in rows.start / P::POSITIONS..rows.end.div_ceil(P::POSITIONS) {
            let (values, start) = (self.with.pages.values(page), page * P::POSITIONS);
            let here = rows.start.max(start)..rows.end.min(start + P::POSITIONS);
            if here.end < rows.end {
                let next = &self.with.pages.values(page + 1)
                    [..(rows.end - here.end).min(P::POSITIONS) * self.row_bytes];
                prefetch_all(&next[..next.len().min(VALUES_AHEAD)]);
            }
            let p = &scores[here.start - blocks.start..];
            let values = &values[(here.start - start) * self.row_bytes..(here.end - start) * self.row_bytes];
            if !self.floats.is_empty() {
                // SAFETY: `L` is enabled by the caller; the rows have `dim` values, as have their floats.
                unsafe {
                    for (row, to) in
                        values.chunks_exact(self.row_bytes).zip(self.floats.chunks_exact_mut(dim))
                    {
                        let whole = dim / 16 * 16;
                        for at in (0..whole).step_by(16) {
                            L::store(to[at..].as_mut_ptr(), E::row::<L>(row.as_ptr(), at));
                        }
                        if whole < dim {
                            let (to, n) = (&mut to[whole..], dim - whole);
                            L::store_n(to.as_mut_ptr(), n, E::row_n::<L>(row.as_ptr(), whole, n));
                        }
                    }
                    let values = bytes_of(&self.floats[..here.len() * dim]);
                    values::add::<L, F32>(values, 4 * dim, dim, p, blocks.len(), out);
                }
                continue;
            }
            let each = (VALUES_AHEAD / self.row_bytes).max(1);
            let mut parts = values.chunks(each * self.row_bytes).enumerate().peekable();
            while let Some((i, part)) = parts.next() {
                prefetch_all(parts.peek().map_or(&[], |(_, next)| next));
                // SAFETY: `L` is enabled by the caller; the rows have `dim` values.
                unsafe { values::add::<L, E>(part, self.row_bytes, dim, &p[i * each..], blocks.len(), out) };
            }
        }
    }
}

/// Floats as they are stored.
#[inline(always)]
fn bytes_of(floats: &[f32]) -> &[u8] {
    // SAFETY: any bytes of plain values are bytes.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), size_of_val(floats)) }
}

/// A type of stored values as they are read, 16 at a time.
trait Element {
    /// Value `d` of the 16 keys of a block.
    ///
    /// # Safety
    /// `L` is enabled and the keys have more than `d` values.
    unsafe fn keys<L: Lanes>(block: *const u8, d: usize) -> L::F;
    /// Values `at..at + 16` of a row; `at` is a multiple of 16.
    ///
    /// # Safety
    /// `L` is enabled and the row has these values.
    unsafe fn row<L: Lanes>(row: *const u8, at: usize) -> L::F;
    /// Values `at..at + n` with n < 16, zeros after.
    ///
    /// # Safety
    /// As for `row`.
    unsafe fn row_n<L: Lanes>(row: *const u8, at: usize, n: usize) -> L::F;
}

// The pointers are cast to types of larger alignment; `Lanes` loads from any address.
struct F32;
#[allow(clippy::cast_ptr_alignment)]
impl Element for F32 {
    #[inline(always)]
    unsafe fn keys<L: Lanes>(block: *const u8, d: usize) -> L::F {
        // SAFETY: by the caller.
        unsafe { L::load(block.add(d * KEYS * 4).cast()) }
    }
    #[inline(always)]
    unsafe fn row<L: Lanes>(row: *const u8, at: usize) -> L::F {
        // SAFETY: by the caller.
        unsafe { L::load(row.add(at * 4).cast()) }
    }
    #[inline(always)]
    unsafe fn row_n<L: Lanes>(row: *const u8, at: usize, n: usize) -> L::F {
        // SAFETY: by the caller.
        unsafe { L::load_n(row.add(at * 4).cast(), n) }
    }
}

struct F16;
#[allow(clippy::cast_ptr_alignment)]
impl Element for F16 {
    #[inline(always)]
    unsafe fn keys<L: Lanes>(block: *const u8, d: usize) -> L::F {
        // SAFETY: by the caller.
        unsafe { L::load_f16(block.add(d * KEYS * 2).cast()) }
    }
    #[inline(always)]
    unsafe fn row<L: Lanes>(row: *const u8, at: usize) -> L::F {
        // SAFETY: by the caller.
        unsafe { L::load_f16(row.add(at * 2).cast()) }
    }
    #[inline(always)]
    unsafe fn row_n<L: Lanes>(row: *const u8, at: usize, n: usize) -> L::F {
        // SAFETY: by the caller.
        unsafe { L::load_f16_n(row.add(at * 2).cast(), n) }
    }
}

struct Q8_0;
#[allow(clippy::cast_ptr_alignment)]
impl Element for Q8_0 {
    #[inline(always)]
    unsafe fn keys<L: Lanes>(block: *const u8, d: usize) -> L::F {
        // SAFETY: by the caller.
        unsafe {
            let block = block.add(d / Q8 * KEYS * Q8_BYTES);
            L::mul(L::load_i8(block.add(KEYS * 2 + d % Q8 * KEYS).cast()), L::load_f16(block.cast()))
        }
    }
    #[inline(always)]
    unsafe fn row<L: Lanes>(row: *const u8, at: usize) -> L::F {
        // SAFETY: by the caller; `at` is in the first or second half of a block of 32.
        unsafe {
            let block = row.add(at / Q8 * Q8_BYTES);
            L::mul(L::load_i8(block.add(2 + at % Q8).cast()), L::splat_f16(block.cast()))
        }
    }
    #[inline(always)]
    unsafe fn row_n<L: Lanes>(_: *const u8, _: usize, _: usize) -> L::F {
        unreachable!("rows of Q8_0 are multiples of 32")
    }
}

/// Whether one register holds 16 lanes. Where it takes two there are half as many registers, too.
const fn wide<L: Lanes>() -> bool {
    align_of::<L::F>() == 64
}

#[cfg(test)]
mod tests;
