//! A lease record as people look at it: what the daemon reads in it, and what etcd knows of it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use flannel_core::addr::{Dual, overlap};
use flannel_core::lease::{LeaseKey, Record};
use flannel_core::record::{SubnetKey, claimed_by};
use ipnet::IpNet;

use super::super::keys::Keys;
use super::super::list::read;
use super::super::rpc::KeyValue;
use super::super::signature::Signature;
use crate::host::Host;

/// A lease record.
#[derive(Debug, Clone)]
pub struct Listed {
    /// What the daemon reads.
    pub record: Record,
    /// The subnets that its name names; empty if it names none.
    pub subnet: Dual<IpNet>,
    /// The public addresses that it names, whatever else of it is broken.
    pub public_ip: Dual<IpAddr>,
    /// What keeps it.
    pub keeping: Keeping,
    /// The host that wrote it, where it is signed.
    pub holder: Option<Host>,
    pub(super) kv: KeyValue,
}

/// What keeps a record in etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// Nothing ends it: it is a reservation.
    Reserved,
    /// A lease of etcd.
    Lease {
        /// Its ID.
        id: i64,
        /// How long it lives unless it is renewed; none if it has ended.
        left: Option<Duration>,
    },
}

impl Listed {
    pub(super) fn read(keys: &Keys, kv: KeyValue, signatures: &BTreeMap<LeaseKey, Signature>) -> Self {
        let record = read(keys, &kv);
        let named = |SubnetKey(subnet)| subnet;
        let signature = signatures.get(&record.key).filter(|signature| signature.is_of(&kv));
        Self {
            subnet: record.key.as_str().parse().map(named).unwrap_or_default(),
            public_ip: record.lease.as_ref().map_or_else(|_| claimed_by(&kv.value), |lease| lease.public_ip),
            keeping: if kv.lease == 0 { Keeping::Reserved } else { Keeping::Lease { id: kv.lease, left: None } },
            holder: signature.map(|signature| signature.host.clone()),
            record,
            kv,
        }
    }

    /// Its key in etcd; what is no text of it is replaced.
    pub fn etcd_key(&self) -> String {
        String::from_utf8_lossy(&self.kv.key).into_owned()
    }

    /// Its text as it lies there; what is no text of it is replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.kv.value).into_owned()
    }

    /// The revision of etcd that made it.
    pub fn made(&self) -> i64 {
        self.kv.create_revision
    }

    /// The revision of etcd that wrote it last.
    pub fn written(&self) -> i64 {
        self.kv.mod_revision
    }

    /// How to call whose it is.
    pub fn owner(&self) -> String {
        match (&self.holder, self.public_ip.is_empty()) {
            (Some(host), true) => host.to_string(),
            (Some(host), false) => format!("{host} at {}", list(&self.public_ip)),
            (None, false) => list(&self.public_ip),
            (None, true) => "a host that it does not name".into(),
        }
    }

    pub(super) fn overlaps(&self, subnets: &Dual<IpNet>) -> bool {
        subnets.iter().any(|(family, subnet)| self.subnet.get(family).is_some_and(|own| overlap(*own, *subnet)))
    }
}

/// Values separated by commas.
pub(super) fn list<T: fmt::Display>(values: &Dual<T>) -> String {
    values.values().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl Keeping {
    /// The ID of the lease of etcd.
    pub fn lease(&self) -> Option<i64> {
        match self {
            Self::Reserved => None,
            Self::Lease { id, .. } => Some(*id),
        }
    }

    /// How long it lasts unless it is renewed.
    pub fn left(&self) -> Option<Duration> {
        match self {
            Self::Reserved => None,
            Self::Lease { left, .. } => *left,
        }
    }

    pub(super) fn last(&mut self, times: &BTreeMap<i64, Duration>) {
        if let Self::Lease { id, left } = self {
            *left = times.get(id).copied();
        }
    }
}

impl fmt::Display for Keeping {
    /// `reserved`, `ends in 23h59m`, `ended`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserved => f.write_str("reserved"),
            Self::Lease { left: None, .. } => f.write_str("ended"),
            Self::Lease { left: Some(left), .. } => match (left.as_secs() / 3600, left.as_secs() / 60 % 60) {
                (0, 0) => write!(f, "ends in {}s", left.as_secs()),
                (0, minutes) => write!(f, "ends in {minutes}m"),
                (hours, minutes) => write!(f, "ends in {hours}h{minutes:02}m"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_record_is_said() {
        let said = |seconds| Keeping::Lease { id: 1, left: Some(Duration::from_secs(seconds)) }.to_string();
        assert_eq!(
            [86_399, 3600, 3599, 59].map(said),
            ["ends in 23h59m", "ends in 1h00m", "ends in 59m", "ends in 59s"]
        );
        assert_eq!(Keeping::Reserved.to_string(), "reserved");
        assert_eq!(Keeping::Lease { id: 1, left: None }.to_string(), "ended");
    }
}
