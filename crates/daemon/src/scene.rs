//! What the scenarios of the reconciler and of the loop play on: a host, its peers as records, and text of what is held.

use flannel_core::addr::{Dual, LinkName, Mac, Mtu};
use flannel_core::config::{ConfigRules, NetworkConfig};
use flannel_core::diff::Want;
use flannel_core::facts::{AddressFact, Facts, LinkFact, RouteFact};
use flannel_core::lease::{LeaseEvent, LeaseKey, Record};
use flannel_core::lease_set::LeaseSet;
use flannel_core::node::{Options, RuleSwitches, node};
use flannel_core::plan::{Ground, Plan};
use flannel_core::record::read_sequenced;

pub(crate) const VXLAN: &str = r#"{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
pub(crate) const HOST_GW: &str = r#"{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"host-gw"}}"#;

pub(crate) fn name(text: &str) -> LinkName {
    text.parse().unwrap()
}

pub(crate) fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

/// A host at 192.0.2.N, which is on eth0, with a default route.
pub(crate) fn host(n: u8) -> Facts {
    let address = |net: &str| AddressFact {
        net: net.parse().unwrap(),
        global: true,
        permanent: true,
        temporary: false,
        deprecated: false,
    };
    let route = |destination: &str, gateway: Option<&str>| RouteFact {
        destination: destination.parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        dev: name("eth0"),
        metric: 0,
    };
    let eth0 = LinkFact {
        index: 2,
        name: name("eth0"),
        kind: "".into(),
        mtu: Mtu(1500),
        mac: Some(mac(200)),
        up: true,
        addresses: vec![address(&format!("192.0.2.{n}/24"))],
    };
    Facts {
        links: vec![eth0],
        routes: vec![route("192.0.2.0/24", None), route("0.0.0.0/0", Some("192.0.2.254"))],
        fresh_macs: Dual { v4: Some(mac(n)), v6: Some(mac(100 + n)) },
        ..Facts::default()
    }
}

pub(crate) fn key(n: u8) -> LeaseKey {
    LeaseKey::new(format!("10.244.{n}.0-24"))
}

/// The record under a key as its text says.
pub(crate) fn record(key: &str, text: &str) -> Record {
    read_sequenced(LeaseKey::new(key), text.as_bytes())
}

/// The record of the vxlan host 192.0.2.N with the MAC N, which holds 10.244.N.0/24.
pub(crate) fn peer(n: u8) -> Record {
    peer_with_mac(n, n)
}

pub(crate) fn peer_with_mac(n: u8, last: u8) -> Record {
    let mac = mac(last);
    let data = format!(r#""BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}"#);
    record(key(n).as_str(), &format!(r#"{{"PublicIP":"192.0.2.{n}",{data},"Sequence":{n}}}"#))
}

/// The record of the host-gw host 192.0.2.N.
pub(crate) fn gateway(n: u8) -> Record {
    let text = format!(r#"{{"PublicIP":"192.0.2.{n}","BackendType":"host-gw","Sequence":{n}}}"#);
    record(key(n).as_str(), &text)
}

pub(crate) fn parse(config: &str) -> NetworkConfig {
    NetworkConfig::parse(config, ConfigRules::Etcd).unwrap().0
}

/// What host 1 wants in a network with these peers.
pub(crate) fn want(config: &str, peers: impl IntoIterator<Item = Record>) -> Want {
    let (config, own) = (parse(config), peer(1));
    let rules = RuleSwitches { forward: true, ..RuleSwitches::default() };
    let options = Options { rules, ..Options::default() };
    let node = node(&options, &config, &host(1), own.lease.as_deref().ok()).unwrap();
    let mut leases = LeaseSet::default();
    leases.apply(LeaseEvent::Snapshot(peers.into_iter().chain([own]).collect()));
    Plan::whole(&Ground { config: &config, node: &node, leases: &leases, own: Some(&key(1)) }).want
}
