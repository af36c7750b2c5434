//! The one loop of `flanneld`, its start-up, and what the outside sees of it.

pub mod flags;
pub mod health;
pub mod log;
pub mod notify;
