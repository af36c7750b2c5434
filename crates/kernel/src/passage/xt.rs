//! What the modules of iptables ask of a packet, in both variants of iptables: matches by name and content.
//!
//! Contents are the structures of `linux/netfilter/xt_*.h`. Modules that are not known here answer that they do not know.

use super::Sample;
use super::sample::{PORTS, TCP};
use crate::netlink::Payload;

/// `XT_CONNTRACK_STATE_BIT(IP_CT_NEW)` of `linux/netfilter/xt_conntrack.h`.
const NEW: u16 = 1 << 3;
/// `XT_CONNTRACK_STATE`.
const ASKS_STATE: u16 = 1;
/// `XT_PHYSDEV_OP_BRIDGED` of `linux/netfilter/xt_physdev.h`.
const ASKS_BRIDGED: u8 = 1 << 2;

/// What a target does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// It is dropped.
    Drop,
    /// The next rule is looked at.
    Continue,
    /// The same, and its mark is another now.
    Mark,
    /// Somebody else decides.
    Unknown,
}

/// What a target does, by its name.
pub(crate) fn target(name: &str) -> Target {
    match name {
        "REJECT" => Target::Drop,
        "MARK" | "CONNMARK" => Target::Mark,
        "LOG" | "NFLOG" | "ULOG" | "AUDIT" | "TCPMSS" | "CT" | "NOTRACK" | "TRACE" | "TTL" | "HL" | "CLASSIFY"
        | "DSCP" | "TOS" | "SET" | "CHECKSUM" | "SECMARK" | "CONNSECMARK" | "RATEEST" | "LED" => Target::Continue,
        _ => Target::Unknown,
    }
}

/// Whether a match holds for a packet with a mark, if both can be known.
pub(crate) fn holds(name: &str, revision: u32, content: &[u8], sample: &Sample, mark: Option<u32>) -> Option<bool> {
    match name {
        "comment" => Some(true),
        "conntrack" => conntrack(revision, content),
        "state" => Some(Payload(content.get(..4)?).u32()? & u32::from(NEW) != 0),
        "mark" if revision >= 1 => {
            let number = |at| Payload(content.get(at..at + 4)?).u32();
            Some((mark? & number(4)? == number(0)?) != (*content.get(8)? != 0))
        }
        "tcp" => tcp(content, sample),
        "udp" | "icmp" | "icmp6" | "sctp" => Some(false),
        "multiport" if revision == 1 => multiport(content),
        // What is routed is not bridged.
        "physdev" if *content.get(65)? == ASKS_BRIDGED => Some(content.get(64)? & ASKS_BRIDGED != 0),
        _ => None,
    }
}

/// `struct xt_conntrack_mtinfo1` to `3`: what is asked, what is negated, and the states.
fn conntrack(revision: u32, content: &[u8]) -> Option<bool> {
    const ASKED: usize = 146;
    let number = |at: usize| Payload(content.get(at..at + 2)?).u16();
    let (asked, inverted) = (number(ASKED)?, number(ASKED + 2)?);
    let states = match revision {
        1 => u16::from(*content.get(ASKED + 4)?),
        _ => number(ASKED + 4)?,
    };
    let state = (asked & ASKS_STATE != 0).then_some((states & NEW != 0) != (inverted & ASKS_STATE != 0));
    match (state, asked & !ASKS_STATE) {
        (Some(false), _) => Some(false),
        (state, 0) => Some(state.unwrap_or(true)),
        _ => None,
    }
}

/// `struct xt_tcp`: ranges of ports, an option, flags, and which of them are negated.
fn tcp(content: &[u8], sample: &Sample) -> Option<bool> {
    const FLAGS: usize = 13;
    let number = |at: usize| Payload(content.get(at..at + 2)?).u16();
    let [option, mask, flags, inverted] = *content.get(8..12)? else { return None };
    let [source, destination] = PORTS;
    let within = |at: usize, port: u16| Some((number(at)?..=number(at + 2)?).contains(&port));
    let is_set = sample.transport[FLAGS] & mask == flags;
    // The header has no options.
    let has_option = option == 0;
    let answers = [within(0, source)?, within(4, destination)?, is_set, has_option];
    Some(answers.into_iter().enumerate().all(|(bit, answer)| answer != (inverted & 1 << bit != 0)))
}

/// `struct xt_multiport_v1`: which end, how many ports, the ports, which of them begin a range, and whether it is negated.
fn multiport(content: &[u8]) -> Option<bool> {
    const MOST: usize = 15;
    let [which, count, ..] = *content else { return None };
    let (begins, inverted) = (content.get(32..32 + MOST)?, *content.get(47)? != 0);
    let port = |at: usize| Payload(content.get(2 + 2 * at..4 + 2 * at)?).u16();
    let [source, destination] = PORTS;
    let (mut found, mut at) = (false, 0);
    while at < usize::from(count).min(MOST) {
        let first = port(at)?;
        at += usize::from(begins[at] != 0);
        let range = first..=port(at.min(MOST - 1))?;
        found |= (which != 1 && range.contains(&source)) || (which != 0 && range.contains(&destination));
        at += 1;
    }
    Some(found != inverted)
}

/// Whether the protocol of a rule is that of the packet; 0 stands for all.
pub(crate) fn is_protocol(number: u16) -> bool {
    number == 0 || number == u16::from(TCP)
}
