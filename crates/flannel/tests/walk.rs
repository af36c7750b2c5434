//! Test ring 3: `flannel lab walk` on whole networks and on broken ones, on the real kernel. Each test encloses itself in
//! namespaces of its own; one runs at a time.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flannel_kernel::process::{Enclosed, rerun_enclosed};
use flannel_lab::damage::Damage;
use flannel_lab::lab::Lab;
use flannel_lab::options::{FamilyName, LabOptions};
use flannel_lab::repair::Injury;
use flannel_lab::walk::Asked;
use flannel_lab::walk::story::{Cause, Direction, Outcome, Step, Story};

const FLANNEL: &str = env!("CARGO_BIN_EXE_flannel");

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the test in namespaces, alone; inside, answers with true.
fn enclosed(test: &str) -> bool {
    let _turn = alone();
    rerun_enclosed(test)
}

fn start(options: LabOptions) -> Lab {
    let enclosed = Enclosed::here().expect("the test encloses itself first");
    let options = LabOptions { nodes: 2, ..options };
    Lab::start(enclosed, options, Path::new(FLANNEL), &mut |_| ()).unwrap_or_else(|error| {
        let log = error.log().unwrap_or_default();
        panic!("{error}: {:?}\n{log}", std::error::Error::source(&error).map(ToString::to_string))
    })
}

fn options(families: &[FamilyName]) -> LabOptions {
    LabOptions { families: families.to_vec(), ..LabOptions::default() }
}

const IPV4: &[FamilyName] = &[FamilyName::Ipv4];
const DUAL: &[FamilyName] = &[FamilyName::Ipv4, FamilyName::Ipv6];

fn asked(from: &str, to: &str, ip: u8) -> Asked {
    Asked { from: from.into(), to: to.into(), ip: Some(ip), size: 56, fresh: false }
}

fn walk(lab: &Lab, asked: &Asked) -> Story {
    lab.walk(asked).unwrap().story
}

/// Where it was seen, in order: `node1<cni0` is coming in, `node1>eth0` going out. Pods' devices on the node are `veth`.
fn path(steps: &[Step]) -> String {
    let seen = steps.iter().filter_map(|step| match step {
        Step::Seen { point, .. } => {
            let device = if point.device.starts_with("veth") { "veth" } else { point.device.as_str() };
            let arrow = if point.direction == Direction::In { "<" } else { ">" };
            Some(format!("{}{arrow}{device}", point.place))
        }
        _ => None,
    });
    seen.collect::<Vec<_>>().join(" ")
}

fn assert_answered(story: &Story) {
    assert!(matches!(story.outcome, Outcome::Answered { .. }), "{story:#?}");
    let times: Vec<u64> = story.request.iter().chain(&story.reply).filter_map(time).collect();
    assert!(times.is_sorted(), "in order of travel: {story:#?}");
}

fn time(step: &Step) -> Option<u64> {
    if let Step::Seen { at_ns, .. } = step { Some(*at_ns) } else { None }
}

#[test]
fn a_ping_is_seen_at_every_device_of_its_way() {
    if !enclosed("a_ping_is_seen_at_every_device_of_its_way") {
        return;
    }
    let lab = start(options(DUAL));
    for (ip, tunnel) in [(4, "flannel.1"), (6, "flannel-v6.1")] {
        let story = walk(&lab, &asked("pod1-1", "pod2-1", ip));
        assert_answered(&story);
        let half = |from: &str, to: &str, a: &str, b: &str| {
            format!(
                "{from}>eth0 {a}<veth {a}<cni0 {a}>{tunnel} {a}>eth0 router<{a} router>{b} {b}<eth0 {b}<{tunnel} {b}>cni0 \
                 {b}>veth {to}<eth0"
            )
        };
        assert_eq!(path(&story.request), half("pod1-1", "pod2-1", "node1", "node2"));
        assert_eq!(path(&story.reply), half("pod2-1", "pod1-1", "node2", "node1"));
        let near = walk(&lab, &asked("pod1-1", "pod1-2", ip));
        assert_answered(&near);
        assert_eq!(path(&near.request), "pod1-1>eth0 node1<veth node1>veth pod1-2<eth0");
    }
}

#[test]
fn every_backend_has_its_own_way() {
    if !enclosed("every_backend_has_its_own_way") {
        return;
    }
    let direct = LabOptions {
        backend_options: [("DirectRouting".to_owned(), true.into())].into_iter().collect(),
        ..options(DUAL)
    };
    let lab = start(direct);
    for ip in [4, 6] {
        let story = walk(&lab, &asked("pod1-1", "pod2-1", ip));
        assert_answered(&story);
        let bare = "pod1-1>eth0 node1<veth node1<cni0 node1>eth0 router<node1 router>node2 node2<eth0 node2>cni0 node2>veth \
                    pod2-1<eth0";
        assert_eq!(path(&story.request), bare);
    }
}

#[test]
fn host_gw_and_iptables_are_followed_too() {
    if !enclosed("host_gw_and_iptables_are_followed_too") {
        return;
    }
    let lab = start(LabOptions { backend: "host-gw".into(), nftables: false, ..options(DUAL) });
    for ip in [4, 6] {
        let story = walk(&lab, &asked("pod1-1", "pod2-1", ip));
        assert_answered(&story);
        assert!(
            path(&story.request).contains("node1>eth0 router<node1 router>node2 node2<eth0 node2>cni0"),
            "{story:#?}"
        );
        assert!(rules(&story.request).iter().any(|rule| rule.contains("FLANNEL-FWD")), "{story:#?}");
    }
}

