//! `chat`: a conversation, line by line. In a terminal with line editing and history; without one each line of
//! standard input is a turn and nothing but answers is written to standard output.

mod lines;
mod order;

use crate::answer::{Speaker, measured};
use crate::args::ChatArgs;
use crate::dialogue::Dialogue;
use crate::engine;
use crate::failure::Failure;
use crate::options::{self, Chat};
use crate::output::{Answer, aside, bytes, note};
use lines::{Line, Lines};
use nexaquant_engine::{Finish, Generation, Model};
use order::Order;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

pub fn chat(args: ChatArgs) -> Result<(), Failure> {
    let mut chat = options::chat(args)?;
    let (model, pool) = engine::open(&chat.model, &chat.engine)?;
    let dialogue = Dialogue::new(&model, &chat.conversation)?;
    chat.generate.stop.extend(dialogue.stops());
    let speaker = Speaker::new(&model, pool, &chat.engine, chat.generate.guesses)?;
    let mut lines = Lines::new();
    let mut talk = Talk {
        chat,
        model,
        dialogue,
        speaker,
        turn: 0,
        totals: Totals::default(),
        piped: !lines.is_terminal(),
    };
    if !talk.piped {
        aside(&format!("{}. /help lists the commands, Ctrl-D leaves.", talk.model.name()));
    }
    let mut interrupts = 0;
    loop {
        let line = match lines.next()? {
            Line::End => return Ok(()),
            Line::Interrupted => {
                interrupts += 1;
                if interrupts > 1 {
                    aside("Ctrl-D or /exit leaves.");
                }
                continue;
            }
            Line::Text(line) => line,
        };
        interrupts = 0;
        let done = match order::parse(&line) {
            Order::Nothing => Ok(()),
            Order::Exit => return Ok(()),
            order => talk.obey(order),
        };
        match done {
            // A person can put it right with the next line; a script cannot.
            Err(Failure::Input(text)) if !talk.piped => note("error: ", &text),
            done => done?,
        }
    }
}

/// A conversation going on.
struct Talk {
    chat: Chat,
    model: Model,
    dialogue: Dialogue,
    speaker: Speaker,
    /// Answers since the conversation began.
    turn: u64,
    totals: Totals,
    piped: bool,
}

/// What was measured so far.
#[derive(Default)]
struct Totals {
    answers: usize,
    prompt_tokens: usize,
    prompt_time: Duration,
    tokens: usize,
    steps: usize,
    passes: usize,
    time: Duration,
}

impl Talk {
    fn obey(&mut self, order: Order) -> Result<(), Failure> {
        match order {
            Order::Say(text) => return self.say(text),
            Order::Help => aside_lines(order::HELP),
            Order::Reset => {
                self.start_over();
                aside("The conversation starts anew.");
            }
            Order::System(text) => {
                aside(&match text.as_str() {
                    "" => "No system text. The conversation starts anew.".to_owned(),
                    text => format!("System text: {text} The conversation starts anew."),
                });
                self.dialogue.set_system(Some(text).filter(|text| !text.is_empty()));
                self.start_over();
            }
            Order::Stats => aside_lines(&self.stats()),
            Order::Save(path) => {
                save(&self.dialogue, Path::new(&path))?;
                aside(&format!("Saved to {path}."));
            }
            Order::Wrong(text) => return Err(Failure::Input(text)),
            Order::Exit | Order::Nothing => {}
        }
        Ok(())
    }

    /// Forgets the conversation; its system text stays.
    fn start_over(&mut self) {
        self.dialogue.clear();
        self.turn = 0;
    }

    /// One turn: the user's words in, the model's out. Words that cannot be answered are forgotten.
    fn say(&mut self, text: String) -> Result<(), Failure> {
        self.dialogue.say(text);
        let generation = match self.room().and_then(|prompt| self.answer(&prompt)) {
            Ok(generation) => generation,
            Err(failure) => {
                self.dialogue.unsay();
                return Err(failure);
            }
        };
        if generation.tokens.is_empty() && generation.finish == Finish::Cancelled {
            // Stopped while reading: as if nothing had been said.
            self.dialogue.unsay();
            aside("Stopped.");
            return Ok(());
        }
        self.dialogue.answered(generation.text.clone());
        self.totals.add(&generation);
        aside(&measured(&generation.stats));
        match generation.finish {
            Finish::ContextFull => {
                let context = self.speaker.session.context();
                aside(&format!(
                    "The context of {context} tokens is full, so the answer ends here. The next turn drops the \
                     oldest ones; /reset starts anew, --ctx gives more room if the model has it."
                ));
            }
            Finish::Cancelled if !self.piped => aside("Stopped."),
            _ => {}
        }
        Ok(())
    }

