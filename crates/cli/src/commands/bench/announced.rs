//! `bench announced`: the figures that the project announces, each measured in this run, and of what.
//!
//! The models' memory is measured by a `nexaquant m3` of its own, so that this process is as any other while it answers.

use super::kernels::{self, Cell};
use super::load::Load;
use super::table::{self, figure, number, percent, text};
use super::visit::beginning;
use crate::args::AnnouncedArgs;
use crate::commands::verify;
use crate::engine;
use crate::failure::Failure;
use crate::models::{self, Source};
use crate::output::{bytes, note};
use crate::system::System;
use nexaquant_engine::kernels::{Isa, Ops, Scan};
use nexaquant_engine::limits::{median, read};
use nexaquant_engine::sampler::SamplingParams;
use nexaquant_engine::{
    Answer, GenerateOptions, LoadOptions, Model, Pool, PoolOptions, Progress, Session, SessionOptions,
    topology,
};
use serde_json::{Value, json};
use std::hint::black_box;
use std::time::Instant;

/// A line of the table; `value` is `None` where the system does not tell.
struct Line {
    name: &'static str,
    value: Option<f64>,
    unit: &'static str,
    of: String,
}

pub fn announced(args: &AnnouncedArgs) -> Result<(), Failure> {
    let mut lines = Vec::new();
    let mut add = |name, value: Option<f64>, unit, of: String| lines.push(Line { name, value, unit, of });
    let mean = |times: &[f64]| times.iter().sum::<f64>() / times.len() as f64;
    let spread = |times: &[f64]| {
        let middle = quantile(times, 0.5);
        (quantile(times, 0.99) - middle) / middle
    };

    let processors = topology().parallelism;
    let load = Load::asleep(processors);
    let system = System::here();
    let before = system.anonymous_memory();
    let name = &args.model;
    let mut answerer = Answerer::open(&models::find(name)?, args.generate as usize)?;
    let (layers, threads) = (answerer.model.architecture().hparams.layers.len(), answerer.pool.threads());
    answerer.answer(|_| ())?;
    let (after, asked_for) = (system.anonymous_memory(), answerer.session.bytes() as u64);
    let mut runs = Vec::new();
    let mut alone = Vec::new();
    for _ in 0..args.repeat {
        let times = answerer.answer(|_| ())?;
        runs.push(mean(&times) * 1e3);
        // The first pass is the prompt's.
        alone.extend_from_slice(&times[1..]);
    }
    let (best, middle) = (runs.iter().copied().fold(f64::INFINITY, f64::min), median(runs));
    // Nothing else between the tokens: a counting loop would use up the time that the system gives the workers.
    let loaded: Result<Vec<f64>, Failure> =
        load.beside(|| (0..args.repeat).map(|_| Ok(mean(&answerer.answer(|_| ())?) * 1e3)).collect());
    let loaded = median(loaded?);
    let shape = format!(
        "{name}, {} of weights a token, {} runs of {} tokens, greedy, {threads} threads; prompt, sampling and text included",
        bytes(answerer.model.weight_bytes_per_token()),
        args.repeat,
        answerer.tokens
    );
    add("time a token, best run", Some(best), "ms", shape.clone());
    add("time a token, median run", Some(middle), "ms", shape);
    let per_second = layers as f64 / (middle / 1e3);
    add(
        "layers",
        Some(per_second),
        "1/s",
        format!("the median run, {layers} layers a token, the head's time included"),
    );

    let pass = quantile(&alone, 0.5);
    let count = Count::of(&mut answerer.pool, pass);
    let (mut tokens, mut spins, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.repeat {
        let (these, beside) = answerer.answer_and_count(&count)?;
        reads.extend(these.iter().map(|_| answerer.read()));
        tokens.extend(these);
        spins.extend(beside);
    }
    add(
        "jitter alone",
        Some(spread(&tokens)),
        "",
        format!("(p99 - p50) / p50 of {} tokens, p50 {:.3} ms", tokens.len(), quantile(&tokens, 0.5) * 1e3),
    );
    add(
        "jitter of the machine alone",
        Some(spread(&spins)),
        "",
        "the same of a loop that only counts for as long, on the same threads, after each token".to_owned(),
    );
    add(
        "jitter of reading alone",
        Some(spread(&reads)),
        "",
        format!(
            "the same of reading {} of the file, as often after each answer, p50 {:.3} ms",
            bytes(answerer.model.weight_bytes_per_token()),
            quantile(&reads, 0.5) * 1e3
        ),
    );
    let (tokens, spins) = load.beside(|| answerer.answer_and_count(&count))?;
    let load = format!("{processors} threads that compute without end, as many as processors");
    add(
        "jitter under load",
        Some(spread(&tokens)),
        "",
        format!("beside {load}; p50 {:.3} ms", quantile(&tokens, 0.5) * 1e3),
    );
    add(
        "jitter of the machine under load",
        Some(spread(&spins)),
        "",
        format!("the counting loop after each token, beside {load}"),
    );
    add(
        "speed under load, of a fair share",
        Some(2.0 * middle / loaded),
        "",
        format!(
            "{loaded:.3} ms a token in the median run beside {load}; a fair share is half of the speed alone"
        ),
    );

    let held = before.zip(after).map(|(before, after)| after.saturating_sub(before));
    let weights = answerer.model.weight_bytes_per_token();
    let what = format!(
        "anonymous memory that one run of {name} added: cache and activations ({} asked for), tokenizer, threads; its weights are {}",
        bytes(asked_for),
        bytes(weights)
    );
    add("memory beyond the mapped weights", held.map(|held| held as f64 / 1e6), "MB", what);
    drop(answerer);

    kernel_lines(&mut add)?;
    m3_lines(&mut add)?;
    let (delta, of) = verify::float_ternary_delta()?;
    add("numeric delta", Some(delta), "", of);
    let checked = Instant::now();
    let count = verify::all_of_alpha()?;
    add(
        "verification",
        Some(checked.elapsed().as_secs_f64()),
        "s",
        format!("nexaquant verify: {count} values compared"),
    );

    let columns = [text("what"), number("measured"), text("unit"), text("of what")];
    let shown = |line: &Line| match line.value {
        Some(x) if line.name.starts_with("jitter") || line.name.starts_with("speed") => percent(x),
        Some(x) if line.name == "numeric delta" => format!("{x:.1e}"),
        Some(x) => figure(x),
        None => "the system does not tell".to_owned(),
    };
    let rows: Vec<Vec<String>> =
        lines.iter().map(|l| vec![l.name.to_owned(), shown(l), l.unit.to_owned(), l.of.clone()]).collect();
    table::print(args.output, &columns, &rows, || {
        let row = |l: &Line| json!({ "what": l.name, "measured": l.value, "unit": l.unit, "of": l.of });
        json!({ "isa": Isa::detect().ok().map(Isa::name), "rows": lines.iter().map(row).collect::<Vec<_>>() })
    })
}

/// Fewer have no jitter: the first is the prompt's, and one alone differs from nothing.
const LEAST_TOKENS: usize = 3;

/// A model as `nexaquant run` has it.
struct Answerer {
    model: Model,
    pool: Pool,
    session: Session,
    prompt: Vec<u32>,
    tokens: usize,
}

impl Answerer {
    /// Up to `tokens` a run, as many as the model's context has room for.
    fn open(source: &Source, tokens: usize) -> Result<Self, Failure> {
        let model = engine::load_source(source, LoadOptions::default())?;
        let pool = Pool::new(PoolOptions::default()).map_err(|error| engine::threads(&error))?;
        let session = Session::new(&model, &pool, SessionOptions::default()).map_err(Failure::input)?;
        let prompt = beginning(&model)?;
        // The last token is not computed with.
        let room = (session.context() + 1).saturating_sub(prompt.len());
        if room < LEAST_TOKENS {
            return Err(Failure::Input(format!(
                "{}: a context of {} positions is too short to measure: the prompt takes {}, and {LEAST_TOKENS} tokens are to follow it",
                source.describe(),
                session.context(),
                prompt.len()
            )));
        }
        if room < tokens {
            note("note: ", &format!("{room} tokens a run: {} has no room for {tokens}", source.describe()));
        }
        Ok(Self { model, pool, session, prompt, tokens: tokens.min(room) })
    }

    /// Answers from the beginning, and does something else after each step; the seconds of each.
    fn answer(&mut self, mut after: impl FnMut(&mut Pool)) -> Result<Vec<f64>, Failure> {
        self.session.truncate(0);
        let options = GenerateOptions {
            sampling: SamplingParams {
                temperature: 0.0,
                repeat_penalty: 1.0,
                seed: Some(0),
                ..Default::default()
            },
            max_tokens: Some(self.tokens),
            ignore_end: true,
            continues_prompt: true,
            ..Default::default()
        };
        let mut answer = Answer::new(&self.session, self.prompt.clone(), options).map_err(Failure::input)?;
        let mut times = Vec::with_capacity(self.tokens);
        loop {
            let start = Instant::now();
            match answer.step(&mut self.session, &mut self.pool).map_err(Failure::input)? {
                Progress::Done(..) => return Ok(times),
                progress => black_box(progress),
            };
            times.push(start.elapsed().as_secs_f64());
            after(&mut self.pool);
        }
    }

    /// The seconds of each token, and of the counting loop after it.
    fn answer_and_count(&mut self, count: &Count) -> Result<(Vec<f64>, Vec<f64>), Failure> {
        let mut spins = Vec::new();
        let times = self.answer(|pool| spins.push(count.seconds(pool)))?;
        // The first step is the prompt's.
        Ok((times[1..].to_vec(), spins[1..].to_vec()))
    }

    /// The seconds in which all workers read as many bytes of the file as a token's weights have.
    fn read(&mut self) -> f64 {
        let file = self.model.file().bytes();
        let bytes = &file[..file.len().min(self.model.weight_bytes_per_token() as usize)];
        let ops = Ops::new(Isa::detect().unwrap_or(Isa::Scalar));
        ops.map_or(f64::NAN, |ops| read(&mut self.pool, ops, bytes, Scan::ALL[0], 1).as_secs_f64())
    }
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len().saturating_sub(1) as f64 * q).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// A loop that counts on every worker. The count is the same every time, so what differs is the machine.
struct Count(u64);

impl Count {
    /// One that takes about `seconds`.
    fn of(pool: &mut Pool, seconds: f64) -> Self {
        let some = Self(1_000_000);
        let once = (0..5).map(|_| some.seconds(pool)).fold(f64::INFINITY, f64::min);
        Self((seconds / once * some.0 as f64).max(1.0) as u64)
    }

    /// How long it takes until all are done.
    fn seconds(&self, pool: &mut Pool) -> f64 {
        let start = Instant::now();
        pool.run(|_| {
            for i in 0..self.0 {
                black_box(i);
            }
        });
        start.elapsed().as_secs_f64()
    }
}

fn kernel_lines(
    add: &mut impl FnMut(&'static str, Option<f64>, &'static str, String),
) -> Result<(), Failure> {
    let isa = Isa::detect().map_err(Failure::input)?;
    for (i, rows) in kernels::ROWS.into_iter().enumerate() {
        let mut cell = Cell::ternary(isa, rows)
            .ok_or_else(|| Failure::Internal(format!("there is no TQ2_0 kernel for {isa}")))?;
        cell.repeat(5)?;
        let (_, does, could) = cell.figures();
        let of = format!(
            "TQ2_0 int8 {isa}, {rows} x {}, 1 thread; reading alone {} GB/s, share {}",
            kernels::COLS,
            figure(could),
            percent(does / could)
        );
        let name = if i == 0 { "ternary kernel, small matrix" } else { "ternary kernel, large matrix" };
        add(name, Some(does), "GB/s", of);
    }
    Ok(())
}

/// What a run of the default scenario says of parts that came and went.
fn m3_lines(add: &mut impl FnMut(&'static str, Option<f64>, &'static str, String)) -> Result<(), Failure> {
    let fail =
        |why: String| Failure::Internal(format!("nexaquant m3 --json for the memory's figures: {why}"));
    let program = std::env::current_exe().map_err(|error| fail(error.to_string()))?;
    let output = std::process::Command::new(program)
        .args(["m3", "--json"])
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|error| fail(error.to_string()))?;
    if !output.status.success() {
        return Err(fail(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    let found: Value = serde_json::from_slice(&output.stdout).map_err(|error| fail(error.to_string()))?;
    let none = Vec::new();
    let events = found["events"].as_array().unwrap_or(&none);
    let budget = bytes(found["budget_bytes"].as_u64().unwrap_or(0));
    for (event, name) in [("page_in", "page-in of a part"), ("evict", "eviction of a part")] {
        let times: Vec<f64> =
            events.iter().filter(|e| e["event"] == event).filter_map(|e| e["us"].as_f64()).collect();
        let sizes = events.iter().filter(|e| e["event"] == event).filter_map(|e| e["bytes"].as_f64());
        let of = format!(
            "{} times in the default scenario of nexaquant m3 in {budget}, p99 {} us; median part {}",
            times.len(),
            figure(quantile(&times, 0.99)),
            bytes(median(sizes.collect()) as u64)
        );
        add(name, (!times.is_empty()).then(|| median(times)), "us", of);
    }
    Ok(())
}
