//! How many watchers of files a user may have: each kubelet, containerd and API server has some, and all count as one user's here.

use std::fs;

use anyhow::{Context, Result};

const SETTING: &str = "/proc/sys/fs/inotify/max_user_instances";
/// What a few clusters need; the kernel's own limit is 128.
const ENOUGH: u64 = 1024;

/// The limit as it was, to be set again when this is dropped.
pub(crate) struct Instances {
    before: Option<String>,
}

impl Instances {
    /// Raises the limit where it is low.
    pub(crate) fn raise() -> Result<Self> {
        let before = fs::read_to_string(SETTING).context(SETTING)?;
        if before.trim().parse().is_ok_and(|limit: u64| limit >= ENOUGH) {
            return Ok(Self { before: None });
        }
        println!("e2e: raises fs.inotify.max_user_instances of this machine to {ENOUGH} while it runs");
        fs::write(SETTING, ENOUGH.to_string()).context(SETTING)?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for Instances {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _others_may_need_more = fs::write(SETTING, before);
        }
    }
}
