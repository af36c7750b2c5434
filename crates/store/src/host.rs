//! Who we are to the other daemons on a store, beside our public IP.
//!
//! Two hosts with one public IP have to be told from one host that restarts. A lock held by the living daemon would not
//! do: while it restarts, the other host would get its lease, and a copied or remote directory may have no locks. So a
//! host is named by what outlives a daemon:
//!
//! - the machine (`/etc/machine-id`, else the host name);
//! - the boot of its kernel (`boot_id`), because network namespaces are numbered anew at each;
//! - the network namespace (its inode), because several nodes may live on one machine.
//!
//! Same machine, boot and namespace: the same host for sure. Same machine from an earlier boot: its namespaces are gone,
//! so it cannot be alive; whether it was this host, the public IP decides. Anything else is another host.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

/// A host, or a network namespace that acts as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Host {
    /// Its name, for people.
    pub name: String,
    /// Names the machine through all boots.
    pub machine: String,
    /// Names the boot of the kernel.
    pub boot: String,
    /// Numbers the network namespace within the boot.
    pub netns: u64,
}

impl Host {
    /// The host this process runs on. What cannot be read stays empty.
    pub fn here() -> Self {
        let word = |path| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let name = word("/proc/sys/kernel/hostname");
        let machine = Some(word("/etc/machine-id")).filter(|id| !id.is_empty());
        Self {
            machine: machine.unwrap_or_else(|| name.clone()),
            name,
            boot: word("/proc/sys/kernel/random/boot_id"),
            netns: fs::metadata("/proc/self/ns/net").map(|file| file.ino()).unwrap_or_default(),
        }
    }

    /// Whether the other is this host, in this boot.
    pub fn is(&self, other: &Self) -> bool {
        (&self.machine, &self.boot, self.netns) == (&other.machine, &other.boot, other.netns)
    }

    /// Whether the other may be this host before its last boot.
    pub(crate) fn may_have_been(&self, other: &Self) -> bool {
        self.machine == other.machine && self.boot != other.boot
    }

    /// A piece of a file name that no other host uses.
    pub(crate) fn tag(&self) -> String {
        let boot: String = self.boot.chars().filter(char::is_ascii_hexdigit).take(12).collect();
        format!("{boot}-{}", self.netns)
    }
}

/// The beginning of what another host says of itself, on one line.
fn shown(word: &str, letters: usize) -> String {
    word.chars().take(letters).flat_map(char::escape_debug).collect()
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, machine) = (shown(&self.name, 64), shown(&self.machine, 8));
        write!(f, "host {name} (machine {machine}, network namespace {})", self.netns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(machine: &str, boot: &str, netns: u64) -> Host {
        Host { name: "n".into(), machine: machine.into(), boot: boot.into(), netns }
    }

    #[test]
    fn who_is_who() {
        let me = host("m1", "b2", 7);
        let check = |other: Host, is, may_have_been| {
            assert_eq!((me.is(&other), me.may_have_been(&other)), (is, may_have_been), "{other:?}");
        };
        check(host("m1", "b2", 7), true, false);
        check(host("m1", "b2", 8), false, false);
        check(host("m1", "b1", 8), false, true);
        check(host("m2", "b2", 7), false, false);
    }

    #[test]
    fn what_others_call_themselves_stays_on_one_line() {
        let forged = Host { name: format!("a\nERROR {}", "b".repeat(1000)), ..host("0123456789", "b", 7) };
        let expect = format!("host a\\nERROR {} (machine 01234567, network namespace 7)", "b".repeat(56));
        assert_eq!(forged.to_string(), expect);
    }

    #[test]
    fn this_host_has_a_name_of_its_own() {
        let here = Host::here();
        assert!(here.is(&Host::here()));
        assert!(here.netns != 0 && !here.boot.is_empty() && !here.machine.is_empty(), "{here:?}");
    }
}
