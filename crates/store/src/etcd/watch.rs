//! What etcd tells: the config and all leases at first, and from then on what changes of them.
//!
//! A session reads the config, lists the leases unless what was told before goes on from there, and watches until something
//! fails. The config is read by a request that most members of the cluster have to agree on, so its header tells what is
//! true: a revision or a term lower than seen before, or another cluster, mean that the data is not what it was (wiped, or
//! restored from a backup). So does a history in which the last write that we saw did not happen. Then all leases are listed
//! again, and also when the revisions missed are compacted. In all other cases the watch goes on where it ended, and silence
//! is not news.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::addr::Family;
use flannel_core::lease::LeaseEvent;
use prost::bytes::Bytes;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep};
use tonic::Status;

use super::client::Watching;
use super::hold::Etcd;
use super::keys::{end_of, name_below};
use super::list::{Shared, list_records, read};
use super::rpc::event::EventType;
use super::rpc::{Event, KeyValue, RangeRequest, ResponseHeader, WatchCreateRequest, WatchResponse};
use super::transaction::{Done, Transaction};
use super::trouble::{Kind, Trouble};
use crate::StoreEvent;
use crate::acquire::jittered;
use crate::host::Host;

/// Names of the watches on the stream.
const CONFIG: i64 = 1;
const LEASES: i64 = 2;
const RIVALS: i64 = 3;

/// The most records that there is room made for before they have come.
const MOST: usize = 100_000;

/// The longest note that is read, in bytes.
const LONGEST_NOTE: usize = 1024;

/// First pause before a new session, the longest while the server is away, and the longest while it refuses us.
const PAUSES: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(15)];

/// How long a session lasts after which the next one begins at once: one that ends sooner may do so again and again.
const LASTING: Duration = Duration::from_secs(10);

/// The most troubles that are told until all is well again, should each attempt make another one.
const TROUBLES: usize = 10;

/// Tells, until nobody listens.
pub(super) struct Teller {
    etcd: Arc<Etcd>,
    sender: Sender<StoreEvent>,
    config: Option<Result<String, String>>,
    point: Option<Point>,
    /// Whether we may read the notes of rivals.
    hears_rivals: bool,
    /// The troubles told since all was well.
    troubles: BTreeSet<String>,
    pause: Duration,
}

/// Up to where the leases were told.
#[derive(Debug, Clone)]
struct Point {
    cluster: u64,
    term: u64,
    revision: i64,
    /// The last write seen, by key and revision.
    write: Option<(Bytes, i64)>,
}

/// What the beginning of a session has shown.
struct Look {
    header: ResponseHeader,
    /// The number of lease records.
    records: usize,
}

impl Point {
    fn of(header: &ResponseHeader) -> Self {
        Self { cluster: header.cluster_id, term: header.raft_term, revision: header.revision, write: None }
    }

    /// Takes note of a write.
    fn note(&mut self, kv: &KeyValue) {
        if self.write.as_ref().is_none_or(|(_, revision)| *revision < kv.mod_revision) {
            // A copy: the key is a part of a whole answer, which is not to be kept for it.
            self.write = Some((Bytes::copy_from_slice(&kv.key), kv.mod_revision));
        }
    }

    /// Whether what a cluster holds now came after this point.
    fn leads_to(&self, now: &ResponseHeader) -> bool {
        self.cluster == now.cluster_id && self.term <= now.raft_term && self.revision <= now.revision
    }
}

impl Teller {
    pub(super) fn new(etcd: Arc<Etcd>, sender: Sender<StoreEvent>) -> Self {
        let troubles = BTreeSet::new();
        Self { etcd, sender, config: None, point: None, hears_rivals: true, troubles, pause: PAUSES[0] }
    }

