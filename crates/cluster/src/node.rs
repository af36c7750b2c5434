//! A node of a cluster: its network, its mounts, containerd, kubelet and kube-proxy.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_core::addr::Family;
use flannel_kernel::namespace::{MountNamespace, NetNamespace};
use serde_json::json;

use crate::api::ApiServer;
use crate::cluster::{ClusterOptions, SHARED};
use crate::error::{ClusterError, Doing};
use crate::image::BUSYBOX;
use crate::layout;
use crate::place::Place;
use crate::programs;
use crate::server::Server;

const FURNISH: &str = include_str!("node.sh");
/// What Kubernetes asks of a machine (forwarding), and addresses that are usable at once.
const SYSCTLS: [(&str, &str); 4] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
];
/// Where every node's containerd answers, as the node sees it.
const SOCKET: &str = "/run/containerd/containerd.sock";
/// How long containerd may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A node, running or not.
#[derive(Debug)]
pub struct Node {
    name: String,
    addresses: Vec<IpAddr>,
    group: String,
    place: Place,
    folder: PathBuf,
    containerd: Server,
    kubelet: Server,
    proxy: Server,
}

impl Node {
    /// Makes one and connects it; nothing runs there yet.
    pub(crate) fn create(
        index: usize,
        options: &ClusterOptions,
        root: &Path,
        group: &str,
    ) -> Result<Self, ClusterError> {
        let name = format!("node{}", index + 1);
        let folder = root.join(&name);
        fs::create_dir_all(&folder).on("make", &folder)?;
        let (net, file) = (NetNamespace::create()?, Path::new("/run/netns").join(&name));
        net.pin(&file)?;
        let addresses: Vec<IpAddr> = options.families.iter().map(|family| layout::node(*family, index)).collect();
        let place = Place::new(net, Some(furnish(&folder)?));
        for (setting, value) in SYSCTLS {
            let path = Path::new("/proc/sys/net").join(setting);
            place.inside(|| fs::write(&path, value))?.on("set", &path)?;
        }
        connect(&name, &addresses)?;
        let server = |name, program, words| Server::new(name, program, place.clone(), &folder.join("run"), words);
        let containerd = server("containerd", "containerd".into(), vec!["--config=/run/containerd.toml".into()]);
        let kubelet = server("kubelet", programs::kubernetes("kubelet")?, kubelet_arguments(&name, &addresses));
        let proxy_arguments = vec!["--config=/run/kube-proxy.json".to_owned(), format!("--hostname-override={name}")];
        let proxy = server("kube-proxy", programs::kubernetes("kube-proxy")?, proxy_arguments);
        Ok(Self { name, addresses, group: group.to_owned(), place, folder, containerd, kubelet, proxy })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses, in the order of the cluster's families.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Where its programs run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// A file of its `/run`, as the caller sees it.
    fn run(&self, name: &str) -> PathBuf {
        self.folder.join("run").join(name)
    }

    /// Starts containerd.
    pub(crate) fn start_containerd(&mut self) -> Result<(), ClusterError> {
        self.write("containerd.toml", &containerd_config())?;
        self.containerd.start()
    }

    /// Makes an image known, as soon as containerd answers.
    pub fn import(&self, archive: &Path) -> Result<(), ClusterError> {
        let begun = Instant::now();
        while let Err(error) = self.ctr(&["version"]) {
            if begun.elapsed() > PATIENCE {
                return Err(self.containerd.failed(format!("of {} does not answer: {error}", self.name)));
            }
            sleep(Duration::from_millis(50));
        }
        // Only what is below the folder that both see can be read there.
        let file = Path::new("/run").join(SHARED).join("import.tar");
        fs::copy(archive, &file).on("copy", archive)?;
        self.ctr(&["--namespace=k8s.io", "images", "import", &file.display().to_string()]).map(drop)
    }

    /// What `ctr` prints there.
    fn ctr(&self, words: &[&str]) -> Result<String, ClusterError> {
        let mut command = Command::new("ctr");
        command.arg(format!("--address={SOCKET}")).args(words);
        self.place.run(command, "")
    }

    /// Starts kubelet and kube-proxy, with what lets them in.
    pub(crate) fn join(&mut self, api: &ApiServer, options: &ClusterOptions) -> Result<(), ClusterError> {
        let kubelet = api.kubeconfig(&self.name, &api.node(&self.name)?)?;
        let proxy = api.kubeconfig("kube-proxy", &api.user("system:kube-proxy", &[])?)?;
        self.write("kubelet.json", &kubelet_config(api, &self.group))?;
        fs::copy(&kubelet, self.run("kubelet.kubeconfig")).on("copy", &kubelet)?;
        self.write("kube-proxy.json", &proxy_config(&proxy, options))?;
        self.kubelet.start()?;
        self.proxy.start()
    }

    /// Ends its kubelet at once; its pods go on.
    pub fn kill_kubelet(&mut self) -> Result<(), ClusterError> {
        self.kubelet.kill()
    }

    /// Starts its kubelet again, which registers the node where it is absent.
    pub fn start_kubelet(&mut self) -> Result<(), ClusterError> {
        self.kubelet.start()
    }

    /// The network of the pod on it that has this address.
    pub fn pod(&self, address: IpAddr) -> Result<Place, ClusterError> {
        let find = || {
            let files = fs::read_dir("/run/netns").into_iter().flatten().flatten();
            let mut all = files.filter_map(|entry| NetNamespace::open(&entry.path()).ok());
            all.find(|net| has_address(net, address)).map(|net| Place::new(net, None))
        };
        let what = || format!("no pod on {} has {address}", self.name);
        self.place.among_mounts(find)?.ok_or_else(|| ClusterError::Late { what: what(), seconds: 0 })
    }

    /// The last words of its programs, for who wonders why something does not come true.
    pub(crate) fn last_words(&self) -> String {
        let said = [&self.containerd, &self.kubelet, &self.proxy].map(Server::last_words);
        format!("{}:\n{}", self.name, said.join("\n"))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ClusterError> {
        let path = self.run(name);
        fs::write(&path, text).on("write", &path)
    }
}

fn has_address(net: &NetNamespace, address: IpAddr) -> bool {
    let words = ["-o", "addr", "show", "to", &address.to_string()];
    let output = net.run(|| Command::new("ip").args(words).output());
    matches!(output, Ok(Ok(output)) if !output.stdout.is_empty())
}

/// Cables a node to the bridge of the caller's namespace.
fn connect(name: &str, addresses: &[IpAddr]) -> Result<(), ClusterError> {
    ip(&format!("link add {name} type veth peer name eth0 netns {name}"))?;
    ip(&format!("link set {name} master underlay up"))?;
    for link in ["lo", "eth0"] {
        ip(&format!("-n {name} link set {link} up"))?;
    }
    for address in addresses {
        let family = Family::of(*address);
        let nodad = if family == Family::V6 { " nodad" } else { "" };
        ip(&format!("-n {name} addr add {address}/{} dev eth0{nodad}", layout::prefix(family)))?;
        ip(&format!("-n {name} route add default via {}", layout::control(family)))?;
    }
    Ok(())
}

/// Runs `ip` in the caller's namespace; its words have no blanks in them.
pub(crate) fn ip(words: &str) -> Result<(), ClusterError> {
    let mut command = Command::new("ip");
    command.args(words.split(' '));
    Place::here().run(command, "").map(drop)
}

fn furnish(folder: &Path) -> Result<MountNamespace, ClusterError> {
    MountNamespace::create(|| {
        let mut shell = Command::new("sh");
        shell.args(["-euc", FURNISH, "node.sh"]).arg(folder).arg(SHARED);
        Place::here().run(shell, "").map(drop)
    })
}

fn containerd_config() -> String {
    // Without CAP_SYS_RESOURCE, as in some virtual machines, no score can be lowered.
    format!(
        r#"version = 2
root = "/run/containerd/root"
state = "/run/containerd/state"
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{BUSYBOX}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#
    )
}

fn kubelet_arguments(name: &str, addresses: &[IpAddr]) -> Vec<String> {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    vec![
        "--config=/run/kubelet.json".into(),
        "--kubeconfig=/run/kubelet.kubeconfig".into(),
        format!("--hostname-override={name}"),
        format!("--node-ip={}", addresses.join(",")),
    ]
}

fn kubelet_config(api: &ApiServer, group: &str) -> String {
    let config = json!({
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "authentication": { "anonymous": { "enabled": false }, "x509": { "clientCAFile": api.authority() } },
        "authorization": { "mode": "Webhook" },
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "cgroupDriver": "cgroupfs", "cgroupRoot": group, "cgroupsPerQOS": false, "enforceNodeAllocatable": [],
        "failSwapOn": false, "failCgroupV1": false, "makeIPTablesUtilChains": false, "localStorageCapacityIsolation": false,
        "evictionHard": { "memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%" },
        "resolvConf": "", "nodeStatusUpdateFrequency": "4s",
    });
    config.to_string()
}

fn proxy_config(kubeconfig: &Path, options: &ClusterOptions) -> String {
    let config = json!({
        "kind": "KubeProxyConfiguration", "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "clientConnection": { "kubeconfig": kubeconfig },
        "mode": options.proxy, "clusterCIDR": layout::list(&options.families, layout::pods),
        "conntrack": { "maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    });
    config.to_string()
}
