//! What this executable can be, and which of it a call means.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::{flanneld, install_conf, install_plugins, plugin, tool};

/// Something this executable can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applet {
    /// The daemon.
    Daemon,
    /// A CNI plugin.
    Plugin(flannel_cni::Applet),
    /// Puts a CNI configuration in its place.
    InstallConf,
    /// Puts this executable in the place of CNI plugins.
    InstallPlugins,
    /// The tool for people.
    Tool,
}

/// The applets of this crate that have a name of their own.
const OWN: [(&str, Applet); 3] =
    [("flanneld", Applet::Daemon), ("install-conf", Applet::InstallConf), ("install-plugins", Applet::InstallPlugins)];

/// The names this executable is linked under, `flannel` first.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    flannel_cni::Applet::ALL.into_iter().map(flannel_cni::Applet::name).chain(OWN.map(|(name, _)| name))
}

/// The applet that a command line means, and its arguments: the name it was called by, else the subcommand; `flannel`
/// without one of these is the plugin when a runtime calls it, and the tool for people.
pub(crate) fn choose(words: &[OsString], is_plugin_call: bool) -> (Applet, &[OsString]) {
    let (own, args) = words.split_first().map_or((None, words), |(own, args)| (Path::new(own).file_name(), args));
    if let Some(applet) = own.and_then(|name| by_name(name.to_str()?)) {
        return (applet, args);
    }
    if let Some((name, rest)) = args.split_first()
        && let Some(applet) = name.to_str().and_then(by_name)
    {
        return (applet, rest);
    }
    (if is_plugin_call { Applet::Plugin(flannel_cni::Applet::Flannel) } else { Applet::Tool }, args)
}

/// The applet that a name means whatever the environment says: that is every one but `flannel`.
fn by_name(name: &str) -> Option<Applet> {
    let own = OWN.into_iter().find(|(known, _)| *known == name).map(|(_, applet)| applet);
    let plugin = || flannel_cni::Applet::by_name(name).filter(|plugin| *plugin != flannel_cni::Applet::Flannel);
    own.or_else(|| plugin().map(Applet::Plugin))
}

impl Applet {
    /// Runs to the end of the process.
    pub(crate) fn run(self, args: &[OsString]) -> ExitCode {
        match self {
            Self::Daemon => flanneld::main(args),
            Self::Plugin(plugin) => plugin::main(plugin),
            Self::InstallConf => install_conf::main(args),
            Self::InstallPlugins => install_plugins::main(args),
            Self::Tool => tool::main(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_means_one_applet() {
        let flannel = Applet::Plugin(flannel_cni::Applet::Flannel);
        let bridge = Applet::Plugin(flannel_cni::Applet::Bridge);
        for (words, is_plugin_call, applet, args) in [
            (vec!["/opt/cni/bin/flannel"], true, flannel, 0),
            (vec!["/opt/bin/flanneld", "-v=1"], false, Applet::Daemon, 1),
            (vec!["flannel"], false, Applet::Tool, 0),
            (vec!["flannel", "lab"], false, Applet::Tool, 1),
            (vec!["/opt/cni/bin/bridge"], true, bridge, 0),
            (vec!["flannel", "bridge"], true, bridge, 0),
            (vec!["flannel-0.1.0", "install-conf", "a", "b"], false, Applet::InstallConf, 2),
            (vec!["/other/name"], true, flannel, 0),
            (vec![], false, Applet::Tool, 0),
        ] {
            let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
            let (chosen, rest) = choose(&words, is_plugin_call);
            assert_eq!((chosen, rest.len()), (applet, args), "{words:?}");
        }
    }
}
