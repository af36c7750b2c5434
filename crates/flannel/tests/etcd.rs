//! Test ring 3: whole networks that keep their leases in etcd, on real servers in the lab; and the tool for people ([`tool`]).
#![allow(clippy::print_stdout, reason = "a test that fails shows what it had done")]

mod network;
#[allow(dead_code, reason = "the tests of the store need more of it")]
#[path = "../../store/tests/etcd/server.rs"]
mod server;
#[path = "etcd/tool.rs"]
mod tool;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use flannel_lab::build::Build;
use flannel_lab::damage::Damage;
use flannel_lab::etcd::{PREFIX, StoreChoice};
use flannel_lab::lab::Lab;
use flannel_lab::options::{FamilyName, LabOptions};
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
        assert!(came.faults > 0 && came.pings > 10_000 && came.lost.is_empty(), "{came}");
    }
}

#[test]
fn the_command_knows_its_servers() {
    if !enclosed("the_command_knows_its_servers") {
        return;
    }
    let said = |arguments: &[&str]| {
        let output = flannel(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
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
