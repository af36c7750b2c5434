//! Tracing: which rules a packet meets, whoever made them, and what they say; and that nothing stays behind.

use std::io::Read;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flannel_core::addr::Family;
use flannel_core::rules::evaluate::{Effect, Hook, Passing, Tables};
use flannel_core::rules::{PodNetworks, RuleMode, RuleOptions, ruleset};
use flannel_kernel::iptables::legacy_rules;
use flannel_kernel::namespace::NetNamespace;
use flannel_kernel::nft::listing::{BaseChainText, Listing, RuleText, TableFamily};
use flannel_kernel::nft::trace::{Event, Pattern, Step, TABLE, Trace, Verdict};
use flannel_kernel::rules::RulesExecutor;
use rustix::event::{PollFd, PollFlags, poll};

use crate::Test;
use crate::namespace::{give, run, try_run};

pub(crate) const TESTS: &[Test] = &[
    ("trace::a_drop_of_somebody_else_is_traced_to_its_rule", a_drop_of_somebody_else_is_traced_to_its_rule),
    ("trace::our_rules_are_told_as_nft_prints_them", our_rules_are_told_as_nft_prints_them),
    ("trace::our_rules_in_iptables_nft_read_the_same", our_rules_in_iptables_nft_read_the_same),
    ("trace::only_what_fits_a_pattern_is_followed", only_what_fits_a_pattern_is_followed),
    ("trace::a_tunnels_packet_has_its_own_pattern", a_tunnels_packet_has_its_own_pattern),
    ("trace::a_drop_on_a_bridge_is_traced", a_drop_on_a_bridge_is_traced),
    ("trace::arp_is_traced_where_it_is_dropped", arp_is_traced_where_it_is_dropped),
    ("trace::rules_of_others_are_told_as_far_as_they_are_known", rules_of_others_are_told_as_far_as_they_are_known),
    ("trace::usual_rules_read_as_nft_prints_them", usual_rules_read_as_nft_prints_them),
    ("trace::rules_of_iptables_legacy_are_worked_out", rules_of_iptables_legacy_are_worked_out),
    ("trace::nothing_stays_behind", nothing_stays_behind),
    ("trace::the_table_goes_with_the_process", the_table_goes_with_the_process),
    ("trace::a_trace_is_no_damage", a_trace_is_no_damage),
];

/// Started by a test in a process of its own: holds a trace until it is killed.
pub(crate) const HOLD: &str = "--hold-a-trace";

