//! A node of the lab furnished as a machine that containers run on: its own `/etc/cni/net.d`, `/opt/cni/bin` and `/var/lib`, a root
//! file system for containers, and what is to be seen on it from outside.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use flannel_core::addr::Family;
use flannel_lab::lab::{Lab, Node};
use flannel_lab::options::LabOptions;
use flannel_lab::place::Place;
use serde_json::{Value, json};

use crate::network::{DUAL, FLANNEL, options, start, text};

/// Where Debian's `containernetworking-plugins` are.
pub(crate) const DEBIANS: &str = "/usr/lib/cni";
/// The released Go plugins that are compared with.
const RELEASE: &str = "v1.9.1";
/// The plugins that ours take the place of, but flannel.
pub(crate) const GO_PLUGINS: [&str; 4] = ["bridge", "host-local", "portmap", "loopback"];
/// Who starts containers: runc, without the group of terminals (5), which the lab's user namespace does not have, and for who may make
/// no control groups without those.
pub(crate) const RUNC: &str = "/run/runc-here";
/// The root of every container.
pub(crate) const ROOT: &str = "/run/rootfs";
/// What it runs in there: a web server whose one page is [`PAGE`], until SIGTERM.
pub(crate) const SERVE: &str = "/bin/serve";
/// The page.
pub(crate) const PAGE: &str = "published";
/// How long anything may take to come true.
const PATIENCE: Duration = Duration::from_secs(10);

/// `/etc` is that of this machine, as far as nothing is written there; plugins are looked for in `/opt/cni/bin` alone.
const FURNISH: &str = "
for place in var-lib opt/cni/bin etc/upper etc/work net.d; do mkdir -p /run/$place; done
mount --bind /run/var-lib /var/lib
mount --bind /run/opt /opt
mount -t overlay none -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work /etc
mkdir -p /etc/cni/net.d
mount --bind /run/net.d /etc/cni/net.d
mount -t tmpfs none /usr/lib/cni
";
const RUNC_HERE: &str = r#"#!/bin/sh
previous= rootless= without='s/,"gid=5"//'
if [ ! -w /sys/fs/cgroup ]; then
    rootless=--rootless=true
    without="$without; s/\"cgroupsPath\":\"[^\"]*\",*//; s/,\"cpu\":{[^}]*}//"
fi
for word; do
    [ "$previous" = --bundle ] && sed -i "$without" "$word/config.json"
    previous=$word
done
exec runc $rootless "$@"
"#;
const SERVE_SCRIPT: &str = "#!/bin/sh
trap 'exit 0' TERM
httpd -p 80 -h /www
sleep 1000 &
wait
";
/// All that containers may leave on a node. Without what changes by itself: counters, numbers, the state of links.
const TRACES: &str = "
ip -br link | awk '{ print $1 }'
for family in -4 -6; do ip $family -br addr | awk '{ $2 = \"\"; print }'; ip $family route | sed 's/ linkdown//'; done
nft -s list ruleset | sed 's/counter packets [0-9]* bytes [0-9]*/counter/'
find /var/lib/cni /run/cni /run/flannel /run/netns /run/user ! -name lock ! -name 'last_reserved_ip.*' 2>/dev/null || true
";

/// The first of two nodes, without pods of the lab's own.
pub(crate) struct Machine {
    /// The lab.
    pub(crate) lab: Lab,
}

impl Machine {
    /// Furnishes it; its plugins are ours, one copy with links.
    pub(crate) fn start() -> Self {
        let machine = Self { lab: start(LabOptions { nodes: 2, pods: 0, ..options(DUAL) }) };
        machine.sh(FURNISH);
        machine.write("runc-here", RUNC_HERE);
        machine.make_root();
        machine.copy_ours();
        machine
    }

