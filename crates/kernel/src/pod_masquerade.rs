//! Masquerading for one pod by iptables: a chain of the pod's own in table `nat`, in the layout of the Go plugin `bridge`, so that
//! either removes what the other added.
//!
//! Surface: [`PodMasquerade`]. One `iptables-restore` adds, one `iptables-save` finds what is to be removed. The programs are
//! those in `PATH`, as the Go plugin's are, in whichever variant they come.

use std::fmt::Write;
use std::time::Duration;

use flannel_core::addr::Family;
use ipnet::IpNet;

use crate::program::{Program, RunError};

/// How long a program may take, beside what it waits for the lock that iptables programs share.
const LIMIT: Duration = Duration::from_secs(20);
/// How long it waits for that, in seconds.
const WAIT: &str = "--wait=10";

/// The rules of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodMasquerade {
    /// The chain's name.
    pub chain: String,
    /// The network's name, for the rules' comment; without `"` and `\`.
    pub network: String,
    /// The container's name, for the rules' comment; without `"` and `\`.
    pub container: String,
}

impl PodMasquerade {
    /// Masquerades what leaves from these addresses for other places than their own subnets.
    pub fn add(&self, addresses: &[IpNet]) -> Result<(), MasqueradeError> {
        for family in Family::ALL {
            let of_family: Vec<_> = addresses.iter().copied().filter(|net| Family::of_net(*net) == family).collect();
            if of_family.is_empty() {
                continue;
            }
            let restore =
                program(family, "restore").ok_or(MasqueradeError::Missing { name: name(family, "restore") })?;
            restore.run(&["--noflush", WAIT], &self.addition(family, &of_family), LIMIT)?;
        }
        Ok(())
    }

    /// Removes the chain and the rules that jump to it. Succeeds when there are none, and where there is no iptables.
    pub fn remove(&self) -> Result<(), MasqueradeError> {
        for family in Family::ALL {
            let (Some(save), Some(restore)) = (program(family, "save"), program(family, "restore")) else { continue };
            if let Some(removal) = self.removal(&save.run(&[], "", LIMIT)?) {
                restore.run(&["--noflush", WAIT], &removal, LIMIT)?;
            }
        }
        Ok(())
    }

    /// The rules of a network's pods whose container is gone, read from the comments.
    pub fn stale(network: &str, is_gone: impl Fn(&str) -> bool) -> Result<Vec<Self>, MasqueradeError> {
        let mut stale: Vec<Self> = Vec::new();
        for save in Family::ALL.into_iter().filter_map(|family| program(family, "save")) {
            let saved = save.run(&[], "", LIMIT)?;
            let rules = nat(&saved).filter_map(|line| Self::of_jump(line, network));
            for rules in rules.filter(|rules| is_gone(&rules.container)) {
                if !stale.contains(&rules) {
                    stale.push(rules);
                }
            }
        }
        Ok(stale)
    }

