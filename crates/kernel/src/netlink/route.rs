//! Routes: `struct rtmsg` requests and reports.

use std::net::IpAddr;

use flannel_core::addr::Family;
use ipnet::IpNet;

use super::message::{Attributes, Message, Request};
use super::uapi::rt;
use super::{SET, family_number, family_of};

/// Bytes of `struct rtmsg`.
const HEADER: usize = 12;
/// Table main as a byte of the header.
const MAIN: u8 = libc::RT_TABLE_MAIN;

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Through a link.
    Link(Hop),
    /// Through a nexthop object.
    Object(u32),
    /// Nowhere, silently.
    Blackhole,
}

/// A next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// The link's index.
    pub index: u32,
    /// The gateway; none means that the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The gateway is on the link whatever the addresses say.
    pub onlink: bool,
}

/// A route's protocol (`RTPROT_*`) when flannel makes it.
pub const PROTOCOL: u8 = libc::RTPROT_BOOT;

/// `struct rtmsg` of a route in table main.
fn header(destination: IpNet, protocol: u8, kind: u8, scope: u8, flags: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = family_number(Family::of_net(destination));
    bytes[1] = destination.prefix_len();
    bytes[4..8].copy_from_slice(&[MAIN, protocol, scope, kind]);
    bytes[8..].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

/// The metric as an attribute: an IPv4 route of metric 0 carries none.
fn priority(metric: u32) -> Option<u32> {
    (metric != 0).then_some(metric)
}

/// Makes a route of protocol `boot` in table main or replaces the one with its destination and metric.
pub fn set(destination: IpNet, metric: u32, target: Target) -> Request {
    let (kind, scope, flags) = match target {
        Target::Link(hop) => (libc::RTN_UNICAST, scope(destination, &hop), if hop.onlink { rt::ONLINK } else { 0 }),
        Target::Object(_) => (libc::RTN_UNICAST, libc::RT_SCOPE_UNIVERSE, 0),
        Target::Blackhole => (libc::RTN_BLACKHOLE, libc::RT_SCOPE_UNIVERSE, 0),
    };
    let request = Request::new(libc::RTM_NEWROUTE, SET)
        .body(&header(destination, PROTOCOL, kind, scope, flags))
        .attr(libc::RTA_DST, destination.network())
        .maybe(libc::RTA_PRIORITY, priority(metric));
    with_target(request, target)
}

/// Removes a route; the target must be the one it has, none removes whichever is there.
pub fn delete(destination: IpNet, metric: u32, target: Option<Target>) -> Request {
    let kind = match target {
        Some(Target::Blackhole) => libc::RTN_BLACKHOLE,
        Some(_) => libc::RTN_UNICAST,
        None => libc::RTN_UNSPEC,
    };
    let request = Request::new(libc::RTM_DELROUTE, 0)
        .body(&header(destination, 0, kind, libc::RT_SCOPE_NOWHERE, 0))
        .attr(libc::RTA_DST, destination.network())
        .maybe(libc::RTA_PRIORITY, priority(metric));
    match target {
        Some(target) => with_target(request, target),
        None => request,
    }
}

/// IPv4 routes without a gateway are of scope link; IPv6 knows no scopes of routes.
fn scope(destination: IpNet, hop: &Hop) -> u8 {
    if destination.addr().is_ipv4() && hop.gateway.is_none() { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE }
}

fn with_target(request: Request, target: Target) -> Request {
    match target {
        Target::Link(hop) => request.maybe(libc::RTA_GATEWAY, hop.gateway).attr(libc::RTA_OIF, hop.index),
        Target::Object(id) => request.attr(rt::NH_ID, id),
        Target::Blackhole => request,
    }
}

/// Which routes of table main to list; the kernel leaves the others out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only those through this link.
    pub index: Option<u32>,
    /// Only those of this protocol (`RTPROT_*`).
    pub protocol: Option<u8>,
    /// Only those of this kind (`RTN_*`).
    pub kind: Option<u8>,
}

/// Asks for the routes of one family in table main.
pub fn list(family: Family, filter: Filter) -> Request {
    let mut body = header(
        IpNet::from(family.unspecified()),
        filter.protocol.unwrap_or_default(),
        filter.kind.unwrap_or_default(),
        0,
        0,
    );
    body[1] = 0;
    Request::new(libc::RTM_GETROUTE, 0).body(&body).maybe(libc::RTA_OIF, filter.index)
}

/// Asks for the route that a packet to an address would take, as `ip route get` does.
pub fn lookup(to: IpAddr) -> Request {
    let family = Family::of(to);
    let mut body = [0; HEADER];
    body[0] = family_number(family);
    body[1] = family.bits();
    Request::new(libc::RTM_GETROUTE, 0).body(&body).attr(libc::RTA_DST, to)
}

/// A packet of which is asked where it would be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Its destination.
    pub to: IpAddr,
    /// Its source; without one the kernel chooses, as for a packet made here.
    pub from: Option<IpAddr>,
    /// The index of the link it comes in by; without one it is made here.
    pub input: Option<u32>,
    /// Answer with the entry of the table that decides, as `ip route get fibmatch` does, not with what it comes to.
    pub entry: bool,
}

