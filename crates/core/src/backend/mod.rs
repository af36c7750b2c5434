//! The backends: how packets reach other nodes. One variant each, matched in full wherever backends differ.
//!
//! This module knows which backends there are; what is particular to one (options, and what it wants of the kernel) is
//! in the file of its name.

pub mod alloc;
pub mod host_gw;
pub mod vxlan;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::value::RawValue;

use crate::addr::{Dual, Family, LinkName, Mac, Mtu};
use crate::config::{ConfigError, Warning};
use crate::facts::Facts;
use crate::json::{Fields, Kind, shown};
use crate::lease::{Attributes, Lease};
use crate::node::{External, Node, NodeError};
use crate::plan::{Ground, Peer, PeerPlan, Skipped};
use crate::state::{Key, Route, Value};
pub use vxlan::VxlanOptions;

/// The backend of a network, with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Packets travel in VXLAN, made by the kernel.
    Vxlan(VxlanOptions),
    /// Packets are routed to the other host, which is on the same link.
    HostGw,
    /// A subnet and nothing else: whoever runs the host carries the packets to other nodes.
    Alloc,
}

/// Backends of other flannels that this one does not run (compat §6).
const ELSEWHERE: [&str; 6] = ["udp", "wireguard", "ipip", "ipsec", "extension", "tencent-vpc"];

const CHOICE: &str = r#"set "Backend": {"Type": "vxlan"} or {"Type": "host-gw"}"#;

impl Backend {
    /// The type as config and leases spell it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => vxlan::TYPE,
            Self::HostGw => host_gw::TYPE,
            Self::Alloc => alloc::TYPE,
        }
    }

    /// Whether packets reach other nodes by what this node knows of them. Without that nobody needs their leases.
    pub fn has_peers(&self) -> bool {
        match self {
            Self::Vxlan(_) | Self::HostGw => true,
            Self::Alloc => false,
        }
    }

    /// Reads the config's `Backend`; options that the backend does not have become warnings.
    pub(crate) fn read(
        backend: Option<&RawValue>,
        network: &Dual<IpNet>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, ConfigError> {
        let Some(backend) = backend else {
            return Err(ConfigError::Missing {
                key: "Backend".into(),
                why: "the default is udp, which is not supported".into(),
                hint: CHOICE.into(),
            });
        };
        let bad = |_| ConfigError::bad("Backend", shown(backend.get()), "is not an object", CHOICE);
        let mut options = Fields::read(backend.get()).map_err(bad)?;
        let backend = Self::of_type(&take_type(&mut options)?, &mut options, network)?;
        let unknown = |key| Warning::UnknownOption { backend: backend.type_name(), key };
        warnings.extend(options.left_over().map(unknown));
        Ok(backend)
    }

    fn of_type(name: &str, options: &mut Fields, network: &Dual<IpNet>) -> Result<Self, ConfigError> {
        match name.to_ascii_lowercase().as_str() {
            vxlan::TYPE => VxlanOptions::read(options, network).map(Self::Vxlan),
            host_gw::TYPE => {
                host_gw::read(options);
                Ok(Self::HostGw)
            }
            alloc::TYPE => Ok(Self::Alloc),
            other => {
                let why = if ELSEWHERE.contains(&other) { "is not supported" } else { "is no backend" };
                Err(ConfigError::bad("Backend.Type", format!("\"{}\"", shown(name)), why, CHOICE))
            }
        }
    }
}

/// What a backend decides about this node. The other half of a backend, reading its options, is above.
impl Backend {
    /// Checks that the backend can work over these interfaces and addresses.
    pub fn accepts(&self, external: &Dual<External>, public_ip: &Dual<IpAddr>) -> Result<(), NodeError> {
        match self {
            Self::Vxlan(_) | Self::Alloc => Ok(()),
            Self::HostGw => host_gw::accepts(external, public_ip),
        }
    }

