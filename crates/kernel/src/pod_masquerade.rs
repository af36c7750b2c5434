//! Masquerading for one pod, by iptables or nf_tables, in the layout of the Go plugin `bridge`, so that either removes what the other
//! added. With iptables a chain of the pod's own in table `nat`; with nf_tables rules in a table that all pods share.
//!
//! Surface: [`PodMasquerade`] and [`remove_stale`]. One `iptables-restore` adds, one `iptables-save` finds what is to be removed; the programs
//! are those in `PATH`, as the Go plugin's are, in whichever variant they come. With nf_tables no program is run.

use std::fmt::Write;

use flannel_core::addr::{Family, LinkName};
use flannel_core::rules::multicast;
use ipnet::IpNet;

use crate::iptables::{LIMIT, WAIT, program_name};
use crate::netlink::Error;
use crate::nft::Nft;
use crate::program::{Program, RunError};

/// The rule system that masquerades.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// `iptables-restore` in `PATH`.
    Iptables,
    /// nf_tables, by netlink.
    Nftables,
}

impl Backend {
    /// The one that a node has: iptables, unless there is nothing but nf_tables.
    pub fn of_node() -> Self {
        let no_iptables = Family::ALL.into_iter().all(|family| program(family, "restore").is_none());
        if no_iptables && matches!(Nft::open(), Ok(Some(_))) { Self::Nftables } else { Self::Iptables }
    }
}

/// The rules of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodMasquerade {
    /// The name of its chain in iptables.
    pub chain: String,
    /// What the comments of its rules in nf_tables begin with, and those of no other pod.
    pub mark: String,
    /// The network's name, for the rules' comment; without `"` and `\`.
    pub network: String,
    /// The container's name, for the rules' comment; without `"` and `\`.
    pub container: String,
    /// The interface's name in the container, for the rules' comment in nf_tables.
    pub ifname: LinkName,
}

impl PodMasquerade {
    /// Masquerades what leaves from these addresses for other places than their own subnets.
    pub fn add(&self, backend: Backend, addresses: &[IpNet]) -> Result<(), MasqueradeError> {
        match backend {
            Backend::Iptables => self.add_by_iptables(addresses),
            Backend::Nftables => {
                let mut nft = Nft::open()?.ok_or(MasqueradeError::NoNft)?;
                Ok(nft.masquerade_pod(&self.mark, &self.note(), addresses)?)
            }
        }
    }

    fn add_by_iptables(&self, addresses: &[IpNet]) -> Result<(), MasqueradeError> {
        for family in Family::ALL {
            let of_family: Vec<_> = addresses.iter().copied().filter(|net| Family::of_net(*net) == family).collect();
            if of_family.is_empty() {
                continue;
            }
            let restore =
                program(family, "restore").ok_or(MasqueradeError::Missing { name: program_name(family, "restore") })?;
            restore.run(&["--noflush", WAIT], &self.addition(family, &of_family), LIMIT)?;
        }
        Ok(())
    }

    /// Removes the pod's rules of either backend: it may have been added under another configuration. Succeeds when there are none,
    /// and where there is no iptables or no nf_tables.
    pub fn remove(&self) -> Result<(), MasqueradeError> {
        remove_chains(|_| vec![self.chain.clone()])?;
        match Nft::open()? {
            Some(mut nft) => Ok(nft.unmasquerade(|note| note.starts_with(&self.mark))?),
            None => Ok(()),
        }
    }

