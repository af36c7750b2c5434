//! Scenarios on the fake kernel, time given: what is wanted and what goes wrong in; operations, failures and state out.

use std::net::IpAddr;

use flannel_core::addr::{Family, Mtu};
use flannel_core::lease::Record;
use flannel_core::rules::RuleMode;
use flannel_core::state::{Link, LinkKind, Route, Value};
use flannel_kernel::fake::{FakeKernel, Times};
use ipnet::IpNet;

use super::*;
use crate::scene::{HOST_GW, VXLAN, gateway, key, mac, name, peer, peer_with_mac, record, want};

/// A reconciler on a fake kernel, with a clock that moves only when told.
struct Rig {
    reconciler: Reconciler<FakeKernel>,
    want: Want,
    now: Instant,
    repair: bool,
}

impl Rig {
    /// Wants what host 1 wants in a network with these peers, of a kernel that holds nothing.
    fn new(peers: impl IntoIterator<Item = Record>) -> Self {
        Self::on(FakeKernel::new(), want(VXLAN, peers))
    }

    fn on(kernel: FakeKernel, want: Want) -> Self {
        Self { reconciler: Reconciler::new(kernel), want, now: Instant::now(), repair: false }
    }

    /// The same, with everything there.
    fn settled(peers: impl IntoIterator<Item = Record>) -> Self {
        let mut rig = Self::new(peers);
        rig.pass();
        assert_eq!(rig.pass(), "", "one pass is enough");
        rig
    }

    fn kernel(&mut self) -> &mut FakeKernel {
        self.reconciler.executor()
    }

    fn want(&mut self, want: Want) {
        (self.want, self.repair) = (want, false);
    }

    /// Takes notices in and makes a pass, as the kernel's thread does; answers with what was done, what newly fails (`!`)
    /// and who works again (`+`).
    fn pass(&mut self) -> String {
        if self.reconciler.notices().unwrap().underlay {
            self.reconciler.retry(self.now);
        }
        self.reconciler.observe().unwrap();
        self.reconciler.want(self.want.clone());
        let ops = self.reconciler.plan_ops(self.now);
        let pass = self.reconciler.apply(ops, self.repair, self.now);
        self.repair = true;
        let done = pass.applied.iter().map(ToString::to_string);
        let failed = pass.failed.iter().map(|(owner, error)| format!("! {owner}: {error}"));
        let recovered = pass.recovered.iter().map(|owner| format!("+ {owner}"));
        done.chain(failed).chain(recovered).collect::<Vec<_>>().join("\n")
    }

    fn pass_after(&mut self, pause: Duration) -> String {
        self.now += pause;
        self.pass()
    }

    /// How long until the next pass, if nothing happens.
    fn pause(&self) -> Option<Duration> {
        self.reconciler.next_due(self.now).map(|due| due - self.now)
    }

    /// How many operations were tried since the last call.
    fn tried(&mut self) -> usize {
        self.kernel().take_applied().len()
    }

    fn assert_right(&mut self) {
        let want: State = self.want.iter().map(|(key, wanted)| (*key, wanted.value.clone())).collect();
        assert_eq!(self.kernel().state().to_string(), want.to_string());
    }
}

const MILLI: Duration = Duration::from_millis(1);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn device() -> Key {
    Key::Link(name("flannel.1"))
}

fn neigh(n: u8) -> Key {
    Key::Neigh(name("flannel.1"), ip(&format!("10.244.{n}.0")))
}

fn fdb(n: u8) -> Key {
    Key::Fdb(name("flannel.1"), mac(n))
}

fn route(n: u8) -> Key {
    Route::key(net(&format!("10.244.{n}.0/24")))
}

fn damage_link(kernel: &mut FakeKernel, damage: impl FnOnce(&mut Link)) {
    let mut link = kernel.state().link(name("flannel.1")).unwrap().clone();
    damage(&mut link);
    kernel.set(device(), Value::Link(Box::new(link))).unwrap();
}

