//! The lab itself: the underlay, its nodes and pods, brought up in order.
//!
//! Surface: [`Lab`], [`Node`], [`Pod`]. A lab lives in the namespaces of the process that made it and needs no taking down:
//! the end of that process' init ends it ([`flannel_kernel::process::enclose`]).

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flannel_core::addr::{Dual, Family, Mtu};
use flannel_core::subnet_env::SubnetEnv;
use flannel_kernel::mount;
use flannel_kernel::namespace::{MountNamespace, NetNamespace};
use flannel_kernel::process::Enclosed;
use ipnet::IpNet;

use crate::build::Build;
use crate::echo;
use crate::error::{Doing, LabError};
use crate::etcd::elsewhere::{Elsewhere, HOSTS};
use crate::etcd::{Etcd, Member};
use crate::flanneld::Flanneld;
use crate::layout::{EXTERNAL, Layout, OUTSIDE, OUTSIDE_PORT, ROUTER, Seat};
use crate::options::{LabOptions, pod_networks};
use crate::place::Place;
use crate::relay::Line;
use crate::runtime::{Attachment, Runtime, conf_list};
use crate::wire::{Wire, cable, lay};

/// The lab's own files, seen from every place of it.
pub(crate) const ROOT: &str = "/run/lab";
/// The names under which the one executable stands in the `bin` folder of a [`Lab`].
const APPLETS: [&str; 6] = ["flanneld", "flannel", "bridge", "host-local", "portmap", "loopback"];

/// A network of nodes.
#[derive(Debug)]
pub struct Lab {
    options: LabOptions,
    layout: Layout,
    router: Place,
    outside: Place,
    etcd: Option<Etcd>,
    nodes: Vec<Node>,
}

/// A host that is part of the pod network.
#[derive(Debug)]
pub struct Node {
    place: Place,
    run: PathBuf,
    arguments: Vec<String>,
    runtime: Runtime,
    build: Build,
    pods: Vec<Pod>,
    /// Its daemon.
    pub flanneld: Flanneld,
}

/// A pod: a network namespace that the node's CNI plugins connected.
#[derive(Debug)]
pub struct Pod {
    place: Place,
    attachment: Attachment,
}

