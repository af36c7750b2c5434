//! A node for one flanneld with many peers that exist only as leases: network namespaces with an external interface, and a store
//! full of them, which is a directory, etcd or Kubernetes.
//!
//! Surface: [`Ground`] (namespaces and store), [`Daemon`] (a flanneld on it, and what it uses), [`Rules`]. The peers' public
//! addresses are those of RFC 2544's benchmark network.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flannel_core::addr::Family;
use flannel_kernel::mount;
use flannel_kernel::namespace::NetNamespace;
use flannel_kernel::netlink::link::{self, Kind, Settings};
use flannel_kernel::netlink::route::{self, Hop, Target};
use flannel_kernel::netlink::{Protocol, Socket, address, neigh};
use flannel_kernel::process::Enclosed;
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::Api;
use crate::cni::stand::find;
use crate::node;
use crate::server::{ADDRESS, Server};
use crate::switch::{self, Switch};

const STORE: &str = "/run/store";
const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const PROGRAMS: &str = "/run/programs";
/// Ticks of a second in `/proc/PID/stat`: `USER_HZ`, the same on all architectures that flannel is built for.
const TICKS: f64 = 100.0;
/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_mins(1);
/// The pause between two looks.
const POLL: Duration = Duration::from_micros(200);

/// By what flanneld makes its packet rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rules {
    /// nf_tables.
    #[default]
    Nft,
    /// iptables-nft.
    IptablesNft,
    /// iptables-legacy.
    IptablesLegacy,
}

impl Rules {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Nft, Self::IptablesNft, Self::IptablesLegacy];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        }
    }

    /// The suffix of the iptables programs that there are.
    fn variant(self) -> &'static str {
        self.name().strip_prefix("iptables-").unwrap_or("nft")
    }
}

/// Where a flanneld runs.
#[derive(Debug)]
pub struct Ground {
    peers: u32,
    rules: Rules,
    /// Kept until the end: while the kernel takes a full namespace down nothing else goes quickly.
    used: Vec<NetNamespace>,
    leases: Leases,
}

/// Where the leases are.
#[derive(Debug)]
enum Leases {
    Directory,
    Etcd(Server),
    Kubernetes(Box<Api>),
}

/// The name of the Node that this node is in Kubernetes, and where flanneld finds its config then.
const NODE: &str = "node";
const NET_CONF: &str = "/run/net-conf.json";

/// The prefix of flannel's keys in etcd: the default of `--etcd-prefix`.
const PREFIX: &str = "/coreos.com/network";

impl Ground {
    /// Makes a private `/run` with programs for rules. Flannel in Go does not start without those of iptables, whatever its rules
    /// are in, and runs `nft`.
    pub fn new(_enclosed: Enclosed, peers: u32, rules: Rules) -> Result<Self> {
        mount::tmpfs(Path::new("/run"))?;
        fs::create_dir_all(PROGRAMS)?;
        symlink("/usr/sbin/nft", Path::new(PROGRAMS).join("nft"))?;
        for family in ["iptables", "ip6tables"] {
            for verb in ["", "-save", "-restore"] {
                let program = format!("{family}-{}{verb}", rules.variant());
                for name in [&format!("{family}{verb}"), &program] {
                    symlink(Path::new("/usr/sbin").join(&program), Path::new(PROGRAMS).join(name))?;
                }
            }
        }
        Ok(Self { peers, rules, used: Vec::new(), leases: Leases::Directory })
    }

    /// The same on etcd, which holds the peers' leases from now on.
    pub fn on_etcd(enclosed: Enclosed, peers: u32) -> Result<Self> {
        let mut ground = Self::new(enclosed, peers, Rules::Nft)?;
        let mut server = Server::start()?;
        server.put(&format!("{PREFIX}/config"), &ground.config())?;
        ground.leases = Leases::Etcd(server);
        (0..peers).try_for_each(|number| ground.join(Peer(number)).map(drop))?;
        Ok(ground)
    }

    /// The same on Kubernetes, whose Nodes the peers are from now on.
    pub fn on_kubernetes(enclosed: Enclosed, peers: u32) -> Result<Self> {
        let mut ground = Self::new(enclosed, peers, Rules::Nft)?;
        ground.leases = Leases::Kubernetes(Box::new(Api::start()?));
        (0..peers).try_for_each(|number| ground.join(Peer(number)).map(drop))?;
        fs::write(NET_CONF, ground.config())?;
        Ok(ground)
    }

    /// The server of etcd, where there is one.
    pub fn server(&mut self) -> Result<&mut Server> {
        if let Leases::Etcd(server) = &mut self.leases { Ok(server) } else { bail!("there is no etcd") }
    }

