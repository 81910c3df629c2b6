//! Models in a device's memory with a budget: the budget never changes the text, models share it, and what fails leaves nothing
//! behind. Any device will do, PoCL's too.
#![allow(clippy::unwrap_used)]

mod device;

use device::{gpu, model, pool};
use nexaquant_engine::decide::Limits;
use nexaquant_engine::m3::{Memory, MemoryOptions, PolicyName, State};
use nexaquant_engine::opencl::{Gpu, GpuOptions};
use nexaquant_engine::sampler::SamplingParams;
use nexaquant_engine::scheduler::{Engine, EngineOptions, Event, Request};
use nexaquant_engine::{
    GenerateOptions, LoadOptions, Model, Pool, PoolOptions, Session, SessionOptions, generate,
};
use std::sync::mpsc::channel;
use std::time::Duration;

const SESSION: SessionOptions = SessionOptions {
    context: 64,
    kv: nexaquant_engine::kernels::KvType::F16,
    batch: 8,
    all_threads: true,
    outputs: 1,
};

/// A prompt of two chunks, then tokens one by one; all logits that come of it.
fn bits(session: &mut Session, pool: &mut Pool) -> Vec<u32> {
    let mut all = Vec::new();
    let mut see = |logits: &[f32]| all.extend(logits.iter().map(|x| x.to_bits()));
    see(session.eval(pool, &(20..31).collect::<Vec<_>>()).unwrap());
    for token in [300, 7, 2000] {
        see(session.eval(pool, &[token]).unwrap());
    }
    all
}

/// What a memory with `budget` gives, or that it is too small.
fn under(gpu: &Gpu, model: &Model, options: MemoryOptions) -> Result<(Vec<u32>, Memory), String> {
    let mut pool = pool();
    let memory = Memory::on_device(gpu, options).map_err(|e| e.to_string())?;
    let placed = memory.add("it", model).map_err(|e| e.to_string())?;
    let mut session = Session::placed(&placed, &pool, SESSION).map_err(|e| e.to_string())?;
    // The first steps show whether it fits.
    for tokens in [&[1, 2, 3][..], &[4]] {
        session.eval(&mut pool, tokens).map_err(|e| e.to_string())?;
    }
    session.truncate(0);
    let bits = bits(&mut session, &mut pool);
    drop(session);
    assert!(memory.books().high_water.0 <= options.budget);
    Ok((bits, memory))
}

/// The smallest budget that works, to 8 KiB.
fn smallest(gpu: &Gpu, model: &Model) -> u64 {
    let (mut low, mut high) = (0u64, 16u64 << 20);
    while high - low > 8192 {
        let middle = low.midpoint(high);
        match under(gpu, model, MemoryOptions::new(middle)) {
            Ok(_) => high = middle,
            Err(_) => low = middle,
        }
    }
    high
}

#[test]
fn logits_are_the_same_under_every_budget() {
    let Some(gpu) = gpu(GpuOptions::default()) else { return };
    for name in ["alpha", "beta", "gamma", "delta"] {
        let model = model(name);
        let weights = model.weight_bytes_per_token();
        let least = smallest(&gpu, &model);
        println!("{name}: {weights} bytes of weights, smallest budget {least}");
        assert!(least < weights / 2, "{name} needs {least} bytes of budget");
        let wanted = bits(&mut Session::on_device(&gpu, &model, &pool(), SESSION).unwrap(), &mut pool());
        for budget in [least, least * 5 / 4, weights / 2, weights * 3 / 4, weights * 19 / 20, 2 * weights] {
            for (policy, prefetch) in
                [(PolicyName::TwoLevel, true), (PolicyName::Lru, true), (PolicyName::Lru, false)]
            {
                let options = MemoryOptions { policy, prefetch, ..MemoryOptions::new(budget) };
                let (got, memory) = under(&gpu, &model, options).unwrap();
                assert!(got == wanted, "{name} {options:?}");
                memory.remove("it").unwrap();
                assert_eq!(memory.books().used().0, 0, "{name}: something leaks");
            }
        }
    }
}

