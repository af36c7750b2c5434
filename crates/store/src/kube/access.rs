//! How the API is reached, and as whom: from a kubeconfig, or from inside the cluster.
//!
//! [`Access`] is what was asked for; [`Access::open`] reads all files anew, for each connection, and so follows certificates, keys
//! and tokens that are exchanged while we run. A token in a file is read for each request: those of pods change every hour.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use hyper::http::HeaderValue;

use super::exec::ExecError;
use super::kubeconfig::{self, KubeconfigError};
use crate::endpoint::{Endpoint, EndpointError};
use crate::tls::{Pem, Tls};

/// The ports of a server whose URL has none, with TLS and without.
const PORTS: (u16, u16) = (443, 80);
/// The longest token that is read, in bytes.
const LONGEST_TOKEN: usize = 64 * 1024;

/// An API server: where it is, and what the paths of its API begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub(super) endpoint: Endpoint,
    /// Empty, or like `/k8s/clusters/c-1` where one server stands before several clusters.
    pub(super) path: String,
}

impl Server {
    /// Reads a list of URLs separated by commas: servers of one cluster.
    pub fn parse_list(list: &str) -> Result<Vec<Self>, EndpointError> {
        list.split(',').map(|text| Self::parse(text.trim())).collect()
    }

    /// Reads a URL; without a scheme it is spoken to in TLS.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let start = text.find("://").map_or(0, |at| at + 3);
        let slash = text[start..].find('/').map_or(text.len(), |at| start + at);
        let (authority, path) = text.split_at(slash);
        let port = if text.starts_with("http://") { PORTS.1 } else { PORTS.0 };
        let endpoint = Endpoint::parse(authority, true, port)?;
        if path.contains(['?', '#', ' ']) {
            return Err(EndpointError { text: text.to_owned(), why: "only a path may follow host and port" });
        }
        Ok(Self { endpoint, path: path.trim_end_matches('/').to_owned() })
    }

    /// The server that pods are told of in `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    pub fn in_cluster(host: &str, port: &str) -> Result<Self, EndpointError> {
        if host.contains(':') {
            Self::parse(&format!("https://[{host}]:{port}"))
        } else {
            Self::parse(&format!("https://{host}:{port}"))
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.endpoint, self.path)
    }
}

/// How to reach the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Servers of one cluster, the first that can be reached is used; they replace the one that the kubeconfig or the pod's
    /// environment names.
    pub servers: Vec<Server>,
    /// A kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// The server that the pod's environment names.
    pub in_cluster: Option<Server>,
    /// The directory with `token` and `ca.crt` of a pod's service account.
    pub account: PathBuf,
}

impl Access {
    /// Where pods find their service account's files.
    pub const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

    /// Reads everything as it is now.
    pub(super) async fn open(&self) -> Result<Way, AccessError> {
        let way = match &self.kubeconfig {
            Some(path) => kubeconfig::open(path).await?,
            None => self.of_pod()?,
        };
        let servers = if self.servers.is_empty() { way.servers } else { self.servers.clone() };
        Ok(Way { servers, ..way })
    }

    /// As the pod's service account, where there is one; else as nobody.
    fn of_pod(&self) -> Result<Way, AccessError> {
        let (token, authority) = (self.account.join("token"), self.account.join("ca.crt"));
        let is_pod = token.exists();
        if !is_pod && self.servers.is_empty() {
            return Err(AccessError::NoAccount { token });
        }
        let authority = Some(Pem::File(authority)).filter(|_| is_pod);
        let servers: Vec<_> = self.in_cluster.iter().cloned().collect();
        if servers.is_empty() && self.servers.is_empty() {
            return Err(AccessError::NoServer);
        }
        let credential = if is_pod { Credential::File(token) } else { Credential::None };
        Ok(Way { servers, tls: Tls { authority, ..Tls::default() }, credential })
    }
}

/// What is known of the way to the API at one time.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) servers: Vec<Server>,
    pub(super) tls: Tls,
    pub(super) credential: Credential,
}

