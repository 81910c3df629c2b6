//! Faults inside of the loop, which nothing from outside can bring about.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::generate::GenerateOptions;
use crate::sampler::SamplingParams;
use crate::scheduler::{Engine, EngineOptions, Event, Request, RequestError, Stream};
use crate::session::SessionOptions;
use crate::{LoadOptions, Model};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::{Mutex, PoisonError};

pub(super) const OPENING: u8 = 1;
pub(super) const ENDING: u8 = 2;
pub(super) const SHARING: u8 = 3;
static TRIPS: [AtomicBool; 4] = [const { AtomicBool::new(false) }; 4];

/// Or one test's engine would trip over what is meant for another's.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Panics once where a test below says.
pub(super) fn trip(place: u8) {
    assert!(!TRIPS[usize::from(place)].swap(false, AcqRel), "tripped at {place}");
}

/// The same for a pass that several requests share.
pub(super) fn trip_over(place: u8, members: usize) {
    if members > 1 {
        trip(place);
    }
}

#[test]
fn a_panic_before_the_first_pass_or_after_the_last_fails_that_request_only() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3.gguf");
    engine.add("m", &Model::load(&path, LoadOptions::default()).unwrap()).unwrap();
    let end = || {
        let generate =
            GenerateOptions { max_tokens: Some(3), ignore_end: true, ..GenerateOptions::default() };
        let session = SessionOptions::default();
        let request = Request { model: "m".to_owned(), prompt: vec![5, 6, 7], generate, session };
        let stream = engine.submit(request).unwrap();
        std::iter::from_fn(|| stream.next_event()).last()
    };
    for place in [OPENING, ENDING] {
        TRIPS[usize::from(place)].store(true, Release);
        let Some(Event::Failed(RequestError::Fault(text))) = end() else { panic!("no fault at {place}") };
        assert_eq!(text, format!("tripped at {place}"));
        assert!(matches!(end(), Some(Event::Done(_))), "the engine goes on");
    }
}

#[test]
fn a_panic_in_a_shared_pass_makes_each_go_on_alone() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let engine = Engine::start(EngineOptions::default()).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3.gguf");
    engine.add("m", &Model::load(&path, LoadOptions::default()).unwrap()).unwrap();
    let submit = |first| {
        let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let generate = GenerateOptions {
            sampling,
            max_tokens: Some(40),
            ignore_end: true,
            ..GenerateOptions::default()
        };
        let session = SessionOptions::default();
        engine
            .submit(Request { model: "m".to_owned(), prompt: vec![first, 6, 7], generate, session })
            .unwrap()
    };
    let tokens = |stream: Stream| match std::iter::from_fn(|| stream.next_event()).last() {
        Some(Event::Done(outcome)) => outcome.generation.tokens,
        other => panic!("{other:?}"),
    };
    let wanted = [5, 8].map(|first| tokens(submit(first)));
    TRIPS[usize::from(SHARING)].store(true, Release);
    assert_eq!([5, 8].map(submit).map(tokens), wanted);
    assert!(!TRIPS[usize::from(SHARING)].load(Acquire), "no pass was shared");
}
