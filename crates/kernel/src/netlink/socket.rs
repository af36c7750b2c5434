//! One blocking netlink socket: requests with their answers, dumps, batches; and the socket that listens to notices.
//!
//! A socket belongs to the network namespace of the thread that opened it, for ever and whoever uses it. Nothing here knows
//! what the messages say.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};

use super::error::Error;
use super::message::{Attributes, Message, Messages, Request};

/// Requests sent to the kernel at once: bigger batches are no faster, and slow forwarding entries down.
pub const BATCH: usize = 128;
/// Bytes sent at once at most; well below the default send buffer, which needs no privilege.
const BATCH_BYTES: usize = 64 << 10;
/// Receive buffer of request sockets in bytes: room for the errors of a whole batch.
const REQUEST_BUFFER: usize = 1 << 20;
/// Receive buffer of notice sockets in bytes: some ten thousand notices where the kernel lets us have it.
const NOTICE_BUFFER: usize = 8 << 20;
/// The kernel sends dumps in datagrams of at most this size (`netlink_dump` in `net/netlink/af_netlink.c`).
const DATAGRAM: usize = 32 << 10;
/// How often a dump that the kernel says was inconsistent is begun again.
const DUMP_TRIES: usize = 8;

/// A netlink protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, neighbours (`NETLINK_ROUTE`).
    Route,
    /// nf_tables (`NETLINK_NETFILTER`).
    Netfilter,
}

/// A request of a batch that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its index among the requests given.
    pub index: usize,
    /// The kernel's answer.
    pub error: Error,
}

/// How the kernel's answer to a request ended.
type Outcome = Result<(), Error>;

/// A socket for requests.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

