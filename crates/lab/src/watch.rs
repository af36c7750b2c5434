//! Listens to what changes among flannel's objects on a node, as the kernel tells it.
//!
//! Surface: [`Watch`]. The kernel tells nothing of the rules of legacy iptables, so nothing of them is heard.

use std::collections::BTreeMap;

use flannel_core::rules::RuleMode;
use flannel_kernel::netlink::neigh::Entry;
use flannel_kernel::netlink::{Error, Message, NoticeSocket, Protocol, address, link, neigh, route};
use flannel_kernel::nft;

use crate::error::LabError;
use crate::place::Place;
use crate::wire;

/// What is listened to: `RTNLGRP_LINK`, `_NEIGH`, `_IPV4_IFADDR`, `_IPV4_ROUTE`, `_IPV6_IFADDR`, `_IPV6_ROUTE` of
/// `linux/rtnetlink.h`.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];
/// `RTM_DELLINK`, `RTM_DELADDR`, `RTM_DELROUTE`, `RTM_DELNEIGH` of `linux/rtnetlink.h`.
const REMOVALS: [u16; 4] = [17, 21, 25, 29];

/// The names of flannel's devices by index.
type Devices = BTreeMap<u32, String>;

/// A listener.
#[derive(Debug)]
pub(crate) struct Watch {
    place: Place,
    routes: NoticeSocket,
    rules: NoticeSocket,
    devices: Devices,
}

impl Watch {
    /// Listens from now on.
    pub(crate) fn on(place: &Place) -> Result<Self, LabError> {
        let failed = |error: Error| failed(place, &error);
        let open = |protocol, groups: &[u32]| place.inside(|| NoticeSocket::open(protocol, groups))?.map_err(failed);
        let (routes, rules) = (open(Protocol::Route, &GROUPS)?, open(Protocol::Netfilter, &[nft::notice::GROUP])?);
        let links = wire::open(place)?.dump(&link::list(), link::Report::read).map_err(failed)?;
        let devices = links.iter().filter(|link| is_flannels(link)).map(|link| (link.index, link.name.to_string()));
        Ok(Self { place: place.clone(), routes, rules, devices: devices.collect() })
    }

    /// What has changed since, one line each.
    pub(crate) fn finish(self) -> Result<Vec<String>, LabError> {
        let Self { place, mut routes, mut rules, mut devices } = self;
        let mut told = Vec::new();
        let heard = routes
            .drain(|message| told.extend(line(message, &mut devices)))
            .and_then(|()| rules.drain(|message| told.extend(nft::notice::concerns(message).map(rules_line))));
        heard.map(|()| told).map_err(|error| failed(&place, &error))
    }
}

fn failed(place: &Place, error: &Error) -> LabError {
    LabError::Kernel { action: format!("listen to changes on {}", place.name()), cause: error.to_string() }
}

fn is_flannels(link: &link::Report) -> bool {
    link.name.as_str().starts_with("flannel")
}

/// What a notice says of an object of flannel's, if it is one.
fn line(message: Message<'_>, devices: &mut Devices) -> Option<String> {
    if let Some(link) = link::Report::read(message).filter(is_flannels) {
        devices.insert(link.index, link.name.to_string());
    }
    let object = link::Report::read(message)
        .and_then(|link| Some(format!("link {}", devices.get(&link.index)?)))
        .or_else(|| address_line(&address::Report::read(message)?, devices))
        .or_else(|| neigh_line(&neigh::Report::read(message)?, devices))
        .or_else(|| route_line(&route::Report::read(message)?))?;
    let verb = if REMOVALS.contains(&message.kind) { "removed" } else { "set" };
    Some(format!("{verb} {object}"))
}

fn address_line(report: &address::Report, devices: &Devices) -> Option<String> {
    Some(format!("address {} dev {}", report.net, devices.get(&report.index)?))
}

/// Entries that the kernel learns by itself have no place on flannel's devices, but for those of multicast groups.
fn neigh_line(report: &neigh::Report, devices: &Devices) -> Option<String> {
    let device = devices.get(&report.index)?;
    match report.entry {
        Entry::Neighbour(address, _) if address.is_multicast() => None,
        Entry::Neighbour(address, _) => Some(format!("neigh {address} dev {device}")),
        Entry::Forwarding(mac, _) => Some(format!("fdb {mac} dev {device}")),
    }
}

fn route_line(report: &route::Report) -> Option<String> {
    (report.is_main() && report.protocol == route::PROTOCOL).then(|| format!("route {}", report.destination))
}

fn rules_line(mode: RuleMode) -> String {
    match mode {
        RuleMode::Nftables => "changed nf_tables rules".into(),
        RuleMode::Iptables => "changed iptables rules".into(),
    }
}
