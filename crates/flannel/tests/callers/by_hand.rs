//! Callers made by hand: what kubelet's runtimes and nomad put into the environment, and the DELs that come late, twice, without a
//! namespace or after a restart of the machine.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::machine::{Machine, PAGE, ROOT, conf_list, fetch, until};
use crate::network::enclosed;

/// What is published of a container.
const PORT: u16 = 8443;

/// A runtime that calls the plugins of a conf list in order, and in the other order for DEL, as libcni does.
pub(crate) struct Caller<'a> {
    machine: &'a Machine,
    list: Value,
    args: &'static str,
    port: Option<u16>,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(machine: &'a Machine, list: Value) -> Self {
        Self { machine, list, args: "", port: Some(PORT) }
    }

    /// The same with other `CNI_ARGS`.
    pub(crate) fn with_args(self, args: &'static str) -> Self {
        Self { args, ..self }
    }

    /// The same, that publishes another port or none.
    pub(crate) fn publishing(self, port: Option<u16>) -> Self {
        Self { port, ..self }
    }

    /// Makes a namespace and connects it: its path, and the result.
    pub(crate) fn add(&self, id: &str) -> (String, Value) {
        self.machine.sh(&format!("ip netns add {id}"));
        let netns = format!("/run/netns/{id}");
        let result = self.try_add(id, &netns).unwrap_or_else(|error| panic!("ADD of {id}: {error}"));
        (netns, result)
    }

    /// Connects a namespace.
    pub(crate) fn try_add(&self, id: &str, netns: &str) -> Result<Value, String> {
        let mut result = None;
        for plugin in self.plugins() {
            result = Some(self.call("ADD", plugin, id, Some(netns), result.as_ref(), &[])?);
        }
        Ok(result.unwrap_or_default())
    }

    /// Disconnects a container, which must succeed.
    pub(crate) fn del(&self, id: &str, netns: Option<&str>, result: Option<&Value>) {
        for plugin in self.plugins().iter().rev() {
            let done = self.call("DEL", plugin, id, netns, result, &[]);
            done.unwrap_or_else(|error| panic!("DEL of {id} in {netns:?}: {error}"));
        }
    }

    /// Verifies that a container is connected.
    pub(crate) fn check(&self, id: &str, netns: &str, result: &Value) -> Result<(), String> {
        self.plugins()
            .iter()
            .try_for_each(|plugin| self.call("CHECK", plugin, id, Some(netns), Some(result), &[]).map(drop))
    }

    /// Asks every plugin whether it is ready.
    fn status(&self) -> Result<(), String> {
        self.plugins().iter().try_for_each(|plugin| self.call("STATUS", plugin, "", None, None, &[]).map(drop))
    }

    /// Frees everything but what belongs to these containers.
    pub(crate) fn gc(&self, valid: &[&str]) {
        for plugin in self.plugins() {
            self.call("GC", plugin, "", None, None, valid).unwrap_or_else(|error| panic!("GC: {error}"));
        }
    }

    fn plugins(&self) -> &[Value] {
        self.list["plugins"].as_array().unwrap()
    }

    fn call(
        &self,
        verb: &str,
        plugin: &Value,
        id: &str,
        netns: Option<&str>,
        result: Option<&Value>,
        valid: &[&str],
    ) -> Result<Value, String> {
        let kind = plugin["type"].as_str().unwrap();
        let mut command = Command::new(Path::new("/opt/cni/bin").join(kind));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("CNI_PATH", "/opt/cni/bin:/usr/lib/cni");
        command.env("CNI_COMMAND", verb).env("CNI_ARGS", self.args).envs(netns.map(|path| ("CNI_NETNS", path)));
        if !id.is_empty() {
            command.env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0");
        }
        let output = self.machine.run(command, &self.conf(plugin, result, valid).to_string());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() { Ok(answer) } else { Err(format!("{kind}: {answer} {}", output.status)) }
    }

    fn conf(&self, plugin: &Value, result: Option<&Value>, valid: &[&str]) -> Value {
        let mut conf = plugin.clone();
        for key in ["cniVersion", "name"] {
            conf[key] = self.list[key].clone();
        }
        if let Some(port) = self.port.filter(|_| plugin["capabilities"]["portMappings"] == true) {
            let published = json!([{ "hostPort": port, "containerPort": 80, "protocol": "tcp" }]);
            conf["runtimeConfig"]["portMappings"] = published;
        }
        if let Some(result) = result {
            conf["prevResult"] = result.clone();
        }
        conf["cni.dev/valid-attachments"] =
            valid.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" })).collect();
        conf
    }
}

