//! `bench`: that its figures belong together; never how fast anything is.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{has_device, json, nexaquant, stdout};
use predicates::str::contains;
use serde_json::Value;

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("{name} in {row}"))
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * b.abs()
}

#[test]
fn rows_have_figures_that_belong_together() {
    let shape = "layers=2,embd=512,heads=8,kv=4,ff=512,vocab=300";
    let args =
        ["bench", "alpha", shape, "-t", "1,2", "-p", "9", "-n", "3", "-r", "2", "--kv", "f16,q8_0", "--json"];
    let found = json(&args);
    let rows = found["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2 * 2 * 2 * 2);
    for row in rows {
        let speed = number(row, "tokens_per_s");
        assert!(number(row, "tokens_per_s_min") > 0.0);
        assert!(number(row, "tokens_per_s_min") <= speed && speed <= number(row, "tokens_per_s_max"));
        assert_eq!(row["tokens_per_s_all"].as_array().unwrap().len(), 2);
        assert!(close(number(row, "ms_per_token") * speed, 1e3));
        let (does, could) = match row["kind"].as_str() {
            Some("tg") => {
                assert_eq!(row["n"], 3);
                let does = number(row, "gb_per_s");
                assert!(close(does, number(row, "bytes_per_token") * speed / 1e9));
                (does, number(row, "measured_read_gb_per_s"))
            }
            Some("pp") => {
                assert_eq!(row["n"], 9);
                (number(row, "gmacs_per_s"), number(row, "measured_peak_gmacs_per_s"))
            }
            other => panic!("{other:?}"),
        };
        assert!(does > 0.0 && could > 0.0 && close(number(row, "fraction"), does / could), "{row}");
    }
    let bytes = |model: &str| {
        let of = |row: &&Value| row["model"].as_str().unwrap().starts_with(model) && row["kind"] == "tg";
        rows.iter().find(of).unwrap()["bytes_per_token"].as_u64().unwrap()
    };
    let run = json(&["run", "alpha", "-p", "x", "-n", "2", "--json"]);
    assert_eq!(bytes("alpha"), run["weight_bytes_per_token"].as_u64().unwrap());
    assert!(bytes(shape) > 0);
}

#[test]
fn prompts_of_floats_stand_beside_no_limit_of_bytes() {
    let shape = "layers=2,embd=256,heads=2,kv=1,ff=256,vocab=300";
    let args =
        |more: &[&str]| json(&[&["bench", shape, "-p", "9", "-n", "0", "-r", "1", "--json"], more].concat());
    for (more, bytes) in
        [(["--format", "F16"], false), (["--activations", "float"], false), (["--format", "Q8_0"], true)]
    {
        let row = &args(&more)["rows"][0];
        for name in ["gmacs_per_s", "measured_peak_gmacs_per_s", "fraction"] {
            assert_eq!(row[name].is_number(), bytes, "{more:?}: {row}");
        }
    }
    let table = stdout(&["bench", shape, "-p", "9", "-n", "0", "-r", "1", "--format", "F16", "--csv"]);
    assert!(table.trim_end().ends_with(",-,-,G products/s,-"), "{table}");
}

/// A line break in a name would be a row of its own, and other control characters would steer the terminal.
#[cfg(unix)]
#[test]
fn names_of_files_are_told_apart_and_break_no_table() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("other")).unwrap();
    let (one, two, odd) = (path("m.gguf"), path("other/m.gguf"), path("a\n\x1b[31m.gguf"));
    for name in [&one, &two, &odd] {
        std::fs::copy(common::tiny(), name).unwrap();
    }
    for form in ["--csv", "--md"] {
        let table = stdout(&["bench", &one, &two, &odd, "-p", "0", "-n", "1", "-r", "1", form]);
        assert_eq!(table.lines().count(), 3 + if form == "--csv" { 1 } else { 2 }, "{table}");
        assert!(table.contains(&one) && table.contains(&two) && !table.contains('\x1b'), "{table}");
    }
}

