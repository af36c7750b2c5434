//! Who has which port, on disk: `<dataDir>/containers/<network>/<container>` says what was published, `<dataDir>/ports/<protocol>-<port>` names
//! who has a port, a line each. `lock` and `restore.lock` are for flock(2): the first for whoever changes files; plugins at work share
//! the second, so that the daemon, which has it alone, makes no rules that one of them is about to make or has just removed.
//!
//! The files of ports only lead to those of containers, so that a port is looked up without reading of all: a line whose container has no file, or
//! has it no more, is nobody's. Every file appears whole or not at all.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use flannel_core::port_map::saved::RESTORE_LOCK;
use flannel_core::port_map::{Mapping, PortMap, saved};

use crate::protocol::failure::{Explain, Failure, code};
use crate::protocol::file;

/// The folder.
#[derive(Debug)]
pub(super) struct Claims {
    dir: PathBuf,
}

/// What is known of a container.
#[derive(Debug, PartialEq)]
pub(super) enum Saved {
    /// What was published of it.
    Whole(Box<PortMap>),
    /// Something that no ADD of ours has written.
    Broken,
    /// Nothing.
    Absent,
}

impl Saved {
    /// Whether it is what its place says: what another file holds would be removed in this one's name.
    fn is_of(&self, network: &str, container: &str) -> bool {
        match self {
            Self::Whole(map) => (map.network.as_str(), map.container.as_str()) == (network, container),
            Self::Broken | Self::Absent => true,
        }
    }
}

/// The longest file that is read, in bytes: thousands of ports of a container, or of containers that once had a port.
const LONGEST: u64 = 1 << 20;

/// The lock, until dropped.
#[derive(Debug)]
pub(super) struct Locked(#[allow(dead_code, reason = "holds the lock")] File);

impl Claims {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }

    /// Writes down what is to be published, unless a container that is still there has one of the ports. Tells whether the container
    /// was written down before, so that some of its rules may be there.
    pub(super) fn claim(
        &self,
        map: &PortMap,
        is_there: impl Fn(&PortMap) -> Result<bool, Failure>,
    ) -> Result<bool, Failure> {
        let before = self.container(map);
        let _locked = self.lock()?;
        let known = before.exists();
        let mut lists = Vec::new();
        for mapping in &map.mappings {
            let (path, mut names) = self.names(mapping)?;
            names.retain(|name| *name != name_of(map));
            self.drop_absent(map, &mut names, &is_there)?;
            names.push(name_of(map));
            lists.push((path, names));
        }
        self.save(map)?;
        for (path, names) in lists {
            write(&path, names.concat().as_bytes())?;
        }
        Ok(known)
    }

    /// Drops the names of those that are there no more; fails at the first of those that are and want the same as the container.
    fn drop_absent(
        &self,
        map: &PortMap,
        names: &mut Vec<String>,
        is_there: impl Fn(&PortMap) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        for name in std::mem::take(names) {
            let Some((network, container)) = name.trim_end().split_once('/') else { continue };
            let Saved::Whole(other) = self.saved(network, container)? else { continue };
            if other.container != map.container
                && let Some(mapping) = map.conflict(&other)
            {
                if !is_there(&other)? {
                    continue;
                }
                return Err(ClaimError::Taken { mapping: *mapping, by: other }.into());
            }
            names.push(name);
        }
        Ok(())
    }

    /// Writes down what is published.
    pub(super) fn save(&self, map: &PortMap) -> Result<(), Failure> {
        Ok(write(&self.container(map), saved::to_text(map).as_bytes())?)
    }

    /// Forgets a container. Succeeds when nothing is known of it.
    pub(super) fn release(&self, network: &str, container: &str, mappings: &[Mapping]) -> Result<(), Failure> {
        if !self.dir.exists() {
            return Ok(());
        }
        // Without the lock's file nobody was ever written down.
        let _locked = self.locked("lock", false, File::lock)?;
        let own = format!("{network}/{container}\n");
        for mapping in mappings {
            let (path, mut names) = self.names(mapping)?;
            names.retain(|name| *name != own);
            if names.is_empty() {
                remove(&path)?;
            } else {
                write(&path, names.concat().as_bytes())?;
            }
            remove(&unfinished(&path))?;
        }
        let path = self.containers().join(network).join(container);
        remove(&unfinished(&path))?;
        Ok(remove(&path)?)
    }

    /// What was published of a container.
    pub(super) fn saved(&self, network: &str, container: &str) -> Result<Saved, Failure> {
        let saved = read(&self.containers().join(network).join(container))?;
        Ok(if saved.is_of(network, container) { saved } else { Saved::Broken })
    }

    /// The containers of a network that are written down.
    pub(super) fn of_network(&self, network: &str) -> Result<Vec<String>, Failure> {
        let dir = self.containers().join(network);
        let entries = match fs::read_dir(&dir) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(ClaimError::file("list", &dir))?,
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.map(|name| name.trim_start_matches('.').to_owned()).collect())
    }

    /// Keeps others from changing anything here.
    pub(super) fn lock(&self) -> Result<Option<Locked>, Failure> {
        Ok(self.locked("lock", true, File::lock)?)
    }

    /// Keeps the daemon from making rules. Other plugins are not kept from anything. None if nobody was ever written down here.
    pub(super) fn keep_restorer_out(&self) -> Result<Option<Locked>, Failure> {
        Ok(self.locked(RESTORE_LOCK, false, File::lock_shared)?)
    }

    /// Makes the folders of a network, and keeps the daemon from making rules.
    pub(super) fn prepare(&self, network: &str) -> Result<Option<Locked>, Failure> {
        make(&self.containers().join(network))?;
        make(&self.ports())?;
        Ok(self.locked(RESTORE_LOCK, true, File::lock_shared)?)
    }

    /// Locks a file, made if it is absent or none.
    fn locked(
        &self,
        name: &str,
        make: bool,
        lock: impl Fn(&File) -> io::Result<()>,
    ) -> Result<Option<Locked>, ClaimError> {
        let path = self.dir.join(name);
        let file = match file::open_lock(&path, 0o600, make) {
            Err(cause) if !make && cause.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.map_err(ClaimError::file("open", &path))?,
        };
        lock(&file).map_err(ClaimError::file("lock", &path))?;
        Ok(Some(Locked(file)))
    }

    fn containers(&self) -> PathBuf {
        self.dir.join(saved::CONTAINERS)
    }

    fn container(&self, map: &PortMap) -> PathBuf {
        self.containers().join(&map.network).join(&map.container)
    }

    fn ports(&self) -> PathBuf {
        self.dir.join("ports")
    }

    /// The file of a port, and who is named there: lines, of which only names are taken.
    fn names(&self, mapping: &Mapping) -> Result<(PathBuf, Vec<String>), ClaimError> {
        let path = self.ports().join(format!("{}-{}", mapping.protocol, mapping.host_port));
        let text = match file::read(&path, LONGEST) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => Vec::new(),
            text => text.map_err(ClaimError::file("read", &path))?,
        };
        let text = String::from_utf8_lossy(&text);
        let is_name = |line: &str| line.split_once('/').is_some_and(|(a, b)| saved::is_word(a) && saved::is_word(b));
        Ok((path, text.lines().filter(|line| is_name(line)).map(|line| format!("{line}\n")).collect()))
    }
}

