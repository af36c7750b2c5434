//! `loopback`, alone and behind others.

use serde_json::json;

use crate::host_local::NO_DNS;
use crate::world::row::{Better, Row};

/// All of them.
pub(crate) fn table() -> (Vec<Row>, Vec<Better>) {
    let given = json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/one"}],
        "ips": [{"interface": 0, "address": "10.244.1.5/24"}]});
    let mut rows: Vec<_> = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0"].map(older).into();
    rows.extend(["1.0.0", "1.1.0"].map(alone));
    rows[6].only = Some(crate::Build::Released);
    rows.push(Row { given, ..Row::of("loopback", "behind another", json!({})) });
    (rows, vec![NO_DNS])
}

fn alone(version: &'static str) -> Row {
    Row { version, ..Row::of("loopback", "alone", json!({})) }
}

fn older(version: &'static str) -> Row {
    let why = "the result has the shape of its version; the Go plugin prints that of 1.0.0 with another number";
    let at = if version <= "0.2.0" { "/answer/ip" } else { "/version: theirs null" };
    let row = alone(version).better(None, at, why).better(crate::Build::Released, "/answer/dns: theirs null", why);
    if version <= "0.2.0" { row.better(None, "/answer/interfaces", why) } else { row }
}