impl Lab {
    /// Brings a lab up: underlay, nodes, daemons, pods. `executable` is the built multi-call program; `tell` hears what is
    /// being done.
    pub fn start(
        enclosed: Enclosed,
        options: LabOptions,
        executable: &Path,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Self, LabError> {
        if options.store.elsewhere().is_some() {
            return Err(LabError::Control("only the command `flannel lab` reaches an etcd outside of the lab"));
        }
        Self::start_by(enclosed, None, options, executable, tell)
    }

    /// The same with a line to the relay, where there is one.
    pub(crate) fn start_by(
        _enclosed: Enclosed,
        line: Option<&Line>,
        options: LabOptions,
        executable: &Path,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Self, LabError> {
        options.check()?;
        let layout = Layout::new(&options);
        furnish(executable, &options)?;
        tell("laying the underlay");
        let mounts = nodes_mounts(&layout)?;
        let (router, outside) = (Place::create(ROUTER, None)?, Place::create(OUTSIDE, None)?);
        lay_router(&layout, &router, &outside)?;
        lay_return_rules(&options, &layout, &router)?;
        let etcd = start_etcd(&options, &layout, &router, tell)?;
        let mut nodes = Vec::new();
        for (seat, mounts) in layout.nodes.iter().zip(mounts) {
            let node = Node::connect(seat, &layout, mounts, &router, &options, etcd.as_ref())?;
            if let (Some(there), Some(line)) = (options.store.elsewhere(), line) {
                there.open_doors(&node.place, line)?;
            }
            nodes.push(node);
        }
        let mut lab = Self { options, layout, router, outside, etcd, nodes };
        lab.prepare_nodes()?;
        lab.start_daemons(tell)?;
        lab.add_pods(tell)?;
        lab.lay_return_routes()?;
        tell("waiting for the first packets to pass");
        let _the_proofs_will_tell = lab.settle(Duration::from_secs(5))?;
        Ok(lab)
    }

    fn prepare_nodes(&self) -> Result<(), LabError> {
        for (node, line) in self.nodes.iter().flat_map(|node| self.options.prepare.iter().map(move |line| (node, line)))
        {
            node.run_line(line)?;
        }
        Ok(())
    }

    fn start_daemons(&mut self, tell: &mut dyn FnMut(&str)) -> Result<(), LabError> {
        tell("starting a flanneld on each node");
        for node in &mut self.nodes {
            node.flanneld.start(&node.arguments)?;
        }
        self.nodes.iter_mut().try_for_each(|node| node.flanneld.wait_ready())
    }

    fn add_pods(&mut self, tell: &mut dyn FnMut(&str)) -> Result<(), LabError> {
        tell("adding the pods through CNI");
        for (node, seat) in self.nodes.iter_mut().zip(&self.layout.nodes) {
            seat.pods.iter().try_for_each(|pod| node.add_pod(pod))?;
        }
        Ok(())
    }

    /// Lets the outside host answer pods that reach it without masquerade: the router learns where each pod subnet is, for
    /// what comes from outside only, so that no pod traffic can go around a broken overlay.
    pub fn lay_return_routes(&self) -> Result<(), LabError> {
        let mut wires = Vec::new();
        for node in &self.nodes {
            let address = node.external_addresses()?;
            let subnets = node.subnets();
            let routes =
                subnets.iter().filter_map(|(family, net)| Some(Wire::ReturnRoute(*net, *address.get(family)?)));
            wires.extend(routes);
        }
        lay(&self.router, &wires)
    }

    /// Waits until the first pod of each node reaches that of each other; answers whether they do.
    pub fn settle(&self, patience: Duration) -> Result<bool, LabError> {
        let since = Instant::now();
        let firsts: Vec<&Pod> = self.nodes.iter().filter_map(|node| node.pods.first()).collect();
        for (from, to) in firsts.iter().flat_map(|from| firsts.iter().map(move |to| (from, to))) {
            for address in to.addresses().values() {
                let left = patience.saturating_sub(since.elapsed()).max(Duration::from_millis(200));
                if echo::ping(&from.place, None, *address, left)?.is_none() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The options it was made with.
    pub fn options(&self) -> &LabOptions {
        &self.options
    }

    /// Who is where.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The nodes in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its place in the order, from 0. Panics beyond the last.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The same, to be changed.
    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// The place in the order of the node of a name.
    pub fn node_named(&self, name: &str) -> Result<usize, LabError> {
        let found = self.nodes.iter().position(|node| node.place.name() == name);
        found.ok_or_else(|| LabError::Unknown {
            name: name.to_owned(),
            known: names(self.nodes.iter().map(Node::place)),
        })
    }

    /// Makes another build a node's: of its plugins from now on, of its flanneld from the next start on. Answers with the
    /// one before.
    pub fn install(&mut self, node: usize, build: Build) -> Build {
        self.nodes[node].install(build, &self.options, self.etcd.as_ref())
    }

    /// The servers of etcd, where leases are kept there.
    pub fn etcd(&self) -> Option<&Etcd> {
        self.etcd.as_ref()
    }

    /// The same, to be changed.
    pub fn etcd_mut(&mut self) -> Option<&mut Etcd> {
        self.etcd.as_mut()
    }

    /// The router between the segments, and to the outside.
    pub(crate) fn router(&self) -> &Place {
        &self.router
    }

    /// The host that is not part of the network.
    pub fn outside(&self) -> &Place {
        &self.outside
    }

    /// The address of the outside host.
    pub fn outside_address(&self, family: Family) -> Option<IpAddr> {
        self.layout.outside.get(family).map(IpNet::addr)
    }

    /// All pods with the node each is on.
    pub fn pods(&self) -> impl Iterator<Item = (&Node, &Pod)> {
        self.nodes.iter().flat_map(|node| node.pods.iter().map(move |pod| (node, pod)))
    }

    /// The place of a name: a node, a pod, a server of etcd, `router`, `outside`.
    pub fn place(&self, name: &str) -> Result<&Place, LabError> {
        let nodes = self.nodes.iter().map(|node| &node.place);
        let pods = self.pods().map(|(_, pod)| &pod.place);
        let servers = self.etcd.iter().flat_map(Etcd::members).map(Member::place);
        let all: Vec<&Place> = nodes.chain(pods).chain(servers).chain([&self.router, &self.outside]).collect();
        all.iter()
            .find(|place| place.name() == name)
            .copied()
            .ok_or_else(|| LabError::Unknown { name: name.to_owned(), known: names(all.iter().copied()) })
    }
}

impl Node {
    fn connect(
        seat: &Seat,
        layout: &Layout,
        mounts: MountNamespace,
        router: &Place,
        options: &LabOptions,
        etcd: Option<&Etcd>,
    ) -> Result<Self, LabError> {
        let place = Place::create(&seat.name, Some(Arc::new(mounts)))?;
        seat_at(&place, seat, layout, router)?;
        let run = run_of(&seat.name);
        let build = options.build_of(&seat.name);
        let environment = etcd.map(Etcd::environment).unwrap_or_default();
        Ok(Self {
            runtime: runtime(&place, &build),
            flanneld: Flanneld::new(place.clone(), program(&build), run.clone(), environment),
            arguments: arguments(options, &build, etcd),
            pods: Vec::new(),
            build,
            place,
            run,
        })
    }

    fn install(&mut self, build: Build, options: &LabOptions, etcd: Option<&Etcd>) -> Build {
        self.runtime = runtime(&self.place, &build);
        self.flanneld.become_program(program(&build));
        self.arguments = arguments(options, &build, etcd);
        std::mem::replace(&mut self.build, build)
    }

    /// The build it runs.
    pub fn build(&self) -> &Build {
        &self.build
    }

    /// Makes a pod and connects it.
    pub fn add_pod(&mut self, name: &str) -> Result<(), LabError> {
        let place = Place::create(name, self.place.mounts())?;
        let file = format!("/run/netns/{name}");
        let pin = |net: &NetNamespace| net.pin(Path::new(&file));
        self.place.with_mounts(|| pin(place.net()))??;
        let attachment = self.runtime.add(name, &file)?;
        self.pods.push(Pod { place, attachment });
        Ok(())
    }

    /// Disconnects a pod and ends it.
    pub fn remove_pod(&mut self, name: &str) -> Result<(), LabError> {
        let at = self.pods.iter().position(|pod| pod.name() == name).ok_or_else(|| LabError::Unknown {
            name: name.to_owned(),
            known: names(self.pods.iter().map(Pod::place)),
        })?;
        self.runtime.del(&self.pods[at].attachment)?;
        self.pods.remove(at);
        let file = PathBuf::from(format!("/run/netns/{name}"));
        self.place.with_mounts(|| mount::unbind(&file).and_then(|()| fs::remove_file(&file)))?.on("remove", &file)
    }

    /// Runs a command line (words, no shell) on the node and answers with what it printed; failing is an error.
    pub fn run_line(&self, line: &str) -> Result<String, LabError> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (program, arguments) = words.split_first().unwrap_or((&"true", &[]));
        let output = self.place.exec(program, arguments)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let cause = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(LabError::Kernel { action: format!("run `{line}` on {}", self.place.name()), cause })
    }

    /// Its place.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its pods.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The arguments its flanneld is started with.
    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// Starts the flanneld again, after it was stopped or killed, and waits until it is ready.
    pub fn start_again(&mut self, arguments: &[String]) -> Result<(), LabError> {
        self.flanneld.start(arguments)?;
        self.flanneld.wait_ready()
    }

    /// The pod subnets that its flanneld leased, by the subnet file.
    pub fn subnets(&self) -> Dual<IpNet> {
        let read = |key| self.flanneld.subnet_value(key)?.parse::<IpNet>().ok().map(|net| net.trunc());
        Dual { v4: read("FLANNEL_SUBNET"), v6: read("FLANNEL_IPV6_SUBNET") }
    }

    /// The global addresses of its external interface, the first of each family.
    pub fn external_addresses(&self) -> Result<Dual<IpAddr>, LabError> {
        crate::wire::addresses(&self.place, EXTERNAL)
    }

    /// Where its `/run` is seen by the lab.
    pub fn run(&self) -> &Path {
        &self.run
    }
}

impl Pod {
    /// Its place.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.place.name()
    }

    /// Its addresses.
    pub fn addresses(&self) -> Dual<IpAddr> {
        self.attachment.addresses
    }
}

fn names<'a>(places: impl Iterator<Item = &'a Place>) -> String {
    places.map(Place::name).collect::<Vec<_>>().join(", ")
}

/// What a node's flanneld is told.
fn arguments(options: &LabOptions, build: &Build, etcd: Option<&Etcd>) -> Vec<String> {
    let local = || vec![format!("--local-store={ROOT}/store")];
    let store = options.store.elsewhere().map(Elsewhere::flags).or(etcd.map(Etcd::flags)).unwrap_or_else(local);
    let own = store.into_iter().chain(["--ip-masq".to_owned()]);
    own.chain(options.flanneld_arguments.iter().chain(&build.arguments).cloned()).collect()
}

/// Starts the servers of etcd, where there are any to be.
fn start_etcd(
    options: &LabOptions,
    layout: &Layout,
    router: &Place,
    tell: &mut dyn FnMut(&str),
) -> Result<Option<Etcd>, LabError> {
    if layout.etcd.is_empty() {
        return Ok(None);
    }
    tell("starting etcd");
    let mut places = Vec::new();
    for seat in &layout.etcd {
        let place = Place::create(&seat.name, None)?;
        seat_at(&place, seat, layout, router)?;
        places.push((place, seat));
    }
    Etcd::start(places, &options.network_config()).map(Some)
}

/// Cables a host to its segment and gives it addresses and default routes.
fn seat_at(place: &Place, seat: &Seat, layout: &Layout, router: &Place) -> Result<(), LabError> {
    let segment = &layout.segments[seat.segment];
    cable(place, EXTERNAL, router, &seat.name)?;
    lay(router, &[Wire::Port(seat.name.clone(), segment.device.clone())])?;
    lay(place, &[Wire::Up("lo".to_owned(), true)])?;
    let addresses = seat.address.values().map(|net| Wire::Address(EXTERNAL.into(), *net));
    let routes = segment.gateway();
    let routes = routes.values().map(|gateway| Wire::DefaultRoute(EXTERNAL, *gateway));
    lay(place, &addresses.chain(routes).collect::<Vec<_>>())
}

/// Where the lab's own executable stands under its names.
fn bin() -> PathBuf {
    Path::new(ROOT).join("bin")
}

fn program(build: &Build) -> PathBuf {
    build.flanneld.clone().unwrap_or_else(|| bin().join("flanneld"))
}

fn runtime(place: &Place, build: &Build) -> Runtime {
    Runtime::new(place.clone(), build.cni.iter().cloned().chain([bin()]).collect())
}

fn run_of(node: &str) -> PathBuf {
    Path::new(ROOT).join(node).join("run")
}

/// Sets out the lab's files on a private `/run`: the executable under its names, the store with the network config.
fn furnish(executable: &Path, options: &LabOptions) -> Result<(), LabError> {
    let program = executable.canonicalize().and_then(fs::File::open).on("open", executable)?;
    mount::tmpfs(Path::new("/run"))?;
    let root = Path::new(ROOT);
    for directory in ["bin", "store"] {
        make_directory(&root.join(directory))?;
    }
    let copy = root.join("flannel");
    fs::File::create(&copy).on("make", &copy)?;
    mount::bind(&PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&program))), &copy)?;
    for name in APPLETS {
        let link = root.join("bin").join(name);
        symlink("../flannel", &link).on("link", &link)?;
    }
    if let Some(hosts) = options.store.elsewhere().map(Elsewhere::hosts).transpose()?.flatten() {
        fs::write(root.join("hosts"), hosts).on("write", &root.join("hosts"))?;
    }
    let config = root.join("store/config.json");
    fs::write(&config, options.network_config()).on("write", &config)
}

