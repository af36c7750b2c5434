//! Which rules of iptables a packet meets, worked out from what `iptables-save` says, for where the kernel does not tell:
//! iptables-legacy has no trace that a namespace can listen to.
//!
//! Surface: [`Tables`] (read from the text), [`Passing`] (a packet at a hook), [`Hit`]. What a rule asks that cannot be known here
//! (a set, a rate, a port, a match of some module) makes the hit an uncertain one, and the walk goes on as if it had not
//! matched. Any text is read; nothing is run.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::iptables::words;

/// No packet meets more rules: chains that lead in a circle, which iptables refuses, are left.
const MOST_RULES: usize = 200_000;
/// Chains that jump to each other are followed no deeper.
const DEEPEST: usize = 64;

/// A point of the network stack at which packets meet rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the built-in chain of its name")]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl Hook {
    /// The built-in chain, and the tables that have it in the order in which they are met (`NF_IP_PRI_*` of
    /// `linux/netfilter_ipv4.h`).
    fn chains(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Prerouting => ("PREROUTING", &["raw", "mangle", "nat"]),
            Self::Input => ("INPUT", &["mangle", "filter", "security", "nat"]),
            Self::Forward => ("FORWARD", &["mangle", "filter", "security"]),
            Self::Output => ("OUTPUT", &["raw", "mangle", "nat", "filter", "security"]),
            Self::Postrouting => ("POSTROUTING", &["mangle", "nat"]),
        }
    }
}

/// A packet that passes a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passing<'a> {
    /// Its source address, as it is before this hook.
    pub source: IpAddr,
    /// Its destination address, likewise.
    pub destination: IpAddr,
    /// The protocol behind IP, an `IPPROTO_*`.
    pub protocol: u8,
    /// Its mark.
    pub mark: u32,
    /// The interface that it came in by; none if this host sends it.
    pub input: Option<&'a str>,
    /// The interface that it goes out by, where that is known already.
    pub output: Option<&'a str>,
    /// It is the first of its connection: only such meet the table `nat`.
    pub first: bool,
}

/// A rule, or a policy, that a packet meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The table.
    pub table: Box<str>,
    /// The chain.
    pub chain: Box<str>,
    /// The rule as saved, without its chain; none if it is the chain's policy.
    pub rule: Option<Box<str>>,
    /// What becomes of the packet.
    pub effect: Effect,
    /// Else the rule also asks what cannot be known here.
    pub certain: bool,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It passes the table.
    Accept,
    /// It is dropped.
    Drop,
    /// It is dropped, and its sender told.
    Reject,
    /// It passes the table, and its addresses are changed.
    Translate,
    /// A program decides.
    Queue,
    /// The chain that jumped here goes on; in a built-in chain its policy follows.
    Return,
    /// Another chain is looked at, and then this goes on.
    Jump(Box<str>),
    /// Another chain is looked at instead of this.
    Goto(Box<str>),
    /// Its mark is changed (and the mask of what is kept of it), and the next rule is looked at.
    Mark {
        /// The bits that are cleared.
        clear: u32,
        /// The bits that are turned then.
        turn: u32,
    },
    /// The next rule is looked at.
    Continue,
}

/// All rules of one family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tables {
    /// By table and chain.
    chains: HashMap<(Box<str>, Box<str>), Chain>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Chain {
    policy: Option<Effect>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    text: Box<str>,
    asks: Vec<Ask>,
    effect: Effect,
}

/// A condition, negated or not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ask {
    not: bool,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Source(IpNet),
    Destination(IpNet),
    Input(Box<str>),
    Output(Box<str>),
    Protocol(u8),
    Mark {
        value: u32,
        mask: u32,
    },
    /// The connection is new, or has been seen.
    State {
        new: bool,
        seen: bool,
    },
    Unknown,
}

