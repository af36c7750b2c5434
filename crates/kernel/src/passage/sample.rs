//! A packet of pods', as rules see it: the first of a TCP connection that nothing has marked or translated.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use flannel_core::addr::{Family, LinkName};
use rustix::net::netdevice::name_to_index;

/// The first dynamic port (RFC 6335 §6), and that of the service discard (RFC 863), which no rule names but by a range.
pub(crate) const PORTS: [u16; 2] = [49152, 9];
/// Of TCP (IANA, Assigned Internet Protocol Numbers).
pub(crate) const TCP: u8 = 6;
/// Bytes of a header of TCP without options (RFC 9293 §3.1).
const TCP_HEADER: usize = 20;

/// A packet on its way through this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The interface that it comes in by.
    pub input: LinkName,
    /// The interface that it goes out by.
    pub output: LinkName,
    /// Its source.
    pub source: IpAddr,
    /// Its destination, of the same family.
    pub destination: IpAddr,
}

/// A packet with everything that rules compare.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) family: Family,
    pub(crate) packet: Packet,
    /// Indices of the interfaces that the packet comes in and goes out by; 0 if there is no such interface yet.
    pub(crate) input: u32,
    pub(crate) output: u32,
    /// The header of IP.
    pub(crate) network: Vec<u8>,
    /// The header of TCP.
    pub(crate) transport: Vec<u8>,
}

impl Sample {
    /// None if the addresses are of two families.
    pub(crate) fn of(packet: &Packet, socket: &OwnedFd) -> Option<Self> {
        let index = |name: LinkName| name_to_index(socket, name.as_str()).unwrap_or(0);
        Some(Self {
            family: Family::of(packet.source),
            input: index(packet.input),
            output: index(packet.output),
            network: network(packet.source, packet.destination)?,
            transport: transport(),
            packet: packet.clone(),
        })
    }
}

/// RFC 791 §3.1, RFC 8200 §3.
fn network(source: IpAddr, destination: IpAddr) -> Option<Vec<u8>> {
    const TTL: u8 = 63;
    Some(match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, TTL, TCP, 0, 0];
            header.extend([source.octets(), destination.octets()].concat());
            header
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 20, TCP, TTL];
            header.extend([source.octets(), destination.octets()].concat());
            header
        }
        _ => return None,
    })
}

fn transport() -> Vec<u8> {
    /// `SYN`, where the flags are.
    const SYN: (usize, u8) = (13, 2);
    let mut header = vec![0; TCP_HEADER];
    header[..2].copy_from_slice(&PORTS[0].to_be_bytes());
    header[2..4].copy_from_slice(&PORTS[1].to_be_bytes());
    header[12] = 0x50;
    header[SYN.0] = SYN.1;
    header
}
