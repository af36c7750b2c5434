//! The forward hook of iptables-legacy as a packet meets it, worked out from the entries of its tables.
//!
//! Surface: [`blocks`], [`chains`], which tells what chains there are, and [`digest`], which is another when one of both may be.
//! What a module asks is [`crate::passage::xt`]'s; a rule that asks what is not known there is a doubtful one, and a packet that it
//! may have let through is not counted as dropped.

use std::io;
use std::net::IpAddr;

use flannel_core::addr::{Family, LinkName};

use super::{Layout, Table, Tables, digest_of};
use crate::iptables::legacy_tables;
use crate::netlink::{Payload, octets, padded};
use crate::passage::{Block, Sample, System, xt};

/// The tables that have a chain at the hook.
const TABLES: [&str; 3] = ["mangle", "filter", "security"];
/// `NF_INET_FORWARD` of `linux/netfilter.h`.
const FORWARD: usize = libc::NF_INET_FORWARD as usize;
/// No packet is followed through more rules, and no deeper: tables that lead in a circle are not accepted by the kernel.
const MOST_RULES: usize = 200_000;
const DEEPEST: usize = 64;
/// Bytes of `struct xt_entry_match` and `xt_entry_target` before their content: the size, the name, and the revision.
const HEADER: usize = 32;
const NAME: std::ops::Range<usize> = 2..31;
/// Verdicts of standard targets below zero are `-NF_* - 1`, or `XT_RETURN`.
const DROP: i32 = -libc::NF_DROP - 1;
const RETURN: i32 = -libc::NF_REPEAT - 1;
/// `IPT_F_GOTO` and `IP6T_F_GOTO`.
const GOTO: [u8; 2] = [2, 4];
/// `IPT_INV_*`, which are those of IPv6 too.
const NOT_INPUT: u8 = 1;
const NOT_OUTPUT: u8 = 2;
const NOT_SOURCE: u8 = 8;
const NOT_DESTINATION: u8 = 0x10;
/// `IPT_INV_FRAG`; what is a fragment is not asked of the first packet of a connection.
const NOT_FRAGMENT: u8 = 0x20;
const NOT_PROTOCOL: u8 = 0x40;
/// `IPT_F_FRAG`.
const FRAGMENT: u8 = 1;

/// The chains of iptables-legacy that are certain to drop a packet.
pub(crate) fn blocks(sample: &Sample) -> io::Result<Vec<Block>> {
    let present = legacy_tables(sample.family);
    let tables = Tables::open(sample.family)?;
    let mut blocks = Vec::new();
    for name in TABLES.into_iter().filter(|name| present.iter().any(|table| table == name)) {
        blocks.extend(block(sample, name, &tables.read(name)?));
    }
    Ok(blocks)
}

/// A digest of all rules at the hook, and of how large `nat` is: its many rules are not read to see whether a chain has come.
pub(crate) fn digest(family: Family) -> io::Result<u64> {
    digest_of(family, |table| TABLES.contains(&table))
}

/// The chains that people made in the tables `nat` and `filter` of a family.
pub(crate) fn chains(family: Family) -> io::Result<Vec<String>> {
    let tables = Tables::open(family)?;
    let mut chains = Vec::new();
    for name in legacy_tables(family).iter().filter(|table| matches!(table.as_str(), "nat" | "filter")) {
        let table = tables.read(name)?;
        chains.extend(Entries { family, bytes: &table.entries }.heads().into_iter().map(|(_, name)| name));
    }
    Ok(chains)
}

