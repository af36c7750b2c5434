//! Which notices of nf_tables may concern flannel's rules, or those of published ports. Notices are only judged here: what changed is read again.

use flannel_core::port_map::nft as port_map;
use flannel_core::rules::RuleMode;
use flannel_core::rules::iptables::{FORWARD, POSTROUTING, Place};

use super::{attr, attributes, table_name, text};
use crate::netlink::{Attributes, Message, family_of};

/// The multicast group of changes to rules (`linux/netfilter/nfnetlink.h`).
pub const GROUP: u32 = libc::NFNLGRP_NFTABLES as u32;

/// The rule system whose rules of ours a notice may be about: our tables, or in iptables-nft's tables our chains, those
/// that jump to them, and the tables themselves. Other chains there, which Kubernetes changes all the time, concern nobody.
pub fn concerns(message: Message<'_>) -> Option<RuleMode> {
    let [subsystem, kind] = message.kind.to_be_bytes();
    let family = family_of(*message.body.first()?)?;
    let object = attributes(message).filter(|_| i32::from(subsystem) == libc::NFNL_SUBSYS_NFTABLES)?;
    let table = text(object, attr::TABLE)?;
    if table == table_name(family) {
        return Some(RuleMode::Nftables);
    }
    let here = |place: &&Place| place.table == table && concerns_place(i32::from(kind), object, place);
    [&POSTROUTING, &FORWARD].into_iter().find(here).map(|_| RuleMode::Iptables)
}

/// Whether a notice may be about a loss of rules that publish ports, whoever made them and in whichever rule system.
pub fn takes_ports(message: Message<'_>) -> bool {
    let [subsystem, kind] = message.kind.to_be_bytes();
    let Some(object) = attributes(message).filter(|_| i32::from(subsystem) == libc::NFNL_SUBSYS_NFTABLES) else {
        return false;
    };
    let name = match i32::from(kind) {
        libc::NFT_MSG_DELTABLE => None,
        libc::NFT_MSG_DELCHAIN => Some(attr::CHAIN_NAME),
        libc::NFT_MSG_DELRULE => Some(attr::RULE_CHAIN),
        _ => return false,
    };
    let of_ports = |name: &str| name.starts_with("CNI-") || PORTS_BEGIN.contains(&name);
    match text(object, attr::TABLE) {
        Some(port_map::TABLE) => true,
        Some("nat") => name.is_none_or(|name| text(object, name).is_some_and(of_ports)),
        _ => false,
    }
}

/// The chains of iptables that lead to those of published ports.
const PORTS_BEGIN: [&str; 3] = ["PREROUTING", "OUTPUT", "POSTROUTING"];

fn concerns_place(kind: i32, object: Attributes<'_>, place: &Place) -> bool {
    let name = match kind {
        libc::NFT_MSG_NEWTABLE | libc::NFT_MSG_DELTABLE => return true,
        libc::NFT_MSG_NEWCHAIN | libc::NFT_MSG_DELCHAIN => attr::CHAIN_NAME,
        libc::NFT_MSG_NEWRULE | libc::NFT_MSG_DELRULE => attr::RULE_CHAIN,
        _ => return false,
    };
    text(object, name).is_some_and(|name| name == place.chain || name == place.from)
}

#[cfg(test)]
mod tests {
    use super::super::request;
    use super::*;
    use crate::netlink::{Messages, Request};

    fn judged(request: &Request) -> Option<RuleMode> {
        let mut bytes = Vec::new();
        request.write(&mut bytes, 0, 0);
        concerns(Messages(&bytes).next().unwrap())
    }

    fn rule(family: i32, table: &str, chain: &str) -> Request {
        request(libc::NFT_MSG_NEWRULE, 0, family as u8).attr(attr::TABLE, table).attr(attr::RULE_CHAIN, chain)
    }

    #[test]
    fn our_tables_concern_us_and_namesakes_do_not() {
        assert_eq!(judged(&rule(libc::AF_INET, "flannel-ipv4", "any")), Some(RuleMode::Nftables));
        assert_eq!(judged(&rule(libc::AF_INET6, "flannel-ipv6", "any")), Some(RuleMode::Nftables));
        assert_eq!(judged(&rule(libc::AF_INET, "flannel-ipv6", "any")), None);
        assert_eq!(judged(&rule(1, "flannel-ipv4", "any")), None);
    }

    #[test]
    fn of_iptables_only_our_chains_and_those_before_them_do() {
        assert_eq!(judged(&rule(libc::AF_INET, "nat", "POSTROUTING")), Some(RuleMode::Iptables));
        assert_eq!(judged(&rule(libc::AF_INET6, "filter", "FLANNEL-FWD")), Some(RuleMode::Iptables));
        assert_eq!(judged(&rule(libc::AF_INET, "filter", "KUBE-FORWARD")), None);
        assert_eq!(judged(&rule(libc::AF_INET, "filter", "POSTROUTING")), None);
        assert_eq!(judged(&rule(libc::AF_INET, "mangle", "FORWARD")), None);
        let gone = request(libc::NFT_MSG_DELTABLE, 0, libc::AF_INET as u8).attr(attr::TABLE, "nat");
        assert_eq!(judged(&gone), Some(RuleMode::Iptables));
    }

    #[test]
    fn lost_rules_may_be_those_of_published_ports() {
        let takes = |kind: i32, table: &str, name: u16, chain: &str| {
            let request = request(kind, 0, libc::AF_INET as u8).attr(attr::TABLE, table).attr(name, chain);
            let mut bytes = Vec::new();
            request.write(&mut bytes, 0, 0);
            takes_ports(Messages(&bytes).next().unwrap())
        };
        assert!(takes(libc::NFT_MSG_DELRULE, "cni_hostport", attr::RULE_CHAIN, "hostports"));
        assert!(takes(libc::NFT_MSG_DELTABLE, "cni_hostport", attr::RULE_CHAIN, ""));
        assert!(takes(libc::NFT_MSG_DELTABLE, "nat", attr::RULE_CHAIN, ""));
        assert!(takes(libc::NFT_MSG_DELCHAIN, "nat", attr::CHAIN_NAME, "CNI-HOSTPORT-DNAT"));
        assert!(takes(libc::NFT_MSG_DELRULE, "nat", attr::RULE_CHAIN, "PREROUTING"));
        assert!(!takes(libc::NFT_MSG_DELRULE, "nat", attr::RULE_CHAIN, "KUBE-SERVICES"));
        assert!(!takes(libc::NFT_MSG_NEWRULE, "cni_hostport", attr::RULE_CHAIN, "hostports"));
        assert!(!takes(libc::NFT_MSG_DELRULE, "filter", attr::RULE_CHAIN, "OUTPUT"));
    }

    #[test]
    fn notices_of_other_subsystems_do_not() {
        let conntrack = Request::new(0x0100, 0).body(&[libc::AF_INET as u8, 0, 0, 0]).attr(1, "flannel-ipv4");
        assert_eq!(judged(&conntrack), None);
    }
}
