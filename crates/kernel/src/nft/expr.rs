//! Rules as the expressions of nf_tables: the model written as the kernel runs it, and read back.
//!
//! A rule is a small program on one register: load, mask, compare, then a verdict. Prefixes on a byte boundary are a shorter
//! load without a mask, as `nft` writes them; reading takes either form. What flannel never writes becomes
//! [`Match::Other`] or [`Verdict::Other`] by the expression's name.

use std::net::IpAddr;

use flannel_core::addr::Family;
use flannel_core::rules::{MASQUERADE_MARK, Match, Rule, Verdict};
use ipnet::IpNet;

use super::attr;
use crate::netlink::{Attributes, Payload, Request, family_number};

/// `NFT_REG_1`, the one register used.
const REGISTER: u32 = libc::NFT_REG_1 as u32;
const VERDICT_REGISTER: u32 = libc::NFT_REG_VERDICT as u32;
const NETWORK_HEADER: u32 = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
const META_MARK: u32 = libc::NFT_META_MARK as u32;
const META_PROTOCOL: u32 = libc::NFT_META_NFPROTO as u32;
const EQUAL: u32 = libc::NFT_CMP_EQ as u32;
const NOT_EQUAL: u32 = libc::NFT_CMP_NEQ as u32;
const RETURN: i32 = libc::NFT_RETURN;
const ACCEPT: i32 = libc::NF_ACCEPT;
const JUMP: i32 = libc::NFT_JUMP;
const GOTO: i32 = libc::NFT_GOTO;

/// One expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expr {
    /// Load bytes of the network header.
    Payload { offset: u32, len: u32 },
    /// Load the packet's mark.
    Mark,
    /// Load the number of the packet's address family, in tables of both.
    Protocol,
    /// Keep the bits of a mask.
    Mask(Vec<u8>),
    /// Go on only if the register is equal to a value, or with `not` if it is not.
    Cmp { not: bool, value: Vec<u8> },
    /// Leave the rule with a verdict; jumps name a chain.
    Verdict { code: i32, chain: Option<String> },
    /// Masquerade.
    Masq { flags: u32 },
    /// Anything else, by name.
    Other(String),
}

impl Expr {
    /// The expression's name in the kernel.
    fn name(&self) -> &str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Mark | Self::Protocol => "meta",
            Self::Mask(_) => "bitwise",
            Self::Cmp { .. } => "cmp",
            Self::Verdict { .. } => "immediate",
            Self::Masq { .. } => "masq",
            Self::Other(name) => name,
        }
    }
}

/// Adds a rule's expressions to the message that makes it.
pub(super) fn write(request: Request, rule: &Rule) -> Request {
    let exprs = rule.matches.iter().flat_map(of_match).chain([of_verdict(&rule.verdict)]).collect::<Vec<_>>();
    request.nest(attr::RULE_EXPRESSIONS, |list| exprs.iter().fold(list, write_expr))
}

/// Adds the expressions of a rule in a table of both families, which is for one.
pub(super) fn write_of(request: Request, family: Family, rule: &Rule) -> Request {
    let of_family = [Expr::Protocol, Expr::Cmp { not: false, value: vec![family_number(family)] }];
    let exprs = of_family.into_iter().chain(rule.matches.iter().flat_map(of_match)).chain([of_verdict(&rule.verdict)]);
    let exprs: Vec<_> = exprs.collect();
    request.nest(attr::RULE_EXPRESSIONS, |list| exprs.iter().fold(list, write_expr))
}

/// Adds a rule that sends every packet on to another chain.
pub(super) fn write_goto(request: Request, chain: &str) -> Request {
    let verdict = Expr::Verdict { code: GOTO, chain: Some(chain.to_owned()) };
    request.nest(attr::RULE_EXPRESSIONS, |list| write_expr(list, &verdict))
}

