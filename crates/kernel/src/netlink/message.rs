//! Netlink messages as bytes: a builder for requests and a reader for what comes back.
//!
//! Both know framing and attributes (`struct nlmsghdr` and `struct nlattr` of `linux/netlink.h`) and no protocol, so routes, nexthop
//! objects and nf_tables share them. A reader never fails on an attribute that it was not asked for: a newer kernel or an
//! odd device of the user's must not hide the rest of a dump.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_core::addr::{LinkName, Mac};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Bytes of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// Set in an attribute's kind when it holds attributes (`NLA_F_NESTED`).
const NESTED: u16 = 1 << 15;
/// The bits of an attribute's kind that name it (`NLA_TYPE_MASK`).
const KIND_MASK: u16 = 0x3fff;

/// A request under construction: one netlink message. The socket fills in the sequence number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// An empty message of a kind (`RTM_NEWLINK`, …). `NLM_F_REQUEST` is set beside `flags`.
    pub fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self { bytes }
    }

    /// Appends a protocol's fixed header (`struct ifinfomsg`, `struct nfgenmsg`, …).
    pub fn body(mut self, body: &[u8]) -> Self {
        self.bytes.extend_from_slice(body);
        self.pad();
        self
    }

    /// Appends an attribute.
    pub fn attr(self, kind: u16, value: impl Value) -> Self {
        self.framed(kind, |request| value.write(&mut request.bytes))
    }

    /// Appends an attribute if there is a value.
    pub fn maybe(self, kind: u16, value: Option<impl Value>) -> Self {
        match value {
            Some(value) => self.attr(kind, value),
            None => self,
        }
    }

    /// Appends an attribute that holds attributes, which `fill` appends.
    pub fn nest(self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        self.framed(kind | NESTED, |request| *request = fill(std::mem::take(request)))
    }

    fn framed(mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        fill(&mut self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Bytes on the wire.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the message to a datagram with its length, sequence number and further flags filled in.
    pub(crate) fn write(&self, datagram: &mut Vec<u8>, sequence: u32, flags: u16) {
        let start = datagram.len();
        datagram.extend_from_slice(&self.bytes);
        let header = &mut datagram[start..start + HEADER];
        header[..4].copy_from_slice(&(self.bytes.len() as u32).to_ne_bytes());
        header[6] |= flags.to_ne_bytes()[0];
        header[7] |= flags.to_ne_bytes()[1];
        header[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// What an attribute can carry, in the byte order of the host unless it is an array of bytes.
pub trait Value: Copy {
    /// Appends the bytes.
    fn write(self, bytes: &mut Vec<u8>);
}

macro_rules! number {
    ($($kind:ty)*) => {$(
        impl Value for $kind {
            fn write(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_ne_bytes());
            }
        }
    )*};
}
number!(u8 u16 u32 u64 i32);

impl<const N: usize> Value for [u8; N] {
    fn write(self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self);
    }
}

impl Value for &[u8] {
    fn write(self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self);
    }
}

/// Text is sent with its final zero byte.
impl Value for &str {
    fn write(self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(self.as_bytes());
        bytes.push(0);
    }
}

impl Value for LinkName {
    fn write(self, bytes: &mut Vec<u8>) {
        self.as_str().write(bytes);
    }
}

impl Value for Mac {
    fn write(self, bytes: &mut Vec<u8>) {
        self.0.write(bytes);
    }
}

impl Value for IpAddr {
    fn write(self, bytes: &mut Vec<u8>) {
        match self {
            Self::V4(address) => bytes.extend_from_slice(&address.octets()),
            Self::V6(address) => bytes.extend_from_slice(&address.octets()),
        }
    }
}

/// An address as packets have it.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    let mut bytes = Vec::new();
    address.write(&mut bytes);
    bytes
}

/// The name of an interface as structures and registers of the kernel have it: filled up with zeros.
pub(crate) fn padded(name: LinkName) -> [u8; libc::IFNAMSIZ] {
    let mut bytes = [0; libc::IFNAMSIZ];
    bytes[..name.as_str().len()].copy_from_slice(name.as_str().as_bytes());
    bytes
}

/// A message that came from the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Its kind.
    pub kind: u16,
    /// Its `NLM_F_*` flags.
    pub flags: u16,
    /// The sequence number of the request that it answers; 0 in most notices.
    pub sequence: u32,
    /// What follows the netlink header.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The fixed header of `length` bytes and the attributes behind it, if the message is that long.
    pub fn split(&self, length: usize) -> Option<(&'a [u8], Attributes<'a>)> {
        let header = self.body.get(..length)?;
        Some((header, Attributes(self.body.get(length.next_multiple_of(4)..).unwrap_or_default())))
    }
}

