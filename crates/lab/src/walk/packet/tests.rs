//! Real frames, taken by tcpdump from two namespaces with a VXLAN between them, and what it says of them; and no frame at all.

use proptest::prelude::*;

use super::*;

/// Each frame in hexadecimal, and its text.
const CAPTURED: [(&str, &str); 14] = [
    (
        "02000000000202000000000108004500004e0e8e00004011e80dc0000201c0000202dfba2118003a844f080000000000\
         0100ffffffffffff020000000101080600010800060400010200000001010a2a01010000000000000a2a0201",
        "IP 192.0.2.1.57274 > 192.0.2.2.8472: VXLAN, vni 1: ARP, Request who-has 10.42.2.1 tell 10.42.1.1",
    ),
    (
        "02000000000102000000000208004500004e8f0c00004011678fc0000202c0000201dfba2118003a844f080000000000\
         0100020000000101020000000102080600010800060400020200000001020a2a02010200000001010a2a0101",
        "IP 192.0.2.2.57274 > 192.0.2.1.8472: VXLAN, vni 1: ARP, Reply 10.42.2.1 is-at 02:00:00:00:01:02",
    ),
    (
        "02000000000202000000000108004500005e0e8f00004011e7fcc0000201c0000202cfb92118004a845f080000000000\
         010002000000010202000000010108004500002c3c8a40004001e6f10a2a01010a2a02010800885012340007544f4b45\
         4e746f6b0000000000000000",
        "IP 192.0.2.1.53177 > 192.0.2.2.8472: VXLAN, vni 1: IP 10.42.1.1 > 10.42.2.1: ICMP echo request, id 4660, seq 7, length 24",
    ),
    (
        "02000000000102000000000208004500005e8f0d00004011677ec0000202c0000201cfb92118004a845f080000000000\
         010002000000010102000000010208004500002cf605000040016d760a2a02010a2a01010000905012340007544f4b45\
         4e746f6b0000000000000000",
        "IP 192.0.2.2.53177 > 192.0.2.1.8472: VXLAN, vni 1: IP 10.42.2.1 > 10.42.1.1: ICMP echo reply, id 4660, seq 7, length 24",
    ),
    (
        "02000000000202000000000108004500007a0e9000004011e7dfc0000201c0000202e77321180066847b080000000000\
         01003333ff00000202000000010186dd6000000000203afffd420000000000000000000000000001ff02000000000000\
         00000001ff00000287007c1300000000fd4200000000000000000000000000020101020000000101",
        "IP 192.0.2.1.59251 > 192.0.2.2.8472: VXLAN, vni 1: IP6 fd42::1 > ff02::1:ff00:2: ICMP6, neighbor solicitation, who has fd42::2",
    ),
    (
        "02000000000102000000000208004500007a8f0e000040116761c0000202c0000201aa8621180066847b080000000000\
         010002000000010102000000010286dd6000000000203afffd420000000000000000000000000002fd42000000000000\
         000000000000000188001ad460000000fd4200000000000000000000000000020201020000000102",
        "IP 192.0.2.2.43654 > 192.0.2.1.8472: VXLAN, vni 1: IP6 fd42::2 > fd42::1: ICMP6, neighbor advertisement, tgt is fd42::2 at 02:00:00:00:01:02",
    ),
    (
        "0200000000020200000000010800450000720e9100004011e7e6c0000201c0000202d44f2118005e8473080000000000\
         010002000000010202000000010186dd60042ab700183a40fd420000000000000000000000000001fd42000000000000\
         00000000000000028000157512340007544f4b454e746f6b0000000000000000",
        "IP 192.0.2.1.54351 > 192.0.2.2.8472: VXLAN, vni 1: IP6 fd42::1 > fd42::2: ICMP6, echo request, id 4660, seq 7, length 24",
    ),
    (
        "0200000000010200000000020800450000728f0f000040116768c0000202c0000201ea132118005e8473080000000000\
         010002000000010102000000010286dd6009914f00183a40fd420000000000000000000000000002fd42000000000000\
         00000000000000018100147512340007544f4b454e746f6b0000000000000000",
        "IP 192.0.2.2.59923 > 192.0.2.1.8472: VXLAN, vni 1: IP6 fd42::2 > fd42::1: ICMP6, echo reply, id 4660, seq 7, length 24",
    ),
    (
        "0200000000020200000000010800450000580e9200004011e7ffc0000201c0000202edf4211800446ccb080000000000\
         0100020000000102020000000101080045000026762440004011ad4d0a2a01010a2a02019e120009001217796869544f\
         4b454e746f6b",
        "IP 192.0.2.1.60916 > 192.0.2.2.8472: VXLAN, vni 1: IP 10.42.1.1.40466 > 10.42.2.1.9: UDP, length 10",
    ),
    (
        "0200000000010200000000020800450000748f10000040116765c0000202c0000201cfb9211800608475080000000000\
         0100020000000101020000000102080045c00042f606000040016c9f0a2a02010a2a0101030381780000000045000026\
         762440004011ad4d0a2a01010a2a02019e120009001217796869544f4b454e746f6b",
        "IP 192.0.2.2.53177 > 192.0.2.1.8472: VXLAN, vni 1: IP 10.42.2.1 > 10.42.1.1: ICMP port unreachable about IP 10.42.1.1.40466 > 10.42.2.1.9: UDP, length 10",
    ),
    (
        "02000000000202000000000108004500006c0e9300004011e7eac0000201c0000202cd6921180058a3cc080000000000\
         010002000000010202000000010186dd600ce1cf00121140fd420000000000000000000000000001fd42000000000000\
         0000000000000002c8f600090012faab6869544f4b454e746f6b",
        "IP 192.0.2.1.52585 > 192.0.2.2.8472: VXLAN, vni 1: IP6 fd42::1.51446 > fd42::2.9: UDP, length 10",
    ),
    (
        "02000000000102000000000208004500009c8f1100004011673cc0000202c000020189b321180088849d080000000000\
         010002000000010102000000010286dd600c45ca00423a40fd420000000000000000000000000002fd42000000000000\
         000000000000000101042ca400000000600ce1cf00121140fd420000000000000000000000000001fd42000000000000\
         0000000000000002c8f600090012faab6869544f4b454e746f6b",
        "IP 192.0.2.2.35251 > 192.0.2.1.8472: VXLAN, vni 1: IP6 fd42::2 > fd42::1: ICMP6, port unreachable about IP6 fd42::1.51446 > fd42::2.9: UDP, length 10",
    ),
    (
        "02000000000202000000000108004500006e0e9400004011e7e7c0000201c0000202abb22118005aaeec080000000000\
         010002000000010202000000010108004500003c37e940004006eb7d0a2a01010a2a0201d060005052dad0eb00000000\
         a002fd5c17840000020405820402080a59bbfdfb000000000103030a",
        "IP 192.0.2.1.43954 > 192.0.2.2.8472: VXLAN, vni 1: IP 10.42.1.1.53344 > 10.42.2.1.80: Flags [S], seq 1390072043, win 64860",
    ),
    (
        "02000000000102000000000208004500005a8f1200004011677dc0000202c0000201886a21180046845b080000000000\
         0100020000000101020000000102080045000028000040004006237b0a2a02010a2a01010050d0600000000052dad0ec\
         50140000a4030000",
        "IP 192.0.2.2.34922 > 192.0.2.1.8472: VXLAN, vni 1: IP 10.42.2.1.80 > 10.42.1.1.53344: Flags [R.], seq 0, ack 1390072044, win 0",
    ),
];

