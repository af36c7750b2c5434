//! Calls that the CNI plugins refuse. Codes: 1 version, 4 environment, 6 JSON, 7 configuration, 8 namespace, 50 not ready, 999 other.
//! Here the most common ones; [`calls`] has what is wrong around the configuration, [`keys`] what is wrong in it.

#[path = "plugins/calls.rs"]
pub(super) mod calls;
#[path = "plugins/keys.rs"]
pub(super) mod keys;

use super::{Case, refused};

pub(super) const CASES: &[Case] = &[
    refused(
        "no subnet.env",
        "pod",
        r#"echo '{"cniVersion":"1.0.0","name":"cbr0","type":"flannel"}' | flannel"#,
        "code 999: failed to load flannel 'subnet.env' file: open /run/flannel/subnet.env: no such file or directory. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "subnet.env without a key",
        "pod; subnet_env; sed -i /IPMASQ/d /run/flannel/subnet.env",
        r#"echo '{"cniVersion":"1.0.0","name":"cbr0","type":"flannel"}' | flannel"#,
        "code 999: failed to load flannel 'subnet.env' file: /run/flannel/subnet.env is missing FLANNEL_IPMASQ. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "subnet.env with a broken value",
        "pod; subnet_env; sed -i s/1450/big/ /run/flannel/subnet.env",
        r#"echo '{"cniVersion":"1.0.0","name":"cbr0","type":"flannel"}' | flannel"#,
        "code 999: failed to load flannel 'subnet.env' file: /run/flannel/subnet.env: FLANNEL_MTU=big is not a number of bytes. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "unknown version",
        "pod",
        r#"echo '{"cniVersion":"9.9.9","name":"cbr0","type":"flannel"}' | flannel"#,
        "code 1: incompatible CNI versions: config is \"9.9.9\", plugin supports 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n\
         hint: set `cniVersion` in the network configuration to one of them",
    ),
    refused(
        "unknown command",
        "pod; CNI_COMMAND=RUN",
        "echo '{}' | flannel",
        "code 4: unknown CNI_COMMAND: \"RUN\"\n\
         hint: the verbs are ADD, DEL, CHECK, STATUS, GC, VERSION",
    ),
    refused(
        "no container ID",
        "pod; unset CNI_CONTAINERID",
        r#"echo '{"name":"n"}' | bridge"#,
        "code 4: required env variables [CNI_CONTAINERID] missing\n\
         hint: the container runtime sets them; by hand, see the CNI specification, section Parameters",
    ),
    refused(
        "container ID that is a path",
        "pod; CNI_CONTAINERID=../x",
        r#"echo '{"name":"n"}' | bridge"#,
        "code 4: invalid characters in CNI_CONTAINERID \"../x\"\n\
         hint: letters, digits, `_`, `.` and `-` are allowed, the first one a letter or digit",
    ),
    refused(
        "empty standard input",
        "pod",
        "bridge",
        "code 6: cannot read the network configuration: standard input is empty\n\
         hint: the container runtime writes it there; check the files in /etc/cni/net.d",
    ),
    refused(
        "not JSON",
        "pod",
        "echo '{\"cniVersion\":' | loopback",
        "code 6: network configuration is not JSON: EOF while parsing a value at line 2 column 0\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "wrong type",
        "pod",
        r#"echo '{"cniVersion":"1.0.0","name":7}' | bridge"#,
        "code 7: network configuration: key `name` is not text\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "1 MiB of garbage",
        "pod",
        "head -c 1048576 /dev/zero | tr '\\0' x | flannel",
        "code 6: network configuration is not JSON: expected value at line 1 column 1\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "2 MiB of garbage",
        "pod",
        "head -c 2097152 /dev/zero | tr '\\0' x | flannel",
        "code 6: network configuration on standard input is longer than 1048576 bytes\n\
         hint: the container runtime writes it there; check the files in /etc/cni/net.d",
    ),
    refused(
        "delegate with a name",
        "pod; subnet_env",
        r#"echo '{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","delegate":{"name":"x"}}' | flannel"#,
        "code 7: flannel: 'delegate' dictionary must not have 'name' field, it'll be set by flannel\n\
         hint: correct the network's file in /etc/cni/net.d, usually 10-flannel.conflist",
    ),
    refused(
        "delegate that is not installed",
        "pod; subnet_env",
        r#"echo '{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","delegate":{"type":"ovs"}}' | flannel"#,
        "code 999: failed to find plugin \"ovs\" in path \"WORLD/work/../bin\"\n\
         hint: install the plugin ovs in one of WORLD/work/../bin",
    ),
    refused(
        "namespace gone",
        "pod; subnet_env; ip netns del pod",
        r#"echo '{"cniVersion":"1.0.0","name":"cbr0","type":"flannel"}' | flannel"#,
        "code 8: failed to open netns: cannot open network namespace /run/netns/pod: No such file or directory\n\
         hint: the container is gone, or CNI_NETNS is not the path of its namespace: recreate it",
    ),
    refused(
        "full range",
        "pod; mkdir -p /var/lib/cni/networks/n; touch /var/lib/cni/networks/n/lock; \
         for i in 2 3 4 5 6; do printf other >/var/lib/cni/networks/n/10.0.0.$i; done",
        r#"echo '{"cniVersion":"1.0.0","name":"n","type":"bridge","bridge":"br0","ipam":{"type":"host-local","subnet":"10.0.0.0/29"}}' | bridge"#,
        "code 999: host-local: no IP addresses available in range set: 10.0.0.1-10.0.0.6\n\
         hint: each file in /var/lib/cni/networks/n is an address and names its container: delete those whose container is gone, or use a larger subnet",
    ),
    refused(
        "address taken",
        "pod; mkdir -p /var/lib/cni/networks/n; touch /var/lib/cni/networks/n/lock; \
         printf other >/var/lib/cni/networks/n/10.0.0.2; export CNI_ARGS=IP=10.0.0.2",
        r#"echo '{"cniVersion":"1.0.0","name":"n","type":"host-local","ipam":{"type":"host-local","subnet":"10.0.0.0/29"}}' | host-local"#,
        "code 999: host-local: requested IP address 10.0.0.2 is not available in range set 10.0.0.1-10.0.0.6: container other has it\n\
         hint: ask for another address, or none",
    ),
    refused(
        "range with host bits",
        "pod",
        r#"echo '{"cniVersion":"1.0.0","name":"n","type":"host-local","ipam":{"type":"host-local","ranges":[[{"subnet":"10.0.0.5/29"}]]}}' | host-local"#,
        "code 7: host-local: invalid range set 0: network 10.0.0.5/29 has host bits set, did you mean 10.0.0.0/29?\n\
         hint: correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}",
    ),
    refused(
        "bridge of another type",
        "pod; ip link add br0 type veth peer name br1",
        r#"echo '{"cniVersion":"1.0.0","name":"n","type":"bridge","bridge":"br0","ipam":{"type":"host-local","subnet":"10.0.0.0/29"}}' | bridge"#,
        "code 999: bridge: br0 already exists but is not a bridge: it is of kind \"veth\"\n\
         hint: rename or delete the device br0, or set another name in `bridge`",
    ),
    refused(
        "interface exists in the container",
        "pod; ip -n pod link add eth0 type veth peer name eth1",
        r#"echo '{"cniVersion":"1.0.0","name":"n","type":"bridge","bridge":"br0","ipam":{"type":"host-local","subnet":"10.0.0.0/29"}}' | bridge"#,
        "code 999: bridge: container veth name provided (eth0) already exists\n\
         hint: call DEL for the container before it is added again",
    ),
    refused(
        "no right to make devices",
        "pod",
        r#"echo '{"cniVersion":"1.0.0","name":"n","type":"bridge","ipam":{"type":"host-local","subnet":"10.0.0.0/29"}}' | setpriv --bounding-set=-net_admin --inh-caps=-net_admin bridge"#,
        "code 999: cannot create bridge cni0: Operation not permitted\n\
         hint: the plugin needs CAP_NET_ADMIN where the runtime runs",
    ),
];
