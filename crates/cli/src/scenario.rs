//! Several models under one budget: what `m3` and `plan` were asked for, from flags and a scenario file.

use crate::args::{IoArg, M3Args, MemoryArgs, PolicyArg};
use crate::failure::Failure;
use crate::models::{self, Source};
use crate::{input, options, size};
use nexaquant_engine::m3::{Io, MemoryOptions, Pin, PolicyName};
use std::path::{Path, PathBuf};

/// The announced scenario: three models of 4, 8 and 12 MB in 10 MB.
const MODELS: [&str; 3] = ["alpha", "beta", "gamma"];
const BUDGET: u64 = 10_000_000;
const TOKENS: u32 = 48;
/// What models are asked unless somebody says otherwise.
const PROMPTS: [&str; 4] = [
    "What is your name?",
    "Tell me a story about a little fox.",
    "Tell me about the sea.",
    "Tell me a story about a bird who learned to sing.",
];

/// A model by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    pub name: String,
    pub source: Source,
    pub pin: Pin,
}

/// A question to one of the models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Index in the models.
    pub model: usize,
    pub prompt: String,
}

/// Who asks whom what.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub models: Vec<Named>,
    pub queries: Vec<Query>,
    pub memory: MemoryOptions,
    /// Most tokens of an answer.
    pub tokens: u32,
    /// All queries at once, with turns of so many passes.
    pub turn: Option<u32>,
}

