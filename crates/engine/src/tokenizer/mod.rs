//! Text to token ids and back, from the vocabulary inside the model file.
//!
//! [`Tokenizer::from_metadata`] reads `tokenizer.ggml.*`; [`Tokenizer::encode`] and [`StreamDecoder`] do the work.
//! Two kinds of file are understood: `llama` (SentencePiece pairs with scores: Llama 2, Phi-3, Gemma) and `gpt2`
//! (byte-level pairs with a merge list and a [pre-tokenizer](pre): Llama 3, Qwen, SmolLM, Falcon 3, BitNet and most
//! others). Merging is done by the `splintr` crate; this module decides what it may see: control tokens are cut out of
//! a text here or not at all, so that text typed by a user never becomes one by accident.
//!
//! Not here: chat templates (`chat.rs`).

mod decode;
mod fragments;
mod pre;
mod vocab;

pub use decode::StreamDecoder;
pub use vocab::TokenKind;

use fragments::{Fragment, Matcher};
use nexaquant_gguf::{Metadata, StringArray};
use splintr::{FxHashMap, SpmTokenizer};
use vocab::{Spelling, Vocab};

/// Most bytes of text encoded at once. At four bytes a token this is far beyond any context in use.
pub const MAX_TEXT_BYTES: usize = 8 << 20;

/// The pre-tokenizer of BitNet files that name none; they have Llama 3's vocabulary.
const BITNET_PRE: &str = "llama-bpe";

/// What is wrong with a vocabulary or a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A key of the file is missing or has the wrong type.
    #[error("the tokenizer of this file cannot be read: {0}")]
    Metadata(#[from] nexaquant_gguf::Error),
    /// A kind of tokenizer that is not implemented.
    #[error(
        "tokenizer.ggml.model is `{model}`; supported are `llama` (SentencePiece pairs) and `gpt2` (byte pairs)"
    )]
    UnknownModel {
        /// The kind the file asks for.
        model: String,
    },
    /// A way to cut text that is not implemented.
    #[error(
        "tokenizer.ggml.pre is `{pre}`, which this program does not know; \
         another way to cut text would give wrong tokens, so the file is refused"
    )]
    UnknownPre {
        /// The name in the file.
        pre: String,
    },
    /// No tokens, or far too many.
    #[error("the vocabulary has {tokens} tokens; between 1 and {most} are possible")]
    VocabularySize {
        /// Tokens in the file.
        tokens: usize,
        /// The limit.
        most: usize,
    },
    /// A token nobody could want.
    #[error("token {id} has {bytes} bytes; at most {most} are accepted")]
    LongToken {
        /// The token.
        id: usize,
        /// Its length.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// An array that should have one element a token has another length.
    #[error("the file has {found} {what} for {tokens} tokens")]
    Lengths {
        /// What the array holds.
        what: &'static str,
        /// Its length.
        found: usize,
        /// Length of the vocabulary.
        tokens: usize,
    },
    /// A special token that is not in the vocabulary.
    #[error("{key} is {id}, but the vocabulary has {tokens} tokens")]
    IdOutOfRange {
        /// The key of the file.
        key: String,
        /// Its value.
        id: i64,
        /// Length of the vocabulary.
        tokens: usize,
    },
    /// A score that is not a finite number.
    #[error("the score of token {id} is {score}; scores must be finite")]
    BadScore {
        /// The token.
        id: usize,
        /// The score.
        score: f64,
    },
    /// A merge that is not two token texts with a space between them.
    #[error("merge {index} is {text:?}; it must be two token texts with one space between them")]
    BadMerge {
        /// Position in `tokenizer.ggml.merges`.
        index: usize,
        /// The merge.
        text: String,
    },
    /// The tokens taken whole do not fit into one search automaton.
    #[error("the special tokens of the file cannot be searched for: {reason}")]
    TooManySpecials {
        /// What the search library says.
        reason: String,
    },
    /// The merging library refused the vocabulary.
    #[error("the vocabulary cannot be used: {reason}")]
    Vocabulary {
        /// What it says.
        reason: String,
    },
    /// A text beyond [`MAX_TEXT_BYTES`].
    #[error("the text has {bytes} bytes; at most {most} can be encoded at once")]
    TextTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        most: usize,
    },
}

