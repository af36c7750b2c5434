//! The plugin `flannel`: turns this node's `subnet.env` into a configuration for a delegate, by default `bridge` with
//! `host-local`, and calls that.
//!
//! Surface: [`call`]. Rooms: [`build`] (the delegate's configuration), [`saved`] (that configuration on disk, from which CHECK
//! and DEL work, whatever `subnet.env` says by then), [`daemon`] (what a person should know when it is not there).

mod build;
mod daemon;
mod saved;

use std::path::Path;

use flannel_core::subnet_env::SubnetEnv;
use flannel_kernel::pod_link::Retired;

use crate::protocol::attachments::Attachments;
use crate::protocol::conf::{ConfError, NetConf};
use crate::protocol::environment::{Call, Verb};
use crate::protocol::failure::{Explain, Failure, code};
use crate::protocol::file;
use crate::{Afterwards, Applet, Outcome, bridge, delegate};

use build::Keys;
use daemon::Daemon;
use saved::{Saved, SavedConf};

/// The longest `subnet.env`, in bytes.
const LONGEST: u64 = 1 << 16;

/// Runs one verb.
pub(crate) fn call(call: &Call<'_>, conf: &NetConf) -> Result<Outcome, Failure> {
    let keys = Keys::read(conf)?;
    let saved = SavedConf::new(&keys.data_dir, call.container_id);
    match call.verb {
        Verb::Add => add(call, conf, &keys, &saved),
        Verb::Del => del(call, conf, &keys, &saved).map(Outcome::from),
        Verb::Check => check(call, conf, &saved).map(Outcome::from),
        Verb::Status => status(&keys).map(Outcome::from),
        Verb::Gc => gc(call, conf, &keys).map(Outcome::from),
        Verb::Version => Ok(Outcome::default()),
    }
}

/// Reads the keys.
pub(crate) fn read(conf: &NetConf) -> Result<(), Failure> {
    Keys::read(conf).map(drop)
}

fn add(call: &Call<'_>, conf: &NetConf, keys: &Keys, saved: &SavedConf) -> Result<Outcome, Failure> {
    let built = build::delegate_conf(conf, keys, &subnet_env(keys, code::OTHER)?)?;
    delegate::check(type_of(&built)?, call, &built)?;
    saved.write(&built.to_bytes())?;
    delegate::run(type_of(&built)?, &call.of_flannel(), &built)
}

/// Undoes what the saved configuration did, and forgets it only when that is done. Without a readable one (the file was
/// lost, or the Go plugin was killed while writing it) undoes what the default delegates would have done.
fn del(call: &Call<'_>, conf: &NetConf, keys: &Keys, saved: &SavedConf) -> Result<Afterwards, Failure> {
    let afterwards = match saved.read()? {
        Saved::Whole(built) => delegate::run(type_of(&built)?, call, &built)?.afterwards,
        Saved::Broken | Saved::Absent => undo_by_name(call, conf, keys)?.into(),
    };
    saved.remove()?;
    Ok(afterwards)
}

/// Takes away the interface, frees the addresses and removes the rules of this container, all found by name.
fn undo_by_name(call: &Call<'_>, conf: &NetConf, keys: &Keys) -> Result<Retired, Failure> {
    let mut retired = Retired::default();
    if keys.delegate_type() == Applet::Bridge.name() {
        retired = bridge::remove_link(call)?;
    }
    if keys.ipam_type() == Applet::HostLocal.name() {
        crate::call_in_process(Applet::HostLocal, call, conf)?;
    }
    if keys.checks_spoofing() {
        bridge::remove_spoof_check(call)?;
    }
    if keys.may_masquerade() && keys.delegate_type() == Applet::Bridge.name() {
        // Where iptables does not work no ADD can have made any.
        _ = bridge::remove_rules(call, &conf.name);
    }
    Ok(retired)
}

