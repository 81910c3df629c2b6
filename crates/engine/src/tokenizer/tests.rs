use super::*;
use nexaquant_gguf::{Array, Gguf, Value};
use serde_json::Value as Json;
use std::collections::HashMap;

/// Metadata of a bundled model.
fn metadata(model: &str) -> Metadata {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(model);
    Gguf::parse(&std::fs::read(path).unwrap()).unwrap().metadata
}

fn tokenizer(model: &str) -> Tokenizer {
    Tokenizer::from_metadata(&metadata(model)).unwrap()
}

fn ids(json: &Json) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn set_tokens(metadata: &mut Metadata, change: impl Fn(usize, &[u8]) -> Vec<u8>) {
    let tokens = metadata.need_strings("tokenizer.ggml.tokens").unwrap();
    let changed: StringArray = tokens.iter().enumerate().map(|(id, token)| change(id, token)).collect();
    metadata.insert("tokenizer.ggml.tokens", Value::Array(Array::String(changed)));
}

fn set_kinds(metadata: &mut Metadata, change: impl Fn(usize, u64) -> u64) {
    let kinds = metadata.need_u64s("tokenizer.ggml.token_type").unwrap();
    let changed = kinds.into_iter().enumerate().map(|(id, kind)| change(id, kind) as i32).collect();
    metadata.insert("tokenizer.ggml.token_type", Value::Array(Array::I32(changed)));
}

/// Compares with every case of a recorded list; returns what differs.
fn differences(tokenizer: &Tokenizer, cases: &Json) -> Vec<String> {
    let mut wrong = Vec::new();
    for case in cases.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let parsed = if case["parsed"].is_null() { &case["ids"] } else { &case["parsed"] };
        for (special, wanted) in [(Special::AsText, &case["ids"]), (Special::Parse, parsed)] {
            let (found, wanted) = (tokenizer.encode(text, special).unwrap(), ids(wanted));
            if found != wanted {
                wrong.push(format!("{special:?} {text:?}\n  found {found:?}\n wanted {wanted:?}"));
            }
        }
    }
    wrong
}

#[test]
fn golden_prompts_of_the_bundled_models() {
    for model in ["alpha", "beta", "gamma", "delta"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("../../models/golden/{model}.json"));
        let golden: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let tokenizer = tokenizer(&format!("{model}.gguf"));
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 3);
        for case in cases {
            let (text, wanted) = (case["text"].as_str().unwrap(), ids(&case["ids"]));
            let prompt = case["prompt_len"].as_u64().unwrap() as usize;
            assert_eq!(
                tokenizer.encode_sequence(text, Special::Parse).unwrap(),
                wanted[..prompt],
                "{model} {text:?}"
            );
            assert!(
                tokenizer.decode(&wanted).starts_with(text),
                "{model} {text:?} {:?}",
                tokenizer.decode(&wanted)
            );
        }
    }
}

/// Every way to cut text, both kinds of vocabulary, Phi-3's whitespace, user-defined tokens: as llama.cpp does it.
#[test]
fn same_ids_as_llama_cpp() {
    let recorded: Json =
        serde_json::from_str(include_str!("../../tests/fixtures/tokenizer/expected.json")).unwrap();
    let mut wrong = Vec::new();
    let mut compared = 0;
    for file in recorded.as_array().unwrap().iter().filter(|file| file["cases"].is_array()) {
        let mut metadata = metadata(file["source"].as_str().unwrap());
        for (key, value) in file["changes"].as_object().unwrap() {
            match value {
                Json::Bool(flag) => metadata.insert(key.as_str(), Value::Bool(*flag)),
                text => metadata.insert(key.as_str(), Value::String(text.as_str().unwrap().into())),
            };
        }
        let user_defined = ids(&file["user_defined"]);
        set_kinds(&mut metadata, |id, kind| if user_defined.contains(&(id as u32)) { 4 } else { kind });
        let renamed: HashMap<usize, &str> = file["renamed"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pair| (pair[0].as_u64().unwrap() as usize, pair[1].as_str().unwrap()))
            .collect();
        set_tokens(&mut metadata, |id, token| {
            renamed.get(&id).map_or(token.to_vec(), |text| text.as_bytes().to_vec())
        });
        let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
        compared += file["cases"].as_array().unwrap().len();
        for difference in differences(&tokenizer, &file["cases"]) {
            wrong.push(format!("{} {}: {difference}", file["source"], file["changes"]));
        }
    }
    assert!(compared > 1000, "{compared}");
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}

