//! How the node stands, told to those who ask or listen: the health server, systemd, the store's readers.
//!
//! Everything here is worked out from what the loop knows; nothing is decided.

use flannel_core::lease::LeaseKey;
use flannel_core::node::NodeError;
use flannel_core::plan::Skipped;
use flannel_core::subnet_env::SubnetEnv;
use flannel_store::{Problem, Standing};

use super::{Agent, Decided};
use crate::notify;

/// So many remarks on leases are told to a store's readers: nobody reads more.
const MOST_REMARKS: usize = 32;

impl Agent<'_> {
    /// Says why this host cannot follow, once.
    pub(super) fn note_misfit(&mut self, error: &NodeError) {
        let text = format!("{error}; what was decided before stays in force (hint: {})", error.hint());
        if self.misfit.as_ref() != Some(&text) {
            tracing::warn!("{text}");
            self.misfit = Some(text);
        }
    }

    /// Tells the health server, and once systemd, how we stand, after whatever the loop has heard.
    pub(super) fn tell_vitals(&mut self) {
        let missing = self.missing();
        if missing.is_empty() && !self.ready {
            self.ready = true;
            tracing::info!("ready: {} leases", self.leases.len());
            if let Err(error) = notify::ready(self.notify_socket.as_deref()) {
                tracing::warn!("cannot tell systemd that flanneld is ready: {error}");
            }
        }
        self.vitals.set_missing(missing);
    }

    /// What keeps this node from being ready, a line each.
    pub(super) fn missing(&self) -> Vec<String> {
        let trouble = self.trouble.iter().filter(|_| self.held.is_none());
        let lines: Vec<_> = trouble.chain(self.waits()).cloned().collect();
        if !lines.is_empty() {
            return lines;
        }
        if self.config.is_none() {
            return vec!["waiting for the network config".into()];
        }
        if self.held.is_none() {
            return vec!["waiting for our own lease".into()];
        }
        if !self.listed {
            return vec!["waiting for the list of leases".into()];
        }
        if self.is_lost() {
            return vec!["our own lease is gone, and is being written again".into()];
        }
        match &self.report {
            None => vec!["programming the kernel".into()],
            Some(report) if !report.node.is_empty() => report.node.clone(),
            Some(_) if !self.tried => vec!["programming the peers".into()],
            Some(_) if self.written.is_none() || self.written != self.subnet_env() => {
                vec!["subnet.env is not written yet".into()]
            }
            Some(_) => Vec::new(),
        }
    }

    /// What the store waits for, where that keeps us from being ready.
    pub(super) fn waits(&self) -> Option<&String> {
        self.waits.as_ref().filter(|_| self.held.is_none() || !self.listed || self.is_lost())
    }

    /// Whether the store has our own lease no more, or with other subnets, and has not answered what becomes of it.
    fn is_lost(&self) -> bool {
        let Some(held) = self.held.as_ref().filter(|_| self.listed && !self.hold_call.is_idle()) else { return false };
        !matches!(self.leases.record(&held.key), Some(Ok(lease)) if lease.subnet == held.lease.subnet)
    }

    /// What `subnet.env` must say by the plan in force.
    pub(super) fn subnet_env(&self) -> Option<SubnetEnv> {
        let Decided { config, node } = &self.in_force.as_ref()?.decided;
        Some(SubnetEnv {
            networks: config.network.values().copied().collect(),
            subnets: node.subnet,
            mtu: node.least_mtu(),
            ip_masq: node.rules.masquerade.is_some(),
        })
    }

    /// Tells the store how we stand, if that is another than it was told last.
    pub(super) fn tell_store(&mut self) {
        let standing = self.standing();
        if self.told != standing {
            self.store.report(&standing);
            self.told = standing;
        }
    }

    fn standing(&self) -> Standing {
        let lasting = |reason| move |text: &String| Problem { reason, text: text.clone(), blocks_pods: false };
        let failing = self.report.iter().flat_map(|report| &report.node);
        let failures = failing.map(|text| Problem { blocks_pods: true, ..lasting("NetworkFailed")(text) });
        let waits = self.waits().into_iter().map(lasting("Waiting"));
        let waits = self.trouble.iter().map(lasting("NotReady")).chain(waits);
        let waits = waits.map(|problem| Problem { blocks_pods: self.is_new(), ..problem });
        let config = self.unread.iter().map(lasting("ConfigUnreadable"));
        let config = config.chain(self.misfit.iter().map(lasting("ConfigNotFollowed")));
        Standing {
            ready: self.missing().is_empty(),
            problems: waits.chain(failures).chain(config).chain(self.host.iter().cloned()).collect(),
            remarks: self.remarks(),
        }
    }

    /// Whether this node never had a network: one of before is in force still while we are not ready.
    fn is_new(&self) -> bool {
        self.promised.is_none()
    }

    fn remarks(&self) -> Vec<Problem> {
        let all = self.skipped.iter().flat_map(|(key, remarks)| remarks.iter().map(move |remark| (key, remark)));
        let problem = |(key, remark): (&LeaseKey, &Skipped)| {
            let reason = if remark.warning { "PeerDoubtful" } else { "PeerSkipped" };
            Problem { reason, text: line(key, remark), blocks_pods: false }
        };
        all.take(MOST_REMARKS).map(problem).collect()
    }
}

/// A remark on a lease, for people.
pub(super) fn line(key: &LeaseKey, remark: &Skipped) -> String {
    format!("lease {key}{}: {remark}", if remark.warning { "" } else { " is skipped" })
}
