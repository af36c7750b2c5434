//! Packets to published ports: from outside, from the node, from other pods and from the pod itself, in both families, by both rule
//! systems; and to the pod that has the port now, not to the one that had it.

mod world;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use flannel_kernel::namespace::NetNamespace;
use flannel_kernel::process::rerun_enclosed;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with};
use serde_json::{Value, json};
use world::{Call, OURS, make_node, make_pod, tool};

/// How long an answer may take; one that does not come takes this long.
const PATIENCE: Duration = Duration::from_secs(3);
/// The node's addresses towards outside.
const NODE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// A pod that says its name to whoever asks.
struct Pod {
    name: &'static str,
    netns: String,
    result: Value,
}

fn bridge() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "isDefaultGateway": true, "hairpinMode": true,
        "ipam": {"type": "host-local", "dataDir": "/run/files",
                 "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]]},
    })
}

impl Pod {
    fn start(name: &'static str) -> Self {
        let netns = make_pod(name);
        let result =
            Call { dir: OURS, plugin: "bridge", id: name, netns: &netns, args: "" }.run("ADD", &bridge()).good();
        let pod = Self { name, netns, result };
        pod.addresses().into_iter().for_each(|ip| pod.serve(ip));
        pod
    }

    fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.result["ips"].as_array().unwrap().iter();
        ips.map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()).collect()
    }

    /// Answers on port 80 of an address until the test ends.
    fn serve(&self, ip: IpAddr) {
        let (at, name) = (SocketAddr::new(ip, 80), self.name);
        let netns = NetNamespace::open(Path::new(&self.netns)).unwrap();
        let (tcp, udp) = netns.run(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap())).unwrap();
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                _ = stream.and_then(|mut stream| stream.write_all(name.as_bytes()));
            }
        });
        std::thread::spawn(move || {
            while let Ok((_, from)) = udp.recv_from(&mut [0; 16]) {
                _ = udp.send_to(name.as_bytes(), from);
            }
        });
    }

    fn portmap(&self, verb: &str, backend: &str, keys: &Value) -> Value {
        let port = |protocol: &str| json!({"hostPort": 8080, "containerPort": 80, "protocol": protocol});
        self.publish(verb, backend, keys, &json!([port("tcp"), port("udp")]))
    }

    fn publish(&self, verb: &str, backend: &str, keys: &Value, ports: &Value) -> Value {
        let mut conf = keys.clone();
        for (key, value) in [("cniVersion", "1.0.0"), ("name", "cbr0"), ("type", "portmap"), ("backend", backend)] {
            conf[key] = json!(value);
        }
        conf["prevResult"] = self.result.clone();
        conf["runtimeConfig"] = json!({"portMappings": ports});
        Call { dir: OURS, plugin: "portmap", id: self.name, netns: &self.netns, args: "" }.run(verb, &conf).good()
    }
}

/// Does the work in a pod, or on the node.
fn within<T: Send>(netns: Option<&str>, work: impl FnOnce() -> T + Send) -> T {
    match netns {
        Some(path) => NetNamespace::open(Path::new(path)).unwrap().run(work).unwrap(),
        None => work(),
    }
}

/// What answers at a published port.
fn ask(from: Option<&str>, to: SocketAddr) -> [std::io::Result<String>; 2] {
    within(from, || {
        let tcp = TcpStream::connect_timeout(&to, PATIENCE).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        });
        [tcp, client(to).and_then(|socket| ask_again(&socket))]
    })
}

/// A socket of its own for each client, as a program that lives long has.
fn client(to: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    Ok(socket)
}

fn ask_again(socket: &UdpSocket) -> std::io::Result<String> {
    socket.send(b"?")?;
    let mut answer = [0; 16];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// A node with a neighbour outside; the path of that.
fn prepare() -> String {
    make_node();
    let outside = make_pod("outside");
    for words in [
        "ip link add up0 type veth peer name up1 netns outside",
        "ip link set up0 up",
        "ip -n outside link set up1 up",
        "ip addr add 192.0.2.1/24 dev up0",
        "ip addr add 2001:db8::1/64 dev up0 nodad",
        "ip -n outside addr add 192.0.2.9/24 dev up1",
        "ip -n outside addr add 2001:db8::9/64 dev up1 nodad",
    ] {
        tool(&words.split(' ').collect::<Vec<_>>());
    }
    outside
}

/// Whether bridged packets meet the packet filter, on kernels that have a say in it: without `br_netfilter` they do not.
fn filter_bridged(value: &str) {
    for family in ["iptables", "ip6tables"] {
        _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}"), value);
    }
}

