//! A network of two nodes and two pods made by hand with `ip`, of the shape that a lab has, to compare its traffic with: cables,
//! bridges and addresses alike, a vxlan device or plain routes between the nodes, and no packet rules but the one that masquerades.
//!
//! What iproute2 does it does in the one namespace it is told, so namespaces are pinned where it finds them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flannel_kernel::namespace::NetNamespace;

/// The network.
#[derive(Debug)]
pub struct ByHand {
    /// Its pods, one on each node.
    pub pods: [NetNamespace; 2],
}

/// The address of the pod on a node.
pub const PODS: [&str; 2] = ["10.244.1.2", "10.244.2.2"];

impl ByHand {
    /// Makes it with the backend `vxlan` or `host-gw`. It is gone when the process is.
    pub fn make(backend: &str) -> Result<Self> {
        fs::create_dir_all("/run/netns")?;
        place("hand-router")?;
        ip("-n hand-router link add seg1 type bridge")?;
        ip("-n hand-router link set seg1 up")?;
        let pods = [node(1, backend)?, node(2, backend)?];
        for (node, peer) in [(1, 2), (2, 1)] {
            connect(node, peer, backend)?;
        }
        Ok(Self { pods })
    }

    /// Lets the nodes masquerade what leaves the network, by one rule: from then on the kernel tracks every connection.
    pub fn masquerade(&self) -> Result<()> {
        for number in 1..=2 {
            let nft = |words: &str| ip(&format!("netns exec hand-node{number} nft {words}"));
            nft("add table ip hand")?;
            nft("add chain ip hand postrouting { type nat hook postrouting priority 100 ; }")?;
            nft("add rule ip hand postrouting ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade")?;
        }
        Ok(())
    }
}

/// A place that forwards.
fn place(name: &str) -> Result<NetNamespace> {
    let place = NetNamespace::create()?;
    place.pin(&Path::new("/run/netns").join(name))?;
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        place.run(|| fs::write(Path::new("/proc/sys").join(key), "1"))?.with_context(|| key.to_owned())?;
    }
    Ok(place)
}

fn node(number: u8, backend: &str) -> Result<NetNamespace> {
    let (here, mtu) = (format!("-n hand-node{number}"), if backend == "vxlan" { 1450 } else { 1500 });
    place(&format!("hand-node{number}"))?;
    let pod = place(&format!("hand-pod{number}"))?;
    for line in [
        format!("{here} link set lo up"),
        format!("{here} link add eth0 type veth peer name node{number} netns hand-router"),
        format!("{here} link set eth0 up"),
        format!("-n hand-router link set node{number} master seg1 up"),
        format!("{here} addr add 192.0.2.{number}/24 dev eth0"),
        format!("{here} link add cni0 type bridge"),
        format!("{here} link set cni0 up mtu {mtu}"),
        format!("{here} addr add 10.244.{number}.1/24 dev cni0"),
        format!("{here} link add veth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns hand-pod{number}"),
        format!("{here} link set veth0 master cni0 up"),
        format!("-n hand-pod{number} link set lo up"),
        format!("-n hand-pod{number} addr add 10.244.{number}.2/24 dev eth0"),
        format!("-n hand-pod{number} link set eth0 up"),
        format!("-n hand-pod{number} route add default via 10.244.{number}.1"),
    ] {
        ip(&line)?;
    }
    Ok(pod)
}

/// The way from a node to the pods of the other.
fn connect(node: u8, peer: u8, backend: &str) -> Result<()> {
    let here = format!("-n hand-node{node}");
    if backend != "vxlan" {
        return ip(&format!("{here} route add 10.244.{peer}.0/24 via 192.0.2.{peer} dev eth0"));
    }
    let device = format!("dev hand.1 lladdr 02:00:00:00:00:0{peer} nud permanent");
    ip(&format!(
        "{here} link add hand.1 address 02:00:00:00:00:0{node} mtu 1450 type vxlan id 1 local 192.0.2.{node} dev eth0 dstport 8472 nolearning"
    ))?;
    ip(&format!("{here} addr add 10.244.{node}.0/32 dev hand.1"))?;
    ip(&format!("{here} link set hand.1 up"))?;
    ip(&format!("{here} neigh add 10.244.{peer}.0 {device}"))?;
    let entry =
        format!("netns exec hand-node{node} bridge fdb append 02:00:00:00:00:0{peer} dev hand.1 dst 192.0.2.{peer}");
    ip(&entry)?;
    ip(&format!("{here} route add 10.244.{peer}.0/24 via 10.244.{peer}.0 dev hand.1 onlink"))
}

fn ip(line: &str) -> Result<()> {
    let output = Command::new("ip").args(line.split(' ')).output().context("ip (of the package iproute2)")?;
    ensure!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
