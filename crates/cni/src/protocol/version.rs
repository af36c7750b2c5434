//! Versions of the CNI specification: which exist, and what each allows.

use std::str::FromStr;

use serde::Serialize;

use super::environment::Verb;
use super::failure::{Explain, code};
use super::key::shown;

/// A released version of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is the version it spells")]
pub enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest.
    pub const LATEST: Self = Self::V1_1_0;

    /// The version as a configuration spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The answer to VERSION.
    pub fn listing() -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Listing {
            cni_version: &'static str,
            supported_versions: [&'static str; Version::ALL.len()],
        }
        let listing = Listing { cni_version: Self::LATEST.as_str(), supported_versions: Self::ALL.map(Self::as_str) };
        let mut text = serde_json::to_vec(&listing).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// Whether the version has a verb: CHECK came with 0.4.0, STATUS and GC with 1.1.0.
    pub fn allows(self, verb: Verb) -> Result<(), VerbNotAllowed> {
        let since = match verb {
            Verb::Add | Verb::Del | Verb::Version => Self::V0_1_0,
            Verb::Check => Self::V0_4_0,
            Verb::Status | Verb::Gc => Self::V1_1_0,
        };
        if self >= since { Ok(()) } else { Err(VerbNotAllowed { version: self, verb, since }) }
    }
}

impl FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| UnknownVersion(shown(text)))
    }
}

/// A configuration names a version that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("incompatible CNI versions: config is {0:?}, plugin supports {known}", known = Version::ALL.map(Version::as_str).join(", "))]
pub struct UnknownVersion(String);

impl Explain for UnknownVersion {
    fn code(&self) -> u32 {
        code::VERSION
    }
    fn hint(&self) -> String {
        "set `cniVersion` in the network configuration to one of them".into()
    }
}

/// A verb that the configuration's version does not have.
#[derive(Debug, thiserror::Error)]
#[error("config version does not allow {verb}: it is {}", version.as_str())]
pub struct VerbNotAllowed {
    version: Version,
    verb: Verb,
    since: Version,
}

impl Explain for VerbNotAllowed {
    fn code(&self) -> u32 {
        code::VERSION
    }
    fn hint(&self) -> String {
        format!("{} came with version {}", self.verb, self.since.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_came_with_versions() {
        for version in Version::ALL {
            assert!(version.allows(Verb::Add).is_ok() && version.allows(Verb::Del).is_ok());
            assert_eq!(version.allows(Verb::Check).is_ok(), version >= Version::V0_4_0);
            assert_eq!(version.allows(Verb::Status).is_ok(), version == Version::V1_1_0);
        }
    }

    #[test]
    fn the_listing_is_the_specifications() {
        assert_eq!(
            String::from_utf8(Version::listing()).unwrap(),
            "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"
        );
    }
}
