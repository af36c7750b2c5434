//! Connections that the kernel remembers: those of a published UDP port are forgotten when the port changes hands.
//!
//! Surface: [`forget`], of each [`End`]. UDP has no end of a connection that the kernel would notice, so a client that goes on
//! sending would go on reaching whom the port led to before. No program is run.

use std::net::IpAddr;

use flannel_core::addr::Family;
use flannel_core::rules::Protocol;

use crate::netlink::{Attributes, Error, Message, Payload, Protocol as Netlink, Request, Socket, family_number};

/// Bytes of `struct nfgenmsg` of `linux/netfilter/nfnetlink.h`.
const HEADER: usize = 4;

/// Numbers of `linux/netfilter/nfnetlink_conntrack.h`; `CTA_` cut.
mod attr {
    pub(super) const GET: u16 = 1;
    pub(super) const DELETE: u16 = 2;

    pub(super) const TUPLE_ORIGINAL: u16 = 1;
    pub(super) const ID: u16 = 12;
    pub(super) const ZONE: u16 = 18;
    pub(super) const FILTER: u16 = 25;
    pub(super) const FILTER_ORIGINAL_FLAGS: u16 = 1;

    pub(super) const TUPLE_IP: u16 = 1;
    pub(super) const TUPLE_PROTO: u16 = 2;
    pub(super) const IP_V4_DST: u16 = 2;
    pub(super) const IP_V6_DST: u16 = 4;
    pub(super) const PROTO_NUMBER: u16 = 1;
    pub(super) const PROTO_DST_PORT: u16 = 3;

    /// `CTA_FILTER_F_CTA_PROTO_NUM` of `net/netfilter/nf_conntrack_netlink.c`.
    pub(super) const BY_PROTO: u32 = 1 << 3;
}

/// A port that connections lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The address family.
    pub family: Family,
    /// The port.
    pub port: u16,
    /// The address; none for any.
    pub address: Option<IpAddr>,
}

/// Forgets the connections to any of these. The kernel goes through all it remembers to find them, which is done once a family.
pub fn forget(protocol: Protocol, ends: &[End]) -> Result<(), Error> {
    let of = |family| ends.iter().filter(move |end| end.family == family);
    for family in Family::ALL.into_iter().filter(|family| of(*family).next().is_some()) {
        let mut socket = Socket::open(Netlink::Netfilter)?;
        let concerned = |message: Message<'_>| {
            let (_, connection) = message.split(HEADER)?;
            of(family).any(|end| end.is_of(connection, protocol)).then(|| deletion(family, connection))?
        };
        for request in socket.dump(&listing(family, protocol), concerned)? {
            match socket.tell(&request) {
                Err(error) if !error.is_absent() => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Asks for the connections of a protocol. Kernels before 5.8 do not know the filter and list all of the family.
fn listing(family: Family, protocol: Protocol) -> Request {
    message(attr::GET, family)
        .nest(attr::TUPLE_ORIGINAL, |tuple| {
            tuple.nest(attr::TUPLE_PROTO, |proto| proto.attr(attr::PROTO_NUMBER, protocol.number()))
        })
        .nest(attr::FILTER, |filter| filter.attr(attr::FILTER_ORIGINAL_FLAGS, attr::BY_PROTO))
}

fn message(kind: u16, family: Family) -> Request {
    Request::new((libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | kind, 0).body(&[family_number(family), 0, 0, 0])
}

impl End {
    fn is_of(self, connection: Attributes<'_>, protocol: Protocol) -> bool {
        let tuple = connection.inside(attr::TUPLE_ORIGINAL);
        let (proto, ip) = (tuple.inside(attr::TUPLE_PROTO), tuple.inside(attr::TUPLE_IP));
        let to = || ip.find(attr::IP_V4_DST).or(ip.find(attr::IP_V6_DST)).and_then(Payload::address);
        proto.find(attr::PROTO_NUMBER).and_then(Payload::u8) == Some(protocol.number())
            && proto.find(attr::PROTO_DST_PORT).and_then(Payload::be16) == Some(self.port)
            && self.address.is_none_or(|address| to() == Some(address))
    }
}

/// The request that forgets a connection: its number keeps a younger one with the same ends alive.
fn deletion(family: Family, connection: Attributes<'_>) -> Option<Request> {
    let bytes = |kind| connection.find(kind).map(|Payload(bytes)| bytes);
    let tuple = bytes(attr::TUPLE_ORIGINAL)?;
    let request = message(attr::DELETE, family).nest(attr::TUPLE_ORIGINAL, |nest| nest.body(tuple));
    Some(request.maybe(attr::ZONE, bytes(attr::ZONE)).maybe(attr::ID, bytes(attr::ID)))
}
