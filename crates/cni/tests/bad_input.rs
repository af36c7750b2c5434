//! What can be wrong with a call: each one line that names the object and the cause, a hint, the right code, and nothing
//! half done on the host.

mod world;

use std::fs;

use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};
use world::{Call, FILES, OURS, make_node, make_pod, state};

const ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const UNLOADED: &str = "failed to load flannel 'subnet.env' file: ";

/// One wrong thing.
struct Wrong<'a> {
    call: Call<'a>,
    conf: String,
    code: u64,
    msg: &'static str,
    hint: &'static str,
}

fn flannel_conf(change: &[(&str, Value)]) -> String {
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel", "subnetFile": "/run/subnet.env",
        "dataDir": "/run/files/flannel", "ipam": {"dataDir": FILES},
    });
    for (key, value) in change {
        conf[*key] = value.clone();
    }
    conf.to_string()
}

fn check(wrong: &Wrong<'_>, pod: &str) {
    let before = state(&[pod]);
    let answer = wrong.call.run_with("ADD", wrong.conf.as_bytes());
    let (code, msg, hint) = answer.failure();
    assert_eq!(code, wrong.code, "{msg}");
    assert!(msg.contains(wrong.msg), "{msg:?} should say {:?}", wrong.msg);
    assert!(hint.contains(wrong.hint) && !hint.is_empty(), "{hint:?} should say {:?}", wrong.hint);
    assert!(!msg.contains('\n') && !hint.contains('\n') && msg.len() + hint.len() < 700, "{msg} {hint}");
    let mut after = state(&[pod]);
    // A failed ADD may leave the saved configuration for its DEL, and host-local its lock.
    after["files"] = before["files"].clone();
    assert_eq!(before, after, "{msg}");
}

/// A node with one pod, and `subnet.env` if there is one.
fn node(subnet_env: Option<&str>) -> String {
    make_node();
    if let Some(text) = subnet_env {
        fs::write("/run/subnet.env", text).unwrap();
    }
    make_pod("a")
}

fn good(pod: &str) -> Call<'_> {
    Call { dir: OURS, plugin: "flannel", id: "c1", netns: pod, args: "" }
}

#[test]
fn what_the_daemon_has_not_written_is_named() {
    if !rerun_enclosed("what_the_daemon_has_not_written_is_named") {
        return;
    }
    let pod = node(None);
    let wrong =
        |msg| check(&Wrong { call: good(&pod), conf: flannel_conf(&[]), code: 999, msg, hint: "flanneld" }, &pod);
    wrong(
        "'subnet.env' file: open /run/subnet.env: no such file or directory. Check the flannel pod log for this node.",
    );
    for (text, msg) in [
        (
            "",
            "/run/subnet.env is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, \
             FLANNEL_MTU, FLANNEL_IPMASQ",
        ),
        (&ENV.replace("FLANNEL_IPMASQ=true\n", ""), "/run/subnet.env is missing FLANNEL_IPMASQ. Check"),
        (&ENV.replace("10.244.1.1/24", "10.244.1.300/24"), "FLANNEL_SUBNET=10.244.1.300/24 is not"),
        (&ENV.replace("1450", "big"), "FLANNEL_MTU=big is not"),
        ("FLANNEL_NET", "is missing"),
    ] {
        fs::write("/run/subnet.env", text).unwrap();
        wrong(msg);
        wrong(UNLOADED);
    }
    fs::write("/run/subnet.env", [0xff, 0xfe, 0]).unwrap();
    wrong("open /run/subnet.env: ");
}

#[test]
fn a_wrong_configuration_is_named() {
    if !rerun_enclosed("a_wrong_configuration_is_named") {
        return;
    }
    let pod = node(Some(ENV));
    let wrong = |conf, code, msg, hint| check(&Wrong { call: good(&pod), conf, code, msg, hint }, &pod);
    let files = "/etc/cni/net.d";
    wrong(String::new(), 6, "standard input is empty", files);
    wrong("x".repeat(1 << 20), 6, "network configuration is not JSON: expected value at line 1", files);
    wrong("[".repeat(1 << 20), 6, "network configuration is not JSON", files);
    wrong("x".repeat(2 << 20), 6, "longer than 1048576 bytes", files);
    wrong("\0".repeat(100), 6, "not JSON", files);
    for (key, value, code, msg, hint) in [
        ("cniVersion", json!("9.9.9"), 1, "config is \"9.9.9\", plugin supports 0.1.0", "cniVersion"),
        ("name", json!(""), 7, "missing network name", files),
        ("name", json!("../../etc"), 7, "invalid characters in network name \"../../etc\"", "letters, digits"),
        ("ipam", json!(7), 7, "invalid type: integer `7`", files),
        ("delegate", json!({"type": "../bridge"}), 7, "\"../bridge\" is not a plugin type", "delegate.type"),
        ("delegate", json!({"ipMasqBackend": "ipfw"}), 7, "unknown ipmasq backend \"ipfw\"", "or leave it out"),
        ("delegate", json!({"vlan": -1}), 7, "invalid VLAN ID -1 (must be between 0 and 4094)", "`vlan`"),
        ("delegate", json!({"vlan": 4095}), 7, "invalid VLAN ID 4095", "or leave it out"),
        ("delegate", json!({"vlan": 4096}), 7, "invalid VLAN ID 4096", "or leave it out"),
        ("delegate", json!({"vlan": "7"}), 7, "invalid type: string \"7\"", files),
        (
            "delegate",
            json!({"vlan": 7, "bridge": "cni0-is-a-name"}),
            7,
            "cannot be called cni0-is-a-name.7",
            "shorter name",
        ),
        (
            "delegate",
            json!({"vlanTrunk": [{"id": 7}, {"id": 4095}]}),
            7,
            "id parameter in vlanTrunk[1]: 4095",
            "from 1 to 4094",
        ),
        (
            "delegate",
            json!({"vlanTrunk": [{"minID": 9, "maxID": 7}]}),
            7,
            "minID 9 is greater than maxID 7",
            "vlanTrunk",
        ),
        (
            "delegate",
            json!({"vlan": 7, "vlanTrunk": [{"minID": 9}]}),
            7,
            "maxID parameter in vlanTrunk[0]: it is missing",
            "vlanTrunk",
        ),
        ("delegate", json!({"bridge": "a/b"}), 7, "\"a/b\" is not", files),
        ("delegate", json!({"mtu": 70000}), 999, "cannot create", "the runtime may try again"),
    ] {
        wrong(flannel_conf(&[(key, value)]), code, msg, hint);
    }
}

