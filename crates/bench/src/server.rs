//! A real etcd server for the daemons that are measured, in a network namespace of its own: `etcd` of `PATH`, or what the variable
//! `ETCD` names.
//!
//! Surface: [`Server`] (what it keeps, what it was asked, its outages). The daemons reach it by a [`Switch`] at
//! [`ADDRESS`]; the bench itself speaks to its JSON gateway on its loopback, by one connection that stays open. That TLS
//! and users cost something is not measured.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flannel_kernel::namespace::{Namespaces, NetNamespace};
use flannel_kernel::process::spawn_in;
use serde_json::{Value, json};

use crate::http::Answer;
use crate::switch::{Outage, Switch};

/// Where the daemons find it.
pub const ADDRESS: &str = "http://192.0.2.254:2379";
const PORT: u16 = 2379;
const DATA: &str = "/run/etcd";
const LOG: &str = "/run/etcd.log";
/// The life of a record in seconds (compat §3).
const TTL: u32 = 86_400;
/// How long it may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Server {
    switch: Switch,
    child: Child,
    gateway: Option<BufReader<TcpStream>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone_already = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl Server {
    /// Starts one that holds nothing.
    pub fn start() -> Result<Self> {
        let switch = Switch::create(PORT)?;
        let mut server = Self { child: spawn(switch.net())?, switch, gateway: None };
        server.wait()?;
        Ok(server)
    }

    /// What the daemons reach it by.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// Waits until it answers.
    fn wait(&mut self) -> Result<()> {
        let begun = Instant::now();
        while let Err(error) = self.ask("/v3/kv/range", &json!({ "key": base64(b"health") })) {
            self.gateway = None;
            if begun.elapsed() > PATIENCE {
                let log = fs::read_to_string(LOG).unwrap_or_default();
                bail!("etcd does not answer: {error:#}: {}", log.lines().last().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Writes a key that never ends.
    pub fn put(&mut self, key: &str, value: &str) -> Result<()> {
        self.put_until(key, value, &Value::Null)
    }

    /// Asks for a lease that lives for a day.
    pub fn grant(&mut self) -> Result<Value> {
        Ok(self.ask("/v3/lease/grant", &json!({ "TTL": TTL }))?["ID"].take())
    }

    /// Writes a key that ends with a lease.
    pub fn put_until(&mut self, key: &str, value: &str, lease: &Value) -> Result<()> {
        let body = json!({ "key": base64(key.as_bytes()), "value": base64(value.as_bytes()), "lease": lease });
        self.ask("/v3/kv/put", &body).map(drop)
    }

    /// Deletes a key.
    pub fn delete(&mut self, key: &str) -> Result<()> {
        self.ask("/v3/kv/deleterange", &json!({ "key": base64(key.as_bytes()) })).map(drop)
    }

    fn ask(&mut self, path: &str, body: &Value) -> Result<Value> {
        let body = body.to_string();
        let request = format!("POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let gateway = match &mut self.gateway {
            Some(gateway) => gateway,
            none => none.insert(BufReader::new(connect(self.switch.net())?)),
        };
        gateway.get_mut().write_all(request.as_bytes())?;
        let answer = Answer::read(gateway)?;
        ensure!(answer.status == 200, "etcd refuses: {}", String::from_utf8_lossy(&answer.body));
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// The messages that it was sent so far, by gRPC method. Its own gateway's count too.
    pub fn requests(&self) -> Result<Requests> {
        let mut stream = connect(self.switch.net())?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: etcd\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let requests = Requests::read(&text);
        ensure!(!requests.0.is_empty(), "etcd tells of no messages received");
        Ok(requests)
    }

    /// Lets it be away for so long, killed if it refuses, does the work on it towards the end of that, and answers with the moment
    /// of its return.
    pub fn away(
        &mut self,
        outage: Outage,
        length: Duration,
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Instant> {
        let begun = Instant::now();
        self.switch.cut(outage)?;
        if outage == Outage::Refused {
            self.child.kill()?;
            self.child.wait()?;
            std::thread::sleep(length * 4 / 5);
            self.child = spawn(self.switch.net())?;
            self.gateway = None;
            self.wait()?;
        }
        work(self)?;
        std::thread::sleep(length.saturating_sub(begun.elapsed()));
        self.switch.mend()
    }
}

/// Messages by method.
#[derive(Debug, Clone, Default)]
pub struct Requests(BTreeMap<String, u64>);

impl Requests {
    /// Reads them from the server's metrics.
    fn read(text: &str) -> Self {
        let metric = |line: &str| {
            let (labels, count) = line.strip_prefix("grpc_server_msg_received_total{")?.split_once("} ")?;
            // Its service for health checks has methods of the same names.
            labels.contains("grpc_service=\"etcdserverpb.").then_some(())?;
            let (_, method) = labels.split_once("grpc_method=\"")?;
            Some((method.split_once('"')?.0.to_owned(), count.parse::<f64>().ok()? as u64))
        };
        Self(text.lines().filter_map(metric).collect())
    }

    /// How many of one method there were.
    pub fn of(&self, method: &str) -> u64 {
        self.0.get(method).copied().unwrap_or_default()
    }

    /// What was sent since an earlier look.
    pub fn since(&self, before: &Self) -> Self {
        Self(self.0.iter().map(|(method, count)| (method.clone(), count - before.of(method))).collect())
    }

    /// All but those of one method.
    pub fn all_but(&self, method: &str) -> u64 {
        self.0.iter().filter(|(other, _)| *other != method).map(|(_, count)| count).sum()
    }

    /// All of them.
    pub fn all(&self) -> u64 {
        self.0.values().sum()
    }
}

/// Starts a server on the data there is.
fn spawn(net: &NetNamespace) -> Result<Child> {
    let program = std::env::var_os("ETCD").unwrap_or_else(|| OsString::from("etcd"));
    let log = File::options().create(true).append(true).open(LOG)?;
    let mut command = Command::new(&program);
    command.arg(format!("--data-dir={DATA}")).arg(format!("--advertise-client-urls={ADDRESS}"));
    command.arg(format!("--listen-client-urls=http://0.0.0.0:{PORT}")).arg("--listen-peer-urls=http://127.0.0.1:2380");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let failed = || format!("{}: Debian has it in etcd-server", program.display());
    spawn_in(command, Namespaces::of(net, None)?).with_context(failed)
}

fn connect(net: &NetNamespace) -> Result<TcpStream> {
    let stream = net.run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Base 64 (RFC 4648, §4), by which the gateway takes bytes.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = (0..3).fold(0, |word, at| word << 8 | usize::from(*three.get(at).unwrap_or(&0)));
        for at in 0..4 {
            let letter = char::from(ALPHABET[word >> (18 - 6 * at) & 63]);
            text.push(if at <= three.len() { letter } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_the_gateway_takes_them() {
        let written = [&b""[..], b"f", b"fo", b"foo", b"foob", b"\xff\xfe\xfd"].map(base64);
        assert_eq!(written, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "//79"]);
    }

    #[test]
    fn messages_are_counted_by_method() {
        let text = "# TYPE grpc_server_msg_received_total counter\n\
            grpc_server_msg_received_total{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 5\n\
            grpc_server_msg_received_total{grpc_method=\"Watch\",grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"} 1\n\
            grpc_server_msg_received_total{grpc_method=\"Watch\",grpc_service=\"grpc.health.v1.Health\",grpc_type=\"server_stream\"} 0\n\
            grpc_server_started_total{grpc_method=\"Range\"} 9\n";
        let requests = Requests::read(text);
        assert_eq!((requests.of("Range"), requests.all(), requests.all_but("Range")), (5, 6, 1));
        assert_eq!(requests.since(&Requests::default()).all(), 6);
    }
}
