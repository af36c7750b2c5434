//! What the daemon on this node does, for a person whose pod does not start. Looked at only when something is wrong.

use std::fmt;
use std::fs;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// The daemon, as seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Daemon {
    /// A process of that name runs.
    Running(u32),
    /// None does.
    Absent,
}

impl Daemon {
    /// Looks for a process called `flanneld`.
    pub fn observe() -> Self {
        let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut daemons = ids.filter(|id: &u32| {
            fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim() == "flanneld")
        });
        daemons.next().map_or(Self::Absent, Self::Running)
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running(id) => write!(
                f,
                "flanneld runs on this node (pid {id}) but has not written a whole file yet: its log says what it waits for, \
                 and its --subnet-file must be this file"
            ),
            Self::Absent => f.write_str(
                "flanneld does not run on this node: start it, in Kubernetes see `kubectl -n kube-flannel get pods -o wide`",
            ),
        }
    }
}

/// Whether a file is older than the running system.
pub(super) fn is_of_last_start(file: &str) -> bool {
    let running = clock_gettime(ClockId::Boottime);
    let running = Duration::new(running.tv_sec.try_into().unwrap_or_default(), 0);
    let written = fs::metadata(file).and_then(|status| status.modified()).ok();
    written.and_then(|written| SystemTime::now().duration_since(written).ok()).is_some_and(|age| age > running)
}
