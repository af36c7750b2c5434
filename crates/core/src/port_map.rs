//! Published ports of one container in one network: what the CNI plugin `portmap` makes rules of, in the layout of the Go plugin.
//!
//! [`PortMap`] is the model. [`nft`] and [`iptables`] turn it into rules of the two rule systems, [`saved`] into a file and back. Who runs what
//! when, and where the file is, is decided elsewhere.

pub mod iptables;
pub mod nft;
pub mod saved;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use crate::addr::{Dual, Family, LinkName};
use crate::rules::{Match, Protocol, RuleMode};

/// The ports of one container in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMap {
    /// The network's name; fit to be a file name.
    pub network: String,
    /// The container's name; fit to be a file name.
    pub container: String,
    /// The container's own chain, in iptables.
    pub chain: String,
    /// What people know the container by, such as `default/nginx`; may be empty.
    pub known_as: String,
    /// The rule system.
    pub mode: RuleMode,
    /// The container's addresses, with the length of its subnet's prefix.
    pub addresses: Dual<IpNet>,
    /// What is published.
    pub mappings: Vec<Mapping>,
    /// How connections are masqueraded whose answers would not come back; none for not at all.
    pub masquerade: Option<Masquerade>,
    /// Further matches of the rules that lead to the mappings, in the words of the rule system.
    pub conditions: Dual<Vec<String>>,
    /// Links of the host that are the container's own: while they are there, so is the container.
    pub links: Vec<LinkName>,
    /// The handles that nf_tables has given its rules, in the order of [`nft::rules`]; none where that is not known.
    pub handles: Dual<Vec<u64>>,
}

/// A published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The port on the host; not 0.
    pub host_port: u16,
    /// The port in the container; not 0.
    pub container_port: u16,
    /// The address of the host that it is published on. The unspecified address stands for all of its family, none for all.
    pub host_ip: Option<IpAddr>,
}

/// What is masqueraded: by default what the container's subnet and the node's loopback address send to a published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masquerade {
    /// All that is sent to a published port.
    pub all: bool,
    /// How packets are marked for it, in iptables.
    pub mark: Mark,
}

/// How packets are marked for masquerading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// By this bit of the mark, 0 to 31.
    Bit(u8),
    /// By somebody else's chain.
    Chain(String),
}

/// The bit that marks packets when nothing else is said: those of Kubernetes are 14 and 15.
pub const DEFAULT_MARK_BIT: u8 = 13;

impl PortMap {
    /// Whose they are, in words for people.
    pub fn owner(&self) -> String {
        match self.known_as.as_str() {
            "" => format!("container {}", self.container),
            pod => format!("pod {pod} (container {})", self.container),
        }
    }

    /// The mappings that concern a family.
    fn of_family(&self, family: Family) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter().filter(move |mapping| mapping.concerns(family))
    }

    /// The first mapping that another container has taken already: the same port of the same protocol, on an address in common.
    pub fn conflict(&self, other: &Self) -> Option<&Mapping> {
        let in_common = |family: &Family| other.addresses.get(*family).is_some();
        let mut families = self.addresses.families().filter(in_common);
        families.find_map(|family| {
            self.of_family(family).find(|mapping| other.of_family(family).any(|taken| mapping.collides(taken)))
        })
    }

    /// The first mapping to an address of a family that the container has no address of, so that it could not work.
    pub fn unreachable(&self) -> Option<&Mapping> {
        let without =
            |mapping: &&Mapping| mapping.bound_to().is_some_and(|ip| self.addresses.get(Family::of(ip)).is_none());
        self.mappings.iter().find(without).filter(|_| !self.addresses.is_empty())
    }
}

