//! All leases as they are known now, whatever order the news came in, with the questions that planning asks of them.
//!
//! [`LeaseSet::apply`] takes an event and names the leases it touches: those that changed and those whose conflicts may
//! have changed with them. Only they need planning again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::addr::{Dual, Family, Mac, host, overlap};
use crate::lease::{Attributes, Flaw, Lease, LeaseEvent, LeaseKey, Record};

/// The records of a store, indexed by what must be unique among them.
#[derive(Debug, Clone, Default)]
pub struct LeaseSet {
    records: BTreeMap<LeaseKey, Result<Lease, Flaw>>,
    subnets: BTreeSet<(IpNet, LeaseKey)>,
    addresses: BTreeSet<(IpAddr, LeaseKey)>,
    macs: BTreeSet<(Family, Mac, LeaseKey)>,
}

impl LeaseSet {
    /// Takes an event in and names the leases that must be planned again.
    pub fn apply(&mut self, event: LeaseEvent) -> BTreeSet<LeaseKey> {
        let mut touched = BTreeSet::new();
        match event {
            LeaseEvent::Snapshot(records) => {
                let kept: BTreeSet<_> = records.iter().map(|record| record.key.clone()).collect();
                let gone: Vec<_> = self.records.keys().filter(|key| !kept.contains(*key)).cloned().collect();
                for key in &gone {
                    self.remove(key, &mut touched);
                }
                for record in records {
                    self.put(record, &mut touched);
                }
            }
            LeaseEvent::Put(record) => self.put(record, &mut touched),
            LeaseEvent::Remove(key) => self.remove(&key, &mut touched),
        }
        touched
    }

    /// All records by key.
    pub fn iter(&self) -> impl Iterator<Item = (&LeaseKey, &Result<Lease, Flaw>)> {
        self.records.iter()
    }

    /// The record under a key.
    pub fn record(&self, key: &LeaseKey) -> Option<&Result<Lease, Flaw>> {
        self.records.get(key)
    }

    /// How many records there are, unreadable ones included.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The leases whose subnets share an address with a prefix.
    pub fn overlapping(&self, net: IpNet) -> impl Iterator<Item = (&LeaseKey, &Lease)> {
        let above = (0..net.prefix_len()).filter_map(move |len| IpNet::new(net.addr(), len).ok());
        let above = above.flat_map(|wider| self.in_range(wider.trunc(), wider.trunc()));
        let within = self.in_range(net, host(net.broadcast()));
        above.chain(within).filter(move |(subnet, _)| overlap(*subnet, net)).map(|(_, key)| self.named(key))
    }

    /// The leases that publish an address.
    pub fn at_address(&self, address: IpAddr) -> impl Iterator<Item = (&LeaseKey, &Lease)> {
        let from = (address, LeaseKey::new(""));
        self.addresses.range(from..).take_while(move |(a, _)| *a == address).map(|(_, key)| self.named(key))
    }

    /// The leases that publish a VTEP MAC for a family.
    pub fn with_mac(&self, family: Family, mac: Mac) -> impl Iterator<Item = (&LeaseKey, &Lease)> {
        let from = (family, mac, LeaseKey::new(""));
        self.macs
            .range(from..)
            .take_while(move |(f, m, _)| (*f, *m) == (family, mac))
            .map(|(_, _, key)| self.named(key))
    }

    fn in_range(&self, from: IpNet, to: IpNet) -> impl Iterator<Item = &(IpNet, LeaseKey)> {
        self.subnets.range((from, LeaseKey::new(""))..).take_while(move |(subnet, _)| *subnet <= to)
    }

    fn named<'a>(&'a self, key: &'a LeaseKey) -> (&'a LeaseKey, &'a Lease) {
        match &self.records[key] {
            Ok(lease) => (key, lease),
            Err(_) => unreachable!("only readable leases are indexed"),
        }
    }

    fn put(&mut self, record: Record, touched: &mut BTreeSet<LeaseKey>) {
        if self.records.get(&record.key) == Some(&record.lease) {
            return;
        }
        self.remove(&record.key, touched);
        touched.insert(record.key.clone());
        if let Ok(lease) = &record.lease {
            self.touch_related(lease, touched);
            self.index(&record.key, lease);
        }
        self.records.insert(record.key, record.lease);
    }

    fn remove(&mut self, key: &LeaseKey, touched: &mut BTreeSet<LeaseKey>) {
        let Some(lease) = self.records.remove(key) else { return };
        if let Ok(lease) = lease {
            self.unindex(key, &lease);
            self.touch_related(&lease, touched);
        }
        touched.insert(key.clone());
    }

    fn index(&mut self, key: &LeaseKey, lease: &Lease) {
        self.subnets.extend(lease.subnet.values().map(|subnet| (*subnet, key.clone())));
        self.addresses.extend(lease.public_ip.values().map(|address| (*address, key.clone())));
        self.macs.extend(macs(lease).map(|(family, mac)| (family, mac, key.clone())));
    }

    fn unindex(&mut self, key: &LeaseKey, lease: &Lease) {
        for subnet in lease.subnet.values() {
            self.subnets.remove(&(*subnet, key.clone()));
        }
        for address in lease.public_ip.values() {
            self.addresses.remove(&(*address, key.clone()));
        }
        for (family, mac) in macs(lease) {
            self.macs.remove(&(family, mac, key.clone()));
        }
    }

    /// Names the leases that share a subnet, an address or a MAC with this one.
    fn touch_related(&self, lease: &Lease, touched: &mut BTreeSet<LeaseKey>) {
        let subnets = lease.subnet.values().flat_map(|subnet| self.overlapping(*subnet));
        let addresses = lease.public_ip.values().flat_map(|address| self.at_address(*address));
        let macs = macs(lease).flat_map(|(family, mac)| self.with_mac(family, mac));
        touched.extend(subnets.chain(addresses).chain(macs).map(|(key, _)| key.clone()));
    }
}

fn macs(lease: &Lease) -> impl Iterator<Item = (Family, Mac)> {
    let vteps = match &lease.attributes {
        Attributes::Vxlan(vteps) => *vteps,
        Attributes::HostGw | Attributes::Other(_) => Dual::default(),
    };
    Family::ALL.into_iter().filter_map(move |family| Some((family, vteps.get(family)?.mac)))
}
