//! `verify`: that it compares what it says, and that it notices.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{changed, json, nexaquant, patched, repository, stdout, tiny, tiny_bytes};
use nexaquant_engine::kernels::{FORMATS, Isa};
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;

#[test]
fn every_format_and_instruction_set_is_compared() {
    let found = json(&["verify", "--json"]);
    assert_eq!(found["ok"], true);
    let checks = found["checks"].as_array().unwrap();
    let has = |what: &str, of: &str| checks.iter().any(|check| check["what"] == what && check["of"] == of);
    for isa in Isa::available() {
        for format in FORMATS {
            for mode in ["int8", "float"] {
                let of = format!("{} {mode} {isa}", format.name);
                let there = mode == "float" || format.grain.is_some();
                let free = mode == "float" && format.ternary;
                let sum = if free { "multiplication-free" } else { "f64 sum" };
                assert!(has(sum, &of) == there && has("bits of scalar", &of) == there, "{of}");
                assert!(has("exact integers", &of) == format.ternary, "{of}");
            }
        }
        for format in ["TQ1_0", "TQ2_0", "I2_S", "Q2_0", "Q2_0_G128"] {
            assert!(has("unpacked", &format!("{format} int8 {isa}")), "{format}");
        }
    }
    for mode in ["int8", "float"] {
        assert!(
            has("golden mean", &format!("alpha {mode}")) && has("golden choice", &format!("alpha {mode}"))
        );
    }
    assert!(checks.iter().filter(|check| check["what"] == "budget kept").count() >= 2);
    for check in checks {
        assert_eq!(check["ok"], true, "{check}");
        assert!(check["values"].as_u64().unwrap() > 0, "{check}");
        assert!(check["delta"].as_f64().unwrap() <= check["bound"].as_f64().unwrap(), "{check}");
    }
}

/// A copy of a model with other golden values beside it.
#[test]
fn other_golden_values_are_a_lie() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("gamma.gguf");
    std::fs::copy(repository("models/gamma.gguf"), &file).unwrap();
    let golden = place.path().join("golden");
    std::fs::create_dir(&golden).unwrap();
    let text = std::fs::read_to_string(repository("models/golden/gamma.json")).unwrap();
    let mut values: serde_json::Value = serde_json::from_str(&text).unwrap();
    let value = values["cases"][1]["next_logprob"][3].as_f64().unwrap();
    values["cases"][1]["next_logprob"][3] = (value + 0.5).into();
    std::fs::write(golden.join("gamma.json"), values.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let run = nexaquant().args(["verify", file, "--json"]).assert().code(1);
    let found: serde_json::Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    assert_eq!(found["ok"], false);
    let last = found["checks"].as_array().unwrap().last().unwrap();
    assert!(last["what"] == "golden log p" && last["ok"] == false, "{last}");
    assert!(last["at"].as_str().unwrap().contains("token 3"), "{last}");
    run.stderr(contains("expected").and(contains("computed")).and(contains("token 3")));

    for (text, why) in
        [("{\"cases\": 3}", "no golden values"), ("{\"cases\": []}", "no cases to compare with")]
    {
        std::fs::write(golden.join("gamma.json"), text).unwrap();
        nexaquant().args(["verify", file]).assert().code(2).stderr(contains(why).and(contains("gamma.json")));
    }
}

/// What `verify` says of a file of these bytes.
fn verified(bytes: &[u8]) -> (serde_json::Value, Option<i32>) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    let run = nexaquant().args(["verify", file.path().to_str().unwrap(), "--json"]).output().unwrap();
    (serde_json::from_slice(&run.stdout).unwrap(), run.status.code())
}

#[test]
fn logits_that_are_no_numbers_are_a_lie() {
    let bytes = tiny_bytes();
    let gguf = nexaquant_engine::gguf::Gguf::parse(&bytes).unwrap();
    let norm = gguf.tensors.iter().find(|tensor| tensor.name == "output_norm.weight").unwrap();
    let at = norm.data(&bytes).unwrap().as_ptr() as usize - bytes.as_ptr() as usize;
    let (found, code) = verified(&patched(bytes.clone(), at, &f32::NAN.to_le_bytes()));
    assert!(code == Some(1) && found["ok"] == false, "{found}");
    let last = found["checks"].as_array().unwrap().last().unwrap();
    assert!(last["what"] == "finite logits" && last["computed"].as_f64().unwrap() > 0.0, "{last}");
    assert!(found["error"].as_str().unwrap().contains("NaN or infinite"), "{found}");
}

/// Shorter than the prompt of 16 bytes, as long, and with room for one token more.
#[test]
fn models_of_few_positions_are_compared_too() {
    for context in [3u32, 16, 17] {
        let (found, code) = verified(&changed(|pairs, _| {
            for (key, value) in pairs {
                if key == "llama.context_length" {
                    *value = context.into();
                }
            }
        }));
        assert_eq!(code, Some(0), "{found}");
        let checks = found["checks"].as_array().unwrap();
        let tokens = if context == 17 { 2 } else { 1 };
        let same: Vec<_> = checks.iter().filter(|check| check["what"] == "same logits").collect();
        assert!(
            !same.is_empty() && same.iter().all(|check| check["values"] == tokens),
            "{context}: {same:?}"
        );
    }
}

/// A row that fits no block of budgets below the weights.
#[test]
fn a_model_that_no_usual_budget_holds_is_verified() {
    let shape = "layers=1,embd=256,heads=2,kv=1,ff=65536,vocab=260";
    let run = nexaquant().args(["verify", shape, "--json"]).assert().success();
    let found: serde_json::Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    let kept = |check: &&serde_json::Value| check["what"] == "budget kept";
    let budgets: Vec<f64> = found["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(kept)
        .map(|check| check["expected"].as_f64().unwrap())
        .collect();
    assert!(budgets.len() == 2 && budgets[1] < budgets[0] / 2.0, "{budgets:?}");
    run.stderr(contains("does not fit a block"));
}

#[test]
fn a_model_without_golden_values_is_checked_under_budgets() {
    let model = tiny();
    // These golden files are of another kind and lie elsewhere.
    let run = nexaquant().args(["verify", model.to_str().unwrap()]).assert();
    run.stderr(contains("no golden values to compare with"));
    nexaquant().args(["verify", "nosuch"]).assert().code(2).stderr(contains("nosuch"));
    assert!(stdout(&["verify", "--help"]).contains("exit code 1"));
}
