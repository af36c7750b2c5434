//! What the records say, and which of them changed since the last look.
//!
//! A [`Scanner`] remembers a stamp of each record's file and shares what it said, so that a regular look at thousands of
//! records costs a `stat` each, and the first survey after a first look one in all. After a look that failed it starts
//! anew: what changed meanwhile cannot be told apart, so the next look that succeeds gives everything.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;

use flannel_core::lease::{Flaw, Lease, LeaseKey, Record};
use flannel_core::record::read_sequenced;

use super::directory::{Directory, Records, Stamp, Unavailable};
use crate::hints::{Look, Place};

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

impl Known {
    fn record(&self, key: LeaseKey) -> Record {
        Record { key, lease: self.lease.clone() }
    }
}

/// More records than this are read by two threads: a first look at thousands is what a start waits for.
const MANY: usize = 256;

/// The records seen so far; none before the first look.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    known: Option<BTreeMap<LeaseKey, Known>>,
    /// The directory as it was before the first look, if it was at rest: as long as it is so, `known` is all there is.
    complete: Option<Stamp>,
}

impl Scanner {
    /// Looks at the records where something may have changed, or at all of them if there was no look before.
    pub(crate) fn look(&mut self, directory: &Directory, look: &Look) -> Result<Seen, Unavailable> {
        let before = self.known.take();
        let is_first = before.is_none();
        let there = directory.records()?;
        if is_first {
            self.complete = there.at_rest();
        }
        let mut scan = Scan {
            directory,
            there,
            records: Vec::new(),
            gone: Vec::new(),
            known: before.unwrap_or_default(),
            read: Vec::new(),
        };
        match look.names(Place::Subnets).filter(|_| !is_first) {
            Some(names) => scan.visit_each(names.filter_map(Directory::key_of).collect())?,
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

    /// Records as they are at this moment, but of a directory at rest as the last look saw them: only who writes a file in
    /// place leaves that so. What is new is read and not remembered: the next look tells it.
    pub(crate) fn survey(
        &self,
        directory: &Directory,
        which: impl Fn(&str) -> bool,
    ) -> Result<Vec<Record>, Unavailable> {
        let there = directory.records()?;
        if let Some(known) = self.known.as_ref().filter(|_| self.complete.is_some() && self.complete == there.at_rest())
        {
            let asked_for = known.iter().filter(|(key, _)| which(key.as_str()));
            return Ok(asked_for.map(|(key, known)| known.record(key.clone())).collect());
        }
        let mut text = Vec::new();
        let mut records = Vec::new();
        for key in there.keys(which)? {
            records.extend(match self.unchanged(&there, &key)? {
                Some(known) => Some(known.record(key)),
                None => read(&there, &key, &mut text)?.map(|(record, _)| record),
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
        self.visit_each(keys)
    }

    /// Visits records that may have changed. The store is asked for last: had it gone away, all would seem to be gone.
    fn visit_each(&mut self, keys: Vec<LeaseKey>) -> Result<(), Unavailable> {
        let found = read_each(&self.there, &keys)?;
        for (key, found) in keys.into_iter().zip(found) {
            let was_known = self.known.remove(&key).is_some();
            match found {
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

/// A record and its stamp unless it is gone by then; none if there is no such record.
type Found = Option<(Record, Option<Stamp>)>;

/// Reads records, in their order; many by two threads at once.
fn read_each(there: &Records, keys: &[LeaseKey]) -> Result<Vec<Found>, Unavailable> {
    let read_all = |keys: &[LeaseKey]| -> Result<Vec<Found>, Unavailable> {
        let mut text = Vec::new();
        keys.iter().map(|key| read(there, key, &mut text)).collect()
    };
    if keys.len() <= MANY {
        return read_all(keys);
    }
    let (first, second) = keys.split_at(keys.len() / 2);
    thread::scope(|scope| {
        let aside = thread::Builder::new().spawn_scoped(scope, || read_all(second));
        let mut found = read_all(first)?;
        found.extend(match aside.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(rest)) => rest?,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => read_all(second)?,
        });
        Ok(found)
    })
}

/// Reads a record.
fn read(there: &Records, key: &LeaseKey, text: &mut Vec<u8>) -> Result<Found, Unavailable> {
    match there.read(key, text) {
        Ok(stamp) => Ok(stamp.map(|stamp| (read_sequenced(key.clone(), text), Some(stamp)))),
        Err(error) if is_of_the_file(&error) => {
            let flaw = Flaw { field: "record".into(), why: format!("is not readable: {error}") };
            let stamp = there.stamp(key)?;
            Ok(Some((Record::new(key.clone(), Err(flaw)), stamp)))
        }
        Err(source) => Err(there.unreadable(key, source)),
    }
}

/// Whether an error is about this file alone, not about the file system.
fn is_of_the_file(error: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, PermissionDenied};
    matches!(error.kind(), IsADirectory | NotADirectory | PermissionDenied)
}
