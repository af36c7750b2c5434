//! The environment of a call: which verb, for which container, on which interface, with which plugins at hand.
//!
//! Parsed once into a [`Call`]; the checks are those of libcni, so that a name which one refuses the other refuses too.
//! Container and interface names become file names, which is why they are checked before anything else.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flannel_core::addr::LinkName;

use super::failure::{Explain, code};
use super::key::shown;
use crate::Variable;

/// The longest name of a container or a network, in bytes: with a mark before it still a file name.
pub(crate) const LONGEST_NAME: usize = 250;

/// The variable with the number of seconds that a call waits for each of those it depends on: the runtime's configuration, and each delegate
/// that is executed. Without it, or with 0, it waits.
pub const TIME_LIMIT: &str = "FLANNEL_CNI_TIMEOUT";
/// The variable that tells an executed plugin how many plugins have executed each other.
pub(crate) const DEPTH: &str = "FLANNEL_CNI_DEPTH";

/// What a runtime asks for: `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Connect a container.
    Add,
    /// Undo an ADD.
    Del,
    /// Verify an ADD.
    Check,
    /// Tell whether ADD would work.
    Status,
    /// Free what belongs to none of the containers listed.
    Gc,
    /// List the versions.
    Version,
}

impl Verb {
    const ALL: [Self; 6] = [Self::Add, Self::Del, Self::Check, Self::Status, Self::Gc, Self::Version];

    /// The verb as `CNI_COMMAND` spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// All variables of the process, of which executed delegates get a copy.
#[derive(Debug, Default)]
pub struct Environment {
    variables: BTreeMap<OsString, OsString>,
}

impl Environment {
    /// Takes in the variables.
    pub fn new(variables: impl IntoIterator<Item = Variable>) -> Self {
        Self { variables: variables.into_iter().collect() }
    }

    /// Every variable.
    pub fn variables(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.variables.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// The verb; none when `CNI_COMMAND` is not set, as when a person starts a plugin.
    pub fn verb(&self) -> Result<Option<Verb>, EnvironmentError> {
        let text = self.text("CNI_COMMAND")?;
        if text.is_empty() {
            return Ok(None);
        }
        let verb = Verb::ALL.into_iter().find(|verb| verb.as_str() == text);
        verb.map(Some).ok_or_else(|| EnvironmentError::UnknownCommand(shown(text)))
    }

    /// Checks the variables that a verb needs.
    pub fn call(&self, verb: Verb) -> Result<Call<'_>, EnvironmentError> {
        self.require(verb)?;
        let container_id = self.text("CNI_CONTAINERID")?;
        if container_id.len() > LONGEST_NAME {
            return Err(EnvironmentError::LongContainerId(container_id.len()));
        }
        if !container_id.is_empty() && !is_identifier(container_id) {
            return Err(EnvironmentError::BadContainerId(shown(container_id)));
        }
        let ifname = self.text("CNI_IFNAME")?;
        let ifname = match ifname {
            "" => None,
            name => Some(name.parse().map_err(|_| EnvironmentError::BadIfname(shown(name)))?),
        };
        let netns = Some(self.text("CNI_NETNS")?).filter(|path| !path.is_empty());
        // What an ADD has refused must not keep its DEL from working.
        let args =
            if verb == Verb::Add || verb == Verb::Check { parse_args(self.text("CNI_ARGS")?)? } else { Vec::new() };
        let path = self.text("CNI_PATH")?.split(':').filter(|part| !part.is_empty()).map(PathBuf::from).collect();
        Ok(Call {
            verb,
            container_id,
            netns,
            ifname,
            args,
            path,
            is_new: false,
            had: Vec::new(),
            is_flannels: false,
            environment: self,
        })
    }

    /// How long a call waits for others; none for as long as it takes.
    pub(crate) fn time_limit(&self) -> Result<Option<Duration>, EnvironmentError> {
        let text = self.text(TIME_LIMIT)?;
        let seconds = if text.is_empty() { Ok(0) } else { text.parse::<u32>() };
        let seconds = seconds.map_err(|_| EnvironmentError::BadTimeLimit(shown(text)))?;
        Ok((seconds != 0).then(|| Duration::from_secs(seconds.into())))
    }

