//! The oracle is the loop written straight down, which is easy to believe; everything an answer is made of must equal
//! what it gives.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::sampler::{Sampler, StopMatcher};
use crate::tokenizer::{Special, StreamDecoder};
use crate::{LoadOptions, Model, PoolOptions, SessionOptions};
use std::path::Path;

fn straight(
    session: &mut Session,
    pool: &mut Pool,
    prompt: &[u32],
    options: &GenerateOptions,
    mut on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Generation {
    let model = session.model().clone();
    let tokenizer = model.tokenizer();
    let mut sampler =
        Sampler::new(options.sampling.clone(), tokenizer.vocab_size(), session.context()).unwrap();
    for &token in prompt {
        sampler.accept(token);
    }
    let mut decoder =
        if options.continues_prompt { StreamDecoder::continuing() } else { StreamDecoder::at_start() };
    let mut stops = StopMatcher::new(options.stop.clone()).unwrap();
    let (mut tokens, mut text) = (Vec::new(), String::new());
    let limit = options.max_tokens.unwrap_or(usize::MAX);
    let (cached_tokens, mut logits) = session.set(pool, prompt).unwrap();
    let mut stats = Stats { cached_tokens, prompt_tokens: prompt.len() - cached_tokens, ..Stats::default() };
    let mut deliver = |piece: &str, text: &mut String| {
        text.push_str(piece);
        if piece.is_empty() { ControlFlow::Continue(()) } else { on_text(piece) }
    };
    let finish = loop {
        if tokens.len() >= limit {
            break Finish::Length;
        }
        let token = sampler.sample(logits).unwrap();
        sampler.accept(token);
        tokens.push(token);
        if !options.ignore_end && tokenizer.end_of_turn().contains(&token) {
            break Finish::EndOfTurn;
        }
        let stopped = stops.push(&decoder.push(tokenizer, token));
        if deliver(&stopped.text, &mut text).is_break() {
            break Finish::Cancelled;
        }
        if stopped.stop.is_some() {
            break Finish::Stop;
        }
        if tokens.len() >= limit {
            break Finish::Length;
        }
        if session.free() == 0 {
            break Finish::ContextFull;
        }
        logits = session.eval(pool, &[token]).unwrap();
        stats.steps += 1;
        stats.passes += 1;
    };
    stats.tokens = tokens.len();
    if !matches!(finish, Finish::Stop | Finish::Cancelled) {
        let rest = stops.push(&decoder.finish());
        let _ = deliver(&rest.text, &mut text);
        if rest.stop.is_none() {
            let _ = deliver(&stops.finish(), &mut text);
        }
    }
    Generation { tokens, text, finish, stats, seed: sampler.seed(), embedding: None }
}

/// A model, and what these tests do with it.
struct Bench {
    model: Model,
    pool: Pool,
    prompt: Vec<u32>,
}

impl Bench {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/alpha.gguf");
        let model = Model::load(&path, LoadOptions::default()).unwrap();
        let pool = Pool::new(PoolOptions { threads: Some(1), pin: false }).unwrap();
        let prompt =
            model.tokenizer().encode_sequence("Once upon a time there was a", Special::AsText).unwrap();
        Self { model, pool, prompt }
    }

    /// A session that holds `tokens`.
    fn session(&mut self, context: usize, batch: usize, tokens: &[u32]) -> Session {
        let options = SessionOptions { context, batch, ..SessionOptions::default() };
        let mut session = Session::new(&self.model, &self.pool, options).unwrap();
        session.extend(&mut self.pool, tokens).unwrap();
        session
    }

    fn text(&mut self, options: &GenerateOptions) -> String {
        let (mut session, prompt) = (self.session(64, 8, &[]), self.prompt.clone());
        straight(&mut session, &mut self.pool, &prompt, options, go_on).text
    }

    fn token(&self, text: &str) -> u32 {
        (0..self.model.tokenizer().vocab_size() as u32)
            .find(|&id| self.model.tokenizer().token_bytes(id).as_deref() == Some(text.as_bytes()))
            .unwrap()
    }
}

