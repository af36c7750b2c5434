//! nf_tables by netlink: flannel's two tables, written in one transaction each and read back into the model.
//!
//! [`Nft`] reads, replaces and deletes tables `ip flannel-ipv4` and `ip6 flannel-ipv6`, tells the generation of all rules,
//! and finds and removes what flannel left in the tables of iptables-nft. [`notice::concerns`] judges notices. No program is
//! ever run, and nothing is kept: who needs to know whether rules changed compares generations. For people who follow a
//! packet, [`trace`] tells which rules it meets, and [`listing`] what anybody's rule says.

mod attr;
mod expr;
pub mod iptables;
pub mod listing;
pub mod notice;
mod passage;
mod pod_masquerade;
pub mod port_map;
mod registers;
mod spoof_check;
mod summary;
pub mod trace;

use std::os::fd::OwnedFd;

use flannel_core::addr::Family;
use flannel_core::rules::{Chain, Rule, Ruleset};
use rustix::io::Errno;

use crate::netlink::{Attributes, Error, Failure, Message, Payload, Protocol, Request, Socket, family_number};

const CREATE: u16 = libc::NLM_F_CREATE as u16;
const APPEND: u16 = libc::NLM_F_APPEND as u16;
/// Bytes of `struct nfgenmsg` of `linux/netfilter/nfnetlink.h`.
const HEADER: usize = 4;
/// How often a table is read again because rules changed meanwhile.
const READ_TRIES: usize = 8;
/// `NFTNL_UDATA_TABLE_COMMENT` and `NFTNL_UDATA_CHAIN_COMMENT`, under which `nft` stores comments in user data.
const COMMENT: u8 = 0;

/// A base chain (flannel's: compat §7).
struct BaseChain {
    name: &'static str,
    kind: &'static str,
    /// `NF_INET_*` of `linux/netfilter.h`.
    hook: u32,
    /// `NF_IP_PRI_*` of `linux/netfilter_ipv4.h`.
    priority: i32,
    comment: Option<&'static str>,
}

const POSTROUTING: BaseChain = BaseChain {
    name: "postrtg",
    kind: "nat",
    hook: libc::NF_INET_POST_ROUTING as u32,
    priority: libc::NF_IP_PRI_NAT_SRC,
    comment: Some("chain to manage traffic masquerading by flannel"),
};

const FORWARD: BaseChain = BaseChain {
    name: "forward",
    kind: "filter",
    hook: libc::NF_INET_FORWARD as u32,
    priority: libc::NF_IP_PRI_FILTER,
    comment: Some("chain to accept flannel traffic"),
};

/// The name of flannel's table of a family.
fn table_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "flannel-ipv4",
        Family::V6 => "flannel-ipv6",
    }
}

/// The rules of nf_tables in one network namespace.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
}

impl From<Nft> for OwnedFd {
    fn from(nft: Nft) -> Self {
        nft.socket.into()
    }
}

