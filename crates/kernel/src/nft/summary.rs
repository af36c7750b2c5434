//! A rule of anybody's in words: as `nft` prints it, as far as its expressions are known here.
//!
//! A rule is a program on registers, so what it compares is told by the load before. Expressions that flannel writes are
//! read by [`super::expr`]; of the others the most frequent are known (interfaces, protocols, ports, marks, states of
//! connections, matches and targets of iptables), and the rest appear under the name of their kind.

use std::fmt::Write;

use flannel_core::addr::Family;
use flannel_core::rules::{MASQUERADE_MARK, Match};

use super::listing::{RuleText, TableFamily};
use super::trace::Verdict;
use super::{COMMENT, attr, expr, number, text};
use crate::netlink::{Attributes, Payload};

/// The most of a rule that is told; a screen has no room for more.
const MOST_EXPRESSIONS: usize = 64;

/// What was loaded and what is to be told of it.
#[derive(Debug, Default)]
struct Loaded {
    what: String,
    kind: Kind,
    mask: String,
}

/// How a value is written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// In hexadecimal, in the byte order of packets.
    #[default]
    Bytes,
    /// A number in the byte order of the host, in hexadecimal.
    Number,
    /// A number in the byte order of packets, in decimal.
    Decimal,
    /// A type of ICMP, or of ICMPv6.
    Icmp(Family),
    /// Bits that are states of conntrack.
    State,
    /// An interface's name.
    Name,
    /// A protocol behind IP.
    Protocol,
    /// An address family, by its number or its EtherType.
    Family,
}

pub(super) fn summarize(rule: Attributes<'_>, family: TableFamily) -> RuleText {
    let elements: Vec<Attributes<'_>> = rule
        .inside(attr::RULE_EXPRESSIONS)
        .iter()
        .take(MOST_EXPRESSIONS)
        .map(|(_, element)| element.attributes())
        .collect();
    let (mut words, mut comment, mut loaded) = (Vec::new(), user_comment(rule), Loaded::default());
    let mut family = address_family(family);
    let mut rest = elements.as_slice();
    while let [first, behind @ ..] = rest {
        if let Some((known, length)) = family.and_then(|family| expr::known_match(rest, family)) {
            words.push(known.to_string());
            rest = &rest[length..];
            continue;
        }
        rest = behind;
        let data = first.inside(attr::EXPR_DATA);
        let name = text(*first, attr::EXPR_NAME).unwrap_or("?");
        match name {
            "payload" | "meta" | "ct" => loaded = load(name, data, family, &mut words),
            "bitwise" => loaded.mask = mask(data, loaded.kind),
            "cmp" if let Some(compared) = compared_family(&loaded, data) => family = Some(compared),
            "cmp" => words.push(comparison(&loaded, data)),
            "lookup" => words.extend(membership(&loaded, data)),
            "match" if text(data, attr::XT_NAME) == Some("comment") => comment = xt_comment(data).or(comment),
            _ => words.extend(word(name, data)),
        }
    }
    RuleText { text: words.join(" "), comment: comment.map(|text| printable(&text)) }
}

fn address_family(family: TableFamily) -> Option<Family> {
    match family {
        TableFamily::Ip => Some(Family::V4),
        TableFamily::Ip6 => Some(Family::V6),
        TableFamily::Inet | TableFamily::Arp | TableFamily::Netdev | TableFamily::Bridge => None,
    }
}

/// What an expression that stands for itself is called. Loads of constants mean nothing without what takes them.
fn word(name: &str, data: Attributes<'_>) -> Option<String> {
    Some(match name {
        "immediate" => return verdict(data),
        "masq" => match number(data, attr::MASQ_FLAGS) {
            Some(flags) if flags & attr::MASQ_FULLY_RANDOM != 0 => "masquerade fully-random".to_owned(),
            _ => "masquerade".to_owned(),
        },
        "match" => xt_match(data)?,
        "target" => xt_target(data)?,
        name => printable(name),
    })
}

fn verdict(data: Attributes<'_>) -> Option<String> {
    let verdict = data.inside(attr::IMMEDIATE_DATA).inside(attr::DATA_VERDICT);
    Verdict::read(verdict).map(|verdict| printable(&verdict.to_string()))
}

/// What is loaded; what sets something is told at once.
fn load(name: &str, data: Attributes<'_>, family: Option<Family>, words: &mut Vec<String>) -> Loaded {
    let (what, kind) = match name {
        "payload" => payload(data, family, words),
        "meta" => meta(number(data, attr::META_KEY).unwrap_or(u32::MAX).cast_signed()),
        _ => conntrack(number(data, attr::CT_KEY).unwrap_or(u32::MAX).cast_signed()),
    };
    if name == "meta" && data.find(attr::META_SREG).is_some() {
        words.push(format!("{what} set"));
    }
    Loaded { what, kind, mask: String::new() }
}