    fn make_root(&self) {
        let root = self.node().run().join("rootfs");
        for folder in ["bin", "dev", "etc", "proc", "sys", "tmp", "run", "www"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let busybox = fs::copy("/bin/busybox", root.join("bin/busybox"));
        busybox.unwrap_or_else(|error| panic!("/bin/busybox: {error}: install busybox-static"));
        for applet in ["sh", "httpd", "ip", "nc", "ping", "sleep"] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(root.join("www/index.html"), PAGE).unwrap();
        self.write("rootfs/bin/serve", SERVE_SCRIPT);
    }

    /// The node.
    pub(crate) fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// Its `/opt/cni/bin`, as the test sees it.
    pub(crate) fn bin(&self) -> PathBuf {
        self.node().run().join("opt/cni/bin")
    }

    /// A folder of its `/var/lib/cni`, as the test sees it.
    pub(crate) fn kept(&self, folder: &str) -> PathBuf {
        self.node().run().join("var-lib/cni").join(folder)
    }

    /// Writes a file below its `/run` that can be run.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.node().run().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Puts the plugins of a folder in the place of its own.
    pub(crate) fn put_plugins(&self, from: &Path) {
        for plugin in GO_PLUGINS {
            let (place, unfinished) = (self.bin().join(plugin), self.bin().join(".new"));
            copy(&from.join(plugin), &unfinished);
            fs::rename(&unfinished, &place).unwrap();
        }
    }

    /// Puts a copy of ours in the place of flannel, and links to it in those of the others.
    pub(crate) fn copy_ours(&self) {
        let unfinished = self.bin().join(".new");
        copy(Path::new(FLANNEL), &unfinished);
        fs::rename(&unfinished, self.bin().join("flannel")).unwrap();
        for plugin in GO_PLUGINS {
            symlink("flannel", &unfinished).unwrap();
            fs::rename(&unfinished, self.bin().join(plugin)).unwrap();
        }
    }

    /// Has our plugins put into their places.
    pub(crate) fn install_ours(&self) {
        let output = self.node().place().exec(FLANNEL, &["install-plugins", "/opt/cni/bin"]).unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Runs a shell script on it, which must succeed; what it prints.
    pub(crate) fn sh(&self, script: &str) -> String {
        let output = self.node().place().exec("sh", &["-euc", script]).unwrap();
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a program on it, with this to read.
    pub(crate) fn run(&self, mut command: Command, input: &str) -> Output {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.node().place().spawn(command).unwrap();
        // Who does not want all of it closes its end.
        _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// All that containers may leave on it.
    pub(crate) fn traces(&self) -> String {
        self.sh(TRACES)
    }

    /// The same, when nothing is left of the last container but what stays.
    pub(crate) fn traces_without_containers(&self) -> String {
        let is_gone = |traces: &String| !traces.lines().any(|line| line.starts_with("veth"));
        until("links of containers stay", || Some(self.traces()).filter(is_gone))
    }

    /// Waits until it is as it was.
    pub(crate) fn assert_as_before(&self, before: &str) {
        let since = Instant::now();
        loop {
            let now = self.traces();
            if now == before {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "{}", difference(before, &now));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The addresses of the node's own, those that others reach it by first.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.node().external_addresses().unwrap().values().copied().collect()
    }

    /// A port of the container that `enter` leads into is to be had from another node, from outside, from the node itself and
    /// from the container.
    pub(crate) fn assert_published(&self, port: u16, enter: &dyn Fn(&[&str]) -> Command) {
        let node = self.node().place();
        for address in self.addresses().into_iter().map(|address| SocketAddr::new(address, port)) {
            for place in [self.lab.node(1).place(), self.lab.outside(), node] {
                assert_eq!(fetch(place, address), PAGE, "{address} from {}", place.name());
            }
            let ip = address.ip().to_string();
            let output = self.run(enter(&["/bin/nc", "-w", "5", &ip, &port.to_string()]), REQUEST);
            assert!(String::from_utf8_lossy(&output.stdout).ends_with(PAGE), "{address} from itself: {output:?}");
        }
        // Linux routes nothing away from IPv6's loopback.
        assert_eq!(fetch(node, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)), PAGE);
    }

    /// Nobody answers there any more.
    pub(crate) fn assert_unpublished(&self, port: u16) {
        for address in self.addresses() {
            let refused =
                self.lab.outside().inside(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE));
            assert!(refused.unwrap().is_err(), "{address}");
        }
    }

    /// The container that `enter` leads into reaches its gateway, another node and the outside.
    pub(crate) fn assert_reaches_all(&self, result: &Value, enter: &dyn Fn(&[&str]) -> Command) {
        let gateways = result["ips"].as_array().unwrap().iter().map(|ip| ip["gateway"].as_str().unwrap().to_owned());
        let others = self.lab.node(1).external_addresses().unwrap();
        let outside = Family::ALL.into_iter().filter_map(|family| self.lab.outside_address(family));
        let targets: Vec<String> =
            gateways.chain(others.values().copied().chain(outside).map(|address| address.to_string())).collect();
        assert_eq!(targets.len(), 6, "{targets:?}");
        for target in targets {
            let output = self.run(enter(&["/bin/ping", "-c", "1", "-W", "5", &target]), "");
            assert!(output.status.success(), "{target}: {output:?}");
        }
    }

    /// The result that libcni has kept of a container, which must be what is there.
    pub(crate) fn cached(&self, id: &str) -> Value {
        let path = self.kept("results").join(format!("cbr0-{id}-eth0"));
        let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let cached: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&cached["containerId"], &cached["ifName"]), (&json!(id), &json!("eth0")));
        let result = cached["result"].clone();
        let interfaces = result["interfaces"].as_array().unwrap();
        let [bridge, host, pod] = interfaces.as_slice() else { panic!("{interfaces:?}") };
        for end in [bridge, host] {
            let seen = text_of(&self.lab, &format!("ip -o link show {}", end["name"].as_str().unwrap()));
            assert!(seen.contains(end["mac"].as_str().unwrap()), "{seen} is not {end}");
        }
        let inside = format!("nsenter --net={} ip -o addr show eth0", pod["sandbox"].as_str().unwrap());
        let seen = text_of(&self.lab, &inside);
        for ip in result["ips"].as_array().unwrap() {
            let address = ip["address"].as_str().unwrap();
            assert!(seen.contains(&format!(" {address} ")), "{address} is not in {seen}");
            let kept = self.kept("networks/cbr0").join(address.split('/').next().unwrap());
            assert_eq!(fs::read_to_string(kept).unwrap(), format!("{id}\r\neth0"));
        }
        result
    }
}

/// The released Go plugins, as `cargo xtask go-plugins` leaves them.
pub(crate) fn released() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let dir = base.unwrap_or_else(home).join("flannel-rs/go-plugins").join(RELEASE);
    assert!(dir.join("bridge").is_file(), "no {}: run `cargo xtask go-plugins`", dir.join("bridge").display());
    dir
}

