//! The flags of `flanneld`: read once from the command line and the environment, then trusted.
//!
//! [`parse`] is a pure function of both; its answer is typed ([`Flags`]) or an error with its exit code. The syntax is
//! that of Go's `flag` package, because manifests and unit files in the field are written for it. Nothing is printed here.

mod kube;
mod syntax;
mod table;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use flannel_core::addr::{Dual, Family};
use flannel_core::node::{ExternalChoice, InterfaceChoice, Masquerade, Options, RuleSwitches};
use flannel_store::etcd::{self, Endpoint, EndpointError, Login, TlsFiles};
use flannel_store::kube as kube_store;
use regex_lite::Regex;

use kube::Surroundings;
pub use syntax::Origin;
use syntax::Raw;
pub use table::{usage, usage_of};

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Run the daemon.
    Run(Box<Flags>),
    /// Print [`usage`].
    Help,
    /// Print the version.
    Version,
}

/// The daemon's options, checked.
#[derive(Debug, Clone)]
pub struct Flags {
    /// Where leases are kept.
    pub store: StoreChoice,
    /// How to find the external interface, and which packet rules to keep.
    pub node: Options,
    /// The file that the CNI plugin reads.
    pub subnet_file: PathBuf,
    /// How long before its end a lease is renewed. Between 1 and 1439 minutes.
    pub renew_margin: Duration,
    /// Time between two looks at the packet rules. At least a second.
    pub resync: Duration,
    /// Whether rules of the plugin `portmap` are made again when somebody flushed them.
    pub restore_ports: bool,
    /// Where the health server listens, if it does.
    pub health: Option<SocketAddr>,
    /// How much to log: `-v`.
    pub verbosity: u32,
    /// All flags as given, on one line for the log; secrets are `(hidden)`.
    pub given: String,
    /// The first word of the command line without effect, counted from 1: flags end at the first word that is none.
    pub ignored_from: Option<usize>,
}

/// A kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// A directory.
    Local,
    /// etcd.
    Etcd,
    /// The Kubernetes API.
    Kube,
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "a local directory",
            Self::Etcd => "etcd",
            Self::Kube => "Kubernetes",
        })
    }
}

/// The store to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChoice {
    /// `--local-store DIR`.
    Local(PathBuf),
    /// etcd, the default.
    Etcd(Box<etcd::Options>),
    /// The Kubernetes API: `--kube-subnet-mgr`.
    Kube(Box<kube_store::Options>),
}

/// Why the flags cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// Not `-name`, `--name`, `-name=value`.
    #[error("bad flag syntax: `{word}`")]
    Syntax {
        /// The word up to its `=`.
        word: String,
    },
    /// No flag has that name.
    #[error("unknown flag: `-{name}`")]
    Unknown {
        /// The name without dashes.
        name: String,
    },
    /// The command line ends where a value should be.
    #[error("flag `-{name}` needs a value")]
    NoValue {
        /// The name without dashes.
        name: String,
    },
    /// A value that is not UTF-8.
    #[error("the value of {origin} is not UTF-8 text")]
    NotText {
        /// The flag or variable.
        origin: Origin,
    },
    /// A value that is not what the flag takes.
    #[error("bad value `{value}` for {origin}: {why}")]
    BadValue {
        /// The flag or variable.
        origin: Origin,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
    /// A renew margin that no lease of 24 hours can have.
    #[error("bad value `{minutes}` for {origin}: the margin must be 1 to 1439 minutes")]
    Margin {
        /// The flag or variable.
        origin: Origin,
        /// What was given.
        minutes: i64,
    },
    /// Two stores are asked for.
    #[error("{a} and {b} exclude each other: leases are kept in one place")]
    TwoStores {
        /// The local store's flag or variable.
        a: Origin,
        /// The other's.
        b: Origin,
    },
    /// Nothing says which Node this is.
    #[error("which Node this is cannot be told: neither NODE_NAME is set, nor POD_NAME and POD_NAMESPACE")]
    NoNode,
    /// Nothing says where the Kubernetes API is.
    #[error(
        "where the Kubernetes API is cannot be told: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"
    )]
    NoApi,
}

impl FlagError {
    fn bad(origin: &Origin, value: &str, why: impl Into<String>) -> Self {
        Self::BadValue { origin: origin.clone(), value: value.into(), why: why.into() }
    }

    /// The status to exit with: 1 for what flannel always refused with 1, else 2.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Margin { .. } | Self::NoNode | Self::NoApi => 1,
            _ => 2,
        }
    }

    /// Whether the usage text helps: the command line itself is wrong.
    pub fn wants_usage(&self) -> bool {
        self.exit_code() == 2
    }

    /// What a person can do, where the message does not say it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoNode => Some(
                "in the DaemonSet's env: {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}; elsewhere the name that \
                 `kubectl get nodes` shows"
                    .into(),
            ),
            Self::NoApi => Some("run flanneld in a pod, or give --kubeconfig-file or --kube-api-url".into()),
            Self::TwoStores { .. } => Some("give --local-store alone, or the flags of one other store".into()),
            Self::Unknown { name } => nearest(name).map(|flag| format!("did you mean `-{flag}`?")),
            _ => None,
        }
    }
}

