//! From options to a loaded model and threads, with a word where a wish cannot be met in full.

use crate::failure::Failure;
use crate::layers::GpuLayers;
use crate::models::Source;
use crate::options;
use crate::output::{bytes, note};
use nexaquant_engine::m3::{Memory, MemoryOptions};
use nexaquant_engine::opencl::{Choice, Gpu, Measured, OpenError, Placement, Within, choose};
use nexaquant_engine::{
    LoadCause, LoadError, LoadOptions, Model, Pool, Session, SessionError, SessionOptions, topology,
};

/// Loads a model and starts the threads.
pub fn open(source: &Source, options: &options::Engine) -> Result<(Model, Pool), Failure> {
    let model = load(source, options)?;
    let pool = pool(options)?;
    let made_for = model.architecture().hparams.context_length;
    if let Some(context) = options.context.filter(|&n| n > made_for) {
        note("warning: ", &format!("--ctx {context} is more than this model was made for; using {made_for}"));
    }
    Ok((model, pool))
}

/// Starts the threads.
pub fn pool(options: &options::Engine) -> Result<Pool, Failure> {
    // Before the pool pins this thread to one core and the count becomes one.
    let parallelism = topology().parallelism;
    let pool = Pool::new(options.pool).map_err(|error| threads(&error))?;
    if let Some(threads) = options.pool.threads.filter(|&n| n > parallelism) {
        note(
            "warning: ",
            &format!("{threads} threads share {parallelism} processors; fewer would be faster"),
        );
    }
    Ok(pool)
}

/// Threads that cannot be had.
pub fn threads(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::InvalidInput => Failure::Input(format!("--threads: {error}")),
        _ => Failure::Internal(format!("cannot start threads: {error}; try --threads 1")),
    }
}

/// Opens a session, in a memory of its own if there is a budget.
pub fn session(
    model: &Model,
    pool: &mut Pool,
    engine: &options::Engine,
    session: SessionOptions,
) -> Result<Session, Failure> {
    match (device(engine)?, engine.budget) {
        (Some(gpu), Some(budget)) => {
            let (layers, why) = within(&gpu, model, pool, engine.gpu_layers, session, budget)?;
            note("note: ", &why);
            if layers == 0 {
                return Session::new(model, pool, session).map_err(Failure::input);
            }
            placed_session(Some(&gpu), (model, layers), pool, budget, session)
        }
        (Some(gpu), None) => divided(&gpu, model, pool, engine.gpu_layers, session),
        (None, budget) => session_on(None, model, pool, budget, session),
    }
}

/// The same on a device that is open already and has all layers, or on the CPU.
pub fn session_on(
    gpu: Option<&Gpu>,
    model: &Model,
    pool: &Pool,
    budget: Option<u64>,
    session: SessionOptions,
) -> Result<Session, Failure> {
    let Some(budget) = budget else {
        let session = match gpu {
            Some(gpu) => Session::on_device(gpu, model, pool, session),
            None => Session::new(model, pool, session),
        };
        return session.map_err(Failure::input);
    };
    placed_session(gpu, (model, usize::MAX), pool, budget, session)
}

/// Opens a session in a memory of its own, which has the last `layers` layers if it is a device's.
fn placed_session(
    gpu: Option<&Gpu>,
    (model, layers): (&Model, usize),
    pool: &Pool,
    budget: u64,
    session: SessionOptions,
) -> Result<Session, Failure> {
    let memory = memory(gpu, MemoryOptions::new(budget))?;
    let placed = memory.add_last(&model.name(), model, layers).map_err(Failure::input)?;
    Session::placed(&placed, pool, session).map_err(Failure::input)
}

