//! Which rules of nf_tables a packet meets: a temporary table that turns the kernel's tracing on for the packets followed.
//!
//! Surface: [`Trace`], the [`Event`]s it tells, and [`Pattern`], by which packets are known. The table is `lab-walk` (of
//! `inet`, and of `bridge` and `arp` where the kernel has them), hooked before all others at prerouting and output; it changes nothing
//! but the packet's `nftrace` bit, belongs to a socket and goes with it, even when the process is killed. It is none of
//! flannel's tables, and no notice about it concerns flanneld. iptables-legacy tells nothing of the kind.
//!
//! The kernel forgets the bit when a packet enters another namespace or a tunnel, so every namespace has a trace of its
//! own, and a tunnel's outer packet needs a pattern of its own.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::expr::expression;
use super::listing::TableFamily;
use super::{APPEND, CREATE, Nft, attr, attributes, number, request};
use crate::netlink::{Attributes, Error, Message, NoticeSocket, Payload, Protocol, Request};

/// The table's name.
pub const TABLE: &str = "lab-walk";
/// The multicast group of trace events (`linux/netfilter/nfnetlink.h`).
const GROUP: u32 = libc::NFNLGRP_NFTRACE as u32;
/// The most bytes that one pattern compares: the size of a register.
const MOST_BYTES: usize = 16;
/// Before everything: connection tracking, and whoever else calls himself first.
const PRIORITY: i32 = i32::MIN;
/// The families of tables that are made, with their chains, named as their hooks.
const FAMILIES: [(i32, Hooks); 3] = [
    (libc::NFPROTO_INET, HOOKS),
    (libc::NFPROTO_BRIDGE, HOOKS),
    // `NF_ARP_IN` and `NF_ARP_OUT` of `linux/netfilter_arp.h`.
    (libc::NFPROTO_ARP, [("input", 0), ("output", 1)]),
];
/// Names and numbers.
type Hooks = [(&'static str, i32); 2];
const HOOKS: Hooks = [("prerouting", libc::NF_INET_PRE_ROUTING), ("output", libc::NF_INET_LOCAL_OUT)];

/// A kind of packets that are followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// IP with a protocol behind it in which certain bytes stand at one place.
    Behind {
        /// An `IPPROTO_*`, of either address family.
        protocol: u8,
        /// Bytes from the start of the header behind IP.
        offset: u32,
        /// What stands there: 1 to 16 bytes.
        bytes: Vec<u8>,
    },
    /// ARP, all of it.
    Arp,
}

/// What happened to a followed packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The kernel's number for the packet; the same in all chains that it goes through in one namespace.
    pub packet: u32,
    /// The family of the table.
    pub family: TableFamily,
    /// The table.
    pub table: Box<str>,
    /// The chain.
    pub chain: Box<str>,
    /// What happened in it.
    pub step: Step,
    /// The index of the interface that the packet came in by.
    pub input: Option<u32>,
    /// The index of the interface that it goes out by.
    pub output: Option<u32>,
    /// Its mark.
    pub mark: u32,
    /// The IP header, or the whole of ARP; only told with the first event in a base chain, else empty.
    pub network: Box<[u8]>,
    /// The first bytes behind the IP header; likewise.
    pub transport: Box<[u8]>,
}

/// What happened in a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// All of a rule's matches held.
    Rule {
        /// The rule's handle, as [`super::listing::Listing::rule`] takes it.
        handle: u64,
        /// What it said.
        verdict: Verdict,
    },
    /// No rule of the chain decided: the chain that jumped here goes on, or the policy follows.
    End,
    /// The policy of a base chain.
    Policy(Verdict),
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It passes this base chain.
    Accept,
    /// It is dropped.
    Drop,
    /// The next rule is looked at.
    Continue,
    /// The chain that jumped here goes on.
    Return,
    /// Another chain is looked at, and then this goes on.
    Jump(Box<str>),
    /// Another chain is looked at instead of this.
    Goto(Box<str>),
    /// Somebody else has it now.
    Stolen,
    /// A program decides.
    Queue,
    /// Any other, by its number.
    Other(i32),
}

/// A trace that is running in one network namespace.
#[derive(Debug)]
pub struct Trace {
    nft: Nft,
    notices: NoticeSocket,
    lost: bool,
}

