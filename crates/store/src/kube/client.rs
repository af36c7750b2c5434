//! Requests to the Kubernetes API, whichever of its servers answers.
//!
//! [`Client`] keeps one connection, made when it is needed with everything read anew that it takes (see [`super::access`]). A request
//! whose server fails goes to the next one; each is such that sending it twice does no harm. A credential that the API does not know
//! any more is read again once. Nothing here waits before it tries again: that is the callers' part.

use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tower_service::Service as _;

use super::access::{Access, Credential, Server, Way};
use super::ask::{Ask, Verb};
use super::inflow::Inflow;
use super::trouble::{Kind, Trouble};
use super::wire::{Malformed, Object, Status};
use crate::connection::{Channel, Manner, connect};
use crate::current::Current;
use crate::tls::Tls;

/// How long a server has to answer about one object, and how long to begin with an answer about all. That it is there at all, the
/// connection finds out sooner.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(30));
/// A server is asked whether it is there when it was silent for so long, and has so long to answer. It sends ahead so much: more is
/// of no use within a site.
const MANNER: Manner =
    Manner { ping: (Duration::from_millis(2500), Duration::from_millis(1500)), ahead: Some(256 * 1024) };
/// The longest answer about one object, in bytes. The API takes objects of up to 3 MiB.
const LARGEST: usize = 4 << 20;
/// The longest pause that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_mins(5);

/// How objects come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Whole, in protobuf.
    Whole,
    /// Only their metadata, in protobuf.
    Metadata,
    /// Whole, in JSON.
    Json,
}

impl Form {
    /// The header `Accept`, for one answer and for a watch.
    fn accept(self, verb: Verb) -> &'static str {
        match (self, verb) {
            (Self::Whole, Verb::Watch) => "application/vnd.kubernetes.protobuf;stream=watch",
            (Self::Whole, _) => "application/vnd.kubernetes.protobuf",
            (Self::Metadata, Verb::Watch) => {
                "application/vnd.kubernetes.protobuf;stream=watch;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
            }
            (Self::Metadata, Verb::List) => {
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
            }
            (Self::Metadata, _) => "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
            (Self::Json, _) => "application/json",
        }
    }
}

/// The Kubernetes API, as one daemon uses it.
#[derive(Debug)]
pub(super) struct Client {
    access: Access,
    current: Mutex<Current<Link>>,
}

/// A connection with what each request on it carries.
#[derive(Debug, Clone)]
pub(super) struct Link {
    channel: Channel<Full<Bytes>>,
    pub(super) server: Server,
    credential: Credential,
}

impl Client {
    pub(super) fn new(access: Access) -> Self {
        Self { access, current: Mutex::default() }
    }

    /// Reads one object: its bytes, in that form.
    pub(super) async fn fetch(&self, ask: &Ask, form: Form) -> Result<Vec<u8>, Trouble> {
        self.whole(ask, form, "", Bytes::new()).await
    }

    /// Changes one object by a strategic merge patch in JSON, and answers with it.
    pub(super) async fn patch(&self, ask: &Ask, patch: String, form: Form) -> Result<Vec<u8>, Trouble> {
        self.whole(ask, form, "application/strategic-merge-patch+json", patch.into()).await
    }

    /// Creates an object from JSON.
    pub(super) async fn create(&self, ask: &Ask, object: String) -> Result<Vec<u8>, Trouble> {
        self.whole(ask, Form::Json, "application/json", object.into()).await
    }

    /// Begins an answer about all objects: a list, or a watch.
    pub(super) async fn stream(&self, ask: &Ask, form: Form) -> Result<Inflow, Trouble> {
        let (link, response) = self.try_each(ask, form, "", Bytes::new(), PATIENCE.1).await?;
        Ok(Inflow::new(ask.clone(), link, response.into_body()))
    }

    /// How long the way to the server in use and back takes.
    pub(super) async fn round_trip(&self) -> Duration {
        self.current.lock().await.link.as_ref().map(|link| link.channel.round_trip()).unwrap_or_default()
    }

    async fn whole(&self, ask: &Ask, form: Form, content: &'static str, body: Bytes) -> Result<Vec<u8>, Trouble> {
        let begun = Instant::now();
        let (link, response) = self.try_each(ask, form, content, body, PATIENCE.0).await?;
        let left = PATIENCE.0.saturating_sub(begun.elapsed()).max(PATIENCE.0 / 4);
        let mut inflow = Inflow::new(ask.clone(), link, response.into_body());
        let end = timeout(left, inflow.all(LARGEST)).await;
        let end = end.unwrap_or_else(|_| Err(Trouble::silence(ask, &inflow.origin.link.server, PATIENCE.0)));
        if let Err(trouble) = &end {
            self.leave(&inflow.origin.link, &trouble.kind).await;
        }
        end
    }

