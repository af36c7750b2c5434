//! What flannel costs, measured beside what it is compared with: a floor, other people's plugins, a network made by hand,
//! another daemon.
//!
//! Surface: [`benches`] (what can be measured), [`document`] (what a run has to show: tables, JSON, Markdown). Every bench
//! measures all its contenders in one run, turn about where they can share a place, so that the machine's moods hit all alike
//! and ratios are meant. Nothing here judges: a figure beside its target is printed, and no test asserts one.

pub mod api;
pub mod benches;
pub mod by_hand;
pub mod cni;
pub mod document;
pub mod etcd;
pub mod figure;
pub mod fleet;
pub mod floor;
pub mod ground;
pub mod http;
pub mod idle;
pub mod kubernetes;
pub mod machine;
pub mod node;
pub mod peers;
pub mod repair;
pub mod report;
pub mod restart;
pub mod server;
pub mod statistics;
pub mod switch;
pub mod traffic;
pub mod tunnel;
pub mod turns;