/// Reads a rule from the attributes of its message.
pub(super) fn read(rule: Attributes<'_>, family: Family) -> Rule {
    let exprs = exprs(rule);
    let mut matches = Vec::new();
    let mut rest = exprs.as_slice();
    loop {
        let taken = match rest {
            [] => return Rule { matches, verdict: Verdict::Other("continue".into()) },
            [last] if let Some(verdict) = to_verdict(last) => return Rule { matches, verdict },
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
    /// Load, mask, compare.
    const LONGEST: usize = 3;
    let exprs: Vec<Expr> = elements.iter().take(LONGEST).map(|element| read_expr(*element)).collect();
    let (found, length) = if exprs.is_empty() { return None } else { to_match(&exprs, family) };
    (!matches!(found, Match::Other(_))).then_some((found, length))
}

fn of_match(wanted: &Match) -> Vec<Expr> {
    let mark = || MASQUERADE_MARK.to_ne_bytes().to_vec();
    match wanted {
        Match::Mark => vec![Expr::Mark, Expr::Mask(mark()), Expr::Cmp { not: false, value: mark() }],
        Match::Source { not, net } => of_address(source_offset(Family::of_net(*net)), *not, *net),
        Match::Destination { not, net } => of_address(destination_offset(Family::of_net(*net)), *not, *net),
        Match::Other(name) => vec![Expr::Other(name.to_string())],
    }
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
    exprs.insert(0, Expr::Payload { offset, len: value.len() as u32 });
    exprs.push(Expr::Cmp { not, value });
    exprs
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn of_verdict(verdict: &Verdict) -> Expr {
    match verdict {
        Verdict::Return => Expr::Verdict { code: RETURN, chain: None },
        Verdict::Accept => Expr::Verdict { code: ACCEPT, chain: None },
        Verdict::Masquerade { fully_random: true } => Expr::Masq { flags: attr::MASQ_FULLY_RANDOM },
        Verdict::Masquerade { fully_random: false } => Expr::Masq { flags: 0 },
        Verdict::Other(name) => Expr::Other(name.to_string()),
    }
}

fn to_verdict(expr: &Expr) -> Option<Verdict> {
    match expr {
        Expr::Verdict { code: RETURN, .. } => Some(Verdict::Return),
        Expr::Verdict { code: ACCEPT, .. } => Some(Verdict::Accept),
        Expr::Verdict { code: JUMP, chain: Some(chain) } => Some(Verdict::Other(format!("jump {chain}").into())),
        Expr::Verdict { code: GOTO, chain: Some(chain) } => Some(Verdict::Other(format!("goto {chain}").into())),
        Expr::Verdict { code, .. } => Some(Verdict::Other(format!("verdict {code}").into())),
        Expr::Masq { flags: 0 } => Some(Verdict::Masquerade { fully_random: false }),
        Expr::Masq { flags: attr::MASQ_FULLY_RANDOM } => Some(Verdict::Masquerade { fully_random: true }),
        Expr::Masq { flags } => Some(Verdict::Other(format!("masquerade flags {flags:#x}").into())),
        _ => None,
    }
}

/// The first match of a list that is not empty, and of how many expressions it is made.
fn to_match(exprs: &[Expr], family: Family) -> (Match, usize) {
    let mark = MASQUERADE_MARK.to_ne_bytes();
    let found = match exprs {
        [Expr::Mark, Expr::Mask(mask), Expr::Cmp { not: false, value }, ..] if *mask == mark && *value == mark => {
            Some((Match::Mark, 3))
        }
        [Expr::Payload { offset, len }, Expr::Mask(mask), Expr::Cmp { not, value }, ..]
            if mask.len() == *len as usize =>
        {
            to_address(*offset, *not, mask, value, family).map(|m| (m, 3))
        }
        [Expr::Payload { offset, len }, Expr::Cmp { not, value }, ..] => {
            to_address(*offset, *not, &vec![0xff; *len as usize], value, family).map(|m| (m, 2))
        }
        _ => None,
    };
    found.unwrap_or_else(|| (Match::Other(exprs[0].name().into()), 1))
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
        Expr::Payload { offset, len } => data
            .attr(attr::PAYLOAD_DREG, REGISTER.to_be_bytes())
            .attr(attr::PAYLOAD_BASE, NETWORK_HEADER.to_be_bytes())
            .attr(attr::PAYLOAD_OFFSET, offset.to_be_bytes())
            .attr(attr::PAYLOAD_LEN, len.to_be_bytes()),
        Expr::Mark => data.attr(attr::META_DREG, REGISTER.to_be_bytes()).attr(attr::META_KEY, META_MARK.to_be_bytes()),
        Expr::Protocol => {
            data.attr(attr::META_DREG, REGISTER.to_be_bytes()).attr(attr::META_KEY, META_PROTOCOL.to_be_bytes())
        }
        Expr::Mask(mask) => write_mask(data, mask),
        Expr::Cmp { not, value } => data
            .attr(attr::CMP_SREG, REGISTER.to_be_bytes())
            .attr(attr::CMP_OP, if *not { NOT_EQUAL } else { EQUAL }.to_be_bytes())
            .nest(attr::CMP_DATA, |data| data.attr(attr::DATA_VALUE, value.as_slice())),
        Expr::Verdict { code, chain } => write_verdict(data, *code, chain.as_deref()),
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
        "immediate" => read_verdict(data),
        "masq" => read_masq(data),
        _ => None,
    };
    known.unwrap_or_else(|| Expr::Other(name.to_owned()))
}

fn read_payload(data: Attributes<'_>) -> Option<Expr> {
    (be32(data, attr::PAYLOAD_DREG)? == REGISTER && be32(data, attr::PAYLOAD_BASE)? == NETWORK_HEADER).then_some(())?;
    Some(Expr::Payload { offset: be32(data, attr::PAYLOAD_OFFSET)?, len: be32(data, attr::PAYLOAD_LEN)? })
}

fn read_meta(data: Attributes<'_>) -> Option<Expr> {
    (be32(data, attr::META_DREG)? == REGISTER && be32(data, attr::META_KEY)? == META_MARK).then_some(Expr::Mark)
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
    fn what_is_not_ours_reads_as_other() {
        let other = Rule { matches: vec![Match::Other("counter".into())], verdict: Verdict::Other("log".into()) };
        let read = there_and_back(&other, Family::V4);
        assert!(read.matches.iter().all(|m| matches!(m, Match::Other(_))), "{read}");
        assert!(matches!(read.verdict, Verdict::Other(_)));
    }
}