impl Mapping {
    /// Checks the numbers and words of a mapping.
    pub fn new(protocol: &str, host_port: i64, container_port: i64, host_ip: &str) -> Result<Self, BadMapping> {
        let number = |port: i64| u16::try_from(port).ok().filter(|port| *port != 0);
        let known = |known: &Protocol| known.name().eq_ignore_ascii_case(protocol);
        let host_ip = Some(host_ip).filter(|text| !text.is_empty());
        let address = |text: &str| text.parse().map_err(|_| BadMapping::HostIp(text.into()));
        Ok(Self {
            container_port: number(container_port).ok_or(BadMapping::ContainerPort(container_port))?,
            host_port: number(host_port).ok_or(BadMapping::HostPort(host_port))?,
            protocol: Protocol::ALL.into_iter().find(known).ok_or_else(|| BadMapping::Protocol(protocol.into()))?,
            host_ip: host_ip.map(address).transpose()?.map(|ip: IpAddr| ip.to_canonical()),
        })
    }

    /// The one address that it is published on; none for all.
    pub fn bound_to(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether it is published in a family.
    pub fn concerns(&self, family: Family) -> bool {
        self.host_ip.is_none_or(|ip| Family::of(ip) == family)
    }

    /// Whether both, of one family, want the same port.
    fn collides(&self, other: &Self) -> bool {
        let same_address = match (self.bound_to(), other.bound_to()) {
            (Some(one), Some(two)) => one == two,
            _ => true,
        };
        (self.protocol, self.host_port) == (other.protocol, other.host_port) && same_address
    }

    /// Whether both, of one container, publish the same port on the same addresses, but lead to different ports.
    pub fn contradicts(&self, other: &Self) -> bool {
        let in_common = Family::ALL.iter().any(|family| self.concerns(*family) && other.concerns(*family));
        let same_place = self.collides(other) && self.bound_to() == other.bound_to();
        in_common && same_place && self.container_port != other.container_port
    }

    /// The matches of what is sent to the published port.
    fn matches(&self) -> Vec<Match> {
        let address = self.bound_to().map(|ip| Match::Destination { not: false, net: ip.into() });
        address.into_iter().chain([Match::Port { protocol: self.protocol, port: self.host_port }]).collect()
    }

    /// Where in the container it leads.
    fn target(&self, address: IpNet) -> SocketAddr {
        SocketAddr::new(address.addr(), self.container_port)
    }
}

impl fmt::Display for Mapping {
    /// The host's side, as `8080/tcp` or `192.0.2.1:8080/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bound_to() {
            Some(ip) => write!(f, "{}/{}", SocketAddr::new(ip, self.host_port), self.protocol),
            None => write!(f, "{}/{}", self.host_port, self.protocol),
        }
    }
}

/// The loopback address that local programs connect from. IPv6 cannot route its own to a container.
fn loopback(family: Family) -> Option<IpNet> {
    (family == Family::V4).then(|| IpNet::from(IpAddr::V4(Ipv4Addr::LOCALHOST)))
}

