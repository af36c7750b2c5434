//! The control groups that the containers of a cluster are in.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{ClusterError, Doing};

/// Where the kernel shows them: one hierarchy, or a folder for each.
const HIERARCHIES: &str = "/sys/fs/cgroup";
/// How long the kernel may take to end what was killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A group in each hierarchy. When this is dropped, all in it are killed and it is removed.
#[derive(Debug)]
pub(crate) struct ControlGroup {
    name: String,
}

impl ControlGroup {
    /// One that nobody else has on this machine: it is named after the caller's network namespace. A runtime makes it.
    pub(crate) fn own() -> Result<Self, ClusterError> {
        let namespace = Path::new("/proc/self/ns/net");
        let number = fs::metadata(namespace).on("look at", namespace)?.ino();
        Ok(Self { name: format!("/flannel-cluster-{number}") })
    }

    /// Its path in each hierarchy.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn folders(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir(HIERARCHIES).into_iter().flatten().flatten().map(|entry| entry.path());
        let all = hierarchies.chain([PathBuf::from(HIERARCHIES)]);
        all.map(|hierarchy| hierarchy.join(&self.name[1..])).filter(|folder| folder.is_dir()).collect()
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let begun = Instant::now();
        loop {
            let folders = self.folders();
            for folder in &folders {
                end(folder);
            }
            if folders.is_empty() || begun.elapsed() > PATIENCE {
                return;
            }
            sleep(Duration::from_millis(20));
        }
    }
}

/// Kills what is in a group and removes it, from within.
fn end(group: &Path) {
    let inner = fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path());
    inner.filter(|path| path.is_dir()).for_each(|path| end(&path));
    let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        let _ended_already = kill_process(pid, Signal::KILL);
    }
    let _still_in_use = fs::remove_dir(group);
}
