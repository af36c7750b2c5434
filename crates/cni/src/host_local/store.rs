//! The files of `host-local`, in the Go plugin's format: `<dataDir>/<network>/<address>` holds `<container>\r\n<interface>`
//! without a line break at its end, `last_reserved_ip.<n>` the address given last of range set n, `lock` is for flock(2).
//!
//! A record appears whole or not at all: it is written beside and renamed. One that is empty was left by a writer that was
//! killed between creating and writing it; since writers hold the lock, it is nobody's and its address is free.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags, openat};

use crate::protocol::file;

/// A record while it is written. Its name is no address, so nobody takes it for one.
const UNFINISHED: &str = ".new";

/// The longest text of an address with white space around it that is read, in bytes.
const LAST_RESERVED: u64 = 256;

/// Who owns an address.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// The container.
    pub container_id: &'a str,
    /// Its interface.
    pub ifname: &'a str,
}

impl Owner<'_> {
    fn record(self) -> String {
        format!("{}\r\n{}", self.container_id, self.ifname)
    }
}

/// A network's folder, locked until dropped.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    lock: File,
}

impl Store {
    /// Opens and locks a network's folder, making it where it is absent.
    pub fn create(data_dir: &Path, network: &str) -> Result<Self, StoreError> {
        let dir = data_dir.join(network);
        let made = DirBuilder::new().recursive(true).mode(0o755).create(&dir);
        made.map_err(|cause| StoreError::new("create folder", &dir, cause))?;
        Self::lock(dir)
    }

