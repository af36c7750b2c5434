//! ICMP and ICMPv6 echo on raw sockets (RFC 792, RFC 4443): the lab's own ping.
//!
//! Surface: [`EchoSocket`], and [`wait`] for any socket. Both families are one code path; the kernel answers the requests.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use flannel_core::addr::Family;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
    set_socket_recv_buffer_size, set_socket_recv_buffer_size_force,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recvfrom, sendto, socket_with,
};

use crate::error::{Doing, LabError};
use crate::place::Place;

/// A raw socket for one family, in the network of the place that opened it.
#[derive(Debug)]
pub struct EchoSocket {
    socket: OwnedFd,
    family: Family,
}

/// An echo message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Who sent it, as the receiver sees it.
    pub from: IpAddr,
    /// A request, else a reply.
    pub request: bool,
    /// What the sender chose to know its own by.
    pub token: u64,
    /// The sender's count.
    pub count: u64,
}

/// Bytes of the ICMP header of an echo message.
pub const HEADER: usize = 8;
/// The least data of our echo messages: token and count.
pub const LEAST: usize = 16;

impl EchoSocket {
    /// Opens the socket at a place.
    pub fn open(place: &Place, family: Family) -> Result<Self, LabError> {
        let (domain, protocol) = match family {
            Family::V4 => (AddressFamily::INET, ipproto::ICMP),
            Family::V6 => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = place.inside(|| socket_with(domain, SocketType::RAW, flags, Some(protocol)))?;
        let socket = socket.doing(|| format!("open a raw socket on {}", place.name()))?;
        keep_much(&socket).doing(|| format!("open a raw socket on {}", place.name()))?;
        Ok(Self { socket, family })
    }

    /// Lets no packet of this socket be fragmented: what is too big for the way fails (in IPv6 only routers never fragment).
    pub fn keep_whole(&self) -> io::Result<()> {
        match self.family {
            Family::V4 => set_ip_mtu_discover(&self.socket, Ipv4PathMtuDiscovery::DO)?,
            Family::V6 => set_ipv6_mtu_discover(&self.socket, Ipv6PathMtuDiscovery::DO)?,
        }
        Ok(())
    }

    /// Sends an echo request.
    pub fn request(&self, to: IpAddr, token: u64, count: u64) -> io::Result<()> {
        self.request_of(to, token, count, LEAST)
    }

    /// Sends an echo request with so many bytes of data; with fewer than [`LEAST`] it has those.
    pub fn request_of(&self, to: IpAddr, token: u64, count: u64, size: usize) -> io::Result<()> {
        let packet = encode(self.family, token, count, size);
        sendto(&self.socket, &packet, SendFlags::empty(), &SocketAddr::new(to, 0))?;
        Ok(())
    }

    /// The next echo message of any kind, waiting until the deadline at most.
    pub fn receive(&self, deadline: Instant) -> io::Result<Option<Echo>> {
        loop {
            let mut buffer = [MaybeUninit::uninit(); 256];
            match recvfrom(&self.socket, &mut buffer, RecvFlags::empty()) {
                Ok(((bytes, _), _, Some(from))) => {
                    let from = SocketAddr::try_from(from).map_err(io::Error::from)?.ip();
                    if let Some(echo) = decode(self.family, from, bytes) {
                        return Ok(Some(echo));
                    }
                }
                Err(Errno::AGAIN) if !wait(&self.socket, deadline)? => return Ok(None),
                Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Waits until there is something to receive or to accept, to the deadline at most. Tells whether there is.
pub fn wait(socket: impl AsFd, deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(false);
    }
    let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
    Ok(poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout))? > 0)
}

/// Gives a socket a receive buffer for what arrives while its reader does not run, so that nothing counts as lost which
/// the network delivered. A raw socket gets all ICMP of its namespace, which can be some thousand packets a second.
///
/// As much as we may have: without `CAP_NET_ADMIN` in the first user namespace that is `net.core.rmem_max` (socket(7)).
pub(crate) fn keep_much(socket: impl AsFd) -> io::Result<()> {
    const BYTES: usize = 8 << 20;
    set_socket_recv_buffer_size_force(&socket, BYTES).or_else(|_| set_socket_recv_buffer_size(&socket, BYTES))?;
    Ok(())
}

/// Type numbers of request and reply.
fn types(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (8, 0),
        Family::V6 => (128, 129),
    }
}

fn encode(family: Family, token: u64, count: u64, size: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER + size.max(LEAST)];
    packet[0] = types(family).0;
    packet[4..6].copy_from_slice(&token.to_be_bytes()[6..]);
    packet[6..8].copy_from_slice(&count.to_be_bytes()[6..]);
    packet[8..16].copy_from_slice(&token.to_be_bytes());
    packet[16..24].copy_from_slice(&count.to_be_bytes());
    if family == Family::V4 {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The Internet checksum (RFC 1071). For ICMPv6 the kernel puts it in, as it covers the addresses.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) as u16 + (folded >> 16) as u16)
}

