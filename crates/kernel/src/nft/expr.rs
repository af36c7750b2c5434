//! Rules as the expressions of nf_tables: the model written as the kernel runs it, and read back.
//!
//! A rule is a small program on one register (a translation takes two): load, mask, compare, then a verdict. Prefixes on a byte boundary are a shorter
//! load without a mask, as `nft` writes them; reading takes either form. What flannel never writes becomes
//! [`Match::Other`] or [`Verdict::Other`] by the expression's name.

use std::net::{IpAddr, SocketAddr};

use flannel_core::addr::{Family, LinkName, Mac};
use flannel_core::rules::{MASQUERADE_MARK, Match, Protocol, Rule, Verdict};
use ipnet::IpNet;

use super::attr;
use crate::netlink::{Attributes, Payload, Request, family_number, family_of, octets, padded};

/// `NFT_REG_1`, the register that is loaded and compared.
const REGISTER: u32 = libc::NFT_REG_1 as u32;
/// The register of the port that a destination is translated to; its address is in [`REGISTER`].
const PORT_REGISTER: u32 = libc::NFT_REG_2 as u32;
const VERDICT_REGISTER: u32 = libc::NFT_REG_VERDICT as u32;
const NETWORK_HEADER: u32 = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
const TRANSPORT_HEADER: u32 = libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32;
/// Offset and length of the destination port in the header of TCP, UDP and SCTP alike (RFC 9293 §3.1, 768, 9260 §3).
const DESTINATION_PORT: (u32, u32) = (2, 2);
const META_MARK: u32 = libc::NFT_META_MARK as u32;
/// `NFT_META_NFPROTO`: the address family, in tables of both.
const META_FAMILY: u32 = libc::NFT_META_NFPROTO as u32;
const META_PROTOCOL: u32 = libc::NFT_META_L4PROTO as u32;
const CT_STATUS: u32 = libc::NFT_CT_STATUS as u32;
const CT_PORT: u32 = libc::NFT_CT_PROTO_DST as u32;
/// `IPS_DST_NAT` of `linux/netfilter/nf_conntrack_common.h`.
const TRANSLATED: u32 = 1 << 5;
/// `IP_CT_DIR_ORIGINAL` of `linux/netfilter/nf_conntrack_tuple_common.h`.
const ORIGINAL: u8 = 0;
/// The kind of a local address, as a fib look-up puts it into a register.
const LOCAL: u32 = libc::RTN_LOCAL as u32;
const META_LINK: u32 = libc::NFT_META_IIFNAME as u32;
const LINK_HEADER: u32 = libc::NFT_PAYLOAD_LL_HEADER as u32;
/// Byte offset of the source in the Ethernet header.
const SOURCE_MAC: u32 = 6;
const EQUAL: u32 = libc::NFT_CMP_EQ as u32;
const NOT_EQUAL: u32 = libc::NFT_CMP_NEQ as u32;
const RETURN: i32 = libc::NFT_RETURN;
const ACCEPT: i32 = libc::NF_ACCEPT;
const JUMP: i32 = libc::NFT_JUMP;
const GOTO: i32 = libc::NFT_GOTO;

/// One expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expr {
    /// Load bytes of a header.
    Payload { base: u32, offset: u32, len: u32 },
    /// Load something about the packet, by key.
    Meta(u32),
    /// Load something about the packet's connection, by key; with `original` of its first packet.
    Ct { key: u32, original: bool },
    /// Load the kind of the destination address.
    Fib,
    /// Keep the bits of a mask.
    Mask(Vec<u8>),
    /// Go on only if the register is equal to a value, or with `not` if it is not.
    Cmp { not: bool, value: Vec<u8> },
    /// Leave the rule with a verdict; jumps name a chain.
    Verdict { code: i32, chain: Option<String> },
    /// Load a value.
    Load { register: u32, value: Vec<u8> },
    /// Masquerade.
    Masq { flags: u32 },
    /// Translate the destination to what is in the two registers.
    Dnat(Family),
    /// Anything else, by name.
    Other(String),
}

