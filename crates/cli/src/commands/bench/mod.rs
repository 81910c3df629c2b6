//! `bench`: how fast models are, in the manner of llama-bench, beside what this machine could do at best.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `subject.rs` | the models, random ones included |
//! | `visit.rs` | one measurement of one row and of its limit |
//! | `row.rs` | medians, shares |
//! | `kernels.rs` | kernels by themselves |
//! | `announced.rs` | the figures of the announcement |
//! | `load.rs` | other work that keeps the processors busy |
//! | `table.rs` | how tables look |

mod announced;
mod kernels;
mod load;
mod row;
pub mod subject;
mod table;
pub mod visit;

use crate::args::{BenchArgs, BenchCommand};
use crate::engine;
use crate::failure::Failure;
use crate::options::{self, mode};
use crate::output::note;
use nexaquant_engine::kernels::{Isa, KvType};
use nexaquant_engine::opencl::GpuOptions;
use nexaquant_engine::{LoadOptions, PoolOptions, synth, topology};
use row::Row;
use serde_json::json;
use subject::{Subject, Wanted};
use table::{number, text};
use visit::{Bench, Cell, Kind};

/// More rows than anybody reads.
const MOST_ROWS: usize = 512;

pub fn bench(args: &BenchArgs) -> Result<(), Failure> {
    match &args.what {
        None => models(args),
        Some(BenchCommand::Kernels(args)) => kernels::kernels(args),
        Some(BenchCommand::Announced(args)) => announced::announced(args),
    }
}

fn models(args: &BenchArgs) -> Result<(), Failure> {
    let load = LoadOptions { activations: mode(args.activations), isa: None };
    let kinds: Vec<Kind> = args
        .prompt
        .iter()
        .map(|&n| Kind::Prompt(n as usize))
        .chain(args.generate.iter().map(|&n| Kind::Answer(n as usize)))
        .filter(|kind| kind.tokens() > 0)
        .collect();
    let names: Vec<&str> =
        if args.models.is_empty() { vec!["alpha"] } else { args.models.iter().map(String::as_str).collect() };
    let engine = options::Engine {
        load,
        pool: PoolOptions { threads: None, pin: !args.no_pin },
        context: None,
        kv: KvType::F16,
        batch: args.batch.into(),
        budget: args.budget,
        device: args.device.clone(),
        gpu: GpuOptions::default(),
        gpu_layers: None,
    };
    let gpu = engine::gpu(&engine)?;
    // Before a pool pins this thread.
    let (parallelism, default) = (topology().parallelism, topology().default_threads());
    let threads: Vec<Option<usize>> = match (&gpu, &args.threads[..]) {
        (None, []) => vec![Some(default)],
        (None, some) => some.iter().map(|&n| Some(n.into())).collect(),
        (Some(_), []) => vec![None],
        (Some(gpu), [_, ..]) => {
            let text = "rows of a device have no threads; leave one of --threads and --device out";
            return Err(Failure::Input(format!("--threads with --device {}: {text}", gpu.found().name)));
        }
    };
    let count = names.len().saturating_mul(threads.len() * args.kv.len() * kinds.len());
    if count == 0 {
        return Err(Failure::input("nothing to measure: both -p and -n are 0; give one of them a length"));
    }
    if count > MOST_ROWS {
        let text =
            format!("{count} rows are too many: at most {MOST_ROWS} of models x threads x kv x lengths");
        return Err(Failure::Input(text));
    }
    if let Some(n) = threads.iter().flatten().find(|&&n| n > parallelism) {
        note("warning: ", &format!("{n} threads share {parallelism} processors; fewer would be faster"));
    }

    let subjects = subjects(&names, args.format.as_deref(), load)?;
    let cells = subjects.iter().flat_map(|subject| {
        let (threads, kinds) = (&threads, &kinds);
        args.kv.iter().flat_map(move |&kv| {
            threads
                .iter()
                .flat_map(move |&threads| kinds.iter().map(move |&kind| Cell { subject, threads, kv, kind }))
        })
    });
    let mut rows: Vec<Row<'_>> = cells.map(Row::new).collect();
    for row in &rows {
        fits(row.cell())?;
    }
    let bench = Bench::new(engine, gpu, &subjects)?;
    for _ in 0..args.repeat {
        for row in &mut rows {
            let found = bench.visit(row.cell())?;
            row.add(found);
        }
    }
    let columns = [
        text("model"),
        text("kv"),
        number("threads"),
        text("test"),
        number("tokens/s"),
        number("min - max"),
        number("does"),
        number("could"),
        text("unit"),
        number("share"),
    ];
    let device = bench.gpu.as_ref().map(|gpu| gpu.found().name.as_str());
    let lines: Vec<Vec<String>> = rows.iter().map(|row| row.text(device)).collect();
    table::print(args.output, &columns, &lines, || {
        json!({
            "isa": Isa::detect().ok().map(Isa::name),
            "device": device,
            "repeats": args.repeat,
            "batch": args.batch,
            "budget_bytes": args.budget,
            "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
        })
    })
}

/// Finds all before it loads or writes any.
fn subjects(names: &[&str], format: Option<&str>, load: LoadOptions) -> Result<Vec<Subject>, Failure> {
    let bad = |text: &str| Failure::Input(format!("--format: {text}"));
    let ty = synth::format(format.unwrap_or("TQ2_0")).map_err(|error| bad(&error.to_string()))?;
    let wanted: Vec<Wanted> = names.iter().map(|name| Wanted::find(name)).collect::<Result<_, _>>()?;
    if format.is_some() && !wanted.iter().any(|wanted| matches!(wanted, Wanted::Random(_))) {
        return Err(bad("it is of random models, and none is asked for; a file has the formats it has"));
    }
    let load = |(name, wanted): (&&str, Wanted)| Subject::load(name, wanted, ty, load);
    let mut subjects: Vec<Subject> = names.iter().zip(wanted).map(load).collect::<Result<_, _>>()?;
    // Files of one name in several folders are told apart by all of it.
    let short: Vec<String> = subjects.iter().map(|subject| subject.name.clone()).collect();
    for ((subject, name), short_name) in subjects.iter_mut().zip(names).zip(&short) {
        if subject.source.is_some() && short.iter().filter(|other| *other == short_name).count() > 1 {
            (*name).clone_into(&mut subject.name);
        }
    }
    Ok(subjects)
}

/// Whether the tokens of a row have room in the context the model was made for.
fn fits(cell: &Cell<'_>) -> Result<(), Failure> {
    let model = &cell.subject.model;
    let made_for = model.architecture().hparams.context_length;
    let (flag, needed) = (if matches!(cell.kind, Kind::Prompt(_)) { "-p" } else { "-n" }, cell.needed()?);
    if needed <= made_for {
        return Ok(());
    }
    Err(Failure::Input(format!(
        "{flag} {}: {} was made for {made_for} positions, and that needs {needed}; give a smaller number",
        cell.kind.tokens(),
        cell.subject.name
    )))
}