impl Tables {
    /// Reads the output of `iptables-save` or `ip6tables-save`.
    pub fn parse(text: &str) -> Self {
        let mut tables = Self::default();
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name.trim();
            } else if let Some((chain, rest)) = line.strip_prefix(':').and_then(|chain| chain.split_once(' ')) {
                let policy = rest.split(' ').next().filter(|policy| *policy != "-");
                tables.chain(table, chain).policy = policy.map(|policy| effect(&["-j", policy]));
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
                tables.chain(table, chain).rules.push(Rule::parse(rule));
            }
        }
        tables
    }

    fn chain(&mut self, table: &str, chain: &str) -> &mut Chain {
        self.chains.entry((table.into(), chain.into())).or_default()
    }

    /// What a packet meets at a hook, in order, up to what stops it.
    pub fn follow(&self, hook: Hook, packet: &Passing<'_>) -> Vec<Hit> {
        let mut walk = Walk { tables: self, packet: packet.clone(), hits: Vec::new(), left: MOST_RULES };
        let (chain, tables) = hook.chains();
        for table in tables.iter().filter(|table| packet.first || **table != "nat") {
            if let Some(Effect::Drop | Effect::Reject | Effect::Queue) = walk.pass(table, chain, 0) {
                break;
            }
        }
        walk.hits
    }
}

/// A packet on its way through the chains.
struct Walk<'a> {
    tables: &'a Tables,
    packet: Passing<'a>,
    hits: Vec<Hit>,
    left: usize,
}

impl Walk<'_> {
    /// Goes through a chain. Answers with what ends the packet's way through the table, if anything did.
    fn pass(&mut self, table: &str, name: &str, depth: usize) -> Option<Effect> {
        let chain = self.tables.chains.get(&(table.into(), name.into())).filter(|_| depth < DEEPEST)?;
        for rule in &chain.rules {
            self.left = self.left.checked_sub(1)?;
            let Some(certain) = rule.matches(&self.packet) else { continue };
            self.hit(table, name, Some(&rule.text), &rule.effect, certain);
            if !certain {
                continue;
            }
            match &rule.effect {
                Effect::Continue => {}
                Effect::Mark { clear, turn } => self.packet.mark = (self.packet.mark & !clear) ^ turn,
                Effect::Jump(to) => {
                    if let Some(end) = self.pass(table, to, depth + 1) {
                        return Some(end);
                    }
                }
                Effect::Goto(to) => {
                    let end = self.pass(table, to, depth + 1);
                    return end.or_else(|| self.policy(table, name, chain));
                }
                Effect::Return => break,
                end => return Some(end.clone()),
            }
        }
        self.policy(table, name, chain)
    }

    fn policy(&mut self, table: &str, name: &str, chain: &Chain) -> Option<Effect> {
        let policy = chain.policy.clone()?;
        self.hit(table, name, None, &policy, true);
        Some(policy)
    }

    fn hit(&mut self, table: &str, chain: &str, rule: Option<&str>, effect: &Effect, certain: bool) {
        let (table, chain, rule) = (table.into(), chain.into(), rule.map(Into::into));
        self.hits.push(Hit { table, chain, rule, effect: effect.clone(), certain });
    }
}

impl Rule {
    /// Reads a saved rule, without `-A <chain>`.
    fn parse(text: &str) -> Self {
        let all = words(text);
        let (mut asks, mut not) = (Vec::new(), false);
        let mut rest = all.as_slice();
        while let [option, behind @ ..] = rest {
            let count = behind.iter().take_while(|word| !word.starts_with(['-', '!'])).count();
            let arguments = &behind[..count];
            rest = &behind[count..];
            match *option {
                "-j" | "-g" => {
                    return Self { text: text.into(), asks, effect: effect(&all[all.len() - behind.len() - 1..]) };
                }
                "!" => not = true,
                "-m" | "--comment" => {}
                option => asks.push(Ask { not: std::mem::take(&mut not), what: What::read(option, arguments) }),
            }
        }
        Self { text: text.into(), asks, effect: Effect::Continue }
    }

