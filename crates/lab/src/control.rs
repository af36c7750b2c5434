//! The line to a lab that is kept alive: one Unix socket, requests and answers as lines of JSON.
//!
//! The socket is an abstract one (unix(7)) named after the user, so nothing is left on any file system however the lab ends.
//! Both sides check by `SO_PEERCRED` that the other is the same user. What a lab hands out for `exec` are descriptors of its
//! namespaces; the program itself is started by the caller and so keeps the caller's terminal.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use flannel_kernel::namespace::Namespaces;
use flannel_kernel::process::peer_user;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use crate::error::{Doing, LabError};

/// What a lab is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Answer when you are up.
    Hello,
    /// Draw yourself in letters.
    Topology,
    /// Draw yourself as SVG.
    Picture,
    /// Prove that packets pass.
    Prove,
    /// Hand out the namespaces of this place.
    Namespaces(String),
    /// Break what these words say and show the repair.
    Break(crate::command::BreakArgs),
    /// Exchange builds and show what was lost.
    Swap(crate::swap::Order),
    /// Follow a ping; the answer is one text, a [`crate::walk::Walked`] as JSON.
    Walk(crate::walk::Asked),
    /// End.
    Down,
}

/// What it answers: any number of texts, then one of the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To be shown.
    Text(String),
    /// Done.
    Done,
    /// It failed: message, hint.
    Failed(String, Option<String>),
}

/// How many descriptors `exec` needs: user, network, mount and PID namespace.
const DESCRIPTORS: usize = 4;

fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("flannel-lab-{}", geteuid().as_raw()))
}

/// Takes the user's one name for a lab; fails if a lab has it.
pub(crate) fn listen() -> Result<UnixListener, LabError> {
    match address().and_then(|address| UnixListener::bind_addr(&address)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(LabError::Present),
        other => other.doing(|| "listen for commands".into()),
    }
}

/// Asks the user's lab, writes what it says to `out`, and returns the descriptors it handed out, if any.
pub(crate) fn ask(question: &Ask, out: &mut dyn Write) -> Result<Option<Namespaces>, LabError> {
    let stream = address().and_then(|address| UnixStream::connect_addr(&address));
    let stream = stream.map_err(|_| LabError::NoLab)?;
    let peer = peer_user(stream.as_fd()).doing(|| "ask who the lab belongs to".into())?;
    if peer != geteuid().as_raw() {
        return Err(LabError::Control("another user answers under the name of your lab"));
    }
    converse(stream, question, out).doing(|| "talk to the lab".into())?
}

fn converse(
    mut stream: UnixStream,
    question: &Ask,
    out: &mut dyn Write,
) -> io::Result<Result<Option<Namespaces>, LabError>> {
    writeln!(stream, "{}", serde_json::to_string(question)?)?;
    let namespaces = match question {
        Ask::Namespaces(_) => receive_namespaces(&stream)?,
        _ => None,
    };
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line?)? {
            Answer::Text(text) => {
                out.write_all(text.as_bytes())?;
                out.flush()?;
            }
            Answer::Done => return Ok(Ok(namespaces)),
            Answer::Failed(message, hint) => return Ok(Err(LabError::Refused { message, hint })),
        }
    }
    Ok(if *question == Ask::Down { Ok(None) } else { Err(LabError::Control("the lab ended while it was asked")) })
}

/// The namespaces of a place, if it exists.
fn receive_namespaces(stream: &UnixStream) -> io::Result<Option<Namespaces>> {
    let descriptors = receive(stream)?.map(|(_, descriptors)| descriptors).unwrap_or_default();
    let four: Result<[OwnedFd; DESCRIPTORS], _> = descriptors.try_into();
    Ok(four.ok().map(|[user, net, mounts, pids]| Namespaces {
        user: Some(user),
        net: Some(net),
        mounts: Some(mounts),
        pids: Some(pids),
    }))
}

/// Receives a byte and the descriptors that came with it; none at the end of the stream.
pub(crate) fn receive(stream: &UnixStream) -> io::Result<Option<(u8, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?.bytes;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok((received > 0).then_some((byte[0], descriptors)))
}

/// Sends a byte, and descriptors with it.
pub(crate) fn send(stream: &UnixStream, byte: u8, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(stream, &[IoSlice::new(&[byte])], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// One caller of the lab.
pub(crate) struct Caller {
    stream: UnixStream,
}

impl Caller {
    /// Waits for the next caller and what it asks. A caller who is another user, or says nothing sensible, is passed over.
    pub(crate) fn accept(listener: &UnixListener) -> Result<(Self, Ask), LabError> {
        loop {
            let (stream, _) = listener.accept().doing(|| "wait for commands".into())?;
            let same_user = peer_user(stream.as_fd()).is_ok_and(|peer| peer == geteuid().as_raw());
            let mut line = String::new();
            if same_user
                && BufReader::new(&stream).read_line(&mut line).is_ok()
                && let Ok(question) = serde_json::from_str(&line)
            {
                return Ok((Self { stream }, question));
            }
        }
    }

    /// Answers; a caller that went away is not an error.
    pub(crate) fn answer(&mut self, answer: &Answer) {
        let text = serde_json::to_string(answer).unwrap_or_default();
        let _caller_is_gone = writeln!(self.stream, "{text}");
    }

    /// Hands out descriptors, or says by a bare byte that there are none.
    pub(crate) fn hand_out(&self, descriptors: &[OwnedFd]) -> io::Result<()> {
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        send(&self.stream, b'!', &borrowed)
    }
}

impl Write for Caller {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.answer(&Answer::Text(String::from_utf8_lossy(bytes).into_owned()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
