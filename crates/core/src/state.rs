//! What the kernel holds, or should hold, for flannel: one map of objects, the same type for both.
//!
//! [`State`] is compared by [`crate::diff::diff`], filled by `plan` (what we want) and by the kernel executor (what is
//! there), and prints as `ip`, `bridge` and `nft` would print it. Objects that only the executor cares for (nexthop
//! objects, rule handles, interface indices) are its own business and never appear here.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::addr::{Family, LinkName, Mac, Mtu, Vni};
use crate::objects::Objects;
use crate::rules::{RuleMode, Ruleset};

/// Names one object. The order of the variants is the order in which objects are made; they are removed in reverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A network device.
    Link(LinkName),
    /// An address on a device.
    Address(LinkName, IpNet),
    /// A neighbour (ARP or ND) entry on a device.
    Neigh(LinkName, IpAddr),
    /// A unicast forwarding entry of a VXLAN device.
    Fdb(LinkName, Mac),
    /// A route in table main: destination and metric.
    Route(IpNet, u32),
    /// All of flannel's packet rules of one family in one rule system.
    Rules(RuleMode, Family),
}

impl Key {
    /// The place of the key's variant among all.
    pub(crate) fn kind(&self) -> u8 {
        match self {
            Self::Link(..) => 0,
            Self::Address(..) => 1,
            Self::Neigh(..) => 2,
            Self::Fdb(..) => 3,
            Self::Route(..) => 4,
            Self::Rules(..) => 5,
        }
    }

    /// The device the object lives on and dies with, if any. Routes name theirs in [`Value::Route`].
    pub fn link(&self) -> Option<LinkName> {
        match *self {
            Self::Link(link) | Self::Address(link, _) | Self::Neigh(link, _) | Self::Fdb(link, _) => Some(link),
            Self::Route(..) | Self::Rules(..) => None,
        }
    }
}

/// What is to be known of an object beside its [`Key`]; each variant goes with the key's variant of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// See [`Link`].
    Link(Box<Link>),
    /// An address of global scope.
    Address,
    /// The link-layer address of a permanent neighbour.
    Neigh(Mac),
    /// The VTEP behind a MAC: a permanent entry, `self`.
    Fdb(IpAddr),
    /// See [`Route`].
    Route(Route),
    /// See [`Ruleset`].
    Rules(Box<Ruleset>),
    /// Something is there under this key that flannel would never make (a neighbour that is not permanent, a route
    /// with several nexthops, …): never equal to anything wanted, so it is replaced or removed. Holds its description.
    Other(Box<str>),
}

/// A device of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Its MTU.
    pub mtu: Mtu,
    /// Its link-layer address.
    pub mac: Mac,
    /// `net.ipv6.conf.<device>.accept_ra` is not 0.
    pub accept_ra: bool,
    /// What kind of device.
    pub kind: LinkKind,
}

/// Device kinds flannel makes, and the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// `ip link add type vxlan`.
    Vxlan(Vxlan),
    /// Any other kind, by the name that `ip -d link` prints (`tun`, `ipip`, `wireguard`).
    Other(Box<str>),
}

impl LinkKind {
    /// The kind as `ip link add type KIND` spells it.
    pub fn name(&self) -> &str {
        match self {
            Self::Vxlan(_) => "vxlan",
            Self::Other(name) => name,
        }
    }

    /// Whether a device of this kind can become `want` without being deleted and made again.
    ///
    /// The kernel's `vxlan_changelink` takes a new local address, lower device and learning flag, but no new VNI, port
    /// or group-policy flag, nor other checksum flags.
    pub fn can_become(&self, want: &Self) -> bool {
        match (self, want) {
            (Self::Vxlan(a), Self::Vxlan(b)) => {
                (a.vni, a.port, a.gbp, a.checksums) == (b.vni, b.port, b.gbp, b.checksums)
            }
            (a, b) => a == b,
        }
    }
}

