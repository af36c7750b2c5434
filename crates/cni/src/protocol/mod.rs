//! What all plugins share of the CNI specification: environment, network configuration, versions, results and errors.
//!
//! Surface: [`environment::Call`], [`conf::NetConf`], [`version::Version`], [`result::CniResult`] and
//! [`failure::Failure`]. What a configuration's own keys mean is each plugin's business.

pub(crate) mod attachments;
pub mod conf;
pub mod environment;
pub mod failure;
pub(crate) mod file;
pub(crate) mod input;
pub mod key;
pub mod result;
pub mod version;
