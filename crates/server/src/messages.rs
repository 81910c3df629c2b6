//! Messages of a conversation as OpenAI's clients send them, into what the engine's templates take.

use crate::error::ApiError;
use nexaquant_engine::chat::{Message, Role, ToolCall};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A message as it comes.
#[derive(Debug, Deserialize)]
pub struct Incoming {
    role: Name,
    content: Option<Content>,
    tool_calls: Option<Vec<Called>>,
    tool_call_id: Option<String>,
    name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Name {
    System,
    Developer,
    User,
    Assistant,
    Tool,
    Function,
}

/// Text, or a list of parts.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a list of parts with a type and a text")]
pub enum Content {
    /// Text.
    Text(String),
    /// Parts.
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Debug, Deserialize)]
pub struct Part {
    r#type: String,
    text: Option<String>,
}

/// A call that the model made before.
#[derive(Debug, Deserialize)]
pub struct Called {
    id: Option<String>,
    function: CalledFunction,
}

#[derive(Debug, Deserialize)]
struct CalledFunction {
    name: String,
    arguments: Arguments,
}

/// OpenAI's clients send an object as text, Ollama's as it is.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "an object, or one as text")]
enum Arguments {
    Text(String),
    Object(Map<String, Value>),
}

impl Content {
    /// As one text. `field`: where it stands.
    pub fn text(self, field: &str) -> Result<String, ApiError> {
        let parts = match self {
            Content::Text(text) => return Ok(text),
            Content::Parts(parts) => parts,
        };
        let texts = parts.into_iter().enumerate().map(|(i, part)| match (part.r#type.as_str(), part.text) {
            ("text" | "input_text" | "output_text", Some(text)) => Ok(text),
            (kind, _) => {
                let field = format!("{field}[{i}]");
                Err(ApiError::field(
                    &field,
                    format!("{field}: a part of type {kind:?}; these models read text only"),
                ))
            }
        });
        Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
    }
}

/// All messages.
pub fn all(incoming: Vec<Incoming>) -> Result<Vec<Message>, ApiError> {
    if incoming.is_empty() {
        return Err(ApiError::field("messages", "messages is empty; at least one message is needed"));
    }
    let mut messages: Vec<Message> =
        incoming.into_iter().enumerate().map(|(i, message)| one(i, message)).collect::<Result<_, _>>()?;
    name_results(&mut messages);
    Ok(messages)
}

fn one(index: usize, message: Incoming) -> Result<Message, ApiError> {
    let field = format!("messages[{index}].content");
    let text = message.content.map(|content| content.text(&field)).transpose()?;
    let role = match message.role {
        Name::System | Name::Developer => Role::System,
        Name::User => Role::User,
        Name::Assistant => Role::Assistant,
        Name::Tool | Name::Function => Role::Tool,
    };
    let calls = message.tool_calls.filter(|_| role == Role::Assistant).unwrap_or_default();
    if text.is_none() && calls.is_empty() {
        return Err(ApiError::field(&field, format!("{field} is missing")));
    }
    let (name, call_id) = match role {
        Role::Tool => (message.name, message.tool_call_id),
        _ => (None, None),
    };
    let calls = calls.into_iter().map(Called::into).collect();
    Ok(Message { calls, name, call_id, ..Message::new(role, text.unwrap_or_default()) })
}

impl From<Called> for ToolCall {
    fn from(called: Called) -> Self {
        let CalledFunction { name, arguments } = called.function;
        // Templates want the object.
        let arguments = match arguments {
            Arguments::Text(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
            Arguments::Object(object) => Value::Object(object),
        };
        ToolCall { id: called.id.unwrap_or_default(), name, arguments }
    }
}

/// A result that says which call it belongs to, but not of what tool, gets the name from there.
pub fn name_results(messages: &mut [Message]) {
    for at in 0..messages.len() {
        let (before, rest) = messages.split_at_mut(at);
        let Some(result) = rest.first_mut().filter(|message| message.role == Role::Tool) else { continue };
        let Some(id) = result.call_id.as_deref().filter(|_| result.name.is_none()) else { continue };
        let call = before.iter().rev().flat_map(|message| &message.calls).find(|call| call.id == id);
        result.name = call.map(|call| call.name.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn calls_and_results_belong_together() {
        let incoming = json!([
            { "role": "user", "content": "weather?" },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "a", "type": "function", "function": { "name": "f", "arguments": "{\"x\": 1}" } },
                { "id": "b", "type": "function", "function": { "name": "g", "arguments": "not JSON" } },
            ] },
            { "role": "tool", "tool_call_id": "b", "content": "B" },
            { "role": "tool", "tool_call_id": "a", "content": "A", "name": "own" },
            { "role": "tool", "tool_call_id": "none", "content": "?" },
            { "role": "user", "name": "Ann", "content": [{ "type": "text", "text": "So" }, { "type": "text", "text": "?" }] },
        ]);
        let messages = all(serde_json::from_value(incoming).unwrap()).unwrap();
        let names: Vec<_> = messages.iter().map(|message| message.name.as_deref()).collect();
        assert_eq!(names, [None, None, Some("g"), Some("own"), None, None]);
        assert_eq!(messages[1].content, "");
        assert_eq!(messages[1].calls[0].arguments, json!({ "x": 1 }));
        assert_eq!(messages[1].calls[1].arguments, json!("not JSON"));
        assert_eq!(messages[5].content, "So\n?");
        let list = json!({ "function": { "name": "f", "arguments": [1] } });
        assert!(
            serde_json::from_value::<Called>(list)
                .unwrap_err()
                .to_string()
                .contains("an object, or one as text")
        );
        let empty = json!([{ "role": "assistant", "tool_calls": [] }]);
        let error = all(serde_json::from_value(empty).unwrap()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages[0].content"));
    }
}
