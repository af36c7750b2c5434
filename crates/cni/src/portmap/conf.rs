//! The keys of `portmap`, and what they make of a call: the ports to publish.

use std::path::PathBuf;

use flannel_core::addr::{Dual, Family};
use flannel_core::port_map::{BadMapping, DEFAULT_MARK_BIT, Mapping, Mark, Masquerade, PortMap, saved};
use flannel_core::rules::RuleMode;
use flannel_kernel::port_map;
use serde::Deserialize;
use sha2::{Digest, Sha512};

use crate::protocol::conf::{ConfError, NetConf};
use crate::protocol::environment::Call;
use crate::protocol::failure::{Explain, Failure, code};
use crate::protocol::key::{object, objects, path, shown};
use crate::protocol::result::{CniResult, IpConfig, null_is_empty};

/// The length of a chain's name: iptables' limit (`XT_EXTENSION_MAXNAMELEN` of `linux/netfilter/x_tables.h`, less one).
const CHAIN: usize = 28;
/// The longest comment of a rule that `nft` takes, in bytes (`NFTNL_UDATA_COMMENT_MAXLEN` of libnftnl).
const COMMENT: usize = 128;

/// A checked configuration.
#[derive(Debug)]
pub(super) struct PortMapConf {
    /// Where it is written down what was published.
    pub(super) data_dir: PathBuf,
    /// What to publish.
    pub(super) mappings: Vec<Mapping>,
    /// The rule system that was asked for.
    backend: Option<RuleMode>,
    masquerade: Option<Masquerade>,
    conditions: Dual<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    #[serde(default)]
    backend: Option<String>,
    #[serde(default)]
    snat: Option<bool>,
    #[serde(default, deserialize_with = "null_is_empty")]
    masq_all: bool,
    #[serde(default)]
    mark_masq_bit: Option<i64>,
    #[serde(default)]
    external_set_mark_chain: Option<String>,
    #[serde(default, rename = "conditionsV4", deserialize_with = "null_is_empty")]
    conditions_v4: Vec<String>,
    #[serde(default, rename = "conditionsV6", deserialize_with = "null_is_empty")]
    conditions_v6: Vec<String>,
    #[serde(default, deserialize_with = "object")]
    runtime_config: RuntimeConfig,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeConfig {
    #[serde(default, deserialize_with = "objects")]
    port_mappings: Vec<Entry>,
}

/// Under the names of the convention, or as containerd writes them: for plugins in Go, which read keys without regard to case.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default, alias = "HostPort")]
    host_port: i64,
    #[serde(default, alias = "ContainerPort")]
    container_port: i64,
    #[serde(default, alias = "Protocol")]
    protocol: String,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    host_ip: String,
}

/// `dataDir` alone, for a DEL that does without the rest.
pub(super) fn data_dir(conf: &NetConf) -> Result<PathBuf, ConfError> {
    #[derive(Deserialize)]
    struct Keys {
        #[serde(default, rename = "dataDir", deserialize_with = "path")]
        data_dir: String,
    }
    let Keys { data_dir } = conf.parse()?;
    Ok(if data_dir.is_empty() { saved::DATA_DIR.into() } else { data_dir.into() })
}

impl PortMapConf {
    /// Reads and checks the keys.
    pub(super) fn read(conf: &NetConf) -> Result<Self, Failure> {
        let keys: Keys = conf.parse()?;
        let backend = keys.backend.as_deref().map(backend).transpose()?;
        keys.check_words_of(backend.map_or_else(port_map::usual_mode, Ok)?)?;
        let masquerade = keys.masquerade()?;
        let mapping =
            |entry: &Entry| Mapping::new(&entry.protocol, entry.host_port, entry.container_port, &entry.host_ip);
        let mappings = keys.runtime_config.port_mappings.iter().map(mapping).collect::<Result<Vec<_>, _>>();
        let mappings = mappings.map_err(PortMapConfError::Mapping)?;
        let contradicts = |(at, one): (usize, &Mapping)| mappings[..at].iter().any(|other| other.contradicts(one));
        if let Some(at) = mappings.iter().enumerate().position(contradicts) {
            return Err(PortMapConfError::Twice(mappings[at]).into());
        }
        let words = |words: Vec<String>| Some(words).filter(|words| words.iter().any(|word| !word.is_empty()));
        Ok(Self {
            data_dir: data_dir(conf)?,
            mappings,
            backend,
            masquerade,
            conditions: Dual { v4: words(keys.conditions_v4), v6: words(keys.conditions_v6) },
        })
    }

