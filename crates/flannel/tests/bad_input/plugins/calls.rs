//! Calls that are wrong in what is around the configuration: environment, standard input, other plugins, what the daemon has written.

use crate::{Case, refused};

const BRIDGE: &str = r#"printf %s '{"cniVersion":"1.0.0","name":"n","type":"bridge","bridge":"br0","ipam":{"type":"host-local","subnet":"10.0.0.0/29"}}' | bridge"#;
/// The same configuration.
const HOST_LOCAL: &str = r#"printf %s '{"cniVersion":"1.0.0","name":"n","type":"bridge","bridge":"br0","ipam":{"type":"host-local","subnet":"10.0.0.0/29"}}' | host-local"#;
const FLANNEL: &str = r#"printf %s '{"cniVersion":"1.1.0","name":"cbr0","type":"flannel"}' | flannel"#;
/// A bridge whose addresses come from a plugin that a row makes.
const OWN_IPAM: &str = r#"printf %s '{"cniVersion":"1.0.0","name":"n","ipam":{"type":"own"}}' | bridge"#;

pub(in super::super) const CASES: &[Case] = &[
    refused(
        "network name with a path",
        "pod",
        r#"printf %s '{"cniVersion":"1.0.0","name":"../etc","type":"bridge","bridge":"br0","ipam":{"type":"host-local","subnet":"10.0.0.0/29"}}' | bridge"#,
        "code 7: network configuration: invalid characters in network name \"../etc\"\n\
         hint: letters, digits, `_`, `.` and `-` are allowed in `name`, the first one a letter or digit",
    ),
    refused(
        "network name of dots",
        "pod",
        r#"printf %s '{"cniVersion":"1.0.0","name":"..","type":"bridge","bridge":"br0","ipam":{"type":"host-local","subnet":"10.0.0.0/29"}}' | bridge"#,
        "code 7: network configuration: invalid characters in network name \"..\"\n\
         hint: letters, digits, `_`, `.` and `-` are allowed in `name`, the first one a letter or digit",
    ),
    refused(
        "network name with a NUL",
        "pod",
        r#"printf %s '{"cniVersion":"1.0.0","name":"a\u0000b","type":"bridge","bridge":"br0","ipam":{"type":"host-local","subnet":"10.0.0.0/29"}}' | bridge"#,
        "code 7: network configuration: invalid characters in network name \"a\\0b\"\n\
         hint: letters, digits, `_`, `.` and `-` are allowed in `name`, the first one a letter or digit",
    ),
    refused(
        "network name of 300 bytes",
        "pod",
        r#"printf %s '{"cniVersion":"1.0.0","name":"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn","type":"bridge","bridge":"br0","ipam":{"type":"host-local","subnet":"10.0.0.0/29"}}' | bridge"#,
        "code 7: network configuration: key `name` has 300 bytes, of 250 at most\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "no network name",
        "pod",
        r#"printf %s '{"cniVersion":"1.0.0","type":"bridge"}' | bridge"#,
        "code 7: network configuration: missing network name\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "no object",
        "pod",
        r#"printf %s '["cniVersion"]' | bridge"#,
        "code 7: network configuration is not a JSON object\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "version that is no text",
        "pod",
        r#"printf %s '{"cniVersion":1,"name":"n"}' | bridge"#,
        "code 7: network configuration: key `cniVersion` is not text\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "NUL bytes",
        "pod",
        "head -c 100 /dev/zero | bridge",
        "code 6: network configuration is not JSON: expected value at line 1 column 1\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "NUL behind the configuration",
        "pod",
        r"printf '{}\0' | bridge",
        "code 6: network configuration is not JSON: trailing characters at line 1 column 3\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "two configurations",
        "pod",
        r#"printf %s '{"name":"n"}{"name":"m"}' | bridge"#,
        "code 6: network configuration is not JSON: trailing characters at line 1 column 13\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "cut off",
        "pod",
        r#"printf %s '{"cniVersion":"1.0.0","name":"n' | bridge"#,
        "code 6: network configuration is not JSON: EOF while parsing a string at line 1 column 31\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "no UTF-8",
        "pod",
        r#"printf '{"name":"\377"}' | bridge"#,
        "code 6: network configuration is not JSON: invalid unicode code point at line 1 column 10\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "nested too deep",
        "pod",
        r#"{ printf '{"name":"n","a":'; head -c 100000 /dev/zero | tr '\0' '['; } | bridge"#,
        "code 6: network configuration is nested too deep: more than 127 objects and lists in each other\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "standard input without end",
        "pod",
        "yes | bridge",
        "code 6: network configuration on standard input is longer than 1048576 bytes\n\
         hint: the container runtime writes it there; check the files in /etc/cni/net.d",
    ),
    refused(
        "standard input that is not closed",
        "pod",
        r#"{ printf '{"cniVersion":"1.0.0"}'; sleep 10; } | bridge"#,
        "code 7: network configuration: missing network name\n\
         hint: check the files in /etc/cni/net.d",
    ),
    refused(
        "standard input that says nothing, with a time limit",
        "pod; export FLANNEL_CNI_TIMEOUT=1",
        "sleep 10 | bridge",
        "code 6: cannot read the network configuration from standard input: it did not come whole within 1s\n\
         hint: the container runtime writes it there; check the files in /etc/cni/net.d",
    ),
    refused(
        "standard input that stops half-way, with a time limit",
        "pod; export FLANNEL_CNI_TIMEOUT=1",
        r#"{ printf '{"cniVersion":'; sleep 10; } | bridge"#,
        "code 6: cannot read the network configuration from standard input: it did not come whole within 1s\n\
         hint: the container runtime writes it there; check the files in /etc/cni/net.d",
    ),
    refused(
        "time limit that is no number",
        "pod; export FLANNEL_CNI_TIMEOUT=soon",
        BRIDGE,
        "code 4: env variable FLANNEL_CNI_TIMEOUT is \"soon\", which is not a number of seconds\n\
         hint: set it to one, as 30, or to nothing for no limit",
    ),
    refused(
        "prevResult of 1 MiB",
        "pod",
        r#"{ printf '{"cniVersion":"1.0.0","name":"n","prevResult":{"dns":{"search":["'; head -c 1048576 /dev/zero | tr '\0' x; printf '"]}}}'; } | loopback"#,
        "code 6: network configuration on standard input is longer than 1048576 bytes\n\
         hint: the container runtime writes it there; check the files in /etc/cni/net.d",
    ),
    refused(
        "container ID of dots",
        "pod; CNI_CONTAINERID=..",
        BRIDGE,
        "code 4: invalid characters in CNI_CONTAINERID \"..\"\n\
         hint: letters, digits, `_`, `.` and `-` are allowed, the first one a letter or digit",
    ),
    refused(
        "container ID with a line break",
        r"pod; CNI_CONTAINERID=$(printf 'a\nb')",
        BRIDGE,
        "code 4: invalid characters in CNI_CONTAINERID \"a\\nb\"\n\
         hint: letters, digits, `_`, `.` and `-` are allowed, the first one a letter or digit",
    ),
    refused(
        "container ID of 300 bytes",
        r"pod; CNI_CONTAINERID=$(head -c 300 /dev/zero | tr '\0' x)",
        BRIDGE,
        "code 4: CNI_CONTAINERID has 300 bytes, of 250 at most\n\
         hint: the runtime names files after it: give the container a shorter name",
    ),
    refused(
        "interface name with a path",
        "pod; CNI_IFNAME=../eth0",
        BRIDGE,
        "code 4: invalid interface name in CNI_IFNAME: \"../eth0\"\n\
         hint: 1 to 15 bytes, no `/`, `:` or blank, not `.` or `..`",
    ),
    refused(
        "interface name of dots",
        "pod; CNI_IFNAME=..",
        BRIDGE,
        "code 4: invalid interface name in CNI_IFNAME: \"..\"\n\
         hint: 1 to 15 bytes, no `/`, `:` or blank, not `.` or `..`",
    ),
    refused(
        "interface name of 16 bytes",
        "pod; CNI_IFNAME=sixteen-bytes-xx",
        BRIDGE,
        "code 4: invalid interface name in CNI_IFNAME: \"sixteen-bytes-xx\"\n\
         hint: 1 to 15 bytes, no `/`, `:` or blank, not `.` or `..`",
    ),
    refused(
        "interface name that is not text",
        r"pod; CNI_IFNAME=$(printf '\377')",
        BRIDGE,
        "code 4: env variable CNI_IFNAME is not text in UTF-8\n\
         hint: check what the runtime puts into CNI_IFNAME",
    ),
    refused(
        "interface that every container has",
        "pod; CNI_IFNAME=lo",
        BRIDGE,
        "code 999: bridge: container veth name provided (lo) already exists\n\
         hint: call DEL for the container before it is added again",
    ),
    refused(
        "no namespace",
        "pod; unset CNI_NETNS",
        BRIDGE,
        "code 4: required env variables [CNI_NETNS] missing\n\
         hint: the container runtime sets them; by hand, see the CNI specification, section Parameters",
    ),
    refused(
        "no interface name",
        "pod; unset CNI_IFNAME",
        BRIDGE,
        "code 4: required env variables [CNI_IFNAME] missing\n\
         hint: the container runtime sets them; by hand, see the CNI specification, section Parameters",
    ),
    refused(
        "no variable at all but the command",
        "pod; unset CNI_CONTAINERID CNI_NETNS CNI_IFNAME",
        BRIDGE,
        "code 4: required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing\n\
         hint: the container runtime sets them; by hand, see the CNI specification, section Parameters",
    ),
    refused(
        "namespace that never was",
        "pod; CNI_NETNS=/run/netns/none",
        BRIDGE,
        "code 8: failed to open netns: cannot open network namespace /run/netns/none: No such file or directory\n\
         hint: the container is gone, or CNI_NETNS is not the path of its namespace: recreate it",
    ),
    refused(
        "namespace that is a file",
        "pod; touch /run/netns/file; CNI_NETNS=/run/netns/file",
        BRIDGE,
        "code 8: failed to open netns: cannot open network namespace /run/netns/file: it is not a namespace\n\
         hint: the container is gone, or CNI_NETNS is not the path of its namespace: recreate it",
    ),
    refused(
        "namespace that is a folder",
        "pod; CNI_NETNS=/run",
        BRIDGE,
        "code 8: failed to open netns: cannot open network namespace /run: it is not a namespace\n\
         hint: the container is gone, or CNI_NETNS is not the path of its namespace: recreate it",
    ),
    refused(
        "namespace that is a pipe",
        "pod; mkfifo /run/netns/pipe; CNI_NETNS=/run/netns/pipe",
        BRIDGE,
        "code 8: failed to open netns: cannot open network namespace /run/netns/pipe: it is not a namespace\n\
         hint: the container is gone, or CNI_NETNS is not the path of its namespace: recreate it",
    ),
    refused(
        "namespace of another kind",
        "pod; CNI_NETNS=/proc/self/ns/mnt",
        BRIDGE,
        "code 8: failed to open netns: cannot open network namespace /proc/self/ns/mnt: it is a namespace of another kind\n\
         hint: the container is gone, or CNI_NETNS is not the path of its namespace: recreate it",
    ),
    refused(
        "the host's namespace",
        "pod; CNI_NETNS=/proc/self/ns/net",
        BRIDGE,
        "code 8: plugin's netns and netns from CNI_NETNS \"/proc/self/ns/net\" should not be the same\n\
         hint: a container in the host's network needs no plugin",
    ),
    refused(
        "arguments that are no pairs",
        "pod; export CNI_ARGS=IP",
        BRIDGE,
        "code 4: CNI_ARGS: invalid pair \"IP\"\n\
         hint: it is a list like `IgnoreUnknown=1;IP=10.1.2.3`",
    ),
    refused(
        "unknown argument",
        "pod; export CNI_ARGS=K8S_POD_NAME=nginx",
        BRIDGE,
        "code 4: CNI_ARGS: unknown argument \"K8S_POD_NAME\"\n\
         hint: set IgnoreUnknown=1 in CNI_ARGS, as Kubernetes does, or leave the argument out",
    ),
    refused(
        "unknown argument that is not to be ignored",
        r#"pod; export CNI_ARGS="IgnoreUnknown=0;K8S_POD_NAME=nginx""#,
        BRIDGE,
        "code 4: CNI_ARGS: unknown argument \"K8S_POD_NAME\"\n\
         hint: set IgnoreUnknown=1 in CNI_ARGS, as Kubernetes does, or leave the argument out",
    ),
    refused(
        "IgnoreUnknown that is no switch",
        "pod; export CNI_ARGS=IgnoreUnknown=yes",
        BRIDGE,
        "code 4: CNI_ARGS: IgnoreUnknown is \"yes\", which is neither 1 nor 0\n\
         hint: true and false are allowed too",
    ),
    refused(
        "unknown argument for host-local",
        "pod; export CNI_ARGS=A=1",
        HOST_LOCAL,
        "code 4: CNI_ARGS: unknown argument \"A\"\n\
         hint: set IgnoreUnknown=1 in CNI_ARGS, as Kubernetes does, or leave the argument out",
    ),
    refused(
        "requested address that is none",
        "pod; export CNI_ARGS=IP=10.0",
        BRIDGE,
        "code 4: host-local: cannot understand requested IP \"10.0\"\n\
         hint: requests stand in CNI_ARGS `IP`, `args.cni.ips` and `runtimeConfig.ips`",
    ),
    refused(
        "requested MAC that is none",
        "pod; export CNI_ARGS=MAC=x",
        BRIDGE,
        "code 4: bridge: invalid MAC address in CNI_ARGS: \"x\"\n\
         hint: six bytes in hexadecimal, as MAC=c2:11:22:33:44:55",
    ),
    refused(
        "requested address of the gateway",
        "pod; export CNI_ARGS=IP=10.0.0.1",
        BRIDGE,
        "code 999: host-local: requested IP address 10.0.0.1 is the subnet's gateway\n\
         hint: ask for an address inside `ipam.ranges` of the network configuration, and not a gateway",
    ),
    refused(
        "requested address outside",
        "pod; export CNI_ARGS=IP=10.9.0.1",
        BRIDGE,
        "code 999: host-local: failed to allocate all requested IPs: 10.9.0.1 not in any range set\n\
         hint: ask for an address inside `ipam.ranges` of the network configuration, and not a gateway",
    ),
    refused(
        "empty path of plugins",
        "pod; CNI_PATH=",
        r#"printf %s '{"cniVersion":"1.0.0","name":"n","ipam":{"type":"static"}}' | bridge"#,
        "code 999: failed to find plugin \"static\" in path \"\"\n\
         hint: the container runtime sets CNI_PATH to the folders of plugins, as /opt/cni/bin",
    ),
    refused(
        "path of plugins with empty parts",
        "pod; CNI_PATH=:/none::",
        r#"printf %s '{"cniVersion":"1.0.0","name":"n","ipam":{"type":"static"}}' | bridge"#,
        "code 999: failed to find plugin \"static\" in path \"/none\"\n\
         hint: install the plugin static in one of /none",
    ),
    refused(
        "link to this program by a name of no plugin",
        "pod; subnet_env; ln -s bridge ../bin/ovs",
        r#"printf %s '{"cniVersion":"1.0.0","name":"n","delegate":{"type":"ovs"}}' | flannel"#,
        "code 999: WORLD/work/../bin/ovs is a link to this program, which is no plugin of that name\n\
         hint: replace WORLD/work/../bin/ovs by the plugin of that name",
    ),
    refused(
        "IPAM plugin that calls its caller",
        "pod; program own 'exec bridge'",
        OWN_IPAM,
        "code 7: plugin WORLD/work/../bin/own was called by a plugin that a plugin called, 8 times over\n\
         hint: correct `delegate.type` or `ipam.type` in the network's file in /etc/cni/net.d",
    ),
    refused(
        "IPAM plugin that hangs, with a time limit",
        "pod; program own 'sleep 100'; export FLANNEL_CNI_TIMEOUT=1",
        OWN_IPAM,
        "code 999: cannot execute plugin WORLD/work/../bin/own: it did not end within 1s\n\
         hint: see what WORLD/work/../bin/own waits for; FLANNEL_CNI_TIMEOUT in the runtime's environment sets the limit",
    ),
    refused(
        "IPAM plugin that is no program",
        "pod; program own x; printf x >../bin/own",
        OWN_IPAM,
        "code 999: cannot execute plugin WORLD/work/../bin/own: Exec format error\n\
         hint: check that WORLD/work/../bin/own is a CNI plugin for this machine",
    ),
    refused(
        "IPAM plugin that talks without end",
        "pod; program own yes",
        OWN_IPAM,
        "code 999: cannot execute plugin WORLD/work/../bin/own: it printed more than 1048576 bytes\n\
         hint: check that WORLD/work/../bin/own is a CNI plugin for this machine",
    ),
    refused(
        "IPAM plugin that prints no JSON",
        "pod; program own 'echo hello'",
        OWN_IPAM,
        "code 6: plugin WORLD/work/../bin/own printed no CNI result: it is not JSON: expected value at line 1 column 1\n\
         hint: check that WORLD/work/../bin/own is a CNI plugin for this machine",
    ),
    refused(
        "IPAM plugin that prints no result",
        r#"pod; program own "echo '{\"ips\":7}'""#,
        OWN_IPAM,
        "code 6: plugin WORLD/work/../bin/own printed no CNI result: key `ips`: 7 is not a list\n\
         hint: check that WORLD/work/../bin/own is a CNI plugin for this machine",
    ),
    refused(
        "IPAM plugin without an address",
        "pod; program own 'echo {}'",
        OWN_IPAM,
        "code 999: bridge: IPAM plugin returned missing IP config\n\
         hint: check `ipam` in the network configuration",
    ),
    refused(
        "IPAM plugin that fails in silence",
        "pod; program own 'exit 3'",
        OWN_IPAM,
        "code 999: plugin WORLD/work/../bin/own failed (exit status: 3) with no error message, on standard error: \"\"\n\
         hint: check that WORLD/work/../bin/own is a CNI plugin for this machine",
    ),
    refused(
        "IPAM plugin that fails on standard error",
        "pod; program own 'echo no money >&2; exit 1'",
        OWN_IPAM,
        "code 999: plugin WORLD/work/../bin/own failed (exit status: 1) with no error message, on standard error: \"no money\"\n\
         hint: check that WORLD/work/../bin/own is a CNI plugin for this machine",
    ),
    refused(
        "IPAM plugin with an error of two lines",
        r#"pod; program own "printf '{\"code\":11,\"msg\":\"one\\\\ntwo\"}'; exit 1""#,
        OWN_IPAM,
        "code 11: one two\n\
         hint:",
    ),
    refused(
        "CHECK in a version that has none",
        "pod; CNI_COMMAND=CHECK",
        r#"printf %s '{"cniVersion":"0.3.1","name":"n","type":"bridge"}' | bridge"#,
        "code 1: config version does not allow CHECK: it is 0.3.1\n\
         hint: CHECK came with version 0.4.0",
    ),
    refused(
        "STATUS in a version that has none",
        "CNI_COMMAND=STATUS; export CNI_COMMAND",
        r#"printf %s '{"cniVersion":"1.0.0","name":"n","type":"bridge"}' | bridge"#,
        "code 1: config version does not allow STATUS: it is 1.0.0\n\
         hint: STATUS came with version 1.1.0",
    ),
    refused(
        "CHECK without a result",
        "pod; CNI_COMMAND=CHECK",
        r#"printf %s '{"cniVersion":"1.0.0","name":"n","type":"bridge"}' | bridge"#,
        "code 7: network configuration: key `prevResult` is missing\n\
         hint: CHECK needs the result of the ADD, as the runtime kept it",
    ),
    refused(
        "GC without a list",
        "export CNI_COMMAND=GC",
        r#"printf %s '{"cniVersion":"1.1.0","name":"n","type":"bridge"}' | bridge"#,
        "code 7: network configuration: key `cni.dev/valid-attachments` is missing\n\
         hint: the runtime lists there what GC is to keep; without it nothing is freed",
    ),
    refused(
        "GC with a list of something else",
        "export CNI_COMMAND=GC",
        r#"printf %s '{"cniVersion":"1.1.0","name":"n","type":"bridge","cni.dev/valid-attachments":[{"containerID":7}]}' | bridge"#,
        "code 7: configuration of network n: key `cni.dev/valid-attachments[0].containerID`: 7 is not text\n\
         hint: correct the file of network n in /etc/cni/net.d",
    ),
    refused(
        "GC with something else than a list",
        "export CNI_COMMAND=GC",
        r#"printf %s '{"cniVersion":"1.1.0","name":"n","type":"bridge","cni.dev/valid-attachments":"c1"}' | bridge"#,
        "code 7: configuration of network n: key `cni.dev/valid-attachments`: \"c1\" is not a list\n\
         hint: correct the file of network n in /etc/cni/net.d",
    ),
    refused(
        "CHECK of what was never added",
        "pod; subnet_env; CNI_COMMAND=CHECK",
        r#"printf %s '{"cniVersion":"1.0.0","name":"n"}' | flannel"#,
        "code 999: flannel: /var/lib/cni/flannel/c1 is absent or broken\n\
         hint: ADD saves the delegate's configuration there: recreate the container",
    ),
    refused(
        "STATUS without subnet.env",
        "pod; CNI_COMMAND=STATUS",
        FLANNEL,
        "code 50: failed to load flannel 'subnet.env' file: open /run/flannel/subnet.env: no such file or directory. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "STATUS without subnet.env, while the daemon runs",
        "pod; program flanneld 'sleep 60'; flanneld & until_true grep -qx flanneld /proc/$!/comm; CNI_COMMAND=STATUS",
        FLANNEL,
        "code 50: failed to load flannel 'subnet.env' file: open /run/flannel/subnet.env: no such file or directory. Check the flannel pod log for this node.\n\
         hint: flanneld runs on this node (pid PID) but has not written a whole file yet: its log says what it waits for, and its --subnet-file must be this file",
    ),
    refused(
        "STATUS with subnet.env of before a restart, and no daemon",
        "pod; subnet_env; touch -d 1980-01-01 /run/flannel/subnet.env; CNI_COMMAND=STATUS",
        FLANNEL,
        "code 50: flannel: /run/flannel/subnet.env was written before this machine was started\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "STATUS with half a subnet.env",
        "pod; subnet_env; truncate -s 60 /run/flannel/subnet.env; CNI_COMMAND=STATUS",
        FLANNEL,
        "code 50: failed to load flannel 'subnet.env' file: /run/flannel/subnet.env is missing FLANNEL_MTU, FLANNEL_IPMASQ. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "empty subnet.env",
        "pod; mkdir /run/flannel; touch /run/flannel/subnet.env",
        FLANNEL,
        "code 999: failed to load flannel 'subnet.env' file: /run/flannel/subnet.env is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "subnet.env that is a folder",
        "pod; mkdir -p /run/flannel/subnet.env",
        FLANNEL,
        "code 999: failed to load flannel 'subnet.env' file: open /run/flannel/subnet.env: it is not a regular file. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "subnet.env that is a pipe",
        "pod; mkdir /run/flannel; mkfifo /run/flannel/subnet.env",
        FLANNEL,
        "code 999: failed to load flannel 'subnet.env' file: open /run/flannel/subnet.env: it is not a regular file. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "subnet.env without end",
        "pod; mkdir /run/flannel; ln -s /dev/zero /run/flannel/subnet.env",
        FLANNEL,
        "code 999: failed to load flannel 'subnet.env' file: open /run/flannel/subnet.env: it is not a regular file. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "subnet.env of 1 MiB",
        "pod; mkdir /run/flannel; yes FLANNEL_MTU=1450 | head -c 1048576 >/run/flannel/subnet.env",
        FLANNEL,
        "code 999: failed to load flannel 'subnet.env' file: open /run/flannel/subnet.env: it is longer than 65536 bytes. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "subnet.env that is no text",
        r"pod; mkdir /run/flannel; printf '\377\376' >/run/flannel/subnet.env",
        FLANNEL,
        "code 999: failed to load flannel 'subnet.env' file: open /run/flannel/subnet.env: it is not text. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "subnet.env with another network than the subnet's",
        "pod; subnet_env; sed -i s/10.244.0.0/10.9.0.0/ /run/flannel/subnet.env",
        FLANNEL,
        "code 999: failed to load flannel 'subnet.env' file: /run/flannel/subnet.env: FLANNEL_SUBNET=10.244.1.1/24 is not inside the network that the file names. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "subnet.env without the network of its subnet",
        r"pod; subnet_env; sed -i s/FLANNEL_SUBNET.*/FLANNEL_IPV6_SUBNET=fd00::1\\/64/ /run/flannel/subnet.env",
        FLANNEL,
        "code 999: failed to load flannel 'subnet.env' file: /run/flannel/subnet.env is missing FLANNEL_IPV6_NETWORK. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "subnet.env with a subnet of one address",
        r"pod; subnet_env; sed -i s/1.1.24/1.1\\/32/ /run/flannel/subnet.env",
        FLANNEL,
        "code 999: failed to load flannel 'subnet.env' file: /run/flannel/subnet.env: FLANNEL_SUBNET=10.244.1.1/32 is not large enough for pods. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "subnet.env with values in quotes",
        r#"pod; subnet_env; sed -i 's/=\(.*\)/="\1"/' /run/flannel/subnet.env"#,
        FLANNEL,
        "code 999: failed to load flannel 'subnet.env' file: /run/flannel/subnet.env: FLANNEL_NETWORK=\"10.244.0.0/16\" is not an IPv4 prefix such as 10.244.0.0/16. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "subnet.env with an MTU of 67",
        "pod; subnet_env; sed -i s/1450/67/ /run/flannel/subnet.env",
        FLANNEL,
        "code 999: failed to load flannel 'subnet.env' file: /run/flannel/subnet.env: FLANNEL_MTU=67 is not the 68 bytes or more that IPv4 needs. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "subnet.env with an MTU of 1279 and IPv6",
        "pod; subnet_env; sed -i s/1450/1279/ /run/flannel/subnet.env; echo FLANNEL_IPV6_NETWORK=fd00::/48 >>/run/flannel/subnet.env; echo FLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64 >>/run/flannel/subnet.env",
        FLANNEL,
        "code 999: failed to load flannel 'subnet.env' file: /run/flannel/subnet.env: FLANNEL_MTU=1279 is not the 1280 bytes or more that IPv6 needs. Check the flannel pod log for this node.\n\
         hint: flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
    ),
    refused(
        "host port of another container",
        r#"pod; ip netns add two; pm() { printf %s '{"cniVersion":"1.0.0","name":"n","type":"portmap","backend":"nftables","runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]},"prevResult":{"ips":[{"address":"10.1.0.'$1'/24"}]}}'; }; pm 3 | CNI_CONTAINERID=c2 CNI_ARGS="K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx" portmap >/dev/null"#,
        r#"printf %s '{"cniVersion":"1.0.0","name":"n","type":"portmap","backend":"nftables","runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]},"prevResult":{"ips":[{"address":"10.1.0.2/24"}]}}' | portmap"#,
        "code 999: portmap: host port 8080/tcp is taken by pod default/nginx (container c2) of network n\n\
         hint: publish another port or on another host IP, or delete that container",
    ),
    refused(
        "container that has an address already",
        r"pod; mkdir -p /var/lib/cni/networks/n; touch /var/lib/cni/networks/n/lock; printf 'c1\r\neth0' >/var/lib/cni/networks/n/10.0.0.2",
        HOST_LOCAL,
        "code 999: host-local: 10.0.0.2 has been allocated to c1, duplicate allocation is not allowed\n\
         hint: call DEL for the container before it is added again",
    ),
    refused(
        "record that is a folder",
        "pod; mkdir -p /var/lib/cni/networks/n/10.0.0.2/x; touch /var/lib/cni/networks/n/lock",
        HOST_LOCAL,
        "code 999: host-local: cannot read /var/lib/cni/networks/n/10.0.0.2: Is a directory\n\
         hint: check the file system of /var/lib/cni/networks/n, or set `ipam.dataDir` to another folder",
    ),
    refused(
        "lock that leads elsewhere",
        "pod; mkdir -p /var/lib/cni/networks/n; ln -s /run/victim /var/lib/cni/networks/n/lock",
        HOST_LOCAL,
        "code 999: host-local: cannot open /var/lib/cni/networks/n/lock: Too many levels of symbolic links\n\
         hint: check the file system of /var/lib/cni/networks/n, or set `ipam.dataDir` to another folder",
    ),
    refused(
        "unfinished record that leads elsewhere",
        "pod; mkdir -p /var/lib/cni/networks/n; touch /var/lib/cni/networks/n/lock /run/victim; ln -s /run/victim /var/lib/cni/networks/n/.new",
        HOST_LOCAL,
        "code 999: host-local: cannot write /var/lib/cni/networks/n/10.0.0.2: Too many levels of symbolic links\n\
         hint: check the file system of /var/lib/cni/networks/n, or set `ipam.dataDir` to another folder",
    ),
    refused(
        "saved configuration of 2 MiB",
        "pod; subnet_env; CNI_COMMAND=CHECK; mkdir -p /var/lib/cni/flannel; head -c 2097152 /dev/zero >/var/lib/cni/flannel/c1",
        r#"printf %s '{"cniVersion":"1.0.0","name":"n"}' | flannel"#,
        "code 999: flannel: /var/lib/cni/flannel/c1 is absent or broken\n\
         hint: ADD saves the delegate's configuration there: recreate the container",
    ),
];
