//! `score`, `perplexity`, `inspect`, `info` and the help texts.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::*;
use predicates::prelude::*;
use serde_json::Value;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// Every case of a golden file: log-probabilities of the float mode, means of both modes, top choices.
fn golden(model: &str) {
    let golden = std::fs::read_to_string(repository(&format!("models/golden/{model}.json"))).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let path = repository(&format!("models/{model}.gguf"));
    for case in golden["cases"].as_array().unwrap() {
        let ids: Vec<String> = case["ids"].as_array().unwrap().iter().map(ToString::to_string).collect();
        let score = |mode: &str| {
            json(&[
                "score",
                path.to_str().unwrap(),
                "--tokens",
                &ids.join(","),
                "--activations",
                mode,
                "--json",
            ])
        };
        let mean = |scored: &Value| {
            let logprobs = numbers(&scored["logprobs"]);
            logprobs.iter().sum::<f64>() / logprobs.len() as f64
        };
        let wanted_mean = case["mean_logprob"].as_f64().unwrap();
        let float = score("float");
        assert_eq!(float["tokens"], case["ids"]);
        for (i, (found, wanted)) in
            numbers(&float["logprobs"]).iter().zip(numbers(&case["next_logprob"])).enumerate()
        {
            assert!((found - wanted).abs() < 1e-3, "{model} {i}: {found} {wanted}");
        }
        assert!((mean(&float) - wanted_mean).abs() < 1e-4, "{model}");
        let int8 = score("int8");
        assert!((mean(&int8) - wanted_mean).abs() < 0.02, "{model}");
        let gaps = numbers(&case["top1_gap"]);
        let (top1, wanted) = (numbers(&int8["top1"]), numbers(&case["top1"]));
        assert_eq!((numbers(&int8["logprobs"]).len(), top1.len()), (ids.len() - 1, ids.len()));
        for (i, gap) in gaps.iter().enumerate().filter(|(_, gap)| **gap > 0.3) {
            assert_eq!(top1[i], wanted[i], "{model} {i}: gap {gap}");
        }
    }
}

#[test]
fn score_agrees_with_the_reference_on_alpha() {
    golden("alpha");
}

#[test]
fn score_agrees_with_the_reference_on_delta() {
    golden("delta");
}

#[test]
fn score_of_a_text_begins_the_sequence() {
    let text = json(&["score", "--text", "Once upon a time", "--json"]);
    let tokens = json(&["score", "--tokens", "1,1592,887,265,721", "--json"]);
    assert_eq!(text, tokens);
    let one = json(&["score", "--tokens", "1", "--json"]);
    assert_eq!((one["logprobs"].as_array().unwrap().len(), one["top1"].as_array().unwrap().len()), (0, 1));
    let table = stdout(&["score", "--text", "Once upon a time"]);
    assert!(
        table.contains("logprob") && table.contains("\" upon\"") && table.contains("perplexity"),
        "{table}"
    );
}

#[test]
fn scores_are_the_same_bits_on_any_threads_and_in_any_pieces() {
    let score = |args: &[&str]| {
        stdout(
            &[&["score", "--text", "The cat sat on the mat and looked at the sea.", "--json"], args].concat(),
        )
    };
    let one = score(&["--threads", "1"]);
    assert_eq!(one, score(&["--threads", "2"]));
    assert_eq!(one, score(&["--batch", "1"]));
    assert_eq!(one, score(&["--batch", "3", "--no-pin"]));
}

