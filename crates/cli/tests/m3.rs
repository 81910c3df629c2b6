//! `m3` and `plan`: several models under one budget, and that nothing but the speed depends on it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::*;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// What `m3 --json` printed; one thread, so that tests side by side do not wait for each other.
fn m3(args: &[&str]) -> Value {
    json(&[&["m3", "--json", "-t", "1"], args].concat())
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key}: {}", value[key]))
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

/// The tokens of each answer.
fn tokens(run: &Value) -> Vec<&Value> {
    array(&run["queries"]).iter().map(|query| &query["tokens"]).collect()
}

/// What must hold for every run: the budget, the books of each part, and what was moved.
fn books_are_in_order(run: &Value, what: &str) {
    let budget = number(run, "budget_bytes");
    assert!(number(run, "high_water_bytes") <= budget, "{what}");
    let mut kept: HashMap<(&str, u64), u64> = HashMap::new();
    let mut moved = 0;
    for event in array(&run["events"]) {
        assert!(number(event, "used_bytes") <= budget, "{what}: {event}");
        let bytes = number(event, "bytes");
        let kept = kept.entry((event["model"].as_str().unwrap(), number(event, "index"))).or_default();
        match event["event"].as_str().unwrap() {
            "page_in" => {
                moved += bytes;
                *kept += bytes;
            }
            "evict" => *kept -= bytes,
            other => panic!("{what}: {other}"),
        }
        assert_eq!(*kept, number(event, "kept_bytes"), "{what}: {event}");
        assert!(*kept <= number(event, "part_bytes"), "{what}: {event}");
    }
    assert_eq!(moved, number(run, "bytes_moved"), "{what}");
}

/// Moved at most 5 % more than any policy has to.
fn close_to_the_optimum(run: &Value, what: &str) {
    books_are_in_order(run, what);
    let (moved, best) = (number(run, "bytes_moved"), number(run, "optimum_bytes"));
    assert!(moved as f64 <= 1.05 * best as f64, "{what}: {moved} moved, {best} would do");
}

#[test]
fn three_models_share_ten_megabytes() {
    let run = json(&["m3", "--json"]);
    assert_eq!(number(&run, "budget_bytes"), 10_000_000);
    close_to_the_optimum(&run, "default");
    assert!(number(&run, "lru_bytes") >= number(&run, "bytes_moved"));
    assert!(number(&run, "optimum_plain_bytes") <= number(&run, "optimum_prefetch_bytes"));
    assert_eq!(run["optimum_bytes"], run["optimum_prefetch_bytes"]);
    assert_eq!((run["policy"].as_str(), run["prefetch"].as_bool()), (Some("two-level"), Some(true)));
    let queries = array(&run["queries"]);
    let models: Vec<_> = queries.iter().map(|query| query["model"].as_str().unwrap()).collect();
    assert_eq!(models, ["alpha", "beta", "gamma", "alpha"]);
    let mut moved = 0;
    for query in queries {
        assert!(array(&query["tokens"]).iter().all(Value::is_u64) && !array(&query["tokens"]).is_empty());
        assert!(!query["text"].as_str().unwrap().trim().is_empty(), "{query}");
        assert!(query["switch_ms"].as_f64().unwrap() > 0.0, "{query}");
        assert!(query["tokens_per_s"].as_f64().unwrap() > 0.0, "{query}");
        assert!(number(query, "page_in_bytes") >= number(query, "switch_page_in_bytes"), "{query}");
        moved += number(query, "page_in_bytes");
    }
    assert_eq!(moved, number(&run, "bytes_moved"));
    // It does not all fit, so somebody had to go.
    assert!(array(&run["events"]).iter().any(|event| event["event"] == "evict"));
}