fn block(sample: &Sample, name: &str, table: &Table) -> Option<Block> {
    let entries = Entries { family: sample.family, bytes: &table.entries };
    let mut walk = Walk { entries, sample, mark: Some(0), doubt: false, met: Vec::new(), left: MOST_RULES };
    let Some(End::Dropped(at)) = walk.pass(*table.hooks.get(FORWARD)? as usize, 0) else { return None };
    let heads = walk.entries.heads();
    let named = |offset: usize| heads.iter().rfind(|(head, _)| *head <= offset).map(|(_, name)| name.clone());
    let is_policy = table.policies.get(FORWARD).is_some_and(|policy| *policy as usize == at);
    let begin = walk.met.iter().copied().filter(|begin| *begin <= at).max().unwrap_or(at);
    let chain = named(at).unwrap_or_else(|| "FORWARD".into());
    let met = walk.met.iter().filter_map(|offset| named(*offset)).collect();
    let block = Block {
        family: sample.family,
        system: System::Legacy,
        table: name.to_owned(),
        base: "FORWARD".to_owned(),
        chain,
        rule: (!is_policy).then(|| format!("number {}", walk.entries.place(at, begin))),
        met,
    };
    (!walk.doubt).then_some(block)
}

/// The entries of a table, each with its length.
#[derive(Clone, Copy)]
struct Entries<'a> {
    family: Family,
    bytes: &'a [u8],
}

/// One of them.
struct Entry<'a> {
    bytes: &'a [u8],
    target: &'a [u8],
}

/// What became of the packet in a chain.
enum End {
    Accepted,
    /// By the entry at this offset.
    Dropped(usize),
    /// Nothing was decided.
    Through,
}

impl<'a> Entries<'a> {
    fn at(&self, offset: usize) -> Option<Entry<'a>> {
        let layout = Layout::of(self.family);
        let bytes = self.bytes.get(offset..)?;
        let number = |at: usize| Some(usize::from(Payload(bytes.get(at..at + 2)?).u16()?));
        let (target, next) = (number(layout.next_offset - 2)?, number(layout.next_offset)?);
        let bytes = bytes.get(..next).filter(|bytes| !bytes.is_empty())?;
        Some(Entry { bytes, target: bytes.get(target..)? })
    }

    fn all(self) -> impl Iterator<Item = (usize, Entry<'a>)> {
        let mut offset = 0;
        std::iter::from_fn(move || {
            let entry = self.at(offset)?;
            let at = offset;
            offset += entry.bytes.len();
            Some((at, entry))
        })
    }

    /// Where chains that people made begin, and their names; the end of the table is none.
    fn heads(&self) -> Vec<(usize, String)> {
        let head = |(at, entry): (usize, Entry<'_>)| {
            let name = Payload(entry.target.get(HEADER..)?).text()?;
            (entry.name() == Some("ERROR") && name != "ERROR").then(|| (at, name.to_owned()))
        };
        self.all().filter_map(head).collect()
    }

    /// Which rule of its chain an entry is, counted as `iptables -L --line-numbers` does; `begin` is the chain's first entry.
    fn place(&self, offset: usize, begin: usize) -> usize {
        self.all().filter(|(at, _)| (begin..=offset).contains(at)).count()
    }
}

impl<'a> Entry<'a> {
    fn name(&self) -> Option<&'a str> {
        Payload(self.target.get(NAME)?).text()
    }

    /// The verdict of a standard target.
    fn verdict(&self) -> Option<i32> {
        Some(Payload(self.target.get(HEADER..HEADER + 4)?).u32()?.cast_signed())
    }
}

/// A packet on its way through the chains of one table.
struct Walk<'a> {
    entries: Entries<'a>,
    sample: &'a Sample,
    mark: Option<u32>,
    /// A rule that may or may not hold could have let the packet through.
    doubt: bool,
    /// Where the chains begin that it went through.
    met: Vec<usize>,
    left: usize,
}