    /// Opens and locks a network's folder; none if it does not exist.
    ///
    /// An empty folder is as good as none: an ADD that found the disk full left it, and the lock's file could not be made now either.
    pub fn open(data_dir: &Path, network: &str) -> Result<Option<Self>, StoreError> {
        let dir = data_dir.join(network);
        let is_empty = || fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_none());
        match Self::lock(dir.clone()) {
            Ok(store) => Ok(Some(store)),
            Err(error) if error.cause.kind() == ErrorKind::NotFound || is_empty() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn lock(dir: PathBuf) -> Result<Self, StoreError> {
        let path = dir.join("lock");
        let file = file::open_lock(&path, 0o750, true).map_err(|cause| StoreError::new("open", &path, cause))?;
        file.lock().map_err(|cause| StoreError::new("lock", &path, cause))?;
        Ok(Self { dir, lock: file })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every address that has a record, whatever that says: nobody is named, and what killed writers left counts.
    pub fn names(&self) -> Result<Taken, StoreError> {
        let mut taken = Taken::default();
        self.each_name(|name| {
            if let Some(address) = address_of(name) {
                taken.records.insert(address, String::new());
            }
            Ok(())
        })?;
        Ok(taken)
    }

    /// Reads all records.
    pub fn taken(&self) -> Result<Taken, StoreError> {
        let mut taken = Taken::default();
        self.each_file(|_, name, record| {
            if let (Some(address), false) = (address_of(name), record.is_empty()) {
                taken.records.insert(address, record.to_owned());
            }
            Ok(())
        })?;
        Ok(taken)
    }

    /// The address given last of a range set; none when that was never written down, or not whole.
    pub fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        file::read_text(&self.last_reserved_path(set), LAST_RESERVED).ok()?.trim().parse().ok()
    }

    fn last_reserved_path(&self, set: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{set}"))
    }

    /// Writes down an owner's addresses, one of each range set in order, which must be free. When one cannot be written,
    /// those before it are taken back.
    pub fn reserve(&mut self, addresses: &[IpAddr], owner: Owner<'_>) -> Result<(), StoreError> {
        for (set, address) in addresses.iter().enumerate() {
            if let Err(error) = self.write_record(set, *address, owner) {
                for address in &addresses[..=set] {
                    _ = fs::remove_file(self.dir.join(address.to_string()));
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn write_record(&self, set: usize, address: IpAddr, owner: Owner<'_>) -> Result<(), StoreError> {
        let (unfinished, path) = (self.dir.join(UNFINISHED), self.dir.join(address.to_string()));
        let failed = |cause| StoreError::new("write", &path, cause);
        write(&unfinished, &owner.record()).map_err(failed)?;
        fs::rename(&unfinished, &path).map_err(failed)?;
        let last = self.last_reserved_path(set);
        write(&last, &address.to_string()).map_err(|cause| StoreError::new("write", &last, cause))
    }

    /// When an address was given; none when it is not.
    pub fn written(&self, address: IpAddr) -> Option<SystemTime> {
        fs::metadata(self.dir.join(address.to_string())).and_then(|status| status.modified()).ok()
    }

    /// Frees addresses, whoever has them.
    pub fn free(&mut self, addresses: &[IpAddr]) -> Result<(), StoreError> {
        addresses.iter().map(|address| self.dir.join(address.to_string())).try_for_each(|path| {
            ignore_absent(fs::remove_file(&path)).map_err(|cause| StoreError::new("remove", &path, cause))
        })
    }

    /// Frees those of some addresses that an owner holds. Tells whether there were any.
    pub fn release_known(&mut self, owner: Owner<'_>, addresses: &[IpAddr]) -> Result<bool, StoreError> {
        let record = owner.record();
        let dir = File::open(&self.dir).map_err(|cause| StoreError::new("open", &self.dir, cause))?;
        let is_owners =
            |address: &IpAddr| read_record(&dir, &address.to_string()).is_ok_and(|found| found.trim() == record);
        let held: Vec<_> = addresses.iter().copied().filter(is_owners).collect();
        self.free(&held).map(|()| !held.is_empty())
    }

    /// Leaves it to somebody else, perhaps elsewhere, to look for what an owner holds besides. The lock goes along: nobody gets an address before
    /// that is known.
    pub fn unsearched(self, owner: Owner<'_>) -> Unsearched {
        let dir = std::path::absolute(&self.dir).unwrap_or(self.dir);
        Unsearched { record: owner.record(), store: Self { dir, lock: self.lock } }
    }

    /// Frees what an owner holds. Records of the time before interfaces were written down are the container's whole.
    pub fn release(&mut self, owner: Owner<'_>) -> Result<(), StoreError> {
        let record = owner.record();
        if !self.remove_where(|found| found == record)? {
            self.remove_where(|found| found == owner.container_id)?;
        }
        Ok(())
    }

    /// Frees what owners hold that are told by container and interface; the old records have none.
    pub fn release_where(&mut self, gone: impl Fn(&str, Option<&str>) -> bool) -> Result<(), StoreError> {
        self.remove_where(|record| {
            let (id, ifname) = owner_of(record);
            gone(id, ifname)
        })
        .map(drop)
    }

    /// Removes records by content, and with them what killed writers have left. Tells whether any matched.
    fn remove_where(&self, matches: impl Fn(&str) -> bool) -> Result<bool, StoreError> {
        let mut any = false;
        self.each_file(|path, name, record| {
            let is_record = address_of(name).is_some();
            if name == UNFINISHED || is_record && (record.is_empty() || matches(record)) {
                any |= is_record && !record.is_empty();
                ignore_absent(fs::remove_file(path)).map_err(|cause| StoreError::new("remove", path, cause))?;
            }
            Ok(())
        })?;
        Ok(any)
    }

    /// Shows the name of each file.
    fn each_name(&self, mut show: impl FnMut(&str) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let failed = |cause| StoreError::new("list", &self.dir, cause);
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            name.to_str().map_or(Ok(()), &mut show)?;
        }
        Ok(())
    }

    /// Shows each file's path, name and trimmed content, except those that are no records.
    fn each_file(&self, mut show: impl FnMut(&Path, &str, &str) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let dir = File::open(&self.dir).map_err(|cause| StoreError::new("open", &self.dir, cause))?;
        self.each_name(|name| {
            if name != UNFINISHED && address_of(name).is_none() {
                return Ok(());
            }
            let path = self.dir.join(name);
            let record = read_record(&dir, name).map_err(|cause| StoreError::new("read", &path, cause))?;
            show(&path, name, record.trim())
        })
    }
}

/// A folder in which the records of an owner whose address was freed are still to be looked for: an ADD that was killed may have left
/// one, and to read those of hundreds of containers takes longer than all else that a DEL does.
#[derive(Debug)]
pub struct Unsearched {
    store: Store,
    record: String,
}

impl Unsearched {
    /// Frees what is found, and unlocks.
    pub fn search(self) -> Result<(), StoreError> {
        self.store.remove_where(|found| found == self.record).map(drop)
    }
}

/// The lock.
impl AsRawFd for Unsearched {
    fn as_raw_fd(&self) -> RawFd {
        self.store.lock.as_raw_fd()
    }
}

/// The addresses that have an owner.
#[derive(Debug, Default)]
pub struct Taken {
    records: HashMap<IpAddr, String>,
}

impl Taken {
    /// How many.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether an address has an owner.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.records.contains_key(&address)
    }

    /// Who has an address, for people: the container and its interface.
    pub fn holder(&self, address: IpAddr) -> Option<String> {
        let (id, ifname) = owner_of(self.records.get(&address)?);
        Some(ifname.map_or_else(|| id.to_owned(), |ifname| format!("{id} ({ifname})")))
    }

    /// Those of owners that are told by container and interface; the old records have none.
    pub fn where_owner(mut self, is: impl Fn(&str, Option<&str>) -> bool) -> Self {
        self.records.retain(|_, record| {
            let (id, ifname) = owner_of(record);
            is(id, ifname)
        });
        self
    }

    /// The owners by container and interface, once for each address; without those of old records, which have none.
    pub fn owners(&self) -> impl Iterator<Item = (&str, &str)> {
        self.records.values().filter_map(|record| record.split_once("\r\n"))
    }

    /// The addresses of each owner, by record.
    pub fn by_owner(&self) -> BTreeMap<&str, Vec<IpAddr>> {
        let mut owners: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
        for (address, record) in &self.records {
            owners.entry(record).or_default().push(*address);
        }
        owners
    }

    /// An owner's addresses. Records of the time before interfaces were written down are the container's whole.
    pub fn of(&self, owner: Owner<'_>) -> impl Iterator<Item = IpAddr> {
        let record = owner.record();
        let records = self.records.iter();
        let own = records.filter(move |(_, found)| **found == record || found.as_str() == owner.container_id);
        own.map(|(address, _)| *address)
    }
}

/// The address that a file is the record of. In another spelling it would have a second owner: such a file is no record.
fn address_of(name: &str) -> Option<IpAddr> {
    name.parse().ok().filter(|address: &IpAddr| address.to_string() == name)
}

/// Container and interface of a record; those of the time before interfaces were written down have none.
fn owner_of(record: &str) -> (&str, Option<&str>) {
    record.split_once("\r\n").map_or((record, None), |(id, ifname)| (id, Some(ifname)))
}

/// A record is a few dozen bytes: one read in a buffer on the stack takes it whole, and no one needs more of a longer file.
fn read_record(dir: &File, name: &str) -> io::Result<String> {
    let mut buffer = [0; 512];
    let file = match openat(dir, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()) {
        Err(error) if error == rustix::io::Errno::NOENT => return Ok(String::new()),
        opened => opened?,
    };
    let read = rustix::io::read(&file, &mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..read]).into_owned())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    file::create(path)?.write_all(text.as_bytes())
}

fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// A file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("host-local: cannot {action} {}: {cause}", path.display())]
pub struct StoreError {
    action: &'static str,
    path: PathBuf,
    cause: io::Error,
}

impl StoreError {
    fn new(action: &'static str, path: &Path, cause: io::Error) -> Self {
        Self { action, path: path.into(), cause }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> String {
        let dir = self.path.parent().unwrap_or(&self.path).display();
        match self.cause.kind() {
            ErrorKind::StorageFull => format!("make room on the file system of {dir}"),
            ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
                format!("make {dir} writable, or set `ipam.dataDir` to a folder that is")
            }
            _ => format!("check the file system of {dir}, or set `ipam.dataDir` to another folder"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("host-local-{}-{name}", std::process::id()));
            _ = fs::remove_dir_all(&path);
            Self(path)
        }
        fn store(&self) -> Store {
            Store::create(&self.0, "n").unwrap()
        }
        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.0.join("n")).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
        fn text(&self, name: &str) -> String {
            fs::read_to_string(self.0.join("n").join(name)).unwrap()
        }
        fn put(&self, name: &str, text: &str) {
            fs::write(self.0.join("n").join(name), text).unwrap();
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }

