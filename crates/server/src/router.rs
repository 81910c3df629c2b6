//! All routes, and what lies around them.

use crate::app::App;
use crate::error::{ApiError, ErrorKind};
use crate::{anthropic, guard, health, m3, ollama, openai, page, rest, scrape, tokens};
use axum::Router;
use axum::http::{HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use std::any::Any;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, Any as AnyHeader, CorsLayer};

/// Every route with its method: what the OpenAPI document must have, too.
pub const ROUTES: &[(&str, &str)] = &[
    ("get", "/"),
    ("get", "/health"),
    ("get", "/livez"),
    ("get", "/readyz"),
    ("get", "/metrics"),
    ("get", "/openapi.json"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{id}"),
    ("post", "/v1/chat/completions"),
    ("post", "/v1/completions"),
    ("post", "/v1/embeddings"),
    ("post", "/v1/messages"),
    ("post", "/v1/messages/count_tokens"),
    ("post", "/tokenize"),
    ("post", "/detokenize"),
    ("get", "/v1/m3/residency"),
    ("get", "/v1/m3/events"),
    ("post", "/v1/m3/budget"),
    ("post", "/v1/m3/models"),
    ("delete", "/v1/m3/models/{name}"),
    ("post", "/v1/m3/models/{name}/load"),
    ("post", "/v1/m3/models/{name}/unload"),
    ("post", "/v1/m3/models/{name}/pin"),
    ("post", "/v1/m3/models/{name}/unpin"),
    ("post", "/models/load"),
    ("post", "/models/unload"),
    ("get", "/api/version"),
    ("get", "/api/tags"),
    ("get", "/api/ps"),
    ("post", "/api/show"),
    ("post", "/api/chat"),
    ("post", "/api/generate"),
];

/// The router.
pub fn router(app: &App) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/page/{file}", get(page::file))
        .route("/health", get(health::ready))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(scrape::metrics))
        .route("/openapi.json", get(page::openapi))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{id}", get(openai::models::get))
        .route("/v1/chat/completions", post(openai::chat::create))
        .route("/v1/completions", post(openai::completions::create))
        .route("/v1/embeddings", post(openai::embeddings::create))
        .route("/v1/messages", post(anthropic::create))
        .route("/v1/messages/count_tokens", post(anthropic::count))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/m3/residency", get(m3::residency))
        .route("/v1/m3/events", get(m3::events))
        .route("/v1/m3/budget", post(m3::budget))
        .route("/v1/m3/models", post(m3::register))
        .route("/v1/m3/models/{name}", delete(m3::remove))
        .route("/v1/m3/models/{name}/load", post(m3::load))
        .route("/v1/m3/models/{name}/unload", post(m3::unload))
        .route("/v1/m3/models/{name}/pin", post(m3::pin))
        .route("/v1/m3/models/{name}/unpin", post(m3::unpin))
        .route("/models/load", post(m3::router_load))
        .route("/models/unload", post(m3::router_unload))
        .route("/api/version", get(ollama::version))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::ps))
        .route("/api/show", post(ollama::show))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .fallback(async || {
            ApiError::new(ErrorKind::NotFound, "there is nothing here; /openapi.json lists what there is")
        })
        .method_not_allowed_fallback(async || {
            ApiError::new(ErrorKind::Method, "this route has another method")
        })
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard::guard))
        .layer(axum::middleware::from_fn(log))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(cors(&app.options.cors))
        .layer(axum::middleware::from_fn(rest::read_to_its_end))
        .with_state(app.clone())
}

fn cors(origins: &[String]) -> CorsLayer {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AnyHeader)
        .expose_headers([header::RETRY_AFTER]);
    if origins.iter().any(|origin| origin == "*") {
        return layer.allow_origin(AnyHeader);
    }
    let listed: Vec<HeaderValue> = origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    layer.allow_origin(AllowOrigin::list(listed))
}

/// A line for each request, without what was said.
async fn log(request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let start = std::time::Instant::now();
    let response = next.run(request).await;
    let (status, ms) = (response.status().as_u16(), start.elapsed().as_secs_f64() * 1e3);
    if matches!(path.as_str(), "/health" | "/livez" | "/readyz" | "/metrics") {
        tracing::debug!(%method, path, status, ms, "request");
    } else {
        tracing::info!(%method, path, status, ms, "request");
    }
    response
}

#[allow(clippy::needless_pass_by_value, reason = "as the layer wants it")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown panic");
    ApiError::new(ErrorKind::Internal, format!("a fault in this program: {text}; please report it"))
        .into_response()
}
