//! Published ports on a node whose packet rules are flushed: they work again, for containers that are there and no others, and never
//! against a plugin at work.
#![allow(clippy::print_stdout, reason = "a test that fails shows what it had done")]

#[allow(dead_code, reason = "each test program uses a part")]
mod network;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flannel_lab::lab::Lab;
use flannel_lab::options::LabOptions;
use network::{DUAL, FLANNEL, enclosed, options, start, text};
use serde_json::{Value, json};

/// A port that does not work again by then never will.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_millis(300);
const PORT: u16 = 8080;

/// A lab whose first node has a pod with a server.
fn lab(nftables: bool, prepare: &[&str]) -> Lab {
    let prepare = prepare.iter().map(|line| (*line).to_owned()).collect();
    let lab = start(LabOptions { pods: 1, nodes: 2, nftables, prepare, ..options(DUAL) });
    for ip in lab.node(0).pods()[0].addresses().values() {
        serve(&lab, SocketAddr::new(*ip, 80));
    }
    lab
}

/// Says its name to whoever asks, until the test ends.
fn serve(lab: &Lab, at: SocketAddr) {
    let bind = || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap());
    let (tcp, udp) = lab.node(0).pods()[0].place().inside(bind).unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            _ = stream.and_then(|mut stream| stream.write_all(b"pod"));
        }
    });
    std::thread::spawn(move || {
        while let Ok((_, from)) = udp.recv_from(&mut [0; 16]) {
            _ = udp.send_to(b"pod", from);
        }
    });
}

/// Calls the plugin for the first node's pod, whose end on the node is `link`, with programs found in `path`.
fn portmap(lab: &Lab, verb: &str, backend: &str, path: &str, link: &str) {
    let pod = &lab.node(0).pods()[0];
    let ips: Vec<_> = pod.addresses().values().map(|ip| json!({"address": format!("{ip}/{}", length(*ip))})).collect();
    let ports = ["tcp", "udp"].map(|protocol| json!({"hostPort": PORT, "containerPort": 80, "protocol": protocol}));
    let conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "portmap", "backend": backend,
        "runtimeConfig": {"portMappings": ports},
        "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": link}], "ips": ips},
    });
    let mut command = Command::new(FLANNEL);
    command.arg("portmap").env("PATH", path).env("CNI_COMMAND", verb).env("CNI_CONTAINERID", "c1");
    command.env("CNI_NETNS", "/run/netns/c1").env("CNI_IFNAME", "eth0").env("CNI_PATH", "/opt/cni/bin");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = lab.node(0).place().spawn(command).unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stdout));
}

fn length(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 24 } else { 64 }
}

/// The pod's end on the first node.
fn link(lab: &Lab) -> String {
    let ports: Value = serde_json::from_str(&text(lab, 0, "ip -j link show master cni0")).unwrap();
    ports[0]["ifname"].as_str().unwrap().to_owned()
}

/// The other node, which asks at the published port.
struct Client<'a> {
    lab: &'a Lab,
    to: Vec<SocketAddr>,
    /// Programs that go on asking with what they have open.
    open: Vec<UdpSocket>,
}

impl<'a> Client<'a> {
    fn new(lab: &'a Lab) -> Self {
        let ips = lab.node(0).external_addresses().unwrap();
        let to: Vec<_> = ips.values().map(|ip| SocketAddr::new(*ip, PORT)).collect();
        assert_eq!(to.len(), 2);
        let open = |to: &SocketAddr| lab.node(1).place().inside(|| connected(*to)).unwrap().unwrap();
        Self { open: to.iter().map(open).collect(), lab, to }
    }

    /// Whether all that ask are answered, in both families.
    fn is_answered(&self) -> bool {
        self.to.iter().zip(&self.open).all(|(to, open)| {
            let anew = || tcp(*to).and_then(|()| ask(&connected(*to)?));
            self.lab.node(1).place().inside(anew).unwrap().is_ok() && (ask(open).is_ok() || ask(open).is_ok())
        })
    }

    #[track_caller]
    fn assert_answered(&self, when: &str) {
        let begun = Instant::now();
        while !self.is_answered() {
            let rules = text(self.lab, 0, "nft list ruleset");
            assert!(begun.elapsed() < PATIENCE, "{when}: {rules}\n{}", self.lab.node(0).flanneld.log_tail());
        }
    }
}

fn tcp(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.read_exact(&mut [0; 3])
}

fn connected(to: SocketAddr) -> std::io::Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect(to)?;
    Ok(socket)
}

fn ask(socket: &UdpSocket) -> std::io::Result<()> {
    socket.send(b"?")?;
    socket.recv(&mut [0; 16]).map(drop)
}

/// How many rules lead to the pod, in any rule system.
fn leading(lab: &Lab) -> usize {
    let count = |command: &str, words: &[&str]| {
        let rules = text(lab, 0, command);
        rules.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    };
    let saves = ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"];
    let of_iptables: usize = saves.iter().map(|save| count(save, &["-j DNAT"])).sum();
    of_iptables + count("nft list ruleset", &["dnat to", "comment \"c1\""])
}

/// Waits until the daemon has made its own rules again, and has looked after those of ports too.
fn wait_for_daemon(lab: &Lab) {
    let begun = Instant::now();
    while !text(lab, 0, "nft list ruleset").contains("flannel-ipv6") {
        assert!(begun.elapsed() < PATIENCE, "{}", lab.node(0).flanneld.log_tail());
    }
    std::thread::sleep(Duration::from_millis(1600));
}

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

