//! Where packets of pods are dropped, in words, and what a person can do about it.

use std::fmt;

use flannel_core::addr::Family;
use ipnet::IpNet;

use crate::nft::listing::TableFamily;

/// A chain that drops packets of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub(crate) family: Family,
    pub(crate) system: System,
    pub(crate) table: String,
    /// The chain at the hook.
    pub(crate) base: String,
    /// The chain that drops: the same, or one that it led to.
    pub(crate) chain: String,
    /// The rule that drops; none if it is the policy.
    pub(crate) rule: Option<String>,
    /// All chains that the packet went through.
    pub(crate) met: Vec<String>,
}

/// Whose table it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// A table of nf_tables, perhaps one of iptables-nft.
    Nft(TableFamily),
    /// A table of iptables-legacy.
    Legacy,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.system {
            System::Nft(family) => write!(f, "table {family} {}, chain {}", self.table, self.chain)?,
            System::Legacy => write!(f, "{}, table {}, chain {}", self.program(), self.table, self.chain)?,
        }
        match &self.rule {
            Some(rule) => write!(f, ", rule `{rule}`"),
            None => f.write_str(", policy drop"),
        }
    }
}

impl Block {
    /// The family whose packets are dropped.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The command that lets packets of a network pass, for whoever wrote the rules.
    pub fn remedy(&self, network: IpNet) -> String {
        let met = |start: &str| self.met.iter().any(|chain| chain.starts_with(start));
        match self.system {
            System::Nft(_) if self.table == "firewalld" => {
                format!("firewall-cmd --permanent --zone=trusted --add-source={network} && firewall-cmd --reload")
            }
            _ if met("ufw-") => format!("ufw route allow from {network}; ufw route allow to {network}"),
            System::Nft(family) if !self.is_of_iptables() => {
                let Self { table, base, .. } = self;
                let word = if self.family == Family::V4 { "ip" } else { "ip6" };
                let rule = |end| format!("nft insert rule {family} {table} {base} {word} {end} {network} accept");
                format!("{}; {}", rule("saddr"), rule("daddr"))
            }
            _ => {
                // Docker leaves this chain to others, and keeps it before its own.
                let chain = if met("DOCKER-USER") { "DOCKER-USER" } else { &self.base };
                let table = if self.table == "filter" { String::new() } else { format!(" -t {}", self.table) };
                let rule = |end| format!("{}{table} -I {chain} {end} {network} -j ACCEPT", self.program());
                format!("{}; {}", rule("-s"), rule("-d"))
            }
        }
    }

    /// Whether iptables-nft made the chain: it has iptables' names.
    fn is_of_iptables(&self) -> bool {
        let of_iptables = matches!(self.system, System::Nft(TableFamily::Ip | TableFamily::Ip6));
        of_iptables && matches!(&*self.table, "filter" | "mangle" | "security") && self.base == "FORWARD"
    }

    fn program(&self) -> String {
        let command = if self.family == Family::V4 { "iptables" } else { "ip6tables" };
        format!("{command}-{}", if self.system == System::Legacy { "legacy" } else { "nft" })
    }
}
