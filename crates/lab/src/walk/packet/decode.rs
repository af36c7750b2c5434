//! From bytes to layers: each header says which one is next, until nothing is left or nothing is known of it.

use std::net::{IpAddr, Ipv4Addr};

use flannel_core::addr::{Family, Mac};
use flannel_kernel::capture::LinkLayer;

use super::{Arp, Ethernet, Fragment, Icmp, Ip, Layer, Tcp, Tunnels, Unreachable};

/// No packet is decoded deeper. Flannel's deepest, an error about a packet that came through a tunnel, has ten layers.
pub const MOST_LAYERS: usize = 24;
/// No more extension headers of IPv6 are looked at.
const MOST_EXTENSIONS: usize = 8;

/// EtherTypes (IEEE 802 numbers).
mod ethertype {
    pub(super) const IPV4: u16 = 0x0800;
    pub(super) const ARP: u16 = 0x0806;
    pub(super) const VLAN: u16 = 0x8100;
    pub(super) const SERVICE_VLAN: u16 = 0x88a8;
    pub(super) const IPV6: u16 = 0x86dd;
}

/// Protocols behind IP (IANA protocol numbers).
mod protocol {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ICMP: u8 = 1;
    pub(super) const IPV4: u8 = 4;
    pub(super) const TCP: u8 = 6;
    pub(super) const UDP: u8 = 17;
    pub(super) const IPV6: u8 = 41;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const ICMPV6: u8 = 58;
    pub(super) const DESTINATION_OPTIONS: u8 = 60;
}

/// What the bytes that follow are.
#[derive(Debug, Clone, Copy)]
enum Next {
    Ethernet,
    EtherType(u16),
    Ip,
    Protocol(u8),
    Vxlan,
    Payload,
}

/// A header and what follows it; none for the header if the bytes do not hold one.
type Step<'a> = Option<(Layer, Next, &'a [u8])>;

pub(super) fn layers(bytes: &[u8], link: LinkLayer, tunnels: &Tunnels) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut next = match link {
        LinkLayer::Ethernet => Next::Ethernet,
        LinkLayer::Ip => Next::Ip,
        LinkLayer::Other(_) => Next::Payload,
    };
    let mut rest = bytes;
    loop {
        let Some((read, name)) = reader(next).filter(|_| layers.len() + 1 < MOST_LAYERS) else {
            layers.extend((!rest.is_empty()).then(|| Layer::Payload(rest.to_vec())));
            return layers;
        };
        let Some((layer, following, behind)) = read(rest, tunnels) else {
            layers.push(Layer::Unreadable(name));
            return layers;
        };
        layers.push(layer);
        (next, rest) = (following, behind);
    }
}

type Reader = for<'a> fn(&'a [u8], &Tunnels) -> Step<'a>;

/// Who reads it and what it is called; none if it is just bytes.
fn reader(next: Next) -> Option<(Reader, &'static str)> {
    Some(match next {
        Next::Ethernet => (ethernet, "Ethernet header"),
        Next::EtherType(ethertype::VLAN | ethertype::SERVICE_VLAN) => (vlan, "VLAN tag"),
        Next::EtherType(ethertype::ARP) => (arp, "ARP"),
        Next::EtherType(ethertype::IPV4 | ethertype::IPV6)
        | Next::Protocol(protocol::IPV4 | protocol::IPV6)
        | Next::Ip => (ip, "IP header"),
        Next::Protocol(protocol::ICMP) => (icmp, "ICMP"),
        Next::Protocol(protocol::ICMPV6) => (icmpv6, "ICMPv6"),
        Next::Protocol(protocol::UDP) => (udp, "UDP header"),
        Next::Protocol(protocol::TCP) => (tcp, "TCP header"),
        Next::Vxlan => (vxlan, "VXLAN header"),
        Next::EtherType(_) | Next::Protocol(_) | Next::Payload => return None,
    })
}

