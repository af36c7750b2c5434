//! Records as text in, leases or flaws out.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

#[test]
fn keys_there_and_back() {
    let check = |key: &str, subnets: &[&str]| {
        let expect = SubnetKey(Dual::of_nets(subnets.iter().map(|text| net(text))));
        assert_eq!(key.parse(), Ok(expect), "{key}");
        assert_eq!(expect.to_string(), key);
    };
    check("10.5.52.0-24", &["10.5.52.0/24"]);
    check("10.5.52.0-24&fc00::5:0-112", &["10.5.52.0/24", "fc00::5:0/112"]);
    check("0.0.0.0-0&fc00::5:0-112", &["fc00::5:0/112"]);
    check("10.5.52.2-31", &["10.5.52.2/31"]);
}

#[test]
fn keys_refused() {
    let check = |key: &str, expect: &str| {
        assert_eq!(key.parse::<SubnetKey>().unwrap_err().to_string(), expect, "{key}");
    };
    let v4 = |text: &str| format!("key: `{text}` is not an IPv4 subnet like 10.5.52.0-24");
    let v6 = |text: &str| format!("key: `{text}` is not an IPv6 subnet like fc00::5:0-112");
    for bad in [
        "",
        "garbage",
        "10.42.999.0-24",
        "10.42.1.0-32",
        "10.42.1.0-33",
        "10.42.1.0-",
        "10.42.1.0-+24",
        "10.42.1.7-24",
        "010.42.1.0-24",
        " 10.42.1.0-24",
        "10.42.1.0-24 ",
        "10.42.1.0/24",
        "fc00::5:0-112",
        "0.0.0.0-0",
    ] {
        check(bad, &v4(bad));
    }
    for bad in ["", "FC00::5:0-112", "fc00::5:0-128", "10.5.52.0-24", "fc00::5:1-112", "fc00::5:0-112&fc00::6:0-112"] {
        check(&format!("10.5.52.0-24&{bad}"), &v6(bad));
    }
}

const V4: &str = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;
const DUAL: &str = r#"{"PublicIP":"192.168.64.3","PublicIPv6":"2001:db8::3","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:66"}}"#;
const V6: &str = r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::3","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:66"}}"#;
const DUAL_KEY: &str = "10.5.52.0-24&fc00::5:0-112";

fn lease(key: &str, text: &str) -> Result<Arc<Lease>, Arc<Flaw>> {
    read(LeaseKey::new(key), text.as_bytes(), Since { at: 7, tie: 0 }).lease
}

