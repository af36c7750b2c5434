//! Scenarios of the loop on a scripted store and a fake kernel, on one thread with paused time: what the store and the host
//! say in; calls to the store, the kernel's state, `subnet.env` and readiness out.

mod config;
mod host;
mod own_lease;
mod peers;
mod stage;
mod standing;
mod start;

const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8:42::/56","EnableNFTables":true,
    "Backend":{"Type":"vxlan"}}"#;
