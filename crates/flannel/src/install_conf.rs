//! `install-conf SRC DST`: puts a CNI configuration where the container runtime looks for it, whole or not at all.
//!
//! The copy has its source's mode. The folder must exist: a runtime that has none is not set up for CNI.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::report;

/// Why a configuration was not put in its place. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
enum InstallError {
    #[error("install-conf takes two arguments, SRC and DST, not {0}")]
    Arguments(usize),
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{} is not the name of a file", .0.display())]
    NotAFile(PathBuf),
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

impl InstallError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Arguments(_) => {
                Some("install-conf /etc/kube-flannel/cni-conf.json /etc/cni/net.d/10-flannel.conflist")
            }
            Self::NotAFile(_) => Some("give the whole name, with the file's own at its end"),
            Self::Write(_, cause) if cause.kind() == io::ErrorKind::NotFound => Some("make its folder first"),
            _ => None,
        }
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::from(if matches!(self, Self::Arguments(_)) { 2 } else { 1 })
    }
}

/// Runs the applet.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let result = match args {
        [source, destination] => install(Path::new(source), Path::new(destination)),
        _ => Err(InstallError::Arguments(args.len())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::error(&error, error.hint());
            error.exit_code()
        }
    }
}

fn install(source: &Path, destination: &Path) -> Result<(), InstallError> {
    let mut from = File::open(source).map_err(|cause| InstallError::Read(source.into(), cause))?;
    let not_a_file = || InstallError::NotAFile(destination.into());
    let name = destination.file_name().filter(|_| !destination.is_dir()).ok_or_else(not_a_file)?;
    let unfinished = destination.with_file_name(unfinished(name));
    let written = write(&mut from, &unfinished).and_then(|()| fs::rename(&unfinished, destination));
    written.map_err(|cause| {
        // It may never have been made, and what failed before is what to tell.
        let _ = fs::remove_file(&unfinished);
        InstallError::Write(destination.into(), cause)
    })
}

/// A name beside the destination that no runtime takes for a configuration: they go by `.conf`, `.conflist`, `.json`.
fn unfinished(name: &OsStr) -> OsString {
    let mut unfinished = OsString::from(".");
    unfinished.push(name);
    unfinished.push(format!(".{}", std::process::id()));
    unfinished
}

fn write(from: &mut File, to: &Path) -> io::Result<()> {
    let mut file = File::create(to)?;
    io::copy(from, &mut file)?;
    file.set_permissions(from.metadata()?.permissions())?;
    file.sync_all()
}
