//! Flannel's packet rules as a model that both rule systems render (compat §7).
//!
//! A [`Ruleset`] is all of one family in one rule system: [`ruleset`] makes the wanted one. The kernel crate turns it into
//! an nf_tables batch or, by [`iptables`], into text for `iptables-restore`, and reads it back into the same model.
//! Comments, counters and handles are no part of the model: rules that differ in nothing else are equal. [`evaluate`] follows
//! a packet through anybody's rules of iptables.

pub mod evaluate;
pub mod iptables;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::addr::{Dual, Family};

/// The rule system in use on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleMode {
    /// Tables `ip flannel-ipv4` and `ip6 flannel-ipv6`, programmed by netlink.
    Nftables,
    /// Chains `FLANNEL-POSTRTG` and `FLANNEL-FWD`, programmed by `iptables-restore`.
    Iptables,
}

/// The mark that exempts a packet from masquerading (Kubernetes' own masquerade mark): value and mask.
pub const MASQUERADE_MARK: u32 = 0x4000;

/// All of flannel's rules of one family in one rule system.
///
/// In nftables a `Ruleset` stands for the family's table, so the empty one is a table without chains: what a family that
/// is not enabled has. In iptables it stands for the chains only, and the empty one is nothing at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// nft chain `postrtg`, iptables chain `FLANNEL-POSTRTG` in nat.
    pub postrouting: Option<Chain>,
    /// nft chain `forward`, iptables chain `FLANNEL-FWD` in filter.
    pub forward: Option<Chain>,
}

/// One chain and how packets come into it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// nft: it is a base chain of the right type, hook, priority and policy. iptables: exactly one jump leads to it.
    pub hooked: bool,
    /// The rules in order.
    pub rules: Vec<Rule>,
}

/// One rule: all matches hold, then the verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What the packet must be.
    pub matches: Vec<Match>,
    /// What happens to it.
    pub verdict: Verdict,
}

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// `mark & MASQUERADE_MARK == MASQUERADE_MARK`.
    Mark,
    /// The source address lies in a prefix, or with `not` outside it.
    Source {
        /// Outside instead of inside.
        not: bool,
        /// The prefix.
        net: IpNet,
    },
    /// The destination address lies in a prefix, or with `not` outside it.
    Destination {
        /// Outside instead of inside.
        not: bool,
        /// The prefix.
        net: IpNet,
    },
    /// The destination address is one of this node's.
    Local,
    /// The destination port.
    Port {
        /// Its protocol.
        protocol: Protocol,
        /// Its number.
        port: u16,
    },
    /// The destination was translated, and its port was this one before.
    Translated {
        /// The port's number.
        port: u16,
    },
    /// Something flannel never writes, as it was read back: equal to no wanted match.
    Other(Box<str>),
}

/// A transport protocol whose ports can be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// SCTP.
    Sctp,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// All of them, in the order of their names.
    pub const ALL: [Self; 3] = [Self::Sctp, Self::Tcp, Self::Udp];

    /// The name, in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sctp => "sctp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// The number in an IP header (IANA, Assigned Internet Protocol Numbers).
    pub const fn number(self) -> u8 {
        match self {
            Self::Sctp => 132,
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What happens to a matching packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Leave the chain.
    Return,
    /// Let it pass.
    Accept,
    /// Translate the source to the address of the interface it leaves by.
    Masquerade {
        /// Choose the source port fully at random.
        fully_random: bool,
    },
    /// Go through another chain and come back.
    Jump(Box<str>),
    /// Translate the destination to an address and a port.
    Dnat(SocketAddr),
    /// Something flannel never writes.
    Other(Box<str>),
}

/// What decides which rules a node has, whatever its networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleOptions {
    /// The rule system.
    pub mode: RuleMode,
    /// `ip-masq`: masquerade what leaves the cluster network.
    pub ip_masq: bool,
    /// Masquerade with fully random source ports (not `ip-masq-fully-random-disable`).
    pub fully_random: bool,
    /// `iptables-forward-rules`: accept forwarded packets of the cluster network, in both rule systems.
    pub forward: bool,
}

