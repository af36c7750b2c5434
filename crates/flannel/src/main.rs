//! flannel: the daemon, its CNI plugins and the tool, in one executable.
//!
//! The name it is called by says what it is ([`applet`]); each is a subcommand of `flannel` too. Only this crate prints,
//! reads the environment and exits. A plugin's path starts no runtime, no TLS and no logger.

mod applet;
mod etcd;
mod flanneld;
mod host;
mod install;
mod install_conf;
mod install_plugins;
mod plugin;
mod report;
mod tool;

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let is_plugin_call = std::env::var_os("CNI_COMMAND").is_some();
    let (applet, args) = applet::choose(&words, is_plugin_call);
    applet.run(args)
}
