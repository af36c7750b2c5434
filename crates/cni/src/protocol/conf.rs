//! The network configuration on standard input: read with a bound, checked for what every plugin needs of it.

use std::io::{ErrorKind, Read};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::environment::{LONGEST_NAME, is_identifier};
use super::failure::{Explain, code};
use super::key::{self, Object, WrongKey, shown};
use super::result::CniResult;
use super::version::{UnknownVersion, Version};

/// The longest configuration that is read, in bytes. A `prevResult` with a thousand addresses stays below 100 kB.
pub const LIMIT: u64 = 1 << 20;

/// How much is read at once, in bytes: more than most configurations have.
const CHUNK: usize = 1 << 14;

/// A network configuration: a JSON object with a known version and a name that may be a file name.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// `cniVersion`; 0.1.0 when absent, as libcni reads it.
    pub version: Version,
    /// `name`.
    pub name: String,
    /// Every key, those above too.
    pub keys: Map<String, Value>,
}

impl NetConf {
    /// Reads a configuration of [`LIMIT`] bytes at most, until it is whole: a runtime may forget to close its end.
    pub fn read(input: &mut dyn Read) -> Result<Self, ConfError> {
        let mut text = Vec::new();
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = match input.read(&mut chunk) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                count => count.map_err(ConfError::Read)?,
            };
            text.extend(&chunk[..count]);
            if text.len() as u64 > LIMIT {
                return Err(ConfError::TooLong);
            }
            if count == 0 || text.trim_ascii_end().ends_with(b"}") {
                match serde_json::from_slice(&text) {
                    Err(_) if text.trim_ascii().is_empty() => return Err(ConfError::Empty),
                    Err(error) if error.is_eof() && count != 0 => {}
                    parsed => return parsed.map_err(ConfError::of_json).and_then(Self::from_value),
                }
            }
        }
    }

    /// Takes in a configuration that is parsed already.
    pub fn from_value(value: Value) -> Result<Self, ConfError> {
        let Value::Object(keys) = value else { return Err(ConfError::NotObject) };
        let version = match text(&keys, "cniVersion")? {
            "" => Version::V0_1_0,
            version => version.parse()?,
        };
        let name = text(&keys, "name")?.to_owned();
        match name.as_str() {
            "" => Err(ConfError::NoName),
            name if name.len() > LONGEST_NAME => Err(ConfError::LongName(name.len())),
            name if !is_identifier(name) => Err(ConfError::BadName(shown(name))),
            _ => Ok(Self { version, name, keys }),
        }
    }

    /// The keys a plugin knows, as a type of its own.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, ConfError> {
        let Object(keys) = key::read(&Value::Object(self.keys.clone())).map_err(|key| self.wrong(key))?;
        Ok(keys)
    }

    /// The error for a wrong key.
    pub(crate) fn wrong(&self, key: WrongKey) -> ConfError {
        ConfError::Key { network: self.name.clone(), key }
    }

    /// `ipam.type`, if there is one.
    pub fn ipam_type(&self) -> Result<Option<&str>, ConfError> {
        let Some(ipam) = self.keys.get("ipam").filter(|ipam| !ipam.is_null()) else { return Ok(None) };
        let Value::Object(ipam) = ipam else {
            return Err(self.wrong(WrongKey::new("ipam", "it is not an object".into())));
        };
        let kind = text(ipam, "type").map_err(|_| self.wrong(WrongKey::new("ipam.type", "it is not text".into())))?;
        Ok(Some(kind).filter(|kind| !kind.is_empty()))
    }

    /// `prevResult`: what the ADD answered that a CHECK is to verify.
    pub fn prev_result(&self) -> Result<CniResult, ConfError> {
        let prev = self.keys.get("prevResult").filter(|prev| !prev.is_null()).ok_or(ConfError::NoPrevResult)?;
        CniResult::from_value(prev).map_err(|key| self.wrong(key.within("prevResult")))
    }

    /// The configuration as bytes: compact, keys sorted.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.keys).unwrap_or_default()
    }
}

