//! The keys of `host-local`, called by itself: what it answers and what it writes.

use serde_json::{Value, json};

use crate::world::FILES;
use crate::world::row::{Better, Build, ONE, Row, TWO};

/// One range of IPv4.
pub(crate) fn four() -> Value {
    json!({"ranges": [[{"subnet": "10.244.1.0/24"}]], "routes": [{"dst": "10.244.0.0/16"}]})
}

/// One range of IPv6.
pub(crate) fn six() -> Value {
    json!({"ranges": [[{"subnet": "fd00:1::/64"}]], "routes": [{"dst": "fd00::/48"}]})
}

/// Both.
pub(crate) fn dual() -> Value {
    json!({
        "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]],
        "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00::/48"}],
    })
}

fn row(name: &'static str, mut ipam: Value) -> Row {
    ipam["type"] = json!("host-local");
    if ipam["dataDir"].is_null() {
        ipam["dataDir"] = json!(FILES);
    }
    Row { story: TWO, ..Row::of("host-local", name, json!({"ipam": ipam})) }
}

/// All of them.
pub(crate) fn table() -> (Vec<Row>, Vec<Better>) {
    (
        versions().into_iter().chain([ranges(), routes(), requests(), refused()].into_iter().flatten()).collect(),
        as_released(),
    )
}

/// Where the release has made Debian's better.
pub(crate) fn as_released() -> Vec<Better> {
    let than = |at, why| Better::than(Build::Debian, at, why);
    vec![
        than("/mode: theirs \"644\" ours \"600\"", "who has an address is nobody else's business, as in 1.9.1"),
        NO_DNS,
    ]
}

/// What Debian's result has and the release's has not.
pub(crate) const NO_DNS: Better = Better {
    than: Some(Build::Debian),
    at: "/answer/dns: theirs {} ours null",
    why: "what says nothing is left out, as in 1.9.1; absent and empty read the same",
};

fn one(range: Value) -> Value {
    json!({"ranges": [Value::from(vec![range])]})
}

fn ranges() -> Vec<Row> {
    let explicit = json!({
        "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.20", "rangeEnd": "10.244.1.21", "gateway": "10.244.1.254",
    });
    let inside = json!({"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.2", "gateway": "10.244.1.2"});
    let two = json!({"ranges": [[
        {"subnet": "10.244.1.0/24", "rangeEnd": "10.244.1.2"},
        {"subnet": "10.244.2.0/24", "rangeStart": "10.244.2.9"},
    ]]});
    let six = json!({"subnet": "fd00:1::/64", "rangeStart": "fd00:1::ffff", "rangeEnd": "fd00:1::1:1", "gateway": "fd00:1::1"});
    let old = json!({"subnet": "10.244.7.0/24", "rangeStart": "10.244.7.7", "rangeEnd": "10.244.7.8", "gateway": "10.244.7.1"});
    let old_and_set = json!({"subnet": "10.244.7.0/24", "ranges": [[{"subnet": "fd00:7::/64"}]]});
    let last = json!({"ranges": [[{"subnet": "10.244.1.0/30"}], [{"subnet": "fd00:1::/126"}]]});
    let many =
        json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}], [{"subnet": "10.3.0.0/24"}]]});
    vec![
        row("two families", dual()),
        row("explicit range", one(explicit)),
        row("gateway inside a range", one(inside)),
        row("two ranges in a set", two),
        row("an explicit range of IPv6", one(six)),
        row("old style range", old),
        row("old style range and a set", old_and_set),
        Row { story: ONE, ..row("the last addresses", last) },
        row("three sets of one family", many),
        // Wherever a plugin is started: nothing is above the root.
        row(
            "a folder by a relative path",
            json!({"dataDir": "../../../../../../../../../../run/files", "ranges": [[{"subnet": "10.244.1.0/24"}]]}),
        ),
        row("a folder of its own", json!({"dataDir": "/run/files/deep/er", "ranges": [[{"subnet": "10.244.1.0/24"}]]})),
    ]
}

