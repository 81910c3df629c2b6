//! HTTP in front of the engine: the only crate that will know HTTP, JSON bodies and the shapes of OpenAI's API.
//!
//! Not built yet beyond its first types: how an engine error looks to a client ([`ApiError`]) and how an answer's end is
//! named ([`finish_reason`]). Routes, streaming and scheduling come with the server itself; `nexaquant serve` does not
//! exist until then.

#![forbid(unsafe_code)]

mod error;

pub use error::{ApiError, ErrorKind};

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
}
