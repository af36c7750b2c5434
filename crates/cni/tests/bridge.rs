//! Keys of `bridge` that Debian's Go plugin does not have: what the released 1.9.1 makes of them, read by `nft` and `ip`.

mod world;

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use flannel_kernel::namespace::NetNamespace;
use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};
use world::{Call, FILES, OURS, end_pod, files, ip, make_node, make_pod, state, tool};

fn conf() -> Value {
    json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "bridge", "isGateway": true, "ipMasq": true,
        "ipMasqBackend": "nftables", "ipam": {"type": "host-local", "dataDir": "/run/files",
            "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]]}})
}

fn bridge<'a>(id: &'a str, netns: &'a str) -> Call<'a> {
    Call { dir: OURS, plugin: "bridge", id, netns, args: "" }
}

fn rules() -> String {
    tool(&["nft", "list", "table", "inet", "cni_plugins_masquerade"])
}

/// What `nft` prints after the Go plugin's ADD of `c1`, the rules of pods in the middle.
fn table(pods: &str) -> String {
    format!(
        "table inet cni_plugins_masquerade {{\n\
         \tcomment \"Masquerading for plugins from github.com/containernetworking/plugins\"\n\
         \tchain masq_checks {{\n\
         \t\tcomment \"Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet\"\n\
         {pods}\
         \t}}\n\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tip daddr 224.0.0.0/4 return\n\
         \t\tip6 daddr ff00::/8 return\n\
         \t\tgoto masq_checks\n\
         \t}}\n\
         }}\n"
    )
}

const FIRST: &str = "\t\tip saddr 10.244.1.2 ip daddr != 10.244.1.0/24 masquerade \
    comment \"cb6e746fae1a4d6c-f4d01f2ef4b92245, net: cbr0, if: eth0, id: c1\"\n\
    \t\tip6 saddr fd00:1::2 ip6 daddr != fd00:1::/64 masquerade \
    comment \"cb6e746fae1a4d6c-f4d01f2ef4b92245, net: cbr0, if: eth0, id: c1\"\n";

#[test]
fn rules_of_nf_tables_are_the_go_plugins() {
    if !rerun_enclosed("rules_of_nf_tables_are_the_go_plugins") {
        return;
    }
    make_node();
    let pods = [make_pod("a"), make_pod("b"), make_pod("c")];
    let [first, second, third] = [bridge("c1", &pods[0]), bridge("c2", &pods[1]), bridge("c3", &pods[2])];
    let result = first.run("ADD", &conf()).good();
    first.run_after("CHECK", &conf(), &result).good();
    assert_eq!(rules(), table(FIRST));
    assert_eq!(state(&[])["host"]["rules"], json!([]), "and none of iptables");
    second.run("ADD", &conf()).good();
    assert!(rules().contains("ip saddr 10.244.1.3") && rules().contains(FIRST), "{}", rules());
    second.run("DEL", &conf()).good();
    assert_eq!(rules(), table(FIRST));
    // A pod that went without a DEL is GC's.
    third.run("ADD", &conf()).good();
    end_pod(&pods[2]);
    let mut gc = conf();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    third.run("GC", &gc).good();
    assert_eq!(rules(), table(FIRST));
    first.run("DEL", &conf()).good();
    assert_eq!(rules(), table(""));
    first.run("DEL", &conf()).good();
}

#[test]
fn what_one_backend_added_is_deleted_under_the_other() {
    if !rerun_enclosed("what_one_backend_added_is_deleted_under_the_other") {
        return;
    }
    make_node();
    let pod = make_pod("a");
    let call = bridge("c1", &pod);
    let mut iptables = conf();
    iptables["ipMasqBackend"] = json!("iptables");
    call.run("ADD", &conf()).good();
    call.run("DEL", &iptables).good();
    assert_eq!(rules(), table(""));
    call.run("ADD", &iptables).good();
    assert_ne!(state(&[])["host"]["rules"], json!([]));
    call.run("DEL", &conf()).good();
    assert_eq!(state(&[])["host"]["rules"], json!([]));
}

#[test]
fn a_node_without_iptables_masquerades_by_nf_tables() {
    if !rerun_enclosed("a_node_without_iptables_masquerades_by_nf_tables") {
        return;
    }
    make_node();
    fs::create_dir("/run/bin").unwrap();
    symlink("/usr/sbin/nft", "/run/bin/nft").unwrap();
    let (pod, mut conf) = (make_pod("a"), conf());
    conf.as_object_mut().unwrap().remove("ipMasqBackend");
    let added = bridge("c1", &pod).start_with_path("/run/bin", conf.to_string().as_bytes());
    let output = added.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(rules(), table(FIRST));
}

/// What `nft` prints after the Go plugin's ADD; the port and its MAC are this run's.
fn spoof_check(port: &str, mac: &str) -> String {
    format!(
        "table bridge nat {{\n\
         \tchain PREROUTING {{\n\
         \t\ttype filter hook prerouting priority dstnat; policy accept;\n\
         \t\tiifname \"{port}\" jump cni-br-iface-c1-eth0 comment \"macspoofchk-c1-eth0\"\n\
         \t}}\n\n\
         \tchain cni-br-iface-c1-eth0 {{\n\
         \t\tjump cni-br-iface-c1-eth0-mac comment \"macspoofchk-c1-eth0\"\n\
         \t}}\n\n\
         \tchain cni-br-iface-c1-eth0-mac {{\n\
         \t\tether saddr {mac} return comment \"macspoofchk-c1-eth0\"\n\
         \t\tdrop comment \"macspoofchk-c1-eth0\"\n\
         \t}}\n\
         }}\n"
    )
}

const NO_SPOOF_CHECK: &str = "table bridge nat {\n\
    \tchain PREROUTING {\n\
    \t\ttype filter hook prerouting priority dstnat; policy accept;\n\
    \t}\n\
    }\n";

#[test]
fn a_container_sends_with_its_own_mac_only() {
    if !rerun_enclosed("a_container_sends_with_its_own_mac_only") {
        return;
    }
    make_node();
    let (pod, mut conf) = (make_pod("a"), conf());
    conf["macspoofchk"] = json!(true);
    conf["ipMasq"] = json!(false);
    let call = bridge("c1", &pod);
    let result = call.run("ADD", &conf).good();
    let text = |at: usize, key: &str| result["interfaces"][at][key].as_str().unwrap().to_owned();
    let found = || tool(&["nft", "list", "table", "bridge", "nat"]);
    assert_eq!(found(), spoof_check(&text(1, "name"), &text(2, "mac")));
    let host = UdpSocket::bind("10.244.1.1:7777").unwrap();
    host.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let reaches = || {
        let send = || UdpSocket::bind("10.244.1.2:0").unwrap().send_to(b"x", "10.244.1.1:7777").unwrap();
        NetNamespace::open(Path::new(&pod)).unwrap().run(send).unwrap();
        host.recv(&mut [0; 8]).is_ok()
    };
    assert!((0..10).any(|_| reaches()), "a loaded machine may lose the first ones");
    tool(&["nsenter", &format!("--net={pod}"), "ip", "link", "set", "eth0", "address", "02:00:00:00:00:07"]);
    assert!(!reaches());
    call.run("DEL", &conf).good();
    assert_eq!(found(), NO_SPOOF_CHECK);
    call.run("DEL", &conf).good();
    // What an ADD made before it failed goes with it.
    conf["mtu"] = json!(70);
    call.run("ADD", &conf).failure();
    assert_eq!(found(), NO_SPOOF_CHECK);
}

#[test]
fn gc_frees_what_killed_adds_left_of_pods_that_live() {
    if !rerun_enclosed("gc_frees_what_killed_adds_left_of_pods_that_live") {
        return;
    }
    make_node();
    let mut conf = conf();
    conf["macspoofchk"] = json!(true);
    let pods = [make_pod("a"), make_pod("b")];
    let [killed, known] = [bridge("c1", &pods[0]), bridge("c2", &pods[1])];
    let add = |call: &Call<'_>| {
        call.run("ADD", &conf).good();
        // As an ADD leaves it that was killed before the container's end had an address.
        let inside = format!("--net={}", call.netns);
        tool(&["nsenter", &inside, "ip", "link", "set", "eth0", "down"]);
        tool(&["nsenter", &inside, "ip", "addr", "flush", "dev", "eth0"]);
    };
    let links = |pod: &str| ip(Some(pod), &["link"]).len();
    add(&known);
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
    for _ in 0..3 {
        add(&killed);
        known.run("GC", &gc).good();
        assert_eq!((links(&pods[0]), links(&pods[1])), (1, 2));
        let left = files(Path::new(FILES)).to_string();
        assert!(!left.contains("\"c1\\r") && left.contains("\"c2\\r"), "{left}");
        let checked = tool(&["nft", "list", "table", "bridge", "nat"]);
        assert!(!checked.contains("c1-eth0") && checked.contains("c2-eth0"), "{checked}");
        assert!(!rules().contains("id: c1") && rules().contains("id: c2"), "{}", rules());
    }
}

