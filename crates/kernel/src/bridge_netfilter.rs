//! Whether bridged packets pass iptables (module `br_netfilter`), and the one attempt to make it so.
//!
//! Without it, packets between pods on one bridge bypass iptables, so that the node's own rules (services foremost) do not
//! apply to them. Flannel's data path works all the same.

use std::path::{Path, PathBuf};
use std::time::Duration;

use flannel_core::addr::Family;

use crate::program::Program;

/// How long `modprobe` may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Bridged packets bypass iptables on this node for want of a kernel module.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} does not exist: packets between pods of this node bypass iptables, services may not work for them: \
     {cause} (hint: modprobe br_netfilter on the host)",
    path.display()
)]
pub struct NoBridgeNetfilter {
    /// The sysctl's file.
    path: PathBuf,
    cause: String,
}

/// Sees to it that bridged packets of a family can pass iptables, by loading `br_netfilter` if it is not there.
pub fn ensure_bridge_netfilter(family: Family) -> Result<(), NoBridgeNetfilter> {
    let sysctl = match family {
        Family::V4 => "/proc/sys/net/bridge/bridge-nf-call-iptables",
        Family::V6 => "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
    };
    ensure(Path::new(sysctl), || Program::find("modprobe"))
}

fn ensure(sysctl: &Path, modprobe: impl FnOnce() -> Option<Program>) -> Result<(), NoBridgeNetfilter> {
    if sysctl.exists() {
        return Ok(());
    }
    let loaded = match modprobe() {
        None => Err("no program `modprobe` in PATH".to_owned()),
        Some(modprobe) => modprobe.run(&["br_netfilter"], "", LIMIT).map_err(|error| error.to_string()),
    };
    match loaded {
        Ok(_) if sysctl.exists() => Ok(()),
        Ok(_) => Err("the module is loaded but does not serve this network namespace".to_owned()),
        Err(cause) => Err(cause),
    }
    .map_err(|cause| NoBridgeNetfilter { path: sysctl.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(modprobe: Option<&str>) -> String {
        let program = modprobe.map(|name| Program::find(name).unwrap());
        ensure(Path::new("/proc/sys/net/none"), || program).unwrap_err().to_string()
    }

    #[test]
    fn nothing_is_run_where_the_sysctl_exists() {
        ensure(Path::new("/proc/sys/net"), || panic!("no module is missing")).unwrap();
    }

    #[test]
    fn the_warning_says_what_fails_and_what_to_do() {
        assert!(failure(None).starts_with("/proc/sys/net/none does not exist: packets between pods"));
        assert!(failure(None).ends_with(": no program `modprobe` in PATH (hint: modprobe br_netfilter on the host)"));
        assert!(failure(Some("false")).contains("exit status: 1"));
        assert!(failure(Some("true")).contains("does not serve this network namespace"));
    }
}