#[test]
fn published_ports_survive_a_flush() {
    if !enclosed("published_ports_survive_a_flush") {
        return;
    }
    let lab = lab(true, &[]);
    let (client, link) = (Client::new(&lab), link(&lab));
    for (backend, flushes) in [
        (
            "nftables",
            &["nft flush ruleset", "nft delete table ip6 cni_hostport", "nft flush chain ip cni_hostport prerouting"][..],
        ),
        ("iptables", &["nft flush ruleset", "iptables -t nat -F", "ip6tables -t nat -F CNI-HOSTPORT-DNAT"]),
    ] {
        portmap(&lab, "ADD", backend, PATH, &link);
        client.assert_answered(backend);
        let rules = leading(&lab);
        for flush in flushes {
            for _ in 0..2 {
                text(&lab, 0, flush);
                client.assert_answered(&format!("{backend}: {flush}"));
            }
        }
        assert_eq!(leading(&lab), rules, "{backend}: as many as before");
        portmap(&lab, "DEL", backend, PATH, &link);
        text(&lab, 0, "nft flush ruleset");
        wait_for_daemon(&lab);
        assert_eq!(leading(&lab), 0, "{backend}: nobody's port is published again");
    }
}

#[test]
fn ports_of_containers_that_are_gone_are_not_made_again() {
    if !enclosed("ports_of_containers_that_are_gone_are_not_made_again") {
        return;
    }
    let mut lab = lab(true, &[]);
    text(&lab, 0, "ip link add gone type veth peer name gone1");
    portmap(&lab, "ADD", "nftables", PATH, "gone");
    assert!(leading(&lab) > 0);
    text(&lab, 0, "ip link delete gone");
    text(&lab, 0, "nft flush ruleset");
    wait_for_daemon(&lab);
    assert_eq!(leading(&lab), 0);
    // A plugin in Go ends a container so: first its rules go, soon after its link. What all containers share stays.
    text(&lab, 0, "ip link add gone type veth peer name gone1");
    portmap(&lab, "ADD", "nftables", PATH, "gone");
    let chains = ["ip", "ip6"].iter().flat_map(|family| ["hostports", "masquerading"].map(|c| (family, c)));
    let flushes: Vec<_> = chains.map(|(family, chain)| format!("flush chain {family} cni_hostport {chain}")).collect();
    // In one go: the daemon waits a second for the end of the link.
    text(&lab, 0, &format!("nft {}", flushes.join(" ; ")));
    std::thread::sleep(Duration::from_millis(100));
    text(&lab, 0, "ip link delete gone");
    wait_for_daemon(&lab);
    assert_eq!(leading(&lab), 0);
    // And none at all where that is not wanted.
    let link = link(&lab);
    portmap(&lab, "ADD", "nftables", PATH, &link);
    let node = lab.node_mut(0);
    node.flanneld.kill().unwrap();
    let arguments: Vec<_> = node.arguments().iter().cloned().chain(["--restore-ports=false".to_owned()]).collect();
    node.start_again(&arguments).unwrap();
    text(&lab, 0, "nft flush ruleset");
    wait_for_daemon(&lab);
    assert_eq!(leading(&lab), 0);
}

/// iptables-legacy tells nobody of changes, and the node's variant need not be the one of `iptables` in `PATH`.
#[test]
fn published_ports_survive_a_flush_of_legacy_iptables() {
    if !enclosed("published_ports_survive_a_flush_of_legacy_iptables") {
        return;
    }
    let lab = lab(false, &["iptables-legacy -t nat -N KUBE-MARK-MASQ", "ip6tables-legacy -t nat -N KUBE-MARK-MASQ"]);
    let programs = "/run/legacy";
    fs::create_dir_all(lab.node(0).run().join("legacy")).unwrap();
    for name in
        ["iptables", "ip6tables"].iter().flat_map(|family| ["restore", "save"].map(|verb| format!("{family}-{verb}")))
    {
        symlink("/usr/sbin/xtables-legacy-multi", lab.node(0).run().join("legacy").join(name)).unwrap();
    }
    let (client, link) = (Client::new(&lab), link(&lab));
    portmap(&lab, "ADD", "iptables", &format!("{programs}:{PATH}"), &link);
    client.assert_answered("ADD");
    let rules = leading(&lab);
    for flush in ["iptables-legacy -t nat -F", "ip6tables-legacy -t nat -F PREROUTING"] {
        text(&lab, 0, flush);
        client.assert_answered(flush);
    }
    assert_eq!(leading(&lab), rules);
    assert!(!text(&lab, 0, "nft list ruleset").contains("dnat"));
    portmap(&lab, "DEL", "iptables", &format!("{programs}:{PATH}"), &link);
    assert_eq!(leading(&lab), 0);
}

#[test]
fn the_daemon_and_the_plugin_do_not_fight() {
    if !enclosed("the_daemon_and_the_plugin_do_not_fight") {
        return;
    }
    let lab = lab(true, &[]);
    let link = link(&lab);
    for (backend, turns) in [("nftables", 30), ("iptables", 10)] {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    text(&lab, 0, "nft flush ruleset");
                    std::thread::sleep(Duration::from_millis(3));
                }
            });
            for turn in 0..turns {
                portmap(&lab, "ADD", backend, PATH, &link);
                std::thread::sleep(Duration::from_millis(turn % 30));
                portmap(&lab, "DEL", backend, PATH, &link);
            }
            done.store(true, Ordering::Relaxed);
        });
        wait_for_daemon(&lab);
        assert_eq!(leading(&lab), 0, "{backend}: {}", lab.node(0).flanneld.log_tail());
        portmap(&lab, "ADD", backend, PATH, &link);
        wait_for_daemon(&lab);
        assert_eq!(leading(&lab), 4, "{backend}: one rule a family and protocol");
        portmap(&lab, "DEL", backend, PATH, &link);
    }
    assert!(Path::new(&lab.node(0).run().join("flannel/portmap/restore.lock")).exists());
}
