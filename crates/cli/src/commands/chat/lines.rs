//! Where the user's lines come from: a terminal with editing and history, or a pipe.

use crate::failure::Failure;
use crate::{input, models};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::{self, IsTerminal};
use std::path::PathBuf;

/// Longest line; more than any context holds.
const MAX_LINE: u64 = 1 << 20;

/// What came.
pub enum Line {
    Text(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    /// Ctrl-D, or the end of the pipe.
    End,
}

/// The source of lines.
pub enum Lines {
    Terminal { editor: Box<DefaultEditor>, history: Option<PathBuf> },
    Pipe,
}

impl Lines {
    /// A terminal if both ends are one.
    pub fn new() -> Self {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Lines::Pipe;
        }
        let Ok(mut editor) = DefaultEditor::new() else { return Lines::Pipe };
        let history = models::data_dir().map(|dir| dir.join("history.txt"));
        if let Some(path) = &history {
            // A history that cannot be read or written is only missed.
            let _ = editor.load_history(path);
        }
        Lines::Terminal { editor: Box::new(editor), history }
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self, Lines::Terminal { .. })
    }

    /// Waits for the next line.
    pub fn next(&mut self) -> Result<Line, Failure> {
        let (editor, history) = match self {
            Lines::Pipe => {
                let line = input::line(io::stdin().lock(), "standard input", MAX_LINE)?;
                return Ok(line.map_or(Line::End, Line::Text));
            }
            Lines::Terminal { editor, history } => (editor, history),
        };
        match editor.readline("> ") {
            Ok(line) => {
                if !line.trim().is_empty()
                    && editor.add_history_entry(&line).unwrap_or(false)
                    && let Some(path) = history
                {
                    let _ = path.parent().map(std::fs::create_dir_all);
                    let _ = editor.append_history(path);
                }
                Ok(Line::Text(line))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(Failure::Internal(format!("cannot read the terminal: {error}"))),
        }
    }
}