impl Expr {
    /// The expression's name in the kernel.
    fn name(&self) -> &str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Meta(_) => "meta",
            Self::Ct { .. } => "ct",
            Self::Fib => "fib",
            Self::Mask(_) => "bitwise",
            Self::Cmp { .. } => "cmp",
            Self::Verdict { .. } | Self::Load { .. } => "immediate",
            Self::Masq { .. } => "masq",
            Self::Dnat(_) => "nat",
            Self::Other(name) => name,
        }
    }
}

/// Adds a rule's expressions to the message that makes it.
pub(super) fn write(request: Request, rule: &Rule) -> Request {
    let exprs = rule.matches.iter().flat_map(of_match).chain(of_verdict(&rule.verdict)).collect::<Vec<_>>();
    request.nest(attr::RULE_EXPRESSIONS, |list| exprs.iter().fold(list, write_expr))
}

/// Adds the expressions of a rule in a table of both families, which is for one.
pub(super) fn write_of(request: Request, family: Family, rule: &Rule) -> Request {
    let of_family = [Expr::Meta(META_FAMILY), equal([family_number(family)])];
    let exprs = of_family.into_iter().chain(rule.matches.iter().flat_map(of_match)).chain(of_verdict(&rule.verdict));
    write_exprs(request, &exprs.collect::<Vec<_>>())
}

/// Adds the expressions of a rule that sends every packet on to another chain, for good.
pub(super) fn write_goto(request: Request, chain: &str) -> Request {
    write_exprs(request, &[to_chain(GOTO, chain)])
}

/// Adds the expressions of a rule that sends every packet through another chain.
pub(super) fn write_jump(request: Request, chain: &str) -> Request {
    write_exprs(request, &[to_chain(JUMP, chain)])
}

/// The same for what came in by a link.
pub(super) fn write_jump_from(request: Request, link: LinkName, chain: &str) -> Request {
    write_exprs(request, &[Expr::Meta(META_LINK), equal(padded(link)), to_chain(JUMP, chain)])
}

/// Adds the expressions of a rule that spares frames from a MAC the rest of the chain.
pub(super) fn write_return_of(request: Request, source: Mac) -> Request {
    let address = Expr::Payload { base: LINK_HEADER, offset: SOURCE_MAC, len: size_of::<Mac>() as u32 };
    write_exprs(request, &[address, equal(source.0), Expr::Verdict { code: RETURN, chain: None }])
}

/// Adds the expression of a rule that drops everything.
pub(super) fn write_drop(request: Request) -> Request {
    write_exprs(request, &[Expr::Verdict { code: libc::NF_DROP, chain: None }])
}

fn to_chain(code: i32, chain: &str) -> Expr {
    Expr::Verdict { code, chain: Some(chain.to_owned()) }
}

fn write_exprs(request: Request, exprs: &[Expr]) -> Request {
    request.nest(attr::RULE_EXPRESSIONS, |list| exprs.iter().fold(list, write_expr))
}

/// Reads a rule from the attributes of its message.
pub(super) fn read(rule: Attributes<'_>, family: Family) -> Rule {
    let exprs = exprs(rule);
    let mut matches = Vec::new();
    let mut rest = exprs.as_slice();
    loop {
        let taken = match rest {
            [] => return Rule { matches, verdict: Verdict::Other("continue".into()) },
            _ if let Some(verdict) = to_verdict(rest) => return Rule { matches, verdict },
            _ => to_match(rest, family),
        };
        matches.push(taken.0);
        rest = &rest[taken.1..];
    }
}

/// Whether a rule leads to a chain.
pub(super) fn leads_to(rule: Attributes<'_>, chain: &str) -> bool {
    exprs(rule).iter().any(|expr| matches!(expr, Expr::Verdict { chain: Some(target), .. } if target == chain))
}

