//! Our own record of a local store: acquired, written again, taken back.
//!
//! [`Local::hold`] reads all records, decides (see [`crate::acquire`]), and writes what was decided. Blocking, like the file
//! system beneath.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use flannel_core::addr::{Dual, Family};
use flannel_core::config::NetworkConfig;
use flannel_core::lease::{Claim, LeaseKey, Record};
use flannel_core::record::{self, SubnetKey, claimed_by};

use super::directory::{Directory, Holder, Patience, Unavailable};
use super::scan::{Scanner, Seen};
use crate::acquire::{Choice, Entry, Refusal, Whose, choose, is_same_host, parts, random, regain};
use crate::hints::Look;
use crate::host::Host;
use crate::{Held, HoldError};

/// How often a subnet that we tried to acquire may be somebody else's by then.
const ATTEMPTS: usize = 10;
/// Up to sixteen of it pass before the next attempt, so that two that got in each other's way do not do so again.
const PAUSE: Duration = Duration::from_millis(4);

/// Between making a record and signing it lie two system calls, and on a busy machine many milliseconds; looked for so often, with so long a pause before each look.
const SIGNING_LOOKS: u32 = 50;
const SIGNING: Duration = Duration::from_millis(10);

/// One daemon on a directory.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) directory: Directory,
    host: Host,
    /// What we hold as it was last written; locked while it is written.
    held: Mutex<Option<Held>>,
    /// What the records said when they were looked at last.
    scanner: Mutex<Scanner>,
}

/// What became of the wish to write a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// It was ours and is as it should be.
    Kept,
    /// It is new.
    Made,
    /// Its name is another's.
    Taken,
}

