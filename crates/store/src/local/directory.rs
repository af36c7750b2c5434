//! The files of a local store: where they lie, how they are read, and how they are written so that nobody ever sees half
//! of one.
//!
//! ```text
//! DIR/config.json                      the network config; without it the directory is no store
//! DIR/subnets/10.244.1.0-24.json       a lease record
//! DIR/holders/10.244.1.0-24.json       which host made that record
//! DIR/holders/10.244.1.0-24.rival      which other host claimed the same public IP and was refused
//! DIR/lock                             flock of whoever writes
//! ```
//!
//! A record is made by link(2) of a complete file, which fails if the name is taken, and changed by rename(2). Who made one
//! reads all records again and yields if another says the same. That is enough without the lock, which spares daemons of
//! one file system from getting in each other's way.

use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, UNIX_EPOCH};

use flannel_core::lease::LeaseKey;
use flannel_core::record::LONGEST;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, Stat, fstat, open, openat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::HoldError;
use crate::host::Host;

const RECORD: &str = ".json";
const TEMPORARY: &str = ".tmp-";

/// No write takes so long, on a file system of another host with another clock neither.
const LONGEST_WRITE: Duration = Duration::from_mins(5);

/// How much of a directory's list the kernel gives at a time, in bytes.
const LISTING: usize = 32 * 1024;
/// A directory that did not change for so long shows the next change: file systems count time in steps of up to two
/// seconds.
const REST: Duration = Duration::from_secs(3);

/// A part of the store that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub(crate) struct Unavailable {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Unavailable {
    pub(crate) fn new(action: &'static str, path: PathBuf, source: io::Error) -> Self {
        Self { action, path, source }
    }
}

impl Unavailable {
    /// What a person can do about it; none where it may go better later by itself.
    fn hint(&self) -> Option<&'static str> {
        use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
        match self.source.kind() {
            NotFound | NotADirectory => {
                Some("the store is a directory with a config.json; create both, or correct --local-store")
            }
            PermissionDenied | ReadOnlyFilesystem => {
                Some("flanneld must be allowed to read and write in the store's directory")
            }
            _ => None,
        }
    }

    /// The text with the hint, on one line.
    pub(crate) fn advice(&self) -> String {
        self.hint().map_or_else(|| self.to_string(), |hint| format!("{self} (hint: {hint})"))
    }
}

impl From<Unavailable> for HoldError {
    /// What a person has to change stays as it is by itself; anything else may go better later.
    fn from(error: Unavailable) -> Self {
        match error.hint() {
            Some(hint) => Self::Never { cause: error.to_string(), hint: hint.to_owned() },
            None => Self::Later(error.to_string()),
        }
    }
}

/// Until when to wait for the lock, in all attempts together: whoever holds it for three seconds is stuck.
#[derive(Debug)]
pub(crate) struct Patience(Instant);

impl Patience {
    pub(crate) fn new() -> Self {
        Self(Instant::now() + Duration::from_secs(3))
    }
}

/// Which host made a record; it belongs to the record with the same sequence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Holder {
    pub(crate) sequence: u64,
    #[serde(flatten)]
    pub(crate) host: Host,
}

/// What tells a file from a later version of itself: a digest of its inode, size and time of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp(u64);

impl Stamp {
    fn of(file: &Stat) -> Self {
        let mut digest = DefaultHasher::new();
        (file.st_ino, file.st_size, file.st_ctime, file.st_ctime_nsec).hash(&mut digest);
        Self(digest.finish())
    }
}

/// The directory of a local store.
#[derive(Debug)]
pub(crate) struct Directory {
    base: PathBuf,
    tag: String,
    temporaries: AtomicU64,
}

