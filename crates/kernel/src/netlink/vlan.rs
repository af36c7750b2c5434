//! VLANs of a bridge's ports: requests and reports of rtnetlink's bridge family (`PF_BRIDGE`), the VLANs in ranges.
//!
//! Builds and reads bytes; which VLANs a port is to have is decided elsewhere.

use std::fmt;
use std::ops::RangeInclusive;

use super::message::{Attributes, Message, Payload, Request};
use super::uapi::{bridge, ifla};

/// Bytes of `struct ifinfomsg`.
const HEADER: usize = 16;

/// Of a bridge, whether it filters by VLAN: `IFLA_BR_VLAN_FILTERING`, inside `IFLA_INFO_DATA`, 8 bits.
pub const FILTERING: u16 = bridge::VLAN_FILTERING;
/// Of a bridge, the VLAN of new ports: `IFLA_BR_VLAN_DEFAULT_PVID`, inside `IFLA_INFO_DATA`, 16 bits.
pub const DEFAULT_PVID: u16 = bridge::DEFAULT_PVID;

/// What a port has of some VLANs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The VLANs.
    pub ids: RangeInclusive<u16>,
    /// Frames that come without a tag belong to it (`PVID`); of a single VLAN only.
    pub native: bool,
    /// Its frames leave without a tag.
    pub untagged: bool,
}

impl Entry {
    fn write(&self, request: Request) -> Request {
        let flag = |on: bool, flag: u16| if on { flag } else { 0 };
        let flags = flag(self.native, bridge::PVID) | flag(self.untagged, bridge::UNTAGGED);
        let (first, last) = (*self.ids.start(), *self.ids.end());
        if first == last {
            return request.attr(bridge::VLAN_INFO, entry(flags, first));
        }
        request
            .attr(bridge::VLAN_INFO, entry(flags | bridge::RANGE_BEGIN, first))
            .attr(bridge::VLAN_INFO, entry(flags | bridge::RANGE_END, last))
    }
}

/// `10-12`, `7 native`, `1 untagged`.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.ids.start(), self.ids.end());
        write!(f, "{first}")?;
        if last != first {
            write!(f, "-{last}")?;
        }
        match (self.native, self.untagged) {
            (true, true) => f.write_str(" native"),
            (true, false) => f.write_str(" native, tagged on its way out"),
            (false, true) => f.write_str(" untagged"),
            (false, false) => Ok(()),
        }
    }
}

/// `struct bridge_vlan_info`.
fn entry(flags: u16, id: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (flags.to_ne_bytes(), id.to_ne_bytes());
    [a, b, c, d]
}

/// Adds VLANs to a port, each in place of what the port had of it.
pub fn set(port: u32, entries: &[Entry]) -> Request {
    of_port(libc::RTM_SETLINK, port, entries)
}

/// Takes VLANs from a port. Those that it does not have are no error.
pub fn delete(port: u32, entries: &[Entry]) -> Request {
    of_port(libc::RTM_DELLINK, port, entries)
}

fn of_port(kind: u16, port: u32, entries: &[Entry]) -> Request {
    let fill = |request| entries.iter().fold(request, |request, entry| entry.write(request));
    Request::new(kind, 0).body(&header(port)).nest(ifla::AF_SPEC, fill)
}

/// Asks for all bridges' ports with their VLANs; the kernel knows no smaller question before 5.6.
pub fn list() -> Request {
    Request::new(libc::RTM_GETLINK, 0).body(&header(0)).attr(ifla::EXT_MASK, bridge::LIST_VLANS)
}

/// `struct ifinfomsg`.
fn header(index: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0] = libc::AF_BRIDGE as u8;
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes
}

/// What a bridge's port, or the bridge itself, has of VLANs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its index.
    pub index: u32,
    /// Its VLANs, ascending.
    pub entries: Vec<Entry>,
}

impl Report {
    /// Reads an answer to [`list`].
    pub fn read(message: Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split(HEADER)?;
        if message.kind != libc::RTM_NEWLINK || header[0] != libc::AF_BRIDGE as u8 {
            return None;
        }
        let index = u32::from_ne_bytes(header[4..8].try_into().ok()?);
        Some(Self { index, entries: read_entries(attributes.inside(ifla::AF_SPEC)) })
    }
}

fn read_entries(attributes: Attributes<'_>) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut first = None;
    for payload in attributes.iter().filter(|(kind, _)| *kind == bridge::VLAN_INFO).map(|(_, payload)| payload) {
        let (Some(flags), Some(id)) = (payload.u16(), payload.0.get(2..).and_then(|id| Payload(id).u16())) else {
            continue;
        };
        if flags & bridge::RANGE_BEGIN != 0 {
            first = Some(id);
            continue;
        }
        let native = flags & bridge::PVID != 0;
        let ids = first.take().unwrap_or(id)..=id;
        entries.push(Entry { ids, native, untagged: flags & bridge::UNTAGGED != 0 });
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::super::message::Messages;
    use super::*;

    #[test]
    fn what_is_set_reads_back() {
        let entry = |ids, native| Entry { ids, native, untagged: native };
        let entries = vec![entry(10..=20, false), entry(4094..=4094, false), entry(7..=7, true)];
        let mut bytes = Vec::new();
        of_port(libc::RTM_NEWLINK, 9, &entries).write(&mut bytes, 1, 0);
        assert_eq!(Messages(&bytes).find_map(Report::read), Some(Report { index: 9, entries }));
        for cut in 0..bytes.len() {
            assert_eq!(Messages(&bytes[..cut]).find_map(Report::read), None);
        }
    }
}
