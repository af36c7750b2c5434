//! Test ring 3: whole networks of the built executable on real packets. Each test encloses itself in namespaces of its own
//! and brings up a lab there; one runs at a time, so that they do not take each other's processor.
#![allow(clippy::print_stdout, reason = "a test that fails shows what it had done")]

mod network;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flannel_core::addr::Family;
use flannel_core::state::State;
use flannel_lab::damage::Damage;
use flannel_lab::lab::Lab;
use flannel_lab::options::{FamilyName, LabOptions};
use flannel_lab::repair::{Injury, missing, storm};
use network::{DUAL, IPV4, alone, assert_all_proofs, enclosed, flannel, options, start, text};

/// A repair that takes longer does not follow what the kernel tells: packet rules are looked at every five seconds anyway. (The times
/// themselves are measured by `flannel lab break --all --times 50`.)
const BOUND: Duration = Duration::from_secs(4);
/// The same for iptables, whose rules may be looked at every five seconds only.
const IPTABLES_BOUND: Duration = Duration::from_secs(8);

#[test]
fn vxlan_connects_all_pods() {
    if enclosed("vxlan_connects_all_pods") {
        assert_all_proofs(&mut start(options(IPV4)));
    }
}

#[test]
fn vxlan_connects_all_pods_in_both_families_with_iptables() {
    if enclosed("vxlan_connects_all_pods_in_both_families_with_iptables") {
        assert_all_proofs(&mut start(LabOptions { nftables: false, ..options(DUAL) }));
    }
}

#[test]
fn vxlan_connects_all_pods_over_ipv6_alone() {
    if enclosed("vxlan_connects_all_pods_over_ipv6_alone") {
        assert_all_proofs(&mut start(options(&[FamilyName::Ipv6])));
    }
}

#[test]
fn direct_routing_goes_around_the_tunnel_on_one_segment_only() {
    if !enclosed("direct_routing_goes_around_the_tunnel_on_one_segment_only") {
        return;
    }
    let backend_options = [("DirectRouting".to_owned(), true.into())].into_iter().collect();
    let mut lab = start(LabOptions { segments: 2, backend_options, ..options(DUAL) });
    let routes = text(&lab, 0, "ip route show");
    let via = |node: usize| routes.lines().find(|line| line.starts_with(&subnet(&lab, node))).unwrap_or_default();
    assert!(via(2).contains("via 192.0.2.13 dev eth0"), "{routes}");
    assert!(via(1).contains("dev flannel.1 onlink"), "{routes}");
    assert_all_proofs(&mut lab);
}

#[test]
fn host_gw_connects_all_pods() {
    if enclosed("host_gw_connects_all_pods") {
        assert_all_proofs(&mut start(LabOptions { backend: "host-gw".into(), ..options(DUAL) }));
    }
}

/// The router carries what pods of different nodes say to each other, and flannel does nothing for it.
#[test]
fn alloc_leaves_the_way_to_others_alone() {
    if !enclosed("alloc_leaves_the_way_to_others_alone") {
        return;
    }
    let mut lab = start(LabOptions { backend: "alloc".into(), segments: 2, ..options(DUAL) });
    assert_all_proofs(&mut lab);
    let shown = |lab: &Lab, line: &str| lab.node(0).run_line(line).unwrap();
    let routes = shown(&lab, "ip route") + &shown(&lab, "ip -6 route");
    assert!(!routes.contains("10.244.2.0") && !routes.contains("fd00:10:244:2::"), "{routes}");
    assert!(!shown(&lab, "ip link").contains("flannel"));
    assert!(shown(&lab, "cat /run/flannel/subnet.env").contains("FLANNEL_MTU=1500\n"));
    let log = shown(&lab, "cat /run/flanneld.log");
    assert!(!log.contains("WARN") && log.contains("ready: 3 leases"), "{log}");
    let record = shown(&lab, "grep -rh 192.0.2.11 /run/lab/store/subnets");
    assert!(record.starts_with(r#"{"PublicIP":"192.0.2.11","PublicIPv6":"2001:db8:0:1::11","Sequence":"#), "{record}");
}

fn subnet(lab: &Lab, node: usize) -> String {
    lab.node(node).subnets().v4.expect("a lease").to_string()
}

/// What `ip`, `bridge` and `nft` print of flannel's objects on a node, without what changes by itself.
fn as_tools_print(lab: &Lab, node: usize) -> BTreeMap<&'static str, Vec<String>> {
    let commands = [
        "ip route show proto boot",
        "ip -6 route show proto boot",
        "ip -br address show dev flannel.1",
        "ip neigh show dev flannel.1 nud permanent",
        "bridge fdb show dev flannel.1",
        "nft -s list ruleset",
    ];
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.sort();
        lines
    };
    commands.into_iter().map(|command| (command, sorted(text(lab, node, command)))).collect()
}