impl Trace {
    /// Begins to follow packets that fit any of the patterns, in the network namespace of this thread; none if this kernel
    /// has no nf_tables. There is one trace at a time in a namespace.
    pub fn start(patterns: &[Pattern]) -> Result<Option<Self>, Error> {
        let Some(nft) = Nft::open()? else { return Ok(None) };
        let notices = NoticeSocket::open(Protocol::Netfilter, &[GROUP])?;
        let mut trace = Self { nft, notices, lost: false };
        let met = |family| patterns.iter().any(|pattern| pattern.is_met_in(family));
        for (family, hooks) in FAMILIES.into_iter().filter(|(family, _)| met(*family)) {
            match trace.make(family, hooks, patterns) {
                Err(error) if error.errno() == Errno::PERM => {
                    return Err(Error::new(Errno::BUSY, "another trace is running here"));
                }
                // Every kernel that has nf_tables has those of inet.
                Err(error) if family == libc::NFPROTO_INET || !error.is_unsupported() => return Err(error),
                _ => {}
            }
        }
        Ok(Some(trace))
    }

    fn make(&mut self, family: i32, hooks: Hooks, patterns: &[Pattern]) -> Result<(), Error> {
        match self.nft.transact(table(family, hooks, patterns, attr::TABLE_OWNER)?) {
            // Before Linux 5.12 tables have no owner.
            Err(error) if error.is_unsupported() || error.errno() == Errno::INVAL => {
                self.nft.transact(table(family, hooks, patterns, 0)?)
            }
            made => made,
        }
    }

    /// Takes what was told since the last call, in order, without waiting.
    pub fn events(&mut self) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        loop {
            match self.notices.drain(|message| events.extend(Event::read(message))) {
                Err(error) if error.is_overrun() => self.lost = true,
                drained => return drained.map(|()| events),
            }
        }
    }

    /// Whether events were lost so far because nobody took them in time.
    pub fn lost(&self) -> bool {
        self.lost
    }

    /// Ends it: the table is gone when this returns.
    pub fn stop(mut self) -> Result<(), Error> {
        self.remove()
    }

    fn remove(&mut self) -> Result<(), Error> {
        FAMILIES.into_iter().try_for_each(|(family, _)| {
            let gone = self.nft.transact(vec![about_table(family, libc::NFT_MSG_DELTABLE, 0)]);
            super::absent_is_fine(gone).or_else(|error| if error.is_unsupported() { Ok(()) } else { Err(error) })
        })
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::debug!("table {TABLE} stays until its socket is closed: {error}");
        }
    }
}

impl AsFd for Trace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notices.as_fd()
    }
}

fn about_table(family: i32, kind: i32, flags: u16) -> Request {
    request(kind, flags, family as u8).attr(attr::TABLE, TABLE)
}

/// The requests that make the table, in place of one that a process left behind.
fn table(family: i32, hooks: Hooks, patterns: &[Pattern], flags: u32) -> Result<Vec<Request>, Error> {
    let long = |pattern: &&Pattern| matches!(pattern, Pattern::Behind { bytes, .. } if !(1..=MOST_BYTES).contains(&bytes.len()));
    if patterns.iter().any(|pattern| long(&pattern)) {
        return Err(Error::new(Errno::INVAL, "a pattern has 1 to 16 bytes"));
    }
    let mut requests = vec![
        about_table(family, libc::NFT_MSG_NEWTABLE, CREATE),
        about_table(family, libc::NFT_MSG_DELTABLE, 0),
        about_table(family, libc::NFT_MSG_NEWTABLE, CREATE).attr(attr::TABLE_FLAGS, flags.to_be_bytes()),
    ];
    for (chain, hook) in hooks {
        requests.push(
            about_table(family, libc::NFT_MSG_NEWCHAIN, CREATE)
                .attr(attr::CHAIN_NAME, chain)
                .nest(attr::CHAIN_HOOK, |nest| {
                    nest.attr(attr::HOOK_NUMBER, hook.to_be_bytes()).attr(attr::HOOK_PRIORITY, PRIORITY.to_be_bytes())
                })
                .attr(attr::CHAIN_TYPE, "filter"),
        );
        let rule = about_table(family, libc::NFT_MSG_NEWRULE, CREATE | APPEND).attr(attr::RULE_CHAIN, chain);
        let met = patterns.iter().filter(|pattern| pattern.is_met_in(family));
        requests.extend(met.map(|pattern| rule.clone().nest(attr::RULE_EXPRESSIONS, |list| pattern.write(list))));
    }
    Ok(requests)
}

impl Pattern {
    /// Whether tables of a family meet such packets.
    fn is_met_in(&self, family: i32) -> bool {
        match self {
            Self::Behind { .. } => family != libc::NFPROTO_ARP,
            Self::Arp => family != libc::NFPROTO_INET,
        }
    }

