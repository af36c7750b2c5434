//! The plugin `flannel` with its delegates: what it saves, what it undoes, and which programs it calls how.

mod world;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};
use world::{Call, FILES, OURS, SUBNET_ENV, files, flannel_conf, ip, make_node, make_pod, oracle, state};

fn conf() -> Value {
    let mut conf = flannel_conf();
    conf["delegate"] = json!({"hairpinMode": true, "isDefaultGateway": true});
    conf
}

fn prepare() -> String {
    make_node();
    fs::write("/run/subnet.env", SUBNET_ENV).unwrap();
    make_pod("a")
}

fn flannel<'a>(dir: &'a str, netns: &'a str) -> Call<'a> {
    Call { dir, plugin: "flannel", id: "c1", netns, args: "" }
}

/// A folder with our flannel and other delegates.
fn folder(name: &str, others: &[(&str, &str)]) -> String {
    let dir = format!("/run/{name}");
    fs::create_dir(&dir).unwrap();
    symlink(Path::new(OURS).join("flannel"), Path::new(&dir).join("flannel")).unwrap();
    for (name, target) in others {
        symlink(Path::new(target).join(name), Path::new(&dir).join(name)).unwrap();
    }
    dir
}

/// Nothing of a container's is left on host, disk and pod.
fn assert_clean(pod: &str) {
    let left = state(&[pod]);
    assert_eq!(left[pod]["links"].as_array().unwrap().len(), 1, "{left}");
    assert!(!left["host"].to_string().contains("veth"), "{left}");
    assert!(!left["files"].to_string().contains("c1"), "{left}");
}

#[test]
fn a_pod_is_added_checked_and_deleted() {
    if !rerun_enclosed("a_pod_is_added_checked_and_deleted") {
        return;
    }
    let pod = prepare();
    let call = flannel(OURS, &pod);
    let result = call.run("ADD", &conf()).good();
    assert_eq!(result["ips"][0], json!({"interface": 2, "address": "10.244.1.2/24", "gateway": "10.244.1.1"}));
    assert_eq!(result["routes"], json!([{"dst": "10.244.0.0/16"}, {"dst": "0.0.0.0/0", "gw": "10.244.1.1"}]));
    assert_eq!(
        files(Path::new("/run/files/flannel")),
        json!({"c1": "{\"cniVersion\":\"1.0.0\",\"hairpinMode\":true,\"ipMasq\":false,\"ipam\":{\"dataDir\":\"/run/files/networks\",\
            \"ranges\":[[{\"subnet\":\"10.244.1.0/24\"}]],\"routes\":[{\"dst\":\"10.244.0.0/16\"}],\"type\":\"host-local\"},\
            \"isDefaultGateway\":true,\"isGateway\":true,\"mtu\":1450,\"name\":\"cbr0\",\"type\":\"bridge\"}"})
    );
    call.run_after("CHECK", &conf(), &result).good();
    // DEL works from what was saved, whatever has become of the daemon's file.
    fs::remove_file("/run/subnet.env").unwrap();
    call.run_after("DEL", &conf(), &result).good();
    assert_clean(&pod);
    let (_, msg, _) = call.run_after("CHECK", &conf(), &result).failure();
    assert!(msg.contains("/run/files/flannel/c1 is absent or broken"), "{msg}");
    call.run("DEL", &conf()).good();
}

