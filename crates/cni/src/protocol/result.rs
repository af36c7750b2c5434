//! The result of an ADD: one type for all versions, read from and written in the shape of each.
//!
//! 0.1.0 and 0.2.0 know one address of each family (`ip4`, `ip6`); 0.3.0 to 0.4.0 a list whose entries say their IP
//! `version`; 1.0.0 dropped that, and since then `dns` is left out when it says nothing; 1.1.0 added `mtu`, `socketPath` and `pciID` to interfaces and attributes to routes.

use std::fmt::Display;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use flannel_core::addr::Family;

use super::key::{self, Object, Word, WrongKey, object, objects, shown};
use super::version::Version;

/// What an ADD made, in the words of 1.1.0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniResult {
    /// Interfaces made or adopted.
    pub interfaces: Vec<Interface>,
    /// Addresses given.
    pub ips: Vec<IpConfig>,
    /// Routes made in the container.
    pub routes: Vec<Route>,
    /// Name servers for the container.
    pub dns: Dns,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its link-layer address, as text since not every link has six bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the network namespace it is in; empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Path of a socket file (1.1.0).
    #[serde(default, rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// PCI address (1.1.0).
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address with its gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Which of the result's interfaces carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// The address, with the length of the subnet's prefix.
    #[serde(with = "as_text")]
    pub address: IpNet,
    /// The subnet's gateway.
    #[serde(default, with = "as_optional_text", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A route in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Its destination.
    #[serde(with = "as_text")]
    pub dst: IpNet,
    /// Its next hop; none means the gateway of the address of the same family.
    #[serde(default, with = "as_optional_text", skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// MTU along the route (1.1.0).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mtu: u32,
    /// Maximum segment size to announce (1.1.0).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub advmss: u32,
    /// Priority, lower first (1.1.0).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: u32,
    /// Routing table (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Scope (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route without attributes.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Name service for the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Servers, in order of preference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Domains to search in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options for the resolver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl CniResult {
    /// Reads a result in the shape of any version.
    pub fn from_value(value: &Value) -> Result<Self, WrongKey> {
        let Object(wire): Object<Incoming> = key::read(value)?;
        if !wire.cni_version.is_empty() {
            let unknown = |_| format!("{:?} is no version of CNI that this plugin knows", shown(&wire.cni_version));
            wire.cni_version.parse::<Version>().map_err(|error| WrongKey::new("cniVersion", unknown(error)))?;
        }
        let mut result = Self { interfaces: wire.interfaces, ips: wire.ips, routes: wire.routes, dns: wire.dns };
        for Object(legacy) in [wire.ip4, wire.ip6].into_iter().flatten() {
            result.ips.push(IpConfig { interface: None, address: legacy.ip, gateway: legacy.gateway });
            result.routes.extend(legacy.routes);
        }
        Ok(result)
    }

    /// Reads a result that a plugin has printed.
    pub fn parse(stdout: &[u8]) -> Result<Self, WrongKey> {
        let value = serde_json::from_slice(stdout);
        value
            .map_err(|error| WrongKey::new("", format!("it is not JSON: {error}")))
            .and_then(|value| Self::from_value(&value))
    }

    /// The result as JSON in the shape of a version.
    pub fn render(&self, version: Version) -> Vec<u8> {
        if version <= Version::V0_2_0 {
            return render_json(&self.legacy(version));
        }
        let mut shaped = self.clone();
        let says_version = version < Version::V1_0_0;
        if says_version {
            shaped.drop_attributes_of_interfaces();
        }
        let ips =
            shaped.ips.into_iter().map(|ip| OutgoingIp { version: says_version.then(|| digit(&ip)), ip }).collect();
        render_json(&Outgoing {
            cni_version: version.as_str(),
            interfaces: shaped.interfaces,
            ips,
            routes: shaped.routes,
            dns: Some(shaped.dns).filter(|dns| says_version || *dns != Dns::default()),
        })
    }

    /// Those of routes stay, as the Go plugins have it: who reads an older version passes them over, and a CHECK finds the routes by them.
    fn drop_attributes_of_interfaces(&mut self) {
        for interface in &mut self.interfaces {
            (interface.mtu, interface.socket_path, interface.pci_id) = (None, String::new(), String::new());
        }
    }

    fn legacy(&self, version: Version) -> OutgoingLegacy {
        let of = |family| {
            let first = self.ips.iter().find(|ip| Family::of_net(ip.address) == family)?;
            let routes = self.routes.iter().filter(|route| Family::of_net(route.dst) == family);
            let routes = routes.map(|route| Route::new(route.dst, route.gw)).collect();
            Some(LegacyIp { ip: first.address, gateway: first.gateway, routes })
        };
        OutgoingLegacy {
            cni_version: version.as_str(),
            ip4: of(Family::V4),
            ip6: of(Family::V6),
            dns: self.dns.clone(),
        }
    }
}

