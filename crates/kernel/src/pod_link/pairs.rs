//! The pairs that lead from here into other namespaces, and what addresses they have there: who is connected, without a path to
//! anybody's namespace.
//!
//! Surface: [`Links::pairs`] and [`Links::retired`]. The kernel answers for other namespaces by number (`IFA_TARGET_NETNSID`, from Linux 5.0).

use std::net::IpAddr;

use flannel_core::addr::Family;
use rustix::io::Errno;

use super::retired::{Retired, is_marked};
use super::{Found, LinkError, Links};
use crate::netlink::{Error, Message, address, link};

/// `IFA_TARGET_NETNSID` of `linux/if_addr.h`.
const TARGET_NETNSID: u16 = 10;

/// A pair of which this namespace has one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivePair {
    /// The end here.
    pub host: Found,
    /// The addresses of the end there, without link-local ones.
    pub addresses: Vec<IpAddr>,
}

impl Links {
    /// The pairs whose other end is in another namespace, those out of use not counted. An error where the kernel cannot say
    /// what addresses they have.
    pub fn pairs(&mut self) -> Result<Vec<LivePair>, LinkError> {
        let mut pairs = Vec::new();
        for host in self.veths()?.into_iter().filter(|found| !is_marked(found)) {
            let (Some(peer), Some(netns)) = (host.peer, host.peer_netns) else { continue };
            let mut addresses = Vec::new();
            for family in Family::ALL {
                addresses.extend(self.addresses_there(&host, peer, netns, family)?);
            }
            pairs.push(LivePair { host, addresses });
        }
        Ok(pairs)
    }

    /// The pairs out of use that nobody has destroyed.
    pub fn retired(&mut self) -> Result<Retired, LinkError> {
        Ok(self.veths()?.into_iter().filter(is_marked).map(|found| found.link.index).collect())
    }

    fn veths(&mut self) -> Result<Vec<Found>, LinkError> {
        let links = self.socket.dump(&link::list(), Found::read).map_err(LinkError::new("list links"))?;
        Ok(links.into_iter().filter(|found| found.is("veth")).collect())
    }

    fn addresses_there(
        &mut self,
        host: &Found,
        peer: u32,
        netns: u32,
        family: Family,
    ) -> Result<Vec<IpAddr>, LinkError> {
        let mut elsewhere = true;
        let read = |message: Message<'_>| {
            elsewhere &= message.split(8)?.1.find(TARGET_NETNSID).is_some();
            address::Report::read(message).filter(|report| report.index == peer && report.is_global())
        };
        let reports = self.socket.dump(&address::list(family, Some(peer)).attr(TARGET_NETNSID, netns), read);
        let failed = || LinkError::new(format!("list addresses behind {}", host.link.name));
        let reports = match reports {
            // The namespace has just ended.
            Err(error) if error.errno() == Errno::INVAL => return Ok(Vec::new()),
            reports => reports.map_err(failed())?,
        };
        if !elsewhere {
            return Err(failed()(Error::from(Errno::OPNOTSUPP)));
        }
        Ok(reports.into_iter().map(|report| report.net.addr()).collect())
    }
}
