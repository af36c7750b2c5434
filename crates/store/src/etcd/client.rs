//! Requests to an etcd cluster, whichever of its servers answers.
//!
//! [`Client`] keeps one connection, made when it is needed, and logs in where there is a user. A request whose server fails
//! goes to the next one; each is such that sending it twice does no harm. A token that is not known any more (it expires
//! after 300 idle seconds, and with a restart of the server) is renewed once. Nothing here waits before it tries again: that
//! is the callers' part.

use std::fmt;
use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::rpc::{
    AuthenticateRequest, AuthenticateResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest,
    LeaseKeepAliveResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
    watch_request,
};
use super::trouble::{Kind, Trouble};
use crate::connection::{Channel, Manner, connect};
use crate::current::Current;
use crate::endpoint::Endpoint;
use crate::tls::{Tls, TlsFiles};

/// How long a server has to answer a request.
const PATIENCE: Duration = Duration::from_secs(5);
/// etcd hangs up on clients that ask more often than every 5 seconds whether it is there (`--grpc-keepalive-min-time`).
const MANNER: Manner = Manner { ping: (Duration::from_secs(8), Duration::from_secs(4)), ahead: None };
/// The longest message that is taken in, in bytes.
const LARGEST: usize = 32 << 20;

/// A user of etcd.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub name: String,
    /// The password, which nothing shows.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login {{ name: {:?}, password: (hidden) }}", self.name)
    }
}

impl fmt::Debug for AuthenticateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthenticateRequest {{ name: {:?}, password: (hidden) }}", self.name)
    }
}

impl fmt::Debug for AuthenticateResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthenticateResponse { token: (hidden) }")
    }
}

/// An etcd cluster, as one user sees it.
#[derive(Debug)]
pub(super) struct Client {
    endpoints: Vec<Endpoint>,
    tls: Tls,
    login: Option<Login>,
    current: Mutex<Current<Link>>,
}

/// A connection with what each request on it carries.
#[derive(Debug, Clone)]
struct Link {
    channel: Channel<Body>,
    endpoint: Endpoint,
    token: Option<MetadataValue<Ascii>>,
}

/// The responses to a watch.
#[derive(Debug)]
pub(super) struct Watching {
    stream: Streaming<WatchResponse>,
    link: Link,
}

impl Watching {
    /// The server that answers.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.link.endpoint
    }
}

impl Client {
    pub(super) fn new(endpoints: Vec<Endpoint>, tls: TlsFiles, login: Option<Login>) -> Self {
        Self { endpoints, tls: tls.into(), login, current: Mutex::default() }
    }

    pub(super) async fn range(&self, action: &str, request: RangeRequest) -> Result<RangeResponse, Trouble> {
        self.ask(action, "/etcdserverpb.KV/Range", request).await
    }

    pub(super) async fn txn(&self, action: &str, request: TxnRequest) -> Result<TxnResponse, Trouble> {
        self.ask(action, "/etcdserverpb.KV/Txn", request).await
    }

    pub(super) async fn lease_grant(&self, request: LeaseGrantRequest) -> Result<LeaseGrantResponse, Trouble> {
        self.ask("grant a lease", "/etcdserverpb.Lease/LeaseGrant", request).await
    }