#[test]
fn from_nothing_each_thing_is_made_before_what_needs_it() {
    let mut rig = Rig::new([peer(2)]);
    let done = rig.pass();
    let first_lines: Vec<_> = done.lines().filter(|line| line.starts_with("set ")).collect();
    assert_eq!(
        first_lines,
        [
            "set link flannel.1 mtu 1450 state UP 02:00:00:00:00:01 vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning",
            "set address 10.244.1.0/32 dev flannel.1 scope global",
            "set table ip flannel-ipv4",
            "set table ip6 flannel-ipv6",
            "set neigh 10.244.2.0 dev flannel.1 lladdr 02:00:00:00:00:02 PERMANENT",
            "set fdb 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent",
            "set route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
        ]
    );
    rig.assert_right();
    assert_eq!((rig.pass(), rig.pause()), (String::new(), None), "nothing is left to do or to wait for");
}

#[test]
fn what_agrees_is_not_touched() {
    let kernel = std::mem::take(Rig::settled([peer(2), peer(3)]).kernel());
    let mut rig = Rig::on(kernel, want(VXLAN, [peer(2), peer(3)]));
    rig.tried();
    assert_eq!(rig.pass(), "");
    assert_eq!(rig.tried(), 0);
}

type Damage = fn(&mut FakeKernel);

#[test]
fn damage_is_repaired_in_one_pass() {
    let damages: [(&str, Damage); 15] = [
        ("device deleted", |kernel| kernel.remove(device())),
        ("device down", |kernel| kernel.take_down(name("flannel.1"))),
        ("address removed", |kernel| kernel.remove(Key::Address(name("flannel.1"), net("10.244.1.0/32")))),
        ("address added", |kernel| {
            kernel.set(Key::Address(name("flannel.1"), net("10.244.9.9/32")), Value::Address).unwrap();
        }),
        ("MAC changed", |kernel| damage_link(kernel, |link| link.mac = mac(99))),
        ("MTU changed", |kernel| damage_link(kernel, |link| link.mtu = Mtu(1280))),
        ("accept_ra switched on", |kernel| damage_link(kernel, |link| link.accept_ra = true)),
        ("VNI changed", |kernel| {
            let mut link = kernel.state().link(name("flannel.1")).unwrap().clone();
            let LinkKind::Vxlan(vxlan) = &mut link.kind else { panic!("not vxlan") };
            vxlan.port = 4789;
            kernel.remove(device());
            kernel.set(device(), Value::Link(Box::new(link))).unwrap();
        }),
        ("one route removed", |kernel| kernel.remove(route(2))),
        ("all routes removed", |kernel| [2, 3].into_iter().for_each(|n| kernel.remove(route(n)))),
        ("route replaced", |kernel| {
            let wrong = Route::Unicast { dev: name("eth0"), gateway: Some(ip("192.0.2.254")), onlink: false };
            kernel.set(route(2), Value::Route(wrong)).unwrap();
        }),
        ("neighbour removed", |kernel| kernel.remove(neigh(2))),
        ("neighbour replaced", |kernel| kernel.set(neigh(2), Value::Neigh(mac(77))).unwrap()),
        ("FDB entry removed", |kernel| kernel.remove(fdb(2))),
        ("FDB entry replaced", |kernel| kernel.set(fdb(2), Value::Fdb(ip("192.0.2.77"))).unwrap()),
    ];
    for (what, damage) in damages {
        let mut rig = Rig::settled([peer(2), peer(3)]);
        damage(rig.kernel());
        assert_ne!(rig.pass(), "", "{what}");
        rig.assert_right();
        assert_eq!(rig.pass(), "", "{what}: one pass is enough");
    }
}

#[test]
fn packet_rules_are_repaired() {
    let rules = Key::Rules(RuleMode::Nftables, Family::V4);
    let mut rig = Rig::settled([peer(2)]);
    rig.kernel().remove(rules);
    assert!(rig.pass().starts_with("set table ip flannel-ipv4"));
    assert_eq!(rig.pass(), "");
    rig.assert_right();
    // iptables tells nobody: the tick finds it.
    rig.kernel().damage_silently(|state| state.objects.remove(&rules));
    assert_eq!(rig.pass(), "");
    rig.reconciler.resync().unwrap();
    assert!(rig.pass().starts_with("set table ip flannel-ipv4"));
    rig.assert_right();
}

#[test]
fn what_the_kernel_never_told_of_is_found_by_the_full_read() {
    let mut rig = Rig::settled([peer(2), peer(3)]);
    rig.kernel().damage_silently(|state| state.objects.retain(|key, _| !matches!(key, Key::Route(..))));
    assert_eq!(rig.pass(), "");
    rig.reconciler.forget();
    assert_eq!(
        rig.pass(),
        "set route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink\n\
         set route 10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink"
    );
    rig.kernel().damage_silently(|state| state.objects.remove(&neigh(2)));
    rig.kernel().lose_notices();
    assert_eq!(rig.pass(), "set neigh 10.244.2.0 dev flannel.1 lladdr 02:00:00:00:00:02 PERMANENT");
    rig.assert_right();
}

