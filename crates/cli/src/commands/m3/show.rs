//! What is printed while models answer: parts coming and going, the state of the budget, the answers.
//!
//! A terminal gets colours and a bar that stays under the last line; a pipe gets plain lines.

use crate::args::Events;
use crate::failure::Failure;
use crate::output::{bytes, printable};
use crate::scenario::Scenario;
use nexaquant_engine::Model;
use nexaquant_engine::m3::{Change, Memory, ModelStatus, State};
use nexaquant_engine::scheduler::Outcome;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal, Write};
use std::time::Duration;

const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const BOLD: &str = "\x1b[1m";
const END: &str = "\x1b[0m";

/// Which parts came in during a model's last pass, told apart by the order: parts come in as a pass uses them.
#[derive(Default)]
struct Passes {
    /// Bytes by place, of the pass under way and of the one before.
    current: BTreeMap<u32, u64>,
    last: BTreeMap<u32, u64>,
}

impl Passes {
    fn came(&mut self, index: u32, bytes: u64) {
        if self.current.last_key_value().is_some_and(|(last, _)| *last >= index) {
            self.last = std::mem::take(&mut self.current);
        }
        *self.current.entry(index).or_default() += bytes;
    }

    /// The last one that is whole: one has begun again when the next pass's first part is brought in ahead.
    fn whole(&self) -> &BTreeMap<u32, u64> {
        let bytes = |pass: &BTreeMap<u32, u64>| pass.values().sum::<u64>();
        if bytes(&self.last) > bytes(&self.current) { &self.last } else { &self.current }
    }
}

/// What a model's last pass for an answer found in memory, and what it brought in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastPass {
    /// A sign for each part: `#` stayed, `+` came in partly, `.` came in.
    pub map: String,
    /// Names of the parts that stayed.
    pub resident: Vec<String>,
    /// Names of those that came in, partly or whole.
    pub streamed: Vec<String>,
}

impl LastPass {
    /// `parts`: name and bytes, in the order of a pass; `came`: bytes that came in, by place.
    fn new<'a>(parts: impl Iterator<Item = (&'a str, u64)>, came: &BTreeMap<u32, u64>) -> Self {
        let mut this = Self::default();
        for (index, (name, bytes)) in (0..).zip(parts) {
            let moved = came.get(&index).copied().unwrap_or(0);
            this.map.push(match moved {
                0 => '#',
                moved if moved < bytes => '+',
                _ => '.',
            });
            (if moved == 0 { &mut this.resident } else { &mut this.streamed }).push(name.to_owned());
        }
        this
    }
}

/// What happened to a part while its model answered.
#[derive(Default)]
struct Streamed {
    loads: u32,
    bytes: u64,
    time: Duration,
}

#[allow(clippy::struct_excessive_bools, reason = "each is a state of the output by itself")]
pub struct Show {
    silent: bool,
    terminal: bool,
    events: Events,
    /// Bytes of a block, and of the budget.
    block: u64,
    budget: u64,
    used: u64,
    /// A bar stands under the last line.
    bar: bool,
    /// Before the first token of an answer.
    switching: bool,
    /// All queries are asked at once.
    together: bool,
    /// The last line is an answer's and goes on.
    open: bool,
    /// Bytes of a part in memory before the load or eviction under way.
    before: HashMap<(String, u32), u64>,
    /// By model and place: what came in after the first token.
    streamed: BTreeMap<(String, u32), (String, Streamed)>,
    recorded: Vec<Value>,
    /// By model.
    passes: HashMap<String, Passes>,
    /// Width of a model's and its part's names.
    label: usize,
}

impl Show {
    pub fn new(silent: bool, events: Events, block: u64) -> Self {
        Self {
            silent,
            terminal: std::io::stdout().is_terminal(),
            events,
            block,
            budget: 0,
            used: 0,
            bar: false,
            switching: false,
            together: false,
            open: false,
            before: HashMap::new(),
            streamed: BTreeMap::new(),
            recorded: Vec::new(),
            passes: HashMap::new(),
            label: 0,
        }
    }

    /// Every change of a part, for programs.
    pub fn events(&self) -> &[Value] {
        &self.recorded
    }

