//! `run`: answers, numbers, pipes and signals.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::*;
use predicates::prelude::*;
use std::io::Read;
use std::process::Stdio;

fn text(args: &[&str]) -> String {
    json(args)["text"].as_str().unwrap().to_owned()
}

#[test]
fn alpha_answers_with_no_file_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    nexaquant()
        .current_dir(dir.path())
        .args(["run", "-p", "What is your name?", "--seed", "1", "-n", "30"])
        .assert()
        .success()
        .stdout(predicate::str::is_empty().not().and(predicate::str::ends_with("\n")))
        .stderr(predicate::str::is_match(
            r"^prompt \d+ tokens, [\d.]+ tokens/s \| answer \d+ tokens, [\d.]+ tokens/s, [\d.]+ ms/token \| 3\.98 MB of weights a (token|pass, \d+ passes), [\d.]+ GB/s\n$",
        ).unwrap());
}

#[test]
fn greedy_continues_as_the_reference_does() {
    let run = json(&["run", "--raw", "-p", "Once upon a time", "--temp", "0", "-n", "20", "--json"]);
    let golden = std::fs::read_to_string(repository("models/golden/alpha.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
    let case = &golden["cases"][0];
    assert_eq!(case["text"], "Once upon a time");
    let prompt = case["prompt_len"].as_u64().unwrap() as usize;
    assert_eq!(run["prompt_tokens"], prompt);
    // Activations are int8 here: only the beginning is certain to agree.
    let ids = case["ids"].as_array().unwrap();
    assert_eq!(run["tokens"].as_array().unwrap()[..8], ids[prompt..prompt + 8]);
}

#[test]
fn json_has_what_was_measured() {
    let run =
        json(&["run", "-p", "Hello!", "-n", "12", "--ignore-eos", "--seed", "7", "--json", "--threads", "1"]);
    assert_eq!(run["tokens"].as_array().unwrap().len(), 12);
    assert_eq!((run["seed"].as_u64(), run["threads"].as_u64()), (Some(7), Some(1)));
    assert_eq!(run["finish"], "length");
    assert!(!run["text"].as_str().unwrap().is_empty());
    let number = |key: &str| run[key].as_f64().unwrap_or_else(|| panic!("{key}"));
    for key in
        ["prompt_tokens", "prompt_tokens_per_s", "tokens_per_s", "ms_per_token", "weight_bytes_per_token"]
    {
        assert!(number(key) > 0.0, "{key}");
    }
    assert!((number("tokens_per_s") * number("ms_per_token") - 1000.0).abs() < 1e-6);
    assert!(
        (number("tokens_per_s") * number("weight_bytes_per_token") / 1e9 - number("gb_per_s")).abs() < 1e-9
    );
    assert!(["scalar", "avx2", "avx512", "amx"].contains(&run["isa"].as_str().unwrap()));
}

#[test]
fn a_seed_repeats_exactly_on_any_number_of_threads() {
    let answer = |seed: &str, threads: &str| {
        json(&["run", "-p", "Tell me a story.", "-n", "40", "--seed", seed, "--threads", threads, "--json"])["tokens"].clone()
    };
    let first = answer("5", "1");
    assert_eq!(first, answer("5", "1"));
    assert_eq!(first, answer("5", "2"));
    assert_ne!(first, answer("6", "2"));
}

#[test]
fn a_seed_that_was_drawn_repeats_the_answer() {
    let run = json(&["run", "-p", "Tell me a story.", "-n", "30", "--json"]);
    let seed = run["seed"].to_string();
    let again = json(&["run", "-p", "Tell me a story.", "-n", "30", "--json", "--seed", &seed]);
    assert_eq!(run["tokens"], again["tokens"]);
}

#[test]
fn the_prompt_comes_from_where_it_is_said_to() {
    let wanted = text(&["run", "-p", "Hello there", "--temp", "0", "-n", "8", "--json"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt");
    std::fs::write(&file, "Hello there\n").unwrap();
    let common = ["--temp", "0", "-n", "8", "-q"];
    for words in [
        &["run", "-f", file.to_str().unwrap()][..],
        &["run", "-"],
        &["run", "alpha", "-"],
        &["run", "-f", "-"],
        &["run"],
    ] {
        nexaquant()
            .args([words, &common].concat())
            .write_stdin("Hello there\n")
            .assert()
            .success()
            .stdout(format!("{}\n", wanted.trim_end_matches('\n')))
            .stderr("");
    }
}

#[test]
fn raw_adds_only_the_beginning_of_the_sequence() {
    let tokens = |args: &[&str]| {
        json(&[&["run", "-n", "1", "--json"], args].concat())["prompt_tokens"].as_u64().unwrap()
    };
    assert_eq!(tokens(&["--raw", "-p", ""]), 1);
    assert_eq!(tokens(&["--raw", "-p", "Once upon a time"]), 5);
    assert!(tokens(&["-p", "Once upon a time"]) > 5, "the template adds its own");
    // What a user types is text, unless asked otherwise.
    assert!(tokens(&["--raw", "-p", "<|user|>"]) > 2);
    assert_eq!(tokens(&["--raw", "--special", "-p", "<|user|>"]), 2);
    assert!(tokens(&["-p", "Hi", "--system", "You are a cat."]) > tokens(&["-p", "Hi"]));
}

#[test]
fn a_template_can_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("template.jinja");
    std::fs::write(&file, "{% for m in messages %}{{ m['content'] }}{% endfor %}").unwrap();
    let run = json(&[
        "run",
        "-p",
        "Once upon a time",
        "--chat-template",
        file.to_str().unwrap(),
        "-n",
        "1",
        "--json",
    ]);
    assert_eq!(run["prompt_tokens"], 5);
}

#[test]
fn answers_end_where_they_are_told_to() {
    let base = ["run", "-p", "Tell me a story.", "--temp", "0", "--json", "-n", "60"];
    let whole = text(&base);
    let stop = whole.split(' ').nth(4).unwrap();
    let run = json(&[&base[..], &["--stop", stop]].concat());
    assert_eq!(run["finish"], "stop");
    assert_eq!(run["text"].as_str().unwrap(), &whole[..whole.find(stop).unwrap()]);
    // Forbidding the first token changes the answer.
    let first = json(&base)["tokens"][0].to_string();
    let other = json(&[&base[..], &["--logit-bias", &format!("{first}=-inf")]].concat());
    assert_ne!(other["tokens"][0].to_string(), first);
    // Never more than the context.
    let full = json(&["run", "-p", "Hi", "--ctx", "32", "--ignore-eos", "--json"]);
    assert_eq!(full["finish"], "context");
    assert_eq!(full["prompt_tokens"].as_u64().unwrap() + full["tokens"].as_array().unwrap().len() as u64, 33);
}

#[test]
fn other_ways_to_compute_work() {
    for args in [
        &["--kv", "f32"][..],
        &["--kv", "q8_0"],
        &["--activations", "float"],
        &["--batch", "3"],
        &["--no-pin"],
        &["--top-k", "5", "--top-p", "0.9", "--typical-p", "0.9", "--min-p", "0"],
        &["--presence-penalty", "0.5", "--frequency-penalty", "0.5", "--repeat-last-n", "-1"],
    ] {
        let run = json(&[&["run", "-p", "Hello", "-n", "5", "--ignore-eos", "--json"], args].concat());
        assert_eq!(run["tokens"].as_array().unwrap().len(), 5, "{args:?}");
    }
    // How the prompt is cut changes nothing.
    let cut = |batch: &str| {
        text(&[
            "run",
            "-p",
            "Tell me about a small bird.",
            "--temp",
            "0",
            "-n",
            "20",
            "--batch",
            batch,
            "--json",
        ])
    };
    assert_eq!(cut("1"), cut("128"));
}

#[test]
fn a_prompt_in_pieces_is_measured_whole() {
    let args = ["run", "-p", "Tell me about a small bird.", "-n", "2", "--batch", "4"];
    let tokens = json(&[&args[..], &["--json"]].concat())["prompt_tokens"].to_string();
    let line = format!("prompt {tokens} tokens, ");
    nexaquant().args(args).assert().success().stderr(predicate::str::starts_with(line));
}

#[test]
fn a_context_beyond_the_model_is_a_warning() {
    nexaquant()
        .args(["run", "-p", "Hi", "-n", "2", "--ctx", "100000"])
        .assert()
        .success()
        .stderr(predicate::str::contains("warning: --ctx 100000").and(predicate::str::contains("512")));
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = spawnable()
        .args(["run", "-p", "Tell me a story.", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");

    // So is one that was never there.
    for args in [
        &["--help"][..],
        &["info"],
        &["inspect"],
        &["score", "--tokens", "1,2"],
        &["run", "-p", "Hi", "-n", "2", "--json"],
    ] {
        let mut child = spawnable().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_answer_with_what_there_is() {
    // Float activations on one thread with the scalar kernels: slow enough to be interrupted.
    let mut child = spawnable()
        .args(["run", "-p", "Tell me a story.", "--ignore-eos", "--activations", "float", "--threads", "1"])
        .env("NEXAQUANT_ISA", "scalar")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut text = vec![0];
    stdout.read_exact(&mut text).unwrap();
    interrupt(child.id());
    stdout.read_to_end(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(text.ends_with(b"\n"), "the last line is ended");
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("prompt "), "what was computed is measured");
}

#[cfg(unix)]
fn interrupt(id: u32) {
    assert!(std::process::Command::new("kill").args(["-INT", &id.to_string()]).status().unwrap().success());
}
