//! From options to a loaded model and threads, with a word where a wish cannot be met in full.

use crate::failure::Failure;
use crate::models::Source;
use crate::options;
use crate::output::note;
use nexaquant_engine::m3::{Memory, MemoryOptions};
use nexaquant_engine::opencl::{Choice, Gpu, choose};
use nexaquant_engine::{LoadCause, LoadOptions, Model, Pool, Session, SessionOptions, topology};

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
    pool: &Pool,
    engine: &options::Engine,
    session: SessionOptions,
) -> Result<Session, Failure> {
    session_on(gpu(engine)?.as_ref(), model, pool, engine.budget, session)
}

/// The same on a device that is open already, or on the CPU.
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
    let memory = memory(gpu, MemoryOptions::new(budget))?;
    let placed = memory.add(&model.name(), model).map_err(Failure::input)?;
    Session::placed(&placed, pool, session).map_err(Failure::input)
}

/// A memory with a budget, on the device if one computes.
pub fn memory(gpu: Option<&Gpu>, options: MemoryOptions) -> Result<Memory, Failure> {
    let memory = match gpu {
        Some(gpu) => Memory::on_device(gpu, options),
        None => Memory::new(options),
    };
    memory.map_err(Failure::input)
}

/// The device that computes, where that is not the CPU. Says so if the CPU takes the place of one.
pub fn gpu(engine: &options::Engine) -> Result<Option<Gpu>, Failure> {
    match choose(&engine.device).map_err(|error| Failure::Input(format!("--device: {error}")))? {
        Choice::Cpu(None) => Ok(None),
        Choice::Cpu(Some(why)) => {
            note("note: ", &format!("computing on the CPU: {why}"));
            Ok(None)
        }
        Choice::Device(found) => {
            let gpu = Gpu::open(&found, engine.gpu).map_err(Failure::input)?;
            note("note: ", &format!("computing on {}", gpu.path()));
            Ok(Some(gpu))
        }
    }
}

/// Loads a model.
pub fn load(source: &Source, options: &options::Engine) -> Result<Model, Failure> {
    load_source(source, options.load)
}

/// The same where nothing but how to load is decided.
pub fn load_source(source: &Source, options: LoadOptions) -> Result<Model, Failure> {
    source.load(options).map_err(|error| match &*error.cause {
        // These name the file themselves.
        LoadCause::File(cause) => Failure::input(cause),
        _ => Failure::input(error),
    })
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
