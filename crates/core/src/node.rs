//! This node: which interface reaches the others, which addresses we publish, which MAC and MTU our devices get.
//!
//! [`node`] decides it from the options, the network configuration, the facts of the host and our own lease, once held;
//! [`claim`] says from that what our lease must say. Both are pure: an address that changes is a new fact, nothing more.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use regex_lite::Regex;

use crate::addr::{Dual, Family, LinkName, Mac, Mtu, host};
use crate::annotations::Overrides;
use crate::backend::MtuTooSmall;
use crate::config::NetworkConfig;
use crate::facts::{AddressFact, Facts, LinkFact, RouteFact, lookup};
use crate::lease::{Claim, Lease};
use crate::rules::RuleMode;

/// What the operator's flags say about this node.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How to find the external interface.
    pub external: ExternalChoice,
    /// Packet rules and the blackhole route.
    pub rules: RuleSwitches,
}

/// What was said about the external interface. The order of the fields is the order in which they are tried.
#[derive(Debug, Clone, Default)]
pub struct ExternalChoice {
    /// `--iface`: the first that matches wins.
    pub interfaces: Vec<InterfaceChoice>,
    /// `--iface-regex`: unanchored, tried on addresses first, then on names.
    pub patterns: Vec<Regex>,
    /// `--iface-can-reach`; the kernel's answer is in [`Facts::reach`].
    pub can_reach: Option<IpAddr>,
    /// `--public-ip` and `--public-ipv6`: published, and the interface that has one is chosen.
    pub public: Dual<IpAddr>,
    /// Published instead, whatever address is ours (`public-ip-overwrite`); it chooses nothing.
    pub published: Dual<IpAddr>,
}

impl ExternalChoice {
    /// What an operator set on our own record goes before the flags.
    #[must_use]
    pub fn with(mut self, overrides: &Overrides) -> Self {
        self.public = Dual::from_fn(|family| overrides.node.get(family).or(self.public.get(family)).copied());
        self.published = overrides.published;
        self
    }
}

/// An interface by its name or by one of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterfaceChoice {
    /// By name.
    Name(LinkName),
    /// By address.
    Address(IpAddr),
}

impl fmt::Display for InterfaceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// The switches that decide on packet rules and the blackhole route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RuleSwitches {
    /// Masquerade packets that leave the network.
    pub masquerade: Option<Masquerade>,
    /// Accept forwarded packets from and to the network.
    pub forward: bool,
    /// Keep `blackhole <own subnet>`.
    pub blackhole: bool,
}

/// How source addresses are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masquerade {
    /// Ask the kernel for fully random source ports.
    pub fully_random: bool,
}

/// The external interface of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Its name.
    pub name: LinkName,
    /// Its MTU.
    pub mtu: Mtu,
    /// Its address, chosen as compat §1 says.
    pub address: IpAddr,
    /// Source address of tunnel packets: the public address if this host owns it, else the interface's.
    pub local: IpAddr,
}

/// This node, as far as planning needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The external interface of each enabled family.
    pub external: Dual<External>,
    /// The addresses we publish.
    pub public_ip: Dual<IpAddr>,
    /// The subnets of our own lease; empty until it is held.
    pub subnet: Dual<IpNet>,
    /// The MACs of our VTEPs: our lease's, else the device's, else fresh ones.
    pub macs: Dual<Mac>,
    /// The MTU of the backend's device in each family.
    pub mtu: Dual<Mtu>,
    /// Networks and hosts that this node's way to others rests on: no peer's subnet may overlap them.
    pub underlay: Vec<IpNet>,
    /// Prefixes that are reached without a gateway through the external interface of their family, and the longer or
    /// cheaper routes that take away from them.
    pub routes: Vec<RouteFact>,
    /// Masquerade, forward and blackhole switches.
    pub rules: RuleSwitches,
    /// The rule system: the network's, or nf_tables where the host has no other.
    pub rule_mode: RuleMode,
    /// Things a person should know that keep nothing from working.
    pub warnings: Vec<String>,
}