#[test]
fn a_wrong_environment_is_named() {
    if !rerun_enclosed("a_wrong_environment_is_named") {
        return;
    }
    let pod = node(Some(ENV));
    fs::write("/run/netns/file", "").unwrap();
    let wrong = |call, code, msg, hint| check(&Wrong { call, conf: flannel_conf(&[]), code, msg, hint }, &pod);
    wrong(Call { id: "../../x", ..good(&pod) }, 4, "CNI_CONTAINERID \"../../x\"", "letters, digits");
    for (args, code, msg, hint) in [
        ("IP", 4, "CNI_ARGS: invalid pair \"IP\"", "IgnoreUnknown=1;IP="),
        ("IP=10.1", 4, "requested IP \"10.1\"", "runtimeConfig.ips"),
        ("IP=10.244.1.1", 999, "10.244.1.1 is the subnet's gateway", "ipam.ranges"),
        ("IP=10.9.1.1", 999, "10.9.1.1 not in any range set", "ipam.ranges"),
    ] {
        wrong(Call { args, ..good(&pod) }, code, msg, hint);
    }
    for (netns, code, msg, hint) in [
        ("/run/netns/none", 8, "/run/netns/none: No such file or directory", "recreate it"),
        ("/run/netns/file", 8, "/run/netns/file: it is not a namespace", "recreate it"),
        ("/proc/self/ns/net", 8, "should not be the same", "host's network"),
        ("", 4, "required env variables [CNI_NETNS] missing", "runtime sets them"),
    ] {
        wrong(Call { netns, ..good(&pod) }, code, msg, hint);
    }
}

#[test]
fn a_full_range_and_a_taken_address_say_whose_they_are() {
    if !rerun_enclosed("a_full_range_and_a_taken_address_say_whose_they_are") {
        return;
    }
    make_node();
    fs::write("/run/subnet.env", ENV.replace("10.244.1.1/24", "10.244.1.1/29")).unwrap();
    let pods: Vec<_> = (0..6).map(|n| (format!("c{n}"), make_pod(&format!("p{n}")))).collect();
    let call = |n: usize, args| Call { dir: OURS, plugin: "flannel", id: &pods[n].0, netns: &pods[n].1, args };
    for n in 0..5 {
        assert!(call(n, "").run_with("ADD", flannel_conf(&[]).as_bytes()).ok);
    }
    let wrong = |call, msg, hint| check(&Wrong { call, conf: flannel_conf(&[]), code: 999, msg, hint }, &pods[5].1);
    wrong(
        call(5, ""),
        "no IP addresses available in range set: 10.244.1.1-10.244.1.6",
        "each file in /run/files/cbr0 is an address",
    );
    wrong(
        call(5, "IP=10.244.1.3"),
        "10.244.1.3 is not available in range set 10.244.1.1-10.244.1.6: container c1 (eth0) has it",
        "another address",
    );
    wrong(call(2, ""), "container veth name provided (eth0) already exists", "call DEL");
    let other = Call { netns: &pods[5].1, ..call(2, "") };
    wrong(other, "10.244.1.4 has been allocated to c2, duplicate allocation is not allowed", "call DEL");
}

#[test]
fn a_person_who_starts_a_plugin_is_told_what_it_is() {
    for name in ["flannel", "bridge", "host-local", "portmap", "loopback"] {
        let applet = flannel_cni::Applet::by_name(name).unwrap();
        let reply = flannel_cni::run(applet, [], &mut std::io::empty());
        assert!(reply.status == 0 && reply.stdout.is_empty());
        assert!(
            reply.stderr.starts_with(&format!("CNI plugin {name}: a container runtime calls it")),
            "{}",
            reply.stderr
        );
    }
}
