//! What goes wrong between us and the Kubernetes API, as one line with its cause and remedy.
//!
//! [`Trouble`] is what a request comes back with; [`Kind`] is what the caller does about it. No text holds a token.

use std::fmt;
use std::time::Duration;

use flannel_core::cut;

use super::access::AccessError;
use super::ask::Ask;
use super::wire::{Malformed, Status};
use crate::connection::{HUNG_UP, plain};

/// The most of what a server says that a line repeats, in characters.
const LONGEST: usize = 400;

/// What the caller does about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// No server answers: one may be back at any moment.
    Away,
    /// Our own side is not as it should be: a file, a certificate, a credential plugin.
    Unusable,
    /// The server does not know who we are, any more (401).
    Unauthorized,
    /// We have no right to that (403).
    Forbidden,
    /// There is no such object (404).
    NotFound,
    /// Somebody else was faster, or it is there already (409).
    Conflict,
    /// What was gone on from is not there any more: it has to be begun anew (410).
    Gone,
    /// The server is overloaded (429, or 503 with a time): come back after so long, if it said.
    Busy(Option<Duration>),
    /// The server does not understand, or does not take, what was asked (other 4xx).
    Refused,
    /// The server failed (5xx).
    Failed,
    /// The answer is not what the API answers.
    Malformed,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) kind: Kind,
    pub(super) text: String,
    pub(super) hint: Option<String>,
}

impl Trouble {
    pub(super) fn new(kind: Kind, text: impl Into<String>, hint: Option<&str>) -> Self {
        Self { kind, text: text.into(), hint: hint.map(str::to_owned) }
    }

    /// What a server answered instead of what it was asked for.
    pub(super) fn of_status(ask: &Ask, server: &dyn fmt::Display, status: &Status, wait: Option<Duration>) -> Self {
        let cause = cut(status.message.trim(), LONGEST);
        let kind = kind(status.code, wait);
        let verb = if kind == Kind::Forbidden { "refuses to" } else { "cannot" };
        let text = format!("Kubernetes API at {server} {verb} {ask}: {} {cause}", status.code);
        let hint = match kind {
            Kind::Forbidden => Some(ask.missing_right()),
            _ => hint(&kind, &cause).map(str::to_owned),
        };
        Self { kind, text: text.trim_end().to_owned(), hint }
    }

    /// A connection that failed while a request was under way. If it is the `first` one, maybe because of how we speak.
    pub(super) fn of_connection(ask: &Ask, server: &dyn fmt::Display, cause: &str, first: bool) -> Self {
        let text = format!("Kubernetes API at {server} cannot {ask}: {}", plain(cause));
        let guess =
            "if this server speaks TLS write https://, and see that HTTP/2 reaches it (a proxy may speak HTTP/1 only)";
        Self::new(Kind::Away, text, hint(&Kind::Away, cause).or(first.then_some(guess)))
    }

    /// A server that no connection can be made to.
    pub(super) fn unreachable(server: &dyn fmt::Display, cause: &str) -> Self {
        let text = format!("Kubernetes API at {server} cannot be reached: {}", plain(cause));
        let guess = (plain(cause) == HUNG_UP).then_some("see that an API server listens there, and that it speaks TLS");
        Self::new(Kind::Away, text, hint(&Kind::Away, cause).or(guess))
    }

    /// All servers.
    pub(super) fn all(mut each: Vec<Self>) -> Self {
        let hint = each.iter().find_map(|trouble| trouble.hint.clone());
        // In the same order, whichever was tried first: it is one trouble.
        each.sort_by(|a, b| a.text.cmp(&b.text));
        let text = each.into_iter().map(|trouble| trouble.text).collect::<Vec<_>>().join("; ");
        Self { kind: Kind::Away, text, hint }
    }

    /// No answer in time.
    pub(super) fn silence(ask: &Ask, server: &dyn fmt::Display, patience: Duration) -> Self {
        let text = format!("Kubernetes API at {server} cannot {ask}: no answer in {} s", patience.as_secs());
        Self::new(Kind::Away, text, Some("look at the load of the API server, and whether its etcd answers"))
    }

    /// An answer that is none.
    pub(super) fn malformed(ask: &Ask, server: &dyn fmt::Display, cause: &Malformed) -> Self {
        let text = format!("Kubernetes API at {server} cannot {ask}: {cause}");
        Self::new(
            Kind::Malformed,
            text,
            Some("see that it is a Kubernetes API server, and not a proxy that answers there"),
        )
    }
}

impl From<AccessError> for Trouble {
    fn from(error: AccessError) -> Self {
        Self::new(Kind::Unusable, error.to_string(), Some(error.hint()))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hint {
            Some(hint) => write!(f, "{} (hint: {hint})", self.text),
            None => f.write_str(&self.text),
        }
    }
}

fn kind(code: u16, wait: Option<Duration>) -> Kind {
    match code {
        401 => Kind::Unauthorized,
        403 => Kind::Forbidden,
        404 => Kind::NotFound,
        409 => Kind::Conflict,
        410 => Kind::Gone,
        429 => Kind::Busy(wait),
        503 | 504 if wait.is_some() => Kind::Busy(wait),
        500.. => Kind::Failed,
        _ => Kind::Refused,
    }
}

fn hint(kind: &Kind, cause: &str) -> Option<&'static str> {
    let known = [
        (
            "Connection refused",
            "see that the API server runs there, or correct --kube-api-url or the kubeconfig's server",
        ),
        ("keep-alive timed out", "see that the API server and the network to it are up"),
        ("of the resolver", "correct the name of the API server, or this host's resolver"),
        ("no answer", "see that the API server runs, and that no firewall is in between"),
        ("No route to host", "see that the API server's host is up and that this node has a route to it"),
        ("Network is unreachable", "this node has no route to the API server yet"),
        ("failed to lookup", "correct the name of the API server, or this host's resolver"),
        ("InvalidContentType", "this server does not speak TLS: write http:// instead of https://"),
        ("cannot read", "give files that flanneld may read"),
        ("holds none in PEM", "give files in PEM, the key without a password"),
        ("no certificate of an authority", "name the cluster's CA in the kubeconfig (certificate-authority)"),
        (
            "UnknownIssuer",
            "give the CA that signed the API server's certificate: certificate-authority in the kubeconfig, ca.crt beside the token",
        ),
        (
            "certificate expired",
            "renew the API server's certificate (kubeadm certs renew), or correct the clock of this host",
        ),
        ("not valid yet", "correct the clock of this host, or give the API server another certificate"),
        ("not valid for name", "reach the API server by a name or address that is in its certificate"),
        (
            "NoApplicationProtocol",
            "this server does not speak HTTP/2, which flanneld needs: reach the API server itself, not a proxy before it",
        ),
        (
            "received fatal alert",
            "the server wants another client certificate: correct the kubeconfig's client-certificate",
        ),
        ("keys may not be consistent", "give a certificate and a key that belong together"),
    ];
    match kind {
        Kind::Unauthorized => {
            Some("the API does not know this token or certificate: see that it has not expired and is of this cluster")
        }
        Kind::Busy(_) => Some("the API server is overloaded: flanneld comes back later"),
        _ => known.iter().find(|(part, _)| cause.contains(part)).map(|(_, hint)| *hint),
    }
}
