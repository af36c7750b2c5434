//! The keys of `bridge`, those about VLANs excepted.

use std::ops::RangeInclusive;

use flannel_core::addr::{LinkName, Mac, Mtu};
use flannel_kernel::pod_masquerade::Backend;
use serde::Deserialize;
use serde_json::Value;

use super::vlan::{self, VlanConf};
use crate::protocol::conf::{ConfError, NetConf};
use crate::protocol::environment::{ARGS, Call};
use crate::protocol::failure::{Explain, Failure, code};
use crate::protocol::key::{Word, WrongKey, object, shown};
use crate::protocol::result::{Dns, as_optional_text, null_is_empty};

/// The bridge that is made when the configuration names none.
const DEFAULT: &str = "cni0";
/// What a veth pair may have: from what IPv4 needs (RFC 791) to what the kernel takes (`ETH_MAX_MTU` of `linux/if_ether.h`).
const MTUS: RangeInclusive<u32> = 68..=65535;

/// A checked configuration.
#[derive(Debug)]
pub(super) struct BridgeConf {
    /// The bridge.
    pub(super) bridge: LinkName,
    /// The bridge gets the gateway's address.
    pub(super) is_gateway: bool,
    /// The container's default route leads to the gateway.
    pub(super) is_default_gateway: bool,
    /// An address of the bridge that conflicts with the gateway's goes.
    pub(super) force_address: bool,
    /// MTU of the pair, and of a bridge that is made.
    pub(super) mtu: Option<Mtu>,
    /// A port sends packets back to where they came from.
    pub(super) hairpin: bool,
    /// The bridge receives all frames.
    pub(super) promisc: bool,
    /// Ports of this kind do not reach each other.
    pub(super) isolated: bool,
    /// Masquerade what the container sends to other places than its subnet.
    pub(super) ip_masq: bool,
    /// By which rule system; that of the node when none.
    pub(super) ip_masq_backend: Option<Backend>,
    /// The container looks for duplicates of its IPv6 addresses.
    pub(super) enable_dad: bool,
    /// The container sends with its own MAC only.
    pub(super) spoof_check: bool,
    /// The container's interface stays down.
    pub(super) stays_down: bool,
    /// VLANs of the bridge and the container's port.
    pub(super) vlan: VlanConf,
    /// MAC of the container's interface.
    pub(super) mac: Option<Mac>,
    /// Replaces what the IPAM plugin says.
    pub(super) dns: Dns,
    /// Which plugin manages the addresses; none for a network without.
    pub(super) ipam: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    #[serde(default, with = "as_optional_text")]
    bridge: Option<LinkName>,
    #[serde(default, deserialize_with = "null_is_empty")]
    is_gateway: bool,
    #[serde(default, deserialize_with = "null_is_empty")]
    is_default_gateway: bool,
    #[serde(default, deserialize_with = "null_is_empty")]
    force_address: bool,
    #[serde(default, deserialize_with = "null_is_empty")]
    mtu: u32,
    #[serde(default, deserialize_with = "null_is_empty")]
    hairpin_mode: bool,
    #[serde(default, deserialize_with = "null_is_empty")]
    promisc_mode: bool,
    #[serde(default, deserialize_with = "null_is_empty")]
    port_isolation: bool,
    #[serde(default, deserialize_with = "null_is_empty")]
    ip_masq: bool,
    #[serde(default)]
    ip_masq_backend: Option<String>,
    #[serde(default, rename = "macspoofchk", deserialize_with = "null_is_empty")]
    mac_spoof_check: bool,
    #[serde(default, deserialize_with = "null_is_empty")]
    disable_container_interface: bool,
    #[serde(default, rename = "enabledad", deserialize_with = "null_is_empty")]
    enable_dad: bool,
    #[serde(default, deserialize_with = "object")]
    dns: Dns,
    #[serde(default, deserialize_with = "object")]
    args: Args,
    #[serde(default, deserialize_with = "object")]
    runtime_config: WithMac,
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default, deserialize_with = "object")]
    cni: WithMac,
}

