//! The rules in iptables' words: read from `iptables-save`, written as input of `iptables-restore --noflush`.
//!
//! [`Saved`] is what one `iptables-save` (or `ip6tables-save`) says of flannel's chains; [`Saved::ruleset`] is that in the
//! model, [`Saved::restore`] the text that makes it equal to a wanted one and touches nothing that already is. Running the
//! programs is the kernel crate's part.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Chain, MASQUERADE_MARK, Match, Rule, Ruleset, Verdict};

/// Where one of flannel's chains lives (compat §7).
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// The table.
    pub table: &'static str,
    /// Flannel's chain.
    pub chain: &'static str,
    /// The built-in chain that jumps to it.
    pub from: &'static str,
    /// The comment of each rule and of the jump.
    comment: &'static str,
}

/// The place of [`Ruleset::postrouting`].
pub const POSTROUTING: Place =
    Place { table: "nat", chain: "FLANNEL-POSTRTG", from: "POSTROUTING", comment: "flanneld masq" };

/// The place of [`Ruleset::forward`].
pub const FORWARD: Place =
    Place { table: "filter", chain: "FLANNEL-FWD", from: "FORWARD", comment: "flanneld forward" };

/// What one family's saved rules say of flannel's chains, and whether they hold chains that tell which variant is in use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Saved {
    postrouting: Part,
    forward: Part,
    /// There are chains of Kubernetes' (`KUBE-*`) or of ours (`FLANNEL-*`): this variant of iptables is the one in use.
    pub in_use: bool,
    /// Tables that the program refused to print because programs other than iptables changed them.
    pub unreadable: Vec<Box<str>>,
}

/// One place's chain and the jumps to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Part {
    rules: Option<Vec<Rule>>,
    jumps: Vec<Jump>,
}

/// A rule that leads to a chain of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Jump {
    from: Box<str>,
    /// The rule as saved, without `-A <chain>`.
    spec: Box<str>,
    /// It has no match: every packet jumps.
    plain: bool,
}

/// The command line by which a person removes flannel's chains from one table, where no program may be run by flannel.
pub fn removal_command(iptables: &str, place: &Place) -> String {
    let Place { table, chain, from, comment } = place;
    format!(
        "{iptables} -t {table} -D {from} -m comment --comment \"{comment}\" -j {chain}; \
         {iptables} -t {table} -F {chain}; {iptables} -t {table} -X {chain}"
    )
}

impl Saved {
    /// Reads the output of `iptables-save`. Lines that are not about flannel are passed over.
    pub fn parse(text: &str) -> Self {
        let mut saved = Self::default();
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.trim();
            } else if let Some(chain) = line.strip_prefix(':') {
                saved.declare(table, chain.split(' ').next().unwrap_or_default());
            } else if let Some(rule) = line.strip_prefix("-A ") {
                saved.append(table, rule);
            } else if line.contains("is incompatible") {
                saved.unreadable.extend(line.split(['`', '\'']).nth(1).map(Box::from));
            }
        }
        saved
    }

    fn parts(&mut self) -> [(&'static Place, &mut Part); 2] {
        [(&POSTROUTING, &mut self.postrouting), (&FORWARD, &mut self.forward)]
    }

    fn declare(&mut self, table: &str, chain: &str) {
        self.in_use |= chain.starts_with("KUBE-") || chain.starts_with("FLANNEL-");
        for (place, part) in self.parts() {
            if (place.table, place.chain) == (table, chain) {
                part.rules = Some(Vec::new());
            }
        }
    }

    fn append(&mut self, table: &str, line: &str) {
        let (chain, spec) = line.split_once(' ').unwrap_or((line, ""));
        for (place, part) in self.parts().into_iter().filter(|(place, _)| place.table == table) {
            if place.chain == chain {
                part.rules.get_or_insert_default().push(parse_rule(&words(spec)));
            } else if leads_to(place.chain, &words(spec)) {
                let plain = parse_rule(&words(spec)).matches.is_empty();
                part.jumps.push(Jump { from: chain.into(), spec: spec.into(), plain });
            }
        }
    }

    /// The same in the model; none if there is nothing of flannel's.
    pub fn ruleset(&self) -> Option<Ruleset> {
        let rules =
            Ruleset { postrouting: self.postrouting.chain(&POSTROUTING), forward: self.forward.chain(&FORWARD) };
        (rules != Ruleset::default()).then_some(rules)
    }

    /// The input of `iptables-restore --noflush` that turns these rules into the wanted ones; empty if they agree already.
    /// A chain that is not wanted goes with all jumps to it; a jump that is right stays where it is.
    pub fn restore(&self, want: &Ruleset) -> String {
        let mut text = String::new();
        for (place, part, want) in [
            (&POSTROUTING, &self.postrouting, want.postrouting.as_ref()),
            (&FORWARD, &self.forward, want.forward.as_ref()),
        ] {
            if part.chain(place).as_ref() != want {
                let lines = want.map_or_else(|| part.removal(place), |want| part.repair(place, want));
                text.extend(["*", place.table, "\n", &lines, "COMMIT\n"]);
            }
        }
        text
    }
}

