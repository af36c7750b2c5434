//! Capture: what passes a cable is seen at both its ends, in order and by one clock, also in a user namespace.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flannel_kernel::capture::{Addressee, Capture, Direction, Frame, LinkLayer, Room, close, wait};
use flannel_kernel::namespace::NetNamespace;

use crate::Test;
use crate::namespace::{give, run};

pub(crate) const TESTS: &[Test] = &[
    ("capture::a_packet_is_seen_at_both_ends_of_a_cable_in_order", a_packet_is_seen_at_both_ends_of_a_cable_in_order),
    (
        "capture::a_routed_packet_is_stamped_in_order_at_each_interface",
        a_routed_packet_is_stamped_in_order_at_each_interface,
    ),
    ("capture::only_the_interface_asked_for_is_captured", only_the_interface_asked_for_is_captured),
    ("capture::long_frames_are_cut_and_their_length_kept", long_frames_are_cut_and_their_length_kept),
    ("capture::what_did_not_fit_is_counted", what_did_not_fit_is_counted),
    ("capture::a_frame_for_another_host_says_so", a_frame_for_another_host_says_so),
    ("capture::an_interface_that_goes_down_ends_nothing", an_interface_that_goes_down_ends_nothing),
];

/// Long enough for any machine; reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// This namespace's `near` (10.9.0.1) leads to `far` (10.9.0.2) in a namespace of its own.
fn cable() -> NetNamespace {
    let far = NetNamespace::create().unwrap();
    run("ip link add near address 02:00:00:00:00:01 type veth peer far address 02:00:00:00:00:02");
    give(&far, "far");
    run("ip address add 10.9.0.1/24 dev near");
    run("ip link set near up");
    far.run(|| {
        run("ip address add 10.9.0.2/24 dev far");
        run("ip link set far up");
    })
    .unwrap();
    far
}

fn index(device: &str) -> u32 {
    let listing = run(&format!("ip -o link show dev {device}"));
    listing.split(':').next().unwrap().parse().unwrap()
}

fn capture(device: &str) -> Capture {
    Capture::open(index(device), Room::default()).unwrap()
}

/// Sends a datagram from this namespace.
fn send(from: &str, to: &str, bytes: &[u8]) {
    let socket = UdpSocket::bind(from).unwrap();
    socket.send_to(bytes, to.parse::<SocketAddr>().unwrap()).unwrap();
}

/// Sends a datagram over the loopback device to a socket that takes it, so that no error comes back.
fn send_to_self(bytes: &[u8]) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.send_to(bytes, socket.local_addr().unwrap()).unwrap();
}

/// The frames that hold some text, once there are so many.
fn holding(capture: &mut Capture, text: &str, count: usize) -> Vec<Frame> {
    let deadline = Instant::now() + PATIENCE;
    let mut found = Vec::new();
    while found.len() < count {
        assert!(wait(&[&*capture], deadline).unwrap(), "{} of {count} frames with {text}", found.len());
        let holds = |frame: &Frame| frame.bytes.windows(text.len()).any(|window| window == text.as_bytes());
        found.extend(capture.drain().into_iter().filter(holds));
    }
    found
}

