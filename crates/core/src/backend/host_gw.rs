//! host-gw: each peer's subnet is routed to the peer, which must be on the same link. No options, no published data.

use crate::json::Fields;

/// `Backend.Type` and `BackendType`.
pub const TYPE: &str = "host-gw";

/// Options of Windows nodes in the same config, without a meaning here.
const OF_WINDOWS: [&str; 2] = ["Name", "DNSServerList"];

/// Takes the options out of the config's `Backend`.
pub(crate) fn read(options: &mut Fields) {
    for key in OF_WINDOWS {
        options.take(key);
    }
}
