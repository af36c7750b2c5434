//! How a node stands is told to its cluster, on a real API server: the condition `NetworkUnavailable`, Events, and what is said where we may not.

mod log;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use flannel_cluster::{ApiServer, Identity, Options as ServerOptions};
use flannel_core::annotations::Prefix;
use flannel_kernel::mount;
use flannel_kernel::process::rerun_enclosed;
use flannel_store::kube::{Access, KubeStore, NodeName, Options};
use flannel_store::{Problem, Standing, Store};
use serde_json::{Value, json};
use tracing_subscriber::filter::LevelFilter;

use self::log::Log;

const NODE: &str = "/api/v1/nodes/n1";
const EVENTS: &str = "/api/v1/namespaces/default/events";
/// The rights that clusters grant to flannel today, without and with the one to say how it stands.
const READ: [Right; 1] = [("nodes", &["get", "list", "watch"])];
const USUAL: [Right; 2] = [READ[0], ("nodes/status", &["patch"])];
const WITH_EVENTS: [Right; 3] = [READ[0], USUAL[1], ("events", &["create", "patch"])];

/// A resource, and what may be done with it.
type Right = (&'static str, &'static [&'static str]);

/// A cluster with one Node.
struct Cluster {
    api: ApiServer,
    log: Log,
}

impl Cluster {
    fn start() -> Self {
        mount::tmpfs(Path::new("/run")).unwrap();
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let log = Log::begin(LevelFilter::INFO);
        let api = ApiServer::start(ServerOptions::here(Path::new("/run/kubernetes"))).unwrap();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-flannel"}});
        api.request("POST", "/api/v1/namespaces", Some(&namespace)).unwrap();
        let cluster = Self { api, log };
        cluster.make_node();
        cluster
    }

    fn make_node(&self) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}});
        self.api.request("POST", "/api/v1/nodes", Some(&node)).unwrap();
    }

    /// A service account with these rights, and its kubeconfig.
    fn account(&self, name: &str, rights: &[Right]) -> PathBuf {
        let identity: Identity = self.api.account("kube-flannel", name).unwrap();
        self.api.grant("kube-flannel", name, rights).unwrap();
        self.api.kubeconfig(name, &identity).unwrap()
    }

    /// What the Node says: status, reason and message of the condition; empty if it has none.
    fn says(&self) -> String {
        let node = self.api.request("GET", NODE, None).unwrap();
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let Some(found) = conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable") else {
            return String::new();
        };
        ["status", "reason", "message"].map(|key| found[key].as_str().unwrap_or_default()).join(" ")
    }

    /// The lines of the log that name the condition.
    fn lines(&self) -> Vec<String> {
        self.log.text().lines().filter(|line| line.contains("NetworkUnavailable")).map(str::to_owned).collect()
    }

    /// Who wrote the condition, in all.
    fn patches(&self) -> usize {
        let audit = self.api.audit().unwrap();
        let by_flannel = |event: &&Value| {
            event["verb"] == "patch"
                && event["requestURI"].as_str().is_some_and(|uri| uri.contains("/nodes/n1/status"))
                && event["user"]["username"].as_str().is_some_and(|name| name.starts_with("system:serviceaccount:"))
        };
        audit.iter().filter(by_flannel).count()
    }

    fn events(&self) -> Vec<Value> {
        self.api.request("GET", EVENTS, None).unwrap()["items"].as_array().cloned().unwrap_or_default()
    }
}

/// The store of a daemon, which is at work until the runtime ends.
fn store(kubeconfig: PathBuf, sets_condition: bool) -> (KubeStore, impl Sized) {
    let access =
        Access { servers: Vec::new(), kubeconfig: Some(kubeconfig), in_cluster: None, account: "/none".into() };
    let config = "/run/net-conf.json".into();
    let store = KubeStore::new(Options {
        access,
        node: NodeName::Given("n1".into()),
        prefix: Prefix::default(),
        config,
        sets_condition,
    });
    let events = store.watch();
    (store, events)
}

fn ready() -> Standing {
    Standing { ready: true, ..Standing::default() }
}

fn dropped() -> Problem {
    let text = "packets of pods are dropped by table ip filter, chain FORWARD, policy drop (hint: let them pass by `iptables-nft -I FORWARD`)";
    Problem { reason: "PodTrafficDropped", text: text.into(), blocks_pods: true }
}

/// Waits until something is so. What is seen at the server may not be in its audit log yet, nor in our own.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never comes that {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

const UP: &str = "False FlannelIsUp Flannel is running on this node";

#[test]
fn the_condition_is_kept_true_to_how_the_node_stands() {
    if !rerun_enclosed("the_condition_is_kept_true_to_how_the_node_stands") {
        return;
    }
    let cluster = Cluster::start();
    let usual = cluster.account("flannel", &USUAL);
    let limited = cluster.account("limited", &READ);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime().block_on(kept(&cluster, usual.clone()));
    runtime().block_on(not_written_without_need(&cluster, usual));
    runtime().block_on(without_the_right(&cluster, limited));
}

