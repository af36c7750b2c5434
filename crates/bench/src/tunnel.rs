//! HTTP to a server that wants TLS and a client certificate, which `openssl s_client` speaks: requests one after the other, on one
//! connection that stays open.
//!
//! Surface: [`Tunnel`].

use std::io::{BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use flannel_cluster::Certificate;
use flannel_kernel::namespace::{Namespaces, NetNamespace};
use flannel_kernel::process::spawn_in;

use crate::http::Answer;

/// A connection; it ends when this is dropped.
#[derive(Debug)]
pub struct Tunnel {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    host: SocketAddr,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _gone_already = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl Tunnel {
    /// Connects to a server, from a network namespace, as who a certificate says.
    pub fn open(net: &NetNamespace, host: SocketAddr, authority: &Path, own: &Certificate) -> Result<Self> {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-verify_return_error", "-connect", &host.to_string()]);
        command.arg("-CAfile").arg(authority).arg("-cert").arg(&own.certificate).arg("-key").arg(&own.key);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = spawn_in(command, Namespaces::of(net, None)?).context("openssl")?;
        let (requests, answers) = child.stdin.take().zip(child.stdout.take()).context("no pipes")?;
        Ok(Self { child, requests, answers: BufReader::new(answers), host })
    }

    /// Sends a request, with a body of a kind, and answers with what it was answered, if that is a success.
    pub fn ask(&mut self, method: &str, path: &str, kind: &str, body: &str) -> Result<Vec<u8>> {
        let (host, length) = (self.host, body.len());
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n");
        self.requests.write_all(format!("{head}\r\n{body}").as_bytes())?;
        let answer = Answer::read(&mut self.answers)?;
        let (status, said) = (answer.status, String::from_utf8_lossy(&answer.body));
        ensure!((200..300).contains(&status), "{method} {path} is answered by {status}: {said:.500}");
        Ok(answer.body)
    }
}
