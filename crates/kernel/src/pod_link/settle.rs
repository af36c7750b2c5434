//! Duplicate address detection: waits until the kernel has looked whether somebody else has a link's IPv6 addresses.
//!
//! Surface: [`settle`]. The kernel tells when it is done; nothing is asked again and again.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use flannel_core::addr::{Family, LinkName};
use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Found, LinkError, Links};
use crate::netlink::{Error, NoticeSocket, Protocol, address};

/// A link has an address that it cannot use.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// Somebody else has it.
    #[error("link {name} has address {net} in DADFAILED state")]
    Duplicate {
        /// The link.
        name: LinkName,
        /// The address.
        net: IpNet,
    },
    /// The kernel is still looking, or cannot.
    #[error("link {name} still has tentative addresses after {limit:?}")]
    Tentative {
        /// The link.
        name: LinkName,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The kernel could not be asked.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Waits until no IPv6 address of a link in this thread's namespace is tentative, for so long at most.
pub fn settle(found: &Found, limit: Duration) -> Result<(), SettleError> {
    let name = found.link.name;
    let failed = |error: Error| LinkError::new(format!("wait for the addresses of {name}"))(error);
    let begun = Instant::now();
    let mut notices = NoticeSocket::open(Protocol::Route, &[libc::RTNLGRP_IPV6_IFADDR]).map_err(failed)?;
    let mut links = Links::here()?;
    while is_tentative(&mut links, found)? {
        let left = limit.checked_sub(begun.elapsed()).ok_or(SettleError::Tentative { name, limit })?;
        let left = Timespec::try_from(left).ok();
        // An interrupted wait, and notices that were lost, are reasons to look again.
        _ = poll(&mut [PollFd::new(&notices.as_fd(), PollFlags::IN)], left.as_ref());
        _ = notices.drain(|_| ());
    }
    Ok(())
}

fn is_tentative(links: &mut Links, found: &Found) -> Result<bool, SettleError> {
    let name = found.link.name;
    let reports = links.socket.dump(&address::list(Family::V6, Some(found.link.index)), address::Report::read);
    let reports = reports.map_err(LinkError::new(format!("list addresses of {name}")))?;
    let mut own = reports.iter().filter(|report| report.index == found.link.index);
    if let Some(report) = own.clone().find(|report| report.flags & libc::IFA_F_DADFAILED != 0) {
        return Err(SettleError::Duplicate { name, net: report.net });
    }
    Ok(own.any(|report| report.flags & libc::IFA_F_TENTATIVE != 0))
}