pub(crate) fn hold() {
    let _trace = Trace::start(&[followed()]).unwrap().unwrap();
    println!("held");
    // Until the test that started this is gone, if it does not kill it.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Data of a datagram.
fn followed() -> Pattern {
    behind(8)
}

fn behind(offset: u32) -> Pattern {
    Pattern::Behind { protocol: 17, offset, bytes: b"followed".to_vec() }
}

fn send(to: &str, bytes: &[u8]) {
    let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    // A refusal by a rule is what is to be seen.
    let _ = UdpSocket::bind(any).unwrap().send_to(bytes, to.parse::<SocketAddr>().unwrap());
}

/// Everything until an event, which must come.
fn until(trace: &mut Trace, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
    until_several(trace, 1, wanted)
}

fn until_several(trace: &mut Trace, count: usize, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut events = Vec::new();
    while events.iter().filter(|event| wanted(event)).count() < count {
        assert!(Instant::now() < deadline, "{events:#?}");
        let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        poll(&mut [PollFd::new(trace, PollFlags::IN)], Some(&wait)).unwrap();
        events.extend(trace.events().unwrap());
    }
    assert!(!trace.lost());
    events
}

fn rule(listing: &mut Listing, event: &Event) -> Option<RuleText> {
    let Step::Rule { handle, .. } = event.step else { return None };
    listing.rule(event.family, &event.table, &event.chain, handle).unwrap()
}

/// The texts of all rules met, in order.
fn met(events: &[Event]) -> Vec<String> {
    let mut listing = Listing::open().unwrap().unwrap();
    events.iter().filter_map(|event| rule(&mut listing, event)).map(|rule| rule.text).collect()
}

fn a_drop_of_somebody_else_is_traced_to_its_rule() {
    run("nft add table inet theirs");
    run("nft add chain inet theirs in { type filter hook input priority 5 ; policy accept ; }");
    run("nft add rule inet theirs in udp dport 4001 counter drop comment \"no-entry\"");
    let mut trace = Trace::start(&[followed()]).unwrap().unwrap();
    send("127.0.0.1:4001", b"followed");
    let dropped = |event: &Event| matches!(event.step, Step::Rule { verdict: Verdict::Drop, .. });
    let events = until(&mut trace, dropped);
    let event = events.iter().find(|event| dropped(event)).unwrap();
    assert_eq!((event.family, &*event.table, &*event.chain), (TableFamily::Inet, "theirs", "in"));
    let listed = run("nft -a list chain inet theirs in");
    let Step::Rule { handle, .. } = event.step else { unreachable!() };
    let line = listed.lines().find(|line| line.contains("drop")).unwrap();
    assert!(line.ends_with(&format!("# handle {handle}")), "{line}: {handle}");
    assert_eq!((event.input, event.output), (Some(1), None));
    assert_eq!(event.network[12..20], [127, 0, 0, 1, 127, 0, 0, 1]);
    assert_eq!(event.transport[2..4], 4001_u16.to_be_bytes());
    let mut listing = Listing::open().unwrap().unwrap();
    let said = rule(&mut listing, event).unwrap();
    assert_eq!(said.text, "udp dport 4001 counter drop");
    assert_eq!(said.comment.as_deref(), Some("no-entry"));
    let hook = listing.base_chain(event.family, &event.table, &event.chain).unwrap().unwrap();
    let expected = BaseChainText { kind: "filter".into(), hook: "input", priority: 5, policy: Verdict::Accept };
    assert_eq!(hook, expected);
    assert_eq!(listing.rule(event.family, "theirs", "in", handle + 1).unwrap(), None);
    assert_eq!(listing.base_chain(event.family, "theirs", "out").unwrap(), None);
}

/// A device `out`, behind which there is a neighbour of the cluster network, and flannel's rules.
fn rules_here(mode: RuleMode, family: Family) -> RulesExecutor {
    let (network, pod_subnet, own, neighbour) = match family {
        Family::V4 => ("10.42.0.0/16", "10.42.1.0/24", "10.42.3.1/16", "10.42.2.2"),
        Family::V6 => ("fd42::/48", "fd42:0:0:1::/64", "fd42:0:0:3::1/48", "fd42:0:0:2::2"),
    };
    let _already_there = try_run("ip link add out type veth peer in");
    run("ip link set out up");
    run("ip link set in up");
    run(&format!("ip address replace {own} dev out nodad"));
    run(&format!("ip neigh replace {neighbour} lladdr 02:00:00:00:00:02 dev out"));
    let networks = PodNetworks { network: network.parse().unwrap(), pod_subnet: pod_subnet.parse().unwrap() };
    let options = RuleOptions { mode, ip_masq: true, fully_random: true, forward: true };
    let mut rules = RulesExecutor::open(mode).unwrap();
    rules.set(mode, family, &ruleset(Some(networks), options).unwrap()).unwrap();
    rules.changed().unwrap();
    rules
}

/// Where datagrams meet the rule that masquerades, and nft's word for the family.
const NEIGHBOURS: [(Family, &str, &str); 2] =
    [(Family::V4, "10.42.2.2:4001", "ip"), (Family::V6, "[fd42:0:0:2::2]:4001", "ip6")];

/// What the rule says that masquerades what comes from the network.
fn masquerade(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip saddr 10.42.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
        Family::V6 => "ip6 saddr fd42::/48 ip6 daddr != ff00::/8 masquerade fully-random",
    }
}

fn our_rules_are_told_as_nft_prints_them() {
    for (family, to, word) in NEIGHBOURS {
        let _rules = rules_here(RuleMode::Nftables, family);
        let mut trace = Trace::start(&[followed()]).unwrap().unwrap();
        send(to, b"followed");
        let events = until(&mut trace, |event| &*event.chain == "postrtg");
        assert_eq!(met(&events), [masquerade(family)]);
        let table = run(&format!("nft list table {word} {}", events[0].table));
        assert!(table.lines().any(|line| line.trim() == masquerade(family)), "{table}");
    }
}