    /// One session after the other.
    pub(super) async fn tell(mut self) -> Infallible {
        loop {
            let begun = Instant::now();
            let Err(trouble) = self.session().await;
            self.etcd.shared.send_replace(Shared::Absent);
            if begun.elapsed() >= LASTING {
                self.pause = PAUSES[0];
            }
            tracing::debug!("watch: {trouble}");
            let longest = match trouble.kind {
                Kind::Away | Kind::Token | Kind::Anew => PAUSES[1],
                _ => PAUSES[2],
            };
            if trouble.kind != Kind::Anew {
                self.complain(trouble.to_string()).await;
            }
            sleep(jittered(self.pause)).await;
            self.pause = (self.pause * 2).min(longest);
        }
    }

    async fn session(&mut self) -> Result<Infallible, Trouble> {
        let etcd = Arc::clone(&self.etcd);
        let Look { header, records } = self.look().await?;
        if self.point.is_none() {
            self.tell_all(records).await?;
        }
        let watches = self.watches(&header);
        let mut waited_for = watches.len();
        let mut watching = etcd.client.watch(watches).await?;
        loop {
            let response = etcd.client.next(&mut watching).await?;
            if response.created && !response.canceled {
                waited_for -= 1;
                if waited_for == 0 {
                    self.recover(&watching);
                }
            }
            self.take(response, &watching).await?;
        }
    }

    /// Reads and tells the config, and forgets what was told of leases if this is not the history that it is from.
    async fn look(&mut self) -> Result<Look, Trouble> {
        let (key, subnets) = (self.etcd.keys.config(), self.etcd.keys.subnets());
        let write = self.point.as_ref().and_then(|point| point.write.clone());
        let keys = [Some(key.clone().into()), write.as_ref().map(|(key, _)| key.clone())];
        let looks = keys
            .into_iter()
            .flatten()
            .fold(Transaction::default(), |looks, key| looks.range(RangeRequest { key, ..RangeRequest::default() }));
        let end = end_of(&subnets).into();
        let count = RangeRequest { key: subnets.into(), range_end: end, count_only: true, ..RangeRequest::default() };
        let action = format!("read {key}");
        let Done { header, found, counted, .. } = looks.range(count).send(&self.etcd.client, &action).await?;
        let goes_on = self.point.as_ref().is_some_and(|point| point.leads_to(&header));
        if !goes_on || !self.happened(write, &found).await? {
            self.point = None;
        }
        if self.point.is_none() {
            // Before the config is told: who hears it may want a lease at once.
            self.etcd.shared.send_replace(Shared::Coming);
        }
        self.tell_config(found.into_iter().find(|kv| kv.key == key)).await;
        Ok(Look { header, records: usize::try_from(counted).unwrap_or_default().min(MOST) })
    }

