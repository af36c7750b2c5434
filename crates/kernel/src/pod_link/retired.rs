//! A pod's veth pair that is out of use: the kernel takes tens of milliseconds to destroy one, and one to make it harmless.
//!
//! Surface: [`Links::retire`] and [`Retired`], which takes in rules of nf_tables too. A retired pair is no port of a bridge, both ends are down, the pod's end has no address
//! and another name, so an ADD finds everything free. It is destroyed by a process left behind, else with the pod's namespace.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use flannel_core::addr::{Family, LinkName};
use ipnet::IpNet;
use rustix::io::Errno;

use super::{Found, LinkError, Links};
use crate::namespace::NetNamespace;
use crate::netlink::link::{self, Settings};
use crate::netlink::{Error, Failure, Request, address};
use crate::nft::Nft;
use crate::process;
use crate::random;

/// What the name of a retired pod's end begins with; eight hexadecimal digits follow.
const PREFIX: &str = "gone";
/// What a retired host's end is called beside its name (`ip link` shows it as `alias`).
const ALIAS: &str = "deleted by CNI, to be destroyed";
/// How long the process left behind may live, with what it does first; destroying takes the kernel longer only while its lock is contended.
const LIMIT: Duration = Duration::from_mins(1);

/// Retired pairs, each by the index of the host's end, and deleted rules whose memory the kernel has still to free.
#[derive(Debug, Default)]
#[must_use = "a retired pair is still to be destroyed"]
pub struct Retired {
    pairs: Vec<u32>,
    /// What the pods' ends had.
    addresses: Vec<IpAddr>,
    /// Whoever closes it waits for the kernel.
    rules: Option<OwnedFd>,
}

impl FromIterator<u32> for Retired {
    fn from_iter<I: IntoIterator<Item = u32>>(indexes: I) -> Self {
        Self { pairs: indexes.into_iter().collect(), ..Self::default() }
    }
}

impl From<Nft> for Retired {
    fn from(rules: Nft) -> Self {
        Self { rules: Some(rules.into()), ..Self::default() }
    }
}

impl Retired {
    /// Takes in others.
    pub fn extend(&mut self, others: Self) {
        self.pairs.extend(others.pairs);
        self.addresses.extend(others.addresses);
        self.rules = self.rules.take().or(others.rules);
    }

    /// The addresses that the pods' ends had.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whether there is nothing to destroy.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty() && self.rules.is_none()
    }

    /// Destroys the pairs in a process of its own, which outlives the caller; that must have one thread, be in the network namespace of
    /// the host's ends, and be about to end. What cannot be destroyed now goes with the pod's namespace. `first` is done there before,
    /// with the descriptor that it needs.
    pub fn destroy_apart(mut self, kept: Option<RawFd>, first: impl FnOnce()) {
        process::leave_behind(LIMIT, kept, self.rules.take(), || {
            first();
            _ = self.destroy();
        });
    }

    /// Destroys the pairs. Those that are gone already are no error.
    pub fn destroy(self) -> Result<(), LinkError> {
        if self.pairs.is_empty() {
            return Ok(());
        }
        let mut host = Links::here()?;
        let requests: Vec<_> = self.pairs.iter().map(|index| link::delete(*index)).collect();
        let failed = host.socket.batch(&requests, || ()).into_iter().find(|failure| !failure.error.is_absent());
        failed.map_or(Ok(()), |failure| Err(LinkError::new("delete a link out of use")(failure.error)))
    }
}

impl Links {
    /// The links of a pod that a DEL of an interface is about: that, and the retired whose destroyer did not come to its end.
    pub fn to_retire(&mut self, name: LinkName) -> Result<Vec<Found>, LinkError> {
        let links = self.socket.dump(&link::list(), Found::read).map_err(LinkError::new("list links"))?;
        Ok(links.into_iter().filter(|found| found.link.name == name || is_retired(found)).collect())
    }

