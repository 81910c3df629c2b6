//! Sessions with a device: it computes all layers, or the last ones and the CPU those before.

use super::{EvalError, Session, SessionError, SessionOptions};
use crate::cpu::Scratch;
use crate::kv::{KvCache, PAGE};
use crate::loader::Model;
use crate::m3::Placed;
use crate::opencl::{Cut, DeviceSession, DeviceSizes, Gpu, OpenError, Share, cuts};
use crate::threads::Pool;
use std::time::{Duration, Instant};

/// How long a measurement takes at least, after a step that is not counted. Short steps are tried with one thread and with all then.
const TIME: Duration = Duration::from_millis(50);

/// Seconds of the fastest of some steps; `None` where one fails.
fn fastest(mut step: impl FnMut() -> Result<(), EvalError>) -> Option<f64> {
    step().ok()?;
    let (start, mut best) = (Instant::now(), Duration::MAX);
    while start.elapsed() < TIME {
        let before = Instant::now();
        step().ok()?;
        best = best.min(before.elapsed());
    }
    Some(best.as_secs_f64().max(1e-9))
}

/// The same options for steps of one token at the beginning.
fn small(options: SessionOptions) -> SessionOptions {
    SessionOptions { context: PAGE, batch: 1, outputs: 1, ..options }
}

impl Session {
    /// Opens an empty session on a device, which gets its own copy of the weights.
    ///
    /// # Errors
    /// When the device has no room for model, cache and activations.
    pub fn on_device(
        gpu: &Gpu,
        model: &Model,
        pool: &Pool,
        options: SessionOptions,
    ) -> Result<Self, SessionError> {
        Self::divided(gpu, model, pool, options, usize::MAX)
    }

    /// Opens an empty session whose last `layers` layers are on a device, and the others, with the embedding, on the CPU over the
    /// mapped file. The head counts as the last layer: 1 is the head alone. [`Model::layers`] and more are the whole model, 0 is
    /// none of it. Each side has the keys and values of its own layers.
    ///
    /// # Errors
    /// When either side has no room for its share.
    pub fn divided(
        gpu: &Gpu,
        model: &Model,
        pool: &Pool,
        options: SessionOptions,
        layers: usize,
    ) -> Result<Self, SessionError> {
        if layers == 0 {
            return Self::new(model, pool, options);
        }
        let session = Self::open(model, None, pool, options)?;
        let share = Share::new(model, session.kv.layout(), layers);
        let (sizes, ropes) = (session.device_sizes(), session.ropes.clone());
        let device = DeviceSession::whole(gpu, model, &share, ropes, sizes)?;
        let mut session = session.given(device, share);
        if session.host > 0 {
            let sizes = session.sizes(session.batch, pool.threads());
            session.scratch = Some(Scratch::new(&sizes)?);
        }
        Ok(session)
    }

    /// How many layers a device has room for now, of a session [divided](Session::divided) with it.
    pub(crate) fn room(
        gpu: &Gpu,
        model: &Model,
        pool: &Pool,
        options: SessionOptions,
    ) -> Result<usize, SessionError> {
        let session = Self::open(model, None, pool, options)?;
        let fits = |layers: usize| -> Result<bool, SessionError> {
            let share = Share::new(model, session.kv.layout(), layers);
            let need = DeviceSession::need(gpu, model, &share, &session.ropes, session.device_sizes())?;
            Ok(gpu.has_room(need))
        };
        // None needs no room; one more than all of them has none.
        let (mut room, mut above) = (0, model.layers() + 1);
        while room + 1 < above {
            let half = room.midpoint(above);
            if fits(half)? { room = half } else { above = half }
        }
        Ok(room)
    }

    /// Seconds that the CPU takes for a token in the first `units` units of a model; `None` where it cannot compute them.
    pub(crate) fn host_time(
        model: &Model,
        pool: &mut Pool,
        options: SessionOptions,
        units: usize,
    ) -> Result<Option<f64>, SessionError> {
        let mut session = Self::new(model, pool, small(options))?;
        session.host = units;
        let outputs = 0..usize::from(units == model.architecture().units.len());
        Ok(fastest(|| {
            session.truncate(0);
            session.step(pool, &[0], outputs.clone())
        }))
    }

    /// The same of a device and the last `layers` layers, the head counted as one.
    pub(crate) fn device_time(
        gpu: &Gpu,
        model: &Model,
        pool: &Pool,
        options: SessionOptions,
        layers: usize,
    ) -> Result<Option<f64>, SessionError> {
        let session = match Self::divided(gpu, model, pool, small(options), layers) {
            Err(SessionError::Device(OpenError::TooBig { .. })) => return Ok(None),
            opened => opened?,
        };
        let Some(mut device) = session.device else { return Ok(None) };
        device.set_residual(&vec![1.0; model.architecture().hparams.embd]);
        // As in an answer: the device may have begun with the next token.
        let (mut token, mut at) = (0, 0..PAGE);
        Ok(fastest(|| {
            let pos = at.next().unwrap_or_else(|| {
                (token, at) = (0, 1..PAGE);
                0
            });
            token = device.step_greedy(&[token], pos)?;
            Ok(())
        }))
    }

    /// Opens an empty session of a model in a device's memory with a budget. What comes before the layers that have a place there is the
    /// CPU's.
    pub(super) fn placed_on_device(
        placed: &Placed,
        pool: &Pool,
        options: SessionOptions,
    ) -> Result<Self, SessionError> {
        let session = Self::open(placed.model(), None, pool, options)?;
        let share = Share::from(placed.first(), session.kv.layout());
        let (sizes, ropes) = (session.device_sizes(), session.ropes.clone());
        let device = DeviceSession::placed(placed, &share.kv, ropes, sizes);
        Ok(match device {
            Some(device) => session.given(device, share),
            None => session,
        })
    }

    /// With a device that has its share; the CPU has the rest.
    fn given(mut self, device: DeviceSession, share: Share) -> Self {
        (self.batch, self.outputs) = (device.sizes().batch, device.sizes().outputs);
        (self.device, self.host) = (Some(Box::new(device)), share.first);
        if self.host > 0 {
            self.kv = KvCache::new(share.host_kv);
        }
        self
    }

    /// What every cut of a session takes of a device within a budget, and the bytes of its largest layer there.
    pub(crate) fn cuts(
        gpu: &Gpu,
        model: &Model,
        pool: &Pool,
        options: SessionOptions,
        budget: u64,
    ) -> Result<(Vec<Cut>, u64), SessionError> {
        let session = Self::open(model, None, pool, options)?;
        Ok(cuts(gpu, model, budget, session.kv.layout(), &session.ropes, session.context)?)
    }

    fn device_sizes(&self) -> DeviceSizes {
        DeviceSizes { context: self.context, batch: self.batch, outputs: self.outputs }
    }
}
