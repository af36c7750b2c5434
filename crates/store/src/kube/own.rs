//! Our own Node as it was last seen, and what is known of all others: what the watch learns, and holding stands on.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use flannel_core::addr::{Dual, overlap};
use flannel_core::annotations::{Annotations, Prefix};
use flannel_core::lease::{LeaseKey, Since};
use ipnet::IpNet;
use tokio::sync::watch;

use super::Kube;
use super::ask::{Ask, NODES, PODS, Verb};
use super::client::Form;
use super::options::NodeName;
use super::trouble::{Kind, Trouble};
use super::wire::{Malformed, Meta, Object, PodCidrs, Uid, node_of_pod, pod_cidrs};

/// The request for one Node.
pub(super) fn read_node(name: &LeaseKey) -> Ask {
    Ask::of(Verb::Get, NODES).named(name.as_str())
}

impl Kube {
    /// The name of our own Node: given, or that of the Node that our Pod runs on.
    async fn own_name(&self) -> Result<LeaseKey, Trouble> {
        if let Some(name) = self.name.get() {
            return Ok(name.clone());
        }
        let found = match &self.options.node {
            NodeName::Given(name) => LeaseKey::new(name.as_str()),
            NodeName::OfPod { namespace, name } => self.node_of(namespace, name).await?,
        };
        Ok(self.name.get_or_init(|| found).clone())
    }

    async fn node_of(&self, namespace: &str, name: &str) -> Result<LeaseKey, Trouble> {
        let ask = Ask::of(Verb::Get, PODS).within(namespace).named(name);
        let answer = self.client.fetch(&ask, Form::Whole).await?;
        let node = Object::read(&answer).and_then(|pod| node_of_pod(pod.message));
        match node.map_err(|cause| Trouble::malformed(&ask, &namespace, &cause))? {
            "" => {
                let text = format!("pod {namespace}/{name} has no spec.nodeName");
                Err(Trouble::new(Kind::Refused, text, Some("correct POD_NAME and POD_NAMESPACE, or set NODE_NAME")))
            }
            node => Ok(LeaseKey::new(node)),
        }
    }

    /// Reads our own Node: its name, and its bytes if it is there.
    pub(super) async fn fetch_own(&self) -> Result<(LeaseKey, Option<Vec<u8>>), Trouble> {
        let name = self.own_name().await?;
        match self.client.fetch(&read_node(&name), Form::Whole).await {
            Ok(answer) => Ok((name, Some(answer))),
            Err(trouble) if trouble.kind == Kind::NotFound => Ok((name, None)),
            Err(trouble) => Err(trouble),
        }
    }

    /// Learns of our own Node, where nothing is known of it yet.
    pub(super) async fn learn_own(&self) -> Result<(), Trouble> {
        if *self.sight.own().borrow() != Own::Unknown {
            return Ok(());
        }
        let (name, answer) = self.fetch_own().await?;
        let own = match &answer {
            None => Own::Absent,
            Some(answer) => {
                let read = || {
                    let node = Object::read(answer)?.message;
                    OwnNode::of(&Meta::of(node)?, &self.options.prefix, pod_cidrs(node)?)
                };
                Own::Here(read().map_err(|cause| Trouble::malformed(&read_node(&name), &name, &cause))?)
            }
        };
        self.sight.see(own);
        Ok(())
    }
}

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
#[derive(Debug, Clone, PartialEq, Eq)]
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
