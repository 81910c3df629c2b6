//! The command `nexaquant`.
//!
//! Start reading here: what was typed (`args.rs`) becomes what is meant (`options.rs`), a command (`commands/`) does
//! it, and a failure becomes one line and an exit code (`failure.rs`). The work itself is the engine's.
#![forbid(unsafe_code)]
// Reports are built once and printed once; `+= &format!` reads better than `write!` with a result to drop.
#![allow(clippy::format_push_string, clippy::format_collect)]

mod answer;
mod args;
mod commands;
mod dialogue;
mod engine;
mod failure;
mod input;
mod interrupt;
mod layers;
mod models;
mod options;
mod output;
mod scenario;
mod serving;
mod size;
mod system;
mod usage;

use args::{Cli, Command, typed};
use clap::Parser;
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(typed()) {
        Ok(cli) => cli,
        Err(error) => return usage::report(&error),
    };
    match failure::guard(|| execute(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Chat(args) => commands::chat::chat(args),
        Command::Run(args) => commands::run::run(args),
        Command::M3(args) => commands::m3::m3(*args),
        Command::Plan(args) => commands::plan::plan(&args),
        Command::Serve(args) => commands::serve::serve(*args),
        Command::Config(args) => match args.command {
            args::ConfigCommand::Check(args) => commands::serve::check(*args),
        },
        Command::Score(args) => commands::score::score(args),
        Command::Perplexity(args) => commands::perplexity::perplexity(&args),
        Command::Inspect(args) => commands::inspect::inspect(&args),
        Command::Info(args) => commands::info::info(&args),
        Command::Synth(args) => commands::synth::synth(&args),
        Command::Bench(args) => commands::bench::bench(&args),
        Command::Verify(args) => commands::verify::verify(&args),
    }
}