/// The attributes of a VXLAN device that flannel decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier.
    pub vni: Vni,
    /// UDP destination port.
    pub port: u16,
    /// Source address of the outer packet.
    pub local: Option<IpAddr>,
    /// Device the outer packet leaves by.
    pub lower: Option<LinkName>,
    /// Learn MAC addresses from received frames.
    pub learning: bool,
    /// Group based policy extension.
    pub gbp: bool,
    /// Outer UDP checksums are sent and required: `udpcsum noudp6zerocsumtx noudp6zerocsumrx`.
    pub checksums: bool,
}

/// A route in table main, protocol `boot` as every route of flannel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Through a device.
    Unicast {
        /// The device.
        dev: LinkName,
        /// The next hop; none means the destination is on the link (scope link).
        gateway: Option<IpAddr>,
        /// The next hop is on the link whatever the addresses say.
        onlink: bool,
    },
    /// Packets are dropped silently.
    Blackhole,
}

impl Route {
    /// The device the route goes through.
    pub fn dev(&self) -> Option<LinkName> {
        match *self {
            Self::Unicast { dev, .. } => Some(dev),
            Self::Blackhole => None,
        }
    }

    /// The metric that the kernel gives flannel's routes: 0, and 1024 (`IP6_RT_PRIO_USER`) for IPv6.
    pub fn metric(family: Family) -> u32 {
        match family {
            Family::V4 => 0,
            Family::V6 => 1024,
        }
    }

    /// The key of the blackhole route for our own subnet. Its metric is worse than that of any route the kernel makes for
    /// an interface: at metric 0, as flannel in Go adds it, an IPv4 blackhole that is there before `cni0` takes the
    /// packets for the node's own pods.
    pub fn blackhole_key(subnet: IpNet) -> Key {
        Key::Route(subnet, 1024)
    }

    /// The key of flannel's route to a destination.
    pub fn key(destination: IpNet) -> Key {
        Key::Route(destination, Self::metric(Family::of_net(destination)))
    }
}

/// A set of kernel objects by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The objects, in the order in which they would be made.
    pub objects: Objects,
}

impl State {
    /// The device under a name.
    pub fn link(&self, name: LinkName) -> Option<&Link> {
        match self.objects.get(&Key::Link(name)) {
            Some(Value::Link(link)) => Some(link),
            _ => None,
        }
    }

    /// Takes out a device and all that dies with it, as the kernel does.
    pub fn remove_link(&mut self, name: LinkName) {
        self.objects.retain(|key, value| !lives_on(key, value, name));
    }
}

/// Whether an object vanishes with a device: the device itself, what it carries, and the routes through it.
pub fn lives_on(key: &Key, value: &Value, link: LinkName) -> bool {
    key.link() == Some(link) || matches!(value, Value::Route(route) if route.dev() == Some(link))
}

impl FromIterator<(Key, Value)> for State {
    fn from_iter<I: IntoIterator<Item = (Key, Value)>>(objects: I) -> Self {
        Self { objects: objects.into_iter().collect() }
    }
}

/// Which objects of a node are flannel's to change and delete. Nothing outside it is ever deleted.
///
/// Always in scope: flannel's devices (see [`Scope::owns_link`]) and everything on them, the nft tables
/// `flannel-ipv4` and `flannel-ipv6`, the iptables chains `FLANNEL-POSTRTG` and `FLANNEL-FWD` with the jumps to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// The network now and those this node was in before. A unicast route of protocol `boot` with a gateway, through an
    /// external interface, whose destination lies strictly inside one of them is ours.
    pub networks: Vec<IpNet>,
    /// The external interfaces.
    pub externals: Vec<LinkName>,
    /// Destinations whose blackhole routes (protocol `boot`) are ours.
    pub blackholes: Vec<IpNet>,
    /// The node uses iptables: its programs may be run. Otherwise iptables' chains are only leftovers.
    pub iptables: bool,
}