    /// The comment of the rules in nf_tables.
    fn note(&self) -> String {
        let Self { mark, network, ifname, container, .. } = self;
        format!("{mark}, net: {network}, if: {ifname}, id: {container}")
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
}

/// Removes the rules of a network's pods that are gone: of iptables those whose comment names such a container, of nf_tables those with such
/// a comment.
pub fn remove_stale(
    network: &str,
    is_gone: impl Fn(&str) -> bool,
    is_stale: impl Fn(&str) -> bool,
) -> Result<(), MasqueradeError> {
    remove_chains(|saved| {
        let jumps = nat(saved).filter_map(|line| jump(line, network));
        jumps.filter(|(container, _)| is_gone(container)).map(|(_, chain)| chain.to_owned()).collect()
    })?;
    match Nft::open()? {
        Some(mut nft) => Ok(nft.unmasquerade(is_stale)?),
        None => Ok(()),
    }
}

/// Removes the chains that `which` finds in what `iptables-save` shows, and the rules that jump to them.
fn remove_chains(which: impl Fn(&str) -> Vec<String>) -> Result<(), MasqueradeError> {
    for family in Family::ALL {
        let (Some(save), Some(restore)) = (program(family, "save"), program(family, "restore")) else { continue };
        let saved = save.run(&[], "", LIMIT)?;
        for removal in which(&saved).iter().filter_map(|chain| removal(chain, &saved)) {
            restore.run(&["--noflush", WAIT], &removal, LIMIT)?;
        }
    }
    Ok(())
}

/// The container and the chain that a line of `iptables-save` leads to, if it is a pod's of the network.
fn jump<'a>(line: &'a str, network: &str) -> Option<(&'a str, &'a str)> {
    let named = format!(r#"--comment "name: \"{network}\" id: \""#);
    let (_, rest) = line.strip_prefix("-A POSTROUTING ")?.split_once(&named)?;
    let (container, rest) = rest.split_once(r#"\"" "#)?;
    let chain = rest.strip_prefix("-j ").filter(|chain| chain.starts_with("CNI-"))?;
    Some((container, chain))
}

/// The text that undoes what `iptables-save` shows of a chain; none if that is nothing.
fn removal(chain: &str, saved: &str) -> Option<String> {
    let nat: Vec<_> = nat(saved).collect();
    nat.iter().find(|line| line.strip_prefix(':').is_some_and(|rest| rest.split(' ').next() == Some(chain)))?;
    let jump = format!(" -j {chain}");
    let jumps = nat.iter().filter(|line| line.ends_with(&jump)).filter_map(|line| line.strip_prefix("-A "));
    let deletions = jumps.map(|rule| format!("-D {rule}"));
    let lines = std::iter::once("*nat".to_owned()).chain(deletions);
    let lines: Vec<_> = lines.chain([format!("-F {chain}"), format!("-X {chain}"), "COMMIT\n".into()]).collect();
    Some(lines.join("\n"))
}

/// The lines of table `nat` in what `iptables-save` shows.
fn nat(saved: &str) -> impl Iterator<Item = &str> {
    saved.lines().skip_while(|line| *line != "*nat").take_while(|line| *line != "COMMIT")
}

fn program(family: Family, verb: &str) -> Option<Program> {
    Program::find(&program_name(family, verb))
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
    /// The kernel refused.
    #[error("cannot change the pod's masquerade rules: nf_tables: {0}")]
    Nft(#[from] Error),
    /// The kernel has no nf_tables.
    #[error("cannot masquerade for the pod: this kernel has no nf_tables")]
    NoNft,
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
        PodMasquerade {
            chain: "CNI-68f1".into(),
            mark: "cb6e-f4d0".into(),
            network: "cbr0".into(),
            container: "c1".into(),
            ifname: "eth0".parse().unwrap(),
        }
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
        assert_eq!(jump(line, "cbr0"), Some(("c1", "CNI-68f1")));
        assert_eq!(jump(line, "cbr"), None);
        for other in
            ["-A POSTROUTING -s 10.1.0.2/32 -j CNI-68f1", &line.replace("-j CNI", "-j KUBE"), ":CNI-68f1 - [0:0]"]
        {
            assert_eq!(jump(other, "cbr0"), None, "{other}");
        }
    }

    #[test]
    fn only_the_pods_own_rules_are_removed() {
        let saved = "*filter\n:CNI-68f1 - [0:0]\nCOMMIT\n*nat\n:POSTROUTING ACCEPT [0:0]\n:CNI-68f1 - [0:0]\n\
            :CNI-68f1aa - [0:0]\n-A POSTROUTING -s 10.1.0.2/32 -j CNI-68f1\n-A POSTROUTING -s 10.1.0.3/32 -j CNI-68f1aa\n\
            -A CNI-68f1 -d 10.1.0.0/24 -j ACCEPT\nCOMMIT\n";
        assert_eq!(
            removal("CNI-68f1", saved).unwrap(),
            "*nat\n-D POSTROUTING -s 10.1.0.2/32 -j CNI-68f1\n-F CNI-68f1\n-X CNI-68f1\nCOMMIT\n"
        );
        assert_eq!(removal("CNI-68f1", "*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"), None);
        assert_eq!(removal("CNI-68f1", ""), None);
    }
}
