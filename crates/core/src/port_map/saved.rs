//! Published ports as a file: JSON that says all of a [`PortMap`], so that its rules can be removed, or made again, by whoever reads it.
//!
//! [`to_text`] and [`parse`]. What is read is as strict as what a runtime sends: names are fit to be file names, ports are ports.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{BadMapping, Mapping, Mark, Masquerade, PortMap};
use crate::addr::{Dual, Family};
use crate::rules::RuleMode;

/// Where the plugin keeps these files, unless its configuration says another folder.
pub const DATA_DIR: &str = "/run/flannel/portmap";
/// The folder in there that has a folder for each network, with a file for each container.
pub const CONTAINERS: &str = "containers";
/// The file in there that plugins at work have locked together, and alone who makes rules again.
pub const RESTORE_LOCK: &str = "restore.lock";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wire {
    network: String,
    container: String,
    chain: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    known_as: String,
    backend: Backend,
    addresses: Vec<String>,
    port_mappings: Vec<WireMapping>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    masquerade: Option<WireMasquerade>,
    #[serde(default, rename = "conditionsV4", skip_serializing_if = "Vec::is_empty")]
    conditions_v4: Vec<String>,
    #[serde(default, rename = "conditionsV6", skip_serializing_if = "Vec::is_empty")]
    conditions_v6: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    links: Vec<String>,
    #[serde(default, rename = "handlesV4", skip_serializing_if = "Vec::is_empty")]
    handles_v4: Vec<u64>,
    #[serde(default, rename = "handlesV6", skip_serializing_if = "Vec::is_empty")]
    handles_v6: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Backend {
    Iptables,
    Nftables,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireMapping {
    protocol: String,
    host_port: i64,
    container_port: i64,
    #[serde(default, rename = "hostIP", skip_serializing_if = "String::is_empty")]
    host_ip: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WireMasquerade {
    all: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bit: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chain: Option<String>,
}

/// The text of the file.
pub fn to_text(map: &PortMap) -> String {
    let words = |family| map.conditions.get(family).cloned().unwrap_or_default();
    let handles = |family| map.handles.get(family).cloned().unwrap_or_default();
    let wire = Wire {
        network: map.network.clone(),
        container: map.container.clone(),
        chain: map.chain.clone(),
        known_as: map.known_as.clone(),
        backend: match map.mode {
            RuleMode::Iptables => Backend::Iptables,
            RuleMode::Nftables => Backend::Nftables,
        },
        addresses: map.addresses.values().map(ToString::to_string).collect(),
        port_mappings: map.mappings.iter().map(WireMapping::new).collect(),
        masquerade: map.masquerade.as_ref().map(WireMasquerade::new),
        conditions_v4: words(Family::V4),
        conditions_v6: words(Family::V6),
        links: map.links.iter().map(ToString::to_string).collect(),
        handles_v4: handles(Family::V4),
        handles_v6: handles(Family::V6),
    };
    serde_json::to_string(&wire).unwrap_or_default()
}

impl WireMapping {
    fn new(mapping: &Mapping) -> Self {
        Self {
            protocol: mapping.protocol.to_string(),
            host_port: mapping.host_port.into(),
            container_port: mapping.container_port.into(),
            host_ip: mapping.host_ip.as_ref().map(IpAddr::to_string).unwrap_or_default(),
        }
    }
}

impl WireMasquerade {
    fn new(masquerade: &Masquerade) -> Self {
        let (bit, chain) = match &masquerade.mark {
            Mark::Bit(bit) => (Some(*bit), None),
            Mark::Chain(chain) => (None, Some(chain.clone())),
        };
        Self { all: masquerade.all, bit, chain }
    }

    fn read(self) -> Result<Masquerade, BadSaved> {
        let mark = match (self.bit, self.chain) {
            (Some(bit @ 0..=31), None) => Mark::Bit(bit),
            (None, Some(chain)) if is_word(&chain) => Mark::Chain(chain),
            _ => return Err(BadSaved::Word("masquerade")),
        };
        Ok(Masquerade { all: self.all, mark })
    }
}

/// Reads the text of the file.
pub fn parse(text: &[u8]) -> Result<PortMap, BadSaved> {
    let wire: Wire = serde_json::from_slice(text).map_err(BadSaved::NotJson)?;
    for (name, word) in [("network", &wire.network), ("container", &wire.container), ("chain", &wire.chain)] {
        is_word(word).then_some(()).ok_or(BadSaved::Word(name))?;
    }
    let mapping = |wire: &WireMapping| {
        let WireMapping { protocol, host_port, container_port, host_ip } = wire;
        Mapping::new(protocol, *host_port, *container_port, host_ip)
    };
    let mut map = PortMap {
        mappings: wire.port_mappings.iter().map(mapping).collect::<Result<_, _>>()?,
        masquerade: wire.masquerade.map(WireMasquerade::read).transpose()?,
        network: wire.network,
        container: wire.container,
        chain: wire.chain,
        known_as: wire.known_as,
        mode: match wire.backend {
            Backend::Iptables => RuleMode::Iptables,
            Backend::Nftables => RuleMode::Nftables,
        },
        addresses: Dual::default(),
        conditions: Dual::default(),
        links: Vec::new(),
        handles: Dual::default(),
    };
    for text in &wire.addresses {
        let net: IpNet = text.parse().map_err(|_| BadSaved::Word("addresses"))?;
        map.addresses.set(Family::of_net(net), net);
    }
    for (family, words) in [(Family::V4, wire.conditions_v4), (Family::V6, wire.conditions_v6)] {
        words.iter().all(|word| is_condition(word)).then_some(()).ok_or(BadSaved::Word("conditions"))?;
        *map.conditions.slot(family) = Some(words).filter(|words| !words.is_empty());
    }
    for (family, handles) in [(Family::V4, wire.handles_v4), (Family::V6, wire.handles_v6)] {
        *map.handles.slot(family) = Some(handles).filter(|handles| !handles.is_empty());
    }
    let links = wire.links.iter().map(|name| name.parse().map_err(|_| BadSaved::Word("links")));
    map.links = links.collect::<Result<_, _>>()?;
    Ok(map)
}

/// A name that is one word to every program, and a file name.
pub fn is_word(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric()) && text.bytes().all(allowed)
}

/// A word that may stand among the matches of a rule: one that cannot end the rule and begin another.
pub fn is_condition(word: &str) -> bool {
    !word.chars().any(|c| c.is_control() || matches!(c, ';' | '#'))
}

/// The file holds something else.
#[derive(Debug, thiserror::Error)]
pub enum BadSaved {
    /// It is not the JSON expected.
    #[error("{0}")]
    NotJson(serde_json::Error),
    /// A value is not what it must be.
    #[error("key `{0}` has a wrong value")]
    Word(&'static str),
    /// A mapping is none.
    #[error(transparent)]
    Mapping(#[from] BadMapping),
}

#[cfg(test)]
mod tests {
    use super::super::tests::port_map;
    use super::*;

    #[test]
    fn what_is_saved_reads_back() {
        let mut map = port_map(&["10.1.0.2/24", "fd00::2/64"], &["tcp 8080 80", "sctp 1 2 2001:db8::1", "udp 1 1 ::"]);
        assert_eq!(parse(to_text(&map).as_bytes()).unwrap(), map);
        map.conditions.set(Family::V6, vec!["-d".into(), "2001:db8::2".into()]);
        map.masquerade = Some(Masquerade { all: true, mark: Mark::Chain("KUBE-MARK-MASQ".into()) });
        map.mode = RuleMode::Iptables;
        map.known_as = "default/nginx".into();
        map.links = vec!["veth1".parse().unwrap()];
        assert_eq!(parse(to_text(&map).as_bytes()).unwrap(), map);
        map.masquerade = None;
        assert_eq!(parse(to_text(&map).as_bytes()).unwrap(), map);
    }

    #[test]
    fn what_is_broken_is_named() {
        let good = to_text(&port_map(&["10.1.0.2/24"], &["tcp 8080 80"]));
        for (from, to, expect) in [
            ("\"c1\"", "\"../c1\"", "key `container` has a wrong value"),
            ("8080", "80800", "invalid host port number: 80800"),
            ("10.1.0.2/24", "10.1.0.2/33", "key `addresses` has a wrong value"),
            ("\"bit\":13", "\"bit\":32", "key `masquerade` has a wrong value"),
            ("}}", "},\"conditionsV4\":[\"a;\"]}", "key `conditions` has a wrong value"),
            ("nftables", "ipfw", "unknown variant `ipfw`"),
            ("{", "", "invalid type"),
        ] {
            let error = parse(good.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        }
        for end in 0..good.len() {
            assert!(parse(&good.as_bytes()[..end]).is_err());
        }
    }
}
