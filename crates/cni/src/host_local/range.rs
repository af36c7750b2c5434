//! Ranges of addresses: which belong to them, and which free one comes next.
//!
//! Pure arithmetic on numbers of 128 bits, one code path for both families.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_core::addr::Family;
use ipnet::IpNet;
use serde::Deserialize;

use super::IpamError;
use crate::protocol::result::{IpConfig, as_optional_text, as_text};

/// A range as a configuration writes it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeConf {
    /// The subnet; host bits are an error.
    #[serde(with = "as_text")]
    pub subnet: IpNet,
    /// The first address to give; the subnet's second by default.
    #[serde(default, with = "as_optional_text")]
    pub range_start: Option<IpAddr>,
    /// The last address to give; the subnet's last by default, but never the IPv4 broadcast address.
    #[serde(default, with = "as_optional_text")]
    pub range_end: Option<IpAddr>,
    /// The gateway, which is never given; the subnet's second address by default.
    #[serde(default, with = "as_optional_text")]
    pub gateway: Option<IpAddr>,
}

/// A range of addresses in a subnet, ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    start: IpAddr,
    end: IpAddr,
    gateway: IpAddr,
}

impl TryFrom<RangeConf> for Range {
    type Error = BadRange;

    fn try_from(conf: RangeConf) -> Result<Self, BadRange> {
        let subnet = conf.subnet;
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(BadRange::TooSmall(subnet));
        }
        if subnet.addr() != subnet.network() {
            return Err(BadRange::HostBits(subnet, subnet.trunc()));
        }
        let second = add(subnet.network(), 1);
        let last = match Family::of_net(subnet) {
            Family::V4 => from_number(Family::V4, number(subnet.broadcast()) - 1),
            Family::V6 => subnet.broadcast(),
        };
        let inside = |name, address: Option<IpAddr>, default| match address {
            Some(address) if !subnet.contains(&address) => Err(BadRange::Outside { name, address, subnet }),
            Some(address) => Ok(address),
            None => Ok(default),
        };
        let start = inside("rangeStart", conf.range_start, second)?;
        let end = inside("rangeEnd", conf.range_end, last)?;
        if number(start) > number(end) {
            return Err(BadRange::Backwards(start, end));
        }
        let gateway = conf.gateway.unwrap_or(second);
        if Family::of(gateway) != Family::of_net(subnet) {
            return Err(BadRange::OtherFamily { gateway, subnet });
        }
        Ok(Self { subnet, start, end, gateway })
    }
}

impl Range {
    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of_net(self.subnet)
    }

    fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family() && (number(self.start)..=number(self.end)).contains(&number(address))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start) || other.contains(self.start)
    }

    fn give(&self, address: IpAddr) -> Option<IpConfig> {
        let address = IpNet::new(address, self.subnet.prefix_len()).ok()?;
        Some(IpConfig { interface: None, address, gateway: Some(self.gateway) })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// Ranges of one family of which a container gets one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl RangeSet {
    /// Checks that the ranges are of one family and do not overlap.
    pub fn new(confs: impl IntoIterator<Item = RangeConf>) -> Result<Self, BadRange> {
        let ranges = confs.into_iter().map(Range::try_from).collect::<Result<Vec<_>, _>>()?;
        let first = ranges.first().ok_or(BadRange::Empty)?;
        if ranges.iter().any(|range| range.family() != first.family()) {
            return Err(BadRange::MixedFamilies);
        }
        let set = Self(ranges);
        for (index, a) in set.0.iter().enumerate() {
            if let Some(b) = set.0[index + 1..].iter().find(|b| a.overlaps(b)) {
                return Err(BadRange::Overlap(a.to_string(), b.to_string()));
            }
        }
        Ok(set)
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        self.0[0].family()
    }

    /// Whether an address lies in one of the ranges.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(address))
    }

    /// Whether two sets share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().any(|a| other.0.iter().any(|b| a.overlaps(b)))
    }

    /// The address asked for, if it may be given.
    pub fn requested(&self, wish: IpAddr, holder: Option<String>) -> Result<IpConfig, IpamError> {
        let range = self.0.iter().find(|range| range.contains(wish));
        let range = range.ok_or_else(|| IpamError::NotInAnyRange(vec![wish]))?;
        if wish == range.gateway {
            return Err(IpamError::Gateway(wish));
        }
        let given = range.give(wish).filter(|_| holder.is_none());
        given.ok_or_else(|| IpamError::Taken { address: wish, set: self.to_string(), holder })
    }

    /// The first free address after the one given last, going round through all ranges once. `taken` bounds the search:
    /// as many steps may fail, and one for each gateway.
    pub fn next_free(&self, last: Option<IpAddr>, taken: usize, free: impl Fn(IpAddr) -> bool) -> Option<IpConfig> {
        let (mut at, mut next) = self.after(last);
        for _ in 0..=taken + self.0.len() * 2 {
            let range = &self.0[at];
            if next != range.gateway && free(next) {
                return range.give(next);
            }
            (at, next) = self.step(at, next);
        }
        None
    }

    /// Where the search begins: behind the address given last, or at the first range's start.
    fn after(&self, last: Option<IpAddr>) -> (usize, IpAddr) {
        let found = last.and_then(|last| Some((self.0.iter().position(|range| range.contains(last))?, last)));
        found.map_or((0, self.0[0].start), |(at, last)| self.step(at, last))
    }

    fn step(&self, at: usize, address: IpAddr) -> (usize, IpAddr) {
        if address == self.0[at].end {
            let next = (at + 1) % self.0.len();
            (next, self.0[next].start)
        } else {
            (at, add(address, 1))
        }
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&ranges.join(","))
    }
}