    /// Writes lines; the bar gives way and comes back.
    fn print(&mut self, text: &str) -> Result<(), Failure> {
        if self.silent {
            return Ok(());
        }
        let mut out = anstream::stdout().lock();
        let clear = if std::mem::take(&mut self.bar) { "\r\x1b[K" } else { "" };
        let broken = |error| Failure::output(&error);
        write!(out, "{clear}{text}").and_then(|()| out.flush()).map_err(broken)
    }

    fn draw_bar(&mut self) -> Result<(), Failure> {
        if self.terminal && !self.open {
            let bar = bar(self.used, self.budget);
            self.print(&bar)?;
            self.bar = true;
        }
        Ok(())
    }

    pub fn heading(
        &mut self,
        scenario: &Scenario,
        models: &[(String, Model)],
        memory: &Memory,
        threads: usize,
    ) -> Result<(), Failure> {
        self.budget = scenario.memory.budget;
        self.together = scenario.turn.is_some();
        let total: u64 = models.iter().map(|(_, model)| model.weight_bytes_per_token()).sum();
        let policy = scenario.memory.policy.name();
        let mut text = format!(
            "{BOLD}{} model{} with {} of weights under one budget of {}{END}: policy {policy}, {}, {}, {threads} thread{}\n",
            models.len(),
            if models.len() == 1 { "" } else { "s" },
            bytes(total),
            bytes(self.budget),
            if scenario.memory.prefetch { "prefetch" } else { "no prefetch" },
            if memory.has_whole_parts() {
                "parts as a whole".to_owned()
            } else {
                format!("blocks of {}", bytes(self.block))
            },
            if threads == 1 { "" } else { "s" },
        );
        let width = |name: &str| name.chars().count();
        let name = models.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
        let status = memory.status();
        let parts = status.iter().flat_map(|model| &model.units);
        self.label = name + 1 + parts.map(|part| width(&part.name)).max().unwrap_or(0);
        for (model, loaded) in models {
            let path = loaded.file().path().display().to_string();
            let of = |status: &&ModelStatus| status.names.contains(model);
            let parts = status.iter().find(of).map_or(0, |status| status.units.len());
            text += &format!(
                "  {:name$} {:>8} in {} parts  {DIM}{}{END}\n",
                model,
                bytes(loaded.weight_bytes_per_token()),
                parts,
                printable(&path, false)
            );
        }
        self.print(&text)
    }

    /// A query is about to be submitted.
    pub fn query(&mut self, i: usize, n: usize, model: &str, text: &str) -> Result<(), Failure> {
        self.switching = true;
        if !self.together {
            self.passes.clear();
        }
        let text = printable(text, false);
        self.print(&format!("\n{BOLD}{} of {n}: {model}{END} \"{text}\"\n", i + 1))?;
        self.draw_bar()
    }

    /// It ends in the middle of something: what comes next begins a line of its own.
    pub fn broken_off(&mut self) -> Result<(), Failure> {
        let end = if std::mem::take(&mut self.open) { "\n" } else { "" };
        if self.bar || !end.is_empty() { self.print(end) } else { Ok(()) }
    }

    /// A piece of an answer.
    pub fn text(&mut self, text: &str, memory: &Memory) -> Result<(), Failure> {
        if std::mem::take(&mut self.switching) {
            self.used = memory.books().used().0;
            let bar = bar(self.used, self.budget);
            self.print(&format!("  {bar}\n"))?;
            self.open = true;
            let text = text.trim_start();
            return self.print(&printable(text, true));
        }
        self.print(&printable(text, true))
    }

    /// An answer is whole.
    pub fn answered(
        &mut self,
        model: &str,
        outcome: &Outcome,
        memory: &Memory,
    ) -> Result<Option<LastPass>, Failure> {
        self.switching = false;
        if std::mem::take(&mut self.open) {
            self.print("\n")?;
        }
        self.used = memory.books().used().0;
        let mut text = String::new();
        // Of queries that are asked at once no answer has the streams for itself.
        if !self.together {
            text += &self.streams();
        }
        let pass = self.last_pass(model, outcome, memory);
        if let Some(pass) = pass.as_ref().filter(|pass| !pass.streamed.is_empty()) {
            text += &format!("  {DIM}last pass {}  (# stayed, + came in partly, . came in){END}\n", pass.map);
        }
        text += &format!("  {DIM}{}{END}\n", measured(outcome));
        self.print(&text)?;
        Ok(pass)
    }

