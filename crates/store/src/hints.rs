//! When to look at a directory again: soon after inotify says so, and every 30 seconds in any case.
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
use tokio::time::{Instant, sleep, sleep_until};

/// How long at most a change stays unseen that nobody hints at.
const REGULAR: Duration = Duration::from_secs(30);
/// How long to wait before trying again what failed.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a burst may gather.
const GATHER: Duration = Duration::from_millis(10);
/// What makes a file new, different or gone: written in place, linked, renamed, removed.
const WRITTEN: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);

/// A directory: the store's own, or one of its parts.
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

/// Tells when to look, and where.
#[derive(Debug)]
pub(crate) struct Hints {
    inotify: Option<AsyncFd<OwnedFd>>,
    /// The directories, and the watch on each that is there.
    places: Vec<(Place, PathBuf, Option<i32>)>,
    regular: Instant,
}

impl Hints {
    /// Hints for directories. Must be called within a tokio runtime.
    pub(crate) fn new(places: impl IntoIterator<Item = (Place, PathBuf)>) -> Self {
        let places: Vec<_> = places.into_iter().map(|(place, path)| (place, path, None)).collect();
        let inotify = watch().inspect_err(|error| {
            let base = places.first().map(|(_, path, _)| path.display().to_string()).unwrap_or_default();
            tracing::warn!("cannot watch {base}: {error}; changes are seen within {} s", REGULAR.as_secs());
        });
        Self { inotify: inotify.ok(), places, regular: Instant::now() }
    }

    /// Waits for something to look at, and a little longer for what comes with it. The first answer comes at once.
    pub(crate) async fn next(&mut self) -> Look {
        let mut names = BTreeSet::new();
        let everywhere = self.renew() || self.wait(&mut names).await;
        if !everywhere {
            return Look::Names(names);
        }
        self.regular = Instant::now() + REGULAR;
        Look::Everywhere
    }

    /// Looks at everything again before long, because the last look failed.
    pub(crate) fn look_again(&mut self) {
        self.regular = Instant::now() + AGAIN;
    }

    /// Watches the directories that are now under their names; true if one was not watched, and so may hold anything.
    fn renew(&mut self) -> bool {
        let Some(inotify) = &self.inotify else { return false };
        let mut is_new = false;
        for (_, path, watch) in &mut self.places {
            let now = inotify::add_watch(inotify, path.as_path(), WRITTEN).ok();
            if *watch == now {
                continue;
            }
            if let Some(before) = watch.take() {
                let _ = inotify::remove_watch(inotify, before);
            }
            *watch = now;
            is_new = true;
        }
        is_new
    }

    /// Waits for names; true if everything has to be looked at.
    async fn wait(&mut self, names: &mut BTreeSet<(Place, Arc<str>)>) -> bool {
        let Some(inotify) = &self.inotify else {
            sleep_until(self.regular).await;
            return true;
        };
        let ready = tokio::select! {
            ready = inotify.readable() => ready,
            () = sleep_until(self.regular) => return true,
        };
        sleep(GATHER).await;
        let everywhere = self.read(inotify, names);
        ready.map(|mut ready| ready.clear_ready()).is_err() || everywhere
    }

    /// Takes all that inotify has to say; true if it cannot say where.
    fn read(&self, inotify: &AsyncFd<OwnedFd>, names: &mut BTreeSet<(Place, Arc<str>)>) -> bool {
        let mut everywhere = false;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let place = self.places.iter().find(|(.., watch)| *watch == Some(event.wd())).map(|(place, ..)| *place);
            let name = event.file_name().and_then(|name| name.to_str().ok());
            match (place, name) {
                (Some(place), Some(name)) => drop(names.insert((place, name.into()))),
                _ if event.events().contains(ReadFlags::IGNORED) => {}
                _ => everywhere = true,
            }
        }
        everywhere
    }
}

fn watch() -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    #[expect(deprecated, reason = "its successor is unsafe for types less strict about their descriptor than OwnedFd")]
    AsyncFd::with_interest(inotify, Interest::READABLE)
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
