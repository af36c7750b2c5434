//! Netlink: one blocking socket that batches, and the few messages that flannel needs.
//!
//! [`Socket`] sends [`Request`]s and matches answers by sequence number; [`NoticeSocket`] listens. The modules [`link`],
//! [`address`], [`neigh`], [`route`], [`nexthop`] and [`vlan`] build requests of rtnetlink and read what it reports; they hold no state
//! and take no decision. Netfilter's messages are built elsewhere, on the same socket.
//!
//! A socket works in the network namespace of the thread that opened it, so whoever needs another namespace opens one
//! there.

pub mod address;
mod error;
pub mod link;
mod message;
pub mod neigh;
pub mod nexthop;
pub mod route;
mod socket;
mod uapi;
pub mod vlan;

pub use error::Error;
pub use message::{Attributes, Message, Messages, Payload, Request, Value};
pub(crate) use message::{octets, padded};
pub use socket::{BATCH, Failure, NoticeSocket, Protocol, Socket};

use flannel_core::addr::Family;

/// The kernel's number of an address family.
pub fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

/// The address family of a number; none for families other than IPv4 and IPv6.
pub fn family_of(number: u8) -> Option<Family> {
    Family::ALL.into_iter().find(|family| family_number(*family) == number)
}

/// Flags of a request that makes an object or replaces the one in its place.
const SET: u16 = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