#[test]
fn an_interface_may_stay_down() {
    if !rerun_enclosed("an_interface_may_stay_down") {
        return;
    }
    make_node();
    let (pod, mut conf) = (make_pod("a"), conf());
    conf["disableContainerInterface"] = json!(true);
    let call = bridge("c1", &pod);
    let (code, msg, _) = call.run("ADD", &conf).failure();
    assert!(code == 7 && msg.ends_with("cannot use IPAM when DisableContainerInterface flag is set"), "{msg}");
    conf.as_object_mut().unwrap().remove("ipam");
    let result = call.run("ADD", &conf).good();
    let eth0 = ip(Some(&pod), &["link"]).into_iter().find(|link| link["ifname"] == "eth0").unwrap();
    assert!(!eth0["flags"].to_string().contains("\"UP\""), "{eth0}");
    assert_eq!(ip(None, &["link"]).iter().filter(|link| link["master"] == "cni0").count(), 1);
    call.run_after("CHECK", &conf, &result).good();
    call.run("DEL", &conf).good();
}

/// Kernels can be built without the filter; what is done where there is one, `vlan.rs` tests.
#[test]
fn a_vlan_is_refused_whole_where_the_kernel_cannot_filter() {
    if !rerun_enclosed("a_vlan_is_refused_whole_where_the_kernel_cannot_filter") {
        return;
    }
    make_node();
    tool(&["ip", "link", "add", "probe", "type", "bridge"]);
    let filters = !ip(None, &["link", "show", "probe"])[0]["linkinfo"]["info_data"]["vlan_default_pvid"].is_null();
    tool(&["ip", "link", "del", "probe"]);
    let (pod, mut conf) = (make_pod("a"), conf());
    let call = bridge("c1", &pod);
    for (key, value) in [("vlan", json!(100)), ("vlanTrunk", json!([{"minID": 7, "maxID": 9}]))] {
        conf[key] = value;
        let before = state(&[&pod]);
        let answer = call.run("ADD", &conf);
        assert_eq!(answer.ok, filters, "{}", answer.text);
        if filters {
            call.run("DEL", &conf).good();
            continue;
        }
        let (code, msg, hint) = answer.failure();
        assert_eq!(code, 999, "{msg}");
        assert!(msg.contains("cannot put a port of cni0 into a VLAN: this kernel's bridges do not filter"), "{msg}");
        assert!(hint.contains("CONFIG_BRIDGE_VLAN_FILTERING"), "{hint}");
        let mut after = state(&[&pod]);
        // `host-local` keeps its lock and the address given last.
        after["files"] = before["files"].clone();
        assert_eq!(before, after);
        assert!(!fs::exists("/run/files/cbr0/10.244.1.2").unwrap());
    }
    // What asks for no VLAN needs no filter.
    for (key, value) in [("vlan", json!(0)), ("vlanTrunk", Value::Null), ("preserveDefaultVlan", json!(true))] {
        conf[key] = value;
    }
    call.run("ADD", &conf).good();
    call.run("DEL", &conf).good();
}

