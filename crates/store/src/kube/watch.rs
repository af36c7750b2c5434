//! What the Kubernetes API tells: all Nodes at first, and from then on what changes of them.
//!
//! A session looks at our own Node first, so that it can be held at once, whatever else there is. It lists all Nodes unless what was
//! told before goes on from there, and watches their metadata until something fails: that has all that changes in a Node's life, for
//! its pod CIDR is given to it only once. A Node whose pod CIDR is not known is read alone. What the server cannot go on from (410) is
//! listed again, by metadata alone; in all other cases the watch goes on where it ended, and silence is not news.
//!
//! Where nobody needs the leases of others, a session looks at our own Node and watches that alone: a snapshot is then our own lease.
//! As long as it is not known whether anybody does, it does so too, and tells of no lease.
//!
//! An event that changes nothing of flannel's, which is nearly every one, ends where it was read.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use flannel_core::annotations::{self, Overrides, overrides};
use flannel_core::lease::{LeaseEvent, LeaseKey};
use tokio::sync::mpsc::Sender;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Kube;
use super::client::Form;
use super::inflow::Inflow;
use super::list::{self, Found};
use super::listing::{Listing, too_long};
use super::own::{Known, Own, OwnNode, read_node};
use super::trouble::{Kind, Trouble};
use super::turn;
use super::wire::{Malformed, Meta, Object, PodCidrs, pod_cidrs};
use crate::StoreEvent;
use crate::acquire::{jittered, random};

/// First pause before a new session, the longest while the server may be back at any moment, and the longest when it refuses us.
const PAUSES: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(500), Duration::from_secs(15)];
/// How long a server that comes back may refuse what it will grant: its rules for access come a moment later than its answers.
const STARTING: Duration = Duration::from_secs(20);
/// How long a session lasts after which the next one begins at once.
const LASTING: Duration = Duration::from_secs(10);
/// How long our own Node alone is watched where we may not watch all, before that is tried again.
const ALONE: Duration = Duration::from_mins(1);
/// Nodes that are read one by one at the same time.
const AT_ONCE: usize = 8;
/// The most troubles that are told until all is well again.
const TROUBLES: usize = 10;

/// Tells, until nobody listens.
pub(super) struct Teller {
    kube: Arc<Kube>,
    sender: Sender<StoreEvent>,
    name: Option<LeaseKey>,
    /// The version to go on from.
    point: Option<String>,
    /// Whether a snapshot was told.
    listed: bool,
    /// Whether the server streams lists, as far as we know.
    streams: bool,
    overrides: Option<Overrides>,
    waits: Option<String>,
    /// Nodes to be read alone whose events the point is past.
    unread: BTreeSet<LeaseKey>,
    /// What the API refuses, while it works otherwise.
    refused: Option<String>,
    /// The troubles told since all was well, and since when it is not.
    troubles: BTreeSet<String>,
    since: Option<Instant>,
    /// Since when the API refuses what it granted before.
    refuses: Option<Instant>,
    pause: Duration,
}

/// Nodes that are being read one by one.
type Reading = JoinSet<(LeaseKey, Result<Vec<u8>, Trouble>)>;

/// Our own Node as a session finds it: its version and its bytes, if it is there.
struct Look {
    name: LeaseKey,
    version: Option<String>,
    answer: Option<Vec<u8>>,
}

/// How a session ended.
enum End {
    /// It is to be gone on at once.
    Over,
    Trouble(Trouble),
}

impl From<Trouble> for End {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl Teller {
    pub(super) fn new(kube: Arc<Kube>, sender: Sender<StoreEvent>) -> Self {
        Self {
            kube,
            sender,
            name: None,
            point: None,
            listed: false,
            streams: true,
            overrides: None,
            waits: None,
            unread: BTreeSet::new(),
            refused: None,
            troubles: BTreeSet::new(),
            since: None,
            refuses: None,
            pause: PAUSES[0],
        }
    }

    /// One session after the other.
    pub(super) async fn tell(mut self) -> Infallible {
        loop {
            let begun = Instant::now();
            let Err(end) = self.session().await;
            if begun.elapsed() >= LASTING {
                self.pause = PAUSES[0];
            }
            match end {
                End::Over => sleep(jittered(PAUSES[0])).await,
                End::Trouble(trouble) => self.rest(trouble).await,
            }
        }
    }

