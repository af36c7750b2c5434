//! What can go wrong with a cluster.

use std::io;
use std::path::Path;

use flannel_kernel::mount::MountError;
use flannel_kernel::namespace::NamespaceError;

/// An operation on a cluster that failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A program is not to be found.
    #[error("no {name} in {places}: {hint}")]
    Absent {
        /// Which.
        name: String,
        /// Where it was looked for.
        places: String,
        /// How to get it.
        hint: &'static str,
    },
    /// A file, socket or process operation failed.
    #[error("cannot {action}")]
    System {
        /// What was tried, with its object.
        action: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A namespace failed.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A program does not do what it should.
    #[error("{program} {why}")]
    Program {
        /// Which.
        program: String,
        /// What is the matter.
        why: String,
        /// The end of what it said.
        log: String,
    },
    /// The API server answered with an error, or not at all.
    #[error("{request}: {status} {message}")]
    Refused {
        /// The verb and the path.
        request: String,
        /// The status of HTTP; 0 where there was no answer.
        status: u16,
        /// What it said.
        message: String,
    },
    /// Something did not come true in time.
    #[error("{what} within {seconds} s")]
    Late {
        /// What was not the case, and what was instead.
        what: String,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
}

impl ClusterError {
    /// Whether the API server said that what was to be made is there already, or was changed meanwhile.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }
}

/// Says what was being done when an operation of the system failed.
pub(crate) trait Doing<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, ClusterError>;

    fn on(self, action: &str, path: &Path) -> Result<T, ClusterError>
    where
        Self: Sized,
    {
        self.doing(|| format!("{action} {}", path.display()))
    }
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, ClusterError> {
        self.map_err(|source| ClusterError::System { action: action(), source })
    }
}

impl<T> Doing<T> for rustix::io::Result<T> {
    fn doing(self, action: impl FnOnce() -> String) -> Result<T, ClusterError> {
        self.map_err(|error| ClusterError::System { action: action(), source: error.into() })
    }
}
