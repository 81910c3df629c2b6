//! Bodies of requests: read within limits, parsed with errors that name the field.

use crate::app::App;
use crate::error::{ApiError, ErrorKind};
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::error::Error;
use std::time::Duration;

/// Time for a body to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

/// The bytes of a body, as many as are accepted.
pub struct Raw(pub Bytes);

impl FromRequest<App> for Raw {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let limit = app.options.body_limit;
        let too_large =
            || ApiError::new(ErrorKind::TooLarge, format!("the body is larger than {limit} bytes"));
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|bytes| bytes > limit) {
            return Err(too_large());
        }
        let read = tokio::time::timeout(PATIENCE, axum::body::to_bytes(request.into_body(), limit)).await;
        let late =
            || ApiError::new(ErrorKind::SlowBody, format!("the body did not come within {PATIENCE:?}"));
        let bytes = read.map_err(|_| late())?.map_err(|error| {
            let long = error.source().is_some_and(<dyn Error>::is::<LengthLimitError>);
            if long { too_large() } else { ApiError::new(ErrorKind::BadRequest, "the body broke off") }
        })?;
        Ok(Self(bytes))
    }
}

/// A body as JSON.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let Raw(bytes) = Raw::from_request(request, app).await?;
        parse(&bytes).map(Self)
    }
}

/// Parses JSON. An error says where, and which field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    match serde_path_to_error::deserialize(&mut json) {
        Ok(value) => {
            json.end().map_err(|error| ApiError::new(ErrorKind::BadRequest, error.to_string()))?;
            Ok(value)
        }
        Err(error) => {
            // In JSON, 20.0 is 20, and some languages write it so.
            let whole = error.inner().is_data().then(|| with_whole_numbers(bytes)).flatten();
            let value = whole.and_then(|value| serde_json::from_value(value).ok());
            value.ok_or_else(|| wrong(&error))
        }
    }
}

fn wrong(error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    // A key that is no good has no name of its own.
    let path = error.path().to_string().trim_end_matches(".?").to_owned();
    let param = (!path.is_empty() && path != ".").then_some(path);
    let inner = error.inner().to_string();
    let message = param.as_ref().map_or_else(|| inner.clone(), |path| format!("{path}: {inner}"));
    ApiError { param, ..ApiError::new(ErrorKind::BadRequest, message) }
}

/// The value with whole numbers where floating ones are whole; `None` if there are none of those.
fn with_whole_numbers(bytes: &[u8]) -> Option<Value> {
    // Beyond this not every whole number is one.
    const MOST: f64 = (1_u64 << 53) as f64;
    fn change(value: &mut Value) -> bool {
        match value {
            Value::Number(number) => {
                let found =
                    number.as_f64().filter(|x| number.is_f64() && x.fract() == 0.0 && x.abs() <= MOST);
                if let Some(x) = found {
                    *value = Value::from(x as i64);
                }
                found.is_some()
            }
            Value::Array(values) => values.iter_mut().fold(false, |changed, value| change(value) | changed),
            Value::Object(object) => {
                object.values_mut().fold(false, |changed, value| change(value) | changed)
            }
            _ => false,
        }
    }
    let mut value = serde_json::from_slice(bytes).ok()?;
    change(&mut value).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Thing {
        list: Vec<u32>,
    }

    #[test]
    fn whole_numbers_may_be_written_with_a_point() {
        assert_eq!(parse::<Thing>(br#"{"list": [1.0, 2, 3e2]}"#).unwrap().list, [1, 2, 300]);
        for bad in ["[1.5]", "[-1.0]", "[1e300]", "[1.0, \"x\"]"] {
            let error = parse::<Thing>(format!("{{\"list\": {bad}}}").as_bytes()).unwrap_err();
            assert!(error.param.is_some_and(|param| param.starts_with("list[")), "{bad}");
        }
    }

    #[test]
    fn errors_name_the_field() {
        let error = parse::<Thing>(br#"{"list": [1, "two"]}"#).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("list[1]"));
        assert_eq!(error.kind, ErrorKind::BadRequest);
        for bad in ["", "[]", "{}", "{\"list\":[]} x", "nul", &"[".repeat(100_000)] {
            assert_eq!(parse::<Thing>(bad.as_bytes()).unwrap_err().kind.status(), 400, "{bad:.20}");
        }
    }
}
