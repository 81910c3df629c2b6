//! `synth`: models made here run here.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::*;
use predicates::prelude::*;

const SMALL: &str = "layers=2,embd=256,heads=4,kv=2,ff=512,vocab=300,ctx=128";

#[test]
fn a_made_model_runs_and_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("made.gguf");
    let path = file.to_str().unwrap();
    for format in ["Q4_K", "I2_S"] {
        assert!(stdout(&["synth", SMALL, "--format", format, "-o", path, "--force"]).contains("made.gguf: "));
        let inspected = stdout(&["inspect", path]);
        assert!(inspected.contains(format) && inspected.contains("runs            yes"), "{inspected}");
    }
    let answer = json(&["run", path, "-p", "Hello", "-n", "5", "--ignore-eos", "--json"]);
    assert_eq!(answer["tokens"].as_array().unwrap().len(), 5);

    let before = std::fs::read(&file).unwrap();
    let refused = predicate::str::contains("exists already");
    nexaquant().args(["synth", SMALL, "-o", path]).assert().code(2).stderr(refused);
    assert_eq!(std::fs::read(&file).unwrap(), before);
    nexaquant().args(["synth", SMALL, "-o", path, "--force"]).assert().success();
    assert_ne!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn what_cannot_be_made_is_said_and_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("none.gguf");
    let path = file.to_str().unwrap();
    for (shape, format, part) in [
        ("llama9", "TQ2_0", "bitnet-2b4t"),
        ("embd=100", "TQ2_0", "multiples of 256"),
        (SMALL, "Q3_K", "use F32, F16, Q4_0"),
    ] {
        let said = predicate::str::contains(part).and(predicate::str::starts_with("error: "));
        nexaquant().args(["synth", shape, "--format", format, "-o", path]).assert().code(2).stderr(said);
        assert!(!file.exists(), "{shape} {format}");
    }
    nexaquant().args(["synth", SMALL, "-o", "/nonexistent/x.gguf"]).assert().code(2);
}
