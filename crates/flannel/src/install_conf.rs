//! `install-conf SRC DST`: puts a CNI configuration where the container runtime looks for it, whole or not at all.
//!
//! The copy has its source's mode. The folder must exist: a runtime that has none is not set up for CNI.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::install::{self, InstallError};
use crate::report;

/// Why a configuration was not put in its place. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
enum ConfError {
    #[error("install-conf takes two arguments, SRC and DST, not {0}")]
    Arguments(usize),
    #[error(transparent)]
    Install(#[from] InstallError),
}

impl ConfError {
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Arguments(_) => {
                Some("install-conf /etc/kube-flannel/cni-conf.json /etc/cni/net.d/10-flannel.conflist")
            }
            Self::Install(error) => error.hint(),
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
        _ => Err(ConfError::Arguments(args.len())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::error(&error, error.hint());
            error.exit_code()
        }
    }
}

fn install(source: &Path, destination: &Path) -> Result<(), ConfError> {
    let not_a_file = || InstallError::NotAFile(PathBuf::from(destination));
    let name = destination.file_name().ok_or_else(not_a_file)?;
    let folder = destination.parent().ok_or_else(not_a_file)?;
    Ok(install::install(source, folder, &[name])?)
}
