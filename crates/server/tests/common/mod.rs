//! A server with the bundled models on a free port, and a client beside it.

#![allow(clippy::unwrap_used, dead_code, reason = "helpers of tests; each file uses its own")]

use nexaquant_engine::decide::Limits;
use nexaquant_engine::m3::{Memory, MemoryOptions};
use nexaquant_engine::sampler::SamplingParams;
use nexaquant_engine::scheduler::{Engine, EngineOptions};
use nexaquant_engine::{
    GenerateOptions, LoadOptions, Model, Pool, PoolOptions, Session, SessionOptions, chat, generate,
};
use nexaquant_server::{App, Options, Phase, Server};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(120);

/// Each model is loaded once for all tests of a file.
pub fn model(name: &str) -> Model {
    static LOADED: OnceLock<Mutex<Vec<(String, Model)>>> = OnceLock::new();
    let mut loaded = LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, model)) = loaded.iter().find(|(known, _)| known == name) {
        return model.clone();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../models/{name}.gguf"));
    let model = Model::load(&path, LoadOptions::default()).unwrap();
    loaded.push((name.to_owned(), model.clone()));
    model
}

/// A server that answers until it is dropped.
pub struct Running {
    pub app: App,
    pub url: String,
    pub client: Client,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.app.enter(Phase::Stopped);
    }
}

/// What tests start with: few threads, short answers.
pub fn options() -> Options {
    Options {
        listen: ([127, 0, 0, 1], 0).into(),
        timeout: LONG,
        session: SessionOptions { context: 512, ..SessionOptions::default() },
        ..Options::default()
    }
}

pub async fn start(models: &[&str], budget: Option<u64>, options: Options) -> Running {
    let engine = Engine::start(EngineOptions {
        memory: budget.map(|budget| Memory::new(MemoryOptions::new(budget)).unwrap()),
        pool: PoolOptions { threads: Some(2), pin: false },
        limits: Limits { turn_passes: 16, ..Limits::default() },
        most_requests: options.parallel + options.queue,
    })
    .unwrap();
    let app = App::new(engine, options);
    for name in models {
        app.add(name, &model(name)).unwrap();
    }
    let server = Server::bind(&app).await.unwrap();
    let url = format!("http://{}", server.address());
    tokio::spawn(server.run());
    let client = Client::builder().timeout(LONG).build().unwrap();
    Running { app, url, client }
}

impl Running {
    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.url))
    }

    pub fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).json(body)
    }

    /// A request that must be answered well.
    pub async fn ok(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body).send().await.unwrap();
        let status = response.status();
        let value: Value = response.json().await.unwrap();
        assert_eq!(status, 200, "{path} {body}: {value}");
        value
    }

    /// A request that must be refused: its status and error.
    pub async fn refused(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = self.post(path, body).send().await.unwrap();
        let status = response.status().as_u16();
        let mut value: Value = response.json().await.unwrap();
        assert!(status >= 400, "{path} {body}: {value}");
        (status, value["error"].take())
    }

    /// What is given out to anything but weights, and to what is kept for questions that begin alike.
    pub fn held(&self) -> u64 {
        use nexaquant_engine::m3::Class;
        let memory = self.app.engine.memory().unwrap();
        // A budget that is set again gives up what is only kept.
        let _ = self.app.engine.set_budget(memory.budget());
        let books = memory.books();
        books.of(Class::Kv).0 + books.of(Class::Scratch).0
    }
}

/// The data of a stream's frames.
pub async fn frames(response: Response) -> Vec<String> {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    let frames = text.split("\n\n").filter(|frame| !frame.is_empty() && !frame.starts_with(':'));
    frames.map(|frame| frame.strip_prefix("data: ").unwrap_or(frame).to_owned()).collect()
}

/// A greedy chat request.
pub fn ask(model: &str, text: &str, tokens: u32) -> Value {
    json!({
        "model": model,
        "messages": [{ "role": "user", "content": text }],
        "temperature": 0,
        "max_tokens": tokens,
    })
}

/// What a model answers with nobody beside it, from the mapped file.
pub fn alone(name: &str, text: &str, tokens: usize) -> String {
    let model = model(name);
    let mut pool = Pool::new(PoolOptions { threads: Some(1), pin: false }).unwrap();
    let mut session = Session::new(&model, &pool, options().session).unwrap();
    let messages = [chat::Message::new(chat::Role::User, text)];
    let template = model.chat().unwrap();
    let prompt = template.render(model.tokenizer(), &messages, &chat::RenderOptions::default()).unwrap();
    let options = GenerateOptions {
        sampling: SamplingParams::greedy(),
        max_tokens: Some(tokens),
        stop: template.stops().iter().map(|&stop| stop.to_owned()).collect(),
        ..GenerateOptions::default()
    };
    generate(&mut session, &mut pool, &prompt, &options, |_| ControlFlow::Continue(())).unwrap().text
}

/// Waits until `what` is so.
pub async fn until(why: &str, mut what: impl FnMut() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < LONG, "{why}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
