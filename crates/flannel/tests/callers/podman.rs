//! podman as the caller, with published ports. It gives the namespace by a file, keeps it over the life of a container, and sends
//! arguments that no plugin knows.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::by_hand::Caller;
use crate::machine::{DEBIANS, Machine, ROOT, RUNC, SERVE, conf_list, remove_groups};
use crate::network::enclosed;

/// The control group of its containers.
const GROUP: &str = "flannel-test-podman";
const CONTAINERS: &str = r#"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
static_dir = "/run/podman-here/libpod"
tmp_dir = "/run/podman-here/tmp"
volume_path = "/run/podman-here/volumes"
[engine.runtimes]
runc = ["/run/runc-here"]
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[network]
network_backend = "cni"
network_config_dir = "/etc/cni/net.d"
cni_plugin_dirs = ["/opt/cni/bin"]
"#;
const STORAGE: &str = r#"
[storage]
driver = "vfs"
graphroot = "/run/podman-here/graph"
runroot = "/run/podman-here/runroot"
"#;
const PORT: u16 = 18080;

/// podman on a machine.
struct Podman<'a>(&'a Machine);

impl<'a> Podman<'a> {
    fn on(machine: &'a Machine) -> Self {
        assert!(CONTAINERS.contains(RUNC));
        machine.write("containers.conf", CONTAINERS);
        machine.write("storage.conf", STORAGE);
        Self(machine)
    }

    fn command(words: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", "/run/containers.conf").env("CONTAINERS_STORAGE_CONF", "/run/storage.conf");
        command.env_remove("XDG_RUNTIME_DIR").args(words);
        command
    }

    /// Runs a command of podman: what it prints, or what it complains about.
    fn tried(&self, words: &[&str]) -> Result<String, String> {
        let output = self.0.run(Self::command(words), "");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn podman(&self, words: &[&str]) -> String {
        self.tried(words).unwrap_or_else(|complaint| panic!("podman {words:?}: {complaint}"))
    }

    fn try_run(&self, name: &str, port: u16) -> Result<String, String> {
        let group = format!("--cgroup-parent=/{GROUP}");
        let publish = format!("{port}:80");
        let words = ["run", "--detach", "--name", name, "--network", "cbr0", &group, "--publish", &publish];
        self.tried(&[words.as_slice(), &["--rootfs", ROOT, SERVE]].concat())
    }

    /// Starts a container that publishes its web server; its whole name.
    fn run(&self, name: &str, port: u16) -> String {
        self.try_run(name, port).unwrap_or_else(|complaint| panic!("podman run {name}: {complaint}"))
    }

    /// What runs in a container.
    fn enter(name: &'static str) -> impl Fn(&[&str]) -> Command {
        move |words| Self::command(&[&["exec", "--interactive", name], words].concat())
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        _ = self.tried(&["rm", "--force", "--all", "--time", "0"]);
        remove_groups(GROUP);
    }
}

fn conf(backend: &str) -> Value {
    conf_list("1.0.0", &json!({ "backend": backend }))
}

#[test]
fn a_container_comes_and_goes() {
    if !enclosed("podman::a_container_comes_and_goes") {
        return;
    }
    let machine = Machine::start();
    let podman = Podman::on(&machine);
    for backend in ["iptables", "nftables"] {
        machine.write("net.d/10-flannel.conflist", &conf(backend).to_string());
        podman.run("first", PORT);
        podman.podman(&["rm", "--force", "first"]);
        let before = machine.traces_without_containers();
        let id = podman.run("web", PORT);
        let result = machine.cached(&id);
        machine.assert_published(PORT, &Podman::enter("web"));
        machine.assert_reaches_all(&result, &Podman::enter("web"));
        podman.podman(&["restart", "web"]);
        let again = machine.cached(&id);
        assert_ne!(again["ips"], result["ips"]);
        machine.assert_published(PORT, &Podman::enter("web"));
        podman.podman(&["stop", "web"]);
        machine.assert_as_before(&before);
        machine.assert_unpublished(PORT);
        podman.podman(&["start", "web"]);
        machine.assert_published(PORT, &Podman::enter("web"));
        podman.podman(&["kill", "web"]);
        podman.podman(&["rm", "--force", "web"]);
        machine.assert_as_before(&before);
    }
}

#[test]
fn a_port_that_is_taken_is_told_and_leaves_nothing() {
    if !enclosed("podman::a_port_that_is_taken_is_told_and_leaves_nothing") {
        return;
    }
    let machine = Machine::start();
    let podman = Podman::on(&machine);
    machine.write("net.d/10-flannel.conflist", &conf("nftables").to_string());
    let id = podman.run("web", PORT);
    let before = machine.traces();
    let complaint = podman.try_run("late", PORT).unwrap_err();
    assert!(
        complaint.contains(&format!("host port {PORT}/tcp is taken by ")) && complaint.contains(&id),
        "{complaint}"
    );
    podman.podman(&["rm", "--force", "late"]);
    machine.assert_as_before(&before);
    machine.assert_published(PORT, &Podman::enter("web"));
}

/// Containers of the Go plugins end under ours, and the other way round.
#[test]
fn containers_outlive_an_exchange_of_plugins() {
    if !enclosed("podman::containers_outlive_an_exchange_of_plugins") {
        return;
    }
    let machine = Machine::start();
    let podman = Podman::on(&machine);
    machine.write("net.d/10-flannel.conflist", &conf_list("1.0.0", &json!({})).to_string());
    podman.run("first", PORT);
    podman.podman(&["rm", "--force", "first"]);
    let before = machine.traces_without_containers();
    machine.put_plugins(Path::new(DEBIANS));
    let id = podman.run("web", PORT);
    machine.cached(&id);
    machine.install_ours();
    machine.assert_published(PORT, &Podman::enter("web"));
    podman.podman(&["restart", "web"]);
    machine.cached(&id);
    machine.assert_published(PORT, &Podman::enter("web"));
    machine.put_plugins(Path::new(DEBIANS));
    podman.podman(&["rm", "--force", "web"]);
    machine.assert_unpublished(PORT);
    // What only ours knows of that container is in no one's way, and not for ever.
    machine.install_ours();
    podman.run("next", PORT);
    machine.assert_published(PORT, &Podman::enter("next"));
    podman.podman(&["rm", "--force", "next"]);
    Caller::new(&machine, conf_list("1.1.0", &json!({}))).gc(&[]);
    machine.assert_as_before(&before);
}
