//! Published ports, where ours is better than the Go plugins: no port for two, nothing left behind. That the rules are otherwise theirs, the
//! tables of `oracle` say.

mod world;

use std::fs;
use std::path::PathBuf;

use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};
use world::{Call, OURS, clear, differences, make_node, make_pod, released, tool};

/// Where ours writes down what is published.
const CLAIMS: &str = "/run/flannel/portmap";

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

/// The rules of the host that are about published ports.
fn rules() -> Value {
    let saved = ["iptables-save", "ip6tables-save"].map(|program| tool(&[program, "-t", "nat"]));
    let saved = saved.iter().flat_map(|text| text.lines()).filter(|line| line.starts_with([':', '-']));
    let listed = tool(&["nft", "list", "ruleset"]);
    let ours = listed.lines().skip_while(|line| !line.contains("cni_hostport"));
    let lines = |lines: &mut dyn Iterator<Item = &str>| lines.map(|line| json!(line)).collect::<Value>();
    json!({
        "iptables": lines(&mut saved.filter(|line| line.contains("CNI-"))),
        "nftables": lines(&mut ours.take_while(|line| !line.contains("table ip nat"))),
        "route_localnet": fs::read_to_string("/proc/sys/net/ipv4/conf/cni0/route_localnet").unwrap(),
    })
}

/// A bridge as the plugin `bridge` leaves it, and no rules but a chain of somebody's.
fn prepare() {
    clear();
    _ = fs::remove_dir_all("/run/flannel");
    for words in [
        "nft flush ruleset",
        "ip link add cni0 type bridge",
        "ip addr add 10.244.1.1/24 dev cni0",
        "ip addr add fd00:1::1/64 dev cni0 nodad",
        "ip link set cni0 up",
        "iptables -t nat -N KUBE-MARK-MASQ",
    ] {
        tool(&words.split(' ').collect::<Vec<_>>());
    }
}

fn call<'a>(dir: &'a str, id: &'a str, pod: &'a str) -> Call<'a> {
    Call { dir, plugin: "portmap", id, netns: pod, args: "" }
}

/// What is written down, but the lock.
fn claims() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::from(CLAIMS)];
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { dirs.push(path) } else { found.push(path) }
        }
    }
    found.retain(|path| !path.ends_with("lock") && !path.ends_with("restore.lock"));
    found
}

/// Both rule systems.
const BACKENDS: [&str; 2] = ["iptables", "nftables"];

