//! All leases as they are known now, whatever order the news came in, with the questions that planning asks of them.
//!
//! [`LeaseSet::apply`] takes an event and names the leases it touches: those that changed and, since of two in conflict the
//! earlier wins, later ones that share something with them. Only they need planning again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::addr::{Family, Mac};
use crate::lease::{Flaw, Lease, LeaseEvent, LeaseKey, Record, Since};

/// The records of a store, indexed by what must be unique among them.
#[derive(Debug, Clone, Default)]
pub struct LeaseSet {
    records: BTreeMap<LeaseKey, Result<Arc<Lease>, Arc<Flaw>>>,
    /// By length of prefix.
    subnets: BTreeMap<u8, BTreeSet<(IpNet, LeaseKey)>>,
    addresses: BTreeSet<Place<IpAddr>>,
    macs: BTreeSet<Place<(Family, Mac)>>,
}

/// A lease's place in an index: under a value, in the order of leases.
type Place<T> = (T, Since, LeaseKey);

/// The set that holds these records, made at once: maps that are filled one by one are a third empty.
impl FromIterator<Record> for LeaseSet {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Self {
        let records: BTreeMap<_, _> = records.into_iter().map(|record| (record.key, record.lease)).collect();
        let readable = || records.iter().filter_map(|(key, lease)| Some((key, lease.as_deref().ok()?)));
        let mut by_length: BTreeMap<u8, Vec<_>> = BTreeMap::new();
        for (len, subnet) in readable().flat_map(|(key, lease)| subnets(key, lease)) {
            by_length.entry(len).or_default().push(subnet);
        }
        let subnets = by_length.into_iter().map(|(len, subnets)| (len, subnets.into_iter().collect())).collect();
        let addresses = readable().flat_map(|(key, lease)| addresses(key, lease)).collect();
        let macs = readable().flat_map(|(key, lease)| macs(key, lease)).collect();
        Self { records, subnets, addresses, macs }
    }
}

impl LeaseSet {
    /// Takes an event in and names the leases that must be planned again.
    pub fn apply(&mut self, event: LeaseEvent) -> BTreeSet<LeaseKey> {
        let mut touched = BTreeSet::new();
        match event {
            LeaseEvent::Snapshot(records) if self.is_empty() => {
                *self = records.into_iter().collect();
                touched.extend(self.records.keys().cloned());
            }
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
    pub fn iter(&self) -> impl Iterator<Item = (&LeaseKey, &Result<Arc<Lease>, Arc<Flaw>>)> {
        self.records.iter()
    }

    /// The record under a key.
    pub fn record(&self, key: &LeaseKey) -> Option<&Result<Arc<Lease>, Arc<Flaw>>> {
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
    pub fn overlapping<'a>(&'a self, net: IpNet) -> impl Iterator<Item = (&'a LeaseKey, &'a Lease)> {
        let widest = move |len: u8| IpNet::new(net.addr(), len.min(net.prefix_len())).map_or(net, |net| net.trunc());
        let of_length = move |(len, subnets): (&u8, &'a BTreeSet<_>)| in_range(subnets, widest(*len), net.broadcast());
        self.subnets.iter().flat_map(of_length).map(|key| self.named(key))
    }

    /// The leases that publish an address and come before a place in the order of leases, in that order.
    pub fn at_address(&self, address: IpAddr, before: (Since, &LeaseKey)) -> impl Iterator<Item = (&LeaseKey, &Lease)> {
        self.up_to(&self.addresses, address, before)
    }

    /// The leases that publish a VTEP MAC for a family and come before a place in the order of leases, in that order.
    pub fn with_mac(
        &self,
        family: Family,
        mac: Mac,
        before: (Since, &LeaseKey),
    ) -> impl Iterator<Item = (&LeaseKey, &Lease)> {
        self.up_to(&self.macs, (family, mac), before)
    }

    /// The leases that an index holds under a value before a place in their order, in that order.
    fn up_to<'a, T: Copy + Ord>(
        &'a self,
        index: &'a BTreeSet<Place<T>>,
        value: T,
        (since, key): (Since, &LeaseKey),
    ) -> impl Iterator<Item = (&'a LeaseKey, &'a Lease)> + use<'a, T> {
        let first = (value, Since::default(), LeaseKey::default());
        index.range(first..(value, since, key.clone())).map(|(.., key)| self.named(key))
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
            self.touch_later(&record.key, lease, touched);
            self.index(&record.key, lease);
        }
        self.records.insert(record.key, record.lease);
    }

