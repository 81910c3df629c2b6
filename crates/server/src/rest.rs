//! What of a body nobody wanted to read.
//!
//! A connection that is closed while its client still sends is reset, and a client whose sending fails seldom looks
//! for the answer that was already there. So what is left of a refused body is read and thrown away before the answer
//! goes out, within limits.

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// The longest wait for more of it.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest time in all.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most bytes.
const MOST: usize = 256 << 20;

/// A layer outside of all that may refuse a request.
pub async fn read_to_its_end(request: Request, next: Next) -> Response {
    // A client that asks before it sends has nothing to be rid of.
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = Shared(Arc::new(Mutex::new(body)));
    let response = next.run(Request::from_parts(parts, Body::new(body.clone()))).await;
    let _ = tokio::time::timeout(PATIENCE, discard(body)).await;
    response
}

async fn discard(mut body: Shared) {
    let mut bytes = 0;
    while bytes < MOST && !body.is_end_stream() {
        let Ok(Some(Ok(frame))) = tokio::time::timeout(PAUSE, body.frame()).await else { return };
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// A body that is still there when a handler has let go of it.
#[derive(Clone)]
struct Shared(Arc<Mutex<Body>>);

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
