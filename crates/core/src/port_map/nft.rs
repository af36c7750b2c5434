//! Published ports in nf_tables: tables `ip cni_hostport` and `ip6 cni_hostport`, in the Go plugin's layout.
//!
//! [`steps`] are one family's part of the transaction that publishes a container's ports; [`rules`] those of the container alone. Each step
//! prints as a line for `nft -f`, which is needed only where conditions are in `nft`'s own words.

use std::fmt;

use ipnet::IpNet;

use super::{Mapping, PortMap};
use crate::addr::Family;
use crate::rules::{Match, Rule, Verdict};

/// The table's name in both families.
pub const TABLE: &str = "cni_hostport";
/// The table's comment.
pub const COMMENT: &str = "CNI portmap plugin";

/// The chains that hold rules of containers: the second is of older builds of the Go plugin.
pub const OF_CONTAINERS: [Chain; 3] = [Chain::HostPorts, Chain::HostIpHostPorts, Chain::Masquerading];

/// A chain of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// Translations.
    HostPorts,
    /// Where older builds of the Go plugin have the translations of one host address.
    HostIpHostPorts,
    /// Leads to both.
    All,
    /// What comes from elsewhere.
    Prerouting,
    /// What comes from this node.
    Output,
    /// What has to come back through this node.
    Masquerading,
}

impl Chain {
    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostPorts => "hostports",
            Self::HostIpHostPorts => "hostip_hostports",
            Self::All => "hostports_all",
            Self::Prerouting => "prerouting",
            Self::Output => "output",
            Self::Masquerading => "masquerading",
        }
    }

    /// The hook of `nft` that packets come from, and the chain's priority there; none for chains that others lead to.
    pub const fn hook(self) -> Option<(&'static str, i32)> {
        match self {
            Self::Prerouting => Some(("prerouting", -100)),
            Self::Output => Some(("output", -100)),
            Self::Masquerading => Some(("postrouting", 100)),
            Self::HostPorts | Self::HostIpHostPorts | Self::All => None,
        }
    }
}

/// One step of the transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<'a> {
    /// Make the table, if it is absent.
    Table,
    /// Make a chain, if it is absent.
    Chain(Chain),
    /// Take all rules out of a chain.
    Flush(Chain),
    /// Append a rule.
    Rule {
        /// Where.
        chain: Chain,
        /// Matches in `nft`'s words before those of the rule.
        conditions: &'a [String],
        /// The rule.
        rule: Rule,
        /// The container that it is for, which is the rule's comment.
        container: Option<&'a str>,
    },
}

impl Step<'_> {
    /// The rule that is written to a chain and is no container's.
    pub fn shared_rule(&self, of: Chain) -> Option<&Rule> {
        match self {
            Step::Rule { chain, rule, container: None, .. } if *chain == of => Some(rule),
            _ => None,
        }
    }
}

/// What publishes a container's ports in one family; nothing if it has no address there.
///
/// The chains that are nobody's are written anew, as the Go plugin does: so they are right whatever was done to them. Where they
/// are right already, the steps of containers are enough.
pub fn steps(map: &PortMap, family: Family) -> Vec<Step<'_>> {
    if map.addresses.get(family).is_none() {
        return Vec::new();
    }
    let conditions = map.conditions.get(family).map_or(&[][..], Vec::as_slice);
    let jump = |to: Chain| Verdict::Jump(to.name().into());
    let shared = |chain, conditions, matches: &[Match], to| {
        let rule = Rule { matches: matches.to_vec(), verdict: jump(to) };
        Step::Rule { chain, conditions, rule, container: None }
    };
    let mut steps = vec![
        Step::Table,
        Step::Chain(Chain::HostPorts),
        Step::Chain(Chain::HostIpHostPorts),
        Step::Chain(Chain::All),
        Step::Flush(Chain::All),
        shared(Chain::All, &[], &[], Chain::HostIpHostPorts),
        shared(Chain::All, &[], &[], Chain::HostPorts),
    ];
    for chain in [Chain::Prerouting, Chain::Output] {
        steps.extend([Step::Chain(chain), Step::Flush(chain), shared(chain, conditions, &[Match::Local], Chain::All)]);
    }
    steps.extend(map.masquerade.is_some().then_some(Step::Chain(Chain::Masquerading)));
    steps.extend(rules(map, family, Extent::Ours).into_iter().map(|(chain, rule)| {
        let container = Some(map.container.as_str());
        Step::Rule { chain, conditions: &[], rule, container }
    }));
    steps
}

/// Whose rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Those that every build of the plugin makes.
    Common,
    /// And those that are ours alone.
    Ours,
}

