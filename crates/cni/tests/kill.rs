//! Plugins killed at random instants, and many at once: no address is lost, none has two owners.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};
use world::{Call, OURS, files, ip, make_node, make_pod, oracle, state, tool};

/// How often a plugin is killed.
const RUNS: u32 = 150;

fn conf() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
        "subnetFile": "/run/subnet.env", "dataDir": "/run/files/flannel",
        "ipam": {"dataDir": "/run/files/networks"},
    })
}

fn prepare() {
    make_node();
    let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\n\
               FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    fs::write("/run/subnet.env", env).unwrap();
}

fn flannel<'a>(dir: &'a str, id: &'a str, netns: &'a str) -> Call<'a> {
    Call { dir, plugin: "flannel", id, netns, args: "" }
}

fn random(below: Duration) -> Duration {
    let random: [u8; 8] = flannel_kernel::random::bytes().unwrap();
    Duration::from_nanos(u64::from_ne_bytes(random) % u64::try_from(below.as_nanos()).unwrap())
}

fn time_of_add(call: &Call<'_>, conf: &Value) -> Duration {
    let start = Instant::now();
    call.run("ADD", conf).good();
    let usual = start.elapsed();
    call.run("DEL", conf).good();
    usual
}

/// Starts a call and kills it at an instant before it would end. Tells whether it was still at work.
fn kill(call: &Call<'_>, verb: &str, conf: &Value, usual: Duration) -> bool {
    let mut child = call.start(verb, conf.to_string().as_bytes());
    std::thread::sleep(random(usual));
    child.kill().unwrap();
    child.wait().unwrap().signal().is_some()
}

fn assert_nothing_left(pod: &str, run: u32) {
    let left = files(Path::new("/run/files"));
    let names: BTreeSet<_> =
        left["networks"]["cbr0"].as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    let expected = BTreeSet::from(["lock", "last_reserved_ip.0", "last_reserved_ip.1"]);
    assert!(names.is_subset(&expected), "run {run}: {left}");
    assert!(left["flannel"].as_object().is_none_or(serde_json::Map::is_empty), "run {run}: {left}");
    assert_eq!(ip(Some(pod), &["link"]).len(), 1, "run {run}");
    assert_eq!(state(&[])["host"]["rules"], json!([]), "run {run}");
    assert!(!ip(None, &["link"]).iter().any(|link| link["ifname"].as_str().unwrap().starts_with("veth")), "run {run}");
}

#[test]
fn a_killed_add_leaves_nothing_that_del_does_not_clean() {
    if !rerun_enclosed("a_killed_add_leaves_nothing_that_del_does_not_clean") {
        return;
    }
    prepare();
    let pod = make_pod("a");
    let call = flannel(OURS, "c1", &pod);
    let usual = (0..5).map(|_| time_of_add(&call, &conf())).min().unwrap();
    let (mut at_work, mut half_done) = (0, 0);
    for run in 0.. {
        if at_work >= RUNS {
            break;
        }
        assert!(run < RUNS * 10, "only {at_work} of {run} were killed at work");
        let killed = kill(&call, "ADD", &conf(), usual);
        at_work += u32::from(killed);
        half_done += u32::from(killed && files(Path::new("/run/files")).to_string().contains("c1"));
        call.run("DEL", &conf()).good();
        assert_nothing_left(&pod, run);
        // Now and then without the bridge, which the killed one may have left half made.
        if run % 10 == 0 {
            _ = std::process::Command::new("ip").args(["link", "del", "cni0"]).output();
        }
        if run % 3 == 0 {
            let result = call.run("ADD", &conf()).good();
            call.run_after("CHECK", &conf(), &result).good();
            kill(&call, "DEL", &conf(), usual * 3);
            call.run("DEL", &conf()).good();
            assert_nothing_left(&pod, run);
        }
    }
    assert!(half_done > 0, "no ADD was killed between its first and its last step");
}

#[test]
fn a_killed_add_leaves_no_rules() {
    if !rerun_enclosed("a_killed_add_leaves_no_rules") {
        return;
    }
    prepare();
    let pod = make_pod("a");
    let mut conf = conf();
    conf["delegate"] = json!({"ipMasq": true});
    let call = flannel(OURS, "c1", &pod);
    let usual = (0..3).map(|_| time_of_add(&call, &conf)).min().unwrap();
    for run in 0..RUNS / 2 {
        kill(&call, "ADD", &conf, usual);
        call.run("DEL", &conf).good();
        assert_nothing_left(&pod, run);
    }
}

