//! From conversations and texts to token ids. Templates and long texts take a while, so this happens on a thread of its
//! own and not between the streams of others.

use crate::app::App;
use crate::error::{ApiError, ErrorKind};
use crate::tools::{self, Offer};
use nexaquant_engine::chat::{ChatTemplate, Message, RenderOptions};
use nexaquant_engine::tokenizer::Special;
use nexaquant_engine::{EvalError, GenerateError, Model};
use serde::Deserialize;

/// One text or several, as text or tokens.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a text, a list of texts, a list of token ids, or a list of lists of token ids"
)]
pub(crate) enum TextOrTokens {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ManyTokens(Vec<Vec<u32>>),
}

impl TextOrTokens {
    /// The texts, or else the tokens of each.
    pub(crate) fn texts(self) -> Result<Vec<String>, Vec<Vec<u32>>> {
        match self {
            TextOrTokens::Text(text) => Ok(vec![text]),
            TextOrTokens::Texts(texts) => Ok(texts),
            TextOrTokens::Tokens(tokens) => Err(vec![tokens]),
            TextOrTokens::ManyTokens(tokens) => Err(tokens),
        }
    }
}

async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let fault = |_| ApiError::new(ErrorKind::Internal, "a fault in this program; please report it");
    tokio::task::spawn_blocking(work).await.map_err(fault)?
}

/// A prompt, and texts that end the answer because no token does.
pub struct Prompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Texts.
    pub stops: Vec<String>,
}

/// The model's template around a conversation, with what the model may call in it.
pub async fn chat(
    model: &Model,
    messages: Vec<Message>,
    options: RenderOptions,
    offer: Offer,
) -> Result<Prompt, ApiError> {
    let model = model.clone();
    aside(move || {
        let template: &ChatTemplate = model.chat().map_err(ApiError::from)?;
        let (messages, options) = tools::tell((template, model.tokenizer()), messages, options, &offer);
        let ids = template.render(model.tokenizer(), &messages, &options).map_err(|e| ApiError::from(&e))?;
        Ok(Prompt { ids, stops: template.stops().iter().map(|&stop| stop.to_owned()).collect() })
    })
    .await
}

/// Text as it is, after the token that sequences begin with. `field` is where it came from.
pub async fn text(model: &Model, text: String, special: Special, field: &str) -> Result<Vec<u32>, ApiError> {
    let (model, field) = (model.clone(), field.to_owned());
    aside(move || {
        let tokenizer = model.tokenizer();
        let mut ids =
            tokenizer.encode(&text, special).map_err(|error| ApiError::field(&field, error.to_string()))?;
        if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.add_bos() && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    })
    .await
}

/// Refuses what the engine would refuse, before anything is promised to the client.
pub fn check(app: &App, model: &Model, prompt: &[u32], field: &str) -> Result<(), ApiError> {
    let (context, vocab) = (app.session(model).context, model.architecture().vocab);
    let error = if prompt.is_empty() {
        GenerateError::EmptyPrompt
    } else if prompt.len() > context {
        let model = model.architecture().hparams.context_length;
        EvalError::ContextFull { needed: prompt.len(), context, model }.into()
    } else if let Some(&token) = prompt.iter().find(|&&token| token as usize >= vocab) {
        EvalError::BadToken { token, vocab }.into()
    } else {
        return Ok(());
    };
    Err(ApiError { param: Some(field.to_owned()), ..error.into() })
}
