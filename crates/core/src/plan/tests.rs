//! Plans as text, what is skipped and why, and that the order of events does not matter.

use proptest::prelude::*;

use super::*;
use crate::addr::{Dual, Mac, Mtu, Vni};
use crate::config::ConfigRules;
use crate::facts::RouteFact;
use crate::lease::{Attributes, Flaw, LeaseEvent, Record, Since, Vtep};
use crate::node::{External, RuleSwitches};
use crate::objects::Objects;
use crate::rules::RuleMode;
use crate::state::Object;

const VXLAN: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
const DIRECT: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
const HOST_GW: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#;
const DUAL: &str =
    r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8:42::/56","Backend":{"Type":"vxlan"}}"#;
/// The node network 10.9.0.0/24 lies inside the pod network.
const AROUND: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;

fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text, ConfigRules::Etcd).unwrap().0
}

fn us(config: &NetworkConfig) -> Node {
    let external = |address: &str, mtu| External {
        name: "eth0".parse().unwrap(),
        mtu: Mtu(mtu),
        address: address.parse().unwrap(),
        local: address.parse().unwrap(),
    };
    let external = Dual { v4: Some(external("10.9.0.1", 1500)), v6: Some(external("2001:db8::1", 1500)) };
    let external = Dual::from_fn(|family| config.network.get(family).and(external.get(family).cloned()));
    let subnet = Dual::of_nets(["10.244.1.0/24".parse().unwrap(), "2001:db8:42:1::/64".parse().unwrap()]);
    let on_link = |net: &str| RouteFact {
        destination: net.parse().unwrap(),
        gateway: None,
        dev: "eth0".parse().unwrap(),
        metric: 0,
    };
    Node {
        public_ip: external.map(|_, external| external.address),
        subnet: Dual::from_fn(|family| config.network.get(family).and(subnet.get(family).copied())),
        macs: Dual { v4: Some(mac(1)), v6: Some(mac(61)) },
        mtu: config.backend.mtu(&external).unwrap(),
        underlay: vec!["10.9.0.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
        routes: vec![on_link("10.9.0.0/24"), on_link("2001:db8::/64")],
        rules: RuleSwitches::default(),
        rule_mode: if config.nftables { RuleMode::Nftables } else { RuleMode::Iptables },
        warnings: Vec::new(),
        external,
    }
}

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

fn vtep(n: u8) -> Vtep {
    Vtep { vni: Vni::new(1).unwrap(), mac: mac(n) }
}

/// A peer whose key, subnet, address and MAC come from its number.
fn peer(n: u8) -> (LeaseKey, Lease) {
    let lease = Lease {
        subnet: Dual { v4: Some(format!("10.244.{n}.0/24").parse().unwrap()), v6: None },
        public_ip: Dual { v4: Some([10, 9, 0, n].into()), v6: None },
        attributes: Attributes::Vxlan(Dual { v4: Some(vtep(n)), v6: None }),
        since: Since { at: n.into(), tie: 0 },
        flaws: Vec::new(),
    };
    (LeaseKey::new(format!("10.244.{n}.0-24")), lease)
}

fn leases(peers: impl IntoIterator<Item = (LeaseKey, Lease)>) -> LeaseSet {
    let mut set = LeaseSet::default();
    let record = |(key, lease)| Record::new(key, Ok(lease));
    set.apply(LeaseEvent::Snapshot(peers.into_iter().map(record).collect()));
    set
}

/// The peers' objects as text, then `! key: field: why` for each remark.
fn planned(config: &str, peers: impl IntoIterator<Item = (LeaseKey, Lease)>) -> String {
    planned_on(&self::config(config), us, &leases(peers))
}

fn planned_on(config: &NetworkConfig, node: impl Fn(&NetworkConfig) -> Node, leases: &LeaseSet) -> String {
    let node = node(config);
    let plan = Plan::whole(&Ground { config, node: &node, leases, own: None });
    let of_peers = plan.want.iter().filter(|(_, wanted)| wanted.owner != Owner::Node);
    let objects = of_peers.map(|(key, wanted)| Object(key, &wanted.value).to_string());
    let remarks = plan.skipped.iter().flat_map(|(key, remarks)| remarks.iter().map(move |r| format!("! {key}: {r}")));
    objects.chain(remarks).collect::<Vec<_>>().join("\n")
}

fn changed(n: u8, change: impl FnOnce(&mut Lease)) -> (LeaseKey, Lease) {
    let (key, mut lease) = peer(n);
    change(&mut lease);
    (key, lease)
}

#[test]
fn a_vxlan_peer_is_a_neighbour_an_fdb_entry_and_a_route() {
    assert_eq!(
        planned(VXLAN, [peer(2)]),
        "neigh 10.244.2.0 dev flannel.1 lladdr 02:00:00:00:00:02 PERMANENT\n\
         fdb 02:00:00:00:00:02 dev flannel.1 dst 10.9.0.2 self permanent\n\
         route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink"
    );
}

#[test]
fn the_node_has_its_devices_addresses_and_rules() {
    let config = config(DUAL);
    let node = us(&config);
    let plan = Plan::whole(&Ground { config: &config, node: &node, leases: &LeaseSet::default(), own: None });
    let text = plan.want.iter().map(|(key, wanted)| Object(key, &wanted.value).to_string()).collect::<Vec<_>>();
    assert_eq!(
        text,
        [
            "link flannel-v6.1 mtu 1430 state UP 02:00:00:00:00:3d vxlan id 1 local 2001:db8::1 dev eth0 dstport 8472 nolearning",
            "link flannel.1 mtu 1450 state UP 02:00:00:00:00:01 vxlan id 1 local 10.9.0.1 dev eth0 dstport 8472 nolearning",
            "address 2001:db8:42:1::/128 dev flannel-v6.1 scope global",
            "address 10.244.1.0/32 dev flannel.1 scope global",
        ]
    );
}

#[test]
fn direct_routing_is_for_peers_on_the_link_only() {
    let behind_router = changed(3, |lease| lease.public_ip.v4 = Some([203, 0, 113, 3].into()));
    assert_eq!(
        planned(DIRECT, [peer(2), behind_router]),
        "neigh 10.244.3.0 dev flannel.1 lladdr 02:00:00:00:00:03 PERMANENT\n\
         fdb 02:00:00:00:00:03 dev flannel.1 dst 203.0.113.3 self permanent\n\
         route 10.244.2.0/24 via 10.9.0.2 dev eth0\n\
         route 10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink"
    );
}

#[test]
fn host_gw_is_a_route_and_needs_the_link() {
    let host_gw = |n, at: u8| {
        changed(n, |lease| {
            lease.attributes = Attributes::HostGw;
            lease.public_ip.v4 = Some([10, 9, 0, at].into());
        })
    };
    let far = changed(4, |lease| {
        lease.attributes = Attributes::HostGw;
        lease.public_ip.v4 = Some([203, 0, 113, 3].into());
    });
    assert_eq!(
        planned(HOST_GW, [host_gw(2, 2), host_gw(3, 2), far, host_gw(5, 1), peer(6)]),
        "route 10.244.2.0/24 via 10.9.0.2 dev eth0\n\
         ! 10.244.3.0-24: PublicIP: 10.9.0.2 is the public IP of the earlier lease 10.244.2.0-24 too\n\
         ! 10.244.4.0-24: PublicIP: 203.0.113.3 is not on the link of eth0: host-gw needs all nodes on one link; use vxlan \
         where there is a router between\n\
         ! 10.244.5.0-24: PublicIP: 10.9.0.1 is this node's own public IP\n\
         ! 10.244.6.0-24: BackendType: `vxlan` is not our backend, host-gw"
    );
}

/// Other nodes are reached by what is none of our business, so that nothing is said of their leases either.
#[test]
fn alloc_has_no_peers_and_no_device() {
    let config = config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"alloc"}}"#);
    let mut node = Node { rules: RuleSwitches { blackhole: true, ..RuleSwitches::default() }, ..us(&config) };
    assert_eq!(node.least_mtu(), Mtu(1500), "the external interface's");
    let broken = changed(3, |lease| lease.flaws.push(Flaw { field: "record".into(), why: "is broken".into() }));
    let alloc = changed(4, |lease| lease.attributes = config.backend.attributes(&node));
    let set = leases([peer(2), broken, alloc]);
    let plan = |node: &Node| Plan::whole(&Ground { config: &config, node, leases: &set, own: None });
    let Plan { want, skipped } = plan(&node);
    let keys: Vec<String> = want.keys().map(ToString::to_string).collect();
    assert_eq!((keys, skipped), (vec!["route 10.244.1.0/24".to_owned()], BTreeMap::new()));
    node.rules = RuleSwitches { forward: true, ..RuleSwitches::default() };
    assert!(plan(&node).want.iter().any(|(key, _)| matches!(key, Key::Rules(..))));
}

