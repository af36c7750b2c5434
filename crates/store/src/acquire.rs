//! Which subnets a node acquires (compat §3), decided on what a store holds. Pure: stores read, ask, and write.
//!
//! [`choose`] is for a node that starts, [`regain`] for one that holds a lease already and must not move.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::addr::{Dual, Family, overlap};
use flannel_core::config::NetworkConfig;
use flannel_core::lease::{Attributes, Claim, Lease, LeaseKey, Since};
use flannel_core::record::{self, SubnetKey};
use ipnet::IpNet;

use crate::{Held, HoldError};

/// Whose a record is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Ours, from before.
    Ours,
    /// Of another host that claims our public IP; how to call it.
    Rival(String),
    /// Of any other host; how to call it, where that is known.
    Other(Option<String>),
}

/// A record as acquiring sees it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: LeaseKey,
    /// The [`parts`] of the network that its key names; they are taken even if the record cannot be read.
    pub(crate) subnet: Dual<IpNet>,
    pub(crate) lease: Option<Arc<Lease>>,
    pub(crate) whose: Whose,
}

/// What of a record's subnets are parts of a network. Elsewhere there is nothing to hold, and what covers all of the network would
/// leave nobody a subnet, whatever a record says.
pub(crate) fn parts(config: &NetworkConfig, subnets: &Dual<IpNet>) -> Dual<IpNet> {
    Dual::from_fn(|family| {
        let (network, subnet) = (config.network.get(family)?, subnets.get(family)?);
        (network.contains(subnet) && network != subnet).then_some(*subnet)
    })
}

impl Entry {
    fn since(&self) -> Since {
        self.lease.as_ref().map_or(Since::default(), |lease| lease.since)
    }

    /// How to call its owner.
    fn owner(&self) -> String {
        let public_ip = self.lease.as_ref().and_then(|lease| lease.public_ip.values().next());
        match (&self.whose, public_ip) {
            (Whose::Rival(by) | Whose::Other(Some(by)), _) => by.clone(),
            (_, Some(ip)) => format!("public IP {ip} (record {})", self.key),
            (_, None) => format!("record {}", self.key),
        }
    }

    fn overlaps(&self, subnets: &Dual<IpNet>) -> bool {
        subnets.iter().any(|(family, subnet)| self.subnet.get(family).is_some_and(|own| overlap(*own, *subnet)))
    }

    /// Whether this is another host's record that names our public IP or shares one of these subnets.
    pub(crate) fn disputes(&self, subnets: &Dual<IpNet>) -> bool {
        match self.whose {
            Whose::Ours => false,
            Whose::Rival(_) => true,
            Whose::Other(_) => self.overlaps(subnets),
        }
    }

    /// Whether this is another host's lease, older than `since`.
    fn is_elder(&self, since: Since) -> bool {
        self.whose != Whose::Ours && self.lease.is_some() && self.since() < since
    }
}

/// What to write so that we hold a lease.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) subnets: Dual<IpNet>,
    pub(crate) attributes: Attributes,
    /// The record that this one continues, under the same key or another, and its place in the order of leases.
    pub(crate) continues: Option<(LeaseKey, Since)>,
    /// Records of ours that fit the config no more.
    pub(crate) delete: Vec<LeaseKey>,
}

impl Choice {
    /// What we hold once it is written: the claim on these subnets, held since `sequence` (see [`record::sequenced`]).
    pub(crate) fn held(&self, claim: &Claim, sequence: u64) -> Held {
        let public_ip = |family: Family| claim.public_ip.get(family).copied().unwrap_or(family.unspecified());
        let lease = Lease {
            subnet: self.subnets,
            public_ip: self.subnets.map(|family, _| public_ip(family)),
            attributes: self.attributes.clone(),
            since: record::sequenced(&self.subnets, sequence),
            flaws: Vec::new(),
        };
        Held { key: LeaseKey::new(SubnetKey(self.subnets).to_string()), lease }
    }
}

