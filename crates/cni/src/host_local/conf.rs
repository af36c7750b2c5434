//! The keys of `host-local`: `ipam` of the network configuration, and where requests for addresses may stand.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use flannel_core::addr::Family;
use serde::Deserialize;

use super::range::{BadRange, RangeConf, RangeSet};
use crate::protocol::conf::{ConfError, NetConf};
use crate::protocol::environment::{ARGS, Call};
use crate::protocol::failure::{Explain, Failure, code};
use crate::protocol::file;
use crate::protocol::key::{self, Object, object, objects, path, shown};
use crate::protocol::result::{Dns, Route, null_is_empty};
use crate::protocol::version::Version;

/// Where the networks' folders are when the configuration does not say.
pub const DATA_DIR: &str = "/var/lib/cni/networks";

/// The longest `resolvConf`, in bytes.
const RESOLV_CONF: u64 = 1 << 16;

/// A checked configuration.
#[derive(Debug)]
pub struct IpamConf {
    /// The network: the folder's name.
    pub network: String,
    /// Where the networks' folders are.
    pub data_dir: PathBuf,
    /// A container gets an address of each.
    pub ranges: Vec<RangeSet>,
    /// Routes for the container, handed on as they are.
    pub routes: Vec<Route>,
    /// Addresses asked for by the runtime.
    pub requested: Vec<IpAddr>,
    resolv_conf: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Keys {
    ipam: Option<Object<Ipam>>,
    #[serde(default, rename = "runtimeConfig", deserialize_with = "object")]
    runtime_config: Runtime,
    #[serde(default, deserialize_with = "object")]
    args: Args,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ipam {
    #[serde(default, deserialize_with = "path")]
    data_dir: String,
    #[serde(default, deserialize_with = "path")]
    resolv_conf: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    ranges: Vec<Vec<Object<RangeConf>>>,
    #[serde(default, deserialize_with = "objects")]
    routes: Vec<Route>,
    subnet: Option<serde_json::Value>,
    range_start: Option<serde_json::Value>,
    range_end: Option<serde_json::Value>,
    gateway: Option<serde_json::Value>,
}

#[derive(Default, Deserialize)]
struct Runtime {
    #[serde(default, deserialize_with = "null_is_empty")]
    ips: Vec<String>,
    #[serde(default, rename = "ipRanges", deserialize_with = "null_is_empty")]
    ip_ranges: Vec<Vec<Object<RangeConf>>>,
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default, deserialize_with = "object")]
    cni: CniArgs,
}

#[derive(Default, Deserialize)]
struct CniArgs {
    #[serde(default, deserialize_with = "null_is_empty")]
    ips: Vec<String>,
}

impl IpamConf {
    /// Reads and checks the keys.
    pub fn read(conf: &NetConf, call: &Call<'_>) -> Result<Self, Failure> {
        let keys: Keys = conf.parse()?;
        call.allow_args(&ARGS)?;
        let Object(ipam) = keys.ipam.ok_or(IpamConfError::NoIpam)?;
        let requested = requested(call, &keys.args.cni.ips, &keys.runtime_config.ips)?;
        let mut sets = keys.runtime_config.ip_ranges;
        sets.extend(ipam.old_style_range(conf)?.map(|range| vec![range]));
        sets.extend(ipam.ranges);
        let ranges = check_sets(sets, conf.version)?;
        Ok(Self {
            network: conf.name.clone(),
            data_dir: or_default(&ipam.data_dir),
            ranges,
            routes: ipam.routes,
            requested,
            resolv_conf: Some(ipam.resolv_conf).filter(|path| !path.is_empty()).map(PathBuf::from),
        })
    }

    /// What `resolvConf` says, empty without it.
    pub fn dns(&self) -> Result<Dns, IpamConfError> {
        let Some(path) = &self.resolv_conf else { return Ok(Dns::default()) };
        let text =
            file::read_text(path, RESOLV_CONF).map_err(|cause| IpamConfError::ResolvConf(path.clone(), cause))?;
        Ok(parse_resolv_conf(&text))
    }
}

