//! Who has which address in a cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_core::addr::Family;

/// The addresses of the network that connects the hosts; in the second family a unique local prefix (RFC 4193), as all below.
fn host(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(172, 30, 0, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

/// The length of their prefix.
pub(crate) fn prefix(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

/// Where the control plane is, which is the router too.
pub(crate) fn control(family: Family) -> IpAddr {
    host(family, 1)
}

/// Where a node is, by its place in the order from 0.
pub(crate) fn node(family: Family, index: usize) -> IpAddr {
    host(family, u8::try_from(index).unwrap_or(u8::MAX).saturating_add(11))
}

/// The network of the pods.
pub(crate) fn pods(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.244.0.0/16",
        Family::V6 => "fd00:10:244::/56",
    }
}

/// The network of the services.
pub(crate) fn services(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.96.0.0/16",
        Family::V6 => "fd00:10:96::/112",
    }
}

/// A text of each family, as lists in arguments are.
pub(crate) fn list<T: ToString>(families: &[Family], of: impl Fn(Family) -> T) -> String {
    families.iter().map(|family| of(*family).to_string()).collect::<Vec<_>>().join(",")
}
