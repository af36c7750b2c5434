//! Who connects pods: our plugins, the floor, other people's plugins.

use std::path::{Path, PathBuf};
use std::process::Command;

use flannel_core::rules::RuleMode;
use flannel_lab::runtime::conf_list;
use serde_json::{Value, json};

use super::stand::{MTU, NETWORK, Pod, SUBNET, Stand};
use crate::floor::{ORDER, Order};
use crate::report::OURS;

/// The column of the floor.
pub const FLOOR: &str = "floor";

/// What a runtime wants for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// An interface.
    Link,
    /// An interface, and the pod's ports published by rules of a kind.
    Ports(RuleMode),
}

/// One way of connecting pods.
#[derive(Debug, Clone)]
pub struct Contender {
    /// Its column.
    pub name: String,
    /// By which kinds of rules it publishes ports, when asked for them.
    pub publishes: Vec<RuleMode>,
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    /// A folder with `flannel`, which finds its delegates there.
    Flannel(PathBuf),
    /// A folder without: the runtime calls `bridge`, with the conf that flannel would have built.
    Bridge(PathBuf),
    /// The floor's program.
    Floor(PathBuf),
}

impl Contender {
    fn new(name: &str, way: Way) -> Self {
        Self { name: name.to_owned(), publishes: Vec::new(), way }
    }

    /// Our own plugins.
    pub fn ours(folder: &Path) -> Self {
        Self::new(OURS, Way::Flannel(folder.to_owned()))
    }

    /// The floor.
    pub fn floor(program: &Path) -> Self {
        Self::new(FLOOR, Way::Floor(program.to_owned()))
    }

    /// The plugins of a folder; none if it has not even `bridge` and `host-local`.
    pub fn of_folder(name: &str, folder: &Path) -> Option<Self> {
        let has = |plugin: &str| folder.join(plugin).is_file();
        let way = if has("flannel") { Way::Flannel } else { Way::Bridge };
        let whole = has("bridge") && has("host-local");
        whole.then(|| Self::new(name, way(folder.to_owned())))
    }

    /// Whether it lacks the plugin `flannel`, so that it is spared one call.
    pub fn is_without_flannel(&self) -> bool {
        matches!(self.way, Way::Bridge(_))
    }

    /// Whether it can do what a runtime wants.
    pub fn can(&self, wish: Wish) -> bool {
        match wish {
            Wish::Link => true,
            Wish::Ports(mode) => self.publishes.contains(&mode),
        }
    }

    /// Its plugin `portmap`, if it has one.
    pub fn portmap(&self) -> Option<PathBuf> {
        let (Way::Flannel(folder) | Way::Bridge(folder)) = &self.way else { return None };
        Some(folder.join("portmap")).filter(|program| program.is_file())
    }

    /// The call of a verb for a pod's interface, and what it is to read on standard input.
    pub fn call(&self, verb: &str, stand: &Stand, pod: &Pod) -> (Command, String) {
        let (program, conf) = match &self.way {
            Way::Flannel(folder) => (folder.join("flannel"), flannel_conf()),
            Way::Bridge(folder) => (folder.join("bridge"), bridge_conf()),
            Way::Floor(program) => (program.clone(), Value::Null),
        };
        let mut command = plugin(&program, verb, pod);
        if let Way::Floor(_) = self.way {
            command.env(ORDER, json!(order(stand, pod)).to_string());
        }
        (command, conf.to_string())
    }

    /// The same for a pod's ports, after the plugin that has returned `result`.
    pub fn publish(&self, verb: &str, mode: RuleMode, pod: &Pod, result: &Value) -> (Command, String) {
        let program = self.portmap().unwrap_or_else(|| "portmap".into());
        (plugin(&program, verb, pod), portmap_conf(mode, pod, result).to_string())
    }
}

fn plugin(program: &Path, verb: &str, pod: &Pod) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_COMMAND", verb);
    command.env("CNI_CONTAINERID", &pod.name).env("CNI_NETNS", &pod.path).env("CNI_IFNAME", "eth0");
    command.env("CNI_PATH", program.parent().unwrap_or(Path::new("/")));
    command
}

/// The entry of flannel in the lab's conf list, as the runtime passes it on.
fn flannel_conf() -> Value {
    let list = conf_list();
    let mut conf = list["plugins"][0].clone();
    conf["name"] = list["name"].clone();
    conf["cniVersion"] = list["cniVersion"].clone();
    conf
}

/// What flannel makes of [`flannel_conf`] on this node.
fn bridge_conf() -> Value {
    let list = conf_list();
    let mut conf = list["plugins"][0]["delegate"].clone();
    let more = json!({
        "name": list["name"],
        "cniVersion": list["cniVersion"],
        "type": "bridge",
        "ipMasq": false,
        "isGateway": true,
        "mtu": MTU,
        "ipam": {
            "type": "host-local",
            "dataDir": list["plugins"][0]["ipam"]["dataDir"],
            "ranges": [[{ "subnet": SUBNET }]],
            "routes": [{ "dst": NETWORK }],
        },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        conf[key] = value.clone();
    }
    conf
}

/// An entry of `portmap` behind it. Each kind of rules has claims of its own, so that a pod can have its ports by both.
fn portmap_conf(mode: RuleMode, pod: &Pod, result: &Value) -> Value {
    let list = conf_list();
    let backend = key(mode);
    let mapping = |port: &u16| json!({ "hostPort": port, "containerPort": 80, "protocol": "tcp" });
    let mappings: Vec<Value> = pod.ports.iter().map(mapping).collect();
    json!({
        "name": list["name"],
        "cniVersion": list["cniVersion"],
        "type": "portmap",
        "backend": backend,
        "dataDir": format!("/run/cni/portmap/{backend}"),
        "runtimeConfig": { "portMappings": mappings },
        "prevResult": result,
    })
}

/// A kind of rules as `backend` names it.
pub fn key(mode: RuleMode) -> &'static str {
    match mode {
        RuleMode::Nftables => "nftables",
        RuleMode::Iptables => "iptables",
    }
}

fn order(stand: &Stand, pod: &Pod) -> Order {
    Order {
        container: pod.name.clone(),
        netns: pod.path.clone(),
        bridge: stand.bridge,
        address: (pod.address, stand.subnet.prefix_len()),
        gateway: stand.gateway,
        network: (stand.network.addr(), stand.network.prefix_len()),
        mtu: MTU,
        conf: bridge_conf().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conf_for_bridge_has_what_flannel_adds() {
        let conf = bridge_conf();
        for (pointer, value) in [
            ("/type", json!("bridge")),
            ("/name", json!("cbr0")),
            ("/hairpinMode", json!(true)),
            ("/isDefaultGateway", json!(true)),
            ("/mtu", json!(1450)),
            ("/ipam/dataDir", json!("/run/cni/networks")),
            ("/ipam/ranges/0/0/subnet", json!("10.244.1.0/24")),
        ] {
            assert_eq!(conf.pointer(pointer), Some(&value), "{pointer}");
        }
    }
}
