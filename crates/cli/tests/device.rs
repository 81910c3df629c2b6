//! `--device`: what is chosen, what is refused, and that the CPU carries on without a device.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::*;
use predicates::prelude::*;
use serde_json::Value;
use std::io::Write;

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
fn what_runs_on_the_cpu_only_says_so() {
    let refused = predicate::str::contains("runs on the CPU only");
    nexaquant().args(["plan", "--device", "gpu"]).assert().code(2).stderr(refused);
}

#[test]
fn the_announced_scenario_runs_on_a_device_and_answers_the_same() {
    let info = json(&["info", "--json"]);
    if info["opencl"]["available"] != true {
        // Not `eprintln!`, which the test harness swallows when a test passes.
        let _ =
            std::io::stderr().write_all(format!("SKIPPED opencl: {}\n", info["opencl"]["why"]).as_bytes());
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
    let events = device["events"].as_array().unwrap();
    let of =
        |kind: &str| events.iter().filter(|e| e["event"] == kind).map(|e| number(e, "bytes")).sum::<u64>();
    assert_eq!(of("page_in"), number(&device, "bytes_moved"));
    assert!(of("evict") > 0 && events.iter().all(|e| number(e, "used_bytes") <= 10_000_000));
    for (name, text) in [("--budget", "20KB"), ("--budget", "900GB")] {
        nexaquant()
            .args(["m3", "--device", "0", name, text])
            .assert()
            .code(2)
            .stderr(predicate::str::contains("bytes"));
    }
}
