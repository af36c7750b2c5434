//! What has to change, as text, in an order that works; and the laws of it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::addr::{Family, Mac, Mtu, Vni};
use crate::rules::RuleMode;
use crate::state::{Link, Route, Vxlan};

/// What the ops do to a kernel that takes devices' belongings along with them.
fn apply(have: &mut State, ops: &[Op]) {
    for op in ops {
        match &op.change {
            Change::Set(key, value) => have.objects.insert(*key, value.clone()),
            Change::Remove(Key::Link(name), _) => have.remove_link(*name),
            Change::Remove(key, _) => have.objects.remove(key),
        }
    }
}

fn want(state: &State) -> Want {
    let wanted = |(key, value): (&Key, &Value)| (*key, Wanted { value: value.clone(), owner: Owner::Node });
    state.objects.iter().map(wanted).collect()
}

fn device(name: &str, vni: u32, mtu: u32) -> (Key, Value) {
    let vxlan = Vxlan {
        vni: Vni::new(vni).unwrap(),
        port: 8472,
        local: Some("192.0.2.1".parse().unwrap()),
        lower: Some("eth0".parse().unwrap()),
        learning: false,
        gbp: false,
        checksums: true,
    };
    let mac = Mac::local([1; 6]);
    let link = Link { up: true, mtu: Mtu(mtu), mac, accept_ra: false, kind: LinkKind::Vxlan(vxlan) };
    (Key::Link(name.parse().unwrap()), Value::Link(Box::new(link)))
}

fn route(subnet: &str, dev: &str) -> (Key, Value) {
    let route = Route::Unicast { dev: dev.parse().unwrap(), gateway: None, onlink: false };
    (Route::key(subnet.parse().unwrap()), Value::Route(route))
}

fn address(dev: &str) -> (Key, Value) {
    (Key::Address(dev.parse().unwrap(), "10.244.1.0/32".parse().unwrap()), Value::Address)
}

fn lines(want: &[(Key, Value)], have: &[(Key, Value)]) -> Vec<String> {
    let (wanted, have): (State, State) = (want.iter().cloned().collect(), have.iter().cloned().collect());
    diff(&self::want(&wanted), &have).iter().map(|op| op.change.to_string()).collect()
}

#[test]
fn things_are_made_before_what_needs_them_and_removed_in_reverse() {
    let (device, address, route) =
        (device("flannel.1", 1, 1450), address("flannel.1"), route("10.244.2.0/24", "flannel.1"));
    assert_eq!(
        lines(&[route.clone(), address.clone(), device.clone()], &[]),
        [
            "set link flannel.1 mtu 1450 state UP 02:01:01:01:01:01 vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning",
            "set address 10.244.1.0/32 dev flannel.1 scope global",
            "set route 10.244.2.0/24 dev flannel.1 scope link",
        ]
    );
    assert_eq!(
        lines(std::slice::from_ref(&device), &[device.clone(), address.clone(), route.clone()]),
        [
            "remove route 10.244.2.0/24 dev flannel.1 scope link",
            "remove address 10.244.1.0/32 dev flannel.1 scope global"
        ]
    );
    assert_eq!(lines(&[], &[device, address, route]).len(), 1, "what is on a device goes with it");
}

#[test]
fn a_device_that_cannot_change_in_place_is_made_again_with_all_that_was_on_it() {
    let rest = [address("flannel.1"), route("10.244.2.0/24", "flannel.1")];
    let with = |device: (Key, Value)| rest.iter().cloned().chain([device]).collect::<Vec<_>>();
    assert_eq!(
        lines(&with(device("flannel.1", 1, 1400)), &with(device("flannel.1", 1, 1450))).len(),
        1,
        "MTU: in place"
    );
    let ops = lines(&with(device("flannel.1", 2, 1450)), &with(device("flannel.1", 1, 1450)));
    assert_eq!(ops.len(), 4, "{ops:?}");
    assert!(ops[0].starts_with("remove link flannel.1 ") && ops[1].starts_with("set link flannel.1 "), "{ops:?}");
}

