//! A pod's link: what the plugins ask of a bridge, a veth pair, and the addresses and routes inside a pod.
//!
//! Surface: [`Links`] (a namespace's links), [`within`] (work inside another namespace), [`set_conf`] (a link's sysctls). What
//! can go together goes in one batch: a pair is born with its names, MACs, MTU, bridge and namespace. Nothing is decided here.

mod pairs;
mod retired;
mod settle;
mod vlan;

use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsFd;

use flannel_core::addr::{Family, LinkName, Mac, Mtu};
use ipnet::IpNet;

use crate::namespace::{NamespaceError, NetNamespace};
use crate::netlink::link::{self, Kind, Settings};
use crate::netlink::{Error, Failure, Message, Payload, Protocol, Request, Socket, address, family_number, route};
use crate::sysctl::{self, SysctlError};

pub use crate::netlink::vlan::Entry as VlanEntry;
pub use pairs::LivePair;
pub use retired::Retired;
pub use settle::{SettleError, settle};
pub use vlan::{PortVlans, VlanFilter, VlanId};

/// Does the work in another network namespace and comes back. The calling thread moves there for that time: meant for
/// programs with one thread.
pub fn within<T>(netns: &NetNamespace, work: impl FnOnce() -> T) -> Result<T, NamespaceError> {
    let home = NetNamespace::current()?;
    netns.enter()?;
    let result = work();
    home.enter()?;
    Ok(result)
}

/// Sets `net.ipv4.conf.<link>.<key>` or `net.ipv6.conf…` in this thread's network namespace.
pub fn set_conf(family: Family, link: LinkName, key: &str, value: &str) -> Result<(), SysctlError> {
    let tree = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    sysctl::set_anew(&format!("net/{tree}/conf/{link}/{key}"), value)
}

/// Lets packets of a family pass from one link to another, unless they may already: setting it again would make the kernel
/// go through all links.
pub fn enable_forwarding(family: Family) -> Result<(), SysctlError> {
    match family {
        Family::V4 => sysctl::set("net/ipv4/ip_forward", "1"),
        Family::V6 => sysctl::set("net/ipv6/conf/all/forwarding", "1"),
    }
}

/// A link as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub link: link::Report,
    /// Index, in its own namespace, of the other end of a veth (`IFLA_LINK`).
    pub peer: Option<u32>,
    /// The number that this namespace has given the one where that is (`IFLA_LINK_NETNSID`).
    pub peer_netns: Option<u32>,
    /// What it is called beside its name (`IFLA_IFALIAS`); empty for most.
    pub alias: Box<str>,
    /// Of a bridge, what it does about VLANs; none where the kernel cannot filter by them.
    pub filter: Option<VlanFilter>,
}

impl Found {
    fn read(message: Message<'_>) -> Option<Self> {
        /// `IFLA_LINK`, `IFLA_LINKINFO`, `IFLA_IFALIAS` and `IFLA_LINK_NETNSID` of `linux/if_link.h`, `IFLA_INFO_DATA` inside the second.
        const LINK: u16 = 5;
        const LINKINFO: u16 = 18;
        const ALIAS: u16 = 20;
        const LINK_NETNSID: u16 = 37;
        const INFO_DATA: u16 = 2;
        let link = link::Report::read(message)?;
        let (_, attributes) = message.split(16)?;
        let number = |kind| attributes.find(kind)?.u32();
        let alias = attributes.find(ALIAS).and_then(Payload::text).unwrap_or_default();
        let filter = (&*link.kind == "bridge").then(|| VlanFilter::read(attributes.inside(LINKINFO).inside(INFO_DATA)));
        let (peer, peer_netns) = (number(LINK), number(LINK_NETNSID));
        Some(Self { link, peer, peer_netns, alias: alias.into(), filter: filter.flatten() })
    }

    /// Whether it is of a kind, as `ip link show type KIND` has it.
    pub fn is(&self, kind: &str) -> bool {
        &*self.link.kind == kind
    }

    /// Whether it receives all frames.
    pub fn is_promisc(&self) -> bool {
        self.link.flags & libc::IFF_PROMISC as u32 != 0
    }
}