/// Opens a session on a device, or with some layers there and some on the CPU, and says which are where.
fn divided(
    gpu: &Gpu,
    model: &Model,
    pool: &mut Pool,
    layers: Option<GpuLayers>,
    session: SessionOptions,
) -> Result<Session, Failure> {
    let wanted = match layers {
        Some(GpuLayers::Last(layers)) => Some(layers),
        Some(GpuLayers::All) | None => Some(model.layers()),
        Some(GpuLayers::Auto) => None,
    };
    if let Some(wanted) = wanted {
        match Session::divided(gpu, model, pool, session, wanted) {
            // Nobody has asked for all of it.
            Err(SessionError::Device(OpenError::TooBig { .. })) if layers.is_none() => {}
            opened => {
                let opened = opened.map_err(Failure::input)?;
                note("note: ", &placed(gpu, &Placement::new(model, wanted)));
                return Ok(opened);
            }
        }
    }
    let found = Measured::now(gpu, model, pool, session).map_err(Failure::input)?;
    let opened = Session::divided(gpu, model, pool, session, found.layers()).map_err(Failure::input)?;
    let placement = Placement::new(model, found.layers());
    note("note: ", &format!("{}; {}", placed(gpu, &placement), why(gpu, &found, placement.all)));
    Ok(opened)
}

/// How many layers of a model a device gets within a budget; which are where then, and by what that was decided.
fn within(
    gpu: &Gpu,
    model: &Model,
    pool: &mut Pool,
    layers: Option<GpuLayers>,
    session: SessionOptions,
    budget: u64,
) -> Result<(usize, String), Failure> {
    let (layers, why) = match layers {
        Some(GpuLayers::All) | None => (model.layers(), String::new()),
        Some(GpuLayers::Last(layers)) => (layers, String::new()),
        Some(GpuLayers::Auto) => {
            let found = Within::now(gpu, model, pool, session, budget).map_err(Failure::input)?;
            (found.layers(), format!("; {}", why_within(gpu, &found, model.layers(), budget)))
        }
    };
    Ok((layers, format!("{}{why}", placed(gpu, &Placement::new(model, layers)))))
}

/// The same of several models that share the budget of a device, said for each; none is without a place there.
pub fn layers<'a>(
    gpu: Option<&Gpu>,
    engine: &options::Engine,
    models: impl Iterator<Item = (&'a str, &'a Model)>,
    session: SessionOptions,
    budget: u64,
) -> Result<Vec<usize>, Failure> {
    let (Some(gpu), Some(wanted)) = (gpu, engine.gpu_layers) else {
        return Ok(models.map(|_| usize::MAX).collect());
    };
    if wanted == GpuLayers::Last(0) {
        return Err(Failure::input(
            "--gpu-layers 0 leaves the device and its budget nothing to do; give 1 or more, or leave --device out",
        ));
    }
    // Gone before others pin their threads.
    let mut pool = pool(engine)?;
    models
        .map(|(name, model)| {
            let (layers, why) = within(gpu, model, &mut pool, Some(wanted), session, budget)?;
            note("note: ", &format!("{name}: {why}"));
            Ok(layers.max(1))
        })
        .collect()
}

/// Which layers are where.
fn placed(gpu: &Gpu, placement: &Placement) -> String {
    let Placement { layers, all, host_bytes, device_bytes } = *placement;
    if layers == 0 {
        return format!("computing on the CPU: all {all} layers, {} a token", bytes(host_bytes));
    }
    if layers == all {
        return format!("computing on {}", gpu.path());
    }
    format!(
        "computing on the CPU: the first {} of {all} layers, {} a token; and on {}: the last {layers}, the head counted as \
         one, {} a token",
        all - layers,
        bytes(host_bytes),
        gpu.path(),
        bytes(device_bytes)
    )
}

/// What a placement was decided by.
fn why(gpu: &Gpu, found: &Measured, all: usize) -> String {
    let Measured { room, host_rate, device_rate } = *found;
    let (host, device) = (host_rate / 1e9, device_rate / 1e9);
    let name = &gpu.found().name;
    format!(
        "measured: {name} computes {device:.1} GB/s of weights and has room for {room} of {all} layers; the CPU computes {host:.1} GB/s"
    )
}

