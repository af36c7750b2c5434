//! Mounts in a private mount namespace.
//!
//! Surface: [`private`], [`proc_fs`], [`tmpfs`], [`bind`], [`bind_tree`], [`unbind`]. Who owns the namespace is the business of
//! [`crate::namespace`] and [`crate::process`]; nothing here may be called in the host's namespace.

use std::path::Path;

use rustix::io;
use rustix::mount::{self, MountFlags, MountPropagationFlags, UnmountFlags};

/// A mount that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount {what} on {target}")]
pub struct MountError {
    what: String,
    target: String,
    source: std::io::Error,
}

fn named(what: impl Into<String>, target: &Path) -> impl FnOnce(io::Errno) -> MountError {
    let (what, target) = (what.into(), target.display().to_string());
    move |cause| MountError { what, target, source: cause.into() }
}

/// Cuts the whole tree off from the namespace it was copied from: no mount made here is seen there, nor the reverse.
pub fn private() -> io::Result<()> {
    mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
}

/// Mounts the `/proc` of the calling process' PID namespace over the one that is there.
pub fn proc_fs() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount::mount(c"proc", c"/proc", c"proc", flags, None)
}

/// Mounts an empty file system in memory, mode 0755.
pub fn tmpfs(target: &Path) -> Result<(), MountError> {
    mount::mount(c"tmpfs", target, c"tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755")
        .map_err(named("tmpfs", target))
}

/// Makes a file or directory appear in another place.
pub fn bind(from: &Path, target: &Path) -> Result<(), MountError> {
    mount::mount_bind(from, target).map_err(named(from.display().to_string(), target))
}

/// Like [`bind`], with everything that is mounted below.
pub fn bind_tree(from: &Path, target: &Path) -> Result<(), MountError> {
    mount::mount_bind_recursive(from, target).map_err(named(from.display().to_string(), target))
}

/// Takes away what was bound last to a file or directory; who uses it keeps it.
pub fn unbind(target: &Path) -> std::io::Result<()> {
    Ok(mount::unmount(target, UnmountFlags::DETACH)?)
}
