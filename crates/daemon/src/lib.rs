//! The one loop of `flanneld`, its start-up, and what the outside sees of it.

mod advice;
mod agent;
mod attempt;
pub mod fatal;
pub mod flags;
pub mod health;
pub mod log;
pub mod notify;
pub mod published;
pub mod reconcile;
pub mod remains;
mod run;
#[cfg(test)]
mod scene;
pub mod subnet_file;
pub mod upkeep;
pub mod worker;

pub use run::run;
