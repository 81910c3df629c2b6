//! Pre-tokenizers: how `tokenizer.ggml.pre` says text is cut before byte pairs are merged.
//!
//! One row of [`PRE_TOKENIZERS`] is one way to cut, with every name in use for it. The expressions of a row are applied
//! one after the other, each to the pieces the one before it left. A wrong row gives ids that are in range and mean
//! something else, so an unknown name is an error and never a guess.

use splintr::{
    DEEPSEEK_V3_PATTERNS, GPT2_PATTERN, LLAMA3_PATTERN, MISTRAL_V3_PATTERN, O200K_BASE_PATTERN,
    QWEN2_PATTERN, QWEN35_PATTERN,
};

/// A way to cut text.
pub(super) struct PreTokenizer {
    /// Values of `tokenizer.ggml.pre` that mean it.
    names: &'static [&'static str],
    /// Regular expressions; what none of them matches stays a piece of its own.
    pub expressions: &'static [&'static str],
    /// Whether a piece that is a token is that token, even if no sequence of merges leads there.
    pub ignore_merges: bool,
    /// Whether texts start with the beginning-of-sequence token when the file does not say.
    pub add_bos: bool,
}

const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";
const ASCII_TRIPLE: &str = "[0-9][0-9][0-9]";
/// Not written as a class: with `[\r\n]` the regex library takes quadratic time on a run of line breaks.
const LINE_BREAK: &str = r"\r|\n";
/// The ranges DeepSeek took for Chinese, Japanese and Korean text, the odd one from U+0800 included.
const DEEPSEEK_CJK: &str = "[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+";
/// Cased letters as DeepSeek LLM lists them: wide ranges of assigned code points instead of a Unicode class.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1F7D}ᾀ-ᾴᾶ-ᾼ\u{1FBE}ῂ-ῄῆ-ῌῐ-\u{1FD3}ῖ-\u{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
/// A second expression that cuts nothing, after one that does not match all text: only in a list of several does what
/// is left unmatched stay.
const REST: &str = splintr::NO_SPLIT_PATTERN;
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

const PLAIN: PreTokenizer =
    PreTokenizer { names: &[], expressions: &[], ignore_merges: false, add_bos: false };

/// Every known way to cut.
const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        // falcon_e is the name in the published Falcon-E files; BitNet 2B-4T has no name and is the same.
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "falcon_e",
            "falcon-e",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        expressions: &[LLAMA3_PATTERN],
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"],
        expressions: &[LLAMA3_PATTERN],
        ..PLAIN
    },
    PreTokenizer {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        expressions: &[QWEN2_PATTERN],
        ..PLAIN
    },
    PreTokenizer { names: &["qwen35"], expressions: &[QWEN35_PATTERN], ..PLAIN },
    PreTokenizer {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        expressions: &[GPT2_PATTERN],
        ..PLAIN
    },
    PreTokenizer {
        names: &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"],
        expressions: &[DIGIT, GPT2_PATTERN],
        ..PLAIN
    },
    PreTokenizer {
        names: &["default"],
        expressions: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2_PATTERN, DIGITS, ASCII_TRIPLE],
        ..PLAIN
    },
    PreTokenizer {
        names: &["falcon"],
        expressions: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2_PATTERN, ASCII_TRIPLE],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-llm"],
        expressions: &[
            LINE_BREAK,
            DEEPSEEK_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            DEEPSEEK_CJK,
            DIGITS,
        ],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        expressions: &[LINE_BREAK, r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, DIGIT],
        ..PLAIN
    },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        expressions: DEEPSEEK_V3_PATTERNS,
        ..PLAIN
    },
    PreTokenizer { names: &["tekken"], expressions: &[MISTRAL_V3_PATTERN], ignore_merges: true, ..PLAIN },
    PreTokenizer { names: &["gpt-4o", "llama4"], expressions: &[O200K_BASE_PATTERN], ..PLAIN },
    PreTokenizer { names: &["poro-chat", "bloom", "gpt3-finnish"], expressions: &[BLOOM, REST], ..PLAIN },
    PreTokenizer { names: &["viking"], expressions: &[BLOOM, DIGIT], ..PLAIN },
];

/// The way to cut that `name` stands for.
pub(super) fn find(name: &str) -> Option<&'static PreTokenizer> {
    PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All names, for tests that want to try every row.
    #[test]
    fn a_name_stands_for_one_way_to_cut() {
        let names: Vec<_> = PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).collect();
        for (i, name) in names.iter().enumerate() {
            assert!(!names[..i].contains(name), "{name} is listed twice");
            assert!(find(name).is_some());
        }
        assert!(find("gemma4").is_none());
    }
}
