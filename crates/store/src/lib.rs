//! Where leases come from and go to: one trait, [`Store`], and a module for each kind of store.
//!
//! A store hands out subnets, keeps our own lease, and tells of all leases. What a lease *means* for the kernel is
//! decided elsewhere; a store believes nothing and refuses nothing but what it cannot read.
//!
//! # What holds for every store
//!
//! 1. The first event is a snapshot, and each snapshot is the whole truth: what it does not hold is gone.
//! 2. Events say what is, not what happened: to know the last one of each key is to know the store. Their order among
//!    keys does not matter, and one may come twice.
//! 3. A lost connection is no news. It removes no peer and ends no stream; when it is back, the difference is told.
//! 4. Our own record is watched and told like any other.
//! 5. A record that cannot be read is told as such, under its key, and hides no other.
//! 6. What we hold stays as claimed: rewritten when somebody changed it, taken back when it is gone and still free.
//!    When it is neither, [`Held::changed`] ends with an error that says who has it.
//! 7. Of two that claim the same, the one that came later yields, and both say so.
//!
//! `laws` in the tests of this crate checks them on any store.

mod acquire;
pub mod local;

#[cfg(test)]
mod laws;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;

use flannel_core::config::{ConfigError, NetworkConfig};
use flannel_core::lease::{Claim, Lease, LeaseEvent, LeaseKey};
use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

/// A future of a [`Store`].
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A place that holds the network config and all leases.
///
/// A store works in tasks of the tokio runtime in which its methods are called.
pub trait Store: Send + Sync {
    /// The network config, and its changes: only usable ones, an unusable change is logged and the last value stays.
    fn config(&self) -> Pending<'_, Result<watch::Receiver<NetworkConfig>, ReadError>>;

    /// All leases from now on, a snapshot first.
    fn events(&self) -> LeaseEvents;

    /// Acquires a lease and keeps it until the returned [`Held`] is dropped; the record outlives both.
    ///
    /// Called again with another claim, the lease follows the claim, and the earlier [`Held`] has nothing to say any more.
    fn hold(&self, claim: Claim) -> Pending<'_, Result<Held, HoldError>>;
}

/// The stream of a store's events. Take them out steadily: they wait in memory.
#[derive(Debug)]
pub struct LeaseEvents(mpsc::UnboundedReceiver<LeaseEvent>);

impl LeaseEvents {
    /// The next event. It never ends while the store lives; dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<LeaseEvent> {
        self.0.recv().await
    }
}

/// Our own lease, kept as long as this lives.
#[derive(Debug)]
pub struct Held {
    /// The name of its record.
    pub key: LeaseKey,
    /// The lease as it is in the store.
    pub lease: Lease,
    changes: mpsc::Receiver<Result<Lease, HoldError>>,
    keeper: AbortHandle,
}

impl Held {
    /// Waits until our lease is another one, or lost for good. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Result<Lease, HoldError> {
        match self.changes.recv().await {
            Some(change) => change,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// A part of a store that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct Unavailable {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Unavailable {
    /// What a person can do about it.
    pub fn hint(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                "the store is a directory with a config.json; create both, or correct --local-store"
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "flanneld must be allowed to read and write in the store's directory"
            }
            _ => "see whether the store's file system is mounted and has space left",
        }
    }
}

/// Why there is no network config.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store does not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// The config is there but cannot be used.
    #[error("cannot use {place}")]
    Config {
        /// Where it was read.
        place: String,
        /// What is wrong with it.
        source: ConfigError,
    },
}

impl ReadError {
    /// What a person can do about it.
    pub fn hint(&self) -> &str {
        match self {
            Self::Unavailable(unavailable) => unavailable.hint(),
            Self::Config { source, .. } => source.hint(),
        }
    }
}

/// Why we hold no lease.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The store does not answer or cannot be written.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// There is no network config to acquire a lease for.
    #[error(transparent)]
    Config(#[from] ReadError),
    /// Every subnet is taken.
    #[error("no subnet of {network} is free for this node")]
    Full {
        /// The network.
        network: IpNet,
    },
    /// Another host has the public IP that we claim, and had it first.
    #[error("public IP {public_ip} of this host is held by {by}, as record {key}")]
    PublicIpTaken {
        /// The address.
        public_ip: IpAddr,
        /// The other host.
        by: String,
        /// Its record.
        key: LeaseKey,
    },
    /// Our record is gone and its subnet is somebody else's now.
    #[error("our lease {key} is lost: its subnet is held by {by}")]
    Lost {
        /// Our record.
        key: LeaseKey,
        /// Who has it.
        by: String,
    },
    /// Others were faster each time we tried.
    #[error("others took each of {0} subnets that this node tried to acquire")]
    Outrun(usize),
}

impl HoldError {
    /// What a person can do about it.
    pub fn hint(&self) -> &str {
        match self {
            Self::Unavailable(unavailable) => unavailable.hint(),
            Self::Config(config) => config.hint(),
            Self::Full { .. } => {
                "remove the records of nodes that are gone, or give the network config a larger Network or SubnetMax"
            }
            Self::PublicIpTaken { .. } => {
                "give one of the two hosts another --public-ip; if the other host is gone for good, remove its record"
            }
            Self::Lost { .. } => "start again to acquire another subnet; pods of this node have to be made anew",
            Self::Outrun(_) => "start again",
        }
    }
}
