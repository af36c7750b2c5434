//! How IPv4 routes with gateways are written down: plainly, or through nexthop objects. Private to the executor.
//!
//! The kernel's hash of next hops ignores the gateway, so that n plain routes with n gateways on one device cost n² steps.
//! Above [`MANY`] such routes on a device new ones go through nexthop objects; below [`FEW`] all go back, because objects make
//! taking the device down slow. IPv6 has no such hash and needs none of this.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::RangeInclusive;

use flannel_core::addr::{Family, LinkName};
use ipnet::{IpNet, Ipv4Net};

use crate::links::Links;
use crate::netlink::route::{Hop, Target};
use crate::netlink::{Error, Socket, nexthop};

/// More routes on a device than this: nexthop objects.
const MANY: usize = 1024;
/// Fewer than this: plain routes again.
const FEW: usize = 512;
/// The ids of our objects. An object in this range is flannel's to change and delete.
pub(crate) const IDS: RangeInclusive<u32> = 0x0f1a_0000..=0x0f1a_ffff;

/// The nexthop objects of a network namespace.
#[derive(Debug, Default)]
pub(crate) struct Nexthops {
    by_id: BTreeMap<u32, Hop>,
    /// The ids of ours, in the order of where they lead.
    by_hop: Vec<u32>,
}

impl Nexthops {
    /// All objects there are; none on a kernel without them.
    pub(crate) fn read(socket: &mut Socket) -> Result<Self, Error> {
        match socket.dump(&nexthop::list(), nexthop::Report::read) {
            Ok(reports) => {
                let mut nexthops = Self::default();
                for report in &reports {
                    nexthops.note(report);
                }
                Ok(nexthops)
            }
            Err(error) if error.is_unsupported() => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Takes in a report.
    pub(crate) fn note(&mut self, report: &nexthop::Report) {
        self.forget(report.id);
        if let (false, Some(hop)) = (report.gone, report.hop) {
            self.insert(report.id, hop);
        }
    }

    fn insert(&mut self, id: u32, hop: Hop) {
        self.by_id.insert(id, hop);
        if let Err(at) = self.place(id, hop)
            && IDS.contains(&id)
        {
            self.by_hop.insert(at, id);
        }
    }

    /// Forgets an object that is gone.
    pub(crate) fn forget(&mut self, id: u32) {
        let Some(hop) = self.by_id.get(&id) else { return };
        if let Ok(at) = self.place(id, *hop) {
            self.by_hop.remove(at);
        }
        self.by_id.remove(&id);
    }

    /// Forgets the objects that went with a link.
    pub(crate) fn forget_link(&mut self, index: u32) {
        self.by_id.retain(|_, hop| hop.index != index);
        self.by_hop.retain(|id| self.by_id.contains_key(id));
    }

    /// Where the id of one of ours is among [`Nexthops::by_hop`], or should be.
    fn place(&self, id: u32, hop: Hop) -> Result<usize, usize> {
        self.by_hop.binary_search_by_key(&(hop, id), |id| (self.by_id[id], *id))
    }

    /// Packs what is remembered: a map that was filled in order is half empty.
    pub(crate) fn pack(&mut self) {
        self.by_id = std::mem::take(&mut self.by_id).into_iter().collect();
        self.by_hop.shrink_to_fit();
    }

    /// Where an object leads.
    pub(crate) fn hop(&self, id: u32) -> Option<Hop> {
        self.by_id.get(&id).copied()
    }

    /// The id of our object for a next hop, a free one if there is none yet. None when all ids are taken.
    pub(crate) fn id_for(&mut self, hop: Hop) -> Option<u32> {
        let first = self.by_hop.partition_point(|id| self.by_id[id] < hop);
        if let Some(id) = self.by_hop.get(first).filter(|id| self.by_id[id] == hop) {
            return Some(*id);
        }
        let id = self.free_id()?;
        self.insert(id, hop);
        Some(id)
    }

    /// Behind the highest id in use, or the first gap when the range's end is reached.
    fn free_id(&self) -> Option<u32> {
        match self.by_id.range(IDS).next_back() {
            None => Some(*IDS.start()),
            Some((last, _)) if last < IDS.end() => Some(last + 1),
            Some(_) => IDS.clone().find(|id| !self.by_id.contains_key(id)),
        }
    }

    /// Whether there is no object of ours.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_hop.is_empty()
    }

    /// Our objects that none of `used` names.
    pub(crate) fn unused(&self, used: &HashSet<u32>) -> Vec<u32> {
        self.by_id.range(IDS).map(|(id, _)| *id).filter(|id| !used.contains(id)).collect()
    }
}

/// How a route is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    /// The index of the link it goes through.
    pub(crate) index: u32,
    /// The object in the place of its next hop.
    pub(crate) object: Option<u32>,
}

