//! Test ring 3: whole networks that keep their leases in etcd, on real servers in the lab; and the tool for people ([`tool`]).
#![allow(clippy::print_stdout, reason = "a test that fails shows what it had done")]

#[path = "etcd/elsewhere.rs"]
mod elsewhere;
mod network;
#[allow(dead_code, reason = "the tests of the store need more of it")]
#[path = "../../store/tests/etcd/server.rs"]
mod server;
#[path = "etcd/tool.rs"]
mod tool;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_lab::build::Build;
use flannel_lab::damage::Damage;
use flannel_lab::etcd::{PREFIX, StoreChoice};
use flannel_lab::lab::Lab;
use flannel_lab::options::{FamilyName, LabOptions, POD_NETWORK};
use flannel_lab::report;
use flannel_lab::siege::siege;
use network::{DUAL, FLANNEL, IPV4, assert_all_proofs, enclosed, flannel, options, start, text};

/// All is well between two nodes, and stays so when one is damaged or its build exchanged.
fn assert_nodes_talk(servers: usize, families: &[FamilyName], records: [&str; 2]) {
    let store = StoreChoice::Etcd(servers);
    let mut lab = start(LabOptions { nodes: 2, store, ..options(families) });
    assert_all_proofs(&mut lab);
    let content = lab.etcd().unwrap().content().unwrap();
    let names: Vec<&str> =
        content.iter().filter_map(|(key, _)| key.strip_prefix(PREFIX)?.strip_prefix("/subnets/")).collect();
    assert_eq!(names, records);
    let drawing = report::topology(&lab).unwrap();
    let drawn = drawing.lines().filter(|line| line.contains("─ etcd") && line.contains(":2379  (etcd pid "));
    assert_eq!(drawn.count(), servers, "{drawing}");
    let injury = lab.damage(0, Damage::DeviceDeleted).unwrap().unwrap();
    lab.wait_repaired(&injury).unwrap();
    let swapped = lab.swap(1, Build::default(), Duration::from_secs(20)).unwrap();
    assert!(swapped.is_lossless() && swapped.changes.is_empty(), "{swapped:?}");
    assert_the_tool_works(&lab, records);
    let log = text(&lab, 1, "cat /run/flanneld.log");
    assert!(log.contains("ready: ") && !log.contains("s3cret"), "{log}");
}

/// `flannel etcd` with the flags and the environment of a node's daemon.
fn assert_the_tool_works(lab: &Lab, records: [&str; 2]) {
    let etcd = lab.etcd().unwrap();
    let variables: Vec<String> = etcd.environment().iter().map(|(name, value)| format!("{name}={value}")).collect();
    let script = format!("{} exec {FLANNEL} etcd {} ls -o json", variables.join(" "), etcd.flags().join(" "));
    let output = lab.node(0).place().exec("sh", &["-c", &script]).unwrap();
    let said = String::from_utf8([output.stdout.clone(), output.stderr].concat()).unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    let names: Vec<&str> = listed["records"].as_array().unwrap().iter().filter_map(|it| it["name"].as_str()).collect();
    assert_eq!(names, records);
    assert!(!said.contains("s3cret") && listed["records"][1]["holder"]["name"].is_string(), "{said}");
}

#[test]
fn nodes_on_one_server_talk() {
    if enclosed("nodes_on_one_server_talk") {
        assert_nodes_talk(1, IPV4, ["10.244.1.0-24", "10.244.2.0-24"]);
    }
}

#[test]
fn nodes_on_three_servers_with_tls_and_users_talk() {
    if enclosed("nodes_on_three_servers_with_tls_and_users_talk") {
        assert_nodes_talk(3, DUAL, ["10.244.1.0-24&fd00:10:244:1::-64", "10.244.2.0-24&fd00:10:244:2::-64"]);
    }
}

/// Nothing becomes wrong, all becomes right again, and no ping of pods that stay is lost. Much longer by hand:
/// `flannel lab break --servers MINUTES --seed SEED`.
/// What its daemon has asked for, and hears, goes from the address that is no more. A request is given up after five seconds only.
#[test]
fn a_host_with_another_address_tells_and_hears_so_at_once() {
    if !enclosed("a_host_with_another_address_tells_and_hears_so_at_once") {
        return;
    }
    let mut lab = start(LabOptions { nodes: 2, store: StoreChoice::Etcd(1), ..options(DUAL) });
    for node in [0, 1, 0, 1] {
        let injury = lab.damage(node, Damage::ExternalAddressChanged).unwrap().unwrap();
        let took = lab.wait_repaired(&injury).unwrap();
        println!("followed after {took:?}");
        assert!(took < Duration::from_secs(4), "{took:?}");
    }
    assert_all_proofs(&mut lab);
}

