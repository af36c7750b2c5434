//! Published ports in the kernel: put there, checked, removed, in whichever rule system they belong to.
//!
//! Surface: functions over a [`PortMap`]. In nf_tables one transaction adds, and no program is run unless there are conditions in `nft`'s own
//! words. In iptables one `iptables-restore` for each family adds or removes; where what it expects is not so, it changes nothing, and
//! [`Effort::Whole`] looks first. The programs are those in `PATH`, as the Go plugin's are. [`kept`] keeps those of many containers.

pub mod kept;

use std::net::IpAddr;

use flannel_core::addr::{Dual, Family, LinkName};
use flannel_core::port_map::{PortMap, iptables, nft};
use flannel_core::rules::{Protocol, RuleMode};

use crate::conntrack::{self, End};
use crate::iptables::{LIMIT, WAIT, program_name};
use crate::netlink::{self, Error, Socket, link, route};
use crate::nft::Nft;
use crate::pod_link::Retired;
use crate::program::{Program, RunError};

/// How much is taken for granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// That all is as it was left.
    Quick,
    /// Nothing: what is there is looked at first.
    Whole,
}

/// Publishes a container's ports, and answers with the handles of its rules as far as the rule system has such. After a failure some of its
/// rules may be there.
pub fn publish(map: &PortMap, effort: Effort) -> Result<Dual<Vec<u64>>, PublishError> {
    if map.mode == RuleMode::Nftables {
        return publish_by_nft(map, effort);
    }
    for family in map.addresses.families() {
        let text = match effort {
            Effort::Quick => iptables::addition(map, family),
            Effort::Whole => iptables::repair(&[map], family, &saved(family)?),
        };
        restore(family, &text)?;
    }
    Ok(Dual::default())
}

fn publish_by_nft(map: &PortMap, effort: Effort) -> Result<Dual<Vec<u64>>, PublishError> {
    let mut kernel = open_nft()?;
    if map.conditions.is_empty() {
        return Ok(kernel.publish(map, effort == Effort::Whole)?);
    }
    kernel.unpublish(&map.container)?;
    let text: String = map.addresses.families().map(|family| nft::text(family, &nft::steps(map, family))).collect();
    let name = "nft";
    let program = Program::find(name).ok_or_else(|| PublishError::NoProgram { name: name.into() })?;
    program.run(&["-f", "-"], &text, LIMIT)?;
    Ok(Dual::default())
}

/// Removes a container's rules. Succeeds when there are none.
pub fn unpublish(map: &PortMap) -> Result<Retired, PublishError> {
    let families = || map.addresses.families();
    let quick = || families().try_for_each(|family| restore(family, &iptables::removal(map, family)));
    if map.mode == RuleMode::Iptables && quick().is_ok() {
        return Ok(Retired::default());
    }
    if map.mode == RuleMode::Nftables
        && let Some(mut kernel) = Nft::open()?
        && kernel.unpublish_noted(map)?
    {
        return Ok(kernel.into());
    }
    unpublish_by_name(&map.container, &map.chain, map.mode)
}

/// Removes the rules of a container of which no more is known than its name and that of its chain. Rules of nf_tables go in any case.
pub fn unpublish_by_name(container: &str, chain: &str, mode: RuleMode) -> Result<Retired, PublishError> {
    let mut retired = Retired::default();
    if let Some(mut kernel) = Nft::open()? {
        kernel.unpublish(container)?;
        retired.extend(kernel.into());
    }
    if mode == RuleMode::Nftables {
        return Ok(retired);
    }
    for family in Family::ALL {
        // Where there is no such program nobody can have made rules with it.
        match saved(family) {
            Err(PublishError::NoProgram { .. }) => {}
            saved => {
                let removal = iptables::removal_of(chain, &saved?);
                removal.map_or(Ok(()), |text| restore(family, &text))?;
            }
        }
    }
    Ok(retired)
}

/// Whether a container's rules are all there, as far as whoever has made them makes such rules.
pub fn check(map: &PortMap, extent: nft::Extent) -> Result<(), PublishError> {
    if map.mode == RuleMode::Nftables {
        let missing = open_nft()?.unpublished(map, extent)?;
        return missing.map_or(Ok(()), |rule| Err(PublishError::Absent { rule }));
    }
    for family in map.addresses.families() {
        let text = iptables::check(map, family);
        restore(family, &text).map_err(|error| match failed_line(&error, &text) {
            Some(rule) => {
                PublishError::Absent { rule: format!("{rule} in table nat of {}", program_name(family, "save")) }
            }
            None => error,
        })?;
    }
    Ok(())
}