    /// Gives a connection up that failed, or whose credential is not known any more.
    pub(super) async fn leave(&self, link: &Link, kind: &Kind) {
        let mut current = self.current.lock().await;
        if current.link.as_ref().is_none_or(|used| !used.channel.is(&link.channel)) {
            return;
        }
        match kind {
            Kind::Unauthorized => current.link = None,
            Kind::Away | Kind::Failed | Kind::Malformed => current.fail(),
            _ => {}
        }
    }

    /// Sends a request to the server in use, else to the next; again once to one that does not know us.
    async fn try_each(
        &self,
        ask: &Ask,
        form: Form,
        content: &'static str,
        body: Bytes,
        patience: Duration,
    ) -> Result<(Link, Response<Incoming>), Trouble> {
        let mut attempts = self.access.servers.len().max(1) + 1;
        loop {
            let link = self.link().await?;
            let request = link.request(ask, form, content, body.clone())?;
            let answer = timeout(patience, link.send(ask, request)).await;
            let trouble = match answer {
                Ok(Ok(response)) => return Ok((link, response)),
                Ok(Err(trouble)) => trouble,
                Err(_) => Trouble::silence(ask, &link.server, patience),
            };
            let is_silent = trouble.kind == Kind::Away && link.channel.is_usable() && link.channel.failure().is_none();
            self.leave(&link, &trouble.kind).await;
            attempts -= 1;
            if attempts == 0 || is_silent || !matches!(trouble.kind, Kind::Away | Kind::Unauthorized) {
                return Err(trouble);
            }
        }
    }

    /// The connection in use; else a new one, to the first server that can be had.
    async fn link(&self) -> Result<Link, Trouble> {
        let mut current = self.current.lock().await;
        if let Some(link) = current.link.as_ref().filter(|link| link.channel.is_usable()) {
            return Ok(link.clone());
        }
        let Way { servers, tls, credential } = self.access.open().await?;
        let mut causes = Vec::new();
        for number in current.order(servers.len()) {
            match reach(&servers[number], &tls, credential.clone()).await {
                Ok(link) => return Ok(current.take(number, link)),
                Err(trouble) => causes.push(trouble),
            }
        }
        Err(Trouble::all(causes))
    }
}

async fn reach(server: &Server, tls: &Tls, credential: Credential) -> Result<Link, Trouble> {
    let connected = connect(&server.endpoint, tls, MANNER).await;
    let channel = connected.map_err(|cause| Trouble::unreachable(server, &cause))?;
    Ok(Link { channel, server: server.clone(), credential })
}

impl Link {
    /// Why a request failed for which no answer came.
    pub(super) fn trouble(&self, ask: &Ask, cause: &str) -> Trouble {
        let cause = self.channel.failure().unwrap_or(cause);
        Trouble::of_connection(ask, &self.server, cause, !self.channel.has_answered())
    }

    fn request(
        &self,
        ask: &Ask,
        form: Form,
        content: &'static str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Trouble> {
        let method = match ask.verb {
            Verb::Get | Verb::List | Verb::Watch => Method::GET,
            Verb::Patch => Method::PATCH,
            Verb::Create => Method::POST,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{}{}", self.server.endpoint, self.server.path, ask.path()))
            .header(ACCEPT, form.accept(ask.verb))
            .header(USER_AGENT, concat!("flanneld/", env!("CARGO_PKG_VERSION")));
        if !content.is_empty() {
            request = request.header(CONTENT_TYPE, content);
        }
        if let Some(token) = self.credential.header()? {
            request = request.header(AUTHORIZATION, token);
        }
        request
            .body(Full::new(body))
            .map_err(|error| Trouble::new(Kind::Refused, format!("cannot {ask}: {error}"), None))
    }

    /// Sends a request; an answer of any other status than success is a trouble.
    async fn send(&self, ask: &Ask, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Trouble> {
        let mut channel = self.channel.clone();
        let ready = std::future::poll_fn(|context| channel.poll_ready(context)).await;
        let response = match ready {
            Ok(()) => channel.call(request).await,
            Err(error) => Err(error),
        };
        let response = response.map_err(|error| self.trouble(ask, &crate::connection::causes(&error)))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        let mut inflow = Inflow::new(ask.clone(), self.clone(), body);
        let text = inflow.all(LARGEST).await.unwrap_or_default();
        Err(Trouble::of_status(ask, &self.server, &status(head.status, &text), retry_after(&head.headers)))
    }
}

/// What a server says of a request that it did not do: a Status in protobuf or JSON, or any text of something in between.
fn status(code: StatusCode, body: &[u8]) -> Status {
    let read = || -> Result<Status, Malformed> { Status::read(Object::read(body)?.message) };
    let mut status = read().or_else(|_| Status::read_json(body)).unwrap_or_else(|_| Status {
        message: String::from_utf8_lossy(body).lines().next().unwrap_or_default().to_owned(),
        ..Status::default()
    });
    status.code = code.as_u16();
    if status.message.is_empty() {
        code.canonical_reason().unwrap_or_default().clone_into(&mut status.message);
    }
    status
}

/// How long the server wants us to stay away.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_WAIT))
}
