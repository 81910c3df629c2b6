//! How a server is started: plain values, decided by whoever starts it.

use nexaquant_engine::sampler::SamplingParams;
use nexaquant_engine::{LoadOptions, SessionOptions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Everything but the engine and its models.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Keys, one of which every request must carry; none: no key is asked for.
    pub api_keys: Vec<String>,
    /// Web pages of other origins that may use it, as `https://host:port`; `*`: all.
    pub cors: Vec<String>,
    /// Most bytes of a request's body.
    pub body_limit: usize,
    /// Requests that are computed by turns; the others wait.
    pub parallel: usize,
    /// Requests that may wait beside them; more are told to come back later.
    pub queue: usize,
    /// Time from a request's arrival to its end.
    pub timeout: Duration,
    /// Time that requests get to end when the server is to stop.
    pub drain: Duration,
    /// Most tokens of an answer, whatever the request says.
    pub max_tokens: Option<usize>,
    /// Most connections at once.
    pub connections: usize,
    /// How long a stream may be silent before a comment keeps it open.
    pub keep_alive: Duration,
    /// How sessions are opened.
    pub session: SessionOptions,
    /// How models are loaded that are registered later.
    pub load: LoadOptions,
    /// The folder whose models may be registered at run time; none: none may.
    pub models_dir: Option<PathBuf>,
    /// How tokens are chosen where the request does not say.
    pub sampling: SamplingParams,
    /// Certificate chain and key, in PEM; none: plain HTTP.
    pub tls: Option<Tls>,
}

/// Files of a certificate.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The chain, the server's own first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The port unless told otherwise.
pub const PORT: u16 = 8080;

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT),
            api_keys: Vec::new(),
            cors: Vec::new(),
            body_limit: 4 << 20,
            parallel: 16,
            queue: 64,
            timeout: Duration::from_secs(600),
            drain: Duration::from_secs(30),
            max_tokens: None,
            connections: 1024,
            keep_alive: Duration::from_secs(15),
            session: SessionOptions::default(),
            load: LoadOptions::default(),
            models_dir: None,
            sampling: SamplingParams::default(),
            tls: None,
        }
    }
}