    const OWNER: Owner<'_> = Owner { container_id: "c1", ifname: "eth0" };

    fn addresses(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn records_have_the_go_plugins_format() {
        use std::os::unix::fs::MetadataExt;
        let folder = Folder::new("format");
        folder.store().reserve(&addresses(&["10.1.0.2", "fd00::2"]), OWNER).unwrap();
        assert_eq!(folder.names(), ["10.1.0.2", "fd00::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]);
        assert_eq!(folder.text("10.1.0.2"), "c1\r\neth0");
        assert_eq!(folder.text("last_reserved_ip.1"), "fd00::2");
        let mode = |name: &str| fs::metadata(folder.0.join("n").join(name)).unwrap().mode() & 0o777;
        assert_eq!((mode("."), mode("lock"), mode("fd00::2")), (0o755, 0o750, 0o600));
        assert_eq!(folder.store().last_reserved(0), Some("10.1.0.2".parse().unwrap()));
        folder.store().release(OWNER).unwrap();
        assert_eq!(folder.names(), ["last_reserved_ip.0", "last_reserved_ip.1", "lock"]);
    }

    #[test]
    fn releases_are_by_content() {
        let folder = Folder::new("release");
        drop(folder.store());
        for (name, text) in
            [("10.1.0.2", "c1\r\neth0"), ("10.1.0.3", "c1\r\neth1"), ("10.1.0.4", "c1"), ("10.1.0.5", "c10\r\neth0")]
        {
            folder.put(name, text);
        }
        assert_eq!(folder.store().taken().unwrap().of(OWNER).count(), 2);
        folder.store().release(OWNER).unwrap();
        assert_eq!(folder.names(), ["10.1.0.3", "10.1.0.4", "10.1.0.5", "lock"]);
        folder.store().release(OWNER).unwrap();
        assert_eq!(folder.names(), ["10.1.0.3", "10.1.0.5", "lock"]);
    }

    #[test]
    fn what_killed_writers_left_is_nobodys() {
        let folder = Folder::new("killed");
        drop(folder.store());
        folder.put("10.1.0.2", "");
        folder.put(UNFINISHED, "c1\r\n");
        folder.put("last_reserved_ip.0", "10.1.");
        let taken = folder.store().taken().unwrap();
        assert!(taken.is_empty() && !taken.holds("10.1.0.2".parse().unwrap()));
        assert_eq!(folder.store().last_reserved(0), None);
        folder.store().release(OWNER).unwrap();
        assert_eq!(folder.names(), ["last_reserved_ip.0", "lock"]);
    }

    #[test]
    fn an_absent_folder_is_nothing_to_free() {
        let folder = Folder::new("absent");
        assert!(Store::open(&folder.0, "n").unwrap().is_none());
        assert!(!folder.0.exists());
    }
}
