//! The key-value cache of one session, in pages.
//!
//! A page holds [`PAGE`] positions of all layers, so that a cache grows by what it needs and a budget can be asked
//! before each page. Inside a page:
//!
//! ```text
//! for each layer:  K [kv_head][PAGE / 16][head_dim][16]   then   V [kv_head][PAGE][head_dim]
//! ```
//!
//! so that attention reads what belongs to one head at one stretch, and the keys of 16 positions side by side
//! ([`nexaquant_kernels::KEYS`]). Pages are indexed by absolute position; how a
//! prompt is cut into steps does not show. In a memory with a budget each page is paid for before it is allocated; elsewhere the one that comes
//! next is allocated early, and readied a little with each token.
//!
//! Full pages can be had by several sessions ([`crate::session`]'s prefixes): they are paid for once, until the last one
//! lets go of them.

use crate::cpu::{OutOfMemory, SharedBuf};
use crate::model::hparams::HParams;
use nexaquant_kernels::{KEYS, KvType};
use nexaquant_residency::Charge;
use std::ops::Range;
use std::sync::Arc;

/// Positions in a page.
pub const PAGE: usize = 32;
/// From this size of a page on the next one is readied piece by piece; smaller ones at once, when they are needed. Their models make a
/// token so fast that asking for a piece with each takes 2 % of its time (the bundled alpha).
const AHEAD: usize = 512 << 10;

/// Where things are inside a page.
#[derive(Clone, Debug)]
pub struct KvLayout {
    /// Element type.
    pub ty: KvType,
    /// Values in a row.
    pub head_dim: usize,
    /// Bytes of one head's row.
    pub row_bytes: usize,
    /// Byte offset of each layer's K, and one more entry: the page's end.
    layers: Vec<usize>,
}

/// The head size has no whole rows in this cache type.
#[derive(Debug, thiserror::Error)]
#[error(
    "a {ty} cache needs a head size that is a multiple of 32; this model's is {head_dim}; use f16 or f32"
)]
pub struct KvTypeError {
    ty: &'static str,
    head_dim: usize,
}

impl KvLayout {
    /// The layout for a model.
    pub fn new(h: &HParams, ty: KvType) -> Result<Self, KvTypeError> {
        let head_dim = h.head_dim;
        let row_bytes = ty.row_bytes(head_dim).ok_or(KvTypeError { ty: ty.name(), head_dim })?;
        let mut layers = vec![0];
        let mut at = 0;
        for layer in &h.layers {
            at += 2 * layer.kv_heads * PAGE * row_bytes;
            layers.push(at);
        }
        Ok(Self { ty, head_dim, row_bytes, layers })
    }
    /// The same with room for some layers only: the others take nothing.
    pub fn only(&self, layers: &Range<usize>) -> Self {
        let mut at = 0;
        let ends = self.layers.windows(2).enumerate().map(|(layer, pair)| {
            at += if layers.contains(&layer) { pair[1] - pair[0] } else { 0 };
            at
        });
        let layers = std::iter::once(0).chain(ends).collect();
        Self { layers, ..*self }
    }
    /// Bytes of a page, a multiple of a cache line.
    pub fn page_bytes(&self) -> usize {
        self.layers[self.layers.len() - 1].next_multiple_of(64)
    }
    /// Bytes of the keys of one head in one page; `rows` are positions in the page, whole blocks of keys.
    pub fn k(&self, layer: usize, head: usize, rows: Range<usize>) -> Range<usize> {
        debug_assert!(
            rows.start.is_multiple_of(KEYS) && rows.end.is_multiple_of(KEYS),
            "whole blocks of keys"
        );
        self.rows(layer, head, rows)
    }
    fn rows(&self, layer: usize, head: usize, rows: Range<usize>) -> Range<usize> {
        let head = self.layers[layer] + head * PAGE * self.row_bytes;
        head + rows.start * self.row_bytes..head + rows.end * self.row_bytes
    }
    /// Bytes of the values of one head in one page; `rows` are positions in the page.
    pub fn v(&self, layer: usize, head: usize, rows: Range<usize>) -> Range<usize> {
        let half = (self.layers[layer + 1] - self.layers[layer]) / 2;
        let k = self.rows(layer, head, rows);
        k.start + half..k.end + half
    }
}

/// A page, and what it costs. Sequences that begin alike may have one page together: then all its positions are filled and
/// nobody writes it.
#[derive(Debug)]
pub(crate) struct Page {
    pub data: SharedBuf<u8>,
    /// Where there is a budget.
    _charge: Option<Charge>,
}

/// The pages of one session.
#[derive(Debug)]
pub struct KvCache {
    layout: KvLayout,
    pages: Vec<Arc<Page>>,
    /// The one that comes next, for a sequence that nobody counts the bytes of.
    next: Option<SharedBuf<u8>>,
}

