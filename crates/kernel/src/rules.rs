//! Flannel's packet rules in the kernel, whatever the rule system: read, set, remove, and told when they may have changed.
//!
//! [`RulesExecutor`] is what the kernel executor calls for `Key::Rules`. It chooses between [`crate::nft`] and
//! [`crate::iptables`] and decides when a program is worth running: in nftables mode never; in iptables mode only where
//! the kernel says that there may be something to read, and not again while the nf_tables generation stands still
//! (iptables-nft) or the tables are what they were (iptables-legacy, which tells nobody of changes: see
//! [`crate::x_tables`]).

use std::os::fd::{AsFd, BorrowedFd};

use flannel_core::addr::{Dual, Family};
use flannel_core::rules::iptables::Saved;
use flannel_core::rules::{RuleMode, Ruleset};

use crate::iptables::{Iptables, IptablesError, Programs, Variant, legacy_tables};
use crate::netlink::{Error, NoticeSocket, Protocol};
use crate::nft::{Nft, notice};
use crate::x_tables;

/// Packet rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The kernel refused.
    #[error("nf_tables: {0}")]
    Nft(#[from] Error),
    /// A program of iptables failed or is missing.
    #[error(transparent)]
    Iptables(#[from] IptablesError),
    /// The kernel lacks what nftables mode needs.
    #[error("this kernel has no nf_tables (hint: modprobe nf_tables, or unset EnableNFTables in the network config)")]
    NoNft,
}

/// Flannel's packet rules in one network namespace.
#[derive(Debug)]
pub struct RulesExecutor {
    mode: RuleMode,
    nft: Option<Nft>,
    notices: Option<NoticeSocket>,
    programs: Programs,
    seen: Dual<Seen>,
    ticks: u64,
    /// Rules that publish ports may be gone since that was last asked.
    took_ports: bool,
}

/// What was read of iptables, and when.
#[derive(Debug)]
struct Seen {
    saved: Saved,
    at: Moment,
}

/// While two reads would be at equal moments, the second is not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// The nf_tables generation.
    Generation(u32),
    /// The digest of what iptables-legacy holds.
    Contents(u64),
    /// The number of ticks so far, where the kernel does not say more.
    Tick(u64),
}

impl RulesExecutor {
    /// Rules in the network namespace of this thread, on a node that uses `mode`. Programs must be run by threads of the same
    /// namespace, so all further calls belong on threads there.
    pub fn open(mode: RuleMode) -> Result<Self, RulesError> {
        let nft = Nft::open()?;
        let listen = || NoticeSocket::open(Protocol::Netfilter, &[notice::GROUP]);
        let notices = nft.as_ref().map(|_| listen()).transpose()?;
        let (programs, seen) = (Programs::default(), Dual::default());
        Ok(Self { mode, nft, notices, programs, seen, ticks: 0, took_ports: false })
    }

    /// From now on the node uses this rule system.
    pub fn use_mode(&mut self, mode: RuleMode) {
        self.mode = mode;
    }

    /// Reads flannel's rules of one family in one rule system; none if nothing of flannel's is there.
    ///
    /// What is read of the iptables system in nftables mode are leftovers in the tables of iptables-nft, good only for
    /// being removed. Where the programs of iptables are missing nothing is seen, and only setting fails. Leftovers of
    /// iptables-legacy cannot be seen without a program: see [`crate::iptables::legacy_removal`].
    pub fn observe(&mut self, system: RuleMode, family: Family) -> Result<Option<Ruleset>, RulesError> {
        match (system, self.mode, &mut self.nft) {
            (RuleMode::Nftables, _, Some(nft)) => Ok(nft.table(family)?),
            (RuleMode::Iptables, RuleMode::Nftables, Some(nft)) => Ok(nft.iptables_chains(family)?),
            (RuleMode::Iptables, RuleMode::Iptables, _) => match self.saved(family) {
                Err(RulesError::Iptables(IptablesError::Missing { .. })) => Ok(None),
                saved => Ok(saved?.ruleset()),
            },
            (_, _, None) => Ok(None),
        }
    }

    /// Makes flannel's rules of one family these; rules that agree already are not touched, nor is anything of others.
    pub fn set(&mut self, system: RuleMode, family: Family, wanted: &Ruleset) -> Result<(), RulesError> {
        match system {
            RuleMode::Nftables => {
                let nft = self.nft.as_mut().ok_or(RulesError::NoNft)?;
                if nft.table(family)?.as_ref() == Some(wanted) {
                    return Ok(());
                }
                nft.replace(family, wanted).map_err(|error| match error {
                    error if error.is_unsupported() => RulesError::NoNft,
                    error => error.into(),
                })
            }
            RuleMode::Iptables => self.restore(family, wanted),
        }
    }