/// Has a web server run in a namespace, until the test ends it.
pub(crate) fn serve(machine: &Machine, netns: &str) {
    machine.sh(&format!("nsenter --net={netns} {ROOT}/bin/busybox httpd -p 80 -h {ROOT}/www"));
}

/// Ends what runs in a container's namespace, and that.
pub(crate) fn end(machine: &Machine, id: &str) {
    machine.sh(&format!("ip netns pids {id} | xargs -r kill; ip netns del {id}"));
}

/// The addresses of a result, of any version of its form.
pub(crate) fn addresses(result: &Value) -> BTreeSet<String> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.map(|ip| ip["address"].as_str().unwrap().to_owned()).collect()
}

/// What the node has when no container is left of those it had.
pub(crate) fn baseline(machine: &Machine, caller: &Caller<'_>) -> String {
    let (netns, result) = caller.add("first");
    caller.del("first", Some(&netns), Some(&result));
    machine.sh("ip netns del first");
    machine.traces_without_containers()
}

/// What becomes of a container between ADD and DEL: the script, and the namespace that DEL is told.
const ENDS: [(&str, &str, Option<&str>); 6] = [
    ("the namespace is there", "", Some("/run/netns/c1")),
    ("empty CNI_NETNS", "ip netns del c1", Some("")),
    ("no CNI_NETNS", "ip netns del c1", None),
    ("no such file", "ip netns del c1", Some("/run/netns/c1")),
    ("a file of no namespace", "umount /run/netns/c1", Some("/run/netns/c1")),
    ("a process that ended", "ip netns del c1", Some("/proc/4194303/ns/net")),
];

#[test]
fn del_frees_all_whatever_became_of_the_namespace() {
    if !enclosed("by_hand::del_frees_all_whatever_became_of_the_namespace") {
        return;
    }
    let machine = Machine::start();
    for (backend, version) in [("iptables", "0.4.0"), ("nftables", "1.0.0")] {
        let caller = Caller::new(&machine, conf_list(version, &json!({ "backend": backend })));
        let before = baseline(&machine, &caller);
        for (what, script, netns) in ENDS {
            for has_result in [true, false] {
                let (_, result) = caller.add("c1");
                machine.sh(script);
                let told = has_result.then_some(&result);
                println!("{backend}: {what}, {} prevResult", if has_result { "with" } else { "without" });
                caller.del("c1", netns, told);
                caller.del("c1", netns, told);
                machine.sh("ip netns del c1 2>/dev/null || rm -f /run/netns/c1");
                machine.assert_as_before(&before);
            }
        }
    }
}

/// Containers of before a restart.
const OLD: [&str; 3] = ["old1", "old2", "old3"];

