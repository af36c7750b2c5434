//! Network and mount namespaces, each held open by a descriptor, and work done inside them.
//!
//! Surface: [`NetNamespace`], [`MountNamespace`], [`Namespaces`] (what a process is to run in). `setns` moves the calling
//! thread only, so [`NetNamespace::run`] and [`MountNamespace::run`] work on a thread of their own; a socket opened there
//! stays in its namespace wherever it is used afterwards. User and PID namespaces are made in [`crate::process`].

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fstatfs};
use rustix::io;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::mount;

/// The file system type of namespace files (`NSFS_MAGIC` of `linux/magic.h`).
const NSFS_MAGIC: u64 = 0x6e73_6673;
/// Asks for the kind of a namespace (`_IO(NSIO, 0x3)` of `linux/nsfs.h`).
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// Something that cannot be done with a namespace.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {object}")]
pub struct NamespaceError {
    action: &'static str,
    object: String,
    #[source]
    cause: std::io::Error,
}

impl NamespaceError {
    fn new(action: &'static str, object: impl Into<String>) -> impl FnOnce(io::Errno) -> Self {
        move |cause| Self { action, object: object.into(), cause: cause.into() }
    }

    /// Whether the namespace (its file) does not exist: normal for a pod that is gone.
    pub fn is_absent(&self) -> bool {
        self.cause.kind() == std::io::ErrorKind::NotFound
    }

    /// Whether there is a file, but of no namespace: what is left when the mount on it is gone, as after a restart.
    pub fn is_foreign(&self) -> bool {
        self.cause.kind() == std::io::ErrorKind::InvalidInput
    }
}

/// A network namespace held open.
#[derive(Debug)]
pub struct NetNamespace {
    file: OwnedFd,
}

impl NetNamespace {
    /// The calling thread's.
    pub fn current() -> Result<Self, NamespaceError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The one behind a file, such as `/run/netns/NAME` or a runtime's `CNI_NETNS`.
    pub fn open(path: &Path) -> Result<Self, NamespaceError> {
        let action = "open network namespace";
        let file = open_namespace(path, action)?;
        if kind_of(&file).is_some_and(|kind| kind != libc::CLONE_NEWNET) {
            let cause = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is a namespace of another kind");
            return Err(NamespaceError { action, object: path.display().to_string(), cause });
        }
        Ok(Self { file })
    }

    /// Makes a new one with nothing in it but a loopback device that is down.
    pub fn create() -> Result<Self, NamespaceError> {
        on_thread(|| {
            unshare_thread(UnshareFlags::NEWNET).map_err(NamespaceError::new("create", "a network namespace"))?;
            Self::current()
        })
    }

    /// Makes it appear as a file, which is made where it is absent; below `/run/netns` `ip netns` finds it.
    pub fn pin(&self, path: &Path) -> Result<(), NamespaceError> {
        let failed = |cause: std::io::Error| NamespaceError {
            action: "pin a network namespace to",
            object: path.display().to_string(),
            cause,
        };
        File::create(path).map_err(failed)?;
        mount::bind(&descriptor_path(&self.file), path).map_err(|error| failed(std::io::Error::other(error)))
    }

    /// Does the work inside the namespace, on a thread of its own. Panics of the work go on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        on_thread(|| {
            self.enter()?;
            Ok(work())
        })
    }

    /// Moves the calling thread into the namespace, for good: meant for programs with one thread.
    pub fn enter(&self) -> Result<(), NamespaceError> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(NamespaceError::new("enter", "a network namespace"))
    }

    /// Another handle to the same namespace.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }
}

impl AsFd for NetNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A mount namespace held open.
#[derive(Debug)]
pub struct MountNamespace {
    file: OwnedFd,
}

impl MountNamespace {
    /// Copies the caller's, cuts it off, and lets `arrange` make its mounts there.
    pub fn create<E: Send + From<NamespaceError>>(arrange: impl FnOnce() -> Result<(), E> + Send) -> Result<Self, E> {
        let failed = || NamespaceError::new("create", "a mount namespace");
        on_thread(|| {
            unshare_thread(UnshareFlags::FS | UnshareFlags::NEWNS).map_err(failed())?;
            mount::private().map_err(failed())?;
            arrange()?;
            let file = open_namespace(Path::new("/proc/thread-self/ns/mnt"), "open mount namespace")?;
            Ok(Self { file })
        })
    }

    /// Does the work where these mounts are seen, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        let failed = || NamespaceError::new("enter", "a mount namespace");
        on_thread(|| {
            unshare_thread(UnshareFlags::FS).map_err(failed())?;
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Mount)).map_err(failed())?;
            Ok(work())
        })
    }

    /// Another handle to the same namespace.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { file: self.file.try_clone()? })
    }
}

