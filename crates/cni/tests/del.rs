//! DEL answers when the pair is out of use, and leaves its destruction to a process of its own: what holds meanwhile, and
//! when that process never gets to it.

mod world;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use flannel_kernel::namespace::NetNamespace;
use flannel_kernel::pod_link::{Links, Retired, within};
use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};
use world::{Call, OURS, end_pod, ip, make_node, make_pod, oracle, wait_destroyed};

fn conf() -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "isGateway": true, "ipMasq": false,
        "ipam": {"type": "host-local", "dataDir": "/run/files",
            "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]]}})
}

fn bridge<'a>(dir: &'a str, netns: &'a str) -> Call<'a> {
    Call { dir, plugin: "bridge", id: "c1", netns, args: "" }
}

/// The host's ends of pairs.
fn ends() -> Vec<Value> {
    ip(None, &["link"]).into_iter().filter(|link| link["linkinfo"]["info_kind"] == "veth").collect()
}

fn names(pod: &str) -> Vec<String> {
    ip(Some(pod), &["link"]).iter().map(|link| link["ifname"].as_str().unwrap().to_owned()).collect()
}

/// What a DEL does before it answers, as if what it left behind had been killed.
fn retire(pod: &str) -> Retired {
    let netns = NetNamespace::open(Path::new(pod)).unwrap();
    let mut links = within(&netns, Links::here).unwrap().unwrap();
    let found = links.find("eth0".parse().unwrap()).unwrap().unwrap();
    links.retire(&found, &netns, &mut Links::here().unwrap()).unwrap()
}

#[test]
fn a_pair_out_of_use_harms_nobody_and_goes_with_the_next_del() {
    if !rerun_enclosed("a_pair_out_of_use_harms_nobody_and_goes_with_the_next_del") {
        return;
    }
    make_node();
    // Another pod, whose end has the same index.
    let (pod, other) = (make_pod("a"), make_pod("b"));
    let second = Call { id: "c2", ..bridge(OURS, &other) };
    second.run("ADD", &conf()).good();
    let call = bridge(OURS, &pod);
    call.run("ADD", &conf()).good();
    let left = retire(&pod);
    let retired: Vec<_> = ends().into_iter().filter(|end| end["master"].is_null()).collect();
    assert!(retired.len() == 1 && ends().len() == 2, "{retired:?}");
    assert!(!retired[0]["flags"].to_string().contains("\"UP\""), "{retired:?}");
    assert_eq!(retired[0]["ifalias"], "deleted by CNI, to be destroyed");
    let pods: Vec<_> = ip(Some(&pod), &["addr"]).into_iter().filter(|link| link["ifname"] != "lo").collect();
    assert!(pods.len() == 1 && pods[0]["ifname"].as_str().unwrap().starts_with("gone"), "{pods:?}");
    assert!(pods[0]["addr_info"] == json!([]) && !pods[0]["flags"].to_string().contains("\"UP\""), "{pods:?}");
    fs::remove_dir_all("/run/files").unwrap();
    let result = call.run("ADD", &conf()).good();
    call.run_after("CHECK", &conf(), &result).good();
    call.run("DEL", &conf()).good();
    assert_eq!((names(&pod), ends().len()), (vec!["lo".to_owned()], 1));
    second.run_after("CHECK", &conf(), &json!({})).failure();
    left.destroy().unwrap();
    assert_eq!(names(&other), ["lo", "eth0"]);
}

#[test]
fn a_pair_out_of_use_goes_with_the_pod_or_by_another_del_or_gc() {
    if !rerun_enclosed("a_pair_out_of_use_goes_with_the_pod_or_by_another_del_or_gc") {
        return;
    }
    make_node();
    let pod = make_pod("a");
    let call = bridge(OURS, &pod);
    call.run("ADD", &conf()).good();
    _ = retire(&pod);
    call.run("DEL", &conf()).good();
    assert_eq!((names(&pod), ends().len()), (vec!["lo".to_owned()], 0));
    call.run("ADD", &conf()).good();
    _ = retire(&pod);
    let mut gc = conf();
    gc["cniVersion"] = json!("1.1.0");
    gc["cni.dev/valid-attachments"] = json!([]);
    call.run("GC", &gc).good();
    wait_destroyed(&pod);
    assert_eq!((names(&pod), ends().len()), (vec!["lo".to_owned()], 0));
    call.run("ADD", &conf()).good();
    _ = retire(&pod);
    end_pod(&pod);
    let begun = std::time::Instant::now();
    while !ends().is_empty() {
        assert!(begun.elapsed().as_secs() < 10, "{:?}", ends());
    }
    call.run("DEL", &conf()).good();
}

