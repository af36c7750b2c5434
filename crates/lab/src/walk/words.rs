//! Kernel objects in the words of `ip` and `bridge`: routes, neighbours, forwarding entries.
//!
//! Pure. What flannel's readers never meet (metrics, nexthop flags, multipath weights) is left out.

use std::fmt::Write;
use std::net::IpAddr;

use flannel_core::addr::{Family, Mac};
use flannel_kernel::netlink::neigh::{Entry, Report as Neigh};
use flannel_kernel::netlink::route::Report as Route;

/// `RTPROT_*`, `RT_SCOPE_*` and `RTN_*` of `linux/rtnetlink.h` that `ip` shows by a name.
const PROTOCOLS: [(u8, &str); 4] = [(1, "redirect"), (2, "kernel"), (4, "static"), (9, "ra")];
const SCOPES: [(u8, &str); 3] = [(200, "site"), (253, "link"), (254, "host")];
const KINDS: [(u8, &str); 8] = [
    (2, "local"),
    (3, "broadcast"),
    (4, "anycast"),
    (5, "multicast"),
    (6, "blackhole"),
    (7, "unreachable"),
    (8, "prohibit"),
    (9, "throw"),
];
/// `RTPROT_BOOT`: what `ip route add` and flannel use, which `ip` does not show.
const BOOT: u8 = 3;
/// `RT_TABLE_MAIN` and `RT_TABLE_LOCAL`.
const MAIN: u32 = 254;
const LOCAL: u32 = 255;