/// Every rule as `table chain verdict`.
fn rules(steps: &[Step]) -> Vec<String> {
    let rules = steps.iter().filter_map(|step| match step {
        Step::Rule { table, chain, verdict, .. } => Some(format!("{table} {chain} {verdict}")),
        _ => None,
    });
    rules.collect()
}

#[test]
fn the_router_is_passed_between_segments_and_the_world_sees_the_node() {
    if !enclosed("the_router_is_passed_between_segments_and_the_world_sees_the_node") {
        return;
    }
    let lab = start(LabOptions { segments: 2, ..options(DUAL) });
    for (ip, node) in [(4, "192.0.2.11"), (6, "2001:db8:0:1::11")] {
        let story = walk(&lab, &asked("pod1-1", "pod2-1", ip));
        assert_answered(&story);
        assert!(path(&story.request).contains("router<node1 router<seg1 router>seg2 router>node2"), "{story:#?}");
        let story = walk(&lab, &asked("pod1-1", "outside", ip));
        assert_answered(&story);
        let table = if ip == 4 { "ip flannel-ipv4" } else { "ip6 flannel-ipv6" };
        assert!(rules(&story.request).contains(&format!("{table} postrtg masquerade")), "{story:#?}");
        let translated = |steps: &[Step], wanted: &str| {
            steps.iter().any(|step| {
                matches!(step, Step::Nat { end, after, place, .. }
                if end == wanted && place == "node1" && (wanted == "destination" || after.to_string() == node))
            })
        };
        assert!(translated(&story.request, "source") && translated(&story.reply, "destination"), "{story:#?}");
    }
    let story = walk(&lab, &asked("node1", "pod2-1", 4));
    assert_answered(&story);
    assert!(path(&story.request).starts_with("node1>flannel.1 node1>eth0"), "{story:#?}");
    let story = walk(&lab, &Asked { fresh: true, ..asked("pod1-1", "pod1-2", 4) });
    let asks =
        |step: &Step| matches!(step, Step::Resolution { text, .. } if text.starts_with("ARP who has 10.244.1.3?"));
    assert!(story.request.iter().any(asks), "{story:#?}");
}

/// A damage that walk must explain.
struct Broken {
    /// Where it is done, by a line for a shell.
    on: &'static str,
    line: &'static str,
    /// What undoes it; what is flannel's flanneld undoes.
    mend: &'static str,
    /// From pod1-1 to whom, with how much data.
    to: &'static str,
    size: usize,
    cause: Cause,
    place: &'static str,
    says: &'static str,
    remedy: &'static str,
}

impl Broken {
    const fn new(on: &'static str, line: &'static str, cause: Cause, place: &'static str, says: &'static str) -> Self {
        Self { on, line, mend: "", to: "pod2-1", size: 56, cause, place, says, remedy: "" }
    }

    /// What the remedy says.
    const fn remedy(self, remedy: &'static str) -> Self {
        Self { remedy, ..self }
    }

    const fn mend(self, mend: &'static str) -> Self {
        Self { mend, ..self }
    }

    /// Between two pods of node1.
    const fn near(self) -> Self {
        Self { to: "pod1-2", ..self }
    }
}

/// A chain of somebody's that drops, on a hook; `HOOK` and `RULE` are put in.
const DROP: &str =
    "nft add table ip t; nft add chain ip t c '{ type filter hook HOOK priority 5; }'; nft add rule ip t c RULE drop";
const NO_DROP: &str = "nft delete table ip t";
const POD_ROUTES: &str = "ip route replace default via 10.244.2.1; ip route replace 10.244.0.0/16 via 10.244.2.1";

fn drops(on: &'static str, hook: &str, rule: &str, says: &'static str) -> Broken {
    let line = DROP.replace("HOOK", hook).replace("RULE", rule).leak();
    Broken::new(on, line, Cause::Rule, on, says).mend(NO_DROP)
}