#[test]
fn a_hostile_lease_is_refused_by_name_and_field() {
    let with_subnet = |subnet: &str| changed(2, |lease| lease.subnet.v4 = Some(subnet.parse().unwrap()));
    let with_address = |address: [u8; 4]| changed(2, |lease| lease.public_ip.v4 = Some(address.into()));
    let with_mac = |n| changed(2, |lease| lease.attributes = Attributes::Vxlan(Dual { v4: Some(vtep(n)), v6: None }));
    let check = |config, peer, expect: &str| assert_eq!(planned(config, [peer]), format!("! 10.244.2.0-24: {expect}"));
    check(VXLAN, with_subnet("10.9.9.0/24"), "subnet: 10.9.9.0/24 is not inside the network 10.244.0.0/16");
    check(VXLAN, with_subnet("0.0.0.0/0"), "subnet: 0.0.0.0/0 is not inside the network 10.244.0.0/16");
    check(VXLAN, with_subnet("10.244.0.0/16"), "subnet: 10.244.0.0/16 is not inside the network 10.244.0.0/16");
    check(VXLAN, with_subnet("10.244.0.0/23"), "subnet: 10.244.0.0/23 overlaps this node's own subnet 10.244.1.0/24");
    check(
        AROUND,
        with_subnet("10.9.0.0/25"),
        "subnet: 10.9.0.0/25 covers 10.9.0.0/24, which this node needs to reach other hosts",
    );
    check(VXLAN, with_address([0, 0, 0, 0]), "PublicIP: 0.0.0.0 is no host's address");
    check(VXLAN, with_address([127, 0, 0, 1]), "PublicIP: 127.0.0.1 is no host's address");
    check(VXLAN, with_address([10, 244, 2, 7]), "PublicIP: 10.244.2.7 lies in the lease's own subnet 10.244.2.0/24");
    check(VXLAN, changed(2, |lease| lease.public_ip.v4 = None), "PublicIP: missing");
    check(VXLAN, with_mac(1), "BackendData.VtepMAC: 02:00:00:00:00:01 is this node's own MAC");
    check(VXLAN, changed(2, |lease| lease.attributes = Attributes::Vxlan(Dual::default())), "BackendData: missing");
    let other = |lease: &mut Lease| lease.attributes = Attributes::Other("wireguard".into());
    check(VXLAN, changed(2, other), "BackendType: `wireguard` is not our backend, vxlan");
    let vni = Vtep { vni: Vni::new(7).unwrap(), mac: mac(2) };
    let other_vni = |lease: &mut Lease| lease.attributes = Attributes::Vxlan(Dual { v4: Some(vni), v6: None });
    check(VXLAN, changed(2, other_vni), "BackendData.VNI: 7 is not our VNI 1");
}

