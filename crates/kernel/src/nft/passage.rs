//! The forward hook of nf_tables as a packet meets it: everybody's chains there, run on a packet in thought.
//!
//! Surface: [`Nft::blocks`]. A rule is a small program on registers ([`super::registers`]), and here is what runs it. Bytes that
//! cannot be known of the packet stay unknown in the registers; what compares them neither holds nor fails, and makes the rule a
//! doubtful one. A packet that a doubtful rule may have let through is not counted as dropped. Only anonymous sets, which
//! are written in rules, are looked into.

use flannel_core::addr::Family;

use super::listing::TableFamily;
use super::registers::{Membership, Registers};
use super::summary::summarize;
use super::trace::Verdict;
use super::{HEADER, Nft, attr, attributes, number, request, text};
use crate::netlink::{Attributes, Error, Payload, family_number, padded};
use crate::passage::{Block, Sample, System, xt};

/// No packet is followed through more rules.
const MOST_RULES: usize = 20_000;
/// Chains that jump to each other are followed no deeper; the kernel allows 16 (`NFT_JUMP_STACK_SIZE`).
const DEEPEST: usize = 16;
/// `IP_CT_NEW` as a bit of states (`NF_CT_STATE_BIT` of `linux/netfilter/nf_conntrack_common.h`).
const NEW: u32 = 8;

/// A chain at the forward hook.
struct Base {
    family: TableFamily,
    table: String,
    chain: String,
    drops: bool,
}

/// What became of the packet in a chain.
enum End {
    Accepted,
    Dropped {
        chain: String,
        rule: String,
    },
    /// Nothing was decided.
    Through,
}

impl Nft {
    /// The chains at the forward hook that are certain to drop a packet.
    pub(crate) fn blocks(&mut self, sample: &Sample) -> Result<Vec<Block>, Error> {
        let mut blocks = Vec::new();
        for base in self.forward_chains(sample)? {
            let mut walk = Walk {
                nft: self,
                sample,
                family: base.family,
                table: &base.table,
                mark: Some(vec![0; 4]),
                met: Vec::new(),
                doubt: false,
                left: MOST_RULES,
            };
            let (chain, rule) = match walk.pass(&base.chain, 0)? {
                End::Dropped { chain, rule } => (chain, Some(rule)),
                End::Through if base.drops => (base.chain.clone(), None),
                End::Accepted | End::Through => continue,
            };
            let Walk { met, doubt, .. } = walk;
            let Base { family, table, chain: base, .. } = base;
            let block = Block { family: sample.family, system: System::Nft(family), table, base, chain, rule, met };
            blocks.extend((!doubt).then_some(block));
        }
        Ok(blocks)
    }

    fn forward_chains(&mut self, sample: &Sample) -> Result<Vec<Base>, Error> {
        let dormant = self.dormant_tables()?;
        let of_packet = [libc::NFPROTO_INET as u8, family_number(sample.family)];
        let all = self.socket.dump(&request(libc::NFT_MSG_GETCHAIN, 0, 0), |message| {
            let family = *message.body.first().filter(|family| of_packet.contains(family))?;
            let chain = attributes(message)?;
            let hook = chain.inside(attr::CHAIN_HOOK);
            let forward = number(hook, attr::HOOK_NUMBER)? == libc::NF_INET_FORWARD as u32;
            forward.then_some(Base {
                family: TableFamily::of(family)?,
                table: text(chain, attr::TABLE)?.to_owned(),
                chain: text(chain, attr::CHAIN_NAME)?.to_owned(),
                drops: number(chain, attr::CHAIN_POLICY)? == libc::NF_DROP.cast_unsigned(),
            })
        })?;
        let is_awake =
            |base: &Base| !dormant.iter().any(|(family, table)| (*family, table) == (base.family, &base.table));
        Ok(all.into_iter().filter(is_awake).collect())
    }

