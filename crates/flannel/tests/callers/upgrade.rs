//! A node that is given our plugins in the place of the Go plugins, or the other way round, with twenty pods running.
//!
//! flannel is ours all the time, with the Go plugins as its delegates, as they are flannel's in Go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use flannel_core::addr::Family;
use flannel_lab::build::Build;
use flannel_lab::echo;
use flannel_lab::traffic::Pinger;
use serde_json::{Value, json};

use crate::by_hand::{Caller, addresses, baseline, end, serve};
use crate::machine::{DEBIANS, Machine, PAGE, conf_list, fetch, released};
use crate::network::enclosed;

/// A container of the node.
struct Container {
    id: String,
    port: u16,
    netns: String,
    result: Value,
}

/// Containers beside the two pods that are pinged all the time.
const COUNT: u16 = 18;

/// The conf list with the folders that the lab's own pods use, so that all have one store of addresses.
fn list(backend: &str) -> Value {
    let mut list = conf_list("1.0.0", &json!({ "backend": backend }));
    list["plugins"][0]["dataDir"] = "/run/cni/flannel".into();
    list["plugins"][0]["ipam"] = json!({ "dataDir": "/run/cni/networks" });
    list
}

fn caller<'a>(machine: &'a Machine, backend: &str, port: u16) -> Caller<'a> {
    Caller::new(machine, list(backend)).publishing(Some(port))
}

impl Container {
    fn start(machine: &Machine, backend: &str, number: u16) -> Self {
        let (id, port) = (format!("c{number}"), 9000 + number);
        let (netns, result) = caller(machine, backend, port).add(&id);
        serve(machine, &netns);
        Self { id, port, netns, result }
    }

    /// Its addresses and its port are to be had from the other node and from outside.
    fn assert_connected(&self, machine: &Machine) {
        for address in addresses(&self.result) {
            let address: IpAddr = address.split('/').next().unwrap().parse().unwrap();
            let pod = machine.lab.node(1).pods()[0].place();
            let answered = echo::ping(pod, None, address, Duration::from_secs(5)).unwrap();
            assert!(answered.is_some(), "{} at {address}", self.id);
        }
        for address in machine.addresses() {
            assert_eq!(fetch(machine.lab.outside(), (address, self.port).into()), PAGE, "{}", self.id);
        }
    }

    /// CHECK of the plugins that are there finds nothing.
    fn assert_checked(&self, machine: &Machine, backend: &str) {
        let checked = caller(machine, backend, self.port).check(&self.id, &self.netns, &self.result);
        checked.unwrap_or_else(|complaint| panic!("CHECK of {}: {complaint}", self.id));
    }

    fn end(self, machine: &Machine, backend: &str) {
        caller(machine, backend, self.port).del(&self.id, Some(&self.netns), Some(&self.result));
        end(machine, &self.id);
    }
}

fn assert_connected(containers: &[Container], machine: &Machine) {
    for container in containers {
        container.assert_connected(machine);
    }
}

/// Pings between the pods of the lab, of both families.
fn pingers(machine: &Machine) -> Vec<Pinger> {
    let (own, far) = (machine.lab.node(0).pods(), &machine.lab.node(1).pods()[0]);
    let pairs = [(far, &own[0]), (&own[0], &own[1])];
    let start = |(from, to), family| machine.lab.pinger(from, to, family).unwrap();
    Family::ALL.into_iter().flat_map(|family| pairs.map(|pair| start(pair, family))).collect()
}

fn add_pods(machine: &mut Machine) {
    let plugins = machine.bin();
    machine.lab.install(0, Build { cni: Some(plugins), ..Build::default() });
    for (node, pod) in [(0, "pod1-1"), (0, "pod1-2"), (1, "pod2-1")] {
        machine.lab.node_mut(node).add_pod(pod).unwrap();
    }
}

/// Twenty pods of the one, the other in its place; half of them end and new ones start; back again, and all end.
fn exchange(backend: &str, put_go: &dyn Fn(&Machine)) {
    let mut machine = Machine::start();
    let mut before = String::new();
    for put in [&|machine: &Machine| machine.install_ours(), put_go] {
        put(&machine);
        before = baseline(&machine, &caller(&machine, backend, 9000));
    }
    add_pods(&mut machine);
    let machine = machine;
    let mut containers: Vec<Container> =
        (1..=COUNT).map(|number| Container::start(&machine, backend, number)).collect();
    let pingers = pingers(&machine);
    machine.install_ours();
    for container in &containers {
        container.assert_checked(&machine, backend);
    }
    assert_connected(&containers, &machine);
    containers.drain(..usize::from(COUNT / 2)).for_each(|container| container.end(&machine, backend));
    containers.extend((COUNT + 1..=COUNT + COUNT / 2).map(|number| Container::start(&machine, backend, number)));
    let all: BTreeSet<String> = containers.iter().flat_map(|container| addresses(&container.result)).collect();
    assert_eq!(all.len(), containers.len() * 2);
    put_go(&machine);
    assert_connected(&containers, &machine);
    for pinger in pingers {
        let pings = pinger.finish().unwrap();
        assert!(pings.sent > 100 && pings.lost.is_empty(), "{} of {} lost", pings.lost.len(), pings.sent);
    }
    containers.drain(..).for_each(|container| container.end(&machine, backend));
    assert_forgotten(machine, backend, &before);
}

/// Nothing is left of the containers but what only ours have written down, which GC of ours takes.
fn assert_forgotten(mut machine: Machine, backend: &str, before: &str) {
    for pod in ["pod1-1", "pod1-2"] {
        machine.lab.node_mut(0).remove_pod(pod).unwrap();
    }
    machine.install_ours();
    let mut list = list(backend);
    list["cniVersion"] = "1.1.0".into();
    Caller::new(&machine, list).gc(&[]);
    machine.assert_as_before(before);
}

#[test]
fn debians_go_plugins() {
    if enclosed("upgrade::debians_go_plugins") {
        exchange("iptables", &|machine| machine.put_plugins(Path::new(DEBIANS)));
    }
}

#[test]
fn released_go_plugins() {
    if enclosed("upgrade::released_go_plugins") {
        exchange("nftables", &|machine| machine.put_plugins(&released()));
    }
}