#[test]
fn a_route_that_leaves_a_dying_device_is_moved_before_the_device_goes() {
    let ops =
        lines(&[route("10.244.2.0/24", "eth0")], &[device("flannel.1", 1, 1450), route("10.244.2.0/24", "flannel.1")]);
    assert_eq!(ops[0], "set route 10.244.2.0/24 dev eth0 scope link");
    assert!(ops[1].starts_with("remove link flannel.1 "), "{ops:?}");
}

fn any_state() -> impl Strategy<Value = State> {
    let name = prop_oneof![Just("flannel.1"), Just("flannel.2")];
    let object = prop_oneof![
        (name.clone(), 1..3_u32, 1400..1402_u32).prop_map(|(name, vni, mtu)| device(name, vni, mtu)),
        name.clone().prop_map(address),
        (name.clone(), 0..4_u8, 0..3_u8).prop_map(|(dev, host, mac)| {
            (Key::Neigh(dev.parse().unwrap(), [10, 0, 0, host].into()), Value::Neigh(Mac::local([mac; 6])))
        }),
        (0..4_u8, name).prop_map(|(n, dev)| route(&format!("10.244.{n}.0/24"), dev)),
        any::<bool>().prop_map(|other| {
            let value = if other { Value::Other("foreign".into()) } else { Value::Rules(Box::default()) };
            (Key::Rules(RuleMode::Nftables, Family::V4), value)
        }),
    ];
    proptest::collection::vec(object, 0..12).prop_map(|objects| {
        let objects: BTreeMap<_, _> = objects.into_iter().collect();
        let here = |dev: LinkName| objects.contains_key(&Key::Link(dev));
        let stands = |key: &Key, value: &Value| match (key.link(), value) {
            (Some(dev), _) => here(dev),
            (None, Value::Route(route)) => route.dev().is_none_or(here),
            (None, _) => true,
        };
        objects.iter().filter(|(key, value)| stands(key, value)).map(|(key, value)| (*key, value.clone())).collect()
    })
}

proptest! {
    #[test]
    fn nothing_to_do_where_all_is_right(state in any_state()) {
        prop_assert_eq!(diff(&want(&state), &state), vec![]);
    }

    #[test]
    fn the_ops_lead_from_any_state_to_the_wanted_one(wanted in any_state(), mut have in any_state()) {
        let ops = diff(&want(&wanted), &have);
        apply(&mut have, &ops);
        prop_assert_eq!(&have, &wanted);
    }

    #[test]
    fn a_few_ops_at_a_time_lead_there_too(wanted in any_state(), mut have in any_state(), few in 1..4_usize) {
        let mut want = want(&wanted);
        for (_, wanted) in want.iter_mut().filter(|(key, _)| matches!(key, Key::Neigh(..) | Key::Route(..))) {
            wanted.owner = Owner::Peer(LeaseKey::new("10.244.2.0-24"));
        }
        for _ in 0..30 {
            let ops: Vec<_> = diff(&want, &have).into_iter().take(few).collect();
            apply(&mut have, &ops);
        }
        prop_assert_eq!(&have, &wanted);
    }

    #[test]
    fn this_nodes_own_comes_before_what_its_peers_need(wanted in any_state(), have in any_state()) {
        let mut want = want(&wanted);
        for (_, wanted) in want.iter_mut().filter(|(key, _)| matches!(key, Key::Neigh(..))) {
            wanted.owner = Owner::Peer(LeaseKey::new("10.244.2.0-24"));
        }
        let set = diff(&want, &have).into_iter().filter(|op| matches!(op.change, Change::Set(..)));
        let is_of_peer: Vec<_> = set.map(|op| op.owner != Owner::Node).collect();
        prop_assert!(is_of_peer.is_sorted());
    }

    #[test]
    fn every_op_may_be_applied_twice(wanted in any_state(), have in any_state()) {
        let ops = diff(&want(&wanted), &have);
        let (mut once, mut twice) = (have.clone(), have);
        apply(&mut once, &ops);
        for op in &ops {
            apply(&mut twice, std::slice::from_ref(op));
            if !matches!(op.change, Change::Remove(Key::Link(_), _)) {
                apply(&mut twice, std::slice::from_ref(op));
            }
        }
        prop_assert_eq!(once, twice);
    }
}