#[test]
fn check_finds_what_was_changed_by_hand() {
    if !rerun_enclosed("check_finds_what_was_changed_by_hand") {
        return;
    }
    let pod = prepare();
    let call = flannel(OURS, &pod);
    let net = format!("--net={pod}");
    for (damage, expect) in [
        (
            vec!["nsenter", &net, "ip", "addr", "del", "10.244.1.2/24", "dev", "eth0"],
            "address 10.244.1.2/24 not found on eth0",
        ),
        (vec!["nsenter", &net, "ip", "route", "del", "default"], "route 0.0.0.0/0 not found through eth0"),
        (
            vec!["nsenter", &net, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:09"],
            "interface eth0 has MAC 02:00:00:00:00:09",
        ),
        (vec!["nsenter", &net, "ip", "link", "del", "eth0"], "interface eth0 not found"),
        (vec!["ip", "link", "set", "VETH", "nomaster"], "is not a port of cni0"),
        (vec!["ip", "link", "del", "cni0"], "interface cni0 not found"),
        (vec!["rm", "/run/files/networks/cbr0/10.244.1.2"], "failed to find an address of container c1"),
    ] {
        fs::remove_dir_all("/run/files").unwrap();
        let result = call.run("ADD", &conf()).good();
        call.run_after("CHECK", &conf(), &result).good();
        let veth = result["interfaces"][1]["name"].as_str().unwrap();
        world::tool(&damage.iter().map(|word| if *word == "VETH" { veth } else { word }).collect::<Vec<_>>());
        let (code, msg, hint) = call.run_after("CHECK", &conf(), &result).failure();
        assert!(code == 999 && msg.contains(expect) && !hint.is_empty(), "{damage:?}: {msg}");
        call.run("DEL", &conf()).good();
        assert_clean(&pod);
    }
}

#[test]
fn go_delegates_are_executed() {
    if !rerun_enclosed("go_delegates_are_executed") {
        return;
    }
    let pod = prepare();
    let go = oracle();
    for (name, bridge, host_local) in
        [("go-bridge", go.as_str(), OURS), ("go-host-local", OURS, go.as_str()), ("go", &go, &go)]
    {
        let dir = folder(name, &[("bridge", bridge), ("host-local", host_local)]);
        let call = flannel(&dir, &pod);
        let result = call.run("ADD", &conf()).good();
        assert_eq!(result["ips"][0]["address"], json!(format!("10.244.1.{}/24", 2)), "{result}");
        flannel(OURS, &pod).run_after("CHECK", &conf(), &result).good();
        call.run_after("DEL", &conf(), &result).good();
        assert_clean(&pod);
        fs::remove_dir_all("/run/files/networks").unwrap();
    }
}

#[test]
fn copies_of_this_program_are_not_executed() {
    if !rerun_enclosed("copies_of_this_program_are_not_executed") {
        return;
    }
    let pod = prepare();
    let dir = folder("copies", &[]);
    for name in ["bridge", "host-local"] {
        let copy = Path::new(&dir).join(name);
        fs::copy(Path::new(OURS).join(name), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)).unwrap();
    }
    for verb in ["ADD", "DEL"] {
        flannel(&dir, &pod).run(verb, &conf()).good();
    }
    assert_clean(&pod);
}

#[test]
fn a_lost_or_broken_saved_configuration_keeps_nothing_taken() {
    if !rerun_enclosed("a_lost_or_broken_saved_configuration_keeps_nothing_taken") {
        return;
    }
    let pod = prepare();
    let saved = Path::new("/run/files/flannel/c1");
    let call = flannel(OURS, &pod);
    for broken in [None, Some(""), Some("{\"cniVersion\":\"1.0.0\",\"hair"), Some("[]")] {
        call.run("ADD", &conf()).good();
        match broken {
            None => fs::remove_file(saved).unwrap(),
            Some(text) => fs::write(saved, text).unwrap(),
        }
        call.run("DEL", &conf()).good();
        assert_clean(&pod);
        assert!(!saved.exists());
    }
}

