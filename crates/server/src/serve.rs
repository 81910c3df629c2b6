//! From start to stop.

use crate::app::{App, Phase};
use crate::listen::listen;
use crate::router::router;
use crate::tls;
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// A server that listens, and has not answered yet.
pub struct Server {
    app: App,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<tokio_rustls::TlsAcceptor>,
}

impl Server {
    /// Takes the address and reads the certificate.
    pub async fn bind(app: &App) -> io::Result<Self> {
        let tls = app.options.tls.as_ref().map(tls::acceptor).transpose()?;
        let listener = TcpListener::bind(app.options.listen).await?;
        let address = listener.local_addr()?;
        Ok(Self { app: app.clone(), listener, address, tls })
    }

    /// Where it listens; the port too if any would do.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the server has stopped.
    pub async fn run(self) -> io::Result<()> {
        let router = router(&self.app);
        listen(self.app, self.listener, router, self.tls).await
    }
}

/// Runs a server until a signal stops it: SIGTERM or Ctrl-C lets requests end within the time for that; a second one
/// ends them at once. `ready` is told where it listens.
pub fn serve(app: &App, ready: impl FnOnce(SocketAddr)) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(async {
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let server = Server::bind(app).await?;
        ready(server.address());
        let stopper = app.clone();
        tokio::spawn(async move {
            let mut asked = async || {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            };
            asked().await;
            tracing::info!(inside = stopper.queue.inside(), "requests end; no more are taken");
            stopper.enter(Phase::Draining);
            tokio::select! {
                () = asked() => tracing::warn!("stopped at once"),
                () = tokio::time::sleep(stopper.options.drain) => tracing::warn!("the time to end is over"),
            }
            stopper.enter(Phase::Stopped);
        });
        server.run().await
    });
    // Threads that wait for a disk must not keep the program.
    runtime.shutdown_background();
    done
}