impl Ipam {
    /// A single range beside the list, as configurations had it before `ranges`.
    fn old_style_range(&self, conf: &NetConf) -> Result<Option<Object<RangeConf>>, ConfError> {
        let Some(subnet) = &self.subnet else { return Ok(None) };
        let pairs = [("rangeStart", &self.range_start), ("rangeEnd", &self.range_end), ("gateway", &self.gateway)];
        let mut keys = serde_json::Map::from_iter([("subnet".to_owned(), subnet.clone())]);
        keys.extend(pairs.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))));
        key::read(&keys.into()).map(Some).map_err(|key| conf.wrong(key.within("ipam")))
    }
}

/// Where the networks' folders are, read without the rest of `ipam`, which DEL has no need of.
pub fn data_dir(conf: &NetConf) -> Result<PathBuf, ConfError> {
    #[derive(Deserialize)]
    struct Keys {
        #[serde(default, deserialize_with = "object")]
        ipam: Folder,
    }
    #[derive(Default, Deserialize)]
    struct Folder {
        #[serde(default, rename = "dataDir", deserialize_with = "path")]
        data_dir: String,
    }
    Ok(or_default(&conf.parse::<Keys>()?.ipam.data_dir))
}

fn or_default(path: &str) -> PathBuf {
    Path::new(if path.is_empty() { DATA_DIR } else { path }).into()
}

/// Requests from `CNI_ARGS`, the configuration's `args` and `runtimeConfig`, in this order.
fn requested(call: &Call<'_>, args: &[String], runtime: &[String]) -> Result<Vec<IpAddr>, IpamConfError> {
    let of_env = call.arg("IP").into_iter().flat_map(|list| list.split(',')).filter(|text| !text.is_empty());
    let all = of_env.chain(args.iter().map(String::as_str)).chain(runtime.iter().map(String::as_str));
    all.map(|text| {
        let address = text.trim().split('/').next().unwrap_or_default();
        address.parse().map_err(|_| IpamConfError::BadRequest(shown(text)))
    })
    .collect()
}

fn check_sets(sets: Vec<Vec<Object<RangeConf>>>, version: Version) -> Result<Vec<RangeSet>, IpamConfError> {
    if sets.is_empty() {
        return Err(IpamConfError::NoRanges);
    }
    let numbered = sets.into_iter().enumerate();
    let sets = numbered
        .map(|(index, set)| {
            RangeSet::new(set.into_iter().map(|Object(range)| range))
                .map_err(|cause| IpamConfError::BadSet { index, cause })
        })
        .collect::<Result<Vec<_>, _>>()?;
    for (index, set) in sets.iter().enumerate() {
        if let Some(other) = sets[..index].iter().position(|other| other.overlaps(set)) {
            return Err(IpamConfError::SetsOverlap(other, index));
        }
    }
    let many = Family::ALL.iter().any(|family| sets.iter().filter(|set| set.family() == *family).count() > 1);
    if many && version <= Version::V0_2_0 { Err(IpamConfError::TooManySets(version)) } else { Ok(sets) }
}

/// The words of resolv.conf(5) that a result can carry.
fn parse_resolv_conf(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

/// `ipam` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IpamConfError {
    /// It is not there.
    #[error("host-local: IPAM config missing 'ipam' key")]
    NoIpam,
    /// Nothing to give from.
    #[error("host-local: no IP ranges specified in `ipam.ranges`")]
    NoRanges,
    /// A set is wrong.
    #[error("host-local: invalid range set {index}: {cause}")]
    BadSet {
        /// Its place in the list.
        index: usize,
        /// Why.
        cause: BadRange,
    },
    /// Two sets share addresses.
    #[error("host-local: range set {0} overlaps with {1}")]
    SetsOverlap(usize, usize),
    /// The version's result has room for one address a family.
    #[error("host-local: CNI version {} does not support more than 1 address per family", .0.as_str())]
    TooManySets(Version),
    /// A request is no address.
    #[error("host-local: cannot understand requested IP {0:?}")]
    BadRequest(String),
    /// `resolvConf` cannot be read.
    #[error("host-local: cannot read `ipam.resolvConf` {}: {}", .0.display(), .1)]
    ResolvConf(PathBuf, std::io::Error),
}

