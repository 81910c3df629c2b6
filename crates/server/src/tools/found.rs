//! Calls in what a model says: between `<tool_call>` tags, or a bare object or list of objects.

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

/// A call as a client gets it.
#[derive(Clone, Debug, Serialize)]
pub struct Call {
    /// Its own name.
    pub id: String,
    r#type: &'static str,
    /// What is called.
    pub function: CallFunction,
}

/// What is called.
#[derive(Clone, Debug, Serialize)]
pub struct CallFunction {
    /// The function.
    pub name: String,
    /// JSON, as text.
    pub arguments: String,
}

impl Call {
    /// What it is called with, as clients want it who do not want text.
    pub fn arguments(&self) -> Value {
        let text = &self.function.arguments;
        serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()))
    }
}

/// An answer, taken apart.
#[derive(Clone, Debug, Default)]
pub struct Parsed {
    /// What is no call.
    pub content: Option<String>,
    /// Calls.
    pub calls: Vec<Call>,
}

#[derive(Deserialize)]
struct Written {
    name: String,
    #[serde(alias = "parameters")]
    arguments: Value,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(Written),
    Many(Vec<Written>),
}

impl Parsed {
    /// No calls.
    pub fn text(text: String) -> Self {
        Self { content: Some(text), calls: Vec::new() }
    }

    /// Finds calls. What only looks like one stays text.
    pub fn of(text: &str) -> Self {
        let mut parsed = Self::default();
        if parsed.take(text) {
            return parsed;
        }
        let mut said = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(OPEN) {
            let (inside, behind) = after.split_once(CLOSE).unwrap_or((after, ""));
            said.push_str(before);
            if !parsed.take(inside) {
                said.push_str(&rest[before.len()..rest.len() - behind.len()]);
            }
            rest = behind;
        }
        said.push_str(rest);
        let keep = parsed.calls.is_empty() || !said.trim().is_empty();
        parsed.content = keep.then_some(said);
        parsed
    }

    /// Takes the calls that a text consists of; whether it does.
    fn take(&mut self, text: &str) -> bool {
        let written = match serde_json::from_str(text.trim()) {
            Ok(OneOrMany::One(written)) => vec![written],
            Ok(OneOrMany::Many(written)) if !written.is_empty() => written,
            _ => return false,
        };
        for Written { name, arguments } in written {
            let arguments = match arguments {
                Value::String(text) => text,
                other => other.to_string(),
            };
            let id = crate::openai::call_id(self.calls.len());
            self.calls.push(Call { id, r#type: "function", function: CallFunction { name, arguments } });
        }
        true
    }
}

/// Holds back what may be a call until that is clear, so that the rest can be passed on as it comes.
#[derive(Clone, Debug, Default)]
pub struct Hold {
    held: String,
    /// Something else was said: no bare object is a call any more.
    said: bool,
}

impl Hold {
    /// Takes text; gives what can be passed on.
    pub fn pass(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let start = self.held.trim_start();
        let bare =
            ["{", "[{", "["].iter().any(|open| start.starts_with(open) && (*open != "[" || start == "["));
        if !self.said && (bare || start.is_empty()) {
            return String::new();
        }
        // Up to a tag, or to what may become one.
        let end = self.held.find(OPEN).unwrap_or_else(|| {
            let begins = (1..OPEN.len()).rev().find(|&n| self.held.ends_with(&OPEN[..n]));
            self.held.len() - begins.unwrap_or(0)
        });
        let held = self.held.split_off(end);
        let passed = std::mem::replace(&mut self.held, held);
        self.said |= !passed.trim().is_empty();
        passed
    }

    /// What is left at the end.
    pub fn end(&mut self) -> Parsed {
        let held = std::mem::take(&mut self.held);
        if held.is_empty() { Parsed::default() } else { Parsed::of(&held) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text, what is no call, calls.
    type Case = (&'static str, Option<&'static str>, &'static [(&'static str, &'static str)]);
    const CASES: &[Case] = &[
        ("Hello.", Some("Hello."), &[]),
        ("{\"name\":\"f\",\"arguments\":{\"x\":1}}", None, &[("f", "{\"x\":1}")]),
        (
            "\n[{\"name\":\"f\",\"arguments\":{}}, {\"name\":\"g\",\"arguments\":{}}]",
            None,
            &[("f", "{}"), ("g", "{}")],
        ),
        ("<tool_call>\n{\"name\":\"f\",\"arguments\":{}}\n</tool_call>", None, &[("f", "{}")]),
        ("Well. <tool_call>{\"name\":\"g\",\"parameters\":{}}", Some("Well. "), &[("g", "{}")]),
        ("<tool_call>nonsense</tool_call> x", Some("<tool_call>nonsense</tool_call> x"), &[]),
        ("a < b, <tool and [1] {x}", Some("a < b, <tool and [1] {x}"), &[]),
        ("[link](x) []", Some("[link](x) []"), &[]),
        ("[]", Some("[]"), &[]),
        ("{\"answer\": 1}", Some("{\"answer\": 1}"), &[]),
    ];

    fn found(calls: &[Call]) -> Vec<(&str, &str)> {
        calls.iter().map(|c| (c.function.name.as_str(), c.function.arguments.as_str())).collect()
    }

    #[test]
    fn calls_are_found_and_the_rest_stays_text() {
        for &(text, content, calls) in CASES {
            let parsed = Parsed::of(text);
            assert_eq!(parsed.content.as_deref(), content, "{text}");
            assert_eq!(found(&parsed.calls), calls, "{text}");
        }
    }

    /// However it is cut, what is passed on and what is left are the same as the whole.
    #[test]
    fn what_comes_in_pieces_is_passed_on_as_early_as_it_can_be() {
        for &(text, content, calls) in CASES {
            for size in 1..=text.len() {
                let (mut hold, mut said) = (Hold::default(), String::new());
                for piece in text.as_bytes().chunks(size) {
                    said.push_str(&hold.pass(std::str::from_utf8(piece).unwrap()));
                }
                let parsed = hold.end();
                said.push_str(parsed.content.as_deref().unwrap_or_default());
                assert_eq!(said, content.unwrap_or_default(), "{text} by {size}");
                assert_eq!(found(&parsed.calls), calls, "{text} by {size}");
            }
        }
        let mut hold = Hold::default();
        assert_eq!((hold.pass("a <").as_str(), hold.pass("b> {").as_str()), ("a ", "<b> {"));
        assert_eq!((hold.pass("<tool_call>").as_str(), hold.pass("x").as_str()), ("", ""));
    }
}