/// Every architecture, feature and way of cutting: 31 tiny models in the first budget of a few that is large enough.
#[test]
fn every_architecture_streams() {
    let Some(gpu) = gpu(GpuOptions::default()) else { return };
    let folder = device::root().join("crates/engine/tests/golden");
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let models: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect();
    assert!(models.len() >= 31, "golden models are missing: {}", models.len());
    let mut streamed = 0;
    for path in models {
        let model = Model::load(&path, LoadOptions::default()).unwrap();
        let rows = |session: &mut Session| -> Result<Vec<u32>, String> {
            let (mut all, mut pool) = (Vec::new(), pool());
            for tokens in [&[1, 2, 3, 4, 5, 6, 7][..], &[8], &[9, 10], &[11]] {
                let logits = session.eval(&mut pool, tokens).map_err(|e| e.to_string())?;
                all.extend(logits.iter().map(|x| x.to_bits()));
            }
            Ok(all)
        };
        let wanted = rows(&mut Session::on_device(&gpu, &model, &pool(), SESSION).unwrap()).unwrap();
        let within = |budget: u64| {
            let memory = Memory::on_device(&gpu, MemoryOptions::new(budget)).map_err(|e| e.to_string())?;
            let placed = memory.add("it", &model).map_err(|e| e.to_string())?;
            let got = rows(&mut Session::placed(&placed, &pool(), SESSION).map_err(|e| e.to_string())?)?;
            Ok::<_, String>((got, memory.stats().evictions > 0))
        };
        // Steps of an eighth, so that the first that works is a tight one.
        let mut budget = 32 << 10;
        let (got, evicted) = loop {
            match within(budget) {
                Ok(found) => break found,
                Err(error) => assert!(budget < 8 << 20, "{}: {error}", path.display()),
            }
            budget += budget / 8;
        };
        assert!(got == wanted, "{} under {budget}", path.display());
        streamed += u32::from(evicted);
    }
    assert!(streamed > 20, "{streamed} of the models had to stream");
}

/// What models answer to a prompt when they are asked alone, on the whole device.
fn alone(gpu: &Gpu, model: &Model, prompt: &[u32]) -> Vec<u32> {
    let mut session = Session::on_device(gpu, model, &pool(), SESSION).unwrap();
    let go_on = |_: &str| std::ops::ControlFlow::Continue(());
    generate(&mut session, &mut pool(), prompt, &greedy(), go_on).unwrap().tokens
}

fn greedy() -> GenerateOptions {
    let sampling = SamplingParams::greedy();
    GenerateOptions { sampling, max_tokens: Some(12), ignore_end: true, ..GenerateOptions::default() }
}

#[test]
fn models_take_turns_and_sessions_share_their_weights() {
    let Some(gpu) = gpu(GpuOptions::default()) else { return };
    let models = [("alpha", model("alpha")), ("beta", model("beta"))];
    let prompts: Vec<Vec<u32>> = (0..3).map(|i| (40 + i..51 + 2 * i).collect()).collect();
    for budget in [3_000_000, 30_000_000] {
        let memory = Memory::on_device(&gpu, MemoryOptions::new(budget)).unwrap();
        let (came, seen) = channel();
        memory.watch(move |change| drop(came.send(change.clone())));
        let limits = Limits { turn_passes: 3, ..Limits::default() };
        let pool = PoolOptions { threads: Some(1), pin: false };
        let engine = EngineOptions { memory: Some(memory.clone()), pool, limits, ..EngineOptions::default() };
        let engine = Engine::start(engine).unwrap();
        for (name, model) in &models {
            engine.add(name, model).unwrap();
        }
        let ask = |name: &str, prompt: &[u32]| {
            let (model, prompt) = (name.to_owned(), prompt.to_vec());
            engine.submit(Request { model, prompt, generate: greedy(), session: SESSION }).unwrap()
        };
        let asked: Vec<_> = prompts
            .iter()
            .flat_map(|prompt| models.iter().map(move |(name, model)| (name, model, prompt)))
            .map(|(name, model, prompt)| (ask(name, prompt), model, prompt))
            .collect();
        for (stream, model, prompt) in asked {
            match std::iter::from_fn(|| stream.next_event()).last() {
                Some(Event::Done(outcome)) => {
                    assert_eq!(outcome.generation.tokens, alone(&gpu, model, prompt), "{budget}");
                }
                other => panic!("{budget}: {other:?}"),
            }
        }
        let (stats, books) = (memory.stats(), memory.books());
        assert!(books.high_water.0 <= budget);
        let all: u64 = memory.status().iter().flat_map(|m| &m.units).map(|unit| unit.bytes.0).sum();
        if budget > 2 * all {
            assert_eq!(stats.bytes_loaded.0, all, "one copy of the weights serves every session");
        } else {
            assert!(stats.evictions > 0 && stats.bytes_loaded.0 > 2 * all);
        }
        // What was told: every part that came, with the time its copy took.
        let changes: Vec<_> = seen.try_iter().collect();
        let came: Vec<_> =
            changes.iter().filter(|c| c.from == State::Loading && c.to != State::Cold).collect();
        assert_eq!(came.len() as u64, stats.loads, "{budget}");
        assert!(came.iter().all(|change| !change.took.is_zero()));
        let uploads = memory.uploads().unwrap();
        assert_eq!((uploads.parts, uploads.bytes), (stats.loads, stats.bytes_loaded.0));
        assert_eq!(came.iter().map(|change| change.took).sum::<Duration>(), uploads.copying);
        assert!(uploads.copying <= uploads.page_in);
        // One goes while the other answers; then nothing is left.
        let stream = ask("beta", &prompts[0]);
        engine.remove("alpha").unwrap();
        assert!(matches!(std::iter::from_fn(|| stream.next_event()).last(), Some(Event::Done(_))));
        engine.remove("beta").unwrap();
        assert_eq!(memory.books().used().0, 0, "{budget}: something leaks");
    }
}

