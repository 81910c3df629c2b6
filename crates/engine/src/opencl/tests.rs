//! Products of every format on a device, alone: against the CPU's kernels, on records that both have quantized.

use super::compile::{OnDevice, PLANES, record_bytes};
use super::formats::{STORED, Stored, grain_code};
use super::gpu::{Gpu, GpuOptions, Numbers, Runner};
use super::phase::{Do, NONE, PRODUCT, Phase, product, word};
use super::source::Traits;
use nexaquant_kernels::{
    Acts, BoundKernel, F32Cols, FORMATS, Format, I8Cols, Isa, Layout, Line, Mode, Ops, Out, Weights,
};
use nexaquant_opencl::{Kernel, find};
use std::collections::{BTreeSet, HashMap};
use std::io::Write;

/// The device, in the sizes that the environment asks for: a simulator wants real work-groups.
fn gpu() -> Option<Gpu> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let (group, lanes) = (number("NEXAQUANT_TEST_GROUP"), number("NEXAQUANT_TEST_LANES"));
    match find() {
        Ok(found) => {
            let options =
                GpuOptions { group, lanes, groups: 3, no_cache: group > 0, ..GpuOptions::default() };
            Some(Gpu::open(&found[0], options).unwrap())
        }
        Err(error) => {
            std::io::stderr().write_all(format!("SKIPPED opencl: {error}\n").as_bytes()).unwrap();
            None
        }
    }
}

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// `[n][rows]` of the CPU, and the records that went into it.
fn on_cpu(
    format: &'static Format,
    mode: Mode,
    bytes: &[u8],
    shape: (usize, usize, usize),
    x: &[f32],
) -> Vec<f32> {
    let (rows, cols, n) = shape;
    let isa = Isa::Scalar;
    let (kernel, ops) = (BoundKernel::new(format, mode, isa).unwrap(), Ops::new(isa).unwrap());
    let weights = Weights::new(format, bytes, rows, cols).unwrap();
    let mut y = vec![0f32; n * rows];
    if let Some(grain) = kernel.grain() {
        let layout = Layout { cols, grain };
        let lines = layout.record_bytes() / 64;
        let mut records = vec![Line([0; 64]); n * lines];
        for (x, record) in x.chunks_exact(cols).zip(records.chunks_exact_mut(lines)) {
            ops.quantize(x, layout, record);
        }
        kernel.run(&weights, &Acts::I8(I8Cols::new(&records, layout, n)), Out::new(&mut y, rows, 0, rows, n));
    } else {
        kernel.run(&weights, &Acts::F32(F32Cols::new(x, cols, cols, n)), Out::new(&mut y, rows, 0, rows, n));
    }
    y
}

