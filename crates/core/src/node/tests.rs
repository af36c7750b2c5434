//! Which interface, which addresses, which claim; and each refusal as the text a person reads.

use super::*;
use crate::config::ConfigRules;

/// A host with two interfaces and a default route through the first.
fn host() -> Facts {
    Facts {
        links: vec![
            link(2, "eth0", 1500, &["192.0.2.10/24", "fe80::10/64", "2001:db8::10/64"]),
            link(3, "eth1", 9000, &["198.51.100.10/24"]),
        ],
        routes: vec![
            route("0.0.0.0/0", Some("192.0.2.1"), "eth0"),
            route("192.0.2.0/24", None, "eth0"),
            route("198.51.100.0/24", None, "eth1"),
            route("203.0.113.0/24", Some("192.0.2.1"), "eth0"),
            route("::/0", Some("2001:db8::1"), "eth0"),
        ],
        own_macs: std::collections::BTreeMap::new(),
        reach: None,
        fresh_macs: Dual { v4: Some(Mac::local([4; 6])), v6: Some(Mac::local([6; 6])) },
        only_nftables: false,
    }
}

fn link(index: u32, name: &str, mtu: u32, addresses: &[&str]) -> LinkFact {
    let address = |text: &&str| {
        let net: IpNet = text.parse().unwrap();
        let global = !text.starts_with("fe80");
        AddressFact { net, global, permanent: true, temporary: false, deprecated: false }
    };
    LinkFact {
        index,
        name: name.parse().unwrap(),
        kind: "veth".into(),
        mtu: Mtu(mtu),
        mac: None,
        up: true,
        addresses: addresses.iter().map(address).collect(),
    }
}

fn route(destination: &str, gateway: Option<&str>, dev: &str) -> RouteFact {
    RouteFact {
        destination: destination.parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        dev: dev.parse().unwrap(),
        metric: 0,
    }
}

fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text, ConfigRules::Etcd).unwrap().0
}

fn vxlan() -> NetworkConfig {
    config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#)
}

fn dual() -> NetworkConfig {
    config(
        r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8:42::/56","Backend":{"Type":"vxlan"}}"#,
    )
}

/// `interface address public mtu` of each family, and the warnings.
fn chosen(choice: ExternalChoice, config: &NetworkConfig, facts: &Facts) -> String {
    let options = Options { external: choice, ..Options::default() };
    let node = match node(&options, config, facts, None) {
        Ok(node) => node,
        Err(error) => return format!("error: {error}"),
    };
    let family = |(family, external): (Family, &External)| {
        let public = node.public_ip.get(family).unwrap();
        let mtu = node.mtu.get(family).unwrap();
        format!("{} {} local {} public {public} mtu {mtu}", external.name, external.address, external.local)
    };
    let lines = node.external.iter().map(family).chain(node.warnings.iter().map(|w| format!("warning: {w}")));
    lines.collect::<Vec<_>>().join("\n")
}

fn names(names: &[&str]) -> ExternalChoice {
    let choice = |name: &&str| match name.parse() {
        Ok(address) => InterfaceChoice::Address(address),
        Err(_) => InterfaceChoice::Name(name.parse().unwrap()),
    };
    ExternalChoice { interfaces: names.iter().map(choice).collect(), ..ExternalChoice::default() }
}

fn pattern(pattern: &str) -> ExternalChoice {
    ExternalChoice { patterns: vec![Regex::new(pattern).unwrap()], ..ExternalChoice::default() }
}

fn public(address: &str) -> ExternalChoice {
    ExternalChoice { public: Dual { v4: Some(address.parse().unwrap()), v6: None }, ..ExternalChoice::default() }
}

#[test]
fn the_external_interface_is_found_as_documented() {
    let eth0 = "eth0 192.0.2.10 local 192.0.2.10 public 192.0.2.10 mtu 1450";
    let eth1 = "eth1 198.51.100.10 local 198.51.100.10 public 198.51.100.10 mtu 8950";
    let check = |choice, expect: &str| assert_eq!(chosen(choice, &vxlan(), &host()), expect);
    check(ExternalChoice::default(), eth0);
    check(names(&["eth1"]), eth1);
    check(names(&["198.51.100.10"]), eth1);
    check(names(&["nope", "eth1", "eth0"]), eth1);
    check(pattern("th1$"), eth1);
    check(pattern(r"^198\.51"), eth1);
    check(public("198.51.100.10"), eth1);
    check(
        pattern("eth"),
        &format!("{eth0}\nwarning: several interfaces match for IPv4 (eth0, eth1): the first is taken, eth0"),
    );
    check(names(&["nope"]), "error: no interface matches --iface=nope (here are: eth0, eth1)");
    check(
        public("203.0.113.99"),
        "eth0 192.0.2.10 local 192.0.2.10 public 203.0.113.99 mtu 1450\nwarning: public address 203.0.113.99 is on no \
         interface of this host (NAT?): it is published, and packets leave by the default route's interface",
    );
}

