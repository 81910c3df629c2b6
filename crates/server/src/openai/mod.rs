//! OpenAI's API: `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`, `/v1/models`.

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod models;
mod parts;
mod stream;

/// A name for a call of a tool.
pub fn call_id(index: usize) -> String {
    format!("{}-{index}", parts::Head::new("call", "").id)
}

/// A name for a message of Anthropic's API.
pub fn message_id() -> String {
    parts::Head::new("msg", "").id
}
