//! Lease records and their keys as etcd and the local store hold them (compat §3).
//!
//! Reading trusts nothing: it is bounded, never panics, and names the field that is wrong. A family that is broken is
//! left out of the lease and named in [`Lease::flaws`] as long as the other one is whole. Which of the readable leases
//! are then believed is not decided here.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::addr::{Dual, Family, Mac, Vni};
use crate::backend::{host_gw, vxlan};
use crate::json::{BadField, Fields, Kind, shown};
use crate::lease::{Attributes, Flaw, Lease, LeaseKey, Record, Since, Vtep};

/// The longest record that is read, in bytes. A vxlan record has 120 to 230.
pub const LONGEST: usize = 64 * 1024;

/// The subnets of a lease as the record's name spells them: `10.5.52.0-24`, `10.5.52.0-24&fc00::5:0-112`, and without
/// IPv4 `0.0.0.0-0&fc00::5:0-112`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetKey(pub Dual<IpNet>);

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.v4 {
            Some(subnet) => write!(f, "{}-{}", subnet.network(), subnet.prefix_len())?,
            None => f.write_str(NO_IPV4)?,
        }
        match &self.0.v6 {
            Some(subnet) => write!(f, "&{}-{}", subnet.network(), subnet.prefix_len()),
            None => Ok(()),
        }
    }
}

/// Stands for the IPv4 subnet of a node that has none.
const NO_IPV4: &str = "0.0.0.0-0";

impl FromStr for SubnetKey {
    type Err = Flaw;

    fn from_str(key: &str) -> Result<Self, Flaw> {
        let (first, second) = match key.split_once('&') {
            Some((first, second)) => (first, Some(second)),
            None => (key, None),
        };
        let v4 = if first == NO_IPV4 { None } else { Some(parse_subnet(first, Family::V4)?) };
        let v6 = second.map(|text| parse_subnet(text, Family::V6)).transpose()?;
        let subnets = Dual { v4, v6 };
        if subnets.is_empty() { Err(bad_key(key, Family::V4)) } else { Ok(Self(subnets)) }
    }
}

fn bad_key(text: &str, family: Family) -> Flaw {
    let like = match family {
        Family::V4 => "10.5.52.0-24",
        Family::V6 => "fc00::5:0-112",
    };
    Flaw { field: "key".into(), why: format!("`{}` is not an {family} subnet like {like}", shown(text)) }
}

fn parse_subnet(text: &str, family: Family) -> Result<IpNet, Flaw> {
    let parse = || {
        let (address, len) = text.split_once('-')?;
        let plain = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'.' | b':');
        let digits = !len.is_empty() && len.bytes().all(|b| b.is_ascii_digit());
        if !digits || !address.bytes().all(plain) {
            return None;
        }
        let subnet = IpNet::new(address.parse().ok()?, len.parse().ok()?).ok()?;
        let right = Family::of_net(subnet) == family && subnet.prefix_len() < family.bits();
        (right && subnet == subnet.trunc()).then_some(subnet)
    };
    parse().ok_or_else(|| bad_key(text, family))
}

/// Reads a record whose place in the order of leases the store knows.
pub fn read(key: LeaseKey, text: &[u8], since: Since) -> Record {
    let lease = read_lease(&key, text).map(|(lease, _)| Lease { since, ..lease });
    Record::new(key, lease)
}

/// Reads a record of the local store, which carries its own place: `Sequence`. One without it (put there by hand) is
/// older than all others. Equal ones are ordered by their subnets.
pub fn read_sequenced(key: LeaseKey, text: &[u8]) -> Record {
    let lease = read_lease(&key, text).map(|(lease, sequence)| {
        let since = sequenced(&lease.subnet, sequence.unwrap_or_default());
        Lease { since, ..lease }
    });
    Record::new(key, lease)
}

/// The place in the order of leases of a record of the local store.
pub fn sequenced(subnet: &Dual<IpNet>, sequence: u64) -> Since {
    let tie = match subnet.values().next().map(IpNet::network) {
        Some(IpAddr::V4(address)) => address.to_bits().into(),
        Some(IpAddr::V6(address)) => (address.to_bits() >> 64) as u64,
        None => 0,
    };
    Since { at: sequence, tie }
}