fn tunnels() -> Tunnels {
    Tunnels { vxlan: vec![8472], ip: vec![8285] }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn captured(at: usize) -> Packet {
    decode(&bytes(CAPTURED[at].0), LinkLayer::Ethernet, &tunnels())
}

fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

#[test]
fn captured_frames_read_as_tcpdump_reads_them() {
    for (at, (_, text)) in CAPTURED.iter().enumerate() {
        assert_eq!(captured(at).to_string(), *text, "{at}");
    }
}

#[test]
fn layers_hold_what_the_headers_say() {
    let request = captured(2);
    let [
        Layer::Ethernet(_),
        Layer::Ip(outer),
        Layer::Udp { .. },
        Layer::Vxlan { vni: Some(1), group: None },
        inner @ ..,
    ] = request.layers.as_slice()
    else {
        panic!("{request:?}")
    };
    assert_eq!((outer.ttl, outer.length, outer.payload, outer.dont_fragment), (64, 94, 74, false));
    let ethernet =
        Ethernet { destination: mac("02:00:00:00:01:02"), source: mac("02:00:00:00:01:01"), protocol: 0x0800 };
    assert_eq!(inner[0], Layer::Ethernet(ethernet));
    assert_eq!(inner[2], Layer::Icmp(Icmp::Echo { request: true, id: 0x1234, sequence: 7 }));
    assert_eq!(request.payload(), b"TOKENtok\0\0\0\0\0\0\0\0");
    let Layer::Icmp(answer) = captured(5).layers[6] else { panic!("no advertisement") };
    let (target, theirs) = ("fd42::2".parse().unwrap(), mac("02:00:00:00:01:02"));
    assert_eq!(answer, Icmp::NeighAdvertisement { target, mac: Some(theirs), solicited: true });
    let Layer::Icmp(question) = captured(4).layers[6] else { panic!("no solicitation") };
    assert_eq!(question, Icmp::NeighSolicitation { target, mac: Some(mac("02:00:00:00:01:01")) });
    assert!(format!("{:#}", captured(0)).starts_with("02:00:00:00:00:01 > 02:00:00:00:00:02, IP 192.0.2.1"));
}

#[test]
fn what_a_port_carries_is_for_the_caller_to_say() {
    let plain = decode(&bytes(CAPTURED[2].0), LinkLayer::Ethernet, &Tunnels::default());
    assert_eq!(plain.to_string(), "IP 192.0.2.1.53177 > 192.0.2.2.8472: UDP, length 66");
    assert_eq!(plain.payload().len(), 66);
}

/// An IPv4 header without options, and what follows.
fn v4(protocol: u8, flags: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len() as u16).to_be_bytes();
    let head = [0x45, 0, length[0], length[1], 0, 9, flags[0], flags[1], 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    [&head, payload].concat()
}

/// An IPv6 header, and what follows.
fn v6(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16).to_be_bytes();
    let mut head = vec![0x60, 0, 0, 0, length[0], length[1], protocol, 64];
    head.extend([[0; 15].as_slice(), &[1], &[0; 15], &[2]].concat());
    [&head, payload].concat()
}

