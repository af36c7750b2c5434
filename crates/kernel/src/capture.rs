//! Frames as they pass an interface: what `tcpdump` sees, by AF_PACKET (packet(7)).
//!
//! Surface: [`Capture`] (one interface of the namespace of the thread that opened it), [`Frame`], [`wait`] and [`close`] for
//! several. The kernel writes into a ring of fixed size, and stamps each frame by the one clock of the machine as it passes
//! there, so frames of different namespaces can be put in order. What did not fit the ring is counted. No interface is made
//! promiscuous, and what a frame holds is the reader's business.
//!
//! A frame that bears a stamp already keeps it: while any socket of the machine asks for time stamps (`SO_TIMESTAMPNS`,
//! which therefore is not used here), a received frame has the same one on a bridge's port and on the bridge.

mod ring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use ring::Ring;

/// A capture that cannot be made or read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} frames on interface {index}")]
pub struct CaptureError {
    action: &'static str,
    index: u32,
    #[source]
    cause: io::Error,
}

impl CaptureError {
    /// Whether there is no such interface.
    pub fn is_absent(&self) -> bool {
        self.cause.raw_os_error() == Some(libc::ENODEV)
    }
}

/// How much a capture may hold: `frames` times `snap` bytes of kernel memory, both rounded up to powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Frames that wait to be drained.
    pub frames: u32,
    /// Bytes kept of each frame.
    pub snap: u32,
}

impl Default for Room {
    /// A few hundred frames of a usual MTU: 512 KiB.
    fn default() -> Self {
        Self { frames: 256, snap: 1900 }
    }
}

/// What frames of an interface begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header (also the loopback device).
    Ethernet,
    /// The IP header: devices of kind tun, ipip and wireguard.
    Ip,
    /// Something else, by its `ARPHRD_*` number.
    Other(u16),
}

impl LinkLayer {
    fn of(hardware: u16) -> Self {
        match hardware {
            libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Self::Ethernet,
            libc::ARPHRD_NONE | libc::ARPHRD_TUNNEL | libc::ARPHRD_TUNNEL6 | libc::ARPHRD_SIT => Self::Ip,
            other => Self::Other(other),
        }
    }
}

/// Which way a frame passes the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Sent by this host.
    Out,
    /// Received, and for whom by its link-layer address.
    In(Addressee),
}

/// Whom a received frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressee {
    /// This host.
    Host,
    /// Everybody.
    Broadcast,
    /// A group.
    Multicast,
    /// Another host: no protocol of this one takes it, though a bridge may pass it on.
    OtherHost,
}

impl Direction {
    /// From `sll_pkttype` of `linux/if_packet.h`.
    fn of(kind: u8) -> Self {
        match kind {
            libc::PACKET_OUTGOING => Self::Out,
            libc::PACKET_BROADCAST => Self::In(Addressee::Broadcast),
            libc::PACKET_MULTICAST => Self::In(Addressee::Multicast),
            libc::PACKET_OTHERHOST => Self::In(Addressee::OtherHost),
            _ => Self::In(Addressee::Host),
        }
    }
}

/// A frame that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// When, since the Unix epoch, in nanoseconds of the kernel's clock.
    pub at: Duration,
    /// Which way.
    pub direction: Direction,
    /// Its bytes on the wire; more than `bytes` holds if it was cut.
    pub length: u32,
    /// Whether the checksum of the transport header is there; else the interface, or its peer, was to compute it.
    pub checksum_ready: bool,
    /// Its first bytes, with the VLAN tag where it was on the wire.
    pub bytes: Vec<u8>,
}

/// A running capture on one interface.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
    ring: Ring,
    index: u32,
    link_layer: LinkLayer,
    snap: usize,
    lost: u64,
}

impl Capture {
    /// Begins to capture on an interface, by its index, in the network namespace of this thread.
    pub fn open(index: u32, room: Room) -> Result<Self, CaptureError> {
        let failed = |cause: io::Error| CaptureError { action: "capture", index, cause };
        // Of no protocol until it is bound, so that no other interface's frames get in.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None).map_err(|e| failed(e.into()))?;
        let ring = Ring::attach(&socket, room).map_err(failed)?;
        let hardware = ring::bind(&socket, index).map_err(failed)?;
        let link_layer = LinkLayer::of(hardware);
        Ok(Self { socket, ring, index, link_layer, snap: room.snap as usize, lost: 0 })
    }

    /// What its frames begin with.
    pub fn link_layer(&self) -> LinkLayer {
        self.link_layer
    }

    /// Takes the frames that have passed since the last call, in order, without waiting.
    pub fn drain(&mut self) -> Vec<Frame> {
        let (snap, tagged) = (self.snap, self.link_layer == LinkLayer::Ethernet);
        let mut next = || self.ring.take(|slot| slot.frame(snap, tagged));
        std::iter::from_fn(&mut next).flatten().collect()
    }

    /// How many frames there was no room for, since the capture began.
    pub fn lost(&mut self) -> Result<u64, CaptureError> {
        let drops = ring::take_drops(&self.socket);
        self.lost += u64::from(drops.map_err(|cause| CaptureError { action: "count", index: self.index, cause })?);
        Ok(self.lost)
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Waits until one of the captures has frames, or the deadline; says which it was. An interface that goes down or away does
/// not end the waiting.
pub fn wait(captures: &[&Capture], deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut polled: Vec<_> = captures.iter().map(|capture| PollFd::new(*capture, PollFlags::IN)).collect();
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Err(Errno::INTR) => {}
            Ok(_) if polled.iter().any(|one| one.revents().contains(PollFlags::IN)) => return Ok(true),
            // The error of an interface that went down stays until it is asked for.
            Ok(_) => captures.iter().try_for_each(|capture| socket_error(capture).map(drop))?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends captures, each on a thread of its own: the kernel waits some milliseconds for other processors whenever a packet socket
/// comes or goes, and many at once wait together.
pub fn close(captures: Vec<Capture>) {
    std::thread::scope(|scope| {
        for capture in captures {
            scope.spawn(|| drop(capture));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_layers_and_directions_are_told_by_the_kernels_numbers() {
        assert_eq!(LinkLayer::of(1), LinkLayer::Ethernet);
        assert_eq!(LinkLayer::of(772), LinkLayer::Ethernet);
        assert_eq!(LinkLayer::of(65534), LinkLayer::Ip);
        assert_eq!(LinkLayer::of(801), LinkLayer::Other(801));
        assert_eq!(Direction::of(4), Direction::Out);
        assert_eq!(Direction::of(3), Direction::In(Addressee::OtherHost));
    }
}
