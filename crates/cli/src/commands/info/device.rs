//! OpenCL devices: what was found, what is missing, and what one does at best.

use crate::failure::Failure;
use crate::output::{bytes, table};
use nexaquant_engine::opencl::{Choice, Found, Gpu, GpuOptions, Rates, advice, choose, find};
use serde_json::{Value, json};

/// A device that was measured.
pub struct Measured {
    name: String,
    rates: Rates,
}

/// Measures the device that is meant, unless that is the CPU.
pub fn measure(word: &str) -> Result<Option<Measured>, Failure> {
    match choose(word).map_err(|error| Failure::Input(format!("--device: {error}")))? {
        Choice::Cpu(_) => Ok(None),
        Choice::Device(found) => {
            let gpu = Gpu::open(&found, GpuOptions::default()).map_err(Failure::input)?;
            let rates = gpu.measure().map_err(Failure::input)?;
            Ok(Some(Measured { name: found.name.clone(), rates }))
        }
    }
}

/// Extensions that matter here.
const WANTED: [&str; 5] = [
    "cl_khr_integer_dot_product",
    "cl_khr_subgroups",
    "cl_intel_required_subgroup_size",
    "cl_khr_subgroup_shuffle",
    "cl_nv_device_attribute_query",
];

fn extensions(found: &Found) -> Vec<&'static str> {
    WANTED.into_iter().filter(|e| found.has(e)).collect()
}

pub fn as_text(measured: Option<&Measured>) -> String {
    let mut text = "\nOpenCL devices\n".to_owned();
    match find() {
        Err(error) => text += &format!("  none: {error}\n"),
        Ok(list) => {
            let mut rows = Vec::new();
            for d in &list {
                let kind = if d.gpu { "" } else { " (computes on the CPU; used only if named)" };
                rows.push(vec![d.index.to_string(), format!("{}{kind}", d.name)]);
                rows.push(vec![String::new(), format!("{}, driver {}, {}", d.platform, d.driver, d.version)]);
                let (memory, piece) = (bytes(d.memory), bytes(d.piece));
                let units = format!("{memory} of memory, {piece} in one piece, {} compute units", d.units);
                rows.push(vec![String::new(), units]);
                let some = extensions(d);
                let some = if some.is_empty() { "none".to_owned() } else { some.join(", ") };
                rows.push(vec![String::new(), format!("extensions that help: {some}")]);
            }
            text += &table(&rows, &[], "  ");
            if !list.iter().any(|d| d.gpu) {
                text += &format!("  No GPU among them; to use one, {}.\n", advice());
            }
        }
    }
    let Some(Measured { name, rates }) = measured else { return text };
    text += &format!("\nMeasured now on {name}\n");
    let us = |d: std::time::Duration| format!("{:.2} µs", d.as_secs_f64() * 1e6);
    let row = |name: String, value: String| vec![name, value];
    let mut rows = vec![
        row(
            "reading".into(),
            format!("{:.0} GB/s over {}", rates.read / 1e9, bytes(rates.read_bytes as u64)),
        ),
        row("launch".into(), us(rates.launch)),
        row("launch and finish".into(), us(rates.launch_and_finish)),
        row("work-groups meeting".into(), rates.meeting.map_or_else(|| "not possible there".to_owned(), us)),
    ];
    for p in &rates.page_in {
        let rate = p.bytes as f64 / p.time.as_secs_f64() / 1e9;
        rows.push(row(
            format!("page-in of {}", bytes(p.bytes as u64)),
            format!("{}, {rate:.1} GB/s; the copy alone {}", us(p.time), us(p.copy)),
        ));
    }
    text + &table(&rows, &[], "  ")
}

pub fn as_json(measured: Option<&Measured>) -> Value {
    let us = |d: std::time::Duration| d.as_secs_f64() * 1e6;
    let measured = measured.map(|Measured { name, rates }| {
        let page_in = |p: &nexaquant_engine::opencl::PageIn| json!({ "bytes": p.bytes, "us": us(p.time), "copy_us": us(p.copy) });
        json!({
            "name": name,
            "read_bytes_per_s": rates.read,
            "launch_us": us(rates.launch),
            "launch_and_finish_us": us(rates.launch_and_finish),
            "meeting_us": rates.meeting.map(us),
            "page_in": rates.page_in.iter().map(page_in).collect::<Vec<_>>(),
        })
    });
    match find() {
        Err(error) => {
            json!({ "available": false, "why": error.to_string(), "devices": [], "measured": measured })
        }
        Ok(list) => {
            let device = |d: &Found| {
                json!({
                    "index": d.index, "name": d.name, "gpu": d.gpu, "platform": d.platform, "vendor": d.vendor,
                    "driver": d.driver, "version": d.version, "memory_bytes": d.memory, "piece_bytes": d.piece,
                    "compute_units": d.units, "extensions": d.extensions,
                })
            };
            let devices: Vec<Value> = list.iter().map(device).collect();
            json!({ "available": true, "why": null, "devices": devices, "measured": measured })
        }
    }
}