    /// The rule system that the configuration means.
    pub(super) fn mode(&self) -> Result<RuleMode, Failure> {
        Ok(self.backend.map_or_else(port_map::usual_mode, Ok)?)
    }

    /// Whether another rule system may be used where the usual one does not work.
    pub(super) fn may_change_mode(&self) -> bool {
        let chained = matches!(&self.masquerade, Some(Masquerade { mark: Mark::Chain(_), .. }));
        self.backend.is_none() && self.conditions.is_empty() && !chained
    }

    /// What is to be published of the call's container, with the addresses it was given.
    pub(super) fn port_map(&self, call: &Call<'_>, network: &str, given: &CniResult) -> Result<PortMap, Failure> {
        let mode = self.mode()?;
        if mode == RuleMode::Nftables && call.container_id.len() >= COMMENT {
            return Err(PortMapConfError::LongName(shown(call.container_id)).into());
        }
        Ok(PortMap {
            network: network.into(),
            container: call.container_id.into(),
            chain: chain(network, call.container_id),
            known_as: pod(call),
            mode,
            addresses: addresses(call, given)?,
            mappings: self.mappings.clone(),
            masquerade: self.masquerade.clone(),
            conditions: self.conditions.clone(),
            links: given
                .interfaces
                .iter()
                .filter(|interface| interface.sandbox.is_empty())
                .filter_map(|interface| interface.name.parse().ok())
                .collect(),
            handles: Dual::default(),
        })
    }
}

impl Keys {
    fn masquerade(&self) -> Result<Option<Masquerade>, PortMapConfError> {
        let mark = match (self.mark_masq_bit, &self.external_set_mark_chain) {
            (Some(_), Some(_)) => return Err(PortMapConfError::BitAndChain),
            (None, Some(chain)) if saved::is_word(chain) => Mark::Chain(chain.clone()),
            (None, Some(chain)) => return Err(PortMapConfError::BadChain(shown(chain))),
            (Some(bit @ 0..=31), None) => Mark::Bit(bit as u8),
            (Some(bit), None) => return Err(PortMapConfError::BadBit(bit)),
            (None, None) => Mark::Bit(DEFAULT_MARK_BIT),
        };
        Ok(self.snat.unwrap_or(true).then_some(Masquerade { all: self.masq_all, mark }))
    }

    /// Refuses what only the other rule system understands, and what could end a rule and begin another.
    fn check_words_of(&self, mode: RuleMode) -> Result<(), PortMapConfError> {
        for (key, words) in [("conditionsV4", &self.conditions_v4), ("conditionsV6", &self.conditions_v6)] {
            if let Some(word) = words.iter().find(|word| !saved::is_condition(word)) {
                return Err(PortMapConfError::BadCondition { key, word: shown(word) });
            }
            if system_of(words).is_some_and(|system| system != mode) {
                return Err(PortMapConfError::OtherSystem { key, mode: name_of(mode) });
            }
        }
        if self.external_set_mark_chain.is_some() && mode == RuleMode::Nftables {
            return Err(PortMapConfError::OtherSystem { key: "externalSetMarkChain", mode: name_of(mode) });
        }
        Ok(())
    }
}

/// The rule system in whose words conditions are: those of iptables begin with `-` or `!`, and no others do.
fn system_of(words: &[String]) -> Option<RuleMode> {
    let first = words.first()?.chars().next()?;
    Some(if matches!(first, '-' | '!') { RuleMode::Iptables } else { RuleMode::Nftables })
}

fn backend(name: &str) -> Result<RuleMode, PortMapConfError> {
    let known = [RuleMode::Iptables, RuleMode::Nftables].into_iter().find(|mode| name_of(*mode) == name);
    known.ok_or_else(|| PortMapConfError::UnknownBackend(shown(name)))
}

fn name_of(mode: RuleMode) -> &'static str {
    match mode {
        RuleMode::Iptables => "iptables",
        RuleMode::Nftables => "nftables",
    }
}

