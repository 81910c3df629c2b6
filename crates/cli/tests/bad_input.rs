//! Bad input of every kind: one line on standard error that says what is wrong, exit code 2, no panic, no hang, and
//! no memory because a file says so.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::*;
use nexaquant_engine::gguf::{Array, StringArray, TensorType, Value};
use predicates::prelude::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

/// Runs with `args` and expects one line with every one of `words`.
fn refused(args: &[&str], stdin: &[u8], words: &[&str]) {
    let output = limited(args).write_stdin(stdin).assert().code(2).get_output().clone();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    assert!(text.starts_with("error: "), "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{args:?}: no {word:?} in: {text}");
    }
    assert!(output.stdout.is_empty(), "{args:?} printed {:?}", String::from_utf8_lossy(&output.stdout));
}

/// The program with 1 GB of address space, so that a huge allocation fails.
#[cfg(target_os = "linux")]
fn limited(args: &[&str]) -> assert_cmd::Command {
    let mut command = assert_cmd::Command::new("sh");
    command.args(["-c", "ulimit -v 1000000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_nexaquant")]).args(args);
    command.env_remove("NEXAQUANT_ISA").env("XDG_DATA_HOME", "/nonexistent");
    command.timeout(std::time::Duration::from_secs(60));
    command
}
#[cfg(not(target_os = "linux"))]
fn limited(args: &[&str]) -> assert_cmd::Command {
    let mut command = nexaquant();
    command.args(args);
    command
}

/// Writes a model file, and expects `run` and `score` to refuse it with `words`.
fn refused_file(bytes: &[u8], words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.gguf");
    std::fs::write(&path, bytes).unwrap();
    let path = path.to_str().unwrap();
    let words = [&["bad.gguf"], words].concat();
    refused(&["run", path, "-p", "Hello", "-n", "4"], b"", &words);
    refused(&["score", path, "--tokens", "1,2,3"], b"", &words);
}

#[test]
fn files_that_are_no_model() {
    refused_file(b"", &["is empty"]);
    refused_file(b"Once upon a time there was a text file.\n", &["not a GGUF file", "Once"]);
    let whole = tiny_bytes();
    refused_file(&whole[..100], &["76 bytes"]);
    refused_file(&whole[..1000], &["317 bytes left"]);
    refused_file(&whole[..20], &["the file ends"]);
    refused_file(&whole[..whole.len() - 1000], &["blk.1.ffn_down.weight", "download complete"]);
}

#[test]
fn headers_that_lie() {
    let whole = tiny_bytes();
    let huge = (1u64 << 60).to_le_bytes();
    // Magic, version, tensors, keys, and the first key's length.
    refused_file(&patched(whole.clone(), 8, &huge), &["1152921504606846976", "tensors"]);
    refused_file(&patched(whole.clone(), 16, &huge), &["1152921504606846976", "keys"]);
    refused_file(&patched(whole.clone(), 24, &huge), &["1152921504606846976"]);
    refused_file(&patched(whole.clone(), 4, &9u32.to_le_bytes()), &["version 9"]);

    let name = "blk.0.attn_q.weight";
    let (dims, ty, offset) = entry(&whole, name);
    let (_, _, other) = entry(&whole, "blk.0.attn_norm.weight");
    refused_file(
        &patched(whole.clone(), offset, &(1u64 << 40).to_le_bytes()),
        &["should start at", "damaged"],
    );
    refused_file(
        &patched(whole.clone(), offset, &whole[other..other + 8]),
        &["blk.0.attn_norm.weight", "overlaps"],
    );
    refused_file(&patched(whole.clone(), dims, &0u64.to_le_bytes()), &[name, "no dimension may be 0"]);
    refused_file(&patched(whole.clone(), dims, &huge), &[name, "more elements"]);
    refused_file(&patched(whole.clone(), ty, &250u32.to_le_bytes()), &[name, "250"]);
}