impl Nft {
    /// Opens nf_tables in the network namespace of this thread; none if this kernel has no nf_tables.
    pub fn open() -> Result<Option<Self>, Error> {
        let mut nft = match Socket::open(Protocol::Netfilter) {
            Ok(socket) => Self { socket },
            Err(error) if error.is_unsupported() => return Ok(None),
            Err(error) => return Err(error),
        };
        match nft.generation() {
            Ok(_) => Ok(Some(nft)),
            Err(error) if error.is_unsupported() || error.errno() == Errno::INVAL => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The number that every transaction of anybody's in this namespace raises.
    pub fn generation(&mut self) -> Result<u32, Error> {
        let found = self
            .socket
            .ask(&request(libc::NFT_MSG_GETGEN, 0, 0), |message| attributes(message)?.find(attr::GEN_ID)?.be32())?;
        found.first().copied().ok_or_else(|| Error::new(Errno::PROTO, "no generation in the kernel's answer"))
    }

    /// Reads flannel's table of a family; none if there is no such table.
    pub fn table(&mut self, family: Family) -> Result<Option<Ruleset>, Error> {
        for _ in 0..READ_TRIES {
            let before = self.generation()?;
            let ruleset = self.read_table(family)?;
            if self.generation()? == before {
                return Ok(ruleset);
            }
        }
        Err(Error::new(Errno::INTR, "rules changed while they were read, again and again"))
    }

    fn read_table(&mut self, family: Family) -> Result<Option<Ruleset>, Error> {
        let table = table_name(family);
        let wanted = request(libc::NFT_MSG_GETTABLE, 0, family_number(family)).attr(attr::TABLE, table);
        let Some(flags) = self.find(&wanted, |table| table.find(attr::TABLE_FLAGS).and_then(Payload::be32))? else {
            return Ok(None);
        };
        let active = flags.unwrap_or_default() & attr::TABLE_DORMANT == 0;
        let mut chain = |base: &BaseChain| {
            let based = self.find(&chain_request(family, table, base.name), |found| base.is(found))?;
            let rules = based.is_some().then(|| self.rules(family, table, base.name)).transpose()?;
            Ok::<_, Error>(rules.map(|rules| Chain { hooked: active && based == Some(true), rules }))
        };
        Ok(Some(Ruleset { postrouting: chain(&POSTROUTING)?, forward: chain(&FORWARD)? }))
    }

    /// Makes flannel's table of a family what is wanted, in one transaction: at no moment a packet meets less than the old
    /// rules or the new ones.
    pub fn replace(&mut self, family: Family, wanted: &Ruleset) -> Result<(), Error> {
        let number = family_number(family);
        let table = |kind, flags| request(kind, flags, number).attr(attr::TABLE, table_name(family));
        let note = comment(&format!("rules for {}", table_name(family)));
        let mut requests = vec![
            table(libc::NFT_MSG_NEWTABLE, CREATE),
            table(libc::NFT_MSG_DELTABLE, 0),
            table(libc::NFT_MSG_NEWTABLE, CREATE).attr(attr::TABLE_USERDATA, note.as_slice()),
        ];
        for (base, chain) in [(&POSTROUTING, &wanted.postrouting), (&FORWARD, &wanted.forward)] {
            if let Some(chain) = chain {
                requests.push(base.write(table(libc::NFT_MSG_NEWCHAIN, CREATE)));
                let rule = table(libc::NFT_MSG_NEWRULE, CREATE | APPEND).attr(attr::RULE_CHAIN, base.name);
                requests.extend(chain.rules.iter().map(|wanted| expr::write(rule.clone(), wanted)));
            }
        }
        self.transact(requests)
    }

    /// Deletes flannel's table of a family, if it is there.
    pub fn delete(&mut self, family: Family) -> Result<(), Error> {
        let table = request(libc::NFT_MSG_DELTABLE, 0, family_number(family)).attr(attr::TABLE, table_name(family));
        absent_is_fine(self.transact(vec![table]))
    }

    /// Sends a batch as one transaction. Which request the kernel refused it does not matter: none has any effect then.
    fn transact(&mut self, requests: Vec<Request>) -> Result<(), Error> {
        self.transact_telling(requests, |_| {})
    }

    /// The same, and hands what `NLM_F_ECHO` has the kernel tell of new objects to `each`.
    fn transact_telling(&mut self, requests: Vec<Request>, each: impl FnMut(Message<'_>)) -> Result<(), Error> {
        let [high, low] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
        let marker = |kind: i32| Request::new(kind as u16, 0).body(&[0, 0, high, low]);
        let mut batch = vec![marker(libc::NFNL_MSG_BATCH_BEGIN)];
        batch.extend(requests);
        batch.push(marker(libc::NFNL_MSG_BATCH_END));
        let failures = self.socket.transact(&batch, each)?;
        failures.into_iter().next().map_or(Ok(()), |Failure { error, .. }| Err(error))
    }

    /// Asks for one object; none if it is absent.
    fn find<T>(&mut self, request: &Request, read: impl Fn(Attributes<'_>) -> T) -> Result<Option<T>, Error> {
        match self.socket.ask(request, |message| attributes(message).map(&read)) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The rules of one chain, in order.
    fn rules(&mut self, family: Family, table: &str, chain: &str) -> Result<Vec<Rule>, Error> {
        let request = request(libc::NFT_MSG_GETRULE, 0, family_number(family))
            .attr(attr::TABLE, table)
            .attr(attr::RULE_CHAIN, chain);
        let in_chain = |rule: &Attributes<'_>| text(*rule, attr::RULE_CHAIN) == Some(chain);
        self.socket.dump(&request, |message| attributes(message).filter(in_chain).map(|rule| expr::read(rule, family)))
    }
}

impl BaseChain {
    /// Whether a chain as the kernel describes it is this one.
    fn is(&self, chain: Attributes<'_>) -> bool {
        let hook = chain.inside(attr::CHAIN_HOOK);
        text(chain, attr::CHAIN_TYPE) == Some(self.kind)
            && number(hook, attr::HOOK_NUMBER) == Some(self.hook)
            && number(hook, attr::HOOK_PRIORITY) == Some(self.priority.cast_unsigned())
            && number(chain, attr::CHAIN_POLICY) == Some(libc::NF_ACCEPT.cast_unsigned())
    }

    fn write(&self, request: Request) -> Request {
        request
            .attr(attr::CHAIN_NAME, self.name)
            .nest(attr::CHAIN_HOOK, |hook| {
                hook.attr(attr::HOOK_NUMBER, self.hook.to_be_bytes())
                    .attr(attr::HOOK_PRIORITY, self.priority.to_be_bytes())
            })
            .attr(attr::CHAIN_POLICY, libc::NF_ACCEPT.to_be_bytes())
            .attr(attr::CHAIN_TYPE, self.kind)
            .maybe(attr::CHAIN_USERDATA, self.comment.map(comment).as_deref())
    }
}

/// A request of nf_tables (`NFT_MSG_*`) for an address family, 0 for none.
fn request(kind: i32, flags: u16, family: u8) -> Request {
    Request::new((libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16, flags).body(&[family, 0, 0, 0])
}

fn chain_request(family: Family, table: &str, chain: &str) -> Request {
    request(libc::NFT_MSG_GETCHAIN, 0, family_number(family)).attr(attr::TABLE, table).attr(attr::CHAIN_NAME, chain)
}

/// User data that `nft` shows as a comment: type, length, and the text with its zero.
fn comment(text: &str) -> Vec<u8> {
    [&[COMMENT, text.len() as u8 + 1], text.as_bytes(), &[0]].concat()
}

fn attributes(message: Message<'_>) -> Option<Attributes<'_>> {
    message.split(HEADER).map(|(_, attributes)| attributes)
}

fn text(attributes: Attributes<'_>, kind: u16) -> Option<&str> {
    attributes.find(kind)?.text()
}

fn number(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    attributes.find(kind)?.be32()
}

fn absent_is_empty<T>(result: Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
    match result {
        Err(error) if error.is_absent() => Ok(Vec::new()),
        other => other,
    }
}

fn absent_is_fine(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_absent() => Ok(()),
        other => other,
    }
}