/// Addresses, ports and types of ICMP by their names, else as `nft` writes bytes that it has no name for.
fn payload(data: Attributes<'_>, family: Option<Family>, words: &mut Vec<String>) -> (String, Kind) {
    let at = |kind| number(data, kind).unwrap_or_default();
    let (base, offset, length) = (at(attr::PAYLOAD_BASE), at(attr::PAYLOAD_OFFSET), at(attr::PAYLOAD_LEN));
    let base = match base.cast_signed() {
        libc::NFT_PAYLOAD_LL_HEADER if (offset, length) == (12, 2) => return ("ether type".to_owned(), Kind::Family),
        libc::NFT_PAYLOAD_LL_HEADER => "ll",
        libc::NFT_PAYLOAD_NETWORK_HEADER => "nh",
        libc::NFT_PAYLOAD_TRANSPORT_HEADER => return transport(offset, length, words),
        _ => "ih",
    };
    let named = family.filter(|family| base == "nh" && length == u32::from(family.bits() / 8));
    let text = match (named, named.and_then(|family| expr::address_word(offset, family))) {
        (Some(Family::V4), Some(end)) => format!("ip {end}"),
        (Some(Family::V6), Some(end)) => format!("ip6 {end}"),
        _ => raw(base, offset, length),
    };
    (text, Kind::Bytes)
}

fn raw(base: &str, offset: u32, length: u32) -> String {
    format!("@{base},{},{}", u64::from(offset) * 8, u64::from(length) * 8)
}

/// A field behind the IP header. The comparison of the protocol that `nft` puts before is part of the field's name.
fn transport(offset: u32, length: u32, words: &mut Vec<String>) -> (String, Kind) {
    let before = words.last().map(|word| word.strip_prefix("meta l4proto ").unwrap_or(word));
    let known =
        before.and_then(|word| ["tcp", "udp", "icmp", "ipv6-icmp"].into_iter().find(|name| is_word(word, name)));
    let (text, kind) = match (known, offset, length) {
        (Some("icmp"), 0, 1) => ("icmp type".to_owned(), Kind::Icmp(Family::V4)),
        (Some("ipv6-icmp"), 0, 1) => ("icmpv6 type".to_owned(), Kind::Icmp(Family::V6)),
        (Some("tcp" | "udp") | None, 0, 2) => (format!("{} sport", known.unwrap_or("th")), Kind::Decimal),
        (Some("tcp" | "udp") | None, 2, 2) => (format!("{} dport", known.unwrap_or("th")), Kind::Decimal),
        _ => return (raw("th", offset, length), Kind::Bytes),
    };
    words.pop_if(|word| known.is_some() && word.starts_with("meta l4proto "));
    (text, kind)
}

/// Whether a word stands at the head of others.
fn is_word(text: &str, word: &str) -> bool {
    text.split(' ').next() == Some(word)
}

fn meta(key: i32) -> (String, Kind) {
    let (word, kind) = match key {
        libc::NFT_META_MARK => ("meta mark", Kind::Number),
        libc::NFT_META_IIF => ("iif", Kind::Number),
        libc::NFT_META_OIF => ("oif", Kind::Number),
        libc::NFT_META_IIFNAME => ("iifname", Kind::Name),
        libc::NFT_META_OIFNAME => ("oifname", Kind::Name),
        libc::NFT_META_BRI_IIFNAME => ("ibrname", Kind::Name),
        libc::NFT_META_BRI_OIFNAME => ("obrname", Kind::Name),
        libc::NFT_META_L4PROTO => ("meta l4proto", Kind::Protocol),
        libc::NFT_META_NFPROTO => ("meta nfproto", Kind::Family),
        libc::NFT_META_PROTOCOL => ("meta protocol", Kind::Family),
        libc::NFT_META_NFTRACE => ("meta nftrace", Kind::Number),
        other => return (format!("meta {other}"), Kind::Bytes),
    };
    (word.to_owned(), kind)
}

fn conntrack(key: i32) -> (String, Kind) {
    match key {
        libc::NFT_CT_STATE => ("ct state".to_owned(), Kind::State),
        libc::NFT_CT_STATUS => ("ct status".to_owned(), Kind::Number),
        libc::NFT_CT_MARK => ("ct mark".to_owned(), Kind::Number),
        other => (format!("ct {other}"), Kind::Bytes),
    }
}