fn name_of(map: &PortMap) -> String {
    format!("{}/{}\n", map.network, map.container)
}

fn make(dir: &Path) -> Result<(), ClaimError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(ClaimError::file("create folder", dir))
}

/// The file while it is written. Names of containers and ports begin with a letter or digit, so it is nobody's.
fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    path.with_file_name(format!(".{name}"))
}

fn write(path: &Path, text: &[u8]) -> Result<(), ClaimError> {
    let unfinished = unfinished(path);
    let written = file::create(&unfinished)
        .and_then(|mut file| file.write_all(text))
        .and_then(|()| fs::rename(&unfinished, path));
    written.map_err(|cause| {
        _ = fs::remove_file(&unfinished);
        ClaimError::file("write", path)(cause)
    })
}

fn read(path: &Path) -> Result<Saved, ClaimError> {
    match file::read(path, LONGEST) {
        Ok(text) => Ok(saved::parse(&text).map_or(Saved::Broken, |map| Saved::Whole(Box::new(map)))),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(Saved::Absent),
        Err(cause) if cause.kind() == ErrorKind::FileTooLarge => Ok(Saved::Broken),
        Err(cause) => Err(ClaimError::file("read", path)(cause)),
    }
}

fn remove(path: &Path) -> Result<(), ClaimError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => Err(ClaimError::file("remove", path)(cause)),
        _ => Ok(()),
    }
}

/// A port cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClaimError {
    #[error("portmap: host port {mapping} is taken by {} of network {}", by.owner(), by.network)]
    Taken { mapping: Mapping, by: Box<PortMap> },
    #[error("portmap: cannot {action} {}: {cause}", path.display())]
    File { action: &'static str, path: PathBuf, cause: io::Error },
}

impl ClaimError {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::File { action, path: path.into(), cause }
    }
}

impl Explain for ClaimError {
    fn code(&self) -> u32 {
        code::OTHER
    }

    fn hint(&self) -> String {
        match self {
            Self::Taken { .. } => "publish another port or on another host IP, or delete that container".into(),
            Self::File { path, .. } => format!(
                "check the file system of {}, or set `dataDir` in the network configuration to another folder",
                path.parent().unwrap_or(path).display()
            ),
        }
    }
}
