//! `POST /v1/chat/completions`.

use super::parts::{Head, Usage, chat_log_probs};
use super::stream::{Choices, Frames};
use crate::answer::{all, together};
use crate::app::App;
use crate::ask::Ask;
use crate::body::{Raw, parse};
use crate::constrain::{self, ResponseFormat, Wanted};
use crate::error::ApiError;
use crate::finish_reason;
use crate::messages::{self, Incoming};
use crate::prompt;
use crate::sampling::Sampling;
use crate::tools::{Choice, Hold, Offer, Tool};
use axum::extract::State;
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use nexaquant_engine::chat::RenderOptions;
use nexaquant_engine::scheduler::Outcome;
use nexaquant_engine::{Model, Scored};
use serde::Deserialize;
use serde_json::{Value, json};

/// Most alternatives to a token.
const MOST_TOP: u32 = 20;

/// The fields that are no sampling.
#[derive(Debug, Deserialize)]
struct Body {
    model: String,
    messages: Vec<Incoming>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    response_format: Option<ResponseFormat>,
    grammar: Option<String>,
    regex: Option<String>,
    tools: Option<Vec<Tool>>,
    tool_choice: Option<Choice>,
    chat_template_kwargs: Option<TemplateArgs>,
}

#[derive(Debug, Default, Deserialize)]
struct TemplateArgs {
    enable_thinking: Option<bool>,
}

/// Answers a conversation.
pub async fn create(State(app): State<App>, Raw(bytes): Raw) -> Result<Response, ApiError> {
    let (body, sampling): (Body, Sampling) = (parse(&bytes)?, parse(&bytes)?);
    let known = app.model(&body.model)?;
    let model = known.model.clone();
    let n = sampling.choices(&app)?;
    let log_probs = log_probs(&body)?;
    let offer = Offer::new(body.tools, body.tool_choice)?;
    let messages = messages::all(body.messages)?;
    let thinking = body.chat_template_kwargs.unwrap_or_default().enable_thinking;
    let options = RenderOptions { enable_thinking: thinking, ..RenderOptions::default() };
    let prompt = prompt::chat(&model, messages, options, offer.clone()).await?;
    prompt::check(&app, &model, &prompt.ids, "messages")?;
    let mut generate = sampling.options(&app, &model, prompt.stops)?;
    generate.log_probs = log_probs;
    let wanted = constrain::wanted(body.response_format, body.grammar, body.regex)?;
    if let Some(wanted) = offer.forced().map(Wanted::Schema).or(wanted) {
        generate.constraint = Some(constrain::constraint(&known, wanted).await?);
    }
    let head = Head::new("chatcmpl", &body.model);
    let ask = Ask { name: body.model, model: model.clone(), prompts: vec![prompt.ids], n, generate };
    let answers = ask.submit(&app)?;
    if sampling.streams() {
        let n = n as usize;
        let frames = Frames::new(head, "chat.completion.chunk", Chunks::new(model, n, &offer), 1, n);
        let frames = frames.with_usage(sampling.includes_usage());
        let keep_alive = KeepAlive::new().interval(app.options.keep_alive);
        return Ok(Sse::new(frames.of(together(answers))).keep_alive(keep_alive).into_response());
    }
    let (mut usage, mut choices) = (Usage::default(), Vec::new());
    for (index, (outcome, scored)) in all(answers).await?.into_iter().enumerate() {
        usage.add(&outcome, index > 0);
        let parsed = offer.parse(outcome.generation.text);
        let finish =
            if parsed.calls.is_empty() { finish_reason(outcome.generation.finish) } else { "tool_calls" };
        let mut message = json!({ "role": "assistant", "content": parsed.content, "refusal": null });
        if !parsed.calls.is_empty() {
            message["tool_calls"] = json!(parsed.calls);
        }
        let log_probs = log_probs.map(|_| chat_log_probs(model.tokenizer(), &scored));
        choices.push(
            json!({ "index": index, "message": message, "logprobs": log_probs, "finish_reason": finish }),
        );
    }
    let mut object = head.object("chat.completion", &json!(choices));
    usage.put(&mut object);
    Ok(axum::Json(object).into_response())
}

fn log_probs(body: &Body) -> Result<Option<usize>, ApiError> {
    let top = body.top_logprobs.unwrap_or(0);
    if top > MOST_TOP {
        return Err(ApiError::field(
            "top_logprobs",
            format!("top_logprobs is {top}; at most {MOST_TOP} are possible"),
        ));
    }
    if top > 0 && body.logprobs != Some(true) {
        return Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs: true"));
    }
    Ok(body.logprobs.unwrap_or(false).then_some(top as usize))
}

/// The choices of a stream.
struct Chunks {
    model: Model,
    /// Scores whose text has not come yet, by choice.
    scored: Vec<Vec<Scored>>,
    /// What may be a call of a tool, by choice; none if there are no tools.
    holds: Vec<Option<Hold>>,
}

impl Chunks {
    fn new(model: Model, n: usize, offer: &Offer) -> Self {
        let hold = (!offer.is_empty()).then(Hold::default);
        Self { model, scored: vec![Vec::new(); n], holds: vec![hold; n] }
    }

    /// With the scores of what was said since the last one that had some.
    fn scored_chunk(&mut self, index: usize, delta: &Value, finish: Option<&str>) -> Value {
        let scored = std::mem::take(&mut self.scored[index]);
        let scores = (!scored.is_empty()).then(|| chat_log_probs(self.model.tokenizer(), &scored));
        json!({ "index": index, "delta": delta, "logprobs": scores, "finish_reason": finish })
    }
}

fn chunk(index: usize, delta: &Value) -> Value {
    json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null })
}

impl Choices for Chunks {
    fn first(&self) -> Vec<Value> {
        let delta = json!({ "role": "assistant", "content": "" });
        (0..self.scored.len()).map(|index| chunk(index, &delta)).collect()
    }

    fn scored(&mut self, index: usize, scored: Scored) {
        self.scored[index].push(scored);
    }

    fn text(&mut self, index: usize, text: &str) -> Vec<Value> {
        let text = match &mut self.holds[index] {
            Some(hold) => hold.pass(text),
            None => text.to_owned(),
        };
        if text.is_empty() {
            return Vec::new();
        }
        vec![self.scored_chunk(index, &json!({ "content": text }), None)]
    }

    fn end(&mut self, index: usize, outcome: &Outcome) -> Vec<Value> {
        let mut choices = Vec::new();
        let mut finish = finish_reason(outcome.generation.finish);
        let parsed = self.holds[index].as_mut().map(Hold::end).unwrap_or_default();
        if let Some(content) = parsed.content {
            choices.push(chunk(index, &json!({ "content": content })));
        }
        for (i, call) in parsed.calls.iter().enumerate() {
            let mut call = json!(call);
            call["index"] = json!(i);
            choices.push(chunk(index, &json!({ "tool_calls": [call] })));
            finish = "tool_calls";
        }
        choices.push(self.scored_chunk(index, &json!({}), Some(finish)));
        choices
    }
}
