//! The cables of the lab: devices, addresses and routes that are there before any flannel, and a look at what there is.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsFd;

use flannel_core::addr::{Dual, Family, LinkName, Mtu};
use flannel_kernel::netlink::link::{Kind, Settings};
use flannel_kernel::netlink::route::{Hop, Target};
use flannel_kernel::netlink::{Error, Protocol, Request, Socket, address, family_number, link, route};
use ipnet::IpNet;

use crate::error::LabError;
use crate::place::Place;

/// The routing table of the router for what comes from outside to pods.
const RETURN_TABLE: u8 = 100;

/// One thing to lay.
#[derive(Debug, Clone)]
pub(crate) enum Wire {
    /// Sets a device up, or down.
    Up(String, bool),
    /// Makes a bridge that is up.
    Bridge(String),
    /// Makes a device a port of a bridge.
    Port(String, String),
    /// Puts an address on a device.
    Address(String, IpNet),
    /// Takes an address from a device.
    NoAddress(String, IpNet),
    /// The default route through a device, by a gateway.
    DefaultRoute(&'static str, IpAddr),
    /// A route to pods by a gateway, for what return rules name and only for that.
    ReturnRoute(IpNet, IpAddr),
    /// Lets what comes in by a device be routed by the return routes first.
    ReturnRule(String, Family),
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up(device, up) => write!(f, "ip link set {device} {}", if *up { "up" } else { "down" }),
            Self::Bridge(device) => write!(f, "ip link add {device} type bridge"),
            Self::Port(device, bridge) => write!(f, "ip link set {device} master {bridge}"),
            Self::Address(device, net) => write!(f, "ip address add {net} dev {device}"),
            Self::NoAddress(device, net) => write!(f, "ip address delete {net} dev {device}"),
            Self::DefaultRoute(device, gateway) => write!(f, "ip route replace default via {gateway} dev {device}"),
            Self::ReturnRoute(to, via) => write!(f, "ip route replace {to} via {via} table {RETURN_TABLE}"),
            Self::ReturnRule(device, _) => write!(f, "ip rule add iif {device} lookup {RETURN_TABLE}"),
        }
    }
}

/// Lays all of it at a place, in order.
pub(crate) fn lay(place: &Place, wires: &[Wire]) -> Result<(), LabError> {
    let mut socket = open(place)?;
    wires.iter().try_for_each(|wire| {
        let done = request(&mut socket, wire).and_then(|request| socket.tell(&request));
        done.map_err(|error| failed(place, &format!("do `{wire}`"), &error))
    })
}

/// A route socket at a place.
pub(crate) fn open(place: &Place) -> Result<Socket, LabError> {
    let socket = place.inside(|| Socket::open(Protocol::Route))?;
    socket.map_err(|error| failed(place, "open a netlink socket", &error))
}

fn failed(place: &Place, action: &str, error: &Error) -> LabError {
    LabError::Kernel { action: format!("{action} on {}", place.name()), cause: error.to_string() }
}

fn request(socket: &mut Socket, wire: &Wire) -> Result<Request, Error> {
    Ok(match wire {
        Wire::Up(device, up) => {
            link::change(index(socket, device)?, &Settings { up: Some(*up), ..Settings::default() })
        }
        Wire::Bridge(device) => {
            let settings = Settings { name: Some(name(device)?), up: Some(true), ..Settings::default() };
            link::create(&settings, &Kind::Bridge { vlan_filtering: false })
        }
        Wire::Port(device, bridge) => {
            let master = Some(index(socket, bridge)?);
            link::change(index(socket, device)?, &Settings { master, ..Settings::default() })
        }
        Wire::Address(device, net) => address::set_with_broadcast(index(socket, device)?, *net),
        Wire::NoAddress(device, net) => address::delete(index(socket, device)?, *net),
        Wire::DefaultRoute(device, gateway) => default_route(index(socket, device)?, *gateway),
        Wire::ReturnRoute(to, via) => return_route(*to, *via),
        Wire::ReturnRule(device, family) => return_rule(device, *family),
    })
}

fn default_route(index: u32, gateway: IpAddr) -> Request {
    let family = Family::of(gateway);
    let everywhere = IpNet::new_assert(family.unspecified(), 0);
    let metric = flannel_core::state::Route::metric(family);
    route::set(everywhere, metric, Target::Link(Hop { index, gateway: Some(gateway), onlink: false }))
}

/// `struct rtmsg` and, of the same shape, `struct fib_rule_hdr` (`linux/rtnetlink.h`, `linux/fib_rules.h`).
fn header(family: Family, length: u8, protocol: u8, kind: u8) -> [u8; 12] {
    [family_number(family), length, 0, 0, RETURN_TABLE, protocol, 0, kind, 0, 0, 0, 0]
}

/// `NLM_F_REPLACE | NLM_F_CREATE`, `NLM_F_EXCL | NLM_F_CREATE` of `linux/netlink.h`.
const REPLACE: u16 = 0x500;
const CREATE: u16 = 0x600;