/// Why this host cannot be a node of the network. Each text names the object; hints say what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// `iface` and `iface-regex` name nothing that is here.
    #[error("no interface matches {wanted} (here are: {present})")]
    NoMatch {
        /// The flags as given.
        wanted: String,
        /// Interfaces with their addresses.
        present: String,
    },
    /// The source address towards `iface-can-reach` belongs to no interface, or there is no route.
    #[error("--iface-can-reach={0}: the kernel has no route to it")]
    CannotReach(IpAddr),
    /// No default route to take the interface from.
    #[error("no default route: cannot tell the external interface")]
    NoDefaultRoute,
    /// The interface has no usable address of an enabled family.
    #[error("interface {link} has no usable {family} address, and the network has {family} enabled")]
    NoAddress {
        /// The interface.
        link: LinkName,
        /// The family.
        family: Family,
    },
    /// The device's MTU would be smaller than its family allows.
    #[error(transparent)]
    Mtu(#[from] MtuTooSmall),
    /// host-gw behind NAT: peers would route to an address that is not on this host.
    #[error("backend host-gw: public address {public} is not the address of {link} ({address})")]
    PublicIpNotLocal {
        /// The public address.
        public: IpAddr,
        /// The external interface.
        link: LinkName,
        /// Its address.
        address: IpAddr,
    },
}

impl NodeError {
    /// What the operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoMatch { .. } => "correct --iface or --iface-regex, or leave both out to take the default route's",
            Self::CannotReach(_) => "add a route to it, or name the interface with --iface",
            Self::NoDefaultRoute => "name the interface with --iface, or add a default route",
            Self::NoAddress { .. } => {
                "give the interface an address of that family, choose another with --iface, or disable the family in the \
                 network configuration (EnableIPv4, EnableIPv6)"
            }
            Self::Mtu(_) => "raise the interface's MTU, or set a larger MTU in the network configuration's Backend",
            Self::PublicIpNotLocal { .. } => "host-gw needs nodes on one link; leave --public-ip out, or use vxlan",
        }
    }
}

/// Decides what this node is.
pub fn node(options: &Options, config: &NetworkConfig, facts: &Facts, own: Option<&Lease>) -> Result<Node, NodeError> {
    let mut warnings = Vec::new();
    let external = externals(&options.external, config, facts, &mut warnings)?;
    let public_ip = external.map(|family, external| *options.external.public.get(family).unwrap_or(&external.address));
    config.backend.accepts(&external, &public_ip)?;
    let published = &options.external.published;
    let public_ip = public_ip.map(|family, ours| *published.get(family).unwrap_or(ours));
    let mtu = config.backend.mtu(&external)?;
    warnings.extend(config.backend.warnings(&external));
    Ok(Node {
        mtu,
        subnet: own.map(|lease| lease.subnet).unwrap_or_default(),
        macs: config.backend.macs(facts, own),
        underlay: underlay(&external, config, facts),
        routes: facts.routes.clone(),
        rules: options.rules,
        rule_mode: rule_mode(config, facts, &mut warnings),
        external,
        public_ip,
        warnings,
    })
}

fn rule_mode(config: &NetworkConfig, facts: &Facts, warnings: &mut Vec<String>) -> RuleMode {
    if !config.nftables && facts.only_nftables {
        warnings.push(
            "the network config does not say EnableNFTables, but no program of iptables is here: the packet rules are in \
             nf_tables all the same, in the tables flannel-ipv4 and flannel-ipv6"
                .into(),
        );
    }
    if config.nftables || facts.only_nftables { RuleMode::Nftables } else { RuleMode::Iptables }
}

/// What our own lease must say; `previous` are the subnets of the `subnet.env` we found.
pub fn claim(config: &NetworkConfig, node: &Node, previous: Dual<IpNet>) -> Claim {
    Claim { public_ip: node.public_ip, attributes: config.backend.attributes(node), previous }
}

