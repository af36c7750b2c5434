//! A daemon at work on the built binary: what it leaves alone, which programs it runs, and what stays when it ends.
//!
//! Each test is a shell script in a world of its own; it fails at the first command that fails.

mod world;

use world::{enclosed, world};

/// Words of these tests. `run` starts the daemon and waits until it is ready; `end` ends it and expects status 0.
const WORDS: &str = r#"
run() {
    : >../err
    flanneld --local-store=store --healthz-port=8081 --ip-masq --iptables-resync=1 "$@" 2>>../err </dev/null &
    daemon=$!
    until_true ready
}
end() { kill "-$1" $daemon; wait $daemon; }
# Programs of iptables, of the variant named, that tell that they were run.
recorded() {
    for family in iptables ip6tables; do
        for verb in '' -save -restore; do
            real=/usr/sbin/$family-$1$verb
            for name in $family$verb $family-$1$verb; do program $name "echo $family$verb >>'$PWD/../ran'; exec $real \"\$@\""; done
        done
    done
    : >../ran
}
# No program has run for a while.
still() { : >../ran; sleep 1.5; [ ! -s ../ran ]; }
# Whose tables there are may be read by the host's root only.
legacy() {
    iptables-legacy -t nat -S >/dev/null
    iptables-legacy-save >/dev/null 2>&1 || { echo 'iptables-legacy-save works for root only: run the tests as root'; exit 1; }
}
# Page faults of children that ended: 0 if there never was one.
children() { cut -d ' ' -f 11 "/proc/$daemon/stat"; }
mac() { ip -o link show flannel.1 | sed 's/.*link.ether \([^ ]*\).*/\1/'; }
dual() {
    ip addr add 2001:db8::1/64 dev eth0 nodad
    config "$(only '"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","EnableNFTables":true,"Backend":{"Type":"vxlan"}')"
}
# The kernel tells a program of what changes.
listens() { awk -v "pid=$1" '$3 == pid && $4 !~ /^0+$/ { found = 1 } END { exit !found }' /proc/net/netlink; }
settled() { ! ip addr | grep -q tentative; }
# The probes of `ready` count in the rules.
state() { look 2>/dev/null | sed 's/counter packets [0-9]* bytes [0-9]*/counter/'; }
masquerades() { nft list ruleset | grep -qi masquerade; }
"#;