fn broken_networks() -> Vec<Broken> {
    use Cause::{
        DeviceDown, DeviceMissing, EchoIgnored, FdbMissing, FdbWrong, ForwardingOff, NeighbourUnanswered,
        NeighbourWrong, NoAddress, NoRoute, NotMasqueraded, ReversePathFilter, RouteRefuses, TooBig, VxlanMismatch,
    };
    let broken = Broken::new;
    vec![
        broken(
            "node1",
            "ip route del 10.244.2.0/24",
            NoRoute,
            "router",
            "node1 has no route of flannel's to 10.244.2.0/24",
        ),
        broken(
            "node2",
            "ip route del 10.244.1.0/24",
            NoRoute,
            "router",
            "node2 has no route of flannel's to 10.244.1.0/24",
        ),
        broken("node1", "ip route replace blackhole 10.244.2.0/24", RouteRefuses, "node1", "`blackhole 10.244.2.0/24`"),
        broken(
            "node1",
            "ip route replace unreachable 10.244.2.0/24",
            RouteRefuses,
            "node1",
            "`unreachable 10.244.2.0/24`",
        ),
        broken("node1", "ip route replace prohibit 10.244.2.0/24", RouteRefuses, "node1", "`prohibit 10.244.2.0/24`"),
        drops("node1", "forward", "icmp type echo-request", "table ip t, chain c handle"),
        drops("node2", "forward", "icmp type echo-reply", "table ip t, chain c handle"),
        drops("node2", "input", "udp dport 8472", "table ip t, chain c handle"),
        drops("router", "forward", "udp dport 8472", "table ip t, chain c handle"),
        drops("pod1-1", "output", "icmp type echo-request", "table ip t, chain c handle"),
        drops("pod2-1", "input", "icmp type echo-request", "table ip t, chain c handle"),
        broken("pod2-1", "ip link set eth0 down", DeviceDown, "pod2-1", "eth0 of pod2-1 is down")
            .mend("ip link set eth0 up; POD_ROUTES"),
        broken(
            "pod2-1",
            "ip address del 10.244.2.2/24 dev eth0",
            NoAddress,
            "pod2-1",
            "does not have the address 10.244.2.2",
        )
        .mend("ip address add 10.244.2.2/24 brd + dev eth0; POD_ROUTES"),
        broken(
            "node1",
            "ip neigh flush dev flannel.1 nud all",
            NeighbourUnanswered,
            "node1",
            "no neighbour entry for 10.244.2.0",
        ),
        broken(
            "node1",
            "ip neigh replace 10.244.2.0 dev flannel.1 lladdr 02:00:00:00:00:99 nud permanent",
            NeighbourWrong,
            "node1",
            "lladdr 02:00:00:00:00:99 PERMANENT` is wrong, node2 has",
        ),
        broken(
            "node1",
            "FDB del $mac dev flannel.1",
            FdbMissing,
            "node1",
            "flannel.1 of node1 has no forwarding (FDB) entry",
        ),
        broken(
            "node1",
            "FDB replace $mac dev flannel.1 dst 192.0.2.250 self permanent",
            FdbWrong,
            "node1",
            "to 192.0.2.250, but that MAC is node2's, at 192.0.2.12",
        ),
        broken("node2", "sysctl -qw net.ipv4.ip_forward=0", ForwardingOff, "node2", "net.ipv4.ip_forward is 0")
            .mend("sysctl -qw net.ipv4.ip_forward=1"),
        broken(
            "node2",
            "sysctl -qw net.ipv4.conf.all.rp_filter=1; ip route del 10.244.1.0/24",
            ReversePathFilter,
            "node2",
            "net.ipv4.conf.all.rp_filter refuses 10.244.1.2 coming in by flannel.1 of node2",
        )
        .mend("sysctl -qw net.ipv4.conf.all.rp_filter=0"),
        broken("node2", "ip link set flannel.1 down", DeviceDown, "node2", "flannel.1 of node2 is down"),
        broken("node2", "ip link del flannel.1", DeviceMissing, "node2", "no flannel.1"),
        broken(
            "node2",
            "NEW 7 8472",
            VxlanMismatch,
            "node2",
            "VNI 1 to port 8472, but flannel.1 of node2 has VNI 7 and port 8472",
        ),
        broken(
            "node2",
            "NEW 1 8473",
            VxlanMismatch,
            "node2",
            "VNI 1 to port 8472, but flannel.1 of node2 has VNI 1 and port 8473",
        ),
        broken("node1", "ip link set cni0 down", DeviceDown, "node1", "cni0 of node1 is down")
            .mend("ip link set cni0 up"),
        broken("node1", "ip link set eth0 down", DeviceDown, "node1", "eth0 of node1 is down")
            .mend("ip link set eth0 up; ip route replace default via 192.0.2.1"),
        broken("node2", "ip link set eth0 down", DeviceDown, "node1", "it is on eth0 of node2, which is down")
            .mend("ip link set eth0 up; ip route replace default via 192.0.2.1"),
        broken(
            "node2",
            "ip address del 192.0.2.12/24 dev eth0",
            NoAddress,
            "node1",
            "it is on eth0 of node2, which has lost it",
        )
        .mend("ip address add 192.0.2.12/24 brd + dev eth0; ip route replace default via 192.0.2.1"),
        broken(
            "node2",
            "ip link set eth0 arp off",
            NeighbourUnanswered,
            "node1",
            "eth0 of node2 is set to `arp off`; so ARP for 192.0.2.12 on eth0 of node1 has no answer",
        )
        .mend("ip link set eth0 arp on"),
        Broken { size: 1400, ..broken("node1", "ip link set flannel.1 mtu 1300", TooBig, "node1", "1428 bytes") }
            .mend("ip link set flannel.1 mtu 1450"),
        broken("pod1-1", "ip route flush table main", NoRoute, "pod1-1", "pod1-1 has no route to 10.244.2.2")
            .mend("ip route add 10.244.1.0/24 dev eth0; ip route add default via 10.244.1.1"),
        broken("pod2-1", "sysctl -qw net.ipv4.icmp_echo_ignore_all=1", EchoIgnored, "pod2-1", "answers no pings")
            .mend("sysctl -qw net.ipv4.icmp_echo_ignore_all=0"),
        Broken {
            to: "outside",
            ..broken("router", "sysctl -qw net.ipv4.ip_forward=0", ForwardingOff, "router", "ip_forward is 0")
        }
        .mend("sysctl -qw net.ipv4.ip_forward=1"),
        Broken {
            to: "outside",
            ..broken("node1", "nft flush chain ip flannel-ipv4 postrtg", NotMasqueraded, "router", "not masqueraded")
        },
        broken("pod1-1", "ip link del eth0", DeviceMissing, "pod1-1", "pod1-1 has no eth0"),
    ]
}

