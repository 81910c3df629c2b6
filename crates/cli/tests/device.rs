//! `--device`: what is chosen, what is refused, and that the CPU carries on without a device.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::*;
use predicates::prelude::*;
use serde_json::Value;

/// A machine without OpenCL: the loader's name leads nowhere.
fn without_opencl() -> assert_cmd::Command {
    let mut command = nexaquant();
    command.env("OPENCL_DYLIB_PATH", "/nothing/libOpenCL.so").env("OCL_ICD_VENDORS", "/nothing");
    command
}

#[test]
fn without_a_gpu_auto_computes_on_the_cpu_and_says_why_and_gpu_is_an_error() {
    let model = tiny();
    let model = model.to_str().unwrap();
    let run = ["run", model, "-p", "Hello", "-n", "3", "--ignore-eos", "--device"];
    without_opencl()
        .args(run)
        .arg("auto")
        .assert()
        .success()
        .stderr(predicate::str::contains("computing on the CPU: "));
    without_opencl()
        .args(run)
        .arg("gpu")
        .assert()
        .code(2)
        .stderr(predicate::str::contains("--device: ").and(predicate::str::contains("OpenCL")));
    let info = without_opencl().args(["info", "--json"]).assert().success();
    let info: serde_json::Value = serde_json::from_slice(&info.get_output().stdout).unwrap();
    assert_eq!(info["opencl"]["available"], false);
    assert!(info["opencl"]["why"].as_str().unwrap().contains("install"), "{info}");
}

