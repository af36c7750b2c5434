//! Keys `vlan`, `vlanTrunk` and `preserveDefaultVlan` of `bridge`, in a guest whose kernel filters by VLAN: the released Go plugin's
//! results and kernel state, what one has added checked and deleted by the other, and frames that stay in their VLAN.

mod world;

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use flannel_kernel::guest::{Guest, rerun_in_guest};
use flannel_kernel::namespace::NetNamespace;
use serde_json::{Value, json};
use world::{
    Call, FILES, OURS, SUBNET_ENV, clear, differences, files, flannel_conf, ip, links, make_node, make_pod, plain,
    released, tool,
};

/// Addresses from the tenth on in a subnet of each family.
fn ipam(subnet: usize) -> Value {
    let four = json!([{"subnet": format!("10.244.{subnet}.0/24"), "rangeStart": format!("10.244.{subnet}.10")}]);
    let six = json!([{"subnet": format!("fd00:{subnet}::/64")}]);
    json!({"type": "host-local", "dataDir": FILES, "ranges": [four, six], "routes": [{"dst": "10.244.0.0/16"}]})
}

/// A configuration with further keys; one that says `null` for `ipam` has none.
fn conf(keys: &Value) -> Value {
    let mut conf = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "ipam": ipam(1)});
    for (key, value) in keys.as_object().unwrap() {
        conf[key] = value.clone();
    }
    if conf["ipam"].is_null() {
        conf.as_object_mut().unwrap().remove("ipam");
    }
    conf
}

fn bridge<'a>(dir: &'a str, id: &'a str, netns: &'a str) -> Call<'a> {
    Call { dir, plugin: "bridge", id, netns, args: "" }
}

/// Every port's VLANs, as `bridge vlan` lists them.
fn vlans() -> Vec<Value> {
    serde_json::from_str(&tool(&["bridge", "-j", "vlan"])).unwrap()
}

fn vlans_of(port: &str) -> Value {
    vlans().into_iter().find(|found| found["ifname"] == port).unwrap()["vlans"].clone()
}

/// The name of the host's end in a result.
fn port_of(result: &Value) -> String {
    result["interfaces"][1]["name"].as_str().unwrap().into()
}

/// What hangs together and in which VLAN, sorted, without what differs from run to run; and what there is beside.
fn seen(pods: &[String]) -> Value {
    let mut host = links(None);
    host.retain(|link| link["flags"].to_string().contains("BROADCAST"));
    host.sort_by_key(ToString::to_string);
    let mut vlans = vlans();
    for port in vlans.iter_mut().filter(|port| port["ifname"].as_str().unwrap().starts_with("veth")) {
        port["ifname"] = json!("veth");
    }
    vlans.sort_by_key(ToString::to_string);
    let pods: Vec<_> = pods.iter().map(|pod| links(Some(pod))).collect();
    json!({"host": host, "pods": pods, "vlans": vlans, "files": files(Path::new(FILES)), "rules": rules()})
}

fn rules() -> Vec<String> {
    let saved = tool(&["iptables-save", "-t", "nat"]);
    saved.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect()
}

