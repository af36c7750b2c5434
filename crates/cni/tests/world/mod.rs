//! A node of its own for a test: fresh namespaces, pods with nothing in them, plugins to call (ours by the example program,
//! Debian's as the oracle), and what the tools say afterwards.

#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod row;
pub(crate) mod snapshot;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flannel_kernel::mount;
use flannel_kernel::namespace::NetNamespace;
use serde_json::{Value, json};

/// Where Debian's package `containernetworking-plugins` has its programs.
pub(crate) const ORACLE: &str = "/usr/lib/cni";
/// The release of the Go plugins that has all keys.
const RELEASE: &str = "v1.9.1";
/// Ours.
pub(crate) const OURS: &str = "/run/ours";
/// Where configurations of tests keep their files.
pub(crate) const FILES: &str = "/run/files";
/// What flanneld has written for the plugin `flannel`, which finds it by [`flannel_conf`]: of one family, and of both.
pub(crate) const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
pub(crate) const DUAL_SUBNET_ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
    FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// A configuration of the plugin `flannel`, with its files in the world.
pub(crate) fn flannel_conf() -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "flannel", "subnetFile": "/run/subnet.env",
        "dataDir": "/run/files/flannel", "ipam": {"dataDir": "/run/files/networks"}})
}

/// Makes the node: call once, inside namespaces of the test's own.
pub(crate) fn make_node() {
    mount::tmpfs(Path::new("/run")).unwrap();
    for dir in ["/run/netns", OURS, FILES] {
        fs::create_dir_all(dir).unwrap();
    }
    for name in ["flannel", "bridge", "host-local", "portmap", "loopback"] {
        symlink(our_program(), Path::new(OURS).join(name)).unwrap();
    }
    tool(&["ip", "link", "set", "lo", "up"]);
}

/// The example program, which `cargo test` builds beside this test.
fn our_program() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let program = deps.parent().and_then(Path::parent).unwrap().join("examples/plugin");
    assert!(program.is_file(), "{} is missing: run `cargo build -p flannel-cni --examples`", program.display());
    program
}

/// The folder of the oracle's plugins.
pub(crate) fn oracle() -> String {
    let dir = std::env::var("ORACLE_CNI_DIR").unwrap_or_else(|_| ORACLE.into());
    let there = ["bridge", "host-local", "portmap", "loopback"].iter().all(|name| Path::new(&dir).join(name).is_file());
    assert!(
        there,
        "no plugins to compare with in {dir}: run `apt-get install containernetworking-plugins`, or set ORACLE_CNI_DIR"
    );
    dir
}

/// The released Go plugins, as `cargo xtask go-plugins` leaves them.
pub(crate) fn released() -> String {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).unwrap();
    let dir = base.join("flannel-rs/go-plugins").join(RELEASE);
    assert!(dir.join("portmap").is_file(), "no {}: run `cargo xtask go-plugins`", dir.join("portmap").display());
    dir.to_str().unwrap().to_owned()
}

/// A pod's network namespace with nothing in it; its path.
pub(crate) fn make_pod(name: &str) -> String {
    let path = format!("/run/netns/{name}");
    NetNamespace::create().unwrap().pin(Path::new(&path)).unwrap();
    path
}

/// Ends a pod's network namespace, leaving the file as a restart does.
pub(crate) fn end_pod(path: &str) {
    tool(&["umount", path]);
}

/// What a plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// It succeeded.
    pub(crate) ok: bool,
    /// Its standard output as JSON; null when empty.
    pub(crate) json: Value,
    /// Its standard output.
    pub(crate) text: String,
}

impl Answer {
    /// The answer of a call that must succeed.
    pub(crate) fn good(self) -> Value {
        assert!(self.ok, "{}", self.text);
        self.json
    }

    /// Code and texts of a call that must fail.
    pub(crate) fn failure(self) -> (u64, String, String) {
        assert!(!self.ok, "{}", self.text);
        let text = |key: &str| self.json[key].as_str().unwrap_or_default().to_owned();
        (self.json["code"].as_u64().unwrap(), text("msg"), text("details"))
    }
}

/// A call to be made.
#[derive(Debug, Clone)]
pub(crate) struct Call<'a> {
    /// Folder of the plugins, `CNI_PATH` too.
    pub(crate) dir: &'a str,
    /// The plugin.
    pub(crate) plugin: &'a str,
    /// The container.
    pub(crate) id: &'a str,
    /// Its namespace's path.
    pub(crate) netns: &'a str,
    /// `CNI_ARGS`.
    pub(crate) args: &'a str,
}

