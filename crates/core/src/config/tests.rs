//! The network config as text in, values or messages out.

use proptest::prelude::*;

use super::*;
use crate::addr::{Mtu, Vni};
use crate::backend::VxlanOptions;

const VXLAN: &str = r#""Backend": {"Type": "vxlan"}"#;

fn with(rest: &str) -> String {
    format!("{{{rest}, {VXLAN}}}")
}

fn parse(text: &str, rules: ConfigRules) -> (NetworkConfig, Vec<Warning>) {
    NetworkConfig::parse(text, rules).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Networks and ranges as `network len min max`, the families divided by a comma.
fn subnets(config: &NetworkConfig) -> String {
    let one = |(family, network): (Family, &IpNet)| {
        let range = config.subnets.get(family).map(|r| format!(" {} {} {}", r.len, r.min, r.max));
        format!("{network}{}", range.unwrap_or_default())
    };
    config.network.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[test]
fn ranges_of_subnets() {
    let check = |rest: &str, expect: &str| {
        let (config, warnings) = parse(&with(rest), ConfigRules::Etcd);
        assert_eq!((subnets(&config).as_str(), warnings), (expect, vec![]), "{rest}");
    };
    check(r#""Network": "10.244.0.0/16""#, "10.244.0.0/16 24 10.244.1.0 10.244.255.0");
    check(r#""network": "10.244.3.4/16""#, "10.244.0.0/16 24 10.244.1.0 10.244.255.0");
    check(r#""NETWORK": "10.0.0.0/22", "SubnetLen": 0"#, "10.0.0.0/22 24 10.0.1.0 10.0.3.0");
    check(r#""Network": "10.0.0.0/23""#, "10.0.0.0/23 25 10.0.0.128 10.0.1.128");
    check(r#""Network": "10.0.0.0/28""#, "10.0.0.0/28 30 10.0.0.4 10.0.0.12");
    check(r#""Network": "10.0.0.0/8", "subnetlen": 10"#, "10.0.0.0/8 10 10.64.0.0 10.192.0.0");
    check(
        r#""Network": "10.0.0.0/16", "SubnetMin": "10.0.0.0", "SubnetMax": "10.0.9.0""#,
        "10.0.0.0/16 24 10.0.0.0 10.0.9.0",
    );
    check(
        r#""Network": "10.0.0.0/16", "SubnetMin": "0.0.0.0", "SubnetMax": null"#,
        "10.0.0.0/16 24 10.0.1.0 10.0.255.0",
    );
    check(
        r#""EnableIPv4": false, "enableipv6": true, "IPv6Network": "2001:cafe:42::/56""#,
        "2001:cafe:42::/56 64 2001:cafe:42:1:: 2001:cafe:42:ff::",
    );
    check(
        r#""Network": "10.0.0.0/16", "EnableIPv6": true, "IPv6Network": "fc00::/124", "IPv6SubnetMin": "fc00::8""#,
        "10.0.0.0/16 24 10.0.1.0 10.0.255.0, fc00::/124 126 fc00::8 fc00::c",
    );
    check(
        r#""Network": "10.0.0.0/16", "EnableIPv6": true, "IPv6Network": "fc00::/63""#,
        "10.0.0.0/16 24 10.0.1.0 10.0.255.0, fc00::/63 65 fc00::8000:0:0:0 fc00:0:0:1:8000::",
    );
}

#[test]
fn kubernetes_hands_out_its_own_subnets() {
    let text = with(r#""Network": "10.244.0.0/30", "SubnetLen": 99, "SubnetMin": "192.0.2.1""#);
    let (config, _) = parse(&text, ConfigRules::Kube);
    assert_eq!(subnets(&config), "10.244.0.0/30");
    assert!(config.fits(&Dual::of_nets(["10.244.0.0/30".parse().unwrap()])));
    assert!(!config.fits(&Dual::of_nets(["10.244.0.0/24".parse().unwrap()])));
}

#[test]
fn which_subnets_fit() {
    let text = with(r#""Network": "10.0.0.0/16", "EnableIPv6": true, "IPv6Network": "fc00::/48""#);
    let (dual, _) = parse(&text, ConfigRules::Etcd);
    let check = |subnets: &[&str], expect| {
        let nets = Dual::of_nets(subnets.iter().map(|text| text.parse().unwrap()));
        assert_eq!(dual.fits(&nets), expect, "{subnets:?}");
    };
    check(&["10.0.1.0/24", "fc00:0:0:1::/64"], true);
    check(&["10.0.1.0/24"], false);
    check(&["fc00:0:0:1::/64"], false);
    check(&["10.0.0.0/24", "fc00:0:0:1::/64"], false);
    check(&["10.0.1.0/25", "fc00:0:0:1::/64"], false);
    check(&["10.1.1.0/24", "fc00:0:0:1::/64"], false);
    check(&["10.0.1.7/24", "fc00:0:0:1::/64"], false);
    let (v4, _) = parse(&with(r#""Network": "10.0.0.0/16""#), ConfigRules::Etcd);
    assert!(!v4.fits(&Dual::of_nets(["10.0.1.0/24".parse().unwrap(), "fc00:0:0:1::/64".parse().unwrap()])));
}

#[test]
fn backends_and_their_options() {
    let check = |backend: &str, expect: Backend| {
        let text = format!(r#"{{"Network": "10.0.0.0/16", "Backend": {backend}}}"#);
        let (config, warnings) = parse(&text, ConfigRules::Etcd);
        assert_eq!((config.backend, warnings), (expect, vec![]), "{backend}");
    };
    let default = VxlanOptions::default();
    check(r#"{"Type": "vxlan"}"#, Backend::Vxlan(default));
    check(r#"{"type": "VXLAN", "vni": null, "Port": 0, "MTU": 0}"#, Backend::Vxlan(default));
    check(r#"{"Type": "host-gw"}"#, Backend::HostGw);
    check(r#"{"Type": "Alloc"}"#, Backend::Alloc);
    check(r#"{"Type": "host-gw", "Name": "cbr0", "DNSServerList": "192.0.2.53"}"#, Backend::HostGw);
    check(
        r#"{"Type": "vxlan", "VNI": 4096, "Port": 4789, "MacPrefix": "0E-2A", "Name": "flannel.4096"}"#,
        Backend::Vxlan(VxlanOptions { vni: Vni::new(4096).unwrap(), port: 4789, ..default }),
    );
    check(
        r#"{"Type": "vxlan", "MTU": 1400, "GBP": true, "Learning": true, "directrouting": true}"#,
        Backend::Vxlan(VxlanOptions {
            mtu: Some(Mtu(1400)),
            gbp: true,
            learning: true,
            direct_routing: true,
            ..default
        }),
    );
}

#[test]
fn what_has_no_effect_is_said() {
    let check = |text: &str, expect: &[&str]| {
        let (_, warnings) = parse(text, ConfigRules::Etcd);
        assert_eq!(warnings.iter().map(ToString::to_string).collect::<Vec<_>>(), expect, "{text}");
    };
    check(
        &with(r#""Network": "10.0.0.0/16", "Netwrok": 1"#),
        &["network config: key Netwrok is unknown and has no effect"],
    );
    check(
        r#"{"Network": "10.0.0.0/16", "Backend": {"Type": "host-gw", "VNI": 1}}"#,
        &["network config: backend host-gw has no option VNI; it has no effect"],
    );
    check(
        &with(r#""Network": "10.0.0.0/16", "IPv6Network": "fc00::/48""#),
        &["network config: IPv6Network has no effect while EnableIPv6 is false"],
    );
}

#[test]
fn nftables_is_off_unless_asked_for() {
    assert!(!parse(&with(r#""Network": "10.0.0.0/16""#), ConfigRules::Kube).0.nftables);
    assert!(parse(&with(r#""Network": "10.0.0.0/16", "enablenftables": true"#), ConfigRules::Kube).0.nftables);
}

/// Message and hint, one a line.
fn refusal(text: &str) -> String {
    match NetworkConfig::parse(text, ConfigRules::Etcd) {
        Ok((config, _)) => panic!("{text} was taken: {config:?}"),
        Err(error) => format!("{error}\nhint: {}", error.hint()),
    }
}

const LEAST: &str = r#"hint: the least it may hold is {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;

#[test]
fn refused_as_a_whole() {
    let check = |text: &str, expect: &str| {
        assert_eq!(refusal(text), format!("network config is not a JSON object: {expect}\n{LEAST}"));
    };
    check("", "EOF while parsing a value at line 1 column 0");
    check("{bad", "key must be a string at line 1 column 2");
    check("[]", "invalid type: sequence, expected an object at line 1 column 0");
    check("{} x", "trailing characters at line 1 column 4");
}

#[test]
fn refused_for_a_network() {
    let check = |rest: &str, expect: &str| assert_eq!(refusal(&with(rest)), expect, "{rest}");
    check(
        r#""EnableNFTables": false"#,
        "network config has no Network: EnableIPv4 is true (the default)\n\
         hint: set \"Network\": \"10.244.0.0/16\", or \"EnableIPv4\": false",
    );
    check(
        r#""Network": "10.0.0.0/16", "EnableIPv6": true"#,
        "network config has no IPv6Network: EnableIPv6 is true\n\
         hint: set \"IPv6Network\": \"2001:db8:42::/56\", or \"EnableIPv6\": false",
    );
    for bad in [r#""10.0.0.0""#, r#""10.0.0.0/33""#, r#""fc00::/48""#, "7", r#""""#, "[]"] {
        check(
            &format!("\"Network\": {bad}"),
            &format!(
                "network config: Network {bad} is not an IPv4 network\nhint: for example \"Network\": \"10.244.0.0/16\""
            ),
        );
    }
    check(
        r#""EnableIPv4": false"#,
        "network config: EnableIPv4 false leaves no address family, as EnableIPv6 is not true either\n\
         hint: enable at least one of them",
    );
    check(
        r#""EnableIPv4": "no", "Network": "10.0.0.0/16""#,
        "network config: EnableIPv4 \"no\" is not true or false\nhint: for example \"EnableIPv4\": true",
    );
}

#[test]
fn refused_for_its_subnets() {
    let check = |network: &str, rest: &str, expect: &str| {
        assert_eq!(refusal(&with(&format!("\"Network\": \"{network}\"{rest}"))), format!("network config: {expect}"));
    };
    check(
        "10.0.0.0/29",
        "",
        "Network 10.0.0.0/29 is too small to be divided among nodes\nhint: use a network of at most /28",
    );
    check("10.0.0.0/16", r#", "SubnetLen": 31"#, "SubnetLen 31 leaves no room for pods\nhint: use at most 30");
    check(
        "10.0.0.0/16",
        r#", "SubnetLen": 17"#,
        "SubnetLen 17 divides 10.0.0.0/16 into fewer than four subnets\nhint: use at least 18",
    );
    check(
        "10.0.0.0/16",
        r#", "SubnetLen": -1"#,
        "SubnetLen -1 is not a prefix length\nhint: for example \"SubnetLen\": 24",
    );
    check(
        "10.0.0.0/16",
        r#", "SubnetMin": "10.1.0.0""#,
        "SubnetMin 10.1.0.0 lies outside 10.0.0.0/16\nhint: use an address from 10.0.0.0 to 10.0.255.255",
    );
    check(
        "10.0.0.0/16",
        r#", "SubnetMax": "10.0.3.7""#,
        "SubnetMax 10.0.3.7 is not the start of a /24 subnet\nhint: use 10.0.3.0",
    );
    check(
        "10.0.0.0/16",
        r#", "SubnetMin": "10.0.9.0", "SubnetMax": "10.0.3.0""#,
        "SubnetMin 10.0.9.0 lies after SubnetMax 10.0.3.0\nhint: exchange the two, or leave one out",
    );
    check(
        "10.0.0.0/16",
        r#", "SubnetMin": "fc00::""#,
        "SubnetMin \"fc00::\" is not an IPv4 address\nhint: for example \"SubnetMin\": \"10.244.1.0\"",
    );
    check(
        "10.0.0.0/16",
        r#", "EnableIPv6": true, "IPv6Network": "fc00::/48", "IPv6SubnetLen": 127"#,
        "IPv6SubnetLen 127 leaves no room for pods\nhint: use at most 126",
    );
}

#[test]
fn refused_for_its_backend() {
    let hint = r#"hint: set "Backend": {"Type": "vxlan"} or {"Type": "host-gw"}"#;
    let check = |rest: &str, expect: &str| {
        assert_eq!(refusal(&format!(r#"{{"Network": "10.0.0.0/16"{rest}}}"#)), format!("network config{expect}"));
    };
    check("", &format!(" has no Backend: the default is udp, which is not supported\n{hint}"));
    check(r#", "Backend": {}"#, &format!(" has no Backend.Type: it says how packets reach other nodes\n{hint}"));
    check(r#", "Backend": "vxlan""#, &format!(": Backend \"vxlan\" is not an object\n{hint}"));
    check(r#", "Backend": {"Type": ""}"#, &format!(": Backend.Type \"\" is no backend\n{hint}"));
    check(r#", "Backend": {"Type": "Vxlam"}"#, &format!(": Backend.Type \"Vxlam\" is no backend\n{hint}"));
    for name in ["udp", "WireGuard", "ipip", "ipsec", "extension", "tencent-vpc"] {
        check(
            &format!(r#", "Backend": {{"Type": "{name}"}}"#),
            &format!(": Backend.Type \"{name}\" is not supported\n{hint}"),
        );
    }
    check(
        r#", "Backend": {"Type": 7}"#,
        ": Backend.Type 7 is not the name of a backend\nhint: for example \"Type\": \"vxlan\"",
    );
}

#[test]
fn refused_for_a_vxlan_option() {
    let check = |option: &str, expect: &str| {
        let text = format!(
            r#"{{"Network": "10.0.0.0/16", "EnableIPv6": true, "IPv6Network": "fc00::/48", "Backend": {{"Type": "vxlan", {option}}}}}"#
        );
        assert_eq!(refusal(&text), format!("network config: Backend.{expect}"));
    };
    for bad in ["16777216", "-1", "\"1\"", "1.5", "99999999999999999999"] {
        check(
            &format!("\"VNI\": {bad}"),
            &format!("VNI {bad} is not a number from 0 to 16777215\nhint: for example \"VNI\": 1"),
        );
    }
    check(
        r#""Port": 65536"#,
        "Port 65536 is not a UDP port, 1 to 65535, or 0 for the kernel's default\nhint: for example \"Port\": 8472",
    );
    check(
        r#""MTU": 1349"#,
        "MTU 1349 is too small to hold an encapsulated packet\n\
         hint: use at least 1350, or leave it out for the external interface's MTU",
    );
    check(r#""GBP": 1"#, "GBP 1 is not true or false\nhint: for example \"GBP\": true");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,80}", network in "[0-9a-f.:/]{0,20}", len in any::<i64>()) {
        let _ = NetworkConfig::parse(&text, ConfigRules::Etcd);
        let _ = NetworkConfig::parse(&with(&format!(r#""Network": "{network}", "SubnetLen": {len}"#)), ConfigRules::Etcd);
    }

    #[test]
    fn what_is_handed_out_fits(address in any::<u32>(), prefix in 0u8..=28, more in 2u8..=32, random in any::<u64>()) {
        let network = IpNet::new(std::net::Ipv4Addr::from_bits(address).into(), prefix).unwrap();
        let len = (prefix + more).min(30);
        let (config, _) = parse(&with(&format!(r#""Network": "{network}", "SubnetLen": {len}"#)), ConfigRules::Etcd);
        let drawn = config.subnets.v4.unwrap().draw(&[], random).unwrap();
        prop_assert!(config.fits(&Dual::of_nets([drawn])));
        prop_assert!(network.contains(&drawn));
    }
}
