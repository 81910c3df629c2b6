//! `/metrics` in Prometheus' text format: own names, and those of vLLM that autoscalers read.

use crate::app::App;
use crate::health::waiting;
use crate::metrics::{BOUNDS, Ended, Histogram, OfModel};
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use nexaquant_engine::m3::{Class, ModelStatus};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The text.
pub async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let looked = app.clone();
    let status =
        tokio::task::spawn_blocking(move || looked.engine.memory().map(nexaquant_engine::m3::Memory::status));
    let status = status.await.ok().flatten().unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text(&app, &status))
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        self.value(name, "", value);
    }

    fn histogram(&mut self, name: &str, label: &str, histogram: &Histogram) {
        let (counts, sum) = histogram.read();
        let bounds = BOUNDS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&counts) {
            let _ = writeln!(self.0, "{name}_bucket{{{label},le=\"{bound}\"}} {count}");
        }
        let count = counts.last().copied().unwrap_or_default();
        let _ = writeln!(self.0, "{name}_sum{{{label}}} {sum}\n{name}_count{{{label}}} {count}");
    }
}

type Counter = fn(&OfModel) -> u64;
const COUNTERS: [(&str, Option<&str>, &str, Counter); 3] = [
    ("nexaquant_prompt_tokens_total", Some("vllm:prompt_tokens_total"), "Prompt tokens.", |m| {
        m.prompt_tokens.load(Relaxed)
    }),
    ("nexaquant_cached_prompt_tokens_total", None, "Prompt tokens whose keys and values were there.", |m| {
        m.cached_tokens.load(Relaxed)
    }),
    ("nexaquant_generation_tokens_total", Some("vllm:generation_tokens_total"), "Tokens of answers.", |m| {
        m.answer_tokens.load(Relaxed)
    }),
];
type Times = fn(&OfModel) -> &Histogram;
const TIMES: [(&str, &[&str], &str, Times); 5] = [
    (
        "nexaquant_time_to_first_token_seconds",
        &["vllm:time_to_first_token_seconds"],
        "From arrival to the first text.",
        |m| &m.first_token,
    ),
    (
        "nexaquant_inter_token_seconds",
        &["vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"],
        "Between two pieces of text.",
        |m| &m.inter_token,
    ),
    ("nexaquant_request_seconds", &["vllm:e2e_request_latency_seconds"], "From arrival to the end.", |m| {
        &m.request
    }),
    (
        "nexaquant_queue_seconds",
        &["vllm:request_queue_time_seconds"],
        "From arrival to the first pass.",
        |m| &m.queued,
    ),
    ("nexaquant_switch_seconds", &[], "What bringing weights in cost before the first token.", |m| &m.switch),
];

fn text(app: &App, status: &[ModelStatus]) -> String {
    let mut page = Page::default();
    let models = app.metrics.models();
    let label = |name: &str| format!("model_name={name:?}");
    let each = |page: &mut Page, write: &dyn Fn(&mut Page, &str, &Arc<OfModel>)| {
        for (name, of) in &models {
            write(page, &label(name), of);
        }
    };
    page.head("nexaquant_requests_total", "counter", "Requests that ended, and how.");
    each(&mut page, &|page, label, of| {
        for (how, word) in Ended::ALL {
            let labels = format!("{{{label},finished_reason=\"{word}\"}}");
            page.value("nexaquant_requests_total", &labels, of.ended[how as usize].load(Relaxed));
        }
    });
    page.head("vllm:request_success_total", "counter", "Requests that ended well.");
    each(&mut page, &|page, label, of| {
        for (how, word) in &Ended::ALL[..2] {
            let labels = format!("{{{label},finished_reason=\"{word}\"}}");
            page.value("vllm:request_success_total", &labels, of.ended[*how as usize].load(Relaxed));
        }
    });
    for (name, alias, help, read) in COUNTERS {
        for name in [Some(name), alias].into_iter().flatten() {
            page.head(name, "counter", help);
            each(&mut page, &|page, label, of| page.value(name, &format!("{{{label}}}"), read(of)));
        }
    }
    for (name, aliases, help, read) in TIMES {
        for name in [name].iter().chain(aliases) {
            page.head(name, "histogram", help);
            each(&mut page, &|page, label, of| page.histogram(name, label, read(of)));
        }
    }
    page.one(
        "nexaquant_requests_rejected_total",
        "counter",
        "Requests that found the queue full.",
        app.metrics.rejected.load(Relaxed),
    );
    for name in ["nexaquant_requests_running", "vllm:num_requests_running"] {
        page.one(name, "gauge", "Requests that compute by turns.", app.queue.running());
    }
    for name in ["nexaquant_requests_waiting", "vllm:num_requests_waiting"] {
        page.one(name, "gauge", "Requests that wait.", waiting(app));
    }
    page.one("nexaquant_uptime_seconds", "gauge", "Since the start.", app.started.elapsed().as_secs());
    memory(app, status, &mut page);
    page.0
}

fn memory(app: &App, status: &[ModelStatus], page: &mut Page) {
    let Some(memory) = app.engine.memory() else { return };
    let (books, stats) = (memory.books(), memory.stats());
    page.one("nexaquant_budget_bytes", "gauge", "The budget.", books.budget.0);
    page.one("nexaquant_used_bytes", "gauge", "Given out of the budget.", books.used().0);
    page.one(
        "nexaquant_used_bytes_high_water",
        "gauge",
        "The most that was given out at once.",
        books.high_water.0,
    );
    page.head("nexaquant_class_bytes", "gauge", "Given out, by what for.");
    for (class, word) in [
        (Class::Weights, "weights"),
        (Class::Kv, "kv"),
        (Class::Scratch, "scratch"),
        (Class::Staging, "staging"),
    ] {
        page.value("nexaquant_class_bytes", &format!("{{class=\"{word}\"}}"), books.of(class).0);
    }
    let share = books.of(Class::Kv).0 as f64 / books.budget.0.max(1) as f64;
    for name in ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"] {
        page.one(name, "gauge", "Share of the budget that keys and values take, 0 to 1.", share);
    }
    page.head("nexaquant_resident_bytes", "gauge", "Weights in memory.");
    for model in status {
        let resident: u64 = model.units.iter().map(|unit| unit.kept.0).sum();
        for name in &model.names {
            page.value("nexaquant_resident_bytes", &format!("{{model_name={name:?}}}"), resident);
        }
    }
    page.head("nexaquant_unit_acquires_total", "counter", "Uses of units, by how they were found.");
    for (word, n) in
        [("hit", stats.hits), ("prefetched", stats.prefetched), ("late", stats.late), ("miss", stats.misses)]
    {
        page.value("nexaquant_unit_acquires_total", &format!("{{found=\"{word}\"}}"), n);
    }
    page.one("nexaquant_loads_total", "counter", "Loads of units.", stats.loads);
    page.one("nexaquant_loaded_bytes_total", "counter", "Bytes brought in.", stats.bytes_loaded.0);
    page.one("nexaquant_evictions_total", "counter", "Evictions.", stats.evictions);
    page.one("nexaquant_evicted_bytes_total", "counter", "Bytes evicted.", stats.bytes_evicted.0);
    page.one(
        "nexaquant_stall_seconds_total",
        "counter",
        "Time that passes waited for units.",
        stats.stall.as_secs_f64(),
    );
}
