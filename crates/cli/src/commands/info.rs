//! `info`: what this machine offers, what of it will be used, and why something will not.

mod device;

use crate::args::InfoArgs;
use crate::engine;
use crate::failure::Failure;
use crate::models::{self, Source};
use crate::output::{self, bytes, table};
use crate::system::{System, missing_features};
use device::Measured;
use nexaquant_engine::kernels::{BoundKernel, FORMATS, Format, ISA_ENV, Isa, Mode};
use nexaquant_engine::limits::{MemoryRates, memory_rates};
use nexaquant_engine::{Pool, PoolOptions, model::spec::ArchSpec, topology};
use serde_json::{Value, json};

pub fn info(args: &InfoArgs) -> Result<(), Failure> {
    let rates = if args.measure { Some(measure(args.threads)?) } else { None };
    let device = args.device.as_deref().map(device::measure).transpose()?.flatten();
    if args.json {
        output::print_json(&as_json(rates.as_ref(), device.as_ref()))
    } else {
        output::print(&as_text(rates.as_ref(), device.as_ref()))
    }
}

fn measure(threads: Option<u16>) -> Result<MemoryRates, Failure> {
    let mut pool = Pool::new(PoolOptions { threads: threads.map(usize::from), ..PoolOptions::default() })
        .map_err(|error| engine::threads(&error))?;
    Ok(memory_rates(&mut pool))
}

/// The same from a process of its own: for one whose own memory is being counted. `None` if that cannot be had.
pub fn measured_elsewhere(threads: Option<usize>) -> Option<MemoryRates> {
    let mut command = std::process::Command::new(std::env::current_exe().ok()?);
    command.args(["info", "--measure", "--json"]);
    if let Some(threads) = threads {
        command.args(["--threads", &threads.to_string()]);
    }
    let output = command.stdin(std::process::Stdio::null()).output().ok()?;
    let found: Value = serde_json::from_slice(&output.stdout).ok()?;
    let rate = |name: &str| found[name].as_f64().filter(|rate| *rate > 0.0);
    Some(MemoryRates {
        copy: rate("memory_copy_bytes_per_s")?,
        read: rate("memory_read_bytes_per_s")?,
        threads: found["measured_threads"].as_u64()? as usize,
    })
}

/// The instruction set in use and why, or why none is.
fn chosen() -> Result<(Isa, String), String> {
    let isa = Isa::detect().map_err(|e| e.to_string())?;
    let overridden = std::env::var_os(ISA_ENV).is_some_and(|v| !v.is_empty());
    let why = if overridden { format!("{ISA_ENV} says so") } else { "the best there is here".to_owned() };
    Ok((isa, why))
}

/// The model of a bundled name, or where it was looked for.
fn bundled(name: &str) -> Result<String, String> {
    let path = |source: Source| match source {
        Source::BuiltIn => "inside this program".to_owned(),
        Source::File(path) => path.display().to_string(),
    };
    models::find_bundled(name, &models::places()).map(path).map_err(|looked| {
        let looked: Vec<String> = looked.iter().map(|p| p.display().to_string()).collect();
        format!(
            "not found in {}",
            if looked.is_empty() { "any folder".to_owned() } else { looked.join(", ") }
        )
    })
}

/// The int8 and float kernels of a format.
fn kernels(format: &'static Format, isa: Isa) -> [Option<String>; 2] {
    let int8 = BoundKernel::new(format, Mode::Int8, isa).filter(|k| k.grain().is_some());
    let float = BoundKernel::new(format, Mode::Float, isa);
    [int8, float].map(|kernel| kernel.map(|k| k.isa().to_string()))
}