/// Large vocabularies, by hand: `make.py a.gguf b.gguf out.json`, then set NEXAQUANT_TOKENIZER_CASES to `out.json`.
#[test]
fn same_ids_as_llama_cpp_with_other_files() {
    let Ok(path) = std::env::var("NEXAQUANT_TOKENIZER_CASES") else {
        eprintln!("skipped: NEXAQUANT_TOKENIZER_CASES is not set");
        return;
    };
    let recorded: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for file in recorded.as_array().unwrap() {
        let bytes = std::fs::read(file["file"].as_str().unwrap()).unwrap();
        let tokenizer = Tokenizer::from_metadata(&Gguf::parse(&bytes).unwrap().metadata).unwrap();
        let mut wrong = differences(&tokenizer, &file["cases"]);
        // Gemma's user-defined </s> is a tag of HTML; llama.cpp takes it for an end of sequence.
        wrong.retain(|difference| !difference.contains("</s>") || tokenizer.end_of_turn().len() != 2);
        assert!(wrong.is_empty(), "{}\n{}", file["file"], wrong.join("\n"));
    }
}

#[test]
fn control_tokens_in_text_stay_text() {
    for model in ["alpha.gguf", "gamma.gguf"] {
        let tokenizer = tokenizer(model);
        for id in 0..tokenizer.vocab_size() as u32 {
            if matches!(tokenizer.kind(id), Some(TokenKind::Control | TokenKind::Unknown)) {
                let text = tokenizer.token_text(id).unwrap();
                for text in [text.clone(), format!("a{text}b"), format!("{text}{text} ")] {
                    let ids = tokenizer.encode(&text, Special::AsText).unwrap();
                    assert!(!ids.contains(&id), "{text:?} became {ids:?}");
                    assert_eq!(tokenizer.decode(&ids), text);
                }
                assert!(tokenizer.encode(&text, Special::Parse).unwrap().contains(&id));
            }
        }
    }
}

/// A control token spelled as a word is not found by merging or as a whole piece either.
#[test]
fn control_tokens_spelled_like_words_stay_text() {
    for (model, word) in [("alpha.gguf", "▁time"), ("gamma.gguf", "Ġtime")] {
        let mut metadata = metadata(model);
        let tokens = metadata.need_strings("tokenizer.ggml.tokens").unwrap();
        let id = tokens.iter().position(|token| token == word.as_bytes()).unwrap();
        let plain = Tokenizer::from_metadata(&metadata).unwrap();
        assert_eq!(plain.encode("x time", Special::AsText).unwrap().last(), Some(&(id as u32)));
        set_kinds(&mut metadata, |at, kind| if at == id { 3 } else { kind });
        let control = Tokenizer::from_metadata(&metadata).unwrap();
        let ids = control.encode("x time", Special::AsText).unwrap();
        assert!(!ids.contains(&(id as u32)), "{ids:?}");
        assert_eq!(control.decode(&ids), "x time");
    }
}

#[test]
fn special_ids_and_the_ends_of_turns() {
    let named =
        |t: &Tokenizer| t.end_of_turn().iter().map(|&id| t.token_text(id).unwrap()).collect::<Vec<_>>();
    let alpha = tokenizer("alpha.gguf");
    assert_eq!((alpha.bos(), alpha.eos(), alpha.add_bos(), alpha.add_eos()), (Some(1), Some(2), true, false));
    assert_eq!(alpha.vocab_size(), 4096);
    // Alpha's file does not say that <|end|> ends a turn; its spelling does.
    assert_eq!(named(&alpha), ["</s>", "<|end|>"]);
    assert_eq!(named(&tokenizer("beta.gguf")), ["</s>", "<|end|>"]);
    assert_eq!(named(&tokenizer("gamma.gguf")), ["<|end_of_text|>", "<|eot_id|>"]);
    assert_eq!(named(&tokenizer("delta.gguf")), ["<|end_of_text|>", "<|eot_id|>"]);
}

#[test]
fn an_end_of_turn_is_control_whatever_the_file_says() {
    let mut metadata = metadata("beta.gguf");
    set_kinds(&mut metadata, |id, kind| if id == 6 { 1 } else { kind });
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    assert_eq!(tokenizer.kind(6), Some(TokenKind::Control));
    assert!(tokenizer.end_of_turn().contains(&6));
}

#[test]
fn sequences_start_with_one_bos() {
    for model in ["alpha.gguf", "gamma.gguf"] {
        let tokenizer = tokenizer(model);
        let bos = tokenizer.bos().unwrap();
        let name = tokenizer.token_text(bos).unwrap();
        let once = tokenizer.encode_sequence("Hi", Special::Parse).unwrap();
        assert_eq!(once[0], bos);
        assert_eq!(tokenizer.encode_sequence(&format!("{name}Hi"), Special::Parse).unwrap(), once);
        assert_eq!(tokenizer.encode("Hi", Special::Parse).unwrap(), once[1..]);
    }
    let mut metadata = metadata("gamma.gguf");
    metadata.insert("tokenizer.ggml.add_bos_token", Value::Bool(false));
    metadata.insert("tokenizer.ggml.add_eos_token", Value::Bool(true));
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
    let ids = tokenizer.encode_sequence("Hi", Special::AsText).unwrap();
    assert_eq!((ids.first() == tokenizer.bos().as_ref(), ids.last()), (false, tokenizer.eos().as_ref()));
}