#[test]
fn a_plan_on_a_device_is_what_a_run_does_there() {
    without_opencl()
        .args(["plan", "--device", "gpu"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("--device: "));
    if !has_device() {
        return;
    }
    let device = ["--device", "0", "-t", "1", "-n", "12", "--json"];
    let plan = json(&[&["plan", "alpha", "gamma", "--budget", "8MB"], &device[..]].concat());
    assert!(!plan["device"].as_str().unwrap().is_empty());
    assert!(plan["device_read_bytes_per_s"].as_f64().unwrap() > 0.0);
    assert!(
        plan["smallest_budget_bytes"].is_null() && plan["high_water_bytes"].as_u64().unwrap() <= 8_000_000
    );
    let [alpha, gamma] = &plan["models"].as_array().unwrap()[..] else { panic!("{plan}") };
    for model in [alpha, gamma] {
        let number = |key: &str| model[key].as_f64().unwrap();
        assert!(number("tokens_per_s") > 0.0 && number("read_bytes_per_s") > 0.0, "{model}");
        assert!(number("resident_bytes") <= 8e6 && number("switch_page_in_bytes") > 0.0, "{model}");
        assert!(number("switch_ms") > 0.0 && model["cached"] == false, "{model}");
        let kept = model["parts"].as_array().unwrap().iter().map(|part| part["kept_bytes"].as_u64().unwrap());
        assert_eq!(kept.sum::<u64>(), model["resident_bytes"].as_u64().unwrap());
    }
    // Alpha fits; before its turn ends some of gamma comes in already. Gamma does not fit.
    let number = |key: &str| gamma[key].as_u64().unwrap();
    assert!(
        alpha["streamed_bytes_per_token"].as_u64().unwrap() < number("streamed_bytes_per_token") / 10,
        "{plan}"
    );
    assert!(
        number("streamed_bytes_per_token") > 0 && number("resident_bytes") < number("block_bytes"),
        "{gamma}"
    );
    assert!(number("streamed_bytes_per_token") <= number("block_bytes"), "{gamma}");
    for (budget, text) in [("20KB", "bytes"), ("900GB", "900000000000")] {
        let refused = predicate::str::contains(text);
        nexaquant().args(["plan", "gamma", "--budget", budget]).args(device).assert().code(2).stderr(refused);
    }
}

#[test]
fn numbers_of_layers_that_make_no_sense_are_refused() {
    let run = ["run", "alpha", "-p", "Hello", "-n", "1"];
    for (more, wanted) in [
        (&["--device", "0", "-ngl", "-1"][..], "\"-1\" is no number of layers; wanted 0"),
        (&["--device", "0", "--gpu-layers", "most"], "\"most\" is no number of layers"),
        (&["--device", "0", "--n-gpu-layers="], "\"\" is no number of layers"),
        (&["--device", "0", "-ngl"], "a value is required for '--gpu-layers"),
        (&["-ngl", "3"], "add --device gpu"),
        (&["--device", "cpu", "-ngl", "auto"], "add --device gpu"),
    ] {
        let refused = predicate::str::contains(wanted);
        nexaquant().args(run).args(more).assert().code(2).stderr(refused);
    }
    for command in ["m3", "plan", "serve"] {
        let args = [command, "alpha", "--budget", "10MB", "-ngl", "3"];
        let refused = predicate::str::contains("add --device gpu");
        nexaquant().args(args).assert().code(2).stderr(refused);
    }
    // None of it needs no device.
    nexaquant().args(run).args(["-ngl", "0"]).assert().success();
}

#[test]
fn a_model_partly_on_a_device_answers_scores_and_chats_the_same() {
    if !has_device() {
        return;
    }
    let run = ["run", "alpha", "-p", "Tell me a story.", "-n", "20", "--temp", "0", "-t", "1", "-q"];
    let text = stdout(&run);
    for (layers, wanted) in [
        ("0", "note: computing on the CPU: all 15 layers, 3.95 MB a token"),
        ("1", "note: computing on the CPU: the first 14 of 15 layers, 2.84 MB a token; and on"),
        ("7", "the last 7, the head counted as one, 2.33 MB a token"),
        ("15", "note: computing on "),
        ("4000", "note: computing on "),
        ("all", "note: computing on "),
        ("auto", "of 15 layers; the CPU computes "),
    ] {
        let divided = ["--device", "0", "-ngl", layers];
        let said = predicate::str::contains(wanted);
        nexaquant().args(run).args(divided).assert().success().stdout(text.clone()).stderr(said);
    }

    // Within a budget they stream, and the text is the same.
    for (layers, budget, wanted) in [
        ("0", "1MB", "note: computing on the CPU: all 15 layers, 3.95 MB a token"),
        ("1", "4MB", "note: computing on the CPU: the first 14 of 15 layers, 2.84 MB a token; and on"),
        ("7", "4MB", "the last 7, the head counted as one, 2.33 MB a token"),
        ("all", "4MB", "note: computing on "),
        ("auto", "4MB", "GB/s and keeps "),
    ] {
        let divided = ["--device", "0", "-ngl", layers, "--budget", budget, "-c", "64"];
        let said = predicate::str::contains(wanted);
        nexaquant().args(run).args(divided).assert().success().stdout(text.clone()).stderr(said);
    }

    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let score = ["score", "alpha", "--text", "Once upon a time there was a little fox.", "--json", "-t", "1"];
    let cut = ["--device", "0", "--gpu-layers", "6"];
    let (cpu, both) = (json(&score), json(&[&score[..], &cut].concat()));
    let (cpu, both) = (numbers(&cpu["logprobs"]), numbers(&both["logprobs"]));
    assert!(cpu.len() > 5 && cpu.len() == both.len());
    assert!(cpu.iter().zip(&both).all(|(a, b)| (a - b).abs() < 1e-3), "{cpu:?} {both:?}");

    let readme = repository("README.md");
    let perplexity =
        ["perplexity", "alpha", "-f", readme.to_str().unwrap(), "--chunks", "1", "-c", "128", "--json"];
    let (cpu, both) = (json(&perplexity), json(&[&perplexity[..], &cut].concat()));
    let of = |value: &Value| value["perplexity"].as_f64().unwrap();
    assert!((of(&cpu) / of(&both) - 1.0).abs() < 1e-3, "{cpu} {both}");

    // Turns keep what both sides have of the conversation.
    let chat = |more: &[&str]| {
        let mut chat = nexaquant();
        chat.args(["chat", "--temp", "0", "-n", "12", "-t", "1"]).args(more);
        let output = chat.write_stdin("Hello!\nWhat is the sea?\n").assert().success().get_output().clone();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(chat(&cut), chat(&[]));
}

#[test]
fn the_announced_scenario_runs_on_a_device_and_answers_the_same() {
    if !has_device() {
        return;
    }
    let run = |more: &[&str]| json(&[&["m3", "--json", "-t", "1", "-n", "12", "--temp", "0"], more].concat());
    let (host, device) = (run(&[]), run(&["--device", "0", "--budget", "10MB"]));
    let answers = |run: &Value| -> Vec<(Value, Value)> {
        let queries = run["queries"].as_array().unwrap();
        queries.iter().map(|query| (query["model"].clone(), query["text"].clone())).collect()
    };
    assert_eq!(answers(&device), answers(&host));
    assert_eq!(answers(&device).len(), 4);
    let number = |value: &Value, key: &str| value[key].as_u64().unwrap();
    assert_eq!(number(&device, "budget_bytes"), 10_000_000);
    assert!(number(&device, "high_water_bytes") <= 10_000_000);
    assert!(number(&device, "bytes_moved") <= number(&device, "optimum_bytes") * 4 / 3, "{device}");
    assert!(number(&device, "bytes_moved") < number(&device, "lru_bytes"), "{device}");
    assert_eq!(number(&device["uploads"], "bytes"), number(&device, "bytes_moved"));
    assert!(device["smallest_budget_bytes"].is_null() && host["uploads"].is_null());
    let predicted = |query: &Value, key: &str| query[key].as_f64().is_some_and(|predicted| predicted > 0.0);
    for query in device["queries"].as_array().unwrap() {
        assert!(
            predicted(query, "predicted_tokens_per_s") && predicted(query, "predicted_switch_ms"),
            "{query}"
        );
    }
    let events = device["events"].as_array().unwrap();
    let of =
        |kind: &str| events.iter().filter(|e| e["event"] == kind).map(|e| number(e, "bytes")).sum::<u64>();
    assert_eq!(of("page_in"), number(&device, "bytes_moved"));
    assert!(of("evict") > 0 && events.iter().all(|e| number(e, "used_bytes") <= 10_000_000));
    // With layers on the CPU less moves.
    let cut = run(&["--device", "0", "--budget", "10MB", "-ngl", "6"]);
    assert_eq!(answers(&cut), answers(&host));
    assert!(number(&cut, "high_water_bytes") <= 10_000_000);
    assert!(number(&cut, "bytes_moved") < number(&device, "bytes_moved"), "{cut}");
    nexaquant()
        .args(["m3", "--device", "0", "-ngl", "0"])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("leave --device out"));
    for (name, text) in [("--budget", "20KB"), ("--budget", "900GB")] {
        nexaquant()
            .args(["m3", "--device", "0", name, text])
            .assert()
            .code(2)
            .stderr(predicate::str::contains("bytes"));
    }
}