#[test]
fn a_refused_lease_does_not_harm_its_neighbours() {
    let hostile = changed(2, |lease| lease.subnet.v4 = Some("0.0.0.0/0".parse().unwrap()));
    let text = planned(VXLAN, [hostile, peer(3)]);
    assert!(text.contains("route 10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink"), "{text}");
}

#[test]
fn of_two_leases_for_one_subnet_the_earlier_wins() {
    let younger = changed(3, |lease| lease.subnet.v4 = Some("10.244.2.128/25".parse().unwrap()));
    let text = planned(VXLAN, [younger, peer(2)]);
    assert!(text.contains("route 10.244.2.0/24 "), "{text}");
    assert!(
        text.ends_with("! 10.244.3.0-24: subnet: 10.244.2.128/25 is held by the earlier lease 10.244.2.0-24"),
        "{text}"
    );
}

#[test]
fn one_public_address_twice_is_a_warning_but_one_mac_twice_is_not() {
    let same_address = changed(3, |lease| lease.public_ip.v4 = Some([10, 9, 0, 2].into()));
    let ours = changed(4, |lease| lease.public_ip.v4 = Some([10, 9, 0, 1].into()));
    let same_mac = changed(5, |lease| lease.attributes = Attributes::Vxlan(Dual { v4: Some(vtep(2)), v6: None }));
    let text = planned(VXLAN, [peer(2), same_address, ours, same_mac]);
    let remarks: Vec<_> = text.lines().filter(|line| line.starts_with('!')).collect();
    assert_eq!(
        remarks,
        [
            "! 10.244.3.0-24: PublicIP: 10.9.0.2 is the public IP of lease 10.244.2.0-24 too (programmed all the same)",
            "! 10.244.4.0-24: PublicIP: 10.9.0.1 is this node's own public IP (programmed all the same)",
            "! 10.244.5.0-24: BackendData.VtepMAC: 02:00:00:00:00:02 is published by the earlier lease 10.244.2.0-24 too",
        ]
    );
    assert!(text.contains("route 10.244.3.0/24 ") && !text.contains("route 10.244.5.0/24 "), "{text}");
}

