//! Token ids to text, one at a time.

use super::{TokenKind, Tokenizer};

/// Turns a stream of token ids into pieces of text that are complete.
///
/// A character may take several tokens; its bytes are held back until it is complete. What can never become one is
/// U+FFFD. Concatenated, the pieces are the same however the stream is cut.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    /// Bytes of a character that is not complete: at most three.
    pending: Vec<u8>,
    /// Whether nothing has been said yet, so that SentencePiece's unwritten space may still come.
    at_start: bool,
    with_control: bool,
}

impl StreamDecoder {
    /// For a text from its beginning: the space that SentencePiece puts before it is not part of it.
    pub fn at_start() -> Self {
        Self { pending: Vec::new(), at_start: true, with_control: false }
    }

    /// For the continuation of a text, where a leading space is meant.
    pub fn continuing() -> Self {
        Self { at_start: false, ..Self::at_start() }
    }

    /// Shows control tokens by name, which are left out otherwise.
    #[must_use]
    pub fn with_control_tokens(mut self) -> Self {
        self.with_control = true;
        self
    }

    /// Text that token `id` completes, often empty. An id outside the vocabulary is U+FFFD.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        match tokenizer.kind(id) {
            None => self.pending.extend_from_slice("\u{fffd}".as_bytes()),
            Some(TokenKind::Control) if !self.with_control => return String::new(),
            Some(kind) => {
                let old = self.pending.len();
                tokenizer.vocab.append_bytes(id, &mut self.pending);
                let text = kind != TokenKind::Control;
                if text
                    && std::mem::take(&mut self.at_start)
                    && tokenizer.space_prefix
                    && self.pending[old..].starts_with(b" ")
                {
                    self.pending.remove(old);
                }
            }
        }
        self.take_complete()
    }

    /// The rest of the text: U+FFFD if the stream ended inside a character, nothing otherwise.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }

    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(str::from_utf8(valid).unwrap_or_default());
                    let Some(bad) = error.error_len() else {
                        let keep = self.pending.len() - after.len();
                        self.pending.drain(..keep);
                        return text;
                    };
                    text.push('\u{fffd}');
                    rest = &after[bad..];
                }
            }
        }
    }
}
