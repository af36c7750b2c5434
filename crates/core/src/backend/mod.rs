//! The backends: how packets reach other nodes. One variant each, matched in full wherever backends differ.
//!
//! This module knows which backends there are; what is particular to one (options, and what it wants of the kernel) is
//! in the file of its name.

pub mod host_gw;
pub mod vxlan;

use serde_json::value::RawValue;

use crate::addr::Dual;
use crate::config::{ConfigError, Warning};
use crate::json::{Fields, Kind, shown};
pub use vxlan::VxlanOptions;

use ipnet::IpNet;

/// The backend of a network, with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Packets travel in VXLAN, made by the kernel.
    Vxlan(VxlanOptions),
    /// Packets are routed to the other host, which is on the same link.
    HostGw,
}

/// Backends of other flannels that this one does not run (compat §6).
const ELSEWHERE: [&str; 7] = ["udp", "wireguard", "ipip", "ipsec", "extension", "alloc", "tencent-vpc"];

const CHOICE: &str = r#"set "Backend": {"Type": "vxlan"} or {"Type": "host-gw"}"#;

impl Backend {
    /// The type as config and leases spell it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Vxlan(_) => vxlan::TYPE,
            Self::HostGw => host_gw::TYPE,
        }
    }

    /// Reads the config's `Backend`; options that the backend does not have become warnings.
    pub(crate) fn read(
        backend: Option<&RawValue>,
        network: &Dual<IpNet>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, ConfigError> {
        let Some(backend) = backend else {
            return Err(ConfigError::Missing {
                key: "Backend".into(),
                why: "the default is udp, which is not supported".into(),
                hint: CHOICE.into(),
            });
        };
        let bad = |_| ConfigError::bad("Backend", shown(backend.get()), "is not an object", CHOICE);
        let mut options = Fields::read(backend.get()).map_err(bad)?;
        let backend = Self::of_type(&take_type(&mut options)?, &mut options, network)?;
        let unknown = |key| Warning::UnknownOption { backend: backend.type_name(), key };
        warnings.extend(options.left_over().map(unknown));
        Ok(backend)
    }

    fn of_type(name: &str, options: &mut Fields, network: &Dual<IpNet>) -> Result<Self, ConfigError> {
        match name.to_ascii_lowercase().as_str() {
            vxlan::TYPE => VxlanOptions::read(options, network).map(Self::Vxlan),
            host_gw::TYPE => {
                host_gw::read(options);
                Ok(Self::HostGw)
            }
            other => {
                let why = if ELSEWHERE.contains(&other) { "is not supported" } else { "is no backend" };
                Err(ConfigError::bad("Backend.Type", format!("\"{}\"", shown(name)), why, CHOICE))
            }
        }
    }
}

fn take_type(options: &mut Fields) -> Result<String, ConfigError> {
    const TYPE: Kind = Kind::new("the name of a backend", "\"vxlan\"");
    let name = options.take_as("Type", TYPE).map_err(ConfigError::within("Backend."))?;
    name.ok_or_else(|| ConfigError::Missing {
        key: "Backend.Type".into(),
        why: "it says how packets reach other nodes".into(),
        hint: CHOICE.into(),
    })
}
