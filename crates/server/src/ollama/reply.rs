//! What Ollama's clients get: lines of JSON, the last one with what it took.

use super::as_error;
use crate::answer::{Answer, Piece};
use crate::tools::{Call, Hold, Offer, Parsed};
use axum::body::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use nexaquant_engine::scheduler::Outcome;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::{Duration, SystemTime};

/// Now.
pub fn now() -> String {
    date(SystemTime::now())
}

/// `2026-11-24T08:30:00Z`.
pub fn date(time: SystemTime) -> String {
    let seconds = crate::app::unix(time);
    let (mut days, clock) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", month + 1, days + 1)
}

/// How a line looks.
pub struct Form {
    /// As it was asked for.
    pub model: String,
    /// Or else a text that goes on.
    pub chat: bool,
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Form {
    fn line(&self, parsed: &Parsed, done: bool) -> Value {
        let mut line = json!({ "model": self.model, "created_at": now(), "done": done });
        let text = parsed.content.as_deref().unwrap_or_default();
        if self.chat {
            line["message"] = json!({ "role": "assistant", "content": text });
            if !parsed.calls.is_empty() {
                line["message"]["tool_calls"] = parsed.calls.iter().map(called).collect();
            }
        } else {
            line["response"] = json!(text);
        }
        line
    }

    /// The last line, with everything of a whole answer or nothing of one that came before.
    pub fn last(&self, parsed: &Parsed, outcome: &Outcome) -> Value {
        let (stats, service) = (&outcome.generation.stats, &outcome.service);
        let mut line = self.line(parsed, true);
        line["done_reason"] = json!(crate::finish_reason(outcome.generation.finish));
        line["total_duration"] = json!(ns(service.waited + service.busy));
        line["load_duration"] = json!(ns(service.switch.page_in()));
        line["prompt_eval_count"] = json!(stats.prompt_tokens + stats.cached_tokens);
        line["prompt_eval_duration"] = json!(ns(stats.prompt_time));
        line["eval_count"] = json!(stats.tokens);
        line["eval_duration"] = json!(ns(stats.generate_time));
        line
    }
}

fn called(call: &Call) -> Value {
    json!({ "function": { "name": call.function.name, "arguments": call.arguments() } })
}

/// The lines of an answer as it comes.
pub fn lines(
    form: Form,
    answer: Answer,
    offer: &Offer,
) -> impl Stream<Item = Result<Bytes, Infallible>> + use<> {
    let hold = (!offer.is_empty()).then(Hold::default);
    let lines = stream::unfold(Some((form, answer, hold)), |state| async move {
        let (form, mut answer, mut hold) = state?;
        let (lines, over) = match answer.next().await {
            Ok(None) => return None,
            Ok(Some(Piece::Scored(_))) => (vec![], false),
            Ok(Some(Piece::Text(text))) => {
                let text = hold.as_mut().map_or_else(|| text.clone(), |hold| hold.pass(&text));
                let said = (!text.is_empty()).then(|| form.line(&Parsed::text(text), false));
                (said.into_iter().collect(), false)
            }
            Ok(Some(Piece::Done(outcome))) => {
                let left = hold.as_mut().map(Hold::end).unwrap_or_default();
                let said = left.content.is_some() || !left.calls.is_empty();
                let said = said.then(|| form.line(&left, false));
                let last = form.last(&Parsed::default(), &outcome);
                (said.into_iter().chain([last]).collect(), true)
            }
            Err(error) => (vec![as_error(&error)], true),
        };
        let lines: Vec<Bytes> = lines.iter().map(|line: &Value| Bytes::from(format!("{line}\n"))).collect();
        Some((lines, (!over).then_some((form, answer, hold))))
    });
    lines.flat_map(stream::iter).map(Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