/// What is wrong beside flannel: a bridge's ports, the administrator's routes, rules and sizes.
fn broken_surroundings() -> Vec<Broken> {
    use Cause::{BridgePort, NeighbourWrong, NoAddress, NoRoute, RouteRefuses, TooBig, Unknown};
    let broken = Broken::new;
    let dnat = "nft add table ip t; nft add chain ip t c '{ type nat hook prerouting priority -110; }'; \
                nft add rule ip t c ip daddr 10.244.2.2 icmp type echo-request dnat to 10.244.2.77";
    let bridge = "nft add table bridge t; nft add chain bridge t c '{ type filter hook forward priority 0; }'; \
                  nft add rule bridge t c drop";
    let netdev = "nft add table netdev t; nft add chain netdev t c '{ type filter hook ingress device eth0 priority 0; }'; \
                  nft add rule netdev t c udp dport 8472 drop";
    let by_rule = "ip route add 10.244.2.0/24 via 192.0.2.1 table 77; ip rule add from 10.244.1.0/24 lookup 77 prio 10";
    let no_rule = "ip rule del prio 10; ip route flush table 77";
    vec![
        broken("node1", "VETHS nomaster", BridgePort, "node1", "of node1 is no port of a bridge")
            .mend("VETHS master cni0"),
        broken("node2", "VETHS nomaster", BridgePort, "node2", "of node2 is no port of a bridge")
            .mend("VETHS master cni0"),
        broken("node1", "VETHS type bridge_slave isolated on", BridgePort, "node1", "of node1 are isolated ports")
            .near()
            .mend("VETHS type bridge_slave isolated off"),
        broken("router", "ip link set node2 nomaster", BridgePort, "router", "node2 of router is no port of a bridge")
            .mend("ip link set node2 master seg1"),
        broken(
            "node2",
            "ip link set flannel.1 address 02:00:00:00:00:99",
            NeighbourWrong,
            "node1",
            "flannel.1 of node2 has 02:00",
        ),
        broken("node2", "ip address flush dev cni0", NoAddress, "router", "cni0 of node2 has no IPv4 address")
            .mend("ip address add 10.244.2.1/24 brd + dev cni0"),
        broken(
            "node1",
            "ip rule add from 10.244.1.0/24 blackhole prio 10",
            RouteRefuses,
            "node1",
            "before it is looked at",
        )
        .mend("ip rule del prio 10"),
        broken("node1", by_rule, NoRoute, "router", "leads to router, and the way to 10.244.2.2 is by node2")
            .mend(no_rule),
        broken("node1", dnat, Cause::Rule, "node1", "changed the destination 10.244.2.2 to 10.244.2.77").mend(NO_DROP),
        broken("node1", bridge, Cause::Rule, "node1", "table bridge t, chain c handle")
            .near()
            .mend("nft delete table bridge t"),
        broken("node2", netdev, Unknown, "node2", "nothing that node2 tells").mend("nft delete table netdev t"),
        Broken {
            size: 1400,
            ..broken("node2", "ip link set eth0 mtu 1300", TooBig, "node2", "eth0 of node2, with MTU 1300")
        }
        .mend("ip link set eth0 mtu 1500"),
    ]
}