impl Walk<'_> {
    /// None if the table is not to be understood.
    fn pass(&mut self, begin: usize, depth: usize) -> Option<End> {
        self.met.push(begin);
        let mut at = begin;
        loop {
            self.left = self.left.checked_sub(1).filter(|_| depth < DEEPEST)?;
            let entry = self.entries.at(at)?;
            let held = self.holds(&entry);
            let (here, is_goto) = (at, self.is_goto(&entry)?);
            at += entry.bytes.len();
            let (Some(name), true) = (entry.name(), held != Some(false)) else { continue };
            match (name, held.is_some()) {
                ("ERROR", _) => return Some(End::Through),
                ("", certain) => match (entry.verdict()?, certain) {
                    (DROP, true) => return Some(End::Dropped(here)),
                    (DROP, false) => {}
                    (_, false) => self.doubt = true,
                    (RETURN, _) => return Some(End::Through),
                    (verdict, _) if verdict < 0 => return Some(End::Accepted),
                    (to, _) if is_goto => return self.pass(usize::try_from(to).ok()?, depth + 1),
                    (to, _) => match self.pass(usize::try_from(to).ok()?, depth + 1)? {
                        End::Through => {}
                        end => return Some(end),
                    },
                },
                (name, certain) => match xt::target(name) {
                    xt::Target::Drop if certain => return Some(End::Dropped(here)),
                    xt::Target::Drop | xt::Target::Continue => {}
                    xt::Target::Mark => self.mark = None,
                    xt::Target::Unknown => self.doubt = true,
                },
            }
        }
    }

    fn is_goto(&self, entry: &Entry<'_>) -> Option<bool> {
        let (at, bit) = match self.entries.family {
            Family::V4 => (82, GOTO[0]),
            Family::V6 => (131, GOTO[1]),
        };
        Some(entry.bytes.get(at)? & bit != 0)
    }

    /// Whether a rule takes the packet; none if that cannot be known.
    fn holds(&self, entry: &Entry<'_>) -> Option<bool> {
        let mut answers = vec![self.asks_of_header(entry)];
        let mut rest =
            entry.bytes.get(Layout::of(self.entries.family).counters + super::COUNTERS..).unwrap_or_default();
        while rest.len() > entry.target.len() {
            let size = usize::from(Payload(rest.get(..2)?).u16()?);
            let found = rest.get(..size).filter(|_| size >= HEADER)?;
            let name = Payload(&found[NAME]).text()?;
            answers.push(xt::holds(name, u32::from(found[31]), &found[HEADER..], self.sample, self.mark));
            rest = &rest[size..];
        }
        if answers.contains(&Some(false)) { Some(false) } else { (!answers.contains(&None)).then_some(true) }
    }

    /// `struct ipt_ip` and `struct ip6t_ip6`: addresses with their masks, interfaces with theirs, the protocol.
    fn asks_of_header(&self, entry: &Entry<'_>) -> Option<bool> {
        let address = usize::from(self.entries.family.bits() / 8);
        let field = |at: usize, length: usize| entry.bytes.get(at..at + length);
        let links = 4 * address;
        let protocol = links + 4 * libc::IFNAMSIZ;
        let (flags, inverted) = match self.entries.family {
            Family::V4 => (protocol + 2, protocol + 3),
            Family::V6 => (protocol + 3, protocol + 4),
        };
        let (flags, inverted) = (*entry.bytes.get(flags)?, *entry.bytes.get(inverted)?);
        let packet = &self.sample.packet;
        let net =
            |at: usize, of: IpAddr| Some(masked(&octets(of), field(at, address)?, field(at + 2 * address, address)?));
        let link = |at: usize, of: LinkName| {
            Some(masked(&padded(of), field(at, libc::IFNAMSIZ)?, field(at + 2 * libc::IFNAMSIZ, libc::IFNAMSIZ)?))
        };
        let asks_fragment = self.entries.family == Family::V4 && flags & FRAGMENT != 0 && inverted & NOT_FRAGMENT == 0;
        let answers = [
            net(0, packet.source)? != (inverted & NOT_SOURCE != 0),
            net(address, packet.destination)? != (inverted & NOT_DESTINATION != 0),
            link(links, packet.input)? != (inverted & NOT_INPUT != 0),
            link(links + libc::IFNAMSIZ, packet.output)? != (inverted & NOT_OUTPUT != 0),
            xt::is_protocol(Payload(field(protocol, 2)?).u16()?) != (inverted & NOT_PROTOCOL != 0),
            !asks_fragment,
        ];
        Some(answers.into_iter().all(|answer| answer))
    }
}

/// Whether a value is the wanted one, as far as the mask goes.
fn masked(value: &[u8], wanted: &[u8], mask: &[u8]) -> bool {
    value.iter().zip(wanted).zip(mask).all(|((value, wanted), mask)| (value ^ wanted) & mask == 0)
}
