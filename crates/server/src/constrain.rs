//! Answers that follow a schema, a grammar or an expression: [`llguidance`] says which tokens may come, the engine's
//! sampler chooses among them.
//!
//! Grammars come from strangers, so their size, the work to start and the work for each token are bounded.

use crate::app::Known;
use crate::error::{ApiError, ErrorKind};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use nexaquant_engine::Model;
use nexaquant_engine::sampler::{Constraint, SamplingError};
use nexaquant_engine::tokenizer::TokenKind;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// OpenAI's `response_format`.
#[derive(Debug, Deserialize)]
pub struct ResponseFormat {
    r#type: String,
    json_schema: Option<Named>,
    /// Without the name around it, as others have it.
    schema: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Named {
    schema: Option<Value>,
}

/// What an answer must follow.
#[derive(Debug)]
pub enum Wanted {
    /// A JSON schema.
    Schema(Value),
    /// A grammar in Lark's notation.
    Lark(String),
    /// A regular expression.
    Regex(String),
}

impl Wanted {
    fn field(&self) -> &'static str {
        match self {
            Wanted::Schema(_) => "response_format",
            Wanted::Lark(_) => "grammar",
            Wanted::Regex(_) => "regex",
        }
    }
}

/// What a request asks for; at most one thing.
pub fn wanted(
    format: Option<ResponseFormat>,
    grammar: Option<String>,
    regex: Option<String>,
) -> Result<Option<Wanted>, ApiError> {
    let schema = match format {
        None => None,
        Some(format) => match format.r#type.as_str() {
            "text" => None,
            "json_object" => Some(format.schema.unwrap_or_else(|| json!({ "type": "object" }))),
            "json_schema" => {
                let schema = format.json_schema.and_then(|named| named.schema).or(format.schema);
                let missing = || {
                    let field = "response_format.json_schema.schema";
                    ApiError::field(field, format!("{field} is missing"))
                };
                Some(schema.ok_or_else(missing)?)
            }
            other => {
                let message =
                    format!("{other:?} is no response format; there are text, json_object and json_schema");
                return Err(ApiError::field("response_format.type", message));
            }
        },
    };
    let all = [schema.map(Wanted::Schema), grammar.map(Wanted::Lark), regex.map(Wanted::Regex)];
    let mut all = all.into_iter().flatten();
    match (all.next(), all.next()) {
        (_, Some(second)) => Err(ApiError::field(
            second.field(),
            "an answer can follow one of response_format, grammar and regex",
        )),
        (one, None) => Ok(one),
    }
}

/// Prepares it for a model.
pub async fn constraint(known: &Known, wanted: Wanted) -> Result<Box<dyn Constraint>, ApiError> {
    let known = known.clone();
    let work = move || {
        let field = wanted.field();
        let bad = |error: String| {
            ApiError::field(
                field,
                format!("{field} cannot be followed: {}", error.lines().next().unwrap_or_default()),
            )
        };
        let grammar = match wanted {
            Wanted::Schema(schema) => TopLevelGrammar::from_json_schema(compact(schema)),
            Wanted::Lark(text) => TopLevelGrammar::from_lark(text),
            Wanted::Regex(text) => TopLevelGrammar::from_regex(&text),
        };
        let tokens = known.tokens.get_or_init(|| tokens(&known.model)).clone();
        let mut factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &[])
            .map_err(|error| bad(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_grammar_size: 100_000,
            max_lexer_states: 20_000,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        let parser = factory.create_parser(grammar).map_err(|error| bad(error.to_string()))?;
        let mut matcher = Matcher::new(Ok(parser));
        // What cannot even begin is the client's mistake.
        matcher.compute_mask_or_eos().map_err(|error| bad(error.to_string()))?;
        Ok(Box::new(Guide(matcher)) as Box<dyn Constraint>)
    };
    let fault = |_| ApiError::new(ErrorKind::Internal, "a fault in this program; please report it");
    tokio::task::spawn_blocking(work).await.map_err(fault)?
}

/// Without white space of the model's choice: a small one would go on with empty lines for ever.
fn compact(mut schema: Value) -> Value {
    if let Some(object) = schema.as_object_mut() {
        let form = json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
        object.insert("x-guidance".to_owned(), form);
    }
    schema
}

/// The bytes of all tokens, as a tree.
fn tokens(model: &Model) -> TokEnv {
    let tokenizer = model.tokenizer();
    let end = tokenizer.end_of_turn().first().copied().or(tokenizer.eos()).unwrap_or(0);
    let bytes = |id: u32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        // This byte marks what is no text.
        let special = matches!(tokenizer.kind(id), Some(TokenKind::Control | TokenKind::Unknown));
        if special { [&[TokTrie::SPECIAL_TOKEN_MARKER], &bytes[..]].concat() } else { bytes }
    };
    let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32).map(bytes).collect();
    let info = TokRxInfo::new(words.len() as u32, end);
    Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)))
}

struct Guide(Matcher);

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guide")
    }
}

fn failed(error: impl std::fmt::Display) -> SamplingError {
    SamplingError::Constraint(error.to_string().lines().next().unwrap_or_default().to_owned())
}

impl Constraint for Guide {
    fn forbid(&mut self, logits: &mut [f32]) -> Result<(), SamplingError> {
        let mask = self.0.compute_mask_or_eos().map_err(failed)?;
        for (id, logit) in logits.iter_mut().enumerate() {
            if id >= mask.len() || !mask.is_allowed(id as u32) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), SamplingError> {
        if self.0.is_stopped() { Ok(()) } else { self.0.consume_token(token).map_err(failed) }
    }

    fn is_over(&self) -> bool {
        self.0.is_stopped()
    }

    fn boxed(&self) -> Box<dyn Constraint> {
        Box::new(Guide(self.0.deep_clone()))
    }
}
