//! Published ports kept in the kernel: rules that the plugin `portmap` has written down are made again when somebody flushed them.
//!
//! Surface: [`Published`], which [`crate::worker`] lets look when the kernel tells that such rules went, and at ticks where it tells nothing. A
//! look takes no lock; rules are made only with every plugin kept out, after a second look, so that none is made twice or for a container
//! that was just removed. Containers that were never written down, as by the Go plugin, are nobody's business here; no file is written.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flannel_core::port_map::PortMap;
use flannel_core::port_map::saved::{CONTAINERS, RESTORE_LOCK, parse};
use flannel_kernel::port_map::kept::{Kept, Missing};
use flannel_kernel::port_map::{PublishError, forget_connections};

use crate::log::Changes;

/// What is told of rules comes in bursts, also when a plugin makes some: this long after the first is looked.
const PAUSE: Duration = Duration::from_millis(20);
/// Rules must be missing for so long, unless what leads to those of all containers is gone too. A plugin in Go that ends a container deletes its
/// rules, and its links some ten to a hundred milliseconds later, and takes none of our locks; what all share it leaves.
const GRACE: Duration = Duration::from_secs(1);
/// The longest pause between two repairs, when one does not last.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The most bytes that are read of a file.
const MOST: u64 = 1 << 20;

/// The ports of one node's containers.
#[derive(Debug)]
pub struct Published {
    dir: PathBuf,
    kept: Kept,
    due: Option<Instant>,
    /// Until then nothing is looked at: rules were made a moment ago.
    rests: Option<Instant>,
    /// How often in a row something was missing.
    tries: u32,
    /// Whose rules were missing at the last look.
    suspects: BTreeSet<String>,
    /// The failure that was told last.
    told: Option<String>,
}

impl Published {
    /// What the plugin has written down in a folder, to be looked at as soon as possible.
    pub fn new(dir: PathBuf, now: Instant) -> Self {
        Self {
            dir,
            kept: Kept::default(),
            due: Some(now),
            rests: None,
            tries: 0,
            suspects: BTreeSet::new(),
            told: None,
        }
    }

    /// The kernel has told that such rules may be gone.
    pub fn notice(&mut self, now: Instant) {
        let soon = self.rests.map_or(now + PAUSE, |rests| rests.max(now + PAUSE));
        self.due.get_or_insert(soon);
    }

    /// The regular tick.
    pub fn tick(&mut self, now: Instant) {
        if self.kept.needs_ticks() {
            self.notice(now);
        }
    }

    /// When to call [`Published::turn`] if nothing happens until then.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Looks if that is due, and makes what is missing.
    pub fn turn(&mut self, now: Instant, changes: &mut Changes) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        self.due = None;
        let failure = match self.look(now, changes) {
            Ok(Looked::NothingPublished) => return,
            Ok(Looked::AtRules) => None,
            Err(error) => Some(format!("published ports: {error}")),
        };
        if self.told != failure {
            if let Some(failure) = &failure {
                changes.warn(now, || failure.clone());
            }
            self.told = failure;
        }
    }

    fn look(&mut self, now: Instant, changes: &mut Changes) -> Result<Looked, PublishedError> {
        let maps = read(&self.dir)?;
        if maps.is_empty() {
            (self.rests, self.tries) = (None, 0);
            self.suspects.clear();
            return Ok(Looked::NothingPublished);
        }
        let found = self.kept.missing(&maps)?;
        let missing: BTreeSet<String> = found.iter().map(|missing| missing.map.owner()).collect();
        let mut certain = std::mem::take(&mut self.suspects);
        certain.extend(found.iter().filter(|missing| missing.is_flushed).map(|missing| missing.map.owner()));
        if missing.is_empty() {
            (self.rests, self.tries) = (None, 0);
            return Ok(Looked::AtRules);
        }
        if missing.is_disjoint(&certain) {
            self.due = Some(now + GRACE);
            self.suspects = missing;
            return Ok(Looked::AtRules);
        }
        self.rest(now);
        self.suspects = &missing - &certain;
        let Some(_alone) = lock(&self.dir)? else { return Ok(Looked::AtRules) };
        let maps = read(&self.dir)?;
        let mut missing = self.kept.missing(&maps)?;
        missing.retain(|missing| certain.contains(&missing.map.owner()));
        let failures = self.kept.restore(&missing);
        let maps: Vec<_> = missing.iter().map(|missing| missing.map).collect();
        // Clients of before would wait for the kernel to forget by itself.
        _ = forget_connections(&maps);
        failures.into_iter().next().map_or(Ok(()), Err)?;
        for missing in &missing {
            changes.line(now, || repaired(missing));
        }
        Ok(Looked::AtRules)
    }

    /// Looks again after a while, that grows when it is of no use.
    fn rest(&mut self, now: Instant) {
        let pause = PAUSE.saturating_mul(1 << self.tries.min(16)).min(LONGEST_PAUSE);
        self.tries += 1;
        self.rests = Some(now + pause);
        self.due = self.rests;
    }
}