impl Directory {
    pub(crate) fn new(base: &Path, host: &Host) -> Self {
        let tag = format!("{}-{}", host.tag(), std::process::id());
        Self { base: base.to_owned(), tag, temporaries: AtomicU64::new(0) }
    }

    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.base.join("config.json")
    }

    pub(crate) fn subnets(&self) -> PathBuf {
        self.base.join("subnets")
    }

    pub(crate) fn holders(&self) -> PathBuf {
        self.base.join("holders")
    }

    pub(crate) fn record(&self, key: &LeaseKey) -> PathBuf {
        self.subnets().join(format!("{}{RECORD}", key.as_str()))
    }

    fn holder(&self, key: &LeaseKey) -> PathBuf {
        self.holders().join(format!("{}{RECORD}", key.as_str()))
    }

    fn rival(&self, key: &LeaseKey) -> PathBuf {
        self.holders().join(format!("{}.rival", key.as_str()))
    }

    /// Fails if the directory is no store, or none any more (not mounted).
    pub(crate) fn is_there(&self) -> Result<(), Unavailable> {
        let path = self.config();
        fs::metadata(&path).map(drop).map_err(|source| Unavailable { action: "find", path, source })
    }

    /// Makes the directories for records and holders.
    pub(crate) fn prepare(&self) -> Result<(), Unavailable> {
        for path in [self.subnets(), self.holders()] {
            fs::create_dir_all(&path).map_err(|source| Unavailable { action: "make directory", path, source })?;
        }
        Ok(())
    }

    /// The key of a record's file; none for any other file.
    pub(crate) fn key_of(name: &str) -> Option<LeaseKey> {
        Self::record_of(name).map(LeaseKey::new)
    }

    fn record_of(name: &str) -> Option<&str> {
        name.strip_suffix(RECORD).filter(|key| !key.starts_with('.'))
    }

    /// The records as they are from now on.
    pub(crate) fn records(&self) -> Result<Records<'_>, Unavailable> {
        self.is_there()?;
        let path = self.subnets();
        match open_directory(&path) {
            Ok(opened) => Ok(Records { directory: self, opened: Some(opened) }),
            Err(Errno::NOENT) => Ok(Records { directory: self, opened: None }),
            Err(error) => Err(Unavailable { action: "list", path, source: error.into() }),
        }
    }

    /// Reads the text of a record, cut after more bytes than a record may have; false if there is no such record.
    pub(crate) fn read_record(&self, key: &LeaseKey, text: &mut Vec<u8>) -> io::Result<bool> {
        Ok(read_bounded(CWD, &self.record(key), text)?.is_some())
    }

    /// Which host made a record.
    pub(crate) fn read_holder(&self, key: &LeaseKey) -> Option<Holder> {
        let mut text = Vec::new();
        read_bounded(CWD, &self.holder(key), &mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Takes the note of a rival, if one was left.
    pub(crate) fn take_rival(&self, key: &LeaseKey) -> Option<Host> {
        let mut text = Vec::new();
        read_bounded(CWD, &self.rival(key), &mut text).ok()??;
        fs::remove_file(self.rival(key)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Leaves a note for the holder of a record that we claim its public IP. It helps a person, so it may fail.
    pub(crate) fn leave_rival(&self, key: &LeaseKey, host: &Host) {
        let text = serde_json::to_string(host).unwrap_or_default();
        if let Err(error) = self.replace(&self.rival(key), &text) {
            tracing::debug!("no note left for the holder of {key}: {error}");
        }
    }

    /// Says that a record is ours.
    pub(crate) fn write_holder(&self, key: &LeaseKey, holder: &Holder) -> Result<(), Unavailable> {
        let path = self.holder(key);
        let text = serde_json::to_string(holder).unwrap_or_default();
        self.replace(&path, &text).map_err(|source| Unavailable { action: "write", path, source })
    }

    /// Makes a record; false if its name is taken.
    pub(crate) fn create_record(&self, key: &LeaseKey, text: &str) -> Result<bool, Unavailable> {
        let path = self.record(key);
        let create = || {
            let temporary = self.write_temporary(&path, text)?;
            let linked = fs::hard_link(&temporary, &path);
            fs::remove_file(&temporary)?;
            match linked {
                Ok(()) => sync_parent(&path).map(|()| true),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(error),
            }
        };
        create().map_err(|source| Unavailable { action: "write", path: self.record(key), source })
    }

    /// Changes a record.
    pub(crate) fn replace_record(&self, key: &LeaseKey, text: &str) -> Result<(), Unavailable> {
        let path = self.record(key);
        self.replace(&path, text).map_err(|source| Unavailable { action: "write", path, source })
    }

    /// Removes a record and all that is said of it.
    pub(crate) fn remove_record(&self, key: &LeaseKey) -> Result<(), Unavailable> {
        for path in [self.record(key), self.holder(key), self.rival(key)] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Unavailable { action: "remove", path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The lock of all writers, until dropped; none where the file system has no locks or somebody is stuck with it.
    pub(crate) fn lock(&self, patience: &Patience) -> Option<File> {
        let file = OpenOptions::new().create(true).append(true).open(self.base.join("lock")).ok()?;
        loop {
            match file.try_lock() {
                Ok(()) => {
                    self.sweep();
                    return Some(file);
                }
                Err(fs::TryLockError::WouldBlock) if Instant::now() < patience.0 => sleep(Duration::from_millis(2)),
                Err(_) => return None,
            }
        }
    }

    /// Removes what writers left that were killed. What is fresh may be of one that lost patience with the lock.
    fn sweep(&self) {
        for directory in [self.subnets(), self.holders()] {
            let Ok(opened) = open_directory(&directory) else { continue };
            let mut left = Vec::new();
            let _ = each_name(&opened, |name| left.extend(name.starts_with(TEMPORARY).then(|| directory.join(name))));
            for path in left.into_iter().filter(|path| is_abandoned(path)) {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn replace(&self, path: &Path, text: &str) -> io::Result<()> {
        let temporary = self.write_temporary(path, text)?;
        fs::rename(temporary, path)?;
        sync_parent(path)
    }

    /// Writes a file beside `path` under a name that nobody else uses, all of it on disk.
    fn write_temporary(&self, path: &Path, text: &str) -> io::Result<PathBuf> {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_file_name(format!("{TEMPORARY}{}-{number}", self.tag));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        Ok(temporary)
    }
}

/// Whether nobody can be writing a file any more.
fn is_abandoned(path: &Path) -> bool {
    let written = fs::metadata(path).and_then(|found| found.modified());
    written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LONGEST_WRITE))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// The records of a store, opened once for a look at thousands of them.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    directory: &'a Directory,
    /// None if there is no directory for them yet.
    opened: Option<OwnedFd>,
}

impl Records<'_> {
    /// The keys of all records that are asked for.
    pub(crate) fn keys(&self, which: impl Fn(&str) -> bool) -> Result<Vec<LeaseKey>, Unavailable> {
        let Some(opened) = &self.opened else { return Ok(Vec::new()) };
        let mut keys = Vec::new();
        let listed = each_name(opened, |name| {
            keys.extend(Directory::record_of(name).filter(|key| which(key)).map(LeaseKey::new));
        });
        let failed = |error: Errno| Unavailable::new("list", self.directory.subnets(), error.into());
        listed.map_err(failed).map(|()| keys)
    }

    /// The directory's own stamp, which tells whether a record was made, replaced or removed since; none if it changed
    /// so lately that a further change may leave it as it is.
    pub(crate) fn at_rest(&self) -> Option<Stamp> {
        let found = fstat(self.opened.as_ref()?).ok()?;
        let changed = UNIX_EPOCH + Duration::from_secs(u64::try_from(found.st_ctime).ok()?);
        changed.elapsed().is_ok_and(|age| age > REST).then(|| Stamp::of(&found))
    }

    /// The stamp of a record's file; none if there is none.
    pub(crate) fn stamp(&self, key: &LeaseKey) -> Result<Option<Stamp>, Unavailable> {
        let Some(opened) = &self.opened else { return Ok(None) };
        match statat(opened, format!("{}{RECORD}", key.as_str()), AtFlags::empty()) {
            Ok(file) => Ok(Some(Stamp::of(&file))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(Unavailable::new("look at", self.directory.record(key), error.into())),
        }
    }

    /// Reads the text of a record, cut after more bytes than a record may have, and its stamp from before it was read;
    /// none if there is no such record.
    pub(crate) fn read(&self, key: &LeaseKey, text: &mut Vec<u8>) -> io::Result<Option<Stamp>> {
        let Some(opened) = &self.opened else { return Ok(None) };
        read_bounded(opened.as_fd(), Path::new(&format!("{}{RECORD}", key.as_str())), text)
    }

    /// Names a record that cannot be read.
    pub(crate) fn unreadable(&self, key: &LeaseKey, source: io::Error) -> Unavailable {
        Unavailable::new("read", self.directory.record(key), source)
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The names in a directory, those that are no UTF-8 with replacement characters.
fn each_name(opened: &OwnedFd, mut each: impl FnMut(&str)) -> Result<(), Errno> {
    // A descriptor of its own: another look through this one may be under way.
    let listed = openat(opened, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = Vec::with_capacity(LISTING);
    let mut entries = RawDir::new(listed, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        each(&entry?.file_name().to_string_lossy());
    }
    Ok(())
}

/// Reads a file of a directory, but no more than the longest record and one byte; none if there is none. A pipe in its
/// place does not block, and is empty.
fn read_bounded(at: BorrowedFd<'_>, path: &Path, text: &mut Vec<u8>) -> io::Result<Option<Stamp>> {
    text.clear();
    let file: File = match openat(at, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file.into(),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let found = fstat(&file)?;
    file.take(found.st_size.cast_unsigned().min(LONGEST as u64 + 1)).read_to_end(text)?;
    Ok(Some(Stamp::of(&found)))
}
