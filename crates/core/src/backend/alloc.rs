//! alloc: a lease, `subnet.env` and the packet rules, and no data path: the routes to other nodes are somebody else's (a cloud's route
//! table, a routing daemon). No options, no published data, no peers.

use crate::lease::Attributes;

/// `Backend.Type`. As `BackendType` nothing is published.
pub const TYPE: &str = "alloc";

pub(super) fn attributes() -> Attributes {
    Attributes::Other("".into())
}