    /// The prompt, with the oldest turns dropped until an answer has room.
    fn room(&mut self) -> Result<Vec<u32>, Failure> {
        let context = self.speaker.session.context();
        let reserve = self.chat.generate.max_tokens.unwrap_or(usize::MAX).min(context / 4).min(256);
        let mut dropped = 0;
        let mut shorter = self.dialogue.clone();
        loop {
            let prompt = shorter.tokens()?;
            if prompt.len() + reserve <= context || !shorter.drop_oldest() {
                // Words that will not fit even alone must not cost the conversation.
                if dropped > 0 && prompt.len() <= context {
                    self.dialogue = shorter;
                    aside(&format!(
                        "The context of {context} tokens is full: the oldest {dropped} turn{} dropped.",
                        if dropped == 1 { " was" } else { "s were" }
                    ));
                }
                return Ok(prompt);
            }
            dropped += 1;
        }
    }

    fn answer(&mut self, prompt: &[u32]) -> Result<Generation, Failure> {
        let mut options = self.chat.generate.clone();
        // Another seed each turn, so that a question asked twice has two answers; the same for the same talk.
        options.sampling.seed = options.sampling.seed.map(|seed| seed.wrapping_add(self.turn));
        let mut answer = Answer::turn();
        let generation = self.speaker.answer(prompt, &options, |piece| answer.push(piece));
        if self.piped {
            self.speaker.interrupt.release();
        }
        answer.finish()?;
        let generation = generation?;
        if self.piped && generation.finish == Finish::Cancelled {
            return Err(Failure::Interrupted);
        }
        self.turn += 1;
        Ok(generation)
    }

    fn stats(&self) -> String {
        let session = &self.speaker.session;
        let mut text = format!(
            "context: {} of {} tokens, {} of cache and activations\n",
            session.tokens().len(),
            session.context(),
            bytes(session.bytes() as u64)
        );
        let t = &self.totals;
        let rate = |n: usize, time: Duration| n as f64 / time.as_secs_f64();
        let _ = writeln!(text, "answers: {}, {} tokens", t.answers, t.tokens);
        if t.prompt_tokens > 0 && !t.prompt_time.is_zero() {
            let speed = rate(t.prompt_tokens, t.prompt_time);
            let _ = writeln!(text, "prompts: {} tokens computed, {speed:.1} tokens/s", t.prompt_tokens);
        }
        if t.steps > 0 && !t.time.is_zero() {
            let speed = rate(t.steps, t.time);
            let weights = self.model.weight_bytes_per_token();
            let gb = rate(t.passes, t.time) * weights as f64 / 1e9;
            let read = bytes(weights);
            let _ = writeln!(text, "speed: {speed:.1} tokens/s, {read} of weights a pass, {gb:.2} GB/s");
        }
        text
    }
}

impl Totals {
    fn add(&mut self, generation: &Generation) {
        let stats = &generation.stats;
        self.answers += 1;
        self.prompt_tokens += stats.prompt_tokens;
        self.prompt_time += stats.prompt_time;
        self.tokens += stats.tokens;
        self.steps += stats.steps;
        self.passes += stats.passes;
        self.time += stats.generate_time;
    }
}

fn aside_lines(text: &str) {
    text.lines().for_each(aside);
}

/// Writes the conversation: JSON for `.json`, text for anything else.
fn save(dialogue: &Dialogue, path: &Path) -> Result<(), Failure> {
    let json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let text = if json { dialogue.as_json() } else { dialogue.as_text() };
    let mut file = File::create_new(path).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            Failure::Input(format!("{} exists already; nothing was written", path.display()))
        }
        _ => Failure::Input(format!("cannot write {}: {e}", path.display())),
    })?;
    file.write_all(text.as_bytes())
        .map_err(|e| Failure::Input(format!("cannot write {}: {e}", path.display())))
}
