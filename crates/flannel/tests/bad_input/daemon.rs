//! Hosts, stores and configurations that `flanneld` cannot work with, or only in part.

use super::{Case, Outcome};

const fn refused(wrong: &'static str, before: &'static str, command: &'static str, says: &'static str) -> Case {
    Case { wrong, before, command, outcome: Outcome::Ends { status: 1, says } }
}

const fn warned(wrong: &'static str, before: &'static str, command: &'static str, says: &'static str) -> Case {
    Case { wrong, before, command, outcome: Outcome::Warns(says) }
}

/// A configuration that is waited for to become right.
const fn config(wrong: &'static str, before: &'static str, says: &'static str) -> Case {
    warned(wrong, before, START, says)
}

const START: &str = "flanneld --local-store=store";

pub(super) const CASES: &[Case] = &[
    config(
        "config that is not JSON",
        "eth0; config '{\"Network\":'",
        "waiting for the network config: network config is not a JSON object: EOF while parsing a value at line 1 column 11 (hint: the least it may hold is {\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}})",
    ),
    config(
        "config that is no object",
        "eth0; config '[]'",
        "waiting for the network config: network config is not a JSON object: invalid type: sequence, expected an object at line 1 column 0 (hint: the least it may hold is {\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}})",
    ),
    config(
        "no config yet",
        "eth0; mkdir store",
        "waiting for the network config: cannot read store/config.json: No such file or directory (os error 2)",
    ),
    config(
        "Network of the wrong type",
        "eth0; config '{\"Network\":10,\"Backend\":{\"Type\":\"vxlan\"}}'",
        "waiting for the network config: network config: Network 10 is not an IPv4 network (hint: for example \"Network\": \"10.244.0.0/16\")",
    ),
    config(
        "Network that is too small",
        "eth0; config '{\"Network\":\"10.244.0.0/29\",\"Backend\":{\"Type\":\"vxlan\"}}'",
        "waiting for the network config: network config: Network 10.244.0.0/29 is too small to be divided among nodes (hint: use a network of at most /28)",
    ),
    config(
        "SubnetMin outside Network",
        "eth0; config '{\"Network\":\"10.244.0.0/16\",\"SubnetMin\":\"10.9.0.0\",\"Backend\":{\"Type\":\"vxlan\"}}'",
        "waiting for the network config: network config: SubnetMin 10.9.0.0 lies outside 10.244.0.0/16 (hint: use an address from 10.244.0.0 to 10.244.255.255)",
    ),
    config(
        "IPv6 without IPv6Network",
        "eth0; config '{\"Network\":\"10.244.0.0/16\",\"EnableIPv6\":true,\"Backend\":{\"Type\":\"vxlan\"}}'",
        "waiting for the network config: network config has no IPv6Network: EnableIPv6 is true (hint: set \"IPv6Network\": \"2001:db8:42::/56\", or \"EnableIPv6\": false)",
    ),
    config(
        "no backend",
        "eth0; config '{\"Network\":\"10.244.0.0/16\"}'",
        "waiting for the network config: network config has no Backend: the default is udp, which is not supported (hint: set \"Backend\": {\"Type\": \"vxlan\"} or {\"Type\": \"host-gw\"})",
    ),
    config(
        "unknown backend",
        "eth0; config '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"magic\"}}'",
        "waiting for the network config: network config: Backend.Type \"magic\" is no backend (hint: set \"Backend\": {\"Type\": \"vxlan\"} or {\"Type\": \"host-gw\"})",
    ),
    config(
        "backend of other builds",
        "eth0; config '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"udp\"}}'",
        "waiting for the network config: network config: Backend.Type \"udp\" is not supported (hint: set \"Backend\": {\"Type\": \"vxlan\"} or {\"Type\": \"host-gw\"})",
    ),
    config(
        "unknown backend option",
        "eth0; config '{\"Network\":\"10.244.0.0/16\",\"EnableNFTables\":true,\"Backend\":{\"Type\":\"vxlan\",\"Colour\":1}}'",
        "network config: backend vxlan has no option Colour; it has no effect",
    ),
    config(
        "VNI out of range",
        "eth0; config '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"vxlan\",\"VNI\":16777216}}'",
        "waiting for the network config: network config: Backend.VNI 16777216 is not a number from 0 to 16777215 (hint: for example \"VNI\": 1)",
    ),
    refused(
        "interface not found",
        "eth0; good",
        "flanneld --local-store=store --iface=eth7",
        "error: no interface matches --iface=eth7 (here are: lo, eth1, eth0)\n\
         hint: correct --iface or --iface-regex, or leave both out to take the default route's",
    ),
    refused(
        "no interface matches",
        "eth0; good",
        "flanneld --local-store=store --iface-regex=^ens",
        "error: no interface matches --iface-regex=^ens (here are: lo, eth1, eth0)\n\
         hint: correct --iface or --iface-regex, or leave both out to take the default route's",
    ),
    refused(
        "no default route",
        "eth0; good; ip route del default",
        START,
        "error: no default route: cannot tell the external interface\n\
         hint: name the interface with --iface, or add a default route",
    ),
    refused(
        "unreachable",
        "eth0; good; ip route del default",
        "flanneld --local-store=store --iface-can-reach=198.51.100.1",
        "error: --iface-can-reach=198.51.100.1: the kernel has no route to it\n\
         hint: add a route to it, or name the interface with --iface",
    ),
    refused(
        "no IPv6 address",
        "eth0; ip addr flush dev eth0 scope link; \
         config '{\"Network\":\"10.244.0.0/16\",\"EnableIPv6\":true,\"IPv6Network\":\"fd00::/48\",\"Backend\":{\"Type\":\"vxlan\"}}'",
        START,
        "error: interface eth0 has no usable IPv6 address, and the network has IPv6 enabled\n\
         hint: give the interface an address of that family, choose another with --iface, or disable the family in the network configuration (EnableIPv4, EnableIPv6)",
    ),
    refused(
        "host-gw behind NAT",
        "eth0; config '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"host-gw\"}}'",
        "flanneld --local-store=store --public-ip=203.0.113.1",
        "error: backend host-gw: public address 203.0.113.1 is not the address of eth0 (192.0.2.1)\n\
         hint: host-gw needs nodes on one link; leave --public-ip out, or use vxlan",
    ),
    refused(
        "MTU too small",
        "eth0; good; ip link set eth0 mtu 100",
        START,
        "error: eth0 has MTU 100, which leaves 50 for pods: less than IPv4 needs (68)\n\
         hint: raise the interface's MTU, or set a larger MTU in the network configuration's Backend",
    ),
    warned(
        "store directory absent",
        "eth0",
        START,
        "waiting for the network config: cannot read store/config.json: No such file or directory (os error 2)",
    ),
    warned(
        "store that is a file",
        "eth0; touch store",
        START,
        "waiting for the network config: cannot read store/config.json: Not a directory (os error 20)",
    ),
    refused(
        "store not writable",
        "eth0; good; mount --bind store store; mount -o remount,ro,bind store",
        START,
        "error: cannot make directory store/subnets: Read-only file system (os error 30)\n\
         hint: flanneld must be allowed to read and write in the store's directory",
    ),
    warned(
        "corrupt record",
        "eth0; good; record 10.244.9.0-24 '{bad'",
        START,
        "lease 10.244.9.0-24: record: is not a JSON object: key must be a string at line 1 column 2",
    ),
    warned(
        "half a record",
        "eth0; good; record 10.244.9.0-24 '{\"PublicIP\":\"192.0.2.9\",\"Backe'",
        START,
        "lease 10.244.9.0-24: record: is not a JSON object: EOF while parsing a string at line 1 column 30",
    ),
    warned(
        "record of no subnet",
        "eth0; good; record garbage '{}'",
        START,
        "lease garbage: key: `garbage` is not an IPv4 subnet like 10.5.52.0-24",
    ),
    warned(
        "health port taken",
        "eth0; good; perl -e 'socket(S,2,1,6);bind(S,pack(\"Sna4x8\",2,8081,\"\\0\"x4));listen(S,1);sleep 60' & sleep 0.3",
        "flanneld --local-store=store --healthz-port=8081",
        "no health server on 0.0.0.0:8081: Address already in use (os error 98); probes will fail, the network works",
    ),
    warned(
        "UDP port taken",
        "eth0; good; perl -e 'socket(S,2,2,17);bind(S,pack(\"Sna4x8\",2,8472,\"\\0\"x4));sleep 60' & sleep 0.3",
        START,
        "Address already in use",
    ),
    warned(
        "device of our name but another type",
        "eth0; good; ip link add flannel.1 type veth peer name other",
        START,
        "a device of that name but of kind veth is there and not flannel's: rename or delete it (ip link delete flannel.1)",
    ),
    warned(
        "VNI taken by another device",
        "eth0; good; ip link add vx type vxlan id 1 dstport 8472 dev eth0",
        START,
        "A VXLAN device with the specified VNI already exists (File exists)",
    ),
    warned(
        "no br_netfilter",
        "eth0; config '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}'; mount -t tmpfs none /proc/sys/net/bridge",
        "flanneld --local-store=store --ip-masq",
        "load the module: `modprobe br_netfilter`)",
    ),
    warned(
        "words without effect",
        "eth0; good",
        "flanneld --local-store=store --ip-masq false",
        "word 3 of the command line and all after it have no effect: flags end at the first word that is none; to switch one off, write `-flag=false`",
    ),
    refused(
        "no CAP_NET_ADMIN",
        "eth0; good",
        "setpriv --bounding-set=-net_admin --inh-caps=-net_admin flanneld --local-store=store",
        "error: cannot open the kernel's netlink sockets: nf_tables: Operation not permitted\n\
         hint: run flanneld as root or with CAP_NET_ADMIN",
    ),
    refused(
        "subnet file that cannot be written",
        "eth0; good",
        "flanneld --local-store=store --subnet-file=/proc/flannel/subnet.env",
        "error: cannot write /proc/flannel/subnet.env: No such file or directory (os error 2)\n\
         hint: make the directory writable, or name another file with --subnet-file",
    ),
];