fn ethernet<'a>(bytes: &'a [u8], _: &Tunnels) -> Step<'a> {
    let (destination, rest) = mac(bytes)?;
    let (source, rest) = mac(rest)?;
    let (protocol, rest) = u16(rest)?;
    Some((Layer::Ethernet(Ethernet { destination, source, protocol }), Next::EtherType(protocol), rest))
}

fn vlan<'a>(bytes: &'a [u8], _: &Tunnels) -> Step<'a> {
    let (control, rest) = u16(bytes)?;
    let (protocol, rest) = u16(rest)?;
    Some((Layer::Vlan { id: control & 0xfff }, Next::EtherType(protocol), rest))
}

/// RFC 826: hardware Ethernet, protocol IPv4, and their lengths; then the operation. What follows is padding.
fn arp<'a>(bytes: &'a [u8], _: &Tunnels) -> Step<'a> {
    let rest = bytes.strip_prefix(&[0, 1, 8, 0, 6, 4])?;
    let (operation, rest) = u16(rest)?;
    let (sender_mac, rest) = mac(rest)?;
    let (sender, rest) = rest.split_first_chunk::<4>()?;
    let (target_mac, rest) = mac(rest)?;
    let (target, _) = rest.split_first_chunk::<4>()?;
    let request = match operation {
        1 => true,
        2 => false,
        _ => return None,
    };
    let sender = (sender_mac, Ipv4Addr::from(*sender));
    Some((Layer::Arp(Arp { request, sender, target: (target_mac, Ipv4Addr::from(*target)) }), Next::Payload, &[]))
}

fn ip<'a>(bytes: &'a [u8], _: &Tunnels) -> Step<'a> {
    let (ip, rest) = match bytes.first()? >> 4 {
        4 => rfc_791(bytes)?,
        6 => rfc_8200(bytes)?,
        _ => return None,
    };
    let begins = ip.fragment.is_none_or(|fragment| fragment.offset == 0);
    let next = if begins { Next::Protocol(ip.protocol) } else { Next::Payload };
    Some((Layer::Ip(ip), next, rest))
}

/// RFC 791 §3.1. Behind the packet there may be padding. A length of zero is that of a packet too big to tell (TSO).
fn rfc_791(bytes: &[u8]) -> Option<(Ip, &[u8])> {
    let header = usize::from(bytes[0] & 0xf) * 4;
    let fixed = bytes.get(..20)?;
    let total = match usize::from(u16(&fixed[2..])?.0) {
        0 => bytes.len(),
        told => told,
    };
    (header >= 20 && total >= header).then_some(())?;
    let flags = u16(&fixed[6..])?.0;
    let fragment =
        Fragment { id: u16(&fixed[4..])?.0.into(), offset: u32::from(flags & 0x1fff) * 8, more: flags & 0x2000 != 0 };
    let ip = Ip {
        source: address(Family::V4, &fixed[12..])?.0,
        destination: address(Family::V4, &fixed[16..])?.0,
        protocol: fixed[9],
        ttl: fixed[8],
        tos: fixed[1],
        length: total as u32,
        payload: (total - header) as u32,
        dont_fragment: flags & 0x4000 != 0,
        fragment: (fragment.offset > 0 || fragment.more).then_some(fragment),
    };
    Some((ip, bytes.get(header..total.min(bytes.len()))?))
}

/// RFC 8200 §3 and §4.
fn rfc_8200(bytes: &[u8]) -> Option<(Ip, &[u8])> {
    let fixed = bytes.get(..40)?;
    let told = usize::from(u16(&fixed[4..])?.0);
    let payload = if told == 0 { bytes.len() - 40 } else { told };
    let mut rest = &bytes[40..bytes.len().min(40 + payload)];
    let (mut protocol, mut fragment, mut extensions) = (fixed[6], None, 0);
    while let Some(length) = extension(protocol, rest) {
        if protocol == protocol::FRAGMENT {
            fragment = Some(fragment_header(rest)?);
        }
        (protocol, rest) = (*rest.first()?, rest.get(length..)?);
        extensions += length;
        if fragment.is_some_and(|fragment: Fragment| fragment.offset > 0) || extensions > MOST_EXTENSIONS * 8 {
            break;
        }
    }
    let ip = Ip {
        source: address(Family::V6, &fixed[8..])?.0,
        destination: address(Family::V6, &fixed[24..])?.0,
        protocol,
        ttl: fixed[7],
        tos: (fixed[0] << 4) | (fixed[1] >> 4),
        length: (40 + payload) as u32,
        payload: payload.checked_sub(extensions)? as u32,
        dont_fragment: true,
        fragment,
    };
    Some((ip, rest))
}

