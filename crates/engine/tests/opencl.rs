//! Models on an OpenCL device, whole and divided with the CPU: against recorded values and against the CPU alone. Any device will
//! do, PoCL's too.
#![allow(clippy::unwrap_used)]

mod device;

use device::{gpu, model, pool, root, with_sub_groups};
use nexaquant_engine::kernels::{KvType, Mode};
use nexaquant_engine::opencl::{Gpu, GpuOptions, Measured, OpenError};
use nexaquant_engine::sampler::SamplingParams;
use nexaquant_engine::{GenerateOptions, generate};
use nexaquant_engine::{LoadOptions, Model, Pool, Session, SessionError, SessionOptions};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}
fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}
fn ids(case: &Value) -> Vec<u32> {
    case["ids"].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}
fn log_softmax(row: &[f32], id: u32) -> f64 {
    let max = row.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    let sum: f64 = row.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(row[id as usize] - max) - sum.ln()
}
fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

fn options(mode: Mode, context: usize, batch: usize) -> SessionOptions {
    let kv = if mode == Mode::Float { KvType::F32 } else { KvType::F16 };
    SessionOptions { context, kv, batch, all_threads: true, outputs: batch }
}

fn rows(session: &mut Session, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    session.eval_each(&mut pool(), ids, |_, row| all.push(row.to_vec())).unwrap();
    all
}

/// Largest and mean difference of the text's log-probabilities, and of all logits.
fn differences(a: &[Vec<f32>], b: &[Vec<f32>], ids: &[u32]) -> (f64, f64) {
    let logprob = |rows: &[Vec<f32>], i: usize| log_softmax(&rows[i], ids[i + 1]);
    let all: Vec<f64> = (0..ids.len() - 1).map(|i| (logprob(a, i) - logprob(b, i)).abs()).collect();
    (all.iter().fold(0.0, |m: f64, x| m.max(*x)), all.iter().sum::<f64>() / all.len() as f64)
}

#[test]
fn trained_models_agree_with_the_reference_and_with_the_cpu() {
    let Some(gpu) = gpu(GpuOptions::default()) else { return };
    for name in ["alpha", "beta", "gamma", "delta"] {
        let golden = json(&root().join(format!("models/golden/{name}.json")));
        let case = &golden["cases"][0];
        let ids = ids(case);
        for mode in [Mode::Float, Mode::Int8] {
            let load = LoadOptions { activations: mode, isa: None };
            let model = Model::load(&root().join(format!("models/{name}.gguf")), load).unwrap();
            let mut cpu = Session::new(&model, &pool(), options(mode, 512, 16)).unwrap();
            let expected = rows(&mut cpu, &ids);
            let half = model.layers() / 2;
            for (batch, layers) in [(1, usize::MAX), (16, usize::MAX), (1, half), (16, half), (16, 1)] {
                let sizes = options(mode, 512, batch);
                let mut device = Session::divided(&gpu, &model, &pool(), sizes, layers).unwrap();
                let got = rows(&mut device, &ids);
                let (worst, mean) = differences(&got, &expected, &ids);
                let name = format!("{name} {mode:?}, batch {batch}, layers {layers}");
                println!("{name}: to the CPU worst {worst:.1e}, mean {mean:.1e}");
                assert!(worst < 1e-3 && mean < 1e-4, "{name}: {worst} {mean}");
                if mode == Mode::Float {
                    let exact = floats(&case["next_logprob"]);
                    for i in 0..ids.len() - 1 {
                        let error = (log_softmax(&got[i], ids[i + 1]) - exact[i]).abs();
                        assert!(error < 1e-3, "{name} {i}: {error}");
                    }
                }
                let gaps = floats(&case["top1_gap"]);
                for i in (0..ids.len()).filter(|&i| gaps[i] > 0.3) {
                    assert_eq!(argmax(&got[i]) as u64, case["top1"][i].as_u64().unwrap(), "{name} {i}");
                }
            }
        }
    }
}

