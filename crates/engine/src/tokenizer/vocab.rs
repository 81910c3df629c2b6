//! The vocabulary of a file: token texts, what kind each token is, and what bytes it stands for.
//!
//! Reads and checks `tokenizer.ggml.{tokens,token_type,…_token_id}`; how text becomes tokens is in `mod.rs`.

use super::TokenizerError;
use nexaquant_gguf::{Metadata, StringArray};

/// Largest vocabulary accepted. The largest known ones have 262,144 tokens.
const MAX_TOKENS: usize = 1 << 22;
/// Longest token accepted, in bytes. Long ones in use are runs of 256 spaces or newlines.
const MAX_TOKEN_BYTES: usize = 8192;

/// The word boundary of SentencePiece, which stands for a space.
pub(super) const SPACE_MARK: char = '\u{2581}';

/// Texts that end a turn in some model family. A token spelled like this ends generation if it is a control token.
const TURN_ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "< EOT >",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<|return|>",
    "<|call|>",
    "<|eot|>",
    "<|endofturn|>",
    "<｜end▁of▁sentence｜>",
    "</s>",
    "<eos>",
];

/// Those of [`TURN_ENDS`] nobody writes by accident: a file that has such a token and does not call it control is
/// mistaken, and the token is taken as control all the same.
const ALWAYS_CONTROL: &[&str] =
    &["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>"];

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// Stands for text the vocabulary cannot spell.
    Unknown,
    /// Steers the model, has no text of its own.
    Control,
    /// Text that is this token wherever it occurs, before any merging.
    UserDefined,
    /// A place without use.
    Unused,
    /// One byte of text the vocabulary has no other token for.
    Byte,
}

/// How the file spells tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Text in which [`SPACE_MARK`] is a space, and `<0x0A>` a byte.
    SentencePiece,
    /// Every byte as one printable character, the GPT-2 alphabet.
    ByteLevel,
}

/// Tokens and their kinds.
pub(super) struct Vocab {
    pub tokens: StringArray,
    pub kinds: Vec<TokenKind>,
    pub spelling: Spelling,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    /// Sorted, without duplicates.
    pub turn_ends: Vec<u32>,
    /// Byte of each character of the GPT-2 alphabet, which lies below U+0144.
    byte_of: [Option<u8>; 0x144],
}

impl Vocab {
    pub fn from_metadata(metadata: &Metadata, spelling: Spelling) -> Result<Self, TokenizerError> {
        let tokens = metadata.need_strings("tokenizer.ggml.tokens")?.clone();
        let count = tokens.len();
        if count == 0 || count > MAX_TOKENS {
            return Err(TokenizerError::VocabularySize { tokens: count, most: MAX_TOKENS });
        }
        if let Some((id, token)) = tokens.iter().enumerate().find(|(_, token)| token.len() > MAX_TOKEN_BYTES)
        {
            return Err(TokenizerError::LongToken { id, bytes: token.len(), most: MAX_TOKEN_BYTES });
        }
        let special = |name: &str| -> Result<Option<u32>, TokenizerError> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match metadata.i64(&key)? {
                // Some converters write -1, or 2^32-1, for a token the model does not have.
                None | Some(-1 | 0xffff_ffff) => Ok(None),
                Some(id) if (0..count as i64).contains(&id) => Ok(Some(id as u32)),
                Some(id) => Err(TokenizerError::IdOutOfRange { key, id, tokens: count }),
            }
        };
        let (bos, eos, unknown) = (special("bos")?, special("eos")?, special("unknown")?);
        let (eot, eom) = (special("eot")?, special("eom")?);