    /// What the last pass for an answer brought in; `None` if it had one pass only, which brought in what was not there.
    fn last_pass(&self, model: &str, outcome: &Outcome, memory: &Memory) -> Option<LastPass> {
        let service = &outcome.service;
        if outcome.generation.stats.steps == 0 {
            return None;
        }
        let status = memory.status().into_iter().find(|m| m.names.iter().any(|name| name == model))?;
        // A model with two names goes by the first in what the memory tells.
        let passes = status.names.iter().find_map(|name| self.passes.get(name));
        let came = service.all.residency.bytes_loaded > service.switch.residency.bytes_loaded;
        let nothing = BTreeMap::new();
        let came = passes.filter(|_| came).map_or(&nothing, Passes::whole);
        Some(LastPass::new(status.units.iter().map(|unit| (unit.name.as_str(), unit.bytes.0)), came))
    }

    /// What came in while all queries were answered at once.
    pub fn answered_together(&mut self) -> Result<(), Failure> {
        let text = self.streams();
        if text.is_empty() { Ok(()) } else { self.print(&format!("\nDuring all answers\n{text}")) }
    }

    fn streams(&mut self) -> String {
        let streamed = std::mem::take(&mut self.streamed);
        if self.events == Events::All { String::new() } else { streams(&streamed, self.label) }
    }

    /// A part came, went, or shrank.
    pub fn change(&mut self, change: &Change) -> Result<(), Failure> {
        self.used = change.used.0;
        let key = (change.model.to_string(), change.index);
        let kept = change.kept.0;
        if matches!(change.to, State::Loading | State::Evicting) {
            self.before.insert(key, kept);
            return Ok(());
        }
        let (what, moved, colour) = match (change.from, change.to) {
            (State::Loading, State::Cold | State::Partial) => ("failed", 0, RED),
            (State::Loading, _) => {
                ("page in", kept - self.before.get(&key).copied().unwrap_or(0).min(kept), GREEN)
            }
            (State::Evicting, _) => {
                ("evict", self.before.get(&key).map_or(0, |b| b.saturating_sub(kept)), RED)
            }
            _ => return Ok(()),
        };
        if what == "page in" {
            self.passes.entry(key.0.clone()).or_default().came(change.index, moved);
        }
        if self.silent {
            self.recorded.push(json!({
                "at_ms": change.at.as_secs_f64() * 1e3,
                "event": what.replace(' ', "_"),
                "model": &*change.model,
                "part": change.part,
                "index": change.index,
                "bytes": moved,
                "kept_bytes": kept,
                "part_bytes": change.bytes.0,
                "us": change.took.as_secs_f64() * 1e6,
                "used_bytes": change.used.0,
            }));
            return Ok(());
        }
        let during_answer = !self.switching;
        if during_answer && what == "page in" {
            let (_, streamed) =
                self.streamed.entry(key).or_insert_with(|| (change.part.clone(), Streamed::default()));
            streamed.loads += 1;
            streamed.bytes += moved;
            streamed.time += change.took;
        }
        let shown = match self.events {
            Events::All => true,
            Events::Switch => !during_answer,
            Events::None => false,
        };
        if !shown {
            return Ok(());
        }
        if std::mem::take(&mut self.open) {
            self.print("\n")?;
        }
        let part = format!("{} {}", change.model, change.part);
        let part = printable(&part, false).into_owned();
        let label = self.label;
        let line = format!(
            "  {colour}{what:8}{END}{part:label$} {:>8}{:>10.1} us\n",
            bytes(moved),
            change.took.as_secs_f64() * 1e6
        );
        self.print(&line)?;
        self.draw_bar()
    }
}

