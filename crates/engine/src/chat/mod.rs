//! Conversations to token ids, through the template in the model file.
//!
//! A template is a program from a stranger and runs under the limits of [`sandbox`]. What users wrote is data: text in
//! a message that spells a control token (`<|im_end|>`) stays text, while the template's own control tokens are
//! control tokens. [`shield`] says how.
//!
//! Not here: which template suits which model; the file decides. A file without one gets the plain form of
//! [`ChatTemplate::plain`].

mod library;
mod message;
mod sandbox;
mod shield;

use crate::tokenizer::{MAX_TEXT_BYTES, Special, Tokenizer, TokenizerError};
pub use message::{Message, Role, ToolCall};
use minijinja::Value;
use minijinja::value::Serde;
use nexaquant_gguf::Metadata;
use shield::{Shield, Shielded};
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest template accepted, in bytes. The longest known have about 20,000.
pub const MAX_TEMPLATE_BYTES: usize = 128 << 10;
/// Most messages of a conversation.
pub const MAX_MESSAGES: usize = 10_000;

/// Why a conversation cannot be put into words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The template is longer than [`MAX_TEMPLATE_BYTES`].
    #[error("the chat template has {bytes} bytes; at most {most} are accepted")]
    TemplateTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// The metadata of the file are wrong.
    #[error("the chat template of this file cannot be read: {0}")]
    Metadata(#[from] nexaquant_gguf::Error),
    /// The template is not a Jinja template, or uses something no chat template needs.
    #[error("the chat template of this file is not valid: {reason}")]
    Syntax {
        /// What is wrong, and in which line.
        reason: String,
    },
    /// The template itself refuses the conversation, for example because roles do not alternate.
    #[error("the chat template refuses this conversation: {message}")]
    Refused {
        /// What the template says.
        message: String,
    },
    /// The template failed.
    #[error("the chat template failed: {reason}")]
    Failed {
        /// What is wrong, and in which line.
        reason: String,
    },
    /// The template wants more steps, depth or memory than a conversation of this size needs.
    #[error("the chat template was stopped: {reason}")]
    Stopped {
        /// The limit it met.
        reason: String,
    },
    /// More than [`MAX_MESSAGES`] messages or [`MAX_TEXT_BYTES`] of text.
    #[error(
        "the conversation has {messages} messages of {bytes} bytes; at most {MAX_MESSAGES} of {MAX_TEXT_BYTES} are accepted"
    )]
    TooLong {
        /// Number of messages.
        messages: usize,
        /// Bytes of text in them.
        bytes: usize,
    },
    /// The result cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// How a conversation is rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderOptions {
    /// Whether the text ends where the assistant is to speak. Default true.
    pub add_generation_prompt: bool,
    /// The variable `enable_thinking`, which some templates ask for; not set if None. Default None.
    pub enable_thinking: Option<bool>,
    /// The variable `tools`: what the model may call, each as an object in the form its template knows. Empty: none.
    pub tools: Vec<serde_json::Value>,
    /// What templates that print a date take for now. Default: the clock, in UTC.
    pub now: Option<SystemTime>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, enable_thinking: None, tools: Vec::new(), now: None }
    }
}

