//! The contract between the reconciler and a kernel, real or fake.

use flannel_core::diff::Op;
use flannel_core::state::{Scope, State};

/// A kernel that can be read and changed.
pub trait Executor {
    /// Reads all objects in scope. Notices that came before are swallowed, those about what is not in scope too.
    fn observe(&mut self, scope: &Scope) -> Result<State, ObserveError>;

    /// Applies the changes in order, as many at once as it can. One that fails does not keep the others from being tried,
    /// except those on a device that could not be made. Answers with the failures only.
    fn apply(&mut self, ops: &[Op]) -> Vec<OpError>;

    /// Takes in, without waiting, what the kernel told since the last call, and brings `have` up to date: changes told are
    /// taken over, and parts that may have changed silently (see the crate's notes on IPv4 routes) are read again.
    fn notices(&mut self, scope: &Scope, have: &mut State) -> Result<Noticed, ObserveError>;

    /// The regular tick: reads again what sends no notices (iptables rules), as cheaply as the rule system allows.
    fn resync(&mut self, scope: &Scope, have: &mut State) -> Result<(), ObserveError>;
}

/// What came in with the notices beside changes to our own objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Noticed {
    /// A link, address or route that is not ours changed: [`flannel_core::facts::Facts`] may be out of date.
    pub underlay: bool,
    /// Rules that publish ports of containers may be gone.
    pub ports: bool,
}

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {change}: {cause}")]
pub struct OpError {
    /// Index into the ops given.
    pub index: usize,
    /// The change in `ip` words, without line breaks.
    pub change: String,
    /// The kernel's or the program's answer, extended ack included.
    pub cause: String,
}

/// The kernel's state could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what}: {cause}")]
pub struct ObserveError {
    /// Which objects.
    pub what: &'static str,
    /// Why.
    pub cause: String,
}
