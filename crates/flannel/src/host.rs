//! `flannel install` and `flannel uninstall`: flannel on a host without Kubernetes, as a service of systemd.
//!
//! [`setup`] puts it there and [`leave`] takes it away; either can be told to only say what it would do. Both say each object that they
//! change, in a line, and nothing of what is as it should be.

mod environment;
mod leave;
mod setup;
mod unit;

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::fs;
use std::io::{self, ErrorKind, Write, stdout};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;

pub(crate) use self::leave::main as uninstall;
pub(crate) use self::setup::main as install;
use crate::install::{OWN, unfinished};

/// The flags of the daemon, as variables.
const ENVIRONMENT: &str = "/etc/flannel/flanneld.env";
/// The service.
const UNIT: &str = "/etc/systemd/system/flanneld.service";
/// The CNI configuration, in its folder.
const CONF: &str = "10-flannel.conflist";

/// Where things are.
#[derive(Debug, Args)]
pub(crate) struct Places {
    /// Where the executable is: PREFIX/bin.
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,
    /// Where the container runtime has its CNI plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin: PathBuf,
    /// Where the container runtime looks for its CNI configuration.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf: PathBuf,
    /// Say what would be done, an object a line, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Places {
    fn executable(&self) -> PathBuf {
        self.prefix.join("bin/flannel")
    }

    fn daemon(&self) -> PathBuf {
        self.prefix.join("bin/flanneld")
    }

    fn conf(&self) -> PathBuf {
        self.cni_conf.join(CONF)
    }
}

/// Something that could not be done.
#[derive(Debug, thiserror::Error)]
#[error("cannot {deed} {object}: {cause}")]
struct NotDone {
    deed: &'static str,
    object: String,
    cause: String,
}

/// What can be done to an object: to do it, and done.
type Deed = (&'static str, &'static str);

const MAKE: Deed = ("make", "made");
const WRITE: Deed = ("write", "wrote");
const REMOVE: Deed = ("remove", "removed");
const RELEASE: Deed = ("release", "released");
const RUN: Deed = ("run", "ran");

/// Does things, or says what it would do.
struct Hand {
    dry_run: bool,
    deeds: usize,
    /// What is gone, or would be.
    removed: Vec<PathBuf>,
}

impl Hand {
    fn new(places: &Places) -> Self {
        Self { dry_run: places.dry_run, deeds: 0, removed: Vec::new() }
    }

    /// Does one thing to one object, and says so.
    fn act<E: Display>(
        &mut self,
        (deed, done): Deed,
        object: impl Display,
        act: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), NotDone> {
        let object = object.to_string();
        if !self.dry_run {
            act().map_err(|cause| NotDone { deed, object: object.clone(), cause: cause.to_string() })?;
        }
        self.deeds += 1;
        say(format_args!("{} {object}", if self.dry_run { format!("would {deed}") } else { done.to_owned() }));
        Ok(())
    }

    /// Makes a folder that is not there.
    fn folder(&mut self, path: &Path) -> Result<(), NotDone> {
        if path.is_dir() {
            return Ok(());
        }
        self.act(MAKE, path.display(), || fs::create_dir_all(path))
    }

    /// Makes a file say this, whole or not at all.
    fn file(&mut self, path: &Path, text: &str, mode: u32) -> Result<(), NotDone> {
        if fs::read_to_string(path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        self.act(WRITE, path.display(), || replace(path, text, mode))
    }

    /// Removes a file, if it is there.
    fn file_away(&mut self, path: &Path) -> Result<(), NotDone> {
        self.remove(path, |path| fs::remove_file(path))
    }

    /// Removes a folder and what is in it, if it is there.
    fn tree_away(&mut self, path: &Path) -> Result<(), NotDone> {
        self.remove(path, |path| fs::remove_dir_all(path))
    }

    /// Removes the folder of a file, if nothing is left in it.
    fn folder_away(&mut self, of: &Path) -> Result<(), NotDone> {
        let Some((folder, entries)) = of.parent().and_then(|folder| Some((folder, fs::read_dir(folder).ok()?))) else {
            return Ok(());
        };
        let is_empty = entries.flatten().all(|entry| self.removed.contains(&entry.path()));
        if is_empty { self.remove(folder, |folder| fs::remove_dir(folder)) } else { Ok(()) }
    }

    fn remove(&mut self, path: &Path, remove: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), NotDone> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            _ => self.act(REMOVE, path.display(), || remove(path))?,
        }
        self.removed.push(path.to_owned());
        Ok(())
    }
}

fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let unfinished = path.with_file_name(unfinished(path.file_name().unwrap_or_default()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}

/// Whether a file is a copy of this executable.
fn is_own(path: &Path) -> bool {
    let same_size = || Some(fs::metadata(path).ok()?.len() == fs::metadata(OWN).ok()?.len());
    same_size() == Some(true) && fs::read(path).ok() == fs::read(OWN).ok()
}

/// Prints a line. Who closed the other end does not want to know.
fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(stdout(), "{line}");
}

/// What clap is given: a command line begins with the program's name.
fn with_name(name: &str, args: &[OsString]) -> impl Iterator<Item = OsString> {
    std::iter::once(name.into()).chain(args.iter().cloned())
}