impl Socket {
    /// Opens a socket in the network namespace of this thread.
    pub fn open(protocol: Protocol) -> Result<Self, Error> {
        let fd = open(protocol, 0, SocketFlags::CLOEXEC)?;
        set_option(&fd, libc::NETLINK_GET_STRICT_CHK).or_else(older_kernel)?;
        grow(&fd, REQUEST_BUFFER);
        Ok(Self { fd, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Sends one request, waits for its acknowledgement, and collects what `read` makes of the messages before it.
    pub fn ask<T>(&mut self, request: &Request, read: impl FnMut(Message<'_>) -> Option<T>) -> Result<Vec<T>, Error> {
        let sequence = self.send(std::slice::from_ref(request), libc::NLM_F_ACK as u16)?;
        self.collect(sequence, read)
    }

    /// Sends one request and waits for its acknowledgement.
    pub fn tell(&mut self, request: &Request) -> Result<(), Error> {
        self.ask(request, |_| None::<()>).map(drop)
    }

    /// Asks for all objects of a kind and collects what `read` makes of them. Begins again when they changed meanwhile.
    pub fn dump<T>(
        &mut self,
        request: &Request,
        mut read: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_TRIES {
            let mut interrupted = false;
            let found = self.dump_once(request, |message| {
                interrupted |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                read(message)
            })?;
            if !interrupted {
                return Ok(found);
            }
        }
        Err(Error::new(Errno::INTR, "objects changed while they were listed, again and again"))
    }

    fn dump_once<T>(&mut self, request: &Request, read: impl FnMut(Message<'_>) -> Option<T>) -> Result<Vec<T>, Error> {
        let sequence = self.send(std::slice::from_ref(request), libc::NLM_F_DUMP as u16)?;
        self.collect(sequence, read)
    }

    /// Waits for the end of the answer to a request, and keeps what `read` makes of the messages before it.
    fn collect<T>(&mut self, sequence: u32, mut read: impl FnMut(Message<'_>) -> Option<T>) -> Result<Vec<T>, Error> {
        let mut found = Vec::new();
        loop {
            match self.receive(RecvFlags::empty(), sequence, |message| found.extend(read(message)))? {
                Some(Ok(())) => return Ok(found),
                Some(Err(error)) => return Err(error),
                None => {}
            }
        }
    }

    /// Sends many requests, [`BATCH`] at a time, and answers with those that failed. Calls `between` after each sending,
    /// so that a listener to the same changes can keep up.
    pub fn batch(&mut self, requests: &[Request], mut between: impl FnMut()) -> Vec<Failure> {
        let mut failures = Vec::new();
        let mut done = 0;
        while done < requests.len() {
            let count = fitting(&requests[done..]);
            match self.send_batch(&requests[done..done + count]) {
                Ok(failed) => {
                    failures.extend(failed.into_iter().map(|(at, error)| Failure { index: done + at, error }));
                }
                Err(error) => {
                    failures.extend((0..count).map(|at| Failure { index: done + at, error: error.clone() }));
                }
            }
            between();
            done += count;
        }
        failures
    }

    /// Sends all requests in one datagram, as nf_tables wants its transactions, and answers with the errors. What else the kernel answers, to
    /// requests with `NLM_F_ECHO`, goes to `each`. The kernel is done with all of them when this returns.
    ///
    /// The last request that can be acknowledged (of nf_tables the one before the end marker, on kernels before 6.10) should
    /// carry `NLM_F_ACK` itself; without any answer the outcome is that of a successful transaction.
    pub fn transact(&mut self, requests: &[Request], mut each: impl FnMut(Message<'_>)) -> Result<Vec<Failure>, Error> {
        let last = self.send(requests, 0)?;
        let first = last.wrapping_sub(requests.len() as u32 - 1);
        let mut failures = Vec::new();
        loop {
            match receive(&self.fd, &mut self.buffer, RecvFlags::DONTWAIT) {
                Ok(()) => {}
                Err(error) if error.errno() == Errno::AGAIN => return Ok(failures),
                Err(error) => return Err(error),
            }
            for message in Messages(&self.buffer) {
                let index = message.sequence.wrapping_sub(first) as usize;
                match outcome(message) {
                    Some(Err(error)) if index < requests.len() => failures.push(Failure { index, error }),
                    Some(_) => {}
                    None => each(message),
                }
            }
        }
    }

    /// Sends one datagram, asks for the acknowledgement of its last request, and collects errors until that comes. The kernel
    /// answers in order and sends errors unasked.
    fn send_batch(&mut self, requests: &[Request]) -> Result<Vec<(usize, Error)>, Error> {
        let last = self.send(requests, libc::NLM_F_ACK as u16)?;
        let first = last.wrapping_sub(requests.len() as u32 - 1);
        let mut failures = Vec::new();
        let mut done = false;
        while !done {
            self.answers(RecvFlags::empty(), |sequence, result| {
                let index = sequence.wrapping_sub(first) as usize;
                if let (true, Err(error)) = (index < requests.len(), result) {
                    failures.push((index, error));
                }
                done |= sequence == last;
            })?;
        }
        Ok(failures)
    }

    /// Sends requests in one datagram, the last one with further flags; answers with its sequence number.
    fn send(&mut self, requests: &[Request], last_flags: u16) -> Result<u32, Error> {
        let mut datagram = Vec::with_capacity(requests.iter().map(Request::len).sum());
        for (index, request) in requests.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let flags = if index + 1 == requests.len() { last_flags } else { 0 };
            request.write(&mut datagram, self.sequence, flags);
        }
        retry(|| send(&self.fd, &datagram, SendFlags::empty()))?;
        Ok(self.sequence)
    }

    fn answers(&mut self, flags: RecvFlags, mut each: impl FnMut(u32, Outcome)) -> Result<(), Error> {
        receive(&self.fd, &mut self.buffer, flags)?;
        Messages(&self.buffer)
            .filter_map(|message| Some((message.sequence, outcome(message)?)))
            .for_each(|(sequence, result)| each(sequence, result));
        Ok(())
    }

    /// Reads one datagram; messages that answer `sequence` go to `each`, and the end of the answer is returned.
    fn receive(
        &mut self,
        flags: RecvFlags,
        sequence: u32,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<Option<Outcome>, Error> {
        receive(&self.fd, &mut self.buffer, flags)?;
        for message in Messages(&self.buffer).filter(|message| message.sequence == sequence) {
            match outcome(message) {
                Some(outcome) => return Ok(Some(outcome)),
                None => each(message),
            }
        }
        Ok(None)
    }
}

/// A socket that only listens.
#[derive(Debug)]
pub struct NoticeSocket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl NoticeSocket {
    /// Listens, in the network namespace of this thread, to groups by number (`RTNLGRP_*`, `NFNLGRP_*`; 1 to 32).
    pub fn open(protocol: Protocol, groups: &[u32]) -> Result<Self, Error> {
        let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        let fd = open(protocol, mask, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        grow(&fd, NOTICE_BUFFER);
        Ok(Self { fd, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Hands every notice that is waiting to `each` and returns without waiting for more. An error that
    /// [`Error::is_overrun`] says that notices were lost; those behind the gap come with the next call.
    pub fn drain(&mut self, mut each: impl FnMut(Message<'_>)) -> Result<(), Error> {
        loop {
            match receive(&self.fd, &mut self.buffer, RecvFlags::empty()) {
                Ok(()) => Messages(&self.buffer).for_each(&mut each),
                Err(error) if error.errno() == Errno::AGAIN => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for NoticeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How many of the requests go into one sending; at least one.
fn fitting(requests: &[Request]) -> usize {
    let mut bytes = 0;
    let fits = |request: &&Request| {
        bytes += request.len();
        bytes <= BATCH_BYTES
    };
    requests.iter().take(BATCH).take_while(fits).count().max(1)
}

/// Whether a message ends an answer, and how: an acknowledgement, an error, or the end of a dump.
fn outcome(message: Message<'_>) -> Option<Outcome> {
    if !matches!(i32::from(message.kind), libc::NLMSG_ERROR | libc::NLMSG_DONE) {
        return None;
    }
    let code = message.body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code >= 0 {
        return Some(Ok(()));
    }
    Some(Err(Error::answered(Errno::from_raw_os_error(-code), explanation(message))))
}

/// The text of an extended acknowledgement: attributes behind the error's code and the capped header of the request
/// (`NETLINK_CAP_ACK`), or right behind the code at the end of a dump.
fn explanation(message: Message<'_>) -> Option<&str> {
    /// `NLM_F_ACK_TLVS` and `NLMSGERR_ATTR_MSG` of `linux/netlink.h`.
    const ACK_TLVS: u16 = 0x200;
    const TEXT: u16 = 1;
    if message.flags & ACK_TLVS == 0 {
        return None;
    }
    let header = if i32::from(message.kind) == libc::NLMSG_ERROR { 4 + 16 } else { 4 };
    Attributes(message.body.get(header..)?).find(TEXT)?.text()
}

fn open(protocol: Protocol, groups: u32, flags: SocketFlags) -> Result<OwnedFd, Error> {
    let number = match protocol {
        Protocol::Route => None,
        Protocol::Netfilter => Some(NETFILTER),
    };
    let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, number)?;
    bind(&fd, &SocketAddrNetlink::new(0, groups))?;
    set_option(&fd, libc::NETLINK_CAP_ACK).or_else(older_kernel)?;
    set_option(&fd, libc::NETLINK_EXT_ACK).or_else(older_kernel)?;
    Ok(fd)
}

/// Options that only make answers shorter or clearer may be missing.
fn older_kernel(error: Error) -> Result<(), Error> {
    if error.errno() == Errno::NOPROTOOPT { Ok(()) } else { Err(error) }
}

/// Enlarges the receive buffer: beyond the system's limit where we may, else up to it.
fn grow(fd: &OwnedFd, bytes: usize) {
    if set_socket_recv_buffer_size_force(fd, bytes).is_err() && set_socket_recv_buffer_size(fd, bytes).is_err() {
        tracing::debug!("the receive buffer of a netlink socket stays at its default size");
    }
}

fn set_option(fd: &OwnedFd, option: libc::c_int) -> Result<(), Error> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the kernel reads `size_of::<c_int>()` bytes from `on`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL).into())
    }
}

/// Reads one datagram whole, in place of what is in the buffer, which grows when the kernel says that it did not fit. Memory that
/// no datagram needs is never touched: in a plugin's short life each page is one more fault.
fn receive(fd: &OwnedFd, buffer: &mut Vec<u8>, flags: RecvFlags) -> Result<(), Error> {
    buffer.clear();
    let (_, length) = retry(|| recv(fd, spare_capacity(buffer), flags | RecvFlags::TRUNC))?;
    if length > buffer.len() {
        buffer.clear();
        buffer.reserve(length.next_power_of_two());
        return Err(Error::new(Errno::NOBUFS, "a netlink message did not fit the buffer"));
    }
    Ok(())
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Error> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result.map_err(Error::from),
        }
    }
}
