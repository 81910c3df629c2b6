//! `--device`: what is chosen, what is refused, and that the CPU carries on without a device.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::*;
use predicates::prelude::*;

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
    for command in ["m3", "plan"] {
        let refused = predicate::str::contains("runs on the CPU only");
        nexaquant().args([command, "--device", "gpu"]).assert().code(2).stderr(refused);
    }
}
