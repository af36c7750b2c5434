//! Iptables by its programs: one `iptables-save` to read a family, one `iptables-restore --noflush` to write it.
//!
//! [`Iptables`] are the programs of one family in the variant that the node uses, [`Programs`] those of both; texts
//! are `flannel-core`'s. When to run them is decided by [`crate::rules`]; rules made by iptables-nft are removed without a
//! program by [`crate::nft`].

use std::fs;
use std::time::Duration;

use flannel_core::addr::{Dual, Family};
use flannel_core::rules::Ruleset;
use flannel_core::rules::iptables::{FORWARD, POSTROUTING, Saved, removal_command};

use crate::netlink;
use crate::program::{Program, RunError};

/// How long a program may take, beside what it waits for the lock.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Wait for the lock that iptables programs share, in seconds, less than [`LIMIT`].
pub(crate) const WAIT: &str = "--wait=10";

/// The kernel side that a program of iptables talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// `iptables-nft`: tables `nat`, `filter`, … of nf_tables.
    Nft,
    /// `iptables-legacy`: the older x_tables.
    Legacy,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// Iptables could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// None of the programs that would do is installed.
    #[error(
        "neither `{}` nor `{}` is in PATH (hint: install the package iptables, or set EnableNFTables in the network config)",
        names[0],
        names[1]
    )]
    Missing {
        /// The names looked for.
        names: [String; 2],
    },
    /// A program did not succeed.
    #[error("{0}")]
    Run(String),
    /// Somebody wrote rules into a table of iptables-nft that iptables cannot show.
    #[error(
        "table {0} holds rules that iptables cannot show (hint: `nft` made them; find and move them by `nft -a list table {0}`)"
    )]
    Unreadable(Box<str>),
}

impl From<RunError> for IptablesError {
    fn from(error: RunError) -> Self {
        Self::Run(error.to_string())
    }
}

/// The programs of both families. Once found they stay: when all rules are gone, nothing tells which variant they were of.
#[derive(Debug, Default)]
pub struct Programs(Dual<Iptables>);

impl Programs {
    /// The programs of a family, looked for as [`Iptables::find`] does if they are not known.
    pub fn of<E: From<netlink::Error> + From<IptablesError>>(
        &mut self,
        family: Family,
        nft_in_use: impl FnOnce() -> Result<Option<bool>, netlink::Error>,
    ) -> Result<&Iptables, E> {
        let found = match self.0.slot(family).take() {
            Some(found) => found,
            None => Iptables::find(family, nft_in_use()?)?,
        };
        Ok(self.0.slot(family).insert(found))
    }

    /// The variant of a family's programs, if they are known.
    pub fn variant(&self, family: Family) -> Option<Variant> {
        self.0.get(family).map(Iptables::variant)
    }

    /// The variants known.
    pub fn variants(&self) -> impl Iterator<Item = Variant> {
        self.0.values().map(Iptables::variant)
    }
}

/// The programs of one family in one variant.
#[derive(Debug, Clone)]
pub struct Iptables {
    variant: Variant,
    save: Program,
    restore: Program,
}

impl Iptables {
    /// Finds the programs of the variant this node uses: the one that holds chains of Kubernetes' or flannel's, else that of
    /// the program `iptables` in `PATH`. The caller knows whether nf_tables holds such chains (`nft_in_use`); none says that
    /// this kernel has no nf_tables.
    pub fn find(family: Family, nft_in_use: Option<bool>) -> Result<Self, IptablesError> {
        let legacy = Self::of_variant(family, Variant::Legacy);
        let Some(nft_in_use) = nft_in_use else { return legacy };
        let legacy_in_use = !legacy_tables(family).is_empty()
            && matches!(&legacy, Ok(legacy) if legacy.saved().is_ok_and(|saved| saved.in_use));
        match (nft_in_use, legacy_in_use) {
            (true, false) => Self::of_variant(family, Variant::Nft),
            (false, true) => legacy,
            _ => Self::of_variant(family, usual_variant(family)?),
        }
    }

