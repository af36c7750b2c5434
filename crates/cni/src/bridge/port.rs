//! A new port of the bridge: the veth pair whose other end is the container's.
//!
//! Surface: [`NewPort`], [`Ends`], [`random_mac`]. Names and MACs are chosen here, all else by the caller.

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
const NAMES: usize = 8;

impl NewPort<'_> {
    /// Makes the pair: the port up, the other end down.
    pub(super) fn create(&self, host: &mut Links, bridge: &Found) -> Result<Ends, Failure> {
        let pod_mac = self.pod_mac.map_or_else(random_mac, Ok)?;
        for _ in 0..NAMES {
            let [a, b, c, d] = random::bytes().map_err(BridgeError::Random)?;
            let name = format!("veth{a:02x}{b:02x}{c:02x}{d:02x}").parse().map_err(|_| BridgeError::NoName)?;
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

/// A MAC of nobody's.
pub(super) fn random_mac() -> Result<Mac, BridgeError> {
    random::bytes().map(Mac::local).map_err(BridgeError::Random)
}
