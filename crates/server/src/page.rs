//! The page at `/` and the OpenAPI document: files of `web/`, part of the program.

use crate::error::{ApiError, ErrorKind};
use axum::extract::Path;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

const INDEX: &str = include_str!("web/index.html");
const FILES: [(&str, &str, &str); 9] = [
    ("style.css", "text/css; charset=utf-8", include_str!("web/style.css")),
    ("app.js", JS, include_str!("web/app.js")),
    ("chat.js", JS, include_str!("web/chat.js")),
    ("turns.js", JS, include_str!("web/turns.js")),
    ("store.js", JS, include_str!("web/store.js")),
    ("charts.js", JS, include_str!("web/charts.js")),
    ("map.js", JS, include_str!("web/map.js")),
    ("markdown.js", JS, include_str!("web/markdown.js")),
    ("http.js", JS, include_str!("web/http.js")),
];
const JS: &str = "text/javascript; charset=utf-8";
pub(crate) const OPENAPI: &str = include_str!("web/openapi.json");

/// Nothing but this server's own files, and no scripts in the page itself.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn asset(kind: &'static str, body: &'static str) -> Response {
    let mut response = ([(header::CONTENT_TYPE, kind)], body).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The page.
pub async fn index() -> Response {
    asset("text/html; charset=utf-8", INDEX)
}

/// Its files.
pub async fn file(Path(name): Path<String>) -> Result<Response, ApiError> {
    let found = FILES.iter().find(|(known, _, _)| *known == name);
    found
        .map(|&(_, kind, body)| asset(kind, body))
        .ok_or_else(|| ApiError::new(ErrorKind::NotFound, "no such file"))
}

/// The document.
pub async fn openapi() -> Response {
    asset("application/json", OPENAPI)
}