fn routes() -> Vec<Row> {
    let with = |routes: Value| json!({"ranges": dual()["ranges"], "routes": routes});
    let gateways =
        json!([{"dst": "10.9.0.0/16", "gw": "10.244.1.77"}, {"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00:1::1"}]);
    let options = json!([{"dst": "10.9.0.0/16", "mtu": 1400, "advmss": 1360, "priority": 50, "table": 77, "scope": 253},
        {"dst": "fd00:9::/64", "mtu": 1400, "priority": 10, "table": 254}]);
    let host_bits = json!([{"dst": "10.9.1.1/16"}]);
    let resolv_conf = |version| Row {
        version,
        files: &[(
            "/run/files/resolv.conf",
            "# a\nnameserver 10.0.0.53\nnameserver 10.0.0.54\nsearch a.b c.d\n\
            options ndots:5 edns0\ndomain e.f\n; b\nsortlist 1.2.3.4\n",
        )],
        ..row("name servers of a file", json!({"resolvConf": "/run/files/resolv.conf", "ranges": four()["ranges"]}))
    };
    vec![
        row("routes with gateways", with(gateways)),
        Row { version: "1.1.0", ..row("routes with options", with(options.clone())) }.released(),
        Row { version: "1.0.0", ..row("routes with options that the version has not", with(options.clone())) }
            .released(),
        Row { version: "0.4.0", ..row("routes with options that the version has not", with(options.clone())) }
            .released(),
        Row { version: "0.2.0", ..row("routes with options that the version has not", with(options)) }.released(),
        row("a route with host bits", with(host_bits)),
        row("no routes", one(json!({"subnet": "10.244.1.0/24"}))),
        resolv_conf("1.0.0"),
        resolv_conf("0.2.0"),
    ]
}

fn requests() -> Vec<Row> {
    let able = |capability: &str, ipam: Value| {
        let mut row = row("", ipam);
        row.story = ONE;
        row.plugins[0].keys["capabilities"] = json!({capability: true});
        row
    };
    let ips = |name, ips: Value| Row { name, runtime: json!({"ips": ips}), ..able("ips", dual()) };
    let ranges = |name, ranges: Value| Row { name, runtime: json!({"ipRanges": ranges}), ..able("ipRanges", four()) };
    let env = |name, args| Row { name, args, ..able("none", dual()) };
    vec![
        ips("both families asked for", json!(["10.244.1.50", "fd00:1::50/64"])),
        ips("one family asked for", json!(["fd00:1::50"])),
        ips("the gateway's asked for", json!(["10.244.1.1"])).fails(),
        ips("an address elsewhere asked for", json!(["10.99.1.1"])).fails(),
        ips("two of one range asked for", json!(["10.244.1.50", "10.244.1.51"])).fails(),
        ranges("ranges of the runtime", json!([[{"subnet": "10.244.8.0/24", "rangeStart": "10.244.8.8"}]])),
        env("asked for by CNI_ARGS", "IP=10.244.1.60"),
        env("asked for by CNI_ARGS among others", "IgnoreUnknown=1;IP=fd00:1::60;K8S_POD_NAME=x"),
        Row {
            args: "IP=10.244.1.60",
            runtime: json!({"ips": ["fd00:1::50"]}),
            ..Row { name: "asked for in two places", ..able("ips", dual()) }
        },
    ]
}

fn versions() -> Vec<Row> {
    let of = |version| Row { version, ..row("two families and routes", dual()) };
    let old = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0"].map(of);
    old.into_iter().chain([of("1.1.0").released()]).collect()
}

fn refused() -> Vec<Row> {
    let sets = |sets: Value| json!({"ranges": sets});
    let (wide, narrow) = (json!({"subnet": "10.244.0.0/16"}), json!({"subnet": "10.244.1.0/24"}));
    let outside = json!({"subnet": "10.244.1.0/24", "rangeStart": "10.244.2.1"});
    let backwards = json!({"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.9", "rangeEnd": "10.244.1.8"});
    let two = sets(json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}]]));
    let rows = vec![
        row("overlapping sets", sets(json!([[wide], [narrow]]))),
        row("overlapping ranges", sets(json!([[wide, narrow]]))),
        row("mixed families", sets(json!([[wide, {"subnet": "fd00:1::/64"}]]))),
        row("host bits", one(json!({"subnet": "10.244.1.1/24"}))),
        row("too small", one(json!({"subnet": "10.244.1.0/31"}))),
        row("a range outside", one(outside)),
        row("a range backwards", one(backwards)),
        row("no ranges", json!({})),
        row("an empty set", sets(json!([[]]))),
        Row { version: "0.2.0", ..row("two addresses of a family", two) },
    ];
    rows.into_iter().map(|row| Row { story: ONE, ..row }.fails()).collect()
}