/// Raw IPv4 sockets deliver the IP header too, raw IPv6 sockets do not (raw(7), ipv6(7)).
fn decode(family: Family, from: IpAddr, bytes: &[u8]) -> Option<Echo> {
    let skip = match family {
        Family::V4 => usize::from(bytes.first()? & 0xf) * 4,
        Family::V6 => 0,
    };
    let message = bytes.get(skip..)?;
    let (request, reply) = types(family);
    let kind = *message.first()?;
    let word = |at: usize| Some(u64::from_be_bytes(message.get(at..at + 8)?.try_into().ok()?));
    ([request, reply].contains(&kind)).then_some(())?;
    Some(Echo { from, request: kind == request, token: word(8)?, count: word(16)? })
}

/// A token that no other socket of the lab uses at the time.
pub(crate) fn fresh_token() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// Pings once, trying again every 100 ms until the deadline. Answers with the round trip of the try that came back and
/// with the address that the receiver saw, where the receiver is given.
pub fn ping(
    sender: &Place,
    receiver: Option<&Place>,
    to: IpAddr,
    patience: Duration,
) -> Result<Option<(Duration, Option<IpAddr>)>, LabError> {
    let family = Family::of(to);
    let socket = EchoSocket::open(sender, family)?;
    let witness = receiver.map(|place| EchoSocket::open(place, family)).transpose()?;
    let (token, started) = (fresh_token(), Instant::now());
    let io = |result: io::Result<Option<Echo>>| result.doing(|| format!("ping {to} from {}", sender.name()));
    for count in 0.. {
        let sent = Instant::now();
        if sent.duration_since(started) > patience {
            break;
        }
        let _unreachable_now = socket.request(to, token, count);
        let deadline = sent + Duration::from_millis(100);
        while let Some(echo) = io(socket.receive(deadline))? {
            if !echo.request && (echo.token, echo.count) == (token, count) {
                let took = sent.elapsed();
                let seen = witness.as_ref().map(|witness| seen_source(witness, token)).transpose();
                return Ok(Some((took, seen.doing(|| format!("listen for pings to {to}"))?.flatten())));
            }
        }
    }
    Ok(None)
}

fn seen_source(witness: &EchoSocket, token: u64) -> io::Result<Option<IpAddr>> {
    let deadline = Instant::now() + Duration::from_millis(100);
    while let Some(echo) = witness.receive(deadline)? {
        if echo.request && echo.token == token {
            return Ok(Some(echo.from));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_back_and_sums_to_zero() {
        let packet = encode(Family::V4, 0x0102_0304_0506_0708, 9, LEAST);
        assert_eq!(checksum(&packet), 0);
        let from: IpAddr = "10.244.1.2".parse().unwrap();
        let with_header = [&[0x45][..], &[0; 19], &packet].concat();
        let expected = Echo { from, request: true, token: 0x0102_0304_0506_0708, count: 9 };
        assert_eq!(decode(Family::V4, from, &with_header), Some(expected));
    }

    #[test]
    fn short_and_foreign_messages_are_not_echoes() {
        let from: IpAddr = "::1".parse().unwrap();
        assert_eq!(decode(Family::V6, from, &[]), None);
        assert_eq!(decode(Family::V6, from, &[128, 0, 0, 0]), None);
        assert_eq!(decode(Family::V6, from, &[1; 64]), None);
        assert_eq!(decode(Family::V4, from, &[0x4f; 30]), None);
    }
}
