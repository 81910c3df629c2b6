//! The tables of phases that a session needs, and what it takes of a device beside the model.

use super::compile::{Plan, SPAN, Steps, Table, compile};
use super::gpu::Gpu;
use super::layout::{Layout, Sizes};
use super::model::DeviceModel;
use super::phase::WORDS;
use crate::kv::{KvLayout, PAGE};
use crate::model::op::RopeTable;
use nexaquant_kernels::KvType;
use std::ops::Range;

/// The tables that a session of such sizes may need.
pub(super) fn kinds(sizes: Sizes, max_splits: usize) -> Vec<Steps> {
    let pieces = max_splits > 1 && sizes.context > SPAN;
    let of = [(Steps::One, true), (Steps::Pieces, pieces), (Steps::Many, sizes.batch > 1)];
    of.into_iter().filter_map(|(kind, wanted)| wanted.then_some(kind)).collect()
}

/// What a session takes of a device beside the model, where all of that stays.
pub(super) fn beside(
    gpu: &Gpu,
    device: &DeviceModel,
    kv: &KvLayout,
    ropes: &[RopeTable],
    sizes: Sizes,
) -> u64 {
    let layout = Layout::new(gpu, &device.model, ropes, sizes, false);
    // A page has a place even if the device has no layer but the head.
    let pages = sizes.context.div_ceil(PAGE) * kv.page_bytes().next_multiple_of(256).max(256);
    let angles: usize = ropes.iter().map(|t| angles_bytes(t, sizes.context)).sum();
    // Their number does not depend on where they lie.
    let tables: usize = kinds(sizes, layout.max_splits)
        .into_iter()
        .map(|kind| plan(gpu, device, kv, &layout, &vec![0; ropes.len()], kind).phases.len())
        .map(|phases| (phases * WORDS * 4).next_multiple_of(256))
        .sum();
    (layout.bytes + tables + pages + angles) as u64
}

/// The table of phases of a session whose buffers lie at `layout`.
pub(super) fn plan(
    gpu: &Gpu,
    device: &DeviceModel,
    kv: &KvLayout,
    layout: &Layout,
    ropes: &[u32],
    kind: Steps,
) -> Table {
    let model = &device.model;
    // `red`, three phases and the lines of pages of `cl/phases.cl`.
    let fixed = (gpu.shape.rows * gpu.shape.group).max(1024) * 4 + 64 + 3 * 4 * WORDS + 4 * 256 + 4 * 144;
    let none = vec![0; model.architecture().vectors.len()];
    let plan = Plan {
        gpu,
        arch: model.architecture(),
        weights: model.weights(),
        device,
        kv,
        slots: layout.slots,
        vectors: device.fixed.get().map_or(&none, |fixed| &fixed.vectors),
        ropes,
        step_angles: device.keep,
        records: layout.records,
        tokens: layout.tokens,
        partial: layout.partial,
        maxima: layout.maxima,
        best: layout.best,
        max_splits: layout.max_splits as u32,
        local: (gpu.found().local as usize).saturating_sub(fixed),
    };
    compile(&plan, kind)
}

/// The words of a model's phases of one token that its program is compiled for. They do not depend on where anything lies.
pub(super) fn known(gpu: &Gpu, device: &DeviceModel, ty: KvType) -> Vec<[u32; WORDS]> {
    let arch = device.model.architecture();
    let Ok(kv) = KvLayout::new(&arch.hparams, ty) else { return Vec::new() };
    let ropes = arch.rope_tables(1, |id| device.model.weights().vector(id)).len();
    let layout = Layout::new(gpu, &device.model, &[], Sizes { context: 1, batch: 1, outputs: 1 }, false);
    plan(gpu, device, &kv, &layout, &vec![0; ropes], Steps::One).known
}

pub(super) fn angles_bytes(table: &RopeTable, positions: usize) -> usize {
    (positions * 2 * table.frequencies.len() * 4).next_multiple_of(256)
}

/// Cos and sin of some positions, as the CPU has them.
pub(super) fn put_angles(to: &mut Vec<u8>, table: &RopeTable, positions: Range<usize>) {
    for pos in positions {
        let angle = |f: &f64| pos as f64 * f;
        let cos = table.frequencies.iter().map(|f| (angle(f).cos() * table.magnitude) as f32);
        to.extend(cos.flat_map(f32::to_le_bytes));
        let sin = table.frequencies.iter().map(|f| (angle(f).sin() * table.magnitude) as f32);
        to.extend(sin.flat_map(f32::to_le_bytes));
    }
}