/// The objects of another run: its network, VNI, mode of rules and a peer that is gone.
fn left_over() -> FakeKernel {
    let config = r#"{"Network":"10.99.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#;
    let other = record(
        "10.99.8.0-24",
        r#"{"PublicIP":"192.0.2.8","BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"02:00:00:00:00:08"},"Sequence":8}"#,
    );
    let mut rig = Rig::on(FakeKernel::new(), want(config, [other]));
    rig.pass();
    let mut before = Rig::on(std::mem::take(rig.kernel()), Want::default());
    let gone = want(VXLAN, [peer(8)]);
    before.reconciler.observe().unwrap();
    for (key, wanted) in gone {
        before.kernel().set(key, wanted.value).unwrap();
    }
    std::mem::take(before.kernel())
}

#[test]
fn what_an_earlier_run_left_is_gone_after_the_first_pass() {
    let kernel = left_over();
    let text = kernel.to_string();
    for leftover in ["flannel.7", "10.244.8.0", "iptables chains", "flannel.1"] {
        assert!(text.contains(leftover), "{leftover} is there before:\n{text}");
    }
    let mut rig = Rig::on(kernel, want(VXLAN, [peer(2)]));
    let done = rig.pass();
    assert!(!done.contains("link flannel.1"), "the device stays: {done}");
    rig.assert_right();
}

#[test]
fn another_backend_takes_the_place_of_the_one_before() {
    let mut rig = Rig::settled([peer(2)]);
    rig.want(want(HOST_GW, [gateway(2)]));
    assert_eq!(
        rig.pass(),
        "set route 10.244.2.0/24 via 192.0.2.2 dev eth0\n\
         remove link flannel.1 mtu 1450 state UP 02:00:00:00:00:01 vxlan id 1 local 192.0.2.1 dev eth0 dstport 8472 nolearning"
    );
    rig.assert_right();
    assert_eq!(rig.pass(), "");
}

#[test]
fn a_failing_change_is_retried_alone_ever_less_often() {
    let mut rig = Rig::new([peer(2), peer(3)]);
    rig.kernel().fail(route(2), Times::Always, "no buffer space");
    let error =
        "! lease 10.244.2.0-24: cannot set route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink: no buffer space";
    assert!(rig.pass().ends_with(error));
    assert!(rig.kernel().state().objects.contains_key(&route(3)), "the other peer is not held up");
    rig.tried();
    let mut pauses = Vec::new();
    for _ in 0..14 {
        assert_eq!((rig.pass(), rig.tried()), (String::new(), 0), "not before its time");
        pauses.push(rig.pause().unwrap());
        assert_eq!(rig.pass_after(pauses[pauses.len() - 1]), "", "a known failure is no news");
        assert_eq!(rig.tried(), 1, "alone");
    }
    assert_eq!(pauses[..4], [10, 20, 40, 80].map(Duration::from_millis));
    assert_eq!(pauses[13], LONGEST_PAUSE);
    rig.kernel().heal(&route(2));
    let set = "set route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink\n+ lease 10.244.2.0-24";
    assert_eq!(rig.pass_after(LONGEST_PAUSE), set, "works again, named once");
    assert_eq!((rig.pass(), rig.pause()), (String::new(), None));
    rig.assert_right();
}

#[test]
fn others_changes_do_not_put_a_retry_off() {
    let mut rig = Rig::new([peer(2), peer(3)]);
    rig.kernel().fail(route(2), Times::Only(2), "no buffer space");
    rig.pass();
    let mut passes = 0;
    while !rig.kernel().state().objects.contains_key(&route(2)) {
        rig.kernel().remove(neigh(2));
        rig.pass_after(MILLI);
        passes += 1;
    }
    assert_eq!(passes, 30, "10 ms, then 20 ms, whatever else of this peer is repaired meanwhile");
    rig.pass();
    rig.assert_right();
}