impl Node {
    /// Whether an address is reached through the external interface of its family without a gateway.
    pub fn is_on_link(&self, address: IpAddr) -> bool {
        let external = self.external.get(Family::of(address));
        lookup(&self.routes, address)
            .is_some_and(|route| route.gateway.is_none() && external.is_some_and(|e| e.name == route.dev))
    }

    /// The smallest MTU of the backend's devices: what `FLANNEL_MTU` says.
    pub fn least_mtu(&self) -> Mtu {
        self.mtu.values().copied().min().unwrap_or(Mtu(0))
    }
}

/// What this node's way to other hosts rests on: the networks of its interfaces, its own addresses and its next hops. A
/// network so wide that the pod network was carved out of it (a flat LAN) is none: only the hosts in it count.
fn underlay(external: &Dual<External>, config: &NetworkConfig, facts: &Facts) -> Vec<IpNet> {
    let is_external = |link: &LinkFact| external.values().any(|external| external.name == link.name);
    let is_carved = |net: &IpNet| config.network.values().any(|network| net.contains(network));
    let links = facts.links.iter().filter(|link| is_external(link) || leads_out(link));
    let addresses: Vec<_> = links.flat_map(|link| &link.addresses).filter(|address| address.global).collect();
    let networks = addresses.iter().map(|address| address.net.trunc()).filter(|net| !is_carved(net));
    let hosts = addresses.iter().map(|address| host(address.net.addr()));
    let next_hops = facts.routes.iter().filter_map(|route| route.gateway).map(host);
    let all: BTreeSet<_> = networks.chain(hosts).chain(next_hops).collect();
    all.into_iter().collect()
}

/// Whether an interface leads to other hosts (storage, management): hardware, and what is stacked on it. Bridges, dummies and
/// the ends of veths are this host's own, and may be left over from a subnet that is another's by now.
fn leads_out(link: &LinkFact) -> bool {
    matches!(&*link.kind, "" | "bond" | "vlan" | "team")
}

fn externals(
    choice: &ExternalChoice,
    config: &NetworkConfig,
    facts: &Facts,
    warnings: &mut Vec<String>,
) -> Result<Dual<External>, NodeError> {
    Dual::try_from_fn(|family| {
        if config.network.get(family).is_none() {
            return Ok(None);
        }
        let link = external_link(choice, facts, family, warnings)?;
        let address = best_address(link, family).ok_or(NodeError::NoAddress { link: link.name, family })?;
        let public = choice.public.get(family).copied().unwrap_or(address);
        let local = if owns(facts, public) { public } else { address };
        Ok(Some(External { name: link.name, mtu: link.mtu, address, local }))
    })
}

/// Which interface is the external one of a family, whatever its addresses.
pub fn external_name(choice: &ExternalChoice, facts: &Facts, family: Family) -> Result<LinkName, NodeError> {
    external_link(choice, facts, family, &mut Vec::new()).map(|link| link.name)
}

/// The external interface: `iface`, `iface-regex`, `iface-can-reach`, the public address's owner, the default route's.
fn external_link<'a>(
    choice: &ExternalChoice,
    facts: &'a Facts,
    family: Family,
    warnings: &mut Vec<String>,
) -> Result<&'a LinkFact, NodeError> {
    if !choice.interfaces.is_empty() || !choice.patterns.is_empty() {
        return named_link(choice, facts, family, warnings);
    }
    if let Some(target) = choice.can_reach {
        let source = facts.reach.ok_or(NodeError::CannotReach(target))?;
        return owner(facts, source).ok_or(NodeError::CannotReach(target));
    }
    if let Some(public) = choice.public.values().next() {
        if let Some(link) = owner(facts, *public) {
            return Ok(link);
        }
        warnings.push(format!(
            "public address {public} is on no interface of this host (NAT?): it is published, and packets leave by the \
             default route's interface"
        ));
    }
    default_link(facts, family)
}

