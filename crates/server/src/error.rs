//! Errors as clients see them: OpenAI's shape `{"error": {"message", "type", "param", "code"}}` and a status.
//!
//! Other APIs put the same error into their own shape (`as_error` in `anthropic/` and `ollama/`).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nexaquant_engine::chat::ChatError;
use nexaquant_engine::m3::MemoryError;
use nexaquant_engine::sampler::SamplingError;
use nexaquant_engine::scheduler::{RequestError, SubmitError};
use nexaquant_engine::{EvalError, GenerateError, SessionError};
use serde::Serialize;

/// What kind of error it is; decides status, `type` and `code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A field of the request is wrong.
    BadRequest,
    /// The prompt is longer than the context.
    ContextLength,
    /// No key, or a wrong one.
    Unauthorized,
    /// Not from there, or not at all.
    Forbidden,
    /// No such model.
    UnknownModel,
    /// No such route.
    NotFound,
    /// The route has other methods.
    Method,
    /// What is asked for does not go together with what is.
    Conflict,
    /// More bytes than are accepted.
    TooLarge,
    /// Too many requests are waiting.
    QueueFull,
    /// The server is going down.
    Draining,
    /// The request's time is over.
    Timeout,
    /// The body does not come.
    SlowBody,
    /// The budget cannot hold it.
    NoRoom,
    /// Something failed here.
    Internal,
}

impl ErrorKind {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest | Self::ContextLength => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::UnknownModel | Self::NotFound => 404,
            Self::Method => 405,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::QueueFull => 429,
            Self::Draining => 503,
            Self::Timeout => 504,
            Self::SlowBody => 408,
            Self::NoRoom => 422,
            Self::Internal => 500,
        }
    }

    /// OpenAI's `type`.
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Unauthorized => "authentication_error",
            Self::Forbidden => "permission_error",
            Self::QueueFull => "rate_limit_error",
            Self::Draining | Self::Timeout | Self::Internal => "server_error",
            _ => "invalid_request_error",
        }
    }

    fn code(self) -> Option<&'static str> {
        match self {
            Self::ContextLength => Some("context_length_exceeded"),
            Self::Unauthorized => Some("invalid_api_key"),
            Self::UnknownModel => Some("model_not_found"),
            Self::QueueFull => Some("queue_full"),
            Self::Draining => Some("draining"),
            Self::Timeout => Some("timeout"),
            Self::NoRoom => Some("over_budget"),
            _ => None,
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
    /// Seconds after which another attempt makes sense.
    pub retry_after: Option<u64>,
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
    /// An error about nothing in particular.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), param: None, retry_after: None }
    }

    /// A field that is wrong.
    pub fn field(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::new(ErrorKind::BadRequest, message) }
    }

    /// The body of the response.
    pub fn to_json(&self) -> String {
        let (message, param) = (self.message.as_str(), self.param.as_deref());
        let error = Body { message, r#type: self.kind.type_name(), param, code: self.kind.code() };
        // Strings and nulls alone: this cannot fail.
        serde_json::to_string(&Envelope { error }).unwrap_or_default()
    }

    /// A response with this status and `body`.
    pub fn respond(&self, body: String) -> Response {
        if matches!(self.kind, ErrorKind::Internal) {
            tracing::error!(message = self.message, "internal error");
        }
        let status = StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.kind == ErrorKind::Unauthorized {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.respond(self.to_json())
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        let kind = match &error {
            GenerateError::Eval(EvalError::ContextFull { .. }) => ErrorKind::ContextLength,
            GenerateError::Eval(EvalError::BadToken { .. })
            | GenerateError::EmptyPrompt
            | GenerateError::Sampling(
                SamplingError::Parameter { .. }
                | SamplingError::BiasToken { .. }
                | SamplingError::StopStrings { .. }
                | SamplingError::NothingLeft
                | SamplingError::Constraint(_),
            ) => ErrorKind::BadRequest,
            GenerateError::Eval(EvalError::Budget(_)) => ErrorKind::NoRoom,
            _ => ErrorKind::Internal,
        };
        let param = match &error {
            GenerateError::Eval(EvalError::ContextFull { .. }) => Some("messages"),
            GenerateError::Sampling(SamplingError::Parameter { name, .. }) => Some(*name),
            GenerateError::Sampling(SamplingError::BiasToken { .. } | SamplingError::NothingLeft) => {
                Some("logit_bias")
            }
            GenerateError::Sampling(SamplingError::StopStrings { .. }) => Some("stop"),
            GenerateError::Sampling(SamplingError::Constraint(_)) => Some("response_format"),
            _ => None,
        };
        Self { param: param.map(str::to_owned), ..Self::new(kind, error.to_string()) }
    }
}

impl From<SamplingError> for ApiError {
    fn from(error: SamplingError) -> Self {
        GenerateError::Sampling(error).into()
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Generate(error) => error.into(),
            RequestError::Session(error @ SessionError::KvType(_)) => {
                Self::new(ErrorKind::BadRequest, error.to_string())
            }
            error => Self::new(ErrorKind::Internal, error.to_string()),
        }
    }
}

impl From<MemoryError> for ApiError {
    fn from(error: MemoryError) -> Self {
        let kind = match &error {
            MemoryError::UnknownName { .. } => ErrorKind::UnknownModel,
            MemoryError::NameTaken { .. } | MemoryError::InUse { .. } | MemoryError::Unbounded => {
                ErrorKind::Conflict
            }
            MemoryError::NoBudget { .. } | MemoryError::TooMuch { .. } => ErrorKind::BadRequest,
            MemoryError::Residency(_) | MemoryError::Row(_) => ErrorKind::NoRoom,
            _ => ErrorKind::Internal,
        };
        let param = (kind == ErrorKind::UnknownModel).then(|| "model".to_owned());
        Self { param, ..Self::new(kind, error.to_string()) }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Memory(error) => error.into(),
            SubmitError::Busy { .. } => {
                Self { retry_after: Some(1), ..Self::new(ErrorKind::QueueFull, error.to_string()) }
            }
            error => Self::new(ErrorKind::Draining, error.to_string()),
        }
    }
}

impl From<&ChatError> for ApiError {
    fn from(error: &ChatError) -> Self {
        match error {
            ChatError::Refused { .. } | ChatError::TooLong { .. } | ChatError::Tokenizer(_) => {
                Self::field("messages", error.to_string())
            }
            _ => Self::field("model", error.to_string()),
        }
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
        let unknown = ApiError::new(ErrorKind::UnknownModel, "no model \"x\"");
        assert_eq!(unknown.kind.status(), 404);
        assert_eq!(
            unknown.to_json(),
            "{\"error\":{\"message\":\"no model \\\"x\\\"\",\"type\":\"invalid_request_error\",\"param\":null,\
             \"code\":\"model_not_found\"}}"
        );
    }
}
