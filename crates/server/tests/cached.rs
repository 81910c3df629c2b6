//! Answers say how much of their prompt was there already.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{alone, ask, options, start};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_question_that_begins_like_another_says_so() {
    let server = start(&["alpha"], Some(32_000_000), options()).await;
    let question = "Please tell me a long story about a small dog and a big cat. ".repeat(4);
    let wanted = alone("alpha", &question, 8);
    for (round, least) in [0, 32].into_iter().enumerate() {
        let answer = server.ok("/v1/chat/completions", &ask("alpha", &question, 8)).await;
        assert_eq!(answer["choices"][0]["message"]["content"], wanted);
        let usage = &answer["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert!(cached >= least && (cached > 0) == (round > 0), "{usage}");
        assert!(cached.is_multiple_of(32) && cached < usage["prompt_tokens"].as_u64().unwrap(), "{usage}");
    }
    let body = json!({
        "model": "alpha",
        "max_tokens": 8,
        "temperature": 0,
        "messages": [{ "role": "user", "content": question }],
    });
    let answer = server.ok("/v1/messages", &body).await;
    let usage = &answer["usage"];
    let (new, cached) = (&usage["input_tokens"], &usage["cache_read_input_tokens"]);
    assert!(cached.as_u64().unwrap() >= 32 && new.as_u64().unwrap() > 0, "{usage}");
    assert_eq!(answer["content"][0]["text"], wanted);
}
