//! What the kernel must hold: one part for this node, one for each lease. Pure and total: a lease that cannot be
//! programmed is [`Skipped`] with its reason and never stands in the way of another.
//!
//! What other leases hold is judged by [`LeaseSet`]'s order ([`crate::lease::Since`]), never by arrival, and only by leases
//! that are sound in themselves, so that the plan is the same whatever order the events came in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::addr::{Family, overlap};
use crate::config::NetworkConfig;
use crate::diff::{Owner, Want, Wanted};
use crate::lease::{Lease, LeaseKey, Since};
use crate::lease_set::LeaseSet;
use crate::node::Node;
use crate::objects::Rewant;
use crate::rules::{PodNetworks, RuleOptions, ruleset};
use crate::state::{Key, Route, Value};

/// All that planning looks at.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// The network.
    pub config: &'a NetworkConfig,
    /// This node, with its own lease's subnets.
    pub node: &'a Node,
    /// All leases, our own included.
    pub leases: &'a LeaseSet,
    /// The key of our own lease, once held.
    pub own: Option<&'a LeaseKey>,
}

/// What we want, and what we do not do and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The wanted objects with their owners.
    pub want: Want,
    /// By lease, what is not programmed or looks wrong.
    pub skipped: BTreeMap<LeaseKey, Vec<Skipped>>,
}

/// Why a lease, or one family of it, is not programmed; or, for a warning, what looks wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The field of the record, as the record spells it.
    pub field: String,
    /// What is wrong, naming the other side of a conflict.
    pub why: String,
    /// It is programmed all the same.
    pub warning: bool,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}{}", self.field, self.why, if self.warning { " (programmed all the same)" } else { "" })
    }
}

impl Skipped {
    /// A reason to skip.
    pub fn refuse(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into(), warning: false }
    }

    /// A reason to warn.
    pub fn warn(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into(), warning: true }
    }
}

impl Plan {
    /// Plans everything.
    pub fn whole(ground: &Ground) -> Self {
        let mut skipped = BTreeMap::new();
        let own = plan_node(ground).into_iter().map(|(key, value)| (key, Wanted { value, owner: Owner::Node }));
        let of_peers = ground.leases.iter().flat_map(|(key, _)| {
            let owner = Owner::Peer(key.clone());
            let objects = plan_lease(ground, key, &mut skipped).into_iter();
            objects.map(move |(key, value)| (key, Wanted { value, owner: owner.clone() }))
        });
        let mut objects: Vec<(Key, Wanted)> = own.chain(of_peers).collect();
        // Leases come in the order of their subnets. Apart by kind, most objects are in order too, and the map sorts little.
        objects.sort_by_key(|(key, _)| key.kind());
        // All at once: a map that is filled one by one is a third empty.
        Self { want: objects.into_iter().collect(), skipped }
    }
}

/// What some leases want now, and what is not programmed of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replan {
    /// For each of the leases what it wants.
    pub want: Rewant,
    /// By lease, what is not programmed or looks wrong.
    pub skipped: BTreeMap<LeaseKey, Vec<Skipped>>,
}

impl Replan {
    /// Plans the named leases again. In the place of what was planned for them before it makes a plan that of
    /// [`Plan::whole`], if they are all that [`LeaseSet::apply`] named and nothing else on the ground changed.
    pub fn of(ground: &Ground, touched: &BTreeSet<LeaseKey>) -> Self {
        let mut skipped = BTreeMap::new();
        let want = touched.iter().map(|key| (key.clone(), plan_lease(ground, key, &mut skipped))).collect();
        Self { want, skipped }
    }
}

/// What a lease wants; the remarks on it go to `skipped`.
fn plan_lease(ground: &Ground, key: &LeaseKey, skipped: &mut BTreeMap<LeaseKey, Vec<Skipped>>) -> Vec<(Key, Value)> {
    let mut peer = PeerPlan::default();
    let is_peer = ground.own != Some(key) && ground.config.backend.has_peers();
    match ground.leases.record(key).filter(|_| is_peer) {
        Some(Ok(lease)) => plan_peer(ground, key, lease, &mut peer),
        Some(Err(flaw)) => peer.remarks.push(Skipped::refuse(flaw.field.clone(), flaw.why.clone())),
        None => {}
    }
    if !peer.remarks.is_empty() {
        skipped.insert(key.clone(), peer.remarks);
    }
    peer.objects
}

/// The objects of one lease and the remarks on it.
#[derive(Debug, Default)]
pub struct PeerPlan {
    /// What to program.
    pub objects: Vec<(Key, Value)>,
    /// What is skipped or looks wrong.
    pub remarks: Vec<Skipped>,
}

/// One family of a peer whose subnet and public IP are in order: what a backend plans for.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// Its lease's key.
    pub key: &'a LeaseKey,
    /// Its lease.
    pub lease: &'a Lease,
    /// The family in question.
    pub family: Family,
    /// Its subnet.
    pub subnet: IpNet,
    /// Its public address.
    pub public_ip: IpAddr,
}

impl<'a> Peer<'a> {
    /// The name of the record's field for the public address.
    pub fn public_ip_field(&self) -> &'static str {
        public_ip_field(self.family)
    }

    /// Another lease before this one in the order that has the same public address.
    pub fn earlier_at_address(&self, ground: &'a Ground) -> Option<&'a LeaseKey> {
        self.earliest(ground, ground.leases.at_address(self.public_ip, self.place()))
    }

    /// Its place in the order of leases.
    pub fn place(&self) -> (Since, &'a LeaseKey) {
        (self.lease.since, self.key)
    }

    /// The first of some leases, given in their order, that counts; ours does not.
    pub fn earliest(
        &self,
        ground: &Ground,
        mut others: impl Iterator<Item = (&'a LeaseKey, &'a Lease)>,
    ) -> Option<&'a LeaseKey> {
        others.find(|(key, lease)| counts(ground, key, lease, self.family)).map(|(key, _)| key)
    }
}

