//! How the tests run the program, and the files they give it.
#![allow(dead_code, reason = "each test file uses its part")]

use assert_cmd::Command;
use nexaquant_engine::gguf::{Gguf, Metadata, TensorInfo, write::Writer};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longer than anything here takes on a loaded machine; what does not end by then hangs.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The program in an environment without surprises.
pub fn nexaquant() -> Command {
    let mut command = Command::cargo_bin("nexaquant").unwrap();
    command.timeout(TIMEOUT).env_remove("NEXAQUANT_ISA").env("XDG_DATA_HOME", "/nonexistent");
    command
}

/// The same for tests that talk to it while it runs.
pub fn spawnable() -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nexaquant"));
    command.env_remove("NEXAQUANT_ISA").env("XDG_DATA_HOME", "/nonexistent");
    command
}

/// What a run that must succeed printed.
pub fn stdout(args: &[&str]) -> String {
    let output = nexaquant().args(args).assert().success().get_output().clone();
    String::from_utf8(output.stdout).unwrap()
}

/// The JSON object that a run printed.
pub fn json(args: &[&str]) -> serde_json::Value {
    let text = stdout(args);
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Whether there is an OpenCL device. Says so if not, past the test harness, which swallows `eprintln!` when a test passes.
pub fn has_device() -> bool {
    let info = json(&["info", "--json"]);
    let there = info["opencl"]["available"] == true;
    if !there {
        let text = format!("SKIPPED opencl: {}\n", info["opencl"]["why"]);
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    }
    there
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A tiny model, with a random transformer and a vocabulary of bytes.
pub fn tiny() -> PathBuf {
    repository("crates/engine/tests/golden/llama_tied.gguf")
}

/// The tiny model's bytes.
pub fn tiny_bytes() -> Vec<u8> {
    std::fs::read(tiny()).unwrap()
}

/// The tiny model with other metadata or tensors. `change` gets the pairs and the directory; a tensor that it
/// renames or adds has the data of the tensor that was at its place, cut or filled with zeros.
pub fn changed(
    change: impl FnOnce(&mut Vec<(String, nexaquant_engine::gguf::Value)>, &mut Vec<TensorInfo>),
) -> Vec<u8> {
    let bytes = tiny_bytes();
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut pairs: Vec<_> = gguf.metadata.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect();
    let mut tensors = gguf.tensors.clone();
    change(&mut pairs, &mut tensors);
    let mut writer = Writer::new();
    writer.metadata = Metadata::new();
    for (key, value) in pairs {
        writer.set(key, value);
    }
    for tensor in &tensors {
        writer.tensor(&tensor.name, tensor.ty, &tensor.dims).unwrap();
    }
    let mut out = writer.start(Vec::new()).unwrap();
    for (i, tensor) in tensors.iter().enumerate() {
        let old = &gguf.tensors[i.min(gguf.tensors.len() - 1)];
        let mut data = old.data(&bytes).unwrap().to_vec();
        data.resize(tensor.ty.bytes(&tensor.dims).unwrap() as usize, 0);
        out.write(&tensor.name, &data).unwrap();
    }
    out.finish().unwrap()
}

/// Where the directory entry of tensor `name` has its dimensions, its type and its offset, in bytes from the start.
pub fn entry(bytes: &[u8], name: &str) -> (usize, usize, usize) {
    let at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap() + name.len();
    let n_dims = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let dims = at + 4;
    (dims, dims + 8 * n_dims, dims + 8 * n_dims + 4)
}

/// Replaces bytes.
pub fn patched(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}
