//! Keeps what users wrote from being taken for control tokens.
//!
//! A template mixes its own control tokens with the contents of messages inside one expression, and may trim, split or
//! search those contents. So the contents go in almost as they are: only characters a control token can begin with
//! (usually `<` alone) are replaced by stand-ins from the private-use planes that occur nowhere else. When the text
//! comes out, the stand-ins become the characters again, and the places where they stood are remembered: no control
//! token may begin there. Whatever the template does with the text, a control token can only begin at a character the
//! template itself wrote.
//!
//! Some templates look for tags such as `</think>` in the contents. A tag that the template mentions and that neither
//! is nor contains a control token is left as it is.

use super::ChatError;
use crate::tokenizer::Tokenizer;
use std::collections::HashSet;

/// Private-use planes 15 and 16: no script has characters there.
const STAND_INS: std::ops::RangeInclusive<char> = '\u{f0000}'..='\u{10fffd}';

pub(super) struct Shield<'a> {
    /// Character and stand-in, sorted by character.
    pairs: Vec<(char, char)>,
    tokenizer: &'a Tokenizer,
    template: &'a str,
}

/// Text with the places where no control token may begin.
#[derive(Debug)]
pub(super) struct Shielded {
    pub text: String,
    /// Byte offsets, ascending.
    places: Vec<usize>,
}

impl Shielded {
    /// Whether a control token may begin at this byte.
    pub fn allows(&self, at: usize) -> bool {
        self.places.binary_search(&at).is_err()
    }
}

impl<'a> Shield<'a> {
    /// A shield for these texts in this template.
    pub fn new<'b>(
        tokenizer: &'a Tokenizer,
        template: &'a str,
        texts: impl Iterator<Item = &'b str>,
    ) -> Result<Self, ChatError> {
        let chars = texts.flat_map(str::chars).chain(template.chars());
        let taken: HashSet<char> = chars.filter(|c| STAND_INS.contains(c)).collect();
        let mut free = STAND_INS.filter(|c| !taken.contains(c));
        let pairs = tokenizer
            .control_initials()
            .into_iter()
            .map(|c| Some((c, free.next()?)))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| ChatError::Failed { reason: "too many different control tokens".to_owned() })?;
        Ok(Self { pairs, tokenizer, template })
    }

    /// The text with stand-ins.
    pub fn protect(&self, text: &str) -> String {
        text.char_indices()
            .map(|(at, c)| match self.pairs.binary_search_by_key(&c, |pair| pair.0) {
                Ok(pair) if !self.is_harmless_tag(&text[at..]) => self.pairs[pair].1,
                _ => c,
            })
            .collect()
    }

    /// Whether `text` starts with a tag like `<think>` or `</tool_call>` that the template mentions and no control
    /// token begins with.
    fn is_harmless_tag(&self, text: &str) -> bool {
        const LONGEST: usize = 64;
        let tag = text
            .bytes()
            .take(LONGEST)
            .position(|byte| byte == b'>')
            .map(|end| &text[..=end])
            .filter(|tag| tag.starts_with('<'));
        tag.is_some_and(|tag| {
            let name = tag[1..tag.len() - 1].trim_start_matches('/');
            !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
                && self.template.contains(tag)
                && !self.tokenizer.begins_with_control(text)
                && !self.tokenizer.contains_control(tag)
        })
    }

    /// The text with its own characters again.
    pub fn remove(&self, text: &str) -> Shielded {
        let mut out = Shielded { text: String::with_capacity(text.len()), places: Vec::new() };
        for c in text.chars() {
            match self.pairs.iter().find(|pair| pair.1 == c) {
                Some(&(original, _)) => {
                    out.places.push(out.text.len());
                    out.text.push(original);
                }
                None => out.text.push(c),
            }
        }
        out
    }
}