/// The length of an extension header; none if the protocol is not one.
fn extension(protocol: u8, bytes: &[u8]) -> Option<usize> {
    match protocol {
        protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
            Some(8 + usize::from(bytes.get(1).copied().unwrap_or(u8::MAX)) * 8)
        }
        protocol::FRAGMENT => Some(8),
        _ => None,
    }
}

/// RFC 8200 §4.5.
fn fragment_header(bytes: &[u8]) -> Option<Fragment> {
    let place = u16(bytes.get(2..)?)?.0;
    Some(Fragment { id: u32(bytes.get(4..)?)?.0, offset: u32::from(place & 0xfff8), more: place & 1 != 0 })
}

/// Type, code, checksum, and the four bytes that each type uses as it likes.
fn icmp_head(bytes: &[u8]) -> Option<(u8, u8, u32, &[u8])> {
    let (word, rest) = u32(bytes.get(4..)?)?;
    Some((bytes[0], bytes[1], word, rest))
}

fn echo(request: bool, word: u32) -> Icmp {
    Icmp::Echo { request, id: (word >> 16) as u16, sequence: word as u16 }
}

/// RFC 792, RFC 1191 §4 (the MTU) and RFC 1812 §5.2.7.1 (the codes).
fn icmp<'a>(bytes: &'a [u8], _: &Tunnels) -> Step<'a> {
    let (kind, code, word, rest) = icmp_head(bytes)?;
    let (message, next) = match (kind, code) {
        (8 | 0, _) => (echo(kind == 8, word), Next::Payload),
        (3, 4) => (Icmp::TooBig { mtu: word & 0xffff }, Next::Ip),
        (3, _) => {
            let why = match code {
                0 => Unreachable::NoRoute,
                1 => Unreachable::Host,
                2 => Unreachable::Protocol,
                3 => Unreachable::Port,
                9 | 10 | 13 => Unreachable::Prohibited,
                code => Unreachable::Code(code),
            };
            (Icmp::Unreachable(why), Next::Ip)
        }
        (5, _) => (Icmp::Redirect { gateway: Ipv4Addr::from(word).into() }, Next::Ip),
        (11, code) => (Icmp::TimeExceeded { code }, Next::Ip),
        (12, code) => (Icmp::ParameterProblem { code }, Next::Ip),
        (kind, code) => (Icmp::Other { kind, code }, Next::Payload),
    };
    Some((Layer::Icmp(message), next, rest))
}

/// RFC 4443 §3 and §4; RFC 4861 §4.
fn icmpv6<'a>(bytes: &'a [u8], _: &Tunnels) -> Step<'a> {
    let (kind, code, word, rest) = icmp_head(bytes)?;
    let (message, next) = match kind {
        1 => {
            let why = match code {
                0 => Unreachable::NoRoute,
                1 | 5 | 6 => Unreachable::Prohibited,
                3 => Unreachable::Host,
                4 => Unreachable::Port,
                code => Unreachable::Code(code),
            };
            (Icmp::Unreachable(why), Next::Ip)
        }
        2 => (Icmp::TooBig { mtu: word }, Next::Ip),
        3 => (Icmp::TimeExceeded { code }, Next::Ip),
        4 => (Icmp::ParameterProblem { code }, Next::Ip),
        128 | 129 => (echo(kind == 128, word), Next::Payload),
        135..=137 => return neigh(kind, word, rest),
        kind => (Icmp::Other { kind, code }, Next::Payload),
    };
    Some((Layer::Icmp(message), next, rest))
}