fn digit(ip: &IpConfig) -> &'static str {
    match Family::of_net(ip.address) {
        Family::V4 => "4",
        Family::V6 => "6",
    }
}

#[derive(Deserialize)]
struct Incoming {
    #[serde(default, rename = "cniVersion", deserialize_with = "null_is_empty")]
    cni_version: String,
    #[serde(default, deserialize_with = "objects")]
    interfaces: Vec<Interface>,
    #[serde(default, deserialize_with = "objects")]
    ips: Vec<IpConfig>,
    #[serde(default, deserialize_with = "objects")]
    routes: Vec<Route>,
    #[serde(default, deserialize_with = "object")]
    dns: Dns,
    ip4: Option<Object<LegacyIp>>,
    ip6: Option<Object<LegacyIp>>,
}

#[derive(Serialize)]
struct Outgoing {
    #[serde(rename = "cniVersion")]
    cni_version: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<Interface>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<OutgoingIp>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<Dns>,
}

#[derive(Serialize)]
struct OutgoingIp {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    #[serde(flatten)]
    ip: IpConfig,
}

#[derive(Serialize)]
struct OutgoingLegacy {
    #[serde(rename = "cniVersion")]
    cni_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<LegacyIp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<LegacyIp>,
    dns: Dns,
}

#[derive(Serialize, Deserialize)]
struct LegacyIp {
    #[serde(with = "as_text")]
    ip: IpNet,
    #[serde(default, with = "as_optional_text", skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, deserialize_with = "objects", skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

/// JSON indented by four blanks, as the Go plugins print it.
pub(crate) fn render_json(value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter));
    debug_assert!(written.is_ok(), "results have text keys only");
    text
}

/// Go writes an empty list as `null`.
pub(crate) fn null_is_empty<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Values that JSON holds as text.
pub(crate) mod as_text {
    use super::{Deserialize, Deserializer, Display, Serializer, Word};

    pub(crate) fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T: Word, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        T::read(&String::deserialize(from)?)
    }
}

/// Values that JSON holds as text, or as `null` or an empty text, or not at all.
pub(crate) mod as_optional_text {
    use super::{Deserialize, Deserializer, Display, Serialize, Serializer, Word};

