//! Giving up what a host holds in a local store, for good.

use std::fs;
use std::path::Path;

use flannel_core::lease::LeaseKey;

use super::LocalStore;
use super::directory::{Directory, Patience, Unavailable};
use crate::HoldError;
use crate::host::Host;

impl LocalStore {
    /// The records that a host has signed in this boot of it.
    pub fn signed(directory: &Path, host: &Host) -> Result<Vec<LeaseKey>, HoldError> {
        let directory = Directory::new(directory, host);
        directory.is_there()?;
        let is_own = |key: &LeaseKey| directory.read_holder(key).is_some_and(|holder| host.is(&holder.host));
        let holders = match fs::read_dir(directory.holders()) {
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            holders => holders.map_err(|source| Unavailable::new("list", directory.holders(), source))?,
        };
        let names = holders.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut keys: Vec<LeaseKey> = names.filter_map(|name| Directory::key_of(&name)).filter(is_own).collect();
        keys.sort();
        Ok(keys)
    }

    /// Removes one of them.
    pub fn release(directory: &Path, host: &Host, key: &LeaseKey) -> Result<(), HoldError> {
        let directory = Directory::new(directory, host);
        let _lock = directory.lock(&Patience::new());
        Ok(directory.remove_record(key)?)
    }
}
