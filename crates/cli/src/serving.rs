//! What `serve` was asked for, from flags and a configuration file. Flags come before the file.

use crate::args::{Cli, Command, ServeArgs, typed};
use crate::failure::Failure;
use crate::scenario::{self, Named};
use crate::{input, options};
use clap::{CommandFactory, FromArgMatches};
use nexaquant_engine::m3::MemoryOptions;
use nexaquant_server::{Options, Tls};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// A server that is to be.
#[derive(Debug)]
pub struct Serving {
    pub models: Vec<Named>,
    pub engine: options::Engine,
    /// `None`: models are used where they lie in their files.
    pub memory: Option<MemoryOptions>,
    pub turn: Option<u32>,
    pub server: Options,
}

/// From `serve`'s command line and its configuration file.
pub fn serving(args: ServeArgs) -> Result<Serving, Failure> {
    let args = match &args.config {
        Some(path) => with_file(path)?,
        None => args,
    };
    let models = scenario::pinned(scenario::named(&args.models)?, &args.memory.pin)?;
    let engine = options::engine(&args.engine);
    let memory = engine.budget.map(|budget| scenario::memory(&args.memory, budget, None));
    if memory.is_none() && !args.memory.pin.is_empty() {
        return Err(Failure::input(
            "--pin needs a --budget: without one every model stays where it lies in its file",
        ));
    }
    let mut api_keys = args.api_key;
    if let Some(path) = &args.api_key_file {
        let lines = input::file(path)?;
        api_keys.extend(lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    if api_keys.iter().any(|key| key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic())) {
        return Err(Failure::input("an API key has one or more letters, digits or signs, and no spaces"));
    }
    let tls = match (args.tls_cert, args.tls_key) {
        (Some(cert), Some(key)) => Some(Tls { cert, key }),
        (None, None) => None,
        _ => return Err(Failure::input("TLS needs both --tls-cert and --tls-key")),
    };
    let server = Options {
        listen: SocketAddr::new(args.host, args.port),
        api_keys,
        cors: args.cors,
        body_limit: usize::try_from(args.body_limit).unwrap_or(usize::MAX),
        parallel: usize::from(args.parallel),
        queue: usize::from(args.queue),
        timeout: Duration::from_secs(args.timeout.into()),
        drain: Duration::from_secs(args.drain.into()),
        max_tokens: args.max_tokens,
        connections: usize::from(args.connections),
        session: engine.session(0),
        load: engine.load,
        models_dir: args.models_dir,
        tls,
        ..Options::default()
    };
    Ok(Serving { models, engine, memory, turn: args.turn, server })
}

/// The command line with the file's settings before it, so that flags win.
fn with_file(path: &Path) -> Result<ServeArgs, Failure> {
    let words = words(path, &input::file(path)?)?;
    parse(&words, typed().skip(1).map(|word| word.to_string_lossy().into_owned()).collect())
}

fn parse(words: &[String], typed: Vec<String>) -> Result<ServeArgs, Failure> {
    // `config check --config FILE` means what `serve --config FILE` does.
    let flags: Vec<String> =
        typed.into_iter().skip_while(|word| word != "serve" && word != "check").skip(1).collect();
    // Models of the command line replace those of the file.
    let models = |words: &[String]| words.iter().take_while(|word| !word.starts_with("--")).count();
    let n = models(words);
    let given = !cli(flags.clone())?.models.is_empty();
    let words = if given { &words[n..] } else { words };
    let all: Vec<String> = words.iter().cloned().chain(flags).collect();
    cli(all)
}

fn cli(words: Vec<String>) -> Result<ServeArgs, Failure> {
    let command = Cli::command().mut_subcommand("serve", |serve| serve.args_override_self(true));
    let head = ["nexaquant".to_owned(), "serve".to_owned()];
    let matches = command.try_get_matches_from(head.into_iter().chain(words));
    let cli = matches.and_then(|matches| Cli::from_arg_matches(&matches)).map_err(|error| {
        let text = error.render().to_string();
        Failure::Input(text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned())
    })?;
    match cli.command {
        Command::Serve(args) => Ok(*args),
        _ => Err(Failure::Internal("the words of serve are another command's".to_owned())),
    }
}

/// A file's settings as words of a command line: `budget = "10MB"` is `--budget 10MB`, `no_pin = true` is `--no-pin`, and
/// `models` are the words without a flag.
fn words(path: &Path, text: &str) -> Result<Vec<String>, Failure> {
    let at = |what: String| Failure::Input(format!("{}: {what}", path.display()));
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let line =
            error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        at(format!("line {line}: {}", error.message()))
    })?;
    let command = Cli::command();
    let known = command.find_subcommand("serve").into_iter().flat_map(clap::Command::get_arguments);
    let known: Vec<&str> = known.filter_map(clap::Arg::get_long).collect();
    let (mut words, mut models) = (Vec::new(), Vec::new());
    for (key, value) in &table {
        let flag = key.replace('_', "-");
        let values = match value {
            toml::Value::Array(values) => values.clone(),
            value => vec![value.clone()],
        };
        if key == "models" {
            models.extend(values.iter().filter_map(|value| value.as_str().map(str::to_owned)));
            if models.len() < values.len() {
                return Err(at("models are names, paths, or NAME=PATH".to_owned()));
            }
            continue;
        }
        if flag == "config" || !known.contains(&flag.as_str()) {
            return Err(at(format!("{key} is no setting; nexaquant serve --help lists them")));
        }
        for value in values {
            match value {
                toml::Value::Boolean(true) => words.push(format!("--{flag}")),
                toml::Value::Boolean(false) => {}
                toml::Value::String(text) => words.push(format!("--{flag}={text}")),
                toml::Value::Integer(n) => words.push(format!("--{flag}={n}")),
                toml::Value::Float(x) => words.push(format!("--{flag}={x}")),
                _ => return Err(at(format!("{key} is a text, a number, true, false, or a list of them"))),
            }
        }
    }
    models.extend(words);
    Ok(models)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str, typed: &[&str]) -> Result<Serving, String> {
        let words = words(Path::new("f.toml"), text).map_err(|failure| format!("{failure:?}"))?;
        let typed = ["serve"].iter().chain(typed).map(|word| (*word).to_owned()).collect();
        let args = parse(&words, typed).map_err(|failure| format!("{failure:?}"))?;
        serving(args).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn flags_come_before_the_file() {
        let file = "models = [\"one=alpha\", \"two=alpha\"]\nbudget = \"10MB\"\nport = 9000\nno_prefetch = true\n\
                    api_key = [\"a\", \"b\"]\nparallel = 3\npin = \"one=head:2\"\n";
        let serving = from(file, &["--budget", "12MB", "--queue", "5"]).unwrap();
        assert_eq!(serving.models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["one", "two"]);
        let memory = serving.memory.unwrap();
        assert_eq!((memory.budget, memory.prefetch), (12_000_000, false));
        let server = serving.server;
        assert_eq!((server.listen.port(), server.parallel, server.queue), (9000, 3, 5));
        assert_eq!(server.api_keys, ["a", "b"]);
        assert!(server.listen.ip().is_loopback());
        let serving = from("models = [\"one=alpha\"]", &["alpha"]).unwrap();
        assert_eq!(serving.models.len(), 1);
        assert_eq!(serving.models[0].name, "alpha");
        assert!(serving.memory.is_none(), "no budget unless one is given");
    }

    #[test]
    fn nonsense_in_a_file_is_named() {
        for (text, wanted) in [
            ("buget = \"10MB\"", "buget is no setting"),
            ("config = \"x\"", "config is no setting"),
            ("port = \"http\"", "--port"),
            ("budget = [[1]]", "budget is a text"),
            ("x = ", "line 1"),
            ("models = [1]", "models are names"),
            ("tls_cert = \"x\"", "both --tls-cert and --tls-key"),
            ("pin = \"alpha=all\"", "--budget"),
            ("api_key = \"with space\"", "API key"),
        ] {
            let error = from(text, &["alpha"]).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
