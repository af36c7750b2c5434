//! `install-plugins [--and-missing] DIR [PLUGIN…]`: puts this executable where the container runtime looks for CNI plugins, under the
//! names of those given, or of all; with `--and-missing` also under the other names that nobody else's plugin has.
//!
//! Pods may be started meanwhile: every call runs the old plugin or the new one. Each name gets a file of its own, no link to
//! another: what writes a plugin into one of them later, as an init container of another flannel does, follows links and would
//! change all. The folder must exist.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use flannel_cni::Applet;

use crate::install::{self, InstallError, OWN};
use crate::report;

/// Asks for the other plugins too, where nobody else's are.
const AND_MISSING: &str = "--and-missing";

/// Why plugins were not put in their places.
#[derive(Debug, thiserror::Error)]
enum PluginsError {
    #[error("install-plugins takes a folder, and may be told which plugins")]
    NoFolder,
    #[error("there is no plugin {} in here", .0.display())]
    Unknown(OsString),
    #[error(transparent)]
    Install(#[from] InstallError),
}

impl PluginsError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoFolder => Some(
                "install-plugins /opt/cni/bin, or for that plugin alone: install-plugins /opt/cni/bin flannel".into(),
            ),
            Self::Unknown(_) => Some(format!("there are {}", Applet::ALL.map(Applet::name).join(", "))),
            Self::Install(InstallError::NotAFile(_)) => Some("a folder of that name is in the way: remove it".into()),
            Self::Install(error) => error.hint().map(str::to_owned),
        }
    }

    fn exit_code(&self) -> ExitCode {
        ExitCode::from(if matches!(self, Self::Install(_)) { 1 } else { 2 })
    }
}

/// Runs the applet.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    match install(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::error(&error, error.hint().as_deref());
            error.exit_code()
        }
    }
}

fn install(args: &[OsString]) -> Result<(), PluginsError> {
    let (and_missing, args) = match args.split_first() {
        Some((first, rest)) if first == AND_MISSING => (true, rest),
        _ => (false, args),
    };
    let (folder, names) = args.split_first().ok_or(PluginsError::NoFolder)?;
    let unknown = |name: &OsString| PluginsError::Unknown(name.clone());
    let known = |name: &OsString| name.to_str().and_then(Applet::by_name).ok_or_else(|| unknown(name));
    let chosen = names.iter().map(known).collect::<Result<Vec<_>, _>>()?;
    let folder = Path::new(folder);
    let wanted = |plugin: &Applet| {
        chosen.is_empty() || chosen.contains(plugin) || and_missing && !is_of_others(folder, plugin.name())
    };
    let plugins = Applet::ALL.into_iter().filter(wanted);
    let names: Vec<&OsStr> = plugins.map(|plugin| OsStr::new(plugin.name())).collect();
    Ok(install::install(Path::new(OWN), folder, &names)?)
}

/// Whether there is a plugin of the name that is none of ours: ours is the same file as the plugin flannel beside it. What cannot be
/// read is somebody's.
pub(crate) fn is_of_others(folder: &Path, name: &str) -> bool {
    match fs::read(folder.join(name)) {
        Ok(there) => fs::read(folder.join(Applet::Flannel.name())).ok() != Some(there),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}
