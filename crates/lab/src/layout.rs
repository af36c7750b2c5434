//! Who is in the lab and under which addresses: pure, and the same for the same options.
//!
//! ```text
//!   node1 ─┐ segment 1              segment 2 ┌─ node2          outside
//!   node3 ─┴ 192.0.2.0/24 ── router ── 198.51.100.0/24 ┴─ node4     └── 203.0.113.0/24 ── router
//! ```
//! Underlay addresses are the documentation prefixes of RFC 5737 and RFC 3849.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_core::addr::{Dual, Family};
use ipnet::IpNet;

use crate::options::LabOptions;

/// The network device by which a node or pod is connected.
pub const EXTERNAL: &str = "eth0";
/// The bridge of a node's pods.
pub const BRIDGE: &str = "cni0";
/// The router's name.
pub const ROUTER: &str = "router";
/// The name of the host that is not part of the network.
pub const OUTSIDE: &str = "outside";
/// The router's device towards [`OUTSIDE`].
pub const OUTSIDE_PORT: &str = "out0";

/// Everybody's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The segments that nodes are on.
    pub segments: Vec<Segment>,
    /// The segment of the outside host.
    pub outside_segment: Segment,
    /// The outside host's address.
    pub outside: Dual<IpNet>,
    /// The nodes in order.
    pub nodes: Vec<Seat>,
    /// The servers of etcd in order, all on the first segment; no pods there.
    pub etcd: Vec<Seat>,
}

/// One broadcast domain of the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The router's device on it.
    pub device: String,
    /// The router's address on it, with the prefix.
    pub router: Dual<IpNet>,
}

impl Segment {
    fn new(number: u8, device: &str, families: &LabOptions) -> Self {
        Self { device: device.to_owned(), router: addresses(families, number, 1) }
    }

    /// The router's address, which is everybody's gateway.
    pub fn gateway(&self) -> Dual<IpAddr> {
        self.router.map(|_, net| net.addr())
    }

    /// The prefixes.
    pub fn prefixes(&self) -> Dual<IpNet> {
        self.router.map(|_, net| net.trunc())
    }
}

/// A node's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Its name: `node1`, …, `etcd1`, …
    pub name: String,
    /// Index of its segment.
    pub segment: usize,
    /// The address of its external interface.
    pub address: Dual<IpNet>,
    /// The names of its pods: `pod1-1`, …
    pub pods: Vec<String>,
    /// The pod subnets that its flanneld leases: `10.244.1.0/24` for the first node, …; none if the network is the user's.
    pub subnets: Dual<IpNet>,
}

/// The address of a host on a documentation prefix: 0 and 1 are the nodes' segments, 2 is the outside's.
fn addresses(options: &LabOptions, segment: u8, host: u8) -> Dual<IpNet> {
    let [a, b, c] = [[192, 0, 2], [198, 51, 100], [203, 0, 113]][usize::from(segment)];
    let looks_decimal = u16::from(host / 100) * 0x60 + u16::from(host / 10) * 6 + u16::from(host);
    let ipv6 = Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(segment) + 1, 0, 0, 0, looks_decimal);
    Dual::from_fn(|family| {
        options.speaks(family).then(|| match family {
            Family::V4 => net(Ipv4Addr::new(a, b, c, host).into(), 24),
            Family::V6 => net(ipv6.into(), 64),
        })
    })
}

/// All that addresses of the underlay are taken from (RFC 5737, RFC 3849).
pub(crate) fn underlay() -> Vec<IpNet> {
    let all = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"];
    all.iter().filter_map(|net| net.parse().ok()).collect()
}

/// The subnet of a node's number in each pod network of the lab.
fn subnets(options: &LabOptions, number: u8) -> Dual<IpNet> {
    let ipv6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, 0);
    Dual::from_fn(|family| {
        (options.config.is_none() && options.speaks(family)).then(|| match family {
            Family::V4 => net(Ipv4Addr::new(10, 244, number, 0).into(), 24),
            Family::V6 => net(ipv6.into(), 64),
        })
    })
}

fn net(address: IpAddr, length: u8) -> IpNet {
    IpNet::new(address, length).unwrap_or_else(|_| IpNet::from(address))
}

/// The host number of the first server of etcd, and of the first node on its segment.
const FIRST_SERVER: usize = 2;
const FIRST_NODE: usize = 11;
/// The host number on which an address is put that a node is moved to.
const MOVED: u8 = 120;

impl Layout {
    /// Seats everybody.
    pub fn new(options: &LabOptions) -> Self {
        let segments = ["seg1", "seg2"].into_iter().zip(0..).take(options.segments);
        let seat = |index: usize| Seat {
            name: format!("node{}", index + 1),
            segment: index % options.segments,
            address: addresses(options, (index % options.segments) as u8, (FIRST_NODE + index) as u8),
            pods: (1..=options.pods).map(|pod| format!("pod{}-{pod}", index + 1)).collect(),
            subnets: subnets(options, (index + 1) as u8),
        };
        let server = |index: usize| Seat {
            name: format!("etcd{}", index + 1),
            segment: 0,
            address: addresses(options, 0, (FIRST_SERVER + index) as u8),
            pods: Vec::new(),
            subnets: Dual::default(),
        };
        Self {
            segments: segments.map(|(device, number)| Segment::new(number, device, options)).collect(),
            outside_segment: Segment::new(2, OUTSIDE_PORT, options),
            outside: addresses(options, 2, 10),
            nodes: (0..options.nodes).map(seat).collect(),
            etcd: (0..options.store.members()).map(server).collect(),
        }
    }

    /// Another, free address for a node on its own segment.
    pub fn moved(&self, options: &LabOptions, node: usize) -> Dual<IpNet> {
        addresses(options, self.nodes[node].segment as u8, MOVED + node as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::FamilyName;

    #[test]
    fn nodes_take_turns_on_the_segments() {
        let options = LabOptions {
            segments: 2,
            pods: 1,
            families: vec![FamilyName::Ipv4, FamilyName::Ipv6],
            ..LabOptions::default()
        };
        let layout = Layout::new(&options);
        let seats: Vec<_> = layout
            .nodes
            .iter()
            .map(|seat| {
                let addresses: Vec<_> = seat.address.values().map(ToString::to_string).collect();
                let subnets: Vec<_> = seat.subnets.values().map(ToString::to_string).collect();
                format!("{} {} {} {}", seat.name, addresses.join(" "), seat.pods.join(" "), subnets.join(" "))
            })
            .collect();
        assert_eq!(
            seats,
            [
                "node1 192.0.2.11/24 2001:db8:0:1::11/64 pod1-1 10.244.1.0/24 fd00:10:244:1::/64",
                "node2 198.51.100.12/24 2001:db8:0:2::12/64 pod2-1 10.244.2.0/24 fd00:10:244:2::/64",
                "node3 192.0.2.13/24 2001:db8:0:1::13/64 pod3-1 10.244.3.0/24 fd00:10:244:3::/64",
            ]
        );
        assert_eq!(layout.segments[1].gateway().v4.unwrap().to_string(), "198.51.100.1");
        assert_eq!(layout.outside.v4.unwrap().to_string(), "203.0.113.10/24");
    }
}
