//! A daemon on a real API server, where no program of iptables is: what is wrong on its host is in its log, in the condition of its
//! Node and in Events, with the command that mends it; and which right is missing, when one is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use flannel_cluster::{ApiServer, Options};
use flannel_kernel::mount;
use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};

const LOG: &str = "/run/flanneld.log";

fn shell(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A host with an external interface, a cluster with its Node, and what the daemon reads.
fn start() -> ApiServer {
    mount::tmpfs(Path::new("/run")).unwrap();
    shell(
        "ip link set lo up
        ip link add eth0 type veth peer name other
        ip addr add 192.0.2.1/24 dev eth0
        ip link set eth0 up
        ip link set other up
        ip route add default via 192.0.2.254",
    );
    let net = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    fs::write("/run/net-conf.json", net).unwrap();
    let api = ApiServer::start(Options::here(Path::new("/run/kubernetes"))).unwrap();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-flannel"}});
    api.request("POST", "/api/v1/namespaces", Some(&namespace)).unwrap();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}});
    api.request("POST", "/api/v1/nodes", Some(&node)).unwrap();
    api
}

/// The kubeconfig of flannel's account with these verbs on these resources.
fn account(api: &ApiServer, rights: &[(&str, &[&str])]) -> PathBuf {
    let identity = api.account("kube-flannel", "flannel").unwrap();
    api.grant("kube-flannel", "flannel", rights).unwrap();
    api.kubeconfig("flannel", &identity).unwrap()
}

/// A daemon that finds no program, as in its image.
struct Daemon(Child);

impl Daemon {
    fn start(kubeconfig: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flannel"));
        command.args(["flanneld", "--kube-subnet-mgr", "--ip-masq", "--net-config-path=/run/net-conf.json"]);
        command.args(["--subnet-file=/run/subnet.env", "--iptables-resync=1"]);
        command.arg(format!("--kubeconfig-file={}", kubeconfig.display()));
        command.env("PATH", "/nowhere").env("NODE_NAME", "n1");
        Self(command.stderr(File::create(LOG).unwrap()).spawn().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn log() -> String {
    fs::read_to_string(LOG).unwrap()
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never comes that {what}:\n{}", log());
        sleep(Duration::from_millis(100));
    }
}

fn condition(api: &ApiServer) -> String {
    let node = api.request("GET", "/api/v1/nodes/n1", None).unwrap();
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let Some(found) = conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable") else {
        return String::new();
    };
    ["status", "reason", "message"].map(|key| found[key].as_str().unwrap_or_default()).join(" ")
}

fn events(api: &ApiServer) -> Vec<(String, String)> {
    let events = api.request("GET", "/api/v1/namespaces/default/events", None).unwrap();
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let items = events["items"].as_array().cloned().unwrap_or_default();
    items.iter().map(|event| (text(event, "reason"), text(event, "message"))).collect()
}

const UP: &str = "False FlannelIsUp Flannel is running on this node";

#[test]
fn what_is_wrong_on_the_host_is_told_everywhere_with_its_remedy() {
    if !rerun_enclosed("what_is_wrong_on_the_host_is_told_everywhere_with_its_remedy") {
        return;
    }
    let api = start();
    let rights: [(&str, &[&str]); 3] =
        [("nodes", &["get", "list", "watch"]), ("nodes/status", &["patch"]), ("events", &["create"])];
    let daemon = Daemon::start(&account(&api, &rights));
    until("flannel is up", || condition(&api) == UP);
    assert!(
        log().contains("no program of iptables is here: the packet rules are in nf_tables all the same"),
        "{}",
        log()
    );
    shell("nft list table ip flannel-ipv4 | grep -q masquerade");
    shell("iptables-nft -P FORWARD DROP; iptables-legacy -t nat -N FLANNEL-POSTRTG");
    let remedy =
        "iptables-nft -I FORWARD -s 10.244.0.0/16 -j ACCEPT; iptables-nft -I FORWARD -d 10.244.0.0/16 -j ACCEPT";
    let dropped = format!(
        "packets of pods are dropped by table ip filter, chain FORWARD, policy drop (hint: let them pass by `{remedy}`)"
    );
    until("the condition says what drops", || condition(&api) == format!("True PodTrafficDropped {dropped}"));
    until("an Event says so too", || events(&api).contains(&("PodTrafficDropped".into(), dropped.clone())));
    assert!(log().contains(&dropped), "{}", log());
    shell(remedy);
    let up = |said: &str| said.starts_with(UP) && said.contains("iptables-legacy holds chains that flannel left there");
    until("flannel is up again, and names what is left over", || up(&condition(&api)));
    until("what is left over is an Event", || events(&api).iter().any(|(reason, _)| reason == "LeftoverRules"));
    let said = condition(&api);
    let removal = said.split('`').nth(1).unwrap();
    // The chain has no jump here, which the command need not find.
    shell(&format!("set +e; {removal}; ! iptables-legacy-save | grep FLANNEL"));
    until("all is well", || condition(&api) == UP);
    assert!(log().contains("no longer: packets of pods are dropped by table ip filter"), "{}", log());
    drop(daemon);
}

#[test]
fn a_right_that_is_missing_is_named_as_the_rule_to_add() {
    if !rerun_enclosed("a_right_that_is_missing_is_named_as_the_rule_to_add") {
        return;
    }
    let api = start();
    let daemon = Daemon::start(&account(&api, &[("nodes", &["get", "list", "watch"])]));
    let rule = r#"lacks the rule: - {apiGroups: [""], resources: ["nodes/status"], verbs: ["patch"]}"#;
    until("the rule is named", || log().contains(rule));
    assert_eq!(condition(&api), "");
    drop(daemon);
    // A kubelet sees only its own Node, and may write that: it is kept, and the reason named why no other is known.
    let daemon = Daemon::start(&api.kubeconfig("kubelet", &api.node("n1").unwrap()).unwrap());
    until("the kubelet's credential is named", || log().contains("this is a kubelet's credential"));
    drop(daemon);
}