/// The match that flannel writes at the head of a list of elements, and of how many it is made; none if it is another's.
pub(super) fn known_match(elements: &[Attributes<'_>], family: Family) -> Option<(Match, usize)> {
    /// A bit of the connection's state, and a port.
    const LONGEST: usize = 5;
    let exprs: Vec<Expr> = elements.iter().take(LONGEST).map(|element| read_expr(*element)).collect();
    let (found, length) = if exprs.is_empty() { return None } else { to_match(&exprs, family) };
    (!matches!(found, Match::Other(_))).then_some((found, length))
}

fn of_match(wanted: &Match) -> Vec<Expr> {
    let mark = || MASQUERADE_MARK.to_ne_bytes().to_vec();
    match wanted {
        Match::Mark => vec![Expr::Meta(META_MARK), Expr::Mask(mark()), equal(mark())],
        Match::Source { not, net } => of_address(source_offset(Family::of_net(*net)), *not, *net),
        Match::Destination { not, net } => of_address(destination_offset(Family::of_net(*net)), *not, *net),
        Match::Local => vec![Expr::Fib, equal(LOCAL.to_ne_bytes())],
        Match::Port { protocol, port } => of_port(*protocol, *port),
        Match::Translated { port } => vec![
            Expr::Ct { key: CT_STATUS, original: false },
            Expr::Mask(TRANSLATED.to_ne_bytes().to_vec()),
            Expr::Cmp { not: true, value: vec![0; 4] },
            Expr::Ct { key: CT_PORT, original: true },
            equal(port.to_be_bytes()),
        ],
        Match::Other(name) => vec![Expr::Other(name.to_string())],
    }
}

fn equal(value: impl Into<Vec<u8>>) -> Expr {
    Expr::Cmp { not: false, value: value.into() }
}

fn of_port(protocol: Protocol, port: u16) -> Vec<Expr> {
    let (offset, len) = DESTINATION_PORT;
    vec![
        Expr::Meta(META_PROTOCOL),
        equal([protocol.number()]),
        Expr::Payload { base: TRANSPORT_HEADER, offset, len },
        equal(port.to_be_bytes()),
    ]
}

/// Byte offset of the source address in the header: RFC 791 §3.1, RFC 8200 §3.
fn source_offset(family: Family) -> u32 {
    match family {
        Family::V4 => 12,
        Family::V6 => 8,
    }
}

fn destination_offset(family: Family) -> u32 {
    source_offset(family) + u32::from(family.bits() / 8)
}

/// What `nft` calls the address at an offset in the header.
pub(super) fn address_word(offset: u32, family: Family) -> Option<&'static str> {
    match offset {
        _ if offset == source_offset(family) => Some("saddr"),
        _ if offset == destination_offset(family) => Some("daddr"),
        _ => None,
    }
}

fn of_address(offset: u32, not: bool, net: IpNet) -> Vec<Expr> {
    let mut value = octets(net.network());
    let mut exprs = Vec::new();
    if net.prefix_len().is_multiple_of(8) && net.prefix_len() > 0 {
        value.truncate(usize::from(net.prefix_len() / 8));
    } else {
        exprs.push(Expr::Mask(octets(net.netmask())));
    }
    exprs.insert(0, Expr::Payload { base: NETWORK_HEADER, offset, len: value.len() as u32 });
    exprs.push(Expr::Cmp { not, value });
    exprs
}

fn of_verdict(verdict: &Verdict) -> Vec<Expr> {
    let one = match verdict {
        Verdict::Return => Expr::Verdict { code: RETURN, chain: None },
        Verdict::Accept => Expr::Verdict { code: ACCEPT, chain: None },
        Verdict::Jump(chain) => Expr::Verdict { code: JUMP, chain: Some(chain.to_string()) },
        Verdict::Masquerade { fully_random: true } => Expr::Masq { flags: attr::MASQ_FULLY_RANDOM },
        Verdict::Masquerade { fully_random: false } => Expr::Masq { flags: 0 },
        Verdict::Dnat(to) => return of_translation(*to),
        Verdict::Other(name) => Expr::Other(name.to_string()),
    };
    vec![one]
}

fn of_translation(to: SocketAddr) -> Vec<Expr> {
    vec![
        Expr::Load { register: REGISTER, value: octets(to.ip()) },
        Expr::Load { register: PORT_REGISTER, value: to.port().to_be_bytes().to_vec() },
        Expr::Dnat(Family::of(to.ip())),
    ]
}

