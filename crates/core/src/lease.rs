//! Leases: who holds which subnet, how it is reached, and the events by which a store tells of them.

use std::borrow::Borrow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::addr::{Dual, Mac, Vni};
use crate::backend::{host_gw, vxlan};
use crate::json::cut;

/// The most of a key that a message repeats, in characters: the subnets of both families have 62 at most.
const LONGEST_KEY: usize = 80;

/// The name of a record in its store: the etcd key's last part (`10.5.52.0-24`), the file's stem, or the Node's name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKey(Arc<str>);

impl LeaseKey {
    /// A key of this name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for LeaseKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// For people: short and on one line, whatever others called it. The name itself is [`LeaseKey::as_str`].
impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&cut(&self.0, LONGEST_KEY))
    }
}

/// Since when a lease is held: a total order that the store gives. Of two leases that conflict the earlier one wins.
///
/// etcd: create revision. Kubernetes: creationTimestamp in seconds, then half of the uid. Local: the record's sequence. What is still
/// the same is ordered by key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Since {
    /// Revision, seconds or sequence.
    pub at: u64,
    /// Breaks a tie.
    pub tie: u64,
}

/// A subnet held by a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The subnet of each family; at least one.
    pub subnet: Dual<IpNet>,
    /// The address other nodes reach it by, for each family.
    pub public_ip: Dual<IpAddr>,
    /// What its backend published.
    pub attributes: Attributes,
    /// Its place in the order of leases.
    pub since: Since,
    /// What could not be used of the record although the rest could: each names field and reason.
    pub flaws: Vec<Flaw>,
}

/// What a backend publishes for its peers: `BackendType`, `BackendData` and `BackendV6Data` (compat §3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attributes {
    /// `vxlan`.
    Vxlan(Dual<Vtep>),
    /// `host-gw`.
    HostGw,
    /// Any other `BackendType`, of which no more is read: empty for alloc, and of other flannels udp and tencent-vpc.
    Other(Box<str>),
}

impl Attributes {
    /// The `BackendType` that a record says.
    pub fn backend_type(&self) -> &str {
        match self {
            Self::Vxlan(_) => vxlan::TYPE,
            Self::HostGw => host_gw::TYPE,
            Self::Other(name) => name,
        }
    }

    /// The VTEPs published; none by backends other than vxlan.
    pub fn vteps(&self) -> Dual<Vtep> {
        match self {
            Self::Vxlan(vteps) => *vteps,
            Self::HostGw | Self::Other(_) => Dual::default(),
        }
    }

    /// These attributes with the MACs that our own lease already tells peers: where device and own lease disagree, the
    /// lease wins, so that no peer needs an update.
    #[must_use]
    pub fn keeping_macs(&self, own: &Self) -> Self {
        let published = own.vteps();
        let keep = |family, vtep: &Vtep| Vtep { mac: published.get(family).map_or(vtep.mac, |own| own.mac), ..*vtep };
        match self {
            Self::Vxlan(vteps) => Self::Vxlan(vteps.map(keep)),
            Self::HostGw | Self::Other(_) => self.clone(),
        }
    }
}

/// A VXLAN tunnel end point as its owner publishes it: `{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vtep {
    /// VXLAN network identifier.
    pub vni: Vni,
    /// The device's MAC.
    pub mac: Mac,
}

/// A field of a record that does not hold what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Flaw {
    /// The field as the record spells it (`BackendData.VtepMAC`, annotation key, …).
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

/// A record of the store under its key. Whoever remembers it shares what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub key: LeaseKey,
    /// The lease, or why there is none to be read. An unreadable record counts as absent, and is named.
    pub lease: Result<Arc<Lease>, Arc<Flaw>>,
}

impl Record {
    /// A record as it was read.
    pub fn new(key: LeaseKey, lease: Result<Lease, Flaw>) -> Self {
        Self { key, lease: lease.map(Arc::new).map_err(Arc::new) }
    }
}

/// What a store tells. A re-list is an event too, and the whole truth: what it does not hold is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseEvent {
    /// All records there are.
    Snapshot(Vec<Record>),
    /// A record is new or changed.
    Put(Record),
    /// A record is gone.
    Remove(LeaseKey),
}

/// What our own lease must say; the store finds the subnets for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The addresses we publish; also who we are to stores that know no node names.
    pub public_ip: Dual<IpAddr>,
    /// What our backend publishes.
    pub attributes: Attributes,
    /// The subnets we held last (from the existing `subnet.env`), preferred if free and fitting.
    pub previous: Dual<IpNet>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_wins_over_the_device() {
        let vtep = |vni, last| Vtep { vni: Vni::new(vni).unwrap(), mac: Mac([2, 0, 0, 0, 0, last]) };
        let device = Attributes::Vxlan(Dual { v4: Some(vtep(7, 1)), v6: Some(vtep(7, 2)) });
        let check = |own: Attributes, expect| assert_eq!(device.keeping_macs(&own), expect, "{own:?}");
        check(Attributes::HostGw, device.clone());
        check(
            Attributes::Vxlan(Dual { v4: Some(vtep(1, 9)), v6: None }),
            Attributes::Vxlan(Dual { v4: Some(vtep(7, 9)), v6: Some(vtep(7, 2)) }),
        );
        assert_eq!(Attributes::HostGw.keeping_macs(&device), Attributes::HostGw);
    }
}