/// The messages of one datagram. A truncated one ends it.
#[derive(Debug, Clone)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = number_at::<4>(self.0, 0).map(u32::from_ne_bytes)? as usize;
        let body = self.0.get(HEADER..length)?;
        let message = Message {
            kind: u16::from_ne_bytes(number_at(self.0, 4)?),
            flags: u16::from_ne_bytes(number_at(self.0, 6)?),
            sequence: u32::from_ne_bytes(number_at(self.0, 8)?),
            body,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

fn number_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// A run of attributes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first attribute of a kind.
    pub fn find(self, kind: u16) -> Option<Payload<'a>> {
        self.iter().find(|(found, _)| *found == kind).map(|(_, payload)| payload)
    }

    /// Each attribute's kind, without its flag bits, and payload. A truncated one ends it.
    pub fn iter(self) -> impl Iterator<Item = (u16, Payload<'a>)> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(u16::from_ne_bytes(number_at(rest, 0)?));
            let kind = u16::from_ne_bytes(number_at(rest, 2)?) & KIND_MASK;
            let payload = rest.get(ATTRIBUTE_HEADER..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, Payload(payload)))
        })
    }

    /// The attributes inside the first attribute of a kind; none if that is missing.
    pub fn inside(self, kind: u16) -> Self {
        self.find(kind).map(Payload::attributes).unwrap_or_default()
    }
}

/// An attribute's payload, read as what the caller knows it to be. A payload too short for that reads as none.
#[derive(Debug, Clone, Copy)]
pub struct Payload<'a>(pub &'a [u8]);

impl<'a> Payload<'a> {
    /// An 8-bit number.
    pub fn u8(self) -> Option<u8> {
        self.0.first().copied()
    }

    /// A 16-bit number in host order.
    pub fn u16(self) -> Option<u16> {
        number_at(self.0, 0).map(u16::from_ne_bytes)
    }

    /// A 16-bit number in network order.
    pub fn be16(self) -> Option<u16> {
        number_at(self.0, 0).map(u16::from_be_bytes)
    }

    /// A 32-bit number in host order.
    pub fn u32(self) -> Option<u32> {
        number_at(self.0, 0).map(u32::from_ne_bytes)
    }

    /// A 32-bit number in network order.
    pub fn be32(self) -> Option<u32> {
        number_at(self.0, 0).map(u32::from_be_bytes)
    }

    /// A 64-bit number in network order.
    pub fn be64(self) -> Option<u64> {
        number_at(self.0, 0).map(u64::from_be_bytes)
    }

    /// Text up to its zero byte.
    pub fn text(self) -> Option<&'a str> {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..end]).ok()
    }

    /// An IPv4 or IPv6 address, told by its length.
    pub fn address(self) -> Option<IpAddr> {
        match self.0.len() {
            4 => number_at::<4>(self.0, 0).map(|octets| Ipv4Addr::from(octets).into()),
            16 => number_at::<16>(self.0, 0).map(|octets| Ipv6Addr::from(octets).into()),
            _ => None,
        }
    }

    /// A MAC address of six bytes.
    pub fn mac(self) -> Option<Mac> {
        self.0.try_into().ok().map(Mac)
    }

    /// A device name.
    pub fn link_name(self) -> Option<LinkName> {
        self.text()?.parse().ok()
    }

    /// Attributes.
    pub fn attributes(self) -> Attributes<'a> {
        Attributes(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_reads_back() {
        let request =
            Request::new(16, 0).body(&[1; 16]).attr(3, "eth0").nest(18, |info| info.attr(1, "vxlan").attr(2, 7_u32));
        let mut datagram = Vec::new();
        request.write(&mut datagram, 9, 4);
        request.write(&mut datagram, 10, 0);
        let messages: Vec<_> = Messages(&datagram).collect();
        assert_eq!(
            messages.iter().map(|m| (m.kind, m.flags, m.sequence)).collect::<Vec<_>>(),
            [(16, 5, 9), (16, 1, 10)]
        );
        let (body, attributes) = messages[0].split(16).unwrap();
        assert_eq!(body, [1; 16]);
        assert_eq!(attributes.find(3).unwrap().text(), Some("eth0"));
        assert_eq!(attributes.inside(18).find(2).unwrap().u32(), Some(7));
        assert!(attributes.find(4).is_none());
    }

    #[test]
    fn truncated_bytes_end_the_reading() {
        let request = Request::new(16, 0).attr(3, 7_u32);
        let mut datagram = Vec::new();
        request.write(&mut datagram, 1, 0);
        for cut in 0..datagram.len() {
            assert_eq!(Messages(&datagram[..cut]).count(), 0);
        }
        assert_eq!(Attributes(&[9, 0, 1, 0, 5]).iter().count(), 0);
        assert_eq!(Attributes(&[0, 0, 1, 0, 5]).iter().count(), 0);
        assert_eq!(Payload(&[1, 2]).u32(), None);
        assert_eq!(Payload(&[1, 2]).address(), None);
    }
}
