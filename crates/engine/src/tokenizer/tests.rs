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
