//! The delegate's configuration on disk: `<dataDir>/<containerID>`, 0600 in a folder 0700, written whole or not at all.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::protocol::conf::{LIMIT, NetConf};
use crate::protocol::environment::is_identifier;
use crate::protocol::failure::{Explain, code};
use crate::protocol::file;

/// Where one container's configuration is saved.
#[derive(Debug)]
pub(super) struct SavedConf {
    dir: PathBuf,
    path: PathBuf,
    /// The file while it is written. Container names begin with a letter or digit, so it is nobody's.
    unfinished: PathBuf,
}

/// Removes what is saved of a network's containers that are gone.
pub(super) fn remove_stale(dir: &Path, network: &str, is_gone: impl Fn(&str) -> bool) -> Result<(), SaveError> {
    let entries = match fs::read_dir(dir) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|cause| SaveError { action: "list", path: dir.into(), cause })?,
    };
    for name in entries.filter_map(Result::ok).filter_map(|entry| entry.file_name().into_string().ok()) {
        let saved = SavedConf::new(dir, &name);
        // What does not say whose it is may be another network's.
        let of_network = || matches!(saved.read(), Ok(Saved::Whole(conf)) if conf.name == network);
        if is_identifier(&name) && is_gone(&name) && of_network() {
            saved.remove()?;
        }
    }
    Ok(())
}

/// What is there.
#[derive(Debug, PartialEq)]
pub(super) enum Saved {
    /// A configuration.
    Whole(NetConf),
    /// Something that no ADD of ours has written.
    Broken,
    /// Nothing.
    Absent,
}

impl SavedConf {
    /// The place for a container, whose name is fit to be a file name.
    pub(super) fn new(dir: &Path, container_id: &str) -> Self {
        Self { dir: dir.into(), path: dir.join(container_id), unfinished: dir.join(format!(".{container_id}")) }
    }

    /// The file's name, for messages.
    pub(super) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Saves a configuration, making the folder where it is absent.
    pub(super) fn write(&self, conf: &[u8]) -> Result<(), SaveError> {
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
            file::create(&self.unfinished)?.write_all(conf)?;
            fs::rename(&self.unfinished, &self.path)
        };
        write().map_err(|cause| {
            _ = fs::remove_file(&self.unfinished);
            SaveError { action: "save", path: self.path.clone(), cause }
        })
    }

    /// Reads what is there.
    pub(super) fn read(&self) -> Result<Saved, SaveError> {
        match file::read(&self.path, LIMIT) {
            Ok(text) => Ok(NetConf::read(&mut text.as_slice()).map_or(Saved::Broken, Saved::Whole)),
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(Saved::Absent),
            Err(cause) if cause.kind() == ErrorKind::FileTooLarge => Ok(Saved::Broken),
            Err(cause) => Err(SaveError { action: "read", path: self.path.clone(), cause }),
        }
    }

    /// Removes it, and what a killed ADD may have left beside it.
    pub(super) fn remove(&self) -> Result<(), SaveError> {
        for path in [&self.unfinished, &self.path] {
            if let Err(cause) = fs::remove_file(path)
                && cause.kind() != ErrorKind::NotFound
            {
                return Err(SaveError { action: "remove", path: path.clone(), cause });
            }
        }
        Ok(())
    }
}

/// The file cannot be written, read or removed.
#[derive(Debug, thiserror::Error)]
#[error("flannel: cannot {action} the delegate's configuration {}: {cause}", path.display())]
pub(super) struct SaveError {
    action: &'static str,
    path: PathBuf,
    cause: io::Error,
}

impl Explain for SaveError {
    fn code(&self) -> u32 {
        code::OTHER
    }

    fn hint(&self) -> String {
        let dir = self.path.parent().unwrap_or(&self.path).display();
        format!("check the file system of {dir}, or set `dataDir` in the network configuration to another folder")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_configuration_is_saved_whole_and_privately() {
        let dir = std::env::temp_dir().join(format!("saved-{}", std::process::id()));
        _ = fs::remove_dir_all(&dir);
        let saved = SavedConf::new(&dir, "c1");
        assert_eq!(saved.read().unwrap(), Saved::Absent);
        saved.remove().unwrap();
        saved.write(br#"{"name":"n"}"#).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join("c1"))), (0o700, 0o600));
        assert!(matches!(saved.read().unwrap(), Saved::Whole(conf) if conf.name == "n"));
        for broken in ["", "{\"na", "{}", "[]"] {
            fs::write(dir.join("c1"), broken).unwrap();
            assert_eq!(saved.read().unwrap(), Saved::Broken);
        }
        fs::write(dir.join("c1"), vec![b' '; LIMIT as usize + 1]).unwrap();
        assert_eq!(saved.read().unwrap(), Saved::Broken);
        fs::write(dir.join(".c1"), "{").unwrap();
        saved.remove().unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir_all(&dir).unwrap();
    }
}
