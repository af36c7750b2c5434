//! What `flanneld` makes of an etcd that is not there, not for it, or full of rubbish: one line with cause and remedy, no more.
//!
//! The rows share servers and run one after the other; `$P` is a row's own prefix. The text of a server's answer is etcd's.

use super::{Case, goes_on, refused};

/// Servers for all rows, at ports of their own: plain, with users, with certificates, with one that is expired. Each has a back door
/// without TLS at its port and 10000, and its metrics at its port and 20000.
pub(super) const STAGE: &str = r#"
export ETCDCTL_API=3 FLANNELD_HEALTHZ_PORT=8081
mkdir ../etcd
eth0
serve() {
    port=$1 scheme=$2
    shift 2
    etcd --name m --data-dir "../etcd/$port" --max-txn-ops 50000 --listen-metrics-urls "http://127.0.0.1:$((port + 20000))" \
        --listen-client-urls "$scheme://127.0.0.1:$port,$scheme://127.0.0.2:$port,http://127.0.0.1:$((port + 10000))" \
        --advertise-client-urls "$scheme://127.0.0.1:$port" --initial-cluster "m=http://127.0.0.1:$((port + 30000))" \
        --listen-peer-urls "http://127.0.0.1:$((port + 30000))" \
        --initial-advertise-peer-urls "http://127.0.0.1:$((port + 30000))" "$@" >"../etcd/$port.log" 2>&1 &
}
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
authority() { key "$1" && openssl req -x509 -new -key "$1.key" -subj "/CN=$1" -days 2 -out "$1.crt"; }
certificate() {
    key "$1"
    echo 'subjectAltName = IP:127.0.0.1' >names
    openssl req -new -key "$1.key" -subj "/CN=$1" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -CAcreateserial -days "$3" -extfile names -out "$1.crt"
}
answers() { until etcdctl --endpoints="http://127.0.0.1:$1" get health >/dev/null 2>&1; do sleep 0.05; done; }
{
    authority ca && authority other
    certificate server ca 1 && certificate expired ca 0
    certificate client ca 1 && certificate foreign other 1
} 2>../etcd/openssl.log
mkdir folder && echo garbage >garbage
TLS=$PWD
serve 2379 http
serve 2479 http
serve 2579 https --cert-file server.crt --key-file server.key --trusted-ca-file ca.crt --client-cert-auth
serve 2679 https --cert-file expired.crt --key-file expired.key
program ctl 'exec etcdctl --endpoints=http://127.0.0.1:2379 "$@"'
for port in 12379 12479 12579 12679; do answers $port; done
user() { etcdctl --endpoints=http://127.0.0.1:2479 "$@" >>../etcd/users; }
user put /users/config "$(only '"EnableNFTables":true,"Backend":{"Type":"vxlan"}')"
for name in root flannel reader stranger; do user user add "$name:s3cret-$name"; user role add "$name"; done
user role grant-permission flannel --prefix=true readwrite /users/
user role grant-permission reader --prefix=true read /users/
for name in root flannel reader stranger; do user user grant-role "$name" "$name"; done
user auth enable
good() { ctl put "$P/config" "$(only '"EnableNFTables":true,"Backend":{"Type":"vxlan"}')" >/dev/null; }
record() { ctl put "$P/subnets/$1" "$2" >/dev/null; }
# How many requests of a kind the servers were sent.
requests() {
    for port in 22379 22479; do ask /metrics $port; done |
        awk -v "kind=grpc_method=\"$1\"" '/^grpc_server_started_total/ && index($0, kind) { sum += $2 } END { print sum + 0 }'
}
wreck() { ctl put "$P/config" '{bad' && ctl put "$P/config" '[]' && ctl del "$P/config"; }
# What is not done again while the rest is waited for.
once() { [ -e ../once ] || { eval "$1" && touch ../once; }; }
program tidy 'ip link del flannel.1 2>/dev/null; nft flush ruleset; rm -rf /run/flannel'
while ip -6 addr | grep -q tentative; do sleep 0.05; done
"#;

const PLAIN: &str = "flanneld";

/// A server that cannot be used: it is tried again, and the host left alone.
const fn server(wrong: &'static str, command: &'static str, warns: &'static str) -> Case {
    goes_on(wrong, "", command, warns, "warned && untouched && not_ready etcd")
}

/// A configuration that is waited for to become right.
const fn config(wrong: &'static str, before: &'static str, warns: &'static str) -> Case {
    goes_on(wrong, before, PLAIN, warns, "once 'warned && untouched && not_ready config && good' && ready")
}

/// Rubbish beside a good peer, which is routed to.
const fn beside(wrong: &'static str, before: &'static str, warns: &'static str) -> Case {
    goes_on(wrong, before, PLAIN, warns, "ready && routed 10.244.7.0/24")
}

pub(super) const CASES: &[Case] = &[
    server(
        "nobody there",
        "flanneld --etcd-endpoints=http://127.0.0.1:9",
        "not ready: etcd at http://127.0.0.1:9 cannot be reached: Connection refused (os error 111) (hint: start etcd there, or correct --etcd-endpoints)",
    ),
    server(
        "nobody anywhere",
        "flanneld --etcd-endpoints=127.0.0.1:9,http://127.0.0.1:10",
        "not ready: etcd at http://127.0.0.1:10 cannot be reached: Connection refused (os error 111); etcd at http://127.0.0.1:9 cannot be reached: Connection refused (os error 111) (hint: start etcd there, or correct --etcd-endpoints)",
    ),
    goes_on(
        "silent host",
        "nft 'add table ip loses; add chain ip loses in { type filter hook input priority 0; }; add rule ip loses in ip daddr 127.0.0.3 drop'",
        "flanneld --etcd-endpoints=http://127.0.0.3:2379",
        "not ready: etcd at http://127.0.0.3:2379 cannot be reached: no answer in 2 s (hint: see that the server runs and that no firewall is in between, or correct --etcd-endpoints)",
        "warned && untouched && not_ready etcd",
    ),
    // What is noticed first of such a server is a matter of luck.
    server(
        "port of another protocol",
        "flanneld --etcd-endpoints=http://127.0.0.1:22379",
        "? not ready: etcd at http://127.0.0.1:22379 cannot read /ROW/config: the server hangs up (hint: if this server speaks TLS, write https:// instead of http://; else correct the port in --etcd-endpoints)\n\
         ? not ready: etcd at http://127.0.0.1:22379 cannot read /ROW/config: http2 error: connection error detected: frame with invalid size (hint: if this server speaks TLS, write https:// instead of http://; else correct the port in --etcd-endpoints)",
    ),
    server(
        "TLS spoken to a server without",
        "flanneld --etcd-endpoints=https://127.0.0.1:2379",
        "not ready: etcd at https://127.0.0.1:2379 cannot be reached: the server hangs up (hint: if this server does not speak TLS, write http:// instead of https://)",
    ),
    server(
        "no TLS spoken to a server with it",
        "flanneld --etcd-endpoints=http://127.0.0.1:2579",
        "not ready: etcd at http://127.0.0.1:2579 cannot read /ROW/config: the server hangs up (hint: if this server speaks TLS, write https:// instead of http://; else correct the port in --etcd-endpoints)",
    ),
    server(
        "authority that did not sign",
        "flanneld --etcd-endpoints=https://127.0.0.1:2579 --etcd-cafile=$TLS/other.crt",
        "not ready: etcd at https://127.0.0.1:2579 cannot be reached: invalid peer certificate: UnknownIssuer (hint: --etcd-cafile has to name the authority that signed this server's certificate)",
    ),
    server(
        "certificate of another name",
        "flanneld --etcd-endpoints=https://127.0.0.2:2579 --etcd-cafile=$TLS/ca.crt",
        "not ready: etcd at https://127.0.0.2:2579 cannot be reached: invalid peer certificate: certificate not valid for name \"127.0.0.2\"; certificate is only valid for IpAddress(127.0.0.1) (hint: write the server in --etcd-endpoints by a name that is in its certificate)",
    ),
    server(
        "no certificate where one is wanted",
        "flanneld --etcd-endpoints=https://127.0.0.1:2579 --etcd-cafile=$TLS/ca.crt",
        "? not ready: etcd at https://127.0.0.1:2579 cannot read /ROW/config: the server hangs up (hint: if this server wants a certificate of ours that it trusts, give --etcd-certfile and --etcd-keyfile; its log says more)\n\
         ? not ready: etcd at https://127.0.0.1:2579 cannot read /ROW/config: connection error: received fatal alert: BadCertificate (hint: the server wants another certificate: give --etcd-certfile and --etcd-keyfile)",
    ),
    server(
        "foreign certificate",
        "flanneld --etcd-endpoints=https://127.0.0.1:2579 --etcd-cafile=$TLS/ca.crt --etcd-certfile=$TLS/foreign.crt \
         --etcd-keyfile=$TLS/foreign.key",
        "? not ready: etcd at https://127.0.0.1:2579 cannot read /ROW/config: the server hangs up (hint: if this server wants a certificate of ours that it trusts, give --etcd-certfile and --etcd-keyfile; its log says more)\n\
         ? not ready: etcd at https://127.0.0.1:2579 cannot read /ROW/config: connection error: received fatal alert: BadCertificate (hint: the server wants another certificate: give --etcd-certfile and --etcd-keyfile)",
    ),
    server(
        "key of another certificate",
        "flanneld --etcd-endpoints=https://127.0.0.1:2579 --etcd-cafile=$TLS/ca.crt --etcd-certfile=$TLS/client.crt \
         --etcd-keyfile=$TLS/foreign.key",
        "not ready: etcd at https://127.0.0.1:2579 cannot be reached: certificate WORLD/work/client.crt and key WORLD/work/foreign.key: keys may not be consistent: KeyMismatch (hint: give a certificate and a key that belong together)",
    ),
    server(
        "certificate that is not there",
        "flanneld --etcd-endpoints=https://127.0.0.1:2579 --etcd-cafile=$TLS/ca.crt --etcd-certfile=$TLS/absent.crt \
         --etcd-keyfile=$TLS/client.key",
        "not ready: etcd at https://127.0.0.1:2579 cannot be reached: cannot read client certificate WORLD/work/absent.crt: I/O error: No such file or directory (os error 2) (hint: --etcd-cafile, --etcd-certfile and --etcd-keyfile have to name files that flanneld may read)",
    ),
    server(
        "key that is a folder",
        "flanneld --etcd-endpoints=https://127.0.0.1:2579 --etcd-cafile=$TLS/ca.crt --etcd-certfile=$TLS/client.crt \
         --etcd-keyfile=$TLS/folder",
        "not ready: etcd at https://127.0.0.1:2579 cannot be reached: cannot read key WORLD/work/folder: I/O error: Is a directory (os error 21) (hint: --etcd-cafile, --etcd-certfile and --etcd-keyfile have to name files that flanneld may read)",
    ),
    server(
        "authority that is garbage",
        "flanneld --etcd-endpoints=https://127.0.0.1:2579 --etcd-cafile=$TLS/garbage",
        "not ready: etcd at https://127.0.0.1:2579 cannot be reached: CA certificate WORLD/work/garbage holds none in PEM (hint: give files in PEM, the key without a password)",
    ),
    goes_on(
        "wrong password",
        "before=$(requests Authenticate)",
        "FLANNELD_ETCD_PASSWORD=wr0ng flanneld --etcd-endpoints=http://127.0.0.1:2479 --etcd-prefix=/users --etcd-username=flannel",
        "not ready: etcd at http://127.0.0.1:2479 cannot log in: etcdserver: authentication failed, invalid user ID or password (hint: correct --etcd-username and --etcd-password)",
        "warned && untouched && not_ready authentication && sleep 2 && [ $(($(requests Authenticate) - before)) -lt 10 ]",
    ),
    server(
        "user without rights",
        "FLANNELD_ETCD_PASSWORD=s3cret-stranger flanneld --etcd-endpoints=http://127.0.0.1:2479 --etcd-prefix=/users --etcd-username=stranger",
        "not ready: etcd at http://127.0.0.1:2479 cannot read /users/config: etcdserver: permission denied (hint: grant the user of --etcd-username readwrite on all keys below --etcd-prefix)",
    ),
    server(
        "user without rights on the prefix",
        "FLANNELD_ETCD_PASSWORD=s3cret-flannel flanneld --etcd-endpoints=http://127.0.0.1:2479 --etcd-prefix=/other --etcd-username=flannel",
        "not ready: etcd at http://127.0.0.1:2479 cannot read /other/config: etcdserver: permission denied (hint: grant the user of --etcd-username readwrite on all keys below --etcd-prefix)",
    ),
    server(
        "user who may only read",
        "FLANNELD_ETCD_PASSWORD=s3cret-reader flanneld --etcd-endpoints=http://127.0.0.1:2479 --etcd-prefix=/users --etcd-username=reader",
        "not ready: own lease: etcd at http://127.0.0.1:2479 cannot write /users/subnets/10.244.1.0-24: etcdserver: permission denied (hint: grant the user of --etcd-username readwrite on all keys below --etcd-prefix)",
    ),
    server(
        "no user where one is wanted",
        "flanneld --etcd-endpoints=http://127.0.0.1:2479 --etcd-prefix=/users",
        "not ready: etcd at http://127.0.0.1:2479 cannot read /users/config: etcdserver: user name is empty (hint: this etcd wants a user: give --etcd-username and --etcd-password, or a client certificate)",
    ),
    goes_on(
        "user where there are none",
        "good",
        "FLANNELD_ETCD_PASSWORD=s3cret flanneld --etcd-endpoints=http://127.0.0.1:2379 --etcd-username=flannel",
        "",
        "ready",
    ),
    goes_on(
        "server at the second place",
        "good",
        "flanneld --etcd-endpoints=http://127.0.0.1:9,127.0.0.1:2379",
        "",
        "ready",
    ),
    config(
        "no config yet",
        "",
        "not ready: etcd key /ROW/config does not exist; waiting for it (hint: etcdctl put /ROW/config '{\"Network\": \"10.5.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}')",
    ),
    config(
        "config that is not JSON",
        "ctl put $P/config '{\"Network\":' >/dev/null",
        "not ready: network config is not a JSON object: EOF while parsing a value at line 1 column 11 (hint: the least it may hold is {\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}})",
    ),
    config(
        "config that is empty",
        "ctl put $P/config '' >/dev/null",
        "not ready: network config is not a JSON object: EOF while parsing a value at line 1 column 0 (hint: the least it may hold is {\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}})",
    ),
    config(
        "config that is no text",
        "printf '\\377\\376' | ctl put $P/config >/dev/null",
        "not ready: etcd key /ROW/config is not UTF-8 text (hint: etcdctl put /ROW/config '{\"Network\": \"10.5.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}')",
    ),
    config(
        "config that is one long word",
        "head -c 1000000 /dev/zero | tr '\\0' x | sed 's/.*/\"&\"/' | ctl put $P/config >/dev/null",
        "not ready: network config is not a JSON object: invalid type: string \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx… (hint: the least it may hold is {\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}})",
    ),
    config(
        "config of another backend",
        "ctl put $P/config '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"udp\"}}' >/dev/null",
        "not ready: network config: Backend.Type \"udp\" is not supported (hint: set \"Backend\": {\"Type\": \"vxlan\"} or {\"Type\": \"host-gw\"})",
    ),
    goes_on(
        "config of thirty thousand unknown keys",
        "{ printf '{'; seq -f '\"Key%06.0f\":1,' 30000; only '\"EnableNFTables\":true,\"Backend\":{\"Type\":\"vxlan\"}' | cut -c2-; } | ctl put $P/config >/dev/null",
        PLAIN,
        "network config: key Key000001 is unknown and has no effect\n\
         network config: key Key000002 is unknown and has no effect\n\
         network config: key Key000003 is unknown and has no effect\n\
         network config: key Key000004 is unknown and has no effect\n\
         network config: key Key000005 is unknown and has no effect\n\
         network config: key Key000006 is unknown and has no effect\n\
         network config: key Key000007 is unknown and has no effect\n\
         network config: key Key000008 is unknown and has no effect\n\
         ? network config: key Key000009 is unknown and has no effect\n\
         ? network config: key Key000010 is unknown and has no effect",
        "ready",
    ),
    goes_on(
        "config that breaks while in use",
        "good; peer 7",
        PLAIN,
        "network config is not a JSON object: key must be a string at line 1 column 2 (hint: the least it may hold is {\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}); the network config read before stays in force\n\
         network config is not a JSON object: invalid type: sequence, expected an object at line 1 column 0 (hint: the least it may hold is {\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}); the network config read before stays in force\n\
         etcd key /ROW/config does not exist; waiting for it (hint: etcdctl put /ROW/config '{\"Network\": \"10.5.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}'); the network config read before stays in force",
        "once 'ready && wreck' && [ $(grep -c stays ../err) = 3 ] && ready && routed 10.244.7.0/24",
    ),
    beside(
        "records that cannot be read",
        "good; peer 7; record 10.244.20.0-24 '{bad'; record 10.244.21.0-24 ''; record 10.244.22.0-24 '[]'; \
         record 10.244.23.0-24 '{\"PublicIP\":\"192.0.2.999\",\"BackendType\":\"vxlan\"}'; record garbage '{}'; record 10.42.999.0-24 '{}'; record '' '{}'",
        "lease  is skipped: key: `` is not an IPv4 subnet like 10.5.52.0-24\n\
         lease 10.244.20.0-24 is skipped: record: is not a JSON object: key must be a string at line 1 column 2\n\
         lease 10.244.21.0-24 is skipped: record: is not a JSON object: EOF while parsing a value at line 1 column 0\n\
         lease 10.244.22.0-24 is skipped: record: is not a JSON object: invalid type: sequence, expected an object at line 1 column 0\n\
         lease 10.244.23.0-24 is skipped: PublicIP: `192.0.2.999` is not an IPv4 address of a host\n\
         lease 10.42.999.0-24 is skipped: key: `10.42.999.0-24` is not an IPv4 subnet like 10.5.52.0-24\n\
         lease garbage is skipped: key: `garbage` is not an IPv4 subnet like 10.5.52.0-24",
    ),
    beside(
        "records with broken data",
        "good; peer 7; broken() { record 10.244.$1.0-24 '{\"PublicIP\":\"192.0.2.30\",\"BackendType\":\"vxlan\",\"BackendData\":'\"$2\"'}'; }; \
         broken 30 null; broken 31 '{\"VNI\":1,\"VtepMAC\":\"00:00:00:00:00:00\"}'; broken 32 '{\"VNI\":1,\"VtepMAC\":\"01:00:5e:00:00:01\"}'; \
         broken 33 '{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:00:00:01\"}'; broken 34 '{\"VNI\":2,\"VtepMAC\":\"02:00:00:00:00:34\"}'; broken 35 '[]'",
        "lease 10.244.30.0-24 is skipped: BackendData: is missing\n\
         lease 10.244.31.0-24 is skipped: BackendData.VtepMAC: MAC is not the MAC address of a host\n\
         lease 10.244.32.0-24 is skipped: BackendData.VtepMAC: MAC is not the MAC address of a host\n\
         lease 10.244.33.0-24 is skipped: BackendData.VtepMAC: `02:00:00:00:00:00:00:01` is not a 6-byte MAC address\n\
         lease 10.244.34.0-24 is skipped: BackendData.VNI: 2 is not our VNI 1\n\
         lease 10.244.35.0-24 is skipped: BackendData: [] is not an object like {\"VNI\":1,\"VtepMAC\":\"…\"}",
    ),
    beside(
        "records that would cut this node off",
        "good; peer 7; wide() { record $1 '{\"PublicIP\":\"192.0.2.40\",\"BackendType\":\"vxlan\",\"BackendData\":{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:40\"}}'; }; \
         wide 10.9.1.0-24; wide 192.0.2.0-24; wide 0.0.0.0-0; wide 0.0.0.0-1; wide 10.244.0.0-16",
        "lease 0.0.0.0-0 is skipped: key: `0.0.0.0-0` is not an IPv4 subnet like 10.5.52.0-24\n\
         lease 0.0.0.0-1 is skipped: subnet: 0.0.0.0/1 is not inside the network 10.244.0.0/16\n\
         lease 10.244.0.0-16 is skipped: subnet: 10.244.0.0/16 is not inside the network 10.244.0.0/16\n\
         lease 10.9.1.0-24 is skipped: subnet: 10.9.1.0/24 is not inside the network 10.244.0.0/16\n\
         lease 192.0.2.0-24 is skipped: subnet: 192.0.2.0/24 is not inside the network 10.244.0.0/16",
    ),
    beside(
        "names that are no line",
        "good; peer 7; record \"$(printf 'a\\nERROR forged')\" '{}'; record \"$(printf '\\033[31mred')\" '{}'",
        "lease \\u{1b}[31mred is skipped: key: `\\u{1b}[31mred` is not an IPv4 subnet like 10.5.52.0-24\n\
         lease a\\nERROR forged is skipped: key: `a\\nERROR forged` is not an IPv4 subnet like 10.5.52.0-24",
    ),
    beside(
        "record of a megabyte",
        "good; peer 7; head -c 1000000 /dev/zero | tr '\\0' x | ctl put $P/subnets/10.244.50.0-24 >/dev/null",
        "lease 10.244.50.0-24 is skipped: record: has 1000000 bytes, more than 65536",
    ),
    goes_on(
        "rubbish that comes while it runs",
        "good; peer 7",
        PLAIN,
        "lease garbage is skipped: key: `garbage` is not an IPv4 subnet like 10.5.52.0-24\n\
         lease 10.244.20.0-24 is skipped: record: is not a JSON object: key must be a string at line 1 column 2",
        "ready && record garbage '{}' && record 10.244.20.0-24 '{bad' && peer 8 && sleep 0.2 && routed 10.244.7.0/24 && routed 10.244.8.0/24 && ready",
    ),
    goes_on(
        "ten thousand records of rubbish",
        "good; peer 7; { echo; seq -f \"put $P/subnets/1-%05.0f x\" 10000; echo; echo; } | ctl txn >/dev/null",
        PLAIN,
        "lease 1-00001 is skipped: key: `1-00001` is not an IPv4 subnet like 10.5.52.0-24\n\
         lease 1-00002 is skipped: key: `1-00002` is not an IPv4 subnet like 10.5.52.0-24\n\
         lease 1-00003 is skipped: key: `1-00003` is not an IPv4 subnet like 10.5.52.0-24\n\
         lease 1-00004 is skipped: key: `1-00004` is not an IPv4 subnet like 10.5.52.0-24\n\
         lease 1-00005 is skipped: key: `1-00005` is not an IPv4 subnet like 10.5.52.0-24\n\
         lease 1-00006 is skipped: key: `1-00006` is not an IPv4 subnet like 10.5.52.0-24\n\
         ? lease 1-00007 is skipped: key: `1-00007` is not an IPv4 subnet like 10.5.52.0-24\n\
         ? lease 1-00008 is skipped: key: `1-00008` is not an IPv4 subnet like 10.5.52.0-24\n\
         ? lease 1-00009 is skipped: key: `1-00009` is not an IPv4 subnet like 10.5.52.0-24\n\
         ? lease 1-00010 is skipped: key: `1-00010` is not an IPv4 subnet like 10.5.52.0-24",
        "ready && routed 10.244.7.0/24",
    ),
    refused(
        "public IP of another host",
        r#"good; printf '\nput %s "{\\"PublicIP\\":\\"192.0.2.1\\"}"\nput %s "{\\"Name\\":\\"node-9\\",\\"Machine\\":\\"m9\\",\\"Boot\\":\\"b9\\",\\"Netns\\":9}"\n\n\n' \
         $P/subnets/10.244.1.0-24 $P/holders/10.244.1.0-24 | ctl txn >/dev/null"#,
        PLAIN,
        "error: public IP 192.0.2.1 of this host is held by host node-9 (machine m9, network namespace 9), as record 10.244.1.0-24\n\
         hint: give one of the two hosts another --public-ip; if the other host is gone for good, remove its record",
    ),
    refused(
        "no subnet left",
        "good; record 10.244.1.0-24 '{\"PublicIP\":\"192.0.2.9\"}'",
        PLAIN,
        "error: no subnet of 10.244.0.0/16 is free for this node\n\
         hint: remove the records of nodes that are gone, or give the network config a larger Network or SubnetMax",
    ),
    refused(
        "subnet taken while it runs",
        "good",
        "flanneld & until [ -e /run/flannel/subnet.env ]; do sleep 0.05; done; kill -STOP $!; ctl del $P/subnets/10.244.1.0-24 >/dev/null; \
         ctl put $P/subnets/10.244.1.0-24 '{\"PublicIP\":\"192.0.2.9\",\"BackendType\":\"host-gw\"}' >/dev/null; kill -CONT $!; \
         s=0; wait $! || s=$?; tidy; exit $s",
        "error: our lease 10.244.1.0-24 is lost: its subnet is held by public IP 192.0.2.9 (record 10.244.1.0-24)\n\
         hint: start again to acquire another subnet; the pods of this node have to be made anew",
    ),
    server(
        "expired certificate",
        "flanneld --etcd-endpoints=https://127.0.0.1:2679 --etcd-cafile=$TLS/ca.crt",
        "not ready: etcd at https://127.0.0.1:2679 cannot be reached: invalid peer certificate: certificate expired (hint: give this server a new certificate, or correct the clock of this host)",
    ),
];
