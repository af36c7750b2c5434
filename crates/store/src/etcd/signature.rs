//! Signatures: who wrote a lease record, as `holders/` has it beside the record.
//!
//! A signature belongs to a record that was made or last written in the same revision; anything else was rewritten since by a
//! flannel that does not sign. Nothing here asks etcd.

use flannel_core::lease::LeaseKey;

use super::keys::{Keys, name_below};
use super::rpc::KeyValue;
use crate::host::Host;

/// Who wrote a record.
#[derive(Debug, Clone)]
pub(super) struct Signature {
    pub(super) host: Host,
    made: i64,
    written: i64,
}

impl Signature {
    /// Reads one, with the name of its record; none if it is unreadable, which counts as unsigned.
    pub(super) fn read(keys: &Keys, kv: &KeyValue) -> Option<(LeaseKey, Self)> {
        let host = serde_json::from_slice(&kv.value).ok()?;
        let signature = Self { host, made: kv.create_revision, written: kv.mod_revision };
        Some((name_below(&keys.holders(), &kv.key), signature))
    }

    /// Whether it belongs to a record.
    pub(super) fn is_of(&self, kv: &KeyValue) -> bool {
        self.written == kv.mod_revision || self.made == kv.create_revision
    }
}
