//! Published ports in iptables' words: input of `iptables-restore --noflush`, in the Go plugin's layout.
//!
//! All is in table `nat`. `PREROUTING` and `OUTPUT` lead to `CNI-HOSTPORT-DNAT`, which leads to the chain of each container by ports; packets
//! marked there are masqueraded after `POSTROUTING`. What is everybody's is expected by [`addition`] and made by [`repair`]. Running the
//! programs is the kernel crate's part.

use std::fmt::Write;

use super::{Mark, Masquerade, PortMap};
use crate::addr::Family;
use crate::rules::iptables::bare_rule_text;
use crate::rules::{Match, Protocol, Rule, Verdict};

const DNAT: &str = "CNI-HOSTPORT-DNAT";
const SET_MARK: &str = "CNI-HOSTPORT-SETMARK";
const MASQUERADE: &str = "CNI-HOSTPORT-MASQ";
/// Ports that one match takes (`XT_MULTI_PORTS` of `linux/netfilter/xt_multiport.h`).
const PORTS: usize = 15;
/// Bytes of a comment (`XT_MAX_COMMENT_LEN` of `linux/netfilter/xt_comment.h`, less its zero).
const COMMENT: usize = 255;

/// A rule that all containers share.
struct Shared {
    chain: &'static str,
    rule: String,
    /// It must come before the masquerade rules of other plugins.
    first: bool,
}

/// The chains that are everybody's.
fn shared_chains(map: &PortMap) -> Vec<&'static str> {
    let marked = [SET_MARK, MASQUERADE].into_iter().filter(|_| mark_bit(map).is_some());
    marked.chain([DNAT]).collect()
}

fn mark_bit(map: &PortMap) -> Option<u8> {
    match &map.masquerade {
        Some(Masquerade { mark: Mark::Bit(bit), .. }) => Some(*bit),
        _ => None,
    }
}

fn shared_rules(map: &PortMap) -> Vec<Shared> {
    let shared = |chain, rule: String| Shared { chain, rule, first: false };
    let comment = |text| format!("-m comment --comment \"CNI portfwd {text}\"");
    let mut rules = Vec::new();
    if let Some(bit) = mark_bit(map) {
        let mark = format!("{0:#x}/{0:#x}", 1_u32 << bit);
        rules.push(shared(SET_MARK, format!("{} -j MARK --set-xmark {mark}", comment("masquerade mark"))));
        rules.push(shared(MASQUERADE, format!("-m mark --mark {mark} -j MASQUERADE")));
        let first = format!("{} -j {MASQUERADE}", comment("requiring masquerade"));
        rules.push(Shared { chain: "POSTROUTING", rule: first, first: true });
    }
    let local = Rule { matches: vec![Match::Local], verdict: Verdict::Jump(DNAT.into()) };
    rules.extend(["PREROUTING", "OUTPUT"].map(|chain| shared(chain, bare_rule_text(&local))));
    rules
}

/// The rules that lead to the container's chain. The ports of both families are in both, as the Go plugin has them.
fn entries(map: &PortMap, family: Family) -> Vec<String> {
    let name = format!("dnat name: \"{}\" id: \"{}\"", map.network, map.container);
    let name = if name.len() > COMMENT { format!("{}...", &name[..COMMENT - 3]) } else { name };
    let conditions = map.conditions.get(family).map(Vec::as_slice).unwrap_or_default();
    let conditions: Vec<_> = conditions.iter().map(|word| quoted(word) + " ").collect();
    let conditions = conditions.concat();
    let mut entries = Vec::new();
    for protocol in Protocol::ALL {
        let ports: Vec<_> = map
            .mappings
            .iter()
            .filter(|mapping| mapping.protocol == protocol)
            .map(|mapping| mapping.host_port.to_string())
            .collect();
        entries.extend(ports.chunks(PORTS).map(|ports| {
            let (comment, ports) = (quoted(&name), ports.join(","));
            format!(
                "-p {protocol} -m comment --comment {comment} -m multiport --dports {ports} {conditions}-j {}",
                map.chain
            )
        }));
    }
    entries
}

