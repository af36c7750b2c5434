//! What holds for every lease record, its key and every network config, however broken: the laws that the fuzz targets of `fuzz/`
//! look for breaches of.
//!
//! Surface: [`ALL`]. A law takes any bytes and panics where it is broken. The input of [`ALL`]'s `record` is a key and a text with
//! `|` between them, so that the corpus can be read by people.

use ipnet::IpNet;

use crate::addr::{Dual, Family, Mac, Mtu, overlap};
use crate::config::{ConfigRules, NetworkConfig};
use crate::diff::Owner;
use crate::facts::RouteFact;
use crate::lease::{Attributes, LeaseEvent, LeaseKey, Record, Since};
use crate::lease_set::LeaseSet;
use crate::node::{External, Node, RuleSwitches};
use crate::plan::{Ground, Plan, Replan};
use crate::record::{self, SubnetKey, claimed_by};
use crate::rules::RuleMode;
use crate::state::Key;

/// A law for any bytes.
pub type Law = fn(&[u8]);

/// Every law, by the name of its fuzz target.
pub const ALL: [(&str, Law); 2] = [("record", lease_record), ("network-config", network_config)];

const DUAL: &str =
    r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8:42::/56","Backend":{"Type":"vxlan"}}"#;
const OWN: &str = "10.244.1.0-24&2001:db8:42:1::-64";
const NEIGHBOUR: &str = "10.244.2.0-24&2001:db8:42:2::-64";

/// What people are told is on one line, neither empty nor endless.
fn is_told(text: &str) {
    assert!(!text.is_empty() && text.len() <= 1000, "{} bytes: {text:?}", text.len());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// A record is read or named, and reads back; whatever it says, a neighbour and this node keep what they have, and it gets nothing
/// that would cut this node off.
fn lease_record(input: &[u8]) {
    let (key, text) = input.split_at(input.iter().position(|byte| *byte == b'|').unwrap_or(input.len()));
    let key = LeaseKey::new(String::from_utf8_lossy(&key[..key.len().min(200)]));
    is_told(&format!("lease {key}"));
    let record = record::read(key, text.get(1..).unwrap_or_default(), Since { at: 9, tie: 0 });
    reads_back(&record, text.get(1..).unwrap_or_default());
    for text in [DUAL, &DUAL.replace("vxlan", "host-gw")] {
        harms_nobody(&record, text);
    }
}

fn reads_back(record: &Record, text: &[u8]) {
    let lease = match &record.lease {
        Ok(lease) => lease,
        Err(flaw) => return is_told(&format!("{}: {}", flaw.field, flaw.why)),
    };
    lease.flaws.iter().for_each(|flaw| is_told(&format!("{}: {}", flaw.field, flaw.why)));
    assert!(lease.public_ip.iter().all(|(family, ip)| claimed_by(text).get(family) == Some(ip)), "{lease:?}");
    let key = SubnetKey(lease.subnet).to_string();
    assert_eq!(key.parse(), Ok(SubnetKey(lease.subnet)));
    if !matches!(lease.attributes, Attributes::Other(_)) {
        let written = record::write(&lease.public_ip, &lease.attributes, None);
        let back = record::read(LeaseKey::new(key), written.as_bytes(), lease.since);
        let back = back.lease.expect("what we write can be read");
        assert_eq!(
            (&back.subnet, &back.public_ip, &back.attributes),
            (&lease.subnet, &lease.public_ip, &lease.attributes)
        );
    }
}

/// This node in a network, with its lease's subnets.
fn us(config: &NetworkConfig, subnet: Dual<IpNet>) -> Option<Node> {
    let name = "eth0".parse().ok()?;
    let external = |address: &str| {
        let address = address.parse().ok()?;
        Some(External { name, mtu: Mtu(1500), address, local: address })
    };
    let external = Dual { v4: external("192.0.2.1"), v6: external("2001:db8::1") };
    let external = Dual::from_fn(|family| config.network.get(family).and(external.get(family).cloned()));
    let underlay: Vec<IpNet> = ["192.0.2.0/24", "2001:db8::/64"].iter().filter_map(|net| net.parse().ok()).collect();
    Some(Node {
        public_ip: external.map(|_, external| external.address),
        subnet,
        macs: Dual::from_fn(|_| Some(Mac([2, 0, 0, 0, 0, 1]))),
        mtu: config.backend.mtu(&external).ok()?,
        routes: underlay
            .iter()
            .map(|net| RouteFact { destination: *net, gateway: None, dev: name, metric: 0 })
            .collect(),
        underlay,
        rules: RuleSwitches { forward: true, blackhole: true, masquerade: None },
        rule_mode: RuleMode::Nftables,
        warnings: Vec::new(),
        external,
    })
}

/// A record of a host of ours that is in order.
fn sound(key: &str, host: u8, backend: &str) -> Record {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:0{host}"}}"#);
    let text = format!(
        r#"{{"PublicIP":"192.0.2.{host}","PublicIPv6":"2001:db8::{host}","BackendType":"{backend}","BackendData":{data},"BackendV6Data":{data}}}"#
    );
    record::read(LeaseKey::new(key), text.as_bytes(), Since { at: host.into(), tie: 0 })
}

fn harms_nobody(record: &Record, text: &str) {
    if [OWN, NEIGHBOUR].contains(&record.key.as_str()) {
        return;
    }
    let config = NetworkConfig::parse(text, ConfigRules::Etcd).expect("a sound config").0;
    let sound = |key, host| sound(key, host, config.backend.type_name());
    let own = sound(OWN, 1);
    let subnet = own.lease.as_ref().expect("a sound record").subnet;
    let node = us(&config, subnet).expect("a node");
    let key = own.key.clone();
    let mut leases: LeaseSet = [own, sound(NEIGHBOUR, 2)].into_iter().collect();
    let before = Plan::whole(&Ground { config: &config, node: &node, leases: &leases, own: Some(&key) });
    assert!(before.skipped.is_empty(), "{:?}", before.skipped);
    let touched = leases.apply(LeaseEvent::Put(record.clone()));
    let ground = Ground { config: &config, node: &node, leases: &leases, own: Some(&key) };
    let after = Plan::whole(&ground);
    let (theirs, others): (Vec<_>, Vec<_>) =
        after.want.iter().partition(|(_, wanted)| wanted.owner == Owner::Peer(record.key.clone()));
    assert!(others.into_iter().eq(&before.want), "{record:?}");
    assert!(theirs.iter().all(|(object, _)| cuts_nobody_off(object, &node, &config)), "{record:?}");
    let remarks = after.skipped.get(&record.key).map(Vec::as_slice).unwrap_or_default();
    for remark in remarks {
        is_told(&remark.to_string());
    }
    assert!(!theirs.is_empty() || !remarks.is_empty(), "dropped without a word: {record:?}");
    let replan = Replan::of(&ground, &touched);
    assert_eq!(replan.skipped.get(&record.key).map(Vec::as_slice).unwrap_or_default(), remarks);
}

/// Whether an object of a peer's leaves alone what is ours, or elsewhere.
fn cuts_nobody_off(object: &Key, node: &Node, config: &NetworkConfig) -> bool {
    let Key::Route(to, _) = object else { return true };
    let kept = node.subnet.values().chain(&node.underlay);
    config.network.values().any(|network| network.contains(to)) && !kept.into_iter().any(|net| overlap(*net, *to))
}

/// A config is read or refused in words, and what it allows lies in its networks.
fn network_config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for rules in [ConfigRules::Etcd, ConfigRules::Kube] {
        match NetworkConfig::parse(text, rules) {
            Ok((config, warnings)) => {
                for warning in warnings {
                    is_told(&warning.to_string());
                }
                is_sound(&config, rules, input.len() as u64);
            }
            Err(error) => is_told(&format!("{error} (hint: {})", error.hint())),
        }
    }
}

