//! Which layers of a model a device has, and which the CPU: one cut in the graph.
//!
//! The device has the end of it, so that logits and what is chosen by them are its own and a step crosses over once. How many
//! layers that are somebody says, or the rates at which both sides read memory do: a token costs little more than reading the
//! weights.

use super::gpu::Gpu;
use super::session::OpenError;
use crate::kv::KvLayout;
use crate::limits::quick_read_rate;
use crate::loader::Model;
use crate::session::{Session, SessionError, SessionOptions};
use crate::threads::Pool;

/// What a device has of a model.
#[derive(Debug)]
pub(crate) struct Share {
    /// Its first unit; 0: it has everything.
    pub first: usize,
    /// Of its own layers.
    pub kv: KvLayout,
    /// Of the CPU's.
    pub host_kv: KvLayout,
}

/// The first unit of a device that has the last `layers` layers.
fn first(model: &Model, layers: usize) -> usize {
    if layers >= model.layers() { 0 } else { model.layers() + 1 - layers }
}

impl Share {
    /// The last `layers` layers, the head counted as one; `kv` is a page's layout for all of them.
    pub fn new(model: &Model, kv: &KvLayout, layers: usize) -> Self {
        let first = first(model, layers);
        let cut = first.saturating_sub(1);
        Self { first, kv: kv.only(&(cut..model.layers())), host_kv: kv.only(&(0..cut)) }
    }
}

/// How a model is divided between the CPU and a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// Layers on the device, the last ones, the head counted as one.
    pub layers: usize,
    /// Layers there are.
    pub all: usize,
    /// Bytes of matrices that the CPU reads for a token.
    pub host_bytes: u64,
    /// The same of the device.
    pub device_bytes: u64,
}

/// What a placement was decided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Layers that the device has room for.
    pub room: usize,
    /// Bytes a second that the CPU reads, all workers together.
    pub host_rate: f64,
    /// The same of the device.
    pub device_rate: f64,
}

/// Bytes that each side reads to be measured: more than a cache holds, few enough for some hundredths of a second.
const HOST_BYTES: usize = 128 << 20;
const DEVICE_BYTES: usize = 256 << 20;
const DEVICE_RUNS: usize = 3;

impl Measured {
    /// Measures both sides, in some tenths of a second, and finds out how much of a session the device has room for.
    ///
    /// # Errors
    /// When the device fails, or the session is impossible anywhere.
    pub fn now(
        gpu: &Gpu,
        model: &Model,
        pool: &mut Pool,
        options: SessionOptions,
    ) -> Result<Self, SessionError> {
        let room = Session::room(gpu, model, pool, options)?;
        let host_rate = quick_read_rate(pool, model.ops(), HOST_BYTES);
        let device_rate = gpu.device.read_rate(DEVICE_BYTES, DEVICE_RUNS).map_err(OpenError::Device)?;
        Ok(Self { room, host_rate, device_rate })
    }

    /// As many layers as there is room for on the device if that reads faster, none if it does not: each layer that moves to the
    /// faster side makes a token cheaper.
    pub fn layers(&self) -> usize {
        if self.device_rate > self.host_rate { self.room } else { 0 }
    }
}

impl Placement {
    /// The last `layers` layers on the device, or all if that is more than there are.
    pub fn new(model: &Model, layers: usize) -> Self {
        let all = model.layers();
        let first = if layers == 0 { all + 1 } else { first(model, layers) };
        let (host_bytes, device_bytes) = (model.read_of(0..first), model.read_of(first..all + 1));
        Self { layers: layers.min(all), all, host_bytes, device_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_faster_side_gets_what_it_has_room_for() {
        let layers = |room, host_rate, device_rate| Measured { room, host_rate, device_rate }.layers();
        assert_eq!(layers(12, 20e9, 800e9), 12);
        assert_eq!(layers(0, 20e9, 800e9), 0);
        assert_eq!(layers(12, 20e9, 19e9), 0);
        assert_eq!(layers(12, 20e9, 20e9), 0, "a crossing for nothing");
        assert_eq!(layers(12, 20e9, 0.0), 0);
    }

    #[test]
    fn the_head_is_the_last_layer_and_every_byte_is_on_one_side() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/alpha.gguf");
        let model = Model::load(&path, crate::LoadOptions::default()).unwrap();
        let h = &model.architecture().hparams;
        let (all, kv) = (model.layers(), KvLayout::new(h, nexaquant_kernels::KvType::F16).unwrap());
        assert_eq!(all, h.layers.len() + 1);
        let whole = Placement::new(&model, all);
        assert_eq!((whole.host_bytes, whole.layers), (0, all));
        let mut last = 0;
        for layers in 0..=all + 2 {
            let (place, share) = (Placement::new(&model, layers), Share::new(&model, &kv, layers));
            assert_eq!(place.layers, layers.min(all));
            assert_eq!(place.host_bytes + place.device_bytes, whole.device_bytes);
            assert!(place.device_bytes > last || layers == 0 || layers > all, "{layers}");
            last = place.device_bytes;
            if layers > 0 {
                assert_eq!(share.kv.page_bytes() + share.host_kv.page_bytes(), kv.page_bytes());
            }
        }
        assert_eq!(Share::new(&model, &kv, 1).kv.page_bytes(), 0, "the head has no keys");
        let two = Share::new(&model, &kv, 2);
        let (layer, row) = (all - 2, 16..32);
        assert_eq!(two.kv.k(layer, 0, row.clone()), kv.k(0, 0, row.clone()), "the first of its layers");
        assert_eq!(two.kv.v(layer, 0, row.clone()), kv.v(0, 0, row.clone()));
        assert_eq!(two.host_kv.v(layer - 1, 0, row.clone()), kv.v(layer - 1, 0, row));
    }
}