fn our_rules_in_iptables_nft_read_the_same() {
    for (family, to, word) in NEIGHBOURS {
        run(if family == Family::V4 {
            "iptables-nft -t nat -N FLANNEL-POSTRTG"
        } else {
            "ip6tables-nft -t nat -N FLANNEL-POSTRTG"
        });
        let _rules = rules_here(RuleMode::Iptables, family);
        let mut trace = Trace::start(&[followed()]).unwrap().unwrap();
        send(to, b"followed");
        let masqueraded = |event: &Event| {
            &*event.chain == "FLANNEL-POSTRTG" && matches!(event.step, Step::Rule { verdict: Verdict::Accept, .. })
        };
        let events = until(&mut trace, masqueraded);
        let jump = "counter jump FLANNEL-POSTRTG".to_owned();
        assert_eq!(met(&events), [jump, masquerade(family).replace(" masq", " counter masq")]);
        let mut listing = Listing::open().unwrap().unwrap();
        let comments: Vec<_> = events.iter().filter_map(|event| rule(&mut listing, event)?.comment).collect();
        assert_eq!(comments, ["flanneld masq", "flanneld masq"]);
        let mark = run(&format!("nft -a list chain {word} nat FLANNEL-POSTRTG"));
        let handle = mark.lines().find(|line| line.contains("meta mark")).unwrap().rsplit(' ').next().unwrap();
        let rule = listing.rule(events[0].family, "nat", "FLANNEL-POSTRTG", handle.parse().unwrap()).unwrap().unwrap();
        assert_eq!(rule.text, "meta mark & 0x00004000 == 0x00004000 counter return");
    }
}

fn only_what_fits_a_pattern_is_followed() {
    run("nft add table ip theirs");
    run("nft add chain ip theirs in { type filter hook input priority 0 ; policy drop ; }");
    let other = Pattern::Behind { protocol: 17, offset: 2, bytes: 4003_u16.to_be_bytes().to_vec() };
    let mut trace = Trace::start(&[followed(), other]).unwrap().unwrap();
    send("127.0.0.1:4001", b"not that");
    send("127.0.0.1:4001", b"x followed");
    send("127.0.0.1:4002", b"followed");
    send("127.0.0.1:4003", b"anything");
    let port = |event: &Event| event.transport.get(2..4).map(|port| u16::from_be_bytes([port[0], port[1]]));
    let dropped = |event: &Event| event.step == Step::Policy(Verdict::Drop);
    let events = until_several(&mut trace, 2, dropped);
    assert_eq!(events.iter().filter_map(port).collect::<Vec<_>>(), [4002, 4003]);
    let packets: Vec<u32> = events.iter().filter(|event| dropped(event)).map(|event| event.packet).collect();
    assert!(packets.len() == 2 && packets[0] != packets[1], "{events:#?}");
    assert!(events.iter().all(|event| dropped(event) || event.step == Step::End), "{events:#?}");
    let nothing = Pattern::Behind { protocol: 17, offset: 0, bytes: Vec::new() };
    drop(trace);
    assert!(Trace::start(&[nothing]).unwrap_err().to_string().contains("1 to 16 bytes"));
}

fn a_tunnels_packet_has_its_own_pattern() {
    run("ip link add out type veth peer in");
    run("ip address add 192.0.2.1/24 dev out");
    run("ip link set out up");
    run("ip link set in up");
    run("ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev out");
    run("ip link add tunnel type vxlan id 1 dstport 8472 local 192.0.2.1 remote 192.0.2.2 dev out");
    run("ip address add 10.42.1.1/16 dev tunnel");
    run("ip link set tunnel up");
    run("ip neigh add 10.42.2.2 lladdr 02:00:00:00:01:02 dev tunnel");
    run("nft add table ip theirs");
    run("nft add chain ip theirs post { type filter hook postrouting priority 0 ; }");
    // UDP, VXLAN and Ethernet header, then the inner IP and UDP header.
    let inside = behind(8 + 8 + 14 + 20 + 8);
    let mut trace = Trace::start(&[followed(), inside]).unwrap().unwrap();
    send("10.42.2.2:4001", b"followed");
    let events = until_several(&mut trace, 2, |event| matches!(event.step, Step::Policy(_)));
    let destinations: Vec<_> = events.iter().filter_map(|event| event.network.get(16..20)).collect();
    assert_eq!(destinations, [[10, 42, 2, 2], [192, 0, 2, 2]]);
}

