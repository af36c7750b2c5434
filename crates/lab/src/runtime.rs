//! The container runtime's half of CNI: pods are network namespaces that the plugins of a conf list connect (CNI spec,
//! "CNI Operations").
//!
//! Surface: [`Runtime`] (one for each node) and [`Attachment`] (what DEL needs again). Plugins run on the node.

use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use flannel_core::addr::{Dual, Family};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::error::{Doing, LabError};
use crate::place::Place;

/// The version of the CNI protocol that the lab speaks.
const CNI_VERSION: &str = "1.0.0";

/// How plugins are called on a node.
#[derive(Debug, Clone)]
pub struct Runtime {
    node: Place,
    plugins: Vec<PathBuf>,
}

/// A pod's connection, as its plugins reported it.
#[derive(Debug, Clone)]
pub struct Attachment {
    container: String,
    netns: String,
    result: Value,
    /// The pod's addresses.
    pub addresses: Dual<IpAddr>,
}

/// The conf list that nodes would have in `/etc/cni/net.d`; what it keeps is on the node's own `/run`.
pub fn conf_list() -> Value {
    json!({
        "cniVersion": CNI_VERSION,
        "name": "cbr0",
        "plugins": [{
            "type": "flannel",
            "dataDir": "/run/cni/flannel",
            "ipam": { "dataDir": "/run/cni/networks" },
            "delegate": { "hairpinMode": true, "isDefaultGateway": true },
        }],
    })
}

impl Runtime {
    /// A runtime on a node that looks for plugins in these directories, in order.
    pub(crate) fn new(node: Place, plugins: Vec<PathBuf>) -> Self {
        Self { node, plugins }
    }

    /// Connects a pod, whose network namespace the node sees at `netns`.
    pub fn add(&self, pod: &str, netns: &str) -> Result<Attachment, LabError> {
        let mut attachment = Attachment {
            container: pod.to_owned(),
            netns: netns.to_owned(),
            result: Value::Null,
            addresses: Dual::default(),
        };
        self.call("ADD", &json!({ "type": "loopback" }), "lo", &attachment)?;
        for plugin in chain() {
            attachment.result = self.call("ADD", &plugin, "eth0", &attachment)?;
        }
        attachment.addresses = addresses(&attachment.result);
        Ok(attachment)
    }

    /// Disconnects a pod.
    pub fn del(&self, attachment: &Attachment) -> Result<(), LabError> {
        for plugin in chain().iter().rev() {
            self.call("DEL", plugin, "eth0", attachment)?;
        }
        Ok(())
    }

    fn call(&self, command: &'static str, plugin: &Value, device: &str, pod: &Attachment) -> Result<Value, LabError> {
        let kind = plugin["type"].as_str().unwrap_or_default();
        let failed = |why: String| LabError::Plugin {
            command,
            plugin: kind.to_owned(),
            pod: pod.container.clone(),
            why: format!("{why} (on {})", self.node.name()),
        };
        let found = self.plugins.iter().map(|directory| directory.join(kind)).find(|path| path.exists());
        let mut process = Command::new(found.ok_or_else(|| failed("no such plugin".into()))?);
        process.env("CNI_COMMAND", command).env("CNI_CONTAINERID", &pod.container).env("CNI_NETNS", &pod.netns);
        process.env("CNI_IFNAME", device).env("CNI_PATH", join(&self.plugins));
        let output = self.feed(process, &conf(plugin, &pod.result))?;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        if output.status.success() {
            return Ok(answer);
        }
        Err(failed(match answer["msg"].as_str() {
            Some(message) => format!("{message} {}", answer["details"].as_str().unwrap_or_default()).trim().to_owned(),
            None => format!("{} {}", output.status, String::from_utf8_lossy(&output.stderr).trim()),
        }))
    }

    fn feed(&self, mut process: Command, conf: &Value) -> Result<Output, LabError> {
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.node.spawn(process)?;
        if let Some(mut input) = child.stdin.take() {
            let _plugin_need_not_read = input.write_all(conf.to_string().as_bytes());
        }
        child.wait_with_output().doing(|| format!("wait for a CNI plugin on {}", self.node.name()))
    }
}

fn chain() -> Vec<Value> {
    conf_list()["plugins"].as_array().cloned().unwrap_or_default()
}

/// A plugin's own conf: its entry of the list with the list's name and version, and what the plugin before it returned.
fn conf(plugin: &Value, previous: &Value) -> Value {
    let mut conf = plugin.clone();
    conf["cniVersion"] = CNI_VERSION.into();
    conf["name"] = conf_list()["name"].clone();
    if !previous.is_null() {
        conf["prevResult"] = previous.clone();
    }
    conf
}

fn join(directories: &[PathBuf]) -> String {
    directories.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
}

fn addresses(result: &Value) -> Dual<IpAddr> {
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut addresses = Dual::default();
    for net in ips.iter().filter_map(|ip| ip["address"].as_str()?.parse::<IpNet>().ok()) {
        addresses.slot(Family::of_net(net)).get_or_insert(net.addr());
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_gets_the_lists_name_and_the_result_before_it() {
        let conf = conf(&json!({"type": "flannel"}), &json!({"ips": []}));
        let expected = json!({"type": "flannel", "name": "cbr0", "cniVersion": "1.0.0", "prevResult": {"ips": []}});
        assert_eq!(conf, expected);
    }

    #[test]
    fn the_pods_addresses_are_the_results_first_of_each_family() {
        let result =
            json!({"ips": [{"address": "10.244.1.2/24"}, {"address": "fd00::2/64"}, {"address": "10.244.1.3/24"}]});
        let found = addresses(&result);
        assert_eq!(found.v4.unwrap().to_string(), "10.244.1.2");
        assert_eq!(found.v6.unwrap().to_string(), "fd00::2");
    }
}