    /// The programs of a variant: `iptables-nft-save`, or `iptables-save` where that is the same variant.
    fn of_variant(family: Family, variant: Variant) -> Result<Self, IptablesError> {
        let program = |verb| {
            let exact = format!("{}-{}-{verb}", command(family), variant.name());
            let usual = format!("{}-{verb}", command(family));
            let fallback =
                || Program::find(&usual).filter(|_| usual_variant(family).is_ok_and(|usual| usual == variant));
            Program::find(&exact).or_else(fallback).ok_or(IptablesError::Missing { names: [exact, usual] })
        };
        Ok(Self { variant, save: program("save")?, restore: program("restore")? })
    }

    /// The variant.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Reads flannel's part of the family's rules: one run of `iptables-save`.
    pub fn saved(&self) -> Result<Saved, IptablesError> {
        let saved = Saved::parse(&self.save.run(&[], "", LIMIT)?);
        let ours = saved.unreadable.iter().find(|table| matches!(&***table, "nat" | "filter"));
        ours.map_or(Ok(()), |table| Err(IptablesError::Unreadable(table.clone())))?;
        Ok(saved)
    }

    /// Table `nat` as `iptables-save` prints it, empty if there is none.
    pub(crate) fn saved_nat(&self) -> Result<String, RunError> {
        self.save.run(&["-t", "nat"], "", LIMIT)
    }

    /// Runs `iptables-restore` with a text that leaves alone what it does not name.
    pub(crate) fn run(&self, text: &str) -> Result<(), RunError> {
        self.restore.run(&["--noflush", WAIT], text, LIMIT).map(drop)
    }

    /// Makes the family's rules what is wanted, in one run of `iptables-restore`, none if `saved` agrees already. The empty
    /// ruleset removes all that is flannel's.
    pub fn restore(&self, saved: &Saved, want: &Ruleset) -> Result<(), IptablesError> {
        let text = saved.restore(want);
        if !text.is_empty() {
            self.run(&text)?;
        }
        Ok(())
    }
}

/// The name of the program that restores or saves a family's rules in the variant that is in use: `iptables-restore`, ….
pub(crate) fn program_name(family: Family, verb: &str) -> String {
    format!("{}-{verb}", command(family))
}

fn command(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// Whether a program that saves the rules of iptables is in `PATH`, of whichever family and variant.
pub(crate) fn is_installed() -> bool {
    let variants = ["", "-nft", "-legacy"];
    Family::ALL.into_iter().any(|family| {
        variants.iter().any(|variant| Program::find(&format!("{}{variant}-save", command(family))).is_some())
    })
}

/// The variant of the program `iptables` (`ip6tables`) in `PATH`. Before 1.8 there was only one, and it did not say so.
fn usual_variant(family: Family) -> Result<Variant, IptablesError> {
    let name = command(family);
    let missing = || IptablesError::Missing { names: [name.to_owned(), format!("{name}-nft")] };
    let program = Program::find(name).or_else(|| Program::find(&format!("{name}-nft"))).ok_or_else(missing)?;
    let version = program.run(&["--version"], "", LIMIT)?;
    Ok(if version.contains("nf_tables") { Variant::Nft } else { Variant::Legacy })
}

/// The tables of iptables-legacy that exist in this network namespace, by what the kernel says of itself; no program is
/// run. Empty where the kernel lacks them altogether.
pub(crate) fn legacy_tables(family: Family) -> Vec<String> {
    let names = fs::read_to_string(match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    });
    names.unwrap_or_default().lines().map(str::to_owned).collect()
}

/// All rules of a family in iptables-legacy, as `iptables-legacy-save` prints them; none where it has no tables. For people who
/// follow a packet: [`flannel_core::rules::evaluate`] works out which of them it meets.
pub fn legacy_rules(family: Family) -> Result<Option<String>, IptablesError> {
    if legacy_tables(family).is_empty() {
        return Ok(None);
    }
    let programs = Iptables::of_variant(family, Variant::Legacy)?;
    Ok(Some(programs.save.run(&[], "", LIMIT)?))
}

/// The command line that removes what flannel may have left in iptables-legacy; none where its tables do not exist. For a
/// node in nftables mode, which runs no program, so that a person can be told.
pub fn legacy_removal(family: Family) -> Option<String> {
    let tables = legacy_tables(family);
    let program = format!("{}-legacy", command(family));
    let commands = [&POSTROUTING, &FORWARD]
        .into_iter()
        .filter(|place| tables.iter().any(|table| table == place.table))
        .map(|place| removal_command(&program, place))
        .collect::<Vec<_>>();
    (!commands.is_empty()).then(|| commands.join("; "))
}
