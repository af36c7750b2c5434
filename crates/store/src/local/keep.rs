//! Our own record of a local store: acquired, and then kept as it should be.
//!
//! [`Keeper::acquire`] makes or continues the record; [`Keeper::check`] looks whether it still is what we claimed and
//! puts it right, or says who has our subnet or our public IP. Blocking, like the file system beneath.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flannel_core::addr::{Dual, Family, overlap};
use flannel_core::config::NetworkConfig;
use flannel_core::lease::{Claim, Lease, LeaseKey, Record};
use flannel_core::record::{self, SubnetKey, claimed_by, sequenced};

use super::directory::{Directory, Holder};
use super::hints::{Look, Place};
use super::host::Host;
use super::scan::{Scanner, Seen};
use crate::acquire::{Choice, Entry, Whose, choose, is_same_host};
use crate::{HoldError, Unavailable};

/// How often a subnet that we tried to acquire may be somebody else's by then.
const ATTEMPTS: usize = 10;

/// What one daemon's work on the store has in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) directory: Arc<Directory>,
    pub(crate) host: Host,
    /// Our record; locked by whoever in this process writes it.
    own: Mutex<OwnKey>,
}

/// Which record is ours, and how often that was decided: only the latest keeper keeps it.
#[derive(Debug, Default)]
struct OwnKey {
    key: Option<LeaseKey>,
    round: u64,
}

impl Shared {
    pub(crate) fn new(directory: Arc<Directory>, host: Host) -> Self {
        Self { directory, host, own: Mutex::default() }
    }

    fn own(&self) -> MutexGuard<'_, OwnKey> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host that made a record, if that is known.
    fn holder(&self, key: &LeaseKey, sequence: u64) -> Option<Host> {
        let holder = self.directory.read_holder(key)?;
        (holder.sequence == sequence).then_some(holder.host)
    }

    /// Whose a record is that names our public IP (`same`) or may have been ours under another.
    fn whose(&self, key: &LeaseKey, sequence: u64, same: bool) -> Whose {
        match self.holder(key, sequence) {
            Some(host) if self.host.is(&host) => Whose::Ours,
            Some(host) if same && self.host.may_have_been(&host) => Whose::Ours,
            Some(host) if same => Whose::Rival(host.to_string()),
            None if same => Whose::Ours,
            _ => Whose::Other,
        }
    }

    /// How to call the owner of a record.
    fn owner(&self, key: &LeaseKey, lease: Option<&Lease>) -> String {
        let host = lease.and_then(|lease| self.holder(key, lease.since.at)).map(|host| host.to_string());
        let address = || lease.and_then(|lease| lease.public_ip.values().next()).map(|ip| format!("public IP {ip}"));
        host.or_else(address).unwrap_or_else(|| format!("record {key}"))
    }

    fn entries(&self, records: &[Record], claim: &Claim, own: Option<&LeaseKey>) -> Vec<Entry> {
        records.iter().filter_map(|record| self.entry(record, claim, own)).collect()
    }

    /// A record as acquiring sees it; none if its name is no subnet's.
    fn entry(&self, record: &Record, claim: &Claim, own: Option<&LeaseKey>) -> Option<Entry> {
        let SubnetKey(subnet) = record.key.as_str().parse().ok()?;
        let lease = record.lease.as_ref().ok();
        let public_ip = lease.map_or_else(|| self.claimed(&record.key), |lease| lease.public_ip);
        let same = is_same_host(&claim.public_ip, &public_ip);
        let had = own == Some(&record.key) || subnet.values().any(|net| claim.previous.values().any(|had| had == net));
        let sequence = lease.map_or(0, |lease| lease.since.at);
        let whose = if same || had { self.whose(&record.key, sequence, same) } else { Whose::Other };
        Some(Entry { key: record.key.clone(), subnet, lease: lease.cloned(), whose })
    }

    /// The public addresses that an otherwise unreadable record names.
    fn claimed(&self, key: &LeaseKey) -> Dual<IpAddr> {
        let mut text = Vec::new();
        let read = self.directory.read_record(key, &mut text);
        if read.is_ok() { claimed_by(&text) } else { Dual::default() }
    }
}

/// Keeps our record.
#[derive(Debug)]
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    scanner: Scanner,
    round: u64,
    warned: BTreeSet<LeaseKey>,
    pub(crate) key: LeaseKey,
    pub(crate) lease: Lease,
    text: String,
}

/// What became of our record.
enum Found {
    AsClaimed,
    Gone,
    Changed,
    TakenBy(String),
}