    /// The API server of Kubernetes, where there is one.
    pub fn api(&mut self) -> Result<&mut Api> {
        if let Leases::Kubernetes(api) = &mut self.leases { Ok(api) } else { bail!("there is no Kubernetes") }
    }

    /// Starts from nothing: a fresh network namespace, in which this process is from then on, and a store with the peers'
    /// leases alone.
    pub fn renew(&mut self) -> Result<()> {
        self.unplug()?;
        self.move_on("192.0.2.1/24".parse()?)?;
        match fs::remove_file(SUBNET_FILE) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        match &mut self.leases {
            Leases::Directory => self.renew_directory(),
            Leases::Etcd(server) => ["subnets", "holders"]
                .iter()
                .try_for_each(|folder| server.delete(&format!("{PREFIX}/{folder}/10.0.1.0-24"))),
            Leases::Kubernetes(api) => {
                let _none_yet = api.delete(NODE);
                api.create(&node::node(NODE, "192.0.2.1".parse()?, "10.0.1.0/24".parse()?)).map(drop)
            }
        }
    }

    fn renew_directory(&self) -> Result<()> {
        match fs::remove_dir_all(STORE) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        fs::create_dir_all(Path::new(STORE).join("subnets"))?;
        fs::write(Path::new(STORE).join("config.json"), self.config())?;
        (0..self.peers).try_for_each(|number| Peer(number).join().map(drop))
    }

    /// Writes a peer's lease where the leases are, as another flanneld would; answers with the moment at which that was begun.
    pub fn join(&mut self, peer: Peer) -> Result<Instant> {
        match &mut self.leases {
            Leases::Directory => peer.join(),
            Leases::Etcd(server) => peer.join_on(server),
            Leases::Kubernetes(api) => peer.join_cluster(api),
        }
    }

    /// Takes a peer's lease away.
    pub fn leave(&mut self, peer: Peer) -> Result<()> {
        match &mut self.leases {
            Leases::Directory => Ok(fs::remove_file(peer.file())?),
            Leases::Etcd(server) => server.delete(&peer.key()),
            Leases::Kubernetes(api) => api.delete(&peer.name()),
        }
    }

    /// Takes the namespace in use off the server: the next may have its address.
    pub fn unplug(&self) -> Result<()> {
        self.switch().map_or(Ok(()), |switch| switch.disconnect(&cable(self.used.len())))
    }

    /// Puts this process back into a namespace, by its number.
    pub fn move_back(&self, number: usize) -> Result<()> {
        Ok(self.used.get(number).context("no such namespace")?.enter()?)
    }

    /// How many namespaces were made.
    pub fn namespaces(&self) -> usize {
        self.used.len()
    }

    /// A fresh network namespace with an external interface that has this address; this process is in it from then on.
    pub fn move_on(&mut self, external: IpNet) -> Result<()> {
        let fresh = NetNamespace::create()?;
        fresh.enter()?;
        self.used.push(fresh);
        lay_external_interface(external, self.switch().map(|switch| (switch, self.used.len())))
    }

    /// What the daemons reach their server by, where there is one.
    pub fn switch(&self) -> Option<&Switch> {
        match &self.leases {
            Leases::Directory => None,
            Leases::Etcd(server) => Some(server.switch()),
            Leases::Kubernetes(api) => Some(api.switch()),
        }
    }

    /// The network config: one subnet for the node, the others for its peers.
    fn config(&self) -> String {
        let config = json!({
            "Network": "10.0.0.0/8", "SubnetLen": 24, "SubnetMin": "10.0.1.0", "SubnetMax": "10.0.1.0",
            "EnableNFTables": self.rules == Rules::Nft, "Backend": { "Type": "vxlan" },
        });
        config.to_string()
    }

    /// Starts a flanneld.
    pub fn start(&self, program: &Path) -> Result<Daemon> {
        self.start_as(NODE, program, &[])
    }

    /// The same as another node, with further arguments.
    pub fn start_as(&self, node: &str, program: &Path, arguments: &[&str]) -> Result<Daemon> {
        let store = match &self.leases {
            Leases::Directory => vec![format!("--local-store={STORE}")],
            Leases::Etcd(_) => vec![format!("--etcd-endpoints={ADDRESS}")],
            Leases::Kubernetes(api) => {
                let kubeconfig = format!("--kubeconfig-file={}", api.kubeconfig().display());
                vec!["--kube-subnet-mgr".into(), kubeconfig, format!("--net-config-path={NET_CONF}")]
            }
        };
        let log = fs::File::create("/run/flanneld.log")?;
        let mut command = Command::new(program);
        command.args(store).args(arguments).arg("--ip-masq").stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log).env("PATH", format!("{PROGRAMS}:/usr/bin:/bin"));
        command.env_remove("NOTIFY_SOCKET").env("NODE_NAME", node).arg0("flanneld");
        let started = Instant::now();
        let child = command.spawn().with_context(|| program.display().to_string())?;
        Ok(Daemon { child, started, kernel: Socket::open(Protocol::Route)?, peers: self.peers })
    }
}