/// The networks of one enabled family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodNetworks {
    /// The cluster network.
    pub network: IpNet,
    /// This node's own pod subnet.
    pub pod_subnet: IpNet,
}

impl PodNetworks {
    /// Those of each family in which there is a cluster network and this node has a subnet.
    pub fn of(networks: &Dual<IpNet>, pod_subnets: &Dual<IpNet>) -> Dual<Self> {
        Dual::from_fn(|family| {
            let (network, pod_subnet) = networks.get(family).zip(pod_subnets.get(family))?;
            Some(Self { network: *network, pod_subnet: *pod_subnet })
        })
    }
}

/// The rules of one family, or none where nothing of flannel's belongs into that rule system.
///
/// `networks` is `None` for a family that is not enabled. nftables then still has the table, without chains; an enabled
/// family has both chains there, even without rules. iptables has a chain only where there are rules for it.
pub fn ruleset(networks: Option<PodNetworks>, options: RuleOptions) -> Option<Ruleset> {
    let chain = |wanted: bool, rules: fn(PodNetworks, bool) -> Vec<Rule>| {
        let rules = networks.filter(|_| wanted).map(|networks| rules(networks, options.fully_random));
        match options.mode {
            RuleMode::Nftables => networks.map(|_| rules.unwrap_or_default()),
            RuleMode::Iptables => rules,
        }
        .map(|rules| Chain { hooked: true, rules })
    };
    let rules = Ruleset {
        postrouting: chain(options.ip_masq, masquerade_rules),
        forward: chain(options.forward, |networks, _| forward_rules(networks)),
    };
    (options.mode == RuleMode::Nftables || rules != Ruleset::default()).then_some(rules)
}

/// The six rules of compat §7, in order.
fn masquerade_rules(PodNetworks { network, pod_subnet }: PodNetworks, fully_random: bool) -> Vec<Rule> {
    let multicast = multicast(Family::of_net(network));
    let masquerade = Verdict::Masquerade { fully_random };
    let rule = |matches: &[Match], verdict: &Verdict| Rule { matches: matches.to_vec(), verdict: verdict.clone() };
    vec![
        rule(&[Match::Mark], &Verdict::Return),
        rule(&[from(pod_subnet), to(network)], &Verdict::Return),
        rule(&[from(network), to(pod_subnet)], &Verdict::Return),
        rule(&[not_from(network), to(pod_subnet)], &Verdict::Return),
        rule(&[from(network), not_to(multicast)], &masquerade),
        rule(&[not_from(network), to(network)], &masquerade),
    ]
}

fn forward_rules(PodNetworks { network, .. }: PodNetworks) -> Vec<Rule> {
    [from(network), to(network)].map(|m| Rule { matches: vec![m], verdict: Verdict::Accept }).to_vec()
}

fn from(net: IpNet) -> Match {
    Match::Source { not: false, net: net.trunc() }
}

fn not_from(net: IpNet) -> Match {
    Match::Source { not: true, net: net.trunc() }
}

fn to(net: IpNet) -> Match {
    Match::Destination { not: false, net: net.trunc() }
}

fn not_to(net: IpNet) -> Match {
    Match::Destination { not: true, net: net.trunc() }
}

