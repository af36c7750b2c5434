//! `subnet.env`: what the daemon tells the CNI plugin, and its own next start, of this node (compat §5).
//!
//! Text to [`SubnetEnv`] and back. Where the file lies, and that it is replaced atomically, is the caller's business.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::addr::{Dual, Family, Mtu};
use crate::json::shown;

/// What `subnet.env` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The networks of the cluster, IPv4 first (`FLANNEL_NETWORK`, `FLANNEL_IPV6_NETWORK`); at least one.
    pub networks: Vec<IpNet>,
    /// This node's subnet of each family, host bits cleared; at least one. The file says the subnet's second address
    /// instead, which is the bridge's (`FLANNEL_SUBNET`, `FLANNEL_IPV6_SUBNET`).
    pub subnets: Dual<IpNet>,
    /// The MTU of pods (`FLANNEL_MTU`).
    pub mtu: Mtu,
    /// Flannel masquerades, so the bridge must not (`FLANNEL_IPMASQ`).
    pub ip_masq: bool,
}

/// Why a `subnet.env` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetEnvError {
    /// Keys are not there.
    #[error("{file} is missing {keys}")]
    Missing {
        /// The file's name.
        file: String,
        /// The keys, divided by `, `.
        keys: String,
    },
    /// A key holds something it must not.
    #[error("{file}: {key}={value} is not {what}")]
    Bad {
        /// The file's name.
        file: String,
        /// The key.
        key: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        what: &'static str,
    },
}

const MTU: &str = "FLANNEL_MTU";
const IP_MASQ: &str = "FLANNEL_IPMASQ";

const fn network_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "FLANNEL_NETWORK",
        Family::V6 => "FLANNEL_IPV6_NETWORK",
    }
}

const fn subnet_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "FLANNEL_SUBNET",
        Family::V6 => "FLANNEL_IPV6_SUBNET",
    }
}

const fn net_kind(family: Family) -> &'static str {
    match family {
        Family::V4 => "an IPv4 prefix such as 10.244.0.0/16",
        Family::V6 => "an IPv6 prefix such as 2001:db8:42::/56",
    }
}

const fn least_mtu(family: Family) -> &'static str {
    match family {
        Family::V4 => "the 68 bytes or more that IPv4 needs",
        Family::V6 => "the 1280 bytes or more that IPv6 needs",
    }
}

impl SubnetEnv {
    /// Reads the text of the file of this name. Lines that are not flannel's are passed over, the last of a repeated key counts,
    /// and networks may be several, divided by commas.
    pub fn parse(file: &str, text: &str) -> Result<Self, SubnetEnvError> {
        let lines = Lines { file, text };
        let mut networks = Vec::new();
        for family in Family::ALL {
            networks.extend(lines.nets(family, network_key(family))?);
        }
        let subnets = Dual::try_from_fn(|family| {
            let subnet = lines.value(subnet_key(family)).map(|value| lines.net(family, subnet_key(family), value));
            subnet.transpose()
        })?;
        lines.check(&networks, &subnets)?;
        let mtu = lines.value(MTU).map(|value| lines.mtu(value, &subnets)).transpose()?;
        match (mtu, lines.value(IP_MASQ)) {
            (Some(mtu), Some(masq)) if !networks.is_empty() && !subnets.is_empty() => {
                Ok(Self { networks, subnets, mtu: Mtu(mtu), ip_masq: masq == "true" })
            }
            (mtu, masq) => {
                Err(lines.missing([!networks.is_empty(), !subnets.is_empty(), mtu.is_some(), masq.is_some()]))
            }
        }
    }

    /// The networks of one family.
    pub fn networks_of(&self, family: Family) -> impl Iterator<Item = IpNet> + '_ {
        self.networks.iter().copied().filter(move |net| Family::of_net(*net) == family)
    }
}

/// The file's text, as `KEY=value` lines.
struct Lines<'a> {
    file: &'a str,
    text: &'a str,
}