#[test]
fn can_reach_takes_the_interface_of_the_kernels_source_address() {
    let target = "203.0.113.9".parse().unwrap();
    let choice = ExternalChoice { can_reach: Some(target), ..ExternalChoice::default() };
    let facts = Facts { reach: Some("198.51.100.10".parse().unwrap()), ..host() };
    assert!(chosen(choice.clone(), &vxlan(), &facts).starts_with("eth1 "));
    let error = "error: --iface-can-reach=203.0.113.9: the kernel has no route to it";
    assert_eq!(chosen(choice, &vxlan(), &host()), error);
}

#[test]
fn each_family_has_its_own_interface_address_and_mtu() {
    assert_eq!(
        chosen(ExternalChoice::default(), &dual(), &host()),
        "eth0 192.0.2.10 local 192.0.2.10 public 192.0.2.10 mtu 1450\n\
         eth0 2001:db8::10 local 2001:db8::10 public 2001:db8::10 mtu 1430"
    );
    let node = node(&Options::default(), &dual(), &host(), None).unwrap();
    assert_eq!(node.least_mtu(), Mtu(1430), "FLANNEL_MTU is the smallest device's");
    assert_eq!(
        chosen(names(&["eth1"]), &dual(), &host()),
        "error: interface eth1 has no usable IPv6 address, and the network has IPv6 enabled"
    );
    let mut facts = host();
    facts.routes.retain(|route| route.destination.prefix_len() != 0);
    assert_eq!(
        chosen(ExternalChoice::default(), &vxlan(), &facts),
        "error: no default route: cannot tell the external interface"
    );
}

#[test]
fn the_best_address_is_global_permanent_lasting_and_never_deprecated() {
    let address = |text: &str, global, permanent, temporary, deprecated| AddressFact {
        net: text.parse().unwrap(),
        global,
        permanent,
        temporary,
        deprecated,
    };
    let mut eth0 = link(2, "eth0", 1500, &[]);
    let mut best = |addresses: &[AddressFact]| {
        eth0.addresses = addresses.to_vec();
        best_address(&eth0, Family::V6).map(|address| address.to_string())
    };
    let deprecated = address("2001:db8::1/64", true, true, false, true);
    let local = address("fe80::1/64", false, true, false, false);
    let temporary = address("2001:db8::2/64", true, false, true, false);
    let dynamic = address("2001:db8::3/64", true, false, false, false);
    let permanent = address("2001:db8::4/64", true, true, false, false);
    assert_eq!(best(&[deprecated]), None);
    assert_eq!(best(&[deprecated, local]).unwrap(), "fe80::1");
    assert_eq!(best(&[local, temporary]).unwrap(), "2001:db8::2");
    assert_eq!(best(&[local, temporary, dynamic]).unwrap(), "2001:db8::3");
    assert_eq!(best(&[local, temporary, dynamic, permanent]).unwrap(), "2001:db8::4");
}

#[test]
fn a_link_too_small_for_pods_is_refused() {
    let mut facts = host();
    facts.links[0].mtu = Mtu(1300);
    assert_eq!(
        chosen(ExternalChoice::default(), &dual(), &facts),
        "error: eth0 has MTU 1300, which leaves 1230 for pods: less than IPv6 needs (1280)"
    );
}

