//! The damages that a node's network state can suffer: their names, and the changes that do them.
//!
//! Surface: [`Damage`]. Pure but for [`Damage::changes`]' reading of a state that was observed. Done and repaired they are in
//! [`crate::repair`].

use std::net::IpAddr;

use flannel_core::addr::{LinkName, Mac, Mtu};
use flannel_core::diff::{Change, Op, Owner};
use flannel_core::rules::{Ruleset, Verdict};
use flannel_core::state::{Key, Link, Route, State, Value};

/// One way to break a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is described by its sentence")]
pub enum Damage {
    DeviceDeleted,
    DeviceDown,
    DeviceAddressRemoved,
    DeviceMtuChanged,
    DeviceMacChanged,
    RouteRemoved,
    RoutesRemoved,
    RouteReplaced,
    NeighRemoved,
    NeighsRemoved,
    NeighReplaced,
    FdbRemoved,
    FdbsRemoved,
    FdbReplaced,
    RulesFlushed,
    RuleRemoved,
    RulesUnhooked,
    RulesDeleted,
    ExternalDownUp,
    ExternalAddressRemoved,
    ExternalAddressChanged,
}

impl Damage {
    /// All, in the order in which they are listed.
    pub const ALL: [Self; 21] = [
        Self::DeviceDeleted,
        Self::DeviceDown,
        Self::DeviceAddressRemoved,
        Self::DeviceMtuChanged,
        Self::DeviceMacChanged,
        Self::RouteRemoved,
        Self::RoutesRemoved,
        Self::RouteReplaced,
        Self::NeighRemoved,
        Self::NeighsRemoved,
        Self::NeighReplaced,
        Self::FdbRemoved,
        Self::FdbsRemoved,
        Self::FdbReplaced,
        Self::RulesFlushed,
        Self::RuleRemoved,
        Self::RulesUnhooked,
        Self::RulesDeleted,
        Self::ExternalDownUp,
        Self::ExternalAddressRemoved,
        Self::ExternalAddressChanged,
    ];