/// A scenario file.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    budget: Option<String>,
    policy: Option<PolicyArg>,
    prefetch: Option<bool>,
    tokens: Option<u32>,
    rounds: Option<u32>,
    turn: Option<u32>,
    #[serde(default)]
    models: Vec<FileModel>,
    #[serde(default)]
    queries: Vec<FileQuery>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct FileModel {
    name: String,
    /// Beside the scenario file, if it is not absolute.
    path: Option<PathBuf>,
    pin: Option<String>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct FileQuery {
    model: String,
    prompt: String,
}

/// From `m3`'s command line and its scenario file.
pub fn scenario(args: &M3Args) -> Result<Scenario, Failure> {
    let file = args.config.as_deref().map_or_else(|| Ok(File::default()), read)?;
    let models = if args.models.is_empty() && !file.models.is_empty() {
        let folder = args.config.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
        file.models.iter().map(|model| from_file(model, folder)).collect::<Result<_, _>>()?
    } else {
        named(&args.models)?
    };
    let models = pinned(models, &args.memory.pin)?;
    let index = |name: &str| {
        let found = models.iter().position(|model| model.name == name);
        found.ok_or_else(|| {
            Failure::Input(format!("a query is for {name:?}; the models are {}", names(&models)))
        })
    };
    let mut queries: Vec<Query> = if args.query.is_empty() {
        let query = |q: &FileQuery| Ok(Query { model: index(&q.model)?, prompt: q.prompt.clone() });
        file.queries.iter().map(query).collect::<Result<_, Failure>>()?
    } else {
        let query = |text: &String| {
            let (model, prompt) = text.split_once('=').ok_or_else(|| {
                Failure::Input(format!(
                    "--query {text:?}: wanted MODEL=TEXT, such as alpha=\"What is your name?\""
                ))
            })?;
            Ok(Query { model: index(model.trim())?, prompt: prompt.to_owned() })
        };
        args.query.iter().map(query).collect::<Result<_, Failure>>()?
    };
    if queries.is_empty() {
        // Each in turn, then the first again: it was evicted meanwhile.
        let again = (models.len() > 1).then_some(0);
        queries = (0..models.len())
            .chain(again)
            .enumerate()
            .map(|(i, model)| Query { model, prompt: PROMPTS[i % PROMPTS.len()].to_owned() })
            .collect();
    }
    if let Some(query) = queries.iter().find(|query| query.prompt.trim().is_empty()) {
        return Err(Failure::Input(format!("the query for {} is empty", models[query.model].name)));
    }
    let rounds = args.rounds.or(file.rounds).unwrap_or(1);
    let (n, zero) = (queries.len(), [args.tokens.or(file.tokens), args.turn.or(file.turn), Some(rounds)]);
    if zero.contains(&Some(0)) {
        return Err(Failure::input("tokens, turn and rounds must be at least 1"));
    }
    let queries: Vec<Query> = queries.into_iter().cycle().take(n * rounds as usize).collect();
    let budget = match (args.engine.budget, &file.budget) {
        (Some(budget), _) => budget,
        (None, Some(text)) => size::parse(text).map_err(|why| Failure::Input(format!("budget: {why}")))?,
        (None, None) => BUDGET,
    };
    let memory = MemoryOptions {
        prefetch: !args.memory.no_prefetch && file.prefetch.unwrap_or(true),
        ..memory(&args.memory, budget, file.policy)
    };
    Ok(Scenario {
        models,
        queries,
        memory,
        tokens: args.tokens.or(file.tokens).unwrap_or(TOKENS),
        turn: args.turn.or(file.turn),
    })
}

/// The memory of `plan`, and what `m3` shares with it.
pub fn memory(args: &MemoryArgs, budget: u64, policy: Option<PolicyArg>) -> MemoryOptions {
    MemoryOptions {
        budget,
        policy: match args.policy.or(policy) {
            Some(PolicyArg::Lru) => PolicyName::Lru,
            Some(PolicyArg::TwoLevel) | None => PolicyName::TwoLevel,
        },
        prefetch: !args.no_prefetch,
        io: match args.io {
            IoArg::Auto => Io::Auto,
            IoArg::Direct => Io::Direct,
            IoArg::Cached => Io::Cached,
        },
    }
}

/// The budget unless one is given.
pub fn budget(engine: &options::Engine) -> u64 {
    engine.budget.unwrap_or(BUDGET)
}

/// Models from the command line; without any the announced three.
pub fn named(words: &[String]) -> Result<Vec<Named>, Failure> {
    let default = MODELS.map(str::to_owned);
    let words = if words.is_empty() { &default[..] } else { words };
    let mut models: Vec<Named> = Vec::new();
    for word in words {
        let (name, what) = match word.split_once('=') {
            Some((name, path)) if !name.is_empty() && !Path::new(word).exists() => (name.to_owned(), path),
            _ => (stem(word), word.as_str()),
        };
        models.push(Named { name, source: models::find(what)?, pin: Pin::None });
    }
    distinct(&models)?;
    Ok(models)
}

fn from_file(model: &FileModel, folder: &Path) -> Result<Named, Failure> {
    let source = match &model.path {
        Some(path) => Source::File(folder.join(path)),
        None => models::find(&model.name)?,
    };
    let pin = model.pin.as_deref().map_or(Ok(Pin::None), pin)?;
    Ok(Named { name: model.name.clone(), source, pin })
}

/// The models with the pins of the command line.
pub fn pinned(mut models: Vec<Named>, pins: &[String]) -> Result<Vec<Named>, Failure> {
    distinct(&models)?;
    for text in pins {
        let (name, what) = text.rsplit_once('=').ok_or_else(|| {
            Failure::Input(format!("--pin {text:?}: wanted MODEL=all or MODEL=head:K, such as alpha=head:4"))
        })?;
        let known = names(&models);
        let model = models.iter_mut().find(|model| model.name == name);
        model.ok_or_else(|| Failure::Input(format!("--pin names {name:?}; the models are {known}")))?.pin =
            pin(what)?;
    }
    Ok(models)
}

fn pin(text: &str) -> Result<Pin, Failure> {
    match text.split_once(':') {
        None if text == "all" => Ok(Pin::All),
        None if text == "none" => Ok(Pin::None),
        Some(("head", n)) if n.parse::<u32>().is_ok_and(|n| n > 0) => Ok(Pin::Head(n.parse().unwrap_or(0))),
        _ => Err(Failure::Input(format!("a pin is {text:?}; wanted all, none, or head:K with K at least 1"))),
    }
}

fn distinct(models: &[Named]) -> Result<(), Failure> {
    for (i, model) in models.iter().enumerate() {
        if models[..i].iter().any(|other| other.name == model.name) {
            let name = &model.name;
            return Err(Failure::Input(format!(
                "two models are named {name}; give one another name: other={name}"
            )));
        }
    }
    Ok(())
}

fn names(models: &[Named]) -> String {
    models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn stem(path: &str) -> String {
    Path::new(path).file_stem().map_or_else(|| path.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

fn read(path: &Path) -> Result<File, Failure> {
    let text = input::file(path)?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let place = line.map(|line| format!(" line {line}")).unwrap_or_default();
        Failure::Input(format!("{}{place}: {}", path.display(), error.message()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn parse(words: &[&str]) -> Result<Scenario, String> {
        let cli = Cli::try_parse_from([&["nexaquant", "m3"], words].concat()).map_err(|e| e.to_string())?;
        let Command::M3(args) = cli.command else { panic!() };
        scenario(&args).map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn the_announced_scenario_is_the_default() {
        let s = parse(&["alpha", "two=alpha"]).unwrap();
        assert_eq!((s.memory.budget, s.tokens, s.turn), (10_000_000, 48, None));
        assert_eq!(s.queries.iter().map(|q| q.model).collect::<Vec<_>>(), [0, 1, 0]);
        assert_eq!(s.models.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["alpha", "two"]);
    }

    #[test]
    fn flags_come_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.toml");
        let text = "budget = \"6MB\"\npolicy = \"lru\"\ntokens = 5\nturn = 2\nprefetch = false\n\
                    [[models]]\nname = \"a\"\npath = \"x.gguf\"\npin = \"head:3\"\n\
                    [[queries]]\nmodel = \"a\"\nprompt = \"Hi\"\n";
        std::fs::write(&path, text).unwrap();
        let config = path.to_str().unwrap();
        let s = parse(&["--config", config, "--rounds", "2"]).unwrap();
        assert_eq!(
            (s.memory.budget, s.memory.policy, s.memory.prefetch),
            (6_000_000, PolicyName::Lru, false)
        );
        assert_eq!((s.tokens, s.turn, s.queries.len()), (5, Some(2), 2));
        let model =
            Named { name: "a".into(), source: Source::File(dir.path().join("x.gguf")), pin: Pin::Head(3) };
        assert_eq!(s.models, [model]);
        let s = parse(&[
            "--config",
            config,
            "--budget",
            "7MB",
            "--policy",
            "two-level",
            "-n",
            "9",
            "--pin",
            "a=all",
        ])
        .unwrap();
        assert_eq!((s.memory.budget, s.memory.policy, s.tokens), (7_000_000, PolicyName::TwoLevel, 9));
        assert_eq!(s.models[0].pin, Pin::All);
        for (text, wanted) in [
            ("budget = 5", "line 1"),
            ("tokens = 3\nbuget = \"5MB\"", "line 2"),
            ("budget = \"0MB\"", "budget: "),
            ("turn = 0", "at least 1"),
            ("[[queries]]\nmodel = \"beta2\"\nprompt = \"x\"", "beta2"),
            ("[[models]]\nname = \"a\"\npath = \"x\"\n[[models]]\nname = \"a\"\npath = \"y\"", "two models"),
            ("[[models]]\nname = \"a\"\npath = \"x\"\npin = \"tail\"", "tail"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = parse(&["--config", config]).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for (words, wanted) in [
            (&["alpha", "alpha"][..], "two models are named alpha"),
            (&["alpha", "-q", "beta=Hi"], "beta"),
            (&["alpha", "-q", "Hi"], "MODEL=TEXT"),
            (&["alpha", "-q", "alpha= "], "empty"),
            (&["alpha", "--pin", "alpha=head:0"], "head:0"),
            (&["alpha", "--pin", "beta=all"], "beta"),
            (&["alpha", "--budget", "-5MB"], "negative"),
            (&["alpha", "--budget", "0"], "zero"),
            (&["alpha", "--turn", "0"], "--turn"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(wanted), "{words:?}: {error}");
        }
    }
}