#[test]
fn an_add_may_follow_a_del_at_once() {
    if !rerun_enclosed("an_add_may_follow_a_del_at_once") {
        return;
    }
    make_node();
    let (pod, go) = (make_pod("a"), oracle());
    let now = |dir: &str, verb: &str| {
        let output = bridge(dir, &pod).start(verb, conf().to_string().as_bytes()).wait_with_output().unwrap();
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stdout));
    };
    for run in 0..20 {
        now(OURS, "ADD");
        now(OURS, "DEL");
        now(if run % 2 == 0 { OURS } else { &go }, "ADD");
        assert_eq!(ends().iter().filter(|end| end["master"] == "cni0").count(), 1);
        now(OURS, "DEL");
    }
    wait_destroyed(&pod);
    assert_eq!((names(&pod), ends().len()), (vec!["lo".to_owned()], 0));
}

#[test]
fn what_a_pod_holds_beside_its_addresses_is_freed_too_before_anybody_gets_one() {
    if !rerun_enclosed("what_a_pod_holds_beside_its_addresses_is_freed_too_before_anybody_gets_one") {
        return;
    }
    make_node();
    // A path that a runtime's folder is before, and the folder of the process left behind is not.
    std::env::set_current_dir("/run").unwrap();
    let mut conf = conf();
    conf["ipam"]["dataDir"] = json!("files");
    let (pod, other) = (make_pod("a"), make_pod("b"));
    let records = || {
        let names = fs::read_dir("/run/files/cbr0").unwrap().map(|entry| entry.unwrap().file_name());
        let records = names.map(|name| name.into_string().unwrap()).filter(|name| name.contains(['.', ':']));
        records.filter(|name| !name.starts_with("last_reserved_ip")).collect::<BTreeSet<_>>()
    };
    let record = |address: &str, text: &str| fs::write(Path::new("/run/files/cbr0").join(address), text).unwrap();
    bridge(OURS, &pod).run("ADD", &conf).good();
    let used = records();
    assert_eq!(used.len(), 2, "{used:?}");
    // As an ADD left it that was killed, one of another container, one of a writer that was killed.
    record("10.244.1.100", "c1\r\neth0");
    record("10.244.1.101", "c3\r\neth0");
    record("10.244.1.102", "");
    let now = |call: Call<'_>, verb: &str| {
        let output = call.start(verb, conf.to_string().as_bytes()).wait_with_output().unwrap();
        assert!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stdout));
    };
    now(bridge(OURS, &pod), "DEL");
    assert!(records().is_disjoint(&used), "the addresses in use are free with the answer");
    now(Call { id: "c2", ..bridge(OURS, &other) }, "ADD");
    let left = records();
    assert!(left.contains("10.244.1.101") && left.len() == 3, "an ADD waits for the rest: {left:?}");
    now(Call { id: "c2", ..bridge(OURS, &other) }, "DEL");
    wait_destroyed(&other);
    assert_eq!(records(), BTreeSet::from(["10.244.1.101".to_owned()]));
}

#[test]
fn a_pod_may_end_while_its_pair_is_destroyed() {
    if !rerun_enclosed("a_pod_may_end_while_its_pair_is_destroyed") {
        return;
    }
    make_node();
    for run in 0..20 {
        let pod = make_pod(&format!("p{run}"));
        bridge(OURS, &pod).run("ADD", &conf()).good();
        let del = bridge(OURS, &pod).start("DEL", conf().to_string().as_bytes());
        assert!(del.wait_with_output().unwrap().status.success());
        end_pod(&pod);
    }
    let begun = std::time::Instant::now();
    while !ends().is_empty() {
        assert!(begun.elapsed().as_secs() < 10, "{:?}", ends());
    }
}

#[test]
fn an_interface_that_is_no_pair_with_this_host_is_deleted_at_once_or_left() {
    if !rerun_enclosed("an_interface_that_is_no_pair_with_this_host_is_deleted_at_once_or_left") {
        return;
    }
    make_node();
    let (pod, other) = (make_pod("a"), make_pod("b"));
    let inside = |words: &[&str]| {
        let enter = format!("--net={pod}");
        world::tool(&["nsenter", &enter].iter().chain(words).copied().collect::<Vec<_>>())
    };
    // The other end is in another pod, not here; here is one of the same index that has nothing to do with it.
    inside(&["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far", "netns", &other]);
    bridge(OURS, &pod).run("DEL", &conf()).good();
    assert_eq!((names(&pod), names(&other)), (vec!["lo".to_owned()], vec!["lo".to_owned()]));
    inside(&["ip", "link", "add", "eth0", "type", "bridge"]);
    bridge(OURS, &pod).run("DEL", &conf()).good();
    assert_eq!(names(&pod), ["lo", "eth0"]);
}
