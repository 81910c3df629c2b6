//! Keys and values of requests that are over, for requests that begin alike.
//!
//! Only full pages are kept, and none twice. They are what is given up first: whenever a pass would have to evict weights for
//! its room, and before anything is refused for lack of room (`pass.rs`, `run.rs`).

use super::Seat;
use crate::session::{Prefix, Session};
use std::collections::BTreeMap;

/// Most bytes kept, and most sequences: without a budget nothing else bounds them.
const MOST_BYTES: usize = 256 << 20;
const MOST_SEQUENCES: usize = 256;

/// What is kept of one request.
struct Kept {
    seat: Seat,
    prefix: Prefix,
}

/// Keys and values of requests that are over.
pub(super) struct Cache {
    /// The longest unused one first.
    kept: Vec<Kept>,
    most_bytes: usize,
}

impl Cache {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { kept: Vec::new(), most_bytes: MOST_BYTES }
    }

    /// Keeps `prefix`, and no other that is only its beginning.
    pub fn keep(&mut self, seat: Seat, prefix: Prefix) {
        if let Some(at) = self.kept.iter().position(|k| k.seat.is(&seat) && k.prefix.covers(&prefix)) {
            let again = self.kept.remove(at);
            return self.kept.push(again);
        }
        self.kept.retain(|k| !(k.seat.is(&seat) && prefix.covers(&k.prefix)));
        self.kept.push(Kept { seat, prefix });
        while self.kept.len() > MOST_SEQUENCES || self.bytes() > self.most_bytes {
            self.give_up();
        }
    }

    /// The one that `session` could have most of, and how many tokens that are.
    pub fn longest(&mut self, seat: &Seat, session: &Session, beginning: &[u32]) -> Option<(usize, Prefix)> {
        let kept = self.kept.iter().enumerate().filter(|(_, k)| k.seat.is(seat));
        let lengths = kept.map(|(at, k)| (session.could_have(&k.prefix, beginning), at));
        let (len, at) = lengths.filter(|(len, _)| *len > 0).max()?;
        let used = self.kept.remove(at);
        let prefix = used.prefix.clone();
        self.kept.push(used);
        Some((len, prefix))
    }

    /// Whether there is nothing to give up.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Gives up the one that was unused longest; false if there is none.
    pub fn give_up(&mut self) -> bool {
        if self.kept.is_empty() {
            return false;
        }
        self.kept.remove(0);
        true
    }

    /// Gives up everything; false if there is nothing.
    pub fn clear(&mut self) -> bool {
        !std::mem::take(&mut self.kept).is_empty()
    }

    /// Gives up what is of one model.
    pub fn forget(&mut self, seat: &Seat) {
        self.kept.retain(|kept| !kept.seat.is(seat));
    }

    /// Bytes of all pages, each counted once.
    fn bytes(&self) -> usize {
        let mut pages = BTreeMap::new();
        for Kept { prefix, .. } in &self.kept {
            let (these, bytes) = prefix.pages();
            pages.extend(these.map(|page| (page, bytes)));
        }
        pages.into_values().sum()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::threads::{Pool, PoolOptions};
    use crate::{LoadOptions, Model, PAGE, SessionOptions};
    use std::path::Path;

    #[test]
    fn the_longest_unused_goes_first_and_nothing_is_kept_twice() {
        let load = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.gguf"));
            Model::load(&path, LoadOptions::default()).unwrap()
        };
        let (model, other) = (load("qwen3"), Seat::Mapped(load("llama_tied")));
        let seat = Seat::Mapped(model.clone());
        let mut pool = Pool::new(PoolOptions { threads: Some(1), pin: false }).unwrap();
        let options = SessionOptions { context: 256, ..SessionOptions::default() };
        let mut computed = |first: u32, pages: usize| {
            let tokens: Vec<u32> = (0..(pages * PAGE) as u32 + 5).map(|i| first + i % 50).collect();
            let mut session = Session::new(&model, &pool, options).unwrap();
            session.extend(&mut pool, &tokens).unwrap();
            (session.prefix().unwrap(), tokens)
        };
        let [(a, a_tokens), (b, b_tokens), (long, long_tokens)] =
            [(1, 1), (2, 2), (1, 3)].map(|(f, n)| computed(f, n));
        let pool = Pool::new(PoolOptions { threads: Some(1), pin: false }).unwrap();
        let empty = Session::new(&model, &pool, options).unwrap();
        let page = a.pages().1;
        let mut cache = Cache::new();
        let found = |cache: &mut Cache, tokens: &[u32]| {
            cache.longest(&seat, &empty, tokens).map_or(0, |(len, _)| len / PAGE)
        };

        cache.keep(seat.clone(), a.clone());
        cache.keep(seat.clone(), b.clone());
        assert_eq!((cache.kept.len(), cache.bytes()), (2, 3 * page));
        assert_eq!((found(&mut cache, &a_tokens), found(&mut cache, &b_tokens)), (1, 2));
        assert!(cache.longest(&other, &empty, &a_tokens).is_none(), "another model's");
        // What begins with all of another takes its place; a beginning adds nothing.
        cache.keep(seat.clone(), long.clone());
        assert_eq!((cache.kept.len(), cache.bytes()), (2, 5 * page));
        cache.keep(seat.clone(), a.clone());
        assert_eq!((cache.kept.len(), cache.bytes()), (2, 5 * page));
        assert_eq!(found(&mut cache, &long_tokens), 3);
        // `b` was used before.
        cache.most_bytes = 4 * page;
        cache.keep(seat.clone(), long.clone());
        assert_eq!(cache.kept.len(), 2, "what is there stays");
        cache.keep(other.clone(), a.clone());
        assert_eq!((found(&mut cache, &b_tokens), found(&mut cache, &long_tokens)), (0, 3));
        assert_eq!(cache.bytes(), 4 * page);
        cache.forget(&seat);
        assert_eq!((cache.kept.len(), found(&mut cache, &a_tokens)), (1, 0));
        assert!(cache.give_up() && !cache.give_up() && !cache.clear() && cache.is_empty());
    }
}