fn is_sound(config: &NetworkConfig, rules: ConfigRules, random: u64) {
    assert!(!config.network.is_empty());
    assert!(config.network.iter().all(|(family, net)| Family::of_net(*net) == family && *net == net.trunc()));
    assert_eq!(config.subnets.families().count() == 0, rules == ConfigRules::Kube);
    let subnet = config.subnets.map(|family, range| {
        let subnet = range.draw(&[], random).expect("an empty network has a free subnet");
        assert!(config.network.get(family).is_some_and(|network| network.contains(&subnet)), "{subnet}");
        assert!(range.draw(&[subnet], random).is_none_or(|other| !overlap(subnet, other)));
        subnet
    });
    assert!(rules == ConfigRules::Kube || config.fits(&subnet));
    if let Some(node) = us(config, subnet) {
        let leases = LeaseSet::default();
        let plan = Plan::whole(&Ground { config, node: &node, leases: &leases, own: None });
        assert!(plan.skipped.is_empty() && plan.want.iter().all(|(_, wanted)| wanted.owner == Owner::Node));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    /// The committed inputs of a law.
    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files.map(|file| fs::read(file).unwrap()).collect()
    }

    /// An input of the corpus with some of its pieces taken out, put in from another, or spoilt.
    fn mutations(corpus: &[Vec<u8>]) -> impl Strategy<Value = Vec<u8>> + use<> {
        let cut = |text: &[u8], at: Index, most: usize| {
            let at = at.index(text.len() + 1);
            at..(at + most).min(text.len())
        };
        let piece = (select(corpus.to_vec()), any::<Index>(), 0..12_usize);
        let piece = piece.prop_map(move |(text, at, most)| text[cut(&text, at, most)].to_vec());
        let splice = (any::<Index>(), 0..12_usize, prop_oneof![piece, vec(any::<u8>(), 0..2)]);
        (select(corpus.to_vec()), vec(splice, 0..5)).prop_map(move |(mut text, splices)| {
            for (at, most, new) in splices {
                text.splice(cut(&text, at, most), new);
            }
            text
        })
    }

    #[test]
    fn the_corpus_and_what_is_made_of_it_breaks_no_law() {
        for (name, law) in ALL {
            let corpus = corpus(name);
            assert!(!corpus.is_empty(), "{name} has no corpus");
            for input in &corpus {
                law(input);
            }
            let mut runner = proptest::test_runner::TestRunner::default();
            let run = runner.run(&mutations(&corpus), |input| {
                law(&input);
                Ok(())
            });
            run.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}