#[test]
fn servers_under_siege_are_not_noticed_by_pods() {
    if !enclosed("servers_under_siege_are_not_noticed_by_pods") {
        return;
    }
    let mut lab = start(LabOptions { nodes: 3, pods: 1, store: StoreChoice::Etcd(3), ..options(DUAL) });
    for seed in [7, RandomState::new().build_hasher().finish()] {
        let tell = &mut |text: &str| {
            println!("{text}");
            Ok(())
        };
        let came = siege(&mut lab, Duration::from_secs(14), seed, tell);
        let came = came.unwrap_or_else(|error| panic!("seed {seed}: {error}\n{}", error.log().unwrap_or_default()));
        println!("{came}");
        assert!(came.faults > 0 && came.pings > 1_000 && came.lost.is_empty(), "{came}");
    }
}

/// Waits until a command prints a text on each node, or does not any more.
fn until(lab: &Lab, command: &str, prints: bool, part: &str) {
    let begun = Instant::now();
    for node in 0..lab.nodes().len() {
        while text(lab, node, command).contains(part) != prints {
            let said = || format!("{}\n{}", text(lab, node, command), lab.node(node).flanneld.log_tail());
            assert!(begun.elapsed() < Duration::from_secs(10), "{command}: {part} {prints}:\n{}", said());
            sleep(Duration::from_millis(20));
        }
    }
}

const LOG: &str = "cat /run/flanneld.log";
const SUBNET_ENV: &str = "cat /run/flannel/subnet.env";
/// The networks of both families, for hosts on one link.
const GROWN: &str = r#"{"Network":"10.244.0.0/16","EnableNFTables":true,"EnableIPv6":true,"IPv6Network":"fd00::/48",
    "Backend":{"Type":"vxlan","DirectRouting":true}}"#;

