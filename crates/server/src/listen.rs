//! Connections: accepted up to a number, bounded in time and size, and let go when the server stops.
//!
//! Not `axum::serve`: that has no time limit for headers, no bound on connections, and waits for ever on open streams.

use crate::app::{App, Phase};
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

/// Time for a request's headers, and between two requests of a connection.
const HEADERS: Duration = Duration::from_secs(60);
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may refuse to read what is sent to it.
const STALL: Duration = Duration::from_secs(120);
/// Most bytes of a request's head.
const HEAD: usize = 64 << 10;

/// Serves until the server is stopped: no new connections from [`Phase::Draining`] on, none at all from
/// [`Phase::Stopped`] on.
pub async fn listen(
    app: App,
    listener: TcpListener,
    router: Router,
    tls: Option<TlsAcceptor>,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(app.options.connections.clamp(1, Semaphore::MAX_PERMITS)));
    let all = room.available_permits() as u32;
    loop {
        let socket = tokio::select! {
            accepted = listener.accept() => accepted,
            () = app.reaches(Phase::Draining) => break,
        };
        let socket = match socket {
            Ok((socket, _)) => socket,
            Err(error) => {
                // Out of descriptors: others will close theirs.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            tracing::warn!("too many connections; one is closed");
            continue;
        };
        tokio::spawn(connection(app.clone(), socket, router.clone(), tls.clone(), permit));
    }
    drop(listener);
    tokio::select! {
        done = room.acquire_many(all) => drop(done),
        () = app.reaches(Phase::Stopped) => {}
    }
    Ok(())
}

async fn connection(
    app: App,
    socket: TcpStream,
    router: Router,
    tls: Option<TlsAcceptor>,
    _permit: OwnedSemaphorePermit,
) {
    // Tokens are small and must not wait for each other.
    let _ = socket.set_nodelay(true);
    let mut socket = TimeoutStream::new(socket);
    socket.set_write_timeout(Some(STALL));
    let socket = Box::pin(socket);
    match tls {
        None => serve(app, socket, router).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(socket)).await {
            Ok(Ok(stream)) => serve(app, stream, router).await,
            Ok(Err(error)) => tracing::debug!(%error, "no TLS"),
            Err(_) => tracing::debug!("a TLS handshake took too long"),
        },
    }
}

async fn serve(app: App, stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(HEAD);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    tokio::select! {
        result = connection.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "a connection broke off");
            }
            return;
        }
        () = app.reaches(Phase::Draining) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        result = connection.as_mut() => drop(result),
        // Streams say so before their connection goes.
        () = async { app.reaches(Phase::Stopped).await; tokio::time::sleep(Duration::from_millis(200)).await } => {}
    }
}
