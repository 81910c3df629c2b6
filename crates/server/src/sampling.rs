//! How tokens are chosen and what bounds an answer, as requests of OpenAI's shape say it.
//!
//! Read from the same body as the rest of a request, as a structure of its own: `flatten` would lose the names of fields
//! in errors.

use crate::app::App;
use crate::error::ApiError;
use nexaquant_engine::sampler::{SamplingParams, StopMatcher};
use nexaquant_engine::{GenerateOptions, Model};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Most answers of one request.
pub const MOST_CHOICES: u32 = 16;

/// The fields.
#[derive(Debug, Default, Deserialize)]
pub struct Sampling {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    #[serde(alias = "repetition_penalty")]
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<i32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<u32, f32>>,
    seed: Option<serde_json::Number>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    n: Option<u32>,
    stop: Option<Texts>,
    ignore_eos: Option<bool>,
    /// Whether the answer comes as it is made.
    pub stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

/// One text or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts")]
pub enum Texts {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Texts {
    /// As a list.
    pub fn list(self) -> Vec<String> {
        match self {
            Texts::One(text) => vec![text],
            Texts::Many(texts) => texts,
        }
    }
}

impl Sampling {
    /// How many answers.
    pub fn choices(&self, app: &App) -> Result<u32, ApiError> {
        let (n, most) = (self.n.unwrap_or(1), MOST_CHOICES.min(app.queue.most() as u32));
        if (1..=most).contains(&n) {
            return Ok(n);
        }
        Err(ApiError::field("n", format!("n is {n}; 1 to {most} are possible")))
    }

    /// Whether the answer comes as it is made.
    pub fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Whether a stream ends with what was used.
    pub fn includes_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage.unwrap_or(false))
    }

    /// What the engine is told. `stops`: further texts that end the answer.
    pub fn options(&self, app: &App, model: &Model, stops: Vec<String>) -> Result<GenerateOptions, ApiError> {
        let defaults = &app.options.sampling;
        let temperature = self.temperature.unwrap_or(defaults.temperature);
        // Greedy is the model's own first choice unless a penalty is asked for.
        let repeat = if temperature == 0.0 { 1.0 } else { defaults.repeat_penalty };
        let sampling = SamplingParams {
            temperature,
            top_k: self.top_k.map_or(defaults.top_k, |k| usize::try_from(k).unwrap_or(0)),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            typical_p: self.typical_p.unwrap_or(defaults.typical_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(repeat),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            penalty_last_n: self.repeat_last_n.unwrap_or(defaults.penalty_last_n),
            logit_bias: self.logit_bias.iter().flatten().map(|(&id, &bias)| (id, bias)).collect(),
            seed: self.seed()?,
        };
        sampling.validate()?;
        let vocab = model.architecture().vocab;
        if let Some((id, _)) = sampling.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
            let message = format!("logit_bias names token {id}, but the vocabulary has {vocab} tokens");
            return Err(ApiError::field("logit_bias", message));
        }
        let mut stop = self.stop.clone().map(Texts::list).unwrap_or_default();
        stop.extend(stops);
        StopMatcher::new(stop.clone())?;
        let max_tokens = match (self.max_tokens()?, app.options.max_tokens) {
            (Some(asked), Some(most)) => Some(asked.min(most)),
            (asked, most) => asked.or(most),
        };
        Ok(GenerateOptions {
            sampling,
            max_tokens,
            stop,
            ignore_end: self.ignore_eos.unwrap_or(false),
            ..GenerateOptions::default()
        })
    }

    fn max_tokens(&self) -> Result<Option<usize>, ApiError> {
        let (name, asked) = match self.max_completion_tokens {
            Some(n) => ("max_completion_tokens", Some(n)),
            None => ("max_tokens", self.max_tokens),
        };
        match asked {
            // As llama.cpp has it: without a bound.
            None | Some(-1) => Ok(None),
            Some(n) => usize::try_from(n).map(Some).map_err(|_| {
                ApiError::field(
                    name,
                    format!("{name} is {n}; a number from 0 on is possible, or -1 for no bound"),
                )
            }),
        }
    }

    fn seed(&self) -> Result<Option<u64>, ApiError> {
        let Some(seed) = &self.seed else { return Ok(None) };
        let seed_as = seed.as_u64().or_else(|| seed.as_i64().map(i64::cast_unsigned));
        seed_as
            .map(Some)
            .ok_or_else(|| ApiError::field("seed", format!("seed is {seed}; it must be a whole number")))
    }
}