/// Why a node gets no lease, or has it no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("no subnet of {network} is free for this node")]
    Full { network: IpNet },
    #[error("public IP {public_ip} of this host is held by {by}, as record {key}")]
    PublicIpTaken { public_ip: IpAddr, by: String, key: LeaseKey },
    #[error("our lease {key} is lost: its subnet is held by {by}")]
    Lost { key: LeaseKey, by: String },
}

impl Refusal {
    fn hint(&self) -> &'static str {
        match self {
            Self::Full { .. } => {
                "remove the records of nodes that are gone, or give the network config a larger Network or SubnetMax"
            }
            Self::PublicIpTaken { .. } => {
                "give one of the two hosts another --public-ip; if the other host is gone for good, remove its record"
            }
            Self::Lost { .. } => "start again to acquire another subnet; the pods of this node have to be made anew",
        }
    }
}

impl From<Refusal> for HoldError {
    fn from(refusal: Refusal) -> Self {
        Self::Never { cause: refusal.to_string(), hint: refusal.hint().to_owned() }
    }
}

/// Random numbers to spread daemons over free subnets, and over time; nothing secret depends on them.
pub(crate) fn random() -> Dual<u64> {
    Dual::from_fn(|_| Some(RandomState::new().build_hasher().finish()))
}

/// Between half a pause and all of it, so that daemons which lost a server together do not come back together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let share = random().v4.unwrap_or_default() % 1024;
    pause / 2 + pause.mul_f64(share as f64 / 2048.0)
}

/// Whether two hosts' public addresses name one host: by IPv4 where both have it, else by IPv6.
pub(crate) fn is_same_host(a: &Dual<IpAddr>, b: &Dual<IpAddr>) -> bool {
    match (a.v4.zip(b.v4), a.v6.zip(b.v6)) {
        (Some((a, b)), _) | (None, Some((a, b))) => a == b,
        (None, None) => false,
    }
}

/// Decides on a lease for a node that holds none. `random` picks among free subnets.
pub(crate) fn choose(
    config: &NetworkConfig,
    claim: &Claim,
    entries: &[Entry],
    random: Dual<u64>,
) -> Result<Choice, Refusal> {
    let is_ours = |entry: &&Entry| entry.whose == Whose::Ours;
    let (fitting, unfit): (Vec<_>, Vec<_>) =
        entries.iter().filter(is_ours).partition(|own| may_stay(config, own, entries));
    let own = fitting.into_iter().min_by_key(|entry| entry.since());
    refuse_younger(claim, own.map(Entry::since), entries)?;
    let delete: Vec<LeaseKey> = unfit.into_iter().map(|entry| entry.key.clone()).collect();
    let taken = |entry: &&Entry| own.is_none_or(|own| own.key != entry.key) && !delete.contains(&entry.key);
    let taken: Vec<&Entry> = entries.iter().filter(taken).collect();
    let kept = own.map_or_else(|| previous(config, claim, &taken), |own| own.subnet);
    let subnets = complete(config, &kept, &taken, random)?;
    let published = own.and_then(|own| Some(&own.lease.as_ref()?.attributes));
    let attributes = published.map_or_else(|| claim.attributes.clone(), |own| claim.attributes.keeping_macs(own));
    let continues = own.map(|own| (own.key.clone(), own.since()));
    Ok(Choice { subnets, attributes, continues, delete })
}

