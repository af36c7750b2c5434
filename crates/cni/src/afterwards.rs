//! What a DEL leaves to a process of its own, for which the runtime does not wait.

use std::os::fd::AsRawFd;

use flannel_kernel::pod_link::Retired;

use crate::host_local::store::Unsearched;

/// What is still to be done when a DEL has been answered.
#[derive(Debug, Default)]
#[must_use = "what is left is still to be done"]
pub struct Afterwards {
    /// What is out of use and nobody has destroyed yet.
    pub(crate) retired: Retired,
    /// Where the container may have more addresses than it used.
    pub(crate) unsearched: Option<Unsearched>,
}

impl From<Retired> for Afterwards {
    fn from(retired: Retired) -> Self {
        Self { retired, unsearched: None }
    }
}

impl From<Option<Unsearched>> for Afterwards {
    fn from(unsearched: Option<Unsearched>) -> Self {
        Self { retired: Retired::default(), unsearched }
    }
}

impl Afterwards {
    /// Does it in a process of its own, which outlives the caller; that must have one thread and be about to end. If that process is
    /// killed, the namespace's end takes the links, and GC all that it has left.
    pub fn do_apart(self) {
        let Self { retired, unsearched } = self;
        if retired.is_empty() && unsearched.is_none() {
            return;
        }
        let lock = unsearched.as_ref().map(AsRawFd::as_raw_fd);
        // There is nobody to tell of a failure. Others wait for the lock, so this goes first.
        retired.destroy_apart(lock, || _ = unsearched.map(Unsearched::search));
    }
}
