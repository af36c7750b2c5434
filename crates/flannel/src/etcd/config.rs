//! The network config in words: what it says, and what daemons do when it changes.

use std::fmt::Write as _;

use flannel_core::addr::Family;
use flannel_core::config::NetworkConfig;
use flannel_store::etcd::operator::{ConfigChange, ConfigText};

use super::words::list;
use crate::report::plain;

/// On one line.
pub(super) fn summary(config: &NetworkConfig) -> String {
    let subnets = config.subnets.map(|_, range| format!("/{} from {} to {}", range.len, range.min, range.max));
    let rules = if config.nftables { "nftables" } else { "iptables" };
    let (network, backend) = (list(&config.network), config.backend.type_name());
    format!("network {network}, subnets {}, backend {backend}, rules of {rules}", list(&subnets))
}

/// All there is of it.
pub(super) fn details(key: &str, config: &ConfigText) -> String {
    let mut text = format!("key        {key}\nrevision   {}\n", config.written);
    match &config.read {
        Ok((config, warnings)) => {
            let _ = writeln!(text, "says       {}", summary(config));
            for warning in warnings {
                let _ = writeln!(text, "warning    {}", plain(&warning.to_string()));
            }
        }
        Err(error) => _ = writeln!(text, "broken     {}", plain(&error.to_string())),
    }
    let _ = writeln!(text, "text       {}", plain(config.text.trim_end()));
    text
}

/// What was set, and what comes of it.
pub(super) fn change(key: &str, change: &ConfigChange) -> String {
    let done = if change.is_same { "is so already" } else { "is set" };
    let mut text = format!("{key} {done}: {}\n", summary(&change.now));
    for warning in &change.warnings {
        let _ = writeln!(text, "warning: {}", plain(&warning.to_string()));
    }
    let consequences = if change.is_same { Vec::new() } else { consequences(change) };
    for line in consequences {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// What daemons do with it.
fn consequences(change: &ConfigChange) -> Vec<String> {
    let mut lines =
        vec!["flanneld takes it over while it runs, where its host can; flannel in Go when it is started again".into()];
    for listed in &change.stranded {
        let name = plain(listed.record.key.as_str());
        lines.push(format!("{name} of {} has to go: make the pods of that host anew", plain(&listed.owner())));
    }
    let Some(before) = &change.before else { return lines };
    for family in Family::ALL {
        match (before.network.get(family), change.now.network.get(family)) {
            (None, Some(_)) => lines.push(format!("hosts get {family} subnets; pods that there are stay without")),
            (Some(_), None) => {
                lines.push(format!("hosts give up their {family} subnets, also for pods that there are"));
            }
            _ => {}
        }
    }
    if before.backend != change.now.backend {
        lines.push("no packets pass between hosts whose backends differ until all have it; pods keep the MTU they were made with".into());
    }
    lines
}