/// Writes a plugin in shell.
fn script(dir: &str, name: &str, text: &str) {
    let path = Path::new(dir).join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_foreign_delegate_gets_the_specifications_environment_and_its_error_is_passed_on() {
    if !rerun_enclosed("a_foreign_delegate_gets_the_specifications_environment_and_its_error_is_passed_on") {
        return;
    }
    let pod = prepare();
    let dir = folder("scripts", &[]);
    script(&dir, "echo", "cat > /run/got; env | grep ^CNI_ | sort >> /run/got; echo '{\"cniVersion\":\"1.0.0\"}'");
    script(&dir, "fails", "echo '{\"code\": 11, \"msg\": \"not now\", \"details\": \"later\"}'; exit 1");
    script(&dir, "mute", "echo 'no idea' >&2; exit 3");
    script(&dir, "chatty", "echo 'hello'");
    let with = |kind: &str| {
        let mut conf = conf();
        conf["delegate"] = json!({"type": kind});
        conf
    };
    let call = flannel(&dir, &pod);
    assert_eq!(call.run("ADD", &with("echo")).good(), json!({"cniVersion": "1.0.0"}));
    let got = fs::read_to_string("/run/got").unwrap();
    let (conf_line, env) = got.split_once("}CNI_").unwrap();
    assert!(conf_line.contains("\"type\":\"echo\"") && !conf_line.contains("isGateway"), "{conf_line}");
    assert_eq!(
        env,
        format!("ARGS=\nCNI_COMMAND=ADD\nCNI_CONTAINERID=c1\nCNI_IFNAME=eth0\nCNI_NETNS={pod}\nCNI_PATH={dir}\n")
    );
    call.run("DEL", &with("echo")).good();
    assert!(fs::read_to_string("/run/got").unwrap().contains("CNI_COMMAND=DEL"));
    assert_eq!(call.run("ADD", &with("fails")).failure(), (11, "not now".into(), "later".into()));
    let (code, msg, _) = call.run("ADD", &with("mute")).failure();
    assert!(code == 999 && msg.contains("scripts/mute failed (exit status: 3)") && msg.contains("no idea"), "{msg}");
    let (code, msg, _) = call.run("ADD", &with("chatty")).failure();
    assert!(code == 6 && msg.contains("scripts/chatty printed no CNI result"), "{msg}");
    let (code, msg, hint) = call.run("ADD", &with("absent")).failure();
    assert!(code == 999 && msg.contains("failed to find plugin \"absent\" in path \"/run/scripts\""), "{msg}");
    assert_eq!(hint, "install the plugin absent in one of /run/scripts");
    assert_eq!(call.run("ADD", &with("flannel")).failure().0, 7, "flannel cannot be its own delegate");
}

#[test]
fn the_saved_configuration_stays_until_the_delegate_is_done() {
    if !rerun_enclosed("the_saved_configuration_stays_until_the_delegate_is_done") {
        return;
    }
    let pod = prepare();
    let dir = folder("scripts", &[]);
    script(&dir, "fickle", "test \"$CNI_COMMAND\" = ADD && echo '{}' && exit; test -e /run/ready");
    let mut conf = conf();
    conf["delegate"] = json!({"type": "fickle"});
    let (call, saved) = (flannel(&dir, &pod), Path::new("/run/files/flannel/c1"));
    call.run("ADD", &conf).good();
    assert!(!call.run("DEL", &conf).ok && saved.exists());
    fs::write("/run/ready", "").unwrap();
    call.run("DEL", &conf).good();
    assert!(!saved.exists());
}

#[test]
fn status_is_not_available_without_the_daemons_file() {
    if !rerun_enclosed("status_is_not_available_without_the_daemons_file") {
        return;
    }
    let pod = prepare();
    let mut conf = conf();
    conf["cniVersion"] = json!("1.1.0");
    flannel(OURS, &pod).run("STATUS", &conf).good();
    world::tool(&["touch", "-d", "2001-02-03", "/run/subnet.env"]);
    let (code, msg, hint) = flannel(OURS, &pod).run("STATUS", &conf).failure();
    assert!(code == 50 && msg.contains("/run/subnet.env was written before this machine was started"), "{code} {msg}");
    assert!(hint.starts_with("flanneld does not run on this node"), "{hint}");
    fs::remove_file("/run/subnet.env").unwrap();
    let (code, msg, hint) = flannel(OURS, &pod).run("STATUS", &conf).failure();
    assert!(code == 50 && msg.contains("failed to load flannel 'subnet.env' file"), "{code} {msg}");
    assert!(hint.starts_with("flanneld does not run on this node"), "{hint}");
}

#[test]
fn deleting_what_is_not_there_succeeds() {
    if !rerun_enclosed("deleting_what_is_not_there_succeeds") {
        return;
    }
    let pod = prepare();
    let no_file = "/run/netns/none";
    fs::write("/run/netns/file", "").unwrap();
    for netns in [pod.as_str(), "", no_file, "/run/netns/file", "/proc/self/ns/net", "/proc/999999/ns/net"] {
        for (plugin, conf) in [
            ("flannel", conf()),
            (
                "bridge",
                json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "ipam": {"type": "host-local", "dataDir": FILES}}),
            ),
            (
                "host-local",
                json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "host-local", "ipam": {"dataDir": FILES}}),
            ),
            ("loopback", json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"})),
        ] {
            let answer = Call { dir: OURS, plugin, id: "c1", netns, args: "" }.run("DEL", &conf);
            assert!(answer.ok && answer.text.is_empty(), "{plugin} {netns}: {}", answer.text);
        }
    }
    assert!(
        ip(None, &["link"]).iter().any(|link| link["ifname"] == "lo" && link["flags"].to_string().contains("\"UP\""))
    );
}

