//! Which records changed since the last look.
//!
//! A [`Scanner`] remembers a stamp of each record's file, not its text, so that a regular look at thousands of records
//! costs a `stat` each. After a look that failed it starts anew: what changed meanwhile cannot be told apart, so the next
//! look that succeeds gives everything.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use flannel_core::lease::{Flaw, LeaseKey, Record};
use flannel_core::record::read_sequenced;

use super::directory::{Directory, Stamp, Unavailable};
use super::hints::{Look, Place};

/// What a look saw.
#[derive(Debug)]
pub(crate) enum Seen {
    /// All records there are.
    All(Vec<Record>),
    /// The records that are new or changed, and the keys of those that are gone.
    Changes(Vec<Record>, Vec<LeaseKey>),
}

impl Seen {
    /// The records seen.
    pub(crate) fn into_records(self) -> Vec<Record> {
        match self {
            Self::All(records) | Self::Changes(records, _) => records,
        }
    }
}

/// The records seen so far; none before the first look.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    stamps: Option<BTreeMap<LeaseKey, Stamp>>,
}

impl Scanner {
    /// Looks at the records where something may have changed, or at all of them if there was no look before.
    pub(crate) fn look(&mut self, directory: &Directory, look: &Look) -> Result<Seen, Unavailable> {
        let mut scan =
            Scan { directory, text: Vec::new(), records: Vec::new(), gone: Vec::new(), stamps: BTreeMap::new() };
        let before = self.stamps.take();
        let is_first = before.is_none();
        scan.stamps = before.unwrap_or_default();
        match look.names(Place::Subnets).filter(|_| !is_first) {
            Some(names) => scan.visit_each(names.filter_map(Directory::key_of))?,
            None => scan.visit_all()?,
        }
        let Scan { records, gone, stamps, .. } = scan;
        self.stamps = Some(stamps);
        Ok(if is_first { Seen::All(records) } else { Seen::Changes(records, gone) })
    }
}

/// One look.
struct Scan<'a> {
    directory: &'a Directory,
    text: Vec<u8>,
    records: Vec<Record>,
    gone: Vec<LeaseKey>,
    stamps: BTreeMap<LeaseKey, Stamp>,
}

impl Scan<'_> {
    /// Visits records known to have changed. The store is asked for last: had it gone away, all would seem to be gone.
    fn visit_each(&mut self, keys: impl Iterator<Item = LeaseKey>) -> Result<(), Unavailable> {
        for key in keys {
            if self.stamps.remove(&key).is_some() {
                self.gone.push(key.clone());
            }
            self.visit(key)?;
        }
        let found: BTreeSet<_> = self.records.iter().map(|record| &record.key).collect();
        self.gone.retain(|key| !found.contains(key));
        self.directory.is_there()
    }

    /// Visits every record and skips those whose stamp is as before.
    fn visit_all(&mut self) -> Result<(), Unavailable> {
        let keys = self.directory.keys()?;
        let there: BTreeSet<&LeaseKey> = keys.iter().collect();
        self.gone = self.stamps.keys().filter(|key| !there.contains(key)).cloned().collect();
        self.stamps.retain(|key, _| there.contains(key));
        drop(there);
        keys.into_iter().try_for_each(|key| self.visit(key))?;
        self.directory.is_there()
    }

    fn visit(&mut self, key: LeaseKey) -> Result<(), Unavailable> {
        if let Some(before) = self.stamps.get(&key)
            && self.directory.stamp(&key)?.as_ref() == Some(before)
        {
            return Ok(());
        }
        let flaw = |why| Err(Flaw { field: "record".into(), why });
        let (record, stamp) = match self.directory.read_record(&key, &mut self.text) {
            Ok(Some(stamp)) => (read_sequenced(key.clone(), &self.text), Some(stamp)),
            Ok(None) => {
                self.lose(key);
                return Ok(());
            }
            Err(error) if is_of_the_file(&error) => (
                Record { key: key.clone(), lease: flaw(format!("is not readable: {error}")) },
                self.directory.stamp(&key)?,
            ),
            Err(source) => return Err(Unavailable::new("read", self.directory.record(&key), source)),
        };
        self.stamps.extend(stamp.map(|stamp| (key, stamp)));
        self.records.push(record);
        Ok(())
    }

    /// A record went away between being listed and being read.
    fn lose(&mut self, key: LeaseKey) {
        if self.stamps.remove(&key).is_some() {
            self.gone.push(key);
        }
    }
}

/// Whether an error is about this file alone, not about the file system.
fn is_of_the_file(error: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, PermissionDenied};
    matches!(error.kind(), IsADirectory | NotADirectory | PermissionDenied)
}