#[test]
fn a_lease_that_changes_is_tried_at_once() {
    let mut rig = Rig::new([peer(2), peer(3)]);
    rig.kernel().fail(neigh(2), Times::Only(5), "busy");
    rig.pass();
    rig.tried();
    rig.want(want(VXLAN, [peer_with_mac(2, 22), peer(3)]));
    rig.pass();
    let tried = rig.kernel().take_applied();
    assert!(tried.iter().any(|change| *change.key() == neigh(2)), "the new value is tried: {tried:?}");
    assert_eq!(rig.reconciler.failing().len(), 1);
    rig.want(want(VXLAN, [peer(3)]));
    let done = rig.pass();
    assert!(!done.contains('+'), "a lease that is gone does not work again: {done}");
    assert!(rig.reconciler.failing().is_empty());
    rig.assert_right();
}

#[test]
fn a_change_of_the_underlay_lets_failures_be_tried_at_once() {
    let mut rig = Rig::on(FakeKernel::new(), want(HOST_GW, [gateway(2), gateway(3)]));
    rig.kernel().take_down(name("eth0"));
    let done = rig.pass();
    assert_eq!(done.lines().filter(|line| line.starts_with("! ")).count(), 2, "{done}");
    rig.kernel().bring_up(name("eth0"));
    let done = rig.pass();
    assert!(done.contains("+ lease 10.244.2.0-24\n+ lease 10.244.3.0-24"), "{done}");
    rig.assert_right();
}

#[test]
fn an_owner_may_fail_at_several_things() {
    let mut rig = Rig::new([peer(2)]);
    rig.kernel().fail(route(2), Times::Only(1), "no buffer space");
    rig.kernel().fail(neigh(2), Times::Only(2), "table full");
    rig.pass();
    assert_eq!(
        rig.reconciler.errors(&Owner::Peer(key(2))),
        [
            "cannot set neigh 10.244.2.0 dev flannel.1 lladdr 02:00:00:00:00:02 PERMANENT: table full",
            "cannot set route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink: no buffer space",
        ]
    );
    let pause = rig.pause().unwrap();
    assert_eq!(rig.pass_after(pause), "set route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink", "still fails");
    let pause = rig.pause().unwrap();
    assert!(rig.pass_after(pause).ends_with("\n+ lease 10.244.2.0-24"));
    rig.assert_right();
}

#[test]
fn what_somebody_else_put_right_works_again_too() {
    let mut rig = Rig::new([peer(2)]);
    rig.kernel().fail(fdb(2), Times::Always, "busy");
    rig.pass();
    rig.kernel().set(fdb(2), Value::Fdb(ip("192.0.2.2"))).unwrap();
    assert_eq!((rig.pass(), rig.pass()), ("+ lease 10.244.2.0-24".into(), String::new()));
}

#[test]
fn without_its_device_nothing_is_tried_and_with_it_everything() {
    let mut rig = Rig::new([peer(2), peer(3)]);
    rig.kernel().fail(device(), Times::Always, "operation not supported");
    let done = rig.pass();
    assert!(done.contains("! this node: cannot set link flannel.1") && !done.contains("! lease"), "{done}");
    assert_eq!(rig.reconciler.failing().len(), 3, "peers fail too, but that goes without saying");
    assert_eq!(rig.tried() - rig.kernel().state().objects.len(), 1, "of what is on it only the device itself");
    assert_eq!((rig.pass(), rig.tried()), (String::new(), 0), "not before its time");
    for _ in 0..12 {
        let pause = rig.pause().unwrap();
        rig.pass_after(pause);
    }
    rig.want(want(VXLAN, [peer(2), peer(3), peer(4)]));
    rig.pass();
    rig.kernel().heal(&device());
    rig.kernel().fail(neigh(3), Times::Only(1), "busy");
    let pause = rig.reconciler.failures[&(device(), true)].due - rig.now;
    let done = rig.pass_after(pause);
    assert!(done.contains("+ this node") && done.contains("+ lease 10.244.2.0-24"), "{done}");
    assert!(!done.contains("+ lease 10.244.3.0-24"), "{done}");
    rig.now += MILLI * 10;
    rig.pass_after(LONGEST_PAUSE);
    rig.assert_right();
}

#[test]
fn what_is_wanted_on_a_device_that_fails_waits_for_it() {
    let mut rig = Rig::new([]);
    rig.kernel().fail(device(), Times::Only(1), "busy");
    rig.pass();
    rig.tried();
    rig.want(want(VXLAN, [peer(2), peer(3)]));
    assert_eq!((rig.pass(), rig.tried()), (String::new(), 0));
    let pause = rig.pause().unwrap();
    let done = rig.pass_after(pause);
    assert!(done.contains("+ this node") && !done.contains("lease"), "{done}");
    rig.assert_right();
}

