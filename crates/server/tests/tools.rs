//! Tools in all three APIs: told, called, answered.
//!
//! The bundled models were not trained to call anything, so what they say is made to follow a form.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Running, frames, options, start};
use serde_json::{Value, json};

fn schema() -> Value {
    json!({ "type": "object", "properties": { "city": { "enum": ["Rome"] } }, "required": ["city"], "additionalProperties": false })
}

fn question() -> Value {
    json!([{ "role": "user", "content": "weather?" }])
}

fn tool() -> Value {
    json!({ "type": "function", "function": { "name": "weather", "description": "Tells the weather.", "parameters": schema() } })
}

async fn server() -> Running {
    start(&["alpha"], Some(8_000_000), options()).await
}

/// Values of the frames of a stream with named events.
async fn events(server: &Running, body: &Value) -> Vec<Value> {
    let text = server.post("/v1/messages", body).send().await.unwrap().text().await.unwrap();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(values: &[Value]) -> Vec<&str> {
    values.iter().map(|value| value["type"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_calls_come_whole_and_in_streams() {
    let server = server().await;
    let said = "Well. <tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}</tool_call>";
    let grammar = format!("start: {said:?}");
    let mut body = json!({ "model": "alpha", "messages": question(), "tools": [tool()], "grammar": grammar, "temperature": 0 });
    let whole = server.ok("/v1/chat/completions", &body).await;
    let choice = &whole["choices"][0];
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &json!("Well. "))
    );
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("weather")));
    assert_eq!(call["function"]["arguments"], "{\"city\":\"Rome\"}");
    body["stream"] = json!(true);
    let frames = frames(server.post("/v1/chat/completions", &body).send().await.unwrap()).await;
    let (last, values) = frames.split_last().unwrap();
    assert_eq!(last, "[DONE]");
    let deltas: Vec<Value> = values
        .iter()
        .map(|frame| serde_json::from_str::<Value>(frame).unwrap()["choices"][0].take())
        .collect();
    let text: String = deltas.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
    assert_eq!(text, "Well. ");
    let calls: Vec<&Value> =
        deltas.iter().filter_map(|choice| choice["delta"]["tool_calls"].as_array()).flatten().collect();
    assert_eq!(calls.len(), 1, "{deltas:?}");
    assert_eq!((&calls[0]["index"], &calls[0]["function"]), (&json!(0), &call["function"]));
    assert_eq!(deltas.last().unwrap()["finish_reason"], "tool_calls");
    // Without tools the same text is text.
    body.as_object_mut().unwrap().remove("tools");
    body["stream"] = json!(false);
    assert_eq!(server.ok("/v1/chat/completions", &body).await["choices"][0]["message"]["content"], said);
}