/// What a placement within a budget was decided by.
fn why_within(gpu: &Gpu, found: &Within, all: usize, budget: u64) -> String {
    let Within { host_rate, device_rate, copy_rate, .. } = *found;
    let (host, device, copy) = (host_rate / 1e9, device_rate / 1e9, copy_rate / 1e9);
    let name = &gpu.found().name;
    let (room, layers) = (found.room(), found.layers());
    let [first, last] = found.copied(layers);
    let time = |layers: usize| match found.token(layers) * 1e3 {
        ms if ms.is_finite() => format!("{ms:.2} ms"),
        _ => "no room".to_owned(),
    };
    format!(
        "measured: {name} computes {device:.1} GB/s of weights, is copied to at {copy:.1} GB/s and keeps {room} of {all} layers within {}; the CPU \
         computes {host:.1} GB/s; a token with {layers} layers on the device: {}, {} to {} copied; with those that stay: {}; with all: \
         {}; with none: {}",
        bytes(budget),
        time(layers),
        bytes(first),
        bytes(last),
        time(room),
        time(all),
        time(0)
    )
}

/// A memory with a budget, on the device if one computes.
pub fn memory(gpu: Option<&Gpu>, options: MemoryOptions) -> Result<Memory, Failure> {
    let memory = match gpu {
        Some(gpu) => Memory::on_device(gpu, options),
        None => Memory::new(options),
    };
    memory.map_err(Failure::input)
}

/// The device that computes, where that is not the CPU. Says which one it is.
pub fn gpu(engine: &options::Engine) -> Result<Option<Gpu>, Failure> {
    let gpu = device(engine)?;
    if let Some(gpu) = &gpu {
        note("note: ", &format!("computing on {}", gpu.path()));
    }
    Ok(gpu)
}

/// The device that was asked for, where that is not the CPU. Says so if the CPU takes the place of one.
fn device(engine: &options::Engine) -> Result<Option<Gpu>, Failure> {
    match choose(&engine.device).map_err(|error| Failure::Input(format!("--device: {error}")))? {
        Choice::Cpu(None) if engine.gpu_layers.is_some_and(|layers| layers != GpuLayers::Last(0)) => {
            Err(Failure::input(
                "--gpu-layers needs a device to put layers on, and computing is the CPU's; add --device gpu, or --device and a \
                 number or name of those that nexaquant info lists",
            ))
        }
        Choice::Cpu(None) => Ok(None),
        Choice::Cpu(Some(why)) => {
            note("note: ", &format!("computing on the CPU: {why}"));
            Ok(None)
        }
        Choice::Device(found) => Gpu::open(&found, engine.gpu).map(Some).map_err(Failure::input),
    }
}

/// Loads a model.
pub fn load(source: &Source, options: &options::Engine) -> Result<Model, Failure> {
    load_source(source, options.load)
}

/// The same where nothing but how to load is decided.
pub fn load_source(source: &Source, options: LoadOptions) -> Result<Model, Failure> {
    source.load(options).map_err(unloaded)
}

/// A model that cannot be loaded.
pub fn unloaded(error: LoadError) -> Failure {
    match &*error.cause {
        // These name the file themselves.
        LoadCause::File(cause) => Failure::input(cause),
        _ => Failure::input(error),
    }
}

/// Token ids of plain text, with the beginning-of-sequence token if the model asks for one.
pub fn encode(model: &Model, text: &str, special: bool) -> Result<Vec<u32>, Failure> {
    use nexaquant_engine::tokenizer::Special;
    let tokenizer = model.tokenizer();
    let special = if special { Special::Parse } else { Special::AsText };
    let mut ids = tokenizer.encode(text, special).map_err(Failure::input)?;
    if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.add_bos() && ids.first() != Some(bos)) {
        ids.insert(0, bos);
    }
    Ok(ids)
}