#[test]
fn bitnet_files_without_a_pre_tokenizer_are_llama_3() {
    let without_pre = |arch: &str| {
        let mut changed = Metadata::new();
        for (key, value) in metadata("gamma.gguf").iter().filter(|(key, _)| *key != "tokenizer.ggml.pre") {
            changed.insert(key, value.clone());
        }
        changed.insert("general.architecture", Value::String(arch.into()));
        Tokenizer::from_metadata(&changed).unwrap()
    };
    let text = "1234567 it's DON'T";
    let wanted = tokenizer("gamma.gguf").encode(text, Special::AsText).unwrap();
    for arch in ["bitnet-b1.58", "bitnet-25", "bitnet"] {
        assert_eq!(without_pre(arch).encode(text, Special::AsText).unwrap(), wanted, "{arch}");
    }
    assert_ne!(without_pre("llama").encode(text, Special::AsText).unwrap(), wanted);
}

#[test]
fn bad_files_say_what_is_wrong() {
    type Change = fn(&mut Metadata);
    let cases: [(&str, Change, &str); 12] = [
        (
            "alpha.gguf",
            |m| drop(m.insert("tokenizer.ggml.model", Value::String("t5".into()))),
            "`t5`; supported are",
        ),
        (
            "gamma.gguf",
            |m| drop(m.insert("tokenizer.ggml.pre", Value::String("gemma4".into()))),
            "is `gemma4`, which",
        ),
        (
            "alpha.gguf",
            |m| set_tokens(m, |_, token| token.repeat(if token == b"</s>" { 3000 } else { 1 })),
            "token 2 has 12000 bytes",
        ),
        (
            "alpha.gguf",
            |m| drop(m.insert("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0; 9])))),
            "9 scores for 4096",
        ),
        (
            "alpha.gguf",
            |m| drop(m.insert("tokenizer.ggml.scores", Value::Array(Array::F32(vec![f32::NAN; 4096])))),
            "token 0 is NaN",
        ),
        (
            "alpha.gguf",
            |m| drop(m.insert("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1])))),
            "1 token types for 4096",
        ),
        (
            "alpha.gguf",
            |m| drop(m.insert("tokenizer.ggml.bos_token_id", Value::U32(4096))),
            "bos_token_id is 4096, but",
        ),
        (
            "alpha.gguf",
            |m| drop(m.insert("tokenizer.ggml.eot_token_id", Value::I32(-7))),
            "eot_token_id is -7, but",
        ),
        (
            "gamma.gguf",
            |m| drop(m.insert("tokenizer.ggml.merges", strings(&["a b", "ab"]))),
            "merge 1 is \"ab\"",
        ),
        (
            "gamma.gguf",
            |m| drop(m.insert("tokenizer.ggml.merges", strings(&["a b c"]))),
            "merge 0 is \"a b c\"",
        ),
        ("gamma.gguf", |m| drop(m.insert("tokenizer.ggml.tokens", strings(&[]))), "0 tokens; between"),
        ("gamma.gguf", |m| drop(m.insert("tokenizer.ggml.tokens", Value::U32(3))), "tokenizer.ggml.tokens"),
    ];
    for (model, change, message) in cases {
        let mut metadata = metadata(model);
        change(&mut metadata);
        let error =
            Tokenizer::from_metadata(&metadata).err().unwrap_or_else(|| panic!("no error: {message}"));
        assert!(error.to_string().contains(message), "{error}");
    }
    for key in ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        let mut changed = Metadata::new();
        for (other, value) in metadata("gamma.gguf").iter().filter(|(other, _)| *other != key) {
            changed.insert(other, value.clone());
        }
        assert!(Tokenizer::from_metadata(&changed).err().unwrap().to_string().contains(key));
    }
}

fn strings(texts: &[&str]) -> Value {
    Value::Array(Array::String(texts.iter().collect()))
}

/// Llama 3 takes a piece that is a token as it is, even if no merges lead there; others do not.
#[test]
fn whole_pieces_that_are_tokens() {
    let mut metadata = metadata("gamma.gguf");
    set_tokens(&mut metadata, |id, token| if id == 4000 { "Ġzqxj".into() } else { token.to_vec() });
    for (pre, whole) in [("llama-bpe", true), ("tekken", true), ("qwen2", false), ("smollm", false)] {
        metadata.insert("tokenizer.ggml.pre", Value::String(pre.into()));
        let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
        let ids = tokenizer.encode("a zqxj", Special::AsText).unwrap();
        assert_eq!(ids.contains(&4000), whole, "{pre}");
        assert_eq!(tokenizer.decode(&ids), "a zqxj");
    }
}

#[test]
fn odd_files_are_tolerated() {
    // The same text twice, a token that is not UTF-8, merges of unknown tokens, no token types.
    let mut changed = Metadata::new();
    for (key, value) in metadata("gamma.gguf").iter().filter(|(key, _)| *key != "tokenizer.ggml.token_type") {
        changed.insert(key, value.clone());
    }
    let the = changed
        .need_strings("tokenizer.ggml.tokens")
        .unwrap()
        .iter()
        .position(|t| t == "Ġthe".as_bytes())
        .unwrap();
    set_tokens(&mut changed, |id, token| match id {
        4094 => "Ġthe".as_bytes().to_vec(),
        4095 => vec![0xff, 0xfe],
        _ => token.to_vec(),
    });
    let tokenizer = Tokenizer::from_metadata(&changed).unwrap();
    let ids = tokenizer.encode("x the", Special::AsText).unwrap();
    assert_eq!(ids.last(), Some(&(the as u32)));
    assert_eq!(tokenizer.token_bytes(4095), Some(vec![0xff, 0xfe]));
    assert_eq!(tokenizer.kind(4), Some(TokenKind::Control));
    assert_eq!(tokenizer.kind(5), Some(TokenKind::Normal));
    assert_eq!((tokenizer.kind(4096), tokenizer.token_text(4096)), (None, None));
}

#[test]
fn decoding_holds_back_what_is_not_a_character_yet() {
    for model in ["alpha.gguf", "gamma.gguf"] {
        let tokenizer = tokenizer(model);
        let text = " a 😀é\n日本 <b>";
        let ids = tokenizer.encode(text, Special::AsText).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
        let mut decoder = StreamDecoder::at_start();
        let pieces: Vec<String> = ids.iter().map(|&id| decoder.push(&tokenizer, id)).collect();
        assert_eq!(pieces.concat() + &decoder.finish(), text);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
        assert!(pieces.iter().any(String::is_empty), "{pieces:?}");

        // Cut inside the emoji: what is there is replaced, once a character.
        let emoji = tokenizer.encode("😀", Special::AsText).unwrap();
        let cut = &emoji[..emoji.len() - 1];
        assert_eq!(tokenizer.decode(cut).trim_start(), "\u{fffd}");
        let then = tokenizer.encode("b", Special::AsText).unwrap();
        assert!(tokenizer.decode(&[cut, &then].concat()).contains("\u{fffd}"));
        assert_eq!(tokenizer.decode(&[u32::MAX]), "\u{fffd}");
    }
}

#[test]
fn the_unwritten_space_is_removed_at_the_start_only() {
    let alpha = tokenizer("alpha.gguf");
    let ids = alpha.encode("time  time", Special::AsText).unwrap();
    assert_eq!(alpha.decode(&ids), "time  time");
    let mut decoder = StreamDecoder::continuing();
    assert_eq!(decoder.push(&alpha, ids[0]), " time");
    // A control token before the text does not count as its start, and is shown when asked for.
    assert_eq!(alpha.decode(&[&[1], &ids[..]].concat()), "time  time");
    let mut shown = StreamDecoder::at_start().with_control_tokens();
    assert_eq!([1, ids[0]].map(|id| shown.push(&alpha, id)).concat(), "<s>time");

    let gamma = tokenizer("gamma.gguf");
    let ids = gamma.encode(" time", Special::AsText).unwrap();
    assert_eq!(gamma.decode(&ids), " time");
}

#[test]
fn long_texts_take_linear_time_up_to_a_limit() {
    for (model, pre) in [("alpha.gguf", None), ("gamma.gguf", None), ("gamma.gguf", Some("deepseek-llm"))] {
        let mut metadata = metadata(model);
        if let Some(pre) = pre {
            metadata.insert("tokenizer.ggml.pre", Value::String(pre.into()));
        }
        let tokenizer = Tokenizer::from_metadata(&metadata).unwrap();
        for (unit, times) in
            [("a", 200_000), (" ", 200_000), ("\n", 600_000), ("'s", 100_000), ("1", 100_000)]
        {
            let text = unit.repeat(times);
            let started = std::time::Instant::now();
            let ids = tokenizer.encode(&text, Special::Parse).unwrap();
            assert!(started.elapsed().as_secs() < 5, "{model} {pre:?} {unit:?}: {:?}", started.elapsed());
            assert_eq!(tokenizer.decode(&ids), text);
        }
    }
    let error = tokenizer("alpha.gguf").encode(&"a".repeat(MAX_TEXT_BYTES + 1), Special::AsText).unwrap_err();
    assert!(error.to_string().contains("8388609 bytes; at most 8388608"), "{error}");
}