        let mut kinds = kinds(metadata, &tokens)?;
        if kinds.is_empty() {
            kinds = vec![TokenKind::Normal; count];
            for id in [bos, eos, eot, eom].into_iter().flatten() {
                kinds[id as usize] = TokenKind::Control;
            }
        }
        let mut turn_ends: Vec<u32> = [eos, eot, eom].into_iter().flatten().collect();
        for (id, token) in tokens.iter().enumerate() {
            let is = |list: &[&str]| list.iter().any(|text| text.as_bytes() == token);
            if is(ALWAYS_CONTROL) {
                kinds[id] = TokenKind::Control;
            }
            if kinds[id] == TokenKind::Control && is(TURN_ENDS) {
                turn_ends.push(id as u32);
            }
        }
        turn_ends.sort_unstable();
        turn_ends.dedup();
        Ok(Self { tokens, kinds, spelling, bos, eos, unknown, turn_ends, byte_of: byte_alphabet() })
    }

    /// The ids of one kind.
    pub fn ids(&self, kind: TokenKind) -> impl Iterator<Item = u32> + '_ {
        self.kinds.iter().enumerate().filter(move |&(_, &k)| k == kind).map(|(id, _)| id as u32)
    }

    /// The text of a token as the file spells it, unless it is not UTF-8.
    pub fn spelled(&self, id: u32) -> Option<&str> {
        str::from_utf8(self.tokens.get(id as usize)).ok()
    }

    /// Appends the bytes of text a token stands for; a control token stands for its own name.
    pub fn append_bytes(&self, id: u32, out: &mut Vec<u8>) {
        let raw = self.tokens.get(id as usize);
        match (self.spelling, self.kinds[id as usize]) {
            (Spelling::SentencePiece, TokenKind::Byte) => match byte_token(raw) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(raw),
            },
            (Spelling::SentencePiece, TokenKind::Normal | TokenKind::Unused) => match str::from_utf8(raw) {
                Ok(text) => extend_chars(out, text.chars().map(|c| if c == SPACE_MARK { ' ' } else { c })),
                Err(_) => out.extend_from_slice(raw),
            },
            (Spelling::ByteLevel, TokenKind::Normal | TokenKind::Unused) => match str::from_utf8(raw) {
                Ok(text) => {
                    for c in text.chars() {
                        match self.byte_of.get(c as usize).copied().flatten() {
                            Some(byte) => out.push(byte),
                            None => extend_chars(out, [c]),
                        }
                    }
                }
                Err(_) => out.extend_from_slice(raw),
            },
            _ => out.extend_from_slice(raw),
        }
    }

    /// Whether a token is one character of the byte alphabet.
    pub fn is_base(&self, token: &str) -> bool {
        let mut chars = token.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) => self.byte_of.get(c as usize).is_some_and(Option::is_some),
            _ => false,
        }
    }
}

fn extend_chars(out: &mut Vec<u8>, chars: impl IntoIterator<Item = char>) {
    for c in chars {
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

/// The byte a token such as `<0x0A>` stands for.
fn byte_token(token: &[u8]) -> Option<u8> {
    let hex = token.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok()
}

/// GPT-2's alphabet: printable Latin-1 characters are themselves, the 68 other bytes follow from U+0100 on.
fn byte_alphabet() -> [Option<u8>; 0x144] {
    let mut table = [None; 0x144];
    let mut next = 0x100;
    for byte in 0..=u8::MAX {
        let at = if matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) {
            usize::from(byte)
        } else {
            next += 1;
            next - 1
        };
        table[at] = Some(byte);
    }
    table
}

fn kinds(metadata: &Metadata, tokens: &StringArray) -> Result<Vec<TokenKind>, TokenizerError> {
    let Some(types) =
        metadata.array("tokenizer.ggml.token_type")?.map(|types| types.i64s().unwrap_or_default())
    else {
        return Ok(Vec::new());
    };
    if types.len() != tokens.len() {
        return Err(TokenizerError::Lengths {
            what: "token types",
            found: types.len(),
            tokens: tokens.len(),
        });
    }
    // 0 is "undefined" and occurs in old files; anything unknown is text, which is the harmless reading.
    Ok(types
        .into_iter()
        .map(|kind| match kind {
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => TokenKind::Normal,
        })
        .collect())
}
