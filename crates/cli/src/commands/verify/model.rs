//! A whole model: its log-probabilities against recorded ones of a forward pass in float64, and its logits under budgets
//! against those from the mapped file.

use super::{Check, Report};
use crate::commands::bench::subject::Subject;
use crate::commands::bench::visit::beginning;
use crate::failure::Failure;
use crate::models::Source;
use crate::output::note;
use nexaquant_engine::kernels::{KvType, Mode};
use nexaquant_engine::m3::{Memory, MemoryOptions};
use nexaquant_engine::{LoadOptions, Model, Pool, PoolOptions, Session, SessionOptions};
use serde::Deserialize;
use std::path::Path;

/// The values of the model that is part of this program.
const ALPHA: &str = include_str!("../../../../../models/golden/alpha.json");

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    next_logprob: Vec<f64>,
    mean_logprob: f64,
    top1: Vec<u32>,
    top1_gap: Vec<f64>,
}

/// The recorded values of a model: those inside this program, or `golden/NAME.json` beside the file.
fn recorded(source: &Source) -> Result<Option<Golden>, Failure> {
    let parse = |text: &str, place: &Path| {
        serde_json::from_str(text)
            .map(Some)
            .map_err(|error| Failure::Input(format!("{} holds no golden values: {error}", place.display())))
    };
    let Source::File(path) = source else { return parse(ALPHA, Path::new("alpha.json")) };
    let name = Path::new(path.file_stem().unwrap_or_default()).with_extension("json");
    let place = path.parent().unwrap_or(Path::new("")).join("golden").join(name);
    if !place.is_file() {
        note("note: ", &format!("{} is not there: no golden values to compare with", place.display()));
        return Ok(None);
    }
    parse(&crate::input::file(&place)?, &place)
}

fn pool() -> Result<Pool, Failure> {
    Pool::new(PoolOptions::default()).map_err(|error| crate::engine::threads(&error))
}

/// Float activations must agree; int8 ones are rounded, and must be close and make the same choices where those are clear.
pub fn golden(name: &str, subject: &Subject, report: &mut Report) -> Result<(), Failure> {
    let Some(source) = &subject.source else { return Ok(()) };
    let Some(golden) = recorded(source)? else { return Ok(()) };
    for (mode, kv, each, mean, gap) in
        [(Mode::Float, KvType::F32, 1e-3, 1e-4, 1e-3), (Mode::Int8, KvType::F16, f64::INFINITY, 0.02, 0.3)]
    {
        let model = crate::engine::load_source(source, LoadOptions { activations: mode, isa: None })?;
        let mut pool = pool()?;
        let of = format!("{name} {}", if mode == Mode::Float { "float" } else { "int8" });
        let mut one = Check::new("golden log p", of.clone());
        let mut all = Check::new("golden mean", of.clone());
        let mut choice = Check::new("golden choice", of);
        for case in &golden.cases {
            let n = case.ids.len();
            if n < 2 || case.next_logprob.len() + 1 != n || case.top1.len() != n || case.top1_gap.len() != n {
                return Err(Failure::Input(format!(
                    "{name}: the golden values of {:?} are of different lengths",
                    case.text
                )));
            }
            let options = SessionOptions { context: 0, kv, batch: 64, all_threads: true, outputs: 64 };
            let mut session = Session::new(&model, &pool, options).map_err(Failure::input)?;
            let mut sum = 0.0;
            let see = |i: usize, logits: &mut [f32]| {
                let at = || format!("{:?}, token {i}", case.text);
                if let (Some(&next), Some(&expected)) = (case.ids.get(i + 1), case.next_logprob.get(i)) {
                    let found = log_p(logits, next);
                    sum += found;
                    one.see(expected, found, each, at);
                }
                if case.top1_gap[i] > gap {
                    choice.see(f64::from(case.top1[i]), likeliest(logits), 0.0, at);
                }
            };
            session.eval_each(&mut pool, &case.ids, see).map_err(Failure::input)?;
            all.see(case.mean_logprob, sum / (n - 1) as f64, mean, || format!("{:?}", case.text));
        }
        for check in [one, all, choice].into_iter().filter(|check| check.bound.is_finite()) {
            report.add(check)?;
        }
    }
    Ok(())
}

