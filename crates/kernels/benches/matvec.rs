//! Every format, on every instruction set present, as a product with one column and with eight.
//!
//! Not a benchmark of a model: one thread, one matrix, warm caches. Times are the thread's own CPU time, so
//! that neighbours on a shared machine count only through the caches. `cargo bench -p nexaquant-kernels -- TQ2_0`
//! runs the lines whose names contain that. The figure to read is GiB of weights a second.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nexaquant_kernels::{
    Acts, BoundKernel, F32Cols, FORMATS, I8Cols, Isa, Layout, Line, Mode, Ops, Out, Weights,
};
use std::time::Duration;

/// (rows, columns): the attention output of a 2-billion-parameter model.
const SHAPE: (usize, usize) = (2560, 2560);

/// CPU time of this thread so far.
fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn matvec(criterion: &mut Criterion) {
    let (rows, cols) = SHAPE;
    for &format in FORMATS {
        let noise = |i: usize| ((i as u32).wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        // One row, again and again: quantizing whole matrices would take longer than the kernels.
        let row: Vec<f32> = (0..cols)
            // noise(0) is -1, which would round to -2 and give the first block a scale of its own.
            .map(|i| if format.ternary { (noise(i + 1) * 1.5).round() * 0.02 } else { noise(i) * 0.02 })
            .collect();
        let (one, all) = (format.tensor_bytes(1, cols), format.tensor_bytes(rows, cols));
        let (Some(one), Some(all)) = (one, all) else { continue };
        let mut bytes = vec![0; one];
        format.quantize(&row, cols, &mut bytes);
        let tail = bytes.split_off(one - format.tail_bytes);
        bytes = bytes.repeat(rows);
        bytes.extend(tail);
        assert_eq!(bytes.len(), all);
        let Ok(weights) = Weights::new(format, &bytes, rows, cols) else { continue };
        for (mode, n) in [(Mode::Int8, 1), (Mode::Int8, 8), (Mode::Float, 1)] {
            let mut group = criterion.benchmark_group(format!("{}/{mode:?}/{n}", format.name));
            group.throughput(Throughput::Bytes(bytes.len() as u64));
            for isa in Isa::available() {
                let (Some(kernel), Some(ops)) = (BoundKernel::new(format, mode, isa), Ops::new(isa)) else {
                    continue;
                };
                if mode == Mode::Int8 && kernel.grain().is_none() {
                    continue;
                }
                let x: Vec<f32> = (0..n * cols).map(|i| noise(i + 7)).collect();
                let mut lines = Vec::new();
                let acts = if let Some(grain) = kernel.grain() {
                    let layout = Layout { cols, grain };
                    let each = layout.record_bytes() / 64;
                    lines.resize(each * n, Line([0; 64]));
                    for (x, record) in x.chunks(cols).zip(lines.chunks_mut(each)) {
                        ops.quantize(x, layout, record);
                    }
                    Acts::I8(I8Cols::new(&lines, layout, n))
                } else {
                    Acts::F32(F32Cols::new(&x, cols, cols, n))
                };
                let mut out = vec![0f32; n * rows];
                group.bench_function(isa.name(), |b| {
                    b.iter_custom(|times| {
                        let start = cpu_time();
                        for _ in 0..times {
                            kernel.run(&weights, &acts, Out::new(&mut out, rows, 0, rows, n));
                        }
                        cpu_time().saturating_sub(start)
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(20))
        .measurement_time(Duration::from_millis(100))
        .without_plots();
    targets = matvec
}
criterion_main!(benches);