    fn remove(&mut self, key: &LeaseKey, touched: &mut BTreeSet<LeaseKey>) {
        let Some(lease) = self.records.remove(key) else { return };
        if let Ok(lease) = lease {
            self.unindex(key, &lease);
            self.touch_later(key, &lease, touched);
        }
        touched.insert(key.clone());
    }

    fn index(&mut self, key: &LeaseKey, lease: &Lease) {
        for (len, subnet) in subnets(key, lease) {
            self.subnets.entry(len).or_default().insert(subnet);
        }
        self.addresses.extend(addresses(key, lease));
        self.macs.extend(macs(key, lease));
    }

    fn unindex(&mut self, key: &LeaseKey, lease: &Lease) {
        for (len, subnet) in subnets(key, lease) {
            self.subnets.entry(len).or_default().remove(&subnet);
        }
        for address in addresses(key, lease) {
            self.addresses.remove(&address);
        }
        for mac in macs(key, lease) {
            self.macs.remove(&mac);
        }
    }

    /// Names the leases that share a subnet, an address or a MAC with this one and come after it: the earlier ones win
    /// whatever it says.
    fn touch_later(&self, key: &LeaseKey, lease: &Lease, touched: &mut BTreeSet<LeaseKey>) {
        let subnets = lease.subnet.values().flat_map(|subnet| self.overlapping(*subnet));
        let subnets = subnets.filter(|(other, their)| (lease.since, key) < (their.since, *other));
        let addresses = addresses(key, lease).flat_map(|place| from(&self.addresses, place));
        let macs = macs(key, lease).flat_map(|place| from(&self.macs, place));
        touched.extend(subnets.map(|(key, _)| key).chain(addresses).chain(macs).cloned());
    }
}

/// The keys that an index holds under a value, from a place on.
fn from<T: Copy + Ord>(index: &BTreeSet<Place<T>>, place: Place<T>) -> impl Iterator<Item = &LeaseKey> {
    let value = place.0;
    index.range(place..).take_while(move |(v, ..)| *v == value).map(|(.., key)| key)
}

/// The keys of the subnets, all of one length, from one on to the one that holds an address.
fn in_range(subnets: &BTreeSet<(IpNet, LeaseKey)>, from: IpNet, to: IpAddr) -> impl Iterator<Item = &LeaseKey> {
    let within =
        move |(subnet, _): &&(IpNet, LeaseKey)| Family::of_net(*subnet) == Family::of(to) && subnet.addr() <= to;
    subnets.range((from, LeaseKey::default())..).take_while(within).map(|(_, key)| key)
}

fn subnets(key: &LeaseKey, lease: &Lease) -> impl Iterator<Item = (u8, (IpNet, LeaseKey))> {
    lease.subnet.values().map(|subnet| (subnet.prefix_len(), (*subnet, key.clone())))
}

fn addresses(key: &LeaseKey, lease: &Lease) -> impl Iterator<Item = Place<IpAddr>> {
    lease.public_ip.values().map(|address| (*address, lease.since, key.clone()))
}

fn macs(key: &LeaseKey, lease: &Lease) -> impl Iterator<Item = Place<(Family, Mac)>> {
    let vteps = lease.attributes.vteps();
    let macs = Family::ALL.into_iter().filter_map(move |family| Some((family, vteps.get(family)?.mac)));
    macs.map(|mac| (mac, lease.since, key.clone()))
}