/// Every rule and file that names the container, or leads to its address.
fn published() -> String {
    let saved = ["iptables-save", "ip6tables-save"].map(|program| tool(&[program, "-t", "nat"])).concat();
    let all = saved + &tool(&["nft", "list", "ruleset"]);
    let lines =
        all.lines().filter(|line| line.contains("CNI-DN") || line.contains("10.1.0.5") || line.contains("fd00::5"));
    let claimed = files(Path::new("/run/claims"));
    let named =
        [&claimed["containers"]["n"], &claimed["ports"]].map(|dir| dir.as_object().map_or(0, serde_json::Map::len));
    lines.chain((named != [0, 0]).then_some("claims")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_killed_portmap_leaves_nothing_that_is_not_cleaned() {
    if !rerun_enclosed("a_killed_portmap_leaves_nothing_that_is_not_cleaned") {
        return;
    }
    make_node();
    let pod = make_pod("a");
    for backend in ["nftables", "iptables"] {
        let ports: Vec<_> =
            (1..9).map(|port| json!({"hostPort": port, "containerPort": port, "protocol": "udp"})).collect();
        let conf = json!({"cniVersion": "1.1.0", "name": "n", "type": "portmap", "backend": backend, "dataDir": "/run/claims",
            "runtimeConfig": {"portMappings": ports}, "prevResult": {"cniVersion": "1.1.0",
                "ips": [{"address": "10.1.0.5/24"}, {"address": "fd00::5/64"}]}});
        let call = Call { dir: OURS, plugin: "portmap", id: "c1", netns: &pod, args: "" };
        call.run("ADD", &conf).good();
        let whole = published();
        call.run("DEL", &conf).good();
        let usual = (0..5).map(|_| time_of_add(&call, &conf)).min().unwrap();
        let mut half_done = 0;
        for run in 0..RUNS / 3 {
            half_done += u32::from(kill(&call, "ADD", &conf, usual) && !published().is_empty());
            if run % 3 == 0 {
                call.run("ADD", &conf).good();
                assert_eq!(published(), whole, "{backend} run {run}");
                kill(&call, "DEL", &conf, usual);
            }
            if run % 3 == 1 {
                let mut gc = conf.clone();
                gc["cni.dev/valid-attachments"] = Value::Null;
                call.run("GC", &gc).good();
            } else {
                call.run("DEL", &conf).good();
            }
            assert_eq!(published(), "", "{backend} run {run}");
        }
        assert!(half_done > 0, "{backend}: no ADD was killed between its first and its last step");
    }
}

#[test]
fn programs_die_with_the_plugin() {
    if !rerun_enclosed("programs_die_with_the_plugin") {
        return;
    }
    prepare();
    let pod = make_pod("a");
    fs::create_dir("/run/bin").unwrap();
    let text = "#!/bin/sh\n: > /run/started; sleep 0.3; : > /run/late\n";
    fs::write("/run/bin/iptables-restore", text).unwrap();
    fs::set_permissions("/run/bin/iptables-restore", fs::Permissions::from_mode(0o755)).unwrap();
    let conf = json!({"cniVersion": "1.0.0", "name": "n", "type": "bridge", "ipMasq": true,
        "ipam": {"type": "host-local", "dataDir": "/run/files", "subnet": "10.1.0.0/24"}});
    let call = Call { dir: OURS, plugin: "bridge", id: "c1", netns: &pod, args: "" };
    let mut child = call.start_with_path("/run/bin:/usr/bin:/bin", conf.to_string().as_bytes());
    let deadline = Instant::now() + Duration::from_secs(10);
    while !Path::new("/run/started").exists() {
        assert!(Instant::now() < deadline, "the program was not started");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert!(!Path::new("/run/late").exists(), "the program went on alone");
}

#[test]
fn an_address_whose_writer_was_killed_is_given_again() {
    if !rerun_enclosed("an_address_whose_writer_was_killed_is_given_again") {
        return;
    }
    prepare();
    let pod = make_pod("a");
    let conf = json!({"cniVersion": "1.0.0", "name": "n", "ipam": {"type": "host-local", "dataDir": "/run/files",
        "subnet": "10.1.0.0/29"}});
    // Killed without a DEL, under ever new names as containers that never start have: five addresses serve them all, since an
    // owner is written down whole or not at all and those that were can be freed.
    for run in 0..RUNS {
        let id = format!("c{run}");
        let call = Call { dir: OURS, plugin: "host-local", id: &id, netns: &pod, args: "" };
        let mut child = call.start("ADD", conf.to_string().as_bytes());
        std::thread::sleep(random(Duration::from_millis(3)));
        child.kill().unwrap();
        child.wait().unwrap();
        for (name, text) in files(Path::new("/run/files/n")).as_object().into_iter().flatten() {
            let whole = name.starts_with(['l', '.']) || *text == json!(format!("{id}\r\neth0"));
            assert!(whole, "run {run}: {name} holds {text}");
        }
        call.run("DEL", &conf).good();
    }
}

#[test]
fn many_at_once_get_addresses_of_their_own() {
    if !rerun_enclosed("many_at_once_get_addresses_of_their_own") {
        return;
    }
    prepare();
    let go = oracle();
    let mixed = "/run/mixed";
    fs::create_dir(mixed).unwrap();
    for (name, dir) in [("flannel", OURS), ("bridge", OURS), ("host-local", go.as_str())] {
        std::os::unix::fs::symlink(Path::new(dir).join(name), Path::new(mixed).join(name)).unwrap();
    }
    let pods: Vec<_> = (0..64).map(|n| (format!("c{n}"), make_pod(&format!("p{n}")))).collect();
    let mut owners = BTreeMap::new();
    // Sixteen at a time; of every four, one has its addresses from the Go plugin.
    for batch in pods.chunks(16) {
        let started: Vec<_> = batch
            .iter()
            .enumerate()
            .map(|(n, (id, pod))| {
                flannel(if n % 4 == 0 { mixed } else { OURS }, id, pod).start("ADD", conf().to_string().as_bytes())
            })
            .collect();
        for (child, (id, _)) in started.into_iter().zip(batch) {
            let output = child.wait_with_output().unwrap();
            let result: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert!(output.status.success(), "{id}: {result}");
            for ip in result["ips"].as_array().unwrap() {
                let other = owners.insert(ip["address"].to_string(), id.clone());
                assert_eq!(other, None, "{ip} of {id}");
            }
        }
    }
    assert_eq!(owners.len(), 128);
    for (id, pod) in &pods {
        flannel(OURS, id, pod).run("DEL", &conf()).good();
    }
    assert_nothing_left(&pods[0].1, 0);
}
