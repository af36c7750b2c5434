//! What a place's kernel counts of packets that it does not pass on, before and after.
//!
//! Surface: [`Counters`]. Read from proc(5): `net/snmp`, `net/netstat`, `net/snmp6` and `net/dev`.

use std::collections::BTreeMap;
use std::fs;

use crate::error::LabError;
use crate::place::Place;

/// Counters by name, like `IpExt.InNoRoutes` and `flannel.1.tx_dropped`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counters(BTreeMap<String, u64>);

/// Parts of the names of counters that tell of losses.
const TELLING: [&str; 14] = [
    "Discards",
    "NoRoutes",
    "AddrErrors",
    "HdrErrors",
    "UnknownProtos",
    "FragFails",
    "ReasmFails",
    "TooBig",
    "ReversePath",
    "Udp.NoPorts",
    "Udp6NoPorts",
    "TruncatedPkts",
    "CsumErrors",
    "DestUnreachs",
];
/// The columns of `net/dev` that tell of losses.
const COLUMNS: [(usize, &str); 4] = [(2, "rx_errors"), (3, "rx_dropped"), (10, "tx_errors"), (11, "tx_dropped")];

impl Counters {
    /// Reads those of a place.
    pub(super) fn read(place: &Place) -> Result<Self, LabError> {
        let file = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default();
        let texts = place.inside(|| ["snmp", "netstat", "snmp6", "dev"].map(file))?;
        let [snmp, netstat, ipv6, devices] = &texts;
        let mut all = BTreeMap::new();
        all.extend(pairs(snmp));
        all.extend(pairs(netstat));
        all.extend(ipv6.lines().filter_map(|line| {
            let (name, value) = line.split_once(char::is_whitespace)?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        }));
        all.retain(|name, _| TELLING.iter().any(|part| name.contains(part)));
        all.extend(of_devices(devices));
        Ok(Self(all))
    }

    /// Those that grew, with the growth.
    pub(super) fn since(&self, before: &Self) -> Vec<(String, u64)> {
        let grown = self.0.iter().map(|(name, now)| {
            let was = before.0.get(name).copied().unwrap_or_default();
            (name.clone(), now.saturating_sub(was))
        });
        grown.filter(|(_, growth)| *growth > 0).collect()
    }
}

/// `net/snmp` and `net/netstat` have two lines for each protocol: names, then values.
fn pairs(text: &str) -> Vec<(String, u64)> {
    let lines: Vec<&str> = text.lines().collect();
    let both = lines.chunks(2).filter_map(|two| Some((two.first()?.split_once(':')?, two.get(1)?.split_once(':')?.1)));
    both.flat_map(|((protocol, names), values)| {
        let values = values.split_whitespace().map(str::parse);
        names
            .split_whitespace()
            .zip(values)
            .filter_map(move |(name, value)| Some((format!("{protocol}.{name}"), value.ok()?)))
    })
    .collect()
}

fn of_devices(text: &str) -> Vec<(String, u64)> {
    let devices = text.lines().filter_map(|line| line.split_once(':'));
    devices
        .flat_map(|(device, columns)| {
            let columns: Vec<u64> = columns.split_whitespace().filter_map(|column| column.parse().ok()).collect();
            COLUMNS
                .into_iter()
                .filter_map(move |(at, name)| Some((format!("{}.{name}", device.trim()), *columns.get(at)?)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_proc_are_read() {
        let text = "Ip: Forwarding InDiscards\nIp: 1 7\nUdp: NoPorts\nUdp: 3\n";
        let expected = [("Ip.Forwarding", 1), ("Ip.InDiscards", 7), ("Udp.NoPorts", 3)];
        assert_eq!(pairs(text), expected.map(|(name, value)| (name.to_owned(), value)));
        let text = "Inter-|   Receive\n face |bytes\n  cni0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        let expected = [("cni0.rx_errors", 3), ("cni0.rx_dropped", 4), ("cni0.tx_errors", 11), ("cni0.tx_dropped", 12)];
        assert_eq!(of_devices(text), expected.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn only_what_grew_is_told() {
        let of = |value| Counters([("Ip.InDiscards".to_owned(), value), ("x".to_owned(), 1)].into());
        assert_eq!(of(5).since(&of(3)), [("Ip.InDiscards".to_owned(), 2)]);
        assert!(of(5).since(&of(5)).is_empty());
    }
}