fn go_on(_: &str) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn greedy(most: usize) -> GenerateOptions {
    let sampling = SamplingParams { temperature: 0.0, seed: Some(1), ..SamplingParams::default() };
    GenerateOptions { sampling, max_tokens: Some(most), ..GenerateOptions::default() }
}

/// Every answer worth comparing: its name, the positions it has, its options.
fn cases(bench: &mut Bench) -> Vec<(String, usize, GenerateOptions)> {
    let text = bench.text(&greedy(20));
    let warm = SamplingParams {
        temperature: 1.2,
        seed: Some(7),
        presence_penalty: 0.5,
        repeat_penalty: 1.2,
        ..SamplingParams::default()
    };
    // Three bytes that are no character, over and over.
    let mut broken = greedy(3);
    broken.sampling.logit_bias = (0..bench.model.tokenizer().vocab_size() as u32)
        .filter(|&id| bench.model.tokenizer().token_bytes(id).is_some_and(|b| b == [0xe2]))
        .map(|id| (id, 1e6))
        .collect();
    assert!(!broken.sampling.logit_bias.is_empty(), "a byte that begins a character is a token");
    let mut turn = greedy(8);
    turn.sampling.logit_bias = vec![(bench.model.tokenizer().end_of_turn()[0], 1e6)];
    let middle: String = text.chars().skip(9).take(7).collect();
    let last: String = text.chars().rev().take(3).collect::<Vec<_>>().into_iter().rev().collect();
    let stop = |stop: &[String]| GenerateOptions { stop: stop.to_vec(), ..greedy(20) };
    let prompt = bench.prompt.len();
    let mut cases: Vec<(String, usize, GenerateOptions)> =
        [0, 1, 2, 20].map(|n| (format!("greedy {n}"), 64, greedy(n))).into();
    cases.extend([
        ("sampled".into(), 64, GenerateOptions { sampling: warm, ignore_end: true, ..greedy(30) }),
        ("stop across pieces".into(), 64, stop(&["never".into(), middle])),
        ("stop text begun at the end".into(), 64, stop(&[format!("{last} and more")])),
        ("half a character".into(), 64, broken),
        ("end of turn".into(), 64, turn.clone()),
        ("end ignored".into(), 64, GenerateOptions { ignore_end: true, ..turn }),
        ("continues".into(), 64, GenerateOptions { continues_prompt: true, ..greedy(5) }),
        (
            "full context".into(),
            prompt + 5,
            GenerateOptions { max_tokens: None, ignore_end: true, ..greedy(0) },
        ),
        ("no position left".into(), prompt, GenerateOptions { max_tokens: None, ..greedy(0) }),
    ]);
    cases
}

/// What must be equal; times are not.
fn facts(g: &Generation) -> (&[u32], &str, Finish, u64, [usize; 4]) {
    let s = &g.stats;
    (&g.tokens, &g.text, g.finish, g.seed, [s.prompt_tokens, s.cached_tokens, s.tokens, s.steps])
}

#[test]
fn answers_are_those_of_the_straight_loop() {
    let mut bench = Bench::new();
    let prompt = bench.prompt.clone();
    let mut finishes = Vec::new();
    for (name, context, options) in cases(&mut bench) {
        // Sessions that share nothing, a part, all, and more than all with the prompt.
        let more = [&prompt[..], &[5]].concat();
        let other = [&prompt[..4], &[9, 9, 9]].concat();
        for before in [&[][..], &other, &prompt, &more] {
            if before.len() > context {
                continue;
            }
            for batch in [1, 3, 128] {
                let name = format!("{name}, {} before, batch {batch}", before.len());
                let mut session = bench.session(context, batch, before);
                let want = straight(&mut session, &mut bench.pool, &prompt, &options, go_on);
                let held = session.tokens().to_vec();

                let mut session = bench.session(context, batch, before);
                let mut streamed = String::new();
                let hear = |text: &str| {
                    streamed.push_str(text);
                    ControlFlow::Continue(())
                };
                let got = generate(&mut session, &mut bench.pool, &prompt, &options, hear).unwrap();
                assert_eq!(facts(&got), facts(&want), "{name}");
                assert_eq!((streamed.as_str(), session.tokens()), (&want.text[..], &held[..]), "{name}");
                finishes.push(got.finish);
            }
        }
    }
    for finish in [Finish::EndOfTurn, Finish::Stop, Finish::Length, Finish::ContextFull] {
        assert!(finishes.contains(&finish), "{finish:?} came");
    }
}

