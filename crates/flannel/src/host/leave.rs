//! `flannel uninstall`: the way out. The service, the lease, what is in the kernel, and the files; in this order, so that nobody
//! makes again what was removed.
//!
//! Pods that still run keep what they need to be ended: the bridge they hang on, the plugins and what these have written down, and
//! `subnet.env`, which tells the next time whose the bridge is. They are named, and the rest goes. Whatever fails, the others are tried.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use flannel_cni::Applet;
use flannel_core::port_map::saved::DATA_DIR;
use flannel_daemon::fatal::Fatal;
use flannel_daemon::flags::{self, Command, Flags, StoreChoice};
use flannel_daemon::log;
use flannel_daemon::remains::{BRIDGE, Bridge, Remains};
use flannel_store::Host;
use flannel_store::etcd::Options;
use flannel_store::etcd::operator::Operator;
use flannel_store::local::LocalStore;

use super::{ENVIRONMENT, Hand, NotDone, Places, RELEASE, REMOVE, UNIT, environment, is_own, say, unit, with_name};
use crate::report;

/// What the plugin flannel has written down.
const SAVED: &str = "/var/lib/cni/flannel";

/// Take flannel off this host: its service, its lease, its devices, routes and packet rules, its files. Nothing else is touched.
#[derive(Debug, Parser)]
#[command(name = "flannel uninstall", bin_name = "flannel uninstall", disable_version_flag = true)]
struct Call {
    #[command(flatten)]
    places: Places,
}

/// What went wrong, for the end.
#[derive(Default)]
struct Account {
    failed: Vec<String>,
    /// The links of pods that still run.
    pods: Vec<String>,
}

impl Account {
    fn note<E: Display>(&mut self, result: Result<(), E>) {
        self.failed.extend(result.err().map(|error| error.to_string()));
    }
}

/// Runs the tool.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let places = match Call::try_parse_from(with_name("flannel uninstall", args)) {
        Ok(Call { places }) => places,
        Err(error) => return report::usage(&error),
    };
    match leave(&places) {
        Ok(account) => end(&account),
        Err(fatal) => {
            report::error(&fatal, fatal.hint.as_deref());
            ExitCode::from(fatal.code)
        }
    }
}

fn end(Account { failed, pods }: &Account) -> ExitCode {
    for line in failed {
        report::text(&format!("error: {}\n", report::plain(line)));
    }
    if !pods.is_empty() {
        report::text(&format!(
            "error: pods still run, at {}: {BRIDGE}, the CNI plugins, their configuration and what they have written down stay\n\
             hint: end the pods, then do this again\n",
            pods.join(", ")
        ));
    }
    if failed.is_empty() && pods.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn leave(places: &Places) -> Result<Account, Fatal> {
    log::open(0).map_err(|error| Fatal::new(1, format!("cannot start: {error}")))?;
    let (mut hand, mut account) = (Hand::new(places), Account::default());
    let flags = daemon_flags()?;
    if Path::new(UNIT).exists() {
        account.note(unit::systemctl(&mut hand, &["disable", "--now", unit::NAME]));
    }
    if let Some(process) = running_daemon().filter(|_| !places.dry_run) {
        return Err(Fatal::new(1, format!("flanneld runs here, as process {process}, and would make all of it again"))
            .hint("end it first; in Kubernetes: kubectl --namespace kube-flannel delete daemonset kube-flannel-ds"));
    }
    let mut remains = Remains::new(&flags)?;
    if Path::new(ENVIRONMENT).exists() {
        release(&mut hand, &mut account, &flags.store);
    }
    kernel(&mut hand, &mut account, &mut remains)?;
    files(&mut hand, &mut account, places, &flags);
    if hand.deeds == 0 && account.failed.is_empty() && account.pods.is_empty() {
        say(format_args!("nothing of flannel's is here"));
    }
    Ok(account)
}

/// The flags that the service's daemon has.
fn daemon_flags() -> Result<Box<Flags>, Fatal> {
    let text = match fs::read_to_string(ENVIRONMENT) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(Fatal::new(1, format!("cannot read {ENVIRONMENT}: {error}")));
        }
        text => text.unwrap_or_default(),
    };
    match flags::parse([], environment::variables(&text)) {
        Ok(Command::Run(flags)) => Ok(flags),
        Ok(_) => Err(Fatal::new(2, format!("{ENVIRONMENT} has no flags of a daemon"))),
        Err(error) => Err(Fatal::new(2, format!("{ENVIRONMENT}: {error}")).hint("correct it, then do this again")),
    }
}

