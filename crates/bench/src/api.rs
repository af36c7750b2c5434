//! A real API server for the daemons that are measured, with the Nodes of a cluster that has nothing else.
//!
//! Surface: [`Api`] (its Nodes, the heartbeats of their kubelets, who asked it for them). The daemons reach it by a [`Switch`], as
//! the service account `flannel` with the rights that clusters grant; the bench itself speaks to it by [`Tunnel`]s.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flannel_cluster::{ApiServer, Certificate, Identity, Options, Place};
use serde_json::{Value, json};

use crate::ground::Peer;
use crate::node;
use crate::switch::{ADDRESS, Switch};
use crate::tunnel::Tunnel;

const PORT: u16 = 6443;
const FOLDER: &str = "/run/kubernetes";
const NODES: &str = "/api/v1/nodes";
const JSON: &str = "application/json";
/// Connections that heartbeats come by.
const KUBELETS: u32 = 8;
/// Only who asks for Nodes is of interest.
const AUDIT: &str = r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","omitStages":["RequestReceived"],"rules":[
{"level":"Metadata","verbs":["list","watch"],"resources":[{"group":"","resources":["nodes"]}]},{"level":"None"}]}"#;

/// A running API server; killed when dropped.
#[derive(Debug)]
pub struct Api {
    switch: Switch,
    server: ApiServer,
    admin: Certificate,
    tunnel: Tunnel,
    kubeconfig: PathBuf,
}

impl Api {
    /// Starts one that knows no Node, and lets flannel in.
    pub fn start() -> Result<Self> {
        let switch = Switch::create(PORT)?;
        let policy = Path::new("/run/audit-policy.json");
        fs::write(policy, AUDIT)?;
        let server = ApiServer::start(Options {
            place: Place::new(switch.net().try_clone()?, None),
            address: SocketAddr::new(ADDRESS.parse()?, PORT),
            also_known_as: vec![Ipv4Addr::LOCALHOST.into()],
            arguments: vec![format!("--audit-policy-file={}", policy.display())],
            ..Options::here(Path::new(FOLDER))
        })?;
        let Identity::Certificate(admin) = server.admin() else { anyhow::bail!("the admin has no certificate") };
        let tunnel = open(&switch, &server, &admin)?;
        let kubeconfig = let_in(&server)?;
        Ok(Self { switch, server, admin, tunnel, kubeconfig })
    }

    /// What the daemons reach it by.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// The credentials of flannel.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Makes a Node, and answers with its size as JSON.
    pub fn create(&mut self, node: &Value) -> Result<usize> {
        Ok(self.tunnel.ask("POST", NODES, JSON, &node.to_string())?.len())
    }

    /// Deletes a Node.
    pub fn delete(&mut self, name: &str) -> Result<()> {
        self.tunnel.ask("DELETE", &format!("{NODES}/{name}"), JSON, "").map(drop)
    }

    /// Deletes all Nodes.
    pub fn clear(&mut self) -> Result<()> {
        self.tunnel.ask("DELETE", NODES, JSON, "").map(drop)
    }

    /// Lets kubelets of the first so many peers tell that they live, at so many a second in all if the server keeps up; answers with
    /// how many did so in that time.
    pub fn beat(&self, peers: u32, rate: u32, length: Duration) -> Result<u32> {
        let tunnels: Vec<Tunnel> =
            (0..KUBELETS).map(|_| open(&self.switch, &self.server, &self.admin)).collect::<Result<_>>()?;
        let pause = Duration::from_secs(1) * KUBELETS / rate;
        let begun = Instant::now();
        let end = begun + length;
        thread::scope(|scope| {
            let workers = tunnels.into_iter().zip(0..);
            let workers = workers.map(|(mut tunnel, first): (Tunnel, u32)| {
                scope.spawn(move || {
                    let mut turn = 0;
                    while Instant::now() < end {
                        beat_once(&mut tunnel, peers, first + turn * KUBELETS)?;
                        turn += 1;
                        thread::sleep((begun + pause * turn).min(end).saturating_duration_since(Instant::now()));
                    }
                    anyhow::Ok(turn)
                })
            });
            let workers: Vec<_> = workers.collect();
            let count = |worker: thread::ScopedJoinHandle<'_, Result<u32>>| worker.join().ok().context("a panic")?;
            workers.into_iter().map(count).sum()
        })
    }

