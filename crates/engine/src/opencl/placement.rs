//! Which layers of a model a device has, and which the CPU: one cut in the graph.
//!
//! The device has the end of it, so that logits and what is chosen by them are its own and a step crosses over once. How many
//! layers that are somebody says, or the rates at which both sides compute some layers of the model do, in bytes of weights: what a
//! side only reads may be several times as much. Under a budget the device's layers may be more than stay there ([`Within`]): then
//! copying them counts, too.

use super::gpu::Gpu;
use super::layout::session_of_one;
use super::session::OpenError;
use crate::kv::KvLayout;
use crate::loader::Model;
use crate::m3::whole;
use crate::model::op::RopeTable;
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
pub(crate) fn first_unit(model: &Model, layers: usize) -> usize {
    if layers >= model.layers() { 0 } else { model.layers() + 1 - layers }
}

impl Share {
    /// The last `layers` layers, the head counted as one; `kv` is a page's layout for all of them.
    pub fn new(model: &Model, kv: &KvLayout, layers: usize) -> Self {
        Self::from(first_unit(model, layers), kv)
    }

    /// The units from `first` on.
    pub fn from(first: usize, kv: &KvLayout) -> Self {
        let cut = first.saturating_sub(1);
        Self { first, kv: kv.only(&(cut..usize::MAX)), host_kv: kv.only(&(0..cut)) }
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
    /// Bytes of matrices that the CPU computes with in a second.
    pub host_rate: f64,
    /// The same of the device.
    pub device_rate: f64,
}

/// Bytes of the layers that each side computes to be measured, or a layer more: more than caches hold, few enough for some tenths of a
/// second. (300 MB of cache for 16 cores were seen.)
const HOST_BYTES: u64 = 1 << 30;
const DEVICE_BYTES: u64 = 256 << 20;
const COPY_RUNS: usize = 9;

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
        let (host_rate, device_rate) = rates(gpu, model, pool, options, room)?;
        Ok(Self { room, host_rate, device_rate })
    }

    /// As many layers as there is room for on the device if that is faster, none if it is not: each layer that moves to the
    /// faster side makes a token cheaper.
    pub fn layers(&self) -> usize {
        if self.device_rate > self.host_rate { self.room } else { 0 }
    }
}

/// Bytes of matrices a second that the CPU computes with, and a device that has room for so many layers.
fn rates(
    gpu: &Gpu,
    model: &Model,
    pool: &mut Pool,
    options: SessionOptions,
    room: usize,
) -> Result<(f64, f64), SessionError> {
    let first = |read: &dyn Fn(usize) -> u64, all: usize, bytes: u64| {
        (1..all).find(|&n| read(n) >= bytes).unwrap_or(all)
    };
    let units = first(&|n| model.read_of(0..n), model.architecture().units.len(), HOST_BYTES);
    let host =
        Session::host_time(model, pool, options, units)?.map_or(0.0, |t| model.read_of(0..units) as f64 / t);
    let bytes = |layers| Placement::new(model, layers).device_bytes;
    let layers = first(&bytes, room, DEVICE_BYTES);
    let time = if layers > 0 { Session::device_time(gpu, model, pool, options, layers)? } else { None };
    let device = match time {
        Some(time) => bytes(layers) as f64 / time,
        // Nothing can be computed there alone.
        None => gpu.device.read_rate(DEVICE_BYTES as usize, 3).map_err(OpenError::Device)?,
    };
    Ok((host, device))
}

impl Placement {
    /// The last `layers` layers on the device, or all if that is more than there are.
    pub fn new(model: &Model, layers: usize) -> Self {
        let all = model.layers();
        let first = if layers == 0 { all + 1 } else { first_unit(model, layers) };
        let (host_bytes, device_bytes) = (model.read_of(0..first), model.read_of(first..all + 1));
        Self { layers: layers.min(all), all, host_bytes, device_bytes }
    }
}

/// What a token moves where the device has a number of layers within a budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cut {
    /// Bytes of matrices that the CPU reads.
    pub host: u64,
    /// The same of the device.
    pub device: u64,
    /// Bytes that are copied to the device at the beginning of the context and at its end; `None` where the budget has no room for a
    /// session.
    pub copied: Option<[u64; 2]>,
}