/// What tells the API who we are, beside a certificate.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credential {
    None,
    /// A token.
    Token(HeaderValue),
    /// A file with a token.
    File(PathBuf),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Token(_) => f.write_str("Token(hidden)"),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

impl Credential {
    /// A token as the header of a request; `of` names where it is from.
    pub(super) fn token(token: &str, of: &Path) -> Result<Self, AccessError> {
        header(token, of).map(Self::Token)
    }

    /// The header that tells it.
    pub(super) fn header(&self) -> Result<Option<HeaderValue>, AccessError> {
        match self {
            Self::None => Ok(None),
            Self::Token(header) => Ok(Some(header.clone())),
            Self::File(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| AccessError::Unreadable {
                    what: "token",
                    path: path.clone(),
                    source,
                })?;
                header(&text, path).map(Some)
            }
        }
    }
}

fn header(token: &str, of: &Path) -> Result<HeaderValue, AccessError> {
    let token = token.trim();
    let usable = !token.is_empty() && token.len() <= LONGEST_TOKEN;
    let header = HeaderValue::try_from(format!("Bearer {token}")).ok().filter(|_| usable);
    let mut header = header.ok_or_else(|| AccessError::NoToken { path: of.to_owned() })?;
    header.set_sensitive(true);
    Ok(header)
}

/// Why it is not known how to reach the API.
#[derive(Debug, thiserror::Error)]
pub(super) enum AccessError {
    #[error("no service account: {} does not exist", token.display())]
    NoAccount { token: PathBuf },
    #[error("it is not known where the Kubernetes API is: KUBERNETES_SERVICE_HOST is not set")]
    NoServer,
    #[error("cannot read {what} {}: {source}", path.display())]
    Unreadable { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} holds no token", path.display())]
    NoToken { path: PathBuf },
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    #[error(transparent)]
    Exec(#[from] ExecError),
}

impl AccessError {
    /// What a person can do about it.
    pub(super) fn hint(&self) -> &'static str {
        match self {
            Self::NoAccount { .. } | Self::NoServer => {
                "run flanneld in a pod with a service account, or give --kubeconfig-file or --kube-api-url"
            }
            Self::Unreadable { .. } => "give a file that flanneld may read",
            Self::NoToken { .. } => "see that it holds one token, on one line",
            Self::Kubeconfig(_) => {
                "correct the file that --kubeconfig-file names; `kubectl config view` shows how one looks"
            }
            Self::Exec(_) => {
                "correct the command in the kubeconfig's users[].user.exec, which has to print an ExecCredential"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read() {
        let read = |list: &str| match Server::parse_list(list) {
            Ok(servers) => servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(error) => error.why.to_owned(),
        };
        assert_eq!(read("https://10.0.0.1:6443, 10.0.0.2:6443"), "https://10.0.0.1:6443 https://10.0.0.2:6443");
        assert_eq!(read("https://rancher/k8s/clusters/c-1/"), "https://rancher:443/k8s/clusters/c-1");
        assert_eq!(read("http://a"), "http://a:80");
        assert_eq!(read("https://[2001:db8::1]:6443"), "https://[2001:db8::1]:6443");
        assert_eq!(read("https://"), "the host is missing");
        assert_eq!(read("https://a,"), "the host is missing");
        assert_eq!(read("https://a/b?c"), "only a path may follow host and port");
        assert_eq!(Server::in_cluster("fd00::1", "443").unwrap().to_string(), "https://[fd00::1]:443");
        assert_eq!(Server::in_cluster("10.96.0.1", "443").unwrap().to_string(), "https://10.96.0.1:443");
    }

    #[test]
    fn a_token_is_never_shown() {
        let credential = Credential::token("secret\n", Path::new("/t")).unwrap();
        assert_eq!(credential.header().unwrap().unwrap().to_str().unwrap(), "Bearer secret");
        assert_eq!(format!("{credential:?} {:?}", credential.header().unwrap()), "Token(hidden) Some(Sensitive)");
        assert_eq!(Credential::token(" \n", Path::new("/t")).unwrap_err().to_string(), "/t holds no token");
        assert_eq!(Credential::token("a\nb", Path::new("/t")).unwrap_err().to_string(), "/t holds no token");
    }
}