/// The n-th command of a step fails, for every n: an error in words, and everybody goes on afterwards.
#[test]
fn a_command_that_fails_leaves_nothing_behind() {
    let Some(gpu) = gpu(GpuOptions::default()) else { return };
    let (a, b) = (model("alpha"), model("beta"));
    let mut pool = pool();
    let wanted = |model: &Model| {
        bits(&mut Session::on_device(&gpu, model, &device::pool(), SESSION).unwrap(), &mut device::pool())
    };
    let (bits_a, bits_b) = (wanted(&a), wanted(&b));
    let memory = Memory::on_device(&gpu, MemoryOptions::new(2_500_000)).unwrap();
    let (place_a, place_b) = (memory.add("a", &a).unwrap(), memory.add("b", &b).unwrap());
    let mut other = Session::placed(&place_b, &pool, SESSION).unwrap();
    let mut session = Session::placed(&place_a, &pool, SESSION).unwrap();
    let mut failures = 0;
    // Every one of the first, then some. Copies ahead of their time are tried again when their time comes: no failure then.
    for n in (1..40).chain((40..400).step_by(31)) {
        session.truncate(0);
        gpu.fail_at(n);
        let mut step = |tokens: &[u32]| session.eval(&mut pool, tokens).map(drop);
        let result = step(&(20..31).collect::<Vec<_>>()).and_then(|()| step(&[300]));
        gpu.fail_at(0);
        let Err(error) = result else { continue };
        failures += 1;
        let text = error.to_string();
        assert!(
            text.contains("the device was lost: clEnqueue") && text.contains("CL_OUT_OF_RESOURCES"),
            "{n}: {text}"
        );
        assert!(session.tokens().len() <= 11, "{n}: the step that failed is not there");
        if failures % 5 == 0 {
            other.truncate(0);
            assert!(bits(&mut other, &mut pool) == bits_b, "{n}: the other session goes on");
            session.truncate(0);
            assert!(bits(&mut session, &mut pool) == bits_a, "{n}: and so does this one");
        }
    }
    assert!(failures > 30, "{failures}");
    // It cannot even be opened, or its model added.
    drop((session, other));
    for n in 1.. {
        gpu.fail_at(n);
        let added = memory.add("c", &model("gamma"));
        gpu.fail_at(0);
        if added.is_ok() {
            assert!(n > 1);
            break;
        }
    }
    for name in ["a", "b", "c"] {
        memory.remove(name).unwrap();
    }
    assert_eq!(memory.books().used().0, 0, "something leaks");
}

#[test]
fn what_does_not_fit_is_refused_with_numbers() {
    let Some(gpu) = gpu(GpuOptions::default()) else { return };
    let refused = |budget| Memory::on_device(&gpu, MemoryOptions::new(budget)).unwrap_err().to_string();
    assert_eq!(refused(10), "a budget of 10 bytes is too small to hold anything; the least is 256");
    let found = gpu.found();
    let text = refused(1 << 60);
    let wanted = format!(
        "{} gives no {} bytes in one piece (it has {}, {} at once)",
        found.name,
        1u64 << 60,
        found.memory,
        found.piece.min(16 << 32)
    );
    assert_eq!(text, wanted);
    let memory = Memory::on_device(&gpu, MemoryOptions::new(50_000)).unwrap();
    let text = memory.add("it", &model("alpha")).unwrap_err().to_string();
    assert!(text.contains("50.0 KB") && text.contains("would do"), "{text}");
    assert_eq!(memory.books().used().0, 0, "something leaks");
    // It has a place, but not beside the cache of a long conversation.
    let memory = Memory::on_device(&gpu, MemoryOptions::new(600_000)).unwrap();
    let placed = memory.add("it", &model("alpha")).unwrap();
    let mut session = Session::placed(&placed, &pool(), SESSION).unwrap();
    let tokens: Vec<u32> = (0..60).collect();
    let error = session.eval(&mut pool(), &tokens).unwrap_err().to_string();
    assert!(error.contains("600 KB") && error.contains("Alpha"), "{error}");
    session.truncate(0);
    session.eval(&mut pool(), &tokens[..5]).unwrap();
}