/// Whether text that spells a control token is that token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// It is text like any other: for everything a user wrote.
    AsText,
    /// It is the token: for templates.
    Parse,
}

enum Merger {
    Spm(Box<SpmTokenizer>),
    Bpe(Box<splintr::Tokenizer>),
}

/// The tokenizer of one model file. Immutable, so threads can share it.
pub struct Tokenizer {
    vocab: Vocab,
    merger: Merger,
    control: Matcher,
    user_defined: Matcher,
    /// Whether whitespace after a control token belongs to it, as in Phi-3.
    control_takes_space: bool,
    /// The token every sequence starts with, if any.
    first: Option<u32>,
    /// The token every complete sequence ends with, if any.
    last: Option<u32>,
    /// Whether text starts with a space that is not written, SentencePiece's dummy prefix.
    space_prefix: bool,
}

impl Tokenizer {
    /// Reads the tokenizer of a model file.
    ///
    /// Tolerated: missing token types (all tokens but the named special ones are text), tokens that are not UTF-8
    /// (they decode, but no text encodes to them), the same text twice (it encodes to the first), merges of unknown
    /// tokens (never used). Everything else that does not fit is an error.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let model = metadata.need_str("tokenizer.ggml.model")?;
        let spelling = match model {
            "llama" => Spelling::SentencePiece,
            "gpt2" => Spelling::ByteLevel,
            _ => return Err(TokenizerError::UnknownModel { model: model.to_owned() }),
        };
        let vocab = Vocab::from_metadata(metadata, spelling)?;
        let mut space_prefix = false;
        let mut add_bos = true;
        let merger = match spelling {
            Spelling::SentencePiece => {
                space_prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
                Merger::Spm(Box::new(sentencepiece(&vocab, metadata)?.with_prefix_space(space_prefix)))
            }
            Spelling::ByteLevel => {
                let pre = pre_tokenizer(metadata)?;
                add_bos = pre.add_bos;
                let merges = metadata.need_strings("tokenizer.ggml.merges")?;
                Merger::Bpe(Box::new(byte_pairs(&vocab, merges, pre)?))
            }
        };
        let add_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
        let add_eos = metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        // Files lack the flag; the name is what llama.cpp goes by as well.
        let name = metadata.str("general.name").ok().flatten().unwrap_or_default().to_lowercase();
        Ok(Self {
            control: Matcher::new(
                &vocab,
                vocab.ids(TokenKind::Control).chain(vocab.ids(TokenKind::Unknown)),
            )?,
            user_defined: Matcher::new(&vocab, vocab.ids(TokenKind::UserDefined))?,
            control_takes_space: name.contains("phi-3") || name.contains("phi3"),
            first: vocab.bos.filter(|_| add_bos),
            last: vocab.eos.filter(|_| add_eos),
            space_prefix,
            vocab,
            merger,
        })
    }

    /// Token ids of `text`, without a beginning- or end-of-sequence token.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, TokenizerError> {
        match special {
            Special::AsText => self.encode_where(text, |_| false),
            Special::Parse => self.encode_where(text, |_| true),
        }
    }

    /// As [`encode`](Self::encode), with the beginning- and end-of-sequence tokens the file asks for. One that the text
    /// already starts or ends with is not added again.
    pub fn encode_sequence(&self, text: &str, special: Special) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode(text, special)?;
        self.prepend_bos(&mut ids);
        if let Some(eos) = self.last.filter(|eos| ids.last() != Some(eos)) {
            ids.push(eos);
        }
        Ok(ids)
    }

    /// Puts the beginning-of-sequence token first if the file asks for one and it is not there.
    pub(crate) fn prepend_bos(&self, ids: &mut Vec<u32>) {
        if let Some(bos) = self.first.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
    }

    /// As [`encode`](Self::encode), where a control token is recognised only at bytes for which `control_at` is true.
    pub(crate) fn encode_where(
        &self,
        text: &str,
        control_at: impl Fn(usize) -> bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TokenizerError::TextTooLong { bytes: text.len(), most: MAX_TEXT_BYTES });
        }
        let mut ids = Vec::with_capacity(text.len() / 4 + 8);
        let mut after_control = false;
        self.control.split(text, control_at, |_, fragment| {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    after_control = self.takes_space(id);
                }
                Fragment::Text(text) => {
                    let text = if after_control { text.trim_ascii_start() } else { text };
                    self.user_defined.split(
                        text,
                        |_| true,
                        |_, fragment| {
                            match fragment {
                                Fragment::Token(id) => ids.push(id),
                                Fragment::Text(text) => self.merge(text, &mut ids),
                            }
                            Ok(())
                        },
                    )?;
                }
            }
            Ok(())
        })?;
        Ok(ids)
    }

    fn takes_space(&self, control: u32) -> bool {
        self.control_takes_space
            && !matches!(self.vocab.spelled(control), Some("<unk>" | "<s>" | "<|endoftext|>"))
    }

    fn merge(&self, text: &str, ids: &mut Vec<u32>) {
        match &self.merger {
            Merger::Spm(spm) => ids.extend(spm.encode_ordinary(text)),
            Merger::Bpe(bpe) => ids.extend(bpe.encode_ordinary(text)),
        }
    }

    /// Text of `ids`. Control tokens are left out, bytes that are not UTF-8 become U+FFFD, and so do ids outside the
    /// vocabulary. The unwritten space that SentencePiece puts before a text is removed.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut decoder = StreamDecoder::at_start();
        let mut text: String = ids.iter().map(|&id| decoder.push(self, id)).collect();
        text.push_str(&decoder.finish());
        text
    }

    /// Bytes of text token `id` stands for, not always UTF-8; the name of a control token. None outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        ((id as usize) < self.vocab_size()).then(|| self.vocab.append_bytes(id, &mut bytes))?;
        Some(bytes)
    }

    /// Text token `id` stands for, as far as it is UTF-8; the name of a control token. None outside the vocabulary.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.token_bytes(id).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What token `id` is for. None outside the vocabulary.
    pub fn kind(&self, id: u32) -> Option<TokenKind> {
        self.vocab.kinds.get(id as usize).copied()
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.vocab.tokens.len()
    }

    /// The beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.vocab.bos
    }

    /// The end-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.vocab.eos
    }

    /// Whether a sequence starts with [`bos`](Self::bos); false if there is none.
    pub fn add_bos(&self) -> bool {
        self.first.is_some()
    }

    /// Whether a sequence that is complete ends with [`eos`](Self::eos); false if there is none.
    pub fn add_eos(&self) -> bool {
        self.last.is_some()
    }

    /// Tokens after which a model has nothing more to say, sorted: end of sequence, of turn and of message, whether a
    /// key of the file names them or only their text tells.
    pub fn end_of_turn(&self) -> &[u32] {
        &self.vocab.turn_ends
    }

    /// The first characters of all control tokens, sorted: without one of these no text spells one.
    pub(crate) fn control_initials(&self) -> Vec<char> {
        let ids = self.vocab.ids(TokenKind::Control).chain(self.vocab.ids(TokenKind::Unknown));
        let mut initials: Vec<char> =
            ids.filter_map(|id| self.vocab.spelled(id).and_then(|text| text.chars().next())).collect();
        initials.sort_unstable();
        initials.dedup();
        initials
    }

    /// Whether a control token occurs in `text`.
    pub(crate) fn contains_control(&self, text: &str) -> bool {
        self.control.occurs(text, false)
    }

    /// Whether `text` begins with a control token.
    pub(crate) fn begins_with_control(&self, text: &str) -> bool {
        self.control.occurs(text, true)
    }
}

