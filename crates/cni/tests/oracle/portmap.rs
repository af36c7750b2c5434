//! The keys of `portmap` in both rule systems, behind a plugin whose result is given, and in a list with `bridge`.

use serde_json::{Value, json};

use crate::bridge::in_any_list;
use crate::host_local::{as_released, dual, four};
use crate::world::FILES;
use crate::world::row::{Better, Row};

/// Where the pod is that the rows speak of.
const HOST: &[&str] = &[
    "ip link add cni0 address c2:11:22:00:00:01 type bridge",
    "ip addr add 10.244.1.1/24 dev cni0",
    "ip addr add fd00:1::1/64 dev cni0 nodad",
    "ip link set cni0 up",
    "iptables -t nat -N KUBE-MARK-MASQ",
];

const FOUR: &[&str] = &["10.244.1.5/24"];
const SIX: &[&str] = &["fd00:1::5/64"];
const DUAL: &[&str] = &["10.244.1.5/24", "fd00:1::5/64"];
/// Both rule systems.
const BACKENDS: [&str; 2] = ["iptables", "nftables"];

/// All of them.
pub(crate) fn table() -> (Vec<Row>, Vec<Better>) {
    let both = BACKENDS.into_iter().flat_map(|backend| ports(backend).into_iter().chain(chains(backend)));
    let rows = both.chain(iptables()).chain(nftables()).chain(versions()).collect();
    (rows, in_any_list().into_iter().chain(as_released()).collect())
}

fn row(backend: &str, name: &'static str, mut keys: Value, ports: Value, addresses: &'static [&'static str]) -> Row {
    let masquerades = keys["snat"] != false && ports != json!([]);
    keys["backend"] = json!(backend);
    keys["capabilities"] = json!({"portMappings": true});
    let row = Row {
        runtime: [("portMappings".to_owned(), ports)].into_iter().collect(),
        given: given("1.0.0", addresses),
        before: HOST,
        ..Row::of("portmap", name, keys)
    };
    of_backend(backend, row, masquerades)
}

fn of_backend(backend: &str, row: Row, masquerades: bool) -> Row {
    match backend {
        "nftables" if masquerades => row.released().better(None, HAIRPIN.0, HAIRPIN.1),
        "nftables" => row.released(),
        _ => row,
    }
}

/// A rule for each port, of nf_tables.
const HAIRPIN: (&str, &str) = (
    "ct original proto-dst",
    "the container reaches itself by its own host port, as with iptables; the release has no rule for that",
);

/// What the plugins before have made.
fn given(version: &str, addresses: &[&str]) -> Value {
    if version <= "0.2.0" {
        return json!({"cniVersion": version, "ip4": {"ip": addresses[0]}, "dns": {}});
    }
    let ip = |address: &&str| {
        let mut ip = json!({"interface": 2, "address": address});
        if version < "1.0.0" {
            ip["version"] = json!(if address.contains(':') { "6" } else { "4" });
        }
        ip
    };
    let ips: Vec<_> = addresses.iter().map(ip).collect();
    let interfaces = json!([{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/one"}]);
    json!({"cniVersion": version, "interfaces": interfaces, "ips": ips, "dns": {"nameservers": ["10.0.0.53"]}})
}

fn port(protocol: &str, host: u16, container: u16) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol})
}

fn port_on(ip: &str, protocol: &str, host: u16, container: u16) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol, "hostIP": ip})
}

fn web() -> Value {
    json!([port("tcp", 8080, 80)])
}

fn all_kinds() -> Value {
    json!([
        port("tcp", 8080, 80),
        port("udp", 8053, 53),
        port("sctp", 9999, 99),
        port_on("192.0.2.1", "tcp", 8081, 81),
        port_on("2001:db8::1", "tcp", 8082, 82),
        port_on("0.0.0.0", "tcp", 8083, 83),
        port_on("::", "udp", 8084, 84),
    ])
}

fn range(first: u16, count: u16) -> Value {
    (first..first + count).map(|number| port("tcp", number, number)).collect()
}