#[test]
fn a_receiver_can_stop_at_every_piece() {
    let mut bench = Bench::new();
    let prompt = bench.prompt.clone();
    for (name, context, options) in cases(&mut bench) {
        for most in 0..8 {
            let until = |mut left: usize| {
                move |_: &str| {
                    left = left.saturating_sub(1);
                    if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                }
            };
            let mut session = bench.session(context, 4, &[]);
            let want = straight(&mut session, &mut bench.pool, &prompt, &options, until(most));
            let mut session = bench.session(context, 4, &[]);
            let got = generate(&mut session, &mut bench.pool, &prompt, &options, until(most)).unwrap();
            assert_eq!(facts(&got), facts(&want), "{name}, stopped at piece {most}");
        }
    }
}

#[test]
fn an_answer_can_be_left_after_every_step() {
    let mut bench = Bench::new();
    let (prompt, options) = (bench.prompt.clone(), greedy(6));
    let mut session = bench.session(64, 3, &[]);
    let whole = straight(&mut session, &mut bench.pool, &prompt, &options, go_on);
    let chunks = prompt.len().div_ceil(3);
    for steps in 0..chunks + 7 {
        let mut session = bench.session(64, 3, &[]);
        let mut answer = Answer::new(&session, prompt.clone(), options.clone()).unwrap();
        let mut text = String::new();
        for _ in 0..steps {
            match answer.step(&mut session, &mut bench.pool).unwrap() {
                Progress::Prompt { done, total } => {
                    assert_eq!((done, total), (session.tokens().len(), prompt.len()));
                }
                Progress::Token(piece) | Progress::Done(_, piece) => text += &piece,
            }
        }
        let got = answer.finish();
        let tokens = (steps + 1).saturating_sub(chunks).min(6);
        assert_eq!(got.tokens, whole.tokens[..tokens], "after {steps}");
        assert_eq!(got.text, text, "after {steps}");
        // The sixth token is the last; the step after it says so.
        let finish = if steps > chunks + 5 { Finish::Length } else { Finish::Cancelled };
        assert_eq!(got.finish, finish, "after {steps}");
        assert_eq!(got.stats.prompt_tokens, prompt.len().min(steps * 3), "after {steps}");
    }
}

#[test]
fn a_step_is_one_pass_and_their_number_is_foretold() {
    let mut bench = Bench::new();
    let prompt = bench.prompt.clone();
    for (name, context, options) in cases(&mut bench) {
        for (batch, before) in [(1, 0), (4, 0), (4, 5), (128, prompt.len())] {
            let mut session = bench.session(context, batch, &prompt[..before]);
            let mut answer = Answer::new(&session, prompt.clone(), options.clone()).unwrap();
            let mut foretold = answer.passes_left(batch);
            let mut held = before.min(prompt.len() - 1);
            let finish = loop {
                let progress = answer.step(&mut session, &mut bench.pool).unwrap();
                let left = answer.passes_left(batch);
                if foretold > 0 {
                    assert!(session.tokens().len() - held <= batch && left < foretold, "{name}");
                }
                if let Progress::Done(finish, _) = progress {
                    break finish;
                }
                // Only an end that nobody can foresee takes more than one pass off.
                assert!(left + 1 == foretold || left == 0, "{name}: {foretold}, then {left}");
                (foretold, held) = (left, session.tokens().len());
            };
            assert_eq!(answer.passes_left(batch), 0, "{name}");
            let again = answer.step(&mut session, &mut bench.pool).unwrap();
            assert_eq!(again, Progress::Done(finish, String::new()), "{name}");
        }
    }
    let session = bench.session(0, 8, &[]);
    let endless = Answer::new(&session, vec![1], GenerateOptions::default()).unwrap();
    assert_eq!(endless.passes_left(8) as usize, session.context());
}