/// The switch's end of the cable to a namespace.
fn cable(number: usize) -> String {
    format!("far{number}")
}

/// An `eth0` with an address and a default route, whose other end is at a switch, as its cable of that number, or goes nowhere.
fn lay_external_interface(external: IpNet, switch: Option<(&Switch, usize)>) -> Result<()> {
    let mut kernel = Socket::open(Protocol::Route)?;
    let name = |name: &str| name.parse().ok();
    let (far, netns) = match switch {
        Some((switch, number)) => (cable(number), Some(switch.as_fd())),
        None => ("far0".to_owned(), None),
    };
    let other_end = Settings { name: name(&far), netns, ..Settings::default() };
    kernel.tell(&link::create(&Settings { name: name("eth0"), ..Settings::default() }, &Kind::Veth(other_end)))?;
    let here = if switch.is_some() { ["lo", "eth0"].as_slice() } else { &["lo", "far0", "eth0"] };
    for device in here {
        let index = find(&mut kernel, device)?.context("no such device")?.index;
        kernel.tell(&link::change(index, &Settings { up: Some(true), ..Settings::default() }))?;
    }
    if let Some((switch, _)) = switch {
        switch.connect(&far)?;
    }
    let index = find(&mut kernel, "eth0")?.context("eth0")?.index;
    kernel.tell(&address::set_with_broadcast(index, external))?;
    let hop = Target::Link(Hop { index, gateway: Some(switch::ADDRESS.parse()?), onlink: false });
    kernel.tell(&route::set("0.0.0.0/0".parse()?, 0, hop))?;
    Ok(())
}

/// A peer by its number.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub u32);

impl Peer {
    fn subnet(self) -> Ipv4Addr {
        Ipv4Addr::from(0x0a01_0000 + (self.0 << 8))
    }

    fn record(self) -> Value {
        json!({
            "PublicIP": self.public_ip(), "PublicIPv6": null, "BackendType": "vxlan",
            "BackendData": { "VNI": 1, "VtepMAC": self.mac() },
        })
    }

    /// The name of its Node.
    pub fn name(self) -> String {
        format!("peer-{}", self.0)
    }

    /// Its address in the underlay.
    pub fn public_ip(self) -> Ipv4Addr {
        Ipv4Addr::from(0xc612_0000 + self.0)
    }

    /// The addresses of its pods.
    pub fn pod_cidr(self) -> Ipv4Net {
        Ipv4Net::new_assert(self.subnet(), 24)
    }

    /// Of its VTEP.
    pub fn mac(self) -> String {
        let [_, a, b, c] = self.0.to_be_bytes();
        format!("02:00:{a:02x}:{b:02x}:{c:02x}:01")
    }

    fn file(self) -> PathBuf {
        Path::new(STORE).join(format!("subnets/{}-24.json", self.subnet()))
    }

    fn key(self) -> String {
        format!("{PREFIX}/subnets/{}-24", self.subnet())
    }

    /// Puts its lease into the directory, as another flanneld would: whole or not at all.
    fn join(self) -> Result<Instant> {
        let begun = Instant::now();
        let mut record = self.record();
        record["Sequence"] = (self.0 + 1).into();
        let unfinished = Path::new(STORE).join(".unfinished");
        fs::write(&unfinished, record.to_string())?;
        fs::rename(unfinished, self.file())?;
        Ok(begun)
    }

    /// Puts its lease into etcd, as another flanneld would; answers with the moment at which the record was sent.
    pub fn join_on(self, server: &mut Server) -> Result<Instant> {
        let (lease, record) = (server.grant()?, self.record().to_string());
        let begun = Instant::now();
        server.put_until(&self.key(), &record, &lease)?;
        Ok(begun)
    }

    /// Makes its Node, with all that another flanneld would say of itself on it.
    fn join_cluster(self, api: &mut Api) -> Result<Instant> {
        let node = node::of_peer(self);
        let begun = Instant::now();
        api.create(&node)?;
        Ok(begun)
    }
}