/// A key's text; an absent one is empty.
fn text<'a>(keys: &'a Map<String, Value>, key: &'static str) -> Result<&'a str, ConfError> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(ConfError::NotText(key)),
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// Standard input broke.
    #[error("cannot read the network configuration from standard input: {0}")]
    Read(std::io::Error),
    /// Nothing came.
    #[error("cannot read the network configuration: standard input is empty")]
    Empty,
    /// More than [`LIMIT`] came.
    #[error("network configuration on standard input is longer than {LIMIT} bytes")]
    TooLong,
    /// Not JSON.
    #[error("network configuration is not JSON: {0}")]
    NotJson(serde_json::Error),
    /// More than the parser follows.
    #[error("network configuration is nested too deep: more than 127 objects and lists in each other")]
    TooDeep,
    /// JSON, but no object.
    #[error("network configuration is not a JSON object")]
    NotObject,
    /// A key has a wrong type or value.
    #[error("configuration of network {network}: {key}")]
    Key {
        /// The network's name.
        network: String,
        /// The key.
        key: WrongKey,
    },
    /// A key that names the configuration is not text.
    #[error("network configuration: key `{0}` is not text")]
    NotText(&'static str),
    /// `cniVersion` is unknown.
    #[error(transparent)]
    Version(#[from] UnknownVersion),
    /// `name` is absent.
    #[error("network configuration: missing network name")]
    NoName,
    /// `name` could not be a file name.
    #[error("network configuration: invalid characters in network name {0:?}")]
    BadName(String),
    /// `name` is too long to be a file name.
    #[error("network configuration: key `name` has {0} bytes, of {LONGEST_NAME} at most")]
    LongName(usize),
    /// CHECK without the result of the ADD.
    #[error("network configuration: key `prevResult` is missing")]
    NoPrevResult,
    /// GC without the attachments to keep.
    #[error("network configuration: key `cni.dev/valid-attachments` is missing")]
    NoAttachments,
}

impl ConfError {
    /// What the parser says has no class for depth.
    fn of_json(error: serde_json::Error) -> Self {
        if error.to_string().starts_with("recursion limit exceeded") { Self::TooDeep } else { Self::NotJson(error) }
    }
}

impl Explain for ConfError {
    fn code(&self) -> u32 {
        match self {
            Self::Read(_) | Self::Empty | Self::TooLong | Self::TooDeep | Self::NotJson(_) => code::DECODING,
            Self::Key { key, .. } if key.is_within("prevResult") => code::DECODING,
            Self::Version(error) => error.code(),
            _ => code::CONF,
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::Read(_) | Self::Empty | Self::TooLong => {
                "the container runtime writes it there; check the files in /etc/cni/net.d".into()
            }
            Self::Version(error) => error.hint(),
            Self::BadName(_) => {
                "letters, digits, `_`, `.` and `-` are allowed in `name`, the first one a letter or digit".into()
            }
            Self::NoPrevResult => "CHECK needs the result of the ADD, as the runtime kept it".into(),
            Self::Key { key, .. } if key.is_within("prevResult") => {
                "it is what the plugin before, or the ADD of a CHECK, has answered: the runtime may have kept it badly".into()
            }
            Self::Key { key, .. } if key.is_within("runtimeConfig") => {
                "the container runtime sends `runtimeConfig`: check which ports, addresses or MAC the container asks for".into()
            }
            Self::Key { network, .. } => format!("correct the file of network {network} in /etc/cni/net.d"),
            Self::NoAttachments => "the runtime lists there what GC is to keep; without it nothing is freed".into(),
            _ => "check the files in /etc/cni/net.d".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::failure::Failure;

    fn failure(text: &str) -> (u32, String) {
        let failure = Failure::from(NetConf::read(&mut text.as_bytes()).unwrap_err());
        (failure.code, failure.msg)
    }

    #[test]
    fn bad_input_has_a_code_and_a_cause() {
        for (text, code, cause) in [
            ("", 6, "standard input is empty"),
            (" \n", 6, "standard input is empty"),
            ("{", 6, "not JSON: EOF"),
            ("[]", 7, "not a JSON object"),
            (&format!("{}{}", "[".repeat(127), "]".repeat(127)), 7, "not a JSON object"),
            (&format!("{}{}", "[".repeat(128), "]".repeat(128)), 6, "nested too deep: more than 127 objects"),
            ("{\"cniVersion\":\"9.0.0\",\"name\":\"n\"}", 1, "config is \"9.0.0\""),
            ("{\"cniVersion\":1,\"name\":\"n\"}", 7, "key `cniVersion` is not text"),
            ("{\"cniVersion\":\"1.0.0\"}", 7, "missing network name"),
            ("{\"cniVersion\":\"1.0.0\",\"name\":\"../x\"}", 7, "invalid characters in network name \"../x\""),
        ] {
            let (found, msg) = failure(text);
            assert_eq!(found, code, "{text}");
            assert!(msg.contains(cause), "{msg}");
        }
        assert_eq!(failure(&"x".repeat(LIMIT as usize)).0, 6);
        assert!(failure(&"x".repeat(LIMIT as usize + 1)).1.contains("longer than 1048576 bytes"));
    }

    #[test]
    fn bytes_are_compact_and_sorted() {
        let conf =
            NetConf::read(&mut "{ \"name\": \"n\", \"b\": [1, 2], \"a\": {\"z\": 1, \"y\": 2} }".as_bytes()).unwrap();
        assert_eq!(conf.version, Version::V0_1_0);
        assert_eq!(String::from_utf8(conf.to_bytes()).unwrap(), "{\"a\":{\"y\":2,\"z\":1},\"b\":[1,2],\"name\":\"n\"}");
    }
}