#[test]
fn a_table_has_the_same_rows_in_every_form() {
    let args = ["bench", "-p", "0", "-n", "2", "-r", "1", "-t", "1"];
    let with = |form: &[&str]| stdout(&[&args[..], form].concat());
    let (text, csv, md) = (with(&[]), with(&["--csv"]), with(&["--md"]));
    assert_eq!(text.lines().count(), 2, "{text}");
    assert_eq!(csv.lines().count(), 2);
    assert_eq!(csv.lines().map(|line| line.matches(',').count()).collect::<Vec<_>>(), [9, 9], "{csv}");
    assert_eq!(md.lines().count(), 3);
    assert!(md.lines().nth(1).unwrap().contains("---:"), "{md}");
    for text in [text, csv, md] {
        assert!(text.contains("alpha") && text.contains("tg 2") && text.contains("GB/s"), "{text}");
    }
}

#[test]
fn a_budget_is_kept_while_measuring() {
    let args = ["bench", "-p", "4", "-n", "2", "-r", "1", "--json", "--budget", "2MB"];
    assert_eq!(json(&args)["rows"].as_array().unwrap().len(), 2);
    let tiny = [&args[..7], &["--budget", "20KB"]].concat();
    nexaquant().args(tiny).assert().code(2).stderr(contains("a budget of at least"));
}

