//! What is said when the run is over: the policy beside the baseline and the optimum, the memory beside the machine,
//! what was predicted beside what was measured.

use super::Answered;
use super::show::{hit_rate, limit};
use crate::output::{bytes, table};
use crate::scenario::Scenario;
use crate::system::System;
use nexaquant_engine::limits::MemoryRates;
use nexaquant_engine::m3::plan::{From, ModelPlan, Plan};
use nexaquant_engine::m3::policy::belady::{Parts, Rule, optimum};
use nexaquant_engine::m3::policy::{Lru, replay};
use nexaquant_engine::m3::{Bytes, FillStats, Memory, UnitStatus, Uploads};
use nexaquant_engine::scheduler::Outcome;
use serde_json::{Value, json};
use std::time::Duration;

pub struct Report<'a> {
    scenario: &'a Scenario,
    plan: &'a Plan,
    /// Under the names of the scenario, with the bytes of weights that a token reads.
    models: Vec<(String, u64, Vec<UnitStatus>)>,
    /// Of the machine, if they could be measured.
    rates: Option<MemoryRates>,
    threads: usize,
    block: u64,
    high_water: u64,
    moved: u64,
    /// For the same uses under the same budgets: LRU, and what no policy can go below, with the next part beside the
    /// one in use and without. `None`: not computable.
    lru: Option<u64>,
    best_prefetch: Option<u64>,
    best_plain: Option<u64>,
    fill: FillStats,
    /// To a device.
    uploads: Option<Uploads>,
    peak_rss: Option<u64>,
}

impl<'a> Report<'a> {
    pub fn new(
        scenario: &'a Scenario,
        memory: &Memory,
        plan: &'a Plan,
        rates: Option<MemoryRates>,
        threads: usize,
    ) -> Self {
        let trace = memory.trace();
        let rule = if scenario.memory.prefetch { Rule::Prefetch } else { Rule::Plain };
        let (block, whole) = (Bytes(memory.block() as u64), memory.has_whole_parts());
        let (granule, parts) = if whole { (Bytes::ZERO, Parts::Whole) } else { (block, Parts::Paged) };
        let lru = replay(&trace, Box::new(Lru), rule, granule, &[]).ok().map(|stats| stats.bytes_loaded.0);
        let best = |rule| optimum(&trace, rule, parts).map(|bytes| bytes.0);
        Self {
            scenario,
            plan,
            models: scenario.models.iter().filter_map(|named| of_model(memory, &named.name)).collect(),
            rates,
            threads,
            block: block.0,
            high_water: memory.books().high_water.0,
            moved: memory.stats().bytes_loaded.0,
            lru,
            best_prefetch: best(Rule::Prefetch),
            best_plain: best(Rule::Plain),
            fill: memory.fill_stats(),
            uploads: memory.uploads(),
            peak_rss: System::here().peak_memory(),
        }
    }

    /// The bound under the rule that the run followed.
    fn best(&self) -> Option<u64> {
        if self.scenario.memory.prefetch { self.best_prefetch } else { self.best_plain }
    }

