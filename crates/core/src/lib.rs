//! Flannel's logic without the world: what is leased, what the kernel must hold for it, and what has to change.
//!
//! Everything here is a pure function or a plain value. There is no I/O, no async, no clock, no environment
//! and no `unsafe`, so that every rule of the network can be tested on text.
//!
//! The path through this crate: [`config::NetworkConfig`] and [`facts::Facts`] make a [`node::Node`];
//! node and [`lease_set::LeaseSet`] make a [`plan::Plan`] (what we want); [`diff::steps`] goes by what the
//! [`state::State`] that the kernel was seen to hold differs from that ([`objects::Objects`]), and gives the [`diff::Op`]s
//! between them.

pub mod addr;
pub mod annotations;
pub mod backend;
pub mod config;
pub mod diff;
pub mod facts;
mod json;
#[cfg(any(test, feature = "laws"))]
pub mod laws;
pub mod lease;
pub mod lease_set;
pub mod node;
pub mod objects;
pub mod plan;
pub mod port_map;
pub mod record;
pub mod rules;
pub mod state;
pub mod subnet_env;
mod subnets;

pub use json::cut;