fn return_route(to: IpNet, via: IpAddr) -> Request {
    /// `RTM_NEWROUTE`, `RTN_UNICAST`, `RTA_DST` and `RTA_GATEWAY` of `linux/rtnetlink.h`.
    const NEW_ROUTE: u16 = 24;
    const UNICAST: u8 = 1;
    const DESTINATION: u16 = 1;
    const GATEWAY: u16 = 5;
    Request::new(NEW_ROUTE, REPLACE)
        .body(&header(Family::of_net(to), to.prefix_len(), route::PROTOCOL, UNICAST))
        .attr(DESTINATION, to.network())
        .attr(GATEWAY, via)
}

fn return_rule(device: &str, family: Family) -> Request {
    /// `RTM_NEWRULE` of `linux/rtnetlink.h`, `FR_ACT_TO_TBL` and `FRA_IIFNAME` of `linux/fib_rules.h`.
    const NEW_RULE: u16 = 32;
    const TO_TABLE: u8 = 1;
    const INPUT_DEVICE: u16 = 3;
    Request::new(NEW_RULE, CREATE).body(&header(family, 0, 0, TO_TABLE)).attr(INPUT_DEVICE, device)
}

fn name(device: &str) -> Result<LinkName, Error> {
    device.parse().map_err(|_| Error::new(rustix::io::Errno::INVAL, "not a device name"))
}

fn index(socket: &mut Socket, device: &str) -> Result<u32, Error> {
    let found = socket.ask(&link::by_name(name(device)?), link::Report::read)?;
    found.first().map(|link| link.index).ok_or_else(|| Error::new(rustix::io::Errno::NODEV, device))
}

/// A virtual cable between two places; both ends are up. (An end cannot be made up: it would have no other end yet.)
pub(crate) fn cable(one: &Place, device: &'static str, other: &Place, peer: &str) -> Result<(), LabError> {
    let make = |socket: &mut Socket| {
        let other_end = Settings { name: Some(name(peer)?), netns: Some(other.net().as_fd()), ..Settings::default() };
        let settings = Settings { name: Some(name(device)?), ..Settings::default() };
        socket.tell(&link::create(&settings, &Kind::Veth(other_end)))
    };
    make(&mut open(one)?).map_err(|error| failed(one, &format!("lay a cable {device} to {}", other.name()), &error))?;
    lay(one, &[Wire::Up(device.to_owned(), true)])?;
    lay(other, &[Wire::Up(peer.to_owned(), true)])
}

/// The first global address of each family on a device.
pub(crate) fn addresses(place: &Place, device: &str) -> Result<Dual<IpAddr>, LabError> {
    let look = |socket: &mut Socket| {
        let index = index(socket, device)?;
        let mut found = Vec::new();
        for family in Family::ALL {
            found.extend(socket.dump(&address::list(family, Some(index)), address::Report::read)?);
        }
        Ok(found.into_iter().filter(move |report| report.index == index && report.is_global()).map(|report| report.net))
    };
    let nets =
        look(&mut open(place)?).map_err(|error| failed(place, &format!("read the addresses of {device}"), &error))?;
    Ok(Dual::of_nets(nets).map(|_, net| net.addr()))
}

/// A network device and what one wants to know of it at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: LinkName,
    /// Those of global scope.
    pub(crate) addresses: Vec<IpNet>,
    /// Its kind, of a VXLAN device with VNI and port.
    pub(crate) kind: String,
    pub(crate) mtu: Mtu,
    pub(crate) up: bool,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        let down = if self.up { "" } else { "  DOWN" };
        let Self { name, kind, mtu, .. } = self;
        write!(f, "{:<12} {}  ({kind}, mtu {mtu}){down}", name.as_str(), addresses.join("  "))
    }
}

/// The devices at a place. Loopback and the ports of bridges are left out.
pub(crate) fn devices(place: &Place) -> Result<Vec<Device>, LabError> {
    let look = |socket: &mut Socket| {
        let links = socket.dump(&link::list(), link::Report::read)?;
        let mut addresses = Vec::new();
        for family in Family::ALL {
            addresses.extend(socket.dump(&address::list(family, None), address::Report::read)?);
        }
        let shown = links.iter().filter(|link| link.name.as_str() != "lo" && !link.bridge_port);
        Ok(shown.map(|link| describe(link, &addresses)).collect())
    };
    look(&mut open(place)?).map_err(|error| failed(place, "list devices", &error))
}

fn describe(link: &link::Report, addresses: &[address::Report]) -> Device {
    let own = addresses.iter().filter(|address| address.index == link.index && address.is_global());
    let kind = match &link.vxlan {
        Some((vxlan, _)) => format!("vxlan {} port {}", vxlan.vni, vxlan.port),
        None => link.kind.to_string(),
    };
    let addresses = own.map(|address| address.net).collect();
    Device { name: link.name, addresses, kind, mtu: link.mtu, up: link.is_up() }
}
