//! What people do with flannel's keys in etcd: look at them, reserve and release subnets, set the network config.
//!
//! [`Operator`] makes the checks that daemons make, before they have to. Each write is one transaction, fenced by everything
//! it was decided on: what somebody else wrote since makes it fail, and is looked at again. It holds no lease of its own,
//! and it does not watch: [`super::EtcdStore`] does both.

mod config;
mod error;
mod listed;
mod release;
mod reserve;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::lease::LeaseKey;
use tokio::task::JoinSet;

pub use self::config::{ConfigChange, ConfigText};
pub use self::error::OperatorError;
pub use self::listed::{Keeping, Listed};
use super::Options;
use super::client::Client;
use super::keys::Keys;
use super::list::list;
use super::rpc::{KeyValue, RangeRequest};
use super::signature::Signature;
use super::trouble::{Kind, Trouble};

/// How often what was decided may be overtaken by somebody else.
const ATTEMPTS: usize = 10;
/// Leases of etcd that are asked for at once: it tells of one in a request.
const AT_ONCE: usize = 100;

/// An etcd cluster, as a person looks after flannel's keys in it.
#[derive(Debug)]
pub struct Operator {
    client: Arc<Client>,
    keys: Keys,
}

/// All lease records.
#[derive(Debug)]
pub struct Census {
    /// The revision of etcd that they are from.
    pub revision: i64,
    /// In the order of their subnets; those whose key names none come first, by name.
    pub records: Vec<Listed>,
}

impl Operator {
    /// Uses a cluster. Whether it can be reached shows when it is asked.
    pub fn new(options: Options) -> Self {
        let Options { endpoints, prefix, tls, login, .. } = options;
        Self { client: Arc::new(Client::new(endpoints, tls, login)), keys: Keys::new(&prefix) }
    }

    /// The key of the network config.
    pub fn config_key(&self) -> String {
        self.keys.config()
    }

    /// What the keys of all lease records begin with.
    pub fn records_prefix(&self) -> String {
        self.keys.subnets()
    }

    /// Reads all lease records, who holds them, and how long they last.
    pub async fn census(&self) -> Result<Census, OperatorError> {
        let mut census = self.look().await?;
        let ids = census.records.iter().filter_map(|listed| listed.keeping.lease()).collect();
        let left = self.time_left(ids).await?;
        for listed in &mut census.records {
            listed.keeping.last(&left);
        }
        Ok(census)
    }

    /// Reads all lease records and who holds them.
    async fn look(&self) -> Result<Census, Trouble> {
        let mut found = Vec::new();
        let header = list(&self.client, self.keys.subnets(), |kv| found.push(kv)).await?;
        let signatures = self.signatures().await?;
        let listed = |kv| Listed::read(&self.keys, kv, &signatures);
        let mut records: Vec<Listed> = found.into_iter().map(listed).collect();
        records.sort_by(|a, b| (&a.subnet, &a.record.key).cmp(&(&b.subnet, &b.record.key)));
        Ok(Census { revision: header.revision, records })
    }

    /// All signatures. Where they may not be read there are none.
    async fn signatures(&self) -> Result<BTreeMap<LeaseKey, Signature>, Trouble> {
        let mut signatures = BTreeMap::new();
        let take = |kv: KeyValue| signatures.extend(Signature::read(&self.keys, &kv));
        match list(&self.client, self.keys.holders(), take).await {
            Err(trouble) if trouble.kind != Kind::Denied => Err(trouble),
            _ => Ok(signatures),
        }
    }

    /// How long leases of etcd live still; those that have ended are not among them.
    async fn time_left(&self, mut ids: Vec<i64>) -> Result<BTreeMap<i64, Duration>, Trouble> {
        ids.sort_unstable();
        ids.dedup();
        let mut left = BTreeMap::new();
        for ids in ids.chunks(AT_ONCE) {
            let mut questions = JoinSet::new();
            for id in ids.iter().copied() {
                let client = Arc::clone(&self.client);
                questions.spawn(async move { (id, client.lease_time_to_live(id).await) });
            }
            for (id, answer) in questions.join_all().await {
                left.extend(u64::try_from(answer?.ttl).ok().map(|ttl| (id, Duration::from_secs(ttl))));
            }
        }
        Ok(left)
    }

    /// The same record with how long it lasts.
    async fn timed(&self, mut listed: Listed) -> Result<Listed, Trouble> {
        let left = self.time_left(listed.keeping.lease().into_iter().collect()).await?;
        listed.keeping.last(&left);
        Ok(listed)
    }

    async fn read(&self, key: String) -> Result<Option<KeyValue>, Trouble> {
        let action = format!("read {key}");
        let request = RangeRequest { key: key.into(), ..RangeRequest::default() };
        Ok(self.client.range(&action, request).await?.kvs.pop())
    }
}