/// What every cut of a model takes within a budget of a device: none of its layers there, one, and so on up to all; and the bytes of
/// the largest layer.
pub(crate) fn cuts(
    gpu: &Gpu,
    model: &Model,
    budget: u64,
    kv: &KvLayout,
    ropes: &[RopeTable],
    context: usize,
) -> Result<(Vec<Cut>, u64), OpenError> {
    // Parts are the units but the embedding, whose table stays in its file.
    let device = whole(gpu, model, 1)?;
    let bytes: Vec<u64> = device.parts.iter().map(|part| part.bytes).collect();
    // The head is cut until its parts are no larger than a layer.
    let layers = &bytes[..bytes.len() - usize::from(bytes.len() > 1)];
    let largest = layers.iter().copied().max().unwrap_or(0);
    let cut = |layers: usize| {
        let (place, page) = (Placement::new(model, layers), Share::new(model, kv, layers).kv.page_bytes());
        let all: u64 = bytes[bytes.len() - layers..].iter().sum();
        let copied = |positions: usize| {
            let session = session_of_one(gpu, model, ropes, page, positions);
            let room = budget.saturating_sub(device.fixed_bytes() as u64 + session);
            match room {
                _ if layers == 0 || all <= room => Some(0),
                0 => None,
                // One part is used and another comes in: these two do not stay.
                _ => Some((all - room + 2 * largest.min(room / 2)).min(all)),
            }
        };
        let copied = copied(1).zip(copied(context)).map(|(first, last)| [first, last]);
        Cut { host: place.host_bytes, device: place.device_bytes, copied }
    };
    Ok(((0..=bytes.len()).map(cut).collect(), largest))
}

/// What a placement within a budget was decided by.
#[derive(Clone, Debug, PartialEq)]
pub struct Within {
    /// For each number of layers on the device, from none on.
    cuts: Vec<Cut>,
    /// Bytes of matrices that the CPU computes with in a second.
    pub host_rate: f64,
    /// The same of the device.
    pub device_rate: f64,
    /// Bytes a second that are copied to the device.
    pub copy_rate: f64,
}

impl Within {
    /// Measures computing on both sides and copying between them, in some tenths of a second, and finds out what each cut takes of a
    /// budget as the cache of a context fills.
    ///
    /// # Errors
    /// When the device fails, or the session is impossible anywhere.
    pub fn now(
        gpu: &Gpu,
        model: &Model,
        pool: &mut Pool,
        options: SessionOptions,
        budget: u64,
    ) -> Result<Self, SessionError> {
        let (cuts, part) = Session::cuts(gpu, model, pool, options, budget)?;
        let room = Session::room(gpu, model, pool, options)?;
        let (host_rate, device_rate) = rates(gpu, model, pool, options, room)?;
        let copy_rate = gpu.device.copy_rate(part as usize, COPY_RUNS).map_err(OpenError::Device)?;
        Ok(Self { cuts, host_rate, device_rate, copy_rate })
    }

    /// The most layers that stay on the device, once they are there, to the end of the context.
    pub fn room(&self) -> usize {
        self.cuts.iter().rposition(|cut| cut.copied == Some([0, 0])).unwrap_or(0)
    }

    /// Seconds of a token with the last `layers` layers on the device, or all if that is more than there are: the mean of one at the
    /// beginning of the context and one at its end. One side works after the other; what the device copies it copies while it computes.
    pub fn token(&self, layers: usize) -> f64 {
        let Cut { host, device, copied } = self.cuts[layers.min(self.cuts.len() - 1)];
        let time = |bytes: u64, rate: f64| if bytes == 0 { 0.0 } else { bytes as f64 / rate };
        let there = |copied: u64| time(device, self.device_rate).max(time(copied, self.copy_rate));
        let [first, last] = copied.map_or([f64::INFINITY; 2], |copied| copied.map(there));
        time(host, self.host_rate) + first.midpoint(last)
    }

    /// Bytes that are copied for a token then, at the beginning of the context and at its end.
    pub fn copied(&self, layers: usize) -> [u64; 2] {
        self.cuts[layers.min(self.cuts.len() - 1)].copied.unwrap_or([0, 0])
    }