fn a_drop_on_a_bridge_is_traced() {
    let pod = NetNamespace::create().unwrap();
    run("ip link add bridge address 02:00:00:00:00:01 type bridge");
    run("ip link add port type veth peer eth0");
    give(&pod, "eth0");
    run("ip link set port master bridge up");
    run("ip link set bridge up");
    pod.run(|| {
        run("ip address add 10.42.1.2/24 dev eth0");
        run("ip link set eth0 up");
        run("ip neigh add 10.42.1.1 lladdr 02:00:00:00:00:01 dev eth0");
    })
    .unwrap();
    run("nft add table bridge theirs");
    run("nft add chain bridge theirs in { type filter hook input priority 0 ; }");
    run("nft add rule bridge theirs in ip daddr 10.42.1.1 drop");
    let mut trace = Trace::start(&[followed()]).unwrap().unwrap();
    pod.run(|| send("10.42.1.1:4001", b"followed")).unwrap();
    let events = until(&mut trace, |event| matches!(event.step, Step::Rule { verdict: Verdict::Drop, .. }));
    assert_eq!((events[0].family, &*events[0].table), (TableFamily::Bridge, "theirs"));
    assert_eq!(met(&events), ["ip daddr 10.42.1.1 drop"]);
}

fn arp_is_traced_where_it_is_dropped() {
    run("ip link add near type veth peer far");
    run("ip link set far up");
    run("ip link set near up");
    run("ip address add 10.42.1.1/24 dev near");
    run("nft add table arp theirs");
    run("nft add chain arp theirs out { type filter hook output priority 0 ; }");
    run("nft add rule arp theirs out drop");
    let mut trace = Trace::start(&[Pattern::Arp]).unwrap().unwrap();
    send("10.42.1.2:4001", b"followed");
    let events = until(&mut trace, |event| matches!(event.step, Step::Rule { verdict: Verdict::Drop, .. }));
    assert_eq!((events[0].family, &*events[0].table), (TableFamily::Arp, "theirs"));
    // The target's address (RFC 826).
    assert_eq!(events[0].network[24..28], [10, 42, 1, 2]);
}

fn rules_of_others_are_told_as_far_as_they_are_known() {
    run("nft add table inet theirs");
    run("nft add set inet theirs friends { type ipv4_addr ; }");
    run("nft add chain inet theirs other");
    run("nft add chain inet theirs out { type filter hook output priority 0 ; }");
    let rules = [
        ("oifname \"lo\" meta mark set 7", "oifname \"lo\" meta mark set"),
        ("oifname \"l*\" meta l4proto udp", "oifname \"l*\" meta l4proto udp"),
        ("ip daddr != 10.0.0.0/8 ct state new", "ip daddr != 10.0.0.0/8 ct state new"),
        ("meta mark 7 ip saddr != @friends log", "meta mark 0x00000007 ip saddr != @friends log"),
        ("udp sport != 1 udp dport 4001", "udp sport != 1 udp dport 4001"),
        ("meta l4proto { tcp, udp } th dport 4001", "meta l4proto @__set0 th dport 4001"),
        ("limit rate 1/second", "limit"),
        ("jump other", "jump other"),
        ("reject", "reject"),
    ];
    for (rule, _) in rules {
        run(&format!("nft add rule inet theirs out {rule}"));
    }
    run("nft add rule inet theirs other return");
    let mut trace = Trace::start(&[followed()]).unwrap().unwrap();
    send("127.0.0.1:4001", b"followed");
    let rejected = |event: &Event| matches!(event.step, Step::Rule { verdict: Verdict::Drop, .. });
    let events = until(&mut trace, rejected);
    let mut expected = rules.map(|(_, text)| text).to_vec();
    expected.insert(8, "return");
    assert_eq!(met(&events), expected);
    let jumped = events
        .iter()
        .find(|event| matches!(&event.step, Step::Rule { verdict: Verdict::Jump(to), .. } if &**to == "other"));
    assert!(jumped.is_some(), "{events:#?}");
    assert_eq!(events.last().unwrap().mark, 7);
}

