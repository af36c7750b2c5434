//! A check of what a port of a bridge sends, by nf_tables, in the layout of the Go plugin `bridge`: table `bridge nat`, a jump in chain
//! `PREROUTING` for the port, and two chains of the port's own that drop frames with another source MAC than its own.
//!
//! Surface: [`Nft::check_spoofing`] and [`Nft::stop_checking`]. The table and its base chain stay, as the Go plugin leaves them.

use flannel_core::addr::{LinkName, Mac};

use super::{APPEND, CREATE, Nft, absent_is_fine, attr, comment, expr, request, summary};
use crate::netlink::{Attributes, Error, Request};

const TABLE: &str = "nat";
const PREROUTING: &str = "PREROUTING";
/// `NF_BR_PRE_ROUTING` of `linux/netfilter_bridge.h`.
const HOOK: u32 = 0;
/// `NF_BR_PRI_NAT_DST_BRIDGED` of `linux/netfilter_bridge.h`.
const PRIORITY: i32 = -300;

/// The names of what checks one port; `of` tells the port from all others.
struct Names {
    jumps: String,
    addresses: String,
    comment: String,
}

impl Names {
    fn new(of: &str) -> Self {
        let jumps = format!("cni-br-iface-{of}");
        Self { addresses: format!("{jumps}-mac"), jumps, comment: format!("macspoofchk-{of}") }
    }
}

impl Nft {
    /// Drops what comes from a port of a bridge with another source MAC than this. `of` is the port's name here, for ever; what
    /// checks it already is replaced. One transaction.
    pub fn check_spoofing(&mut self, of: &str, port: LinkName, mac: Mac) -> Result<(), Error> {
        let names = Names::new(of);
        let note = comment(&names.comment);
        let new_rule = |chain: &str| {
            rule(libc::NFT_MSG_NEWRULE, CREATE | APPEND, chain).attr(attr::RULE_USERDATA, note.as_slice())
        };
        let mut requests = vec![table(libc::NFT_MSG_NEWTABLE, CREATE), base_chain()];
        requests.extend([&names.jumps, &names.addresses].map(|name| chain(libc::NFT_MSG_NEWCHAIN, CREATE, name)));
        requests.extend([&names.jumps, &names.addresses].map(|name| rule(libc::NFT_MSG_DELRULE, 0, name)));
        requests.extend(self.jumps_of_port(&names)?);
        requests.extend([
            expr::write_jump_from(new_rule(PREROUTING), port, &names.jumps),
            expr::write_jump(new_rule(&names.jumps), &names.addresses),
            expr::write_return_of(new_rule(&names.addresses), mac),
            expr::write_drop(new_rule(&names.addresses)),
        ]);
        self.transact(requests)
    }

    /// Removes what checks a port. Succeeds when there is nothing.
    pub fn stop_checking(&mut self, of: &str) -> Result<(), Error> {
        let names = Names::new(of);
        let jumps = self.jumps_of_port(&names)?;
        if !jumps.is_empty() {
            self.transact(jumps)?;
        }
        // The first leads to the second.
        for name in [&names.jumps, &names.addresses] {
            absent_is_fine(self.transact(vec![chain(libc::NFT_MSG_DELCHAIN, 0, name)]))?;
        }
        Ok(())
    }

    /// The requests that delete the jumps to a port's chains.
    fn jumps_of_port(&mut self, names: &Names) -> Result<Vec<Request>, Error> {
        let list = rule(libc::NFT_MSG_GETRULE, 0, PREROUTING);
        let handle = |found: Attributes<'_>| {
            (summary::user_comment(found)? == names.comment).then_some(())?;
            let handle: [u8; 8] = found.find(attr::RULE_HANDLE)?.0.try_into().ok()?;
            Some(rule(libc::NFT_MSG_DELRULE, 0, PREROUTING).attr(attr::RULE_HANDLE, handle))
        };
        match self.socket.dump(&list, |message| super::attributes(message).and_then(handle)) {
            Err(error) if error.is_absent() => Ok(Vec::new()),
            found => found,
        }
    }
}

fn table(kind: i32, flags: u16) -> Request {
    request(kind, flags, libc::NFPROTO_BRIDGE as u8).attr(attr::TABLE, TABLE)
}

fn chain(kind: i32, flags: u16, name: &str) -> Request {
    table(kind, flags).attr(attr::CHAIN_NAME, name)
}

fn rule(kind: i32, flags: u16, chain: &str) -> Request {
    table(kind, flags).attr(attr::RULE_CHAIN, chain)
}

fn base_chain() -> Request {
    let hooked = chain(libc::NFT_MSG_NEWCHAIN, CREATE, PREROUTING).nest(attr::CHAIN_HOOK, |hook| {
        hook.attr(attr::HOOK_NUMBER, HOOK.to_be_bytes()).attr(attr::HOOK_PRIORITY, PRIORITY.to_be_bytes())
    });
    hooked.attr(attr::CHAIN_POLICY, libc::NF_ACCEPT.to_be_bytes()).attr(attr::CHAIN_TYPE, "filter")
}