#[test]
fn models_that_make_no_sense() {
    let without = |key: &'static str| changed(|pairs, _| pairs.retain(|(k, _)| k != key));
    let with = |key: &'static str, value: Value| {
        changed(|pairs, _| {
            pairs.retain(|(k, _)| k != key);
            pairs.push((key.to_owned(), value));
        })
    };
    refused_file(&without("llama.block_count"), &["llama.block_count"]);
    refused_file(&without("tokenizer.ggml.tokens"), &["tokenizer.ggml.tokens"]);
    refused_file(&with("llama.block_count", "two".into()), &["llama.block_count", "two"]);
    refused_file(&with("llama.block_count", 3u32.into()), &["blk.2."]);
    refused_file(&with("general.architecture", "mystery".into()), &["mystery", "llama"]);
    refused_file(&with("llama.embedding_length", u64::MAX.into()), &["llama.embedding_length"]);
    refused_file(&with("llama.context_length", 0u32.into()), &["llama.context_length"]);

    let cut = changed(|pairs, _| {
        for (_, value) in pairs.iter_mut() {
            if let Value::Array(array) = value {
                *array = match &*array {
                    Array::String(v) => Array::String(v.iter().take(270).collect::<StringArray>()),
                    Array::F32(v) => Array::F32(v[..270].to_vec()),
                    Array::I32(v) => Array::I32(v[..270].to_vec()),
                    other => other.clone(),
                };
            }
        }
    });
    refused_file(&cut, &["270", "272", "token_embd.weight"]);

    let renamed = changed(|_, tensors| tensors[3].name = "blk.0.attn_x.weight".into());
    refused_file(&renamed, &["blk.0.attn_"]);
    let shorter = changed(|_, tensors| tensors[3].dims = vec![32, 16]);
    refused_file(&shorter, &["blk.0.attn_q.weight"]);
    let strange = changed(|_, tensors| {
        tensors[0].ty = TensorType::by_name("IQ4_NL").unwrap();
    });
    refused_file(&strange, &["token_embd.weight", "IQ4_NL", "use"]);
}

