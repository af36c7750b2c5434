//! The Kubernetes store on a real API server, each test with one of its own.

mod alone;
mod faults;
mod holding;
mod outages;
mod rights;
mod scripted;
mod stage;
mod telling;

#[path = "../../src/laws.rs"]
mod laws;

use flannel_core::annotations::{Annotations, Prefix};
use flannel_kernel::process::rerun_enclosed;
use flannel_store::{Held, HoldError, Store, StoreEvent};
use serde_json::{Value, json};

use self::laws::Bench;
use self::stage::{Stage, in_runtime};

/// The Nodes of a cluster as records: what a record says is in the annotations, and its key names the pod CIDR.
struct Records<'a>(&'a Stage);

impl<'a> Records<'a> {
    fn new(stage: &'a Stage) -> Self {
        stage.request("DELETE", "/api/v1/nodes", None);
        Self(stage)
    }
}

/// The annotations that say what the text of a record does; what is no record becomes data of the backend.
fn annotations(text: &str) -> Value {
    let record: Value = serde_json::from_str(text).unwrap_or_default();
    let name = |name: &str| format!("{}{name}", Prefix::default());
    let word = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
    let data = if record["BackendData"].is_null() { text.to_owned() } else { record["BackendData"].to_string() };
    json!({
        name("kube-subnet-manager"): "true",
        name("backend-type"): if record.is_object() { word("BackendType") } else { "vxlan".into() },
        name("backend-data"): data,
        name("public-ip"): word("PublicIP"),
    })
}

impl Bench for Records<'_> {
    fn open(&self, host: u8) -> Box<dyn Store> {
        let name = format!("node-{host}");
        self.0.make_node(&name, &[&format!("10.1.{}.0/24", 100 + host)]);
        self.0.store(&name)
    }

    async fn put(&self, key: &str, text: &str) {
        let cidr = key.rsplit_once('-').map(|(address, length)| format!("{address}/{length}"));
        let cidr = cidr.filter(|cidr| cidr.parse::<ipnet::IpNet>().is_ok());
        self.0.make_node(key, &cidr.iter().map(String::as_str).collect::<Vec<_>>());
        self.0.annotate(key, &annotations(text));
    }

    async fn remove(&self, key: &str) {
        if key.starts_with("node-") {
            self.0.strip(key);
        } else {
            self.0.delete(key);
        }
    }

    async fn record(&self, key: &str) -> Option<String> {
        let annotations: Annotations = self.0.annotations(key)?;
        let value = |name: &str| annotations.get(&format!("{}{name}", Prefix::default()));
        let (kind, data, ip) = (value("backend-type")?, value("backend-data")?, value("public-ip")?);
        let data: Value = serde_json::from_str(data).unwrap_or_default();
        Some(json!({ "PublicIP": ip, "BackendType": kind, "BackendData": data }).to_string())
    }

    async fn wipe(&self) {
        for name in self.0.names() {
            self.remove(&name).await;
        }
    }

    async fn cut(&self) {
        stage::cut();
    }

    async fn mend(&self) {
        stage::mend();
    }
}

#[test]
fn it_keeps_the_laws_of_stores() {
    if !rerun_enclosed("it_keeps_the_laws_of_stores") {
        return;
    }
    let stage = Stage::new(&[]);
    in_runtime(laws::check_any(|| Records::new(&stage)));
}