    /// `meta l4proto PROTOCOL @th,OFFSET,LENGTH BYTES meta nftrace set 1`, or `meta protocol arp meta nftrace set 1`.
    fn write(&self, list: Request) -> Request {
        let list = match self {
            Self::Behind { protocol, offset, bytes } => {
                let payload = |data: Request| {
                    data.attr(attr::PAYLOAD_DREG, REGISTER)
                        .attr(attr::PAYLOAD_BASE, libc::NFT_PAYLOAD_TRANSPORT_HEADER.to_be_bytes())
                        .attr(attr::PAYLOAD_OFFSET, offset.to_be_bytes())
                        .attr(attr::PAYLOAD_LEN, (bytes.len() as u32).to_be_bytes())
                };
                let list = expression(list, "meta", meta(libc::NFT_META_L4PROTO, attr::META_DREG));
                let list = expression(list, "cmp", equal(&[*protocol]));
                expression(expression(list, "payload", payload), "cmp", equal(bytes))
            }
            Self::Arp => {
                let list = expression(list, "meta", meta(libc::NFT_META_PROTOCOL, attr::META_DREG));
                expression(list, "cmp", equal(&(libc::ETH_P_ARP as u16).to_be_bytes()))
            }
        };
        let on = |data: Request| {
            data.attr(attr::IMMEDIATE_DREG, REGISTER)
                .nest(attr::IMMEDIATE_DATA, |value| value.attr(attr::DATA_VALUE, [1_u8]))
        };
        let list = expression(list, "immediate", on);
        expression(list, "meta", meta(libc::NFT_META_NFTRACE, attr::META_SREG))
    }
}

/// The register that everything goes through.
const REGISTER: [u8; 4] = (libc::NFT_REG_1 as u32).to_be_bytes();

fn meta(key: i32, of: u16) -> impl FnOnce(Request) -> Request {
    move |data| data.attr(of, REGISTER).attr(attr::META_KEY, key.cast_unsigned().to_be_bytes())
}

fn equal(value: &[u8]) -> impl FnOnce(Request) -> Request {
    move |data| {
        data.attr(attr::CMP_SREG, REGISTER)
            .attr(attr::CMP_OP, libc::NFT_CMP_EQ.to_be_bytes())
            .nest(attr::CMP_DATA, |data| data.attr(attr::DATA_VALUE, value))
    }
}

impl Event {
    /// Reads a trace message; none if it is something else, of our own table, or not to be understood.
    fn read(message: Message<'_>) -> Option<Self> {
        let [subsystem, kind] = message.kind.to_be_bytes();
        let ours = (i32::from(subsystem), i32::from(kind)) == (libc::NFNL_SUBSYS_NFTABLES, libc::NFT_MSG_TRACE);
        let told = attributes(message).filter(|_| ours)?;
        let index = |kind| number(told, kind).filter(|index| *index > 0);
        let header = |kind| told.find(kind).map(|header| header.0.into()).unwrap_or_default();
        let event = Self {
            packet: number(told, attr::TRACE_ID)?,
            family: TableFamily::of(*message.body.first()?)?,
            table: told.find(attr::TRACE_TABLE)?.text()?.into(),
            chain: told.find(attr::TRACE_CHAIN)?.text()?.into(),
            step: Step::read(told)?,
            input: index(attr::TRACE_IIF),
            output: index(attr::TRACE_OIF),
            mark: number(told, attr::TRACE_MARK).unwrap_or_default(),
            network: header(attr::TRACE_NETWORK_HEADER),
            transport: header(attr::TRACE_TRANSPORT_HEADER),
        };
        (&*event.table != TABLE).then_some(event)
    }
}

impl Step {
    fn read(told: Attributes<'_>) -> Option<Self> {
        match number(told, attr::TRACE_TYPE)?.cast_signed() {
            libc::NFT_TRACETYPE_RULE => match told.find(attr::TRACE_RULE_HANDLE) {
                Some(handle) => Some(Self::Rule {
                    handle: handle.be64()?,
                    verdict: Verdict::read(told.inside(attr::TRACE_VERDICT))?,
                }),
                // Kernels tell the end of the rules as a rule without a handle.
                None => Some(Self::End),
            },
            libc::NFT_TRACETYPE_RETURN => Some(Self::End),
            libc::NFT_TRACETYPE_POLICY => {
                Some(Self::Policy(Verdict::of(number(told, attr::TRACE_POLICY)?.cast_signed(), None)))
            }
            _ => None,
        }
    }
}