#[test]
fn templates_that_do_not_end() {
    let templates = [
        ("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}", "template"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "template"),
        ("{% if %}", "template"),
        ("{{ raise_exception('not like this') }}", "not like this"),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (template, word) in templates {
        let path = dir.path().join("bad.gguf");
        let key = "tokenizer.chat_template";
        std::fs::write(&path, changed(|pairs, _| pairs.push((key.into(), template.into())))).unwrap();
        refused(&["run", path.to_str().unwrap(), "-p", "Hello"], b"", &[word]);
        // What needs no template works all the same.
        stdout(&["run", path.to_str().unwrap(), "--raw", "-p", "Hello", "-n", "2"]);

        let file = dir.path().join("template.jinja");
        std::fs::write(&file, template).unwrap();
        refused(&["run", "-p", "Hello", "--chat-template", file.to_str().unwrap()], b"", &[word]);
    }
}

#[test]
fn prompts_that_cannot_be_used() {
    let tiny = tiny();
    let tiny = tiny.to_str().unwrap();
    let long = "a ".repeat(2000);
    refused(&["run", tiny, "-f", "-"], long.as_bytes(), &["context of 256", "too long"]);
    refused(&["run", tiny, "--raw", "-f", "-"], long.as_bytes(), &["context of 256", "too long"]);
    refused(&["run", tiny, "--ctx", "8", "--raw", "-p", "more than eight bytes"], b"", &["context of 8"]);
    refused(&["score", tiny, "--ctx", "8", "--text", "more than eight bytes"], b"", &["context of 8"]);
    refused(&["chat", tiny], format!("{long}\n").as_bytes(), &["context of 256"]);

    refused(&["run", "-"], b"caf\xe9", &["standard input", "UTF-8", "byte 3 is 0xe9"]);
    refused(&["chat"], b"caf\xe9\n", &["standard input", "UTF-8"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("latin1.txt");
    std::fs::write(&file, b"caf\xe9").unwrap();
    let file = file.to_str().unwrap();
    for command in ["run", "perplexity"] {
        refused(&[command, "-f", file], b"", &["latin1.txt", "UTF-8"]);
        refused(&[command, "-f", dir.path().to_str().unwrap()], b"", &["directory"]);
        refused(&[command, "-f", "/no/such/file"], b"", &["/no/such/file"]);
    }
    refused(&["run", "-p", ""], b"", &["prompt is empty"]);
    refused(&["run", "-"], b"", &["prompt is empty"]);
    refused(&["perplexity", "-f", "-"], b"", &["too short"]);
    refused(&["score", "--tokens", "1,4096"], b"", &["4096"]);
}

#[test]
fn paths_that_are_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    for command in [&["run", path, "-p", "x"][..], &["inspect", path], &["chat", path]] {
        refused(command, b"", &["is a directory"]);
    }
    refused(&["run", "/no/such.gguf", "-p", "x"], b"", &["/no/such.gguf"]);
    refused(&["run", "nosuch", "-p", "x"], b"", &["nosuch", "alpha, beta, gamma, delta"]);
}

#[cfg(unix)]
#[test]
fn a_file_without_permission() {
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(file.path(), tiny_bytes()).unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::File::open(file.path()).is_ok() {
        // Past the capture of test output, so that it is seen.
        let _ =
            writeln!(std::io::stderr(), "skipped: a file without permission; this user may open any file");
        return;
    }
    refused(&["run", file.path().to_str().unwrap(), "-p", "x"], b"", &["cannot open", "ermission"]);
}

/// A conversation keeps the file open between turns, so there is a moment to truncate it.
#[cfg(unix)]
#[test]
fn a_file_truncated_while_it_is_used() {
    let file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    std::fs::write(file.path(), tiny_bytes()).unwrap();
    let mut child = spawnable()
        .args(["chat", "-n", "4", "--ignore-eos"])
        .arg(file.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stdin.write_all(b"Hello\n").unwrap();
    let mut measured = String::new();
    stderr.read_line(&mut measured).unwrap();
    assert!(measured.contains("tokens/s"), "{measured}");
    file.as_file().set_len(4096).unwrap();
    stdin.write_all(b"And now?\n").unwrap();
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(2));
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert!(rest.starts_with("error: ") && rest.contains("truncated") && rest.lines().count() == 1, "{rest}");
}

#[test]
fn flags_that_make_no_sense() {
    for (args, word) in [
        (&["run", "-p", "x", "--temp", "-1"][..], "temperature"),
        (&["run", "-p", "x", "--temp", "nan"], "temperature"),
        (&["run", "-p", "x", "--top-p", "1.5"], "top_p"),
        (&["run", "-p", "x", "--repeat-penalty", "0"], "repeat_penalty"),
        (&["run", "-p", "x", "--logit-bias", "7"], "ID=VALUE"),
        (&["run", "-p", "x", "--logit-bias", "9999=1"], "9999"),
        (&["run", "-p", "x", "--stop", ""], "stop"),
        (&["run", "-p", "x", "--threads", "0"], "--threads"),
        (&["run", "-p", "x", "--threads", "60000"], "60000"),
        (&["run", "-p", "x", "--kv", "q3"], "q3"),
        (&["run", "-p", "x", "--batch", "0"], "--batch"),
        (&["run", "-p", "x", "-f", "y"], "--file"),
        (&["run", "alpha", "-", "-p", "x"], "cannot be used"),
        (&["run", "-", "-p", "x"], "two prompts"),
        (&["run", "-p", "x", "--raw", "--system", "y"], "--system"),
        (&["run", "-p"], "--prompt"),
        (&["run", "-p", "x", "--frobnicate"], "--frobnicate"),
        (&["score"], "--tokens"),
        (&["score", "--tokens", "1,x"], "x"),
        (&["perplexity"], "--file"),
        (&["frobnicate"], "frobnicate"),
    ] {
        refused(args, b"", &[word]);
    }
}

#[test]
fn sampling_is_checked_before_the_first_turn() {
    refused(&["chat", "--temp", "-1"], b"", &["temperature"]);
}

#[test]
fn an_instruction_set_that_is_none() {
    nexaquant()
        .env("NEXAQUANT_ISA", "mmx")
        .args(["run", "-p", "x"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("mmx").and(predicate::str::contains("scalar, avx2, avx512 or amx")));
}

#[test]
fn more_threads_than_processors_is_a_warning() {
    nexaquant()
        .args(["run", "-p", "x", "-n", "2", "--threads", "64"])
        .assert()
        .success()
        .stderr(predicate::str::contains("warning: 64 threads"));
}
