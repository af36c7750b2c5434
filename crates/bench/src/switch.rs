//! A network namespace with a bridge, for a server that daemons in namespaces of their own reach over cables.
//!
//! Surface: [`Switch`], [`Outage`]. What is connected and cut is layer 2 and the server's port; what serves there is its owner's.

use std::os::fd::{AsFd, BorrowedFd};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use flannel_kernel::namespace::{Namespaces, NetNamespace};
use flannel_kernel::netlink::link::{self, Kind, Settings};
use flannel_kernel::netlink::{Protocol, Socket, address};
use flannel_kernel::process::spawn_in;

use crate::cni::stand::find;

/// The server's address.
pub const ADDRESS: &str = "192.0.2.254";
/// The bridge that the daemons' cables end at.
const BRIDGE: &str = "br0";

/// The namespace of a server, with its end of every cable.
#[derive(Debug)]
pub struct Switch {
    net: NetNamespace,
    /// Where the server listens.
    port: u16,
}

/// How a server is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Its host refuses connections.
    Refused,
    /// Packets to it and from it are lost.
    Silent,
}

impl AsFd for Switch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }
}

impl Switch {
    /// Makes one for a server at a TCP port.
    pub fn create(port: u16) -> Result<Self> {
        let switch = Self { net: NetNamespace::create()?, port };
        lay_bridge(&mut switch.kernel()?)?;
        Ok(switch)
    }

    /// Its network namespace.
    pub fn net(&self) -> &NetNamespace {
        &self.net
    }

    /// Makes a device that was put here a port of the bridge.
    pub fn connect(&self, device: &str) -> Result<()> {
        let mut kernel = self.kernel()?;
        let master = Some(find(&mut kernel, BRIDGE)?.context(BRIDGE)?.index);
        let port = Settings { up: Some(true), master, ..Settings::default() };
        let index = find(&mut kernel, device)?.context("no such device at the server")?.index;
        Ok(kernel.tell(&link::change(index, &port))?)
    }

    /// Ends a device, and with it the cable that it is an end of.
    pub fn disconnect(&self, device: &str) -> Result<()> {
        let mut kernel = self.kernel()?;
        match find(&mut kernel, device)? {
            Some(found) => Ok(kernel.tell(&link::delete(found.index))?),
            None => Ok(()),
        }
    }

    fn kernel(&self) -> Result<Socket> {
        Ok(self.net.run(|| Socket::open(Protocol::Route))??)
    }

    /// Keeps all daemons away from the server.
    pub fn cut(&self, outage: Outage) -> Result<()> {
        let table = "add table inet cut; add chain inet cut in { type filter hook input priority 0; }; \
                     add chain inet cut out { type filter hook output priority 0; }";
        let port = self.port;
        let rule = match outage {
            Outage::Refused => format!("add rule inet cut in iifname {BRIDGE} tcp dport {port} reject with tcp reset"),
            Outage::Silent => {
                format!("add rule inet cut in iifname {BRIDGE} drop; add rule inet cut out oifname {BRIDGE} drop")
            }
        };
        self.nft(&format!("{table}; {rule}"))
    }

    /// Lets them in again, and answers with the moment.
    pub fn mend(&self) -> Result<Instant> {
        self.nft("delete table inet cut")?;
        Ok(Instant::now())
    }

    fn nft(&self, script: &str) -> Result<()> {
        let mut command = Command::new("nft");
        command.arg(script);
        let status = spawn_in(command, Namespaces::of(&self.net, None)?).context("nft")?.wait()?;
        ensure!(status.success(), "nft cannot `{script}`");
        Ok(())
    }
}

/// A loopback, and the bridge with the server's address.
fn lay_bridge(kernel: &mut Socket) -> Result<()> {
    let settings = Settings { name: BRIDGE.parse().ok(), up: Some(true), ..Settings::default() };
    kernel.tell(&link::create(&settings, &Kind::Bridge { vlan_filtering: false }))?;
    let index = find(kernel, BRIDGE)?.context(BRIDGE)?.index;
    kernel.tell(&address::set_with_broadcast(index, format!("{ADDRESS}/24").parse()?))?;
    let loopback = find(kernel, "lo")?.context("lo")?.index;
    Ok(kernel.tell(&link::change(loopback, &Settings { up: Some(true), ..Settings::default() }))?)
}