#[test]
fn a_pipe_gets_plain_lines() {
    let text = stdout(&["m3", "-t", "1"]);
    assert!(!text.contains('\x1b') && !text.contains('\r'), "{text}");
    let matches = |pattern: &str| predicates::str::is_match(pattern).unwrap();
    for pattern in [
        r"(?m)^3 models with 23\.9 MB of weights under one budget of 10\.0 MB: ",
        r"(?m)^  page in alpha layer 0 +\d+ KB +[\d.]+ us$",
        r"(?m)^  evict   alpha head 6/6 +\d+ KB +[\d.]+ us$",
        r"(?m)^  \[#+ *\] \d+\.\d% \(\d+\.\d MB / 10\.0 MB\)$",
        r#"(?m)^1 of 4: alpha "What is your name\?"$"#,
        r#"(?m)^4 of 4: alpha ""#,
        r"(?m)^I am Alpha",
        r"(?m)^  switch [\d.]+ ms, [\d.]+ ms of it page-in of .* tokens/s, limited by ",
        r"(?m)^  streamed gamma layer 0 +[\d.]+ MB in +\d+ loads of [\d.]+ us$",
        r"(?m)^  two-level \(this run\) +[\d.]+ MB +1\.0\d\d$",
        r"(?m)^  lru, the same uses and budgets +[\d.]+ MB +[\d.]+$",
        r"(?m)^  optimum, the next part beside the one in use +[\d.]+ MB +1\.000$",
        r"(?m)^  optimum, only the one in use +[\d.]+ MB +[\d.]+$",
        r"(?m)^  ledger, high-water mark +\d+ bytes of 10000000$",
    ] {
        assert!(predicates::Predicate::eval(&matches(pattern), text.as_str()), "{pattern}: {text}");
    }
    assert!(!cfg!(target_os = "linux") || text.contains("process, peak (VmHWM)"), "{text}");

    let none = stdout(&["m3", "alpha", "-t", "1", "-n", "4", "--events", "none"]);
    assert!(!none.contains("page in") && none.contains("1 of 1: alpha"), "{none}");
    let all = stdout(&["m3", "gamma", "-t", "1", "-n", "4", "--budget", "6MB", "--events", "all"]);
    assert!(all.matches("page in gamma layer 0").count() > 1, "{all}");
    let turns = stdout(&["m3", "alpha", "beta", "-t", "1", "-n", "4", "--turn", "2"]);
    let (answers, rest) = turns.split_once("\nDuring all answers\n").unwrap();
    assert!(!answers.contains("streamed") && rest.contains("  streamed beta layer 0 "), "{turns}");
}

#[test]
fn no_budget_changes_an_answer() {
    let wanted = m3(&["-n", "16", "--budget", "40MB"]);
    assert_eq!(number(&wanted, "bytes_moved"), number(&wanted, "optimum_bytes"), "all fits");
    for args in [
        &["--budget", "2.6MB"][..],
        &["--budget", "6MB"],
        &["--budget", "10MB"],
        &["--policy", "lru"],
        &["--no-prefetch"],
        &["--threads", "2"],
        &["--turn", "1"],
        &["--turn", "3", "--budget", "6MB", "--io", "direct"],
        &["--pin", "beta=head:3"],
    ] {
        // Given twice it would be an error.
        let threads = if args.contains(&"--threads") { &[][..] } else { &["-t", "1"] };
        let run = json(&[&["m3", "--json", "-n", "16"], args, threads].concat());
        books_are_in_order(&run, &format!("{args:?}"));
        assert_eq!(tokens(&run), tokens(&wanted), "{args:?}");
    }
}

#[test]
fn run_and_score_do_not_depend_on_the_budget() {
    let run = ["run", "beta", "-p", "Tell me a story.", "--json", "--temp", "0", "-n", "20", "-t", "1"];
    let wanted = json(&run);
    for budget in ["2.6MB", "5MB", "100MB"] {
        let found = json(&[&run[..], &["--budget", budget]].concat());
        assert_eq!((&found["tokens"], &found["text"]), (&wanted["tokens"], &wanted["text"]), "{budget}");
    }
    let score = ["score", "alpha", "--text", "The cat sat on the mat.", "--json", "-t", "1"];
    assert_eq!(stdout(&score), stdout(&[&score[..], &["--budget", "3MB"]].concat()), "to the bit");
}

#[test]
fn one_model_is_streamed_as_well_as_can_be() {
    let plan = json(&["plan", "gamma", "--json", "-n", "12", "-t", "1", "--budget", "40MB"]);
    let model = &plan["models"][0];
    for percent in [50, 75, 95] {
        let budget = number(model, "block_bytes") * percent / 100 + number(model, "session_bytes");
        let budget = budget.to_string();
        let args = ["gamma", "-q", "gamma=Tell me about the sea.", "-n", "12", "--budget", &budget];
        close_to_the_optimum(&m3(&args), &format!("{percent} %"));
        let run = m3(&[&args[..], &["--no-prefetch"]].concat());
        assert_eq!(run["optimum_bytes"], run["optimum_plain_bytes"]);
        close_to_the_optimum(&run, &format!("{percent} %, no prefetch"));
    }
}