/// The verdict that expressions are, if they are one to the last of them.
fn to_verdict(exprs: &[Expr]) -> Option<Verdict> {
    let other = |text: String| Some(Verdict::Other(text.into()));
    match exprs {
        [Expr::Verdict { code: RETURN, .. }] => Some(Verdict::Return),
        [Expr::Verdict { code: ACCEPT, .. }] => Some(Verdict::Accept),
        [Expr::Verdict { code: JUMP, chain: Some(chain) }] => Some(Verdict::Jump(chain.as_str().into())),
        [Expr::Verdict { code: GOTO, chain: Some(chain) }] => other(format!("goto {chain}")),
        [Expr::Verdict { code, .. }] => other(format!("verdict {code}")),
        [Expr::Masq { flags: 0 }] => Some(Verdict::Masquerade { fully_random: false }),
        [Expr::Masq { flags: attr::MASQ_FULLY_RANDOM }] => Some(Verdict::Masquerade { fully_random: true }),
        [Expr::Masq { flags }] => other(format!("masquerade flags {flags:#x}")),
        [
            Expr::Load { register: REGISTER, value },
            Expr::Load { register: PORT_REGISTER, value: port },
            Expr::Dnat(family),
        ] => to_translation(value, port, *family),
        _ => None,
    }
}

fn to_translation(value: &[u8], port: &[u8], family: Family) -> Option<Verdict> {
    let port = u16::from_be_bytes(port.try_into().ok()?);
    (value.len() * 8 == usize::from(family.bits())).then_some(())?;
    Some(Verdict::Dnat(SocketAddr::new(address(value, family)?, port)))
}

/// The first match of a list that is not empty, and of how many expressions it is made.
fn to_match(exprs: &[Expr], family: Family) -> (Match, usize) {
    let mark = MASQUERADE_MARK.to_ne_bytes();
    let found = match exprs {
        [Expr::Meta(META_MARK), Expr::Mask(mask), Expr::Cmp { not: false, value }, ..]
            if *mask == mark && *value == mark =>
        {
            Some((Match::Mark, 3))
        }
        [Expr::Payload { base: NETWORK_HEADER, offset, len }, Expr::Mask(mask), Expr::Cmp { not, value }, ..]
            if mask.len() == *len as usize =>
        {
            to_address(*offset, *not, mask, value, family).map(|m| (m, 3))
        }
        [Expr::Payload { base: NETWORK_HEADER, offset, len }, Expr::Cmp { not, value }, ..] => {
            to_address(*offset, *not, &vec![0xff; *len as usize], value, family).map(|m| (m, 2))
        }
        [Expr::Fib, Expr::Cmp { not: false, value }, ..] if *value == LOCAL.to_ne_bytes() => Some((Match::Local, 2)),
        _ => to_port(exprs).map(|m| (m, 4)).or_else(|| to_translated(exprs).map(|m| (m, 5))),
    };
    found.unwrap_or_else(|| (Match::Other(exprs[0].name().into()), 1))
}

fn to_port(exprs: &[Expr]) -> Option<Match> {
    let [Expr::Meta(META_PROTOCOL), Expr::Cmp { value, .. }, _, Expr::Cmp { value: port, .. }, ..] = exprs else {
        return None;
    };
    let protocol = Protocol::ALL.into_iter().find(|protocol| *value == [protocol.number()])?;
    let port = u16::from_be_bytes(port.as_slice().try_into().ok()?);
    exprs.starts_with(&of_port(protocol, port)).then_some(Match::Port { protocol, port })
}

fn to_translated(exprs: &[Expr]) -> Option<Match> {
    let Expr::Cmp { value, .. } = exprs.get(4)? else { return None };
    let found = Match::Translated { port: u16::from_be_bytes(value.as_slice().try_into().ok()?) };
    exprs.starts_with(&of_match(&found)).then_some(found)
}

fn to_address(offset: u32, not: bool, mask: &[u8], value: &[u8], family: Family) -> Option<Match> {
    let net = IpNet::with_netmask(address(value, family)?, address(mask, family)?).ok()?;
    let exact = mask.len() == value.len() && net.network() == net.addr();
    match offset {
        _ if !exact => None,
        _ if offset == source_offset(family) => Some(Match::Source { not, net }),
        _ if offset == destination_offset(family) => Some(Match::Destination { not, net }),
        _ => None,
    }
}