/// Why nothing could be written.
#[derive(Debug)]
enum Failure {
    Unavailable(Unavailable),
    Refused(Refusal),
}

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Local {
    pub(crate) fn new(directory: Directory, host: Host) -> Self {
        Self { directory, host, held: Mutex::default(), scanner: Mutex::default() }
    }

    /// Makes our lease say what the claim says.
    ///
    /// A directory that cannot be used is an error for good only as long as we hold nothing: later it may come back.
    pub(crate) fn hold(&self, config: &NetworkConfig, claim: &Claim) -> Result<Held, HoldError> {
        let mut held = self.held();
        let patience = Patience::new();
        for _ in 0..ATTEMPTS {
            match self.try_hold(&mut held, config, claim, &patience) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(Failure::Refused(refusal)) => {
                    self.leave_note(&refusal);
                    return Err(refusal.into());
                }
                Err(Failure::Unavailable(error)) if held.is_none() => return Err(error.into()),
                Err(Failure::Unavailable(error)) => return Err(HoldError::Later(error.to_string())),
            }
            if let Some(held) = &*held {
                return Ok(held.clone());
            }
        }
        Err(HoldError::Later(format!("others took each of {ATTEMPTS} subnets that this node tried to acquire")))
    }

    /// Tells of the host that was refused because we have its public IP.
    pub(crate) fn name_rival(&self) {
        let held = self.held();
        let Some(Held { key, lease }) = &*held else { return };
        if let Some(host) = self.directory.take_rival(key) {
            let ip = lease.public_ip.values().next().copied().unwrap_or(Family::V4.unspecified());
            tracing::warn!("{host} claims our public IP {ip} too; it got no lease");
        }
    }

    /// The records that changed since the last look.
    pub(crate) fn look(&self, look: &Look) -> Result<Seen, Unavailable> {
        self.scanner().look(&self.directory, look)
    }

    fn scanner(&self) -> MutexGuard<'_, Scanner> {
        self.scanner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides and writes once; false if somebody else was faster.
    fn try_hold(
        &self,
        held: &mut Option<Held>,
        config: &NetworkConfig,
        claim: &Claim,
        patience: &Patience,
    ) -> Result<bool, Failure> {
        self.directory.is_there()?;
        self.directory.prepare()?;
        let _lock = self.directory.lock(patience);
        let records = self.records()?;
        let entries = self.entries(&records, config, claim, held.as_ref());
        let choice = match held.as_ref().filter(|held| config.fits(&held.lease.subnet)) {
            Some(held) => self.regain(held, claim, &entries)?,
            None => choose(config, claim, &entries, random())?,
        };
        let sequence = choice.continues.as_ref().map_or_else(|| next_sequence(&records), |(_, since)| since.at);
        let new = choice.held(claim, sequence);
        match self.write(&new, &choice)? {
            Written::Taken => return Ok(false),
            Written::Made if self.is_disputed(&new, config, claim, &records)? => {
                sleep(PAUSE * (random().v4.unwrap_or(0) % 16) as u32);
                return Ok(false);
            }
            Written::Made | Written::Kept => {}
        }
        let replaced = choice.continues.iter().map(|(key, _)| key).chain(&choice.delete);
        replaced.filter(|key| **key != new.key).try_for_each(|key| self.directory.remove_record(key))?;
        *held = Some(new);
        Ok(true)
    }

    /// What we hold, again; our record goes if an older one says the same.
    fn regain(&self, held: &Held, claim: &Claim, entries: &[Entry]) -> Result<Choice, Failure> {
        let choice = regain(held, claim, entries);
        let is_ours = |entry: &Entry| entry.key == held.key && entry.whose == Whose::Ours;
        if choice.is_err() && entries.iter().any(is_ours) {
            self.directory.remove_record(&held.key)?;
        }
        Ok(choice?)
    }

    /// After making a record: whether somebody else made one that says the same since we looked. Then ours goes, older
    /// or not: the other may have looked before ours was there. If the other sees ours too, both go and try again.
    fn is_disputed(
        &self,
        new: &Held,
        config: &NetworkConfig,
        claim: &Claim,
        before: &[Record],
    ) -> Result<bool, Unavailable> {
        let before: BTreeSet<&str> = before.iter().map(|record| record.key.as_str()).collect();
        let made = self.scanner().survey(&self.directory, |key| !before.contains(key))?;
        let entries = self.entries(&made, config, claim, Some(new));
        let is_disputed = entries.iter().any(|entry| entry.disputes(&new.lease.subnet));
        if is_disputed && entries.iter().any(|entry| entry.key == new.key && entry.whose == Whose::Ours) {
            self.directory.remove_record(&new.key)?;
        }
        Ok(is_disputed)
    }

    /// Writes the record that was chosen.
    fn write(&self, new: &Held, choice: &Choice) -> Result<Written, Unavailable> {
        let directory = &self.directory;
        let text = record::write(&new.lease.public_ip, &new.lease.attributes, Some(new.lease.since.at));
        let continues = choice.continues.as_ref().is_some_and(|(key, _)| *key == new.key);
        let mut before = Vec::new();
        let written = if continues && !matches!(directory.read_record(&new.key, &mut before), Ok(false)) {
            if before != text.as_bytes() {
                directory.replace_record(&new.key, &text)?;
            }
            Written::Kept
        } else if directory.create_record(&new.key, &text)? {
            Written::Made
        } else {
            return Ok(Written::Taken);
        };
        self.sign(new)?;
        Ok(written)
    }

    /// Says that a record is this host's.
    fn sign(&self, held: &Held) -> Result<(), Unavailable> {
        let holder = Holder { sequence: held.lease.since.at, host: self.host.clone() };
        if self.directory.read_holder(&held.key).as_ref() == Some(&holder) {
            return Ok(());
        }
        self.directory.write_holder(&held.key, &holder)
    }

    /// Tells the holder of our public IP that we wanted it too.
    fn leave_note(&self, refusal: &Refusal) {
        if let Refusal::PublicIpTaken { key, .. } = refusal {
            self.directory.leave_rival(key, &self.host);
        }
    }

    fn records(&self) -> Result<Vec<Record>, Unavailable> {
        self.scanner().survey(&self.directory, |_| true)
    }

    fn entries(&self, records: &[Record], config: &NetworkConfig, claim: &Claim, held: Option<&Held>) -> Vec<Entry> {
        records.iter().filter_map(|record| self.entry(record, config, claim, held)).collect()
    }

    /// A record as acquiring sees it; none if its name is no subnet's.
    fn entry(&self, record: &Record, config: &NetworkConfig, claim: &Claim, held: Option<&Held>) -> Option<Entry> {
        let SubnetKey(subnet) = record.key.as_str().parse().ok()?;
        let lease = record.lease.as_ref().ok();
        let public_ip = lease.map_or_else(|| self.claimed(&record.key), |lease| lease.public_ip);
        let is_held = held.is_some_and(|held| held.key == record.key);
        let had = subnet.values().any(|subnet| claim.previous.values().any(|had| had == subnet));
        let same = is_same_host(&claim.public_ip, &public_ip) || (is_held && public_ip.is_empty());
        let sequence = lease.map(|lease| lease.since.at);
        let whose = if same || had || is_held { self.whose(&record.key, sequence, same) } else { Whose::Other(None) };
        Some(Entry { key: record.key.clone(), subnet: parts(config, &subnet), lease: lease.cloned(), whose })
    }

    /// Whose a record is that names our public IP (`same`), or a subnet that we have or had.
    fn whose(&self, key: &LeaseKey, sequence: Option<u64>, same: bool) -> Whose {
        match self.signature(key, sequence, same).map(|holder| holder.host) {
            Some(host) if self.host.is(&host) => Whose::Ours,
            Some(host) if same && self.host.may_have_been(&host) => Whose::Ours,
            Some(host) if same => Whose::Rival(host.to_string()),
            Some(host) => Whose::Other(Some(host.to_string())),
            None if same => Whose::Ours,
            None => Whose::Other(None),
        }
    }

    /// Who signed a record. One that names our public IP and is not signed may have been made this very moment, by a host
    /// that is about to sign it: without a lock that shows only after a while.
    fn signature(&self, key: &LeaseKey, sequence: Option<u64>, same: bool) -> Option<Holder> {
        let signed = || {
            let holder = self.directory.read_holder(key)?;
            sequence.is_none_or(|sequence| sequence == holder.sequence).then_some(holder)
        };
        let again = || {
            sleep(SIGNING);
            signed()
        };
        signed().or_else(|| (0..if same { SIGNING_LOOKS } else { 0 }).find_map(|_| again()))
    }

    /// The public addresses that an otherwise unreadable record names.
    fn claimed(&self, key: &LeaseKey) -> Dual<IpAddr> {
        let mut text = Vec::new();
        let read = self.directory.read_record(key, &mut text);
        if read.is_ok() { claimed_by(&text) } else { Dual::default() }
    }
}

/// A sequence after all others.
fn next_sequence(records: &[Record]) -> u64 {
    let sequences = records.iter().filter_map(|record| Some(record.lease.as_ref().ok()?.since.at));
    sequences.max().unwrap_or_default().saturating_add(1)
}