#[test]
fn perplexity_is_what_score_says() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text.txt");
    let text = "The cat sat on the mat. The dog sat on the log. The bird sang in the tree all day long.";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    // Shorter than a chunk: all of it.
    let found = json(&["perplexity", "-f", file, "--json"]);
    let logprobs = numbers(&json(&["score", "--text", text, "--json"])["logprobs"]);
    let mean = logprobs.iter().sum::<f64>() / logprobs.len() as f64;
    assert_eq!(found["scored_tokens"], logprobs.len());
    assert!((found["mean_logprob"].as_f64().unwrap() - mean).abs() < 1e-9);
    assert!((found["perplexity"].as_f64().unwrap() - (-mean).exp()).abs() < 1e-6);
    nexaquant()
        .args(["perplexity", "-f", file])
        .assert()
        .success()
        .stderr(predicate::str::contains("less than one chunk of 512"))
        .stdout(
            predicate::str::is_match(
                r"^perplexity [\d.]+ \+/- [\d.]+ \(\d+ tokens scored in 1 chunk of \d+\)\n$",
            )
            .unwrap(),
        );

    // Chunks: each is scored alone, its second half, after a beginning-of-sequence token.
    let tokens: Vec<u64> = json(&["score", "--text", text, "--json"])["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t.as_u64().unwrap())
        .collect();
    let mut sum = (0.0, 0);
    for chunk in tokens.chunks_exact(8) {
        let ids: Vec<String> = std::iter::once(&1).chain(&chunk[1..]).map(ToString::to_string).collect();
        let logprobs = numbers(&json(&["score", "--tokens", &ids.join(","), "--json"])["logprobs"]);
        sum.0 += logprobs[4..].iter().sum::<f64>();
        sum.1 += logprobs[4..].len();
    }
    let found = json(&["perplexity", "-f", file, "--ctx", "8", "--json"]);
    assert_eq!(found["scored_tokens"], sum.1);
    assert_eq!(found["chunks"], tokens.len() / 8);
    assert!((found["mean_logprob"].as_f64().unwrap() - sum.0 / sum.1 as f64).abs() < 1e-9);
    assert_eq!(json(&["perplexity", "-f", file, "--ctx", "8", "--chunks", "1", "--json"])["chunks"], 1);
}

#[test]
fn inspect_shows_what_runs_on_what() {
    let text = stdout(&["inspect", repository("models/beta.gguf").to_str().unwrap()]);
    for wanted in [
        "phi3",
        "TQ2_0",
        "blk.0.attn_qkv.weight",
        "512 x",
        "general.architecture",
        "…]",
        "runs            yes",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let json = json(&["inspect", "--json"]);
    assert_eq!((json["architecture"].as_str(), json["runs"].as_bool()), (Some("llama"), Some(true)));
    let tensors = json["tensors"].as_array().unwrap();
    let bytes: u64 = tensors.iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    let by_type: u64 = json["types"].as_array().unwrap().iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert_eq!(bytes, by_type);
    assert_eq!(json["metadata"]["tokenizer.ggml.tokens"]["length"], 4096);
    let ops = stdout(&["inspect", "--ops"]);
    assert!(ops.contains("RmsNorm") || ops.to_lowercase().contains("norm"), "{ops}");
}

#[test]
fn inspect_shows_files_that_do_not_run_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("strange.gguf");
    let strange = changed(|pairs, tensors| {
        pairs[0].1 = "mystery".into();
        pairs.push(("\u{1b}[2J".into(), "\u{1b}[2J".into()));
        tensors[1].name = "\u{1b}[2J".into();
    });
    std::fs::write(&path, strange).unwrap();
    let path = path.to_str().unwrap();
    let text = stdout(&["inspect", path]);
    assert!(text.contains("no: architecture") && text.contains("token_embd.weight"), "{text}");
    assert!(!text.contains('\x1b'), "nothing in a file steers the terminal");
    let found = json(&["inspect", path, "--json"]);
    assert_eq!(found["runs"], false);
    assert!(found["why_not"].as_str().unwrap().contains("mystery"));
    nexaquant().args(["inspect", path, "--ops"]).assert().code(2);
    nexaquant().args(["inspect", "/dev/null"]).assert().code(2);
}

