//! Stop strings in a stream of text.

use super::SamplingError;

/// Most stop strings of one request.
const MOST_STRINGS: usize = 64;
/// Longest stop string. Text of up to this length is held back, so it should stay short.
const MOST_BYTES: usize = 1024;

/// Looks for stop strings in text that arrives in pieces.
///
/// Text that may be the beginning of a stop string is held back until that is decided. Of several stop strings the one
/// that is complete first stops, the longest if several are complete at the same character; so the text emitted does
/// not depend on how it was cut into pieces.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

/// What to do after a piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStep {
    /// Text to emit now.
    pub text: String,
    /// Which stop string was found, as a position in the list given. It and what follows it is not emitted.
    pub stop: Option<usize>,
}

impl StopMatcher {
    /// A matcher for `stops`, which may be none.
    ///
    /// # Errors
    /// An empty stop string, one that is too long, or too many of them.
    pub fn new(stops: Vec<String>) -> Result<Self, SamplingError> {
        let wrong = if stops.len() > MOST_STRINGS {
            Some(format!("{} were given", stops.len()))
        } else {
            let bad = stops.iter().position(|stop| stop.is_empty() || stop.len() > MOST_BYTES);
            bad.map(|at| format!("number {} has {} bytes", at + 1, stops[at].len()))
        };
        match wrong {
            Some(found) => {
                Err(SamplingError::StopStrings { found, most_strings: MOST_STRINGS, most_bytes: MOST_BYTES })
            }
            None => Ok(Self { stops, held: String::new(), stopped: false }),
        }
    }

    /// Takes the next piece of text. After a stop string nothing is emitted any more.
    pub fn push(&mut self, text: &str) -> StopStep {
        if self.stopped {
            return StopStep::default();
        }
        self.held.push_str(text);
        let complete = |(index, stop): (usize, &String)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, index))
        };
        if let Some((_, start, index)) = self.stops.iter().enumerate().filter_map(complete).min() {
            self.stopped = true;
            self.held.truncate(start);
            return StopStep { text: std::mem::take(&mut self.held), stop: Some(index) };
        }
        let keep = self.stops.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        StopStep { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// The text held back, when no more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that `stop` begins with.
fn begun(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    let (text, stop) = (text.as_bytes(), stop.as_bytes());
    (1..=longest).rev().find(|&n| text.ends_with(&stop[..n])).unwrap_or(0)
}
