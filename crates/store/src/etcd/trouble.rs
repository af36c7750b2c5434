//! What goes wrong between us and etcd, as one line with its cause and remedy.
//!
//! [`Trouble`] is what a request comes back with; [`Kind`] is what the caller does about it. No text holds a password:
//! neither etcd's answers nor the errors of a connection repeat it.

use std::error::Error;
use std::fmt;

use tonic::{Code, Status};

use crate::connection::{HUNG_UP, causes, plain};
use crate::endpoint::Endpoint;

/// What the caller does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// No server answers, or none that has a leader: it may be back at any moment.
    Away,
    /// The server does not know our token, any more.
    Token,
    /// What was gone on from is not there any more: it has to be begun anew.
    Anew,
    /// The answer does not fit into a message.
    TooLarge,
    /// The user has no right to that.
    Denied,
    /// Anything else that the server refuses.
    Refused,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) kind: Kind,
    text: String,
    hint: Option<&'static str>,
}

impl Trouble {
    pub(super) fn new(kind: Kind, text: impl Into<String>, hint: Option<&'static str>) -> Self {
        Self { kind, text: text.into(), hint }
    }

    /// What a server answered to a request.
    pub(super) fn of_status(action: &str, endpoint: &dyn fmt::Display, status: &Status) -> Self {
        let cause = cause_of(status);
        let kind = kind(status.code(), &cause);
        Self::new(kind, format!("etcd at {endpoint} cannot {action}: {cause}"), hint(kind, &cause))
    }

    /// A connection that failed while a request was under way. If it is the `first` one, maybe because of how we speak: what a
    /// server has to say before it hangs up gets lost easily.
    pub(super) fn of_connection(action: &str, endpoint: &Endpoint, cause: &str, first: bool) -> Self {
        let text = format!("etcd at {endpoint} cannot {action}: {}", plain(cause));
        let guess = if endpoint.tls {
            "if this server wants a certificate of ours that it trusts, give --etcd-certfile and --etcd-keyfile; its log says more"
        } else {
            "if this server speaks TLS, write https:// instead of http://; else correct the port in --etcd-endpoints"
        };
        Self::new(Kind::Away, text, hint(Kind::Away, cause).or(first.then_some(guess)))
    }

    /// A server that no connection can be made to.
    pub(super) fn unreachable(endpoint: &Endpoint, cause: &str) -> Self {
        let hangs_up = endpoint.tls && plain(cause) == HUNG_UP;
        let guess = hangs_up.then_some("if this server does not speak TLS, write http:// instead of https://");
        let text = format!("etcd at {endpoint} cannot be reached: {}", plain(cause));
        Self::new(Kind::Away, text, hint(Kind::Away, cause).or(guess))
    }

    /// All servers of a cluster.
    pub(super) fn all(mut each: Vec<Self>) -> Self {
        let hint = each.iter().find_map(|trouble| trouble.hint);
        // In the same order, whichever was tried first: it is one trouble.
        each.sort_by(|a, b| a.text.cmp(&b.text));
        let text = each.into_iter().map(|trouble| trouble.text).collect::<Vec<_>>().join("; ");
        Self::new(Kind::Away, text, hint)
    }

    /// No answer in time.
    pub(super) fn silence(action: &str, endpoint: &dyn fmt::Display) -> Self {
        let hint = "look at its load and its disk, and whether its cluster has a leader";
        Self::new(Kind::Away, format!("etcd at {endpoint} cannot {action}: no answer in time"), Some(hint))
    }
}

