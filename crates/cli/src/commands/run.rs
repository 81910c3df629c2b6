//! `run`: one prompt, one answer.

use crate::answer::{Speaker, measured};
use crate::args::RunArgs;
use crate::dialogue::Dialogue;
use crate::engine;
use crate::failure::Failure;
use crate::input;
use crate::options::{self, Prompt, Style};
use crate::output::{self, Answer};
use nexaquant_engine::kernels::Isa;
use nexaquant_engine::{Finish, Generation, Model};
use serde_json::{Value, json};

pub fn run(args: RunArgs) -> Result<(), Failure> {
    let mut run = options::run(args)?;
    let text = match &run.prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::File(path) => input::without_newline(input::file(path)?),
        Prompt::Stdin => input::without_newline(input::stdin()?),
    };
    if text.trim().is_empty() && matches!(run.style, Style::Chat(_)) {
        return Err(Failure::input("the prompt is empty"));
    }
    let (model, pool) = engine::open(&run.model, &run.engine)?;
    let prompt = match &run.style {
        Style::Raw { special } => engine::encode(&model, &text, *special)?,
        Style::Chat(conversation) => {
            let mut dialogue = Dialogue::new(&model, conversation)?;
            dialogue.say(text);
            run.generate.stop.extend(dialogue.stops());
            dialogue.tokens()?
        }
    };
    let threads = pool.threads();
    let mut speaker = Speaker::new(&model, pool, &run.engine, run.generate.guesses)?;

    if run.json {
        let generation = speaker.answer(&prompt, &run.generate, |_| true)?;
        output::print_json(&as_json(&model, threads, prompt.len(), &generation))?;
        return interrupted(&generation);
    }
    let mut answer = Answer::exact();
    let generation = speaker.answer(&prompt, &run.generate, |piece| answer.push(piece));
    answer.finish()?;
    let generation = generation?;
    if !run.quiet {
        output::aside(&measured(&generation.stats));
    }
    interrupted(&generation)
}

fn interrupted(generation: &Generation) -> Result<(), Failure> {
    // A reader that has gone was reported when the answer was finished; what is left is Ctrl-C.
    if generation.finish == Finish::Cancelled { Err(Failure::Interrupted) } else { Ok(()) }
}

fn as_json(model: &Model, threads: usize, prompt_tokens: usize, generation: &Generation) -> Value {
    let stats = &generation.stats;
    let per_step = |value: f64| if stats.steps > 0 { json!(value) } else { Value::Null };
    json!({
        "model": model.name(),
        "text": generation.text,
        "finish": generation.finish.name(),
        "prompt_tokens": prompt_tokens,
        "tokens": generation.tokens,
        "prompt_tokens_per_s": stats.prompt_tokens_per_s(),
        "passes": stats.passes,
        "tokens_per_s": per_step(stats.tokens_per_s()),
        "ms_per_token": per_step(stats.ms_per_token()),
        "weight_bytes_per_token": stats.weight_bytes_per_token,
        "gb_per_s": per_step(stats.gb_per_s()),
        "threads": threads,
        "isa": Isa::detect().ok().map(Isa::name),
        "seed": generation.seed,
    })
}
