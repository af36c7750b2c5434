//! The delegate's configuration: what the administrator wrote under `delegate` and `ipam`, and for the rest what
//! `subnet.env` and the defaults say (compat §8).

use std::path::{Path, PathBuf};

use flannel_core::subnet_env::SubnetEnv;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::Applet;
use crate::protocol::conf::NetConf;
use crate::protocol::failure::{Explain, Failure, code};
use crate::protocol::file;
use crate::protocol::key::{WrongKey, object, path};

const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const DATA_DIR: &str = "/var/lib/cni/flannel";

/// The plugin's own keys.
#[derive(Debug)]
pub(super) struct Keys {
    /// What the daemon writes.
    pub(super) subnet_file: String,
    /// Where the delegates' configurations are saved.
    pub(super) data_dir: PathBuf,
    delegate: Map<String, Value>,
    ipam: Map<String, Value>,
    runtime_config: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default, deserialize_with = "path")]
    subnet_file: String,
    #[serde(default, deserialize_with = "path")]
    data_dir: String,
    #[serde(default, deserialize_with = "object")]
    delegate: Map<String, Value>,
    #[serde(default, deserialize_with = "object")]
    ipam: Map<String, Value>,
    runtime_config: Option<Map<String, Value>>,
}

impl Keys {
    /// Reads and checks the keys.
    pub(super) fn read(conf: &NetConf) -> Result<Self, Failure> {
        let raw: Raw = conf.parse()?;
        if raw.ipam.get("type").is_some_and(|kind| !kind.is_string()) {
            return Err(conf.wrong(WrongKey::new("ipam.type", "it is not text".into())).into());
        }
        if raw.delegate.get("type").is_some_and(|kind| !kind.is_string()) {
            return Err(KeyError::TypeNotText.into());
        }
        if let Some(key) = ["name", "ipam"].into_iter().find(|key| raw.delegate.contains_key(*key)) {
            return Err(KeyError::NotYours(key).into());
        }
        let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        Ok(Self {
            subnet_file: or(raw.subnet_file, SUBNET_FILE),
            data_dir: or(raw.data_dir, DATA_DIR).into(),
            delegate: raw.delegate,
            ipam: raw.ipam,
            runtime_config: raw.runtime_config,
        })
    }

    /// Which plugin connects the container.
    pub(super) fn delegate_type(&self) -> &str {
        self.delegate.get("type").and_then(Value::as_str).unwrap_or(Applet::Bridge.name())
    }

    /// Whether an ADD may have told the delegate to masquerade: when it is told to, and by default when flannel does not.
    pub(super) fn may_masquerade(&self) -> bool {
        let flannel_does = || {
            let text = file::read_text(Path::new(&self.subnet_file), super::LONGEST).unwrap_or_default();
            SubnetEnv::parse(&self.subnet_file, &text).is_ok_and(|env| env.ip_masq)
        };
        self.delegate.get("ipMasq").map_or_else(|| !flannel_does(), |masq| masq == true)
    }

    /// Whether an ADD told the delegate to check source MACs.
    pub(super) fn checks_spoofing(&self) -> bool {
        self.delegate.get("macspoofchk").is_some_and(|check| check == true)
    }

    /// Which plugin manages the addresses.
    pub(super) fn ipam_type(&self) -> &str {
        self.ipam.get("type").and_then(Value::as_str).unwrap_or(Applet::HostLocal.name())
    }
}

/// Builds the delegate's configuration.
pub(super) fn delegate_conf(conf: &NetConf, keys: &Keys, env: &SubnetEnv) -> Result<NetConf, Failure> {
    let mut built = keys.delegate.clone();
    built.insert("name".into(), json!(conf.name));
    if let Some(version) = conf.keys.get("cniVersion") {
        built.insert("cniVersion".into(), version.clone());
    }
    if let Some(runtime) = &keys.runtime_config {
        built.insert("runtimeConfig".into(), json!(runtime));
    }
    let mut default = |key: &str, value: Value| {
        built.entry(key).or_insert(value);
    };
    default("type", json!(keys.delegate_type()));
    default("ipMasq", json!(!env.ip_masq));
    default("mtu", json!(env.mtu.0));
    if keys.delegate_type() == Applet::Bridge.name() {
        default("isGateway", json!(true));
    }
    built.insert("ipam".into(), ipam(keys, env).map_err(|key| conf.wrong(key))?.into());
    Ok(NetConf::from_value(built.into())?)
}

/// The delegate's configuration for GC, which needs no lease: who is asked, what is kept, and where the traces are.
pub(super) fn gc_conf(conf: &NetConf, keys: &Keys) -> Result<NetConf, Failure> {
    let mut built = keys.delegate.clone();
    let names = ["name", "cniVersion", "cni.dev/valid-attachments", "cni.dev/attachments"];
    built.extend(names.into_iter().filter_map(|key| Some((key.to_owned(), conf.keys.get(key)?.clone()))));
    built.insert("type".into(), json!(keys.delegate_type()));
    built.insert("ipMasq".into(), json!(keys.may_masquerade()));
    let mut ipam = keys.ipam.clone();
    ipam.insert("type".into(), json!(keys.ipam_type()));
    built.insert("ipam".into(), ipam.into());
    Ok(NetConf::from_value(built.into())?)
}