    /// Says why a session ended, and waits before the next.
    async fn rest(&mut self, trouble: Trouble) {
        tracing::debug!("watch: {trouble}");
        let since = *self.since.get_or_insert_with(Instant::now);
        let begins = self.may_have_begun(&trouble);
        let may_come_back = begins || matches!(trouble.kind, Kind::Away | Kind::Gone | Kind::Failed | Kind::Malformed);
        let longest = if may_come_back || since.elapsed() < STARTING { PAUSES[1] } else { PAUSES[2] };
        let asked_for = match trouble.kind {
            Kind::Busy(Some(wait)) => wait,
            _ => Duration::ZERO,
        };
        if trouble.kind == Kind::Gone {
            self.point = None;
        } else if !begins {
            self.complain(trouble.to_string()).await;
        }
        sleep(jittered(self.pause).max(asked_for)).await;
        self.pause = (self.pause * 2).min(longest);
    }

    /// Whether a refusal may only mean that the server has just begun: what it granted us before, it soon grants again.
    fn may_have_begun(&mut self, trouble: &Trouble) -> bool {
        let refused = trouble.kind == Kind::Forbidden && self.listed;
        refused && self.refuses.get_or_insert_with(Instant::now).elapsed() < STARTING
    }

    async fn session(&mut self) -> Result<Infallible, End> {
        let begun = Instant::now();
        let own = self.look_at_own().await?;
        let felt = turn::felt(begun.elapsed(), self.kube.client.round_trip().await);
        let kube = Arc::clone(&self.kube);
        let of_others = kube.need.of_others();
        let told = async {
            match of_others {
                Some(true) => self.follow_all(&own, felt).await,
                Some(false) => self.follow_alone(&own).await,
                None => self.follow_own(&own).await,
            }
        };
        tokio::select! {
            end = told => end,
            () = kube.need.changes_from(of_others) => {
                // What was just being told is lost.
                self.point = None;
                Err(End::Over)
            }
        }
    }

    /// Tells all Nodes and what changes of them.
    async fn follow_all(&mut self, own: &Look, felt: Duration) -> Result<Infallible, End> {
        let inflow = match self.open_watch(felt).await {
            Ok(inflow) => {
                self.refused = None;
                inflow
            }
            Err(trouble) if trouble.kind == Kind::Forbidden && !self.may_have_begun(&trouble) => {
                return self.watch_own(own, trouble).await;
            }
            Err(trouble) => return Err(trouble.into()),
        };
        self.recover(&inflow).await;
        self.follow(inflow).await
    }

    /// Tells our own Node and what changes of it.
    async fn follow_alone(&mut self, own: &Look) -> Result<Infallible, End> {
        let mut listing = Listing::new(Arc::clone(&self.kube), Form::Whole, Some(own.name.clone()));
        if let Some(answer) = &own.answer {
            let node = Object::read(answer).and_then(|node| listing.take_whole(node.message));
            node.map_err(|cause| Trouble::malformed(&read_node(&own.name), &own.name, &cause))?;
        }
        (self.point, self.refused) = (None, None);
        self.tell_listing(listing).await?;
        self.follow_own(own).await
    }

    /// Tells what changes of our own Node.
    async fn follow_own(&mut self, own: &Look) -> Result<Infallible, End> {
        let inflow = self.open_own(own).await?;
        self.recover(&inflow).await;
        self.follow(inflow).await
    }

    /// The watch of our own Node alone; of one that is not there, from its beginning.
    async fn open_own(&self, own: &Look) -> Result<Inflow, Trouble> {
        let version = own.version.as_deref().unwrap_or_default();
        let ask = list::watch(version, Some(own.name.as_str()), random().v4.unwrap_or_default());
        self.kube.client.stream(&ask, Form::Metadata).await
    }

    /// Reads our own Node.
    async fn look_at_own(&mut self) -> Result<Look, Trouble> {
        let (name, answer) = self.kube.fetch_own().await?;
        self.name = Some(name.clone());
        let Some(answer) = answer else {
            self.kube.sight.see(Own::Absent);
            self.tell_waits().await;
            return Ok(Look { name, version: None, answer });
        };
        let malformed = |cause| Trouble::malformed(&read_node(&name), &name, &cause);
        let node = Object::read(&answer).map_err(malformed)?.message;
        let meta = Meta::of(node).map_err(malformed)?;
        let subnets = pod_cidrs(node).map_err(malformed)?;
        self.see_own(OwnNode::of(&meta, &self.kube.options.prefix, subnets).map_err(malformed)?).await;
        let version = Some(meta.version.to_owned());
        Ok(Look { name, version, answer: Some(answer) })
    }

