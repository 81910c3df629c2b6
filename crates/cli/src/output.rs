//! Writing to the terminal or a pipe: whole results, streamed answers, and notes on standard error.
//!
//! The print macros of std panic when the reader has gone; these functions return. What comes from a file or a model
//! is untrusted: control characters in it never reach a terminal.

use crate::failure::Failure;
use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

/// Prints a whole result.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| Failure::output(&e))
}

/// Prints one JSON value on one line.
pub fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{value}\n"))
}

/// One line on standard error, whatever is in `text`. Failure to write it is nobody's problem.
pub fn note(what: &str, text: &str) {
    let line = printable(text.trim(), false);
    let _ = writeln!(io::stderr(), "{what}{line}");
}

/// As [`note`], in the background of a conversation.
pub fn aside(text: &str) {
    let line = printable(text, false);
    let _ = writeln!(anstream::stderr(), "\x1b[2m{line}\x1b[0m");
}

/// `text` without characters that steer a terminal. Line breaks and tabs stay if `lines`, else they become spaces.
pub fn printable(text: &str, lines: bool) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && !(lines && matches!(c, '\n' | '\t'));
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| match c {
        '\n' | '\t' | '\r' if !lines => ' ',
        c if steers(c) => '\u{fffd}',
        c => c,
    };
    Cow::Owned(text.chars().map(shown).collect())
}

/// An answer on standard output as it comes.
pub struct Answer {
    out: io::StdoutLock<'static>,
    terminal: bool,
    failed: Option<io::Error>,
    open_line: bool,
    /// Still before the first word, whose space is left out.
    before_words: bool,
}

impl Answer {
    /// For a text that is shown as it is.
    pub fn exact() -> Self {
        let out = io::stdout().lock();
        Self { terminal: out.is_terminal(), out, failed: None, open_line: false, before_words: false }
    }

    /// For a turn of a conversation: space before its first word is left out.
    pub fn turn() -> Self {
        Self { before_words: true, ..Self::exact() }
    }

    /// Shows a piece at once; false when it cannot be shown and the answer may as well stop.
    pub fn push(&mut self, piece: &str) -> bool {
        let piece = if self.before_words { piece.trim_start() } else { piece };
        if piece.is_empty() {
            return true;
        }
        self.before_words = false;
        let text = if self.terminal { printable(piece, true) } else { Cow::Borrowed(piece) };
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        self.open_line = !piece.ends_with('\n');
        self.failed = written.err();
        self.failed.is_none()
    }

    /// Ends the last line.
    pub fn finish(mut self) -> Result<(), Failure> {
        if self.open_line && self.failed.is_none() {
            self.push("\n");
        }
        self.failed.map_or(Ok(()), |error| Err(Failure::output(&error)))
    }
}

/// A number of bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KB", "MB", "GB", "TB"];
    if n < 1000 {
        return format!("{n} bytes");
    }
    let mut value = n as f64 / 1e3;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// Lines of columns, each as wide as its widest entry. Columns in `right` are aligned to the right.
pub fn table(rows: &[Vec<String>], right: &[usize], indent: &str) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |c: usize| rows.iter().filter_map(|row| row.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        for (c, cell) in row.iter().enumerate() {
            let pad = " ".repeat(widths[c] - cell.chars().count());
            let (before, after) = if right.contains(&c) { (pad.as_str(), "") } else { ("", pad.as_str()) };
            line += &format!("{}{before}{cell}{after}", if c > 0 { "  " } else { "" });
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (n, text) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1000, "1.00 KB"),
            (9_999, "10.0 KB"),
            (99_960, "100 KB"),
            (999_600, "1.00 MB"),
            (4_084_576, "4.08 MB"),
            (u64::MAX, "18446744 TB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\u{9b}c\n", true), "a\u{fffd}[2Jb\u{fffd}c\n");
        assert_eq!(printable("a\r\nb\tc", false), "a  b c");
        assert!(matches!(printable("plain", false), Cow::Borrowed(_)));
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "10".into(), "x".into()], vec!["long".into(), "9".into()]];
        assert_eq!(table(&rows, &[1], " "), " a     10  x\n long   9\n");
    }
}
