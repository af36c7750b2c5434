//! Our own lease: the annotations of our own Node, written when they are other than they should be.
//!
//! The subnet is the Node's pod CIDR, so nothing is drawn and nobody is in the way. What has to be waited for (the Node, its pod CIDR)
//! is waited for, however long it takes: the watch says so.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use flannel_core::addr::{Dual, Family};
use flannel_core::annotations::{KubeNode, changes, read};
use flannel_core::config::NetworkConfig;
use flannel_core::lease::{Attributes, Claim, Lease};
use ipnet::IpNet;

use super::Kube;
use super::ask::{Ask, NODES, Verb};
use super::client::Form;
use super::own::{Own, OwnNode};
use super::trouble::{Kind, Trouble};
use super::wire::{Meta, Object};
use crate::{Held, HoldError};

/// How often somebody else may write the Node at the same moment.
const ATTEMPTS: usize = 5;

/// What we hold: written once, it stays so until the claim changes.
#[derive(Debug, Default)]
pub(super) struct Holding(Mutex<Option<Attributes>>);

impl Holding {
    /// The attributes to publish: with the MACs that we told in this run, else those that the Node told before it.
    fn attributes(&self, claim: &Claim, told: Option<&Lease>) -> Attributes {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*held, told) {
            (Some(held), _) => claim.attributes.keeping_macs(held),
            (None, Some(told)) => claim.attributes.keeping_macs(&told.attributes),
            (None, None) => claim.attributes.clone(),
        }
    }

    fn keep(&self, attributes: &Attributes) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(attributes.clone());
    }
}

impl Kube {
    /// Makes our own Node say what the claim says.
    pub(super) async fn hold(&self, config: &NetworkConfig, claim: &Claim) -> Result<Held, HoldError> {
        self.learn_own().await.map_err(|trouble| HoldError::Later(trouble.to_string()))?;
        for _ in 0..ATTEMPTS {
            let own = self.own_with_subnets().await;
            let subnets = fitting(&own, config)?;
            if let Some((elder, theirs)) = self.sight.elder(&own, &subnets) {
                return Err(HoldError::Later(taken(&own, &elder.to_string(), theirs)));
            }
            let attributes = self.holding.attributes(claim, lease_of(self, &own).as_ref());
            let wanted = Claim { attributes, ..claim.clone() };
            let changes = changes(&self.options.prefix, &own.annotations, &wanted);
            if changes.is_empty() {
                let lease = lease_of(self, &own).ok_or_else(|| HoldError::Later(unread(&own)))?;
                self.holding.keep(&lease.attributes);
                return Ok(Held { key: own.name, lease });
            }
            match self.write(&own, &changes).await {
                Ok(()) => {}
                Err(trouble) if matches!(trouble.kind, Kind::Conflict) => {}
                Err(trouble) if trouble.kind == Kind::NotFound => {
                    self.sight.see(Own::Absent);
                }
                Err(trouble) => return Err(HoldError::Later(trouble.to_string())),
            }
        }
        Err(HoldError::Later(format!(
            "others overtook each of {ATTEMPTS} attempts to write the annotations of our node"
        )))
    }

    /// Waits until our own Node is there and has subnets.
    async fn own_with_subnets(&self) -> OwnNode {
        let mut own = self.sight.own();
        let found = own.wait_for(|own| matches!(own, Own::Here(OwnNode { pod_cidrs: Some(_), .. }))).await;
        match found.as_deref() {
            Ok(Own::Here(own)) => own.clone(),
            _ => std::future::pending().await,
        }
    }

    /// Changes annotations of our own Node, if it still is the same one.
    async fn write(&self, own: &OwnNode, changes: &BTreeMap<String, Option<String>>) -> Result<(), Trouble> {
        let ask = Ask::of(Verb::Patch, NODES).named(own.name.as_str()).sub("status");
        let patch = serde_json::json!({"metadata": {"annotations": changes}}).to_string();
        let answer = self.client.patch(&ask, patch, Form::Metadata).await?;
        let read = || {
            let meta = Meta::of(Object::read(&answer)?.message)?;
            OwnNode::of(&meta, &self.options.prefix, own.pod_cidrs.clone().filter(|_| meta.uid == own.uid))
        };
        let now = read().map_err(|cause| Trouble::malformed(&ask, &"its address", &cause))?;
        self.sight.see(Own::Here(now));
        Ok(())
    }
}

/// The lease that our own Node tells.
fn lease_of(kube: &Kube, own: &OwnNode) -> Option<Lease> {
    let pod_cidrs = own.pod_cidrs.clone()?;
    let node =
        KubeNode { name: own.name.as_str(), annotations: &own.annotations, pod_cidrs: &pod_cidrs, since: own.since };
    read(&kube.options.prefix, &node)?.lease.ok().map(|lease| Lease::clone(&lease))
}

/// The subnets of our Node that the config uses: one for each family, inside its network.
fn fitting(own: &OwnNode, config: &NetworkConfig) -> Result<Dual<IpNet>, HoldError> {
    let name = &own.name;
    let later = |text: String| Err(HoldError::Later(text));
    let subnets = match &own.pod_cidrs {
        Some(Ok(subnets)) => subnets,
        Some(Err(flaw)) => return later(format!("node {name}: {flaw} (hint: correct what hands out pod CIDRs)")),
        None => return later(format!("node {name} has no spec.podCIDRs yet")),
    };
    for (family, network) in config.network.iter() {
        let key = if family == Family::V4 { "Network" } else { "IPv6Network" };
        match subnets.get(family) {
            None => {
                return later(format!(
                    "node {name} has no {family} pod CIDR, and the network config has {key} {network} (hint: give \
                     kube-controller-manager a --cluster-cidr of each family and make the node anew, or set Enable{family} false)"
                ));
            }
            Some(subnet) if !network.contains(subnet) => {
                return later(format!(
                    "pod CIDR {subnet} of node {name} lies outside {key} {network} of the network config (hint: make {key} in \
                     net-conf.json what kube-controller-manager has as --cluster-cidr)"
                ));
            }
            Some(_) => {}
        }
    }
    Ok(Dual::from_fn(|family| config.network.get(family).and(subnets.get(family).copied())))
}

fn taken(own: &OwnNode, elder: &str, theirs: IpNet) -> String {
    format!(
        "pod CIDR of node {} is taken: node {elder} is older and has {theirs} (hint: make node {} anew, so that it gets another \
         pod CIDR)",
        own.name, own.name
    )
}

fn unread(own: &OwnNode) -> String {
    format!("the annotations of node {} do not say what was written", own.name)
}
