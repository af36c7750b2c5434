//! A cluster without nodes but those that a test makes, and what daemons and others do in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use flannel_cluster::{ApiServer, Identity, Options as ServerOptions};
use flannel_core::annotations::{Annotations, Prefix};
use flannel_kernel::mount;
use flannel_store::Store;
use flannel_store::kube::{Access, KubeStore, NodeName, Options, Server};
use serde_json::{Value, json};

use crate::laws::CONFIG;

/// The address by which daemons reach the server; others do by the first of the loopback.
pub(crate) const DOOR: &str = "127.0.0.2";
const PORT: u16 = 6443;

/// The role that clusters grant to flannel.
const RULES: [(&str, &[&str]); 3] =
    [("pods", &["get"]), ("nodes", &["get", "list", "watch"]), ("nodes/status", &["patch"])];

/// A runtime as the daemon has it, for the test alone.
pub(crate) fn in_runtime(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// Makes the namespaces of a test ready: call once, inside them. What is written below /run goes with them.
pub(crate) fn prepare() {
    mount::tmpfs(Path::new("/run")).unwrap();
    run("ip", &["link", "set", "lo", "up"]);
    fs::write("/run/net-conf.json", CONFIG).unwrap();
}

/// An API server, with flannel's role.
pub(crate) struct Stage {
    pub(crate) api: ApiServer,
}

impl Stage {
    /// Starts a server with further arguments, inside namespaces of the test's own.
    pub(crate) fn new(arguments: &[&str]) -> Self {
        prepare();
        let mut options = ServerOptions::here(Path::new("/run/api"));
        options.also_known_as.push(DOOR.parse().unwrap());
        options.arguments.extend(arguments.iter().map(ToString::to_string));
        let api = ApiServer::start(options).unwrap_or_else(|error| panic!("{error}"));
        let stage = Self { api };
        stage.request("POST", "/api/v1/namespaces", Some(&json!({ "metadata": { "name": "kube-flannel" } })));
        stage.grant(&RULES);
        stage
    }

    /// Makes flannel's role say this.
    pub(crate) fn grant(&self, rules: &[(&str, &[&str])]) {
        self.api.grant("kube-flannel", "flannel", rules).unwrap_or_else(|error| panic!("{error}"));
    }

    /// What clusters grant.
    pub(crate) fn grant_all(&self) {
        self.grant(&RULES);
    }

    /// A request by the admin, which has to succeed.
    pub(crate) fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.api.request(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// Makes a Node, if there is none of that name.
    pub(crate) fn make_node(&self, name: &str, cidrs: &[&str]) {
        let mut node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
        if let Some(first) = cidrs.first() {
            node["spec"] = json!({ "podCIDR": first, "podCIDRs": cidrs });
        }
        if self.api.request("GET", &path(name), None).is_err() {
            self.request("POST", "/api/v1/nodes", Some(&node));
        }
    }

    /// Gives a Node its subnets.
    pub(crate) fn give(&self, name: &str, cidrs: &[&str]) {
        self.request("PATCH", &path(name), Some(&json!({ "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs } })));
    }

    pub(crate) fn delete(&self, name: &str) {
        self.request("DELETE", &path(name), None);
    }

    /// Changes annotations of a Node; null takes one away.
    pub(crate) fn annotate(&self, name: &str, annotations: &Value) {
        self.request("PATCH", &path(name), Some(&json!({ "metadata": { "annotations": annotations } })));
    }

    /// Makes a Node a peer of the network of [`CONFIG`]: its last octets, as address and MAC.
    pub(crate) fn make_peer(&self, name: &str, octet: u8) {
        self.make_node(name, &[&format!("10.1.{octet}.0/24")]);
        self.annotate(name, &peer(octet));
    }

    /// Takes flannel's annotations away.
    pub(crate) fn strip(&self, name: &str) {
        let none: Value =
            self.annotations(name).unwrap_or_default().into_keys().map(|key| (key, Value::Null)).collect();
        self.annotate(name, &none);
    }

    /// Flannel's annotations of a Node.
    pub(crate) fn annotations(&self, name: &str) -> Option<Annotations> {
        let node = self.api.request("GET", &path(name), None).ok()?;
        let all: Annotations = serde_json::from_value(node["metadata"]["annotations"].clone()).unwrap_or_default();
        Some(all.into_iter().filter(|(key, _)| Prefix::default().begins(key)).collect())
    }

    /// The value of one of flannel's annotations.
    pub(crate) fn annotation(&self, node: &str, name: &str) -> Option<String> {
        self.annotations(node)?.remove(&format!("{}{name}", Prefix::default()))
    }

    /// The names of all Nodes.
    pub(crate) fn names(&self) -> Vec<String> {
        let list = self.request("GET", "/api/v1/nodes", None);
        let nodes = list["items"].as_array().unwrap().iter();
        nodes.map(|node| node["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The patches that a Node's status was sent, as they were.
    pub(crate) fn patches(&self, name: &str) -> Vec<Value> {
        let patches = |event: &Value| event["verb"] == "patch" && event["objectRef"]["name"] == name;
        let of_flannel = |event: &Value| event["objectRef"]["subresource"] == "status";
        let events = self.api.audit().unwrap().into_iter().filter(|event| patches(event) && of_flannel(event));
        events.map(|mut event| event["requestObject"].take()).collect()
    }

    /// A kubeconfig of flannel's account.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let account = self.api.account("kube-flannel", "flannel").unwrap();
        self.kubeconfig_of(&account)
    }

    pub(crate) fn kubeconfig_of(&self, identity: &Identity) -> PathBuf {
        self.api.kubeconfig("flannel", identity).unwrap()
    }

    /// How daemons reach the server.
    pub(crate) fn options(&self, node: &str) -> Options {
        options(&format!("https://{DOOR}:{PORT}"), Some(self.kubeconfig()), node)
    }

    /// The store of a Node's daemon.
    pub(crate) fn store(&self, node: &str) -> Box<dyn Store> {
        Box::new(KubeStore::new(self.options(node)))
    }
}

/// How the daemon of a Node reaches servers.
pub(crate) fn options(servers: &str, kubeconfig: Option<PathBuf>, node: &str) -> Options {
    Options {
        access: Access {
            servers: Server::parse_list(servers).unwrap(),
            kubeconfig,
            in_cluster: None,
            account: "/run/account".into(),
        },
        node: NodeName::Given(node.into()),
        prefix: Prefix::default(),
        config: "/run/net-conf.json".into(),
        sets_condition: false,
    }
}

fn path(name: &str) -> String {
    format!("/api/v1/nodes/{name}")
}

/// The annotations of a peer.
pub(crate) fn peer(octet: u8) -> Value {
    let name = |name: &str| format!("{}{name}", Prefix::default());
    json!({
        name("kube-subnet-manager"): "true",
        name("backend-type"): "vxlan",
        name("backend-data"): format!("{{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:{octet:02x}\"}}"),
        name("public-ip"): format!("192.0.2.{octet}"),
    })
}

/// One of flannel's annotations.
pub(crate) fn one(name: &str, value: &str) -> Value {
    json!({ format!("{}{name}", Prefix::default()): value })
}

/// Refuses all connections of daemons, also those there are.
pub(crate) fn cut() {
    bar("reject with tcp reset");
}

/// Loses all packets of daemons, in silence.
pub(crate) fn lose() {
    bar("drop");
}

fn bar(how: &str) {
    run("nft", &["add table inet cut; add chain inet cut in { type filter hook input priority 0; }"]);
    run("nft", &[&format!("add rule inet cut in ip daddr {DOOR} tcp dport {PORT} {how}")]);
}

/// Ends [`cut`] and [`lose`].
pub(crate) fn mend() {
    run("nft", &["delete table inet cut"]);
}

/// Runs a program, which has to succeed.
pub(crate) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
