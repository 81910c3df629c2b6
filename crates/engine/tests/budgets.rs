//! The budget never changes the text: every model, under every kind of budget, gives the logits it gives from the mapped
//! file, to the last bit.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use nexaquant_engine::kernels::Mode;
use nexaquant_engine::m3::{Memory, MemoryOptions, PolicyName};
use nexaquant_engine::{LoadOptions, Model, Pool, PoolOptions, Session, SessionOptions};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn model(name: &str, activations: Mode) -> Model {
    let path = root().join(format!("models/{name}.gguf"));
    Model::load(&path, LoadOptions { activations, isa: None }).unwrap()
}

fn pool(threads: usize) -> Pool {
    Pool::new(PoolOptions { threads: Some(threads), pin: false }).unwrap()
}

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
fn under(model: &Model, options: MemoryOptions, pool: &mut Pool) -> Result<(Vec<u32>, Memory), String> {
    let memory = Memory::new(options).map_err(|e| e.to_string())?;
    let placed = memory.add("it", model).map_err(|e| e.to_string())?;
    let mut session = Session::placed(&placed, pool, SESSION).map_err(|e| e.to_string())?;
    // The first step shows whether it fits.
    session.eval(pool, &[1]).map_err(|e| e.to_string())?;
    session.truncate(0);
    let bits = bits(&mut session, pool);
    drop(session);
    assert!(memory.books().high_water.0 <= options.budget);
    Ok((bits, memory))
}

/// The smallest budget that works, to 4 KiB.
fn smallest(model: &Model, pool: &mut Pool) -> u64 {
    let (mut low, mut high) = (0u64, 64u64 << 20);
    while high - low > 4096 {
        let middle = low.midpoint(high);
        match under(model, MemoryOptions::new(middle), pool) {
            Ok(_) => high = middle,
            Err(_) => low = middle,
        }
    }
    high
}

#[test]
fn logits_are_the_same_under_every_budget() {
    for name in ["alpha", "beta", "gamma", "delta"] {
        let model_int8 = model(name, Mode::Int8);
        let weights = model_int8.weight_bytes_per_token();
        let least = smallest(&model_int8, &mut pool(2));
        println!("{name}: {weights} bytes of weights, smallest budget {least}");
        assert!(least < weights / 3, "{name} needs {least} bytes of budget");
        for mode in [Mode::Int8, Mode::Float] {
            let model = if mode == Mode::Int8 { model_int8.clone() } else { model(name, mode) };
            let wanted = {
                let mut pool = pool(1);
                bits(&mut Session::new(&model, &pool, SESSION).unwrap(), &mut pool)
            };
            for budget in [least, least * 5 / 4, weights / 2, weights * 3 / 4, weights * 19 / 20, 2 * weights]
            {
                for policy in [PolicyName::TwoLevel, PolicyName::Lru] {
                    for (threads, prefetch) in [(1, true), (2, true), (1, false), (2, false)] {
                        let options = MemoryOptions { policy, prefetch, ..MemoryOptions::new(budget) };
                        let (got, memory) = under(&model, options, &mut pool(threads)).unwrap();
                        assert!(got == wanted, "{name} {mode:?} {options:?} {threads} threads");
                        memory.remove("it").unwrap();
                        assert_eq!(memory.books().used().0, 0, "{name}: something leaks");
                    }
                }
            }
        }
    }
}
