//! `macspoofchk`: a port of a bridge may send with its own MAC only.
//!
//! Surface: [`SpoofCheck`]. What the rules look like stands in `nft/spoof_check.rs`.

use flannel_core::addr::{LinkName, Mac};

use crate::netlink::Error;
use crate::nft::Nft;

/// The check of one attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoofCheck {
    /// What names it, fit for names of chains.
    name: String,
}

impl SpoofCheck {
    /// That of a container's interface.
    pub fn of(container: &str, ifname: &str) -> Self {
        Self { name: format!("{container}-{ifname}") }
    }

    /// Begins to check a port.
    pub fn add(&self, port: LinkName, mac: Mac) -> Result<(), SpoofCheckError> {
        let mut nft = Nft::open().map_err(SpoofCheckError::Nft)?.ok_or(SpoofCheckError::NoNft)?;
        nft.check_spoofing(&self.name, port, mac).map_err(SpoofCheckError::Nft)
    }

    /// Ends it. Succeeds when there is none, and where there is no nf_tables.
    pub fn remove(&self) -> Result<(), SpoofCheckError> {
        let nft = Nft::open().map_err(SpoofCheckError::Nft)?;
        nft.map_or(Ok(()), |mut nft| nft.stop_checking(&self.name)).map_err(SpoofCheckError::Nft)
    }
}

/// The rules cannot be added or removed.
#[derive(Debug, thiserror::Error)]
pub enum SpoofCheckError {
    /// The kernel refused.
    #[error("cannot change the check of source MACs: nf_tables: {0}")]
    Nft(Error),
    /// The kernel has no nf_tables.
    #[error("cannot check source MACs: this kernel has no nf_tables")]
    NoNft,
}