/// Does every damage of a kind to the first node, so many times each, and sees each repaired.
fn assert_repaired(lab: &Lab, times: usize, bound: Duration, wanted: impl Fn(Damage) -> bool) -> usize {
    let mut done = 0;
    for damage in Damage::ALL.into_iter().filter(|damage| wanted(*damage)) {
        for _ in 0..times {
            let Some(injury) = lab.damage(0, damage).unwrap() else { continue };
            let took = lab.wait_repaired(&injury).unwrap_or_else(|error| {
                panic!("{}: {error}\n{}", injury.done.join("\n"), error.log().unwrap_or_default())
            });
            println!("{} repaired after {took:?}", damage.name());
            assert!(took < bound, "{} took {took:?}", damage.name());
            done += 1;
        }
    }
    done
}

#[test]
fn every_damage_is_repaired() {
    if !enclosed("every_damage_is_repaired") {
        return;
    }
    let mut lab = start(options(IPV4));
    let before = as_tools_print(&lab, 0);
    let inner = Damage::ALL.into_iter().filter(|damage| !damage.is_external()).count();
    assert_eq!(assert_repaired(&lab, 3, BOUND, |damage| !damage.is_external()), inner * 3);
    assert_eq!(as_tools_print(&lab, 0), before);
    assert_all_proofs(&mut lab);
}

#[test]
fn every_damage_is_repaired_in_both_families_with_iptables() {
    if !enclosed("every_damage_is_repaired_in_both_families_with_iptables") {
        return;
    }
    let mut lab = start(LabOptions { nftables: false, ..options(DUAL) });
    assert_repaired(&lab, 3, BOUND, |damage| !damage.is_external() && !damage.is_of_rules());
    assert_eq!(assert_repaired(&lab, 3, IPTABLES_BOUND, Damage::is_of_rules), 12);
    assert_all_proofs(&mut lab);
}

/// A chain of kube-proxy's tells which of the two kinds of iptables a node uses.
#[test]
fn rules_are_repaired_with_legacy_iptables() {
    if !enclosed("rules_are_repaired_with_legacy_iptables") {
        return;
    }
    let prepare = ["iptables-legacy", "ip6tables-legacy"].map(|program| format!("{program} -t nat -N KUBE-MARK-MASQ"));
    let mut lab = start(LabOptions { nftables: false, prepare: prepare.to_vec(), ..options(DUAL) });
    let jump = "-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG";
    assert!(text(&lab, 0, "iptables-legacy-save").contains(jump));
    assert!(!text(&lab, 0, "iptables-nft-save").contains("FLANNEL"));
    assert_repaired(&lab, 1, IPTABLES_BOUND, |damage| damage.is_of_rules() && damage != Damage::RulesUnhooked);
    let whole = lab.observe(0).unwrap();
    text(&lab, 0, "iptables-legacy -w -t nat -F POSTROUTING");
    let took = lab.wait_repaired(&Injury::by_hand(0, Damage::RulesUnhooked, whole)).unwrap();
    assert!(took < IPTABLES_BOUND, "{took:?}");
    assert!(text(&lab, 0, "iptables-legacy-save").contains(jump));
    assert_all_proofs(&mut lab);
}

#[test]
fn every_damage_is_repaired_under_host_gw() {
    if !enclosed("every_damage_is_repaired_under_host_gw") {
        return;
    }
    let mut lab = start(LabOptions { backend: "host-gw".into(), ..options(DUAL) });
    assert_eq!(assert_repaired(&lab, 3, BOUND, |damage| !damage.is_external()), 3 * 3 + 4 * 3);
    assert_repaired(&lab, 3, BOUND, Damage::is_external);
    assert_all_proofs(&mut lab);
}

