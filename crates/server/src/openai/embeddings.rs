//! `POST /v1/embeddings`: texts as vectors, made of the hidden states of any model.

use crate::answer::all;
use crate::app::App;
use crate::ask::Ask;
use crate::body::Json;
use crate::error::ApiError;
use crate::prompt::{self, TextOrTokens};
use crate::sampling::MOST_CHOICES;
use axum::extract::State;
use nexaquant_engine::tokenizer::Special;
use nexaquant_engine::{GenerateOptions, Pooling};
use serde::Deserialize;
use serde_json::{Value, json};

/// What is to become vectors.
#[derive(Debug, Deserialize)]
pub struct Body {
    model: String,
    input: TextOrTokens,
    encoding_format: Option<Format>,
    dimensions: Option<usize>,
    /// How tokens become one vector; the mean without it.
    pooling: Option<How>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Float,
    Base64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum How {
    Mean,
    Last,
}

/// Makes vectors.
pub async fn create(State(app): State<App>, Json(body): Json<Body>) -> Result<axum::Json<Value>, ApiError> {
    let model = app.model(&body.model)?.model;
    let width = model.architecture().hparams.embd;
    if body.dimensions.is_some_and(|n| n != width) {
        return Err(ApiError::field(
            "dimensions",
            format!("dimensions can only be {width}, which this model has"),
        ));
    }
    let texts = body.input.texts();
    let n = texts.as_ref().map_or_else(Vec::len, Vec::len);
    if !(1..=MOST_CHOICES as usize).contains(&n) {
        return Err(ApiError::field(
            "input",
            format!("there are {n} inputs; 1 to {MOST_CHOICES} are possible"),
        ));
    }
    let prompts = match texts {
        Err(tokens) => tokens,
        Ok(texts) => {
            let mut prompts = Vec::new();
            for text in texts {
                if text.is_empty() {
                    return Err(ApiError::field("input", "an input is empty"));
                }
                prompts.push(prompt::text(&model, text, Special::AsText, "input").await?);
            }
            prompts
        }
    };
    for prompt in &prompts {
        prompt::check(&app, &model, prompt, "input")?;
    }
    let pooling = match body.pooling {
        Some(How::Last) => Pooling::Last,
        Some(How::Mean) | None => Pooling::Mean,
    };
    let generate =
        GenerateOptions { max_tokens: Some(0), pooling: Some(pooling), ..GenerateOptions::default() };
    let ask = Ask { name: body.model.clone(), model, prompts, n: 1, generate };
    let (mut data, mut tokens) = (Vec::new(), 0);
    for (index, (outcome, _)) in all(ask.submit(&app)?).await?.into_iter().enumerate() {
        tokens += outcome.generation.stats.prompt_tokens + outcome.generation.stats.cached_tokens;
        let vector = outcome.generation.embedding.unwrap_or_default();
        let vector = match body.encoding_format {
            Some(Format::Base64) => json!(base64(&vector)),
            Some(Format::Float) | None => json!(vector),
        };
        data.push(json!({ "object": "embedding", "index": index, "embedding": vector }));
    }
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    Ok(axum::Json(json!({ "object": "list", "model": body.model, "data": data, "usage": usage })))
}

/// Little-endian f32 values in base64, as OpenAI's own client asks for them.
fn base64(vector: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_usual_one() {
        // 1.0 is 00 00 80 3f.
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.0]), "AACAPwAAAMA=");
        assert_eq!(base64(&[0.0; 3]), "AAAAAAAAAAAAAAAA");
        assert_eq!(base64(&[]), "");
    }
}
