//! `flannel` with delegates, ours and in Go: all is as if the delegate had been called by itself with the configuration that the
//! documentation says `flannel` builds. There is no package of a `flannel` in Go to compare with.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};

use crate::all;
use crate::host_local::NO_DNS;
use crate::world::row::{Better, Row};
use crate::world::{
    DUAL_SUBNET_ENV as DUAL, FILES, ORACLE, OURS, SUBNET_ENV as FOUR, differences, make_node, released,
};

/// A list with `flannel`, and what comes to the same.
struct Pair {
    flannel: Row,
    direct: Row,
}

const MASQUERADES: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

/// What is documented of how `subnet.env` and `delegate` become the delegate's configuration (compat §8).
fn pair(name: &'static str, program: &'static str, env: &'static str, delegate: Value) -> Pair {
    let mut direct = delegate.clone();
    let is_dual = env.contains("IPV6");
    direct["ipam"] = json!({
        "type": "host-local", "dataDir": FILES,
        "ranges": if is_dual { json!([[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:0:0:1::/64"}]]) }
            else { json!([[{"subnet": "10.244.1.0/24"}]]) },
        "routes": if is_dual { json!([{"dst": "10.244.0.0/16"}, {"dst": "fd00::/48"}]) }
            else { json!([{"dst": "10.244.0.0/16"}]) },
    });
    let mut default = |key: &str, value: Value| {
        if direct[key].is_null() {
            direct[key] = value;
        }
    };
    default("mtu", json!(1450));
    default("ipMasq", json!(env.contains("IPMASQ=false")));
    let mut delegate = delegate;
    if program == "bridge" {
        default("isGateway", json!(true));
    } else {
        delegate["type"] = json!(program);
    }
    let flannel = json!({"delegate": delegate, "dataDir": "/run/files/flannel", "ipam": {"dataDir": FILES}});
    let files: &[(&str, &str)] = match env {
        FOUR => &[("/run/flannel/subnet.env", FOUR)],
        DUAL => &[("/run/flannel/subnet.env", DUAL)],
        _ => &[("/run/flannel/subnet.env", MASQUERADES)],
    };
    Pair { flannel: Row { files, ..Row::of("flannel", name, flannel) }, direct: Row::of(program, name, direct) }
}

impl Pair {
    fn each(mut self, change: impl Fn(&mut Row)) -> Self {
        change(&mut self.flannel);
        change(&mut self.direct);
        self
    }

    /// Plays it with the delegates of a folder; where `flannel` is ours, its delegates are another's.
    fn compare(&self, delegates: &str, flannels: &[&str]) {
        let name = self.direct.name;
        let expected = self.direct.play(delegates, delegates, all);
        for dir in flannels {
            let mut told = self.flannel.play(dir, dir, all);
            let files = &mut told["0 ADD cid-one"]["left"]["files"];
            let saved = files.as_object_mut().unwrap().remove("flannel");
            told["end"]["files"].as_object_mut().unwrap().remove("flannel");
            let found = differences("", &expected, &told);
            let found: Vec<_> = found.iter().filter(|line| !is_better(line, dir)).collect();
            assert!(found.is_empty(), "{name} in {dir}: {found:#?}");
            if !self.direct.fails {
                let conf = self.direct.conf(&self.direct.plugins[0], &Value::Null).to_string();
                let saved = &saved.unwrap()["holds"]["cid-one"];
                assert_eq!(saved, &json!({"mode": "600", "holds": conf}), "{name} in {dir}");
            }
            let failed = told["0 ADD cid-one"]["answer"].get("failed");
            assert_eq!(failed.is_some(), self.direct.fails, "{name} in {dir}: {failed:?}");
        }
    }
}

/// What the table of `bridge` says of our own; of others alone what `flannel` makes of their answers.
fn is_better(line: &str, dir: &str) -> bool {
    let version = Better::than_all(
        "/failed/cniVersion: theirs null ours",
        "an error names its version, as the specification has it",
    );
    let better = if dir == OURS { crate::bridge::better() } else { vec![NO_DNS, version] };
    better.iter().any(|better| line.contains(better.at))
}

/// A folder with our `flannel` and the other plugins of another.
fn folder(others: &str) -> String {
    let dir = format!("/run/with{}", others.replace('/', "-"));
    fs::create_dir(&dir).unwrap();
    for entry in fs::read_dir(others).unwrap().map(Result::unwrap).filter(|entry| entry.file_name() != "flannel") {
        symlink(entry.path(), Path::new(&dir).join(entry.file_name())).unwrap();
    }
    symlink(Path::new(OURS).join("flannel"), Path::new(&dir).join("flannel")).unwrap();
    dir
}

#[test]
fn bridge_behind_flannel_is_bridge() {
    if !rerun_enclosed("flannel::bridge_behind_flannel_is_bridge") {
        return;
    }
    make_node();
    let go = released();
    let with_go = folder(&go);
    let able = |row: &mut Row| {
        row.plugins[0].keys["capabilities"] = json!({"mac": true, "ips": true});
        row.runtime = json!({"mac": "c2:11:22:33:44:55", "ips": ["10.244.1.50"]});
    };
    let mut asked = pair("a MAC and an address of the runtime", "bridge", FOUR, json!({"hairpinMode": true}));
    able(&mut asked.flannel);
    asked.direct.plugins[0].keys["runtimeConfig"] = json!({"mac": "c2:11:22:33:44:55", "ips": ["10.244.1.50"]});
    let manifest = || json!({"hairpinMode": true, "isDefaultGateway": true});
    for pair in [
        pair("no delegate", "bridge", FOUR, json!({})),
        pair("the manifest's", "bridge", FOUR, manifest()),
        pair("the manifest's, dual-stack", "bridge", DUAL, manifest()),
        pair("the delegate masquerades", "bridge", MASQUERADES, manifest()),
        pair("what is given stays", "bridge", MASQUERADES, json!({"ipMasq": false, "mtu": 1300, "isGateway": false})),
        pair("1.1.0", "bridge", DUAL, manifest()).each(|row| row.version = "1.1.0"),
        pair("0.3.1", "bridge", DUAL, manifest()).each(|row| row.version = "0.3.1"),
        pair("0.2.0", "bridge", DUAL, manifest()).each(|row| row.version = "0.2.0"),
        asked,
    ] {
        pair.compare(&go, &[&with_go, OURS]);
    }
}

/// Whether the kernel has links of a kind that share another.
fn kernel_has(kind: &str) -> bool {
    let words = ["link", "add", "up2", "link", "up0", "type", kind];
    let host = flannel_kernel::namespace::NetNamespace::create().unwrap();
    host.run(|| {
        crate::world::tool(&["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1"]);
        Command::new("ip").args(words).stderr(Stdio::null()).status().unwrap().success()
    })
    .unwrap()
}

#[test]
fn delegates_in_go_get_what_is_documented() {
    if !rerun_enclosed("flannel::delegates_in_go_get_what_is_documented") {
        return;
    }
    make_node();
    // Those of the release are built without these.
    let go = ORACLE;
    assert!(Path::new(go).join("ptp").is_file(), "no {go}/ptp: run `apt-get install containernetworking-plugins`");
    let with_go = folder(go);
    for pair in [
        pair("ptp", "ptp", FOUR, json!({})),
        pair("ptp, dual-stack", "ptp", DUAL, json!({"mtu": 1400})),
        pair("ptp that masquerades", "ptp", MASQUERADES, json!({})).each(|row| row.version = "0.3.1"),
    ] {
        pair.compare(go, &[&with_go]);
    }
    // Where the kernel has no such links, the delegate's failure is flannel's, and nothing is left.
    for kind in ["macvlan", "ipvlan"] {
        let fails = !kernel_has(kind);
        let mode = if kind == "macvlan" { "bridge" } else { "l2" };
        let pair = pair(kind, kind, FOUR, json!({"master": "up0", "mode": mode, "linkInContainer": false}));
        let pair = pair.each(|row| {
            row.before = &["ip link add up0 type veth peer name up1", "ip link set up0 up"];
            row.fails = fails;
        });
        pair.compare(go, &[&with_go]);
    }
}
