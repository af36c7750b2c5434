//! Whether the packets of pods get past the forward hook of a host's packet filter, whoever wrote its rules.
//!
//! An accept in one table of nf_tables does not keep another from dropping, so flannel's own rules do not settle it. Surface:
//! [`Lookout`] follows a [`Packet`] through the chains of nf_tables ([`crate::nft`]) and of iptables-legacy ([`crate::x_tables`]),
//! without a program and without sending anything, and names each [`Block`]. What cannot be known of a packet (a named set, a
//! rate) makes a rule doubtful; a packet that might get through counts as one that does. Nothing of others is ever changed.

mod block;
mod sample;
pub(crate) mod xt;

use std::io;

use flannel_core::addr::Family;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

pub use self::block::Block;
pub(crate) use self::block::System;
pub use self::sample::Packet;
pub(crate) use self::sample::{Sample, TCP};
use crate::netlink::Error;
use crate::nft::Nft;
use crate::x_tables;

/// The rules of a network namespace, looked at when they changed.
#[derive(Debug, Default)]
pub struct Lookout {
    nft: Option<Nft>,
    seen: Option<Seen>,
}

/// What the last look was at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    generation: Option<u32>,
    legacy: [Option<u64>; 2],
    packets: Vec<Packet>,
}

/// The rules could not be followed.
#[derive(Debug, thiserror::Error)]
pub enum PassageError {
    /// The kernel refused to tell of nf_tables.
    #[error("cannot read the rules of others in nf_tables: {0}")]
    Nft(#[from] Error),
    /// The kernel refused to tell of interfaces or of iptables-legacy.
    #[error("cannot read the rules of others: {0}")]
    Legacy(#[from] io::Error),
}

/// What a look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sight {
    /// What drops the packets, each place once.
    pub blocks: Vec<Block>,
    /// Families in which iptables-legacy has chains of flannel's.
    pub leftovers: Vec<Family>,
}

impl Lookout {
    /// Follows the packets, in the network namespace of this thread; none if rules and packets are what they were at the last
    /// look. That costs next to nothing then.
    pub fn look(&mut self, packets: &[Packet]) -> Result<Option<Sight>, PassageError> {
        if self.nft.is_none() {
            self.nft = Nft::open()?;
        }
        let generation = self.nft.as_mut().map(Nft::generation).transpose()?;
        let legacy = Family::ALL.map(|family| x_tables::passage::digest(family).ok());
        let seen = Seen { generation, legacy, packets: packets.to_vec() };
        if self.seen.as_ref() == Some(&seen) {
            return Ok(None);
        }
        let sight = self.follow(packets)?;
        self.seen = Some(seen);
        Ok(Some(sight))
    }

    fn follow(&mut self, packets: &[Packet]) -> Result<Sight, PassageError> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        let socket = socket.map_err(io::Error::from)?;
        let mut sight =
            Sight { leftovers: Family::ALL.into_iter().filter(|f| leftover(*f)).collect(), ..Sight::default() };
        for packet in packets {
            let Some(sample) = Sample::of(packet, &socket) else { continue };
            let found = self.nft.as_mut().map(|nft| nft.blocks(&sample)).transpose()?.unwrap_or_default();
            for block in found.into_iter().chain(x_tables::passage::blocks(&sample)?) {
                if !sight.blocks.contains(&block) {
                    sight.blocks.push(block);
                }
            }
        }
        Ok(sight)
    }
}

/// Whether iptables-legacy has chains of flannel's. A table that cannot be read has none to be told of.
fn leftover(family: Family) -> bool {
    x_tables::passage::chains(family).is_ok_and(|chains| chains.iter().any(|chain| chain.starts_with("FLANNEL-")))
}