#[derive(Default, Deserialize)]
struct WithMac {
    #[serde(default, with = "as_optional_text")]
    mac: Option<Mac>,
}

impl BridgeConf {
    /// Reads and checks the keys.
    pub(super) fn read(conf: &NetConf, call: &Call<'_>) -> Result<Self, Failure> {
        let keys: Keys = conf.parse()?;
        call.allow_args(&ARGS)?;
        if keys.mtu != 0 && !MTUS.contains(&keys.mtu) {
            return Err(BridgeConfError::BadMtu(keys.mtu).into());
        }
        if keys.hairpin_mode && keys.promisc_mode {
            return Err(BridgeConfError::HairpinAndPromisc.into());
        }
        let bad = |_| BridgeConfError::BadMac(shown(call.arg("MAC").unwrap_or_default()));
        let of_env = call.arg("MAC").map(str::parse).transpose().map_err(bad)?;
        let ipam = conf.ipam_type()?.map(str::to_owned);
        if ipam.is_some() && keys.disable_container_interface {
            return Err(BridgeConfError::DownWithAddresses.into());
        }
        let bridge = keys.bridge.map_or_else(|| bridge_name(conf), Ok)?;
        let is_gateway = keys.is_gateway || keys.is_default_gateway;
        Ok(Self {
            bridge,
            is_gateway,
            is_default_gateway: keys.is_default_gateway,
            force_address: keys.force_address,
            mtu: (keys.mtu != 0).then_some(Mtu(keys.mtu)),
            hairpin: keys.hairpin_mode,
            promisc: keys.promisc_mode,
            isolated: keys.port_isolation,
            ip_masq: keys.ip_masq && ipam.is_some(),
            ip_masq_backend: keys.ip_masq_backend.as_deref().map(backend).transpose()?,
            enable_dad: keys.enable_dad,
            spoof_check: keys.mac_spoof_check,
            stays_down: keys.disable_container_interface,
            mac: keys.runtime_config.mac.or(keys.args.cni.mac).or(of_env),
            vlan: conf.parse::<vlan::Keys>()?.read(bridge, is_gateway && ipam.is_some())?,
            dns: keys.dns,
            ipam,
        })
    }
}

fn backend(name: &str) -> Result<Backend, BridgeConfError> {
    match name {
        "iptables" => Ok(Backend::Iptables),
        "nftables" => Ok(Backend::Nftables),
        _ => Err(BridgeConfError::UnknownBackend(shown(name))),
    }
}

/// The bridge, read without the other keys, which GC has no need of.
pub(super) fn bridge_name(conf: &NetConf) -> Result<LinkName, ConfError> {
    let name = conf.keys.get("bridge").and_then(Value::as_str).filter(|name| !name.is_empty());
    let name = Word::read(name.unwrap_or(DEFAULT));
    name.map_err(|error: serde_json::Error| conf.wrong(WrongKey::new("bridge", error.to_string())))
}

/// A key cannot be honoured.
#[derive(Debug, thiserror::Error)]
pub(super) enum BridgeConfError {
    #[error("bridge: cannot set hairpin mode and promiscuous mode at the same time")]
    HairpinAndPromisc,
    #[error("bridge: cannot use IPAM when DisableContainerInterface flag is set")]
    DownWithAddresses,
    #[error("bridge: unknown ipmasq backend {0:?}")]
    UnknownBackend(String),
    #[error("bridge: MTU {0} is not between {least} and {most}", least = MTUS.start(), most = MTUS.end())]
    BadMtu(u32),
    #[error("bridge: invalid MAC address in CNI_ARGS: {0:?}")]
    BadMac(String),
}