/// The public addresses that a record names, whatever else of it is broken: tells whose it is.
pub fn claimed_by(text: &[u8]) -> Dual<IpAddr> {
    let Ok(mut fields) = open(text) else { return Dual::default() };
    Dual::from_fn(|family| {
        let (public_ip, _) = field_names(family);
        let text = fields.take_as::<String>(public_ip, STRING).ok()??;
        read_public_ip(family, public_ip, &text).ok()
    })
}

const STRING: Kind = Kind::new("a string", "\"\"");
const NUMBER: Kind = Kind::new("a number", "1");

const fn field_names(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("PublicIP", "BackendData"),
        Family::V6 => ("PublicIPv6", "BackendV6Data"),
    }
}

fn open(text: &[u8]) -> Result<Fields, Flaw> {
    let flaw = |why: String| Flaw { field: "record".into(), why };
    if text.len() > LONGEST {
        return Err(flaw(format!("has {} bytes, more than {LONGEST}", text.len())));
    }
    let text = str::from_utf8(text).map_err(|_| flaw("is not UTF-8".into()))?;
    Fields::read(text).map_err(|error| flaw(format!("is not a JSON object: {error}")))
}

fn read_lease(key: &LeaseKey, text: &[u8]) -> Result<(Lease, Option<u64>), Flaw> {
    let SubnetKey(subnet) = key.as_str().parse()?;
    let mut fields = open(text)?;
    let backend: String = fields.take_as("BackendType", STRING)?.unwrap_or_default();
    let sequence = fields.take_as("Sequence", NUMBER)?;
    let sides = subnet.map(|family, subnet| {
        let (public_ip, data) = field_names(family);
        let public_ip = Field { name: public_ip.into(), value: fields.take(public_ip).as_deref().map(unquoted) };
        let data = Field { name: data.into(), value: fields.take(data).map(|data| data.get().to_owned()) };
        Side { subnet: *subnet, public_ip, data }
    });
    Ok((assemble(&backend, &sides)?, sequence))
}

/// The content of a JSON string; of anything else its text, which is then found to be no address.
fn unquoted(value: &RawValue) -> String {
    serde_json::from_str(value.get()).unwrap_or_else(|_| value.get().to_owned())
}

/// A field of a record or an annotation of a Node, unread.
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

impl Field {
    fn flaw(&self, why: impl Into<String>) -> Flaw {
        Flaw { field: self.name.clone(), why: why.into() }
    }

    fn value(&self) -> Result<&str, Flaw> {
        self.value.as_deref().ok_or_else(|| self.flaw("is missing"))
    }
}

/// What a record says of one family, unread.
pub(crate) struct Side {
    pub(crate) subnet: IpNet,
    pub(crate) public_ip: Field,
    pub(crate) data: Field,
}

/// A lease of the families that are whole; an error if none is. It is older than all others until told otherwise.
pub(crate) fn assemble(backend: &str, sides: &Dual<Side>) -> Result<Lease, Flaw> {
    let mut flaws = Vec::new();
    let whole = Dual::from_fn(|family| {
        let side = sides.get(family)?;
        read_side(backend, family, side).map_err(|flaw| flaws.push(flaw)).ok()
    });
    if whole.is_empty() {
        let none = || Flaw { field: "record".into(), why: "names no subnet".into() };
        return Err(flaws.into_iter().next().unwrap_or_else(none));
    }
    let attributes = match backend {
        vxlan::TYPE => Attributes::Vxlan(Dual::from_fn(|family| whole.get(family)?.1)),
        host_gw::TYPE => Attributes::HostGw,
        other => Attributes::Other(shown(other).into()),
    };
    let subnet = Dual::from_fn(|family| whole.get(family).and(sides.get(family)).map(|side| side.subnet));
    Ok(Lease { subnet, public_ip: whole.map(|_, (ip, _)| *ip), attributes, since: Since::default(), flaws })
}

