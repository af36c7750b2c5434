//! `flannel install`: the executable, the plugins, their configuration, the service and its flags.
//!
//! Done again it changes only what differs, which is how an upgrade is done. What a person may have edited stays: the
//! CNI configuration, and the flags unless new ones are given. Another's plugins stay, but for the plugin flannel.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use flannel_cni::Applet;
use flannel_daemon::flags::{self, FlagError};

use super::{ENVIRONMENT, Hand, MAKE, NotDone, Places, UNIT, WRITE, environment, is_own, say, unit, with_name};
use crate::{install, install_plugins, report};

const CNI_CONF: &str = include_str!("../../../../deploy/cni-conf.json");

/// Put flannel on this host as a service of systemd: the executable, the CNI plugins and their configuration, the service and its flags.
#[derive(Debug, Parser)]
#[command(name = "flannel install", bin_name = "flannel install", disable_version_flag = true)]
struct Call {
    #[command(flatten)]
    places: Places,
    /// Do not start the service.
    #[arg(long)]
    no_start: bool,
    /// The flags that flanneld is to have; those it has stay if none are given. At first: --ip-masq.
    #[arg(last = true, value_name = "FLAG")]
    flags: Vec<OsString>,
}

/// Why it is not installed.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error(transparent)]
    Flags(#[from] FlagError),
    #[error("a flag's value cannot be written in {ENVIRONMENT}: it has a quote or a control character in it")]
    Unwritable,
    #[error("{0} is in the way: it is none of ours")]
    InTheWay(String),
    #[error(transparent)]
    NotDone(#[from] NotDone),
}

impl SetupError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Flags(error) => error.hint(),
            Self::Unwritable => Some(format!("leave the flag out, and write it in {ENVIRONMENT} afterwards")),
            Self::InTheWay(_) => Some("move it away, or choose another --prefix".into()),
            Self::NotDone(_) => Some("root may do this; what was done before stays, and is not done again".into()),
        }
    }
}

/// Runs the tool.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let call = match Call::try_parse_from(with_name("flannel install", args)) {
        Ok(call) => call,
        Err(error) => return report::usage(&error),
    };
    match install(&call) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::error(&error, error.hint().as_deref());
            ExitCode::from(if matches!(error, SetupError::Flags(_)) { 2 } else { 1 })
        }
    }
}

fn install(Call { places, no_start, flags }: &Call) -> Result<(), SetupError> {
    let environment = environment(flags)?;
    let mut hand = Hand::new(places);
    executable(&mut hand, places)?;
    plugins(&mut hand, places)?;
    if !places.conf().exists() {
        hand.folder(&places.cni_conf)?;
        hand.file(&places.conf(), CNI_CONF, 0o644)?;
    }
    if !flags.is_empty() || !Path::new(ENVIRONMENT).exists() {
        hand.folder(Path::new(ENVIRONMENT).parent().unwrap_or(Path::new("/")))?;
        hand.file(Path::new(ENVIRONMENT), &environment, 0o600)?;
    }
    hand.folder(Path::new(UNIT).parent().unwrap_or(Path::new("/")))?;
    hand.file(Path::new(UNIT), &unit::text(places), 0o644)?;
    if hand.deeds == 0 {
        say(format_args!("all of it is here already"));
    } else if !no_start {
        unit::systemctl(&mut hand, &["daemon-reload"])?;
        unit::systemctl(&mut hand, &["enable", unit::NAME])?;
        // Who starts has to wait for etcd, and others need not.
        unit::systemctl(&mut hand, &["restart", "--no-block", unit::NAME])?;
    }
    Ok(())
}

/// The file of the flags given, or of those at first.
fn environment(flags: &[OsString]) -> Result<String, SetupError> {
    let first = [OsString::from("--ip-masq")];
    let words = if flags.is_empty() { &first } else { flags };
    environment::text(&flags::variables(words.iter().cloned())?).ok_or(SetupError::Unwritable)
}

fn executable(hand: &mut Hand, places: &Places) -> Result<(), SetupError> {
    let (executable, daemon) = (places.executable(), places.daemon());
    let folder = places.prefix.join("bin");
    let link = Path::new("flannel");
    let there = fs::symlink_metadata(&daemon);
    let is_linked = fs::read_link(&daemon).is_ok_and(|target| target == link);
    if !is_linked && !there.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        return Err(SetupError::InTheWay(daemon.display().to_string()));
    }
    hand.folder(&folder)?;
    if !is_own(&executable) {
        hand.act(WRITE, executable.display(), || {
            install::install(Path::new(install::OWN), &folder, &[OsStr::new("flannel")])
                .map_err(|error| report::chain(&error))
        })?;
    }
    if !is_linked {
        hand.act(MAKE, format_args!("{} -> {}", daemon.display(), link.display()), || {
            std::os::unix::fs::symlink(link, &daemon)
        })?;
    }
    Ok(())
}

fn plugins(hand: &mut Hand, places: &Places) -> Result<(), NotDone> {
    let folder = &places.cni_bin;
    hand.folder(folder)?;
    let is_wanted = |name: &&str| *name == Applet::Flannel.name() || !install_plugins::is_of_others(folder, name);
    let names: Vec<&str> = Applet::ALL.map(Applet::name).into_iter().filter(is_wanted).collect();
    for name in names.into_iter().filter(|name| !is_own(&folder.join(name))) {
        hand.act(WRITE, folder.join(name).display(), || {
            install::install(Path::new(install::OWN), folder, &[OsStr::new(name)])
                .map_err(|error| report::chain(&error))
        })?;
    }
    Ok(())
}
