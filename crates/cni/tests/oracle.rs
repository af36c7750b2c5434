//! The same configurations to Debian's Go plugins and to ours: equal results, kernel state and files; and what one has
//! added the other checks and deletes.

mod world;

use std::net::IpAddr;

use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};
use world::{Answer, Call, OURS, clear, differences, make_node, make_pod, oracle, plain, state, tool};

/// A configuration to compare.
struct Row {
    name: &'static str,
    /// Further keys beside name, version, type and `ipam`.
    keys: Value,
    /// `ipam`; null for none.
    ipam: Value,
    version: &'static str,
    args: &'static str,
    /// Done to the host before.
    before: &'static [&'static str],
}

impl Row {
    fn conf(&self) -> Value {
        let mut conf = self.keys.clone();
        conf["cniVersion"] = json!(self.version);
        conf["name"] = json!("cbr0");
        conf["type"] = json!("bridge");
        if !self.ipam.is_null() {
            conf["ipam"] = self.ipam.clone();
            conf["ipam"]["type"] = json!("host-local");
            conf["ipam"]["dataDir"] = json!(world::FILES);
        }
        conf
    }

    fn prepare(&self) {
        clear();
        for command in self.before {
            tool(&command.split(' ').collect::<Vec<_>>());
        }
    }
}

fn row(name: &'static str, keys: Value, ipam: Value) -> Row {
    Row { name, keys, ipam, version: "1.0.0", args: "", before: &[] }
}

fn four() -> Value {
    json!({"ranges": [[{"subnet": "10.244.1.0/24"}]], "routes": [{"dst": "10.244.0.0/16"}]})
}

fn six() -> Value {
    json!({"ranges": [[{"subnet": "fd00:1::/64"}]], "routes": [{"dst": "fd00::/48"}]})
}

fn dual() -> Value {
    json!({
        "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]],
        "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00::/48"}],
    })
}

fn gateway() -> Value {
    json!({"isGateway": true, "mtu": 1450, "ipMasq": false})
}

fn rows() -> Vec<Row> {
    let groups = [bridge_keys(), ranges(), requests(), bad_keys(), hosts(), versions()];
    groups.into_iter().flatten().collect()
}