/// How conversations with one model are written.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    /// As given; None for the plain form.
    source: Option<String>,
    /// As it runs.
    prepared: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// The template of a model file, or the [plain form](Self::plain) if it has none.
    ///
    /// # Errors
    /// A template that is too long or not valid.
    pub fn from_metadata(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Self, ChatError> {
        let name = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
        match metadata.str("tokenizer.chat_template")? {
            Some(source) if !source.trim().is_empty() => {
                Self::new(source, &name(tokenizer.bos()), &name(tokenizer.eos()))
            }
            _ => Ok(Self::plain()),
        }
    }

    /// A template given as text. `bos`, `eos`: the names of those tokens, which it may print.
    ///
    /// # Errors
    /// As [`from_metadata`](Self::from_metadata).
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, ChatError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(ChatError::TemplateTooLong { bytes: source.len(), most: MAX_TEMPLATE_BYTES });
        }
        let prepared = sandbox::prepare(&library::without_generation_tags(source))?;
        sandbox::check(&prepared)?;
        Ok(Self { source: Some(source.to_owned()), prepared, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// For models without a template: every message as a line that starts with its role, `User: …`.
    pub fn plain() -> Self {
        Self { source: None, prepared: String::new(), bos: String::new(), eos: String::new() }
    }

    /// The template; None for the plain form.
    pub fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// Whether the template has a variable of that name, or something it calls so. One that does not mention `tools` or
    /// `tool_calls` says nothing of them.
    pub fn mentions(&self, name: &str) -> bool {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        self.source.iter().flat_map(|source| source.split(|c| !word(c))).any(|found| found == name)
    }

    /// Strings that end the assistant's turn because no token does: those of the plain form.
    pub fn stops(&self) -> &'static [&'static str] {
        if self.source.is_some() { &[] } else { &["\nUser:", "\nSystem:", "\nTool:"] }
    }

    /// Token ids of a conversation, with one beginning-of-sequence token where the file asks for one.
    ///
    /// A template that refuses a system message, or says nothing of it, gets its text at the beginning of the first
    /// user message instead.
    ///
    /// # Errors
    /// A template that fails, refuses the conversation, or wants too much; a conversation that is too long.
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<Vec<u32>, ChatError> {
        let mut ids = if self.source.is_some() {
            let shielded = self.shielded(tokenizer, messages, options)?;
            tokenizer.encode_where(&shielded.text, |at| shielded.allows(at))?
        } else {
            tokenizer.encode(&self.render_text(tokenizer, messages, options)?, Special::AsText)?
        };
        tokenizer.prepend_bos(&mut ids);
        Ok(ids)
    }

    /// The text [`render`](Self::render) encodes, for people to look at: it does not tell control tokens from text
    /// that looks like them.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_text(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String, ChatError> {
        if self.source.is_some() {
            return self.shielded(tokenizer, messages, options).map(|shielded| shielded.text);
        }
        measure(messages, &options.tools)?;
        let lines =
            messages.iter().map(|message| format!("{}: {}\n", message.role.title(), message.content.trim()));
        let mut text: String = lines.collect();
        if options.add_generation_prompt {
            text.push_str("Assistant:");
        }
        Ok(text)
    }

    fn shielded(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<Shielded, ChatError> {
        measure(messages, &options.tools)?;
        let texts =
            messages.iter().flat_map(Message::texts).chain(options.tools.iter().flat_map(message::texts));
        let shield = Shield::new(tokenizer, &self.prepared, texts)?;
        let protect = |text: &str| shield.protect(text);
        let messages: Vec<Message> = messages.iter().map(|message| message.map(&protect)).collect();
        let tools = options.tools.iter().map(|tool| message::map(tool, &protect)).collect();
        let options = &RenderOptions { tools, ..options.clone() };
        let rendered = self.run(&messages, options);
        let Some((system, others)) = without_system(&messages) else {
            return rendered.map(|text| shield.remove(&text));
        };
        let heard = rendered.as_ref().is_ok_and(|text| text.contains(system.trim()));
        let rendered = if heard {
            rendered
        } else {
            // The second attempt counts only if it succeeds; otherwise the first says more.
            self.run(&others, options).or(rendered)
        };
        rendered.map(|text| shield.remove(&text))
    }

    fn run(&self, messages: &[Message], options: &RenderOptions) -> Result<String, ChatError> {
        let messages: Vec<Value> = messages.iter().map(Message::as_variable).collect();
        let tools = (!options.tools.is_empty()).then(|| Value::from(Serde(&options.tools)));
        let mut variables = BTreeMap::from([
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("bos_token", Value::from(self.bos.as_str())),
            ("eos_token", Value::from(self.eos.as_str())),
            // As Hugging Face does: present, but none.
            ("tools", Value::from(tools)),
            ("documents", Value::from(())),
        ]);
        if let Some(thinking) = options.enable_thinking {
            variables.insert("enable_thinking", Value::from(thinking));
        }
        let now = options.now.unwrap_or_else(SystemTime::now);
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        sandbox::run(&self.prepared, Value::from(variables), seconds)
    }
}

fn measure(messages: &[Message], tools: &[serde_json::Value]) -> Result<(), ChatError> {
    let texts = messages.iter().flat_map(Message::texts).chain(tools.iter().flat_map(message::texts));
    let bytes = texts.map(str::len).sum();
    if messages.len() > MAX_MESSAGES || bytes > MAX_TEXT_BYTES {
        return Err(ChatError::TooLong { messages: messages.len(), bytes });
    }
    Ok(())
}

/// The text of the system messages, and the conversation with it inside the first user message. None if there is
/// nothing to move.
fn without_system(messages: &[Message]) -> Option<(String, Vec<Message>)> {
    let (system, mut others): (Vec<Message>, Vec<Message>) =
        messages.iter().cloned().partition(|message| message.role == Role::System);
    let texts: Vec<&str> =
        system.iter().map(|message| message.content.trim()).filter(|text| !text.is_empty()).collect();
    if texts.is_empty() {
        return None;
    }
    let moved = texts.join("\n\n");
    match others.iter_mut().find(|message| message.role == Role::User) {
        Some(user) => user.content = format!("{moved}\n\n{}", user.content),
        None => others.insert(0, Message::new(Role::User, moved)),
    }
    Some((texts[0].to_owned(), others))
}

#[cfg(test)]
mod tests;