/// What a look looked at.
enum Looked {
    /// No port is published: whether rules of one could be made is not known.
    NothingPublished,
    AtRules,
}

fn repaired(missing: &Missing<'_>) -> String {
    const SHOWN: usize = 4;
    let map = missing.map;
    let ports: Vec<_> = map.mappings.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = if map.mappings.len() > SHOWN { ", …" } else { "" };
    format!("repaired: published ports {}{more} of {}", ports.join(", "), map.owner())
}

/// Keeps every plugin out until dropped; none if one is at work.
fn lock(dir: &Path) -> Result<Option<File>, PublishedError> {
    let path = dir.join(RESTORE_LOCK);
    let failed = |cause| PublishedError::File { action: "lock", path: path.clone(), cause };
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(cause)) => Err(failed(cause)),
    }
}

/// All containers that are written down. What no plugin of ours has written is passed over.
fn read(dir: &Path) -> Result<Vec<PortMap>, PublishedError> {
    let mut maps = Vec::new();
    for network in entries(&dir.join(CONTAINERS))? {
        for path in entries(&network)? {
            let Some(text) = content(&path)? else { continue };
            let names = |map: &PortMap| network.ends_with(&map.network) && path.ends_with(&map.container);
            match parse(&text) {
                Ok(map) if names(&map) => maps.push(map),
                Ok(_) => tracing::debug!("{} is of another container", path.display()),
                Err(error) => tracing::debug!("{}: {error}", path.display()),
            }
        }
    }
    Ok(maps)
}

/// What is in a folder, without files that are being written; nothing if it is not there.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, PublishedError> {
    let failed = |cause| PublishedError::File { action: "list", path: dir.into(), cause };
    let entries = match fs::read_dir(dir) {
        Err(cause) if matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        found.extend((!entry.file_name().as_encoded_bytes().starts_with(b".")).then(|| entry.path()));
    }
    Ok(found)
}

/// A file's content; none if it is gone meanwhile or is no file.
fn content(path: &Path) -> Result<Option<Vec<u8>>, PublishedError> {
    let mut text = Vec::new();
    match File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(cause) if matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => Ok(None),
        Err(cause) => Err(PublishedError::File { action: "read", path: path.into(), cause }),
    }
}

/// Published ports cannot be looked at or made.
#[derive(Debug, thiserror::Error)]
enum PublishedError {
    #[error("cannot {action} {}: {cause}", path.display())]
    File { action: &'static str, path: PathBuf, cause: io::Error },
    #[error(transparent)]
    Rules(#[from] PublishError),
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use flannel_kernel::nft::Nft;
    use flannel_kernel::process::rerun_enclosed;

    use super::*;

    const SAVED: &str = r#"{"network":"cbr0","container":"c1","chain":"CNI-DN-1","backend":"nftables","addresses":["10.1.0.2/24"],
        "portMappings":[{"protocol":"tcp","hostPort":8080,"containerPort":80}],"masquerade":{"all":false,"bit":13},"links":["lo"]}"#;

    fn nft(words: &str) {
        let status = Command::new("nft").args(words.split(' ')).status().expect("nft: run `apt-get install nftables`");
        assert!(status.success(), "nft {words}");
    }

    fn publishes() -> bool {
        Nft::open().unwrap().unwrap().publishes("c1").unwrap()
    }

    #[test]
    fn what_is_flushed_for_all_is_made_at_once_and_what_is_one_containers_after_a_while() {
        if !rerun_enclosed(
            "published::tests::what_is_flushed_for_all_is_made_at_once_and_what_is_one_containers_after_a_while",
        ) {
            return;
        }
        let dir = std::env::temp_dir().join(format!("published-{}", std::process::id()));
        fs::create_dir_all(dir.join("containers/cbr0")).unwrap();
        fs::write(dir.join("containers/cbr0/c1"), SAVED).unwrap();
        let begun = Instant::now();
        let (mut published, mut changes) = (Published::new(dir.clone(), begun), Changes::default());
        published.turn(begun, &mut changes);
        assert!(publishes(), "nothing was there");
        for flush in ["flush ruleset", "flush chain ip cni_hostport prerouting", "delete table ip cni_hostport"] {
            nft(flush);
            published.notice(begun);
            let due = published.due().unwrap();
            published.turn(due, &mut changes);
            assert!(publishes(), "{flush}");
            // All is right now, so nothing is due any more.
            published.turn(published.due().unwrap(), &mut changes);
            assert_eq!(published.due(), None);
        }
        // As a plugin in Go does when a container ends.
        for chain in ["hostports", "masquerading"] {
            nft(&format!("flush chain ip cni_hostport {chain}"));
        }
        published.notice(begun);
        let due = published.due().unwrap();
        published.turn(due, &mut changes);
        assert!(!publishes() && published.due() == Some(due + GRACE));
        published.turn(due + GRACE, &mut changes);
        assert!(publishes());
        fs::remove_dir_all(dir).unwrap();
    }
}
