//! Who may ask: keys, and what browsers may do with a server that asks for none.
//!
//! A page on the web must not be able to use a server on the reader's own machine. So a request that a browser sends for
//! another origin is refused unless the origin is listed, and without keys the name it was sent to must not be one that
//! somebody else's name server made up.

use crate::app::App;
use crate::error::{ApiError, ErrorKind};
use crate::{anthropic, ollama};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use subtle::ConstantTimeEq;

/// What anybody may see: whether the server lives, and the page, which asks for a key itself.
fn open(path: &str) -> bool {
    matches!(path, "/" | "/health" | "/livez" | "/readyz" | "/openapi.json") || path.starts_with("/page/")
}

/// Refuses who may not ask, in the words of the API that they speak.
pub async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    match may(&app, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => match request.uri().path() {
            path if path.starts_with("/v1/messages") => {
                error.respond(anthropic::as_error(&error).to_string())
            }
            path if path.starts_with("/api/") => error.respond(ollama::as_error(&error).to_string()),
            _ => error.into_response(),
        },
    }
}

fn may(app: &App, request: &Request) -> Result<(), ApiError> {
    let headers = request.headers();
    origin(app, headers)?;
    if app.options.api_keys.is_empty() {
        host(app, headers, request.uri())
    } else if open(request.uri().path()) {
        Ok(())
    } else {
        key(&app.options.api_keys, headers)
    }
}

fn key(keys: &[String], headers: &HeaderMap) -> Result<(), ApiError> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    let given = bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()));
    let Some(given) = given else {
        return Err(ApiError::new(
            ErrorKind::Unauthorized,
            "an API key is needed: Authorization: Bearer KEY",
        ));
    };
    // All keys are looked at, whichever fits.
    let fits = keys.iter().fold(0, |fits, key| fits | key.as_bytes().ct_eq(given.as_bytes()).unwrap_u8());
    if fits == 1 { Ok(()) } else { Err(ApiError::new(ErrorKind::Unauthorized, "the API key is wrong")) }
}

fn origin(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let own = origin.split_once("://").map(|(_, host)| host) == text(header::HOST);
    if own || app.options.cors.iter().any(|listed| listed == "*" || listed == origin) {
        return Ok(());
    }
    let message = format!("pages of {origin} may not use this server; --cors {origin} would let them");
    Err(ApiError::new(ErrorKind::Forbidden, message))
}

fn host(app: &App, headers: &HeaderMap, uri: &Uri) -> Result<(), ApiError> {
    let given = headers.get(header::HOST).and_then(|value| value.to_str().ok()).or(uri.host());
    let Some(given) = given else { return Ok(()) };
    let name = given.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let name = name.map_or(given, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    let local = !app.options.listen.ip().is_loopback();
    let known = address || local || name.eq_ignore_ascii_case("localhost") || name.ends_with(".localhost");
    if known {
        return Ok(());
    }
    let message = format!("this server has no API key, so it answers to localhost and not to {name:?}");
    Err(ApiError::new(ErrorKind::Forbidden, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_the_keys_fits_in_either_header() {
        let keys = ["one".to_owned(), "two".to_owned()];
        let with = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, axum::http::HeaderValue::from_static(value));
            key(&keys, &headers).is_ok()
        };
        assert!(with("authorization", "Bearer two") && with("authorization", "bearer one"));
        assert!(with("x-api-key", "one"));
        for bad in ["", "Bearer", "Bearer tw", "Bearer twoo", "Basic two", "two"] {
            let mut headers = HeaderMap::new();
            headers.insert("authorization", bad.parse().unwrap());
            assert_eq!(key(&keys, &headers).unwrap_err().kind, ErrorKind::Unauthorized, "{bad}");
        }
        assert!(key(&keys, &HeaderMap::new()).is_err());
    }
}
