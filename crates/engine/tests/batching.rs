//! Requests of one model share forward passes, and each gets to the last token what it would get alone.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use nexaquant_engine::kernels::KvType;
use nexaquant_engine::m3::{Memory, MemoryOptions};
use nexaquant_engine::sampler::{Constraint, SamplingError, SamplingParams};
use nexaquant_engine::scheduler::{Engine, EngineOptions, Event, Outcome, Request, RequestError, Stream};
use nexaquant_engine::{
    GenerateError, GenerateOptions, LoadOptions, Model, Pool, PoolOptions, Pooling, Session, SessionOptions,
    generate,
};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

const SESSION: SessionOptions =
    SessionOptions { context: 256, kv: KvType::F16, batch: 16, all_threads: false, outputs: 1 };

fn model(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../models/{name}.gguf"));
    Model::load(&path, LoadOptions::default()).unwrap()
}

fn pool(threads: usize) -> PoolOptions {
    PoolOptions { threads: Some(threads), pin: false }
}

fn engine(model: &Model, budget: Option<u64>, threads: usize) -> Engine {
    let memory = budget.map(|budget| Memory::new(MemoryOptions::new(budget)).unwrap());
    let engine =
        Engine::start(EngineOptions { memory, pool: pool(threads), ..EngineOptions::default() }).unwrap();
    engine.add("m", model).unwrap();
    engine
}

/// `prompt` tokens in, `answer` tokens out. Every third one takes the likeliest token, the others draw.
fn request(prompt: usize, answer: usize, seed: u64) -> Request {
    let temperature = if seed.is_multiple_of(3) { 0.0 } else { 0.8 };
    let sampling = SamplingParams { seed: Some(seed), temperature, ..SamplingParams::default() };
    Request {
        model: "m".to_owned(),
        prompt: (0..prompt as u32).map(|i| 20 + (i * 7 + seed as u32 * 13) % 400).collect(),
        generate: GenerateOptions {
            sampling,
            max_tokens: Some(answer),
            ignore_end: true,
            ..GenerateOptions::default()
        },
        session: SESSION,
    }
}

/// The tokens that a request gets with nobody beside it, from the mapped file.
fn alone(request: &Request, model: &Model) -> Vec<u32> {
    let mut pool = Pool::new(pool(1)).unwrap();
    let mut session = Session::new(model, &pool, request.session).unwrap();
    let go_on = |_: &str| ControlFlow::Continue(());
    generate(&mut session, &mut pool, &request.prompt, &request.generate, go_on).unwrap().tokens
}

fn end(stream: &Stream) -> Result<Outcome, RequestError> {
    loop {
        match stream.next_within(LONG).unwrap() {
            Event::Done(outcome) => return Ok(*outcome),
            Event::Failed(error) => return Err(error),
            _ => {}
        }
    }
}

fn tokens(stream: &Stream) -> Vec<u32> {
    end(stream).unwrap().generation.tokens
}

/// Prompts from one token to many chunks, answers that end at different times.
fn ragged() -> Vec<Request> {
    let sizes = [(1, 12), (40, 3), (7, 25), (16, 1), (17, 9), (90, 6), (3, 18), (33, 14)];
    (0..).zip(sizes).map(|(seed, (prompt, answer))| request(prompt, answer, seed)).collect()
}

#[test]
fn requests_join_and_leave_and_get_what_they_get_alone() {
    for name in ["alpha", "gamma"] {
        let model = model(name);
        let requests = ragged();
        let wanted: Vec<Vec<u32>> = requests.iter().map(|r| alone(r, &model)).collect();
        let weights = model.weight_bytes_per_token();
        for budget in [None, Some(weights / 3), Some(weights + (8 << 20))] {
            for threads in [1, 2] {
                let engine = engine(&model, budget, threads);
                // Half of them at once; the others whenever one is over.
                let (first, later) = requests.split_at(4);
                let mut streams: Vec<Stream> =
                    first.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
                for (i, late) in later.iter().enumerate() {
                    assert_eq!(tokens(&streams[i]), wanted[i], "{name}, {budget:?}, request {i}");
                    streams.push(engine.submit(late.clone()).unwrap());
                }
                for (i, stream) in streams.iter().enumerate().skip(later.len()) {
                    assert_eq!(tokens(stream), wanted[i], "{name}, {budget:?}, request {i}");
                }
                engine.remove("m").unwrap();
                let Some(memory) = engine.memory() else { continue };
                let books = memory.books();
                assert!(books.used().0 == 0 && books.high_water <= books.budget, "{books:?}");
            }
        }
    }
}

#[test]
fn whoever_leaves_a_pass_takes_nothing_along() {
    let model = model("alpha");
    let (goes, stays) = (request(20, 12, 1), [request(9, 16, 2), request(30, 12, 3)]);
    let wanted = stays.each_ref().map(|r| alone(r, &model));
    for budget in [None, Some(model.weight_bytes_per_token() / 2)] {
        // Begun, a chunk of the prompt or two, every token, and the end.
        for events in 0..16 {
            let engine = engine(&model, budget, 2);
            let beside = stays.each_ref().map(|r| engine.submit(r.clone()).unwrap());
            let stream = engine.submit(goes.clone()).unwrap();
            for _ in 0..events {
                let _ = stream.next_within(LONG);
            }
            drop(stream);
            for (stream, wanted) in beside.iter().zip(&wanted) {
                assert_eq!(&tokens(stream), wanted, "cancelled after {events} events, {budget:?}");
            }
        }
    }
}

