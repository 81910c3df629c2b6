//! The last tokens of a sequence, counted.

use std::collections::VecDeque;

/// Tokens a window has room for from the start; a longer one grows.
const MOST_RESERVED: usize = 1 << 16;

/// How often each token occurs among the last `size` tokens.
#[derive(Clone, Debug)]
pub(super) struct Window {
    size: usize,
    recent: VecDeque<u32>,
    /// Tokens of the window and their number, sorted by token. Sorted, because the logits are scanned once in order.
    counts: Vec<(u32, u32)>,
}

impl Window {
    /// A window of `size` tokens of a vocabulary of `vocab_size`.
    pub fn new(size: usize, vocab_size: usize) -> Self {
        // The size may come from a file's context length; what is really needed comes with the tokens.
        let room = size.min(MOST_RESERVED);
        Self { size, recent: VecDeque::with_capacity(room), counts: Vec::with_capacity(room.min(vocab_size)) }
    }

    /// Most different tokens there can be.
    pub fn most_ids(&self) -> usize {
        self.counts.capacity()
    }

    pub fn push(&mut self, token: u32) {
        if self.size == 0 {
            return;
        }
        if self.recent.len() == self.size
            && let Some(old) = self.recent.pop_front()
            && let Ok(at) = self.counts.binary_search_by_key(&old, |count| count.0)
        {
            self.counts[at].1 -= 1;
            if self.counts[at].1 == 0 {
                self.counts.remove(at);
            }
        }
        self.recent.push_back(token);
        match self.counts.binary_search_by_key(&token, |count| count.0) {
            Ok(at) => self.counts[at].1 += 1,
            Err(at) => self.counts.insert(at, (token, 1)),
        }
    }

    /// Tokens of the window and their number, sorted by token.
    pub fn counts(&self) -> &[(u32, u32)] {
        &self.counts
    }
}