#[test]
fn a_device_that_is_not_ours_is_named_and_left_alone() {
    let mut rig = Rig::new([peer(2)]);
    rig.kernel().put_stranger(name("flannel.1"), "bridge");
    let done = rig.pass();
    let error = "a device of that name but of kind bridge is there and not flannel's";
    assert!(done.contains("! this node: cannot set link flannel.1") && done.contains(error), "{done}");
}

#[test]
fn wishes_may_change_while_something_fails() {
    let mut rig = Rig::new([peer(2)]);
    rig.kernel().fail(device(), Times::Only(1), "busy");
    rig.pass();
    rig.want(want(HOST_GW, [gateway(2)]));
    let done = rig.pass();
    assert!(done.contains("set route 10.244.2.0/24 via 192.0.2.2 dev eth0") && done.contains("+ this node"), "{done}");
    rig.assert_right();
    assert_eq!((rig.pass(), rig.pause()), (String::new(), None));
}

#[test]
fn a_kernel_that_cannot_be_read_is_not_touched() {
    let mut rig = Rig::new([peer(2)]);
    rig.kernel().fail_reading(2);
    for _ in 0..2 {
        let error = rig.reconciler.observe().unwrap_err();
        assert_eq!(error.to_string(), "cannot read links: interrupted");
        assert!(rig.reconciler.plan_ops(rig.now).is_empty());
    }
    rig.pass();
    rig.assert_right();
}

#[test]
fn a_fight_over_an_object_is_reported_and_does_not_spin() {
    let mut rig = Rig::settled([peer(2), peer(3)]);
    rig.tried();
    let start = rig.now;
    let mut said = Vec::new();
    // Somebody removes the route as soon as it is there, for a minute.
    while rig.now - start < Duration::from_mins(1) {
        rig.kernel().remove(route(2));
        let done = rig.pass();
        said.extend(done.lines().filter(|line| !line.starts_with("set route")).map(ToOwned::to_owned));
        rig.pass();
        rig.now += MILLI;
    }
    assert_eq!(said, ["! lease 10.244.2.0-24: route 10.244.2.0/24: another program keeps changing it back"]);
    let tried = rig.tried();
    assert!((1000..1020).contains(&tried), "{tried} operations");
    assert_eq!(rig.reconciler.failing().len(), 1);
    // The rest goes on meanwhile.
    rig.kernel().remove(route(3));
    assert_eq!(rig.pass(), "set route 10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink");
    // The other gives up: right at the next try, and told once it has been quiet.
    let mut quiet = Vec::new();
    while let Some(pause) = rig.pause() {
        assert!(pause > Duration::ZERO, "no spinning");
        quiet.push(rig.pass_after(pause));
    }
    assert_eq!(quiet.concat(), "set route 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink+ lease 10.244.2.0-24");
    rig.assert_right();
}

#[test]
fn a_peer_with_another_mac_leaves_nothing_behind() {
    let mut rig = Rig::settled([peer(2)]);
    rig.want(want(VXLAN, [peer_with_mac(2, 22)]));
    assert_eq!(
        rig.pass(),
        "set neigh 10.244.2.0 dev flannel.1 lladdr 02:00:00:00:00:16 PERMANENT\n\
         set fdb 02:00:00:00:00:16 dev flannel.1 dst 192.0.2.2 self permanent\n\
         remove fdb 02:00:00:00:00:02 dev flannel.1 dst 192.0.2.2 self permanent"
    );
    rig.assert_right();
}

#[test]
fn rules_of_the_mode_not_in_use_go() {
    const IPTABLES: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
    let mut rig = Rig::on(FakeKernel::new(), want(IPTABLES, [peer(2)]));
    rig.pass();
    rig.want(want(VXLAN, [peer(2)]));
    let done = rig.pass();
    assert!(done.contains("set table ip flannel-ipv4") && done.contains("remove iptables chains"), "{done}");
    rig.assert_right();
    rig.want(want(IPTABLES, [peer(2)]));
    let done = rig.pass();
    assert!(done.contains("set iptables chains") && done.contains("remove table ip6 flannel-ipv6"), "{done}");
    rig.assert_right();
}
