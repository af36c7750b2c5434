//! The network config: `net-conf.json`, etcd's `<prefix>/config`, or the local store's `config.json` (compat §2).
//!
//! [`NetworkConfig::parse`] makes every check there is, once; whoever holds a [`NetworkConfig`] may trust it. What a
//! reader should know but need not stop for comes beside it as [`Warning`]s. The options of a backend are read by that
//! backend's own module.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::addr::{Dual, Family};
use crate::backend::Backend;
use crate::json::{BadField, Fields, Kind, shown};
pub use crate::subnets::SubnetRange;

/// Who hands out the subnets, and so what the config must say about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigRules {
    /// Flannel itself, from `SubnetMin` to `SubnetMax` (etcd and the local store).
    Etcd,
    /// Kubernetes: a node's pod CIDR need only lie inside the network.
    Kube,
}

/// The network of all nodes, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The network of each family in use (`Network`, `IPv6Network`), host bits cleared; at least one.
    pub network: Dual<IpNet>,
    /// The subnets flannel may hand out; none where Kubernetes does.
    pub subnets: Dual<SubnetRange>,
    /// Packet rules in nf_tables instead of iptables (`EnableNFTables`).
    pub nftables: bool,
    /// How packets get to other nodes.
    pub backend: Backend,
}

/// Why a network config cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It is no JSON object.
    #[error("network config is not a JSON object: {0}")]
    NotJson(String),
    /// A key is not there.
    #[error("network config has no {key}: {why}")]
    Missing {
        /// The key.
        key: String,
        /// Why it has to be there.
        why: String,
        /// What to do.
        hint: String,
    },
    /// A key holds something it must not.
    #[error("network config: {key} {value} {why}")]
    Bad {
        /// The key, with `Backend.` before those of the backend.
        key: String,
        /// What it holds, as JSON.
        value: String,
        /// What is wrong with that.
        why: String,
        /// What to do.
        hint: String,
    },
}

impl ConfigError {
    /// What a person can do about it.
    pub fn hint(&self) -> &str {
        match self {
            Self::NotJson(_) => {
                r#"the least it may hold is {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#
            }
            Self::Missing { hint, .. } | Self::Bad { hint, .. } => hint,
        }
    }

    pub(crate) fn bad(
        key: impl Into<String>,
        value: impl fmt::Display,
        why: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Bad { key: key.into(), value: value.to_string(), why: why.into(), hint: hint.into() }
    }

    /// Puts an object's name before a field's.
    pub(crate) fn within(object: &'static str) -> impl Fn(BadField) -> Self {
        move |BadField { key, value, kind }| {
            let hint = format!("for example \"{key}\": {}", kind.example);
            Self::bad(format!("{object}{key}"), value, format!("is not {}", kind.what), hint)
        }
    }
}

impl From<BadField> for ConfigError {
    fn from(bad: BadField) -> Self {
        Self::within("")(bad)
    }
}

/// Something in a network config that has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// No flannel knows this key.
    UnknownKey(String),
    /// The backend has no such option.
    UnknownOption {
        /// The backend's type.
        backend: &'static str,
        /// The option.
        key: String,
    },
    /// A network is given for a family that is not enabled.
    Disabled(Family),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKey(key) => write!(f, "network config: key {key} is unknown and has no effect"),
            Self::UnknownOption { backend, key } => {
                write!(f, "network config: backend {backend} has no option {key}; it has no effect")
            }
            Self::Disabled(family) => {
                write!(f, "network config: {} has no effect while Enable{family} is false", key_of(*family, "Network"))
            }
        }
    }
}

const FLAG: Kind = Kind::new("true or false", "true");
const LENGTH: Kind = Kind::new("a prefix length", "24");

impl NetworkConfig {
    /// Reads a config, with all defaults filled in.
    pub fn parse(text: &str, rules: ConfigRules) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut fields = Fields::read(text).map_err(ConfigError::NotJson)?;
        let mut warnings = Vec::new();
        let network = Dual::try_from_fn(|family| read_network(&mut fields, family, &mut warnings))?;
        if network.is_empty() {
            return Err(ConfigError::bad(
                "EnableIPv4",
                "false",
                "leaves no address family, as EnableIPv6 is not true either",
                "enable at least one of them",
            ));
        }
        let subnets = Dual::try_from_fn(|family| read_range(&mut fields, family, network.get(family), rules))?;
        let nftables = fields.take_as("EnableNFTables", FLAG)?.unwrap_or(false);
        let backend = Backend::read(fields.take("Backend").as_deref(), &network, &mut warnings)?;
        warnings.extend(fields.left_over().map(Warning::UnknownKey));
        Ok((Self { network, subnets, nftables, backend }, warnings))
    }

    /// Whether a node may hold these subnets: one for each family of the network and no other, each where the config
    /// allows it.
    pub fn fits(&self, subnets: &Dual<IpNet>) -> bool {
        Family::ALL.into_iter().all(|family| match (self.network.get(family), subnets.get(family)) {
            (Some(_), Some(subnet)) => self.fits_family(*subnet),
            (None, None) => true,
            _ => false,
        })
    }

    /// Whether one subnet is one of its family that the config allows.
    pub fn fits_family(&self, subnet: IpNet) -> bool {
        let family = Family::of_net(subnet);
        match (self.subnets.get(family), self.network.get(family)) {
            (Some(range), _) => range.contains(subnet),
            (None, Some(network)) => network.contains(&subnet),
            (None, None) => false,
        }
    }
}