fn pre_tokenizer(metadata: &Metadata) -> Result<&'static pre::PreTokenizer, TokenizerError> {
    let name = match metadata.str("tokenizer.ggml.pre")? {
        Some(name) => name,
        None if metadata.str("general.architecture")?.is_some_and(|arch| arch.starts_with("bitnet")) => {
            BITNET_PRE
        }
        None => "default",
    };
    pre::find(name).ok_or_else(|| TokenizerError::UnknownPre { pre: name.to_owned() })
}

/// The token texts as SentencePiece merges them. Texts of control tokens are not among them: no merge may end there.
fn sentencepiece(vocab: &Vocab, metadata: &Metadata) -> Result<SpmTokenizer, TokenizerError> {
    let scores = metadata.need_f64s("tokenizer.ggml.scores")?;
    if scores.len() != vocab.tokens.len() {
        return Err(TokenizerError::Lengths {
            what: "scores",
            found: scores.len(),
            tokens: vocab.tokens.len(),
        });
    }
    if let Some((id, &score)) = scores.iter().enumerate().find(|(_, score)| !score.is_finite()) {
        return Err(TokenizerError::BadScore { id, score });
    }
    let all_bytes = vocab.ids(TokenKind::Byte).count() == 256;
    let texts =
        (0..vocab.tokens.len() as u32).map(|id| match (vocab.kinds[id as usize], vocab.spelled(id)) {
            // The library asks for this name when a character has no token.
            (TokenKind::Unknown, _) if !all_bytes && vocab.unknown.is_none_or(|unknown| unknown == id) => {
                "<unk>".to_owned()
            }
            (TokenKind::Control | TokenKind::Unknown, _) | (_, None) => unreachable_text(id),
            (_, Some(text)) => text.to_owned(),
        });
    SpmTokenizer::new(texts.collect(), scores.into_iter().map(|score| score as f32).collect(), None, None)
        .map_err(|error| TokenizerError::Vocabulary { reason: error.to_string() })
}

