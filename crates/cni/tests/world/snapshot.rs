//! Everything that plugins can leave on a node, as JSON in which two runs of the same can be compared: what `ip`, `bridge`,
//! `iptables-save` and `nft` print of the host and of its pods, all sysctls of interfaces, and files with their modes.
//!
//! Surface: [`snapshot`], [`plain`]. Left out is what nobody chooses: numbers, clocks, MACs and names that are random (MACs of a test's own, which begin
//! with `c2:11:22`, stay), what IPv6 makes of MACs, and what the kernel takes its time to tell of a carrier.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flannel_kernel::namespace::NetNamespace;
use serde_json::{Value, json};

use super::tool;

/// All of the host, whose network namespace is the calling thread's, of its pods by path, and of a folder.
pub(crate) fn snapshot(pods: &[&str], dir: &Path) -> Value {
    let mut all = json!({"host": namespace(), "bridge": bridge(), "rules": rules(), "files": files(dir)});
    for pod in pods {
        all[pod] = NetNamespace::open(Path::new(pod)).unwrap().run(namespace).unwrap();
    }
    plain(&all)
}

/// What any network namespace has.
fn namespace() -> Value {
    let told = ip(&["-d"], &["addr show", "route show table all", "rule show", "neigh show nud permanent"]);
    let [links, routes, rules, neighs] = told.try_into().unwrap();
    let links: Vec<_> = links.as_array().unwrap().iter().map(link).collect();
    let sysctls = links.iter().map(|link| link["ifname"].as_str().unwrap()).chain(["all"]).map(sysctls);
    json!({
        "sysctls": sysctls.collect::<BTreeMap<_, _>>(),
        "forward": fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
        "links": by_name(links),
        "routes": routes_of(&routes),
        "rules": [rules, ip(&["-6"], &["rule show"]).remove(0)],
        "neighs": neighs,
    })
}

/// What `ip` prints for each of these, in one process.
fn ip(options: &[&str], lines: &[&str]) -> Vec<Value> {
    let words = [["ip", "-j"].as_slice(), options, &["-batch", "-"]].concat();
    let text = super::tool_fed(&words, &(lines.join("\n") + "\n"));
    serde_json::Deserializer::from_str(&text).into_iter().map(Result::unwrap).collect()
}

/// Interfaces by name; veths, whose names are random, in the order they came.
fn by_name(links: Vec<Value>) -> Value {
    let numbered = links.into_iter().enumerate().map(|(at, link)| {
        let name = link["ifname"].as_str().unwrap();
        (if is_veth(name) { format!("veth{at}") } else { name.to_owned() }, link)
    });
    numbered.collect::<serde_json::Map<_, _>>().into()
}

fn link(found: &Value) -> Value {
    let mut link = found.clone();
    for key in ["ifindex", "link_index", "operstate", "qdisc"] {
        link.as_object_mut().unwrap().remove(key);
    }
    link["flags"]
        .as_array_mut()
        .unwrap()
        .retain(|flag| !["LOWER_UP", "NO-CARRIER", "M-DOWN"].iter().any(|x| flag == x));
    for part in ["info_data", "info_slave_data"] {
        let Some(part) = link["linkinfo"][part].as_object_mut() else { continue };
        let is_momentary = |key: &str| ["state", "bridge_id", "root_id"].contains(&key) || key.contains("timer");
        part.retain(|key, _| !is_momentary(key) && !key.starts_with("designated") && !key.starts_with("topology"));
    }
    link["addr_info"]
        .as_array_mut()
        .unwrap()
        .retain(|address| address["scope"] != "link" || address["family"] == "inet");
    link
}

/// Routes, but those that the kernel makes of IPv6 addresses when it gets round to it.
fn routes_of(found: &Value) -> Value {
    let is_made = |route: &Value| {
        let to = route["dst"].as_str().unwrap();
        to.starts_with("fe80") || to.starts_with("ff") || route["table"] == "local" && to.contains(':')
    };
    let mut routes: Vec<_> = found.as_array().unwrap().iter().filter(|route| !is_made(route)).cloned().collect();
    for route in &mut routes {
        route["flags"].as_array_mut().unwrap().retain(|flag| flag != "linkdown");
    }
    routes.sort_by_key(|route| plain(route).to_string());
    json!(routes)
}