/// A veth pair to be made: one end on the host, a port of a bridge; the other in the pod from its birth.
#[derive(Debug)]
pub struct Pair<'a> {
    /// Name of the host's end.
    pub host: LinkName,
    /// MAC of the host's end.
    pub host_mac: Mac,
    /// Name of the pod's end.
    pub pod: LinkName,
    /// MAC of the pod's end.
    pub pod_mac: Mac,
    /// MTU of both; the kernel's default when none.
    pub mtu: Option<Mtu>,
    /// The pod.
    pub netns: &'a NetNamespace,
    /// Index of the bridge.
    pub bridge: u32,
    /// The bridge sends a pod's packets back to it.
    pub hairpin: bool,
    /// The bridge passes nothing between this port and others like it.
    pub isolated: bool,
}

/// A route inside a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRoute {
    /// Destination.
    pub destination: IpNet,
    /// Next hop; none means that the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// MTU along the route in bytes; 0 for the link's.
    pub mtu: u32,
    /// Maximum segment size to announce in bytes; 0 for the kernel's choice.
    pub advmss: u32,
    /// Metric; 0 for the kernel's default.
    pub priority: u32,
    /// Table; main when none.
    pub table: Option<u32>,
    /// `RT_SCOPE_*`; global when none.
    pub scope: Option<u8>,
}

impl PodRoute {
    /// The request that adds the route through a link, beside others to the same destination as `ip route append` does.
    fn add(&self, index: u32) -> Request {
        let family = Family::of_net(self.destination);
        let table = self.table.unwrap_or(libc::RT_TABLE_MAIN.into());
        let scope = self.scope.unwrap_or(libc::RT_SCOPE_UNIVERSE);
        let kind = libc::RTN_UNICAST;
        let short_table = u8::try_from(table).unwrap_or(libc::RT_TABLE_COMPAT);
        let (length, protocol) = (self.destination.prefix_len(), libc::RTPROT_BOOT);
        let header = [family_number(family), length, 0, 0, short_table, protocol, scope, kind, 0, 0, 0, 0];
        let some = |number: u32| (number != 0).then_some(number);
        Request::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE as u16)
            .body(&header)
            .attr(libc::RTA_DST, self.destination.network())
            .maybe(libc::RTA_GATEWAY, self.gateway)
            .attr(libc::RTA_OIF, index)
            .maybe(libc::RTA_PRIORITY, some(self.priority))
            .attr(libc::RTA_TABLE, table)
            .nest(libc::RTA_METRICS, |metrics| {
                metrics.maybe(RTAX_MTU, some(self.mtu)).maybe(RTAX_ADVMSS, some(self.advmss))
            })
    }
}

/// `RTAX_MTU` and `RTAX_ADVMSS` of `linux/rtnetlink.h`.
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

impl fmt::Display for PodRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {}", self.destination)?;
        self.gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))
    }
}

/// The links of one network namespace.
#[derive(Debug)]
pub struct Links {
    socket: Socket,
}

impl Links {
    /// Those of this thread's namespace.
    pub fn here() -> Result<Self, LinkError> {
        Socket::open(Protocol::Route).map(|socket| Self { socket }).map_err(LinkError::new("open a netlink socket"))
    }

    /// The link of a name, if there is one.
    pub fn find(&mut self, name: LinkName) -> Result<Option<Found>, LinkError> {
        self.ask(&link::by_name(name), || format!("find link {name}"))
    }

    /// The link of an index, if there is one.
    pub fn find_index(&mut self, index: u32) -> Result<Option<Found>, LinkError> {
        self.ask(&link::by_index(index), || format!("find link {index}"))
    }

