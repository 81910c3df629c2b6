//! `verify`: whether this program computes right on this machine. Every kernel against plain arithmetic, every instruction
//! set against the others, the model against its recorded values, and the budget against the ledger.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `data.rs` | random and extreme numbers, and one way to run a kernel on them |
//! | `products.rs` | kernels against sequential sums of f64 and against plain Rust |
//! | `unpack.rs` | every byte at every place of packed weights |
//! | `model.rs` | a model's golden values, and its text under budgets |
//!
//! It stops at the first difference.

mod data;
mod model;
mod products;
mod unpack;

use crate::args::VerifyArgs;
use crate::commands::bench::subject::Subject;
use crate::failure::Failure;
use crate::output::{self, table};
use nexaquant_engine::LoadOptions;
use nexaquant_engine::kernels::{Isa, Mode};
use serde_json::{Value, json};
use std::time::Instant;

/// One comparison: of many, the one that came closest to its bound.
#[derive(Clone, Debug)]
pub struct Check {
    /// `product`, `same bits`, …
    pub what: &'static str,
    /// Format, kind of activations, instruction set, or the model.
    pub of: String,
    /// Where the worst value was.
    pub at: String,
    pub expected: f64,
    pub computed: f64,
    /// How far apart they may be.
    pub bound: f64,
    /// Values compared.
    pub values: u64,
}

impl Check {
    /// Nothing compared yet.
    pub fn new(what: &'static str, of: String) -> Self {
        Self { what, of, at: String::new(), expected: 0.0, computed: 0.0, bound: f64::INFINITY, values: 0 }
    }

    pub fn delta(&self) -> f64 {
        (self.computed - self.expected).abs()
    }

    /// Equal is right whatever the bound is; a value that is no number is wrong.
    pub fn holds(&self) -> bool {
        self.computed == self.expected || self.delta() <= self.bound
    }

    /// Used share of the bound.
    fn used(&self) -> f64 {
        if self.computed == self.expected { 0.0 } else { self.delta() / self.bound }
    }

    /// Compares one value more; the worst is kept.
    pub fn see(&mut self, expected: f64, computed: f64, bound: f64, at: impl FnOnce() -> String) {
        self.values += 1;
        let new = Self { expected, computed, bound, at: String::new(), of: String::new(), ..*self };
        if self.values == 1 || (self.holds() && !new.holds()) || new.used() > self.used() {
            (self.expected, self.computed, self.bound, self.at) = (expected, computed, bound, at());
        }
    }

    /// Compares bits. Which of the numbers that are none an operation returns is the processor's choice.
    pub fn see_bits(&mut self, expected: f32, computed: f32, at: impl FnOnce() -> String) {
        let same = expected.to_bits() == computed.to_bits();
        if same && !expected.is_nan() || expected.is_nan() && computed.is_nan() {
            let value = if expected.is_finite() { f64::from(expected) } else { 0.0 };
            self.see(value, value, 0.0, at);
        } else {
            // 0 and -0 are equal and not the same.
            let computed = if expected == computed { f64::NAN } else { f64::from(computed) };
            self.see(f64::from(expected), computed, 0.0, at);
        }
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what, "of": self.of, "at": self.at, "expected": self.expected,
            "computed": self.computed, "delta": self.delta(), "bound": self.bound, "values": self.values,
            "ok": self.holds(),
        })
    }
}

/// What has been compared so far.
pub struct Report {
    checks: Vec<Check>,
}

impl Report {
    /// Takes a comparison, and ends everything if it does not hold, or compared nothing.
    pub fn add(&mut self, check: Check) -> Result<(), Failure> {
        if check.values == 0 {
            return Err(Failure::Internal(format!("{} of {}: nothing was compared", check.what, check.of)));
        }
        let lie = (!check.holds()).then(|| {
            format!(
                "{} of {}: expected {:e}, computed {:e}, {:e} apart where {:e} is the bound; at {}",
                check.what,
                check.of,
                check.expected,
                check.computed,
                check.delta(),
                check.bound,
                check.at
            )
        });
        self.checks.push(check);
        lie.map_or(Ok(()), |text| Err(Failure::Internal(text)))
    }
}

pub fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let start = Instant::now();
    let mut report = Report { checks: Vec::new() };
    let outcome = everything(args, &mut report);
    let seconds = start.elapsed().as_secs_f64();
    let error = match &outcome {
        Err(Failure::Internal(text) | Failure::Input(text)) => Some(text.clone()),
        _ => None,
    };
    let values: u64 = report.checks.iter().map(|check| check.values).sum();
    if args.json {
        output::print_json(&json!({
            "ok": outcome.is_ok(),
            "error": error,
            "isas": Isa::available().map(Isa::name).collect::<Vec<_>>(),
            "values": values,
            "seconds": seconds,
            "checks": report.checks.iter().map(Check::json).collect::<Vec<_>>(),
        }))?;
    } else {
        let head = ["check", "of", "values", "expected", "computed", "delta", "bound", ""];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(report.checks.iter().map(|c| {
            let number = |x: f64| if x == 0.0 { "0".to_owned() } else { format!("{x:.6e}") };
            let small = |x: f64| if x == 0.0 { "0".to_owned() } else { format!("{x:.1e}") };
            vec![
                c.what.to_owned(),
                c.of.clone(),
                c.values.to_string(),
                number(c.expected),
                number(c.computed),
                small(c.delta()),
                small(c.bound),
                if c.holds() { "ok" } else { "WRONG" }.to_owned(),
            ]
        }));
        output::print(&output::printable(&table(&rows, &[2, 3, 4, 5, 6], ""), true))?;
        if outcome.is_ok() {
            let checks = report.checks.len();
            output::print(&format!("\n{checks} checks of {values} values hold, in {seconds:.1} s\n"))?;
        }
    }
    outcome
}

/// The largest relative difference of the multiplication-free kernels to sums of f64, and what was compared.
pub fn float_ternary_delta() -> Result<(f64, String), Failure> {
    let mut report = Report { checks: Vec::new() };
    products::products_where(&mut report, |format, mode| format.ternary && mode == Mode::Float)?;
    let ternary = |check: &&Check| check.what == "multiplication-free";
    let checks: Vec<&Check> = report.checks.iter().filter(ternary).collect();
    let relative =
        |check: &Check| if check.expected == 0.0 { 0.0 } else { check.delta() / check.expected.abs() };
    let worst = checks.iter().map(|check| relative(check)).fold(0.0, f64::max);
    let values: u64 = checks.iter().map(|check| check.values).sum();
    let of = format!(
        "largest relative difference of ternary kernels with float activations to a sum of f64: {values} products, all formats and instruction sets here, rows up to 16384"
    );
    Ok((worst, of))
}

/// Everything `nexaquant verify` compares without further words; how many values that are.
pub fn all_of_alpha() -> Result<u64, Failure> {
    let mut report = Report { checks: Vec::new() };
    everything(&VerifyArgs { models: Vec::new(), json: true }, &mut report)?;
    Ok(report.checks.iter().map(|check| check.values).sum())
}

fn everything(args: &VerifyArgs, report: &mut Report) -> Result<(), Failure> {
    unpack::unpack(report)?;
    products::products(report)?;
    let models = if args.models.is_empty() { vec!["alpha".to_owned()] } else { args.models.clone() };
    for name in &models {
        let subject = Subject::open(name, LoadOptions::default())?;
        model::golden(name, &subject, report)?;
        model::budgets(&subject, report)?;
    }
    Ok(())
}
