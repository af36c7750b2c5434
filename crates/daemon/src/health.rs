//! The health server: `/healthz` says whether the loop turns, `/readyz` whether the node's pods have a network.
//!
//! It runs on a thread of its own, so that it can also say that the loop is stuck. It decides nothing: the loop keeps
//! [`Vitals`] true, the server reads them out.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use flannel_core::addr::Family;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;

/// The loop touches [`Vitals::turn`] at least this often, also when there is nothing to do.
pub const BEAT: Duration = Duration::from_secs(5);

/// A loop that has not turned for this long is stuck.
const STUCK: Duration = Duration::from_secs(30);

/// Time for one request and its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Requests served at the same time; more wait.
const REQUESTS: usize = 64;

/// What the loop tells of itself.
#[derive(Debug)]
pub struct Vitals(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    turned: Instant,
    missing: Vec<String>,
}

impl Vitals {
    /// A loop that starts now and is not ready.
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(Inner { turned: now, missing: vec!["starting".into()] }))
    }

    /// The loop turns.
    pub fn turn(&self, now: Instant) {
        self.lock().turned = now;
    }

    /// Sets what is still missing for the node to be ready, a line each. Nothing missing means ready.
    pub fn set_missing(&self, missing: Vec<String>) {
        self.lock().missing = missing;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self, now: Instant) -> (StatusCode, String) {
        let idle = now.saturating_duration_since(self.lock().turned);
        if idle < STUCK {
            return (StatusCode::OK, "flanneld is running".into());
        }
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("flanneld is stuck: its loop has not turned for {} s", idle.as_secs()),
        )
    }

    pub(crate) fn readiness(&self) -> (StatusCode, String) {
        let inner = self.lock();
        if inner.missing.is_empty() {
            return (StatusCode::OK, "flanneld is ready".into());
        }
        let mut text = String::from("flanneld is not ready yet");
        inner.missing.iter().for_each(|line| {
            let _ = write!(text, "\n{line}");
        });
        (StatusCode::SERVICE_UNAVAILABLE, text)
    }

    fn answer(&self, path: &str, now: Instant) -> (StatusCode, String) {
        match path {
            "/healthz" => self.health(now),
            "/readyz" => self.readiness(),
            _ => (StatusCode::NOT_FOUND, "not found: there are /healthz and /readyz".into()),
        }
    }
}

/// Why there is no health server. The daemon works without one.
#[derive(Debug, thiserror::Error)]
#[error("no health server on {address}: {cause}; probes will fail, the network works")]
pub struct NoServer {
    address: SocketAddr,
    cause: io::Error,
}

/// Listens on an address and answers there until the process ends. Returns the address, with the port that was bound.
pub fn serve(address: SocketAddr, vitals: Arc<Vitals>) -> Result<SocketAddr, NoServer> {
    start(address, vitals).map_err(|cause| NoServer { address, cause })
}

fn start(address: SocketAddr, vitals: Arc<Vitals>) -> io::Result<SocketAddr> {
    let listener = listen(address)?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    std::thread::Builder::new().name("health".into()).spawn(move || runtime.block_on(accept(listener, vitals)))?;
    Ok(bound)
}

/// `0.0.0.0` stands for all addresses of both families, as in Go: in a cluster without IPv4, probes come by IPv6.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let all = SocketAddr::new(Family::V6.unspecified(), address.port());
    if address.ip() == Family::V4.unspecified()
        && let Ok(listener) = TcpListener::bind(all)
    {
        return Ok(listener);
    }
    TcpListener::bind(address)
}

async fn accept(listener: TcpListener, vitals: Arc<Vitals>) -> io::Result<Infallible> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(REQUESTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { continue };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: those in use come back within PATIENCE.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let vitals = Arc::clone(&vitals);
        tokio::spawn(async move {
            let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(respond(&vitals, &request))));
            let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
            // A peer that breaks off or dawdles is its own problem.
            let _ = tokio::time::timeout(PATIENCE, connection).await;
            drop(place);
        });
    }
}

fn respond(vitals: &Vitals, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, text) = vitals.answer(request.uri().path(), Instant::now());
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    fn ask(server: SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(server).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: flanneld\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    fn local(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    #[test]
    fn probes_hear_what_the_loop_says() {
        let vitals = Arc::new(Vitals::new(Instant::now()));
        let server = serve(local(0), Arc::clone(&vitals)).unwrap();
        let ok = "HTTP/1.1 200 OK".to_owned();
        let unavailable = "HTTP/1.1 503 Service Unavailable".to_owned();

        assert_eq!(ask(server, "/healthz"), (ok.clone(), "flanneld is running".into()));
        assert_eq!(ask(server, "/readyz"), (unavailable.clone(), "flanneld is not ready yet\nstarting".into()));
        vitals.set_missing(Vec::new());
        assert_eq!(ask(server, "/readyz?verbose"), (ok, "flanneld is ready".into()));
        assert!(ask(server, "/").0.contains("404"));

        if let Some(past) = Instant::now().checked_sub(STUCK) {
            vitals.turn(past);
            let (status, text) = ask(server, "/healthz");
            assert_eq!((status, text.starts_with("flanneld is stuck")), (unavailable, true));
        }
    }

    #[test]
    fn a_silent_client_keeps_nobody_waiting() {
        let server = serve(local(0), Arc::new(Vitals::new(Instant::now()))).unwrap();
        let silent: Vec<_> = (0..REQUESTS / 2).map(|_| TcpStream::connect(server).unwrap()).collect();
        assert!(ask(server, "/healthz").0.ends_with("200 OK"));
        drop(silent);
    }

    #[test]
    fn all_addresses_are_those_of_both_families() {
        let all = SocketAddr::new(Family::V4.unspecified(), 0);
        let port = serve(all, Arc::new(Vitals::new(Instant::now()))).unwrap().port();
        for loopback in ["127.0.0.1", "::1"] {
            let (status, _) = ask(SocketAddr::new(loopback.parse().unwrap(), port), "/healthz");
            assert!(status.ends_with("200 OK"), "{loopback}: {status}");
        }
    }

    #[test]
    fn a_port_that_is_taken_is_an_error_not_a_panic() {
        let taken = TcpListener::bind(local(0)).unwrap();
        let address = taken.local_addr().unwrap();
        let error = serve(address, Arc::new(Vitals::new(Instant::now()))).unwrap_err();
        assert!(error.to_string().starts_with(&format!("no health server on {address}: Address already in use")));
    }
}