fn bridge_keys() -> Vec<Row> {
    let manifest = json!({"isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "mtu": 1450});
    let default_gateway = json!({"isDefaultGateway": true, "hairpinMode": true, "mtu": 1400});
    let own_default = json!({
        "ranges": [[{"subnet": "10.244.1.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.9"}],
    });
    let name_servers = json!({"isGateway": true, "dns": {"nameservers": ["10.0.0.10"], "search": ["a.b"]}});
    vec![
        row("flannel's default", gateway(), four()),
        row("flannel's default, dual-stack", gateway(), dual()),
        row("flannel's default, IPv6 only", gateway(), six()),
        row("flannel's manifest", manifest, four()),
        row("default gateway, dual-stack", default_gateway, dual()),
        row("no gateway", json!({}), four()),
        row("no gateway, dual-stack", json!({"mtu": 9000}), dual()),
        row("no addresses", json!({}), Value::Null),
        row("no addresses, hairpin", json!({"hairpinMode": true, "mtu": 1300}), Value::Null),
        row("another bridge", json!({"bridge": "br-x", "isGateway": true}), four()),
        row("promiscuous", json!({"promiscMode": true, "isGateway": true}), four()),
        row("enable dad is off", json!({"enabledad": false, "isGateway": true}), six()),
        row("a default route of its own", json!({"isDefaultGateway": true}), own_default),
        row("name servers", name_servers, four()),
        row("masqueraded", json!({"isGateway": true, "ipMasq": true}), four()),
        row("masqueraded, dual-stack", json!({"isDefaultGateway": true, "ipMasq": true}), dual()),
        row("masqueraded without addresses", json!({"ipMasq": true}), Value::Null),
    ]
}

fn ranges() -> Vec<Row> {
    let one = |range: Value| json!({"ranges": [[range]]});
    let two = json!([
        {"subnet": "10.244.1.0/24", "rangeEnd": "10.244.1.2"},
        {"subnet": "10.244.2.0/24", "rangeStart": "10.244.2.9"},
    ]);
    let explicit = json!({
        "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.20", "rangeEnd": "10.244.1.21", "gateway": "10.244.1.254",
    });
    let inside = json!({"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.2", "gateway": "10.244.1.2"});
    let old = json!({"subnet": "10.244.7.0/24", "rangeStart": "10.244.7.7", "gateway": "10.244.7.1"});
    let old_and_set = json!({"subnet": "10.244.7.0/24", "ranges": [[{"subnet": "fd00:7::/64"}]]});
    let last = json!({"ranges": [[{"subnet": "10.244.1.0/30"}], [{"subnet": "fd00:1::/126"}]]});
    let routes = json!({
        "ranges": [[{"subnet": "10.244.1.0/24"}]],
        "routes": [{"dst": "10.9.0.0/16", "gw": "10.244.1.77"}, {"dst": "0.0.0.0/0"}],
    });
    let file = json!({"resolvConf": "/proc/self/cmdline", "ranges": [[{"subnet": "10.244.1.0/24"}]]});
    vec![
        row("explicit range", gateway(), one(explicit)),
        row("gateway inside a range", gateway(), one(inside)),
        row("two ranges in a set", gateway(), json!({"ranges": [two]})),
        row("old style range", gateway(), old),
        row("old style range and a set", gateway(), old_and_set),
        row("the last addresses", gateway(), last),
        row("routes with gateways", gateway(), routes),
        row("no routes", gateway(), one(json!({"subnet": "10.244.1.0/24"}))),
        row("name servers of a file", gateway(), file),
    ]
}

fn requests() -> Vec<Row> {
    let runtime = |config: Value| json!({"isGateway": true, "runtimeConfig": config});
    let by_args = json!({"isGateway": true, "args": {"cni": {"ips": ["10.244.1.51"]}}});
    let ranges = json!({"ipRanges": [[{"subnet": "10.244.8.0/24"}]]});
    let by_env = row("requested by CNI_ARGS", gateway(), four());
    let mac_by_env = row("a MAC by CNI_ARGS", gateway(), four());
    vec![
        row("requested by the runtime", runtime(json!({"ips": ["10.244.1.50"]})), four()),
        row("requested by args", by_args, four()),
        row("requested and the gateway's", runtime(json!({"ips": ["10.244.1.1"]})), four()),
        row("requested elsewhere", runtime(json!({"ips": ["10.99.1.1"]})), four()),
        row("ranges of the runtime", runtime(ranges), six()),
        row("a MAC of the runtime", runtime(json!({"mac": "c2:11:22:33:44:55"})), four()),
        Row { args: "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.244.1.52", ..by_env },
        Row { args: "IgnoreUnknown=1;MAC=c2:11:22:33:44:66", ..mac_by_env },
    ]
}

fn bad_keys() -> Vec<Row> {
    let sets = |sets: Value| json!({"ranges": sets});
    let (wide, narrow) = (json!({"subnet": "10.244.0.0/16"}), json!({"subnet": "10.244.1.0/24"}));
    vec![
        row("hairpin and promiscuous", json!({"hairpinMode": true, "promiscMode": true}), four()),
        row("overlapping sets", gateway(), sets(json!([[wide], [narrow]]))),
        row("mixed families", gateway(), sets(json!([[wide, {"subnet": "fd00:1::/64"}]]))),
        row("host bits", gateway(), sets(json!([[{"subnet": "10.244.1.1/24"}]]))),
        row("too small", gateway(), sets(json!([[{"subnet": "10.244.1.0/31"}]]))),
        row("no ranges", gateway(), json!({})),
        row("MTU too small", json!({"mtu": 10, "isGateway": true}), four()),
    ]
}

const BRIDGE: &str = "ip link add cni0 up type bridge";

fn hosts() -> Vec<Row> {
    let host = |name, keys, before| Row { before, ..row(name, keys, four()) };
    let force = json!({"isGateway": true, "forceAddress": true});
    vec![
        host("a bridge that is there, down", gateway(), &["ip link add cni0 type bridge"]),
        host("a bridge with an IPv6 address", gateway(), &[BRIDGE, "ip addr add fd00:9::1/64 dev cni0"]),
        host("a bridge with another address", gateway(), &[BRIDGE, "ip addr add 10.9.9.1/24 dev cni0"]),
        host("another prefix length", gateway(), &[BRIDGE, "ip addr add 10.244.1.1/25 dev cni0"]),
        host("not a bridge", gateway(), &["ip link add cni0 type veth peer name x"]),
        host("another address replaced", force, &[BRIDGE, "ip addr add 10.9.9.1/24 dev cni0"]),
    ]
}

fn versions() -> Vec<Row> {
    let of = |version| Row { version, ..row("flannel's default, dual-stack, older version", gateway(), dual()) };
    ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0"].map(of).into()
}

fn call<'a>(dir: &'a str, id: &'a str, netns: &'a str, args: &'a str) -> Call<'a> {
    Call { dir, plugin: "bridge", id, netns, args }
}

/// Adds two pods, then deletes one and adds it again; what every step answered and left.
fn story(dir: &str, row: &Row, pods: [&str; 2]) -> Vec<Value> {
    row.prepare();
    let conf = row.conf();
    let mut told = Vec::new();
    let steps = [("ADD", "c1", pods[0]), ("ADD", "c2", pods[1]), ("DEL", "c1", pods[0]), ("ADD", "c1", pods[0])];
    let end = [("DEL", "c1", pods[0]), ("DEL", "c2", pods[1])];
    for (verb, id, netns) in steps.into_iter().chain(end) {
        let before = without_memory(state(&pods));
        let answer = call(dir, id, netns, row.args).run(verb, &conf);
        if !answer.ok && verb == "ADD" {
            // A failed ADD of the Go plugin leaves things behind, of ours nothing.
            let left = differences(row.name, &before, &without_memory(state(&pods)));
            assert!(dir != OURS || left.is_empty(), "{left:?}");
            clean_up(&conf, &pods);
            told.push(json!("failed"));
            return told;
        }
        assert!(answer.ok, "{}: {}", row.name, answer.text);
        told.push(json!({"step": format!("{verb} {id}"), "result": plain(&answer.json), "state": state(&pods)}));
    }
    told
}

/// Without what `host-local` keeps when it has given an address back: its lock, and the address given last.
fn without_memory(mut state: Value) -> Value {
    let addresses = |(name, text): (&String, &Value)| name.parse().is_ok_and(|_: IpAddr| true).then(|| text.clone());
    state["files"] = state["files"]["cbr0"].as_object().into_iter().flatten().filter_map(addresses).collect();
    state
}

fn clean_up(conf: &Value, pods: &[&str; 2]) {
    for (id, netns) in [("c1", pods[0]), ("c2", pods[1])] {
        call(OURS, id, netns, "").run("DEL", conf).good();
    }
}

#[test]
fn results_kernel_and_files_are_the_go_plugins() {
    if !rerun_enclosed("results_kernel_and_files_are_the_go_plugins") {
        return;
    }
    make_node();
    let (go, pods) = (oracle(), [make_pod("a"), make_pod("b")]);
    let pods = [pods[0].as_str(), pods[1].as_str()];
    let mut found = Vec::new();
    for row in rows() {
        let (theirs, ours) = (json!(story(&go, &row, pods)), json!(story(OURS, &row, pods)));
        found.extend(differences(&format!("{} ({})", row.name, row.version), &theirs, &ours));
    }
    assert!(found.is_empty(), "{} differences\n{}", found.len(), found.join("\n"));
}

#[test]
fn either_checks_and_deletes_what_the_other_added() {
    if !rerun_enclosed("either_checks_and_deletes_what_the_other_added") {
        return;
    }
    make_node();
    let (go, pod) = (oracle(), make_pod("a"));
    for row in rows() {
        for (adder, other) in [(go.as_str(), OURS), (OURS, go.as_str())] {
            row.prepare();
            let conf = row.conf();
            let added = call(adder, "c1", &pod, row.args).run("ADD", &conf);
            if !added.ok {
                continue;
            }
            let other = call(other, "c1", &pod, row.args);
            if row.version >= "0.4.0" && !row.ipam.is_null() {
                // The Go plugin finds no route that has no gateway in the result, not even its own.
                let blind = |answer: &Answer| answer.text.contains("GW:\\u003cnil\\u003e} not found in routing table");
                let checked = other.run_after("CHECK", &conf, &added.json);
                assert!(checked.ok || blind(&checked), "{}: added by {adder}: {}", row.name, checked.text);
            }
            other.run_after("DEL", &conf, &added.json).good();
            let left = state(&[&pod]);
            assert_eq!(left[&pod]["links"].as_array().unwrap().len(), 1, "{}: {left}", row.name);
            let ports = left["host"]["links"].as_array().unwrap().iter().filter(|link| link["name"] == "veth").count();
            assert_eq!(ports, 0, "{}: {left}", row.name);
            let owned = left["files"]["cbr0"]
                .as_object()
                .into_iter()
                .flatten()
                .any(|(_, text)| text.as_str().unwrap().contains("c1"));
            assert!(!owned, "{}: {left}", row.name);
            assert_eq!(left["host"]["rules"], json!([]), "{}: {left}", row.name);
        }
    }
}

#[test]
fn loopback_is_the_go_plugins() {
    if !rerun_enclosed("loopback_is_the_go_plugins") {
        return;
    }
    make_node();
    let go = oracle();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let pod = make_pod(&format!("lo-{version}"));
        let conf = json!({"cniVersion": version, "name": "lo", "type": "loopback"});
        let call = |dir| Call { dir, plugin: "loopback", id: "c1", netns: &pod, args: "" };
        let mut told = Vec::new();
        for (adder, other) in [(go.as_str(), OURS), (OURS, go.as_str())] {
            let mut result = call(adder).run("ADD", &conf).good();
            if version >= "0.4.0" {
                call(other).run_after("CHECK", &conf, &result).good();
            }
            // The old Go plugin forgets the key that 1.0.0 dropped.
            for ip in result["ips"].as_array_mut().unwrap() {
                ip.as_object_mut().unwrap().remove("version");
            }
            told.push((result, state(&[&pod])));
            call(other).run("DEL", &conf).good();
            assert!(!call(other).run("CHECK", &conf).ok, "lo is down");
        }
        assert_eq!(told[0], told[1], "{version}");
    }
}