    /// The pod that a rule of `iptables-save` leads to, if it is one of the network.
    fn of_jump(line: &str, network: &str) -> Option<Self> {
        let named = format!(r#"--comment "name: \"{network}\" id: \""#);
        let (_, rest) = line.strip_prefix("-A POSTROUTING ")?.split_once(&named)?;
        let (container, rest) = rest.split_once(r#"\"" "#)?;
        let chain = rest.strip_prefix("-j ").filter(|chain| chain.starts_with("CNI-"))?;
        Some(Self { chain: chain.into(), network: network.into(), container: container.into() })
    }

    /// The text for `iptables-restore`. Declaring the chain empties one that a killed plugin has left.
    fn addition(&self, family: Family, addresses: &[IpNet]) -> String {
        let (chain, multicast) = (&self.chain, multicast(family));
        let comment = format!(r#"-m comment --comment "name: \"{}\" id: \"{}\"""#, self.network, self.container);
        let mut text = format!("*nat\n:{chain} - [0:0]\n");
        for net in addresses {
            // Writing to a string does not fail.
            _ = writeln!(text, "-A {chain} -d {} {comment} -j ACCEPT", net.trunc());
            _ = writeln!(text, "-A {chain} ! -d {multicast} {comment} -j MASQUERADE");
            _ = writeln!(text, "-A POSTROUTING -s {} {comment} -j {chain}", IpNet::from(net.addr()));
        }
        text + "COMMIT\n"
    }

    /// The text that undoes what `iptables-save` shows of the pod; none if that is nothing.
    fn removal(&self, saved: &str) -> Option<String> {
        let chain = &self.chain;
        let nat: Vec<_> = nat(saved).collect();
        nat.iter().find(|line| line.strip_prefix(':').is_some_and(|rest| rest.split(' ').next() == Some(chain)))?;
        let jump = format!(" -j {chain}");
        let jumps = nat.iter().filter(|line| line.ends_with(&jump)).filter_map(|line| line.strip_prefix("-A "));
        let deletions = jumps.map(|rule| format!("-D {rule}"));
        let lines = std::iter::once("*nat".to_owned()).chain(deletions);
        let lines: Vec<_> = lines.chain([format!("-F {chain}"), format!("-X {chain}"), "COMMIT\n".into()]).collect();
        Some(lines.join("\n"))
    }
}

/// The lines of table `nat` in what `iptables-save` shows.
fn nat(saved: &str) -> impl Iterator<Item = &str> {
    saved.lines().skip_while(|line| *line != "*nat").take_while(|line| *line != "COMMIT")
}

/// Multicast addresses: RFC 5771 and RFC 4291 §2.7.
fn multicast(family: Family) -> &'static str {
    match family {
        Family::V4 => "224.0.0.0/4",
        Family::V6 => "ff00::/8",
    }
}

fn name(family: Family, verb: &str) -> String {
    match family {
        Family::V4 => format!("iptables-{verb}"),
        Family::V6 => format!("ip6tables-{verb}"),
    }
}

fn program(family: Family, verb: &str) -> Option<Program> {
    Program::find(&name(family, verb))
}

/// The rules cannot be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum MasqueradeError {
    /// There is no such program.
    #[error("cannot masquerade for the pod: no program {name} in PATH")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A program failed.
    #[error("cannot change the pod's masquerade rules: {0}")]
    Run(String),
}

impl From<RunError> for MasqueradeError {
    fn from(error: RunError) -> Self {
        Self::Run(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> PodMasquerade {
        PodMasquerade { chain: "CNI-68f1".into(), network: "cbr0".into(), container: "c1".into() }
    }

    #[test]
    fn the_layout_is_the_go_plugins() {
        assert_eq!(
            rules().addition(Family::V4, &["10.244.1.2/24".parse().unwrap()]),
            "*nat\n:CNI-68f1 - [0:0]\n\
             -A CNI-68f1 -d 10.244.1.0/24 -m comment --comment \"name: \\\"cbr0\\\" id: \\\"c1\\\"\" -j ACCEPT\n\
             -A CNI-68f1 ! -d 224.0.0.0/4 -m comment --comment \"name: \\\"cbr0\\\" id: \\\"c1\\\"\" -j MASQUERADE\n\
             -A POSTROUTING -s 10.244.1.2/32 -m comment --comment \"name: \\\"cbr0\\\" id: \\\"c1\\\"\" -j CNI-68f1\nCOMMIT\n"
        );
    }

    #[test]
    fn a_rule_names_its_pod() {
        let line = r#"-A POSTROUTING -s 10.1.0.2/32 -m comment --comment "name: \"cbr0\" id: \"c1\"" -j CNI-68f1"#;
        assert_eq!(PodMasquerade::of_jump(line, "cbr0"), Some(rules()));
        assert_eq!(PodMasquerade::of_jump(line, "cbr"), None);
        for other in
            ["-A POSTROUTING -s 10.1.0.2/32 -j CNI-68f1", &line.replace("-j CNI", "-j KUBE"), ":CNI-68f1 - [0:0]"]
        {
            assert_eq!(PodMasquerade::of_jump(other, "cbr0"), None, "{other}");
        }
    }

    #[test]
    fn only_the_pods_own_rules_are_removed() {
        let saved = "*filter\n:CNI-68f1 - [0:0]\nCOMMIT\n*nat\n:POSTROUTING ACCEPT [0:0]\n:CNI-68f1 - [0:0]\n\
            :CNI-68f1aa - [0:0]\n-A POSTROUTING -s 10.1.0.2/32 -j CNI-68f1\n-A POSTROUTING -s 10.1.0.3/32 -j CNI-68f1aa\n\
            -A CNI-68f1 -d 10.1.0.0/24 -j ACCEPT\nCOMMIT\n";
        assert_eq!(
            rules().removal(saved).unwrap(),
            "*nat\n-D POSTROUTING -s 10.1.0.2/32 -j CNI-68f1\n-F CNI-68f1\n-X CNI-68f1\nCOMMIT\n"
        );
        assert_eq!(rules().removal("*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"), None);
        assert_eq!(rules().removal(""), None);
    }
}