#[test]
fn info_says_what_there_is_and_what_not() {
    let text = stdout(&["info"]);
    for wanted in
        ["scalar", "threads", "alpha  inside this program", "TQ2_0", "bitnet-b1.58", "OpenCL devices"]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let json = json(&["info", "--json"]);
    assert!(json["threads"].as_u64().unwrap() >= 1);
    assert!(json["formats"].as_array().unwrap().len() >= 17);
    let overridden = nexaquant().args(["info", "--json"]).env("NEXAQUANT_ISA", "scalar").assert().success();
    let overridden: Value = serde_json::from_slice(&overridden.get_output().stdout).unwrap();
    assert_eq!(overridden["isa"], "scalar");
    assert!(overridden["isa_why"].as_str().unwrap().contains("NEXAQUANT_ISA"));
    nexaquant()
        .arg("info")
        .env("NEXAQUANT_ISA", "mmx")
        .assert()
        .success()
        .stdout(predicate::str::contains("mmx"));
}

#[test]
fn bundled_models_are_found_in_the_data_folder() {
    let data = tempfile::tempdir().unwrap();
    let models = data.path().join("nexaquant/models");
    std::fs::create_dir_all(&models).unwrap();
    std::fs::write(models.join("gamma.gguf"), tiny_bytes()).unwrap();
    // A copy of the program far from any checkout.
    let place = tempfile::tempdir().unwrap();
    let program = place.path().join("nexaquant");
    std::fs::copy(env!("CARGO_BIN_EXE_nexaquant"), &program).unwrap();
    // A program that another test starts just now holds the copy open for a moment.
    let busy = || std::process::Command::new(&program).arg("--version").output().map_err(|e| e.kind());
    while matches!(busy(), Err(std::io::ErrorKind::ExecutableFileBusy)) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let run = |name: &str| {
        let mut command = assert_cmd::Command::new(&program);
        command.current_dir(place.path()).env("XDG_DATA_HOME", data.path()).env("HOME", data.path());
        command.args(["inspect", name, "--json"]).assert()
    };
    if cfg!(target_os = "linux") {
        let found: Value = serde_json::from_slice(&run("gamma").success().get_output().stdout).unwrap();
        assert_eq!(found["name"], "tiny llama_tied");
    }
    run("alpha").success();
    run("beta").code(2).stderr(predicate::str::contains("beta.gguf was looked for in"));
    // Beside the program.
    std::fs::write(place.path().join("beta.gguf"), tiny_bytes()).unwrap();
    run("beta").success();
}

#[test]
fn help_teaches() {
    let common = ["--ctx", "--kv", "--threads", "--no-pin", "--batch", "--activations"];
    let sampling = [
        "--temp",
        "--top-k",
        "--top-p",
        "--min-p",
        "--typical-p",
        "--repeat-penalty",
        "--repeat-last-n",
        "--presence-penalty",
        "--frequency-penalty",
        "--logit-bias",
        "--seed",
        "--max-tokens",
        "--stop",
        "--ignore-eos",
    ];
    let all: Vec<&str> = common.into_iter().chain(sampling).collect();
    for (command, options) in [
        (
            "run",
            [
                &all[..],
                &["--prompt", "--file", "--raw", "--json", "--system", "--special", "--chat-template"],
            ]
            .concat(),
        ),
        ("chat", [&all[..], &["--system", "/reset", "/save", "/stats", "Ctrl-C"]].concat()),
        ("score", [&common[..], &["--tokens", "--text", "--json"]].concat()),
        ("perplexity", [&common[..], &["--file", "--chunks"]].concat()),
        ("inspect", vec!["--json", "--ops"]),
        ("info", vec!["--json", "NEXAQUANT_ISA"]),
    ] {
        let help = stdout(&[command, "--help"]);
        for option in options {
            assert!(help.contains(option), "{command} --help does not mention {option}");
        }
    }
    let help = stdout(&["--help"]);
    for word in
        ["chat", "run", "score", "perplexity", "inspect", "info", "Examples", "alpha, beta, gamma and delta"]
    {
        assert!(help.contains(word), "{word}");
    }
    nexaquant().assert().code(2).stderr(predicate::str::contains("Usage"));
    nexaquant().arg("--version").assert().success().stdout(predicate::str::starts_with("nexaquant "));
}