fn turns(models: &[&str], budgets: [&str; 2]) {
    for budget in budgets {
        for turn in ["1", "8", "32"] {
            // Turns of 32 are cut short in answers that are shorter.
            let n = if turn == "32" { "40" } else { "10" };
            let args = [models, &["-n", n, "--rounds", "2", "--turn", turn, "--budget", budget]].concat();
            close_to_the_optimum(&m3(&args), &format!("{args:?}"));
            if turn == "8" {
                let run = m3(&[&args[..], &["--no-prefetch"]].concat());
                close_to_the_optimum(&run, &format!("{args:?}, no prefetch"));
            }
        }
    }
}

#[test]
fn two_models_in_turns_are_served_as_well_as_can_be() {
    turns(&["alpha", "beta"], ["4MB", "9MB"]);
}

#[test]
fn three_models_in_turns_are_served_as_well_as_can_be() {
    turns(&["alpha", "beta", "gamma"], ["6MB", "12MB"]);
}

#[test]
fn a_plan_says_what_a_run_does() {
    let plan = json(&["plan", "--json", "-t", "1"]);
    assert_eq!(
        (number(&plan, "budget_bytes"), number(&plan, "prompt_tokens"), number(&plan, "answer_tokens")),
        (10_000_000, 24, 48)
    );
    assert!(number(&plan, "high_water_bytes") <= 10_000_000);
    for model in array(&plan["models"]) {
        let sum = |key: &str| array(&model["parts"]).iter().map(|part| number(part, key)).sum::<u64>();
        assert_eq!(
            (number(model, "block_bytes"), number(model, "resident_bytes")),
            (sum("bytes"), sum("kept_bytes"))
        );
        assert!(number(model, "resident_bytes") + number(model, "session_bytes") <= 10_000_000, "{model}");
        assert!(number(model, "weight_bytes") <= number(model, "block_bytes"), "{model}");
        assert!(model["tokens_per_s"].as_f64().unwrap() > 0.0 && model["switch_ms"].as_f64().unwrap() > 0.0);
        let streams = number(model, "resident_bytes") < number(model, "block_bytes");
        assert_eq!(streams, number(model, "streamed_bytes_per_token") > 0, "{model}");
    }
    let text = stdout(&["plan", "-t", "1"]);
    for wanted in
        ["Budget 10.0 MB (10000000 bytes)", "  alpha  ####", "high-water mark", "smallest budget", "from the"]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!(!text.contains('\x1b'), "{text}");
}

/// The smallest budget that is printed does, a little less does not, and a refusal names it.
#[test]
fn the_smallest_budget_is_enough() {
    for n in ["8", "48"] {
        let run = m3(&["-n", n]);
        let least = number(&run, "smallest_budget_bytes");
        let small = m3(&["-n", n, "--budget", &least.to_string()]);
        books_are_in_order(&small, "smallest");
        assert_eq!(number(&small, "smallest_budget_bytes"), least);
        assert_eq!(tokens(&small), tokens(&run));
        for less in [least - (64 << 10), least / 2] {
            let words = [&*format!("{less} bytes is too small"), &*format!("would do is {least} bytes")];
            refused(&["m3", "-n", n, "-t", "1", "--budget", &less.to_string()], &words);
        }
    }
    let plan = |budget: &str| json(&["plan", "--json", "-t", "1", "--budget", budget]);
    let least = number(&plan("10MB"), "smallest_budget_bytes");
    assert_eq!(number(&plan(&least.to_string()), "smallest_budget_bytes"), least);
    let less = (least - (64 << 10)).to_string();
    refused(&["plan", "-t", "1", "--budget", &less], &[&less, &least.to_string()]);
}

/// Caches that do not fit together give way to each other, so the smallest budget is enough for turns, too.
#[test]
fn the_smallest_budget_is_enough_for_turns() {
    let alone = m3(&["-n", "8"]);
    let budget = number(&alone, "smallest_budget_bytes").to_string();
    let turns = m3(&["-n", "8", "--turn", "2", "--budget", &budget]);
    let tokens = |run: &Value| -> Vec<Value> {
        array(&run["queries"]).iter().map(|query| query["tokens"].clone()).collect()
    };
    assert_eq!(tokens(&turns), tokens(&alone));
}