fn make_directory(path: &Path) -> Result<(), LabError> {
    fs::create_dir_all(path).on("make directory", path)
}

/// Each node's mounts: a `/run` of its own, in which the lab's files are seen too.
fn nodes_mounts(layout: &Layout) -> Result<Vec<MountNamespace>, LabError> {
    layout.nodes.iter().map(|seat| node_mounts(&run_of(&seat.name), seat)).collect()
}

fn node_mounts(run: &Path, seat: &Seat) -> Result<MountNamespace, LabError> {
    leave_subnet_file(run, seat)?;
    for directory in ["lab", "netns", "cni/net.d"] {
        make_directory(&run.join(directory))?;
    }
    let list = run.join("cni/net.d/10-flannel.conflist");
    fs::write(&list, format!("{:#}\n", conf_list())).on("write", &list)?;
    let hosts = Path::new(ROOT).join("hosts");
    MountNamespace::create(|| {
        if hosts.exists() {
            mount::bind(&hosts, Path::new(HOSTS))?;
        }
        mount::bind_tree(Path::new(ROOT), &run.join("lab"))?;
        Ok(mount::bind_tree(run, Path::new("/run"))?)
    })
}

/// Leaves the subnet file of a run before, so that flanneld leases the subnets of the node's seat again: they would be random
/// in a new network, and nobody knows a network by heart whose addresses change.
fn leave_subnet_file(run: &Path, seat: &Seat) -> Result<(), LabError> {
    if seat.subnets.is_empty() {
        return Ok(());
    }
    let directory = run.join("flannel");
    make_directory(&directory)?;
    let file = directory.join("subnet.env");
    let before = SubnetEnv { networks: pod_networks(), subnets: seat.subnets, mtu: Mtu(1450), ip_masq: true };
    fs::write(&file, before.to_string()).on("write", &file)
}

