//! Packets as typed layers, decoded from captured bytes, and as one line of text in tcpdump's words.
//!
//! Surface: [`decode()`], [`Packet`] (its [`Layer`]s from the outside in, flat, for slice patterns such as
//! `[Ethernet(_), Ip(outer), Udp(_), Vxlan(vxlan), inner @ ..]`), [`Tunnels`]. The packet that an ICMP error quotes follows
//! the error as further layers. Total and bounded: any bytes make a packet of at most [`MOST_LAYERS`] layers, and what makes
//! no sense is [`Layer::Unreadable`], with what it was. Checksums are not looked at: where they are computed late,
//! captured ones are wrong by right.

mod decode;
mod text;

use std::net::{IpAddr, Ipv4Addr};

use flannel_core::addr::{Family, Mac};
use flannel_kernel::capture::LinkLayer;

pub use decode::MOST_LAYERS;

/// A decoded packet. As text it is one line; the alternate form (`{:#}`) has the MAC addresses too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// From the outside in.
    pub layers: Vec<Layer>,
}

/// UDP ports, of the destination, behind which there is a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tunnels {
    /// VXLAN (RFC 7348).
    pub vxlan: Vec<u16>,
    /// Bare IP packets, as flannel's udp backend sends them.
    pub ip: Vec<u16>,
}

/// One header with what it says, or what is left behind the last one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// IEEE 802.3 with an EtherType.
    Ethernet(Ethernet),
    /// IEEE 802.1Q.
    Vlan {
        /// The VLAN's identifier, 12 bits.
        id: u16,
    },
    /// RFC 826, for IPv4 on Ethernet.
    Arp(Arp),
    /// RFC 791 or RFC 8200 with its extension headers.
    Ip(Ip),
    /// RFC 792 or RFC 4443 and RFC 4861; what it quotes follows.
    Icmp(Icmp),
    /// RFC 768.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// RFC 9293.
    Tcp(Tcp),
    /// RFC 7348; its frame follows.
    Vxlan {
        /// The network identifier; none if the header says that it is not valid.
        vni: Option<u32>,
        /// The group policy (draft-smith-vxlan-group-policy), where there is one.
        group: Option<u16>,
    },
    /// What the last header carries, as far as it was captured.
    Payload(Vec<u8>),
    /// The bytes end in the middle of this, or contradict themselves.
    Unreadable(&'static str),
}

/// An Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ethernet {
    /// The destination.
    pub destination: Mac,
    /// The source.
    pub source: Mac,
    /// The EtherType.
    pub protocol: u16,
}

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// It asks, else it answers.
    pub request: bool,
    /// Who sends it.
    pub sender: (Mac, Ipv4Addr),
    /// Who is asked for or answered; the MAC of a request means nothing.
    pub target: (Mac, Ipv4Addr),
}

/// An IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The protocol behind the header and its extensions, an `IPPROTO_*`.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// Bytes of the packet with this header.
    pub length: u32,
    /// Bytes behind the header and its extensions.
    pub payload: u32,
    /// Routers must not fragment it; always so in IPv6.
    pub dont_fragment: bool,
    /// Where in the whole packet it belongs, if it is a fragment.
    pub fragment: Option<Fragment>,
}

impl Ip {
    /// The address family.
    pub fn family(&self) -> Family {
        Family::of(self.source)
    }
}

/// A part of a fragmented packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// The number that the fragments of one packet share.
    pub id: u32,
    /// Its place in the packet, in bytes. Only the first, at 0, has the header of the next protocol.
    pub offset: u32,
    /// Others follow.
    pub more: bool,
}

/// A message of ICMP or ICMPv6; those of the same meaning are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Icmp {
    /// Echo.
    Echo {
        /// A request, else a reply.
        request: bool,
        /// The identifier.
        id: u16,
        /// The sequence number.
        sequence: u16,
    },
    /// The destination cannot be reached; quotes the packet.
    Unreachable(Unreachable),
    /// The packet is too big for the next link and must not be fragmented; quotes it.
    TooBig {
        /// The MTU of that link in bytes.
        mtu: u32,
    },
    /// The hops, or the time to reassemble (code 1), are used up; quotes the packet.
    TimeExceeded {
        /// The code.
        code: u8,
    },
    /// A header field is wrong; quotes the packet.
    ParameterProblem {
        /// The code.
        code: u8,
    },
    /// There is a better next hop; quotes the packet.
    Redirect {
        /// That hop.
        gateway: IpAddr,
    },
    /// IPv6's question for a link-layer address.
    NeighSolicitation {
        /// Who is asked for.
        target: IpAddr,
        /// The sender's, if it says so.
        mac: Option<Mac>,
    },
    /// The answer.
    NeighAdvertisement {
        /// Whose it is.
        target: IpAddr,
        /// The link-layer address.
        mac: Option<Mac>,
        /// It answers a question.
        solicited: bool,
    },
    /// Anything else.
    Other {
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
    },
}

/// Why a destination cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// There is no route (IPv4: net unreachable).
    NoRoute,
    /// No neighbour has the address (IPv4: host unreachable).
    Host,
    /// Nobody takes the protocol.
    Protocol,
    /// Nobody listens on the port.
    Port,
    /// A filter or a route of this kind forbids it.
    Prohibited,
    /// Another code.
    Code(u8),
}

/// A TCP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// The flags: FIN is 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32.
    pub flags: u8,
    /// Window, as sent.
    pub window: u16,
}

/// Decodes a captured frame.
pub fn decode(bytes: &[u8], link: LinkLayer, tunnels: &Tunnels) -> Packet {
    Packet { layers: decode::layers(bytes, link, tunnels) }
}

impl Packet {
    /// The data that the innermost header carries; empty if there is none.
    pub fn payload(&self) -> &[u8] {
        match self.layers.last() {
            Some(Layer::Payload(bytes)) => bytes,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests;
