//! Cuts text at tokens that are taken whole: control tokens and those the file calls user-defined.

use super::{TokenizerError, vocab::Vocab};
use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};

/// A stretch of text, or a token found in it.
#[derive(Debug, PartialEq)]
pub(super) enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

/// Finds a set of tokens in text, the longest where several start.
pub(super) struct Matcher {
    /// None if there is nothing to find.
    automaton: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl Matcher {
    /// `ids` whose texts are empty or not UTF-8 are left out: text cannot contain them.
    pub fn new(vocab: &Vocab, ids: impl IntoIterator<Item = u32>) -> Result<Self, TokenizerError> {
        let (ids, texts): (Vec<u32>, Vec<&str>) = ids
            .into_iter()
            .filter_map(|id| vocab.spelled(id).filter(|text| !text.is_empty()).map(|text| (id, text)))
            .unzip();
        let automaton = if ids.is_empty() {
            None
        } else {
            let built = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .start_kind(StartKind::Both)
                .build(&texts);
            Some(built.map_err(|error| TokenizerError::TooManySpecials { reason: error.to_string() })?)
        };
        Ok(Self { automaton, ids })
    }

    /// Whether one of the tokens occurs in `text`, or begins it.
    pub fn occurs(&self, text: &str, at_start: bool) -> bool {
        let anchored = if at_start { Anchored::Yes } else { Anchored::No };
        self.automaton
            .as_ref()
            .is_some_and(|automaton| automaton.find(Input::new(text).anchored(anchored)).is_some())
    }

    /// Calls `emit` with the pieces of `text` in order; no piece of text is empty. A token counts only where `allow`
    /// says so of the byte it starts at, and where it does not, the search goes on one character later.
    pub fn split<'a>(
        &self,
        text: &'a str,
        allow: impl Fn(usize) -> bool,
        mut emit: impl FnMut(usize, Fragment<'a>) -> Result<(), TokenizerError>,
    ) -> Result<(), TokenizerError> {
        let (mut start, mut from) = (0, 0);
        if let Some(automaton) = &self.automaton {
            while let Some(found) = automaton.find(Input::new(text).range(from..).anchored(Anchored::No)) {
                if !allow(found.start()) {
                    from = found.start() + text[found.start()..].chars().next().map_or(1, char::len_utf8);
                    continue;
                }
                if found.start() > start {
                    emit(start, Fragment::Text(&text[start..found.start()]))?;
                }
                emit(found.start(), Fragment::Token(self.ids[found.pattern().as_usize()]))?;
                (start, from) = (found.end(), found.end());
            }
        }
        if start < text.len() {
            emit(start, Fragment::Text(&text[start..]))?;
        }
        Ok(())
    }
}
