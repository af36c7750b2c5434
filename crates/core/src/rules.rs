//! Flannel's packet rules as a model that both rule systems render (compat §7).
//!
//! A [`Ruleset`] is all of one family in one rule system. The kernel crate turns it into an nf_tables batch or a text for
//! `iptables-restore`, and reads it back into the same model.

use std::fmt;

use ipnet::IpNet;

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
    /// Something flannel never writes, as it was read back: equal to no wanted match.
    Other(Box<str>),
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
    /// Something flannel never writes.
    Other(Box<str>),
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
            Verdict::Other(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut address = |end, not: bool, net: &IpNet| {
            let family = if net.addr().is_ipv4() { "ip" } else { "ip6" };
            write!(f, "{family} {end} {}{net}", if not { "!= " } else { "" })
        };
        match self {
            Self::Mark => write!(f, "meta mark & {MASQUERADE_MARK:#010x} == {MASQUERADE_MARK:#010x}"),
            Self::Source { not, net } => address("saddr", *not, net),
            Self::Destination { not, net } => address("daddr", *not, net),
            Self::Other(text) => f.write_str(text),
        }
    }
}