/// `[####    ] 40.0% (4.0 MB / 10.0 MB)`.
pub fn bar(used: u64, budget: u64) -> String {
    const WIDTH: u64 = 32;
    let share = used as f64 / budget.max(1) as f64;
    let full = ((share * WIDTH as f64).round() as usize).min(WIDTH as usize);
    let mega = |n: u64| format!("{:.1} MB", n as f64 / 1e6);
    format!(
        "[{}{}] {:.1}% ({} / {})",
        "#".repeat(full),
        " ".repeat(WIDTH as usize - full),
        share * 100.0,
        mega(used),
        mega(budget)
    )
}

/// The parts that came in again and again while a model answered: the ring. The others stayed.
fn streams(streamed: &BTreeMap<(String, u32), (String, Streamed)>, label: usize) -> String {
    let mut text = String::new();
    for ((model, _), (part, s)) in streamed {
        let each = s.time.as_secs_f64() * 1e6 / f64::from(s.loads.max(1));
        text += &format!(
            "  {DIM}streamed {:label$} {:>8} in {:4} loads of {each:.1} us{END}\n",
            format!("{model} {part}"),
            bytes(s.bytes),
            s.loads
        );
    }
    text
}

/// The measured line of a query.
pub fn measured(outcome: &Outcome) -> String {
    let (service, stats) = (&outcome.service, &outcome.generation.stats);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mut text = format!(
        "switch {:.2} ms, {:.2} ms of it page-in of {}",
        ms(service.first_token),
        ms(service.switch.page_in()),
        bytes(service.switch.residency.bytes_loaded.0),
    );
    let all = &service.all.residency;
    text +=
        &format!(" | {} moved in, hit rate {:.0} %", bytes(all.bytes_loaded.0), 100.0 * hit_rate(outcome));
    if stats.steps > 0 {
        text += &format!(
            " | {} tokens, {:.1} tokens/s, limited by {}",
            stats.tokens,
            stats.tokens_per_s(),
            limit(outcome)
        );
    }
    text
}

/// Uses of parts that were in memory since their last use, among all uses.
pub fn hit_rate(outcome: &Outcome) -> f64 {
    outcome.service.all.residency.hit_rate()
}

/// What took most of the time after the first token.
pub fn limit(outcome: &Outcome) -> String {
    let service = &outcome.service;
    let page_in = service.all.page_in().saturating_sub(service.switch.page_in());
    let time = outcome.generation.stats.generate_time;
    let share = page_in.as_secs_f64() / time.as_secs_f64().max(1e-9);
    let disk = service.all.fill.disk_bytes > service.switch.fill.disk_bytes;
    let what = match (share > 0.5, disk) {
        (true, _) if service.all.uploads.parts > service.switch.uploads.parts => "copying to the device",
        (true, true) => "reading from the disk",
        (true, false) => "copying from the page cache",
        (false, _) => "computing",
    };
    format!("{what} (page-in {:.0} % of the time)", 100.0 * share.min(1.0))
}

#[cfg(test)]
mod tests {
    use super::{LastPass, Passes, bar};

    #[test]
    fn a_pass_is_told_from_the_next_by_the_order_of_its_parts() {
        let mut passes = Passes::default();
        let parts = [("layer 0", 10), ("layer 1", 10), ("head", 5)];
        let map = |passes: &Passes| LastPass::new(parts.into_iter(), passes.whole());
        assert_eq!(map(&passes).map, "###");
        for (index, bytes) in [(0, 10), (1, 10), (2, 5)] {
            passes.came(index, bytes);
        }
        assert_eq!(map(&passes).map, "...");
        // The next pass: the front stayed. What comes in ahead of a third one is not a pass yet.
        passes.came(1, 4);
        passes.came(2, 5);
        passes.came(1, 3);
        let last = map(&passes);
        assert_eq!((last.map.as_str(), &last.resident[..]), ("#+.", &["layer 0".to_owned()][..]));
        assert_eq!(last.streamed, ["layer 1", "head"]);
    }

    #[test]
    fn the_bar_is_as_announced() {
        assert_eq!(bar(4_000_000, 10_000_000), "[#############                   ] 40.0% (4.0 MB / 10.0 MB)");
        assert_eq!(bar(0, 0), "[                                ] 0.0% (0.0 MB / 0.0 MB)");
        assert_eq!(bar(10, 10), "[################################] 100.0% (0.0 MB / 0.0 MB)");
    }
}
