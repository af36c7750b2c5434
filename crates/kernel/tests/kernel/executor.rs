//! The executor against `ip` and `bridge`: it makes what they show, and reads what they make.

use flannel_core::addr::{LinkName, Mac, Mtu, Vni};
use flannel_core::diff::{Change, Op, Owner, Want, Wanted, diff};
use flannel_core::state::{Key, Link, LinkKind, Route, Scope, State, Value, Vxlan};
use flannel_kernel::executor::{Executor, OpError};
use flannel_kernel::linux::KernelExecutor;

use crate::Test;
use crate::namespace::run;

pub(crate) const TESTS: &[Test] = &[
    ("executor::what_is_wanted_shows_in_ip_and_bridge", what_is_wanted_shows_in_ip_and_bridge),
    ("executor::what_ip_and_bridge_made_is_adopted", what_ip_and_bridge_made_is_adopted),
    ("executor::every_damage_is_noticed_and_repaired", every_damage_is_noticed_and_repaired),
    ("executor::a_container_that_may_not_set_sysctls_goes_on", a_container_that_may_not_set_sysctls_goes_on),
    ("executor::a_renamed_device_is_noticed", a_renamed_device_is_noticed),
    ("executor::a_renamed_external_interface_is_noticed", a_renamed_external_interface_is_noticed),
    ("executor::devices_change_in_place", devices_change_in_place),
    ("executor::a_strangers_device_is_refused", a_strangers_device_is_refused),
    ("executor::one_failed_object_fails_alone", one_failed_object_fails_alone),
    ("executor::many_routes_go_through_nexthop_objects_and_back", many_routes_go_through_nexthop_objects_and_back),
    ("executor::lost_notices_are_made_up_for", lost_notices_are_made_up_for),
    ("executor::only_the_underlay_is_told_of", only_the_underlay_is_told_of),
    ("executor::the_underlay_is_told_of_before_anything_was_read", the_underlay_is_told_of_before_anything_was_read),
];

pub(crate) fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

fn scope() -> Scope {
    Scope {
        networks: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/48".parse().unwrap()],
        externals: vec![name("ext0")],
        blackholes: vec!["10.244.1.0/24".parse().unwrap(), "fd00:244:0:1::/64".parse().unwrap()],
        ..Scope::default()
    }
}

pub(crate) fn underlay() {
    run("ip link add ext0 type veth peer name far0");
    run("ip link set ext0 up");
    run("ip link set far0 up");
    run("ip addr add 192.0.2.1/24 dev ext0");
    run("ip addr add 2001:db8::1/64 dev ext0 nodad");
}

fn device(family: char) -> Link {
    let local = if family == '4' { "192.0.2.1" } else { "2001:db8::1" };
    Link {
        up: true,
        mtu: Mtu(if family == '4' { 1450 } else { 1430 }),
        mac: mac(if family == '4' { "02:11:22:33:44:55" } else { "02:11:22:33:44:66" }),
        accept_ra: false,
        kind: LinkKind::Vxlan(Vxlan {
            vni: Vni::new(1).unwrap(),
            port: 8472,
            local: Some(local.parse().unwrap()),
            lower: Some(name("ext0")),
            learning: false,
            gbp: false,
            checksums: true,
        }),
    }
}

fn want(objects: impl IntoIterator<Item = (Key, Value)>) -> Want {
    objects.into_iter().map(|(key, value)| (key, Wanted { value, owner: Owner::Node })).collect()
}

fn via(dev: &str, gateway: &str) -> Value {
    Value::Route(Route::Unicast { dev: name(dev), gateway: Some(gateway.parse().unwrap()), onlink: dev != "ext0" })
}

