//! Products of every format on a device, alone: against the CPU's kernels, on records that both have quantized.

#[path = "../../tests/device/mod.rs"]
mod device;

use super::compile::{AS_WORDS, CHOICE_LOCAL, OnDevice, PLANES, TILE_ROWS, choice, record_bytes};
use super::formats::{STORED, Stored, grain_code};
use super::gpu::{Gpu, GpuOptions, Numbers, Runner};
use super::layout::{MOST_BEST, each_best};
use super::phase::{Do, NONE, PRODUCT, Phase, product, word};
use super::source::Traits;
use crate::m3::{Memory, MemoryOptions};
use crate::sampler::Wanted;
use crate::session::Best;
use crate::{LoadOptions, Model, Pool, PoolOptions, Session, SessionOptions};
use nexaquant_kernels::{
    Acts, BoundKernel, F32Cols, FORMATS, Format, Grain, I8Cols, Isa, Layout, Line, Mode, Ops, Out, Weights,
};
use nexaquant_opencl::{Kernel, find};
use std::collections::{BTreeSet, HashMap};

/// Few work-groups, so that each has several units.
fn gpu() -> Option<Gpu> {
    device::gpu(GpuOptions { groups: 3, ..GpuOptions::default() })
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

/// The formats to test: all, or where compiling takes long those that the environment names, with commas between.
fn formats() -> impl Iterator<Item = &'static Format> {
    let some = std::env::var("NEXAQUANT_TEST_FORMATS");
    let wanted = move |f: &&Format| some.as_ref().map_or(true, |some| some.split(',').any(|n| n == f.name));
    FORMATS.iter().copied().filter(wanted)
}

/// What their products are compiled for, those with inputs of one grain together: a program for each would take much longer.
fn traits(grain: Option<Grain>) -> Traits {
    let mut codes = BTreeSet::new();
    for format in formats() {
        for mode in [Mode::Int8, Mode::Float] {
            if BoundKernel::new(format, mode, Isa::Scalar).unwrap().grain() == grain {
                let stored = STORED.iter().filter(|stored| stored.format == format.name);
                codes.extend(
                    stored.map(|stored| OnDevice { stored, rows: 1, cols: 1, scale: 1.0, grain }.code()),
                );
            }
        }
    }
    let grains = grain.map_or(0, |grain| 1 << grain_code(Some(grain)));
    Traits { codes, grains, kv: 1, head_dim: 64, known: Vec::new(), groups: 1 }
}