    fn ask(&mut self, request: &Request, action: impl FnOnce() -> String) -> Result<Option<Found>, LinkError> {
        match self.socket.ask(request, Found::read) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(LinkError::new(action())(error)),
        }
    }

    /// A link's addresses of one family.
    pub fn addresses(&mut self, found: &Found, family: Family) -> Result<Vec<IpNet>, LinkError> {
        let index = found.link.index;
        let read = |message: Message<'_>| address::Report::read(message).filter(|report| report.index == index);
        let reports = self.socket.dump(&address::list(family, Some(index)), read);
        let reports = reports.map_err(LinkError::new(format!("list addresses of {}", found.link.name)))?;
        Ok(reports.into_iter().map(|report| report.net).collect())
    }

    /// Whether anything hangs on a bridge: a port that does not lead back into this namespace.
    pub fn has_ports(&mut self, bridge: &Found) -> Result<bool, LinkError> {
        Ok(!self.ports(bridge)?.is_empty())
    }

    /// What hangs on a bridge: its ports but those that lead back into this namespace.
    pub fn ports(&mut self, bridge: &Found) -> Result<Vec<LinkName>, LinkError> {
        let ports = self.socket.dump(&link::ports(bridge.link.index), Found::read);
        let ports = ports.map_err(LinkError::new(format!("list ports of {}", bridge.link.name)))?;
        let leads_back = |port: &Found| port.is("veth") && port.peer_netns.is_none();
        let hangs = |port: &Found| port.link.master == Some(bridge.link.index) && !leads_back(port);
        Ok(ports.into_iter().filter(hangs).map(|port| port.link.name).collect())
    }

    /// The routes of one family in table main through a link: destinations with their gateways.
    pub fn routes(&mut self, found: &Found, family: Family) -> Result<Vec<(IpNet, Option<IpAddr>)>, LinkError> {
        let index = found.link.index;
        let filter = route::Filter { index: Some(index), ..route::Filter::default() };
        let reports = self.socket.dump(&route::list(family, filter), route::Report::read);
        let reports = reports.map_err(LinkError::new(format!("list routes through {}", found.link.name)))?;
        let hops = |report: &route::Report| report.hops.clone().into_iter().filter(|hop| hop.index == index);
        Ok(reports.iter().flat_map(|route| hops(route).map(|hop| (route.destination, hop.gateway))).collect())
    }

    /// Makes a bridge that is up. Its MAC stays what it is here, whatever ports come and go. One that exists is left alone. Of a kernel
    /// that cannot filter by VLAN, `vlan_filtering` is [`LinkError::is_unsupported`], or what was made does not filter.
    pub fn create_bridge(
        &mut self,
        name: LinkName,
        mac: Mac,
        mtu: Option<Mtu>,
        promisc: bool,
        vlan_filtering: bool,
    ) -> Result<(), LinkError> {
        let settings = Settings {
            name: Some(name),
            mac: Some(mac),
            mtu,
            up: Some(true),
            promisc: promisc.then_some(true),
            ..Settings::default()
        };
        match self.socket.tell(&link::create(&settings, &Kind::Bridge { vlan_filtering })) {
            Err(error) if !error.is_present() => Err(LinkError::new(format!("create bridge {name}"))(error)),
            _ => Ok(()),
        }
    }

    /// Sets a link up or down, and with `promisc` to receive all frames.
    pub fn set_up(&mut self, found: &Found, up: bool, promisc: bool) -> Result<(), LinkError> {
        let settings = Settings { up: Some(up), promisc: promisc.then_some(true), ..Settings::default() };
        let (name, state) = (found.link.name, if up { "up" } else { "down" });
        let told = self.socket.tell(&link::change(found.link.index, &settings));
        told.map_err(LinkError::new(format!("set link {name} {state}")))
    }

    /// Gives a bridge an address that is usable at once, takes `instead_of` from it, and pins its MAC, which would otherwise
    /// change with its ports.
    pub fn set_bridge_address(&mut self, bridge: &Found, net: IpNet, instead_of: &[IpNet]) -> Result<(), LinkError> {
        let (index, name) = (bridge.link.index, bridge.link.name);
        let mut requests: Vec<_> = instead_of.iter().map(|old| address::delete(index, *old)).collect();
        requests.push(address::set_with_broadcast(index, net));
        requests.push(link::change(index, &Settings { mac: bridge.link.mac, ..Settings::default() }));
        let failures = self.socket.batch(&requests, || ());
        let failed =
            failures.into_iter().find(|failure| failure.index >= instead_of.len() || !failure.error.is_absent());
        failed.map_or(Ok(()), |failure| Err(LinkError::new(format!("add address {net} to {name}"))(failure.error)))
    }

    /// Makes a pair: the host's end up, the pod's end still down.
    pub fn create_pair(&mut self, pair: &Pair<'_>) -> Result<(), LinkError> {
        let pod = Settings {
            name: Some(pair.pod),
            mac: Some(pair.pod_mac),
            mtu: pair.mtu,
            netns: Some(pair.netns.as_fd()),
            ..Settings::default()
        };
        let host = Settings {
            name: Some(pair.host),
            mac: Some(pair.host_mac),
            mtu: pair.mtu,
            up: Some(true),
            master: Some(pair.bridge),
            ..Settings::default()
        };
        let mut requests = vec![link::create(&host, &Kind::Veth(pod))];
        requests.extend((pair.hairpin || pair.isolated).then(|| set_port(pair)));
        let failure = self.socket.batch(&requests, || ()).into_iter().next();
        let Some(Failure { index, error }) = failure else { return Ok(()) };
        let action = if index == 0 { "create veth" } else { "set bridge port" };
        Err(LinkError::new(format!("{action} {} with peer {}", pair.host, pair.pod))(error))
    }

    /// Gives a link its addresses, sets it up so that it announces them, and adds routes through it. With `dad` the link's setting says
    /// whether IPv6 looks for duplicates first.
    pub fn configure(
        &mut self,
        found: &Found,
        addresses: &[IpNet],
        routes: &[PodRoute],
        dad: bool,
    ) -> Result<(), LinkError> {
        let (index, name) = (found.link.index, found.link.name);
        if !addresses.is_empty() {
            // A pod that nobody hears of until it speaks is no reason to have none.
            _ = self.socket.tell(&link::announce(index));
        }
        let mut requests: Vec<_> = addresses.iter().map(|net| add_address(index, *net, dad)).collect();
        requests.push(link::change(index, &Settings { up: Some(true), ..Settings::default() }));
        requests.extend(routes.iter().map(|route| route.add(index)));
        let failed = |failure: &Failure| failure.index <= addresses.len() || !failure.error.is_present();
        let Some(Failure { index, error }) = self.socket.batch(&requests, || ()).into_iter().find(failed) else {
            return Ok(());
        };
        let action = match index.checked_sub(addresses.len()) {
            None => format!("add address {} to {name}", addresses[index]),
            Some(0) => format!("set link {name} up"),
            Some(route) => format!("add {} dev {name}", routes[route - 1]),
        };
        Err(LinkError::new(action)(error))
    }

    /// Deletes a link, of a veth both ends. One that is gone is no error.
    pub fn delete(&mut self, found: &Found) -> Result<(), LinkError> {
        match self.socket.tell(&link::delete(found.link.index)) {
            Err(error) if !error.is_absent() => Err(LinkError::new(format!("delete link {}", found.link.name))(error)),
            _ => Ok(()),
        }
    }
}

