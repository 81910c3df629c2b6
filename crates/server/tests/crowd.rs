//! Many clients: everybody is answered or told to come back, nobody is disturbed by others, and nothing is left over.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{alone, ask, options, start, until};
use nexaquant_server::{Options, Phase};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CHAT: &str = "/v1/chat/completions";

fn endless(model: &str) -> Value {
    let mut body = ask(model, "Tell me a story about a little fox.", 480);
    body["ignore_eos"] = json!(true);
    body["stream"] = json!(true);
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_clients_share_a_budget_of_one_and_a_half_models() {
    // Alpha, beta and gamma take 4, 8 and 12 MB.
    const BUDGET: u64 = 14_000_000;
    let server = start(&["alpha", "beta", "gamma"], Some(BUDGET), options()).await;
    let questions = ["What is your name?", "Tell me about the sea.", "Where do birds sleep?"];
    let names = ["alpha", "beta", "gamma"];
    let wanted: Vec<Vec<String>> =
        names.iter().map(|name| questions.iter().map(|q| alone(name, q, 20)).collect()).collect();
    let clients = (0..32).map(|i| {
        let (name, question) = (i % 3, (i / 3) % 3);
        let request = server.post(CHAT, &ask(names[name], questions[question], 20));
        let wanted = wanted[name][question].clone();
        tokio::spawn(async move {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200);
            let value: Value = response.json().await.unwrap();
            assert_eq!(value["choices"][0]["message"]["content"], wanted, "client {i}");
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    until("everything is given back", || server.held() == 0 && server.app.queue.inside() == 0).await;
    let books = server.app.engine.memory().unwrap().books();
    assert!(books.high_water.0 <= BUDGET && books.budget.0 == BUDGET);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_what_it_held() {
    let server = start(&["gamma"], Some(16_000_000), options()).await;
    // One that reads a stream, and one that waits for a whole answer.
    let mut response = server.post(CHAT, &endless("gamma")).send().await.unwrap();
    response.chunk().await.unwrap().unwrap();
    until("it computes", || server.held() > 0).await;
    drop(response);
    until("the stream is gone", || server.held() == 0 && server.app.queue.inside() == 0).await;
    let mut whole = endless("gamma");
    whole["stream"] = json!(false);
    let request = server.post(CHAT, &whole).timeout(Duration::from_millis(30));
    assert!(request.send().await.unwrap_err().is_timeout());
    let start = Instant::now();
    until("the waiting one is gone", || server.held() == 0 && server.app.queue.inside() == 0).await;
    assert!(start.elapsed() < Duration::from_secs(5));
    let metrics = server.get("/metrics").send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains("nexaquant_requests_total{model_name=\"gamma\",finished_reason=\"abort\"} 2"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_so_and_health_stays_green() {
    let server = start(&["gamma"], Some(16_000_000), Options { parallel: 1, queue: 1, ..options() }).await;
    let first = server.post(CHAT, &endless("gamma")).send().await.unwrap();
    let second = server.post(CHAT, &endless("gamma")).send().await.unwrap();
    until("both are inside", || server.app.queue.inside() == 2).await;
    let third = server.post(CHAT, &endless("gamma")).send().await.unwrap();
    assert_eq!(third.status(), 429);
    let after: u64 = third.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&after));
    assert_eq!(third.json::<Value>().await.unwrap()["error"]["code"], "queue_full");
    assert_eq!(server.get("/health").send().await.unwrap().status(), 200);
    drop((first, second));
    until("there is room again", || server.app.queue.inside() == 0).await;
    server.ok(CHAT, &ask("gamma", "Hi.", 2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_times_too_many_are_answered_or_told_to_come_back() {
    let server = start(&["alpha"], Some(8_000_000), Options { parallel: 2, queue: 2, ..options() }).await;
    let wanted = alone("alpha", "What is your name?", 8);
    let clients = (0..16).map(|_| {
        let request = server.post(CHAT, &ask("alpha", "What is your name?", 8));
        let wanted = wanted.clone();
        tokio::spawn(async move {
            let (mut answered, mut refused) = (0, 0);
            while answered < 3 {
                let response = request.try_clone().unwrap().send().await.unwrap();
                if response.status() == 429 {
                    assert!(response.headers().contains_key("retry-after"));
                    refused += 1;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                }
                assert_eq!(response.status(), 200);
                let value: Value = response.json().await.unwrap();
                assert_eq!(value["choices"][0]["message"]["content"], wanted);
                answered += 1;
            }
            refused
        })
    });
    let clients: Vec<_> = clients.collect();
    for _ in 0..20 {
        assert_eq!(server.get("/health").send().await.unwrap().status(), 200);
    }
    let mut refused = 0;
    for client in clients {
        refused += client.await.unwrap();
    }
    assert!(refused > 0, "there are more of them than places");
    until("nothing is held", || server.held() == 0 && server.app.queue.inside() == 0).await;
}

/// Who does not read holds a connection, and no place, turn or memory of the engine.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_holds_up_nobody() {
    let server = start(&["alpha"], Some(8_000_000), Options { parallel: 1, queue: 3, ..options() }).await;
    let body = endless("alpha").to_string();
    let request =
        format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut slow = Vec::new();
    for _ in 0..3 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1024).unwrap();
        let address = server.url.trim_start_matches("http://").parse().unwrap();
        let mut socket = socket.connect(address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        slow.push(socket);
    }
    until("all are inside", || server.app.queue.inside() == 3).await;
    until("all are computed", || server.held() == 0 && server.app.queue.inside() == 0).await;
    server.ok(CHAT, &ask("alpha", "Hi.", 2)).await;
    // Nothing is lost: the end comes when they read.
    for mut socket in slow {
        let mut text = Vec::new();
        while !text.ends_with(b"data: [DONE]\n\n\r\n0\r\n\r\n") {
            let mut some = [0; 4096];
            let n = tokio::time::timeout(common::LONG, socket.read(&mut some)).await.unwrap().unwrap();
            assert!(n > 0, "{}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&some[..n]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_drains_ends_what_it_began() {
    let server = start(&["alpha"], Some(8_000_000), options()).await;
    let mut body = endless("alpha");
    body["max_tokens"] = json!(200);
    let mut response = server.post(CHAT, &body).send().await.unwrap();
    response.chunk().await.unwrap().unwrap();
    let idle = TcpStream::connect(server.url.trim_start_matches("http://")).await.unwrap();
    server.app.enter(Phase::Draining);
    let mut text = String::new();
    while let Some(chunk) = response.chunk().await.unwrap() {
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    until("no new connection is taken", || {
        std::net::TcpStream::connect(server.url.trim_start_matches("http://")).is_err()
    })
    .await;
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_says_so_in_its_streams() {
    let server = start(&["gamma"], Some(16_000_000), options()).await;
    let mut response = server.post(CHAT, &endless("gamma")).send().await.unwrap();
    response.chunk().await.unwrap().unwrap();
    server.app.enter(Phase::Stopped);
    let mut text = String::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        text.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(text.contains("\"code\":\"draining\"") && !text.contains("[DONE]"), "{text}");
    until("nothing is held", || server.held() == 0).await;
}

/// What comes back for raw bytes.
async fn raw(url: &str, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(url.trim_start_matches("http://")).await.unwrap();
    // The server may have refused and closed before all of it was sent.
    let _ = socket.write_all(bytes).await;
    let mut answer = vec![0; 4096];
    let n = tokio::time::timeout(Duration::from_secs(20), socket.read(&mut answer)).await;
    let n = n.ok().and_then(Result::ok).unwrap_or(0);
    String::from_utf8_lossy(&answer[..n]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_are_refused() {
    let server = start(&["alpha"], Some(8_000_000), options()).await;
    let head = |length: usize| {
        format!(
            "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let status = |answer: &str| answer.split(' ').nth(1).unwrap_or_default().to_owned();
    // 100 MB announced, and 100 MB in chunks that nobody announced.
    assert_eq!(status(&raw(&server.url, head(100 << 20).as_bytes()).await), "413");
    let mut chunked =
        format!("POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes();
    for _ in 0..8 {
        chunked.extend(format!("{:x}\r\n", 1 << 20).bytes());
        chunked.extend(std::iter::repeat_n(b'x', 1 << 20));
        chunked.extend(b"\r\n");
    }
    let answer = raw(&server.url, &chunked).await;
    assert!(answer.is_empty() || status(&answer) == "413", "{answer}");
    for body in [
        "[".repeat(200_000),
        format!("{{\"model\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000)),
        format!(
            "{{\"model\":\"alpha\",\"messages\":[{}",
            "{\"role\":\"user\",\"content\":\"x\"},".repeat(50_000)
        ),
        "\u{0}\u{1}\u{2}".to_owned(),
        "{\"model\":\"alpha\",\"model\":\"beta\"}".to_owned(),
        "null".to_owned(),
        String::new(),
    ] {
        let answer =
            raw(&server.url, [head(body.len()).as_bytes(), body.as_bytes()].concat().as_slice()).await;
        assert_eq!(status(&answer), "400", "{body:.40}: {answer}");
    }
    let flood = "x-flood: y\r\n".repeat(20_000);
    let answer =
        raw(&server.url, format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{flood}\r\n").as_bytes()).await;
    assert!(answer.is_empty() || status(&answer) == "431", "{answer}");
    assert_eq!(status(&raw(&server.url, b"\x16\x03\x01nonsense\r\n\r\n").await), "400");
    // Half a request holds a connection and nobody else.
    let mut half = TcpStream::connect(server.url.trim_start_matches("http://")).await.unwrap();
    half.write_all(head(50).as_bytes()).await.unwrap();
    server.ok(CHAT, &ask("alpha", "Hi.", 2)).await;
    // Grammars that explode.
    for (key, value) in [("regex", "(a{1,1000}){1,1000}b{1,1000}"), ("grammar", "start: start start | \"a\"")]
    {
        let mut body = ask("alpha", "Hi.", 4);
        body[key] = json!(value);
        let response = server.post(CHAT, &body).send().await.unwrap();
        assert_ne!(response.status(), 500, "{key}");
    }
    drop(half);
    until("nothing is held", || server.held() == 0 && server.app.queue.inside() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_hosts_and_origins_are_checked() {
    let open =
        start(&["alpha"], None, Options { cors: vec!["https://friend.example".into()], ..options() }).await;
    let status = async |request: reqwest::RequestBuilder| request.send().await.unwrap().status().as_u16();
    assert_eq!(status(open.get("/v1/models").header("origin", "https://evil.example")).await, 403);
    assert_eq!(status(open.get("/v1/models").header("host", "evil.example")).await, 403);
    assert_eq!(status(open.get("/v1/models").header("host", "localhost:1")).await, 200);
    let friend = open.get("/v1/models").header("origin", "https://friend.example").send().await.unwrap();
    assert_eq!(friend.headers()["access-control-allow-origin"], "https://friend.example");
    let locked =
        start(&["alpha"], None, Options { api_keys: vec!["s3cret".into(), "other".into()], ..options() })
            .await;
    assert_eq!(status(locked.get("/v1/models")).await, 401);
    assert_eq!(status(locked.get("/v1/models").bearer_auth("s3cre")).await, 401);
    assert_eq!(status(locked.get("/metrics")).await, 401);
    // Each API's clients are refused in its own words.
    let refused = async |path: &str| -> Value {
        let response = locked.post(path, &json!({})).send().await.unwrap();
        assert_eq!(response.status(), 401, "{path}");
        response.json().await.unwrap()
    };
    assert_eq!(refused(CHAT).await["error"]["code"], "invalid_api_key");
    assert_eq!(refused("/v1/messages").await["error"]["type"], "authentication_error");
    assert_eq!(refused("/v1/messages").await["type"], "error");
    assert!(refused("/api/chat").await["error"].is_string());
    assert_eq!(status(locked.get("/v1/models").bearer_auth("other")).await, 200);
    assert_eq!(status(locked.get("/v1/models").header("x-api-key", "s3cret")).await, 200);
    for path in ["/", "/health", "/livez", "/readyz", "/openapi.json", "/page/app.js"] {
        assert_eq!(status(locked.get(path)).await, 200, "{path}");
    }
}