/// The same on the device: one phase for one column and float activations, else two.
fn on_device(
    gpu: &Gpu,
    kernels: &mut HashMap<(Option<Grain>, bool), Kernel>,
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
        let planes_first = stored.has_planes() && rows > 1;
        let tiles = gpu.shape.has_tiles()
            && planes_first
            && stored.is_words()
            && m.code() == stored.code
            && n > 1
            && cols.is_multiple_of(256);
        let flags = if planes_first { PLANES } else { 0 } | if tiles { AS_WORDS } else { 0 };
        let each = if tiles { TILE_ROWS } else { gpu.shape.rows };
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
                .set(word::UNITS, rows.div_ceil(each) as u32)
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

    let kernel = kernels.entry((grain, n == 1));
    let kernel = &*kernel.or_insert_with(|| gpu.kernel(&traits(grain), n == 1).unwrap());
    let (queue, arena, sync) =
        (gpu.device.queue().unwrap(), gpu.device.buffer(end).unwrap(), gpu.device.buffer(64).unwrap());
    queue.zero(&sync, 0..64).unwrap();
    queue.write(&arena, 0, &image).unwrap();
    let local = record + cols.next_multiple_of(256) / 4 + 64;
    let (table, lines) = (at[0] as u32, at[1] as u32);
    let runner =
        Runner { gpu, queue: &queue, kernel, arena: &arena, sync: &sync, local, table, lines, pages: 0 };
    let numbers =
        Numbers { pos: 0, tokens: n as u32, token: NONE, outputs: (0, n as u32), splits: 1, best: 0 };
    runner.run(0..phases.len(), numbers, &[]).unwrap();
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

/// The `k` likeliest tokens of some logits, or where `k` is 0 the likeliest, as the device finds them after a head.
fn likeliest(gpu: &Gpu, kernel: &Kernel, logits: &[f32], k: usize) -> Vec<(u32, u32)> {
    // Lines: phases, logits, maxima, results, the token; between them words that nobody may touch.
    let room = 8 * (k.max(1) + gpu.groups * each_best(gpu, logits.len()).min(k.max(1)));
    let sizes = [4096, logits.len() * 4, gpu.groups * 8, room, 4];
    let mut at = [0; 5];
    let mut end = 0;
    for (at, size) in at.iter_mut().zip(sizes) {
        *at = end;
        end += size.next_multiple_of(16) + 64;
    }
    let line = |of: usize| (at[of] / 16) as u32;
    let phases = choice(gpu, logits.len(), [line(1), 0, logits.len() as u32], line(2), line(3), line(4));
    let mut image = vec![0xaa; end];
    image[..4096][..phases.len() * 256].copy_from_slice(&Phase::bytes(&phases));
    for (to, x) in image[at[1]..].chunks_exact_mut(4).zip(logits) {
        to.copy_from_slice(&x.to_le_bytes());
    }
    let (queue, arena, sync) =
        (gpu.device.queue().unwrap(), gpu.device.buffer(end).unwrap(), gpu.device.buffer(64).unwrap());
    queue.zero(&sync, 0..64).unwrap();
    queue.write(&arena, 0, &image).unwrap();
    let local = CHOICE_LOCAL.max(8 * gpu.shape.group).next_multiple_of(16);
    let runner = Runner {
        gpu,
        queue: &queue,
        kernel,
        arena: &arena,
        sync: &sync,
        local,
        table: 0,
        lines: 0,
        pages: 0,
    };
    let numbers = Numbers { pos: 0, tokens: 1, token: NONE, outputs: (0, 1), splits: 1, best: k as u32 };
    runner.run(0..phases.len(), numbers, &[]).unwrap();
    let mut after = vec![0; end];
    queue.read(&arena, 0, &mut after).unwrap();
    let written = if k == 0 { [2, 4] } else { [3, 3] };
    for of in 0..5 {
        let (from, to) = (at[of], at.get(of + 1).map_or(end, |at| *at));
        let from = from + if written.contains(&of) { sizes[of] } else { 0 };
        assert!(after[from..to] == image[from..to], "wrote beside region {of} of {} best {k}", logits.len());
    }
    let word = |at: usize| u32::from_le_bytes([after[at], after[at + 1], after[at + 2], after[at + 3]]);
    match k {
        0 => vec![(word(at[4]), 0)],
        _ => (0..k).map(|i| (word(at[3] + 8 * i + 4), word(at[3] + 8 * i))).collect(),
    }
}

/// What a sampler wants first, said as simply as can be: no numbers, then large ones, of equals the lower id.
fn in_order(logits: &[f32]) -> Vec<(u32, u32)> {
    let bad = |x: f32| x.is_nan() || x == f32::INFINITY;
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    // A stable sort: what is neither more nor less stays in the order of the ids.
    ids.sort_by(|a, b| {
        let (a, b) = (logits[*a as usize], logits[*b as usize]);
        bad(b).cmp(&bad(a)).then(b.partial_cmp(&a).filter(|_| !bad(a)).unwrap_or(std::cmp::Ordering::Equal))
    });
    ids.into_iter().map(|id| (id, logits[id as usize].to_bits())).collect()
}

#[test]
fn the_likeliest_tokens_are_those_that_sorting_all_brings_first() {
    let Some(some) = gpu() else { return };
    let found = find().unwrap();
    let alone = GpuOptions { groups: 1, persistent: Some(true), ..GpuOptions::default() };
    let alone = Gpu::open(&found[0], alone).unwrap();
    likeliest_are_the_first(&[some, alone]);
}

#[test]
fn sub_groups_find_the_likeliest_tokens() {
    likeliest_are_the_first(&device::with_sub_groups());
}

fn likeliest_are_the_first(gpus: &[Gpu]) {
    let traits =
        Traits { codes: BTreeSet::from([17]), grains: 1, kv: 1, head_dim: 64, known: Vec::new(), groups: 1 };
    for gpu in gpus {
        let kernel = gpu.kernel(&traits, true).unwrap();
        for n in [1, 2, 3, 5, 255, 256, 257, 1000, 5003] {
            let random = random(n, n as u64);
            let few: Vec<f32> = random.iter().map(|x| (x * 3.0).round() / 7.0).collect();
            let near: Vec<f32> =
                random.iter().map(|x| f32::from_bits(0x4120_0000 + (x.abs() * 40.0) as u32)).collect();
            let with = |values: &[f32]| {
                let mut all = random.clone();
                for (i, x) in all.iter_mut().enumerate().filter(|(i, _)| i * 7 % 5 == 3) {
                    *x = values[i % values.len()];
                }
                all
            };
            let zeros = random.iter().map(|x| {
                if *x > 0.5 {
                    0.0
                } else if *x > 0.0 {
                    -0.0
                } else {
                    *x
                }
            });
            let cases = [
                ("numbers", random.clone()),
                ("many equals", few),
                ("last bits", near),
                ("all equal", vec![-2.5; n]),
                ("both zeros", zeros.collect()),
                ("forbidden", with(&[f32::NEG_INFINITY])),
                ("all forbidden", vec![f32::NEG_INFINITY; n]),
                ("extremes", with(&[f32::MAX, f32::MIN, 1e-45, -1e-45])),
                ("no numbers", with(&[f32::NAN, -f32::NAN, f32::INFINITY])),
            ];
            for (name, logits) in cases {
                let expected = in_order(&logits);
                for k in [1, 2, 40, 104, MOST_BEST] {
                    let k = k.min(n);
                    let mut got = likeliest(gpu, &kernel, &logits, k);
                    let mut expected = expected[..k].to_vec();
                    got.sort_unstable();
                    expected.sort_unstable();
                    assert_eq!(got, expected, "{name}, {k} of {n} on {}", gpu.path());
                }
                if name != "no numbers" && name != "all forbidden" {
                    assert_eq!(likeliest(gpu, &kernel, &logits, 0)[0].0, expected[0].0, "{name} of {n}");
                }
            }
        }
    }
}

/// Through a whole model, in a memory of its own and in one with a budget.
#[test]
fn the_likeliest_tokens_of_a_step_are_those_of_its_logits() {
    let Some(gpu) = gpu() else { return };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/alpha.gguf");
    let model = Model::load(path.as_ref(), LoadOptions::default()).unwrap();
    let mut pool = Pool::new(PoolOptions { threads: Some(1), pin: false }).unwrap();
    let options = SessionOptions { context: 64, ..SessionOptions::default() };
    let memory = Memory::on_device(&gpu, MemoryOptions::new(64 << 20)).unwrap();
    let placed = memory.add("alpha", &model).unwrap();
    let mut whole = [
        Session::on_device(&gpu, &model, &pool, options).unwrap(),
        Session::on_device(&gpu, &model, &pool, options).unwrap(),
    ];
    let mut budget = [
        Session::placed(&placed, &pool, options).unwrap(),
        Session::placed(&placed, &pool, options).unwrap(),
    ];
    let vocab = model.architecture().vocab;
    for [all, few] in [&mut whole, &mut budget] {
        for (tokens, k) in [(&[1, 7, 9][..], 40), (&[4], 1), (&[80], MOST_BEST), (&[5], usize::MAX)] {
            let logits = all.eval(&mut pool, tokens).unwrap().to_vec();
            let Some(Best::Few(mut got)) = few.eval_best(&mut pool, tokens, Wanted::Best(k)).unwrap() else {
                unreachable!()
            };
            let mut expected = in_order(&logits)[..k.min(MOST_BEST).min(vocab)].to_vec();
            got.sort_unstable_by_key(|(id, _)| *id);
            expected.sort_unstable();
            assert_eq!(got.iter().map(|(id, x)| (*id, x.to_bits())).collect::<Vec<_>>(), expected, "{k}");
            few.bring_logits().unwrap();
            assert!(few.logits(0) == logits, "all logits after the best {k}");
        }
    }
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
    if let Some(gpu) = gpu() {
        products_are_those_of_the_cpu(&gpu);
    }
}

#[test]
fn sub_groups_find_the_products_of_the_cpu() {
    for gpu in device::with_sub_groups() {
        products_are_those_of_the_cpu(&gpu);
    }
}

fn products_are_those_of_the_cpu(gpu: &Gpu) {
    let mut kernels = HashMap::new();
    for format in formats() {
        for mode in [Mode::Int8, Mode::Float] {
            // Tiles with and without a rest, where there are tiles.
            let tiles: &[_] = match (format.name, mode) {
                ("TQ2_0" | "I2_S", Mode::Int8) => &[(64, 2, 32), (33, 4, 31), (75, 6, 65), (200, 2, 2)],
                _ => &[],
            };
            for &(rows, blocks, n) in [(1, 1, 1), (7, 3, 1), (5, 2, 3), (9, 1, 9)].iter().chain(tiles) {
                let cols =
                    if format.block == 1 { 13 * blocks + 8 * (n % 2) } else { format.block.max(64) * blocks };
                for one_scale in [true, false] {
                    if !one_scale && !format.ternary {
                        continue;
                    }
                    let mut w = random(rows * cols, 7 + rows as u64);
                    if format.ternary {
                        for (i, w) in w.iter_mut().enumerate() {
                            let scale = if one_scale { 0.5 } else { 0.5 + (i / 256 % 16) as f32 };
                            *w = (*w * 1.5).round() * scale;
                        }
                    }
                    let mut bytes = vec![0; format.tensor_bytes(rows, cols).unwrap()];
                    format.quantize(&w, cols, &mut bytes);
                    let x = random(n * cols, 3);
                    let expected = on_cpu(format, mode, &bytes, (rows, cols, n), &x);
                    let got = on_device(gpu, &mut kernels, format, mode, &bytes, (rows, cols, n), &x);
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
