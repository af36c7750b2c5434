//! What anybody's rules and chains say, for people: looked up by the names and handles that [`super::trace`] tells.
//!
//! Surface: [`Listing`]. Nothing here is good for comparing or writing rules.

use std::fmt;

use super::summary::summarize;
use super::trace::Verdict;
use super::{Nft, attr, number, request, text};
use crate::netlink::{Error, Payload};

/// The family of a table (`NFPROTO_*` of `linux/netfilter.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the word that nft prints")]
pub enum TableFamily {
    Inet,
    Ip,
    Arp,
    Netdev,
    Bridge,
    Ip6,
}

impl TableFamily {
    /// All, with the kernel's numbers and nft's words.
    const ALL: [(Self, i32, &str); 6] = [
        (Self::Inet, libc::NFPROTO_INET, "inet"),
        (Self::Ip, libc::NFPROTO_IPV4, "ip"),
        (Self::Arp, libc::NFPROTO_ARP, "arp"),
        (Self::Netdev, libc::NFPROTO_NETDEV, "netdev"),
        (Self::Bridge, libc::NFPROTO_BRIDGE, "bridge"),
        (Self::Ip6, libc::NFPROTO_IPV6, "ip6"),
    ];

    /// The family of a number.
    pub(super) fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known, _)| *known == i32::from(number)).map(|(family, ..)| family)
    }

    pub(super) fn number(self) -> u8 {
        Self::ALL.into_iter().find(|(family, ..)| *family == self).map_or(0, |(_, number, _)| number as u8)
    }
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.into_iter().find(|(family, ..)| family == self).map_or("", |(.., word)| word))
    }
}

/// A rule in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleText {
    /// The rule as `nft` prints it, without its comment. Matches that are not known here are named by their kind.
    pub text: String,
    /// Its comment, also where iptables made it a match.
    pub comment: Option<String>,
}

/// How packets come into a base chain, and what becomes of them at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChainText {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// The hook's word: `prerouting`, `forward`, ….
    pub hook: &'static str,
    /// Its place among the chains of the hook; lower ones come earlier.
    pub priority: i32,
    /// Its policy.
    pub policy: Verdict,
}

/// The rules of a network namespace, to be asked for.
#[derive(Debug)]
pub struct Listing {
    nft: Nft,
}

impl Listing {
    /// Opens it in the network namespace of this thread; none if this kernel has no nf_tables.
    pub fn open() -> Result<Option<Self>, Error> {
        Ok(Nft::open()?.map(|nft| Self { nft }))
    }

    /// A rule by its handle; none if it is gone.
    pub fn rule(
        &mut self,
        family: TableFamily,
        table: &str,
        chain: &str,
        handle: u64,
    ) -> Result<Option<RuleText>, Error> {
        let wanted = request(libc::NFT_MSG_GETRULE, 0, family.number())
            .attr(attr::TABLE, table)
            .attr(attr::RULE_CHAIN, chain)
            .attr(attr::RULE_HANDLE, handle.to_be_bytes());
        self.nft.find(&wanted, |rule| summarize(rule, family))
    }

    /// A chain's hook; none if the chain is gone or no base chain.
    pub fn base_chain(
        &mut self,
        family: TableFamily,
        table: &str,
        chain: &str,
    ) -> Result<Option<BaseChainText>, Error> {
        let wanted =
            request(libc::NFT_MSG_GETCHAIN, 0, family.number()).attr(attr::TABLE, table).attr(attr::CHAIN_NAME, chain);
        let read = self.nft.find(&wanted, |chain| {
            let hook = chain.inside(attr::CHAIN_HOOK);
            Some(BaseChainText {
                kind: text(chain, attr::CHAIN_TYPE)?.to_owned(),
                hook: hook_word(family, number(hook, attr::HOOK_NUMBER)?),
                priority: hook.find(attr::HOOK_PRIORITY).and_then(Payload::be32)?.cast_signed(),
                policy: Verdict::of(number(chain, attr::CHAIN_POLICY)?.cast_signed(), None),
            })
        })?;
        Ok(read.flatten())
    }
}

/// The word for a hook (`enum nf_inet_hooks`, `nf_dev_hooks`; those of bridges have the numbers of inet's).
fn hook_word(family: TableFamily, number: u32) -> &'static str {
    let words: &[&str] = match family {
        TableFamily::Netdev => &["ingress", "egress"],
        TableFamily::Arp => &["input", "output", "forward"],
        _ => &["prerouting", "input", "forward", "output", "postrouting", "ingress"],
    };
    words.get(number as usize).copied().unwrap_or("an unknown hook")
}
