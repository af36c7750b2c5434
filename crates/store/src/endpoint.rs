//! Where a server is: a URL, checked once.

use std::fmt;
use std::net::Ipv6Addr;

/// The port of etcd's clients (registered with IANA), for a URL without one.
const ETCD_PORT: u16 = 2379;

/// A server, by scheme, host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether it is spoken to in TLS.
    pub(crate) tls: bool,
    /// A name or an address; an IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// Why a text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an etcd endpoint like http://192.0.2.1:2379: {why}")]
pub struct EndpointError {
    /// The text; what may be a password in it is `(hidden)`.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Endpoint {
    /// Reads a list separated by commas. A server without a scheme is spoken to in TLS if `tls`, as etcd's own client does.
    pub fn parse_list(list: &str, tls: bool) -> Result<Vec<Self>, EndpointError> {
        list.split(',').map(|text| Self::parse(text.trim(), tls, ETCD_PORT)).collect()
    }

    /// Its name or address; an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Reads one, with what a text without scheme or port means.
    pub(crate) fn parse(text: &str, tls: bool, port: u16) -> Result<Self, EndpointError> {
        let default = port;
        let refuse = |why| EndpointError { text: without_user(text), why };
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(_) => return Err(refuse("the scheme is http or https")),
            None => (tls, text),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '@', '?', '#']) {
            return Err(refuse("only a host and a port may follow the scheme"));
        }
        let (host, port) = split(authority).ok_or_else(|| refuse("an IPv6 address is written in brackets"))?;
        let named = |host: &str| !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c.is_control());
        if !named(host) {
            return Err(refuse("the host is missing"));
        }
        let port = port.map_or(Ok(default), str::parse).map_err(|_| refuse("the port is not a number up to 65535"))?;
        Ok(Self { tls, host: host.to_owned(), port })
    }
}

/// A URL without the name and password that may be in it.
fn without_user(text: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + 3);
    text.rfind('@')
        .filter(|at| *at >= start)
        .map_or_else(|| text.to_owned(), |at| format!("{}(hidden){}", &text[..start], &text[at..]))
}

/// Splits `host:port`; none if a part of an unbracketed IPv6 address would be taken for the port.
fn split(authority: &str) -> Option<(&str, Option<&str>)> {
    if let Some((host, rest)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        host.parse::<Ipv6Addr>().ok()?;
        return if rest.is_empty() { Some((host, None)) } else { Some((host, Some(rest.strip_prefix(':')?))) };
    }
    match authority.split_once(':') {
        Some((_, port)) if port.contains(':') => None,
        Some((host, port)) => Some((host, Some(port))),
        None => Some((authority, None)),
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &str, tls: bool) -> String {
        match Endpoint::parse_list(list, tls) {
            Ok(endpoints) => endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn endpoints_are_read() {
        assert_eq!(read("http://a:1,https://b", false), "http://a:1 https://b:2379");
        assert_eq!(
            read("http://127.0.0.1:4001, http://127.0.0.1:2379/", false),
            "http://127.0.0.1:4001 http://127.0.0.1:2379"
        );
        assert_eq!((read("a:1", false), read("a:1", true)), ("http://a:1".into(), "https://a:1".into()));
        assert_eq!(read("https://[2001:db8::1]:7,[::1]", false), "https://[2001:db8::1]:7 http://[::1]:2379");
    }

    #[test]
    fn what_is_no_endpoint_is_said() {
        for (text, why) in [
            ("", "the host is missing"),
            ("http://", "the host is missing"),
            ("http://:2379", "the host is missing"),
            ("ftp://a", "the scheme is http or https"),
            ("http://a:x", "the port is not a number up to 65535"),
            ("http://a:70000", "the port is not a number up to 65535"),
            ("http://a/b", "only a host and a port may follow the scheme"),
            ("http://2001:db8::1", "an IPv6 address is written in brackets"),
            ("http://[a]:1", "an IPv6 address is written in brackets"),
        ] {
            assert_eq!(
                read(text, false),
                format!("`{text}` is not an etcd endpoint like http://192.0.2.1:2379: {why}")
            );
        }
        assert!(read("http://a,", false).starts_with("`` is not"));
        assert!(read("http://u:p@a", false).starts_with("`http://(hidden)@a` is not"));
    }
}
