//! The small words of the network, each parsed once and then trusted: families, MACs, VNIs, MTUs, device names.
//!
//! Addresses and prefixes themselves are `std::net` and `ipnet`; this module holds what those lack.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first: the order of every loop over families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of a prefix.
    pub fn of_net(net: IpNet) -> Self {
        Self::of(net.addr())
    }

    /// Bits in an address: 32 or 128.
    pub const fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The all-zero address.
    pub const fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Self::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// At most one value for each address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dual<T> {
    /// The IPv4 value.
    pub v4: Option<T>,
    /// The IPv6 value.
    pub v6: Option<T>,
}

impl<T> Default for Dual<T> {
    fn default() -> Self {
        Self { v4: None, v6: None }
    }
}

impl<T> Dual<T> {
    /// Makes each family's value by a function.
    pub fn from_fn(mut make: impl FnMut(Family) -> Option<T>) -> Self {
        Self { v4: make(Family::V4), v6: make(Family::V6) }
    }

    /// Like [`Dual::from_fn`], ending at the first error.
    pub fn try_from_fn<E>(mut make: impl FnMut(Family) -> Result<Option<T>, E>) -> Result<Self, E> {
        Ok(Self { v4: make(Family::V4)?, v6: make(Family::V6)? })
    }

    /// The value of one family.
    pub fn get(&self, family: Family) -> Option<&T> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// The place of one family's value.
    pub fn slot(&mut self, family: Family) -> &mut Option<T> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Sets the value of one family.
    pub fn set(&mut self, family: Family, value: T) {
        *self.slot(family) = Some(value);
    }

    /// The values present, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &T)> {
        Family::ALL.into_iter().filter_map(|family| Some((family, self.get(family)?)))
    }

    /// The values present without their family, IPv4 first.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, value)| value)
    }

    /// The families present.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        self.iter().map(|(family, _)| family)
    }

    /// Whether neither family has a value.
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    /// Applies a function to each value.
    pub fn map<U>(&self, mut f: impl FnMut(Family, &T) -> U) -> Dual<U> {
        Dual::from_fn(|family| self.get(family).map(|value| f(family, value)))
    }
}

impl Dual<IpNet> {
    /// Collects prefixes, the first of each family winning.
    pub fn of_nets(nets: impl IntoIterator<Item = IpNet>) -> Self {
        let mut dual = Self::default();
        for net in nets {
            dual.slot(Family::of_net(net)).get_or_insert(net);
        }
        dual
    }
}

/// Why a word of the network does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}")]
pub struct BadWord {
    text: String,
    what: &'static str,
}

impl BadWord {
    fn new(text: impl Into<String>, what: &'static str) -> Self {
        Self { text: text.into(), what }
    }
}

/// An Ethernet address (EUI-48).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether a host may carry it: neither all zero nor a group address (IEEE 802 I/G bit).
    pub fn is_host(self) -> bool {
        self.0 != [0; 6] && self.0[0] & 1 == 0
    }

    /// A locally administered unicast address from six random bytes (IEEE 802 U/L bit set, I/G bit clear).
    pub fn local(mut random: [u8; 6]) -> Self {
        random[0] = random[0] & !1 | 2;
        Self(random)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        let bad = || BadWord::new(text, "a 6-byte MAC address");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        parts.next().is_none().then_some(Self(bytes)).ok_or_else(bad)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A VXLAN network identifier: 24 bits (RFC 7348 §4.1 calls it VXLAN segment ID).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// A VNI, if it fits in 24 bits.
    pub fn new(id: u32) -> Option<Self> {
        (id < 1 << 24).then_some(Self(id))
    }

    /// The number.
    pub fn id(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A maximum transmission unit in bytes, as `ip link` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(pub u32);

impl Mtu {
    /// The least MTU of a link that carries the family: RFC 791 (68) and RFC 8200 §5 (1280).
    pub fn least(family: Family) -> Self {
        Self(match family {
            Family::V4 => 68,
            Family::V6 => 1280,
        })
    }

    /// What is left for the inner packet after `overhead` bytes of encapsulation.
    pub fn less(self, overhead: u32) -> Self {
        Self(self.0.saturating_sub(overhead))
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a network device: 1 to 15 bytes, no `/`, no blank (`dev_valid_name` in the kernel's `net/core/dev.c`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName {
    bytes: [u8; 15],
    len: u8,
}

impl LinkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl FromStr for LinkName {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        let valid = (1..=15).contains(&text.len())
            && !matches!(text, "." | "..")
            && !text.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        if !valid {
            return Err(BadWord::new(text, "a network device name (1 to 15 bytes, no `/`, `:` or blank)"));
        }
        let mut bytes = [0; 15];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes, len: text.len() as u8 })
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether two prefixes share an address.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The first address of a subnet: what flannel calls the subnet's address, and gives to its own device.
pub fn subnet_address(subnet: IpNet) -> IpAddr {
    subnet.network()
}

/// The single-address prefix of an address: /32 or /128.
pub fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_parse_strictly() {
        assert_eq!("c6:d2:32:6f:8f:44".parse::<Mac>().unwrap().to_string(), "c6:d2:32:6f:8f:44");
        for bad in [
            "",
            "c6:d2:32:6f:8f",
            "c6:d2:32:6f:8f:44:00:11",
            "c6:d2:32:6f:8f:4",
            "+6:d2:32:6f:8f:44",
            "zz:d2:32:6f:8f:44",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_carry_neither_zero_nor_group_macs() {
        assert!(!Mac([0; 6]).is_host());
        assert!(!"01:00:5e:00:00:01".parse::<Mac>().unwrap().is_host());
        assert!(Mac::local([0xff; 6]).is_host());
        assert_eq!(Mac::local([0; 6]).0[0], 2);
    }

    #[test]
    fn device_names_are_the_kernels() {
        assert_eq!("flannel.1".parse::<LinkName>().unwrap().to_string(), "flannel.1");
        for bad in ["", ".", "..", "a/b", "a b", "sixteen-bytes-xx", "a\nb"] {
            assert!(bad.parse::<LinkName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_vni_has_24_bits() {
        assert!(Vni::new((1 << 24) - 1).is_some());
        assert!(Vni::new(1 << 24).is_none());
    }

    #[test]
    fn prefixes_overlap_when_one_holds_the_other() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert!(overlap(net("10.0.0.0/8"), net("10.1.0.0/24")));
        assert!(overlap(net("10.1.0.0/24"), net("0.0.0.0/0")));
        assert!(!overlap(net("10.1.0.0/24"), net("10.1.1.0/24")));
        assert!(!overlap(net("0.0.0.0/0"), net("::/0")));
    }
}