/// A range that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadRange {
    /// No room for two addresses.
    #[error("network {0} too small to allocate from")]
    TooSmall(IpNet),
    /// The subnet is not on its boundary.
    #[error("network {0} has host bits set, did you mean {1}?")]
    HostBits(IpNet, IpNet),
    /// An end outside the subnet.
    #[error("{name} {address} not in network {subnet}")]
    Outside {
        /// Which key.
        name: &'static str,
        /// Its value.
        address: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// A gateway that no one in the subnet could reach.
    #[error("gateway {gateway} is not of the family of network {subnet}")]
    OtherFamily {
        /// The gateway.
        gateway: IpAddr,
        /// The subnet.
        subnet: IpNet,
    },
    /// The start lies behind the end.
    #[error("rangeStart {0} is behind rangeEnd {1}")]
    Backwards(IpAddr, IpAddr),
    /// A set without ranges.
    #[error("empty range set")]
    Empty,
    /// Both families in a set.
    #[error("mixed address families in one range set")]
    MixedFamilies,
    /// Two ranges share addresses.
    #[error("ranges {0} and {1} overlap")]
    Overlap(String, String),
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn from_number(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(number as u32).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

fn add(address: IpAddr, steps: u128) -> IpAddr {
    from_number(Family::of(address), number(address).wrapping_add(steps))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(json: &str) -> Result<RangeSet, String> {
        let confs: Vec<RangeConf> = serde_json::from_str(json).map_err(|error| error.to_string())?;
        RangeSet::new(confs).map_err(|error| error.to_string())
    }

    fn given(set: &RangeSet, last: &str, taken: &[&str]) -> Option<String> {
        let taken: Vec<IpAddr> = taken.iter().map(|address| address.parse().unwrap()).collect();
        let ip = set.next_free(last.parse().ok(), taken.len(), |address| !taken.contains(&address))?;
        Some(format!("{} via {}", ip.address, ip.gateway.unwrap()))
    }

    #[test]
    fn bad_ranges_say_why() {
        for (json, expect) in [
            (r"[]", "empty range set"),
            (r#"[{"subnet":"10.1.0.0/31"}]"#, "network 10.1.0.0/31 too small to allocate from"),
            (r#"[{"subnet":"fd00::/127"}]"#, "network fd00::/127 too small to allocate from"),
            (r#"[{"subnet":"10.1.0.1/24"}]"#, "network 10.1.0.1/24 has host bits set, did you mean 10.1.0.0/24?"),
            (r#"[{"subnet":"10.1.0.0/24","rangeStart":"10.2.0.1"}]"#, "rangeStart 10.2.0.1 not in network 10.1.0.0/24"),
            (r#"[{"subnet":"10.1.0.0/24","rangeEnd":"fd00::1"}]"#, "rangeEnd fd00::1 not in network 10.1.0.0/24"),
            (
                r#"[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","rangeEnd":"10.1.0.8"}]"#,
                "rangeStart 10.1.0.9 is behind rangeEnd 10.1.0.8",
            ),
            (
                r#"[{"subnet":"10.1.0.0/24","gateway":"fd00::1"}]"#,
                "gateway fd00::1 is not of the family of network 10.1.0.0/24",
            ),
            (r#"[{"subnet":"10.1.0.0/24"},{"subnet":"fd00::/64"}]"#, "mixed address families in one range set"),
            (
                r#"[{"subnet":"10.1.0.0/24"},{"subnet":"10.1.0.0/16"}]"#,
                "ranges 10.1.0.1-10.1.0.254 and 10.1.0.1-10.1.255.254 overlap",
            ),
        ] {
            assert_eq!(set(json).unwrap_err(), expect);
        }
    }

    #[test]
    fn addresses_go_round() {
        let small = set(r#"[{"subnet":"10.1.0.0/29"}]"#).unwrap();
        assert_eq!(small.to_string(), "10.1.0.1-10.1.0.6");
        assert_eq!(given(&small, "", &[]).unwrap(), "10.1.0.2/29 via 10.1.0.1");
        assert_eq!(given(&small, "10.1.0.4", &[]).unwrap(), "10.1.0.5/29 via 10.1.0.1");
        assert_eq!(given(&small, "10.1.0.6", &[]).unwrap(), "10.1.0.2/29 via 10.1.0.1");
        assert_eq!(given(&small, "10.9.0.6", &["10.1.0.2"]).unwrap(), "10.1.0.3/29 via 10.1.0.1");
        let full = ["10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"];
        assert_eq!(given(&small, "10.1.0.3", &full), None);
        assert_eq!(given(&small, "10.1.0.3", &full[1..]).unwrap(), "10.1.0.2/29 via 10.1.0.1");
    }

    #[test]
    fn several_ranges_are_one_ring_with_gateways_of_their_own() {
        let two = set(r#"[{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.5","rangeEnd":"10.1.0.6"},
                {"subnet":"10.2.0.0/24","rangeStart":"10.2.0.8","rangeEnd":"10.2.0.9","gateway":"10.2.0.8"}]"#)
        .unwrap();
        assert_eq!(given(&two, "10.1.0.6", &[]).unwrap(), "10.2.0.9/24 via 10.2.0.8");
        assert_eq!(given(&two, "10.2.0.9", &[]).unwrap(), "10.1.0.5/24 via 10.1.0.1");
        assert_eq!(given(&two, "10.2.0.9", &["10.1.0.5", "10.1.0.6", "10.2.0.9"]), None);
    }

    #[test]
    fn the_last_address_of_an_ipv6_subnet_is_given() {
        let six = set(r#"[{"subnet":"fd00::/126"}]"#).unwrap();
        assert_eq!(given(&six, "fd00::2", &[]).unwrap(), "fd00::3/126 via fd00::1");
        assert_eq!(given(&six, "fd00::3", &[]).unwrap(), "fd00::2/126 via fd00::1");
    }

    #[test]
    fn requests_are_checked() {
        let one = set(r#"[{"subnet":"10.1.0.0/24"}]"#).unwrap();
        let holder = |free| if free { None } else { Some("c1 (eth0)".to_owned()) };
        let ask =
            |wish: &str, free| one.requested(wish.parse().unwrap(), holder(free)).map_err(|error| error.to_string());
        assert_eq!(ask("10.1.0.77", true).unwrap().address.to_string(), "10.1.0.77/24");
        assert!(ask("10.1.0.1", true).unwrap_err().contains("is the subnet's gateway"));
        assert!(ask("10.1.0.77", false).unwrap_err().contains("10.1.0.77 is not available"));
    }
}
