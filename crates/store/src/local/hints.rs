//! When to look at the directory again: soon after inotify says so, and every 30 seconds in any case.
//!
//! A hint is never trusted to be complete. Network file systems give none, queues overflow, watches run out; then the
//! regular look finds what changed.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::{Instant, sleep, sleep_until};

use super::directory::Directory;

/// How long at most a change stays unseen that nobody hints at.
const REGULAR: Duration = Duration::from_secs(30);
/// How long to wait before trying again what failed.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a burst may gather.
const GATHER: Duration = Duration::from_millis(10);
/// Hints kept for a listener that is busy; more make it look at everything.
const KEPT: usize = 4096;

/// What makes a file new, different or gone: written in place, linked, renamed, removed.
const WRITTEN: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

/// One of the store's directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Base,
    Subnets,
    Holders,
}

/// Where something may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Look {
    /// Under these names.
    Names(BTreeSet<(Place, Arc<str>)>),
    /// Anywhere.
    Everywhere,
}

impl Look {
    /// Whether a file is to be looked at.
    pub(crate) fn at(&self, place: Place, name: &str) -> bool {
        match self {
            Self::Names(names) => names.contains(&(place, name.into())),
            Self::Everywhere => true,
        }
    }

    /// The names in a place; none means all.
    pub(crate) fn names(&self, place: Place) -> Option<impl Iterator<Item = &str>> {
        match self {
            Self::Names(names) => Some(names.iter().filter(move |(p, _)| *p == place).map(|(_, name)| &**name)),
            Self::Everywhere => None,
        }
    }
}

/// A hint: a name, or none if it may be anything.
type Hint = Option<(Place, Arc<str>)>;

/// The source of hints, for any number of listeners.
#[derive(Debug)]
pub(crate) struct Hints(broadcast::Sender<Hint>);

impl Hints {
    /// Starts to watch, in a task that ends with the last listener and `Hints`.
    pub(crate) fn watch(directory: &Arc<Directory>) -> Self {
        let directory = Arc::clone(directory);
        let (sender, _) = broadcast::channel(KEPT);
        let weak = sender.downgrade();
        tokio::spawn(async move {
            match Watches::new(&directory) {
                Ok(watches) => watches.run(&weak).await,
                Err(error) => tracing::warn!(
                    "cannot watch {}: {error}; changes are seen within {} s",
                    directory.base().display(),
                    REGULAR.as_secs()
                ),
            }
        });
        Self(sender)
    }

    pub(crate) fn listen(&self) -> Listener {
        Listener { hints: self.0.subscribe(), regular: Instant::now() + REGULAR }
    }
}

/// Tells its owner when to look, and where.
#[derive(Debug)]
pub(crate) struct Listener {
    hints: broadcast::Receiver<Hint>,
    regular: Instant,
}

impl Listener {
    /// Waits for something to look at, and a little longer for what comes with it; none if the store is gone.
    pub(crate) async fn next(&mut self) -> Option<Look> {
        let mut names = BTreeSet::new();
        let mut everywhere = tokio::select! {
            hint = self.hints.recv() => match hint {
                Ok(hint) => gather(&mut names, hint),
                Err(RecvError::Lagged(_)) => true,
                Err(RecvError::Closed) => return None,
            },
            () = sleep_until(self.regular) => true,
        };
        sleep(GATHER).await;
        loop {
            match self.hints.try_recv() {
                Ok(hint) => everywhere |= gather(&mut names, hint),
                Err(TryRecvError::Lagged(_)) => everywhere = true,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        if !everywhere {
            return Some(Look::Names(names));
        }
        self.regular = Instant::now() + REGULAR;
        Some(Look::Everywhere)
    }

    /// Looks at everything again before long, because the last look failed.
    pub(crate) fn look_again(&mut self) {
        self.regular = Instant::now() + AGAIN;
    }
}

/// Adds a hint; true if everything has to be looked at.
fn gather(names: &mut BTreeSet<(Place, Arc<str>)>, hint: Hint) -> bool {
    let everywhere = hint.is_none();
    names.extend(hint);
    everywhere
}

/// The inotify instance with a watch on each directory that is there.
struct Watches {
    inotify: AsyncFd<OwnedFd>,
    places: [(Place, PathBuf, Option<i32>); 3],
}

impl Watches {
    fn new(directory: &Directory) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let places = [
            (Place::Base, directory.base().to_owned(), None),
            (Place::Subnets, directory.subnets(), None),
            (Place::Holders, directory.holders(), None),
        ];
        #[expect(
            deprecated,
            reason = "its successor is unsafe for types less strict about their descriptor than OwnedFd"
        )]
        let inotify = AsyncFd::with_interest(inotify, Interest::READABLE)?;
        Ok(Self { inotify, places })
    }

    /// Passes on what inotify says until nobody is there to send to.
    async fn run(mut self, sender: &broadcast::WeakSender<Hint>) {
        loop {
            let mut hints = self.renew();
            let patience = if self.places.iter().all(|(.., watch)| watch.is_some()) { REGULAR } else { AGAIN };
            if hints.is_empty() {
                tokio::select! {
                    ready = self.inotify.readable() => {
                        let Ok(mut ready) = ready else { return };
                        self.read(&mut hints);
                        ready.clear_ready();
                    }
                    () = sleep(patience) => {}
                }
            }
            let Some(sender) = sender.upgrade() else { return };
            for hint in hints {
                drop(sender.send(hint));
            }
        }
    }

    /// Watches the directories that are now under their names; a directory not seen before may hold anything.
    fn renew(&mut self) -> Vec<Hint> {
        let mut hints = Vec::new();
        for (_, path, watch) in &mut self.places {
            let now = inotify::add_watch(&self.inotify, path.as_path(), WRITTEN).ok();
            if *watch == now {
                continue;
            }
            if let Some(before) = watch.take() {
                let _ = inotify::remove_watch(&self.inotify, before);
            }
            *watch = now;
            hints.push(None);
        }
        hints
    }

    /// Takes all that inotify has to say.
    fn read(&self, hints: &mut Vec<Hint>) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let place = self.places.iter().find(|(.., watch)| *watch == Some(event.wd())).map(|(place, ..)| *place);
            let name = event.file_name().and_then(|name| name.to_str().ok());
            match (place, name) {
                (Some(place), Some(name)) => hints.push(Some((place, name.into()))),
                _ if event.events().contains(ReadFlags::IGNORED) => {}
                _ => hints.push(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(names: &[(Place, &str)]) -> Look {
        Look::Names(names.iter().map(|(place, name)| (*place, (*name).into())).collect())
    }

    #[test]
    fn where_to_look() {
        let some = look(&[(Place::Subnets, "a.json"), (Place::Holders, "b.json")]);
        assert!(some.at(Place::Subnets, "a.json") && !some.at(Place::Subnets, "b.json"));
        assert_eq!(some.names(Place::Subnets).map(Iterator::collect::<Vec<_>>), Some(vec!["a.json"]));
        assert!(Look::Everywhere.at(Place::Base, "x"));
        assert!(Look::Everywhere.names(Place::Base).is_none());
    }
}
