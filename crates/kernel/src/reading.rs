//! From the kernel's reports to the objects of [`State`](flannel_core::state::State): what is ours, and what it says.
//!
//! The same functions read dumps, answers and notices, so that the three never disagree. What is not ours reads as none.

use flannel_core::state::{Key, Link, LinkKind, Route, Scope, Value, Vxlan};

use crate::links::{Links, Seen};
use crate::netlink::neigh::Entry;
use crate::netlink::route::{Hop, PROTOCOL};
use crate::netlink::{address, link, neigh, route};
use crate::nexthops::Nexthops;

/// A device of ours.
pub(crate) fn read_link(report: &link::Report, links: &Links) -> Option<(Key, Value)> {
    if !Scope::owns_link(report.name.as_str(), &report.kind) {
        return None;
    }
    let kind = match &report.vxlan {
        Some((vxlan, lower)) => {
            LinkKind::Vxlan(Vxlan { lower: lower.and_then(|index| links.name(index)), ..vxlan.clone() })
        }
        None => LinkKind::Other(report.kind.clone()),
    };
    let key = Key::Link(report.name);
    let Some(mac) = report.mac.or((&*report.kind != "vxlan").then_some(flannel_core::addr::Mac([0; 6]))) else {
        return Some((key, Value::Other("no MAC".into())));
    };
    let (up, mtu, accept_ra) = (report.is_up(), report.mtu, report.accept_ra);
    Some((key, Value::Link(Box::new(Link { up, mtu, mac, accept_ra, kind }))))
}

/// An address on a device of ours; the link-local ones that the kernel gives itself are none.
pub(crate) fn read_address(report: &address::Report, links: &Links) -> Option<(Key, Value)> {
    let seen = links.at(report.index).filter(|seen| seen.is_ours())?;
    let key = Key::Address(seen.name, report.net);
    if report.is_global() {
        return Some((key, Value::Address));
    }
    let own_doing = report.net.addr().is_ipv6() && report.scope == libc::RT_SCOPE_LINK;
    (!own_doing).then(|| (key, Value::Other(format!("scope {}", report.scope).into())))
}

/// A permanent neighbour or forwarding entry on a device of ours. Those that come and go by themselves are none: the
/// kernel replaces them when a permanent one is set.
pub(crate) fn read_neigh(report: &neigh::Report, links: &Links) -> Option<(Key, Option<Value>)> {
    let seen = links.at(report.index).filter(|seen| seen.is_ours())?;
    let permanent = report.is_permanent();
    Some(match report.entry {
        Entry::Neighbour(address, mac) => (Key::Neigh(seen.name, address), mac.filter(|_| permanent).map(Value::Neigh)),
        Entry::Forwarding(mac, vtep) => {
            let value = vtep.map_or_else(|| Value::Other("no dst".into()), Value::Fdb);
            (Key::Fdb(seen.name, mac), permanent.then_some(value))
        }
    })
}

/// The name of a route in [`Key`]'s words, if it is one of table main.
pub(crate) fn route_key(report: &route::Report) -> Option<Key> {
    report.is_main().then_some(Key::Route(report.destination, report.metric))
}

/// A route of ours: made by flannel, or anybody's through a device of ours that the kernel did not make itself.
pub(crate) fn read_route(
    report: &route::Report,
    links: &Links,
    nexthops: &Nexthops,
    scope: &Scope,
) -> Option<(Key, Value)> {
    let key = route_key(report)?;
    let value = match report.kind {
        libc::RTN_BLACKHOLE => Value::Route(Route::Blackhole),
        libc::RTN_UNICAST => read_unicast(report, links, nexthops)?,
        _ => return None,
    };
    let owned = match &value {
        Value::Route(route) if report.protocol == PROTOCOL => {
            on_own_device(route, links) || scope.owns_route(report.destination, route)
        }
        _ => false,
    };
    if owned {
        return Some((key, value));
    }
    let hops = hops(report, nexthops);
    let all_ours = !hops.is_empty() && hops.iter().all(|hop| links.at(hop.index).is_some_and(Seen::is_ours));
    (all_ours && report.kind == libc::RTN_UNICAST && !made_by_kernel(report.protocol))
        .then(|| (key, Value::Other(format!("{} nexthops, proto {}", hops.len(), report.protocol).into())))
}

fn on_own_device(route: &Route, links: &Links) -> bool {
    route.dev().and_then(|dev| links.named(dev)).is_some_and(Seen::is_ours)
}

/// Routes that the kernel makes for addresses, redirects and router advertisements.
fn made_by_kernel(protocol: u8) -> bool {
    /// `RTPROT_RA` of `linux/rtnetlink.h`.
    const ROUTER_ADVERTISEMENT: u8 = 9;
    matches!(protocol, libc::RTPROT_KERNEL | libc::RTPROT_REDIRECT | ROUTER_ADVERTISEMENT)
}

fn read_unicast(report: &route::Report, links: &Links, nexthops: &Nexthops) -> Option<Value> {
    match hops(report, nexthops).as_slice() {
        [] => None,
        [hop] => {
            let dev = links.name(hop.index)?;
            Some(Value::Route(Route::Unicast { dev, gateway: hop.gateway, onlink: hop.onlink }))
        }
        several => Some(Value::Other(format!("{} nexthops", several.len()).into())),
    }
}

/// The next hops, looked up behind a nexthop object where the kernel names only that.
pub(crate) fn hops(report: &route::Report, nexthops: &Nexthops) -> Vec<Hop> {
    match (report.hops.as_slice(), report.object) {
        ([], Some(id)) => nexthops.hop(id).into_iter().collect(),
        (hops, _) => hops.to_vec(),
    }
}