/// A dual-stack node with two peers, one of them routed directly.
fn node() -> Want {
    let (four, six) = (name("flannel.1"), name("flannel-v6.1"));
    let peer = mac("02:aa:00:00:00:02");
    want([
        (Key::Link(four), Value::Link(Box::new(device('4')))),
        (Key::Link(six), Value::Link(Box::new(device('6')))),
        (Key::Address(four, "10.244.1.0/32".parse().unwrap()), Value::Address),
        (Key::Address(six, "fd00:244:0:1::/128".parse().unwrap()), Value::Address),
        (Key::Neigh(four, "10.244.2.0".parse().unwrap()), Value::Neigh(peer)),
        (Key::Neigh(six, "fd00:244:0:2::".parse().unwrap()), Value::Neigh(peer)),
        (Key::Fdb(four, peer), Value::Fdb("192.0.2.2".parse().unwrap())),
        (Key::Fdb(six, peer), Value::Fdb("2001:db8::2".parse().unwrap())),
        (Route::key("10.244.2.0/24".parse().unwrap()), via("flannel.1", "10.244.2.0")),
        (Route::key("fd00:244:0:2::/64".parse().unwrap()), via("flannel-v6.1", "fd00:244:0:2::")),
        (Route::key("10.244.3.0/24".parse().unwrap()), via("ext0", "192.0.2.3")),
        (Route::key("fd00:244:0:3::/64".parse().unwrap()), via("ext0", "2001:db8::3")),
        (Route::key("10.244.1.0/24".parse().unwrap()), Value::Route(Route::Blackhole)),
        (Route::key("fd00:244:0:1::/64".parse().unwrap()), Value::Route(Route::Blackhole)),
    ])
}

fn state(want: &Want) -> State {
    want.iter().map(|(key, wanted)| (*key, wanted.value.clone())).collect()
}

/// Makes it so and sees that the notices say the same as was wanted. A new MAC takes the neighbours along, so that one pass
/// may not be enough.
fn reach(kernel: &mut KernelExecutor, want: &Want, have: &mut State) -> usize {
    let mut count = 0;
    for _ in 0..2 {
        let ops = diff(want, have);
        count += ops.len();
        assert_eq!(kernel.apply(&ops).iter().map(OpError::to_string).collect::<Vec<_>>(), Vec::<String>::new());
        kernel.notices(&scope(), have).unwrap();
    }
    assert_eq!(have.to_string(), state(want).to_string());
    assert_eq!(*have, state(want));
    count
}

/// A node as it should be.
fn running() -> (KernelExecutor, State) {
    underlay();
    let mut kernel = KernelExecutor::open(None).unwrap();
    let mut have = kernel.observe(&scope()).unwrap();
    assert_eq!(have, State::default());
    reach(&mut kernel, &node(), &mut have);
    assert_eq!(kernel.observe(&scope()).unwrap().to_string(), have.to_string(), "by a full read");
    (kernel, have)
}

fn has(text: &str, words: &str) {
    assert!(
        words.split_whitespace().all(|word| text.split_whitespace().any(|found| found == word)),
        "`{words}` in {text}"
    );
}

fn what_is_wanted_shows_in_ip_and_bridge() {
    let (mut kernel, have) = running();
    let link = run("ip -d link show flannel.1");
    has(&link, "mtu 1450 link/ether 02:11:22:33:44:55 vxlan id 1 local 192.0.2.1 dev ext0 dstport 8472 nolearning");
    has(&link, "ttl auto ageing 300 udpcsum noudp6zerocsumtx noudp6zerocsumrx");
    has(&run("ip -d link show flannel-v6.1"), "mtu 1430 local 2001:db8::1 noudp6zerocsumtx noudp6zerocsumrx");
    has(&run("ip addr show flannel.1"), "inet 10.244.1.0/32 scope global");
    has(&run("ip addr show flannel-v6.1"), "inet6 fd00:244:0:1::/128 scope global");
    has(&run("ip neigh show dev flannel.1"), "10.244.2.0 lladdr 02:aa:00:00:00:02 PERMANENT");
    has(&run("bridge fdb show dev flannel.1"), "02:aa:00:00:00:02 dst 192.0.2.2 self permanent");
    let routes = run("ip route show table main proto boot");
    let shown: Vec<&str> = routes.lines().map(str::trim_end).collect();
    assert_eq!(
        shown,
        [
            "blackhole 10.244.1.0/24",
            "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
            "10.244.3.0/24 via 192.0.2.3 dev ext0"
        ]
    );
    has(&run("ip -6 route show fd00:244:0:2::/64"), "via fd00:244:0:2:: dev flannel-v6.1 metric 1024 onlink");
    assert_eq!(run("cat /proc/sys/net/ipv6/conf/flannel.1/accept_ra").trim(), "0");
    let again: Vec<Op> = diff(&node(), &State::default());
    assert!(kernel.apply(&again).is_empty(), "every op may be applied twice");
    assert_eq!(kernel.observe(&scope()).unwrap(), have);
    let gone = diff(&Want::new(), &have);
    assert!(kernel.apply(&gone).is_empty());
    assert!(kernel.apply(&gone).is_empty(), "removing what is absent succeeds");
    assert_eq!(kernel.observe(&scope()).unwrap(), State::default());
}

