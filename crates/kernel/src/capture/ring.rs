//! The ring that a packet socket shares with the kernel (`TPACKET_V2` of `linux/if_packet.h`, the kernel's
//! `Documentation/networking/packet_mmap.rst`): slots of one size, each owned by the kernel or by us as its status says.
//!
//! Surface: [`Ring`], [`Slot`], and the calls on packet sockets that `rustix` lacks.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::{Direction, Frame, Room};

/// Bytes in a slot before a frame, at most: header, address and alignment (`TPACKET2_HDRLEN` and `tpacket_rcv`).
const HEADROOM: usize = libc::TPACKET2_HDRLEN + 2 * libc::TPACKET_ALIGNMENT;
/// Slots come in blocks of at least this many bytes.
const BLOCK: usize = 64 << 10;
/// A slot's greatest size: any packet with its headers.
const GREATEST_SLOT: usize = 128 << 10;
/// The most slots of a ring.
const MOST_SLOTS: u32 = 1 << 16;
/// Where `struct sockaddr_ll` begins, and in it the type of the packet.
const ADDRESS: usize = size_of::<libc::tpacket2_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);
const PACKET_TYPE: usize = ADDRESS + 10;
/// Bytes of the two addresses of an Ethernet header, behind which a VLAN tag stands (IEEE 802.1Q).
const MACS: usize = 12;

/// The mapped ring of one socket. It stays mapped when the socket is closed.
#[derive(Debug)]
pub(super) struct Ring {
    base: NonNull<u8>,
    slots: usize,
    slot: usize,
    next: usize,
}

// SAFETY: the ring is the only owner of its mapping, which is not bound to a thread.
unsafe impl Send for Ring {}

impl Ring {
    /// Gives a packet socket a ring and maps it.
    pub(super) fn attach(socket: &OwnedFd, room: Room) -> io::Result<Self> {
        set_option(socket, libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V2 as c_int)?;
        let slot = (room.snap as usize + HEADROOM).next_power_of_two().min(GREATEST_SLOT);
        let block = slot.max(BLOCK);
        let slots = room.frames.clamp(1, MOST_SLOTS).next_multiple_of((block / slot) as u32) as usize;
        let request = libc::tpacket_req {
            tp_block_size: block as u32,
            tp_block_nr: (slots * slot / block) as u32,
            tp_frame_size: slot as u32,
            tp_frame_nr: slots as u32,
        };
        set_option(socket, libc::PACKET_RX_RING, request)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, as long as the ring that was just made.
        let base = unsafe { mmap(std::ptr::null_mut(), slots * slot, protection, MapFlags::SHARED, socket, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, slots, slot, next: 0 })
    }

    /// Reads the next slot that the kernel has filled and gives it back; none if it has filled none.
    pub(super) fn take<T>(&mut self, read: impl FnOnce(Slot<'_>) -> T) -> Option<T> {
        // SAFETY: `next` is less than `slots`, so this is inside the mapping, and slots are aligned to a power of two.
        let start = unsafe { self.base.add(self.next * self.slot) };
        // SAFETY: each slot begins with its status, aligned, which the kernel and we change by whole words only.
        let status = unsafe { AtomicU32::from_ptr(start.cast().as_ptr()) };
        let flags = status.load(Ordering::Acquire);
        if flags & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: the kernel wrote `slot` bytes here and leaves them alone until the status is its own again. Only `self`
        // gives slots back, below, when this borrow has ended. The status itself is left out.
        let bytes = unsafe { std::slice::from_raw_parts(start.add(4).as_ptr(), self.slot - 4) };
        let taken = read(Slot { flags, bytes });
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.next = (self.next + 1) % self.slots;
        Some(taken)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `attach` made, of which no borrow outlives `take`.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.slots * self.slot) };
        debug_assert!(unmapped.is_ok());
    }
}

/// A filled slot: `struct tpacket2_hdr`, `struct sockaddr_ll`, and the frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'a> {
    /// Its status.
    pub(super) flags: u32,
    /// What follows the status.
    pub(super) bytes: &'a [u8],
}