/// What a pass reads serves everybody in it.
#[test]
fn a_streamed_layer_serves_every_request() {
    let model = model("alpha");
    let loaded = |clients: u64| {
        let engine = engine(&model, Some(model.weight_bytes_per_token() / 2), 2);
        let streams: Vec<Stream> =
            (0..clients).map(|seed| engine.submit(request(2, 30, seed)).unwrap()).collect();
        let passes: u32 = streams.iter().map(|stream| end(stream).unwrap().service.passes).sum();
        assert!(passes >= 30 * clients as u32);
        engine.memory().unwrap().stats().bytes_loaded.0
    };
    let (one, four) = (loaded(1), loaded(4));
    // By turns it would be four times as much. They do not come at the same instant, and their caches take room.
    assert!(four < one * 2, "{one} bytes for one, {four} for four");
}

#[test]
fn a_long_prompt_keeps_nobody_waiting() {
    let model = model("alpha");
    let engine = engine(&model, None, 2);
    let (sender, events) = channel();
    let listen = |name: &'static str| {
        let sender = sender.clone();
        Box::new(move |event| drop(sender.send((name, event))))
    };
    let _short = engine.submit_to(request(3, 60, 1), listen("short")).unwrap();
    while !matches!(events.recv_timeout(LONG).unwrap(), ("short", Event::Text(_))) {}
    let _long = engine.submit_to(request(200, 2, 2), listen("long")).unwrap();
    let (mut chunks, mut texts_between, mut since_chunk) = (0, 0, 0);
    loop {
        match events.recv_timeout(LONG).unwrap() {
            ("long", Event::Prompt { .. }) => {
                chunks += 1;
                texts_between += usize::from(since_chunk > 0);
                since_chunk = 0;
            }
            ("short", Event::Text(_)) => since_chunk += 1,
            ("short", Event::Done(outcome)) => {
                assert_eq!(outcome.generation.tokens.len(), 60);
                // One token a pass, whatever else was in it.
                assert_eq!(outcome.service.passes, 60);
            }
            ("long", Event::Done(_)) => break,
            _ => {}
        }
    }
    // 15 rows of each pass are left to the prompt while the short one goes on. Some tokens bring no text yet.
    assert!((12..=14).contains(&chunks), "{chunks} chunks");
    assert!(texts_between >= chunks / 2, "{texts_between} of {chunks} chunks had a token beside them");
}

/// Counts tokens: a panic at the second, an error at the third.
#[derive(Clone, Debug)]
struct Fails(u32);

impl Constraint for Fails {
    fn forbid(&mut self, _: &mut [f32]) -> Result<(), SamplingError> {
        self.0 += 1;
        if self.0 == 3 { Err(SamplingError::Constraint("enough".to_owned())) } else { Ok(()) }
    }
    fn accept(&mut self, _: u32) -> Result<(), SamplingError> {
        assert!(self.0 < 2, "a fault");
        Ok(())
    }
    fn is_over(&self) -> bool {
        false
    }
    fn boxed(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[test]
fn whoever_fails_fails_alone() {
    let model = model("alpha");
    let good = [request(9, 16, 2), request(30, 12, 3)];
    let wanted = good.each_ref().map(|r| alone(r, &model));
    for budget in [None, Some(model.weight_bytes_per_token() / 2)] {
        let engine = engine(&model, budget, 2);
        let beside = good.each_ref().map(|r| engine.submit(r.clone()).unwrap());
        for (begin, fault) in [(0, true), (1, true), (2, false)] {
            let mut bad = request(5, 10, 1);
            bad.generate.constraint = Some(Box::new(Fails(begin)));
            let error = end(&engine.submit(bad).unwrap()).unwrap_err();
            match (fault, &error) {
                (true, RequestError::Fault(text)) => assert_eq!(text, "a fault"),
                (false, RequestError::Generate(GenerateError::Sampling(_))) => {}
                _ => panic!("{error}"),
            }
        }
        for (stream, wanted) in beside.iter().zip(&wanted) {
            assert_eq!(&tokens(stream), wanted, "{budget:?}");
        }
    }
}

/// Pooled vectors are made of hidden states, which lie elsewhere in a shared pass.
#[test]
fn vectors_are_those_of_a_request_alone() {
    let model = model("alpha");
    let pooled = |length, how| {
        let mut request = request(length, 0, 1);
        request.generate.pooling = Some(how);
        request
    };
    let requests = [(1, Pooling::Mean), (9, Pooling::Mean), (33, Pooling::Last), (70, Pooling::Mean)];
    let requests = requests.map(|(length, how)| pooled(length, how));
    let vector = |outcome: Outcome| outcome.generation.embedding.unwrap();
    let single = engine(&model, None, 1);
    let wanted = requests.each_ref().map(|r| vector(end(&single.submit(r.clone()).unwrap()).unwrap()));
    let engine = engine(&model, None, 2);
    let beside = engine.submit(request(3, 40, 2)).unwrap();
    let streams = requests.each_ref().map(|r| engine.submit(r.clone()).unwrap());
    for (stream, wanted) in streams.iter().zip(&wanted) {
        assert_eq!(&vector(end(stream).unwrap()), wanted);
    }
    assert_eq!(tokens(&beside).len(), 40);
}