/// Routes, addresses and neighbours that are plausible and wrong.
fn broken_plans() -> Vec<Broken> {
    use Cause::{DeviceDown, DuplicateAddress, NeighbourUnanswered, NoAddress, NoRoute, Rule};
    let broken = Broken::new;
    let dnat = "nft add table ip t; nft add chain ip t c '{ type nat hook prerouting priority -110; }'; \
                nft add rule ip t c ip daddr 10.244.2.2 icmp type echo-request dnat to 10.244.2.3";
    vec![
        broken("node1", "ip route add 10.244.2.2 dev cni0", NoRoute, "node1", "10.244.2.2 is not on the link of cni0; so ARP")
            .remedy("ip route delete 10.244.2.2 dev cni0")
            .mend("ip route del 10.244.2.2"),
        broken("pod1-1", "ip route replace 10.244.0.0/16 via 10.244.1.3", NoRoute, "pod1-2", "leads to pod1-2, and the way to 10.244.2.2 is by node1; so")
            .mend("ip route replace 10.244.0.0/16 via 10.244.1.1"),
        broken("pod2-1", "ip address flush dev eth0; ip address add 10.244.2.2/16 dev eth0", NoRoute, "pod2-1", "10.244.1.2 is not on the link of eth0")
            .remedy("the right prefix length")
            .mend("ip address flush dev eth0; ip address add 10.244.2.2/24 brd + dev eth0; POD_ROUTES"),
        broken("node2", "TWICE add 10.244.2.2/24", DuplicateAddress, "pod2-2", "pod2-1 and pod2-2 both have 10.244.2.2")
            .remedy("take 10.244.2.2 from pod2-2")
            .mend("TWICE del 10.244.2.2/24"),
        broken("node1", dnat, Rule, "node1", "to 10.244.2.3, where pod2-2 answered").mend(NO_DROP),
        broken("node2", "ip address add 10.244.1.2/32 dev lo", DuplicateAddress, "node2", "node2 has 10.244.1.2 itself")
            .mend("ip address del 10.244.1.2/32 dev lo"),
        broken("node1", "ip address flush dev cni0; ip -n pod1-1 neigh flush all", NoAddress, "pod1-1", "it is on cni0 of node1, which has lost it")
            .mend("ip address add 10.244.1.1/24 brd + dev cni0; ip -n pod1-1 neigh flush all"),
        broken("node1", "ip address del 192.0.2.11/24 dev eth0; ip address add 192.0.2.77/24 dev eth0", NoAddress, "node1", "flannel.1 of node1 is at 192.0.2.11, but node1 has 192.0.2.77 instead")
            .mend("ip address del 192.0.2.77/24 dev eth0; ip address add 192.0.2.11/24 brd + dev eth0; ip route replace default via 192.0.2.1"),
        broken("node2", "sysctl -qw net.ipv4.conf.eth0.arp_ignore=8", NeighbourUnanswered, "node1", "net.ipv4.conf.eth0.arp_ignore of node2 is 8")
            .mend("sysctl -qw net.ipv4.conf.eth0.arp_ignore=0"),
        broken("router", "ip link set node2 down", DeviceDown, "node1", "node2 of router is down; so ARP for 192.0.2.12")
            .mend("ip link set node2 up"),
        broken("node1", "NO_ANSWER ether type arp", Rule, "pod1-1", "a packet rule of node1 dropped ARP for 10.244.1.3: table bridge t, chain c").near()
            .mend("nft delete table bridge t"),
    ]
}

