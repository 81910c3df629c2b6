//! `serve` and `config check`: the program itself, signals included.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::*;
use predicates::prelude::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A server that ends with the test.
struct Serving {
    child: Child,
    address: String,
    /// What it says and logs.
    said: BufReader<std::process::ChildStderr>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(args: &[&str]) -> Serving {
    let mut command = spawnable();
    command.args(["serve", "alpha", "--port", "0"]).args(args).stderr(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let address = line.trim().rsplit("://").next().unwrap().to_owned();
    assert!(line.starts_with("alpha at http://127.0.0.1:"), "{line}");
    Serving { child, address, said }
}

impl Serving {
    fn open(&self, request: &str) -> TcpStream {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        socket
    }

    fn get(&self, path: &str) -> String {
        let mut socket =
            self.open(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"));
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        text
    }

    /// A stream that has begun and would go on for long.
    fn story(&self) -> TcpStream {
        let body = "{\"model\":\"alpha\",\"messages\":[{\"role\":\"user\",\"content\":\"A story.\"}],\"stream\":true,\
                    \"ignore_eos\":true,\"max_tokens\":400}";
        let n = body.len();
        let head =
            format!("POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {n}\r\n\r\n");
        let mut socket = self.open(&format!("{head}{body}"));
        let mut some = [0; 64];
        assert!(socket.read(&mut some).unwrap() > 0);
        socket
    }

    fn signal(&self) {
        let id = self.child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }

    fn ends_within(&mut self, time: Duration) {
        let start = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < time, "it has not ended within {time:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn a_signal_lets_answers_end() {
    let mut server = serve(&["--budget", "8MB"]);
    assert!(server.get("/health").starts_with("HTTP/1.1 200 "));
    let mut story = server.story();
    server.signal();
    let mut rest = String::new();
    story.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
    server.ends_within(Duration::from_secs(20));
    let mut log = String::new();
    server.said.read_to_string(&mut log).unwrap();
    for line in log.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(line["level"].is_string() && line["message"].is_string());
    }
    assert!(!log.contains("A story"), "what is said is not logged");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = serve(&["--budget", "2MB"]);
    let _story = server.story();
    let _waits = server.story();
    server.signal();
    std::thread::sleep(Duration::from_millis(100));
    server.signal();
    server.ends_within(Duration::from_secs(5));
}

#[test]
fn a_drain_has_a_deadline() {
    let mut server = serve(&["--budget", "2MB", "--drain", "0"]);
    let _story = server.story();
    server.signal();
    server.ends_within(Duration::from_secs(5));
}

#[test]
fn a_configuration_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.toml");
    let check = |text: &str| {
        std::fs::write(&path, text).unwrap();
        nexaquant().args(["config", "check", "--config", path.to_str().unwrap()]).assert()
    };
    check("models = [\"alpha\"]\nbudget = \"8MB\"\nport = 9999\n")
        .success()
        .stdout("alpha would be served at 127.0.0.1:9999\n");
    check("models = [\"alpha\"]\nbuget = \"8MB\"")
        .code(2)
        .stderr(predicate::str::contains("buget is no setting"));
    check("models = [\"alpha\"]\nport = 99999").code(2).stderr(predicate::str::contains("99999"));
    check("models = [\"none.gguf\"]").code(2).stderr(predicate::str::contains("none.gguf"));
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port().to_string();
    nexaquant()
        .args(["serve", "alpha", "--port", &port])
        .assert()
        .code(2)
        .stderr(predicate::str::contains("cannot serve at"));
}