#[test]
fn ip_without_a_link_layer_and_in_ip() {
    let read = |bytes: &[u8]| decode(bytes, LinkLayer::Ip, &tunnels()).to_string();
    let echo = [8, 0, 0, 0, 0, 1, 0, 2];
    let inner = "IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 1, seq 2, length 8";
    assert_eq!(read(&v4(1, [0, 0], &echo)), inner);
    assert_eq!(read(&v4(4, [0, 0], &v4(1, [0, 0], &echo))), format!("IP 10.0.0.1 > 10.0.0.2: {inner}"));
    let udp = [&[0x20, 0x5d, 0x20, 0x5d, 0, 36, 0, 0], v4(1, [0, 0], &echo).as_slice()].concat();
    assert_eq!(read(&v4(17, [0, 0], &udp)), format!("IP 10.0.0.1.8285 > 10.0.0.2.8285: UDP, length 28: {inner}"));
}

#[test]
fn fragments_and_extensions() {
    let read = |bytes: &[u8]| decode(bytes, LinkLayer::Ip, &tunnels());
    let later = read(&v4(1, [0x20, 1], &[8, 0, 0, 0, 0, 1, 0, 2]));
    assert_eq!(later.to_string(), "IP 10.0.0.1 > 10.0.0.2: frag (9:8+8) ip-proto-1");
    let Layer::Ip(ip) = later.layers[0] else { panic!("no IP") };
    assert_eq!(ip.fragment, Some(Fragment { id: 9, offset: 8, more: true }));
    let fragment = [58, 0, 0, 1, 0, 0, 0, 7, 128, 0, 0, 0, 0, 1, 0, 2];
    let options = [&[44, 0, 0, 0, 0, 0, 0, 0], fragment.as_slice()].concat();
    let first = read(&v6(0, &options));
    assert_eq!(first.to_string(), "IP6 ::1 > ::2: frag (7:0+8) ICMP6, echo request, id 1, seq 2, length 8");
}

