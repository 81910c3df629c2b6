//! Keys and values of a sequence's beginning, for sequences that begin alike.
//!
//! What a position's keys and values are depends on the tokens up to it and on nothing else, so whoever has them may give
//! them to others: whole pages, without a copy. A page that several have is full, and is never written again
//! ([`KvCache::shrink`](crate::kv::KvCache::shrink)).

use super::Session;
use crate::kv::{PAGE, Page};
use crate::model::op::RopeTable;
use nexaquant_kernels::KvType;
use std::sync::Arc;

/// The full pages of a session, and what they are pages of. Holds what they cost and not the model.
#[derive(Clone, Debug)]
pub(crate) struct Prefix {
    tokens: Vec<u32>,
    pages: Vec<Arc<Page>>,
    page_bytes: usize,
    kv: KvType,
    /// A model may rotate differently in a longer context.
    ropes: Vec<RopeTable>,
}

impl Prefix {
    /// Its pages, by what tells them apart, and the bytes of each.
    pub(crate) fn pages(&self) -> (impl Iterator<Item = usize> + '_, usize) {
        (self.pages.iter().map(|page| Arc::as_ptr(page) as usize), self.page_bytes)
    }
    /// Whether it begins with all of `other`, which is then of no further use.
    pub(crate) fn covers(&self, other: &Prefix) -> bool {
        self.kv == other.kv && self.ropes == other.ropes && self.tokens.starts_with(&other.tokens)
    }
}

impl Session {
    /// What others may have of this session, if it has a full page.
    pub(crate) fn prefix(&self) -> Option<Prefix> {
        let whole = self.tokens.len() / PAGE;
        (whole > 0 && self.device.is_none()).then(|| Prefix {
            tokens: self.tokens[..whole * PAGE].to_vec(),
            pages: self.kv.pages()[..whole].to_vec(),
            page_bytes: self.kv.layout().page_bytes(),
            kv: self.kv.layout().ty,
            ropes: self.ropes.clone(),
        })
    }

    /// How many tokens this session, which has none, could have of `prefix` if it is to begin with `beginning`.
    pub(crate) fn could_have(&self, prefix: &Prefix, beginning: &[u32]) -> usize {
        self.shared(prefix.kv, &prefix.ropes, &prefix.tokens, beginning)
    }

    /// The same of another session.
    pub(crate) fn could_have_of(&self, other: &Session, beginning: &[u32]) -> usize {
        let tokens = if other.device.is_none() { &other.tokens[..] } else { &[] };
        self.shared(other.kv.layout().ty, &other.ropes, tokens, beginning)
    }

    fn shared(&self, kv: KvType, ropes: &[RopeTable], tokens: &[u32], beginning: &[u32]) -> usize {
        if !self.tokens.is_empty() || self.device.is_some() {
            return 0;
        }
        let most = beginning.len().min(tokens.len()).min(self.context);
        let same = tokens.iter().zip(&beginning[..most]).take_while(|(a, b)| a == b).count();
        let alike = same >= PAGE && self.kv.layout().ty == kv && self.ropes == ropes;
        if alike { same / PAGE * PAGE } else { 0 }
    }

    /// Begins with the first `len` tokens of `prefix`, as many as [`Session::could_have`] of them.
    pub(crate) fn adopt(&mut self, prefix: &Prefix, len: usize) {
        self.tokens.extend_from_slice(&prefix.tokens[..len]);
        self.kv.adopt(prefix.pages[..len / PAGE].to_vec());
    }

    /// Bytes that the cache grows by for so many more tokens.
    pub(crate) fn growth(&self, tokens: usize) -> u64 {
        let positions = (self.tokens.len() + tokens).saturating_sub(self.kv.capacity());
        (positions.div_ceil(PAGE) * self.kv.layout().page_bytes()) as u64
    }
}