/// A mask of states is all that is compared: `nft` leaves out that some of them must be set.
fn mask(data: Attributes<'_>, kind: Kind) -> String {
    let mask = data.inside(attr::BITWISE_MASK).find(attr::DATA_VALUE).map_or(&[][..], |mask| mask.0);
    format!("{}{}", if kind == Kind::State { " " } else { " & " }, value(mask, kind))
}

fn membership(loaded: &Loaded, data: Attributes<'_>) -> Option<String> {
    let not = number(data, attr::LOOKUP_FLAGS).is_some_and(|flags| flags & 1 != 0);
    let set = printable(text(data, attr::LOOKUP_SET)?);
    Some(format!("{}{} {}@{set}", loaded.what, loaded.mask, if not { "!= " } else { "" }))
}

fn comparison(loaded: &Loaded, data: Attributes<'_>) -> String {
    let bytes = data.inside(attr::CMP_DATA).find(attr::DATA_VALUE).map_or(&[][..], |value| value.0);
    let not_equal = number(data, attr::CMP_OP) == Some(libc::NFT_CMP_NEQ.cast_unsigned());
    if loaded.kind == Kind::State && !loaded.mask.is_empty() && not_equal && bytes == [0; 4] {
        return format!("{}{}", loaded.what, loaded.mask);
    }
    let operation = match number(data, attr::CMP_OP).unwrap_or_default().cast_signed() {
        libc::NFT_CMP_NEQ => "!= ",
        libc::NFT_CMP_LT => "< ",
        libc::NFT_CMP_LTE => "<= ",
        libc::NFT_CMP_GT => "> ",
        libc::NFT_CMP_GTE => ">= ",
        _ if loaded.mask.is_empty() => "",
        _ => "== ",
    };
    format!("{}{} {operation}{}", loaded.what, loaded.mask, value(bytes, loaded.kind))
}

/// The family that a comparison settles, by its number or its EtherType. `nft` writes such comparisons itself, before those of
/// addresses, and does not print them.
fn compared_family(loaded: &Loaded, data: Attributes<'_>) -> Option<Family> {
    let equal = number(data, attr::CMP_OP) == Some(libc::NFT_CMP_EQ.cast_unsigned());
    let value = data.inside(attr::CMP_DATA).find(attr::DATA_VALUE).filter(|_| equal && loaded.kind == Kind::Family)?;
    match value.0 {
        [number] => TableFamily::of(*number).and_then(address_family),
        [0x08, 0x00] => Some(Family::V4),
        [0x86, 0xdd] => Some(Family::V6),
        _ => None,
    }
}

/// The types that a ping and the questions before it have (RFC 792, RFC 4443, RFC 4861).
fn icmp_type(family: Family, number: u8) -> Option<&'static str> {
    Some(match (family, number) {
        (Family::V4, 8) | (Family::V6, 128) => "echo-request",
        (Family::V4, 0) | (Family::V6, 129) => "echo-reply",
        (Family::V6, 135) => "nd-neighbor-solicit",
        (Family::V6, 136) => "nd-neighbor-advert",
        _ => return None,
    })
}