    /// Whether it takes the packet: none if not, and false if that cannot be known.
    fn matches(&self, packet: &Passing<'_>) -> Option<bool> {
        let answers: Vec<Option<bool>> = self.asks.iter().map(|ask| ask.answer(packet)).collect();
        (!answers.contains(&Some(false))).then(|| !answers.contains(&None))
    }
}

impl Ask {
    fn answer(&self, packet: &Passing<'_>) -> Option<bool> {
        let holds = match &self.what {
            What::Source(net) => net.contains(&packet.source),
            What::Destination(net) => net.contains(&packet.destination),
            What::Input(name) => is_interface(name, packet.input),
            What::Output(name) => is_interface(name, packet.output),
            What::Protocol(protocol) => *protocol == packet.protocol,
            What::Mark { value, mask } => packet.mark & mask == *value,
            What::State { new, seen } => {
                if packet.first {
                    *new
                } else {
                    *seen
                }
            }
            What::Unknown => return None,
        };
        Some(holds != self.not)
    }
}

/// A name that ends in `+` stands for all that begin so (iptables(8)).
fn is_interface(wanted: &str, found: Option<&str>) -> bool {
    let found = found.unwrap_or_default();
    wanted.strip_suffix('+').map_or(wanted == found, |start| found.starts_with(start))
}

impl What {
    fn read(option: &str, arguments: &[&str]) -> Self {
        let [argument] = arguments else { return Self::Unknown };
        let net = || argument.parse().or_else(|_| argument.parse::<IpAddr>().map(IpNet::from)).ok();
        let known = match option {
            "-s" => net().map(Self::Source),
            "-d" => net().map(Self::Destination),
            "-i" => Some(Self::Input((*argument).into())),
            "-o" => Some(Self::Output((*argument).into())),
            "-p" => protocol(argument).map(Self::Protocol),
            "--mark" => value_and_mask(argument).map(|(value, mask)| Self::Mark { value, mask }),
            "--ctstate" | "--state" => {
                let has = |wanted: &str| argument.split(',').any(|state| state == wanted);
                Some(Self::State { new: has("NEW"), seen: has("ESTABLISHED") })
            }
            _ => None,
        };
        known.unwrap_or(Self::Unknown)
    }
}

/// The names that `iptables-save` prints for the protocols a ping may travel in; others are numbers or unknown.
fn protocol(name: &str) -> Option<u8> {
    Some(match name {
        "icmp" => 1,
        "ipencap" => 4,
        "tcp" => 6,
        "udp" => 17,
        "ipv6" => 41,
        "ipv6-icmp" | "icmpv6" => 58,
        number => number.parse().ok()?,
    })
}

/// `VALUE` or `VALUE/MASK`, in hexadecimal or decimal.
fn value_and_mask(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

/// What a target does; without one, only the rule's counters count.
fn effect(words: &[&str]) -> Effect {
    match words {
        ["-j", "ACCEPT", ..] => Effect::Accept,
        ["-j", "DROP", ..] => Effect::Drop,
        ["-j", "REJECT", ..] => Effect::Reject,
        ["-j", "RETURN", ..] => Effect::Return,
        ["-j", "QUEUE" | "NFQUEUE", ..] => Effect::Queue,
        ["-j", "MASQUERADE" | "SNAT" | "DNAT" | "REDIRECT" | "NETMAP", ..] => Effect::Translate,
        ["-j", "MARK", "--set-xmark", mark, ..] => {
            value_and_mask(mark).map_or(Effect::Continue, |(turn, clear)| Effect::Mark { clear, turn })
        }
        // Targets that are not chains are spelt in capitals too; they let the packet go on, unless they are those above.
        ["-j", "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS" | "CT" | "NOTRACK" | "TRACE" | "TTL" | "HL", ..] => {
            Effect::Continue
        }
        ["-j", chain, ..] => Effect::Jump((*chain).into()),
        ["-g", chain, ..] => Effect::Goto((*chain).into()),
        _ => Effect::Continue,
    }
}

#[cfg(test)]
mod tests;
