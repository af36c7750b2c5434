//! One connection to one server: TCP, TLS where the endpoint says so, HTTP/2.
//!
//! [`connect`] makes it; a task of its own drives it until it fails or nobody uses it. A server that falls silent is found
//! out by HTTP/2 pings while something is asked of it, which includes a watch.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::body::Body;

use super::endpoint::Endpoint;
use super::tls::TlsFiles;
use super::trouble::causes;

/// How long reaching a server may take, and then TLS.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an attempt to reach it is waited for before another is made beside it. A packet that gets lost is sent again by the kernel
/// only after a second, and then ever later.
const KNOCK: Duration = Duration::from_millis(400);
/// How long a server may be silent before it is asked whether it is there, and how long it has to answer. etcd hangs up on
/// clients that ask more often than every 5 seconds (`--grpc-keepalive-min-time`).
const PING: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(4));

/// A connection to send requests on. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Channel {
    requests: SendRequest<Body>,
    failure: Arc<OnceLock<String>>,
    answered: Arc<AtomicBool>,
}

impl Channel {
    /// Whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    /// Whether the server ever answered on it.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// Why it has failed: what a request that was under way does not know.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }
}

impl tower_service::Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (response, answered) = (self.requests.send_request(request), Arc::clone(&self.answered));
        Box::pin(async move { response.await.inspect(|_| answered.store(true, Ordering::Relaxed)) })
    }
}

/// Connects to a server. The error is the cause as a text.
pub(super) async fn connect(endpoint: &Endpoint, files: &TlsFiles) -> Result<Channel, String> {
    let socket = in_time("no answer", reach(endpoint)).await?;
    socket.set_nodelay(true).map_err(|error| error.to_string())?;
    if !endpoint.tls {
        return speak(socket).await;
    }
    let connector = files.connector().map_err(|error| error.to_string())?;
    let name = ServerName::try_from(endpoint.host.clone()).map_err(|error| error.to_string())?;
    speak(in_time("TLS: no answer", connector.connect(name, socket)).await?).await
}

/// Knocks again and again: the first attempt that ends decides.
async fn reach(endpoint: &Endpoint) -> std::io::Result<TcpStream> {
    let mut addresses: Vec<SocketAddr> = lookup_host((endpoint.host.as_str(), endpoint.port)).await?.collect();
    let mut attempts = JoinSet::new();
    loop {
        let each = addresses.clone();
        attempts.spawn(async move { TcpStream::connect(each.as_slice()).await });
        if let Ok(Some(ended)) = timeout(KNOCK, attempts.join_next()).await {
            return ended?;
        }
        let next = usize::from(addresses.len() > 1);
        addresses.rotate_left(next);
    }
}

async fn in_time<T>(silence: &str, attempt: impl Future<Output = std::io::Result<T>>) -> Result<T, String> {
    match timeout(PATIENCE, attempt).await {
        Ok(result) => result.map_err(|error| causes(&error)),
        Err(_) => Err(format!("{silence} in {} s", PATIENCE.as_secs())),
    }
}

async fn speak(socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Channel, String> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(PING.0).keep_alive_timeout(PING.1);
    let (requests, connection) = builder.handshake(TokioIo::new(socket)).await.map_err(|error| causes(&error))?;
    let failure = Arc::new(OnceLock::new());
    let channel = Channel { requests, failure: Arc::clone(&failure), answered: Arc::default() };
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            failure.get_or_init(|| causes(&error));
        }
    });
    Ok(channel)
}