#[test]
fn a_pod_whose_namespace_is_gone_frees_its_address() {
    if !rerun_enclosed("a_pod_whose_namespace_is_gone_frees_its_address") {
        return;
    }
    let pod = prepare();
    flannel(OURS, &pod).run("ADD", &conf()).good();
    world::end_pod(&pod);
    flannel(OURS, &pod).run("DEL", &conf()).good();
    assert!(!files(Path::new(FILES)).to_string().contains("c1"));
}

#[test]
fn what_a_killed_add_left_neither_stops_the_next_nor_stays() {
    if !rerun_enclosed("what_a_killed_add_left_neither_stops_the_next_nor_stays") {
        return;
    }
    let pod = prepare();
    let (call, dir) = (flannel(OURS, &pod), Path::new("/run/files/networks/cbr0"));
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("10.244.1.2"), "c1\r\neth0").unwrap();
    let result = call.run("ADD", &conf()).good();
    assert_eq!(result["ips"][0]["address"], json!("10.244.1.3/24"));
    call.run_after("DEL", &conf(), &result).good();
    assert_clean(&pod);
    // The only address, by a Go plugin that was killed before it had written whose it is.
    fs::write("/run/subnet.env", SUBNET_ENV.replace("10.244.1.1/24", "10.244.2.1/30")).unwrap();
    fs::write(dir.join("10.244.2.2"), "").unwrap();
    world::tool(&["ip", "link", "del", "cni0"]);
    assert_eq!(call.run("ADD", &conf()).good()["ips"][0]["address"], json!("10.244.2.2/30"));
    let other = Call { id: "c2", netns: &make_pod("b"), ..call };
    let (_, msg, _) = other.run("ADD", &conf()).failure();
    assert!(msg.contains("no IP addresses available in range set"), "{msg}");
}

#[test]
fn a_new_lease_replaces_the_bridges_address_when_no_pod_hangs_on_it() {
    if !rerun_enclosed("a_new_lease_replaces_the_bridges_address_when_no_pod_hangs_on_it") {
        return;
    }
    let (pod, other) = (prepare(), make_pod("b"));
    let six = |subnet: &str| format!("FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET={subnet}\n");
    fs::write("/run/subnet.env", SUBNET_ENV.to_owned() + &six("fd00:0:0:1::1/64")).unwrap();
    flannel(OURS, &pod).run("ADD", &conf()).good();
    let leased = SUBNET_ENV.replace("10.244.1.1/24", "10.244.7.1/24") + &six("fd00:0:0:7::1/64");
    fs::write("/run/subnet.env", leased).unwrap();
    let second = Call { id: "c2", ..flannel(OURS, &other) };
    let (code, msg, hint) = second.run("ADD", &conf()).failure();
    assert!(code == 999 && msg.ends_with("different from 10.244.7.1/24: 10.244.1.1/24"), "{msg}");
    assert!(hint.contains("recreate the containers that hang on cni0"), "{hint}");
    flannel(OURS, &pod).run("DEL", &conf()).good();
    let result = second.run("ADD", &conf()).good();
    second.run_after("CHECK", &conf(), &result).good();
    let bridge = ip(None, &["addr"]).into_iter().find(|link| link["ifname"] == "cni0").unwrap();
    let addresses = bridge["addr_info"].as_array().unwrap().iter().filter(|address| address["scope"] == "global");
    assert_eq!(addresses.map(|address| &address["local"]).collect::<Vec<_>>(), ["10.244.7.1", "fd00:0:0:7::1"]);
}

