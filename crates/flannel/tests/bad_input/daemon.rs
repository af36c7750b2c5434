//! Hosts, stores and configurations that `flanneld` cannot work with, or only in part.

use super::{Case, goes_on, refused};

/// It goes on and becomes ready.
const fn warned(wrong: &'static str, before: &'static str, command: &'static str, warns: &'static str) -> Case {
    goes_on(wrong, before, command, warns, "ready")
}

/// A configuration that is waited for to become right, while nothing is done to the host.
const fn config(wrong: &'static str, before: &'static str, warns: &'static str) -> Case {
    goes_on(wrong, before, START, warns, "warned && untouched && not_ready 'config'")
}

const START: &str = "flanneld --local-store=store --healthz-port=8081";

pub(super) const CASES: &[Case] = &[
    config(
        "config that is not JSON",
        "eth0; config '{\"Network\":'",
        "not ready: network config is not a JSON object: EOF while parsing a value at line 1 column 11 (hint: the least it may hold is {\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}})",
    ),
    config(
        "config that is no object",
        "eth0; config '[]'",
        "not ready: network config is not a JSON object: invalid type: sequence, expected an object at line 1 column 0 (hint: the least it may hold is {\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}})",
    ),
    config(
        "no config yet",
        "eth0; mkdir store",
        "not ready: cannot read store/config.json: No such file or directory (os error 2) (hint: the store is a directory with a config.json; create both, or correct --local-store)",
    ),
    goes_on(
        "store that does not answer",
        "eth0; mkdir store; mkfifo store/config.json",
        "timeout -k 5 60 flanneld --local-store=store --healthz-port=8081",
        "",
        "not_ready 'waiting for the network config' && untouched",
    ),
    config(
        "Network of the wrong type",
        "eth0; config '{\"Network\":10,\"Backend\":{\"Type\":\"vxlan\"}}'",
        "not ready: network config: Network 10 is not an IPv4 network (hint: for example \"Network\": \"10.244.0.0/16\")",
    ),
    config(
        "Network that is too small",
        "eth0; config '{\"Network\":\"10.244.0.0/29\",\"Backend\":{\"Type\":\"vxlan\"}}'",
        "not ready: network config: Network 10.244.0.0/29 is too small to be divided among nodes (hint: use a network of at most /28)",
    ),
    config(
        "SubnetMin outside Network",
        "eth0; config '{\"Network\":\"10.244.0.0/16\",\"SubnetMin\":\"10.9.0.0\",\"Backend\":{\"Type\":\"vxlan\"}}'",
        "not ready: network config: SubnetMin 10.9.0.0 lies outside 10.244.0.0/16 (hint: use an address from 10.244.0.0 to 10.244.255.255)",
    ),
    config(
        "IPv6 without IPv6Network",
        "eth0; config '{\"Network\":\"10.244.0.0/16\",\"EnableIPv6\":true,\"Backend\":{\"Type\":\"vxlan\"}}'",
        "not ready: network config has no IPv6Network: EnableIPv6 is true (hint: set \"IPv6Network\": \"2001:db8:42::/56\", or \"EnableIPv6\": false)",
    ),
    config(
        "no backend",
        "eth0; config '{\"Network\":\"10.244.0.0/16\"}'",
        "not ready: network config has no Backend: the default is udp, which is not supported (hint: set \"Backend\": {\"Type\": \"vxlan\"} or {\"Type\": \"host-gw\"})",
    ),
    config(
        "unknown backend",
        "eth0; config '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"magic\"}}'",
        "not ready: network config: Backend.Type \"magic\" is no backend (hint: set \"Backend\": {\"Type\": \"vxlan\"} or {\"Type\": \"host-gw\"})",
    ),
    config(
        "backend of other builds",
        "eth0; config '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"udp\"}}'",
        "not ready: network config: Backend.Type \"udp\" is not supported (hint: set \"Backend\": {\"Type\": \"vxlan\"} or {\"Type\": \"host-gw\"})",
    ),
    warned(
        "unknown backend option",
        "eth0; config \"$(only '\"EnableNFTables\":true,\"Backend\":{\"Type\":\"vxlan\",\"Colour\":1}')\"",
        START,
        "network config: backend vxlan has no option Colour; it has no effect",
    ),
    warned(
        "unknown key",
        "eth0; config \"$(only '\"Colour\":1,\"EnableNFTables\":true,\"Backend\":{\"Type\":\"vxlan\"}')\"",
        START,
        "network config: key Colour is unknown and has no effect",
    ),
    warned(
        "MTU that the interface does not carry",
        "eth0; config \"$(only '\"EnableNFTables\":true,\"Backend\":{\"Type\":\"vxlan\",\"MTU\":9000}')\"",
        START,
        "network config: Backend.MTU 9000 is more than eth0 carries: its MTU, 1500, is used",
    ),
    config(
        "VNI out of range",
        "eth0; config '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"vxlan\",\"VNI\":16777216}}'",
        "not ready: network config: Backend.VNI 16777216 is not a number from 0 to 16777215 (hint: for example \"VNI\": 1)",
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
    warned(
        "two interfaces match",
        "eth0; good; ip addr add 198.51.100.1/24 dev eth1",
        "flanneld --local-store=store --healthz-port=8081 --iface-regex=^eth",
        "several interfaces match for IPv4 (eth1, eth0): the first is taken, eth1",
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
    warned(
        "public IP of no interface",
        "eth0; good",
        "flanneld --local-store=store --healthz-port=8081 --public-ip=203.0.113.1",
        "public address 203.0.113.1 is on no interface of this host (NAT?): it is published, and packets leave by the default route's interface",
    ),
    refused(
        "MTU too small",
        "eth0; good; ip link set eth0 mtu 100",
        START,
        "error: eth0 has MTU 100, which leaves 50 for pods: less than IPv4 needs (68)\n\
         hint: raise the interface's MTU, or set a larger MTU in the network configuration's Backend",
    ),
    config(
        "store directory absent",
        "eth0",
        "not ready: cannot read store/config.json: No such file or directory (os error 2) (hint: the store is a directory with a config.json; create both, or correct --local-store)",
    ),
    config(
        "store that is a file",
        "eth0; touch store",
        "not ready: cannot read store/config.json: Not a directory (os error 20) (hint: the store is a directory with a config.json; create both, or correct --local-store)",
    ),
    refused(
        "store not writable",
        "eth0; good; mount --bind store store; mount -o remount,ro,bind store",
        START,
        "error: cannot make directory store/subnets: Read-only file system (os error 30)\n\
         hint: flanneld must be allowed to read and write in the store's directory",
    ),
    goes_on(
        "corrupt record",
        "eth0; good; peer 7; record 10.244.9.0-24 '{bad'",
        START,
        "lease 10.244.9.0-24 is skipped: record: is not a JSON object: key must be a string at line 1 column 2",
        "ready && routed 10.244.7.0/24",
    ),
    goes_on(
        "half a record",
        "eth0; good; peer 7; record 10.244.9.0-24 '{\"PublicIP\":\"192.0.2.9\",\"Backe'",
        START,
        "lease 10.244.9.0-24 is skipped: record: is not a JSON object: EOF while parsing a string at line 1 column 30",
        "ready && routed 10.244.7.0/24",
    ),
    goes_on(
        "record of no subnet",
        "eth0; good; peer 7; record garbage '{}'",
        START,
        "lease garbage is skipped: key: `garbage` is not an IPv4 subnet like 10.5.52.0-24",
        "ready && routed 10.244.7.0/24",
    ),
    goes_on(
        "record that is a directory",
        "eth0; good; peer 7; mkdir -p store/subnets/10.244.9.0-24.json",
        START,
        "lease 10.244.9.0-24 is skipped: record: is not readable: Is a directory (os error 21)",
        "ready && routed 10.244.7.0/24",
    ),
    goes_on(
        "files that are no records",
        "eth0; good; peer 7; touch store/subnets/notes.txt store/subnets/.10.244.8.0-24.json store/subnets/10.244.8.0-24.json~; head -c 9 /dev/urandom >store/core",
        START,
        "",
        "ready && routed 10.244.7.0/24",
    ),
    goes_on(
        "health port taken",
        "eth0; good; occupy tcp 8081 1",
        START,
        "no health server on 0.0.0.0:8081: Address already in use (os error 98); probes will fail, the network works",
        "programmed",
    ),
    goes_on(
        "UDP port taken",
        "eth0; good; occupy udp 8472; devices >../devices; ",
        START,
        "this node: cannot set link flannel.1 mtu 1450 state UP MAC vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning: Address already in use: another program has UDP port 8472 (hint: find it by `ss -ulpn sport = :8472`, or set another Port in the network config's Backend)",
        "not_ready 'flannel.1' && devices | cmp - ../devices",
    ),
    goes_on(
        "device of our name but another type",
        "eth0; good; ip link add flannel.1 type veth peer name other; devices >../devices; ",
        START,
        "this node: cannot set link flannel.1 mtu 1450 state UP MAC vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning: a device of that name but of kind veth is there and not flannel's (hint: rename it, or ip link delete flannel.1)",
        "not_ready 'flannel.1' && devices | cmp - ../devices",
    ),
    goes_on(
        "VNI taken by another device",
        "eth0; good; ip link add vx type vxlan id 1 dstport 8472 dev eth0; devices >../devices; ",
        START,
        "this node: cannot set link flannel.1 mtu 1450 state UP MAC vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning: A VXLAN device with the specified VNI already exists (File exists): device vx has its VNI and port (hint: ip link delete vx, or set another VNI or Port in the network config's Backend)",
        "not_ready 'flannel.1' && devices | cmp - ../devices",
    ),
    warned(
        "no br_netfilter",
        "eth0; iptables_mode; mount -t tmpfs none /proc/sys/net/bridge; program modprobe 'echo modprobe: FATAL: Module $1 not found >&2; exit 1'",
        START,
        "/proc/sys/net/bridge/bridge-nf-call-iptables does not exist: packets between pods of this node bypass iptables, services may not work for them: WORLD/bin/modprobe failed (exit status: 1): modprobe: FATAL: Module br_netfilter not found (hint: modprobe br_netfilter on the host)",
    ),
    warned(
        "sysctl read-only",
        "eth0; good; mount --bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys",
        START,
        "cannot set sysctl net.ipv6.conf.flannel.1.accept_ra=0: /proc/sys is mounted read-only (is the container privileged?); going on without",
    ),
    warned(
        "no iptables programs",
        "eth0; iptables_mode",
        "PATH=$PWD/../bin flanneld --local-store=store --healthz-port=8081 --ip-masq",
        "the network config does not say EnableNFTables, but no program of iptables is here: the packet rules are in nf_tables all the same, in the tables flannel-ipv4 and flannel-ipv6",
    ),
    warned(
        "words without effect",
        "eth0; good",
        "flanneld --local-store=store --healthz-port=8081 --ip-masq false",
        "word 4 of the command line and all after it have no effect: flags end at the first word that is none; to switch one off, write `-flag=false`",
    ),
    warned(
        "broken subnet.env",
        "eth0; good; mkdir /run/flannel; echo FLANNEL_MTU=big >/run/flannel/subnet.env",
        START,
        "/run/flannel/subnet.env: FLANNEL_MTU=big is not a number of bytes; it will be written anew",
    ),
    refused(
        "subnet.env that is a directory",
        "eth0; good; mkdir -p /run/flannel/subnet.env",
        START,
        "error: cannot write /run/flannel/subnet.env: is a directory\n\
         hint: make the directory writable, or name another file with --subnet-file",
    ),
    refused(
        "no CAP_NET_ADMIN",
        "eth0; good",
        "setpriv --bounding-set=-net_admin --inh-caps=-net_admin flanneld --local-store=store",
        "error: flanneld may not change this host's network: nf_tables: Operation not permitted\n\
         hint: run it as root or with CAP_NET_ADMIN, in Kubernetes with capabilities add NET_ADMIN and NET_RAW",
    ),
    refused(
        "subnet file that cannot be written",
        "eth0; good",
        "flanneld --local-store=store --subnet-file=/proc/flannel/subnet.env",
        "error: cannot write /proc/flannel/subnet.env: No such file or directory (os error 2)\n\
         hint: make the directory writable, or name another file with --subnet-file",
    ),
];