#[test]
fn a_published_port_is_reached_from_everywhere() {
    if !rerun_enclosed("a_published_port_is_reached_from_everywhere") {
        return;
    }
    let outside = prepare();
    let (a, b) = (Pod::start("a"), Pod::start("b"));
    for (backend, keys, bridged) in [
        ("nftables", json!({}), "0"),
        ("nftables", json!({}), "1"),
        ("iptables", json!({}), "0"),
        ("iptables", json!({}), "1"),
        ("nftables", json!({"masqAll": true}), "0"),
        ("iptables", json!({"masqAll": true}), "0"),
    ] {
        filter_bridged(bridged);
        a.portmap("ADD", backend, &keys);
        let local = ["127.0.0.1", "10.244.1.1", "fd00:1::1"];
        for (who, from, to) in [
            ("outside", Some(outside.as_str()), &NODE[..]),
            ("another pod", Some(b.netns.as_str()), &NODE),
            ("the pod itself", Some(a.netns.as_str()), &NODE),
            ("the node", None, &NODE),
            ("the node, at addresses of its own", None, &local),
        ] {
            for ip in to {
                for answer in ask(from, SocketAddr::new(ip.parse().unwrap(), 8080)) {
                    assert_eq!(
                        answer.as_deref().ok(),
                        Some("a"),
                        "{who} at {ip} ({backend} {keys} {bridged}): {answer:?}"
                    );
                }
            }
        }
        a.portmap("DEL", backend, &keys);
        for answer in ask(Some(&outside), SocketAddr::new(NODE[0].parse().unwrap(), 8080)) {
            assert!(answer.is_err(), "{backend}: {answer:?} after DEL");
        }
    }
}

#[test]
fn udp_leads_to_the_pod_that_has_the_port_now() {
    if !rerun_enclosed("udp_leads_to_the_pod_that_has_the_port_now") {
        return;
    }
    let outside = prepare();
    let (a, b) = (Pod::start("a"), Pod::start("b"));
    for backend in ["nftables", "iptables"] {
        for ip in NODE {
            let to = SocketAddr::new(ip.parse().unwrap(), 8080);
            let [one, two] = [(); 2].map(|()| within(Some(&outside), || client(to)).unwrap());
            a.portmap("ADD", backend, &json!({}));
            assert_eq!(ask_again(&one).unwrap(), "a", "{backend} {ip}");
            a.portmap("DEL", backend, &json!({}));
            // Both ask while nobody has the port, so that the kernel remembers that, too.
            for client in [&one, &two] {
                assert!(ask_again(client).is_err(), "{backend} {ip}: the port is nobody's");
            }
            b.portmap("ADD", backend, &json!({}));
            for client in [&one, &two] {
                // The refusal of before may come first.
                let answer = ask_again(client).or_else(|_| ask_again(client));
                assert_eq!(answer.unwrap(), "b", "{backend} {ip}");
            }
            b.portmap("DEL", backend, &json!({}));
        }
    }
}

/// One packet of SCTP (RFC 9260): a common header and an INIT chunk, which needs no tag of a connection, or the INIT ACK that answers it.
fn sctp(from: u16, to: u16, tag: u32, kind: u8) -> Vec<u8> {
    let chunk = [[kind, 0, 0, 20], [0, 0, 0, 9], [0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 7]].concat();
    let mut packet = [&from.to_be_bytes(), &to.to_be_bytes(), &tag.to_be_bytes()[..], &[0; 4], &chunk].concat();
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// The checksum of SCTP.
fn crc32c(bytes: &[u8]) -> u32 {
    let shift = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| shift(crc)))
}

/// A socket for whole packets of SCTP, since a kernel may pass on what it cannot speak itself.
fn raw(at: IpAddr) -> UdpSocket {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::SCTP)).unwrap();
    bind(&socket, &SocketAddr::new(at, 0)).unwrap();
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The next packet: who sent it, its ports, and whether its checksum is right.
fn receive(socket: &UdpSocket) -> (IpAddr, u16, u16, bool) {
    let mut buffer = [0; 256];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    // IPv4 shows its own header, of 20 bytes.
    let packet = &mut buffer[if from.is_ipv4() { 20 } else { 0 }..length];
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let (source, destination) = (port(0), port(2));
    let sum = u32::from_le_bytes(packet[8..12].try_into().unwrap());
    packet[8..12].fill(0);
    (from.ip(), source, destination, crc32c(packet) == sum)
}

#[test]
fn sctp_is_led_to_the_pod_and_back() {
    if !rerun_enclosed("sctp_is_led_to_the_pod_and_back") {
        return;
    }
    let outside = prepare();
    let pod = Pod::start("a");
    let from: [IpAddr; 2] = ["192.0.2.9", "2001:db8::9"].map(|ip| ip.parse().unwrap());
    for (backend, port) in [("nftables", 8080), ("iptables", 8081)] {
        pod.publish("ADD", backend, &json!({}), &json!([{"hostPort": port, "containerPort": 80, "protocol": "sctp"}]));
        for ((from, node), to) in from.into_iter().zip(NODE).zip(pod.addresses()) {
            let node: IpAddr = node.parse().unwrap();
            let (client, own) = (within(Some(&outside), || raw(from)), port - 1000);
            let server = within(Some(&pod.netns), || raw(to));
            client.send_to(&sctp(own, port, 0, 1), (node, 0)).unwrap();
            assert_eq!(receive(&server), (from, own, 80, true), "{backend}");
            server.send_to(&sctp(80, own, 9, 2), (from, 0)).unwrap();
            assert_eq!(receive(&client), (node, port, own, true), "{backend}");
        }
        pod.publish("DEL", backend, &json!({}), &json!([{"hostPort": port, "containerPort": 80, "protocol": "sctp"}]));
    }
}
