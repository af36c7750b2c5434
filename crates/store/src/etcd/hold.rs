//! Our own record in etcd: acquired, written again, taken back.
//!
//! [`Etcd::hold`] lists all records, decides (see [`crate::acquire`]), and writes what was decided in one transaction that is
//! fenced by the revisions it was decided on: whatever somebody else wrote since makes it fail, and is looked at again.
//!
//! Beside each record lies who wrote it (see [`super::signature`]), in the same transaction. Where a record is unsigned, the
//! public IP tells whose it is, as it does with other flannels.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use flannel_core::addr::{Dual, overlap};
use flannel_core::config::NetworkConfig;
use flannel_core::lease::{Claim, LeaseKey};
use flannel_core::record::{self, SubnetKey, claimed_by};
use ipnet::IpNet;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use super::Options;
use super::client::Client;
use super::grant::Grant;
use super::keys::{Keys, end_of};
use super::list::{Found, Listing, Shared, list_records, read};
use super::rpc::{KeyValue, RangeRequest};
use super::signature::Signature;
use super::transaction::{Done, Transaction};
use super::trouble::{Kind, Trouble};
use crate::acquire::{Choice, Entry, Refusal, Whose, choose, is_same_host, parts, random, regain};
use crate::host::Host;
use crate::{Held, HoldError};

/// How often what we decided on may be overtaken by somebody else.
const ATTEMPTS: usize = 10;
/// Signatures that are looked up in one transaction: etcd allows 128 operations (`--max-txn-ops`). More records that name one
/// public IP are nobody's work but a mistake's; the rest counts as unsigned.
const SIGNATURES: usize = 100;
/// How long a note for a rival lies there.
const NOTE: Duration = Duration::from_mins(1);

/// One daemon on an etcd cluster.
#[derive(Debug)]
pub(super) struct Etcd {
    pub(super) client: Client,
    pub(super) keys: Keys,
    pub(super) options: Options,
    host: Host,
    /// What we hold; locked while it is written.
    state: Mutex<State>,
    /// What we hold and when to renew it, for those who only look.
    standing: watch::Sender<Option<Standing>>,
    /// Whether we may write who wrote a record.
    signs: AtomicBool,
    /// What the watch has listed.
    pub(super) shared: watch::Sender<Shared>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) holding: Option<Holding>,
    /// What was asked for last.
    pub(super) asked: Option<(NetworkConfig, Claim)>,
    /// A lease that nothing is attached to yet.
    spare: Option<Grant>,
}

/// Our record as it was last written.
#[derive(Debug, Clone)]
pub(super) struct Holding {
    pub(super) held: Held,
    /// The revisions that made it, and wrote it last.
    made: i64,
    pub(super) written: i64,
    /// What keeps it; nothing keeps a reservation, which never expires.
    pub(super) grant: Option<Grant>,
}

/// What we hold, as others look at it.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) held: Held,
    /// When to renew.
    pub(super) due: Option<Instant>,
}

/// Everything a decision stands on.
struct Sight {
    revision: i64,
    found: Vec<Found>,
    /// Whether it was listed just for this decision.
    fresh: bool,
    signatures: BTreeMap<LeaseKey, Signature>,
}

/// Why nothing was written.
#[derive(Debug)]
enum Failure {
    Trouble(Trouble),
    Refused(Refusal),
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl Sight {
    fn at(&self, key: &LeaseKey) -> Option<&KeyValue> {
        self.found.iter().find(|found| found.record.key == *key).map(|found| &found.kv)
    }

    fn signature(&self, key: &LeaseKey, kv: &KeyValue) -> Option<&Signature> {
        self.signatures.get(key).filter(|signature| signature.is_of(kv))
    }
}

impl Etcd {
    pub(super) fn new(options: Options, host: Host) -> Self {
        Self {
            client: Client::new(options.endpoints.clone(), options.tls.clone(), options.login.clone()),
            keys: Keys::new(&options.prefix),
            options,
            host,
            state: Mutex::default(),
            standing: watch::Sender::new(None),
            signs: AtomicBool::new(true),
            shared: watch::Sender::default(),
        }
    }

