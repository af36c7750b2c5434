//! Masquerading for one pod by nf_tables, in the layout of the Go plugin `bridge`: table `inet cni_plugins_masquerade`, a rule for each
//! address in chain `masq_checks`, found again by the beginning of its comment.
//!
//! Surface: [`Nft::masquerade_pod`] and [`Nft::unmasquerade`]. The table and its base chain stay when the last pod is gone, as the Go
//! plugin leaves them.

use flannel_core::addr::Family;
use flannel_core::rules::{Match, Rule, Verdict, multicast};
use ipnet::IpNet;

use super::{APPEND, CREATE, Nft, attr, comment, expr, request, summary};
use crate::netlink::{Attributes, Error, Request};

const TABLE: &str = "cni_plugins_masquerade";
const TABLE_COMMENT: &str = "Masquerading for plugins from github.com/containernetworking/plugins";
const CHECKS: &str = "masq_checks";
const CHECKS_COMMENT: &str = "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet";
const POSTROUTING: &str = "postrouting";
/// The longest comment that nf_tables keeps with a rule, as the Go plugin cuts it.
const COMMENT: usize = 128;
/// How often rules are looked for again because someone else removed one meanwhile.
const TRIES: usize = 8;

impl Nft {
    /// Masquerades what leaves from these addresses for other places than their own subnets. `note` begins with `mark`, which tells
    /// the pod's rules from all others; those there are already are replaced. One transaction.
    pub fn masquerade_pod(&mut self, mark: &str, note: &str, addresses: &[IpNet]) -> Result<(), Error> {
        let mut requests = layout();
        requests.extend(self.handles(|found| found.starts_with(mark))?.into_iter().map(deletion));
        requests.extend(addresses.iter().map(|net| masquerade(*net, note)));
        self.transact(requests)
    }

    /// Removes the rules whose comments are told to be stale. Succeeds when there are none, and without the table.
    pub fn unmasquerade(&mut self, is_stale: impl Fn(&str) -> bool) -> Result<(), Error> {
        for _ in 0..TRIES {
            let stale = self.handles(&is_stale)?;
            if stale.is_empty() {
                return Ok(());
            }
            match self.transact(stale.into_iter().map(deletion).collect()) {
                Err(error) if error.is_absent() => {}
                result => return result,
            }
        }
        Ok(())
    }

    /// The handles of the rules with such comments.
    fn handles(&mut self, is: impl Fn(&str) -> bool) -> Result<Vec<[u8; 8]>, Error> {
        let list = rule(libc::NFT_MSG_GETRULE, 0, CHECKS);
        let handle = |found: Attributes<'_>| {
            summary::user_comment(found).is_some_and(|note| is(&note)).then_some(())?;
            found.find(attr::RULE_HANDLE)?.0.try_into().ok()
        };
        let found = self.socket.dump(&list, |message| super::attributes(message).and_then(handle));
        match found {
            Err(error) if error.is_absent() => Ok(Vec::new()),
            found => found,
        }
    }
}

fn table(kind: i32, flags: u16) -> Request {
    request(kind, flags, libc::NFPROTO_INET as u8).attr(attr::TABLE, TABLE)
}

fn rule(kind: i32, flags: u16, chain: &str) -> Request {
    table(kind, flags).attr(attr::RULE_CHAIN, chain)
}

fn deletion(handle: [u8; 8]) -> Request {
    rule(libc::NFT_MSG_DELRULE, 0, CHECKS).attr(attr::RULE_HANDLE, handle)
}

/// Makes table and chains where they are absent, and the base chain's rules anew.
fn layout() -> Vec<Request> {
    let new_rule = || rule(libc::NFT_MSG_NEWRULE, CREATE | APPEND, POSTROUTING);
    let returns = Family::ALL.map(|family| {
        let matches = vec![Match::Destination { not: false, net: multicast(family) }];
        expr::write_of(new_rule(), family, &Rule { matches, verdict: Verdict::Return })
    });
    let mut requests = vec![
        table(libc::NFT_MSG_NEWTABLE, CREATE).attr(attr::TABLE_USERDATA, comment(TABLE_COMMENT).as_slice()),
        table(libc::NFT_MSG_NEWCHAIN, CREATE)
            .attr(attr::CHAIN_NAME, CHECKS)
            .attr(attr::CHAIN_USERDATA, comment(CHECKS_COMMENT).as_slice()),
        base_chain(),
        rule(libc::NFT_MSG_DELRULE, 0, POSTROUTING),
    ];
    requests.extend(returns);
    requests.push(expr::write_goto(new_rule(), CHECKS));
    requests
}

fn base_chain() -> Request {
    table(libc::NFT_MSG_NEWCHAIN, CREATE)
        .attr(attr::CHAIN_NAME, POSTROUTING)
        .nest(attr::CHAIN_HOOK, |hook| {
            hook.attr(attr::HOOK_NUMBER, (libc::NF_INET_POST_ROUTING as u32).to_be_bytes())
                .attr(attr::HOOK_PRIORITY, libc::NF_IP_PRI_NAT_SRC.to_be_bytes())
        })
        .attr(attr::CHAIN_POLICY, libc::NF_ACCEPT.to_be_bytes())
        .attr(attr::CHAIN_TYPE, "nat")
}

fn masquerade(net: IpNet, note: &str) -> Request {
    let matches =
        vec![Match::Source { not: false, net: net.addr().into() }, Match::Destination { not: true, net: net.trunc() }];
    let wanted = Rule { matches, verdict: Verdict::Masquerade { fully_random: false } };
    let end = (0..=note.len().min(COMMENT)).rev().find(|end| note.is_char_boundary(*end)).unwrap_or_default();
    let note = comment(&note[..end]);
    let request = rule(libc::NFT_MSG_NEWRULE, CREATE | APPEND, CHECKS);
    expr::write_of(request, Family::of_net(net), &wanted).attr(attr::RULE_USERDATA, note.as_slice())
}