/// The address whose first bytes are given, the others zero.
fn address(bytes: &[u8], family: Family) -> Option<IpAddr> {
    let mut full = [0; 16];
    let size = usize::from(family.bits() / 8);
    full[..size].get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(match family {
        Family::V4 => IpAddr::from([full[0], full[1], full[2], full[3]]),
        Family::V6 => IpAddr::from(full),
    })
}

fn write_expr(list: Request, expr: &Expr) -> Request {
    expression(list, expr.name(), |data| write_details(data, expr))
}

/// Adds an expression to a rule's list.
pub(super) fn expression(list: Request, name: &str, fill: impl FnOnce(Request) -> Request) -> Request {
    list.nest(attr::ELEMENT, |element| element.attr(attr::EXPR_NAME, name).nest(attr::EXPR_DATA, fill))
}

fn write_details(data: Request, expr: &Expr) -> Request {
    match expr {
        Expr::Payload { base, offset, len } => data
            .attr(attr::PAYLOAD_DREG, REGISTER.to_be_bytes())
            .attr(attr::PAYLOAD_BASE, base.to_be_bytes())
            .attr(attr::PAYLOAD_OFFSET, offset.to_be_bytes())
            .attr(attr::PAYLOAD_LEN, len.to_be_bytes()),
        Expr::Meta(key) => data.attr(attr::META_DREG, REGISTER.to_be_bytes()).attr(attr::META_KEY, key.to_be_bytes()),
        Expr::Ct { key, original } => data
            .attr(attr::CT_DREG, REGISTER.to_be_bytes())
            .attr(attr::CT_KEY, key.to_be_bytes())
            .maybe(attr::CT_DIRECTION, original.then_some(ORIGINAL)),
        Expr::Fib => data
            .attr(attr::FIB_DREG, REGISTER.to_be_bytes())
            .attr(attr::FIB_RESULT, attr::FIB_ADDRESS_TYPE.to_be_bytes())
            .attr(attr::FIB_FLAGS, attr::FIB_DESTINATION.to_be_bytes()),
        Expr::Mask(mask) => write_mask(data, mask),
        Expr::Cmp { not, value } => data
            .attr(attr::CMP_SREG, REGISTER.to_be_bytes())
            .attr(attr::CMP_OP, if *not { NOT_EQUAL } else { EQUAL }.to_be_bytes())
            .nest(attr::CMP_DATA, |data| data.attr(attr::DATA_VALUE, value.as_slice())),
        Expr::Verdict { code, chain } => write_verdict(data, *code, chain.as_deref()),
        Expr::Load { register, value } => data
            .attr(attr::IMMEDIATE_DREG, register.to_be_bytes())
            .nest(attr::IMMEDIATE_DATA, |data| data.attr(attr::DATA_VALUE, value.as_slice())),
        Expr::Dnat(family) => data
            .attr(attr::NAT_TYPE, attr::NAT_DESTINATION.to_be_bytes())
            .attr(attr::NAT_FAMILY, u32::from(family_number(*family)).to_be_bytes())
            .attr(attr::NAT_ADDRESS, REGISTER.to_be_bytes())
            .attr(attr::NAT_PORT, PORT_REGISTER.to_be_bytes()),
        Expr::Masq { flags: 0 } | Expr::Other(_) => data,
        Expr::Masq { flags } => data.attr(attr::MASQ_FLAGS, flags.to_be_bytes()),
    }
}

fn write_mask(request: Request, mask: &[u8]) -> Request {
    request
        .attr(attr::BITWISE_SREG, REGISTER.to_be_bytes())
        .attr(attr::BITWISE_DREG, REGISTER.to_be_bytes())
        .attr(attr::BITWISE_LEN, (mask.len() as u32).to_be_bytes())
        .nest(attr::BITWISE_MASK, |data| data.attr(attr::DATA_VALUE, mask))
        .nest(attr::BITWISE_XOR, |data| data.attr(attr::DATA_VALUE, vec![0; mask.len()].as_slice()))
}

fn write_verdict(request: Request, code: i32, chain: Option<&str>) -> Request {
    request.attr(attr::IMMEDIATE_DREG, VERDICT_REGISTER.to_be_bytes()).nest(attr::IMMEDIATE_DATA, |data| {
        data.nest(attr::DATA_VERDICT, |verdict| {
            verdict.attr(attr::VERDICT_CODE, code.to_be_bytes()).maybe(attr::VERDICT_CHAIN, chain)
        })
    })
}