/// The same on the device: one phase for one column and float activations, else two.
fn on_device(
    gpu: &Gpu,
    kernels: &mut HashMap<(u32, bool), Kernel>,
    format: &'static Format,
    mode: Mode,
    bytes: &[u8],
    shape: (usize, usize, usize),
    x: &[f32],
) -> Vec<f32> {
    let (rows, cols, n) = shape;
    let weights = Weights::new(format, bytes, rows, cols).unwrap();
    let body = &bytes[..rows * format.row_bytes(cols).unwrap()];
    let stored = Stored::choose(format, body, cols).unwrap();
    let grain = BoundKernel::new(format, mode, Isa::Scalar).unwrap().grain();
    let m = OnDevice { stored, rows, cols, scale: weights.scale(), grain };
    let mut packed = vec![0; stored.planes(rows, cols).last().copied().unwrap()];
    stored.pack(format, body, rows, cols, &mut packed);

    // Lines: phases, addresses, inputs, results, records, the matrix; between them words that nobody may touch.
    let record = grain.map_or(0, |grain| record_bytes(cols, grain));
    let sizes = [4096, 16, x.len() * 4, n * rows * 4, n * record, packed.len()];
    let mut at = [0; 6];
    let mut end = 0;
    for (at, size) in at.iter_mut().zip(sizes) {
        *at = end / 16;
        end += size.next_multiple_of(64) + 64;
    }
    let words = |phase: Phase| {
        let planes = stored.planes(rows, cols);
        // Both orders of values, where there are two.
        let flags = if stored.has_planes() && rows > 1 { PLANES } else { 0 };
        let mut phase = phase
            .set(word::FLAGS, flags)
            .set(word::COLS, cols as u32)
            .set(word::GRAIN, grain_code(grain))
            .place(word::IN, [at[2] as u32, 0, cols as u32])
            .set(word::REC, at[4] as u32)
            .set(word::REC_STRIDE, record as u32);
        if phase.kind() != Do::Quantize as u32 {
            phase = phase
                .set(word::NPROD, 1)
                .set(word::UNITS, rows.div_ceil(gpu.shape.rows) as u32)
                .of(0, product::FMT, m.code())
                .of(0, product::MAT, 0)
                .of(0, product::ROWS, rows as u32)
                .of(0, product::SCALE, 1f32.to_bits())
                .of(0, product::TENSOR, m.scale.to_bits())
                .place(PRODUCT + product::OUT, [at[3] as u32, 0, rows as u32]);
            for (j, plane) in planes[1..planes.len() - 1].iter().enumerate() {
                phase = phase.of(0, product::PLANES + j, (plane / 16) as u32);
            }
        }
        phase
    };
    let phases = if grain.is_none() {
        vec![words(Phase::new(Do::MatMul))]
    } else if n == 1 {
        vec![words(Phase::new(Do::MatVec))]
    } else {
        vec![words(Phase::new(Do::Quantize)), words(Phase::new(Do::MatMul))]
    };
    let mut image = vec![0xaa; end];
    let mut put = |line: usize, bytes: &[u8]| image[line * 16..][..bytes.len()].copy_from_slice(bytes);
    put(at[0], &Phase::bytes(&phases));
    put(at[1], &(at[5] as u32).to_le_bytes());
    put(at[2], &x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
    put(at[5], &packed);

    let kernel = &*kernels.entry((m.code(), n == 1)).or_insert_with(|| {
        let codes = BTreeSet::from([m.code()]);
        let grains = grain.map_or(0, |grain| 1 << grain_code(Some(grain)));
        gpu.kernel(&Traits { codes, grains, kv: 1, head_dim: 64 }, n == 1).unwrap()
    });
    let (queue, arena, sync) =
        (gpu.device.queue().unwrap(), gpu.device.buffer(end).unwrap(), gpu.device.buffer(64).unwrap());
    queue.zero(&sync, 0..64).unwrap();
    queue.write(&arena, 0, &image).unwrap();
    let local = record + cols.next_multiple_of(256) / 4 + 64;
    let (table, lines) = (at[0] as u32, at[1] as u32);
    let runner =
        Runner { gpu, queue: &queue, kernel, arena: &arena, sync: &sync, local, table, lines, pages: 0 };
    let kinds: Vec<u32> = phases.iter().map(Phase::kind).collect();
    let numbers = Numbers { pos: 0, tokens: n as u32, token: NONE, outputs: (0, n as u32), splits: 1 };
    runner.run(0..phases.len(), &kinds, numbers, &[]).unwrap();
    let mut after = vec![0; end];
    queue.read(&arena, 0, &mut after).unwrap();
    // What was not to be written is what it was.
    for (k, size) in sizes.into_iter().enumerate() {
        let (from, to) = (at[k] * 16, at.get(k + 1).map_or(end, |at| at * 16));
        let written = if k == 3 || k == 4 { size } else { 0 };
        assert!(
            after[from + written..to] == image[from + written..to],
            "{} wrote beside region {k}",
            format.name
        );
    }
    after[at[3] * 16..][..n * rows * 4]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

#[test]
fn every_format_has_a_stored_form() {
    for format in FORMATS {
        let (cols, rows) = (256, 3);
        let bytes = vec![0; rows * format.row_bytes(cols).unwrap()];
        assert!(Stored::choose(format, &bytes, cols).is_some(), "{}", format.name);
    }
    let codes: BTreeSet<u32> = STORED.iter().map(|s| s.code).collect();
    assert_eq!(codes.len(), STORED.len());
}

#[test]
fn products_of_every_format_are_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let mut kernels = HashMap::new();
    for format in FORMATS {
        for mode in [Mode::Int8, Mode::Float] {
            for (rows, blocks, n) in [(1, 1, 1), (7, 3, 1), (5, 2, 3), (9, 1, 9)] {
                let cols =
                    if format.block == 1 { 13 * blocks + 8 * (n % 2) } else { format.block.max(64) * blocks };
                for one_scale in [true, false] {
                    if !one_scale && !format.ternary {
                        continue;
                    }
                    let mut w = random(rows * cols, 7 + rows as u64);
                    if format.ternary {
                        for (i, w) in w.iter_mut().enumerate() {
                            let scale = if one_scale { 0.5 } else { 0.5 + (i / 256) as f32 };
                            *w = (*w * 1.5).round() * scale;
                        }
                    }
                    let mut bytes = vec![0; format.tensor_bytes(rows, cols).unwrap()];
                    format.quantize(&w, cols, &mut bytes);
                    let x = random(n * cols, 3);
                    let expected = on_cpu(format, mode, &bytes, (rows, cols, n), &x);
                    let got = on_device(&gpu, &mut kernels, format, mode, &bytes, (rows, cols, n), &x);
                    // Sums of at most `cols` products below 4 in another order; those of ternary rows are integers.
                    let exact = format.ternary && mode == Mode::Int8 && (one_scale || format.name == "I2_S");
                    let bound = if exact { 0.0 } else { 4.0 * cols as f32 * f32::EPSILON };
                    for (i, (a, b)) in got.iter().zip(&expected).enumerate() {
                        let near = (a - b).abs() <= bound;
                        assert!(
                            near,
                            "{} {mode:?} {rows} x {cols} x {n}, {one_scale}: {i}: {a} for {b}",
                            format.name
                        );
                    }
                }
            }
        }
    }
}
