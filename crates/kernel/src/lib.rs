//! Everything flannel asks of the Linux kernel: synchronous, blocking, and the only crate beside `tunnel` with `unsafe`.
//!
//! No decision is taken here: callers say what they want in the words of `flannel-core`.

pub mod executor;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod packet_rules;
pub mod process;
