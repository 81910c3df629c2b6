//! What Anthropic's clients send, into what the engine's templates and our tools take.

use crate::error::ApiError;
use crate::messages::{Content, name_results};
use crate::tools::{Choice, Named, Offer, Tool, Word};
use nexaquant_engine::chat::{Message, Role, ToolCall};
use serde::Deserialize;
use serde_json::{Map, Value};

/// A request; the fields of sampling are read from the same body.
#[derive(Debug, Deserialize)]
pub struct Body {
    pub model: String,
    messages: Vec<Incoming>,
    system: Option<Content>,
    /// Needed for an answer, not for counting.
    pub max_tokens: Option<u32>,
    pub stop_sequences: Option<Vec<String>>,
    tools: Option<Vec<Offered>>,
    tool_choice: Option<Chosen>,
}

#[derive(Debug, Deserialize)]
struct Incoming {
    role: Who,
    content: Blocks,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Who {
    User,
    Assistant,
    System,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a list of blocks with a type")]
enum Blocks {
    Text(String),
    Blocks(Vec<Block>),
}

/// A block of any type: each has some of the fields.
#[derive(Debug, Deserialize)]
struct Block {
    r#type: String,
    text: Option<String>,
    id: Option<String>,
    name: Option<String>,
    input: Option<Map<String, Value>>,
    tool_use_id: Option<String>,
    content: Option<Content>,
    is_error: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Offered {
    r#type: Option<String>,
    name: String,
    description: Option<String>,
    input_schema: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct Chosen {
    r#type: String,
    name: Option<String>,
}

impl Body {
    /// The conversation, and what may be called.
    pub fn conversation(&mut self) -> Result<(Vec<Message>, Offer), ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::field("messages", "messages is empty; at least one message is needed"));
        }
        let mut messages = Vec::new();
        if let Some(system) = self.system.take() {
            messages.push(Message::new(Role::System, system.text("system")?));
        }
        for (i, message) in std::mem::take(&mut self.messages).into_iter().enumerate() {
            messages.extend(message.messages(&format!("messages[{i}].content"))?);
        }
        name_results(&mut messages);
        Ok((messages, self.offer()?))
    }

    fn offer(&mut self) -> Result<Offer, ApiError> {
        let tool = |(i, tool): (usize, Offered)| match tool.r#type.as_deref() {
            None | Some("custom") => Ok(Tool::function(tool.name, tool.description, tool.input_schema)),
            Some(other) => {
                let field = format!("tools[{i}].type");
                Err(ApiError::field(&field, format!("{field} is {other:?}; only custom tools are known")))
            }
        };
        let tools = self.tools.take().unwrap_or_default().into_iter().enumerate().map(tool);
        let choice = self.tool_choice.take().map(Chosen::choice).transpose()?;
        Offer::new(Some(tools.collect::<Result<_, _>>()?), choice)
    }
}

impl Chosen {
    fn choice(self) -> Result<Choice, ApiError> {
        match (self.r#type.as_str(), self.name) {
            ("auto", _) => Ok(Choice::Word(Word::Auto)),
            ("any", _) => Ok(Choice::Word(Word::Required)),
            ("none", _) => Ok(Choice::Word(Word::None)),
            ("tool", Some(name)) => Ok(Choice::Named { function: Named { name } }),
            ("tool", None) => Err(ApiError::field("tool_choice.name", "tool_choice.name is missing")),
            (other, _) => {
                let message = format!("tool_choice.type is {other:?}; there are auto, any, tool and none");
                Err(ApiError::field("tool_choice.type", message))
            }
        }
    }
}

impl Incoming {
    /// Results of tools are messages of their own, before what is said beside them.
    fn messages(self, field: &str) -> Result<Vec<Message>, ApiError> {
        let role = match self.role {
            Who::User => Role::User,
            Who::Assistant => Role::Assistant,
            Who::System => Role::System,
        };
        let blocks = match self.content {
            Blocks::Text(text) => return Ok(vec![Message::new(role, text)]),
            Blocks::Blocks(blocks) => blocks,
        };
        let (mut all, mut texts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        for (i, block) in blocks.into_iter().enumerate() {
            let field = format!("{field}[{i}]");
            let missing = |what: &str| ApiError::field(&field, format!("{field}.{what} is missing"));
            match block.r#type.as_str() {
                "text" => texts.push(block.text.ok_or_else(|| missing("text"))?),
                "tool_use" => calls.push(ToolCall {
                    id: block.id.ok_or_else(|| missing("id"))?,
                    name: block.name.ok_or_else(|| missing("name"))?,
                    arguments: Value::Object(block.input.ok_or_else(|| missing("input"))?),
                }),
                "tool_result" => {
                    let text = block.content.map(|content| content.text(&format!("{field}.content")));
                    let text = text.transpose()?.unwrap_or_default();
                    let text = if block.is_error == Some(true) { format!("Error: {text}") } else { text };
                    let call_id = Some(block.tool_use_id.ok_or_else(|| missing("tool_use_id"))?);
                    all.push(Message { call_id, ..Message::new(Role::Tool, text) });
                }
                // What a model thought before is not told to these.
                "thinking" | "redacted_thinking" => {}
                other => {
                    let message =
                        format!("{field}: a block of type {other:?}; these models read text and tools");
                    return Err(ApiError::field(&field, message));
                }
            }
        }
        if all.is_empty() || !texts.is_empty() || !calls.is_empty() {
            all.push(Message { calls, ..Message::new(role, texts.join("\n")) });
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn blocks_become_messages() {
        let mut body: Body = serde_json::from_value(json!({
            "model": "m",
            "system": [{ "type": "text", "text": "Be brief." }],
            "messages": [
                { "role": "user", "content": "q" },
                { "role": "assistant", "content": [{ "type": "tool_use", "id": "t", "name": "f", "input": { "x": 1 } }] },
                { "role": "user", "content": [
                    { "type": "text", "text": "See." },
                    { "type": "tool_result", "tool_use_id": "t", "content": "no", "is_error": true },
                ] },
                { "role": "user", "content": [] },
            ],
            "tools": [{ "name": "f" }, { "name": "g", "type": "custom" }],
            "tool_choice": { "type": "tool", "name": "g" },
        }))
        .unwrap();
        let (messages, offer) = body.conversation().unwrap();
        let said: Vec<_> = messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        let wanted = [
            ("system", "Be brief."),
            ("user", "q"),
            ("assistant", ""),
            ("tool", "Error: no"),
            ("user", "See."),
            ("user", ""),
        ];
        assert_eq!(said, wanted);
        assert_eq!((messages[2].calls[0].name.as_str(), messages[3].name.as_deref()), ("f", Some("f")));
        assert_eq!(offer.forced().unwrap()["properties"]["name"]["const"], "g");
    }
}