#[test]
fn a_changed_external_interface_is_followed_without_restart() {
    if !enclosed("a_changed_external_interface_is_followed_without_restart") {
        return;
    }
    let mut lab = start(options(DUAL));
    let pid = lab.node(0).flanneld.pid();
    assert_eq!(assert_repaired(&lab, 3, BOUND, Damage::is_external), 9);
    assert_eq!(
        lab.node(0).external_addresses().unwrap(),
        lab.layout().moved(lab.options(), 0).map(|_, net| net.addr())
    );
    assert_eq!(lab.node(0).flanneld.pid(), pid);
    assert_all_proofs(&mut lab);
}

/// Runs the work while pods talk between all nodes and to the outside; nothing may be lost or go out unmasqueraded.
fn assert_undisturbed(lab: &mut Lab, work: impl FnOnce(&mut Lab)) {
    let families: Vec<Family> = Family::ALL.into_iter().filter(|family| lab.options().speaks(*family)).collect();
    let (mut pingers, mut flows) = (Vec::new(), Vec::new());
    for family in &families {
        let pod = |node: usize| &lab.node(node).pods()[0];
        for (from, to) in [(0, 1), (1, 0), (2, 0)] {
            pingers.push((from, to, lab.pinger(pod(from), pod(to), *family).unwrap()));
        }
        let own = *pod(0).addresses().get(*family).unwrap();
        flows.push((own, lab.flows(pod(0), *family).unwrap()));
    }
    std::thread::sleep(Duration::from_millis(300));
    work(lab);
    std::thread::sleep(Duration::from_millis(300));
    for (from, to, pinger) in pingers {
        let pings = pinger.finish().unwrap();
        assert!(pings.sent > 100, "only {} pings were sent", pings.sent);
        assert!(
            pings.lost.is_empty(),
            "node{} to node{}: {} of {} lost at {:?}",
            from + 1,
            to + 1,
            pings.lost.len(),
            pings.sent,
            pings.lost
        );
    }
    for (own, flow) in flows {
        let seen = flow.finish().unwrap();
        assert!(!seen.by_source.contains_key(&own), "unmasqueraded flows: {seen:?}");
        assert_eq!(seen.by_source.values().sum::<usize>(), seen.sent, "{seen:?}");
    }
}

/// A record of a node that is not there, made from another's, for a subnet and under an address of its own.
fn put_foreign_lease(lab: &Lab, subnet: &str, address: &str) {
    let store = Path::new("/run/lab/store/subnets");
    let mut entries = fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path());
    let model = entries.find(|path| path.extension().is_some_and(|end| end == "json")).unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(model).unwrap()).unwrap();
    record["PublicIP"] = address.into();
    record["BackendData"]["VtepMAC"] = "02:00:00:00:00:77".into();
    let staged = store.join(".staged");
    fs::write(&staged, record.to_string()).unwrap();
    fs::rename(staged, store.join(format!("{}.json", subnet.replace('/', "-")))).unwrap();
    assert!(lab.options().speaks(Family::V4));
}

fn remove_foreign_lease(subnet: &str) {
    fs::remove_file(Path::new("/run/lab/store/subnets").join(format!("{}.json", subnet.replace('/', "-")))).unwrap();
}

fn assert_restarts_are_silent(nftables: bool) {
    let mut lab = start(LabOptions { nftables, ..options(IPV4) });
    let arguments = lab.node(0).arguments().to_vec();
    assert_undisturbed(&mut lab, |lab| {
        lab.node_mut(0).flanneld.stop().unwrap();
        lab.node_mut(0).start_again(&arguments).unwrap();
    });
    assert_undisturbed(&mut lab, |lab| {
        lab.node_mut(0).flanneld.kill().unwrap();
        lab.node_mut(0).start_again(&arguments).unwrap();
    });
    let (gone, new) = ("10.244.201.0/24", "10.244.202.0/24");
    put_foreign_lease(&lab, gone, "192.0.2.201");
    wait_for_route(&lab, gone, true);
    assert_undisturbed(&mut lab, |lab| {
        lab.node_mut(0).flanneld.kill().unwrap();
        remove_foreign_lease(gone);
        put_foreign_lease(lab, new, "192.0.2.202");
        lab.node_mut(0).start_again(&arguments).unwrap();
        let routes = text(lab, 0, "ip route show");
        assert!(!routes.contains(gone) && routes.contains(new), "after the first pass:\n{routes}");
    });
}

