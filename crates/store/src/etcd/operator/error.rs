//! Why something was not done, and what to do then.

use flannel_core::config::ConfigError;
use flannel_core::lease::{Flaw, LeaseKey};

use super::super::trouble::Trouble;
use super::ATTEMPTS;

/// Leases that a message names.
const SHOWN: usize = 10;

/// Why something was not done. Nothing is written then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperatorError {
    /// etcd is away, or refuses.
    #[error("{cause}")]
    Etcd {
        /// What failed, at which server, why.
        cause: String,
        /// What to do.
        hint: Option<&'static str>,
    },
    /// A network config is needed, and there is none.
    #[error("etcd key {key} does not exist: there is no network config")]
    NoConfig {
        /// The config's key.
        key: String,
    },
    /// A network config is needed, and that in etcd cannot be used.
    #[error("etcd key {key}: {cause}")]
    BadConfig {
        /// The config's key.
        key: String,
        /// What is wrong with it.
        cause: ConfigError,
    },
    /// The network config to be set cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no such record.
    #[error("etcd has no record {name} below {prefix}")]
    NoRecord {
        /// The name asked for.
        name: LeaseKey,
        /// What the keys of all records begin with.
        prefix: String,
    },
    /// A daemon would not take the subnet, as the config is.
    #[error("{subnet} cannot be reserved: {why}")]
    Unfit {
        /// The subnet.
        subnet: String,
        /// What is wrong with it.
        why: String,
        /// What to do.
        hint: String,
    },
    /// A daemon would not read the record.
    #[error("the record would be broken: {0}")]
    Unreadable(Flaw),
    /// Another record has the subnet, or a part of it.
    #[error("{subnet} is taken: record {name} of {owner}, {keeping}")]
    Taken {
        /// The subnet asked for.
        subnet: String,
        /// The other record.
        name: LeaseKey,
        /// Whose it is.
        owner: String,
        /// How long.
        keeping: String,
    },
    /// The host has another subnet.
    #[error("{public_ip} has another subnet: record {name}, {keeping}")]
    Elsewhere {
        /// The host.
        public_ip: String,
        /// Its record.
        name: LeaseKey,
        /// How long.
        keeping: String,
    },
    /// A record of a host that may be alive.
    #[error("record {name} is the lease of {owner}, {keeping}")]
    Alive {
        /// The record.
        name: LeaseKey,
        /// Whose it is.
        owner: String,
        /// How long.
        keeping: String,
    },
    /// Leases that a new config leaves no place for.
    #[error("this config leaves no place for leases there are: {}", some(leases))]
    Stranded {
        /// Each with its owner.
        leases: Vec<String>,
    },
    /// Others wrote at the same time, again and again.
    #[error("others wrote to etcd at the same time as each of {ATTEMPTS} attempts")]
    Overtaken,
}

/// The first of many on one line, and how many more there are.
fn some(names: &[String]) -> String {
    let (shown, more) = names.split_at(names.len().min(SHOWN));
    let more = if more.is_empty() { String::new() } else { format!("; and {} more", more.len()) };
    shown.join("; ") + &more
}

impl OperatorError {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Etcd { hint, .. } => return hint.map(Into::into),
            Self::NoConfig { .. } => "`flannel etcd set-config FILE` writes one",
            Self::BadConfig { cause, .. } | Self::Config(cause) => cause.hint(),
            Self::NoRecord { .. } => "`flannel etcd ls` lists the records there are",
            Self::Unfit { hint, .. } => hint,
            Self::Unreadable(_) => "give the address by which other nodes reach the host",
            Self::Taken { .. } => "choose another, or release that record first",
            Self::Elsewhere { .. } => {
                "reserve that subnet; or end flanneld on that host, release that record, and reserve this one then"
            }
            Self::Alive { .. } => {
                "end flanneld on that host first, or it takes the subnet again at once; then release with --force"
            }
            Self::Stranded { .. } => {
                "leave them a place; or set it with --force, and make the pods of these hosts anew: they get other subnets"
            }
            Self::Overtaken => "try again",
        };
        Some(hint.into())
    }
}

impl From<Trouble> for OperatorError {
    fn from(trouble: Trouble) -> Self {
        let (cause, hint) = trouble.into_parts();
        Self::Etcd { cause, hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_all_of_many_leases_are_named() {
        let leases: Vec<String> = (1..=12).map(|host| format!("10.5.{host}.0-24 of 192.0.2.{host}")).collect();
        let said = |count: usize| OperatorError::Stranded { leases: leases[..count].to_vec() }.to_string();
        assert_eq!(said(1), "this config leaves no place for leases there are: 10.5.1.0-24 of 192.0.2.1");
        assert!(said(10).ends_with("; 10.5.10.0-24 of 192.0.2.10"));
        assert!(said(12).ends_with("10.5.10.0-24 of 192.0.2.10; and 2 more"));
    }
}