impl Part {
    fn chain(&self, place: &Place) -> Option<Chain> {
        let mut jumps = self.jumps_from(place.from);
        let hooked = matches!((jumps.next(), jumps.next()), (Some(jump), None) if jump.plain);
        self.rules.clone().map(|rules| Chain { hooked, rules })
    }

    fn jumps_from(&self, from: &str) -> impl Iterator<Item = &Jump> {
        self.jumps.iter().filter(move |jump| &*jump.from == from)
    }

    /// Naming a chain of the user's makes it, or empties it if it is there (`iptables-restore`, also with `--noflush`).
    fn repair(&self, place: &Place, want: &Chain) -> String {
        let mut text = String::new();
        if self.rules.as_ref() != Some(&want.rules) {
            let _ = writeln!(text, ":{} - [0:0]", place.chain);
            for rule in &want.rules {
                let _ = writeln!(text, "-A {} {}", place.chain, rule_text(rule, place.comment));
            }
        }
        let keep = self.jumps_from(place.from).position(|jump| jump.plain);
        for (_, jump) in self.jumps_from(place.from).enumerate().filter(|(index, _)| Some(*index) != keep) {
            text.push_str(&jump.deletion());
        }
        if keep.is_none() {
            let _ = writeln!(text, "-A {} -m comment --comment \"{}\" -j {}", place.from, place.comment, place.chain);
        }
        text
    }

    fn removal(&self, place: &Place) -> String {
        let emptied = format!(":{} - [0:0]\n", place.chain);
        let unhooked = self.jumps.iter().map(Jump::deletion).collect::<String>();
        format!("{emptied}{unhooked}-X {}\n", place.chain)
    }
}

impl Jump {
    /// Deletes the first rule that says the same.
    fn deletion(&self) -> String {
        format!("-D {} {}\n", self.from, self.spec)
    }
}

/// Splits a saved rule at blanks; a quoted word is one, without its quotes. Escapes stay: only comments have them.
pub(super) fn words(mut text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    loop {
        text = text.trim_start();
        let (word, rest) = match text.strip_prefix('"') {
            Some(quoted) => quoted.split_at(closing_quote(quoted)),
            None if text.is_empty() => return words,
            None => text.split_at(text.find(' ').unwrap_or(text.len())),
        };
        words.push(word);
        text = rest.strip_prefix('"').unwrap_or(rest);
    }
}

/// The index of the first `"` that no backslash precedes.
fn closing_quote(text: &str) -> usize {
    let mut escaped = false;
    text.bytes()
        .position(|byte| {
            let closes = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            closes
        })
        .unwrap_or(text.len())
}

fn leads_to(chain: &str, words: &[&str]) -> bool {
    words.windows(2).any(|pair| matches!(pair[0], "-j" | "-g") && pair[1] == chain)
}

