//! The local store: a directory, for trying flannel out, for tests, and for small static fleets on one file system.
//!
//! [`LocalStore`] reads `config.json` and one lease record per file of `subnets/`; `directory` documents the files, [`crate::Host`]
//! how two hosts are told apart. Any number of daemons may use the directory at once. Records do not expire: a dead
//! node's is removed by hand. inotify only hastens what a look every 30 seconds would find as well, so that network file
//! systems and copied directories work.
//!
//! The directory is a store as long as it has a `config.json`. Without it (not mounted, moved away) nothing is concluded:
//! leases stay as they were last seen.

mod directory;
mod hold;
mod release;
mod scan;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use flannel_core::config::NetworkConfig;
use flannel_core::lease::{Claim, LeaseEvent};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use self::directory::{Directory, Unavailable};
use self::hold::Local;
use self::scan::Seen;
use crate::hints::{Hints, Look, Place};
use crate::host::Host;
use crate::{Call, Held, HoldError, Store, StoreEvent};

/// Events that may wait for the receiver before the store waits too.
const WAITING: usize = 64;

/// A directory of leases, as one daemon uses it.
#[derive(Debug)]
pub struct LocalStore(Arc<Local>);

impl LocalStore {
    /// Uses a directory as a host. Whether the directory is there shows when it is read.
    pub fn new(directory: &Path, host: Host) -> Self {
        Self(Arc::new(Local::new(Directory::new(directory, &host), host)))
    }
}

impl Store for LocalStore {
    fn watch(&self) -> Receiver<StoreEvent> {
        let (sender, receiver) = channel(WAITING);
        tokio::spawn(tell(Arc::clone(&self.0), sender));
        receiver
    }

    fn hold(&self, config: &NetworkConfig, claim: &Claim) -> Call<Result<Held, HoldError>> {
        let (local, config, claim) = (Arc::clone(&self.0), config.clone(), claim.clone());
        Box::pin(blocking(move || local.hold(&config, &claim)))
    }
}

/// Tells config and leases, and then what changes of them, until nobody listens.
async fn tell(local: Arc<Local>, sender: Sender<StoreEvent>) {
    let directory = &local.directory;
    let places = [
        (Place::Base, directory.base().to_owned()),
        (Place::Subnets, directory.subnets()),
        (Place::Holders, directory.holders()),
    ];
    let mut hints = Hints::new(places);
    let mut teller = Teller { local, config: None, trouble: None };
    loop {
        let look = tokio::select! {
            look = hints.next() => look,
            () = sender.closed() => return,
        };
        let (config, seen);
        (teller, config, seen) = blocking(move || {
            let (config, seen) = (teller.look_at_config(&look), teller.look_at_leases(&look));
            (teller, config, seen)
        })
        .await;
        if seen.is_none() {
            hints.look_again();
        }
        for event in config.into_iter().chain(seen.into_iter().flat_map(events)) {
            if sender.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// What was seen as events.
fn events(seen: Seen) -> Vec<StoreEvent> {
    let events = match seen {
        Seen::All(records) => vec![LeaseEvent::Snapshot(records)],
        Seen::Changes(records, gone) => {
            records.into_iter().map(LeaseEvent::Put).chain(gone.into_iter().map(LeaseEvent::Remove)).collect()
        }
    };
    events.into_iter().map(StoreEvent::Leases).collect()
}

/// What was told so far. Its methods block.
#[derive(Debug)]
struct Teller {
    local: Arc<Local>,
    config: Option<Result<String, String>>,
    trouble: Option<String>,
}

impl Teller {
    /// The config, if it is another than before.
    fn look_at_config(&mut self, look: &Look) -> Option<StoreEvent> {
        if !look.at(Place::Base, "config.json") {
            return None;
        }
        let path = self.local.directory.config();
        let config = fs::read_to_string(&path).map_err(|error| Unavailable::new("read", path, error).advice());
        let is_new = self.config.as_ref() != Some(&config);
        self.config = Some(config.clone());
        is_new.then_some(StoreEvent::Config(config))
    }

    /// The leases that changed; none if the directory cannot be read. A failure is logged once, and its end; a config that
    /// cannot be read says as much.
    fn look_at_leases(&mut self, look: &Look) -> Option<Seen> {
        if look.names(Place::Holders).is_none_or(|mut names| names.next().is_some()) {
            self.local.name_rival();
        }
        match self.local.look(look) {
            Ok(seen) => {
                if self.trouble.take().is_some() {
                    tracing::info!("{} is back", self.local.directory.base().display());
                }
                Some(seen)
            }
            Err(error) => {
                let text = error.to_string();
                let told = matches!(self.config, Some(Err(_)));
                if !told && self.trouble.as_ref() != Some(&text) {
                    tracing::warn!("{text}; the leases seen last stay in use");
                }
                self.trouble = Some(text);
                None
            }
        }
    }
}

/// Runs what blocks on the file system aside, and begins before it is waited for.
fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T> {
    let work = tokio::task::spawn_blocking(work);
    async {
        match work.await {
            Ok(value) => value,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => std::future::pending().await,
            },
        }
    }
}
