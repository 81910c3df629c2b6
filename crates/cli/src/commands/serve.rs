//! `serve`: models behind HTTP.

use crate::args::{LogFormat, ServeArgs};
use crate::engine;
use crate::failure::Failure;
use crate::output::note;
use crate::scenario::Named;
use crate::serving::{self, Serving};
use nexaquant_engine::Model;
use nexaquant_engine::decide::Limits;
use nexaquant_engine::m3::Pin;
use nexaquant_engine::scheduler::{Engine, EngineOptions};
use nexaquant_server::App;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Passes of a model's turn while others wait, unless told otherwise.
const TURN: u32 = 32;

pub fn serve(args: ServeArgs) -> Result<(), Failure> {
    let log = args.log;
    let serving = serving::serving(args)?;
    start_log(log);
    run(serving)
}

/// `config check`: everything but serving.
pub fn check(args: ServeArgs) -> Result<(), Failure> {
    let serving = serving::serving(args)?;
    for named in &serving.models {
        engine::load(&named.source, &serving.engine)?;
    }
    let names: Vec<&str> = serving.models.iter().map(|named| named.name.as_str()).collect();
    crate::output::print(&format!("{} would be served at {}\n", names.join(", "), serving.server.listen))
}

fn run(serving: Serving) -> Result<(), Failure> {
    let Serving { models, engine: options, memory, turn, server } = serving;
    let gpu = engine::gpu(&options)?;
    if gpu.is_some() && memory.is_none() {
        return Err(Failure::input(
            "--device needs a --budget here: how much of the device the models may take",
        ));
    }
    let models = models
        .iter()
        .map(|named| Ok((named, engine::load(&named.source, &options)?)))
        .collect::<Result<Vec<_>, Failure>>()?;
    let known = models.iter().map(|(named, model)| (named.name.as_str(), model));
    let budget = memory.map_or(0, |memory| memory.budget);
    let layers = engine::layers(gpu.as_ref(), &options, known, server.session, budget)?;
    let memory = memory.map(|memory| engine::memory(gpu.as_ref(), memory)).transpose()?;
    let most_requests = server.parallel.saturating_add(server.queue);
    let limits =
        Limits { turn_passes: turn.unwrap_or(TURN), max_wait: Duration::from_secs(10), least_passes: 4 };
    let engine = Engine::start(EngineOptions { memory, pool: options.pool, limits, most_requests })
        .map_err(|error| engine::threads(&error))?;
    let listen = server.listen;
    let exposed = !listen.ip().is_loopback() && server.api_keys.is_empty();
    let secure = server.tls.is_some();
    let app = App::new(engine, server);
    for ((named, model), layers) in models.iter().zip(layers) {
        add(&app, named, model, layers)?;
    }
    if exposed {
        note(
            "warning: ",
            &format!("anybody who reaches {listen} may use this server; --api-key asks for a key"),
        );
    }
    let names: Vec<&str> = models.iter().map(|(named, _)| named.name.as_str()).collect();
    let scheme = if secure { "https" } else { "http" };
    let ready = |address| note("", &format!("{} at {scheme}://{address}", names.join(", ")));
    nexaquant_server::serve(&app, ready).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::NotFound => Failure::input(error),
        _ => Failure::Input(format!("cannot serve at {listen}: {error}")),
    })
}

fn add(app: &App, named: &Named, model: &Model, layers: usize) -> Result<(), Failure> {
    app.add_last(&named.name, model, layers).map_err(Failure::input)?;
    if named.pin != Pin::None {
        let memory = app.memory().map_err(|error| Failure::Input(error.message))?;
        memory.pin(&named.name, named.pin).map_err(Failure::input)?;
        memory.get(&named.name).and_then(|placed| placed.load(named.pin)).map_err(Failure::input)?;
    }
    Ok(())
}

fn start_log(format: LogFormat) {
    let level = EnvFilter::try_from_env("NEXAQUANT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr);
    // Fails only if there is a log already.
    let _ = match format {
        LogFormat::Json => log.json().flatten_event(true).with_current_span(false).try_init(),
        LogFormat::Text => log.with_target(false).try_init(),
    };
}
