//! What this executable can be, and which of it a call means.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::{install_conf, tool};

/// Something this executable can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applet {
    /// Puts a CNI configuration in its place.
    InstallConf,
    /// The tool for people.
    Tool,
}

/// Every name that means an applet, whatever the environment says.
const NAMES: [(&str, Applet); 1] = [("install-conf", Applet::InstallConf)];

/// The names this executable is linked under, `flannel` first.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    std::iter::once("flannel").chain(NAMES.map(|(name, _)| name))
}

/// The applet that a command line means, and its arguments: the name it was called by, else the subcommand; `flannel`
/// without one of these is the plugin when a runtime calls it, and the tool for people.
pub(crate) fn choose(words: &[OsString]) -> (Applet, &[OsString]) {
    let (own, args) = words.split_first().map_or((None, words), |(own, args)| (Path::new(own).file_name(), args));
    if let Some(applet) = own.and_then(|name| by_name(name.to_str()?)) {
        return (applet, args);
    }
    if let Some((name, rest)) = args.split_first()
        && let Some(applet) = name.to_str().and_then(by_name)
    {
        return (applet, rest);
    }
    (Applet::Tool, args)
}

fn by_name(name: &str) -> Option<Applet> {
    NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, applet)| applet)
}

impl Applet {
    /// Runs to the end of the process.
    pub(crate) fn run(self, args: &[OsString]) -> ExitCode {
        match self {
            Self::InstallConf => install_conf::main(args),
            Self::Tool => tool::main(args),
        }
    }
}
