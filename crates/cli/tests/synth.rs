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
    let huge = "layers=4096,embd=1048576,heads=4096,kv=4096,ff=1048576";
    let said = predicate::str::contains("there is room for");
    nexaquant().args(["synth", huge, "--format", "F32", "-o", path]).assert().code(2).stderr(said);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A file that is being written has a name that nobody else has.
#[test]
fn nothing_that_is_there_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let part = file("made.gguf.part");
    std::fs::write(&part, "precious").unwrap();
    let made = file("made.gguf");
    let synth = |seed: &str, path: &std::path::Path, more: &[&str]| {
        let mut command = spawnable();
        command.args(["synth", SMALL, "--seed", seed, "-o"]).arg(path).args(more);
        command.stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    // Two at once to one file: it is one of the two.
    for mut child in [synth("1", &made, &["--force"]), synth("2", &made, &["--force"])] {
        assert!(child.wait().unwrap().success());
    }
    let alone = |seed| {
        let path = file(seed);
        assert!(synth(seed, &path, &[]).wait().unwrap().success());
        std::fs::read(path).unwrap()
    };
    // Both are made, whoever was last above: what lies there then is counted.
    let each = [alone("1"), alone("2")];
    assert!(each.contains(&std::fs::read(&made).unwrap()));
    assert_eq!(std::fs::read(&part).unwrap(), b"precious");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);

    #[cfg(unix)]
    for target in ["made.gguf", "nowhere"] {
        let link = file("link");
        std::os::unix::fs::symlink(file(target), &link).unwrap();
        for (more, why) in [(&[][..], "exists already"), (&["--force"], "no regular file")] {
            let mut command = nexaquant();
            command.args(["synth", SMALL, "-o"]).arg(&link).args(more);
            command.assert().code(2).stderr(predicate::str::contains(why));
        }
        std::fs::remove_file(link).unwrap();
    }
}
