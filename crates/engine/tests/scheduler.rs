//! Requests that share one engine: each gets the answer it would get alone, whoever comes, goes, fails or is slow
//! beside it, and when all is over nothing is held any more.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use nexaquant_engine::decide::Limits;
use nexaquant_engine::kernels::KvType;
use nexaquant_engine::m3::{Class, Memory, MemoryError, MemoryOptions};
use nexaquant_engine::sampler::SamplingParams;
use nexaquant_engine::scheduler::{
    Engine, EngineOptions, Event, Outcome, Request, RequestError, Stream, SubmitError,
};
use nexaquant_engine::{
    EvalError, Finish, GenerateError, GenerateOptions, LoadOptions, Model, Pool, PoolOptions, Session,
    SessionOptions, generate,
};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const BIG: [&str; 3] = ["alpha", "beta", "gamma"];
const TINY: [&str; 3] = ["qwen3", "gemma3", "llama_tied"];
/// More than all models and caches take.
const AMPLE: u64 = 64 << 20;
/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

const SESSION: SessionOptions =
    SessionOptions { context: 256, kv: KvType::F16, batch: 8, all_threads: false, outputs: 1 };

fn path(name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let big = here.join(format!("../../models/{name}.gguf"));
    if big.exists() { big } else { here.join(format!("tests/golden/{name}.gguf")) }
}

/// Each model is loaded once for all tests.
fn model(name: &str) -> Model {
    static LOADED: Mutex<BTreeMap<String, Model>> = Mutex::new(BTreeMap::new());
    let mut loaded = LOADED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let load = || Model::load(&path(name), LoadOptions::default()).unwrap();
    loaded.entry(name.to_owned()).or_insert_with(load).clone()
}

fn pool(threads: usize) -> PoolOptions {
    PoolOptions { threads: Some(threads), pin: false }
}

fn options(budget: Option<u64>, turn_passes: u32) -> EngineOptions {
    EngineOptions {
        memory: budget.map(|budget| Memory::new(MemoryOptions::new(budget)).unwrap()),
        pool: pool(2),
        limits: Limits { turn_passes, max_wait: LONG, least_passes: 1 },
        ..EngineOptions::default()
    }
}

/// An engine that knows `models` by their names.
fn engine(models: &[&str], options: EngineOptions) -> Engine {
    let engine = Engine::start(options).unwrap();
    for name in models {
        engine.add(name, &model(name)).unwrap();
    }
    engine
}