fn wait_for_route(lab: &Lab, destination: &str, present: bool) {
    let since = Instant::now();
    while text(lab, 0, "ip route show").contains(destination) != present {
        assert!(since.elapsed() < BOUND, "the route to {destination} does not follow its lease");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn restarts_lose_nothing_with_nftables() {
    if enclosed("restarts_lose_nothing_with_nftables") {
        assert_restarts_are_silent(true);
    }
}

#[test]
fn restarts_lose_nothing_with_iptables() {
    if enclosed("restarts_lose_nothing_with_iptables") {
        assert_restarts_are_silent(false);
    }
}

#[test]
fn a_storm_of_damages_ends_in_the_wanted_state() {
    if !enclosed("a_storm_of_damages_ends_in_the_wanted_state") {
        return;
    }
    let minutes = std::env::var("FLANNEL_STORM_MINUTES").ok().and_then(|minutes| minutes.parse().ok()).unwrap_or(1);
    let mut lab = start(options(DUAL));
    let before: Vec<State> = (0..3).map(|node| lab.observe(node).unwrap()).collect();
    let result = storm(&lab, Duration::from_secs(minutes * 60), &mut |text| {
        println!("{text}");
        Ok(())
    });
    let storm = result.unwrap_or_else(|error| panic!("{error}\n{}", error.log().unwrap_or_default()));
    println!("{storm}");
    assert!(storm.damages > 50, "{storm}");
    assert!(storm.growth() <= 10.0, "{storm}");
    for (node, before) in before.iter().enumerate() {
        assert_eq!(missing(&lab.observe(node).unwrap(), before), Vec::<String>::new(), "left over on node{}", node + 1);
    }
    assert_all_proofs(&mut lab);
}

#[test]
fn the_command_proves_a_network_and_leaves_nothing() {
    let _turn = alone();
    let output = flannel(&["lab", "--nodes", "2", "--pods", "1"]).output().unwrap();
    let (said, complained) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.contains("✓ 2/2") && !said.contains('✗'), "{said}");
    assert!(!Path::new("/run/lab").exists());
}

#[test]
fn a_killed_lab_takes_everything_along() {
    use std::io::{BufRead, BufReader, Read};
    let _turn = alone();
    let mut lab = flannel(&["lab"]).spawn().unwrap();
    let mut said = BufReader::new(lab.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("starting a flanneld") {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "the lab ended by itself");
    }
    lab.kill().unwrap();
    lab.wait().unwrap();
    let since = Instant::now();
    said.read_to_end(&mut Vec::new()).unwrap();
    assert!(since.elapsed() < Duration::from_secs(10), "processes of the lab lived on");
}

#[test]
fn a_lab_is_kept_looked_at_entered_and_ended() {
    if !enclosed("a_lab_is_kept_looked_at_entered_and_ended") {
        return;
    }
    let run = |arguments: &[&str]| {
        let output = flannel(arguments).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text)
    };
    let (code, text) = run(&["lab", "ls"]);
    assert_eq!(
        (code, text.as_str()),
        (Some(1), "error: no lab of yours is up\nhint: start one with `flannel lab up`\n")
    );
    let (code, text) = run(&["lab", "up", "--nodes", "2", "--pods", "1"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(run(&["lab", "up"]).0, Some(1));
    let (code, text) = run(&["lab", "ls"]);
    assert!(code == Some(0) && text.contains("pod2-1") && text.contains("flannel.1"), "{text}");
    let (code, text) = run(&["lab", "exec", "pod1-1", "--", "sh", "-c", "ip -br address show dev eth0; exit 5"]);
    assert!(code == Some(5) && text.contains("10.244."), "{text}");
    let (code, text) = run(&["lab", "exec", "nobody", "--", "true"]);
    assert!(code == Some(1) && text.contains("nothing in the lab is called `nobody`"), "{text}");
    let (code, text) = run(&["lab", "break", "device-deleted", "--node", "node2"]);
    assert!(code == Some(0) && text.contains("repaired after"), "{text}");
    let (code, text) = run(&["lab", "break"]);
    assert!(code == Some(0) && Damage::ALL.iter().all(|damage| text.contains(damage.name())), "{text}");
    let (code, text) = run(&["lab", "prove"]);
    assert!(code == Some(0) && !text.contains('✗'), "{text}");
    assert_eq!(run(&["lab", "down"]).0, Some(0));
    assert_eq!(run(&["lab", "down"]).0, Some(1));
}

#[test]
fn the_picture_in_the_documents_is_the_default_labs() {
    if !enclosed("the_picture_in_the_documents_is_the_default_labs") {
        return;
    }
    let drawn = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lab.svg");
    for arguments in [&["lab", "up"][..], &["lab", "ls", "--svg", drawn.to_str().unwrap()], &["lab", "down"]] {
        let output = flannel(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/lab.svg");
    let (drawn, kept) = (fs::read_to_string(drawn).unwrap(), fs::read_to_string(kept).unwrap());
    assert!(
        drawn == kept,
        "out of date; `flannel lab up` and `flannel lab ls --svg docs/lab.svg` make it anew:\n{drawn}"
    );
}

/// The lab must be able to see what the tests above deny.
fn assert_damage_is_seen(nftables: bool) {
    let mut lab = start(LabOptions { nftables, ..options(DUAL) });
    let (from, to) = (&lab.node(0).pods()[0], &lab.node(1).pods()[0]);
    let own = *from.addresses().get(Family::V4).unwrap();
    let (pinger, flows) = (lab.pinger(from, to, Family::V4).unwrap(), lab.flows(from, Family::V4).unwrap());
    lab.node_mut(0).flanneld.stop().unwrap();
    let arguments = lab.node(0).arguments().to_vec();
    for damage in Damage::ALL.into_iter().filter(|damage| !damage.is_external()) {
        let whole = lab.observe(0).unwrap();
        lab.damage(0, damage).unwrap().expect("vxlan has something of every kind");
        assert_ne!(missing(&whole, &lab.observe(0).unwrap()), Vec::<String>::new(), "{}", damage.name());
        std::thread::sleep(Duration::from_millis(50));
        lab.node_mut(0).start_again(&arguments).unwrap();
        lab.node_mut(0).flanneld.stop().unwrap();
        assert_eq!(missing(&whole, &lab.observe(0).unwrap()), Vec::<String>::new(), "{}", damage.name());
    }
    assert!(!pinger.finish().unwrap().lost.is_empty());
    assert!(flows.finish().unwrap().by_source.contains_key(&own));
}

#[test]
fn without_flanneld_damage_is_seen_with_nftables() {
    if enclosed("without_flanneld_damage_is_seen_with_nftables") {
        assert_damage_is_seen(true);
    }
}

#[test]
fn without_flanneld_damage_is_seen_with_iptables() {
    if enclosed("without_flanneld_damage_is_seen_with_iptables") {
        assert_damage_is_seen(false);
    }
}

/// What flannel in Go leaves on the first node, made with the tools of the host (compat §6, §7) in the place of ours:
/// the same device and peers, one peer that has gone since, and the rules of iptables mode.
fn leave_as_go_does(lab: &Lab, gone: &str) {
    let own = device(lab, 0);
    let mut lines = vec![
        "ip link del flannel.1".to_owned(),
        format!(
            "ip link add flannel.1 address {} mtu 1450 type vxlan id 1 local {} dev eth0 dstport 8472 nolearning",
            own.mac, own.address
        ),
        "ip link set flannel.1 up".to_owned(),
        format!("ip address add {}/32 dev flannel.1", own.gateway),
    ];
    let departed = Device { gateway: gone.to_owned(), mac: "02:00:00:00:00:99".into(), address: "192.0.2.99".into() };
    for peer in [device(lab, 1), device(lab, 2), departed] {
        let Device { gateway, mac, address } = &peer;
        lines.push(format!("ip neigh replace {gateway} lladdr {mac} dev flannel.1 nud permanent"));
        lines.push(format!("bridge fdb replace {mac} dev flannel.1 dst {address} self permanent"));
        lines.push(format!("ip route add {gateway}/24 via {gateway} dev flannel.1 onlink"));
    }
    for line in lines {
        text(lab, 0, &line);
    }
}

/// A node's VXLAN device as its peers need to know it.
struct Device {
    gateway: String,
    mac: String,
    address: String,
}

fn device(lab: &Lab, node: usize) -> Device {
    let mac = text(lab, node, "ip -br link show dev flannel.1").split_whitespace().nth(2).unwrap().to_owned();
    let address = lab.node(node).external_addresses().unwrap().v4.unwrap().to_string();
    Device { gateway: lab.node(node).subnets().v4.unwrap().network().to_string(), mac, address }
}

/// Whether the kernel tells a program of what changes: it has a netlink socket, which has its number, with groups.
fn listens(program: &Child) -> bool {
    let id = program.id().to_string();
    let sockets = fs::read_to_string(format!("/proc/{id}/net/netlink")).unwrap();
    sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|words| {
        let has_groups = words[3].bytes().any(|digit| digit != b'0');
        words[2] == id && has_groups
    })
}

/// Everything that changes on a node's devices, routes and rules during some work, as `ip monitor` and `nft monitor` tell it.
fn changes_during(lab: &mut Lab, work: impl FnOnce(&mut Lab)) -> Vec<String> {
    let monitor = |program: &str, arguments: &[&str], file: &Path| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(fs::File::create(file).unwrap());
        command
    };
    let files = [Path::new("/run/ip-monitor"), Path::new("/run/fdb-monitor"), Path::new("/run/nft-monitor")];
    let node = lab.node(0).place();
    let mut monitors = [
        node.spawn(monitor("ip", &["monitor", "link", "address", "route", "neigh"], files[0])).unwrap(),
        node.spawn(monitor("bridge", &["monitor", "fdb"], files[1])).unwrap(),
        node.spawn(monitor("nft", &["monitor"], files[2])).unwrap(),
    ];
    let since = Instant::now();
    while !monitors.iter().all(listens) {
        assert!(since.elapsed() < BOUND, "the monitors are not told of anything");
        std::thread::sleep(Duration::from_millis(10));
    }
    work(lab);
    std::thread::sleep(Duration::from_millis(500));
    for monitor in &mut monitors {
        monitor.kill().unwrap();
        monitor.wait().unwrap();
    }
    let told = files.map(|file| fs::read_to_string(file).unwrap()).concat();
    told.lines().filter(|line| line.contains("flannel")).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_node_of_flannel_in_go_is_taken_over_without_touching_what_agrees() {
    if !enclosed("a_node_of_flannel_in_go_is_taken_over_without_touching_what_agrees") {
        return;
    }
    let mut lab = start(LabOptions { nftables: false, ..options(IPV4) });
    let arguments = lab.node(0).arguments().to_vec();
    let iptables = text(&lab, 0, "iptables-save");
    lab.node_mut(0).flanneld.stop().unwrap();
    leave_as_go_does(&lab, "10.244.250.0");
    let index = |lab: &Lab| text(lab, 0, "ip -o link show dev flannel.1").split(':').next().unwrap().to_owned();
    let before = index(&lab);
    let mut changes = Vec::new();
    assert_undisturbed(&mut lab, |lab| {
        changes = changes_during(lab, |lab| lab.node_mut(0).start_again(&arguments).unwrap());
    });
    assert_eq!(index(&lab), before, "the device is the same one");
    let strangers: Vec<_> =
        changes.iter().filter(|line| !line.contains("10.244.250.0") && !line.contains("02:00:00:00:00:99")).collect();
    assert!(strangers.is_empty(), "touched although it agreed: {strangers:#?}");
    assert!(changes.len() >= 3, "route, neighbour and forwarding entry of the peer that is gone go: {changes:#?}");
    let counted =
        |text: &str| text.lines().filter(|l| !l.starts_with(['#', ':'])).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(counted(&text(&lab, 0, "iptables-save")), counted(&iptables));
    assert_all_proofs(&mut lab);
}

#[test]
fn a_switch_of_rule_systems_leaves_nothing_of_the_other() {
    if !enclosed("a_switch_of_rule_systems_leaves_nothing_of_the_other") {
        return;
    }
    let mut lab = start(LabOptions { nftables: false, ..options(IPV4) });
    assert!(text(&lab, 0, "iptables-save").contains("FLANNEL-POSTRTG"));
    let config = Path::new("/run/lab/store/config.json");
    let switched = fs::read_to_string(config).unwrap().replace("\"EnableNFTables\":false", "\"EnableNFTables\":true");
    assert!(switched.contains("\"EnableNFTables\":true"), "{switched}");
    fs::write("/run/lab/store/.config", switched).unwrap();
    assert_undisturbed(&mut lab, |lab| {
        fs::rename("/run/lab/store/.config", config).unwrap();
        let since = Instant::now();
        while !text(lab, 0, "nft list tables").contains("flannel-ipv4")
            || text(lab, 0, "nft list ruleset").contains("FLANNEL")
        {
            assert!(since.elapsed() < BOUND, "{}", text(lab, 0, "nft list ruleset"));
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    assert_all_proofs(&mut lab);
}
