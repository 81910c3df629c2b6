//! Messages of a conversation as OpenAI's clients send them, into what the engine's templates take.

use crate::error::ApiError;
use nexaquant_engine::chat::{Message, Role};
use serde::Deserialize;
use serde_json::Value;

/// A message as it comes.
#[derive(Debug, Deserialize)]
pub struct Incoming {
    role: Name,
    content: Option<Content>,
    tool_calls: Option<Vec<Called>>,
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

#[derive(Debug, Deserialize)]
struct Called {
    function: CalledFunction,
}

#[derive(Debug, Deserialize)]
struct CalledFunction {
    name: String,
    arguments: Value,
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
    incoming.into_iter().enumerate().map(|(i, message)| one(i, message)).collect()
}

fn one(index: usize, message: Incoming) -> Result<Message, ApiError> {
    let field = format!("messages[{index}].content");
    let mut text = message.content.map(|content| content.text(&field)).transpose()?;
    let role = match message.role {
        Name::System | Name::Developer => Role::System,
        Name::User => Role::User,
        Name::Assistant => Role::Assistant,
        Name::Tool | Name::Function => Role::Tool,
    };
    if role == Role::Assistant {
        for call in message.tool_calls.into_iter().flatten() {
            // In the words in which a model is told to call (`tools.rs`).
            let arguments = match call.function.arguments {
                Value::String(text) => text,
                other => other.to_string(),
            };
            let said = text.get_or_insert_default();
            if !said.is_empty() {
                said.push('\n');
            }
            said.push_str(&crate::tools::written(&call.function.name, &arguments));
        }
    }
    if let (Role::Tool, Some(name), Some(text)) = (role, &message.name, &mut text) {
        *text = format!("{name}: {text}");
    }
    text.map(|text| Message::new(role, text))
        .ok_or_else(|| ApiError::field(&field, format!("{field} is missing")))
}
