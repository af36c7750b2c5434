//! What the host is said to be.

use flannel_core::addr::Dual;
use flannel_core::facts::{Facts, lookup};
use flannel_core::state::Scope;
use flannel_kernel::facts;
use flannel_kernel::netlink::{Protocol, Socket};

use crate::Test;
use crate::namespace::run;

pub(crate) const TESTS: &[Test] = &[
    ("facts::the_host_is_read", the_host_is_read),
    ("facts::flannels_own_is_left_out", flannels_own_is_left_out),
    ("facts::reach_is_what_route_get_says", reach_is_what_route_get_says),
];

fn scope() -> Scope {
    Scope {
        networks: vec!["10.244.0.0/16".parse().unwrap()],
        externals: vec!["ext0".parse().unwrap()],
        ..Scope::default()
    }
}

fn read(reach: Option<&str>) -> Facts {
    let mut socket = Socket::open(Protocol::Route).unwrap();
    facts::read(&mut socket, &scope(), reach.map(|to| to.parse().unwrap()), Dual::default()).unwrap()
}

fn underlay() {
    run("ip link add ext0 address 02:00:00:00:00:01 mtu 1400 type veth peer name far0");
    // An address that the kernel gives by itself comes when it likes.
    run("ip link set ext0 addrgenmode none up");
    run("ip link set far0 addrgenmode none up");
    run("ip addr add 192.0.2.1/24 dev ext0");
    run("ip addr add 2001:db8::1/64 dev ext0 nodad preferred_lft 0 valid_lft 1000");
    run("ip route add default via 192.0.2.254");
    run("ip route add 198.51.100.0/24 metric 7 nexthop via 192.0.2.253 dev ext0 nexthop via 192.0.2.252 dev ext0");
}

fn the_host_is_read() {
    underlay();
    let facts = read(None);
    let link = facts.link("ext0".parse().unwrap()).unwrap();
    assert_eq!((&*link.kind, link.mtu.0, link.up), ("veth", 1400, true));
    assert_eq!(link.mac.unwrap().to_string(), "02:00:00:00:00:01");
    let addresses: Vec<_> =
        link.addresses.iter().map(|a| (a.net.to_string(), a.global, a.permanent, a.deprecated)).collect();
    assert_eq!(
        addresses[..2],
        [("192.0.2.1/24".to_owned(), true, true, false), ("2001:db8::1/64".to_owned(), true, false, true)]
    );
    let route = |to: &str| *facts.routes.iter().find(|route| route.destination == to.parse().unwrap()).unwrap();
    assert_eq!(route("0.0.0.0/0").gateway, Some("192.0.2.254".parse().unwrap()));
    assert_eq!(route("192.0.2.0/24").gateway, None);
    assert_eq!(
        (route("198.51.100.0/24").gateway, route("198.51.100.0/24").metric),
        (Some("192.0.2.253".parse().unwrap()), 7)
    );
    assert_eq!(lookup(&facts.routes, "192.0.2.9".parse().unwrap()).unwrap().dev, link.name);
}

fn flannels_own_is_left_out() {
    underlay();
    run("ip link add br0 address 02:00:00:00:00:b0 type bridge");
    let before = read(None);
    run("ip link add flannel.1 type vxlan id 1 dev ext0 dstport 8472 nolearning");
    run("ip addr add 10.244.1.0/32 dev flannel.1");
    run("ip link set flannel.1 up");
    run("ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink");
    run("ip route add 10.244.3.0/24 via 192.0.2.3 dev ext0");
    run("ip link add vethpod master br0 type veth peer name eth7");
    run("ip link del eth7");
    run("ip link add vethpod master br0 type veth peer name eth7");
    run("ip link set eth7 master br0");
    let mut after = read(None);
    assert_eq!(
        std::mem::take(&mut after.own_macs).into_keys().map(|name| name.to_string()).collect::<Vec<_>>(),
        ["flannel.1"]
    );
    assert_eq!(after, before);
    run("ip route add 10.99.3.0/24 via 192.0.2.3 dev ext0");
    assert_eq!(read(None).routes.len(), before.routes.len() + 1, "outside the network it is the host's");
}

fn reach_is_what_route_get_says() {
    underlay();
    run("ip addr add 192.0.2.77/24 dev ext0");
    run("ip route add 203.0.113.0/24 via 192.0.2.254 src 192.0.2.77");
    assert_eq!(read(Some("203.0.113.5")).reach, Some("192.0.2.77".parse().unwrap()));
    assert_eq!(read(Some("198.51.100.5")).reach, Some("192.0.2.1".parse().unwrap()));
    assert_eq!(read(Some("2001:db8::5")).reach, Some("2001:db8::1".parse().unwrap()));
    assert_eq!(read(Some("2001:db9::5")).reach, None);
}