    /// Retires a pair by its end in the pod, whose links these are; `host` are those of the namespace where the other end should be.
    /// What was done when it fails, or is killed, does no harm: whoever comes next may retire it again, or delete it.
    pub fn retire(&mut self, pod: &Found, netns: &NetNamespace, host: &mut Self) -> Result<Retired, LinkError> {
        let name = pod.link.name;
        let failed = || LinkError::new(format!("retire link {name}"));
        let other = host.other_end(pod, netns)?.ok_or_else(|| failed()(Error::from(Errno::NODEV)))?;
        host.socket.tell(&out_of_use(other)).map_err(failed())?;
        let mut addresses = self.addresses(pod, Family::V4)?;
        addresses.extend(self.addresses(pod, Family::V6)?);
        let mut requests: Vec<_> = addresses.iter().map(|net| address::delete(pod.link.index, *net)).collect();
        let down = Settings { up: Some(false), ..Settings::default() };
        let rename =
            Settings { name: Some(fresh_name().map_err(|cause| failed()(cause.into()))?), ..Settings::default() };
        requests.extend([down, rename].map(|settings| link::change(pod.link.index, &settings)));
        // An address may go with another, or by itself.
        let fatal = |failure: &Failure| failure.index >= addresses.len() || !failure.error.is_absent();
        let failure = self.socket.batch(&requests, || ()).into_iter().find(fatal);
        let addresses = addresses.iter().map(IpNet::addr).collect();
        let retired = Retired { pairs: vec![other], addresses, rules: None };
        failure.map_or(Ok(retired), |failure| Err(failed()(failure.error)))
    }

    /// The index here of a pair's other end, which is in `netns`: its peer's index is the pod's end's, and its peer's namespace
    /// that of the pod, since ends in all pods have the same few indexes.
    fn other_end(&mut self, pod: &Found, netns: &NetNamespace) -> Result<Option<u32>, LinkError> {
        let Some(found) = pod.peer.map(|peer| self.find_index(peer)).transpose()?.flatten() else { return Ok(None) };
        let id = self.namespace_id(netns)?;
        let is_other = found.is("veth") && found.peer == Some(pod.link.index) && id.is_some() && found.peer_netns == id;
        Ok(is_other.then_some(found.link.index))
    }

    /// The number that this namespace has given another one, if it has (`ip netns list-id`).
    fn namespace_id(&mut self, netns: &NetNamespace) -> Result<Option<u32>, LinkError> {
        /// `RTM_GETNSID` of `linux/rtnetlink.h`; `NETNSA_NSID`, `NETNSA_FD` and `NETNSA_NSID_NOT_ASSIGNED` of
        /// `linux/net_namespace.h`.
        const GET: u16 = 90;
        const ID: u16 = 1;
        const FD: u16 = 3;
        const NOT_ASSIGNED: u32 = u32::MAX;
        let request = Request::new(GET, 0).body(&[0; 4]).attr(FD, netns.as_fd().as_raw_fd());
        let ids = self.socket.ask(&request, |message| message.split(4)?.1.find(ID)?.u32());
        let id = ids.map_err(LinkError::new("identify a network namespace"))?.into_iter().next();
        Ok(id.filter(|id| *id != NOT_ASSIGNED))
    }
}

/// Takes a host's end out of its bridge, sets it down and marks it.
fn out_of_use(index: u32) -> Request {
    link::change(index, &Settings { up: Some(false), master: Some(0), alias: Some(ALIAS), ..Settings::default() })
}

fn fresh_name() -> Result<LinkName, Errno> {
    let number = u32::from_ne_bytes(random::bytes()?);
    format!("{PREFIX}{number:08x}").parse().map_err(|_| Errno::INVAL)
}

/// Whether this is the host's end of a retired pair.
pub(super) fn is_marked(found: &Found) -> bool {
    &*found.alias == ALIAS && !found.link.is_up()
}

fn is_retired(found: &Found) -> bool {
    let digits = found.link.name.as_str().strip_prefix(PREFIX);
    let named = digits.is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    named && found.is("veth") && !found.link.is_up()
}