impl Keeper {
    /// Acquires a lease for a claim.
    pub(crate) fn acquire(shared: &Arc<Shared>, config: &NetworkConfig, claim: &Claim) -> Result<Self, HoldError> {
        let mut own = shared.own();
        own.round += 1;
        for _ in 0..ATTEMPTS {
            shared.directory.prepare()?;
            let lock = shared.directory.lock();
            let mut scanner = Scanner::default();
            let seen = scanner.look(&shared.directory, &Look::Everywhere)?;
            let entries = shared.entries(seen.records(), claim, own.key.as_ref());
            let choice = choose(config, claim, &entries, random()).inspect_err(|error| leave_note(shared, error))?;
            let mut keeper = Self::claimed(shared, scanner, claim, &choice, next_sequence(seen.records()));
            keeper.round = own.round;
            if !keeper.write(&choice)? {
                continue;
            }
            own.key = Some(keeper.key.clone());
            if lock.is_some() {
                return Ok(keeper);
            }
            match keeper.yield_to_elders() {
                Ok(()) => return Ok(keeper),
                Err(HoldError::Lost { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(HoldError::Outrun(ATTEMPTS))
    }

    fn claimed(shared: &Arc<Shared>, scanner: Scanner, claim: &Claim, choice: &Choice, next: u64) -> Self {
        let sequence = choice.continues.as_ref().map_or(next, |(_, since)| since.at);
        let lease = Lease {
            subnet: choice.subnets,
            public_ip: choice.subnets.map(|family, _| *claim.public_ip.get(family).unwrap_or(&family.unspecified())),
            attributes: choice.attributes.clone(),
            since: sequenced(&choice.subnets, sequence),
            flaws: Vec::new(),
        };
        let key = LeaseKey::new(SubnetKey(choice.subnets).to_string());
        let text = record::write(&lease.public_ip, &lease.attributes, Some(sequence));
        let warned = BTreeSet::new();
        Self { shared: Arc::clone(shared), scanner, round: 0, warned, key, lease, text }
    }

    /// Writes the record that was chosen, and removes what it replaces; false if its name is taken.
    fn write(&self, choice: &Choice) -> Result<bool, Unavailable> {
        let directory = &self.shared.directory;
        let continued = choice.continues.as_ref().map(|(key, _)| key);
        if continued == Some(&self.key) {
            if !matches!(self.find(), Found::AsClaimed) {
                directory.replace_record(&self.key, &self.text)?;
            }
        } else if !directory.create_record(&self.key, &self.text)? {
            return Ok(false);
        }
        self.sign()?;
        let mut replaced = continued.into_iter().chain(&choice.delete).filter(|key| **key != self.key);
        replaced.try_for_each(|key| directory.remove_record(key))?;
        Ok(true)
    }

    /// Says that the record is this host's.
    fn sign(&self) -> Result<(), Unavailable> {
        let holder = Holder { sequence: self.lease.since.at, host: self.shared.host.clone() };
        if self.shared.directory.read_holder(&self.key).as_ref() == Some(&holder) {
            return Ok(());
        }
        self.shared.directory.write_holder(&self.key, &holder)
    }

    /// Puts our record right where it needs to be, after something may have changed.
    pub(crate) fn check(&mut self, look: &Look) -> Result<(), HoldError> {
        let shared = Arc::clone(&self.shared);
        let own = shared.own();
        if own.round != self.round {
            return Ok(());
        }
        shared.directory.is_there()?;
        self.keep()?;
        if look.at(Place::Holders, &format!("{}.rival", self.key)) {
            self.name_rival();
        }
        let seen = self.scanner.look(&shared.directory, look)?;
        self.judge(&seen)
    }

    /// Rewrites our record if it was changed, takes it back if it is gone.
    fn keep(&self) -> Result<(), HoldError> {
        if matches!(self.find(), Found::AsClaimed) {
            return Ok(self.sign()?);
        }
        self.shared.directory.prepare()?;
        let _lock = self.shared.directory.lock();
        match self.find() {
            Found::AsClaimed => {}
            Found::Changed => {
                tracing::warn!("our lease {} was changed by somebody; it is written again", self.key);
                self.shared.directory.replace_record(&self.key, &self.text)?;
            }
            Found::Gone => return self.take_back(),
            Found::TakenBy(by) => return Err(HoldError::Lost { key: self.key.clone(), by }),
        }
        Ok(self.sign()?)
    }

    fn find(&self) -> Found {
        let mut text = Vec::new();
        let there = self.shared.directory.read_record(&self.key, &mut text);
        if there.is_ok_and(|there| !there) {
            return Found::Gone;
        }
        let record = record::read_sequenced(self.key.clone(), &text);
        let lease = record.lease.as_ref().ok();
        let sequence = lease.map_or(self.lease.since.at, |lease| lease.since.at);
        let public_ip = lease.map_or_else(|| claimed_by(&text), |lease| lease.public_ip);
        let same = public_ip.is_empty() || is_same_host(&self.lease.public_ip, &public_ip);
        match self.shared.whose(&self.key, sequence, same) {
            Whose::Ours if text == self.text.as_bytes() => Found::AsClaimed,
            Whose::Ours => Found::Changed,
            Whose::Rival(by) => Found::TakenBy(by),
            Whose::Other => Found::TakenBy(self.shared.owner(&self.key, lease)),
        }
    }

    /// Makes our record again, unless its subnet is another's by now.
    fn take_back(&self) -> Result<(), HoldError> {
        let directory = &self.shared.directory;
        let holds_ours = |key: &LeaseKey| {
            let subnet = key.as_str().parse::<SubnetKey>().map(|SubnetKey(subnet)| subnet);
            subnet.is_ok_and(|subnet| *key != self.key && overlaps(&subnet, &self.lease))
        };
        if let Some(key) = directory.keys()?.into_iter().find(holds_ours) {
            let mut text = Vec::new();
            drop(directory.read_record(&key, &mut text));
            let lease = record::read_sequenced(key.clone(), &text).lease.ok();
            return Err(HoldError::Lost { key: self.key.clone(), by: self.shared.owner(&key, lease.as_ref()) });
        }
        tracing::warn!("our lease {} was removed by somebody; it is taken back", self.key);
        if directory.create_record(&self.key, &self.text)? { Ok(self.sign()?) } else { self.keep() }
    }

    /// Tells of the host that was refused because we have its public IP.
    fn name_rival(&self) {
        if let Some(host) = self.shared.directory.take_rival(&self.key) {
            let ip = self.lease.public_ip.values().next().copied().unwrap_or(Family::V4.unspecified());
            tracing::warn!("{host} claims our public IP {ip} too; it got no lease");
        }
    }

    /// After acquiring without a lock: looks whether somebody else did the same a moment earlier.
    fn yield_to_elders(&mut self) -> Result<(), HoldError> {
        let seen = Scanner::default().look(&self.shared.directory, &Look::Everywhere)?;
        self.judge(&seen)
    }

    /// Looks for records that say what ours says: the younger one yields.
    fn judge(&mut self, seen: &Seen) -> Result<(), HoldError> {
        for record in seen.records() {
            let Ok(lease) = &record.lease else { continue };
            if record.key != self.key {
                self.judge_lease(&record.key, lease)?;
            }
        }
        Ok(())
    }

    fn judge_lease(&mut self, key: &LeaseKey, lease: &Lease) -> Result<(), HoldError> {
        let same = is_same_host(&self.lease.public_ip, &lease.public_ip);
        let shares_subnet = overlaps(&lease.subnet, &self.lease);
        if !same && !shares_subnet {
            return Ok(());
        }
        let whose = self.shared.whose(key, lease.since.at, same);
        if whose == Whose::Ours {
            return Ok(());
        }
        let by = self.shared.owner(key, Some(lease));
        if self.lease.since < lease.since {
            if self.warned.insert(key.clone()) {
                tracing::warn!("{by} claims with record {key} what we hold; ours is older and stays");
            }
            return Ok(());
        }
        self.shared.directory.remove_record(&self.key)?;
        Err(match whose {
            Whose::Rival(by) => {
                self.shared.directory.leave_rival(key, &self.shared.host);
                let public_ip = self.lease.public_ip.values().next().copied().unwrap_or(Family::V4.unspecified());
                HoldError::PublicIpTaken { public_ip, by, key: key.clone() }
            }
            Whose::Ours | Whose::Other => HoldError::Lost { key: self.key.clone(), by },
        })
    }
}

/// Tells the holder of our public IP that we wanted it too.
fn leave_note(shared: &Shared, error: &HoldError) {
    if let HoldError::PublicIpTaken { key, .. } = error {
        shared.directory.leave_rival(key, &shared.host);
    }
}

fn overlaps(subnet: &Dual<ipnet::IpNet>, lease: &Lease) -> bool {
    lease.subnet.iter().any(|(family, own)| subnet.get(family).is_some_and(|net| overlap(*net, *own)))
}

/// A sequence after all others.
fn next_sequence(records: &[Record]) -> u64 {
    let sequences = records.iter().filter_map(|record| Some(record.lease.as_ref().ok()?.since.at));
    sequences.max().unwrap_or_default().saturating_add(1)
}

/// Random numbers to spread daemons over free subnets; nothing secret depends on them.
fn random() -> Dual<u64> {
    Dual::from_fn(|_| Some(RandomState::new().build_hasher().finish()))
}