fn text_of(lab: &Lab, command: &str) -> String {
    text(lab, 0, command)
}

const REQUEST: &str = "GET / HTTP/1.0\r\n\r\n";

/// The page of a web server, which may be still starting.
pub(crate) fn fetch(place: &Place, address: SocketAddr) -> String {
    let since = Instant::now();
    loop {
        match place.inside(|| try_fetch(address)).unwrap() {
            Ok(answer) => return answer.rsplit("\r\n").next().unwrap_or_default().to_owned(),
            Err(error) => assert!(since.elapsed() < PATIENCE, "{address} from {}: {error}", place.name()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn try_fetch(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(REQUEST.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Waits for something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(since.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Removes the control groups of a name that a runtime has left, as soon as what watched its containers has ended.
pub(crate) fn remove_groups(name: &str) {
    let hierarchies: Vec<_> = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().collect();
    let mut groups: Vec<PathBuf> = hierarchies.iter().map(|hierarchy| hierarchy.path().join(name)).collect();
    groups.push(Path::new("/sys/fs/cgroup").join(name));
    let since = Instant::now();
    while !groups.is_empty() && since.elapsed() < PATIENCE {
        for group in &groups {
            // They are removed from within, and not while anybody is there.
            _ = fs::remove_dir(group.join("conmon"));
            _ = fs::remove_dir(group);
        }
        groups.retain(|group| group.exists());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The lines of one that are not in the other.
fn difference(before: &str, now: &str) -> String {
    let missing = |of: &str, other: &str, sign: &str| {
        let lines = of.lines().filter(|line| !other.lines().any(|same| same == *line));
        lines.map(|line| format!("{sign} {line}\n")).collect::<Vec<_>>().concat()
    };
    format!("it is not as before:\n{}{}", missing(before, now, "-"), missing(now, before, "+"))
}

/// The conf list of the node: flannel and portmap, the latter with these keys too.
pub(crate) fn conf_list(version: &str, portmap: &Value) -> Value {
    let mut last = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    for (key, value) in portmap.as_object().unwrap() {
        last[key] = value.clone();
    }
    let delegate = json!({ "hairpinMode": true, "isDefaultGateway": true });
    json!({ "cniVersion": version, "name": "cbr0", "plugins": [{ "type": "flannel", "delegate": delegate }, last] })
}

/// Copies an executable. Not in this process: its other threads start programs, which inherit what is open for writing, and what that
/// is no program can be started from (ETXTBSY).
fn copy(from: &Path, to: &Path) {
    let output = Command::new("cp").args([from, to]).output().unwrap();
    assert!(output.status.success(), "{}: see README", String::from_utf8_lossy(&output.stderr));
}
