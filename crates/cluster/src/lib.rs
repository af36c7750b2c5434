//! Kubernetes of its own for a test or a bench: real released servers in the namespaces of the caller.
//!
//! Surface: [`ApiServer`] (an API server with its etcd: enough for what only speaks to the API), [`Cluster`] (all of it, with nodes
//! that run pods). What is run comes from `K8S_BIN` or `KUBEBUILDER_ASSETS`, else from the cache that `cargo xtask go-kube` fills.
//!
//! Nothing here takes down what it has started but by ending it: it is for processes whose end ends all of their namespaces
//! ([`flannel_kernel::process::enclose`]).

mod api;
mod certificates;
mod cluster;
mod control_groups;
mod error;
mod image;
mod layout;
mod node;
mod place;
mod programs;
mod server;

pub use api::{ApiServer, Identity, Options};
pub use certificates::Certificate;
pub use cluster::{Cluster, ClusterOptions};
pub use error::ClusterError;
pub use image::BUSYBOX;
pub use node::Node;
pub use place::Place;
pub use programs::{etcd, kubernetes};