/// Decides for a node that holds a lease that fits the config: the same again, unless somebody else has it by now.
pub(crate) fn regain(held: &Held, claim: &Claim, entries: &[Entry]) -> Result<Choice, Refusal> {
    let Held { key, lease } = held;
    refuse_younger(claim, Some(lease.since), entries)?;
    let is_there = entries.iter().any(|entry| entry.key == *key && entry.whose == Whose::Ours);
    let is_lost_to = |entry: &&Entry| {
        entry.whose != Whose::Ours && entry.overlaps(&lease.subnet) && (!is_there || entry.is_elder(lease.since))
    };
    if let Some(entry) = entries.iter().find(is_lost_to) {
        return Err(Refusal::Lost { key: key.clone(), by: entry.owner() });
    }
    Ok(Choice {
        subnets: lease.subnet,
        attributes: claim.attributes.keeping_macs(&lease.attributes),
        continues: Some((key.clone(), lease.since)),
        delete: Vec::new(),
    })
}

/// Whether our record still may be ours: what it has of the families in use fits the config, and nobody older has it.
fn may_stay(config: &NetworkConfig, own: &Entry, entries: &[Entry]) -> bool {
    let is_had = |used| entries.iter().any(|other| other.is_elder(own.since()) && other.overlaps(&used));
    used(config, &own.subnet).is_some_and(|used| !is_had(used))
}

/// What a record has of the families in use, if all of that fits the config.
pub(crate) fn used(config: &NetworkConfig, subnet: &Dual<IpNet>) -> Option<Dual<IpNet>> {
    let used = Dual::from_fn(|family| config.network.get(family).and(subnet.get(family)).copied());
    (!used.is_empty() && used.values().all(|subnet| config.fits_family(*subnet))).then_some(used)
}

/// Of two hosts with one public IP the one with the older record stays.
fn refuse_younger(claim: &Claim, own: Option<Since>, entries: &[Entry]) -> Result<(), Refusal> {
    for entry in entries {
        let Whose::Rival(by) = &entry.whose else { continue };
        if own.is_none_or(|own| entry.since() < own) {
            let public_ip = claim.public_ip.values().next().copied().unwrap_or(Family::V4.unspecified());
            return Err(Refusal::PublicIpTaken { public_ip, by: by.clone(), key: entry.key.clone() });
        }
    }
    Ok(())
}

/// The subnets we had before, if all of them fit and are free.
fn previous(config: &NetworkConfig, claim: &Claim, taken: &[&Entry]) -> Dual<IpNet> {
    let free = !taken.iter().any(|entry| entry.overlaps(&claim.previous));
    if config.fits(&claim.previous) && free { claim.previous } else { Dual::default() }
}

