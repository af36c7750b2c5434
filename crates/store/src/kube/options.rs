//! What the Kubernetes store is told.

use std::path::PathBuf;

use flannel_core::annotations::Prefix;

use super::access::Access;

/// How to reach the Kubernetes API, and what to do there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How to reach the API, and as whom.
    pub access: Access,
    /// Which Node we are.
    pub node: NodeName,
    /// What the names of flannel's annotations begin with.
    pub prefix: Prefix,
    /// The file of the network config.
    pub config: PathBuf,
    /// Whether the Node's condition `NetworkUnavailable` is kept true to how we stand.
    pub sets_condition: bool,
}

/// Which Node we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeName {
    /// The one of this name.
    Given(String),
    /// The one that this Pod runs on.
    OfPod {
        /// The Pod's namespace.
        namespace: String,
        /// The Pod's name.
        name: String,
    },
}
