//! vxlan: packets for other nodes travel in UDP, put there by a VXLAN device of the kernel for each family.

use ipnet::IpNet;

use crate::addr::{Dual, Family, Mtu, Vni};
use crate::config::ConfigError;
use crate::json::{Fields, Kind};

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