fn log_p(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(logits.get(token as usize).copied().unwrap_or(f32::NAN) - max) - sum.ln()
}

fn likeliest(logits: &[f32]) -> f64 {
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as f64
}

/// Tokens of each run.
const STEPS: usize = 12;

/// The greedy tokens and every bit of the logits on the way.
fn walk(session: &mut Session, pool: &mut Pool, prompt: &[u32]) -> Result<Vec<(u32, u64)>, Failure> {
    let mut steps = Vec::new();
    let mut next = prompt.to_vec();
    for _ in 0..STEPS.min(session.context().saturating_sub(prompt.len())) {
        let logits = session.eval(pool, &next).map_err(Failure::input)?;
        // FNV-1a: other bits, another number.
        let hash = logits.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, x| {
            (h ^ u64::from(x.to_bits())).wrapping_mul(0x0100_0000_01b3)
        });
        let token = likeliest(logits) as u32;
        steps.push((token, hash));
        next = vec![token];
    }
    Ok(steps)
}

/// The ledger's highest point must not be above the budget, nothing may be left in the books, and not a bit of the logits
/// may change.
pub fn budgets(subject: &Subject, report: &mut Report) -> Result<(), Failure> {
    let model: &Model = &subject.model;
    let weights = model.weight_bytes_per_token();
    let prompt = beginning(model)?;
    let mut pool = pool()?;
    let options = SessionOptions { context: 64, batch: 8, all_threads: true, ..SessionOptions::default() };
    let mut mapped = Session::new(model, &pool, options).map_err(Failure::input)?;
    let wanted = walk(&mut mapped, &mut pool, &prompt)?;
    drop(mapped);
    let mut below = 0;
    for budget in [2 * weights, weights * 3 / 4, weights / 2, weights / 3] {
        let memory = Memory::new(MemoryOptions::new(budget)).map_err(Failure::input)?;
        let run = |pool: &mut Pool| {
            let placed = memory.add(&subject.name, model).map_err(Failure::input)?;
            let mut session = Session::placed(&placed, pool, options).map_err(Failure::input)?;
            walk(&mut session, pool, &prompt)
        };
        let of = format!("{} in {}", subject.name, crate::output::bytes(budget));
        let found = match run(&mut pool) {
            Ok(found) => found,
            // Refused is not wrong; but some budget below the weights has to do.
            Err(Failure::Input(why)) => {
                note("note: ", &format!("{of} is refused: {why}"));
                continue;
            }
            Err(other) => return Err(other),
        };
        below += usize::from(budget < weights);
        let mut text = Check::new("same logits", of.clone());
        for (i, (wanted, found)) in wanted.iter().zip(&found).enumerate() {
            let computed = if wanted.1 == found.1 { f64::from(found.0) } else { f64::NAN };
            text.see(f64::from(wanted.0), computed, 0.0, || format!("token {i} of the answer"));
        }
        report.add(text)?;
        let high = memory.books().high_water.0;
        let mut ledger = Check::new("budget kept", of.clone());
        // Expected at most the budget: what is above it is the error.
        ledger.see(budget as f64, high.max(budget) as f64, 0.0, || "the ledger's highest point".to_owned());
        report.add(ledger)?;
        memory.remove(&subject.name).map_err(Failure::input)?;
        let mut left = Check::new("nothing left", of);
        left.see(0.0, memory.books().used().0 as f64, 0.0, || "bytes after the model has gone".to_owned());
        report.add(left)?;
    }
    if below == 0 {
        let text = format!("{} was refused under every budget below its weights", subject.name);
        return Err(Failure::Internal(text));
    }
    Ok(())
}