    /// The number of layers on the device that makes a token cheapest; the smallest of several.
    pub fn layers(&self) -> usize {
        // By more than what rounding makes of it.
        let gain = |best, layers| self.token(layers) < self.token(best) * (1.0 - 1e-9);
        let cheaper = |best, layers| if gain(best, layers) { layers } else { best };
        (1..self.cuts.len()).fold(0, cheaper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::PAGE;

    /// Ten layers of a gigabyte, of which the budget keeps four; two of those go where others come in.
    fn within(host_rate: f64, device_rate: f64, copy_rate: f64) -> Within {
        let cut = |layers: u64| {
            let copied = if layers <= 4 { 0 } else { layers - 2 };
            Cut { host: (10 - layers) << 30, device: layers << 30, copied: Some([copied << 30; 2]) }
        };
        Within { cuts: (0..=10).map(cut).collect(), host_rate, device_rate, copy_rate }
    }

    #[test]
    fn layers_that_do_not_stay_go_where_a_token_is_faster() {
        for (host, device, copy, layers) in [
            // Copying is slower than the CPU: what stays.
            (20e9, 800e9, 10e9, 4),
            // Faster, but not by what goes for those that come.
            (20e9, 800e9, 24e9, 4),
            // Fast enough.
            (20e9, 800e9, 60e9, 10),
            // The device is slower than the CPU.
            (20e9, 19e9, 60e9, 0),
            (20e9, 20e9, 60e9, 0),
            // Copies hide behind computing, up to a point; computing there is no gain then.
            (20e9, 30e9, 1000e9, 10),
            (0.0, 800e9, 10e9, 10),
        ] {
            let found = within(host, device, copy);
            assert_eq!((found.layers(), found.room()), (layers, 4), "{host} {device} {copy}");
            assert!((0..=10).all(|n| found.token(n) >= found.token(layers) * (1.0 - 1e-9)));
        }
        let time = |within: &Within| within.token(6) * 20e9 / f64::from(1 << 30);
        let mut one = within(20e9, 800e9, 10e9);
        assert!((time(&one) - (4.0 + 2.0 * 4.0)).abs() < 1e-9, "{}", time(&one));
        // While the cache is small less is copied.
        one.cuts[6].copied = Some([2 << 30, 4 << 30]);
        assert!((time(&one) - (4.0 + 2.0 * 3.0)).abs() < 1e-9, "{}", time(&one));
    }

    #[test]
    fn every_cut_takes_of_a_budget_what_does_not_fit_it() {
        let Ok(found) = super::super::find() else { return println!("SKIPPED opencl") };
        let gpu = Gpu::open(&found[0], super::super::GpuOptions::default()).unwrap();
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/alpha.gguf");
        let model = Model::load(&path, crate::LoadOptions::default()).unwrap();
        let kv = KvLayout::new(&model.architecture().hparams, nexaquant_kernels::KvType::F16).unwrap();
        let of = |budget| cuts(&gpu, &model, budget, &kv, &[], 4 * PAGE).unwrap();
        let (roomy, largest) = of(64 << 20);
        assert_eq!(roomy.len(), model.layers() + 1);
        assert!(roomy.iter().all(|cut| cut.copied == Some([0, 0])) && largest > 0);
        let (tight, _) = of(2_500_000);
        for at in 0..2 {
            let copied: Vec<u64> = tight.iter().map(|cut| cut.copied.unwrap()[at]).collect();
            assert!(copied.is_sorted() && copied[1] == 0 && copied[model.layers()] > 1 << 20, "{copied:?}");
        }
        assert!(tight.iter().all(|cut| cut.copied.unwrap().is_sorted()));
        let [first, last] = tight[model.layers()].copied.unwrap();
        let page = kv.page_bytes() as u64;
        assert!(last - first >= page, "{first} {last}: a context of more than a page");
        for (cut, whole) in tight.iter().zip(&roomy) {
            assert_eq!((cut.host, cut.device), (whole.host, whole.device));
        }
        let (none, _) = of(1000);
        assert!(
            none[0].copied == Some([0, 0]) && none[1..].iter().all(|cut| cut.copied.is_none()),
            "{none:?}"
        );
    }

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