/// Asks for the route that a packet would take, as `ip route get` does. Where there is none the kernel answers with the
/// error that the packet would meet (`ENETUNREACH`, and of routes that refuse `EHOSTUNREACH`, `EACCES` or `EINVAL`).
pub fn question(asked: Question) -> Request {
    let family = Family::of(asked.to);
    let mut body = [0; HEADER];
    body[0] = family_number(family);
    body[1] = family.bits();
    body[2] = asked.from.map_or(0, |_| family.bits());
    body[8..].copy_from_slice(&(if asked.entry { rt::FIB_MATCH } else { 0 }).to_ne_bytes());
    Request::new(libc::RTM_GETROUTE, 0)
        .body(&body)
        .attr(libc::RTA_DST, asked.to)
        .maybe(libc::RTA_SRC, asked.from)
        .maybe(libc::RTA_IIF, asked.input)
}

/// A route as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Destination.
    pub destination: IpNet,
    /// `RTA_PRIORITY`.
    pub metric: u32,
    /// The table's number.
    pub table: u32,
    /// `RTPROT_*`.
    pub protocol: u8,
    /// `RTN_*`.
    pub kind: u8,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// Type of service; routes that have one are none of flannel's.
    pub tos: u8,
    /// A copy in a cache, not a route.
    pub cloned: bool,
    /// Its next hops; a route through a nexthop object may show none.
    pub hops: Vec<Hop>,
    /// The nexthop object it goes through.
    pub object: Option<u32>,
    /// The source address it prefers.
    pub source: Option<IpAddr>,
    /// The path MTU that it knows, where that is less than the link's.
    pub mtu: Option<u32>,
}

impl Report {
    /// A unicast or blackhole route of table main that flannel could have made or must know of.
    pub fn is_main(&self) -> bool {
        self.table == u32::from(MAIN) && self.tos == 0 && !self.cloned
    }

    /// To the link-local addresses that every IPv6 link has.
    pub fn is_link_local(&self) -> bool {
        matches!(self.destination, IpNet::V6(net) if net.addr().is_unicast_link_local())
    }

    /// Reads a `RTM_NEWROUTE` or `RTM_DELROUTE` message.
    pub fn read(message: Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split(HEADER)?;
        if !matches!(message.kind, libc::RTM_NEWROUTE | libc::RTM_DELROUTE) {
            return None;
        }
        let family = family_of(header[0])?;
        let address = |kind| attributes.find(kind).and_then(super::message::Payload::address);
        let number = |kind| attributes.find(kind).and_then(super::message::Payload::u32);
        let flags = u32::from_ne_bytes(header[8..].try_into().ok()?);
        Some(Self {
            destination: IpNet::new(address(libc::RTA_DST).unwrap_or(family.unspecified()), header[1]).ok()?,
            metric: number(libc::RTA_PRIORITY).unwrap_or_default(),
            table: number(libc::RTA_TABLE).unwrap_or(header[4].into()),
            protocol: header[5],
            kind: header[7],
            scope: header[6],
            tos: header[3],
            cloned: flags & libc::RTM_F_CLONED != 0,
            hops: read_hops(attributes, flags),
            object: number(rt::NH_ID),
            source: address(libc::RTA_PREFSRC),
            mtu: attributes.inside(libc::RTA_METRICS).find(rt::METRIC_MTU).and_then(super::message::Payload::u32),
        })
    }
}

fn read_hops(attributes: Attributes<'_>, flags: u32) -> Vec<Hop> {
    if let Some(several) = attributes.find(libc::RTA_MULTIPATH) {
        return read_multipath(several.0);
    }
    let index = attributes.find(libc::RTA_OIF).and_then(super::message::Payload::u32);
    index
        .map(|index| Hop { index, gateway: gateway(attributes), onlink: flags & rt::ONLINK != 0 })
        .into_iter()
        .collect()
}

/// An array of `struct rtnexthop` (length, flags, hops, index), each followed by its attributes.
fn read_multipath(mut bytes: &[u8]) -> Vec<Hop> {
    let mut hops = Vec::new();
    while let Some(head) = bytes.get(..8) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let Some(attributes) = bytes.get(8..length) else { break };
        hops.push(Hop {
            index: u32::from_ne_bytes([head[4], head[5], head[6], head[7]]),
            gateway: gateway(Attributes(attributes)),
            onlink: u32::from(head[2]) & rt::ONLINK != 0,
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

/// The gateway; one of the other family (`RTA_VIA`: family as 16 bits, then the address) counts too.
fn gateway(attributes: Attributes<'_>) -> Option<IpAddr> {
    attributes.find(libc::RTA_GATEWAY).and_then(super::message::Payload::address).or_else(|| {
        let via = attributes.find(libc::RTA_VIA)?;
        super::Payload(via.0.get(2..)?).address()
    })
}
