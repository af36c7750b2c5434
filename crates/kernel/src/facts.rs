//! Reads [`Facts`]: the interfaces, addresses and routes of this network namespace that are not flannel's.
//!
//! Flannel's own devices and routes, pods' veths and the routes to link-local addresses that every link has are left out, so
//! that nothing that flannel writes changes them.

use std::net::IpAddr;

use flannel_core::addr::{Dual, Family, Mac};
use flannel_core::facts::{AddressFact, Facts, LinkFact, RouteFact};
use flannel_core::state::Scope;
use rustix::io::Errno;

use crate::executor::ObserveError;
use crate::iptables;
use crate::links::{Links, Seen};
use crate::netlink::{Error, Socket, address, link, route};
use crate::nexthops::Nexthops;
use crate::nft::Nft;
use crate::reading::{hops, read_route};

/// Reads the host. `reach` is the address of `--iface-can-reach`; `fresh_macs` are taken over as they are.
pub fn read(
    socket: &mut Socket,
    scope: &Scope,
    reach: Option<IpAddr>,
    fresh_macs: Dual<Mac>,
) -> Result<Facts, ObserveError> {
    let mut reports = socket.dump(&link::list(), link::Report::read).map_err(unreadable("links"))?;
    reports.sort_by_key(|report| report.index);
    let links: Links = reports.iter().collect();
    let addresses = read_addresses(socket)?;
    let routes = read_routes(socket, &links, scope)?;
    let reach = reach.map(|to| source_towards(socket, to)).transpose()?.flatten();
    let is_ours = |report: &&link::Report| links.at(report.index).is_some_and(Seen::is_ours);
    let own_macs = reports.iter().filter(is_ours).filter_map(|report| Some((report.name, report.mac?))).collect();
    let links = reports
        .iter()
        .filter(|report| links.at(report.index).is_some_and(|seen| !seen.is_ours() && !seen.is_pods()))
        .map(|report| link_fact(report, &addresses))
        .collect();
    Ok(Facts { links, own_macs, routes, reach, fresh_macs, only_nftables: only_nftables()? })
}

fn only_nftables() -> Result<bool, ObserveError> {
    Ok(!iptables::is_installed() && Nft::open().map_err(unreadable("nf_tables"))?.is_some())
}

/// Names what could not be read.
pub(crate) fn unreadable(what: &'static str) -> impl FnOnce(Error) -> ObserveError {
    move |error| ObserveError { what, cause: error.to_string() }
}

fn read_addresses(socket: &mut Socket) -> Result<Vec<address::Report>, ObserveError> {
    let mut addresses = Vec::new();
    for family in Family::ALL {
        match socket.dump(&address::list(family, None), address::Report::read) {
            Ok(found) => addresses.extend(found.into_iter().filter(|report| Family::of_net(report.net) == family)),
            Err(error) if error.is_unsupported() => {}
            Err(error) => return Err(unreadable("addresses")(error)),
        }
    }
    Ok(addresses)
}

fn read_routes(socket: &mut Socket, links: &Links, scope: &Scope) -> Result<Vec<RouteFact>, ObserveError> {
    let nexthops = Nexthops::read(socket).map_err(unreadable("nexthop objects"))?;
    let filter = route::Filter { kind: Some(libc::RTN_UNICAST), ..route::Filter::default() };
    let mut routes = Vec::new();
    for family in Family::ALL {
        match socket.dump(&route::list(family, filter), route::Report::read) {
            Ok(found) => routes.extend(
                found
                    .iter()
                    .filter(|report| Family::of_net(report.destination) == family)
                    .filter_map(|report| route_fact(report, links, &nexthops, scope)),
            ),
            Err(error) if error.is_unsupported() => {}
            Err(error) => return Err(unreadable("routes")(error)),
        }
    }
    Ok(routes)
}

fn link_fact(report: &link::Report, addresses: &[address::Report]) -> LinkFact {
    LinkFact {
        index: report.index,
        name: report.name,
        kind: report.kind.clone(),
        mtu: report.mtu,
        mac: report.mac,
        up: report.is_up(),
        addresses: addresses.iter().filter(|address| address.index == report.index).map(address_fact).collect(),
    }
}

fn address_fact(report: &address::Report) -> AddressFact {
    AddressFact {
        net: report.net,
        global: report.is_global(),
        permanent: report.flags & libc::IFA_F_PERMANENT != 0,
        // The bit means "secondary" for IPv4.
        temporary: report.net.addr().is_ipv6() && report.flags & libc::IFA_F_TEMPORARY != 0,
        deprecated: report.flags & libc::IFA_F_DEPRECATED != 0,
    }
}

fn route_fact(report: &route::Report, links: &Links, nexthops: &Nexthops, scope: &Scope) -> Option<RouteFact> {
    let underlay = report.is_main() && report.kind == libc::RTN_UNICAST && !report.is_link_local();
    if !underlay || read_route(report, links, nexthops, scope).is_some() {
        return None;
    }
    let hop = hops(report, nexthops).first().copied()?;
    let seen = links.at(hop.index).filter(|seen| !seen.is_ours())?;
    Some(RouteFact { destination: report.destination, gateway: hop.gateway, dev: seen.name, metric: report.metric })
}

/// The source address that `ip route get` names; none if there is no way there.
fn source_towards(socket: &mut Socket, to: IpAddr) -> Result<Option<IpAddr>, ObserveError> {
    match socket.ask(&route::lookup(to), route::Report::read) {
        Ok(found) => Ok(found.first().and_then(|report| report.source)),
        Err(error) if matches!(error.errno(), Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::INVAL) => Ok(None),
        Err(error) => Err(unreadable("the route of --iface-can-reach")(error)),
    }
}