impl AsFd for MountNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The namespaces that a process is started in by [`crate::process::spawn_in`]; those absent stay the caller's.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// User namespace: entered first, so that the others may be.
    pub user: Option<OwnedFd>,
    /// Network namespace.
    pub net: Option<OwnedFd>,
    /// Mount namespace.
    pub mounts: Option<OwnedFd>,
    /// PID namespace.
    pub pids: Option<OwnedFd>,
}

impl Namespaces {
    /// A network and a mount namespace: a node.
    pub fn of(net: &NetNamespace, mounts: Option<&MountNamespace>) -> std::io::Result<Self> {
        Ok(Self {
            net: Some(net.file.try_clone()?),
            mounts: mounts.map(|mounts| mounts.file.try_clone()).transpose()?,
            ..Self::default()
        })
    }

    /// The user and PID namespaces that the calling process runs in, to be handed to a process outside.
    pub fn own_user_and_pids(self) -> std::io::Result<Self> {
        let open = |name| OpenOptions::new().read(true).open(Path::new("/proc/self/ns").join(name)).map(OwnedFd::from);
        Ok(Self { user: Some(open("user")?), pids: Some(open("pid")?), ..self })
    }
}

/// A path that leads to what a descriptor of this process has open.
fn descriptor_path(file: &OwnedFd) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn open_namespace(path: &Path, action: &'static str) -> Result<OwnedFd, NamespaceError> {
    let failed = |cause| NamespaceError { action, object: path.display().to_string(), cause };
    // A pipe would keep its reader waiting for a writer.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let file = OwnedFd::from(options.open(path).map_err(failed)?);
    let kind = fstatfs(&file).map_err(|cause| failed(cause.into()))?.f_type;
    let foreign = || failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a namespace"));
    if kind as u64 == NSFS_MAGIC { Ok(file) } else { Err(foreign()) }
}

/// What a namespace is of, as a flag of clone(2); none where the kernel does not say.
fn kind_of(namespace: &OwnedFd) -> Option<libc::c_int> {
    // SAFETY: the request takes no argument and answers with a number, for a descriptor that is open as long as it is borrowed.
    let kind = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE) };
    (kind >= 0).then_some(kind)
}

/// Leaves what the calling thread shares with the rest of its process.
fn unshare_thread(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: `unshare` is unsafe for the sake of CLONE_FILES only, after which descriptors mean different things to
    // different threads; it is never among the flags.
    unsafe { unshare_unsafe(flags) }
}

/// Runs the work on a thread that ends with it, so that the namespaces it moved to are nobody else's.
fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::rerun_enclosed;

    fn devices() -> Vec<String> {
        let listing = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        listing.lines().skip(2).filter_map(|line| line.split(':').next()).map(|name| name.trim().to_owned()).collect()
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays() {
        if !rerun_enclosed("namespace::tests::work_runs_inside_and_the_caller_stays") {
            return;
        }
        let identity = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let before = identity();
        let made = NetNamespace::create().unwrap();
        assert_eq!(made.run(devices).unwrap(), ["lo"]);
        assert_ne!(made.run(identity).unwrap(), before);
        assert_eq!(identity(), before);
    }

    #[test]
    fn a_pinned_namespace_is_found_by_its_file() {
        if !rerun_enclosed("namespace::tests::a_pinned_namespace_is_found_by_its_file") {
            return;
        }
        mount::tmpfs(Path::new("/run")).unwrap();
        let (made, path) = (NetNamespace::create().unwrap(), Path::new("/run/pod"));
        assert!(NetNamespace::open(path).unwrap_err().is_absent());
        made.pin(path).unwrap();
        let identity = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let found = NetNamespace::open(path).unwrap();
        assert_eq!(found.run(identity).unwrap(), made.run(identity).unwrap());
        let error = NetNamespace::open(Path::new("/run")).unwrap_err();
        assert!(!error.is_absent() && error.is_foreign());
        assert_eq!(error.to_string(), "cannot open network namespace /run");
        assert!(NetNamespace::open(Path::new("/proc/thread-self/ns/mnt")).unwrap_err().is_foreign());
        let pipe = Path::new("/run/pipe");
        rustix::fs::mknodat(rustix::fs::CWD, pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(NetNamespace::open(pipe).unwrap_err().is_foreign());
    }

    #[test]
    fn mounts_are_seen_in_their_namespace_only() {
        if !rerun_enclosed("namespace::tests::mounts_are_seen_in_their_namespace_only") {
            return;
        }
        mount::tmpfs(Path::new("/run")).unwrap();
        let arrange = || -> Result<(), NamespaceError> {
            mount::tmpfs(Path::new("/run")).unwrap();
            std::fs::write("/run/inner", "x").unwrap();
            Ok(())
        };
        let node = MountNamespace::create(arrange).unwrap();
        assert!(!Path::new("/run/inner").exists());
        assert!(node.run(|| Path::new("/run/inner").exists()).unwrap());
    }
}