    pub(super) async fn lease_revoke(&self, request: LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Trouble> {
        self.ask("revoke a lease", "/etcdserverpb.Lease/LeaseRevoke", request).await
    }

    /// How long a lease lives still, in seconds; negative if there is no such lease.
    pub(super) async fn lease_time_to_live(&self, id: i64) -> Result<LeaseTimeToLiveResponse, Trouble> {
        let request = LeaseTimeToLiveRequest { id };
        self.ask("look at a lease", "/etcdserverpb.Lease/LeaseTimeToLive", request).await
    }

    /// Renews a lease once; the answer's TTL is 0 if there is no such lease.
    pub(super) async fn lease_keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, Trouble> {
        let action = "renew a lease";
        let send = |link: Link| async move {
            let once = tokio_stream::once(LeaseKeepAliveRequest { id });
            let mut answers = link.stream("/etcdserverpb.Lease/LeaseKeepAlive", once).await?;
            answers.message().await?.ok_or_else(|| Status::unavailable("the answer is missing"))
        };
        self.try_each(action, send).await
    }

    /// Starts watches on one stream, each with its own `watch_id`. Only a server that knows a leader does.
    pub(super) async fn watch(&self, requests: Vec<WatchCreateRequest>) -> Result<Watching, Trouble> {
        let create =
            |request| WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(request)) };
        let requests: Vec<_> = requests.into_iter().map(create).collect();
        let send = |link: Link| {
            // etcd ends a watch whose client has nothing more to say.
            let requests = tokio_stream::iter(requests.clone()).chain(tokio_stream::pending());
            async move {
                let stream = link.stream("/etcdserverpb.Watch/Watch", requests).await?;
                Ok(Watching { stream, link })
            }
        };
        self.try_each("watch", send).await
    }

    /// Waits for the next response to a watch.
    pub(super) async fn next(&self, watching: &mut Watching) -> Result<WatchResponse, Trouble> {
        let status = match watching.stream.message().await {
            Ok(Some(response)) => return Ok(response),
            Ok(None) => Status::unavailable("the server ended the watch"),
            Err(status) => status,
        };
        Err(self.refuse(watching, &status).await)
    }

    /// Gives a watch up because of what the server said of it.
    pub(super) async fn refuse(&self, watching: &Watching, status: &Status) -> Trouble {
        let trouble = watching.link.trouble("watch", status);
        self.leave(&watching.link, trouble.kind).await;
        trouble
    }

    /// Forgets what made a server refuse the last request: the token, or the connection to it.
    async fn leave(&self, link: &Link, kind: Kind) {
        let mut current = self.current.lock().await;
        let Some(used) = current.link.as_mut().filter(|used| used.channel.is(&link.channel)) else { return };
        match kind {
            Kind::Token => used.token = None,
            Kind::Away => current.fail(),
            _ => {}
        }
    }

    /// Sends one message and waits for one.
    async fn ask<Q, A>(&self, action: &str, path: &'static str, request: Q) -> Result<A, Trouble>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let send = |link: Link| {
            let request = request.clone();
            async move { link.unary(path, request).await }
        };
        self.try_each(action, send).await
    }

    /// Sends a request to the server in use, else to the next.
    async fn try_each<T, F>(&self, action: &str, send: impl Fn(Link) -> F) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut attempts = self.endpoints.len() + 1;
        loop {
            let link = self.link().await?;
            let Ok(answer) = timeout(PATIENCE, send(link.clone())).await else {
                self.leave(&link, Kind::Away).await;
                return Err(Trouble::silence(action, &link.endpoint));
            };
            let trouble = match answer {
                Ok(answer) => return Ok(answer),
                Err(status) => link.trouble(action, &status),
            };
            self.leave(&link, trouble.kind).await;
            attempts -= 1;
            if attempts == 0 || !matches!(trouble.kind, Kind::Away | Kind::Token) {
                return Err(trouble);
            }
        }
    }

    /// The connection in use, logged in; else a new one, to the first server that can be had.
    async fn link(&self) -> Result<Link, Trouble> {
        let mut current = self.current.lock().await;
        if let Some(link) = current.link.as_mut().filter(|link| link.channel.is_usable()) {
            self.log_in(link).await?;
            return Ok(link.clone());
        }
        let mut causes = Vec::new();
        for number in current.order(self.endpoints.len()) {
            match self.reach(&self.endpoints[number]).await {
                Ok(link) => return Ok(current.take(number, link)),
                Err(trouble) if trouble.kind != Kind::Away => return Err(trouble),
                Err(trouble) => causes.push(trouble),
            }
        }
        Err(Trouble::all(causes))
    }

    async fn reach(&self, endpoint: &Endpoint) -> Result<Link, Trouble> {
        let channel =
            connect(endpoint, &self.tls, MANNER).await.map_err(|cause| Trouble::unreachable(endpoint, &cause))?;
        let mut link = Link { channel, endpoint: endpoint.clone(), token: None };
        self.log_in(&mut link).await?;
        Ok(link)
    }

    /// Gets a token, where there is a user and no token yet. A server without users wants none.
    async fn log_in(&self, link: &mut Link) -> Result<(), Trouble> {
        let Some(Login { name, password }) = self.login.as_ref().filter(|_| link.token.is_none()) else {
            return Ok(());
        };
        let request = AuthenticateRequest { name: name.clone(), password: password.clone() };
        let answer = timeout(PATIENCE, link.unary("/etcdserverpb.Auth/Authenticate", request)).await;
        let answer: Result<AuthenticateResponse, Status> =
            answer.map_err(|_| Trouble::silence("log in", &link.endpoint))?;
        match answer {
            Ok(AuthenticateResponse { token }) => {
                let no_text = |_| link.trouble("log in", &Status::data_loss("the token is no text"));
                let mut token: MetadataValue<Ascii> = token.parse().map_err(no_text)?;
                token.set_sensitive(true);
                link.token = Some(token);
                Ok(())
            }
            Err(status) if status.message().contains("authentication is not enabled") => Ok(()),
            Err(status) => Err(link.trouble("log in", &status)),
        }
    }
}

impl Link {
    /// Why a request failed: what the server said, or what happened to the connection.
    fn trouble(&self, action: &str, status: &Status) -> Trouble {
        match self.channel.failure() {
            Some(failure) => Trouble::of_connection(action, &self.endpoint, failure, !self.channel.has_answered()),
            None => Trouble::of_status(action, &self.endpoint, status),
        }
    }

    fn grpc(&self) -> Grpc<Channel<Body>> {
        let origin = self.endpoint.to_string().parse::<Uri>().unwrap_or_default();
        Grpc::with_origin(self.channel.clone(), origin).max_decoding_message_size(LARGEST)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = &self.token {
            metadata.insert("token", token.clone());
        }
        request
    }

    async fn unary<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc();
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let path = PathAndQuery::from_static(path);
        Ok(grpc.unary(self.request(message), path, ProstCodec::default()).await?.into_inner())
    }

    async fn stream<Q, A>(
        &self,
        path: &'static str,
        messages: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc();
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let path = PathAndQuery::from_static(path);
        Ok(grpc.streaming(self.request(messages), path, ProstCodec::default()).await?.into_inner())
    }
}