#[test]
fn an_unreadable_record_is_named_and_counts_as_absent() {
    let mut set = leases([peer(3)]);
    let flaw = Flaw { field: "record".into(), why: "not JSON".into() };
    set.apply(LeaseEvent::Put(Record::new(LeaseKey::new("10.244.2.0-24"), Err(flaw))));
    let text = planned_on(&config(VXLAN), us, &set);
    assert!(text.ends_with("! 10.244.2.0-24: record: not JSON") && text.contains("10.244.3.0"), "{text}");
}

#[test]
fn our_own_lease_is_no_peer() {
    let (config, set) = (config(VXLAN), leases([peer(1)]));
    let node = us(&config);
    let own = LeaseKey::new("10.244.1.0-24");
    let plan = Plan::whole(&Ground { config: &config, node: &node, leases: &set, own: Some(&own) });
    assert!(plan.skipped.is_empty() && plan.want.values().all(|wanted| wanted.owner == Owner::Node));
}

#[test]
fn a_family_that_is_whole_is_planned_without_the_other() {
    let half = changed(2, |lease| {
        lease.subnet.v6 = Some("2001:db8:42:2::/64".parse().unwrap());
        lease.flaws = vec![Flaw { field: "BackendV6Data".into(), why: "missing".into() }];
    });
    let text = planned(DUAL, [half]);
    assert!(text.contains("route 10.244.2.0/24 "), "{text}");
    assert!(text.contains("! 10.244.2.0-24: PublicIPv6: missing"), "{text}");
}

fn any_lease() -> impl Strategy<Value = (LeaseKey, Lease)> {
    let subnet = prop_oneof![Just("/24"), Just("/23"), Just("/25"), Just("/0")];
    (0..6_u8, 1..5_u8, 1..4_u8, 1..4_u8, 0..4_u64, subnet).prop_map(|(key, net, at, mac, since, len)| {
        let mut lease = peer(2).1;
        lease.subnet.v4 = Some(format!("10.244.{net}.0{len}").parse::<IpNet>().unwrap().trunc());
        lease.public_ip.v4 = Some([10, 9, 0, at].into());
        lease.attributes = Attributes::Vxlan(Dual { v4: Some(vtep(mac)), v6: None });
        lease.since.at = since;
        (LeaseKey::new(format!("key-{key}")), lease)
    })
}