    /// How many plugins have executed each other to come here.
    pub(crate) fn depth(&self) -> u8 {
        self.text(DEPTH).unwrap_or_default().parse().unwrap_or_default()
    }

    fn require(&self, verb: Verb) -> Result<(), EnvironmentError> {
        let names: &[&'static str] = match verb {
            Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Verb::Status | Verb::Gc | Verb::Version => &[],
        };
        let empty = |name: &&&str| self.variables.get(OsStr::new(name)).is_none_or(|value| value.is_empty());
        let missing: Vec<_> = names.iter().filter(empty).copied().collect();
        if missing.is_empty() { Ok(()) } else { Err(EnvironmentError::Missing(missing.join(","))) }
    }

    /// A variable's text; unset is empty.
    fn text(&self, name: &'static str) -> Result<&str, EnvironmentError> {
        let value = self.variables.get(OsStr::new(name)).map_or(OsStr::new(""), |value| value);
        value.to_str().ok_or(EnvironmentError::NotText(name))
    }
}

/// One call, its environment checked.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// What to do.
    pub verb: Verb,
    /// The container; fit to be a file name.
    pub container_id: &'a str,
    /// Path of the container's network namespace; a DEL may come without.
    pub netns: Option<&'a str>,
    /// Name of the interface inside the container; always there for ADD, DEL and CHECK.
    ifname: Option<LinkName>,
    /// `CNI_ARGS`: pairs of a name and a value.
    args: Vec<(&'a str, &'a str)>,
    /// Folders to find delegates in.
    pub path: Vec<PathBuf>,
    /// The container has been seen to lack the interface: what an address is asked for is new, whatever is written down
    /// from an ADD that came to nothing.
    pub(crate) is_new: bool,
    /// What addresses the interface has been seen to have, of those that a DEL frees.
    pub(crate) had: Vec<IpAddr>,
    /// The plugin flannel delegates, so the bridge has the node's lease for an address and none of an administrator's.
    pub(crate) is_flannels: bool,
    /// What executed delegates inherit.
    pub environment: &'a Environment,
}

