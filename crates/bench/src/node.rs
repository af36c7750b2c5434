//! Nodes of Kubernetes as real clusters have them, of about 8 KiB of JSON each.
//!
//! Surface: [`node`], [`of_peer`], [`heartbeat`]. What flannel does not read is there for its size: the API server sends it to who
//! asks for whole Nodes, as kubelets, controllers and its own field managers make it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use crate::ground::Peer;

/// What a kubelet says of its node each time.
const CONDITIONS: [(&str, &str, &str, &str); 4] = [
    ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
];
/// How many images a node tells of: with so many it is of about 8 KiB.
const IMAGES: u32 = 21;
const BEGUN: &str = "2026-01-01T00:00:00Z";

/// A Node that flannel does not run on yet.
pub fn node(name: &str, address: Ipv4Addr, pod_cidr: Ipv4Net) -> Value {
    let pod_cidr = pod_cidr.to_string();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": labels(name), "annotations": {
            "kubeadm.alpha.kubernetes.io/cri-socket": "unix:///run/containerd/containerd.sock",
            "node.alpha.kubernetes.io/ttl": "30",
            "volumes.kubernetes.io/controller-managed-attach-detach": "true",
        }},
        "spec": { "podCIDR": pod_cidr, "podCIDRs": [pod_cidr], "providerID": format!("example:///zone-1/{name}") },
        "status": status(name, address),
    })
}

/// The Node of a peer that flannel runs on, by vxlan.
pub fn of_peer(peer: Peer) -> Value {
    let mut node = node(&peer.name(), peer.public_ip(), peer.pod_cidr());
    let vtep = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, peer.mac());
    let annotations = [
        ("backend-data", vtep),
        ("backend-type", "vxlan".to_owned()),
        ("kube-subnet-manager", "true".to_owned()),
        ("public-ip", peer.public_ip().to_string()),
    ];
    for (name, value) in annotations {
        node["metadata"]["annotations"][format!("flannel.alpha.coreos.com/{name}")] = value.into();
    }
    node
}

/// The strategic merge patch of the status that a kubelet sends while all is well, the n-th time.
pub fn heartbeat(number: u32) -> String {
    let time = format!(
        "2026-01-{:02}T{:02}:{:02}:{:02}Z",
        2 + number / 86_400 % 28,
        number / 3600 % 24,
        number / 60 % 60,
        number % 60
    );
    let beat = |(kind, ..): &(&str, &str, &str, &str)| json!({ "type": kind, "lastHeartbeatTime": time });
    json!({ "status": { "conditions": CONDITIONS.iter().map(beat).collect::<Vec<_>>() } }).to_string()
}

fn labels(name: &str) -> Value {
    json!({
        "beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        "kubernetes.io/os": "linux", "kubernetes.io/hostname": name, "node.kubernetes.io/instance-type": "standard-8",
        "topology.kubernetes.io/region": "region-1", "topology.kubernetes.io/zone": "zone-1",
        "node.example.org/pool": "workers", "node.example.org/generation": "12",
    })
}

fn status(name: &str, address: Ipv4Addr) -> Value {
    let room = json!({ "cpu": "8", "ephemeral-storage": "203070420Ki", "hugepages-1Gi": "0", "hugepages-2Mi": "0",
        "memory": "32881564Ki", "pods": "110" });
    json!({
        "addresses": [{ "type": "InternalIP", "address": address }, { "type": "Hostname", "address": name }],
        "allocatable": room, "capacity": room,
        "conditions": CONDITIONS.map(|(kind, status, reason, message)| json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": BEGUN, "lastTransitionTime": BEGUN,
        })),
        "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } },
        "images": (0..IMAGES).map(image).collect::<Vec<_>>(),
        "nodeInfo": {
            "architecture": "amd64", "bootID": "a3fe0d7e-9d2b-4a0e-8f25-1f7d24c3b0a5", "containerRuntimeVersion": "containerd://2.1.4",
            "kernelVersion": "6.12.43+deb13-amd64", "kubeProxyVersion": "", "kubeletVersion": "v1.34.4",
            "machineID": "c5b1f3a2e6d94f0f9a7b8c1d2e3f4a5b", "operatingSystem": "linux",
            "osImage": "Debian GNU/Linux 13 (trixie)", "systemUUID": "c5b1f3a2-e6d9-4f0f-9a7b-8c1d2e3f4a5b",
        },
    })
}

fn image(number: u32) -> Value {
    let repository = format!("registry.example.org/team-{number}/service-{number}");
    let digest = format!("{number:02x}").repeat(32);
    json!({ "names": [format!("{repository}@sha256:{digest}"), format!("{repository}:v1.{number}.0")], "sizeBytes": 31_415_926 + number })
}