impl Written {
    /// A route through a hop, itself or by its object.
    pub(crate) fn new(hop: Hop, target: Target) -> Self {
        Self { index: hop.index, object: if let Target::Object(id) = target { Some(id) } else { None } }
    }
}

/// How our IPv4 routes with gateways are written down now, by destination.
#[derive(Debug, Default)]
pub(crate) struct Encoding {
    routes: BTreeMap<Ipv4Net, Written>,
    /// Devices whose routes go through objects.
    crowded: BTreeSet<LinkName>,
}

impl Encoding {
    /// Whether the question arises at all: IPv4, with a gateway, of metric 0 as flannel's are.
    pub(crate) fn concerns(destination: IpNet, metric: u32, hop: &Hop) -> bool {
        Family::of_net(destination) == Family::V4 && metric == 0 && hop.gateway.is_some()
    }

    /// A route is there, written down like this.
    pub(crate) fn note(&mut self, destination: IpNet, written: Written) {
        if let IpNet::V4(destination) = destination {
            self.routes.insert(destination, written);
        }
    }

    /// A route is gone.
    pub(crate) fn forget(&mut self, destination: IpNet) {
        if let IpNet::V4(destination) = destination {
            self.routes.remove(&destination);
        }
    }

    fn written(&self, destination: IpNet) -> Option<&Written> {
        let IpNet::V4(destination) = destination else { return None };
        self.routes.get(&destination)
    }

    /// Packs what is remembered: a map that was filled in order is half empty.
    pub(crate) fn pack(&mut self) {
        self.routes = std::mem::take(&mut self.routes).into_iter().collect();
    }

    /// All routes through a link are gone, or must be learned anew.
    pub(crate) fn forget_link(&mut self, index: u32) {
        self.routes.retain(|_, written| written.index != index);
    }

    /// The object that a route goes through.
    pub(crate) fn object(&self, destination: IpNet) -> Option<u32> {
        self.written(destination)?.object
    }

    /// Decides anew which devices are crowded, with the routes about to be `added` and `removed` in view.
    pub(crate) fn decide(
        &mut self,
        links: &Links,
        added: impl Iterator<Item = (IpNet, LinkName)>,
        removed: impl Iterator<Item = IpNet>,
    ) {
        let (mut by_index, mut through_objects) = (BTreeMap::<u32, usize>::new(), BTreeSet::new());
        for Written { index, object } in self.routes.values() {
            *by_index.entry(*index).or_default() += 1;
            through_objects.extend(object.map(|_| *index));
        }
        for written in removed.filter_map(|destination| self.written(destination)) {
            by_index.entry(written.index).and_modify(|count| *count = count.saturating_sub(1));
        }
        let named = by_index.into_iter().filter_map(|(index, count)| Some((links.name(index)?, count)));
        let mut counts: BTreeMap<LinkName, usize> = named.collect();
        for (_, dev) in added.filter(|(destination, _)| self.written(*destination).is_none()) {
            *counts.entry(dev).or_default() += 1;
        }
        self.crowded.extend(through_objects.into_iter().filter_map(|index| links.name(index)));
        self.crowded.retain(|dev| counts.get(dev).is_some_and(|count| *count >= FEW));
        self.crowded.extend(counts.iter().filter(|(_, count)| **count > MANY).map(|(dev, _)| *dev));
    }

    /// Whether new routes through a device go through objects.
    pub(crate) fn is_crowded(&self, dev: LinkName) -> bool {
        self.crowded.contains(&dev)
    }

    /// Routes that go through objects although their devices are no longer crowded, with their objects.
    pub(crate) fn outdated(&self, links: &Links) -> Vec<(IpNet, u32)> {
        let crowded: BTreeSet<u32> = self.crowded.iter().filter_map(|dev| Some(links.named(*dev)?.index)).collect();
        let outdated = self.routes.iter().filter(|(_, written)| !crowded.contains(&written.index));
        outdated.filter_map(|(destination, written)| Some(((*destination).into(), written.object?))).collect()
    }

    /// The objects that routes go through.
    pub(crate) fn objects(&self) -> HashSet<u32> {
        self.routes.values().filter_map(|written| written.object).collect()
    }
}