/// A configuration with what the plugins before have made.
fn of(keys: Value, ports: Value, backend: &str) -> Value {
    let ips = json!([{"interface": 2, "address": "10.244.1.5/24"}, {"interface": 2, "address": "fd00:1::5/64"}]);
    let interfaces = json!([{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/a"}]);
    let keys_of_all = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap", "backend": backend});
    let mut conf = keys;
    conf.as_object_mut().unwrap().extend(keys_of_all.as_object().unwrap().clone());
    conf["runtimeConfig"] = [("portMappings".to_owned(), ports)].into_iter().collect();
    conf["prevResult"] = json!({"cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips, "dns": {}});
    conf
}

#[test]
fn a_port_has_one_owner() {
    if !rerun_enclosed("a_port_has_one_owner") {
        return;
    }
    make_node();
    let pod = make_pod("a");
    let first = Call { args: "K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx", ..call(OURS, "c1", &pod) };
    for (backend, other) in [("iptables", "nftables"), ("nftables", "iptables")] {
        prepare();
        let second = call(OURS, "c2", &pod);
        first.run("ADD", &of(json!({}), all_kinds(), backend)).good();
        let before = (rules(), claims().len());
        for backend in [backend, other] {
            for taken in
                [port("tcp", 8080, 8080), port_on("192.0.2.9", "tcp", 8080, 80), port_on("192.0.2.1", "tcp", 8081, 1)]
            {
                let (code, msg, hint) =
                    second.run("ADD", &of(json!({}), json!([port("tcp", 1, 1), taken]), backend)).failure();
                assert_eq!(code, 999);
                let owner = "is taken by pod default/nginx (container c1) of network cbr0";
                assert!(msg.starts_with("portmap: host port ") && msg.ends_with(owner), "{msg}");
                assert!(hint.contains("another port"), "{hint}");
            }
        }
        assert_eq!((rules(), claims().len()), before, "a refused ADD leaves nothing");
        let others = json!([port("udp", 8080, 80), port_on("192.0.2.2", "tcp", 8081, 80), port("tcp", 8082, 1)]);
        let (_, msg, _) = second.run("ADD", &of(json!({}), others, backend)).failure();
        assert!(msg.contains("host port 8082/tcp is taken"), "{msg}");
        let free = of(json!({}), json!([port("udp", 8080, 80), port_on("192.0.2.2", "tcp", 8081, 80)]), backend);
        second.run("ADD", &free).good();
        first.run("DEL", &of(json!({}), all_kinds(), backend)).good();
        second.run("DEL", &free).good();
        assert_eq!(claims(), Vec::<PathBuf>::new());
        second.run("ADD", &of(json!({}), web(), backend)).good();
        first.run("ADD", &of(json!({}), json!([port("tcp", 80, 80)]), backend)).good();
    }
}

#[test]
fn an_owner_that_is_gone_is_none() {
    if !rerun_enclosed("an_owner_that_is_gone_is_none") {
        return;
    }
    make_node();
    let (pod, go) = (make_pod("a"), released());
    for backend in BACKENDS {
        prepare();
        let conf = of(json!({}), web(), backend);
        call(OURS, "c1", &pod).run("ADD", &conf).good();
        // The Go plugin knows nothing of what is written down.
        call(&go, "c1", &pod).run("DEL", &conf).good();
        call(OURS, "c2", &pod).run("ADD", &conf).good();
        // Rules that someone has flushed do not make a port free, while the container is there.
        tool(&["ip", "link", "add", "veth1", "type", "bridge"]);
        tool(&["nft", "flush", "ruleset"]);
        let (_, msg, _) = call(OURS, "c3", &pod).run("ADD", &conf).failure();
        assert!(msg.contains("taken by container c2 of network cbr0"), "{msg}");
    }
}

#[test]
fn what_is_left_half_done_is_done_anew_or_undone() {
    if !rerun_enclosed("what_is_left_half_done_is_done_anew_or_undone") {
        return;
    }
    make_node();
    let pod = make_pod("a");
    let ours = call(OURS, "c1", &pod);
    for backend in BACKENDS {
        prepare();
        let conf = of(json!({}), all_kinds(), backend);
        ours.run("ADD", &conf).good();
        let (once, written) = (rules(), claims());
        // As after an ADD that was killed, and whose DEL never came.
        ours.run("ADD", &conf).good();
        assert_eq!(differences("", &once, &rules()), Vec::<String>::new(), "{backend}");
        assert_eq!(claims(), written);
        // Half of the rules are gone, with what all share.
        let gone: &[&str] = if backend == "iptables" {
            &["iptables", "-t", "nat", "-F"]
        } else {
            &["nft", "delete", "table", "ip", "cni_hostport"]
        };
        tool(gone);
        let (code, msg, _) = ours.run("CHECK", &conf).failure();
        assert!(code == 999 && msg.starts_with("portmap: missing rule: "), "{msg}");
        ours.run("ADD", &conf).good();
        let mut restored = rules();
        let sorted = |value: &mut Value| value.as_array_mut().unwrap().sort_by_key(ToString::to_string);
        let mut expected = once.clone();
        for system in BACKENDS {
            sorted(&mut restored[system]);
            sorted(&mut expected[system]);
        }
        assert_eq!(differences("", &expected, &restored), Vec::<String>::new(), "{backend}");
        tool(&["nft", "flush", "ruleset"]);
        ours.run("DEL", &conf).good();
        ours.run("DEL", &conf).good();
        assert_eq!(claims(), Vec::<PathBuf>::new());
    }
}

#[test]
fn an_add_mends_what_all_share() {
    if !rerun_enclosed("an_add_mends_what_all_share") {
        return;
    }
    make_node();
    let pod = make_pod("a");
    prepare();
    let (one, other) = (of(json!({}), web(), "nftables"), of(json!({}), range(9000, 1), "nftables"));
    call(OURS, "c1", &pod).run("ADD", &one).good();
    let other = |verb| call(OURS, "c2", &pod).run(verb, &other).good();
    other("ADD");
    let whole = rules();
    for chain in ["prerouting", "output", "hostports_all"] {
        other("DEL");
        tool(&["nft", "flush", "chain", "ip", "cni_hostport", chain]);
        other("ADD");
        assert_eq!(differences("", &whole, &rules()), Vec::<String>::new(), "{chain}");
    }
}

/// DEL goes by the handles that ADD has noted, unless somebody has made the rules again: then others may have these handles.
#[test]
fn a_del_removes_its_containers_rules_and_no_others_whoever_made_them_last() {
    if !rerun_enclosed("a_del_removes_its_containers_rules_and_no_others_whoever_made_them_last") {
        return;
    }
    make_node();
    let (pod, go) = (make_pod("a"), released());
    let confs = [8000, 9000].map(|number| of(json!({}), range(number, 2), "nftables"));
    let [first, second] = [(call(OURS, "c1", &pod), &confs[0]), (call(OURS, "c2", &pod), &confs[1])];
    let saved = |id: &str| fs::read_to_string(format!("{CLAIMS}/containers/cbr0/{id}")).unwrap();
    let there = |id: &str| rules()["nftables"].to_string().matches(&format!("comment \\\"{id}\\\"")).count();
    for remade in [None, Some(OURS), Some(go.as_str())] {
        prepare();
        for (call, conf) in [&first, &second] {
            call.run("ADD", conf).good();
        }
        let each = there("c1");
        assert!(each > 8 && there("c2") == each && saved("c1").contains("\"handlesV6\":["), "{}", saved("c1"));
        if let Some(dir) = remade {
            let noted = [saved("c1"), saved("c2")];
            for family in ["ip", "ip6"] {
                tool(&["nft", "delete", "table", family, "cni_hostport"]);
            }
            // The other way round, so that each has handles that the other had.
            for (call, conf) in [&second, &first] {
                Call { dir, ..call.clone() }.run("ADD", conf).good();
            }
            for (id, noted) in ["c1", "c2"].iter().zip(noted) {
                fs::write(format!("{CLAIMS}/containers/cbr0/{id}"), noted).unwrap();
            }
        }
        let others = there("c2");
        first.0.run("DEL", first.1).good();
        assert_eq!((there("c1"), there("c2")), (0, others), "{remade:?}");
        second.0.run("DEL", second.1).good();
        assert_eq!((there("c2"), claims()), (0, Vec::new()), "{remade:?}");
    }
}

#[test]
fn a_failed_add_leaves_nothing() {
    if !rerun_enclosed("a_failed_add_leaves_nothing") {
        return;
    }
    make_node();
    let pod = make_pod("a");
    let ours = call(OURS, "c1", &pod);
    prepare();
    let before = rules();
    let no_chain = of(json!({"externalSetMarkChain": "NOBODYS"}), web(), "iptables");
    let (code, msg, hint) = ours.run("ADD", &no_chain).failure();
    assert!(code == 999 && msg.contains("iptables-restore failed") && !hint.is_empty(), "{msg}");
    let nonsense = of(json!({"conditionsV4": ["nonsense"]}), web(), "nftables");
    let (code, msg, _) = ours.run("ADD", &nonsense).failure();
    assert!(code == 999 && msg.contains("nft failed"), "{msg}");
    fs::write("/run/flannel/file", "").unwrap();
    let no_folder = of(json!({"dataDir": "/run/flannel/file/x"}), web(), "nftables");
    let (code, msg, hint) = ours.run("ADD", &no_folder).failure();
    assert!(code == 999 && msg.contains("cannot create folder /run/flannel/file/x"), "{msg}");
    assert!(hint.contains("dataDir"), "{hint}");
    let shared = |value: Value| {
        value["iptables"].as_array().unwrap().iter().filter(|line| line.to_string().contains("CNI-DN")).count()
    };
    assert_eq!((shared(before), shared(rules())), (0, 0));
    assert!(!rules()["nftables"].to_string().contains("comment \\\"c1"), "{}", rules());
    assert_eq!(claims(), Vec::<PathBuf>::new());
}

#[test]
fn gc_frees_what_is_no_longer_valid() {
    if !rerun_enclosed("gc_frees_what_is_no_longer_valid") {
        return;
    }
    make_node();
    let (pod, go) = (make_pod("a"), released());
    for backend in BACKENDS {
        prepare();
        let conf = |port_number| {
            let mut conf = of(json!({}), json!([port("tcp", port_number, 80)]), backend);
            conf["cniVersion"] = json!("1.1.0");
            conf
        };
        for (dir, id, number) in [(OURS, "c1", 1), (OURS, "c2", 2), (go.as_str(), "c3", 3), (go.as_str(), "c4", 4)] {
            call(dir, id, &pod).run("ADD", &conf(number)).good();
        }
        let mut other = conf(5);
        other["name"] = json!("other");
        call(OURS, "c5", &pod).run("ADD", &other).good();
        let mut gc = conf(1);
        gc.as_object_mut().unwrap().remove("runtimeConfig");
        let (code, msg, _) = call(OURS, "", "").run("GC", &gc).failure();
        assert!(code == 7 && msg.contains("key `cni.dev/valid-attachments` is missing"), "{msg}");
        gc["cni.dev/valid-attachments"] =
            json!([{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c3", "ifname": "eth0"}]);
        call(OURS, "", "").run("GC", &gc).good();
        let there = |id: &str| {
            let text = rules().to_string();
            text.contains(&format!("id: \\\\\\\"{id}\\\\\\\"")) || text.contains(&format!("comment \\\"{id}\\\""))
        };
        // Rules of the Go plugin say in iptables alone which network they are of.
        let foreign = backend == "nftables";
        assert_eq!(["c1", "c2", "c3", "c4", "c5"].map(there), [true, false, true, foreign, true], "{backend}");
        call(OURS, "c2", &pod).run("ADD", &conf(2)).good();
        gc["cni.dev/valid-attachments"] = Value::Null;
        call(OURS, "", "").run("GC", &gc).good();
        assert_eq!(["c1", "c2"].map(there), [false, false], "{backend}");
        assert_eq!(claims().len(), 2, "those of the other network");
    }
}

#[test]
fn status_says_whether_ports_can_be_published() {
    if !rerun_enclosed("status_says_whether_ports_can_be_published") {
        return;
    }
    make_node();
    prepare();
    let pod = make_pod("a");
    let mut conf = of(json!({}), json!(null), "iptables");
    conf["cniVersion"] = json!("1.1.0");
    call(OURS, "", "").run("STATUS", &conf).good();
    let without = |conf: &Value, verb| {
        let child = call(OURS, "c1", &pod).start_in(verb, "/nowhere", conf.to_string().as_bytes());
        let output = child.wait_with_output().unwrap();
        (output.status.success(), serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default())
    };
    let (ok, failure) = without(&conf, "STATUS");
    assert!(!ok && failure["code"] == 50, "{failure}");
    assert!(failure["details"].as_str().unwrap().contains("set `backend` to nftables"), "{failure}");
    conf.as_object_mut().unwrap().remove("backend");
    assert!(without(&conf, "STATUS").0, "where iptables is not installed nftables is used");
    conf["runtimeConfig"] = json!({"portMappings": web()});
    assert!(without(&conf, "ADD").0);
    assert!(rules()["nftables"].to_string().contains("dnat to 10.244.1.5:80"));
    assert!(without(&conf, "CHECK").0 && without(&conf, "DEL").0);
    assert_eq!(claims(), Vec::<PathBuf>::new());
}

#[test]
fn many_at_once_share_the_shared_chains() {
    if !rerun_enclosed("many_at_once_share_the_shared_chains") {
        return;
    }
    make_node();
    let pod = make_pod("a");
    for backend in BACKENDS {
        prepare();
        let confs: Vec<_> =
            (0..16_u16).map(|n| (format!("c{n}"), of(json!({}), range(7000 + n * 40, 40), backend))).collect();
        let start = |(id, conf): &(String, Value)| call(OURS, id, &pod).start("ADD", conf.to_string().as_bytes());
        for child in confs.iter().map(start).collect::<Vec<_>>() {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
        let text = rules()["iptables"].to_string() + &rules()["nftables"].to_string();
        for (shared, times) in [("-A PREROUTING", 2), ("-A POSTROUTING", 2), ("fib daddr type local", 4)] {
            let expected = if text.contains(shared) { times } else { 0 };
            assert_eq!(text.matches(shared).count(), expected, "{backend} {shared}");
        }
        assert_eq!(text.matches("10.244.1.5:").count(), 640, "{backend}");
        for (id, conf) in &confs {
            call(OURS, id, &pod).run("CHECK", conf).good();
            call(OURS, id, &pod).run("DEL", conf).good();
        }
        assert_eq!(claims(), Vec::<PathBuf>::new());
        let text = rules().to_string();
        assert!(!text.contains("10.244.1.5") && !text.contains("CNI-DN"), "{text}");
    }
}
