//! All leases as they are known now, whatever order the news came in, with the questions that planning asks of them.
//!
//! [`LeaseSet::apply`] takes an event and names the leases it touches: those that changed and, since of two in conflict the
//! earlier wins, later ones that share something with them. Only they need planning again.

mod index;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use self::index::{Index, Named};
use crate::addr::{Family, Mac};
use crate::lease::{Flaw, Lease, LeaseEvent, LeaseKey, Record, Since};

/// The records of a store, indexed by what must be unique among them.
#[derive(Debug, Clone)]
pub struct LeaseSet {
    records: BTreeMap<LeaseKey, Result<Arc<Lease>, Arc<Flaw>>>,
    /// By family and length of prefix.
    subnets: BTreeMap<(Family, u8), Index<IpNet>>,
    /// In the order of [`Family::ALL`].
    addresses: [Index<IpAddr>; 2],
    macs: [Index<Mac>; 2],
}

impl Default for LeaseSet {
    fn default() -> Self {
        std::iter::empty().collect()
    }
}

/// The set that holds these records, made at once: maps that are filled one by one are a third empty.
impl FromIterator<Record> for LeaseSet {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Self {
        let records: BTreeMap<_, _> = records.into_iter().map(|record| (record.key, record.lease)).collect();
        let leases = || records.iter().filter_map(|(key, lease)| Some((key.clone(), Arc::clone(lease.as_ref().ok()?))));
        let mut by_length: BTreeMap<_, Vec<Named>> = BTreeMap::new();
        for (key, lease) in leases() {
            for place in lengths(&lease) {
                by_length.entry(place).or_default().push((key.clone(), Arc::clone(&lease)));
            }
        }
        let subnets =
            by_length.into_iter().map(|(place, leases)| (place, Index::new(place.0, subnet, leases))).collect();
        let addresses = Family::ALL.map(|family| Index::new(family, address, leases()));
        let macs = Family::ALL.map(|family| Index::new(family, mac, leases()));
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
        let family = Family::of_net(net);
        let of_length = move |((_, len), index): (&(Family, u8), &'a Index<IpNet>)| {
            let begins = move |(_, lease): &&Named| {
                lease.subnet.get(family).is_some_and(|subnet| subnet.addr() <= net.broadcast())
            };
            index.from(widest(*len)).iter().take_while(begins)
        };
        self.subnets.range((family, 0)..=(family, u8::MAX)).flat_map(of_length).map(named)
    }

    /// The leases that publish an address and come before a place in the order of leases, in that order.
    pub fn at_address<'a>(
        &'a self,
        address: IpAddr,
        before: (Since, &LeaseKey),
    ) -> impl Iterator<Item = (&'a LeaseKey, &'a Lease)> + use<'a> {
        self.addresses[Family::of(address) as usize].before(address, before).iter().map(named)
    }

    /// The leases that publish a VTEP MAC for a family and come before a place in the order of leases, in that order.
    pub fn with_mac<'a>(
        &'a self,
        family: Family,
        mac: Mac,
        before: (Since, &LeaseKey),
    ) -> impl Iterator<Item = (&'a LeaseKey, &'a Lease)> + use<'a> {
        self.macs[family as usize].before(mac, before).iter().map(named)
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

    fn index(&mut self, key: &LeaseKey, lease: &Arc<Lease>) {
        for place in lengths(lease) {
            self.subnets.entry(place).or_insert_with(|| Index::new(place.0, subnet, [])).insert(key, lease);
        }
        self.addresses.iter_mut().for_each(|index| index.insert(key, lease));
        self.macs.iter_mut().for_each(|index| index.insert(key, lease));
    }

    fn unindex(&mut self, key: &LeaseKey, lease: &Lease) {
        self.subnets.values_mut().for_each(|index| index.remove(key, lease));
        self.addresses.iter_mut().for_each(|index| index.remove(key, lease));
        self.macs.iter_mut().for_each(|index| index.remove(key, lease));
    }

    /// Names the leases that share a subnet, an address or a MAC with this one and come after it: the earlier ones win
    /// whatever it says.
    fn touch_later(&self, key: &LeaseKey, lease: &Lease, touched: &mut BTreeSet<LeaseKey>) {
        let subnets = lease.subnet.values().flat_map(|subnet| self.overlapping(*subnet));
        let subnets = subnets.filter(|(other, their)| (lease.since, key) < (their.since, *other));
        let addresses = self.addresses.iter().flat_map(|index| index.beside(key, lease));
        let macs = self.macs.iter().flat_map(|index| index.beside(key, lease));
        touched.extend(subnets.map(|(key, _)| key).chain(addresses).chain(macs).cloned());
    }
}

fn named((key, lease): &Named) -> (&LeaseKey, &Lease) {
    (key, lease)
}

/// The families and lengths of a lease's subnets.
fn lengths(lease: &Lease) -> impl Iterator<Item = (Family, u8)> + use<> {
    let lengths = lease.subnet.map(|_, subnet| subnet.prefix_len());
    Family::ALL.into_iter().filter_map(move |family| Some((family, *lengths.get(family)?)))
}

fn subnet(lease: &Lease, family: Family) -> Option<IpNet> {
    lease.subnet.get(family).copied()
}

fn address(lease: &Lease, family: Family) -> Option<IpAddr> {
    lease.public_ip.get(family).copied()
}

fn mac(lease: &Lease, family: Family) -> Option<Mac> {
    lease.attributes.vteps().get(family).map(|vtep| vtep.mac)
}
