//! `verify`: that it compares what it says, and that it notices.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{json, nexaquant, repository, stdout, tiny};
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

    std::fs::write(golden.join("gamma.json"), "{\"cases\": 3}").unwrap();
    nexaquant().args(["verify", file]).assert().code(2).stderr(contains("no golden values"));
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