impl Verdict {
    /// Reads what is inside an attribute that holds a verdict.
    pub(super) fn read(verdict: Attributes<'_>) -> Option<Self> {
        let chain = verdict.find(attr::VERDICT_CHAIN).and_then(Payload::text);
        Some(Self::of(number(verdict, attr::VERDICT_CODE)?.cast_signed(), chain))
    }

    /// Of `NF_*` and `NFT_*`. The first have more to say in their upper bits (`NF_VERDICT_MASK`).
    pub(super) fn of(code: i32, chain: Option<&str>) -> Self {
        match (code, chain) {
            (libc::NFT_CONTINUE, _) => Self::Continue,
            (libc::NFT_RETURN, _) => Self::Return,
            (libc::NFT_JUMP, Some(chain)) => Self::Jump(chain.into()),
            (libc::NFT_GOTO, Some(chain)) => Self::Goto(chain.into()),
            (code, _) if code < 0 => Self::Other(code),
            (code, _) => match code & 0xff {
                libc::NF_DROP => Self::Drop,
                libc::NF_ACCEPT => Self::Accept,
                libc::NF_STOLEN => Self::Stolen,
                libc::NF_QUEUE => Self::Queue,
                other => Self::Other(other),
            },
        }
    }
}

impl std::fmt::Display for Verdict {
    /// As `nft` writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Continue => f.write_str("continue"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Stolen => f.write_str("stolen"),
            Self::Queue => f.write_str("queue"),
            Self::Other(code) => write!(f, "verdict {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::Messages;

    fn read(request: &Request) -> Option<Event> {
        let mut bytes = Vec::new();
        request.write(&mut bytes, 0, 0);
        Event::read(Messages(&bytes).next().unwrap())
    }

    fn told(table: &str, kind: i32) -> Request {
        request(libc::NFT_MSG_TRACE, 0, libc::NFPROTO_IPV6 as u8)
            .attr(attr::TRACE_ID, 7_u32.to_be_bytes())
            .attr(attr::TRACE_TABLE, table)
            .attr(attr::TRACE_CHAIN, "forward")
            .attr(attr::TRACE_TYPE, kind.to_be_bytes())
    }

    fn ruled(code: i32) -> Step {
        let rule = told("theirs", libc::NFT_TRACETYPE_RULE).attr(attr::TRACE_RULE_HANDLE, 9_u64.to_be_bytes());
        let verdict =
            |nest: Request| nest.attr(attr::VERDICT_CODE, code.to_be_bytes()).attr(attr::VERDICT_CHAIN, "next");
        read(&rule.nest(attr::TRACE_VERDICT, verdict)).unwrap().step
    }

    #[test]
    fn verdicts_are_those_of_the_kernel() {
        let rule = |verdict| Step::Rule { handle: 9, verdict };
        assert_eq!(ruled(libc::NF_ACCEPT), rule(Verdict::Accept));
        assert_eq!(ruled(libc::NF_DROP | 1 << 16), rule(Verdict::Drop));
        assert_eq!(ruled(libc::NFT_JUMP), rule(Verdict::Jump("next".into())));
        assert_eq!(ruled(libc::NFT_GOTO), rule(Verdict::Goto("next".into())));
        assert_eq!(ruled(libc::NF_QUEUE | 5 << 16), rule(Verdict::Queue));
        assert_eq!(ruled(libc::NFT_BREAK), rule(Verdict::Other(libc::NFT_BREAK)));
    }

    #[test]
    fn what_is_not_told_is_absent() {
        let policy = told("theirs", libc::NFT_TRACETYPE_POLICY);
        assert_eq!(read(&policy), None);
        let event = read(&policy.attr(attr::TRACE_POLICY, libc::NF_DROP.to_be_bytes())).unwrap();
        assert_eq!((event.packet, event.family, event.step), (7, TableFamily::Ip6, Step::Policy(Verdict::Drop)));
        assert_eq!((event.input, event.output, event.network.len()), (None, None, 0));
        assert_eq!(read(&told(TABLE, libc::NFT_TRACETYPE_RETURN)), None);
        assert_eq!(read(&request(libc::NFT_MSG_NEWRULE, 0, 2)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(noise in proptest::collection::vec(any::<u8>(), 0..120)) {
            let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | libc::NFT_MSG_TRACE) as u16;
            let _ = Event::read(Message { kind, flags: 0, sequence: 0, body: &noise });
            let _ = read(&told("theirs", libc::NFT_TRACETYPE_RULE).attr(attr::TRACE_VERDICT, noise.as_slice()));
        }
    }
}