fn a_packet_is_seen_at_both_ends_of_a_cable_in_order() {
    let far = cable();
    let (mut here, mut there) = (capture("near"), far.run(|| capture("far")).unwrap());
    assert_eq!(here.link_layer(), LinkLayer::Ethernet);
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    send("10.9.0.1:4000", "10.9.0.2:4000", b"there");
    let (out, into) = (holding(&mut here, "there", 1).remove(0), holding(&mut there, "there", 1).remove(0));
    far.run(|| send("10.9.0.2:4000", "10.9.0.1:4000", b"back")).unwrap();
    let (back_out, back) = (holding(&mut there, "back", 1).remove(0), holding(&mut here, "back", 1).remove(0));
    let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let passed = [&out, &into, &back_out, &back];
    let host = Direction::In(Addressee::Host);
    assert_eq!(passed.map(|frame| frame.direction), [Direction::Out, host, Direction::Out, host]);
    let stamps: Vec<Duration> = [begun].into_iter().chain(passed.map(|frame| frame.at)).chain([ended]).collect();
    assert!(stamps.is_sorted(), "{stamps:?}");
    assert_eq!(out.bytes, into.bytes);
    assert_eq!(out.bytes[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    assert_eq!(out.length as usize, out.bytes.len());
    assert_eq!(here.lost().unwrap() + there.lost().unwrap(), 0);
    close(vec![here, there]);
    assert_eq!(std::fs::read_to_string("/proc/thread-self/net/packet").unwrap().lines().count(), 1);
}

fn a_routed_packet_is_stamped_in_order_at_each_interface() {
    let far = cable();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    run("ip link add bridge address 02:00:00:00:00:09 type bridge");
    run("ip address add 10.8.0.1/24 dev bridge");
    run("ip link set bridge up");
    let pod = NetNamespace::create().unwrap();
    run("ip link add port type veth peer eth0");
    give(&pod, "eth0");
    run("ip link set port master bridge up");
    pod.run(|| {
        run("ip address add 10.8.0.2/24 dev eth0");
        run("ip link set eth0 up");
        run("ip route add default via 10.8.0.1");
    })
    .unwrap();
    far.run(|| run("ip route add default via 10.9.0.1")).unwrap();
    let mut points = [pod.run(|| capture("eth0")).unwrap(), capture("port"), capture("bridge"), capture("near")];
    let mut last = far.run(|| capture("far")).unwrap();
    pod.run(|| send("10.8.0.2:4000", "10.9.0.2:4000", b"routed")).unwrap();
    let into = holding(&mut last, "routed", 1).remove(0);
    let mut stamps: Vec<Duration> = points.each_mut().map(|point| holding(point, "routed", 1).remove(0).at).to_vec();
    stamps.push(into.at);
    assert!(stamps.is_sorted(), "{stamps:?}");
}

fn only_the_interface_asked_for_is_captured() {
    let _far = cable();
    let (mut near, mut loopback) = (capture("near"), capture("lo"));
    send_to_self(b"inside");
    let both = holding(&mut loopback, "inside", 2);
    assert_eq!(
        both.iter().map(|frame| frame.direction).collect::<Vec<_>>(),
        [Direction::Out, Direction::In(Addressee::Host)]
    );
    send("10.9.0.1:4000", "10.9.0.2:4001", b"inside");
    assert_eq!(holding(&mut near, "inside", 1)[0].direction, Direction::Out);
    assert!(Capture::open(999, Room::default()).unwrap_err().is_absent());
    assert!(Capture::open(0, Room::default()).unwrap_err().is_absent());
}

fn long_frames_are_cut_and_their_length_kept() {
    let mut capture = Capture::open(index("lo"), Room { frames: 4, snap: 60 }).unwrap();
    send_to_self(&[b'x'; 9000]);
    let frame = holding(&mut capture, "xxxx", 1).remove(0);
    assert_eq!((frame.bytes.len(), frame.length), (60, 14 + 20 + 8 + 9000));
    let mut whole = Capture::open(index("lo"), Room { frames: 4, snap: 65_600 }).unwrap();
    send_to_self(&vec![b'y'; 60_000]);
    assert_eq!(holding(&mut whole, "yyyy", 1)[0].bytes.len(), 14 + 20 + 8 + 60_000);
}

fn what_did_not_fit_is_counted() {
    let mut capture = Capture::open(index("lo"), Room { frames: 1, snap: 60_000 }).unwrap();
    (0..20).for_each(|_| send_to_self(b"many"));
    let kept = capture.drain().len() as u64;
    assert_eq!((kept + capture.lost().unwrap(), kept), (40, 1));
    send_to_self(b"more");
    assert_eq!((capture.drain().len(), capture.lost().unwrap()), (1, 40));
}

fn a_frame_for_another_host_says_so() {
    let far = cable();
    run("ip neigh replace 10.9.0.2 lladdr 02:00:00:00:00:55 dev near");
    let mut there = far.run(|| capture("far")).unwrap();
    send("10.9.0.1:4000", "10.9.0.2:4000", b"astray");
    assert_eq!(holding(&mut there, "astray", 1)[0].direction, Direction::In(Addressee::OtherHost));
}

fn an_interface_that_goes_down_ends_nothing() {
    let _far = cable();
    let mut capture = capture("near");
    run("ip link set near down");
    capture.drain();
    assert!(!wait(&[&capture], Instant::now() + Duration::from_millis(20)).unwrap());
    run("ip link set near up");
    send("10.9.0.1:4000", "10.9.0.2:4000", b"again");
    assert_eq!(holding(&mut capture, "again", 1)[0].direction, Direction::Out);
}
