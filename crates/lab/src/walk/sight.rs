//! A captured frame and what it has to do with our ping.
//!
//! Surface: [`Sight`]. Our packets are known by the token in their data, which survives translation and tunnels.

use std::net::IpAddr;
use std::time::Duration;

use flannel_kernel::capture::{Addressee, Direction as Heading, Frame, LinkLayer};

use super::packet::{self, Arp, Ethernet, Icmp, Ip, Layer, Tunnels, Unreachable, decode};
use super::story::{Direction, Outer, Packet, Point, Way};

/// A frame at a capture point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sight {
    /// Where.
    pub(super) point: Point,
    /// When, since the Unix epoch.
    pub(super) at: Duration,
    /// By its MAC it is for somebody else.
    pub(super) foreign: bool,
    /// What it is to us.
    pub(super) what: What,
}

/// What a frame is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// Our request or our reply.
    Own(Way, Packet),
    /// An ICMP error that quotes one of them: in words, and the MTU that it tells.
    Error(Way, String, Option<u32>),
    /// ARP or ND: the address that it is about, and the frame in words.
    Resolution(IpAddr, String),
}

impl Sight {
    /// Reads a frame; none if it has nothing to do with us.
    pub(super) fn of(
        place: &str,
        device: &str,
        frame: &Frame,
        layer: LinkLayer,
        token: u64,
        ports: &Tunnels,
    ) -> Option<Self> {
        let decoded = decode(&frame.bytes, layer, ports);
        let what = what(&decoded, token)?;
        let (direction, foreign) = match frame.direction {
            Heading::Out => (Direction::Out, false),
            Heading::In(addressee) => (Direction::In, addressee == Addressee::OtherHost),
        };
        let point = Point { place: place.to_owned(), device: device.to_owned(), direction };
        Some(Self { point, at: frame.at, foreign, what })
    }
}

fn what(decoded: &packet::Packet, token: u64) -> Option<What> {
    let layers = &decoded.layers;
    if let Some(resolution) = resolution(layers) {
        return Some(resolution);
    }
    let ours = decoded.payload().starts_with(&token.to_be_bytes());
    let first = layers.iter().position(|layer| matches!(layer, Layer::Icmp(_))).filter(|_| ours)?;
    let echo = |layer: &Layer| match layer {
        Layer::Icmp(Icmp::Echo { request, .. }) => Some(if *request { Way::Request } else { Way::Reply }),
        _ => None,
    };
    match (echo(&layers[first]), &layers[first]) {
        (Some(way), _) => Some(What::Own(way, own(&layers[..first], way)?)),
        (None, Layer::Icmp(error)) => {
            let quoted = layers[first + 1..].iter().find_map(echo)?;
            let Some(Layer::Ip(ip)) = layers.get(first.checked_sub(1)?) else { return None };
            let mtu = if let Icmp::TooBig { mtu } = error { Some(*mtu) } else { None };
            Some(What::Error(
                quoted,
                format!("{} tells {}: {}", ip.source, ip.destination, words(error, ip.source)),
                mtu,
            ))
        }
        _ => None,
    }
}

/// Our packet from the layers before its ICMP header.
fn own(layers: &[Layer], way: Way) -> Option<Packet> {
    let [before @ .., Layer::Ip(ip)] = layers else { return None };
    let macs = |layers: &[Layer]| match layers {
        [.., Layer::Ethernet(Ethernet { source, destination, .. })] => Some((*source, *destination)),
        _ => None,
    };
    let tunnel = before.iter().position(|layer| matches!(layer, Layer::Vxlan { .. }));
    let (outer, outside) = match tunnel {
        Some(at) => (outer(&before[..=at]), macs(&before[..at.saturating_sub(2)])),
        None => (None, macs(before)),
    };
    Some(Packet {
        macs: outside,
        outer,
        inner_macs: tunnel.and_then(|_| macs(before)),
        source: ip.source,
        destination: ip.destination,
        ttl: ip.ttl,
        length: ip.length as usize,
        message: format!("echo {way}"),
    })
}

fn outer(layers: &[Layer]) -> Option<Outer> {
    match layers {
        [.., Layer::Ip(ip), Layer::Udp { source, destination }, Layer::Vxlan { vni, .. }] => Some(Outer {
            source: ip.source,
            destination: ip.destination,
            source_port: *source,
            port: *destination,
            vni: (*vni)?,
            length: ip.length as usize,
        }),
        _ => None,
    }
}

/// ARP and ND that are not in a tunnel.
fn resolution(layers: &[Layer]) -> Option<What> {
    match layers {
        [Layer::Ethernet(_), Layer::Arp(Arp { request: true, sender, target }), ..] => {
            Some(What::Resolution(target.1.into(), format!("ARP who has {}? tell {}", target.1, sender.1)))
        }
        [Layer::Ethernet(_), Layer::Arp(Arp { request: false, sender, .. }), ..] => {
            Some(What::Resolution(sender.1.into(), format!("ARP {} is at {}", sender.1, sender.0)))
        }
        [Layer::Ethernet(_), Layer::Ip(Ip { source, .. }), Layer::Icmp(Icmp::NeighSolicitation { target, .. }), ..] => {
            Some(What::Resolution(*target, format!("ND who has {target}? tell {source}")))
        }
        [Layer::Ethernet(_), Layer::Ip(_), Layer::Icmp(Icmp::NeighAdvertisement { target, mac, .. }), ..] => {
            let mac = mac.map_or_else(|| "?".to_owned(), |mac| mac.to_string());
            Some(What::Resolution(*target, format!("ND {target} is at {mac}")))
        }
        _ => None,
    }
}

/// An ICMP error in words: RFC 792's, or RFC 4443's.
fn words(error: &Icmp, teller: IpAddr) -> String {
    match error {
        Icmp::Unreachable(Unreachable::NoRoute) => "network unreachable".into(),
        Icmp::Unreachable(Unreachable::Host) => "host unreachable".into(),
        Icmp::Unreachable(Unreachable::Protocol) => "protocol unreachable".into(),
        Icmp::Unreachable(Unreachable::Port) => "port unreachable".into(),
        Icmp::Unreachable(Unreachable::Prohibited) => "administratively prohibited".into(),
        Icmp::Unreachable(Unreachable::Code(code)) => format!("unreachable, code {code}"),
        Icmp::TooBig { mtu } if teller.is_ipv4() => format!("fragmentation needed, MTU {mtu}"),
        Icmp::TooBig { mtu } => format!("packet too big, MTU {mtu}"),
        Icmp::TimeExceeded { .. } => "time to live exceeded".into(),
        Icmp::ParameterProblem { code } => format!("parameter problem, code {code}"),
        Icmp::Redirect { gateway } => format!("redirect to {gateway}"),
        _ => "an ICMP message".into(),
    }
}