#[test]
fn an_address_that_somebody_has_is_found_out() {
    if !rerun_enclosed("an_address_that_somebody_has_is_found_out") {
        return;
    }
    make_node();
    let (pod, other) = (make_pod("a"), make_pod("b"));
    let mut conf = conf();
    conf["ipMasq"] = json!(false);
    conf["ipam"]["ranges"] = json!([[{"subnet": "fd00:1::/64"}]]);
    bridge("c1", &other).run("ADD", &conf).good();
    let taken = ["nsenter", &format!("--net={other}"), "ip", "addr", "add", "fd00:1::3/64", "dev", "eth0", "nodad"];
    tool(&taken);
    conf["enabledad"] = json!(true);
    let (before, call) = (state(&[&pod])["host"].clone(), bridge("c2", &pod));
    let (code, msg, hint) = call.run("ADD", &conf).failure();
    assert_eq!((code, msg.as_str()), (999, "bridge: link eth0 has address fd00:1::3/64 in DADFAILED state"));
    assert!(hint.contains("find it"), "{hint}");
    let after = state(&[&pod]);
    assert_eq!(after["host"], before, "and nothing is left");
    assert!(
        !after["files"].to_string().contains("c2") && after[&pod]["links"].as_array().unwrap().len() == 1,
        "{after}"
    );
    call.run("ADD", &conf).good();
    let found = ip(Some(&pod), &["addr", "show", "dev", "eth0"]).remove(0)["addr_info"].clone();
    let own = found.as_array().unwrap().iter().find(|address| address["local"] == "fd00:1::4").unwrap();
    assert!(own["tentative"].is_null(), "looked for before the ADD returned: {own}");
}