impl Call<'_> {
    /// Starts it, with the configuration on its standard input.
    pub(crate) fn start(&self, verb: &str, conf: &[u8]) -> Child {
        feed(&mut self.command(verb), conf)
    }

    /// Starts an ADD that finds programs elsewhere.
    pub(crate) fn start_with_path(&self, path: &str, conf: &[u8]) -> Child {
        self.start_in("ADD", path, conf)
    }

    /// Starts it where programs are found elsewhere.
    pub(crate) fn start_in(&self, verb: &str, path: &str, conf: &[u8]) -> Child {
        feed(self.command(verb).env("PATH", path), conf)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(Path::new(self.dir).join(self.plugin));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", self.id)
            .env("CNI_NETNS", self.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", self.args)
            .env("CNI_PATH", self.dir);
        command
    }

    /// Makes it.
    pub(crate) fn run(&self, verb: &str, conf: &Value) -> Answer {
        let output = self.start(verb, conf.to_string().as_bytes()).wait_with_output().unwrap();
        if verb == "DEL" {
            wait_destroyed(self.netns);
        }
        let text = String::from_utf8(output.stdout).unwrap();
        Answer { ok: output.status.success(), json: serde_json::from_str(&text).unwrap_or_default(), text }
    }

    /// Makes it as a CHECK or DEL that has the ADD's result.
    pub(crate) fn run_after(&self, verb: &str, conf: &Value, result: &Value) -> Answer {
        let mut conf = conf.clone();
        conf["prevResult"] = result.clone();
        self.run(verb, &conf)
    }
}