#[test]
fn records_there_and_back() {
    let check = |key: &str, text: &str| {
        let lease = lease(key, text).unwrap_or_else(|flaw| panic!("{text}: {flaw}"));
        assert_eq!(lease.flaws, [], "{text}");
        assert_eq!(lease.since, Since { at: 7, tie: 0 });
        assert_eq!(SubnetKey(lease.subnet).to_string(), key);
        assert_eq!(write(&lease.public_ip, &lease.attributes, None), text);
    };
    check("10.5.52.0-24", V4);
    check(DUAL_KEY, DUAL);
    check("0.0.0.0-0&fc00::5:0-112", V6);
    check("10.5.52.0-24", r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}"#);
    check(DUAL_KEY, r#"{"PublicIP":"192.168.64.3","PublicIPv6":"2001:db8::3","BackendType":"host-gw"}"#);
    check("10.5.52.0-24", r#"{"PublicIP":"192.168.64.3","PublicIPv6":null}"#);
    check("10.5.52.0-24", r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"ipip"}"#);
}

#[test]
fn a_sequence_orders_local_records() {
    let check = |text: &str, at: u64| {
        let record = read_sequenced(LeaseKey::new("10.5.52.0-24"), text.as_bytes());
        assert_eq!(record.lease.unwrap().since, Since { at, tie: 0x0a05_3400 }, "{text}");
    };
    check(V4, 0);
    let text = V4.replace("}}", "},\"Sequence\":12}");
    check(&text, 12);
    let lease = lease("10.5.52.0-24", &text).unwrap();
    assert_eq!(write(&lease.public_ip, &lease.attributes, Some(12)), text);
}

#[test]
fn other_spellings_are_read() {
    let check = |from: &str, to: &str| {
        let text = V4.replace(from, to);
        assert_eq!(lease("10.5.52.0-24", &text), lease("10.5.52.0-24", V4), "{text}");
    };
    check("PublicIP\"", "publicip\"");
    check(",", " , ");
    check("c6:d2:32:6f:8f:44", "C6:D2:32:6F:8F:44");
    check("\"VNI\":1,", "");
    check("\"PublicIPv6\":null", "\"PublicIPv6\":\"2001:db8::3\",\"New\":[1]");
}

#[test]
fn unreadable_records() {
    let check = |text: &str, expect: &str| {
        assert_eq!(lease("10.5.52.0-24", text).unwrap_err().to_string(), expect, "{text}");
    };
    check("", "record: is not a JSON object: EOF while parsing a value at line 1 column 0");
    check("{bad", "record: is not a JSON object: key must be a string at line 1 column 2");
    check("[]", "record: is not a JSON object: invalid type: sequence, expected an object at line 1 column 0");
    check("null", "record: is not a JSON object: invalid type: null, expected an object at line 1 column 4");
    check("{}", "PublicIP: is missing");
    check(&format!("{{\"x\":\"{}\"}}", "x".repeat(LONGEST)), "record: has 65544 bytes, more than 65536");
    let swap = |from: &str, to: &str, expect: &str| check(&V4.replace(from, to), expect);
    for ip in ["192.168.64", "0.0.0.0", "224.0.0.1", "127.0.0.1", "255.255.255.255", "2001:db8::1", "", "a\\nb"] {
        let expect = format!("PublicIP: `{ip}` is not an IPv4 address of a host");
        swap("192.168.64.3", ip, &expect);
    }
    swap("\"192.168.64.3\"", "7", "PublicIP: `7` is not an IPv4 address of a host");
    swap("\"vxlan\"", "[]", "BackendType: [] is not a string");
    swap("\"VNI\":1", "\"VNI\":16777216", "BackendData.VNI: 16777216 is not a number from 0 to 16777215");
    swap("\"VNI\":1", "\"VNI\":-1", "BackendData.VNI: -1 is not a number from 0 to 16777215");
    swap("VtepMAC", "MAC", "BackendData.VtepMAC: is missing");
    for mac in ["c6:d2:32:6f:8f:44:00:11", "", "zz"] {
        swap("c6:d2:32:6f:8f:44", mac, &format!("BackendData.VtepMAC: `{mac}` is not a 6-byte MAC address"));
    }
    for mac in ["00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff"] {
        swap("c6:d2:32:6f:8f:44", mac, &format!("BackendData.VtepMAC: {mac} is not the MAC address of a host"));
    }
    let data = r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#;
    swap(data, "null", "BackendData: is missing");
    swap(data, "\"x\"", "BackendData: \"x\" is not an object like {\"VNI\":1,\"VtepMAC\":\"…\"}");
}

#[test]
fn a_record_that_is_no_text() {
    let record = read(LeaseKey::new("10.5.52.0-24"), &[0xff, 0xfe], Since::default());
    assert_eq!(record.lease.unwrap_err().to_string(), "record: is not UTF-8");
}

#[test]
fn a_broken_family_leaves_the_other() {
    let check = |from: &str, to: &str, key: &str, flaw: &str| {
        let lease = lease(DUAL_KEY, &DUAL.replace(from, to)).unwrap();
        assert_eq!(SubnetKey(lease.subnet).to_string(), key, "{to}");
        assert_eq!(lease.public_ip.families().collect::<Vec<_>>(), lease.subnet.families().collect::<Vec<_>>());
        let families = lease.attributes.vteps().families().collect::<Vec<_>>();
        assert_eq!(families, lease.subnet.families().collect::<Vec<_>>());
        assert_eq!(lease.flaws.iter().map(ToString::to_string).collect::<Vec<_>>(), [flaw]);
    };
    let (v4, v6) = ("10.5.52.0-24", "0.0.0.0-0&fc00::5:0-112");
    check("2001:db8::3", "ff02::1", v4, "PublicIPv6: `ff02::1` is not an IPv6 address of a host");
    check("\"2001:db8::3\"", "null", v4, "PublicIPv6: is missing");
    check("BackendV6Data", "X", v4, "BackendV6Data: is missing");
    check(
        "c6:d2:32:6f:8f:66",
        "00:00:00:00:00:00",
        v4,
        "BackendV6Data.VtepMAC: 00:00:00:00:00:00 is not the MAC address of a host",
    );
    check("192.168.64.3", "0.0.0.0", v6, "PublicIP: `0.0.0.0` is not an IPv4 address of a host");
}

#[test]
fn whose_record_it_is() {
    let check = |text: &str, expect: &[&str]| {
        let owner: Vec<String> = claimed_by(text.as_bytes()).values().map(ToString::to_string).collect();
        assert_eq!(owner, expect, "{text}");
    };
    check(DUAL, &["192.168.64.3", "2001:db8::3"]);
    check(V6, &["2001:db8::3"]);
    check(r#"{"PublicIP":"192.168.64.3","BackendType":[],"BackendData":7}"#, &["192.168.64.3"]);
    check("{", &[]);
}

fn mac() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(Mac::local)
}

proptest! {
    #[test]
    fn what_is_written_reads_back(
        subnet in any::<u32>(), subnet6 in any::<u128>(), len in 1u8..=31, len6 in 1u8..=127,
        macs in (prop::option::of(mac()), prop::option::of(mac())), vni in 0u32..1 << 24, sequence in any::<u64>(),
    ) {
        prop_assume!(macs.0.is_some() || macs.1.is_some());
        let subnet = Dual {
            v4: macs.0.map(|_| IpNet::new(std::net::Ipv4Addr::from_bits(subnet).into(), len).unwrap().trunc()),
            v6: macs.1.map(|_| IpNet::new(std::net::Ipv6Addr::from_bits(subnet6).into(), len6).unwrap().trunc()),
        };
        let public = Dual { v4: "192.0.2.1".parse().ok(), v6: "2001:db8::1".parse().ok() };
        let vtep = |mac| Vtep { vni: Vni::new(vni).unwrap(), mac };
        let lease = Lease {
            subnet,
            public_ip: subnet.map(|family, _| *public.get(family).unwrap()),
            attributes: Attributes::Vxlan(Dual { v4: macs.0.map(vtep), v6: macs.1.map(vtep) }),
            since: sequenced(&subnet, sequence),
            flaws: vec![],
        };
        let key = LeaseKey::new(SubnetKey(subnet).to_string());
        let text = write(&lease.public_ip, &lease.attributes, Some(sequence));
        prop_assert_eq!(read_sequenced(key.clone(), text.as_bytes()), Record::new(key, Ok(lease)));
    }

    #[test]
    fn no_text_panics(key in "[0-9a-f.:&-]{0,40}|\\PC{0,20}", text in any::<Vec<u8>>(), cut in 0usize..400) {
        let _ = read(LeaseKey::new(key), &text, Since::default());
        let half = &DUAL.as_bytes()[..cut.min(DUAL.len() - 1)];
        prop_assert!(read(LeaseKey::new(DUAL_KEY), half, Since::default()).lease.is_err());
    }
}