/// Runs a line at a place; `NEW VNI PORT` makes another flannel.1, `FDB` and `FDB6` are `bridge fdb` with
/// the peer's `$mac`, `VETHS` sets something on every pod's device of a node, `TWICE` gives pod2-2 an address of pod2-1's, which
/// node2 then finds there, and `NO_ANSWER` drops on node1's bridge what pod1-1 has to ask again.
fn run(lab: &Lab, place: &str, line: &str) {
    let fdb = |dev: &str| format!("mac=$(bridge fdb show dev {dev} | grep dst | cut -d' ' -f1); bridge fdb");
    let line =
        line.replace("FDB6", &fdb("flannel-v6.1")).replace("FDB", &fdb("flannel.1")).replace("POD_ROUTES", POD_ROUTES);
    let line = match line.strip_prefix("VETHS ") {
        Some(set) => format!("for d in $(ip -o link | grep -o 'veth[0-9a-f]*'); do ip link set $d {set}; done"),
        None => line,
    };
    let line = match line.strip_prefix("TWICE ").and_then(|rest| rest.split_once(' ')) {
        Some((verb, net)) => {
            let neigh =
                format!("ip neigh {} {} dev cni0", verb.replace("add", "replace"), net.split_once('/').unwrap().0);
            let dad = if net.contains(':') { "nodad" } else { "" };
            format!(
                "ip -n pod2-2 address {verb} {net} dev eth0 {dad}; {neigh} lladdr $(ip netns exec pod2-2 cat /sys/class/net/eth0/address)"
            )
        }
        None => line,
    };
    let line = match line.strip_prefix("NO_ANSWER ") {
        Some(rule) => format!(
            "nft add table bridge t; nft add chain bridge t c '{{ type filter hook forward priority 0; }}'; \
             nft add rule bridge t c {rule} drop; ip -n pod1-1 neigh flush all"
        ),
        None => line,
    };
    let line = match line.strip_prefix("NEW ").and_then(|rest| rest.split_once(' ')) {
        Some((vni, port)) => format!(
            "ip link del flannel.1; ip link add flannel.1 type vxlan id {vni} dstport {port} local 192.0.2.12 dev eth0 nolearning \
             && ip link set flannel.1 up"
        ),
        None => line,
    };
    let output = lab.place(place).unwrap().exec("sh", &["-c", &line]).unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Sends a signal to every flanneld.
fn signal(lab: &Lab, signal: &str) {
    for pid in lab.nodes().iter().filter_map(|node| node.flanneld.pid()) {
        assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
    }
}

/// Halts every flanneld, and returns when all their threads are.
fn halt(lab: &Lab) {
    signal(lab, "-STOP");
    for pid in lab.nodes().iter().filter_map(|node| node.flanneld.pid()) {
        let halted = |task: fs::DirEntry| {
            let state = fs::read_to_string(task.path().join("stat")).unwrap();
            state.rsplit_once(") ").unwrap().1.starts_with('T')
        };
        while !fs::read_dir(format!("/proc/{pid}/task")).unwrap().all(|task| halted(task.unwrap())) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// In which way a story does not explain a damage.
fn unlike(case: &Broken, story: &Story) -> Option<String> {
    let found = match &story.outcome {
        Outcome::Died(death) => death,
        Outcome::Answered { .. } => return Some(format!("`{}` on {} kills no packet", case.line, case.on)),
    };
    let explained = (found.cause, found.place.as_str()) == (case.cause, case.place)
        && found.why.contains(case.says)
        && found.remedy.contains(case.remedy);
    (!explained).then(|| format!("`{}` on {}: {found:#?}", case.line, case.on))
}

/// Breaks a whole network in one way after another, each mended before the next; both flannelds are halted meanwhile.
fn assert_explained(lab: &Lab, ip: u8, cases: &[Broken]) {
    let whole: Vec<_> = (0..2).map(|node| lab.observe(node).unwrap()).collect();
    let mut unexplained = Vec::new();
    for case in cases {
        halt(lab);
        run(lab, case.on, case.line);
        run(lab, "node1", "ip neigh flush dev eth0");
        unexplained.extend(unlike(case, &walk(lab, &Asked { size: case.size, ..asked("pod1-1", case.to, ip) })));
        run(lab, case.on, case.mend);
        signal(lab, "-CONT");
        for (node, whole) in whole.iter().enumerate() {
            lab.wait_repaired(&Injury::by_hand(node, Damage::DeviceDeleted, whole.clone())).unwrap();
        }
    }
    assert!(unexplained.is_empty(), "{}", unexplained.join("\n"));
}

/// A reply that has to be cut comes all the same: its way is told to the end, and who cut it.
fn assert_cut_and_whole(lab: &Lab) {
    halt(lab);
    run(lab, "node2", "ip link set flannel.1 mtu 1300");
    let story = walk(lab, &Asked { size: 1400, ..asked("pod1-1", "pod2-1", 4) });
    assert_answered(&story);
    assert!(path(&story.reply).ends_with("node1<flannel.1 node1>cni0 node1>veth pod1-1<eth0"), "{story:#?}");
    let cut = |remark: &String| {
        remark.starts_with("node2 going out by flannel.1 cuts the reply") && remark.ends_with("MTU 1300")
    };
    assert!(story.remarks.iter().any(cut), "{story:#?}");
    run(lab, "node2", "ip link set flannel.1 mtu 1450");
    signal(lab, "-CONT");
}

#[test]
fn every_broken_network_is_explained() {
    if !enclosed("every_broken_network_is_explained") {
        return;
    }
    let lab = start(options(IPV4));
    run(&lab, "router", "ip route flush table 100");
    assert_cut_and_whole(&lab);
    assert_explained(&lab, 4, &broken_surroundings());
    assert_explained(&lab, 4, &broken_plans());
    // The last of these takes pod1-1 away.
    assert_explained(&lab, 4, &broken_networks());
    assert_answered(&walk(&lab, &asked("pod1-2", "pod2-1", 4)));
}

fn broken_networks_of_ipv6() -> Vec<Broken> {
    use Cause::{DuplicateAddress, FdbMissing, ForwardingOff, NeighbourUnanswered, NoAddress, NoRoute, Rule, TooBig};
    let broken = Broken::new;
    let drop = DROP.replace("HOOK", "forward").replace("RULE", "icmpv6 type echo-request").replace(" ip t", " ip6 t");
    vec![
        broken("node1", "ip -6 route del fd00:10:244:2::/64", NoRoute, "router", "no route of flannel's to fd00:10:244:2::/64"),
        broken("node1", "ip -6 neigh flush dev flannel-v6.1 nud all", NeighbourUnanswered, "node1", "no neighbour entry for"),
        broken("node1", "FDB6 del $mac dev flannel-v6.1", FdbMissing, "node1", "flannel-v6.1 of node1 has no forwarding"),
        broken("node2", "sysctl -qw net.ipv6.conf.all.forwarding=0", ForwardingOff, "node2", "conf.all.forwarding is 0")
            .mend("sysctl -qw net.ipv6.conf.all.forwarding=1"),
        broken("node2", drop.leak(), Rule, "node2", "table ip6 t, chain c handle").mend("nft delete table ip6 t"),
        broken("node2", "ip link set eth0 down", Cause::DeviceDown, "node1", "ND for 2001:db8:0:1::12 on eth0 of node1 has no answer (INCOMPLETE): it is on eth0 of node2, which is down")
            .mend("ip link set eth0 up; ip address add 2001:db8:0:1::12/64 dev eth0; ip -6 route add default via 2001:db8:0:1::1"),
        Broken { size: 1380, ..broken("node1", "ip link set flannel-v6.1 mtu 1300", TooBig, "node1", "1428 bytes") },
        Broken { size: 2000, ..broken("pod1-1", "true", TooBig, "pod1-1", "2048 bytes") },
        broken("node1", "ip route add fd00:10:244:2::2 dev cni0", NoRoute, "node1", "fd00:10:244:2::2 is not on the link of cni0; so ND")
            .remedy("ip route delete fd00:10:244:2::2 dev cni0")
            .mend("ip route del fd00:10:244:2::2 dev cni0"),
        broken("node2", "TWICE add fd00:10:244:2::2/64", DuplicateAddress, "pod2-2", "pod2-1 and pod2-2 both have fd00:10:244:2::2")
            .mend("TWICE del fd00:10:244:2::2/64"),
        broken("node1", "NO_ANSWER icmpv6 type nd-neighbor-solicit", Rule, "pod1-1", "a packet rule of node1 dropped ND for fd00:10:244:1::3: table bridge t, chain c")
            .near()
            .mend("nft delete table bridge t"),
        broken("pod2-1", "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1", NoAddress, "node2", "because net.ipv6.conf.eth0.disable_ipv6 is 1")
            .remedy("sysctl -w net.ipv6.conf.eth0.disable_ipv6=0, then CNI DEL and ADD for pod2-1")
            .mend("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0; ip address add fd00:10:244:2::2/64 dev eth0 nodad; ip route add default via fd00:10:244:2::1"),
        broken("node2", "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1", NoAddress, "node1", "because net.ipv6.conf.eth0.disable_ipv6 is 1")
            .remedy("sysctl -w net.ipv6.conf.eth0.disable_ipv6=0, then give 2001:db8:0:1::12 to eth0 of node2 again")
            .mend("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0; ip address add 2001:db8:0:1::12/64 dev eth0 nodad; ip route add default via 2001:db8:0:1::1"),
        broken("node1", "sysctl -qw net.ipv6.conf.cni0.disable_ipv6=1; ip -n pod1-1 neigh replace fd00:10:244:1::1 dev eth0 lladdr $(ip -o link show cni0 | grep -o 'ether [^ ]*' | cut -d' ' -f2)", NoAddress, "node1", "because net.ipv6.conf.cni0.disable_ipv6 is 1")
            .remedy("sysctl -w net.ipv6.conf.cni0.disable_ipv6=0, then CNI ADD for a pod on node1")
            .mend("sysctl -qw net.ipv6.conf.cni0.disable_ipv6=0; ip address add fd00:10:244:1::1/64 dev cni0 nodad"),
        broken("node2", "sysctl -qw net/ipv6/conf/flannel-v6.1/disable_ipv6=1", NoAddress, "node2", "because net.ipv6.conf.flannel-v6/1.disable_ipv6 is 1")
            .mend("sysctl -qw net/ipv6/conf/flannel-v6.1/disable_ipv6=0"),
    ]
}

#[test]
fn broken_networks_of_ipv6_are_explained_alike() {
    if !enclosed("broken_networks_of_ipv6_are_explained_alike") {
        return;
    }
    let mut lab = start(options(DUAL));
    assert_explained(&lab, 6, &broken_networks_of_ipv6());
    lab.node_mut(1).flanneld.kill().unwrap();
    run(&lab, "node2", "ip link del flannel-v6.1");
    let story = walk(&lab, &asked("pod1-1", "pod2-1", 6));
    let Outcome::Died(death) = &story.outcome else { panic!("{story:#?}") };
    assert_eq!(death.cause, Cause::DeviceMissing, "{death:?}");
    assert!(death.remedy.contains("flanneld on node2 does not run") && death.why.contains("flannel-v6.1"), "{death:?}");
}

#[test]
fn ports_that_wait_for_the_spanning_tree_are_told() {
    if !enclosed("ports_that_wait_for_the_spanning_tree_are_told") {
        return;
    }
    let lab = start(options(IPV4));
    for (place, bridge) in [("node1", "cni0"), ("router", "seg1")] {
        let again = format!("ip link set {bridge} down; ip link set {bridge} up");
        run(&lab, place, &format!("ip link set {bridge} type bridge forward_delay 3000 stp_state 1; {again}"));
        let story = walk(&lab, &asked("pod1-1", "pod2-1", 4));
        let Outcome::Died(death) = &story.outcome else { panic!("{story:#?}") };
        assert_eq!((death.cause, death.place.as_str()), (Cause::BridgePort, place), "{story:#?}");
        assert!(death.why.contains("the spanning tree (STP) keeps"), "{death:?}");
        run(&lab, place, &format!("ip link set {bridge} type bridge stp_state 0; {again}"));
    }
}

#[test]
fn rules_of_legacy_iptables_are_worked_out_and_said_to_be() {
    if !enclosed("rules_of_legacy_iptables_are_worked_out_and_said_to_be") {
        return;
    }
    // A chain of kube-proxy's tells which of the two kinds of iptables a node uses.
    let prepare = ["iptables-legacy", "ip6tables-legacy"].map(|program| format!("{program} -t nat -N KUBE-MARK-MASQ"));
    let lab = start(LabOptions { nftables: false, prepare: prepare.to_vec(), ..options(DUAL) });
    for ip in [4, 6] {
        let story = walk(&lab, &asked("pod1-1", "outside", ip));
        assert_answered(&story);
        let found = rules(&story.request);
        for wanted in ["filter FLANNEL-FWD accept", "nat FLANNEL-POSTRTG masquerade"] {
            assert!(found.contains(&format!("iptables-legacy {wanted}")), "{found:?}");
        }
        let traced = |step: &Step| matches!(step, Step::Rule { traced: true, .. });
        assert!(!story.request.iter().any(traced), "{story:#?}");
    }
    lab.node(1).run_line("iptables-legacy -w -I FORWARD -p icmp -d 10.244.2.0/24 -j DROP").unwrap();
    let story = walk(&lab, &asked("pod1-1", "pod2-1", 4));
    let Outcome::Died(death) = &story.outcome else { panic!("{story:#?}") };
    assert_eq!((death.cause, death.place.as_str()), (Cause::Rule, "node2"), "{story:#?}");
    assert!(
        death.why.contains("table iptables-legacy filter, chain FORWARD: `-d 10.244.2.0/24 -p icmp -j DROP`"),
        "{death:?}"
    );
}

#[test]
fn tracing_is_no_damage_and_leaves_nothing() {
    if !enclosed("tracing_is_no_damage_and_leaves_nothing") {
        return;
    }
    let lab = start(options(IPV4));
    let log = |node: usize| fs::read_to_string(lab.node(node).flanneld.log_path()).unwrap();
    let (logs, states) = ([log(0), log(1)], [lab.observe(0).unwrap(), lab.observe(1).unwrap()]);
    let rules = lab.node(0).run_line("nft list ruleset").unwrap();
    for _ in 0..5 {
        let story = walk(&lab, &asked("pod1-1", "pod2-1", 4));
        assert_answered(&story);
        let traced = |step: &Step| matches!(step, Step::Rule { place, traced: true, .. } if place == "node1");
        assert_eq!(story.request.iter().filter(|step| traced(step)).count(), 2, "{story:#?}");
    }
    // What flanneld takes for damage it repairs, and says so, within this time.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!([log(0), log(1)], logs);
    assert_eq!([lab.observe(0).unwrap(), lab.observe(1).unwrap()], states);
    assert_eq!(lab.node(0).run_line("nft list ruleset").unwrap(), rules);
}

/// Runs the command as people do.
fn flannel(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(FLANNEL).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_tells_people_programs_and_wireshark() {
    if !enclosed("the_command_tells_people_programs_and_wireshark") {
        return;
    }
    let refused = |arguments: &[&str], says: &str| {
        let (code, said, complained) = flannel(&[&["lab", "walk"], arguments].concat());
        assert_eq!((code, said.as_str()), (Some(2), ""), "{arguments:?}: {complained}");
        assert!(complained.contains(says), "{arguments:?}: {complained}");
    };
    refused(&["pod1-1", "pod2-1"], "error: no lab of yours is up\nhint: start one with `flannel lab up`");
    assert_eq!(flannel(&["lab", "up", "--nodes", "2", "--pods", "1"]).0, Some(0));
    let known = "error: nothing in the lab is called `pod9`; there are pod1-1, pod2-1, node1, node2, outside\n";
    let pcap = concat!(env!("CARGO_TARGET_TMPDIR"), "/walk.pcapng");
    let _none_yet = fs::remove_file(pcap);
    refused(&["pod1-1", "pod9", "--pcap", pcap], known);
    refused(&["router", "pod1-1"], "a walk passes `router` but does not end there: pod1-1, pod2-1, node1");
    refused(&["pod1-1", "pod1-1"], "error: pod1-1 is both ends: name two different ones\n");
    refused(&["pod1-1", "pod2-1", "-6"], "error: this lab does not speak IPv6: bring it up with --dual or --ipv6\n");
    refused(&["pod1-1", "pod2-1", "--pcap", "/no/such/file"], "error: cannot write /no/such/file: No such file");
    refused(&["pod1-1", "pod2-1", "--size", "3"], "invalid value '3' for '--size <SIZE>'");
    refused(&["pod1-1", "pod2-1", "-4", "-6"], "cannot be used with");
    refused(&["pod1-1"], "<TO>");
    assert!(!Path::new(pcap).exists());

    let (code, said, complained) = flannel(&["lab", "walk", "pod1-1", "pod2-1", "--reply", "--pcap", pcap]);
    assert_eq!((code, complained.as_str()), (Some(0), ""), "{said}");
    assert!(said.contains("\n✓ answered after ") && said.contains("UDP 8472, VXLAN 1, 134 bytes"), "{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 120) && !said.contains('\x1b'), "{said}");
    let fields = ["-d", "udp.port==8472,vxlan", "-T", "fields", "-e", "vxlan.vni", "-e", "icmp.type", "-Y", "icmp"];
    let output = Command::new("tshark").args(["-r", pcap]).args(fields).output().unwrap();
    let frames = String::from_utf8(output.stdout).unwrap();
    // Eight devices see each packet bare (pod, veth, bridge and tunnel of two nodes), four wrapped (the nodes', the switch's).
    let count = |line: &str| frames.lines().filter(|found| *found == line).count();
    assert_eq!([count("\t8"), count("\t0"), count("1\t8"), count("1\t0")], [8, 8, 4, 4], "{frames}");

    let plain = || flannel(&["lab", "walk", "pod1-1", "pod2-1", "--plain", "--fresh"]);
    let first = plain();
    assert!(first.0 == Some(0) && first.1.contains("ARP who has 10.244.1.1? tell 10.244.1.2"), "{}", first.1);
    assert_eq!(first, plain());

    let (code, said, _) = flannel(&["lab", "walk", "pod1-1", "outside", "--size", "3000", "-o", "json"]);
    let story: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(
        (&story["outcome"]["result"], &story["outcome"]["cause"]),
        (&"died".into(), &"too-big".into()),
        "{said}"
    );
    assert_eq!((&story["from"]["node"], &story["request"][0]["step"]), (&"node1".into(), &"route".into()), "{said}");
    assert_eq!(flannel(&["lab", "down"]).0, Some(0));
}