impl Explain for BridgeConfError {
    fn code(&self) -> u32 {
        match self {
            Self::BadMac(_) => code::ENVIRONMENT,
            _ => code::CONF,
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::BadMtu(_) => "set `mtu` to that of the node's network, or leave it out for the kernel's 1500".into(),
            Self::DownWithAddresses => {
                "an interface that is down has no use for addresses: remove `ipam` or `disableContainerInterface`"
                    .into()
            }
            Self::UnknownBackend(_) => "set `ipMasqBackend` to \"iptables\" or \"nftables\", or leave it out".into(),
            Self::HairpinAndPromisc => {
                "promiscuous mode on the bridge does what hairpin mode does: set one of them".into()
            }
            Self::BadMac(_) => "six bytes in hexadecimal, as MAC=c2:11:22:33:44:55".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::environment::{Environment, Verb};

    fn read(args: &str, keys: &str) -> Result<BridgeConf, (u32, String)> {
        let pairs = [("CNI_CONTAINERID", "c"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "e"), ("CNI_ARGS", args)];
        let env = Environment::new(pairs.map(|(name, value)| (name.into(), value.into())));
        let conf = format!(r#"{{"cniVersion":"1.0.0","name":"n"{keys}}}"#);
        let conf = NetConf::read(&mut conf.as_bytes()).unwrap();
        BridgeConf::read(&conf, &env.call(Verb::Add).unwrap()).map_err(|failure| (failure.code, failure.msg))
    }

    #[test]
    fn defaults_are_the_go_plugins() {
        let conf = read("", "").unwrap();
        assert_eq!((conf.bridge.as_str(), conf.mtu, conf.ipam), ("cni0", None, None));
        assert!(!conf.is_gateway && !conf.hairpin);
        assert!(read("", r#","isDefaultGateway":true"#).unwrap().is_gateway);
    }

    #[test]
    fn the_mac_of_the_runtime_wins() {
        let (args, runtime) =
            (r#","args":{"cni":{"mac":"02:00:00:00:00:02"}}"#, r#","runtimeConfig":{"mac":"02:00:00:00:00:03"}"#);
        let mac = |keys: &str| read("IgnoreUnknown=1;MAC=02:00:00:00:00:01", keys).unwrap().mac.unwrap().0[5];
        assert_eq!([mac(""), mac(args), mac(&format!("{args}{runtime}"))], [1, 2, 3]);
    }

    #[test]
    fn keys_that_cannot_be_honoured_are_errors() {
        for (keys, code, expect) in [
            (r#","ipMasq":true,"ipMasqBackend":"ipfw""#, 7, "unknown ipmasq backend \"ipfw\""),
            (r#","ipMasq":"yes""#, 7, "key `ipMasq`: \"yes\" is not true or false"),
            (r#","vlan":4095"#, 7, "invalid VLAN ID 4095"),
            (r#","vlanTrunk":[{"id":0}]"#, 7, "vlanTrunk[0]"),
            (r#","macspoofchk":1"#, 7, "key `macspoofchk`: 1 is not true or false"),
            (r#","disableContainerInterface":true,"ipam":{"type":"x"}"#, 7, "cannot use IPAM"),
            (r#","hairpinMode":true,"promiscMode":true"#, 7, "hairpin mode and promiscuous mode"),
            (r#","mtu":"big""#, 7, "key `mtu`: \"big\" is not a number"),
            (r#","mtu":-1"#, 7, "key `mtu`: -1 is not a number"),
            (r#","mtu":67"#, 7, "MTU 67 is not between 68 and 65535"),
            (r#","bridge":"a/b""#, 7, "\"a/b\" is not"),
            (r#","runtimeConfig":{"mac":"02:00"}"#, 7, "\"02:00\" is not"),
        ] {
            let (found, msg) = read("", keys).unwrap_err();
            assert_eq!(found, code, "{keys}");
            assert!(msg.contains(expect), "{msg}");
        }
        assert_eq!(read("MAC=x", "").unwrap_err().0, 4);
        assert!(
            read("", r#","ipMasq":false,"vlan":0,"vlanTrunk":[],"macspoofchk":false,"preserveDefaultVlan":true"#)
                .is_ok()
        );
    }
}