fn what_ip_and_bridge_made_is_adopted() {
    underlay();
    for (device, id, local, mac, mtu) in [
        ("flannel.1", 1, "192.0.2.1", "02:11:22:33:44:55", 1450),
        ("flannel-v6.1", 1, "2001:db8::1", "02:11:22:33:44:66", 1430),
    ] {
        run(&format!(
            "ip link add {device} address {mac} mtu {mtu} type vxlan id {id} local {local} dev ext0 dstport 8472 nolearning \
             udpcsum noudp6zerocsumtx noudp6zerocsumrx"
        ));
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/accept_ra"), "0").unwrap();
        run(&format!("ip link set {device} up"));
    }
    run("ip addr add 10.244.1.0/32 dev flannel.1");
    run("ip addr add fd00:244:0:1::/128 dev flannel-v6.1");
    for (device, gateway, subnet, vtep) in [
        ("flannel.1", "10.244.2.0", "10.244.2.0/24", "192.0.2.2"),
        ("flannel-v6.1", "fd00:244:0:2::", "fd00:244:0:2::/64", "2001:db8::2"),
    ] {
        run(&format!("ip neigh add {gateway} lladdr 02:aa:00:00:00:02 dev {device} nud permanent"));
        run(&format!("bridge fdb add 02:aa:00:00:00:02 dst {vtep} dev {device} self permanent"));
        run(&format!("ip route add {subnet} via {gateway} dev {device} onlink"));
    }
    run("ip route add 10.244.3.0/24 via 192.0.2.3 dev ext0");
    run("ip route add fd00:244:0:3::/64 via 2001:db8::3 dev ext0");
    run("ip route add blackhole 10.244.1.0/24");
    run("ip -6 route add blackhole fd00:244:0:1::/64");
    run("ip route add 10.244.9.0/24 via 192.0.2.3 dev ext0 proto static");
    run("ip route add 172.30.0.0/24 via 192.0.2.3 dev ext0");
    let have = KernelExecutor::open(None).unwrap().observe(&scope()).unwrap();
    assert_eq!(have.to_string(), state(&node()).to_string());
    assert_eq!(diff(&node(), &have), []);
}

