//! What the records say, and which of them changed since the last look.
//!
//! A [`Scanner`] remembers a stamp of each record's file and shares what it said, so that a regular look at thousands of
//! records costs a `stat` each. After a look that failed it starts anew: what changed meanwhile cannot be told apart, so
//! the next look that succeeds gives everything.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use flannel_core::lease::{Flaw, Lease, LeaseKey, Record};
use flannel_core::record::read_sequenced;

use super::directory::{Directory, Records, Stamp, Unavailable};
use super::hints::{Look, Place};

/// What a look saw.
#[derive(Debug)]
pub(crate) enum Seen {
    /// All records there are.
    All(Vec<Record>),
    /// The records that are new or changed, and the keys of those that are gone.
    Changes(Vec<Record>, Vec<LeaseKey>),
}

/// A record as it was read.
#[derive(Debug)]
struct Known {
    stamp: Stamp,
    lease: Result<Arc<Lease>, Arc<Flaw>>,
}

/// The records seen so far; none before the first look.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    known: Option<BTreeMap<LeaseKey, Known>>,
}

impl Scanner {
    /// Looks at the records where something may have changed, or at all of them if there was no look before.
    pub(crate) fn look(&mut self, directory: &Directory, look: &Look) -> Result<Seen, Unavailable> {
        let before = self.known.take();
        let is_first = before.is_none();
        let mut scan = Scan {
            directory,
            there: directory.records()?,
            text: Vec::new(),
            records: Vec::new(),
            gone: Vec::new(),
            known: before.unwrap_or_default(),
            read: Vec::new(),
        };
        match look.names(Place::Subnets).filter(|_| !is_first) {
            Some(names) => scan.visit_each(names.filter_map(Directory::key_of))?,
            None => scan.visit_all()?,
        }
        let Scan { records, gone, mut known, read, .. } = scan;
        if is_first {
            known = read.into_iter().collect();
        } else {
            known.extend(read);
        }
        self.known = Some(known);
        Ok(if is_first { Seen::All(records) } else { Seen::Changes(records, gone) })
    }

    /// Records as they are at this moment. What is new is read and not remembered: the next look tells it.
    pub(crate) fn survey(
        &self,
        directory: &Directory,
        which: impl Fn(&str) -> bool,
    ) -> Result<Vec<Record>, Unavailable> {
        let mut text = Vec::new();
        let mut records = Vec::new();
        let there = directory.records()?;
        for key in there.keys(which)? {
            records.extend(match self.unchanged(&there, &key)? {
                Some(known) => Some(Record { key, lease: known.lease.clone() }),
                None => read(&there, key, &mut text)?.map(|(record, _)| record),
            });
        }
        directory.is_there()?;
        Ok(records)
    }

    /// What a record said, if its file is as it was.
    fn unchanged(&self, there: &Records, key: &LeaseKey) -> Result<Option<&Known>, Unavailable> {
        let Some(known) = self.known.as_ref().and_then(|known| known.get(key)) else { return Ok(None) };
        Ok(there.stamp(key)?.filter(|stamp| *stamp == known.stamp).map(|_| known))
    }
}

/// One look.
struct Scan<'a> {
    directory: &'a Directory,
    there: Records<'a>,
    text: Vec<u8>,
    records: Vec<Record>,
    gone: Vec<LeaseKey>,
    known: BTreeMap<LeaseKey, Known>,
    read: Vec<(LeaseKey, Known)>,
}

impl Scan<'_> {
    /// Visits every record that is new or whose stamp is another than before.
    fn visit_all(&mut self) -> Result<(), Unavailable> {
        let mut keys = self.there.keys(|key| !self.known.contains_key(key))?;
        for (key, known) in &self.known {
            if self.there.stamp(key)?.as_ref() != Some(&known.stamp) {
                keys.push(key.clone());
            }
        }
        self.visit_each(keys.into_iter())
    }

    /// Visits records that may have changed. The store is asked for last: had it gone away, all would seem to be gone.
    fn visit_each(&mut self, keys: impl Iterator<Item = LeaseKey>) -> Result<(), Unavailable> {
        for key in keys {
            let was_known = self.known.remove(&key).is_some();
            match read(&self.there, key.clone(), &mut self.text)? {
                Some((record, stamp)) => {
                    let lease = record.lease.clone();
                    self.read.extend(stamp.map(|stamp| (key, Known { stamp, lease })));
                    self.records.push(record);
                }
                None if was_known => self.gone.push(key),
                None => {}
            }
        }
        self.directory.is_there()
    }
}

/// Reads a record, and its stamp unless it is gone by then; none if there is no such record.
fn read(there: &Records, key: LeaseKey, text: &mut Vec<u8>) -> Result<Option<(Record, Option<Stamp>)>, Unavailable> {
    match there.read(&key, text) {
        Ok(stamp) => Ok(stamp.map(|stamp| (read_sequenced(key, text), Some(stamp)))),
        Err(error) if is_of_the_file(&error) => {
            let flaw = Flaw { field: "record".into(), why: format!("is not readable: {error}") };
            let stamp = there.stamp(&key)?;
            Ok(Some((Record::new(key, Err(flaw)), stamp)))
        }
        Err(source) => Err(there.unreadable(&key, source)),
    }
}

/// Whether an error is about this file alone, not about the file system.
fn is_of_the_file(error: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, PermissionDenied};
    matches!(error.kind(), IsADirectory | NotADirectory | PermissionDenied)
}
