//! Requests that begin like others compute only what is new, say what they would say alone, and what is kept for them goes
//! before anything else has to.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use nexaquant_engine::kernels::KvType;
use nexaquant_engine::m3::{Class, Memory, MemoryOptions};
use nexaquant_engine::sampler::SamplingParams;
use nexaquant_engine::scheduler::{Engine, EngineOptions, Event, Request, Stream};
use nexaquant_engine::{
    GenerateOptions, Generation, LoadOptions, Model, Pool, PoolOptions, Pooling, Session, SessionOptions,
    generate,
};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);
/// More than all models and caches take.
const AMPLE: u64 = 64 << 20;

const SESSION: SessionOptions =
    SessionOptions { context: 256, kv: KvType::F16, batch: 16, all_threads: false, outputs: 1 };

fn model(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../models/{name}.gguf"));
    Model::load(&path, LoadOptions::default()).unwrap()
}

fn pool(threads: usize) -> PoolOptions {
    PoolOptions { threads: Some(threads), pin: false }
}

fn engine(models: &[(&str, &Model)], budget: Option<u64>) -> Engine {
    let memory = budget.map(|budget| Memory::new(MemoryOptions::new(budget)).unwrap());
    let engine = Engine::start(EngineOptions { memory, pool: pool(2), ..EngineOptions::default() }).unwrap();
    for (name, model) in models {
        engine.add(name, model).unwrap();
    }
    engine
}

fn request(name: &str, prompt: Vec<u32>, answer: usize) -> Request {
    let sampling = SamplingParams { seed: Some(7), ..SamplingParams::default() };
    let generate = GenerateOptions {
        sampling,
        max_tokens: Some(answer),
        ignore_end: true,
        ..GenerateOptions::default()
    };
    Request { model: name.to_owned(), prompt, generate, session: SESSION }
}

/// Tokens that begin with `start` and are otherwise the same for the same length.
fn text(start: u32, length: usize) -> Vec<u32> {
    std::iter::once(start).chain((1..length as u32).map(|i| 100 + i * 7 % 900)).collect()
}

