//! Neighbours and forwarding entries of VXLAN devices: both are `struct ndmsg`.

use std::net::IpAddr;

use flannel_core::addr::{Family, Mac};

use super::message::{Message, Request};
use super::{SET, family_number, family_of};

/// Bytes of `struct ndmsg`.
const HEADER: usize = 12;

fn header(family: u8, index: u32, state: u16, flags: u8) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = family;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..10].copy_from_slice(&state.to_ne_bytes());
    bytes[10] = flags;
    bytes
}

fn neighbour(address: IpAddr, index: u32, state: u16) -> [u8; HEADER] {
    header(family_number(Family::of(address)), index, state, 0)
}

fn forwarding(index: u32, state: u16) -> [u8; HEADER] {
    header(libc::AF_BRIDGE as u8, index, state, libc::NTF_SELF)
}

/// Sets a permanent neighbour.
pub fn set(index: u32, address: IpAddr, mac: Mac) -> Request {
    Request::new(libc::RTM_NEWNEIGH, SET)
        .body(&neighbour(address, index, libc::NUD_PERMANENT))
        .attr(libc::NDA_DST, address)
        .attr(libc::NDA_LLADDR, mac)
}

/// Removes a neighbour.
pub fn delete(index: u32, address: IpAddr) -> Request {
    Request::new(libc::RTM_DELNEIGH, 0).body(&neighbour(address, index, 0)).attr(libc::NDA_DST, address)
}

/// Sets a permanent forwarding entry of a VXLAN device (`bridge fdb replace MAC dev DEV dst VTEP self permanent`).
pub fn set_forwarding(index: u32, mac: Mac, vtep: IpAddr) -> Request {
    Request::new(libc::RTM_NEWNEIGH, SET)
        .body(&forwarding(index, libc::NUD_PERMANENT))
        .attr(libc::NDA_LLADDR, mac)
        .attr(libc::NDA_DST, vtep)
}

/// Removes a forwarding entry of a VXLAN device with all its destinations.
pub fn delete_forwarding(index: u32, mac: Mac) -> Request {
    Request::new(libc::RTM_DELNEIGH, 0).body(&forwarding(index, 0)).attr(libc::NDA_LLADDR, mac)
}

/// Asks for the neighbours of one family on a link.
pub fn list(family: Family, index: u32) -> Request {
    Request::new(libc::RTM_GETNEIGH, 0).body(&header(family_number(family), 0, 0, 0)).attr(libc::NDA_IFINDEX, index)
}

/// Asks for the forwarding entries of a link.
pub fn list_forwarding(index: u32) -> Request {
    Request::new(libc::RTM_GETNEIGH, 0).body(&header(libc::AF_BRIDGE as u8, 0, 0, 0)).attr(libc::NDA_IFINDEX, index)
}

/// A neighbour or forwarding entry as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The link.
    pub index: u32,
    /// `NUD_*`.
    pub state: u16,
    /// Which kind of entry.
    pub entry: Entry,
}

/// The two kinds of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// ARP or ND: address and, once known, MAC.
    Neighbour(IpAddr, Option<Mac>),
    /// Of a VXLAN device itself: MAC and VTEP.
    Forwarding(Mac, Option<IpAddr>),
}

impl Report {
    /// Set by hand and kept until removed.
    pub fn is_permanent(&self) -> bool {
        self.state & libc::NUD_PERMANENT != 0
    }

    /// Reads a `RTM_NEWNEIGH` or `RTM_DELNEIGH` message about a neighbour that is no proxy, or about a VXLAN device's own
    /// forwarding entry. Older kernels, 6.1 among them, tell of one a second time when it was changed over netlink, without its destination:
    /// that is known by what a VXLAN device always tells and this is without, `NDA_CACHEINFO`, and not read.
    pub fn read(message: Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split(HEADER)?;
        if !matches!(message.kind, libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH) {
            return None;
        }
        let flags = header[10];
        let address = attributes.find(libc::NDA_DST).and_then(super::message::Payload::address);
        let mac = attributes.find(libc::NDA_LLADDR).and_then(super::message::Payload::mac);
        let entry = match header[0] {
            family if i32::from(family) == libc::AF_BRIDGE && flags & libc::NTF_SELF != 0 => {
                attributes.find(libc::NDA_CACHEINFO)?;
                Entry::Forwarding(mac?, address)
            }
            family if flags & libc::NTF_PROXY == 0 => {
                family_of(family)?;
                Entry::Neighbour(address?, mac)
            }
            _ => return None,
        };
        Some(Self {
            index: u32::from_ne_bytes(header[4..8].try_into().ok()?),
            state: u16::from_ne_bytes(header[8..10].try_into().ok()?),
            entry,
        })
    }
}

/// Asks for the forwarding entries of a bridge (`bridge fdb show br NAME`).
pub fn list_bridge(bridge: u32) -> Request {
    Request::new(libc::RTM_GETNEIGH, 0).body(&header(libc::AF_BRIDGE as u8, 0, 0, 0)).attr(libc::NDA_MASTER, bridge)
}

/// A bridge's forwarding entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgePort {
    /// The port that frames to the MAC are sent out by; for the bridge's own MAC the bridge.
    pub index: u32,
    /// The MAC.
    pub mac: Mac,
    /// The MAC is the bridge's or a port's own: frames to it go up to the host.
    pub local: bool,
}

impl BridgePort {
    /// Reads a `RTM_NEWNEIGH` message about a bridge's own entry.
    pub fn read(message: Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split(HEADER)?;
        if message.kind != libc::RTM_NEWNEIGH || i32::from(header[0]) != libc::AF_BRIDGE {
            return None;
        }
        attributes.find(libc::NDA_MASTER)?;
        let state = u16::from_ne_bytes(header[8..10].try_into().ok()?);
        Some(Self {
            index: u32::from_ne_bytes(header[4..8].try_into().ok()?),
            mac: attributes.find(libc::NDA_LLADDR)?.mac()?,
            local: state & libc::NUD_PERMANENT != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Messages;
    use super::*;

    /// The attributes that rtnetlink itself tells of a forwarding entry; a VXLAN device adds where to and since when.
    fn told(body: [u8; HEADER], by_device: bool) -> Option<Report> {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let request = Request::new(libc::RTM_NEWNEIGH, 0).body(&body).attr(libc::NDA_LLADDR, mac);
        let address = IpAddr::from([192, 0, 2, 2]);
        let whole = request.clone().attr(libc::NDA_DST, address).attr(libc::NDA_CACHEINFO, [0; 16]);
        let mut bytes = Vec::new();
        (if by_device { whole } else { request }).write(&mut bytes, 0, 0);
        Messages(&bytes).find_map(Report::read)
    }

    #[test]
    fn the_echo_of_a_forwarding_entry_is_not_one_without_destination() {
        let entry = forwarding(7, libc::NUD_PERMANENT);
        let (mac, vtep) = (Mac([2, 0, 0, 0, 0, 1]), IpAddr::from([192, 0, 2, 2]));
        assert_eq!(told(entry, true).unwrap().entry, Entry::Forwarding(mac, Some(vtep)));
        assert_eq!(told(entry, false), None);
    }
}
