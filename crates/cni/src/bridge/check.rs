//! CHECK: whether all that the ADD's result says is still there.

use std::path::Path;

use flannel_core::addr::{Family, LinkName};
use flannel_kernel::pod_link::{Found, Links};
use ipnet::IpNet;

use super::conf::BridgeConf;
use super::vlan;
use crate::protocol::conf::NetConf;
use crate::protocol::environment::Call;
use crate::protocol::failure::{Explain, Failure, code};
use crate::protocol::result::{CniResult, Interface};
use crate::{delegate, netns};

/// Verifies the addresses' owner, the three interfaces, how they hang together, and the container's addresses and routes.
pub(super) fn check(call: &Call<'_>, conf: &NetConf, keys: &BridgeConf) -> Result<(), Failure> {
    let netns = netns::open(call)?;
    if let Some(ipam) = &keys.ipam {
        delegate::run_ipam(ipam, call, conf)?;
    }
    let prev = conf.prev_result()?;
    let ifname = call.ifname()?;
    let mut host = Links::here()?;
    let bridge = there(&mut host, recorded(&prev, keys.bridge, "")?, "bridge")?;
    if bridge.is_promisc() != keys.promisc {
        return Err(CheckError::Promisc(keys.bridge).into());
    }
    let mut pod = netns::links(&netns)?;
    let container = there(&mut pod, recorded(&prev, ifname, call.netns.unwrap_or_default())?, "veth")?;
    let port = check_port(&mut host, &prev, &bridge, &container)?;
    vlan::check(&mut host, &keys.vlan, &bridge, &port)?;
    check_addresses(&mut pod, &prev, &container)?;
    check_routes(&mut pod, &prev, &container)
}

/// An interface of the result, by name and namespace.
fn recorded<'a>(prev: &'a CniResult, name: LinkName, sandbox: &str) -> Result<&'a Interface, CheckError> {
    let matches = |interface: &&Interface| interface.name == name.as_str() && interface.sandbox == sandbox;
    let place = if sandbox.is_empty() { "the host".into() } else { Path::new(sandbox).display().to_string() };
    prev.interfaces.iter().find(matches).ok_or(CheckError::NotInResult { name, place })
}

/// The link that an interface of the result speaks of.
fn there(links: &mut Links, interface: &Interface, kind: &'static str) -> Result<Found, Failure> {
    let name = interface.name.parse().map_err(|_| CheckError::Gone(interface.name.clone()))?;
    let found = links.find(name)?.ok_or_else(|| CheckError::Gone(interface.name.clone()))?;
    if !found.is(kind) {
        return Err(CheckError::Kind { name, kind }.into());
    }
    let have = found.link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if !interface.mac.is_empty() && !interface.mac.eq_ignore_ascii_case(&have) {
        return Err(CheckError::Mac { name, want: interface.mac.clone(), have }.into());
    }
    Ok(found)
}

/// The host's end is in the result, is the other end of the container's, and a port of the bridge.
fn check_port(host: &mut Links, prev: &CniResult, bridge: &Found, container: &Found) -> Result<Found, Failure> {
    let alone = || CheckError::NoPeer(container.link.name);
    let peer = host.find_index(container.peer.ok_or_else(alone)?)?.ok_or_else(alone)?;
    if !peer.is("veth") || peer.peer != Some(container.link.index) {
        return Err(alone().into());
    }
    there(host, recorded(prev, peer.link.name, "")?, "veth")?;
    if peer.link.master == Some(bridge.link.index) {
        return Ok(peer);
    }
    Err(CheckError::NotAPort { port: peer.link.name, bridge: bridge.link.name }.into())
}

fn check_addresses(pod: &mut Links, prev: &CniResult, container: &Found) -> Result<(), Failure> {
    for family in Family::ALL {
        let wanted: Vec<_> =
            prev.ips.iter().map(|ip| ip.address).filter(|net| Family::of_net(*net) == family).collect();
        if wanted.is_empty() {
            continue;
        }
        let have = pod.addresses(container, family)?;
        if let Some(address) = wanted.into_iter().find(|address| !have.contains(address)) {
            return Err(CheckError::Address { address, name: container.link.name }.into());
        }
    }
    Ok(())
}

fn check_routes(pod: &mut Links, prev: &CniResult, container: &Found) -> Result<(), Failure> {
    let in_main = |table: Option<u32>| table.is_none_or(|table| table == 254);
    for family in Family::ALL {
        let of_family = |destination: IpNet| Family::of_net(destination) == family;
        let wanted: Vec<_> = prev.routes.iter().filter(|route| of_family(route.dst) && in_main(route.table)).collect();
        if wanted.is_empty() {
            continue;
        }
        let have = pod.routes(container, family)?;
        let found = |dst, gw: Option<_>| have.iter().any(|(to, via)| *to == dst && (gw.is_none() || *via == gw));
        if let Some(route) = wanted.into_iter().find(|route| !found(route.dst.trunc(), route.gw)) {
            return Err(CheckError::Route { destination: route.dst, name: container.link.name }.into());
        }
    }
    Ok(())
}

/// Something is not as the ADD left it.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error("bridge: prevResult has no interface {name} in {place}")]
    NotInResult { name: LinkName, place: String },
    #[error("bridge: interface {0} not found")]
    Gone(String),
    #[error("bridge: interface {name} is not of type {kind}")]
    Kind { name: LinkName, kind: &'static str },
    #[error("bridge: interface {name} has MAC {have}, prevResult says {want}")]
    Mac { name: LinkName, want: String, have: String },
    #[error("bridge: promiscuous mode of {0} is not what the configuration says")]
    Promisc(LinkName),
    #[error("bridge: the other end of {0} was not found on the host")]
    NoPeer(LinkName),
    #[error("bridge: {port} is not a port of {bridge}")]
    NotAPort { port: LinkName, bridge: LinkName },
    #[error("bridge: address {address} not found on {name} in the container")]
    Address { address: IpNet, name: LinkName },
    #[error("bridge: route {destination} not found through {name} in the container")]
    Route { destination: IpNet, name: LinkName },
}

impl Explain for CheckError {
    fn code(&self) -> u32 {
        code::OTHER
    }

    fn hint(&self) -> String {
        "someone has changed the container's network since it was added: recreate the container".into()
    }
}