fn end(stream: &Stream) -> Generation {
    loop {
        match stream.next_within(LONG).unwrap() {
            Event::Done(outcome) => return outcome.generation,
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

fn ask(engine: &Engine, request: &Request) -> Generation {
    end(&engine.submit(request.clone()).unwrap())
}

/// What a request gets with nobody before or beside it.
fn alone(request: &Request, model: &Model) -> Vec<u32> {
    let mut pool = Pool::new(pool(1)).unwrap();
    let mut session = Session::new(model, &pool, request.session).unwrap();
    let go_on = |_: &str| ControlFlow::Continue(());
    generate(&mut session, &mut pool, &request.prompt, &request.generate, go_on).unwrap().tokens
}

#[test]
fn whole_pages_of_a_common_beginning_are_not_computed_again() {
    for name in ["alpha", "gamma"] {
        let model = model(name);
        for budget in [None, Some(AMPLE)] {
            let engine = engine(&[("m", &model)], budget);
            let ask = |request: &Request, cached: usize| {
                let got = ask(&engine, request);
                assert_eq!(got.tokens, alone(request, &model), "{name}, {budget:?}");
                let stats = got.stats;
                assert_eq!(
                    (stats.cached_tokens, stats.prompt_tokens),
                    (cached, request.prompt.len() - cached)
                );
                got
            };
            let first = request("m", text(5, 70), 30);
            let answer = ask(&first, 0).tokens;
            ask(&first, 64);
            // The conversation goes on: 99 tokens have keys and values.
            let mut longer = first.prompt.clone();
            longer.extend(&answer);
            longer.extend([11, 12, 13]);
            ask(&request("m", longer, 9), 96);
            // Alike up to the fiftieth token; as long as two pages, whose last token must be computed; from the start on.
            let mut other = text(5, 70);
            other[50] = 9;
            ask(&request("m", other, 9), 32);
            ask(&request("m", text(5, 64), 9), 32);
            ask(&request("m", text(5, 65), 9), 64);
            ask(&request("m", text(6, 70), 9), 0);
            // Another kind of cache has other bytes in it.
            let mut wide = first.clone();
            wide.session.kv = KvType::F32;
            ask(&wide, 0);
            ask(&wide, 64);
            // A vector is made of every token.
            let mut pooled = request("m", text(5, 70), 0);
            pooled.generate.pooling = Some(Pooling::Mean);
            let fresh = self::engine(&[("m", &model)], budget);
            let wanted = self::ask(&fresh, &pooled).embedding.unwrap();
            let got = self::ask(&engine, &pooled);
            assert_eq!((got.stats.cached_tokens, got.embedding.unwrap()), (0, wanted));

            engine.remove("m").unwrap();
            assert_eq!(engine.memory().map_or(0, |memory| memory.books().used().0), 0);
            engine.add("m", &model).unwrap();
            ask(&first, 0);
        }
    }
}

#[test]
fn requests_that_run_share_with_those_that_come() {
    let model = model("alpha");
    for budget in [None, Some(AMPLE)] {
        let engine = engine(&[("m", &model)], budget);
        let long = request("m", text(5, 70), 150);
        let running = engine.submit(long.clone()).unwrap();
        while !matches!(running.next_within(LONG).unwrap(), Event::Text(_)) {}
        let pages = || engine.memory().map(|memory| memory.books().of(Class::Kv).0);
        let one = pages();
        let mut beside = Vec::new();
        for seed in 0..6 {
            let mut request = request("m", text(5, 66 + seed), 20);
            request.generate.sampling.seed = Some(seed as u64);
            beside.push((engine.submit(request.clone()).unwrap(), request));
        }
        // One that goes in the middle of it takes nobody's pages along.
        drop(engine.submit(request("m", text(5, 69), 20)).unwrap());
        let mut most = None;
        for (stream, request) in &beside {
            let got = end(stream);
            most = most.or_else(pages);
            assert_eq!(got.tokens, alone(request, &model), "{budget:?}");
            assert_eq!(got.stats.cached_tokens, 64);
        }
        assert_eq!(end(&running).tokens, alone(&long, &model));
        if let (Some(one), Some(most)) = (one, most) {
            // Two of three pages are the same ones; without that it would be seven times as much and more.
            assert!(most <= 5 * one, "{one} bytes of one, {most} of all");
        }
    }
}

#[test]
fn what_is_kept_goes_before_weights_and_before_anybody_fails() {
    let (alpha, beta) = (model("alpha"), model("beta"));
    let first = request("alpha", text(5, 70), 30);
    // As much as the first takes and some more: its pages are kept, and stay while there is room.
    let engine = engine(&[("alpha", &alpha), ("beta", &beta)], Some(16 << 20));
    let memory = engine.memory().unwrap();
    let kept = || memory.books().of(Class::Kv).0;
    assert_eq!(ask(&engine, &first).tokens, alone(&first, &alpha));
    assert!(kept() > 0);
    assert_eq!(ask(&engine, &first).stats.cached_tokens, 64);
    engine.set_budget(16 << 20).unwrap();
    assert_eq!(kept(), 0, "a budget that changes");
    ask(&engine, &first);
    // With the other model there is no room left.
    engine.set_budget(10 << 20).unwrap();
    ask(&engine, &first);
    assert!(kept() > 0);
    let evicted = memory.stats().bytes_evicted.0;
    let other = request("beta", text(5, 40), 30);
    assert_eq!(ask(&engine, &other).tokens, alone(&other, &beta));
    assert_eq!(ask(&engine, &first).stats.cached_tokens, 0, "weights went first");
    assert!(memory.stats().bytes_evicted.0 > evicted, "there was room for both");

    // A budget for one long sequence and no more.
    let engine = self::engine(&[("alpha", &alpha)], Some(3_400_000));
    let memory = engine.memory().unwrap();
    for start in 0..6 {
        let long = request("alpha", text(start, 100), 120);
        assert_eq!(ask(&engine, &long).tokens, alone(&long, &alpha), "request {start}");
        let books = memory.books();
        assert!(books.high_water <= books.budget, "{books:?}");
    }
    // A model that comes finds what it would find if nothing were kept.
    engine.add("beta", &beta).unwrap();
    assert_eq!(memory.books().of(Class::Kv).0, 0);
}
