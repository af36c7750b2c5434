//! The request and the notice socket.

use std::os::fd::AsFd;

use flannel_core::addr::Family;
use flannel_kernel::netlink::link::{Kind, Report, Settings};
use flannel_kernel::netlink::{NoticeSocket, Protocol, Request, Socket, address, link, neigh, route};

use crate::Test;
use crate::namespace::{enter_new, run};

pub(crate) const TESTS: &[Test] = &[
    ("socket::links_are_made_read_changed_and_deleted", links_are_made_read_changed_and_deleted),
    ("socket::a_veth_end_is_born_in_another_namespace", a_veth_end_is_born_in_another_namespace),
    ("socket::errors_say_what_the_kernel_said", errors_say_what_the_kernel_said),
    ("socket::a_batch_names_the_requests_that_failed", a_batch_names_the_requests_that_failed),
    ("socket::a_silent_listener_learns_that_notices_were_lost", a_silent_listener_learns_that_notices_were_lost),
    ("socket::a_lookup_finds_the_source", a_lookup_finds_the_source),
];

fn named(name: &str) -> Settings<'static> {
    Settings { name: Some(name.parse().unwrap()), ..Settings::default() }
}

fn report(socket: &mut Socket, name: &str) -> Report {
    socket.ask(&link::by_name(name.parse().unwrap()), Report::read).unwrap().remove(0)
}

fn links_are_made_read_changed_and_deleted() {
    let mut socket = Socket::open(Protocol::Route).unwrap();
    socket.tell(&link::create(&named("br7"), &Kind::Bridge { vlan_filtering: false })).unwrap();
    let bridge = report(&mut socket, "br7");
    assert_eq!(&*bridge.kind, "bridge");
    assert!(!bridge.is_up());
    let mac = "02:00:00:00:00:07".parse().unwrap();
    socket
        .tell(&link::change(bridge.index, &Settings { up: Some(true), mac: Some(mac), ..Settings::default() }))
        .unwrap();
    let bridge = report(&mut socket, "br7");
    assert!(bridge.is_up());
    assert_eq!(bridge.mac, Some(mac));
    let veth = Settings { master: Some(bridge.index), ..named("v0") };
    socket.tell(&link::create(&veth, &Kind::Veth(named("v1")))).unwrap();
    let port = report(&mut socket, "v0");
    assert!(port.bridge_port && !port.isolated && !port.blocked);
    run("ip link set v0 type bridge_slave isolated on");
    run("ip link set br7 type bridge stp_state 1");
    run("ip link set v1 up");
    run("ip link set v0 up");
    let port = report(&mut socket, "v0");
    assert!(port.isolated && port.blocked, "listening, for twice the forward delay of 15 s");
    assert!(!report(&mut socket, "v1").bridge_port);
    socket.tell(&link::delete(bridge.index)).unwrap();
    assert!(socket.ask(&link::by_name("br7".parse().unwrap()), Report::read).unwrap_err().is_absent());
    assert_eq!(socket.dump(&link::list(), Report::read).unwrap().len(), 3);
}

fn a_veth_end_is_born_in_another_namespace() {
    let (ready, namespace) = std::sync::mpsc::channel();
    let (made, wait) = std::sync::mpsc::channel::<()>();
    let pod = std::thread::spawn(move || {
        enter_new();
        ready.send(std::fs::File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
        wait.recv().unwrap();
        run("ip link show eth0")
    });
    let namespace = namespace.recv().unwrap();
    let mac = "02:00:00:00:00:09".parse().unwrap();
    let peer = Settings { netns: Some(namespace.as_fd()), mac: Some(mac), ..named("eth0") };
    let mut socket = Socket::open(Protocol::Route).unwrap();
    socket.tell(&link::create(&named("veth1234"), &Kind::Veth(peer))).unwrap();
    made.send(()).unwrap();
    assert!(pod.join().unwrap().contains("link/ether 02:00:00:00:00:09"));
    assert!(run("ip link show veth1234").contains("link-netns"), "the other end is elsewhere");
}

fn errors_say_what_the_kernel_said() {
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let error = socket.tell(&link::delete(4711)).unwrap_err();
    assert!(error.is_absent(), "{error}");
    let hop = route::Hop { index: 1, gateway: Some("10.9.9.9".parse().unwrap()), onlink: false };
    let error = socket.tell(&route::set("10.1.0.0/24".parse().unwrap(), 0, route::Target::Link(hop))).unwrap_err();
    assert!(error.to_string().starts_with("Nexthop has invalid gateway"), "{error}");
    socket.tell(&link::create(&named("d"), &Kind::Bridge { vlan_filtering: false })).unwrap();
    let error = socket.tell(&link::create(&named("d"), &Kind::Bridge { vlan_filtering: false })).unwrap_err();
    assert!(error.is_present(), "{error}");
}

fn a_batch_names_the_requests_that_failed() {
    run("ip link add v0 type veth peer name v1");
    run("ip link set v0 up");
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let index = report(&mut socket, "v0").index;
    let mac = "02:00:00:00:00:01".parse().unwrap();
    let requests: Vec<Request> = (0..1000_u32)
        .map(|n| {
            neigh::set(if n % 300 == 7 { 4711 } else { index }, std::net::Ipv4Addr::from(0x0a00_0000 + n).into(), mac)
        })
        .collect();
    let mut sendings = 0;
    let failures = socket.batch(&requests, || sendings += 1);
    assert_eq!(sendings, 8);
    assert_eq!(failures.iter().map(|failure| failure.index).collect::<Vec<_>>(), [7, 307, 607, 907]);
    assert!(failures.iter().all(|failure| failure.error.is_absent()));
    let listed = socket.dump(&neigh::list(Family::V4, index), neigh::Report::read).unwrap();
    assert_eq!(listed.iter().filter(|report| report.is_permanent()).count(), 996);
    assert_eq!(run("ip neigh show dev v0").lines().count(), 996);
}

fn a_silent_listener_learns_that_notices_were_lost() {
    let mut notices = NoticeSocket::open(Protocol::Route, &[libc::RTNLGRP_NEIGH]).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&notices, 4096).unwrap();
    run("ip link add v0 up type veth peer name v1");
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let index = report(&mut socket, "v0").index;
    let mac = "02:00:00:00:00:01".parse().unwrap();
    let set = |n: u32| neigh::set(index, std::net::Ipv4Addr::from(0x0a00_0000 + n).into(), mac);
    assert_eq!(socket.batch(&(0..100).map(set).collect::<Vec<_>>(), || ()), []);
    assert!(notices.drain(|_| ()).unwrap_err().is_overrun());
    let mut heard = 0;
    notices.drain(|_| heard += 1).unwrap();
    assert!((1..100).contains(&heard), "{heard}");
}

fn a_lookup_finds_the_source() {
    run("ip link add v0 type veth peer name v1");
    run("ip link set v0 up");
    let mut socket = Socket::open(Protocol::Route).unwrap();
    let index = report(&mut socket, "v0").index;
    for (address, far) in [("192.0.2.7/24", "192.0.2.9"), ("2001:db8::7/64", "2001:db8::9")] {
        socket.tell(&address::set(index, address.parse().unwrap())).unwrap();
        let found = socket.ask(&route::lookup(far.parse().unwrap()), route::Report::read).unwrap();
        assert_eq!(found[0].source.unwrap().to_string(), address.split('/').next().unwrap());
        assert_eq!(found[0].hops[0].index, index);
    }
    assert!(socket.ask(&route::lookup("198.51.100.1".parse().unwrap()), route::Report::read).is_err());
}