impl Scope {
    /// Whether a device is flannel's by name and kind (compat §6): `flannel.<VNI>` and `flannel-v6.<VNI>` of kind vxlan,
    /// `flannel<n>` of kind tun, `flannel.ipip`, `flannel-wg` and `flannel-wg-v6`.
    pub fn owns_link(name: &str, kind: &str) -> bool {
        let number = |prefix| {
            name.strip_prefix(prefix)
                .is_some_and(|rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
        };
        match kind {
            "vxlan" => number("flannel.") || number("flannel-v6."),
            "tun" => number("flannel"),
            "ipip" => name == "flannel.ipip",
            "wireguard" => matches!(name, "flannel-wg" | "flannel-wg-v6"),
            _ => false,
        }
    }

    /// Whether a route (table main, protocol `boot`) through a device that is not flannel's own is ours.
    pub fn owns_route(&self, destination: IpNet, route: &Route) -> bool {
        match *route {
            Route::Unicast { dev, gateway: Some(_), .. } => {
                self.externals.contains(&dev)
                    && self.networks.iter().any(|net| net.contains(&destination) && *net != destination)
            }
            Route::Unicast { .. } => false,
            Route::Blackhole => self.blackholes.contains(&destination),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.iter().try_for_each(|(key, value)| writeln!(f, "{}", Object(key, value)))
    }
}

/// An object as the field's tools print it, on one line (rules: one line a rule).
pub struct Object<'a>(pub &'a Key, pub &'a Value);

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Value::Link(link) => write!(f, "{} {link}", self.0),
            Value::Address => write!(f, "{} scope global", self.0),
            Value::Neigh(mac) => write!(f, "{} lladdr {mac} PERMANENT", self.0),
            Value::Fdb(vtep) => write!(f, "{} dst {vtep} self permanent", self.0),
            Value::Route(route) => write_route(f, self.0, route),
            Value::Rules(rules) => write!(f, "{}\n{rules}", self.0),
            Value::Other(text) => write!(f, "{} ({text})", self.0),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "link {name}"),
            Self::Address(dev, address) => write!(f, "address {address} dev {dev}"),
            Self::Neigh(dev, address) => write!(f, "neigh {address} dev {dev}"),
            Self::Fdb(dev, mac) => write!(f, "fdb {mac} dev {dev}"),
            Self::Route(destination, _) => write!(f, "route {destination}"),
            Self::Rules(RuleMode::Nftables, Family::V4) => f.write_str("table ip flannel-ipv4"),
            Self::Rules(RuleMode::Nftables, Family::V6) => f.write_str("table ip6 flannel-ipv6"),
            Self::Rules(RuleMode::Iptables, Family::V4) => f.write_str("iptables chains FLANNEL-POSTRTG, FLANNEL-FWD"),
            Self::Rules(RuleMode::Iptables, Family::V6) => f.write_str("ip6tables chains FLANNEL-POSTRTG, FLANNEL-FWD"),
        }
    }
}

fn write_route(f: &mut fmt::Formatter<'_>, key: &Key, route: &Route) -> fmt::Result {
    match (key, route) {
        (Key::Route(destination, _), Route::Blackhole) => {
            write!(f, "route blackhole {destination}")
        }
        (_, Route::Blackhole) => write!(f, "{key} blackhole"),
        (_, Route::Unicast { dev, gateway, onlink }) => {
            write!(f, "{key}")?;
            if let Some(gateway) = gateway {
                write!(f, " via {gateway}")?;
            }
            write!(
                f,
                " dev {dev}{}{}",
                if gateway.is_none() { " scope link" } else { "" },
                if *onlink { " onlink" } else { "" }
            )
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mtu {} state {} {} {}", self.mtu, if self.up { "UP" } else { "DOWN" }, self.mac, self.kind.name())?;
        if let LinkKind::Vxlan(vxlan) = &self.kind {
            write!(f, " {vxlan}")?;
        }
        if self.accept_ra { f.write_str(" accept_ra") } else { Ok(()) }
    }
}

impl fmt::Display for Vxlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id {}", self.vni)?;
        if let Some(local) = self.local {
            write!(f, " local {local}")?;
        }
        if let Some(lower) = self.lower {
            write!(f, " dev {lower}")?;
        }
        write!(f, " dstport {}", self.port)?;
        write!(f, "{}", if self.learning { " learning" } else { " nolearning" })?;
        write!(f, "{}{}", if self.gbp { " gbp" } else { "" }, if self.checksums { "" } else { " noudpcsum" })
    }
}
