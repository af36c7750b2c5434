//! A process outside of the lab that passes connections of the lab's nodes on to servers outside.
//!
//! Surface: [`start`], [`run`], [`Line`]. The lab makes the listening sockets, in its nodes' namespaces, and hands them over by
//! a line of two connected Unix sockets; the relay accepts there, and connects from where it is. So no packet of the
//! lab is ever in the machine's own network, no right is needed for it, and the servers see this machine. The relay ends with
//! the lab, however that ends: the line ends then.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;

use flannel_store::etcd::Endpoint;

use crate::control::{receive, send};
use crate::error::{Doing, LabError};
use crate::etcd::elsewhere::{Elsewhere, connect};

/// The lab's end of the line.
#[derive(Debug)]
pub(crate) struct Line(UnixStream);

impl Line {
    /// The line that [`start`] made, which is the lab's standard input.
    pub(crate) fn of_stdin() -> Result<Self, LabError> {
        let descriptor = io::stdin().as_fd().try_clone_to_owned().doing(|| "take the line to the relay".into())?;
        Ok(Self(descriptor.into()))
    }

    /// Where the lab hears its callers: sent along by [`start`].
    pub(crate) fn listener(&self) -> Result<UnixListener, LabError> {
        let received = receive(&self.0).doing(|| "take the socket".into())?;
        let listener = received.and_then(|(_, descriptors)| descriptors.into_iter().next());
        listener.map(UnixListener::from).ok_or(LabError::Control("the lab got no socket to hear its callers"))
    }

    /// Has what connects to a listener passed on to a server, by its number.
    pub(crate) fn hand_over(&self, server: usize, listener: &TcpListener) -> Result<(), LabError> {
        let number = u8::try_from(server).map_err(|_| LabError::Options("--store: too many servers".into()))?;
        send(&self.0, number, &[listener.as_fd()]).doing(|| "hand a socket to the relay".into())
    }
}

/// Starts the relay to an etcd that has the network config of the lab, or is given it. The answer is the standard input of the lab.
pub(crate) fn start(there: &Elsewhere, config: &str, callers: Option<UnixListener>) -> Result<OwnedFd, LabError> {
    let made = there.adopt(config)?;
    let (ours, theirs) = UnixStream::pair().doing(|| "make a line to the relay".into())?;
    if let Some(listener) = callers {
        send(&ours, 0, &[listener.as_fd()]).doing(|| "hand over the socket".into())?;
    }
    let options = serde_json::to_string(there).map_err(io::Error::from).doing(|| "write the options".into())?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("flannel").args(["lab", "relay"]).args(made.then_some("--made")).arg(options);
    // In a group of its own: what ends the lab from a terminal must not end who clears up behind it.
    command.stdin(OwnedFd::from(ours)).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    command.env_remove("CNI_COMMAND").spawn().doing(|| "start the relay".into())?;
    Ok(theirs.into())
}

/// Is the relay until the lab has ended. What the lab has `made` is deleted then.
pub(crate) fn run(there: &Elsewhere, made: bool) -> Result<(), LabError> {
    let servers = there.servers()?;
    let Line(line) = Line::of_stdin()?;
    while let Ok(Some((number, descriptors))) = receive(&line) {
        let Some(server) = servers.get(usize::from(number)) else { continue };
        for listener in descriptors {
            let server = server.clone();
            thread::spawn(move || serve(&listener.into(), &server));
        }
    }
    if made { there.empty() } else { Ok(()) }
}

fn serve(listener: &TcpListener, server: &Endpoint) {
    for client in listener.incoming().flatten() {
        let server = server.clone();
        thread::spawn(move || pass(&client, &server));
    }
}

/// Passes bytes on both ways until both ends have had enough. A server that cannot be reached is a connection that ends.
fn pass(client: &TcpStream, server: &Endpoint) {
    let Ok(server) = connect(server) else { return };
    for end in [client, &server] {
        let _is_only_slower = end.set_nodelay(true);
    }
    thread::scope(|scope| {
        scope.spawn(|| copy(client, &server));
        copy(&server, client);
    });
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let ended = io::copy(&mut from, &mut to);
    let _gone_already = to.shutdown(Shutdown::Write);
    if ended.is_err() {
        let _gone_already = from.shutdown(Shutdown::Both);
    }
}