    /// The watch of all Nodes, after a list unless what was told goes on.
    async fn open_watch(&mut self, felt: Duration) -> Result<Inflow, Trouble> {
        if self.point.is_none()
            && let Some(inflow) = self.tell_all(felt).await?
        {
            return Ok(inflow);
        }
        let point = self.point.clone().unwrap_or_default();
        let ask = list::watch(&point, None, random().v4.unwrap_or_default());
        self.kube.client.stream(&ask, Form::Metadata).await
    }

    /// Lists and tells all Nodes; answers with the watch that the list goes on as, if it does.
    async fn tell_all(&mut self, felt: Duration) -> Result<Option<Inflow>, Trouble> {
        sleep(turn::wait(felt, random().v4.unwrap_or_default())).await;
        // What is known of other Nodes before is not asked for again.
        let form = if self.kube.sight.nodes().len() > 1 { Form::Metadata } else { Form::Whole };
        let mut listing = Listing::new(Arc::clone(&self.kube), form, self.name.clone());
        let (version, goes_on) = self.list_all(form, &mut listing).await?;
        self.tell_listing(listing).await?;
        self.point = Some(version);
        Ok(goes_on)
    }

    /// Lists all Nodes; answers with the version that the list is of, and with the watch that it goes on as, if it does.
    async fn list_all(&mut self, form: Form, listing: &mut Listing) -> Result<(String, Option<Inflow>), Trouble> {
        if self.streams {
            match list::stream(&self.kube.client, form, |found| listing.take(&found)).await {
                Ok((version, inflow)) => return Ok((version, Some(inflow).filter(|_| form == Form::Metadata))),
                // A server on an etcd that tells no progress (before 3.4.31 and 3.5.13) fails (500) where it should refuse.
                Err(trouble) if matches!(trouble.kind, Kind::Refused | Kind::Failed) => {
                    tracing::debug!("{trouble}");
                    self.streams = trouble.kind == Kind::Failed;
                }
                Err(trouble) => return Err(trouble),
            }
            listing.clear();
        }
        Ok((list::pages(&self.kube.client, form, |found| listing.take(&found)).await?, None))
    }

    /// Tells what was listed, once all of it is known.
    async fn tell_listing(&mut self, mut listing: Listing) -> Result<(), Trouble> {
        let mut reading = Reading::new();
        let mut unread = std::mem::take(&mut listing.unread).into_iter();
        loop {
            while reading.len() < AT_ONCE
                && let Some(name) = unread.next()
            {
                self.read_one(&mut reading, name);
            }
            let Some(read) = reading.join_next().await else { break };
            let Ok((name, answer)) = read else { continue };
            match answer {
                Ok(answer) => {
                    let malformed = |cause| Trouble::malformed(&read_node(&name), &name, &cause);
                    let node = Object::read(&answer).map_err(malformed)?.message;
                    listing.take_whole(node).map_err(malformed)?;
                }
                Err(trouble) if trouble.kind == Kind::NotFound => {}
                Err(trouble) => return Err(trouble),
            }
        }
        let Listing { nodes, mut records, own, .. } = listing;
        *self.kube.sight.nodes() = nodes;
        match own {
            Some(own) => drop(self.see_own(own).await),
            None => drop(self.kube.sight.see(Own::Absent)),
        }
        if let Own::Here(own) = &*self.kube.sight.own().borrow() {
            // What we wrote since the list was made is newer.
            records.retain(|record| record.key != own.name);
            records.extend(self.kube.record_of_own(own));
        }
        self.send(StoreEvent::Leases(LeaseEvent::Snapshot(records))).await;
        self.listed = true;
        self.unread.clear();
        self.tell_waits().await;
        Ok(())
    }

    /// Where we may not watch all Nodes: our own, for a while.
    async fn watch_own(&mut self, own: &Look, trouble: Trouble) -> Result<Infallible, End> {
        if own.version.is_none() {
            return Err(trouble.into());
        }
        let refused = super::right::may_not_see_nodes(&trouble);
        if self.refused.as_ref() != Some(&refused) {
            self.refused = Some(refused.clone());
            if self.listed {
                tracing::warn!("{refused}; the leases seen last stay in use");
            }
        }
        self.tell_waits().await;
        let inflow = self.open_own(own).await?;
        let (point, unread) = (self.point.take(), std::mem::take(&mut self.unread));
        let end = tokio::time::timeout(ALONE, self.follow(inflow)).await;
        self.point = point;
        self.unread.extend(unread);
        match end {
            Ok(Err(end)) => Err(end),
            Err(_) => Err(End::Over),
        }
    }

