//! vxlan: packets for other nodes travel in UDP, put there by a VXLAN device of the kernel for each family.

use ipnet::IpNet;

use crate::addr::{Dual, Family, LinkName, Mac, Mtu, Vni, host, subnet_address};
use crate::backend::gateway_route;
use crate::config::ConfigError;
use crate::facts::Facts;
use crate::json::{Fields, Kind};
use crate::lease::{Attributes, Lease, Vtep};
use crate::node::{External, Node};
use crate::plan::{Ground, Peer, PeerPlan, Skipped};
use crate::state::{Key, Link, LinkKind, Route, Value, Vxlan};

/// `Backend.Type` and `BackendType`.
pub const TYPE: &str = "vxlan";

/// The UDP port of the kernel's VXLAN devices unless told otherwise (module parameter `udp_port`, older than RFC 7348's 4789).
const PORT: u16 = 8472;

/// Options of Windows nodes in the same config, without a meaning here.
const OF_WINDOWS: [&str; 2] = ["Name", "MacPrefix"];

/// The options of the config's `Backend` (compat §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanOptions {
    /// VXLAN network identifier (`VNI`).
    pub vni: Vni,
    /// UDP destination port (`Port`).
    pub port: u16,
    /// Counts as the external interface's MTU, in its place (`MTU`).
    pub mtu: Option<Mtu>,
    /// Group based policy (`GBP`).
    pub gbp: bool,
    /// The device learns MAC addresses (`Learning`).
    pub learning: bool,
    /// A peer on the same link is routed to without encapsulation (`DirectRouting`).
    pub direct_routing: bool,
}

impl Default for VxlanOptions {
    fn default() -> Self {
        let vni = Vni::new(1).expect("1 fits in 24 bits");
        Self { vni, port: PORT, mtu: None, gbp: false, learning: false, direct_routing: false }
    }
}

/// Bytes that VXLAN puts before an inner packet: outer IP header, UDP, VXLAN, inner Ethernet (RFC 7348 §5).
pub const fn overhead(family: Family) -> u32 {
    let ip = match family {
        Family::V4 => 20,
        Family::V6 => 40,
    };
    ip + 8 + 8 + 14
}

impl VxlanOptions {
    /// Takes the options out of the config's `Backend`.
    pub(crate) fn read(options: &mut Fields, network: &Dual<IpNet>) -> Result<Self, ConfigError> {
        let default = Self::default();
        for key in OF_WINDOWS {
            options.take(key);
        }
        Ok(Self {
            vni: read_vni(options)?.unwrap_or(default.vni),
            port: read_port(options)?.unwrap_or(default.port),
            mtu: read_mtu(options, network)?,
            gbp: read_flag(options, "GBP")?,
            learning: read_flag(options, "Learning")?,
            direct_routing: read_flag(options, "DirectRouting")?,
        })
    }
}

impl VxlanOptions {
    /// The device of a family: `flannel.<VNI>`, `flannel-v6.<VNI>`.
    pub fn device(&self, family: Family) -> LinkName {
        let name = match family {
            Family::V4 => format!("flannel.{}", self.vni),
            Family::V6 => format!("flannel-v6.{}", self.vni),
        };
        name.parse().unwrap_or_else(|_| unreachable!("a VNI has at most 8 digits"))
    }

    pub(super) fn mtu(&self, family: Family, external: &External) -> Mtu {
        self.mtu.map_or(external.mtu, |mtu| mtu.min(external.mtu)).less(overhead(family))
    }

    /// An MTU that the interface does not carry: the kernel cuts the device's, and pods must know.
    pub(super) fn beyond(&self, external: &External) -> Option<String> {
        let mtu = self.mtu.filter(|mtu| *mtu > external.mtu)?;
        let (name, carries) = (external.name, external.mtu);
        Some(format!("network config: Backend.MTU {mtu} is more than {name} carries: its MTU, {carries}, is used"))
    }

    /// Our lease's MAC wins over the device's, the device's over a fresh one: so peers need no update after a restart.
    pub(super) fn macs(&self, facts: &Facts, own: Option<&Lease>) -> Dual<Mac> {
        let leased = match own.map(|lease| &lease.attributes) {
            Some(Attributes::Vxlan(vteps)) => *vteps,
            _ => Dual::default(),
        };
        Dual::from_fn(|family| {
            let leased = leased.get(family).map(|vtep| vtep.mac);
            let device = || facts.own_macs.get(&self.device(family)).copied();
            leased.or_else(device).filter(|mac| mac.is_host()).or(facts.fresh_macs.get(family).copied())
        })
    }

    pub(super) fn attributes(&self, node: &Node) -> Attributes {
        let mac = |family| node.macs.get(family).copied();
        Attributes::Vxlan(Dual::from_fn(|family| {
            node.external.get(family)?;
            Some(Vtep { vni: self.vni, mac: mac(family)? })
        }))
    }

    pub(super) fn plan_node(&self, node: &Node) -> Vec<(Key, Value)> {
        node.subnet.iter().flat_map(|(family, subnet)| self.plan_device(node, family, *subnet)).collect()
    }

    fn plan_device(&self, node: &Node, family: Family, subnet: IpNet) -> Vec<(Key, Value)> {
        let name = self.device(family);
        let (Some(external), Some(mac), Some(mtu)) =
            (node.external.get(family), node.macs.get(family), node.mtu.get(family))
        else {
            return Vec::new();
        };
        let vxlan = Vxlan {
            vni: self.vni,
            port: self.port,
            local: Some(external.local),
            lower: Some(external.name),
            learning: self.learning,
            gbp: self.gbp,
            checksums: true,
        };
        let link = Link { up: true, mtu: *mtu, mac: *mac, accept_ra: false, kind: LinkKind::Vxlan(vxlan) };
        vec![
            (Key::Link(name), Value::Link(Box::new(link))),
            (Key::Address(name, host(subnet_address(subnet))), Value::Address),
        ]
    }