/// A daemon in this network namespace.
fn running_daemon() -> Option<String> {
    let inode = |process: &Path| fs::metadata(process.join("ns/net")).map(|netns| netns.ino()).ok();
    let own = inode(Path::new("/proc/self"))?;
    let is_daemon = |process: &PathBuf| {
        fs::read(process.join("comm")).is_ok_and(|name| name.trim_ascii() == b"flanneld") && inode(process) == Some(own)
    };
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let mut daemons =
        processes.filter(is_daemon).filter_map(|process| process.file_name()?.to_str().map(str::to_owned));
    daemons.next()
}

/// Gives up the leases that this host has signed, so that their subnets are free at once.
fn release(hand: &mut Hand, account: &mut Account, store: &StoreChoice) {
    let here = Host::here();
    match store {
        StoreChoice::Local(directory) => match LocalStore::signed(directory, &here) {
            Ok(keys) => keys.iter().for_each(|key| {
                account.note(
                    hand.act(RELEASE, format_args!("lease {key}"), || LocalStore::release(directory, &here, key)),
                );
            }),
            Err(error) => account.failed.push(error.to_string()),
        },
        StoreChoice::Etcd(options) => account.note(release_in_etcd(hand, options, &here)),
        // There the subnet is the Node's, and goes with it.
        StoreChoice::Kube(_) => {}
    }
}

fn release_in_etcd(hand: &mut Hand, options: &Options, here: &Host) -> Result<(), String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let operator = Operator::new(options.clone());
    let unsaid = |error: &dyn std::error::Error| format!("cannot release the lease: {}", report::chain(error));
    let census = runtime.block_on(operator.census()).map_err(|error| unsaid(&error))?;
    let own = census.records.iter().filter(|listed| listed.holder.as_ref().is_some_and(|host| here.is(host)));
    for listed in own.filter(|listed| listed.keeping.lease().is_some()) {
        let key = &listed.record.key;
        let act = || runtime.block_on(operator.release(key, here, false)).map(drop);
        hand.act(RELEASE, format_args!("lease {key}"), act).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn kernel(hand: &mut Hand, account: &mut Account, remains: &mut Remains) -> Result<(), Fatal> {
    let unread = |error: &dyn Display| Fatal::new(1, error.to_string());
    let objects = remains.objects().map_err(|error| unread(&error))?;
    let mut left = Vec::new();
    if !hand.dry_run {
        account.failed.extend(remains.remove().map_err(|error| unread(&error))?);
        left = remains.objects().map_err(|error| unread(&error))?;
    }
    for object in objects.into_iter().filter(|object| !left.contains(object)) {
        account.note(hand.act(REMOVE, object, || Ok::<_, NotDone>(())));
    }
    match remains.bridge().map_err(|error| unread(&error))? {
        Bridge::Free(bridge) => {
            let removed = hand.act(REMOVE, format_args!("link {BRIDGE}"), || remains.remove_bridge(&bridge));
            account.note(removed);
        }
        Bridge::InUse(pods) => account.pods = pods.iter().map(ToString::to_string).collect(),
        Bridge::Foreign => say(format_args!("kept link {BRIDGE}: it has no address of this node's subnet")),
        Bridge::Absent => {}
    }
    Ok(())
}

fn files(hand: &mut Hand, account: &mut Account, places: &Places, flags: &Flags) {
    if account.pods.is_empty() {
        account.note(hand.file_away(&flags.subnet_file));
        for folder in [SAVED, DATA_DIR] {
            account.note(hand.tree_away(Path::new(folder)));
        }
        account.note(hand.folder_away(&flags.subnet_file));
        account.note(hand.file_away(&places.conf()));
        let plugins = Applet::ALL.map(|plugin| places.cni_bin.join(plugin.name()));
        plugins.iter().filter(|plugin| is_own(plugin)).for_each(|plugin| account.note(hand.file_away(plugin)));
    }
    if Path::new(UNIT).exists() {
        account.note(hand.file_away(Path::new(UNIT)));
        account.note(unit::systemctl(hand, &["daemon-reload"]));
    }
    account.note(hand.file_away(Path::new(ENVIRONMENT)));
    account.note(hand.folder_away(Path::new(ENVIRONMENT)));
    if fs::read_link(places.daemon()).is_ok_and(|target| target == OsStr::new("flannel")) {
        account.note(hand.file_away(&places.daemon()));
    }
    if is_own(&places.executable()) {
        account.note(hand.file_away(&places.executable()));
    }
}