const ROWS: [(&str, &str); 9] = [
    ("vlan", r#"{"vlan": 4094, "preserveDefaultVlan": false}"#),
    ("vlan and gateway", r#"{"vlan": 100, "isGateway": true, "mtu": 1400}"#),
    ("vlan and masquerade", r#"{"vlan": 100, "isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": "iptables"}"#),
    (
        "trunk",
        r#"{"vlanTrunk": [{"id": 4094}, {"minID": 1, "maxID": 5}, {"id": 7}, {"minID": 3, "maxID": 6}], "isGateway": true}"#,
    ),
    ("vlan and trunk", r#"{"vlan": 100, "vlanTrunk": [{"id": 7, "minID": 200, "maxID": 210}], "isGateway": true}"#),
    ("vlan beside the default", r#"{"vlan": 100, "preserveDefaultVlan": true, "isGateway": true}"#),
    (
        "trunk beside the default",
        r#"{"vlanTrunk": [{"id": 100}], "preserveDefaultVlan": true, "hairpinMode": true, "ipam": null}"#,
    ),
    ("the default as vlan", r#"{"vlan": 1, "isGateway": true, "portIsolation": true}"#),
    ("an empty trunk", r#"{"vlanTrunk": [], "isGateway": true}"#),
];

/// A pod for each row, on a bridge of its own.
struct Pod {
    name: &'static str,
    id: String,
    netns: String,
    conf: Value,
}

fn pods() -> Vec<Pod> {
    let pod = |(n, (name, keys)): (usize, &(&'static str, &str))| {
        let keys: Value = serde_json::from_str(keys).unwrap();
        let mut conf = conf(&keys);
        (conf["name"], conf["bridge"]) = (json!(format!("net{n}")), json!(format!("br{n}")));
        if !conf["ipam"].is_null() {
            conf["ipam"] = ipam(n);
        }
        Pod { name, id: format!("c{n}"), netns: make_pod(&format!("row{n}")), conf }
    };
    ROWS.iter().enumerate().map(pod).collect()
}

/// One adds all, the other checks and deletes them. What was answered, and what there was in between.
fn story(adder: &str, other: &str, pods: &[Pod]) -> Value {
    clear();
    let mut told = json!({});
    let mut added = Vec::new();
    for pod in pods {
        let result = bridge(adder, &pod.id, &pod.netns).run("ADD", &pod.conf).good();
        let checked = bridge(other, &pod.id, &pod.netns).run_after("CHECK", &pod.conf, &result);
        // The Go plugin finds no route that has no gateway in the result, and cannot check a network without addresses.
        let blind = ["not found in routing table", "no plugin name provided"];
        let excused = blind.iter().any(|text| checked.text.contains(text));
        assert!(checked.ok || other != OURS && excused, "{} by {adder}: {}", pod.name, checked.text);
        told[pod.name] = answered(&result);
        added.push(result);
    }
    told["seen"] = seen(&pods.iter().map(|pod| pod.netns.clone()).collect::<Vec<_>>());
    for (pod, result) in pods.iter().zip(&added) {
        bridge(other, &pod.id, &pod.netns).run_after("DEL", &pod.conf, result).good();
    }
    // The ports of gateways' interfaces stay, as the bridges do.
    let gateways = added.iter().filter(|result| result["interfaces"].as_array().unwrap().len() == 4).count();
    let left = ip(None, &["link"]).into_iter().filter(|link| link["master"].is_string()).count();
    assert_eq!((left, gateways), (5, 5), "added by {adder}");
    assert_eq!(rules(), [""; 0], "added by {adder}");
    told
}

/// A result without what differs from run to run; this release of the Go plugin leaves out a `dns` that is empty.
fn answered(result: &Value) -> Value {
    let mut result = plain(result);
    if result["dns"] == json!({}) {
        result.as_object_mut().unwrap().remove("dns");
    }
    result
}

fn compare() {
    make_node();
    let (go, pods) = (released(), pods());
    let found = differences("", &story(&go, OURS, &pods), &story(OURS, &go, &pods));
    assert!(found.is_empty(), "{} differences\n{}", found.len(), found.join("\n"));
}

#[test]
fn results_and_kernel_are_the_go_plugins() {
    if rerun_in_guest("results_and_kernel_are_the_go_plugins", &Guest::default()) {
        compare();
    }
}

/// Whether a datagram from one pod's address gets to another pod's.
fn reaches(from: (&str, &str), to: (&str, &str)) -> bool {
    let within = |pod: &str, work: &(dyn Fn() -> UdpSocket + Sync)| {
        NetNamespace::open(Path::new(pod)).unwrap().run(work).unwrap()
    };
    let ear = within(to.0, &|| UdpSocket::bind((to.1, 7777)).unwrap());
    ear.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    let mouth = within(from.0, &|| UdpSocket::bind((from.1, 0)).unwrap());
    _ = mouth.send_to(b"x", (to.1, 7777));
    ear.recv(&mut [0; 8]).is_ok()
}

const HOST: (&str, &str) = ("/proc/thread-self/ns/net", "10.244.1.1");

/// Pods in VLANs 100, 100 and 200 of one subnet, and one with both on its wire.
fn frames_stay_in_their_vlan() {
    let pods = ["a", "b", "c", "t"].map(|name| make_pod(&format!("frames-{name}")));
    let in_100 = conf(&json!({"vlan": 100, "isGateway": true}));
    let mut in_200 = conf(&json!({"vlan": 200, "name": "cbr1"}));
    in_200["ipam"]["ranges"][0][0]["rangeStart"] = json!("10.244.1.100");
    let trunk = conf(&json!({"vlanTrunk": [{"minID": 99, "maxID": 100}, {"id": 200}], "ipam": null}));
    for (id, pod, conf) in [("c1", 0, &in_100), ("c2", 1, &in_100), ("c3", 2, &in_200), ("c4", 3, &trunk)] {
        bridge(OURS, id, &pods[pod]).run("ADD", conf).good();
    }
    for (vlan, address) in [("100", "10.244.1.201/24"), ("200", "10.244.1.202/24")] {
        let inside = |words: &str| {
            let enter = [format!("nsenter --net={}", pods[3]), words.into()].join(" ");
            tool(&enter.split(' ').collect::<Vec<_>>());
        };
        inside(&format!("ip link add eth0.{vlan} link eth0 type vlan id {vlan}"));
        inside(&format!("ip link set eth0.{vlan} up"));
        // A subnet of its own for each, so that the route says which VLAN a frame goes to.
        inside(&format!("ip addr add {} dev eth0.{vlan}", address.replace("/24", "/32")));
    }
    let [a, b, c] = [(&*pods[0], "10.244.1.10"), (&*pods[1], "10.244.1.11"), (&*pods[2], "10.244.1.100")];
    // A loaded machine may lose the first ones.
    let arrives = |from, to| (0..10).any(|_| reaches(from, to));
    assert!(arrives(a, b) && arrives(b, a), "within VLAN 100");
    assert!(arrives(a, HOST) && arrives(HOST, b), "the gateway of VLAN 100");
    assert!(!reaches(a, c) && !reaches(c, a) && !reaches(c, HOST), "from one VLAN to another");
    for (vlan, peer, other) in [("100", a, c), ("200", c, a)] {
        let own = if vlan == "100" { "10.244.1.201" } else { "10.244.1.202" };
        let pod = &*pods[3];
        for peer in [peer, other] {
            let route = ["nsenter", &format!("--net={pod}"), "ip", "route", "replace", peer.1, "dev"];
            tool(&[route.as_slice(), &[&format!("eth0.{vlan}"), "src", own]].concat());
        }
        assert!(arrives((pod, own), peer), "the trunk in VLAN {vlan}");
        assert!(!reaches((pod, own), other), "the trunk out of VLAN {vlan}");
    }
    for (id, pod, conf) in [("c1", 0, &in_100), ("c2", 1, &in_100), ("c3", 2, &in_200), ("c4", 3, &trunk)] {
        bridge(OURS, id, &pods[pod]).run("DEL", conf).good();
    }
    let left: Vec<_> = ip(None, &["link"]).into_iter().filter(|link| link["master"] == "cni0").collect();
    assert_eq!(left.len(), 1, "the port of cni0.100: {left:?}");
}

const NATIVE: &str = r#"{"vlan":100,"flags":["PVID","Egress Untagged"]}"#;

/// The Go plugin takes the container's own VLAN from it when the trunk has it too: all that it sends is dropped.
fn the_trunk_leaves_the_containers_own_vlan_alone() {
    clear();
    let (pod, conf) = (make_pod("own"), conf(&json!({"vlan": 100, "vlanTrunk": [{"minID": 99, "maxID": 101}]})));
    let call = bridge(OURS, "c1", &pod);
    let result = call.run("ADD", &conf).good();
    let native: Value = serde_json::from_str(NATIVE).unwrap();
    assert_eq!(vlans_of(&port_of(&result)), json!([{"vlan": 99}, native, {"vlan": 101}]));
    call.run_after("CHECK", &conf, &result).good();
    call.run("DEL", &conf).good();
}

fn check_tells_of_other_vlans() {
    clear();
    let (pod, conf) = (make_pod("check"), conf(&json!({"vlan": 100, "isGateway": true})));
    let call = bridge(OURS, "c1", &pod);
    let result = call.run("ADD", &conf).good();
    let check = || call.run_after("CHECK", &conf, &result);
    let bridge_vlan = |verb, vlan, dev: &str, more: &[&str]| {
        tool(&[["bridge", "vlan", verb, "dev", dev, "vid", vlan].as_slice(), more].concat());
    };
    let gateway = ip(None, &["link", "show", "cni0.100"])[0]["link"].as_str().unwrap().to_owned();
    for port in [port_of(&result), gateway] {
        check().good();
        bridge_vlan("add", "1", &port, &["untagged"]);
        let (_, msg, _) = check().failure();
        assert!(msg.ends_with("are [1 untagged, 100 native], the configuration says [100 native]"), "{msg}");
        bridge_vlan("del", "1", &port, &[]);
        bridge_vlan("add", "100", &port, &[]);
        let (_, msg, _) = check().failure();
        assert!(msg.ends_with("are [100], the configuration says [100 native]"), "{msg}");
        bridge_vlan("add", "100", &port, &["pvid", "untagged"]);
    }
    check().good();
    tool(&["ip", "link", "set", "cni0", "type", "bridge", "vlan_filtering", "0"]);
    assert!(check().failure().1.contains("the bridge is there and does not filter by VLAN"));
    tool(&["ip", "link", "set", "cni0", "type", "bridge", "vlan_filtering", "1"]);
    tool(&["ip", "link", "del", "cni0.100"]);
    assert!(check().failure().1.contains("interface cni0.100 not found"));
    call.run("DEL", &conf).good();
}

fn a_bridge_that_mixes_vlans_is_refused() {
    clear();
    let (pod, conf) = (make_pod("mixes"), conf(&json!({"vlan": 100})));
    tool(&["ip", "link", "add", "cni0", "up", "type", "bridge"]);
    let (code, msg, hint) = bridge(OURS, "c1", &pod).run("ADD", &conf).failure();
    assert!(
        code == 999 && msg.contains("cannot put a port of cni0 into a VLAN: the bridge is there and does not"),
        "{msg}"
    );
    assert!(hint.contains("`ip link set cni0 type bridge vlan_filtering 1`"), "{hint}");
    assert_eq!(ip(None, &["link"]).iter().filter(|link| link["master"] == "cni0").count(), 0);
    assert!(!fs::exists(Path::new(FILES).join("cbr0/10.244.1.10")).unwrap());
}

/// An ADD can be killed between any two steps.
fn a_half_made_gateway_is_completed() {
    clear();
    let (pod, conf) = (make_pod("half"), conf(&json!({"vlan": 100, "isGateway": true})));
    for command in [
        "ip link add cni0 up type bridge vlan_filtering 1",
        "ip link add cni0.100 type veth peer name vethhalf",
        "ip link set vethhalf up master cni0",
    ] {
        tool(&command.split(' ').collect::<Vec<_>>());
    }
    bridge(OURS, "c1", &pod).run("ADD", &conf).good();
    assert_eq!(
        vlans_of("vethhalf").to_string(),
        format!("[{NATIVE}]").replace(r#""vlan":100,"flags""#, r#""flags""#).replace(r#""]}"#, r#""],"vlan":100}"#)
    );
    assert!(reaches((&pod, "10.244.1.10"), HOST));
    bridge(OURS, "c1", &pod).run("DEL", &conf).good();
}

/// The gateway's own port does not count as a container that hangs on the bridge.
fn a_new_lease_gives_the_vlans_gateway_its_address() {
    clear();
    let pod = make_pod("lease");
    let mut conf = flannel_conf();
    conf["delegate"] = json!({"vlan": 100});
    let call = Call { plugin: "flannel", ..bridge(OURS, "c1", &pod) };
    for subnet in ["10.244.1.1/24", "10.244.9.1/24"] {
        fs::write("/run/subnet.env", SUBNET_ENV.replace("10.244.1.1/24", subnet)).unwrap();
        call.run("ADD", &conf).good();
        let link = ip(None, &["addr", "show", "cni0.100"])[0].clone();
        let addresses = link["addr_info"].as_array().unwrap().iter();
        let four: Vec<_> = addresses.filter(|address| address["family"] == "inet").collect();
        assert_eq!((four.len(), four[0]["local"].as_str()), (1, subnet.split('/').next()), "{link}");
        call.run("DEL", &conf).good();
    }
}

#[test]
fn vlans_are_kept_apart() {
    if !rerun_in_guest("vlans_are_kept_apart", &Guest::default()) {
        return;
    }
    make_node();
    frames_stay_in_their_vlan();
    the_trunk_leaves_the_containers_own_vlan_alone();
    check_tells_of_other_vlans();
    a_bridge_that_mixes_vlans_is_refused();
    a_half_made_gateway_is_completed();
    a_new_lease_gives_the_vlans_gateway_its_address();
}
