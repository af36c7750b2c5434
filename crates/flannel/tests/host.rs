//! `flannel install` and `flannel uninstall` on a host made for the test: what they say, what is there afterwards, and that
//! nothing else is touched. Each test is a shell script in a world of its own; it fails at the first command that fails.

mod world;

use world::{enclosed, world};

/// Words of these tests. The host's own /etc, /opt and /usr/local are out of reach.
const WORDS: &str = r#"
mkdir /run/etc; cp -a /etc/. /run/etc/ 2>/dev/null || true; mount --bind /run/etc /etc
rm -rf /etc/cni /etc/flannel /etc/systemd/system
mount -t tmpfs none /opt; mount -t tmpfs none /usr/local
# Six copies are made of it: without what debuggers read they are a third.
built=$(readlink ../bin/flannel); rm ../bin/flannel; strip -o ../bin/flannel "$built"
install() { flannel install "$@" -- --ip-masq --healthz-port=8081 --local-store="$PWD/store"; }
everywhere() { find /etc /opt /usr/local /run/flannel /var/lib -type f -o -type l | sort; }
kernel() { ip -o link | sed 's/^[0-9]*: //'; ip route; ip -6 route | sed "/^fe80/d"; nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'; }
daemon() {
    (set -a; . /etc/flannel/flanneld.env; exec /usr/local/bin/flanneld) 2>../err &
    daemon=$!
    until_true ready
}
call() { CNI_COMMAND=$1 CNI_PATH=/opt/cni/bin /opt/cni/bin/flannel <../conf; }
fails() { status=$1; shift; "$@" >../out 2>&1 && ended=0 || ended=$?; is "$ended $(cat ../out)" "$status $(cat)"; }
"#;

fn holds(name: &str, script: &str) {
    let output = enclosed(&world(name), &format!("{WORDS}\nexec 2>&1\nset -x\n{script}")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// From nothing to a pod and back to nothing. What others have in the kernel, one thing of each kind, is there throughout.
fn comes_and_goes(name: &str, rules: &str, backend: &str) {
    let config = format!(r#"{rules}"Backend":{{"Type":"{backend}"}}"#);
    let data = if backend == "vxlan" { r#","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}"# } else { "" };
    let script = format!(
        r#"
        eth0; config "$(only '{config}')"
        record 10.244.7.0-24 '{{"PublicIP":"192.0.2.7","BackendType":"{backend}"{data}}}'
        ip route add 10.99.0.0/16 via 192.0.2.9; ip route add 10.244.200.0/24 dev eth1; ip link add cni1 type bridge
        nft add table ip others '{{ chain forward {{ type filter hook forward priority 0; }}; }}'
        mkdir -p /opt/cni/bin /etc/cni/net.d; echo packaged >/opt/cni/bin/macvlan; echo '{{}}' >/etc/cni/net.d/99-other.conf
        printf '*nat\n:POSTROUTING ACCEPT\nCOMMIT\n*filter\n:FORWARD ACCEPT\nCOMMIT\n' | iptables-nft-restore -n
        kernel >../kernel; everywhere >../files
        "#
    );
    holds(name, &(script + COME + GO));
}

const COME: &str = r#"
install --dry-run >../planned
kernel | cmp - ../kernel; everywhere | cmp - ../files
is "$(cat ../planned)" 'would make /usr/local/bin
would write /usr/local/bin/flannel
would make /usr/local/bin/flanneld -> flannel
would write /opt/cni/bin/flannel
would write /opt/cni/bin/bridge
would write /opt/cni/bin/host-local
would write /opt/cni/bin/portmap
would write /opt/cni/bin/loopback
would write /etc/cni/net.d/10-flannel.conflist
would make /etc/flannel
would write /etc/flannel/flanneld.env
would make /etc/systemd/system
would write /etc/systemd/system/flanneld.service'
install >../done
sed 's/^would make/made/; s/^would write/wrote/' ../planned | cmp - ../done
is "$(install)" 'all of it is here already'
is "$(flannel install)" 'all of it is here already'
grep -qx FLANNELD_IP_MASQ=true /etc/flannel/flanneld.env
is "$(stat -c %a /etc/flannel/flanneld.env /etc/systemd/system/flanneld.service | paste -sd ' ')" '600 644'

daemon; until_true eval 'ip route | grep -q ^10.244.7.0/24'
printf '{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","delegate":{"isDefaultGateway":true}}' >../conf
pod; call ADD >/dev/null
unset CNI_COMMAND
fails 1 flannel uninstall <<END
error: flanneld runs here, as process $daemon, and would make all of it again
hint: end it first; in Kubernetes: kubectl --namespace kube-flannel delete daemonset kube-flannel-ds
END
"#;

const GO: &str = r#"
kill $daemon; wait $daemon
kernel >../running; everywhere >../running-files
flannel uninstall --dry-run >../planned 2>&1 && exit 1
kernel | cmp - ../running; everywhere | cmp - ../running-files
grep -q '^would release lease 10.244.1.0-24$' ../planned
veth=$(ip -o link show master cni0 | sed 's/^[0-9]*: \([^@]*\)@.*/\1/')
flannel uninstall >../done 2>../out && exit 1
is "$(cat ../out)" "error: pods still run, at $veth: cni0, the CNI plugins, their configuration and what they have written down stay
hint: end the pods, then do this again"
grep -v ^would ../planned | cmp - ../out
grep ^would ../planned | sed 's/^would release/released/; s/^would remove/removed/' | cmp - ../done
[ ! -e store/subnets/10.244.1.0-24.json ]; [ -e store/subnets/10.244.7.0-24.json ]
ip -o link show cni0 >/dev/null; ip -o link | grep -q flannel.1 && exit 1
nft list ruleset | grep -q flannel && exit 1
ip route | grep -q ^10.244.7.0/24 && exit 1
call DEL; ip netns del pod; unset CNI_COMMAND
../bin/flannel uninstall
# The plugin's lock and what it gives next are host-local's.
rm -rf /var/lib/cni/networks; until_true eval '! ip -o link | grep -q veth.*cni'
kernel | diff - ../kernel; everywhere | diff - ../files
is "$(../bin/flannel uninstall)" "nothing of flannel's is here"
"#;

#[test]
fn a_host_with_vxlan_is_as_it_was() {
    comes_and_goes("host-vxlan", r#""EnableNFTables":true,"#, "vxlan");
}

#[test]
fn a_host_with_iptables_is_as_it_was() {
    comes_and_goes("host-iptables", "", "vxlan");
}

#[test]
fn a_host_with_routes_to_its_peers_is_as_it_was() {
    comes_and_goes("host-gw", r#""EnableNFTables":true,"#, "host-gw");
}

#[test]
fn what_cannot_be_done_changes_nothing() {
    holds(
        "host-fails",
        r#"
        eth0; kernel >../kernel; everywhere >../files
        fails 2 flannel install -- --healthz-port=none <<'END'
error: bad value `none` for `-healthz-port`: not a whole number
END
        fails 2 flannel install -- --iface=a --iface=b <<'END'
error: bad value `a b` for `-iface`: the environment holds one value
END
        fails 2 flannel install -- eth0 <<'END'
error: bad flag syntax: `eth0`
END
        fails 1 flannel install -- --iface-regex="it's" <<'END'
error: a flag's value cannot be written in /etc/flannel/flanneld.env: it has a quote or a control character in it
hint: leave the flag out, and write it in /etc/flannel/flanneld.env afterwards
END
        everywhere | cmp - ../files
        mkdir -p /usr/local/bin; echo other >/usr/local/bin/flanneld
        fails 1 flannel install <<'END'
error: /usr/local/bin/flanneld is in the way: it is none of ours
hint: move it away, or choose another --prefix
END
        rm /usr/local/bin/flanneld; mkdir -p /etc/flannel; echo FLANNELD_V=much >/etc/flannel/flanneld.env
        everywhere >../files
        fails 2 flannel uninstall <<'END'
error: /etc/flannel/flanneld.env: bad value `much` for `FLANNELD_V`: not a whole number
hint: correct it, then do this again
END
        kernel | cmp - ../kernel; everywhere | cmp - ../files
        "#,
    );
}

#[test]
fn the_service_runs_the_daemon_of_the_prefix_and_calls_are_told() {
    holds(
        "host-systemd",
        r#"
        mkdir -p /run/systemd/system; program systemctl 'echo "$@" >>"${0%/*}/../called"'
        install --prefix /opt/flannel >../done
        grep -qx ExecStart=/opt/flannel/bin/flanneld /etc/systemd/system/flanneld.service
        is "$(tail -n 3 ../done)" 'ran systemctl daemon-reload
ran systemctl enable flanneld.service
ran systemctl restart --no-block flanneld.service'
        config '{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}'
        flannel uninstall --prefix /opt/flannel >/dev/null
        is "$(cat ../called)" 'daemon-reload
enable flanneld.service
restart --no-block flanneld.service
disable --now flanneld.service
daemon-reload'
        "#,
    );
}

#[test]
fn a_lease_in_etcd_is_given_up_and_nobody_elses() {
    holds(
        "host-etcd",
        r#"
        eth0; etcd --data-dir ../etcd --unsafe-no-fsync >../etcd.log 2>&1 &
        etcd=$!; until_true etcdctl get config
        subnets() { etcdctl get --prefix --keys-only /coreos.com/network/subnets | sed '/^$/d; s|.*/||' | paste -sd ' '; }
        etcdctl put /coreos.com/network/config '{"Network":"10.244.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}'
        etcdctl put /coreos.com/network/subnets/10.244.9.0-24 '{"PublicIP":"192.0.2.9"}'
        flannel install -- --ip-masq --healthz-port=8081 >/dev/null
        daemon; kill $daemon; wait $daemon
        own=$(subnets | sed 's/ *10.244.9.0-24 *//'); [ -n "$own" ]
        flannel uninstall --dry-run | grep -qx "would release lease $own"
        /usr/local/bin/flannel uninstall | grep -qx "released lease $own"
        is "$(subnets)" 10.244.9.0-24
        [ ! -e /usr/local/bin/flannel ]

        ../bin/flannel install -- --ip-masq --healthz-port=8081 >/dev/null
        daemon; kill $daemon $etcd; wait $daemon; wait $etcd || true
        flannel uninstall >../done 2>../out && exit 1
        grep -q '^error: cannot release the lease: etcd at http://127.0.0.1:.* cannot be reached: Connection refused' ../out
        is $(wc -l <../out) 1
        [ ! -e /usr/local/bin/flannel ]; ip -o link | grep -q flannel && exit 1
        [ ! -e /etc/flannel ]
        "#,
    );
}