    fn dormant_tables(&mut self) -> Result<Vec<(TableFamily, String)>, Error> {
        self.socket.dump(&request(libc::NFT_MSG_GETTABLE, 0, 0), |message| {
            let family = TableFamily::of(*message.body.first()?)?;
            let table = attributes(message)?;
            let is_dormant = number(table, attr::TABLE_FLAGS)? & attr::TABLE_DORMANT != 0;
            is_dormant.then_some((family, text(table, attr::TABLE)?.to_owned()))
        })
    }
}

/// A packet on its way through the chains of one table.
struct Walk<'a> {
    nft: &'a mut Nft,
    sample: &'a Sample,
    family: TableFamily,
    table: &'a str,
    /// In the host's byte order, if it is known.
    mark: Option<Vec<u8>>,
    met: Vec<String>,
    /// A rule that may or may not hold could have let the packet through.
    doubt: bool,
    left: usize,
}

/// What an expression says.
pub(super) enum Said {
    /// On to the next one.
    Holds,
    /// The rule is over.
    Fails,
    /// The one or the other.
    Unknown,
    Verdict(Verdict),
}

impl Walk<'_> {
    fn pass(&mut self, chain: &str, depth: usize) -> Result<End, Error> {
        let rules = if depth < DEEPEST { self.rules(chain)? } else { Vec::new() };
        self.doubt |= depth >= DEEPEST;
        if !self.met.iter().any(|met| met == chain) {
            self.met.push(chain.to_owned());
        }
        for rule in rules {
            let Some(left) = self.left.checked_sub(1) else {
                self.doubt = true;
                break;
            };
            self.left = left;
            let rule = Attributes(&rule);
            let (verdict, certain) = self.run(rule)?;
            match verdict {
                Verdict::Drop if certain => {
                    let rule = summarize(rule, self.family).text;
                    return Ok(End::Dropped { chain: chain.to_owned(), rule });
                }
                Verdict::Continue | Verdict::Drop => {}
                _ if !certain => self.doubt = true,
                Verdict::Return => return Ok(End::Through),
                Verdict::Jump(to) => match self.pass(&to, depth + 1)? {
                    End::Through => {}
                    end => return Ok(end),
                },
                Verdict::Goto(to) => return self.pass(&to, depth + 1),
                Verdict::Accept | Verdict::Stolen | Verdict::Queue | Verdict::Other(_) => return Ok(End::Accepted),
            }
        }
        Ok(End::Through)
    }

    /// The rules of a chain as the kernel tells them; none if it is gone meanwhile.
    fn rules(&mut self, chain: &str) -> Result<Vec<Vec<u8>>, Error> {
        let wanted = request(libc::NFT_MSG_GETRULE, 0, self.family.number())
            .attr(attr::TABLE, self.table)
            .attr(attr::RULE_CHAIN, chain);
        super::absent_is_empty(self.nft.socket.dump(&wanted, |message| {
            let of_chain = text(attributes(message)?, attr::RULE_CHAIN) == Some(chain);
            message.body.get(HEADER..).filter(|_| of_chain).map(<[u8]>::to_vec)
        }))
    }

    /// What a rule says, and whether that is certain.
    fn run(&mut self, rule: Attributes<'_>) -> Result<(Verdict, bool), Error> {
        let (mut registers, mut certain) = (Registers::default(), true);
        for (_, element) in rule.inside(attr::RULE_EXPRESSIONS).iter() {
            let element = element.attributes();
            let name = text(element, attr::EXPR_NAME).unwrap_or_default();
            match self.step(name, element.inside(attr::EXPR_DATA), &mut registers)? {
                Said::Holds => {}
                Said::Fails => return Ok((Verdict::Continue, true)),
                Said::Unknown => certain = false,
                Said::Verdict(verdict) => return Ok((verdict, certain)),
            }
        }
        Ok((Verdict::Continue, certain))
    }

    fn step(&mut self, name: &str, data: Attributes<'_>, registers: &mut Registers) -> Result<Said, Error> {
        Ok(match name {
            "meta" if data.find(attr::META_SREG).is_some() => {
                if number(data, attr::META_KEY) == Some(libc::NFT_META_MARK as u32) {
                    self.mark = registers.mark(data);
                }
                Said::Holds
            }
            "ct" if data.find(attr::CT_SREG).is_some() => Said::Holds,
            "meta" => registers.load(data, attr::META_DREG, self.meta(data).as_deref()),
            "ct" => registers.load(data, attr::CT_DREG, conntrack(data).as_deref()),
            "payload" if data.find(attr::PAYLOAD_DREG).is_some() => {
                registers.load(data, attr::PAYLOAD_DREG, self.payload(data).as_deref())
            }
            "bitwise" => registers.mask(data),
            "cmp" => answer(registers.compare(data)),
            "range" => answer(registers.within(data)),
            "lookup" => self.look_up(data, registers)?,
            "immediate" => match Verdict::read(data.inside(attr::IMMEDIATE_DATA).inside(attr::DATA_VERDICT)) {
                Some(Verdict::Continue) => Said::Holds,
                Some(verdict) => Said::Verdict(verdict),
                None => {
                    let value = data.inside(attr::IMMEDIATE_DATA).find(attr::DATA_VALUE);
                    registers.load(data, attr::IMMEDIATE_DREG, value.map(|value| value.0))
                }
            },
            "match" => self.xt_match(data),
            "target" => self.xt_target(data),
            "reject" => Said::Verdict(Verdict::Drop),
            "queue" => Said::Verdict(Verdict::Queue),
            "counter" | "log" | "objref" | "last" | "dynset" | "notrack" | "payload" => Said::Holds,
            _ => {
                *registers = Registers::default();
                Said::Unknown
            }
        })
    }

    fn meta(&self, data: Attributes<'_>) -> Option<Vec<u8>> {
        let ether_type = match self.sample.family {
            Family::V4 => libc::ETH_P_IP as u16,
            Family::V6 => libc::ETH_P_IPV6 as u16,
        };
        Some(match number(data, attr::META_KEY)?.cast_signed() {
            libc::NFT_META_MARK => self.mark.clone()?,
            libc::NFT_META_IIF => self.sample.input.to_ne_bytes().to_vec(),
            libc::NFT_META_OIF => self.sample.output.to_ne_bytes().to_vec(),
            libc::NFT_META_IIFNAME => padded(self.sample.packet.input).to_vec(),
            libc::NFT_META_OIFNAME => padded(self.sample.packet.output).to_vec(),
            libc::NFT_META_NFPROTO => vec![family_number(self.sample.family)],
            libc::NFT_META_PROTOCOL => ether_type.to_be_bytes().to_vec(),
            libc::NFT_META_L4PROTO => vec![crate::passage::TCP],
            _ => return None,
        })
    }

    fn payload(&self, data: Attributes<'_>) -> Option<Vec<u8>> {
        let header = match number(data, attr::PAYLOAD_BASE)?.cast_signed() {
            libc::NFT_PAYLOAD_NETWORK_HEADER => &self.sample.network,
            libc::NFT_PAYLOAD_TRANSPORT_HEADER => &self.sample.transport,
            _ => return None,
        };
        let from = number(data, attr::PAYLOAD_OFFSET)? as usize;
        let to = from.checked_add(number(data, attr::PAYLOAD_LEN)? as usize)?;
        header.get(from..to).map(<[u8]>::to_vec)
    }

    fn xt_match(&mut self, data: Attributes<'_>) -> Said {
        let name = text(data, attr::XT_NAME).unwrap_or_default();
        let content = data.find(attr::XT_CONTENT).map_or(&[][..], |content| content.0);
        let mark = self.mark.as_deref().and_then(|mark| Payload(mark).u32());
        answer(xt::holds(name, number(data, attr::XT_REVISION).unwrap_or(0), content, self.sample, mark))
    }

    fn xt_target(&mut self, data: Attributes<'_>) -> Said {
        match xt::target(text(data, attr::XT_NAME).unwrap_or_default()) {
            xt::Target::Drop => Said::Verdict(Verdict::Drop),
            xt::Target::Continue => Said::Holds,
            xt::Target::Mark => {
                self.mark = None;
                Said::Holds
            }
            xt::Target::Unknown => {
                self.doubt = true;
                Said::Fails
            }
        }
    }

    /// Looks into a set or a map that is written in a rule.
    fn look_up(&mut self, data: Attributes<'_>, registers: &mut Registers) -> Result<Said, Error> {
        const INVERTED: u32 = 1;
        let unknown = |registers: &mut Registers| {
            _ = registers.load(data, attr::LOOKUP_DREG, None);
            Ok(Said::Unknown)
        };
        let Some(set) = text(data, attr::LOOKUP_SET).filter(|set| set.starts_with("__")) else {
            return unknown(registers);
        };
        let elements = self.elements(set)?;
        let inverted = number(data, attr::LOOKUP_FLAGS).is_some_and(|flags| flags & INVERTED != 0);
        Ok(match registers.find(number(data, attr::LOOKUP_SREG), &elements) {
            Membership::Unknown => return unknown(registers),
            Membership::Outside => answer(Some(inverted)),
            Membership::In(_) if inverted => Said::Fails,
            Membership::In(element) => match (&element.verdict, data.find(attr::LOOKUP_DREG)) {
                (Some(Verdict::Continue), _) | (None, None) => Said::Holds,
                (Some(verdict), _) => Said::Verdict(verdict.clone()),
                (None, Some(_)) => registers.load(data, attr::LOOKUP_DREG, element.value.as_deref()),
            },
        })
    }

    fn elements(&mut self, set: &str) -> Result<Vec<Element>, Error> {
        let wanted = request(libc::NFT_MSG_GETSETELEM, 0, self.family.number())
            .attr(attr::TABLE, self.table)
            .attr(attr::ELEMENTS_SET, set);
        let lists = super::absent_is_empty(self.nft.socket.dump(&wanted, |message| {
            let list = attributes(message)?.inside(attr::ELEMENTS);
            Some(list.iter().filter_map(|(_, element)| Element::read(element.attributes())).collect::<Vec<_>>())
        }))?;
        Ok(lists.concat())
    }
}