fn as_text(rates: Option<&MemoryRates>, device: Option<&Measured>) -> String {
    let system = System::here();
    let row = |name: &str, text: String| vec![name.to_owned(), text];
    let unknown = || "the system does not tell".to_owned();
    let mut text = format!("nexaquant {}\n\nProcessor\n", env!("CARGO_PKG_VERSION"));

    let mut rows = vec![row("name", system.cpu_name().unwrap_or_else(unknown))];
    rows.push(row(
        "instructions",
        match chosen() {
            Ok((isa, why)) => format!("{isa}: {why}"),
            Err(why) => format!("none can be used: {why}"),
        },
    ));
    for isa in Isa::ALL {
        let there = if isa.is_available() {
            "there".to_owned()
        } else {
            format!("not there: {} missing", missing_features(isa).join(", "))
        };
        rows.push(row("", format!("{:8}{there}", isa.name())));
    }
    let caches: Vec<String> = system
        .caches()
        .iter()
        .map(|c| {
            let times = if c.instances > 1 { format!("{} x ", c.instances) } else { String::new() };
            format!("{} {times}{}", c.name, binary(c.bytes))
        })
        .collect();
    rows.push(row("caches", if caches.is_empty() { unknown() } else { caches.join(", ") }));
    let t = topology();
    let cores = if t.cores.is_empty() { unknown() } else { format!("{:?}", t.cores) };
    rows.push(row(
        "cores",
        format!("{cores} (one processor of each core), {} processors in all", t.processors),
    ));
    let limits = system.limits();
    rows.push(row(
        "quota",
        match limits.processors {
            Some(n) => format!("{n:.2} processors by control group"),
            None => "none".to_owned(),
        },
    ));
    rows.push(row("threads", format!("{} would be used", t.default_threads())));
    text += &table(&rows, &[], "  ");

    text += "\nMemory\n";
    let mut rows = vec![row(
        "memory",
        match system.memory() {
            Some((total, free)) => format!("{}, {} of it available", bytes(total), bytes(free)),
            None => unknown(),
        },
    )];
    rows.push(row(
        "limit",
        match limits.bytes {
            Some(n) => format!("{} by control group", bytes(n)),
            None => "none".to_owned(),
        },
    ));
    if let Some(rates) = rates {
        let speed =
            |what: f64| format!("{:.1} GB/s with {} threads, measured now", what / 1e9, rates.threads);
        rows.push(row("copying", speed(rates.copy)));
        rows.push(row("reading", speed(rates.read)));
    }
    text += &table(&rows, &[], "  ");
    text += &device::as_text(device);

    text += "\nModels\n";
    let found = |name: &&str| row(name, bundled(name).unwrap_or_else(|why| why));
    text += &table(&models::BUNDLED.iter().map(found).collect::<Vec<_>>(), &[], "  ");
    if let Some(dir) = models::data_dir() {
        text += &format!("  More can be put into {}\n", dir.join("models").display());
    }

    text += "\nFormats\n";
    let header = ["format", "bits/weight", "block", "ternary", "int8 kernel", "float kernel"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let isa = chosen().map_or(Isa::Scalar, |(isa, _)| isa);
    for format in FORMATS {
        let ternary = if format.ternary { "yes" } else { "" };
        let [int8, float] = kernels(format, isa).map(|k| k.unwrap_or_else(|| "none".to_owned()));
        let bits = format!("{:.4}", format.bits_per_weight());
        rows.push(vec![
            format.name.to_owned(),
            bits,
            format.block.to_string(),
            ternary.to_owned(),
            int8,
            float,
        ]);
    }
    text += &table(&rows, &[1, 2], "  ");

    text += &format!("\nArchitectures\n  {}\n", ArchSpec::all_names().collect::<Vec<_>>().join(", "));
    text
}

fn as_json(rates: Option<&MemoryRates>, device: Option<&Measured>) -> Value {
    let system = System::here();
    let t = topology();
    let limits = system.limits();
    let chosen = chosen();
    let isa = chosen.as_ref().map_or(Isa::Scalar, |(isa, _)| *isa);
    let instruction_set = |isa: Isa| json!({ "name": isa.name(), "available": isa.is_available(), "missing": missing_features(isa) });
    let format = |format: &&'static Format| {
        let [int8, float] = kernels(format, isa);
        json!({
            "name": format.name,
            "bits_per_weight": format.bits_per_weight(),
            "block": format.block,
            "ternary": format.ternary,
            "int8_kernel": int8,
            "float_kernel": float,
        })
    };
    let model = |name: &&str| match models::find_bundled(name, &models::places()) {
        Ok(Source::BuiltIn) => json!({ "name": name, "built_in": true, "path": null }),
        Ok(Source::File(path)) => json!({ "name": name, "built_in": false, "path": path }),
        Err(looked) => json!({ "name": name, "built_in": false, "path": null, "looked_in": looked }),
    };
    let cache =
        |c: &crate::system::Cache| json!({ "name": c.name, "bytes": c.bytes, "instances": c.instances });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cpu": system.cpu_name(),
        "isa": chosen.as_ref().ok().map(|(isa, _)| isa.name()),
        "isa_why": match &chosen { Ok((_, why)) | Err(why) => why },
        "instruction_sets": Isa::ALL.map(instruction_set),
        "caches": system.caches().iter().map(cache).collect::<Vec<_>>(),
        "cores": t.cores,
        "processors": t.processors,
        "threads": t.default_threads(),
        "quota_processors": limits.processors,
        "memory_bytes": system.memory().map(|m| m.0),
        "memory_available_bytes": system.memory().map(|m| m.1),
        "memory_limit_bytes": limits.bytes,
        "memory_copy_bytes_per_s": rates.map(|rates| rates.copy),
        "memory_read_bytes_per_s": rates.map(|rates| rates.read),
        "measured_threads": rates.map(|rates| rates.threads),
        "opencl": device::as_json(device),
        "models": models::BUNDLED.iter().map(model).collect::<Vec<_>>(),
        "formats": FORMATS.iter().map(format).collect::<Vec<_>>(),
        "architectures": ArchSpec::all_names().collect::<Vec<_>>(),
    })
}

/// A cache size, which people know in powers of two.
fn binary(n: u64) -> String {
    if n >= 1 << 20 && n.is_multiple_of(1 << 20) {
        format!("{} MiB", n >> 20)
    } else {
        format!("{} KiB", n >> 10)
    }
}