fn every_damage_is_noticed_and_repaired() {
    let (mut kernel, mut have) = running();
    let damages = [
        "ip link del flannel.1",
        "ip link del flannel-v6.1",
        "ip link set flannel.1 down",
        "ip link set flannel-v6.1 down",
        "ip addr flush dev flannel.1",
        "ip addr del fd00:244:0:1::/128 dev flannel-v6.1",
        "ip addr add 10.244.7.7/24 dev flannel.1",
        "ip addr add 10.7.7.7/24 scope link dev flannel.1",
        "ip link set flannel.1 mtu 1300",
        "ip link set flannel-v6.1 address 02:00:00:00:00:99",
        "ip link set flannel.1 type vxlan local 192.0.2.9",
        "ip route del 10.244.2.0/24",
        "ip route flush dev flannel.1",
        "ip -6 route del fd00:244:0:2::/64",
        "ip route replace 10.244.2.0/24 via 10.244.2.7 dev flannel.1 onlink",
        "ip route replace 10.244.2.0/24 via 192.0.2.77 dev ext0",
        "ip route replace 10.244.2.0/24 via 192.0.2.77 dev ext0 proto static",
        "ip route replace unreachable 10.244.2.0/24",
        "ip route append 10.244.2.0/24 via 10.244.2.9 dev flannel.1 onlink",
        "ip route prepend 10.244.2.0/24 via 10.244.2.9 dev flannel.1 onlink",
        "ip -6 route append fd00:244:0:2::/64 via fd00:244:0:9:: dev flannel-v6.1 onlink",
        "ip route add 10.244.2.0/25 dev flannel.1",
        "ip route add 10.88.0.0/24 dev flannel.1 proto static",
        "ip route add 10.244.77.0/24 nexthop dev flannel.1 via 10.1.1.1 onlink nexthop dev flannel.1 via 10.1.1.2 onlink",
        "ip route add 10.244.44.0/24 via 192.0.2.3 dev ext0",
        "ip route del blackhole 10.244.1.0/24",
        "ip -6 route del blackhole fd00:244:0:1::/64",
        "ip link set flannel-v6.1 mtu 1000",
        "ip addr flush dev flannel-v6.1",
        "ip neigh flush dev flannel.1 nud permanent",
        "ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
        "ip neigh replace 10.244.2.0 lladdr 02:aa:00:00:00:02 dev flannel.1 nud stale",
        "ip neigh add 10.244.9.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
        "ip neigh del fd00:244:0:2:: dev flannel-v6.1",
        "bridge fdb del 02:aa:00:00:00:02 dev flannel.1",
        "bridge fdb replace 02:aa:00:00:00:02 dst 192.0.2.99 dev flannel.1 self permanent",
        "bridge fdb append 00:00:00:00:00:00 dst 192.0.2.97 dev flannel.1 self permanent",
        "bridge fdb append 00:00:00:00:00:00 dst 192.0.2.96 dev flannel.1 self permanent",
    ];
    for damage in damages {
        run(damage);
        kernel.notices(&scope(), &mut have).unwrap();
        let seen = kernel.observe(&scope()).unwrap();
        assert_eq!(have.to_string(), seen.to_string(), "notices against a full read after `{damage}`");
        assert_ne!(have, state(&node()), "`{damage}` was not noticed");
        let ops = reach(&mut kernel, &node(), &mut have);
        assert_eq!(kernel.observe(&scope()).unwrap(), have, "a full read after the repair of `{damage}`");
        assert!(ops > 0);
    }
    run("ip link set ext0 down");
    kernel.notices(&scope(), &mut have).unwrap();
    assert!(
        !have.objects.contains_key(&Route::key("10.244.3.0/24".parse().unwrap())),
        "gone with the external interface"
    );
    run("ip link set ext0 up");
    run("ip addr replace 2001:db8::1/64 dev ext0 nodad");
    kernel.notices(&scope(), &mut have).unwrap();
    reach(&mut kernel, &node(), &mut have);
}

fn a_container_that_may_not_set_sysctls_goes_on() {
    // SAFETY: a mount namespace of its own for this thread changes no memory.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    run("mount --make-rprivate /");
    run("mount --rbind /proc/sys /proc/sys");
    run("mount -o remount,ro,bind /proc/sys");
    let (mut kernel, have) = running();
    has(&run("cat /proc/sys/net/ipv6/conf/flannel.1/accept_ra"), "1");
    assert_eq!(kernel.observe(&scope()).unwrap(), have, "and does not try for ever");
}

fn a_renamed_device_is_noticed() {
    let (mut kernel, mut have) = running();
    run("ip link set flannel.1 name flannel.9");
    kernel.notices(&scope(), &mut have).unwrap();
    assert_eq!(have, kernel.observe(&scope()).unwrap());
    let errors = kernel.apply(&diff(&node(), &have));
    assert!(errors[0].to_string().contains("A VXLAN device with the specified VNI already exists"), "{}", errors[0]);
    kernel.notices(&scope(), &mut have).unwrap();
    reach(&mut kernel, &node(), &mut have);
    run("ip link set flannel.1 name other");
    kernel.notices(&scope(), &mut have).unwrap();
    assert_eq!(have, kernel.observe(&scope()).unwrap());
    assert!(!kernel.apply(&diff(&node(), &have)).is_empty(), "a device of a stranger's name stays");
    run("ip link del other");
    kernel.notices(&scope(), &mut have).unwrap();
    reach(&mut kernel, &node(), &mut have);
}

fn a_renamed_external_interface_is_noticed() {
    let (mut kernel, mut have) = running();
    run("ip link set ext0 name old0");
    kernel.notices(&scope(), &mut have).unwrap();
    assert_eq!(have.to_string(), kernel.observe(&scope()).unwrap().to_string());
    run("ip addr flush dev old0");
    run("ip link set far0 name far1");
    underlay();
    kernel.notices(&scope(), &mut have).unwrap();
    reach(&mut kernel, &node(), &mut have);
    has(&run("ip -d link show flannel.1"), "local 192.0.2.1 dev ext0");
    has(&run("ip -d link show flannel-v6.1"), "local 2001:db8::1 dev ext0");
    has(&run("ip route show 10.244.3.0/24"), "via 192.0.2.3 dev ext0");
}