fn any_event() -> impl Strategy<Value = LeaseEvent> {
    let record = || any_lease().prop_map(|(key, lease)| Record::new(key, Ok(lease)));
    let flaw = Flaw { field: "record".into(), why: "broken".into() };
    prop_oneof![
        6 => record().prop_map(LeaseEvent::Put),
        1 => (0..6_u8).prop_map(move |key| {
            LeaseEvent::Put(Record::new(LeaseKey::new(format!("key-{key}")), Err(flaw.clone())))
        }),
        2 => (0..6_u8).prop_map(|key| LeaseEvent::Remove(LeaseKey::new(format!("key-{key}")))),
        1 => proptest::collection::btree_map(0..6_u8, record(), 0..6).prop_map(|records| {
            let named = |(key, record): (u8, Record)| Record { key: LeaseKey::new(format!("key-{key}")), ..record };
            LeaseEvent::Snapshot(records.into_iter().map(named).collect())
        }),
    ]
}

proptest! {
    #[test]
    fn planning_what_an_event_touches_equals_planning_everything(events in proptest::collection::vec(any_event(), 0..12)) {
        let config = config(VXLAN);
        let node = us(&config);
        let mut leases = LeaseSet::default();
        let Plan { want, mut skipped } = Plan::whole(&Ground { config: &config, node: &node, leases: &leases, own: None });
        let mut objects = Objects::default();
        objects.want(want);
        for event in events {
            let touched = leases.apply(event);
            let ground = Ground { config: &config, node: &node, leases: &leases, own: None };
            let replan = Replan::of(&ground, &touched);
            objects.rewant(replan.want);
            skipped.retain(|key, _| !touched.contains(key));
            skipped.extend(replan.skipped);
            let whole = Plan::whole(&ground);
            prop_assert_eq!(objects.wanted(), &whole.want);
            prop_assert_eq!(&skipped, &whole.skipped);
        }
    }

    #[test]
    fn the_plan_does_not_depend_on_the_order_of_events(
        records in proptest::collection::btree_map(0..6_u8, any_lease(), 0..6),
        seed in any::<u64>(),
    ) {
        let config = config(VXLAN);
        let node = us(&config);
        let records: Vec<_> = records
            .into_iter()
            .map(|(key, (_, lease))| Record::new(LeaseKey::new(format!("key-{key}")), Ok(lease)))
            .collect();
        let mut shuffled = records.clone();
        shuffled.sort_by_key(|record| seed.rotate_left(record.key.as_str().as_bytes()[4].into()));
        let mut one_by_one = LeaseSet::default();
        for record in shuffled {
            one_by_one.apply(LeaseEvent::Put(record));
        }
        let mut at_once = LeaseSet::default();
        at_once.apply(LeaseEvent::Snapshot(records));
        let plan = |leases| Plan::whole(&Ground { config: &config, node: &node, leases, own: None });
        prop_assert_eq!(plan(&one_by_one), plan(&at_once));
    }
}

#[test]
fn a_lease_touches_itself_and_later_ones_in_conflict_with_it() {
    let twin = |n| changed(n, |lease| lease.attributes = Attributes::Vxlan(Dual { v4: Some(vtep(9)), v6: None }));
    let mut set = leases([twin(2), twin(3), twin(5), peer(4)]);
    let mut touched = |event| set.apply(event).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let put = |(key, lease)| LeaseEvent::Put(Record::new(key, Ok(lease)));
    assert_eq!(touched(put(twin(6))), "10.244.6.0-24");
    assert_eq!(touched(put(peer(3))), "10.244.3.0-24 10.244.5.0-24 10.244.6.0-24");
    assert_eq!(touched(put(peer(4))), "", "it says what it said");
    assert_eq!(touched(LeaseEvent::Remove(twin(6).0)), "10.244.6.0-24");
    assert_eq!(touched(LeaseEvent::Remove(twin(2).0)), "10.244.2.0-24 10.244.5.0-24");
}
