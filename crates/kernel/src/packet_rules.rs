//! The seam between the kernel executor and the two rule systems: read, set and remove flannel's packet rules.
//!
//! How rules are encoded, which programs run and what is cached between reads is the implementer's business.

use std::os::fd::BorrowedFd;

use flannel_core::addr::Family;
use flannel_core::rules::{RuleMode, Ruleset};

/// Flannel's packet rules in the kernel, for one network namespace.
pub trait PacketRules: std::fmt::Debug + Send {
    /// Reads flannel's rules of one family; none if nothing of flannel's is there. Cheap when nothing changed since the
    /// last read.
    fn observe(&mut self, mode: RuleMode, family: Family) -> Result<Option<Ruleset>, RulesError>;

    /// Makes flannel's rules of one family these, in one transaction; other people's rules stay.
    fn set(&mut self, mode: RuleMode, family: Family, rules: &Ruleset) -> Result<(), RulesError>;

    /// Removes all of flannel's rules of one family. Succeeds when there are none.
    fn remove(&mut self, mode: RuleMode, family: Family) -> Result<(), RulesError>;

    /// Takes in, without waiting, what nf_tables told since the last call, and says whether anything changed (the generation
    /// moved) that this value did not do itself.
    fn changed(&mut self) -> Result<bool, RulesError>;

    /// Readable when nf_tables has told something.
    fn notice_fd(&self) -> BorrowedFd<'_>;
}

/// Packet rules could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RulesError(
    /// The cause, of the kernel or of the program that was run.
    pub String,
);