#[tokio::test(flavor = "multi_thread")]
async fn anthropics_calls_come_whole_and_in_streams_and_are_answered() {
    let server = server().await;
    let tools = json!([{ "name": "weather", "description": "Tells the weather.", "input_schema": schema() }]);
    let mut body = json!({ "model": "alpha", "max_tokens": 60, "temperature": 0, "messages": question(), "tools": tools,
                           "tool_choice": { "type": "any" } });
    let whole = server.ok("/v1/messages", &body).await;
    let block = &whole["content"][0];
    assert_eq!((&whole["stop_reason"], &block["type"]), (&json!("tool_use"), &json!("tool_use")), "{whole}");
    assert_eq!((&block["name"], &block["input"]), (&json!("weather"), &json!({ "city": "Rome" })));
    assert_eq!(whole["content"].as_array().unwrap().len(), 1);
    body["stream"] = json!(true);
    let values = events(&server, &body).await;
    let wanted = [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(names(&values), wanted);
    assert_eq!(values[2]["content_block"]["type"], "tool_use");
    assert_eq!(values[2]["content_block"]["input"], json!({}));
    assert_eq!(
        values[3]["delta"],
        json!({ "type": "input_json_delta", "partial_json": "{\"city\":\"Rome\"}" })
    );
    assert_eq!(values[5]["delta"]["stop_reason"], "tool_use");
    // As the model likes: it says something, in one block of text.
    body["tool_choice"] = json!({ "type": "auto" });
    let values = events(&server, &body).await;
    assert!(values.iter().any(|value| value["delta"]["type"] == "text_delta"), "{values:?}");
    assert_eq!(values.iter().filter(|value| value["type"] == "content_block_start").count(), 1);
    assert_eq!(values.last().unwrap()["type"], "message_stop");
    // What was called, and what came of it.
    body["stream"] = json!(false);
    body["messages"] = json!([
        { "role": "user", "content": "weather?" },
        { "role": "assistant", "content": [{ "type": "thinking", "thinking": "hm", "signature": "s" }, { "type": "text", "text": "I look." },
                                           { "type": "tool_use", "id": "t1", "name": "weather", "input": { "city": "Rome" } }] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t1", "content": [{ "type": "text", "text": "20" }] },
                                      { "type": "text", "text": "So?" }] },
    ]);
    let answered = server.ok("/v1/messages", &body).await;
    let mut same = body.clone();
    // The same conversation in OpenAI's words makes the same prompt.
    same["messages"] = json!([
        { "role": "user", "content": "weather?" },
        { "role": "assistant", "content": "I look.", "tool_calls": [{ "id": "t1", "type": "function",
            "function": { "name": "weather", "arguments": "{\"city\": \"Rome\"}" } }] },
        { "role": "tool", "tool_call_id": "t1", "content": "20" },
        { "role": "user", "content": "So?" },
    ]);
    same["tools"] = json!([tool()]);
    same["tool_choice"] = json!("auto");
    let other = server.ok("/v1/chat/completions", &same).await;
    // Anthropic counts what was there already beside the input and not in it.
    let number = |name: &str| answered["usage"][name].as_u64().unwrap();
    let all = number("input_tokens") + number("cache_read_input_tokens");
    assert_eq!(other["usage"]["prompt_tokens"], all);
    body.as_object_mut().unwrap().remove("max_tokens");
    let counted = server.ok("/v1/messages/count_tokens", &body).await;
    assert_eq!(counted, json!({ "input_tokens": all }));
    assert_eq!(answered["content"][0]["text"], other["choices"][0]["message"]["content"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_anthropics_clients_do_wrong_is_named() {
    let server = server().await;
    let body = |key: &str, value: Value| {
        let mut body =
            json!({ "model": "alpha", "max_tokens": 4, "messages": question(), "tools": [{ "name": "f" }] });
        body[key] = value;
        body
    };
    let block = |block: Value| body("messages", json!([{ "role": "user", "content": [block] }]));
    for (body, wanted) in [
        (body("tools", json!([{ "type": "web_search_20250305", "name": "web_search" }])), "tools[0].type"),
        (body("tools", json!([{ "description": "x" }])), "tools[0]: missing field `name`"),
        (body("tool_choice", json!({ "type": "some" })), "tool_choice.type is \"some\""),
        (body("tool_choice", json!({ "type": "tool" })), "tool_choice.name is missing"),
        (body("tool_choice", json!({ "type": "tool", "name": "g" })), "names \"g\""),
        (block(json!({ "type": "image" })), "messages[0].content[0]: a block of type \"image\""),
        (
            block(json!({ "type": "tool_use", "name": "f", "input": {} })),
            "messages[0].content[0].id is missing",
        ),
        (block(json!({ "type": "tool_result" })), "messages[0].content[0].tool_use_id is missing"),
    ] {
        let response = server.post("/v1/messages", &body).send().await.unwrap();
        assert_eq!(response.status(), 400, "{body}");
        let value: Value = response.json().await.unwrap();
        assert_eq!(
            (&value["type"], &value["error"]["type"]),
            (&json!("error"), &json!("invalid_request_error"))
        );
        assert!(value["error"]["message"].as_str().unwrap().contains(wanted), "{value} {wanted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ollamas_calls_come_whole_and_in_streams() {
    let server = server().await;
    let call = json!({ "type": "object", "properties": { "name": { "const": "weather" }, "arguments": schema() },
                       "required": ["name", "arguments"], "additionalProperties": false });
    let mut body = json!({ "model": "alpha", "messages": question(), "tools": [tool()], "format": call, "stream": false,
                           "options": { "temperature": 0 } });
    let function = json!({ "name": "weather", "arguments": { "city": "Rome" } });
    let whole = server.ok("/api/chat", &body).await;
    assert_eq!(whole["message"]["tool_calls"], json!([{ "function": function }]), "{whole}");
    assert_eq!(whole["message"]["content"], "");
    body["stream"] = json!(true);
    let text = server.post("/api/chat", &body).send().await.unwrap().text().await.unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert_eq!(
        (&lines[0]["message"]["tool_calls"][0]["function"], &lines[1]["done"]),
        (&function, &json!(true))
    );
    body["messages"] = json!([{ "role": "user", "content": "weather?" }, { "role": "assistant", "tool_calls": [{ "function": function }] },
                              { "role": "tool", "tool_name": "weather", "content": "20" }]);
    body.as_object_mut().unwrap().remove("format");
    body["stream"] = json!(false);
    assert_eq!(server.ok("/api/chat", &body).await["done"], true);
}
