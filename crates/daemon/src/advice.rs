//! What a person should know about the host's packet filter beside flannel's own rules.
//!
//! [`Advice::give`] speaks when the rule system is first used and when it changes: in iptables mode bridged packets have to pass
//! iptables. [`Advice::look`] finds what is wrong in the rules of others, which flannel never changes: chains that drop pods'
//! packets all the same, and what flannel left in iptables-legacy, where nftables mode runs no program. It is told with the
//! command that mends it, once, and so is its end. Nothing here keeps flannel's data path from being made.

use std::collections::BTreeSet;

use flannel_core::addr::{Dual, Family, LinkName, host};
use flannel_core::facts::Facts;
use flannel_core::rules::PodNetworks;
use flannel_core::state::{Key, Scope, State, Value};
use flannel_kernel::bridge_netfilter::ensure_bridge_netfilter;
use flannel_kernel::iptables::legacy_removal;
use flannel_kernel::passage::{Lookout, Packet, Sight};
use flannel_store::Problem;
use ipnet::IpNet;

use crate::remains::BRIDGE;

/// What was said last.
#[derive(Debug, Default)]
pub(crate) struct Advice {
    /// Whether it was for iptables.
    given: Option<bool>,
    lookout: Lookout,
    /// The packets that are followed, until something changes that they are made of.
    packets: Option<Vec<Packet>>,
    /// What is wrong, as it was told.
    told: Vec<Problem>,
    /// Why it could not be looked, as it was told.
    failure: Option<String>,
}

/// What the packets of pods are made of.
pub(crate) struct Setting<'a> {
    pub(crate) pods: Dual<PodNetworks>,
    pub(crate) facts: &'a Facts,
    pub(crate) have: &'a State,
    pub(crate) scope: &'a Scope,
}

impl Advice {
    /// Looks at the host, unless it did for this rule system, and logs what there is to know. May run `modprobe` in iptables
    /// mode.
    pub(crate) fn give(&mut self, scope: &Scope) {
        if self.given.replace(scope.iptables) != Some(scope.iptables) && scope.iptables {
            warn_of_bypass(scope);
        }
    }

    /// Something changed that packets of pods are made of.
    pub(crate) fn forget(&mut self) {
        self.packets = None;
    }

    /// Looks at the rules of others, if they changed. Answers with all that is wrong when that is another than before.
    pub(crate) fn look(&mut self, setting: &Setting<'_>) -> Option<&[Problem]> {
        let packets = self.packets.get_or_insert_with(|| packets(setting));
        let sight = match self.lookout.look(packets) {
            Ok(sight) => sight?,
            Err(error) => {
                let error = error.to_string();
                if self.failure.as_ref() != Some(&error) {
                    tracing::warn!("{error}");
                    self.failure = Some(error);
                }
                return None;
            }
        };
        self.failure = None;
        let found = problems(&sight, setting);
        if found == self.told {
            return None;
        }
        for new in found.iter().filter(|problem| !self.told.contains(problem)) {
            tracing::warn!("{}", new.text);
        }
        for gone in self.told.iter().filter(|problem| !found.contains(problem)) {
            tracing::info!("no longer: {}", gone.text.split(" (hint: ").next().unwrap_or_default());
        }
        self.told = found;
        Some(&self.told)
    }
}

fn warn_of_bypass(scope: &Scope) {
    let families: BTreeSet<_> = scope.networks.iter().map(|network| Family::of_net(*network)).collect();
    for error in families.into_iter().filter_map(|family| ensure_bridge_netfilter(family).err()) {
        tracing::warn!("{error}");
    }
}

fn problems(sight: &Sight, setting: &Setting<'_>) -> Vec<Problem> {
    let blocks = sight.blocks.iter().filter_map(|block| {
        let network = setting.pods.get(block.family())?.network;
        let remedy = block.remedy(network);
        let text = format!("packets of pods are dropped by {block} (hint: let them pass by `{remedy}`)");
        Some(Problem { reason: "PodTrafficDropped", text, blocks_pods: true })
    });
    let families = sight.leftovers.iter().filter(|_| !setting.scope.iptables);
    let leftovers = families.filter_map(|family| legacy_removal(*family)).map(|removal| Problem {
        reason: "LeftoverRules",
        text: format!(
            "iptables-legacy holds chains that flannel left there in iptables mode, and nftables mode does not remove them \
             (hint: remove them by `{removal}`)"
        ),
        blocks_pods: false,
    });
    blocks.chain(leftovers).collect()
}

/// A packet from this node's pods to those of another and one back, in each family. None where pods are at interfaces of their
/// own: which one a packet comes in by is not known then.
fn packets(setting: &Setting<'_>) -> Vec<Packet> {
    let of_family = |(family, pods): (Family, &PodNetworks)| {
        let bridge = bridge(setting.facts, pods.pod_subnet)?;
        let (peer, device) = peer(setting, family, pods)?;
        // The first address of a subnet is no pod's: rules for single pods do not concern it.
        let (own, peer) = (pods.pod_subnet.network(), peer.network());
        let there = Packet { input: bridge, output: device, source: own, destination: peer };
        let back = Packet { input: device, output: bridge, source: peer, destination: own };
        Some([there, back])
    };
    setting.pods.iter().filter_map(of_family).flatten().collect()
}

/// Where packets of pods come in, or will when there are any.
fn bridge(facts: &Facts, subnet: IpNet) -> Option<LinkName> {
    let is_in = |net: &IpNet| subnet.contains(&net.addr());
    let has = facts.links.iter().find(|link| link.addresses.iter().any(|address| is_in(&address.net)));
    let of_single_pods = facts.routes.iter().any(|route| subnet.contains(&route.destination));
    has.map(|link| link.name).or_else(|| BRIDGE.parse().ok().filter(|_| !of_single_pods))
}

/// The subnet of another node, and the device that leads there; without any, an address of the network that is not ours, and the
/// device that peers would be reached by.
fn peer(setting: &Setting<'_>, family: Family, pods: &PodNetworks) -> Option<(IpNet, LinkName)> {
    let route = |(key, value): (&Key, &Value)| match (key, value) {
        (Key::Route(to, _), Value::Route(route)) if pods.network.contains(to) && *to != pods.pod_subnet => {
            Some((*to, route.dev()?))
        }
        _ => None,
    };
    let none = || {
        let ends = [pods.network.network(), pods.network.broadcast()];
        let free = ends.into_iter().find(|address| !pods.pod_subnet.contains(address))?;
        let device = setting.have.objects.keys().find_map(|key| match key {
            Key::Address(device, net) if Family::of_net(*net) == family => Some(*device),
            _ => None,
        });
        Some((host(free), device.or(setting.scope.externals.last().copied())?))
    };
    setting.have.objects.iter().find_map(route).or_else(none)
}
