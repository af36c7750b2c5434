//! Files put in the places of others, whole or not at all: who opens or starts the old one meanwhile has the old one.
//!
//! Surface: [`install`], and [`unfinished`] for who writes a file anew. It makes no folder, and does not judge what is in a file.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// This process' executable, even after its file was replaced (proc(5)).
pub(crate) const OWN: &str = "/proc/self/exe";

/// Why a file was not put in its place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    /// The source.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// There is a folder in the place.
    #[error("{} is not the name of a file", .0.display())]
    NotAFile(PathBuf),
    /// The copy.
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

impl InstallError {
    /// What to do.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotAFile(_) => Some("give the whole name, with the file's own at its end"),
            Self::Write(_, cause) if cause.kind() == io::ErrorKind::NotFound => Some("make its folder first"),
            // Without capabilities root is as any other user.
            Self::Write(_, cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
                Some("the folder must belong to the user who installs, in a container too")
            }
            _ => None,
        }
    }
}

/// Puts a copy of the source, with its mode, under each of the names in the folder. Nothing changes before all copies are
/// written, so that a full disk leaves what was there.
pub(crate) fn install(source: &Path, folder: &Path, names: &[&OsStr]) -> Result<(), InstallError> {
    let first = || names.first().map_or_else(|| folder.into(), |name| folder.join(name));
    let _locked = lock(folder).map_err(|cause| InstallError::Write(first(), cause))?;
    let copies: Vec<Copy> = names.iter().map(|name| Copy::of(source, folder, name)).collect::<Result<_, _>>()?;
    copies.into_iter().try_for_each(Copy::put)
}

/// Keeps others who install from the folder, until dropped: the names of unfinished copies are the same for all.
fn lock(folder: &Path) -> io::Result<File> {
    let folder = File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?;
    folder.lock()?;
    Ok(folder)
}

/// A copy that is not in its place yet; removed when dropped.
struct Copy {
    unfinished: PathBuf,
    place: PathBuf,
}

impl Copy {
    fn of(source: &Path, folder: &Path, name: &OsStr) -> Result<Self, InstallError> {
        let place = folder.join(name);
        if place.is_dir() {
            return Err(InstallError::NotAFile(place));
        }
        let mut from = File::open(source).map_err(|cause| InstallError::Read(source.into(), cause))?;
        let copy = Self { unfinished: folder.join(unfinished(name)), place };
        copy.write(&mut from).map_err(|cause| InstallError::Write(copy.place.clone(), cause))?;
        Ok(copy)
    }

    /// Writes it, and has it closed before anybody can start it: Linux starts no program that is open for writing (ETXTBSY).
    fn write(&self, from: &mut File) -> io::Result<()> {
        let mut file = File::create(&self.unfinished)?;
        io::copy(from, &mut file)?;
        file.set_permissions(from.metadata()?.permissions())?;
        file.sync_all()
    }

    fn put(self) -> Result<(), InstallError> {
        fs::rename(&self.unfinished, &self.place).map_err(|cause| InstallError::Write(self.place.clone(), cause))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // It may never have been made, or be in its place.
        let _ = fs::remove_file(&self.unfinished);
    }
}

/// A name in the same folder that no runtime takes for a configuration, which go by `.conf`, `.conflist`, `.json`, nor for a plugin,
/// which go by their names.
pub(crate) fn unfinished(name: &OsStr) -> OsString {
    let mut unfinished = OsString::from(".");
    unfinished.push(name);
    unfinished.push(".unfinished");
    unfinished
}