#[test]
fn every_architecture_and_feature_agrees_with_the_cpu() {
    let Some(gpu) = gpu(GpuOptions { quick_build: true, ..GpuOptions::default() }) else { return };
    let folder = root().join("crates/engine/tests/golden");
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "gguf"))
        .collect();
    paths.sort();
    assert!(paths.len() >= 31, "golden models are missing: {}", paths.len());
    // For a slow simulator: only models with this in their name.
    if let Ok(some) = std::env::var("NEXAQUANT_TEST_MODEL") {
        paths.retain(|p| p.to_string_lossy().contains(&some));
    }
    let mut wrong = Vec::new();
    for path in paths {
        let case = json(&path.with_extension("json"));
        let (ids, context) = (ids(&case), case["n_ctx"].as_u64().unwrap() as usize);
        for mode in [Mode::Float, Mode::Int8] {
            let model = Model::load(&path, LoadOptions { activations: mode, isa: None }).unwrap();
            let mut cpu = Session::new(&model, &pool(), options(mode, context, 16)).unwrap();
            let expected = rows(&mut cpu, &ids);
            // With the head and one layer on the device, each side has keys and values.
            for (batch, layers) in [(1, usize::MAX), (16, usize::MAX), (1, 2), (16, 2)] {
                let sizes = options(mode, context, batch);
                let mut device = Session::divided(&gpu, &model, &pool(), sizes, layers).unwrap();
                let (worst, mean) = differences(&rows(&mut device, &ids), &expected, &ids);
                let name = path.file_stem().unwrap().to_string_lossy();
                println!(
                    "{name} {mode:?} batch {batch}, layers {layers}: worst {worst:.1e}, mean {mean:.1e}"
                );
                // Ternary products are exact. Those of other formats differ in the last bits, and where such a value is
                // quantized in a tiny random model, one step of an activation moves everything after it.
                let bounds = if mode == Mode::Float { (1e-4, 1e-5) } else { (6e-2, 3e-3) };
                if worst > bounds.0 || mean > bounds.1 || !worst.is_finite() {
                    wrong.push(format!("{name} {mode:?} {batch} {layers}: {worst:.1e}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The text of a greedy answer, found through the logits and chosen on the device.
#[test]
fn greedy_answers_are_those_of_the_cpu_on_every_path() {
    let one_launch = GpuOptions { groups: 1, persistent: Some(true), ..GpuOptions::default() };
    let (Some(launches), Some(one_launch)) = (gpu(GpuOptions::default()), gpu(one_launch)) else { return };
    for name in ["alpha", "beta", "gamma", "delta"] {
        let model = Model::load(&root().join(format!("models/{name}.gguf")), LoadOptions::default()).unwrap();
        let prompt = model
            .tokenizer()
            .encode("Tell me about the sea.", nexaquant_engine::tokenizer::Special::AsText)
            .unwrap();
        let answer = |mut session: Session| greedy(&mut session, &prompt, 40);
        let sizes = SessionOptions { context: 256, ..SessionOptions::default() };
        let expected = answer(Session::new(&model, &pool(), sizes).unwrap());
        for gpu in [&launches, &one_launch] {
            let got = answer(Session::on_device(gpu, &model, &pool(), sizes).unwrap());
            assert_eq!(got, expected, "{name} on {}", gpu.path());
            let layers = model.layers() / 2;
            let got = answer(Session::divided(gpu, &model, &pool(), sizes, layers).unwrap());
            assert_eq!(got, expected, "{name}, {layers} layers on {}", gpu.path());
        }
    }
}

#[test]
fn sub_groups_give_the_answers_of_the_cpu() {
    for gpu in with_sub_groups() {
        for name in ["alpha", "beta", "gamma", "delta"] {
            let model = model(name);
            let prompt = some_tokens(&model, 37);
            let answer = |mut session: Session| greedy(&mut session, &prompt, 40);
            let sizes = SessionOptions { context: 256, ..SessionOptions::default() };
            let expected = answer(Session::new(&model, &pool(), sizes).unwrap());
            let got = answer(Session::on_device(&gpu, &model, &pool(), sizes).unwrap());
            assert_eq!(got, expected, "{name} on {}", gpu.path());
        }
    }
}

/// The tokens of a greedy answer, which a device chooses itself.
fn greedy(session: &mut Session, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let options = GenerateOptions {
        sampling: SamplingParams::greedy(),
        max_tokens: Some(tokens),
        ignore_end: true,
        ..GenerateOptions::default()
    };
    generate(session, &mut pool(), prompt, &options, |_| ControlFlow::Continue(())).unwrap().tokens
}

/// Tokens that look like a text's.
fn some_tokens(model: &Model, n: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 7919 % model.architecture().vocab) as u32).collect()
}

#[test]
fn every_cut_gives_the_same_answer_after_prompts_of_any_length() {
    let Some(gpu) = gpu(GpuOptions::default()) else { return };
    let model = device::model("alpha");
    let sizes = SessionOptions { context: 128, batch: 16, ..SessionOptions::default() };
    for length in [1, 2, 15, 16, 17, 70] {
        let prompt = some_tokens(&model, length);
        let expected = greedy(&mut Session::new(&model, &pool(), sizes).unwrap(), &prompt, 12);
        for layers in (0..=model.layers() + 1).chain([usize::MAX]) {
            let mut session = Session::divided(&gpu, &model, &pool(), sizes, layers).unwrap();
            assert_eq!(session.device_path().is_some(), layers > 0);
            assert_eq!(greedy(&mut session, &prompt, 12), expected, "{length} tokens, {layers} layers");
        }
    }
}

/// What is forgotten, kept and computed anew is the same on both sides of a cut: a session in pieces beside one on the CPU.
#[test]
fn both_sides_forget_and_keep_the_same_tokens() {
    let Some(gpu) = gpu(GpuOptions::default()) else { return };
    let (model, mut pool) = (device::model("alpha"), pool());
    let sizes = SessionOptions { context: 160, batch: 16, all_threads: true, ..SessionOptions::default() };
    let text = some_tokens(&model, 150);
    for layers in [1, 2, model.layers() - 1] {
        let mut cpu = Session::new(&model, &pool, sizes).unwrap();
        let mut cut = Session::divided(&gpu, &model, &pool, sizes, layers).unwrap();
        let mut same = |name: &str, act: &mut dyn FnMut(&mut Session, &mut Pool) -> Vec<f32>| {
            let (expected, got) = (act(&mut cpu, &mut pool), act(&mut cut, &mut pool));
            assert_eq!(cpu.tokens(), cut.tokens(), "{name}, {layers} layers");
            let next = argmax(&expected) as u32;
            let off = (log_softmax(&expected, next) - log_softmax(&got, next)).abs();
            assert!(off < 1e-3 && argmax(&got) as u32 == next, "{name}, {layers} layers: {off}");
        };
        same("a prompt", &mut |s, pool| s.eval(pool, &text[..75]).unwrap().to_vec());
        same("one more", &mut |s, pool| s.eval(pool, &text[3..4]).unwrap().to_vec());
        same("back into the middle of a page", &mut |s, pool| {
            s.truncate(41);
            s.eval(pool, &text[100..103]).unwrap().to_vec()
        });
        same("tokens whose logits nobody wants", &mut |s, pool| {
            s.extend(pool, &text[60..90]).unwrap();
            s.eval(pool, &text[..1]).unwrap().to_vec()
        });
        same("another prompt that begins alike", &mut |s, pool| {
            let prompt = [&text[..41], &text[80..110]].concat();
            let (kept, logits) = s.set(pool, &prompt).unwrap();
            assert_eq!(kept, 41);
            logits.to_vec()
        });
        same("a rest", &mut |s, pool| {
            s.rest();
            s.eval(pool, &text[..2]).unwrap().to_vec()
        });
        same("from the start", &mut |s, pool| {
            s.truncate(0);
            s.eval(pool, &text).unwrap().to_vec()
        });
        // A step that fails on the device has not happened on the CPU either.
        for command in 1..4 {
            gpu.fail_at(command);
            assert!(cut.eval(&mut pool, &text[..1]).is_err(), "command {command}");
            gpu.fail_at(0);
            assert_eq!(cut.tokens(), text);
        }
        let expected = argmax(cpu.eval(&mut pool, &text[5..6]).unwrap());
        assert_eq!(argmax(cut.eval(&mut pool, &text[5..6]).unwrap()), expected, "{layers} layers");
        let full = cut.eval(&mut pool, &text).unwrap_err().to_string();
        assert!(full.contains("301 tokens do not fit a context of 160"), "{full}");
    }
}

/// A device with little memory: as many layers as fit, and not one more.
#[test]
fn a_device_gets_as_many_layers_as_it_has_room_for() {
    let Some(gpu) = gpu(GpuOptions::default()) else { return };
    let (model, mut pool) = (device::model("alpha"), pool());
    let sizes = SessionOptions { context: 64, batch: 4, ..SessionOptions::default() };
    let mut rooms = Vec::new();
    for piece in [4 << 10, 1 << 20, 2 << 20, 3 << 20, 4 << 20, 64 << 20] {
        let mut found = gpu.found().clone();
        found.piece = piece;
        let small = Gpu::open(&found, GpuOptions { no_cache: false, ..GpuOptions::default() }).unwrap();
        let measured = Measured::now(&small, &model, &mut pool, sizes).unwrap();
        assert!(measured.host_rate > 0.0 && measured.device_rate > 0.0, "{measured:?}");
        let room = measured.room;
        println!("{piece} bytes: {measured:?}");
        let mut session = Session::divided(&small, &model, &pool, sizes, room).unwrap();
        let expected = greedy(&mut Session::new(&model, &pool, sizes).unwrap(), &[1, 2, 3], 5);
        assert_eq!(greedy(&mut session, &[1, 2, 3], 5), expected, "{piece} bytes, {room} layers");
        if room < model.layers() {
            let error = Session::divided(&small, &model, &pool, sizes, room + 1).unwrap_err();
            let text = error.to_string();
            let fits = matches!(error, SessionError::Device(OpenError::TooBig { need, .. }) if need > piece);
            assert!(fits && text.contains("--gpu-layers auto"), "{text}");
        }
        rooms.push(room);
    }
    assert!(rooms.is_sorted(), "{rooms:?}");
    assert_eq!((rooms[0], rooms[rooms.len() - 1]), (0, model.layers()), "{rooms:?}");
    assert!(rooms.iter().any(|room| (2..model.layers()).contains(room)), "{rooms:?}");
}
/// A device tells only the likeliest tokens where the sampler needs no others. Whoever wants probabilities needs all, and must get the
/// same answer.
#[test]
fn sampled_answers_do_not_depend_on_what_the_device_tells() {
    use nexaquant_engine::sampler::SamplingParams;
    use nexaquant_engine::{GenerateOptions, generate};
    let one_launch = GpuOptions { groups: 1, persistent: Some(true), ..GpuOptions::default() };
    let (Some(launches), Some(one_launch)) = (gpu(GpuOptions::default()), gpu(one_launch)) else { return };
    let model = Model::load(&root().join("models/beta.gguf"), LoadOptions::default()).unwrap();
    let prompt = model.tokenizer().encode("The sea", nexaquant_engine::tokenizer::Special::AsText).unwrap();
    let samplings = [
        SamplingParams::default(),
        SamplingParams { top_k: 40, top_p: 0.9, repeat_penalty: 1.0, ..SamplingParams::default() },
        SamplingParams { top_k: 3, temperature: 3.0, ..SamplingParams::default() },
        SamplingParams { temperature: 0.0, presence_penalty: 0.5, ..SamplingParams::default() },
        // Little is improbable enough to be left out: the likeliest few must prove too few.
        SamplingParams { min_p: 1e-6, temperature: 2.0, ..SamplingParams::default() },
    ];
    let sizes = SessionOptions { context: 256, ..SessionOptions::default() };
    for gpu in [&launches, &one_launch] {
        let mut session = Session::on_device(gpu, &model, &pool(), sizes).unwrap();
        for (i, sampling) in samplings.iter().enumerate() {
            for seed in 0..3 {
                let mut answer = |log_probs| {
                    let options = GenerateOptions {
                        sampling: SamplingParams { seed: Some(seed), ..sampling.clone() },
                        max_tokens: Some(40),
                        log_probs,
                        ..GenerateOptions::default()
                    };
                    let text = |_: &str| std::ops::ControlFlow::Continue(());
                    generate(&mut session, &mut pool(), &prompt, &options, text).unwrap().tokens
                };
                assert_eq!(answer(None), answer(Some(0)), "sampling {i}, seed {seed} on {}", gpu.path());
            }
        }
    }
}