/// Says what the router knows the way to pods for: what comes from outside, and from nodes where it carries their pods' packets.
fn lay_return_rules(options: &LabOptions, layout: &Layout, router: &Place) -> Result<(), LabError> {
    let segments = layout.segments.iter().filter(|_| options.router_carries_pods());
    let devices = segments.map(|segment| segment.device.as_str()).chain([OUTSIDE_PORT]);
    let families = || layout.outside.families();
    let rules = devices.flat_map(|device| families().map(move |family| Wire::ReturnRule(device.to_owned(), family)));
    lay(router, &rules.collect::<Vec<_>>())
}

fn lay_router(layout: &Layout, router: &Place, outside: &Place) -> Result<(), LabError> {
    for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        router.set_sysctl(&format!("net/{family}"), "1")?;
    }
    lay(router, &[Wire::Up("lo".to_owned(), true)])?;
    lay(outside, &[Wire::Up("lo".to_owned(), true)])?;
    cable(outside, EXTERNAL, router, OUTSIDE_PORT)?;
    for segment in &layout.segments {
        lay(router, &[Wire::Bridge(segment.device.clone())])?;
    }
    for segment in layout.segments.iter().chain([&layout.outside_segment]) {
        let addresses = segment.router.values().map(|net| Wire::Address(segment.device.clone(), *net));
        lay(router, &addresses.collect::<Vec<_>>())?;
    }
    let addresses = layout.outside.values().map(|net| Wire::Address(EXTERNAL.into(), *net));
    let gateways = layout.outside_segment.gateway();
    let routes = gateways.values().map(|gateway| Wire::DefaultRoute(EXTERNAL, *gateway));
    lay(outside, &addresses.chain(routes).collect::<Vec<_>>())
}