#[test]
fn an_mtu_that_the_interface_does_not_carry_is_cut_as_the_kernel_does() {
    let of = |mtu: u32| config(&format!(r#"{{"Network":"10.244.0.0/16","Backend":{{"Type":"vxlan","MTU":{mtu}}}}}"#));
    let eth0 = "eth0 192.0.2.10 local 192.0.2.10 public 192.0.2.10 mtu";
    assert_eq!(chosen(ExternalChoice::default(), &of(1400), &host()), format!("{eth0} 1350"));
    let warning = "network config: Backend.MTU 9000 is more than eth0 carries: its MTU, 1500, is used";
    assert_eq!(chosen(ExternalChoice::default(), &of(9000), &host()), format!("{eth0} 1450\nwarning: {warning}"));
}

/// What no peer's subnet may overlap.
fn kept_free(facts: &Facts) -> Vec<String> {
    let node = node(&Options::default(), &vxlan(), facts, None).unwrap();
    node.underlay.iter().map(ToString::to_string).collect()
}

#[test]
fn no_peer_may_have_what_this_nodes_way_to_others_rests_on() {
    let mut facts = host();
    facts.links.truncate(1);
    facts.routes.retain(|route| route.dev == facts.links[0].name);
    facts.links.push(LinkFact { kind: "bridge".into(), ..link(4, "cni0", 1450, &["10.244.7.1/24"]) });
    facts.links.push(LinkFact { kind: "bond".into(), ..link(5, "bond0", 1500, &["203.0.113.10/25"]) });
    assert_eq!(
        kept_free(&facts),
        [
            "192.0.2.0/24",
            "192.0.2.1/32",
            "192.0.2.10/32",
            "203.0.113.0/25",
            "203.0.113.10/32",
            "2001:db8::/64",
            "2001:db8::1/128",
            "2001:db8::10/128"
        ]
    );
}

#[test]
fn of_a_lan_around_the_pod_network_only_hosts_are_kept_free() {
    let mut facts = host();
    facts.links = vec![link(2, "eth0", 1500, &["10.1.2.3/8"])];
    facts.routes = vec![route("0.0.0.0/0", Some("10.0.0.1"), "eth0"), route("10.0.0.0/8", None, "eth0")];
    assert_eq!(kept_free(&facts), ["10.0.0.1/32", "10.1.2.3/32"]);
}

#[test]
fn host_gw_needs_the_interfaces_own_address() {
    let host_gw = config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}"#);
    assert!(chosen(ExternalChoice::default(), &host_gw, &host()).ends_with("mtu 1500"));
    assert_eq!(
        chosen(public("203.0.113.99"), &host_gw, &host()),
        "error: backend host-gw: public address 203.0.113.99 is not the address of eth0 (192.0.2.10)"
    );
}

#[test]
fn the_leases_mac_wins_over_the_devices_and_that_over_a_fresh_one() {
    let mac = |node: Node| node.macs.v4.unwrap();
    let of = |facts: &Facts, own: Option<&Lease>| node(&Options::default(), &vxlan(), facts, own).unwrap();
    assert_eq!(mac(of(&host(), None)), Mac::local([4; 6]));
    let mut facts = host();
    facts.own_macs.insert("flannel.1".parse().unwrap(), Mac([2, 0, 0, 0, 0, 9]));
    assert_eq!(mac(of(&facts, None)), Mac([2, 0, 0, 0, 0, 9]));
    let vtep = crate::lease::Vtep { vni: crate::addr::Vni::new(1).unwrap(), mac: Mac([2, 0, 0, 0, 0, 7]) };
    let lease = Lease {
        subnet: Dual { v4: Some("10.244.1.0/24".parse().unwrap()), v6: None },
        public_ip: Dual::default(),
        attributes: crate::lease::Attributes::Vxlan(Dual { v4: Some(vtep), v6: None }),
        since: crate::lease::Since::default(),
        flaws: Vec::new(),
    };
    assert_eq!(mac(of(&facts, Some(&lease))), vtep.mac);
}

#[test]
fn on_link_means_no_gateway_on_the_longest_prefix() {
    let node = node(&Options::default(), &vxlan(), &host(), None).unwrap();
    let on_link = |address: &str| node.is_on_link(address.parse().unwrap());
    assert!(on_link("192.0.2.77"));
    assert!(!on_link("203.0.113.7"), "behind a router");
    assert!(!on_link("198.51.100.7"), "on the link of an interface that is not the external one");
    assert!(!on_link("8.8.8.8"));
}

#[test]
fn a_host_without_iptables_has_its_rules_in_nf_tables_and_is_told_so_if_the_network_says_otherwise() {
    let nftables = config(r#"{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#);
    let of = |config: &NetworkConfig, only_nftables| {
        let node = node(&Options::default(), config, &Facts { only_nftables, ..host() }, None).unwrap();
        (node.rule_mode, node.warnings.len())
    };
    assert_eq!(of(&vxlan(), false), (RuleMode::Iptables, 0));
    assert_eq!(of(&vxlan(), true), (RuleMode::Nftables, 1));
    assert_eq!(of(&nftables, false), (RuleMode::Nftables, 0));
    assert_eq!(of(&nftables, true), (RuleMode::Nftables, 0));
}
