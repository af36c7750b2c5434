//! `install-plugins DIR [PLUGIN…]`: puts this executable where the container runtime looks for CNI plugins, under the names of
//! those given, or of all.
//!
//! Pods may be started meanwhile: every call runs the old plugin or the new one. Each name gets a file of its own, no link to
//! another: what writes a plugin into one of them later, as an init container of another flannel does, follows links and would
//! change all. The folder must exist.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use flannel_cni::Applet;

use crate::install::{self, InstallError};
use crate::report;

/// This process' executable, even after its file was replaced (proc(5)).
const OWN: &str = "/proc/self/exe";

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
    let (folder, names) = args.split_first().ok_or(PluginsError::NoFolder)?;
    let unknown = |name: &OsString| PluginsError::Unknown(name.clone());
    let known = |name: &OsString| name.to_str().and_then(Applet::by_name).ok_or_else(|| unknown(name));
    let chosen = names.iter().map(known).collect::<Result<Vec<_>, _>>()?;
    let wanted = |plugin: &Applet| chosen.is_empty() || chosen.contains(plugin);
    let plugins = Applet::ALL.into_iter().filter(wanted);
    let names: Vec<&OsStr> = plugins.map(|plugin| OsStr::new(plugin.name())).collect();
    Ok(install::install(Path::new(OWN), Path::new(folder), &names)?)
}