    /// The name that `flannel lab break` knows it by.
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// What is done, in words.
    pub fn sentence(self) -> &'static str {
        self.words().1
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::DeviceDeleted => ("device-deleted", "flannel's device is deleted, with all that is on it"),
            Self::DeviceDown => ("device-down", "flannel's device is set down"),
            Self::DeviceAddressRemoved => ("device-address-removed", "its address is taken from flannel's device"),
            Self::DeviceMtuChanged => ("device-mtu-changed", "the MTU of flannel's device is made 100 bytes smaller"),
            Self::DeviceMacChanged => ("device-mac-changed", "flannel's device gets another MAC"),
            Self::RouteRemoved => ("route-removed", "the route to one peer is removed"),
            Self::RoutesRemoved => ("routes-removed", "the routes to all peers are removed"),
            Self::RouteReplaced => ("route-replaced", "the route to one peer becomes a blackhole"),
            Self::NeighRemoved => ("neigh-removed", "the neighbour entry of one peer is removed"),
            Self::NeighsRemoved => ("neighs-removed", "the neighbour entries of all peers are removed"),
            Self::NeighReplaced => ("neigh-replaced", "the neighbour entry of one peer gets another MAC"),
            Self::FdbRemoved => ("fdb-removed", "the forwarding (FDB) entry of one peer is removed"),
            Self::FdbsRemoved => ("fdbs-removed", "the forwarding (FDB) entries of all peers are removed"),
            Self::FdbReplaced => ("fdb-replaced", "the forwarding (FDB) entry of one peer leads elsewhere"),
            Self::RulesFlushed => ("rules-flushed", "all rules are flushed from flannel's chains"),
            Self::RuleRemoved => ("rule-removed", "the masquerade rule is removed"),
            Self::RulesUnhooked => (
                "rules-unhooked",
                "nothing leads to the masquerade rules any more: nft's chain, or iptables' jump, is removed",
            ),
            Self::RulesDeleted => ("rules-deleted", "flannel's tables or chains are deleted"),
            Self::ExternalDownUp => ("external-down-up", "the external interface goes down, and up again"),
            Self::ExternalAddressRemoved => {
                ("external-address-removed", "the external interface loses its address, and gets it again")
            }
            Self::ExternalAddressChanged => {
                ("external-address-changed", "the external interface gets another address; the peers must follow")
            }
        }
    }

    /// The damage of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|damage| damage.name() == name)
    }

    /// Whether it is done to the host's own interface: not by [`Damage::changes`].
    pub fn is_external(self) -> bool {
        matches!(self, Self::ExternalDownUp | Self::ExternalAddressRemoved | Self::ExternalAddressChanged)
    }

    /// Whether it is done to the packet rules.
    pub fn is_of_rules(self) -> bool {
        matches!(self, Self::RulesFlushed | Self::RuleRemoved | Self::RulesUnhooked | Self::RulesDeleted)
    }

    /// The changes that do the damage to a state that is whole; none if it holds nothing of the kind. Where one of several
    /// is damaged, it is the first.
    pub fn changes(self, have: &State) -> Vec<Op> {
        let (kind, all) = self.objects();
        let objects = have.objects.iter().filter(|(key, value)| kind(key, value));
        let ops = objects.map(|(key, value)| Op { owner: Owner::Node, change: self.change(*key, value) });
        ops.take(if all { usize::MAX } else { 1 }).collect()
    }

    /// Which objects it concerns, and whether all of them.
    fn objects(self) -> (fn(&Key, &Value) -> bool, bool) {
        match self {
            Self::RouteRemoved | Self::RouteReplaced => (is_peer_route, false),
            Self::RoutesRemoved => (is_peer_route, true),
            Self::NeighRemoved | Self::NeighReplaced => (|key, _| matches!(key, Key::Neigh(..)), false),
            Self::NeighsRemoved => (|key, _| matches!(key, Key::Neigh(..)), true),
            Self::FdbRemoved | Self::FdbReplaced => (|key, _| matches!(key, Key::Fdb(..)), false),
            Self::FdbsRemoved => (|key, _| matches!(key, Key::Fdb(..)), true),
            Self::DeviceAddressRemoved => (|key, _| matches!(key, Key::Address(..)), true),
            rules if rules.is_of_rules() => (|key, _| matches!(key, Key::Rules(..)), true),
            _ => (|key, _| matches!(key, Key::Link(_)), true),
        }
    }

    /// What becomes of one object.
    fn change(self, key: Key, value: &Value) -> Change {
        match self.replacement(value) {
            Some(value) => Change::Set(key, value),
            None => Change::Remove(key, value.clone()),
        }
    }

    /// What an object becomes that is not removed.
    fn replacement(self, value: &Value) -> Option<Value> {
        Some(match (self, value) {
            (Self::DeviceDown, Value::Link(link)) => changed(link, |link| link.up = false),
            (Self::DeviceMtuChanged, Value::Link(link)) => changed(link, |link| link.mtu = Mtu(link.mtu.0 - 100)),
            (Self::DeviceMacChanged, Value::Link(link)) => changed(link, |link| link.mac = another(link.mac)),
            (Self::RouteReplaced, Value::Route(_)) => Value::Route(Route::Blackhole),
            (Self::NeighReplaced, Value::Neigh(mac)) => Value::Neigh(another(*mac)),
            (Self::FdbReplaced, Value::Fdb(address)) => Value::Fdb(elsewhere(*address)),
            (Self::RulesFlushed, Value::Rules(rules)) => without_rules(rules, |_| true),
            (Self::RuleRemoved, Value::Rules(rules)) => without_rules(rules, is_masquerade),
            (Self::RulesUnhooked, Value::Rules(rules)) => unhooked(rules),
            _ => return None,
        })
    }
}

fn is_peer_route(_: &Key, value: &Value) -> bool {
    matches!(value, Value::Route(Route::Unicast { gateway: Some(_), .. }))
}

fn changed(link: &Link, change: impl FnOnce(&mut Link)) -> Value {
    let mut link = link.clone();
    change(&mut link);
    Value::Link(Box::new(link))
}

/// The MAC with its last bit turned.
fn another(mac: Mac) -> Mac {
    let mut bytes = mac.0;
    bytes[5] ^= 1;
    Mac(bytes)
}

/// An address of the same family that no host of the lab has (RFC 5737, RFC 3849).
fn elsewhere(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::from([192, 0, 2, 250]),
        IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 0, 1, 0, 0, 0, 0xdead]),
    }
}

fn is_masquerade(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Masquerade { .. })
}

fn without_rules(rules: &Ruleset, goes: impl Fn(&Verdict) -> bool) -> Value {
    let mut rules = rules.clone();
    for chain in [&mut rules.postrouting, &mut rules.forward].into_iter().flatten() {
        chain.rules.retain(|rule| !goes(&rule.verdict));
    }
    Value::Rules(Box::new(rules))
}

/// An nft chain is its own hook, so it goes. (The jump of iptables is removed by [`crate::repair`].)
fn unhooked(rules: &Ruleset) -> Value {
    Value::Rules(Box::new(Ruleset { postrouting: None, ..rules.clone() }))
}

