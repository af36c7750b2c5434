//! The floor of CNI: what the kernel must be asked for when a pod is connected and disconnected, and nothing else. No
//! configuration is read, nothing is checked and nothing taken back.
//!
//! Surface: [`Order`], [`Order::add`], [`Order::del`]. The program `cni-floor` does one of them and prints its [`Parts`]. The
//! objects and files are those that `flannel` with `bridge` and `host-local` leaves, in the plugins' order. The bridge is there
//! already, as it is for every pod but a node's first.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_core::addr::{Family, LinkName, Mac, Mtu};
use flannel_kernel::namespace::NetNamespace;
use flannel_kernel::netlink::link::{self, Kind, Settings};
use flannel_kernel::netlink::route::{self, Hop, Target};
use flannel_kernel::netlink::{Protocol, Request, Socket, address};
use flannel_kernel::pod_link::within;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Where `flannel` keeps what it told its delegate.
pub const CONFS: &str = "/run/cni/flannel";
/// Where `host-local` keeps who has which address.
pub const ADDRESSES: &str = "/run/cni/networks/cbr0";
/// The variable that tells the program its [`Order`], as JSON.
pub const ORDER: &str = "FLOOR_ORDER";

/// What is to be connected to what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The container's name.
    pub container: String,
    /// The path of its network namespace.
    pub netns: PathBuf,
    /// Index of the bridge.
    pub bridge: u32,
    /// The pod's address, with the length of its prefix.
    pub address: (IpAddr, u8),
    /// Its gateway.
    pub gateway: IpAddr,
    /// The network of all pods, with the length of its prefix.
    pub network: (IpAddr, u8),
    /// MTU of the pair.
    pub mtu: u32,
    /// What `flannel` would tell its delegate, to be written down.
    pub conf: String,
}

/// How long each part took, in nanoseconds.
pub type Parts = Vec<(String, u64)>;

struct Watch {
    parts: Parts,
    last: Instant,
}

impl Watch {
    fn start() -> Self {
        Self { parts: Parts::new(), last: Instant::now() }
    }

