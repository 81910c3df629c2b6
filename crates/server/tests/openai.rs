//! OpenAI's API against a real engine: shapes, streams, what goes wrong.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{alone, ask, frames, options, start, until};
use nexaquant_server::Options;
use serde_json::{Value, json};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_is_answered_whole_and_streamed() {
    let server = start(&["alpha"], Some(8_000_000), options()).await;
    let question = "What is your name?";
    let wanted = alone("alpha", question, 24);
    let whole = server.ok(CHAT, &ask("alpha", question, 24)).await;
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"][0]["message"]["content"], wanted);
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");
    let usage = &whole["usage"];
    assert_eq!(
        usage["total_tokens"].as_u64().unwrap(),
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap()
    );

    let mut streamed = ask("alpha", question, 24);
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({ "include_usage": true });
    let frames = frames(server.post(CHAT, &streamed).send().await.unwrap()).await;
    assert_eq!(frames.last().unwrap(), "[DONE]");
    let values: Vec<Value> =
        frames[..frames.len() - 1].iter().map(|frame| serde_json::from_str(frame).unwrap()).collect();
    assert!(
        values
            .iter()
            .all(|value| value["object"] == "chat.completion.chunk" && value["id"] == values[0]["id"])
    );
    assert_eq!(values[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let (last, others) = values.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], *usage);
    assert!(others.iter().all(|value| value["usage"].is_null()));
    let text: String =
        others.iter().filter_map(|value| value["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, wanted);
    let reasons: Vec<&str> =
        others.iter().filter_map(|value| value["choices"][0]["finish_reason"].as_str()).collect();
    assert_eq!(reasons, [whole["choices"][0]["finish_reason"].as_str().unwrap()]);
    // All that is left is weights.
    until("everything is given back", || server.held() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sampling_is_heard() {
    let server = start(&["alpha"], None, options()).await;
    let with = |more: Value| {
        let mut body = ask("alpha", "Tell me a story about a fox.", 12);
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        body
    };
    // Several answers, the same again with the same seed.
    let several = with(json!({ "n": 3, "seed": 5, "temperature": 1.0 }));
    let (one, two) = (server.ok(CHAT, &several).await, server.ok(CHAT, &several).await);
    let texts = |value: &Value| -> Vec<String> {
        let choices = value["choices"].as_array().unwrap();
        choices.iter().map(|c| c["message"]["content"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(texts(&one), texts(&two));
    assert_eq!(texts(&one).len(), 3);
    assert_ne!(texts(&one)[0], texts(&one)[1]);
    // A stop text ends it and is not in it.
    let all = texts(&server.ok(CHAT, &with(json!({}))).await).remove(0);
    let word = all.split_whitespace().nth(3).unwrap().to_owned();
    let stopped = server.ok(CHAT, &with(json!({ "stop": word }))).await;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert!(!texts(&stopped)[0].contains(&word));
    let long = server.ok(CHAT, &with(json!({ "max_completion_tokens": 3 }))).await;
    assert_eq!(
        (&long["choices"][0]["finish_reason"], &long["usage"]["completion_tokens"]),
        (&json!("length"), &json!(3))
    );
    // A bias forbids a token.
    let first = server.ok(CHAT, &with(json!({ "logprobs": true, "top_logprobs": 2, "max_tokens": 1 }))).await;
    let entry = &first["choices"][0]["logprobs"]["content"][0];
    assert_eq!(entry["top_logprobs"][0]["token"], entry["token"], "greedy takes the likeliest");
    assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
    assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 2);
    let ids = server.ok("/tokenize", &json!({ "content": entry["token"].as_str().unwrap().trim() })).await;
    let id = ids["tokens"][0].as_u64().unwrap().to_string();
    let other = server
        .ok(CHAT, &with(json!({ "logit_bias": { id: -100 }, "logprobs": true, "max_tokens": 1 })))
        .await;
    assert_ne!(other["choices"][0]["logprobs"]["content"][0]["token"], entry["token"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_go_on() {
    let server = start(&["alpha"], None, options()).await;
    let body = json!({ "model": "alpha", "prompt": ["Once upon a time", "The sea"], "temperature": 0, "max_tokens": 6,
                       "echo": true, "logprobs": 1 });
    let whole = server.ok("/v1/completions", &body).await;
    assert_eq!(whole["object"], "text_completion");
    let text = |i: usize| whole["choices"][i]["text"].as_str().unwrap().to_owned();
    assert!(text(0).starts_with("Once upon a time") && text(1).starts_with("The sea"));
    assert_eq!(whole["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 6);
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let frames = frames(server.post("/v1/completions", &streamed).send().await.unwrap()).await;
    assert_eq!(frames.last().unwrap(), "[DONE]");
    let mut texts = [String::new(), String::new()];
    for frame in &frames[..frames.len() - 1] {
        let choice = serde_json::from_str::<Value>(frame).unwrap()["choices"][0].take();
        texts[choice["index"].as_u64().unwrap() as usize].push_str(choice["text"].as_str().unwrap());
    }
    assert_eq!(texts, [text(0), text(1)]);
    let ids = server.ok("/tokenize", &json!({ "content": "Once upon a time", "add_special": true })).await;
    let by_ids = json!({ "model": "alpha", "prompt": ids["tokens"], "temperature": 0, "max_tokens": 6 });
    let by_ids = server.ok("/v1/completions", &by_ids).await;
    assert_eq!(format!("Once upon a time{}", by_ids["choices"][0]["text"].as_str().unwrap()), text(0));
    let back = server.ok("/detokenize", &json!({ "tokens": ids["tokens"] })).await;
    assert_eq!(back["content"], "Once upon a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_listed() {
    let server = start(&["alpha", "beta"], Some(8_000_000), options()).await;
    let list: Value = server.get("/v1/models").send().await.unwrap().json().await.unwrap();
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["alpha", "beta"]);
    let one: Value = server.get("/v1/models/beta").send().await.unwrap().json().await.unwrap();
    assert_eq!((&one["object"], &one["max_model_len"]), (&json!("model"), &json!(512)));
    assert_eq!(server.get("/v1/models/none").send().await.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named() {
    let server = start(&["alpha"], None, Options { body_limit: 1 << 20, ..options() }).await;
    let good = || ask("alpha", "Hi.", 2);
    let with = |key: &str, value: Value| {
        let mut body = good();
        body[key] = value;
        body
    };
    for (body, status, param) in [
        (with("model", json!("omega")), 404, json!("model")),
        (with("model", json!(5)), 400, json!("model")),
        (json!({ "messages": [] }), 400, Value::Null),
        (with("messages", json!([])), 400, json!("messages")),
        (with("messages", json!("Hi.")), 400, json!("messages")),
        (with("messages", json!([{ "role": "king", "content": "x" }])), 400, json!("messages[0].role")),
        (with("messages", json!([{ "role": "user" }])), 400, json!("messages[0].content")),
        (with("messages", json!([{ "role": "user", "content": 7 }])), 400, json!("messages[0].content")),
        (
            with(
                "messages",
                json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }]),
            ),
            400,
            json!("messages[0].content[0]"),
        ),
        (with("temperature", json!(-1)), 400, json!("temperature")),
        (with("temperature", json!("hot")), 400, json!("temperature")),
        (with("temperature", json!(1e300)), 400, json!("temperature")),
        (with("top_p", json!(7)), 400, json!("top_p")),
        (with("min_p", json!(-1)), 400, json!("min_p")),
        (with("repeat_penalty", json!(0)), 400, json!("repeat_penalty")),
        (with("n", json!(0)), 400, json!("n")),
        (with("n", json!(1000)), 400, json!("n")),
        (with("seed", json!(0.5)), 400, json!("seed")),
        (with("max_tokens", json!(-7)), 400, json!("max_tokens")),
        (with("stop", json!([""])), 400, json!("stop")),
        (with("stop", json!(5)), 400, json!("stop")),
        (with("logit_bias", json!({ "99999999": 1 })), 400, json!("logit_bias")),
        (with("logit_bias", json!({ "x": 1 })), 400, json!("logit_bias")),
        (with("top_logprobs", json!(3)), 400, json!("top_logprobs")),
        (with("response_format", json!({ "type": "xml" })), 400, json!("response_format.type")),
        (
            with("response_format", json!({ "type": "json_schema" })),
            400,
            json!("response_format.json_schema.schema"),
        ),
        (with("grammar", json!("start: (((")), 400, json!("grammar")),
        (with("regex", json!("[")), 400, json!("regex")),
        (with("tool_choice", json!("required")), 400, json!("tool_choice")),
        (
            with("messages", json!([{ "role": "user", "content": "word ".repeat(2000) }])),
            400,
            json!("messages"),
        ),
        // A client that sends all of it before it listens hears why, too.
        (with("messages", json!([{ "role": "user", "content": "x".repeat(2 << 20) }])), 413, Value::Null),
        (with("messages", json!([{ "role": "user", "content": "x".repeat(32 << 20) }])), 413, Value::Null),
    ] {
        let (found, error) = server.refused(CHAT, &body).await;
        assert_eq!((found, &error["param"]), (status, &param), "{:.200}: {error}", body.to_string());
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()));
        assert!(error["type"].is_string());
    }
    assert_eq!(
        server
            .refused(CHAT, &with("messages", json!([{ "role": "user", "content": "word ".repeat(2000) }])))
            .await
            .1["code"],
        "context_length_exceeded"
    );
    for path in
        ["/v1/nothing", "/v1/models/a/b", "/../etc/passwd", "/page/..%2f..%2fCargo.toml", "/page/none"]
    {
        assert_eq!(server.get(path).send().await.unwrap().status(), 404, "{path}");
    }
    assert_eq!(server.get(CHAT).send().await.unwrap().status(), 405);
    server.ok(CHAT, &good()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_follows_what_it_must() {
    let server = start(&["alpha"], None, options()).await;
    let mut body = ask("alpha", "Give me a person.", 120);
    body["response_format"] = json!({ "type": "json_schema", "json_schema": { "name": "person", "schema": {
        "type": "object",
        "properties": { "name": { "type": "string", "maxLength": 12 }, "age": { "type": "integer", "minimum": 0, "maximum": 99 } },
        "required": ["name", "age"], "additionalProperties": false } } });
    let answer = server.ok(CHAT, &body).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    let person: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert!(person["name"].is_string() && person["age"].as_u64().is_some_and(|age| age <= 99), "{text}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");

    let mut body = ask("alpha", "Yes or no?", 20);
    body["regex"] = json!("(yes|no), (very|not) sure");
    let text = server.ok(CHAT, &body).await["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(
        ["yes, very sure", "yes, not sure", "no, very sure", "no, not sure"].contains(&text.as_str()),
        "{text}"
    );
    let mut body = ask("alpha", "A number?", 20);
    body["grammar"] = json!("start: \"#\" /[0-9]{3}/");
    let text = server.ok(CHAT, &body).await["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(text.len() == 4 && text.starts_with('#'), "{text}");

    let mut body = ask("alpha", "What is the weather in Rome?", 120);
    body["tools"] = json!([{ "type": "function", "function": { "name": "weather", "parameters": {
        "type": "object", "properties": { "city": { "enum": ["Rome", "Oslo"] } }, "required": ["city"],
        "additionalProperties": false } } }]);
    body["tool_choice"] = json!("required");
    let check = |call: &Value| {
        assert_eq!(call["function"]["name"], "weather");
        let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!(["Rome", "Oslo"].contains(&arguments["city"].as_str().unwrap()));
    };
    let answer = server.ok(CHAT, &body).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    check(&answer["choices"][0]["message"]["tool_calls"][0]);
    body["stream"] = json!(true);
    let frames = frames(server.post(CHAT, &body).send().await.unwrap()).await;
    let calls: Vec<Value> = frames[..frames.len() - 1]
        .iter()
        .map(|frame| {
            serde_json::from_str::<Value>(frame).unwrap()["choices"][0]["delta"]["tool_calls"].take()
        })
        .filter_map(|calls| calls.get(0).cloned())
        .collect();
    assert_eq!(calls.len(), 1);
    check(&calls[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_a_deadline() {
    let server =
        start(&["gamma"], Some(16_000_000), Options { timeout: Duration::from_millis(60), ..options() })
            .await;
    let mut body = ask("gamma", "Tell me a long story.", 480);
    body["ignore_eos"] = json!(true);
    let (status, error) = server.refused(CHAT, &body).await;
    assert_eq!((status, &error["code"]), (504, &json!("timeout")));
    until("its memory is given back", || server.held() == 0).await;
}

/// A prompt that is answered several times counts once, streamed or not.
#[tokio::test(flavor = "multi_thread")]
async fn usage_is_the_same_in_a_stream() {
    let server = start(&["alpha"], Some(8_000_000), options()).await;
    let mut chat = ask("alpha", "Tell me about the sea.", 6);
    chat["n"] = json!(3);
    chat["ignore_eos"] = json!(true);
    let text = json!({ "model": "alpha", "prompt": ["The sea", "A little fox ran"], "n": 2, "max_tokens": 6, "temperature": 0, "ignore_eos": true });
    for (path, mut body) in [("/v1/chat/completions", chat), ("/v1/completions", text)] {
        let whole = server.ok(path, &body).await["usage"].take();
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
        let frames = frames(server.post(path, &body).send().await.unwrap()).await;
        let last: Value = serde_json::from_str(&frames[frames.len() - 2]).unwrap();
        assert_eq!(last["usage"], whole, "{path}");
        assert_eq!(last["choices"], json!([]));
        let first: Value = serde_json::from_str(&frames[0]).unwrap();
        assert!(first["usage"].is_null());
        // Each answer ends once.
        let ends = frames.iter().filter(|frame| frame.contains("\"finish_reason\":\"")).count();
        assert_eq!(ends, whole["completion_tokens"].as_u64().map_or(0, |n| n as usize / 6), "{path}");
    }
}
