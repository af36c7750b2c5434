//! Addresses of links: `struct ifaddrmsg` requests and reports.

use flannel_core::addr::Family;
use ipnet::IpNet;

use super::message::{Message, Request};
use super::{SET, family_number, family_of};

/// Bytes of `struct ifaddrmsg`.
const HEADER: usize = 8;

fn header(net: IpNet, index: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = family_number(Family::of_net(net));
    bytes[1] = net.prefix_len();
    bytes[4..].copy_from_slice(&index.to_ne_bytes());
    bytes
}

/// Gives a link an address of global scope, usable at once: IPv6 looks for no duplicates (`nodad`).
pub fn set(index: u32, address: IpNet) -> Request {
    let flags = if address.addr().is_ipv6() { Some(libc::IFA_F_NODAD) } else { None };
    Request::new(libc::RTM_NEWADDR, SET)
        .body(&header(address, index))
        .attr(libc::IFA_LOCAL, address.addr())
        .attr(libc::IFA_ADDRESS, address.addr())
        .maybe(libc::IFA_FLAGS, flags)
}

/// Gives a link an address with a broadcast address of its prefix, as `ip address add … brd +` does.
pub fn set_with_broadcast(index: u32, address: IpNet) -> Request {
    match address {
        IpNet::V4(net) if net.prefix_len() < 31 => {
            set(index, address).attr(libc::IFA_BROADCAST, net.broadcast().octets())
        }
        _ => set(index, address),
    }
}

/// Takes an address from a link.
pub fn delete(index: u32, address: IpNet) -> Request {
    Request::new(libc::RTM_DELADDR, 0).body(&header(address, index)).attr(libc::IFA_LOCAL, address.addr())
}

/// Asks for the addresses of one family, of one link or of all.
pub fn list(family: Family, index: Option<u32>) -> Request {
    let any = IpNet::from(family.unspecified());
    let mut body = header(any, index.unwrap_or_default());
    body[1] = 0;
    Request::new(libc::RTM_GETADDR, 0).body(&body)
}

/// An address as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The link.
    pub index: u32,
    /// Address (the local one of a point-to-point link) and prefix length.
    pub net: IpNet,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// `IFA_F_*`.
    pub flags: u32,
}

impl Report {
    /// Of global scope.
    pub fn is_global(&self) -> bool {
        self.scope == libc::RT_SCOPE_UNIVERSE
    }

    /// Reads a `RTM_NEWADDR` or `RTM_DELADDR` message.
    pub fn read(message: Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split(HEADER)?;
        if !matches!(message.kind, libc::RTM_NEWADDR | libc::RTM_DELADDR) {
            return None;
        }
        family_of(header[0])?;
        let address = attributes.find(libc::IFA_LOCAL).or_else(|| attributes.find(libc::IFA_ADDRESS))?.address()?;
        Some(Self {
            index: u32::from_ne_bytes(header[4..].try_into().ok()?),
            net: IpNet::new(address, header[1]).ok()?,
            scope: header[3],
            flags: attributes.find(libc::IFA_FLAGS).and_then(super::message::Payload::u32).unwrap_or(header[2].into()),
        })
    }
}