    /// Takes in what a watch tells, until it ends.
    async fn follow(&mut self, mut inflow: Inflow) -> Result<Infallible, End> {
        let mut reading = Reading::new();
        self.unread.iter().for_each(|name| self.read_one(&mut reading, name.clone()));
        let origin = Arc::clone(&inflow.origin);
        let end = loop {
            if reading.is_empty() {
                self.unread.clear();
            }
            let (result, read) = tokio::select! {
                found = list::next(&mut inflow) => match found {
                    Ok(Found::End) => break End::Over,
                    Ok(found) => (self.take(&found, &mut reading).await, None),
                    Err(trouble) => break End::Trouble(trouble),
                },
                Some(Ok(read)) = reading.join_next() => (Ok(()), Some(read)),
            };
            if let Err(cause) = result {
                break End::Trouble(origin.malformed(&cause));
            }
            if let Some((name, answer)) = read
                && let Err(trouble) = self.take_read(&name, answer).await
            {
                break End::Trouble(trouble);
            }
        };
        if let End::Trouble(trouble) = &end {
            self.kube.client.leave(&origin.link, &trouble.kind).await;
        }
        Err(end)
    }

    async fn take(&mut self, found: &Found<'_>, reading: &mut Reading) -> Result<(), Malformed> {
        match found {
            Found::Node(object) => self.take_meta(object, reading).await?,
            Found::Gone(object) => {
                let meta = Meta::of(object)?;
                self.go_on_from(meta.version);
                self.remove(meta.name).await;
            }
            Found::Mark(object, _) => self.go_on_from(Meta::of(object)?.version),
            Found::TooLong(length, Some(name)) => {
                self.tell_change(LeaseEvent::Put(too_long(name, *length))).await;
            }
            Found::TooLong(length, None) => {
                tracing::warn!("a node of {length} bytes is skipped: it is too long to be read");
            }
            Found::End => {}
        }
        Ok(())
    }

    /// Notes up to where the watch has told.
    fn go_on_from(&mut self, version: &str) {
        if let Some(point) = &mut self.point {
            point.clear();
            point.push_str(version);
        }
    }

    /// Takes in the metadata of a Node that is there.
    async fn take_meta(&mut self, object: &[u8], reading: &mut Reading) -> Result<(), Malformed> {
        let meta = Meta::of(object)?;
        self.go_on_from(meta.version);
        let prefix = &self.kube.options.prefix;
        let digest = meta.digest(prefix)?;
        let before = self.kube.sight.nodes().get(meta.name).filter(|known| known.uid == meta.uid).cloned();
        let is_own = self.is_own(meta.name);
        let awaits_subnet = before.as_ref().is_none_or(|known| known.pod_cidrs.is_none());
        let is_awaited = awaits_subnet && (is_own || before.as_ref().is_some_and(|known| known.is_lease));
        if before.as_ref().is_some_and(|known| known.digest == digest) && !is_awaited {
            if is_own {
                self.kube.sight.see_version(meta.version);
            }
            return Ok(());
        }
        if awaits_subnet && (is_own || annotations::is_managed(prefix, &meta.ours(prefix)?)) {
            let name = LeaseKey::new(meta.name);
            self.unread.insert(name.clone());
            self.read_one(reading, name);
            return Ok(());
        }
        let pod_cidrs = before.and_then(|known| known.pod_cidrs);
        self.take_known(&meta, digest, pod_cidrs).await
    }

    /// Takes in a whole Node.
    async fn take_whole(&mut self, node: &[u8]) -> Result<(), Malformed> {
        let meta = Meta::of(node)?;
        let subnets = pod_cidrs(node)?;
        let digest = meta.digest(&self.kube.options.prefix)?;
        self.take_known(&meta, digest, subnets).await
    }

    /// Takes in a Node of which all is known.
    async fn take_known(&mut self, meta: &Meta<'_>, digest: u64, pod_cidrs: PodCidrs) -> Result<(), Malformed> {
        let key = LeaseKey::new(meta.name);
        if self.is_own(meta.name) {
            let own = OwnNode::of(meta, &self.kube.options.prefix, pod_cidrs.clone())?;
            if !self.see_own(own).await {
                return Ok(());
            }
        }
        let record = self.kube.record(meta, &pod_cidrs)?;
        let known = Known { uid: meta.uid, since: meta.since, digest, pod_cidrs, is_lease: record.is_some() };
        let before = self.kube.sight.nodes().insert(key.clone(), known);
        match record {
            Some(record) => self.tell_change(LeaseEvent::Put(record)).await,
            None if before.is_some_and(|before| before.is_lease) => self.tell_change(LeaseEvent::Remove(key)).await,
            None => {}
        }
        Ok(())
    }