/// A flanneld; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    started: Instant,
    kernel: Socket,
    peers: u32,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone_already = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl Daemon {
    /// Waits for `subnet.env`; the time from the start until it was there.
    pub fn wait_subnet_file(&mut self) -> Result<Duration> {
        self.wait_file(SUBNET_FILE)
    }

    /// The same for one at another place.
    pub fn wait_file(&mut self, path: &str) -> Result<Duration> {
        self.wait("subnet.env", |_| Ok(fs::exists(path)?))
    }

    /// Waits until the kernel holds route, neighbour and forwarding entry of every peer; the time from the start until
    /// the first look that found a sample of the routes, if they were all there then.
    pub fn wait_programmed(&mut self) -> Result<Duration> {
        let sample: Vec<Peer> = (0..8).map(|part| Peer((self.peers - 1) * part / 7)).collect();
        let routed = |daemon: &mut Self| {
            Ok(sample.iter().map(|peer| daemon.is_routed(*peer)).collect::<Result<Vec<_>>>()?.iter().all(|is| *is))
        };
        let sampled = self.wait("routes of the peers", routed)?;
        if self.is_whole()? {
            return Ok(sampled);
        }
        self.wait("routes, neighbours and forwarding entries of all peers", Self::is_whole)
    }

    /// Waits until the kernel routes to a peer, or does so no more; the time since `begun`.
    pub fn wait_route(&mut self, peer: Peer, present: bool, begun: Instant) -> Result<Duration> {
        let offset = begun.duration_since(self.started);
        let took = self.wait("the change of one route", |daemon| Ok(daemon.is_routed(peer)? == present))?;
        Ok(took.saturating_sub(offset))
    }

    fn wait(&mut self, what: &str, mut is: impl FnMut(&mut Self) -> Result<bool>) -> Result<Duration> {
        let begun = Instant::now();
        while !is(self)? {
            if let Some(status) = self.child.try_wait()? {
                bail!("flanneld ended with {status}: {}", log());
            }
            if begun.elapsed() > PATIENCE {
                bail!("flanneld made no {what} within {} s: {}", PATIENCE.as_secs(), log());
            }
            std::thread::sleep(POLL);
        }
        Ok(self.started.elapsed())
    }

    fn is_routed(&mut self, peer: Peer) -> Result<bool> {
        let found = self.kernel.ask(&route::lookup(IpAddr::V4(peer.subnet())), route::Report::read)?;
        let gateway = Some(IpAddr::V4(peer.subnet()));
        Ok(found.iter().any(|route| route.hops.iter().any(|hop| hop.gateway == gateway)))
    }

    fn is_whole(&mut self) -> Result<bool> {
        let Some(device) = find(&mut self.kernel, "flannel.1")? else { return Ok(false) };
        let (index, peers) = (device.index, self.peers as usize);
        let is_peers = |route: &route::Report| route.is_main() && matches!(route.destination, IpNet::V4(_));
        let filter = route::Filter { protocol: Some(route::PROTOCOL), ..route::Filter::default() };
        let routes = self.kernel.dump(&route::list(Family::V4, filter), route::Report::read)?;
        // The default route is the one that is no peer's.
        if routes.iter().filter(|route| is_peers(route)).count() < peers + 1 {
            return Ok(false);
        }
        for list in [neigh::list(Family::V4, index), neigh::list_forwarding(index)] {
            let found = self.kernel.dump(&list, neigh::Report::read)?;
            if found.iter().filter(|entry| entry.is_permanent()).count() < peers {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// User and system time until now, of the children that it waited for too.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(") ").context("/proc/PID/stat")?;
        // utime, stime, cutime and cstime are fields 14 to 17 of proc(5); here the third is the first.
        let ticks = fields.split(' ').skip(11).take(4).map(|field| field.parse::<f64>().unwrap_or_default());
        Ok(Duration::from_secs_f64(ticks.sum::<f64>() / TICKS))
    }

    /// A size of `/proc/PID/status` in bytes: `VmRSS`, `VmHWM`.
    pub fn memory(&self, key: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        Ok(kib.with_context(|| format!("no {key} of flanneld"))? * 1024.0)
    }

    /// Bytes that its namespace has received from outside.
    pub fn received(&self) -> Result<f64> {
        let text = fs::read_to_string(format!("/proc/{}/net/dev", self.child.id()))?;
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).context("nothing is told of eth0")
    }

    /// The numbers of its threads.
    pub fn threads(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(format!("/proc/{}/task", self.child.id()))?;
        Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }
}

/// The number that was given last to a process or thread of this PID namespace.
pub fn last_pid() -> Result<u64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    text.split_whitespace().last().and_then(|number| number.parse().ok()).context("/proc/loadavg")
}

fn log() -> String {
    let text = fs::read_to_string("/run/flanneld.log").unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join(" / ")
}
