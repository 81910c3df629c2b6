//! `m3`: several models answer in turn under one budget, and everything that this takes is shown and measured.
//!
//! First the run is rehearsed (`nexaquant plan` does only that), so that the report can put what was predicted beside
//! what was measured. `show.rs` prints while it runs, `report.rs` when it is over.

mod report;
mod show;

use crate::args::{AnswerArgs, M3Args};
use crate::commands::info;
use crate::dialogue::Dialogue;
use crate::engine;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::options::{self, Conversation};
use crate::output;
use crate::scenario::{self, Named};
use nexaquant_engine::decide::Limits;
use nexaquant_engine::m3::plan::{Rehearsal, Role, plan};
use nexaquant_engine::m3::{Change, Memory, Pin};
use nexaquant_engine::scheduler::{Engine, EngineOptions, Event, Outcome, Request, Stream};
use nexaquant_engine::{GenerateOptions, Model, SessionOptions, topology};
use report::Report;
use show::{LastPass, Show};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// The seed unless one is given: the same run every time.
const SEED: u64 = 7;

/// A query and what came of it.
struct Answered<'a> {
    asked: &'a Asked,
    model: &'a str,
    outcome: Outcome,
    last_pass: Option<LastPass>,
}

/// A query as tokens.
struct Asked {
    model: usize,
    text: String,
    prompt: Vec<u32>,
    stops: Vec<String>,
}

pub fn m3(mut args: M3Args) -> Result<(), Failure> {
    let scenario = scenario::scenario(&args)?;
    let options = options::engine(&args.engine);
    let gpu = engine::gpu(&options)?;
    args.sampling.seed = args.sampling.seed.or(Some(SEED));
    let answer = AnswerArgs {
        max_tokens: Some(scenario.tokens as usize),
        stop: Vec::new(),
        ignore_eos: false,
        draft: 0,
    };
    let generate = options::generate(answer, args.sampling, false)?;

    let mut models: Vec<(String, Model)> = Vec::new();
    for named in &scenario.models {
        models.push((named.name.clone(), engine::load(&named.source, &options)?));
    }
    let asked = scenario
        .queries
        .iter()
        .map(|query| ask(&models[query.model].1, query.model, &query.prompt))
        .collect::<Result<Vec<_>, _>>()?;
    let longest = |model: Option<usize>| {
        let of_model = |asked: &&Asked| model.is_none_or(|model| asked.model == model);
        asked.iter().filter(of_model).map(|asked| asked.prompt.len()).max().unwrap_or(1)
    };
    // No more than this run needs: positions that are never used would take room from weights.
    let needed = longest(None) + scenario.tokens as usize;
    let session =
        SessionOptions { context: options.context.unwrap_or(needed).max(needed), ..options.session(0) };

    let budget = scenario.memory.budget;
    let known = models.iter().map(|(name, model)| (name.as_str(), model));
    let layers = engine::layers(gpu.as_ref(), &options, known, session, budget)?;
    // In a pool of its own, which is gone before the engine makes one. What the run would be refused with, it is refused
    // with here.
    let planned = {
        let mut pool = engine::pool(&options)?;
        let answer = scenario.tokens as usize;
        let rehearsal = Rehearsal { memory: scenario.memory, session, filled: 0, answer };
        let role = |(i, named): (usize, &Named)| Role {
            name: named.name.clone(),
            model: models[i].1.clone(),
            pin: named.pin,
            prompt: longest(Some(i)),
            layers: layers[i],
        };
        let roles: Vec<Role> = scenario.models.iter().enumerate().map(role).collect();
        plan(&roles, &rehearsal, gpu.as_ref(), &mut pool).map_err(Failure::input)?
    };
    let rates = info::measured_elsewhere(options.pool.threads);
    let threads = options.pool.threads.unwrap_or_else(|| topology().default_threads());

    let memory = engine::memory(gpu.as_ref(), scenario.memory)?;
    memory.record();
    let (sender, changes) = channel();
    memory.watch(move |change| drop(sender.send(change.clone())));
    let limits = Limits { turn_passes: scenario.turn.unwrap_or(u32::MAX), ..Limits::default() };
    let limits = Limits { max_wait: Duration::MAX, ..limits };
    let engine = Engine::start(EngineOptions {
        memory: Some(memory.clone()),
        pool: options.pool,
        limits,
        most_requests: asked.len(),
    })
    .map_err(|error| engine::threads(&error))?;
    for (((name, model), named), layers) in models.iter().zip(&scenario.models).zip(&layers) {
        engine.add_last(name, model, *layers).map_err(Failure::input)?;
        if named.pin != Pin::None {
            memory.pin(name, named.pin).map_err(Failure::input)?;
            memory.get(name).and_then(|placed| placed.load(named.pin)).map_err(Failure::input)?;
        }
    }

    let interrupt = Interrupt::new();
    interrupt.hold();
    let mut stage = Stage {
        show: Show::new(args.json, args.events, memory.block() as u64),
        names: models.iter().map(|(name, _)| name.clone()).collect(),
        asked,
        engine,
        memory,
        changes,
        interrupt,
        session,
        generate,
    };
    stage.show.heading(&scenario, &models, &stage.memory, threads)?;
    let answered = if scenario.turn.is_some() { stage.together() } else { stage.one_by_one() };
    if answered.is_err() {
        // The error is what matters, even if this cannot be printed.
        drop(stage.show.broken_off());
    }
    let answered = answered?;
    stage.hear_changes()?;
    let report = Report::new(&scenario, &stage.memory, &planned, rates, threads);
    let queries: Vec<Answered<'_>> = stage
        .asked
        .iter()
        .zip(answered)
        .map(|(asked, (outcome, last_pass))| {
            let model = stage.names[asked.model].as_str();
            Answered { asked, model, outcome, last_pass }
        })
        .collect();
    if args.json {
        output::print_json(&report.as_json(&queries, stage.show.events()))
    } else {
        output::print(&report.as_text(&queries))
    }
}

