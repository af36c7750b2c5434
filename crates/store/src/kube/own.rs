//! Our own Node as it was last seen, and what is known of all others: what the watch learns, and holding stands on.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flannel_core::addr::{Dual, overlap};
use flannel_core::annotations::{Annotations, Prefix};
use flannel_core::lease::{LeaseKey, Since};
use ipnet::IpNet;
use tokio::sync::watch;

use super::wire::{Malformed, Meta, PodCidrs, Uid};

/// What is known of our own Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Own {
    /// Nothing yet.
    #[default]
    Unknown,
    /// There is none of our name.
    Absent,
    /// It is there.
    Here(OwnNode),
}

/// Our own Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnNode {
    pub(super) name: LeaseKey,
    pub(super) uid: Uid,
    /// Its `resourceVersion`, which grows with each change.
    pub(super) version: u64,
    pub(super) since: Since,
    /// Those of flannel's.
    pub(super) annotations: Annotations,
    pub(super) pod_cidrs: PodCidrs,
}

impl OwnNode {
    /// What metadata says, with the subnets as far as they are known.
    pub(super) fn of(meta: &Meta<'_>, prefix: &Prefix, pod_cidrs: PodCidrs) -> Result<Self, Malformed> {
        Ok(Self {
            name: LeaseKey::new(meta.name),
            uid: meta.uid,
            version: meta.version.parse().unwrap_or_default(),
            since: meta.since,
            annotations: meta.ours(prefix)?,
            pod_cidrs,
        })
    }
}

/// What is known of a Node.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) uid: Uid,
    pub(super) since: Since,
    /// Tells whether annotations of flannel's changed.
    pub(super) digest: u64,
    pub(super) pod_cidrs: PodCidrs,
    /// Whether it was told as a lease, or is waited for to be.
    pub(super) is_lease: bool,
}

/// All Nodes by name.
pub(super) type Nodes = HashMap<LeaseKey, Known>;

/// What the watch and holding both know.
#[derive(Debug, Default)]
pub(super) struct Sight {
    own: watch::Sender<Own>,
    nodes: Mutex<Nodes>,
}

impl Sight {
    /// Our own Node, and its changes.
    pub(super) fn own(&self) -> watch::Receiver<Own> {
        self.own.subscribe()
    }

    /// Takes in what was seen of our own Node, unless it is older than what is known; true if it was news.
    pub(super) fn see(&self, own: Own) -> bool {
        self.own.send_if_modified(|known| {
            let is_news = match (&*known, &own) {
                (Own::Here(before), Own::Here(now)) if before.uid == now.uid => {
                    before.version <= now.version && before != now
                }
                (before, now) => before != now,
            };
            if !is_news {
                return false;
            }
            let kept = match (&*known, &own) {
                (Own::Here(before), Own::Here(now)) if before.uid == now.uid && now.pod_cidrs.is_none() => {
                    before.pod_cidrs.clone()
                }
                _ => None,
            };
            *known = own;
            if let (Own::Here(now), Some(pod_cidrs)) = (known, kept) {
                now.pod_cidrs = Some(pod_cidrs);
            }
            true
        })
    }

    /// Takes in that somebody wrote our own Node, but nothing of flannel's.
    pub(super) fn see_version(&self, version: &str) {
        let version = version.parse().unwrap_or_default();
        self.own.send_if_modified(|known| match known {
            Own::Here(own) if own.version < version => {
                own.version = version;
                true
            }
            _ => false,
        });
    }

    /// All Nodes known.
    pub(super) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease older than our own Node that has its subnet, or a part of it.
    pub(super) fn elder(&self, own: &OwnNode, subnets: &Dual<IpNet>) -> Option<(LeaseKey, IpNet)> {
        let nodes = self.nodes();
        let shared = |known: &Known| {
            let Some(Ok(theirs)) = &known.pod_cidrs else { return None };
            let both = theirs.iter().find_map(|(family, their)| Some((*their, *subnets.get(family)?)));
            both.filter(|(their, ours)| overlap(*their, *ours)).map(|(their, _)| their)
        };
        let elders = nodes.iter().filter(|(name, known)| {
            known.is_lease && **name != own.name && (known.since, *name) < (own.since, &own.name)
        });
        elders.filter_map(|(name, known)| Some((name.clone(), shared(known)?))).min()
    }
}
