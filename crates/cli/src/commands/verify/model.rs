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
use std::path::{Path, PathBuf};

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

/// The recorded values of a model, and where they are: inside this program, or `golden/NAME.json` beside the file.
fn recorded(source: &Source) -> Result<Option<(Golden, PathBuf)>, Failure> {
    let parse = |text: &str, place: PathBuf| match serde_json::from_str(text) {
        Ok(golden) => Ok(Some((golden, place))),
        Err(error) => Err(Failure::Input(format!("{} holds no golden values: {error}", place.display()))),
    };
    let Source::File(path) = source else { return parse(ALPHA, PathBuf::from("alpha.json")) };
    let name = Path::new(path.file_stem().unwrap_or_default()).with_extension("json");
    let place = path.parent().unwrap_or(Path::new("")).join("golden").join(name);
    if !place.is_file() {
        note("note: ", &format!("{} is not there: no golden values to compare with", place.display()));
        return Ok(None);
    }
    parse(&crate::input::file(&place)?, place)
}

fn pool() -> Result<Pool, Failure> {
    Pool::new(PoolOptions::default()).map_err(|error| crate::engine::threads(&error))
}

/// Float activations must agree; int8 ones are rounded, and must be close and make the same choices where those are clear.
pub fn golden(name: &str, subject: &Subject, report: &mut Report) -> Result<(), Failure> {
    let Some(source) = &subject.source else { return Ok(()) };
    let Some((golden, place)) = recorded(source)? else { return Ok(()) };
    let bad = |why: &str| Failure::Input(format!("{}: {why}", place.display()));
    if golden.cases.is_empty() {
        return Err(bad("it has no cases to compare with"));
    }
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
                return Err(bad(&format!("the values of {:?} are of different lengths", case.text)));
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
        if choice.values == 0 {
            note("note: ", &format!("{}: no token is clear enough to compare choices", choice.of));
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

/// A token of a greedy answer.
struct Step {
    token: u32,
    /// Of every bit of the logits.
    hash: u64,
    /// Logits that are no finite number.
    not_finite: usize,
}

/// A greedy answer to `prompt`, or to as much of it as the context holds.
fn walk(session: &mut Session, pool: &mut Pool, prompt: &[u32]) -> Result<Vec<Step>, Failure> {
    let mut steps = Vec::new();
    let context = session.context();
    let mut next = prompt[..prompt.len().min(context)].to_vec();
    // The last token of an answer is not computed with.
    for _ in 0..STEPS.min(context - next.len() + 1) {
        let logits = session.eval(pool, &next).map_err(Failure::input)?;
        // FNV-1a: other bits, another number.
        let hash = logits.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, x| {
            (h ^ u64::from(x.to_bits())).wrapping_mul(0x0100_0000_01b3)
        });
        let not_finite = logits.iter().filter(|x| !x.is_finite()).count();
        let token = likeliest(logits) as u32;
        steps.push(Step { token, hash, not_finite });
        next = vec![token];
    }
    Ok(steps)
}

/// A model under budgets, beside what it says without one.
struct Budgets<'a> {
    subject: &'a Subject,
    prompt: Vec<u32>,
    options: SessionOptions,
    pool: Pool,
    wanted: Vec<Step>,
}

impl Budgets<'_> {
    /// Compares the answer in `budget`; the smallest budget that would have done, or `None` where this one is refused.
    /// Blocks are as large as in `blocks_of` bytes.
    fn compare(&mut self, budget: u64, blocks_of: u64, report: &mut Report) -> Result<Option<u64>, Failure> {
        let (name, model) = (&self.subject.name, &self.subject.model);
        let of = format!("{name} in {}", crate::output::bytes(budget));
        let memory = Memory::new(MemoryOptions::new(blocks_of)).map_err(Failure::input)?;
        memory.set_budget(budget).map_err(Failure::input)?;
        let mut answer = || {
            let placed = memory.add(name, model).map_err(Failure::input)?;
            let mut session = Session::placed(&placed, &self.pool, self.options).map_err(Failure::input)?;
            Ok((walk(&mut session, &mut self.pool, &self.prompt)?, memory.smallest_budget()))
        };
        let (found, smallest) = match answer() {
            Ok(found) => found,
            // Refused is not wrong; but some budget below the weights has to do.
            Err(Failure::Input(why)) => {
                note("note: ", &format!("{of} is refused: {why}"));
                return Ok(None);
            }
            Err(other) => return Err(other),
        };
        let mut same = Check::new("same logits", of.clone());
        for (i, (wanted, found)) in self.wanted.iter().zip(&found).enumerate() {
            let computed = if wanted.hash == found.hash { f64::from(found.token) } else { f64::NAN };
            same.see(f64::from(wanted.token), computed, 0.0, || format!("token {i} of the answer"));
        }
        report.add(same)?;
        let high = memory.books().high_water.0;
        let mut ledger = Check::new("budget kept", of.clone());
        // Expected at most the budget: what is above it is the error.
        ledger.see(budget as f64, high.max(budget) as f64, 0.0, || "the ledger's highest point".to_owned());
        report.add(ledger)?;
        memory.remove(name).map_err(Failure::input)?;
        let mut left = Check::new("nothing left", of);
        left.see(0.0, memory.books().used().0 as f64, 0.0, || "bytes after the model has gone".to_owned());
        report.add(left)?;
        Ok(Some(smallest))
    }
}

/// The logits must be numbers. Under a budget the ledger's highest point must not be above it, nothing may be left in the
/// books, and not a bit of the logits may change.
pub fn budgets(subject: &Subject, report: &mut Report) -> Result<(), Failure> {
    let (name, model): (&str, &Model) = (&subject.name, &subject.model);
    let prompt = beginning(model)?;
    let mut pool = pool()?;
    let options = SessionOptions { context: 64, batch: 8, all_threads: true, ..SessionOptions::default() };
    let mut mapped = Session::new(model, &pool, options).map_err(Failure::input)?;
    let wanted = walk(&mut mapped, &mut pool, &prompt)?;
    drop(mapped);
    let mut finite = Check::new("finite logits", name.to_owned());
    for (i, step) in wanted.iter().enumerate() {
        let at = || format!("token {i} of the answer, logits that are NaN or infinite");
        finite.see(0.0, step.not_finite as f64, 0.0, at);
    }
    report.add(finite)?;

    let mut under = Budgets { subject, prompt, options, pool, wanted };
    let weights = model.weight_bytes_per_token();
    // Twice the weights; more where caches and buffers are larger than they.
    let mut roomy = 2 * weights;
    let smallest = loop {
        match under.compare(roomy, roomy, report)? {
            Some(smallest) => break smallest,
            None if roomy > weights << 10 => {
                return Err(Failure::Internal(format!("{name} was refused under every budget")));
            }
            None => roomy *= 2,
        }
    };
    let mut streamed = false;
    for budget in [weights * 3 / 4, weights / 2, weights / 3] {
        streamed |= under.compare(budget, budget, report)?.is_some();
    }
    if streamed {
        return Ok(());
    }
    // A row that fits no block of such budgets fits those of the larger one.
    if smallest >= weights {
        let text = format!("{name} needs {smallest} bytes at least, its weights are {weights}");
        note("note: ", &format!("{text}: no budget below them was compared"));
        return Ok(());
    }
    match under.compare(smallest, roomy, report)? {
        Some(_) => Ok(()),
        None => Err(Failure::Internal(format!("{name} was refused in {smallest} bytes, which should do"))),
    }
}
