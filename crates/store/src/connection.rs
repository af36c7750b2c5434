//! One connection to one server: TCP, TLS where the endpoint says so, HTTP/2.
//!
//! [`connect`] makes it; a task of its own drives it until it fails or nobody uses it. A server that falls silent is found
//! out by HTTP/2 pings while something is asked of it, which includes a watch. What is sent on it is the stores' part.

use std::error::Error;
use std::future::Future;
use std::io::ErrorKind;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream as Socket, UdpSocket};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::{Body, Incoming};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::endpoint::Endpoint;
use crate::tls::Tls;

/// How long reaching a server may take, and then TLS.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an attempt to reach it is waited for before another is made beside it. A packet that gets lost is sent again by the kernel
/// only after a second, and then ever later.
const KNOCK: Duration = Duration::from_millis(400);

/// How a store speaks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// How long a server may be silent before it is asked whether it is there, and how long it has to answer.
    pub(crate) ping: (Duration, Duration),
    /// How many bytes a server may send ahead, in an answer; none for hyper's default.
    pub(crate) ahead: Option<u32>,
}

/// A connection to send requests on. Clones share it.
#[derive(Debug)]
pub(crate) struct Channel<B> {
    requests: SendRequest<B>,
    failure: Arc<OnceLock<String>>,
    answered: Arc<AtomicBool>,
    way: Way,
}

/// How a connection goes: its socket, and how long it took to the server and back.
#[derive(Debug, Clone)]
struct Way {
    socket: Arc<Socket>,
    round_trip: Duration,
}

impl Way {
    /// Makes a socket ready for small messages.
    fn of(socket: TcpStream, round_trip: Duration) -> std::io::Result<(TcpStream, Self)> {
        socket.set_nodelay(true)?;
        let socket = socket.into_std()?;
        let way = Self { socket: Arc::new(socket.try_clone()?), round_trip };
        Ok((TcpStream::from_std(socket)?, way))
    }

    /// The address of this host that it was made from, if the host has it no more.
    fn lost_address(&self) -> Option<IpAddr> {
        let mut address = self.socket.local_addr().ok()?;
        address.set_port(0);
        let lost = UdpSocket::bind(address).is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable);
        lost.then(|| address.ip())
    }
}

impl<B> Clone for Channel<B> {
    fn clone(&self) -> Self {
        let (failure, answered) = (Arc::clone(&self.failure), Arc::clone(&self.answered));
        Self { requests: self.requests.clone(), failure, answered, way: self.way.clone() }
    }
}

impl<B> Channel<B> {
    /// Whether requests can be sent on it. It ends with the host's address that it was made from: nothing comes back to that any more,
    /// which a server's silence would tell only seconds later.
    pub(crate) fn is_usable(&self) -> bool {
        if self.requests.is_closed() {
            return false;
        }
        match self.way.lost_address() {
            None => true,
            Some(address) => {
                self.failure.get_or_init(|| format!("{address} is no address of this host any more"));
                let _gone_already = self.way.socket.shutdown(Shutdown::Both);
                false
            }
        }
    }

    /// Whether it is this one.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.failure, &other.failure)
    }

    /// Whether the server ever answered on it.
    pub(crate) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// How long the way to the server and back took when it was made: the kernel there answers to that, under any load.
    pub(crate) fn round_trip(&self) -> Duration {
        self.way.round_trip
    }

    /// Why it has failed: what a request that was under way does not know.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }
}

impl<B: Body + Send + Unpin + 'static> tower_service::Service<Request<B>> for Channel<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (response, answered) = (self.requests.send_request(request), Arc::clone(&self.answered));
        Box::pin(async move { response.await.inspect(|_| answered.store(true, Ordering::Relaxed)) })
    }
}

/// Connects to a server. The error is the cause as a text.
pub(crate) async fn connect<B>(endpoint: &Endpoint, tls: &Tls, manner: Manner) -> Result<Channel<B>, String>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let addresses = in_time("no answer of the resolver", lookup_host((endpoint.host.as_str(), endpoint.port))).await?;
    let (socket, round_trip) = in_time("no answer", reach(addresses.collect())).await?;
    let (socket, way) = Way::of(socket, round_trip).map_err(|error| error.to_string())?;
    if !endpoint.tls {
        return speak(socket, way, manner).await;
    }
    let connector = tls.connector().map_err(|error| error.to_string())?;
    let name = tls.name.clone().unwrap_or_else(|| endpoint.host.clone());
    let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
    speak(in_time("TLS: no answer", connector.connect(name, socket)).await?, way, manner).await
}

/// Knocks again and again: the first attempt that ends decides. Also answers with how long that one took.
async fn reach(mut addresses: Vec<SocketAddr>) -> std::io::Result<(TcpStream, Duration)> {
    let mut attempts = JoinSet::new();
    loop {
        let each = addresses.clone();
        attempts.spawn(async move {
            let begun = Instant::now();
            TcpStream::connect(each.as_slice()).await.map(|socket| (socket, begun.elapsed()))
        });
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

async fn speak<B>(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    way: Way,
    manner: Manner,
) -> Result<Channel<B>, String>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(manner.ping.0).keep_alive_timeout(manner.ping.1);
    if let Some(ahead) = manner.ahead {
        builder.initial_stream_window_size(ahead).initial_connection_window_size(ahead);
    }
    let (requests, connection) = builder.handshake(TokioIo::new(socket)).await.map_err(|error| causes(&error))?;
    let failure = Arc::new(OnceLock::new());
    let channel = Channel { requests, failure: Arc::clone(&failure), answered: Arc::default(), way };
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            failure.get_or_init(|| causes(&error));
        }
    });
    Ok(channel)
}

/// An error's causes on one line; one that the text holds already is not told twice. What rustls adds is not told: where it is
/// documented, and the times of a certificate, with which the same trouble would be another at every attempt.
pub(crate) fn causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source()).map(ToString::to_string);
    let text = |text: String, cause: String| if text.contains(&cause) { text } else { format!("{text}: {cause}") };
    let all = causes.fold(error.to_string(), text);
    let added = [": https://docs.rs/", ": verification time "];
    let end = added.iter().filter_map(|part| all.find(part)).min().unwrap_or(all.len());
    all[..end].to_owned()
}

/// What is said of a server that ends a connection.
pub(crate) const HUNG_UP: &str = "the server hangs up";

/// Why a connection failed. What is noticed first of a server that hangs up is a matter of luck, and all the same.
pub(crate) fn plain(cause: &str) -> &str {
    let hung_up = ["eof", "reset by peer", "broken pipe"].iter().any(|part| cause.contains(part));
    if hung_up { HUNG_UP } else { cause }
}