fn ask(model: &Model, index: usize, text: &str) -> Result<Asked, Failure> {
    let mut dialogue = Dialogue::new(model, &Conversation { system: None, template: None })?;
    dialogue.say(text.to_owned());
    let (prompt, stops) = (dialogue.tokens()?, dialogue.stops().collect());
    Ok(Asked { model: index, text: text.to_owned(), prompt, stops })
}

/// A run.
struct Stage {
    show: Show,
    /// Of the models.
    names: Vec<String>,
    asked: Vec<Asked>,
    engine: Engine,
    memory: Memory,
    changes: Receiver<Change>,
    interrupt: Interrupt,
    session: SessionOptions,
    generate: GenerateOptions,
}

/// How often Ctrl-C is looked at while nothing happens.
const PATIENCE: Duration = Duration::from_millis(50);

impl Stage {
    fn submit(&self, asked: &Asked) -> Result<Stream, Failure> {
        let mut generate = self.generate.clone();
        generate.stop.extend_from_slice(&asked.stops);
        let (model, prompt) = (self.names[asked.model].clone(), asked.prompt.clone());
        let request = Request { model, prompt, generate, session: self.session };
        self.engine.submit(request).map_err(Failure::input)
    }

    /// One query after the other, each answer shown as it comes.
    fn one_by_one(&mut self) -> Result<Vec<(Outcome, Option<LastPass>)>, Failure> {
        let mut outcomes = Vec::new();
        for i in 0..self.asked.len() {
            let asked = &self.asked[i];
            self.show.query(i, self.asked.len(), &self.names[asked.model], &asked.text)?;
            let stream = self.submit(asked)?;
            let outcome = loop {
                let event = stream.next_within(PATIENCE);
                self.hear_changes()?;
                match self.heard(event)? {
                    Some(Event::Text(text)) => self.show.text(&text, &self.memory)?,
                    Some(Event::Done(outcome)) => break *outcome,
                    _ => {}
                }
            };
            let model = &self.names[self.asked[i].model];
            let last_pass = self.show.answered(model, &outcome, &self.memory)?;
            outcomes.push((outcome, last_pass));
        }
        Ok(outcomes)
    }

    /// All queries at once, each answer shown when it is whole.
    fn together(&mut self) -> Result<Vec<(Outcome, Option<LastPass>)>, Failure> {
        let streams = self.asked.iter().map(|asked| self.submit(asked)).collect::<Result<Vec<_>, _>>()?;
        let mut outcomes: Vec<Option<(Outcome, Option<LastPass>)>> = streams.iter().map(|_| None).collect();
        while outcomes.iter().any(Option::is_none) {
            for (i, stream) in
                streams.iter().enumerate().filter(|(i, _)| outcomes[*i].is_none()).collect::<Vec<_>>()
            {
                let event = stream.next_within(Duration::from_millis(1));
                self.hear_changes()?;
                if let Some(Event::Done(outcome)) = self.heard(event)? {
                    let asked = &self.asked[i];
                    self.show.query(i, self.asked.len(), &self.names[asked.model], &asked.text)?;
                    self.show.text(outcome.generation.text.trim_start(), &self.memory)?;
                    let model = &self.names[asked.model];
                    let last_pass = self.show.answered(model, &outcome, &self.memory)?;
                    outcomes[i] = Some((*outcome, last_pass));
                }
            }
        }
        self.show.answered_together()?;
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// What a stream said; `None` if nothing yet.
    fn heard(&self, event: Result<Event, RecvTimeoutError>) -> Result<Option<Event>, Failure> {
        // Also of a model that always has something to say.
        if self.interrupt.is_set() {
            return Err(Failure::Interrupted);
        }
        match event {
            Ok(Event::Failed(error)) => Err(Failure::input(error)),
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Failure::Internal("the engine has stopped".to_owned()))
            }
        }
    }

    fn hear_changes(&mut self) -> Result<(), Failure> {
        self.changes.try_iter().try_for_each(|change| self.show.change(&change))
    }
}
