//! Everything flannel asks of the Linux kernel: synchronous, blocking, and the only crate beside `tunnel` with `unsafe`.
//!
//! No decision is taken here: callers say what they want in the words of `flannel-core`.

pub mod bridge_netfilter;
pub mod capture;
pub mod conntrack;
pub mod executor;
pub mod facts;
pub mod fake;
pub mod guest;
pub mod iptables;
mod links;
pub mod linux;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod netlink;
mod nexthops;
pub mod nft;
pub mod passage;
pub mod pod_link;
pub mod pod_masquerade;
pub mod port_map;
pub mod process;
mod program;
pub mod random;
mod reading;
pub mod rules;
pub mod spoof_check;
pub mod sysctl;
mod x_tables;
