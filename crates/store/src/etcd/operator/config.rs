//! The network config, read and set.

use flannel_core::config::{ConfigError, ConfigRules, NetworkConfig, Warning};

use super::super::rpc::KeyValue;
use super::super::transaction::Transaction;
use super::{ATTEMPTS, Listed, Operator, OperatorError};
use crate::acquire::used;

/// The network config as it lies in etcd.
#[derive(Debug)]
pub struct ConfigText {
    /// Its text; what is no text of it is replaced.
    pub text: String,
    /// The revision of etcd that wrote it last.
    pub written: i64,
    /// What the daemon reads in it.
    pub read: Result<(NetworkConfig, Vec<Warning>), ConfigError>,
}

/// A network config that was set.
#[derive(Debug)]
pub struct ConfigChange {
    /// The one before, if there was one that a daemon can read.
    pub before: Option<NetworkConfig>,
    /// What is in etcd now.
    pub now: NetworkConfig,
    /// What of it has no effect.
    pub warnings: Vec<Warning>,
    /// Whether it was in etcd already, word for word.
    pub is_same: bool,
    /// The records that it leaves no place for.
    pub stranded: Vec<Listed>,
}

impl ConfigText {
    fn of(kv: &KeyValue) -> Self {
        let text = String::from_utf8_lossy(&kv.value).into_owned();
        Self { read: NetworkConfig::parse(&text, ConfigRules::Etcd), text, written: kv.mod_revision }
    }
}

impl Operator {
    /// The network config, if there is one.
    pub async fn config(&self) -> Result<Option<ConfigText>, OperatorError> {
        Ok(self.read(self.keys.config()).await?.as_ref().map(ConfigText::of))
    }

    /// The network config, which has to be one that a daemon can read.
    pub(super) async fn config_in_use(&self) -> Result<(NetworkConfig, KeyValue), OperatorError> {
        let key = self.keys.config();
        let Some(kv) = self.read(key.clone()).await? else { return Err(OperatorError::NoConfig { key }) };
        match ConfigText::of(&kv).read {
            Ok((config, _)) => Ok((config, kv)),
            Err(cause) => Err(OperatorError::BadConfig { key, cause }),
        }
    }

    /// Sets the network config. One that leaves no place for records that have one now is set only if `force`.
    pub async fn set_config(&self, text: &str, force: bool) -> Result<ConfigChange, OperatorError> {
        let (now, warnings) = NetworkConfig::parse(text, ConfigRules::Etcd)?;
        let key = self.keys.config();
        for _ in 0..ATTEMPTS {
            let seen = self.read(key.clone()).await?;
            let before = seen.as_ref().and_then(|kv| Some(ConfigText::of(kv).read.ok()?.0));
            let is_same = seen.as_ref().is_some_and(|kv| kv.value == text);
            let census = self.look().await?;
            let strands = |listed: &Listed| {
                let fits = |config| used(config, &listed.subnet).is_some();
                listed.record.lease.is_ok() && !fits(&now) && before.as_ref().is_none_or(fits)
            };
            let stranded: Vec<Listed> = census.records.into_iter().filter(strands).collect();
            if !stranded.is_empty() && !force {
                let leases = stranded.iter().map(|listed| format!("{} of {}", listed.record.key, listed.owner()));
                return Err(OperatorError::Stranded { leases: leases.collect() });
            }
            let writing = match &seen {
                Some(kv) => Transaction::default().if_unchanged(kv),
                None => Transaction::default().if_absent(key.clone()),
            };
            let writing = writing.if_none_written_after(self.keys.subnets(), census.revision);
            let writing = writing.put(key.clone(), text.to_owned(), 0);
            if is_same || writing.send(&self.client, &format!("write {key}")).await?.succeeded {
                return Ok(ConfigChange { before, now, warnings, is_same, stranded });
            }
        }
        Err(OperatorError::Overtaken)
    }
}