#[test]
fn answers_in_turns_and_sessions_that_lost_their_cache_give_the_same() {
    let mut bench = Bench::new();
    let other = vec![bench.prompt[0], bench.token("."), bench.prompt[3]];
    let prompts = [bench.prompt.clone(), other];
    let cases = cases(&mut bench);
    for (name, context, options) in cases {
        let want = prompts.clone().map(|prompt| {
            let mut session = bench.session(context, 4, &[]);
            straight(&mut session, &mut bench.pool, &prompt, &options, go_on)
        });
        for lossy in [false, true] {
            let mut going = prompts.clone().map(|prompt| {
                let session = bench.session(context, 4, &[]);
                let answer = Answer::new(&session, prompt, options.clone()).unwrap();
                (session, answer, false)
            });
            for round in 0.. {
                for (session, answer, over) in &mut going {
                    *over = matches!(answer.step(session, &mut bench.pool).unwrap(), Progress::Done(..));
                    if lossy && round % 5 == 4 {
                        session.truncate(session.tokens().len() / 2);
                    }
                }
                if going.iter().all(|(_, _, over)| *over) {
                    break;
                }
            }
            for ((_, answer, _), want) in going.into_iter().zip(&want) {
                let got = answer.finish();
                assert_eq!((&got.tokens, &got.text), (&want.tokens, &want.text), "{name}, lossy {lossy}");
                assert!(lossy || facts(&got) == facts(want), "{name}");
            }
        }
    }
}

/// Text that repeats itself, with guesses at every chance: the same answer in fewer passes, however it ends and whatever happens to the
/// session between two steps.
#[test]
fn guesses_change_nothing_but_the_number_of_passes() {
    let mut bench = Bench::new();
    let text = "The fox has a red hat. The bear has a red hat. The fox has a red hat. The bear has a red";
    let prompt = bench.model.tokenizer().encode_sequence(text, Special::AsText).unwrap();
    let warm =
        SamplingParams { temperature: 0.9, seed: Some(3), repeat_penalty: 1.05, ..SamplingParams::default() };
    let all = GenerateOptions { ignore_end: true, log_probs: Some(2), ..greedy(60) };
    let (n, stop) = (prompt.len(), vec!["fox has".to_owned()]);
    let (mut fewer, mut wrong) = (0, 0);
    for (name, context, options) in [
        ("greedy", 256, all.clone()),
        ("sampled", 256, GenerateOptions { sampling: warm, ..all.clone() }),
        ("stop", 256, GenerateOptions { stop, ..all.clone() }),
        ("ends", 256, greedy(60)),
        ("limit", 256, GenerateOptions { max_tokens: Some(7), ..all.clone() }),
        ("full context", n + 9, GenerateOptions { max_tokens: None, ..all }),
    ] {
        let mut session = bench.session(context, 128, &[]);
        let want = straight(&mut session, &mut bench.pool, &prompt, &options, go_on);
        for (outputs, disturbed) in [(16, 0), (5, 0), (2, 0), (1, 0), (16, 3), (16, 4)] {
            let name = format!("{name}, {outputs} outputs, disturbed {disturbed}");
            let with = SessionOptions { context, outputs, ..SessionOptions::default() };
            let mut session = Session::new(&bench.model, &bench.pool, with).unwrap();
            let options = GenerateOptions { guesses: MOST_GUESSES, ..options.clone() };
            let mut answer = Answer::new(&session, prompt.clone(), options).unwrap();
            for round in 0.. {
                answer.guess_always();
                if matches!(answer.step(&mut session, &mut bench.pool).unwrap(), Progress::Done(..)) {
                    break;
                }
                wrong += usize::from(session.tokens().len() > n + answer.sampled());
                match disturbed {
                    3 if round % 3 == 2 => session.truncate(session.tokens().len() - 1),
                    4 if round % 4 == 3 => session.rest(),
                    _ => {}
                }
            }
            let held = session.tokens().to_vec();
            let got = answer.finish();
            assert_eq!(
                (&got.tokens, &got.text, got.finish),
                (&want.tokens, &want.text, want.finish),
                "{name}"
            );
            assert!(disturbed > 0 || got.stats.steps == want.stats.steps, "{name}");
            assert!([&prompt[..], &got.tokens].concat().starts_with(&held), "{name}: guesses are forgotten");
            assert!(outputs > 1 || got.stats.passes == got.stats.steps, "{name}");
            fewer += usize::from(got.stats.passes < got.stats.steps);
        }
    }
    assert!(
        fewer > 20 && wrong > 50,
        "{fewer} answers had fewer passes, {wrong} times there were guesses left"
    );
}