fn usual_rules_read_as_nft_prints_them() {
    let of_inet = [
        "icmp type echo-request drop",
        "icmpv6 type echo-reply accept",
        "tcp dport 22 accept",
        "udp sport 53 udp dport != 8472 return",
        "th dport 4001 drop",
        "meta l4proto ipv6-icmp drop",
        "iifname \"cni0\" oifname != \"eth*\" ip saddr 10.42.0.0/16 drop",
        "ip saddr != 10.42.0.0/16 ip daddr 10.1.2.3 goto other",
        "ip6 saddr fd42::/48 ip6 daddr fd42::1 jump other",
        "ct state established,related accept",
        "ct state invalid drop",
        "meta mark 7 accept",
        "meta mark & 0xff00 == 0x1200 drop",
        "icmpv6 type nd-neighbor-solicit drop",
    ];
    let rules = of_inet.map(|rule| (TableFamily::Inet, rule));
    for (family, rule) in rules.into_iter().chain([(TableFamily::Bridge, "ether type arp drop")]) {
        run("nft flush ruleset");
        run(&format!("nft add table {family} theirs"));
        run(&format!("nft add chain {family} theirs other"));
        run(&format!("nft add chain {family} theirs in {{ type filter hook input priority 0 ; }}"));
        run(&format!("nft add rule {family} theirs in {rule}"));
        let listed = run(&format!("nft -a list chain {family} theirs in"));
        let (line, handle) = listed.lines().filter_map(|line| line.split_once(" # handle ")).next_back().unwrap();
        let mut listing = Listing::open().unwrap().unwrap();
        let told = listing.rule(family, "theirs", "in", handle.parse().unwrap()).unwrap().unwrap();
        assert_eq!(told.text, line.trim());
    }
}

fn rules_of_iptables_legacy_are_worked_out() {
    assert_eq!(legacy_rules(Family::V4).unwrap(), None);
    run("iptables-legacy -t nat -N FLANNEL-POSTRTG");
    let _rules = rules_here(RuleMode::Iptables, Family::V4);
    run("iptables-legacy -I FORWARD -o out -d 10.42.2.9 -j REJECT");
    let tables = Tables::parse(&legacy_rules(Family::V4).unwrap().unwrap());
    let to = |destination: &str| Passing {
        source: "10.42.3.1".parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol: 1,
        mark: 0,
        input: Some("in"),
        output: Some("out"),
        first: true,
    };
    let last = |hook, destination| {
        let hit = tables.follow(hook, &to(destination)).pop().unwrap();
        (hit.chain, hit.rule, hit.effect, hit.certain)
    };
    let accepted = "-s 10.42.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT";
    assert_eq!(last(Hook::Forward, "10.42.2.2"), ("FLANNEL-FWD".into(), Some(accepted.into()), Effect::Accept, true));
    let rejected = "-d 10.42.2.9/32 -o out -j REJECT --reject-with icmp-port-unreachable";
    assert_eq!(last(Hook::Forward, "10.42.2.9"), ("FORWARD".into(), Some(rejected.into()), Effect::Reject, true));
    let (chain, rule, effect, _) = last(Hook::Postrouting, "203.0.113.1");
    assert_eq!((&*chain, effect), ("FLANNEL-POSTRTG", Effect::Translate));
    assert!(rule.unwrap().ends_with("-j MASQUERADE --random-fully"));
}

fn walk_tables() -> usize {
    run("nft list tables").lines().filter(|line| line.ends_with(TABLE)).count()
}

fn nothing_stays_behind() {
    let trace = Trace::start(&[followed()]).unwrap().unwrap();
    assert_eq!(walk_tables(), 2);
    assert!(try_run(&format!("nft delete table inet {TABLE}")).is_err(), "the table has an owner");
    let error = Trace::start(&[followed()]).unwrap_err().to_string();
    assert!(error.starts_with("another trace is running here"), "{error}");
    trace.stop().unwrap();
    assert_eq!(walk_tables(), 0);
    drop(Trace::start(&[followed()]).unwrap());
    assert_eq!(walk_tables(), 0);
    run(&format!("nft add table inet {TABLE}"));
    Trace::start(&[followed()]).unwrap().unwrap().stop().unwrap();
    assert_eq!(walk_tables(), 0);
}

fn the_table_goes_with_the_process() {
    let this = std::env::current_exe().unwrap();
    let mut holder = Command::new(this).arg(HOLD).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 4];
    holder.stdout.take().unwrap().read_exact(&mut said).unwrap();
    assert_eq!((&said, walk_tables()), (b"held", 2));
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(walk_tables(), 0);
}

fn a_trace_is_no_damage() {
    for mode in [RuleMode::Nftables, RuleMode::Iptables] {
        let mut rules = rules_here(mode, Family::V4);
        let trace = Trace::start(&[followed()]).unwrap().unwrap();
        assert!(!rules.changed().unwrap());
        rules.remove(RuleMode::Nftables, Family::V4).unwrap();
        assert_eq!(walk_tables(), 2);
        rules.changed().unwrap();
        trace.stop().unwrap();
        assert!(!rules.changed().unwrap());
    }
}
