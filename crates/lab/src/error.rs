//! What can go wrong in a lab.

use std::path::Path;
use std::time::Duration;

use flannel_kernel::mount::MountError;
use flannel_kernel::namespace::NamespaceError;
use flannel_kernel::process::EncloseError;

/// An operation of the lab that failed.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The options ask for something impossible.
    #[error("{0}")]
    Options(String),
    /// The lab's own namespaces cannot be made.
    #[error("cannot enclose the lab")]
    Enclose(#[from] EncloseError),
    /// A namespace failed.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A file, socket or process operation failed.
    #[error("cannot {action}")]
    System {
        /// What was tried, with its object.
        action: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A request to the kernel failed.
    #[error("cannot {action}: {cause}")]
    Kernel {
        /// What was tried, with its object.
        action: String,
        /// The kernel's answer.
        cause: String,
    },
    /// A flanneld does not do what it should.
    #[error("flanneld on {node} {why}")]
    Daemon {
        /// Which node.
        node: String,
        /// What is the matter.
        why: String,
        /// The end of its log.
        log: String,
    },
    /// A server of etcd does not do what it should.
    #[error("etcd server {member} {why}")]
    Etcd {
        /// Which.
        member: String,
        /// What is the matter.
        why: String,
        /// The end of its log.
        log: String,
    },
    /// An etcd that somebody else runs cannot keep the lab's leases.
    #[error("etcd at {endpoints} {why}")]
    Elsewhere {
        /// Its servers.
        endpoints: String,
        /// What is the matter.
        why: String,
    },
    /// A CNI plugin refused.
    #[error("CNI {command} of plugin {plugin} for {pod} failed: {why}")]
    Plugin {
        /// `ADD`, `DEL`, …
        command: &'static str,
        /// The plugin's type.
        plugin: String,
        /// The pod.
        pod: String,
        /// The plugin's error, or how it died.
        why: String,
    },
    /// Nobody is called that.
    #[error("nothing in the lab is called `{name}`; there are {known}")]
    Unknown {
        /// The name given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// It took too long.
    #[error("{what} did not happen within {} s", after.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
        /// The end of the log that may say why.
        log: String,
    },
    /// While the servers of etcd were besieged something became wrong, or did not become right.
    #[error("this is not as etcd says: {wrong}")]
    Besieged {
        /// What.
        wrong: String,
        /// The end of the logs of all daemons.
        log: String,
    },
    /// Proofs failed; each is told in the report.
    #[error("{failed} of {all} proofs failed")]
    Proofs {
        /// How many.
        failed: usize,
        /// Of how many.
        all: usize,
    },
    /// A build did not come up and was taken out again.
    #[error("the new build did not come up: {why}")]
    Swap {
        /// The node.
        node: String,
        /// What it did not do.
        why: String,
    },
    /// The lab that was called for is not there.
    #[error("no lab of yours is up")]
    NoLab,
    /// A lab is there already.
    #[error("a lab of yours is up already")]
    Present,
    /// The lab that is up could not do what it was asked.
    #[error("{message}")]
    Refused {
        /// What it said.
        message: String,
        /// What it said may be done about it.
        hint: Option<String>,
    },
    /// A packet could not be followed at all, which is not the same as that it died.
    #[error(transparent)]
    Unwalked(Box<LabError>),
    /// The talk with the lab went wrong.
    #[error("{0}")]
    Control(&'static str),
}

impl LabError {
    /// What a person may do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NoLab => Some("start one with `flannel lab up`"),
            Self::Present => Some("look at it with `flannel lab ls`, end it with `flannel lab down`"),
            Self::Daemon { .. } => Some("its log is shown above; `flannel lab --flanneld PATH` runs another build"),
            Self::Etcd { .. } => Some(
                "the lab runs `etcd` and `etcdctl` of PATH, or what ETCD and ETCDCTL name; Debian has them in etcd-server and etcd-client",
            ),
            Self::Elsewhere { .. } => Some(
                "it must be reached from this machine, also by `etcdctl` (or what ETCDCTL names); what is below --etcd-prefix is the lab's alone",
            ),
            Self::Swap { .. } => Some("the build before it runs again"),
            Self::Refused { hint, .. } => hint.as_deref(),
            Self::Unwalked(error) => error.hint(),
            _ => None,
        }
    }

    /// The exit status of a command that ends with it: 2 where 1 is a result (`flannel lab walk`).
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::Unwalked(_)) { 2 } else { 1 }
    }

    /// The end of a log that may say why; several lines.
    pub fn log(&self) -> Option<&str> {
        match self {
            Self::Daemon { log, .. }
            | Self::Etcd { log, .. }
            | Self::Besieged { log, .. }
            | Self::Timeout { log, .. } => Some(log),
            _ => None,
        }
    }
}

/// Names the operation that an I/O error belongs to.
pub(crate) trait Doing<T> {
    /// `action` completes "cannot …".
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, LabError>;

    /// The same for an operation on a file.
    fn on(self, action: &str, path: &Path) -> Result<T, LabError>
    where
        Self: Sized,
    {
        self.doing(|| format!("{action} {}", path.display()))
    }
}

impl<T, E: Into<std::io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|cause| LabError::System { action: action(), source: cause.into() })
    }
}