    /// Removes all that is flannel's of one family in one rule system. Succeeds when there is nothing.
    pub fn remove(&mut self, system: RuleMode, family: Family) -> Result<(), RulesError> {
        match (system, &mut self.nft) {
            (RuleMode::Nftables, Some(nft)) => nft.delete(family)?,
            (RuleMode::Iptables, Some(nft)) => nft.remove_iptables_chains(family)?,
            (_, None) => {}
        }
        if (system, self.mode) == (RuleMode::Iptables, RuleMode::Iptables) && self.observe(system, family)?.is_some() {
            self.restore(family, &Ruleset::default())?;
        }
        Ok(())
    }

    /// Takes in, without waiting, what nf_tables told since the last call. True if flannel's rules may have changed, by
    /// whomever, and are to be read again. Changes of iptables-legacy are never told.
    pub fn changed(&mut self) -> Result<bool, RulesError> {
        let Some(notices) = &mut self.notices else { return Ok(false) };
        let (mut touched, mut took_ports) = (false, false);
        let mode = self.mode;
        let ours = |system| system == RuleMode::Nftables || mode == RuleMode::Iptables;
        let drained = notices.drain(|message| {
            touched |= notice::concerns(message).is_some_and(ours);
            took_ports |= notice::takes_ports(message);
        });
        self.took_ports |= took_ports || drained.is_err();
        match drained {
            Err(error) if !error.is_overrun() => Err(error.into()),
            drained => Ok(touched || drained.is_err()),
        }
    }

    /// Whether [`RulesExecutor::changed`] has heard that rules which publish ports may be gone, since this was last asked.
    pub fn took_ports(&mut self) -> bool {
        std::mem::take(&mut self.took_ports)
    }

    /// The regular tick: where the kernel gives no other sign, lets the next [`RulesExecutor::observe`] run
    /// `iptables-save`.
    pub fn resync(&mut self) {
        self.ticks += 1;
    }

    /// Readable when [`RulesExecutor::notices`] has something to take in; none on a kernel without nf_tables.
    pub fn notice_fd(&self) -> Option<BorrowedFd<'_>> {
        self.notices.as_ref().map(AsFd::as_fd)
    }

    fn restore(&mut self, family: Family, wanted: &Ruleset) -> Result<(), RulesError> {
        let programs = self.programs(family)?.clone();
        let result = programs.restore(self.saved(family)?, wanted);
        *self.seen.slot(family) = None;
        Ok(result?)
    }

    /// The programs of a family, in the variant that this node uses.
    fn programs(&mut self, family: Family) -> Result<&Iptables, RulesError> {
        let nft = &mut self.nft;
        self.programs.of(family, || nft.as_mut().map(|nft| nft.iptables_in_use(family)).transpose())
    }

    /// What iptables says, read now or known to be the same as when it was read.
    fn saved(&mut self, family: Family) -> Result<&Saved, RulesError> {
        let at = self.moment(family)?;
        let seen = match self.seen.slot(family).take().filter(|seen| seen.at == at) {
            Some(seen) => seen,
            None => Seen { saved: self.read(family)?, at },
        };
        Ok(&self.seen.slot(family).insert(seen).saved)
    }

    /// The present moment, taken before reading, so that a change meanwhile makes the read an old one.
    fn moment(&mut self, family: Family) -> Result<Moment, RulesError> {
        let legacy = self.programs.variant(family) == Some(Variant::Legacy);
        match &mut self.nft {
            Some(nft) if !legacy => Ok(Moment::Generation(nft.generation()?)),
            _ => Ok(x_tables::digest(family).map_or(Moment::Tick(self.ticks), Moment::Contents)),
        }
    }

    /// Runs `iptables-save` if the kernel says that there may be something to read.
    fn read(&mut self, family: Family) -> Result<Saved, RulesError> {
        let in_nft = self.nft.as_mut().map(|nft| nft.iptables_chains(family)).transpose()?.flatten().is_some();
        let in_legacy = !legacy_tables(family).is_empty();
        let worthwhile = match self.programs.variant(family) {
            Some(Variant::Nft) => in_nft,
            Some(Variant::Legacy) => in_legacy,
            None => in_nft || in_legacy,
        };
        if worthwhile { Ok(self.programs(family)?.saved()?) } else { Ok(Saved::default()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_nf_tables_nothing_is_there_and_setting_says_so() {
        let mut rules = RulesExecutor {
            mode: RuleMode::Nftables,
            nft: None,
            notices: None,
            programs: Programs::default(),
            seen: Dual::default(),
            ticks: 0,
            took_ports: false,
        };
        assert_eq!(rules.observe(RuleMode::Nftables, Family::V4).unwrap(), None);
        rules.remove(RuleMode::Nftables, Family::V4).unwrap();
        let error = rules.set(RuleMode::Nftables, Family::V4, &Ruleset::default()).unwrap_err().to_string();
        let hint = "hint: modprobe nf_tables, or unset EnableNFTables in the network config";
        assert_eq!(error, format!("this kernel has no nf_tables ({hint})"));
    }
}
