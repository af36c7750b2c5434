//! What a person should know about the host's packet filter beside flannel's own rules.
//!
//! [`Advice::give`] says it when the rule system is first used and when it changes, never twice in between. In iptables mode
//! bridged packets have to pass iptables; in nftables mode no program is run, so what an iptables-legacy node left is named
//! with the command that removes it. Nothing here keeps flannel's data path from working.

use std::collections::BTreeSet;

use flannel_core::addr::Family;
use flannel_core::state::Scope;
use flannel_kernel::bridge_netfilter::ensure_bridge_netfilter;
use flannel_kernel::iptables::legacy_removal;

/// What was said last.
#[derive(Debug, Default)]
pub(crate) struct Advice {
    /// Whether it was for iptables.
    given: Option<bool>,
}

impl Advice {
    /// Looks at the host, unless it did for this rule system, and logs what there is to know. May run `modprobe` in iptables
    /// mode.
    pub(crate) fn give(&mut self, scope: &Scope) {
        if self.given.replace(scope.iptables) == Some(scope.iptables) {
            return;
        }
        if scope.iptables {
            warn_of_bypass(scope);
        } else {
            name_leftovers();
        }
    }
}

fn warn_of_bypass(scope: &Scope) {
    let families: BTreeSet<_> = scope.networks.iter().map(|network| Family::of_net(*network)).collect();
    for error in families.into_iter().filter_map(|family| ensure_bridge_netfilter(family).err()) {
        tracing::warn!("{error}");
    }
}

fn name_leftovers() {
    for removal in Family::ALL.into_iter().filter_map(legacy_removal) {
        tracing::info!(
            "iptables-legacy is in use on this host: rules that flannel left there in iptables mode are not removed \
             (hint: remove them by `{removal}`)"
        );
    }
}