/// `prompt` tokens in, `answer` tokens out.
fn request(name: &str, prompt: u32, answer: usize, seed: u64) -> Request {
    let sampling = SamplingParams { seed: Some(seed), ..SamplingParams::default() };
    Request {
        model: name.to_owned(),
        prompt: (20..20 + prompt).collect(),
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

fn wanted(request: &Request) -> Vec<u32> {
    alone(request, &model(&request.model))
}

fn next(stream: &Stream) -> Option<Event> {
    match stream.next_within(LONG) {
        Ok(event) => Some(event),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Reads a stream to its end: it begins with `Begun` if anything was computed, its texts are the answer's text, it ends
/// once, and nothing comes after that.
fn end(stream: &Stream) -> Result<Outcome, RequestError> {
    let (mut text, mut begun) = (String::new(), false);
    let end = loop {
        match next(stream).expect("a stream ends with Done or Failed") {
            Event::Begun => assert!(!std::mem::replace(&mut begun, true), "begun twice"),
            Event::Prompt { done, total } => assert!(begun && done < total),
            Event::Scored(_) => panic!("nobody asked"),
            Event::Text(piece) => {
                assert!(begun && !piece.is_empty());
                text.push_str(&piece);
            }
            Event::Done(outcome) => break Ok(*outcome),
            Event::Failed(error) => break Err(error),
        }
    };
    assert!(next(stream).is_none(), "an event after the end");
    if let Ok(outcome) = &end {
        assert!(begun);
        assert_eq!(text, outcome.generation.text);
    }
    end
}

fn done(stream: &Stream) -> Outcome {
    end(stream).unwrap()
}

fn tokens(stream: &Stream) -> Vec<u32> {
    done(stream).generation.tokens
}

/// Waits until `what` is so.
fn until(why: &str, mut what: impl FnMut() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < LONG, "{why}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A request whose one pass takes as long as it can, and has begun: what is submitted now waits until that is over.
fn blocker(engine: &Engine) -> Stream {
    let mut request = request("gamma", 240, 1, 1);
    request.session.batch = 256;
    let stream = engine.submit(request).unwrap();
    assert!(matches!(next(&stream), Some(Event::Begun)));
    stream
}

/// Whether its pass has not ended yet.
fn blocks(stream: &Stream) -> bool {
    stream.next_within(Duration::ZERO).is_err()
}

#[test]
fn answers_are_those_of_a_model_alone() {
    let requests: Vec<Request> = (0..3).map(|i| request(BIG[i], 11, 10, i as u64)).collect();
    let wanted: Vec<Vec<u32>> = requests.iter().map(wanted).collect();
    let weights: u64 = BIG.iter().map(|name| model(name).weight_bytes_per_token()).sum();
    for turn_passes in [1, 3, 8] {
        for budget in [None, Some(weights / 3), Some(weights * 3 / 4)] {
            let engine = engine(&BIG, options(budget, turn_passes));
            let streams: Vec<Stream> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
            for (stream, wanted) in streams.iter().zip(&wanted) {
                assert_eq!(&tokens(stream), wanted, "{turn_passes} passes a turn, {budget:?} bytes");
            }
            for name in BIG {
                engine.remove(name).unwrap();
            }
            let Some(memory) = engine.memory() else { continue };
            let books = memory.books();
            assert!(books.used().0 == 0 && books.high_water.0 <= budget.unwrap(), "{books:?}");
        }
    }
}

#[test]
fn whoever_goes_takes_nothing_along_and_leaves_nothing() {
    let (left, right) = (request("qwen3", 19, 8, 1), request("gemma3", 19, 12, 2));
    let same = Request { model: "qwen3".to_owned(), ..request("", 19, 12, 3) };
    let (others, in_answer) = ([right.clone(), same.clone()], [wanted(&right), wanted(&same)]);
    for budget in [None, Some(400 << 10)] {
        // Begun, two chunks of the prompt, texts, Done; then past the end.
        for events in 0..14 {
            let engine = engine(&TINY, options(budget, 2));
            let stays: Vec<Stream> = others.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
            let goes = engine.submit(left.clone()).unwrap();
            for _ in 0..events {
                let _ = next(&goes);
            }
            drop(goes);
            for (stream, wanted) in stays.iter().zip(&in_answer) {
                assert_eq!(&tokens(stream), wanted, "cancelled after {events} events, {budget:?}");
            }
            for name in TINY {
                until("a cancelled request holds its model", || match engine.remove(name) {
                    Ok(()) => true,
                    Err(MemoryError::InUse { .. }) => false,
                    Err(error) => panic!("{error}"),
                });
            }
            assert_eq!(engine.memory().map_or(0, |memory| memory.books().used().0), 0);
        }
    }
}

#[test]
fn a_request_cancelled_in_the_queue_is_never_begun() {
    let engine = engine(&["gamma", "qwen3"], options(Some(AMPLE), 2));
    let first = blocker(&engine);
    drop(engine.submit(request("qwen3", 19, 8, 1)).unwrap());
    let outcome = done_after_begun(&first);
    assert_eq!(outcome.generation.tokens.len(), 1);
    until("a cancelled request holds its model", || engine.remove("qwen3").is_ok());
}

/// As [`done`], for a stream whose `Begun` was read.
fn done_after_begun(stream: &Stream) -> Outcome {
    loop {
        match next(stream).unwrap() {
            Event::Done(outcome) => return *outcome,
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
}

#[test]
fn models_come_and_go_while_others_run() {
    for budget in [None, Some(3 << 20)] {
        let engine = engine(&["alpha"], options(budget, 2));
        let (long, shorts) = (request("alpha", 9, 240, 1), TINY.map(|name| request(name, 9, 5, 2)));
        let answers = shorts.each_ref().map(wanted);
        let stream = engine.submit(long.clone()).unwrap();
        assert!(matches!(next(&stream), Some(Event::Begun)));
        for ((name, short), answer) in TINY.into_iter().zip(shorts).zip(answers) {
            engine.add(name, &model(name)).unwrap();
            let taken = engine.add(name, &model("alpha")).unwrap_err();
            assert!(matches!(taken, MemoryError::NameTaken { .. }), "{taken}");
            assert_eq!(tokens(&engine.submit(short.clone()).unwrap()), answer);
            // Over when it says so: nothing to wait for.
            engine.remove(name).unwrap();
            let gone = engine.submit(short).unwrap_err();
            assert!(matches!(gone, SubmitError::Memory(MemoryError::UnknownName { .. })), "{gone}");
            assert!(gone.to_string().contains("alpha"), "{gone}");
            let gone = engine.remove(name).unwrap_err();
            assert!(matches!(gone, MemoryError::UnknownName { .. }), "{gone}");
        }
        match (budget, engine.remove("alpha")) {
            (None, removed) => removed.unwrap(),
            (_, refused) => assert!(matches!(refused, Err(MemoryError::InUse { sessions: 1, .. }))),
        }
        assert_eq!(done_after_begun(&stream).generation.tokens, wanted(&long));
    }
}

#[test]
fn a_model_is_in_use_from_the_moment_a_request_is_taken() {
    let engine = engine(&["gamma", "qwen3"], options(Some(AMPLE), 2));
    let first = blocker(&engine);
    let short = request("qwen3", 9, 5, 1);
    let stream = engine.submit(short.clone()).unwrap();
    let refused = engine.remove("qwen3").unwrap_err();
    assert!(matches!(refused, MemoryError::InUse { .. }), "{refused}");
    assert_eq!(tokens(&stream), wanted(&short));
    engine.remove("qwen3").unwrap();
    drop(first);
}

#[test]
fn too_many_are_refused_until_one_is_over() {
    for budget in [None, Some(AMPLE)] {
        let models = ["gamma", "qwen3", "gemma3"];
        let engine = engine(&models, EngineOptions { most_requests: 2, ..options(budget, 2) });
        let long = || engine.submit(request("gamma", 9, 240, 1)).unwrap();
        let (first, second) = (long(), long());
        let refused = engine.submit(request("qwen3", 9, 1, 1)).unwrap_err();
        assert!(matches!(refused, SubmitError::Busy { waiting: 2 }), "{refused}");
        drop(first);
        until("the place of a cancelled request is not free", || {
            engine.submit(request("gemma3", 9, 1, 1)).is_ok()
        });
        drop(second);

        // Those that are refused take nobody's place, not even for a moment.
        let engine = self::engine(&["gamma"], EngineOptions { most_requests: 2, ..options(budget, 2) });
        let full = [1, 2].map(|seed| engine.submit(request("gamma", 9, 240, seed)).unwrap());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let refused = engine.submit(request("gamma", 9, 1, 1)).unwrap_err();
                        assert!(matches!(refused, SubmitError::Busy { waiting: 2 }), "{refused}");
                    }
                });
            }
        });
        drop(full);

        // Over is over: whoever hears of it has the place.
        let engine = self::engine(&TINY, EngineOptions { most_requests: 1, ..options(budget, 2) });
        for round in 0..200 {
            let empty = round % 2 == 1;
            let stream = engine.submit(request("qwen3", u32::from(!empty), 1, 1)).unwrap();
            assert_eq!(end(&stream).is_err(), empty);
        }
    }
}

/// Reads up to the end and not to the closing of the stream, so that what the end promises holds at once.
#[test]
fn the_end_comes_after_everything_is_given_back() {
    let engine = engine(&["qwen3"], EngineOptions { most_requests: 1, ..options(Some(AMPLE), 2) });
    for round in 0..300 {
        let empty = round % 2 == 1;
        let stream = engine.submit(request("qwen3", u32::from(!empty), 1, 1)).unwrap();
        while !matches!(next(&stream), Some(Event::Done(_) | Event::Failed(_))) {}
        engine.remove("qwen3").unwrap();
        assert_eq!(engine.memory().unwrap().books().used().0, 0);
        engine.add("qwen3", &model("qwen3")).unwrap();
    }
}

#[test]
fn requests_of_one_model_share_its_weights_under_any_name() {
    for budget in [None, Some(AMPLE)] {
        let engine = engine(&["alpha"], options(budget, 2));
        engine.add("also", &model("alpha")).unwrap();
        let wide = SessionOptions { batch: 64, ..SESSION };
        let requests = [0, 1, 2, 3].map(|i| Request { session: wide, ..request("alpha", 9, 6, i) });
        let names = ["alpha", "also", "alpha", "also"];
        let named = |(r, name): (&Request, &str)| Request { model: name.to_owned(), ..r.clone() };
        let streams: Vec<Stream> =
            requests.iter().zip(names).map(|r| engine.submit(named(r)).unwrap()).collect();
        for (stream, request) in streams.iter().zip(&requests) {
            let outcome = done(stream);
            assert_eq!(outcome.generation.tokens, wanted(request));
            // Nobody else waits, so it is one turn; and a pass has room for all prompts.
            assert_eq!((outcome.service.turns, outcome.service.passes), (1, 1 + 5));
        }
        engine.remove("alpha").unwrap();
        if let Some(memory) = engine.memory() {
            let parts: u64 = memory.get("also").unwrap().parts().map(|(_, _, bytes)| bytes).sum();
            assert_eq!(memory.stats().bytes_loaded.0, parts, "each part comes once");
        }
        engine.remove("also").unwrap();
        assert_eq!(engine.memory().map_or(0, |memory| memory.books().used().0), 0);
    }
}

#[test]
fn a_cache_without_room_fails_alone_and_says_what_would_do() {
    let budget = 1_600_000;
    let engine = engine(&["alpha"], options(Some(budget), 2));
    let (short, long) = (request("alpha", 3, 25, 1), request("alpha", 3, 240, 2));
    let streams = [short.clone(), long].map(|r| engine.submit(r).unwrap());
    assert_eq!(tokens(&streams[0]), wanted(&short));
    let error = end(&streams[1]).unwrap_err();
    let RequestError::Generate(GenerateError::Eval(EvalError::Budget(why))) = &error else {
        panic!("{error}")
    };
    let MemoryError::Residency(nexaquant_residency::Error::OverBudget { smallest_budget, .. }) = **why else {
        panic!("{error}")
    };
    assert!(smallest_budget.0 > budget, "{error}");
    assert!(error.to_string().contains(&format!("({} bytes) would do", smallest_budget.0)), "{error}");
    // What it held is free again.
    assert_eq!(tokens(&engine.submit(short.clone()).unwrap()), wanted(&short));
    engine.remove("alpha").unwrap();
    assert_eq!(engine.memory().unwrap().books().used().0, 0);
}

/// Each fits alone, all together do not: whoever came last waits, computes its keys and values again, and says the same.
#[test]
fn caches_that_do_not_fit_together_take_turns() {
    for (turn, threads) in [(1, 2), (7, 1)] {
        let mut options = options(Some(1_600_000), turn);
        options.pool = pool(threads);
        let engine = engine(&["alpha"], options);
        let requests: Vec<Request> =
            (0..5).map(|seed| request("alpha", 20 + seed as u32, 70, seed)).collect();
        let streams: Vec<Stream> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        let mut passes = 0;
        for (request, stream) in requests.iter().zip(&streams) {
            let outcome = done(stream);
            assert_eq!(outcome.generation.tokens, wanted(request));
            passes += outcome.service.passes as usize;
        }
        // Prompts take a pass or more, and some were computed again.
        assert!(passes > requests.len() * 72, "{passes} passes: nobody had to give way");
        let books = engine.memory().unwrap().books();
        assert!(books.high_water <= books.budget);
        engine.remove("alpha").unwrap();
        assert_eq!(engine.memory().unwrap().books().used().0, 0, "something leaks");
    }
}

#[test]
fn the_budget_changes_while_requests_run() {
    let engine = engine(&BIG, options(Some(8 << 20), 2));
    let requests: Vec<Request> = (0..3).map(|i| request(BIG[i], 11, 12, i as u64)).collect();
    let streams: Vec<Stream> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    for (round, megabytes) in [20, 6, 48, 5, 8, 6, 30, 5].into_iter().enumerate() {
        let memory = engine.memory().unwrap();
        engine.set_budget(megabytes << 20).unwrap();
        assert_eq!(memory.budget(), megabytes << 20);
        let books = memory.books();
        assert!(books.used() <= books.budget, "{books:?}");

        let small = engine.set_budget(200 << 10).unwrap_err();
        let SubmitError::Memory(MemoryError::Residency(nexaquant_residency::Error::OverBudget {
            budget,
            smallest_budget,
            ..
        })) = &small
        else {
            panic!("round {round}: {small}")
        };
        assert!(budget.0 == 200 << 10 && smallest_budget.0 > 200 << 10, "{small}");
        let large = engine.set_budget(100 << 20).unwrap_err();
        assert!(matches!(large, SubmitError::Memory(MemoryError::TooMuch { .. })), "{large}");
        assert_eq!(memory.budget(), megabytes << 20);
    }
    for (stream, request) in streams.iter().zip(&requests) {
        assert_eq!(tokens(stream), wanted(request), "{}", request.model);
    }
    let unbounded = self::engine(&[], options(None, 2)).set_budget(1 << 20).unwrap_err();
    assert!(matches!(unbounded, SubmitError::Memory(MemoryError::Unbounded)), "{unbounded}");
}

#[test]
fn bad_requests_fail_and_others_go_on() {
    for budget in [None, Some(AMPLE)] {
        let engine = engine(&["qwen3", "gemma3"], options(budget, 2));
        let good = request("gemma3", 19, 30, 1);
        let beside = engine.submit(good.clone()).unwrap();
        let fails = |request: Request| end(&engine.submit(request).unwrap()).unwrap_err();

        let empty = fails(request("qwen3", 0, 5, 1));
        assert!(matches!(empty, RequestError::Generate(GenerateError::EmptyPrompt)), "{empty}");

        let long = Request { prompt: vec![1; 257], ..request("qwen3", 1, 5, 1) };
        let long = fails(long);
        let full = EvalErrorKind::of(&long);
        assert_eq!(full, EvalErrorKind::ContextFull, "{long}");

        let unknown = fails(Request { prompt: vec![1, u32::MAX], ..request("qwen3", 1, 5, 1) });
        assert_eq!(EvalErrorKind::of(&unknown), EvalErrorKind::BadToken, "{unknown}");

        let mut cold = request("qwen3", 9, 5, 1);
        cold.generate.sampling.temperature = -1.0;
        let cold = fails(cold);
        assert!(matches!(cold, RequestError::Generate(GenerateError::Sampling(_))), "{cold}");

        let mut odd = request("qwen3", 9, 5, 1);
        odd.session.kv = KvType::Q8_0;
        let odd = fails(odd);
        assert!(matches!(odd, RequestError::Session(_)), "{odd}");

        let nothing = done(&engine.submit(request("qwen3", 19, 0, 1)).unwrap());
        assert!(nothing.generation.tokens.is_empty() && nothing.generation.finish == Finish::Length);
        assert_eq!((nothing.service.passes, nothing.service.first_token), (3, Duration::ZERO));

        // The whole context as prompt leaves room for one token, which is not evaluated.
        let full = Request { prompt: vec![1; 256], ..request("qwen3", 1, 5, 1) };
        let full = done(&engine.submit(full).unwrap());
        assert_eq!((full.generation.tokens.len(), full.generation.finish), (1, Finish::ContextFull));

        // Out of all proportion.
        for size in [0, usize::MAX] {
            let session = SessionOptions { context: size, batch: size, outputs: size, ..SESSION };
            let huge = Request { session, ..request("qwen3", 9, 5, 1) };
            assert_eq!(tokens(&engine.submit(huge).unwrap()), wanted(&request("qwen3", 9, 5, 1)));
        }
        assert_eq!(tokens(&beside), wanted(&good));
        assert_eq!(tokens(&engine.submit(good.clone()).unwrap()), wanted(&good));
    }
}

#[derive(Debug, PartialEq)]
enum EvalErrorKind {
    ContextFull,
    BadToken,
    Other,
}

impl EvalErrorKind {
    fn of(error: &RequestError) -> Self {
        match error {
            RequestError::Generate(GenerateError::Eval(EvalError::ContextFull { .. })) => Self::ContextFull,
            RequestError::Generate(GenerateError::Eval(EvalError::BadToken { .. })) => Self::BadToken,
            _ => Self::Other,
        }
    }
}

#[test]
fn an_engine_that_goes_ends_all_streams_at_once() {
    for budget in [None, Some(5 << 20)] {
        let engine = engine(&BIG, options(budget, 2));
        let memory = engine.memory().cloned();
        let streams = BIG.map(|name| engine.submit(request(name, 9, 240, 1)).unwrap());
        for stream in &streams {
            assert!(matches!(next(stream), Some(Event::Begun)));
        }
        let queued = engine.submit(request("alpha", 9, 5, 1)).unwrap();
        let start = Instant::now();
        drop(engine);
        // A pass takes some ten milliseconds; all answers would take many seconds.
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        for stream in streams.iter().chain([&queued]) {
            while let Some(event) = next(stream) {
                assert!(!matches!(event, Event::Done(_) | Event::Failed(_)), "{event:?}");
            }
        }
        if let Some(memory) = memory {
            for name in BIG {
                memory.remove(name).unwrap();
            }
            assert_eq!(memory.books().used().0, 0);
        }
    }
}

#[test]
fn models_take_turns_of_as_many_passes_as_said() {
    for budget in [None, Some(AMPLE)] {
        for turn_passes in [1, 3, 4] {
            let engine = engine(&[&TINY[..], &["gamma"]].concat(), options(budget, turn_passes));
            let (streams, first) = loop {
                let first = blocker(&engine);
                // 12 passes each: one for the prompt, and one for every token but the last.
                let streams = TINY.map(|name| engine.submit(request(name, 5, 12, 1)).unwrap());
                // Else the first of them may have run before the others came.
                if blocks(&first) {
                    break (streams, first);
                }
                for stream in &streams {
                    let _ = end(stream);
                }
            };
            for stream in &streams {
                let service = done(stream).service;
                assert_eq!((service.passes, service.turns), (12, 12 / turn_passes), "{budget:?}");
                assert!(service.waited > Duration::ZERO && service.first_token <= service.busy + LONG);
                let (all, switch) = (service.all.residency.loads, service.switch.residency.loads);
                assert!(switch <= all);
            }
            drop(first);

            // Two requests of one model share its passes.
            let (pair, single) = loop {
                let first = blocker(&engine);
                let pair = [1, 2].map(|seed| engine.submit(request("qwen3", 4, 12, seed)).unwrap());
                let single = engine.submit(request("gemma3", 5, 12, 1)).unwrap();
                if blocks(&first) {
                    break (pair, single);
                }
                for stream in pair.iter().chain([&single]) {
                    let _ = end(stream);
                }
            };
            for stream in &pair {
                let service = done(stream).service;
                assert_eq!((service.passes, service.turns), (12, 12 / turn_passes), "{service:?}");
            }
            let service = done(&single).service;
            assert_eq!((service.passes, service.turns), (12, 12 / turn_passes));
        }
    }
}

#[test]
fn buffers_are_those_of_one_pass() {
    let engine = engine(&["alpha"], options(Some(AMPLE), 2));
    // Prompts of one token: all steps are alike.
    let most = |requests: u64| {
        let streams: Vec<Stream> =
            (0..requests).map(|seed| engine.submit(request("alpha", 1, 20, seed)).unwrap()).collect();
        let (mut most, mut caches) = (0, 0);
        for stream in &streams {
            while next(stream).is_some() {
                let books = engine.memory().unwrap().books();
                most = most.max(books.of(Class::Scratch).0);
                caches = caches.max(books.of(Class::Kv).0);
            }
        }
        (most, caches)
    };
    // On a busy machine all may be over before anybody looks.
    let one = std::iter::repeat_with(|| most(1)).find(|most| most.0 > 0).unwrap();
    let all = most(4);
    // Besides, workers have room for results and for a page of floats where a step has several tokens.
    assert!(all.0 <= 5 * one.0, "buffers of one request: {}, of four: {}", one.0, all.0);
    assert!(all.0 <= AMPLE / 8, "a small part of the budget: {}", all.0);
    assert!(all.1 <= 4 * one.1, "caches of one request: {}, of four: {}", one.1, all.1);
}

#[test]
fn a_stream_that_nobody_reads_stops_nobody() {
    for budget in [None, Some(AMPLE)] {
        let engine = engine(&TINY, options(budget, 1));
        let (unread, read) = (request("qwen3", 19, 200, 1), request("gemma3", 19, 20, 2));
        let slow = engine.submit(unread.clone()).unwrap();
        for _ in 0..3 {
            assert_eq!(tokens(&engine.submit(read.clone()).unwrap()), wanted(&read));
        }
        assert_eq!(tokens(&slow), wanted(&unread));
    }
}

/// A model that is removed goes when its last request does, not when another model's does.
#[cfg(target_os = "linux")]
#[test]
fn a_removed_model_goes_with_its_last_request() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("goes.gguf");
    std::fs::copy(path("qwen3"), &copy).unwrap();
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains("goes.gguf");
    for budget in [None, Some(AMPLE)] {
        let engine = engine(&["gamma"], options(budget, 2));
        let stays = engine.submit(request("gamma", 9, 240, 1)).unwrap();
        engine.add("goes", &Model::load(&copy, LoadOptions::default()).unwrap()).unwrap();
        let goes = engine.submit(request("goes", 9, 240, 1)).unwrap();
        assert!(matches!(next(&goes), Some(Event::Begun)) && mapped());
        drop(goes);
        until("a cancelled request holds its model", || engine.remove("goes").is_ok());
        until("a removed model stays mapped", || {
            let gone = !mapped();
            while !gone && stays.next_within(Duration::ZERO).is_ok() {}
            gone
        });
        // Not only because the other one was over as well.
        for _ in 0..8 {
            let over = matches!(next(&stays), None | Some(Event::Done(_) | Event::Failed(_)));
            assert!(!over, "a removed model stays though its last request has gone");
        }
    }
}