    fn policy(&self) -> &'static str {
        self.scenario.memory.policy.name()
    }

    /// Bytes a second that came from the page cache, a thread; from the disk.
    fn fill_rates(&self) -> (Option<f64>, Option<f64>) {
        let rate = |bytes: u64, seconds: f64| (bytes > 0 && seconds > 0.0).then(|| bytes as f64 / seconds);
        (
            rate(self.fill.cached_bytes, self.fill.cached_time.as_secs_f64()),
            rate(self.fill.disk_bytes, self.fill.disk_time.as_secs_f64()),
        )
    }

    pub fn as_text(&self, queries: &[Answered<'_>]) -> String {
        let mut text = "\nBytes moved in\n".to_owned();
        let row = |name: &str, moved: Option<u64>| {
            let ratio = moved.zip(self.best()).map(|(m, b)| format!("{:.3}", m as f64 / b.max(1) as f64));
            vec![
                name.to_owned(),
                moved.map_or_else(|| "not known".to_owned(), bytes),
                ratio.unwrap_or_default(),
            ]
        };
        let mut rows = vec![vec![String::new(), "moved".to_owned(), "/ optimum".to_owned()]];
        rows.push(row(&format!("{} (this run)", self.policy()), Some(self.moved)));
        rows.push(row("lru, the same uses and budgets", self.lru));
        rows.push(row("optimum, the next part beside the one in use", self.best_prefetch));
        rows.push(row("optimum, only the one in use", self.best_plain));
        text += &table(&rows, &[1, 2], "  ");

        text += "\nMemory\n";
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut line = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
        let budget = self.scenario.memory.budget;
        line("ledger, high-water mark", format!("{} bytes of {budget}", self.high_water));
        if let Some(smallest) = self.plan.smallest_budget {
            line("smallest budget that would do", format!("{smallest} bytes"));
        }
        if self.uploads.is_some() {
            // What the driver itself has taken or has left, no OpenCL call of all vendors says.
            line("allocated on the device", format!("{budget} bytes, once, at the start"));
        }
        if let Some(up) = self.uploads.filter(|up| up.parts > 0) {
            let copying = up.copying.as_secs_f64().max(1e-9);
            let text = format!(
                "{} in {} copies, {:.2} GB/s",
                bytes(up.bytes),
                up.parts,
                up.bytes as f64 / copying / 1e9
            );
            line("copied to the device", text);
            let each = |time: Duration| time.as_secs_f64() * 1e6 / up.parts as f64;
            let text = format!(
                "{:.1} us from its start, {:.1} us from being queued",
                each(up.copying),
                each(up.page_in)
            );
            line("page-in of a part to usable, mean", text);
        }
        if let Some(peak) = self.peak_rss {
            let beyond = match self.uploads {
                // The budget is the device's.
                Some(_) => String::new(),
                None => format!(", {} beyond the budget", bytes(peak.saturating_sub(budget))),
            };
            line("process, peak (VmHWM)", format!("{}{beyond}", bytes(peak)));
        }
        let rate = |r: f64| format!("{:.2} GB/s", r / 1e9);
        let (cached, disk) = self.fill_rates();
        if let Some(cached) = cached {
            let beside = self
                .copy()
                .map(|copy| format!(", {:.0} % of copying memory ({})", 100.0 * cached / copy, rate(copy)));
            let name = "filling from the page cache, a thread";
            line(name, format!("{}{}", rate(cached), beside.unwrap_or_default()));
        }
        // Less is not worth a line: blocks that have their memory already are asked for it, too.
        let given = self.fill.given_time;
        if given > self.fill.cached_time / 50 {
            let given = format!("{:.0} ms, not counted above", given.as_secs_f64() * 1e3);
            line("memory from the system for that, first use", given);
        }
        if let Some(disk) = disk {
            let plain = self.planned().iter().find(|model| model.rate.from == From::Disk);
            let beside = plain.map(|model| {
                let plain = model.rate.bytes_per_s;
                format!(", {:.0} % of plain reads ({})", 100.0 * disk / plain, rate(plain))
            });
            line("filling from the disk", format!("{}{}", rate(disk), beside.unwrap_or_default()));
        }
        if let Some(rates) = self.rates {
            line("reading memory, all threads", rate(rates.read));
        }
        text += &table(&rows, &[], "  ");

        text += "\nPredicted and measured\n";
        let head = ["", "switch ms", "", "tokens/s", "", "moved a token", ""];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.push(
            ["model", "predicted", "measured", "predicted", "measured", "predicted", "measured"]
                .map(str::to_owned)
                .to_vec(),
        );
        for Answered { model, outcome, .. } in queries {
            let Some(plan) = self.planned().iter().find(|plan| plan.name == *model) else { continue };
            let stats = &outcome.generation.stats;
            rows.push(vec![
                (*model).to_owned(),
                format!("{:.2}", plan.switch_time().as_secs_f64() * 1e3),
                format!("{:.2}", outcome.service.first_token.as_secs_f64() * 1e3),
                format!("{:.0}", plan.tokens_per_s()),
                if stats.steps > 0 { format!("{:.0}", stats.tokens_per_s()) } else { "-".to_owned() },
                bytes(plan.streamed_per_token()),
                bytes(streamed_per_token(outcome)),
            ]);
        }
        text += &table(&rows, &[1, 2, 3, 4, 5, 6], "  ");
        text
    }

    fn planned(&self) -> &[ModelPlan] {
        &self.plan.models
    }

    /// Bytes a second that a thread copies while all of them do.
    fn copy(&self) -> Option<f64> {
        self.rates.map(|rates| rates.copy / rates.threads.max(1) as f64)
    }

    pub fn as_json(&self, queries: &[Answered<'_>], events: &[Value]) -> Value {
        let (cached, disk) = self.fill_rates();
        let query = |Answered { asked, model, outcome, last_pass }: &Answered<'_>| {
            let (generation, service) = (&outcome.generation, &outcome.service);
            let stats = &generation.stats;
            let plan = self.planned().iter().find(|plan| plan.name == *model);
            json!({
                "model": model,
                "prompt": asked.text,
                "prompt_tokens": asked.prompt.len(),
                "text": generation.text,
                "tokens": generation.tokens,
                "finish": generation.finish.name(),
                "waited_ms": service.waited.as_secs_f64() * 1e3,
                "switch_ms": service.first_token.as_secs_f64() * 1e3,
                "switch_page_in_ms": service.switch.page_in().as_secs_f64() * 1e3,
                "switch_page_in_bytes": service.switch.residency.bytes_loaded.0,
                "page_in_bytes": service.all.residency.bytes_loaded.0,
                "page_in_ms": service.all.page_in().as_secs_f64() * 1e3,
                "evicted_bytes": service.all.residency.bytes_evicted.0,
                "hit_rate": hit_rate(outcome),
                "resident_parts": last_pass.as_ref().map(|pass| &pass.resident),
                "streamed_parts": last_pass.as_ref().map(|pass| &pass.streamed),
                "passes": service.passes,
                "turns": service.turns,
                "tokens_per_s": if stats.steps > 0 { json!(stats.tokens_per_s()) } else { Value::Null },
                "limited_by": limit(outcome),
                "seed": generation.seed,
                "predicted_switch_ms": plan.map(|p| p.switch_time().as_secs_f64() * 1e3),
                "predicted_tokens_per_s": plan.map(ModelPlan::tokens_per_s),
            })
        };
        let part = |part: &UnitStatus| json!({ "name": part.name, "bytes": part.bytes.0 });
        let model = |(name, weight_bytes, parts): &(String, u64, Vec<UnitStatus>)| {
            json!({
                "name": name,
                "weight_bytes": weight_bytes,
                "block_bytes": parts.iter().map(|part| part.bytes.0).sum::<u64>(),
                "parts": parts.iter().map(part).collect::<Vec<_>>(),
            })
        };
        let uploads = self.uploads.map(|up| {
            json!({
                "parts": up.parts,
                "bytes": up.bytes,
                "copying_ms": up.copying.as_secs_f64() * 1e3,
                "page_in_ms": up.page_in.as_secs_f64() * 1e3,
            })
        });
        json!({
            "budget_bytes": self.scenario.memory.budget,
            "high_water_bytes": self.high_water,
            "smallest_budget_bytes": self.plan.smallest_budget,
            "block_bytes": self.block,
            "policy": self.policy(),
            "prefetch": self.scenario.memory.prefetch,
            "turn": self.scenario.turn,
            "bytes_moved": self.moved,
            "lru_bytes": self.lru,
            "optimum_bytes": self.best(),
            "optimum_prefetch_bytes": self.best_prefetch,
            "optimum_plain_bytes": self.best_plain,
            "peak_rss_bytes": self.peak_rss,
            "threads": self.threads,
            "fill_cached_bytes": self.fill.cached_bytes,
            "fill_disk_bytes": self.fill.disk_bytes,
            "fill_cached_bytes_per_s": cached,
            "fill_disk_bytes_per_s": disk,
            "copy_bytes_per_s": self.copy(),
            "plain_read_bytes_per_s": self.planned().iter().find(|m| m.rate.from == From::Disk).map(|m| m.rate.bytes_per_s),
            "memory_read_bytes_per_s": self.rates.map(|rates| rates.read),
            "uploads": uploads,
            "models": self.models.iter().map(model).collect::<Vec<_>>(),
            "queries": queries.iter().map(query).collect::<Vec<_>>(),
            "events": events,
        })
    }
}

/// The name, the bytes of weights that a token reads, and the parts of a model.
fn of_model(memory: &Memory, name: &str) -> Option<(String, u64, Vec<UnitStatus>)> {
    let weights = memory.get(name).ok()?.model().weight_bytes_per_token();
    let status = memory.status().into_iter().find(|status| status.names.iter().any(|n| n == name))?;
    Some((name.to_owned(), weights, status.units))
}

/// Bytes that came in for each token after the first.
fn streamed_per_token(outcome: &Outcome) -> u64 {
    let service = &outcome.service;
    let bytes = service.all.residency.bytes_loaded.0 - service.switch.residency.bytes_loaded.0;
    bytes / (outcome.generation.stats.steps as u64).max(1)
}
