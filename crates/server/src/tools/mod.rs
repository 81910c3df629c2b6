//! Tools: what a model may call, how it is told so, and how its calls are recognised.
//!
//! `tell.rs` tells the model, through its template where that has words for it. `found.rs` finds calls in what it says. A
//! choice that demands a call makes the answer follow a schema, so it is a call for certain.

mod found;
mod tell;

pub use found::{Call, Hold, Parsed};
pub use tell::tell;

use crate::error::ApiError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

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
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Map<String, Value>>,
}

impl Tool {
    /// A function.
    pub fn function(
        name: String,
        description: Option<String>,
        parameters: Option<Map<String, Value>>,
    ) -> Self {
        Self { r#type: "function".to_owned(), function: Function { name, description, parameters } }
    }
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

/// The tools that may be called, and whether one must be.
#[derive(Clone, Debug, Default)]
pub struct Offer {
    tools: Vec<Tool>,
    must: bool,
}

impl Offer {
    /// What a request offers.
    ///
    /// # Errors
    /// Tools that are no functions, a choice that is not among them.
    pub fn new(tools: Option<Vec<Tool>>, choice: Option<Choice>) -> Result<Self, ApiError> {
        let tools = tools.unwrap_or_default();
        if let Some(i) = tools.iter().position(|tool| tool.r#type != "function") {
            let field = format!("tools[{i}].type");
            return Err(ApiError::field(
                &field,
                format!("{field} is {:?}; only function is known", tools[i].r#type),
            ));
        }
        match choice.unwrap_or_default() {
            Choice::Word(Word::None) => Ok(Self::default()),
            Choice::Word(Word::Required) if tools.is_empty() => {
                Err(ApiError::field("tool_choice", "a tool is required, but there are none"))
            }
            Choice::Word(Word::Required) => Ok(Self { tools, must: true }),
            Choice::Word(Word::Auto) | Choice::Unsaid => Ok(Self { tools, must: false }),
            Choice::Named { function } => {
                let named: Vec<Tool> =
                    tools.into_iter().filter(|tool| tool.function.name == function.name).collect();
                if named.is_empty() {
                    let message =
                        format!("tool_choice names {:?}, which is not among the tools", function.name);
                    return Err(ApiError::field("tool_choice", message));
                }
                Ok(Self { tools: named, must: true })
            }
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// The schema of an answer that must be a call.
    pub fn forced(&self) -> Option<Value> {
        if !self.must {
            return None;
        }
        let call = |tool: &Tool| {
            let arguments = tool
                .function
                .parameters
                .as_ref()
                .map_or_else(|| json!({ "type": "object" }), |schema| json!(schema));
            json!({
                "type": "object",
                "properties": { "name": { "const": tool.function.name }, "arguments": arguments },
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        };
        Some(match self.tools.as_slice() {
            [one] => call(one),
            many => json!({ "anyOf": many.iter().map(call).collect::<Vec<_>>() }),
        })
    }

    /// What is said, taken apart if it may have calls in it.
    pub fn parse(&self, text: String) -> Parsed {
        if self.is_empty() { Parsed::text(text) } else { Parsed::of(&text) }
    }
}