/// The interface that `iface` or `iface-regex` names: the first with an address of the family, else the first.
fn named_link<'a>(
    choice: &ExternalChoice,
    facts: &'a Facts,
    family: Family,
    warnings: &mut Vec<String>,
) -> Result<&'a LinkFact, NodeError> {
    let matches = matching_links(choice, facts);
    let usable: Vec<_> = matches.iter().copied().filter(|link| best_address(link, family).is_some()).collect();
    if let ([first, _, ..], true) = (&usable[..], choice.interfaces.is_empty()) {
        let names = usable.iter().map(|link| link.name.as_str()).collect::<Vec<_>>().join(", ");
        warnings.push(format!("several interfaces match for {family} ({names}): the first is taken, {}", first.name));
    }
    usable.first().or(matches.first()).copied().ok_or_else(|| no_match(choice, facts))
}

/// The interfaces that match, those of `iface` first, each once.
fn matching_links<'a>(choice: &ExternalChoice, facts: &'a Facts) -> Vec<&'a LinkFact> {
    let mut matches: Vec<&LinkFact> = Vec::new();
    for wanted in &choice.interfaces {
        matches.extend(facts.links.iter().filter(|link| is_chosen(link, *wanted)));
    }
    for pattern in &choice.patterns {
        let by_address = |link: &&LinkFact| link.addresses.iter().any(|a| pattern.is_match(&a.net.addr().to_string()));
        matches.extend(facts.links.iter().filter(by_address));
        matches.extend(facts.links.iter().filter(|link| pattern.is_match(link.name.as_str())));
    }
    let mut seen = BTreeSet::new();
    matches.retain(|link| seen.insert(link.index));
    matches
}

fn is_chosen(link: &LinkFact, choice: InterfaceChoice) -> bool {
    match choice {
        InterfaceChoice::Address(address) => has(link, address),
        InterfaceChoice::Name(name) => link.name == name,
    }
}

fn no_match(choice: &ExternalChoice, facts: &Facts) -> NodeError {
    let names = choice.interfaces.iter().map(|name| format!("--iface={name}"));
    let regexes = choice.patterns.iter().map(|regex| format!("--iface-regex={regex}"));
    let wanted = names.chain(regexes).collect::<Vec<_>>().join(" ");
    let present = facts.links.iter().map(|link| link.name.to_string()).collect::<Vec<_>>().join(", ");
    NodeError::NoMatch { wanted, present }
}

/// The default route's interface of the family, else of the other family.
fn default_link(facts: &Facts, family: Family) -> Result<&LinkFact, NodeError> {
    let default = |family: Family| {
        let routes = facts.routes.iter().filter(|route| route.destination.prefix_len() == 0);
        routes.filter(|route| Family::of_net(route.destination) == family).min_by_key(|route| route.metric)
    };
    let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
    let route = default(family).or_else(|| default(other)).ok_or(NodeError::NoDefaultRoute)?;
    facts.link(route.dev).ok_or(NodeError::NoDefaultRoute)
}

/// The address to use on an interface: global before link-local, then permanent, then not temporary; never deprecated.
fn best_address(link: &LinkFact, family: Family) -> Option<IpAddr> {
    let usable = link.addresses.iter().filter(|a| Family::of_net(a.net) == family && !a.deprecated);
    let rank = |a: &&AddressFact| (!a.global, !a.permanent, a.temporary);
    usable.min_by_key(rank).map(|a| a.net.addr())
}

fn has(link: &LinkFact, address: IpAddr) -> bool {
    link.addresses.iter().any(|a| a.net.addr() == address)
}

fn owner(facts: &Facts, address: IpAddr) -> Option<&LinkFact> {
    facts.links.iter().find(|link| has(link, address))
}

fn owns(facts: &Facts, address: IpAddr) -> bool {
    owner(facts, address).is_some()
}

#[cfg(test)]
mod tests;
