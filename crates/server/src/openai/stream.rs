//! The frames of a stream, whatever the kind of completion: choices as they come, what was used, and `[DONE]` or an error.

use super::parts::{Head, Usage, error_frame, frame, last_frame};
use crate::answer::{Piece, Pieces};
use axum::response::sse::Event;
use futures_util::stream::{self, Stream, StreamExt};
use nexaquant_engine::Scored;
use nexaquant_engine::scheduler::Outcome;
use serde_json::{Value, json};
use std::convert::Infallible;

/// How one kind of completion writes what comes of its answers: each value is a choice, in a frame of its own.
pub trait Choices: Send + 'static {
    /// Before anything is computed.
    fn first(&self) -> Vec<Value>;
    /// A token's score. Its text follows.
    fn scored(&mut self, index: usize, scored: Scored);
    /// Text.
    fn text(&mut self, index: usize, text: &str) -> Vec<Value>;
    /// The end of an answer.
    fn end(&mut self, index: usize, outcome: &Outcome) -> Vec<Value>;
}

/// What is the same in all frames, and what is counted until the last one.
pub struct Frames<C> {
    head: Head,
    /// `chat.completion.chunk`, `text_completion`.
    object: &'static str,
    choices: C,
    includes_usage: bool,
    usage: Usage,
    /// Answers to each prompt.
    n: usize,
    /// Prompts that are in the usage.
    counted: Vec<bool>,
    /// Answers that are not over.
    left: usize,
}

impl<C: Choices> Frames<C> {
    /// For the `n` answers to each of `prompts` prompts.
    pub fn new(head: Head, object: &'static str, choices: C, prompts: usize, n: usize) -> Self {
        let (usage, counted, left) = (Usage::default(), vec![false; prompts], prompts * n);
        Self { head, object, choices, includes_usage: false, usage, n, counted, left }
    }

    /// Whether the stream ends with what was used.
    pub fn with_usage(mut self, includes: bool) -> Self {
        self.includes_usage = includes;
        self
    }

    /// The frames of these pieces.
    pub fn of(self, pieces: Pieces) -> impl Stream<Item = Result<Event, Infallible>> + use<C> {
        let first = self.chunks(&self.choices.first());
        let rest = stream::unfold(Some((self, pieces)), |state| async move {
            let (mut frames, mut pieces) = state?;
            // Pieces end without an end only after an error, and that was said.
            let (index, piece) = pieces.next().await?;
            let (events, over) = match piece {
                Ok(piece) => (frames.piece(index, piece), frames.left == 0),
                Err(error) => (vec![error_frame(&error)], true),
            };
            Some((events, (!over).then_some((frames, pieces))))
        });
        stream::iter(first).chain(rest.flat_map(stream::iter)).map(Ok)
    }

    fn chunk(&self, choice: &Value) -> Event {
        let mut object = self.head.object(self.object, &json!([choice]));
        if self.includes_usage {
            object["usage"] = Value::Null;
        }
        frame(&object)
    }

    fn chunks(&self, choices: &[Value]) -> Vec<Event> {
        choices.iter().map(|choice| self.chunk(choice)).collect()
    }

    fn piece(&mut self, index: usize, piece: Piece) -> Vec<Event> {
        match piece {
            Piece::Scored(scored) => {
                self.choices.scored(index, *scored);
                Vec::new()
            }
            Piece::Text(text) => {
                let choices = self.choices.text(index, &text);
                self.chunks(&choices)
            }
            Piece::Done(outcome) => {
                let choices = self.choices.end(index, &outcome);
                let mut events = self.chunks(&choices);
                let counted = std::mem::replace(&mut self.counted[index / self.n], true);
                self.usage.add(&outcome, counted);
                self.left -= 1;
                if self.left == 0 {
                    events.extend(self.last());
                }
                events
            }
        }
    }

    fn last(&self) -> Vec<Event> {
        let mut events = Vec::new();
        if self.includes_usage {
            let mut object = self.head.object(self.object, &json!([]));
            self.usage.put(&mut object);
            events.push(frame(&object));
        }
        events.push(last_frame());
        events
    }
}
