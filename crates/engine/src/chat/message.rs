//! Messages, and the tools and calls in them: as callers give them, as templates see them.

use minijinja::Value;
use minijinja::value::Serde;
use serde_json::{Value as Json, json};

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Whoever runs the model.
    System,
    /// The person, or program, that asks.
    User,
    /// The model.
    Assistant,
    /// A tool the model called.
    Tool,
}

impl Role {
    /// The name templates know.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::System => "System",
            Self::User => "User",
            Self::Assistant => "Assistant",
            Self::Tool => "Tool",
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// Tools that the model called with it, for templates that mention `tool_calls`.
    pub calls: Vec<ToolCall>,
    /// The tool whose result this is.
    pub name: Option<String>,
    /// The call whose result this is.
    pub call_id: Option<String>,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Its own name, which its result refers to.
    pub id: String,
    /// What is called.
    pub name: String,
    /// With what: an object, or text that is none.
    pub arguments: Json,
}

impl Message {
    /// A message that is only text.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), calls: Vec::new(), name: None, call_id: None }
    }

    /// Every text in it.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        let calls = self.calls.iter();
        let calls =
            calls.flat_map(|call| [call.id.as_str(), &call.name].into_iter().chain(texts(&call.arguments)));
        [Some(&self.content), self.name.as_ref(), self.call_id.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .chain(calls)
    }

    /// With every text changed.
    pub(super) fn map(&self, change: &impl Fn(&str) -> String) -> Self {
        let call = |call: &ToolCall| ToolCall {
            id: change(&call.id),
            name: change(&call.name),
            arguments: map(&call.arguments, change),
        };
        Self {
            role: self.role,
            content: change(&self.content),
            calls: self.calls.iter().map(call).collect(),
            name: self.name.as_deref().map(change),
            call_id: self.call_id.as_deref().map(change),
        }
    }

    /// As templates expect it. What is not there has no key, since they ask for that.
    pub(super) fn as_variable(&self) -> Value {
        let mut variable = json!({ "role": self.role.as_str(), "content": self.content });
        if !self.calls.is_empty() {
            let call = |call: &ToolCall| {
                let function = json!({ "name": call.name, "arguments": call.arguments });
                json!({ "id": call.id, "type": "function", "function": function })
            };
            variable["tool_calls"] = self.calls.iter().map(call).collect();
        }
        for (key, value) in [("name", &self.name), ("tool_call_id", &self.call_id)] {
            if let Some(value) = value {
                variable[key] = json!(value);
            }
        }
        Value::from(Serde(variable))
    }
}

/// Every text in a JSON value, keys too.
pub(super) fn texts(value: &Json) -> Box<dyn Iterator<Item = &str> + '_> {
    match value {
        Json::String(text) => Box::new(std::iter::once(text.as_str())),
        Json::Array(values) => Box::new(values.iter().flat_map(texts)),
        Json::Object(object) => {
            Box::new(object.iter().flat_map(|(key, value)| std::iter::once(key.as_str()).chain(texts(value))))
        }
        _ => Box::new(std::iter::empty()),
    }
}

/// A JSON value with every text changed. A key that is a plain word stays, so that templates find it; no control token is
/// one.
pub(super) fn map(value: &Json, change: &impl Fn(&str) -> String) -> Json {
    let plain = |key: &str| {
        key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'-'))
    };
    match value {
        Json::String(text) => Json::String(change(text)),
        Json::Array(values) => values.iter().map(|value| map(value, change)).collect(),
        Json::Object(object) => {
            let entry = |(key, value): (&String, &Json)| {
                (if plain(key) { key.clone() } else { change(key) }, map(value, change))
            };
            Json::Object(object.iter().map(entry).collect())
        }
        other => other.clone(),
    }
}