    fn lap(&mut self, part: &str) {
        let time = self.last.elapsed();
        self.last += time;
        self.parts.push((part.to_owned(), nanoseconds(time)));
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Order {
    /// Connects the pod.
    pub fn add(&self) -> Result<Parts> {
        let mut watch = Watch::start();
        fs::write(self.saved(), &self.conf).context("save the conf")?;
        self.take_address().context("take the address")?;
        watch.lap("files");
        let netns = NetNamespace::open(&self.netns)?;
        let mut host = Socket::open(Protocol::Route)?;
        let mut pod = within(&netns, || Socket::open(Protocol::Route))??;
        watch.lap("namespace");
        self.pair(&mut host, &netns)?;
        watch.lap("veth");
        within(&netns, sysctls)?.context("set sysctls")?;
        watch.lap("sysctls");
        let eth0 = pod.ask(&link::by_name(eth0()?), link::Report::read)?.first().map(|link| link.index);
        let eth0 = eth0.context("the pod has no eth0")?;
        pod.tell(&address::set_with_broadcast(eth0, net(self.address)))?;
        pod.tell(&link::change(eth0, &Settings { up: Some(true), ..Settings::default() }))?;
        watch.lap("address, up");
        self.routes(&mut pod, eth0)?;
        watch.lap("routes");
        Ok(watch.parts)
    }

    /// Disconnects the pod.
    pub fn del(&self) -> Result<Parts> {
        let mut watch = Watch::start();
        let lock = lock().context("lock")?;
        fs::remove_file(self.taken()).context("free the address")?;
        drop(lock);
        fs::remove_file(self.saved()).context("forget the conf")?;
        watch.lap("files");
        let mut host = Socket::open(Protocol::Route)?;
        watch.lap("namespace");
        host.tell(&Request::new(DEL_LINK, 0).body(&[0; 16]).attr(IFNAME, self.host_end()?))?;
        watch.lap("veth");
        Ok(watch.parts)
    }

    fn saved(&self) -> PathBuf {
        Path::new(CONFS).join(&self.container)
    }

    fn taken(&self) -> PathBuf {
        Path::new(ADDRESSES).join(self.address.0.to_string())
    }

    fn host_end(&self) -> Result<LinkName> {
        let tag: String = self.address.0.to_string().chars().filter(char::is_ascii_hexdigit).collect();
        let tail = tag.get(tag.len().saturating_sub(10)..).unwrap_or_default();
        format!("floor{tail}").parse().ok().context("no name for the host's end")
    }

    fn take_address(&self) -> io::Result<()> {
        let lock = lock()?;
        fs::write(self.taken(), format!("{}\r\neth0", self.container))?;
        // Of a range set that nobody has: the plugins go on where they were.
        fs::write(Path::new(ADDRESSES).join("last_reserved_ip.9"), self.address.0.to_string())?;
        drop(lock);
        Ok(())
    }

    /// Makes the pair where it belongs: a port of the bridge, with hairpin mode, and in the pod.
    fn pair(&self, host: &mut Socket, netns: &NetNamespace) -> Result<()> {
        let mac = |end: u8| match self.address.0 {
            IpAddr::V4(address) => [&[2, end][..], &address.octets()].concat(),
            IpAddr::V6(address) => [&[2, end][..], &address.octets()[12..]].concat(),
        };
        let mac = |end| mac(end).try_into().map(Mac).ok();
        let mtu = Some(Mtu(self.mtu));
        let pod = Settings { name: Some(eth0()?), mac: mac(1), mtu, netns: Some(netns.as_fd()), ..Settings::default() };
        let name = Some(self.host_end()?);
        let near =
            Settings { name, mac: mac(2), mtu, up: Some(true), master: Some(self.bridge), ..Settings::default() };
        let requests = [link::create(&near, &Kind::Veth(pod)), hairpin(self.host_end()?)];
        let failed = host.batch(&requests, || ());
        ensure!(failed.is_empty(), "the pair: {failed:?}");
        Ok(())
    }

    fn routes(&self, pod: &mut Socket, eth0: u32) -> Result<()> {
        let hop = Target::Link(Hop { index: eth0, gateway: Some(self.gateway), onlink: false });
        let default = IpNet::new_assert(Family::of(self.gateway).unspecified(), 0);
        let failed = pod.batch(&[route::set(default, 0, hop), route::set(net(self.network), 0, hop)], || ());
        ensure!(failed.is_empty(), "routes: {failed:?}");
        Ok(())
    }
}

fn net((address, length): (IpAddr, u8)) -> IpNet {
    IpNet::new_assert(address, length)
}

fn eth0() -> Result<LinkName> {
    "eth0".parse().ok().context("eth0 is no name")
}

fn lock() -> io::Result<File> {
    let lock =
        File::options().read(true).write(true).create(true).truncate(false).open(Path::new(ADDRESSES).join("lock"))?;
    lock.lock()?;
    Ok(lock)
}

fn sysctls() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0")?;
    fs::write("/proc/sys/net/ipv4/conf/eth0/arp_notify", "1")
}

/// `RTM_NEWLINK` and `RTM_DELLINK` of `linux/rtnetlink.h`, `IFLA_IFNAME` of `linux/if_link.h`.
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const IFNAME: u16 = 3;

/// `IFLA_BRPORT_MODE` of a port of a bridge (`linux/if_link.h`).
fn hairpin(port: LinkName) -> Request {
    const LINKINFO: u16 = 18;
    const SLAVE_KIND: u16 = 4;
    const SLAVE_DATA: u16 = 5;
    const MODE: u16 = 4;
    Request::new(NEW_LINK, 0).body(&[0; 16]).attr(IFNAME, port).nest(LINKINFO, |request| {
        request.attr(SLAVE_KIND, "bridge").nest(SLAVE_DATA, |request| request.attr(MODE, 1_u8))
    })
}

/// The order that the environment holds.
pub fn order(text: Option<OsString>) -> Result<Order> {
    let text = text.and_then(|text| text.into_string().ok()).with_context(|| format!("{ORDER} is not set"))?;
    serde_json::from_str(&text).context(ORDER)
}