    #[allow(clippy::ref_option, reason = "serde's signature")]
    pub(crate) fn serialize<T: Display, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(ToString::to_string).serialize(to)
    }

    pub(crate) fn deserialize<'de, T: Word, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(from)?.filter(|text| !text.is_empty());
        text.map(|text| T::read(&text)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> CniResult {
        let ip = |address: &str, gateway: &str| IpConfig {
            interface: Some(1),
            address: address.parse().unwrap(),
            gateway: Some(gateway.parse().unwrap()),
        };
        CniResult {
            interfaces: vec![
                Interface { name: "cni0".into(), mac: "aa:97:68:83:85:a2".into(), ..Interface::default() },
                Interface { name: "eth0".into(), sandbox: "/n".into(), mtu: Some(1450), ..Interface::default() },
            ],
            ips: vec![ip("10.1.0.2/24", "10.1.0.1"), ip("fd00::2/64", "fd00::1")],
            routes: vec![
                Route { mtu: 1400, ..Route::new("10.0.0.0/8".parse().unwrap(), None) },
                Route::new("::/0".parse().unwrap(), Some("fd00::1".parse().unwrap())),
            ],
            dns: Dns { nameservers: vec!["10.0.0.53".into()], ..Dns::default() },
        }
    }

    fn compact(result: &CniResult, version: Version) -> String {
        let text = result.render(version);
        let value: Box<serde_json::value::RawValue> = serde_json::from_slice(&text).unwrap();
        value.get().split('\n').map(str::trim_start).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_version_has_its_shape() {
        let result = example();
        let interfaces = r#""interfaces": [ { "name": "cni0", "mac": "aa:97:68:83:85:a2" }, { "name": "eth0", "#;
        let latest = compact(&result, Version::V1_1_0);
        assert!(latest.contains(&format!(r#"{interfaces}"mtu": 1450, "sandbox": "/n" }} ]"#)), "{latest}");
        assert!(latest.contains(r#"{ "dst": "10.0.0.0/8", "mtu": 1400 }"#), "{latest}");
        let one = compact(&result, Version::V1_0_0);
        assert!(one.contains(&format!(r#"{interfaces}"mtu": 1450, "sandbox": "/n" }} ]"#)), "{one}");
        assert!(
            one.contains(r#""ips": [ { "interface": 1, "address": "10.1.0.2/24", "gateway": "10.1.0.1" }"#),
            "{one}"
        );
        let three = compact(&result, Version::V0_3_1);
        assert!(three.contains(&format!(r#"{interfaces}"sandbox": "/n" }} ]"#)), "{three}");
        assert!(three.contains(r#"{ "version": "6", "interface": 1, "address": "fd00::2/64""#), "{three}");
        assert_eq!(
            compact(&result, Version::V0_2_0),
            r#"{ "cniVersion": "0.2.0", "ip4": { "ip": "10.1.0.2/24", "gateway": "10.1.0.1", "routes": [ { "dst": "10.0.0.0/8" } ] }, "#
                .to_owned()
                + r#""ip6": { "ip": "fd00::2/64", "gateway": "fd00::1", "routes": [ { "dst": "::/0", "gw": "fd00::1" } ] }, "#
                + r#""dns": { "nameservers": [ "10.0.0.53" ] } }"#
        );
    }

    #[test]
    fn a_result_reads_back_from_every_shape() {
        assert_eq!(CniResult::parse(&example().render(Version::V1_1_0)).unwrap(), example());
        for version in Version::ALL {
            let back = CniResult::parse(&example().render(version)).unwrap();
            assert_eq!(
                back.ips.iter().map(|ip| ip.address).collect::<Vec<_>>(),
                example().ips.iter().map(|ip| ip.address).collect::<Vec<_>>()
            );
            assert_eq!(back.routes.len(), 2);
            assert_eq!(back.dns, example().dns);
        }
    }

    #[test]
    fn a_result_goes_from_each_version_to_each_with_what_both_can_say() {
        for (from, to) in Version::ALL.iter().flat_map(|from| Version::ALL.map(|to| (*from, to))) {
            let back = CniResult::parse(&example().render(from)).unwrap();
            let short = from.min(to);
            let again = CniResult::parse(&back.render(to)).unwrap();
            assert_eq!(compact(&again, short), compact(&example(), short), "{from:?} to {to:?}");
        }
    }

    #[test]
    fn a_result_of_an_unknown_version_is_none() {
        let error = CniResult::parse(br#"{"cniVersion":"2.0.0","ips":[]}"#).unwrap_err().to_string();
        assert_eq!(error, "key `cniVersion`: \"2.0.0\" is no version of CNI that this plugin knows");
    }

    #[test]
    fn gos_nulls_are_empty() {
        let text = r#"{"cniVersion":"1.0.0","interfaces":null,"ips":null,"routes":null,"dns":{}}"#;
        assert_eq!(CniResult::parse(text.as_bytes()).unwrap(), CniResult::default());
        assert!(CniResult::parse(br#"{"ips":[{"address":"10.0.0.300/24"}]}"#).is_err());
    }
}