fn config(network: &str, backend: &str) -> String {
    format!(r#"{{"Network":"{network}","EnableNFTables":true,"Backend":{{{backend}}}}}"#)
}

/// Writes the network config.
fn put(lab: &Lab, config: &str) {
    lab.etcd().unwrap().ctl(&["put", &format!("{PREFIX}/config"), config]).unwrap();
}

fn assert_pods_talk(lab: &Lab) {
    assert!(lab.settle(Duration::from_secs(10)).unwrap());
}

#[test]
fn a_config_that_changes_takes_effect_while_all_run() {
    if !enclosed("a_config_that_changes_takes_effect_while_all_run") {
        return;
    }
    let prepare = vec!["ip -6 address flush dev eth0".into()];
    let mut lab = start(LabOptions { nodes: 2, pods: 1, store: StoreChoice::Etcd(1), prepare, ..options(IPV4) });

    put(&lab, &config(POD_NETWORK, r#""Type":"vxlan","MTU":1400"#));
    until(&lab, "ip link show flannel.1", true, "mtu 1350 ");
    until(&lab, SUBNET_ENV, true, "FLANNEL_MTU=1350\n");
    until(&lab, LOG, true, "pods made before send packets of up to 1450 bytes, of which 1350 pass: make them anew");
    assert_pods_talk(&lab);

    put(&lab, &config(POD_NETWORK, r#""Type":"vxlan","DirectRouting":true"#));
    until(&lab, "ip route show proto boot", true, " dev eth0");
    until(&lab, "ip route show proto boot", false, " dev flannel.1");
    assert_pods_talk(&lab);

    assert_nonsense_changes_nothing(&lab);

    put(&lab, GROWN);
    for node in 0..2 {
        text(&lab, node, &format!("ip address add 2001:db8::{}/64 dev eth0 nodad", node + 1));
    }
    until(&lab, SUBNET_ENV, true, "FLANNEL_IPV6_SUBNET=fd00:");
    until(&lab, "ip -6 route show proto boot", true, "fd00:");
    until(&lab, LOG, true, "pods made before have no IPv6 address: make them anew");
    until(&lab, LOG, false, "overlaps this node's own subnet");
    assert_pods_talk(&lab);

    put(&lab, &config(POD_NETWORK, r#""Type":"vxlan","VNI":7,"Port":4789"#));
    until(&lab, "ip -d link show", true, "vxlan id 7 local");
    until(&lab, "ip -d link show flannel.7", true, "dstport 4789");
    until(&lab, "ip link show", false, "flannel.1:");
    assert_pods_talk(&lab);

    put(&lab, &config(POD_NETWORK, r#""Type":"host-gw""#));
    until(&lab, "ip link show", false, "flannel");
    assert_pods_talk(&lab);

    assert_another_network_is_moved_to(&mut lab);
}

/// Each config that cannot be is told in a line with a remedy, and so is one that this host cannot follow, or that is gone.
fn assert_nonsense_changes_nothing(lab: &Lab) {
    let before = text(lab, 0, "ip route show");
    for (nonsense, says) in [
        ("{", "network config is not a JSON object: EOF while parsing an object at line 1 column 1"),
        (&*config("10.99.0.0/29", r#""Type":"vxlan""#), "Network 10.99.0.0/29 is too small"),
        (&config(POD_NETWORK, r#""Type":"vxlan","MTU":9"#), "Backend.MTU 9 is too small"),
        (&config(POD_NETWORK, r#""Type":"udp""#), "Backend.Type \"udp\" is not supported"),
        (GROWN, "interface eth0 has no usable IPv6 address"),
    ] {
        put(lab, nonsense);
        until(lab, LOG, true, says);
    }
    lab.etcd().unwrap().ctl(&["del", &format!("{PREFIX}/config")]).unwrap();
    until(lab, LOG, true, "/config does not exist");
    assert_eq!(text(lab, 0, "ip route show"), before);
    let log = text(lab, 0, LOG);
    let kept = |line: &&str| line.contains(" stays in force") && line.contains("(hint: ");
    assert_eq!(log.lines().filter(kept).count(), 6, "a line each:\n{log}");
    assert_pods_talk(lab);
}

/// All hosts get subnets of the new network, nothing of the old one stays, and nothing is deleted when they end.
fn assert_another_network_is_moved_to(lab: &mut Lab) {
    let content = |lab: &Lab| lab.etcd().unwrap().content().unwrap();
    put(lab, &config("10.99.0.0/16", r#""Type":"vxlan""#));
    until(lab, SUBNET_ENV, true, "FLANNEL_NETWORK=10.99.0.0/16\nFLANNEL_SUBNET=10.99.");
    until(lab, LOG, true, "which is not this node's any more: make them anew");
    assert!(content(lab).iter().all(|(key, _)| !key.contains("10.244.")), "{:?}", content(lab));
    until(lab, "ip route show", false, "10.244.2.0/24 via");
    for (node, pod) in ["pod1-1", "pod2-1"].into_iter().enumerate() {
        lab.node_mut(node).remove_pod(pod).unwrap();
        lab.node_mut(node).add_pod(pod).unwrap();
    }
    assert_pods_talk(lab);
    let before = content(lab);
    (0..2).for_each(|node| lab.node_mut(node).flanneld.stop().unwrap());
    assert_eq!(content(lab), before);
}

/// What a command says, and its exit code.
fn said(arguments: &[&str]) -> (Option<i32>, String) {
    let output = flannel(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn the_command_knows_its_servers() {
    if !enclosed("the_command_knows_its_servers") {
        return;
    }
    let (code, text) = said(&["lab", "up", "--store", "etcd:2"]);
    assert!(code == Some(2) && text.contains("etcd:3 (three, with TLS and users)"), "{text}");
    let (code, text) = said(&["lab", "up", "--store", "etcd:3", "--nodes", "2", "--pods", "1"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = said(&["lab", "walk", "pod1-1", "pod2-1"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = said(&["lab", "ls", "--svg", "/run/lab.svg"]);
    assert_eq!(code, Some(0), "{text}");
    let drawn = std::fs::read_to_string("/run/lab.svg").unwrap();
    assert!(["etcd1", "etcd3", "https://192.0.2.4:2379"].iter().all(|word| drawn.contains(word)), "{drawn}");
    assert_eq!(said(&["lab", "down"]).0, Some(0));
}