    /// What we hold.
    pub(super) fn standing(&self) -> Option<Held> {
        self.standing.borrow().as_ref().map(|standing| standing.held.clone())
    }

    /// Tells what we hold, whenever that changes.
    pub(super) fn follow(&self) -> watch::Receiver<Option<Standing>> {
        self.standing.subscribe()
    }

    pub(super) fn stand(&self, standing: Option<Standing>) {
        self.standing.send_replace(standing);
    }

    pub(super) async fn state(&self) -> tokio::sync::MutexGuard<'_, State> {
        self.state.lock().await
    }

    /// Makes our lease say what the claim says.
    pub(super) async fn hold(&self, config: &NetworkConfig, claim: &Claim) -> Result<Held, HoldError> {
        let mut state = self.state.lock().await;
        state.asked = Some((config.clone(), claim.clone()));
        let end = self.hold_on(&mut state, config, claim).await;
        if let Some(spare) = state.spare.take() {
            self.give_back(&spare).await;
        }
        let due = |holding: &Holding| holding.grant.as_ref().map(|grant| grant.due(self.options.renew_margin));
        self.stand(state.holding.as_ref().map(|holding| Standing { held: holding.held.clone(), due: due(holding) }));
        end
    }

    async fn hold_on(&self, state: &mut State, config: &NetworkConfig, claim: &Claim) -> Result<Held, HoldError> {
        for _ in 0..ATTEMPTS {
            match self.try_hold(state, config, claim).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(Failure::Refused(refusal)) => {
                    self.leave_note(&refusal).await;
                    return Err(refusal.into());
                }
                Err(Failure::Trouble(trouble)) => return Err(HoldError::Later(trouble.to_string())),
            }
            if let Some(holding) = &state.holding {
                return Ok(holding.held.clone());
            }
        }
        Err(HoldError::Later(format!("others overtook each of {ATTEMPTS} attempts of this node to write its lease")))
    }

    /// Decides and writes once; false if somebody else was faster.
    async fn try_hold(&self, state: &mut State, config: &NetworkConfig, claim: &Claim) -> Result<bool, Failure> {
        let sight = self.look(state.holding.as_ref(), claim).await?;
        let holding = state.holding.as_ref();
        let entry = |found| self.entry(&sight, found, holding, config, claim);
        let entries: Vec<Entry> = sight.found.iter().filter_map(entry).collect();
        let choice = match state.holding.as_ref().filter(|holding| config.fits(&holding.held.lease.subnet)) {
            Some(holding) => regain(&holding.held, claim, &entries),
            None => choose(config, claim, &entries, random()),
        };
        match choice {
            Ok(choice) => self.write(state, &sight, claim, &choice).await,
            // Nobody is refused for what was so a while ago.
            Err(_) if !sight.fresh => Ok(false),
            Err(refusal) => {
                self.yield_own(state, &entries).await?;
                Err(Failure::Refused(refusal))
            }
        }
    }

    /// Lists the records, and who signed those that may be ours.
    async fn look(&self, holding: Option<&Holding>, claim: &Claim) -> Result<Sight, Trouble> {
        let (Listing { header, found }, fresh) = self.records().await?;
        let had = |subnet: &IpNet| claim.previous.values().any(|had| had == subnet);
        let suspect = |found: &&Found| {
            let is_previous = found.record.key.as_str().parse().is_ok_and(|SubnetKey(subnet)| subnet.values().any(had));
            is_previous || is_held(holding, &found.record.key) || names_us(found, holding, claim)
        };
        let suspects: Vec<_> = found.iter().filter(suspect).take(SIGNATURES).map(|found| &found.record.key).collect();
        let signatures = self.signatures(&suspects).await?;
        Ok(Sight { revision: header.revision, found, fresh, signatures })
    }

    /// The records to decide on, and whether they were listed for that: those that the watch is just listing will do too, since
    /// what is written is fenced by their revisions.
    async fn records(&self) -> Result<(Listing, bool), Trouble> {
        let mut coming = self.shared.subscribe();
        let _sender_is_here = coming.wait_for(|shared| !matches!(shared, Shared::Coming)).await.map(drop);
        match self.shared.send_replace(Shared::Absent) {
            Shared::Here(listing) => Ok((listing, false)),
            Shared::Coming | Shared::Absent => Ok((list_records(&self.client, &self.keys, 0).await?, true)),
        }
    }

    /// Who signed records. Where we may not read that, nobody did.
    async fn signatures(&self, keys: &[&LeaseKey]) -> Result<BTreeMap<LeaseKey, Signature>, Trouble> {
        if keys.is_empty() || !self.signs.load(Ordering::Relaxed) {
            return Ok(BTreeMap::new());
        }
        let looks = keys.iter().fold(Transaction::default(), |looks, key| {
            looks.range(RangeRequest { key: self.keys.holder(key).into(), ..RangeRequest::default() })
        });
        match looks.send(&self.client, "read who holds records").await {
            Ok(done) => Ok(done.found.iter().filter_map(|kv| Signature::read(&self.keys, kv)).collect()),
            Err(trouble) if trouble.kind == Kind::Denied => {
                self.sign_no_more(&trouble);
                Ok(BTreeMap::new())
            }
            Err(trouble) => Err(trouble),
        }
    }

    fn sign_no_more(&self, trouble: &Trouble) {
        self.signs.store(false, Ordering::Relaxed);
        tracing::warn!("{trouble}; without it two hosts with one public IP cannot be told apart");
    }

    /// A record as acquiring sees it; none if its name is no subnet's.
    fn entry(
        &self,
        sight: &Sight,
        found: &Found,
        holding: Option<&Holding>,
        config: &NetworkConfig,
        claim: &Claim,
    ) -> Option<Entry> {
        let Found { kv, record } = found;
        let SubnetKey(subnet) = record.key.as_str().parse().ok()?;
        let made = |holding: &Holding| holding.held.key == record.key && holding.made == kv.create_revision;
        let whose = if holding.is_some_and(made) {
            Whose::Ours
        } else {
            let signature = sight.signature(&record.key, kv);
            self.whose(signature, names_us(found, holding, claim))
        };
        let lease = record.lease.as_ref().ok().cloned();
        Some(Entry { key: record.key.clone(), subnet: parts(config, &subnet), lease, whose })
    }

    /// Whose a record is; `same` if it names our public IP.
    fn whose(&self, signature: Option<&Signature>, same: bool) -> Whose {
        match signature.map(|signature| &signature.host) {
            Some(host) if self.host.is(host) => Whose::Ours,
            Some(host) if same && self.host.may_have_been(host) => Whose::Ours,
            Some(host) if same => Whose::Rival(host.to_string()),
            Some(host) => Whose::Other(Some(host.to_string())),
            None if same => Whose::Ours,
            None => Whose::Other(None),
        }
    }

    /// Writes the record that was chosen, unless it is as it should be already; false if somebody else was faster.
    async fn write(&self, state: &mut State, sight: &Sight, claim: &Claim, choice: &Choice) -> Result<bool, Failure> {
        let grant = self.grant_for(state, sight, choice).await?;
        let draft = Draft::new(sight, claim, choice, grant);
        if self.is_written(sight, &draft) {
            state.holding = draft.before.map(|kv| draft.holding(claim, (kv.create_revision, kv.mod_revision)));
            return Ok(true);
        }
        let action = format!("write {}", self.keys.record(&draft.key));
        let done = self.commit(self.writing(sight, &draft), &action).await?;
        if !done.succeeded {
            return Ok(false);
        }
        state.spare = None;
        let written = done.header.revision;
        let made = draft.before.map_or(written, |kv| kv.create_revision);
        let holding = draft.holding(claim, (made, written));
        if done.found.iter().any(|elder| self.disputes(elder, &holding.held, claim)) {
            self.delete(&holding.held.key, holding.written).await?;
            return Ok(false);
        }
        state.holding = Some(holding);
        Ok(true)
    }

    /// What is to keep the record: what keeps the one that it continues, where that is ours to renew; nothing where it is a
    /// reservation.
    async fn grant_for(&self, state: &mut State, sight: &Sight, choice: &Choice) -> Result<Option<Grant>, Trouble> {
        let continued = choice.continues.as_ref().and_then(|(key, _)| Some((key, sight.at(key)?)));
        let granted = state.holding.as_ref().and_then(|holding| Some(holding.grant.as_ref()?.id));
        let ours = match continued {
            Some((_, kv)) if kv.lease == 0 => return Ok(None),
            Some((key, kv)) if granted == Some(kv.lease) || self.signed(sight, key, kv) => Some(kv.lease),
            Some(_) => None,
            None => granted,
        };
        if let Some(id) = ours
            && let Some(grant) = self.renewed(id).await?
        {
            return Ok(Some(grant));
        }
        if state.spare.is_none() {
            state.spare = Some(self.grant(self.options.ttl).await?);
        }
        Ok(state.spare.clone())
    }

    /// Whether we signed a record, in this boot.
    fn signed(&self, sight: &Sight, key: &LeaseKey, kv: &KeyValue) -> bool {
        sight.signature(key, kv).is_some_and(|signature| signature.host == self.host)
    }

    /// Whether there is nothing to write.
    fn is_written(&self, sight: &Sight, draft: &Draft<'_>) -> bool {
        let is_signed = |kv: &KeyValue| !self.signs.load(Ordering::Relaxed) || self.signed(sight, &draft.key, kv);
        let is_right = |kv: &KeyValue| kv.value == draft.text && kv.lease == draft.lease() && is_signed(kv);
        draft.before.is_some_and(is_right) && draft.replaced.is_empty()
    }

    /// The transaction that writes a record and its signature, and deletes those it replaces. When the record is new it also
    /// reads those that were made since we looked.
    fn writing(&self, sight: &Sight, draft: &Draft<'_>) -> Transaction {
        let (key, holder) = (self.keys.record(&draft.key), self.keys.holder(&draft.key));
        let signature = serde_json::to_string(&self.host).unwrap_or_default();
        let writing = match draft.before {
            Some(kv) => Transaction::default().if_unchanged(kv),
            None => Transaction::default().if_absent(key.clone()),
        };
        let writing = writing.put(key, draft.text.clone(), draft.lease()).sign(holder, signature, draft.lease());
        let writing = draft.replaced.iter().fold(writing, |writing, (key, kv)| {
            writing.if_unchanged(kv).delete(self.keys.record(key)).unsign(self.keys.holder(key))
        });
        let made_since = || RangeRequest {
            key: self.keys.subnets().into(),
            range_end: end_of(&self.keys.subnets()).into(),
            min_create_revision: sight.revision + 1,
            ..RangeRequest::default()
        };
        if draft.before.is_none() { writing.range(made_since()) } else { writing }
    }

    /// Has a transaction done; without signatures where we may not write them.
    async fn commit(&self, writing: Transaction, action: &str) -> Result<Done, Trouble> {
        if !self.signs.load(Ordering::Relaxed) {
            return writing.unsigned().send(&self.client, action).await;
        }
        let (done, denied) = writing.send_signed(&self.client, action).await?;
        if let Some(trouble) = denied {
            self.sign_no_more(&trouble);
        }
        Ok(done)
    }

    /// Whether somebody else's record says the same as ours. It was made before ours, so we yield.
    fn disputes(&self, kv: &KeyValue, new: &Held, claim: &Claim) -> bool {
        let record = read(&self.keys, kv);
        let Ok(SubnetKey(subnet)) = record.key.as_str().parse() else { return false };
        let overlaps = || {
            new.lease.subnet.iter().any(|(family, own)| subnet.get(family).is_some_and(|other| overlap(*own, *other)))
        };
        record.key != new.key && (is_same_host(&claim.public_ip, &claimed_by(&kv.value)) || overlaps())
    }

    /// Deletes our record of what is somebody else's by now, so that it is in nobody's way.
    async fn yield_own(&self, state: &State, entries: &[Entry]) -> Result<(), Trouble> {
        let Some(Holding { held, written, .. }) = &state.holding else { return Ok(()) };
        let is_ours = |entry: &Entry| entry.key == held.key && entry.whose == Whose::Ours;
        if entries.iter().any(is_ours) { self.delete(&held.key, *written).await } else { Ok(()) }
    }

    /// Deletes our record, unless somebody wrote it since.
    async fn delete(&self, key: &LeaseKey, written: i64) -> Result<(), Trouble> {
        let (record, holder) = (self.keys.record(key), self.keys.holder(key));
        let action = format!("delete {record}");
        let deletion = Transaction::default().if_written_at(record.clone(), written).delete(record).unsign(holder);
        self.commit(deletion, &action).await.map(drop)
    }

    /// Tells the holder of our public IP that we wanted it too. It helps a person, so it may fail.
    async fn leave_note(&self, refusal: &Refusal) {
        let Refusal::PublicIpTaken { key, .. } = refusal else { return };
        let leave = async {
            let grant = self.grant(NOTE).await?;
            let note = serde_json::to_string(&self.host).unwrap_or_default();
            let rival = self.keys.rival(key);
            let action = format!("write {rival}");
            Transaction::default().put(rival, note, grant.id).send(&self.client, &action).await
        };
        if let Err(trouble) = leave.await {
            tracing::debug!("no note left for the holder of {key}: {trouble}");
        }
    }
}