/// The field of a record that holds a family's public address.
pub fn public_ip_field(family: Family) -> &'static str {
    match family {
        Family::V4 => "PublicIP",
        Family::V6 => "PublicIPv6",
    }
}

fn plan_node(ground: &Ground) -> Vec<(Key, Value)> {
    let Ground { config, node, .. } = ground;
    let mut objects = config.backend.plan_node(node);
    if node.rules.blackhole {
        objects
            .extend(node.subnet.values().map(|subnet| (Route::blackhole_key(*subnet), Value::Route(Route::Blackhole))));
    }
    let pods = PodNetworks::of(&config.network, &node.subnet);
    objects.extend(Family::ALL.into_iter().filter_map(|family| rules(pods.get(family).copied(), node, family)));
    objects
}

fn rules(networks: Option<PodNetworks>, node: &Node, family: Family) -> Option<(Key, Value)> {
    let options = RuleOptions {
        mode: node.rule_mode,
        ip_masq: node.rules.masquerade.is_some(),
        fully_random: node.rules.masquerade.is_some_and(|masquerade| masquerade.fully_random),
        forward: node.rules.forward,
    };
    let rules = ruleset(networks, options)?;
    Some((Key::Rules(node.rule_mode, family), Value::Rules(Box::new(rules))))
}

fn plan_peer(ground: &Ground, key: &LeaseKey, lease: &Lease, plan: &mut PeerPlan) {
    plan.remarks.extend(lease.flaws.iter().map(|flaw| Skipped::refuse(flaw.field.clone(), flaw.why.clone())));
    if let Some(refusal) = ground.config.backend.speaks(&lease.attributes) {
        plan.remarks.push(refusal);
        return;
    }
    for (family, subnet) in lease.subnet.iter().filter(|(family, _)| ground.node.subnet.get(*family).is_some()) {
        match reachable(ground, key, lease, family, *subnet) {
            Ok(peer) => ground.config.backend.plan_peer(ground, &peer, plan),
            Err(refusal) => plan.remarks.push(refusal),
        }
    }
}

/// The checks that hold for every backend.
fn reachable<'a>(
    ground: &Ground,
    key: &'a LeaseKey,
    lease: &'a Lease,
    family: Family,
    subnet: IpNet,
) -> Result<Peer<'a>, Skipped> {
    check_subnet(ground, family, subnet)?;
    let public_ip = check_public_ip(lease, family, subnet)?;
    match earlier(ground, key, lease, family, ground.leases.overlapping(subnet)) {
        Some(other) => Err(Skipped::refuse("subnet", format!("{subnet} is held by the earlier lease {other}"))),
        None => Ok(Peer { key, lease, family, subnet, public_ip }),
    }
}

fn check_subnet(ground: &Ground, family: Family, subnet: IpNet) -> Result<(), Skipped> {
    let refuse = |why: String| Err(Skipped::refuse("subnet", why));
    let inside = |net: &IpNet| net.contains(&subnet) && *net != subnet;
    match ground.config.network.get(family) {
        Some(network) if !inside(network) => return refuse(format!("{subnet} is not inside the network {network}")),
        None => return refuse(format!("{subnet} is {family}, which the network does not have")),
        Some(_) => {}
    }
    if let Some(own) = ground.node.subnet.get(family).filter(|own| overlap(**own, subnet)) {
        return refuse(format!("{subnet} overlaps this node's own subnet {own}"));
    }
    match ground.node.underlay.iter().find(|net| overlap(**net, subnet)) {
        Some(net) => refuse(format!("{subnet} covers {net}, which this node needs to reach other hosts")),
        None => Ok(()),
    }
}

fn check_public_ip(lease: &Lease, family: Family, subnet: IpNet) -> Result<IpAddr, Skipped> {
    let refuse = |why: String| Err(Skipped::refuse(public_ip_field(family), why));
    let Some(address) = lease.public_ip.get(family).copied() else {
        return refuse("missing".into());
    };
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return refuse(format!("{address} is no host's address"));
    }
    if subnet.contains(&address) {
        return refuse(format!("{address} lies in the lease's own subnet {subnet}"));
    }
    Ok(address)
}

/// The first of `others` that comes before `lease` in the order of leases and is sound in itself.
fn earlier<'a>(
    ground: &Ground,
    key: &LeaseKey,
    lease: &Lease,
    family: Family,
    others: impl Iterator<Item = (&'a LeaseKey, &'a Lease)>,
) -> Option<&'a LeaseKey> {
    others
        .filter(|(other_key, other)| {
            (other.since, *other_key) < (lease.since, key) && counts(ground, other_key, other, family)
        })
        .min_by_key(|(other_key, other)| (other.since, *other_key))
        .map(|(other_key, _)| other_key)
}

/// Whether a lease is another's and sound in itself.
fn counts(ground: &Ground, key: &LeaseKey, lease: &Lease, family: Family) -> bool {
    if ground.own == Some(key) {
        return false;
    }
    let Some(subnet) = lease.subnet.get(family) else { return false };
    check_subnet(ground, family, *subnet).is_ok() && check_public_ip(lease, family, *subnet).is_ok()
}

#[cfg(test)]
mod tests;
