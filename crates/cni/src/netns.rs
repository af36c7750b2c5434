//! The container's network namespace: opened for ADD and CHECK, looked for by DEL, and never the plugin's own.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use flannel_kernel::namespace::{NamespaceError, NetNamespace};
use flannel_kernel::pod_link::{LinkError, Links, within};

use crate::protocol::environment::Call;
use crate::protocol::failure::{Explain, Failure, code};

/// Opens the namespace of the call.
pub(crate) fn open(call: &Call<'_>) -> Result<NetNamespace, Failure> {
    let path = call.netns()?;
    let netns = NetNamespace::open(path).map_err(NetnsError::Open)?;
    if is_own(path) { Err(NetnsError::Own(path.display().to_string()).into()) } else { Ok(netns) }
}

/// Opens the namespace of a DEL. None when there is none any more: no path, no file, a file left by a mount that is gone, or the
/// plugin's own, which is the path of a process whose number another one has now.
pub(crate) fn open_if_there(call: &Call<'_>) -> Result<Option<NetNamespace>, Failure> {
    let Some(path) = call.netns.map(Path::new) else { return Ok(None) };
    match NetNamespace::open(path) {
        Ok(_) if is_own(path) => Ok(None),
        Ok(netns) => Ok(Some(netns)),
        Err(error) if error.is_absent() || error.is_foreign() => Ok(None),
        Err(error) => Err(NetnsError::Open(error).into()),
    }
}

fn is_own(path: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|status| (status.dev(), status.ino()));
    identity(path) == identity(Path::new("/proc/thread-self/ns/net"))
}

/// The links of a namespace.
pub(crate) fn links(netns: &NetNamespace) -> Result<Links, Failure> {
    Ok(within(netns, Links::here).map_err(NetnsError::Enter)??)
}

/// Does the work inside a namespace.
pub(crate) fn run<T>(netns: &NetNamespace, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
    within(netns, work).map_err(NetnsError::Enter)
}

/// The namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetnsError {
    #[error("failed to open netns: {}", chain(.0))]
    Open(NamespaceError),
    #[error("failed to enter netns: {}", chain(.0))]
    Enter(NamespaceError),
    #[error("plugin's netns and netns from CNI_NETNS {0:?} should not be the same")]
    Own(String),
}

fn chain(error: &NamespaceError) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

impl Explain for NetnsError {
    fn code(&self) -> u32 {
        code::NETNS
    }

    fn hint(&self) -> String {
        match self {
            Self::Open(_) => "the container is gone, or CNI_NETNS is not the path of its namespace: recreate it".into(),
            Self::Enter(_) => "the plugin needs CAP_SYS_ADMIN where the runtime runs".into(),
            Self::Own(_) => "a container in the host's network needs no plugin".into(),
        }
    }
}

impl Explain for LinkError {
    fn code(&self) -> u32 {
        code::OTHER
    }

    fn hint(&self) -> String {
        if self.is_permission() {
            return "the plugin needs CAP_NET_ADMIN where the runtime runs".into();
        }
        "nothing of the container's network is left behind; the runtime may try again".into()
    }
}