/// Reads `flanneld`'s command line (without the program's name) and environment.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Command, FlagError> {
    let mut raw = Raw::of_args(args)?;
    if raw.help {
        return Ok(Command::Help);
    }
    if raw.is_on("version") {
        return Ok(Command::Version);
    }
    let environment: BTreeMap<_, _> = environment.into_iter().collect();
    let pod = Surroundings::of(&environment);
    raw.add_environment(environment)?;
    Ok(Command::Run(Box::new(typed(&raw, &pod)?)))
}

/// Reads how to reach etcd from a command line for people, which may have `flanneld`'s flags for that anywhere, and from
/// `flanneld`'s environment. Also answers with all other words.
pub fn etcd_options(
    args: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(etcd::Options, Vec<OsString>), FlagError> {
    let (mut raw, words) = Raw::out_of(args, "etcd-")?;
    let is_of_etcd = |name: &OsString| name.as_encoded_bytes().starts_with(b"FLANNELD_ETCD_");
    raw.add_environment(environment.into_iter().filter(|(name, _)| is_of_etcd(name)))?;
    Ok((etcd(&raw)?, words))
}

/// The variables that say to `flanneld` what these words of a command line do. All of them have to be flags, and of a list the
/// environment holds one value.
pub fn variables(args: impl IntoIterator<Item = OsString>) -> Result<Vec<(String, String)>, FlagError> {
    let args: Vec<OsString> = args.into_iter().collect();
    let raw = Raw::of_args(args.iter().cloned())?;
    let ignored = raw.ignored_from.and_then(|from| args.get(from - 1));
    if let Some(word) = ignored.or_else(|| args.last().filter(|_| raw.help)) {
        return Err(FlagError::Syntax { word: word.to_string_lossy().into() });
    }
    typed(&raw, &Surroundings::of(&BTreeMap::new()))?;
    raw.variables()
}

fn typed(raw: &Raw, pod: &Surroundings) -> Result<Flags, FlagError> {
    Ok(Flags {
        node: Options { external: external(raw)?, rules: rule_switches(raw) },
        subnet_file: path(raw, "subnet-file")?,
        resync: Duration::from_secs(within(raw, "iptables-resync", 1, i64::from(u32::MAX))?),
        restore_ports: raw.is_on("restore-ports"),
        health: health(raw)?,
        verbosity: within(raw, "v", i64::from(i32::MIN), i64::from(i32::MAX))? as u32,
        given: raw.to_string(),
        ignored_from: raw.ignored_from,
        renew_margin: renew_margin(raw)?,
        store: store(raw, pod)?,
    })
}

/// Finds the one store that is asked for. A flag of a store asks for it when its value is not the default; etcd need not
/// be asked for, and gives way to Kubernetes, which `--kube-subnet-mgr` alone asks for: its other flags have no effect then.
fn store(raw: &Raw, pod: &Surroundings) -> Result<StoreChoice, FlagError> {
    let asks = |kind| raw.changed().find(|flag| flag.store == Some(kind)).map(|flag| raw.origin(flag.name));
    match raw.value("local-store") {
        "" if raw.is_on("kube-subnet-mgr") => Ok(StoreChoice::Kube(Box::new(kube::options(raw, pod)?))),
        "" => Ok(StoreChoice::Etcd(Box::new(etcd(raw)?))),
        local => match asks(StoreKind::Kube).or_else(|| asks(StoreKind::Etcd)) {
            Some(b) => Err(FlagError::TwoStores { a: raw.origin("local-store"), b }),
            None => Ok(StoreChoice::Local(local.into())),
        },
    }
}

fn etcd(raw: &Raw) -> Result<etcd::Options, FlagError> {
    let tls = tls_files(raw)?;
    let bad = |error: EndpointError| FlagError::bad(&raw.origin("etcd-endpoints"), &error.text, error.why);
    Ok(etcd::Options {
        endpoints: Endpoint::parse_list(raw.value("etcd-endpoints"), tls != TlsFiles::default()).map_err(bad)?,
        prefix: raw.value("etcd-prefix").into(),
        tls,
        login: login(raw)?,
        ttl: etcd::Options::TTL,
        renew_margin: renew_margin(raw)?,
    })
}

fn tls_files(raw: &Raw) -> Result<TlsFiles, FlagError> {
    let file = |name| Some(raw.value(name)).filter(|path| !path.is_empty()).map(PathBuf::from);
    let alone = |name, why| Err(FlagError::bad(&raw.origin(name), raw.value(name), why));
    let identity = match (file("etcd-certfile"), file("etcd-keyfile")) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (Some(_), None) => return alone("etcd-certfile", "a certificate needs its key: give -etcd-keyfile too"),
        (None, Some(_)) => return alone("etcd-keyfile", "a key needs its certificate: give -etcd-certfile too"),
        (None, None) => None,
    };
    Ok(TlsFiles { authority: file("etcd-cafile"), identity })
}