/// A mapping that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMapping {
    /// The host's port is no port.
    #[error("invalid host port number: {0}")]
    HostPort(i64),
    /// The container's port is no port.
    #[error("invalid container port number: {0}")]
    ContainerPort(i64),
    /// The protocol has no ports that can be published.
    #[error("invalid protocol {0:?}: it must be tcp, udp or sctp")]
    Protocol(String),
    /// The host's address is none.
    #[error("invalid host IP {0:?}")]
    HostIp(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container with addresses, such as `10.244.1.5/24`, and mappings, such as `tcp 8080 80 192.0.2.1`.
    pub(super) fn port_map(addresses: &[&str], mappings: &[&str]) -> PortMap {
        let mut map = PortMap {
            network: "cbr0".into(),
            container: "c1".into(),
            chain: "CNI-DN-68f1".into(),
            known_as: String::new(),
            mode: RuleMode::Nftables,
            addresses: Dual::default(),
            mappings: mappings.iter().map(|text| mapping(text).unwrap()).collect(),
            masquerade: Some(Masquerade { all: false, mark: Mark::Bit(DEFAULT_MARK_BIT) }),
            conditions: Dual::default(),
            links: Vec::new(),
            handles: Dual::default(),
        };
        for net in addresses.iter().map(|text| text.parse().unwrap()) {
            map.addresses.set(Family::of_net(net), net);
        }
        map
    }

    fn mapping(text: &str) -> Result<Mapping, BadMapping> {
        let words: Vec<_> = text.split(' ').collect();
        let number = |word: &str| word.parse().unwrap();
        Mapping::new(words[0], number(words[1]), number(words[2]), words.get(3).copied().unwrap_or_default())
    }

    #[test]
    fn what_is_no_mapping_is_named() {
        for (text, expect) in [
            ("tcp 0 80", "invalid host port number: 0"),
            ("tcp 65536 80", "invalid host port number: 65536"),
            ("tcp 80 -1", "invalid container port number: -1"),
            ("icmp 80 80", "invalid protocol \"icmp\": it must be tcp, udp or sctp"),
            ("tcp 80 80 10.1", "invalid host IP \"10.1\""),
        ] {
            assert_eq!(mapping(text).unwrap_err().to_string(), expect);
        }
        assert_eq!(mapping("TCP 80 8080 ::ffff:192.0.2.1").unwrap().to_string(), "192.0.2.1:80/tcp");
        assert_eq!(mapping("udp 65535 65535 ::").unwrap().to_string(), "65535/udp");
    }

    #[test]
    fn one_port_is_for_one_container() {
        let dual = ["10.1.0.2/24", "fd00::2/64"];
        for (addresses, one, two, conflict) in [
            (&dual[..], "tcp 80 80", "tcp 80 81", true),
            (&dual, "tcp 80 80", "udp 80 80", false),
            (&dual, "tcp 80 80", "tcp 81 80", false),
            (&dual, "tcp 80 80 192.0.2.1", "tcp 80 80 192.0.2.2", false),
            (&dual, "tcp 80 80 192.0.2.1", "tcp 80 80 192.0.2.1", true),
            (&dual, "tcp 80 80 192.0.2.1", "tcp 80 80", true),
            (&dual, "tcp 80 80 192.0.2.1", "tcp 80 80 0.0.0.0", true),
            (&dual, "tcp 80 80 0.0.0.0", "tcp 80 80 ::", false),
            (&dual[..1], "tcp 80 80 ::", "tcp 80 80", false),
        ] {
            let (one, two) = (port_map(addresses, &[one]), port_map(&dual, &[two]));
            assert_eq!(one.conflict(&two).is_some(), conflict, "{one:?} {two:?}");
            assert_eq!(two.conflict(&one).is_some(), conflict, "{one:?} {two:?}");
        }
        assert!(port_map(&dual[..1], &["tcp 80 80"]).conflict(&port_map(&dual[1..], &["tcp 80 80"])).is_none());
    }

    #[test]
    fn one_port_leads_to_one_port() {
        for (one, two, expect) in [
            ("tcp 80 80", "tcp 80 81", true),
            ("tcp 80 80", "tcp 80 80", false),
            ("tcp 80 80", "udp 80 81", false),
            ("tcp 80 80 192.0.2.1", "tcp 80 81", false),
            ("tcp 80 80 0.0.0.0", "tcp 80 81", true),
            ("tcp 80 80 0.0.0.0", "tcp 80 81 ::", false),
        ] {
            assert_eq!(mapping(one).unwrap().contradicts(&mapping(two).unwrap()), expect, "{one} {two}");
        }
    }

    #[test]
    fn an_address_of_a_family_that_the_container_lacks_is_found() {
        let found = |addresses: &[&str], text| port_map(addresses, &[text]).unreachable().is_some();
        assert!(found(&["10.1.0.2/24"], "tcp 80 80 2001:db8::1"));
        assert!(!found(&["10.1.0.2/24"], "tcp 80 80 ::"));
        assert!(!found(&["10.1.0.2/24", "fd00::2/64"], "tcp 80 80 2001:db8::1"));
        assert!(!found(&[], "tcp 80 80 2001:db8::1"));
    }
}