/// One subnet for each family of the network: the one kept, else one drawn.
fn complete(
    config: &NetworkConfig,
    kept: &Dual<IpNet>,
    taken: &[&Entry],
    random: Dual<u64>,
) -> Result<Dual<IpNet>, Refusal> {
    Dual::try_from_fn(|family| {
        let Some(network) = config.network.get(family) else { return Ok(None) };
        if let Some(subnet) = kept.get(family) {
            return Ok(Some(*subnet));
        }
        let inside = |entry: &&Entry| entry.subnet.get(family).copied().filter(|subnet| network.contains(subnet));
        let taken: Vec<IpNet> = taken.iter().filter_map(inside).collect();
        let range = config.subnets.get(family);
        let drawn = range.and_then(|range| range.draw(&taken, *random.get(family).unwrap_or(&0)));
        drawn.map(Some).ok_or(Refusal::Full { network: *network })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flannel_core::config::ConfigRules;
    use flannel_core::record::read_sequenced;

    use super::*;

    const V4: &str = r#"{"Network": "10.1.0.0/22", "Backend": {"Type": "host-gw"}}"#;
    const DUAL: &str =
        r#"{"Network": "10.1.0.0/22", "EnableIPv6": true, "IPv6Network": "fc00::/60", "Backend": {"Type": "host-gw"}}"#;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text, ConfigRules::Etcd).unwrap().0
    }

    fn other(key: &str, sequence: u64) -> Entry {
        entry(key, sequence, Whose::Other(Some("host c".into())))
    }

    fn entry(key: &str, sequence: u64, whose: Whose) -> Entry {
        let text = format!(r#"{{"PublicIP":"192.0.2.9","PublicIPv6":"2001:db8::9","Sequence":{sequence}}}"#);
        let lease = read_sequenced(LeaseKey::new(key), text.as_bytes()).lease.ok();
        let subnet = parts(&config(DUAL), &key.parse::<SubnetKey>().unwrap().0);
        Entry { key: LeaseKey::new(key), subnet, lease, whose }
    }

    fn claim(previous: &[&str]) -> Claim {
        let previous = Dual::of_nets(previous.iter().map(|text| text.parse().unwrap()));
        let public_ip = Dual { v4: "192.0.2.1".parse().ok(), v6: None };
        Claim { public_ip, attributes: Attributes::HostGw, previous }
    }

    fn chosen(text: &str, claim: &Claim, entries: &[Entry]) -> String {
        summary(choose(&config(text), claim, entries, Dual { v4: Some(0), v6: Some(1) }))
    }

    /// The key, then `continues KEY` and `deletes KEY`; or the refusal.
    fn summary(choice: Result<Choice, Refusal>) -> String {
        match choice {
            Err(error) => error.to_string(),
            Ok(choice) => {
                let continues = choice.continues.map(|(key, _)| format!(" continues {key}")).unwrap_or_default();
                let deletes = choice.delete.iter().fold(String::new(), |text, key| format!("{text} deletes {key}"));
                format!("{}{continues}{deletes}", SubnetKey(choice.subnets))
            }
        }
    }

    #[test]
    fn the_order_of_acquiring() {
        let check = |text: &str, previous: &[&str], entries: &[Entry], expect: &str| {
            assert_eq!(chosen(text, &claim(previous), entries), expect);
        };
        let (one, two, three) = ("10.1.1.0-24", "10.1.2.0-24", "10.1.3.0-24");
        let ours = |key, sequence| entry(key, sequence, Whose::Ours);
        check(V4, &[], &[], one);
        check(V4, &["10.1.3.0/24"], &[other(one, 1)], three);
        check(V4, &["10.1.1.0/24"], &[other(one, 1)], two);
        check(V4, &["10.1.3.0/25"], &[], one);
        check(V4, &["10.1.3.0/24"], &[ours(two, 1)], "10.1.2.0-24 continues 10.1.2.0-24");
        check(V4, &[], &[ours(three, 5), ours(two, 1)], "10.1.2.0-24 continues 10.1.2.0-24");
        check(V4, &[], &[ours("10.9.0.0-24", 1)], "10.1.1.0-24 deletes 10.9.0.0-24");
        check(V4, &[], &[ours(two, 2), other("10.1.2.0-25", 1)], "10.1.1.0-24 deletes 10.1.2.0-24");
        check(V4, &[], &[ours(two, 2), other("10.1.2.0-25", 3)], "10.1.2.0-24 continues 10.1.2.0-24");
        check(
            V4,
            &[],
            &[other(one, 1), other(two, 2), other(three, 3)],
            "no subnet of 10.1.0.0/22 is free for this node",
        );
        for wide in ["10.0.0.0-8", "10.1.0.0-22", "0.0.0.0-1"] {
            check(V4, &["10.1.3.0/24"], &[other(wide, 1)], three);
            check(V4, &[], &[ours(two, 2), other(wide, 1)], "10.1.2.0-24 continues 10.1.2.0-24");
        }
        check(DUAL, &["10.1.3.0/24", "fc00:0:0:5::/64"], &[], "10.1.3.0-24&fc00:0:0:5::-64");
        check(DUAL, &["10.1.3.0/24"], &[], "10.1.1.0-24&fc00:0:0:2::-64");
        check(DUAL, &["10.1.3.0/24", "fc00:0:0:5::/64"], &[other(three, 1)], "10.1.1.0-24&fc00:0:0:2::-64");
    }

    #[test]
    fn a_lease_grows_and_shrinks_with_the_families() {
        let check = |text: &str, key: &str, expect: &str| {
            let expect = format!("{expect} continues {key}");
            assert_eq!(chosen(text, &claim(&[]), &[entry(key, 1, Whose::Ours)]), expect);
        };
        check(DUAL, "10.1.2.0-24", "10.1.2.0-24&fc00:0:0:2::-64");
        check(DUAL, "0.0.0.0-0&fc00:0:0:7::-64", "10.1.1.0-24&fc00:0:0:7::-64");
        check(V4, "10.1.2.0-24&fc00:0:0:7::-64", "10.1.2.0-24");
    }

    #[test]
    fn of_two_with_one_public_ip_the_younger_is_refused() {
        let rival = |sequence| entry("10.1.2.0-24", sequence, Whose::Rival("host b".into()));
        let own = entry("10.1.1.0-24", 5, Whose::Ours);
        let refused = "public IP 192.0.2.1 of this host is held by host b, as record 10.1.2.0-24";
        assert_eq!(chosen(V4, &claim(&[]), &[rival(4)]), refused);
        assert_eq!(chosen(V4, &claim(&[]), &[own.clone(), rival(4)]), refused);
        assert_eq!(chosen(V4, &claim(&[]), &[own, rival(6)]), "10.1.1.0-24 continues 10.1.1.0-24");
    }

    #[test]
    fn what_is_held_stays_or_is_lost() {
        let key = "10.1.1.0-24";
        let held = Held { key: LeaseKey::new(key), lease: entry(key, 5, Whose::Ours).lease.unwrap().as_ref().clone() };
        let check = |entries: &[Entry], expect: &str| {
            assert_eq!(summary(regain(&held, &claim(&[]), entries)), expect);
        };
        let own = || entry(key, 5, Whose::Ours);
        let rival = |sequence| entry("10.1.2.0-24", sequence, Whose::Rival("host b".into()));
        let (kept, lost) =
            ("10.1.1.0-24 continues 10.1.1.0-24", "our lease 10.1.1.0-24 is lost: its subnet is held by host c");
        check(&[], kept);
        check(&[own()], kept);
        check(&[other(key, 9)], lost);
        check(&[other("10.1.1.0-25", 9)], lost);
        check(&[own(), other("10.1.1.0-25", 9)], kept);
        check(&[own(), other("10.1.1.0-25", 4)], lost);
        check(&[own(), other("10.0.0.0-8", 4), other("10.1.0.0-22", 4)], kept);
        check(&[own(), rival(6)], kept);
        check(&[own(), rival(4)], "public IP 192.0.2.1 of this host is held by host b, as record 10.1.2.0-24");
        check(&[own(), entry("10.1.9.0-24", 1, Whose::Ours)], kept);
    }

    #[test]
    fn a_host_is_known_by_its_first_common_address() {
        let check = |a: &[&str], b: &[&str], expect| {
            let ips = |texts: &[&str]| {
                let ips: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
                Dual::from_fn(|family| ips.iter().copied().find(|ip| Family::of(*ip) == family))
            };
            assert_eq!(is_same_host(&ips(a), &ips(b)), expect, "{a:?} {b:?}");
        };
        check(&["192.0.2.1"], &["192.0.2.1"], true);
        check(&["192.0.2.1"], &["192.0.2.2"], false);
        check(&["192.0.2.1", "2001:db8::1"], &["192.0.2.2", "2001:db8::1"], false);
        check(&["192.0.2.1", "2001:db8::1"], &["2001:db8::1"], true);
        check(&["192.0.2.1"], &["2001:db8::1"], false);
        check(&[], &[], false);
    }

    #[test]
    fn pauses_are_spread() {
        let pauses: BTreeSet<Duration> = (0..50).map(|_| jittered(Duration::from_secs(1))).collect();
        assert!(pauses.len() > 25);
        assert!(pauses.iter().all(|pause| (500..=1000).contains(&pause.as_millis())));
    }
}