fn read_side(backend: &str, family: Family, side: &Side) -> Result<(IpAddr, Option<Vtep>), Flaw> {
    let public_ip = read_public_ip(family, &side.public_ip.name, side.public_ip.value()?)?;
    let vtep = if backend == vxlan::TYPE { Some(read_vtep(&side.data)?) } else { None };
    Ok((public_ip, vtep))
}

/// A public IP of a family that a host can have.
pub(crate) fn read_public_ip(family: Family, field: &str, text: &str) -> Result<IpAddr, Flaw> {
    let host = |ip: &IpAddr| {
        let broadcast = *ip == IpAddr::from([255; 4]);
        Family::of(*ip) == family && !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback() && !broadcast
    };
    let why = || format!("`{}` is not an {family} address of a host", shown(text));
    let ip = text.parse().ok().filter(host);
    ip.ok_or_else(|| Flaw { field: field.to_owned(), why: why() })
}

/// A VTEP as published. Records of old flannels have no VNI; it counts as 1, their default.
fn read_vtep(data: &Field) -> Result<Vtep, Flaw> {
    const VNI: Kind = Kind::new("a number from 0 to 16777215", "1");
    let inner = |flaw: Flaw| Flaw { field: format!("{}.{}", data.name, flaw.field), ..flaw };
    let text = data.value()?;
    let not_object = || data.flaw(format!("{} is not an object like {{\"VNI\":1,\"VtepMAC\":\"…\"}}", shown(text)));
    let mut fields = Fields::read(text).map_err(|_| not_object())?;
    let vni = fields.take_as("VNI", VNI).map_err(|bad| inner(bad.into()))?.unwrap_or(1);
    let mac = Field { name: "VtepMAC".into(), value: fields.take("VtepMAC").as_deref().map(unquoted) };
    let mac = read_mac(&mac).map_err(inner)?;
    let bad_vni = || inner(Flaw { field: "VNI".into(), why: format!("{vni} is not {}", VNI.what) });
    Ok(Vtep { vni: Vni::new(vni).ok_or_else(bad_vni)?, mac })
}

fn read_mac(field: &Field) -> Result<Mac, Flaw> {
    let text = field.value()?;
    let mac: Mac = text.parse().map_err(|_| field.flaw(format!("`{}` is not a 6-byte MAC address", shown(text))))?;
    if mac.is_host() { Ok(mac) } else { Err(field.flaw(format!("{mac} is not the MAC address of a host"))) }
}

impl From<BadField> for Flaw {
    fn from(BadField { key, value, kind }: BadField) -> Self {
        Self { field: key, why: format!("{value} is not {}", kind.what) }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RecordText {
    #[serde(rename = "PublicIP")]
    public_ip: IpAddr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<IpAddr>,
    #[serde(skip_serializing_if = "str::is_empty")]
    backend_type: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_data: Option<VtepText>,
    #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
    backend_v6_data: Option<VtepText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
}

#[derive(Serialize)]
struct VtepText {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    mac: Mac,
}

impl From<Vtep> for VtepText {
    fn from(vtep: Vtep) -> Self {
        Self { vni: vtep.vni.id(), mac: vtep.mac }
    }
}

/// The text of a record. `sequence` is the local store's; etcd's records have none.
pub fn write(public_ip: &Dual<IpAddr>, attributes: &Attributes, sequence: Option<u64>) -> String {
    let vteps = attributes.vteps();
    let text = RecordText {
        public_ip: public_ip.v4.unwrap_or(Family::V4.unspecified()),
        public_ipv6: public_ip.v6,
        backend_type: attributes.backend_type().into(),
        backend_data: vteps.v4.map(Into::into),
        backend_v6_data: vteps.v6.map(Into::into),
        sequence,
    };
    serde_json::to_string(&text).unwrap_or_default()
}

/// The text of what a VTEP publishes: `{"VNI":1,"VtepMAC":"aa:bb:cc:dd:ee:ff"}`, without blanks, because other
/// flannels cut it up as a string.
pub(crate) fn write_vtep(vtep: Vtep) -> String {
    serde_json::to_string(&VtepText::from(vtep)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
