//! Nexthop objects: `struct nhmsg` requests and reports.

use flannel_core::addr::Family;

use super::message::{Message, Request};
use super::route::{Hop, PROTOCOL};
use super::uapi::{nha, rt};
use super::{SET, family_number, family_of};

/// Bytes of `struct nhmsg`.
const HEADER: usize = 8;

fn header(family: u8, protocol: u8, flags: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = family;
    bytes[2] = protocol;
    bytes[4..].copy_from_slice(&flags.to_ne_bytes());
    bytes
}

/// Makes a nexthop object under an id, or replaces the one there.
pub fn set(id: u32, hop: &Hop) -> Request {
    let family = hop.gateway.map_or(Family::V4, Family::of);
    Request::new(rt::NEW_NEXTHOP, SET)
        .body(&header(family_number(family), PROTOCOL, if hop.onlink { rt::ONLINK } else { 0 }))
        .attr(nha::ID, id)
        .attr(nha::OIF, hop.index)
        .maybe(nha::GATEWAY, hop.gateway)
}

/// Removes a nexthop object and every route through it.
pub fn delete(id: u32) -> Request {
    Request::new(rt::DEL_NEXTHOP, 0).body(&header(0, 0, 0)).attr(nha::ID, id)
}

/// Asks for all nexthop objects.
pub fn list() -> Request {
    Request::new(rt::GET_NEXTHOP, 0).body(&header(0, 0, 0))
}

/// A nexthop object as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Its id.
    pub id: u32,
    /// `RTM_DELNEXTHOP`.
    pub gone: bool,
    /// Where it leads; none for groups and blackholes.
    pub hop: Option<Hop>,
}

impl Report {
    /// Reads a `RTM_NEWNEXTHOP` or `RTM_DELNEXTHOP` message.
    pub fn read(message: Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split(HEADER)?;
        if !matches!(message.kind, rt::NEW_NEXTHOP | rt::DEL_NEXTHOP) {
            return None;
        }
        let flags = u32::from_ne_bytes(header[4..].try_into().ok()?);
        let index =
            attributes.find(nha::OIF).and_then(super::message::Payload::u32).filter(|_| family_of(header[0]).is_some());
        Some(Self {
            id: attributes.find(nha::ID)?.u32()?,
            gone: message.kind == rt::DEL_NEXTHOP,
            hop: index.map(|index| Hop {
                index,
                gateway: attributes.find(nha::GATEWAY).and_then(super::message::Payload::address),
                onlink: flags & rt::ONLINK != 0,
            }),
        })
    }
}
