//! Command lines and environments that `flanneld` refuses.

use super::{Case, Outcome};

const fn refused(command: &'static str, says: &'static str) -> Case {
    ends(command, 2, says)
}

const fn ends(command: &'static str, status: i32, says: &'static str) -> Case {
    Case { wrong: command, before: "", command, outcome: Outcome::Ends { status, says } }
}

pub(super) const CASES: &[Case] = &[
    refused("flanneld --local-store=. --ipmasq", "error: unknown flag: `-ipmasq`\nhint: did you mean `-ip-masq`?"),
    refused("flanneld --kubernetes", "error: unknown flag: `-kubernetes`"),
    refused("flanneld ---v=1", "error: bad flag syntax: `---v`"),
    refused("flanneld --subnet-file", "error: flag `-subnet-file` needs a value"),
    refused(
        "flanneld --ip-masq=yes",
        "error: bad value `yes` for `-ip-masq`: a switch is `true` or `false`, written `-flag=false`",
    ),
    refused("flanneld --healthz-port=http", "error: bad value `http` for `-healthz-port`: not a whole number"),
    refused("flanneld --healthz-port=65536", "error: bad value `65536` for `-healthz-port`: must be 0 to 65535"),
    refused("flanneld --public-ip=example", "error: bad value `example` for `-public-ip`: not an IPv4 address"),
    refused("flanneld --public-ipv6=192.0.2.1", "error: bad value `192.0.2.1` for `-public-ipv6`: not an IPv6 address"),
    refused(
        "flanneld '--iface-regex=eth('",
        "error: bad value `eth(` for `-iface-regex`: found open group without closing ')'",
    ),
    refused(
        "FLANNELD_IPTABLES_RESYNC=often flanneld --local-store=.",
        "error: bad value `often` for `FLANNELD_IPTABLES_RESYNC`: not a whole number",
    ),
    refused(
        "FLANNELD_ETCD_PASSWORD=s3cret flanneld --local-store=.",
        "error: `-local-store` and `FLANNELD_ETCD_PASSWORD` exclude each other: leases are kept in one place\n\
         hint: give --local-store alone, or the flags of one other store",
    ),
    ends(
        "flanneld --local-store=. --subnet-lease-renew-margin=0",
        1,
        "error: bad value `0` for `-subnet-lease-renew-margin`: the margin must be 1 to 1439 minutes",
    ),
    ends(
        "flanneld --local-store=. --subnet-lease-renew-margin 1440",
        1,
        "error: bad value `1440` for `-subnet-lease-renew-margin`: the margin must be 1 to 1439 minutes",
    ),
    ends(
        "flanneld --kube-subnet-mgr",
        1,
        "error: which Node this is cannot be told: neither NODE_NAME is set, nor POD_NAME and POD_NAMESPACE\n\
         hint: in the DaemonSet's env: {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}; elsewhere the name that `kubectl get nodes` shows",
    ),
    refused(
        "flanneld --etcd-endpoints=ftp://192.0.2.1",
        "error: bad value `ftp://192.0.2.1` for `-etcd-endpoints`: the scheme is http or https",
    ),
    refused(
        "FLANNELD_ETCD_PASSWORD=s3cret flanneld",
        "error: bad value `(hidden)` for `FLANNELD_ETCD_PASSWORD`: a password needs -etcd-username",
    ),
    ends("flanneld --version", 0, concat!("v", env!("CARGO_PKG_VERSION"))),
];
