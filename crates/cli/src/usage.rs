//! A command line that cannot be understood: one line, as for every other bad input. Help goes where it was asked for.

use crate::args::Cli;
use crate::failure::Failure;
use clap::CommandFactory;
use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
use std::process::ExitCode;

/// Tells the user what clap found.
pub fn report(error: &clap::Error) -> ExitCode {
    match error.kind() {
        DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand => {
            // A reader that has gone is no error here either.
            let _ = error.print();
            ExitCode::from(u8::from(error.use_stderr()) * 2)
        }
        _ => {
            let command = std::env::args_os().nth(1);
            let command = command.as_deref().and_then(|word| word.to_str());
            Failure::Input(one_line(&error.render().to_string(), command)).report()
        }
    }
}

/// Clap's paragraphs without the usage and the pointer to `--help`, which a hint at the help of `command` replaces.
fn one_line(text: &str, command: Option<&str>) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let told = |line: &&str| {
        !line.is_empty() && !line.starts_with("For more information") && !line.starts_with("tip: to pass")
    };
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:")).filter(told);
    // Hints such as `tip: a similar argument exists` begin a sentence of their own.
    let told = lines.collect::<Vec<_>>().join(" ").replace(" tip: ", "; ");
    let known = |name: &&str| Cli::command().find_subcommand(name).is_some();
    let command = command.filter(known).map(|name| format!("{name} ")).unwrap_or_default();
    format!("{told}; see nexaquant {command}--help")
}

#[cfg(test)]
mod tests {
    use crate::args::Cli;
    use clap::Parser;

    #[test]
    fn a_wrong_command_line_is_one_line() {
        for (words, wanted) in [
            (
                &["run", "--tempp", "1"][..],
                "unexpected argument '--tempp' found; a similar argument exists: '--temp'; see nexaquant run --help",
            ),
            (
                &["run", "--temp", "x"],
                "invalid value 'x' for '--temp <X>': invalid float literal; see nexaquant run --help",
            ),
            (&["sing"], "unrecognized subcommand 'sing'; see nexaquant --help"),
            (
                &["score"],
                "the following required arguments were not provided: --tokens <ID,ID,…>; see nexaquant score --help",
            ),
        ] {
            let error = Cli::try_parse_from([&["nexaquant"], words].concat()).unwrap_err();
            assert_eq!(super::one_line(&error.render().to_string(), Some(words[0])), wanted);
        }
    }
}