impl Trouble {
    /// What failed and why, and what to do.
    pub(super) fn into_parts(self) -> (String, Option<&'static str>) {
        (self.text, self.hint)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hint {
            Some(hint) => write!(f, "{} (hint: {hint})", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// What a server said, or why the connection to it failed.
fn cause_of(status: &Status) -> String {
    match status.source() {
        Some(source) => causes(source),
        None if status.message().is_empty() => format!("{:?}", status.code()),
        None => status.message().to_owned(),
    }
}

fn kind(code: Code, cause: &str) -> Kind {
    match code {
        Code::Unauthenticated => Kind::Token,
        Code::InvalidArgument if cause.contains("revision of auth store is old") => Kind::Token,
        Code::OutOfRange if cause.contains("required revision") => Kind::Anew,
        Code::OutOfRange | Code::ResourceExhausted if cause.contains("larger than") || cause.contains("too large") => {
            Kind::TooLarge
        }
        Code::PermissionDenied => Kind::Denied,
        Code::Unavailable
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Unknown
        | Code::Internal
        | Code::Aborted => Kind::Away,
        _ => Kind::Refused,
    }
}

fn hint(kind: Kind, cause: &str) -> Option<&'static str> {
    let known = [
        ("Connection refused", "start etcd there, or correct --etcd-endpoints"),
        ("keep-alive timed out", "see that the server and the network to it are up"),
        ("no answer in", "see that the server runs and that no firewall is in between, or correct --etcd-endpoints"),
        ("of the resolver", "correct the name in --etcd-endpoints, or this host's resolver"),
        ("No route to host", "see that the server's host is up, or correct --etcd-endpoints"),
        ("failed to lookup", "correct the name in --etcd-endpoints, or this host's resolver"),
        ("InvalidContentType", "this server does not speak TLS: write http:// instead of https://"),
        ("cannot read", "--etcd-cafile, --etcd-certfile and --etcd-keyfile have to name files that flanneld may read"),
        ("holds none in PEM", "give files in PEM, the key without a password"),
        (
            "no certificate of an authority",
            "name the authority that signed this server's certificate with --etcd-cafile",
        ),
        ("UnknownIssuer", "--etcd-cafile has to name the authority that signed this server's certificate"),
        ("certificate expired", "give this server a new certificate, or correct the clock of this host"),
        ("not valid yet", "correct the clock of this host, or give this server another certificate"),
        ("not valid for name", "write the server in --etcd-endpoints by a name that is in its certificate"),
        ("received fatal alert", "the server wants another certificate: give --etcd-certfile and --etcd-keyfile"),
        ("keys may not be consistent", "give a certificate and a key that belong together"),
        ("authentication failed", "correct --etcd-username and --etcd-password"),
        (
            "user name is empty",
            "this etcd wants a user: give --etcd-username and --etcd-password, or a client certificate",
        ),
        ("space exceeded", "compact and defragment etcd, then `etcdctl alarm disarm`"),
        ("no leader", "most members of the etcd cluster have to run and to reach each other"),
        ("request timed out", "most members of the etcd cluster have to run and to reach each other"),
    ];
    match kind {
        Kind::Denied => Some("grant the user of --etcd-username readwrite on all keys below --etcd-prefix"),
        _ => known.iter().find(|(part, _)| cause.contains(part)).map(|(_, hint)| *hint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_say_becomes_a_line_with_a_remedy() {
        for (status, kind, text) in [
            (
                Status::permission_denied("etcdserver: permission denied"),
                Kind::Denied,
                "etcd at http://a:1 cannot read /k: etcdserver: permission denied \
                 (hint: grant the user of --etcd-username readwrite on all keys below --etcd-prefix)",
            ),
            (
                Status::invalid_argument("etcdserver: authentication failed, invalid user ID or password"),
                Kind::Refused,
                "etcd at http://a:1 cannot read /k: etcdserver: authentication failed, invalid user ID or password \
                 (hint: correct --etcd-username and --etcd-password)",
            ),
            (
                Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
                Kind::Refused,
                "etcd at http://a:1 cannot read /k: etcdserver: mvcc: database space exceeded \
                 (hint: compact and defragment etcd, then `etcdctl alarm disarm`)",
            ),
            (
                Status::unavailable("etcdserver: no leader"),
                Kind::Away,
                "etcd at http://a:1 cannot read /k: etcdserver: no leader \
                 (hint: most members of the etcd cluster have to run and to reach each other)",
            ),
            (
                Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
                Kind::Anew,
                "etcd at http://a:1 cannot read /k: etcdserver: mvcc: required revision has been compacted",
            ),
            (Status::new(Code::DataLoss, ""), Kind::Refused, "etcd at http://a:1 cannot read /k: DataLoss"),
            (
                Status::unauthenticated("etcdserver: invalid auth token"),
                Kind::Token,
                "etcd at http://a:1 cannot read /k: etcdserver: invalid auth token",
            ),
            (
                Status::resource_exhausted("grpc: received message larger than max"),
                Kind::TooLarge,
                "etcd at http://a:1 cannot read /k: grpc: received message larger than max",
            ),
        ] {
            let trouble = Trouble::of_status("read /k", &"http://a:1", &status);
            assert_eq!((trouble.kind, trouble.to_string().as_str()), (kind, text));
        }
    }
}