fn be32(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    attributes.find(kind)?.be32()
}

fn exprs(rule: Attributes<'_>) -> Vec<Expr> {
    rule.inside(attr::RULE_EXPRESSIONS).iter().map(|(_, element)| read_expr(element.attributes())).collect()
}

fn read_expr(element: Attributes<'_>) -> Expr {
    let name = element.find(attr::EXPR_NAME).and_then(Payload::text).unwrap_or_default();
    let data = element.inside(attr::EXPR_DATA);
    let known = match name {
        "payload" => read_payload(data),
        "meta" => read_meta(data),
        "bitwise" => read_mask(data),
        "cmp" => read_cmp(data),
        "ct" => read_ct(data),
        "fib" => read_fib(data),
        "immediate" => read_verdict(data).or_else(|| read_load(data)),
        "masq" => read_masq(data),
        "nat" => read_nat(data),
        _ => None,
    };
    known.unwrap_or_else(|| Expr::Other(name.to_owned()))
}

fn read_payload(data: Attributes<'_>) -> Option<Expr> {
    (be32(data, attr::PAYLOAD_DREG)? == REGISTER).then_some(())?;
    let base = be32(data, attr::PAYLOAD_BASE)?;
    Some(Expr::Payload { base, offset: be32(data, attr::PAYLOAD_OFFSET)?, len: be32(data, attr::PAYLOAD_LEN)? })
}

fn read_meta(data: Attributes<'_>) -> Option<Expr> {
    let key = be32(data, attr::META_KEY).filter(|key| matches!(*key, META_MARK | META_PROTOCOL))?;
    (be32(data, attr::META_DREG)? == REGISTER).then_some(Expr::Meta(key))
}

fn read_ct(data: Attributes<'_>) -> Option<Expr> {
    let direction = data.find(attr::CT_DIRECTION).and_then(Payload::u8);
    let known = be32(data, attr::CT_DREG)? == REGISTER && direction.is_none_or(|direction| direction == ORIGINAL);
    known.then_some(Expr::Ct { key: be32(data, attr::CT_KEY)?, original: direction.is_some() })
}

fn read_fib(data: Attributes<'_>) -> Option<Expr> {
    let found = [be32(data, attr::FIB_DREG)?, be32(data, attr::FIB_RESULT)?, be32(data, attr::FIB_FLAGS)?];
    (found == [REGISTER, attr::FIB_ADDRESS_TYPE, attr::FIB_DESTINATION]).then_some(Expr::Fib)
}

fn read_load(data: Attributes<'_>) -> Option<Expr> {
    let value = data.inside(attr::IMMEDIATE_DATA).find(attr::DATA_VALUE)?.0.to_vec();
    Some(Expr::Load { register: be32(data, attr::IMMEDIATE_DREG)?, value })
}

/// A translation of the destination to one address and one port. The kernel adds the ends of the ranges, which are the same,
/// and flags.
fn read_nat(data: Attributes<'_>) -> Option<Expr> {
    let family = family_of(u8::try_from(be32(data, attr::NAT_FAMILY)?).ok()?)?;
    let registers = [be32(data, attr::NAT_ADDRESS)?, be32(data, attr::NAT_PORT)?];
    let is_destination = be32(data, attr::NAT_TYPE)? == attr::NAT_DESTINATION;
    (is_destination && registers == [REGISTER, PORT_REGISTER]).then_some(Expr::Dnat(family))
}

fn read_mask(data: Attributes<'_>) -> Option<Expr> {
    let xor = data.inside(attr::BITWISE_XOR).find(attr::DATA_VALUE)?.0;
    let registers = [be32(data, attr::BITWISE_SREG)?, be32(data, attr::BITWISE_DREG)?];
    let mask = data.inside(attr::BITWISE_MASK).find(attr::DATA_VALUE)?.0;
    (registers == [REGISTER; 2] && xor.iter().all(|byte| *byte == 0)).then(|| Expr::Mask(mask.to_vec()))
}