/// After a restart `/run` and the kernel have forgotten all, `/var/lib` has not, and runtimes send DEL before flanneld runs.
#[test]
fn del_after_a_restart_of_the_machine_frees_what_is_on_disk() {
    if !enclosed("by_hand::del_after_a_restart_of_the_machine_frees_what_is_on_disk") {
        return;
    }
    let mut machine = Machine::start();
    let list = || conf_list("1.0.0", &json!({ "backend": "nftables" }));
    let results: Vec<Value> = {
        let caller = Caller::new(&machine, list()).publishing(None);
        OLD.map(|id| caller.add(id).1).into()
    };
    machine.lab.node_mut(0).flanneld.kill().unwrap();
    machine.sh("for netns in $(ip netns | cut -d' ' -f1); do ip netns del $netns; done
         for link in cni0 flannel.1 flannel-v6.1; do ip link del $link; done
         nft flush ruleset; rm -rf /run/flannel");
    let before = machine.traces_without_containers();
    assert_eq!(before.matches("/networks/cbr0/10.").count(), OLD.len(), "{before}");
    let caller = Caller::new(&machine, list());
    for (id, result) in OLD.iter().zip(&results) {
        caller.del(id, Some(""), (*id != OLD[1]).then_some(result));
    }
    let kept = |line: &str| ["/networks/cbr0/", "/flannel/old"].iter().any(|trace| line.contains(trace));
    let after: Vec<&str> = before.lines().filter(|line| !kept(line)).collect();
    assert_eq!(machine.traces().lines().collect::<Vec<_>>(), after);
    let arguments = machine.lab.node(0).arguments().to_vec();
    machine.lab.node_mut(0).start_again(&arguments).unwrap();
    let caller = Caller::new(&machine, list());
    let (netns, result) = caller.add(OLD[0]);
    caller.check(OLD[0], &netns, &result).unwrap();
    caller.del(OLD[0], Some(&netns), Some(&result));
}

const KUBELET: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-6d9c7b-x2x5q;\
                       K8S_POD_INFRA_CONTAINER_ID=1f4e0b7c;K8S_POD_UID=0d3f7c1e-6a45-4d1c-9e64-0c7d5f0a2b11";
const CRI_O: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=1f4e0b7c;\
                     K8S_POD_UID=0d3f7c1e;K8S_POD_UNKNOWN_OF_TOMORROW=a=b";
const NOMAD: &str = "IgnoreUnknown=true;NOMAD_REGION=global;NOMAD_NAMESPACE=default;NOMAD_JOB_ID=web;NOMAD_GROUP_NAME=cache;\
                     NOMAD_ALLOC_ID=3a1f9d44-55bb-4b1a-95a5-7a5a0a6c1d2e";

#[test]
fn what_runtimes_say_besides_changes_nothing() {
    if !enclosed("by_hand::what_runtimes_say_besides_changes_nothing") {
        return;
    }
    let machine = Machine::start();
    for (args, version) in [(KUBELET, "0.3.1"), (CRI_O, "1.0.0"), (NOMAD, "0.4.0"), ("", "1.1.0")] {
        let caller = Caller::new(&machine, conf_list(version, &json!({}))).with_args(args);
        let before = baseline(&machine, &caller);
        let (netns, result) = caller.add("c1");
        assert_eq!((&result["cniVersion"], addresses(&result).len()), (&json!(version), 2), "{result}");
        serve(&machine, &netns);
        for address in machine.addresses() {
            assert_eq!(fetch(machine.lab.outside(), (address, PORT).into()), PAGE);
        }
        if version != "0.3.1" {
            caller.check("c1", &netns, &result).unwrap();
            machine.sh(&format!("nsenter --net={netns} ip addr flush dev eth0"));
            let complaint = caller.check("c1", &netns, &result).unwrap_err();
            assert!(complaint.contains("eth0"), "{complaint}");
        }
        caller.del("c1", Some(&netns), Some(&result));
        end(&machine, "c1");
        machine.assert_as_before(&before);
    }
}

/// Version 1.1.0: STATUS while the daemon comes and goes, and GC of some of many.
#[test]
fn status_and_gc() {
    if !enclosed("by_hand::status_and_gc") {
        return;
    }
    let mut machine = Machine::start();
    let list = || conf_list("1.1.0", &json!({ "backend": "nftables" }));
    {
        let caller = Caller::new(&machine, list()).publishing(None);
        caller.status().unwrap();
        let results = ["c1", "c2", "c3"].map(|id| caller.add(id).1);
        let lost = machine.traces();
        machine.sh("ip netns del c3");
        caller.gc(&["c1", "c2"]);
        for id in ["c1", "c2"] {
            assert!(machine.traces().contains(&format!("/var/lib/cni/flannel/{id}")));
        }
        until("c3 is not freed", || (!machine.traces().contains("/var/lib/cni/flannel/c3")).then_some(()));
        let address =
            addresses(&results[2]).iter().map(|net| net.split('/').next().unwrap().to_owned()).next().unwrap();
        assert!(lost.contains(&address) && !machine.traces().contains(&address), "{address}");
        for (id, result) in ["c1", "c2"].iter().zip(&results) {
            caller.check(id, &format!("/run/netns/{id}"), result).unwrap();
        }
        caller.gc(&[]);
        until("all are not freed", || (!machine.traces().contains("/var/lib/cni/flannel/c")).then_some(()));
    }
    machine.lab.node_mut(0).flanneld.stop().unwrap();
    machine.sh("rm /run/flannel/subnet.env");
    let complaint = Caller::new(&machine, list()).status().unwrap_err();
    assert!(complaint.contains("\"code\":50"), "{complaint}");
    let arguments = machine.lab.node(0).arguments().to_vec();
    machine.lab.node_mut(0).start_again(&arguments).unwrap();
    Caller::new(&machine, list()).status().unwrap();
}