/// Sets what a bridge keeps of a port: `IFLA_BRPORT_*` of `linux/if_link.h`, inside `IFLA_INFO_SLAVE_DATA`.
fn set_port(pair: &Pair<'_>) -> Request {
    const IFNAME: u16 = 3;
    const LINKINFO: u16 = 18;
    const SLAVE_KIND: u16 = 4;
    const SLAVE_DATA: u16 = 5;
    const MODE: u16 = 4;
    const ISOLATED: u16 = 33;
    Request::new(libc::RTM_NEWLINK, 0).body(&[0; 16]).attr(IFNAME, pair.host).nest(LINKINFO, |request| {
        request.attr(SLAVE_KIND, "bridge").nest(SLAVE_DATA, |request| {
            request.attr(MODE, u8::from(pair.hairpin)).attr(ISOLATED, u8::from(pair.isolated))
        })
    })
}

/// Adds an address that must not be there, with its broadcast address if it has one. Without `dad` it can be used at once: the link's
/// setting alone leaves it tentative until the kernel finds the time to look at that.
fn add_address(index: u32, net: IpNet, dad: bool) -> Request {
    let at_once = net.addr().is_ipv6() && !dad;
    let mut body = [family_number(Family::of_net(net)), net.prefix_len(), 0, 0, 0, 0, 0, 0];
    body[4..].copy_from_slice(&index.to_ne_bytes());
    let broadcast = match net {
        IpNet::V4(net) if net.prefix_len() < 31 => Some(IpAddr::V4(net.broadcast())),
        _ => None,
    };
    Request::new(libc::RTM_NEWADDR, (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16)
        .body(&body)
        .attr(libc::IFA_LOCAL, net.addr())
        .attr(libc::IFA_ADDRESS, net.addr())
        .maybe(libc::IFA_BROADCAST, broadcast)
        .maybe(libc::IFA_FLAGS, at_once.then_some(libc::IFA_F_NODAD))
}

/// A change of a link, or a question about one, that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {cause}")]
pub struct LinkError {
    action: String,
    cause: Error,
}

impl LinkError {
    fn new(action: impl Into<String>) -> impl FnOnce(Error) -> Self {
        move |cause| Self { action: action.into(), cause }
    }

    /// Something of that name is there already.
    pub fn is_present(&self) -> bool {
        self.cause.is_present()
    }

    /// The kernel has no such object or operation.
    pub fn is_unsupported(&self) -> bool {
        self.cause.is_unsupported()
    }

    /// The process may not do it.
    pub fn is_permission(&self) -> bool {
        matches!(self.cause.errno(), rustix::io::Errno::PERM | rustix::io::Errno::ACCESS)
    }
}