fn answer(known: Option<bool>) -> Said {
    match known {
        Some(true) => Said::Holds,
        Some(false) => Said::Fails,
        None => Said::Unknown,
    }
}

/// A connection that is new, and that nothing has marked or translated.
fn conntrack(data: Attributes<'_>) -> Option<Vec<u8>> {
    match number(data, attr::CT_KEY)?.cast_signed() {
        libc::NFT_CT_STATE => Some(NEW.to_ne_bytes().to_vec()),
        libc::NFT_CT_STATUS | libc::NFT_CT_MARK => Some(vec![0; 4]),
        libc::NFT_CT_DIRECTION => Some(vec![0]),
        _ => None,
    }
}

/// An element of a set or a map.
#[derive(Debug, Clone)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    /// It is where an interval ends.
    pub(super) ends: bool,
    /// It has an end of its own: a range of several fields.
    pub(super) is_range: bool,
    /// It stands for whatever is not in the set.
    pub(super) catches_all: bool,
    pub(super) verdict: Option<Verdict>,
    pub(super) value: Option<Vec<u8>>,
}

impl Element {
    fn read(element: Attributes<'_>) -> Option<Self> {
        const INTERVAL_END: u32 = 1;
        const CATCH_ALL: u32 = 2;
        let flags = number(element, attr::ELEMENT_FLAGS).unwrap_or(0);
        let key = element.inside(attr::ELEMENT_KEY).find(attr::DATA_VALUE).map(|key| key.0.to_vec());
        let data = element.inside(attr::ELEMENT_DATA);
        let catches_all = flags & CATCH_ALL != 0;
        Some(Self {
            key: key.or_else(|| catches_all.then(Vec::new))?,
            ends: flags & INTERVAL_END != 0,
            is_range: element.find(attr::ELEMENT_KEY_END).is_some(),
            catches_all,
            verdict: Verdict::read(data.inside(attr::DATA_VERDICT)),
            value: data.find(attr::DATA_VALUE).map(|value| value.0.to_vec()),
        })
    }
}
