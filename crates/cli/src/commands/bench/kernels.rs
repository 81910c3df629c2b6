//! `bench kernels`: every format's kernel by itself, on one thread: one column beside reading as many bytes, eight columns
//! beside multiplying in registers.

use super::table::{self, figure, number, percent, text};
use crate::args::KernelsArgs;
use crate::failure::Failure;
use nexaquant_engine::kernels::{
    Acts, BoundKernel, F32Cols, FORMATS, Format, I8Cols, Isa, Layout, Line, Mode, Ops, Out, Weights,
};
use nexaquant_engine::limits::{Region, median, multiply_add_rate, read_rate};
use nexaquant_engine::{Pool, PoolOptions};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Weights in a row: the width of a model of two billion weights.
pub const COLS: usize = 2560;
/// Rows: a matrix that stays in a core's own cache, and one that comes from further away.
pub const ROWS: [usize; 2] = [640, 20_480];
/// How long a kernel runs in each repeat, at least.
const TIME: Duration = Duration::from_millis(5);

/// A kernel and what it multiplies.
pub struct Cell {
    format: &'static Format,
    kernel: BoundKernel,
    ops: Ops,
    mode: Mode,
    rows: usize,
    columns: usize,
    /// Seconds of a product, and the limit beside it.
    found: Vec<(f64, f64)>,
}

pub fn kernels(args: &KernelsArgs) -> Result<(), Failure> {
    let wanted: Vec<&'static Format> = if args.formats.is_empty() {
        FORMATS.to_vec()
    } else {
        args.formats.iter().map(|name| by_name(name)).collect::<Result<_, _>>()?
    };
    let mut cells = Vec::new();
    for format in wanted {
        for mode in [Mode::Int8, Mode::Float] {
            for isa in Isa::available() {
                let (Some(kernel), Some(ops)) = (BoundKernel::new(format, mode, isa), Ops::new(isa)) else {
                    continue;
                };
                if (mode == Mode::Int8) != kernel.grain().is_some() || !args.wants(isa) {
                    continue;
                }
                for (rows, columns) in ROWS.into_iter().flat_map(|rows| [(rows, 1), (rows, 8)]) {
                    // Eight columns are about arithmetic; of floats there is no limit to stand beside. And what AMX leaves to
                    // AVX-512 is in that row.
                    let own = kernel.multiplies_with(columns) == isa || args.isa.is_some();
                    if own && (columns == 1 || mode == Mode::Int8) {
                        cells.push(Cell { format, kernel, ops, mode, rows, columns, found: Vec::new() });
                    }
                }
            }
        }
    }
    if cells.is_empty() {
        let here: Vec<&str> = Isa::available().map(Isa::name).collect();
        return Err(Failure::Input(format!(
            "--isa: this processor has no such kernels; it has those of {}",
            here.join(", ")
        )));
    }
    let pool = PoolOptions { threads: Some(1), pin: true };
    let mut pool = Pool::new(pool).map_err(|error| crate::engine::threads(&error))?;
    let most = cells.iter().filter_map(|c| c.format.tensor_bytes(c.rows, COLS)).max().unwrap_or(0);
    let region = Region::new(most).map_err(|e| Failure::Internal(format!("{most} bytes of memory: {e}")))?;
    for _ in 0..args.repeat {
        for cell in &mut cells {
            let found = cell.measure(&mut pool, &region)?;
            cell.found.push(found);
        }
    }
    let columns = [
        text("format"),
        text("activations"),
        text("isa"),
        text("shape"),
        number("columns"),
        number("us"),
        number("does"),
        number("could"),
        text("unit"),
        number("share"),
    ];
    let lines: Vec<Vec<String>> = cells.iter().map(Cell::text).collect();
    table::print(
        args.output,
        &columns,
        &lines,
        || json!({ "threads": 1, "repeats": args.repeat, "rows": cells.iter().map(Cell::json).collect::<Vec<_>>() }),
    )
}

fn by_name(name: &str) -> Result<&'static Format, Failure> {
    Format::by_name(&name.to_uppercase()).ok_or_else(|| {
        let names: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
        Failure::Input(format!("there is no format {name:?}; there are {}", names.join(", ")))
    })
}