    /// The MTU of pods' packets in each family.
    pub fn mtu(&self, external: &Dual<External>) -> Result<Dual<Mtu>, MtuTooSmall> {
        Dual::try_from_fn(|family| {
            let Some(external) = external.get(family) else { return Ok(None) };
            let mtu = match self {
                Self::Vxlan(options) => options.mtu(family, external),
                Self::HostGw | Self::Alloc => external.mtu,
            };
            let (link, outer) = (external.name, external.mtu);
            if mtu < Mtu::least(family) { Err(MtuTooSmall { link, outer, mtu, family }) } else { Ok(Some(mtu)) }
        })
    }

    /// Options that these interfaces cannot follow, a line each.
    pub fn warnings(&self, external: &Dual<External>) -> BTreeSet<String> {
        match self {
            Self::Vxlan(options) => external.values().filter_map(|external| options.beyond(external)).collect(),
            Self::HostGw | Self::Alloc => BTreeSet::new(),
        }
    }

    /// The MACs of our tunnel end points, where there are any.
    pub fn macs(&self, facts: &Facts, own: Option<&Lease>) -> Dual<Mac> {
        match self {
            Self::Vxlan(options) => options.macs(facts, own),
            Self::HostGw | Self::Alloc => Dual::default(),
        }
    }

    /// What we publish for our peers.
    pub fn attributes(&self, node: &Node) -> Attributes {
        match self {
            Self::Vxlan(options) => options.attributes(node),
            Self::HostGw => Attributes::HostGw,
            Self::Alloc => alloc::attributes(),
        }
    }

    /// Why a peer with these attributes cannot be reached by this backend, if so.
    pub fn speaks(&self, attributes: &Attributes) -> Option<Skipped> {
        let theirs = match (self, attributes) {
            (Self::Vxlan(_), Attributes::Vxlan(_)) | (Self::HostGw, Attributes::HostGw) => return None,
            (_, Attributes::Vxlan(_)) => vxlan::TYPE,
            (_, Attributes::HostGw) => host_gw::TYPE,
            (_, Attributes::Other(name)) => name,
        };
        Some(Skipped::refuse("BackendType", format!("`{theirs}` is not our backend, {}", self.type_name())))
    }

    /// The objects of this node itself.
    pub fn plan_node(&self, node: &Node) -> Vec<(Key, Value)> {
        match self {
            Self::Vxlan(options) => options.plan_node(node),
            Self::HostGw | Self::Alloc => Vec::new(),
        }
    }

    /// The objects of one family of a peer.
    pub fn plan_peer(&self, ground: &Ground, peer: &Peer, plan: &mut PeerPlan) {
        match self {
            Self::Vxlan(options) => options.plan_peer(ground, peer, plan),
            Self::HostGw => host_gw::plan_peer(ground, peer, plan),
            Self::Alloc => {}
        }
    }
}

/// The MTU left for pods is less than their family allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{link} has MTU {outer}, which leaves {mtu} for pods: less than {family} needs ({})", Mtu::least(*family))]
pub struct MtuTooSmall {
    /// The external interface.
    pub link: LinkName,
    /// Its MTU.
    pub outer: Mtu,
    /// What would be left.
    pub mtu: Mtu,
    /// The family.
    pub family: Family,
}

/// The route to a peer that is on the external interface's link.
fn gateway_route(peer: &Peer, dev: LinkName) -> (Key, Value) {
    let route = Route::Unicast { dev, gateway: Some(peer.public_ip), onlink: false };
    (Route::key(peer.subnet), Value::Route(route))
}

fn take_type(options: &mut Fields) -> Result<String, ConfigError> {
    const TYPE: Kind = Kind::new("the name of a backend", "\"vxlan\"");
    let name = options.take_as("Type", TYPE).map_err(ConfigError::within("Backend."))?;
    name.ok_or_else(|| ConfigError::Missing {
        key: "Backend.Type".into(),
        why: "it says how packets reach other nodes".into(),
        hint: CHOICE.into(),
    })
}
