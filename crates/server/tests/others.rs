//! The residency API, metrics, and the shapes of other APIs.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{alone, ask, options, start, until};
use nexaquant_server::{Options, ROUTES};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";

async fn map(server: &common::Running) -> Value {
    server.get("/v1/m3/residency").send().await.unwrap().json().await.unwrap()
}

fn of<'a>(map: &'a Value, name: &str) -> &'a Value {
    map["models"].as_array().unwrap().iter().find(|model| model["name"] == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_answers_that_are_over_is_not_in_the_way_of_a_pin() {
    let server = start(&["alpha", "beta"], Some(10_000_000), options()).await;
    for what in ["sea", "moon", "rain"] {
        server.ok(CHAT, &ask("alpha", &format!("Tell me about the {what}. ").repeat(40), 4)).await;
    }
    let kept = map(&server).await["ledger"]["kv"].as_u64().unwrap();
    let all = of(&map(&server).await, "beta")["bytes"].as_u64().unwrap();
    assert!(kept + all > 10_000_000, "{kept} bytes kept, {all} to pin: {}", map(&server).await["ledger"]);
    let pinned = server.ok("/v1/m3/models/beta/pin", &json!({})).await;
    assert_eq!(of(&pinned, "beta")["resident"], all);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_in_memory_is_seen_and_changed() {
    let server = start(&["alpha", "beta"], Some(10_000_000), options()).await;
    let first = map(&server).await;
    assert_eq!(of(&first, "alpha")["resident"], 0);
    assert!(of(&first, "beta")["units"].as_array().unwrap().iter().all(|unit| unit["state"] == "cold"));
    server.ok(CHAT, &ask("alpha", "Hi.", 4)).await;
    let used = map(&server).await;
    let units = of(&used, "alpha")["units"].as_array().unwrap();
    assert!(
        units.iter().all(|unit| unit["state"] == "resident" && unit["last_use_ms"].is_number()),
        "{used}"
    );
    assert!(used["ledger"]["used"].as_u64() <= used["ledger"]["high_water"].as_u64());
    assert_eq!(used["switches"][0]["to"], "alpha");
    // Pinned, it stays while another one comes.
    let pinned = server.ok("/v1/m3/models/alpha/pin", &json!({})).await;
    assert_eq!(of(&pinned, "alpha")["pin"], "all");
    server.ok(CHAT, &ask("beta", "Hi.", 4)).await;
    let both = map(&server).await;
    assert!(
        of(&both, "alpha")["units"].as_array().unwrap().iter().all(|unit| unit["state"] == "pinned"),
        "{both}"
    );
    // A budget that the pin does not leave room in is refused with numbers; another one is taken.
    let (status, error) = server.refused("/v1/m3/budget", &json!({ "budget": 4_000_000 })).await;
    assert_eq!((status, &error["code"]), (422, &json!("over_budget")), "{error}");
    assert_eq!(server.refused("/v1/m3/budget", &json!({ "budget": 0 })).await.1["param"], "budget");
    let less = server.ok("/v1/m3/budget", &json!({ "budget": 8_000_000 })).await;
    assert_eq!(less["ledger"]["budget"], 8_000_000);
    assert!(less["ledger"]["used"].as_u64().unwrap() <= 8_000_000);
    assert_eq!(of(&server.ok("/v1/m3/models/alpha/unpin", &json!({})).await, "alpha")["pin"], "none");
    assert_eq!(of(&server.ok("/v1/m3/models/alpha/unload", &json!({})).await, "alpha")["resident"], 0);
    let loaded = server.ok("/v1/m3/models/alpha/load", &json!({})).await;
    assert_eq!(of(&loaded, "alpha")["resident"], of(&loaded, "alpha")["bytes"]);
    assert_eq!(server.ok("/models/unload", &json!({ "model": "alpha" })).await, json!({ "success": true }));
    assert_eq!(of(&map(&server).await, "alpha")["resident"], 0);
    server.ok("/models/load", &json!({ "model": "alpha" })).await;
    for path in ["load", "unload", "pin", "unpin"] {
        assert_eq!(server.refused(&format!("/v1/m3/models/none/{path}"), &json!({})).await.0, 404);
    }
    // Unloaded in the middle of an answer it comes back, and the answer is the same.
    let wanted = alone("beta", "Tell me about the sea.", 60);
    let request = server.post(CHAT, &ask("beta", "Tell me about the sea.", 60));
    let asked = tokio::spawn(async move { request.send().await.unwrap().json::<Value>().await.unwrap() });
    until("it computes", || server.held() > 0 || asked.is_finished()).await;
    server.ok("/v1/m3/models/beta/unload", &json!({})).await;
    assert_eq!(asked.await.unwrap()["choices"][0]["message"]["content"], wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_is_told_as_it_changes() {
    let server = start(&["alpha", "beta"], Some(8_000_000), options()).await;
    let mut stream = server.get("/v1/m3/events").send().await.unwrap();
    let mut text = String::from_utf8(stream.chunk().await.unwrap().unwrap().to_vec()).unwrap();
    assert!(text.starts_with("event: residency\ndata: {"), "{text}");
    server.ok(CHAT, &ask("alpha", "Hi.", 8)).await;
    server.ok(CHAT, &ask("beta", "Hi.", 8)).await;
    while !(text.contains("\"what\":\"in\"") && text.contains("\"to\":\"beta\"")) {
        let chunk =
            tokio::time::timeout(Duration::from_secs(20), stream.chunk()).await.unwrap().unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(text.contains("event: change\ndata: {"));
}

#[tokio::test(flavor = "multi_thread")]
async fn models_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    std::fs::copy(models.join("beta.gguf"), folder.path().join("b.gguf")).unwrap();
    std::fs::write(folder.path().join("bad.gguf"), "no model").unwrap();
    let allowed = Options { models_dir: Some(folder.path().to_owned()), ..options() };
    let server = start(&["alpha"], Some(10_000_000), allowed).await;
    let register = |name: &str, path: &str| json!({ "name": name, "path": path });
    server.ok("/v1/m3/models", &register("new", "b.gguf")).await;
    server.ok(CHAT, &ask("new", "Hi.", 2)).await;
    for (body, status) in [
        (register("new", "b.gguf"), 409),
        (register("x", "../b.gguf"), 400),
        (register("x", "/etc/passwd"), 400),
        (register("x", "none.gguf"), 400),
        (register("x", "bad.gguf"), 400),
        (register("", "b.gguf"), 400),
        (register("a/b", "b.gguf"), 400),
    ] {
        assert_eq!(server.refused("/v1/m3/models", &body).await.0, status, "{body}");
    }
    let gone = server.client.delete(format!("{}/v1/m3/models/new", server.url)).send().await.unwrap();
    assert_eq!(gone.status(), 200);
    assert_eq!(server.refused(CHAT, &ask("new", "Hi.", 2)).await.0, 404);
    let closed = start(&["alpha"], Some(10_000_000), options()).await;
    assert_eq!(closed.refused("/v1/m3/models", &register("x", "b.gguf")).await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_budget_there_is_no_map() {
    let server = start(&["alpha"], None, options()).await;
    assert_eq!(map(&server).await["ledger"], Value::Null);
    assert_eq!(server.refused("/v1/m3/budget", &json!({ "budget": 5_000_000 })).await.0, 409);
    assert_eq!(server.ok("/models/unload", &json!({ "model": "alpha" })).await["success"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count() {
    let server = start(&["alpha"], Some(8_000_000), options()).await;
    let answer = server.ok(CHAT, &ask("alpha", "Hi.", 5)).await;
    let text = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    let value = |line: &str| -> f64 {
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("{line} is not in {text}")).parse().unwrap()
    };
    let tokens = answer["usage"]["completion_tokens"].as_f64().unwrap();
    assert!((value("nexaquant_generation_tokens_total{model_name=\"alpha\"}") - tokens).abs() < 0.1);
    assert!((value("vllm:generation_tokens_total{model_name=\"alpha\"}") - tokens).abs() < 0.1);
    assert!((value("vllm:time_to_first_token_seconds_count{model_name=\"alpha\"}") - 1.0).abs() < 0.1);
    assert!((value("nexaquant_budget_bytes") - 8e6).abs() < 0.1);
    assert!(value("nexaquant_used_bytes_high_water") <= 8e6);
    assert!(value("nexaquant_resident_bytes{model_name=\"alpha\"}") > 0.0);
    assert!(value("vllm:num_requests_waiting") < 0.5);
    // Each line is a comment or a name and a number, and no family is declared twice.
    let mut families = std::collections::HashSet::new();
    for line in text.lines() {
        match line.strip_prefix("# TYPE ") {
            Some(family) => assert!(families.insert(family.to_owned()), "{family}"),
            None => assert!(
                line.starts_with("# HELP ") || line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(),
                "{line}"
            ),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_other_servers_are_answered() {
    let server = start(&["alpha"], Some(8_000_000), options()).await;
    let question = "What is your name?";
    let wanted = alone("alpha", question, 16);
    let messages = json!([{ "role": "user", "content": question }]);
    let body = json!({ "model": "alpha:latest", "messages": messages, "stream": false, "options": { "temperature": 0, "num_predict": 16 } });
    let whole = server.ok("/api/chat", &body).await;
    assert_eq!(whole["message"]["content"], wanted);
    assert_eq!((&whole["done"], &whole["eval_count"].is_u64()), (&json!(true), &true));
    let mut streamed = body.clone();
    streamed.as_object_mut().unwrap().remove("stream");
    let text = server.post("/api/chat", &streamed).send().await.unwrap().text().await.unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    assert_eq!(said, wanted);
    assert_eq!(lines.iter().filter(|line| line["done"] == true).count(), 1);
    let prompt = json!({ "model": "alpha", "prompt": question, "stream": false, "options": { "temperature": 0, "num_predict": 16 } });
    assert_eq!(server.ok("/api/generate", &prompt).await["response"], wanted);
    for path in ["/api/tags", "/api/ps"] {
        let list: Value = server.get(path).send().await.unwrap().json().await.unwrap();
        assert_eq!(list["models"][0]["name"], "alpha", "{path}");
    }
    let shown = server.ok("/api/show", &json!({ "model": "alpha:latest" })).await;
    let family = shown["model_info"]["general.architecture"].as_str().unwrap();
    assert_eq!(shown["model_info"][format!("{family}.context_length")], 512, "{shown}");
    assert!(shown["template"].as_str().unwrap().contains("messages") && shown["details"]["format"] == "gguf");
    let odd = server
        .post("/api/chat", &json!({ "model": "alpha", "messages": [], "format": "yaml" }))
        .send()
        .await
        .unwrap();
    assert_eq!(odd.status(), 400);
    let missing = server.post("/api/chat", &json!({ "model": "none" })).send().await.unwrap();
    assert_eq!(missing.status(), 404);
    assert!(missing.json::<Value>().await.unwrap()["error"].is_string());

    let body = json!({ "model": "alpha", "max_tokens": 16, "temperature": 0,
                       "messages": [{ "role": "user", "content": [{ "type": "text", "text": question }] }] });
    let whole = server.ok("/v1/messages", &body).await;
    assert_eq!(whole["content"][0]["text"], wanted);
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let text = server.post("/v1/messages", &streamed).send().await.unwrap().text().await.unwrap();
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(&names[..3], ["message_start", "content_block_start", "ping"]);
    assert_eq!(names[names.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let said: String = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|value| value["delta"]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(said, wanted);
    let missing =
        server.post("/v1/messages", &json!({ "model": "alpha", "messages": [] })).send().await.unwrap();
    assert_eq!(missing.status(), 400);
    assert_eq!(missing.json::<Value>().await.unwrap()["type"], "error");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_that_is_listed_is_there() {
    let server = start(&["alpha"], Some(8_000_000), options()).await;
    for (method, path) in ROUTES {
        let url = format!("{}{}", server.url, path.replace("{id}", "alpha").replace("{name}", "none"));
        let request = match *method {
            "get" => server.client.get(url),
            "delete" => server.client.delete(url),
            _ => server.client.post(url).body("x"),
        };
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        assert!(status < 500 && status != 405, "{method} {path}: {status}");
        if !path.contains("{name}") {
            assert_ne!(status, 404, "{method} {path}");
        }
    }
    let page = server.get("/").send().await.unwrap();
    assert!(page.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    assert!(page.text().await.unwrap().contains("<title>NexaQuant</title>"));
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_become_vectors() {
    let server = start(&["beta"], Some(12_000_000), options()).await;
    let vectors = async |body: Value| -> Vec<Vec<f64>> {
        let value = server.ok("/v1/embeddings", &body).await;
        let list = value["data"].as_array().unwrap();
        list.iter().map(|one| serde_json::from_value(one["embedding"].clone()).unwrap()).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let texts = ["The fox ran into the dark forest.", "A fox ran through the forest.", "What is your name?"];
    let all = vectors(json!({ "model": "beta", "input": texts })).await;
    assert!(all.iter().all(|vector| (dot(vector, vector) - 1.0).abs() < 1e-5), "length 1");
    assert!(dot(&all[0], &all[1]) > dot(&all[0], &all[2]), "what is alike is near");
    let alone = vectors(json!({ "model": "beta", "input": texts[1] })).await;
    assert_eq!(alone[0], all[1], "others beside it change nothing");
    let last = vectors(json!({ "model": "beta", "input": texts[1], "pooling": "last" })).await;
    assert_ne!(last[0], all[1]);
    // However the prompt is cut into steps, and whatever the budget is.
    let cut =
        Options { session: nexaquant_engine::SessionOptions { batch: 3, ..options().session }, ..options() };
    let small = start(&["beta"], Some(3_000_000), cut).await;
    let value = small.ok("/v1/embeddings", &json!({ "model": "beta", "input": texts[1] })).await;
    assert_eq!(serde_json::from_value::<Vec<f64>>(value["data"][0]["embedding"].clone()).unwrap(), all[1]);
    for (body, param) in [
        (json!({ "model": "beta", "input": "" }), "input"),
        (json!({ "model": "beta", "input": [] }), "input"),
        (json!({ "model": "beta", "input": "x", "dimensions": 3 }), "dimensions"),
        (json!({ "model": "beta", "input": 5 }), "input"),
    ] {
        assert_eq!(server.refused("/v1/embeddings", &body).await.1["param"], param);
    }
}
