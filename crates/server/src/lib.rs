//! HTTP in front of the engine: the only crate that knows HTTP, JSON bodies and the shapes of other APIs.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `serve.rs`, `listen.rs`, `tls.rs` | from start to stop; connections |
//! | `router.rs`, `guard.rs`, `body.rs`, `error.rs` | routes, who may ask, bodies within limits, errors |
//! | `app.rs`, `options.rs` | what handlers share; how a server is started |
//! | `prompt.rs`, `messages.rs`, `sampling.rs`, `constrain.rs`, `tools/` | from what is asked to what the engine takes |
//! | `ask.rs`, `queue.rs`, `answer.rs` | a place in the queue, a turn, and pieces of text as they come |
//! | `openai/`, `anthropic/`, `ollama/`, `tokens.rs` | the APIs |
//! | `m3/` | who is in memory, live, and what can be done about it |
//! | `health.rs`, `metrics.rs`, `scrape.rs` | for those who run it |
//! | `page.rs`, `web/` | the page and the OpenAPI document |
//!
//! The engine is one synchronous thread. A request is submitted with a listener that passes events on to a channel;
//! dropping the answer drops the request. Handlers never wait for the engine on a thread of the runtime.

#![forbid(unsafe_code)]

mod answer;
mod anthropic;
mod app;
mod ask;
mod body;
mod constrain;
mod error;
mod guard;
mod health;
mod listen;
mod m3;
mod messages;
mod metrics;
mod ollama;
mod openai;
mod options;
mod page;
mod prompt;
mod queue;
mod rest;
mod router;
mod sampling;
mod scrape;
mod serve;
mod tls;
mod tokens;
mod tools;

pub use app::{App, Phase};
pub use error::{ApiError, ErrorKind};
pub use options::{Options, PORT, Tls};
pub use router::ROUTES;
pub use serve::{Server, serve};

use nexaquant_engine::Finish;

/// OpenAI's word for why an answer ended.
pub fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::EndOfTurn | Finish::Stop | Finish::Cancelled => "stop",
        Finish::Length | Finish::ContextFull => "length",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_have_the_names_clients_know() {
        assert_eq!(finish_reason(Finish::EndOfTurn), "stop");
        assert_eq!(finish_reason(Finish::Stop), "stop");
        assert_eq!(finish_reason(Finish::Length), "length");
        assert_eq!(finish_reason(Finish::ContextFull), "length");
    }

    #[test]
    fn the_document_has_every_route() {
        let document: serde_json::Value = serde_json::from_str(page::OPENAPI).unwrap();
        let paths = document["paths"].as_object().unwrap();
        for (method, path) in ROUTES {
            assert!(paths.get(*path).is_some_and(|item| item.get(*method).is_some()), "{method} {path}");
        }
        let described: usize = paths.values().map(|item| item.as_object().unwrap().len()).sum();
        assert_eq!(described, ROUTES.len(), "the document has no others");
    }
}