/// Waits until what a DEL has put out of use is destroyed, which it leaves to a process of its own.
pub(crate) fn wait_destroyed(netns: &str) {
    let begun = Instant::now();
    while retired(netns) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{netns} still has what a DEL put out of use");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a pod, if it is there, has a link that is out of use.
fn retired(netns: &str) -> bool {
    let listing = || fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let links = NetNamespace::open(Path::new(netns)).and_then(|pod| pod.run(listing));
    links.is_ok_and(|links| links.lines().any(|line| line.trim_start().starts_with("gone")))
}

fn feed(command: &mut Command, conf: &[u8]) -> Child {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // A plugin that does not want all of it closes its end.
    _ = child.stdin.take().unwrap().write_all(conf);
    child
}

/// Runs a tool that must succeed.
pub(crate) fn tool(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output =
        output.unwrap_or_else(|error| panic!("{words:?}: {error}: run `apt-get install iproute2 iptables util-linux`"));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a tool that must succeed, with this on its standard input.
pub(crate) fn tool_fed(words: &[&str], input: &str) -> String {
    let output = feed(Command::new(words[0]).args(&words[1..]), input.as_bytes()).wait_with_output().unwrap();
    assert!(output.status.success(), "{words:?} {input}");
    String::from_utf8(output.stdout).unwrap()
}

/// What `ip -j` prints of the host, or of a pod.
pub(crate) fn ip(netns: Option<&str>, words: &[&str]) -> Vec<Value> {
    let enter = netns.map(|path| vec!["nsenter".to_owned(), format!("--net={path}")]).unwrap_or_default();
    let all: Vec<&str> =
        enter.iter().map(String::as_str).chain(["ip", "-j", "-d"]).chain(words.iter().copied()).collect();
    serde_json::from_str(&tool(&all)).unwrap_or_default()
}

/// All that a plugin leaves in the kernel and on disk, without what differs from run to run: MACs, names of veths,
/// numbers, clocks. IPv6 addresses of links are left out, for they come from MACs.
pub(crate) fn state(pods: &[&str]) -> Value {
    let mut state = json!({ "host": namespace(None), "files": files(Path::new(FILES)) });
    state["host"]["rules"] = rules();
    for pod in pods {
        state[pod] = namespace(Some(pod));
    }
    state
}

/// The rules of the host that are a container's.
fn rules() -> Value {
    let saved = ["iptables-save", "ip6tables-save"].map(|program| tool(&[program]));
    let lines = saved.iter().flat_map(|text| text.lines());
    lines.filter(|line| line.starts_with(['-', ':']) && line.contains("CNI-")).map(|line| json!(line)).collect()
}

/// The links of the host, or of a pod, with their addresses, as [`state`] has them.
pub(crate) fn links(netns: Option<&str>) -> Vec<Value> {
    ip(netns, &["addr"]).iter().map(link).collect()
}

fn namespace(netns: Option<&str>) -> Value {
    let links = links(netns);
    let mut routes: Vec<Value> =
        ["-4", "-6"].iter().flat_map(|family| ip(netns, &[family, "route"])).map(|r| route(&r)).collect();
    routes.retain(|route| !route["dst"].as_str().unwrap().starts_with("fe80"));
    routes.sort_by_key(ToString::to_string);
    json!({ "links": links, "routes": routes, "sysctls": sysctls(netns) })
}

fn link(found: &Value) -> Value {
    let keep = |from: &Value, keys: &[&str]| -> Value {
        keys.iter()
            .filter(|key| !from[**key].is_null())
            .map(|key| ((*key).to_owned(), from[*key].clone()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let mut link = keep(found, &["flags", "mtu", "master", "promiscuity", "link_netnsid"]);
    link["name"] = json!(anonymous(found["ifname"].as_str().unwrap()));
    // The kernel takes its time to tell of a carrier.
    link["flags"].as_array_mut().unwrap().retain(|flag| flag != "LOWER_UP" && flag != "NO-CARRIER" && flag != "M-DOWN");
    link["kind"] = found["linkinfo"]["info_kind"].clone();
    link["port"] = keep(&found["linkinfo"]["info_slave_data"], &["hairpin", "isolated", "learning", "flood", "guard"]);
    link["bridge"] = keep(&found["linkinfo"]["info_data"], &["vlan_filtering", "stp_state", "ageing_time"]);
    let addresses = found["addr_info"].as_array().unwrap().iter();
    let addresses = addresses.filter(|address| address["scope"] != "link");
    link["addresses"] = addresses.map(|address| keep(address, &["local", "prefixlen", "broadcast", "scope"])).collect();
    link
}

fn anonymous(name: &str) -> &str {
    if name.starts_with("veth") { "veth" } else { name }
}

fn route(found: &Value) -> Value {
    let keys = ["dst", "gateway", "dev", "protocol", "scope", "metric", "prefsrc"];
    let mut route: BTreeMap<&str, Value> = keys.iter().map(|key| (*key, found[*key].clone())).collect();
    route.insert("dev", json!(anonymous(found["dev"].as_str().unwrap_or_default())));
    json!(route)
}

fn sysctls(netns: Option<&str>) -> Value {
    let keys: &[&str] = match netns {
        None => {
            &["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/cni0/accept_ra", "ipv4/conf/cni0/forwarding"]
        }
        Some(_) => &[
            "ipv6/conf/eth0/accept_dad",
            "ipv6/conf/eth0/disable_ipv6",
            "ipv4/conf/eth0/arp_notify",
            "ipv6/conf/lo/disable_ipv6",
            "ipv4/ip_forward",
        ],
    };
    keys.iter().map(|key| (*key, read_sysctl(netns, key))).collect::<BTreeMap<_, _>>().into_iter().collect()
}

fn read_sysctl(netns: Option<&str>, key: &str) -> String {
    let read = || fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap_or_default().trim().to_owned();
    match netns {
        None => read(),
        Some(path) => NetNamespace::open(Path::new(path)).unwrap().run(read).unwrap(),
    }
}

/// Every file below a folder with its text.
pub(crate) fn files(dir: &Path) -> Value {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let path = entry.path();
        found.insert(name, if path.is_dir() { files(&path) } else { json!(fs::read_to_string(path).unwrap()) });
    }
    json!(found)
}

/// A result without what differs from run to run.
pub(crate) fn plain(result: &Value) -> Value {
    let mut result = result.clone();
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        interface["mac"] = json!(interface["mac"].as_str().unwrap().len());
        let name = anonymous(interface["name"].as_str().unwrap()).to_owned();
        interface["name"] = json!(name);
    }
    result
}

/// Deletes what a test left on the host and on disk.
pub(crate) fn clear() {
    for link in ip(None, &["link"]).iter().filter(|link| link["ifname"] != "lo") {
        let name = link["ifname"].as_str().unwrap();
        _ = Command::new("ip").args(["link", "del", name]).stderr(Stdio::null()).status();
    }
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{key}"), "0").unwrap();
    }
    fs::remove_dir_all(FILES).unwrap();
    fs::create_dir_all(FILES).unwrap();
}

/// Where two values differ, a line each.
pub(crate) fn differences(at: &str, theirs: &Value, ours: &Value) -> Vec<String> {
    match (theirs, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            keys.into_iter().flat_map(|key| differences(&format!("{at}/{key}"), &theirs[key], &ours[key])).collect()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().flat_map(|(i, (a, b))| differences(&format!("{at}/{i}"), a, b)).collect()
        }
        _ if theirs == ours => Vec::new(),
        (Value::Array(a), Value::Array(b)) => {
            let lacks = |of: &[Value], other: &[Value], whose: &str| -> Vec<String> {
                let alone = of.iter().filter(|value| !other.contains(value));
                alone.map(|value| format!("{at}: only {whose} {value}")).collect()
            };
            let found = [lacks(a, b, "theirs"), lacks(b, a, "ours")].concat();
            if found.is_empty() { vec![format!("{at}: theirs {theirs} ours {ours}")] } else { found }
        }
        _ => vec![format!("{at}: theirs {theirs} ours {ours}")],
    }
}
