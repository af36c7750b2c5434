//! The fake kernel against the real one: the same random operations, the same state after each.

use flannel_core::addr::{LinkName, Mac, Mtu, Vni};
use flannel_core::diff::{Change, Op, Owner};
use flannel_core::state::{Key, Link, LinkKind, Route, Scope, State, Value, Vxlan};
use flannel_kernel::executor::Executor;
use flannel_kernel::fake::FakeKernel;
use flannel_kernel::linux::KernelExecutor;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use crate::Test;
use crate::executor::{name, underlay};

pub(crate) const TESTS: &[Test] =
    &[("fake::random_operations_leave_the_same_behind", random_operations_leave_the_same_behind)];

fn scope() -> Scope {
    Scope {
        networks: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/48".parse().unwrap()],
        externals: vec![name("ext0")],
        blackholes: vec!["10.244.1.0/24".parse().unwrap()],
        ..Scope::default()
    }
}

/// The two devices; the second is an IPv6 one.
fn devices() -> impl Strategy<Value = LinkName> {
    select(vec![name("flannel.1"), name("flannel-v6.1")])
}

fn macs() -> impl Strategy<Value = Mac> {
    select(vec!["02:00:00:00:00:01".parse().unwrap(), "02:00:00:00:00:02".parse().unwrap()])
}

fn link() -> impl Strategy<Value = (Key, Value)> {
    (devices(), macs(), select(vec![1400, 1300]), prop::bool::weighted(0.7), any::<bool>(), any::<bool>()).prop_map(
        |(dev, mac, mtu, up, learning, accept_ra)| {
            let local = if dev == name("flannel.1") { "192.0.2.1" } else { "2001:db8::1" };
            let kind = LinkKind::Vxlan(Vxlan {
                vni: Vni::new(1).unwrap(),
                port: 8472,
                local: Some(local.parse().unwrap()),
                lower: Some(name("ext0")),
                learning,
                gbp: false,
                checksums: true,
            });
            (Key::Link(dev), Value::Link(Box::new(Link { up, mtu: Mtu(mtu), mac, accept_ra, kind })))
        },
    )
}

fn route() -> impl Strategy<Value = (Key, Value)> {
    let targets = [
        ("10.244.2.0/24", "flannel.1", "10.244.2.0"),
        ("10.244.2.0/24", "flannel.1", "10.244.2.7"),
        ("10.244.2.0/24", "ext0", "192.0.2.2"),
        ("10.244.3.0/24", "flannel.1", "10.244.3.0"),
        ("10.244.1.0/24", "", ""),
        ("fd00:244:0:2::/64", "flannel-v6.1", "fd00:244:0:2::"),
        ("fd00:244:0:2::/64", "ext0", "2001:db8::2"),
        ("fd00:244:0:3::/64", "flannel-v6.1", "fd00:244:0:3::"),
    ];
    select(targets.to_vec()).prop_map(|(to, dev, gateway)| {
        let key = Route::key(to.parse().unwrap());
        let Ok(gateway) = gateway.parse() else { return (key, Value::Route(Route::Blackhole)) };
        (key, Value::Route(Route::Unicast { dev: name(dev), gateway: Some(gateway), onlink: dev != "ext0" }))
    })
}

fn object() -> impl Strategy<Value = (Key, Value)> {
    let addresses = vec!["10.244.1.0/32", "10.244.9.1/32", "fd00:244:0:1::/128", "fd00:244:0:9::/128"];
    let gateways = vec!["10.244.2.0", "10.244.3.0", "fd00:244:0:2::", "fd00:244:0:3::"];
    prop_oneof![
        3 => link(),
        2 => (devices(), select(addresses)).prop_map(|(dev, net)| (Key::Address(dev, net.parse().unwrap()), Value::Address)),
        2 => (devices(), select(gateways), macs())
            .prop_map(|(dev, to, mac)| (Key::Neigh(dev, to.parse().unwrap()), Value::Neigh(mac))),
        2 => (macs(), select(vec!["192.0.2.2", "192.0.2.3"]))
            .prop_map(|(mac, to)| (Key::Fdb(name("flannel.1"), mac), Value::Fdb(to.parse().unwrap()))),
        3 => route(),
    ]
}

/// A few operations at once, one for each object as `diff` gives them.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = (object(), prop::bool::weighted(0.25)).prop_map(|((key, value), removes)| Op {
        owner: Owner::Node,
        change: if removes { Change::Remove(key, value) } else { Change::Set(key, value) },
    });
    vec(op, 1..4).prop_map(|ops| {
        let mut seen = std::collections::BTreeSet::new();
        ops.into_iter().filter(|op| seen.insert(*op.change.key())).collect()
    })
}

fn failed(errors: &[flannel_kernel::executor::OpError]) -> Vec<usize> {
    errors.iter().map(|error| error.index).collect()
}

/// A removal names what is there, as `diff` would.
fn as_observed(op: Op, have: &State) -> Op {
    match op.change {
        Change::Remove(key, value) => {
            let value = have.objects.get(&key).cloned().unwrap_or(value);
            Op { change: Change::Remove(key, value), ..op }
        }
        Change::Set(..) => op,
    }
}

fn random_operations_leave_the_same_behind() {
    underlay();
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    runner.run(&vec(ops(), 1..25), play).unwrap_or_else(|error| panic!("{error}"));
}

fn play(sequence: Vec<Vec<Op>>) -> Result<(), TestCaseError> {
    let (mut real, mut fake) = (KernelExecutor::open(None).unwrap(), FakeKernel::new());
    let mut have = real.observe(&scope()).unwrap();
    for leftover in have.objects.iter().collect::<Vec<_>>().into_iter().rev() {
        let change = Change::Remove(*leftover.0, leftover.1.clone());
        real.apply(&[Op { owner: Owner::Node, change }]);
    }
    have = real.observe(&scope()).unwrap();
    prop_assert_eq!(&have, &State::default());
    let mut fake_have = State::default();
    for ops in sequence {
        let ops: Vec<Op> = ops.into_iter().map(|op| as_observed(op, &have)).collect();
        let (theirs, ours) = (real.apply(&ops), fake.apply(&ops));
        let what: Vec<String> = ops.iter().map(|op| op.change.to_string()).collect();
        prop_assert_eq!(failed(&theirs), failed(&ours), "{:#?} {:#?} {:#?}", what, theirs, ours);
        real.notices(&scope(), &mut have).unwrap();
        fake.notices(&scope(), &mut fake_have).unwrap();
        let seen = real.observe(&scope()).unwrap();
        prop_assert_eq!(have.to_string(), seen.to_string(), "notices against a full read after {:#?}", &what);
        prop_assert_eq!(seen.to_string(), fake.to_string(), "real against fake after {:#?}", &what);
        prop_assert_eq!(&fake_have, fake.state());
    }
    Ok(())
}
