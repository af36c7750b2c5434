//! What a lab is to be like: sizes, families, backend, and which build runs in it.
//!
//! Surface: [`LabOptions`] with [`LabOptions::network_config`] and [`LabOptions::check`]. Options cross into the enclosure as
//! JSON, so files of the user are read before, outside.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use flannel_core::addr::Family;
use flannel_core::rules::RuleMode;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::build::Build;
use crate::error::LabError;
use crate::etcd::StoreChoice;
use crate::layout::underlay;

/// The pod network of every lab, IPv4.
pub const POD_NETWORK: &str = "10.244.0.0/16";
/// The pod network of every lab, IPv6 (a unique local prefix, RFC 4193).
pub const POD_NETWORK_IPV6: &str = "fd00:10:244::/56";

/// Both pod networks.
pub(crate) fn pod_networks() -> Vec<IpNet> {
    [POD_NETWORK, POD_NETWORK_IPV6].iter().filter_map(|net| net.parse().ok()).collect()
}

/// Options of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabOptions {
    /// Number of nodes, 1 to 100.
    pub nodes: usize,
    /// Number of pods on each node, 0 to 100.
    pub pods: usize,
    /// Number of underlay segments, 1 or 2; with two, nodes are on one and the other by turns, a router between them.
    pub segments: usize,
    /// `Backend.Type`.
    pub backend: String,
    /// Further backend options, as in the network config.
    pub backend_options: Map<String, Value>,
    /// The families of underlay and pods: IPv4, IPv6 or both.
    pub families: Vec<FamilyName>,
    /// nf_tables rules (iptables if not).
    pub nftables: bool,
    /// The whole network config, instead of the one made from these options.
    pub config: Option<String>,
    /// Where the nodes keep their leases.
    pub store: StoreChoice,
    /// The `flanneld` to run instead of this executable.
    pub flanneld: Option<PathBuf>,
    /// A directory of CNI plugins to be looked up before this executable's.
    pub cni: Option<PathBuf>,
    /// Further arguments for every `flanneld`.
    pub flanneld_arguments: Vec<String>,
    /// The builds of single nodes, by name.
    pub builds: BTreeMap<String, Build>,
    /// Command lines (words, no shell) run on every node before its `flanneld` is started for the first time.
    pub prepare: Vec<String>,
}

/// A family as options spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FamilyName {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl From<FamilyName> for Family {
    fn from(name: FamilyName) -> Self {
        match name {
            FamilyName::Ipv4 => Self::V4,
            FamilyName::Ipv6 => Self::V6,
        }
    }
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            nodes: 3,
            pods: 2,
            segments: 1,
            backend: "vxlan".into(),
            backend_options: Map::new(),
            families: vec![FamilyName::Ipv4],
            nftables: true,
            config: None,
            store: StoreChoice::Local,
            flanneld: None,
            cni: None,
            flanneld_arguments: Vec::new(),
            builds: BTreeMap::new(),
            prepare: Vec::new(),
        }
    }
}

impl LabOptions {
    /// Refuses what cannot be laid out or cannot work.
    pub fn check(&self) -> Result<(), LabError> {
        let refuse = |why: String| Err(LabError::Options(why));
        if !(1..=100).contains(&self.nodes) {
            return refuse(format!("--nodes {}: a lab has 1 to 100 nodes", self.nodes));
        }
        if self.pods > 100 {
            return refuse(format!("--pods {}: a node has at most 100 pods here", self.pods));
        }
        if !(1..=2).contains(&self.segments) {
            return refuse(format!("--segments {}: the underlay has 1 or 2 segments", self.segments));
        }
        if self.backend == "host-gw" && self.segments > 1 {
            return refuse("--segments 2: host-gw needs all nodes on one segment (that is its one limit)".into());
        }
        let is_node = |name: &&String| (1..=self.nodes).any(|number| **name == format!("node{number}"));
        if let Some(there) = self.store.elsewhere() {
            there.check(self)?;
        }
        if let Some(name) = self.builds.keys().find(|name| !is_node(name)) {
            return refuse(format!("--node {name}: the lab has the nodes 1 to {}", self.nodes));
        }
        Ok(())
    }