fn parse_rule(mut words: &[&str]) -> Rule {
    let mut matches = Vec::new();
    let mark = mark_text();
    loop {
        let (found, rest) = match words {
            [] => return Rule { matches, verdict: Verdict::Other("no target".into()) },
            ["-j", target @ ..] => return Rule { matches, verdict: parse_target(target) },
            ["-m", "comment", "--comment", _, rest @ ..] => (None, rest),
            ["-m", "mark", "--mark", value, rest @ ..] if *value == mark => (Some(Match::Mark), rest),
            ["!", end @ ("-s" | "-d"), net, rest @ ..] => (Some(parse_address(end, true, net)), rest),
            [end @ ("-s" | "-d"), net, rest @ ..] => (Some(parse_address(end, false, net)), rest),
            [word, rest @ ..] => (Some(Match::Other((*word).into())), rest),
        };
        matches.extend(found);
        words = rest;
    }
}

fn parse_address(end: &str, not: bool, text: &str) -> Match {
    match text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
        Ok(net) if end == "-s" => Match::Source { not, net },
        Ok(net) => Match::Destination { not, net },
        Err(_) => Match::Other(format!("{end} {text}").into()),
    }
}

fn parse_target(words: &[&str]) -> Verdict {
    match words {
        ["RETURN"] => Verdict::Return,
        ["ACCEPT"] => Verdict::Accept,
        ["MASQUERADE"] => Verdict::Masquerade { fully_random: false },
        ["MASQUERADE", "--random-fully"] => Verdict::Masquerade { fully_random: true },
        other => Verdict::Other(other.join(" ").into()),
    }
}

/// A rule as `iptables-save` prints it, without `-A <chain>`: matches, comment, target.
fn rule_text(rule: &Rule, comment: &str) -> String {
    let matches = rule.matches.iter().map(match_text).collect::<String>();
    format!("{matches}-m comment --comment \"{comment}\" -j {}", target_text(&rule.verdict))
}

/// A rule without a comment.
pub(crate) fn bare_rule_text(rule: &Rule) -> String {
    let matches = rule.matches.iter().map(match_text).collect::<String>();
    format!("{matches}-j {}", target_text(&rule.verdict))
}

fn target_text(verdict: &Verdict) -> Cow<'_, str> {
    match verdict {
        Verdict::Return => "RETURN".into(),
        Verdict::Accept => "ACCEPT".into(),
        Verdict::Masquerade { fully_random: false } => "MASQUERADE".into(),
        Verdict::Masquerade { fully_random: true } => "MASQUERADE --random-fully".into(),
        Verdict::Dnat(to) => format!("DNAT --to-destination {to}").into(),
        Verdict::Jump(text) | Verdict::Other(text) => Cow::Borrowed(text),
    }
}

fn match_text(m: &Match) -> String {
    let address = |end, not: bool, net| format!("{}{end} {net} ", if not { "! " } else { "" });
    match m {
        Match::Mark => format!("-m mark --mark {} ", mark_text()),
        Match::Source { not, net } => address("-s", *not, net),
        Match::Destination { not, net } => address("-d", *not, net),
        Match::Local => "-m addrtype --dst-type LOCAL ".into(),
        Match::Port { protocol, port } => format!("-p {protocol} -m {protocol} --dport {port} "),
        Match::Translated { port } => format!("-m conntrack --ctstatus DNAT --ctorigdstport {port} "),
        Match::Other(text) => format!("{text} "),
    }
}

fn mark_text() -> String {
    format!("{MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x}")
}

#[cfg(test)]
mod tests {
    use super::super::{PodNetworks, RuleMode, RuleOptions, ruleset};
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-nft-save v1.8.9 (nf_tables) on Sat Nov 21 08:09:18 2026
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "some \"quoted\" -j FLANNEL-POSTRTG" -j OTHER
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.42.1.0/24 -d 10.42.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.42.0.0/16 -d 10.42.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.42.0.0/16 -d 10.42.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.42.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.42.0.0/16 -d 10.42.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
COMMIT
*filter
:FORWARD ACCEPT [0:0]
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.42.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.42.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"#;

