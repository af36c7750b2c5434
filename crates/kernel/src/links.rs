//! The links of a network namespace by index and by name, and whose they are.
//!
//! Kept right by reports as they come; nothing here asks the kernel.

use std::collections::HashMap;

use flannel_core::addr::{LinkName, Mac, Mtu};
use flannel_core::state::Scope;

use crate::netlink::link::Report;

/// What is remembered of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) index: u32,
    pub(crate) name: LinkName,
    pub(crate) kind: Box<str>,
    pub(crate) up: bool,
    pub(crate) mtu: Mtu,
    pub(crate) mac: Option<Mac>,
    pub(crate) bridge_port: bool,
}

impl Seen {
    /// A device of flannel's, by name and kind.
    pub(crate) fn is_ours(&self) -> bool {
        Scope::owns_link(self.name.as_str(), &self.kind)
    }

    /// A pod's end on the host: a veth that is a port of a bridge.
    pub(crate) fn is_pods(&self) -> bool {
        self.bridge_port && &*self.kind == "veth"
    }
}

/// All links of a namespace.
#[derive(Debug, Default)]
pub(crate) struct Links {
    by_index: HashMap<u32, Seen>,
    by_name: HashMap<LinkName, u32>,
}

impl Links {
    /// Takes in a report and answers with what was remembered of that index.
    pub(crate) fn note(&mut self, report: &Report) -> Option<Seen> {
        let seen = Seen {
            index: report.index,
            name: report.name,
            kind: report.kind.clone(),
            up: report.is_up(),
            mtu: report.mtu,
            mac: report.mac,
            bridge_port: report.bridge_port,
        };
        self.by_name.insert(report.name, report.index);
        let before = self.by_index.insert(report.index, seen);
        if let Some(before) = before.as_ref().filter(|before| before.name != report.name) {
            self.forget_name(before);
        }
        before
    }

    /// Forgets a link and answers with what was remembered.
    pub(crate) fn forget(&mut self, index: u32) -> Option<Seen> {
        let seen = self.by_index.remove(&index)?;
        self.forget_name(&seen);
        Some(seen)
    }

    /// A name may have gone to another link already.
    fn forget_name(&mut self, seen: &Seen) {
        if self.by_name.get(&seen.name) == Some(&seen.index) {
            self.by_name.remove(&seen.name);
        }
    }

    pub(crate) fn at(&self, index: u32) -> Option<&Seen> {
        self.by_index.get(&index)
    }

    pub(crate) fn name(&self, index: u32) -> Option<LinkName> {
        self.at(index).map(|seen| seen.name)
    }

    pub(crate) fn named(&self, name: LinkName) -> Option<&Seen> {
        self.at(*self.by_name.get(&name)?)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Seen> {
        self.by_index.values()
    }
}

impl<'a> FromIterator<&'a Report> for Links {
    fn from_iter<I: IntoIterator<Item = &'a Report>>(reports: I) -> Self {
        let mut links = Self::default();
        for report in reports {
            links.note(report);
        }
        links
    }
}