fn index_of(device: &str) -> String {
    run(&format!("ip -o link show {device}")).split(':').next().unwrap().to_owned()
}

fn devices_change_in_place() {
    let (mut kernel, mut have) = running();
    run("ip addr add 192.0.2.8/24 dev ext0");
    let index = index_of("flannel.1");
    let mut changed = device('4');
    changed.mtu = Mtu(1300);
    changed.mac = mac("02:00:00:00:00:42");
    if let LinkKind::Vxlan(vxlan) = &mut changed.kind {
        vxlan.local = Some("192.0.2.8".parse().unwrap());
        vxlan.lower = Some(name("far0"));
        vxlan.learning = true;
    }
    let mut goal = node();
    goal.insert(
        Key::Link(name("flannel.1")),
        Wanted { value: Value::Link(Box::new(changed.clone())), owner: Owner::Node },
    );
    assert_eq!(reach(&mut kernel, &goal, &mut have), 2, "the device and the neighbour that a new MAC flushes");
    assert_eq!(index_of("flannel.1"), index);
    has(&run("ip -d link show flannel.1"), "mtu 1300 local 192.0.2.8 dev far0 02:00:00:00:00:42");
    if let LinkKind::Vxlan(vxlan) = &mut changed.kind {
        vxlan.port = 4789;
        vxlan.gbp = true;
    }
    goal.insert(Key::Link(name("flannel.1")), Wanted { value: Value::Link(Box::new(changed)), owner: Owner::Node });
    reach(&mut kernel, &goal, &mut have);
    assert_ne!(index_of("flannel.1"), index, "a new port needs a new device");
    has(&run("ip -d link show flannel.1"), "dstport 4789 gbp");
    has(&run("ip route show 10.244.2.0/24"), "via 10.244.2.0 dev flannel.1 onlink");
}

fn a_strangers_device_is_refused() {
    underlay();
    run("ip link add flannel.1 type bridge");
    let mut kernel = KernelExecutor::open(None).unwrap();
    let have = kernel.observe(&scope()).unwrap();
    assert_eq!(have, State::default());
    let errors = kernel.apply(&diff(&node(), &have));
    let texts: Vec<String> = errors.iter().map(OpError::to_string).collect();
    assert!(texts[0].starts_with("cannot set link flannel.1 "), "{texts:?}");
    assert!(
        texts[0].ends_with("kind bridge is there and not flannel's (hint: rename it, or ip link delete flannel.1)"),
        "{texts:?}"
    );
    assert_eq!(texts.len(), 5, "the device and what lives on it: {texts:#?}");
    let remove = Change::Remove(Key::Link(name("flannel.1")), Value::Link(Box::new(device('4'))));
    assert_eq!(kernel.apply(&[Op { owner: Owner::Node, change: remove }]).len(), 1);
    has(&run("ip -d link show flannel.1"), "bridge");
    has(&run("bridge fdb show dev flannel-v6.1"), "02:aa:00:00:00:02");
}

fn one_failed_object_fails_alone() {
    let (mut kernel, mut have) = running();
    let bad = Route::key("10.244.66.0/24".parse().unwrap());
    let mut goal = node();
    goal.insert(bad, Wanted { value: via("ext0", "198.51.100.7"), owner: Owner::Node });
    goal.insert(
        Route::key("10.244.67.0/24".parse().unwrap()),
        Wanted { value: via("ext0", "192.0.2.67"), owner: Owner::Node },
    );
    let errors = kernel.apply(&diff(&goal, &have));
    let texts: Vec<String> = errors.iter().map(OpError::to_string).collect();
    assert_eq!(texts.len(), 1);
    assert!(
        texts[0].starts_with("cannot set route 10.244.66.0/24 via 198.51.100.7 dev ext0: Nexthop has invalid gateway"),
        "{texts:?}"
    );
    kernel.notices(&scope(), &mut have).unwrap();
    goal.remove(&bad);
    assert_eq!(have.to_string(), state(&goal).to_string());
}

