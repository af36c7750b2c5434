//! The local store: a directory, for trying flannel out, for tests, and for small static fleets on one file system.
//!
//! [`LocalStore`] reads `config.json` and one lease record per file of `subnets/`; `directory` documents the files, `host`
//! how two hosts are told apart. Any number of daemons may use the directory at once. Records do not expire: a dead
//! node's is removed by hand. inotify only hastens what a look every 30 seconds would find as well, so that network file
//! systems and copied directories work.
//!
//! The directory is a store as long as it has a `config.json`. Without it (not mounted, moved away) nothing is concluded:
//! leases stay as they were last seen.

mod directory;
mod hints;
mod host;
mod keep;
mod scan;

#[cfg(test)]
mod tests;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use flannel_core::config::{ConfigRules, NetworkConfig};
use flannel_core::lease::{Claim, LeaseEvent};
use tokio::sync::{mpsc, watch};

use self::directory::Directory;
use self::hints::{Hints, Listener, Look, Place};
pub use self::host::Host;
use self::keep::{Keeper, Shared};
use self::scan::{Scanner, Seen};
use crate::{Held, HoldError, LeaseEvents, Pending, ReadError, Store, Unavailable};

/// A directory of leases, as one daemon uses it.
#[derive(Debug)]
pub struct LocalStore {
    shared: Arc<Shared>,
    hints: Hints,
}

impl LocalStore {
    /// Uses a directory. Whether it is there shows when it is read. Must be called within a tokio runtime.
    pub fn new(directory: &Path, host: Host) -> Self {
        let directory = Arc::new(Directory::new(directory, &host));
        let hints = Hints::watch(&directory);
        Self { shared: Arc::new(Shared::new(directory, host)), hints }
    }

    fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.shared.directory)
    }
}

impl Store for LocalStore {
    fn config(&self) -> Pending<'_, Result<watch::Receiver<NetworkConfig>, ReadError>> {
        Box::pin(async move {
            let (directory, listener) = (self.directory(), self.hints.listen());
            let (sender, receiver) = watch::channel(read_config(&directory)?);
            tokio::spawn(follow_config(directory, listener, sender));
            Ok(receiver)
        })
    }

    fn events(&self) -> LeaseEvents {
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(tell_events(self.directory(), self.hints.listen(), sender));
        LeaseEvents(receiver)
    }

    fn hold(&self, claim: Claim) -> Pending<'_, Result<Held, HoldError>> {
        Box::pin(async move {
            let listener = self.hints.listen();
            let shared = Arc::clone(&self.shared);
            let keeper = blocking(move || {
                let config = read_config(&shared.directory)?;
                Keeper::acquire(&shared, &config, &claim)
            });
            let keeper = keeper.await?;
            let (key, lease) = (keeper.key.clone(), keeper.lease.clone());
            let (sender, changes) = mpsc::channel(1);
            let keeper = tokio::spawn(keep(keeper, listener, sender)).abort_handle();
            Ok(Held { key, lease, changes, keeper })
        })
    }
}

/// Reads the config and logs what has no effect in it.
fn read_config(directory: &Directory) -> Result<NetworkConfig, ReadError> {
    let path = directory.config();
    let text = match fs::read(&path) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(source) => return Err(Unavailable { action: "read", path, source }.into()),
    };
    let parsed = NetworkConfig::parse(&text, ConfigRules::Etcd);
    let (config, warnings) =
        parsed.map_err(|source| ReadError::Config { place: path.display().to_string(), source })?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

/// Passes on each usable change of the config.
async fn follow_config(directory: Arc<Directory>, mut listener: Listener, sender: watch::Sender<NetworkConfig>) {
    let mut trouble = Trouble::default();
    loop {
        let look = tokio::select! {
            look = listener.next() => look,
            () = sender.closed() => None,
        };
        let Some(look) = look else { return };
        if !look.at(Place::Base, "config.json") {
            continue;
        }
        match trouble.note(read_config(&directory), "the last usable network config stays in use") {
            Some(config) => drop(sender.send_if_modified(|last| std::mem::replace(last, config) != *last)),
            None => listener.look_again(),
        }
    }
}

/// Tells all records, and then what changes of them.
async fn tell_events(directory: Arc<Directory>, mut listener: Listener, sender: mpsc::UnboundedSender<LeaseEvent>) {
    let mut trouble = Trouble::default();
    let mut scanner = Scanner::default();
    let mut look = Some(Look::Everywhere);
    while let Some(place) = look {
        let directory = Arc::clone(&directory);
        let seen;
        (scanner, seen) = blocking(move || {
            let seen = scanner.look(&directory, &place);
            (scanner, seen)
        })
        .await;
        match trouble.note(seen, "the leases seen last stay in use") {
            Some(Seen::All(records)) => drop(sender.send(LeaseEvent::Snapshot(records))),
            Some(Seen::Changes(records, gone)) => {
                let changes = records.into_iter().map(LeaseEvent::Put).chain(gone.into_iter().map(LeaseEvent::Remove));
                changes.for_each(|event| drop(sender.send(event)));
            }
            None => listener.look_again(),
        }
        look = tokio::select! {
            look = listener.next() => look,
            () = sender.closed() => None,
        };
    }
}

/// Keeps our record until it is lost.
async fn keep(
    mut keeper: Keeper,
    mut listener: Listener,
    lost: mpsc::Sender<Result<flannel_core::lease::Lease, HoldError>>,
) {
    let mut trouble = Trouble::default();
    while let Some(look) = listener.next().await {
        let checked;
        (keeper, checked) = blocking(move || {
            let checked = keeper.check(&look);
            (keeper, checked)
        })
        .await;
        match checked {
            Err(HoldError::Unavailable(error)) => {
                trouble.note::<(), _>(Err(error), "our lease is looked at again when it is back");
                listener.look_again();
            }
            Err(error) => return drop(lost.send(Err(error)).await),
            Ok(()) => drop(trouble.note::<_, Unavailable>(Ok(()), "")),
        }
    }
}

/// Runs what blocks on the file system aside.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

/// Logs a failure that lasts once, and its end.
#[derive(Debug, Default)]
struct Trouble(Option<String>);

impl Trouble {
    /// The value, or none after a failure; `meanwhile` says what holds until it ends.
    fn note<T, E: Error>(&mut self, result: Result<T, E>, meanwhile: &str) -> Option<T> {
        match result {
            Ok(value) => {
                if self.0.take().is_some() {
                    tracing::info!("the store is back");
                }
                Some(value)
            }
            Err(error) => {
                let text = chain(&error);
                if self.0.as_ref() != Some(&text) {
                    tracing::warn!("{text}; {meanwhile}");
                    self.0 = Some(text);
                }
                None
            }
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