    /// When all Nodes, or all with the changes from then on, were asked for, in seconds; but for further pages of a list.
    pub fn lists(&self) -> Result<Vec<f64>> {
        let audit = self.server.audit()?;
        let mut times: Vec<f64> = audit.iter().filter(|event| is_list(event)).filter_map(time).collect();
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}

/// In an order without neighbours, each number a different peer before the first comes again.
fn beat_once(tunnel: &mut Tunnel, peers: u32, number: u32) -> Result<()> {
    const STRIDE: u64 = 7_919;
    let peer = Peer((u64::from(number) * STRIDE % u64::from(peers)) as u32);
    let path = format!("{NODES}/{}/status", peer.name());
    tunnel.ask("PATCH", &path, "application/strategic-merge-patch+json", &node::heartbeat(number)).map(drop)
}

fn open(switch: &Switch, server: &ApiServer, own: &Certificate) -> Result<Tunnel> {
    let host = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
    Tunnel::open(switch.net(), host, &server.authority(), own)
}

/// Makes flannel's service account with the rights that clusters grant today (compat §4), and its kubeconfig.
fn let_in(server: &ApiServer) -> Result<PathBuf> {
    let namespace = json!({ "metadata": { "name": "kube-flannel" } });
    server.request("POST", "/api/v1/namespaces", Some(&namespace))?;
    let rights: [(&str, &[&str]); 3] =
        [("pods", &["get"]), ("nodes", &["get", "list", "watch"]), ("nodes/status", &["patch"])];
    server.grant("kube-flannel", "flannel", &rights)?;
    Ok(server.kubeconfig("flannel", &server.account("kube-flannel", "flannel")?)?)
}

/// Whether an event of the audit log is a list of all Nodes, or a watch that begins with one.
fn is_list(event: &Value) -> bool {
    let is = |key: &str, value: &str| event[key] == value;
    let uri = event["requestURI"].as_str().unwrap_or_default();
    let of_all = !uri.contains("fieldSelector=") && !uri.contains("continue=");
    let listed = is("verb", "list") && is("stage", "ResponseComplete");
    let watched = is("verb", "watch") && is("stage", "ResponseStarted") && uri.contains("sendInitialEvents=true");
    of_all && (listed || watched)
}

/// When an event's request came, in seconds of the month: `2026-01-02T03:04:05.678901Z`.
fn time(event: &Value) -> Option<f64> {
    let (date, time) = event["requestReceivedTimestamp"].as_str()?.strip_suffix('Z')?.split_once('T')?;
    let day: f64 = date.rsplit('-').next()?.parse().ok()?;
    let seconds = time.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))?;
    Some(day * 86_400.0 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(verb: &str, stage: &str, query: &str) -> Value {
        json!({ "verb": verb, "stage": stage, "requestURI": format!("/api/v1/nodes{query}"),
            "requestReceivedTimestamp": "2026-01-02T03:04:05.500000Z" })
    }

    #[test]
    fn lists_are_told_from_other_requests() {
        for (verb, stage, query, is) in [
            ("list", "ResponseComplete", "?limit=500", true),
            ("list", "ResponseComplete", "?limit=500&continue=abc", false),
            ("list", "ResponseComplete", "?fieldSelector=metadata.name%3Dn1", false),
            ("watch", "ResponseStarted", "?watch=true&sendInitialEvents=true", true),
            ("watch", "ResponseComplete", "?watch=true&sendInitialEvents=true", false),
            ("watch", "ResponseStarted", "?watch=true&resourceVersion=7", false),
        ] {
            assert_eq!(is_list(&event(verb, stage, query)), is, "{verb} {query}");
        }
        assert_eq!(time(&event("list", "", "")), Some(2.0 * 86_400.0 + 3.0 * 3600.0 + 4.0 * 60.0 + 5.5));
    }
}
