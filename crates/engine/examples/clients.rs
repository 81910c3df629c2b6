//! How much clients of one model get together: `clients MODEL [CLIENTS] [TOKENS] [BUDGET_BYTES]`.
//!
//! Each client asks one question after another, each with a prompt of its own length, and reads every token; the first round
//! is one client alone.

use nexaquant_engine::m3::{Memory, MemoryOptions};
use nexaquant_engine::sampler::SamplingParams;
use nexaquant_engine::scheduler::{Engine, EngineOptions, Event, Request};
use nexaquant_engine::{GenerateOptions, LoadOptions, Model, SessionOptions};
use std::error::Error;
use std::time::Instant;

/// Questions of each client.
const ROUNDS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let path = args.first().ok_or("which model? give the path of a GGUF file")?;
    let number = |at: usize, default: usize| args.get(at).map_or(Ok(default), |text| text.parse::<usize>());
    let (clients, tokens) = (number(1, 32)?, number(2, 64)?);
    let budget = args.get(3).map(|text| text.parse::<u64>()).transpose()?;
    let memory = budget.map(|budget| Memory::new(MemoryOptions::new(budget))).transpose()?;
    let engine = Engine::start(EngineOptions { memory, ..EngineOptions::default() })?;
    engine.add("model", &Model::load(path.as_ref(), LoadOptions::default())?)?;
    let mut alone = None;
    for clients in [1, clients] {
        let start = Instant::now();
        let counts: Vec<Result<usize, String>> = std::thread::scope(|scope| {
            let client = |client| {
                let engine = &engine;
                scope.spawn(move || ask(engine, client, tokens))
            };
            let threads: Vec<_> = (0..clients).map(client).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<usize, String>>| {
                thread.join().unwrap_or_else(|_| Err("a client has panicked".to_owned()))
            };
            threads.into_iter().map(join).collect()
        });
        let total = counts.into_iter().sum::<Result<usize, String>>()?;
        let rate = total as f64 / start.elapsed().as_secs_f64();
        let times = rate / *alone.get_or_insert(rate);
        println!("{clients} clients: {total} tokens, {rate:.0} a second, {times:.2} times one client");
    }
    Ok(())
}

/// All questions of one client; how many tokens it got.
fn ask(engine: &Engine, client: usize, tokens: usize) -> Result<usize, String> {
    let mut got = 0;
    for round in 0..ROUNDS {
        let length = 8 + (client * 7 + round * 5) % 32;
        let sampling = SamplingParams { seed: Some((client + round) as u64), ..SamplingParams::default() };
        let generate = GenerateOptions {
            sampling,
            max_tokens: Some(tokens),
            ignore_end: true,
            ..GenerateOptions::default()
        };
        let prompt = (0..length).map(|i| 100 + (client * 31 + i * 17) as u32 % 300).collect();
        let session = SessionOptions { context: 512, ..SessionOptions::default() };
        let request = Request { model: "model".to_owned(), prompt, generate, session };
        let stream = engine.submit(request).map_err(|error| error.to_string())?;
        while let Some(event) = stream.next_event() {
            match event {
                Event::Done(outcome) => got += outcome.generation.tokens.len(),
                Event::Failed(error) => return Err(error.to_string()),
                _ => {}
            }
        }
    }
    Ok(got)
}