async fn kept(cluster: &Cluster, kubeconfig: PathBuf) {
    let (store, _events) = store(kubeconfig, true);
    store.report(&Standing::default());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((&*cluster.says(), cluster.patches()), ("", 0), "nothing is said before we are ready");
    store.report(&ready());
    until("flannel is up", || cluster.says() == UP).await;
    until("it was written once", || cluster.patches() == 1).await;
    store.report(&Standing { problems: vec![dropped()], ..ready() });
    let blocked = format!("True PodTrafficDropped {}", dropped().text);
    until("pods are blocked", || cluster.says() == blocked).await;
    store.report(&ready());
    until("flannel is up again", || cluster.says() == UP).await;
    until("each was written once", || cluster.patches() == 3).await;
    let other = json!({"status": {"conditions": [{"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}]}});
    cluster.api.request("PATCH", &format!("{NODE}/status"), Some(&other)).unwrap();
    assert_ne!(cluster.says(), UP);
    until("what somebody else wrote is corrected", || cluster.says() == UP).await;
    cluster.api.request("DELETE", NODE, None).unwrap();
    cluster.make_node();
    until("a Node made anew says so too", || cluster.says() == UP).await;
    until("five were written and logged", || (cluster.patches(), cluster.lines().len()) == (5, 5)).await;
    let lines = cluster.lines();
    assert!(
        lines.iter().all(|line| line.contains("INFO") && line.contains("node n1: NetworkUnavailable=")),
        "{lines:?}"
    );
}

async fn not_written_without_need(cluster: &Cluster, kubeconfig: PathBuf) {
    let (before, lines) = (cluster.patches(), cluster.lines());
    for sets_condition in [true, false] {
        let (store, _events) = store(kubeconfig.clone(), sets_condition);
        store.report(&ready());
        tokio::time::sleep(Duration::from_secs(2)).await;
        if !sets_condition {
            store.report(&Standing { problems: vec![dropped()], ..ready() });
            tokio::time::sleep(Duration::from_secs(7)).await;
        }
        assert_eq!((&*cluster.says(), cluster.patches()), (UP, before), "{sets_condition}");
    }
    // Nobody may write Events here, which nobody is told of.
    assert_eq!((cluster.events(), cluster.lines()), (Vec::new(), lines));
}

async fn without_the_right(cluster: &Cluster, kubeconfig: PathBuf) {
    let before = cluster.lines().len();
    let (store, _events) = store(kubeconfig, true);
    let leftover = Problem { reason: "LeftoverRules", text: "old chains".into(), blocks_pods: false };
    store.report(&Standing { problems: vec![leftover], ..ready() });
    until("the refusal is logged", || cluster.lines().len() > before).await;
    // Time to be refused again.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(cluster.says(), UP);
    let lines = &cluster.lines()[before..];
    let rule = r#"the ClusterRole of flanneld's account (flannel) lacks the rule: - {apiGroups: [""], resources: ["nodes/status"], verbs: ["patch"]}"#;
    assert!(lines.len() == 1 && lines[0].contains("cannot keep the condition") && lines[0].contains(rule), "{lines:?}");
}

#[test]
fn problems_and_remarks_are_events_of_the_node() {
    if !rerun_enclosed("problems_and_remarks_are_events_of_the_node") {
        return;
    }
    let cluster = Cluster::start();
    let kubeconfig = cluster.account("flannel", &WITH_EVENTS);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime().block_on(told(&cluster, kubeconfig.clone(), 1));
    // After a restart it is the same Event, that came again.
    runtime().block_on(told(&cluster, kubeconfig, 2));
    let described = cluster.api.kubectl(&["describe", "node", "n1"], "").unwrap();
    let events = described.split("Events:").nth(1).unwrap();
    assert!(events.contains("PodTrafficDropped") && events.contains("PeerSkipped"), "{described}");
}

async fn told(cluster: &Cluster, kubeconfig: PathBuf, times: u64) {
    let (store, _events) = store(kubeconfig, true);
    let text = "lease n2 is skipped: podCIDR: 10.244.1.0/24 is ours";
    let remark = Problem { reason: "PeerSkipped", text: text.into(), blocks_pods: false };
    store.report(&Standing { ready: true, problems: vec![dropped()], remarks: vec![remark] });
    until("both are told", || {
        let events = cluster.events();
        events.len() == 2 && events.iter().all(|event| event["count"] == times)
    })
    .await;
    for event in cluster.events() {
        assert_eq!((&event["type"], &event["involvedObject"]["name"]), (&json!("Warning"), &json!("n1")));
        let expected = if event["reason"] == "PeerSkipped" { text.to_owned() } else { dropped().text };
        assert_eq!(event["message"], expected);
    }
}
