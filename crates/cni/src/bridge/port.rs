//! A new port of the bridge: the veth pair whose other end is the container's.
//!
//! Surface: [`NewPort`], [`Ends`], [`names`], [`random_mac`]. Names and MACs are chosen here, all else by the caller. A port's name follows from
//! whose it is, so that GC finds one that an ADD was killed at, before anything else told whose it is.

use flannel_core::addr::{Family, LinkName, Mac, Mtu};
use flannel_kernel::namespace::NetNamespace;
use flannel_kernel::pod_link::{Found, Links, Pair, set_conf};
use flannel_kernel::random;

use super::BridgeError;
use crate::protocol::failure::Failure;

/// Both ends by name and MAC.
pub(super) struct Ends {
    pub(super) host: LinkName,
    pub(super) host_mac: Mac,
    pub(super) pod: LinkName,
    pub(super) pod_mac: Mac,
}

/// A pair to be made.
pub(super) struct NewPort<'a> {
    /// Whose it is.
    pub(super) owner: &'a str,
    /// Name of the other end.
    pub(super) pod: LinkName,
    /// Its MAC; a random one when none.
    pub(super) pod_mac: Option<Mac>,
    /// Where it is born.
    pub(super) netns: &'a NetNamespace,
    /// MTU of both ends; the kernel's default when none.
    pub(super) mtu: Option<Mtu>,
    /// The port sends packets back to where they came from.
    pub(super) hairpin: bool,
    /// Ports of this kind do not reach each other.
    pub(super) isolated: bool,
}

/// How many names for the port are tried.
const NAMES: u8 = 8;

impl NewPort<'_> {
    /// Makes the pair: the port up, the other end down.
    pub(super) fn create(&self, host: &mut Links, bridge: &Found) -> Result<Ends, Failure> {
        let pod_mac = self.pod_mac.map_or_else(random_mac, Ok)?;
        for name in names(self.owner) {
            let ends = Ends { host: name, host_mac: random_mac()?, pod: self.pod, pod_mac };
            match host.create_pair(&self.pair(&ends, bridge)) {
                Ok(()) => {
                    // The host's routes are its own business, also when the port is taken from the bridge.
                    _ = set_conf(Family::V6, name, "accept_ra", "0");
                    return Ok(ends);
                }
                Err(error) if !error.is_present() => return Err(error.into()),
                Err(_) if host.find(name)?.is_none() => return Err(BridgeError::NameTaken(self.pod).into()),
                Err(_) => {}
            }
        }
        Err(BridgeError::NoName.into())
    }

    fn pair(&self, ends: &Ends, bridge: &Found) -> Pair<'_> {
        Pair {
            host: ends.host,
            host_mac: ends.host_mac,
            pod: ends.pod,
            pod_mac: ends.pod_mac,
            mtu: self.mtu,
            netns: self.netns,
            bridge: bridge.link.index,
            hairpin: self.hairpin,
            isolated: self.isolated,
        }
    }
}

/// The owner of a container's port.
pub(super) fn owner(network: &str, container_id: &str, ifname: &str) -> String {
    format!("{network}/{container_id}/{ifname}")
}

/// The names that an owner's port may have, each tried when something else has the one before: `veth` and a hash, which to people is what the
/// random number of the Go plugin's is.
pub(super) fn names(owner: &str) -> impl Iterator<Item = LinkName> {
    (0..NAMES).filter_map(move |turn| format!("veth{:08x}", hash(owner.bytes().chain([turn]))).parse().ok())
}

/// FNV-1a with 32 bits: the same in every build.
fn hash(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// A MAC of nobody's.
pub(super) fn random_mac() -> Result<Mac, BridgeError> {
    random::bytes().map(Mac::local).map_err(BridgeError::Random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_owners_in_every_build() {
        assert_eq!(hash("foobar".bytes()), 0xbf9c_f968, "as the function's authors have it");
        let all: Vec<_> = names(&owner("cbr0", "c1", "eth0")).map(|name| name.to_string()).collect();
        assert_eq!(all.len(), usize::from(NAMES));
        assert_eq!(all[..2], ["vethacf75feb", "vethabf75e58"]);
        assert!(names(&owner("cbr0", "c1", "eth1")).all(|name| !all.contains(&name.to_string())));
    }
}
