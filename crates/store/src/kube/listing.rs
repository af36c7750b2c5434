//! A list of all Nodes as it comes: what becomes known of each, and the leases among them.

use std::sync::Arc;

use flannel_core::annotations::{self, Annotations, KubeNode};
use flannel_core::lease::{Flaw, LeaseKey, Record, Since};

use super::Kube;
use super::client::Form;
use super::list::Found;
use super::own::{Known, Nodes, OwnNode};
use super::wire::{Malformed, Meta, PodCidrs, pod_cidrs};

/// Names a Node that is too long to be read.
pub(super) fn too_long(name: &str, length: usize) -> Record {
    let flaw = Flaw { field: "its Node".into(), why: format!("has {length} bytes, which is too long to be read") };
    Record::new(LeaseKey::new(name), Err(flaw))
}

/// A list as it comes.
pub(super) struct Listing {
    kube: Arc<Kube>,
    form: Form,
    pub(super) nodes: Nodes,
    pub(super) records: Vec<Record>,
    /// The name of our own Node, and that Node if it was listed.
    own_name: Option<LeaseKey>,
    pub(super) own: Option<OwnNode>,
    /// Leases whose pod CIDR is not known.
    pub(super) unread: Vec<LeaseKey>,
}

impl Listing {
    pub(super) fn new(kube: Arc<Kube>, form: Form, own_name: Option<LeaseKey>) -> Self {
        Self { kube, form, nodes: Nodes::default(), records: Vec::new(), own_name, own: None, unread: Vec::new() }
    }

    /// Begins anew.
    pub(super) fn clear(&mut self) {
        self.nodes.clear();
        self.records.clear();
        self.unread.clear();
        self.own = None;
    }

    /// Takes in a part of it.
    pub(super) fn take(&mut self, found: &Found<'_>) -> Result<(), Malformed> {
        match found {
            Found::Node(node) if self.form == Form::Whole => self.take_whole(node),
            Found::Node(object) => self.take_meta(object),
            Found::TooLong(length, Some(name)) => {
                self.records.push(too_long(name, *length));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Takes in a whole Node.
    pub(super) fn take_whole(&mut self, node: &[u8]) -> Result<(), Malformed> {
        let (meta, subnets) = (Meta::of(node)?, pod_cidrs(node)?);
        self.take_known(&meta, subnets)
    }

    fn take_meta(&mut self, object: &[u8]) -> Result<(), Malformed> {
        let meta = Meta::of(object)?;
        let known = self.kube.sight.nodes().get(meta.name).filter(|known| known.uid == meta.uid).cloned();
        let subnets = known.and_then(|known| known.pod_cidrs);
        let prefix = &self.kube.options.prefix;
        if subnets.is_none() && (self.is_own(&meta) || annotations::is_managed(prefix, &meta.ours(prefix)?)) {
            self.unread.push(LeaseKey::new(meta.name));
            return Ok(());
        }
        self.take_known(&meta, subnets)
    }

    fn is_own(&self, meta: &Meta<'_>) -> bool {
        self.own_name.as_ref().is_some_and(|own| own.as_str() == meta.name)
    }

    fn take_known(&mut self, meta: &Meta<'_>, pod_cidrs: PodCidrs) -> Result<(), Malformed> {
        let record = self.kube.record(meta, &pod_cidrs)?;
        let digest = meta.digest(&self.kube.options.prefix)?;
        if self.is_own(meta) {
            self.own = Some(OwnNode::of(meta, &self.kube.options.prefix, pod_cidrs.clone())?);
        }
        let known = Known { uid: meta.uid, since: meta.since, digest, pod_cidrs, is_lease: record.is_some() };
        self.nodes.insert(LeaseKey::new(meta.name), known);
        self.records.extend(record);
        Ok(())
    }
}

impl Kube {
    /// The lease that a Node tells; none if flannel does not run there.
    pub(super) fn record(&self, meta: &Meta<'_>, pod_cidrs: &PodCidrs) -> Result<Option<Record>, Malformed> {
        let annotations = meta.ours(&self.options.prefix)?;
        Ok(self.read(meta.name, &annotations, pod_cidrs, meta.since))
    }

    /// The lease that our own Node tells.
    pub(super) fn record_of_own(&self, own: &OwnNode) -> Option<Record> {
        self.read(own.name.as_str(), &own.annotations, &own.pod_cidrs, own.since)
    }

    fn read(&self, name: &str, annotations: &Annotations, pod_cidrs: &PodCidrs, since: Since) -> Option<Record> {
        let none = Err(Flaw { field: "spec.podCIDRs".into(), why: "is empty".into() });
        let pod_cidrs = pod_cidrs.as_ref().unwrap_or(&none);
        annotations::read(&self.options.prefix, &KubeNode { name, annotations, pod_cidrs, since })
    }
}
