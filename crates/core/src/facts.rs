//! What the kernel says of this host that is not ours to change: interfaces, their addresses, the underlay's routes.
//!
//! The kernel crate fills [`Facts`]; [`crate::node`] reads them. A fact that changes makes node, claim and plan anew.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::addr::{Dual, LinkName, Mac, Mtu};

/// The host as it was read last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Interfaces in the order of their indices. Flannel's own and pods' veths (ports of a bridge) are left out.
    pub links: Vec<LinkFact>,
    /// The MACs of flannel's own devices that are there: the one of an earlier run is kept where no lease names another.
    pub own_macs: BTreeMap<LinkName, Mac>,
    /// Unicast routes of table main, those through flannel's own devices left out.
    pub routes: Vec<RouteFact>,
    /// The source address that the kernel picks towards `--iface-can-reach`, when that was asked.
    pub reach: Option<IpAddr>,
    /// MACs drawn at start for devices that have none yet: random, locally administered.
    pub fresh_macs: Dual<Mac>,
    /// No program of iptables is in `PATH`, and the kernel has nf_tables.
    pub only_nftables: bool,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFact {
    /// Its kernel index.
    pub index: u32,
    /// Its name.
    pub name: LinkName,
    /// Its kind as `ip -d link` prints it (`vxlan`, `veth`); empty for hardware.
    pub kind: Box<str>,
    /// Its MTU.
    pub mtu: Mtu,
    /// Its MAC, if it has one of six bytes.
    pub mac: Option<Mac>,
    /// Administratively up.
    pub up: bool,
    /// Its addresses in the kernel's order.
    pub addresses: Vec<AddressFact>,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressFact {
    /// Address and prefix length (the local address of a point-to-point link).
    pub net: IpNet,
    /// Scope global (not link, not host).
    pub global: bool,
    /// No limited lifetime (`IFA_F_PERMANENT`).
    pub permanent: bool,
    /// An RFC 8981 temporary address.
    pub temporary: bool,
    /// Past its preferred lifetime (`IFA_F_DEPRECATED`).
    pub deprecated: bool,
}

/// A unicast route of table main.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteFact {
    /// Destination; the default route has length 0.
    pub destination: IpNet,
    /// Next hop; none means on-link.
    pub gateway: Option<IpAddr>,
    /// Device; of a multipath route the first.
    pub dev: LinkName,
    /// Lower is preferred.
    pub metric: u32,
}

impl Facts {
    /// The interface of a name.
    pub fn link(&self, name: LinkName) -> Option<&LinkFact> {
        self.links.iter().find(|link| link.name == name)
    }
}

/// The route the kernel would take to an address: the longest prefix, then the lowest metric.
pub fn lookup(routes: &[RouteFact], to: IpAddr) -> Option<&RouteFact> {
    routes
        .iter()
        .filter(|route| route.destination.contains(&to))
        .max_by_key(|route| (route.destination.prefix_len(), std::cmp::Reverse(route.metric)))
}