/// The line that a program of iptables complains about.
fn failed_line<'a>(error: &PublishError, text: &'a str) -> Option<&'a str> {
    let PublishError::Run(message) = error else { return None };
    let number = message.split_once("line ")?.1.split(|c: char| !c.is_ascii_digit()).next()?;
    let line = text.lines().nth(number.parse::<usize>().ok()?.checked_sub(1)?)?;
    line.strip_prefix("-C ")
}

/// Whether any rule of a container is there.
pub fn is_published(map: &PortMap) -> Result<bool, PublishError> {
    if map.mode == RuleMode::Nftables {
        return Ok(open_nft()?.publishes(&map.container)?);
    }
    let mut families = map.addresses.families();
    families.try_fold(false, |any, family| Ok(any || iptables::removal_of(&map.chain, &saved(family)?).is_some()))
}

/// The containers of a network that have rules in iptables, each with its chain. Where there are no programs there are none.
pub fn containers(network: &str) -> Result<Vec<(String, String)>, PublishError> {
    let mut found = Vec::new();
    for family in Family::ALL {
        let saved = match saved(family) {
            Err(PublishError::NoProgram { .. }) => continue,
            saved => saved?,
        };
        let named = |(container, chain): (&str, &str)| (container.to_owned(), chain.to_owned());
        found.extend(iptables::containers(network, &saved).into_iter().map(named));
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Makes the kernel forget the connections to containers' UDP ports, so that the next packet meets the rules. A failure says only that
/// clients of before have to wait for the kernel to forget by itself.
pub fn forget_connections(maps: &[&PortMap]) -> Result<(), Error> {
    let udp = |map: &PortMap| {
        map.mappings.iter().filter(|mapping| mapping.protocol == Protocol::Udp).copied().collect::<Vec<_>>()
    };
    let mut ends = Vec::new();
    for (map, mapping) in maps.iter().flat_map(|map| udp(map).into_iter().map(move |mapping| (map, mapping))) {
        let families = map.addresses.families().filter(|family| mapping.concerns(*family));
        ends.extend(families.map(|family| End { family, port: mapping.host_port, address: mapping.bound_to() }));
    }
    conntrack::forget(Protocol::Udp, &ends)
}

/// The link that packets to an address leave by; none if there is no route.
pub fn link_towards(address: IpAddr) -> Result<Option<LinkName>, Error> {
    let mut socket = Socket::open(netlink::Protocol::Route)?;
    let Ok(routes) = socket.ask(&route::lookup(address), route::Report::read) else { return Ok(None) };
    let Some(hop) = routes.iter().find_map(|route| route.hops.first()) else { return Ok(None) };
    let found = socket.ask(&link::by_index(hop.index), link::Report::read)?;
    Ok(found.first().map(|link| link.name))
}

/// The rule system to use when nobody says which: iptables, unless it is not installed and nf_tables is there.
pub fn usual_mode() -> Result<RuleMode, PublishError> {
    let installed = Program::find(&program_name(Family::V4, "restore")).is_some();
    let only_nft = !installed && Nft::open()?.is_some();
    Ok(if only_nft { RuleMode::Nftables } else { RuleMode::Iptables })
}

/// Whether a rule system works here. Changes nothing.
pub fn probe(mode: RuleMode) -> Result<(), PublishError> {
    match mode {
        RuleMode::Nftables => open_nft().map(drop),
        RuleMode::Iptables => restore(Family::V4, "*nat\nCOMMIT\n"),
    }
}

fn open_nft() -> Result<Nft, PublishError> {
    Nft::open()?.ok_or(PublishError::NoNft)
}

fn saved(family: Family) -> Result<String, PublishError> {
    Ok(program(family, "save")?.run(&["-t", "nat"], "", LIMIT)?)
}

fn restore(family: Family, text: &str) -> Result<(), PublishError> {
    program(family, "restore")?.run(&["--noflush", WAIT], text, LIMIT)?;
    Ok(())
}

fn program(family: Family, verb: &str) -> Result<Program, PublishError> {
    let name = program_name(family, verb);
    Program::find(&name).ok_or(PublishError::NoProgram { name })
}

/// Ports cannot be published, or are not.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// There is no such program.
    #[error("no program {name} in PATH")]
    NoProgram {
        /// Its name.
        name: String,
    },
    /// A program failed.
    #[error("{0}")]
    Run(String),
    /// The kernel refused.
    #[error("nf_tables: {0}")]
    Nft(#[from] Error),
    /// The kernel lacks nf_tables.
    #[error("this kernel has no nf_tables")]
    NoNft,
    /// A rule is not there.
    #[error("missing rule: {rule}")]
    Absent {
        /// The rule, and where it should be.
        rule: String,
    },
}

impl From<RunError> for PublishError {
    fn from(error: RunError) -> Self {
        Self::Run(error.to_string())
    }
}
