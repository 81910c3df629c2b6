//! A row's figures: medians of its visits, and what share of the machine's limit they are.

use super::table::{figure, percent};
use super::visit::{Cell, Found, Kind, int8_products};
use nexaquant_engine::limits::median;
use serde_json::{Value, json};

/// All that is known of a row in the end.
pub struct Row<'a> {
    cell: Cell<'a>,
    found: Vec<Found>,
}

/// A figure, and the limit it stands beside. `None` where nothing counts or measures it.
struct Beside {
    figure: Option<f64>,
    limit: Option<f64>,
}

impl Beside {
    fn fraction(&self) -> Option<f64> {
        Some(self.figure? / self.limit?)
    }
}

impl<'a> Row<'a> {
    pub fn new(cell: Cell<'a>) -> Self {
        Self { cell, found: Vec::new() }
    }
    pub fn cell(&self) -> &Cell<'a> {
        &self.cell
    }
    pub fn add(&mut self, found: Found) {
        self.found.push(found);
    }

    fn speeds(&self) -> (f64, f64, f64) {
        let speeds = || self.found.iter().map(|f| f.tokens_per_s);
        (median(speeds().collect()), speeds().fold(f64::INFINITY, f64::min), speeds().fold(0.0, f64::max))
    }

    /// In 1e9 a second: bytes of an answer, products of a prompt.
    fn beside(&self) -> Beside {
        let (speed, ..) = self.speeds();
        let model = &self.cell.subject.model;
        let each = match self.cell.kind {
            Kind::Answer(_) => Some(model.weight_bytes_per_token() as f64),
            // Whatever multiplies them.
            Kind::Prompt(n) => int8_products(model, n, n)
                .map(|products| products.iter().map(|(_, n)| *n as f64).sum::<f64>() / n as f64),
        };
        let limits: Vec<f64> = self.found.iter().filter_map(|f| f.limit).collect();
        let limit = (!limits.is_empty()).then(|| median(limits) / 1e9);
        Beside { figure: each.map(|each| speed * each / 1e9), limit }
    }

    /// `device`: what computes, where that is not the CPU.
    pub fn text(&self, device: Option<&str>) -> Vec<String> {
        let (speed, least, most) = self.speeds();
        let beside = self.beside();
        let unit = match self.cell.kind {
            Kind::Answer(_) => "GB/s",
            Kind::Prompt(_) => "G products/s",
        };
        vec![
            self.cell.subject.name.clone(),
            format!("{:?}", self.cell.kv).to_lowercase(),
            self.cell.threads.map_or(device.unwrap_or_default().to_owned(), |n| n.to_string()),
            format!("{} {}", self.cell.kind.name(), self.cell.kind.tokens()),
            figure(speed),
            format!("{} - {}", figure(least), figure(most)),
            or_none(beside.figure, figure),
            or_none(beside.limit, figure),
            unit.to_owned(),
            or_none(beside.fraction(), percent),
        ]
    }

    pub fn json(&self) -> Value {
        let (speed, least, most) = self.speeds();
        let (cell, beside) = (&self.cell, self.beside());
        let mut row = json!({
            "model": cell.subject.name,
            "kv": format!("{:?}", cell.kv).to_lowercase(),
            "threads": cell.threads,
            "kind": cell.kind.name(),
            "n": cell.kind.tokens(),
            "tokens_per_s": speed,
            "tokens_per_s_min": least,
            "tokens_per_s_max": most,
            "tokens_per_s_all": self.found.iter().map(|f| f.tokens_per_s).collect::<Vec<_>>(),
            "ms_per_token": 1e3 / speed,
            "fraction": beside.fraction(),
        });
        match cell.kind {
            Kind::Answer(_) => {
                row["bytes_per_token"] = json!(cell.subject.model.weight_bytes_per_token());
                row["gb_per_s"] = json!(beside.figure);
                row["measured_read_gb_per_s"] = json!(beside.limit);
            }
            Kind::Prompt(_) => {
                row["gmacs_per_s"] = json!(beside.figure);
                row["measured_peak_gmacs_per_s"] = json!(beside.limit);
            }
        }
        row
    }
}

fn or_none(value: Option<f64>, text: fn(f64) -> String) -> String {
    value.map_or("-".to_owned(), text)
}
