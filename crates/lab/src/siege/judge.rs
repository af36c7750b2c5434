//! Whether a network is as etcd says: each node's kernel state is what planning gives for etcd's content, every node has the
//! one record that is its own, and no subnet is held twice.
//!
//! Surface: [`Judge`]. It plans from what etcd and the kernel hold now, and knows nothing of the daemons but their subnet files.

use std::collections::BTreeMap;
use std::net::IpAddr;

use flannel_core::addr::Dual;
use flannel_core::config::{ConfigRules, NetworkConfig};
use flannel_core::diff::diff;
use flannel_core::lease::{Lease, LeaseEvent, LeaseKey, Record, Since};
use flannel_core::lease_set::LeaseSet;
use flannel_core::node::{Masquerade, Options, RuleSwitches, node};
use flannel_core::plan::{Ground, Plan};
use flannel_core::record;
use flannel_kernel::executor::Executor;
use flannel_kernel::facts;
use ipnet::IpNet;

use crate::error::LabError;
use crate::etcd::PREFIX;
use crate::lab::{Lab, Node};

/// What is known of a network whose pods stay.
#[derive(Debug)]
pub(super) struct Judge {
    /// The subnets that each node had in the beginning.
    stay: Vec<Dual<IpNet>>,
}

impl Judge {
    /// On how many nodes, the first ones, pods stay.
    pub(super) fn staying(&self) -> usize {
        self.stay.len()
    }

    /// Takes down the subnets of the first nodes, whose pods stay.
    pub(super) fn new(lab: &Lab, staying: usize) -> Self {
        Self { stay: lab.nodes()[..staying].iter().map(Node::subnets).collect() }
    }

    /// What is wrong whatever etcd is doing: a node whose pods stay has another subnet, or two nodes have one.
    pub(super) fn wrong_at_any_time(&self, lab: &Lab) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut holders: BTreeMap<IpNet, &str> = BTreeMap::new();
        for (at, node) in lab.nodes().iter().enumerate() {
            let (name, subnets) = (node.place().name(), node.subnets());
            if let Some(before) = self.stay.get(at).filter(|before| **before != subnets) {
                wrong.push(format!("{name} has {subnets:?}, and had {before:?}"));
            }
            for subnet in subnets.values() {
                if let Some(other) = holders.insert(*subnet, name) {
                    wrong.push(format!("{name} and {other} both hold {subnet}"));
                }
            }
        }
        wrong
    }

    /// What is wrong when etcd has answered and everybody had time to listen.
    pub(super) fn wrong_now(&self, lab: &Lab) -> Result<Vec<String>, LabError> {
        let (config, records) = read(lab)?;
        let mut leases = LeaseSet::default();
        leases.apply(LeaseEvent::Snapshot(records));
        let mut wrong = self.wrong_at_any_time(lab);
        for at in 0..lab.nodes().len() {
            let address = lab.node(at).external_addresses()?;
            let own: Vec<_> = owned(&leases, &address).collect();
            let name = lab.node(at).place().name();
            match own.as_slice() {
                [(key, lease)] if lease.subnet == lab.node(at).subnets() => {
                    wrong.extend(differences(lab, at, &config, &leases, (*key, *lease))?);
                }
                records => wrong.push(format!("{name} has {:?}, and in etcd {records:?}", lab.node(at).subnets())),
            }
        }
        Ok(wrong)
    }
}

/// The records that name a host's address.
fn owned<'a>(
    leases: &'a LeaseSet,
    address: &'a Dual<IpAddr>,
) -> impl Iterator<Item = (&'a LeaseKey, &'a Lease)> + use<'a> {
    let records = leases.iter().filter_map(|(key, lease)| Some((key, &**lease.as_ref().ok()?)));
    records.filter(|(_, lease)| lease.public_ip.iter().any(|(family, ip)| address.get(family) == Some(ip)))
}

/// The config and the records in etcd. Nothing in the lab depends on which record is older.
fn read(lab: &Lab) -> Result<(NetworkConfig, Vec<Record>), LabError> {
    let content = lab.etcd().ok_or(LabError::Control("the lab has no etcd"))?.content()?;
    let (mut config, mut records) = (None, Vec::new());
    for (key, value) in &content {
        match key.strip_prefix(PREFIX).unwrap_or_default() {
            "/config" => config = NetworkConfig::parse(value, ConfigRules::Etcd).ok(),
            other => records.extend(
                other
                    .strip_prefix("/subnets/")
                    .map(|name| record::read(LeaseKey::new(name), value.as_bytes(), Since::default())),
            ),
        }
    }
    let (config, _warnings) = config.ok_or(LabError::Control("etcd has lost the network config"))?;
    Ok((config, records))
}

/// What would have to change on a node so that it held what is planned.
fn differences(
    lab: &Lab,
    at: usize,
    config: &NetworkConfig,
    leases: &LeaseSet,
    (key, lease): (&LeaseKey, &Lease),
) -> Result<Vec<String>, LabError> {
    let masquerade = Some(Masquerade { fully_random: true });
    let options =
        Options { rules: RuleSwitches { masquerade, forward: true, ..RuleSwitches::default() }, ..Options::default() };
    lab.with_kernel(at, |kernel, scope| {
        let name = lab.node(at).place().name();
        let failed = |action: &str, cause: String| LabError::Kernel { action: format!("{action} on {name}"), cause };
        let facts = facts::read(kernel.socket(), scope, None, Dual::default());
        let facts = facts.map_err(|error| failed("read the facts", error.to_string()))?;
        let node = node(&options, config, &facts, Some(lease));
        let node = node.map_err(|error| failed("plan", error.to_string()))?;
        let want = Plan::whole(&Ground { config, node: &node, leases, own: Some(key) }).want;
        let have = kernel.observe(scope).map_err(|error| failed("observe flannel's state", error.to_string()))?;
        let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
        Ok(diff(&want, &have).iter().map(|op| first_line(format!("{name} should {}", op.change))).collect())
    })
}
