//! Every flag of `flanneld`: name, kind, default and one line for the usage text.

use std::fmt::Write as _;

use super::StoreKind;

/// What a flag's value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A boolean: its value, if any, follows `=`.
    Switch,
    /// An integer in the syntax of Go's `strconv.ParseInt` with base 0.
    Number,
    /// Any text.
    Text,
    /// Any text that is never shown.
    Secret,
    /// Any text; each occurrence adds one.
    List,
}

/// A row of the table.
#[derive(Clone, Copy)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) default: &'static str,
    /// The store that the flag speaks of, if it speaks of one.
    pub(super) store: Option<StoreKind>,
    about: &'static str,
}

impl Flag {
    /// The environment variable that stands in for the flag; `-version` has none.
    pub(super) fn variable(&self) -> Option<String> {
        (self.name != "version").then(|| format!("FLANNELD_{}", self.name.to_uppercase().replace('-', "_")))
    }
}

const fn flag(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Flag {
    Flag { name, kind, default, store: None, about }
}

const fn of(store: StoreKind, flag: Flag) -> Flag {
    Flag { store: Some(store), ..flag }
}

use Kind::{List, Number, Secret, Switch, Text};
use StoreKind::{Etcd, Kube, Local};

/// The table, in the order of the usage text.
pub(super) const FLAGS: &[Flag] = &[
    of(Local, flag("local-store", Text, "", "keep leases in this directory; not with the flags of etcd or Kubernetes")),
    of(
        Etcd,
        flag(
            "etcd-endpoints",
            Text,
            "http://127.0.0.1:4001,http://127.0.0.1:2379",
            "etcd servers, separated by commas",
        ),
    ),
    of(Etcd, flag("etcd-prefix", Text, "/coreos.com/network", "prefix of flannel's keys in etcd")),
    of(Etcd, flag("etcd-keyfile", Text, "", "private key of the client certificate")),
    of(Etcd, flag("etcd-certfile", Text, "", "client certificate")),
    of(Etcd, flag("etcd-cafile", Text, "", "certificate of the authority that signed the servers' certificates")),
    of(Etcd, flag("etcd-username", Text, "", "user name for etcd")),
    of(Etcd, flag("etcd-password", Secret, "", "password for etcd")),
    of(Kube, flag("kube-subnet-mgr", Switch, "false", "keep leases in the Kubernetes API")),
    of(Kube, flag("kube-api-url", Text, "", "Kubernetes API server, when not inside the cluster")),
    of(Kube, flag("kubeconfig-file", Text, "", "kubeconfig file, when not inside the cluster")),
    of(
        Kube,
        flag("kube-annotation-prefix", Text, "flannel.alpha.coreos.com", "prefix of flannel's annotations on a Node"),
    ),
    of(
        Kube,
        flag("net-config-path", Text, "/etc/kube-flannel/net-conf.json", "network configuration, in Kubernetes mode"),
    ),
    of(
        Kube,
        flag("set-node-network-unavailable", Switch, "true", "set the Node's condition NetworkUnavailable when ready"),
    ),
    flag("iface", List, "", "external interface, by name or address; may be repeated, the first that matches wins"),
    flag("iface-regex", List, "", "regular expression for the external interface's address or name; may be repeated"),
    flag("iface-can-reach", Text, "", "use the interface through which this address is reached"),
    flag("public-ip", Text, "", "IPv4 address by which other nodes reach this one"),
    flag("public-ipv6", Text, "", "IPv6 address by which other nodes reach this one"),
    flag("subnet-file", Text, "/run/flannel/subnet.env", "where to write the subnet and MTU for the CNI plugin"),
    flag("subnet-lease-renew-margin", Number, "60", "renew the lease this many minutes before its end, 1 to 1439"),
    flag("ip-masq", Switch, "false", "masquerade what leaves the network"),
    flag("ip-masq-fully-random-disable", Switch, "false", "do not ask for fully random source ports"),
    flag("iptables-resync", Number, "5", "seconds between two looks at the packet rules"),
    flag("iptables-forward-rules", Switch, "true", "accept forwarded traffic of the network"),
    flag("ip-blackhole-route", Switch, "false", "drop what is for the own subnet but for no pod"),
    flag("restore-ports", Switch, "true", "make rules of the plugin portmap again when somebody flushed them"),
    flag("healthz-ip", Text, "0.0.0.0", "address of the health server"),
    flag("healthz-port", Number, "0", "port of the health server; 0 means none"),
    flag("v", Number, "0", "log level: 0 says what changes, 1 more, 2 and up everything"),
    flag("vmodule", Text, "", "accepted for compatibility, without effect"),
    flag("log_backtrace_at", Text, "", "accepted for compatibility, without effect"),
    flag("version", Switch, "false", "print the version and exit"),
];

/// What `flanneld --help` prints.
pub fn usage() -> String {
    let mut text = String::from("Usage: flanneld [FLAG]...\n\nEach flag but version may come from the environment: ");
    text.push_str("-ip-masq is FLANNELD_IP_MASQ.\n\n");
    for flag in FLAGS {
        explain(flag, &mut text);
    }
    text
}

/// What the usage of a tool for one store says of the flags and the environment that it shares with `flanneld`.
pub fn usage_of(store: StoreKind) -> String {
    let mut text = String::from("Flags of flanneld, which may come from its environment (FLANNELD_ETCD_ENDPOINTS):\n");
    for flag in FLAGS.iter().filter(|flag| flag.store == Some(store)) {
        explain(flag, &mut text);
    }
    text
}

fn explain(flag: &Flag, text: &mut String) {
    let value = match flag.kind {
        Switch => "",
        Number => " NUMBER",
        Text | Secret | List => " TEXT",
    };
    let _ = writeln!(text, "  -{}{value}\n        {}{}", flag.name, flag.about, shown_default(flag));
}

fn shown_default(flag: &Flag) -> String {
    match flag.default {
        "" | "false" => String::new(),
        default => format!(" (default {default})"),
    }
}