/// The container's chain: `CNI-DN-` and as much of the hexadecimal SHA-512 of both names as fits.
pub(super) fn chain(network: &str, container_id: &str) -> String {
    let digest = Sha512::new().chain_update(network).chain_update(container_id).finalize();
    let hex = digest.iter().map(|byte| format!("{byte:02x}"));
    let mut chain: String = std::iter::once("CNI-DN-".to_owned()).chain(hex).collect();
    chain.truncate(CHAIN);
    chain
}

/// Kubernetes' name of the container.
fn pod(call: &Call<'_>) -> String {
    match (call.arg("K8S_POD_NAMESPACE"), call.arg("K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => String::new(),
    }
}

/// The container's first address of each family, as far as the result says where it is.
fn addresses(call: &Call<'_>, given: &CniResult) -> Result<Dual<ipnet::IpNet>, Failure> {
    let ifname = call.ifname()?;
    let elsewhere = |ip: &IpConfig| {
        let interface = ip.interface.and_then(|index| given.interfaces.get(index));
        interface.is_some_and(|interface| interface.name != ifname.as_str() || interface.sandbox.is_empty())
    };
    Ok(Dual::from_fn(|family| {
        let mut found = given.ips.iter().filter(|ip| Family::of_net(ip.address) == family);
        found.find(|ip| !elsewhere(ip)).map(|ip| ip.address)
    }))
}

/// A key cannot be honoured.
#[derive(Debug, thiserror::Error)]
pub(super) enum PortMapConfError {
    #[error("portmap: {0}")]
    Mapping(BadMapping),
    #[error("portmap: host port {0} is to lead to two ports of the container")]
    Twice(Mapping),
    #[error("portmap: cannot specify externalSetMarkChain and markMasqBit")]
    BitAndChain,
    #[error("portmap: markMasqBit must be between 0 and 31: it is {0}")]
    BadBit(i64),
    #[error("portmap: externalSetMarkChain {0:?} is not the name of a chain")]
    BadChain(String),
    #[error("portmap: unrecognized backend {0:?}")]
    UnknownBackend(String),
    #[error("portmap: `{key}` is not in the words of the backend, which is {mode}")]
    OtherSystem { key: &'static str, mode: &'static str },
    #[error("portmap: `{key}` holds {word:?}, which cannot be part of a rule")]
    BadCondition { key: &'static str, word: String },
    #[error("portmap: container ID {0:?} is longer than a comment of nftables")]
    LongName(String),
}

impl Explain for PortMapConfError {
    fn code(&self) -> u32 {
        code::CONF
    }

    fn hint(&self) -> String {
        match self {
            Self::Mapping(_) | Self::Twice(_) => {
                "the runtime sends the ports of the container in runtimeConfig.portMappings: check what was asked to be published".into()
            }
            Self::BitAndChain => "remove one of them: a chain of others sets the mark, or a bit of our own".into(),
            Self::BadBit(_) => "Kubernetes uses 14 and 15; without the key it is 13".into(),
            Self::BadChain(_) => "it is the name of a chain in table nat that marks packets, as KUBE-MARK-MASQ".into(),
            Self::UnknownBackend(_) => "`backend` is iptables or nftables, or absent".into(),
            Self::OtherSystem { key, .. } => format!("remove `{key}`, or set `backend` to the system it belongs to"),
            Self::BadCondition { .. } => "each entry is one word of a match, without line breaks, `;` and `#`".into(),
            Self::LongName(_) => "at most 127 bytes, or set `backend` to iptables".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::environment::{Environment, Verb};
    use crate::protocol::version::Version;

    fn environment() -> Environment {
        let pairs = [
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/n"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx"),
        ];
        Environment::new(pairs.map(|(name, value)| (name.into(), value.into())))
    }

    fn read(keys: &str) -> Result<PortMapConf, (u32, String)> {
        let conf = format!(r#"{{"cniVersion":"1.0.0","name":"cbr0","backend":"iptables"{keys}}}"#);
        let conf = NetConf::read(&mut conf.as_bytes()).unwrap();
        PortMapConf::read(&conf).map_err(|failure| (failure.code, failure.msg))
    }

    fn published(result: &str) -> Result<PortMap, Failure> {
        let conf = read(
            r#","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"TCP","hostIP":"192.0.2.1"}]}"#,
        );
        let given = CniResult::parse(result.as_bytes()).unwrap();
        conf.unwrap().port_map(&environment().call(Verb::Add).unwrap(), "cbr0", &given)
    }

    #[test]
    fn the_chain_is_the_go_plugins() {
        assert_eq!(chain("cbr0", "c1"), "CNI-DN-68f1f1eeb62cad3d0bdd5");
    }

    #[test]
    fn defaults_are_the_go_plugins() {
        let conf =
            read(r#","snat":null,"conditionsV4":null,"conditionsV6":[""],"runtimeConfig":{"portMappings":null}"#);
        let conf = conf.unwrap();
        assert_eq!(conf.masquerade, Some(Masquerade { all: false, mark: Mark::Bit(13) }));
        assert!(conf.mappings.is_empty() && conf.conditions.is_empty());
        assert_eq!(read(r#","snat":false"#).unwrap().masquerade, None);
    }

    #[test]
    fn ports_are_read_as_containerd_writes_them() {
        let of = |port: &str| read(&format!(r#","runtimeConfig":{{"portMappings":[{{{port}}}]}}"#)).unwrap().mappings;
        let capital = of(r#""HostPort":80,"ContainerPort":8080,"Protocol":"tcp","HostIP":"192.0.2.1""#);
        assert_eq!(capital, of(r#""hostPort":80,"containerPort":8080,"protocol":"tcp","hostIP":"192.0.2.1""#));
    }

    #[test]
    fn the_containers_addresses_are_those_of_its_interface() {
        let interfaces = r#"[{"name":"cni0"},{"name":"veth1"},{"name":"eth0","sandbox":"/n"}]"#;
        let ips = |list: &str| format!(r#"{{"cniVersion":"1.0.0","interfaces":{interfaces},"ips":[{list}]}}"#);
        let map = published(&ips(
            r#"{"interface":0,"address":"10.9.0.1/24"},{"interface":2,"address":"10.1.0.2/24"},{"address":"fd00::2/64"},
               {"interface":2,"address":"10.1.0.3/24"}"#,
        ));
        let map = map.unwrap();
        let addresses: Vec<_> = map.addresses.values().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.1.0.2/24", "fd00::2/64"]);
        assert_eq!((map.links.len(), map.known_as.as_str()), (2, "default/nginx"));
        let old = format!(r#"{{"cniVersion":"{}","ip4":{{"ip":"10.1.0.2/24"}}}}"#, Version::V0_2_0.as_str());
        assert_eq!(published(&old).unwrap().addresses.v4, Some("10.1.0.2/24".parse().unwrap()));
    }

    #[test]
    fn keys_that_cannot_be_honoured_are_errors() {
        let port = |entry: &str| format!(r#","runtimeConfig":{{"portMappings":[{{{entry}}}]}}"#);
        for (keys, expect) in [
            (r#","markMasqBit":32"#.to_owned(), "between 0 and 31: it is 32"),
            (r#","markMasqBit":-1"#.into(), "between 0 and 31: it is -1"),
            (r#","markMasqBit":1,"externalSetMarkChain":"A""#.into(), "externalSetMarkChain and markMasqBit"),
            (r#","externalSetMarkChain":"A\n-F""#.into(), "is not the name of a chain"),
            (r#","snat":"yes""#.into(), "key `snat`: \"yes\" is not true or false"),
            (
                r#","conditionsV4":["ip","saddr","10.0.0.1"]"#.into(),
                "`conditionsV4` is not in the words of the backend",
            ),
            (r#","conditionsV6":["-d","a\nCOMMIT"]"#.into(), "`conditionsV6` holds \"a\\nCOMMIT\""),
            (port(r#""hostPort":0,"containerPort":80,"protocol":"tcp""#), "invalid host port number: 0"),
            (port(r#""hostPort":65536,"containerPort":80,"protocol":"tcp""#), "invalid host port number: 65536"),
            (port(r#""hostPort":80,"containerPort":65536,"protocol":"tcp""#), "invalid container port number: 65536"),
            (port(r#""hostPort":80,"containerPort":80,"protocol":"icmp""#), "invalid protocol \"icmp\""),
            (port(r#""hostPort":80,"containerPort":80,"protocol":"tcp","hostIP":"x""#), "invalid host IP \"x\""),
            (port(r#""hostPort":"80""#), "key `runtimeConfig.portMappings[0].hostPort`: \"80\" is not a whole number"),
        ] {
            let (found, msg) = read(&keys).unwrap_err();
            assert!(found == code::CONF && msg.contains(expect), "{found} {msg}");
        }
    }
}
