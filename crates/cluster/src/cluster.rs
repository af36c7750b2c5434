//! A whole cluster: control plane, nodes, and the network that connects them.
//!
//! Surface: [`Cluster`], [`ClusterOptions`]. The control plane is in the caller's own network namespace, which is the router of the
//! nodes and the world outside of them too. Who makes a pod network is the caller's business.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_core::addr::Family;
use flannel_kernel::mount;
use flannel_kernel::process::Enclosed;
use serde_json::Value;

use crate::api::{ApiServer, Options};
use crate::control_groups::ControlGroup;
use crate::error::{ClusterError, Doing};
use crate::image;
use crate::layout;
use crate::node::{Node, ip};
use crate::place::Place;
use crate::programs;
use crate::server::Server;

/// The files of a cluster.
const ROOT: &str = "/run/cluster";
/// The folder below `/run` that the nodes see too.
pub(crate) const SHARED: &str = "kubernetes";
/// The port of the API.
const PORT: u16 = 6443;

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Number of nodes, up to 200.
    pub nodes: usize,
    /// The families of nodes, pods and services, the preferred one first.
    pub families: Vec<Family>,
    /// The mode of kube-proxy: `iptables` or `nftables`.
    pub proxy: &'static str,
}

/// A cluster that runs. All of it is ended when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    // Removed when nobody is left who makes containers.
    _group: ControlGroup,
    controllers: Vec<Server>,
    /// Its API server, with etcd.
    pub api: ApiServer,
    options: ClusterOptions,
}

impl Cluster {
    /// Makes one. The nodes register and are not ready, as there is no pod network yet.
    pub fn start(_enclosed: Enclosed, options: ClusterOptions) -> Result<Self, ClusterError> {
        mount::tmpfs(Path::new("/run"))?;
        for folder in [ROOT, "/run/netns", "/run/kubernetes"] {
            fs::create_dir_all(folder).on("make", Path::new(folder))?;
        }
        lay(&options.families)?;
        let (root, group) = (Path::new(ROOT), ControlGroup::own()?);
        let mut nodes = Vec::new();
        for index in 0..options.nodes {
            let mut node = Node::create(index, &options, root, group.name())?;
            node.start_containerd()?;
            nodes.push(node);
        }
        let api = ApiServer::start(api_options(&options))?;
        let controllers = controllers(&api, &options)?;
        let mut cluster = Self { nodes, _group: group, controllers, api, options };
        cluster.join()?;
        Ok(cluster)
    }

    fn join(&mut self) -> Result<(), ClusterError> {
        self.controllers.iter_mut().try_for_each(Server::start)?;
        let archive = image::busybox(Path::new(ROOT))?;
        for node in &mut self.nodes {
            node.import(&archive)?;
            node.join(&self.api, &self.options)?;
        }
        Ok(())
    }

    /// The nodes in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its place in the order, from 0, to be changed.
    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// Makes an image known on all nodes.
    pub fn import(&self, archive: &Path) -> Result<(), ClusterError> {
        self.nodes.iter().try_for_each(|node| node.import(archive))
    }

    /// Applies a manifest, as `kubectl apply` does.
    pub fn apply(&self, manifest: &str) -> Result<(), ClusterError> {
        self.api.kubectl(&["apply", "--filename=-"], manifest).map(drop)
    }

    /// Waits until something of the API is found to be so: `look` is given what `path` answers, and answers with what it found, or
    /// with what is missing.
    pub fn until<T>(
        &self,
        patience: Duration,
        path: &str,
        mut look: impl FnMut(&Value) -> Result<T, String>,
    ) -> Result<T, ClusterError> {
        let begun = Instant::now();
        loop {
            let found = self.api.request("GET", path, None).map_err(|error| error.to_string());
            let missing = match found.and_then(|answer| look(&answer)) {
                Ok(found) => return Ok(found),
                Err(missing) => missing,
            };
            if begun.elapsed() > patience {
                let words: Vec<String> = self.nodes.iter().map(Node::last_words).collect();
                let what = format!("{path}: {missing}\n{}", words.join("\n"));
                return Err(ClusterError::Late { what, seconds: patience.as_secs() });
            }
            sleep(Duration::from_millis(100));
        }
    }
}

/// Makes the network of the hosts.
fn lay(families: &[Family]) -> Result<(), ClusterError> {
    ip("link set lo up")?;
    ip("link add underlay type bridge")?;
    for family in families {
        let nodad = if *family == Family::V6 { " nodad" } else { "" };
        let (address, prefix) = (layout::control(*family), layout::prefix(*family));
        ip(&format!("addr add {address}/{prefix} dev underlay{nodad}"))?;
    }
    ip("link set underlay up")
}

fn api_options(options: &ClusterOptions) -> Options {
    let control = options.families.first().map_or(Family::V4, |family| *family);
    Options {
        folder: PathBuf::from("/run").join(SHARED),
        address: SocketAddr::new(layout::control(control), PORT),
        also_known_as: options.families.iter().map(|family| layout::control(*family)).collect(),
        services: layout::list(&options.families, layout::services),
        ..Options::here(Path::new("/run"))
    }
}

fn controllers(api: &ApiServer, options: &ClusterOptions) -> Result<Vec<Server>, ClusterError> {
    let kubeconfig = api.kubeconfig("admin", &api.admin())?;
    let common = [format!("--kubeconfig={}", kubeconfig.display()), "--leader-elect=false".to_owned()];
    let manager = [
        format!("--service-account-private-key-file={}", api.accounts_key().display()),
        format!("--root-ca-file={}", api.authority().display()),
        format!("--cluster-cidr={}", layout::list(&options.families, layout::pods)),
        format!("--service-cluster-ip-range={}", layout::list(&options.families, layout::services)),
        "--allocate-node-cidrs=true".to_owned(),
    ];
    let server = |name, more: &[String]| -> Result<Server, ClusterError> {
        let program = programs::kubernetes(name)?;
        Ok(Server::new(name, program, Place::here(), Path::new(ROOT), [&common[..], more].concat()))
    };
    Ok(vec![server("kube-controller-manager", &manager)?, server("kube-scheduler", &[])?])
}