impl Explain for IpamConfError {
    fn code(&self) -> u32 {
        match self {
            Self::BadRequest(_) => code::ENVIRONMENT,
            _ => code::CONF,
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::BadRequest(_) => "requests stand in CNI_ARGS `IP`, `args.cni.ips` and `runtimeConfig.ips`".into(),
            Self::ResolvConf(..) => "it is the file of name servers for containers: correct its name, or leave it out".into(),
            Self::SetsOverlap(..) => "a container gets an address of each range set: each needs addresses of its own".into(),
            Self::TooManySets(_) => "set `cniVersion` to 0.3.1 or later".into(),
            _ => "correct `ipam` in the network's file in /etc/cni/net.d; a good one is {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.244.1.0/24\"}]]}".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::environment::{Environment, Verb};

    fn read(args: &str, conf: &str) -> Result<IpamConf, Failure> {
        let pairs = [("CNI_CONTAINERID", "c"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "e"), ("CNI_ARGS", args)];
        let env = Environment::new(pairs.map(|(name, value)| (name.into(), value.into())));
        IpamConf::read(&NetConf::read(&mut conf.as_bytes()).unwrap(), &env.call(Verb::Add).unwrap())
    }

    #[test]
    fn requests_come_from_three_places() {
        let conf = r#"{"cniVersion":"1.0.0","name":"n","args":{"cni":{"ips":["10.1.0.8"]}},
            "runtimeConfig":{"ips":["10.1.0.9/24"],"ipRanges":[[{"subnet":"10.3.0.0/24"}]]},
            "ipam":{"subnet":"10.1.0.0/24","rangeStart":"10.1.0.7","ranges":[[{"subnet":"10.2.0.0/24"}]]}}"#;
        let conf = read("IP=10.1.0.7,fd00::7", conf).unwrap();
        let requested: Vec<String> = conf.requested.iter().map(ToString::to_string).collect();
        assert_eq!(requested, ["10.1.0.7", "fd00::7", "10.1.0.8", "10.1.0.9"]);
        let ranges: Vec<String> = conf.ranges.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.3.0.1-10.3.0.254", "10.1.0.7-10.1.0.254", "10.2.0.1-10.2.0.254"]);
        assert_eq!(conf.data_dir, Path::new(DATA_DIR));
    }

    #[test]
    fn bad_confs_say_why() {
        for (version, args, ipam, code, expect) in [
            ("1.0.0", "", "null", 7, "missing 'ipam' key"),
            ("1.0.0", "", "{}", 7, "no IP ranges specified"),
            (
                "1.0.0",
                "",
                r#"{"ranges":[[{"subnet":"x"}]]}"#,
                7,
                "key `ipam.ranges[0][0].subnet`: \"x\" is not a prefix such as",
            ),
            ("1.0.0", "", r#"{"ranges":[[]]}"#, 7, "invalid range set 0: empty range set"),
            (
                "1.0.0",
                "",
                r#"{"subnet":"10.1.0.0/16","ranges":[[{"subnet":"10.1.2.0/24"}]]}"#,
                7,
                "range set 0 overlaps with 1",
            ),
            (
                "0.2.0",
                "",
                r#"{"subnet":"10.1.0.0/24","ranges":[[{"subnet":"10.2.0.0/24"}]]}"#,
                7,
                "CNI version 0.2.0 does not",
            ),
            ("1.0.0", "IP=10.1.0.300", r#"{"subnet":"10.1.0.0/24"}"#, 4, "requested IP \"10.1.0.300\""),
        ] {
            let conf = format!(r#"{{"cniVersion":"{version}","name":"n","ipam":{ipam}}}"#);
            let failure = read(args, &conf).unwrap_err();
            assert_eq!(failure.code, code, "{ipam}");
            assert!(failure.msg.contains(expect), "{}", failure.msg);
        }
    }

    #[test]
    fn resolv_conf_is_read() {
        let dns = parse_resolv_conf("# x\nnameserver 10.0.0.53\nsearch a.b c.d\noptions ndots:5\ndomain e.f\n");
        assert_eq!((dns.nameservers.len(), dns.search.len(), dns.domain.as_str()), (1, 2, "e.f"));
    }
}