/// All multicast addresses: RFC 5771 §3 and RFC 4291 §2.7.
pub fn multicast(family: Family) -> IpNet {
    let (address, bits) = match family {
        Family::V4 => (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        Family::V6 => (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    };
    IpNet::new_assert(address, bits)
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chains = [("postrtg", &self.postrouting), ("forward", &self.forward)];
        for (name, chain) in chains {
            let Some(chain) = chain else { continue };
            writeln!(f, "  chain {name}{}", if chain.hooked { "" } else { " (not hooked)" })?;
            chain.rules.iter().try_for_each(|rule| writeln!(f, "    {rule}"))?;
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    /// The rule as `nft list table` prints it, without its comment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.matches.iter().try_for_each(|m| write!(f, "{m} "))?;
        match &self.verdict {
            Verdict::Return => f.write_str("return"),
            Verdict::Accept => f.write_str("accept"),
            Verdict::Masquerade { fully_random: false } => f.write_str("masquerade"),
            Verdict::Masquerade { fully_random: true } => f.write_str("masquerade fully-random"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Dnat(to) => write!(f, "dnat to {to}"),
            Verdict::Other(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut address = |end, not: bool, net: &IpNet| {
            let family = if net.addr().is_ipv4() { "ip" } else { "ip6" };
            let not = if not { "!= " } else { "" };
            if net.prefix_len() == net.max_prefix_len() {
                return write!(f, "{family} {end} {not}{}", net.addr());
            }
            write!(f, "{family} {end} {not}{net}")
        };
        match self {
            Self::Mark => write!(f, "meta mark & {MASQUERADE_MARK:#010x} == {MASQUERADE_MARK:#010x}"),
            Self::Source { not, net } => address("saddr", *not, net),
            Self::Destination { not, net } => address("daddr", *not, net),
            Self::Local => f.write_str("fib daddr type local"),
            Self::Port { protocol, port } => write!(f, "{protocol} dport {port}"),
            Self::Translated { port } => write!(f, "ct status dnat ct original proto-dst {port}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(network: &str, pod_subnet: &str) -> PodNetworks {
        PodNetworks { network: network.parse().unwrap(), pod_subnet: pod_subnet.parse().unwrap() }
    }

    fn options(mode: RuleMode) -> RuleOptions {
        RuleOptions { mode, ip_masq: true, fully_random: true, forward: true }
    }

    #[test]
    fn the_rules_are_those_of_the_contract() {
        let rules = ruleset(Some(networks("10.42.0.0/16", "10.42.1.0/24")), options(RuleMode::Nftables)).unwrap();
        assert_eq!(
            rules.to_string(),
            "  chain postrtg
    meta mark & 0x00004000 == 0x00004000 return
    ip saddr 10.42.1.0/24 ip daddr 10.42.0.0/16 return
    ip saddr 10.42.0.0/16 ip daddr 10.42.1.0/24 return
    ip saddr != 10.42.0.0/16 ip daddr 10.42.1.0/24 return
    ip saddr 10.42.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
    ip saddr != 10.42.0.0/16 ip daddr 10.42.0.0/16 masquerade fully-random
  chain forward
    ip saddr 10.42.0.0/16 accept
    ip daddr 10.42.0.0/16 accept
"
        );
    }

    #[test]
    fn ipv6_differs_in_addresses_only() {
        let options = RuleOptions { fully_random: false, forward: false, ..options(RuleMode::Iptables) };
        let rules = ruleset(Some(networks("2001:cafe:42::/56", "2001:cafe:42:1::/64")), options).unwrap();
        assert_eq!(
            rules.to_string(),
            "  chain postrtg
    meta mark & 0x00004000 == 0x00004000 return
    ip6 saddr 2001:cafe:42:1::/64 ip6 daddr 2001:cafe:42::/56 return
    ip6 saddr 2001:cafe:42::/56 ip6 daddr 2001:cafe:42:1::/64 return
    ip6 saddr != 2001:cafe:42::/56 ip6 daddr 2001:cafe:42:1::/64 return
    ip6 saddr 2001:cafe:42::/56 ip6 daddr != ff00::/8 masquerade
    ip6 saddr != 2001:cafe:42::/56 ip6 daddr 2001:cafe:42::/56 masquerade
"
        );
    }

    #[test]
    fn without_rules_nftables_keeps_the_table_and_iptables_nothing() {
        let none = |mode| RuleOptions { ip_masq: false, forward: false, ..options(mode) };
        let nets = Some(networks("10.42.0.0/16", "10.42.1.0/24"));
        let empty = Some(Chain { hooked: true, rules: Vec::new() });
        assert_eq!(
            ruleset(nets, none(RuleMode::Nftables)),
            Some(Ruleset { postrouting: empty.clone(), forward: empty })
        );
        assert_eq!(ruleset(None, options(RuleMode::Nftables)), Some(Ruleset::default()));
        assert_eq!(ruleset(nets, none(RuleMode::Iptables)), None);
        assert_eq!(ruleset(None, options(RuleMode::Iptables)), None);
    }
}