fn holds(name: &str, script: &str) {
    let output = enclosed(&world(name), &format!("{WORDS}\nexec 2>&1\n{script}")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn nftables_mode_runs_no_program() {
    holds(
        "quiet-nftables",
        r"
        eth0; good; peer 7
        for name in iptables ip6tables iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
            for verb in '' -save -restore; do program $name$verb 'echo $0 >>../ran; exit 1'; done
        done
        program modprobe 'echo $0 >>../ran; exit 1'; program nft 'echo $0 >>../ran; exit 1'
        mount -t tmpfs none /proc/sys/net/bridge
        run
        /usr/sbin/nft delete table ip flannel-ipv4
        ip link del flannel.1
        until_true routed 10.244.7.0/24
        until_true eval '/usr/sbin/nft list ruleset | grep -q masquerade'
        sleep 2.5
        is $(children) 0
        [ ! -e ../ran ]
        end TERM
        ",
    );
}

#[test]
fn iptables_nft_is_read_only_when_the_rules_moved() {
    holds(
        "quiet-iptables-nft",
        r"
        eth0; iptables_mode; recorded nft
        run
        until_true still
        before=$(children)
        sleep 3.5
        is $(children) $before
        is $(wc -l <../ran) 0
        iptables-nft -t nat -F FLANNEL-POSTRTG; : >../ran
        until_true masquerades
        grep -q '^iptables-restore' ../ran
        end TERM
        ",
    );
}

#[test]
fn with_iptables_legacy_no_program_runs_while_its_tables_stay_as_they_are() {
    holds(
        "quiet-iptables-legacy",
        r"
        legacy; eth0; iptables_mode; recorded legacy
        # What is in use on this node is told by the program in PATH, and that is ours alone.
        PATH=$PWD/../bin:/usr/bin:/bin
        run
        /usr/sbin/iptables-legacy -t nat -S | grep -q MASQUERADE
        until_true still
        sleep 4
        is $(wc -l <../ran) 0
        /usr/sbin/iptables-legacy -t nat -F FLANNEL-POSTRTG
        until_true eval '/usr/sbin/iptables-legacy -t nat -S | grep -q MASQUERADE'
        is $(grep -c restore ../ran) 1
        end TERM
        ",
    );
}

#[test]
fn what_legacy_iptables_keeps_is_named_with_the_command_that_removes_it() {
    holds(
        "quiet-leftovers",
        r"
        legacy; eth0; iptables_mode; recorded legacy
        ours=$PATH; PATH=$PWD/../bin:/usr/bin:/bin
        run
        end TERM
        iptables-legacy-save | grep -q FLANNEL
        PATH=$ours; good
        run
        until_true grep -q 'iptables-legacy holds chains that flannel left there' ../err
        sleep 1.5
        is $(grep -c 'iptables-legacy holds chains that flannel left there' ../err) 1
        eval $(sed -n 's/.*remove them by `\(.*\)`)/\1/p' ../err)
        is $(iptables-legacy-save | grep -c FLANNEL || :) 0
        end TERM
        ",
    );
}

#[test]
fn without_a_program_of_iptables_the_rules_are_in_nf_tables_and_those_of_iptables_nft_go() {
    holds(
        "quiet-no-iptables",
        r"
        legacy; eth0; iptables_mode; recorded nft
        ours=$PATH; PATH=$PWD/../bin:/usr/bin:/bin
        run
        iptables-save | grep -q FLANNEL
        end TERM
        rm ../bin/*tables*
        PATH=$PWD/../bin:/bin:/usr/bin
        ! command -v iptables-save
        run
        is $(grep -c 'no program of iptables is here: the packet rules are in nf_tables all the same' ../err) 1
        /usr/sbin/nft list table ip flannel-ipv4 | grep -q masquerade
        is $(/usr/sbin/iptables-nft-save | grep -c FLANNEL || :) 0
        sleep 1.5
        is $(grep -c WARN ../err) 1
        is $(children) 0
        end TERM
        # With the programs back, it is as the network says.
        PATH=$ours
        run
        iptables-nft-save | grep -q FLANNEL
        ! nft list table ip flannel-ipv4
        end TERM
        ",
    );
}

#[test]
fn rules_of_others_that_drop_pods_packets_are_told_with_the_command_that_lets_them_pass() {
    for (mode, variant) in [("good", "nft"), ("good", "legacy"), ("iptables_mode", "legacy")] {
        holds(
            &format!("quiet-drops-{mode}-{variant}"),
            &format!(
                r#"
                legacy; eth0; {mode}; peer 7; recorded nft
                PATH=$PWD/../bin:/usr/bin:/bin
                run
                sleep 1.5
                is "$(grep -c 'packets of pods' ../err || :)" 0
                /usr/sbin/iptables-{variant} -P FORWARD DROP
                /usr/sbin/iptables-{variant} -I FORWARD -i docker0 -j ACCEPT
                until_true grep -q 'packets of pods are dropped by' ../err
                sleep 1.5
                is "$(grep -c 'packets of pods are dropped by' ../err)" 1
                grep -q 'chain FORWARD, policy drop' ../err
                before=$(children)
                PATH=/usr/sbin:$PATH
                eval "$(sed -n 's/.*let them pass by `\(.*\)`)/\1/p' ../err)"
                until_true grep -q 'no longer: packets of pods are dropped by' ../err
                is "$(children)" $before
                end TERM
                "#
            ),
        );
    }
}

#[test]
fn a_restart_changes_nothing() {
    for mode in ["good", "iptables_mode", "dual"] {
        holds(
            &format!("quiet-restart-{mode}"),
            &format!(
                r#"
                eth0; {mode}; peer 7; peer 8
                run
                end TERM
                until_true settled
                state >../first; mac=$(mac)
                ip monitor link address route neigh nexthop >../told & told=$!
                nft monitor >../rules & rules=$!
                until_true listens $told; until_true listens $rules
                run
                sleep 1.5
                end INT
                state | diff ../first -
                is $(mac) $mac
                is "$(cat ../told ../rules)" ''
                "#
            ),
        );
    }
}

#[test]
fn the_blackhole_is_kept_where_it_is_wanted() {
    holds(
        "quiet-blackhole",
        r"
        eth0; good
        run
        is $(ip route show type blackhole | wc -l) 0
        end TERM
        run --ip-blackhole-route
        there() { ip route show type blackhole | grep -q '^blackhole 10.244.1.0/24'; }
        there
        ip route del blackhole 10.244.1.0/24
        until_true there
        end TERM
        there
        run
        # Without the flag it may be anybody's: it stays.
        there
        end TERM
        ",
    );
}

#[test]
fn a_device_that_could_not_be_had_comes_when_it_can() {
    holds(
        "quiet-keeps-trying",
        r"
        eth0; good; ip link add flannel.1 type bridge
        flanneld --local-store=store --healthz-port=8081 2>../err </dev/null &
        daemon=$!
        until_true not_ready 'of kind bridge'
        sleep 1.5
        is $(grep -c 'of kind bridge' ../err) 1
        ip link del flannel.1
        until_true ready
        end TERM
        ",
    );
}
