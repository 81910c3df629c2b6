//! Text from files and standard input: bounded, and UTF-8 or an error that says where it is not.

use crate::failure::Failure;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::Path;

/// Most bytes of a text; more than any context holds.
pub const MAX_BYTES: u64 = 64 << 20;

/// A whole text file; `-` is standard input.
pub fn file(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") {
        return stdin();
    }
    let name = path.display().to_string();
    // A pipe is fine, as in -f <(command); reading it waits for its writer.
    let found = std::fs::metadata(path).map_err(|e| Failure::Input(format!("cannot open {name}: {e}")))?;
    if found.is_dir() {
        return Err(Failure::Input(format!("{name} is a directory, not a text file")));
    }
    let file = File::open(path).map_err(|e| Failure::Input(format!("cannot open {name}: {e}")))?;
    text(file, &name, MAX_BYTES)
}

/// All of standard input.
pub fn stdin() -> Result<String, Failure> {
    text(io::stdin().lock(), "standard input", MAX_BYTES)
}

/// The next line of `input` without its end; `None` at the end of the input.
pub fn line(input: impl BufRead, name: &str, most: u64) -> Result<Option<String>, Failure> {
    let mut bytes = Vec::new();
    let read = input.take(most + 1).read_until(b'\n', &mut bytes);
    let read = read.map_err(|e| Failure::Input(format!("cannot read {name}: {e}")))? as u64;
    if read == 0 {
        return Ok(None);
    }
    if read > most {
        return Err(Failure::Input(format!("a line of {name} is longer than {most} bytes")));
    }
    utf8(bytes, name).map(|text| Some(without_newline(text)))
}

/// `text` without one newline at its end: files and `echo` put one there that is not part of the text.
pub fn without_newline(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

fn text(input: impl Read, name: &str, most: u64) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    input
        .take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Failure::Input(format!("cannot read {name}: {e}")))?;
    if bytes.len() as u64 > most {
        return Err(Failure::Input(format!("{name} is longer than {most} bytes, the most that is read")));
    }
    utf8(bytes, name)
}

fn utf8(bytes: Vec<u8>, name: &str) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let byte = e.as_bytes().get(at).copied().unwrap_or_default();
        Failure::Input(format!("{name} is not UTF-8 text: byte {at} is {byte:#04x}; convert it to UTF-8"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: Result<String, Failure>) -> String {
        match result {
            Err(Failure::Input(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn text_is_bounded_and_utf8() {
        assert_eq!(text(&b"abc"[..], "x", 3).unwrap(), "abc");
        assert!(message(text(&b"abcd"[..], "x", 3)).contains("longer than 3 bytes"));
        assert!(message(text(&b"ab\xffd"[..], "x", 9)).contains("byte 2 is 0xff"));
    }

    #[test]
    fn lines_come_one_by_one() {
        let mut input = &b"one\r\n\ntwo"[..];
        let mut next = || line(&mut input, "x", 5).unwrap();
        assert_eq!(
            [next(), next(), next(), next()],
            [Some("one".into()), Some(String::new()), Some("two".into()), None]
        );
        assert!(line(&b"123456\n"[..], "x", 5).is_err());
        assert!(line(&b"\xff\n"[..], "x", 5).is_err());
    }

    #[test]
    fn one_newline_at_the_end_is_not_text() {
        assert_eq!(without_newline("a\n\n".into()), "a\n");
        assert_eq!(without_newline("a\r\n".into()), "a");
        assert_eq!(without_newline("a".into()), "a");
    }
}