/// The state that a node should have once a host's address has become another.
pub(crate) fn after_move(state: &State, old: IpAddr, new: IpAddr) -> State {
    let moved = |address: IpAddr| if address == old { new } else { address };
    state
        .objects
        .iter()
        .map(|(key, value)| {
            let value = match value {
                Value::Fdb(address) => Value::Fdb(moved(*address)),
                Value::Route(Route::Unicast { dev, gateway, onlink }) => {
                    Value::Route(Route::Unicast { dev: *dev, gateway: gateway.map(moved), onlink: *onlink })
                }
                Value::Link(link) => changed(link, |link| move_local(link, moved)),
                other => other.clone(),
            };
            (*key, value)
        })
        .collect()
}

fn move_local(link: &mut Link, moved: impl Fn(IpAddr) -> IpAddr) {
    if let flannel_core::state::LinkKind::Vxlan(vxlan) = &mut link.kind {
        vxlan.local = vxlan.local.map(moved);
    }
}

/// The external interface of every node of the lab.
pub(crate) fn external() -> Option<LinkName> {
    crate::layout::EXTERNAL.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_core::addr::{Family, Vni};
    use flannel_core::rules::{Chain, Rule, RuleMode};
    use flannel_core::state::{LinkKind, Vxlan};

    fn node() -> State {
        let dev: LinkName = "flannel.1".parse().unwrap();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mac: Mac = "02:00:00:00:00:02".parse().unwrap();
        let vxlan = Vxlan {
            vni: Vni::new(1).unwrap(),
            port: 8472,
            local: Some(address("192.0.2.11")),
            lower: external(),
            learning: false,
            gbp: false,
            checksums: true,
        };
        let link = Link { up: true, mtu: Mtu(1450), mac, accept_ra: false, kind: LinkKind::Vxlan(vxlan) };
        let peer = |n: u8| {
            let gateway = IpAddr::from([10, 244, n, 0]);
            let route = Route::Unicast { dev, gateway: Some(gateway), onlink: true };
            [
                (Route::key(format!("10.244.{n}.0/24").parse().unwrap()), Value::Route(route)),
                (Key::Neigh(dev, gateway), Value::Neigh(Mac([2, 0, 0, 0, 0, n]))),
                (Key::Fdb(dev, Mac([2, 0, 0, 0, 0, n])), Value::Fdb(IpAddr::from([192, 0, 2, 10 + n]))),
            ]
        };
        let rule = |verdict| Rule { matches: Vec::new(), verdict };
        let rules = vec![rule(Verdict::Return), rule(Verdict::Masquerade { fully_random: true })];
        let chain = Chain { hooked: true, rules };
        let rules = Ruleset { postrouting: Some(chain), forward: None };
        let own = [
            (Key::Link(dev), Value::Link(Box::new(link))),
            (Key::Address(dev, "10.244.1.0/32".parse().unwrap()), Value::Address),
            (Key::Rules(RuleMode::Nftables, Family::V4), Value::Rules(Box::new(rules))),
        ];
        own.into_iter().chain(peer(2)).chain(peer(3)).collect()
    }

    #[test]
    fn every_damage_does_something_to_a_vxlan_node() {
        let node = node();
        for damage in Damage::ALL.into_iter().filter(|damage| !damage.is_external()) {
            let changes = damage.changes(&node);
            assert!(!changes.is_empty(), "{damage:?}");
            let unlike = |op: &Op| match &op.change {
                Change::Set(key, value) => node.objects.get(key) != Some(value),
                Change::Remove(key, _) => node.objects.contains_key(key),
            };
            assert!(changes.iter().all(unlike), "{damage:?}");
        }
    }

    #[test]
    fn one_is_one_and_all_are_all() {
        let node = node();
        let count = |damage: Damage| damage.changes(&node).len();
        assert_eq!([Damage::RouteRemoved, Damage::RoutesRemoved].map(count), [1, 2]);
        assert_eq!([Damage::NeighRemoved, Damage::NeighsRemoved].map(count), [1, 2]);
        assert_eq!([Damage::FdbRemoved, Damage::FdbsRemoved].map(count), [1, 2]);
    }

    #[test]
    fn names_are_distinct_and_found_again() {
        for damage in Damage::ALL {
            assert_eq!(Damage::named(damage.name()), Some(damage));
        }
        assert_eq!(Damage::named("nothing"), None);
    }

    #[test]
    fn a_moved_host_is_moved_wherever_it_is_named() {
        let (old, new) = (IpAddr::from([192, 0, 2, 12]), IpAddr::from([192, 0, 2, 120]));
        let text = after_move(&node(), old, new).to_string();
        assert!(text.contains("fdb 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.120 self permanent"), "{text}");
        assert!(!text.contains("192.0.2.12 "), "{text}");
    }
}