/// Every sysctl of an interface that can be read, by its path.
fn sysctls(link: &str) -> (String, Value) {
    let mut found = BTreeMap::new();
    for family in ["ipv4", "ipv6"] {
        for entry in
            fs::read_dir(format!("/proc/sys/net/{family}/conf/{link}")).into_iter().flatten().map(Result::unwrap)
        {
            let value = fs::read_to_string(entry.path()).unwrap_or_default();
            found.insert(format!("{family}/{}", entry.file_name().display()), value.trim().to_owned());
        }
    }
    (link.to_owned(), json!(found))
}

/// The MACs that `bridge` says were set.
fn bridge() -> Value {
    let mut fdb: Value = serde_json::from_str(&tool(&["bridge", "-j", "fdb", "show"])).unwrap_or_default();
    // Those that end in `self` are the groups that an interface listens to.
    fdb.as_array_mut().unwrap().retain(|entry| entry["state"] == "permanent" && entry["flags"] == json!([]));
    json!({"fdb": fdb})
}

/// The rules of both systems, without what `iptables` has in nf_tables: table and chain, and their lines.
fn rules() -> Value {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let mut table = String::new();
        for line in tool(&[program]).lines().filter(|line| !line.starts_with('#') && *line != "COMMIT") {
            match line.strip_prefix('*') {
                Some(name) => table = format!("{program} {name}"),
                None => found.entry(table.clone()).or_default().push(line.split(" [").next().unwrap().to_owned()),
            }
        }
    }
    let mut place = String::new();
    for line in tool(&["nft", "--stateless", "list", "ruleset"]).lines().filter(|line| !line.trim().is_empty()) {
        if line.starts_with("table ") {
            line.trim_end_matches(" {").clone_into(&mut place);
        }
        let of_iptables = ["nat", "filter", "mangle", "raw", "security"].map(|name| format!(" {name}"));
        let bridges = place.starts_with("table bridge");
        if line.starts_with('#') || !bridges && of_iptables.iter().any(|name| place.ends_with(name)) {
            continue;
        }
        found.entry(place.clone()).or_default().push(line.trim().to_owned());
    }
    // A program that only looks makes the chains of the table.
    let builtin = |line: &String| line.starts_with(':') && line.ends_with(" ACCEPT");
    found.retain(|_, lines| !lines.iter().all(builtin));
    json!(found)
}

/// Every file below a folder: mode and text; of folders the mode and what is in them.
pub(crate) fn files(dir: &Path) -> Value {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().map(Result::unwrap) {
        let path = entry.path();
        let mode = format!("{:o}", entry.metadata().unwrap().permissions().mode() & 0o7777);
        let inside = if path.is_dir() { files(&path) } else { json!(fs::read_to_string(&path).unwrap()) };
        found.insert(entry.file_name().into_string().unwrap(), json!({"mode": mode, "holds": inside}));
    }
    json!(found)
}

/// The same without MACs and names that are random.
pub(crate) fn plain(value: &Value) -> Value {
    match value {
        Value::String(text) => json!(plain_text(text)),
        Value::Array(list) => list.iter().map(plain).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (plain_text(key), plain(value))).collect(),
        other => other.clone(),
    }
}

fn plain_text(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == ':';
    let mut plain = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = rest.split_at(rest.find(|c| !is_part(c)).unwrap_or(rest.len()));
        plain.push_str(if is_veth(word) {
            "veth"
        } else if is_random_mac(word) {
            "MAC"
        } else {
            word
        });
        let (between, next) = after.split_at(after.find(is_part).unwrap_or(after.len()));
        plain.push_str(between);
        rest = next;
    }
    plain
}

/// `veth` and eight digits, as the plugins name the host's end.
fn is_veth(name: &str) -> bool {
    name.strip_prefix("veth").is_some_and(|digits| digits.len() == 8 && digits.chars().all(|c| c.is_ascii_hexdigit()))
}

/// A unicast MAC that the configuration does not give.
fn is_random_mac(word: &str) -> bool {
    let bytes: Vec<_> =
        word.split(':').filter(|byte| byte.len() == 2).map(|byte| u8::from_str_radix(byte, 16)).collect();
    let is_mac = word.len() == 17 && bytes.len() == 6 && bytes.iter().all(Result::is_ok);
    is_mac
        && bytes[0].as_ref().is_ok_and(|first| first & 1 == 0)
        && !word.starts_with("c2:11:22")
        && !word.starts_with("00:00")
}