fn peers(count: u32) -> Want {
    let subnet = |n: u32| std::net::Ipv4Addr::from(0x0af4_0000 + (n << 8));
    let mut goal = node();
    goal.retain(|key, _| !matches!(key, Key::Route(to, _) if to.addr().is_ipv4()));
    goal.extend(want((16..16 + count).map(|n| {
        let net = ipnet::Ipv4Net::new(subnet(n), 24).unwrap().into();
        (Route::key(net), via("flannel.1", &subnet(n).to_string()))
    })));
    goal
}

fn many_routes_go_through_nexthop_objects_and_back() {
    let (mut kernel, mut have) = running();
    let objects = || run("ip nexthop show").lines().count();
    reach(&mut kernel, &peers(1000), &mut have);
    assert_eq!(objects(), 0);
    reach(&mut kernel, &peers(1100), &mut have);
    assert_eq!(objects(), 100);
    has(&run("ip route show 10.248.90.0/24"), "nhid via 10.248.90.0 dev flannel.1 onlink");
    assert_eq!(kernel.observe(&scope()).unwrap(), have, "objects do not show in the state");
    run("ip link set flannel.1 down");
    kernel.notices(&scope(), &mut have).unwrap();
    assert_eq!(have.objects.keys().filter(|key| matches!(key, Key::Route(to, _) if to.addr().is_ipv4())).count(), 0);
    reach(&mut kernel, &peers(1100), &mut have);
    assert_eq!(objects(), 1100);
    let mut other = KernelExecutor::open(None).unwrap();
    let mut seen = other.observe(&scope()).unwrap();
    assert_eq!(seen, have, "adopted by the next daemon");
    reach(&mut other, &peers(900), &mut seen);
    assert_eq!(objects(), 900, "unused ones go");
    reach(&mut other, &peers(400), &mut seen);
    assert_eq!(objects(), 0, "and all of them when routes are few");
    assert_eq!(run("ip route show dev flannel.1").lines().count(), 400);
    run("sysctl -qw net.ipv4.nexthop_compat_mode=0");
    reach(&mut other, &peers(1100), &mut seen);
    assert_eq!(other.observe(&scope()).unwrap(), seen, "looked up when the kernel shows ids only");
    run("ip nexthop flush");
    other.notices(&scope(), &mut seen).unwrap();
    assert_eq!(other.observe(&scope()).unwrap(), seen, "routes go with their objects");
}

fn lost_notices_are_made_up_for() {
    let (mut kernel, mut have) = running();
    for fd in kernel.poll_fds() {
        rustix::net::sockopt::set_socket_recv_buffer_size(fd, 4096).unwrap();
    }
    for n in 0..100 {
        run(&format!("ip neigh add 10.244.9.{n} lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent"));
    }
    assert!(kernel.notices(&scope(), &mut have).unwrap().underlay);
    assert_eq!(have.objects.len(), node().len() + 100);
    reach(&mut kernel, &node(), &mut have);
}

fn only_the_underlay_is_told_of() {
    let (mut kernel, mut have) = running();
    run("ip link add cni0 address 02:00:00:00:00:c0 type bridge");
    kernel.notices(&scope(), &mut have).unwrap();
    let mut told = |line: &str| {
        run(line);
        kernel.notices(&scope(), &mut have).unwrap().underlay
    };
    assert!(!told("ip link add vethpod type veth peer name eth7"));
    assert!(!told("ip link set vethpod master cni0 up"));
    assert!(!told("ip link set eth7 up"));
    assert!(!told("ip link del eth7"));
    assert!(!told("ip route add 10.244.9.0/24 via 10.244.9.0 dev flannel.1 onlink"));
    assert!(!told("ip link set flannel.1 mtu 1300"));
    assert!(told("ip addr add 203.0.113.1/24 dev ext0"));
    assert!(told("ip route add default via 192.0.2.254"));
    assert!(told("ip link set ext0 mtu 1400"));
    assert!(told("ip link set ext0 down"));
}

fn the_underlay_is_told_of_before_anything_was_read() {
    underlay();
    let (mut kernel, mut have) = (KernelExecutor::open(None).unwrap(), State::default());
    run("ip addr add 203.0.113.7/32 dev ext0");
    assert!(kernel.notices(&Scope::default(), &mut have).unwrap().underlay);
    run("ip addr del 203.0.113.7/32 dev ext0");
    assert!(kernel.notices(&Scope::default(), &mut have).unwrap().underlay);
}