fn read_cmp(data: Attributes<'_>) -> Option<Expr> {
    let operation = be32(data, attr::CMP_OP).filter(|op| matches!(*op, EQUAL | NOT_EQUAL))?;
    let value = data.inside(attr::CMP_DATA).find(attr::DATA_VALUE)?.0.to_vec();
    (be32(data, attr::CMP_SREG)? == REGISTER).then_some(Expr::Cmp { not: operation == NOT_EQUAL, value })
}

fn read_verdict(data: Attributes<'_>) -> Option<Expr> {
    let verdict = data.inside(attr::IMMEDIATE_DATA).inside(attr::DATA_VERDICT);
    let code = be32(verdict, attr::VERDICT_CODE)?.cast_signed();
    let chain = verdict.find(attr::VERDICT_CHAIN).and_then(Payload::text).map(str::to_owned);
    (be32(data, attr::IMMEDIATE_DREG)? == VERDICT_REGISTER).then_some(Expr::Verdict { code, chain })
}

/// No flags at all, or those of the ports; never a range of ports, which flannel does not write.
fn read_masq(data: Attributes<'_>) -> Option<Expr> {
    let only_flags = data.iter().all(|(kind, _)| kind == attr::MASQ_FLAGS);
    only_flags.then(|| Expr::Masq { flags: be32(data, attr::MASQ_FLAGS).unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use flannel_core::rules::{PodNetworks, RuleMode, RuleOptions, ruleset};

    use super::*;
    use crate::netlink::Messages;

    fn there_and_back(rule: &Rule, family: Family) -> Rule {
        let mut bytes = Vec::new();
        write(Request::new(0, 0), rule).write(&mut bytes, 1, 0);
        read(Attributes(Messages(&bytes).next().unwrap().body), family)
    }

    fn round_trip(network: &str, pod_subnet: &str) {
        let networks = PodNetworks { network: network.parse().unwrap(), pod_subnet: pod_subnet.parse().unwrap() };
        for fully_random in [true, false] {
            let options = RuleOptions { mode: RuleMode::Nftables, ip_masq: true, fully_random, forward: true };
            let rules = ruleset(Some(networks), options).unwrap();
            for rule in [rules.postrouting.unwrap().rules, rules.forward.unwrap().rules].concat() {
                assert_eq!(there_and_back(&rule, Family::of_net(networks.network)), rule);
            }
        }
    }

    #[test]
    fn every_rule_reads_back_whatever_the_prefix_length() {
        for bits in 0..=32 {
            round_trip(&format!("10.42.128.1/{bits}"), "10.42.1.0/29");
        }
        for bits in 0..=128 {
            round_trip(&format!("2001:cafe:42:ffff:ffff:ffff:ffff:ffff/{bits}"), "2001:cafe:42:1::/64");
        }
    }

    #[test]
    fn rules_of_published_ports_read_back() {
        for (to, net) in [("10.244.1.5:80", "192.0.2.1/32"), ("[fd00:1::5]:80", "2001:db8::1/128")] {
            let net: IpNet = net.parse().unwrap();
            let rule = |matches: &[Match], verdict: Verdict| Rule { matches: matches.to_vec(), verdict };
            let port = Match::Port { protocol: Protocol::Sctp, port: 8080 };
            let at = Match::Destination { not: false, net };
            for rule in [
                rule(&[Match::Local], Verdict::Jump("hostports_all".into())),
                rule(&[], Verdict::Jump("hostports".into())),
                rule(&[at.clone(), port.clone()], Verdict::Dnat(to.parse().unwrap())),
                rule(&[at, port, Match::Translated { port: 8080 }], Verdict::Masquerade { fully_random: false }),
            ] {
                assert_eq!(there_and_back(&rule, Family::of_net(net)), rule);
            }
        }
    }

    #[test]
    fn what_is_not_ours_reads_as_other() {
        let other = Rule { matches: vec![Match::Other("counter".into())], verdict: Verdict::Other("log".into()) };
        let read = there_and_back(&other, Family::V4);
        assert!(read.matches.iter().all(|m| matches!(m, Match::Other(_))), "{read}");
        assert!(matches!(read.verdict, Verdict::Other(_)));
    }
}