/// The bytes of a matrix: one random row again and again, since no kernel can tell.
fn repeated_rows(format: &'static Format, rows: usize, cols: usize) -> Vec<u8> {
    let noise = |i: usize| ((i as u32).wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    let row: Vec<f32> = (0..cols)
        // noise(0) is -1, which would round to -2 and give the first block a scale of its own.
        .map(|i| if format.ternary { (noise(i + 1) * 1.5).round() * 0.02 } else { noise(i) * 0.02 })
        .collect();
    let mut bytes = vec![0; format.tensor_bytes(1, cols).unwrap_or(0)];
    format.quantize(&row, cols, &mut bytes);
    let tail = bytes.split_off(bytes.len() - format.tail_bytes);
    let mut all = bytes.repeat(rows);
    all.extend(tail);
    all
}

impl Cell {
    /// The ternary kernel that alpha uses most, for one column.
    pub fn ternary(isa: Isa, rows: usize) -> Option<Self> {
        let (format, mode) = (Format::by_name("TQ2_0")?, Mode::Int8);
        let (kernel, ops) = (BoundKernel::new(format, mode, isa)?, Ops::new(isa)?);
        Some(Self { format, kernel, ops, mode, rows, columns: 1, found: Vec::new() })
    }

    /// Measures `times` times.
    pub fn repeat(&mut self, times: usize) -> Result<(), Failure> {
        let pool = PoolOptions { threads: Some(1), pin: true };
        let mut pool = Pool::new(pool).map_err(|error| crate::engine::threads(&error))?;
        let region = Region::new(self.bytes()).map_err(|error| Failure::Internal(error.to_string()))?;
        for _ in 0..times {
            let found = self.measure(&mut pool, &region)?;
            self.found.push(found);
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.format.tensor_bytes(self.rows, COLS).unwrap_or(0)
    }

    /// Seconds of one product, and the limit in bytes or products a second.
    fn measure(&self, pool: &mut Pool, region: &Region) -> Result<(f64, f64), Failure> {
        let (n, rows) = (self.columns, self.rows);
        let bytes = repeated_rows(self.format, rows, COLS);
        let weights = Weights::new(self.format, &bytes, rows, COLS)
            .map_err(|error| Failure::Internal(error.to_string()))?;
        let x: Vec<f32> = (0..n * COLS).map(|i| (i % 255) as f32 - 127.0).collect();
        let mut lines = Vec::new();
        let acts = if let Some(grain) = self.kernel.grain() {
            let layout = Layout { cols: COLS, grain };
            let each = layout.record_bytes() / 64;
            lines.resize(each * n, Line([0; 64]));
            for (x, record) in x.chunks(COLS).zip(lines.chunks_mut(each)) {
                self.ops.quantize(x, layout, record);
            }
            Acts::I8(I8Cols::new(&lines, layout, n))
        } else {
            Acts::F32(F32Cols::new(&x, COLS, COLS, n))
        };
        let mut out = vec![0f32; n * rows];
        let mut go = || self.kernel.run(&weights, &acts, Out::new(&mut out, rows, 0, rows, n));
        go();
        let (start, mut times) = (Instant::now(), 0);
        while times == 0 || start.elapsed() < TIME {
            go();
            times += 1;
        }
        let seconds = start.elapsed().as_secs_f64() / f64::from(times);
        let limit = if n == 1 {
            read_rate(pool, self.ops, &region.bytes()[..self.bytes()], TIME)
        } else {
            let with = self.kernel.multiplies_with(n);
            multiply_add_rate(pool, Ops::new(with).unwrap_or(self.ops), TIME)
        };
        Ok((seconds, limit))
    }

    /// Seconds; what the kernel does and what the machine could, in 1e9 a second.
    pub fn figures(&self) -> (f64, f64, f64) {
        let seconds = median(self.found.iter().map(|found| found.0).collect());
        let limit = median(self.found.iter().map(|found| found.1).collect());
        let work = if self.columns == 1 { self.bytes() } else { self.rows * COLS * self.columns };
        (seconds, work as f64 / seconds / 1e9, limit / 1e9)
    }

    fn mode(&self) -> &'static str {
        if self.mode == Mode::Int8 { "int8" } else { "float" }
    }

    fn text(&self) -> Vec<String> {
        let (seconds, does, could) = self.figures();
        vec![
            self.format.name.to_owned(),
            self.mode().to_owned(),
            self.kernel.isa().to_string(),
            format!("{} x {COLS}, {}", self.rows, crate::output::bytes(self.bytes() as u64)),
            self.columns.to_string(),
            figure(seconds * 1e6),
            figure(does),
            figure(could),
            if self.columns == 1 { "GB/s" } else { "G products/s" }.to_owned(),
            percent(does / could),
        ]
    }

    fn json(&self) -> Value {
        let (seconds, does, could) = self.figures();
        let mut row = json!({
            "format": self.format.name,
            "activations": self.mode(),
            "isa": self.kernel.isa().name(),
            "rows": self.rows,
            "cols": COLS,
            "bytes": self.bytes(),
            "columns": self.columns,
            "us": seconds * 1e6,
            "fraction": does / could,
        });
        let names = if self.columns == 1 {
            ["gb_per_s", "measured_read_gb_per_s"]
        } else {
            ["gmacs_per_s", "measured_peak_gmacs_per_s"]
        };
        row[names[0]] = json!(does);
        row[names[1]] = json!(could);
        row
    }
}