/// The container's own rules in one family, in order, with their chains.
///
/// The Go plugin's leave others of the container's subnet without an answer where bridged packets do not pass the packet filter, and up to
/// 1.9 they ignore `masqAll`. In iptables it has both, so here ours does.
pub fn rules(map: &PortMap, family: Family, extent: Extent) -> Vec<(Chain, Rule)> {
    let Some(address) = map.addresses.get(family).copied() else { return Vec::new() };
    let translated =
        |mapping: &Mapping| Rule { matches: mapping.matches(), verdict: Verdict::Dnat(mapping.target(address)) };
    let mut rules: Vec<_> = map.of_family(family).map(|mapping| (Chain::HostPorts, translated(mapping))).collect();
    let Some(wanted) = &map.masquerade else { return rules };
    let masquerade = |source: Option<IpNet>, further: &[Match]| {
        let from = source.map(|net| Match::Source { not: false, net });
        let to = Match::Destination { not: false, net: address.addr().into() };
        let matches = from.into_iter().chain([to]).chain(further.iter().cloned()).collect();
        (Chain::Masquerading, Rule { matches, verdict: Verdict::Masquerade { fully_random: false } })
    };
    let sources = [Some(address.addr().into()), super::loopback(family)].into_iter().flatten();
    rules.extend(sources.map(|source| masquerade(Some(source), &[])));
    if extent == Extent::Ours {
        let source = (!wanted.all).then(|| address.trunc());
        rules.extend(map.of_family(family).map(|mapping| {
            let port = Match::Port { protocol: mapping.protocol, port: mapping.container_port };
            masquerade(source, &[port, Match::Translated { port: mapping.host_port }])
        }));
    }
    rules
}

/// The steps of a family as input of `nft -f`.
pub fn text(family: Family, steps: &[Step<'_>]) -> String {
    let family = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    steps.iter().map(|step| Line(family, step).to_string() + "\n").collect()
}

struct Line<'a>(&'static str, &'a Step<'a>);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(family, step) = self;
        match step {
            Step::Table => write!(f, "add table {family} {TABLE} {{ comment \"{COMMENT}\"; }}"),
            Step::Flush(chain) => write!(f, "flush chain {family} {TABLE} {}", chain.name()),
            Step::Chain(chain) => {
                write!(f, "add chain {family} {TABLE} {}", chain.name())?;
                let Some((hook, priority)) = chain.hook() else { return Ok(()) };
                write!(f, " {{ type nat hook {hook} priority {priority}; }}")
            }
            Step::Rule { chain, conditions, rule, container } => {
                write!(f, "add rule {family} {TABLE} {} ", chain.name())?;
                conditions.iter().try_for_each(|word| write!(f, "{word} "))?;
                write!(f, "{rule}")?;
                container.map_or(Ok(()), |container| write!(f, " comment \"{container}\""))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::port_map;
    use super::*;

    #[test]
    fn the_layout_is_the_go_plugins_and_more() {
        let mut map = port_map(&["10.244.1.5/24"], &["tcp 8080 80", "udp 53 53 192.0.2.1", "tcp 1 1 ::"]);
        map.conditions.set(Family::V4, vec!["iifname".into(), "!=".into(), "\"eth9\"".into()]);
        assert_eq!(
            text(Family::V4, &steps(&map, Family::V4)),
            r#"add table ip cni_hostport { comment "CNI portmap plugin"; }
add chain ip cni_hostport hostports
add chain ip cni_hostport hostip_hostports
add chain ip cni_hostport hostports_all
flush chain ip cni_hostport hostports_all
add rule ip cni_hostport hostports_all jump hostip_hostports
add rule ip cni_hostport hostports_all jump hostports
add chain ip cni_hostport prerouting { type nat hook prerouting priority -100; }
flush chain ip cni_hostport prerouting
add rule ip cni_hostport prerouting iifname != "eth9" fib daddr type local jump hostports_all
add chain ip cni_hostport output { type nat hook output priority -100; }
flush chain ip cni_hostport output
add rule ip cni_hostport output iifname != "eth9" fib daddr type local jump hostports_all
add chain ip cni_hostport masquerading { type nat hook postrouting priority 100; }
add rule ip cni_hostport hostports tcp dport 8080 dnat to 10.244.1.5:80 comment "c1"
add rule ip cni_hostport hostports ip daddr 192.0.2.1 udp dport 53 dnat to 10.244.1.5:53 comment "c1"
add rule ip cni_hostport masquerading ip saddr 10.244.1.5 ip daddr 10.244.1.5 masquerade comment "c1"
add rule ip cni_hostport masquerading ip saddr 127.0.0.1 ip daddr 10.244.1.5 masquerade comment "c1"
add rule ip cni_hostport masquerading ip saddr 10.244.1.0/24 ip daddr 10.244.1.5 tcp dport 80 ct status dnat ct original proto-dst 8080 masquerade comment "c1"
add rule ip cni_hostport masquerading ip saddr 10.244.1.0/24 ip daddr 10.244.1.5 udp dport 53 ct status dnat ct original proto-dst 53 masquerade comment "c1"
"#
        );
        assert_eq!(steps(&map, Family::V6), []);
    }

    #[test]
    fn ipv6_has_no_loopback_to_masquerade_and_all_is_all() {
        let mut map = port_map(&["fd00::5/64"], &["tcp 8080 80"]);
        map.masquerade.as_mut().unwrap().all = true;
        let rules: Vec<_> = rules(&map, Family::V6, Extent::Ours).iter().map(|(_, rule)| rule.to_string()).collect();
        assert_eq!(
            rules,
            [
                "tcp dport 8080 dnat to [fd00::5]:80",
                "ip6 saddr fd00::5 ip6 daddr fd00::5 masquerade",
                "ip6 daddr fd00::5 tcp dport 80 ct status dnat ct original proto-dst 8080 masquerade",
            ]
        );
        assert_eq!(super::rules(&map, Family::V6, Extent::Common).len(), 2);
        map.masquerade = None;
        assert_eq!(super::rules(&map, Family::V6, Extent::Ours).len(), 1);
    }
}