    /// Whether a write is a part of the cluster's history: it is among what was found now, or else was there then.
    async fn happened(&self, write: Option<(Bytes, i64)>, found: &[KeyValue]) -> Result<bool, Trouble> {
        let Some((key, revision)) = write else { return Ok(true) };
        let is_it = |kv: &KeyValue| kv.key == key && kv.mod_revision == revision;
        if found.iter().any(is_it) {
            return Ok(true);
        }
        let request = RangeRequest { key: key.clone(), revision, ..RangeRequest::default() };
        match self.etcd.client.range("read a record of before", request).await {
            Ok(page) => Ok(page.kvs.iter().any(is_it)),
            Err(trouble) if trouble.kind == Kind::Anew => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }

    /// Tells all leases there are, about so many, when it is our turn.
    async fn tell_all(&mut self, about: usize) -> Result<(), Trouble> {
        self.etcd.await_turn(about).await;
        let listing = list_records(&self.etcd.client, &self.etcd.keys, about).await?;
        let mut point = Point::of(&listing.header);
        listing.found.iter().for_each(|found| point.note(&found.kv));
        let records = listing.found.iter().map(|found| found.record.clone()).collect();
        let wanted = self.etcd.standing().is_none();
        self.etcd.shared.send_replace(if wanted { Shared::Here(listing) } else { Shared::Absent });
        self.send(StoreEvent::Leases(LeaseEvent::Snapshot(records))).await;
        self.point = Some(point);
        Ok(())
    }

    /// What to watch: the config and the notes from when the config was read, the leases from where they were told.
    fn watches(&self, header: &ResponseHeader) -> Vec<WatchCreateRequest> {
        let keys = &self.etcd.keys;
        let told = self.point.as_ref().map_or(header.revision, |point| point.revision);
        let watch = |watch_id, key: String, range_end: String, revision: i64| WatchCreateRequest {
            key: key.into(),
            range_end: range_end.into(),
            start_revision: begin(revision, header),
            progress_notify: true,
            watch_id,
            fragment: true,
        };
        let mut watches = vec![
            watch(CONFIG, keys.config(), String::new(), header.revision),
            watch(LEASES, keys.subnets(), end_of(&keys.subnets()), told),
        ];
        if self.hears_rivals {
            watches.push(watch(RIVALS, keys.rivals(), end_of(&keys.rivals()), header.revision));
        }
        watches
    }

    async fn take(&mut self, response: WatchResponse, watching: &Watching) -> Result<(), Trouble> {
        if response.canceled {
            return Err(self.end(&response, watching).await);
        }
        match response.watch_id {
            CONFIG => {
                let last = response.events.into_iter().next_back();
                if let Some(event) = last {
                    let is_there = event.r#type() == EventType::Put;
                    self.tell_config(event.kv.filter(|_| is_there)).await;
                }
            }
            LEASES => self.take_leases(response).await,
            _ => response.events.into_iter().filter_map(|event| event.kv).for_each(|kv| self.name_rival(&kv)),
        }
        Ok(())
    }

    /// Why a watch ended. etcd does not always say which: a right that is missing is first taken for that to read notes.
    /// Without them a rival stays nameless, which is no reason to be without leases.
    async fn end(&mut self, response: &WatchResponse, watching: &Watching) -> Trouble {
        if response.compact_revision > 0 {
            self.point = None;
            return Trouble::new(Kind::Anew, "the revisions to go on from are compacted", None);
        }
        let reason = response.cancel_reason.as_str();
        let denied = reason.contains("permission denied");
        if denied {
            self.hears_rivals = !self.hears_rivals;
        }
        if denied && !self.hears_rivals {
            return Trouble::new(Kind::Anew, "the notes of rivals may not be read", None);
        }
        let status = match reason {
            reason if denied => Status::permission_denied(reason),
            reason if reason.contains("auth token") => Status::unauthenticated(reason),
            reason => Status::unavailable(reason),
        };
        self.etcd.client.refuse(watching, &status).await
    }

    async fn take_leases(&mut self, response: WatchResponse) {
        let header = response.header.unwrap_or_default();
        let is_progress = response.events.is_empty() && !response.created;
        let last = response.events.last().and_then(|event| event.kv.as_ref()).map(|kv| kv.mod_revision);
        let told_before = self.point.as_ref().map_or(0, |point| point.revision);
        let is_news = |event: &Event| event.kv.as_ref().is_some_and(|kv| kv.mod_revision > told_before);
        for event in response.events.into_iter().filter(is_news) {
            if let (Some(point), Some(kv), EventType::Put) = (&mut self.point, &event.kv, event.r#type()) {
                point.note(kv);
            }
            if let Some(event) = self.lease_event(event) {
                self.send(StoreEvent::Leases(event)).await;
            }
        }
        if let Some(point) = &mut self.point {
            point.term = point.term.max(header.raft_term);
            let told = if is_progress { Some(header.revision) } else { last };
            // Of a revision in several parts nothing is told until the last one is.
            if let Some(told) = told.filter(|_| !response.fragment) {
                point.revision = point.revision.max(told);
            }
        }
    }

    fn lease_event(&self, event: Event) -> Option<LeaseEvent> {
        let is_there = event.r#type() == EventType::Put;
        let kv = event.kv?;
        let gone = || LeaseEvent::Remove(name_below(&self.etcd.keys.subnets(), &kv.key));
        Some(if is_there { LeaseEvent::Put(read(&self.etcd.keys, &kv)) } else { gone() })
    }

    /// Tells of the host that was refused because we have its public IP.
    fn name_rival(&self, kv: &KeyValue) {
        let key = name_below(&self.etcd.keys.rivals(), &kv.key);
        let Some(held) = self.etcd.standing().filter(|held| held.key == key && kv.value.len() <= LONGEST_NOTE) else {
            return;
        };
        if let Ok(host) = serde_json::from_slice::<Host>(&kv.value) {
            let ip = held.lease.public_ip.values().next().copied().unwrap_or(Family::V4.unspecified());
            tracing::warn!("{host} claims our public IP {ip} too; it got no lease");
        }
    }

    /// Tells the config, if it is another than before.
    async fn tell_config(&mut self, kv: Option<KeyValue>) {
        let key = self.etcd.keys.config();
        let config = match kv {
            Some(kv) => {
                let no_text = |_| format!("etcd key {key} is not UTF-8 text {}", put(&key));
                String::from_utf8(kv.value.into()).map_err(no_text)
            }
            None => Err(format!("etcd key {key} does not exist; waiting for it {}", put(&key))),
        };
        self.tell_config_once(config).await;
    }

    async fn tell_config_once(&mut self, config: Result<String, String>) {
        if self.config.as_ref() != Some(&config) {
            self.config = Some(config.clone());
            self.send(StoreEvent::Config(config)).await;
        }
    }

    /// Says what is in the way, once: as the reason that there is no config, or in the log when there is one.
    async fn complain(&mut self, text: String) {
        if self.troubles.len() >= TROUBLES || !self.troubles.insert(text.clone()) {
            return;
        }
        match &self.config {
            Some(Ok(_)) => tracing::warn!("{text}; the leases seen last stay in use"),
            _ => self.tell_config_once(Err(text)).await,
        }
    }

    fn recover(&mut self, watching: &Watching) {
        if !std::mem::take(&mut self.troubles).is_empty() {
            tracing::info!("etcd is back, at {}", watching.endpoint());
        }
    }

    /// When nobody listens any more, whoever runs this ends it.
    async fn send(&self, event: StoreEvent) {
        let _ = self.sender.send(event).await;
    }
}

/// The revision to watch from after the last one that was told. Where some were missed it is that one once more: etcd that was
/// compacted at a revision takes a watch from there, but has lost what that deleted
/// (<https://github.com/etcd-io/etcd/issues/18089>); a watch from before it refuses. Where none were it is the next one, of
/// which etcd tells at once, and not with the watches that have to catch up.
fn begin(told: i64, now: &ResponseHeader) -> i64 {
    if told < now.revision { told } else { told + 1 }
}

/// How to make a config.
fn put(key: &str) -> String {
    format!(r#"(hint: etcdctl put {key} '{{"Network": "10.5.0.0/16", "Backend": {{"Type": "vxlan"}}}}')"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_gone_on_from_only_in_what_came_after_it() {
        let header = |cluster_id, raft_term, revision| ResponseHeader { cluster_id, revision, raft_term };
        let point = Point::of(&header(7, 3, 100));
        for (now, expect) in [
            (header(7, 3, 100), true),
            (header(7, 4, 250), true),
            (header(7, 3, 99), false),
            (header(7, 2, 250), false),
            (header(8, 3, 250), false),
        ] {
            assert_eq!(point.leads_to(&now), expect, "{now:?}");
        }
    }

    #[test]
    fn a_watch_overlaps_with_what_was_told_only_where_something_was_missed() {
        let now = ResponseHeader { revision: 100, ..ResponseHeader::default() };
        assert_eq!([98, 99, 100, 101].map(|told| begin(told, &now)), [98, 99, 101, 102]);
    }
}
