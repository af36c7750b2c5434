//! containerd as the caller, by `ctr run --cni`. It looks for plugins in `/opt/cni/bin`, gives the namespace by the number of a process,
//! and sends DEL without one.
//!
//! It publishes no ports by itself, so the conf list says which.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::by_hand::Caller;
use crate::machine::{Machine, PAGE, ROOT, RUNC, SERVE, conf_list, fetch, remove_groups, until};
use crate::network::enclosed;

const SOCKET: &str = "/run/containerd-here/socket";
/// The namespace of its containers, which their control group and their names in CNI begin with.
const NAMESPACE: &str = "flannel-test-containerd";
const CONFIG: &str = r#"
version = 2
root = "/run/containerd-here/root"
state = "/run/containerd-here/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "/run/containerd-here/socket"
[ttrpc]
address = "/run/containerd-here/ttrpc"
"#;
const PORT: u16 = 8080;

/// A containerd on a machine.
struct Containerd<'a> {
    machine: &'a Machine,
    daemon: Child,
}

impl<'a> Containerd<'a> {
    fn start(machine: &'a Machine) -> Self {
        machine.write("containerd.toml", CONFIG);
        let log = File::create(machine.node().run().join("containerd.log")).unwrap();
        let mut command = Command::new("containerd");
        command.args(["--config", "/run/containerd.toml"]).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let containerd = Self { machine, daemon: machine.node().place().spawn(command).unwrap() };
        until("containerd does not answer", || containerd.ctr(&["version"]).then_some(()));
        containerd
    }

    fn command(words: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.env("CONTAINERD_ADDRESS", SOCKET).env("CONTAINERD_NAMESPACE", NAMESPACE).args(words);
        command
    }

    /// Whether a command of `ctr` succeeds.
    fn ctr(&self, words: &[&str]) -> bool {
        self.machine.run(Self::command(words), "").status.success()
    }

    /// What runs in a container.
    fn enter(id: &'static str) -> impl Fn(&[&str]) -> Command {
        move |words| Self::command(&[&["task", "exec", "--exec-id", "inside", id], words].concat())
    }

    /// Starts a container that this waits for, so that its end ends the network too.
    fn run(&self, id: &str) -> Child {
        let mut command = Self::command(&["run", "--rm", "--cni", "--runc-binary", RUNC, "--rootfs", ROOT, id, SERVE]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.machine.node().place().spawn(command).unwrap()
    }

    /// Ends it by a signal.
    fn end(&self, id: &str, running: Child, signal: &str) {
        assert!(self.ctr(&["task", "kill", "--signal", signal, id]));
        let output = running.wait_with_output().unwrap();
        let expected = if signal == "SIGTERM" { 0 } else { 137 };
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(expected), &b""[..]), "{output:?}");
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        _ = self.daemon.kill();
        _ = self.daemon.wait();
        remove_groups(NAMESPACE);
    }
}

fn conf(backend: &str) -> Value {
    let published = json!([{ "hostPort": PORT, "containerPort": 80, "protocol": "tcp" }]);
    conf_list("1.0.0", &json!({ "backend": backend, "runtimeConfig": { "portMappings": published } }))
}

#[test]
fn a_container_comes_and_goes() {
    if !enclosed("containerd::a_container_comes_and_goes") {
        return;
    }
    let machine = Machine::start();
    let containerd = Containerd::start(&machine);
    for backend in ["iptables", "nftables"] {
        machine.write("net.d/10-flannel.conflist", &conf(backend).to_string());
        let running = containerd.run("first");
        fetch(machine.lab.outside(), (machine.addresses()[0], PORT).into());
        containerd.end("first", running, "SIGTERM");
        let before = machine.traces_without_containers();
        assert!(!before.contains("first"), "{before}");
        for signal in ["SIGTERM", "SIGKILL"] {
            let running = containerd.run("c1");
            machine.assert_published(PORT, &Containerd::enter("c1"));
            let result = machine.cached(&format!("{NAMESPACE}-c1"));
            machine.assert_reaches_all(&result, &Containerd::enter("c1"));
            containerd.end("c1", running, signal);
            machine.assert_as_before(&before);
            machine.assert_unpublished(PORT);
        }
    }
}

/// containerd 1.6 sends no DEL for a container that nobody waits for.
#[test]
fn what_it_forgets_is_freed_by_del_and_by_gc() {
    if !enclosed("containerd::what_it_forgets_is_freed_by_del_and_by_gc") {
        return;
    }
    let machine = Machine::start();
    let containerd = Containerd::start(&machine);
    machine.write("net.d/10-flannel.conflist", &conf("nftables").to_string());
    let running = containerd.run("first");
    fetch(machine.lab.outside(), (machine.addresses()[0], PORT).into());
    containerd.end("first", running, "SIGTERM");
    let before = machine.traces_without_containers();
    let caller = Caller::new(&machine, conf_list("1.1.0", &json!({ "backend": "nftables" })));
    for way in ["DEL", "GC"] {
        let words = ["run", "--detach", "--cni", "--runc-binary", RUNC, "--rootfs", ROOT, "lost", SERVE];
        assert!(containerd.ctr(&words));
        assert_eq!(fetch(machine.lab.outside(), (machine.addresses()[0], PORT).into()), PAGE);
        let id = format!("{NAMESPACE}-lost");
        let result = machine.cached(&id);
        assert!(containerd.ctr(&["task", "kill", "--signal", "SIGKILL", "lost"]));
        until("the task does not end", || containerd.ctr(&["task", "rm", "lost"]).then_some(()));
        assert!(containerd.ctr(&["container", "rm", "lost"]));
        let left = machine.traces();
        assert!(left.contains(&id) && left != before, "{left}");
        match way {
            "DEL" => caller.del(&id, result["interfaces"][2]["sandbox"].as_str(), Some(&result)),
            _ => caller.gc(&[]),
        }
        fs::remove_file(machine.kept("results").join(format!("cbr0-{id}-eth0"))).unwrap();
        machine.assert_as_before(&before);
    }
}