impl<'a> Lines<'a> {
    fn value(&self, key: &str) -> Option<&'a str> {
        let mut lines = self.text.lines().rev().filter_map(|line| line.split_once('='));
        lines.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
    }

    fn word<T: FromStr>(&self, key: &'static str, value: &str, what: &'static str) -> Result<T, SubnetEnvError> {
        value.parse().map_err(|_| self.bad(key, value, what))
    }

    fn net(&self, family: Family, key: &'static str, value: &str) -> Result<IpNet, SubnetEnvError> {
        let net: IpNet = self.word(key, value.trim(), net_kind(family))?;
        if Family::of_net(net) == family { Ok(net.trunc()) } else { Err(self.bad(key, value, net_kind(family))) }
    }

    fn nets(&self, family: Family, key: &'static str) -> Result<Vec<IpNet>, SubnetEnvError> {
        self.value(key).into_iter().flat_map(|value| value.split(',')).map(|net| self.net(family, key, net)).collect()
    }

    /// A subnet lies in one of the networks, and has room for pods beside the bridge.
    fn check(&self, networks: &[IpNet], subnets: &Dual<IpNet>) -> Result<(), SubnetEnvError> {
        for (family, subnet) in subnets.iter() {
            let key = subnet_key(family);
            let mut of_family = networks.iter().filter(|net| Family::of_net(**net) == family).peekable();
            if of_family.peek().is_none() {
                return Err(SubnetEnvError::Missing {
                    file: self.file.to_owned(),
                    keys: network_key(family).to_owned(),
                });
            }
            let what = match () {
                () if !of_family.any(|net| net.contains(subnet)) => "inside the network that the file names",
                () if subnet.prefix_len() + 2 > family.bits() => "large enough for pods",
                () => continue,
            };
            return Err(self.bad(key, self.value(key).unwrap_or_default(), what));
        }
        Ok(())
    }

    /// The MTU, which is enough for every family that pods get an address of.
    fn mtu(&self, value: &str, subnets: &Dual<IpNet>) -> Result<u32, SubnetEnvError> {
        let mtu = self.word(MTU, value, "a number of bytes")?;
        let short = subnets.families().find(|family| Mtu(mtu) < Mtu::least(*family));
        short.map_or(Ok(mtu), |family| Err(self.bad(MTU, value, least_mtu(family))))
    }

    fn bad(&self, key: &'static str, value: &str, what: &'static str) -> SubnetEnvError {
        SubnetEnvError::Bad { file: self.file.to_owned(), key, value: shown(value), what }
    }

    /// Names what is not there, of: a network, a subnet, the MTU, the masquerade flag.
    fn missing(&self, there: [bool; 4]) -> SubnetEnvError {
        let keys = ["FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK", "FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET", MTU, IP_MASQ];
        let missing: Vec<&str> = keys.into_iter().zip(there).filter(|(_, there)| !there).map(|(key, _)| key).collect();
        SubnetEnvError::Missing { file: self.file.to_owned(), keys: missing.join(", ") }
    }
}

impl fmt::Display for SubnetEnv {
    /// The text of the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (family, subnet) in self.subnets.iter() {
            let networks: Vec<String> = self.networks_of(family).map(|net| net.to_string()).collect();
            writeln!(f, "{}={}", network_key(family), networks.join(","))?;
            writeln!(f, "{}={}/{}", subnet_key(family), bridge_address(*subnet), subnet.prefix_len())?;
        }
        writeln!(f, "{MTU}={}\n{IP_MASQ}={}", self.mtu, self.ip_masq)
    }
}