/// The rules of the container's chain.
fn chain_rules(map: &PortMap, family: Family) -> Vec<Rule> {
    let Some(address) = map.addresses.get(family).copied() else { return Vec::new() };
    let mut rules = Vec::new();
    for mapping in map.of_family(family) {
        let mut rule = |source: Option<Match>, verdict| {
            rules.push(Rule { matches: source.into_iter().chain(mapping.matches()).collect(), verdict });
        };
        if let Some(masquerade) = &map.masquerade {
            let to = match &masquerade.mark {
                Mark::Bit(_) => Verdict::Jump(SET_MARK.into()),
                Mark::Chain(chain) => Verdict::Jump(chain.as_str().into()),
            };
            if masquerade.all {
                rule(None, to);
            } else {
                for net in [Some(address.trunc()), super::loopback(family)].into_iter().flatten() {
                    rule(Some(Match::Source { not: false, net }), to.clone());
                }
            }
        }
        rule(None, Verdict::Dnat(mapping.target(address)));
    }
    rules
}

/// The text that publishes a container's ports in one family, whose rules must not be there yet. It fails as a whole where something is
/// missing that all containers share: then [`repair`] is needed.
pub fn addition(map: &PortMap, family: Family) -> String {
    let shared = shared_rules(map);
    let present = shared.iter().map(|Shared { chain, rule, .. }| format!("-C {chain} {rule}"));
    nat(present.chain([declaration(&map.chain)]).chain(own(map, family)))
}

/// The text that makes the rules of one family whole for all of these containers, whatever `iptables-save` has shown of them.
pub fn repair(maps: &[&PortMap], family: Family, saved: &str) -> String {
    let there = Saved::parse(saved);
    let mut lines = Vec::new();
    let mut add = |line: String| {
        if !lines.contains(&line) {
            lines.push(line);
        }
    };
    let missing = |chain: &&str| !there.declares(chain);
    maps.iter().flat_map(|map| shared_chains(map)).filter(missing).map(declaration).for_each(&mut add);
    let absent = |shared: &Shared| !there.holds(shared.chain, &shared.rule);
    maps.iter()
        .flat_map(|map| shared_rules(map))
        .filter(absent)
        .map(|Shared { chain, rule, first }| format!("-{} {chain} {rule}", if first { "I" } else { "A" }))
        .for_each(add);
    let anew = |map: &PortMap| {
        let before = std::iter::once(declaration(&map.chain)).chain(there.unhook(&map.chain));
        before.chain(own(map, family)).collect::<Vec<_>>()
    };
    nat(lines.into_iter().chain(maps.iter().flat_map(|map| anew(map))))
}

/// Whether `iptables-save` shows all rules of one family. Conditions are not compared: it may show them in other words.
pub fn is_whole(map: &PortMap, family: Family, saved: &str) -> bool {
    let there = Saved::parse(saved);
    let inside = there.rules.iter().filter(|(chain, _)| *chain == map.chain).map(|(_, rule)| (*rule).to_owned());
    let leading = there.unhook(&map.chain).len();
    there.leads(map)
        && inside.eq(chain_rules(map, family).iter().map(bare_rule_text))
        && leading == entries(map, family).len()
}

/// Whether `iptables-save` shows what leads to the rules of all containers, which no plugin takes away.
pub fn is_led_to(map: &PortMap, saved: &str) -> bool {
    Saved::parse(saved).leads(map)
}

/// The text that succeeds only if the rules of one family are all there. It changes nothing.
pub fn check(map: &PortMap, family: Family) -> String {
    let shared = shared_rules(map).into_iter().map(|Shared { chain, rule, .. }| format!("-C {chain} {rule}"));
    let own = own(map, family).into_iter().map(|line| line.replacen("-A", "-C", 1));
    nat(shared.chain(own))
}

/// The text that removes the rules of one family, all of which must be there.
pub fn removal(map: &PortMap, family: Family) -> String {
    let unhooked = entries(map, family).into_iter().map(|rule| format!("-D {DNAT} {rule}"));
    nat(unhooked.chain(dissolution(&map.chain)))
}

/// The text that removes a chain and what leads to it, as far as `iptables-save` has shown that; none if that is nothing.
pub fn removal_of(chain: &str, saved: &str) -> Option<String> {
    let saved = Saved::parse(saved);
    saved.declares(chain).then(|| nat(saved.unhook(chain).into_iter().chain(dissolution(chain))))
}