    fn want() -> Ruleset {
        let networks =
            PodNetworks { network: "10.42.0.0/16".parse().unwrap(), pod_subnet: "10.42.1.0/24".parse().unwrap() };
        let options = RuleOptions { mode: RuleMode::Iptables, ip_masq: true, fully_random: true, forward: true };
        ruleset(Some(networks), options).unwrap()
    }

    #[test]
    fn saved_rules_that_agree_need_nothing() {
        let saved = Saved::parse(SAVED);
        assert_eq!(saved.ruleset(), Some(want()));
        assert_eq!(saved.restore(&want()), "");
        assert!(saved.in_use);
    }

    #[test]
    fn from_nothing_all_is_written() {
        let nothing = Saved::parse("*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n");
        assert!(!nothing.in_use);
        assert_eq!(nothing.ruleset(), None);
        let text = nothing.restore(&want());
        let rules = SAVED.lines().filter(|line| line.contains("FLANNEL") && !line.contains("quoted"));
        assert_eq!(rules.clone().count(), 12);
        for line in rules {
            assert!(text.lines().any(|written| written == line), "{line} not in:\n{text}");
        }
        assert_eq!(Saved::parse(&text).ruleset(), Some(want()));
    }

    #[test]
    fn only_what_differs_is_written() {
        let damage = |from: &str, to: &str| Saved::parse(&SAVED.replace(from, to)).restore(&want());
        assert_eq!(
            damage("-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n", ""),
            "*filter\n-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\nCOMMIT\n"
        );
        assert_eq!(
            damage("-A FLANNEL-FWD -d 10.42.0.0/16", "-A FLANNEL-FWD -i eth0 -d 10.42.0.0/16"),
            "*filter\n:FLANNEL-FWD - [0:0]\n\
             -A FLANNEL-FWD -s 10.42.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\n\
             -A FLANNEL-FWD -d 10.42.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\nCOMMIT\n"
        );
        assert!(damage("--mark 0x4000/0x4000", "--mark 0x4000").starts_with("*nat\n:FLANNEL-POSTRTG - [0:0]\n"));
    }

    #[test]
    fn jumps_are_reduced_to_one_that_takes_every_packet() {
        let jump = "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n";
        let twice = SAVED.replace(jump, &format!("{jump}-A FORWARD -j FLANNEL-FWD\n"));
        assert_eq!(Saved::parse(&twice).restore(&want()), "*filter\n-D FORWARD -j FLANNEL-FWD\nCOMMIT\n");
        let partial = SAVED.replace(jump, "-A FORWARD -i eth0 -j FLANNEL-FWD\n");
        assert_eq!(
            Saved::parse(&partial).restore(&want()),
            format!("*filter\n-D FORWARD -i eth0 -j FLANNEL-FWD\n{jump}COMMIT\n")
        );
    }

    #[test]
    fn what_is_not_wanted_goes_with_its_jumps() {
        let want = Ruleset { forward: None, ..want() };
        assert_eq!(
            Saved::parse(SAVED).restore(&want),
            "*filter\n:FLANNEL-FWD - [0:0]\n-D FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
             -X FLANNEL-FWD\nCOMMIT\n"
        );
    }

    #[test]
    fn foreign_words_are_kept_as_other() {
        let saved = Saved::parse(
            "*nat\n:FLANNEL-POSTRTG - [0:0]\n-A FLANNEL-POSTRTG -s 10.0.0.1/32 -o x -g Y\n-A FLANNEL-POSTRTG\n",
        );
        let rules = saved.ruleset().unwrap().postrouting.unwrap().rules;
        assert_eq!(rules[0].to_string(), "ip saddr 10.0.0.1 -o x -g Y no target");
        assert_eq!(rules[1].to_string(), "no target");
        assert_eq!(
            Saved::parse("*nat\n# Table `nat' is incompatible, use 'nft' tool.\n").unreadable,
            [Box::from("nat")]
        );
    }

    #[test]
    fn any_text_is_read_without_a_panic() {
        for text in ["-A", "-A ", "*", ":", "-A FLANNEL-FWD \"", "*nat\n-A FLANNEL-POSTRTG -s \"\\", "-A FORWARD -j"] {
            let _ = Saved::parse(text).restore(&want());
        }
    }
}
