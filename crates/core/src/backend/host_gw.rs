//! host-gw: each peer's subnet is routed to the peer, which must be on the same link. No options, no published data.

use std::net::IpAddr;

use crate::addr::Dual;
use crate::backend::gateway_route;
use crate::json::Fields;
use crate::node::{External, NodeError};
use crate::plan::{Ground, Peer, PeerPlan, Skipped};

/// `Backend.Type` and `BackendType`.
pub const TYPE: &str = "host-gw";

/// Options of Windows nodes in the same config, without a meaning here.
const OF_WINDOWS: [&str; 2] = ["Name", "DNSServerList"];

/// Takes the options out of the config's `Backend`.
pub(crate) fn read(options: &mut Fields) {
    for key in OF_WINDOWS {
        options.take(key);
    }
}

/// Every peer must be on the external interface's link, and routes must lead to addresses that hosts own.
pub(super) fn accepts(external: &Dual<External>, public_ip: &Dual<IpAddr>) -> Result<(), NodeError> {
    let nat = external.iter().find(|(family, external)| public_ip.get(*family) != Some(&external.address));
    match nat.and_then(|(family, external)| Some((external, *public_ip.get(family)?))) {
        Some((external, public)) => {
            Err(NodeError::PublicIpNotLocal { public, link: external.name, address: external.address })
        }
        None => Ok(()),
    }
}

pub(super) fn plan_peer(ground: &Ground, peer: &Peer, plan: &mut PeerPlan) {
    let Some(external) = ground.node.external.get(peer.family) else { return };
    let field = peer.public_ip_field();
    let refusal = if external.address == peer.public_ip {
        Some(format!("{} is this node's own public IP", peer.public_ip))
    } else if !ground.node.is_on_link(peer.public_ip) {
        let why = "host-gw needs all nodes on one link; use vxlan where there is a router between";
        Some(format!("{} is not on the link of {}: {why}", peer.public_ip, external.name))
    } else {
        let other = peer.earlier_at_address(ground);
        other.map(|other| format!("{} is the public IP of the earlier lease {other} too", peer.public_ip))
    };
    match refusal {
        Some(why) => plan.remarks.push(Skipped::refuse(field, why)),
        None => plan.objects.push(gateway_route(peer, external.name)),
    }
}