/// A family's name for a key: `SubnetLen`, `IPv6SubnetLen`.
fn key_of(family: Family, name: &str) -> String {
    match family {
        Family::V4 => name.to_owned(),
        Family::V6 => format!("IPv6{name}"),
    }
}

fn network_kind(family: Family) -> Kind {
    match family {
        Family::V4 => Kind::new("an IPv4 network", "\"10.244.0.0/16\""),
        Family::V6 => Kind::new("an IPv6 network", "\"2001:db8:42::/56\""),
    }
}

fn address_kind(family: Family) -> Kind {
    match family {
        Family::V4 => Kind::new("an IPv4 address", "\"10.244.1.0\""),
        Family::V6 => Kind::new("an IPv6 address", "\"2001:db8:42:1::\""),
    }
}

/// A field that holds a word of one family as a string.
fn take_word<T: FromStr>(
    fields: &mut Fields,
    key: &str,
    kind: Kind,
    is_right: impl Fn(&T) -> bool,
) -> Result<Option<T>, ConfigError> {
    let Some(text) = fields.take_as::<String>(key, kind)? else { return Ok(None) };
    match text.parse() {
        Ok(word) if is_right(&word) => Ok(Some(word)),
        _ => Err(BadField { key: key.to_owned(), value: format!("\"{}\"", shown(&text)), kind }.into()),
    }
}

fn read_network(
    fields: &mut Fields,
    family: Family,
    warnings: &mut Vec<Warning>,
) -> Result<Option<IpNet>, ConfigError> {
    let (key, kind) = (key_of(family, "Network"), network_kind(family));
    let enabled = fields.take_as(&format!("Enable{family}"), FLAG)?.unwrap_or(family == Family::V4);
    let network = take_word(fields, &key, kind, |net: &IpNet| Family::of_net(*net) == family)?;
    match network {
        Some(network) if enabled => Ok(Some(network.trunc())),
        Some(_) => {
            warnings.push(Warning::Disabled(family));
            Ok(None)
        }
        None if !enabled => Ok(None),
        None => Err(ConfigError::Missing {
            why: format!("Enable{family} is true{}", if family == Family::V4 { " (the default)" } else { "" }),
            hint: format!("set \"{key}\": {}, or \"Enable{family}\": false", kind.example),
            key,
        }),
    }
}

fn read_range(
    fields: &mut Fields,
    family: Family,
    network: Option<&IpNet>,
    rules: ConfigRules,
) -> Result<Option<SubnetRange>, ConfigError> {
    let len = fields.take_as::<u8>(&key_of(family, "SubnetLen"), LENGTH)?.filter(|len| *len != 0);
    let mut end = |name: &str| {
        let address =
            take_word(fields, &key_of(family, name), address_kind(family), |a: &IpAddr| Family::of(*a) == family);
        Ok::<_, ConfigError>(address?.filter(|address| !address.is_unspecified()))
    };
    let (min, max) = (end("SubnetMin")?, end("SubnetMax")?);
    match (network, rules) {
        (Some(network), ConfigRules::Etcd) => subnet_range(*network, len, min, max).map(Some),
        _ => Ok(None),
    }
}

fn subnet_range(
    network: IpNet,
    len: Option<u8>,
    min: Option<IpAddr>,
    max: Option<IpAddr>,
) -> Result<SubnetRange, ConfigError> {
    let family = Family::of_net(network);
    let mut range = SubnetRange::whole(network, subnet_len(network, len)?);
    for (name, given, end) in [("SubnetMin", min, &mut range.min), ("SubnetMax", max, &mut range.max)] {
        if let Some(given) = given {
            check_end(&key_of(family, name), given, network, range.len)?;
            *end = given;
        }
    }
    if range.min > range.max {
        let key = key_of(family, "SubnetMin");
        let why = format!("lies after {} {}", key_of(family, "SubnetMax"), range.max);
        return Err(ConfigError::bad(key, range.min, why, "exchange the two, or leave one out"));
    }
    Ok(range)
}

/// The length of subnets: as given, else chosen so that a network holds at least four (compat §2).
fn subnet_len(network: IpNet, given: Option<u8>) -> Result<u8, ConfigError> {
    let family = Family::of_net(network);
    let (usual, longest) = match family {
        Family::V4 => (24, 30),
        Family::V6 => (64, 126),
    };
    let least = network.prefix_len().saturating_add(2);
    let bad = |why: String, hint: String| {
        let key = key_of(family, "SubnetLen");
        Err(ConfigError::bad(key, given.unwrap_or_default(), why, hint))
    };
    match given {
        None if least > longest => Err(ConfigError::bad(
            key_of(family, "Network"),
            network,
            "is too small to be divided among nodes",
            format!("use a network of at most /{}", longest - 2),
        )),
        None => Ok(usual.max(least)),
        Some(len) if len > longest => bad("leaves no room for pods".into(), format!("use at most {longest}")),
        Some(len) if len < least => {
            bad(format!("divides {network} into fewer than four subnets"), format!("use at least {least}"))
        }
        Some(len) => Ok(len),
    }
}

fn check_end(key: &str, end: IpAddr, network: IpNet, len: u8) -> Result<(), ConfigError> {
    if !network.contains(&end) {
        let hint = format!("use an address from {} to {}", network.network(), network.broadcast());
        return Err(ConfigError::bad(key, end, format!("lies outside {network}"), hint));
    }
    let start = IpNet::new(end, len).map_or(end, |net| net.network());
    if start != end {
        return Err(ConfigError::bad(key, end, format!("is not the start of a /{len} subnet"), format!("use {start}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