#[test]
fn what_cannot_be_answered_is_refused_before_anything_is_forgotten() {
    let mut bench = Bench::new();
    let session = bench.session(16, 4, &[1, 2, 3]);
    let why = |prompt: Vec<u32>, options| Answer::new(&session, prompt, options).unwrap_err().to_string();
    assert_eq!(why(vec![], greedy(1)), "the prompt has no tokens");
    assert!(why(vec![5; 17], greedy(1)).contains("17 tokens do not fit a context of 16"));
    assert!(why(vec![5, u32::MAX], greedy(1)).contains("token 4294967295 is not in the vocabulary"));
    assert!(
        why(vec![5], GenerateOptions { stop: vec![String::new()], ..greedy(1) }).contains("stop strings")
    );
    let mut cold = greedy(1);
    cold.sampling.temperature = -1.0;
    assert!(why(vec![5], cold).contains("temperature is -1"));
    assert_eq!(session.tokens(), [1, 2, 3]);
}

/// Only these tokens, then an end.
#[derive(Clone, Debug)]
struct Row(Vec<u32>, usize);

impl crate::sampler::Constraint for Row {
    fn forbid(&mut self, logits: &mut [f32]) -> Result<(), crate::sampler::SamplingError> {
        let wanted = self.0[self.1] as usize;
        logits
            .iter_mut()
            .enumerate()
            .filter(|(id, _)| *id != wanted)
            .for_each(|(_, x)| *x = f32::NEG_INFINITY);
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), crate::sampler::SamplingError> {
        assert_eq!(token, self.0[self.1]);
        self.1 += 1;
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.1 == self.0.len()
    }

    fn boxed(&self) -> Box<dyn crate::sampler::Constraint> {
        Box::new(self.clone())
    }
}

#[test]
fn an_answer_follows_its_constraint_and_tells_the_models_own_probabilities() {
    let model = Model::load(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama_tied.gguf"),
        LoadOptions::default(),
    )
    .unwrap();
    let mut pool = Pool::new(PoolOptions { threads: Some(1), pin: false }).unwrap();
    let mut session = Session::new(&model, &pool, SessionOptions::default()).unwrap();
    let (prompt, row) = (vec![20, 21, 22], vec![30, 31, 32]);
    let options = GenerateOptions {
        constraint: Some(Box::new(Row(row.clone(), 0))),
        log_probs: Some(2),
        pooling: Some(Pooling::Mean),
        ..greedy(20)
    };
    let mut answer = Answer::new(&session, prompt.clone(), options).unwrap();
    let mut scored = Vec::new();
    let finish = loop {
        let progress = answer.step(&mut session, &mut pool).unwrap();
        scored.extend(answer.take_scored());
        if let Progress::Done(finish, _) = progress {
            break finish;
        }
    };
    let generation = answer.finish();
    assert_eq!((finish, &generation.tokens), (Finish::EndOfTurn, &row));
    let length = generation.embedding.unwrap().iter().map(|x| x * x).sum::<f32>();
    assert!((length - 1.0).abs() < 1e-5);
    // What a session on its own says of the same tokens.
    let mut other = Session::new(&model, &pool, SessionOptions::default()).unwrap();
    other.eval(&mut pool, &prompt).unwrap();
    for (scored, &token) in scored.iter().zip(&row) {
        let logits = other.logits(0).to_vec();
        assert_eq!(scored.log_probs, crate::sampler::log_probs(&logits, token, 2).unwrap());
        assert_eq!(scored.token, token);
        other.eval(&mut pool, &[token]).unwrap();
    }
    assert_eq!(scored.len(), row.len());
}
