//! Where leases come from and go to. One module a store; nothing outside this crate knows what a store is made of.
//!
//! A store tells ([`StoreEvent`]) and holds ([`Store::hold`]). The laws of every store:
//!
//! - A snapshot is the whole truth: what it does not hold is gone. The first lease event is a snapshot.
//! - The order of events does not matter for what they add up to; the order of leases is in [`flannel_core::lease::Since`].
//! - A lost connection never removes a peer: the store is silent until it can tell again.
//! - Our own record is told like every other; it is the loop that sees it change and calls [`Store::hold`] again.
//! - An unreadable record is told by its key, and harms no other.

mod acquire;
mod connection;
mod current;
mod endpoint;
pub mod etcd;
mod hints;
mod host;
pub mod kube;
pub mod local;
mod standing;
mod tls;

#[cfg(test)]
mod laws;

use std::future::Future;
use std::pin::Pin;

use flannel_core::annotations::Overrides;
use flannel_core::config::{ConfigRules, NetworkConfig};
use flannel_core::lease::{Claim, Lease, LeaseEvent, LeaseKey};
use tokio::sync::mpsc::Receiver;

pub use crate::host::Host;
pub use crate::standing::{Problem, Standing};

/// What a store tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEvent {
    /// The text of the network config, at first and whenever it changes; or why there is none to be read (a line, with the
    /// name of the file or key), whenever that changes.
    Config(Result<String, String>),
    /// Leases: a snapshot first.
    Leases(LeaseEvent),
    /// Addresses that an operator set on our own record, where a store has such: before the config, and whenever they change.
    Overrides(Overrides),
    /// What the store waits for before it can tell or hold a lease, as a line; none when it can.
    Waits(Option<String>),
}

/// Our own lease as it was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its key.
    pub key: LeaseKey,
    /// Its content.
    pub lease: Lease,
}

/// A call into a store that is under way.
pub type Call<T> = Pin<Box<dyn Future<Output = T>>>;

/// A place that keeps leases.
pub trait Store {
    /// What the network config must say: who hands out subnets.
    fn rules(&self) -> ConfigRules {
        ConfigRules::Etcd
    }

    /// Starts watching, on the current tokio runtime; the receiver ends only with the store. Called once.
    fn watch(&self) -> Receiver<StoreEvent>;

    /// Makes our own lease say what the claim says, and answers with it: takes over the record that is ours, or acquires a
    /// subnet. It begins at once, not when it is waited for. May be called again at any time: with another claim, or because the record was changed or removed.
    fn hold(&self, config: &NetworkConfig, claim: &Claim) -> Call<Result<Held, HoldError>>;

    /// Tells those who read the store how this node stands, where a store has a place for it. Called whenever that changes;
    /// never waits, and what becomes of it concerns nobody.
    fn report(&self, standing: &Standing) {
        _ = standing;
    }
}

/// Why our own lease is not held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// It may go better later: the store is away, or answers with an error. Names the store and the cause.
    #[error("{0}")]
    Later(String),
    /// It cannot be had: names who has it, or what is wrong.
    #[error("{cause}")]
    Never {
        /// What failed, on which object, why.
        cause: String,
        /// What to do.
        hint: String,
    },
}
