//! What chat and text completions have in common: usage, log-probabilities, ids, and the frames of a stream.

use crate::error::ApiError;
use axum::response::sse::Event;
use nexaquant_engine::scheduler::Outcome;
use nexaquant_engine::tokenizer::Tokenizer;
use nexaquant_engine::{Scored, sampler::LogProbs};
use serde::Serialize;
use serde_json::{Value, json};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime};

/// Head of an answer: what is the same in all its frames.
#[derive(Clone, Debug)]
pub struct Head {
    /// `chatcmpl-…`.
    pub id: String,
    /// When it was asked for.
    pub created: u64,
    /// The model's name.
    pub model: String,
}

impl Head {
    /// A new one.
    pub fn new(prefix: &str, model: &str) -> Self {
        let bits = |seed: u64| {
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_u64(seed);
            hasher.finish()
        };
        let id = format!("{prefix}-{:016x}{:08x}", bits(1), bits(2) >> 32);
        Self { id, created: crate::app::unix(SystemTime::now()), model: model.to_owned() }
    }

    /// An object with these choices.
    pub fn object(&self, object: &str, choices: &Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": concat!("nexaquant-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    }
}

/// What answers took, added up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    prompt: usize,
    cached: usize,
    answer: usize,
    timings: Option<Timings>,
}

/// Times of the last answer, in llama.cpp's names and ours.
#[derive(Clone, Copy, Debug, Serialize)]
struct Timings {
    prompt_n: usize,
    prompt_ms: f64,
    prompt_per_second: f64,
    predicted_n: usize,
    predicted_ms: f64,
    predicted_per_second: f64,
    /// From arrival in the engine to the first pass.
    waited_ms: f64,
    /// From the first pass to the first token, and how much of it went into bringing weights in.
    first_token_ms: f64,
    switch_ms: f64,
    /// Bytes brought in before the first token, and in all.
    switch_bytes: u64,
    moved_bytes: u64,
    turns: u32,
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

impl Usage {
    /// Adds an answer. `shared`: its prompt was counted already, with another answer to the same question.
    pub fn add(&mut self, outcome: &Outcome, shared: bool) {
        let (stats, service) = (&outcome.generation.stats, &outcome.service);
        if !shared {
            self.prompt += stats.prompt_tokens + stats.cached_tokens;
            self.cached += stats.cached_tokens;
        }
        self.answer += stats.tokens;
        self.timings = Some(Timings {
            prompt_n: stats.prompt_tokens,
            prompt_ms: ms(stats.prompt_time),
            prompt_per_second: stats.prompt_tokens_per_s(),
            predicted_n: stats.tokens,
            predicted_ms: ms(stats.generate_time),
            predicted_per_second: stats.tokens_per_s(),
            waited_ms: ms(service.waited),
            first_token_ms: ms(service.first_token),
            switch_ms: ms(service.switch.page_in()),
            switch_bytes: service.switch.residency.bytes_loaded.0,
            moved_bytes: service.all.residency.bytes_loaded.0,
            turns: service.turns,
        });
    }

    /// Puts it into an object.
    pub fn put(&self, object: &mut Value) {
        object["usage"] = json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.answer,
            "total_tokens": self.prompt + self.answer,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        });
        if let Some(timings) = self.timings {
            object["timings"] = json!(timings);
        }
    }
}

/// A frame of a stream.
pub fn frame(value: &Value) -> Event {
    Event::default().data(value.to_string())
}

/// A frame that says what went wrong after the stream had begun.
pub fn error_frame(error: &ApiError) -> Event {
    tracing::warn!(message = error.message, "a stream ends with an error");
    Event::default().data(error.to_json())
}

/// The last frame of a stream.
pub fn last_frame() -> Event {
    Event::default().data("[DONE]")
}

fn token_json(tokenizer: &Tokenizer, id: u32, log_prob: f64) -> Value {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    // JSON has no infinity: what is impossible is as improbable as a number can say.
    let log_prob = log_prob.max(-9999.0);
    json!({ "token": String::from_utf8_lossy(&bytes), "logprob": log_prob, "bytes": bytes })
}

/// `logprobs` of chat completions.
pub fn chat_log_probs(tokenizer: &Tokenizer, scored: &[Scored]) -> Value {
    let content = scored.iter().map(|Scored { token, log_probs: LogProbs { token: log_prob, top } }| {
        let mut entry = token_json(tokenizer, *token, *log_prob);
        let top: Vec<Value> = top.iter().map(|&(id, p)| token_json(tokenizer, id, p)).collect();
        entry["top_logprobs"] = json!(top);
        entry
    });
    json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
}

/// `logprobs` of text completions. `offset` is where the first token's text begins; it is moved on.
pub fn text_log_probs(tokenizer: &Tokenizer, scored: &[Scored], offset: &mut usize) -> Value {
    let text = |id: u32| tokenizer.token_text(id).unwrap_or_default();
    let (mut tokens, mut log_probs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for one in scored {
        let token = text(one.token);
        offsets.push(*offset);
        *offset += token.chars().count();
        tokens.push(token);
        log_probs.push(one.log_probs.token.max(-9999.0));
        let top = one.log_probs.top.iter().map(|&(id, p)| (text(id), json!(p.max(-9999.0))));
        tops.push(Value::Object(top.collect()));
    }
    json!({ "tokens": tokens, "token_logprobs": log_probs, "top_logprobs": tops, "text_offset": offsets })
}
