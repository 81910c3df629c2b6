//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` and a status.

use nexaquant_engine::{EvalError, GenerateError};
use serde::Serialize;

/// What kind of error it is; decides status, `type` and `code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A field of the request is wrong.
    BadRequest,
    /// The prompt is longer than the context.
    ContextLength,
    /// No such model.
    UnknownModel,
    /// Too many requests are waiting.
    QueueFull,
    /// The server is going down.
    Draining,
    /// Something failed here.
    Internal,
}

impl ErrorKind {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest | Self::ContextLength => 400,
            Self::UnknownModel => 404,
            Self::QueueFull => 429,
            Self::Draining => 503,
            Self::Internal => 500,
        }
    }
    fn type_name(self) -> &'static str {
        match self {
            Self::BadRequest | Self::ContextLength | Self::UnknownModel => "invalid_request_error",
            Self::QueueFull => "rate_limit_error",
            Self::Draining | Self::Internal => "server_error",
        }
    }
    fn code(self) -> Option<&'static str> {
        match self {
            Self::ContextLength => Some("context_length_exceeded"),
            Self::UnknownModel => Some("model_not_found"),
            Self::QueueFull => Some("queue_full"),
            Self::Draining => Some("draining"),
            Self::BadRequest | Self::Internal => None,
        }
    }
}

/// An error as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// What kind.
    pub kind: ErrorKind,
    /// One line for people.
    pub message: String,
    /// The field of the request that is wrong.
    pub param: Option<String>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    /// The body of the response.
    pub fn to_json(&self) -> String {
        let (message, param) = (self.message.as_str(), self.param.as_deref());
        let error = Body { message, r#type: self.kind.type_name(), param, code: self.kind.code() };
        // Strings and nulls alone: this cannot fail.
        serde_json::to_string(&Envelope { error }).unwrap_or_default()
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let kind = match &error {
            GenerateError::Eval(EvalError::ContextFull { .. }) => ErrorKind::ContextLength,
            GenerateError::Eval(EvalError::BadToken { .. }) | GenerateError::EmptyPrompt => {
                ErrorKind::BadRequest
            }
            _ => ErrorKind::Internal,
        };
        let param = matches!(kind, ErrorKind::ContextLength).then(|| "messages".to_owned());
        Self { kind, message: error.to_string(), param }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_openais_byte_for_byte() {
        let error: ApiError =
            GenerateError::from(EvalError::ContextFull { needed: 600, context: 512, model: 512 }).into();
        assert_eq!(error.kind.status(), 400);
        assert_eq!(
            error.to_json(),
            "{\"error\":{\"message\":\"600 tokens do not fit a context of 512; shorten the prompt or raise --ctx \
             (this model was made for 512)\",\"type\":\"invalid_request_error\",\"param\":\"messages\",\
             \"code\":\"context_length_exceeded\"}}"
        );
        let unknown =
            ApiError { kind: ErrorKind::UnknownModel, message: "no model \"x\"".into(), param: None };
        assert_eq!(unknown.kind.status(), 404);
        assert_eq!(
            unknown.to_json(),
            "{\"error\":{\"message\":\"no model \\\"x\\\"\",\"type\":\"invalid_request_error\",\"param\":null,\
             \"code\":\"model_not_found\"}}"
        );
    }
}
