//! The node that the contenders work on, one after another: the enclosure's own network namespace, with what a running
//! flanneld would have left, and pods with nothing in them.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flannel_kernel::mount;
use flannel_kernel::namespace::NetNamespace;
use flannel_kernel::netlink::link::{self, Report, Settings};
use flannel_kernel::netlink::{Protocol, Socket};
use flannel_kernel::process::Enclosed;
use ipnet::IpNet;

use crate::floor;

/// The pod subnet of the node.
pub const SUBNET: &str = "10.244.1.0/24";
/// The network of all pods.
pub const NETWORK: &str = "10.244.0.0/16";
/// The MTU of pods.
pub const MTU: u32 = 1450;
/// Where our plugins are called.
const BIN: &str = "/run/bin";

/// The node.
#[derive(Debug)]
pub struct Stand {
    /// Index of the bridge; 0 before the first pod was there.
    pub bridge: u32,
    /// The pod subnet.
    pub subnet: IpNet,
    /// The bridge's address.
    pub gateway: IpAddr,
    /// The network of all pods.
    pub network: IpNet,
    links: Socket,
}

/// A pod's network namespace.
#[derive(Debug)]
pub struct Pod {
    /// The container's name.
    pub name: String,
    /// Where its namespace is found.
    pub path: PathBuf,
    /// The address that it has from the floor; plugins choose one themselves.
    pub address: IpAddr,
    /// The ports of the node that can be published for it.
    pub ports: Vec<u16>,
    links: std::sync::Mutex<Socket>,
}

impl Stand {
    /// Furnishes the enclosure with our plugins and what flanneld writes.
    pub fn new(_enclosed: Enclosed, flannel: &Path) -> Result<Self> {
        let program = flannel.canonicalize().and_then(fs::File::open).with_context(|| flannel.display().to_string())?;
        mount::tmpfs(Path::new("/run"))?;
        for folder in ["/run/netns", "/run/flannel", BIN, floor::CONFS, floor::ADDRESSES] {
            fs::create_dir_all(folder).context(folder)?;
        }
        let copy = Path::new(BIN).join("flannel");
        fs::File::create(&copy)?;
        mount::bind(&PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&program))), &copy)?;
        for name in ["bridge", "host-local", "portmap"] {
            std::os::unix::fs::symlink("flannel", Path::new(BIN).join(name))?;
        }
        let (subnet, network): (IpNet, IpNet) = (SUBNET.parse()?, NETWORK.parse()?);
        let gateway = subnet.hosts().next().context("the subnet has no hosts")?;
        let keys = [
            format!("FLANNEL_NETWORK={network}"),
            format!("FLANNEL_SUBNET={gateway}/{}", subnet.prefix_len()),
            format!("FLANNEL_MTU={MTU}"),
            "FLANNEL_IPMASQ=true\n".to_owned(),
        ];
        fs::write("/run/flannel/subnet.env", keys.join("\n"))?;
        let mut links = Socket::open(Protocol::Route)?;
        let loopback = find(&mut links, "lo")?.context("no loopback")?;
        links.tell(&link::change(loopback.index, &Settings { up: Some(true), ..Settings::default() }))?;
        Ok(Self { bridge: 0, subnet, gateway, network, links })
    }

    /// The folder of our plugins.
    pub fn plugins(&self) -> &'static Path {
        Path::new(BIN)
    }

    /// Notes the bridge that the first pod's plugin has made.
    pub fn note_bridge(&mut self) -> Result<()> {
        self.bridge = find(&mut self.links, "cni0")?.context("the first ADD has made no cni0")?.index;
        Ok(())
    }

    /// Makes a pod; the floor gives it the address of its number, counted from the end of the subnet.
    pub fn pod(&self, name: &str, number: usize, ports: Vec<u16>) -> Result<Pod> {
        let path = Path::new("/run/netns").join(name);
        let netns = NetNamespace::create()?;
        netns.pin(&path)?;
        let links = netns.run(|| Socket::open(Protocol::Route))??.into();
        let hosts: Vec<IpAddr> = self.subnet.hosts().collect();
        let address = *hosts.iter().rev().nth(number).context("more pods than addresses")?;
        Ok(Pod { name: name.to_owned(), path, address, ports, links })
    }
}

/// The index of every namespace's loopback device, which is down in our pods.
const LOOPBACK: u32 = 1;
/// How long after a DEL its link may still be there.
const PATIENCE: Duration = Duration::from_secs(5);

impl Pod {
    /// Waits until no link but the loopback is in the pod, and the kernel is done with destroying it: it lists no link any more
    /// long before that, but keeps all changes of links waiting meanwhile.
    pub fn wait_disconnected(&self) -> Result<()> {
        let begun = Instant::now();
        let mut links = self.links.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while links.dump(&link::list(), Report::read)?.iter().any(|link| &*link.kind == "veth") {
            if begun.elapsed() > PATIENCE {
                bail!("the link of {} is still there {} s after DEL", self.name, PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        let unchanged = Settings { up: Some(false), ..Settings::default() };
        Ok(links.tell(&link::change(LOOPBACK, &unchanged))?)
    }
}

/// The link of a name in the namespace of a socket.
pub fn find(links: &mut Socket, name: &str) -> Result<Option<Report>> {
    let links = links.dump(&link::list(), Report::read)?;
    Ok(links.into_iter().find(|link| link.name.as_str() == name))
}
