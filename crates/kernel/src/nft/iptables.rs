//! What flannel left in the tables of iptables-nft, seen and removed without a program.
//!
//! These tables are iptables' own (`nat` and `filter` of `ip` and `ip6`). Only flannel's chains and the jumps to them are
//! touched; writing rules there is left to [`crate::iptables`].

use flannel_core::addr::Family;
use flannel_core::rules::iptables::{FORWARD, POSTROUTING, Place};
use flannel_core::rules::{Chain, Ruleset};

use super::{Nft, absent_is_fine, attr, attributes, chain_request, expr, request, text};
use crate::netlink::{Error, Request, family_number};

impl Nft {
    /// Whether iptables-nft is the variant in use in a family: there are chains of Kubernetes' (`KUBE-*`) or of flannel's.
    pub fn iptables_in_use(&mut self, family: Family) -> Result<bool, Error> {
        let known = |name: &str| name.starts_with("KUBE-") || name.starts_with("FLANNEL-");
        let chains = request(libc::NFT_MSG_GETCHAIN, 0, family_number(family));
        let found =
            self.socket.dump(&chains, |message| known(text(attributes(message)?, attr::CHAIN_NAME)?).then_some(()))?;
        Ok(!found.is_empty())
    }

    /// Flannel's chains in the tables of iptables-nft; none if there are none. Good for knowing what is there, not for
    /// comparing: matches and targets of iptables' own kind read as `Other`, and any jump makes a chain `hooked`.
    pub fn iptables_chains(&mut self, family: Family) -> Result<Option<Ruleset>, Error> {
        let mut chain = |place: &Place| {
            let found = self.find(&chain_request(family, place.table, place.chain), |_| ())?;
            let rules = found.map(|()| self.rules(family, place.table, place.chain)).transpose()?;
            let hooked = rules.is_some() && !self.jumps(family, place)?.is_empty();
            Ok::<_, Error>(rules.map(|rules| Chain { hooked, rules }))
        };
        let rules = Ruleset { postrouting: chain(&POSTROUTING)?, forward: chain(&FORWARD)? };
        Ok((rules != Ruleset::default()).then_some(rules))
    }

    /// Removes flannel's chains from the tables of iptables-nft, and all jumps to them, in one transaction.
    pub fn remove_iptables_chains(&mut self, family: Family) -> Result<(), Error> {
        let mut requests = Vec::new();
        for place in [&POSTROUTING, &FORWARD] {
            if self.find(&chain_request(family, place.table, place.chain), |_| ())?.is_some() {
                requests.extend(self.jumps(family, place)?);
                requests.extend(removal(family, place));
            }
        }
        if requests.is_empty() { Ok(()) } else { absent_is_fine(self.transact(requests)) }
    }

    /// The requests that delete each rule that leads to a place's chain.
    fn jumps(&mut self, family: Family, place: &Place) -> Result<Vec<Request>, Error> {
        let number = family_number(family);
        let all = request(libc::NFT_MSG_GETRULE, 0, number).attr(attr::TABLE, place.table);
        self.socket.dump(&all, |message| {
            let rule = attributes(message).filter(|rule| text(*rule, attr::TABLE) == Some(place.table))?;
            expr::leads_to(rule, place.chain).then_some(())?;
            let deletion = request(libc::NFT_MSG_DELRULE, 0, number)
                .attr(attr::TABLE, place.table)
                .attr(attr::RULE_CHAIN, text(rule, attr::RULE_CHAIN)?)
                .attr(attr::RULE_HANDLE, rule.find(attr::RULE_HANDLE)?.0);
            Some(deletion)
        })
    }
}

/// Empties a chain and deletes it.
fn removal(family: Family, place: &Place) -> [Request; 2] {
    let about = |kind| request(kind, 0, family_number(family)).attr(attr::TABLE, place.table);
    [
        about(libc::NFT_MSG_DELRULE).attr(attr::RULE_CHAIN, place.chain),
        about(libc::NFT_MSG_DELCHAIN).attr(attr::CHAIN_NAME, place.chain),
    ]
}