impl KvCache {
    /// No pages yet.
    pub fn new(layout: KvLayout) -> Self {
        Self { layout, pages: Vec::new(), next: None }
    }
    /// The layout of its pages.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }
    /// Positions that fit the pages there are.
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE
    }
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        (self.pages.len() + usize::from(self.next.is_some())) * self.layout.page_bytes()
    }
    /// Adds pages until `positions` fit. `pay` is asked for the bytes of each before it is allocated.
    pub fn grow<E: From<OutOfMemory>>(
        &mut self,
        positions: usize,
        mut pay: impl FnMut(usize) -> Result<Option<Charge>, E>,
    ) -> Result<(), E> {
        while self.capacity() < positions {
            let mut charge = pay(self.layout.page_bytes())?;
            let data = match self.next.take_if(|_| charge.is_none()) {
                Some(data) => data,
                None => SharedBuf::new(self.layout.page_bytes())?,
            };
            if self.layout.page_bytes() < AHEAD {
                data.populate(0..self.layout.page_bytes());
            }
            if let Some(charge) = &mut charge {
                charge.commit();
            }
            self.pages.push(Arc::new(Page { data, _charge: charge }));
        }
        Ok(())
    }
    /// Readies a part of the page that comes next, which is not paid for, while `position` is filled. The first position of a page writes to
    /// most of its memory, and a token that waits until the system has cleared all of that is late.
    pub(crate) fn look_ahead(&mut self, position: usize) {
        let bytes = self.layout.page_bytes();
        if bytes < AHEAD {
            return;
        }
        if self.next.is_none() {
            // Where there is no memory, the step that needs it says so.
            self.next = SharedBuf::new(bytes).ok();
        }
        if let Some(next) = &self.next {
            let at = position % PAGE;
            next.populate(bytes * at / PAGE..bytes * (at + 1) / PAGE);
        }
    }
    /// Gives back the pages that `positions` positions do not need. Returns how many positions are left: fewer than asked
    /// for where the last of them are in a page that others have, too, since what follows would be written there.
    pub fn shrink(&mut self, positions: usize) -> usize {
        let whole = positions / PAGE;
        let shared = !positions.is_multiple_of(PAGE)
            && self.pages.get(whole).is_some_and(|p| Arc::strong_count(p) > 1);
        let positions = if shared { whole * PAGE } else { positions };
        self.pages.truncate(positions.div_ceil(PAGE));
        if positions == 0 {
            // Nothing is held for a sequence without positions.
            self.next = None;
        }
        positions
    }
    /// The pages, for the executor.
    pub(crate) fn pages(&self) -> &[Arc<Page>] {
        &self.pages
    }
    /// Has `pages`, which are full, in place of its own.
    pub(crate) fn adopt(&mut self, pages: Vec<Arc<Page>>) {
        self.pages = pages;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_page_that_was_readied_is_the_next_one() {
        let layers = vec![0, 2 * 64 * PAGE * 128, 2 * 65 * PAGE * 128];
        let layout = KvLayout { ty: KvType::F16, head_dim: 64, row_bytes: 128, layers };
        let bytes = layout.page_bytes();
        let mut kv = KvCache::new(layout);
        let free = |_| Ok::<_, OutOfMemory>(None);
        kv.grow(1, free).unwrap();
        assert_eq!((kv.capacity(), kv.bytes()), (PAGE, bytes));
        for position in 0..PAGE {
            kv.look_ahead(position);
        }
        assert_eq!((kv.capacity(), kv.bytes()), (PAGE, 2 * bytes), "held, but no room yet");
        let ready = kv.next.as_ref().unwrap().at(0..0);
        kv.grow(2 * PAGE + 1, free).unwrap();
        assert_eq!((kv.capacity(), kv.bytes()), (3 * PAGE, 3 * bytes));
        assert_eq!(kv.pages()[1].data.at(0..0), ready);
        kv.look_ahead(2 * PAGE + 1);
        assert_eq!((kv.shrink(5), kv.bytes()), (5, 2 * bytes));
        assert_eq!((kv.shrink(0), kv.bytes()), (0, 0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_small_page_has_its_memory_before_anybody_writes() {
        use crate::cpu::memory::{given_ahead, present};
        let layers = vec![0, 2 * 28 * PAGE * 128];
        let mut kv = KvCache::new(KvLayout { ty: KvType::F16, head_dim: 64, row_bytes: 128, layers });
        let bytes = kv.layout().page_bytes();
        assert!(bytes < AHEAD);
        if !given_ahead() {
            return println!("skipped: this system gives no memory ahead");
        }
        kv.grow(PAGE + 1, |_| Ok::<_, OutOfMemory>(None)).unwrap();
        for page in kv.pages() {
            assert_eq!(present(&page.data), bytes / rustix::param::page_size());
        }
    }
}