/// Expects one line on standard error with `words`, and nothing else; the same with `--json`.
fn refused(args: &[&str], words: &[&str]) {
    for more in [&[][..], &["--json"]] {
        let args = [args, more].concat();
        let output = nexaquant().args(&args).assert().code(2).get_output().clone();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with("error: ") && text.lines().count() == 1, "{args:?}: {text}");
        for word in words {
            assert!(text.contains(word), "{args:?}: no {word:?} in: {text}");
        }
        assert!(output.stdout.is_empty(), "{args:?} printed {:?}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn budgets_that_are_none_or_too_small() {
    for command in ["m3", "plan"] {
        for (budget, word) in [
            ("0", "zero"),
            ("-1", "negative"),
            ("ten", "\"ten\" is no size"),
            ("NaN", "\"NaN\" is no size"),
            ("10M", "is no size"),
            ("1", "smallest budget that would do"),
            ("300KB", "300000 bytes is too small"),
        ] {
            refused(&[command, "--budget", budget], &[word]);
        }
    }
    refused(&["run", "-p", "Hi", "--budget", "300KB"], &["budget", "would do"]);
}

#[test]
fn scenarios_that_make_no_sense() {
    refused(&["m3", "--pin", "gamma=all"], &["pinning", "gamma", "13.0 MB (13005824 bytes)"]);
    refused(&["m3", "--pin", "zeta=all"], &["zeta", "alpha, beta, gamma"]);
    refused(&["m3", "--pin", "alpha"], &["MODEL=all"]);
    refused(&["m3", "--pin", "alpha=tail"], &["tail"]);
    refused(&["m3", "alpha", "alpha"], &["two models are named alpha"]);
    refused(&["m3", "-q", "zeta=Hi"], &["zeta", "alpha, beta, gamma"]);
    refused(&["m3", "-q", "alpha="], &["query for alpha is empty"]);
    refused(&["m3", "-q", "alpha"], &["MODEL=TEXT"]);
    refused(&["m3", "--turn", "0"], &["--turn"]);
    refused(&["m3", "--rounds", "0"], &["--rounds"]);
    refused(&["m3", "/no/such.gguf"], &["/no/such.gguf"]);
    refused(&["m3", "zeta"], &["zeta", "alpha, beta, gamma, delta"]);
    refused(&["plan", "/no/such.gguf"], &["/no/such.gguf"]);
    refused(&["plan", "--filled", "100000"], &["lower --filled"]);
    let dir = tempfile::tempdir().unwrap();
    refused(&["m3", dir.path().to_str().unwrap()], &["directory"]);
    let path = dir.path().join("cut.gguf");
    let whole = tiny_bytes();
    std::fs::write(&path, &whole[..whole.len() - 1000]).unwrap();
    for command in ["m3", "plan"] {
        refused(&[command, path.to_str().unwrap()], &["cut.gguf", "download complete"]);
    }
}

fn written(folder: &Path, text: &str) -> String {
    let path = folder.join("scenario.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn scenarios_come_from_files() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("small.gguf"), tiny_bytes()).unwrap();
    let config = written(
        dir.path(),
        "budget = \"6MB\"\npolicy = \"lru\"\ntokens = 5\nturn = 2\nprefetch = false\n\
         [[models]]\nname = \"alpha\"\npin = \"head:2\"\n\
         [[models]]\nname = \"other\"\npath = \"small.gguf\"\n\
         [[queries]]\nmodel = \"other\"\nprompt = \"Hello\"\n\
         [[queries]]\nmodel = \"alpha\"\nprompt = \"What is your name?\"\n",
    );
    let run = m3(&["--config", &config]);
    books_are_in_order(&run, "file");
    assert_eq!((number(&run, "budget_bytes"), number(&run, "turn")), (6_000_000, 2));
    assert_eq!((run["policy"].as_str(), run["prefetch"].as_bool()), (Some("lru"), Some(false)));
    let queries: Vec<_> = array(&run["queries"]).iter().map(|q| (&q["model"], &q["prompt"])).collect();
    assert_eq!(
        queries,
        [(&"other".into(), &"Hello".into()), (&"alpha".into(), &"What is your name?".into())]
    );
    assert!(tokens(&run).iter().all(|tokens| array(tokens).len() <= 5));
    // Flags come first.
    let run = m3(&["--config", &config, "--budget", "7MB", "-q", "alpha=Hi", "-n", "2"]);
    assert_eq!((number(&run, "budget_bytes"), array(&run["queries"]).len()), (7_000_000, 1));

    for (text, words) in [
        ("tokens = 3\nbuget = \"5MB\"\n", &["scenario.toml line 2", "buget", "budget"][..]),
        ("\n\ntokens = \"3\"\n", &["scenario.toml line 3", "\"3\""]),
        ("policy = \"best\"\n", &["line 1", "two-level", "lru"]),
        ("tokens = 3\n[[models]\n", &["line 2"]),
        ("[[models]]\nname = \"a\"\npth = \"x\"\n", &["line 3", "pth"]),
        ("budget = \"ten\"\n", &["budget", "\"ten\""]),
        ("turn = 0\n", &["turn", "at least 1"]),
    ] {
        refused(&["m3", "--config", &written(dir.path(), text)], words);
    }
    refused(&["m3", "--config", "/no/such.toml"], &["/no/such.toml"]);
    refused(&["m3", "--config", dir.path().to_str().unwrap()], &["directory"]);
}

#[test]
fn pinned_parts_stay() {
    let evicted = |run: &Value, below: u64| {
        let of_alpha = |event: &&Value| event["model"] == "alpha" && number(event, "index") < below;
        array(&run["events"]).iter().filter(of_alpha).any(|event| event["event"] == "evict")
    };
    let free = m3(&["-n", "8"]);
    assert!(evicted(&free, 1), "without a pin it goes");
    let all = m3(&["-n", "8", "--pin", "alpha=all"]);
    books_are_in_order(&all, "all");
    assert!(!evicted(&all, u64::MAX));
    let head = m3(&["-n", "8", "--pin", "alpha=head:4"]);
    books_are_in_order(&head, "head:4");
    assert!(!evicted(&head, 4) && evicted(&head, 5), "the fifth part is not pinned");
    assert_eq!((tokens(&all), tokens(&head)), (tokens(&free), tokens(&free)));
}

/// Ten times as large as the budget, and the process does not grow with it.
#[test]
fn a_model_need_not_fit() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("large.gguf");
    let path = path.to_str().unwrap();
    let shape = "layers=26,embd=1280,heads=10,kv=2,ff=5120,vocab=2000,ctx=128";
    stdout(&["synth", shape, "-o", path]);
    let run = ["run", path, "-p", "Hello", "-n", "3", "--seed", "7", "--json", "-t", "1"];
    let mapped = json(&run);
    assert_eq!(json(&[&run[..], &["--budget", "15MB"]].concat())["tokens"], mapped["tokens"]);
    for io in ["auto", "direct", "cached"] {
        let run = m3(&[path, "-q", "large=Hello", "-n", "3", "--budget", "15MB", "--io", io]);
        close_to_the_optimum(&run, io);
        assert!(number(&run["models"][0], "weight_bytes") > 150_000_000);
        assert_eq!(tokens(&run), [&mapped["tokens"]], "{io}");
        if cfg!(target_os = "linux") {
            let peak = number(&run, "peak_rss_bytes");
            assert!(peak < 15_000_000 + 48_000_000, "{io}: {peak}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::io::{BufRead, BufReader};
    for args in [&["m3", "-t", "1"][..], &["m3", "--json", "-n", "2", "-t", "1"], &["plan", "-t", "1"]] {
        let piped = std::process::Stdio::piped;
        let mut child = spawnable().args(args).stdout(piped()).stderr(piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        if !args.contains(&"--json") {
            stdout.read_line(&mut line).unwrap();
        }
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_at_once() {
    use std::io::{BufRead, BufReader, Read};
    for (more, until) in [
        (&["--rounds", "1000"][..], "  [#"),
        // It never pauses.
        (&["alpha", "--rounds", "3000"], "  [#"),
        (&["--rounds", "50", "--turn", "4", "--budget", "400MB", "--events", "all"], "page in"),
    ] {
        let piped = std::process::Stdio::piped;
        let mut child =
            spawnable().args(["m3", "-t", "1"]).args(more).stdout(piped()).stderr(piped()).spawn().unwrap();
        // Until an answer begins or parts come in.
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains(until) {
            line.clear();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0);
        }
        let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(kill.unwrap().success());
        let start = std::time::Instant::now();
        // With the line that was read: it may have been the last.
        let mut rest = line.into_bytes();
        stdout.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(b"\n"), "the last line is ended");
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{more:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{more:?}");
        assert!(start.elapsed().as_secs() < 5, "{more:?}: {:?}", start.elapsed());
    }
}