/// The last layers within a budget, those before on the CPU: every cut, streaming and not, twice over what the cache keeps.
#[test]
fn every_cut_within_a_budget_gives_the_answer_of_the_cpu() {
    let Some(gpu) = gpu(GpuOptions::default()) else { return };
    let (model, mut pool) = (model("alpha"), pool());
    let prompts = [(20..39).collect::<Vec<u32>>(), (20..30).chain(500..507).collect()];
    let mut answers = |session: &mut Session| {
        let mut answer = |prompt: &Vec<u32>| {
            let go_on = |_: &str| std::ops::ControlFlow::Continue(());
            generate(session, &mut pool, prompt, &greedy(), go_on).unwrap().tokens
        };
        prompts.iter().map(&mut answer).collect::<Vec<_>>()
    };
    let wanted = answers(&mut Session::new(&model, &device::pool(), SESSION).unwrap());
    for budget in [700_000, 2_500_000] {
        let memory = Memory::on_device(&gpu, MemoryOptions::new(budget)).unwrap();
        let mut streamed = 0;
        for layers in 1..=model.layers() + 1 {
            let placed = memory.add_last("it", &model, layers).unwrap();
            let part = |(name, _, bytes): (&str, u64, u64)| (name.split(' ').take(2).collect(), bytes);
            let (mut units, sizes): (Vec<String>, Vec<u64>) = placed.parts().map(part).unzip();
            for unit in &mut units {
                unit.truncate(if unit.starts_with("head") { 4 } else { 99 });
            }
            units.dedup();
            assert_eq!(
                units.len(),
                layers.min(model.layers()),
                "nothing of what the CPU computes: {units:?}"
            );
            let mut session = Session::placed(&placed, &device::pool(), SESSION).unwrap();
            assert!(answers(&mut session) == wanted, "{layers} layers within {budget}");
            let status = &memory.status()[0];
            let all: u64 = sizes.iter().sum();
            if all > budget {
                assert!(status.stats.evictions > 0, "{layers} layers within {budget}");
                streamed += 1;
            } else if all < budget / 2 {
                assert_eq!(status.stats.bytes_loaded.0, all, "{layers} layers within {budget} stay");
            }
            drop(session);
            memory.remove("it").unwrap();
            assert_eq!(memory.books().used().0, 0, "something leaks");
        }
        assert!(memory.books().high_water.0 <= budget && streamed > 1, "{streamed}");
    }
}

/// A cut under a budget is the cut without one, to the last bit, for every architecture; what fails on the device has not happened on
/// the CPU either.
#[test]
fn every_architecture_streams_behind_layers_of_the_cpu() {
    let Some(gpu) = gpu(GpuOptions::default()) else { return };
    let folder = device::root().join("crates/engine/tests/golden");
    let mut pool = pool();
    let mut failures = 0;
    for name in ["bitnet_b158", "gemma3", "llama_tied", "phi3", "qwen2", "qwen3"] {
        let model = Model::load(&folder.join(format!("{name}.gguf")), LoadOptions::default()).unwrap();
        let mut whole = Session::divided(&gpu, &model, &pool, SESSION, 2).unwrap();
        let mut steps = |session: &mut Session| -> Result<Vec<u32>, String> {
            let mut all = Vec::new();
            for tokens in [&[1, 2, 3, 4, 5, 6, 7, 8, 9][..], &[8], &[9, 10], &[11]] {
                let logits = session.eval(&mut pool, tokens).map_err(|e| e.to_string())?;
                all.extend(logits.iter().map(|x| x.to_bits()));
            }
            Ok(all)
        };
        let wanted = steps(&mut whole).unwrap();
        let mut within = |budget: u64| {
            let memory = Memory::on_device(&gpu, MemoryOptions::new(budget)).map_err(|e| e.to_string())?;
            let placed = memory.add_last("it", &model, 2).map_err(|e| e.to_string())?;
            let mut session =
                Session::placed(&placed, &device::pool(), SESSION).map_err(|e| e.to_string())?;
            let got = steps(&mut session)?;
            for n in 1..6 {
                session.truncate(0);
                gpu.fail_at(n);
                failures += usize::from(steps(&mut session).is_err());
                gpu.fail_at(0);
            }
            session.truncate(0);
            assert!(steps(&mut session)? == got, "{name} after failures");
            Ok::<_, String>((got, memory.stats().evictions > 0))
        };
        let mut budget = 16 << 10;
        let (got, evicted) = loop {
            match within(budget) {
                Ok(found) => break found,
                Err(error) => assert!(budget < 8 << 20, "{name}: {error}"),
            }
            budget += budget / 4;
        };
        println!("{name}: {budget} bytes");
        assert!(got == wanted && evicted, "{name} under {budget}");
    }
    assert!(failures > 20, "{failures}");
}