#[test]
fn errors_say_what_they_are_about() {
    let read = |bytes: &[u8]| decode(bytes, LinkLayer::Ip, &tunnels()).to_string();
    let lost = v4(17, [0x40, 0], &[0, 1, 0, 2, 0, 8, 0, 0]);
    let about = "about IP 10.0.0.1.1 > 10.0.0.2.2: UDP, length 0";
    let error =
        |kind: u8, code: u8, word: [u8; 4]| read(&v4(1, [0, 0], &[&[kind, code, 0, 0], &word[..], &lost].concat()));
    let head = "IP 10.0.0.1 > 10.0.0.2: ICMP";
    assert_eq!(error(3, 4, [0, 0, 5, 0xaa]), format!("{head} unreachable - need to frag (mtu 1450) {about}"));
    assert_eq!(error(3, 1, [0; 4]), format!("{head} host unreachable {about}"));
    assert_eq!(error(3, 13, [0; 4]), format!("{head} unreachable - admin prohibited {about}"));
    assert_eq!(error(11, 0, [0; 4]), format!("{head} time exceeded in-transit {about}"));
    assert_eq!(error(5, 1, [10, 0, 0, 9]), format!("{head} redirect to 10.0.0.9 {about}"));
    let too_big = v6(58, &[&[2, 0, 0, 0, 0, 0, 5, 0x96], v6(17, &[0, 1, 0, 2, 0, 8, 0, 0]).as_slice()].concat());
    assert_eq!(read(&too_big), "IP6 ::1 > ::2: ICMP6, packet too big, mtu 1430 about IP6 ::1.1 > ::2.2: UDP, length 0");
}

#[test]
fn tags_and_group_policies() {
    let tagged = [&[0; 12][..], &[0x81, 0, 0x20, 7, 8, 0], &v4(253, [0, 0], b"x")].concat();
    let read = decode(&tagged, LinkLayer::Ethernet, &tunnels()).to_string();
    assert_eq!(read, "vlan 7, IP 10.0.0.1 > 10.0.0.2: ip-proto-253");
    let policy = [&[0, 0, 0x21, 0x18, 0, 0, 0, 0, 0x88, 0, 0, 5, 0, 0, 9, 0][..], &[0; 14]].concat();
    let read = decode(&v4(17, [0, 0], &policy), LinkLayer::Ip, &tunnels()).layers;
    assert_eq!(read[2], Layer::Vxlan { vni: Some(9), group: Some(5) });
}

#[test]
fn bytes_that_end_early_are_said_to() {
    let whole = bytes(CAPTURED[12].0);
    for end in 0..whole.len() {
        let layers = decode(&whole[..end], LinkLayer::Ethernet, &tunnels()).layers;
        let at_once = matches!(layers.last(), Some(Layer::Unreadable(_)));
        assert!(at_once || end >= 50 + 14 + 20 + 20, "{end}: {layers:?}");
    }
    let nested: Vec<u8> = (0..100).flat_map(|_| v4(4, [0, 0], &[])).collect();
    let mut deep = nested.clone();
    deep.chunks_mut(20).for_each(|header| header[2..4].copy_from_slice(&[0, 0]));
    assert_eq!(decode(&deep, LinkLayer::Ip, &tunnels()).layers.len(), MOST_LAYERS);
}

proptest! {
    #[test]
    fn any_bytes_decode(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
        for link in [LinkLayer::Ethernet, LinkLayer::Ip, LinkLayer::Other(7)] {
            let packet = decode(&noise, link, &tunnels());
            prop_assert!(packet.layers.len() <= MOST_LAYERS);
            let text = format!("{packet:#}");
            prop_assert!(!text.contains('\n'));
        }
    }

    #[test]
    fn damaged_frames_decode(which in 0..CAPTURED.len(), damage in proptest::collection::vec((0_usize..170, any::<u8>()), 1..8)) {
        let mut frame = bytes(CAPTURED[which].0);
        for (at, byte) in damage {
            let at = at % frame.len();
            frame[at] = byte;
        }
        let packet = decode(&frame, LinkLayer::Ethernet, &tunnels());
        prop_assert!(packet.payload().len() <= frame.len());
        prop_assert!(!packet.to_string().contains('\n'));
    }
}
