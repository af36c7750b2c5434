//! One line of text for a packet, in the words that tcpdump uses.

use std::fmt;

use flannel_core::addr::Family;

use super::{Arp, Ethernet, Icmp, Ip, Layer, Packet, Tcp, Unreachable};

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ip = None;
        for (at, layer) in self.layers.iter().enumerate() {
            let next = self.layers.get(at + 1);
            match layer {
                Layer::Ethernet(ethernet) if f.alternate() => write_ethernet(f, ethernet)?,
                Layer::Ethernet(_) => {}
                Layer::Vlan { id } => write!(f, "vlan {id}, ")?,
                Layer::Arp(arp) => write_arp(f, arp)?,
                Layer::Ip(header) => {
                    ip = Some(header);
                    write_ip(f, header, next)?;
                }
                Layer::Icmp(icmp) => write_icmp(f, icmp, ip, next)?,
                Layer::Udp { .. } if matches!(next, Some(Layer::Vxlan { .. })) => {}
                Layer::Udp { .. } => write_udp(f, ip, next)?,
                Layer::Tcp(tcp) => write_tcp(f, tcp)?,
                Layer::Vxlan { vni, group } => write_vxlan(f, *vni, *group)?,
                Layer::Payload(_) => write_payload(f, at, ip)?,
                Layer::Unreadable(what) => write!(f, "[|{what}]")?,
            }
        }
        Ok(())
    }
}

fn write_ethernet(f: &mut fmt::Formatter<'_>, Ethernet { destination, source, .. }: &Ethernet) -> fmt::Result {
    write!(f, "{source} > {destination}, ")
}

fn write_arp(f: &mut fmt::Formatter<'_>, arp: &Arp) -> fmt::Result {
    let ((mac, sender), (_, target)) = (arp.sender, arp.target);
    if arp.request {
        write!(f, "ARP, Request who-has {target} tell {sender}")
    } else {
        write!(f, "ARP, Reply {sender} is-at {mac}")
    }
}

/// Ports stand behind the addresses; the word for the family in front.
fn write_ip(f: &mut fmt::Formatter<'_>, ip: &Ip, next: Option<&Layer>) -> fmt::Result {
    f.write_str(match ip.family() {
        Family::V4 => "IP ",
        Family::V6 => "IP6 ",
    })?;
    match next {
        Some(Layer::Udp { source, destination } | Layer::Tcp(Tcp { source, destination, .. })) => {
            write!(f, "{}.{source} > {}.{destination}: ", ip.source, ip.destination)?;
        }
        _ => write!(f, "{} > {}: ", ip.source, ip.destination)?,
    }
    match ip.fragment {
        Some(fragment) => write!(f, "frag ({}:{}+{}) ", fragment.id, fragment.offset, ip.payload),
        None => Ok(()),
    }
}

fn write_icmp(f: &mut fmt::Formatter<'_>, icmp: &Icmp, ip: Option<&Ip>, next: Option<&Layer>) -> fmt::Result {
    let v6 = ip.is_some_and(|ip| ip.family() == Family::V6);
    f.write_str(if v6 { "ICMP6, " } else { "ICMP " })?;
    match icmp {
        Icmp::Echo { request, id, sequence } => {
            write!(f, "echo {}, id {id}, seq {sequence}", if *request { "request" } else { "reply" })?;
            return ip.map_or(Ok(()), |ip| write!(f, ", length {}", ip.payload));
        }
        Icmp::Unreachable(why) => write!(f, "{}", unreachable(*why))?,
        Icmp::TooBig { mtu } if v6 => write!(f, "packet too big, mtu {mtu}")?,
        Icmp::TooBig { mtu } => write!(f, "unreachable - need to frag (mtu {mtu})")?,
        Icmp::TimeExceeded { code: 0 } => f.write_str("time exceeded in-transit")?,
        Icmp::TimeExceeded { .. } => f.write_str("reassembly time exceeded")?,
        Icmp::ParameterProblem { code } => write!(f, "parameter problem, code {code}")?,
        Icmp::Redirect { gateway } => write!(f, "redirect to {gateway}")?,
        Icmp::NeighSolicitation { target, .. } => write!(f, "neighbor solicitation, who has {target}")?,
        Icmp::NeighAdvertisement { target, mac: Some(mac), .. } => {
            write!(f, "neighbor advertisement, tgt is {target} at {mac}")?;
        }
        Icmp::NeighAdvertisement { target, .. } => write!(f, "neighbor advertisement, tgt is {target}")?,
        Icmp::Other { kind, code } => write!(f, "type {kind}, code {code}")?,
    }
    if matches!(next, Some(Layer::Ip(_))) { f.write_str(" about ") } else { Ok(()) }
}

fn unreachable(why: Unreachable) -> String {
    match why {
        Unreachable::NoRoute => "unreachable, no route".to_owned(),
        Unreachable::Host => "host unreachable".to_owned(),
        Unreachable::Protocol => "protocol unreachable".to_owned(),
        Unreachable::Port => "port unreachable".to_owned(),
        Unreachable::Prohibited => "unreachable - admin prohibited".to_owned(),
        Unreachable::Code(code) => format!("unreachable, code {code}"),
    }
}

fn write_udp(f: &mut fmt::Formatter<'_>, ip: Option<&Ip>, next: Option<&Layer>) -> fmt::Result {
    write!(f, "UDP, length {}", ip.map_or(0, |ip| ip.payload.saturating_sub(8)))?;
    if matches!(next, Some(Layer::Ip(_))) { f.write_str(": ") } else { Ok(()) }
}

fn write_tcp(f: &mut fmt::Formatter<'_>, tcp: &Tcp) -> fmt::Result {
    /// tcpdump's letters, from the lowest bit.
    const LETTERS: [char; 6] = ['F', 'S', 'R', 'P', '.', 'U'];
    /// The order in which it prints them.
    const ORDER: [usize; 6] = [1, 0, 2, 3, 5, 4];
    let flags: String = ORDER.into_iter().filter(|bit| tcp.flags & 1 << bit != 0).map(|bit| LETTERS[bit]).collect();
    write!(f, "Flags [{}], seq {}", if flags.is_empty() { "none" } else { &flags }, tcp.sequence)?;
    if tcp.flags & 1 << 4 != 0 {
        write!(f, ", ack {}", tcp.acknowledgement)?;
    }
    write!(f, ", win {}", tcp.window)
}

fn write_vxlan(f: &mut fmt::Formatter<'_>, vni: Option<u32>, group: Option<u16>) -> fmt::Result {
    match vni {
        Some(vni) => write!(f, "VXLAN, vni {vni}")?,
        None => f.write_str("VXLAN, no vni")?,
    }
    group.map_or(Ok(()), |group| write!(f, ", group policy {group}"))?;
    f.write_str(": ")
}

/// Data of a known protocol was told with it.
fn write_payload(f: &mut fmt::Formatter<'_>, at: usize, ip: Option<&Ip>) -> fmt::Result {
    match ip {
        Some(ip)
            if !matches!(ip.protocol, 1 | 6 | 17 | 58) || ip.fragment.is_some_and(|fragment| fragment.offset > 0) =>
        {
            write!(f, "ip-proto-{}", ip.protocol)
        }
        None if at == 0 => f.write_str("unknown"),
        _ => Ok(()),
    }
}