/// What both rule systems know.
fn ports(backend: &str) -> Vec<Row> {
    let row = |name, keys, ports, addresses| row(backend, name, keys, ports, addresses);
    vec![
        row("a port", json!({}), web(), FOUR),
        row("a port, IPv6", json!({}), web(), SIX),
        row("every kind of port", json!({}), all_kinds(), DUAL),
        row("a range of sixteen", json!({}), range(7000, 16), FOUR),
        row("a range of sixty", json!({}), range(7000, 60), DUAL),
        row("without snat", json!({"snat": false}), all_kinds(), DUAL),
        row("snat is null", json!({"snat": null, "masqAll": false, "conditionsV4": null}), web(), FOUR),
        row("another bit", json!({"markMasqBit": 0}), web(), DUAL),
        row("no ports", json!({}), json!([]), DUAL),
    ]
}

fn iptables() -> Vec<Row> {
    let row = |name, keys, ports, addresses| row("iptables", name, keys, ports, addresses);
    let four = json!(["-s", "192.0.2.0/24", "!", "-i", "eth9"]);
    let six = json!(["!", "-s", "2001:db8::/32"]);
    vec![
        row("conditions", json!({"conditionsV4": four, "conditionsV6": six}), web(), DUAL),
        row("all is masqueraded", json!({"masqAll": true}), all_kinds(), DUAL).released(),
        row("bit 31", json!({"markMasqBit": 31}), web(), FOUR),
        row("a chain of others", json!({"externalSetMarkChain": "KUBE-MARK-MASQ"}), web(), FOUR),
        row("a bit and a chain", json!({"markMasqBit": 1, "externalSetMarkChain": "A"}), web(), FOUR).fails(),
        row("a bit too high", json!({"markMasqBit": 32}), web(), FOUR).fails(),
        row("another protocol", json!({}), json!([port("icmp", 1, 1)]), FOUR).fails(),
    ]
}

fn nftables() -> Vec<Row> {
    let row = |name, keys, ports, addresses| row("nftables", name, keys, ports, addresses);
    let (four, six) = (json!(["ip", "saddr", "!=", "192.0.2.0/24"]), json!(["iifname", "!=", "\"eth9\""]));
    vec![
        row("conditions", json!({"conditionsV4": four, "conditionsV6": six}), all_kinds(), DUAL),
        row("all is masqueraded", json!({"masqAll": true}), web(), DUAL).better(
            None,
            "only ours \"ip6 daddr fd00:1::5 tcp dport 80 ct status dnat",
            "whoever asks is masqueraded, as `masqAll` says; the release passes the key over",
        ),
    ]
}

/// Which rule system it is when the configuration does not say, and results of all versions.
fn versions() -> Vec<Row> {
    let of = |version| {
        let mut row = row("", "no backend", json!({}), web(), FOUR);
        row.plugins[0].keys.as_object_mut().unwrap().remove("backend");
        Row { version, given: given(version, FOUR), ..row }
    };
    let rows = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"].map(of);
    rows.into_iter().chain([of("1.1.0").released()]).collect()
}

/// `bridge` and `portmap`, as flannel's manifest has them.
fn chains(backend: &'static str) -> Vec<Row> {
    let chain = |name, version, mut bridge: Value, mut ipam: Value| {
        let kinds = if ipam["ranges"].as_array().unwrap().len() == 2 { all_kinds() } else { web() };
        ipam["type"] = json!("host-local");
        ipam["dataDir"] = json!(FILES);
        bridge["ipam"] = ipam;
        let ports = row(backend, "", json!({"snat": true}), kinds, DUAL);
        let list = Row { version, runtime: ports.runtime, ..Row::of("bridge", name, bridge) };
        let list = list.then("portmap", ports.plugins[0].keys.clone());
        of_backend(backend, list, true)
    };
    let manifest = || json!({"isDefaultGateway": true, "hairpinMode": true, "mtu": 1450});
    let masqueraded = json!({"isGateway": true, "ipMasq": true, "ipMasqBackend": backend});
    let mut rows: Vec<_> =
        ["0.2.0", "0.3.1", "1.0.0"].map(|version| chain("the manifest's list", version, manifest(), dual())).into();
    rows.push(chain("the manifest's list", "0.4.0", manifest(), four()));
    rows.push(chain("all masqueraded", "1.0.0", masqueraded, dual()));
    rows.push(chain("the manifest's list", "1.1.0", manifest(), dual()).released());
    rows
}