fn named<T: PartialEq>(names: &[(T, &'static str)], number: &T) -> Option<&'static str> {
    names.iter().find(|(known, _)| known == number).map(|(_, name)| *name)
}

/// A route's kind where it is not unicast: `blackhole`, `local`, …
pub(super) fn kind(route: &Route) -> Option<&'static str> {
    named(&KINDS, &route.kind)
}

/// The answer to a question about one packet, as `ip route get` prints it.
pub(super) fn answer(to: IpAddr, from: Option<IpAddr>, input: Option<&str>, route: &Route, dev: &str) -> String {
    let mut text = kind(route).map_or_else(String::new, |kind| format!("{kind} "));
    let _ = write!(text, "{to}");
    text.extend(from.map(|from| format!(" from {from}")));
    text.push_str(&hop(route, dev));
    text.extend(route.source.filter(|_| input.is_none()).map(|source| format!(" src {source}")));
    text.extend(input.map(|input| format!(" iif {input}")));
    text.extend(route.mtu.map(|mtu| format!(" mtu {mtu}")));
    text
}

/// An entry of a table, as `ip route show` prints it.
pub(super) fn entry(route: &Route, dev: &str) -> String {
    let mut text = kind(route).map_or_else(String::new, |kind| format!("{kind} "));
    let everything = route.destination.prefix_len() == 0;
    let whole = route.destination.prefix_len() == route.destination.max_prefix_len();
    text.push_str(&match (everything, whole) {
        (true, _) => "default".to_owned(),
        (_, true) => route.destination.addr().to_string(),
        _ => route.destination.to_string(),
    });
    text.push_str(&hop(route, dev));
    if ![MAIN, LOCAL].contains(&route.table) {
        let _ = write!(text, " table {}", route.table);
    }
    if route.protocol != BOOT {
        let protocol = named(&PROTOCOLS, &route.protocol).map_or_else(|| route.protocol.to_string(), str::to_owned);
        let _ = write!(text, " proto {protocol}");
    }
    if Family::of_net(route.destination) == Family::V4 {
        text.extend(named(&SCOPES, &route.scope).map(|scope| format!(" scope {scope}")));
    }
    text.extend(route.source.map(|source| format!(" src {source}")));
    if route.metric != 0 {
        let _ = write!(text, " metric {}", route.metric);
    }
    text.push_str(if route.hops.first().is_some_and(|hop| hop.onlink) { " onlink" } else { "" });
    text
}

fn hop(route: &Route, dev: &str) -> String {
    let gateway = route.hops.first().and_then(|hop| hop.gateway);
    let via = gateway.map_or_else(String::new, |gateway| format!(" via {gateway}"));
    if dev.is_empty() { via } else { format!("{via} dev {dev}") }
}

/// `NUD_*` of `linux/neighbour.h`.
const STATES: [(u16, &str); 8] = [
    (0x01, "INCOMPLETE"),
    (0x02, "REACHABLE"),
    (0x04, "STALE"),
    (0x08, "DELAY"),
    (0x10, "PROBE"),
    (0x20, "FAILED"),
    (0x40, "NOARP"),
    (0x80, "PERMANENT"),
];

/// The state of a neighbour entry, as `ip neigh` prints it.
pub(super) fn state(neigh: &Neigh) -> &'static str {
    STATES.iter().find(|(bit, _)| neigh.state & bit != 0).map_or("NONE", |(_, name)| name)
}

/// A neighbour entry, as `ip neigh` prints it.
pub(super) fn neigh(neigh: &Neigh, dev: &str) -> String {
    match neigh.entry {
        Entry::Neighbour(address, Some(mac)) => format!("{address} dev {dev} lladdr {mac} {}", state(neigh)),
        Entry::Neighbour(address, None) => format!("{address} dev {dev} {}", state(neigh)),
        Entry::Forwarding(mac, vtep) => forwarding(mac, dev, vtep, neigh.is_permanent()),
    }
}

/// A VXLAN device's forwarding entry, as `bridge fdb` prints it.
pub(super) fn forwarding(mac: Mac, dev: &str, vtep: Option<IpAddr>, permanent: bool) -> String {
    let dst = vtep.map_or_else(String::new, |vtep| format!(" dst {vtep}"));
    format!("{mac} dev {dev}{dst} self{}", if permanent { " permanent" } else { "" })
}

/// A bridge's forwarding entry, as `bridge fdb` prints it.
pub(super) fn bridge_entry(mac: Mac, port: &str, bridge: &str, local: bool) -> String {
    format!("{mac} dev {port} master {bridge}{}", if local { " permanent" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_kernel::netlink::route::Hop;

    fn route(destination: &str, kind: u8, gateway: Option<&str>) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            metric: 0,
            table: MAIN,
            protocol: BOOT,
            kind,
            scope: 0,
            tos: 0,
            cloned: false,
            hops: vec![Hop { index: 3, gateway: gateway.map(|text| text.parse().unwrap()), onlink: gateway.is_some() }],
            object: None,
            source: None,
            mtu: None,
        }
    }

    #[test]
    fn routes_read_as_ip_prints_them() {
        let peer = route("10.244.2.0/24", 1, Some("10.244.2.0"));
        assert_eq!(entry(&peer, "flannel.1"), "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink");
        let to = "10.244.2.2".parse().unwrap();
        let from = "10.244.1.2".parse().ok();
        assert_eq!(
            answer(to, from, Some("cni0"), &peer, "flannel.1"),
            "10.244.2.2 from 10.244.1.2 via 10.244.2.0 dev flannel.1 iif cni0"
        );
        let kernel = Route { protocol: 2, scope: 253, source: from, ..route("10.244.1.0/24", 1, None) };
        assert_eq!(entry(&kernel, "eth0"), "10.244.1.0/24 dev eth0 proto kernel scope link src 10.244.1.2");
        assert_eq!(entry(&route("0.0.0.0/0", 6, None), ""), "blackhole default");
        let ipv6 = Route { metric: 1024, ..route("fd00::1/128", 1, None) };
        assert_eq!(entry(&ipv6, "cni0"), "fd00::1 dev cni0 metric 1024");
    }

    #[test]
    fn neighbours_and_forwarding_entries_read_as_the_tools_print_them() {
        let (address, mac) = ("10.244.2.0".parse().unwrap(), "02:00:00:00:00:02".parse().unwrap());
        let report = |state, entry| Neigh { index: 3, state, entry };
        assert_eq!(
            neigh(&report(0x80, Entry::Neighbour(address, Some(mac))), "flannel.1"),
            "10.244.2.0 dev flannel.1 lladdr 02:00:00:00:00:02 PERMANENT"
        );
        assert_eq!(neigh(&report(0x20, Entry::Neighbour(address, None)), "cni0"), "10.244.2.0 dev cni0 FAILED");
        assert_eq!(
            neigh(&report(0x82, Entry::Forwarding(mac, "192.0.2.12".parse().ok())), "flannel.1"),
            "02:00:00:00:00:02 dev flannel.1 dst 192.0.2.12 self permanent"
        );
        assert_eq!(bridge_entry(mac, "veth1", "cni0", false), "02:00:00:00:00:02 dev veth1 master cni0");
    }
}