#[test]
fn gc_frees_what_the_runtime_no_longer_knows() {
    if !rerun_enclosed("gc_frees_what_the_runtime_no_longer_knows") {
        return;
    }
    let pods = [prepare(), make_pod("b"), make_pod("c")];
    let mut conf = conf();
    conf["cniVersion"] = json!("1.1.0");
    conf["delegate"] = json!({"isDefaultGateway": true, "ipMasq": true});
    let call = |n: usize| Call { id: ["c1", "c2", "c3"][n], ..flannel(OURS, &pods[n]) };
    let results = [0, 1, 2].map(|n| call(n).run("ADD", &conf).good());
    // Of the third only the pod is gone; and someone else has a saved configuration of another network.
    world::end_pod(&pods[2]);
    fs::write("/run/files/flannel/c9", r#"{"name": "other"}"#).unwrap();
    let (code, msg, _) = call(0).run("GC", &conf).failure();
    assert!(code == 7 && msg.contains("`cni.dev/valid-attachments` is missing"), "{msg}");
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
    // The daemon's file is not needed.
    fs::remove_file("/run/subnet.env").unwrap();
    let gc = Call { id: "", netns: "", ..call(0) };
    for _ in 0..2 {
        gc.run("GC", &conf).good();
        let left = state(&[&pods[0], &pods[1]]);
        assert_eq!(left[&pods[0]]["links"].as_array().unwrap().len(), 1, "{left}");
        assert_eq!(left["files"]["flannel"].as_object().unwrap().keys().collect::<Vec<_>>(), ["c2", "c9"], "{left}");
        assert!(!left.to_string().contains("\"c1\\r") && !left.to_string().contains("\"c3\\r"), "{left}");
        let rules = left["host"]["rules"].to_string();
        assert!(rules.contains("c2") && !rules.contains("c1") && !rules.contains("c3"), "{rules}");
        call(1).run_after("CHECK", &conf, &results[1]).good();
    }
    conf["cni.dev/valid-attachments"] = Value::Null;
    gc.run("GC", &conf).good();
    let left = state(&[&pods[1]]);
    assert!(left["host"]["rules"] == json!([]) && !left["host"].to_string().contains("veth"), "{left}");
}

#[test]
fn a_full_range_takes_back_addresses_of_containers_that_are_gone() {
    if !rerun_enclosed("a_full_range_takes_back_addresses_of_containers_that_are_gone") {
        return;
    }
    let (pod, other) = (prepare(), make_pod("b"));
    let dir = Path::new("/run/files/networks/cbr0");
    fs::write("/run/subnet.env", SUBNET_ENV.replace("10.244.1.1/24", "10.244.1.1/29")).unwrap();
    flannel(OURS, &pod).run("ADD", &conf()).good();
    let second = Call { id: "c2", ..flannel(OURS, &other) };
    let full = || {
        let (_, msg, _) = second.run("ADD", &conf()).failure();
        assert!(msg.contains("no IP addresses available in range set"), "{msg}");
    };
    let age = |minutes: &str| {
        for address in ["10.244.1.2", "10.244.1.3", "10.244.1.4", "10.244.1.5", "10.244.1.6"] {
            let path = dir.join(address);
            if !path.exists() {
                fs::write(&path, format!("gone-{address}\r\neth0")).unwrap();
            }
            world::tool(&["touch", "-d", &format!("{minutes} minutes ago"), path.to_str().unwrap()]);
        }
    };
    // Those may be of ADDs that are about to make their links.
    age("1");
    full();
    // Somebody here has hidden its address, so an address that nobody shows may be in use.
    age("60");
    world::tool(&["ip", "link", "add", "x", "type", "veth", "peer", "name", "y", "netns", &other]);
    full();
    world::tool(&["ip", "link", "del", "x"]);
    let result = second.run("ADD", &conf()).good();
    assert_eq!(result["ips"][0]["address"], json!("10.244.1.3/29"));
    let left = files(dir);
    assert_eq!((&left["10.244.1.2"], &left["10.244.1.4"]), (&json!("c1\r\neth0"), &Value::Null));
}
