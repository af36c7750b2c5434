//! Published ports: the rules of the Go plugins, of Debian and of the last release, added by one, checked and deleted by the other;
//! and what is better than theirs: no port for two, nothing left behind.

mod world;

use std::fs;
use std::path::PathBuf;

use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};
use world::{Call, ORACLE, OURS, clear, differences, make_node, make_pod, oracle, released, tool};

/// Where ours writes down what is published.
const CLAIMS: &str = "/run/flannel/portmap";

/// A configuration to compare.
struct Row {
    name: &'static str,
    /// Further keys beside name, version, type, ports and `prevResult`.
    keys: Value,
    ports: Value,
    addresses: &'static [&'static str],
    version: &'static str,
}

const FOUR: &[&str] = &["10.244.1.5/24"];
const SIX: &[&str] = &["fd00:1::5/64"];
const DUAL: &[&str] = &["10.244.1.5/24", "fd00:1::5/64"];

fn row(name: &'static str, keys: Value, ports: Value, addresses: &'static [&'static str]) -> Row {
    Row { name, keys, ports, addresses, version: "1.0.0" }
}

impl Row {
    fn conf(&self, backend: &str) -> Value {
        let mut conf = self.keys.clone();
        for (key, value) in [("cniVersion", self.version), ("name", "cbr0"), ("type", "portmap"), ("backend", backend)]
        {
            conf[key] = json!(value);
        }
        conf["runtimeConfig"] = json!({"portMappings": self.ports});
        conf["prevResult"] = self.given();
        conf
    }

    /// What the plugins before have made.
    fn given(&self) -> Value {
        if self.version <= "0.2.0" {
            return json!({"cniVersion": self.version, "ip4": {"ip": self.addresses[0]}, "dns": {}});
        }
        let says_version = self.version < "1.0.0";
        let ip = |address: &&str| {
            let mut ip = json!({"interface": 2, "address": address});
            if says_version {
                ip["version"] = json!(if address.contains(':') { "6" } else { "4" });
            }
            ip
        };
        let ips: Vec<_> = self.addresses.iter().map(ip).collect();
        let interfaces = json!([{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/a"}]);
        json!({"cniVersion": self.version, "interfaces": interfaces, "ips": ips, "dns": {}})
    }
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
fn rows() -> Vec<Row> {
    let mut rows = vec![
        row("a port", json!({}), web(), FOUR),
        row("a port, IPv6", json!({}), web(), SIX),
        row("a port, both families", json!({}), web(), DUAL),
        row("every kind of port", json!({}), all_kinds(), DUAL),
        row("a range of sixteen", json!({}), range(7000, 16), FOUR),
        row("a range of sixty", json!({}), range(7000, 60), DUAL),
        row("without snat", json!({"snat": false}), all_kinds(), DUAL),
        row("snat is null", json!({"snat": null, "masqAll": false, "conditionsV4": null}), web(), FOUR),
        row("another bit", json!({"markMasqBit": 0}), web(), DUAL),
        row("no ports", json!({}), json!([]), DUAL),
        row("ports are null", json!({}), json!(null), DUAL),
    ];
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0"] {
        rows.push(Row { version, ..row(version, json!({}), web(), FOUR) });
    }
    rows
}

fn iptables_rows() -> Vec<Row> {
    let four = json!(["-s", "192.0.2.0/24", "!", "-i", "eth9"]);
    vec![
        row("conditions", json!({"conditionsV4": four, "conditionsV6": ["!", "-s", "2001:db8::/32"]}), web(), DUAL),
        row("all is masqueraded", json!({"masqAll": true}), all_kinds(), DUAL),
        row("bit 31", json!({"markMasqBit": 31}), web(), FOUR),
        row("a chain of others", json!({"externalSetMarkChain": "KUBE-MARK-MASQ"}), web(), FOUR),
    ]
}

fn nftables_rows() -> Vec<Row> {
    let (four, six) = (json!(["ip", "saddr", "!=", "192.0.2.0/24"]), json!(["iifname", "!=", "\"eth9\""]));
    vec![
        row("conditions", json!({"conditionsV4": four, "conditionsV6": six}), all_kinds(), DUAL),
        Row { version: "1.1.0", ..row("1.1.0", json!({}), web(), DUAL) },
    ]
}

/// The rules of the host that are about published ports; of nftables without what is ours alone.
fn rules() -> Value {
    let saved = ["iptables-save", "ip6tables-save"].map(|program| tool(&[program, "-t", "nat"]));
    let saved = saved.iter().flat_map(|text| text.lines()).filter(|line| line.starts_with([':', '-']));
    let listed = tool(&["nft", "list", "ruleset"]);
    let ours = listed.lines().skip_while(|line| !line.contains("cni_hostport"));
    let ours = ours.filter(|line| !line.contains("ct original proto-dst"));
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
    found.retain(|path| !path.ends_with("lock"));
    found
}

/// One configuration to two builds, each checking and deleting what the other has added: results and rules must be equal.
fn compare(row: &Row, backend: &str, theirs: &str, pod: &str) {
    let conf = row.conf(backend);
    let (go, ours) = (call(theirs, "c1", pod), call(OURS, "c1", pod));
    let checks = |by: &Call<'_>| row.version >= "0.4.0" && (by.dir != ORACLE || row.ports == json!([]));
    let run = |first: &Call<'_>, second: &Call<'_>| {
        prepare();
        let mut result = first.run("ADD", &conf).good();
        // The release leaves empty ones out, Debian's does not.
        result.as_object_mut().unwrap().retain(|key, value| key != "dns" || *value != json!({}));
        let added = rules();
        // Debian's looks for the rules of both families in both.
        for by in [first, second].into_iter().filter(|by| checks(by)) {
            by.run("CHECK", &conf).good();
        }
        second.run("DEL", &conf).good();
        json!({"result": result, "added": added, "deleted": rules()})
    };
    let expected = run(&go, &go);
    for (first, second) in [(&ours, &ours), (&ours, &go), (&go, &ours)] {
        let different = differences("", &expected, &run(first, second));
        assert_eq!(
            different,
            Vec::<String>::new(),
            "{} ({backend}, {theirs}): {} then {}",
            row.name,
            first.dir,
            second.dir
        );
        if second.dir == OURS {
            assert_eq!(claims(), Vec::<PathBuf>::new(), "{}", row.name);
        }
    }
}

#[test]
fn iptables_rules_are_debians() {
    if !rerun_enclosed("iptables_rules_are_debians") {
        return;
    }
    make_node();
    let (pod, theirs) = (make_pod("a"), oracle());
    // `masqAll` is younger than Debian's.
    for row in rows().into_iter().chain(iptables_rows()).filter(|row| row.keys["masqAll"] != true) {
        compare(&row, "iptables", &theirs, &pod);
    }
}

#[test]
fn rules_of_both_systems_are_the_releases() {
    if !rerun_enclosed("rules_of_both_systems_are_the_releases") {
        return;
    }
    make_node();
    let (pod, theirs) = (make_pod("a"), released());
    for row in rows().into_iter().chain(nftables_rows()) {
        compare(&row, "nftables", &theirs, &pod);
    }
    let some = rows().into_iter().filter(|row| row.ports == all_kinds());
    for row in some.chain(iptables_rows()) {
        compare(&row, "iptables", &theirs, &pod);
    }
}

/// Both rule systems.
const BACKENDS: [&str; 2] = ["iptables", "nftables"];

fn of(keys: Value, ports: Value, backend: &str) -> Value {
    row("", keys, ports, DUAL).conf(backend)
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