    /// The build that nodes run where nothing else is said of them.
    pub fn default_build(&self) -> Build {
        Build { flanneld: self.flanneld.clone(), cni: self.cni.clone(), arguments: Vec::new() }
    }

    /// The build of a node in the beginning.
    pub fn build_of(&self, node: &str) -> Build {
        self.builds.get(node).cloned().unwrap_or_default().or(&self.default_build())
    }

    /// Whether the router carries packets between pods of different nodes, as a cloud's route table does: flannel does not.
    pub(crate) fn router_carries_pods(&self) -> bool {
        self.backend == "alloc"
    }

    /// The addresses that the lab has itself.
    pub(crate) fn own_prefixes(&self) -> Vec<IpNet> {
        let pods = if self.config.is_none() { pod_networks() } else { Vec::new() };
        pods.into_iter().chain(underlay()).collect()
    }

    /// Whether the lab speaks the family.
    pub fn speaks(&self, family: Family) -> bool {
        self.families.iter().any(|name| Family::from(*name) == family)
    }

    /// The rule system of the nodes.
    pub fn rule_mode(&self) -> RuleMode {
        if self.nftables { RuleMode::Nftables } else { RuleMode::Iptables }
    }

    /// The text of the network config (`net-conf.json`) that all nodes share.
    pub fn network_config(&self) -> String {
        if let Some(config) = &self.config {
            return config.clone();
        }
        let mut backend = self.backend_options.clone();
        backend.insert("Type".into(), self.backend.clone().into());
        let mut config = json!({ "EnableNFTables": self.nftables, "Backend": backend });
        if self.speaks(Family::V4) {
            config["Network"] = POD_NETWORK.into();
        } else {
            config["EnableIPv4"] = false.into();
        }
        if self.speaks(Family::V6) {
            config["EnableIPv6"] = true.into();
            config["IPv6Network"] = POD_NETWORK_IPV6.into();
        }
        config.to_string()
    }
}

impl fmt::Display for LabOptions {
    /// The lab in one sentence.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let families: Vec<String> = self.families.iter().map(|name| Family::from(*name).to_string()).collect();
        let rules = if self.nftables { "nf_tables" } else { "iptables" };
        write!(f, "{} nodes with {} pods each in private namespaces of this machine: ", self.nodes, self.pods)?;
        match self.config {
            Some(_) => write!(f, "network config of yours, {}", families.join(" and ")),
            None => write!(f, "{}, {}, rules in {rules}", self.backend, families.join(" and ")),
        }?;
        match self.store.elsewhere() {
            Some(there) => write!(f, ", leases in etcd at {} below {}", there.endpoints, there.prefix),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_config_says_what_the_options_say() {
        assert_eq!(
            LabOptions::default().network_config(),
            r#"{"Backend":{"Type":"vxlan"},"EnableNFTables":true,"Network":"10.244.0.0/16"}"#
        );
        let ipv6 = LabOptions { families: vec![FamilyName::Ipv6], nftables: false, ..LabOptions::default() };
        assert_eq!(
            ipv6.network_config(),
            r#"{"Backend":{"Type":"vxlan"},"EnableIPv4":false,"EnableIPv6":true,"EnableNFTables":false,"IPv6Network":"fd00:10:244::/56"}"#
        );
    }

    #[test]
    fn what_cannot_work_is_refused_in_words() {
        let refused = |options: LabOptions| options.check().unwrap_err().to_string();
        assert_eq!(refused(LabOptions { nodes: 0, ..LabOptions::default() }), "--nodes 0: a lab has 1 to 100 nodes");
        assert_eq!(
            refused(LabOptions { backend: "host-gw".into(), segments: 2, ..LabOptions::default() }),
            "--segments 2: host-gw needs all nodes on one segment (that is its one limit)"
        );
        let builds = [("node4".to_owned(), Build::default())].into();
        assert_eq!(
            refused(LabOptions { builds, ..LabOptions::default() }),
            "--node node4: the lab has the nodes 1 to 3"
        );
    }
}