impl Slot<'_> {
    /// The frame, at most `snap` bytes of it, its VLAN tag put back if it may have one; none if the slot makes no sense.
    pub(super) fn frame(self, snap: usize, tagged: bool) -> Option<Frame> {
        let length = self.u32(4)?;
        let start = usize::from(self.u16(12)?).checked_sub(4)?;
        let kept = self.u32(8)? as usize;
        let mut bytes = self.bytes.get(start..start.checked_add(kept)?)?.to_vec();
        let mut tag = Vec::new();
        if tagged && self.flags & libc::TP_STATUS_VLAN_VALID != 0 && bytes.len() >= MACS {
            let known = self.flags & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            let protocol = if known { self.u16(26)? } else { libc::ETH_P_8021Q as u16 };
            tag = [protocol.to_be_bytes(), self.u16(24)?.to_be_bytes()].concat();
        }
        bytes.splice(MACS.min(bytes.len())..MACS.min(bytes.len()), tag.iter().copied());
        bytes.truncate(snap);
        Some(Frame {
            at: Duration::new(self.u32(16)?.into(), self.u32(20)?),
            direction: Direction::of(*self.bytes.get(PACKET_TYPE - 4)?),
            length: length + tag.len() as u32,
            checksum_ready: self.flags & libc::TP_STATUS_CSUMNOTREADY == 0,
            bytes,
        })
    }

    /// The number at an offset in the slot.
    fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes.get(at - 4..at)?.try_into().ok()?))
    }

    fn u16(self, at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(self.bytes.get(at - 4..at - 2)?.try_into().ok()?))
    }
}

/// Binds a packet socket to an interface and all its protocols; answers with the interface's `ARPHRD_*`.
pub(super) fn bind(socket: &OwnedFd, index: u32) -> io::Result<u16> {
    let missing = || io::Error::from_raw_os_error(libc::ENODEV);
    let mut address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: c_int::try_from(index).ok().filter(|index| *index > 0).ok_or_else(missing)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let mut length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `address`, which is that long.
    done(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: the kernel writes at most `length` bytes to `address`, and any bytes are a valid `sockaddr_ll`.
    done(unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut length) })?;
    Ok(address.sll_hatype)
}

/// The number of frames dropped since the last call (`PACKET_STATISTICS`).
pub(super) fn take_drops(socket: &OwnedFd) -> io::Result<u32> {
    let mut counts = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = size_of_val(&counts) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `counts`, of which any are valid, and the length to `length`.
    done(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut counts).cast(),
            &raw mut length,
        )
    })?;
    Ok(counts.tp_drops)
}

fn set_option<T: Copy>(socket: &OwnedFd, option: c_int, value: T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `value`, which outlives the call.
    done(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const value).cast(), length) })
}

fn done(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A slot as `tpacket_rcv` fills it, without its status.
    fn slot(length: u32, kept: u32, tci: u16) -> Vec<u8> {
        let mut bytes = [length, kept].iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
        bytes.extend([66_u16, 80].iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend([5_u32, 7].iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend([tci, 0x88a8].iter().flat_map(|word| word.to_ne_bytes()));
        bytes.resize(62, 0);
        bytes[PACKET_TYPE - 4] = 4;
        bytes.extend(1..=60);
        bytes
    }

    #[test]
    fn a_slot_reads_as_its_frame() {
        let bytes = slot(1500, 60, 0);
        let frame = Slot { flags: libc::TP_STATUS_CSUMNOTREADY, bytes: &bytes }.frame(50, true).unwrap();
        assert_eq!((frame.at, frame.direction), (Duration::new(5, 7), Direction::Out));
        assert_eq!((frame.length, frame.checksum_ready), (1500, false));
        assert_eq!(frame.bytes, (1..=50).collect::<Vec<u8>>());
    }

    #[test]
    fn a_vlan_tag_goes_back_to_its_place() {
        let bytes = slot(60, 60, 0x0123);
        let flags = libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID;
        let frame = Slot { flags, bytes: &bytes }.frame(100, true).unwrap();
        assert_eq!((frame.length, frame.bytes.len()), (64, 64));
        assert_eq!(frame.bytes[10..18], [11, 12, 0x88, 0xa8, 0x01, 0x23, 13, 14]);
    }

    #[test]
    fn a_slot_that_lies_about_its_length_is_no_frame() {
        assert_eq!(Slot { flags: 0, bytes: &slot(1500, 1500, 0) }.frame(2000, true), None);
        assert_eq!(Slot { flags: 0, bytes: &[0; 61] }.frame(2000, true), None);
    }
}