/// Loads may be longer than what is compared: an interface's name ends at its zero, or anywhere (`"eth*"`).
fn value(bytes: &[u8], kind: Kind) -> String {
    match (kind, bytes) {
        (Kind::Name, bytes) => {
            let whole = bytes.contains(&0);
            let name = Payload(bytes).text().map(printable).unwrap_or_default();
            format!("\"{name}{}\"", if whole { "" } else { "*" })
        }
        (Kind::Number, bytes) if bytes.len() == 4 => format!("{:#010x}", Payload(bytes).u32().unwrap_or_default()),
        (Kind::State, bytes) => states(Payload(bytes).u32().unwrap_or_default()),
        (Kind::Decimal, bytes) if bytes.len() == 2 => Payload(bytes).be16().unwrap_or_default().to_string(),
        (Kind::Icmp(family), [kind]) => icmp_type(family, *kind).map_or_else(|| kind.to_string(), str::to_owned),
        (Kind::Family, [0x08, 0x06]) => "arp".to_owned(),
        (Kind::Protocol, [1]) => "icmp".to_owned(),
        (Kind::Protocol, [6]) => "tcp".to_owned(),
        (Kind::Protocol, [17]) => "udp".to_owned(),
        (Kind::Protocol, [58]) => "ipv6-icmp".to_owned(),
        (Kind::Protocol, [other]) => other.to_string(),
        (_, bytes) => bytes.iter().fold("0x".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
    }
}

/// `NF_CT_STATE_BIT` of `linux/netfilter/nf_conntrack_common.h`, in nft's words and order.
fn states(bits: u32) -> String {
    const WORDS: [(u32, &str); 5] = [(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")];
    let set: Vec<&str> = WORDS.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, word)| word).collect();
    set.join(",")
}

/// A match of iptables. That of flannel's mark is known (`struct xt_mark_mtinfo1` of `linux/netfilter/xt_mark.h`).
fn xt_match(data: Attributes<'_>) -> Option<String> {
    let name = text(data, attr::XT_NAME)?;
    let content = data.find(attr::XT_CONTENT).map_or(&[][..], |content| content.0);
    let mark = MASQUERADE_MARK.to_ne_bytes();
    if let ("mark", [value @ .., _, _, _, _]) = (name, content.get(..12).unwrap_or_default())
        && *value == [mark, mark].concat()
        && content[8] == 0
    {
        return Some(Match::Mark.to_string());
    }
    Some(format!("xt match {}", printable(name)))
}

/// A target of iptables. All ranges of NAT have their flags first, but for a count before them in IPv4's
/// (`struct nf_nat_ipv4_multi_range_compat`, `struct nf_nat_range` of `linux/netfilter/nf_nat.h`).
fn xt_target(data: Attributes<'_>) -> Option<String> {
    /// Bytes of `struct nf_nat_range`: flags, two addresses, two ports. IPv4's structure is shorter.
    const RANGE: usize = 40;
    let name = text(data, attr::XT_NAME)?;
    if name != "MASQUERADE" {
        return Some(format!("xt target {}", printable(name)));
    }
    let content = data.find(attr::XT_CONTENT)?.0;
    let flags = Payload(if content.len() < RANGE { content.get(4..)? } else { content }).u32()?;
    let fully_random = flags & attr::MASQ_FULLY_RANDOM != 0;
    Some(if fully_random { "masquerade fully-random" } else { "masquerade" }.to_owned())
}

/// `struct xt_comment_info` of `linux/netfilter/xt_comment.h` is text up to a zero byte.
fn xt_comment(data: Attributes<'_>) -> Option<String> {
    Some(data.find(attr::XT_CONTENT)?.text()?.to_owned())
}

/// The comment that `nft` keeps in a rule's user data: entries of type, length and content.
pub(super) fn user_comment(rule: Attributes<'_>) -> Option<String> {
    let mut entries = rule.find(attr::RULE_USERDATA)?.0;
    loop {
        let [kind, length, rest @ ..] = entries else { return None };
        let content = rest.get(..usize::from(*length))?;
        if *kind == COMMENT {
            return Payload(content).text().map(str::to_owned);
        }
        entries = &rest[content.len()..];
    }
}

/// Names and comments are other people's: nothing in them may move a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::{Messages, Request};

    /// The words for a rule that is made of attributes.
    fn words(fill: impl FnOnce(Request) -> Request) -> RuleText {
        let mut bytes = Vec::new();
        fill(Request::new(0, 0)).write(&mut bytes, 1, 0);
        summarize(Attributes(Messages(&bytes).next().unwrap().body), TableFamily::Ip)
    }

    #[test]
    fn comments_and_names_cannot_move_the_cursor() {
        let comment = b"\x02\x01x\x00\x06a\x1b[2Jb";
        let rule = |request: Request| {
            request.attr(attr::RULE_USERDATA, &comment[..]).nest(attr::RULE_EXPRESSIONS, |list| {
                expr::expression(list, "match", |data| data.attr(attr::XT_NAME, "evil\n"))
            })
        };
        let told = words(rule);
        assert_eq!((told.text.as_str(), told.comment.as_deref()), ("xt match evil?", Some("a?[2Jb")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_told_without_a_panic(noise in proptest::collection::vec(any::<u8>(), 0..120), name in 0..9_usize) {
            const NAMES: [&str; 9] = ["payload", "meta", "ct", "bitwise", "cmp", "immediate", "match", "target", "lookup"];
            for names in [["meta", NAMES[name]], [NAMES[name], "cmp"]] {
                let _ = words(|request| {
                    request.attr(attr::RULE_USERDATA, noise.as_slice()).nest(attr::RULE_EXPRESSIONS, |list| {
                        let list = expr::expression(list, names[0], |data| data.attr(1, noise.as_slice()));
                        let known = |data: Request| data.attr(attr::XT_NAME, "mark").attr(attr::XT_CONTENT, noise.as_slice());
                        let list = expr::expression(list, names[1], known);
                        expr::expression(list, "target", |data| {
                            data.attr(attr::XT_NAME, "MASQUERADE").attr(attr::XT_CONTENT, noise.as_slice())
                        })
                    })
                });
            }
            let _ = summarize(Attributes(&noise), TableFamily::Inet);
        }
    }
}