fn login(raw: &Raw) -> Result<Option<Login>, FlagError> {
    match (raw.value("etcd-username"), raw.value("etcd-password")) {
        ("", "") => Ok(None),
        ("", _) => Err(FlagError::bad(&raw.origin("etcd-password"), "(hidden)", "a password needs -etcd-username")),
        (name, password) => Ok(Some(Login { name: name.into(), password: password.into() })),
    }
}

fn external(raw: &Raw) -> Result<ExternalChoice, FlagError> {
    let bad = |name, value: &str, why: String| FlagError::bad(&raw.origin(name), value, why);
    let interfaces = raw.list("iface").map(|text| match text.parse() {
        Ok(address) => Ok(InterfaceChoice::Address(address)),
        Err(_) => match text.parse() {
            Ok(name) => Ok(InterfaceChoice::Name(name)),
            Err(_) => Err(bad("iface", text, "neither an address nor the name of an interface".into())),
        },
    });
    let patterns = raw
        .list("iface-regex")
        .map(|text| Regex::new(text).map_err(|error| bad("iface-regex", text, error.to_string())));
    Ok(ExternalChoice {
        interfaces: interfaces.collect::<Result<_, _>>()?,
        patterns: patterns.collect::<Result<_, _>>()?,
        can_reach: optional(raw, "iface-can-reach", "not an IP address")?,
        public: Dual::try_from_fn(|family| public_address(raw, family))?,
        published: Dual::default(),
    })
}

fn public_address(raw: &Raw, family: Family) -> Result<Option<IpAddr>, FlagError> {
    let (name, why) = match family {
        Family::V4 => ("public-ip", "not an IPv4 address"),
        Family::V6 => ("public-ipv6", "not an IPv6 address"),
    };
    match optional(raw, name, why)? {
        Some(address) if Family::of(address) != family => Err(FlagError::bad(&raw.origin(name), raw.value(name), why)),
        address => Ok(address),
    }
}

fn rule_switches(raw: &Raw) -> RuleSwitches {
    let masquerade = Masquerade { fully_random: !raw.is_on("ip-masq-fully-random-disable") };
    RuleSwitches {
        masquerade: raw.is_on("ip-masq").then_some(masquerade),
        forward: raw.is_on("iptables-forward-rules"),
        blackhole: raw.is_on("ip-blackhole-route"),
    }
}

fn health(raw: &Raw) -> Result<Option<SocketAddr>, FlagError> {
    let port = within(raw, "healthz-port", 0, i64::from(u16::MAX))? as u16;
    let address = optional(raw, "healthz-ip", "not an IP address")?.unwrap_or(Family::V4.unspecified());
    Ok((port != 0).then_some(SocketAddr::new(address, port)))
}

fn renew_margin(raw: &Raw) -> Result<Duration, FlagError> {
    let name = "subnet-lease-renew-margin";
    match raw.number(name) {
        minutes @ 1..=1439 => Ok(Duration::from_secs(60 * minutes as u64)),
        minutes => Err(FlagError::Margin { origin: raw.origin(name), minutes }),
    }
}

fn path(raw: &Raw, name: &str) -> Result<PathBuf, FlagError> {
    match raw.value(name) {
        "" => Err(FlagError::bad(&raw.origin(name), "", "a path is needed")),
        path => Ok(path.into()),
    }
}

fn within(raw: &Raw, name: &str, least: i64, most: i64) -> Result<u64, FlagError> {
    match raw.number(name) {
        number if (least..=most).contains(&number) => Ok(number.max(0) as u64),
        _ => Err(FlagError::bad(&raw.origin(name), raw.value(name), format!("must be {least} to {most}"))),
    }
}

/// The value of a flag that may be empty.
fn optional<T: FromStr>(raw: &Raw, name: &str, why: &str) -> Result<Option<T>, FlagError> {
    match raw.value(name) {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| FlagError::bad(&raw.origin(name), text, why)),
    }
}

/// The flag that a misspelt name most likely means: one that differs in at most two letters.
fn nearest(name: &str) -> Option<&'static str> {
    let near =
        table::FLAGS.iter().filter(|flag| flag.name.len() > 4).map(|flag| (distance(name, flag.name), flag.name));
    near.min().filter(|(distance, _)| *distance <= 2).map(|(_, name)| name)
}

/// Letters to insert, remove or exchange to get from one word to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let exchanged = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = exchanged.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
