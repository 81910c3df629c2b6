//! `chat` through a pipe: one turn a line.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::*;
use predicates::prelude::*;

/// Standard output and standard error of a conversation that ends well.
fn talk(args: &[&str], lines: &str) -> (String, String) {
    let output =
        nexaquant().arg("chat").args(args).write_stdin(lines).assert().success().get_output().clone();
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn each_line_is_a_turn() {
    let (out, err) = talk(&["-n", "10", "--seed", "3"], "Hello!\n\nWhat is your name?\n");
    assert!(!out.contains('>') && !out.contains('\x1b'), "no prompts and no colours: {out:?}");
    let measured: Vec<&str> = err.lines().collect();
    assert_eq!(measured.len(), 2, "{err}");
    assert!(measured.iter().all(|line| line.starts_with("prompt ") && line.contains("GB/s")), "{err}");
    assert!(measured[1].contains("kept"), "the second prompt begins with the first: {err}");
}

#[test]
fn earlier_turns_are_part_of_the_prompt() {
    let greedy = ["--temp", "0", "-n", "12"];
    let last = |lines: &str| talk(&greedy, lines).0.lines().last().unwrap().to_owned();
    let alone = last("What did I say?\n");
    let later = last("My cat is called Tom.\nWhat did I say?\n");
    assert_ne!(alone, later);
    assert_eq!(alone, last("My cat is called Tom.\n/reset\nWhat did I say?\n"), "forgotten");
    assert_eq!(alone, last("/system\nWhat did I say?\n"));
    assert_ne!(alone, last("/system You are a pirate who loves the sea.\nWhat did I say?\n"));
    let args = [&greedy[..], &["--system", "You are a pirate who loves the sea."]].concat();
    let with_flag = talk(&args, "What did I say?\n").0;
    assert_eq!(
        with_flag.lines().last().unwrap(),
        last("/system You are a pirate who loves the sea.\nWhat did I say?\n")
    );
}

#[test]
fn a_full_context_drops_the_oldest_turns_and_says_so() {
    let line = "Please tell me a long story about the sea and the ships.\n";
    let (out, err) = talk(&["--ctx", "96", "-n", "20", "--seed", "1"], &line.repeat(6));
    assert!(err.contains("The context of 96 tokens is full: the oldest"), "{err}");
    assert_eq!(err.lines().filter(|l| l.starts_with("prompt ")).count(), 6, "{err}");
    assert!(!out.is_empty());

    let (_, err) = talk(&["--ctx", "64", "--ignore-eos"], "Hello!\n");
    assert!(err.contains("The context of 64 tokens is full, so the answer ends here."), "{err}");
}

#[test]
fn commands_do_what_help_says() {
    let dir = tempfile::tempdir().unwrap();
    let (text, json) = (dir.path().join("talk.txt"), dir.path().join("talk.json"));
    let lines = format!(
        "/system Be kind.\nHello!\n/stats\n/save {}\n/save {}\n/help\n/exit\nnever said\n",
        text.display(),
        json.display()
    );
    let (out, err) = talk(&["-n", "8", "--temp", "0"], &lines);
    for wanted in ["context: ", "answers: 1", "speed: ", "/reset", "Saved to "] {
        assert!(err.contains(wanted), "{wanted}: {err}");
    }
    let saved: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let roles: Vec<&str> =
        saved["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    assert_eq!(saved["messages"][2]["content"].as_str().unwrap().trim(), out.trim_end());
    let text = std::fs::read_to_string(text).unwrap();
    assert!(text.starts_with("system: Be kind.\n\nuser: Hello!\n\nassistant: "), "{text}");
}

#[test]
fn wrong_commands_end_a_script() {
    for (line, word) in [
        ("/frobnicate", "/frobnicate"),
        ("/save", "name of a file"),
        ("/save /no/such/dir/x", "cannot write"),
    ] {
        nexaquant()
            .arg("chat")
            .write_stdin(format!("{line}\n"))
            .assert()
            .code(2)
            .stderr(predicate::str::starts_with("error: ").and(predicate::str::contains(word)));
    }
}

#[test]
fn silence_is_no_error() {
    assert_eq!(talk(&[], ""), (String::new(), String::new()));
    assert_eq!(talk(&[], "\n \n"), (String::new(), String::new()));
}

#[test]
fn the_same_seed_is_the_same_talk() {
    let lines = "Tell me a story.\nTell me a story.\n";
    let args = ["-n", "20", "--seed", "9", "--ignore-eos"];
    let (first, _) = talk(&args, lines);
    assert_eq!(first, talk(&args, lines).0);
}
