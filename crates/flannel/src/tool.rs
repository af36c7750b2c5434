//! `flannel` for people: the lab, the records in etcd, and what this executable can be.

use std::ffi::OsString;
use std::io::{Write, stdout};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{applet, etcd, host, report};

/// flannel: a network for the pods of a cluster.
///
/// Called by a container runtime it is the CNI plugin `flannel`. `flannel NAME ARGS` is the same as a link of that name:
/// flanneld, bridge, host-local, portmap, loopback, install-conf, install-plugins.
#[derive(Parser)]
#[command(name = "flannel", version)]
struct Tool {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Lab(Box<flannel_lab::command::LabArgs>),
    /// Look after flannel's records and network config in etcd.
    #[command(disable_help_flag = true)]
    Etcd {
        /// A command of its own, `ls` for example, with flags of flanneld that say how to reach etcd.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// Put flannel on this host, as a service of systemd.
    #[command(disable_help_flag = true)]
    Install {
        /// `--help` tells them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// Take flannel off this host: service, lease, devices, routes, packet rules, files.
    #[command(disable_help_flag = true)]
    Uninstall {
        /// `--help` tells them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// Print the version.
    Version,
    /// Print the names that this executable can be linked under, one a line.
    Applets,
}

/// Runs the tool.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    // Their `--` is theirs.
    match args.split_first() {
        Some((word, args)) if word == "install" => return host::install(args),
        Some((word, args)) if word == "uninstall" => return host::uninstall(args),
        _ => {}
    }
    let words = std::iter::once("flannel".into()).chain(args.iter().cloned());
    match Tool::try_parse_from(words) {
        Ok(Tool { command }) => run(&command),
        Err(error) => report::usage(&error),
    }
}

fn run(command: &Command) -> ExitCode {
    match command {
        Command::Lab(args) => lab(args),
        Command::Etcd { words } => etcd::main(words),
        Command::Install { words } => host::install(words),
        Command::Uninstall { words } => host::uninstall(words),
        Command::Version => print([concat!("v", env!("CARGO_PKG_VERSION"))]),
        Command::Applets => print(applet::names()),
    }
}

fn lab(args: &flannel_lab::command::LabArgs) -> ExitCode {
    match flannel_lab::command::run(args, &mut stdout()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report::error(&error, error.hint());
            ExitCode::from(error.exit_code())
        }
    }
}

fn print<'a>(lines: impl IntoIterator<Item = &'a str>) -> ExitCode {
    let mut out = stdout().lock();
    match lines.into_iter().try_for_each(|line| writeln!(out, "{line}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