    /// Takes in our own Node; false if something newer is known of it.
    async fn see_own(&mut self, own: OwnNode) -> bool {
        let is_older = match &*self.kube.sight.own().borrow() {
            Own::Here(known) => known.uid == own.uid && known.version > own.version,
            _ => false,
        };
        if !is_older {
            self.tell_overrides(&own).await;
            self.kube.sight.see(Own::Here(own));
            self.tell_waits().await;
        }
        !is_older
    }

    /// Tells the addresses that an operator set, before anybody knows of the Node.
    async fn tell_overrides(&mut self, own: &OwnNode) {
        let (overrides, flaws) = overrides(&self.kube.options.prefix, &own.annotations);
        if self.overrides.as_ref() != Some(&overrides) {
            self.send(StoreEvent::Overrides(overrides.clone())).await;
            self.overrides = Some(overrides);
            for flaw in flaws {
                tracing::warn!("node {}: {flaw}; it has no effect", own.name);
            }
        }
    }

    async fn remove(&mut self, name: &str) {
        let key = LeaseKey::new(name);
        self.unread.remove(&key);
        let was_lease = self.kube.sight.nodes().remove(&key).is_some_and(|known| known.is_lease);
        if self.is_own(name) {
            self.kube.sight.see(Own::Absent);
            self.tell_waits().await;
        }
        if was_lease {
            self.tell_change(LeaseEvent::Remove(key)).await;
        }
    }

    /// Begins to read a Node alone.
    fn read_one(&self, reading: &mut Reading, name: LeaseKey) {
        let kube = Arc::clone(&self.kube);
        reading.spawn(async move {
            let answer = kube.client.fetch(&read_node(&name), Form::Whole).await;
            (name, answer)
        });
    }

    async fn take_read(&mut self, name: &LeaseKey, answer: Result<Vec<u8>, Trouble>) -> Result<(), Trouble> {
        match answer {
            // Gone since it was read.
            Ok(_) if !self.unread.contains(name) => Ok(()),
            Ok(answer) => {
                let malformed = |cause| Trouble::malformed(&read_node(name), name, &cause);
                let node = Object::read(&answer).map_err(malformed)?.message;
                self.take_whole(node).await.map_err(malformed)
            }
            // That it is gone, the watch tells.
            Err(trouble) if trouble.kind == Kind::NotFound => Ok(()),
            Err(trouble) => Err(trouble),
        }
    }

    fn is_own(&self, name: &str) -> bool {
        self.name.as_ref().is_some_and(|own| own.as_str() == name)
    }

    /// Tells what is waited for, if that is another than before.
    async fn tell_waits(&mut self) {
        let waits = match (&*self.kube.sight.own().borrow(), &self.name) {
            (Own::Absent, Some(name)) => Some(format!(
                "waiting for node {name}: the Kubernetes API has none of that name (hint: see that NODE_NAME is the name that kubelet \
                 registers, as `kubectl get nodes` shows it)"
            )),
            (Own::Here(OwnNode { pod_cidrs: None, name, .. }), _) => Some(format!(
                "waiting for spec.podCIDRs of node {name} (hint: kube-controller-manager gives them with --allocate-node-cidrs and \
                 --cluster-cidr; kubeadm init with --pod-network-cidr)"
            )),
            _ => self.refused.clone(),
        };
        self.tell_waits_once(waits).await;
    }

    async fn tell_waits_once(&mut self, waits: Option<String>) {
        if self.waits != waits {
            self.send(StoreEvent::Waits(waits.clone())).await;
            self.waits = waits;
        }
    }

    /// Says what is in the way, once: as what is waited for, or in the log when leases are known.
    async fn complain(&mut self, text: String) {
        if self.troubles.len() >= TROUBLES || !self.troubles.insert(text.clone()) {
            return;
        }
        if self.listed {
            tracing::warn!("{text}; the leases seen last stay in use");
        } else {
            self.tell_waits_once(Some(text)).await;
        }
    }

    /// All is well again.
    async fn recover(&mut self, inflow: &Inflow) {
        (self.since, self.refuses) = (None, None);
        if !std::mem::take(&mut self.troubles).is_empty() {
            tracing::info!("the Kubernetes API is back, at {}", inflow.origin.link.server);
        }
        self.tell_waits().await;
    }

    /// Tells what changed of a lease. What is there before the snapshot, that says; but where we may not see others, none comes.
    async fn tell_change(&self, event: LeaseEvent) {
        if self.listed || self.refused.is_some() {
            self.send(StoreEvent::Leases(event)).await;
        }
    }

    /// When nobody listens any more, whoever runs this ends it.
    async fn send(&self, event: StoreEvent) {
        let _ = self.sender.send(event).await;
    }
}