impl Call<'_> {
    /// The same call with another verb, for taking back an ADD that failed half-way.
    pub fn with_verb(&self, verb: Verb) -> Self {
        Self { verb, ..self.clone() }
    }

    /// The same call, for an interface that the container has been seen to lack.
    pub(crate) fn of_new_interface(&self) -> Self {
        Self { is_new: true, ..self.clone() }
    }

    /// The same call, for an interface that has been seen to have these addresses.
    pub(crate) fn that_had(&self, addresses: &[IpAddr]) -> Self {
        Self { had: addresses.to_vec(), ..self.clone() }
    }

    /// The same call, delegated by flannel.
    pub(crate) fn of_flannel(&self) -> Self {
        Self { is_flannels: true, ..self.clone() }
    }

    /// The interface inside the container.
    pub fn ifname(&self) -> Result<LinkName, EnvironmentError> {
        self.ifname.ok_or_else(|| EnvironmentError::Missing("CNI_IFNAME".into()))
    }

    /// The container's network namespace.
    pub fn netns(&self) -> Result<&Path, EnvironmentError> {
        self.netns.map(Path::new).ok_or_else(|| EnvironmentError::Missing("CNI_NETNS".into()))
    }

    /// `CNI_ARGS` as text.
    #[cfg(any(test, feature = "laws"))]
    pub(crate) fn args_text(&self) -> String {
        self.args.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(";")
    }

    /// Refuses arguments that are none of `known`, unless `IgnoreUnknown` allows them: the rule of libcni's `LoadArgs`, by which the
    /// plugins that take arguments go.
    pub(crate) fn allow_args(&self, known: &[&str]) -> Result<(), EnvironmentError> {
        let ignored = match self.arg(IGNORE_UNKNOWN).map(str::to_ascii_lowercase).as_deref() {
            None | Some("0" | "false") => false,
            Some("1" | "true") => true,
            Some(other) => return Err(EnvironmentError::BadIgnore(shown(other))),
        };
        let is_known = |name: &str| name == IGNORE_UNKNOWN || known.contains(&name);
        match self.args.iter().find(|(name, _)| !is_known(name)) {
            Some((name, _)) if !ignored => Err(EnvironmentError::UnknownArg(shown(name))),
            _ => Ok(()),
        }
    }

    /// The value of a name in `CNI_ARGS`.
    pub fn arg(&self, name: &str) -> Option<&str> {
        self.args.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

/// Whether a text may name a container or a network: libcni's `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`.
pub fn is_identifier(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// The arguments that some plugin takes. Each gets those of all in its chain, so each lets them pass.
pub(crate) const ARGS: [&str; 3] = ["MAC", "IP", "GATEWAY"];
const IGNORE_UNKNOWN: &str = "IgnoreUnknown";

fn parse_args(text: &str) -> Result<Vec<(&str, &str)>, EnvironmentError> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').ok_or_else(|| EnvironmentError::BadArgs(shown(pair)))).collect()
}

/// The environment is not what the specification asks for.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// `CNI_COMMAND` is no verb.
    #[error("unknown CNI_COMMAND: {0:?}")]
    UnknownCommand(String),
    /// Variables that the verb needs.
    #[error("required env variables [{0}] missing")]
    Missing(String),
    /// A variable is not UTF-8.
    #[error("env variable {0} is not text in UTF-8")]
    NotText(&'static str),
    /// The container's name could not be a file name.
    #[error("invalid characters in CNI_CONTAINERID {0:?}")]
    BadContainerId(String),
    /// The container's name is too long to be a file name.
    #[error("CNI_CONTAINERID has {0} bytes, of {LONGEST_NAME} at most")]
    LongContainerId(usize),
    /// The time limit is not a number.
    #[error("env variable {TIME_LIMIT} is {0:?}, which is not a number of seconds")]
    BadTimeLimit(String),
    /// `IgnoreUnknown` is not a switch.
    #[error("CNI_ARGS: IgnoreUnknown is {0:?}, which is neither 1 nor 0")]
    BadIgnore(String),
    /// A name in `CNI_ARGS` that no one knows.
    #[error("CNI_ARGS: unknown argument {0:?}")]
    UnknownArg(String),
    /// The interface's name is not one.
    #[error("invalid interface name in CNI_IFNAME: {0:?}")]
    BadIfname(String),
    /// `CNI_ARGS` is not a list of pairs.
    #[error("CNI_ARGS: invalid pair {0:?}")]
    BadArgs(String),
}

impl Explain for EnvironmentError {
    fn code(&self) -> u32 {
        code::ENVIRONMENT
    }

    fn hint(&self) -> String {
        match self {
            Self::UnknownCommand(_) => format!("the verbs are {}", Verb::ALL.map(Verb::as_str).join(", ")),
            Self::Missing(_) => {
                "the container runtime sets them; by hand, see the CNI specification, section Parameters".into()
            }
            Self::NotText(name) => format!("check what the runtime puts into {name}"),
            Self::BadContainerId(_) => {
                "letters, digits, `_`, `.` and `-` are allowed, the first one a letter or digit".into()
            }
            Self::LongContainerId(_) => "the runtime names files after it: give the container a shorter name".into(),
            Self::BadTimeLimit(_) => "set it to one, as 30, or to nothing for no limit".into(),
            Self::BadIgnore(_) => "true and false are allowed too".into(),
            Self::UnknownArg(_) => {
                "set IgnoreUnknown=1 in CNI_ARGS, as Kubernetes does, or leave the argument out".into()
            }
            Self::BadIfname(_) => "1 to 15 bytes, no `/`, `:` or blank, not `.` or `..`".into(),
            Self::BadArgs(_) => "it is a list like `IgnoreUnknown=1;IP=10.1.2.3`".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment::new(pairs.iter().map(|(name, value)| (name.into(), value.into())))
    }

    const ADD: [(&str, &str); 4] =
        [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/n"), ("CNI_IFNAME", "eth0")];

    const LONG: &str = concat!(
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abc",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd",
    );

    fn error_with(name: &'static str, value: &'static str) -> String {
        let mut pairs = ADD.to_vec();
        pairs.push((name, value));
        let env = environment(&pairs);
        let call = env.verb().and_then(|verb| env.call(verb.unwrap()));
        call.map_or_else(|error| error.to_string(), |_| String::new())
    }

    #[test]
    fn a_good_call_parses() {
        let mut pairs = ADD.to_vec();
        pairs.extend([("CNI_ARGS", "IgnoreUnknown=1;IP=10.1.2.3;"), ("CNI_PATH", "/a::/b")]);
        let env = environment(&pairs);
        let call = env.call(env.verb().unwrap().unwrap()).unwrap();
        assert_eq!((call.verb, call.container_id, call.netns), (Verb::Add, "c1", Some("/n")));
        assert_eq!(call.ifname().unwrap().as_str(), "eth0");
        assert_eq!((call.arg("IP"), call.arg("MAC")), (Some("10.1.2.3"), None));
        assert_eq!(call.path, [PathBuf::from("/a"), PathBuf::from("/b")]);
    }

    #[test]
    fn bad_variables_are_named() {
        for (name, value, expect) in [
            ("CNI_COMMAND", "add", "unknown CNI_COMMAND: \"add\""),
            ("CNI_CONTAINERID", "", "required env variables [CNI_CONTAINERID] missing"),
            ("CNI_CONTAINERID", "../../etc/passwd", "invalid characters in CNI_CONTAINERID \"../../etc/passwd\""),
            ("CNI_CONTAINERID", "..", "invalid characters in CNI_CONTAINERID \"..\""),
            ("CNI_CONTAINERID", "a\nb", "invalid characters in CNI_CONTAINERID \"a\\nb\""),
            ("CNI_IFNAME", "../x", "invalid interface name in CNI_IFNAME: \"../x\""),
            ("CNI_IFNAME", "..", "invalid interface name in CNI_IFNAME: \"..\""),
            ("CNI_IFNAME", "sixteen-bytes-xx", "invalid interface name in CNI_IFNAME: \"sixteen-bytes-xx\""),
            ("CNI_ARGS", "IP", "CNI_ARGS: invalid pair \"IP\""),
            ("CNI_CONTAINERID", LONG, "CNI_CONTAINERID has 251 bytes, of 250 at most"),
        ] {
            assert_eq!(error_with(name, value), expect);
        }
    }

    #[test]
    fn unknown_arguments_are_ignored_only_when_told_so() {
        let allowed = |args: &str| {
            let pairs = [ADD.as_slice(), &[("CNI_ARGS", args)]].concat();
            let env = environment(&pairs);
            let call = env.call(Verb::Add).unwrap();
            call.allow_args(&["IP"]).map_err(|error| error.to_string())
        };
        for args in ["", "IP=x", "IP=x;IgnoreUnknown=0", "A=1;IgnoreUnknown=1", "IgnoreUnknown=TRUE;A=1;IP=x"] {
            assert_eq!(allowed(args), Ok(()), "{args}");
        }
        for (args, expect) in [
            ("A=1", "CNI_ARGS: unknown argument \"A\""),
            ("IP=x;ip=y;IgnoreUnknown=false", "CNI_ARGS: unknown argument \"ip\""),
            ("IgnoreUnknown=", "CNI_ARGS: IgnoreUnknown is \"\", which is neither 1 nor 0"),
            ("A=1;IgnoreUnknown=yes", "CNI_ARGS: IgnoreUnknown is \"yes\", which is neither 1 nor 0"),
        ] {
            assert_eq!(allowed(args).unwrap_err(), expect);
        }
    }

    #[test]
    fn what_an_add_refuses_does_not_keep_its_del() {
        let env = environment(&[ADD.as_slice(), &[("CNI_ARGS", "garbage")]].concat());
        assert!(env.call(Verb::Add).is_err() && env.call(Verb::Del).is_ok());
    }

    #[test]
    fn a_del_needs_no_namespace_and_a_person_no_verb() {
        let env = environment(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")]);
        assert_eq!(env.call(Verb::Del).unwrap().netns, None);
        assert_eq!(environment(&[]).verb().unwrap(), None);
    }
}