/// The containers of a network that `iptables-save` shows rules of, each with its chain.
pub fn containers<'a>(network: &str, saved: &'a str) -> Vec<(&'a str, &'a str)> {
    let lead = format!(r#"--comment "dnat name: \"{network}\" id: \""#);
    let read = |(chain, rule): &(&str, &'a str)| {
        let (_, rest) = rule.split_once(&lead).filter(|_| *chain == DNAT)?;
        let (container, _) = rest.split_once(r#"\"""#)?;
        let (_, chain) = rule.rsplit_once(" -j ")?;
        Some((container, chain))
    };
    let mut found: Vec<_> = Saved::parse(saved).rules.iter().filter_map(read).collect();
    found.dedup();
    found
}

/// The container's own rules, as lines that append.
fn own(map: &PortMap, family: Family) -> Vec<String> {
    let inside = chain_rules(map, family).into_iter().map(|rule| format!("-A {} {}", map.chain, bare_rule_text(&rule)));
    inside.chain(entries(map, family).into_iter().map(|rule| format!("-A {DNAT} {rule}"))).collect()
}

/// Makes a chain, or empties the one that is there.
fn declaration(chain: &str) -> String {
    format!(":{chain} - [0:0]")
}

fn dissolution(chain: &str) -> [String; 2] {
    [format!("-F {chain}"), format!("-X {chain}")]
}

fn nat(lines: impl Iterator<Item = String>) -> String {
    let mut text = String::from("*nat\n");
    for line in lines {
        // Writing to a string does not fail.
        _ = writeln!(text, "{line}");
    }
    text + "COMMIT\n"
}

/// Table `nat` as saved.
struct Saved<'a> {
    chains: Vec<&'a str>,
    /// Each rule's chain, and the rule.
    rules: Vec<(&'a str, &'a str)>,
}

impl<'a> Saved<'a> {
    fn parse(text: &'a str) -> Self {
        let nat = || text.lines().skip_while(|line| *line != "*nat").take_while(|line| *line != "COMMIT");
        let chains = nat().filter_map(|line| line.strip_prefix(':')?.split(' ').next()).collect();
        let rules = nat().filter_map(|line| line.strip_prefix("-A ")?.split_once(' ')).collect();
        Self { chains, rules }
    }

    fn declares(&self, chain: &str) -> bool {
        self.chains.contains(&chain)
    }

    fn leads(&self, map: &PortMap) -> bool {
        shared_rules(map).iter().all(|shared| self.holds(shared.chain, &shared.rule))
    }

    fn holds(&self, chain: &str, rule: &str) -> bool {
        self.rules.contains(&(chain, rule))
    }

    /// The lines that delete what leads to a chain.
    fn unhook(&self, chain: &str) -> Vec<String> {
        let jump = format!(" -j {chain}");
        let leading = self.rules.iter().filter(|(_, rule)| rule.ends_with(&jump) || rule[..] == jump[1..]);
        leading.map(|(from, rule)| format!("-D {from} {rule}")).collect()
    }
}

/// A word as `iptables-restore` reads it whole.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\');
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::super::tests::port_map;
    use super::*;

    const SAVED: &str = r#"*filter
:CNI-DN-68f1 - [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-DN-68f1 - [0:0]
:CNI-DN-68f1a - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A CNI-DN-68f1 -s 10.244.1.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-68f1 -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-68f1 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.244.1.5:80
-A CNI-DN-68f1 -s 10.244.1.0/24 -d 192.0.2.1/32 -p udp -m udp --dport 53 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-68f1 -s 127.0.0.1/32 -d 192.0.2.1/32 -p udp -m udp --dport 53 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-68f1 -d 192.0.2.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.244.1.5:53
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"cbr0\" id: \"c1\"" -m multiport --dports 8080 -j CNI-DN-68f1
-A CNI-HOSTPORT-DNAT -p udp -m comment --comment "dnat name: \"cbr0\" id: \"c1\"" -m multiport --dports 53 -j CNI-DN-68f1
-A CNI-HOSTPORT-DNAT -p udp -m comment --comment "dnat name: \"cbr0\" id: \"c10\"" -m multiport --dports 54 -j CNI-DN-68f1a
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
COMMIT
"#;

    fn example() -> PortMap {
        port_map(&["10.244.1.5/24"], &["tcp 8080 80", "udp 53 53 192.0.2.1"])
    }

    #[test]
    fn the_layout_is_the_go_plugins() {
        let written = repair(&[&example()], Family::V4, "*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n");
        let expected = SAVED.lines().filter(|line| line.contains("CNI-") && !line.contains("68f1a"));
        for line in expected.clone() {
            let inserted = line.replacen("-A POSTROUTING", "-I POSTROUTING", 1);
            assert!(written.lines().any(|written| written == inserted), "{line} is not in\n{written}");
        }
        // The line of another table.
        assert_eq!(written.lines().count(), expected.count() - 1 + 2);
    }

    #[test]
    fn what_is_there_is_expected_and_what_is_missing_made() {
        let added = addition(&example(), Family::V4);
        assert!(added.starts_with("*nat\n-C CNI-HOSTPORT-SETMARK "), "{added}");
        assert_eq!(added.lines().filter(|line| line.starts_with("-C")).count(), 5);
        assert!(added.contains("\n:CNI-DN-68f1 - [0:0]\n-A CNI-DN-68f1 -s 10.244.1.0/24 "), "{added}");
        let repaired = repair(&[&example()], Family::V4, SAVED);
        assert!(repaired.starts_with("*nat\n:CNI-DN-68f1 - [0:0]\n-D CNI-HOSTPORT-DNAT -p tcp "), "{repaired}");
        assert!(!repaired.contains("-A PREROUTING") && !repaired.contains("68f1a"), "{repaired}");
    }

    #[test]
    fn what_is_everybodys_is_made_once_for_many() {
        let mut other = example();
        other.chain = "CNI-DN-68f1a".into();
        let repaired = repair(&[&example(), &other], Family::V4, "");
        for line in [":CNI-HOSTPORT-DNAT - [0:0]", "-A PREROUTING", "-I POSTROUTING", ":CNI-DN-68f1a - [0:0]"] {
            assert_eq!(repaired.lines().filter(|written| written.starts_with(line)).count(), 1, "{line}: {repaired}");
        }
    }

    #[test]
    fn a_missing_rule_is_seen() {
        assert!(is_whole(&example(), Family::V4, SAVED));
        for (number, line) in SAVED.lines().enumerate().filter(|(_, line)| line.starts_with("-A")) {
            let others = SAVED.split_inclusive('\n').enumerate().filter(|(other, _)| *other != number);
            let less: String = others.map(|(_, line)| line).collect();
            assert_eq!(is_whole(&example(), Family::V4, &less), line.contains("68f1a"), "{line}");
        }
        assert!(!is_whole(&example(), Family::V4, ""));
        assert!(is_led_to(&example(), SAVED) && !is_led_to(&example(), ""));
        let shared: String = SAVED.split_inclusive('\n').filter(|line| !line.contains("68f1")).collect();
        assert!(is_led_to(&example(), &shared) && !is_whole(&example(), Family::V4, &shared));
    }

    #[test]
    fn only_the_containers_own_is_removed() {
        let quick = removal(&example(), Family::V4);
        assert_eq!(removal_of("CNI-DN-68f1", SAVED).unwrap(), quick);
        assert!(quick.ends_with("-F CNI-DN-68f1\n-X CNI-DN-68f1\nCOMMIT\n") && !quick.contains("68f1a"), "{quick}");
        assert_eq!(removal_of("CNI-DN-0", SAVED), None);
    }

    #[test]
    fn containers_are_known_by_their_rules() {
        assert_eq!(containers("cbr0", SAVED), [("c1", "CNI-DN-68f1"), ("c10", "CNI-DN-68f1a")]);
        assert_eq!(containers("cbr", SAVED), []);
    }

    #[test]
    fn ports_come_in_fifteens_and_words_are_kept_whole() {
        let ports: Vec<_> = (1..=16).map(|port| format!("tcp {port} 80")).collect();
        let mut map = port_map(&["fd00::5/64"], &ports.iter().map(String::as_str).collect::<Vec<_>>());
        map.conditions.set(Family::V6, vec!["!".into(), "-d".into(), "a b\"\\".into()]);
        let entries = entries(&map, Family::V6);
        assert!(
            entries[0].contains("--dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 ! -d \"a b\\\"\\\\\" -j CNI-DN-68f1")
        );
        assert!(entries[1].contains("--dports 16 ! -d"), "{entries:?}");
        map.container = "c".repeat(250);
        assert!(super::entries(&map, Family::V6)[0].contains("ccc...\" -m multiport"));
    }

    #[test]
    fn all_and_chains_of_others() {
        let mut map = example();
        map.masquerade = Some(Masquerade { all: true, mark: Mark::Chain("KUBE-MARK-MASQ".into()) });
        let added = addition(&map, Family::V4);
        assert!(added.contains("-A CNI-DN-68f1 -p tcp -m tcp --dport 8080 -j KUBE-MARK-MASQ\n"), "{added}");
        assert!(!added.contains("CNI-HOSTPORT-SETMARK") && !added.contains("POSTROUTING"), "{added}");
        map.masquerade = None;
        assert_eq!(chain_rules(&map, Family::V4).len(), 2);
    }
}