/// The second address of a subnet, which the bridge gets.
pub fn bridge_address(subnet: IpNet) -> IpAddr {
    match subnet.network() {
        IpAddr::V4(v4) => std::net::Ipv4Addr::from_bits(v4.to_bits().wrapping_add(1)).into(),
        IpAddr::V6(v6) => std::net::Ipv6Addr::from_bits(v6.to_bits().wrapping_add(1)).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DUAL: &str = "\
FLANNEL_NETWORK=10.244.0.0/16
FLANNEL_SUBNET=10.244.1.1/24
FLANNEL_IPV6_NETWORK=2001:cafe:42::/56
FLANNEL_IPV6_SUBNET=2001:cafe:42:1::1/64
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
";

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn dual() -> SubnetEnv {
        SubnetEnv {
            networks: vec![net("10.244.0.0/16"), net("2001:cafe:42::/56")],
            subnets: Dual::of_nets([net("10.244.1.0/24"), net("2001:cafe:42:1::/64")]),
            mtu: Mtu(1450),
            ip_masq: true,
        }
    }

    #[test]
    fn text_and_back() {
        assert_eq!(SubnetEnv::parse("subnet.env", DUAL), Ok(dual()));
        assert_eq!(dual().to_string(), DUAL);
    }

    #[test]
    fn one_family_has_only_its_own_pair() {
        let env = SubnetEnv { subnets: Dual::of_nets([net("2001:cafe:42:1::/64")]), ip_masq: false, ..dual() };
        let expect = "FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\nFLANNEL_IPV6_SUBNET=2001:cafe:42:1::1/64\n\
                      FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        assert_eq!(env.to_string(), expect);
    }

    #[test]
    fn what_a_reader_takes() {
        let check = |from: &str, to: &str, networks: &[&str], ip_masq: bool| {
            let env = SubnetEnv::parse("subnet.env", &DUAL.replace(from, to)).unwrap();
            let expect: Vec<IpNet> = networks.iter().map(|text| net(text)).collect();
            assert_eq!((env.networks, env.ip_masq), (expect, ip_masq), "{to}");
        };
        let both = ["10.244.0.0/16", "2001:cafe:42::/56"];
        check("10.244.0.0/16", "10.244.0.0/16,10.9.0.0/16", &[both[0], "10.9.0.0/16", both[1]], true);
        check("MASQ=true", "MASQ=True", &both, false);
        check("MASQ=true", "MASQ=\"true\"", &both, false);
        check("FLANNEL_MTU", "# a line\nOTHER=1\nFLANNEL_MTU", &both, true);
        check("FLANNEL_MTU", "FLANNEL_IPMASQ=false\r\nFLANNEL_MTU", &both, true);
    }

    #[test]
    fn what_a_reader_refuses() {
        let check = |text: &str, expect: &str| {
            assert_eq!(SubnetEnv::parse("/run/flannel/subnet.env", text).unwrap_err().to_string(), expect, "{text}");
        };
        let without = |key: &str| DUAL.lines().filter(|l| !l.contains(key)).collect::<Vec<_>>().join("\n");
        check(&without("IPMASQ"), "/run/flannel/subnet.env is missing FLANNEL_IPMASQ");
        check(&without("MTU"), "/run/flannel/subnet.env is missing FLANNEL_MTU");
        check(&without("SUBNET"), "/run/flannel/subnet.env is missing FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET");
        check(
            "",
            "/run/flannel/subnet.env is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, \
             FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ",
        );
        check(
            &DUAL.replace("10.244.0.0/16", "10.244.0.0/16,"),
            "/run/flannel/subnet.env: FLANNEL_NETWORK= is not an IPv4 prefix such as 10.244.0.0/16",
        );
        check(
            &DUAL.replace("=10.244.1.1/24", "=\"10.244.1.1/24\""),
            "/run/flannel/subnet.env: FLANNEL_SUBNET=\"10.244.1.1/24\" is not an IPv4 prefix such as 10.244.0.0/16",
        );
        check(
            &DUAL.replace("2001:cafe:42:1::1/64", "10.244.1.1/24"),
            "/run/flannel/subnet.env: FLANNEL_IPV6_SUBNET=10.244.1.1/24 is not an IPv6 prefix such as \
             2001:db8:42::/56",
        );
        for (from, to, expect) in [
            ("=10.244.1.1/24", "=10.9.1.1/24", "SUBNET=10.9.1.1/24 is not inside the network that the file names"),
            ("10.244.1.1/24", "10.244.1.1/31", "FLANNEL_SUBNET=10.244.1.1/31 is not large enough for pods"),
            ("1450", "1279", "FLANNEL_MTU=1279 is not the 1280 bytes or more that IPv6 needs"),
            ("1450", "67", "FLANNEL_MTU=67 is not the 68 bytes or more that IPv4 needs"),
        ] {
            let error = SubnetEnv::parse("f", &DUAL.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        }
        check(&without("FLANNEL_NETWORK"), "/run/flannel/subnet.env is missing FLANNEL_NETWORK");
        check(&DUAL.replace("1450", "-1"), "/run/flannel/subnet.env: FLANNEL_MTU=-1 is not a number of bytes");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(subnet in any::<u32>(), len in 8u8..=30, mtu in 68u32.., ip_masq: bool) {
            let subnet = IpNet::new(std::net::Ipv4Addr::from_bits(subnet).into(), len).unwrap().trunc();
            let network = IpNet::new(subnet.addr(), len - 8).unwrap().trunc();
            let env = SubnetEnv { networks: vec![network], subnets: Dual::of_nets([subnet]), mtu: Mtu(mtu), ip_masq };
            prop_assert_eq!(SubnetEnv::parse("f", &env.to_string()), Ok(env));
        }

        #[test]
        fn no_text_panics(text in "(FLANNEL_[A-Z0-9_]{1,8}=[ -~]{0,20}\n|\\PC{0,20}){0,6}") {
            let _ = SubnetEnv::parse("f", &text);
        }
    }
}