    pub(super) fn plan_peer(&self, ground: &Ground, peer: &Peer, plan: &mut PeerPlan) {
        match self.vtep(ground, peer) {
            Ok(vtep) => {
                plan.remarks.extend(same_address(ground, peer));
                plan.objects.extend(self.objects(ground.node, peer, vtep));
            }
            Err(refusal) => plan.remarks.push(refusal),
        }
    }

    /// The peer's VTEP, if packets can be told to be its own.
    fn vtep(&self, ground: &Ground, peer: &Peer) -> Result<Vtep, Skipped> {
        let Attributes::Vxlan(vteps) = &peer.lease.attributes else {
            return Err(Skipped::refuse("BackendType", "not vxlan"));
        };
        let vtep = *vteps.get(peer.family).ok_or_else(|| Skipped::refuse(data_field(peer.family), "missing"))?;
        let mac_field = || format!("{}.VtepMAC", data_field(peer.family));
        if vtep.vni != self.vni {
            let why = format!("{} is not our VNI {}", vtep.vni, self.vni);
            return Err(Skipped::refuse(format!("{}.VNI", data_field(peer.family)), why));
        }
        if ground.node.macs.get(peer.family) == Some(&vtep.mac) {
            return Err(Skipped::refuse(mac_field(), format!("{} is this node's own MAC", vtep.mac)));
        }
        match peer.earliest(ground, ground.leases.with_mac(peer.family, vtep.mac, peer.place())) {
            Some(other) => {
                Err(Skipped::refuse(mac_field(), format!("{} is published by the earlier lease {other} too", vtep.mac)))
            }
            None => Ok(vtep),
        }
    }

    fn objects(&self, node: &Node, peer: &Peer, vtep: Vtep) -> Vec<(Key, Value)> {
        let external = node.external.get(peer.family);
        let direct = external.filter(|external| {
            self.direct_routing && node.is_on_link(peer.public_ip) && external.address != peer.public_ip
        });
        if let Some(external) = direct {
            return vec![gateway_route(peer, external.name)];
        }
        let (dev, gateway) = (self.device(peer.family), subnet_address(peer.subnet));
        vec![
            (Key::Neigh(dev, gateway), Value::Neigh(vtep.mac)),
            (Key::Fdb(dev, vtep.mac), Value::Fdb(peer.public_ip)),
            (Route::key(peer.subnet), Value::Route(Route::Unicast { dev, gateway: Some(gateway), onlink: true })),
        ]
    }
}

/// VXLAN tells peers at one address apart by their MACs, but two hosts with one address are hardly meant.
fn same_address(ground: &Ground, peer: &Peer) -> Option<Skipped> {
    if ground.node.public_ip.get(peer.family) == Some(&peer.public_ip) {
        return Some(Skipped::warn(peer.public_ip_field(), format!("{} is this node's own public IP", peer.public_ip)));
    }
    let other = peer.earlier_at_address(ground)?;
    Some(Skipped::warn(peer.public_ip_field(), format!("{} is the public IP of lease {other} too", peer.public_ip)))
}

/// The field of a record that holds a family's backend data.
fn data_field(family: Family) -> &'static str {
    match family {
        Family::V4 => "BackendData",
        Family::V6 => "BackendV6Data",
    }
}

fn read_vni(options: &mut Fields) -> Result<Option<Vni>, ConfigError> {
    const KIND: Kind = Kind::new("a number from 0 to 16777215", "1");
    read_number(options, "VNI", KIND, |number| Vni::new(u32::try_from(number).ok()?))
}

fn read_port(options: &mut Fields) -> Result<Option<u16>, ConfigError> {
    const KIND: Kind = Kind::new("a UDP port, 1 to 65535, or 0 for the kernel's default", "8472");
    Ok(read_number(options, "Port", KIND, |number| u16::try_from(number).ok())?.filter(|port| *port != 0))
}

fn read_mtu(options: &mut Fields, network: &Dual<IpNet>) -> Result<Option<Mtu>, ConfigError> {
    const KIND: Kind = Kind::new("an MTU in bytes, at most 65535, or 0 for the interface's", "1500");
    let mtu = read_number(options, "MTU", KIND, |number| u16::try_from(number).ok())?.filter(|mtu| *mtu != 0);
    let least = network.families().map(|family| Mtu::least(family).0 + overhead(family)).max().unwrap_or(0);
    match mtu.map(u32::from) {
        Some(mtu) if mtu < least => Err(ConfigError::bad(
            "Backend.MTU",
            mtu,
            "is too small to hold an encapsulated packet",
            format!("use at least {least}, or leave it out for the external interface's MTU"),
        )),
        mtu => Ok(mtu.map(Mtu)),
    }
}

fn read_flag(options: &mut Fields, key: &str) -> Result<bool, ConfigError> {
    const FLAG: Kind = Kind::new("true or false", "true");
    let flag = options.take_as(key, FLAG).map_err(ConfigError::within("Backend."))?;
    Ok(flag.unwrap_or(false))
}

fn read_number<T>(
    options: &mut Fields,
    key: &str,
    kind: Kind,
    in_range: impl Fn(i64) -> Option<T>,
) -> Result<Option<T>, ConfigError> {
    let within = ConfigError::within("Backend.");
    let Some(number) = options.take_as::<i64>(key, kind).map_err(&within)? else { return Ok(None) };
    let bad = || crate::json::BadField { key: key.to_owned(), value: number.to_string(), kind };
    in_range(number).map(Some).ok_or_else(|| within(bad()))
}
