//! Tools: what a model may call, how it is told so, and how its calls are recognised.
//!
//! Tools are introduced in the system message, in the form most open models were trained on: one JSON object a line, calls
//! between `<tool_call>` tags. A choice that demands a call makes the answer follow a schema, so it is a call for certain.

use crate::error::ApiError;
use nexaquant_engine::chat::{Message, Role};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A tool.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Tool {
    r#type: String,
    function: Function,
}

/// What it is called with.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Function {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(default = "anything")]
    parameters: Value,
}

fn anything() -> Value {
    json!({ "type": "object" })
}

/// Whether tools are called.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(untagged, expecting = "none, auto, required, or an object that names a function")]
pub enum Choice {
    /// `none`, `auto`, `required`.
    Word(Word),
    /// This one.
    Named {
        /// Which.
        function: Named,
    },
    /// As the model likes.
    #[default]
    #[serde(skip)]
    Unsaid,
}

/// A choice in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// No calls.
    None,
    /// As the model likes.
    Auto,
    /// At least one call.
    Required,
}

/// A function by name.
#[derive(Clone, Debug, Deserialize)]
pub struct Named {
    /// Its name.
    pub name: String,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// The tools that may be called.
pub fn offered(tools: &[Tool], choice: &Choice) -> Result<Vec<Tool>, ApiError> {
    if let Some(i) = tools.iter().position(|tool| tool.r#type != "function") {
        let field = format!("tools[{i}].type");
        return Err(ApiError::field(
            &field,
            format!("{field} is {:?}; only function is known", tools[i].r#type),
        ));
    }
    match choice {
        Choice::Word(Word::None) => Ok(Vec::new()),
        Choice::Named { function } => {
            let named: Vec<Tool> =
                tools.iter().filter(|tool| tool.function.name == function.name).cloned().collect();
            if named.is_empty() {
                let message = format!("tool_choice names {:?}, which is not among the tools", function.name);
                return Err(ApiError::field("tool_choice", message));
            }
            Ok(named)
        }
        Choice::Word(Word::Required) if tools.is_empty() => {
            Err(ApiError::field("tool_choice", "a tool is required, but there are none"))
        }
        _ => Ok(tools.to_vec()),
    }
}

/// Tells the model.
pub fn introduce(messages: &mut Vec<Message>, tools: &[Tool], choice: &Choice) {
    if tools.is_empty() {
        return;
    }
    let list: Vec<String> = tools.iter().map(|tool| json!(tool).to_string()).collect();
    let list = list.join("\n");
    let how = if forced(tools, choice).is_some() {
        "Answer with one call, a JSON object with name and arguments."
    } else {
        "To call one, write a JSON object with name and arguments between <tool_call> and </tool_call>."
    };
    let text = format!("You may call these functions:\n<tools>\n{list}\n</tools>\n{how}");
    match messages.first_mut().filter(|message| message.role == Role::System) {
        Some(system) => system.content = format!("{}\n\n{text}", system.content),
        None => messages.insert(0, Message::new(Role::System, text)),
    }
}

/// The schema of an answer that must be a call.
pub fn forced(tools: &[Tool], choice: &Choice) -> Option<Value> {
    if !matches!(choice, Choice::Word(Word::Required) | Choice::Named { .. }) || tools.is_empty() {
        return None;
    }
    let call = |tool: &Tool| {
        json!({
            "type": "object",
            "properties": { "name": { "const": tool.function.name }, "arguments": tool.function.parameters },
            "required": ["name", "arguments"],
            "additionalProperties": false,
        })
    };
    Some(match tools {
        [one] => call(one),
        many => json!({ "anyOf": many.iter().map(call).collect::<Vec<_>>() }),
    })
}

/// A call as a model writes it.
pub fn written(name: &str, arguments: &str) -> String {
    format!("{OPEN}\n{{\"name\": {}, \"arguments\": {arguments}}}\n{CLOSE}", json!(name))
}

/// Whether a text that begins so may be a call.
pub fn may_begin(text: &str) -> bool {
    let text = text.trim_start();
    text.starts_with('{') || text.starts_with('<') || text.contains(OPEN)
}

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

impl Parsed {
    /// No calls.
    pub fn text(text: String) -> Self {
        Self { content: Some(text), calls: Vec::new() }
    }

    /// Finds calls. What only looks like one stays text.
    pub fn of(text: &str) -> Self {
        let mut parsed = Self::default();
        let mut said = String::new();
        if let Some(call) = call(text, 0) {
            return Self { content: None, calls: vec![call] };
        }
        let mut rest = text;
        while let Some((before, after)) = rest.split_once(OPEN) {
            let (inside, behind) = after.split_once(CLOSE).unwrap_or((after, ""));
            said.push_str(before);
            match call(inside, parsed.calls.len()) {
                Some(call) => parsed.calls.push(call),
                None => said.push_str(&rest[before.len()..rest.len() - behind.len()]),
            }
            rest = behind;
        }
        said.push_str(rest);
        let keep = parsed.calls.is_empty() || !said.trim().is_empty();
        parsed.content = keep.then_some(said);
        parsed
    }
}

fn call(text: &str, index: usize) -> Option<Call> {
    let Written { name, arguments } = serde_json::from_str(text.trim()).ok()?;
    let arguments = match arguments {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let id = crate::openai::call_id(index);
    Some(Call { id, r#type: "function", function: CallFunction { name, arguments } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_and_the_rest_stays_text() {
        for (text, content, calls) in [
            ("Hello.", Some("Hello."), &[][..]),
            ("{\"name\":\"f\",\"arguments\":{\"x\":1}}", None, &[("f", "{\"x\":1}")]),
            ("<tool_call>\n{\"name\":\"f\",\"arguments\":{}}\n</tool_call>", None, &[("f", "{}")]),
            ("Well. <tool_call>{\"name\":\"g\",\"parameters\":{}}", Some("Well. "), &[("g", "{}")]),
            ("<tool_call>nonsense</tool_call> x", Some("<tool_call>nonsense</tool_call> x"), &[]),
        ] {
            let parsed = Parsed::of(text);
            assert_eq!(parsed.content.as_deref(), content, "{text}");
            let found: Vec<_> = parsed
                .calls
                .iter()
                .map(|c| (c.function.name.as_str(), c.function.arguments.as_str()))
                .collect();
            assert_eq!(found, calls, "{text}");
        }
    }
}