#[test]
fn rows_of_a_device_stand_beside_what_it_reads() {
    if !has_device() {
        return;
    }
    let args = ["bench", "alpha", "-p", "9", "-n", "3", "-r", "2", "--device", "0"];
    for more in [&[][..], &["--budget", "4MB"]] {
        let found = json(&[&args[..], more, &["--json"]].concat());
        assert!(!found["device"].as_str().unwrap().is_empty());
        let rows = found["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 2);
        for row in rows {
            assert!(number(row, "tokens_per_s") > 0.0 && row["threads"].is_null(), "{row}");
            if row["kind"] == "pp" {
                assert!(row["measured_peak_gmacs_per_s"].is_null() && row["fraction"].is_null(), "{row}");
                assert!(number(row, "gmacs_per_s") > 0.0);
            } else {
                let (does, could) = (number(row, "gb_per_s"), number(row, "measured_read_gb_per_s"));
                assert!(does > 0.0 && could > 0.0 && close(number(row, "fraction"), does / could), "{row}");
            }
        }
    }
    let csv = stdout(&[&args[..], &["--csv"]].concat());
    let device = json(&["info", "--json"])["opencl"]["devices"][0]["name"].as_str().unwrap().to_owned();
    assert!(csv.lines().skip(1).all(|line| line.contains(&device)), "{csv}");
    let threads = [&args[..], &["-t", "1"]].concat();
    nexaquant().args(threads).assert().code(2).stderr(contains("leave one of --threads and --device out"));
    for none in ["none such", ""] {
        nexaquant().args(["bench", "--device", none]).assert().code(2).stderr(contains("--device: "));
    }
}

#[test]
fn what_cannot_be_measured_is_said() {
    let many = vec!["1"; 600].join(",");
    for (args, text) in [
        (vec!["-t", "0"], "0 is not in 1..=512"),
        (vec!["-t", "70000"], "70000 is not in"),
        (vec!["-r", "0"], "0 is not in 1..=1000"),
        (vec!["-n", "99999999999"], "is not in"),
        (vec!["-n", "100000"], "was made for 512 positions"),
        (vec!["-p", "513"], "was made for 512 positions"),
        (vec!["-p", "0", "-n", "0"], "nothing to measure"),
        (vec!["-p", &many], "rows are too many"),
        (vec!["nosuch"], "shapes of random models are tinyllama-1.1b"),
        (vec!["layers=2,embd=7"], "multiples of 256"),
        (vec!["tinyllama-1.1b", "--format", "Q3_K"], "--format"),
        (vec!["alpha", "--format", "Q4_0"], "none is asked for"),
        (vec!["tinyllama-1.1b", "nosuch"], "no model \"nosuch\""),
        (vec!["TinyLlama-1.1B"], "shapes of random models are tinyllama-1.1b"),
        (vec!["--json", "--csv"], "cannot be used with"),
    ] {
        nexaquant().arg("bench").args(&args).assert().code(2).stderr(contains(text));
    }
}

#[test]
fn kernels_are_measured_on_every_instruction_set() {
    use nexaquant_engine::kernels::Isa;
    let found = json(&["bench", "kernels", "tq2_0", "F16", "-r", "1", "--json"]);
    let rows = found["rows"].as_array().unwrap();
    for isa in Isa::available() {
        let of = |format: &str, columns: u64| {
            let same = |row: &&Value| {
                row["format"] == format
                    && row["isa"] == isa.name()
                    && row["columns"].as_u64() == Some(columns)
            };
            rows.iter().filter(same).count()
        };
        // Two shapes; ternary weights with int8 activations and with floats. What AMX leaves to AVX-512 is there once.
        let rows = if isa == Isa::Amx { (0, 2, 0, 0) } else { (4, 2, 2, 0) };
        assert_eq!((of("TQ2_0", 1), of("TQ2_0", 8), of("F16", 1), of("F16", 8)), rows, "{isa}");
    }
    for row in rows {
        let [does, could] = if row["columns"] == 1 {
            ["gb_per_s", "measured_read_gb_per_s"]
        } else {
            ["gmacs_per_s", "measured_peak_gmacs_per_s"]
        };
        let (does, could) = (number(row, does), number(row, could));
        assert!(does > 0.0 && could > 0.0 && close(number(row, "fraction"), does / could), "{row}");
        assert!(number(row, "us") > 0.0 && number(row, "bytes") > 0.0, "{row}");
    }
    let scalar = stdout(&["bench", "kernels", "Q8_0", "--isa", "scalar", "-r", "1", "--csv"]);
    assert_eq!(scalar.lines().count(), 1 + 4 + 2, "{scalar}");
    nexaquant().args(["bench", "kernels", "Q9"]).assert().code(2).stderr(contains("there are F32"));
    match Isa::ALL.into_iter().find(|isa| !Isa::available().any(|here| here == *isa)) {
        Some(isa) => {
            let other = ["bench", "kernels", "Q8_0", "--isa", isa.name()];
            nexaquant().args(other).assert().code(2).stderr(contains("it has those of scalar"));
        }
        None => println!("SKIPPED other-isa: this processor has every instruction set"),
    }
}

#[test]
fn announced_figures_are_all_measured() {
    let found = json(&["bench", "announced", "-r", "2", "-n", "20", "--json"]);
    assert!(found["rows"][0]["of"].as_str().unwrap().starts_with("alpha, "), "{found}");
    let rows = found["rows"].as_array().unwrap();
    let measured = |what: &str| {
        let row = rows.iter().find(|row| row["what"] == what).unwrap_or_else(|| panic!("{what}"));
        assert!(!row["of"].as_str().unwrap().is_empty(), "{row}");
        number(row, "measured")
    };
    let (best, median) = (measured("time a token, best run"), measured("time a token, median run"));
    assert!(0.0 < best && best <= median);
    let layers = measured("layers") * median / 1e3;
    assert!((layers - layers.round()).abs() < 1e-6 && layers > 1.0, "{layers} layers");
    for what in
        ["ternary kernel, small matrix", "ternary kernel, large matrix", "page-in of a part", "verification"]
    {
        assert!(measured(what) > 0.0, "{what}");
    }
    for what in [
        "jitter alone",
        "jitter of the machine alone",
        "jitter of reading alone",
        "jitter under load",
        "jitter of the machine under load",
        "eviction of a part",
    ] {
        assert!(measured(what) >= 0.0, "{what}");
    }
    assert!(measured("speed under load, of a fair share") > 0.0);
    assert!(measured("numeric delta") <= 1e-6);

    // Random bytes for a tokenizer: "Once upon a time" takes 17 positions.
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let short = |context: u32| {
        let shape = format!("layers=1,embd=256,heads=2,kv=1,ff=256,vocab=300,ctx={context}");
        stdout(&["synth", &shape, "-o", path, "--force"]);
        nexaquant().args(["bench", "announced", path, "-r", "1", "--json"]).assert()
    };
    short(18).code(2).stderr(contains("context of 18 positions is too short"));
    let run = short(24).success().stderr(contains("8 tokens a run"));
    let found: Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    let of = found["rows"][0]["of"].as_str().unwrap();
    assert!(of.starts_with(path) && of.contains("1 runs of 8 tokens"), "{of}");
    assert!(found["rows"].as_array().unwrap().iter().all(|row| row["measured"].is_number()), "{found}");
    nexaquant().args(["bench", "announced", "nobody"]).assert().code(2).stderr(contains("no model"));
}