/// RFC 4861 §4.3 to §4.5. Of the options only the link-layer address is read.
fn neigh(kind: u8, flags: u32, bytes: &[u8]) -> Step<'_> {
    let (target, options) = address(Family::V6, bytes)?;
    let message = match kind {
        135 => Icmp::NeighSolicitation { target, mac: link_layer_option(1, options) },
        136 => {
            let solicited = flags & 0x4000_0000 != 0;
            Icmp::NeighAdvertisement { target, mac: link_layer_option(2, options), solicited }
        }
        _ => Icmp::Redirect { gateway: target },
    };
    Some((Layer::Icmp(message), Next::Payload, &[]))
}

/// RFC 4861 §4.6: type, length in units of eight bytes, content. A length of zero ends the reading.
fn link_layer_option(wanted: u8, mut options: &[u8]) -> Option<Mac> {
    loop {
        let [kind, length, content @ ..] = options else { return None };
        if *kind == wanted {
            return mac(content).map(|(mac, _)| mac);
        }
        options = options.get(usize::from(*length).checked_mul(8).filter(|length| *length > 0)?..)?;
    }
}

/// RFC 768; the length counts the header.
fn udp<'a>(bytes: &'a [u8], tunnels: &Tunnels) -> Step<'a> {
    let (source, rest) = u16(bytes)?;
    let (destination, rest) = u16(rest)?;
    let (length, rest) = u16(rest)?;
    let (_, rest) = u16(rest)?;
    let rest = match usize::from(length) {
        0 => rest,
        length => &rest[..length.checked_sub(8)?.min(rest.len())],
    };
    let next = match destination {
        port if tunnels.vxlan.contains(&port) => Next::Vxlan,
        port if tunnels.ip.contains(&port) => Next::Ip,
        _ => Next::Payload,
    };
    Some((Layer::Udp { source, destination }, next, rest))
}

/// RFC 9293 §3.1; options are passed over.
fn tcp<'a>(bytes: &'a [u8], _: &Tunnels) -> Step<'a> {
    let fixed = bytes.get(..20)?;
    let header = usize::from(fixed[12] >> 4) * 4;
    (header >= 20).then_some(())?;
    let tcp = Tcp {
        source: u16(fixed)?.0,
        destination: u16(&fixed[2..])?.0,
        sequence: u32(&fixed[4..])?.0,
        acknowledgement: u32(&fixed[8..])?.0,
        flags: fixed[13],
        window: u16(&fixed[14..])?.0,
    };
    Some((Layer::Tcp(tcp), Next::Payload, bytes.get(header..).unwrap_or_default()))
}

/// RFC 7348 §5; the group policy is there if its bit is set.
fn vxlan<'a>(bytes: &'a [u8], _: &Tunnels) -> Step<'a> {
    let (head, rest) = u32(bytes)?;
    let (identity, rest) = u32(rest)?;
    let vni = (head & 0x0800_0000 != 0).then_some(identity >> 8);
    let group = (head & 0x8000_0000 != 0).then_some(head as u16);
    Some((Layer::Vxlan { vni, group }, Next::Ethernet, rest))
}

fn u16(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (first, rest) = bytes.split_first_chunk()?;
    Some((u16::from_be_bytes(*first), rest))
}

fn u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (first, rest) = bytes.split_first_chunk()?;
    Some((u32::from_be_bytes(*first), rest))
}

fn mac(bytes: &[u8]) -> Option<(Mac, &[u8])> {
    let (first, rest) = bytes.split_first_chunk()?;
    Some((Mac(*first), rest))
}

fn address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    Some(match family {
        Family::V4 => bytes.split_first_chunk::<4>().map(|(first, rest)| (IpAddr::from(*first), rest))?,
        Family::V6 => bytes.split_first_chunk::<16>().map(|(first, rest)| (IpAddr::from(*first), rest))?,
    })
}
