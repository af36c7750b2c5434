//! The keys of `bridge`, with `host-local` behind it; what is on the host before; versions.

use serde_json::{Value, json};

use crate::host_local::{as_released, dual, four, six};
use crate::world::FILES;
use crate::world::row::{Better, Build, Row, TWO};

/// A row of `bridge`; null for no `ipam`.
fn row(name: &'static str, mut keys: Value, ipam: Value) -> Row {
    if !ipam.is_null() {
        keys["ipam"] = ipam;
        keys["ipam"]["type"] = json!("host-local");
        keys["ipam"]["dataDir"] = json!(FILES);
    }
    Row::of("bridge", name, keys)
}

/// What flannel gives its delegate.
pub(crate) fn gateway() -> Value {
    json!({"isGateway": true, "mtu": 1450, "ipMasq": false})
}

/// All of them.
pub(crate) fn table() -> (Vec<Row>, Vec<Better>) {
    let groups = [gateways(), ports(), masquerades(), requests(), hosts(), versions(), refused()];
    (groups.into_iter().flatten().collect(), better().into_iter().chain(as_released()).collect())
}

/// What ours does otherwise in many rows.
pub(crate) fn better() -> Vec<Better> {
    let pinned =
        |at| Better::than_all(at, "the bridge keeps its MAC whatever ports come and go, so that a CHECK finds it");
    let mut all = in_any_list();
    all.push(pinned("/links/cni0/address: theirs \"00:00:00:00:00:00\" ours \"MAC\""));
    all.push(pinned("/bridge/fdb: only ours {\"flags\":[],\"ifname\":\"cni0\",\"mac\":\"MAC\",\"master\":\"cni0\""));
    all
}

/// The same, of these also in lists of plugins.
pub(crate) fn in_any_list() -> Vec<Better> {
    let queue = "a queue that someone gives the interface has room for more than one packet";
    let at_once = |at| Better::than_all(at, "the address can be used when the ADD returns, without a wait");
    let stays = "an address outlives an interface that is set down and up, as in 1.9.1";
    vec![
        Better::than_all("/txqlen: theirs null ours 1000", queue),
        at_once("/nodad: theirs null ours true"),
        at_once("/tentative: theirs true ours null"),
        Better::than(Build::Debian, "/ipv6/keep_addr_on_down: theirs \"0\" ours \"1\"", stays),
    ]
}

