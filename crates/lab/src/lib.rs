//! A network of flannel nodes in namespaces on one machine: to look at, to break, and to test on.

pub mod build;
pub mod command;
pub mod control;
pub mod damage;
pub mod echo;
pub mod error;
pub mod etcd;
pub mod flanneld;
pub mod lab;
pub mod layout;
pub mod options;
pub mod picture;
pub mod place;
pub mod proof;
mod relay;
pub mod repair;
pub mod report;
pub mod runtime;
pub mod siege;
mod svg;
pub mod swap;
pub mod traffic;
mod voice;
pub mod walk;
mod watch;
mod wire;
