//! What Anthropic's clients get: a message of blocks, whole or event by event.

use super::as_error;
use crate::answer::{Answer, Piece};
use crate::tools::{Call, Hold, Offer, Parsed};
use axum::response::sse::Event;
use futures_util::stream::{self, Stream, StreamExt};
use nexaquant_engine::Finish;
use nexaquant_engine::scheduler::Outcome;
use serde_json::{Value, json};
use std::convert::Infallible;

/// What is known before the answer.
pub struct Head {
    pub id: String,
    pub model: String,
    pub input: usize,
}

impl Head {
    fn message(&self, content: &Value) -> Value {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": null, "stop_sequence": null,
            "usage": { "input_tokens": self.input, "output_tokens": 0 },
        })
    }

    /// The whole answer.
    pub fn whole(&self, outcome: &Outcome, offer: &Offer) -> Value {
        let Parsed { content, calls } = offer.parse(outcome.generation.text.clone());
        let text = content.map(|text| json!({ "type": "text", "text": text }));
        let blocks: Vec<Value> = text.into_iter().chain(calls.iter().map(tool_use)).collect();
        let mut message = self.message(&json!(blocks));
        message["stop_reason"] = json!(stop_reason(outcome, !calls.is_empty()));
        message["usage"] = usage(outcome);
        message
    }
}

fn tool_use(call: &Call) -> Value {
    json!({ "type": "tool_use", "id": call.id, "name": call.function.name, "input": call.arguments() })
}

fn stop_reason(outcome: &Outcome, called: bool) -> &'static str {
    match outcome.generation.finish {
        _ if called => "tool_use",
        Finish::Stop => "stop_sequence",
        Finish::Length | Finish::ContextFull => "max_tokens",
        Finish::EndOfTurn | Finish::Cancelled => "end_turn",
    }
}

fn usage(outcome: &Outcome) -> Value {
    let stats = &outcome.generation.stats;
    json!({
        "input_tokens": stats.prompt_tokens,
        "cache_read_input_tokens": stats.cached_tokens,
        "output_tokens": stats.tokens,
    })
}

/// The events of an answer as it comes.
pub fn events(
    head: &Head,
    answer: Answer,
    offer: &Offer,
) -> impl Stream<Item = Result<Event, Infallible>> + use<> {
    let mut blocks = Blocks { next: 0, open: false, hold: (!offer.is_empty()).then(Hold::default) };
    let mut first = vec![json!({ "type": "message_start", "message": head.message(&json!([])) })];
    if offer.is_empty() {
        // Nothing but text will come.
        first.push(blocks.start_text());
    }
    first.push(json!({ "type": "ping" }));
    let rest = stream::unfold(Some((answer, blocks)), |state| async move {
        let (mut answer, mut blocks) = state?;
        let (values, over) = match answer.next().await {
            Ok(None) => return None,
            Ok(Some(Piece::Scored(_))) => (vec![], false),
            Ok(Some(Piece::Text(text))) => (blocks.text(&text), false),
            Ok(Some(Piece::Done(outcome))) => (blocks.end(&outcome), true),
            Err(error) => (vec![as_error(&error)], true),
        };
        Some((values, (!over).then_some((answer, blocks))))
    });
    let event = |value: Value| {
        let name = value["type"].as_str().unwrap_or_default();
        Ok(Event::default().event(name).data(value.to_string()))
    };
    stream::iter(first).chain(rest.flat_map(stream::iter)).map(event)
}

/// The blocks of a stream: text, then calls.
struct Blocks {
    /// The index of the block that is open, or comes next.
    next: usize,
    open: bool,
    /// What may be a call; none if there are no tools.
    hold: Option<Hold>,
}

impl Blocks {
    fn start(&mut self, block: &Value) -> Value {
        self.open = true;
        json!({ "type": "content_block_start", "index": self.next, "content_block": block })
    }

    fn start_text(&mut self) -> Value {
        self.start(&json!({ "type": "text", "text": "" }))
    }

    fn delta(&self, delta: &Value) -> Value {
        json!({ "type": "content_block_delta", "index": self.next, "delta": delta })
    }

    fn stop(&mut self) -> Value {
        let stop = json!({ "type": "content_block_stop", "index": self.next });
        (self.next, self.open) = (self.next + 1, false);
        stop
    }

    fn text(&mut self, text: &str) -> Vec<Value> {
        let text = match &mut self.hold {
            Some(hold) => hold.pass(text),
            None => text.to_owned(),
        };
        self.said(&text)
    }

    fn said(&mut self, text: &str) -> Vec<Value> {
        let mut values = Vec::new();
        if text.is_empty() {
            return values;
        }
        if !self.open {
            values.push(self.start_text());
        }
        values.push(self.delta(&json!({ "type": "text_delta", "text": text })));
        values
    }

    fn end(&mut self, outcome: &Outcome) -> Vec<Value> {
        let Parsed { content, calls } = self.hold.as_mut().map(Hold::end).unwrap_or_default();
        let mut values = self.said(&content.unwrap_or_default());
        if self.next == 0 && !self.open && calls.is_empty() {
            // Clients look at the first block, even of an answer without a word.
            values.push(self.start_text());
        }
        if self.open {
            values.push(self.stop());
        }
        for call in &calls {
            let block = json!({ "type": "tool_use", "id": call.id, "name": call.function.name, "input": {} });
            values.push(self.start(&block));
            let json = &call.function.arguments;
            values.push(self.delta(&json!({ "type": "input_json_delta", "partial_json": json })));
            values.push(self.stop());
        }
        let reason = stop_reason(outcome, !calls.is_empty());
        let delta = json!({ "stop_reason": reason, "stop_sequence": null });
        values.push(json!({ "type": "message_delta", "delta": delta, "usage": usage(outcome) }));
        values.push(json!({ "type": "message_stop" }));
        values
    }
}