/// A record as it is to be.
struct Draft<'a> {
    key: LeaseKey,
    text: String,
    choice: &'a Choice,
    grant: Option<Grant>,
    /// The record that it is to be written over.
    before: Option<&'a KeyValue>,
    /// Other records of ours, which it replaces.
    replaced: Vec<(&'a LeaseKey, &'a KeyValue)>,
}

impl<'a> Draft<'a> {
    fn new(sight: &'a Sight, claim: &Claim, choice: &'a Choice, grant: Option<Grant>) -> Self {
        let Held { key, lease } = choice.held(claim, 0);
        let ours = choice.continues.iter().map(|(key, _)| key).chain(&choice.delete);
        let ours: Vec<_> = ours.filter_map(|key| Some((key, sight.at(key)?))).collect();
        let before = ours.iter().find(|(ours, _)| **ours == key).map(|(_, kv)| *kv);
        let replaced = ours.into_iter().filter(|(ours, _)| **ours != key).collect();
        Self { text: record::write(&lease.public_ip, &lease.attributes, None), key, choice, grant, before, replaced }
    }

    fn lease(&self) -> i64 {
        self.grant.as_ref().map_or(0, |grant| grant.id)
    }

    /// What we hold once it is written: made by the first of the two revisions, written by the second.
    fn holding(&self, claim: &Claim, (made, written): (i64, i64)) -> Holding {
        let held = self.choice.held(claim, made.unsigned_abs());
        Holding { held, made, written, grant: self.grant.clone() }
    }
}

/// Whether a record is the one we hold, whatever it says by now.
fn is_held(holding: Option<&Holding>, key: &LeaseKey) -> bool {
    holding.is_some_and(|holding| holding.held.key == *key)
}

/// The public addresses that a record names, whether or not the rest of it can be read.
fn public_ip(found: &Found) -> Dual<IpAddr> {
    found.record.lease.as_ref().map_or_else(|_| claimed_by(&found.kv.value), |lease| lease.public_ip)
}

/// Whether a record names our public IP; the one we hold does so also when it names none any more.
fn names_us(found: &Found, holding: Option<&Holding>, claim: &Claim) -> bool {
    let public_ip = public_ip(found);
    is_same_host(&claim.public_ip, &public_ip) || (is_held(holding, &found.record.key) && public_ip.is_empty())
}
