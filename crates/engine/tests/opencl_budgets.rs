//! Models in a device's memory with a budget: the budget never changes the text, models share it, and what fails leaves nothing
//! behind. Any device will do, PoCL's too.
#![allow(clippy::unwrap_used)]

mod device;

use device::{gpu, model, pool};
use nexaquant_engine::m3::{Memory, MemoryOptions, PolicyName};
use nexaquant_engine::opencl::{Gpu, GpuOptions};
use nexaquant_engine::{Model, Pool, Session, SessionOptions};

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
            for policy in [PolicyName::TwoLevel, PolicyName::Lru] {
                for prefetch in [true, false] {
                    let options = MemoryOptions { policy, prefetch, ..MemoryOptions::new(budget) };
                    let (got, memory) = under(&gpu, &model, options).unwrap();
                    assert!(got == wanted, "{name} {options:?}");
                    memory.remove("it").unwrap();
                    assert_eq!(memory.books().used().0, 0, "{name}: something leaks");
                }
            }
        }
    }
}