/// A text no merge leads to: it has several characters, the first two of which are no token together.
fn unreachable_text(id: u32) -> String {
    format!("\0\0{id}")
}

/// The vocabulary and its merges, as byte-level pair encoding wants them.
fn byte_pairs(
    vocab: &Vocab,
    merges: &StringArray,
    pre: &pre::PreTokenizer,
) -> Result<splintr::Tokenizer, TokenizerError> {
    let mergeable = |id: u32| !matches!(vocab.kinds[id as usize], TokenKind::Control | TokenKind::Unknown);
    let mut ids: FxHashMap<&str, u32> = FxHashMap::default();
    for id in (0..vocab.tokens.len() as u32).filter(|&id| mergeable(id)) {
        if let Some(text) = vocab.spelled(id) {
            ids.entry(text).or_insert(id);
        }
    }
    // What the library may find: single bytes, results of merges, and with `ignore_merges` every other token too.
    let mut encoder: FxHashMap<Vec<u8>, u32> = FxHashMap::default();
    let mut ranks = splintr::core::Encoder::with_capacity(merges.len() + 256);
    let mut base: Vec<(u32, &str)> =
        ids.iter().filter(|(text, _)| vocab.is_base(text)).map(|(text, id)| (*id, *text)).collect();
    base.sort_unstable();
    for (rank, (id, text)) in base.into_iter().enumerate() {
        encoder.insert(text.into(), id);
        ranks.insert_if_absent(text.as_bytes(), rank as u32);
    }
    for (index, merge) in merges.iter().enumerate() {
        let (left, right) = split_merge(merge).ok_or_else(|| TokenizerError::BadMerge {
            index,
            text: String::from_utf8_lossy(merge).into_owned(),
        })?;
        let merged = [left, right].concat();
        if let Some(&id) = ids.get(merged.as_str()) {
            ranks.insert_if_absent(merged.as_bytes(), 256 + index as u32);
            encoder.insert(merged.into_bytes(), id);
        }
    }
    if pre.ignore_merges {
        for (text, id) in ids {
            encoder.entry(text.into()).or_insert(id);
        }
    }
    let no_specials: FxHashMap<String, u32> = FxHashMap::default();
    let bpe = splintr::Tokenizer::new_byte_level_chain(encoder, no_specials, pre.expressions)
        .map_err(|error| TokenizerError::Vocabulary { reason: error.to_string() })?;
    Ok(bpe.with_merge_ranks(ranks))
}

/// Both halves of a merge. A half may not be empty; the first space after the first character divides them.
fn split_merge(merge: &[u8]) -> Option<(&str, &str)> {
    let merge = str::from_utf8(merge).ok()?;
    let first = merge.chars().next()?.len_utf8();
    let at = first + merge[first..].find(' ')?;
    let (left, right) = (&merge[..at], &merge[at + 1..]);
    (!right.is_empty() && !right.contains(' ')).then_some((left, right))
}

#[cfg(test)]
mod tests;