fn gateways() -> Vec<Row> {
    let manifest = json!({"isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "mtu": 1450});
    let default_gateway = json!({"isDefaultGateway": true, "hairpinMode": true, "mtu": 1400});
    let mut own_default = four();
    own_default["routes"] = json!([{"dst": "0.0.0.0/0", "gw": "10.244.1.9"}]);
    let name_servers = json!({"isGateway": true, "dns": {"nameservers": ["10.0.0.10"], "search": ["a.b"]}});
    vec![
        Row { story: TWO, ..row("flannel's default", gateway(), four()) },
        row("flannel's default, dual-stack", gateway(), dual()),
        row("flannel's default, IPv6 only", gateway(), six()),
        row("flannel's manifest", manifest, four()),
        row("default gateway, dual-stack", default_gateway, dual()),
        row("a default route of its own", json!({"isDefaultGateway": true}), own_default),
        row("no gateway", json!({}), four()),
        row("no gateway, dual-stack", json!({"mtu": 9000}), dual()),
        row("name servers", name_servers, four()),
    ]
}

fn ports() -> Vec<Row> {
    let isolated = json!({"isGateway": true, "portIsolation": true, "hairpinMode": true});
    let kept = json!({"isGateway": true, "preserveDefaultVlan": true, "vlan": 0, "vlanTrunk": null});
    let down = json!({"disableContainerInterface": true});
    vec![
        row("no addresses", json!({}), Value::Null),
        row("no addresses, hairpin", json!({"hairpinMode": true, "mtu": 1300}), Value::Null),
        row("another bridge", json!({"bridge": "br-x", "isGateway": true}), four()),
        row("promiscuous", json!({"promiscMode": true, "isGateway": true}), four()),
        row("hairpin", json!({"hairpinMode": true}), four()),
        row("duplicates are looked for", json!({"enabledad": true, "isGateway": true}), dual()).released(),
        row("duplicates are not looked for", json!({"enabledad": false, "isGateway": true}), six()),
        row("isolated port", isolated, four()).released(),
        row("default VLAN kept without VLANs", kept, four()),
        row("its own MAC only", json!({"macspoofchk": true, "isGateway": true}), four()),
        row("its own MAC only, no addresses", json!({"macspoofchk": true}), Value::Null),
        row("the interface stays down", down, Value::Null).released(),
    ]
}

fn masquerades() -> Vec<Row> {
    let by = |backend: &str| json!({"isGateway": true, "ipMasq": true, "ipMasqBackend": backend});
    vec![
        Row { story: TWO, ..row("masqueraded", json!({"isGateway": true, "ipMasq": true}), four()) },
        row("masqueraded, dual-stack", json!({"isDefaultGateway": true, "ipMasq": true}), dual()),
        row("masqueraded without addresses", json!({"ipMasq": true}), Value::Null),
        row("masqueraded by iptables", by("iptables"), dual()).released(),
        Row { story: TWO, ..row("masqueraded by nftables", by("nftables"), dual()) }.released(),
        row("masqueraded by nftables, IPv6 only", by("nftables"), six()).released(),
    ]
}

const IPS: &str = "10.244.1.50";

fn requests() -> Vec<Row> {
    let able = |capability: &str| json!({"isGateway": true, "capabilities": {capability: true}});
    let runtime = |name, capability: &str, value: Value, ipam| Row {
        runtime: json!({capability: value}),
        ..row(name, able(capability), ipam)
    };
    let by_args = |args: Value| json!({"isGateway": true, "args": {"cni": args}});
    let mut all = by_args(json!({"ips": [IPS, "fd00:1::50"], "mac": "c2:11:22:33:44:55"}));
    all["capabilities"] = json!({"mac": true});
    vec![
        runtime("addresses by the runtime", "ips", json!([IPS, "fd00:1::50/64"]), dual()),
        runtime("ranges by the runtime", "ipRanges", json!([[{"subnet": "10.244.8.0/24"}]]), six()),
        runtime("a MAC by the runtime", "mac", json!("c2:11:22:33:44:55"), four()),
        row("addresses by args", by_args(json!({"ips": [IPS]})), four()),
        row("a MAC by args", by_args(json!({"mac": "c2:11:22:33:44:55"})), four()),
        Row { args: "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.244.1.52", ..row("CNI_ARGS, address", gateway(), four()) },
        Row { args: "IgnoreUnknown=1;MAC=c2:11:22:33:44:66", ..row("CNI_ARGS, MAC", gateway(), four()) },
        Row {
            args: "MAC=c2:11:22:33:44:66;IgnoreUnknown=true",
            runtime: json!({"mac": "c2:11:22:33:44:77"}),
            ..row("the runtime's MAC before args' before CNI_ARGS'", all, dual())
        },
    ]
}

const BRIDGE: &str = "ip link add cni0 address c2:11:22:00:00:01 up type bridge";

fn hosts() -> Vec<Row> {
    let host = |name, keys, before, ipam| Row { before, ..row(name, keys, ipam) };
    let force = || json!({"isGateway": true, "forceAddress": true});
    vec![
        host("a bridge that is there, down", gateway(), &["ip link add cni0 mtu 1400 type bridge"], four()),
        host("a bridge with its address", gateway(), &[BRIDGE, "ip addr add 10.244.1.1/24 dev cni0"], four()),
        host("a bridge with an IPv6 address", gateway(), &[BRIDGE, "ip addr add fd00:9::1/64 dev cni0 nodad"], dual()),
        host("another address replaced", force(), &[BRIDGE, "ip addr add 10.9.9.1/24 dev cni0"], four()),
        host(
            "other addresses replaced",
            force(),
            &[BRIDGE, "ip addr add 10.9.9.1/24 dev cni0", "ip addr add fd00:1::7/48 dev cni0 nodad"],
            dual(),
        ),
        host("a bridge with another address", gateway(), &[BRIDGE, "ip addr add 10.9.9.1/24 dev cni0"], four()).fails(),
        host("another prefix length", gateway(), &[BRIDGE, "ip addr add 10.244.1.1/25 dev cni0"], four()).fails(),
        host("an overlapping prefix", gateway(), &[BRIDGE, "ip addr add fd00:1::7/48 dev cni0 nodad"], six()).fails(),
        host("not a bridge", gateway(), &["ip link add cni0 type veth peer name x"], four()).fails(),
    ]
}

fn versions() -> Vec<Row> {
    let of = |version| Row { version, ..row("flannel's default, dual-stack", gateway(), dual()) };
    let old = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0"].map(of);
    old.into_iter().chain([of("1.1.0").released()]).collect()
}

fn refused() -> Vec<Row> {
    let down = json!({"disableContainerInterface": true});
    vec![
        row("hairpin and promiscuous", json!({"hairpinMode": true, "promiscMode": true}), four()).fails(),
        row("MTU too small", json!({"mtu": 10, "isGateway": true}), four()).fails(),
        row("addresses of an interface that stays down", down, four()).released().fails(),
    ]
}