/// Has the delegate free what is left of containers that the runtime no longer knows, and forgets what was saved for them.
fn gc(call: &Call<'_>, conf: &NetConf, keys: &Keys) -> Result<Afterwards, Failure> {
    let valid = Attachments::read(conf)?;
    let afterwards = delegate::run(keys.delegate_type(), call, &build::gc_conf(conf, keys)?)?.afterwards;
    saved::remove_stale(&keys.data_dir, &conf.name, |container| !valid.has_container(container))?;
    Ok(afterwards)
}

fn check(call: &Call<'_>, conf: &NetConf, saved: &SavedConf) -> Result<(), Failure> {
    let Saved::Whole(mut built) = saved.read()? else { return Err(FlannelError::NothingSaved(saved.name()).into()) };
    built.keys.extend(conf.keys.get("prevResult").map(|prev| ("prevResult".to_owned(), prev.clone())));
    delegate::run(type_of(&built)?, call, &built).map(drop)
}

/// Ready is a node with a lease: one that has been started since, and on which no daemon runs, has none yet, whatever file it kept.
fn status(keys: &Keys) -> Result<(), Failure> {
    subnet_env(keys, code::NOT_AVAILABLE)?;
    let file = &keys.subnet_file;
    match Daemon::observe() {
        daemon @ Daemon::Absent if daemon::is_of_last_start(file) => {
            Err(FlannelError::Stale { file: file.clone(), daemon }.into())
        }
        _ => Ok(()),
    }
}

fn type_of(built: &NetConf) -> Result<&str, ConfError> {
    built.keys.get("type").and_then(|kind| kind.as_str()).ok_or(ConfError::NotText("type"))
}

fn subnet_env(keys: &Keys, code: u32) -> Result<SubnetEnv, FlannelError> {
    let file = &keys.subnet_file;
    let failed = |cause| FlannelError::SubnetEnv { cause, code, daemon: Daemon::observe() };
    let text = file::read_text(Path::new(file), LONGEST);
    let text = text.map_err(|cause| failed(format!("open {file}: {}", plain(&cause))))?;
    SubnetEnv::parse(file, &text).map_err(|cause| failed(cause.to_string()))
}

/// The kernel's words for an error, in lower case as Go prints them.
fn plain(error: &std::io::Error) -> String {
    error.to_string().to_lowercase()
}

/// The plugin cannot do its part.
#[derive(Debug, thiserror::Error)]
pub enum FlannelError {
    /// What the daemon should have written is not there or not whole.
    #[error("failed to load flannel 'subnet.env' file: {cause}. Check the flannel pod log for this node.")]
    SubnetEnv {
        /// Why.
        cause: String,
        /// How the verb reports it.
        code: u32,
        /// What the daemon does.
        daemon: Daemon,
    },
    /// What the daemon has written is of before the machine was started.
    #[error("flannel: {file} was written before this machine was started")]
    Stale {
        /// The file.
        file: String,
        /// What the daemon does.
        daemon: Daemon,
    },
    /// CHECK of a container that this plugin has not added, or has deleted.
    #[error("flannel: {0} is absent or broken")]
    NothingSaved(String),
}

impl Explain for FlannelError {
    fn code(&self) -> u32 {
        match self {
            Self::SubnetEnv { code, .. } => *code,
            Self::Stale { .. } => code::NOT_AVAILABLE,
            Self::NothingSaved(_) => code::OTHER,
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::SubnetEnv { daemon, .. } | Self::Stale { daemon, .. } => daemon.to_string(),
            Self::NothingSaved(_) => "ADD saves the delegate's configuration there: recreate the container".into(),
        }
    }
}

/// What is built for the delegate, of any configuration, reads back and has a type.
#[cfg(any(test, feature = "laws"))]
pub(crate) fn law(conf: &NetConf) -> Result<(), Failure> {
    let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    let env = SubnetEnv::parse("subnet.env", env).unwrap();
    let built = build::delegate_conf(conf, &Keys::read(conf)?, &env)?;
    assert_eq!((&built.name, built.version), (&conf.name, conf.version));
    type_of(&built).unwrap();
    Ok(())
}