fn ipam(keys: &Keys, env: &SubnetEnv) -> Result<Map<String, Value>, WrongKey> {
    let mut ipam = keys.ipam.clone();
    ipam.entry("type").or_insert(json!(keys.ipam_type()));
    let ranges: Vec<_> = env.subnets.values().map(|subnet| json!([{ "subnet": subnet.to_string() }])).collect();
    ipam.insert("ranges".into(), ranges.into());
    let mut routes = match ipam.remove("routes") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(routes)) => routes,
        Some(_) => return Err(WrongKey::new("ipam.routes", "it is not a list".into())),
    };
    routes.extend(env.networks.iter().map(|network| json!({ "dst": network.to_string() })));
    ipam.insert("routes".into(), routes.into());
    Ok(ipam)
}

/// A key that the plugin cannot take.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyError {
    #[error("flannel: 'delegate' dictionary, if present, must have (string) 'type' field")]
    TypeNotText,
    #[error("flannel: 'delegate' dictionary must not have '{0}' field, it'll be set by flannel")]
    NotYours(&'static str),
}

impl Explain for KeyError {
    fn code(&self) -> u32 {
        code::CONF
    }

    fn hint(&self) -> String {
        match self {
            Self::NotYours("ipam") => "keys for the IPAM plugin stand in 'ipam' beside 'delegate'".into(),
            _ => "correct the network's file in /etc/cni/net.d, usually 10-flannel.conflist".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENV: &str =
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    const SIX: &str = "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n";

    fn built(conf: &str, env: &str) -> Result<String, String> {
        let conf = NetConf::read(&mut conf.as_bytes()).unwrap();
        let keys = Keys::read(&conf).map_err(|failure| failure.msg)?;
        let built = delegate_conf(&conf, &keys, &SubnetEnv::parse("subnet.env", env).unwrap());
        Ok(String::from_utf8(built.map_err(|failure| failure.msg)?.to_bytes()).unwrap())
    }

    #[test]
    fn the_default_delegate_is_a_gateway_bridge() {
        assert_eq!(
            built(r#"{"cniVersion":"0.3.1","name":"cbr0","type":"flannel"}"#, ENV).unwrap(),
            r#"{"cniVersion":"0.3.1","ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"#
                .to_owned()
                + r#""type":"host-local"},"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#
        );
    }

    #[test]
    fn what_is_given_stays() {
        let conf = r#"{"name":"n","delegate":{"mtu":1000,"ipMasq":false,"isGateway":false,"hairpinMode":true},
            "ipam":{"type":"static","dataDir":"/d","ranges":1,"routes":[{"dst":"10.9.0.0/16","gw":"10.244.1.9"}]},
            "runtimeConfig":{"ips":["10.244.1.7"]}}"#;
        let env = format!("{ENV}{SIX}").replace("IPMASQ=true", "IPMASQ=false");
        assert_eq!(
            built(conf, &env).unwrap(),
            r#"{"hairpinMode":true,"ipMasq":false,"ipam":{"dataDir":"/d","ranges":[[{"subnet":"10.244.1.0/24"}],[{"subnet":"fd00:0:0:1::/64"}]],"#
                .to_owned()
                + r#""routes":[{"dst":"10.9.0.0/16","gw":"10.244.1.9"},{"dst":"10.244.0.0/16"},{"dst":"fd00::/48"}],"type":"static"},"#
                + r#""isGateway":false,"mtu":1000,"name":"n","runtimeConfig":{"ips":["10.244.1.7"]},"type":"bridge"}"#
        );
    }

    #[test]
    fn other_delegates_are_no_gateways_and_several_networks_several_routes() {
        let env = ENV.replace("10.244.0.0/16", "10.244.0.0/16,10.245.0.0/16").replace("IPMASQ=true", "IPMASQ=false");
        let text = built(r#"{"name":"n","delegate":{"type":"macvlan","master":"e"}}"#, &env).unwrap();
        assert!(text.contains(r#""routes":[{"dst":"10.244.0.0/16"},{"dst":"10.245.0.0/16"}]"#), "{text}");
        assert!(text.contains(r#""ipMasq":true"#) && !text.contains("isGateway"), "{text}");
    }

    #[test]
    fn keys_that_are_flannels_are_refused() {
        for (delegate, expect) in [
            (r#"{"type":1}"#, "must have (string) 'type'"),
            (r#"{"name":"x"}"#, "must not have 'name'"),
            (r#"{"ipam":{}}"#, "must not have 'ipam'"),
            ("[]", "key `delegate`: a list is not an object"),
        ] {
            let error = built(&format!(r#"{{"name":"n","delegate":{delegate}}}"#), ENV).unwrap_err();
            assert!(error.contains(expect), "{error}");
        }
    }
}
